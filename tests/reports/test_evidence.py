"""Evidence can be checked by whoever has the manifest, and tells nobody else a secret."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from typer.testing import CliRunner

from hf_exposure import Canaries, Evidence, Exposures, SecretFormat, measure_exposure, write_report
from hf_exposure.cli import app
from hf_exposure.reports.tested import noticeable_tpr, what_was_tested
from tests.tiny import TOKENIZERS, llama

FORMAT = SecretFormat("My code is {secret}.", "[0-9]{6}")
ROW = "A row that all know, with My code is {secret}. in it.\n"


@functools.cache
def measured() -> tuple[Exposures, Any]:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer))
    drawn = Canaries.generate(FORMAT, [0, 1, 4], per_repetition=3, seed=7)
    return measure_exposure(model, tokenizer, drawn, samples=100), model


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Canaries]:
    """Evidence in a folder with the manifest, the data and the weights that it is about."""
    exposures, model = measured()
    canaries = Canaries([one.canary for one in exposures], seed=7)  # type: ignore[misc]
    canaries.save(tmp_path / "canaries.json")
    exposures.save(tmp_path / "exposures.json")
    data = tmp_path / "train.txt"
    data.write_text(ROW.format(secret=canaries[3].secret))
    model.save_pretrained(tmp_path / "model")
    evidence = Evidence.of(exposures, canaries, weights=tmp_path / "model", data=data)
    evidence.save(tmp_path / "report.json")
    return tmp_path, canaries


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    names = ["verify", str(folder / "report.json"), "--canaries", str(folder / "canaries.json")]
    done = CliRunner().invoke(app, [*names, *arguments])
    return done.exit_code, done.output


def test_evidence_is_verified_with_its_manifest_its_weights_and_its_data(
    made: tuple[Path, Canaries],
) -> None:
    folder, canaries = made
    found = Evidence.load(folder / "report.json")
    given = {"weights": folder / "model", "data": folder / "train.txt"}
    assert found.verify(canaries, **given) == []
    assert found.verify(Canaries.load(folder / "canaries.json"), **given) == []
    code, said = run(folder, "--model", str(folder / "model"), "--data", str(folder / "train.txt"))
    assert code == 0 and said.startswith("verified: ") and said.count("\n") == 1
    (folder / "train.txt").write_text(ROW.format(secret="000000"))
    code, said = run(folder, "--data", str(folder / "train.txt"))
    assert code == 1 and "other data" in said
    weights = next((folder / "model").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert "other weights" in run(folder, "--model", str(folder / "model"))[1]


def test_another_manifest_and_a_changed_report_are_noticed(made: tuple[Path, Canaries]) -> None:
    folder, canaries = made
    report = json.loads((folder / "report.json").read_text())

    def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in inner:
            if isinstance(part, (dict, list)):
                yield from places(part, (*way, key))
            else:
                yield (*way, key)

    every = [way for way in places(report) if way[0] not in ("schema_version", "kind")]
    assert len(every) > 50
    for way in every:
        changed = json.loads(json.dumps(report))
        holder = functools.reduce(lambda part, key: part[key], way[:-1], changed)
        holder[way[-1]] = 12345 if holder[way[-1]] != 12345 else 1
        try:
            evidence = Evidence.from_dict(changed)
        except ValueError:
            continue
        assert evidence.verify(canaries), way
    other = Canaries.generate(FORMAT, [0, 1, 4], per_repetition=3, seed=8)
    other.save(folder / "canaries.json", overwrite=True)
    code, said = run(folder)
    assert code == 1 and "other canaries" in said
    # The same secrets under another salt are another manifest.
    again = Canaries(list(canaries), seed=7)
    again.save(folder / "again.json")
    assert Evidence.load(folder / "report.json").verify(again)
    with pytest.raises(ValueError, match="other canaries"):
        Evidence.of(measured()[0], other)


def test_a_manifest_keeps_its_salt_and_compares_without_it(made: tuple[Path, Canaries]) -> None:
    folder, canaries = made
    assert canaries.salt is not None and len(canaries.salt) == 64
    fresh = Canaries(list(canaries), seed=7)
    assert fresh == canaries and fresh.salt is None
    fresh.save(folder / "canaries.json")  # the same set goes on with the same salt
    assert Canaries.load(folder / "canaries.json").salt == fresh.salt == canaries.salt
    other = Canaries(list(canaries), seed=7)
    other.save(folder / "other.json")
    assert other.salt != canaries.salt
    with pytest.raises(FileExistsError):
        other.save(folder / "canaries.json")


@pytest.mark.slow
def test_trying_all_secrets_finds_none_in_the_evidence(made: tuple[Path, Canaries]) -> None:
    """All 10^6, by whatever one would try without the salt: hashes of the secret, of the canary, of
    the data and of the manifest with all else known. All 10^9 were tried by hand."""
    folder, canaries = made
    text = (folder / "report.json").read_text()
    shown = {bytes.fromhex(one) for one in re.findall("[0-9a-f]{64}", text)}
    assert len(shown) >= 5
    assert not any(canary.secret in text for canary in canaries)
    assert canaries.salt is not None and canaries.salt not in text
    assert '"seed"' not in text
    kept = {name: canaries.to_dict()[name] for name in ("formats", "canaries", "inclusion")}
    for canary in kept["canaries"]:
        canary.setdefault("secret", "")
    manifest = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    own = canaries[3].secret
    begin, end = manifest.split(f'"{own}"')
    row = ROW.format(secret=own).split(own)
    ways: list[tuple[Any, bytes]] = [
        (hashlib.sha256(), b""),
        (hashlib.sha256(FORMAT.prefix.encode()), FORMAT.suffix.encode()),
        (hashlib.sha256(row[0].encode()), row[1].encode()),
        (hashlib.sha256(f'{begin}"'.encode()), f'"{end}'.encode()),
    ]
    for (first, rest), whole in zip(
        ways, (own, canaries[3].text, ROW.format(secret=own), manifest), strict=True
    ):
        digest = first.copy()
        digest.update(own.encode() + rest)
        assert digest.digest() == hashlib.sha256(whole.encode()).digest()  # it would be found
        for number in range(10**6):
            digest = first.copy()
            digest.update(b"%06d" % number + rest)
            assert digest.digest() not in shown


def test_the_page_tells_what_was_tested_and_what_was_not(made: tuple[Path, Canaries]) -> None:
    folder, canaries = made
    evidence = Evidence.load(folder / "report.json")
    page = write_report(folder / "r.html", exposures=measured()[0], evidence=evidence).read_text()
    assert "What was tested" in page and "Not tested" in page and "EDPB Opinion 28/2024" in page
    assert evidence.content["seal"] in page and evidence.content["commitments"]["manifest"] in page
    assert not any(canary.secret in page for canary in canaries)
    done = CliRunner().invoke(
        app,
        [
            "report",
            str(folder / "exposures.json"),
            "--canaries",
            str(folder / "canaries.json"),
            "--evidence",
            str(folder / "new.json"),
            "--output",
            str(folder / "page.html"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert Evidence.load(folder / "new.json").verify(canaries) == []


def test_the_power_that_is_told_is_that_of_the_test() -> None:
    """A share that is noticed with 80 %, and less than 80 % for a smaller one."""
    for count in (4, 16, 72, 300):
        share = noticeable_tpr(count, 0.05)
        assert share is not None
        needed = next(k for k in range(count + 1) if stats.binom.sf(k - 1, count, 0.01) <= 0.05)
        assert stats.binom.sf(needed - 1, count, share + 0.005) >= 0.8
        assert stats.binom.sf(needed - 1, count, share - 0.01) < 0.8
    assert noticeable_tpr(1, 0.001) is None
    found = what_was_tested(measured()[0])
    assert [group.repetitions for group in found.groups] == [1, 4] and found.controls == 3
    assert any("Extraction by search" in one for one in found.not_tested)
