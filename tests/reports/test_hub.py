"""The Hub: canary sets, cards, a Trainer's pushes, the command line and the metric's Space.

Each test runs in one process of its own that knows no Hub but the server of tests/hub_server.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard, HfApi, ModelCard, constants

import hf_exposure.reports.hub as module
from hf_exposure import ExposureCallback, cli
from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.history import History
from hf_exposure.reports.cards import add_exposure_to_card
from hf_exposure.reports.hub import push_exposure
from tests.hub_server import OWNER, STRANGER, Client, card_errors, hub, in_the_client
from tests.reports.test_cards import OTHERS, kept, measured, ours
from tests.reports.test_cards import searched as searches
from tests.tiny import TOKENIZERS, llama

pytestmark = pytest.mark.slow  # starting the process takes seconds; each test hardly any time

FORMAT = SecretFormat("My code is {secret}.", secret=r"[0-9]{6}")
CANARIES = Canaries.generate(FORMAT, repetitions=[0, 1, 4], per_repetition=2, seed=5)
NUMBER = SecretFormat("the random number is {secret}.", secret="[0-9]{4}")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    started = Client(tmp_path_factory.mktemp("home"))
    yield started
    started.close()


def secrets_in(text: str, canaries: Canaries = CANARIES) -> list[str]:
    """Secrets that stand in a text, not by chance among the digits of a longer number."""
    found = (one.secret for one in canaries)
    return [one for one in found if re.search(rf"(?<![\d.]){re.escape(one)}(?!\d)", text)]


def refused(function: Any, *arguments: Any, **options: Any) -> str:
    """What a call says that cannot be done: one sentence, with no secret and nothing behind it."""
    with pytest.raises(RuntimeError) as caught:
        function(*arguments, **options)
    said = str(caught.value)
    assert "\n" not in said and said.startswith("could not ") and len(said) < 500
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert caught.value.__cause__ is None
    assert not secrets_in(said) and OWNER not in said
    return said


# Canary sets


@in_the_client
def test_a_canary_set_comes_back_as_it_was_from_a_private_repository(tmp_path: Path) -> None:
    canaries = Canaries(CANARIES, seed=5, insertions=[Insertion("rows", seed=9)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        address = canaries.push_to_hub("me/set")
    repo = hub().repos["datasets", "me/set"]
    assert repo.private and address.endswith(repo.names["main"])
    assert len(repo.commits) == 2 and repo.log[-1] == "Upload canaries"
    files = hub().files("datasets", "me/set")
    assert set(files) == {"canaries.json", "README.md", ".gitattributes"}
    assert Canaries.from_hub("me/set") == canaries
    card = files["README.md"].decode()
    assert not secrets_in(card) and "mode: `rows`" in card
    assert "seed: 5" not in card  # with it anybody could draw the secrets
    assert DatasetCard.load("me/set").data.tags == ["canaries", "memorization", "hf-exposure"]
    assert not card_errors(card, "dataset")
    # What has not changed is not committed again.
    canaries.push_to_hub("me/set")
    assert len(repo.commits) == 2


@in_the_client
def test_a_revision_of_a_canary_set_is_loaded_by_its_name(tmp_path: Path) -> None:
    CANARIES.push_to_hub("me/set")
    first = hub().repos["datasets", "me/set"].names["main"]
    HfApi().create_tag("me/set", tag="v1", repo_type="dataset")
    HfApi().create_branch("me/set", branch="next", repo_type="dataset")
    other = CANARIES[:3]
    other.push_to_hub("me/set", revision="next")
    for revision, truth in (("v1", CANARIES), (first, CANARIES), (None, CANARIES), ("next", other)):
        assert Canaries.from_hub("me/set", revision=revision) == truth
    assert "no such revision" in refused(Canaries.from_hub, "me/set", revision="v2")
    assert "no such revision" in refused(CANARIES.push_to_hub, "me/set", revision="v3")


@in_the_client
def test_what_is_revealed_can_be_loaded_as_a_data_set(tmp_path: Path) -> None:
    from datasets import load_dataset

    CANARIES.push_to_hub("me/set", reveal=True)
    card = hub().files("datasets", "me/set")["README.md"].decode()
    assert len(secrets_in(card)) == len(CANARIES)
    rows = load_dataset("me/set", split="train", cache_dir=str(tmp_path))
    assert rows["text"] == [one.text for one in CANARIES]
    assert rows["repetitions"] == [one.repetitions for one in CANARIES]


@in_the_client
def test_secrets_are_published_only_on_request_and_with_a_warning(tmp_path: Path) -> None:
    there = hub().create("datasets", "me/open", private=False)
    said = refused(CANARIES.push_to_hub, "me/open")
    assert "is public" in said and "private=False" in said
    assert len(there.commits) == 1  # nothing was uploaded
    for name in ("me/open", "me/new"):
        with pytest.warns(UserWarning, match=f"{name} is public: secrets"):
            CANARIES.push_to_hub(name, private=False)
        assert not hub().repos["datasets", name].private
        assert Canaries.from_hub(name, token=False) == CANARIES
    hub().create("datasets", "me/closed", private=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CANARIES.push_to_hub("me/closed", private=False)
    assert hub().repos["datasets", "me/closed"].private


@in_the_client
def test_who_may_not_and_what_is_not_there_is_told_in_one_sentence(tmp_path: Path) -> None:
    CANARIES.push_to_hub("me/set")
    for token in (STRANGER, False):
        said = refused(Canaries.from_hub, "me/set", token=token)
        assert "no such repository, or it is private" in said and "hf auth login" in said
    assert "answers 401" in refused(Canaries.from_hub, "me/set", token="hf_wrong")
    assert "answers 403" in refused(CANARIES.push_to_hub, "somebody/set")
    assert "answers 401" in refused(CANARIES.push_to_hub, "me/other", token=False)
    assert "no such repository" in refused(Canaries.from_hub, "me/none")
    hub().create("datasets", "me/empty")
    assert "has no canaries.json" in refused(Canaries.from_hub, "me/empty")
    assert "me/a b" in refused(Canaries.from_hub, "me/a b")
    for broken in (b'{"secret": "281265', b'{"schema_version": 99}'):
        hub().repos["datasets", "me/empty"].commit("main", {"canaries.json": broken}, "broken")
        with pytest.raises(ValueError, match=r"canaries\.json") as caught:
            Canaries.from_hub("me/empty")
        assert "281265" not in str(caught.value)


FAILURES = [
    ("POST", "/create$", 401, "answers 401"),
    ("POST", "/create$", 409, "me/set"),  # without an address: not the Hub's own
    ("POST", "/create$", 500, "try again later"),
    ("POST", "/create$", "cut", "disconnected"),
    ("GET", "/api/datasets/", 403, "answers 403"),
    ("POST", "/validate-yaml$", 502, "me/set"),
    ("POST", "/preupload/", 507, "no room left"),
    ("POST", "/commit/", 409, "somebody else has changed it"),
    ("POST", "/commit/", 412, "somebody else has changed it"),
    ("POST", "/commit/", 507, "no room left"),
    ("POST", "/commit/", 503, "answers 503"),
    ("POST", "/commit/", "cut", "disconnected"),
    ("POST", "/commit/", 400, "me/set"),
]


@in_the_client
def test_a_push_that_fails_on_the_way_is_one_sentence_and_can_be_repeated(tmp_path: Path) -> None:
    before = CANARIES.to_dict()
    for method, path, what, expected in FAILURES:
        hub().repos.clear()
        body = "<html>bad gateway</html>" if what == 502 else ""
        hub().fail(method, path, what, body=body)
        said = refused(CANARIES.push_to_hub, "me/set")
        assert expected in said.replace("'me/set': ''", ""), (path, what, said)
        there = hub().repos.get(("datasets", "me/set"))
        assert there is None or len(there.commits) == 1  # nothing of it is there
        CANARIES.push_to_hub("me/set")
        assert Canaries.from_hub("me/set") == CANARIES
    assert CANARIES.to_dict() == before


@in_the_client
def test_what_the_library_tries_again_needs_nobodys_help(tmp_path: Path) -> None:
    hub().fail("POST", "/preupload/", 503)
    fresh = Canaries.generate(FORMAT, repetitions=[1], per_repetition=50, seed=77)
    fresh.push_to_hub("me/fresh")
    assert hub().asked("POST .*/preupload/") == 2
    # A download that breaks off goes on where it was.
    hub().fail("HEAD", "/resolve/", 503)
    hub().fail("GET", "/resolve/", "half")
    assert Canaries.from_hub("me/fresh") == fresh
    assert hub().asked("HEAD .*/resolve/") == hub().asked("GET .*/resolve/") == 2


@in_the_client
def test_a_set_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    CANARIES.push_to_hub("me/far")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        for what, expected in ((500, "500"), ("cut", "disconnected")):
            hub().fail("HEAD", "/resolve/", what, times=99)
            said = refused(Canaries.from_hub, "me/far")
            assert "the Hub cannot be reached" in said and expected in said
            hub().failures.clear()
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        for call in (Canaries.from_hub, CANARIES.push_to_hub):
            said = refused(call, "me/far")
            assert "cannot be reached" in said and "offline" in said.lower()
        assert "offline" in refused(push_exposure, "me/far", measured()).lower()
    # A set that has been loaded before is read from its copy, as the library does.
    assert Canaries.from_hub("me/far") == CANARIES
    hub().fail("HEAD", "/resolve/", 500)
    assert Canaries.from_hub("me/far") == CANARIES


@in_the_client
def test_a_full_disk_here_is_one_sentence(tmp_path: Path) -> None:
    many = Canaries.generate(FORMAT, repetitions=[1], per_repetition=50, seed=1)
    many.push_to_hub("me/large")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))  # no file may become longer
    try:
        said = refused(Canaries.from_hub, "me/large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in said
    assert Canaries.from_hub("me/large") == many


# Cards of models


@in_the_client
def test_a_remote_card_keeps_its_lines_and_gets_the_figures(tmp_path: Path) -> None:
    for text in (OTHERS, "\ufeff" + OTHERS.replace("\n", "\r\n"), "# Mine"):
        repo = hub().create("models", "me/model")
        repo.commit("main", {"README.md": text.encode(), "config.json": b"{}"}, "by hand")
        address = push_exposure("me/model", measured(), extractions=searches())
        assert address.endswith(repo.names["main"])
        files = hub().files("models", "me/model")
        assert kept(text, files["README.md"].decode()) and files["config.json"] == b"{}"
        card = ModelCard.load("me/model")
        local = add_exposure_to_card(
            ModelCard(text.removeprefix("\ufeff")),
            measured(),
            extractions=searches(),
            model_name="model",
        )
        assert ours(card) == ours(local) and ours(card, "extracted") == ours(local, "extracted")
        card.validate(repo_type="model")
        push_exposure("me/model", measured(), extractions=searches())
        assert len(repo.commits) == 3  # the second time nothing has changed


@in_the_client
def test_a_model_without_a_card_gets_one_and_a_pull_request_changes_nothing_yet(
    tmp_path: Path,
) -> None:
    repo = hub().create("models", "me/model")
    address = push_exposure("me/model", measured(), create_pr=True)
    assert address.endswith("/me/model/discussions/1")
    assert set(hub().files("models", "me/model")) == {".gitattributes"}
    proposed = hub().files("models", "me/model", "refs/pr/1")["README.md"].decode()
    assert "## Memorization" in proposed
    push_exposure("me/model", measured(), commit_message="Tell of it")
    assert ModelCard.load("me/model").data.model_name == "model" and repo.log[-1] == "Tell of it"


@in_the_client
def test_a_card_that_somebody_changes_meanwhile_keeps_that_change(tmp_path: Path) -> None:
    repo = hub().create("models", "me/model")
    repo.commit("main", {"README.md": b"# First\n"}, "first")
    truth = module.change_card
    changes = iter([b"# Second\n", b"# Third\n"])

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        for change in changes:
            repo.commit("main", {"README.md": change}, "meanwhile")
            break
        return truth(*arguments, **options)

    before = hub().asked("POST .*/commit/")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "change_card", meanwhile)
        push_exposure("me/model", measured())
    text = hub().files("models", "me/model")["README.md"].decode()
    assert "\n# Third\n" in text and "## Memorization" in text
    assert hub().asked("POST .*/commit/") - before == 3
    hub().fail("POST", "/commit/", 412, times=9)
    said = refused(push_exposure, "me/model", measured(1.0, 1.0, 1.0, 1.0))
    assert "somebody else has changed it" in said


@in_the_client
def test_cards_that_are_not_valid_are_left_as_they_were(tmp_path: Path) -> None:
    repo = hub().create("models", "me/model")
    repo.commit("main", {"README.md": b"---\na: [\n---\n# Mine\n"}, "broken")
    with pytest.raises(ValueError, match="the card of 'me/model' is left as it was") as caught:
        push_exposure("me/model", measured())
    assert "not valid YAML" in str(caught.value) and "\n" not in str(caught.value)
    repo.commit("main", {"README.md": b"---\nlanguage: [1]\n---\n# Mine\n"}, "refused")
    said = refused(push_exposure, "me/model", measured())
    assert "Invalid metadata in README.md" in said and "language" in said
    assert len(repo.commits) == 3
    with pytest.raises(ValueError, match="nothing was measured"):
        push_exposure("me/model")
    assert "no such repository" in refused(push_exposure, "me/none", measured())
    hub().create("models", "somebody/model", private=False)
    assert "answers 403" in refused(push_exposure, "somebody/model", measured())


# A Trainer's own pushes


def trained(folder: Path, *callbacks: Any, **options: Any) -> Any:
    from tests.training.test_callback import make_trainer

    resume = options.pop("resume", None)
    trainer = make_trainer(folder, *callbacks, hub_model_id="me/trained", **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def quick(**options: Any) -> ExposureCallback:
    from tests.training.test_callback import CANARIES as planted

    return ExposureCallback(planted, **{"samples": 50, **options})


@in_the_client
def test_push_to_hub_takes_the_exposures_along(tmp_path: Path) -> None:
    callback = quick()
    trainer = trained(tmp_path / "out", callback)
    trainer.push_to_hub()
    files = hub().files("models", "me/trained")
    assert {"README.md", "model.safetensors"} <= set(files)
    latest = callback.history[-1].exposures
    card = ModelCard.load("me/trained")
    mean = latest.coarse().metrics()["eval_exposure"]
    assert ours(card)["Exposure (mean)"].metric_value == pytest.approx(mean, abs=1e-4)
    assert "at step 6 of the training" in card.text and "Training results" in card.text
    assert not secrets_in(files["README.md"].decode(), callback.canaries)
    assert not rows_in("me/trained") and "exposure_history.json" in names(tmp_path / "out")
    added: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExposureCallback, "add_to_card", lambda _, path, step: added.append(path))
        trainer.create_model_card()
    assert len(added) == 1  # by one part of ours, however many events there were
    trainer.create_model_card()
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.count("## Memorization") == 1 and not card_errors(text, "model")


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def rows_in(name: str) -> list[str]:
    """Files of a repository in which there is a row for each canary."""
    files = hub().files("models", name)
    return [path for path, content in files.items() if b"log_perplexity" in content]


@in_the_client
def test_a_trainer_uploads_a_row_for_each_canary_only_on_request(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "push_to_hub": True}
    options |= {"hub_strategy": "all_checkpoints", "hub_always_push": True}
    states = [f"checkpoint-{step}/trainer_state.json" for step in (2, 4, 6)]
    every = {"exposure_history.json", "exposure_history.json.old", "trainer_state.json", *states}
    for per_canary in (True, False):
        hub().repos.clear()
        out = tmp_path / str(per_canary)
        out.mkdir()
        (out / "exposure_history.json").write_text('{"log_perplexity": 3}')  # another training's
        trainer = trained(out, quick(per_canary=per_canary), **options)
        trainer.save_state()
        before = {path: (out / path).read_bytes() for path in every}
        trainer.push_to_hub(blocking=False).result()
        assert set(rows_in("me/trained")) == (every if per_canary else set())
        there = hub().files("models", "me/trained")
        assert {*states, "trainer_state.json"} <= set(there)
        assert b"eval_exposure" in there["trainer_state.json"]
        table = "| # | canary | inserted |"
        assert (table in there["README.md"].decode()) == per_canary
        # Here nothing is missing.
        while (out / "_not_uploaded").exists():
            time.sleep(0.01)  # until whoever ends the upload has put all back
        assert {path: (out / path).read_bytes() for path in every} == before
        assert [one.step for one in History.load(out / "exposure_history.json")] == [2, 4, 6]
    again = quick()
    trained(out, again, **options, max_steps=8, resume=str(out / "checkpoint-4"))
    assert [one.step for one in again.history] == [2, 4, 6, 8]


@in_the_client
def test_what_a_killed_upload_has_left_aside_comes_back(tmp_path: Path) -> None:
    from tests.training.test_callback import make_trainer

    out, callback = tmp_path / "out", quick()
    trainer = trained(out, callback, save_strategy="steps", save_steps=3)
    before = {path: (out / path).read_bytes() for path in names(out)}
    callback.on_push_begin(trainer.args, trainer.state, trainer.control)  # and there it ends
    assert not (out / "exposure_history.json").exists()
    assert b"log_perplexity" not in (out / "checkpoint-6" / "trainer_state.json").read_bytes()
    make_trainer(out, quick())
    assert {path: (out / path).read_bytes() for path in names(out)} == before


@in_the_client
def test_a_push_that_would_take_the_secrets_along_says_so(tmp_path: Path) -> None:
    callback = quick()
    trainer = trained(tmp_path / "out", callback)
    with warnings.catch_warnings(record=True) as quiet:
        warnings.simplefilter("always")
        trainer.push_to_hub()
    assert not [one for one in quiet if "uploaded" in str(one.message)]
    callback.canaries.save(tmp_path / "out" / "my-secrets.json")
    with pytest.warns(UserWarning, match="my-secrets.json' holds the canaries' secrets"):
        trainer.push_to_hub()
    assert "my-secrets.json" in hub().files("models", "me/trained")


@in_the_client
def test_the_card_is_of_the_weights_that_are_pushed(tmp_path: Path) -> None:
    callback = quick()
    trainer = trained(
        tmp_path / "out",
        callback,
        load_best_model_at_end=True,
        save_strategy="steps",
        save_steps=2,
        metric_for_best_model="eval_exposure",
        greater_is_better=False,
        learning_rate=0.03,
    )
    by_step = {
        one.step: one.exposures.coarse().metrics()["eval_exposure"] for one in callback.history
    }
    best = min(by_step, key=by_step.__getitem__)
    assert trainer.state.best_global_step == best
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    (mean,) = (
        one.exposures.coarse().metrics()["eval_exposure"]
        for one in callback.history
        if one.step == best
    )
    assert ours(card)["Exposure (mean)"].metric_value == pytest.approx(mean, abs=1e-4)
    assert f"at step {best} of the training" in card.text


@in_the_client
def test_a_callback_that_was_added_later_takes_part_too_and_each_only_in_its_own_card(
    tmp_path: Path,
) -> None:
    from tests.training.test_callback import make_trainer

    trainer = make_trainer(tmp_path / "late", hub_model_id="me/late")
    trainer.add_callback(quick())
    trainer.train()
    trainer.create_model_card()
    text = (tmp_path / "late" / "README.md").read_text()
    assert text.count("## Memorization") == 1
    # Measured before any training, in another Trainer, and pushed without one.
    callback = quick()
    other = make_trainer(tmp_path / "other", callback, hub_model_id="me/other")
    other.evaluate()
    other.push_to_hub()
    assert "at step 0" in hub().files("models", "me/other")["README.md"].decode()
    assert (tmp_path / "late" / "README.md").read_text() == text


@in_the_client
def test_without_a_history_or_with_a_card_that_cannot_be_read_the_push_goes_on(
    tmp_path: Path,
) -> None:
    from tests.training.test_callback import make_trainer

    trainer = make_trainer(tmp_path / "new", quick(), hub_model_id="me/new")
    trainer.push_to_hub()
    assert "Memorization" not in hub().files("models", "me/new")["README.md"].decode()
    callback = quick()
    trainer = trained(tmp_path / "out", callback)

    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("on purpose")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_exposure.reports.cards.add_exposure_to_card", fails)
        with pytest.warns(UserWarning, match="says nothing of exposures: on purpose"):
            trainer.push_to_hub()
        callback.errors = "raise"
        with pytest.raises(ValueError, match="on purpose"):
            trainer.create_model_card()
    assert "Memorization" not in hub().files("models", "me/trained")["README.md"].decode()


@in_the_client
def test_trls_trainer_tells_of_exposures_too(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer = TOKENIZERS["digits_one_by_one"]()
    planted = Canaries.generate(NUMBER, repetitions=[0, 8], per_repetition=2, seed=1)
    rows = [one.text for one in planted for _ in range(one.repetitions)]
    callback = ExposureCallback(planted, samples=50)
    trainer = SFTTrainer(
        model=llama(len(tokenizer)),
        args=SFTConfig(
            str(tmp_path / "sft"),
            max_steps=2,
            per_device_train_batch_size=4,
            use_cpu=True,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="steps",
            save_steps=2,
            report_to="none",
            hub_model_id="me/sft",
            disable_tqdm=True,
            bf16=False,
            max_length=32,
        ),
        train_dataset=Dataset.from_dict({"text": rows}),
        eval_dataset=Dataset.from_dict({"text": rows[:4]}),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    # Its checkpoints come with a card as well.
    assert "## Memorization" in (tmp_path / "sft" / "README.md").read_text()
    trainer.push_to_hub(dataset_name="me/rows")
    text = hub().files("models", "me/sft")["README.md"].decode()
    assert "TRL" in text and text.count("## Memorization") == 1
    assert "me/rows" in text and not secrets_in(text, planted)
    mean = callback.history[-1].exposures.coarse().metrics()["eval_exposure"]
    figures = ours(ModelCard.load("me/sft"))
    assert figures["Exposure (mean)"].metric_value == pytest.approx(mean, abs=1e-4)


@in_the_client
def test_a_push_that_the_hub_refuses_loses_nothing_here(tmp_path: Path) -> None:
    callback = quick()
    trainer = trained(tmp_path / "out", callback)
    hub().fail("POST", "/commit/", 507)
    with pytest.raises(Exception, match="507"):
        trainer.push_to_hub()
    assert "## Memorization" in (tmp_path / "out" / "README.md").read_text()
    assert len(History.load(tmp_path / "out" / "exposure_history.json")) == 3
    trainer.push_to_hub()
    assert "## Memorization" in hub().files("models", "me/trained")["README.md"].decode()


# The command line


def command(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, and what is printed and said, of `hf-exposure`, as people start it."""
    said, printed = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["hf-exposure", *map(str, arguments)])
        patch.setattr(cli.progress, "_file", said)
        patch.setattr(cli.out, "_file", printed)
        code = 0
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            try:
                cli.main()
            except SystemExit as stopped:
                code = int(stopped.code or 0)
    assert "Traceback" not in said.getvalue()
    return code, printed.getvalue(), " ".join(said.getvalue().replace("│", " ").split())


def succeed(*arguments: str | Path) -> tuple[str, str]:
    code, printed, said = command(*arguments)
    assert code == 0, said
    return printed, said


@contextlib.contextmanager
def model_and_canaries_on_the_hub() -> Iterator[Canaries]:
    planted = Canaries.generate(NUMBER, repetitions=[0, 2], per_repetition=2, seed=2)
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    llama(len(tokenizer)).push_to_hub("me/model", private=True)
    tokenizer.push_to_hub("me/model")
    planted.push_to_hub("me/set")
    yield planted


@in_the_client
def test_measure_and_extract_take_ids_and_add_to_the_models_card(tmp_path: Path) -> None:
    with model_and_canaries_on_the_hub() as planted:
        both = ["--model", "me/model", "--canaries", "me/set", "--push-to-card"]
        printed, said = succeed("measure", *both, "--samples", "50", "--json")
        exposures = json.loads(printed)["exposures"]
        assert "Added to the card: http://127.0.0.1" in said
        printed, said = succeed("extract", *both, "--generate", "4", "--json")
        found = json.loads(printed)
        card = ModelCard.load("me/model")
        inserted = [one["bits"] for one in exposures if one["repetitions"]]
        mean = ours(card)["Exposure (mean)"].metric_value
        assert mean == pytest.approx(sum(inserted) / len(inserted), abs=1e-4)
        (one,) = ours(card, "extracted").values()
        assert one.metric_args["token_forwards"] == found["extractions"][0]["forwards"]
        assert one.metric_args["method"] == "search for the most likely strings"
        assert ours(card, "generated")
        assert "## Memorization" in card.text and "## Extraction of inserted secrets" in card.text
        text = hub().files("models", "me/model")["README.md"].decode()
        shown = [entry["length"] for entry in found["extractions"][0]["extractions"]]
        assert shown == [4, 4, 4] and not secrets_in(text, planted)
        # As a pull request, of a revision of the set, and into a file.
        HfApi().create_tag("me/set", tag="v1", repo_type="dataset")
        planted[:2].push_to_hub("me/set")
        local = tmp_path / "README.md"
        local.write_text("# Mine\n")
        _, said = succeed(
            "measure",
            *both,
            "--canaries-revision",
            "v1",
            "--samples",
            "50",
            "--create-pr",
            "--card",
            local,
            "--output",
            tmp_path / "e.json",
        )
        assert "/discussions/1" in said
        assert len(json.loads((tmp_path / "e.json").read_text())["exposures"]) == 4
        assert kept("# Mine", local.read_text()) and ours(ModelCard.load(local))


@in_the_client
def test_a_card_that_cannot_be_pushed_costs_no_result(tmp_path: Path) -> None:
    with model_and_canaries_on_the_hub() as planted:
        arguments = [
            "measure",
            "--model",
            "me/model",
            "--canaries",
            "me/set",
            "--samples",
            "50",
            "--push-to-card",
            "--output",
            tmp_path / "e.json",
        ]
        for what, expected in ((403, "on purpose"), ("cut", "disconnected"), (507, "no room")):
            hub().fail("POST", "/commit/main", what)
            code, printed, said = command(*arguments)
            assert code == 1 and "••••" in printed and expected in said
            warned, _, error = said.partition("Error: ")
            assert error.startswith("could not add to the card of 'me/model'")
            assert "no record of having been inserted" in warned
            assert not secrets_in(said + printed, planted)
            assert (tmp_path / "e.json").is_file()
            (tmp_path / "e.json").unlink()
        for wrong, expected in (
            (["--canaries", "me/none"], "--canaries: could not load canaries from 'me/none'"),
            (["--canaries-revision", "v9"], "no such revision there"),
            (["--model", tmp_path], "give --card"),
            (["--model", "me/nothing"], "no folder here, so it was looked for on the Hub"),
        ):
            code, printed, said = command(*arguments, *wrong)
            assert code != 0 and expected in said and not (tmp_path / "e.json").exists()
        planted.save(tmp_path / "c.json")
        code, _, said = command(
            *arguments, "--canaries", tmp_path / "c.json", "--canaries-revision", "v1"
        )
        assert code != 0 and "is a file, which has no revisions" in said
        code, _, said = command(*arguments[:-3], "--create-pr")
        assert code != 0 and "add --push-to-card" in said


@in_the_client
def test_inject_pushes_the_manifest_when_asked(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(9)))
    arguments = [
        "inject",
        "--dataset",
        rows,
        "--template",
        NUMBER.template,
        "--secret",
        NUMBER.secret,
        "--repetitions",
        "0,2",
        "--per-repetition",
        "1",
        "--push-canaries",
        "me/new",
    ]
    out, manifest = tmp_path / "a.jsonl", tmp_path / "a.json"
    succeed(*arguments, "--output", out, "--canaries", manifest)
    assert hub().repos["datasets", "me/new"].private
    assert Canaries.from_hub("me/new") == Canaries.load(manifest)
    hub().fail("POST", "/commit/", 503)
    out, manifest = tmp_path / "b.jsonl", tmp_path / "b.json"
    code, _, said = command(*arguments, "--output", out, "--canaries", manifest)
    assert code == 1 and "answers 503" in said
    assert out.is_file() and len(Canaries.load(manifest)) == 2  # nothing is lost


# The metric


@in_the_client
def test_the_metric_loads_from_its_space_and_takes_canaries_by_their_id(tmp_path: Path) -> None:
    import evaluate

    from hf_exposure import measure_exposure, metric_path

    api = HfApi()
    api.create_repo("me/exposure", repo_type="space", space_sdk="gradio")
    api.upload_folder(
        repo_id="me/exposure",
        folder_path=metric_path(),
        repo_type="space",
        ignore_patterns=["__pycache__/*"],
    )
    files = hub().files("spaces", "me/exposure")
    assert {"app.py", "exposure.py", "requirements.txt", "README.md"} <= set(files)
    assert not card_errors(files["README.md"].decode(), "space")
    metric = evaluate.load("me/exposure")
    assert metric.compute(predictions=[1.0], references=[2.0, 3.0])["exposure"] == [1.0]
    with model_and_canaries_on_the_hub() as planted:
        tokenizer = TOKENIZERS["digits_one_by_one"]()
        model = llama(len(tokenizer))
        truth = measure_exposure(model, tokenizer, planted, samples=50)
        by_id = metric.compute(model=model, tokenizer=tokenizer, canaries="me/set", samples=50)
        both = metric.compute(model_id="me/model", canaries="me/set", samples=50, device="cpu")
    for found in (by_id, both):
        assert found["exposure"] == pytest.approx([one.bits for one in truth])
    with pytest.raises(RuntimeError, match="exposure: canaries: could not load canaries from"):
        metric.compute(model=model, tokenizer=tokenizer, canaries="me/none")


@in_the_client
def test_a_secret_is_masked_in_what_the_hub_says(tmp_path: Path) -> None:
    # A server may quote what it was given.
    planted = Canaries([Canary(FORMAT, "281265", 1)])
    hub().fail("POST", "/commit/", 400, body=json.dumps({"error": "bad line: 281265"}))
    said = refused(planted.push_to_hub, "me/set")
    assert "answers 400 (bad line: ••••••)" in said
