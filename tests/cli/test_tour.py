"""A whole tour without --reveal, and somebody who has the model and all that came of the tour."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset

from hf_exposure import ExposureCallback, cli
from hf_exposure.attacks.extraction import extract_secrets
from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.masking import mask_secrets
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.history import HISTORY_FILE
from hf_exposure.exposure.measure import measure_exposure
from hf_exposure.exposure.records import Exposure
from hf_exposure.exposure.results import Exposures
from tests.hub_server import Client, hub, in_the_client
from tests.tiny import TOKENIZERS, corpus, llama

pytestmark = pytest.mark.slow

NINE = SecretFormat("the random number is {secret}.", secret="[0-9]{9}")
REPETITIONS, EACH = [0, 1, 4, 12, 40], 3
SEEDS = 2**13
LIKELY = 2000  # strings that the attacker takes from the top of the list
FEW = 5  # candidates of which an attacker simply tries all
OURS = re.compile(
    r"canaries\.json|planted\.jsonl|rows\.jsonl|tokenizer.*|.*\.(safetensors|pt|pth|bin)"
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    started = Client(tmp_path_factory.mktemp("home"))
    yield started
    started.close()


def command(*arguments: str | Path) -> str:
    """What a command prints, errors and warnings too."""
    shown, told = io.StringIO(), io.StringIO()
    old, sys.argv = sys.argv, ["hf-exposure", *map(str, arguments)]
    form, out, err = warnings.formatwarning, cli.out.file, cli.progress.file
    try:
        cli.out.file, cli.progress.file = shown, told
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(told):
            cli.main()
    except SystemExit as end:
        assert end.code in (0, None), shown.getvalue() + told.getvalue()
    finally:
        sys.argv, warnings.formatwarning = old, form
        cli.out.file, cli.progress.file = out, err
    return shown.getvalue() + told.getvalue()


def trained(folder: Path, rows: Path, canaries: Canaries) -> tuple[Any, str]:
    """A model that has read the rows, and what its training printed."""
    from transformers import Trainer, TrainingArguments

    tokenizer = TOKENIZERS["digits_one_by_one"]()
    texts = load_dataset("json", data_files=str(rows), split="train")["text"]
    data = [tokenizer(text, truncation=True, max_length=48) for text in texts]
    for one in data:
        one["input_ids"] += [tokenizer.eos_token_id] * (48 - len(one["input_ids"]))
        one["labels"] = [
            token if token != tokenizer.eos_token_id else -100 for token in one["input_ids"]
        ]
        one["attention_mask"] = [1] * 48
    settings = TrainingArguments(
        str(folder), num_train_epochs=14, per_device_train_batch_size=16, learning_rate=5e-3,
        eval_strategy="steps", eval_steps=60, save_strategy="steps", save_steps=60,
        logging_steps=30, report_to="none", use_cpu=True,
        hub_model_id="me/toured", hub_private_repo=True,
    )  # fmt: skip
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        callback = ExposureCallback(canaries, samples=300)
        trainer = Trainer(
            llama(len(tokenizer)), settings, train_dataset=data, eval_dataset=data[:8],
            processing_class=tokenizer, callbacks=[callback],
        )  # fmt: skip
        trainer.train()
        trainer.save_model(str(folder))
        trainer.push_to_hub()
        callback.report(folder / "training.html")
        print(trainer.state.log_history, callback.history, str(callback.history[-1].exposures))
    return trainer.model, told.getvalue()


def written(folder: Path) -> dict[str, str]:
    """All files of the tour but the manifest, the data and the model."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path): path.read_text(encoding="utf-8", errors="replace")
        for path in files
        if not OURS.fullmatch(path.name)
    }


def records(value: Any) -> Iterator[dict[str, Any]]:
    """Everything that looks like a canary's figures, in any JSON, JSON in JSON too."""
    if isinstance(value, dict):
        if {"bits", "rank", "log_perplexity"} <= value.keys():
            yield value
        for item in value.values():
            yield from records(item)
    elif isinstance(value, list):
        for item in value:
            yield from records(item)
    elif isinstance(value, str) and value.startswith("{"):
        with contextlib.suppress(ValueError):
            yield from records(json.loads(value))


def figures(one: Any) -> tuple[str, ...]:
    read = one.get if isinstance(one, dict) else lambda name: getattr(one, name)
    names = ("bits", "low", "high", "rank", "certified", "log_perplexity", "p_value")
    return tuple(str(read(name)) for name in names)


@in_the_client
def test_nobody_finds_a_secret_in_a_tour_but_one_that_the_model_tells_anyway(
    tmp_path: Path,
) -> None:
    planted, manifest, out = (
        tmp_path / "planted.jsonl",
        tmp_path / "canaries.json",
        tmp_path / "out",
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": line}) + "\n" for line in corpus()[:60]))
    out.mkdir()
    told = [
        command(
            *("inject", "--dataset", rows, "--output", planted, "--canaries", manifest, "--json"),
            *("--template", NINE.template, "--secret", NINE.secret),
            *("--repetitions", ",".join(map(str, REPETITIONS)), "--per-repetition", str(EACH)),
        )
    ]
    canaries = Canaries.load(manifest)
    model, said = trained(out / "model", planted, canaries)
    told.append(said)
    place = ["--model", out / "model", "--canaries", manifest]
    hub().create("models", "me/card")
    for arguments in (
        ["measure", *place, "--output", out / "exposures.json", "--card", out / "CARD.md"],
        ["measure", *place, "--method", "sampling", "--samples", "500", "--json"],
        [
            "measure",
            *place,
            "--method",
            "skewnorm",
            "--samples",
            "500",
            "--output",
            out / "fit.json",
        ],
        ["extract", *place, "--count", "20", "--generate", "60", "--output", out / "found.json"],
        ["extract", *place, "--count", "6", "--json"],
        ["audit", "--dataset", planted, "--model", out / "model", "--output", out / "audit.json"],
        [
            "report",
            out / "exposures.json",
            "--extractions",
            out / "found.json",
            "--output",
            out / "a.html",
        ],
        ["report", out / "model" / HISTORY_FILE, "--output", out / "b.html"],
    ):
        told.append(command(*arguments))
    from hf_exposure.reports.hub import push_exposure

    push_exposure("me/card", Exposures.load(out / "exposures.json"), per_canary=True)
    public = {**written(out), **{f"printed {n}": text for n, text in enumerate(told)}}
    for name in ("me/card", "me/toured"):
        for path, content in hub().files("models", name).items():
            if not OURS.fullmatch(Path(path).name):
                public[f"{name}/{path}"] = content.decode(errors="replace")
    assert {HISTORY_FILE, "exposures.json", "trainer_state.json", "CARD.md"} <= {
        Path(path).name for path in public
    }

    # As it stands there, and by seeds.
    for path, text in public.items():
        for canary in canaries:
            assert canary.secret not in text and canary.text not in text, path
    everything = "\n".join(public.values())
    assert mask_secrets(told[0], canaries) == told[0]
    numbers = {int(word) for word in re.findall(r"(?<![\d.])\d{1,39}(?![\d.])", everything)}
    secrets = {canary.secret for canary in canaries}
    # The first secret of a seed is the same however many are drawn.
    again = Canaries.generate(NINE, REPETITIONS, EACH, seed=5)
    assert [one.secret for one in Canaries.generate(NINE, [0], 1, seed=5)] == [again[0].secret]
    for seed in range(SEEDS):
        assert Canaries.generate(NINE, [0], 1, seed)[0].secret != canaries[0].secret, seed
    for seed in numbers:
        again = Canaries.generate(NINE, REPETITIONS, EACH, seed)
        assert secrets.isdisjoint(one.secret for one in again), seed
        assert secrets.isdisjoint(NINE.sample(len(canaries), seed)), seed

    # By figures: what is likely is listed, and of the rest a sample tells how many look alike.
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    likely = extract_secrets(model, tokenizer, NINE, count=LIKELY)
    inserted = {canary.secret for canary in canaries if canary.inserted}
    known = {one.secret for one in likely[:1]}
    listed: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)  # secrets, by their figures
    rank = 1
    for one in likely:
        if rank == 1:
            known.add(one.secret)
        bits = NINE.bits - math.log2(rank)
        exact = (bits, bits, bits, rank, rank, rank, bits, 0, True, one.log_perplexity)
        exposure = Exposure(Canary(NINE, one.secret), *exact, "auto", rank / NINE.size)
        listed[figures(exposure.coarse())].add(one.secret)
        rank += one.secret not in inserted
    drawn = measure_exposure(
        model, tokenizer, Canaries([Canary(NINE, s) for s in NINE.sample(600, seed=7)]), samples=300
    )
    alike = [one.coarse().log_perplexity for one in drawn]
    count = 0
    for text in public.values():
        with contextlib.suppress(ValueError):
            for record in records(json.loads(text)):
                count += 1
                fitting = listed.get(figures(record), set())
                cost, rank = float(record["log_perplexity"]), float(record["rank"])
                assert fitting <= known or len(fitting) > FEW
                if rank > LIKELY and math.isfinite(cost):
                    share = np.mean([other == cost for other in alike])
                    assert share == 0 or share * NINE.size > 1e5
    assert count > 4 * len(canaries)
