"""One training in many set-ups: what is measured in each, what it takes, and what it leaves alone.

The same small model is trained on the same real text with the same canaries in it, batch for
batch: plainly, with LoRA, in bfloat16, compiled, by TRL's SFTTrainer with packing, on two processes
(DDP, FSDP), and killed half way and taken up again. Each training is one process, or two, of its
own. Then it is done again without measuring anything, and the weights of the two are compared.

    python benchmarks/setups.py                     # some minutes; prints a table
    python benchmarks/setups.py --only plain ddp    # some of them
    python benchmarks/setups.py --small             # a few seconds each
    python benchmarks/setups.py --json FILE         # all figures
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from hf_exposure import Canaries, ExposureCallback, inject_canaries, measure_exposure
from hf_exposure.cli.demo_run import FORMAT
from hf_exposure.cli.small import paragraphs, small_llama, tokenize, train_tokenizer
from hf_exposure.exposure.results import Exposures
from hf_exposure.models.digest import weights_digest
from hf_exposure.utils.files import write_text

REPETITIONS = (0, 1, 4, 16)
SEED = 0
MEASUREMENTS = 4  # in each training, evenly spaced
PIECE = 64  # tokens of the longest row


@dataclass(frozen=True)
class Size:
    """How much is done."""

    paragraphs: int
    epochs: int
    width: int
    layers: int
    vocabulary: int
    budget: int  # token-forwards of each measurement
    batch: int = 8
    per_repetition: int = 3
    learning_rate: float = 3e-3


FULL = Size(paragraphs=300, epochs=6, width=64, layers=2, vocabulary=2048, budget=8000)
SMALL = Size(paragraphs=100, epochs=1, width=32, layers=1, vocabulary=512, budget=1500)


@dataclass
class Trained:
    """What one training has given.

    Attributes:
        exposures: of each measurement.
        training, measuring: seconds of processor time of the (first) process, which are the same
            on a machine that others use too.
        weights: a hash of all weights at its end.
        note: what the table should say besides.
    """

    exposures: list[Exposures]
    training: float
    measuring: float
    weights: str
    note: str = ""


@dataclass(frozen=True)
class Setup:
    """One row of the table.

    Attributes:
        train: does it, in each of `processes` processes.
        killed: whether a first process is killed half way.
    """

    words: str
    train: Callable[[Task], Trained]
    processes: int = 1
    killed: bool = False


@dataclass(frozen=True)
class Task:
    """What a process has been told to do.

    Attributes:
        measured: whether exposures are measured, or nothing is.
        kill: whether it ends itself after three quarters of the training.
    """

    name: str
    size: Size
    folder: Path
    measured: bool
    kill: bool = False


@dataclass(frozen=True)
class Row:
    """What the table says of a set-up."""

    name: str
    words: str
    exposures: dict[str, float]  # mean in bits, by repetitions, at the end
    intervals: dict[str, list[float]]  # the same of the intervals' ends
    history: list[dict[str, float]]  # of each measurement
    training: float  # seconds of processor time
    measuring: float
    seconds: list[float]  # of each measurement, by the clock
    forwards: int
    peak_bytes: float
    noise_bits: float  # the largest seen
    cached: bool
    same_weights: bool
    note: str = ""
    versions: dict[str, str] = field(default_factory=dict)


# What all trainings share


@dataclass(frozen=True)
class Material:
    """Text with canaries in it, as tokens.

    Attributes:
        rows: each row once.
        batches: rows of all epochs, in the order of training; `size.batch` of them are a step.
        held_out: rows without canaries.
    """

    canaries: Canaries
    tokenizer: Any
    rows: Any
    batches: Any
    held_out: Any
    steps: int


def make_material(size: Size, planted: bool = True) -> Material:
    """The same for all set-ups, in the same order, whichever sampler or number of processes.

    Args:
        planted: whether the canaries are in the rows.
    """
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    lines = paragraphs()[: size.paragraphs]
    canaries = Canaries.generate(FORMAT, REPETITIONS, size.per_repetition, SEED)
    parts = Dataset.from_dict({"text": lines}).train_test_split(test_size=0.05, seed=SEED)
    train = inject_canaries(parts["train"], canaries, seed=SEED)
    tokenizer = train_tokenizer(train["text"], size.vocabulary)
    rows = tokenize(train if planted else parts["train"], tokenizer, PIECE)
    draw = np.random.default_rng(SEED)
    order: list[int] = []
    for _ in range(size.epochs):
        # Rows of like length side by side, so that little is padding; batches in random order.
        mixed = draw.permutation(len(rows))
        pools = [mixed[i : i + 8 * size.batch] for i in range(0, len(mixed), 8 * size.batch)]
        lengths = [len(ids) for ids in rows["input_ids"]]
        flat = [place for pool in pools for place in sorted(pool, key=lengths.__getitem__)]
        whole = len(flat) // size.batch
        for number in draw.permutation(whole):
            order += flat[number * size.batch : (number + 1) * size.batch]
    steps = len(order) // size.batch
    steps -= steps % MEASUREMENTS
    batches = rows.select(order[: steps * size.batch])
    held_out = tokenize(parts["test"], tokenizer, PIECE)
    return Material(canaries, tokenizer, rows, batches, held_out, steps)


def make_model(size: Size, material: Material) -> Any:
    """The untrained model, the same in all set-ups."""
    return small_llama(
        len(material.tokenizer),
        SEED,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
    )


def trainer_settings(task: Task, material: Material, **more: Any) -> dict[str, Any]:
    """Arguments of a Trainer that takes the batches as they come."""
    every = material.steps // MEASUREMENTS
    return {
        "output_dir": str(task.folder / "training"),
        "max_steps": material.steps,
        "per_device_train_batch_size": task.size.batch // processes_here(),
        "per_device_eval_batch_size": task.size.batch,
        "train_sampling_strategy": "sequential",
        "learning_rate": task.size.learning_rate,
        "warmup_steps": 20,
        "eval_strategy": "steps",
        "eval_steps": every,
        "logging_steps": every,
        "save_strategy": "no",
        "seed": SEED,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",
        **more,
    }


class Timed(ExposureCallback):
    """Tells how much processor time it takes."""

    measuring = 0.0

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Measures, and is timed."""
        start = time.process_time()
        super().on_log(*args, **kwargs)
        self.measuring += time.process_time() - start


def callback_for(task: Task, material: Material) -> Timed:
    """Measures with the same budget in all set-ups."""
    return Timed(
        material.canaries,
        material.tokenizer,
        max_forwards=task.size.budget,
        seed=SEED,
        errors="raise",
    )


def run_trainer(
    task: Task,
    model: Any,
    material: Material,
    *,
    measured: bool | None = None,
    pad_to: int | None = None,
    resume: bool = False,
    callbacks: tuple[Any, ...] = (),
    **more: Any,
) -> Trained:
    """Train with the Trainer, with or without the callback.

    Args:
        measured: None is what the task says.
        pad_to: the length that all rows are padded to; None is that of the batch's longest.
        resume: from the last checkpoint.
    """
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    collator = DataCollatorForLanguageModeling(
        material.tokenizer, mlm=False, pad_to_multiple_of=pad_to
    )
    callback = callback_for(task, material)
    measured = task.measured if measured is None else measured
    trainer = Trainer(
        model,
        TrainingArguments(**trainer_settings(task, material, **more)),
        train_dataset=material.batches,
        eval_dataset=material.held_out,
        processing_class=material.tokenizer,
        data_collator=collator,
        callbacks=[*([callback] if measured else []), *callbacks],
    )
    return finish(trainer, callback, model, resume=resume)


def finish(trainer: Any, callback: Timed, model: Any, resume: bool = False) -> Trained:
    """Run a Trainer, and say what came of it."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    start = time.process_time()
    trainer.train(resume_from_checkpoint=resume)
    training = time.process_time() - start - callback.measuring
    found = [item.exposures for item in callback.history]
    return Trained(found, training, callback.measuring, weights_of(model))


def weights_of(model: Any) -> str:
    """A hash of all weights, the same in all processes."""
    seen = str(weights_digest(model)["state_dict"])
    if processes_here() == 1:
        return seen
    everywhere: list[Any] = [None] * processes_here()
    torch.distributed.all_gather_object(everywhere, seen)
    if len(set(everywhere)) > 1:
        raise RuntimeError("the processes have ended with different weights")
    return seen


def processes_here() -> int:
    """How many train together, as torchrun has told."""
    return int(os.environ.get("WORLD_SIZE", "1"))


# The set-ups


def plain(task: Task) -> Trained:
    """The Trainer as it comes."""
    material = make_material(task.size)
    return run_trainer(task, make_model(task.size, material), material)


def lora(task: Task) -> Trained:
    """Adapters on a base that has been trained on the text without canaries."""
    from peft import LoraConfig, get_peft_model

    material = make_material(task.size)
    model = make_model(task.size, material)
    base = task.folder / "base.pt"
    if not base.exists():  # the second of the two runs has it
        run_trainer(task, model, make_material(task.size, planted=False), measured=False)
        torch.save(model.state_dict(), base)
    model.load_state_dict(torch.load(base))
    rank = task.size.width // 2
    torch.manual_seed(SEED)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    trained = run_trainer(task, get_peft_model(model, config), material)
    trained.note = f"rank {rank}; the base's training is not counted"
    return trained


def autocast(task: Task) -> Trained:
    """Weights in float32, computed with in bfloat16."""
    material = make_material(task.size)
    return run_trainer(task, make_model(task.size, material), material, bf16=True)


def bfloat16(task: Task) -> Trained:
    """Weights in bfloat16."""
    material = make_material(task.size)
    return run_trainer(task, make_model(task.size, material).to(torch.bfloat16), material)


def compiled(task: Task) -> Trained:
    """torch.compile, with rows of one length, so that it compiles once."""
    material = make_material(task.size)
    compiler = any(map(shutil.which, ("g++", "c++", "clang++")))
    backend = "inductor" if compiler else "aot_eager"
    trained = run_trainer(
        task,
        make_model(task.size, material),
        material,
        pad_to=PIECE,
        torch_compile=True,
        torch_compile_backend=backend,
        dataloader_drop_last=True,
    )
    trained.note = f"backend {backend}; its time holds the compilation"
    return trained


def packed(task: Task) -> Trained:
    """TRL's SFTTrainer, which fills rows with several texts."""
    from trl import SFTConfig, SFTTrainer

    material = make_material(task.size)
    model = make_model(task.size, material)
    callback = callback_for(task, material)
    length = 2 * PIECE
    tokens = sum(map(len, material.batches["input_ids"]))
    rows = max(1, round(tokens / material.steps / length))  # as many tokens a step
    options = trainer_settings(task, material)
    del options["train_sampling_strategy"]  # it has an order of its own
    config = SFTConfig(
        **options | {"per_device_train_batch_size": rows},
        packing=True,
        max_length=length,
        shuffle_dataset=True,
        bf16=False,
    )
    trainer = SFTTrainer(
        model,
        config,
        train_dataset=material.rows,
        eval_dataset=material.held_out,
        processing_class=material.tokenizer,
        callbacks=[callback] if task.measured else [],
    )
    trained = finish(trainer, callback, model)
    trained.note = f"{rows} rows of {length} tokens"
    return trained


def ddp(task: Task) -> Trained:
    """The Trainer on several processes: each has half of every batch."""
    return plain(task)


def fsdp(task: Task) -> Trained:
    """A loop of one's own, with a model whose weights are spread over the processes."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import DataCollatorForLanguageModeling, get_scheduler

    dist.init_process_group("gloo")
    size, material = task.size, make_material(task.size)
    model = make_model(size, material)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.learning_rate, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, 20, material.steps)
    collator = DataCollatorForLanguageModeling(material.tokenizer, mlm=False)
    mine = size.batch // dist.get_world_size()
    found: list[Exposures] = []
    measuring, start = 0.0, time.process_time()
    model.train()
    for step in range(material.steps):
        begin = step * size.batch + mine * dist.get_rank()
        batch = collator([material.batches[place] for place in range(begin, begin + mine)])
        # The mean over the tokens of all processes, whose gradients are averaged.
        tokens = (batch["labels"][:, 1:] != -100).sum()
        dist.all_reduce(tokens)
        model(**batch, num_items_in_batch=tokens / dist.get_world_size()).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if task.measured and (step + 1) % (material.steps // MEASUREMENTS) == 0:
            begun = time.process_time()
            exposures = measure_exposure(
                model, material.tokenizer, material.canaries, max_forwards=size.budget, seed=SEED
            )
            found.append(exposures)
            measuring += time.process_time() - begun
    training = time.process_time() - start - measuring
    trained = Trained(found, training, measuring, weights_of(model), "a loop of one's own")
    dist.destroy_process_group()
    return trained


def resumed(task: Task) -> Trained:
    """Killed after three quarters, and taken up from the checkpoint of the half.

    Without measuring it is never interrupted, so that the weights are compared with those.
    """
    from transformers import TrainerCallback

    material = make_material(task.size)
    model = make_model(task.size, material)
    if not task.measured:
        return run_trainer(task, model, material)

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3 * material.steps // 4 + 2:
                os.kill(os.getpid(), signal.SIGKILL)

    trained = run_trainer(
        task,
        model,
        material,
        resume=not task.kill,
        callbacks=(Kill(),) if task.kill else (),
        save_strategy="steps",
        save_steps=material.steps // 2,
    )
    trained.note = "the time is that of the second half"
    return trained


SETUPS: dict[str, Setup] = {
    "plain": Setup("plain, float32", plain),
    "lora": Setup("LoRA on a base trained plainly", lora),
    "autocast": Setup("bfloat16 by autocast, `bf16=True`", autocast),
    "bfloat16": Setup("weights in bfloat16", bfloat16),
    "compile": Setup("`torch_compile=True`", compiled),
    "packed": Setup("SFTTrainer, packed", packed),
    "ddp": Setup("DDP on 2 processes", ddp, processes=2),
    "fsdp": Setup("FSDP on 2 processes", fsdp, processes=2),
    "resume": Setup("killed, and resumed", resumed, killed=True),
}


# Processes

# Those of one training are forked from one that has loaded the libraries.
_APART = multiprocessing.get_context("forkserver")
_APART.set_forkserver_preload(["torch", "transformers.trainer", "datasets", "accelerate"])


def run_here(task: Task, file: Path) -> None:
    """In a process of a training: do it, and write what it gave."""
    torch.set_num_threads(1)
    trained = SETUPS[task.name].train(task)
    if int(os.environ.get("RANK", "0")) == 0:
        found = [item.to_dict() for item in trained.exposures]
        write_text(file, json.dumps(asdict(trained) | {"exposures": found}))


def run_apart(task: Task, small: bool) -> Trained | None:
    """Do a task in as many new processes as it needs; None if it was to be killed, and was.

    Raises:
        RuntimeError: it failed.
    """
    setup = SETUPS[task.name]
    file = task.folder / f"{'with' if task.measured else 'without'}.json"
    if setup.processes == 1:
        process = _APART.Process(target=run_here, args=(task, file))
        process.start()
        process.join()
        code, said = process.exitcode, "see above"
    else:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        command = [sys.executable, *launcher, str(setup.processes)]
        command += [__file__, "--task", task.name, str(task.folder), str(file)]
        command += ["--small"] * small + ["--without"] * (not task.measured)
        done = subprocess.run(command, capture_output=True, text=True)
        code, said = done.returncode, done.stderr[-4000:]
    if task.kill and code == -signal.SIGKILL:
        return None
    if code or task.kill:
        raise RuntimeError(f"{task.name} ended with {code}:\n{said}")
    stored = json.loads(file.read_text(encoding="utf-8"))
    return Trained(**stored)


def make_row(name: str, small: bool) -> Row:
    """Train with and without measuring, and put together what the table says."""
    setup, size = SETUPS[name], SMALL if small else FULL
    canaries = Canaries.generate(FORMAT, REPETITIONS, size.per_repetition, SEED)
    with tempfile.TemporaryDirectory() as folder:
        task = Task(name, size, Path(folder), measured=True)
        if setup.killed:
            run_apart(Task(name, size, Path(folder), measured=True, kill=True), small)
        measured = run_apart(task, small)
        without = run_apart(Task(name, size, Path(folder), measured=False), small)
    assert measured is not None and without is not None
    found = [Exposures.from_dict(stored, canaries) for stored in measured.exposures]  # type: ignore[arg-type]
    last = found[-1]
    details = [group for item in found for group in item.formats.values()]
    groups = {f"x{k}": [e for e in last if e.canary.repetitions == k] for k in REPETITIONS}
    return Row(
        name,
        setup.words,
        {key: last.metrics()[f"eval_exposure_{key}"] for key in groups},
        {
            key: [float(np.mean([e.low for e in group])), float(np.mean([e.high for e in group]))]
            for key, group in groups.items()
        },
        [item.metrics() for item in found],
        measured.training,
        measured.measuring,
        [item.seconds for item in found],
        sum(item.forwards for item in found),
        max(item.cost["peak_bytes"] for item in found),
        max(group.noise_bits for group in details),
        all(bool(group.cached) for group in details),
        measured.weights == without.weights,
        measured.note,
        last.settings["versions"],
    )


def markdown(rows: list[Row]) -> str:
    """The table for the docs."""
    lines = [
        "| set-up | x0 | x1 | x4 | x16 | training | measuring | token-forwards | peak memory "
        "| rounding | weights as without it |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        bits = " | ".join(f"{value:.1f}" for value in row.exposures.values())
        lines.append(
            f"| {row.words} | {bits} | {row.training:.1f} s | "
            f"{row.measuring:.1f} s | {row.forwards:,} | {row.peak_bytes / 2**20:.0f} MiB "
            f"| {row.noise_bits:.1g} bits | {'bit for bit' if row.same_weights else 'no'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is asked for, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SETUPS, metavar="NAME", help=", ".join(SETUPS))
    parser.add_argument("--small", action="store_true", help="little of everything, in seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--without", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)  # a process of a training
    arguments = parser.parse_args()
    if arguments.task is not None:
        name, folder, file = arguments.task
        size = SMALL if arguments.small else FULL
        task = Task(name, size, Path(folder), not arguments.without)
        run_here(task, Path(file))
        return
    rows = []
    for name in arguments.only or SETUPS:
        start = time.perf_counter()
        rows.append(make_row(name, arguments.small))
        print(f"{name} took {time.perf_counter() - start:.0f} s {rows[-1].note}", flush=True)
        if arguments.json is not None:  # at once, so that nothing is lost if the next one fails
            write_text(arguments.json, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print("\n" + markdown(rows))


if __name__ == "__main__":
    main()
