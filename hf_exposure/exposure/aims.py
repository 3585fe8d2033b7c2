"""Proposals that are aimed at canaries of which uniform draws tell little."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from hf_exposure.exposure.exploring import Explored
from hf_exposure.tree.frontier import DepthFirst
from hf_exposure.tree.sampler import Draws, Sampler
from hf_exposure.tree.scoring import ScoredTree
from hf_exposure.tree.walk import walk
from hf_exposure.utils.arrays import Floats, Ints

_AIMS = 4  # canaries at most that proposals aim at
_COMMON = 0.1  # where so many uniform draws cost no more than a canary, it needs no aim


@dataclass(frozen=True)
class Aims:
    """Proposals that go where strings as costly as given canaries are.

    A child is drawn in proportion to the number of strings under it that are expected to cost no
    more than the target, as if what they have yet to cost were normally distributed, with mean and
    variance linear in log2 of their number (fitted to a few uniform draws). However rough that
    is, the draws are weighted by what was really done.

    Attributes:
        targets: (a,) bits.
        offset, per_bit, variance: of the fit.
        log2_counts: (states,) log2 of the number of strings that lead on from a state.
    """

    targets: Floats
    offset: float
    per_bit: float
    variance: float
    log2_counts: Floats

    def __call__(self, log_perplexities: Floats, states: Ints) -> Floats:
        """(n, a) log2 of the number of strings under each node within each target, about."""
        bits = self.log2_counts[states]
        mean = log_perplexities + np.where(bits > 0, self.offset + self.per_bit * bits, 0.0)
        spread = np.sqrt(self.variance * np.maximum(bits, 1.0))
        z = (self.targets - mean[:, None]) / spread[:, None]
        return np.asarray(bits[:, None] + special.log_ndtr(z) / math.log(2))


def aim(
    scored: ScoredTree, explored: Explored, log_perplexities: Floats, n: int, seed: int
) -> Aims | None:
    """Aims at canaries that uniform draws would hardly tell anything about, if there are any.

    Args:
        log_perplexities: the canaries', in bits.
        n: uniform draws that the fit is made from.
    """
    # Found out by every process, but rounding must not make them differ: the first one's counts.
    return scored.gather(_aim(scored, explored, log_perplexities, n, seed))[0]


def _aim(
    scored: ScoredTree, explored: Explored, log_perplexities: Floats, n: int, seed: int
) -> Aims | None:
    tree = scored.tree
    least = explored.frontier.log_perplexities.min(initial=math.inf)
    targets = np.unique(
        log_perplexities[(log_perplexities >= least) & np.isfinite(log_perplexities)]
    )
    if not len(targets) or n < 8:
        return None
    pilot = Sampler(Draws(scored.paths(uniform_secrets(scored, n, seed, "pilot"))))
    walk(scored.decoder, tree, pilot, DepthFirst(), progress=scored.progress)
    bits, rest = [np.full(n, tree.format.bits)], [pilot.log_perplexities]
    for draws, of_nodes, states in pilot.trail:
        bits.append(tree.log2_counts[states])
        rest.append(pilot.log_perplexities[draws] - of_nodes)
    x, y = np.concatenate(bits), np.concatenate(rest)
    fine = np.isfinite(y) & (x > 0)
    x, y = x[fine], y[fine]
    if len(y) < 8 or np.ptp(x) == 0:
        return None
    per_bit, offset = np.polyfit(x, y, 1)
    variance = float(np.sum((y - offset - per_bit * x) ** 2 * x) / np.sum(x**2))
    if variance <= 0:
        return None
    aims = Aims(targets, float(offset), float(per_bit), variance, tree.log2_counts)
    share = aims(np.zeros(1), np.zeros(1, dtype=np.int64))[0] - tree.format.bits
    targets = targets[share < math.log2(_COMMON)]
    if not len(targets):
        return None
    some = np.unique(np.linspace(0, len(targets) - 1, _AIMS).round().astype(np.int64))
    return replace(aims, targets=targets[some])


def uniform_secrets(scored: ScoredTree, n: int, seed: int, purpose: str = "uniform") -> list[str]:
    """`n` secrets, one from each of n equal slices of the secret space."""
    size = scored.tree.format.size
    draw = random.Random(f"{seed} {purpose}")
    return [
        scored.tree.format.unrank(draw.randrange(i * size, (i + 1) * size) // n) for i in range(n)
    ]
