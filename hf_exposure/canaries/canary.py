"""One canary: a secret in its template, and how many times it is inserted."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.utils.checks import check_count

MASK = "•"  # shown for each character of a secret


@dataclass(frozen=True)
class Canary:
    """One secret in its template, and how many times it goes into the training data.

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
        if not isinstance(self.format, SecretFormat):
            kind = type(self.format).__name__
            raise TypeError(f"Canary: format must be a SecretFormat, not {kind}")
        if not isinstance(self.secret, str):
            kind = type(self.secret).__name__
            raise TypeError(f"Canary: secret must be a string, not {kind}")
        check_count("Canary: repetitions", self.repetitions)
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
        """The template with the secret in it, as it goes into the data."""
        return self.format.render(self.secret)

    @property
    def inserted(self) -> bool:
        """Whether it goes into the data at all."""
        return self.repetitions > 0

    def label(self, reveal: bool = False) -> str:
        """The text to show: the secret as one "•" for each character, unless `reveal`."""
        return self.text if reveal else self.format.render(MASK * len(self.secret))

    def __repr__(self) -> str:
        planned = f", planned={self.planned}" if self.planned is not None else ""
        return f"Canary({self.label()!r}, repetitions={self.repetitions}{planned})"
