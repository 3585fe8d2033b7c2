"""The module for evaluate: loaded by evaluate itself, as users do."""

from __future__ import annotations

import ast
import doctest
import functools
import http.server
import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import pytest
import torch
import yaml
from evaluate.loading import get_imports
from scipy import stats

import hf_exposure
from hf_exposure import Canaries, Canary, SecretFormat, measure_exposure, metric_path
from hf_exposure.metrics.exposure import app
from tests.processes import LIMIT
from tests.tiny import TOKENIZERS, llama

FOLDER = Path(metric_path())
ROOT = Path(__file__).parents[2]
FORMAT = SecretFormat("My code is {secret}.", secret=r"[0-9]{4}")
CANARIES = Canaries([Canary(FORMAT, f"{n:04}", k) for n, k in ((17, 0), (4711, 4), (99, 1))])


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """evaluate keeps its copies and files in the home folder; here, in one of the test's own."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", sys.path[:])  # evaluate appends to it
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder / "modules")
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", folder / "metrics")
        yield folder


@pytest.fixture
def metric() -> Any:
    return evaluate.load(metric_path())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return TOKENIZERS["digits_one_by_one"]()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return llama(len(tokenizer))


def numbers(seed: int = 0, n: int = 300) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).gamma(9.0, 3.0, n)]


def by_sampling(cost: float, references: list[float]) -> float:
    """The paper, section 4.3, written out again."""
    not_costlier = len([other for other in references if other <= cost])
    return max(0.0, math.log(len(references) / (1 + not_costlier), 2))


# Log-perplexities in


def test_canaries_and_references_may_be_of_any_two_lengths_and_keep_their_order(
    metric: Any,
) -> None:
    for many, few in ((40, 7), (7, 40), (1, 1)):
        costs, references = numbers(1, many), numbers(2, few)
        result = metric.compute(predictions=costs, references=references, method="sampling")
        assert result["exposure"] == pytest.approx([by_sampling(c, references) for c in costs])
        assert result["num_references"] == few


def test_sampling_is_the_default_and_its_interval_holds_the_exposure(metric: Any) -> None:
    costs, references = numbers(1, 20), numbers(2)
    result = metric.compute(predictions=costs, references=references)
    assert result["method"] == "sampling"
    for low, bits, high in zip(result["low"], result["exposure"], result["high"], strict=True):
        assert 0 <= low <= bits <= high
    mean = sum(by_sampling(cost, references) for cost in costs) / 20
    assert result["mean_exposure"] == pytest.approx(mean)
    assert result["max_exposure"] == max(result["exposure"])


def test_a_higher_confidence_widens_the_interval(metric: Any) -> None:
    ends = [
        metric.compute(predictions=[20.0], references=numbers(), confidence=confidence)
        for confidence in (0.5, 0.95)
    ]
    assert ends[1]["low"] < ends[0]["low"] and ends[1]["high"] > ends[0]["high"]


def test_the_size_caps_the_exposure_and_gives_the_rank(metric: Any) -> None:
    references = numbers(n=256)
    with_size = metric.compute(predictions=[0.5, 25.0], references=references, log2_size=5)
    assert with_size["exposure"][0] == 5.0  # of 8 that 256 references could show
    assert with_size["rank"] == pytest.approx([2 ** (5 - bits) for bits in with_size["exposure"]])
    assert with_size["rank_low"] == pytest.approx([2 ** (5 - bits) for bits in with_size["high"]])
    assert with_size["rank_high"] == pytest.approx([2 ** (5 - bits) for bits in with_size["low"]])
    without = metric.compute(predictions=[0.5, 25.0], references=references)
    assert without["exposure"][0] == 8.0
    assert without["high"][0] == math.inf
    assert without["rank"] is None


def test_skewnorm_is_the_tail_of_the_fit_that_scipy_finds(metric: Any) -> None:
    references = stats.skewnorm(3.0, 25.0, 6.0).rvs(400, random_state=0)
    costs = [22.0, 24.5, 31.0]
    result = metric.compute(predictions=costs, references=references, method="skewnorm")
    shape, loc, scale = stats.skewnorm.fit(references)
    truth = -np.log2(stats.skewnorm.cdf(costs, shape, loc, scale))
    assert result["exposure"] == pytest.approx(truth, rel=0.01)
    assert result["raw_exposure"] == result["exposure"]
    assert set(result["fit"]) == {"shape", "loc", "scale", "ks"}


def test_skewnorm_goes_beyond_what_references_can_show_up_to_the_size(metric: Any) -> None:
    given = {"predictions": [2.0], "references": 30 + np.sqrt(numbers()), "method": "skewnorm"}
    assert metric.compute(**given)["exposure"][0] > 30
    capped = metric.compute(**given, log2_size=20.0)
    assert capped["exposure"] == [20.0] and capped["raw_exposure"][0] > 30


def test_a_secret_of_probability_zero_has_no_exposure_and_infinite_references_count(
    metric: Any,
) -> None:
    references = [*numbers(n=96), *[math.inf] * 32]
    for method in ("sampling", "skewnorm"):
        result = metric.compute(predictions=[math.inf, 1.0], references=references, method=method)
        assert result["exposure"][0] == 0.0
    assert metric.compute(predictions=[1.0], references=references)["exposure"] == [7.0]


@pytest.mark.parametrize(
    "form",
    [
        np.array,
        torch.tensor,
        tuple,
        lambda values: torch.tensor(values, dtype=torch.bfloat16, requires_grad=True),
        lambda values: [torch.tensor(value) for value in values],
        lambda values: np.array(values, dtype=np.float32),
        lambda values: datasets.Dataset.from_dict({"cost": values})["cost"],
        lambda values: (value for value in values),
    ],
)
def test_lists_arrays_and_tensors_give_the_same(metric: Any, form: Any) -> None:
    costs, references = [1.5, 7.0, 3.25], [1.0, 2.0, 4.0, 8.0]
    result = metric.compute(predictions=form(costs), references=form(references))
    assert result["exposure"] == pytest.approx([1.0, 0.0, math.log2(4 / 3)])


# In pieces


def test_adding_in_pieces_is_the_same_as_all_at_once(metric: Any) -> None:
    costs, references = numbers(1, 30), numbers(2, 100)
    whole = metric.compute(predictions=costs, references=references)
    metric.add_batch(predictions=costs[:10])
    metric.add_batch(references=references[:60])
    metric.add_batch(predictions=costs[10:25], references=references[60:])
    for cost in costs[25:]:
        metric.add(prediction=cost)
    assert metric.compute() == whole
    for cost, other in zip(costs, references, strict=False):
        metric.add(prediction=cost, reference=other)
    for other in references[30:]:
        metric.add(reference=other)
    assert metric.compute() == whole


def test_the_last_pieces_may_come_with_compute(metric: Any) -> None:
    references = numbers(2, 100)
    metric.add_batch(references=references)
    assert metric.compute(predictions=[20.0])["exposure"] == [by_sampling(20.0, references)]


def test_what_one_computation_was_given_is_gone_in_the_next(metric: Any) -> None:
    first = metric.compute(predictions=[1.0], references=numbers(n=64))
    second = metric.compute(predictions=[1.0], references=numbers(n=16))
    assert (first["exposure"], second["exposure"]) == ([6.0], [4.0])


def test_it_works_in_memory_too(tmp_path: Path) -> None:
    metric = evaluate.load(metric_path(), keep_in_memory=True, cache_dir=str(tmp_path))
    metric.add_batch(predictions=[1.0])
    assert metric.compute(references=numbers(n=64))["exposure"] == [6.0]
    assert not list(tmp_path.rglob("*.arrow"))


class Mean(evaluate.Metric):
    """Another metric, as users have them, with evaluate's own checks."""

    def _info(self) -> Any:
        features = {name: datasets.Value("float64") for name in ("predictions", "references")}
        return evaluate.MetricInfo("", "", datasets.Features(features))

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
        return {"mean": sum(predictions) / len(predictions)}


def test_it_combines_with_other_metrics(metric: Any) -> None:
    both = evaluate.combine([metric, Mean()])
    costs, references = numbers(1, 8), numbers(2, 8)
    whole = both.compute(predictions=costs, references=references)
    assert whole["exposure"] == pytest.approx([by_sampling(cost, references) for cost in costs])
    assert whole["mean"] == pytest.approx(sum(costs) / 8)
    both.add_batch(predictions=costs[:5], references=references[:5])
    for cost, other in zip(costs[5:], references[5:], strict=True):
        both.add(prediction=cost, reference=other)
    assert both.compute() == whole


def test_two_of_it_combine_under_names_of_their_own() -> None:
    both = evaluate.combine({"before": metric_path(), "after": metric_path()})
    result = both.compute(predictions=[1.0], references=numbers(n=64), log2_size=20)
    assert result["before_exposure"] == result["after_exposure"] == [6.0]


def test_evaluate_saves_its_results(metric: Any, tmp_path: Path) -> None:
    for method in ("sampling", "skewnorm"):
        result = metric.compute(predictions=[1.0, 30.0], references=numbers(), method=method)
        path = evaluate.save(tmp_path / f"{method}.json", **result)
        saved = json.loads(Path(path).read_text())
        assert {name: saved[name] for name in result} == result


# A model in


def test_a_model_is_measured_as_measure_exposure_does(
    metric: Any, model: Any, tokenizer: Any
) -> None:
    given = {"samples": 200, "seed": 3}
    result = metric.compute(model=model, tokenizer=tokenizer, canaries=CANARIES, **given)
    truth = measure_exposure(model, tokenizer, CANARIES, **given)
    assert result["exposure"] == [one.bits for one in truth]
    assert result["rank_high"] == [one.rank_high for one in truth]
    assert result["method"] == "auto"
    inserted = [one.bits for one in truth if one.canary.repetitions]
    assert len(inserted) == 2
    assert result["mean_exposure"] == pytest.approx(sum(inserted) / 2)
    json.dumps(result, allow_nan=False)


@pytest.mark.slow
def test_the_log_perplexities_of_a_measurement_give_its_exposures_again(
    metric: Any, model: Any, tokenizer: Any
) -> None:
    for method in ("sampling", "skewnorm"):
        truth = measure_exposure(model, tokenizer, CANARIES, method=method, samples=300)
        (references,) = truth.references.values()
        result = metric.compute(
            predictions=[one.log_perplexity for one in truth],
            references=references,
            method=method,
            log2_size=FORMAT.bits,
        )
        assert result["exposure"] == pytest.approx([one.bits for one in truth])
        assert result["low"] == pytest.approx([one.low for one in truth])
        assert result["rank"] == pytest.approx([one.rank for one in truth])
        measured = metric.compute(
            model=model, tokenizer=tokenizer, canaries=CANARIES, method=method, samples=300
        )
        assert measured["exposure"] == [one.bits for one in truth]


def test_a_model_by_its_folder_and_a_manifest_give_the_same(
    metric: Any, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    CANARIES.save(tmp_path / "canaries.json")
    by_path = metric.compute(
        model_id=str(tmp_path / "model"),
        canaries=tmp_path / "canaries.json",
        samples=50,
        device="cpu",
    )
    in_memory = metric.compute(model=model, tokenizer=tokenizer, canaries=CANARIES, samples=50)
    assert by_path["exposure"] == pytest.approx(in_memory["exposure"])


@pytest.mark.slow
def test_secrets_with_their_format_are_a_canary_set(
    metric: Any, model: Any, tokenizer: Any
) -> None:
    secrets = ["4711", "0017"]
    whole = Canaries([Canary(FORMAT, secret, 1) for secret in secrets])
    truth = metric.compute(model=model, tokenizer=tokenizer, canaries=whole, samples=50)
    for fmt in (FORMAT, {"template": "My code is {secret}.", "secret": "[0-9]{4}"}):
        result = metric.compute(
            model=model, tokenizer=tokenizer, canaries=secrets, format=fmt, samples=50
        )
        assert result == truth


def test_a_control_group_alone_has_no_mean(metric: Any, model: Any, tokenizer: Any) -> None:
    controls = Canaries([Canary(FORMAT, "4711")])
    result = metric.compute(model=model, tokenizer=tokenizer, canaries=controls, samples=50)
    assert result["mean_exposure"] is None and len(result["exposure"]) == 1


# Wrong input


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "nothing to compute from"),
        ({"predictions": [1.0]}, "references is empty"),
        ({"references": [1.0]}, "predictions is empty"),
        ({"predictions": [], "references": [1.0]}, "predictions is empty"),
        ({"predictions": [1.0], "references": [2.0, math.nan]}, r"references\[1\] is NaN"),
        ({"predictions": [1.0, -3.0], "references": [2.0]}, r"predictions\[1\] is negative"),
        ({"predictions": ["1.0"], "references": [2.0]}, "flat list of numbers"),
        ({"predictions": "1.0", "references": [2.0]}, "flat list of numbers"),
        ({"predictions": 1.0, "references": [2.0]}, "flat list of numbers"),
        ({"predictions": [None], "references": [2.0]}, "flat list of numbers"),
        ({"predictions": [[1.0], [2.0]], "references": [2.0]}, "flat list of numbers"),
        ({"predictions": [[1.0], [2.0, 3.0]], "references": [2.0]}, "flat list of numbers"),
        ({"predictions": [1.0], "references": [2.0], "method": "bleu"}, "'bleu' is not known"),
        ({"predictions": [1.0], "references": [2.0], "method": "auto"}, "needs the model"),
        ({"predictions": [1.0], "references": [2.0], "confidence": 95}, "between 0 and 1"),
        ({"predictions": [1.0], "references": [2.0], "confidence": "0.9"}, "between 0 and 1"),
        ({"predictions": [1.0], "references": [2.0], "log2_size": -1}, "log2_size=-1"),
        ({"predictions": [1.0], "references": [2.0], "log2_size": math.inf}, "log2_size=inf"),
        ({"predictions": [1.0], "references": [2.0], "seed": 1}, "seed is there but no model"),
        ({"predictions": [1.0], "references": [2.0], "method": "skewnorm"}, "too few for a fit"),
        (
            {"predictions": [1.0], "references": [2.0] * 20, "method": "skewnorm"},
            "method='sampling'",
        ),
        ({"canaries": CANARIES}, "model and model_id are missing"),
        ({"model": object()}, "canaries is missing"),
        ({"model": object(), "canaries": CANARIES}, "tokenizer is missing"),
        ({"model": "gpt2", "canaries": CANARIES}, "give it as model_id"),
        ({"model": object(), "model_id": "a", "canaries": CANARIES}, "both there"),
        ({"model_id": "a", "canaries": CANARIES, "tokenizer": object()}, "folder or id"),
        ({"model": object(), "tokenizer": 1, "canaries": ["4711"]}, "format is missing"),
        ({"model": object(), "tokenizer": 1, "canaries": CANARIES, "format": 1}, "leave it out"),
        (
            {"model": object(), "tokenizer": 1, "canaries": ["4711"], "format": {"secret": "a"}},
            "no 'template'",
        ),
        (
            {"model": object(), "canaries": CANARIES, "predictions": [1.0]},
            "one or the other",
        ),
        ({"model": object(), "canaries": CANARIES, "log2_size": 3.0}, "leave it out"),
    ],
)
def test_wrong_input_is_one_clear_line(metric: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        metric.compute(**given)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("exposure: ")
    # What is right afterwards is not disturbed by it.
    assert metric.compute(predictions=[1.0], references=numbers(n=64))["exposure"] == [6.0]


def test_unknown_arguments_and_models_are_named(metric: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="sample_size is no argument"):
        metric.compute(predictions=[1.0], references=[2.0], sample_size=3)
    with pytest.raises(TypeError, match="not int"):
        metric.compute(model=object(), tokenizer=1, canaries=3)
    with pytest.raises(OSError, match="exposure: model_id: there is no folder"):
        metric.compute(model_id=str(tmp_path / "none"), canaries=CANARIES)
    with pytest.raises(ValueError, match="add needs"):
        metric.add()
    with pytest.raises(ValueError, match="NaN"):
        metric.add(prediction=math.nan)


def test_a_secret_in_the_wrong_place_is_not_shown(metric: Any) -> None:
    given = {"model": object(), "tokenizer": 1}
    for canaries, fmt in (("281265017", None), (["281265017"], FORMAT), (["281265017"], None)):
        with pytest.raises(ValueError) as caught:
            metric.compute(**given, canaries=canaries, format=fmt)
        assert "281265017" not in str(caught.value)


def test_an_error_leaves_no_files_behind(metric: Any, caches: Path) -> None:
    with pytest.raises(ValueError, match="references is empty"):
        metric.compute(predictions=[1.0])
    assert not list((caches / "metrics").rglob("*.arrow"))


# What evaluate and the Hub ask for


def test_its_card_in_evaluate_is_filled_in(metric: Any) -> None:
    assert (metric.name, metric.module_type) == ("exposure", "metric")
    assert "Carlini" in metric.citation and "Secret Sharer" in metric.citation
    assert "log2 of the number of possible secrets" in metric.description
    assert "1802.08232" in metric.info.reference_urls[0]
    for text in (type(metric).__doc__, metric.compute.__doc__, metric.add_batch.__doc__):
        assert "references (list of float)" in text
    for name in metric.compute(predictions=[1.0], references=[2.0]):
        assert name in metric.inputs_description, name


@pytest.mark.slow
def test_the_examples_in_its_description_and_its_readme_are_right(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Canaries.generate(FORMAT, repetitions=[0, 1], per_repetition=2).save("canaries.json")
    known = {"model": model, "tokenizer": tokenizer, "metric_path": metric_path}
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name, text, examples in (
        ("inputs_description", evaluate.load(metric_path()).inputs_description, 12),
        ("README.md", readme, 12),
        ("metric_path", metric_path.__doc__ or "", 3),
    ):
        parsed = doctest.DocTestParser().get_doctest(text, dict(known), name, None, 0)
        assert len(parsed.examples) >= examples
        said: list[str] = []
        doctest.DocTestRunner().run(parsed, out=said.append)
        assert not said, "".join(said)


def test_each_line_with_an_import_is_one_that_evaluate_understands() -> None:
    source = FOLDER / "exposure.py"
    found = get_imports(str(source))
    libraries = {name for kind, name, _, _ in found if kind == "library"}
    files = {name for kind, name, _, _ in found if kind == "internal"}
    top = ast.parse(source.read_text(encoding="utf-8")).body
    needed = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    lines = [node for node in top if isinstance(node, ast.ImportFrom)]
    needed |= {node.module or "" for node in lines if not node.level}
    assert libraries == {name.split(".")[0] for name in needed}
    assert "hf_exposure" in libraries
    assert "hf-exposure" in (FOLDER / "requirements.txt").read_text()
    assert files == {node.module for node in lines if node.level == 1}
    assert all((FOLDER / f"{name}.py").is_file() for name in files)


def test_the_readme_starts_with_what_a_space_needs() -> None:
    front = yaml.safe_load((FOLDER / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert front["sdk"] == "gradio" and (FOLDER / front["app_file"]).is_file()
    assert {"title", "emoji", "colorFrom", "colorTo", "sdk_version", "pinned"} <= set(front)
    assert front["tags"] == ["evaluate", "metric"]
    assert len(front["short_description"]) <= 60


def test_the_package_offers_the_path() -> None:
    assert hf_exposure.metric_path is metric_path
    assert {path.name for path in FOLDER.iterdir() if path.name != "__pycache__"} == {
        "README.md",
        "app.py",
        "exposure.py",
        "inputs.py",
        "requirements.txt",
    }


# The Space's page, up to Gradio


def test_the_page_shows_a_row_for_each_canary_and_a_line() -> None:
    rows, line = app.exposures(*app.EXAMPLE)
    references = app.numbers(app.EXAMPLE[1], "references")
    costs = app.numbers(app.EXAMPLE[0], "canaries")
    assert [len(row) for row in rows] == [len(app.HEADINGS)] * len(costs) == [6, 6, 6]
    assert [row[2] for row in rows] == [f"{by_sampling(cost, references):.2f}" for cost in costs]
    assert [float(row[4]) for row in rows] == pytest.approx(
        [1e9 / 2 ** by_sampling(cost, references) for cost in costs], rel=0.01
    )
    assert "6.00 bits at most" in line
    rows, line = app.exposures(app.EXAMPLE[0], app.EXAMPLE[1], "skewnorm", "")
    assert float(rows[0][2]) > 6 and rows[0][4] == "" and "fit" in line


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1, 2.5;3", [1, 2.5, 3]),
        ("[1e1,\n 2]", [10, 2]),
        ("", []),
        (" 7 ", [7]),
        ("inf 0", [math.inf, 0]),
    ],
)
def test_the_boxes_take_numbers_however_separated(text: str, values: list[float]) -> None:
    assert app.numbers(text, "canaries") == values


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000000000", 10**9),
        ("1,000,000", 10**6),
        ("10^9", 10**9),
        ("62**8", 62**8),
        (" 10 ^ 16 ", 10**16),
        ("1", 1),
    ],
)
def test_the_size_is_taken_as_people_write_it(text: str, size: int) -> None:
    assert app.log2_size(text) == pytest.approx(math.log2(size))


def test_the_page_says_what_is_wrong_with_a_field() -> None:
    assert app.log2_size("  ") is None
    with pytest.raises(ValueError, match="canaries: 'twelve' is no number"):
        app.exposures("12 twelve", "1 2", "sampling", "")
    for size in ("0", "-5", "10^", "nine", "10^9^9", "1e9"):
        with pytest.raises(ValueError, match="is no size"):
            app.exposures("12", "1 2", "sampling", size)
    with pytest.raises(ValueError, match="references is empty"):
        app.exposures("12", " ", "sampling", "")


# In processes of their own


def start(script: str, *arguments: str, home: Path, **environ: str) -> subprocess.Popen[str]:
    """A fresh Python with an empty HF_HOME, and without the Hub unless said otherwise."""
    environ = {
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        **environ,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=home,
        text=True,
        env={**kept, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def output(process: subprocess.Popen[str]) -> Any:
    out, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
    return json.loads(out)


@pytest.mark.slow
def test_it_loads_in_a_process_with_no_network(tmp_path: Path) -> None:
    script = """
        import json, socket
        def refuse(*_):
            raise AssertionError("a connection was tried")
        socket.socket.connect = socket.getaddrinfo = refuse
        import evaluate
        from hf_exposure import metric_path
        metric = evaluate.load(metric_path())
        print(json.dumps(metric.compute(predictions=[1.0, 9.0], references=[2.0, 3.0, 4.0, 5.0])))
    """
    assert output(start(script, home=tmp_path))["exposure"] == [2.0, 0.0]
    assert (tmp_path / "modules" / "evaluate_modules" / "metrics" / "exposure").is_dir()


@pytest.mark.distributed
@pytest.mark.slow
def test_several_processes_give_what_one_gives_in_the_order_of_the_processes(
    metric: Any, tmp_path: Path
) -> None:
    # Importing takes longest, so it is done once, and the process forked.
    script = """
        import json, multiprocessing, sys
        import evaluate
        from hf_exposure import metric_path
        def one(rank, costs, references):
            metric = evaluate.load(
                metric_path(), num_process=3, process_id=rank, experiment_id="one", timeout=1800
            )
            for cost in costs:
                metric.add(prediction=cost)
            if references:
                metric.add_batch(references=references)
            return metric.compute()
        with multiprocessing.get_context("fork").Pool(3) as pool:
            print(json.dumps(pool.starmap(one, json.loads(sys.argv[1]), chunksize=1)))
    """
    costs, references = numbers(1, 7), numbers(2, 50)
    # The last process has nothing at all.
    shares = [(0, costs[:4], references[:20]), (1, costs[4:], references[20:]), (2, [], [])]
    results = output(start(script, json.dumps(shares), home=tmp_path))
    assert results[1] is None and results[2] is None
    assert results[0] == metric.compute(predictions=costs, references=references)


@pytest.mark.slow
def test_it_loads_from_a_space(tmp_path: Path) -> None:
    # The Hub's address of a file is the only thing that evaluate asks for.
    space = tmp_path / "hub" / "spaces" / "me" / "exposure" / "resolve" / "main"
    shutil.copytree(FOLDER, space, ignore=shutil.ignore_patterns("__pycache__"))
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "hub")
    )
    script = """
        import json
        import evaluate
        metric = evaluate.load("me/exposure")
        print(json.dumps([metric.name, metric.compute(predictions=[1.0], references=[2.0, 3.0])]))
    """
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = tmp_path / "home"
        home.mkdir()
        process = start(
            script,
            home=home,
            HF_HUB_OFFLINE="0",
            HF_EVALUATE_OFFLINE="0",
            HF_UPDATE_DOWNLOAD_COUNTS="0",
            HF_ENDPOINT=f"http://127.0.0.1:{server.server_address[1]}",
        )
        name, result = output(process)
        server.shutdown()
    assert name == "exposure" and result["exposure"] == [1.0]
