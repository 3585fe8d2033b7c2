"""A set of canaries and its manifest."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.drawing import draw_canaries, flip_coins
from hf_exposure.canaries.formats import SecretFormat, format_names
from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.limits import Limits
from hf_exposure.canaries.sharing import dataset_card, download_manifest, upload_manifest
from hf_exposure.utils.checks import check_choice, check_count, check_type
from hf_exposure.utils.files import load_json, write_text
from hf_exposure.utils.typed import typed

SCHEMA_VERSION = 2
INCLUSIONS = ("fixed", "coin")


@typed
class Canaries(Sequence[Canary]):
    """A set of canaries in a fixed order, no two of them alike; at least one.

    Args:
        items: the canaries.
        seed: the seed that generated the set; None if it was put together by hand.
        inclusion: "fixed", or "coin" if every canary was left in or out by its own fair coin.
        insertions: how the set was inserted before, if at all.
        limits: what a model that was trained on them must keep, if that is set beforehand.
        salt: of a set that was saved before.

    Attributes:
        seed, inclusion, limits: as given; `limits` may be set until the manifest is saved.
        salt: 64 hexadecimal digits, the key of commitments to the set; drawn when it is saved, None
            until then. It is no part of what is compared.
        insertions: how the set was inserted, a tuple of `Insertion`: empty until then.

    Raises:
        TypeError: an item is not a Canary.
        ValueError: there is no canary, two canaries have the same text, or an argument is out of
            range.

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
        insertions: Iterable[Insertion] = (),
        limits: Limits | None = None,
        salt: str | None = None,
    ) -> None:
        self._items = tuple(items)
        self.seed = seed if seed is None else check_count("Canaries: seed", seed)
        self.inclusion = check_choice("Canaries: inclusion", inclusion, INCLUSIONS)
        if not self._items:
            raise ValueError("Canaries: items: the set is empty; give it at least one Canary")
        texts: set[str] = set()
        for item in self._items:
            check_type("Canaries: each of the items", item, Canary, "a Canary")
            if item.text in texts:
                raise ValueError(
                    f"Canaries: two canaries have the same text, {item.label()!r}; "
                    "give it once, with the sum of the repetitions"
                )
            texts.add(item.text)
        if salt is not None and not re.fullmatch("[0-9a-f]{64}", salt):
            raise ValueError("Canaries: salt must have 64 hexadecimal digits")
        self.limits, self.salt = limits, salt
        self._insertions: tuple[Insertion, ...] = ()
        for insertion in insertions:
            self.record(insertion)

    @classmethod
    @typed
    def generate(
        cls,
        formats: SecretFormat | Sequence[SecretFormat],
        repetitions: Sequence[int] = (0, 1, 4, 16, 64),
        per_repetition: int = 4,
        seed: int | None = 0,
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
            seed: decides on the secrets, so whoever knows it and the formats knows them; None
                draws one of 128 bits at random.
            include: canaries that must be among them, or secrets as strings, which belong to the
                first format that contains them and get the largest number of repetitions. They
                take the places of drawn ones in their group, or are added if it is full.
            inclusion: "coin" leaves each canary in or out by its own fair coin, as audits of
                differential privacy need it: `planned` is its number of repetitions, and
                `repetitions` that number or 0.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: a secret space has fewer strings than are asked for, a string of `include`
                belongs to no format, or an argument is out of range.
        """
        where = "Canaries.generate:"
        check_count(f"{where} per_repetition", per_repetition, least=1, most=1_000_000)
        seed = secrets.randbits(128) if seed is None else check_count(f"{where} seed", seed)
        items = draw_canaries(formats, repetitions, per_repetition, seed, include)
        if inclusion == "coin":
            items = flip_coins(items, seed)
        return cls(items, seed=seed, inclusion=inclusion)

    @property
    def formats(self) -> tuple[SecretFormat, ...]:
        """The distinct formats, in order of appearance."""
        return tuple(dict.fromkeys(canary.format for canary in self._items))

    @typed
    def by_format(self, fmt: SecretFormat) -> list[Canary]:
        """The canaries of one format, in order."""
        return [canary for canary in self._items if canary.format == fmt]

    @property
    def inserted(self) -> list[Canary]:
        """Those that are inserted."""
        return [canary for canary in self._items if canary.inserted]

    @property
    def controls(self) -> list[Canary]:
        """Those that are not: the control group."""
        return [canary for canary in self._items if not canary.inserted]

    @property
    def insertions(self) -> tuple[Insertion, ...]:
        """How the set was inserted, each way once; all of them in the same context."""
        return self._insertions

    @property
    def insertion(self) -> Insertion | None:
        """The first of `insertions`, whose context is that of all; None before the first."""
        return self._insertions[0] if self._insertions else None

    @typed
    def record(self, insertion: Insertion) -> None:
        """Put an insertion on record; one that is there already is not added again.

        `inject_canaries` and `CanaryInjector` do it.

        Args:
            insertion: how the set was inserted.

        Raises:
            TypeError: it is no Insertion.
            ValueError: canaries stand in another context there than on record.
        """
        self.check_insertion(insertion)
        if insertion not in self._insertions:
            self._insertions += (insertion,)

    @typed
    def check_insertion(self, insertion: Insertion) -> None:
        """Refuse what `record` would refuse."""
        first = self.insertion
        if first is not None and first.context != insertion.context:
            raise ValueError(
                f"canaries: the set is on record as inserted {first.describe()}, and is measured "
                f"in that context, so it cannot be inserted {insertion.describe()} too; insert a "
                "copy, canaries.copy(), and save it as a manifest of its own"
            )

    def copy(self) -> Canaries:
        """The same canaries with no insertion on record, to insert them in another way."""
        return self._of(self._items, ())

    def _of(self, items: Sequence[Canary], insertions: Sequence[Insertion]) -> Canaries:
        """Canaries of this set, as they were drawn."""
        made = Canaries(items, seed=self.seed, inclusion=self.inclusion, limits=self.limits)
        made._insertions = tuple(insertions)
        return made

    def to_dict(self) -> dict[str, Any]:
        """The manifest, as JSON has it. It holds the secrets."""
        formats = self.formats
        return {
            "schema_version": SCHEMA_VERSION,
            "seed": self.seed,
            "inclusion": self.inclusion,
            "insertions": [insertion.to_dict() for insertion in self._insertions],
            **({} if self.limits is None else {"limits": self.limits.to_dict()}),
            **({} if self.salt is None else {"salt": self.salt}),
            "formats": [fmt.to_dict() for fmt in formats],
            "canaries": [canary.to_dict(formats, reveal=True) for canary in self._items],
        }

    @classmethod
    @typed
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
        try:
            version = data["schema_version"]
            if version != SCHEMA_VERSION:
                raise ValueError(
                    f"schema_version={version!r} is not known; this version of hf-exposure reads "
                    f"{SCHEMA_VERSION}: generate the canaries with the same arguments, and insert "
                    "them, again"
                )
            formats = [SecretFormat.from_dict(entry) for entry in data["formats"]]
            return cls(
                [Canary.from_dict(entry, formats) for entry in data["canaries"]],
                seed=data["seed"],
                inclusion=data["inclusion"],
                insertions=[Insertion.from_dict(entry) for entry in data["insertions"]],
                limits=Limits.from_dict(data["limits"]) if "limits" in data else None,
                salt=data.get("salt"),
            )
        except KeyError as error:
            raise ValueError(f"the manifest lacks the key {error}") from None
        except (AttributeError, IndexError, TypeError) as error:
            raise ValueError(f"a value is not what a manifest has there ({error})") from None

    @typed
    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the manifest, the one file that holds the secrets; whole or not at all.

        A new file can be read by its owner only. The manifest of the same set is replaced if no
        insertion on its record is lost.

        Args:
            path: the file.
            overwrite: replace any other file that is there.

        Returns:
            The path.

        Raises:
            FileExistsError: another file is there, and not `overwrite`.
            OSError: it cannot be written.
        """
        overwrite = self._continues(path) or overwrite
        text = self.to_json()
        return write_text(path, text, mode=0o600, where="Canaries.save", overwrite=overwrite)

    def _continues(self, path: str | os.PathLike[str]) -> bool:
        """Whether a file is this set's manifest, with no insertion that is not on record here; then
        its salt is this set's too."""
        try:
            old = Canaries.load(path)
        except (OSError, ValueError):
            return False
        new = self.copy()
        if old.limits is None:  # they may be added, not changed
            new.limits = None
        if old.copy() != new or not set(old.insertions) <= set(self.insertions):
            return False
        self.salt = self.salt or old.salt
        return old.salt in (None, self.salt)

    def to_json(self) -> str:
        """The text of the manifest, with a salt, which is drawn if there is none. It holds the
        secrets."""
        self.salt = self.salt or secrets.token_hex(32)
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    @typed
    def load(cls, path: str | os.PathLike[str]) -> Canaries:
        """Read what `save` wrote.

        Raises:
            OSError: there is no such file.
            ValueError: it is not a manifest that can be read; the message names the path.
        """
        wanted = "the manifest that Canaries.save or `hf-exposure inject` has written"
        return load_json(path, cls.from_dict, "Canaries.load", wanted)

    @typed
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
        text = self.to_json()
        return upload_manifest(
            self, text, self.card, repo_id, private, token, revision, commit_message, reveal
        )

    @classmethod
    @typed
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

    @typed
    def card(self, repo_id: str, reveal: bool = False) -> str:
        """The README.md of its repository on the Hub; it shows no secret unless `reveal`."""
        drawn = self.seed, self.inclusion, self.insertions
        return dataset_card(self, repo_id, *drawn, reveal)

    @overload
    def __getitem__(self, index: int) -> Canary: ...
    @overload
    def __getitem__(self, index: slice) -> Canaries: ...
    @typed
    def __getitem__(self, index: int | slice) -> Canary | Canaries:
        if isinstance(index, slice):  # inserted as the whole was
            return self._of(self._items[index], self.insertions)
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Canary]:
        return iter(self._items)

    def __eq__(self, other: object) -> bool:
        none = {"salt": None}
        return isinstance(other, Canaries) and self.to_dict() | none == other.to_dict() | none

    def __getstate__(self) -> dict[str, Any]:
        # Fingerprints of data sets are made of pickles, and the salt is another one for each run.
        return self.__dict__ | {"salt": None}

    __hash__ = None  # type: ignore[assignment]  # `insertions` changes

    def __repr__(self) -> str:
        templates = " and ".join(map(repr, format_names(self.formats).values()))
        counts = Counter(canary.repetitions for canary in self._items)
        groups = ", ".join(f"{counts[times]} x {times}" for times in sorted(counts))
        return f"Canaries({len(self)} of {templates}; repetitions: {groups})"
