"""A lower bound on epsilon, measured in one training, beside the upper one that is proved.

Where the power comes from: many canaries, each a row of a token of its own, so that their gradients
hardly overlap; large batches; few steps of plain SGD in a small model; and scores against the model
before training. The attack on the final weights sees losses only. The white-box one on each step
sees the noised gradient (Nasr et al. 2023).
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from small_model import small_llama, tokenize, train_tokenizer
from torch.func import functional_call, grad, vmap
from transformers import Trainer, TrainerCallback

from hf_exposure import PrivacyArguments, PrivateTrainer, estimate_epsilon
from paper.figures import INK, MUTED, quiet_axes
from paper.study import Claim, Conclusion, Experiment, Record, Run, Scale, Table, by_name, mean
from paper.texts import paragraphs
from paper.training import run_trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIDENCE = 0.95
METHODS = ("one_run", "one_run_fdp", "one_run_order", "one_run_order_fdp")
EPSILON = 8.0  # proved, of a row
DELTA = 1e-5
NORM = 1.0  # of each row's gradient
RATE = 0.5  # each row's probability in a step
ATTACKS = {"weights": "final weights", "steps": "each step's gradient"}
# What a bound rests on besides the coins.
_IF = {
    "one_run": "",
    "one_run_fdp": "a Gaussian curve",
    "one_run_order": "independent canaries",
    "one_run_order_fdp": "both",
}


def runs(scale: Scale, seeds: Sequence[int], text: str | None) -> list[Run]:
    """One training under DP-SGD and one without, for each seed."""
    size: dict[str, Any] = {
        "smoke": {"canaries": 40, "rows": 40, "length": 16, "width": 16, "steps": 3},
        "small": {"canaries": 1200, "rows": 300, "length": 32, "width": 32, "steps": 30},
        "large": {"canaries": 20_000, "rows": 5000, "length": 64, "width": 64, "steps": 60},
    }[scale]
    size["text"] = text
    # Without DP batches are clipped as a whole, the default of the Trainer: plain SGD at this
    # rate was unstable (held-out losses from 5.4 to 6.8, and one training that gave no numbers).
    kinds = (
        (f"epsilon-{EPSILON:g}", {"epsilon": EPSILON}),
        ("none", {"epsilon": None, "max_grad_norm": 1.0}),
    )
    return [Run(name, seed, {**size, **more}) for seed in seeds for name, more in kinds]


def run(one: Run) -> dict[str, Any]:
    """Train with canaries that a coin put in or left out, and bound epsilon from their scores."""
    settings = one.settings
    lines = paragraphs(settings["text"])
    np.random.default_rng(one.seed).shuffle(lines)
    tokenizer = train_tokenizer(lines, 512)
    length, rows, count = settings["length"], settings["rows"], settings["canaries"]
    blocks = tokenize(Dataset.from_dict({"text": lines}), tokenizer, length)["input_ids"]
    blocks = [ids for ids in blocks if len(ids) == length][: rows + 200]
    # Each canary is a token that stands nowhere else, eight times after the begin mark.
    first = len(tokenizer)
    canaries = torch.tensor([[0] + [first + number] * 8 for number in range(count)])
    coins = np.random.default_rng([one.seed, 1]).random(count) < 0.5
    model = small_llama(
        first + count,
        one.seed,
        hidden_size=settings["width"],
        intermediate_size=3 * settings["width"],
        num_hidden_layers=1,
    )
    train_rows = [*blocks[:rows], *canaries[torch.tensor(coins)].tolist()]
    test = torch.tensor(blocks[rows:])
    before = _losses(model, canaries)
    steps = _Steps(model, canaries, NORM)
    options: dict[str, Any] = {}
    kind: Any = Trainer
    if settings["epsilon"] is not None:
        kind = PrivateTrainer
        options["privacy"] = PrivacyArguments(
            target_epsilon=settings["epsilon"],
            delta=DELTA,
            per_sample_max_grad_norm=NORM,
            noise_seed=one.seed,
        )
    arguments = {
        "max_steps": settings["steps"],
        "per_device_train_batch_size": round(RATE * len(train_rows)),
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": settings.get("max_grad_norm", 0.0),
        "seed": one.seed,
    }
    trainer = run_trainer(
        kind,
        arguments,
        tokenizer,
        model=model,
        train_dataset=Dataset.from_dict({"input_ids": train_rows}),
        callbacks=[steps],
        **options,
    )
    scores = {"weights": (before - _losses(model, canaries)).numpy(), "steps": steps.scores.numpy()}
    found: dict[str, Any] = {}
    for attack, score in scores.items():
        inside, out = score[coins], score[~coins]
        bounds = {
            method: estimate_epsilon(inside, out, DELTA, CONFIDENCE, method) for method in METHODS
        }
        found[attack] = {
            "gap": float((inside.mean() - out.mean()) / math.sqrt((inside.var() + out.var()) / 2)),
            "bounds": {method: bound.epsilon for method, bound in bounds.items()},
            "most": {method: bound.most for method, bound in bounds.items()},
        }
    return {
        **found,
        "proved": getattr(trainer, "epsilon", math.inf),
        "noise": getattr(trainer, "noise_multiplier", 0.0),
        "in": int(coins.sum()),
        "out": int((~coins).sum()),
        "parameters": model.num_parameters(),
        "test_loss": float(_losses(model, test).mean()),
    }


def _row_losses(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """Each row's mean loss, (rows,) in nats per token."""
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), rows[:, 1:], reduction="none"
    )
    return losses.mean(dim=1)


def _losses(model: Any, rows: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([_row_losses(model, part) for part in rows.split(256)])


class _Steps(TrainerCallback):  # type: ignore[misc]
    """How far each step's gradient points along what each canary would add to it.

    The white-box attack of Nasr et al. 2023: a canary's score is the dot product of the gradient
    that a step's optimizer gets (under DP-SGD the noised sum of clipped ones) with the canary's own
    gradient, clipped as rows are, over all parameters; summed over the steps. It is fixed
    beforehand, so the coins are all that it is compared with.
    """

    def __init__(self, model: Any, canaries: torch.Tensor, norm: float) -> None:
        # A twin that lends its shape only: hooks on the model itself do not go with vmap.
        self.twin = copy.deepcopy(model)
        self.twin.set_attn_implementation("eager")
        self.canaries, self.norm = canaries, norm
        self.scores = torch.zeros(len(canaries))

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        weights = {name: p.detach() for name, p in model.named_parameters()}

        def loss(weights: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
            whole = functools.partial(functional_call, self.twin, weights, ())
            return _row_losses(lambda **inputs: whole(inputs), row[None])[0]

        each = vmap(grad(loss), in_dims=(None, 0))
        scores = []
        for part in self.canaries.split(100):
            own = each(weights, part)  # of each name (rows, ...)
            flat = {name: one.flatten(1) for name, one in own.items()}
            norms = torch.stack([one.norm(dim=1) for one in flat.values()]).norm(dim=0)
            along = torch.stack(
                [flat[name] @ p.grad.flatten() for name, p in model.named_parameters()]
            ).sum(dim=0)
            scores.append(along * (self.norm / norms).clamp(max=1.0))  # (rows,)
        self.scores += torch.cat(scores)


def conclude(records: list[Record]) -> Conclusion:
    """Lower bounds beside the upper one, and beside the most that so many canaries can show."""
    rows, above, number = [], 0, 0
    medians: dict[tuple[str, str], float] = {}
    for name, group in by_name(records).items():
        proved = max(float(record.result["proved"]) for record in group)
        for attack, what in ATTACKS.items():
            for method in METHODS:
                bounds = [float(record.result[attack]["bounds"][method]) for record in group]
                above += sum(bound > proved for bound in bounds) if math.isfinite(proved) else 0
                number += len(bounds) if math.isfinite(proved) else 0
                if attack == "weights":
                    medians[name, method] = median(bounds)
                rows.append(
                    (
                        "∞" if math.isinf(proved) else f"{proved:.2f}",
                        what,
                        f"`{method}`",
                        _IF[method] or "–",
                        f"{median(bounds):.2f}",
                        ", ".join(f"{bound:.2f}" for bound in bounds),
                        f"{mean(group, attack, 'most', method).value:.1f}",
                        mean(group, attack, "gap").show(2),
                    )
                )
    allowed = math.ceil((1 - CONFIDENCE) * number)
    strong = f"epsilon-{EPSILON:g}"
    claims = [
        Claim(
            "(ours) No lower bound exceeds the epsilon that is proved.",
            None if not number or 0 < above <= allowed else above == 0,
            f"{above} of {number} do, at a confidence of {CONFIDENCE:.0%} each",
        )
    ]
    for name, least, words in (
        (strong, 1.0, f"Where {EPSILON:g} is proved, one run shows at least 1"),
        ("none", 2.0, "Without DP one run shows at least 2"),
    ):
        if (name, "one_run") in medians:
            shown = medians[name, "one_run"]
            claims.append(
                Claim(
                    f"(ours) {words}, from the final weights, whatever the mechanism.",
                    shown >= least,
                    f"a median of {shown:.2f} over the seeds with `one_run`, "
                    f"{medians[name, 'one_run_fdp']:.2f} with `one_run_fdp`",
                )
            )
    result = records[0].result
    losses = ", ".join(
        f"{mean(group, 'test_loss').show(2)} ({'without DP' if name == 'none' else 'with DP'})"
        for name, group in by_name(records).items()
    )
    caption = (
        f"{records[0].run.settings['canaries']:,} canaries, a model of "
        f"{result['parameters']:,} parameters, {records[0].run.settings['steps']} steps; loss on "
        f"held-out text {losses}:"
    )
    columns = (
        "ε proved",
        "the attack sees",
        "bound by",
        "holds for",
        "ε at least, median",
        f"by seed (confidence {CONFIDENCE:.0%} each)",
        "most with so many canaries",
        "gap of the scores (standard deviations)",
    )
    return Conclusion(tuple(claims), (Table(columns, tuple(rows), caption),))


def draw(records: list[Record], figure: Figure) -> None:
    """Lower bounds by each method, and the proved epsilon."""
    ax = quiet_axes(figure.add_subplot(), "", "lower bound on epsilon")
    colours = ("#440154", "#31688e", "#35b779", "#c46200")
    marks = {"weights": "o", "steps": "^"}
    groups = by_name(records)
    for place, group in enumerate(groups.values()):
        for number, (method, colour) in enumerate(zip(METHODS, colours, strict=True)):
            for attack, mark in marks.items():
                label = f"{method}, {ATTACKS[attack]}" if place == 0 else None
                x = place + 0.2 * (number - 1.5) + (0.06 if attack == "steps" else 0)
                y = [float(record.result[attack]["bounds"][method]) for record in group]
                ax.plot([x] * len(y), y, mark, color=colour, label=label, markersize=5)
        proved = max(float(record.result["proved"]) for record in group)
        if math.isfinite(proved):
            ax.plot([place - 0.4, place + 0.4], [proved] * 2, color=INK, label="proved")
    ax.set_xticks(range(len(groups)), ["no DP" if n == "none" else n for n in groups])
    ax.set_yscale("symlog", linthresh=1)
    ax.set_ylim(bottom=-0.1)
    ax.axhline(0, color=MUTED, linewidth=0.8)
    ax.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


EXPERIMENT = Experiment(
    name="epsilon",
    title="A lower bound on epsilon, beside the proved one",
    about=(
        "Canaries are inserted into the training set or left out by a coin each; their scores show "
        "how private the training cannot have been. Each canary is a row, the unit of privacy, "
        "made of a token of its own, so that gradients of canaries hardly overlap. Its score is "
        "how far its loss fell in training. A white-box attack (Nasr et al. 2023) stands beside it "
        "as a reference: there the score is the dot product of each step's noised gradient with "
        "the canary's own clipped gradient, over all parameters and summed over the steps. The "
        "set-up was chosen on a few smaller trials with seed 0. Without DP batches are clipped as "
        "a whole, since plain SGD at this rate was unstable: one of four trainings gave no numbers."
    ),
    notes=(
        "Where 8 is proved, the white-box attack shows more than the final weights in all five "
        "trainings. Without DP it does not always, perhaps because the gradients of other rows are "
        "mixed into each step. It is a reference and no upper limit."
    ),
    runs=runs,
    run=run,
    conclude=conclude,
    draw=draw,
    size=(9.0, 4.2),
)
