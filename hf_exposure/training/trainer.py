"""What a callback needs of the Trainer and no event gives.

All that leans on how the Trainer is made inside stands here.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import TrainerState


def find_trainer(callback: TrainerCallback) -> Any | None:
    """The Trainer that is calling a callback's event; None if it cannot be found.

    Events get nothing that leads to the Trainer, so this looks for it among the callers. It is the
    only place that does, and not needed where `ExposureCallback` was given `trainer=`.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if callback in getattr(getattr(caller, "callback_handler", None), "callbacks", ()):
            return caller
        frame = frame.f_back
    return None


def stand_first(callback: TrainerCallback, trainer: Any) -> None:
    """Move a callback to the front of its Trainer's callbacks, before the trackers.

    A row's dictionary goes from one callback to the next, so a tracker shows only what was in it
    before. Moving one while the Trainer goes through its list makes no other callback be left out
    or called twice.
    """
    callbacks = trainer.callback_handler.callbacks
    if callbacks[0] is not callback:
        callbacks.remove(callback)
        callbacks.insert(0, callback)


def follow(
    trainer: Any, method: str, callback: TrainerCallback, then: Callable[[bool, Any], None]
) -> None:
    """Call `then` after a method of that one Trainer, once however often this is called.

    No event tells of a model card, nor of a training that ends with an error, nor of the end of an
    upload.

    Args:
        then: gets whether the method has returned, and what; otherwise an error is passing through.
    """
    plain = getattr(trainer, method)
    followers = getattr(plain, "followers", ())
    if callback in followers:
        return

    @functools.wraps(plain)
    def followed(*args: Any, **kwargs: Any) -> Any:
        returned, out = False, None
        try:
            out = plain(*args, **kwargs)
            returned = True
        finally:
            then(returned, out)
        return out

    followed.followers = (*followers, callback)  # type: ignore[attr-defined]
    setattr(trainer, method, followed)


def evaluation_in(logs: Mapping[str, Any]) -> str | None:
    """The prefix of the evaluation whose row this is, by the timings that the Trainer adds."""
    for key, value in logs.items():
        name = key.removesuffix("_runtime")
        # A clock that has not moved gives no rates.
        if name != key and (f"{name}_samples_per_second" in logs or value == 0):
            return name
    return None


def add_to_row(figures: dict[str, float], logs: dict[str, Any], state: TrainerState) -> None:
    """Add figures to the row that is being logged, of which the log's history has a copy."""
    row = state.log_history[-1] if state.log_history else {}
    if row.get("step") == state.global_step and row.keys() >= logs.keys():
        row.update(figures)
    logs.update(figures)


def find_tokenizer(
    processing_class: Any, argument: str = "processing_class"
) -> PreTrainedTokenizerBase:
    """The tokenizer of a Trainer's `processing_class`, which may be a processor.

    Raises:
        ValueError: it has none.
    """
    for found in (processing_class, getattr(processing_class, "tokenizer", None)):
        if isinstance(found, PreTrainedTokenizerBase):
            template = getattr(processing_class, "chat_template", None)
            if template is not None and found.chat_template is None:
                # Processors may keep it to themselves; the training renders with it.
                found = copy.copy(found)
                found.chat_template = template
            return found
    given = "None" if processing_class is None else f"a {type(processing_class).__name__}"
    raise ValueError(
        f"ExposureCallback: it needs the tokenizer of the training data, and {argument} is "
        f"{given}; use Trainer(processing_class=tokenizer) or ExposureCallback(canaries, tokenizer)"
    )
