"""How much has a language model memorized? Canaries, exposure and extraction for Transformers."""

import logging

import lazy_loader

__version__ = "0.1.0"

logging.getLogger("hf_exposure").addHandler(logging.NullHandler())

# The public names stand in __init__.pyi. Each is imported when it is first asked for, so that
# inserting canaries, and `hf-exposure --help`, do not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
