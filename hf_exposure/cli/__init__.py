"""The command line: `hf-exposure demo | inject | measure | extract | audit | discover | score |
report | gate | verify`, a module each."""

from __future__ import annotations

import os
import re
import sys
import warnings
from typing import Annotated, Any

import typer

from hf_exposure import __version__
from hf_exposure.cli.audit import audit
from hf_exposure.cli.demo import demo
from hf_exposure.cli.discover import discover
from hf_exposure.cli.extract import extract
from hf_exposure.cli.gate import gate
from hf_exposure.cli.inject import inject
from hf_exposure.cli.measure import measure
from hf_exposure.cli.report import report
from hf_exposure.cli.score import score
from hf_exposure.cli.terminal import fail, out, progress
from hf_exposure.cli.verify import verify
from hf_exposure.utils.escapes import printable

__all__ = ["app", "main", "out", "progress"]

_formatted = warnings.formatwarning

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def hf_exposure(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """How much has a language model memorized? Inserts canaries, measures their exposure, extracts
    secrets, and reports the results.
    """


for command in (demo, inject, measure, extract, audit, discover, score, report, gate, verify):
    app.command()(command)


def _one_line(message: Warning | str, category: type[Warning], *where: Any, **line: Any) -> str:
    """A warning for somebody who has typed a command: what it says, not where it comes from."""
    if category is UserWarning:
        return printable(f"Warning: {message}\n", keep="\n\t")
    return _formatted(message, category, *where, **line)


# What functions call their arguments, and what the command line does.
_OPTIONS = {
    "load_rows: name": "--dataset",
    "generate_secrets: num_samples": "--generate",
    "Limits: there is no limit; give max_exposure=10, say, or max_tpr=0.05": "gate: there is no "
    "limit; give --max-exposure 10, say, or --max-tpr 0.05, or --limits with a file",
    "Limits: max_exposure": "--max-exposure",
    "Limits: max_tpr": "--max-tpr",
    "Limits: fpr": "--fpr",
    "Limits: repetitions": "--repetitions",
    "load_model: name": "--model",
    "load_model: tokenizer": "--tokenizer",
    "load_model: dtype=": "--dtype: ",
    "load_model: device=": "--device: ",
    "load_rows: split=": "--split: ",
    "load_rows: ": "--dataset: ",
    "save_rows: ": "--output: ",
    "load_canaries: ": "--canaries: ",
    "load_manifest: ": "--canaries: ",
}


_ARGUMENT = re.compile(r"\b(method|score|samples|seed|max_forwards|batch_size|k)(?==)")


def in_options(message: str) -> str:
    """An error of a function in the words of the command line."""
    for function in ("measure_exposure: ", "score_texts: "):
        if message.startswith(function):
            message = _ARGUMENT.sub(lambda name: f"--{name[0].replace('_', '-')}", message)
            message = message.removeprefix(function)
    for begin, option in _OPTIONS.items():
        if message.startswith(begin):
            message = option + message[len(begin) :]
    message = message.replace("pass overwrite=True, or", "add --overwrite, or")
    return message.replace("say where it is with tokenizer=", "give --tokenizer")


def _check_lengths(arguments: list[str]) -> None:
    """Refuse arguments so long that no error could quote them."""
    for option, argument in zip(["", *arguments], arguments, strict=False):
        most = 20_000 if option in ("--template", "--secret") else 4_096
        if len(argument) > most:
            what = option if option.startswith("-") else "an argument"
            raise ValueError(f"{what} has {len(argument):,} characters; give at most {most:,}")


def main() -> None:
    """Run it. What goes wrong is said in one line; HF_EXPOSURE_TRACEBACK=1 shows where.

    The exit code is 1 then, or 2 of commands whose exit code 1 is a verdict.
    """
    warnings.formatwarning = _one_line
    try:
        _check_lengths(sys.argv[1:])
        app()
    except KeyboardInterrupt:
        fail("interrupted; nothing was written")
        sys.exit(130)
    except Exception as error:
        from hf_exposure.exposure.results import BudgetError  # brings SciPy, so not at import

        if isinstance(error, BudgetError):
            fail(str(error).replace(": see .exposures of this error", ":"))
            out.print(error.exposures.table())
            sys.exit(1)
        if os.environ.get("HF_EXPOSURE_TRACEBACK"):
            raise
        said = in_options(str(error).strip())
        expected = isinstance(error, (ValueError, TypeError, OSError, RuntimeError, ImportError))
        fail(said if said and expected else f"{type(error).__name__}: {said}")
        sys.exit(2 if sys.argv[1:2] in (["gate"], ["verify"]) else 1)
