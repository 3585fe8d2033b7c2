"""What happens at each event of the Trainer: `ExposureCallback` without its arguments.

The Trainer writes a row of figures to its log before it calls `on_evaluate`. For all trackers to
see exposures in the same row, they are added when the row is logged, before any other callback has
seen it. What is logged when stands here; `measuring` has the measurement, `keeping` the history,
and `trainer` what no event gives.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from hf_exposure.canaries.limits import Limits
from hf_exposure.canaries.loading import manifests_in
from hf_exposure.exposure.history import HISTORY_FILE, History, Measurement
from hf_exposure.exposure.limits import Outcome, Verdict
from hf_exposure.training.advice import advise
from hf_exposure.training.aside import Aside, restore
from hf_exposure.training.keeping import HistoryKeeper
from hf_exposure.training.measuring import Meter, TokenCounter
from hf_exposure.training.trainer import (
    add_to_row,
    evaluation_in,
    find_trainer,
    follow,
    stand_first,
)
from hf_exposure.utils.checks import kind_of
from hf_exposure.utils.files import remove_left
from hf_exposure.utils.typed import typed
from hf_exposure.utils.warn import warn

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments


class ExposureEvents(TrainerCallback):
    """Measures when the Trainer evaluates, logs the figures and keeps them.

    Args:
        meter: measures.
        keeper: keeps the history.
        every_n_steps, output_dir, output_file, trainer, errors, limits, per_canary: see
            `ExposureCallback`.
    """

    def __init__(
        self,
        meter: Meter,
        keeper: HistoryKeeper,
        *,
        every_n_steps: int | None,
        output_dir: str | os.PathLike[str] | None,
        output_file: str | os.PathLike[str] | None,
        trainer: Trainer | None,
        errors: str,
        limits: Limits | None,
        per_canary: bool,
    ) -> None:
        self.canaries = meter.canaries
        self.every_n_steps = every_n_steps
        self.output_dir, self.output_file = output_dir, output_file
        self.errors, self.limits, self.per_canary = errors, limits, per_canary
        self.verdict: Verdict | None = None
        self._meter, self._keeper, self._given_trainer = meter, keeper, trainer
        self._aside, self._counter = Aside(), TokenCounter()
        self._forget()

    @property
    def history(self) -> History:
        """All measurements of this training, each canary's own figures included."""
        return self._keeper.history

    def _forget(self) -> None:
        """Weights may have changed: nothing is known of the present step."""
        self._evaluating = False  # between an evaluation's first batch and its row in the log
        self._round: tuple[int, set[str]] | None = None  # step, and the evaluations seen at it
        self._known: tuple[int, dict[str, float]] | None = None  # step, and its figures
        self._due: int | None = None  # step to be measured for `every_n_steps`
        self._judged: int | None = None  # step at which limits were judged
        self._answer: dict[str, float] | None = None  # for the metrics of this evaluation

    # Events of the Trainer

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the place from which every tracker sees the figures."""
        self._join()
        if state.is_world_process_zero:
            restore(args.output_dir or ".")

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Prepare the measurement, and take up the history of a training that is resumed."""
        if not self._join():
            warn(
                "ExposureCallback: it cannot find its Trainer, so that trackers that stand before "
                "it among the callbacks will not see exposures; give it trainer=trainer",
            )
        self._meter.prepare(processing_class)
        advise(self.canaries, self.every_n_steps, args, state)
        self._forget()
        self._resume(state)
        self._counter.attach(model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a row in the log at every n-th step."""
        if self.every_n_steps is not None and state.global_step % self.every_n_steps == 0:
            self._due = state.global_step
            control.should_log = True
        return control

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Notice an evaluation, or a prediction."""
        if not self._evaluating:
            self._evaluating = True
            self._join()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Put the figures into an evaluation's row, or into the row that was asked for."""
        if logs is None:
            return
        name = evaluation_in(logs) if self._evaluating else None
        if name is not None:
            self._evaluating = False
            numbers = dict(logs)
            self._answer = self._evaluated(name, args, state, model, processing_class)
            add_to_row(self._answer, logs, state)
            self._keep(numbers, args, state, control)
        elif self._due == state.global_step and "loss" in logs and not control.should_evaluate:
            # An evaluation that follows at this step gets the figures in its own row.
            self._due = None
            figures = self._figures(args, state, model, processing_class)
            add_to_row(figures, logs, state)
            self._keep({}, args, state, control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """See to it that the evaluation's return value has the figures too.

        A Trainer whose own `log` makes a new dictionary leaves them out of it, and one that does
        not log its evaluations has not been noticed before.
        """
        metrics = {} if metrics is None else metrics
        if self._answer is None:
            name = evaluation_in(metrics) or "eval"
            numbers = dict(metrics)
            self._answer = self._evaluated(name, args, state, model, processing_class)
            self._keep(numbers, args, state, control)
        metrics.update(self._answer)
        self._answer, self._evaluating = None, False

    def on_predict(self, *args: Any, **kwargs: Any) -> None:
        """A prediction is not an evaluation."""
        self._evaluating = False

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Try the file again, should it not have been written."""
        self._write(args, state)

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A card is about to be made, and the Trainer's folder uploaded."""
        self._join()
        if not state.is_world_process_zero:
            return
        folder = args.output_dir or "."
        remove_left(folder)
        if not self.per_canary:
            self._aside.put(folder, self.file(args), state.global_step)
        if manifests := manifests_in(folder):
            warn(
                f"ExposureCallback: {str(manifests[0])!r} holds the canaries' secrets and is "
                "uploaded with the model; keep it outside output_dir, or delete it on the Hub if "
                "the repository is public",
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what was not yet written, and leave the model as it was."""
        self._write(args, state)
        self._end()

    # The Trainer

    def _join(self) -> bool:
        """Stand first among its Trainer's callbacks, and follow what it does; whether it can."""
        trainer: Any = self._given_trainer
        if trainer is None or self not in trainer.callback_handler.callbacks:
            trainer = find_trainer(self)
        if trainer is None:
            return False
        stand_first(self, trainer)
        follow(trainer, "train", self, lambda returned, out: self._end())
        follow(trainer, "create_model_card", self, lambda done, out: self._card_made(trainer, done))
        for push in ("push_to_hub", "_push_from_checkpoint"):
            follow(trainer, push, self, lambda returned, out: self._pushed(trainer, out))
        return True

    def _pushed(self, trainer: Any, out: Any) -> None:
        """An upload has ended, or goes on as a `Future`."""
        jobs = getattr(getattr(trainer, "push_in_progress", None), "jobs", ())
        self._aside.until([*jobs, out])

    def _end(self) -> None:
        """A training is over, perhaps by an error."""
        self._aside.until()
        self._counter.detach()
        self._forget()

    def _card_made(self, trainer: Any, done: bool) -> None:
        """The Trainer has made its card, unless it has failed."""
        path = Path(trainer.args.output_dir or ".") / "README.md"
        if not (done and self.history and trainer.is_world_process_zero() and path.exists()):
            return
        best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
        try:
            self.add_to_card(path, step=best)
        except (OSError, ValueError) as error:
            if self.errors == "raise":
                raise
            warn(f"ExposureCallback: the model card says nothing of exposures: {error}")

    # The figures

    def _evaluated(
        self,
        name: str,
        args: TrainingArguments,
        state: TrainerState,
        model: Any,
        processing_class: Any,
    ) -> dict[str, float]:
        """The figures for an evaluation: {} if another set has got them at this step."""
        step = state.global_step
        if self._round is not None and self._round[0] == step and name not in self._round[1]:
            self._round[1].add(name)
            return {}
        self._round = step, {name}
        return self._figures(args, state, model, processing_class)

    def _figures(
        self, args: TrainingArguments, state: TrainerState, model: Any, processing_class: Any
    ) -> dict[str, float]:
        """The figures of this step, measured now unless they are known."""
        step = state.global_step
        if self._known is not None and self._known[0] == step:
            return dict(self._known[1])
        # All processes take part in the count, so it stands before all that can fail.
        tokens = self._counter.trained_on(args, state)
        before = (self.history[-1].tokens or 0) if self.history else 0
        exposures = self._meter.measure(model, processing_class, step, (tokens or 0) - before)
        # After a training the weights may be those of another step, such as the best one.
        if exposures and (self._counter.attached or step == 0):
            self.history.append(Measurement(step, exposures, epoch=state.epoch, tokens=tokens))
        figures = self._meter.figures(exposures)
        if self._counter.attached:
            self._known = step, figures
        return dict(figures)

    def _judge(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Stop a training whose measurement at this step exceeds the limits."""
        step = state.global_step
        if self.limits is None or not self._counter.attached or self._judged == step:
            return
        self._judged = step
        exposures = self.history[-1].exposures
        self.verdict = exposures.check(self.limits, look=len(self.history))
        if self.verdict.outcome is not Outcome.FAILED:
            return
        control.should_training_stop = True
        control.should_save = control.should_save or args.save_strategy != "no"
        failed = [one.reason for one in self.verdict.checks if one.outcome is Outcome.FAILED]
        warn(
            f"ExposureCallback: training is stopped at step {step}, since limits are exceeded: "
            f"{'; '.join(failed)}",
        )

    # The history

    def _resume(self, state: TrainerState) -> None:
        """The history as it was at the step that the training begins with."""
        step = state.global_step
        self._keeper.resume(state)
        self._counter.before = 0
        if step > 0 and self.history:
            last = self.history[-1]
            # Batches are about equally long: as many tokens a step as until then.
            self._counter.before = (last.tokens or 0) * step // max(1, last.step)
            if last.step == step:
                self._known = step, self._meter.figures(last.exposures)

    def _keep(
        self,
        metrics: Mapping[str, Any],
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
    ) -> None:
        """Keep what an evaluation gave with the measurement of this step, and judge that."""
        step = state.global_step
        if not self.history or self.history[-1].step != step:
            return
        if self._counter.attached or step == 0:
            self._keeper.note(metrics, state)
            self._write(args, state)
        self._judge(args, state, control)

    def _write(self, args: TrainingArguments, state: TrainerState) -> None:
        if not self._counter.attached:
            return
        self._keeper.put_into(state)
        if not (self.history and state.is_world_process_zero):
            return
        try:
            with self._aside.lock:
                self._keeper.write(self._aside.place(self.file(args)))
        except OSError as error:
            if self.errors == "raise":
                raise
            warn(f"ExposureCallback: the history could not be written: {error}")

    # What is written

    @typed
    def add_to_card(self, path: str | os.PathLike[str], step: int | None = None) -> Path:
        """Put exposures into a model card; see `add_exposure_to_card`.

        `Trainer.create_model_card` and `Trainer.push_to_hub` do so by themselves.

        Args:
            path: the README.md.
            step: the step of the measurement; None, or one that was not measured, is the latest.

        Raises:
            ValueError: nothing has been measured yet, or the card's metadata cannot be read.
        """
        self._check_measured("add_to_card")
        from hf_exposure.reports.cards import add_exposure_to_card

        chosen = next((entry for entry in self.history if entry.step == step), self.history[-1])
        add_exposure_to_card(
            path, chosen.exposures, history=self.history, per_canary=self.per_canary
        )
        return Path(path)

    def _check_measured(self, what: str) -> None:
        if not self.history:
            raise ValueError(
                f"ExposureCallback.{what}: nothing has been measured yet; train or evaluate first"
            )

    @typed
    def file(self, args: TrainingArguments) -> Path:
        """Where the history is written."""
        if not hasattr(args, "output_dir"):
            raise TypeError(
                f"ExposureCallback.file: args must be TrainingArguments, not {kind_of(args)}"
            )
        folder = args.output_dir if self.output_dir is None else self.output_dir
        name = HISTORY_FILE if self.output_file is None else self.output_file
        return Path(folder or ".") / name
