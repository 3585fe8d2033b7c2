"""Canaries that no model was trained on: how many are detected, by every method and every score.

"Detected at a false-positive rate of 1 %" is a promise: of canaries that were never trained on at
most 1 % may be detected. Here 10,000 of them are for each row, a hundred at a time, that pass for
inserted ones, each time in another untrained model: a flat one, to which all strings are nearly
alike, or a sharp one, which is sure of nonsense. Spaces are small (10,000 strings) and large.

"skewnorm" detects what "sampling" detects, for it counts canaries among the same references, and is
left out: a fit for each set takes longer than all else.

    python benchmarks/null_canaries.py                       # half an hour on one core
    python benchmarks/null_canaries.py --only exact zlib     # some methods and scores
    python benchmarks/null_canaries.py --seed 100            # other sets and models
    python benchmarks/null_canaries.py --smoke               # 20 canaries a row, in seconds
    python benchmarks/null_canaries.py --json FILE           # all figures
"""

from __future__ import annotations

import argparse
import json
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from scipy import stats

from hf_exposure import Canaries, Exposures, SecretFormat, measure_exposure
from hf_exposure.cli.small import paragraphs, small_llama, train_tokenizer
from hf_exposure.exposure.scores import SCORES
from hf_exposure.utils.files import write_text

METHODS = ("auto", "exact", "sampling")
OTHERS = tuple(score for score in SCORES if score != "log_perplexity")
RATES = (0.01, 0.001)
LEVEL = 0.95  # of the interval of what is expected
SCALES = {"flat": 0.02, "sharp": 1.0}  # standard deviation of the weights


@dataclass(frozen=True)
class Size:
    """How much is done."""

    digits: tuple[int, ...]
    digits_of_exact: tuple[int, ...]
    together: int  # canaries in one set
    sets: int
    draws: int  # of auto
    references: int  # over 1,000 of them, so that the first may have a p-value of 0.1 %


FULL = Size((4, 6), (4, 5), together=100, sets=100, draws=500, references=1049)
SMOKE = Size((3,), (3,), together=20, sets=1, draws=50, references=119)


@dataclass(frozen=True)
class Cell:
    """What one way of measuring has detected at one rate.

    Attributes:
        fpr: the false-positive rate that is claimed.
        stated: what can be reached of it, on average over the sets: 9 of 990 strings are 0.91 %.
        undecided: canaries whose rank's interval lies across the rate.
        low, high: between them `count` coins of that probability fall with 95 %.
    """

    fpr: float
    stated: float
    count: int
    detected: int
    undecided: int
    low: int
    high: int

    @property
    def verdict(self) -> str:
        """Whether it is as expected; undecided canaries may be either."""
        if self.detected > self.high:
            return "more"
        return "as stated" if self.detected + self.undecided >= self.low else "fewer"


@dataclass(frozen=True)
class Row:
    """One way of measuring, in one space, of one kind of model; a cell for each rate."""

    way: str
    secret: str
    model: str
    cells: tuple[Cell, ...]


def ways(size: Size) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Method or score, digits and arguments of every way to measure."""
    for method in METHODS:
        samples = {"auto": size.draws, "exact": 0}.get(method, size.references)
        for digits in size.digits_of_exact if method == "exact" else size.digits:
            yield method, digits, {"method": method, "samples": samples}
    for score in OTHERS:
        for digits in size.digits:
            yield score, digits, {"score": score, "samples": size.references}


def llama(vocabulary: int, seed: int, scale: float) -> Any:
    """An untrained Llama of one layer, 32 wide."""
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "initializer_range": scale}
    return small_llama(vocabulary, seed, **shape, **heads).eval()


def reachable(found: Exposures, rate: float) -> float:
    """The largest p-value up to a rate: ranks are among finitely many strings or references."""
    ((fmt, details),) = found.formats.items()
    if all(one.exact for one in found) or details.references is None:
        among = fmt.size - len(found) + 1
    else:
        among = 1 + len(details.references)
    return math.floor(rate * among + 1e-9) / among


def simulate(
    tokenizer: Any, secret: str, scale: float, size: Size, first: int, given: dict[str, Any]
) -> tuple[Cell, ...]:
    """The cells of a row.

    All seeds of a set are the same, as by default: what is drawn for the canaries, the references
    and the weights must not hang together for all that.
    """
    fmt = SecretFormat("My code is {secret}.", secret)
    totals, stated = np.zeros((len(RATES), 3), dtype=int), np.zeros(len(RATES))
    for seed in range(first, first + size.sets):
        model, base = llama(len(tokenizer), seed, scale), None
        if given.get("score") == "ratio":
            base = llama(len(tokenizer), 1_000_000 + seed, scale)
        canaries = Canaries.generate(fmt, [1], per_repetition=size.together, seed=seed)
        found = measure_exposure(model, tokenizer, canaries, seed=seed, base=base, **given)
        rows = [row for row in found.membership(RATES) if row.repetitions is None]
        totals += [[row.count, row.detected, row.undecided] for row in rows]
        stated += [reachable(found, rate) / size.sets for rate in RATES]
    return tuple(
        Cell(rate, share, *counts, *interval(counts[0], share))
        for rate, share, counts in zip(RATES, stated.tolist(), totals.tolist(), strict=True)
    )


def interval(count: int, share: float) -> tuple[int, int]:
    """Between what so many coins of that probability fall, with a probability of `LEVEL`."""
    low, high = stats.binom.interval(LEVEL, count, share)
    return int(low), int(high)


def in_table(row: Row) -> str:
    """A line of the table."""
    cells = [f"{one.detected} ({one.undecided}) | {one.low}–{one.high}" for one in row.cells]
    return f"| {row.way} | `{row.secret}` | {row.model} | {' | '.join(cells)} |"


def verdicts(rows: list[Row]) -> str:
    """How many figures are as expected."""
    found = [cell.verdict for row in rows for cell in row.cells]
    told = ", ".join(f"{found.count(name)} {name}" for name in ("as stated", "fewer", "more"))
    return f"Of {len(found)} figures: {told}."


def main(arguments: list[str] | None = None) -> None:
    """Measure in every way, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sets", type=int, help="of 100 canaries, for each row; 100 by default")
    parser.add_argument("--seed", type=int, default=0, help="of the first set")
    parser.add_argument("--only", nargs="+", choices=METHODS + OTHERS, default=METHODS + OTHERS)
    parser.add_argument("--smoke", action="store_true", help="20 canaries a row, in a small space")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args(arguments)
    size = SMOKE if options.smoke else FULL
    if options.sets is not None:
        size = replace(size, sets=options.sets)
    tokenizer = train_tokenizer(paragraphs()[:200], 320)
    print(
        "| ranked by | secret | model | at 1 % (undecided) | expected | at 0.1 % (undecided) "
        "| expected |"
    )
    print("|---|---|---|---:|---:|---:|---:|", flush=True)
    rows = []
    for way, digits, given in ways(size):
        if way not in options.only:
            continue
        for model, scale in SCALES.items():
            secret = f"[0-9]{{{digits}}}"
            with warnings.catch_warnings():  # untrained models are worse than guessing
                warnings.filterwarnings("ignore", "measure_exposure: most canaries")
                cells = simulate(tokenizer, secret, scale, size, options.seed, given)
            rows.append(Row(way, secret, model, cells))
            print(in_table(rows[-1]), flush=True)
    print("\n" + verdicts(rows))
    if options.json is not None:
        text = json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False)
        write_text(options.json, text + "\n")


if __name__ == "__main__":
    main()
