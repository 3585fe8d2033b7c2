"""What was tested, with what power, against whom, and what was not: for a reviewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy import special, stats

from hf_exposure.canaries.formats import format_names
from hf_exposure.exposure.chance import noticeable
from hf_exposure.exposure.membership import percent
from hf_exposure.exposure.records import by_repetitions, mean_bits
from hf_exposure.exposure.results import Exposures
from hf_exposure.exposure.scores import ranked_by
from hf_exposure.utils.words import plural, times

if TYPE_CHECKING:
    from hf_exposure.attacks.extraction import Extractions
    from hf_exposure.attacks.generations import Generations

_FPR = 0.01
_POWER = 0.8


@dataclass(frozen=True)
class Group:
    """The canaries of one format that were inserted equally often.

    Attributes:
        format: its name in tables.
        bits: log2 of the secret space's size.
        repetitions: how often each was inserted.
        canaries: how many.
        exposure: their mean exposure in bits, coarse.
        noticeable_bits: a smaller mean exposure would not have been told from chance.
        noticeable_tpr: the share of them that has to be detectable at 1 % false positives so that
            more are detected than chance explains, with a probability of 80 %; None: no share.
    """

    format: str
    bits: float
    repetitions: int
    canaries: int
    exposure: float
    noticeable_bits: float
    noticeable_tpr: float | None


@dataclass(frozen=True)
class Tested:
    """What was tested and what was not.

    Attributes:
        groups: of inserted canaries.
        controls: canaries that were never inserted.
        attackers: what somebody was assumed to have and to do, a sentence each.
        not_tested: what nothing is known of, a sentence each.
        opinion: rows for the questions of EDPB Opinion 28/2024: paragraph, question, answer.
    """

    groups: tuple[Group, ...]
    controls: int
    attackers: tuple[str, ...]
    not_tested: tuple[str, ...]
    opinion: tuple[tuple[str, str, str], ...]


def what_was_tested(
    exposures: Exposures,
    extractions: Sequence[Extractions] = (),
    generations: Generations | None = None,
) -> Tested:
    """What a measurement, searches and generation have tested."""
    names = format_names([*exposures.formats, *(one.canary.format for one in exposures)])
    shown = exposures.coarse()
    inserted = {
        (fmt, count): group
        for fmt in names
        for count, group in by_repetitions(
            one for one in shown if one.canary.format == fmt and one.canary.inserted
        ).items()
    }
    level = (1 - exposures.confidence) / max(1, len(inserted))
    groups = tuple(
        Group(
            names[fmt],
            round(fmt.bits, 1),
            count,
            len(group),
            round(mean_bits(group), 1),
            round(noticeable(len(group), level), 1),
            noticeable_tpr(len(group), level),
        )
        for (fmt, count), group in inserted.items()
    )
    controls = sum(not one.canary.inserted for one in exposures)
    attackers = _attackers(exposures, extractions, generations)
    return Tested(
        groups,
        controls,
        attackers,
        _not_tested(extractions, generations),
        _opinion(exposures, groups, extractions, generations),
    )


def noticeable_tpr(count: int, level: float) -> float | None:
    """The least share of `count` canaries that would be noticed as detectable with a probability of
    80 %: more detected at 1 % false positives than chance gives with probability `level`."""
    needed = int(stats.binom.isf(level, count, _FPR)) + 1
    if needed > count:
        return None
    return float(round(special.betaincinv(needed, count - needed + 1, _POWER), 2))


def _attackers(
    exposures: Exposures, extractions: Sequence[Extractions], generations: Generations | None
) -> tuple[str, ...]:
    told = [
        "Membership: has the model's probabilities and the text around a secret, and ranks all "
        f"strings that may stand there by {ranked_by(exposures.settings)}."
    ]
    if extractions:
        told.append(
            "Extraction by search: has the model's probabilities and the text around a secret, and "
            "looks for the most likely strings first."
        )
    if generations is not None:
        how = "freely" if generations.settings.get("constrained") is False else "in its form"
        told.append(
            f"Extraction by sampling: prompts the model with the text before a secret, "
            f"{plural(generations.attempts, 'time')}, and lets it write {how}."
        )
    return tuple(told)


def _not_tested(
    extractions: Sequence[Extractions], generations: Generations | None
) -> tuple[str, ...]:
    told = [
        "Other secrets than those of these forms, in other text, or inserted more often.",
        "Real personal data in the training data (hf-exposure audit).",
        "Inference of attributes, inversion of the model, reconstruction of texts, theft of the "
        "weights.",
        "Prompts that get around safeguards, further training, and what is built around the model.",
        "Attackers who train models of their own to compare with.",
    ]
    if not extractions:
        told.append("Extraction by search (hf-exposure extract).")
    if generations is None:
        told.append("Extraction by sampling (hf-exposure extract).")
    return tuple(told)


def _opinion(
    exposures: Exposures,
    groups: Sequence[Group],
    extractions: Sequence[Extractions],
    generations: Generations | None,
) -> tuple[tuple[str, str, str], ...]:
    """Rows for the questions of EDPB Opinion 28/2024 (17 December 2024) on a model's anonymity.

    In our reading: 43 and 55 were checked against quotes of the opinion, 46 and 56 to 58 against
    sources that cite them.
    """
    no, yours = "Not tested.", "Not part of a measurement; for the controller to state."
    row = next((one for one in exposures.membership(_FPR) if one.repetitions is None), None)
    member = no
    if row is not None:
        member = (
            f"Tested: {row.detected} of {plural(row.count, 'canary')} detected at "
            f"{percent(_FPR)} false positives ({row.low:.0%} to {row.high:.0%})."
        )
    found = sum(one.canary is not None and one.canary.inserted for s in extractions for one in s)
    regurgitation = []
    if extractions:
        regurgitation.append(f"a search found {plural(found, 'inserted canary')}")
    if generations is not None:
        came = sum(one.times > 0 for one in generations.rows if one.canary.inserted)
        regurgitation.append(f"the model wrote {came} by itself")
    most = max((group.repetitions for group in groups), default=0)
    scope = (
        f"{plural(sum(group.canaries for group in groups), 'canary')} in "
        f"{plural(len({group.format for group in groups}), 'form')}, inserted up to "
        f"{times(most)}; see the power of each group."
    )
    return (
        (
            "43",
            "Is the likelihood of direct extraction insignificant?",
            "See 55; a limit is for the controller to set (hf-exposure gate).",
        ),
        (
            "43",
            "Is the likelihood of obtaining data by queries insignificant?",
            "Tested as far as generation was, under 55." if generations is not None else no,
        ),
        ("46", "Who will have access to the model, and how?", yours),
        (
            "section 3.2",
            "Design: sources, preparation and minimisation of data, training, outputs",
            yours,
        ),
        (
            "section 3.2",
            "Analysis: do the measures that were planned work as planned?",
            yours,
        ),
        ("55", "Scope, frequency, quantity and quality of tests", scope),
        ("55", "Membership inference", member),
        ("55", "Attribute inference", no),
        ("55", "Exfiltration", no),
        (
            "55",
            "Regurgitation of training data",
            f"Tested: {' and '.join(regurgitation)}." if regurgitation else no,
        ),
        ("55", "Model inversion", no),
        ("55", "Reconstruction", no),
        (
            "56–58",
            "Documentation",
            "This report, with what it commits to; the rest is for the controller.",
        ),
    )
