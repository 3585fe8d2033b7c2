"""Measure how exposed canaries are in a model."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_exposure.canaries import Canaries, Canary
from hf_exposure.decoder import Decoder, undisturbed
from hf_exposure.documents import versions
from hf_exposure.masking import mask_secrets, secrets_masked
from hf_exposure.rank import (
    ExposureEstimate,
    RankEstimate,
    SkewNormal,
    exp2,
    sampling_exposure,
    skewnorm_exposure,
    weighted_rank,
)
from hf_exposure.ranking import Sampled, Scorer, explore, ranks, sample
from hf_exposure.results import BudgetError, Exposure, Exposures
from hf_exposure.tokens import TokenTree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METHODS = ("auto", "exact", "sampling", "skewnorm")
_PILOT = 120  # draws that estimate how many prefixes an exact rank has to visit
_MANY = 10**7  # forwards that are worth a warning before they are begun

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Canaries that share a secret format and a context, and so a token tree.

    Attributes:
        places: their positions in the set.
        paths: for each of them its path in the tree.
    """

    tree: TokenTree
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
        ValueError: the tokenizer cannot write a template or its secrets (with "raise").
    """
    groups: list[Group] = []
    skipped: dict[int, str] = {}
    before = context_before(canaries, tokenizer)
    # A rendered conversation holds its own special tokens.
    begin = False if canaries.planting.get("chat") else bos
    for fmt in canaries.formats:
        places = tuple(i for i, canary in enumerate(canaries) if canary.format == fmt)
        try:
            tree = TokenTree(fmt, tokenizer, before=before, bos=begin)
            paths = tree.paths([canaries[place].secret for place in places])
        except Exception as error:  # tokenizers may raise anything, and quote what they got
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            why = mask_secrets(f"{kind}{error}", canaries)
        else:
            groups.append(Group(tree, places, paths))
            continue
        _skip(skipped, places, why, unscorable)
    return Plan(canaries, groups, skipped)


def context_before(canaries: Canaries, tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands before a canary where it was planted: nothing in a row of its own, a space
    within a paragraph, the rendered beginning of the conversation in a chat."""
    planting = canaries.planting
    if planting.get("chat") and planting.get("mode") == "rows":
        mark = "\x00canary\x00"
        messages = [
            {"role": "user", "content": planting["request"]},
            {"role": "assistant", "content": mark},
        ]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
        except ValueError as error:
            raise ValueError(
                "tokenizer: the canaries were planted in conversations, but it has no chat "
                f"template to render them with ({error})"
            ) from None
        return str(text).partition(mark)[0]
    return " " if planting.get("mode") == "splice" else ""


def measure_exposure(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    canaries: Canaries | Iterable[Canary],
    method: str = "auto",
    samples: int = 2000,
    max_forwards: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    batch_size: int | None = None,
    accelerator: Any | None = None,
    progress: bool = False,
    *,
    bos: bool | None = None,
    unscorable: str = "raise",
) -> Exposures:
    """The exposure of each canary: log2 of the secret space's size less log2 of its rank, in bits.

    Args:
        model: a causal language model of transformers. Its mode and all random states are left as
            they were.
        tokenizer: the one that it was trained with.
        canaries: the canaries, inserted ones and controls.
        method: "auto" explores the most likely secrets and samples the rest; "exact" explores
            until every rank is certain; "sampling" and "skewnorm" are the paper's two estimators
            (sections 4.2 to 4.4), from uniform references.
        samples: draws of "auto", references of "sampling" and "skewnorm". With 0, "auto" gives the
            bounds that exploring alone proves.
        max_forwards: token-forwards to spend, all canaries together. What an answer needs at the
            least, the canaries' own log-perplexities, is always done. None: "auto" explores about
            `samples` prefixes, "exact" as many as it takes.
        confidence: of all intervals.
        seed: of all draws; the same seed gives the same figures.
        batch_size: rows of a forward; None chooses, and memory running out halves it.
        accelerator: of a script of your own, to unwrap the model.
        progress: show a progress bar.
        bos: whether special tokens come before the text, as in training; None follows the
            tokenizer's default.
        unscorable: "raise", or "warn" to leave out canaries that cannot be scored and list them in
            `skipped`.

    Returns:
        One `Exposure` for each canary, in the order of the set.

    Raises:
        ValueError: bad arguments, a canary that cannot be scored, or a model that gives NaN.
        BudgetError: "exact" does not get by with `max_forwards`; holds what "auto" gives.

    Example:
        >>> exposures = measure_exposure(model, tokenizer, canaries)    # doctest: +SKIP
        >>> exposures[0].bits, exposures[0].low, exposures[0].high      # doctest: +SKIP
        (17.2, 16.6, 17.9)
    """
    if isinstance(canaries, (str, os.PathLike)):
        raise TypeError(
            "measure_exposure: canaries is a path; load it first, with Canaries.load(path)"
        )
    if not hasattr(model, "modules"):
        raise TypeError(
            f"measure_exposure: model is of type {type(model).__name__}; load it first, such as "
            "with AutoModelForCausalLM.from_pretrained(...)"
        )
    if not callable(tokenizer):
        raise TypeError(
            f"measure_exposure: tokenizer is of type {type(tokenizer).__name__}; give the model's, "
            "such as AutoTokenizer.from_pretrained(...)"
        )
    canaries = canaries if isinstance(canaries, Canaries) else Canaries(list(canaries))
    if unscorable not in ("raise", "warn"):
        raise ValueError(
            f"measure_exposure: unscorable={unscorable!r} is not known; use 'raise' or 'warn'"
        )
    settings = Settings(method, samples, max_forwards, confidence, seed, batch_size, bos)
    plan = plan_measurement(tokenizer, canaries, bos=bos, unscorable=unscorable)
    if accelerator is not None:
        model = accelerator.unwrap_model(model)
    return measure_plan(model, plan, settings, progress=progress, unscorable=unscorable)


@dataclass(frozen=True)
class Settings:
    """The arguments of a measurement, checked; see `measure_exposure`.

    Attributes:
        min_samples: draws that "auto" makes even where the budget does not reach for them.
    """

    method: str = "auto"
    samples: int = 2000
    max_forwards: int | None = None
    confidence: float = 0.95
    seed: int = 0
    batch_size: int | None = None
    bos: bool | None = None
    min_samples: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(
                f"measure_exposure: method={self.method!r} is not known; "
                f"use one of {', '.join(map(repr, METHODS))}"
            )
        least = {"sampling": 1, "skewnorm": 10}.get(self.method, 0)
        for name, value, low in (
            ("samples", self.samples, least),
            ("max_forwards", self.max_forwards, 0),
            ("batch_size", self.batch_size, 1),
        ):
            if value is not None and (isinstance(value, bool) or not value >= low):
                raise ValueError(
                    f"measure_exposure: {name}={value!r} is too small for method="
                    f"{self.method!r}; give a whole number of at least {low}"
                )
        if not 0 < self.confidence < 1:
            raise ValueError(
                f"measure_exposure: confidence={self.confidence!r} is not between 0 and 1; "
                "0.95 is usual"
            )


def measure_plan(
    model: Any,
    plan: Plan,
    settings: Settings,
    *,
    progress: bool = False,
    unscorable: str = "raise",
) -> Exposures:
    """Measure what `plan_measurement` has prepared; see `measure_exposure`."""
    start = time.perf_counter()
    results: dict[int, Exposure] = {}
    references: dict[str, list[float]] = {}
    details: dict[str, Any] = {}
    skipped = dict(plan.skipped)
    spent, unfinished = 0, []
    with secrets_masked(plan.canaries), undisturbed(model), progress_bar(progress) as tick:
        for number, group in enumerate(plan.groups):
            left = math.inf
            if settings.max_forwards is not None:
                left = max(0, settings.max_forwards - spent) // (len(plan.groups) - number)
            tree, name = group.tree, group.tree.format.template
            try:
                decoder = Decoder(
                    model, tree.prompt, tree.columns, batch_size=settings.batch_size
                )
                check_context(decoder, tree, group.paths)
            except ValueError as error:
                _skip(skipped, group.places, str(error), unscorable)
                continue
            scorer = Scorer(tree, decoder, left, _reporter(tick, decoder, spent))
            canaries = [plan.canaries[place] for place in group.places]
            measured = _measure_group(scorer, group, canaries, settings)
            results.update(zip(group.places, measured.exposures, strict=True))
            if measured.references is not None:
                references[name] = measured.references.tolist()
            if measured.unfinished:
                unfinished.append(measured.unfinished)
            spent += decoder.forwards
            details[name] = measured.details
    exposures = Exposures(
        [results[place] for place in sorted(results)],
        forwards=spent,
        seconds=time.perf_counter() - start,
        settings=_describe(settings, details),
        references=references,
        skipped=[(plan.canaries[place], why) for place, why in sorted(skipped.items())],
    )
    if unfinished:
        raise BudgetError(
            f"measure_exposure: method='exact' does not get by with max_forwards="
            f"{settings.max_forwards}: {'; '.join(unfinished)}. method='auto' gives an interval "
            "with that budget: see .exposures of this error",
            exposures,
        )
    return exposures


@dataclass
class _Measured:
    exposures: list[Exposure]
    details: dict[str, Any]
    references: Floats | None = None
    unfinished: str = ""


def _measure_group(
    scorer: Scorer, group: Group, canaries: list[Canary], settings: Settings
) -> _Measured:
    decoder = scorer.decoder
    # The longest paths show the most rounding; a handful is enough.
    decoder.probe(sorted(group.paths, key=len)[-4:])
    costs = scorer.follow(group.paths)
    finite = costs[np.isfinite(costs)]
    # Single precision keeps 24 bits of each log-probability, whatever the probe has seen.
    rounding = 2.0**-20 * float(finite.max(initial=1.0))
    tie = max(4 * decoder.noise, rounding)
    if settings.method in ("sampling", "skewnorm"):
        measured = _by_references(scorer, canaries, costs, tie, settings)
    else:
        measured = _by_tree(scorer, group, canaries, costs, tie, settings)
    tree = scorer.tree
    measured.details |= {
        "bits": tree.format.bits,
        "paths": tree.way,
        "false_share": tree.false_share,
        "prompt_tokens": len(tree.prompt),
        "cached": decoder.cached,
        "noise_bits": decoder.noise,
        "tie_bits": tie,
        "batch_size": decoder.batch_size,
        "forwards": decoder.forwards,
    }
    return measured


def _by_tree(
    scorer: Scorer,
    group: Group,
    canaries: list[Canary],
    costs: Floats,
    tie: float,
    settings: Settings,
) -> _Measured:
    """`auto` and `exact`: explore, and sample what is left unless all is certain."""
    decoder = scorer.decoder
    bound = float(costs[np.isfinite(costs)].max(initial=-math.inf)) + tie
    depth = float(np.mean([len(path) for path in group.paths]))
    exact, unfinished = settings.method == "exact", ""
    details: dict[str, Any] = {}
    if exact and math.isfinite(bound):
        root = explore(scorer, bound, group.paths, max_forwards=1)
        needed = sample(scorer, root, _PILOT, settings.seed).inner if root.inner else 0.0
        details["exact_forwards_estimate"] = round(needed)
        if needed > 2 * scorer.room:
            exact = False
            unfinished = f"it would take about {needed:.2g} token-forwards"
        elif needed > _MANY and math.isinf(scorer.room):
            warnings.warn(
                f"measure_exposure: method='exact' will take about {needed:.2g} token-forwards; "
                "set max_forwards, or use method='auto'",
                stacklevel=2,
            )
    before = decoder.forwards
    budget = scorer.room if exact else _share_to_explore(scorer, settings, depth)
    explored = explore(
        scorer, bound, group.paths, max_forwards=budget, depth_first=exact
    )
    details["explored"] = decoder.forwards - before
    if exact and explored.inner:
        unfinished = f"{decoder.forwards - before} prefixes were visited before it ran out"

    sampled: Sampled | None = None
    n = settings.samples
    if math.isfinite(scorer.room):
        longest = max(len(path) for path in group.paths)
        n = min(n, max(settings.min_samples, int(scorer.room / longest)))
    if explored.inner and n > 0:
        sampled = sample(scorer, explored, n, settings.seed, costs)
        details["samples"] = n
    controls = np.array([not canary.inserted for canary in canaries])
    estimates = ranks(scorer, explored, sampled, costs, controls, tie, settings.confidence)
    method = "exact" if settings.method == "exact" and not unfinished else "auto"
    return _Measured(
        [
            _exposure(canary, float(cost), estimate, method)
            for canary, cost, estimate in zip(canaries, costs, estimates, strict=True)
        ],
        details,
        unfinished=unfinished,
    )


def _share_to_explore(scorer: Scorer, settings: Settings, depth: float) -> float:
    """Forwards to explore with: a third of what is there, or more where sampling leaves some."""
    if math.isinf(scorer.room):
        return float(max(settings.samples, 100))
    sampling = settings.samples * depth
    return max(scorer.room / 3, scorer.room - sampling)


def _exposure(canary: Canary, cost: float, estimate: RankEstimate, method: str) -> Exposure:
    most = canary.format.bits

    def bits(log2_rank: float) -> float:
        return max(0.0, most - log2_rank)

    return Exposure(
        canary=canary,
        bits=bits(estimate.log2_rank),
        low=bits(estimate.log2_high),
        high=bits(estimate.log2_low),
        rank=estimate.rank,
        rank_low=estimate.low,
        rank_high=estimate.high,
        certified=bits(estimate.log2_upper_bound),
        ties=estimate.ties,
        exact=estimate.exact,
        log_perplexity=cost,
        method=method,
        p_value=exp2(-bits(estimate.log2_rank)),
    )


def _by_references(
    scorer: Scorer, canaries: list[Canary], costs: Floats, tie: float, settings: Settings
) -> _Measured:
    """The paper's estimators: where the canaries stand among uniform references.

    A space no larger than the sample is taken whole, and then `sampling` gives the exact rank.
    """
    fmt, tree = scorer.tree.format, scorer.tree
    inserted = {canary.secret for canary in canaries if canary.inserted}
    whole = fmt.size <= settings.samples
    secrets = list(fmt.enumerate()) if whole else fmt.sample(settings.samples, settings.seed)
    secrets = [secret for secret in secrets if secret not in inserted]
    references = scorer.follow(tree.paths(secrets)) if secrets else np.zeros(0)
    details: dict[str, Any] = {"references": len(references), "whole_space": whole}
    fit = None
    if settings.method == "skewnorm":
        fit = SkewNormal.fit(references[np.isfinite(references)])
        details["fit"] = {
            "shape": fit.shape, "loc": fit.loc, "scale": fit.scale, "ks": fit.ks
        }
    names = np.array(secrets, dtype=object)
    out = []
    for canary, cost in zip(canaries, costs, strict=True):
        others = references[names != canary.secret]
        if fit is not None:
            estimate = skewnorm_exposure(cost, fit, fmt.bits, settings.confidence)
        elif whole:
            out.append(_exposure(canary, float(cost), _whole_rank(cost, others, tie), "sampling"))
            continue
        else:
            estimate = sampling_exposure(
                cost, others, settings.confidence, tie, log2_size=fmt.bits
            )
        ties = int(np.sum((others <= cost + tie) & (others >= cost - tie)))
        out.append(_by_estimate(canary, float(cost), estimate, ties, settings.method))
    return _Measured(out, details, references)


def _whole_rank(cost: float, others: Floats, tie: float) -> RankEstimate:
    """The rank among all other strings of R."""
    nothing = np.zeros(0)
    return weighted_rank(
        cost, others, nothing, nothing, nothing, nothing,
        log2_size=math.inf, tie=tie, confidence=0.95, largest_log2_weight=math.inf,
    )


def _by_estimate(
    canary: Canary, cost: float, estimate: ExposureEstimate, ties: int, method: str
) -> Exposure:
    most = canary.format.bits

    def rank(bits: float) -> float:
        return max(1.0, exp2(most - bits))

    return Exposure(
        canary=canary,
        bits=estimate.bits,
        low=estimate.low,
        high=estimate.high,
        rank=rank(estimate.bits),
        rank_low=rank(estimate.high),
        rank_high=rank(estimate.low),
        certified=min(most, max(0.0, most - cost)),
        ties=ties,
        exact=False,
        log_perplexity=cost,
        method=method,
        p_value=estimate.p_value,
        raw_bits=estimate.raw_bits,
    )


def check_context(decoder: Decoder, tree: TokenTree, paths: list[Ints]) -> None:
    """Refuse paths that do not fit the model's context together with their prompt.

    Raises:
        ValueError: the longest does not.
    """
    longest = len(tree.prompt) + max(len(path) for path in paths)
    if decoder.context is not None and longest > decoder.context:
        raise ValueError(
            f"canaries: the longest one of {tree.format.template!r} has {longest} tokens, "
            f"more than the model's context of {decoder.context}; use a shorter template"
        )


def _skip(skipped: dict[int, str], places: tuple[int, ...], why: str, unscorable: str) -> None:
    if unscorable != "warn":
        raise ValueError(why) from None
    warnings.warn(f"{len(places)} canaries cannot be scored: {why}", stacklevel=3)
    skipped.update(dict.fromkeys(places, why))


def _describe(settings: Settings, details: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": settings.method,
        "samples": settings.samples,
        "max_forwards": settings.max_forwards,
        "confidence": settings.confidence,
        "seed": settings.seed,
        "bos": settings.bos,
        "formats": details,
        "versions": versions("torch", "transformers", "numpy", "scipy", "outlines-core"),
    }


def _reporter(tick: Callable[[int], None], decoder: Decoder, before: int) -> Callable[[], None]:
    return lambda: tick(before + decoder.forwards)


@contextmanager
def progress_bar(show: bool, what: str = "exposure") -> Iterator[Callable[[int], None]]:
    """A bar that counts token-forwards, or none: gives the function to call with the count."""
    if not show:
        yield lambda forwards: None
        return
    from tqdm.auto import tqdm

    with tqdm(desc=what, unit=" token-forwards", unit_scale=True) as bar:

        def tick(forwards: int) -> None:
            bar.n = forwards
            bar.refresh()

        yield tick
