"""A progress bar for anything long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(show: bool, what: str = "exposure") -> Iterator[Callable[[int], None]]:
    """A bar that counts token-forwards, or none: gives the function to call with the count."""
    if not show:
        yield lambda forwards: None
        return
    from tqdm.auto import tqdm

    with tqdm(desc=what, unit=" token-forwards", unit_scale=True) as bar:

        def tick(forwards: int) -> None:
            bar.n = forwards
            bar.refresh()

        yield tick
