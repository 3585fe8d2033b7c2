"""The examples run from end to end, in their smoke mode and a little beyond it.

Starting a process with all libraries takes longer than most of what the scripts do here, so many
calls share one: `python -m tests.examples.test_examples jobs.json` makes them one after another.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import runpy
import shutil
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_exposure
from hf_exposure import Canaries, Exposures, History, measure_exposure
from tests.hub_server import Hub, environment
from tests.processes import finished, python

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py") if "Parser(" in path.read_text())
NOTEBOOK = EXAMPLES / "quickstart.ipynb"
# In place of a script's name: make a model and texts to start from; leave a training half done.
PREPARE, INTERRUPT = "prepare", "interrupt"
FINE_TUNE = {
    "model_name_or_path": "tiny",
    "train_file": "text.txt",
    "output_dir": "tuned",
    "do_train": True,
    "do_eval": True,
    "block_size": 64,
    "max_steps": 8,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_strategy": "steps",
    "save_steps": 4,
    "learning_rate": 3e-3,
    "repetitions": [0, 24],
    "per_repetition": 2,
    "canary_seed": 3,
    "use_cpu": True,
    "disable_tqdm": True,
}


@dataclass
class Ran:
    """What came of one call of a script."""

    code: int
    out: str
    err: str


def run(name: str, *arguments: str, folder: Path) -> str:
    """What an example prints, in a process of its own."""
    env = {"MPLBACKEND": "Agg"}
    env["PYTHONPATH"] = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    done = python([EXAMPLES / name, *arguments], folder, env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def together(folder: Path, jobs: list[list[str]], env: dict[str, str] | None = None) -> list[Ran]:
    """What scripts give that are called in one process, one after another.

    Args:
        folder: where they run.
        jobs: names and arguments.
        env: for a process that reads the Hub's variables when it loads the libraries.
    """
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = ["-m", "tests.examples.test_examples", folder / "jobs.json"]
    if env is None:
        done = python(command, env={"MPLBACKEND": "Agg"})
    else:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", **env}
        done = finished([sys.executable, *command], cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return [Ran(**one) for one in json.loads((folder / "ran.json").read_text())]


def call(job: list[str]) -> Ran:
    """Run a script as `python script.py ...` would, here."""
    from accelerate.state import AcceleratorState, GradientState

    name, *arguments = job
    sys.argv = [name, *arguments]
    code, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if name in (PREPARE, INTERRUPT):
                globals()[name]()
            else:
                runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            if isinstance(ended.code, str):
                print(ended.code, file=err)
        except BaseException:
            code = 1
            traceback.print_exc()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Ran(code, out.getvalue(), err.getvalue())


def prepare() -> None:
    from small_model import paragraphs, small_llama, train_tokenizer

    lines = paragraphs()[:120]
    Path("text.txt").write_text("\n".join(lines), encoding="utf-8")
    Path("chat.jsonl").write_text('{"messages": []}\n')
    tokenizer = train_tokenizer(lines, vocab_size=512)
    model = small_llama(
        len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        max_position_embeddings=64,
    )
    model.save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    Path("config.yaml").write_text(yaml.safe_dump(FINE_TUNE))


def interrupt() -> None:
    shutil.copytree("tuned", "half")
    shutil.rmtree("half/checkpoint-8")
    for name in ("README.md", "report.html", "model.safetensors"):
        Path("half", name).unlink()


def secrets_in(text: str, canaries: Canaries) -> list[str]:
    """Secrets that stand in a text, not by chance among the digits of a longer number."""
    found = (one.secret for one in canaries)
    return [one for one in found if re.search(rf"(?<![\d.]){re.escape(one)}(?!\d)", text)]


def assert_kept_to_itself(folder: Path, canaries: Canaries, *said: str) -> None:
    """No secret in what was said, or in a text in the folder beside the manifest."""
    kinds = {".json", ".html", ".md", ".jinja"}
    texts = {p: p.read_text() for p in folder.rglob("*") if p.suffix in kinds}
    assert len(texts) > 4
    for path, text in texts.items():
        assert path.name == "canaries.json" or not secrets_in(text, canaries), path
    assert not secrets_in("\n".join(said), canaries)


# Smoke modes


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    started = Hub()
    yield started
    started.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def ran(folder: Path, hub: Hub) -> dict[str, Ran]:
    quiet = ["--disable_tqdm", "true", "--canary_seed", "3"]
    jobs = {
        "prepare": [PREPARE],
        "clm": [
            "run_clm_with_exposure.py",
            "--smoke",
            "--output_dir",
            "clm",
            *quiet,
            "--push_to_hub",
            "--hub_model_id",
            "me/clm",
        ],
        "sft": ["sft_with_exposure.py", "--smoke", "--output_dir", "sft", *quiet],
        "accelerate": [
            "accelerate_no_trainer.py",
            "--smoke",
            "--output_dir",
            "own",
            "--with_tracking",
            "--report_to",
            "tensorboard",
            "--canary_seed",
            "3",
        ],
        "tune": ["run_clm_with_exposure.py", "config.yaml"],
        "interrupt": [INTERRUPT],
        "tune again": [
            "run_clm_with_exposure.py",
            *(
                part
                for key, value in {**FINE_TUNE, "output_dir": "half"}.items()
                if key != "canary_seed"
                for part in (f"--{key}", *map(str, value if isinstance(value, list) else [value]))
            ),
        ],
        "scratch": [
            "run_clm_with_exposure.py",
            "--model_type",
            "gpt2",
            "--tokenizer_name",
            "tiny",
            "--config_overrides",
            "n_embd=16,n_layer=1,n_head=2,n_positions=64",
            "--train_file",
            "text.txt",
            "--max_train_samples",
            "60",
            "--do_train",
            "--canaries",
            "tuned/canaries.json",
            "--max_steps",
            "2",
            "--exposure_steps",
            "1",
            "--use_cpu",
            "true",
            "--output_dir",
            "scratch",
            *quiet[:2],
        ],
    }
    env = environment(hub.url, folder / "home")
    return dict(zip(jobs, together(folder, list(jobs.values()), env), strict=True))


@pytest.mark.slow
def test_fine_tuning_logs_exposures_and_leaves_a_report_and_a_manifest(
    ran: dict[str, Ran], folder: Path
) -> None:
    assert ran["tune"].code == 0, ran["tune"].err
    tuned = folder / "tuned"
    canaries = Canaries.load(tuned / "canaries.json")
    assert [one.repetitions for one in canaries] == [0, 0, 24, 24]
    assert canaries.insertion.mode == "rows"
    log = json.loads((tuned / "trainer_state.json").read_text())["log_history"]
    measured = [row for row in log if "eval_exposure" in row]
    assert [row["step"] for row in measured] == [4, 8]
    assert all(row["eval_exposure_x24"] > 0 and "eval_loss" in row for row in measured)
    results = json.loads((tuned / "eval_results.json").read_text())
    assert results["perplexity"] > 1 and "eval_exposure_x0" in results
    # Blocks of 64 tokens cut some of the copies in two; it is said how many.
    survived = json.loads((tuned / "injection.json").read_text())
    whole = sum(row["whole"] for row in survived["canaries"])
    assert 0 < whole < 48 and sum(row["cut"] for row in survived["canaries"]) > 0
    assert f"{whole} of 48 copies" in ran["tune"].out
    assert "a larger --block_size cuts fewer" in ran["tune"].out
    assert "<html" in (tuned / "report.html").read_text()
    card = (tuned / "README.md").read_text()
    assert "## Memorization" in card and "type: exposure" in card and "tiny" in card
    assert_kept_to_itself(tuned, canaries, ran["tune"].out, ran["tune"].err)


@pytest.mark.slow
def test_a_training_that_is_taken_up_again_keeps_its_canaries_and_history(
    ran: dict[str, Ran], folder: Path
) -> None:
    assert ran["tune again"].code == 0, ran["tune again"].err
    assert list(Canaries.load(folder / "half" / "canaries.json")) == list(
        Canaries.load(folder / "tuned" / "canaries.json")
    )
    through, again = (
        [
            (one.step, one.tokens, [(e.bits, e.log_perplexity) for e in one.exposures])
            for one in History.load(folder / name / "exposure_history.json")
        ]
        for name in ("tuned", "half")
    )
    np.testing.assert_equal(again, through)  # NaN, which masked figures may be, equals NaN
    logs = [
        json.loads((folder / name / "trainer_state.json").read_text())["log_history"]
        for name in ("tuned", "half")
    ]
    whole, half = (
        [(row["step"], row["eval_exposure"]) for row in log if "eval_loss" in row][:2]
        for log in logs
    )
    assert half == whole and [step for step, _ in half] == [4, 8]
    assert "## Memorization" in (folder / "half" / "README.md").read_text()


@pytest.mark.slow
def test_a_model_from_scratch_is_measured_every_so_many_steps(
    ran: dict[str, Ran], folder: Path
) -> None:
    assert ran["scratch"].code == 0, ran["scratch"].err
    history = History.load(folder / "scratch" / "exposure_history.json")
    assert [one.step for one in history] == [1, 2]
    config = json.loads((folder / "scratch" / "config.json").read_text())
    assert (config["model_type"], config["n_embd"], config["n_layer"]) == ("gpt2", 16, 1)
    same = [one.secret for one in Canaries.load(folder / "scratch" / "canaries.json")]
    assert same == [one.secret for one in Canaries.load(folder / "tuned" / "canaries.json")]


@pytest.mark.slow
def test_what_is_pushed_tells_of_exposures_and_holds_no_secret(
    ran: dict[str, Ran], folder: Path, hub: Hub
) -> None:
    assert ran["clm"].code == 0, ran["clm"].err
    canaries = Canaries.load(folder / "clm_canaries.json")
    files = hub.files("models", "me/clm")
    assert {"README.md", "model.safetensors", "report.html", "injection.json"} <= set(files)
    assert not [name for name in files if "canaries" in name]
    assert "## Memorization" in files["README.md"].decode()
    for name, data in files.items():
        assert name.endswith((".safetensors", ".bin")) or not secrets_in(data.decode(), canaries)
    last = History.load(folder / "clm" / "exposure_history.json")[-1].exposures.metrics()
    assert last["eval_exposure_x64"] > 8 > last["eval_exposure_x0"]
    assert_kept_to_itself(folder / "clm", canaries, ran["clm"].out, ran["clm"].err)


@pytest.mark.slow
def test_lora_on_conversations_gains_exposure_that_the_base_model_has_not(
    ran: dict[str, Ran], folder: Path
) -> None:
    assert ran["sft"].code == 0, ran["sft"].err
    canaries = Canaries.load(folder / "sft" / "canaries.json")
    assert canaries.insertion.chat and canaries.insertion.column == "messages"
    after, base = (
        Exposures.load(folder / "sft" / name, canaries)
        for name in ("exposures.json", "base_exposures.json")
    )
    gained = dict(zip((one.canary for one in after), after.gained(base), strict=True))
    often = [bits for canary, bits in gained.items() if canary.repetitions == 32]
    assert min(often) > 8 and "gained" in ran["sft"].out
    assert "72 of 72 copies of 6 canaries are whole" in ran["sft"].out
    assert "eval_exposure_x32" in ran["sft"].out
    assert (folder / "sft" / "adapter_model.safetensors").is_file()
    assert "## Memorization" in (folder / "sft" / "README.md").read_text()
    assert_kept_to_itself(folder / "sft", canaries, ran["sft"].out, ran["sft"].err)


@pytest.mark.slow
def test_a_loop_of_its_own_logs_to_a_tracker_what_the_callback_would(
    ran: dict[str, Ran], folder: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert ran["accelerate"].code == 0, ran["accelerate"].err
    own = folder / "own"
    canaries = Canaries.load(own / "canaries.json")
    history = History.load(own / "exposure_history.json", canaries)
    assert [one.epoch for one in history] == [1, 2]
    events = EventAccumulator(str(own / "clm_with_exposure")).Reload()
    # The history is masked, so what was logged is measured once more.
    settings = history[-1].exposures.settings
    again = measure_exposure(
        AutoModelForCausalLM.from_pretrained(own),
        AutoTokenizer.from_pretrained(own),
        canaries,
        max_forwards=settings["max_forwards"],
        seed=settings["seed"],
    )
    assert [e.bits for e in history[-1].exposures] == [e.bits for e in again.coarse()]
    for name, figure in again.coarse().metrics().items():
        logged = {event.step: event.value for event in events.Scalars(name)}
        assert list(logged) == [one.step for one in history]
        if name == "eval_exposure_runtime":
            figure = history[-1].exposures.metrics()[name]
        assert logged[history[-1].step] == pytest.approx(figure, rel=1e-5)
    assert history[-1].exposures.metrics()["eval_exposure_x32"] > 8
    assert (own / "report.html").is_file() and (own / "model.safetensors").is_file()
    assert_kept_to_itself(own, canaries, ran["accelerate"].out, ran["accelerate"].err)


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_train_one_model_and_share_its_measurement(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [EXAMPLES / "accelerate_no_trainer.py", "--smoke", "--output_dir", "out"]
    done = python([*launcher, *script], tmp_path, {"PYTHONPATH": str(EXAMPLES)})
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    # Two trainings beside each other would each say so, and measure each other's canaries.
    assert shown.count("processes: 2.") == 1 and shown.count("epoch 2: ") == 1
    last = History.load(tmp_path / "out" / "exposure_history.json")[-1].exposures
    assert last.settings["processes"] == 2
    assert last.metrics()["eval_exposure_x32"] > last.metrics()["eval_exposure_x0"] + 4


@pytest.mark.slow
def test_a_card_number_and_a_password_come_out_of_a_model_that_has_seen_them_often(
    tmp_path: Path,
) -> None:
    shown = run("extract_secrets.py", "--smoke", "--output_dir", "out", folder=tmp_path)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [entry["format"]["check"] for entry in found["formats"]] == ["luhn", None]
    for entry in found["formats"]:
        by_times = {row["inserted"]: row for row in entry["rows"]}
        # Whether a proof fits the small budget as well hangs on the vocabulary of the moment.
        assert by_times[32]["forwards"] < 5000 and by_times[32]["exposure"][1] > 40
        assert by_times[0]["forwards"] is None
    assert "•" in shown and (tmp_path / "out" / "queries.png").stat().st_size > 1000


@pytest.mark.slow
def test_an_audit_finds_what_training_has_added(tmp_path: Path) -> None:
    shown = run("audit_dataset.py", "--smoke", folder=tmp_path)
    assert "gained" in shown


# Flags


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """What scripts say to --help, and to what they cannot use."""
    place = tmp_path_factory.mktemp("flags")
    helps = {f"{name} --help": [name, "--help"] for name in SCRIPTS}
    wrong = {f"{name} {flags}": [name, *flags.split()] for name, flags, _ in WRONG}
    jobs = {**helps, "prepare": [PREPARE], **wrong}
    return dict(zip(jobs, together(place, list(jobs.values())), strict=True))


CLM, SFT, OWN = "run_clm_with_exposure.py", "sft_with_exposure.py", "accelerate_no_trainer.py"
TUNE = "--do_train --use_cpu true --model_name_or_path tiny --train_file text.txt"
CPU = "--use_cpu true --bf16 false"
WRONG = [
    (CLM, "--do_train --use_cpu true", "--dataset_name, --train_file: give one of them"),
    (CLM, "--model_name_or_path tiny --train_file text.txt", "--do_train, --do_eval: give"),
    (CLM, f"{TUNE} --train_file gone.txt", "--train_file: there is no file 'gone.txt'"),
    (CLM, f"{TUNE} --validation_file text.doc", "--validation_file: "),
    (CLM, f"{TUNE} --model_type gpt2", "--model_name_or_path, --model_type: give one"),
    (CLM, f"{TUNE} --model_name_or_path nobody/no-model", "--model_name_or_path: "),
    (CLM, f"{TUNE} --secret [0-9]+", "--template, --secret: SecretFormat"),
    (CLM, f"{TUNE} --repetitions 0 -1", "--repetitions, --per_repetition: "),
    (CLM, f"{TUNE} --canaries gone.json", "--canaries: "),
    (CLM, f"{TUNE} --block_size 1000", "--block_size: 1000 is not between 2 and 64"),
    (CLM, f"{TUNE} --max_train_samples 1 --repetitions 0 --block_size 64", "--block_size: "),
    (CLM, f"{TUNE} --validation_split_percentage 0", "--validation_split_percentage: "),
    (
        CLM,
        "--do_train --use_cpu true --train_file text.txt --model_type no --tokenizer_name tiny",
        "--model_type: 'no' is not known",
    ),
    (CLM, "--do_train --use_cpu true --train_file text.txt --model_type gpt2", "--tokenizer_name"),
    (CLM, "--no_such_flag 1", "--no_such_flag"),
    (CLM, "gone.yaml", "gone.yaml"),
    (SFT, f"{CPU}", "--dataset_name: give"),
    (SFT, f"{CPU} --dataset_name gone.jsonl", "--dataset_name: there is no"),
    (SFT, f"{CPU} --dataset_name chat.jsonl --column talk", "--column: 'talk'"),
    (SFT, f"{CPU} --dataset_name chat.jsonl", "--model_name_or_path: give"),
    (SFT, f"{CPU} --dataset_name chat.jsonl --model_name_or_path tiny", "has no chat template"),
    (SFT, "--smoke --template hello", "--template, --secret, --repetitions: SecretFormat"),
    (OWN, "--train_file text.txt", "--model_name_or_path: give"),
    (OWN, "--model_name_or_path tiny", "--dataset_name, --train_file: give one of them"),
    (OWN, "--model_name_or_path tiny --train_file gone.txt", "--train_file: there is no file"),
    (OWN, "--model_name_or_path nobody/no-model --train_file text.txt", "--model_name_or_path: "),
    (OWN, "--smoke --canaries gone.json", "--canaries: "),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_explains_its_flags(refused: dict[str, Ran], name: str) -> None:
    helped = refused[f"{name} --help"]
    assert helped.code == 0 and "usage" in helped.out and "--" in helped.out


@pytest.mark.slow
@pytest.mark.parametrize(("name", "flags", "said"), WRONG)
def test_bad_input_gets_one_line_that_names_the_flag(
    refused: dict[str, Ran], name: str, flags: str, said: str
) -> None:
    one = refused[f"{name} {flags}"]
    assert one.code != 0 and "Traceback" not in one.err
    last = one.err.strip().splitlines()[-1]
    assert said in last and len(last) < 400


def imports_of_ours(source: str) -> Iterator[str]:
    """What a script imports from the package: a public name, or the module's dotted one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.startswith("hf_exposure."))
        if isinstance(node, ast.ImportFrom) and node.module == "hf_exposure":
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and f"{node.module}".startswith("hf_exposure."):
            yield from (f"{node.module}.{one.name}" for one in node.names)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from hf_exposure import Canary, Canaries as C", ["Canary", "Canaries"]),
        ("import hf_exposure", []),
        ("import hf_exposure.tree.walk", ["hf_exposure.tree.walk"]),
        ("def f():\n    from hf_exposure.cli import app", ["hf_exposure.cli.app"]),
        ("from hf_exposures.cli import app", []),
    ],
)
def test_what_is_imported_of_the_package_is_seen(source: str, found: list[str]) -> None:
    assert list(imports_of_ours(source)) == found


def test_examples_experiments_and_model_cards_use_public_names_only() -> None:
    paths = [*EXAMPLES.rglob("*.py"), *(ROOT / "model_cards").rglob("*.py")]
    sources = {str(path.relative_to(ROOT)): path.read_text() for path in paths}
    assert len(sources) > 25
    del sources["examples/small_model.py"]  # what the command line's demo trains
    sources[NOTEBOOK.name] = "\n".join("".join(cell["source"]) for cell in cells("code"))
    public = {*hf_exposure.__all__}
    for name, source in sources.items():
        assert not [one for one in imports_of_ours(source) if one not in public], name


def test_the_index_names_every_example_and_how_to_run_it() -> None:
    index = (EXAMPLES / "README.md").read_text()
    scripts = {path.name for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text()}
    names = {*scripts, NOTEBOOK.name, "paper/run.py"}
    assert set(re.findall(r"\]\((\w[\w./]*)\)", index)) == names | {"small_model.py"}
    commands = re.findall(r"`(?:python|jupyter lab) examples/(\S+?)(?: [^`]*)?`", index)
    assert sorted(commands) == sorted(names)
    for command in re.findall(r"`python examples/([^`]+ -[^`]+)`", index):
        name, *flags = command.split()
        text = (EXAMPLES / name).read_text()
        assert all(f"{flag.removeprefix('--')}" in text for flag in flags if flag[:2] == "--")


# The notebook


def cells(kind: str) -> list[dict[str, Any]]:
    return [one for one in json.loads(NOTEBOOK.read_text())["cells"] if one["cell_type"] == kind]


def test_the_notebook_is_one_that_jupyter_reads() -> None:
    book = json.loads(NOTEBOOK.read_text())
    assert book["nbformat"] == 4 and book["nbformat_minor"] >= 5
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    names = [cell["id"] for cell in book["cells"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in names)
    for cell in book["cells"]:
        own = {"outputs", "execution_count"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"id", "cell_type", "metadata", "source", *own}
        assert all(isinstance(line, str) for line in cell["source"])
        assert all(line.endswith("\n") for line in cell["source"][:-1])
    for cell in cells("code"):
        for output in cell["outputs"]:
            wanted = {"stream": "text", "display_data": "data", "execute_result": "data"}
            assert wanted[output["output_type"]] in output
    counts = [cell["execution_count"] for cell in cells("code")]
    assert counts == [*range(1, len(counts) + 1)]  # it was run from top to bottom


def notebook_as_script() -> str:
    """The cells' code; what a cell ends with is displayed, as in Jupyter, unless ";" follows."""
    lines = ["from IPython_display import display"]
    for cell in cells("code"):
        source = "".join(cell["source"])
        tree = ast.parse(source)
        last = tree.body[-1]
        if isinstance(last, ast.Expr) and not source.rstrip().endswith(";"):
            tree.body[-1] = ast.parse(f"display({ast.unparse(last.value)})").body[0]
        lines.append(ast.unparse(tree))
    return "\n".join(lines)


DISPLAY = """
def display(*values):
    for value in values:
        print("SHOWN", value._repr_html_() if hasattr(value, "_repr_html_") else value)
"""
ASK = """
import json
from matplotlib import pyplot
lines = [line for axes in pyplot.gcf().axes for line in axes.get_lines()]
print("FOUND", json.dumps({
    "secrets": [one.secret for one in canaries],
    "bits": [[one.canary.repetitions, one.bits] for one in exposures],
    "came_out": [one.place for one in found if one.place is not None],
    "steps": [one.step for one in callback.history],
    "lines": len(lines),
}))
"""


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    (tmp_path / "IPython_display.py").write_text(DISPLAY)
    script, cut = re.subn(r"(?<=paragraphs\(\)\[:)600", "300", notebook_as_script())
    assert cut == 1  # half of its text will do
    (tmp_path / "notebook.py").write_text(script + ASK)
    shown = run(str(tmp_path / "notebook.py"), folder=tmp_path)
    *said, found = shown.strip().splitlines()
    out = json.loads(found.removeprefix("FOUND "))
    # What it tells of in words.
    often = [bits for times, bits in out["bits"] if times == 64]
    never = [bits for times, bits in out["bits"] if times == 0]
    assert min(often) > 20 and max(never) < 10
    places = {place for place, (times, _) in enumerate(out["bits"]) if times == 64}
    assert set(out["came_out"]) >= places
    assert len(out["steps"]) == 6 and out["lines"] >= 6
    tables = [line for line in said if line.startswith("SHOWN <table>")]
    assert len(tables) == 2 and "exposure" in tables[0] and "proved" in tables[1]
    text = "\n".join(said) + NOTEBOOK.read_text()
    assert not [one for one in out["secrets"] if one in text]


if __name__ == "__main__":
    jobs = Path(sys.argv[1])
    os.chdir(jobs.parent)
    sys.path.insert(0, str(EXAMPLES))  # as for a script that is called by its path
    done = [asdict(call(job)) for job in json.loads(jobs.read_text())]
    (jobs.parent / "ran.json").write_text(json.dumps(done))
