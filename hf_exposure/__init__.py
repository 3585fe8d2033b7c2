"""How much has a language model memorized? Canaries, exposure and extraction for Transformers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_exposure.attacks.candidates import Candidate, Candidates, rank_candidates
    from hf_exposure.attacks.discoverable import Discoverable, discoverable_extraction
    from hf_exposure.attacks.extraction import Extraction, Extractions, extract_secrets
    from hf_exposure.attacks.generation import Generations, generate_secrets
    from hf_exposure.attacks.pairs import load_benchmark
    from hf_exposure.audit.audit import Audit, AuditEntry, audit_dataset
    from hf_exposure.canaries.canary import Canary
    from hf_exposure.canaries.formats import SecretFormat
    from hf_exposure.canaries.insertion import CanaryInjector, inject_canaries, verify_injection
    from hf_exposure.canaries.sets import Canaries
    from hf_exposure.endpoints.completions import CompletionsScorer
    from hf_exposure.exposure.epsilon import EpsilonBound, estimate_epsilon
    from hf_exposure.exposure.history import History, Measurement
    from hf_exposure.exposure.measure import measure_exposure
    from hf_exposure.exposure.results import BudgetError, Exposure, Exposures
    from hf_exposure.metrics import metric_path
    from hf_exposure.reports.page import write_report
    from hf_exposure.training.callback import ExposureCallback
    from hf_exposure.training.private.trainer import PrivacyArguments, PrivateTrainer
    from hf_exposure.tree.scoring import Scorer

__version__ = "0.1.0"

# Where each public name lives. They are imported when they are first asked for, so that those who
# only plant canaries, and `hf-exposure --help`, do not wait for torch.
_HOMES = {
    "Audit": "audit.audit",
    "AuditEntry": "audit.audit",
    "BudgetError": "exposure.results",
    "Canaries": "canaries.sets",
    "Canary": "canaries.canary",
    "CanaryInjector": "canaries.insertion",
    "Candidate": "attacks.candidates",
    "Candidates": "attacks.candidates",
    "CompletionsScorer": "endpoints.completions",
    "Discoverable": "attacks.discoverable",
    "EpsilonBound": "exposure.epsilon",
    "Exposure": "exposure.results",
    "ExposureCallback": "training.callback",
    "Exposures": "exposure.results",
    "Extraction": "attacks.extraction",
    "Extractions": "attacks.extraction",
    "Generations": "attacks.generation",
    "History": "exposure.history",
    "Measurement": "exposure.history",
    "PrivacyArguments": "training.private.trainer",
    "PrivateTrainer": "training.private.trainer",
    "Scorer": "tree.scoring",
    "SecretFormat": "canaries.formats",
    "audit_dataset": "audit.audit",
    "discoverable_extraction": "attacks.discoverable",
    "estimate_epsilon": "exposure.epsilon",
    "extract_secrets": "attacks.extraction",
    "generate_secrets": "attacks.generation",
    "inject_canaries": "canaries.insertion",
    "load_benchmark": "attacks.pairs",
    "measure_exposure": "exposure.measure",
    "metric_path": "metrics",
    "rank_candidates": "attacks.candidates",
    "verify_injection": "canaries.insertion",
    "write_report": "reports.page",
}

__all__ = [
    "Audit",
    "AuditEntry",
    "BudgetError",
    "Canaries",
    "Canary",
    "CanaryInjector",
    "Candidate",
    "Candidates",
    "CompletionsScorer",
    "Discoverable",
    "EpsilonBound",
    "Exposure",
    "ExposureCallback",
    "Exposures",
    "Extraction",
    "Extractions",
    "Generations",
    "History",
    "Measurement",
    "PrivacyArguments",
    "PrivateTrainer",
    "Scorer",
    "SecretFormat",
    "audit_dataset",
    "discoverable_extraction",
    "estimate_epsilon",
    "extract_secrets",
    "generate_secrets",
    "inject_canaries",
    "load_benchmark",
    "measure_exposure",
    "metric_path",
    "rank_candidates",
    "verify_injection",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_exposure' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"hf_exposure.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
