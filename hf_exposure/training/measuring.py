"""Measuring within a budget, again and again while a model trains."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_callback import TrainerState

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.masking import mask_secrets
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.measure import measure_plan
from hf_exposure.exposure.planning import Plan, Settings, plan_measurement, within_budget
from hf_exposure.exposure.results import BudgetError, Exposures
from hf_exposure.models.processes import BrokenForwardError, Processes
from hf_exposure.training.trainer import find_tokenizer
from hf_exposure.utils.warn import warn

SHARE = 0.05  # token-forwards of a measurement for each token trained on since the last one

_FPR = 0.01  # at which canaries are detected, in what is logged


class TokenCounter:
    """Counts the tokens that a model is trained on, by watching its forward passes.

    Under `torch.compile` it counts nothing, so as not to have the model compiled again for every
    count.
    """

    def __init__(self) -> None:
        self.count = 0
        self.before = 0  # tokens of a training that was resumed
        self._handle: Any | None = None

    @property
    def attached(self) -> bool:
        """Whether a training is on."""
        return self._handle is not None

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

    def trained_on(self, args: TrainingArguments, state: TrainerState) -> int | None:
        """Tokens trained on by all processes, None if not known. Every process must call it."""
        if self.attached:
            seen = self.before + self.total(args.device)
            if args.include_num_input_tokens_seen != "no":
                seen = state.num_input_tokens_seen
            if seen:
                return seen
        return 0 if state.global_step == 0 else None

    def _see(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A forward without gradients is one more look at a batch, as some trainers take it.
        if torch.compiler.is_compiling() or not (module.training and torch.is_grad_enabled()):
            return
        ids = kwargs.get("input_ids", kwargs.get("inputs_embeds", args[0] if args else None))
        if isinstance(ids, torch.Tensor):
            self.count += math.prod(ids.shape[:2])


class Meter:
    """Measures the same canaries as often as it is asked to.

    What does not depend on the weights is made once, and what a measurement finds out (canaries
    that the model cannot score, how many rows fit in memory) holds for the next one.

    Args:
        canaries: the whole set.
        tokenizer: of the training data; None for the Trainer's.
        settings: of each measurement. Without `max_forwards` its budget is `SHARE`.
        errors: "raise", or "warn" to have a measurement that fails give no exposures.
    """

    def __init__(
        self,
        canaries: Canaries,
        tokenizer: PreTrainedTokenizerBase | None,
        settings: Settings,
        errors: str,
    ) -> None:
        self.canaries, self.tokenizer = canaries, tokenizer
        self.settings, self.errors = settings, errors
        self._plan: Plan | None = None
        self._planned_for: Any = None  # a tokenizer or a processor

    def prepare(self, processing_class: Any) -> Plan:
        """The plan, made for the tokenizer once.

        Raises:
            ValueError: there is no tokenizer.
        """
        given = processing_class if self.tokenizer is None else self.tokenizer
        if self._plan is None or self._planned_for is not given:
            self._plan = plan_measurement(
                find_tokenizer(given), self.canaries, bos=self.settings.bos, unscorable="warn"
            )
            self._planned_for = given
        return self._plan

    def measure(self, model: Any, processing_class: Any, step: int, new_tokens: int) -> Exposures:
        """The exposures now; none, with a warning, if it fails and `errors` allows it.

        Args:
            step: for the warning.
            new_tokens: trained on since the last measurement.
        """
        plan, start = self.prepare(processing_class), time.perf_counter()
        try:
            exposures = self._within_budget(model, plan, new_tokens)
        except Exception as error:
            if self.errors == "raise" or isinstance(error, BrokenForwardError):
                raise
            warn(
                f"ExposureCallback: exposure could not be measured at step {step}, and is NaN "
                f"there: {type(error).__name__}: {mask_secrets(str(error), self.canaries)}",
            )
            return Exposures([], seconds=time.perf_counter() - start)
        self._learn(plan, exposures)
        return exposures

    def figures(self, exposures: Exposures) -> dict[str, float]:
        """The figures to log: NaN for what could not be measured, so that no key is missing."""
        names = [f"x{times}" for times in sorted({c.repetitions for c in self.canaries})]
        figures = {
            f"eval_{what}_{name}": math.nan for what in ("exposure", "tpr") for name in names
        }
        if self.canaries.inserted:
            whole = dict.fromkeys(("eval_exposure", "eval_exposure_max", "eval_tpr"), math.nan)
            figures = whole | figures
        # Logs are shared: only how many are detected is of the figures as measured.
        return figures | exposures.metrics(fpr=_FPR) | exposures.coarse().metrics()

    def _within_budget(self, model: Any, plan: Plan, new_tokens: int) -> Exposures:
        processes = Processes.of(model, split=True)
        with processes.together():
            settings = self.settings
            if settings.max_forwards is None:
                settings = within_budget(settings, plan, int(SHARE * max(0, new_tokens)))
            try:
                return measure_plan(model, plan, settings, processes=processes, unscorable="warn")
            except BudgetError as error:
                warn(
                    "ExposureCallback: method='exact' takes more token-forwards than it has; "
                    "figures are those of method='auto'. max_forwards gives it more",
                )
                return error.exposures

    def _learn(self, plan: Plan, exposures: Exposures) -> None:
        found = exposures.formats.values()
        sizes = [one.batch_size for one in found if one.halved and one.batch_size]
        if sizes:  # memory will not suffice the next time either
            self.settings = replace(self.settings, batch_size=min(sizes))
        places = {canary: place for place, canary in enumerate(plan.canaries)}
        skipped = {
            places[canary]: why for canary, why in exposures.skipped if isinstance(canary, Canary)
        }
        if skipped.keys() != plan.skipped.keys():
            remaining = [group for group in plan.groups if skipped.keys().isdisjoint(group.places)]
            self._plan = replace(plan, groups=remaining, skipped=skipped)
