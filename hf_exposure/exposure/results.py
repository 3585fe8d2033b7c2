"""What a measurement gives back: one `Exposure` for each canary, together as `Exposures`.

Secrets are masked in all that is printed or written, and figures are coarse there, unless
`reveal=True`. Measure once, save, analyse many times: what was saved can be loaded, compared and
reported without any model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_exposure.canaries.canary import Canary, MaskedCanary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.limits import Limits
from hf_exposure.canaries.masking import mask_secrets
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.survival import InjectionReport, lost_and_all
from hf_exposure.exposure.coarse import coarse_details
from hf_exposure.exposure.details import FormatDetails
from hf_exposure.exposure.documents import Result
from hf_exposure.exposure.limits import Conditions, Verdict, judge
from hf_exposure.exposure.membership import Membership, Ranks, membership_of, percent
from hf_exposure.exposure.records import (
    NUMBERS,
    Exposure,
    by_repetitions,
    likely_log_perplexity,
    mean_bits,
    read_canaries,
    short_labels,
)
from hf_exposure.exposure.scores import ranked_by
from hf_exposure.exposure.tables import Beside, gained_bits, table_of
from hf_exposure.utils.arrays import Floats
from hf_exposure.utils.checks import check_type
from hf_exposure.utils.typed import typed
from hf_exposure.utils.words import plural, rounded

if TYPE_CHECKING:
    import pandas as pd

_FPR = 0.01  # the false-positive rate of the line below a table
_IMPROBABLE = 1.1  # log-perplexity over that of random tokens; an untrained model has about 1


@typed
class Exposures(Result[Exposure]):
    """The exposures of a canary set, in the set's order.

    Attributes:
        forwards: token-forwards that the measurement took.
        seconds: how long it took.
        settings: how it was measured: method, samples, confidence, seed, versions.
        formats: what was found out about each secret format on the way.
        references: (n,) log-perplexities in bits of uniform references of each format, where the
            method drew any.
        skipped: canaries that could not be scored, and why.
        cost: all that the measurement took, as a dictionary.

    Example:
        >>> fmt = SecretFormat("My code is {secret}.", secret=r"[0-9]{4}")
        >>> one = Exposure(Canary(fmt, "1234", 8), 12.0, 11.5, 12.6, 2.4, 1.6, 3.4, 9.0, 0, False,
        ...                5.1, "auto", 2.0 ** -12)
        >>> print(Exposures([one], forwards=4000, seconds=1.5, settings={"confidence": 0.95}))
        #  canary          inserted  exposure  95% interval  rank  log-perplexity
        0  …code is ••••.         8  10.8      9.3–12.2      ~5.6               –
        exposure in bits, at most 13.3; method auto, 4,000 token-forwards in 1.5 s
        1 of 1 inserted canary detected as trained on, at 1 % false positives
        >>> Exposures([one]).metrics()["eval_exposure_x8"]
        12.0
    """

    kind = "exposures"
    entries = "exposures"
    version = 2
    right = frozenset({0, 2, 6})

    def __init__(
        self,
        items: Iterable[Exposure],
        *,
        formats: Mapping[SecretFormat, FormatDetails] | None = None,
        skipped: Iterable[tuple[Canary | MaskedCanary, str]] = (),
        **took: Any,
    ) -> None:
        super().__init__(items, **took)
        self.formats: dict[SecretFormat, FormatDetails] = dict(formats or {})
        for fmt in self.formats:
            check_type("Exposures: formats: each key", fmt, SecretFormat, "a SecretFormat")
        self.skipped = list(skipped)
        if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in self.skipped):
            raise TypeError("Exposures: skipped must be a list of pairs (canary, reason)")

    @property
    def references(self) -> dict[SecretFormat, Floats]:
        """Log-perplexities in bits of uniform references, for each format that has any."""
        return {
            fmt: found.references
            for fmt, found in self.formats.items()
            if found.references is not None and len(found.references)
        }

    @property
    def cost(self) -> dict[str, float]:
        """`forwards`, `seconds`, `processes`, and `peak_bytes`: the most memory that branches held
        at once in one process, with caches and logits (weights and the model's own intermediate
        tensors come on top)."""
        return {
            "forwards": self.forwards,
            "seconds": self.seconds,
            "processes": self.settings.get("processes", 1),
            "peak_bytes": self.settings.get("peak_bytes", 0),
        }

    @property
    def confidence(self) -> float:
        """The confidence of all intervals."""
        return float(self.settings.get("confidence", 0.95))

    @property
    def by_likelihood(self) -> bool:
        """Whether canaries are ranked by log-perplexity, and not by another score."""
        return bool(self.settings.get("score", "log_perplexity") == "log_perplexity")

    @property
    def _is_coarse(self) -> bool:
        return self.settings.get("coarse") is True

    @typed
    def is_bound(self, one: Exposure) -> bool:
        """Whether a figure is no estimate but what is proved at the least, since nothing was drawn:
        for want of token-forwards, or because `samples=0` asked for bounds."""
        found = self.formats.get(one.canary.format)
        return found is not None and found.samples == 0 and not one.exact

    def improbable(self) -> list[SecretFormat]:
        """The formats of which most canaries are less likely to the model than random tokens.

        A tokenizer that is not the model's looks like that, or text that is unlike all it has seen.
        """
        out = []
        for fmt, found in self.formats.items():
            bits = [likely_log_perplexity(one) for one in self if one.canary.format == fmt]
            if bits and statistics.median(bits) > _IMPROBABLE * (found.uniform_bits or math.inf):
                out.append(fmt)
        return out

    def by_repetitions(self) -> dict[int, list[Exposure]]:
        """The exposures of each repetition group, fewest repetitions first."""
        return by_repetitions(self)

    @typed
    def membership(self, fpr: float | Sequence[float] = (0.01, 0.001)) -> Membership:
        """Which canaries betray that they were trained on, at exact false-positive rates.

        A secret is drawn uniformly from R, so under any model that was not trained on it the share
        p of R that is not less likely is uniform. A canary is detected at a rate of 1 % if p is at
        most 1 %: no control is needed, and the rate holds for any model and tokenizer.

        Args:
            fpr: false-positive rates between 0 and 1.

        Returns:
            A table with a row for each number of repetitions, controls first, and for all inserted
            canaries together (`repetitions` None), at each rate: `repetitions`, `fpr`, `count`,
            `detected`, `undecided` (their rank's interval holds the threshold), `tpr`, and its
            interval from `low` to `high`, `auc`.

        Raises:
            TypeError, ValueError: a rate is no number between 0 and 1.

        Example:
            >>> fmt = SecretFormat("My code is {secret}.", secret=r"[0-9]{4}")
            >>> one = Exposure(Canary(fmt, "1234", 8), 12.0, 11.5, 12.6, 2.4, 1.6, 3.4, 9.0, 0,
            ...                False, 5.1, "auto", 2.0 ** -12)
            >>> [(row.repetitions, row.detected, row.count) for row in
            ...  Exposures([one]).membership(fpr=0.01)]
            [(8, 1, 1), (None, 1, 1)]
        """
        return membership_of(self, self.formats, fpr, self.confidence, self._is_coarse)

    @typed
    def check(
        self,
        limits: Limits,
        survival: InjectionReport | Mapping[str, Any] | None = None,
        *,
        look: int = 1,
    ) -> Verdict:
        """Whether these exposures keep limits: passed, failed or inconclusive.

        Args:
            limits: what was set beforehand.
            survival: what `verify_injection` gave for the training data, or its `to_dict()`; lost
                canaries make the verdict inconclusive.
            look: where a training is judged again and again, the number of this judgement, from 1
                on: all of them together raise a false alarm as rarely as one would.

        Returns:
            The verdict, with a check for each limit and for each condition that is not met.

        Raises:
            TypeError, ValueError: an argument is something else.
        """
        inserted = any(one.canary.inserted for one in self)
        measured = Conditions(
            on_record=self.settings.get("inserted") is not False or not inserted,
            skipped=sum(canary.inserted for canary, _ in self.skipped),
            bounds=frozenset(place for place, one in enumerate(self) if self.is_bound(one)),
            strange=len(self.improbable()),
            ranked_by=ranked_by(self.settings),
            survival=None if survival is None else lost_and_all(survival),
            agreed=self.settings.get("limits"),
        )
        ranks = Ranks.of(self, self.formats, self._is_coarse)
        return judge(limits, self.coarse(), ranks, measured, self.confidence, look)

    @typed
    def metrics(self, prefix: str = "eval_", fpr: float | None = None) -> dict[str, float]:
        """Group figures, as measured.

        `{prefix}exposure_max`, and the mean of a group of one, are the figure of one canary: with
        the model they may tell a secret of a low rank. For logs that are shared use
        `exposures.coarse().metrics()`, as `ExposureCallback` does (docs/limits.md).

        Args:
            prefix: of all names.
            fpr: a false-positive rate, such as 0.01, to add true-positive rates; see `membership`.

        Returns:
            `{prefix}exposure` (mean over the inserted canaries) and `{prefix}exposure_max`, both
            missing if none was inserted; `{prefix}exposure_x{k}` for each number of repetitions k,
            the control group as `x0`; `{prefix}exposure_forwards` and `{prefix}exposure_runtime`
            (seconds). With `fpr` also `{prefix}tpr` and `{prefix}tpr_x{k}`, the shares of canaries
            that are detected.
        """
        out: dict[str, float] = {}
        inserted = [item.bits for item in self if item.canary.inserted]
        if inserted:
            out[f"{prefix}exposure"] = math.fsum(inserted) / len(inserted)
            out[f"{prefix}exposure_max"] = max(inserted)
        for times, group in self.by_repetitions().items():
            out[f"{prefix}exposure_x{times}"] = mean_bits(group)
        for row in self.membership(fpr) if fpr is not None else ():
            name = "tpr" if row.repetitions is None else f"tpr_x{row.repetitions}"
            out[f"{prefix}{name}"] = row.tpr
        out[f"{prefix}exposure_forwards"] = self.forwards
        out[f"{prefix}exposure_runtime"] = round(self.seconds, 4)
        return out

    @typed
    def to_pandas(self, reveal: bool = False) -> pd.DataFrame:
        """A row for each canary: its text (`canary`, masked unless `reveal`), `repetitions`, its
        format's `template` and `expression`, and all figures of `Exposure` by name, coarse unless
        `reveal`."""
        import pandas as pd

        columns = ["canary", "repetitions", "template", "expression", *NUMBERS]
        rows = [
            {
                "canary": item.canary.label(reveal),
                "repetitions": item.canary.repetitions,
                "template": item.canary.format.template,
                "expression": item.canary.format.secret,
                **self._entry(item, reveal),
            }
            for item in (self if reveal else self.coarse())
        ]
        frame: pd.DataFrame = pd.DataFrame(rows, columns=columns)
        return frame

    def coarse(self) -> Exposures:
        """The same, too coarse to point at a secret, as shared files have it."""
        own = {fmt: [one for one in self if one.canary.format == fmt] for fmt in self.formats}
        known = self.settings.items()
        settings = {name: rounded(x) if name == "peak_bytes" else x for name, x in known}
        settings["coarse"] = True
        return self._like(
            (item.coarse() for item in self),
            forwards=rounded(self.forwards),
            settings=settings,
            formats={fmt: coarse_details(one, own[fmt]) for fmt, one in self.formats.items()},
            skipped=[(canary, self._masked(why)) for canary, why in self.skipped],
        )

    def _masked(self, why: str) -> str:
        both = [*(one.canary for one in self), *(canary for canary, _ in self.skipped)]
        return mask_secrets(why, [one for one in both if isinstance(one, Canary)])

    @typed
    def gained(self, base: Exposures) -> list[float]:
        """Bits of exposure that each canary has here and not in `base`: what training added.

        It tells what was memorized from what is easy to guess, which a model exposes untrained.

        Args:
            base: of the same canaries in the model before it was trained on them, in any order.

        Raises:
            ValueError: they are of different canaries.
        """
        return gained_bits(self, base)

    @typed
    def beside(self, base: Exposures) -> Beside:
        """A table of these with columns for the base model's exposure and for what was gained.

        Raises:
            ValueError: see `gained`.
        """
        return Beside(self, base)

    @typed
    def cells(self, reveal: bool = False) -> tuple[list[str], list[list[str]]]:
        """The table as text: its headings, and a row of them for each canary, with its place."""
        shown = self if reveal else self.coarse()
        labels = short_labels((item.canary for item in self), reveal)
        return table_of(shown, labels, map(self.is_bound, shown), self.confidence)

    def __str__(self) -> str:
        row = next((one for one in self.membership(_FPR) if one.repetitions is None), None)
        if row is None:
            return super().__str__()
        told = f"{row.detected} of {plural(row.count, 'inserted canary')} detected as trained on"
        told += f", {row.undecided} undecided" * bool(row.undecided)
        return f"{super().__str__()}\n{told}, at {percent(_FPR)} false positives"

    def summary(self) -> str:
        """One line about what the figures are and what they took."""
        most = sorted({round(item.canary.format.bits, 1) for item in self})
        line = "exposure in bits" + (f", at most {' or '.join(map(str, most))}" if most else "")
        methods = sorted({item.method for item in self})
        by = "" if self.by_likelihood else f" by {ranked_by(self.settings)}"
        line += f"; method {' and '.join(methods)}{by}, " if methods else "; "
        line += self.took
        if any(map(self.is_bound, self)):
            line += "; ≥: nothing was drawn, so this is what is proved at the least"
        if self.settings.get("inserted") is False and any(one.canary.inserted for one in self):
            line += "; that these canaries were inserted is not on record"
        if self.skipped:
            line += f"; {plural(len(self.skipped), 'canary')} could not be scored: "
            line += self._masked(self.skipped[0][1])
        return line

    def _entry(self, item: Exposure, reveal: bool) -> dict[str, Any]:
        return {name: getattr(item, name) for name in NUMBERS}

    def _content(self, reveal: bool) -> dict[str, Any]:
        shown = self if reveal else self.coarse()
        canaries = [*(item.canary for item in self), *(canary for canary, _ in self.skipped)]
        formats = list(dict.fromkeys([*(canary.format for canary in canaries), *self.formats]))
        out = super(Exposures, shown)._content(reveal)
        for item, entry in zip(shown, out[self.entries], strict=True):
            entry |= item.canary.to_dict(formats, reveal)
        details = {fmt: {"details": one.to_dict()} for fmt, one in shown.formats.items()}
        skipped = [canary.to_dict(formats, reveal) | {"why": why} for canary, why in shown.skipped]
        return out | {
            "formats": [fmt.to_dict() | details.get(fmt, {}) for fmt in formats],
            "skipped": skipped,
        }

    @classmethod
    def _from_content(cls, data: dict[str, Any], canaries: Canaries | None) -> Exposures:
        formats = [SecretFormat.from_dict(entry) for entry in data["formats"]]
        entries = [*data["exposures"], *data["skipped"]]
        named = read_canaries(entries, formats, canaries)
        cost = {"cost": None}  # which files of earlier versions do not have
        items = [
            Exposure(canary, **{name: (cost | entry)[name] for name in NUMBERS})
            for canary, entry in zip(named, data["exposures"], strict=False)
        ]
        reasons = [str(entry["why"]) for entry in data["skipped"]]
        return cls(
            items,
            **cls._read_took(data),
            formats={
                fmt: FormatDetails.from_dict(entry["details"])
                for fmt, entry in zip(formats, data["formats"], strict=True)
                if "details" in entry
            },
            skipped=zip(named[len(items) :], reasons, strict=True),
        )


@typed
class BudgetError(RuntimeError):
    """`method="exact"` needs more token-forwards than `max_forwards`.

    Attributes:
        exposures: what `method="auto"` gives with the same budget.
    """

    def __init__(self, message: str, exposures: Exposures) -> None:
        super().__init__(message)
        self.exposures = exposures
