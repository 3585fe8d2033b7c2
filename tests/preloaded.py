"""What nearly every process of the tests loads, loaded once: they are forked from here."""

import accelerate  # noqa: F401
import datasets  # noqa: F401
import tokenizers  # noqa: F401
import torch.utils.data  # noqa: F401
from transformers import (  # noqa: F401
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
)

from hf_exposure import (  # noqa: F401
    ExposureCallback,
    audit_dataset,
    extract_secrets,
    measure_exposure,
)
