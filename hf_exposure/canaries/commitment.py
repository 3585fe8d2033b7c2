"""Commitments to a manifest: to be opened and checked later, and telling nothing until then.

A plain hash of a nine-digit secret is found out by trying all of them. What is shown is an HMAC
whose key, the manifest's salt of 256 random bits, stands in the manifest only.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable
from typing import Any

from hf_exposure.canaries.sets import Canaries


def commitment(canaries: Canaries, about: str, content: Any) -> str:
    """HMAC-SHA256 of something that JSON can hold, as hexadecimal digits.

    Args:
        canaries: whose salt is the key.
        about: what it is, so that no commitment can be taken for another.

    Raises:
        ValueError: the set has no salt, for it was never saved.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return keyed_digest(canaries, about, [text.encode()])


def keyed_digest(canaries: Canaries, about: str, parts: Iterable[bytes]) -> str:
    """The same of bytes, which may be many."""
    if canaries.salt is None:
        raise ValueError(
            "canaries: the set has no salt to commit with, which saving draws; save it, or load "
            "the manifest that Canaries.save has written"
        )
    digest = hmac.new(bytes.fromhex(canaries.salt), f"hf-exposure {about}\n".encode(), "sha256")
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def manifest_commitment(canaries: Canaries) -> str:
    """The commitment to the canaries of a set, in order: formats, secrets and repetitions.

    How they were inserted and which limits were set may be added to a manifest, so they are no part
    of it.
    """
    kept = {name: canaries.to_dict()[name] for name in ("formats", "canaries", "inclusion")}
    return commitment(canaries, "manifest", kept)


def same(one: str, other: str) -> bool:
    """Whether two commitments are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())
