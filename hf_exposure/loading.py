"""Models and data by path or Hub id, as the command line gets them."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_exposure.canaries import Canaries
from hf_exposure.files import load_json

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
    gguf_file: str | None = None,
    argument: str = "--model",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer.

    Args:
        name: a folder, or an id on the Hub.
        tokenizer: where the tokenizer is if not with the model.
        revision: a branch, tag or commit of the model on the Hub.
        device: such as "cuda:0"; None takes a GPU if there is one. "auto" spreads the model over
            all devices.
        dtype: such as "bfloat16"; "auto" takes the one that it was saved in.
        gguf_file: a file of quantized weights in the folder.
        argument: what `name` is called in errors.

    Raises:
        OSError: there is no such model or tokenizer; the message names it.
        ValueError: it is no causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    check_model_name(name, argument)
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"--dtype: {dtype!r} is not known; use auto, float32, bfloat16 or float16")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "auto":
        try:
            torch.zeros(1, device=where)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"--device: {where!r} cannot be used here: {_reason(error)}; leave it out to take "
                "what is there"
            ) from error
    spread = {"device_map": "auto"} if device == "auto" else {}
    weights = {"gguf_file": gguf_file} if gguf_file else {}
    if tokenizer is not None:
        tok = load_tokenizer(tokenizer)
    else:
        try:
            tok = _tokenizer(name, revision=revision, **weights)
        except Exception as error:
            raise OSError(
                f"{argument}: no tokenizer can be loaded from {name!r}{_nearby(name)}; save it "
                f"with the model, or give --tokenizer: {_reason(error)}"
            ) from error
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, dtype=dtype, **spread, **weights
        )
    except Exception as error:
        raise OSError(
            f"{argument}: no causal language model can be loaded from {name!r}{_nearby(name)}: "
            f"{_reason(error)}"
        ) from error
    if device != "auto":
        torch.nn.Module.to(model, where)
    return model, tok


def check_model_name(name: str, argument: str = "--model") -> None:
    """Refuse the name of a folder that is not there.

    Raises:
        OSError: see above; what may be an id on the Hub is not looked for.
    """
    if _looks_like_a_path(name) and not Path(name).is_dir():
        raise OSError(f"{argument}: there is no folder {name!r}; give one that is, or a Hub id")


def load_tokenizer(name: str, argument: str = "--tokenizer") -> PreTrainedTokenizerBase:
    """A tokenizer by folder or Hub id.

    Args:
        argument: what `name` is called in errors.

    Raises:
        OSError: there is none; the message names it.
    """
    check_model_name(name, argument)
    try:
        return _tokenizer(name)
    except Exception as error:
        raise OSError(
            f"{argument}: no tokenizer can be loaded from {name!r}{_nearby(name)}; give the folder "
            f"that it was saved in, or its Hub id: {_reason(error)}"
        ) from error


def _tokenizer(name: str, **options: Any) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, **options)


def load_canaries(name: str, revision: str | None = None, argument: str = "--canaries") -> Canaries:
    """A canary set: the manifest that `Canaries.save` wrote, or an id on the Hub.

    Args:
        revision: a branch, tag or commit on the Hub.
        argument: what it is called in errors.

    Raises:
        OSError: there is no such file.
        ValueError: it is no manifest, or a file has got a revision.
        RuntimeError: the Hub could not be reached, has refused, or has no such set.
    """
    if Path(name).exists() or not is_hub_id(name):
        if revision is not None:
            raise ValueError(
                f"{argument}: {name!r} is a file, which has no revisions; leave out the revision"
            )
        return load_manifest(name, argument)
    from hf_exposure.hub import load_canaries as from_hub

    try:
        return from_hub(name, revision=revision)
    except RuntimeError as error:
        raise RuntimeError(f"{argument}: {error}{_nearby(name, 'file')}") from None


def load_manifest(name: str | os.PathLike[str], argument: str = "--canaries") -> Canaries:
    """A canary set from its manifest.

    Raises:
        OSError, ValueError: see `load_canaries`.
    """
    wanted = "the manifest that `hf-exposure inject` or Canaries.save has written"
    return load_json(name, Canaries.from_dict, argument, wanted)


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a canary set on the Hub: an owner's name, "/", and its own."""
    return re.fullmatch(r"[A-Za-z][\w.-]*/\w[\w.-]*(?<!\.json)", name, re.ASCII) is not None


def _reason(error: BaseException) -> str:
    """The first line of what a library says, which often goes on at length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(":") if lines else type(error).__name__


def _nearby(name: str, what: str = "folder") -> str:
    """Whether a name was meant as a folder: said where it was not found."""
    return "" if Path(name).exists() else f" (no {what} here, so it was looked for on the Hub)"


def load_rows(name: str, *, config: str | None = None, split: str = "train") -> Dataset:
    """A split of a dataset: a file (.jsonl, .csv, .parquet, .txt), a folder that `save_to_disk`
    wrote, or an id on the Hub.

    Raises:
        OSError, ValueError: it is not there, or has no such split.
    """
    from datasets import DatasetDict, load_from_disk

    path = Path(name)
    if path.suffix in _READERS:
        if not path.is_file():
            raise OSError(f"--dataset: there is no file {name!r}")
        if split != "train":
            raise ValueError(f"--split: a file such as {name!r} has no splits; leave it out")
        if path.stat().st_size == 0:
            raise ValueError(f"--dataset: the file {name!r} is empty")
        return _read(name, _READERS[path.suffix], data_files=str(path), split="train")
    if path.is_file():
        raise ValueError(
            f"--dataset: {name!r} ends in none of {', '.join(_READERS)}, so it is not known how to "
            "read it; rename it"
        )
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
    return _read(name, name, config, split=split)


def _read(name: str, *arguments: Any, **options: Any) -> Dataset:
    """`load_dataset`, with one line if it fails."""
    from datasets import load_dataset

    try:
        return load_dataset(*arguments, **options)
    except Exception as error:
        inner = error.__cause__ or error.__context__ or error
        raise OSError(
            f"--dataset: {name!r}{_nearby(name)} cannot be read: {_reason(inner)}"
        ) from error


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


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice of the libraries on the way; afterwards as it was."""
    import datasets
    import transformers

    verbosity = transformers.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    data_bars = not datasets.are_progress_bars_disabled()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.utils.logging.enable_progress_bar()
        if data_bars:
            datasets.enable_progress_bars()
