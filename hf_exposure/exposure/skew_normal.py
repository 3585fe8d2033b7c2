"""Exposure by extrapolation: the tail of a distribution fitted to references (section 4.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy import optimize, special, stats

from hf_exposure.exposure.estimators import ExposureEstimate, exp2
from hf_exposure.utils.arrays import Floats
from hf_exposure.utils.checks import check_count, check_number
from hf_exposure.utils.typed import typed

_RESAMPLES = 400
_MOST_REFITS = 10_000  # take minutes
_MOST_SKEW = 0.995  # of a skew-normal distribution: |skewness| < 0.99527
_LAGUERRE = np.polynomial.laguerre.laggauss(40)


@typed
@dataclass(frozen=True)
class SkewNormal:
    """A skew-normal distribution of log-perplexities, in bits (the paper, section 4.4).

    Attributes:
        shape, loc, scale: as SciPy's `skewnorm` has them.
        ks: the Kolmogorov-Smirnov distance between it and what it was fitted to.
        references: (n,) what it was fitted to.
    """

    shape: float
    loc: float
    scale: float
    ks: float
    references: Floats = field(repr=False)

    @classmethod
    @typed
    def fit(cls, references: Floats) -> SkewNormal:
        """The maximum likelihood fit.

        Args:
            references: (n,) log-perplexities in bits; finite.

        Raises:
            ValueError: there are fewer than 10 references, or they are all the same.
        """
        references = np.asarray(references, dtype=np.float64)
        if len(references) < 10:
            raise ValueError(
                f"skewnorm: {len(references)} references are too few for a fit; give at least 10"
            )
        if not np.isfinite(references).all():
            raise ValueError("skewnorm: a reference is not finite; leave it out")
        if np.ptp(references) <= 1e-9 * max(1.0, float(np.abs(references).max())):
            raise ValueError(
                "skewnorm: all references have the same log-perplexity, so there is nothing to "
                "fit; use method='auto'"
            )
        shape, loc, scale = _most_likely(references)
        mass = stats.skewnorm(shape, loc, scale).cdf
        ks = float(stats.ks_1samp(references, mass, method="asymp").statistic)
        return cls(shape, loc, scale, ks, references)

    @typed
    def density(self, log_perplexities: Floats) -> Floats:
        """(n,) the probability density at each of (n,) log-perplexities, per bit."""
        return np.asarray(stats.skewnorm.pdf(log_perplexities, self.shape, self.loc, self.scale))

    @typed
    def exposure(self, log_perplexity: float) -> float:
        """-log2 of the mass below it, in bits: the paper's extrapolation, not capped."""
        at = np.array([float(log_perplexity)])
        return float(_tail_bits(at, self.shape, self.loc, self.scale)[0])

    @typed
    def p_value(self, resamples: int = 100, seed: int = 0) -> float:
        """Goodness of the fit: how often a sample of the fitted distribution, fitted again, is as
        far from its fit as the references are from theirs (a parametric bootstrap).

        The usual Kolmogorov-Smirnov p-value holds for a distribution that was fixed beforehand; for
        a fitted one it is far too large. A refit takes about a hundredth of a second: for reports.
        """
        check_count("SkewNormal.p_value: resamples", resamples, most=_MOST_REFITS)
        draw = np.random.default_rng(seed)
        own, n = (self.shape, self.loc, self.scale), len(self.references)
        far = 0
        for _ in range(resamples):
            again = SkewNormal.fit(stats.skewnorm.rvs(*own, size=n, random_state=draw))
            far += again.ks >= self.ks
        return (1 + far) / (1 + resamples)


@typed
def skewnorm_exposure(
    log_perplexity: float, fit: SkewNormal, log2_size: float, confidence: float = 0.95
) -> ExposureEstimate:
    """Exposure by extrapolation: -log2 of the fitted mass below it (the paper, section 4.4).

    It is capped at log2 of the size of R; `raw_bits` is not. The interval shows how well so many
    references determine the fit (a bootstrap by moments around the fit); that the tail goes on
    like a skew-normal is assumed.

    Args:
        log_perplexity: the canary's, in bits.
        fit: of the log-perplexities of uniform references, see `SkewNormal.fit`.
        log2_size: log2 of the size of R.
        confidence: confidence level of the interval.

    Returns:
        The exposure in bits, with its interval and p-value.
    """
    log_perplexity = float(log_perplexity)
    raw = fit.exposure(log_perplexity)
    if not math.isfinite(log_perplexity):
        return ExposureEstimate(0.0, 0.0, 0.0, 1.0, 0.0)
    draw = np.random.default_rng(0)
    check_number("skewnorm_exposure: log2_size", log2_size, least=0)
    references = fit.references
    places = draw.integers(len(references), size=(_RESAMPLES, len(references)))
    resampled = _tail_bits(
        np.full(_RESAMPLES, log_perplexity), *_by_moments(*_moments(references[places]))
    )
    centre = _tail_bits(np.array([log_perplexity]), *_by_moments(*_moments(references)))[0]
    alpha = 1.0 - confidence
    ends = raw + np.quantile(resampled, [alpha / 2, 1 - alpha / 2]) - centre

    def capped(bits: float) -> float:
        return min(max(bits, 0.0), log2_size)

    bits = capped(raw)
    return ExposureEstimate(
        bits=bits,
        low=min(bits, capped(float(ends[0]))),
        high=max(bits, capped(float(ends[1]))),
        p_value=exp2(-bits),
        raw_bits=raw,
    )


def _most_likely(values: Floats) -> tuple[float, float, float]:
    """Shape, location and scale of the maximum likelihood, as `stats.skewnorm.fit` finds them,
    which takes ten times as long."""

    def loss(parameters: Floats) -> float:
        shape, loc, scale = parameters
        if scale <= 0:
            return math.inf
        z = (values - loc) / scale
        return float(len(z) * math.log(scale) + z @ z / 2 - special.log_ndtr(shape * z).sum())

    start = np.array(_by_moments(*_moments(values)))
    shape, loc, scale = optimize.fmin(loss, start, disp=False)
    return float(shape), float(loc), float(scale)


def _moments(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean, standard deviation and skewness along the last axis."""
    mean = values.mean(axis=-1)
    centred = values - mean[..., None]
    deviation = np.sqrt(np.mean(centred**2, axis=-1))
    skewness = np.mean(centred**3, axis=-1) / np.maximum(deviation, 1e-300) ** 3
    return mean, deviation, skewness


def _by_moments(mean: Floats, deviation: Floats, skewness: Floats) -> tuple[Floats, Floats, Floats]:
    """Shape, location and scale of the skew-normal with these moments (Azzalini 1985)."""
    skewness = np.clip(skewness, -_MOST_SKEW, _MOST_SKEW)
    third = np.cbrt(2 * np.abs(skewness) / (4 - np.pi)) ** 2
    delta = np.sign(skewness) * np.sqrt(np.pi / 2 * third / (1 + third))
    scale = deviation / np.sqrt(1 - 2 * delta**2 / np.pi)
    return delta / np.sqrt(1 - delta**2), mean - scale * delta * np.sqrt(2 / np.pi), scale


def _tail_bits(
    costs: Floats, shape: Floats | float, loc: Floats | float, scale: Floats | float
) -> Floats:
    """-log2 of a skew-normal's mass below each cost, also where that mass underflows.

    Far out on the left the density falls like an exponential, of the rate that its logarithm has
    there; Gauss-Laguerre quadrature of what is left over is exact to many digits.
    """
    z = (costs - loc) / scale
    a = np.broadcast_to(np.asarray(shape, dtype=np.float64), z.shape)
    log_cdf = np.log(np.maximum(stats.skewnorm.cdf(z, a), 1e-300))
    far = (log_cdf < math.log(1e-3)) & (z < 0) & np.isfinite(z)
    if far.any():
        log_cdf[far] = _log_far_tail(z[far], a[far])
    return np.asarray(-log_cdf / math.log(2))


def _log_far_tail(z: Floats, a: Floats) -> Floats:
    nodes, weights = _LAGUERRE

    def log_density(at: Floats, shape: Floats) -> Floats:
        return np.asarray(
            math.log(2) - at**2 / 2 - math.log(2 * math.pi) / 2 + special.log_ndtr(shape * at)
        )

    at_z = log_density(z, a)
    hazard = np.exp(-((a * z) ** 2) / 2 - math.log(2 * math.pi) / 2 - special.log_ndtr(a * z))
    rate = -z + a * hazard  # the slope of the log-density
    left = z[:, None] - nodes / rate[:, None]
    over = np.exp(log_density(left, a[:, None]) - at_z[:, None] + nodes)
    return np.asarray(at_z - np.log(rate) + np.log(over @ weights))
