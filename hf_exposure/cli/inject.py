"""`hf-exposure inject`: insert canaries into a dataset."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from hf_exposure.cli.inputs import (
    check_file,
    check_folder,
    check_repo,
    format_of,
    numbers,
    read_limits,
)
from hf_exposure.cli.options import (
    AsJson,
    Check,
    Dataset,
    Overwrite,
    Secret,
    Split,
    Template,
)
from hf_exposure.cli.terminal import out, print_json, shows_progress
from hf_exposure.models.loading import quiet
from hf_exposure.utils.checks import check_path
from hf_exposure.utils.files import replacing
from hf_exposure.utils.progress import writing_bar

_DRAWING = (
    "template",
    "secret",
    "check",
    "repetitions",
    "per_repetition",
    "inclusion",
    "secrets_seed",
)


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def inject(
    context: typer.Context,
    dataset: Dataset,
    output: Annotated[
        Path, typer.Option("--output", help="A .jsonl, .csv or .parquet file, or a new folder.")
    ],
    canaries: Annotated[
        Path, typer.Option("--canaries", help="Manifest: used if it exists, else written.")
    ] = Path("canaries.json"),
    template: Template = None,
    secret: Secret = None,
    check: Check = None,
    repetitions: Annotated[
        str, typer.Option("--repetitions", help="How often each group is inserted.")
    ] = "0,1,4,16,64",
    per_repetition: Annotated[
        int, typer.Option("--per-repetition", min=1, help="Canaries in each group.")
    ] = 4,
    inclusion: Annotated[
        str, typer.Option("--inclusion", help='"coin": each canary in or out by a fair coin.')
    ] = "fixed",
    column: Annotated[str, typer.Option("--column", help="Text or conversations.")] = "text",
    split: Split = "train",
    mode: Annotated[
        str, typer.Option("--mode", help='"rows" adds rows, "splice" puts canaries into rows.')
    ] = "rows",
    near_start: Annotated[
        bool, typer.Option("--near-start", help="Insert within the first rows.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Seed of the places; by default drawn at random."),
    ] = None,
    secrets_seed: Annotated[
        int | None,
        typer.Option(
            "--secrets-seed",
            min=0,
            help="Seed of the secrets: keep it to yourself. Drawn if left out.",
        ),
    ] = None,
    limits: Annotated[
        Path | None,
        typer.Option("--limits", help="YAML with limits for `gate`, to stand in the manifest."),
    ] = None,
    push_canaries: Annotated[
        str | None,
        typer.Option("--push-canaries", help="Also push the manifest to this private Hub id."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Insert canaries into a dataset, and write their manifest."""
    from hf_exposure.canaries.injection import inject_canaries
    from hf_exposure.canaries.loading import load_manifest
    from hf_exposure.canaries.row_files import KINDS, injector_for, row_file
    from hf_exposure.canaries.rows import check_output, load_rows, save_rows
    from hf_exposure.canaries.sets import Canaries

    kind = Path(dataset).suffix
    ours = kind in KINDS and (output.suffix == kind or _is_device(output)) and split == "train"
    if not ours:
        check_output(output)
    if output.resolve() == Path(dataset).resolve():
        raise typer.BadParameter("--output is --dataset: name another file for the new rows")
    if output.suffix or ours:
        check_file(output, apart=[canaries], overwrite=overwrite)
    else:
        check_folder(output, "--output")
    check_folder(canaries.parent, "--canaries")
    check_path("--canaries", canaries)
    check_repo(push_canaries, "--push-canaries")
    if canaries.is_dir():
        raise typer.BadParameter(f"--canaries: {str(canaries)!r} is a folder; name a file in it")
    seed = secrets.randbits(32) if seed is None else seed
    if canaries.exists():
        given = [f"--{name.replace('_', '-')}" for name in _DRAWING if _is_given(context, name)]
        if given:
            raise typer.BadParameter(
                f"{str(canaries)!r} is there already; leave out {' and '.join(given)} to insert "
                "its canaries, or name another file with --canaries"
            )
        chosen = load_manifest(canaries)
    else:
        chosen = Canaries.generate(
            format_of(template, secret, check),
            numbers("--repetitions", repetitions, int, "0,1,4,16,64"),
            per_repetition,
            secrets_seed,
            inclusion=inclusion,
        )
    if limits is not None:
        chosen.limits = read_limits(limits, {})
    with quiet():
        # The manifest comes first: rows whose secrets nobody knows would be of no use.
        if ours:
            file = row_file(Path(dataset), column)
            injector = injector_for(file, chosen, seed, mode, near_start)
            chosen.save(canaries)
            size, show = Path(dataset).stat().st_size, shows_progress(as_json)
            with replacing(output) as target, writing_bar(show, target, size) as watched:
                file.write(watched, injector)
            before, columns = file.count, file.columns
        else:
            rows = load_rows(dataset, split=split)
            changed = inject_canaries(rows, chosen, column, seed, mode, near_start)
            chosen.save(canaries)
            save_rows(changed, output)
            before, columns = len(rows), rows.column_names
    inserted = sum(canary.repetitions for canary in chosen)
    added = inserted if mode == "rows" else 0
    pushed = chosen.push_to_hub(push_canaries) if push_canaries is not None else None
    if as_json:
        print_json(
            {
                "output": str(output),
                "canaries": str(canaries),
                "rows_before": before,
                "rows": before + added,
                "inserted": inserted,
                "insertions": [one.shown(chosen.seed) for one in chosen.insertions],
                "pushed": pushed,
            }
        )
        return
    out.print(f"{chosen!r}")
    out.print(
        f"{output}: {before + added:,} rows with the columns {', '.join(columns)} "
        f"({added:,} more than before)"
    )
    out.print(f"{canaries}: the manifest. It holds the secrets: keep it to yourself.")
    if pushed is not None:
        out.print(f"Pushed to {pushed}", soft_wrap=True)
