"""Changing the text of a model's card, and nothing of it that is not ours.

`huggingface_hub.ModelCard` reads a card, checks it and says which results ours are in its metadata.
It does not write it: it would write all metadata anew, and lose comments, quotes and what it does
not know. Here only our own result changes in the metadata, and in the text what stands between our
marks.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import eval_results_to_model_index

from hf_exposure.canaries.loading import holds_manifest
from hf_exposure.utils.files import write_text

if TYPE_CHECKING:
    import os

DATASET = "canaries"  # the data set type of our results in a card's metadata
TASK = "Memorization of inserted secrets"


def change_card(
    where: str,
    card: ModelCard | str | os.PathLike[str],
    sections: Mapping[str, str],
    results: Sequence[EvalResult] = (),
    name: str | None = None,
) -> ModelCard:
    """Put sections and results into a card, in the place of those that a former call has put there.

    Args:
        where: the function that was called, for its errors.
        card: a `ModelCard`, which is left alone, or the path of a README.md or of its folder, which
            is written; it need not exist.
        sections: Markdown by the name of its marks.
        results: ours, for the metadata.
        name: for the metadata of a card without results; None takes the card's, or the name of the
            README's folder.

    Raises:
        ValueError: the card's metadata cannot be read or added to; the file is as it was.
        OSError: the file cannot be read or written.
    """
    path = None if isinstance(card, ModelCard) else Path(card)
    if path is not None and path.is_dir():
        path = path / "README.md"
    if path is not None and holds_manifest(path):
        raise ValueError(
            f"{where}: {str(path)!r} is the manifest of canaries, with their secrets, which is not "
            "written over; name a README.md"
        )
    name = name or (path.resolve().parent.name if path is not None else "") or "model"
    try:
        text = str(card) if path is None else _read(path)
        new = _changed(text, sections, results, name)
        made = _card(new.removeprefix("\ufeff"))
    except ValueError as error:
        place = "the card" if path is None else repr(str(path))
        reason = " ".join(str(error).split())
        raise ValueError(f"{where}: {place} is left as it was: {reason}") from None
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


def _changed(
    text: str, sections: Mapping[str, str], results: Sequence[EvalResult], name: str
) -> str:
    """The text of a card with all that is new in it."""
    end = "\r\n" if "\r\n" in text else "\n"
    begin = "\ufeff" if text.startswith("\ufeff") else ""
    text = text.removeprefix(begin)
    found = REGEX_YAML_BLOCK.match(text)
    head, metadata, body = "", "", text  # the metadata with the end of its last line
    if found:
        head, metadata, body = found[1], found[2] + end, found[3] + text[found.end() :]
        if head.endswith("\r") and body.startswith("\n"):  # one end of a line, cut in two
            head, metadata, body = head + "\n", "", end + body[1:]
    for kind, section in sections.items():
        body = _with_section(body, kind, section, end)
    if results:
        metadata = _with_results(metadata, results, name, end)
        if not found:
            gap = "" if body.startswith(("\r", "\n")) else end
            head, body = f"---{end}", f"{end}---{end}{gap}{body}"
    return begin + head + metadata.removesuffix(end) + body


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


def _with_results(metadata: str, new: Sequence[EvalResult], name: str, end: str) -> str:
    """A card's metadata, in lines, with our results beside those of others.

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
    data = {**known, "model-index": index}
    for made in _ways(metadata, data, place, end):
        try:
            if _values(_loaded(made.removesuffix(end))) == _values(data):
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
    """What can be compared, whatever the order of the names (and NaN with itself)."""
    return {name: _dumped(value) for name, value in data.items()}


def _dumped(data: Any, end: str = "\n", indent: int = 0) -> str:
    """YAML in lines that end as the card's do."""
    text: str = yaml.safe_dump(data, allow_unicode=True, sort_keys=False, width=10_000)
    return "".join(" " * indent + line + end for line in text.rstrip("\n").split("\n"))


def _ways(metadata: str, data: dict[str, Any], place: int, end: str) -> Iterator[str]:
    """Ways to write the results, those that touch fewer lines first; not all of them are right.

    Our result alone, in its former place or behind the others; all results; all metadata.
    """
    lines = metadata.splitlines(keepends=True)
    root = yaml.compose(metadata, Loader=yaml.SafeLoader)
    whole = _dumped({"model-index": data["model-index"]}, end)
    key, index = _entry(root, "model-index")
    if index is None:
        yield metadata + whole
        yield whole + metadata  # the last line may be of a text in which blank lines count
    else:
        ours = [data["model-index"][0]["results"][place]]
        key_of, there = _entry(index.value[0] if index.value else None, "results")
        if there is not None and there.value == [] and there.start_mark.line == key_of.line:
            line, column = there.start_mark.line, there.start_mark.column
            opened = lines[line][:column].rstrip(" ") + end
            yield _with_lines(lines, line, line + 1, opened + _dumped(ours, end, key_of.column))
        elif there is not None and isinstance(there.value, list) and there.value:
            former = there.value[place : place + 1]
            first = former[0].start_mark.line if former else _stop(there)
            stop = _stop(there.value[place]) if former else first
            new = _dumped(ours, end, there.start_mark.column)
            yield _with_lines(lines, first, stop, new)
        yield _with_lines(lines, key.line, _stop(index), whole)
    yield _dumped(data, end)


def _with_lines(lines: list[str], first: int, stop: int, new: str) -> str:
    return "".join([*lines[:first], new, *lines[stop:]])


def _entry(mapping: Any, name: str) -> tuple[Any, Any]:
    """Where a name stands, and the YAML node of its value; None if it is not there."""
    pairs = mapping.value if isinstance(mapping, yaml.MappingNode) else []
    return next(((k.start_mark, value) for k, value in pairs if k.value == name), (None, None))


def _stop(node: Any) -> int:
    """The number of the line after a node: remarks there may belong to what follows."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return int(node.end_mark.line + (node.end_mark.column > 0))
