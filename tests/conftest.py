"""One thread for each test process, and no network: set before torch and the libraries load.

No test depends on how busy the machine is: Hypothesis has no deadline and draws the same examples.
"""

from __future__ import annotations

import gc
import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

# Collecting makes many objects that stay (modules, tests). The garbage collector would look through
# all of them again and again: a fifth of the time that collecting takes, and more in each test.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
