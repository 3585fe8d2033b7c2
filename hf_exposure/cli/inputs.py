"""Arguments of several commands, checked and turned into what they stand for."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from hf_exposure.cli.terminal import progress
from hf_exposure.utils.checks import check_path

if TYPE_CHECKING:
    from datasets import Dataset as Rows

    from hf_exposure.canaries.formats import SecretFormat
    from hf_exposure.canaries.limits import Limits
    from hf_exposure.exposure.results import Exposures


Number = TypeVar("Number", int, float)


def format_of(template: str | None, secret: str | None, check: str | None) -> SecretFormat:
    """The format that three options tell of."""
    if template is None or secret is None:
        raise typer.BadParameter(
            "give both --template and --secret, such as --template 'The random number is {secret}.'"
            " --secret '[0-9]{9}', or --canaries with a manifest"
        )
    from hf_exposure.canaries.formats import SecretFormat

    return SecretFormat(template, secret, check)


def check_where(
    model: str | None,
    endpoint: str | None,
    endpoint_model: str | None,
    api_key_env: str | None,
    journal: Path | None,
) -> None:
    """Refuse other options than those of one model, at hand or behind an endpoint."""
    if (model is None) == (endpoint is None):
        raise typer.BadParameter("give either --model, or --endpoint with --endpoint-model")
    named = {
        "--endpoint-model": endpoint_model,
        "--api-key-env": api_key_env,
        "--journal": journal,
    }
    for option, value in named.items():
        if value is not None and model is not None:
            raise typer.BadParameter(f"{option} goes with --endpoint, not with --model")


def model_of(
    model: str | None,
    endpoint: str | None,
    endpoint_model: str | None,
    api_key_env: str | None,
    tokenizer: str | None,
    here: dict[str, Any],
    there: dict[str, Any],
) -> tuple[Any, Any]:
    """A model at hand or behind an endpoint, and its tokenizer, of the latter if one was named.

    Args:
        here, there: what else `load_model` and `CompletionsScorer` are given.
    """
    from hf_exposure.endpoints.completions import CompletionsScorer
    from hf_exposure.models.loading import load_model, load_tokenizer

    if model is not None:
        return load_model(model, tokenizer=tokenizer, **here)
    if endpoint is None or endpoint_model is None:
        raise typer.BadParameter("--endpoint needs the model's name there: give --endpoint-model")
    key = None if api_key_env is None else os.environ.get(api_key_env, "").strip()
    if key == "":
        raise typer.BadParameter(
            f"--api-key-env: the environment has no {api_key_env!r}, or no text"
        )
    scorer = CompletionsScorer(endpoint, endpoint_model, api_key=key, **there)
    return scorer, None if tokenizer is None else load_tokenizer(tokenizer)


def check_names(model: str, base: str | None) -> None:
    """Refuse models that are not there, before anything loads."""
    from hf_exposure.models.loading import check_model_name

    check_model_name(model, "--model")
    if base is not None:
        check_model_name(base, "--base")


def model_and_base(
    model: str,
    base: str | None,
    tokenizer: str | None,
    revision: str | None,
    device: str | None,
    dtype: str,
) -> tuple[Any, Any, Any]:
    """A model, its tokenizer, and the model before training, None if there is none."""
    from hf_exposure.models.loading import load_model

    given: dict[str, Any] = {"device": device, "dtype": dtype}
    loaded, tok = load_model(model, tokenizer=tokenizer, revision=revision, **given)
    if base is None:
        return loaded, tok, None
    return (
        loaded,
        tok,
        load_model(base, tokenizer=tokenizer or model, argument="--base", **given)[0],
    )


def numbers(name: str, text: str, kind: Callable[[str], Number], example: str) -> list[Number]:
    """Numbers with commas between them."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{name}={text!r}: give numbers such as {example}") from None


def read_limits(path: Path, changes: Mapping[str, float]) -> Limits:
    """The limits of a YAML file, some of them changed."""
    import yaml  # type: ignore[import-untyped]

    class Once(yaml.SafeLoader):  # type: ignore[misc]
        """Of two values for one name it would take the last, however lax."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [name.value for name, _ in node.value]
            for name in names:
                if names.count(name) > 1:
                    raise yaml.YAMLError(f"{name} stands there twice")
            return dict(super().construct_mapping(node, deep))

    # YAML 1.1 reads 1e-3, which has no point, as a text.
    exponent = re.compile(r"[-+]?\d+[eE][-+]?\d+")
    Once.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+0123456789"))

    from hf_exposure.canaries.limits import Limits

    check_read(path, "--limits")
    try:
        known = yaml.load(path.read_text(encoding="utf-8"), Once)
        return Limits.from_dict({**known, **changes} if isinstance(known, dict) else known)
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"--limits: {str(path)!r} cannot be read: {said}") from None


def check_read(path: Path | None, argument: str) -> None:
    """Refuse what is no file to read."""
    if path is None:
        return
    check_path(argument, path)
    if not path.exists():
        raise typer.BadParameter(f"{argument}: there is no file {str(path)!r}; give one that is")
    if path.is_dir():
        raise typer.BadParameter(f"{argument}: {str(path)!r} is a folder; name a file in it")


def check_repo(name: str | None, argument: str) -> None:
    """Refuse what is no name on the Hub, before anything is done for it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    if name is None:
        return
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise typer.BadParameter(
            f"{argument}: {name!r} is no name on the Hub; give one such as me/canaries"
        ) from None


def check_file(
    path: Path | None,
    argument: str = "--output",
    *,
    apart: Iterable[str | Path | None] = (),
    overwrite: bool = True,
) -> None:
    """Refuse what no file can be written to, or must not be, before anything is measured for it:
    a manifest, which may be the only place of its secrets, the files in `apart`, and, unless
    `overwrite`, any that is there."""
    from hf_exposure.canaries.loading import holds_manifest

    if path is None:
        return
    check_path(argument, path)
    if path.is_dir():
        raise typer.BadParameter(f"{argument}: {str(path)!r} is a folder; name a file in it")
    if not path.exists() or path.is_file():  # a device is written to as it is
        check_folder(path.parent, argument)
    if any(other is not None and Path(other).resolve() == path.resolve() for other in apart):
        raise typer.BadParameter(
            f"{argument}: {str(path)!r} is another file of this command already; name a new one"
        )
    if path.is_file() and holds_manifest(path):
        raise typer.BadParameter(
            f"{argument}: {str(path)!r} is the manifest of canaries, with their secrets, which is "
            "not written over; name another file"
        )
    if path.is_file() and path.stat().st_size and not overwrite:
        raise typer.BadParameter(
            f"{argument}: {str(path)!r} is there already: add --overwrite to replace it, or name "
            "another file with --output"
        )


def check_folder(path: Path, argument: str) -> None:
    """Refuse what no folder can be made of, nor is one already, or where nothing can be written:
    that is tried."""
    check_path(argument, path)
    there = next((one for one in (path, *path.absolute().parents) if one.exists()), None)
    if there is None:
        return
    if not there.is_dir():
        raise typer.BadParameter(f"{argument}: {str(there)!r} is a file, not a folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise typer.BadParameter(
            f"{argument}: nothing can be written to {str(there)!r} ({reason})"
        ) from None


def rows_with(column: str, dataset: str, split: str = "train") -> Rows:
    """A split of a dataset that has a column."""
    from hf_exposure.canaries.rows import load_rows

    rows = load_rows(dataset, split=split)
    if column not in rows.column_names:
        raise ValueError(
            f"--column: {dataset!r} has no column {column!r}, {_columns(dataset, rows)}"
        )
    return rows


def _columns(dataset: str, rows: Rows) -> str:
    """Which columns there are; those of a table without a header are named after its first row."""
    if not dataset.endswith(".csv"):
        return f"only {rows.column_names}"
    return f"but {len(rows.column_names)} others; see the first line of the file"


def check_card(model: str | None, push: bool, create_pr: bool) -> None:
    """Refuse a card that cannot be added to, before anything is measured."""
    if push and (model is None or Path(model).exists()):
        raise typer.BadParameter(
            "--push-to-card adds to the card of a model on the Hub, and --model names none: give "
            "--card with a README.md to add to"
        )
    if create_pr and not push:
        raise typer.BadParameter("--create-pr says how to push: add --push-to-card")


def add_to_card(
    card: Path | None,
    model: str | None,
    revision: str | None,
    create_pr: bool,
    exposures: Exposures | None,
    **parts: Any,
) -> None:
    """Add to a README.md, to the card of a model on the Hub, or both; then say where."""
    from hf_exposure.reports.cards import add_exposure_to_card
    from hf_exposure.reports.hub import push_exposure

    if card is not None:
        add_exposure_to_card(card, exposures, **parts)
        progress.print(f"{card}: what was found is in it now", soft_wrap=True)
    if model is not None:
        address = push_exposure(model, exposures, revision=revision, create_pr=create_pr, **parts)
        progress.print(f"Added to the card: {address}", soft_wrap=True)
