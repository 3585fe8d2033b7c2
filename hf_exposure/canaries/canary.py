"""One canary: a secret in its template, and how many times it is inserted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.utils.checks import check_count
from hf_exposure.utils.typed import typed

MOST_REPETITIONS = 1_000_000  # of one canary
MOST_CHARACTERS = 1_000_000  # of one secret
MASK = "•"  # shown for each character of a secret


@typed
@dataclass(frozen=True)
class Canary:
    """One secret in its template, and how many times it is inserted into the training data.

    Attributes:
        format: the secret format that it is a member of.
        secret: the string in the template's hole; never shown by `repr`.
        repetitions: how many times it is inserted; 0 makes it a control.
        planned: with `inclusion="coin"`, the repetitions that it has if its coin says "in";
            None for a canary that no coin was flipped for.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the secret is not in the format's secret space, or a count is negative.

    Example:
        >>> fmt = SecretFormat("The random number is {secret}.", secret=r"[0-9]{9}")
        >>> canary = Canary(fmt, "281265017", repetitions=32)
        >>> canary
        Canary('The random number is •••••••••.', repetitions=32)
        >>> canary.text
        'The random number is 281265017.'
    """

    format: SecretFormat
    secret: str = field(repr=False)
    repetitions: int = 0
    planned: int | None = None

    def __post_init__(self) -> None:
        check_count("Canary: repetitions", self.repetitions, most=MOST_REPETITIONS)
        if self.planned is not None:
            check_count("Canary: planned", self.planned)
            if self.repetitions not in (0, self.planned):
                raise ValueError(
                    f"Canary: repetitions={self.repetitions} with planned={self.planned}; a coin "
                    f"makes it 0 or {self.planned}"
                )
        if not self.format.contains(self.secret):
            # What is nearly a secret is not shown either.
            check = f" with check={self.format.check!r}" if self.format.check else ""
            raise ValueError(
                f"Canary: the secret given, of {len(self.secret)} characters, is not matched by "
                f'secret=r"{self.format.secret}"{check}; give only what goes into the hole of '
                f"{self.format.template!r}"
            )

    @property
    def text(self) -> str:
        """The template with the secret in it, as it is inserted."""
        return self.format.render(self.secret)

    @property
    def inserted(self) -> bool:
        """Whether it is inserted at all."""
        return self.repetitions > 0

    @typed
    def label(self, reveal: bool = False) -> str:
        """The text to show: the secret as one "•" for each character, unless `reveal`.

        Args:
            reveal: show the secret.
        """
        return self.text if reveal else self.format.render(MASK * len(self.secret))

    def masked(self) -> MaskedCanary:
        """What may be shown of it."""
        return MaskedCanary(self.format, len(self.secret), self.repetitions, self.planned)

    @typed
    def to_dict(self, formats: Sequence[SecretFormat], reveal: bool = False) -> dict[str, Any]:
        """The canary for JSON, without the secret unless `reveal`.

        Args:
            formats: those of the document; the canary's format is kept as its place among them.
            reveal: keep the secret too.
        """
        if self.format not in formats:
            raise ValueError("Canary.to_dict: formats does not have the canary's own format")
        out = self.masked().to_dict(formats)
        return {**out, "secret": self.secret} if reveal else out

    @classmethod
    @typed
    def from_dict(cls, data: dict[str, Any], formats: Sequence[SecretFormat]) -> Canary:
        """The inverse of `to_dict` with `reveal`.

        Args:
            data: what `to_dict` gave.
            formats: those of the document.

        Raises:
            TypeError, ValueError: a value is missing, such as the secret, or not what it should be.
        """
        for key in ("format", "secret", "repetitions", "planned"):
            if key not in data:
                raise ValueError(f"Canary.from_dict: data lacks the key {key!r}")
        place = check_count("Canary.from_dict: the format in data", data["format"])
        if place >= len(formats):
            raise ValueError(f"Canary.from_dict: formats has no number {place}, which data names")
        return cls(formats[place], data["secret"], data["repetitions"], data["planned"])

    def __repr__(self) -> str:
        planned = f", planned={self.planned}" if self.planned is not None else ""
        return f"Canary({self.label()!r}, repetitions={self.repetitions}{planned})"


@dataclass(frozen=True)
class MaskedCanary:
    """What is left of a canary in a result that was saved without its secret."""

    format: SecretFormat
    length: int
    repetitions: int = 0
    planned: int | None = None

    @property
    def secret(self) -> str:
        """One "•" for each character of the secret, which is not known here."""
        return MASK * self.length

    @property
    def inserted(self) -> bool:
        """Whether it was inserted at all."""
        return self.repetitions > 0

    def label(self, reveal: bool = False) -> str:
        """The template with the masked secret; there is nothing to reveal."""
        return self.format.render(self.secret)

    def masked(self) -> MaskedCanary:
        """Itself."""
        return self

    def to_dict(self, formats: Sequence[SecretFormat], reveal: bool = False) -> dict[str, Any]:
        """For JSON, the format as its place among `formats`; there is nothing to reveal."""
        return {
            "format": formats.index(self.format),
            "length": self.length,
            "repetitions": self.repetitions,
            "planned": self.planned,
        }


def check_length(length: Any) -> int:
    """The length of a masked secret; one that no expression gives would fill the memory."""
    return check_count("length", length, most=MOST_CHARACTERS)


def read_canary(data: dict[str, Any], formats: Sequence[SecretFormat]) -> Canary | MaskedCanary:
    """The inverse of both `to_dict`."""
    if "secret" in data:
        return Canary.from_dict(data, formats)
    fmt = formats[data["format"]]
    return MaskedCanary(fmt, check_length(data["length"]), data["repetitions"], data["planned"])
