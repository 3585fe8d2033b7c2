"""What a callback needs of the Trainer and no event gives: found among the callers, or watched.

All that leans on how the Trainer is made inside stands here.
"""

from __future__ import annotations

import copy
import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import CallbackHandler

if TYPE_CHECKING:
    from transformers import Trainer


class TokenCounter:
    """Counts the tokens that a model is trained on, by watching its forward passes.

    It changes nothing in what is computed. Under `torch.compile` it counts nothing, so as not to
    have the model compiled again for every count.
    """

    def __init__(self) -> None:
        self.count = 0
        self._handle: Any | None = None

    def attach(self, model: Any) -> None:
        """Begin to count, from 0."""
        self.detach()
        self.count = 0
        self._handle = model.register_forward_pre_hook(self._see, with_kwargs=True)

    def detach(self) -> None:
        """Leave the model as it was; the count stays."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def total(self, device: torch.device) -> int:
        """The sum of all processes' counts. Every process must call it."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.count
        total = torch.tensor(self.count, dtype=torch.int64, device=device)
        torch.distributed.all_reduce(total)
        return int(total.item())

    def _see(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A forward without gradients is one more look at a batch, as some trainers take it.
        if torch.compiler.is_compiling() or not (module.training and torch.is_grad_enabled()):
            return
        ids = kwargs.get("input_ids", kwargs.get("inputs_embeds", args[0] if args else None))
        if isinstance(ids, torch.Tensor):
            self.count += math.prod(ids.shape[:2])


def _callers() -> Iterator[Any]:
    """The objects whose methods are running, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame.f_locals.get("self")
        frame = frame.f_back


def _callbacks(trainer: Any) -> list[TrainerCallback]:
    """A Trainer's callbacks; none of something else."""
    return list(getattr(getattr(trainer, "callback_handler", None), "callbacks", ()))


def stand_first(callback: TrainerCallback, trainer: Trainer | None = None) -> bool:
    """Move a callback to the front of its Trainer's callbacks, before the trackers.

    To be called from an event. The list is the calling handler's, and no argument of an event leads
    to it, so it is looked for among the callers unless `trainer` is given. Moving it while the
    handler goes through its list makes no other callback be left out or called twice.

    Returns:
        Whether it stands there now.
    """
    handler = None if trainer is None else trainer.callback_handler
    if handler is None:
        handlers = (caller for caller in _callers() if isinstance(caller, CallbackHandler))
        handler = next((one for one in handlers if callback in one.callbacks), None)
    if handler is None or callback not in handler.callbacks:
        return False
    if handler.callbacks[0] is not callback:
        handler.callbacks.remove(callback)
        handler.callbacks.insert(0, callback)
    return True


def join_card(
    callback: TrainerCallback, tell: Callable[[Path, int | None], None], trainer: Trainer | None
) -> bool:
    """Let a callback add to its Trainer's model card, whenever one is created or pushed.

    No event tells of a card. So `create_model_card` of that one Trainer, which is looked for among
    the callers unless it is given, is followed by our part: once, however often this is called.

    Args:
        tell: adds to the card at a path, of the weights of a step; None is the latest.

    Returns:
        Whether the Trainer was found.
    """
    if trainer is None:
        makers = (caller for caller in _callers() if hasattr(caller, "create_model_card"))
        trainer = next((one for one in makers if callback in _callbacks(one)), None)
    if trainer is None:
        return False
    found, create = trainer, trainer.create_model_card
    if callback in getattr(create, "followed_by", ()):
        return True

    @functools.wraps(create)
    def create_model_card(*args: Any, **kwargs: Any) -> Any:
        out = create(*args, **kwargs)
        path = Path(found.args.output_dir or ".") / "README.md"
        if found.is_world_process_zero() and path.exists():
            best = found.state.best_global_step if found.args.load_best_model_at_end else None
            tell(path, best)
        return out

    followed = (*getattr(create, "followed_by", ()), callback)
    create_model_card.followed_by = followed  # type: ignore[attr-defined]
    trainer.create_model_card = create_model_card  # type: ignore[method-assign]
    return True


def evaluation_in(logs: Mapping[str, Any]) -> str | None:
    """The prefix of the evaluation whose row this is, by the timings that the Trainer adds."""
    for key, value in logs.items():
        name = key.removesuffix("_runtime")
        # A clock that has not moved gives no rates.
        if name != key and (f"{name}_samples_per_second" in logs or value == 0):
            return name
    return None


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
