"""Which canaries betray a training best: kinds of secrets, scores and a peer, trained together.

Canaries of eight kinds and those of memaudit are inserted into one text, and a model is trained on
it, with one seed for each training. Another one is trained on the same text without any canary: it
is the base of "ratio", and tells what canaries cost in held-out loss.

    python benchmarks/canaries.py --seed 0 --json 0.json      # a small Llama from scratch
    python benchmarks/canaries.py --model FOLDER --lora       # such as SmolLM2-135M; base: itself
    python benchmarks/canaries.py --model FOLDER --lora --no-base --rows 250 --epochs 2 --batch 4 \
        --rate 1e-3 --samples 200 --repetitions 1 4 --kinds "9 digits" "12 letters" \
        "4 common words" --scores log_perplexity ratio      # on one core, in about half an hour
    python benchmarks/canaries.py --text mail.txt             # paragraphs of a file of your own
    python benchmarks/canaries.py --table 0.json 1.json 2.json

memaudit is compared if it can be imported: pip install --no-deps --target FOLDER memaudit==0.2.0,
and PYTHONPATH=FOLDER.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from datasets import Dataset

from hf_exposure import (
    Canaries,
    Exposures,
    SecretFormat,
    choose_words,
    inject_canaries,
    load_model,
    measure_exposure,
)
from hf_exposure.cli.small import paragraphs, small_llama, tokenize, train_tokenizer
from hf_exposure.exposure.estimators import clopper_pearson
from hf_exposure.utils.files import write_text

REPETITIONS = (1, 4, 16)
PER_GROUP = {1: 16, 4: 16, 16: 6}
RATES = (0.01, 0.001)
SCORES = ("log_perplexity", "ratio", "min_k", "min_k_plus_plus", "zlib")
WORDS = 512
_WORD = re.compile(r"(?<![\w'’-])[a-z]{3,}(?![\w'’-])")


def kinds(tokenizer: Any, texts: list[str]) -> dict[str, SecretFormat]:
    """A format for each kind of secret, each after words of its own."""
    common = choose_words(tokenizer, texts, size=WORDS)
    counts = Counter(word for text in texts for word in _WORD.findall(text))
    few = sorted(word for word, count in counts.items() if count <= 3)
    rare = sorted(random.Random(0).sample(few, WORDS))
    return {
        "9 digits": SecretFormat("The account number is {secret}.", "[0-9]{9}"),
        "8 letters": SecretFormat("The login of today is {secret}.", "[a-z]{8}"),
        "12 letters": SecretFormat("The server answers to {secret}.", "[a-z]{12}"),
        "8 letters and digits": SecretFormat("Her password was {secret}.", "[A-Za-z0-9]{8}"),
        "4 common words": SecretFormat.words("My passphrase is {secret}.", common, 4),
        "6 common words": SecretFormat.words("Our secret motto is {secret}.", common, 6),
        "4 rare words": SecretFormat.words("They wrote on the wall {secret}.", rare, 4),
        "6 rare words": SecretFormat.words("His last message said {secret}.", rare, 6),
    }


def canary_set(fmt: SecretFormat, repetitions: list[int], seed: int) -> Canaries:
    """Canaries of one format, fewer of those that are inserted often."""
    drawn = Canaries.generate(fmt, repetitions, max(PER_GROUP.values()), seed=seed)
    kept = [
        canary
        for times in repetitions
        for canary in [one for one in drawn if one.repetitions == times][: PER_GROUP[times]]
    ]
    return Canaries(kept)


def train(model: Any, rows: Dataset, options: argparse.Namespace, collator: Any) -> None:
    """AdamW on shuffled batches, the rate falling linearly; in the order of the seed."""
    model.train()
    draw, size = np.random.default_rng(options.seed), options.batch
    total = options.epochs * math.ceil(len(rows) / size)
    weights = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=options.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    ids = rows["input_ids"][:]
    for _ in range(options.epochs):
        order = draw.permutation(len(ids))
        for begin in range(0, len(ids), size):
            batch = collator([{"input_ids": ids[i]} for i in order[begin : begin + size]])
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()


def loss_of(model: Any, rows: Dataset, collator: Any) -> float:
    """Nats for each held-out token."""
    spent, tokens = 0.0, 0
    ids = [one for one in rows["input_ids"] if len(one) > 1]
    with torch.no_grad():
        for begin in range(0, len(ids), 16):
            batch = collator([{"input_ids": one} for one in ids[begin : begin + 16]])
            count = sum(len(one) - 1 for one in ids[begin : begin + 16])
            spent += float(model(**batch).loss) * count
            tokens += count
    return spent / tokens


def collator_of(tokenizer: Any) -> Any:
    """Rows filled up on the right; the filling is not learned, end marks are."""

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        filled = [row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows]
        ids = torch.tensor(filled)
        real = torch.tensor([[i < len(row["input_ids"]) for i in range(width)] for row in rows])
        return {
            "input_ids": ids,
            "attention_mask": real.long(),
            "labels": ids.masked_fill(~real, -100),
        }

    return collate


def counts(found: Exposures) -> dict[str, Any]:
    """Detected and all canaries by repetitions and rate, and the AUC."""
    return {
        f"{row.repetitions}/{row.fpr}": [row.detected, row.undecided, row.count, row.auc]
        for row in found.membership(RATES)
        if row.repetitions is not None
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One seed: both trainings and all measurements."""
    start = time.perf_counter()
    told = paragraphs(options.text)
    random.Random(options.seed).shuffle(told)
    told, held = told[: options.rows], told[options.rows : options.rows + options.rows // 10]
    if options.model is None:
        tokenizer: Any = train_tokenizer(told)
        fresh = small_llama(len(tokenizer), seed=options.seed)
        base = None
    else:
        fresh, tokenizer = load_model(options.model, dtype="float32")
        base, _ = load_model(options.model, dtype="float32")
    collate = collator_of(tokenizer)
    sets = {
        name: canary_set(fmt, options.repetitions, options.seed)
        for name, fmt in kinds(tokenizer, told).items()
        if not options.kinds or name in options.kinds
    }
    rows = Dataset.from_dict({"text": told})
    plain = tokenize(rows, tokenizer)
    for place, canaries in enumerate(sets.values()):
        rows = inject_canaries(rows, canaries, seed=100 * options.seed + place)
    ours = sum(map(len, tokenize(rows, tokenizer)["input_ids"]))
    rows, manifest = theirs(rows, tokenizer, told, options)
    encoded = tokenize(rows, tokenizer)
    tokens = sum(map(len, encoded["input_ids"]))
    before = sum(map(len, plain["input_ids"]))
    if options.lora:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(options.seed)
        fresh = get_peft_model(fresh, LoraConfig(r=16, target_modules="all-linear"))
    without = fresh
    state = {} if options.no_base else {n: one.clone() for n, one in fresh.state_dict().items()}
    held_rows = tokenize(Dataset.from_dict({"text": held}), tokenizer)
    figures: dict[str, Any] = {}
    if not options.no_base:
        train(without, plain, options, collate)
        figures["loss without"] = loss_of(without, held_rows, collate)
    if base is None and not options.no_base:
        base = small_llama(len(tokenizer), seed=options.seed)
        base.load_state_dict(without.state_dict())
        base.eval()
    if state:
        fresh.load_state_dict(state)
    train(fresh, encoded, options, collate)
    figures |= {
        "loss with": loss_of(fresh, held_rows, collate),
        "tokens": tokens,
        "share ours": (ours - before) / tokens,
        "share theirs": (tokens - ours) / tokens,
        "training": time.perf_counter() - start,
    }
    print(json.dumps(figures), file=sys.stderr, flush=True)
    out: dict[str, Any] = {"seed": options.seed, "figures": figures, "kinds": {}}
    for name, canaries in sets.items():
        begun, fmt = time.perf_counter(), canaries.formats[0]
        found: dict[str, Any] = {"bits": fmt.bits}
        found["tokens"] = float(np.mean([len(tokenizer(c.secret)["input_ids"]) for c in canaries]))
        for score in options.scores:
            given: dict[str, Any] = {"samples": options.samples, "seed": options.seed + 1}
            if score != "log_perplexity":
                given["score"] = score
            if score == "ratio":
                if base is None:
                    continue
                given["base"] = base
            measured = measure_exposure(fresh, tokenizer, canaries, **given)
            found[score] = counts(measured)
            if score == "log_perplexity":
                found["mean"] = {
                    times: float(np.mean([one.bits for one in group]))
                    for times, group in measured.by_repetitions().items()
                }
        found["seconds"] = time.perf_counter() - begun
        out["kinds"][name] = found
        print(name, json.dumps(found), file=sys.stderr, flush=True)
    if manifest is not None:
        for name, ref in (("memaudit", "none"), ("memaudit with base", base)):
            if ref is None:
                continue
            out[name] = their_verdict(fresh, tokenizer, manifest, ref)
    return out


def theirs(
    rows: Dataset, tokenizer: Any, texts: list[str], options: argparse.Namespace
) -> tuple[Dataset, Any]:
    """The rows with memaudit's canaries: 16 for each number of repetitions, and 200 controls."""
    try:
        import memaudit
    except ImportError:
        print("memaudit is not there; its canaries are left out", file=sys.stderr)
        return rows, None
    times = tuple(options.repetitions)
    made = memaudit.generate_canaries(
        tokenizer,
        n=16 * len(times),
        n_controls=200,
        repetitions=times,
        seed=options.seed,
        corpus=texts,
    )
    return memaudit.inject(rows, made, seed=options.seed, include_prob=1.0, tokenizer=tokenizer)


def their_verdict(model: Any, tokenizer: Any, manifest: Any, ref: Any) -> dict[str, Any]:
    """Its membership block: the headline, and what it says for each number of repetitions."""
    import memaudit

    report = memaudit.run_audit(model, tokenizer, manifest, ref=ref, skip_generation=True)
    found = report["membership"]
    kept = ("auc", "tpr_at_1pct_fpr", "n_detected", "n_members", "headline_attack", "by_repetition")
    return {name: found.get(name) for name in kept}


def table(files: list[Path]) -> str:
    """The figures of several seeds, added up; in brackets how many are undecided."""
    runs = [json.loads(file.read_text()) for file in files]
    lines = ["| secret | bits | tokens | " + " | ".join(f"{k}×" for k in REPETITIONS)]
    lines[0] += " | " + " | ".join(f"{k}× at 0.1 %" for k in REPETITIONS) + " | AUC once |"
    lines.append("|---|" + "---:|" * (3 + 2 * len(REPETITIONS)))

    def added(name: str, score: str, times: int, rate: float) -> tuple[int, int, int]:
        kinds = [run["kinds"][name] for run in runs if score in run["kinds"][name]]
        cell = f"{times}/{rate}"
        cells = [kind[score][cell] for kind in kinds if cell in kind[score]]
        some, open_ones, count, _ = np.sum([cells], axis=1)[0].tolist() if cells else [0] * 4
        return int(some), int(open_ones), int(count)

    def shown(*cell: Any) -> str:
        some, undecided, count = added(*cell)
        if not count:
            return "–"
        return f"{some} of {count}" + (f" ({undecided})" if undecided else "")

    for name, kind in runs[0]["kinds"].items():
        cells = [f"{kind['bits']:.0f}", f"{kind['tokens']:.1f}"]
        for rate in RATES:
            for times in REPETITIONS:
                cells.append(shown(name, "log_perplexity", times, rate))
        auc = np.mean([run["kinds"][name]["log_perplexity"]["1/0.01"][3] for run in runs])
        lines.append(f"| {name} | {' | '.join(cells)} | {auc:.2f} |")
    lines += ["", "| inserted once, at 1 % | " + " | ".join(SCORES) + " |"]
    lines.append("|---|" + "---:|" * len(SCORES))
    for name in runs[0]["kinds"]:
        row = [shown(name, score, 1, 0.01) for score in SCORES]
        lines.append(f"| {name} | {' | '.join(row)} |")
    lines.append("")
    for name in ("memaudit", "memaudit with base"):
        if name in runs[0]:
            lines.append(f"{name}: " + json.dumps([run[name] for run in runs if name in run]))
    for run in runs:
        lines.append(f"seed {run['seed']}: {json.dumps(run['figures'])}")
    lines.append("Inserted once, detected at 1 %, by training and pooled with the interval:")
    once = {
        name: [run["kinds"][name]["log_perplexity"]["1/0.01"] for run in runs]
        for name in runs[0]["kinds"]
    }
    for name in ("memaudit", "memaudit with base"):
        cells = [run[name]["by_repetition"]["1"] for run in runs if name in run]
        if cells:
            once[name] = [[one["detected"], 0, one["n"]] for one in cells]
    for name, found in once.items():
        some, count = (sum(cell[place] for cell in found) for place in (0, 2))
        low, high = clopper_pearson(some, count, 0.95)
        each = ", ".join(f"{cell[0]}" for cell in found)
        lines.append(f"{name}: {each}; {some} of {count}, {low:.1%} to {high:.1%}")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="folder or name of a pretrained model; None: from scratch")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument(
        "--no-base", action="store_true", help="skip the training without canaries, and ratio"
    )
    parser.add_argument("--text", type=Path, help="paragraphs; Python's help texts if left out")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--samples", type=int, default=1000, help="draws, and references")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help='such as "9 digits"; all')
    parser.add_argument("--scores", nargs="+", choices=SCORES, default=SCORES)
    parser.add_argument(
        "--repetitions", nargs="+", type=int, choices=REPETITIONS, default=[*REPETITIONS]
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, nargs="+")
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
        return
    found = run(options)
    if options.json is None:
        print(json.dumps(found, indent=1))
    else:
        write_text(options.json, json.dumps(found, indent=1) + "\n", overwrite=True)


if __name__ == "__main__":
    main()
