"""Processes that tests start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# Seconds after which a process hangs. Far more than any takes on a machine that is busy with
# something else: a test that fails at the limit says something about the code, not about the day.
LIMIT = 1800

_LAUNCH = """
import importlib, sys
from accelerate import debug_launcher
module, name, folder = sys.argv[1:]
debug_launcher(getattr(importlib.import_module(module), name), args=(folder,), num_processes=2)
"""


def finished(command: Sequence[Any], **options: Any) -> subprocess.CompletedProcess[str]:
    """What a command printed, and its exit code."""
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=LIMIT, **options
    )


def launched(function: Callable[[str], None], folder: Path) -> subprocess.CompletedProcess[str]:
    """A module's function, called with the folder in two processes that torch.distributed joins.

    They are forked from a process of its own: one that has trained already cannot be forked.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", _LAUNCH, function.__module__, function.__name__, folder]
    return finished(command, cwd=ROOT, env=env)
