"""How much has a language model memorized? Canaries, exposure and extraction for Transformers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_exposure.audit import Audit, AuditEntry, audit_dataset
    from hf_exposure.callback import ExposureCallback
    from hf_exposure.canaries import Canaries, Canary
    from hf_exposure.candidates import Candidate, Candidates, rank_candidates
    from hf_exposure.completions import CompletionsScorer
    from hf_exposure.discoverable import Discoverable, discoverable_extraction
    from hf_exposure.epsilon import EpsilonBound, estimate_epsilon
    from hf_exposure.exposure import measure_exposure
    from hf_exposure.extraction import Extraction, Extractions, extract_secrets
    from hf_exposure.formats import SecretFormat
    from hf_exposure.generation import Generations, generate_secrets
    from hf_exposure.history import History, Measurement
    from hf_exposure.injection import CanaryInjector, inject_canaries, verify_injection
    from hf_exposure.metrics import metric_path
    from hf_exposure.pairs import load_benchmark
    from hf_exposure.private import PrivacyArguments, PrivateTrainer
    from hf_exposure.report import write_report
    from hf_exposure.results import BudgetError, Exposure, Exposures
    from hf_exposure.scoring import Scorer

__version__ = "0.1.0"

# Where each public name lives. They are imported when they are first asked for, so that those who
# only plant canaries, and `hf-exposure --help`, do not wait for torch.
_HOMES = {
    "Audit": "audit",
    "AuditEntry": "audit",
    "BudgetError": "results",
    "Canaries": "canaries",
    "Canary": "canaries",
    "CanaryInjector": "injection",
    "Candidate": "candidates",
    "Candidates": "candidates",
    "CompletionsScorer": "completions",
    "Discoverable": "discoverable",
    "EpsilonBound": "epsilon",
    "Exposure": "results",
    "ExposureCallback": "callback",
    "Exposures": "results",
    "Extraction": "extraction",
    "Extractions": "extraction",
    "Generations": "generation",
    "History": "history",
    "Measurement": "history",
    "PrivacyArguments": "private",
    "PrivateTrainer": "private",
    "Scorer": "scoring",
    "SecretFormat": "formats",
    "audit_dataset": "audit",
    "discoverable_extraction": "discoverable",
    "estimate_epsilon": "epsilon",
    "extract_secrets": "extraction",
    "generate_secrets": "generation",
    "inject_canaries": "injection",
    "load_benchmark": "pairs",
    "measure_exposure": "exposure",
    "metric_path": "metrics",
    "rank_candidates": "candidates",
    "verify_injection": "injection",
    "write_report": "report",
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
