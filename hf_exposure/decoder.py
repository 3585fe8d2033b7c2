"""The only code that runs a model: log-probabilities of the next token for a batch of branches.

A branch is a path of tokens after the prompt. Branches of equal length go one token further
together; the prompt is run once, and the model's own cache is selected with its own
`reorder_cache`. Costs are log-perplexities in bits: log-softmax in float32 or better, sums in
float64. Memory holds (rows, vocabulary) logits for one chunk at a time; only the columns that the
secret space needs are kept.

Rows of several caches are put into one by joining those tensors that `reorder_cache` replaces, so
that branches which come from different places can still be run together. No list of architectures
says where all this works: `Decoder.probe` compares with a full forward.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_CACHES = ("past_key_values", "cache_params")
_CACHE_BYTES = 1 << 30  # caches of branches that wait, before the last in line are dropped
_LOGITS = 1 << 25  # rows times vocabulary of one forward, unless batch_size says otherwise
_CHILDREN = 1 << 21  # rows times columns: as many children may come of one forward
_TRUSTED = {torch.float16: 0.5, torch.bfloat16: 0.5}  # bits of one token; other types 0.01


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
    _bytes: int | None = field(default=None, repr=False)

    @property
    def cache_bytes(self) -> int:
        """Memory that the cache holds."""
        if self.cache is None:
            return 0
        if self._bytes is None:
            self._bytes = sum(tensor.nbytes for tensor in _tensors(self.cache))
        return self._bytes


def together(parts: Sequence[tuple[Branches, Ints]]) -> Branches:
    """Rows of several branches of one length as branches, without `bits`.

    Caches are not copied here but by the next step. All parts have a cache, or none has.
    """
    paths = np.concatenate([branches.paths[rows] for branches, rows in parts])
    cache = None
    if parts[0][0].cache is not None:
        cache = _Joined([(branches.cache, rows) for branches, rows in parts])
    return Branches(paths, np.zeros((0, 0)), cache)


@dataclass
class _Joined:
    """Rows of several caches: parts of (cache, (n,) rows of it)."""

    parts: list[tuple[Any, Ints]]


class Decoder:
    """Runs `model` after `prompt`, one token further at a time.

    Args:
        model: a causal language model of transformers, in any mode; use within `undisturbed`.
        prompt: the tokens that come first, at least one.
        columns: (C,) tokens whose probabilities are wanted.
        batch_size: rows of a forward; None derives it from the vocabulary. Halved, and kept so,
            when memory runs out.
        before_forward: called before each forward, for processes that go in step.

    Attributes:
        halved: whether memory ran out, so that `batch_size` is smaller than it was.
        waiting_bytes: memory of the caches of branches that wait; told by the walk.
        peak_bytes: the most that those, the branches of a step and its logits have held at once.
        forwards: token-forwards so far: positions that the model has computed, prompt included.
        cached: whether the model's cache is used.
        context: the largest number of tokens that the model was made for, None if it has no limit.
        cache_limit: bytes of caches that may wait; the walk drops those that come last.
        joins: whether rows of several caches can be run together.
        noise: the largest difference in bits that `probe` saw between the costs of paths by
            cached steps and by a full forward.

    Raises:
        ValueError: the model is an encoder-decoder, its vocabulary is too small for the tokens, or
            a path with its prompt does not fit its context (raised by the step that leaves it).
    """

    def __init__(
        self,
        model: Any,
        prompt: Sequence[int],
        columns: Ints,
        *,
        batch_size: int | None = None,
        before_forward: Callable[[], None] | None = None,
    ) -> None:
        # A step here is not one of all processes, and DDP would wait for the others.
        parallel = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
        self._model = model.module if isinstance(model, parallel) else model
        bare = _bare(model)
        self._name = type(bare).__name__
        self._prompt = list(prompt)
        self._tokens = np.asarray(columns, dtype=np.int64)
        weight = bare.get_input_embeddings().weight
        self._device = torch.device(weight.device)
        self._columns = torch.as_tensor(self._tokens, device=self._device)
        self._accepts = set(inspect.signature(bare.forward).parameters)
        config = getattr(bare, "config", None)
        # ZeRO-3 leaves an empty tensor where a parameter was, and its shape beside it.
        self._vocabulary = int(getattr(weight, "ds_shape", weight.shape)[0])
        self._check(config, self._vocabulary)
        self.context = _context(config)
        self._cache_name: str | None = None
        self._root: Branches | None = None
        most = min(512, _LOGITS // self._vocabulary, _CHILDREN // max(1, len(columns)))
        self.batch_size = batch_size or max(1, most)
        self.cache_limit = _CACHE_BYTES
        self.forwards = 0
        self.cached = True
        self.joins = True
        self._masks = True  # whether a cached step gets a mask
        self.noise = math.nan
        self.halved = False
        self.waiting_bytes = self.peak_bytes = 0
        self._before_forward = before_forward

    def _check(self, config: Any, size: int) -> None:
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(
                f"model: {self._name} is an encoder-decoder; exposure is defined here for causal "
                "language models (AutoModelForCausalLM)"
            )
        largest = max([*self._prompt, *self._tokens.tolist()])
        if largest >= size:
            raise ValueError(
                f"model: {self._name} has a vocabulary of {size}, smaller than the tokenizer's, "
                f"whose token {largest} is needed; give the tokenizer that it was trained with, or "
                "call model.resize_token_embeddings(len(tokenizer))"
            )

    def root(self) -> Branches:
        """The empty path. The prompt is run on the first call only."""
        if self._root is None:
            bits, cache = self._forward(np.array([self._prompt]), 0, None)
            if cache is None:
                self.cached = False
            self._root = Branches(np.zeros((1, 0), dtype=np.int64), bits, cache)
        return replace(self._root)  # walks let go of what they do not need any more

    def idle(self) -> None:
        """The smallest forward there is, for a process that waits for others in step."""
        self._call(np.array([self._prompt[:1]]), keep=1, use_cache=False)

    def price(self, parents: Branches) -> int:
        """Token-forwards that one step from one of these branches takes."""
        if self.cached and parents.cache is not None:
            return 1
        depth = parents.paths.shape[1] + 1
        return int(depth if self.cached else depth + len(self._prompt))

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
            branches = None
            try:
                branches = self._step(parents, rows[place], columns[place])
            except RuntimeError as error:
                if not _out_of_memory(error) or len(place) == 1:
                    raise
            if branches is None:  # out here, where the error no longer holds on to tensors
                self.batch_size, self.halved = len(place) // 2, True
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
            return self._weighed(parents, Branches(paths, bits))
        if parents.cache is None:
            return self._again(paths)
        tokens = self._tokens[columns][:, None]
        cache = self._select(parents.cache, rows)
        bits, cache = self._forward(tokens, len(self._prompt) + depth, cache)
        return self._weighed(parents, Branches(paths, bits, cache))

    def _weighed(self, parents: Branches, made: Branches) -> Branches:
        """The branches of a step, whose memory is taken note of."""
        held = self.waiting_bytes + parents.cache_bytes + made.cache_bytes + made.bits.nbytes
        logits = len(made.paths) * self._vocabulary * 4  # in single precision
        self.peak_bytes = max(self.peak_bytes, held + logits)
        return made

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
        """Compare cached, re-ordered, joined steps with a full forward, and do without them if
        they differ.

        Sets `noise`, `cached` and `joins`.

        Args:
            paths: a few paths to leaves. Others are made up beside them, so that there are always
                rows to swap and several steps, whatever is given.

        Raises:
            ValueError: the costs differ without a cache too: the model is not causal.
            NotFiniteError: the model gave NaN.
        """
        grid, real = self._probes(paths)
        full = self._full(grid)
        reason = "is not possible, for it keeps none whose rows can be selected"
        # A mask is what bamba needs in a cached step, and what mamba does not bear.
        for self.joins, self._masks in itertools.product((True, False), (True, False)):
            self.root()
            if not self.cached:
                break
            try:
                costs = self._costs(grid)
            except Exception as error:  # whatever a cache of an unknown kind may do
                if isinstance(error, NotFiniteError) or _out_of_memory(error):
                    raise
                reason = f"failed ({type(error).__name__})"
                continue
            if self._agree(costs, full):
                self.noise = _noise(costs, full, real)
                return
            difference = float(np.abs(_difference(costs, full)).max())
            reason = f"differs by {difference:.2g} bits from a full forward"
        warnings.warn(
            f"{self._name}: scoring with its cache {reason}; measuring without a cache, which is "
            "slower and right",
            stacklevel=2,
        )
        self.cached, self._root = False, None
        costs = self._costs(grid)
        self.noise = _noise(costs, full, real)
        if not self._agree(costs, full):
            difference = float(np.abs(_difference(costs, full)).max())
            raise ValueError(
                f"model: {self._name} gives a token another probability when more text follows it "
                f"(by {difference:.2g} bits): it is not a causal language model, not deterministic "
                f"in eval mode, or its precision, {self._dtype()}, does not suffice"
            )

    def _agree(self, costs: Floats, truth: Floats) -> bool:
        """Whether the costs of tokens differ by no more than rounding explains."""
        dtype = self._dtype()
        with np.errstate(invalid="ignore"):
            allowed = _TRUSTED.get(dtype, 0.01) + 8 * torch.finfo(dtype).eps * np.abs(truth)
        return bool((np.abs(_difference(costs, truth)) <= allowed).all())

    def _probes(self, paths: Sequence[Ints]) -> tuple[Ints, NDArray[np.bool_]]:
        """(B, L) paths and which of their cells are given ones.

        At least four of four tokens, as far as the context allows.
        """
        length = max(4, *(len(path) for path in paths))
        if self.context is not None:
            length = max(1, min(length, self.context - len(self._prompt)))
        draw = np.random.default_rng(0)
        made = [draw.integers(len(self._tokens), size=length) for _ in range(4 - len(paths))]
        grid = np.array([np.resize(path, length) for path in [*paths, *made]], dtype=np.int64)
        real = np.zeros(grid.shape, dtype=bool)
        for row, path in enumerate(paths):
            real[row, : len(path)] = True
        return grid, real

    def _costs(self, grid: Ints) -> Floats:
        """(B, L) costs of the tokens of paths in `grid`, run as a walk may do: in two parts,
        which are joined and swapped at every step."""
        branches, order = self.root(), np.zeros(len(grid), dtype=np.int64)
        out = np.zeros(grid.shape)
        row_of = order  # the row of each path in `branches`
        for depth in range(grid.shape[1]):
            out[:, depth] = branches.bits[row_of, grid[:, depth]]
            if depth + 1 == grid.shape[1]:
                break
            order = np.arange(len(grid))[::-1]
            parts = [order] if not self.joins else [order[1:], order[:1]]
            stepped = [self._step(branches, row_of[part], grid[part, depth]) for part in parts]
            if self.joins:
                bits = np.concatenate([part.bits for part in stepped])
                branches = together([(part, np.arange(len(part.paths))) for part in stepped])
                branches.bits = bits
            else:
                branches = stepped[0]
            row_of = np.argsort(np.concatenate(parts))
        return out

    def _full(self, grid: Ints) -> Floats:
        """(B, L) the same costs from one forward over prompt and path, without a cache."""
        ids = self._with_prompt(grid)
        logits = self._call(ids, keep=grid.shape[1] + 1, use_cache=False).logits
        logits = logits[:, -grid.shape[1] - 1 : -1]
        bits = self._bits(logits.reshape(-1, logits.shape[-1])).reshape(*grid.shape, -1)
        return np.asarray(np.take_along_axis(bits, grid[:, :, None], axis=2)[:, :, 0])

    def _with_prompt(self, paths: Ints) -> Ints:
        tokens = self._tokens[paths]
        prompt = np.broadcast_to(np.array(self._prompt), (len(paths), len(self._prompt)))
        return np.concatenate([prompt, tokens], axis=1)

    def _select(self, cache: Any, rows: Ints) -> Any:
        """A cache of the given rows, without touching the one that it comes from."""
        if isinstance(cache, _Joined):
            return self._join(cache, rows)
        selected = _twin(cache)
        selected.reorder_cache(torch.as_tensor(rows, device=self._device))
        return selected

    def _join(self, joined: _Joined, rows: Ints) -> Any:
        """A cache of the given rows of a joined one."""
        ends = np.cumsum([len(chosen) for _, chosen in joined.parts])
        part_of = np.searchsorted(ends, rows, "right")
        order, parts = [], []
        for number in np.unique(part_of):
            cache, chosen = joined.parts[number]
            here = np.flatnonzero(part_of == number)
            order.append(here)
            own = chosen[rows[here] - ends[number] + len(chosen)]
            parts.append((cache, self._select(cache, own)))
        if len(parts) == 1:
            return parts[0][1]
        back = np.argsort(np.concatenate(order))
        whole = _joined([old for old, _ in parts], [new for _, new in parts])
        if (back[1:] < back[:-1]).any():
            whole.reorder_cache(torch.as_tensor(back, device=self._device))
        return whole

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
        rows, width = ids.shape
        if self.context is not None and past + width > self.context:
            raise ValueError(
                f"model: {self._name} has a context of {self.context} tokens, but {past + width} "
                f"are needed, {len(self._prompt)} of them before the secret; use a shorter template"
            )
        tokens = torch.as_tensor(ids, device=self._device)
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
        if past and not self._masks:
            del optional["attention_mask"]
        inputs.update({k: v for k, v in optional.items() if k in self._accepts})
        if cache is not None and self._cache_name is not None:
            inputs[self._cache_name] = cache
        if self._before_forward is not None:
            self._before_forward()
        output = self._model(**inputs)
        self.forwards += rows * width
        return output

    def _bits(self, logits: torch.Tensor) -> Floats:
        """(rows, C) costs in bits of the columns, from (rows, vocabulary) logits."""
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        total = torch.logsumexp(logits, dim=-1, keepdim=True)
        # A NaN anywhere in a row is in its sum; minus infinity for a few tokens is a mask.
        if not bool(torch.isfinite(total).all()):
            raise NotFiniteError(
                f"model: {self._name} gave logits that are NaN or infinite; "
                "check its weights (a diverged training?) and its precision"
            )
        nats = total - logits[:, self._columns.to(logits.device)]
        return np.asarray(nats.double().cpu().numpy() / math.log(2))

    def _dtype(self) -> torch.dtype:
        weights = (weight for weight in self._model.parameters() if weight.is_floating_point())
        return next((weight.dtype for weight in weights), torch.float32)


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
    """A copy of a cache that shares its tensors, so that selecting rows leaves the cache alone."""
    if isinstance(value, list):
        return [_twin(item) for item in value]
    if isinstance(value, dict):
        return {key: _twin(item) for key, item in value.items()}
    if hasattr(value, "reorder_cache") and hasattr(value, "__dict__"):
        twin = copy.copy(value)
        twin.__dict__.update({key: _twin(item) for key, item in vars(value).items()})
        return twin
    return value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of a cache, or of a joined one's parts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, _Joined):
        for cache, _ in value.parts:
            yield from _tensors(cache)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif hasattr(value, "reorder_cache") and hasattr(value, "__dict__"):
        yield from _tensors(list(vars(value).values()))


def _joined(before: list[Any], after: list[Any]) -> Any:
    """One cache of the rows of all in `after`.

    Args:
        before: the caches that those were selected from. What `reorder_cache` has replaced in
            them is one row for each branch, all else is the same for all.
    """
    old, new = before[0], after[0]
    if isinstance(new, torch.Tensor):
        return new if new is old else torch.cat(after)
    if isinstance(new, list):
        columns = zip(zip(*before, strict=True), zip(*after, strict=True), strict=True)
        return [_joined(list(olds), list(news)) for olds, news in columns]
    if isinstance(new, dict):
        return {
            key: _joined([one[key] for one in before], [one[key] for one in after]) for key in new
        }
    if hasattr(new, "reorder_cache") and hasattr(new, "__dict__"):
        joined = copy.copy(new)
        joined.__dict__.update(
            _joined([vars(one) for one in before], [vars(one) for one in after])
        )
        return joined
    return new


def _difference(costs: Floats, truth: Floats) -> Floats:
    """costs - truth; none where both are infinite, as for a token of probability 0."""
    with np.errstate(invalid="ignore"):
        return np.where(costs == truth, 0.0, costs - truth)


def _noise(costs: Floats, truth: Floats, real: NDArray[np.bool_]) -> float:
    """The largest difference between sums along paths, as far as `real` reaches."""
    return float(np.abs(np.cumsum(_difference(costs, truth), axis=1))[real].max())


def _bare(model: Any) -> Any:
    """The model of transformers itself, looking through wrappers (DDP, torch.compile, PEFT)."""
    while True:
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        if inner is None or inner is model:
            return model
        model = inner


def _context(config: Any) -> int | None:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text, "max_position_embeddings", None)
    return int(limit) if isinstance(limit, int) and limit > 0 else None


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, as CUDA, MPS and CPU say it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    told = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in told)
