"""Canary sets by path or Hub id, and manifests among other files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hf_exposure.canaries.sets import Canaries
from hf_exposure.utils.files import load_json
from hf_exposure.utils.names import is_hub_id, nearby
from hf_exposure.utils.typed import typed

_HEAD = 4096  # bytes that tell text from other files


@typed
def load_canaries(
    name: str | os.PathLike[str], revision: str | None = None, argument: str = "load_canaries"
) -> Canaries:
    """A canary set: the manifest that `Canaries.save` wrote, or an id on the Hub.

    Args:
        name: the path or the id.
        revision: a branch, tag or commit on the Hub.
        argument: what it is called in errors.

    Raises:
        OSError: there is no such file.
        ValueError: it is not a manifest, or a revision is given with a file.
        RuntimeError: the Hub could not be reached, has refused, or has no such set.
    """
    name = os.fspath(name)
    if Path(name).exists() or not is_hub_id(name):
        if revision is not None:
            raise ValueError(
                f"{argument}: {name!r} is a file, which has no revisions; leave out the revision"
            )
        return load_manifest(name, argument)
    try:
        return Canaries.from_hub(name, revision=revision)
    except RuntimeError as error:
        raise RuntimeError(f"{argument}: {error}{nearby(name, 'file')}") from None


def load_manifest(name: str | os.PathLike[str], argument: str = "load_manifest") -> Canaries:
    """A canary set from its manifest.

    Raises:
        OSError, ValueError: see `load_canaries`.
    """
    wanted = "the manifest that `hf-exposure inject` or Canaries.save has written"
    return load_json(name, Canaries.from_dict, argument, wanted)


def is_manifest(data: Any) -> bool:
    """Whether the content of a JSON file looks like a manifest of canaries."""
    keys = {"schema_version", "inclusion", "canaries"}
    return isinstance(data, dict) and "kind" not in data and keys <= data.keys()


def manifests_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Manifests that lie anywhere in a folder, and so would be uploaded with it."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - {".git"})
        found += [Path(parent, name) for name in sorted(names)]
    return [path for path in found if holds_manifest(path)]


def holds_manifest(path: Path) -> bool:
    """Whether a file is a manifest by its content, be it damaged; its name does not matter."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            start = file.read(_HEAD)
            text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
            if b"\0" in start or not text.startswith((b"{", b"[")):
                return False
            missing, before = {b'"schema_version"', b'"canaries"', b'"secret"'}, b""
            file.seek(0)
            while missing and (piece := file.read(1 << 20)):
                missing = {word for word in missing if word not in before + piece}
                before = piece[-20:]
        if missing:
            return False
        whole = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return False
    try:  # of several values, such as a history's lines, the first one
        data, _ = json.JSONDecoder().raw_decode(whole.lstrip())
    except (ValueError, RecursionError):
        return '"kind"' not in whole
    return not (isinstance(data, dict) and isinstance(data.get("kind"), str))
