"""Models and tokenizers by path or Hub id, as the command line gets them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_exposure.utils.checks import check_path
from hf_exposure.utils.names import first_line, looks_like_a_path, nearby
from hf_exposure.utils.typed import typed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@typed
def load_model(
    name: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    gguf_file: str | None = None,
    argument: str = "load_model: name",
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

    name = os.fspath(name)
    tokenizer = None if tokenizer is None else os.fspath(tokenizer)
    check_model_name(name, argument)
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(
            f"load_model: dtype={dtype!r} is not known; use auto, float32, bfloat16 or float16"
        )
    if revision is not None and Path(name).is_dir():
        raise ValueError(
            f"load_model: revision={revision!r}, but {name!r} is a folder, which has no revisions; "
            "leave it out"
        )
    where = device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "auto":
        try:
            torch.zeros(1, device=where)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"load_model: device={where!r} cannot be used here: {first_line(error)}; leave "
                "it out to take what is there"
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
                f"{argument}: no tokenizer can be loaded from {name!r}{nearby(name)}; save it "
                f"with the model, or say where it is with tokenizer=: {first_line(error)}"
            ) from error
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, dtype=dtype, **spread, **weights
        )
    except Exception as error:
        raise OSError(
            f"{argument}: no causal language model can be loaded from {name!r}{nearby(name)}: "
            f"{first_line(error)}"
        ) from error
    if device != "auto":
        torch.nn.Module.to(model, where)
    return model, tok


def check_model_name(name: str, argument: str) -> None:
    """Refuse the name of a folder that is not there.

    Raises:
        OSError: see above; what may be an id on the Hub is not looked for.
    """
    check_path(argument, name)
    if looks_like_a_path(name) and not Path(name).is_dir():
        raise OSError(f"{argument}: there is no folder {name!r}; give one that is, or a Hub id")


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer by folder or Hub id.

    Raises:
        OSError: there is none; the message names it.
    """
    argument = "load_model: tokenizer"
    check_model_name(name, argument)
    try:
        return _tokenizer(name)
    except Exception as error:
        raise OSError(
            f"{argument}: no tokenizer can be loaded from {name!r}{nearby(name)}; give the folder "
            f"that it was saved in, or its Hub id: {first_line(error)}"
        ) from error


def _tokenizer(name: str, **options: Any) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, **options)


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
