"""What of a measurement does not depend on the model: its settings, and the tree of every format.

Made once, used at every evaluation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.masking import mask_secrets
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.vocabulary import Encoder
from hf_exposure.exposure.scores import SCORES
from hf_exposure.tree.tokens import TokenTree
from hf_exposure.utils.arrays import Ints
from hf_exposure.utils.checks import check_choice, check_count, check_share
from hf_exposure.utils.warn import warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Draws that are made whatever the budget, so that there is an interval. Of 10^4 secrets, with the
# true ranks 1 to 9,382, they came within 0.7 bits (root mean square) of the exact exposure, and
# every interval held it.
MIN_SAMPLES = 200
METHODS = ("auto", "exact", "sampling", "skewnorm")
MOST_SAMPLES = 10**8  # which are held in memory


@dataclass(frozen=True)
class Settings:
    """The arguments of a measurement, checked; see `measure_exposure`.

    Attributes:
        min_samples: draws that "auto" makes even where the budget does not reach for them.
        score: what canaries are ranked by, one of `SCORES`. By another one than log-perplexity
            "auto" stands for "sampling".
        has_base: whether the model before training has a part in the score.
    """

    method: str = "auto"
    samples: int = 2000
    max_forwards: int | None = None
    confidence: float = 0.95
    seed: int = 0
    batch_size: int | None = None
    bos: bool | None = None
    min_samples: int = 0
    score: str = "log_perplexity"
    has_base: bool = False

    def __post_init__(self) -> None:
        check_choice("measure_exposure: method", self.method, METHODS)
        check_choice("measure_exposure: score", self.score, SCORES)
        if self.score != "log_perplexity" and self.method == "auto":
            object.__setattr__(self, "method", "sampling")
        if self.score != "log_perplexity" and self.method == "exact":
            raise ValueError(
                f"measure_exposure: method={self.method!r} ranks by log-perplexity, which alone "
                f"grows along a secret; with score={self.score!r} use method='sampling' or "
                "'skewnorm'"
            )
        if self.has_base and self.score in ("log_perplexity", "zlib"):
            raise ValueError(
                f"measure_exposure: base has no part in score={self.score!r}; use score='ratio', "
                "or compare with exposures.gained(measure_exposure(base, ...))"
            )
        if self.score == "ratio" and not self.has_base:
            raise ValueError(
                "measure_exposure: base is needed for score='ratio': give the model before training"
            )
        check_share("measure_exposure: confidence", self.confidence)
        check_count("measure_exposure: seed", self.seed)
        least = {"sampling": 1, "skewnorm": 10}.get(self.method, 0)
        for name, value, low in (
            ("samples", self.samples, least),
            ("max_forwards", self.max_forwards, 0),
            ("batch_size", self.batch_size, 1),
        ):
            if value is not None:
                most = MOST_SAMPLES if name == "samples" else math.inf
                check_count(f"measure_exposure: {name}", value, low, most)


@dataclass(frozen=True)
class Group:
    """Canaries that share a secret format and a context, and so a token tree.

    Attributes:
        canaries: those, in the set's order.
        places: their positions in the set.
        paths: for each of them its path in the tree.
    """

    tree: TokenTree
    canaries: list[Canary]
    places: tuple[int, ...]
    paths: list[Ints]


@dataclass(frozen=True)
class Plan:
    """All of a measurement that does not depend on the model; made once, used at every evaluation.

    Attributes:
        canaries: the whole set.
        groups: one for each format.
        skipped: canaries that cannot be scored, by position, and why.
    """

    canaries: Canaries
    groups: list[Group]
    skipped: dict[int, str]


def plan_measurement(
    tokenizer: PreTrainedTokenizerBase,
    canaries: Canaries,
    *,
    bos: bool | None = None,
    unscorable: str = "raise",
) -> Plan:
    """Build the token tree of every format of a canary set.

    Args:
        bos: whether special tokens come before the text, as in training. None follows the
            tokenizer's default.
        unscorable: "raise", or "warn" to go on without the canaries that cannot be scored.

    Raises:
        ValueError: the tokenizer gives one text different tokens each time, or cannot write a
            template or its secrets (with "raise").
    """
    groups: list[Group] = []
    skipped: dict[int, str] = {}
    before = context_before(canaries, tokenizer)
    begin = first_tokens(canaries, bos)
    Encoder(tokenizer, begin)  # what is refused here is no fault of a format
    for fmt in canaries.formats:
        own = canaries.by_format(fmt)
        places = tuple(i for i, canary in enumerate(canaries) if canary.format == fmt)
        try:
            tree = TokenTree(fmt, tokenizer, before=before, bos=begin)
            paths = tree.paths([canary.secret for canary in own])
        except Exception as error:  # tokenizers may raise anything, and quote what they got
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            why = mask_secrets(f"{kind}{error}", canaries)
        else:
            groups.append(Group(tree, own, places, paths))
            continue
        leave_out(skipped, places, why, unscorable)
    return Plan(canaries, groups, skipped)


def within_budget(settings: Settings, plan: Plan, budget: int) -> Settings:
    """Settings that spend `budget` token-forwards, or what an answer with an interval needs.

    A large budget is not used up for its own sake: what `samples` draws and as many explored
    prefixes take is enough.
    """
    longest = max((len(path) for group in plan.groups for path in group.paths), default=1)
    if settings.method in ("sampling", "skewnorm"):
        affordable = budget // (longest * max(1, len(plan.groups)))
        return replace(settings, samples=min(settings.samples, max(MIN_SAMPLES, affordable)))
    if settings.method == "auto":
        # The canaries themselves and the decoder's probe; the budget is shared out equally.
        most = max((len(g.paths) for g in plan.groups), default=0)
        prompt = max((len(g.tree.prompt) for g in plan.groups), default=0)
        own = (most + 8) * (longest + prompt)
        enough = own + 2 * max(settings.samples, 100) * longest
        budget = min(budget, enough * len(plan.groups))
    return replace(settings, max_forwards=budget, min_samples=MIN_SAMPLES)


def context_before(canaries: Canaries, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """What stands before a canary where it was inserted: nothing in a row of its own, a space
    within a paragraph, the rendered beginning of the conversation in a chat.

    In a conversation of its own a canary is the whole of the assistant's turn. What the chat
    template adds before it, such as a system prompt of its own or an empty block of thoughts,
    belongs to the context. The end-of-turn token that follows is the same for all secrets and no
    part of the template, so it does not count in the log-perplexity.

    Raises:
        ValueError: there is no tokenizer or no chat template, or the template refuses the
            conversation or changes what the canaries say.
    """
    insertion = canaries.insertion
    if insertion is None or not insertion.has_conversations:
        return " " if insertion is not None and insertion.mode == "splice" else ""
    if tokenizer is None:
        raise ValueError(
            "measure_exposure: tokenizer=None, but the canaries were inserted as conversations, "
            "which its chat template renders; give the tokenizer"
        )
    mark = "\x00canary\x00"
    before, found, after = _rendered(tokenizer, insertion, mark).partition(mark)
    for fmt in canaries.formats:
        text = fmt.render(fmt.sample(1, seed=1)[0])
        rendered = _rendered(tokenizer, insertion, text)
        if not found or rendered != before + text + after:
            raise ValueError(
                f"tokenizer: its chat template does not keep {fmt.template!r} as it stands; choose "
                "a template and a secret expression without spaces at the ends"
            )
        whole, begin = (
            tokenizer(piece, add_special_tokens=False)["input_ids"]
            for piece in (rendered, before + text)
        )
        if whole[: len(begin)] != begin:
            warn(
                f"tokenizer: the end of {fmt.template!r} shares a token with what follows it in "
                "the chat template, and log-perplexities are those of a text that ends there; let "
                "it end with a full stop or a word of its own",
            )
    return before


def first_tokens(canaries: Canaries | None, bos: bool | None) -> bool | None:
    """Whether special tokens are put before `context_before`: a rendered conversation has its
    own, so that none are. None follows the tokenizer's default."""
    insertion = None if canaries is None else canaries.insertion
    return False if insertion is not None and insertion.has_conversations else bos


def _rendered(tokenizer: PreTrainedTokenizerBase, insertion: Insertion, text: str) -> str:
    """The conversation that `CanaryInjector` adds, with `text` as the answer."""
    try:
        return str(tokenizer.apply_chat_template(insertion.conversation(text), tokenize=False))
    except Exception as error:  # templates raise what they like, and may quote the text
        why = str(error).replace(text, "...")
        if getattr(tokenizer, "chat_template", None) is None:
            raise ValueError(
                "tokenizer: the canaries were inserted as conversations, but it has no chat "
                f"template to render them with ({why})"
            ) from None
        raise ValueError(
            "tokenizer: its chat template refuses the conversations that the canaries were "
            f"inserted as, a user's turn and an assistant's ({why}); insert them with "
            "mode='splice' into conversations that it accepts"
        ) from None


def leave_out(skipped: dict[int, str], places: tuple[int, ...], why: str, unscorable: str) -> None:
    """Note why canaries cannot be scored, with a warning.

    Raises:
        ValueError: `unscorable` is not "warn".
    """
    if unscorable != "warn":
        raise ValueError(why) from None
    warn(f"{len(places)} canaries cannot be scored: {why}")
    skipped.update(dict.fromkeys(places, why))
