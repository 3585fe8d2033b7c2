"""Evidence for a reviewer: what was tested, on which weights and data, and commitments to check.

Nothing in it tells a secret: figures are those of groups, and what depends on secrets is committed
to with the manifest's salt, so that it can be checked by whoever has the manifest and by nobody
else. Whoever has it can also make new evidence: to show that the canaries were not chosen later,
publish the commitment before training.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hf_exposure.attacks.extraction import Extractions
from hf_exposure.attacks.generations import Generations
from hf_exposure.canaries.commitment import (
    commitment,
    keyed_digest,
    manifest_commitment,
    same,
)
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.documents import Document, from_jsonable, to_jsonable
from hf_exposure.exposure.limits import Verdict
from hf_exposure.exposure.membership import MembershipRow
from hf_exposure.exposure.records import own_canaries
from hf_exposure.exposure.results import Exposures
from hf_exposure.models.digest import weights_digest
from hf_exposure.reports.tested import what_was_tested
from hf_exposure.utils.checks import check_path
from hf_exposure.utils.files import chunks
from hf_exposure.utils.typed import typed

if TYPE_CHECKING:
    from typing_extensions import Self

_SETTINGS = ("method", "score", "base", "samples", "max_forwards", "confidence", "bos")
_FPR = (0.01, 0.001)


@typed
class Evidence(Document):
    """What was tested, with hashes and commitments; see `Evidence.of`.

    Attributes:
        content: all of it, as JSON has it.
    """

    kind = "evidence"

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    @classmethod
    @typed
    def of(
        cls,
        exposures: Exposures,
        canaries: Canaries,
        *,
        weights: Any | None = None,
        data: Any | None = None,
        extractions: Extractions | Iterable[Extractions] = (),
        generations: Generations | None = None,
        verdict: Verdict | None = None,
    ) -> Evidence:
        """Collect the evidence of a measurement.

        Args:
            exposures: the measurement.
            canaries: the set that was measured, as loaded from its manifest.
            weights: the folder or file of those that were measured, or the model.
            data: a file of the training data, with the canaries in it, or several.
            extractions, generations: what else was tried.
            verdict: what `exposures.check` said.

        Raises:
            TypeError: an argument is something else.
            ValueError: the set was never saved, or is not that of the measurement, or there are no
                weights.
            OSError: a file cannot be read.

        Example:
            >>> evidence = Evidence.of(exposures, canaries, weights="out")    # doctest: +SKIP
            >>> evidence.save("report.json")                                # doctest: +SKIP
            >>> evidence.verify(Canaries.load("canaries.json"))             # doctest: +SKIP
            []
        """
        measured = [*(one.canary for one in exposures), *(one for one, _ in exposures.skipped)]
        try:
            own_canaries(measured, canaries)
        except ValueError:
            raise ValueError(
                "Evidence.of: exposures were measured with other canaries than these; give the "
                "manifest of the measurement"
            ) from None
        searches = [extractions] if isinstance(extractions, Extractions) else list(extractions)
        settings = exposures.settings
        versions = dict(settings.get("versions", {}))
        versions |= {
            "hf-exposure": importlib.metadata.version("hf-exposure"),
            "python": platform.python_version(),
        }
        commitments = {
            "manifest": manifest_commitment(canaries),
            "secrets_seed": commitment(canaries, "secrets seed", canaries.seed),
            "measurement_seed": commitment(canaries, "measurement seed", settings.get("seed")),
        }
        content: dict[str, Any] = {
            "tested": asdict(what_was_tested(exposures, searches, generations)),
            "membership": [_shown(row) for row in exposures.membership(_FPR)],
            "settings": {name: settings.get(name) for name in _SETTINGS},
            "limits": None if canaries.limits is None else canaries.limits.to_dict(),
            "verdict": None if verdict is None else verdict.to_dict(),
            "versions": versions,
            "weights": None if weights is None else weights_digest(weights),
            "data": None if data is None else _data_digests(canaries, data),
            "commitments": commitments,
        }
        content = from_jsonable(json.loads(json.dumps(to_jsonable(content))))
        return cls(content | {"seal": _seal(canaries, content)})

    @typed
    def verify(
        self, canaries: Canaries, *, weights: Any | None = None, data: Any | None = None
    ) -> list[str]:
        """What does not agree, a sentence each; nothing if all is as it was.

        Args:
            canaries: the set, as loaded from its manifest.
            weights: compared too, as for `of`.
            data: files of the training data to compare too.

        Raises:
            TypeError: an argument is something else.
            ValueError: the manifest has no salt, for it is of an earlier version.
            OSError: a file cannot be read.
        """
        found = self.content.get("commitments", {})
        if not same(str(found.get("manifest")), manifest_commitment(canaries)):
            return ["it is about other canaries than those of this manifest"]
        rest = {name: value for name, value in self.content.items() if name != "seal"}
        if not same(str(self.content.get("seal")), _seal(canaries, rest)):
            return ["it was changed after it was made"]
        told = []
        if weights is not None and self.content["weights"] != weights_digest(weights):
            told.append("it is about other weights than these")
        if data is not None and self.content["data"] != _data_digests(canaries, data):
            told.append("it is about other data than these")
        return told

    def _content(self, reveal: bool) -> dict[str, Any]:
        return dict(self.content)

    @classmethod
    def _from_content(cls, data: dict[str, Any], canaries: Canaries | None) -> Self:
        if not isinstance(data["commitments"], dict) or not isinstance(data["seal"], str):
            raise TypeError("commitments and seal")
        kept = {name: value for name, value in data.items() if name not in _HEADER}
        return cls(kept)


_HEADER = ("schema_version", "kind")


def _shown(row: MembershipRow) -> dict[str, Any]:
    """A row with its AUC as tables have it: to the last digit it would be a small group's ranks."""
    return {
        name: round(value, 2) if name.startswith("auc") else value
        for name, value in asdict(row).items()
    }


def _seal(canaries: Canaries, content: dict[str, Any]) -> str:
    return commitment(canaries, "report", to_jsonable(content))


def _data_digests(canaries: Canaries, data: Any) -> dict[str, str]:
    """A keyed digest of each file: a plain one of public text and a secret could be reversed."""
    given: Any = [data] if isinstance(data, (str, os.PathLike)) else data
    if not isinstance(given, Iterable):
        raise TypeError(f"data must be a file, or a list of files, not {type(data).__name__}")
    files = [check_path("data", one) for one in given]
    for one in files:
        if not one.is_file():
            raise FileNotFoundError(f"data: there is no file {str(one)!r}")
    return {
        one.name: keyed_digest(canaries, f"data {number}", chunks(one))
        for number, one in enumerate(files)
    }
