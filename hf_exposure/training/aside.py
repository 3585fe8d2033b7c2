"""What stays here while the Trainer uploads its folder: figures with a row for each canary.

On the Hub are figures of groups, those of the model card, unless the callback was told otherwise.
The Trainer uploads all that lies in its folder but what begins with "_". So files with a row for
each canary lie below such a name until the upload has ended, and come back then. A checkpoint that
is uploaded goes without our part of the Trainer's state.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_exposure.training.keeping import STATE, STATE_FILE
from hf_exposure.utils.files import write_text

ASIDE = "_not_uploaded"  # in the Trainer's folder


class Aside:
    """Files that lie aside while their folder is uploaded.

    Guarantees:

    - A file that is written meanwhile is written there, and not lost (`place`, under `lock`).
    - All come back when the last upload has ended, however it has. What a process that was killed
      has left is put back by `restore`.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._folder: Path | None = None  # while uploads are on
        self._going: list[Future[Any]] = []
        self._known = False
        self._shortened: dict[Path, str] = {}  # what lies in place of a file, by its path

    def put(self, folder: str | os.PathLike[str], history: Path, step: int) -> None:
        """Put files aside before an upload: the history with its old ones, and states.

        Args:
            folder: that is uploaded.
            history: the history's file, which need not be in it.
            step: the checkpoint of which may be uploaded.
        """
        with self.lock:
            if not self._known:  # where nothing tells of the end of an upload
                atexit.register(self._back)
                self._known = True
            self._folder = Path(folder).resolve()
            if self._inside(history) and history.parent.is_dir():
                for path in sorted(history.parent.iterdir()):
                    if path.name == history.name or path.name.startswith(f"{history.name}.old"):
                        self._move(path)
            for checkpoint in (self._folder, self._folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"):
                state = checkpoint / STATE_FILE
                short = _without_history(state)
                if short is not None:
                    self._move(state)
                    self._shortened[state] = short
                    write_text(state, short)

    def place(self, path: Path) -> Path:
        """Where a file of that name lies now."""
        return self._aside(path) if self._folder is not None and self._inside(path) else path

    def until(self, uploads: Iterable[Any] = ()) -> None:
        """Put all back as soon as these uploads, and those of earlier calls, have ended; what is no
        `Future` has."""
        new = [one for one in uploads if isinstance(one, Future)]
        with self.lock:
            self._going = [one for one in [*self._going, *new] if not one.done()]
            if not self._going:
                self._back()
        for one in new:
            if not one.done():
                one.add_done_callback(lambda _: self.until())

    def _back(self) -> None:
        if self._folder is not None:
            restore(self._folder, self._shortened)
        self._folder, self._shortened = None, {}

    def _inside(self, path: Path) -> bool:
        assert self._folder is not None
        return path.resolve().is_relative_to(self._folder)

    def _aside(self, path: Path) -> Path:
        assert self._folder is not None
        return self._folder / ASIDE / path.resolve().relative_to(self._folder)

    def _move(self, path: Path) -> None:
        target = self._aside(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)


def restore(folder: str | os.PathLike[str], shortened: dict[Path, str] | None = None) -> None:
    """Put back what lies aside in a folder.

    Args:
        shortened: what was written in place of some states; one that was written anew stays.
    """
    root = Path(folder).resolve()
    for path in sorted((root / ASIDE).rglob("*")):
        if not path.is_file():
            continue
        target = root / path.relative_to(root / ASIDE)
        if path.name != STATE_FILE:
            if not target.exists():
                os.replace(path, target)
        elif target.exists() and _is_shortened(target, path, (shortened or {}).get(target)):
            os.replace(path, target)
        else:  # it was written anew, or is of a checkpoint that is no longer kept
            path.unlink()
    for path in [*sorted((root / ASIDE).rglob("*"), reverse=True), root / ASIDE]:
        with contextlib.suppress(OSError):
            path.rmdir()


def _is_shortened(there: Path, whole: Path, written: str | None) -> bool:
    return there.read_text(encoding="utf-8") == (written or _without_history(whole))


def _without_history(path: Path) -> str | None:
    """A Trainer's state without our part; None if there is no such part, or no such file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        states = data["stateful_callbacks"]
        del states[STATE]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return json.dumps(data, indent=2, sort_keys=True) + "\n"
