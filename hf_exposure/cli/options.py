"""Options that several commands have, with their names and help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL = typer.Option("--model", "--model_name_or_path", help="A model's folder or Hub id.")
_DATASET = typer.Option(
    "--dataset",
    "--dataset_name",
    help="A .jsonl, .csv, .parquet or .txt file, a folder of save_to_disk, or a Hub id.",
)
Model = Annotated[str, _MODEL]
MaybeModel = Annotated[str | None, _MODEL]
Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        help="Or the address of a completions endpoint, e.g. http://localhost:8000/v1.",
    ),
]
EndpointModel = Annotated[
    str | None, typer.Option("--endpoint-model", help="The model's name at the endpoint.")
]
ApiKeyEnv = Annotated[
    str | None, typer.Option("--api-key-env", help="Environment variable with the endpoint's key.")
]
Journal = Annotated[
    Path | None,
    typer.Option("--journal", help="Keep the endpoint's answers here, to go on after a kill."),
]
Dataset = Annotated[str, _DATASET]
MaybeDataset = Annotated[str | None, _DATASET]
Column = Annotated[str, typer.Option("--column", help="The dataset's text column.")]
Split = Annotated[str, typer.Option("--split", help="The dataset's split.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Number of rows to scan; all by default.")
]
Confidence = Annotated[
    float, typer.Option("--confidence", help="Confidence level of the intervals.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same figures.")]
Tokenizer = Annotated[
    str | None,
    typer.Option("--tokenizer", help="Folder or Hub id of the tokenizer, if not with the model."),
]
Base = Annotated[
    str | None,
    typer.Option("--base", help="The model before training, to compare with: folder or Hub id."),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of the model on the Hub.")
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="Such as cuda:0, or auto for all devices; by default a GPU."),
]
Dtype = Annotated[str, typer.Option("--dtype", help="Such as bfloat16; auto is the saved one.")]
CanarySet = Annotated[
    str, typer.Option("--canaries", help="Manifest of the canaries, or the Hub id of the set.")
]
CanariesRevision = Annotated[
    str | None,
    typer.Option("--canaries-revision", help="Branch, tag or commit of canaries on the Hub."),
]
PushToCard = Annotated[
    bool,
    typer.Option("--push-to-card", help="Add the results to the model's card on the Hub."),
]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Push to the card as a pull request.")]
Card = Annotated[Path | None, typer.Option("--card", help="Add the results to this README.md.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Reveal = Annotated[bool, typer.Option("--reveal", help="Show the secrets.")]
MaxForwards = Annotated[
    int | None,
    typer.Option(
        "--max-forwards",
        help="Token-forwards to spend, beside what the canaries' own scores need.",
    ),
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", help="Rows of one forward; automatic by default.")
]
Template = Annotated[
    str | None,
    typer.Option("--template", help='Text of a canary, e.g. "The random number is {secret}."'),
]
Secret = Annotated[
    str | None, typer.Option("--secret", help='Expression for the secret, e.g. "[0-9]{9}".')
]
Check = Annotated[
    str | None, typer.Option("--check", help='"luhn" for numbers with a check digit.')
]
