"""What a row of its own has beside the canary, in the data set types of TRL.

Language modeling, prompt-completion, preference and unpaired preference data, as text and as
conversations. A row with None in a column that a trainer reads would end the training.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hf_exposure.canaries.insertion import Insertion
from hf_exposure.utils.warn import warn

_REJECTED = ("Nothing comes to mind.", "I cannot think of anything.")  # as unlike the canary
_STEPS = {"completions", "labels"}  # of stepwise supervision


def own_row(text: str, names: Collection[str], insertion: Insertion) -> dict[str, Any]:
    """The row of a canary: its column, and those that a trainer needs with it."""
    column, columns = insertion.column, set(names)
    other = next(line for line in _REJECTED if line[0] != text[:1])
    turns, rejected = insertion.conversation(text), insertion.conversation(other)
    apart = "prompt" in columns and column in ("completion", "chosen")
    if insertion.chat:
        start = len(turns) - 1 if apart else 0
        row: dict[str, Any] = {column: turns[start:]}
        beside: dict[str, Any] = {"prompt": turns[:-1], "rejected": rejected[start:]}
    else:
        row = {column: text}
        beside = {"prompt": "", "rejected": other}
    if apart:
        row["prompt"] = beside["prompt"]
        if column == "completion" and "label" in columns:
            row["label"] = True
    if column == "chosen" and "rejected" in columns:
        row["rejected"] = beside["rejected"]
    if "chat_template_kwargs" in columns:
        row["chat_template_kwargs"] = {}
    return row


def check_type_of_rows(
    where: str, names: Collection[str], insertion: Insertion, fill: Mapping[str, Any]
) -> None:
    """Refuse rows that a trainer would not learn the canary from; `fill` may say otherwise.

    Raises:
        ValueError: the message names the column to use.
    """
    column, columns = insertion.column, set(names)
    better = None
    if columns >= {"prompt", *_STEPS}:
        raise ValueError(
            f"{where}: column={column!r}: this is stepwise supervision data, which a reward model "
            "is trained on to judge steps, not to write them; insert the canaries into the data "
            "that the language model is trained on"
        )
    if insertion.mode != "rows":
        return
    if column == "prompt" and "completion" in columns:
        better = "completion"
    if column in ("prompt", "rejected") and "chosen" in columns:
        better = "chosen"
    if better is not None and better not in fill:
        raise ValueError(
            f"{where}: column={column!r}: with rows of their own in it, {better!r} would be empty, "
            f"and no trainer learns a {column!r} by heart; insert into column={better!r}, or say "
            f'what the rows have there with fill={{{better!r}: ...}}, or use mode="splice"'
        )
    if column == "prompt" and better is None and columns <= _PROMPT_ONLY:
        warn(
            f"{where}: column='prompt' looks like prompt-only data, with which trainers such as "
            "GRPO train a model on what it writes and not on the prompts: if so, no canary is "
            "learned from them",
        )


_PROMPT_ONLY = {"prompt", "tools", "chat_template_kwargs"}
