"""A progress bar for anything long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO


@contextmanager
def progress_bar(show: bool, what: str = "exposure") -> Iterator[Callable[[int], None]]:
    """A bar that counts token-forwards, or none: gives the function to call with the count."""
    if not show:
        yield lambda forwards: None
        return
    from tqdm.auto import tqdm

    with tqdm(desc=what, unit=" token-forwards", unit_scale=True) as bar:

        def tick(forwards: int) -> None:
            bar.update(forwards - bar.n)  # shown ten times a second at most

        yield tick


@contextmanager
def writing_bar(show: bool, file: BinaryIO, size: int) -> Iterator[BinaryIO]:
    """A file to write to, with a bar of the bytes written of about `size`, or none."""
    if not show:
        yield file
        return
    from tqdm.auto import tqdm

    with tqdm.wrapattr(file, "write", total=size, desc="inserting") as watched:
        yield watched
