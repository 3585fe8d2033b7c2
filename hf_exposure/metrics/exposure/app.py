"""The Space's page: two boxes of numbers, a method and a size; a table of exposures.

evaluate's own widget (`launch_gradio_widget`) has one table, with a row for each prediction and its
reference. Here a canary has no reference of its own, so the page is made by hand.
"""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any

import evaluate

FOLDER = Path(__file__).parent
METHODS = ("sampling", "skewnorm")
HEADINGS = ("#", "−log2 Pr", "exposure", "95% interval", "rank", "p")
WIDTHS = ("6%", "18%", "18%", "26%", "19%", "13%")  # so that no column is cut off beside the fields
TITLE = "Exposure: how much has a language model memorized?"
INTRODUCTION = (
    "Paste the log-perplexities in bits of your canaries, and those of secrets that were drawn "
    "uniformly from the same secret space; there may be any number of each. To measure them on a "
    "model, see `hf_exposure.measure_exposure`, which also finds much higher exposures exactly."
)
# Three canaries among 64 references, from 20.0 bits upwards in steps of a quarter of a bit.
EXAMPLE = (
    "14.2, 22.1, 31.5",
    " ".join(f"{20 + i / 4:g}" for i in range(64)),
    "sampling",
    "10^9",
)


@functools.cache
def metric() -> Any:
    """The metric of this very folder, whatever the Space is called."""
    return evaluate.load(str(FOLDER / "exposure.py"))


def numbers(text: str, what: str) -> list[float]:
    """The numbers of a box, separated by spaces, commas, semicolons or lines, in brackets or not.

    Raises:
        ValueError: something else is among them; the message names it and the box.
    """
    found = []
    for word in re.split(r"[\s,;\[\]()]+", text):
        try:
            found += [float(word)] if word else []
        except ValueError:
            raise ValueError(f"{what}: {word[:40]!r} is no number") from None
    return found


def log2_size(text: str) -> float | None:
    """log2 of a size written as 1000000000, 1,000,000,000 or 10^9; None if the box is empty.

    Raises:
        ValueError: it is something else, or 0.
    """
    plain = re.sub(r"[\s,_]", "", text)
    if not plain:
        return None
    match = re.fullmatch(r"(\d{1,1000})(?:(?:\^|\*\*)(\d{1,9}))?", plain)
    if match is None or int(match[1]) == 0:
        raise ValueError(
            f"secret space: {text.strip()[:40]!r} is no size; write it as 1000000000 or 10^9"
        )
    return math.log2(int(match[1])) * int(match[2] or 1)


def exposures(
    canaries: str, references: str, method: str, size: str
) -> tuple[list[list[str]], str]:
    """What the page shows for the content of its four fields.

    Returns:
        The rows of the table, one for each canary in the order given, and a line about them.

    Raises:
        ValueError: a field cannot be read, or the metric refuses what is in it.
    """
    costs = numbers(canaries, "canaries")
    found = metric().compute(
        predictions=costs,
        references=numbers(references, "references"),
        method=method,
        log2_size=log2_size(size),
    )
    rows = [
        [
            str(place + 1),
            f"{cost:.2f}",
            f"{found['exposure'][place]:.2f}",
            f"{found['low'][place]:.2f}"
            + (
                f"–{found['high'][place]:.2f}"
                if math.isfinite(found["high"][place])
                else " or more"
            ),
            f"{found['rank'][place]:.3g}" if found["rank"] else "",
            f"{found['p_value'][place]:.2g}",
        ]
        for place, cost in enumerate(costs)
    ]
    line = f"Mean exposure: {found['mean_exposure']:.2f} bits"
    if method == "sampling":
        most = math.log2(found["num_references"])
        line += f"; {found['num_references']} references can show {most:.2f} bits at most."
    else:
        line += (
            f"; skew-normal fit to {found['num_references']} references, at a Kolmogorov-Smirnov "
            f"distance of {found['fit']['ks']:.3f}."
        )
    return rows, line


def page() -> Any:
    """The Gradio page, not launched."""
    import gradio as gr

    def answer(
        canaries: str, references: str, method: str, size: str
    ) -> tuple[list[list[str]], str]:
        try:
            return exposures(canaries, references, method, size)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return gr.Interface(
        fn=answer,
        inputs=[
            gr.Textbox(label="Canaries' log-perplexities", lines=3, placeholder="14.2, 22.1"),
            gr.Textbox(label="References' log-perplexities", lines=6, max_lines=12),
            gr.Radio(list(METHODS), value=METHODS[0], label="Method"),
            gr.Textbox(label="Number of possible secrets", placeholder="10^9, or leave empty"),
        ],
        outputs=[
            gr.Dataframe(
                headers=list(HEADINGS),
                column_widths=list(WIDTHS),
                wrap=True,
                label="Exposures in bits",
            ),
            gr.Textbox(label="Summary"),
        ],
        examples=[list(EXAMPLE)],
        cache_examples=False,
        flagging_mode="never",
        title=TITLE,
        description=INTRODUCTION,
        article=evaluate.utils.gradio.parse_readme(FOLDER / "README.md"),
    )


if __name__ == "__main__":
    page().launch()
