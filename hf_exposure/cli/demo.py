"""`hf-exposure demo`: a small model, trained on the spot, and what it memorized."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_exposure.cli.inputs import check_folder, check_read, rows_with
from hf_exposure.cli.options import (
    Column,
    Overwrite,
    Reveal,
)
from hf_exposure.cli.terminal import out
from hf_exposure.models.loading import quiet

if TYPE_CHECKING:
    from hf_exposure.exposure.history import Measurement
    from hf_exposure.exposure.results import Exposures


def demo(
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "--output_dir", help="Folder for model and report.")
    ] = Path("demo"),
    text: Annotated[
        Path | None,
        typer.Option("--text", help="A text file to train on; paragraphs split at blank lines."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", "--dataset_name", help="Or a dataset: a file or a Hub id."),
    ] = None,
    column: Column = "text",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the text.")] = 8,
    seed: Annotated[
        int,
        typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of canaries, model and training."),
    ] = 0,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A tiny model and one epoch, to see that it runs.")
    ] = False,
    overwrite: Overwrite = False,
    reveal: Reveal = False,
) -> None:
    """Train a small model on real text with canaries in it, and show what it memorized.

    Takes a few minutes, without network, and ends with a report to open in a browser.
    """
    import torch

    from hf_exposure.cli.demo_run import run_demo
    from hf_exposure.cli.small import paragraphs

    check_folder(output_dir, "--output-dir")
    lines = None
    check_read(text, "--text")
    if text is not None and dataset is not None:
        raise typer.BadParameter("give --text or --dataset, not both")
    if text is not None:
        lines = paragraphs(text)
    if dataset is not None:
        with quiet():
            rows = rows_with(column, dataset)
        lines = [part for text in rows[column] if text and len(part := str(text)) > 20]
    settings: dict[str, Any] = {}
    if smoke:
        epochs, lines = 1, (paragraphs() if lines is None else lines)[:300]
        settings = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}

    def after_epoch(measurement: Measurement) -> None:
        out.print(_epoch_line(measurement, headings=round(measurement.epoch or 0) == 1))

    torch.set_num_threads(1)  # on a busy machine, two that wait for each other are far slower
    with quiet():
        result = run_demo(
            output_dir,
            lines,
            epochs=epochs,
            seed=seed,
            reveal=reveal,
            overwrite=overwrite,
            say=out.print,
            after_epoch=after_epoch,
            **settings,
        )
    out.print(_methods_table(result.exposures))
    share = result.history.share
    if share is not None:
        out.print(
            f"\nMeasuring took {share:.1%} as many token-forwards as there were tokens to train on."
        )
    out.print(f"Done after {result.seconds:.0f} seconds. Now open {result.report}")


def _methods_table(exposures: Sequence[Exposures]) -> str:
    """What each method says of each repetition group, side by side."""
    from hf_exposure.exposure.records import mean_bits
    from hf_exposure.utils.tables import plain_table

    headings = ["inserted", *(f"{one.settings['method']}" for one in exposures)]
    groups = [one.by_repetitions() for one in exposures]
    rows = [
        [f"{times}x", *(f"{mean_bits(own[times]):.1f}" for own in groups)] for times in groups[0]
    ]
    headings += ["of at most"]
    for row, group in zip(rows, groups[0].values(), strict=True):
        row.append(f"{group[0].canary.format.bits:.1f}")
    return (
        "\nMean exposure in bits by each method; sampling and skewnorm are the paper's own:\n"
        + plain_table(headings, rows, right=range(len(headings)))
    )


def _epoch_line(measurement: Measurement, headings: bool) -> str:
    """One row of the table that grows while the demo trains, under its headings if asked for."""
    from hf_exposure.exposure.records import mean_bits

    groups = measurement.exposures.by_repetitions()
    loss = measurement.metrics.get("eval_loss", float("nan"))
    line = f"{measurement.epoch or 0:5.0f}{loss:15.2f}   "
    line += "".join(f"{mean_bits(group):6.1f}" for group in groups.values())
    if not headings:
        return line
    times = "".join(f"{f'{times}x':>6}" for times in groups)
    return (
        f"epoch  held-out loss   mean exposure in bits, by times inserted\n{'':23}{times}\n{line}"
    )
