"""Limits that a model must keep to be released, set before it is trained."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from hf_exposure.utils.checks import check_count, check_number, check_share, check_type
from hf_exposure.utils.words import times


@dataclass(frozen=True)
class Limits:
    """What a model must keep to be released; set before it is trained.

    Args:
        max_exposure: the most exposure in bits that an inserted canary may have.
        max_tpr: the largest share of the inserted canaries that may be detected.
        fpr: the false-positive rate of that detection.
        repetitions: judge only the canaries that were inserted so many times; None judges all.

    Raises:
        TypeError: an argument is no number.
        ValueError: no limit is given, or one is out of range.
    """

    max_exposure: float | None = None
    max_tpr: float | None = None
    fpr: float = 0.01
    repetitions: int | None = None

    def __post_init__(self) -> None:
        if self.max_exposure is None and self.max_tpr is None:
            raise ValueError(
                "Limits: there is no limit; give max_exposure=10, say, or max_tpr=0.05"
            )
        if self.max_exposure is not None:
            check_number("Limits: max_exposure", self.max_exposure, 0, sys.float_info.max)
        if self.max_tpr is not None:
            check_number("Limits: max_tpr", self.max_tpr, least=0, most=1)
        check_share("Limits: fpr", self.fpr)
        if self.repetitions is not None:
            check_count("Limits: repetitions", self.repetitions, least=1)

    def to_dict(self) -> dict[str, Any]:
        """The arguments, for JSON."""
        return asdict(self)

    @property
    def who(self) -> str:
        """The canaries that are judged, in words."""
        return f"canaries inserted {times(self.repetitions)}" if self.repetitions else "canaries"

    def __str__(self) -> str:
        told = []
        if self.max_exposure is not None:
            told.append(f"exposure at most {self.max_exposure:g} bits")
        if self.max_tpr is not None:
            told.append(f"at most {self.max_tpr:.3g} detected at a rate of {self.fpr:g}")
        return f"{self.who}: {', '.join(told)}"

    @classmethod
    def from_dict(cls, data: Any) -> Limits:
        """The inverse of `to_dict`; what is missing keeps its default.

        Args:
            data: such as a YAML file of limits holds.

        Raises:
            TypeError, ValueError: it is no such dictionary.
        """
        check_type(
            "Limits.from_dict: data", data, Mapping, "names and numbers, such as max_exposure: 10"
        )
        known = [entry.name for entry in fields(cls)]
        unknown = sorted(set(map(str, data)) - set(known))
        if unknown:
            raise ValueError(f"Limits: {unknown[0]!r} is not known; use {', '.join(known)}")
        return cls(**data)
