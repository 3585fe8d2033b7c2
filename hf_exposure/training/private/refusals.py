"""Set-ups in which DP-SGD would not hold what it promises: refused before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainingArguments

from hf_exposure.training.private.accounting import opacus
from hf_exposure.utils.checks import kind_of


def refuse(
    kind: type,
    base: type,
    model: Any,
    args: Any,
    train_dataset: Any,
    kwargs: dict[str, Any],
    per_sample: str = "hooks",
) -> None:
    """Raise a ValueError that names what cannot be trained under DP-SGD, and a way out.

    Args:
        kind: the Trainer's class, which may have a loss of its own.
        base: the class of ours that it must have its loss from.
        model, args, train_dataset, kwargs: its arguments.
        per_sample: how rows' gradients are to be taken.
    """
    reasons = (
        *_reasons_of_kind(kind, base, model, args, train_dataset, kwargs),
        *(_reasons_of_args(args) if isinstance(args, TrainingArguments) else ()),
    )
    for reason in reasons:
        raise ValueError(f"PrivateTrainer: {reason}")
    refuse_model(model, args, per_sample)


def refuse_model(model: Any, args: Any, per_sample: str) -> None:
    """The part of `refuse` that looks at the model, which may have changed since."""
    for reason in _reasons_of_model(model, args, per_sample):
        raise ValueError(f"PrivateTrainer: {reason}")


def _reasons_of_kind(
    kind: type, base: type, model: Any, args: Any, train_dataset: Any, kwargs: dict[str, Any]
) -> Iterator[str]:
    if not isinstance(args, TrainingArguments):
        yield f"args must be TrainingArguments, not {kind_of(args)}"
    if isinstance(model, type) or not hasattr(model, "named_parameters"):
        yield (
            f"model must be a model, such as AutoModelForCausalLM.from_pretrained makes, not "
            f"{kind_of(model)}"
        )
    for name in ("compute_loss_func", "model_init"):
        if kwargs.get(name) is not None:
            yield (
                f"{name} is not supported, as a row's loss must not depend on other rows, and what "
                "is spent belongs to one model; leave it out"
            )
    for name in ("compute_loss", "training_step", "_get_train_sampler"):
        if getattr(kind, name) is not getattr(base, name):
            yield f"{kind.__name__} has a {name} of its own, which DP-SGD would not use; leave it"
    optimizer = (kwargs.get("optimizers") or (None, None))[0]
    if optimizer is not None and hasattr(optimizer, "original_optimizer"):
        yield "optimizers has a private optimizer already; give the plain one"
    if train_dataset is None or not hasattr(train_dataset, "__len__"):
        yield (
            "train_dataset has no length, without which there is no sampling rate; give one that "
            "is not streamed"
        )
    elif len(train_dataset) == 0:
        yield "train_dataset has no rows; give at least one"


def _reasons_of_args(args: TrainingArguments) -> Iterator[str]:
    if args.n_gpu > 1 or args.fsdp or args.deepspeed or getattr(args, "parallelism_config", None):
        yield (
            "it trains with one process on one device or with DDP, without FSDP, DeepSpeed and "
            "parts of a model on several devices; start one process for each device, with torchrun"
        )
    if args.fp16:
        yield "fp16=True scales gradients, which clipping must see as they are; use bf16=True"
    for name, wanted in (
        ("torch_compile", False),
        ("auto_find_batch_size", False),
        ("use_liger_kernel", False),
        ("label_smoothing_factor", 0),
        ("neftune_noise_alpha", None),
        ("train_sampling_strategy", "random"),
    ):
        value = getattr(args, name, wanted)
        if value != wanted:
            yield f"{name}={value!r} is not supported; leave it at {wanted!r}"
    optim = str(getattr(args.optim, "value", args.optim))
    if "lomo" in optim or "layerwise" in optim:
        yield (
            f"optim={optim!r} makes its steps during the backward pass, before gradients are "
            "clipped; use another, such as adamw_torch"
        )


def _reasons_of_model(model: Any, args: Any, per_sample: str) -> Iterator[str]:
    kind = type(model).__name__
    for inner in ("module", "_orig_mod"):
        if kind in ("DataParallel", "DistributedDataParallel", "OptimizedModule") and hasattr(
            model, inner
        ):
            yield f"model is wrapped in {kind}, under which rows are not alone; give model.{inner}"
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not trained:
        yield f"all parameters of {kind} are frozen; set requires_grad_(True) on some"
    for name, p in trained:
        if p.dtype not in (torch.float32, torch.float64):
            yield (
                f"the parameter {name!r} is of {p.dtype}, in which noise and clipping are inexact; "
                "load the model with dtype=torch.float32, and use bf16=True for speed"
            )
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        yield f"{kind} is an encoder-decoder model; give a causal language model"
    validators = opacus("validators.module_validator").ModuleValidator.VALIDATORS
    for name, module in model.named_modules():
        check = validators.get(type(module))
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            yield (
                f"the layer {name!r} is a {type(module).__name__}, with which a row's gradient "
                "depends on other rows; replace it, by GroupNorm say"
            )
        recurrent = isinstance(module, torch.nn.RNNBase)  # trained one row at a time
        if per_sample != "loop" and not recurrent and check is not None and check(module):
            yield (
                f"the layer {name!r} is a {type(module).__name__}, whose per-sample gradients "
                'Opacus cannot take; use PrivacyArguments(per_sample="loop")'
            )
    asked = ("activation_checkpointing", "gradient_checkpointing")  # the newer and the older name
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    done = [f"is_{name}" for name in asked if hasattr(type(bare), f"is_{name}")]
    if any(getattr(args, name, False) for name in asked) or any(
        getattr(bare, name)
        for name in done[:1]  # the older one warns
    ):
        yield (
            "gradient checkpointing runs layers twice, so that per-sample gradients are wrong; "
            "turn it off, and bound the memory with max_physical_batch_size"
        )
