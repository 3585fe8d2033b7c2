"""Where each copy of a canary goes: a function of canary, seed and number of rows alone.

So batches, processes and streams all give the same rows, and a further canary moves no other one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from operator import itemgetter

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.drawing import derived
from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.sets import Canaries

VERSION = 1  # part of the fingerprint of injectors, so that no cache outlives a change
# A place within a row or between two, in [0, 1), and what goes there: not its text, which whatever
# logs the values of variables with an error would show.
Copies = list[tuple[float, Canary]]
_BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")


def places_of(canaries: Canaries, insertion: Insertion) -> dict[int, Copies]:
    """Row -> what goes before it ("rows") or into it ("splice"), in order; the end is the number
    of rows."""
    rows = insertion.num_examples or 0
    out: dict[int, Copies] = {}
    for canary in canaries.inserted:
        draw = derived(insertion.seed or 0, "places", canary.text)
        choices = rows + (insertion.mode == "rows")
        if insertion.near_start:
            choices = min(rows, max(-(-rows // 100), canary.repetitions))
        for _ in range(canary.repetitions):
            place = draw.randrange(choices)
            out.setdefault(place, []).append((draw.random(), canary))
    for copies in out.values():
        copies.sort(key=lambda copy: (copy[0], copy[1].text))
    return out


def parts(here: list[tuple[int, Copies]], length: int) -> Iterator[tuple[int, int, int]]:
    """Old rows from, old rows to, and how many added rows follow them."""
    done = 0
    for place, copies in here:
        yield done, place, len(copies)
        done = place
    yield done, length, 0


def splice(text: str, copies: Copies) -> str:
    """`text` with each copy, and a space before it, at a space between two words."""
    gaps = [match.start() for match in _BETWEEN_WORDS.finditer(text)] or [len(text)]
    out: list[str] = []
    done = 0
    for fraction, canary in sorted(copies, key=itemgetter(0)):
        place = gaps[int(fraction * len(gaps))]
        out += [text[done:place], " ", canary.text]
        done = place
    return "".join([*out, text[done:]])
