"""Log-probabilities of the next token for a batch of branches, by a model at hand and its cache.

The prompt is run once, and the model's own cache is selected with its own `reorder_cache`. On
first use cached steps are compared with a full forward.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hf_exposure.models.caches import can_be_selected, select
from hf_exposure.models.causal import CausalModel, NotFiniteError, out_of_memory
from hf_exposure.models.next_tokens import Branches, together
from hf_exposure.models.precision import agree, difference, largest_difference, rounding
from hf_exposure.models.processes import BrokenForwardError, ProcessFailedError
from hf_exposure.utils.arrays import Bools, Floats, Ints
from hf_exposure.utils.warn import warn

_CACHE_BYTES = 1 << 30  # caches of branches that wait, before the last in line are dropped
_CHILDREN = 1 << 20  # rows times tokens: as many children may come of one forward
_NEVER_HELD = (NotFiniteError, ProcessFailedError, BrokenForwardError)


class Decoder(CausalModel):
    """Runs `model` after `prompt`, one token further at a time; see `NextTokens`.

    Args:
        prompt: the tokens that come first, at least one.
        token_ids: (C,) tokens whose probabilities are wanted; None for all that the model knows.
            In paths and branches they are called by their places here.
        model, batch_size, turn, warp: see `CausalModel`.

    Attributes:
        peak_bytes: the most that caches of waiting branches, the branches of a step and its logits
            have held at once.
        cached: whether the model's cache is used.
        cache_limit: bytes of caches that may wait.
        joins: whether rows of several caches can be run together.
        noise: the largest difference in bits that `probe` saw between the costs of paths by
            cached steps and by a full forward, or what its precision makes likely elsewhere.

    Raises:
        ValueError: see `CausalModel`; or its vocabulary is too small for these tokens, or a path
            with its prompt does not fit its context (raised by the step that leaves it).
    """

    def __init__(
        self,
        model: Any,
        prompt: Sequence[int],
        token_ids: Ints | None,
        *,
        batch_size: int | None = None,
        turn: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        warp: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__(model, batch_size=batch_size, turn=turn, warp=warp)
        self._prompt = np.array(prompt, dtype=np.int64)
        token_ids = np.arange(self.vocabulary) if token_ids is None else token_ids
        self._token_ids = np.asarray(token_ids, dtype=np.int64)
        self._wanted = torch.as_tensor(self._token_ids, device=self.device)
        self.check_tokens(max(int(self._prompt.max()), int(self._token_ids.max(initial=0))))
        if self._chosen:
            most = _CHILDREN // max(1, len(self._token_ids))
            self.batch_size = max(1, min(self.batch_size, most))
        self._root: Branches | None = None
        self._cache_name = ""
        self.cache_limit = _CACHE_BYTES
        self.cached = self.joins = True
        self._masked = self._placed = True  # whether a cached step gets a mask and positions
        self.noise = math.nan
        self._waiting_bytes = self.peak_bytes = 0

    @property
    def room(self) -> float:
        """How many tokens a whole path may have, so that it fits the context with its prompt."""
        return math.inf if self.context is None else self.context - len(self._prompt)

    def root(self) -> Branches:
        """The empty path. The prompt is run on the first call only."""
        if self._root is None:
            bits, cache = self._forward(self._prompt[None], 0, None)
            if cache is None:
                self.cached = False
            self._root = Branches(np.zeros((1, 0), dtype=np.int64), bits, cache)
        return replace(self._root)  # walks let go of what they do not need any more

    def price(self, parents: Branches) -> int:
        """Token-forwards that one step from one of these branches takes."""
        if self.cached and parents.cache is not None:
            return 1
        depth = parents.paths.shape[1] + 1
        return int(depth if self.cached else depth + len(self._prompt))

    def step(self, parents: Branches, rows: Ints, tokens: Ints) -> Iterator[tuple[Ints, Branches]]:
        """Go one token further from some of the parents, in chunks that fit; see `NextTokens`."""
        places = np.arange(len(rows))
        return self.in_chunks(places, lambda some: self._step(parents, rows[some], tokens[some]))

    def next_bits(self, branches: Branches, rows: Ints, tokens: Ints) -> Floats:
        """(n,) bits of next tokens, whose branches then need hold them no longer."""
        found = branches.bits[rows, tokens]
        branches.bits = branches.bits[:0].copy()  # a view would hold all of them
        return found

    def settle(self, waiting: Iterable[Branches]) -> None:
        """Let go of the caches of the branches that come first, until the rest fits."""
        different = {id(branches): branches for branches in waiting}.values()
        self._waiting_bytes = sum(branches.cache_bytes for branches in different)
        for branches in different:
            if self._waiting_bytes <= self.cache_limit:
                break
            self._waiting_bytes -= branches.cache_bytes
            branches.cache = None

    def _step(self, parents: Branches, rows: Ints, tokens: Ints) -> Branches:
        paths = np.concatenate([parents.paths[rows], tokens[:, None]], axis=1)
        if self.cached and parents.cache is None:
            return self._again(paths)
        if self.cached:
            cache = select(parents.cache, rows, self.device)
            past = len(self._prompt) + parents.paths.shape[1]
            made = Branches(paths, *self._forward(self._token_ids[tokens][:, None], past, cache))
        else:
            made = Branches(paths, self._forward(self._with_prompt(paths), 0, None)[0])
        held = self._waiting_bytes + parents.cache_bytes + made.cache_bytes + made.bits.nbytes
        logits = len(paths) * self.vocabulary * 4  # in single precision
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
        grid, given = self._probes(paths)
        while not self._fitted(grid, given):  # out here the error no longer holds on to tensors
            rows = len(grid) // 2
            grid, given = grid[:rows], given[:rows]
            self.batch_size, self.halved = min(self.batch_size, rows), True
            self._root = None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _fitted(self, grid: Ints, given: Bools) -> bool:
        """The probe with so many rows; whether memory sufficed, which it must for one."""
        try:
            self._compare(grid, given)
        except RuntimeError as error:
            if not out_of_memory(error) or len(grid) == 1:
                raise
            return False
        return True

    def _compare(self, grid: Ints, given: Bools) -> None:
        full = self._full(grid)
        reason = "is not possible, for it keeps none whose rows can be selected"
        # A mask is what bamba needs in a cached step, and what mamba does not bear; positions are
        # what it needs too, and what RoBERTa, which begins with another one, does not bear.
        ways = itertools.product((True, False), (True, False), (True, False))
        for self.joins, self._placed, self._masked in ways:
            self.root()
            if not self.cached:
                break
            try:
                costs = self._costs(grid)
            except Exception as error:  # whatever a cache of an unknown kind may do
                if isinstance(error, _NEVER_HELD) or out_of_memory(error):
                    raise
                reason = f"failed ({type(error).__name__})"
                continue
            if agree(costs, full, self.precision):
                self.noise = self._noise(costs, full, given)
                return
            apart = largest_difference(costs, full)
            reason = f"differs by {apart:.2g} bits from a full forward"
        warn(
            f"{self.name}: scoring with its cache {reason}; measuring without a cache, which is "
            "slower and right",
        )
        self.cached, self._root = False, None
        costs = self._costs(grid)
        self.noise = self._noise(costs, full, given)
        if not agree(costs, full, self.precision):
            raise ValueError(
                f"model: {self.name} gives a token another probability when more text follows it "
                f"(by {largest_difference(costs, full):.2g} bits): it is not a causal language "
                "model, not deterministic in eval mode, or its precision, "
                f"{self.precision}, does not suffice"
            )

    def trust(self, other: Decoder) -> None:
        """Take over what `other`, a decoder of the same model, has found out by its `probe`."""
        self.noise, self.cached, self.joins = other.noise, other.cached, other.joins
        self._placed, self._masked = other._placed, other._masked

    def _probes(self, paths: Sequence[Ints]) -> tuple[Ints, Bools]:
        """(B, L) paths and which of their cells are given ones.

        At least four of four tokens, as far as the context allows.
        """
        length = max(4, *(len(path) for path in paths))
        length = int(max(1, min(length, self.room)))
        draw = np.random.default_rng(0)
        made = [draw.integers(len(self._token_ids), size=length) for _ in range(4 - len(paths))]
        grid = np.array([np.resize(path, length) for path in [*paths, *made]], dtype=np.int64)
        given = np.zeros(grid.shape, dtype=bool)
        for row, path in enumerate(paths):
            given[row, : len(path)] = True
        return grid, given

    def _noise(self, costs: Floats, truth: Floats, given: Bools) -> float:
        """The largest difference between sums along paths, as far as they were given."""
        seen = np.abs(np.cumsum(difference(costs, truth), axis=1))[given].max()
        return max(float(seen), rounding(truth[given], self.precision))

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
            parts = [order[1:], order[:1]] if self.joins and len(grid) > 1 else [order]
            stepped = [self._step(branches, row_of[part], grid[part, depth]) for part in parts]
            if len(parts) > 1:
                bits = np.concatenate([part.bits for part in stepped])
                branches = together([(part, np.arange(len(part.paths))) for part in stepped])
                branches.bits = bits
            else:
                branches = stepped[0]
            row_of = np.argsort(np.concatenate(parts))
        return out

    def _full(self, grid: Ints) -> Floats:
        """(B, L) the same costs from forwards over prompt and path, one for each path, without a
        cache and with nothing but tokens and mask, as in training."""
        out = []
        for path, ids in zip(grid, self._with_prompt(grid), strict=True):
            logits, _ = self.call(ids[None], keep=len(path) + 1)
            bits = self.bits(logits[0, -len(path) - 1 : -1], self._wanted)
            out.append(bits[np.arange(len(path)), path])
        return np.array(out)

    def _with_prompt(self, paths: Ints) -> Ints:
        prompt = np.broadcast_to(self._prompt, (len(paths), len(self._prompt)))
        return np.concatenate([prompt, self._token_ids[paths]], axis=1)

    def _forward(self, ids: Ints, past: int, cache: Any) -> tuple[Floats, Any]:
        """Bits of the next token after `ids`, which stand at positions `past` and on; the cache."""
        logits, caches = self.call(
            ids,
            keep=1,
            past=past,
            cache=None if cache is None else {self._cache_name: cache},
            use_cache=self.cached,
            masked=self._masked,
            placed=self._placed,
        )
        found = None
        for name, one in caches.items() if self.cached else ():
            if found is None and can_be_selected(one):
                self._cache_name, found = name, one
        return self.bits(logits[:, -1], self._wanted), found
