"""docs/paper.md and its figures, from what `python examples/paper/run.py` has written.

python examples/paper/run.py all --workers 2 --output-dir paper
python examples/paper/run.py autocomplete --text mail.txt --workers 2 --output-dir paper
python examples/paper/make_page.py paper
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path


def main(folder: Path, docs: Path) -> None:
    """Copy the page, and every experiment's figure to paper/NAME.png beside it.

    Experiments of which the folder has no results keep their sections.
    """
    page = (folder / "README.md").read_text(encoding="utf-8")
    (docs / "paper").mkdir(parents=True, exist_ok=True)
    old = docs / "paper.md"
    if old.is_file():
        page = merged(old.read_text(encoding="utf-8"), page)
    for figure in sorted(folder.glob("*/figure.png")):
        name = figure.parent.name
        shutil.copyfile(figure, docs / "paper" / f"{name}.png")
        page = page.replace(f"({name}/figure.png)", f"(paper/{name}.png)")
    page = page.replace("docs/accuracy.md", "[accuracy.md](accuracy.md)")
    (docs / "paper.md").write_text(page, encoding="utf-8")


def merged(old: str, new: str) -> str:
    """An old page with a new one's sections, and their rows of the summary, in place of its own."""
    head, *sections = old.rstrip("\n").split("\n\n## ")
    other, *fresh = new.rstrip("\n").split("\n\n## ")
    made = {_title(section): section for section in fresh}
    rows = {_title(line): line for line in other.split("\n") if line.startswith("| [")}
    lines = [rows.get(_title(line), line) for line in head.split("\n")]
    minutes = sum(float(line.split("|")[-2]) for line in lines if line.startswith("| ["))
    lines = [re.sub(r"all runs, \d+ in all", f"all runs, {minutes:.0f} in all", x) for x in lines]
    sections = [made.pop(_title(section), section) for section in sections]
    return "\n\n## ".join(["\n".join(lines), *sections, *made.values()]) + "\n"


def _title(part: str) -> str:
    """Of a section its first line, of a row of the table its link."""
    return part.split("\n")[0].split("](")[0].strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the --output-dir of the experiments")
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[2] / "docs")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.docs)
