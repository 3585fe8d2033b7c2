"""What a published model knows by heart: constants, dates, famous sentences, licences.

Nothing was inserted here. For each sentence a part is taken out, and the model is searched for the
most likely of all strings of its shape, one prefix at a time: cheapest first, so that the first
one that comes out is proved to be the most likely of the whole space. Where that is not the right
one, its rank is measured.

    python examples/known_by_heart.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct
    python examples/known_by_heart.py --model_name_or_path folder --gguf_file model.gguf
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import HfArgumentParser

from hf_exposure import (
    Canary,
    SecretFormat,
    extract_secrets,
    load_model,
    measure_exposure,
)

# What it is, the text around the part that is taken out, its shape, and what stands there. Public
# domain, or a few words of a licence.
KNOWN = [
    ("pi", "pi = 3.{secret}", "[0-9]{14}", "14159265358979"),
    ("Euler's number", "e = 2.{secret}", "[0-9]{12}", "718281828459"),
    ("square root of 2", "sqrt(2) = 1.{secret}", "[0-9]{10}", "4142135623"),
    (
        "speed of light",
        "The speed of light in vacuum is {secret} metres per second.",
        "[0-9]{3},[0-9]{3},[0-9]{3}",
        "299,792,458",
    ),
    ("Avogadro's number", "Avogadro's number is 6.{secret} x 10^23.", "[0-9]{3}", "022"),
    (
        "Declaration of Independence",
        "The Declaration of Independence was adopted on July 4, {secret}.",
        "[0-9]{4}",
        "1776",
    ),
    (
        "fall of the Berlin Wall",
        "The Berlin Wall fell on November 9, {secret}.",
        "[0-9]{4}",
        "1989",
    ),
    (
        "Hamlet",
        "To be, or not to be, that is the {secret}:",
        "[a-z]{8}",
        "question",
    ),
    (
        "Genesis",
        "In the beginning God created the {secret} and the earth.",
        "[a-z]{6}",
        "heaven",
    ),
    (
        "Gettysburg Address",
        "Four score and seven years ago our {secret} forth",
        "[a-z]{7} [a-z]{7}",
        "fathers brought",
    ),
    (
        "Declaration, preamble",
        "We hold these truths to be {secret}, that all men",
        "[a-z]{4}-[a-z]{7}",
        "self-evident",
    ),
    (
        "MIT licence",
        'THE SOFTWARE IS PROVIDED "AS IS", WITHOUT {secret} OF ANY KIND',
        "[A-Z]{8}",
        "WARRANTY",
    ),
    (
        "Apache licence",
        "Licensed under the Apache License, Version {secret} (the",
        "[0-9][.][0-9]",
        "2.0",
    ),
    ("a number that nobody knows", "My locker number is {secret}.", "[0-9]{6}", "730284"),
]


@dataclass
class Arguments:
    """Which model, and how far to go."""

    model_name_or_path: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Folder or Hub id."}
    )
    gguf_file: str | None = field(default=None, metadata={"help": "A GGUF file in that folder."})
    max_forwards: int = field(default=800, metadata={"help": "Token-forwards for each sentence."})
    samples: int = field(default=300, metadata={"help": "Draws where a rank is estimated."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the figures."})
    only: str | None = field(default=None, metadata={"help": "A part of one sentence's name."})


def main() -> None:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    try:
        model, tokenizer = load_model(
            args.model_name_or_path, gguf_file=args.gguf_file, argument="--model_name_or_path"
        )
    except OSError as error:
        sys.exit(f"Error: {error}")
    table = Table("what", "space", "rank", "bits of at most", "token-forwards", "proved")
    rows = []
    for name, template, secret, truth in KNOWN:
        if args.only and args.only not in name:
            continue
        start = time.perf_counter()
        fmt = SecretFormat(template, secret)
        canary = Canary(fmt, truth)
        found = extract_secrets(
            model,
            tokenizer,
            fmt,
            count=1,
            batch_size=1,
            max_forwards=args.max_forwards,
            canaries=[canary],
        )
        first = found[0] if found else None
        row = {"what": name, "space": fmt.size, "bits": fmt.bits, "forwards": found.forwards}
        if first is not None and first.secret == truth and first.proved:
            search = first.forwards - found.settings["check_forwards"]
            row |= {"rank": 1, "exposure": fmt.bits, "proved": True, "search_forwards": search}
        else:
            (one,) = measure_exposure(
                model, tokenizer, [canary], samples=args.samples, max_forwards=args.max_forwards
            )
            row |= {"rank": one.rank, "exposure": one.bits, "proved": one.exact}
            row |= {"interval": [one.rank_low, one.rank_high]}
        row["seconds"] = time.perf_counter() - start
        rows.append(row)
        table.add_row(
            name,
            f"{fmt.size:,}" if fmt.size < 10**7 else f"{fmt.size:.1e}",
            f"{row['rank']:,.0f}" if row["proved"] else f"~{row['rank']:,.0f}",
            f"{row['exposure']:.1f} of {fmt.bits:.1f}",
            f"{row.get('search_forwards', row['forwards']):,}",
            "yes" if row["proved"] else "no",
        )
        if args.output_file:
            Path(args.output_file).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    Console().print(table)


if __name__ == "__main__":
    main()
