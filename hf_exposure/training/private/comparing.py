"""Whether the gradients of single rows are right: compared with a loop's before the first step."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from hf_exposure.models.snapshot import nothing_left
from hf_exposure.training.private.batches import Collate, groups
from hf_exposure.training.private.per_sample import PerSampleGradients, row_losses, row_norms

# Between per-sample gradients and those of a loop: parts of the norm of the parameter's own
# gradient, and of the norm of the row's whole gradient, which rounding is as large as.
TOLERANCE, TOLERANCE_BF16 = (1e-3, 1e-5), (0.1, 0.01)
_TRIED, _COMPARED = 32, 3  # rows that are looked at for the check, and that it is made with


def rows_to_compare(data: Any, collate: Collate) -> list[dict[str, Any]]:
    """A short, a middling and a long row, with something to predict if any has.

    Args:
        data: the rows of the training.
        collate: makes a batch of each.
    """
    places = np.unique(np.linspace(0, len(data) - 1, _TRIED).astype(int)).tolist()
    collate.check([data[i] for i in (places * 2)[:2]])
    rows = collate([data[i] for i in places])["rows"]
    rows = [row for row in rows if (row["labels"][:, 1:] != -100).any()] or rows
    rows.sort(key=lambda row: row["labels"].shape[-1])
    return [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, _COMPARED).astype(int))]


def compare(
    gradients: PerSampleGradients, rows: Sequence[dict[str, Any]], tolerance: tuple[float, float]
) -> None:
    """Choose what takes the gradients right, and refuse the model if nothing does.

    Args:
        gradients: made for the model and its optimizer, at the first step.
        rows: some of different lengths, each collated alone.
        tolerance: of each parameter's gradient, as a part of its norm, and of the norm of the
            row's whole gradient; they are added.

    Raises:
        ValueError: a parameter's gradients would be wrong, or a row's loss is not that of its next
            tokens.
    """
    # A neighbour of the same length for each, as layers that mix rows need.
    _choose(gradients, [*rows, *(_reversed(row) for row in rows)], tolerance)
    with _without_chance(gradients):
        _check_loss(gradients, rows[-1], tolerance[0])


def _choose(
    gradients: PerSampleGradients, rows: Sequence[dict[str, Any]], tolerance: tuple[float, float]
) -> None:
    with _without_chance(gradients):
        truth = _looped(gradients, rows)
        without = [gradients.names[p] for p in gradients.names if p not in truth]
        # A loop can take none for 0: other rows may need an expert that these did not.
        if without and not (truth and gradients.method == "loop"):
            raise ValueError(
                f"PrivateTrainer: {without[0]!r} ({len(without)} of {len(gradients.names)} "
                "parameters) gets no gradient; freeze it with requires_grad_(False)"
            )
        if gradients.method == "loop":
            return
        can = "position_ids" in inspect.signature(gradients.bare.forward).parameters
        wrong: tuple[str, Exception | None] = "", None
        # Learned positions are looked up once for all rows, unless each row brings its own.
        for gradients.positions in [False, True] if can else [False]:
            found = _wrong(gradients, rows, truth, tolerance)
            if found is None:
                return
            wrong = found
    name, error = wrong
    raise ValueError(
        f"PrivateTrainer: Opacus does not take the per-sample gradient of {name!r} in "
        f"{type(gradients.bare).__name__} right with per_sample={gradients.method!r}"
        + (f" ({type(error).__name__}: {error})" if error else "")
        + '; use PrivacyArguments(per_sample="loop"), which is slower, or freeze that parameter'
    ) from error


def _check_loss(gradients: PerSampleGradients, row: dict[str, Any], tolerance: float) -> None:
    """Other models than causal ones, such as masked ones, would learn something else."""
    if "shift_labels" in row:
        return
    with torch.no_grad(), nothing_left(gradients.bare):
        ours = float(row_losses(gradients.bare, row)[0])
        found = gradients.bare(**row)
    own, extra = getattr(found, "loss", None), getattr(found, "aux_loss", None)
    if own is None or extra is not None or not bool(own.isfinite().all()):
        return
    if abs(float(own) - ours) > tolerance * max(1.0, abs(ours)):
        raise ValueError(
            f"PrivateTrainer: the loss of {type(gradients.bare).__name__} is {float(own):.4g} for "
            f"a row whose next tokens have a loss of {ours:.4g}; only causal language models are "
            "trained, by their next tokens"
        )


@contextmanager
def _without_chance(gradients: PerSampleGradients) -> Iterator[None]:
    """Dropout off, so that two passes agree, while layers with parameters are in training."""
    was = {module: module.training for module in gradients.bare.modules()}
    devices = [p.device for p in gradients.names if p.device.type == "cuda"][:1]
    try:
        for module in was:
            module.training = any(p in gradients.names for p in module.parameters(recurse=False))
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, training in was.items():
            module.training = training
        gradients.begin()


def _looped(
    gradients: PerSampleGradients, rows: Sequence[dict[str, Any]]
) -> dict[Any, torch.Tensor]:
    """Gradients (rows, ...) of a plain backward pass for each row alone."""
    kept = gradients.bare.state_dict(keep_vars=True)
    saved = {n: v.clone() for n, v in gradients.bare.named_buffers() if n in kept}
    grads: dict[Any, list[torch.Tensor]] = {}
    for row in rows:
        gradients.begin()
        with nothing_left(gradients.bare):
            loss = row_losses(gradients.bare, row).sum()
            if loss.requires_grad:
                loss.backward()
            now = gradients.bare.state_dict(keep_vars=True)
            changed = [n for n, v in saved.items() if not torch.equal(now[n], v)]
        if changed:
            raise ValueError(
                f"PrivateTrainer: a forward pass in training changes the buffer {changed[0]!r} "
                f"of {type(gradients.bare).__name__}, which would tell of rows without noise; "
                "replace that layer"
            )
        for p in gradients.names:
            if p.grad is not None:
                grads.setdefault(p, []).append(p.grad.detach().clone())
    gradients.begin()
    return {p: torch.stack(found) for p, found in grads.items() if len(found) == len(rows)}


def _wrong(
    gradients: PerSampleGradients,
    rows: Sequence[dict[str, Any]],
    truth: dict[Any, torch.Tensor],
    tolerance: tuple[float, float],
) -> tuple[str, Exception | None] | None:
    """The parameter whose gradients in a batch are most wrong, and why; None if none is."""
    gradients.detach()
    gradients.begin()
    whole = torch.stack([row_norms(grads) for grads in truth.values()]).norm(dim=0)
    worst, most = "", 1.0
    try:
        gradients.attach()
        clip = (gradients.norm / (whole + 1e-6)).clamp(max=1.0)
        for places, batch in reversed(groups(rows, len(rows))):
            gradients.take(batch)
            for p, expected in truth.items():
                found, own = getattr(p, "grad_sample", None), expected[places]
                sums = torch.zeros(1)
                if gradients.method == "ghost":  # the norms, and the clipped sum over the rows
                    good, norms = whole[places].isfinite(), row_norms(own)
                    weights = clip[places][good]
                    summed = torch.einsum("i,i...", weights.to(own.dtype), own[good])
                    allowed = tolerance[0] * norms + tolerance[1] * whole[places]
                    sums = (p.summed_grad - summed).norm() / (weights @ allowed[good])
                    found, own = p._norm_sample, norms
                if not isinstance(found, torch.Tensor) or found.shape != own.shape:
                    return gradients.names[p], None
                allowed = tolerance[0] * row_norms(own) + tolerance[1] * whole[places]
                off = row_norms(found - own) / allowed.clamp(min=1e-30)
                off = torch.cat([off[whole[places].isfinite()], sums.reshape(1).to(off)])
                if not bool((off <= most).all()):  # NaN is wrong too
                    worst, most = gradients.names[p], float(off.max())
            for p in gradients.names:
                p.grad_sample = None
            gradients.begin()
    except Exception as error:  # whatever a layer raises that Opacus was not made for
        return _culprit(gradients, error), error
    return (worst, None) if worst else None


def _culprit(gradients: PerSampleGradients, error: Exception) -> str:
    """The parameter whose layer Opacus was at work on when it failed."""
    layers = set(gradients.bare.modules())
    found = next(iter(gradients.names.values()))
    trace = error.__traceback__
    while trace is not None:
        for module in map(trace.tb_frame.f_locals.get, ("module", "layer")):
            own = module.parameters() if module is not None and module in layers else ()
            found = next((gradients.names[p] for p in own if p in gradients.names), found)
        trace = trace.tb_next
    return found


def _reversed(row: dict[str, Any]) -> dict[str, Any]:
    """Another row of the same shape: its tokens backwards, but for padding."""
    ids = row.get("input_ids")
    if not isinstance(ids, torch.Tensor):
        return row
    mask = row.get("attention_mask")
    real = torch.ones_like(ids, dtype=torch.bool)
    if isinstance(mask, torch.Tensor) and mask.shape == ids.shape:
        real = mask.bool()
    other = ids.clone()
    other[real] = ids[real].flip(0)
    return {**row, "input_ids": other}
