"""How much has a language model memorized? Canaries, exposure and extraction for Transformers."""

import logging
from typing import TYPE_CHECKING

import lazy_loader

__version__ = "0.1.0"

logging.getLogger("hf_exposure").addHandler(logging.NullHandler())

# Each public name is imported when it is first asked for, so that inserting canaries, and
# `hf-exposure --help`, do not wait for torch. Type checkers and editors read the imports below.
_HOMES = {
    "attacks.candidates": "Candidate Candidates rank_candidates",
    "attacks.discoverable": "discoverable_extraction",
    "attacks.examples": "Discoverable",
    "attacks.extraction": "Extraction Extractions extract_secrets",
    "attacks.generation": "generate_secrets",
    "attacks.generations": "Generations",
    "attacks.membership": "MembershipTest MembershipTestRow membership_test",
    "attacks.pairs": "load_benchmark",
    "attacks.texts": "TextScore TextScores score_texts",
    "audit.audit": "audit_dataset",
    "audit.detectors": "find_secrets",
    "audit.results": "Audit AuditEntry",
    "canaries.canary": "Canary",
    "canaries.formats": "SecretFormat",
    "canaries.injection": "inject_canaries",
    "canaries.injector": "CanaryInjector",
    "canaries.insertion": "Insertion",
    "canaries.limits": "Limits",
    "canaries.loading": "load_canaries",
    "canaries.rows": "load_rows",
    "canaries.sets": "Canaries",
    "canaries.verification": "verify_injection",
    "canaries.words": "choose_words",
    "endpoints.completions": "CompletionsScorer",
    "exposure.details": "FormatDetails",
    "exposure.canary_scores": "canary_scores",
    "exposure.epsilon": "EpsilonBound estimate_epsilon",
    "exposure.estimators": "sampling_exposure",
    "exposure.history": "History Measurement",
    "exposure.limits": "Check Verdict",
    "exposure.measure": "measure_exposure",
    "exposure.membership": "Membership MembershipRow",
    "exposure.records": "Exposure",
    "exposure.results": "BudgetError Exposures",
    "exposure.skew_normal": "SkewNormal skewnorm_exposure",
    "metrics": "metric_path",
    "models.loading": "load_model",
    "reports.cards": "add_exposure_to_card add_privacy_to_card",
    "reports.evidence": "Evidence",
    "reports.hub": "push_exposure",
    "reports.page": "write_report",
    "reports.plots": "plot_exposure_by_repetitions plot_exposure_over_training "
    "plot_extraction_cost plot_log_perplexities",
    "training.callback": "ExposureCallback",
    "training.private.accounting": "group_epsilon noise_for_epsilon spent_epsilon",
    "training.private.arguments": "PrivacyArguments",
    "training.private.trainer": "PrivateTrainer",
    "tree.scoring": "Scorer",
}
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={module: names.split() for module, names in _HOMES.items()}
)

if TYPE_CHECKING:
    from hf_exposure.attacks.candidates import Candidate as Candidate
    from hf_exposure.attacks.candidates import Candidates as Candidates
    from hf_exposure.attacks.candidates import rank_candidates as rank_candidates
    from hf_exposure.attacks.discoverable import discoverable_extraction as discoverable_extraction
    from hf_exposure.attacks.examples import Discoverable as Discoverable
    from hf_exposure.attacks.extraction import Extraction as Extraction
    from hf_exposure.attacks.extraction import Extractions as Extractions
    from hf_exposure.attacks.extraction import extract_secrets as extract_secrets
    from hf_exposure.attacks.generation import generate_secrets as generate_secrets
    from hf_exposure.attacks.generations import Generations as Generations
    from hf_exposure.attacks.membership import MembershipTest as MembershipTest
    from hf_exposure.attacks.membership import MembershipTestRow as MembershipTestRow
    from hf_exposure.attacks.membership import membership_test as membership_test
    from hf_exposure.attacks.pairs import load_benchmark as load_benchmark
    from hf_exposure.attacks.texts import TextScore as TextScore
    from hf_exposure.attacks.texts import TextScores as TextScores
    from hf_exposure.attacks.texts import score_texts as score_texts
    from hf_exposure.audit.audit import audit_dataset as audit_dataset
    from hf_exposure.audit.detectors import find_secrets as find_secrets
    from hf_exposure.audit.results import Audit as Audit
    from hf_exposure.audit.results import AuditEntry as AuditEntry
    from hf_exposure.canaries.canary import Canary as Canary
    from hf_exposure.canaries.formats import SecretFormat as SecretFormat
    from hf_exposure.canaries.injection import inject_canaries as inject_canaries
    from hf_exposure.canaries.injector import CanaryInjector as CanaryInjector
    from hf_exposure.canaries.insertion import Insertion as Insertion
    from hf_exposure.canaries.limits import Limits as Limits
    from hf_exposure.canaries.loading import load_canaries as load_canaries
    from hf_exposure.canaries.rows import load_rows as load_rows
    from hf_exposure.canaries.sets import Canaries as Canaries
    from hf_exposure.canaries.verification import verify_injection as verify_injection
    from hf_exposure.canaries.words import choose_words as choose_words
    from hf_exposure.endpoints.completions import CompletionsScorer as CompletionsScorer
    from hf_exposure.exposure.canary_scores import canary_scores as canary_scores
    from hf_exposure.exposure.details import FormatDetails as FormatDetails
    from hf_exposure.exposure.epsilon import EpsilonBound as EpsilonBound
    from hf_exposure.exposure.epsilon import estimate_epsilon as estimate_epsilon
    from hf_exposure.exposure.estimators import sampling_exposure as sampling_exposure
    from hf_exposure.exposure.history import History as History
    from hf_exposure.exposure.history import Measurement as Measurement
    from hf_exposure.exposure.limits import Check as Check
    from hf_exposure.exposure.limits import Verdict as Verdict
    from hf_exposure.exposure.measure import measure_exposure as measure_exposure
    from hf_exposure.exposure.membership import Membership as Membership
    from hf_exposure.exposure.membership import MembershipRow as MembershipRow
    from hf_exposure.exposure.records import Exposure as Exposure
    from hf_exposure.exposure.results import BudgetError as BudgetError
    from hf_exposure.exposure.results import Exposures as Exposures
    from hf_exposure.exposure.skew_normal import SkewNormal as SkewNormal
    from hf_exposure.exposure.skew_normal import skewnorm_exposure as skewnorm_exposure
    from hf_exposure.metrics import metric_path as metric_path
    from hf_exposure.models.loading import load_model as load_model
    from hf_exposure.reports.cards import add_exposure_to_card as add_exposure_to_card
    from hf_exposure.reports.cards import add_privacy_to_card as add_privacy_to_card
    from hf_exposure.reports.evidence import Evidence as Evidence
    from hf_exposure.reports.hub import push_exposure as push_exposure
    from hf_exposure.reports.page import write_report as write_report
    from hf_exposure.reports.plots import (
        plot_exposure_by_repetitions as plot_exposure_by_repetitions,
    )
    from hf_exposure.reports.plots import plot_exposure_over_training as plot_exposure_over_training
    from hf_exposure.reports.plots import plot_extraction_cost as plot_extraction_cost
    from hf_exposure.reports.plots import plot_log_perplexities as plot_log_perplexities
    from hf_exposure.training.callback import ExposureCallback as ExposureCallback
    from hf_exposure.training.private.accounting import group_epsilon as group_epsilon
    from hf_exposure.training.private.accounting import noise_for_epsilon as noise_for_epsilon
    from hf_exposure.training.private.accounting import spent_epsilon as spent_epsilon
    from hf_exposure.training.private.arguments import PrivacyArguments as PrivacyArguments
    from hf_exposure.training.private.trainer import PrivateTrainer as PrivateTrainer
    from hf_exposure.tree.scoring import Scorer as Scorer
