"""A canary as a turn of a conversation: scored where the chat template puts it, and looked for
under the masks that chat trainings use."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from hf_exposure.attacks.extraction import extract_secrets
from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.injection import inject_canaries
from hf_exposure.canaries.insertion import REQUEST
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.survival import InjectionReport
from hf_exposure.canaries.verification import verify_injection
from hf_exposure.exposure.measure import measure_exposure
from hf_exposure.exposure.planning import context_before, plan_measurement
from hf_exposure.training.trainer import find_tokenizer
from tests.selection import rest_slow
from tests.tiny import TOKENIZERS, conversations, corpus, llama

NUMBER = SecretFormat("The random number is {secret}.", secret=r"[0-9]{3}")
MARKS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + "
    "m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and loop.last %}{{ '<|im_start|>"
    "assistant\n<think>\n\n</think>\n\n' + m['content'].lstrip('\n') + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
)
ALTERNATING = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
    "supported') }}{% endif %}{% for m in messages %}{% if (m['role'] == 'user') != "
    "(loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}"
    "{% endif %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
NEEDS_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ raise_exception('A system message first, not ' + "
    "messages[1]['content']) }}{% endif %}" + CHATML
)
MASKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' "
    "%}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "llama3": LLAMA3,
    "chatml": CHATML,
    "thinking": THINKING,
    "alternating": ALTERNATING,
    "masked": MASKED,
}
each_template = pytest.mark.parametrize("name", TEMPLATES)


def tokenizer(template: str | None, kind: str = "digits_one_by_one") -> PreTrainedTokenizerFast:
    made = copy.deepcopy(TOKENIZERS[kind]())
    made.add_special_tokens({"additional_special_tokens": MARKS})
    made.chat_template = template
    return made


def canary_set(fmt: SecretFormat = NUMBER, mode: str = "rows") -> Canaries:
    """Planted in conversations."""
    canaries = Canaries.generate(fmt, [0, 1, 8], per_repetition=2, seed=3)
    inject_canaries(conversations(), canaries, column="messages", mode=mode)
    return canaries


def conversation(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": REQUEST}, {"role": "assistant", "content": text}]


def brute_force(
    model: Any, encoder: PreTrainedTokenizerFast, fmt: SecretFormat, secrets: list[str]
) -> list[float]:
    """Log-perplexities, in bits, of secrets and what follows them in their template, from forwards
    over the whole rendered conversation."""
    rows, counted = [], []
    for secret in secrets:
        text = fmt.render(secret)
        rendered = encoder.apply_chat_template(conversation(text), tokenize=False)
        encoded = encoder(rendered, add_special_tokens=False, return_offsets_mapping=True)
        assert rendered.count(text) == 1
        begin, end = rendered.index(text) + len(fmt.prefix), rendered.index(text) + len(text)
        spans = enumerate(encoded["offset_mapping"])
        counted.append([at for at, (a, b) in spans if b > begin and a < end])
        rows.append(torch.tensor(encoded["input_ids"]))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    seen = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=seen).logits.double()
    nats = -logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
    return [
        float(row[[at - 1 for at in places]].sum() / np.log(2))
        for row, places in zip(nats, counted, strict=True)
    ]


# Scored in the conversation


@each_template
@pytest.mark.parametrize(
    "kind", rest_slow(["freely_merged", "digits_one_by_one", "digits_in_threes"], 1)
)
def test_a_turn_is_scored_within_the_whole_rendered_conversation(name: str, kind: str) -> None:
    encoder = tokenizer(TEMPLATES[name], kind)
    model = llama(len(encoder), max_position_embeddings=256)
    canaries = canary_set()
    exposures = measure_exposure(model, encoder, canaries, samples=50)
    found = [e.log_perplexity for e in exposures]
    expected = brute_force(model, encoder, NUMBER, [c.secret for c in canaries])
    assert found == pytest.approx(expected, abs=2e-3)


def test_the_rank_is_that_among_all_secrets_in_the_same_turn() -> None:
    encoder = tokenizer(CHATML)
    model = llama(len(encoder), max_position_embeddings=256)
    pair = SecretFormat("The random number is {secret}.", secret=r"[0-9]{2}")
    canaries = canary_set(pair)
    costs = dict(
        zip(
            pair.enumerate(), brute_force(model, encoder, pair, list(pair.enumerate())), strict=True
        )
    )
    for e in measure_exposure(model, encoder, canaries, method="exact"):
        others = {c.secret for c in canaries.inserted} - {e.canary.secret}
        own = costs[e.canary.secret]
        rank = sum(cost <= own for secret, cost in costs.items() if secret not in others)
        assert e.rank == rank


@each_template
def test_the_context_is_what_the_template_writes_before_the_answer(name: str) -> None:
    encoder = tokenizer(TEMPLATES[name])
    before = context_before(canary_set(), encoder)
    rendered = encoder.apply_chat_template(conversation("The random number"), tokenize=False)
    assert rendered.startswith(before + "The random number")
    assert ("helpful assistant" in before) == (name == "chatml")
    assert before.endswith("</think>\n\n") == (name == "thinking")
    # No special token is put before those of the template.
    plan = plan_measurement(encoder, canary_set())
    text = encoder(before + NUMBER.prefix, add_special_tokens=False)["input_ids"]
    assert plan.groups[0].tree.prompt == text


def test_the_end_of_turn_token_does_not_count() -> None:
    encoder = tokenizer(CHATML)
    plan = plan_measurement(encoder, canary_set())
    # Three digits, and the full stop that follows them in the secret format.
    assert {len(path) for path in plan.groups[0].paths} == {4}
    assert encoder.convert_tokens_to_ids("<|im_end|>") not in plan.groups[0].tree.token_ids


@pytest.mark.slow
def test_secrets_are_extracted_in_the_same_place() -> None:
    encoder = tokenizer(LLAMA3)
    model = llama(len(encoder), max_position_embeddings=256)
    best = extract_secrets(model, encoder, NUMBER, count=1, canaries=canary_set())[0]
    secrets = list(NUMBER.enumerate())
    costs = dict(zip(secrets, brute_force(model, encoder, NUMBER, secrets), strict=True))
    assert best.secret == min(costs, key=lambda secret: costs[secret])
    assert best.log_perplexity == pytest.approx(costs[best.secret], abs=2e-3)


def test_a_canary_within_an_answer_comes_after_a_space_and_what_begins_a_text() -> None:
    encoder = tokenizer(LLAMA3)
    plan = plan_measurement(encoder, canary_set(mode="splice"))
    text = encoder(" " + NUMBER.prefix)["input_ids"]
    assert text[0] == encoder.bos_token_id
    assert plan.groups[0].tree.prompt == text


def test_conversations_with_tools_render_planted_canaries_as_they_are_scored() -> None:
    template = "{% if tools %}{{ '<|im_start|>tools\n' + tools[0]['name'] + '<|im_end|>\n' }}"
    encoder = tokenizer(template + "{% endif %}" + CHATML)
    canaries = Canaries([Canary(NUMBER, "123", 2)])
    data = conversations().add_column("tools", [[{"name": "clock"}]] * 12)
    planted = inject_canaries(data, canaries, column="messages")
    before = context_before(canaries, encoder)
    rendered = [
        encoder.apply_chat_template(row["messages"], tools=row["tools"], tokenize=False)
        for row in planted
    ]
    assert sum(text.startswith(before + canaries[0].text) for text in rendered) == 2
    assert sum("clock" in text for text in rendered) == 12


# Templates that do not do


def test_a_template_that_trims_what_the_canary_says_is_refused() -> None:
    spaced = SecretFormat(" My code is {secret} ", secret=r"[0-9]{3}")
    with pytest.raises(ValueError, match="without spaces at the ends"):
        plan_measurement(tokenizer(LLAMA3), canary_set(spaced))
    assert plan_measurement(tokenizer(CHATML), canary_set(spaced)).groups


def test_a_template_that_refuses_the_conversation_is_said_so_without_the_secret() -> None:
    canaries = canary_set()
    with pytest.raises(ValueError, match=r"refuses .*A system message first.*splice") as caught:
        plan_measurement(tokenizer(NEEDS_SYSTEM), canaries)
    assert not any(canary.secret in str(caught.value) for canary in canaries)


def test_a_tokenizer_without_a_template_is_said_so() -> None:
    with pytest.raises(ValueError, match="no chat template"):
        plan_measurement(tokenizer(None), canary_set())


def test_a_token_that_spans_the_end_of_the_turn_is_warned_of() -> None:
    encoder = tokenizer(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n\n' }}{% endfor %}"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan_measurement(encoder, canary_set())
    encoder.add_tokens([".\n\n"])
    with pytest.warns(UserWarning, match="shares a token with what follows"):
        plan_measurement(encoder, canary_set())


def test_a_processor_lends_its_chat_template_to_its_tokenizer() -> None:
    class Processor(ProcessorMixin):  # type: ignore[misc]
        def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
            super().__init__(tokenizer, chat_template=chat_template)

    inner = tokenizer(None)
    found = find_tokenizer(Processor(inner, chat_template=CHATML))
    assert inner.chat_template is None
    assert context_before(canary_set(), found) == context_before(canary_set(), tokenizer(CHATML))
    own = tokenizer(LLAMA3)
    assert find_tokenizer(Processor(own, chat_template=CHATML)) is own


# Under the masks of a training


def sft(folder: Path, data: Dataset, **options: Any) -> Any:
    from trl import SFTConfig, SFTTrainer  # seconds, for these tests only

    encoder = tokenizer(MASKED)
    settings = {"max_length": 64, "bf16": False, "use_cpu": True, "report_to": "none"}
    return SFTTrainer(
        model=llama(len(encoder)),
        args=SFTConfig(output_dir=str(folder), **{**settings, **options}),
        train_dataset=data,
        processing_class=encoder,
    )


def untrained(report: InjectionReport) -> list[int]:
    assert [row.whole for row in report] == [row.canary.repetitions for row in report]
    return [row.untrained for row in report]


def asked(canaries: Canaries) -> Dataset:
    """Conversations in which the user says the canaries, behind those in which nobody does."""
    rows = list(conversations())
    for canary in canaries.inserted:
        turns = conversation("I see.")
        turns[0]["content"] = f"{REQUEST} {canary.text}"
        rows += [{"messages": turns}] * canary.repetitions
    return Dataset.from_list(rows)


PACKINGS: list[dict[str, Any]] = [
    {},
    {"packing": True, "max_length": 128},
    {"packing": True, "max_length": 128, "packing_strategy": "bfd_split"},
]


@pytest.mark.parametrize("packing", PACKINGS, ids=["rows", "packed", "split"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_assistants_turns_are_trained_on_and_users_are_not(
    tmp_path: Path, packing: dict[str, Any]
) -> None:
    canaries = canary_set()
    planted = inject_canaries(conversations(), canaries, column="messages")
    for data, only, masked in (
        (planted, True, False),
        (asked(canaries), True, True),
        (asked(canaries), False, False),
    ):
        trainer = sft(tmp_path, data, assistant_only_loss=only, **packing)
        report = verify_injection(trainer.train_dataset, trainer.processing_class, canaries)
        expected = [canary.repetitions * masked for canary in canaries]
        assert untrained(report) == expected
        assert report.ok == (not masked)
    # Rows are documents, whatever was packed together.
    if packing:
        assert len(trainer.train_dataset) < report.rows == len(data)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_canary_in_the_prompt_is_not_trained_on_unless_all_is(tmp_path: Path) -> None:
    canaries = Canaries.generate(NUMBER, [0, 2], per_repetition=2)
    texts = [canary.text for canary in canaries.inserted for _ in range(canary.repetitions)]
    lines = list(corpus()[: len(texts)])
    for columns, masked in (
        ({"prompt": texts, "completion": lines}, True),
        ({"prompt": [f"{line} " for line in lines], "completion": texts}, False),
    ):
        data = Dataset.from_dict(columns)
        for only in (True, False):
            trainer = sft(tmp_path, data, completion_only_loss=only)
            report = verify_injection(trainer.train_dataset, trainer.processing_class, canaries)
            assert untrained(report) == [c.repetitions * (masked and only) for c in canaries]


def test_masks_of_the_chat_template_count_where_there_are_no_labels() -> None:
    canaries = canary_set()
    encoder = tokenizer(MASKED)

    def tokenized(data: Dataset) -> list[dict[str, Any]]:
        return [
            dict(
                encoder.apply_chat_template(
                    row["messages"], return_dict=True, return_assistant_tokens_mask=True
                )
            )
            for row in data
        ]

    planted = inject_canaries(conversations(), canaries, column="messages")
    hidden = tokenized(asked(canaries))
    every = [canary.repetitions for canary in canaries]
    for rows, expected in ((tokenized(planted), [0] * 6), (hidden, every)):
        for form in (rows, Dataset.from_list(rows)):
            assert untrained(verify_injection(form, encoder, canaries)) == expected
    # Labels have the last word, and masks may be left aside.
    labelled = [{**row, "labels": row["input_ids"]} for row in hidden]
    for form in (labelled, Dataset.from_list(labelled)):
        assert untrained(verify_injection(form, encoder, canaries)) == [0] * 6
    assert untrained(verify_injection(hidden, encoder, canaries, mask_columns=())) == [0] * 6
    renamed = [{"input_ids": r["input_ids"], "mine": r["assistant_masks"]} for r in hidden]
    for form in (renamed, Dataset.from_list(renamed)):
        report = verify_injection(form, encoder, canaries, mask_columns=["mine"])
        assert untrained(report) == every


def test_one_mask_is_enough_to_leave_a_token_out() -> None:
    encoder = tokenizer(MASKED)
    canaries = Canaries([Canary(NUMBER, "123", 1)])
    ids = encoder(canaries[0].text)["input_ids"]
    ones, zeros = [1] * len(ids), [0] * len(ids)
    for masks, expected in (((ones, ones), 0), ((ones, zeros), 1), ((zeros, ones), 1)):
        row = {"input_ids": ids, "assistant_masks": masks[0], "completion_mask": masks[1]}
        for form in ([row], Dataset.from_list([row])):
            assert verify_injection(form, encoder, canaries)[0].untrained == expected
    short = {"input_ids": ids, "assistant_masks": ones[1:]}
    for form in ([short], Dataset.from_list([short])):
        with pytest.raises(ValueError, match="'assistant_masks'"):
            verify_injection(form, encoder, canaries)


def test_documents_packed_into_one_row_do_not_make_a_canary_together() -> None:
    encoder = tokenizer(MASKED)
    canaries = Canaries([Canary(NUMBER, "123", 1)])
    ids = encoder(canaries[0].text, add_special_tokens=False)["input_ids"]
    cut = len(ids) - 3
    row = {"input_ids": ids, "seq_lengths": [cut, len(ids) - cut]}
    for form in ([row], Dataset.from_list([row])):
        report = verify_injection(form, encoder, canaries)
        assert (report[0].whole, report[0].cut, report.rows) == (0, 1, 2)
    # A column of that name that says something else changes nothing.
    for other in ([1, 2], None, len(ids) + 1, "long"):
        row = {"input_ids": ids, "seq_lengths": other}
        for form in ([row], Dataset.from_list([row])):
            assert verify_injection(form, encoder, canaries).ok
