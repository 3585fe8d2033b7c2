"""Files that are either whole or not there, and clear words where they cannot be."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path` so that a reader, or a crash, never sees half of it.

    The bytes go to a temporary file in the same folder, which is then renamed over `path`;
    an existing file stays as it was until that moment. Missing folders are made.

    Raises:
        IsADirectoryError: `path` is a folder.
        OSError: the folder cannot be made or written to; nothing is left behind.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{os.fspath(path)!r} is a folder; name a file in it")
    target.parent.mkdir(parents=True, exist_ok=True)
    # A link stays a link: what it points to is replaced.
    target = target.resolve()
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(target))
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8, whole or not at all; see `write_bytes`."""
    return write_bytes(path, text.encode("utf-8"))


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
    except ValueError as error:
        message = str(error)
    # The decoder's own exception carries the whole text, with its secrets.
    raise ValueError(f"{where}: {name!r}: {message}")


def _mode(target: Path) -> int:
    """The permissions that `open(target, "w")` would leave the file with."""
    if target.exists():
        return target.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask
