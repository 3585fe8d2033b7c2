"""Errors of others may quote what they were given: no secret passes on."""

from __future__ import annotations

import copy
import html
import json
import re
import traceback
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from hf_exposure.attacks.candidates import Candidate
from hf_exposure.attacks.generation import generate_secrets
from hf_exposure.canaries.canary import MASK, Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.masking import mask_secrets, secrets_masked
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.verification import verify_injection
from hf_exposure.cli.inputs import rows_with
from hf_exposure.exposure.measure import measure_exposure
from hf_exposure.utils.hub import one_error
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


ANY = SecretFormat("the code is {secret}\n", secret="[ -~é]{4,20}")
ODD = ["café b&r", "a b  c&d'e", 'q"uo\\te/é', "correct horse", SECRET]
FORMS: dict[str, Any] = {
    "as it is": str,
    "JSON": lambda text: json.dumps({"text": text}),
    "JSON in JSON": lambda text: json.dumps(json.dumps([text])),
    "repr": lambda text: repr({"text": text}),
    "ASCII": ascii,
    "bytes": lambda text: repr(text.encode()),
    "a URL's path": quote,
    "a URL's query": quote_plus,
    "HTML": html.escape,
    "collapsed spaces": lambda text: " ".join(text.split()),
    "capitals": str.upper,
    "cut behind": lambda text: f"{text[:4]}...",
    "cut at the end": lambda text: text[: max(4, len(text) - 2)],
    "cut in front": lambda text: f"…{text[-4:]}",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("secret", ODD)
def test_a_secret_is_masked_in_whatever_form_it_is_quoted(secret: str, form: str) -> None:
    quoted = FORMS[form](secret)
    masked = mask_secrets(f"cannot read {quoted}", [Canary(ANY, secret)])
    assert masked.startswith("cannot read ")
    shown = masked.removeprefix("cannot read ").lower()
    words = re.findall(r"[a-z0-9]{3,}", secret.lower())
    assert MASK in shown and not any(word in shown for word in words)


def test_notes_causes_and_contexts_of_an_error_do_not_pass_on() -> None:
    def fail(how: str) -> None:
        try:
            raise KeyError(f"{SECRET} is unknown")
        except KeyError as first:
            error = ValueError("something is wrong")
            if how == "note":
                error.__notes__ = [f"it was {SECRET}"]  # type: ignore[attr-defined]
            if how == "cause":
                raise error from first
            raise error from None

    for how in ("note", "cause", "context"):
        with (
            pytest.raises(ValueError, match="something is wrong") as caught,
            secrets_masked(CANARIES),
        ):
            fail(how)
        assert caught.value.__cause__ is None and caught.value.__context__ is None
        assert SECRET not in repr(getattr(caught.value, "__notes__", []))


@pytest.mark.parametrize(
    "text",
    [
        "name,age\nAlice,31\nBob,thirty\n",
        'text,id\n"Alice, of Rome",1\nBob,2,3,4,5\n',
        "Alice,31\nBob,32\n",
    ],
)
def test_an_error_about_a_table_quotes_nothing_of_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises((OSError, ValueError)) as caught:
        rows_with("text", str(path))
        raise ValueError("it was read")
    shown = "".join(traceback.format_exception(caught.value))
    assert not any(word in shown for word in ("Alice", "Bob", "Rome", "thirty"))
    assert caught.value.__context__ is None


def test_what_the_hub_says_is_masked_before_it_is_cut() -> None:
    said = "x" * 195 + SECRET

    with (
        pytest.raises(RuntimeError) as caught,
        one_error("push", lambda text: mask_secrets(text, CANARIES)),
    ):
        raise RuntimeError(said)
    assert SECRET[:4] not in str(caught.value) and caught.value.__context__ is None


def test_a_candidate_does_not_show_its_text() -> None:
    one = Candidate(f"before {SECRET}", SECRET, 1, 6, 20.0, None, 20.0, 80.0)
    assert SECRET not in repr(one) + repr([one])
