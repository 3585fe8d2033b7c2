"""docs/paper.md and its figures, from what `python examples/paper/run.py` has written.

python examples/paper/run.py all --workers 2 --output-dir paper
python examples/paper/run.py autocomplete --text mail.txt --workers 2 --output-dir paper
python examples/paper/make_page.py paper
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path


def main(folder: Path, docs: Path) -> None:
    """Copy the page, and every experiment's figure to paper/NAME.png beside it."""
    page = (folder / "README.md").read_text(encoding="utf-8")
    (docs / "paper").mkdir(parents=True, exist_ok=True)
    for figure in sorted(folder.glob("*/figure.png")):
        name = figure.parent.name
        shutil.copyfile(figure, docs / "paper" / f"{name}.png")
        page = page.replace(f"({name}/figure.png)", f"(paper/{name}.png)")
    page = page.replace("docs/accuracy.md", "[accuracy.md](accuracy.md)")
    (docs / "paper.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the --output-dir of the experiments")
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[2] / "docs")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.docs)
