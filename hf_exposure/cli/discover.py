"""`hf-exposure discover`: whether texts come out after their prefixes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_exposure.cli.inputs import check_file, numbers
from hf_exposure.cli.options import (
    AsJson,
    BatchSize,
    Device,
    Dtype,
    Limit,
    MaybeDataset,
    Model,
    Overwrite,
    Reveal,
    Revision,
    Split,
    Tokenizer,
)
from hf_exposure.cli.terminal import out, print_json, shows_progress
from hf_exposure.models.loading import quiet


def discover(
    model: Model,
    dataset: MaybeDataset = None,
    benchmark: Annotated[
        Path | None,
        typer.Option("--benchmark", help="Or a folder with train_prefix.npy and train_suffix.npy."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            help='"prefix,suffix", or one column whose first tokens are taken. By default these '
            "two if they are there, else text.",
        ),
    ] = None,
    split: Split = "train",
    limit: Limit = None,
    prefix_tokens: Annotated[
        int, typer.Option("--prefix-tokens", min=1, help="For one column: tokens of the prefix.")
    ] = 50,
    suffix_tokens: Annotated[
        int, typer.Option("--suffix-tokens", min=1, help="For one column: tokens of the suffix.")
    ] = 50,
    n: Annotated[
        str, typer.Option("--n", help="Numbers of samples to report rates for.")
    ] = "1,10,100,1000,1000000",
    p: Annotated[
        str, typer.Option("--p", help="Probabilities that one sample is the suffix.")
    ] = "0.1,0.5,0.9",
    temperature: Annotated[
        float, typer.Option("--temperature", help="Sampling temperature.")
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option("--top-k", help="Sample from the top k tokens; 0: all.")
    ] = 0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Sample from this probability mass; 1: all.")
    ] = 1.0,
    near: Annotated[
        int, typer.Option("--near", min=0, help="Also find texts within this many token edits.")
    ] = 0,
    max_forwards: Annotated[
        int | None,
        typer.Option("--max-forwards", help="Token-forwards of each search for near texts."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the examples as JSON.")
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
    """Tell which texts of a dataset a model completes, given their beginnings."""
    from hf_exposure.attacks.discoverable import discoverable_extraction, sampling_scheme
    from hf_exposure.attacks.pairs import load_benchmark
    from hf_exposure.canaries.rows import load_rows
    from hf_exposure.models.loading import load_model

    check_file(output, apart=[dataset], overwrite=overwrite)
    counts = numbers("--n", n, float, "1,1000")
    targets = numbers("--p", p, float, "1,1000")
    if not all(0 < target < 1 for target in targets):
        raise typer.BadParameter(f"--p={p!r}: give numbers between 0 and 1, such as 0.5")
    if not all(count >= 1 for count in counts):
        raise typer.BadParameter(f"--n={n!r}: give numbers of at least 1, such as 1,1000")
    if (dataset is None) == (benchmark is None):
        raise typer.BadParameter("give either --dataset, or --benchmark with a folder")
    sampling_scheme(temperature, top_k, top_p)  # before the model loads
    names: Any = None if columns is None else tuple(name.strip() for name in columns.split(","))
    if names is not None and len(names) > 2:
        raise typer.BadParameter(f"--columns={columns!r}: give one name, or two")
    names = names[0] if names is not None and len(names) == 1 else names
    with quiet():
        rows: Any
        if dataset is not None:
            rows = load_rows(dataset, split=split)
            _check_columns(dataset, rows.column_names, names)
            rows = rows if limit is None else rows.select(range(min(limit, len(rows))))
        else:
            assert benchmark is not None
            rows = load_benchmark(benchmark, split)[:limit]
        loaded, tok = load_model(
            model, tokenizer=tokenizer, revision=revision, device=device, dtype=dtype
        )
        try:
            found = discoverable_extraction(
                loaded,
                tok,
                rows,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                prefix_tokens=prefix_tokens,
                suffix_tokens=suffix_tokens,
                near=near,
                columns=names,
                batch_size=batch_size,
                max_forwards=max_forwards,
                progress=shows_progress(as_json),
            )
        except ValueError as error:
            said = str(error).replace("prefix_tokens + suffix", "--prefix-tokens + --suffix")
            raise ValueError(said.replace("--suffix_tokens", "--suffix-tokens")) from error
    tables = [found.rates(counts, targets, wide) for wide in ([False, True] if near else [False])]
    if as_json:
        rates = [table.to_dict() for table in tables]
        print_json({**found.to_dict(reveal), "rates": rates})
    else:
        out.print(found.table(reveal))
        for table in tables:
            out.print()
            out.print(table.table())
    if output is not None:
        found.save(output, reveal, overwrite=True)


def _check_columns(dataset: str, there: list[str], names: str | tuple[str, ...] | None) -> None:
    """Refuse columns that are not there, before the model loads."""
    if names is None:
        names = "prefix" if {"prefix", "suffix"} <= {*there} else "text"
    for name in (names,) if isinstance(names, str) else names:
        if name not in there:
            raise typer.BadParameter(
                f"{dataset!r} has no column {name!r}, only {there}: name prefix and suffix, or one "
                "column to cut, with --columns"
            )
