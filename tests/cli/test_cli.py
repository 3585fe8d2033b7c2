"""The command line: what it prints, writes, and says when something is wrong."""

from __future__ import annotations

import html
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_from_disk
from typer.testing import CliRunner

from hf_exposure import cli
from hf_exposure.attacks.texts import TextScores
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.results import Exposures
from tests.processes import python
from tests.tiny import TOKENIZERS, corpus, llama

TEMPLATE = ["--template", "the random number is {secret}.", "--secret", "[0-9]{4}"]
COMMANDS = ["demo", "inject", "measure", "extract", "audit", "discover", "score"]
COMMANDS += ["report", "gate", "verify"]


SCORE = ["score", "--model", "./none", "--dataset", "ROWS"]
MEASURE = ["measure", "--model", "./none", "--canaries", "MANIFEST"]  # nothing may load


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def succeed(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return str(result.stdout)


def fail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str | Path
) -> str:
    """What `hf-exposure` says of a mistake: it has to end with an exit code and in a few lines."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # undone afterwards
    monkeypatch.setattr(sys, "argv", ["hf-exposure", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code not in (0, None)
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return " ".join(shown.split())


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    Dataset.from_dict({"text": list(corpus()[:30]), "id": list(range(30))}).to_json(str(path))
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    from hf_exposure.canaries.formats import SecretFormat

    fmt = SecretFormat("the random number is {secret}.", secret="[0-9]{4}")
    return Canaries.generate(fmt, repetitions=[0, 1, 4], per_repetition=2).save(
        tmp_path / "canaries.json"
    )


def secrets_in(text: str, manifest: Path) -> list[str]:
    return [canary.secret for canary in Canaries.load(manifest) if canary.secret in text]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    shown = succeed(command, "--help")
    assert "--json" in shown or command == "demo"
    assert "--reveal" in shown or command in ("inject", "gate", "verify")


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from hf_exposure.cli import app; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_inject_writes_the_planted_rows_and_the_manifest(tmp_path: Path, rows_file: Path) -> None:
    made = tmp_path / "planted.jsonl"
    manifest = tmp_path / "new.json"
    shown = succeed(
        "inject",
        "--dataset",
        rows_file,
        "--output",
        made,
        "--canaries",
        manifest,
        *TEMPLATE,
        "--repetitions",
        "0,1,3",
        "--per-repetition",
        "2",
        "--json",
    )
    canaries = Canaries.load(manifest)
    texts = [json.loads(line)["text"] for line in made.read_text().splitlines()]
    assert json.loads(shown)["inserted"] == 8
    assert len(texts) == 38
    for canary in canaries:
        assert texts.count(canary.text) == canary.repetitions
    assert [one.mode for one in canaries.insertions] == ["rows"]
    assert not secrets_in(shown, manifest)


def test_inject_uses_a_manifest_that_is_there_and_writes_folders(
    tmp_path: Path, rows_file: Path, manifest: Path
) -> None:
    before = list(Canaries.load(manifest))
    succeed(
        "inject",
        "--dataset",
        rows_file,
        "--output",
        tmp_path / "folder",
        "--canaries",
        manifest,
        "--mode",
        "splice",
    )
    assert list(Canaries.load(manifest)) == before
    assert len(load_from_disk(str(tmp_path / "folder"))) == 30


def test_secrets_that_nobody_gave_a_seed_for_are_not_everybodys(
    tmp_path: Path, rows_file: Path
) -> None:
    drawn = []
    for name in ("a", "b"):
        succeed(
            "inject",
            "--dataset",
            rows_file,
            "--output",
            tmp_path / f"{name}.jsonl",
            "--canaries",
            tmp_path / f"{name}.json",
            *TEMPLATE,
        )
        drawn.append({canary.secret for canary in Canaries.load(tmp_path / f"{name}.json")})
    assert drawn[0] != drawn[1]


def test_inserting_the_same_canaries_again_is_warned_of(
    tmp_path: Path, rows_file: Path, manifest: Path
) -> None:
    arguments = ["--canaries", manifest, "--output"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        succeed("inject", "--dataset", rows_file, *arguments, tmp_path / "a.jsonl")
        # The same rows as they were: nothing is inserted twice.
        succeed("inject", "--dataset", rows_file, *arguments, tmp_path / "b.jsonl")
    with pytest.warns(UserWarning, match="in it twice now") as caught:
        succeed("inject", "--dataset", tmp_path / "a.jsonl", *arguments, tmp_path / "c.jsonl")
    assert len(caught) == 1 and not secrets_in(str(caught[0].message), manifest)


def test_no_seed_that_inject_prints_draws_the_secrets(tmp_path: Path, rows_file: Path) -> None:
    manifest = tmp_path / "c.json"
    shown = succeed(
        "inject",
        "--dataset",
        rows_file,
        "--output",
        tmp_path / "o.jsonl",
        "--canaries",
        manifest,
        *TEMPLATE,
        "--json",
    )
    canaries = Canaries.load(manifest)
    assert canaries.seed is not None and str(canaries.seed) not in shown
    place = json.loads(shown)["insertions"][0]["seed"]
    drawn = Canaries.generate(canaries.formats, [0, 1, 4, 16, 64], 4, place)
    # Of 10,000 numbers, a few may meet by chance.
    assert len({one.secret for one in drawn} & {one.secret for one in canaries}) < 4


def test_the_seed_of_the_secrets_is_not_printed_as_that_of_the_places(
    tmp_path: Path, rows_file: Path
) -> None:
    for name in ("a", "b"):
        shown = succeed(
            "inject",
            "--dataset",
            rows_file,
            "--output",
            tmp_path / f"{name}.jsonl",
            "--canaries",
            tmp_path / f"{name}.json",
            *TEMPLATE,
            "--seed",
            "31337",
            "--secrets-seed",
            "31337",
            "--json",
        )
        assert "31337" not in shown
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_no_command_writes_over_a_file_unless_asked_to(
    tmp_path: Path, model_folder: Path, manifest: Path, rows_file: Path
) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text("[1]")
    model = ["--model", model_folder]
    for arguments in (
        ["measure", *model, "--canaries", manifest],
        ["extract", *model, "--canaries", manifest],
        ["audit", *model, "--dataset", rows_file],
        ["discover", *model, "--dataset", rows_file],
        ["inject", "--dataset", rows_file, *TEMPLATE, "--canaries", tmp_path / "new.json"],
    ):
        result = run(*arguments, "--output", mine)
        assert result.exit_code != 0 and "--overwrite" in " ".join(result.output.split()), arguments
        assert mine.read_text() == "[1]"
        data = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(dict(reversed(data.items()))))
        result = run(*arguments, "--output", manifest, "--overwrite")
        assert result.exit_code != 0 and json.loads(manifest.read_text()) == data
    assert not (tmp_path / "new.json").exists()


def test_measure_prints_a_masked_table_and_writes_exposures(
    tmp_path: Path, model_folder: Path, manifest: Path
) -> None:
    written = tmp_path / "exposures.json"
    shown = succeed(
        "measure",
        "--model",
        model_folder,
        "--canaries",
        manifest,
        "--output",
        written,
        "--samples",
        "100",
    )
    assert "••••" in shown and "token-forwards" in shown
    assert not secrets_in(shown, manifest)
    data = json.loads(written.read_text())
    assert len(data["exposures"]) == 6
    assert not secrets_in(json.dumps([e.get("secret") for e in data["exposures"]]), manifest)


def test_measure_reveals_secrets_only_when_asked(model_folder: Path, manifest: Path) -> None:
    arguments = ["measure", "--model", model_folder, "--canaries", manifest, "--samples", "50"]
    assert len(secrets_in(succeed(*arguments, "--reveal"), manifest)) == 6
    data = json.loads(succeed(*arguments, "--json"))
    assert all("secret" not in entry for entry in data["exposures"])


@pytest.mark.slow
def test_measure_by_another_score_says_so_wherever_it_is_shown(
    model_folder: Path, manifest: Path, tmp_path: Path
) -> None:
    other, written, card = (tmp_path / name for name in ("base", "exposures.json", "README.md"))
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    llama(len(tokenizer), seed=1).save_pretrained(other)
    arguments = ["measure", "--model", model_folder, "--base", other, "--canaries", manifest]
    arguments += ["--score", "min_k", "--samples", "60", "--output", written, "--card", card]
    by = "min_k less the base model's"
    assert f"method sampling by {by}" in " ".join(succeed(*arguments).split())
    exposures = Exposures.load(written)
    assert exposures.settings["score"] == "min_k" and exposures.settings["base"] is True
    succeed("report", written, "--output", tmp_path / "report.html")
    page = html.unescape((tmp_path / "report.html").read_text())
    assert f"“sampling” by {by}" in page and "goes by likelihood" in page
    assert "rank among them by min" in card.read_text() and f"score: {by}" in card.read_text()
    assert f"by {by}" in run("gate", written, "--max-exposure", "10").output


@pytest.mark.slow
def test_extract_and_report_go_on_from_what_was_measured(
    tmp_path: Path, model_folder: Path, manifest: Path
) -> None:
    exposures, found = tmp_path / "exposures.json", tmp_path / "found.json"
    succeed(
        "measure",
        "--model",
        model_folder,
        "--canaries",
        manifest,
        "--output",
        exposures,
        "--samples",
        "50",
    )
    shown = succeed(
        "extract",
        "--model",
        model_folder,
        "--canaries",
        manifest,
        "--generate",
        "5",
        "--output",
        found,
    )
    assert "proved" in shown and "came out" in shown
    page = succeed("report", exposures, "--extractions", found)
    assert str(tmp_path / "report.html") in page.replace("\n", "")
    html = (tmp_path / "report.html").read_text()
    assert "came out" in html
    data = json.loads(found.read_text())
    assert data["extractions"][0]["extractions"] and data["generations"]


def test_score_masks_texts_and_tests_members_on_request(model_folder: Path, tmp_path: Path) -> None:
    members, others, written = (tmp_path / name for name in ("in.jsonl", "out.txt", "s.json"))
    Dataset.from_dict({"text": [*corpus()[:30], "", None]}).to_json(members)
    others.write_text("\n".join(corpus()[29:90]), encoding="utf-8")
    arguments = ["score", "--model", model_folder, "--dataset", members]
    shown = succeed(*arguments, "--non-members", others, "--output", written)
    assert "needs at least 100 non-members, and there are 61" in " ".join(shown.split())
    done = run(*arguments, "--base", model_folder, "--non-members", others, "--fpr", "0.1")
    assert "by ratio, " in done.stdout and "at 10 % false positives" in done.stdout
    assert "2 rows without text left out" in done.stderr and "1 text of --data" in done.stderr
    data = json.loads(written.read_text())
    assert data["membership_test"]["scores"][0]["tpr"] is None
    assert len(TextScores.load(written)) == 30 and len(data["non_members"]["texts"]) == 61
    assert not any(text in shown + written.read_text() for text in corpus())
    assert corpus()[0] in succeed(*arguments, "--limit", "1", "--reveal", "--json")
    table = succeed(*arguments, "--limit", "3")
    assert "error" not in table and "…" not in table  # nothing is cut where nobody knows a width


def test_extract_needs_no_canaries_but_a_format(model_folder: Path) -> None:
    data = json.loads(succeed("extract", "--model", model_folder, *TEMPLATE, "--json"))
    assert len(data["extractions"][0]["extractions"]) == 3
    assert data["generations"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["measure", "--model", "./nowhere", "--canaries", "MANIFEST"],
            "--model: there is no folder './nowhere'",
        ),
        (
            ["measure", "--model", "MODEL", "--canaries", "MANIFEST", "--base", "./nowhere"],
            "--base: there is no folder './nowhere'",
        ),
        (
            ["measure", "--model", "MODEL", "--canaries", "MANIFEST", "--tokenizer", "../nope"],
            "--tokenizer: there is no folder '../nope'",
        ),
        (
            ["measure", "--model", "MODEL", "--canaries", "MANIFEST", "--tokenizer", "NOTHING"],
            "--tokenizer: no tokenizer can be loaded from",
        ),
        (
            [
                "measure",
                "--endpoint",
                "http://localhost:1/v1",
                "--endpoint-model",
                "m",
                "--canaries",
                "MANIFEST",
                "--tokenizer",
                "NOTHING",
            ],
            "--tokenizer: no tokenizer can be loaded from",
        ),
        (
            ["measure", "--model", "MODEL", "--canaries", "missing.json"],
            "--canaries: there is no file 'missing.json'; give the manifest",
        ),
        (["measure", "--model", "MODEL", "--canaries", "EXPOSURES"], "it holds exposures, not"),
        (["extract", "--model", "MODEL", "--canaries", "NOTHING"], "is a folder; give"),
        (
            ["measure", "--model", "MODEL", "--canaries", "MANIFEST", "--method", "guess"],
            "method='guess' is not known",
        ),
        (["measure", "--model", "MODEL", "--canaries", "ROWS"], "rows.jsonl"),
        ([*MEASURE, "--score", "guess"], "--score='guess' is not known"),
        ([*MEASURE, "--score", "zlib", "--samples", "0"], "--samples=0 is too small"),
        ([*MEASURE, "--score", "ratio"], "--score ratio is log-perplexity less"),
        ([*MEASURE, "--score", "zlib", "--base", "MODEL"], "--base has no part in --score zlib"),
        ([*MEASURE, "--score", "min_k", "--method", "exact"], "--method='exact' ranks by"),
        ([*MEASURE, "--score", "min_k", "--max-forwards", "9"], "lower that instead"),
        (
            "measure --endpoint http://localhost:1/v1 --canaries MANIFEST --score min_k "
            "--endpoint-model m".split(),
            "in place of --endpoint",
        ),
        (["extract", "--model", "MODEL"], "give both --template and --secret"),
        (["extract", "--model", "MODEL", *TEMPLATE, "--generate", "3"], "give --canaries"),
        (
            ["extract", "--model", "MODEL", "--template", "no hole", "--secret", "[0-9]"],
            "has 0 holes",
        ),
        (["inject", "--dataset", "nowhere.jsonl", "--output", "o.jsonl", *TEMPLATE], "no file"),
        (["inject", "--dataset", "ROWS", "--output", "o.xyz", *TEMPLATE], "ends in '.xyz'"),
        (
            ["inject", "--dataset", "ROWS", "--output", "o.jsonl", *TEMPLATE, "--column", "body"],
            "column='body'",
        ),
        (
            ["inject", "--dataset", "ROWS", "--output", "o.jsonl", *TEMPLATE, "--repetitions", "x"],
            "give numbers such as",
        ),
        (["inject", "--dataset", "ROWS", "--output", "ROWS", *TEMPLATE], "name another file"),
        (["inject", "--dataset", "EMPTY", "--output", "o.jsonl", *TEMPLATE], "is empty"),
        (["inject", "--dataset", "BROKEN", "--output", "o.jsonl", *TEMPLATE], "cannot be read"),
        (
            ["inject", "--dataset", "ROWS", "--output", "o.jsonl", *TEMPLATE, "--split", "test"],
            "has no splits",
        ),
        (
            ["measure", "--model", "MODEL", "--canaries", "MANIFEST", "--device", "cuda:7"],
            "'cuda:7' cannot be used here",
        ),
        (
            ["measure", "--model", "MODEL", "--canaries", "MANIFEST", "--dtype", "foo"],
            "--dtype: 'foo' is not known",
        ),
        (["measure", "--model", "NOTHING", "--canaries", "MANIFEST"], "no tokenizer can be loaded"),
        (["report", "nothing.json"], "report: there is no file 'nothing.json'; give what measure"),
        (
            ["measure", "--model", "MODEL", "--canaries", "MANIFEST", "--output", "MANIFEST"],
            "is the manifest of canaries",
        ),
        (
            ["extract", "--model", "MODEL", "--canaries", "MANIFEST", "--card", "MANIFEST"],
            "is the manifest of canaries",
        ),
        (
            [
                "inject",
                "--dataset",
                "ROWS",
                *TEMPLATE,
                "--output",
                "c.json",
                "--canaries",
                "c.json",
            ],
            "another file of this command",
        ),
        (
            [
                "inject",
                "--dataset",
                "ROWS",
                "--output",
                "o.jsonl",
                "--canaries",
                "MANIFEST",
                "--repetitions",
                "0,100",
                "--inclusion",
                "coin",
            ],
            "leave out --repetitions and --inclusion",
        ),
        (["report", "MANIFEST", "--reveal"], "give --canaries"),
        (["report", "MANIFEST"], "it is a manifest of canaries"),
        (["report", "EXPOSURES", "--extractions", "no.json"], "--extractions: there is no file"),
        (["report", "EXPOSURES", "--canaries", "no.json"], "--canaries: there is no file"),
        (["discover", "--model", "MODEL", "--dataset", "ROWS", "--columns", "a,b"], "--columns"),
        (["discover", "--model", "MODEL", "--dataset", "TINY"], "--prefix-tokens"),
        ([*SCORE, "--fpr", "0.1"], "give --non-members"),
        ([*SCORE, "--non-members", "ROWS"], "names the same texts"),
        ([*SCORE, "--non-members", "TINY", "--by", "ratio"], "needs the model before training"),
        ([*SCORE, "--non-members", "TINY", "--by", "guess"], "--by='guess' is not known"),
        ([*SCORE, "--non-members", "no.jsonl"], "--model: there is no folder"),
        (
            ["score", "--model", "MODEL", "--dataset", "ROWS", "--non-members", "no.jsonl"],
            "--non-members: there is no file 'no.jsonl'",
        ),
        (["score", "--model", "MODEL", "--dataset", "BLANK"], "none of the 2 rows"),
    ],
)
def test_a_mistake_is_one_clear_line_and_nothing_is_written(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    model_folder: Path,
    manifest: Path,
    rows_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty, broken, nothing = (tmp_path / name for name in ("e.jsonl", "b.jsonl", "nothing"))
    empty.touch()
    broken.write_text('{"text": "one"}\n{"text": ', encoding="utf-8")
    nothing.mkdir()
    tiny, exposures = tmp_path / "tiny.jsonl", tmp_path / "exposures.json"
    tiny.write_text('{"text": "one word"}\n', encoding="utf-8")
    Exposures([]).save(exposures)
    blank = tmp_path / "blank.jsonl"
    blank.write_text('{"text": ""}\n{"text": " "}\n', encoding="utf-8")
    there = {
        "BLANK": blank,
        "TINY": tiny,
        "EXPOSURES": exposures,
        "MODEL": model_folder,
        "MANIFEST": manifest,
        "ROWS": rows_file,
        "EMPTY": empty,
        "BROKEN": broken,
        "NOTHING": nothing,
    }
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    shown = fail(capsys, monkeypatch, *(there.get(name, name) for name in arguments))
    assert said in shown.replace("│ ", "")
    assert not list(work.iterdir())


OUTPUTS: list[list[str]] = [
    ["measure", "--model", "./none", "--canaries", "none.json"],
    ["extract", "--model", "./none", *TEMPLATE],
    ["audit", "--model", "./none", "--dataset", "none.jsonl"],
    ["discover", "--model", "./none", "--dataset", "none.jsonl"],
    ["score", "--model", "./none", "--dataset", "none.jsonl"],
    ["report", "none.json"],
]


@pytest.mark.parametrize("arguments", OUTPUTS, ids=lambda words: words[0])
def test_an_output_that_cannot_be_written_is_said_before_anything_is_read(
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    shown = fail(capsys, monkeypatch, *arguments, "--output", "folder")
    assert "--output: 'folder' is a folder; name a file in it" in shown.replace("│ ", "")
    shown = fail(capsys, monkeypatch, *arguments, "--output", "file/x.json")
    assert "--output: 'file' is a file, not a folder" in shown.replace("│ ", "")


@pytest.mark.parametrize("command", [["demo"]])
def test_an_output_folder_that_is_a_file_is_said_before_anything_is_trained(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    shown = fail(capsys, monkeypatch, *command, "--output-dir", "file")
    assert "--output-dir: 'file' is a file, not a folder" in shown.replace("│ ", "")


@pytest.mark.parametrize("output", [[], ["--output", "page.html"]], ids=["default", "named"])
def test_report_replaces_a_page_only_if_asked_to(
    output: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Exposures([]).save("exposures.json")
    page = Path(output[-1] if output else "report.html")
    page.write_text("curves")
    shown = fail(capsys, monkeypatch, "report", "exposures.json", *output).replace("│ ", "")
    assert f"'{page}' is there already: add --overwrite" in shown
    assert page.read_text() == "curves"
    succeed("report", "exposures.json", *output, "--overwrite")
    assert page.read_text() != "curves"


def test_canaries_of_another_format_than_the_one_searched_are_warned_of(
    model_folder: Path, manifest: Path
) -> None:
    other = ["--template", "my code is {secret}.", "--secret", "[0-9]{2}"]
    arguments = ["extract", "--model", model_folder, "--canaries", manifest, "--json"]
    with pytest.warns(UserWarning, match="none of the canaries has the format") as caught:
        succeed(*arguments, *other)
    assert len(caught) == 1 and not secrets_in(str(caught[0].message), manifest)


@pytest.mark.slow
def test_a_warning_is_one_line_on_standard_error(
    model_folder: Path, manifest: Path, tmp_path: Path
) -> None:
    code = "from hf_exposure.cli import main; main()"
    words = ["extract", "--model", str(model_folder), "--canaries", str(manifest), "--json"]
    words += ["--template", "my code is {secret}.", "--secret", "[0-9]{2}"]
    done = python(["-c", code, *words])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["extractions"]
    (line,) = (line for line in done.stderr.splitlines() if "none of the canaries" in line)
    assert line.startswith("Warning: extract_secrets: ")


def test_exact_without_the_budget_says_what_auto_gives(
    model_folder: Path,
    manifest: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = fail(
        capsys,
        monkeypatch,
        "measure",
        "--model",
        model_folder,
        "--canaries",
        manifest,
        "--method",
        "exact",
        "--max-forwards",
        "100",
    )
    assert "does not get by with max_forwards=100" in shown


def test_a_measurement_of_nothing_is_an_error(
    model_folder: Path,
    manifest: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    TOKENIZERS["digits_in_threes"]().save_pretrained(tmp_path / "larger")
    output = tmp_path / "exposures.json"
    told = fail(
        capsys,
        monkeypatch,
        "measure",
        "--model",
        model_folder,
        "--tokenizer",
        tmp_path / "larger",
        "--canaries",
        manifest,
        "--output",
        output,
    )
    assert "no canary could be scored" in told and "vocabulary" in told
    assert not output.exists()


def test_what_was_measured_is_shown_before_a_file_that_cannot_be_written(
    model_folder: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(sys.modules["hf_exposure.cli.terminal"], "write_text", full)
    given = ["--model", model_folder, "--canaries", manifest, "--output", tmp_path / "out.json"]
    done = CliRunner().invoke(cli.app, [*map(str, ["measure", *given]), "--samples", "10"])
    assert str(done.exception) == "the disk is full"
    assert "exposure in bits" in " ".join(done.output.split())


def test_a_place_that_cannot_be_written_to_is_refused_before_the_model_loads(
    manifest: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(**where: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    given = ["--model", "me/none", "--canaries", manifest, "--output", tmp_path / "out.json"]
    shown = fail(capsys, monkeypatch, "measure", *given)
    assert "nothing can be written to" in shown.replace("│ ", "")


def test_functions_speak_python_and_commands_speak_of_options(
    manifest: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_exposure import load_canaries, load_model, load_rows

    for function, name, option in (
        (load_model, "./none", "--model"),
        (load_rows, "./none.jsonl", "--dataset"),
        (load_canaries, "./none.json", "--canaries"),
    ):
        with pytest.raises(OSError, match=f"^{function.__name__}: ") as caught:
            function(name)
        assert "--" not in str(caught.value)
        assert cli.in_options(str(caught.value)).startswith(f"{option}: ")
    shown = fail(capsys, monkeypatch, "measure", "--model", "./none", "--canaries", manifest)
    assert "--model: there is no folder './none'" in shown
