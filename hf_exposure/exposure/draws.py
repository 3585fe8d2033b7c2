"""Draws from what was not explored, each with the density that it was drawn with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hf_exposure.exposure.aims import Aims, aim, uniform_secrets
from hf_exposure.exposure.exploring import Explored
from hf_exposure.tree.frontier import DepthFirst
from hf_exposure.tree.looking import Looking, Siblings
from hf_exposure.tree.proposals import POWERS
from hf_exposure.tree.sampler import Draws, Sampler
from hf_exposure.tree.scoring import ScoredTree
from hf_exposure.tree.walk import walk
from hf_exposure.utils.arrays import Floats, Ints

_MODEL = int(np.flatnonzero(POWERS == 1.0)[0])  # the proposal that is the model's distribution
_PILOT_SHARE = 40  # one draw of so many is for finding out where to aim
_LOOKS = 64  # leaves that a draw looks at from their parent


class _Draw(NamedTuple):
    """A path to follow, the proposal to go on by (-1: none), where in that, and a frontier node."""

    guide: Ints
    proposal: int
    position: float
    node: int


@dataclass(frozen=True)
class Sampled:
    """Draws from the unexplored rest, and the leaves that they came to.

    Attributes:
        log_perplexities: (m,) bits of leaves; infinite for one that does not count: not canonical,
            or a canary.
        log2_density: (m,) log2 of g(x), the number of draws that were to come to it.
        draws: (m,) how many did.
        groups: (m,) equal for leaves that the same draws came to.
        log2_uniform: log2 of the number of times that uniform draws alone were to bring any string.
        log2_model: log2 of the number of draws from the model's own distribution, as if they had
            been made of all of R and not only of what was unexplored.
        inner: estimated number of prefixes within the bound that were not explored.
    """

    log_perplexities: Floats
    log2_density: Floats
    draws: Ints
    groups: Ints
    log2_uniform: float
    log2_model: float
    inner: float

    def largest_log2_weight(self, log_perplexity: float) -> float:
        """log2 of the largest 1 / g(x) that a leaf of at most this log-perplexity could have had.

        The uniform draws bound every weight. A draw from the model's own distribution, which is
        only ever renormalized upwards, brings x at least as often as its probability says.
        """
        return min(-self.log2_uniform, log_perplexity - self.log2_model)


@dataclass(frozen=True)
class Mixture:
    """The proposals that draws are made from, and how many draws each of them gets.

    Attributes:
        starts: (f, k) log2 of each proposal's probability of each node of the frontier.
        each: (k,) draws of each; none of a proposal that reaches no node.
        uniform: draws that are uniform on R.
        log2_uniform, log2_model: as `Sampled` has them.
        aims: the proposals behind the powers of the model, if there are any.
    """

    starts: Floats
    each: Ints
    uniform: int
    log2_uniform: float
    log2_model: float
    aims: Aims | None

    def log2_density(self, log2_proposals: Floats, log2_strings: Floats | float) -> Floats:
        """(j,) log2 of how many draws were to come by nodes with so many strings under them.

        Args:
            log2_proposals: (j, k) log2 of each proposal's probability of each node.
            log2_strings: (j,) log2 of the number of strings under each.
        """
        parts = np.where(self.each > 0, log2_proposals + np.log2(np.maximum(self.each, 1)), -np.inf)
        return np.logaddexp2(
            np.logaddexp2.reduce(parts, axis=1), self.log2_uniform + np.asarray(log2_strings)
        )


def sample(
    scored: ScoredTree,
    explored: Explored,
    n: int,
    seed: int,
    log_perplexities: Floats | None = None,
) -> Sampled:
    """Draw `n` times from the mixture of proposals: powers of the model, aims, and uniform.

    Each proposal has equal slices of its cumulative distribution and one position in each.

    Args:
        log_perplexities: (m,) the canaries', in bits, to aim at.
    """
    mixture = _mixture(scored, explored, n, seed, log_perplexities)
    mine = _dealt(scored, explored, mixture, seed)
    nodes = np.array([one.node for one in mine], dtype=np.int64)
    looking = Looking(_LOOKS, scored.tree.leaf)
    draws = Draws(
        [one.guide for one in mine],
        np.array([one.proposal for one in mine], dtype=np.int64),
        np.array([one.position for one in mine], dtype=np.float64),
        explored.frontier.depths[nodes],
        mixture.starts[nodes],
    )
    sampler = Sampler(draws, explored.bound, mixture.aims, looking)
    if mine:
        walk(scored.decoder, scored.tree, sampler, DepthFirst(), progress=scored.progress)
    siblings = looking.siblings(mixture.starts.shape[1])
    return _gathered(scored, explored, mixture, sampler, siblings)


def _mixture(
    scored: ScoredTree, explored: Explored, n: int, seed: int, log_perplexities: Floats | None
) -> Mixture:
    """`n` draws shared out among the proposals; a pilot of uniform ones finds out where to aim."""
    pilot = n // _PILOT_SHARE
    aims = (
        None if log_perplexities is None else aim(scored, explored, log_perplexities, pilot, seed)
    )
    n = n if aims is None else n - pilot
    starts = explored.frontier.powers
    if aims is not None:
        scores = aims(explored.frontier.log_perplexities, explored.frontier.states)
        starts = np.concatenate([starts, scores], axis=1)
    totals = np.logaddexp2.reduce(starts, axis=0)
    usable = np.isfinite(totals)
    starts = np.where(usable, starts - np.where(usable, totals, 0.0), -np.inf)
    each = np.where(usable, _shares(n, starts.shape[1] - len(POWERS)), 0)
    uniform, model = n - int(each.sum()), int(each[_MODEL])
    return Mixture(
        starts,
        each,
        uniform,
        log2_uniform=math.log2(uniform) - scored.tree.format.bits if uniform else -math.inf,
        log2_model=math.log2(model) - float(totals[_MODEL]) if model else -math.inf,
        aims=aims,
    )


def _dealt(scored: ScoredTree, explored: Explored, mixture: Mixture, seed: int) -> list[_Draw]:
    """The draws of this process: neighbouring ones share prefixes, so it takes a block of each
    proposal's."""
    random = np.random.default_rng([seed, 1])
    mine: list[_Draw] = []
    for proposal, count in enumerate(mixture.each):
        where, rest = _slices(mixture.starts[:, proposal], int(count), random)
        mine += scored.processes.part(
            [
                _Draw(explored.frontier.path(node), proposal, position, node)
                for node, position in zip(where.tolist(), rest.tolist(), strict=True)
            ]
        )
    return mine + list(
        scored.processes.part(_uniform_draws(scored, explored, mixture.uniform, seed))
    )


def _gathered(
    scored: ScoredTree, explored: Explored, mixture: Mixture, sampler: Sampler, siblings: Siblings
) -> Sampled:
    """What the draws of every process came to."""
    tree, count = scored.tree, len(sampler.paths)
    inner = 0.0
    for log2_proposals, states, draws in sampler.visits:
        open_nodes = ~tree.leaf[states]
        strings = tree.log2_counts[states[open_nodes]]
        log2_g = mixture.log2_density(log2_proposals[open_nodes], strings)
        inner += float(np.sum(draws[open_nodes] * np.exp2(-log2_g)))
    # Guided draws, and free ones that ended on a leaf, stand for themselves; siblings were
    # looked at by the same draws.
    paths = [*sampler.paths, *siblings.paths]
    found = np.array([path is not None and path not in explored.canaries for path in paths], bool)
    log2_proposals = np.concatenate([sampler.log2_powers, siblings.log2_proposals])
    parts = scored.gather(
        (
            np.where(
                found, np.concatenate([sampler.log_perplexities, siblings.log_perplexities]), np.inf
            ),
            mixture.log2_density(log2_proposals, 0.0),
            np.concatenate([np.ones(count, dtype=np.int64), siblings.draws]),
            np.concatenate([np.arange(count), count + siblings.parents]),
            inner,
        )
    )
    log_perplexities, densities, times, groups, inners = zip(*parts, strict=True)
    # Groups of one process are no groups of another.
    first = np.cumsum([0, *(1 + some.max(initial=-1) for some in groups[:-1])])
    return Sampled(
        np.concatenate(log_perplexities),
        np.concatenate(densities),
        np.concatenate(times),
        np.concatenate([some + begin for some, begin in zip(groups, first, strict=True)]),
        mixture.log2_uniform,
        mixture.log2_model,
        sum(inners),
    )


def _uniform_draws(scored: ScoredTree, explored: Explored, n: int, seed: int) -> list[_Draw]:
    """Of `n` uniform draws those that lie under the frontier, with the node that each is under.
    The others are explored, or cost too much."""
    out: list[_Draw] = []
    for path in scored.paths(uniform_secrets(scored, n, seed)):
        met = explored.frontier.place_of(path)
        if met is not None:
            out.append(_Draw(path, -1, 0.0, met))
    return out


def _shares(n: int, aims: int) -> Ints:
    """How many of `n` draws each proposal gets; what is left over is uniform."""
    if not aims:
        return np.full(len(POWERS), n // (len(POWERS) + 1))
    each = [n // (6 * len(POWERS))] * len(POWERS) + [2 * n // (3 * aims)] * aims
    return np.array(each, dtype=np.int64)


def _slices(log2_weights: Floats, n: int, draw: np.random.Generator) -> tuple[Ints, Floats]:
    """One place from each of n equal slices of a distribution, and where within that place."""
    if n == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    weights = np.exp2(log2_weights)
    ends = np.cumsum(weights)
    target = (np.arange(n) + draw.random(n)) / n * ends[-1]
    place = np.minimum(np.searchsorted(ends, target, "right"), len(ends) - 1)
    rest = (target - (ends[place] - weights[place])) / np.where(weights > 0, weights, 1.0)[place]
    return place, np.clip(rest, 0.0, np.nextafter(1.0, 0.0))
