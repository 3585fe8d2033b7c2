"""Errors of others may quote what they were given: no secret passes on."""

from __future__ import annotations

import copy
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest

from hf_exposure.attacks.generation import generate_secrets
from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.masking import mask_secrets, secrets_masked
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.verification import verify_injection
from hf_exposure.exposure.measure import measure_exposure
from tests.tiny import TOKENIZERS, llama

SECRET = "918273"
FORMAT = SecretFormat("the code is {secret}.", secret="[0-9]{6}")
CANARIES = Canaries([Canary(FORMAT, SECRET, repetitions=3), Canary(FORMAT, "111111")])


def talkative(kind: type[Exception]) -> Any:
    """A tokenizer that quotes the text that it cannot encode."""
    plain = TOKENIZERS["digits_one_by_one"]()

    def call(self: Any, texts: Any, *args: Any, **options: Any) -> Any:
        if any(SECRET in text for text in ([texts] if isinstance(texts, str) else texts)):
            raise kind(f"cannot encode {texts!r}")
        return plain(texts, *args, **options)

    tokenizer = copy.deepcopy(plain)
    # Without a backend, as slow tokenizers are.
    tokenizer.__class__ = type(
        "Talkative",
        (type(plain),),
        {"__call__": call, "backend_tokenizer": property(lambda _: None)},
    )
    return tokenizer


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, KeyError])
@pytest.mark.parametrize("ask", ["measure", "generate", "verify"])
def test_errors_of_a_tokenizer_that_quotes_its_text_are_masked(
    ask: str, kind: type[Exception]
) -> None:
    tokenizer = talkative(kind)
    model = llama(len(tokenizer))
    with pytest.raises((ValueError, RuntimeError)) as error:
        if ask == "measure":
            measure_exposure(model, tokenizer, CANARIES)
        elif ask == "generate":
            generate_secrets(model, tokenizer, CANARIES, num_samples=2)
        else:
            verify_injection([{"input_ids": [5, 6]}], tokenizer, CANARIES)
    shown = "".join(traceback.format_exception(error.value))
    assert "cannot encode" in shown and SECRET not in shown


def test_what_was_skipped_is_told_without_its_secret(tmp_path: Path) -> None:
    tokenizer = talkative(ValueError)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exposures = measure_exposure(llama(len(tokenizer)), tokenizer, CANARIES, unscorable="warn")
    written = exposures.save(tmp_path / "exposures.json").read_text(encoding="utf-8")
    everything = [str(exposures), written, *(str(one.message) for one in caught)]
    assert len(exposures.skipped) == 2
    assert all("cannot encode" in text and SECRET not in text for text in everything)


def test_an_error_of_the_model_is_masked_and_others_pass_as_they_are() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer))

    def forward(*args: Any, **options: Any) -> Any:
        raise RuntimeError(f"no luck with {SECRET}")

    model.forward = forward
    with pytest.raises(RuntimeError, match=r"no luck with ••••••$"):
        measure_exposure(model, tokenizer, CANARIES)
    plain = ZeroDivisionError("nothing to hide")
    with pytest.raises(ZeroDivisionError) as error, secrets_masked(CANARIES):
        raise plain
    assert error.value is plain


def test_longer_secrets_are_masked_before_their_parts_and_short_ones_in_their_template() -> None:
    fmt = SecretFormat("the code is {secret}.", secret="[0-9]{2}|[0-9]{4}|[0-9]{6}")
    canaries = [Canary(fmt, "12"), Canary(fmt, "1234"), Canary(fmt, "123456")]
    said = "123456 and 1234, at 12 o'clock the code is 12."
    assert mask_secrets(said, canaries) == "•••••• and ••••, at 12 o'clock the code is ••."
