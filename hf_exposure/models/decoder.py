"""The only code that runs a model: log-probabilities of the next token for a batch of branches.

A branch is a path of tokens after the prompt. Branches of equal length go one token further
together; the prompt is run once, and the model's own cache is selected with its own
`reorder_cache`. Costs are log-perplexities in bits: log-softmax in float32 or better, sums in
float64. Memory holds (rows, vocabulary) logits for one chunk at a time; only the columns that the
secret space needs are kept.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from hf_exposure.models.caches import Joined, bytes_of, can_be_selected, select
from hf_exposure.models.processes import BrokenForwardError, ProcessFailedError
from hf_exposure.models.snapshot import nothing_left
from hf_exposure.utils.arrays import Bools, Floats, Ints

T = TypeVar("T")

_CACHES = ("past_key_values", "cache_params")
_CACHE_BYTES = 1 << 30  # caches of branches that wait, before the last in line are dropped
_LOGITS = 1 << 25  # rows times vocabulary of one forward, unless batch_size says otherwise
_PIECE = 1 << 22  # rows times vocabulary that are normalized at once
_CHILDREN = 1 << 21  # rows times columns: as many children may come of one forward
_HALF = (torch.float16, torch.bfloat16)
_TRUSTED = dict.fromkeys(_HALF, 0.5)  # bits of one token; other types 0.01


class NotFiniteError(ValueError):
    """The model's logits hold NaN, so that nothing can be measured."""


_NEVER_HELD = (NotFiniteError, ProcessFailedError, BrokenForwardError)


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
            self._bytes = bytes_of(self.cache)
        return self._bytes


def together(parts: Sequence[tuple[Branches, Ints]]) -> Branches:
    """Rows of several branches of one length as branches, without `bits`.

    Caches are not copied here but by the next step. All parts have a cache, or none has.
    """
    paths = np.concatenate([branches.paths[rows] for branches, rows in parts])
    cache = None
    if parts[0][0].cache is not None:
        cache = Joined([(branches.cache, rows) for branches, rows in parts])
    return Branches(paths, np.zeros((0, 0)), cache)


class Decoder:
    """Runs `model` after `prompt`, one token further at a time.

    Args:
        model: a causal language model of transformers, in any mode; use within `undisturbed`.
        prompt: the tokens that come first, at least one.
        columns: (C,) tokens whose probabilities are wanted; None for all that the model knows.
        batch_size: rows of a forward; None derives it from the vocabulary. Halved, and kept so,
            when memory runs out.
        turn: gives a context that is held during each forward, for processes that go in step.
        warp: what a sampling scheme makes of (rows, vocabulary) logits, minus infinity where a
            token is cut off; costs are then those under the scheme.

    Attributes:
        halved: whether memory ran out, so that `batch_size` is smaller than it was.
        waiting_bytes: memory of the caches of branches that wait; told by the walk.
        peak_bytes: the most that those, the branches of a step and its logits have held at once.
        vocabulary: how many tokens the model knows.
        forwards: token-forwards so far: positions that the model has computed, prompt included.
        cached: whether the model's cache is used.
        context: the largest number of tokens that the model was made for, None if it has no limit.
        cache_limit: bytes of caches that may wait; the walk drops those that come last.
        joins: whether rows of several caches can be run together.
        noise: the largest difference in bits that `probe` saw between the costs of paths by
            cached steps and by a full forward.

    Raises:
        ValueError: the model is an encoder-decoder or a masked one, asks for more than tokens, its
            vocabulary is too small for them, or a path with its prompt does not fit its context
            (raised by the step that leaves it).
    """

    def __init__(
        self,
        model: Any,
        prompt: Sequence[int],
        columns: Ints | None,
        *,
        batch_size: int | None = None,
        turn: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        warp: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._model = _unwrapped(model)
        bare = _bare(model)
        self._name = type(bare).__name__
        self._prompt = list(prompt)
        config = getattr(bare, "config", None)
        self.vocabulary, self._device = _vocabulary(bare, config)
        columns = np.arange(self.vocabulary) if columns is None else columns
        self._tokens = np.asarray(columns, dtype=np.int64)
        self._columns = torch.as_tensor(self._tokens, device=self._device)
        parameters = inspect.signature(bare.forward).parameters
        self._accepts = set(parameters)
        self._check_asked(parameters)
        self._check(config)
        self.context = _context(config)
        self._cache_name: str | None = None
        self._root: Branches | None = None
        most = min(512, _LOGITS // self.vocabulary, _CHILDREN // max(1, len(columns)))
        self.batch_size = batch_size or max(1, most)
        self._chosen = batch_size is None
        self.cache_limit = _CACHE_BYTES
        self.forwards = 0
        self.cached = True
        self.joins = True
        self._masks = self._positions = True  # whether a cached step gets them
        self._shown: torch.dtype | None = None  # the precision of its logits
        self.noise = math.nan
        self.halved = False
        self.waiting_bytes = self.peak_bytes = 0
        self._turn = turn
        self._warp = warp

    def _check_asked(self, parameters: Mapping[str, inspect.Parameter]) -> None:
        given = {"input_ids", "attention_mask", "logits_to_keep", "use_cache", "return_dict"}
        some = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        asked = [
            name
            for name, one in parameters.items()
            if one.default is one.empty and one.kind not in some and name not in given
        ]
        if asked:
            raise ValueError(
                f"model: {self._name} asks for {', '.join(asked)}, but exposure is measured on "
                "text alone, given as input_ids; use a causal language model"
            )

    def _check(self, config: Any) -> None:
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(
                f"model: {self._name} is an encoder-decoder; exposure is defined here for causal "
                "language models (AutoModelForCausalLM)"
            )
        if self._name.endswith("ForMaskedLM"):  # one of random weights would pass the probe
            raise ValueError(
                f"model: {self._name} is not a causal language model but a masked one; "
                "exposure is defined here for causal ones (AutoModelForCausalLM)"
            )
        largest = max(*self._prompt, int(self._tokens.max(initial=0)))
        if largest >= self.vocabulary:
            raise ValueError(
                f"model: {self._name} has a vocabulary of {self.vocabulary}, smaller than the "
                f"tokenizer's, whose token {largest} is needed; give the tokenizer that it was "
                "trained with, or call model.resize_token_embeddings(len(tokenizer))"
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
        return self._in_chunks(
            len(rows), lambda place: self._step(parents, rows[place], columns[place])
        )

    def _in_chunks(self, count: int, run: Callable[[Ints], T]) -> Iterator[tuple[Ints, T]]:
        """Places among `count` rows and what `run` makes of them, as many at once as fit."""
        begin = 0
        while begin < count:
            place = np.arange(begin, min(begin + self.batch_size, count))
            made = None
            try:
                made = run(place)
            except RuntimeError as error:
                if not _out_of_memory(error) or len(place) == 1:
                    raise
            if made is None:  # out here, where the error no longer holds on to tensors
                self.batch_size, self.halved = len(place) // 2, True
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            yield place, made
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
        cache = select(parents.cache, rows, self._device)
        bits, cache = self._forward(tokens, len(self._prompt) + depth, cache)
        return self._weighed(parents, Branches(paths, bits, cache))

    def _weighed(self, parents: Branches, made: Branches) -> Branches:
        """The branches of a step, whose memory is taken note of."""
        held = self.waiting_bytes + parents.cache_bytes + made.cache_bytes + made.bits.nbytes
        logits = len(made.paths) * self.vocabulary * 4  # in single precision
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
        # A mask is what bamba needs in a cached step, and what mamba does not bear; positions are
        # what it needs too, and what RoBERTa, which begins with another one, does not bear.
        ways = itertools.product((True, False), (True, False), (True, False))
        for self.joins, self._positions, self._masks in ways:
            self.root()
            if not self.cached:
                break
            try:
                costs = self._costs(grid)
            except Exception as error:  # whatever a cache of an unknown kind may do
                if isinstance(error, _NEVER_HELD) or _out_of_memory(error):
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
                f"in eval mode, or its precision, {self._precision()}, does not suffice"
            )

    def trust(self, other: Decoder) -> None:
        """Take over what `other`, a decoder of the same model, has found out by its `probe`."""
        self.noise, self.cached, self.joins = other.noise, other.cached, other.joins
        self._positions, self._masks = other._positions, other._masks

    def forced(self, sequences: Sequence[Ints], begins: Ints) -> Iterator[tuple[int, Floats, Ints]]:
        """Costs of given tokens, by full forwards that are told all that comes before each.

        Args:
            sequences: token ids, whole. The prompt and the columns play no part.
            begins: (n,) place of the first token in each whose cost is wanted, at least 1.

        Yields:
            A place in `sequences`, the bits of its tokens from `begins` on, and the tokens that
            greedy decoding would choose in their places: of equally likely ones that which
            `torch.argmax` names, on a CPU the one with the lowest id.
        """
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        if self._chosen and len(sequences):
            most = _LOGITS // (self.vocabulary * int((lengths - begins).max()))
            self.batch_size = max(1, min(self.batch_size, most))
        order = np.argsort(lengths, kind="stable")

        def run(part: Ints) -> list[tuple[Floats, Ints]]:
            return self._forced([sequences[place] for place in order[part]], begins[order[part]])

        for part, made in self._in_chunks(len(order), run):
            for place, (bits, greedy) in zip(order[part].tolist(), made, strict=True):
                yield place, bits, greedy

    def _forced(self, sequences: list[Ints], begins: Ints) -> list[tuple[Floats, Ints]]:
        """See `forced`: for each sequence its bits and the greedy tokens."""
        # Nothing is asked about what follows the last token. What stands to the right has no say
        # in a causal model, so that rows may be filled up.
        width = max(map(len, sequences)) - 1
        ids = np.array([np.pad(one[:-1], (0, width + 1 - len(one))) for one in sequences])
        first = int(begins.min()) - 1
        output = self._call(ids, keep=width - first, use_cache=False)
        logits = self._logits(output)[:, first - width :]
        out = []
        for row, tokens, begin in zip(logits, sequences, begins.tolist(), strict=True):
            own = row[begin - 1 - first : len(tokens) - 1 - first]
            following = torch.as_tensor(tokens[begin:])[:, None]
            greedy = np.asarray(_single(own).argmax(-1).cpu().numpy())
            out.append((self._bits(own, following)[:, 0], greedy))
        return out

    def _agree(self, costs: Floats, truth: Floats) -> bool:
        """Whether the costs of tokens differ by no more than rounding explains."""
        dtype = self._precision()
        with np.errstate(invalid="ignore"):
            allowed = _TRUSTED.get(dtype, 0.01) + 8 * torch.finfo(dtype).eps * np.abs(truth)
        return bool((np.abs(_difference(costs, truth)) <= allowed).all())

    def _probes(self, paths: Sequence[Ints]) -> tuple[Ints, Bools]:
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
        branches = self.root()
        out = np.zeros(grid.shape)
        row_of = np.zeros(len(grid), dtype=np.int64)  # the row of each path in `branches`
        for depth in range(grid.shape[1]):
            out[:, depth] = branches.bits[row_of, grid[:, depth]]
            if depth + 1 == grid.shape[1]:
                break
            # Another order than at the step before, so that rows move, and from part to part too.
            order = np.arange(len(grid))[::-1] if depth % 2 else np.roll(np.arange(len(grid)), 2)
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

    def full_costs(self, paths: Ints) -> Floats:
        """(B, L) bits of the tokens of given paths, by forwards over all of each, without a cache.

        Raises:
            ValueError: they do not fit the model's context together with the prompt.
        """
        return self._full(paths)

    def _full(self, grid: Ints) -> Floats:
        """(B, L) the same costs from forwards over prompt and path, one for each path, without a
        cache and with nothing but tokens and mask, as in training."""
        out = []
        for path, ids in zip(grid, self._with_prompt(grid), strict=True):
            output = self._call(ids[None], keep=len(path) + 1, use_cache=False)
            bits = self._bits(self._logits(output)[0, -len(path) - 1 : -1])
            out.append(bits[np.arange(len(path)), path])
        return np.array(out)

    def _with_prompt(self, paths: Ints) -> Ints:
        tokens = self._tokens[paths]
        prompt = np.broadcast_to(np.array(self._prompt), (len(paths), len(self._prompt)))
        return np.concatenate([prompt, tokens], axis=1)

    def _forward(self, ids: Ints, past: int, cache: Any | None) -> tuple[Floats, Any | None]:
        """Bits of the next token after `ids`, which stand at positions `past` and on."""
        output = self._call(ids, past=past, cache=cache, keep=1, use_cache=self.cached)
        found = None
        if self.cached:
            for name in _CACHES:
                found = getattr(output, name, None)
                if can_be_selected(found):
                    self._cache_name = name
                    break
            else:
                found = None
        return self._bits(self._logits(output)[:, -1]), found

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
        # Some architectures are silently wrong without mask and positions in a cached step. The
        # first forward goes without positions, as in training: not all models count from 0.
        optional: dict[str, Any] = {
            "attention_mask": torch.ones(rows, past + width, dtype=torch.long, device=self._device),
            "position_ids": torch.arange(past, past + width, device=self._device).repeat(rows, 1),
            "logits_to_keep": keep,
            "use_cache": use_cache,
            "return_dict": True,
        }
        if past and not self._masks:
            del optional["attention_mask"]
        if not past or not self._positions:
            del optional["position_ids"]
        inputs.update({k: v for k, v in optional.items() if k in self._accepts})
        if cache is not None and self._cache_name is not None:
            inputs[self._cache_name] = cache
        with self._turn():
            output = self._model(**inputs)
        self.forwards += rows * width
        return output

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
                f"model: {self._name} gave no logits of shape (rows, positions, vocabulary); "
                "exposure needs a causal language model (AutoModelForCausalLM)"
            )
        return logits

    def _bits(self, logits: torch.Tensor, following: torch.Tensor | None = None) -> Floats:
        """(rows, C) costs in bits of the columns, from (rows, vocabulary) logits.

        Args:
            following: (rows, C) tokens of each row to look at in place of the columns.
        """
        if self._shown is None:
            self._shown = _precision_of(logits)
        # In pieces, for single precision, logsumexp and a warp make a copy of what they are given.
        size = max(1, _PIECE // logits.shape[-1])
        columns = self._columns.to(logits.device)
        totals, chosen = [], []
        for number, piece in enumerate(logits.split(size)):
            scores = _single(piece) if self._warp is None else self._warp(_single(piece))
            totals.append(torch.logsumexp(scores, -1, keepdim=True))
            if following is None:
                chosen.append(scores[:, columns])
            else:
                own = following[number * size : (number + 1) * size].to(logits.device)
                chosen.append(scores.gather(1, own))
        total = torch.cat(totals)
        # A NaN anywhere in a row is in its sum; minus infinity for a few tokens is a mask.
        if not bool(torch.isfinite(total).all()):
            raise NotFiniteError(
                f"model: {self._name} gave logits that are NaN or infinite; "
                "check its weights (a diverged training?) and its precision"
            )
        nats = total - torch.cat(chosen)
        return np.asarray(nats.double().cpu().numpy() / math.log(2))

    def _precision(self) -> torch.dtype:
        """The coarsest numbers that the model computes with, as far as its weights and its logits
        show. Weights of 8 and 4 bits are taken for bfloat16: they are exact, what they are
        multiplied with is not."""
        kinds = {self._shown or torch.float32}
        for weight in self._model.parameters():
            kinds.add(weight.dtype if weight.dtype.itemsize > 1 else torch.bfloat16)
        if getattr(_bare(self._model), "is_quantized", False):
            kinds.add(torch.bfloat16)
        return max((k for k in kinds if k.is_floating_point), key=lambda k: torch.finfo(k).eps)


@contextlib.contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the model and all random states are as before.

    So they are when an error passes through; see `nothing_left`. What `torch.compile` has compiled
    runs as it was before: chunks and caches have a new shape at nearly every step, and compiling
    for each of them would take longer than all of the measurement.
    """
    modes = [(module, module.training) for module in model.modules()]
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    plainly: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if any(_is_compiled(module) for module, _ in modes):
        plainly = torch.compiler.set_stance("force_eager")
    try:
        fork = torch.random.fork_rng(devices=devices)
        with nothing_left(model), plainly, fork, torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        random.setstate(states[0])
        np.random.set_state(states[1])


def _single(logits: torch.Tensor) -> torch.Tensor:
    """The same in single precision, or in double if that is what they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _difference(costs: Floats, truth: Floats) -> Floats:
    """costs - truth; none where both are infinite, as for a token of probability 0."""
    with np.errstate(invalid="ignore"):
        return np.where(costs == truth, 0.0, costs - truth)


def _noise(costs: Floats, truth: Floats, real: Bools) -> float:
    """The largest difference between sums along paths, as far as `real` reaches."""
    return float(np.abs(np.cumsum(_difference(costs, truth), axis=1))[real].max())


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


def _is_compiled(module: Any) -> bool:
    """Whether `torch.compile` was told to compile a module, in one of the three ways there are."""
    return (
        hasattr(module, "_orig_mod")  # torch.compile(module)
        or getattr(module, "_compiled_call_impl", None) is not None  # module.compile()
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
    )


def _precision_of(logits: torch.Tensor) -> torch.dtype:
    """The type of logits, or the shorter one that all of them come from: `autocast` and some
    models give back in single precision what they have computed in half."""
    for dtype in _HALF if logits.dtype == torch.float32 else ():
        if torch.equal(logits.to(dtype).float(), logits):
            return dtype
    return logits.dtype


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
