"""Get secrets back out by generation: prompt the model, and count which canaries it writes."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.masking import secrets_masked
from hf_exposure.canaries.sets import Canaries, derived
from hf_exposure.exposure.documents import Document, Rows, Tabular, from_jsonable, versions
from hf_exposure.exposure.planning import Group, check_context, plan_measurement
from hf_exposure.exposure.results import MaskedCanary, short_label
from hf_exposure.models.decoder import Decoder, undisturbed
from hf_exposure.tree.tokens import TokenTree
from hf_exposure.utils.arrays import Ints
from hf_exposure.utils.checks import check_count
from hf_exposure.utils.files import write_text
from hf_exposure.utils.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_BEYOND = 8  # tokens that a free text may be longer than the longest canary
_LONGEST = 4096  # tokens of a text if the model has no limit of its own

# What `generate_secrets` sets itself, and what to use in its place.
_OWN = {
    "inputs": "the prompt is the template's text before the secret",
    "input_ids": "the prompt is the template's text before the secret",
    "attention_mask": "the prompt is the template's text before the secret",
    "num_return_sequences": "use num_samples",
    "max_length": "use max_new_tokens",
    "generation_config": "give its settings one by one",
    "prefix_allowed_tokens_fn": "use a logits_processor",
    "return_dict_in_generate": "only the tokens are used",
    "streamer": "many sequences are generated at a time",
}


@dataclass(frozen=True)
class Generated:
    """How often one canary came out by generation.

    Attributes:
        canary: the canary; a `MaskedCanary` if it was loaded from a file without secrets.
        times: in how many of the sequences.
        attempts: how many sequences were generated for its format.
    """

    canary: Canary | MaskedCanary
    times: int
    attempts: int


class Generations(Tabular, Document, Rows[Generated]):
    """What generation brought out, one row for each canary, in the order of the set.

    Attributes:
        rows: a `Generated` for each canary.
        attempts: sequences that were generated, all formats together.
        forwards: token-forwards spent: positions that the model has computed.
        seconds: how long it took.
        settings: how it was generated.
        texts: for each format's template the secrets or, unconstrained, the texts that came out,
            and how often. They hold secrets, and are not saved unless revealed.

    Example:
        >>> fmt = SecretFormat("My code is {secret}.", secret=r"[0-9]{4}")
        >>> print(Generations([Generated(Canary(fmt, "1234", 8), 71, 100)], attempts=100,
        ...                   forwards=900, seconds=0.5))
        canary          inserted  came out
        …code is ••••.         8  71 of 100
        1 of 1 canary came out; 100 sequences, 900 token-forwards in 0.5 s
    """

    kind = "generations"
    right = frozenset({1})

    def __init__(
        self,
        rows: Iterable[Generated],
        *,
        attempts: int = 0,
        forwards: int = 0,
        seconds: float = 0.0,
        settings: Mapping[str, Any] | None = None,
        texts: Mapping[str, Counter[str]] | None = None,
    ) -> None:
        self._items = tuple(rows)
        self.attempts = attempts
        self.forwards = forwards
        self.seconds = seconds
        self.settings: dict[str, Any] = dict(settings or {})
        self.texts: dict[str, Counter[str]] = {
            key: Counter(value) for key, value in (texts or {}).items()
        }

    @property
    def rows(self) -> tuple[Generated, ...]:
        """A `Generated` for each canary."""
        return self._items

    @property
    def extracted(self) -> list[Canary | MaskedCanary]:
        """The canaries that came out at least once."""
        return [row.canary for row in self.rows if row.times]

    # Tables

    def cells(self, reveal: bool = False) -> tuple[list[str], list[list[str]]]:
        """The table as text: its headings, and a row of them for each canary."""
        rows = [
            [
                short_label(row.canary, reveal),
                f"{row.canary.repetitions}",
                f"{row.times:,} of {row.attempts:,}",
            ]
            for row in self.rows
        ]
        return ["canary", "inserted", "came out"], rows

    def summary(self) -> str:
        """One line about what came out and what it took."""
        canaries = "canary" if len(self) == 1 else "canaries"
        sequences = "1 sequence" if self.attempts == 1 else f"{self.attempts:,} sequences"
        return (
            f"{len(self.extracted)} of {len(self)} {canaries} came out; {sequences}, "
            f"{self.forwards:,} token-forwards in {self.seconds:.1f} s"
        )

    # Files

    def _content(self, reveal: bool) -> dict[str, Any]:
        formats = list(dict.fromkeys(row.canary.format for row in self.rows))

        def described(row: Generated) -> dict[str, Any]:
            canary = row.canary
            out: dict[str, Any] = {
                "format": formats.index(canary.format),
                "length": len(canary.secret),
                "repetitions": canary.repetitions,
                "planned": canary.planned,
                "times": row.times,
                "attempts": row.attempts,
            }
            if reveal and isinstance(canary, Canary):
                out["secret"] = canary.secret
            return out

        out: dict[str, Any] = {
            "attempts": self.attempts,
            "forwards": self.forwards,
            "seconds": self.seconds,
            "settings": self.settings,
            "formats": [fmt.to_dict() for fmt in formats],
            "generations": [described(row) for row in self.rows],
        }
        if reveal:
            out["texts"] = {name: dict(texts.most_common()) for name, texts in self.texts.items()}
        return out

    @classmethod
    def _from_content(cls, data: dict[str, Any], canaries: Canaries | None) -> Generations:
        formats = [SecretFormat.from_dict(entry) for entry in data["formats"]]
        masked = [_canary(entry, formats) for entry in data["generations"]]
        if canaries is not None and list(map(_likeness, canaries)) != [*map(_likeness, masked)]:
            raise ValueError("it was generated for other canaries than these")
        return cls(
            [
                Generated(canary, entry["times"], entry["attempts"])
                for canary, entry in zip(canaries or masked, data["generations"], strict=True)
            ],
            attempts=data["attempts"],
            forwards=data["forwards"],
            seconds=data["seconds"],
            settings=from_jsonable(data["settings"]),
            texts=data.get("texts"),
        )


def generate_secrets(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    canaries: Canaries | Iterable[Canary],
    num_samples: int = 100,
    constrained: bool = True,
    *,
    seed: int = 0,
    bos: bool | None = None,
    batch_size: int = 50,
    progress: bool = False,
    resume: str | os.PathLike[str] | None = None,
    **generate_kwargs: Any,
) -> Generations:
    """Prompt the model with each format's prefix and count which canaries it writes.

    Guarantees:
        - Constrained sampling draws each token from the model's distribution over the tokens that
          the format allows there, so that every sequence is a secret.
        - Free sampling is the model's own: with a tokenizer that writes a canary in one way only,
          it comes out with probability 2^-log_perplexity in each sequence.
        - Constrained beam search ranks secrets by their log-perplexity, whatever their length.
        - Nothing of the model's own generation_config has a say, and it is left as it was.

    Args:
        model: a causal language model with `generate`; left as it was.
        num_samples: sequences for each format. Greedy decoding makes one, beam search at most as
            many as it has beams, all of them different.
        constrained: allow only tokens that the secret format allows. Otherwise the model writes
            what it likes, and a canary counts if it is there whole: the template's text before the
            secret, the secret, and the template's text after it.
        seed: of the sampling. Each batch of each format has draws of its own.
        bos: whether special tokens come first; None follows the tokenizer's default.
        batch_size: sequences at a time.
        progress: show a progress bar.
        resume: a file to keep what was generated in, after each batch; the same call goes on from
            there after an interruption, and gives what it would have given without one. It holds
            tokens of what the model wrote, so treat it as you treat the secrets.
        generate_kwargs: for `model.generate`: `do_sample`, `num_beams`, `temperature`, `top_k`,
            `top_p`, `max_new_tokens`, ... Without them plain sampling from the model's own
            distribution; with `num_beams` beam search; with `do_sample=False` greedy decoding.

    Returns:
        How often each canary came out.

    Raises:
        TypeError: a number is not whole.
        ValueError: a bad argument, a tokenizer that cannot write a format, or a model that cannot
            generate or whose context is too short.

    Example:
        >>> written = generate_secrets(model, tokenizer, canaries)      # doctest: +SKIP
        >>> written[0].times, written[0].attempts                       # doctest: +SKIP
        (71, 100)
    """
    canaries = canaries if isinstance(canaries, Canaries) else Canaries(canaries)
    check_count("generate_secrets: num_samples", num_samples, least=1)
    check_count("generate_secrets: batch_size", batch_size, least=1)
    check_count("generate_secrets: seed", seed, least=0)
    for name, instead in _OWN.items():
        if name in generate_kwargs:
            raise ValueError(f"generate_secrets: {name} cannot be given; {instead}")
    model = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
    if not hasattr(model, "generate"):
        raise ValueError(
            f"model: {type(model).__name__} has no generate; extract_secrets does without"
        )
    start = time.perf_counter()
    plan = plan_measurement(tokenizer, canaries, bos=bos)
    options = _options(tokenizer, generate_kwargs)
    counts: Counter[int] = Counter()
    attempts: dict[SecretFormat, int] = {}
    texts: dict[str, Counter[str]] = {}
    masked, aside = secrets_masked(canaries), _own_settings_aside(model)
    asked = {
        "constrained": constrained,
        "num_samples": num_samples,
        "seed": seed,
        "bos": bos,
        "batch_size": batch_size,
        "generate": {name: _plain(value) for name, value in generate_kwargs.items()},
    }
    kept = _Kept(resume, asked, model, canaries)
    bar = progress_bar(progress, "generation")
    with masked, undisturbed(model), aside, _counting(model) as forwards, bar as tick:
        for group in plan.groups:
            tree, fmt = group.tree, group.tree.format
            decoder = Decoder(model, tree.prompt, tree.columns)  # it refuses what does not fit
            check_context(decoder.context, tree, group.paths)
            room = (decoder.context or _LONGEST) - len(tree.prompt)
            begun = kept.of(fmt)
            for ids in _batches(
                model, group, num_samples, constrained, batch_size, options, room, begun, seed
            ):
                begun.append(ids)
                kept.save()
                tick(forwards[0])
            ids = [row for batch in begun for row in batch]
            secrets = [_secret(tree, row) for row in ids]
            free = [""] * len(ids)
            if not constrained:
                free = tokenizer.batch_decode(
                    [[*tree.prompt, *row] for row in ids], skip_special_tokens=True
                )
            attempts[fmt] = len(ids)
            texts[fmt.template] = Counter(filter(None, secrets if constrained else free))
            for place in group.places:
                canary = canaries[place]
                # Tokens tell it where a decoder changes spaces or case, the text where the last
                # token goes on behind the canary.
                counts[place] = sum(
                    secret == canary.secret or canary.text in text
                    for secret, text in zip(secrets, free, strict=True)
                )
    return Generations(
        [
            Generated(canary, counts[place], attempts[canary.format])
            for place, canary in enumerate(canaries)
        ],
        attempts=sum(attempts.values()),
        forwards=forwards[0],
        seconds=time.perf_counter() - start,
        settings=asked | {"versions": versions("torch", "transformers")},
        texts=texts,
    )


def _options(tokenizer: PreTrainedTokenizerBase, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `generate`: those given, and plain sampling or search in place of defaults."""
    beams = int(given.get("num_beams") or 1)
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    options: dict[str, Any] = {
        "do_sample": beams == 1,
        "pad_token_id": pad if pad is not None else end if end is not None else 0,
        "eos_token_id": end,
        **given,
    }
    if beams > 1:
        # Sums of log-probabilities, not means over tokens.
        options.setdefault("length_penalty", 0.0)
    if options["do_sample"]:
        options.setdefault("top_k", 0)  # transformers' own default is 50
    return options


def _batches(
    model: Any,
    group: Group,
    num_samples: int,
    constrained: bool,
    batch_size: int,
    options: dict[str, Any],
    room: int,
    begun: Sequence[list[list[int]]],
    seed: int,
) -> Iterator[list[list[int]]]:
    """The new tokens of each sequence, batch by batch, after those that are there already; `room`
    is how many tokens there may be."""
    tree = group.tree
    longest = room
    if constrained:
        held = _Constraint(tree, int(options["pad_token_id"]))
        options = {
            **options,
            "eos_token_id": None,
            "logits_processor": LogitsProcessorList([*options.get("logits_processor", ()), held]),
            "stopping_criteria": StoppingCriteriaList(
                [*options.get("stopping_criteria", ()), _AtLeaf(held)]
            ),
        }
    else:
        longest = min(room, max(len(path) for path in group.paths) + _BEYOND)
    options = {"max_new_tokens": longest, **options}
    prompt = torch.tensor([tree.prompt], device=model.get_input_embeddings().weight.device)
    beams = int(options.get("num_beams") or 1)
    wanted = num_samples
    if not options["do_sample"]:
        wanted = min(num_samples, beams)  # again and again would give the same
    done, number = sum(map(len, begun)), len(begun)
    if number and not options["do_sample"]:
        return
    while done < wanted:
        # Of its own for each batch, so that one can be made without those before it.
        own = derived(seed, "generation", f"{tree.format.template} {number}")
        torch.manual_seed(own.getrandbits(63))
        most = batch_size if beams == 1 else beams
        made = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            **{**options, "num_return_sequences": min(most, wanted - done)},
        )
        # What beam search has not filled is -1.
        rows = [[i for i in row if i >= 0] for row in made[:, len(tree.prompt) :].tolist()]
        if beams > 1:
            # Where there are fewer texts than beams it fills up with copies and with nothing.
            rows = [list(row) for row in dict.fromkeys(map(tuple, rows)) if row]
        yield rows
        done, number = done + len(rows), number + 1
        if not options["do_sample"]:
            break


def _fingerprint(model: Any) -> list[Any]:
    """Tells models apart, and one from itself after more training."""
    sums = [float(weight.detach().double().sum()) for weight in model.parameters()]
    return [type(model).__name__, len(sums), math.fsum(sums)]


class _Kept:
    """Batches that were generated, in a file if there is one.

    Raises:
        ValueError: the file is of another call.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        asked: dict[str, Any],
        model: Any,
        canaries: Canaries,
    ) -> None:
        self._path = path
        self._batches: dict[str, list[list[list[int]]]] = {}
        if path is None:
            return
        formats = [fmt.to_dict() for fmt in canaries.formats]
        told = asked | {"formats": formats, "model": _fingerprint(model)}
        self._asked = json.loads(json.dumps(told))
        if not os.path.exists(path):
            return
        try:
            found: Any = json.loads(Path(path).read_text(encoding="utf-8"))
            fits = found["asked"] == self._asked
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(
                f"generate_secrets: resume={os.fspath(path)!r} does not hold what this call has "
                "generated, but something else; give another file, or remove it"
            )
        self._batches = found["batches"]

    def of(self, fmt: SecretFormat) -> list[list[list[int]]]:
        """The batches of a format, to be added to."""
        return self._batches.setdefault(json.dumps(fmt.to_dict()), [])

    def save(self) -> None:
        if self._path is not None:
            kept = {"asked": self._asked, "batches": self._batches}
            write_text(self._path, json.dumps(kept))


class _Constraint(LogitsProcessor):
    """Lets only tokens through that lead on in the tree; after a leaf, padding at no cost."""

    def __init__(self, tree: TokenTree, pad: int) -> None:
        self._tree = tree
        self._pad = pad
        self._known: dict[tuple[int, ...], list[int]] = {}
        self._leads: dict[int | tuple[int, ...], bool] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, V) scores, minus infinity where a token is not allowed."""
        out = torch.full_like(scores, -torch.inf)
        for row, tokens in enumerate(self.new_tokens(input_ids)):
            allowed = self.allowed(tokens)
            if allowed:
                out[row, allowed] = scores[row, allowed]
            else:
                out[row, self._pad] = 0.0
        return out

    def new_tokens(self, input_ids: torch.Tensor) -> list[list[int]]:
        """The tokens of each sequence after the prompt."""
        new: list[list[int]] = input_ids[:, len(self._tree.prompt) :].tolist()
        return new

    def allowed(self, tokens: Sequence[int]) -> list[int]:
        """What may follow these tokens; nothing after a leaf."""
        name = tuple(tokens)
        if name not in self._known:
            self._known[name] = self._look_up(tokens)
        return self._known[name]

    def _look_up(self, tokens: Sequence[int]) -> list[int]:
        path, state = self._tree.descend(tokens)
        if state is None or self._tree.leaf[state]:
            return []
        columns, states = self._children(path, state)
        before = path.tolist()
        return [
            int(self._tree.columns[column])
            for column, following in zip(columns.tolist(), states.tolist(), strict=True)
            if self._leads_on(np.array([*before, column]), following)
        ]

    def _children(self, path: Ints, state: int) -> tuple[Ints, Ints]:
        tree = self._tree
        columns, states = tree.children(self._key(path, state))
        if len(columns):
            before = np.broadcast_to(path, (len(columns), len(path)))
            fine = tree.possible(np.column_stack([before, columns]))
            columns, states = columns[fine], states[fine]
        return columns, states

    def _key(self, path: Ints, state: int) -> int:
        last = int(path[-1]) if len(path) else -1
        return int(self._tree.key(np.array([state]), np.array([last]))[0])

    def _leads_on(self, path: Ints, state: int) -> bool:
        """Whether a secret lies under a node. A walk finds that out by going there, but who draws
        tokens must not be led into a dead end."""
        tree = self._tree
        if tree.leaf[state] or tree.way in ("single", "leaves"):
            return True
        # Where pairs decide, nodes of the same key have the same children.
        name = self._key(path, state) if tree.way == "pairs" else tuple(path.tolist())
        if name not in self._leads:
            columns, states = self._children(path, state)
            self._leads[name] = any(
                self._leads_on(np.array([*path, column]), following)
                for column, following in zip(columns.tolist(), states.tolist(), strict=True)
            )
        return self._leads[name]


class _AtLeaf(StoppingCriteria):
    """Stops a sequence where nothing may follow."""

    def __init__(self, constraint: _Constraint) -> None:
        self._constraint = constraint

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """(B,) whether each sequence is done."""
        ended = [
            not self._constraint.allowed(tokens)
            for tokens in self._constraint.new_tokens(input_ids)
        ]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


def _secret(tree: TokenTree, ids: Sequence[int]) -> str | None:
    """The secret with what follows it that a sequence begins with, None if it does not."""
    path, state = tree.descend(ids)
    return tree.secret(path) if state is not None and tree.leaf[state] else None


@contextmanager
def _own_settings_aside(model: Any) -> Iterator[None]:
    """An empty generation_config for the model, and for one that it is wrapped around.

    Whatever is not given to `generate` is read from there, so setting a few arguments would not do.
    """
    owners = [part for part in model.modules() if "generation_config" in vars(part)]
    before = [part.generation_config for part in owners]
    try:
        for part in owners:
            part.generation_config = GenerationConfig()
        yield
    finally:
        for part, config in zip(owners, before, strict=True):
            part.generation_config = config


@contextmanager
def _counting(model: Any) -> Iterator[list[int]]:
    """Counts the positions that go through the model, in the one entry of the list."""
    count = [0]

    def add(module: Any, inputs: Any, output: torch.Tensor) -> None:
        count[0] += output.shape[:-1].numel()

    hook = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield count
    finally:
        hook.remove()


def _canary(entry: dict[str, Any], formats: list[SecretFormat]) -> Canary | MaskedCanary:
    fmt, repetitions, planned = formats[entry["format"]], entry["repetitions"], entry["planned"]
    if "secret" in entry:
        return Canary(fmt, entry["secret"], repetitions, planned)
    return MaskedCanary(fmt, entry["length"], repetitions, planned)


def _likeness(canary: Canary | MaskedCanary) -> tuple[Any, ...]:
    """What a file without secrets knows of a canary."""
    return canary.format, len(canary.secret), canary.repetitions, canary.planned


def _plain(value: Any) -> Any:
    """An argument for JSON: numbers, strings and truth values as they are, others by their type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return type(value).__name__
