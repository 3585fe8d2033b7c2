"""The share of one shard: which copies go where in it, for a task that knows nothing of the others.

Shards are numbered, and their documents follow on each other: together they get what one dataset of
all documents would get. Memory grows with the copies and the number of shards alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.places import Copies, places_of
from hf_exposure.canaries.sets import Canaries


@dataclass(frozen=True)
class Share:
    """What one shard gets.

    Attributes:
        shard: its number.
        documents: how many it has before the insertion.
        places: document of the shard -> what goes before it, or into it; `documents` itself is
            behind the last one.
    """

    shard: int
    documents: int
    places: dict[int, Copies]

    @property
    def copies(self) -> int:
        """How many copies the shard gets."""
        return sum(map(len, self.places.values()))

    def check(self, seen: int, ended: bool = False) -> None:
        """Refuse more documents than were counted or, at the end, fewer.

        Raises:
            ValueError: the copies would not go where they belong.
        """
        if seen > self.documents or (ended and seen < self.documents):
            found = f"only {seen}" if ended else "more"
            raise ValueError(
                f"shard {self.shard} was counted to have {self.documents} documents, but has "
                f"{found}, so that canaries would be in wrong places or missing; count what is "
                "read here, with the same number of tasks, and insert again from the start"
            )


def share_of(canaries: Canaries, insertion: Insertion, shard: int) -> Share:
    """The share of one shard of `insertion.shards`."""
    shards = insertion.shards
    assert shards is not None
    starts = [0, *accumulate(shards)]
    last = max(number for number, count in enumerate(shards) if count)
    places: dict[int, Copies] = {}
    for place, copies in places_of(canaries, insertion).items():
        # The last of the shards that begin there has documents; the very end is the last one's.
        own = last if place == starts[-1] else bisect_right(starts, place) - 1
        if own == shard:
            places[place - starts[shard]] = copies
    return Share(shard, shards[shard], dict(sorted(places.items())))


def check_same_shards(
    insertion: Insertion, tasks: int, counts: Sequence[int] | None = None
) -> None:
    """Refuse another number of tasks, or other counts, than those of an insertion.

    Raises:
        ValueError: the tasks would not insert what belongs together.
    """
    shards = insertion.shards or ()
    if len(shards) != tasks or counts not in (None, shards):
        raise ValueError(
            f"the canaries belong into {len(shards)} shards of {insertion.num_examples} documents, "
            f"one for each task, but here are {tasks} tasks or other counts; run as many tasks, or "
            "start again with a copy of the manifest that has no insertion on record"
        )
