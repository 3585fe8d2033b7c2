"""What a measurement adds to a model's card: results in its metadata, and a section in words.

A card may have been written by hand, so nothing of it is written anew: in the metadata only our own
entry among the results changes, in the text only what stands between our marks.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index

from hf_exposure.extraction import Extractions
from hf_exposure.extraction import times as often
from hf_exposure.files import write_text
from hf_exposure.findings import extracted, find
from hf_exposure.results import Exposures, interval, mean_bits, short_label

if TYPE_CHECKING:
    import os

    from hf_exposure.canaries import Canary
    from hf_exposure.formats import SecretFormat
    from hf_exposure.generation import Generations
    from hf_exposure.history import History
    from hf_exposure.results import MaskedCanary

DATASET = "canaries"  # the data set type of our results in a card's metadata
TASK = "Memorization of planted secrets"
_AROUND = 40  # characters of a template that a card shows on each side of the secret
# The Hub's own expression for a card's metadata; the second group is the YAML.
_METADATA = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$))")


def add_exposure_to_card(
    card: ModelCard | str | os.PathLike[str],
    exposures: Exposures | None = None,
    *,
    model_name: str | None = None,
    extractions: Extractions | Iterable[Extractions] = (),
    generations: Generations | None = None,
    history: History | None = None,
) -> ModelCard:
    """Put exposures, and what came out, into a model card: as results and as sections in words.

    All else of the card stays as it is, line by line. What a former call has put there is replaced
    by what is given now: exposures by exposures, what a search brought out by what a search did.
    No secret is in it, and of a template only the text around the secret.

    Args:
        card: a `ModelCard`, which is left alone, or the path of a README.md or of its folder, which
            is written; it need not exist.
        exposures: what was measured.
        model_name: for the metadata of a card without results; None takes the card's, or the name
            of the README's folder.
        extractions: what searches brought out, one for each format.
        generations: what came out by generation.
        history: measurements during training, the one of these exposures among them.

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
    searches = [extractions] if isinstance(extractions, Extractions) else list(extractions)
    if not exposures and not searches and generations is None:
        raise ValueError(
            "add_exposure_to_card: exposures is empty: nothing was measured; see its .skipped"
        )
    path = None if isinstance(card, ModelCard) else Path(card)
    if path is not None and path.is_dir():
        path = path / "README.md"
    name = model_name or (path.resolve().parent.name if path is not None else "") or "model"
    try:
        text = str(card) if path is None else _read(path)
        new = _added(text, exposures, searches, generations, history, name)
        made = _card(new.removeprefix("\ufeff"))
    except ValueError as error:
        place = "the card" if path is None else repr(str(path))
        reason = " ".join(str(error).split())
        raise ValueError(f"add_exposure_to_card: {place} is left as it was: {reason}") from None
    if path is not None:
        write_text(path, new)
    return made


def _read(path: Path) -> str:
    """A card as it is, with its ends of lines; "" if there is none."""
    try:
        return path.read_bytes().decode("utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text ({error.reason})") from None


def _card(text: str) -> ModelCard:
    """The card of a text, as long as the library can read it."""
    try:
        return ModelCard(text)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"a value in its metadata is not what a card has there: {error}") from None


def _added(
    text: str,
    exposures: Exposures | None,
    searches: Sequence[Extractions],
    generations: Generations | None,
    history: History | None,
    name: str,
) -> str:
    """The text of a card with all that is new in it."""
    end = "\r\n" if "\r\n" in text else "\n"
    begin = "\ufeff" if text.startswith("\ufeff") else ""
    text = text.removeprefix(begin)
    found = _METADATA.match(text)
    head, metadata, body = "", "", text  # the metadata with the end of its last line
    if found:
        head, metadata, body = found[1], found[2] + end, found[3] + text[found.end() :]
        if head.endswith("\r") and body.startswith("\n"):  # one end of a line, cut in two
            head, metadata, body = head + "\n", "", end + body[1:]
    if exposures:
        body = _with_section(body, "exposure", exposure_section(exposures, history), end)
    if searches or generations is not None:
        new = extraction_section(searches, generations)
        body = _with_section(body, "extraction", new, end)
    metadata = _with_results(metadata, results(exposures, searches, generations), name, end)
    if not found:
        gap = "" if body.startswith(("\r", "\n")) else end
        head, body = f"---{end}", f"{end}---{end}{gap}{body}"
    return begin + head + metadata.removesuffix(end) + body


# The sections in words


def exposure_section(exposures: Exposures, history: History | None = None) -> str:
    """What was measured, in Markdown: sentences, a table, and the method."""
    settings = exposures.settings
    steps = [entry.step for entry in history or () if entry.exposures is exposures]
    at = f" at step {steps[-1]:,} of the training" if steps else ""
    return "\n".join(
        [
            "## Memorization",
            "",
            *(f"- {finding}" for finding in find(exposures, history=history)),
            "",
            *_exposure_table(exposures),
            "",
            "Exposure is log2 of the number of possible secrets less log2 of the secret's rank "
            "among them by likelihood, in bits: 1.44 on average for a secret that was never seen. "
            f"Measured with hf-exposure{at}, method `{settings.get('method', 'auto')}`, "
            f"{exposures.forwards:,} token-forwards; intervals at {exposures.confidence:.0%}.",
        ]
    )


def extraction_section(
    searches: Sequence[Extractions], generations: Generations | None = None
) -> str:
    """How many secrets came out, at what cost and by which method, in Markdown."""
    rows = [
        "| method | form | strings | proved | planted secrets among them | token-forwards |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for search in searches:
        known = search.settings.get("canaries") is not None
        rows.append(
            f"| {_searched(search)} | {_cell(_around(search.format))} | {len(search):,} | "
            f"{sum(one.proved for one in search):,} | "
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
        ["## Extraction of planted secrets", ""]
        + [f"- {finding}" for finding in extracted(every, generations)]
        + ["", *rows, "", "Searched with hf-exposure. The secrets themselves are not shown."]
    )


def _exposure_table(exposures: Exposures) -> list[str]:
    """One row for each number of repetitions and format."""
    groups: dict[tuple[str, int], list[Any]] = {}
    for one in exposures:
        label = _cell(short_label(one.canary))
        groups.setdefault((label, one.canary.repetitions), []).append(one)
    out = [
        "| canary | planted | canaries | exposure in bits | largest, with interval | at most |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for (label, times), group in groups.items():
        mean = mean_bits(group)
        most = max(group, key=lambda one: one.bits)
        out.append(
            f"| {label} | {times} | {len(group)} | {mean:.1f} | {most.bits:.1f} "
            f"({interval(most.low, most.high)}) | {most.canary.format.bits:.1f} |"
        )
    return out


def _with_section(body: str, kind: str, new: str, end: str) -> str:
    """A card's text with a section in its former place, or at the end."""
    first, last = (f"<!-- hf-exposure {kind}: {which} -->" for which in ("begin", "end"))
    new = f"{first}\n{new}\n{last}".replace("\n", end)
    # A mark without its other half belongs to nothing.
    before = f"(?:(?!{re.escape(first)}).)*?"
    former = re.compile(f"{re.escape(first)}{before}{re.escape(last)}", re.DOTALL)
    if former.search(body):
        return former.sub(lambda _: new, body, count=1)
    gap = "" if not body else end if body.endswith(("\n", "\r")) else 2 * end
    return f"{body}{gap}{new}{end}"


def _cell(text: str) -> str:
    """Text that does not end a cell or a line of a Markdown table, nor is read as markup."""
    escaped = re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", text)
    return " ".join(escaped.split())


def _around(fmt: SecretFormat) -> str:
    """A template as a card names it, without the far ends of a long one."""
    prefix, suffix = fmt.prefix, fmt.suffix
    prefix = prefix if len(prefix) <= _AROUND else "…" + prefix[-_AROUND:]
    suffix = suffix if len(suffix) <= _AROUND else suffix[:_AROUND] + "…"
    return " ".join(f"{prefix}{{secret}}{suffix}".split())


def _searched(search: Extractions) -> str:
    width = search.settings.get("beam_width")
    return f"beam search, width {width}" if width else "search for the most likely strings"


def _generated(generations: Generations) -> str:
    free = generations.settings.get("constrained") is False
    how = "freely" if free else "in the form of a secret"
    return f"generated {how}"


def _came(search: Extractions) -> list[Canary | MaskedCanary]:
    """The planted canaries that a search brought out."""
    return [one.canary for one in search if one.canary is not None and one.canary.inserted]


def _written(generations: Generations) -> int:
    """How many planted canaries came out by generation."""
    return sum(row.times > 0 for row in generations if row.canary.inserted)


# The results in the metadata


def results(
    exposures: Exposures | None,
    searches: Sequence[Extractions] = (),
    generations: Generations | None = None,
) -> list[EvalResult]:
    """The figures for a card's `model-index`, with method, cost and interval.

    Of exposures the mean over the planted canaries, the largest, and the mean for each number of
    repetitions, in bits; how many planted secrets came out of searches and by generation.
    """
    formats: list[SecretFormat] = [one.canary.format for one in exposures or ()]
    formats += [search.format for search in searches]
    formats += [row.canary.format for row in (generations.rows if generations else ())]
    templates = dict.fromkeys(_around(fmt) for fmt in formats)

    def result(metric: str, name: str, value: float, args: dict[str, Any]) -> EvalResult:
        return EvalResult(
            task_type="text-generation",
            task_name=TASK,
            dataset_type=DATASET,
            dataset_name=f"Canaries: {'; '.join(templates)}",
            metric_type=metric,
            metric_name=name,
            metric_value=value,
            metric_args=args,
        )

    out = []
    if exposures:
        shared = {
            "method": exposures.settings.get("method", exposures[0].method),
            "confidence": exposures.confidence,
            "unit": "bits",
            "at_most": _rounded(max(one.canary.format.bits for one in exposures)),
            "token_forwards": int(exposures.forwards),
        }
        metrics = exposures.metrics(prefix="")
        if "exposure" in metrics:
            mean = _rounded(metrics["exposure"])
            out.append(result("exposure", "Exposure (mean)", mean, shared))
            most = max((e for e in exposures if e.canary.inserted), key=lambda e: e.bits)
            reach = {"low": _rounded(most.low), "high": _rounded(most.high)}
            largest = _rounded(most.bits)
            out.append(result("exposure", "Exposure (largest)", largest, {**shared, **reach}))
        for times, group in exposures.by_repetitions().items():
            name = f"Exposure (planted {often(times)})" if times else "Exposure (never planted)"
            count = {"repetitions": times, "canaries": len(group)}
            value = _rounded(metrics[f"exposure_x{times}"])
            out.append(result("exposure", name, value, {**shared, **count}))
    for search in searches:
        planted = search.settings.get("canaries")
        args = {
            "method": _searched(search),
            "token_forwards": int(search.forwards),
            "proved": sum(one.proved for one in search),
            "strings": len(search),
            **({} if planted is None else {"canaries": planted}),
        }
        # Without canaries nothing tells which of the strings were planted.
        what, value = "Planted secrets", len(_came(search))
        if planted is None:
            what, value = "Most likely strings", len(search)
        out.append(result("extracted", f"{what} found ({_around(search.format)})", value, args))
    if generations is not None:
        came = _written(generations)
        args = {
            "method": _generated(generations),
            "token_forwards": int(generations.forwards),
            "strings": generations.attempts,
            "canaries": len(generations.rows),
        }
        out.append(result("generated", "Planted secrets generated", came, args))
    return out


def _rounded(value: float) -> float:
    return round(float(value), 4)


def _with_results(metadata: str, new: Sequence[EvalResult], name: str, end: str) -> str:
    """A card's metadata with our results beside those of others, all other lines as they are.

    Every line of it has its end, the last one too.

    Raises:
        ValueError: it is no YAML that results can be added to.
    """
    known = _loaded(metadata.removesuffix(end))
    if not isinstance(known.get("model_name", ""), str):
        raise ValueError("model_name in its metadata is not a text")
    index = known.get("model-index") or []
    if not isinstance(index, list) or not all(isinstance(one, dict) for one in index):
        raise ValueError("model-index in its metadata is not a list of models")
    index = copy.deepcopy(index) or [{"name": known.get("model_name") or name, "results": []}]
    there = index[0].get("results") or []
    if not isinstance(there, list) or not all(isinstance(one, dict) for one in there):
        raise ValueError("results in its model-index is not a list")
    ours = eval_results_to_model_index(name, list(new))[0]["results"][0]
    kinds = {metric["type"] for metric in ours["metrics"]}
    place = next((place for place, one in enumerate(there) if _is_ours(one)), len(there))
    for former in there[place : place + 1]:
        metrics = former.get("metrics") or []
        ours["metrics"] = [one for one in metrics if one["type"] not in kinds] + ours["metrics"]
    index[0]["results"] = [*there[:place], ours, *there[place + 1 :]]
    wanted = _values({**known, "model-index": index})
    for way in (_edited, _rewritten):
        made = way(metadata, {**known, "model-index": index}, place, end)
        try:
            if made is not None and _values(_loaded(made.removesuffix(end))) == wanted:
                return made
        except ValueError:
            continue
    raise ValueError("its metadata is written in a way that results cannot be added to")


def _is_ours(entry: dict[str, Any]) -> bool:
    """Whether a result is one that a former call has put there."""
    task, rows = entry.get("task"), entry.get("dataset")
    named = isinstance(task, dict) and task.get("name") == TASK
    return named and isinstance(rows, dict) and rows.get("type") == DATASET


def _loaded(metadata: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(metadata)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"its metadata is not valid YAML: {error}") from None
    if not isinstance(data, dict | None):
        raise ValueError(f"its metadata is a {type(data).__name__}, not names with values")
    return data or {}


def _values(data: dict[str, Any]) -> dict[str, str]:
    """What can be compared, whatever the order of the names."""
    return {name: _dumped(value) for name, value in data.items()}


def _dumped(data: Any, end: str = "\n", indent: int = 0) -> str:
    """YAML in lines that end as the card's do."""
    text: str = yaml.safe_dump(data, allow_unicode=True, sort_keys=False, width=10_000)
    return "".join(" " * indent + line + end for line in text.rstrip("\n").split("\n"))


def _edited(metadata: str, data: dict[str, Any], place: int, end: str) -> str | None:
    """One result put in or exchanged, with no other line touched; None where that cannot be."""
    root = yaml.compose(metadata, Loader=yaml.SafeLoader)
    models = _node(root, "model-index")
    if models is None:
        return metadata + _dumped({"model-index": data["model-index"]}, end)
    if not isinstance(models.value, list):
        return None
    found = _node(models.value[0], "results") if models.value else None
    if found is None or not isinstance(found.value, list):
        return None
    ours = [data["model-index"][0]["results"][place]]
    if not found.value:
        column = next(
            key.start_mark.column for key, value in models.value[0].value if value is found
        )
        head = metadata[: found.start_mark.index].rstrip(" ")
        new = end + _dumped(ours, end, column).removesuffix(end)
        return head + new + metadata[found.end_mark.index :]
    if found.flow_style:
        return None
    lines, column = metadata.splitlines(keepends=True), found.start_mark.column
    starts = [node.start_mark.line for node in found.value]
    first = starts[min(place, len(starts) - 1)]
    stop = first + 1
    for number in range(first + 1, len(lines)):
        text = lines[number].strip()
        if text and not text.startswith("#"):  # these may belong to what follows
            if len(lines[number]) - len(lines[number].lstrip(" ")) <= column:
                break
            stop = number + 1
    if place == len(starts):
        first = stop
    return "".join([*lines[:first], _dumped(ours, end, column), *lines[stop:]])


def _rewritten(metadata: str, data: dict[str, Any], place: int, end: str) -> str | None:
    """All results written anew, with no line but theirs touched; for those in braces."""
    root = yaml.compose(metadata, Loader=yaml.SafeLoader)
    if root is None or root.flow_style:
        return _dumped(data, end)
    lines = metadata.splitlines(keepends=True)
    new = _dumped({"model-index": data["model-index"]}, end)
    keys = [key for key, _ in root.value]
    here = next((n for n, key in enumerate(keys) if key.value == "model-index"), None)
    if here is None:  # first, since the last line may be of a text in which blank lines count
        return new + metadata
    first, after = keys[here].start_mark.line, keys[here + 1 : here + 2]
    stop = after[0].start_mark.line if after else len(lines)
    while not lines[stop - 1].strip() or lines[stop - 1].startswith("#"):
        stop -= 1
    return "".join([*lines[:first], new, *lines[stop:]])


def _node(mapping: Any, name: str) -> Any:
    """The YAML node of a name's value, None if it is not there."""
    if not isinstance(mapping, yaml.MappingNode):
        return None
    return next((value for key, value in mapping.value if key.value == name), None)
