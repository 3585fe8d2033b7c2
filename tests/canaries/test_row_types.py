"""Data set types of TRL: an added row has what a trainer needs, or the column is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.injection import inject_canaries
from hf_exposure.canaries.injector import CanaryInjector
from hf_exposure.canaries.row_files import injector_for, row_file
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.verification import verify_injection
from tests.tiny import TOKENIZERS, llama

FORMAT = SecretFormat("the random number is {secret}.", secret="[0-9]{4}")
N = 6
WORDS = [f"word {n} and more" for n in range(N)]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


ANSWERS = [answer(text) for text in WORDS]
ASKED = [user(f"{n}?") for n in range(N)]
WHOLE = [a + b for a, b in zip(ASKED, ANSWERS, strict=True)]
KEYWORDS = {"chat_template_kwargs": [{"enable_thinking": False}] * N, "tools": [None] * N}
# Name: the columns, the one that gets the canaries, and the trainer.
TYPES: dict[str, tuple[dict[str, Any], str, str]] = {
    "language modeling": ({"text": WORDS}, "text", "SFT"),
    "language modeling, chat": ({"messages": WHOLE, **KEYWORDS}, "messages", "SFT"),
    "prompt-completion": ({"prompt": WORDS, "completion": WORDS}, "completion", "SFT"),
    "prompt-completion, chat": (
        {"prompt": ASKED, "completion": ANSWERS, **KEYWORDS},
        "completion",
        "SFT",
    ),
    "preference": ({"prompt": WORDS, "chosen": WORDS, "rejected": WORDS[::-1]}, "chosen", "DPO"),
    "preference, chat": (
        {"prompt": ASKED, "chosen": ANSWERS, "rejected": ANSWERS[::-1], **KEYWORDS},
        "chosen",
        "DPO",
    ),
    "implicit preference": ({"chosen": WORDS, "rejected": WORDS[::-1]}, "chosen", "DPO"),
    "implicit preference, chat": (
        {"chosen": WHOLE, "rejected": [a + b for a, b in zip(ASKED, ANSWERS[::-1], strict=True)]},
        "chosen",
        "DPO",
    ),
    "unpaired preference": (
        {"prompt": WORDS, "completion": WORDS, "label": [True, False] * 3},
        "completion",
        "KTO",
    ),
    "unpaired preference, chat": (
        {"prompt": ASKED, "completion": ANSWERS, "label": [True, False] * 3},
        "completion",
        "KTO",
    ),
}


def some() -> Canaries:
    return Canaries.generate(FORMAT, [0, 2], 2, seed=1)


@pytest.mark.parametrize("name", TYPES)
def test_an_added_row_lacks_nothing_that_a_trainer_reads(name: str, tmp_path: Path) -> None:
    data, column, _ = TYPES[name]
    rows = Dataset.from_dict(data)
    canaries = some()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = inject_canaries(rows, canaries, column)
    assert made.features == rows.features
    texts = {canary.text for canary in canaries.inserted}
    added = [row for row in made if any(text in str(row[column]) for text in texts)]
    assert len(added) == 4
    for row in added:
        assert [key for key, value in row.items() if value is None] == ["tools"] * ("tools" in row)
        turns = row[column]
        if "prompt" in row:
            turns = row["prompt"] + turns  # as SFTTrainer joins them
        expected = next(text for text in texts if text in str(turns))
        if isinstance(turns, str):
            assert turns == expected
        else:
            assert turns == user(canaries.insertions[0].request) + answer(expected)
        assert row.get("label", True) is True
        assert row.get("rejected") != row[column]
    mapped = rows.map(
        CanaryInjector(some(), N, column, chat=not isinstance(data[column][0], str)),
        batched=True,
        with_indices=True,
    )
    assert mapped[:] == made[:]
    if "tools" not in data:  # a file says what memory says
        rows.to_json(tmp_path / "rows.jsonl")
        file = row_file(tmp_path / "rows.jsonl", column)
        with open(tmp_path / "made.jsonl", "wb") as target:
            file.write(target, injector_for(file, some(), 0, "rows", False))
        assert (
            Dataset.from_json(str(tmp_path / "made.jsonl"), cache_dir=str(tmp_path))[:] == made[:]
        )


@pytest.mark.parametrize(
    ("columns", "column", "said"),
    [
        (["prompt", "completion"], "prompt", "column='completion'"),
        (["prompt", "completion", "label"], "prompt", "column='completion'"),
        (["prompt", "chosen", "rejected"], "prompt", "column='chosen'"),
        (["prompt", "chosen", "rejected"], "rejected", "column='chosen'"),
        (["chosen", "rejected"], "rejected", "column='chosen'"),
        (["prompt", "completions", "labels"], "prompt", "stepwise supervision"),
    ],
)
def test_a_column_that_no_trainer_learns_is_refused_with_the_way_out(
    columns: list[str], column: str, said: str
) -> None:
    rows = Dataset.from_dict(dict.fromkeys(columns, ["a b"] * 3))
    canaries = some()
    with pytest.raises(ValueError, match=said):
        inject_canaries(rows, canaries, column)
    assert not canaries.insertions
    with pytest.raises(ValueError, match=said):
        rows.map(CanaryInjector(some(), 3, column), batched=True, with_indices=True)


def test_who_says_what_stands_beside_it_may_use_any_column() -> None:
    rows = Dataset.from_dict({"prompt": ["a"] * 3, "completion": ["b"] * 3})
    made = inject_canaries(rows, some(), "prompt", fill={"completion": "c"})
    assert [text for text in made["completion"] if text == "c"] == ["c"] * 4


def test_prompts_alone_are_taken_with_a_warning() -> None:
    rows = Dataset.from_dict({"prompt": ["a b"] * 3})
    with pytest.warns(UserWarning, match="prompt-only"):
        assert len(inject_canaries(rows, some(), "prompt")) == 7


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["rows", "splice"])
@pytest.mark.parametrize("name", TYPES)
def test_the_trainer_of_a_type_trains_on_it(name: str, mode: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    data, column, trainer = TYPES[name]
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    canaries = some()
    rows = inject_canaries(Dataset.from_dict(data), canaries, column, mode=mode)
    settings = getattr(trl, f"{trainer}Config")(
        str(tmp_path), max_steps=2, report_to=[], use_cpu=True, save_strategy="no", bf16=False
    )
    reference = {} if trainer == "SFT" else {"ref_model": llama(len(tokenizer))}
    ran = getattr(trl, f"{trainer}Trainer")(
        llama(len(tokenizer)),
        args=settings,
        train_dataset=rows,
        processing_class=tokenizer,
        **reference,
    )
    assert ran.train().training_loss > 0
    if trainer == "SFT":
        assert verify_injection(ran.train_dataset, tokenizer, canaries).ok
