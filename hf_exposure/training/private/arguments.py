"""How private a training is to be, and what follows from that for its steps."""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_exposure.training.private.accounting import ACCOUNTANTS
from hf_exposure.training.private.per_sample import PER_SAMPLE
from hf_exposure.utils.checks import check_choice, check_count, check_number, check_share, digits
from hf_exposure.utils.typed import typed


@typed
@dataclass(frozen=True)
class PrivacyArguments:
    """How private the training is to be.

    Usable with `HfArgumentParser` beside `TrainingArguments`.

    Args:
        target_epsilon: choose the least noise with which the whole training spends no more.
        noise_multiplier: or the noise itself: its standard deviation in the sum of the gradients,
            divided by `per_sample_max_grad_norm`. 0 clips only, and epsilon is infinite.
        delta: of (epsilon, delta). None is 1 / (10 n) for n rows; 1 / n or more is refused, since
            publishing one row at random would be within it.
        per_sample_max_grad_norm: to what the norm of each row's gradient is clipped.
        accountant: "rdp" (Renyi divergences; always holds, fast) or "prv" (privacy random
            variables; a tenth or so tighter; where epsilon is above 50 it gives what "rdp" gives).
        max_physical_batch_size: how many rows go through the model at once, which bounds the
            memory: that many gradients are held at once. None is `per_device_train_batch_size`.
        per_sample: how a row's gradient is taken: "hooks" (layer by layer, the fastest),
            "functorch" (each layer again under `vmap`), "ghost" (only its norm, then one sum over
            rows, Opacus' fast gradient clipping: two backward passes, and the memory of a plain
            training; not for tied embeddings), or "loop" (one row at a time; the slowest, and right
            for every architecture). Models with LSTM or GRU layers always loop.
        noise_seed: makes batches and noise repeatable, and void as a guarantee against those who
            know it; None takes it from the operating system.

    Raises:
        ValueError: an argument is out of range, or not exactly one of `target_epsilon` and
            `noise_multiplier` is given.
    """

    target_epsilon: float | None = field(
        default=None, metadata={"help": "epsilon that the whole training may spend"}
    )
    noise_multiplier: float | None = field(
        default=None, metadata={"help": "noise, in units of per_sample_max_grad_norm"}
    )
    delta: float | None = field(default=None, metadata={"help": "of (epsilon, delta)"})
    per_sample_max_grad_norm: float = field(
        default=1.0, metadata={"help": "norm to which the gradient of each row is clipped"}
    )
    accountant: str = field(default="rdp", metadata={"help": "rdp or prv"})
    max_physical_batch_size: int | None = field(
        default=None, metadata={"help": "rows that go through the model at once"}
    )
    per_sample: str = field(default="hooks", metadata={"help": "hooks, functorch, ghost or loop"})
    noise_seed: int | None = field(
        default=None, metadata={"help": "repeatable batches and noise, for experiments only"}
    )

    def __post_init__(self) -> None:
        where = "PrivacyArguments: "
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError(
                f"{where}target_epsilon={digits(self.target_epsilon)} and "
                f"noise_multiplier={digits(self.noise_multiplier)}; give exactly one of them"
            )
        if self.target_epsilon is not None:
            check_number(f"{where}target_epsilon", self.target_epsilon, 0, math.inf, open_ends=True)
        if self.noise_multiplier is not None and self.noise_multiplier != 0:
            name = f"{where}noise_multiplier"
            check_number(name, self.noise_multiplier, 0, math.inf, open_ends=True)
        if self.delta is not None:
            check_share(f"{where}delta", self.delta)
        norm = self.per_sample_max_grad_norm
        check_number(f"{where}per_sample_max_grad_norm", norm, 0, math.inf, open_ends=True)
        check_choice(f"{where}accountant", self.accountant, ACCOUNTANTS)
        check_choice(f"{where}per_sample", self.per_sample, PER_SAMPLE)
        if self.max_physical_batch_size is not None:
            check_count(f"{where}max_physical_batch_size", self.max_physical_batch_size, 1)
        if self.noise_seed is not None:
            check_count(f"{where}noise_seed", self.noise_seed)


def expected_batch_size(args: TrainingArguments) -> int:
    """Rows of a step, on average."""
    own = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return int(own * args.world_size)


def rate_and_delta(
    args: TrainingArguments, privacy: PrivacyArguments, rows: int
) -> tuple[float, float]:
    """Each row's probability in a step, and the delta, for so many rows."""
    expected = expected_batch_size(args)
    if expected > rows:
        raise ValueError(
            f"PrivateTrainer: a batch of {expected} rows (per_device_train_batch_size times "
            f"gradient_accumulation_steps and processes) of the {rows} in train_dataset is more "
            "than all; "
            "lower one of them"
        )
    delta = 1 / (10 * rows) if privacy.delta is None else privacy.delta
    if delta >= 1 / rows:
        raise ValueError(
            f"PrivateTrainer: delta={delta} is 1 / {rows} or more, for the {rows} rows of "
            "train_dataset: publishing one of them would be within it; give a smaller one, such "
            f"as {1 / (10 * rows):.2g}"
        )
    return expected / rows, delta


def steps_per_epoch(args: TrainingArguments, rows: int) -> int:
    """As many as the Trainer would take."""
    size = int(args.per_device_train_batch_size * args.world_size)
    batches = rows // size if args.dataloader_drop_last else math.ceil(rows / size)
    return max(1, math.ceil(batches / args.gradient_accumulation_steps))


def planned_steps(args: TrainingArguments, rows: int) -> int:
    """Steps of the whole training."""
    if args.max_steps > 0:
        return int(args.max_steps)
    return math.ceil(args.num_train_epochs * steps_per_epoch(args, rows))


def seeds_of(seed: int | None) -> tuple[int, int]:
    """Of the batches, and of the noise: two numbers that tell nothing of each other."""
    entropy = secrets.token_bytes(32) if seed is None else str(seed).encode()
    batches, noise = (hashlib.sha256(name + entropy).digest()[:16] for name in (b"rows", b"noise"))
    return int.from_bytes(batches, "big"), int.from_bytes(noise, "big")
