"""What a measurement adds to a model's card: results in its metadata, and sections in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard

from hf_exposure.attacks.extraction import Extractions
from hf_exposure.canaries.formats import format_names
from hf_exposure.exposure.membership import percent
from hf_exposure.exposure.records import interval, mean_bits, most_exposed, short_labels
from hf_exposure.exposure.results import Exposures
from hf_exposure.exposure.scores import ranked_by
from hf_exposure.reports.card_text import DATASET, TASK, change_card
from hf_exposure.reports.findings import extraction_findings, findings_of
from hf_exposure.utils.checks import check_type
from hf_exposure.utils.escapes import code_span, markdown, printable
from hf_exposure.utils.typed import typed
from hf_exposure.utils.words import times as often

if TYPE_CHECKING:
    import os

    from hf_exposure.attacks.generations import Generations
    from hf_exposure.canaries.canary import Canary, MaskedCanary
    from hf_exposure.canaries.formats import SecretFormat
    from hf_exposure.exposure.history import History

_MEANT = 20.0  # above it an epsilon is no protection that anybody could count on
_FPR = 0.01  # the false-positive rate of what is called detected
_AROUND = 40  # characters of a template that a card shows on each side of the secret


@typed
def add_exposure_to_card(
    card: ModelCard | str | os.PathLike[str],
    exposures: Exposures | None = None,
    *,
    model_name: str | None = None,
    extractions: Extractions | Iterable[Extractions] = (),
    generations: Generations | None = None,
    history: History | None = None,
    per_canary: bool = False,
) -> ModelCard:
    """Put exposures, and what came out, into a model card: as results and as sections in words.

    All else of the card stays as it is, line by line. What a former call has put there is replaced
    by what is given now: exposures by exposures, what a search brought out by what a search did.
    No secret is in it, and of a template only the text around the secret. Figures are those of
    groups, from `Exposures.coarse`.

    Args:
        card: a `ModelCard`, which is left alone, or the path of a README.md or of its folder, which
            is written; it need not exist.
        exposures: what was measured.
        model_name: for the metadata of a card without results; None takes the card's, or the name
            of the README's folder.
        extractions: what searches brought out, one for each format.
        generations: what came out by generation.
        history: measurements during training, the one of these exposures among them.
        per_canary: add a table with the figures of each canary, masked and coarse.

    Returns:
        The new card.

    Raises:
        ValueError: nothing was measured, or the card's metadata cannot be read or added to; the
            file is as it was.
        OSError: the file cannot be read or written.

    Example:
        >>> card = add_exposure_to_card("my-model/README.md", exposures)   # doctest: +SKIP
        >>> card.data.eval_results[0].metric_value                         # doctest: +SKIP
        17.2
    """
    where = "add_exposure_to_card"
    new = card_parts(where, exposures, extractions, generations, history, per_canary)
    return change_card(where, card, *new, model_name)


def card_parts(
    where: str,
    exposures: Exposures | None,
    extractions: Extractions | Iterable[Extractions],
    generations: Generations | None,
    history: History | None,
    per_canary: bool,
) -> tuple[dict[str, str], list[EvalResult]]:
    """The sections and results that `add_exposure_to_card` puts into a card."""
    searches = [extractions] if isinstance(extractions, Extractions) else list(extractions)
    for one in searches:
        check_type(f"{where}: extractions", one, Extractions, "Extractions")
    searches = [search.coarse() for search in searches]
    if not exposures and not searches and generations is None:
        raise ValueError(f"{where}: exposures is empty: nothing was measured; see its .skipped")
    sections = {}
    if exposures:
        sections["exposure"] = exposure_section(exposures, history, per_canary)
    if searches or generations is not None:
        sections["extraction"] = extraction_section(searches, generations)
    return sections, results(exposures, searches, generations)


@typed
def add_privacy_to_card(
    card: ModelCard | str | os.PathLike[str], statement: Mapping[str, Any]
) -> ModelCard:
    """Say on a model card what a training with DP-SGD has spent, in a section of its own.

    Args:
        card: as `add_exposure_to_card` has it.
        statement: `PrivateTrainer.privacy_statement()`, or the `privacy.json` beside a saved model:
            of these very weights, which is not looked into.

    Returns:
        The new card.

    Raises:
        ValueError: it is no such statement, or the card's metadata cannot be read; the file is as
            it was.
        OSError: the file cannot be read or written.
    """
    try:
        section = privacy_section(statement)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"add_privacy_to_card: statement is not what PrivateTrainer writes as privacy.json "
            f"({type(error).__name__}: {error})"
        ) from None
    return change_card("add_privacy_to_card", card, {"privacy": section})


# The sections in words


def exposure_section(
    exposures: Exposures, history: History | None = None, per_canary: bool = False
) -> str:
    """What was measured, in Markdown: sentences, tables, and the method."""
    settings = exposures.settings
    steps = [entry.step for entry in history or () if entry.exposures is exposures]
    exposures, history = exposures.coarse(), None if history is None else history.coarse()
    at = f" at step {steps[-1]:,} of the training" if steps else ""
    method = code_span(str(settings.get("method", "auto")))
    by = "likelihood" if exposures.by_likelihood else markdown(ranked_by(settings))
    return "\n".join(
        [
            "## Memorization",
            "",
            *(f"- {markdown(str(finding))}" for finding in findings_of(exposures, history=history)),
            "",
            *_exposure_table(exposures),
            "",
            *(_canary_table(exposures) if per_canary else ()),
            "Exposure, in bits, is log2 of the number of possible secrets minus log2 of the "
            f"secret's rank among them by {by}. A secret that the model has never seen has "
            f"1.44 bits on average. Measured with hf-exposure{at}, method {method}, "
            f"{exposures.forwards:,} token-forwards; confidence level of the intervals: "
            f"{exposures.confidence:.0%}.",
        ]
    )


def extraction_section(
    searches: Sequence[Extractions], generations: Generations | None = None
) -> str:
    """How many secrets came out, at what cost and by which method, in Markdown."""
    rows = [
        "| method | form | strings | proved | inserted secrets among them | token-forwards |",
        "|---|---|---:|---:|---:|---:|",
    ]
    names = _names(search.format for search in searches)
    for search in searches:
        known = search.settings.get("canaries") is not None
        rows.append(
            f"| {markdown(_searched(search))} | {markdown(names[search.format])} | "
            f"{len(search):,} | {sum(one.proved for one in search):,} | "
            f"{f'{len(_came(search)):,}' if known else '–'} | {search.forwards:,} |"
        )
    if generations is not None:
        came = _written(generations)
        rows.append(
            f"| {_generated(generations)} | all | {generations.attempts:,} | – | {came:,} | "
            f"{generations.forwards:,} |"
        )
    every = [one for search in searches for one in search]
    return "\n".join(
        ["## Extraction of inserted secrets", ""]
        + [f"- {markdown(str(finding))}" for finding in extraction_findings(every, generations)]
        + [
            f"- The search of {markdown(names[search.format])} ran out of token-forwards, "
            "so it may have missed secrets."
            for search in searches
            if search.cut_short
        ]
        + ["", *rows, "", "Searched with hf-exposure. The secrets themselves are not shown."]
    )


def privacy_section(statement: Mapping[str, Any]) -> str:
    """What a training with DP-SGD has spent, and of what, in Markdown."""
    epsilon, delta, parts = (statement[name] for name in ("epsilon", "delta", "steps"))
    lead = (
        "Trained with clipped gradients and without enough noise for any guarantee: epsilon is "
        "infinite."
        if epsilon is None
        else f"Trained with DP-SGD: ({rounded_up(epsilon)}, {rounded_up(delta)})-differential "
        "privacy."
    )
    if epsilon is not None and epsilon > _MEANT:
        lead += " An epsilon this large gives no protection in practice."
    if statement["noise_can_be_repeated"]:
        lead += " Its noise came from a known seed: whoever has the seed can remove it."
    rows = [
        f"| {part['steps']:,} | {part['noise_multiplier']:.4g} | {part['sampling_rate']:.4g} |"
        for part in parts
    ]
    return "\n".join(
        [
            "## Differential privacy",
            "",
            f"{lead} The privacy unit is {markdown(statement['unit'])}; there are "
            f"{statement['rows']:,}. Text that occurs in several rows is protected less. Choices "
            "made with these data beforehand, such as hyperparameters, are not counted.",
            "",
            "| steps | noise multiplier | sampling rate |",
            "|---:|---:|---:|",
            *rows,
            "",
            f"Rows' gradients are clipped to a norm of {statement['per_sample_max_grad_norm']:g}; "
            f"accountant {code_span(statement['accountant'])}.",
        ]
    )


def rounded_up(bound: float) -> str:
    """An upper bound with three digits, never below what it is: 0.00401, 8.00, 3.94e-05."""
    if not 0 < bound < math.inf:
        return f"{bound:g}"
    unit = 10.0 ** (math.floor(math.log10(bound)) - 2)
    up = math.ceil(bound / unit - 1e-9) * unit
    return f"{up:,.0f}" if up >= 100 else f"{up:#.3g}"


def _exposure_table(exposures: Exposures) -> list[str]:
    """One row for each number of repetitions and format."""
    groups: dict[tuple[str, int], list[Any]] = {}
    labels = short_labels(one.canary for one in exposures)
    for one, label in zip(exposures, labels, strict=True):
        groups.setdefault((markdown(label), one.canary.repetitions), []).append(one)
    out = [
        "| canary | inserted | canaries | exposure in bits | largest, with interval | at most |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for (label, times), group in groups.items():
        most = most_exposed(group)
        least = "≥" if any(map(exposures.is_bound, group)) else ""
        out.append(
            f"| {label} | {times} | {len(group)} | {least}{mean_bits(group):.1f} | "
            f"{'≥' if exposures.is_bound(most) else ''}{most.bits:.1f} "
            f"({interval(most.low, most.high)}) | {most.canary.format.bits:.1f} |"
        )
    return out


def _canary_table(exposures: Exposures) -> list[str]:
    """One row for each canary, and an empty line."""
    headings, rows = exposures.cells()
    cells = [headings, ["---:" if n in exposures.right else "---" for n in range(len(headings))]]
    cells += [[markdown(cell) for cell in row] for row in rows]
    return [*(f"| {' | '.join(row)} |" for row in cells), ""]


def _names(formats: Iterable[SecretFormat]) -> dict[SecretFormat, str]:
    """Formats as a card names them, without the far ends of long templates."""
    return {fmt: printable(name) for fmt, name in format_names(formats, _AROUND).items()}


def _searched(search: Extractions) -> str:
    width = search.settings.get("beam_width")
    return f"beam search, width {width}" if width else "search for the most likely strings"


def _generated(generations: Generations) -> str:
    free = generations.settings.get("constrained") is False
    how = "freely" if free else "in the form of a secret"
    return f"generated {how}"


def _came(search: Extractions) -> list[Canary | MaskedCanary]:
    """The inserted canaries that a search brought out."""
    return [one.canary for one in search if one.canary is not None and one.canary.inserted]


def _written(generations: Generations) -> int:
    """How many inserted canaries came out by generation."""
    return sum(row.times > 0 for row in generations if row.canary.inserted)


# The results in the metadata


def results(
    exposures: Exposures | None,
    searches: Sequence[Extractions] = (),
    generations: Generations | None = None,
) -> list[EvalResult]:
    """The figures for a card's `model-index`, with method, cost and interval.

    Of exposures the mean over the inserted canaries, the largest, and the mean for each number of
    repetitions, in bits; how many inserted secrets came out of searches and by generation.
    """
    formats: list[SecretFormat] = [one.canary.format for one in exposures or ()]
    formats += [search.format for search in searches]
    formats += [row.canary.format for row in (generations.rows if generations else ())]
    names = _names(formats)

    def result(metric: str, name: str, value: float, args: dict[str, Any]) -> EvalResult:
        return EvalResult(
            task_type="text-generation",
            task_name=TASK,
            dataset_type=DATASET,
            dataset_name=f"Canaries: {'; '.join(dict.fromkeys(names.values()))}",
            metric_type=metric,
            metric_name=name,
            metric_value=value,
            metric_args=args,
        )

    out = []
    if exposures:
        detected = exposures.membership(_FPR)
        exposures = exposures.coarse()
        shared = {
            "method": exposures.settings.get("method", exposures[0].method),
            "confidence": exposures.confidence,
            "unit": "bits",
            "at_most": _rounded(max(one.canary.format.bits for one in exposures)),
            "token_forwards": int(exposures.forwards),
        }
        if not exposures.by_likelihood:
            shared["score"] = ranked_by(exposures.settings)
        bounds = sum(map(exposures.is_bound, exposures))
        if bounds:  # the figures are then no more than that
            shared["lower_bounds"] = bounds
        metrics = exposures.metrics(prefix="")
        if "exposure" in metrics:
            mean = _rounded(metrics["exposure"])
            out.append(result("exposure", "Exposure (mean)", mean, shared))
            most = most_exposed(one for one in exposures if one.canary.inserted)
            reach = {"low": _rounded(most.low), "high": _rounded(most.high)}
            largest = _rounded(most.bits)
            out.append(result("exposure", "Exposure (largest)", largest, {**shared, **reach}))
        for times, group in exposures.by_repetitions().items():
            name = f"Exposure (inserted {often(times)})" if times else "Exposure (never inserted)"
            count = {"repetitions": times, "canaries": len(group)}
            value = _rounded(metrics[f"exposure_x{times}"])
            out.append(result("exposure", name, value, {**shared, **count}))
        for row in detected:
            if row.repetitions == 0:
                continue
            who = "inserted" if row.repetitions is None else f"inserted {often(row.repetitions)}"
            name = f"True-positive rate at {percent(_FPR)} false positives ({who})"
            told = {"fpr": _FPR, "canaries": row.count, "undecided": row.undecided}
            told |= {"low": _rounded(row.low), "high": _rounded(row.high)}
            told |= {"lower_bounds": bounds} if bounds else {}
            out.append(result("true_positive_rate", name, _rounded(row.tpr), told))
    for search in searches:
        known = search.settings.get("canaries")
        args = {
            "method": _searched(search),
            "token_forwards": int(search.forwards),
            "proved": sum(one.proved for one in search),
            "strings": len(search),
            **({} if known is None else {"canaries": known}),
        }
        # Without canaries nothing tells which of the strings were inserted.
        what, value = "Inserted secrets", len(_came(search))
        if known is None:
            what, value = "Most likely strings", len(search)
        out.append(result("extracted", f"{what} found ({names[search.format]})", value, args))
    if generations is not None:
        came = _written(generations)
        args = {
            "method": _generated(generations),
            "token_forwards": int(generations.forwards),
            "strings": generations.attempts,
            "canaries": len(generations.rows),
        }
        out.append(result("generated", "Inserted secrets generated", came, args))
    return out


def _rounded(value: float) -> float:
    return round(float(value), 4)
