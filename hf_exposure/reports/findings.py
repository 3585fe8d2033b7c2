"""What a measurement says, in sentences for people: each follows a rule that is written here.

Nothing is called memorized, or at chance, without a figure that says so, and an estimate is called
one. Reports and cards print these sentences.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_exposure.canaries.formats import format_names
from hf_exposure.exposure.chance import (
    CHANCE,
    GroupFinding,
    above_chance,
    expected_mean,
    group_findings,
    noticeable,
)
from hf_exposure.exposure.history import History, Measurement
from hf_exposure.exposure.membership import percent
from hf_exposure.exposure.records import Exposure, likely_log_perplexity, most_exposed
from hf_exposure.exposure.results import Exposures
from hf_exposure.exposure.scores import ranked_by
from hf_exposure.utils.words import plural

if TYPE_CHECKING:
    from hf_exposure.attacks.extraction import Extraction
    from hf_exposure.attacks.generations import Generations

WITHIN = 1000  # guesses that anybody can make
OFTEN = 8  # insertions that should show, unless the training was short or private
_NEARLY = 0.06  # a coarse figure has one decimal
_FPR = 0.01  # the false-positive rate at which canaries are called detected


@dataclass(frozen=True)
class Finding:
    """One thing that was found: a sentence, and what it rests on."""

    lead: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.lead} {self.detail}".rstrip()


def is_first(one: Exposure) -> bool:
    """Whether the secret is the most likely of its whole space, so that a search finds it first.

    So it is if its rank is 1, at the upper end of the interval too. The other inserted canaries
    are left out of ranks.
    """
    return one.rank_high < 1.5


def is_proved(one: Exposure) -> bool:
    """Whether `is_first` is certain rather than estimated."""
    return is_first(one) and (one.exact or one.certified >= one.canary.format.bits - _NEARLY)


def findings_of(
    exposures: Exposures,
    history: History | None = None,
    extractions: Sequence[Extraction] = (),
    generations: Generations | None = None,
) -> list[Finding]:
    """What was found, the most important first."""
    out: list[Finding | None]
    if not len(exposures):
        out = [Finding("No canary was measured, so nothing is known about memorization.")]
    else:
        groups = group_findings(exposures)
        out = [_inserted(exposures), *_improbable(exposures), _bounds(exposures)]
        out += [_memorized(exposures), *extraction_findings(extractions, generations)]
        out += [_detected(exposures), _rise(exposures, groups), _controls(groups, exposures)]
        out.append(_over_training(history or ()))
    return [one for one in (*out, _skipped(exposures)) if one is not None]


def _inserted(exposures: Exposures) -> Finding:
    inserted = [one for one in exposures if one.canary.inserted]
    control = len(exposures) - len(inserted)
    if not inserted:
        return Finding(f"None of the {plural(len(exposures), 'measured canary')} was inserted.")
    times = sorted({one.canary.repetitions for one in inserted})
    often = f"{times[0]:,} to {times[-1]:,} times" if len(times) > 1 else plural(times[0], "time")
    each = " each" if len(inserted) > 1 else ""
    names = "canaries" if len(inserted) > 1 else "a canary"
    on_record = exposures.settings.get("inserted") is not False
    text = (
        f"{plural(len(inserted), 'random secret')} ({names}) {_was(len(inserted))} "
        f"{'' if on_record else 'to be '}inserted into the training data, {often}{each}"
    )
    if control:
        text += f"; {control} more {_was(control)} drawn in the same way and never inserted"
    if on_record:
        return Finding(text + ".")
    return Finding(
        text + ".",
        "The set has no record of that (inject_canaries makes one). If the model was not trained "
        "on them, nothing below is about its training data.",
    )


def _improbable(exposures: Exposures) -> list[Finding]:
    out = []
    names = format_names(exposures.formats)
    for fmt in exposures.improbable():
        bits = [likely_log_perplexity(one) for one in exposures if one.canary.format == fmt]
        uniform = exposures.formats[fmt].uniform_bits or 0.0
        out.append(
            Finding(
                f"The canaries of {names[fmt]!r} are less likely to the model than random tokens.",
                f"Half of them have a log-perplexity of {statistics.median(bits):.0f} bits or "
                f"more; random tokens have {uniform:.0f}. Check that the tokenizer is the model's: "
                "with another one these exposures mean nothing. Otherwise the model has seen no "
                "text of this kind.",
            )
        )
    return out


def _bounds(exposures: Exposures) -> Finding | None:
    bounds = sum(map(exposures.is_bound, exposures))
    if not bounds:
        return None
    lead = f"{bounds} of {plural(len(exposures), 'exposure')} {_are(bounds)} lower bounds only."
    if bounds == len(exposures):
        lead = "The exposures are lower bounds only."
    return Finding(
        lead,
        "No samples were drawn, so the true exposure may be higher: a low bound does not mean that "
        "a canary is hardly exposed. A larger max_forwards, and samples above 0, give estimates.",
    )


def _memorized(exposures: Exposures) -> Finding | None:
    inserted = [one for one in exposures if one.canary.inserted]
    if not inserted:
        return None
    first = [one for one in inserted if is_first(one)]
    others = [one for one in inserted if not is_first(one)]
    most = most_exposed(inserted)
    at_most = f"of at most {most.canary.format.bits:.1f} bits"
    why = ""
    if not exposures.by_likelihood:
        by = ranked_by(exposures.settings)
        why = f"A search goes by likelihood, and canaries are ranked by {by}"
    elif all(one.method == "sampling" for one in others) and not first:
        why = "Sampling measures exposures up to the log2 of the number of references"
    if why:
        return Finding(
            "Whether a canary is memorized to the point of extraction was not measured.",
            f"{why}. By it the most exposed canary has {most.bits:.1f} {at_most}.",
        )
    if first:
        lead = f"{_of(len(first), len(inserted))} memorized to the point of extraction."
        proved = sum(map(is_proved, first))
        sure = f"for {proved} of them this is certain, for the others an estimate"
        if proved in (0, len(first)):
            sure = "this is certain" if proved else "this is an estimate"
        told = [
            "The model finds the secret more likely than any other string that fits in its place "
            f"(other canaries aside), so a search for likely strings finds it first; {sure}.",
            "The fewest repetitions that led to this: "
            f"{min(one.canary.repetitions for one in first):,}.",
        ]
    else:
        # Others may come out of a search too, some strings later: that is no reason for calm.
        lead = f"{_of(0, len(inserted))} shown to be the likeliest string of its secret space."
        least = "at least " if exposures.is_bound(most) else ""
        reach = f"({most.low:.1f} to {most.high:.1f})"
        told = [f"The most exposed canary has {least}{most.bits:.1f} {reach} {at_most}."]
    unsure = sum(one.rank_low < 1.5 for one in others)
    if unsure:
        they, reach = "they are", "their intervals reach"
        if unsure == 1:
            they, reach = "it is", "its interval reaches"
        rest = " others" if first else ""
        told.append(f"Of {unsure}{rest} it cannot be told whether {they}: {reach} rank 1.")
    near = sum(one.rank_high <= WITHIN and one.canary.format.size > 10 * WITHIN for one in others)
    if near:
        told.append(
            f"{near}{' more' if first else ''} {_are(near)} among the {WITHIN:,} most likely "
            "strings of their secret space: within reach of anyone who may guess a thousand times."
        )
    if any(one.method == "skewnorm" for one in first):
        told.append("The estimates rest on a fitted distribution, extended far beyond its data.")
    return Finding(lead, " ".join(told))


def extraction_findings(
    extractions: Sequence[Extraction], generations: Generations | None = None
) -> list[Finding]:
    """What searches and generation found."""
    out = []
    if extractions:
        inserted = [one for one in extractions if one.canary and one.canary.inserted]
        told = [f"It found {plural(len(extractions), 'string')} in all"]
        if inserted:
            told.append(
                f"for {sum(one.proved for one in inserted)} of {len(inserted)} canaries it proved "
                "that nothing more likely was left, after at most "
                f"{max(one.forwards for one in inserted):,} token-forwards"
            )
        unknown = sum(one.canary is None for one in extractions)
        if unknown:
            told.append(f"{unknown} {_are(unknown)} not known to be a canary")
        found = plural(len(inserted), "inserted canary")
        lead = f"A search for the most likely strings found {found}."
        out.append(Finding(lead, "; ".join(told) + "."))
    if generations is not None:
        inserted_rows = [row for row in generations.rows if row.canary.inserted]
        came = sum(row.times > 0 for row in inserted_rows)
        free = generations.settings.get("constrained") is False
        how = "to write freely" if free else "to write strings of the secret's form"
        everyone = plural(len(inserted_rows), "inserted canary")
        lead = f"Asked {how}, the model wrote {came} of {everyone} by itself."
        texts = plural(generations.attempts, "text")
        out.append(Finding(lead, f"{texts} {_was(generations.attempts)} generated."))
    return out


def _detected(exposures: Exposures) -> Finding | None:
    """How many canaries betray that they were trained on."""
    row = next((row for row in exposures.membership(_FPR) if row.repetitions is None), None)
    if row is None:
        return None
    by = "" if exposures.by_likelihood else f"by {ranked_by(exposures.settings)} "
    unsure = f" Of {row.undecided} more it cannot be told." if row.undecided else ""
    return Finding(
        f"An attacker can tell of {row.detected} of {plural(row.count, 'inserted canary')} "
        f"that the model was trained on {'it' if row.count == 1 else 'them'}.",
        f"Each is ranked {by}so high among all strings of its secret space as only {percent(_FPR)} "
        "of strings are that the model was never trained on, so this is the exact rate of false "
        f"alarms. The true-positive rate is {row.tpr:.0%} ({row.low:.0%} to {row.high:.0%})."
        f"{unsure}",
    )


def _rise(exposures: Exposures, groups: Sequence[GroupFinding]) -> Finding | None:
    """From how many repetitions on exposures are above chance."""
    inserted = [group for group in groups if group.repetitions]
    if not inserted:
        return None
    level, above = above_chance(groups, exposures.confidence)
    rule = (
        f"Each group is compared with as many strings that were never trained on (Fisher's method, "
        f"{exposures.confidence:.0%} confidence for all groups together)."
    )
    if not above:
        return _no_rise(exposures, inserted, level, rule)
    if above == inserted[len(inserted) - len(above) :]:
        least = above[0]
        times = plural(least.repetitions, "repetition")
        lead = f"Exposure is above chance from {times} on"
        if len(inserted) == 1:
            lead = f"Exposure is above chance at {times}, the only number that was tried"
        elif least is inserted[0]:
            lead += ", the fewest that were tried"
    else:
        named = ", ".join(f"{group.repetitions:,}" for group in above)
        least, lead = above[0], f"Exposure is above chance at these repetitions: {named}"
    of_chance = f"{least.mean:.1f} bits on average at {least.repetitions:,}, where chance is "
    detail = f"{of_chance}{CHANCE:.2f} bits. {rule}"
    if inserted[-1] not in above:
        detail += _unusual(exposures, inserted[-1])
    return Finding(f"{lead}.", detail)


def _no_rise(
    exposures: Exposures, inserted: Sequence[GroupFinding], level: float, rule: str
) -> Finding:
    """What it means that no group stands out: it may be for want of figures, or of canaries."""
    if any(exposures.is_bound(one) for one in exposures if one.canary.inserted):
        return Finding(
            "Whether a repetition group is more exposed than chance was not measured.",
            "The exposures are lower bounds, which cannot show this.",
        )
    least = min(group.count for group in inserted)
    detail = (
        f"{rule} In a group of {least} a mean of less than {noticeable(least, level):.1f} bits "
        f"goes unnoticed, where chance is {CHANCE:.2f}."
    )
    detail += _unusual(exposures, inserted[-1])
    return Finding("No repetition group is shown to be more exposed than chance.", detail)


def _unusual(exposures: Exposures, most: GroupFinding) -> str:
    """What to look at where the canaries that were inserted most often are at chance."""
    bounds = any(
        exposures.is_bound(one) for one in exposures if one.canary.repetitions == most.repetitions
    )
    if most.repetitions < OFTEN or bounds:
        return ""
    return (
        f" That {most.repetitions:,} insertions leave no trace is unusual, unless the training was "
        "short, or with differential privacy. Check that the model was trained on these very "
        "canaries (the manifest), that they survived tokenization (verify_injection), and that "
        "the tokenizer is the model's."
    )


def _controls(groups: Sequence[GroupFinding], exposures: Exposures) -> Finding:
    control = next((group for group in groups if not group.repetitions), None)
    if control is None:
        return Finding(
            "There is no control group.",
            "Without canaries that were never inserted, nothing checks that the measurement itself "
            "is fair; add some with 0 repetitions.",
        )
    alpha = (1 - exposures.confidence) / 2
    if control.higher <= alpha:
        lead = "The control group is more exposed than chance."
        why = (
            "Either these secrets did reach the model (in pre-training, or in other data), or the "
            "measurement is biased."
        )
    elif control.lower <= alpha:
        lead = "The control group is less exposed than chance."
        why = "This happens if secrets were not drawn uniformly, or were scored differently."
    else:
        lead = "The control group is at chance, as it should be."
        why = ""
        if any(exposures.is_bound(one) for one in exposures if not one.canary.inserted):
            return Finding(
                "Whether the control group is at chance was not measured.",
                f"Canaries that were never inserted ({control.count:,}) have lower bounds of "
                f"{control.mean:.2f} bits on average.",
            )
        if control.count < 5:
            why = "With so few controls, only gross errors would show."
    p = min(1.0, 2 * min(control.higher, control.lower))
    figures = (
        f"Canaries that were never inserted ({control.count:,}) have {control.mean:.2f} bits on "
        f"average, where {expected_mean(exposures):.2f} are expected (Fisher's test of uniform "
        f"ranks, p = {p:{'.2f' if p >= 0.01 else '.1g'}})."
    )
    return Finding(lead, f"{figures} {why}".rstrip())


def _over_training(history: Sequence[Measurement]) -> Finding | None:
    """How far exposure had come when the evaluation loss was at its lowest."""
    with_loss = [
        (entry, entry.metrics["eval_loss"])
        for entry in history
        if math.isfinite(entry.metrics.get("eval_loss", math.nan))
        and "eval_exposure" in entry.exposures.metrics()
    ]
    if len(with_loss) < 2:
        return None
    best, loss = min(with_loss, key=lambda pair: pair[1])
    last, end = with_loss[-1]
    mean = best.exposures.metrics()["eval_exposure"]
    if best is last:
        detail = (
            f"It is lowest at the last measurement, step {last.step:,} ({end:.3f}); by then "
            f"inserted canaries have {mean:.1f} bits on average."
        )
        if above_chance(group_findings(last.exposures), last.exposures.confidence)[1]:
            detail += " So the loss alone would not have shown that secrets are being memorized."
        return Finding("Evaluation loss was still falling when training ended.", detail)
    after = last.exposures.metrics()["eval_exposure"]
    return Finding(
        f"Evaluation loss was lowest at step {best.step:,}, before training ended.",
        f"Inserted canaries had {mean:.1f} bits on average then, and {after:.1f} at step "
        f"{last.step:,} (loss {loss:.3f} and {end:.3f}).",
    )


def _skipped(exposures: Exposures) -> Finding | None:
    if not exposures.skipped:
        return None
    return Finding(
        f"{plural(len(exposures.skipped), 'canary')} could not be scored.",
        "The reasons are given below the table; nothing is known about these canaries.",
    )


def _of(count: int, total: int) -> str:
    if total == 1:
        return "The inserted canary is" if count else "The inserted canary is not"
    if count in (0, total):
        return f"All {total} inserted canaries are" if count else "No inserted canary is"
    return f"{count} of {total} inserted canaries {_are(count)}"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
