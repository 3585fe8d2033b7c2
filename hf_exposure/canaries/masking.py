"""Secrets masked in texts that come from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from hf_exposure.canaries.canary import MASK, Canary


def mask_secrets(text: str, canaries: Iterable[Canary]) -> str:
    """`text` with one "•" for each character of every secret in it.

    Those of up to three characters are masked only within their template: alone they tell nothing,
    and any number of a message would do.
    """
    for canary in sorted(set(canaries), key=lambda one: len(one.secret), reverse=True):
        text = text.replace(canary.text, canary.label())
        if len(canary.secret) > 3:
            text = text.replace(canary.secret, MASK * len(canary.secret))
    return text


@contextmanager
def secrets_masked(canaries: Iterable[Canary]) -> Iterator[None]:
    """Masks secrets in errors that pass: one from elsewhere may quote what it was given."""
    try:
        yield
    except Exception as error:
        said = str(error)
        masked = mask_secrets(said, canaries)
        if masked == said:
            raise
        kind = type(error) if type(error) in (ValueError, TypeError, RuntimeError) else RuntimeError
        name = "" if kind is type(error) else f"{type(error).__name__}: "
        raise kind(name + masked) from None
