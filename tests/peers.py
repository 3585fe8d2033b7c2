"""Implementations by others, to compare with; `make` puts their wheels into the environment."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(sys.prefix) / "peers"


def load_peer(path: str) -> Any:
    """A module of theirs by its file, without the package around it and what that needs.

    Where it is not installed the test is skipped, with a word on how to have it.
    """
    file = FOLDER / path
    if not file.is_file():
        pytest.skip(f"{path} is not there; `make test` installs it (see PEERS_dev in the Makefile)")
    name = f"peer_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def peer_package(name: str) -> Iterator[Any]:
    """A package of theirs, whose modules import each other; nothing of it stays behind."""
    if not (FOLDER / name).is_dir():
        pytest.skip(f"{name} is not there; `make test` installs it (see PEERS_dev in the Makefile)")
    sys.path.append(str(FOLDER))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))
        for module in [one for one in sys.modules if one.partition(".")[0] == name]:
            del sys.modules[module]
