"""A callback for the Trainer: the exposure of every canary at each evaluation.

Here are its arguments and what people ask it afterwards; `events` has what happens in between.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.limits import Limits
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.planning import Settings
from hf_exposure.training.events import ExposureEvents
from hf_exposure.training.keeping import HistoryKeeper
from hf_exposure.training.measuring import Meter
from hf_exposure.training.trainer import find_tokenizer
from hf_exposure.utils.checks import check_choice, check_count
from hf_exposure.utils.typed import typed

if TYPE_CHECKING:
    from transformers import Trainer


@typed
class ExposureCallback(ExposureEvents):
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
    - After `resume_from_checkpoint` the history is that of a training that was never interrupted,
      wherever the checkpoint's folder is and the output goes.
    - The history of another training in the same folder is kept, as "exposure_history.json.old",
      ".old2" and so on.
    - A training that ends with an error or is interrupted leaves no hook in the model.

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
            by the main process during training, without the secrets.
        trainer: the Trainer, if this is added to one with `add_callback`. Without it the Trainer is
            looked for among the callers of the first event.
        errors: "warn", or "raise" to let errors of a measurement out.
        limits: the training is stopped, with a warning, at the first measurement that exceeds them
            by more than chance explains. However often they are judged, a training that memorizes
            nothing is stopped with a probability of at most 1 - `confidence`. A checkpoint of that
            step is saved, unless `save_strategy="no"`, and the number of judgements is that of the
            history, so that it goes on in a training that is resumed.
        per_canary: what the Trainer uploads to the Hub has a row for each canary too, masked and
            coarse: the history, the states of checkpoints, and the model card. Otherwise the card
            has figures of groups, and the rest stays here.

    Attributes:
        history: a `History` of all measurements, each canary's own figures included.
        verdict: the latest judgement of `limits`, a `Verdict`; None before the first.

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
        limits: Limits | None = None,
        per_canary: bool = False,
    ) -> None:
        if every_n_steps is not None:
            every_n_steps = check_count("ExposureCallback: every_n_steps", every_n_steps, 1)
        errors = check_choice("ExposureCallback: errors", errors, ("warn", "raise"))
        canaries = canaries if isinstance(canaries, Canaries) else Canaries(canaries)
        meter = Meter(
            canaries,
            None if tokenizer is None else find_tokenizer(tokenizer, "tokenizer"),
            Settings(method, samples, max_forwards, confidence, seed, batch_size, bos),
            errors,
        )
        super().__init__(
            meter,
            HistoryKeeper(canaries),
            every_n_steps=every_n_steps,
            output_dir=output_dir,
            output_file=output_file,
            trainer=trainer,
            errors=errors,
            limits=limits,
            per_canary=per_canary,
        )

    @property
    def settings(self) -> Settings:
        """How each measurement is made."""
        return self._meter.settings

    @typed
    def report(
        self, path: str | os.PathLike[str], reveal: bool = False, overwrite: bool = False
    ) -> Path:
        """Write the training's history as one HTML page.

        Args:
            path: the page.
            reveal: with the secrets.
            overwrite: replace another file that is there.

        Returns:
            The path.

        Raises:
            FileExistsError: another file is there, and not `overwrite`.
            ValueError: nothing has been measured yet.
        """
        self._check_measured("report")
        from hf_exposure.reports.page import write_report  # with plots, not needed in training

        latest = self.history[-1].exposures
        write_report(
            path, exposures=latest, history=self.history, reveal=reveal, overwrite=overwrite
        )
        return Path(path)
