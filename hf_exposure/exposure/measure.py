"""Measure how exposed canaries are in a model."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat, format_names
from hf_exposure.canaries.masking import secrets_masked
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.by_score import measure_by_score
from hf_exposure.exposure.details import FormatDetails, GroupResult
from hf_exposure.exposure.documents import versions
from hf_exposure.exposure.planning import (
    Group,
    Plan,
    Settings,
    context_before,
    leave_out,
    plan_measurement,
)
from hf_exposure.exposure.ranking import by_tree
from hf_exposure.exposure.records import Exposure
from hf_exposure.exposure.references import by_references, noise_of, tie_of, with_tree
from hf_exposure.exposure.results import BudgetError, Exposures
from hf_exposure.models.processes import Processes, is_sharded
from hf_exposure.models.undisturbed import undisturbed
from hf_exposure.tree.scoring import (
    ScoredTree,
    Scorer,
    Served,
    check_context,
    decoder_of,
    measuring,
)
from hf_exposure.utils.arrays import Floats
from hf_exposure.utils.checks import check_choice, check_tokenizer
from hf_exposure.utils.progress import progress_bar
from hf_exposure.utils.typed import typed
from hf_exposure.utils.warn import warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOLD = ("method", "score", "samples", "max_forwards", "confidence", "seed", "bos")
_TEXTS = 256  # that a scorer is given at once, so that progress shows


@typed
def measure_exposure(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
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
    score: str = "log_perplexity",
    base: Any | None = None,
) -> Exposures:
    """The exposure of each canary: log2 of the secret space's size less log2 of its rank, in bits.

    Args:
        model: a causal language model of transformers. Its mode and all random states are left as
            they were. Where it is spread over processes (FSDP, ZeRO-3), all of them have to call
            this. Or a `Scorer`, such as a `CompletionsScorer` for a model behind an endpoint.
        tokenizer: the one that it was trained with. A `Scorer` needs none for "sampling" and
            "skewnorm", but for conversations; where the tree is walked at an endpoint, None looks
            for the one that the server names.
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
        accelerator: of a script of your own. Its processes share the work, so all of them have to
            call this; every one gets the same figures.
        progress: show a progress bar.
        bos: whether special tokens come before the text, as in training; None follows the
            tokenizer's default.
        unscorable: "raise", or "warn" to leave out canaries that cannot be scored and list them in
            `skipped`.
        score: what canaries are ranked by. "log_perplexity", or, by method "sampling" (the default
            then) or "skewnorm", among uniform references: "ratio" (log-perplexity less the base
            model's), "min_k", "min_k_plus_plus" (less the base model's, if there is one), "zlib".
        base: the model before training, with the same tokenizer, for `score`.

    Returns:
        One `Exposure` for each canary, in the order of the set.

    Raises:
        ValueError: bad arguments, a canary that cannot be scored, or a model that gives NaN.
        ProcessFailedError: another process has failed.
        BudgetError: "exact" does not get by with `max_forwards`; holds what "auto" gives.

    Example:
        >>> exposures = measure_exposure(model, tokenizer, canaries)    # doctest: +SKIP
        >>> exposures[0].bits, exposures[0].low, exposures[0].high      # doctest: +SKIP
        (17.2, 16.6, 17.9)
    """
    canaries = canaries if isinstance(canaries, Canaries) else Canaries(canaries)
    settings = Settings(
        method,
        samples,
        max_forwards,
        confidence,
        seed,
        batch_size,
        bos,
        score=score,
        has_base=base is not None,
    )
    _check_base(base)
    needed = settings.method in ("auto", "exact")
    walked = isinstance(model, Served) and score == "log_perplexity" and model.walks(needed)
    if isinstance(model, Scorer) and not walked:
        return measure_scorer(model, tokenizer, canaries, settings, progress=progress)
    if isinstance(model, Served) and tokenizer is None:
        tokenizer = model.find_tokenizer()
    check_tokenizer("measure_exposure: tokenizer", tokenizer)
    assert tokenizer is not None
    check_choice("measure_exposure: unscorable", unscorable, ("raise", "warn"))
    plan = plan_measurement(tokenizer, canaries, bos=bos, unscorable=unscorable)
    # An accelerator of one process may be in a group of several: trainings of their own.
    if accelerator is not None and not hasattr(accelerator, "num_processes"):
        raise TypeError(
            f"measure_exposure: accelerator is of type {type(accelerator).__name__}; give an "
            "accelerate.Accelerator, or leave it out"
        )
    shared = accelerator is not None and accelerator.num_processes > 1
    processes = Processes.of(model, split=shared)
    return measure_plan(
        model,
        plan,
        settings,
        base=base,
        processes=processes,
        progress=progress,
        unscorable=unscorable,
    )


def _check_base(base: Any | None) -> None:
    where = "measure_exposure: base"
    if base is None:
        return
    if not hasattr(base, "modules"):
        raise TypeError(f"{where} must be a model at hand, not {type(base).__name__}")
    if is_sharded(base):
        raise ValueError(f"{where} is spread over processes; give one that is whole in each")


def measure_plan(
    model: Any,
    plan: Plan,
    settings: Settings,
    *,
    base: Any | None = None,
    processes: Processes | None = None,
    progress: bool = False,
    unscorable: str = "raise",
) -> Exposures:
    """Measure what `plan_measurement` has prepared; see `measure_exposure`.

    Args:
        processes: those that call this at the same time, with equal arguments; None takes those
            that have to, because the model is spread over them.
    """
    start = time.perf_counter()
    processes = Processes.of(model, split=False) if processes is None else processes
    results: dict[int, Exposure] = {}
    formats: dict[SecretFormat, FormatDetails] = {}
    skipped = dict(plan.skipped)
    spent, peak, unfinished = 0, 0, []
    fits = math.inf  # rows of a forward for which memory has sufficed
    show = progress and processes.number == 0
    with (
        processes.together(),
        secrets_masked(plan.canaries),
        measuring(model),
        measuring(model) if base is None else undisturbed(base),
        progress_bar(show) as tick,
    ):

        def report(done: int) -> None:
            tick(spent + done)

        for number, group in enumerate(plan.groups):
            left = math.inf
            if settings.max_forwards is not None:
                left = max(0, settings.max_forwards - spent) // (len(plan.groups) - number)
            tree = group.tree
            if settings.score != "log_perplexity":
                try:
                    measured, forwards = measure_by_score(
                        model, base, group, settings, processes, report
                    )
                except ValueError as error:
                    leave_out(skipped, group.places, str(error), unscorable)
                    continue
                results.update(zip(group.places, measured.exposures, strict=True))
                spent += forwards
                formats[tree.format] = replace(measured.details, forwards=forwards)
                continue
            try:
                decoder = decoder_of(
                    model,
                    tree,
                    bos=settings.bos,
                    batch_size=settings.batch_size,
                    turn=processes.forward_turn,
                )
                check_context(decoder.context, tree, group.paths)
            except ValueError as error:
                leave_out(skipped, group.places, str(error), unscorable)
                continue
            decoder.batch_size = int(min(decoder.batch_size, fits))
            processes.forward = decoder.idle
            scored = ScoredTree(tree, decoder, left, processes=processes)
            measured = _measure_group(scored, group, settings, report)
            results.update(zip(group.places, measured.exposures, strict=True))
            if measured.unfinished:
                unfinished.append(measured.unfinished)
            if decoder.halved:  # memory will not suffice for the next format either
                fits = decoder.batch_size
            peak = max(peak, *scored.gather(decoder.peak_bytes))
            spent += scored.forwards
            formats[tree.format] = replace(measured.details, forwards=scored.forwards)
    exposures = Exposures(
        [results[place] for place in sorted(results)],
        forwards=spent,
        seconds=time.perf_counter() - start,
        settings=_describe(settings, plan.canaries)
        | {"processes": processes.count, "peak_bytes": peak}
        | ({"scorer": repr(model)} if isinstance(model, Served) else {}),
        formats=formats,
        skipped=[(plan.canaries[place], why) for place, why in sorted(skipped.items())],
    )
    _warn_of_no_draws(settings, exposures)
    _warn_of_strange_text(exposures)
    if unfinished:
        raise BudgetError(
            f"measure_exposure: method='exact' does not get by with max_forwards="
            f"{settings.max_forwards}: {'; '.join(unfinished)}. method='auto' gives an interval "
            "with that budget: see .exposures of this error",
            exposures,
        )
    return exposures


def measure_scorer(
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase | None,
    canaries: Canaries,
    settings: Settings,
    *,
    progress: bool = False,
) -> Exposures:
    """Measure a model of which only log-perplexities are known; see `measure_exposure`."""
    if settings.score != "log_perplexity":
        raise ValueError(
            f"measure_exposure: score={settings.score!r} needs a model at hand, and "
            f"{type(scorer).__name__} gives log-perplexities only; leave score out"
        )
    if settings.method not in ("sampling", "skewnorm"):
        raise ValueError(
            f"measure_exposure: method={settings.method!r} needs a model at hand, to look at "
            f"every next token, and {type(scorer).__name__} gives log-perplexities only; use "
            "method='sampling' or 'skewnorm'"
        )
    start, before_all, named = time.perf_counter(), scorer.forwards, repr(scorer)
    before = context_before(canaries, tokenizer)
    results: dict[int, Exposure] = {}
    formats: dict[SecretFormat, FormatDetails] = {}
    keeping = scorer.measuring() if isinstance(scorer, Served) else contextlib.nullcontext()
    with secrets_masked(canaries), keeping, progress_bar(progress) as tick:
        scorer = _Ticking(scorer, tick)
        for fmt in canaries.formats:
            places = [place for place, canary in enumerate(canaries) if canary.format == fmt]
            group = canaries.by_format(fmt)
            secrets = [canary.secret for canary in group]
            forwards = scorer.forwards
            log_perplexities = scorer.log_perplexities(fmt, secrets, before)
            # In another order, so that whatever hangs on the batch shows.
            again = scorer.log_perplexities(fmt, secrets[::-1], before)[::-1]
            noise = noise_of(log_perplexities, again)
            tie = tie_of(noise, log_perplexities)
            measured = by_references(scorer, group, log_perplexities, tie, settings, before)
            results.update(zip(places, measured.exposures, strict=True))
            formats[fmt] = replace(
                measured.details,
                forwards=scorer.forwards - forwards,
                noise_bits=noise,
                tie_bits=tie,
            )
    return Exposures(
        [results[place] for place in sorted(results)],
        forwards=scorer.forwards - before_all,
        seconds=time.perf_counter() - start,
        settings=_describe(settings, canaries) | {"scorer": named},
        formats=formats,
    )


class _Ticking:
    """A scorer that shows its progress, some texts at a time."""

    def __init__(self, scorer: Scorer, tick: Callable[[int], None]) -> None:
        self._scorer, self._tick, self._before = scorer, tick, scorer.forwards

    @property
    def forwards(self) -> int:
        return self._scorer.forwards

    def log_perplexities(
        self, fmt: SecretFormat, secrets: Sequence[str], before: str = ""
    ) -> Floats:
        found = []
        for begin in range(0, len(secrets), _TEXTS):
            part = secrets[begin : begin + _TEXTS]
            found.append(self._scorer.log_perplexities(fmt, part, before))
            self._tick(self.forwards - self._before)
        return np.concatenate(found) if found else np.zeros(0)


def _measure_group(
    scored: ScoredTree, group: Group, settings: Settings, report: Callable[[int], None]
) -> GroupResult:
    decoder, before = scored.decoder, scored.tree.before
    scored.progress = lambda: report(decoder.forwards)
    # The longest paths show the most rounding; a handful is enough.
    decoder.probe(sorted(group.paths, key=len)[-4:])
    noise = max(scored.gather(decoder.noise))
    log_perplexities = scored.follow(group.paths)
    tie = tie_of(noise, log_perplexities)
    if settings.method in ("sampling", "skewnorm"):
        measured = by_references(scored, group.canaries, log_perplexities, tie, settings, before)
    else:
        measured = by_tree(scored, group, log_perplexities, tie, settings)
    measured = with_tree(measured, group, decoder, noise, tie)
    return replace(measured, details=replace(measured.details, cached=decoder.cached))


def _warn_of_no_draws(settings: Settings, exposures: Exposures) -> None:
    """Bounds where estimates were asked for look like low exposures."""
    without = {one.canary.format for one in exposures if exposures.is_bound(one)}
    if not without or not settings.samples:
        return
    warn(
        f"measure_exposure: max_forwards={settings.max_forwards} leaves no token-forwards for "
        f"draws from {_named(exposures, without)}; the exposures there are no estimates but "
        "what is proved at the least. Give more (the canaries' own log-perplexities alone take "
        "some for each), or samples=0 if bounds are what you want",
    )


def _warn_of_strange_text(exposures: Exposures) -> None:
    """Figures of a model that was given tokens of another one look like low exposures."""
    strange = exposures.improbable()
    if strange:
        warn(
            f"measure_exposure: most canaries of {_named(exposures, strange)} are less likely "
            "to the model than random tokens, as with a tokenizer that is not the model's or after "
            "a training that diverged; what comes of that says nothing about memorization",
        )


def _named(exposures: Exposures, some: Collection[SecretFormat]) -> str:
    names = format_names(exposures.formats)
    return ", ".join(repr(name) for fmt, name in names.items() if fmt in some)


def _describe(settings: Settings, canaries: Canaries) -> dict[str, Any]:
    return {
        "inserted": bool(canaries.insertions),
        **({} if canaries.limits is None else {"limits": canaries.limits.to_dict()}),
        **{name: getattr(settings, name) for name in _TOLD},
        **({"base": True} if settings.has_base else {}),
        "versions": versions("torch", "transformers", "numpy", "scipy", "outlines-core"),
    }
