"""Atomic file writes, and clear words where a file cannot be read or written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

try:
    import fcntl
except ImportError:  # Windows: what killed runs leave there stays
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
TEMPORARY = "_hf-exposure-"


def write_bytes(
    path: str | os.PathLike[str],
    data: bytes,
    *,
    mode: int | None = None,
    where: str = "",
    overwrite: bool = True,
) -> Path:
    """Write `data` to `path` so that a reader, or a crash, never sees half of it; see `replacing`.

    Args:
        mode: permissions of a new file, such as 0o600; None: those that `open` would give.
        where: the function or argument that got the path, to begin errors with.
        overwrite: replace a file that is there; otherwise only one with this very content is fine.

    Raises:
        FileExistsError: another file is there, and not `overwrite`.
    """
    if not overwrite and os.path.isfile(path) and os.path.getsize(path):
        if Path(path).read_bytes() == data:
            return Path(path)
        raise FileExistsError(there_already(path, where))
    with replacing(path, mode=mode) as file:
        file.write(data)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str, **options: Any) -> Path:
    """Write `text` as UTF-8, whole or not at all; see `write_bytes`."""
    return write_bytes(path, text.encode("utf-8"), **options)


def there_already(path: str | os.PathLike[str], where: str = "") -> str:
    """What to say of a file that is not replaced."""
    start = f"{where}: " if where else ""
    return (
        f"{start}{os.fspath(path)!r} is there already, and is not replaced unless asked to: "
        "pass overwrite=True, or name another file"
    )


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` at the end of the block.

    It is a temporary file in the same folder, renamed over `path`; an existing file stays as it was
    until that moment, and the new one has its permissions and owner. Missing folders are made. A
    symbolic link stays one: what it points to is replaced. A device, a FIFO, a file with several
    hard links, or one whose owner only it can keep, is written to in place.

    Args:
        mode: permissions of a new file; None: those that `open` would give.

    Raises:
        IsADirectoryError: `path` is a folder.
        OSError: the folder cannot be made or written to; nothing is left behind.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{os.fspath(path)!r} is a folder; name a file in it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = f"{os.fspath(path)!r} cannot be written: {error.strerror}"
        raise type(error)(error.errno, said) from None
    if target.exists() and not target.is_file():
        with open(target, "wb") as file:  # resolving /dev/stdout would name what is behind it
            yield file
        return
    target = _resolved(target)
    old = target.stat() if target.exists() else None
    with temporary(target.parent) as made:
        with os.fdopen(os.open(made, os.O_WRONLY), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not _like(made, old, mode):
            with open(made, "rb") as whole, open(target, "wb") as file:
                shutil.copyfileobj(whole, file)
            return
        os.replace(made, target)


@contextlib.contextmanager
def temporary(folder: Path, *, is_folder: bool = False) -> Iterator[Path]:
    """A temporary file or folder that is gone afterwards, unless it was renamed.

    Its name begins with "_", which the Trainer does not upload. What killed runs have left in
    `folder` is removed: they no longer hold the lock on it.
    """
    with contextlib.suppress(OSError):
        for left in folder.glob(f"{TEMPORARY}*"):
            _remove_unless_locked(left)
    while True:
        if is_folder:
            made = Path(tempfile.mkdtemp(dir=folder, prefix=TEMPORARY))
        else:
            handle, name = tempfile.mkstemp(dir=folder, prefix=TEMPORARY)
            os.close(handle)
            made = Path(name)
        handle = os.open(made, os.O_RDONLY)
        try:
            _lock(handle)
            if not made.exists():  # taken for a killed run's before it was locked
                continue
            yield made
            return
        finally:
            os.close(handle)
            _remove(made)


def remove_left(folder: str | os.PathLike[str]) -> None:
    """Remove what killed runs have left anywhere in a folder, before it is uploaded."""
    with contextlib.suppress(OSError):
        for left in list(Path(folder).rglob(f"{TEMPORARY}*")):
            _remove_unless_locked(left)


def _remove_unless_locked(path: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        try:
            if _lock(handle, wait=False):
                _remove(path)
        finally:
            os.close(handle)


def _lock(handle: int, wait: bool = True) -> bool:
    """Whether this process has the lock on an open file now; it ends with the process."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # somebody else's, or a file system without locks
        return False
    return True


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def _resolved(target: Path) -> Path:
    try:
        return target.resolve()
    except RuntimeError:  # what Python up to 3.12 makes of it
        raise OSError(f"{os.fspath(target)!r} is a link that leads back to itself") from None


def _like(made: Path, old: os.stat_result | None, mode: int | None) -> bool:
    """Give a new file the permissions and owner of the old one; False if it cannot stand in."""
    if old is None:
        if mode is None:
            umask = os.umask(0)
            os.umask(umask)
            mode = 0o666 & ~umask
        os.chmod(made, mode)
        return True
    if old.st_nlink > 1:
        return False
    now = made.stat()
    if (now.st_uid, now.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.chown(made, old.st_uid, old.st_gid)
        except OSError:
            return False
    os.chmod(made, stat.S_IMODE(old.st_mode))
    return True


def chunks(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The bytes of a file, a mebibyte at a time."""
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            yield part


def load_json(
    path: str | os.PathLike[str], read: Callable[[Any], T], where: str, wanted: str = "another one"
) -> T:
    """What `read` makes of a JSON file, with errors that name the path.

    Args:
        where: the function or argument that got the path, to begin errors with.
        wanted: what to give, to end errors with, such as "what Exposures.save has written".

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is not JSON, or `read` raised one.
    """
    name = os.fspath(path)
    try:
        return read(json.loads(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise FileNotFoundError(f"{where}: there is no file {name!r}; give {wanted}") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{where}: {name!r} is a folder; give {wanted}") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise type(error)(f"{where}: {name!r} cannot be read ({reason}); give {wanted}") from None
    except json.JSONDecodeError as error:
        message = f"is not valid JSON: {error}"
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 text: {error.reason}"
    except RecursionError:
        message = "is nested too deeply"
    except ValueError as error:
        message = str(error)
    # The decoder's own exception carries the whole text, with its secrets.
    raise ValueError(f"{where}: {name!r}: {message}")
