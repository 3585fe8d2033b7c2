"""The only code that runs a model: log-probabilities of the next token for a batch of branches.

A branch is a path of tokens after the prompt. Branches of equal length go one token further
together; the prompt is run once, and the model's own cache is selected with its own
`reorder_cache`. Costs are log-perplexities in bits: log-softmax in float32 or better, sums in
float64. Memory holds (rows, vocabulary) logits for one chunk at a time; only the columns that the
secret space needs are kept.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_CACHES = ("past_key_values", "cache_params")
_CACHE_BYTES = 1 << 30  # keys and values of branches that wait, before the oldest are dropped
_LOGITS = 1 << 25  # rows times vocabulary of one forward, unless batch_size says otherwise
_TRUSTED = {torch.float16: 0.5, torch.bfloat16: 0.5}  # bits; other types 0.01


class NotFiniteError(ValueError):
    """The model's logits hold NaN, so that nothing can be measured."""


@dataclass
class Branches:
    """Some paths of one length, and what the model says after each.

    Attributes:
        paths: (B, depth) columns of tokens after the prompt.
        bits: (B, C) cost of each column as the next token.
        cache: the model's cache after them, None if it was dropped or there is none.
    """

    paths: Ints
    bits: Floats
    cache: Any | None = None

    @property
    def slots(self) -> int:
        """Positions of a row that the cache holds, all rows together."""
        return 0 if self.cache is None else len(self.paths) * (self.paths.shape[1] + 1)


class Decoder:
    """Runs `model` after `prompt`, one token further at a time.

    Args:
        model: a causal language model of transformers, in any mode; use within `undisturbed`.
        prompt: the tokens that come first, at least one.
        columns: (C,) tokens whose probabilities are wanted.
        batch_size: rows of a forward; None derives it from the vocabulary. Halved, and kept so,
            when memory runs out.

    Attributes:
        forwards: token-forwards so far: positions that the model has computed, prompt included.
        cached: whether the model's cache is used.
        noise: the largest difference in bits that `probe` saw between cached and full forward.

    Raises:
        ValueError: the model is an encoder-decoder, its vocabulary is too small for the tokens, or
            `prompt` and the longest path do not fit its context.
    """

    def __init__(
        self,
        model: Any,
        prompt: Sequence[int],
        columns: Ints,
        *,
        batch_size: int | None = None,
    ) -> None:
        self._model = model
        self._prompt = list(prompt)
        self._device = _device(model)
        self._columns = torch.as_tensor(columns, device=self._device)
        self._accepts = _parameters(model)
        self._check(columns)
        self._cache_name: str | None = None
        self._root: Branches | None = None
        self._slot_limit = _CACHE_BYTES // _bytes_per_token(model)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        self.batch_size = batch_size or max(1, min(512, _LOGITS // max(1, vocabulary)))
        self.forwards = 0
        self.cached = True
        self.noise = math.nan

    def _check(self, columns: Ints) -> None:
        name = type(self._model).__name__
        config = getattr(self._model, "config", None)
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(
                f"model: {name} is an encoder-decoder; exposure is defined here for causal language "
                "models (AutoModelForCausalLM)"
            )
        size = int(self._model.get_input_embeddings().weight.shape[0])
        largest = max([*self._prompt, *columns.tolist()])
        if largest >= size:
            raise ValueError(
                f"model: {name} has a vocabulary of {size}, smaller than the tokenizer's, whose "
                f"token {largest} is needed; give the tokenizer that it was trained with, or call "
                "model.resize_token_embeddings(len(tokenizer))"
            )

    @property
    def slot_limit(self) -> int:
        """How many cached positions may wait before the walk drops the least useful ones."""
        return self._slot_limit

    @property
    def context(self) -> int | None:
        """The largest number of tokens that the model was made for, None if it has no limit."""
        config = getattr(self._model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        limit = getattr(text, "max_position_embeddings", None)
        return int(limit) if isinstance(limit, int) and limit > 0 else None

    def root(self) -> Branches:
        """The empty path. The prompt is run on the first call only."""
        if self._root is None:
            bits, cache = self._forward(np.array([self._prompt]), 0, None)
            self._root = Branches(np.zeros((1, 0), dtype=np.int64), bits, cache)
        return replace(self._root)  # walks let go of what they do not need any more

    def price(self, parents: Branches) -> int:
        """Token-forwards that one step from one of these branches takes."""
        if self.cached and parents.cache is not None:
            return 1
        depth = parents.paths.shape[1] + 1
        return depth if self.cached else depth + len(self._prompt)

    def step(self, parents: Branches, rows: Ints, columns: Ints) -> Iterator[tuple[Ints, Branches]]:
        """Go one token further from some of the parents, in chunks that fit.

        Args:
            parents: where from.
            rows: (n,) rows of `parents`, repeats allowed.
            columns: (n,) the token that each goes on with.

        Yields:
            Places in `rows` and the branches made from them.
        """
        begin = 0
        while begin < len(rows):
            place = np.arange(begin, min(begin + self.batch_size, len(rows)))
            try:
                branches = self._step(parents, rows[place], columns[place])
            except RuntimeError as error:
                if not _out_of_memory(error) or self.batch_size == 1:
                    raise
                self.batch_size = max(1, min(self.batch_size, len(place)) // 2)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            yield place, branches
            begin += len(place)

    def _step(self, parents: Branches, rows: Ints, columns: Ints) -> Branches:
        paths = np.concatenate([parents.paths[rows], columns[:, None]], axis=1)
        depth = parents.paths.shape[1]
        if not self.cached:
            bits, _ = self._forward(self._with_prompt(paths), 0, None)
            return Branches(paths, bits)
        if parents.cache is None:
            return self._again(paths)
        tokens = self._columns.cpu().numpy()[columns][:, None]
        cache = self._select(parents.cache, rows)
        bits, cache = self._forward(tokens, len(self._prompt) + depth, cache)
        return Branches(paths, bits, cache)

    def _again(self, paths: Ints) -> Branches:
        """Branches whose cache was dropped, run again from the prompt on, token by token.

        Several tokens at once onto a cache would be fewer calls, but is wrong for some
        state-space models.
        """
        branches = self.root()
        rows = np.zeros(len(paths), dtype=np.int64)
        for depth in range(paths.shape[1]):
            branches = self._step(branches, rows, paths[:, depth])
            rows = np.arange(len(paths))
        return branches

    def probe(self, paths: Sequence[Ints]) -> None:
        """Compare cached, re-ordered steps with a full forward, and do without the cache if needed.

        Sets `noise` and `cached`.

        Args:
            paths: a few paths to leaves; they are cut to the shortest.

        Raises:
            ValueError: the costs differ without a cache too: the model is not causal.
        """
        length = min(len(path) for path in paths)
        grid = np.array([path[:length] for path in paths])
        full = self._full(grid)
        trusted = _TRUSTED.get(self._dtype(), 0.01)
        if self.cached:
            try:
                self.noise = float(np.max(np.abs(self._costs(grid) - full), initial=0.0))
                reason = f"differs by {self.noise:.2g} bits from a full forward"
            except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
                if isinstance(error, NotFiniteError) or _out_of_memory(error):
                    raise
                self.noise, reason = math.inf, f"failed ({type(error).__name__}: {error})"
            if self.noise <= trusted and self._cache_name is not None:
                return
            if self._cache_name is not None:
                warnings.warn(
                    f"{type(self._model).__name__}: scoring with its cache {reason}; measuring "
                    "without a cache, which is slower and right",
                    stacklevel=2,
                )
            self.cached, self._root = False, None
        self.noise = float(np.max(np.abs(self._costs(grid) - full), initial=0.0))
        if self.noise > trusted:
            raise ValueError(
                f"model: {type(self._model).__name__} gives a token another probability when more "
                f"text follows it (by {self.noise:.2g} bits): it is not a causal language model, "
                "or not deterministic in eval mode"
            )

    def _costs(self, grid: Ints) -> Floats:
        """(B,) costs of paths in `grid`, their rows swapped at every step, as a walk may do."""
        order = np.arange(len(grid))
        branches, rows = self.root(), np.zeros(len(grid), dtype=np.int64)
        total = np.zeros(len(grid))
        for depth in range(grid.shape[1]):
            column = grid[order, depth]
            total[order] += branches.bits[rows, column]
            if depth + 1 == grid.shape[1]:
                break
            branches = self._step(branches, rows, column)
            order, rows = order[::-1].copy(), np.arange(len(grid))[::-1].copy()
        return total

    def _full(self, grid: Ints) -> Floats:
        """(B,) the same costs from one forward over prompt and path, without a cache."""
        ids = self._with_prompt(grid)
        logits = self._call(ids, keep=grid.shape[1] + 1, use_cache=False).logits
        logits = logits[:, -grid.shape[1] - 1 : -1]
        bits = self._bits(logits.reshape(-1, logits.shape[-1])).reshape(*grid.shape, -1)
        return np.asarray(np.take_along_axis(bits, grid[:, :, None], axis=2)[:, :, 0].sum(axis=1))

    def _with_prompt(self, paths: Ints) -> Ints:
        tokens = self._columns.cpu().numpy()[paths]
        prompt = np.broadcast_to(np.array(self._prompt), (len(paths), len(self._prompt)))
        return np.concatenate([prompt, tokens], axis=1)

    def _select(self, cache: Any, rows: Ints) -> Any:
        """A cache of the given rows, without touching the one that it comes from."""
        selected = _twin(cache)
        selected.reorder_cache(torch.as_tensor(rows, device=self._device))
        return selected

    def _forward(self, ids: Ints, past: int, cache: Any | None) -> tuple[Floats, Any | None]:
        """Bits of the next token after `ids`, which stand at positions `past` and on."""
        output = self._call(ids, past=past, cache=cache, keep=1, use_cache=self.cached)
        found = None
        if self.cached:
            for name in _CACHES:
                found = getattr(output, name, None)
                if found is not None and hasattr(found, "reorder_cache"):
                    self._cache_name = name
                    break
            else:
                found = None
        return self._bits(output.logits[:, -1]), found

    def _call(
        self,
        ids: Ints,
        *,
        past: int = 0,
        cache: Any | None = None,
        keep: int,
        use_cache: bool,
    ) -> Any:
        tokens = torch.as_tensor(ids, device=self._device)
        rows, width = tokens.shape
        inputs: dict[str, Any] = {"input_ids": tokens}
        # Some architectures are silently wrong without mask and positions.
        optional: dict[str, Any] = {
            "attention_mask": torch.ones(
                rows, past + width, dtype=torch.long, device=self._device
            ),
            "position_ids": torch.arange(past, past + width, device=self._device).repeat(rows, 1),
            "logits_to_keep": keep,
            "use_cache": use_cache,
            "return_dict": True,
        }
        inputs.update({k: v for k, v in optional.items() if k in self._accepts})
        if cache is not None and self._cache_name is not None:
            inputs[self._cache_name] = cache
        self.forwards += rows * width
        return self._model(**inputs)

    def _bits(self, logits: torch.Tensor) -> Floats:
        """(rows, C) costs in bits of the columns, from (rows, vocabulary) logits."""
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        total = torch.logsumexp(logits, dim=-1, keepdim=True)
        # A NaN anywhere in a row is in its sum; minus infinity for a few tokens is a mask.
        if not bool(torch.isfinite(total).all()):
            raise NotFiniteError(
                f"model: {type(self._model).__name__} gave logits that are NaN or infinite; "
                "check its weights (a diverged training?) and its precision"
            )
        nats = total - logits[:, self._columns.to(logits.device)]
        return np.asarray(nats.double().cpu().numpy() / math.log(2))

    def _dtype(self) -> torch.dtype:
        return next((p.dtype for p in self._model.parameters() if p.is_floating_point()), torch.float32)


@contextlib.contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode and all random states are put back.

    They are put back also when an error passes through.
    """
    modes = [(module, module.training) for module in model.modules()]
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        random.setstate(states[0])
        np.random.set_state(states[1])


def _twin(value: Any) -> Any:
    """A copy of a cache that shares its tensors, so that selecting rows leaves the original alone."""
    if isinstance(value, list):
        return [_twin(item) for item in value]
    if isinstance(value, dict):
        return {key: _twin(item) for key, item in value.items()}
    if hasattr(value, "reorder_cache") and hasattr(value, "__dict__"):
        twin = copy.copy(value)
        twin.__dict__.update({key: _twin(item) for key, item in vars(value).items()})
        return twin
    return value


def _device(model: Any) -> torch.device:
    device = model.get_input_embeddings().weight.device
    return torch.device(device)


def _parameters(model: Any) -> set[str]:
    """Names that the model's own `forward` takes, looking through wrappers."""
    while hasattr(model, "module"):
        model = model.module
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    return set(inspect.signature(model.forward).parameters)


def _bytes_per_token(model: Any) -> int:
    """Roughly what a cache holds for one position, for deciding how many may wait."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers = getattr(text, "num_hidden_layers", None) or 12
    hidden = getattr(text, "hidden_size", None) or 768
    heads = getattr(text, "num_attention_heads", None) or 1
    shared = getattr(text, "num_key_value_heads", None) or heads
    if not all(isinstance(number, int) for number in (layers, hidden, heads, shared)):
        return 1 << 16
    return max(1, 2 * layers * hidden * shared // heads * 4)


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
