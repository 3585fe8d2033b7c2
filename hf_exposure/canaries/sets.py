"""Canaries: secrets drawn at random, and how many times each one is planted."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat, format_names
from hf_exposure.canaries.sharing import dataset_card, download_manifest, upload_manifest
from hf_exposure.utils.checks import check_count
from hf_exposure.utils.files import load_json, write_text

SCHEMA_VERSION = 1
INCLUSIONS = ("fixed", "coin")


class Canaries(Sequence[Canary]):
    """A set of canaries in a fixed order, no two of them alike; at least one.

    Attributes:
        planting: how the set was planted, filled in by whatever planted it: {} until then.
        seed: the seed that generated the set; None if it was put together by hand.
        inclusion: "fixed", or "coin" if every canary was left in or out by its own fair coin.

    Raises:
        TypeError: an item is not a Canary.
        ValueError: there is no canary, or two canaries have the same text.

    Example:
        >>> fmt = SecretFormat("The random number is {secret}.", secret=r"[0-9]{9}")
        >>> canaries = Canaries.generate(fmt, repetitions=[0, 1, 16], per_repetition=2)
        >>> canaries
        Canaries(6 of 'The random number is {secret}.'; repetitions: 2 x 0, 2 x 1, 2 x 16)
        >>> [canary.repetitions for canary in canaries]
        [0, 0, 1, 1, 16, 16]
    """

    def __init__(
        self,
        items: Iterable[Canary],
        *,
        seed: int | None = None,
        inclusion: str = "fixed",
        planting: dict[str, Any] | None = None,
    ) -> None:
        if isinstance(items, (str, os.PathLike)):
            raise TypeError(
                f"Canaries: {os.fspath(items)!r} is a path; load it first, with Canaries.load(path)"
            )
        self._items = tuple(items)
        self.seed = seed
        self.inclusion = _check_inclusion("Canaries", inclusion)
        self.planting: dict[str, Any] = dict(planting or {})
        if not self._items:
            raise ValueError("Canaries: the set is empty; give it at least one Canary")
        texts: set[str] = set()
        for item in self._items:
            if not isinstance(item, Canary):
                raise TypeError(f"Canaries: an item is of type {type(item).__name__}, not Canary")
            if item.text in texts:
                raise ValueError(
                    f"Canaries: two canaries have the same text, {item.label()!r}; "
                    "give it once, with the sum of the repetitions"
                )
            texts.add(item.text)

    @classmethod
    def generate(
        cls,
        formats: SecretFormat | Sequence[SecretFormat],
        repetitions: Sequence[int] = (0, 1, 4, 16, 64),
        per_repetition: int = 4,
        seed: int = 0,
        include: Iterable[Canary | str] = (),
        inclusion: str = "fixed",
    ) -> Canaries:
        """Draw canaries: for each format, `per_repetition` of them for each entry of `repetitions`.

        Secrets are uniform on the secret space and distinct, so that the canaries with 0
        repetitions are a control group. Every format has a generator of its own, and the coins
        another one, all of them derived from `seed`: nothing else that is given the same seed
        draws the same secrets.

        Args:
            formats: one secret format or several.
            repetitions: how many times the canaries of each group are inserted.
            per_repetition: canaries for each format and entry of `repetitions`.
            include: canaries that must be among them, or secrets as strings, which belong to the
                first format that contains them and get the largest number of repetitions. They
                take the places of drawn ones in their group, or are added if it is full.
            inclusion: "coin" leaves each canary in or out by its own fair coin, as audits of
                differential privacy need it: `planned` is its number of repetitions, and
                `repetitions` that number or 0.

        Raises:
            ValueError: a secret space has fewer strings than are asked for, a string of `include`
                belongs to no format, or an argument is out of range.
        """
        chosen = _check_formats(formats)
        groups = _check_repetitions(repetitions)
        check_count("Canaries.generate: per_repetition", per_repetition, least=1)
        _check_inclusion("Canaries.generate", inclusion)
        if isinstance(include, (str, Canary)):
            raise TypeError("Canaries.generate: include must be a list, such as include=[secret]")
        given = [_included(item, chosen, max(groups)) for item in include]
        items: list[Canary] = []
        texts = {canary.text for canary in given}
        if len(texts) < len(given):
            raise ValueError("Canaries.generate: include has the same canary twice; give it once")
        for fmt in dict.fromkeys([*chosen, *(canary.format for canary in given)]):
            own = [canary for canary in given if canary.format == fmt]
            drawn = _draw(fmt, own, groups if fmt in chosen else [], per_repetition, seed, texts)
            texts.update(canary.text for canary in drawn)
            items += drawn
        if inclusion == "coin":
            items = _flip(items, seed)
        return cls(items, seed=seed, inclusion=inclusion)

    @property
    def formats(self) -> tuple[SecretFormat, ...]:
        """The distinct formats, in order of appearance."""
        return tuple(dict.fromkeys(canary.format for canary in self._items))

    def by_format(self, fmt: SecretFormat) -> list[Canary]:
        """The canaries of one format, in order."""
        return [canary for canary in self._items if canary.format == fmt]

    @property
    def inserted(self) -> list[Canary]:
        """Those that go into the data."""
        return [canary for canary in self._items if canary.inserted]

    @property
    def controls(self) -> list[Canary]:
        """Those that do not: the control group."""
        return [canary for canary in self._items if not canary.inserted]

    def to_dict(self) -> dict[str, Any]:
        """The manifest, as JSON has it. It holds the secrets."""
        formats = self.formats
        return {
            "schema_version": SCHEMA_VERSION,
            "seed": self.seed,
            "inclusion": self.inclusion,
            "planting": dict(self.planting),
            "formats": [fmt.to_dict() for fmt in formats],
            "canaries": [
                {
                    "format": formats.index(canary.format),
                    "secret": canary.secret,
                    "repetitions": canary.repetitions,
                    "planned": canary.planned,
                }
                for canary in self._items
            ],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Canaries:
        """The inverse of `to_dict`.

        Raises:
            ValueError: it is no manifest, or one of a version that is not known here.
        """
        if not isinstance(data, dict):
            raise ValueError(f"a manifest of canaries is a JSON object, not {type(data).__name__}")
        if isinstance(data.get("kind"), str):
            raise ValueError(
                f"it holds {data['kind']}, not canaries; the manifest is wanted, which "
                "Canaries.save and `hf-exposure inject` write"
            )
        version = _value(data, "schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version={version!r} is not known; this version of hf-exposure reads "
                f"{SCHEMA_VERSION}: update it, or generate the canaries again"
            )
        try:
            formats = [SecretFormat.from_dict(entry) for entry in _value(data, "formats")]
            items = [
                Canary(
                    formats[_value(entry, "format")],
                    _value(entry, "secret"),
                    _value(entry, "repetitions"),
                    _value(entry, "planned"),
                )
                for entry in _value(data, "canaries")
            ]
            return cls(
                items,
                seed=_value(data, "seed"),
                inclusion=_value(data, "inclusion"),
                planting=_value(data, "planting"),
            )
        except KeyError as error:
            raise ValueError(f"a format lacks the key {error}") from None
        except (AttributeError, IndexError, TypeError) as error:
            raise ValueError(f"a value is not what a manifest has there ({error})") from None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the manifest: the one file that holds the secrets. Whole or not at all."""
        return write_text(path, self.to_json())

    def to_json(self) -> str:
        """The text of the manifest. It holds the secrets."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Canaries:
        """Read what `save` wrote.

        Raises:
            OSError: there is no such file.
            ValueError: it is not a manifest that can be read; the message names the path.
        """
        wanted = "the manifest that Canaries.save or `hf-exposure inject` has written"
        return load_json(path, cls.from_dict, "Canaries.load", wanted)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload canaries",
        reveal: bool = False,
    ) -> str:
        """Upload the set as a data set repository, with a card.

        The manifest is uploaded whole, secrets too: whoever can read the repository can read them.
        The card tells what was inserted and where, and shows no secret unless `reveal`.

        Args:
            repo_id: the repository's name on the Hub, such as "me/canaries".
            private: of a new repository. An existing one stays what it is; if that is public,
                nothing is uploaded unless this is False.
            token: a Hub token; None takes the one that is logged in.
            revision: a branch to commit to, which must be there.
            commit_message: of the commit.
            reveal: show the secrets in the card, and add a file of rows for the data set viewer.

        Returns:
            The address of the commit.

        Raises:
            RuntimeError: the Hub could not be reached or has refused, or the repository is public
                and `private` is not False; the message says why.
        """
        return upload_manifest(
            self.to_json(),
            lambda name: self.card(name, reveal=reveal),
            self,
            repo_id,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
            reveal=reveal,
        )

    @classmethod
    def from_hub(
        cls, repo_id: str, *, revision: str | None = None, token: str | bool | None = None
    ) -> Canaries:
        """Load what `push_to_hub` has uploaded.

        Args:
            repo_id: the repository's name on the Hub.
            revision: a branch, tag or commit.
            token: a Hub token; None takes the one that is logged in.

        Raises:
            RuntimeError: the Hub could not be reached, has refused, or has no such set.
            ValueError: the file there is no manifest of canaries.
        """
        return cls.load(download_manifest(repo_id, revision=revision, token=token))

    def card(self, repo_id: str, reveal: bool = False) -> str:
        """The README.md of its repository on the Hub; it shows no secret unless `reveal`."""
        return dataset_card(
            self,
            repo_id,
            seed=self.seed,
            inclusion=self.inclusion,
            planting=self.planting,
            reveal=reveal,
        )

    @overload
    def __getitem__(self, index: int) -> Canary: ...
    @overload
    def __getitem__(self, index: slice) -> Canaries: ...
    def __getitem__(self, index: int | slice) -> Canary | Canaries:
        if isinstance(index, slice):
            part = self._items[index]  # planted as the whole was
            return Canaries(part, seed=self.seed, inclusion=self.inclusion, planting=self.planting)
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Canary]:
        return iter(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Canaries) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # `planting` changes

    def __repr__(self) -> str:
        templates = " and ".join(map(repr, format_names(self.formats).values()))
        counts = Counter(canary.repetitions for canary in self._items)
        groups = ", ".join(f"{counts[times]} x {times}" for times in sorted(counts))
        return f"Canaries({len(self)} of {templates}; repetitions: {groups})"


def derived(seed: int, *purpose: str | None) -> random.Random:
    """A generator for one purpose: the same one on every machine, unrelated to any other."""
    data = json.dumps([seed, *purpose]).encode()
    return random.Random(int.from_bytes(hashlib.sha256(data).digest()[:16], "big"))


def _draw(
    fmt: SecretFormat,
    given: list[Canary],
    groups: list[int],
    per_repetition: int,
    seed: int,
    taken: set[str],
) -> list[Canary]:
    """The canaries of one format, `given` ones first in the group that they belong to."""
    waiting = list(given)
    firsts: list[list[Canary]] = []
    for times in groups:
        first = [canary for canary in waiting if _planned(canary) == times][:per_repetition]
        firsts.append(first)
        waiting = [canary for canary in waiting if canary not in first]
    wanted = per_repetition * len(groups) - sum(map(len, firsts))
    # A text that is there already, be it from another format, is not drawn again.
    exclude = {text[len(fmt.prefix) : len(text) - len(fmt.suffix)] for text in taken}
    exclude = {secret for secret in exclude if fmt.render(secret) in taken and fmt.contains(secret)}
    if wanted > fmt.size - len(exclude):
        others = f", {len(exclude)} of them taken by include or another format" if exclude else ""
        raise ValueError(
            f"Canaries.generate: {per_repetition * len(groups)} distinct canaries are asked for, "
            f'but secret=r"{fmt.secret}" has only {fmt.size} strings{others}; lower '
            "per_repetition, or use a larger secret space"
        )
    source = derived(seed, "secrets", fmt.template, fmt.secret, fmt.check)
    secrets = iter(fmt.sample_distinct(wanted, seed=source.getrandbits(64), exclude=exclude))
    out: list[Canary] = []
    for times, first in zip(groups, firsts, strict=True):
        rest = per_repetition - len(first)
        out += [*first, *(Canary(fmt, next(secrets), times) for _ in range(rest))]
    return out + waiting


def _flip(items: list[Canary], seed: int) -> list[Canary]:
    """Each canary in or out by its own coin; controls, and those flipped before, as they are."""
    coins = derived(seed, "coins")
    out = []
    for canary in items:
        heads = coins.random() < 0.5
        if canary.planned is None and canary.inserted:
            times = canary.repetitions
            canary = Canary(canary.format, canary.secret, times if heads else 0, planned=times)
        out.append(canary)
    return out


def _planned(canary: Canary) -> int:
    return canary.repetitions if canary.planned is None else canary.planned


def _included(item: Canary | str, formats: list[SecretFormat], most: int) -> Canary:
    if isinstance(item, Canary):
        return item
    if not isinstance(item, str):
        kind = type(item).__name__
        raise TypeError(f"Canaries.generate: include holds Canary objects or strings, not {kind}")
    for fmt in formats:
        if fmt.contains(item):
            return Canary(fmt, item, most)
    known = ", ".join(f'r"{fmt.secret}"' for fmt in formats)
    raise ValueError(
        f"Canaries.generate: include has a string of {len(item)} characters that no format "
        f"contains; give secrets that match {known}, or Canary objects"
    )


def _check_formats(formats: SecretFormat | Sequence[SecretFormat]) -> list[SecretFormat]:
    chosen = list(formats) if isinstance(formats, Iterable) else [formats]
    for fmt in chosen:
        if not isinstance(fmt, SecretFormat):
            kind = type(fmt).__name__
            raise TypeError(f"Canaries.generate: formats must be SecretFormat objects, not {kind}")
    if not chosen:
        raise ValueError("Canaries.generate: formats is empty; give at least one SecretFormat")
    if len(set(chosen)) < len(chosen):
        raise ValueError("Canaries.generate: formats has the same format twice; give it once")
    return chosen


def _check_repetitions(repetitions: Iterable[int]) -> list[int]:
    if isinstance(repetitions, str) or not isinstance(repetitions, Iterable):
        raise TypeError(
            f"Canaries.generate: repetitions={repetitions!r} must be a list, such as [0, 1, 16]"
        )
    groups = list(repetitions)
    if not groups:
        raise ValueError("Canaries.generate: repetitions is empty; give a list such as [0, 1, 16]")
    for times in groups:
        check_count("Canaries.generate: repetitions", times)
    return groups


def _check_inclusion(where: str, inclusion: str) -> str:
    if inclusion not in INCLUSIONS:
        raise ValueError(f"{where}: inclusion={inclusion!r} is not known; use 'fixed' or 'coin'")
    return inclusion


def _value(entry: Any, key: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise ValueError(f"the manifest lacks the key {key!r}")
    return entry[key]


def is_manifest(data: Any) -> bool:
    """Whether the content of a JSON file looks like a manifest of canaries."""
    keys = {"schema_version", "inclusion", "canaries"}
    return isinstance(data, dict) and "kind" not in data and keys <= data.keys()


def manifests_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Manifests that lie in a folder itself, and so would be uploaded with it."""
    return [path for path in sorted(Path(folder).glob("*.json")) if holds_manifest(path)]


def holds_manifest(path: Path) -> bool:
    """Whether a file can be read as a manifest; most need not be read to the end."""
    try:
        with open(path, encoding="utf-8") as file:
            if '"schema_version"' not in file.read(100):
                return False
        Canaries.load(path)
    except (OSError, ValueError):
        return False
    return True
