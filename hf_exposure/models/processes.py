"""Several processes that measure together: what they share, and how they stay in step.

Under DDP each process has the whole model, and the work is split. Where the model itself is spread
over the processes (FSDP, ZeRO-3) a forward is one of all of them: the work is split as well, and
whoever is done first goes on making forwards until the last one is done. With tensor parallelism
all processes compute one forward together from one input, so that each does all the work.

An error in one process becomes an error in all of them, and none waits for another for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

_IDLE, _WORKING, _FAILED = 0, 1, 2


class ProcessFailedError(RuntimeError):
    """Another process of the measurement has failed; the message is its error."""


class BrokenForwardError(RuntimeError):
    """A forward that is one of all processes has failed in this one. The others wait within theirs,
    where nothing reaches them; only the end of this process does, so it must not be held back."""


class Processes:
    """The processes of a measurement; one alone if not told otherwise.

    Guarantees:

    - `gather` gives the same list to all processes.
    - Within `together` an error in one process is raised in all, if only as a
      `ProcessFailedError`; but see `BrokenForwardError`. A process that dies is noticed by
      torch.distributed, after its timeout at the latest.
    - In step, all processes make equally many forwards between two calls of `gather`.

    Args:
        number: of this process.
        count: how many there are.
        in_step: whether each forward is one of all processes.

    Attributes:
        forward: makes a small forward, for a process that waits in step; set by whoever has a
            model.
    """

    def __init__(self, number: int = 0, count: int = 1, *, in_step: bool = False) -> None:
        self.number = number
        self.count = count
        self.in_step = in_step and count > 1
        self.forward: Callable[[], None] | None = None
        self._waiting = self._inside = False

    @classmethod
    def of(cls, model: Any, *, split: bool) -> Processes:
        """The processes that have to take part when `model` is run, or may, if `split`.

        Args:
            split: whether all processes of torch.distributed are known to measure now.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        if is_sharded(model):
            return cls(dist.get_rank(), dist.get_world_size(), in_step=True)
        if split and not is_tensor_parallel(model):
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def alone(self) -> bool:
        """Whether there is just one."""
        return self.count == 1

    def part(self, items: list[T]) -> list[T]:
        """This process's share of a list: a block of it, so that neighbours stay together."""
        size, rest = divmod(len(items), self.count)
        begin = self.number * size + min(self.number, rest)
        return items[begin : begin + size + (self.number < rest)]

    def gather(self, value: T) -> list[T]:
        """Every process's value, in their order. All of them have to call it.

        Raises:
            ProcessFailedError: another one has failed instead.
        """
        if self.alone:
            return [value]
        self._wait_in_step()
        return self._exchange(value, None)

    @contextmanager
    def forward_turn(self) -> Iterator[None]:
        """To be held during each forward: in step, begins when all processes make one."""
        if self.in_step and not self._waiting:
            self._turn(_WORKING)
        try:
            yield
        except Exception as error:
            if not self.in_step:
                raise
            raise BrokenForwardError(f"{type(error).__name__}: {error}") from error

    @contextmanager
    def together(self) -> Iterator[None]:
        """What all processes do, up to the end or an error. Within another one it does nothing."""
        if self.alone or self._inside:
            yield
            return
        self._inside = True
        try:
            yield
            self.gather(None)
        except (ProcessFailedError, BrokenForwardError):
            raise
        except Exception as error:
            if self.in_step:
                self._turn(_FAILED, raising=False)
            self._exchange(None, f"{type(error).__name__}: {error}", raising=False)
            raise
        finally:
            self._inside = False

    def _wait_in_step(self) -> None:
        """Make forwards as long as any other process does."""
        if not self.in_step:
            return
        self._waiting = True
        try:
            while self._turn(_IDLE):
                assert self.forward is not None
                self.forward()
        finally:
            self._waiting = False

    def _turn(self, state: int, raising: bool = True) -> bool:
        """Whether any process makes a forward now.

        Raises:
            ProcessFailedError: another one has failed.
        """
        states = torch.tensor(state, device=_device())
        dist.all_reduce(states, op=dist.ReduceOp.MAX)
        if int(states) == _FAILED and raising:
            self._exchange(None, None)  # raises
        return int(states) == _WORKING

    def _exchange(self, value: T, error: str | None, raising: bool = True) -> list[T]:
        everything: list[Any] = [None] * self.count
        dist.all_gather_object(everything, (value, error))
        failed = [(number, said) for number, (_, said) in enumerate(everything) if said is not None]
        if failed and raising:
            number, said = failed[0]
            raise ProcessFailedError(f"process {number} of {self.count} failed: {said}")
        return [one for one, _ in everything]


def is_sharded(model: Any) -> bool:
    """Whether parameters are spread over processes and put together for each forward: FSDP of
    both kinds, or ZeRO-3."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    kinds = (FSDPModule, FullyShardedDataParallel)
    return any(isinstance(module, kinds) for module in model.modules()) or any(
        hasattr(parameter, "ds_id") for parameter in model.parameters()
    )


def is_tensor_parallel(model: Any) -> bool:
    """Whether several processes compute each layer together, from the same input."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _device() -> torch.device:
    """Where collectives of the default group take their tensors from."""
    if "cpu:" not in dist.get_backend_config():
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is not None:
            return torch.device(accelerator.type, torch.accelerator.current_device_index())
    return torch.device("cpu")
