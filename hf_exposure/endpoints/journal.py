"""What a server has answered, kept so that nothing has to be paid for twice after a fault.

In memory it lasts until a measurement has ended well; in a file also through the end of this
process, killed or not. The key of an answer is a hash of what was asked and of how often that had
been asked before: asking twice shows the noise of a server, and has to be possible.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, TypeVar

T = TypeVar("T")


class Journal:
    """Answers by what was asked.

    Args:
        path: a file, made if it is not there, that only its owner may read: what is in it tells
            how likely secrets are. None keeps them in memory.

    Raises:
        ValueError: the file is something else.
        OSError: it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else os.fspath(path)
        self._lock = threading.Lock()
        self._asked: Counter[bytes] = Counter()
        self._kept: dict[bytes, bytes] = {}
        self._active = path is not None
        self._file: sqlite3.Connection | None = None
        if self.path is not None:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self._file = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
            try:
                self._file.execute("PRAGMA journal_mode=WAL")
                self._file.execute("PRAGMA synchronous=NORMAL")
                self._file.execute(
                    "CREATE TABLE IF NOT EXISTS answers (asked BLOB PRIMARY KEY, answer BLOB)"
                )
            except sqlite3.DatabaseError:
                self._file.close()
                raise ValueError(
                    f"CompletionsScorer: journal={self.path!r} is no journal of answers; give the "
                    "name of a new file"
                ) from None

    def key(self, *asked: object) -> bytes:
        """The key of a question, another one each time that it is asked."""
        digest = blake2b(repr(asked).encode(), digest_size=20).digest()
        with self._lock:
            self._asked[digest] += 1
            return digest + self._asked[digest].to_bytes(4, "big")

    def get(self, key: bytes) -> bytes | None:
        """The answer, if there is one."""
        with self._lock:
            found = self._kept.get(key)
            if found is None and self._file is not None:
                row = self._file.execute(
                    "SELECT answer FROM answers WHERE asked = ?", (key,)
                ).fetchone()
                found = None if row is None else row[0]
        return found

    def put(self, answers: dict[bytes, bytes]) -> None:
        """Keep some answers. Those in a file are written when this returns."""
        if not self._active:
            return
        with self._lock:
            if self._file is None:
                self._kept.update(answers)
                return
            self._file.execute("BEGIN")
            self._file.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", answers.items())
            self._file.execute("COMMIT")

    @contextmanager
    def measurement(self) -> Iterator[None]:
        """Keep answers until the block ends well; after an error the next one takes them up."""
        self._asked.clear()
        self._active = True
        try:
            yield
        finally:
            self._active = self._file is not None
        self._kept.clear()


@dataclass
class Answers(Generic[T]):
    """Answers of one kind: those that were kept, and the server's for the rest.

    The first one that was kept is asked for again, to see that the model is still the same.

    Args:
        journal: where they are kept.
        url: who is asked, for messages.
        write, read: an answer as bytes, and back.
        alike: whether two answers differ by no more than rounding.
        same: whether one that was kept has been compared.
    """

    journal: Journal
    url: str
    write: Callable[[T], bytes]
    read: Callable[[bytes], T]
    alike: Callable[[T, T], bool]
    same: bool = False

    def find(
        self, keys: Sequence[bytes], ask: Callable[[list[int], list[bytes]], Iterable[T]]
    ) -> list[T]:
        """The answers to some questions, in their order.

        Args:
            keys: of the questions.
            ask: the server's answers to the questions at some places. It has to `keep` them under
                the keys that it gets too: none, if they are not to be kept.

        Raises:
            ValueError: what was kept are the answers of another model.
        """
        found = [self.journal.get(key) for key in keys]
        known = {place: self.read(one) for place, one in enumerate(found) if one is not None}
        if known and not self.same:
            self.same = True
            first = next(iter(known))
            (again,) = ask([first], [])
            if not self.alike(again, known[first]):
                raise ValueError(
                    f"CompletionsScorer: what was kept of {self.url} are the answers of another "
                    "model; give another file as journal, or make a new scorer"
                )
        missing = [place for place in range(len(keys)) if place not in known]
        if missing:
            asked = ask(missing, [keys[place] for place in missing])
            known.update(zip(missing, asked, strict=True))
        return [known[place] for place in range(len(keys))]

    def keep(self, keys: Sequence[bytes], answers: Iterable[T]) -> None:
        """Keep the answers that have keys."""
        self.journal.put(dict(zip(keys, map(self.write, answers), strict=False)))
