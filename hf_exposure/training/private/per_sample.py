"""Gradients of single rows: taken by Opacus, clipped, added up, noised."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from hf_exposure.models.snapshot import nothing_left
from hf_exposure.training.private.accounting import opacus

_LABELS = ("labels", "shift_labels", "num_items_in_batch")
PER_SAMPLE = ("hooks", "functorch", "ghost", "loop")

_OPACUS_ON_MODULES = ("activations", "max_batch_len", "ft_compute_sample_grad")
_OPACUS_ON_PARAMETERS = (
    "summed_grad",
    "grad_sample",
    "_forward_counter",
    "_current_grad_sample",
    "_norm_sample",
)


class PerSampleGradients:
    """Clips each row's gradient and adds them up, then adds the noise.

    Args:
        model: without the Trainer's wrapper, which would join processes at every backward pass.
        optimizer: whose parameters are trained.
        norm: to what each row's gradient is clipped.
        method: one of PER_SAMPLE.
        seed: of the noise.
    """

    def __init__(self, model: Any, optimizer: Any, norm: float, method: str, seed: int) -> None:
        self.bare, self.norm, self.seed = model, norm, seed
        self.names: dict[Any, str] = {p: n for n, p in model.named_parameters() if p.requires_grad}
        self._check_optimizer(optimizer)
        self.private = opacus("optimizers").DPOptimizer(
            optimizer,
            noise_multiplier=0.0,  # set at each step
            max_grad_norm=norm,
            expected_batch_size=None,
            loss_reduction="sum",
            generator=torch.Generator(next(iter(self.names)).device),
        )
        # Opacus has recurrent layers of its own, a Python loop over tokens: on a CPU one row at a
        # time through PyTorch's was up to four times as fast.
        recurrent = (m for m in model.modules() if isinstance(m, torch.nn.RNNBase))
        trained = any(p in self.names for m in recurrent for p in m.parameters())
        self.method = "loop" if trained else method
        self.positions = False
        self.hooks: Any = None
        self.begin()

    def _check_optimizer(self, optimizer: Any) -> None:
        given = {p for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        if given - self.names.keys():
            raise ValueError(
                "PrivateTrainer: the optimizer has parameters that are not the model's, so that "
                "the model would never change; make it after the model has its adapters and is on "
                "its device, or leave it to args.optim"
            )
        left = [self.names[p] for p in self.names if p not in given]
        if left:
            raise ValueError(
                f"PrivateTrainer: the optimizer leaves out {left[0]!r} and {len(left) - 1} more "
                "parameters that ask for a gradient; freeze them with requires_grad_(False)"
            )
        for p, name in self.names.items():
            if getattr(p, "_post_accumulate_grad_hooks", None):
                raise ValueError(
                    f"PrivateTrainer: something steps on the gradient of {name!r} during the "
                    "backward pass, before it is clipped; use another optimizer"
                )

    # A step: begin, add as often as needed, finish

    def begin(self) -> None:
        """Nothing is added up yet."""
        for p in self.names:
            p.summed_grad = torch.zeros_like(p)
            p.grad = None

    def add(self, batch: dict[str, Any]) -> float:
        """Add the clipped gradients of rows of one shape; returns their summed loss in nats."""
        size = len(batch["labels"])
        step = 1 if self.method == "loop" else size
        total = 0.0
        for start in range(0, size, step):
            rows = {n: rows_of(v, slice(start, start + step)) for n, v in batch.items()}
            total += self.take(rows)
            if self.method == "ghost":
                continue
            if self.method == "loop":
                for p in self.names:
                    p.grad_sample = None if p.grad is None else p.grad[None]
            self._clip_and_accumulate()
        return total

    def take(self, batch: dict[str, Any]) -> float:
        """Go through the model and back with rows of one shape; returns their summed loss in nats.

        Leaves each row's gradient in `grad_sample` of the parameters, not clipped yet. "ghost"
        leaves its norm in `_norm_sample` instead and adds the clipped gradients at once; "loop"
        leaves the gradient of all rows in `grad`.
        """
        return self._ghost(batch) if self.method == "ghost" else self._backward(batch)

    def _ghost(self, batch: dict[str, Any]) -> float:
        """Add rows without ever holding the gradient of each: norms first, then one weighted sum.

        Fast gradient clipping (Lee, Kifer 2020), with norms of linear layers and embeddings from
        activations and their gradients alone (Li, Tramer, Liang, Hashimoto 2021).
        """
        for p in self.names:
            p._norm_sample = None
        with nothing_left(self.bare):
            self.hooks.enable_hooks()
            try:
                losses = row_losses(self.bare, batch, self.positions)
                if not losses.requires_grad:  # no token is predicted
                    return float(losses.detach().sum())
                losses.sum().backward(retain_graph=True)
            finally:
                self.hooks.disable_hooks()
            found = [p._norm_sample for p in self.names if p._norm_sample is not None]
            norms = torch.stack([one.float() for one in found]).norm(dim=0)  # (rows,)
            finite = norms.isfinite()
            for p in self.names:
                p.grad = None
            if finite.all():
                ((self.norm / (norms + 1e-6)).clamp(max=1.0) * losses).sum().backward()
                for p in self.names:
                    if p.grad is not None:
                        p.summed_grad += p.grad
                        p.grad = None
        if not finite.all() and len(finite) > 1:
            # A row without a direction adds nothing, and would spoil the sum of the others.
            for row in range(len(finite)):
                self._ghost({n: rows_of(v, slice(row, row + 1)) for n, v in batch.items()})
        return float(losses.detach().sum())

    def _clip_and_accumulate(self) -> None:
        taken = [p for p in self.names if getattr(p, "grad_sample", None) is not None]
        if taken:
            norms = torch.stack([row_norms(p.grad_sample).float() for p in taken])
            factors = (self.norm / (norms.norm(dim=0) + 1e-6)).clamp(max=1.0)  # (rows,)
            # A row whose gradient is infinite or not a number adds nothing: it has no direction.
            finite = norms.isfinite().all(dim=0) & norms.norm(dim=0).isfinite()
            for p in taken:
                grads, clip = p.grad_sample[finite].to(p.dtype), factors[finite].to(p.dtype)
                p.summed_grad += torch.einsum("i,i...", clip, grads)
        for p in self.names:
            p.grad = p.grad_sample = None

    def finish(self, noise_multiplier: float, expected: float, step: int) -> None:
        """Leave (sum over all processes + noise) / expected batch size in each `grad`."""
        # Two steps never share their noise: PyTorch's generator for the CPU reads 32 bits of a
        # seed, so seeds count up from one drawn number instead of being drawn.
        bits = 32 if self.private.generator.device.type == "cpu" else 63
        self.private.generator.manual_seed((self.seed + step) % 2**bits)
        self.private.noise_multiplier = noise_multiplier
        if torch.distributed.is_initialized():
            for p in self.names:
                torch.distributed.all_reduce(p.summed_grad)
        # Each process draws the same noise, so it is in the sum once.
        self.private.add_noise()
        for p in self.names:
            p.grad /= expected
            p.summed_grad = torch.zeros_like(p)

    def check_trained(self) -> None:
        """Refuse other parameters than when training began: one that is thawed since then has a
        gradient of rows, unclipped and bare.

        Raises:
            ValueError: others are trained.
        """
        for name, p in self.bare.named_parameters():
            if p.requires_grad != (p in self.names):
                now = "asks" if p.requires_grad else "asks no more"
                raise ValueError(
                    f"PrivateTrainer: {name!r} {now} for a gradient since training began, which "
                    "would be neither clipped nor noised as the others are; freeze and thaw "
                    "parameters before train()"
                )
        for group in self.private.param_groups:
            for p in group["params"]:
                if p not in self.names:
                    p.grad = None  # of a backward pass before training

    def _backward(self, batch: dict[str, Any]) -> float:
        if self.hooks is not None:
            self.hooks.enable_hooks()
        try:
            # Rotary frequencies that follow the longest row so far would tell the next row of it.
            with nothing_left(self.bare):
                loss = row_losses(self.bare, batch, self.positions).sum()
                if loss.requires_grad:  # not where no token is predicted
                    loss.backward()
        finally:
            if self.hooks is not None:
                self.hooks.disable_hooks()
        return float(loss.detach())

    # Opacus' part in it

    def attach(self) -> None:
        """Have the layers take per-sample gradients, or their norms, where asked to."""
        self.hooks = opacus("grad_sample").prepare_module(
            self.bare,
            grad_sample_mode=self.method,
            wrap_model=False,
            loss_reduction="sum",
            strict=False,
        )
        for name in ("GRAD_SAMPLERS", "NORM_SAMPLERS"):
            plain = dict(getattr(self.hooks, name, {}))
            if torch.nn.Embedding in plain:
                own_way = functools.partial(_embedding_sampler, plain[torch.nn.Embedding])
                setattr(self.hooks, name, {**plain, torch.nn.Embedding: own_way})

    def detach(self) -> None:
        """Leave the model as it was."""
        if self.hooks is not None:
            self.hooks.cleanup()
            self.hooks = None
        # Opacus may have broken off before there was anything to clean up with.
        for handle in self.bare.__dict__.pop("autograd_grad_sample_hooks", ()):
            handle.remove()
        for module in self.bare.modules():
            for name in _OPACUS_ON_MODULES:
                if name in module.__dict__:
                    delattr(module, name)
        for p in self.bare.parameters():
            for name in _OPACUS_ON_PARAMETERS:
                if hasattr(p, name):
                    delattr(p, name)


def row_losses(network: Any, batch: dict[str, Any], positions: bool = False) -> torch.Tensor:
    """Each row's mean loss over its own tokens, (rows,) in nats.

    It is computed from the logits: the loss that models return is divided by the tokens of the
    whole batch, and some add terms to it that depend on several rows, such as the balance of
    experts.

    Args:
        network: a causal language model.
        batch: with `labels` (rows, length), -100 where there is no loss; or `shift_labels`.
        positions: give each row its own `position_ids`.
    """
    inputs = {name: value for name, value in batch.items() if name not in _LABELS}
    if positions and "position_ids" not in inputs:
        rows, length = batch["labels"].shape
        places = torch.arange(length, device=batch["labels"].device)
        inputs["position_ids"] = places.expand(rows, length)
    taken = inspect.signature(network.forward).parameters.values()
    if any(one.name == "use_cache" or one.kind is one.VAR_KEYWORD for one in taken):
        inputs.setdefault("use_cache", False)
    logits = network(**inputs).logits
    if logits.dim() != 3 or logits.shape[:2] != batch["labels"].shape:
        raise ValueError(
            f"PrivateTrainer: {type(network).__name__} gives logits of shape "
            f"{tuple(logits.shape)} for labels of shape {tuple(batch['labels'].shape)}; give a "
            "causal language model, which has logits of each token"
        )
    if "shift_labels" in batch:
        targets = batch["shift_labels"]
    else:
        logits, targets = logits[:, :-1], batch["labels"][:, 1:]
    losses: torch.Tensor = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2).float(), targets, ignore_index=-100, reduction="none"
    )  # (rows, length - 1)
    counts: torch.Tensor = (targets != -100).sum(dim=1).clamp(min=1)
    return losses.sum(dim=1) / counts


def row_norms(grads: torch.Tensor) -> torch.Tensor:
    """The norm of each row's gradient (rows, ...)."""
    norms: torch.Tensor = grads.reshape(len(grads), -1).norm(dim=1)
    return norms


def _embedding_sampler(
    plain: Callable[..., Any],
    layer: torch.nn.Embedding,
    activations: list[torch.Tensor],
    backprops: torch.Tensor,
) -> Any:
    """Opacus' per-sample gradients of an embedding, without those of its padding token.

    PyTorch gives that token none, and Opacus does not know of it; it is in many texts, as the end
    of each of them.
    """
    if layer.padding_idx is not None:
        backprops = backprops.masked_fill((activations[0] == layer.padding_idx)[..., None], 0)
    # The sampler of norms cannot take positions that are one row, expanded.
    return plain(layer, [one.contiguous() for one in activations], backprops.contiguous())


def rows_of(value: Any, which: slice) -> Any:
    """Some rows of one part of a batch; what is no tensor belongs to all."""
    return value[which] if isinstance(value, torch.Tensor) else value
