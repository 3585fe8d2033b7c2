"""What a measurement finds out about a secret format, besides the exposures of its canaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from hf_exposure.exposure.documents import Row
from hf_exposure.exposure.records import Exposure
from hf_exposure.exposure.skew_normal import SkewNormal
from hf_exposure.utils.arrays import Floats
from hf_exposure.utils.typed import typed
from hf_exposure.utils.words import digits, rounded


@typed
@dataclass(frozen=True, eq=False, repr=False)
class FormatDetails(Row):
    """What a measurement has found out about one secret format. None: this method does not ask.

    Neither `references` nor `fit` is shown by `repr`: what they lack can tell the canaries.

    Attributes:
        forwards: token-forwards spent on the canaries of the format.
        noise_bits: the largest difference seen between two ways of scoring the same secret.
        tie_bits: log-perplexities closer than this count as equal.
        uniform_bits: the mean log-perplexity of the canaries if all tokens were equally likely.
        explored: prefixes that were visited one by one.
        exact_forwards_estimate: token-forwards that exact ranks were expected to take.
        samples: draws from what was not explored; 0 leaves proved bounds only, and None says that
            nothing was left to draw from.
        references: (n,) log-perplexities in bits of uniform references, or costs by another score.
        whole_space: whether the references are all other strings of the secret space.
        fit: the skew-normal distribution fitted to the finite references.
        paths: how canonical token paths were recognized, the `way` of the token tree.
        false_share: the share of the token tree's leaves that are not canonical, of those tried.
        prompt_tokens: tokens that stand before all secrets.
        cached: whether branches went on from a cache.
        batch_size: rows of a forward.
        halved: whether memory ran out, so that `batch_size` is less than was asked for.
    """

    forwards: int = 0
    noise_bits: float = 0.0
    tie_bits: float = 0.0
    uniform_bits: float | None = None
    explored: int | None = None
    exact_forwards_estimate: int | None = None
    samples: int | None = None
    references: Floats | None = field(default=None, repr=False)
    whole_space: bool = False
    fit: SkewNormal | None = field(default=None, repr=False)
    paths: str | None = None
    false_share: float | None = None
    prompt_tokens: int | None = None
    cached: bool | None = None
    batch_size: int | None = None
    halved: bool = False

    def coarse(self) -> FormatDetails:
        """The same with rounded figures; references and fit stay."""
        estimate, uniform = self.exact_forwards_estimate, self.uniform_bits
        return replace(
            self,
            forwards=rounded(self.forwards),
            noise_bits=digits(self.noise_bits, 1),
            tie_bits=digits(self.tie_bits, 1),
            uniform_bits=None if uniform is None else digits(uniform),
            explored=None if self.explored is None else rounded(self.explored),
            exact_forwards_estimate=None if estimate is None else rounded(estimate),
        )

    def figures(self) -> dict[str, float | str]:
        """All that is known and can be shown in one line, by name."""
        found = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        if self.references is not None:
            found["references"] = len(self.references)
        return {name: value for name, value in found.items() if value is not None and name != "fit"}

    def to_dict(self) -> dict[str, Any]:
        """For JSON, but for infinite numbers."""
        out: dict[str, Any] = dict(self.figures())
        if self.references is not None:
            out["references"] = self.references.tolist()
        if self.fit is not None:
            out["fit"] = {name: getattr(self.fit, name) for name in ("shape", "loc", "scale", "ks")}
        return out

    @classmethod
    @typed
    def from_dict(cls, data: Mapping[str, Any]) -> FormatDetails:
        """The inverse of `to_dict`."""
        found = dict(data)
        unknown = sorted(set(map(str, found)) - {entry.name for entry in fields(cls)})
        if unknown:
            raise ValueError(f"FormatDetails.from_dict: data has {unknown[0]!r}; leave it out")
        if "references" in found:
            references = np.asarray(found["references"], dtype=np.float64)
            found["references"] = references
            if "fit" in found:
                finite = references[np.isfinite(references)]
                found["fit"] = SkewNormal(**found["fit"], references=finite)
        return cls(**found)


@dataclass(frozen=True)
class GroupResult:
    """What the canaries of one format have given.

    Attributes:
        exposures: one for each canary.
        details: what was found out on the way.
        unfinished: how far "exact" has come, if not to its end.
    """

    exposures: list[Exposure]
    details: FormatDetails
    unfinished: str = ""
