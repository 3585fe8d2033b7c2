"""One canary's exposure: the record, and what it looks like in tables and files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from hf_exposure.canaries.canary import MASK, Canary, MaskedCanary, read_canary
from hf_exposure.canaries.formats import SecretFormat, distinctions
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.documents import Row
from hf_exposure.exposure.estimators import ExposureEstimate, RankEstimate, exp2
from hf_exposure.exposure.steps import FINE, FIRST, coarse_bits, coarse_end, coarse_rank
from hf_exposure.utils.typed import typed
from hf_exposure.utils.words import digits

_FEW = 16  # ties
_PREFIX_SHOWN, _SUFFIX_SHOWN = 10, 8  # characters of a template that a table has room for


@typed
@dataclass(frozen=True, repr=False)
class Exposure(Row):
    """How exposed one canary is.

    Attributes:
        canary: the canary; a `MaskedCanary` if the result was loaded from a file without secrets.
        bits: exposure in bits, log2 of the size of R less log2 of `rank`; from 0 to log2 of |R|.
        low, high: its interval, at the confidence in the settings.
        rank: how many strings of R are not less likely, itself included; estimated unless `exact`.
        rank_low, rank_high: the rank's interval.
        certified: a lower bound of the exposure in bits that holds for certain, whatever was drawn.
        ties: strings that were met with the same log-perplexity, up to the noise of scoring.
        exact: whether the rank is known exactly (then an interval is of ties alone).
        log_perplexity: of the secret and what follows it, in bits; NaN in a file without secrets if
            it would tell the secret.
        method: the one that gave the figure: "auto", "exact", "sampling" or "skewnorm".
        p_value: probability that a string that was never trained on has such an exposure or more.
        raw_bits: with "skewnorm" the fit's own figure, before it was capped at log2 of |R|.
        cost: what the rank is by, the lower the likelier trained on, if `measure_exposure` was
            asked for another score; None: by log-perplexity.
    """

    canary: Canary | MaskedCanary
    bits: float
    low: float
    high: float
    rank: float
    rank_low: float
    rank_high: float
    certified: float
    ties: int
    exact: bool
    log_perplexity: float
    method: str
    p_value: float
    raw_bits: float | None = None
    cost: float | None = None

    @property
    def ranked_by(self) -> float:
        """`cost`, or the log-perplexity if there is none."""
        return self.log_perplexity if self.cost is None else self.cost

    def coarse(self) -> Exposure:
        """The same with figures that many strings of the space share, or that of rank 1; see
        `hf_exposure.exposure.steps`."""
        most = self.canary.format.bits
        bits, low, high = (
            coarse_bits(self.bits, most),
            coarse_end(self.low, most, -1),
            coarse_end(self.high, most, 1),
        )
        if self.low == self.bits == self.high and most - bits >= FINE:
            low = high = bits  # the rank is known, and its step is all that is not
        elif self.low == self.bits == self.high and most - self.bits > FIRST:
            low, high = min(low, bits), max(high, bits)
        first = most - self.bits < FIRST
        certain = first and (self.exact or most - self.certified < FIRST)
        if certain:
            certified = bits
        elif self.exact and most - bits >= FINE - 1e-6:
            certified = low
        elif self.exact:  # the end of the step itself, since this bound always holds
            certified = max(0.0, round(low - 0.1, 1))
        else:
            certified = max(0.0, float(math.floor(min(self.certified, most - FINE) + 1e-6)))
        log_perplexity = self.log_perplexity
        if math.isfinite(log_perplexity) and not certain:
            apart = most - self.high < FINE - 1e-6
            log_perplexity = math.nan if apart else float(round(log_perplexity))
        elif certain:
            log_perplexity = round(log_perplexity, 1)
        unlikely = -math.log2(max(self.p_value, 1e-300))
        chance = (
            coarse_bits(unlikely, most)
            if most - unlikely >= FINE
            else coarse_end(unlikely, most, -1)
        )
        return replace(
            self,
            bits=bits,
            low=low,
            high=high,
            rank=coarse_rank(bits, most),
            rank_low=coarse_rank(high, most),
            rank_high=coarse_rank(low, most),
            certified=certified,
            ties=0 if self.ties < _FEW else 1 << (self.ties.bit_length() - 1),
            log_perplexity=log_perplexity,
            p_value=digits(exp2(-chance), 4),
            raw_bits=None if self.raw_bits is None else bits,
            cost=None if self.cost is None else math.nan,
        )

    @classmethod
    @typed
    def of_rank(
        cls, canary: Canary, log_perplexity: float, estimate: RankEstimate, method: str
    ) -> Exposure:
        """From a rank: log2 of |R| less log2 of it. Log-perplexities are in bits."""
        most = canary.format.bits

        def bits(log2_rank: float) -> float:
            return max(0.0, most - log2_rank)

        return cls(
            canary=canary,
            bits=bits(estimate.log2_rank),
            low=bits(estimate.log2_high),
            high=bits(estimate.log2_low),
            rank=estimate.rank,
            rank_low=estimate.low,
            rank_high=estimate.high,
            certified=bits(estimate.log2_upper_bound),
            ties=estimate.ties,
            exact=estimate.exact,
            log_perplexity=log_perplexity,
            method=method,
            p_value=estimate.p_value,
        )

    @classmethod
    @typed
    def of_estimate(
        cls,
        canary: Canary,
        log_perplexity: float,
        estimate: ExposureEstimate,
        ties: int,
        method: str,
    ) -> Exposure:
        """From an exposure in bits, as the paper's estimators give it.

        One forward pass alone certifies log2 of |R| less the log-perplexity: no more than
        1 / Pr(canary) strings can be as likely.
        """
        most = canary.format.bits

        def rank(bits: float) -> float:
            return max(1.0, exp2(most - bits))

        return cls(
            canary=canary,
            bits=estimate.bits,
            low=estimate.low,
            high=estimate.high,
            rank=rank(estimate.bits),
            rank_low=rank(estimate.high),
            rank_high=rank(estimate.low),
            certified=min(most, max(0.0, most - log_perplexity)),
            ties=ties,
            exact=False,
            log_perplexity=log_perplexity,
            method=method,
            p_value=estimate.p_value,
            raw_bits=estimate.raw_bits,
        )


# The fields of an exposure besides its canary.
NUMBERS = tuple(entry.name for entry in fields(Exposure) if entry.name != "canary")


def short_label(canary: Canary | MaskedCanary, reveal: bool = False) -> str:
    """`label` without the far ends of a long template, for tables."""
    secret = canary.secret if reveal else MASK * len(canary.secret)
    prefix, suffix = canary.format.prefix, canary.format.suffix
    if len(prefix) > _PREFIX_SHOWN:
        prefix = prefix[-_PREFIX_SHOWN:]
        prefix = "…" + (prefix.partition(" ")[2] or prefix)
    if len(suffix) > _SUFFIX_SHOWN:
        suffix = suffix[:_SUFFIX_SHOWN] + "…"
    return (prefix + secret + suffix).replace("\n", " ")


def short_labels(canaries: Iterable[Canary | MaskedCanary], reveal: bool = False) -> list[str]:
    """`short_label` of each canary, with the expression where formats share a template."""
    every = list(canaries)
    apart = distinctions(canary.format for canary in every)
    return [short_label(canary, reveal) + apart[canary.format] for canary in every]


def interval(low: float, high: float) -> str:
    """An interval as text, one decimal."""
    return f"{low:.1f}–{high:.1f}"


def show_rank(rank: float, exact: bool = True) -> str:
    """A rank as text: whole if exact, otherwise "~" and some digits."""
    if exact:
        return f"{rank:,.0f}"
    return f"~{rank:.2g}" if rank >= 1e6 else f"~{rank:,.0f}" if rank >= 100 else f"~{rank:.1f}"


def known_rank(one: Exposure) -> bool:
    """Whether the rank is known to the last digit, and was not made coarse."""
    rank = exp2(one.canary.format.bits - one.bits)
    return one.exact and (one.rank == 1 or math.isclose(one.rank, rank, rel_tol=1e-9))


def show_log_perplexity(log_perplexity: float) -> str:
    """A log-perplexity as text; "–" for one that is not told."""
    return "–" if math.isnan(log_perplexity) else f"{log_perplexity:.1f}"


def likely_log_perplexity(one: Exposure) -> float:
    """The log-perplexity; 0 for one that is not told, which is that of a likely string."""
    return 0.0 if math.isnan(one.log_perplexity) else one.log_perplexity


def read_canaries(
    entries: list[dict[str, Any]], formats: list[SecretFormat], canaries: Canaries | None
) -> list[Canary | MaskedCanary]:
    """The canary of each entry: from the set if there is one, else as far as the file knows it."""
    named = [read_canary(entry, formats) for entry in entries]
    if canaries is None:
        return named
    own, left = own_canaries(named, canaries)
    if left:
        raise ValueError(f"{len(left)} of these canaries are not in it")
    return [*own]


def own_canaries(
    named: Iterable[Canary | MaskedCanary], canaries: Canaries
) -> tuple[list[Canary], list[Canary]]:
    """The canary of a set that each one is, masked or not, and those of the set that are left.

    Raises:
        ValueError: one is of another set.
    """
    left, out = list(canaries), []
    for found in named:
        own = next((one for one in left if found in (one, one.masked())), None)
        if own is None:
            raise ValueError("it was measured with other canaries than these")
        left.remove(own)
        out.append(own)
    return out, left


def by_repetitions(items: Iterable[Exposure]) -> dict[int, list[Exposure]]:
    """The exposures of each repetition group, fewest repetitions first."""
    groups: dict[int, list[Exposure]] = {}
    for item in sorted(items, key=lambda one: one.canary.repetitions):
        groups.setdefault(item.canary.repetitions, []).append(item)
    return groups


def most_exposed(items: Iterable[Exposure]) -> Exposure:
    """The most exposed of some canaries, at least one; of equals the one that may be more so."""
    return max(items, key=lambda one: (one.bits, one.high))


def mean_bits(group: Sequence[Exposure]) -> float:
    """The mean exposure of some canaries, at least one, in bits."""
    return math.fsum(one.bits for one in group) / len(group)
