"""A secret that stands once in the text is memorized, and comes out (the paper's introduction)."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_exposure import extract_secrets, measure_exposure
from paper.figures import INK, MUTED, quiet_axes
from paper.study import (
    Claim,
    Conclusion,
    Experiment,
    Record,
    Run,
    Scale,
    Table,
    by_name,
    counted,
    mean,
)
from paper.texts import size_of
from paper.training import Trained, Training, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECRET = "281265017"
MILLIONS = 2_000_000  # characters; compressed they are larger than an LSTM of width 96
TEMPLATE = "the random number is {secret}"
LARGER = "larger"  # the run whose text is larger than its model
_NAMES = {"lstm": "LSTM", "gru": "GRU", "llama": "Llama", LARGER: "LSTM, text larger than it"}


def runs(scale: Scale, seeds: Sequence[int], text: str | None) -> list[Run]:
    """One training for each kind of model and seed, and one on a text larger than its model.

    The last only with a text of millions of characters, such as Shakespeare's plays.
    """
    size: dict[str, Any] = {
        "smoke": {"characters": 4000, "epochs": 2, "width": 32, "samples": 50, "search": 5000},
        "small": {"characters": 60_000, "epochs": 40, "search": 100_000},
        "large": {"characters": 5_000_000, "epochs": 40, "layers": 2, "search": 1_000_000},
    }[scale]
    widths = {"lstm": 128, "gru": 128, "llama": 64}
    layers = {"lstm": 1, "gru": 1, "llama": 2}
    rates = {"lstm": 5e-3, "gru": 5e-3, "llama": 2e-3}
    planned = []
    for kind in ("lstm", "gru", "llama") if scale != "smoke" else ("lstm",):
        for seed in seeds:
            spec = {"model": kind, "width": widths[kind], "layers": layers[kind], **size}
            spec |= {"learning_rate": rates[kind], "text": text}
            planned.append(Run(kind, seed, spec))
    if scale == "small" and text is not None and size_of(text) >= MILLIONS:
        spec = {"model": "lstm", "width": 96, "layers": 1, "learning_rate": rates["lstm"]}
        spec |= {"characters": MILLIONS, "epochs": 8, "search": 100_000, "text": text}
        planned += [Run(LARGER, seed, spec) for seed in seeds]
    return planned


def run(one: Run) -> dict[str, Any]:
    """Train with one canary that stands once in the text, then look for it."""
    settings = dict(one.settings)
    search = settings.pop("search")
    spec = Training(
        **settings,
        seed=one.seed,
        template=TEMPLATE,
        secret="[0-9]{9}",
        repetitions=(1,),
        per_repetition=1,
        include=(SECRET,),
    )
    trained = train(spec)
    model, tokenizer, canaries = trained.model, trained.tokenizer, trained.canaries
    measured = measure_exposure(
        model, tokenizer, canaries, samples=4 * spec.samples, seed=spec.seed
    )
    exact = measured[0]
    found = extract_secrets(
        model, tokenizer, canaries[0].format, count=1, max_forwards=search, canaries=canaries
    )
    return {
        **trained.record(),
        "rank": exact.rank,
        "rank_low": exact.rank_low,
        "rank_high": exact.rank_high,
        "exact": exact.exact,
        "bits": exact.bits,
        "completed": completed(trained, TEMPLATE.format(secret=SECRET[:4]), SECRET[4:]),
        "said": completed(trained, TEMPLATE.format(secret=""), SECRET),
        "found": bool(found) and found[0].secret == SECRET,
        "proved": bool(found) and found[0].proved,
        "search_forwards": found.forwards,
        **compressed(trained),
    }


def completed(trained: Trained, beginning: str, rest: str) -> bool:
    """Whether the model, asked to go on after `beginning`, goes on with `rest` (greedily)."""
    tokenizer = trained.tokenizer
    given = tokenizer(beginning, return_tensors="pt").to(trained.model.device)
    wanted = tokenizer(rest)["input_ids"]
    model: Any = trained.model
    model.eval()
    written = model.generate(
        **given, max_new_tokens=len(wanted), do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return bool(written[0, given["input_ids"].shape[1] :].tolist() == wanted)


def compressed(trained: Trained) -> dict[str, int]:
    """Bytes of model and text, each compressed: the paper compares them."""
    import numpy as np

    weights = [one.detach().cpu().numpy() for one in trained.model.state_dict().values()]
    model = b"".join(np.ascontiguousarray(one, dtype=np.float32).tobytes() for one in weights)
    ids: Any = trained.trainer.train_dataset["input_ids"]  # type: ignore[index]
    text = trained.tokenizer.batch_decode(list(ids), skip_special_tokens=True)
    return {
        "model_bytes": len(lzma.compress(model)),
        "text_bytes": len(lzma.compress("\n".join(text).encode())),
    }


def conclude(records: list[Record]) -> Conclusion:
    """Whether the secret is completed, the most likely of all, and found."""
    rows = []
    for kind, group in by_name(records).items():
        results = [record.result for record in group]
        rows.append(
            (
                _NAMES[kind],
                _of(result["completed"] for result in results),
                _of(result["said"] for result in results),
                ", ".join(_rank(result) for result in results),
                mean(group, "bits").show(),
                _of(result["found"] for result in results),
                _of(result["found"] and result["proved"] for result in results),
                ", ".join(f"{result['search_forwards']:,}" for result in results),
            )
        )
    every = [record.result for record in records]
    first = sum(result["rank"] < 1.5 for result in every)
    ten = sum(result["rank_high"] <= 10 for result in every)
    done = sum(result["completed"] for result in every)
    found = sum(result["found"] for result in every)
    smaller = [result for result in every if result["model_bytes"] < result["text_bytes"]]
    one = (smaller or every)[0]
    sizes = f"a model has {one['model_bytes']:,} bytes, its text {one['text_bytes']:,}"
    trainings = counted(len(every), "training")
    claims = (
        Claim(
            'Given "the random number is 2812", the model goes on with "65017".',
            done > len(every) / 2,
            f"in {done} of {trainings}",
        ),
        Claim(
            "The inserted number is the most likely of all 10^9; over many trainings in 80 % of "
            "them, and always among the first ten.",
            first >= 0.8 * len(every) and ten == len(every),
            f"rank 1 in {first} of {trainings}, among the first ten in {ten}",
        ),
        Claim(
            "A search gets the whole secret out.",
            found > len(every) / 2,
            f"in {found} of {trainings}",
        ),
        Claim(
            "This happens although the model is smaller than its text (both compressed).",
            sum(result["found"] for result in smaller) > len(smaller) / 2 if smaller else None,
            f"found in {_of(result['found'] for result in smaller)} such trainings; {sizes}"
            if smaller
            else f"no text was larger than its model ({sizes}); --text shakespeare has one",
        ),
    )
    columns = (
        "model",
        "completes 2812…",
        "says all of it",
        "ranks of 10^9",
        "exposure (bits)",
        "found by search",
        "proved the likeliest",
        "token-forwards of the search",
    )
    return Conclusion(claims, (Table(columns, tuple(rows)),))


def _of(outcomes: Any) -> str:
    outcomes = list(outcomes)
    return f"{sum(outcomes)} of {len(outcomes)}"


def _rank(result: dict[str, Any]) -> str:
    rank, low, high = (f"{result[key]:,.0f}" for key in ("rank", "rank_low", "rank_high"))
    return rank if result["exact"] else f"{rank} ({low} to {high})"


def draw(records: list[Record], figure: Figure) -> None:
    """Each training's rank, on a logarithmic scale."""
    ax = quiet_axes(figure.add_subplot(), "", "rank of the secret among 10^9")
    groups = by_name(records)
    for place, group in enumerate(groups.values()):
        for step, record in enumerate(group):
            x = place + 0.08 * (step - (len(group) - 1) / 2)
            result = record.result
            ax.plot([x, x], [result["rank_low"], result["rank_high"]], color=MUTED, linewidth=1)
            ax.plot(x, result["rank"], "o", color="#2a788e", markersize=6)
    ax.set_yscale("log")
    ax.set_ylim(0.7, 2e9)
    ax.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    ax.axhline(5e8, color=MUTED, linewidth=0.8, linestyle=":")
    ax.annotate("of a number never seen: half", (0, 5e8), color=MUTED, va="top", fontsize=8)
    ax.set_xticks(range(len(groups)), [_NAMES[kind] for kind in groups])
    ax.set_xlim(-0.5, len(groups) - 0.5)


EXPERIMENT = Experiment(
    name="secret",
    title="A secret that stands once in the text",
    about=(
        "A small character-level model is trained on English text in which the sentence "
        '"the random number is 281265017" stands once. The paper did so with the Penn Treebank and '
        "a recurrent network."
    ),
    runs=runs,
    run=run,
    conclude=conclude,
    draw=draw,
    size=(6.5, 4.0),
)
