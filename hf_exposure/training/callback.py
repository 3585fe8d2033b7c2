"""A callback for the Trainer: the exposure of every canary at each evaluation.

The Trainer writes a row of figures to its log before it calls `on_evaluate`, so figures that are to
be in the same row, for every tracker, must be put in when the row is logged, before any other
callback has seen it. No event hands a callback the list in which it stands; `stand_first` takes it
from the caller. All else here uses what the events give.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.masking import mask_secrets
from hf_exposure.canaries.sets import Canaries, manifests_in
from hf_exposure.exposure.history import HISTORY_FILE, History, Measurement
from hf_exposure.exposure.measure import measure_plan
from hf_exposure.exposure.planning import Plan, Settings, plan_measurement, within_budget
from hf_exposure.exposure.results import BudgetError, Exposures
from hf_exposure.models.processes import BrokenForwardError, Processes
from hf_exposure.training.trainer import (
    TokenCounter,
    evaluation_in,
    find_tokenizer,
    join_card,
    stand_first,
)

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

SHARE = 0.05  # token-forwards of a measurement for each token trained on since the last one
_WRITING = 0.05  # of the time goes into the history file at most, checkpoints apart


class ExposureCallback(TrainerCallback):
    """Measures how exposed canaries are, at each evaluation, and logs it with the evaluation.

    Usage:
    ```python
    trainer = Trainer(
        model=model,
        args=TrainingArguments(..., eval_strategy="steps"),
        train_dataset=inject_canaries(dataset, canaries),
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[ExposureCallback(canaries)],
    )
    trainer.train()
    ```

    It logs, in the row of the evaluation's own figures, for `trainer.evaluate()`'s return value,
    `state.log_history`, the printed log, every tracker of `report_to`, `metric_for_best_model` and
    early stopping:

    - `eval_exposure`: mean exposure in bits of the inserted canaries, `eval_exposure_max`: the
      largest;
    - `eval_exposure_x{k}`: mean of those inserted k times; `x0` is the control group;
    - `eval_exposure_forwards`: token-forwards spent; `eval_exposure_runtime`: seconds.

    The training has to read the canaries: `verify_injection(trainer.train_dataset, tokenizer,
    canaries)` tells whether packing has cut them, or the loss leaves them out, as with
    `assistant_only_loss` those in a user's turn.

    What could not be measured is NaN, with a warning: the keys are always there. With
    `metric_for_best_model="eval_exposure"` set `greater_is_better=False`; with
    `hyperparameter_search` give a `compute_objective`, since the default one adds up all figures.

    Formal guarantees, each of them tested:

    - The weights after training are the same, bit for bit, as without it.
    - Each step is measured once. With several evaluation sets the first one's row has the figures.
    - With `max_forwards=None` a measurement may spend 5 % of the tokens trained on since the last
      one, and never less than it needs for an answer with an interval: the canaries' own
      log-perplexities and 200 draws. So the first one, before training, costs that much, and so
      does every one where tokens cannot be counted: with `torch_compile`, unless
      `include_num_input_tokens_seen` makes the Trainer count them.
    - A measurement that fails does not end the training, unless `errors="raise"`.
    - Secrets are in nothing that is logged, warned of or written.
    - After `resume_from_checkpoint` the history is that of a training that was never interrupted.

    Args:
        canaries: the canaries, inserted ones and controls.
        tokenizer: the one that the training data were tokenized with; None takes the Trainer's
            `processing_class`, or the tokenizer of that processor.
        every_n_steps: also measure at every n-th step of training, for those without an evaluation
            set. These figures are logged in a row of the training loss, which is logged at these
            steps too, under the same names.
        method, samples, max_forwards, seed, confidence, batch_size, bos: see `measure_exposure`.
            With "exact" and a budget that does not reach for it, the figures are those of "auto".
        output_dir: the folder for the history; None is the Trainer's `output_dir`.
        output_file: its name there, or an absolute path; None is "exposure_history.json". Written
            by the main process during training, whole or not at all, without the secrets.
        trainer: the Trainer, if this is added to one with `add_callback` and cannot find its place
            by itself.
        errors: "warn", or "raise" to let errors of a measurement out.

    Attributes:
        history: a `History` of all measurements, each canary's own figures included.

    Raises:
        ValueError: bad arguments; at the beginning of the training, that there is no tokenizer.
    """

    def __init__(
        self,
        canaries: Canaries | Iterable[Canary],
        tokenizer: PreTrainedTokenizerBase | None = None,
        every_n_steps: int | None = None,
        method: str = "auto",
        samples: int = 2000,
        max_forwards: int | None = None,
        seed: int = 0,
        output_dir: str | os.PathLike[str] | None = None,
        *,
        confidence: float = 0.95,
        batch_size: int | None = None,
        bos: bool | None = None,
        output_file: str | os.PathLike[str] | None = None,
        trainer: Trainer | None = None,
        errors: str = "warn",
    ) -> None:
        if every_n_steps is not None and not (
            isinstance(every_n_steps, int)
            and not isinstance(every_n_steps, bool)
            and every_n_steps > 0
        ):
            raise ValueError(
                f"ExposureCallback: every_n_steps={every_n_steps!r} must be a whole number of at "
                "least 1, or None"
            )
        if errors not in ("warn", "raise"):
            raise ValueError(
                f"ExposureCallback: errors={errors!r} is not known; use 'warn' or 'raise'"
            )
        self.canaries = canaries if isinstance(canaries, Canaries) else Canaries(canaries)
        self.tokenizer = None if tokenizer is None else find_tokenizer(tokenizer, "tokenizer")
        self.settings = Settings(method, samples, max_forwards, confidence, seed, batch_size, bos)
        self.every_n_steps = every_n_steps
        self.output_dir = output_dir
        self.output_file = output_file
        self.errors = errors
        self.history = History()
        self._trainer = trainer
        self._plan: Plan | None = None
        self._planned_for: Any = None  # a tokenizer or a processor
        self._counter = TokenCounter()
        self._training = False
        self._forget()
        self._tokens_before = 0  # trained on before this training was taken up again
        self._written_at, self._writing_took = -math.inf, 0.0

    def _forget(self) -> None:
        """Weights may have changed: nothing is known of the present step."""
        self._evaluating = False  # between an evaluation's first batch and its row in the log
        self._round: tuple[int, set[str]] | None = None  # step, and the evaluations seen at it
        self._known: tuple[int, dict[str, float]] | None = None  # step, and its figures
        self._due: int | None = None  # step to be measured for `every_n_steps`
        self._answer: dict[str, float] | None = None  # for the metrics of this evaluation

    # Events of the Trainer

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the place from which every tracker sees the figures, and a part in the card."""
        stand_first(self, self._trainer)
        join_card(self, self._tell, self._trainer)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Prepare the measurement, and take up the history of an interrupted training."""
        if not stand_first(self, self._trainer):
            warnings.warn(
                "ExposureCallback: it cannot take the first place among the callbacks, so that "
                "trackers that stand before it will not see exposures; give it trainer=trainer",
                stacklevel=2,
            )
        join_card(self, self._tell, self._trainer)  # of a Trainer that it was added to later
        self._prepare(processing_class)
        self._advise(args, state)
        self._forget()
        self._begin(args, state)
        self._training = True
        self._counter.attach(model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a row in the log at every n-th step."""
        if self.every_n_steps is not None and state.global_step % self.every_n_steps == 0:
            self._due = state.global_step
            control.should_log = True
        return control

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notice an evaluation, or a prediction."""
        if not self._evaluating:
            self._evaluating = True
            stand_first(self, self._trainer)

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
            self._add(self._answer, logs, state)
            self._note(numbers, args, state)
        elif self._due == state.global_step and "loss" in logs and not control.should_evaluate:
            # An evaluation that follows at this step gets the figures in its own row.
            self._due = None
            self._add(self._figures(args, state, model, processing_class), logs, state)
            self._note({}, args, state)

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
            self._note(numbers, args, state)
        metrics.update(self._answer)
        self._answer, self._evaluating = None, False

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A prediction is not an evaluation."""
        self._evaluating = False

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A checkpoint has its history beside it."""
        self._write(args, state, now=True)

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A card is about to be made, and the Trainer's folder uploaded."""
        join_card(self, self._tell, self._trainer)
        manifests = manifests_in(args.output_dir or ".") if state.is_world_process_zero else []
        if manifests:
            warnings.warn(
                f"ExposureCallback: {str(manifests[0])!r} holds the canaries' secrets and is "
                "uploaded with the model; keep it outside output_dir, or delete it on the Hub if "
                "the repository is public",
                stacklevel=2,
            )

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Write what was not yet written, and leave the model as it was."""
        self._write(args, state, now=True)
        self._counter.detach()
        self._training = False
        self._forget()

    # What people ask for afterwards

    def report(self, path: str | os.PathLike[str], reveal: bool = False) -> Path:
        """Write the training's history as one HTML page; secrets are masked unless `reveal`.

        Raises:
            ValueError: nothing has been measured yet.
        """
        if not self.history:
            raise ValueError(
                "ExposureCallback.report: nothing has been measured yet; train or evaluate first"
            )
        from hf_exposure.reports.page import (
            write_report,  # with its plots, which training needs not
        )

        latest = self.history[-1].exposures
        return Path(write_report(path, exposures=latest, history=self.history, reveal=reveal))

    def add_to_card(self, path: str | os.PathLike[str], step: int | None = None) -> Path:
        """Put exposures into a model card; see `hub.add_exposure_to_card`.

        `Trainer.create_model_card` and `Trainer.push_to_hub` do so by themselves.

        Args:
            path: the README.md.
            step: the step of the measurement; None, or one that was not measured, is the latest.

        Raises:
            ValueError: nothing has been measured yet, or the card's metadata cannot be read.
        """
        if not self.history:
            raise ValueError(
                "ExposureCallback.add_to_card: nothing has been measured yet; train or evaluate "
                "first"
            )
        from hf_exposure.reports.cards import add_exposure_to_card

        chosen = next((entry for entry in self.history if entry.step == step), self.history[-1])
        add_exposure_to_card(path, chosen.exposures, history=self.history)
        return Path(path)

    def _tell(self, path: Path, step: int | None) -> None:
        """Our part of a card that the Trainer has made."""
        if not self.history:
            return
        try:
            self.add_to_card(path, step=step)
        except (OSError, ValueError) as error:
            if self.errors == "raise":
                raise
            warnings.warn(
                f"ExposureCallback: the model card says nothing of exposures: {error}",
                stacklevel=2,
            )

    def file(self, args: TrainingArguments) -> Path:
        """Where the history is written."""
        folder = args.output_dir if self.output_dir is None else self.output_dir
        name = HISTORY_FILE if self.output_file is None else self.output_file
        return Path(folder or ".") / name

    # Before the first measurement

    def _prepare(self, processing_class: Any) -> Plan:
        """Everything that does not depend on the model; made once."""
        given = processing_class if self.tokenizer is None else self.tokenizer
        if self._plan is None or self._planned_for is not given:
            self._plan = plan_measurement(
                find_tokenizer(given), self.canaries, bos=self.settings.bos, unscorable="warn"
            )
            self._planned_for = given
        return self._plan

    def _advise(self, args: TrainingArguments, state: TrainerState) -> None:
        if self.canaries.inserted and not self.canaries.planting:
            warnings.warn(
                "ExposureCallback: the canaries have no record of having been planted, and a model "
                "that is not trained on them looks as if it memorized nothing; plant them with "
                "inject_canaries(dataset, canaries)",
                stacklevel=3,
            )
        if args.eval_strategy == "no" and not args.eval_on_start and self.every_n_steps is None:
            warnings.warn(
                "ExposureCallback: eval_strategy='no' and every_n_steps=None, so nothing is "
                "measured while it trains; give one of them",
                stacklevel=3,
            )
        best = (args.metric_for_best_model or "").removeprefix("eval_")
        if best.startswith("exposure") and args.greater_is_better:
            warnings.warn(
                f"ExposureCallback: metric_for_best_model={args.metric_for_best_model!r} with "
                "greater_is_better=True keeps the checkpoint that memorized most; set "
                "greater_is_better=False to keep the one that memorized least",
                stacklevel=3,
            )
        if state.is_hyper_param_search:
            warnings.warn(
                "ExposureCallback: the default objective of hyperparameter_search adds up all "
                "figures of an evaluation, exposures too; give compute_objective",
                stacklevel=3,
            )

    def _begin(self, args: TrainingArguments, state: TrainerState) -> None:
        """The history as it was at the step that the training begins with."""
        step, path = state.global_step, self.file(args)
        self._tokens_before = 0
        if step == 0:
            # A measurement before the training stays; those of a former training do not.
            if any(item.step > 0 for item in self.history):
                self.history = History()
            return
        # Only the main process is sure to see the file, and all must go on from the same history.
        stored = self._stored(path) if state.is_world_process_zero else None
        (stored,) = broadcast_object_list([stored])
        self.history = History.from_dict(stored, self.canaries)
        self.history = self.history.upto(step)
        if self.history:
            last = self.history[-1]
            # Batches are about equally long: as many tokens a step as until then.
            self._tokens_before = (last.tokens or 0) * step // max(1, last.step)
            if last.step == step:
                self._known = step, self._complete(last.exposures)

    def _stored(self, path: Path) -> dict[str, Any]:
        """The history in the file, or the one of this process if there is no file."""
        if not path.exists():
            return self.history.to_dict()
        try:
            return History.load(path, self.canaries).to_dict()
        except (OSError, ValueError) as error:
            kept = path.with_name(path.name + ".old")
            warnings.warn(
                "ExposureCallback: the history of the training that is taken up again cannot be "
                f"read ({error}); it begins anew, and the file is kept as {kept.name!r}",
                stacklevel=4,
            )
            path.replace(kept)
            return History().to_dict()

    # Measuring

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
        step, start = state.global_step, time.perf_counter()
        if self._known is not None and self._known[0] == step:
            return dict(self._known[1])
        plan = self._prepare(processing_class)
        # All processes take part in the count, so it stands before all that can fail.
        tokens = self._tokens(args, state)
        try:
            exposures = self._measure(model, plan, tokens)
        except Exception as error:
            if self.errors == "raise" or isinstance(error, BrokenForwardError):
                raise
            warnings.warn(
                f"ExposureCallback: exposure could not be measured at step {step}, and is NaN "
                f"there: {type(error).__name__}: {mask_secrets(str(error), self.canaries)}",
                stacklevel=3,
            )
            exposures = Exposures([], seconds=time.perf_counter() - start)
        else:
            self._leave_out(plan, exposures)
        # After a training the weights may be those of another step, such as the best one.
        if exposures and (self._training or step == 0):
            self.history.append(Measurement(step, exposures, epoch=state.epoch, tokens=tokens))
        figures = self._complete(exposures)
        if self._training:
            self._known = step, figures
        return dict(figures)

    def _measure(self, model: Any, plan: Plan, tokens: int | None) -> Exposures:
        processes = Processes.of(model, split=True)
        with processes.together():
            settings = self.settings
            if settings.max_forwards is None:
                since = (tokens or 0) - ((self.history[-1].tokens or 0) if self.history else 0)
                settings = within_budget(settings, plan, int(SHARE * max(0, since)))
            exposures = self._measured(model, plan, settings, processes)
        groups = exposures.settings["formats"].values()
        sizes = [group["batch_size"] for group in groups if group["halved"]]
        if sizes:  # memory will not suffice the next time either
            self.settings = replace(self.settings, batch_size=min(sizes))
        return exposures

    def _measured(
        self, model: Any, plan: Plan, settings: Settings, processes: Processes
    ) -> Exposures:
        try:
            return measure_plan(model, plan, settings, processes=processes, unscorable="warn")
        except BudgetError as error:
            warnings.warn(
                "ExposureCallback: method='exact' takes more token-forwards than it has; figures "
                "are those of method='auto'. max_forwards gives it more",
                stacklevel=5,
            )
            return error.exposures

    def _leave_out(self, plan: Plan, exposures: Exposures) -> None:
        """Canaries that this model cannot score are not tried, nor warned of, again."""
        places = {canary: place for place, canary in enumerate(plan.canaries)}
        skipped = {
            places[canary]: why for canary, why in exposures.skipped if isinstance(canary, Canary)
        }
        if skipped.keys() != plan.skipped.keys():
            groups = [group for group in plan.groups if skipped.keys().isdisjoint(group.places)]
            self._plan = replace(plan, groups=groups, skipped=skipped)

    def _complete(self, exposures: Exposures) -> dict[str, float]:
        """The figures to log: NaN for what could not be measured, so that no key is missing."""
        names = [f"x{times}" for times in sorted({c.repetitions for c in self.canaries})]
        figures = {f"eval_exposure_{name}": math.nan for name in names}
        if self.canaries.inserted:
            figures = {"eval_exposure": math.nan, "eval_exposure_max": math.nan, **figures}
        return figures | exposures.metrics()

    def _tokens(self, args: TrainingArguments, state: TrainerState) -> int | None:
        """Tokens trained on by all processes, None if not known."""
        if not self._training:
            return 0 if state.global_step == 0 else None
        seen = self._tokens_before + self._counter.total(args.device)
        if args.include_num_input_tokens_seen != "no":
            seen = state.num_input_tokens_seen
        return seen if seen or state.global_step == 0 else None

    # Keeping

    def _add(self, figures: dict[str, float], logs: dict[str, Any], state: TrainerState) -> None:
        """Into the row that is being logged; the history of the log has a copy of it."""
        row = state.log_history[-1] if state.log_history else {}
        if row.get("step") == state.global_step and row.keys() >= logs.keys():
            row.update(figures)
        logs.update(figures)

    def _note(
        self, metrics: Mapping[str, Any], args: TrainingArguments, state: TrainerState
    ) -> None:
        """Keep what an evaluation gave, and the last training loss, with the measurement."""
        if not self.history or self.history[-1].step != state.global_step:
            return
        if not (self._training or state.global_step == 0):
            return
        last = self.history[-1]
        losses = [row["loss"] for row in state.log_history if "loss" in row]
        kept = {**last.metrics, **({"loss": losses[-1]} if losses else {}), **metrics}
        numbers = {
            name: float(value)
            for name, value in kept.items()
            if isinstance(value, Real) and not isinstance(value, bool) and name != "epoch"
        }
        self.history.append(replace(last, metrics=numbers))
        self._write(args, state)

    def _write(self, args: TrainingArguments, state: TrainerState, now: bool = False) -> None:
        """The file grows with every measurement: with many short steps not all of them write it."""
        if not (self._training and self.history and state.is_world_process_zero):
            return
        start = time.monotonic()
        if not now and start - self._written_at < self._writing_took / _WRITING:
            return
        try:
            self.history.save(self.file(args))
        except OSError as error:
            if self.errors == "raise":
                raise
            warnings.warn(
                f"ExposureCallback: the history could not be written: {error}", stacklevel=3
            )
        self._written_at = time.monotonic()
        self._writing_took = self._written_at - start
