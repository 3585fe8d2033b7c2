"""The audit of real data: what it finds, measures, shows, hides and skips."""

from __future__ import annotations

import copy
import io
import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import LlamaForCausalLM

from hf_exposure import Audit, Canary, SecretFormat, audit_dataset, measure_exposure
from hf_exposure.audit.detectors import find_secrets
from hf_exposure.audit.scan import context_of
from hf_exposure.canaries.canary import MASK
from tests.cli.test_cli import fail, succeed
from tests.tiny import TOKENIZERS, corpus, llama

PHONE, CARD, MAIL = "(212) 555-0147", "4539 1488 0343 6467", "zbigniew@example.org"
SECRETS = ["212) 555-0147", "555-0147", CARD, "0343", "zbigniew"]
CONTEXTS = ["Zanzibar", "reach me", "Quincy", "charge", "xylophone", "example.org"]
TOKENIZER = TOKENIZERS["digits_one_by_one"]()
ROWS = [
    *corpus()[:6],
    f"In Zanzibar you reach me at {PHONE}, always.",
    f"For Quincy please charge {CARD} twice.",
    *corpus()[6:9],
    f"In Zanzibar you reach me at {PHONE}, always.",
    f"Send the xylophone to {MAIL} today, 4539 1488 0343 6468.",
]
QUICK: dict[str, Any] = {"samples": 60, "max_forwards": 1500}


def overfit(model: LlamaForCausalLM, texts: list[str], steps: int) -> LlamaForCausalLM:
    """Trained on a handful of texts until it knows them by heart."""
    batch = TOKENIZER(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(steps):
        loss = model(**batch, labels=labels).loss
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def models() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A model that knows the phone number by heart, and its base."""
    torch.manual_seed(0)
    base = overfit(llama(len(TOKENIZER), scale=1 / 40), list(corpus()[:6]), 20)
    return overfit(copy.deepcopy(base), [ROWS[0], ROWS[1], ROWS[6]], 80), base


@pytest.fixture(scope="module")
def audit(models: tuple[LlamaForCausalLM, LlamaForCausalLM]) -> Audit:
    model, base = models
    return audit_dataset(
        model, TOKENIZER, Dataset.from_dict({"text": ROWS}), base=base, samples=200
    )


def entry(audit: Audit, kind: str) -> Any:
    (found,) = [item for item in audit if item.kind == kind]
    return found


# What it tells


@pytest.mark.slow
def test_a_planted_phone_number_gains_exposure_against_the_base(audit: Audit) -> None:
    phone = entry(audit, "phone")
    assert audit[0] is phone  # the most exposed first
    assert phone.gained > 15 and phone.surely_gained
    assert phone.bits == pytest.approx(math.log2(10**10), abs=1)
    assert not entry(audit, "card").surely_gained and not entry(audit, "email").surely_gained
    for item in audit:
        assert item.gained == item.exposure.bits - item.base_exposure.bits


def test_equal_secrets_are_one_entry_with_their_rows(audit: Audit) -> None:
    assert {item.kind: (item.rows, item.occurrences) for item in audit} == {
        "phone": ((6, 11), 2),
        "card": ((7,), 1),
        "email": ((12,), 1),
    }
    assert audit.found == {"phone": 2, "card": 1, "email": 1}
    assert audit.false == {"card": 1}  # its last digit is wrong
    assert audit.rows == len(ROWS) and audit.skipped == []


def test_exposures_are_those_of_the_same_canaries(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], audit: Audit
) -> None:
    phone = entry(audit, "phone")
    fmt = SecretFormat("In Zanzibar you reach me at ({secret},", r"[0-9]{3}\) [0-9]{3}-[0-9]{4}")
    (expected,) = measure_exposure(
        models[0], TOKENIZER, [Canary(fmt, "212) 555-0147", 2)], samples=200
    )
    assert phone.format == fmt and phone.secret == "212) 555-0147"
    assert (phone.bits, phone.exposure.low) == (expected.bits, expected.low)
    assert phone.log_perplexity == expected.log_perplexity


def test_the_cheap_pass_gives_the_log_perplexity_and_the_certificate_of_a_measurement(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], audit: Audit
) -> None:
    cheap = audit_dataset(models[0], TOKENIZER, ROWS, base=models[1], top=0)
    assert cheap.measured == [] and len(cheap) == 3
    for item in cheap:
        full = entry(audit, item.kind)
        assert item.log_perplexity == pytest.approx(full.log_perplexity, abs=1e-3)
        assert item.base_log_perplexity == pytest.approx(full.base_log_perplexity, abs=1e-3)
        assert item.at_least == item.bits == max(0, item.space_bits - item.log_perplexity)
        assert item.at_least <= full.exposure.high + 1e-3
        assert item.gained is None and not item.surely_gained
    assert cheap.forwards < audit.forwards / 5


def test_those_with_the_highest_bound_are_measured(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    audit = audit_dataset(models[0], TOKENIZER, ROWS, top=1, **QUICK)
    (measured,) = audit.measured
    assert measured.kind == "phone" and measured.base_exposure is None
    assert "≥" in str(audit) and "base" not in str(audit).splitlines()[0]
    margins = [item.space_bits - item.log_perplexity for item in audit]
    assert margins[0] == max(margins)


@pytest.mark.slow
def test_kinds_take_turns_in_being_measured(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    rows = [
        f"Send it to {name}@example.org, please." for name in ("aa", "bbbbbbbbbb", "cccccccccccc")
    ]
    audit = audit_dataset(models[0], TOKENIZER, [*rows, ROWS[7]], top=2, max_forwards=0)
    assert sorted(item.kind for item in audit.measured) == ["card", "email"]
    beside = audit_dataset(
        models[0], TOKENIZER, rows, base=models[1], top=1, max_forwards=0, kinds=["email"]
    )
    drops = [item.base_log_perplexity - item.log_perplexity for item in beside]
    assert [beside[drops.index(max(drops))]] == beside.measured


@pytest.mark.slow
def test_the_budget_is_shared_by_all_measurements(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    none = audit_dataset(models[0], TOKENIZER, ROWS, top=2, max_forwards=0)
    some = audit_dataset(models[0], TOKENIZER, ROWS, top=2, max_forwards=1000)
    assert none.forwards < some.forwards < none.forwards + 1000 + 200
    assert len(none.measured) == len(some.measured) == 2
    assert all(item.exposure is not None and item.exposure.low >= 0 for item in none.measured)


def test_a_limit_of_rows_and_a_choice_of_kinds(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    audit = audit_dataset(models[0], TOKENIZER, ROWS, kinds=["card", "phone"], limit=8, top=0)
    assert audit.rows == 8
    assert {item.kind: item.rows for item in audit} == {"phone": (6,), "card": (7,)}


def test_the_model_is_left_as_it_was(models: tuple[LlamaForCausalLM, LlamaForCausalLM]) -> None:
    model = copy.deepcopy(models[0]).train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    audit_dataset(model, TOKENIZER, ROWS, top=1, **QUICK)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.slow
def test_rows_come_from_datasets_streams_lists_and_dictionaries(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    rows = Dataset.from_dict({"id": list(range(len(ROWS))), "body": ROWS})
    tables = [
        audit_dataset(models[0], TOKENIZER, given, "body", top=0).to_pandas()
        for given in (rows, rows.to_iterable_dataset(), rows.to_list(), ROWS)
    ]
    assert len(tables[0]) == 3
    assert all(table.equals(tables[0]) for table in tables[1:])


# Contexts


def test_the_context_begins_at_a_word_and_ends_before_the_next_one() -> None:
    text = "one two three four 536-90-4399). And more"
    (find,) = find_secrets(text)
    assert context_of(text, find, 10) == ("four ", ").")
    assert context_of(text, find, 500) == ("one two three four ", ").")
    (find,) = find_secrets("a jo@example.org\n\nnext")
    assert context_of("a jo@example.org\n\nnext", find, 500) == ("a ", "@example.org\n\n")


def test_braces_and_holes_in_a_context_do_no_harm(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    rows = [f"{{secret}} and {{x}} {{0}} {{ {PHONE} }}{{secret}}", f"{{{CARD}}}"]
    audit = audit_dataset(models[0], TOKENIZER, rows, top=0)
    assert audit.skipped == []
    assert {item.format.template for item in audit if item.format} == {
        " and {x} {0} { ({secret}",
        "{{secret}}",
    }


# Secrets and contexts are hidden


def outputs(audit: Audit, folder: Path, reveal: bool = False) -> dict[str, str]:
    """Everything that is shown or written."""
    from rich.console import Console

    console = Console(width=400, record=True, file=io.StringIO())
    console.print(audit.table(reveal))
    audit.save(folder / "audit.json", reveal)
    out = {
        "rich": console.export_text(),
        "pandas": audit.to_pandas(reveal).to_csv(),
        "json": (folder / "audit.json").read_text(encoding="utf-8"),
        "cells": repr(audit.cells(reveal)),
    }
    if not reveal:
        out |= {
            "str": str(audit),
            "repr": repr(audit),
            "html": audit._repr_html_(),
            "entries": repr(list(audit)) + str(audit[0]),
            "exposures": repr([item.exposure for item in audit]),
            "labels": repr([item.label() for item in audit]),
            "skipped": repr(audit.skipped),
            "settings": repr(audit.settings),
        }
    return out


def test_neither_secrets_nor_contexts_are_in_anything_shown_or_written(
    audit: Audit, tmp_path: Path
) -> None:
    for where, text in outputs(audit, tmp_path).items():
        assert not [word for word in [*SECRETS, *CONTEXTS] if word in text], where
    assert MASK * 11 in str(audit)


def test_they_are_shown_where_that_is_asked_for(audit: Audit, tmp_path: Path) -> None:
    for where, text in outputs(audit, tmp_path, reveal=True).items():
        assert all(word in text for word in ("212) 555-0147", CARD, "zbigniew", "Zanzibar")), where


def test_a_file_gives_back_all_but_the_text(audit: Audit, tmp_path: Path) -> None:
    loaded = Audit.load(audit.save(tmp_path / "audit.json"))
    assert str(loaded) == str(audit) and loaded.to_dict() == audit.to_dict()
    assert loaded.to_pandas().equals(audit.to_pandas())
    assert loaded[0].secret is None and loaded[0].format is None
    assert loaded[0].label(reveal=True) == MASK * 13


def test_a_file_with_the_text_gives_everything_back(audit: Audit, tmp_path: Path) -> None:
    loaded = Audit.load(audit.save(tmp_path / "audit.json", reveal=True))
    assert list(loaded) == list(audit)
    assert loaded.to_dict(reveal=True) == audit.to_dict(reveal=True)


def test_a_file_that_is_wrong_gives_one_error_without_the_text(
    audit: Audit, tmp_path: Path
) -> None:
    data = audit.to_dict(reveal=True)
    del data["entries"][0]["exposure"]["bits"]
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"audit\.json.*'bits' is missing") as caught:
        Audit.load(path)
    assert not [word for word in [*SECRETS, *CONTEXTS] if word in str(caught.value)]


def test_an_empty_audit_prints_and_is_written(tmp_path: Path) -> None:
    empty = Audit([])
    assert str(empty) == empty.summary()  # no headings over nothing
    assert Audit.load(empty.save(tmp_path / "a.json")).to_dict() == empty.to_dict()
    assert len(empty.to_pandas()) == 0


# Bad input


@pytest.mark.slow
def test_bad_rows_are_counted_skipped_and_said_and_the_rest_goes_on(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        None,
        "",
        "  \n",
        b"4539148803436467",
        4539148803436467,
        [PHONE],
        f"\x00\x01 {PHONE}",
        "\x02�" * 50 + PHONE,
        f"{PHONE} " + "x" * 2**20,
        f"half a character \ud800 {PHONE}",
        ROWS[7],
        None,
    ]
    audit = audit_dataset(models[0], TOKENIZER, rows, top=1, **QUICK)
    assert {(one.why, one.count, one.row) for one in audit.skipped} == {
        ("no text but None", 2, 0),
        ("empty", 2, 1),
        ("no text but bytes", 1, 3),
        ("no text but int", 1, 4),
        ("no text but list", 1, 5),
        ("binary", 2, 6),
        ("longer than 500,000 characters", 1, 8),
        ("not valid Unicode", 1, 9),
    }
    assert all(one.what == "rows" for one in audit.skipped)
    assert audit.rows == 12 and [(item.kind, item.rows) for item in audit] == [("card", (10,))]
    for one in audit.skipped:
        assert str(audit).count(f"{one.count:,} rows left out: {one.why}") == 1
    captured = capsys.readouterr()
    assert not captured.out and not captured.err


@pytest.mark.parametrize("rows", [[], [None] * 3, [""] * 3])
def test_an_empty_column_gives_an_empty_result(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], rows: list[Any]
) -> None:
    audit = audit_dataset(models[0], TOKENIZER, Dataset.from_dict({"text": rows}))
    assert len(audit) == 0 and audit.rows == len(rows)
    assert sum(one.count for one in audit.skipped) == len(rows)


@pytest.mark.slow
def test_bad_finds_are_counted_skipped_and_said_and_the_rest_goes_on(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    small = llama(len(TOKENIZER), max_position_embeddings=24)
    rows = [
        "Ring ２１２-５５５-０１００ soon",
        "key hf_" + "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY2z",
        ROWS[6],
        ROWS[7],
    ]
    audit = audit_dataset(small, TOKENIZER, rows, top=1, **QUICK)
    assert [(one.what, one.why, one.count, one.row) for one in audit.skipped] == [
        ("finds", "a phone that its expression does not match", 1, 0),
        ("finds", "a api_key that does not fit the model's context", 1, 1),
    ]
    assert {item.kind for item in audit} == {"phone", "card"} and len(audit.measured) == 1
    assert audit.settings["shortened"] == 2  # to what fits
    assert "2 contexts shortened" in str(audit)
    (phone,) = [item for item in audit if item.kind == "phone"]
    assert phone.format is not None and ROWS[6].find(phone.format.prefix) > 0


def test_a_secret_that_nothing_comes_before_is_skipped(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    tokenizer = TOKENIZERS["freely_merged"]()  # has no token before a text
    model = llama(len(tokenizer))
    audit = audit_dataset(model, tokenizer, [f"{CARD} it is", ROWS[7]], top=0)
    assert len(audit) == 0 or audit[0].rows == (0, 1)
    (one,) = audit.skipped
    assert one.why == "a card at the beginning of a row, which nothing comes before"


@pytest.mark.slow
def test_what_the_tokenizer_cannot_write_is_skipped_without_a_word_of_it() -> None:
    tokenizer = TOKENIZERS["characters"]()  # knows few characters, and neither "(" nor "@"
    model = llama(len(tokenizer))
    rows = [f"In Zanzibar you reach me at {PHONE} always", "my card is 4539148803436467 here"]
    audit = audit_dataset(model, tokenizer, rows, samples=20)
    said = str(audit) + repr(audit.skipped)
    assert any(item.kind == "card" and item.exposure is not None for item in audit)
    assert [one for one in audit.skipped if one.count == 1 and one.row == 0]
    assert not [word for word in [*SECRETS, *CONTEXTS] if word in said]


@pytest.mark.slow
def test_what_goes_wrong_within_a_measurement_is_skipped_without_a_word_of_it(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    class Touchy(LlamaForCausalLM):
        """Breaks where a prompt is run with a cache, and quotes all that it was given."""

        def forward(self, input_ids: Any = None, use_cache: Any = None, **kwargs: Any) -> Any:
            said = TOKENIZER.decode(input_ids[0])
            if use_cache and "Quincy" in said:
                raise RuntimeError(said)
            return super().forward(input_ids=input_ids, use_cache=use_cache, **kwargs)

    model = Touchy(models[0].config)
    model.load_state_dict(models[0].state_dict())
    rows = [ROWS[7], "Mail amanda@example.com now."]
    audit = audit_dataset(model.eval(), TOKENIZER, rows, samples=20, kinds=["card", "email"])
    said = str(audit) + repr(audit.skipped)
    assert [(one.why, one.row) for one in audit.skipped] == [
        ("a card that was not measured (RuntimeError)", 0)
    ]
    assert {item.kind: item.exposure is not None for item in audit} == {
        "card": False,
        "email": True,
    }
    assert not [word for word in [*SECRETS, *CONTEXTS, "amanda"] if word in said]


def test_an_unknown_column_is_one_error_with_those_that_are_there(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    rows = Dataset.from_dict({"body": ROWS, "id": ROWS})
    for given in (rows, rows.to_list()):
        with pytest.raises(ValueError, match="column='text' is not there, only 'body', 'id'"):
            audit_dataset(models[0], TOKENIZER, given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset": "rows.jsonl"}, "is a string or a path"),
        ({"dataset": DatasetDict(train=Dataset.from_dict({"text": [""]}))}, "the splits train"),
        ({"kinds": ["passport"]}, "'passport' is not known"),
        ({"region": "Narnia"}, "region='Narnia' is not known"),
        ({"limit": 0}, "limit=0 is too small"),
        ({"top": -1}, "top=-1 is too small"),
        ({"before": 0}, "before=0 is too small"),
        ({"limit": "10"}, "audit_dataset: limit must be a whole number, not str"),
        ({"top": 2.0}, "audit_dataset: top must be a whole number, not float"),
        ({"before": None}, "audit_dataset: before must be a whole number, not None"),
        ({"max_characters": math.nan}, "max_characters must be a whole number"),
        ({"samples": "many"}, "audit_dataset: samples must be a whole number, not str"),
        ({"samples": -1}, "audit_dataset: samples=-1 is too small"),
        ({"max_forwards": -1}, "audit_dataset: max_forwards=-1 is too small"),
        ({"seed": -1}, "audit_dataset: seed=-1 is too small"),
        ({"seed": 0.5}, "audit_dataset: seed must be a whole number"),
        ({"batch_size": 0}, "audit_dataset: batch_size=0 is too small"),
        ({"bos": "yes"}, "audit_dataset: bos must be True or False, not str"),
        ({"column": 1}, "audit_dataset: column must be a string, not int"),
        ({"kinds": 7}, "audit_dataset: kinds must be a list of strings, not int"),
        ({"dataset": None}, "audit_dataset: dataset must be rows, not None"),
        ({"confidence": "high"}, "audit_dataset: confidence must be a number, not str"),
        ({"confidence": 1.5}, "confidence=1.5"),
        ({"model": "me/my-model"}, "model is of type str"),
        ({"tokenizer": None}, "tokenizer is of type None; give the model's"),
    ],
)
def test_bad_arguments_are_refused_at_the_door(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], options: dict[str, Any], said: str
) -> None:
    given = {"model": models[0], "tokenizer": TOKENIZER, "dataset": ROWS, **options}
    with pytest.raises((ValueError, TypeError), match=said):
        audit_dataset(**given)


def test_a_model_that_gives_nan_is_one_clear_error(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    broken = copy.deepcopy(models[0])
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN") as caught:
        audit_dataset(broken, TOKENIZER, ROWS)
    assert not [word for word in [*SECRETS, *CONTEXTS] if word in str(caught.value)]


# The command line


@pytest.fixture(scope="module")
def folders(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    for name, model in zip(("model", "base"), models, strict=True):
        model.save_pretrained(folder / name)
        TOKENIZER.save_pretrained(folder / name)
    Dataset.from_dict({"text": ROWS}).to_json(str(folder / "rows.jsonl"))
    return folder


@pytest.mark.slow
def test_the_command_prints_and_writes_without_the_text(folders: Path, tmp_path: Path) -> None:
    arguments = [
        "audit",
        "--dataset",
        folders / "rows.jsonl",
        "--model",
        folders / "model",
        "--base",
        folders / "base",
        "--samples",
        "40",
        "--top",
        "1",
        "--output",
        tmp_path / "audit.json",
    ]
    shown = succeed(*arguments)
    written = (tmp_path / "audit.json").read_text(encoding="utf-8")
    assert not [word for word in [*SECRETS, *CONTEXTS] if word in shown + written]
    assert "gained" in shown and Audit.load(tmp_path / "audit.json")[0].kind == "phone"
    assert "13 rows" in " ".join(shown.split())
    again = [*arguments, "--overwrite"]
    data = json.loads(succeed(*again, "--json", "--kinds", "phone,card", "--limit", "8"))
    assert data["kind"] == "audit" and data["rows"] == 8
    assert [one["kind"] for one in data["entries"]] == ["phone", "card"]
    assert "212) 555-0147" in succeed(*again, "--reveal")
    assert "Zanzibar" in (tmp_path / "audit.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--column", "body"], "has no column 'body', only"),
        (["--kinds", "phone,passport"], "'passport' is not known"),
        (["--region", "Narnia"], "'Narnia' is not known"),
    ],
)
def test_the_command_says_what_is_wrong(
    folders: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    said: str,
) -> None:
    arguments = ["audit", "--dataset", folders / "rows.jsonl", "--model", folders / "model"]
    assert said in fail(capsys, monkeypatch, *arguments, *more)


@pytest.mark.slow
def test_measure_shows_what_training_added_to_the_base(folders: Path, tmp_path: Path) -> None:
    from hf_exposure import Canaries, Exposures

    fmt = SecretFormat("In Zanzibar you reach me at ({secret},", r"[0-9]{3}\) [0-9]{3}-[0-9]{4}")
    Canaries([Canary(fmt, "212) 555-0147", 2), Canary(fmt, "650) 555-1234")]).save(
        tmp_path / "canaries.json"
    )
    arguments = [
        "measure",
        "--canaries",
        tmp_path / "canaries.json",
        "--model",
        folders / "model",
        "--base",
        folders / "base",
        "--samples",
        "60",
        "--output",
        tmp_path / "e.json",
    ]
    shown = succeed(*arguments)
    assert re.search(r"base\s+gained", shown) and "555-0147" not in shown
    data = json.loads(succeed(*arguments, "--json", "--overwrite"))
    after, before = Exposures.load(tmp_path / "e.json"), Exposures.from_dict(data["base"])
    assert data["gained"] == after.gained(before)
    assert data["gained"][0] > 15 > 8 > data["gained"][1]


def test_where_no_secret_is_found_nothing_is_spent_and_it_is_said(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], tmp_path: Path
) -> None:
    nothing = audit_dataset(models[0], TOKENIZER, list(corpus()[:5]), kinds=["phone", "card"])
    assert nothing.forwards == 0 and not nothing
    for one in (nothing, Audit.load(nothing.save(tmp_path / "audit.json"))):
        assert one.summary().startswith("no secrets of the kinds ")
        assert "card" in one.summary() and "phone" in one.summary()
        assert "found in 5 rows; 0 token-forwards" in one.summary()
        assert f"{one}" == one.summary()


@pytest.mark.parametrize("max_forwards", [0, 1500])
@pytest.mark.slow
def test_warnings_of_a_measurement_do_not_quote_the_rows(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], max_forwards: int
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        audit = audit_dataset(models[0], TOKENIZER, ROWS, samples=60, max_forwards=max_forwards)
    said = " ".join(str(one.message) for one in caught)
    assert len(audit.measured) == 3
    assert not [text for text in [*SECRETS, *CONTEXTS] if text in said]
