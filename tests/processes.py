"""Processes that tests start."""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]

# Seconds after which a process hangs. Far more than any takes on a machine that is busy with
# something else: a test that fails at the limit says something about the code, not about the day.
LIMIT = 1800

# Starting Python with all libraries takes longer than most of what the tests' processes do, so they
# are forked from one that has loaded them and does nothing else. Elsewhere forking is not safe.
_CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
_CONTEXT.set_forkserver_preload(["tests.preloaded"])


def finished(command: Sequence[Any], **options: Any) -> subprocess.CompletedProcess[str]:
    """What a command printed, and its exit code."""
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=LIMIT, **options
    )


def python(
    arguments: Sequence[Any], cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What `python *arguments` prints in a process that has loaded the libraries already.

    Variables of the environment that the libraries read when they are loaded have no effect: for
    those take `finished`.
    """
    with TemporaryDirectory() as folder:
        process = forked(arguments, folder, cwd, env)
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(list(map(str, arguments)), LIMIT)
        out, err = (Path(folder, name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess(list(map(str, arguments)), process.exitcode, out, err)


def forked(
    arguments: Sequence[Any],
    folder: str | Path,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
) -> multiprocessing.process.BaseProcess:
    """`python *arguments` begun in a process that has loaded the libraries already.

    Args:
        folder: where the files "out" and "err" get what it prints.
    """
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    given = [str(part) for part in arguments], str(cwd), settings, str(folder)
    process = _CONTEXT.Process(target=_run, args=given)
    process.start()
    return process


def _run(command: list[str], cwd: str, settings: dict[str, str], folder: str) -> None:
    """In the process: what Python does with its arguments."""
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
    os.environ.clear()
    os.environ.update(settings)
    os.chdir(cwd)
    first, *rest = command
    paths = [part for part in settings.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.path[:0] = [cwd if first in ("-c", "-m") else str(Path(first).parent), *paths]
    try:
        if first == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        elif first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
            runpy.run_path(first, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # as Python does at its end, and a forked process does not


def launched(function: Callable[[str], None], folder: Path) -> subprocess.CompletedProcess[str]:
    """A module's function, called with the folder in two processes that torch.distributed joins.

    They are forked from a process of its own: one that has trained already cannot be forked.
    """
    code = f"from tests.processes import launch; launch({function.__module__!r}, "
    return python(["-c", f"{code}{function.__name__!r}, {str(folder)!r})"])


def launch(module: str, name: str, folder: str) -> None:
    """Call a function in two processes that torch.distributed joins."""
    from accelerate import debug_launcher

    debug_launcher(getattr(importlib.import_module(module), name), args=(folder,), num_processes=2)
