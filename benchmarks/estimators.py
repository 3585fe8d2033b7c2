"""How close every estimator of exposure comes to the truth, and how often its interval holds it.

A small model is trained on text with numbers of six digits in it. Its logits are multiplied to
flatten or sharpen it: early in training a model is flat, after strong memorization it is sharp.
All 10^6 numbers are scored, which gives every true rank. Then strings of known rank are measured as
if they were canaries, by the package's own exploration and sampling, over many seeds, and by the
paper's two estimators from uniform references.

    python benchmarks/estimators.py                    # minutes; the tables of docs/accuracy.md
    python benchmarks/estimators.py --smoke            # a space of 10^4, in seconds
    python benchmarks/estimators.py --json FILE        # all figures
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.cli.small import paragraphs, small_llama, train_tokenizer
from hf_exposure.exposure.draws import sample
from hf_exposure.exposure.estimators import sampling_exposure
from hf_exposure.exposure.exploring import explore
from hf_exposure.exposure.ranking import ranks
from hf_exposure.exposure.skew_normal import SkewNormal, skewnorm_exposure
from hf_exposure.models.decoder import Decoder
from hf_exposure.models.undisturbed import undisturbed
from hf_exposure.tree.explorer import Explorer
from hf_exposure.tree.frontier import DepthFirst
from hf_exposure.tree.scoring import ScoredTree
from hf_exposure.tree.tokens import TokenTree
from hf_exposure.tree.walk import walk
from hf_exposure.utils.files import write_text

MULTIPLIERS = (0.1, 0.3, 1.0, 3.3, 10.0)
CONFIDENCE = 0.95
METHODS = ("auto", "sampling", "skewnorm")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    digits: int
    ranks: tuple[int, ...]
    steps: int  # of training
    explored: int  # prefixes
    samples: int  # draws, and references
    seeds: int


FULL = Size(6, (10, 100, 1000, 10_000, 100_000, 900_000), 1500, 1000, 2000, 60)
SMOKE = Size(4, (10, 100, 1000, 9000), 300, 100, 400, 12)


@dataclass(frozen=True)
class Row:
    """One method at one true rank under one multiplier, over all seeds.

    Attributes:
        rmse: root mean square error of the exposure in bits.
        coverage: the share of runs whose interval held the truth; None if the method has none.
        bias: mean of estimated rank / true rank, less 1.
        bias_error: the standard error of that mean.
        exact: the share of runs whose rank was certain.
    """

    method: str
    multiplier: float
    rank: int
    rmse: float
    coverage: float | None
    bias: float
    bias_error: float
    exact: float


def train(size: Size, seed: int = 0) -> tuple[Any, Any, SecretFormat]:
    """A tokenizer and a model of two layers, trained on English with numbers in it."""
    draw = np.random.default_rng(seed)
    fmt = SecretFormat("The random number is {secret}", secret=f"[0-9]{{{size.digits}}}")
    planted = fmt.sample(300, seed)
    lines = [fmt.render(planted[place]) for place in draw.integers(len(planted), size=3000)]
    # Other numbers, so that the digits that were never planted have their own frequencies too.
    lines += [f"Line {int(10 ** draw.uniform(0, 7))} of the file" for _ in range(2000)]
    lines += [line for line in paragraphs() if any(char.isdigit() for char in line)]
    tokenizer = train_tokenizer(lines, vocab_size=512)
    end = tokenizer.eos_token_id
    rows = [lines[place] for place in draw.permutation(len(lines))]
    stream = torch.tensor([i for ids in tokenizer(rows)["input_ids"] for i in [end, *ids]])
    blocks = stream[: len(stream) // 64 * 64].view(-1, 64)
    model = small_llama(
        len(tokenizer), seed, hidden_size=64, intermediate_size=192, num_hidden_layers=2
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for step in range(size.steps):
        batch = blocks[torch.from_numpy(draw.integers(len(blocks), size=16))]
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50, 2 * (1 - step / size.steps))
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            progress(f"training: step {step}, loss {loss.item():.2f}")
    return model.eval(), tokenizer, fmt


@contextmanager
def logits_times(model: Any, multiplier: float) -> Iterator[None]:
    """The model with its logits multiplied."""
    hook = model.lm_head.register_forward_hook(lambda module, given, out: out * multiplier)
    try:
        yield
    finally:
        hook.remove()


def all_costs(tree: TokenTree, decoder: Decoder) -> np.ndarray:
    """(10^digits,) the log-perplexity of every number, by scoring all of them."""
    found = Explorer()
    walk(decoder, tree, found, DepthFirst())
    digit = np.array([int(tree.secret([*path])) for path in found.paths])
    costs = np.full(tree.format.size, np.nan)
    costs[digit] = found.log_perplexities
    if np.isnan(costs).any():
        raise RuntimeError("the enumeration has left out some numbers")
    return costs


def measure(
    model: Any, tree: TokenTree, size: Size, multiplier: float
) -> tuple[list[Row], dict[str, Any]]:
    """All methods under one multiplier."""
    fmt = tree.format
    decoder = Decoder(model, tree.prompt, tree.token_ids)
    start = time.perf_counter()
    truth = all_costs(tree, decoder)
    enumerated, seconds = decoder.forwards, time.perf_counter() - start
    order = np.argsort(truth, kind="stable")
    places = order[np.array(size.ranks) - 1]
    paths = tree.paths([fmt.unrank(int(place)) for place in places])

    decoder = Decoder(model, tree.prompt, tree.token_ids)
    decoder.probe(paths[-4:])
    scorer = ScoredTree(tree, decoder)
    costs = scorer.follow(paths)
    tie = max(4 * decoder.noise, 2.0**-20 * float(costs.max()))
    # Strings within the noise of scoring count as ties, so the truth has them, too.
    true = np.array([np.sum(truth <= cost + tie) for cost in costs])
    firm = np.array([np.sum(truth < cost - tie) + 1 for cost in costs])
    explored = explore(scorer, float(costs.max()) + tie, paths, max_forwards=size.explored)
    controls = np.ones(len(paths), dtype=bool)  # they count for one another
    known = decoder.forwards
    log2_ranks: dict[str, list[list[float]]] = {method: [] for method in METHODS}
    covered: dict[str, list[list[bool]]] = {method: [] for method in METHODS}
    certain = []
    for seed in range(size.seeds):
        sampled = sample(scorer, explored, size.samples, seed, costs)
        found = ranks(scorer, explored, sampled, costs, controls, tie, CONFIDENCE)
        log2_ranks["auto"].append([one.log2_rank for one in found])
        covered["auto"].append(
            [
                one.log2_low <= math.log2(t) + 1e-9 and one.log2_high >= math.log2(f) - 1e-9
                for one, t, f in zip(found, true, firm, strict=True)
            ]
        )
        certain.append([one.exact for one in found])
        references = truth[np.random.default_rng([seed, 2]).integers(fmt.size, size=size.samples)]
        fit = SkewNormal.fit(references)
        by = {
            "sampling": [
                sampling_exposure(cost, references, CONFIDENCE, tie, log2_size=fmt.bits)
                for cost in costs
            ],
            "skewnorm": [skewnorm_exposure(cost, fit, fmt.bits, CONFIDENCE) for cost in costs],
        }
        for method, estimates in by.items():
            log2_ranks[method].append([fmt.bits - one.bits for one in estimates])
            covered[method].append(
                [
                    one.low <= fmt.bits - math.log2(f) + 1e-9
                    and one.high >= fmt.bits - math.log2(t) - 1e-9
                    for one, t, f in zip(estimates, true, firm, strict=True)
                ]
            )
        progress(f"logits times {multiplier}: seed {seed + 1} of {size.seeds}")
    rows = []
    for method in METHODS:
        error = np.array(log2_ranks[method]) - np.log2(true)
        ratio = np.exp2(error) - 1
        for column, rank in enumerate(size.ranks):
            rows.append(
                Row(
                    method,
                    multiplier,
                    rank,
                    rmse=float(np.sqrt(np.mean(error[:, column] ** 2))),
                    coverage=float(np.mean(np.array(covered[method])[:, column])),
                    bias=float(ratio[:, column].mean()),
                    bias_error=float(ratio[:, column].std(ddof=1) / math.sqrt(size.seeds)),
                    exact=float(np.mean(certain, axis=0)[column]) if method == "auto" else 0.0,
                )
            )
    about = {
        "multiplier": multiplier,
        "spread_bits": float(truth.std()),
        "least_bits": float(truth.min()),
        "tie_bits": tie,
        "ties": (true - firm).tolist(),
        "enumeration_forwards": enumerated,
        "enumeration_seconds": seconds,
        "auto_forwards": known + (decoder.forwards - known) / size.seeds,
    }
    return rows, about


def table(rows: list[Row], method: str) -> str:
    """One method's root mean square errors, with the coverage of its interval, as Markdown."""
    multipliers = sorted({row.multiplier for row in rows})
    lines = [
        "| true rank | " + " | ".join(f"m = {m:g}" for m in multipliers) + " |",
        "|---:|" + "---:|" * len(multipliers),
    ]
    for rank in sorted({row.rank for row in rows}):
        cells = []
        for multiplier in multipliers:
            row = next(
                r for r in rows if (r.method, r.multiplier, r.rank) == (method, multiplier, rank)
            )
            cells.append("exact" if row.exact == 1 else f"{row.rmse:.2f} ({row.coverage:.0%})")
        lines.append(f"| {rank:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train, measure, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a space of 10^4, in seconds")
    parser.add_argument("--seeds", type=int, help="runs of each estimator")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    size = SMOKE if args.smoke else FULL
    if args.seeds:
        size = Size(**{**asdict(size), "seeds": args.seeds})
    start = time.perf_counter()
    torch.set_num_threads(1)  # small batches: more threads get in each other's way
    model, tokenizer, fmt = train(size)
    tree = TokenTree(fmt, tokenizer)
    rows: list[Row] = []
    abouts = []
    for multiplier in MULTIPLIERS:
        with undisturbed(model), logits_times(model, multiplier):
            more, about = measure(model, tree, size, multiplier)
        rows += more
        abouts.append(about)
    progress("")
    for method in METHODS:
        print(f"\n{method}: error in bits (coverage of the {CONFIDENCE:.0%} interval)\n")
        print(table(rows, method))
    print("\nauto: estimated rank / true rank - 1, and its standard error\n")
    for row in rows:
        if row.method == "auto" and row.exact < 1:
            far = abs(row.bias) / row.bias_error if row.bias_error else 0.0
            print(
                f"  m = {row.multiplier:<4g} rank {row.rank:>9,}: "
                f"{row.bias:+.4f} +- {row.bias_error:.4f}  ({far:.1f} standard errors)"
            )
    seconds = time.perf_counter() - start
    print(f"\n{seconds:.0f} s in all; token-forwards of one measurement by auto: ", end="")
    print(", ".join(f"{about['auto_forwards']:,.0f}" for about in abouts))
    if args.json:
        figures = {
            "size": asdict(size),
            "seconds": seconds,
            "models": abouts,
            "rows": [asdict(row) for row in rows],
        }
        write_text(args.json, json.dumps(figures, indent=2) + "\n")


def progress(text: str) -> None:
    """One line on the terminal, written over again."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}", end="" if text else "\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
