"""The only code that runs a model: logits of a forward, and what they say in bits.

Log-softmax in float32 or better, sums in float64. Memory holds (rows, vocabulary) logits for one
chunk at a time; only the tokens that are asked for are kept.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch

from hf_exposure.models.precision import coarsest, precision_of, single
from hf_exposure.utils.arrays import Floats, Ints

T = TypeVar("T")

_LOGITS = 1 << 25  # rows times vocabulary of one forward, unless batch_size says otherwise
_ROWS = 512
_PIECE = 1 << 22  # rows times vocabulary that are normalized at once
_CACHES = ("past_key_values", "cache_params")


class NotFiniteError(ValueError):
    """The model's logits hold NaN, so that nothing can be measured."""


class ContextError(ValueError):
    """More tokens than the model was made for."""


class CausalModel:
    """A causal language model: what it can take, and its forwards, in chunks that fit.

    Args:
        model: a causal language model of transformers, in any mode; run it within `undisturbed`.
        batch_size: rows of a forward; None derives it from the vocabulary. Halved, and kept so,
            when memory runs out.
        turn: gives a context that is held during each forward, for processes that go in step.
        warp: what a sampling scheme makes of (rows, vocabulary) logits, minus infinity where a
            token is cut off; costs are then those under the scheme.

    Attributes:
        name: of its class.
        vocabulary: how many tokens it knows.
        context: the largest number of tokens that it was made for, None if it has no limit.
        changes_at: the number of tokens beyond which its rotary frequencies are others for the
            whole text, as in LongRoPE; None if they stay.
        forwards: token-forwards so far: positions that it has computed.
        halved: whether memory ran out, so that `batch_size` is smaller than it was.

    Raises:
        ValueError: it is an encoder-decoder or a masked one, or asks for more than tokens.
    """

    def __init__(
        self,
        model: Any,
        *,
        batch_size: int | None = None,
        turn: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        warp: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._model = _unwrapped(model)
        bare = _bare(model)
        self.name = type(bare).__name__
        config = getattr(bare, "config", None)
        self.vocabulary, self.device = _vocabulary(bare, config)
        self._accepts = _accepted(bare, config, self.name)
        self.context = _limit(config, "max_position_embeddings")
        self.changes_at = _changes_at(config)
        self.batch_size = batch_size or max(1, min(_ROWS, _LOGITS // self.vocabulary))
        self._chosen = batch_size is None
        self.forwards = 0
        self.halved = False
        self._turn, self._warp = turn, warp
        self._quantized = bool(getattr(bare, "is_quantized", False))
        self._shown: torch.dtype | None = None  # the precision of its logits

    def check_tokens(self, largest: int) -> None:
        """Refuse a token that the model does not know.

        Raises:
            ValueError: see above.
        """
        if largest >= self.vocabulary:
            raise ValueError(
                f"model: {self.name} has a vocabulary of {self.vocabulary}, smaller than the "
                f"tokenizer's, whose token {largest} is needed; give the tokenizer that it was "
                "trained with, or call model.resize_token_embeddings(len(tokenizer))"
            )

    def fit_rows(self, positions: int) -> None:
        """Take no more rows at once than fit with the logits of so many positions of each."""
        if self._chosen:
            most = _LOGITS // (self.vocabulary * positions)
            self.batch_size = max(1, min(self.batch_size, most))

    @property
    def precision(self) -> torch.dtype:
        """The coarsest numbers that the model computes with, as far as can be seen."""
        return coarsest(self._model, self._shown or torch.float32, self._quantized)

    def in_chunks(self, places: Ints, run: Callable[[Ints], T]) -> Iterator[tuple[Ints, T]]:
        """Some of the places and what `run` makes of them, as many at once as fit."""
        while len(places):
            place = places[: self.batch_size]
            made = None
            try:
                made = run(place)
            except RuntimeError as error:
                if not out_of_memory(error) or len(place) == 1:
                    raise
            if made is None:  # out here, where the error no longer holds on to tensors
                self.batch_size, self.halved = len(place) // 2, True
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            yield place, made
            places = places[len(place) :]

    def call(
        self,
        ids: Ints,
        *,
        keep: int,
        past: int = 0,
        cache: dict[str, Any] | None = None,
        use_cache: bool = False,
        masked: bool = True,
        placed: bool = True,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """One forward.

        Args:
            ids: (rows, width) tokens, which stand at positions `past` and on.
            keep: how many of the last positions' logits are needed.
            cache: that of the positions before, by the name of its argument.
            masked, placed: whether a step onto a cache gets a mask and positions.

        Returns:
            (rows, at least keep, vocabulary) logits, and the new cache by its name.

        Raises:
            ContextError: that is longer than the model's context.
        """
        rows, width = ids.shape
        if self.context is not None and past + width > self.context:
            raise ContextError(
                f"model: {self.name} has a context of {self.context} tokens, but {past + width} "
                "are needed; use a shorter template or text"
            )
        # Some architectures are silently wrong without mask and positions in a cached step. The
        # first forward goes without positions, as in training: not all models count from 0.
        optional: dict[str, Any] = {
            "logits_to_keep": keep,
            "use_cache": use_cache,
            "return_dict": True,
        }
        if masked or not past:
            mask = torch.ones(rows, past + width, dtype=torch.long, device=self.device)
            optional["attention_mask"] = mask
        if placed and past:
            places = torch.arange(past, past + width, device=self.device)
            optional["position_ids"] = places.repeat(rows, 1)
        inputs = {name: value for name, value in optional.items() if name in self._accepts}
        with self._turn():
            output = self._model(
                input_ids=torch.as_tensor(ids, device=self.device), **inputs, **(cache or {})
            )
        self.forwards += rows * width
        caches = {name: getattr(output, name, None) for name in _CACHES}
        return self._logits(output), {name: one for name, one in caches.items() if one is not None}

    def idle(self) -> None:
        """The smallest forward there is, for a process that waits for others in step."""
        self.call(np.array([[0]]), keep=1)

    def _logits(self, output: Any) -> torch.Tensor:
        """(rows, positions, vocabulary) logits of a forward. Models of people's own may give a
        dictionary, a tuple that begins with the logits, or the logits alone."""
        logits = getattr(output, "logits", output)
        if isinstance(logits, dict):
            logits = logits.get("logits")
        elif isinstance(logits, (tuple, list)) and len(logits):
            logits = logits[0]
        if not isinstance(logits, torch.Tensor) or logits.dim() != 3:
            raise ValueError(
                f"model: {self.name} gave no logits of shape (rows, positions, vocabulary); "
                "exposure needs a causal language model (AutoModelForCausalLM)"
            )
        return logits

    def bits(self, logits: torch.Tensor, tokens: torch.Tensor) -> Floats:
        """(rows, C) costs in bits of the next token, from (rows, vocabulary) logits.

        Args:
            tokens: (C,) those to look at, or (rows, C) if each row has its own.
        """
        if self._shown is None:
            self._shown = precision_of(logits)
        # In pieces, for single precision, logsumexp and a warp make a copy of what they are given.
        size = max(1, _PIECE // logits.shape[-1])
        wanted = tokens.to(logits.device)
        totals, chosen = [], []
        for number, piece in enumerate(logits.split(size)):
            scores = single(piece) if self._warp is None else self._warp(single(piece))
            totals.append(torch.logsumexp(scores, -1, keepdim=True))
            own = wanted[number * size : (number + 1) * size] if wanted.dim() > 1 else None
            chosen.append(scores[:, wanted] if own is None else scores.gather(1, own))
        total = torch.cat(totals)
        # A NaN anywhere in a row is in its sum; minus infinity for a few tokens is a mask.
        if not bool(torch.isfinite(total).all()):
            raise NotFiniteError(
                f"model: {self.name} gave logits that are NaN or infinite; "
                "check its weights (a diverged training?) and its precision"
            )
        nats = total - torch.cat(chosen)
        return np.asarray(nats.double().cpu().numpy() / math.log(2))

    def moments(self, logits: torch.Tensor) -> tuple[Floats, Floats]:
        """(rows,) mean and standard deviation, in bits, of the next token's cost if the model draws
        it itself, from (rows, vocabulary) logits. The mean is the entropy."""
        means, spreads = [], []
        for piece in logits.split(max(1, _PIECE // logits.shape[-1])):
            logs = torch.log_softmax(single(piece), -1)
            shares = logs.exp()
            logs = logs.masked_fill(shares == 0, 0.0)  # 0 log 0 = 0
            mean = (shares * logs).sum(-1, keepdim=True)
            means.append(-mean[:, 0])
            spreads.append((shares * (logs - mean).square()).sum(-1).sqrt())
        whole = torch.stack([torch.cat(means), torch.cat(spreads)]).double().cpu().numpy()
        return whole[0] / math.log(2), whole[1] / math.log(2)


def _accepted(model: Any, config: Any, name: str) -> set[str]:
    """The arguments of a model's forward, if it is a causal one that needs tokens alone."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model: {name} is an encoder-decoder; exposure is defined here for causal "
            "language models (AutoModelForCausalLM)"
        )
    if name.endswith("ForMaskedLM"):  # one of random weights would pass the probe
        raise ValueError(
            f"model: {name} is not a causal language model but a masked one; "
            "exposure is defined here for causal ones (AutoModelForCausalLM)"
        )
    parameters = inspect.signature(model.forward).parameters
    given = {"input_ids", "attention_mask", "logits_to_keep", "use_cache", "return_dict"}
    some = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    asked = [
        name
        for name, one in parameters.items()
        if one.default is one.empty and one.kind not in some and name not in given
    ]
    if asked:
        raise ValueError(
            f"model: {name} asks for {', '.join(asked)}, but exposure is measured on "
            "text alone, given as input_ids; use a causal language model"
        )
    return set(parameters)


def _unwrapped(model: Any) -> Any:
    """The model as its forward is to be called: without what compiles it or keeps processes in
    step, for a step here is not one of all processes, and DDP would wait for the others."""
    parallel = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
    while True:
        if isinstance(model, parallel):
            model = model.module
        elif getattr(model, "_orig_mod", None) is not None:
            model = model._orig_mod
        else:
            return model


def _bare(model: Any) -> Any:
    """The model of transformers itself, looking through wrappers (DDP, torch.compile, PEFT)."""
    while True:
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        if inner is None or inner is model:
            return model
        model = inner


def _vocabulary(model: Any, config: Any) -> tuple[int, torch.device]:
    """How many tokens a model knows, and where its input goes."""
    try:
        weight = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):  # a model of somebody's own
        size = getattr(config, "vocab_size", None)
        if not isinstance(size, int):
            raise ValueError(
                f"model: {type(model).__name__} tells no size of its vocabulary; give it "
                "get_input_embeddings(), or a config with vocab_size"
            ) from None
        return size, next((one.device for one in model.parameters()), torch.device("cpu"))
    device = torch.device(weight.device)
    if device.type == "meta":  # it lies on disk or in the CPU's memory until it is needed
        hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
        device = torch.device(getattr(hook, "execution_device", None) or "cpu")
    # ZeRO-3 leaves an empty tensor where a parameter was, and its shape beside it.
    return int(getattr(weight, "ds_shape", weight.shape)[0]), device


def _limit(config: Any, name: str) -> int | None:
    """A number of tokens that a model's configuration tells."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = text.get(name) if isinstance(text, dict) else getattr(text, name, None)
    return int(limit) if isinstance(limit, int) and limit > 0 else None


def _changes_at(config: Any) -> int | None:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    rotary = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if not isinstance(rotary, dict):
        return None
    name = "original_max_position_embeddings"  # what "dynamic" has lies beyond the context
    kinds = (rotary, *rotary.values())  # one for all layers, or one for each type of them
    limits = [
        _limit(one, name) or _limit(text, name)
        for one in kinds
        if isinstance(one, dict) and one.get("rope_type", one.get("type")) == "longrope"
    ]
    return min((limit for limit in limits if limit is not None), default=None)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, as CUDA, MPS and CPU say it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    told = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in told)
