"""How a measurement runs on a GPU: figures, speed, memory, and what the host adds to the forwards.

Needs PyTorch, transformers, SciPy, outlines-core, lazy-loader and this checkout, which need not be
installed. Parts:

- host: the time outside the forwards of a model that costs next to nothing, which a fast GPU would
  wait for;
- demo: a small model is trained on the CPU and measured on the CPU and on the GPU;
- sizes: random Llamas of 135 M, 1.5 B and 8 B parameters with a vocabulary of 128,000 in bfloat16:
  token-forwards a second, rows that fit, peak memory, share of the time outside the model;
- eight-bit: the smallest of them in 8 bits, where bitsandbytes is installed;
- spread: the same model over all GPUs, by DDP, FSDP2 and `device_map="auto"`; with FSDP2 the
  weights that a checkpoint would hold are compared before and after the measurement.

    python benchmarks/gpu.py                      # all that this machine can run
    python benchmarks/gpu.py --only host demo
    python benchmarks/gpu.py --smoke --json FILE  # in seconds, on the CPU
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

try:
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hf_exposure import Canaries, SecretFormat, measure_exposure
    from hf_exposure.cli.small import paragraphs, small_llama, train_tokenizer
    from hf_exposure.exposure.measure import measure_plan
    from hf_exposure.exposure.planning import Settings, plan_measurement
    from hf_exposure.exposure.records import by_repetitions, mean_bits
    from hf_exposure.models.decoder import Decoder
    from hf_exposure.models.digest import weights_digest
    from hf_exposure.tree.explorer import Explorer
    from hf_exposure.tree.frontier import CheapestFirst, DepthFirst, Frontier
    from hf_exposure.tree.tokens import TokenTree
    from hf_exposure.tree.walk import walk
except ModuleNotFoundError as error:
    sys.exit(f"gpu.py needs {error.name}: python -m pip install {(error.name or '').split('.')[0]}")

FORMAT = SecretFormat("The random number is {secret}.", secret=r"[0-9]{9}")
VOCABULARY = 128_000
MODELS = {  # width, layers, heads, key-value heads, inner width
    "135 M": (576, 30, 9, 3, 1536),
    "1.5 B": (1536, 28, 12, 2, 8960),
    "8 B": (4096, 32, 32, 8, 14336),
}
SMALL = {"tiny": (64, 2, 4, 4, 128)}
Row = dict[str, Any]


class _NoCache:
    """The cache of a model that looks at one token only."""

    def reorder_cache(self, rows: torch.Tensor) -> None:
        """Nothing to put in another order."""


class Bigrams(torch.nn.Module):
    """A model whose forward is one look into a table: what comes next depends on the last token."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        table = torch.randn(vocabulary, vocabulary, generator=generator)
        self.table = torch.nn.Parameter(table, requires_grad=False)
        self.config = SimpleNamespace(vocab_size=vocabulary, is_encoder_decoder=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        past_key_values: Any = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> SimpleNamespace:
        logits = self.table[input_ids[:, -logits_to_keep:]]
        return SimpleNamespace(logits=logits, past_key_values=_NoCache() if use_cache else None)


class Stopwatch:
    """The time that a model's forwards take, to their end on the device, and how many they are.

    On the CPU it is the processor's time of this process, which a busy machine does not change.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.cuda = next(model.parameters()).device.type == "cuda"
        self.inside, self.calls = 0.0, 0
        self._began = self._before = 0.0
        self._hooks = [
            model.register_forward_pre_hook(lambda *_: self._enter()),
            model.register_forward_hook(lambda *_: self._leave()),
        ]

    def _now(self) -> float:
        if not self.cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def _enter(self) -> None:
        self._before = self._now()

    def _leave(self) -> None:
        self.inside += self._now() - self._before
        self.calls += 1

    def __enter__(self) -> Stopwatch:
        self.inside, self.calls = 0.0, 0
        self._began = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self.total = self._now() - self._began
        for hook in self._hooks:
            hook.remove()

    @property
    def outside(self) -> float:
        return self.total - self.inside


def random_llama(shape: tuple[int, ...], device: str, vocabulary: int) -> LlamaForCausalLM:
    """A Llama of random weights in bfloat16, made where it will run."""
    width, layers, heads, shared, inner = shape
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        intermediate_size=inner,
        max_position_embeddings=2048,
        tie_word_embeddings=layers == 30,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def canaries_of(size: Size) -> Canaries:
    """The canaries of every part."""
    return Canaries.generate(FORMAT, repetitions=[0, 1, 4, 16], per_repetition=size.each, seed=1)


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done."""

    each: int = 8  # canaries of a group
    samples: int = 2000
    rows: int = 40_000  # of the walks with the model that costs nothing
    vocabulary: int = VOCABULARY
    lines: int | None = None  # of the demo's text
    epochs: int = 4
    most: int = 8192  # rows of a forward that are tried
    models: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=lambda: MODELS)


SMOKE = Size(2, 50, 2_000, 1_000, 60, 1, 64, SMALL)


# The parts


def host(size: Size, device: str) -> list[Row]:
    """Microseconds of a row outside the forwards: of two walks, and of a measurement."""
    tokenizer = train_tokenizer(paragraphs()[:200], 600)
    model = Bigrams(len(tokenizer)).eval().to(device)
    tree = TokenTree(FORMAT, tokenizer)
    rows = []

    def told(name: str, forwards: int, watch: Stopwatch) -> Row:
        row = {"what": name, "token-forwards": forwards, "forwards": watch.calls}
        row["rows of a forward"] = round(forwards / watch.calls)
        row["µs outside, a row"] = round(watch.outside / forwards * 1e6, 1)
        return row

    orders: dict[str, Frontier] = {
        "walk, depth first": DepthFirst(),
        "walk, cheapest first": CheapestFirst(),
    }
    for name, frontier in orders.items():
        decoder = Decoder(model, tree.prompt, tree.token_ids)
        decoder.probe([np.zeros(4, dtype=np.int64)])
        begun = decoder.forwards
        with Stopwatch(model) as watch, torch.inference_mode():
            explorer = Explorer(propose=isinstance(frontier, CheapestFirst))
            walk(decoder, tree, explorer, frontier, max_forwards=begun + size.rows)
        rows.append(told(name, decoder.forwards - begun, watch))
    plan = plan_measurement(tokenizer, canaries_of(size))  # made once in a training
    settings = Settings("auto", size.samples, None, 0.95, 0, None, None)
    with Stopwatch(model) as watch:
        found = measure_plan(model, plan, settings)
    return [*rows, told('a measurement by "auto"', found.forwards, watch)]


def demo(size: Size, device: str) -> list[Row]:
    """The exposures of one trained model on the CPU and on the device."""
    lines = paragraphs()[: size.lines]
    canaries = canaries_of(size)
    texts = [one.text for one in canaries for _ in range(one.repetitions)]
    order = np.random.default_rng(0).permutation(len(lines) + len(texts))
    lines = [[*lines, *texts][place] for place in order]
    tokenizer = train_tokenizer(lines)
    model = small_llama(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(size.epochs):
        for at in range(0, len(lines), 16):
            batch = tokenizer(
                lines[at : at + 16], padding=True, truncation=True, max_length=128,
                return_tensors="pt",
            )  # fmt: skip
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            model(**batch, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    rows, figures = [], []
    for where in dict.fromkeys(["cpu", device]):
        model.to(where).eval()
        begun = time.perf_counter()
        found = measure_exposure(model, tokenizer, canaries, samples=size.samples)
        seconds = time.perf_counter() - begun
        figures.append(np.array([one.log_perplexity for one in found]))
        row = {"device": where, "seconds": round(seconds, 2), "token-forwards": found.forwards}
        means = {times: mean_bits(group) for times, group in by_repetitions(found).items()}
        row |= {f"x{times}": round(bits, 2) for times, bits in means.items()}
        row["log-perplexities apart by, bits"] = float(np.abs(figures[-1] - figures[0]).max())
        rows.append(row)
    return rows


def speed(name: str, model: Any, size: Size, device: str) -> Row:
    """What a measurement of this model takes."""
    tokenizer = train_tokenizer(paragraphs()[:200], 600)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with Stopwatch(model) as watch:
        found = measure_exposure(model, tokenizer, canaries_of(size), samples=size.samples)
    row = {"model": name, "parameters": sum(one.numel() for one in model.parameters())}
    row["token-forwards a second"] = round(found.forwards / watch.total)
    row["share outside the model"] = round(watch.outside / watch.total, 3)
    if device == "cuda":
        row["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    row["rows that fit"] = _rows_that_fit(model, tokenizer, size.most)
    return row


def _rows_that_fit(model: Any, tokenizer: Any, most: int) -> int:
    """Rows of one forward onto a cache, tried in powers of two."""
    tree = TokenTree(FORMAT, tokenizer)
    rows = most
    decoder = Decoder(model, tree.prompt, tree.token_ids, batch_size=most)
    with torch.inference_mode():
        for _, made in decoder.step(
            decoder.root(), np.zeros(most, dtype=np.int64), np.zeros(most, dtype=np.int64)
        ):
            rows = min(rows, len(made.paths))
            break
    return rows


def sizes(size: Size, device: str) -> list[Row]:
    """Random models, the largest last, as far as they fit."""
    rows = []
    for name, shape in size.models.items():
        try:
            model = random_llama(shape, device, size.vocabulary)
            rows.append(speed(name, model, size, device))
        except torch.OutOfMemoryError:
            rows.append({"model": name, "parameters": "does not fit"})
        model = None
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


def eight_bit(size: Size, device: str) -> list[Row]:
    """The smallest model in 8 bits."""
    if device != "cuda":
        return [{"8 bits": "not run: needs a GPU"}]
    try:
        import bitsandbytes  # noqa: F401
        from transformers import BitsAndBytesConfig
    except ImportError as error:
        return [{"8 bits": f"not run: {error}"}]
    import tempfile

    name, shape = next(iter(size.models.items()))
    with tempfile.TemporaryDirectory() as folder:
        random_llama(shape, device, size.vocabulary).save_pretrained(folder)
        model = LlamaForCausalLM.from_pretrained(
            folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map=device
        )
        return [speed(f"{name} in 8 bits", model, size, device)]


def spread(size: Size, device: str) -> list[Row]:
    """One model over several devices; on the CPU, over two processes."""
    count = torch.cuda.device_count() if device == "cuda" else 2
    if count < 2:
        return [{"way": "not run: needs two GPUs"}]
    rows: list[Row] = []
    for way in ("ddp", "fsdp"):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={count}", __file__, "--worker", way,
        ]  # fmt: skip
        command += ["--smoke"] if size == SMOKE else []
        done = subprocess.run(command, capture_output=True, text=True)
        told = [line for line in done.stdout.splitlines() if line.startswith('{"way"')]
        rows.append(json.loads(told[0]) if told else {"way": way, "failed": done.stderr[-500:]})
    if device == "cuda":
        from accelerate import dispatch_model, infer_auto_device_map
        from accelerate.utils import get_balanced_memory

        name, shape = list(size.models.items())[-1]
        model = random_llama(shape, "cpu", size.vocabulary)
        memory = get_balanced_memory(model, no_split_module_classes=["LlamaDecoderLayer"])
        places = infer_auto_device_map(model, memory, no_split_module_classes=["LlamaDecoderLayer"])
        rows.append(
            {"way": "device_map", **speed(name, dispatch_model(model, places), size, device)}
        )
    return rows


def worker(way: str, size: Size, device: str) -> None:
    """One process of `spread`: the first prints what came out."""
    import torch.distributed as dist
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device == "cpu")
    number, count = accelerator.process_index, accelerator.num_processes
    where = f"cuda:{number}" if device == "cuda" else "cpu"
    shape = list(size.models.values())[min(1, len(size.models) - 1)]
    model: Any = random_llama(shape, where, size.vocabulary)
    alone = weights_digest(model)
    if way == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device, (count,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    tokenizer = train_tokenizer(paragraphs()[:200], 600)
    dist.barrier()
    begun = time.perf_counter()
    found = measure_exposure(
        model, tokenizer, canaries_of(size), samples=size.samples, accelerator=accelerator
    )
    seconds = time.perf_counter() - begun
    row = {"way": way, "processes": count}
    row["token-forwards a second"] = round(found.forwards / seconds)
    row["checkpoint unchanged"] = weights_digest(getattr(model, "module", model)) == alone
    if device == "cuda":
        row["peak GiB of a process"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    if number == 0:
        print(json.dumps(row), flush=True)
    dist.barrier()
    dist.destroy_process_group()


PARTS: dict[str, Callable[[Size, str], list[Row]]] = {
    "host": host,
    "demo": demo,
    "sizes": sizes,
    "eight-bit": eight_bit,
    "spread": spread,
}


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    for row in rows:
        cells = (_cell(row.get(name, "")) for name in names)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, help="all, without `spread` in a smoke")
    parser.add_argument("--smoke", action="store_true", help="small, on the CPU")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--worker", choices=("ddp", "fsdp"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = SMOKE if given.smoke else Size()
    device = "cuda" if torch.cuda.is_available() and not given.smoke else "cpu"
    if given.worker:
        worker(given.worker, size, device)
        return
    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, one thread"
    print(f"PyTorch {torch.__version__}, {name}\n", flush=True)
    figures = {}
    usual = [part for part in PARTS if part != "spread" or not given.smoke]
    for part in given.only or usual:
        if part == "sizes" and device == "cpu" and not given.smoke:
            rows = [{"model": "not run: needs a GPU"}]
        else:
            rows = PARTS[part](size, device)
        figures[part] = rows
        print(
            f"{part}: {(PARTS[part].__doc__ or '').splitlines()[0]}\n\n{table(rows)}\n", flush=True
        )
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
