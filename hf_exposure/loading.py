"""Models and data by path or Hub id, as the command line gets them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_READERS = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
_WRITERS = {".jsonl": "to_json", ".json": "to_json", ".csv": "to_csv", ".parquet": "to_parquet"}


def load_model(
    name: str,
    *,
    tokenizer: str | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer.

    Args:
        name: a folder, or an id on the Hub.
        tokenizer: where the tokenizer is if not with the model.
        revision: a branch, tag or commit on the Hub.
        device: such as "cuda:0"; None takes a GPU if there is one. "auto" spreads the model over
            all devices.
        dtype: such as "bfloat16"; "auto" takes the one that it was saved in.

    Raises:
        OSError: there is no such model or tokenizer; the message names it.
        ValueError: it is no causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if _looks_like_a_path(name) and not Path(name).is_dir():
        raise OSError(f"--model: there is no folder {name!r}; give a model's folder or its Hub id")
    spread = {"device_map": "auto"} if device == "auto" else {}
    try:
        tok = AutoTokenizer.from_pretrained(tokenizer or name, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, dtype=dtype, **spread
        )
    except (OSError, ValueError) as error:
        # The libraries explain at length; the first sentence says what is missing.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(f"--model: {name!r} cannot be loaded: {reason}") from error
    if not spread:
        torch.nn.Module.to(model, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model, tok


def load_rows(name: str, *, config: str | None = None, split: str = "train") -> Dataset:
    """A split of a dataset: a file (.jsonl, .csv, .parquet, .txt), a folder that `save_to_disk`
    wrote, or an id on the Hub.

    Raises:
        OSError, ValueError: it is not there, or has no such split.
    """
    from datasets import DatasetDict, load_dataset, load_from_disk

    path = Path(name)
    if path.suffix in _READERS:
        if not path.is_file():
            raise OSError(f"--dataset: there is no file {name!r}")
        return load_dataset(_READERS[path.suffix], data_files=str(path), split="train")
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        rows = load_from_disk(name)
        if not isinstance(rows, DatasetDict):
            return rows
        if split not in rows:
            raise ValueError(f"--split: {name!r} has no split {split!r}, only {list(rows)}")
        return rows[split]
    if _looks_like_a_path(name) and not path.is_dir():
        raise OSError(
            f"--dataset: there is no file or folder {name!r}; give a .jsonl, .csv, .parquet or "
            ".txt file, a folder that save_to_disk wrote, or a Hub id"
        )
    try:
        return load_dataset(name, config, split=split)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(f"--dataset: {name!r} cannot be loaded: {reason}") from error


def check_output(target: str | os.PathLike[str]) -> None:
    """Refuse a place that `save_rows` could not write to.

    Raises:
        ValueError: the ending is not known.
        FileExistsError: the folder is there already.
    """
    path = Path(target)
    if path.suffix and path.suffix not in _WRITERS:
        raise ValueError(
            f"--output: {os.fspath(target)!r} ends in {path.suffix!r}; use one of "
            f"{', '.join(_WRITERS)}, or the name of a folder"
        )
    if not path.suffix and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"--output: {os.fspath(target)!r} is there already; name another one")


def save_rows(rows: Dataset, target: str | os.PathLike[str]) -> Path:
    """Write a dataset to a .jsonl, .csv or .parquet file, or a new folder; whole or not at all.

    Raises:
        ValueError, FileExistsError: see `check_output`.
    """
    check_output(target)
    path = Path(target)
    writer = _WRITERS.get(path.suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        made = Path(folder) / path.name
        if writer is None:
            rows.save_to_disk(str(made))
            if path.exists():
                path.rmdir()
            shutil.move(made, path)
        else:
            getattr(rows, writer)(str(made))
            os.replace(made, path)
    return path


def _looks_like_a_path(name: str) -> bool:
    """Whether a name cannot be a Hub id, which is one or two words with one slash between."""
    return name.startswith((".", "/", "~", os.sep)) or name.count("/") > 1 or "\\" in name


def describe_rows(rows: Any) -> str:
    """The size of a dataset in words."""
    return f"{len(rows):,} rows with the columns {', '.join(rows.column_names)}"
