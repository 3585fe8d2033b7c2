"""How far the decoder's costs are from full forwards, on tiny models of many architectures.

Each model is random and made from its config (tests/architectures.py). The decoder probes it as a
measurement does, and then grows random branches: rows swapped, repeated, left out, and joined from
chunks. The cost of every token after every branch is compared with a plain forward of the same
tokens.

    python benchmarks/architectures.py               # prints the table of docs/architectures.md
    python benchmarks/architectures.py mamba llama   # of these only
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parents[1]))  # so that tests.architectures can be imported

import torch
import transformers

from tests.architectures import ARCHITECTURES, compare, made, table


def main(names: list[str]) -> None:
    """Compare the architectures of the given names, or all, and print the table."""
    unknown = [name for name in names if name not in ARCHITECTURES]
    if unknown:
        sys.exit(f"architectures: {', '.join(unknown)} not known; see tests/architectures.py")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    begin = time.process_time()
    compared = {name: compare(made(name)) for name in names or ARCHITECTURES}
    print(table(compared))
    kinds = len({ARCHITECTURES[name].model_type for name in compared})
    cached = sum(one.cached for one in compared.values())
    print(
        f"\n{len(compared)} models of {kinds} architectures, {cached} of them with their cache; "
        f"largest difference {max(one.difference for one in compared.values()):.1g} bits. "
        f"transformers {transformers.__version__}, torch {torch.__version__}, "
        f"{time.process_time() - begin:.0f} s of one CPU."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
