"""What it costs to score many candidate secrets, and to rank one exactly, against the usual ways.

One small model is trained on real text with two canaries in it. Then the same candidates are scored

- by plain Hugging Face Transformers: whole texts in batches, one forward each, logits only where
  they are needed, the batch size that was the fastest of several;
- by minicons, `IncrementalLMScorer.conditional_score`, its fastest batch size too;
- by this package: a walk over the token tree, its check of the decoder and the making of the tree
  included.

All run on the same number of threads, take turns, and the best of several rounds counts. From
strings to log-perplexities in bits, which have to agree. Then the token-forwards of exact ranks
(`method="exact"`) are held against those of scoring the whole secret space.

    python benchmarks/scoring.py                 # minutes; the tables of docs/accuracy.md
    python benchmarks/scoring.py --smoke         # in seconds
    python benchmarks/scoring.py --json FILE     # all figures
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

from hf_exposure import Canaries, Canary, SecretFormat, inject_canaries, measure_exposure
from hf_exposure.cli.demo_run import FORMAT, KNOWN
from hf_exposure.cli.small import paragraphs, small_llama, tokenize, train_tokenizer
from hf_exposure.models.decoder import Decoder
from hf_exposure.models.undisturbed import undisturbed
from hf_exposure.tree.explorer import Explorer
from hf_exposure.tree.frontier import DepthFirst
from hf_exposure.tree.tokens import TokenTree
from hf_exposure.tree.walk import walk
from hf_exposure.utils.files import write_text

REPETITIONS = 32
BATCHES = (32, 64, 128, 256, 512, 1024)
Scores = dict[str, float]  # bits by secret
Way = Callable[[Sequence[str]], tuple[Scores, int]]  # gives token-forwards too


@dataclass(frozen=True)
class Size:
    """How much is done."""

    digits: int  # of the candidates that all ways score
    ranked: int  # digits of the space that is enumerated to check an exact rank
    paragraphs: int | None  # to train on; None takes all
    epochs: int
    rounds: int
    layers: int = 4
    width: int = 128


FULL = Size(digits=4, ranked=6, paragraphs=None, epochs=6, rounds=3)
SMOKE = Size(digits=3, ranked=3, paragraphs=150, epochs=6, rounds=1, layers=2, width=64)


@dataclass(frozen=True)
class Speed:
    """How one way scored all candidates.

    Attributes:
        forwards: positions that the model computed.
        seconds: of the best round.
        difference: the largest difference from plain Transformers in bits.
    """

    way: str
    batch_size: int
    candidates: int
    forwards: int
    seconds: float
    difference: float


@dataclass(frozen=True)
class Rank:
    """What an exact rank took.

    Attributes:
        space: strings that it is a rank among.
        forwards: token-forwards of `method="exact"`.
        tree: token-forwards of enumerating the space over the token tree.
        texts: token-forwards of scoring all whole texts.
        enumerated: the rank by enumeration, where it was run.
    """

    space: int
    log_perplexity: float
    rank: float
    forwards: int
    tree: int
    texts: int
    enumerated: int | None


def train(size: Size, canaries: Canaries, seed: int = 0) -> tuple[Any, Any]:
    """The demo's tokenizer and model, trained on the demo's text with the canaries in it."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    rows = Dataset.from_dict({"text": paragraphs()[: size.paragraphs]})
    rows = inject_canaries(rows, canaries, seed=seed)
    tokenizer = train_tokenizer(rows["text"])
    pieces = tokenize(rows, tokenizer)["input_ids"]
    model = small_llama(len(tokenizer), seed, num_hidden_layers=size.layers, hidden_size=size.width)
    draw = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    steps = size.epochs * math.ceil(len(pieces) / 16)
    model.train()
    step = 0
    for _ in range(size.epochs):
        # Pieces of like length side by side, so that little is padding; batches in random order.
        order = sorted(draw.permutation(len(pieces)), key=lambda place: len(pieces[place]))
        batches = [order[i : i + 16] for i in range(0, len(order), 16)]
        for place in draw.permutation(len(batches)):
            some = [torch.tensor(pieces[i]) for i in batches[place]]
            pad = torch.nn.utils.rnn.pad_sequence
            ids = pad(some, batch_first=True)
            labels = pad(some, batch_first=True, padding_value=-100)
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * min(1.0, (step + 1) / 50, 1.02 - step / steps)
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        say(f"trained on {step} of {steps} batches, loss {loss.item():.2f}")
    return model.eval(), tokenizer


def transformers_way(model: Any, tokenizer: Any, fmt: SecretFormat, batch_size: int) -> Way:
    """Whole texts in batches, as one would write it by hand for speed."""
    begin = len(tokenizer(fmt.prefix)["input_ids"])

    def score(secrets: Sequence[str]) -> tuple[Scores, int]:
        out: Scores = {}
        forwards = 0
        for at in range(0, len(secrets), batch_size):
            part = secrets[at : at + batch_size]
            ids = tokenizer([fmt.render(s) for s in part], return_tensors="pt")["input_ids"]
            keep = ids.shape[1] - begin + 1
            with torch.inference_mode():
                logits = model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits[:, :-1]
                wanted = logits.gather(2, ids[:, begin:, None])[:, :, 0]
                nats = (torch.logsumexp(logits, 2) - wanted).double().sum(1)
            out.update(zip(part, (nats / math.log(2)).tolist(), strict=True))
            forwards += ids.numel()
        return out, forwards

    return score


def minicons_way(model: Any, tokenizer: Any, fmt: SecretFormat, batch_size: int) -> Way:
    """`conditional_score`, with sums in place of means over tokens."""
    from minicons.scorer import IncrementalLMScorer

    scorer = IncrementalLMScorer(model, device="cpu", tokenizer=tokenizer)

    def score(secrets: Sequence[str]) -> tuple[Scores, int]:
        out: Scores = {}
        forwards = 0
        for at in range(0, len(secrets), batch_size):
            part = secrets[at : at + batch_size]
            rest = [s + fmt.suffix for s in part]
            found = scorer.conditional_score(
                [fmt.prefix] * len(part),
                rest,
                separator="",
                reduction=lambda bits: -bits.sum().item(),
                base_two=True,
            )
            out.update(zip(part, found, strict=True))
            forwards += len(part) * len(tokenizer(fmt.render(part[0]))["input_ids"])
        return out, forwards

    return score


def tree_way(model: Any, tokenizer: Any, fmt: SecretFormat) -> Way:
    """The walk over all of the format's token tree."""

    def score(secrets: Sequence[str]) -> tuple[Scores, int]:
        tree = TokenTree(fmt, tokenizer)
        with undisturbed(model):
            decoder = Decoder(model, tree.prompt, tree.token_ids)
            decoder.probe(tree.random_paths(4))
            everything = Explorer()
            walk(decoder, tree, everything, DepthFirst())
        names = map(tree.secret, everything.paths)
        return dict(zip(names, everything.log_perplexities, strict=True)), decoder.forwards

    return score


def compare(model: Any, tokenizer: Any, size: Size) -> list[Speed]:
    """All ways on the same candidates, in turns."""
    fmt = SecretFormat(FORMAT.template, secret=f"[0-9]{{{size.digits}}}")
    secrets = list(fmt.enumerate())
    ways: dict[str, tuple[int, Way]] = {}
    for name, make in (("Transformers", transformers_way), ("minicons", minicons_way)):
        some, best = secrets[:2048], math.inf
        for batch_size in BATCHES:
            way = make(model, tokenizer, fmt, batch_size)
            seconds = min(timed(way, some)[0] for _ in range(2))
            if seconds < best:
                best, ways[name] = seconds, (batch_size, way)
        say(f"{name} is fastest with batches of {ways[name][0]}")
    ours = tree_way(model, tokenizer, fmt)
    ways["hf-exposure"] = Decoder(model, [0], np.array([0])).batch_size, ours
    best_of = dict.fromkeys(ways, math.inf)
    scores: dict[str, Scores] = {}
    forwards: dict[str, int] = {}
    for number in range(size.rounds):
        for name, (_, way) in ways.items():
            seconds, (scores[name], forwards[name]) = timed(way, secrets)
            best_of[name] = min(best_of[name], seconds)
            say(f"round {number + 1}: {name} took {seconds:.1f} s")
    truth = scores["Transformers"]
    return [
        Speed(
            name,
            batch_size,
            len(secrets),
            forwards[name],
            best_of[name],
            max(abs(scores[name][secret] - truth[secret]) for secret in secrets),
        )
        for name, (batch_size, _) in ways.items()
    ]


def timed(way: Way, secrets: Sequence[str]) -> tuple[float, tuple[Scores, int]]:
    """Seconds, and what came of it."""
    start = time.perf_counter()
    out = way(secrets)
    return time.perf_counter() - start, out


def exact_rank(model: Any, tokenizer: Any, canary: Canary, enumerate_too: bool) -> Rank:
    """The exact rank of a canary and, if the space is small enough, the same by enumeration."""
    fmt = canary.format
    found = measure_exposure(model, tokenizer, [canary], method="exact")
    if not found[0].exact:
        raise RuntimeError("the rank is not exact")
    length = len(tokenizer(canary.text)["input_ids"])
    tree = TokenTree(fmt, tokenizer)
    # One token for each digit: each prefix of digits once, and the prompt.
    digits = len(canary.secret)
    enumeration = len(tree.prompt) + sum(10**depth for depth in range(1, digits + 1))
    enumerated = None
    if enumerate_too:
        scores, forwards = tree_way(model, tokenizer, fmt)([])
        check = measure_exposure(model, tokenizer, [canary], samples=0, max_forwards=0).forwards
        if not enumeration <= forwards <= enumeration + check:
            raise RuntimeError("the enumeration took another number of forwards than computed")
        own = scores[canary.secret]
        ties = found.formats[fmt].tie_bits
        enumerated = sum(bits <= own + ties for bits in scores.values())
    return Rank(
        fmt.size,
        found[0].log_perplexity,
        found[0].rank,
        found.forwards,
        enumeration,
        fmt.size * length,
        enumerated,
    )


def markdown(speeds: list[Speed], ranks: list[Rank]) -> str:
    """The tables of docs/accuracy.md: ratios, and counts of token-forwards."""
    plain, *_ = speeds
    lines = [
        f"{plain.candidates:,} candidates of one secret space, ratios to Transformers:",
        "",
        "| | candidates per token-forward | candidates per second | largest difference |",
        "|---|---:|---:|---:|",
    ]
    for one in speeds:
        forwards, seconds = plain.forwards / one.forwards, plain.seconds / one.seconds
        differs = "–" if one is plain else f"{one.difference:.1g} bits"
        name = f"{one.way}, batches of {one.batch_size}"
        lines.append(f"| {name} | {forwards:.3g} | {seconds:.2g} | {differs} |")
    lines += [
        "",
        "| exact rank of a planted canary | rank | token-forwards | enumerating the tree "
        "| scoring every text |",
        "|---|---:|---:|---:|---:|",
    ]
    for rank in ranks:
        same = " (the same by enumeration)" if rank.enumerated is not None else ""
        lines.append(
            f"| {rank.log_perplexity:.1f} bits, among {rank.space:,} | {rank.rank:,.0f}{same} | "
            f"{rank.forwards:,} | {rank.tree:,} ({times(rank.tree / rank.forwards)}) | "
            f"{rank.texts:,} ({times(rank.texts / rank.forwards)}) |"
        )
    return "\n".join(lines)


def times(ratio: float) -> str:
    """A ratio to two digits, as text."""
    shown = f"{float(f'{ratio:.2g}'):,.0f}" if ratio >= 10 else f"{ratio:.2g}"
    return f"{shown} times as many"


def say(text: str) -> None:
    """Print at once, so that one sees how far it is."""
    print(text, flush=True)


def main() -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="little of everything, in seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for all ways (1)")
    arguments = parser.parse_args()
    size = SMOKE if arguments.smoke else FULL
    torch.set_num_threads(arguments.threads)
    fewer = SecretFormat("My locker code is {secret}.", secret=f"[0-9]{{{size.ranked}}}")
    canaries = Canaries(
        [Canary(FORMAT, KNOWN, REPETITIONS), Canary(fewer, "402871"[: size.ranked], 4)]
    )
    model, tokenizer = train(size, canaries)
    speeds = compare(model, tokenizer, size)
    ranks = [exact_rank(model, tokenizer, canaries[1], enumerate_too=True)]
    say(f"ranked among {ranks[0].space:,}, by search and by enumeration")
    if ranks[0].enumerated != ranks[0].rank:
        raise RuntimeError(f"the exact rank {ranks[0].rank} is not {ranks[0].enumerated}")
    if not arguments.smoke:  # so little training memorizes nothing, and nothing could be left out
        ranks.append(exact_rank(model, tokenizer, canaries[0], enumerate_too=False))
    say("\n" + markdown(speeds, ranks))
    if arguments.json is not None:
        figures = {
            "threads": arguments.threads,
            "model_parameters": model.num_parameters(),
            "speeds": [asdict(one) for one in speeds],
            "ranks": [asdict(one) for one in ranks],
        }
        write_text(arguments.json, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
