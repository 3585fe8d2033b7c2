# The public names and where each lives: read by type checkers and editors, and by lazy_loader.
from .attacks.candidates import Candidate as Candidate
from .attacks.candidates import Candidates as Candidates
from .attacks.candidates import rank_candidates as rank_candidates
from .attacks.discoverable import discoverable_extraction as discoverable_extraction
from .attacks.examples import Discoverable as Discoverable
from .attacks.extraction import Extraction as Extraction
from .attacks.extraction import Extractions as Extractions
from .attacks.extraction import extract_secrets as extract_secrets
from .attacks.generation import generate_secrets as generate_secrets
from .attacks.generations import Generations as Generations
from .attacks.pairs import load_benchmark as load_benchmark
from .audit.audit import Audit as Audit
from .audit.audit import AuditEntry as AuditEntry
from .audit.audit import audit_dataset as audit_dataset
from .audit.detectors import find_secrets as find_secrets
from .canaries.canary import Canary as Canary
from .canaries.formats import SecretFormat as SecretFormat
from .canaries.insertion import CanaryInjector as CanaryInjector
from .canaries.insertion import inject_canaries as inject_canaries
from .canaries.insertion import verify_injection as verify_injection
from .canaries.loading import load_canaries as load_canaries
from .canaries.rows import load_rows as load_rows
from .canaries.sets import Canaries as Canaries
from .endpoints.completions import CompletionsScorer as CompletionsScorer
from .exposure.details import FormatDetails as FormatDetails
from .exposure.epsilon import EpsilonBound as EpsilonBound
from .exposure.epsilon import canary_scores as canary_scores
from .exposure.epsilon import estimate_epsilon as estimate_epsilon
from .exposure.history import History as History
from .exposure.history import Measurement as Measurement
from .exposure.measure import measure_exposure as measure_exposure
from .exposure.results import BudgetError as BudgetError
from .exposure.results import Exposure as Exposure
from .exposure.results import Exposures as Exposures
from .metrics import metric_path as metric_path
from .models.loading import load_model as load_model
from .reports.page import write_report as write_report
from .training.callback import ExposureCallback as ExposureCallback
from .training.private.accounting import noise_for_epsilon as noise_for_epsilon
from .training.private.accounting import spent_epsilon as spent_epsilon
from .training.private.trainer import PrivacyArguments as PrivacyArguments
from .training.private.trainer import PrivateTrainer as PrivateTrainer
from .tree.scoring import Scorer as Scorer

__version__: str
__all__: list[str]
