"""Training under differential privacy: DP-SGD with Opacus, called as the Trainer is called.

DP-SGD (Abadi et al. 2016, "Deep Learning with Differential Privacy", Algorithm 1) changes three
things in a step of training: each row of the training set is in the batch by a coin of its own
(Poisson sampling), each row's gradient is clipped to a norm, and Gaussian noise is added to their
sum. What it spends is known beforehand: epsilon, at a delta.

`PrivateTrainer` leaves the loop to the Trainer and replaces two public parts of it:
`get_train_dataloader`, which draws the batches, and `training_step`, which leaves the clipped and
noised gradient in `p.grad`, from which a plain optimizer makes its step. So schedules, callbacks,
logging, checkpoints and every optimizer work as always, and nothing but the noised gradient reaches
the weights. Per-sample gradients, clipping, noise and accounting are Opacus'.

That a row's gradient is right, and does not depend on the other rows, is not taken on trust: before
the first step two rows' gradients are compared with those of a plain backward pass for each.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import secrets
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_exposure.reports.cards import add_privacy_to_card
from hf_exposure.training.private.accounting import (
    ACCOUNTANTS,
    noise_for_epsilon,
    opacus,
    spent_epsilon,
)
from hf_exposure.training.private.per_sample import (
    PER_SAMPLE,
    TOLERANCE,
    TOLERANCE_BF16,
    PerSampleGradients,
    rows_of,
)
from hf_exposure.training.private.refusals import refuse
from hf_exposure.training.trainer import evaluation_in
from hf_exposure.utils.files import write_text

PRIVACY_FILE = "privacy.json"  # beside the weights: what they have spent

_HARMLESS = (  # of hooks on an embedding, whose input has no gradient, and under functorch
    "Full backward hook is firing when gradients are computed",
    "In CPU autocast, but the target dtype is not supported",
)


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
            "functorch" (each layer again under `vmap`), or "loop" (one row at a time; the slowest,
            and right for every architecture).
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
    per_sample: str = field(default="hooks", metadata={"help": "hooks, functorch or loop"})
    noise_seed: int | None = field(
        default=None, metadata={"help": "repeatable batches and noise, for experiments only"}
    )

    def __post_init__(self) -> None:
        where = "PrivacyArguments"
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError(
                f"{where}: target_epsilon={self.target_epsilon} and "
                f"noise_multiplier={self.noise_multiplier}; give exactly one of them"
            )
        if self.target_epsilon is not None and not 0 < self.target_epsilon < math.inf:
            raise ValueError(
                f"{where}: target_epsilon={self.target_epsilon} must be above 0 and finite; "
                "noise_multiplier=0 trains without a guarantee"
            )
        if self.noise_multiplier is not None and not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(
                f"{where}: noise_multiplier={self.noise_multiplier} must be 0 or more, and finite"
            )
        if self.delta is not None and not 0 < self.delta < 1:
            raise ValueError(f"{where}: delta={self.delta} must be between 0 and 1")
        if not 0 < self.per_sample_max_grad_norm < math.inf:
            raise ValueError(
                f"{where}: per_sample_max_grad_norm={self.per_sample_max_grad_norm} must be above "
                "0 and finite"
            )
        for name, known in (("accountant", ACCOUNTANTS), ("per_sample", PER_SAMPLE)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{where}: {name}={getattr(self, name)!r} is not known; use one of "
                    f"{', '.join(map(repr, known))}"
                )
        if self.max_physical_batch_size is not None and self.max_physical_batch_size < 1:
            raise ValueError(
                f"{where}: max_physical_batch_size={self.max_physical_batch_size} must be 1 or more"
            )
        if self.noise_seed is not None and self.noise_seed < 0:
            raise ValueError(f"{where}: noise_seed={self.noise_seed} must be 0 or more")


# Which rows


class PoissonBatches(Sampler[list[int]]):
    """Batches that each row is in by a coin of its own, in `parts` parts of about equal size.

    The coins of a step depend on the seed and the number of the step alone, so a training that is
    taken up again goes on as if it had not been interrupted. A part may be empty.

    Args:
        rows: how many rows there are.
        rate: each row's probability.
        steps: batches in an epoch.
        parts: what the Trainer accumulates for one step.
        seed: of the coins.
        first_step: called at the beginning of an epoch: the number of its first step.
    """

    def __init__(
        self,
        rows: int,
        rate: float,
        steps: int,
        parts: int = 1,
        seed: int = 0,
        first_step: Callable[[], int] = lambda: 0,
    ) -> None:
        self.rows, self.rate, self.steps = rows, rate, steps
        self.parts, self.seed, self.first_step = parts, seed, first_step

    def __len__(self) -> int:
        return self.steps * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        first = self.first_step()
        for step in range(first, first + self.steps):
            for part in np.array_split(self.batch(step), self.parts):
                yield part.tolist()

    def batch(self, step: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The rows of one step, in order."""
        # Doubles: single precision would make a rate of 1e-5 wrong by up to half a percent.
        coins = np.random.default_rng([self.seed, step]).random(self.rows)
        return np.flatnonzero(coins < self.rate)


class _Collate:
    """A collator that can also make an empty batch, and sees to it that rows stay rows."""

    def __init__(self, collate: Callable[[list[Any]], Any], rows: Any) -> None:
        self.collate, self.rows = collate, rows

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        batch = self.collate(rows or [self.rows[0]])
        size = max(1, len(rows))
        for name, value in batch.items():
            if isinstance(value, torch.Tensor) and (not value.dim() or len(value) != size):
                raise ValueError(
                    f"PrivateTrainer: the data collator made {name!r} of shape "
                    f"{tuple(value.shape)} of {size} rows; each row must stay a row of the batch, "
                    "so use one that pads, such as DataCollatorForLanguageModeling(tokenizer, "
                    "mlm=False)"
                )
        if "labels" not in batch:
            raise ValueError(
                "PrivateTrainer: the data collator made no 'labels'; use "
                "DataCollatorForLanguageModeling(tokenizer, mlm=False)"
            )
        return {name: rows_of(value, slice(0, len(rows))) for name, value in batch.items()}


# The Trainer


class PrivateTrainer(Trainer):
    """A Trainer whose weights are differentially private: DP-SGD by Opacus.

    Usage:
    ```python
    trainer = PrivateTrainer(
        model=model,
        args=TrainingArguments(..., per_device_train_batch_size=32, gradient_accumulation_steps=8),
        privacy=PrivacyArguments(target_epsilon=8.0),
        train_dataset=rows,
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[ExposureCallback(canaries)],
    )
    trainer.train()
    trainer.epsilon  # at trainer.delta
    ```

    What is protected is a row of `train_dataset`: with packing, a block of tokens. Two data sets
    are neighbours if one has a row that the other lacks. A secret that stands in several rows is
    protected far less, see `accounting.group_epsilon`. The guarantee is about the weights, and all
    that follows from them; the training loss that is logged is computed on the rows without noise.

    It logs `epsilon` with each training loss and `eval_epsilon` with each evaluation. Every saved
    model and checkpoint has a `privacy.json` beside it, from which a training is taken up again.

    Formal guarantees, each of them tested:

    - A batch has each row with the same probability, independently: the rows to be expected are
      `per_device_train_batch_size` times `gradient_accumulation_steps`, by which the noised sum is
      divided. A batch without rows is a step of pure noise.
    - The sum of a step changes by `per_sample_max_grad_norm` at most, in norm, if a row is taken
      away. A row's loss is the mean over its own tokens, whatever else is in the batch.
    - `epsilon` counts every step, those before `resume_from_checkpoint` and of an earlier `train`
      included.
    - Nothing differs in callbacks, evaluation, generation and saving: the model is its own class,
      and takes per-sample gradients in training steps only. Afterwards no trace is left on it.
    - With `noise_seed` a training is repeatable, also in two parts.

    Batches are not clipped as a whole: `args.max_grad_norm` counts as 0. The logged `grad_norm` is
    that of the private gradient.

    Args:
        privacy: how private.
        Everything else: as for `Trainer`. `compute_loss_func` and `model_init` are refused.

    Attributes:
        epsilon: what has been spent so far, at `delta`.
        delta, noise_multiplier, sampling_rate, expected_batch_size: of this training.
        spent: (noise multiplier, sampling rate, steps) of each stretch so far.

    Raises:
        ImportError: Opacus is not installed.
        ValueError: something cannot be trained so; when it begins to train, a parameter whose
            per-sample gradients would be wrong.
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        *,
        privacy: PrivacyArguments,
        **kwargs: Any,
    ) -> None:
        if not isinstance(privacy, PrivacyArguments):
            raise TypeError(
                "PrivateTrainer: privacy must be a PrivacyArguments object, such as "
                f"PrivacyArguments(target_epsilon=8.0), not {type(privacy).__name__}"
            )
        opacus("optimizers")
        refuse(type(self), PrivateTrainer, model, args, train_dataset, kwargs)
        assert args is not None
        args = copy.copy(args)
        args.max_grad_norm = 0.0  # rows are clipped, not batches
        self.privacy = privacy
        self.sampling_rate, self.delta = _rate_and_delta(args, privacy, len(train_dataset))
        self.rows = len(train_dataset)
        self.expected_batch_size = _expected(args)
        self._accountant = opacus("accountants").create_accountant(mechanism=privacy.accountant)
        self._seeds = _seeds(privacy.noise_seed)
        self._gradients: PerSampleGradients | None = None
        self._to_skip = 0  # steps of the epoch that were taken before it was interrupted
        self._losses: tuple[float, int] = (0.0, 0)  # their sum in this step, and of how many rows
        self._last_loss = 0.0
        super().__init__(model, args, data_collator, train_dataset, **kwargs)
        self.noise_multiplier = self._planned_noise()

    # What is spent

    @property
    def spent(self) -> list[tuple[float, float, int]]:
        """(noise multiplier, sampling rate, steps) of each stretch so far."""
        return [(float(s), float(q), int(n)) for s, q, n in self._accountant.history]

    @property
    def epsilon(self) -> float:
        """What has been spent so far, at `delta`: 0 before training, infinite without noise."""
        return spent_epsilon(self.spent, self.delta, self.privacy.accountant)

    @property
    def private_steps(self) -> int:
        """Steps taken so far, earlier parts of the training included."""
        return sum(steps for _, _, steps in self.spent)

    def _planned_noise(self, taken: int = 0) -> float:
        """The noise for the whole training, or for the rest of it."""
        privacy = self.privacy
        if privacy.noise_multiplier is not None:
            return privacy.noise_multiplier
        assert privacy.target_epsilon is not None
        steps = _planned_steps(self.args, self.rows) - taken
        last = self.spent[-1][0] if self.spent else 0.0
        ahead = [*self.spent, (last, self.sampling_rate, max(0, steps))]
        if last and spent_epsilon(ahead, self.delta, privacy.accountant) <= privacy.target_epsilon:
            return last  # as planned before the interruption
        return noise_for_epsilon(
            privacy.target_epsilon,
            self.delta,
            self.sampling_rate,
            max(1, steps),
            privacy.accountant,
            self.spent,
        )

    # Parts of the Trainer that are replaced

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train as `Trainer.train` does, with the same arguments.

        Raises:
            ValueError: the model, the optimizer or the checkpoint cannot be used, or
                `target_epsilon` was spent by an earlier call.
        """
        if resume_from_checkpoint:
            resume_from_checkpoint = self._take_up(resume_from_checkpoint)
        else:
            if self.spent and self.privacy.target_epsilon is not None:
                raise ValueError(
                    f"PrivateTrainer.train: target_epsilon={self.privacy.target_epsilon} was for "
                    f"one training, and {self.epsilon:.4g} is spent already; set "
                    "noise_multiplier= to go on, or max_steps= for a longer training"
                )
            self._to_skip = 0
        self._losses = (0.0, 0)
        try:
            with warnings.catch_warnings():
                for message in _HARMLESS:
                    warnings.filterwarnings("ignore", message=message)
                return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            if self._gradients is not None:
                self._gradients.detach()
                self._gradients = None
            model: Any = self.model
            model.zero_grad(set_to_none=True)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Poisson batches of the training rows, in as many parts as steps are accumulated."""
        plain = super().get_train_dataloader()
        rows = self.rows
        parts = self.args.gradient_accumulation_steps
        batches = PoissonBatches(
            rows,
            self.sampling_rate,
            _steps_per_epoch(self.args, rows),
            parts,
            self._seeds[0],
            self._first_step,
        )
        # Not handed to accelerate, which would share batches out or fill them up.
        return DataLoader(
            plain.dataset,
            batch_sampler=batches,
            collate_fn=_Collate(plain.collate_fn, plain.dataset),
            num_workers=plain.num_workers,
            pin_memory=plain.pin_memory,
            worker_init_fn=plain.worker_init_fn,
            multiprocessing_context=plain.multiprocessing_context,
            prefetch_factor=plain.prefetch_factor,
            persistent_workers=plain.persistent_workers,
        )

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Add a part's clipped gradients; with the last part of a step, the noise too.

        Returns:
            The mean loss of the step's rows in nats with its last part, and 0 before; that of the
            step before if there were no rows.
        """
        model.train()
        to_training = getattr(self.optimizer, "train", None)  # of schedule-free optimizers
        if callable(to_training):
            to_training()
        gradients = self._prepared(model)
        inputs = self._prepare_inputs(inputs)
        rows = len(inputs["labels"])
        most = self.privacy.max_physical_batch_size or self.args.per_device_train_batch_size
        pieces = math.ceil(rows / most)
        losses = 0.0
        for piece in np.array_split(np.arange(rows), pieces) if pieces else []:
            which = slice(int(piece[0]), int(piece[-1]) + 1)
            losses += gradients.add({n: rows_of(v, which) for n, v in inputs.items()})
        self._losses = (self._losses[0] + losses, self._losses[1] + rows)
        if not self.accelerator.sync_gradients:
            return torch.tensor(0.0, device=self.args.device)
        gradients.finish(self.noise_multiplier, self.expected_batch_size, self.private_steps)
        self._accountant.step(
            noise_multiplier=self.noise_multiplier, sample_rate=self.sampling_rate
        )
        total, count = self._losses
        self._losses = (0.0, 0)
        self._last_loss = total / count if count else self._last_loss
        return torch.tensor(self._last_loss, device=self.args.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `Trainer.log` does, with what has been spent."""
        name = evaluation_in(logs)
        if name is not None:
            logs[f"{name}_epsilon"] = self.epsilon
        elif "loss" in logs:
            logs["epsilon"] = self.epsilon
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `Trainer.save_model` does, with what the model has spent beside it."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir or ".")
            write_text(folder / PRIVACY_FILE, json.dumps(self.privacy_statement(), indent=2) + "\n")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As `Trainer` does it, and with what the training has spent."""
        super().create_model_card(*args, **kwargs)
        path = Path(self.args.output_dir or ".") / "README.md"
        if self.is_world_process_zero() and path.exists():
            try:
                add_privacy_to_card(path, self.privacy_statement())
            except (OSError, ValueError) as error:
                warnings.warn(
                    f"PrivateTrainer: the model card says nothing of privacy: {error}",
                    stacklevel=2,
                )

    def privacy_statement(self) -> dict[str, Any]:
        """What the model has spent and of what, as it is written beside every saved model."""
        epsilon = self.epsilon
        return {
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "delta": self.delta,
            "unit": "one row of the training set, added or removed",
            "rows": self.rows,
            "accountant": self.privacy.accountant,
            "per_sample_max_grad_norm": self.privacy.per_sample_max_grad_norm,
            "noise_can_be_repeated": self.privacy.noise_seed is not None,
            "steps": [
                {"noise_multiplier": noise, "sampling_rate": rate, "steps": steps}
                for noise, rate, steps in self.spent
            ],
        }

    # Inner parts

    def _first_step(self) -> int:
        first = self.private_steps - self._to_skip
        self._to_skip = 0
        return first

    def _prepared(self, model: Any) -> PerSampleGradients:
        """The gradients, made at the first step of a training, when all is in its place."""
        if self._gradients is None:
            loader: Any = self.callback_handler.train_dataloader
            data, collate = loader.dataset, loader.collate_fn
            rows = self._prepare_inputs(collate([data[i] for i in range(min(2, len(data)))]))
            gradients = PerSampleGradients(
                model,
                self.model,
                self.optimizer,
                self.privacy.per_sample_max_grad_norm,
                self.privacy.per_sample,
                self._seeds[1],
            )
            self._gradients = gradients
            gradients.attach(rows, TOLERANCE_BF16 if self.args.bf16 else TOLERANCE)
        return self._gradients

    def _take_up(self, checkpoint: str | bool) -> str:
        """Restore what was spent until a checkpoint, and go on from there."""
        where = "PrivateTrainer.train: resume_from_checkpoint"
        folder = (
            get_last_checkpoint(str(self.args.output_dir)) if checkpoint is True else checkpoint
        )
        if not folder:
            raise ValueError(f"{where}=True, but {str(self.args.output_dir)!r} has no checkpoint")
        path = Path(str(folder)) / PRIVACY_FILE
        if not path.exists():
            raise ValueError(
                f"{where}={str(folder)!r} has no {PRIVACY_FILE}, so what it has spent is not "
                "known; take one that PrivateTrainer saved, or begin anew"
            )
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["rows"] != self.rows:
            raise ValueError(
                f"{where}={str(folder)!r} was trained on {stored['rows']} rows, and train_dataset "
                f"has {self.rows}; give the same rows"
            )
        self._accountant.history = [
            (entry["noise_multiplier"], entry["sampling_rate"], entry["steps"])
            for entry in stored["steps"]
        ]
        state = json.loads((Path(str(folder)) / "trainer_state.json").read_text(encoding="utf-8"))
        taken, per_epoch = state["global_step"], _steps_per_epoch(self.args, stored["rows"])
        self._to_skip = 0 if self.args.ignore_data_skip else taken % per_epoch
        self.noise_multiplier = self._planned_noise(taken)
        return str(folder)


def _expected(args: TrainingArguments) -> int:
    return int(args.per_device_train_batch_size * args.gradient_accumulation_steps)


def _rate_and_delta(
    args: TrainingArguments, privacy: PrivacyArguments, rows: int
) -> tuple[float, float]:
    expected = _expected(args)
    if expected > rows:
        raise ValueError(
            f"PrivateTrainer: a batch of {expected} rows (per_device_train_batch_size times "
            f"gradient_accumulation_steps) of the {rows} in train_dataset is more than all; "
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


def _steps_per_epoch(args: TrainingArguments, rows: int) -> int:
    """As many as the Trainer would take."""
    size = args.per_device_train_batch_size
    batches = rows // size if args.dataloader_drop_last else math.ceil(rows / size)
    return max(1, math.ceil(batches / args.gradient_accumulation_steps))


def _planned_steps(args: TrainingArguments, rows: int) -> int:
    if args.max_steps > 0:
        return int(args.max_steps)
    return math.ceil(args.num_train_epochs * _steps_per_epoch(args, rows))


def _seeds(seed: int | None) -> tuple[int, int]:
    """Of the batches, and of the noise: two numbers that tell nothing of each other."""
    entropy = secrets.token_bytes(32) if seed is None else str(seed).encode()
    batches, noise = (hashlib.sha256(name + entropy).digest()[:16] for name in (b"rows", b"noise"))
    return int.from_bytes(batches, "big"), int.from_bytes(noise, "big")
