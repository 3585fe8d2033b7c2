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

A row is collated alone and goes through the model only with rows of the same shape, so that it is
never padded for the sake of others. That its gradient is right is not taken on trust either: before
the first step the gradients of rows of different lengths, in a batch, are compared with those of a
plain backward pass for each.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_exposure.reports.cards import add_privacy_to_card
from hf_exposure.training.keeping import STATE_FILE
from hf_exposure.training.private.accounting import opacus, spent_epsilon
from hf_exposure.training.private.arguments import (
    PrivacyArguments,
    expected_batch_size,
    planned_steps,
    rate_and_delta,
    seeds_of,
    steps_per_epoch,
)
from hf_exposure.training.private.batches import Alone, Collate, PoissonBatches, groups
from hf_exposure.training.private.comparing import (
    TOLERANCE,
    TOLERANCE_BF16,
    compare,
    rows_to_compare,
)
from hf_exposure.training.private.per_sample import PerSampleGradients
from hf_exposure.training.private.refusals import refuse, refuse_model
from hf_exposure.training.private.spending import (
    PRIVACY_FILE,
    check_step,
    noise_for_rest,
    read_spent,
    statement_of,
)
from hf_exposure.training.trainer import evaluation_in
from hf_exposure.utils.checks import check_type, kind_of
from hf_exposure.utils.files import write_text
from hf_exposure.utils.warn import warn

_HARMLESS = (  # of hooks on an embedding, whose input has no gradient, and under functorch
    "Full backward hook is firing when gradients are computed",
    "In CPU autocast, but the target dtype is not supported",
)


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
    protected far less, see `group_epsilon`. The guarantee is about the weights, and all
    that follows from them; the training loss that is logged is computed on the rows without noise.

    It logs `epsilon` with each training loss and `eval_epsilon` with each evaluation. Every saved
    model and checkpoint has a `privacy.json` beside it, from which a training is taken up again.

    Formal guarantees, each of them tested:

    - A batch has each row with the same probability, independently: the rows to be expected are
      `per_device_train_batch_size` times `gradient_accumulation_steps` times the processes, by
      which the noised sum is divided. A batch without rows is a step of pure noise.
    - The sum of a step changes by `per_sample_max_grad_norm` at most, in norm, if a row is taken
      away. A row's loss is the mean over its own tokens, and its gradient is what it is alone:
      the collator is given one row at a time, and no row is padded because of another.
    - Several processes (DDP) share out each batch, and the noise is in the sum once.
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
        wanted = "a PrivacyArguments object, such as PrivacyArguments(target_epsilon=8.0)"
        check_type("PrivateTrainer: privacy", privacy, PrivacyArguments, wanted)
        if data_collator is not None and not callable(data_collator):
            raise TypeError(
                f"PrivateTrainer: data_collator must be a function, not {kind_of(data_collator)}"
            )
        opacus("optimizers")
        refuse(type(self), PrivateTrainer, model, args, train_dataset, kwargs, privacy.per_sample)
        assert args is not None
        args = copy.copy(args)
        args.max_grad_norm = 0.0  # rows are clipped, not batches
        self.privacy = privacy
        self.sampling_rate, self.delta = rate_and_delta(args, privacy, len(train_dataset))
        self.rows = len(train_dataset)
        self.expected_batch_size = expected_batch_size(args)
        self._accountant = opacus("accountants").create_accountant(mechanism=privacy.accountant)
        self._gradients: PerSampleGradients | None = None
        self._to_skip = 0  # steps of the epoch that were taken before it was interrupted
        self._losses = torch.zeros(2)  # their sum in this step, and of how many rows
        self._last_loss = 0.0
        super().__init__(model, args, data_collator, train_dataset, **kwargs)
        # Of one process for all: they share batches and noise.
        (self._seeds,) = broadcast_object_list([seeds_of(privacy.noise_seed)])
        self._plan()

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

    def _plan(self, taken: int = 0) -> None:
        """Settle the noise, and how many steps it is for."""
        steps = planned_steps(self.args, self.rows) - taken
        self._planned = self.private_steps + max(0, steps)
        self.noise_multiplier = noise_for_rest(
            self.privacy, self.delta, self.sampling_rate, steps, self.spent
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
            # Arguments may have changed since the noise was planned.
            if planned_steps(self.args, self.rows) != self._planned or self.spent:
                self._plan()
        for name in ("compute_loss", "compute_loss_func"):
            if vars(self).get(name) is not None:
                raise ValueError(
                    f"PrivateTrainer.train: {name} was set, which DP-SGD would not use; leave it"
                )
        self._losses = torch.zeros(2)
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
        if len(plain.dataset) != rows:  # type: ignore[arg-type]
            raise ValueError(
                f"PrivateTrainer: train_dataset has {len(plain.dataset)} rows, and "  # type: ignore[arg-type]
                f"had {rows} when sampling rate and delta were settled; make a new PrivateTrainer"
            )
        parts = self.args.gradient_accumulation_steps
        batches = PoissonBatches(
            rows,
            self.sampling_rate,
            steps_per_epoch(self.args, rows),
            parts,
            self._seeds[0],
            self._first_step,
            self.args.process_index,
            self.args.world_size,
        )
        # Not handed to accelerate, which would share batches out or fill them up.
        return DataLoader(
            Alone(plain.dataset),
            batch_sampler=batches,
            collate_fn=Collate(plain.collate_fn),
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
        self._check_budget()
        gradients = self._prepared()
        gradients.check_trained()
        rows = self._prepare_inputs(inputs)["rows"]
        most = self.privacy.max_physical_batch_size or self.args.per_device_train_batch_size
        for _, batch in groups(rows, most):
            self._losses += torch.tensor([gradients.add(batch), len(batch["labels"])])
        if not self.accelerator.sync_gradients:
            return torch.tensor(0.0, device=self.args.device)
        gradients.finish(self.noise_multiplier, self.expected_batch_size, self.private_steps)
        self._accountant.step(
            noise_multiplier=self.noise_multiplier, sample_rate=self.sampling_rate
        )
        total, count = self.accelerator.reduce(self._losses.to(self.args.device)).tolist()
        self._losses.zero_()
        self._last_loss = total / count if count else self._last_loss
        return torch.tensor(self._last_loss, device=self.args.device)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Those of all rows of a batch."""
        return sum(super(PrivateTrainer, self).floating_point_ops(row) for row in inputs["rows"])

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
                warn(f"PrivateTrainer: the model card says nothing of privacy: {error}")

    def privacy_statement(self) -> dict[str, Any]:
        """What the model has spent and of what, as it is written beside every saved model."""
        return statement_of(self.privacy, self.delta, self.spent, self.epsilon, self.rows)

    # Inner parts

    def _first_step(self) -> int:
        first = self.private_steps - self._to_skip
        self._to_skip = 0
        return first

    def _check_budget(self) -> None:
        """A callback can make a training longer than the one that the noise is for."""
        if self.private_steps >= self._planned:
            ahead = [*self.spent, (self.noise_multiplier, self.sampling_rate, 1)]
            check_step(self.privacy, self.delta, ahead, self._planned)

    def _prepared(self) -> PerSampleGradients:
        """The gradients, made at the first step of a training, when all is in its place."""
        if self._gradients is None:
            bare = self.accelerator.unwrap_model(self.model)
            refuse_model(bare, self.args, self.privacy.per_sample)
            loader = self._poisson_loader()
            gradients = PerSampleGradients(
                bare,
                self.optimizer,
                self.privacy.per_sample_max_grad_norm,
                self.privacy.per_sample,
                self._seeds[1],
            )
            self._gradients = gradients
            tolerance = TOLERANCE_BF16 if self.args.bf16 else TOLERANCE
            rows = rows_to_compare(loader.dataset, loader.collate_fn)
            compare(gradients, [dict(self._prepare_inputs(row)) for row in rows], tolerance)
        return self._gradients

    def _poisson_loader(self) -> Any:
        """The loader of the training, if its batches and rows are ours."""
        loader: Any = self.callback_handler.train_dataloader
        drawn = isinstance(getattr(loader, "batch_sampler", None), PoissonBatches)
        if not drawn or not isinstance(getattr(loader, "collate_fn", None), Collate):
            raise ValueError(
                f"PrivateTrainer: get_train_dataloader of {type(self).__name__} gives batches of "
                "its own, and epsilon counts on Poisson batches; leave it"
            )
        return loader

    def _take_up(self, checkpoint: str | bool) -> str:
        """Restore what was spent until a checkpoint, and go on from there."""
        folder = (
            get_last_checkpoint(str(self.args.output_dir)) if checkpoint is True else checkpoint
        )
        if not folder:
            raise ValueError(
                "PrivateTrainer.train: resume_from_checkpoint=True, but "
                f"{str(self.args.output_dir)!r} has no checkpoint"
            )
        self._accountant.history = read_spent(str(folder), self.rows)
        state = json.loads((Path(str(folder)) / STATE_FILE).read_text(encoding="utf-8"))
        taken, per_epoch = state["global_step"], steps_per_epoch(self.args, self.rows)
        self._to_skip = 0 if self.args.ignore_data_skip else taken % per_epoch
        self._plan(taken)
        return str(folder)
