"""`hf-exposure score`: how much speaks for texts having been trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_exposure.cli.inputs import check_file, check_names, model_and_base, rows_with
from hf_exposure.cli.options import (
    AsJson,
    BatchSize,
    Column,
    Dataset,
    Device,
    Dtype,
    Limit,
    Model,
    Overwrite,
    Reveal,
    Revision,
    Split,
    Tokenizer,
)
from hf_exposure.cli.terminal import deliver, progress, shows_progress
from hf_exposure.models.loading import quiet
from hf_exposure.utils.words import plural


def score(
    dataset: Dataset,
    model: Model,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="The model before training, for the scores ratio and error_zone: folder or Hub "
            "id.",
        ),
    ] = None,
    non_members: Annotated[
        str | None,
        typer.Option(
            "--non-members",
            help="Texts of the same kind that the model was not trained on, as --dataset: test "
            "whether both can be told apart.",
        ),
    ] = None,
    column: Column = "text",
    split: Split = "train",
    non_members_split: Annotated[
        str, typer.Option("--non-members-split", help="The split of --non-members.")
    ] = "train",
    limit: Limit = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            help="The score of the test, to be chosen beforehand: per_token, ratio, zlib, min_k, "
            "min_k_plus_plus or error_zone. ratio with --base, else min_k_plus_plus.",
        ),
    ] = None,
    fpr: Annotated[
        float | None,
        typer.Option("--fpr", help="False-positive rate of the test; 0.01 by default."),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option("--confidence", help="Of the test's intervals; 0.95 by default."),
    ] = None,
    k: Annotated[
        float, typer.Option("--k", help="Per cent of the tokens that Min-K% and Min-K%++ look at.")
    ] = 20.0,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the scores, and the test, as JSON.")
    ] = None,
    tokenizer: Tokenizer = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    batch_size: BatchSize = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    reveal: Reveal = False,
) -> None:
    """Score texts by how much speaks for a model having been trained on them.

    With --non-members it is tested how many of the texts of --dataset are told from those.
    """
    from hf_exposure.attacks.membership import membership_test
    from hf_exposure.attacks.texts import TextScores, score_texts

    check_file(output, apart=[dataset, non_members], overwrite=overwrite)
    test = {"by": by, "fpr": fpr, "confidence": confidence}
    options: dict[str, Any] = {name: value for name, value in test.items() if value is not None}
    _check_test(options, base, non_members)
    if (dataset, split) == (non_members, non_members_split):
        raise typer.BadParameter("--non-members names the same texts as --dataset; name others")
    check_names(model, base)
    with quiet():
        texts = _texts("--dataset", dataset, column, split, limit)
        others = None
        if non_members is not None:
            others = _texts("--non-members", non_members, column, non_members_split, limit)
            _warn_of_both(texts, others)
        loaded, tok, earlier = model_and_base(model, base, tokenizer, revision, device, dtype)

        def scored(some: list[str], argument: str) -> TextScores:
            try:
                return score_texts(
                    loaded,
                    tok,
                    some,
                    earlier,
                    k=k,
                    batch_size=batch_size,
                    progress=shows_progress(as_json),
                )
            except ValueError as error:
                said = str(error).replace("score_texts: texts:", f"{argument}:")
                raise ValueError(said.replace(", or give bos=True", "")) from error

        found = scored(texts, "--dataset")
        unseen = None if others is None else scored(others, "--non-members")
    data = found.to_dict(reveal)
    tables: list[Any] = [found.table(reveal)]
    if unseen is not None:  # what reads scores of texts leaves this aside
        told = membership_test(found, unseen, **options)
        data |= {"non_members": unseen.to_dict(reveal), "membership_test": told.to_dict()}
        tables += ["", told.table()]
    deliver(data, tables, as_json, output)


def _check_test(options: dict[str, Any], base: str | None, non_members: str | None) -> None:
    """Refuse options of a test that cannot be made, before anything loads."""
    from hf_exposure.attacks.texts import OF_BASE, SCORES
    from hf_exposure.utils.checks import check_choice, check_share

    if options and non_members is None:
        raise typer.BadParameter(
            f"--{next(iter(options))} is about the test of members: give --non-members"
        )
    if "by" in options and check_choice("--by", options["by"], SCORES) in OF_BASE and base is None:
        raise typer.BadParameter(f"--by {options['by']} needs the model before training: --base")
    for name in ("fpr", "confidence"):
        if name in options:
            check_share(f"--{name}", options[name])


def _texts(argument: str, dataset: str, column: str, split: str, limit: int | None) -> list[str]:
    """The texts of a column, those apart that say nothing."""
    try:
        rows = rows_with(column, dataset, split)
    except (OSError, ValueError) as error:
        raise type(error)(str(error).replace("load_rows:", f"{argument}:", 1)) from None
    every = rows[column][:limit]
    texts = [text for text in every if isinstance(text, str) and text.strip()]
    if not texts:
        raise ValueError(f"{argument}: none of the {len(every)} rows of {dataset!r} has a text")
    if len(texts) < len(every):
        left = plural(len(every) - len(texts), "row")
        progress.print(f"Warning: {argument}: {left} without text left out", soft_wrap=True)
    return texts


def _warn_of_both(texts: list[str], others: list[str]) -> None:
    """What was trained on is no non-member."""
    both = set(texts) & set(others)
    if both:
        progress.print(
            f"Warning: {plural(len(both), 'text')} of --dataset also stand in --non-members: those "
            "are members, and make the test look worse than it is",
            soft_wrap=True,
        )
