"""What a secret looks like: a template with one hole, and the finite set of strings for it."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_exposure.canaries.automaton import Automaton, compile_automaton
from hf_exposure.canaries.syntax import escape
from hf_exposure.utils.checks import check_choice, check_count, check_text, check_type, digits
from hf_exposure.utils.typed import typed

HOLE = "{secret}"
LONGEST = 5_000  # characters of a template
MOST_DRAWS = 10**8  # secrets of one draw, which are held in memory
_LONG = 200  # characters of an expression that an error quotes
_SHOWN = 40  # characters of an expression that has to fit a table


@typed
@dataclass(frozen=True)
class SecretFormat:
    r"""A template with one hole and the secret space R that fills it.

    Args:
        template: the text of a canary, with `{secret}` where the secret goes. Text after the hole
            counts: it is part of what the model has to know.
        secret: a regular expression that matches finitely many strings, the secret space R. It has
            to match the whole secret; `\d`, `\w` and `\s` mean ASCII characters.
        check: "luhn" keeps only strings whose digits pass the Luhn check (credit card numbers).

    Raises:
        ValueError: the template has no hole or several; the expression is not valid, matches no
            string or infinitely many; or a secret with the text after it is the beginning of
            another one, which would make their probabilities incomparable.

    Example:
        >>> fmt = SecretFormat("The random number is {secret}.", secret=r"[0-9]{9}")
        >>> fmt.size, round(fmt.bits, 1), fmt.render("281265017")
        (1000000000, 29.9, 'The random number is 281265017.')
    """

    template: str
    secret: str
    check: str | None = None
    _automaton: Automaton = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        check_text("SecretFormat: template", self.template)
        check_text("SecretFormat: secret", self.secret)
        if len(self.template) > LONGEST:
            raise ValueError(
                f"SecretFormat: template has {len(self.template):,} characters; give at most "
                f"{LONGEST:,}"
            )
        holes = self.template.count(HOLE)
        if holes != 1:
            raise ValueError(
                f"SecretFormat: template={self.template!r} has {holes} holes; "
                f"put {HOLE} exactly once where the secret goes"
            )
        if self.check is not None:
            check_choice("SecretFormat: check", self.check, ("luhn",))
        object.__setattr__(self, "_automaton", self._compile())

    def _compile(self) -> Automaton:
        shown = self.secret if len(self.secret) <= _LONG else self.secret[:_LONG] + "…"
        named = f'SecretFormat: secret=r"{shown}"'
        try:
            automaton = compile_automaton(self.secret, check=self.check)
            whole = compile_automaton(self.secret, after=self.suffix, check=self.check)
        except ValueError as error:
            hint = ""
            if "infinitely" in str(error):
                hint = "; give it a bound, such as [0-9]{1,12}"
            elif "no string" in str(error):
                hint = "; give it at least one, such as [0-9]{9}"
            raise ValueError(f"{named} {error}{hint}") from None
        if not whole.prefix_free:
            where = f"before {self.suffix!r}" if self.suffix else "with nothing after it"
            raise ValueError(
                f"{named} {where}: a secret can be the beginning of another one; give all secrets "
                "one length, such as [0-9]{9}, or let the template go on with a character that no "
                'secret holds, such as "{secret}\\n"'
            )
        if 0 in whole.accepting:
            raise ValueError(f"{named} matches the empty string only, and nothing follows it")
        return automaton

    @classmethod
    @typed
    def words(cls, template: str, words: Sequence[str], count: int) -> SecretFormat:
        """A format whose secrets are some words of a list with a space between them.

        Args:
            template: the text of a canary, with `{secret}` where the words go. It has to go on
                after them where a word is the beginning of another one, such as with a full stop.
            words: the list, such as `choose_words` picks; each draw is uniform on it.
            count: words of a secret; R has `len(words) ** count` strings.

        Returns:
            The format.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: there is no word, one is empty, has a space in it or comes twice, `count` is
                no number from 1 on, or the template is refused (see `SecretFormat`).

        Example:
            >>> fmt = SecretFormat.words("My passphrase is {secret}.", ["red", "blue", "green"], 4)
            >>> fmt.size, fmt.contains("red red blue green")
            (81, True)
        """
        where = "SecretFormat.words:"
        check_count(f"{where} count", count, least=1)
        listed = list(words)
        if not listed:
            raise ValueError(f"{where} words is empty; give it at least one word")
        seen: set[str] = set()
        for word in listed:
            check_type(f"{where} each word", word, str, "a string")
            if not word or any(char.isspace() for char in word):
                raise ValueError(
                    f"{where} {word!r} is {'empty' if not word else 'more than one word'}; words "
                    "are joined by one space, so that none may hold a space"
                )
            if word in seen:
                raise ValueError(f"{where} {word!r} is in the list twice; give each word once")
            seen.add(word)
        one = f"(?:{'|'.join(map(escape, listed))})"
        return cls(template, f"{one}(?: {one}){{{count - 1}}}" if count > 1 else one)

    @property
    def prefix(self) -> str:
        """The template's text before the secret."""
        return self.template.partition(HOLE)[0]

    @property
    def suffix(self) -> str:
        """The template's text after the secret."""
        return self.template.partition(HOLE)[2]

    @property
    def automaton(self) -> Automaton:
        """The strings of R as an automaton over bytes."""
        return self._automaton

    @property
    def size(self) -> int:
        """The number of strings in the secret space R, exactly."""
        return self._automaton.size

    @property
    def bits(self) -> float:
        """log2 of `size`: the most that an exposure can be."""
        return math.log2(self.size)

    @typed
    def render(self, secret: str) -> str:
        """The template with `secret` in its hole. Does not check that the secret is in R."""
        return f"{self.prefix}{secret}{self.suffix}"

    def contains(self, secret: object) -> bool:
        """Whether `secret` is in the secret space R."""
        try:
            return isinstance(secret, str) and self._automaton.accepts(secret.encode("utf-8"))
        except UnicodeEncodeError:  # half a surrogate pair is no character
            return False

    @typed
    def unrank(self, index: int) -> str:
        """The secret number `index` in the order of their bytes, 0 <= index < size.

        Raises:
            TypeError: `index` is no whole number.
            IndexError: there is no such secret.
        """
        check_count("SecretFormat.unrank: index", index, least=-math.inf)
        if not 0 <= index < self.size:
            raise IndexError(
                f"SecretFormat.unrank: index={digits(index)} is not in 0..{self.size - 1}"
            )
        return self._automaton.unrank(index).decode("utf-8")

    def enumerate(self) -> Iterator[str]:
        """All secrets, in the order of `unrank`."""
        return (data.decode("utf-8") for data in self._automaton.strings())

    @typed
    def sample(self, n: int, seed: int = 0) -> list[str]:
        """`n` independent uniform draws from R; a secret may be drawn twice.

        Args:
            n: how many.
            seed: of the draws.

        Raises:
            TypeError, ValueError: `n` or `seed` is no whole number from 0 on.
        """
        check_count("SecretFormat.sample: n", n, most=MOST_DRAWS)
        draw = random.Random(check_count("SecretFormat.sample: seed", seed))
        return [self.unrank(draw.randrange(self.size)) for _ in range(n)]

    @typed
    def sample_distinct(self, n: int, seed: int = 0, exclude: Collection[str] = ()) -> list[str]:
        """`n` different secrets, none of `exclude`, uniform and in random order.

        Args:
            n: how many.
            seed: of the draws.
            exclude: secrets that are not drawn.

        Raises:
            TypeError, ValueError: an argument is no whole number from 0 on.
            ValueError: R has fewer than `n` secrets besides `exclude`.
        """
        check_count("SecretFormat.sample_distinct: n", n, most=MOST_DRAWS)
        taken = {secret for secret in exclude if self.contains(secret)}
        if n > self.size - len(taken):
            raise ValueError(
                f"SecretFormat.sample_distinct: n={n} secrets were asked for, but "
                f'secret=r"{self.secret}" has only {self.size - len(taken)} left'
            )
        draw = random.Random(check_count("SecretFormat.sample_distinct: seed", seed))
        if 2 * (n + len(taken)) > self.size:
            rest = [secret for secret in self.enumerate() if secret not in taken]
            return draw.sample(rest, n)
        out: list[str] = []
        while len(out) < n:
            secret = self.unrank(draw.randrange(self.size))
            if secret not in taken:
                taken.add(secret)
                out.append(secret)
        return out

    def to_dict(self) -> dict[str, Any]:
        """The three arguments, for JSON."""
        return {"template": self.template, "secret": self.secret, "check": self.check}

    @classmethod
    @typed
    def from_dict(cls, data: dict[str, Any]) -> SecretFormat:
        """The inverse of `to_dict`."""
        for key in ("template", "secret"):
            if key not in data:
                raise ValueError(f"SecretFormat.from_dict: data lacks the key {key!r}")
        return cls(data["template"], data["secret"], data.get("check"))

    def __reduce__(self) -> tuple[type[SecretFormat], tuple[str, str, str | None]]:
        # By its arguments: small in a pickle, and the same fingerprint in every process.
        return type(self), (self.template, self.secret, self.check)


def format_names(
    formats: Iterable[SecretFormat], width: int | None = None
) -> dict[SecretFormat, str]:
    """Each format as messages and cards name it: its template, and what tells it from others.

    Args:
        width: characters of the template to show on each side of the secret; None: all.
    """
    shown = {fmt: _template(fmt, width) for fmt in formats}
    apart = distinctions(shown)
    return {fmt: name + apart[fmt] for fmt, name in shown.items()}


def distinctions(formats: Iterable[SecretFormat]) -> dict[SecretFormat, str]:
    """What to write behind the template: the expression of formats that share one, else nothing."""
    every = set(formats)
    uses = Counter(fmt.template for fmt in every)
    return {fmt: f" ({_expression(fmt)})" if uses[fmt.template] > 1 else "" for fmt in every}


def _expression(fmt: SecretFormat) -> str:
    short = fmt.secret if len(fmt.secret) <= _SHOWN else fmt.secret[: _SHOWN - 1] + "…"
    return short if fmt.check is None else f"{short}, {fmt.check}"


def _template(fmt: SecretFormat, width: int | None) -> str:
    if width is None:
        return fmt.template
    prefix, suffix = fmt.prefix, fmt.suffix
    prefix = prefix if len(prefix) <= width else "…" + prefix[-width:]
    suffix = suffix if len(suffix) <= width else suffix[:width] + "…"
    return " ".join(f"{prefix}{HOLE}{suffix}".split())
