"""The exposure of canaries, as a module of Hugging Face `evaluate`.

The formulas are `hf_exposure.sampling_exposure` and `skewnorm_exposure`, the measurement on a model
is `measure_exposure`; here is what makes them a metric. evaluate's own checks want as many
references as predictions. Canaries are few and references many, so the shorter of the two is filled
up with NaN on its way into evaluate's files, and the NaN are taken out again when they come back.
"""

from __future__ import annotations

import math
from typing import Any

import datasets
import evaluate
import numpy as np

import hf_exposure

from .inputs import (
    canary_set,
    check_method,
    check_names,
    check_number,
    loaded_model,
    log_perplexities,
    number,
)

_CITATION = r"""
@inproceedings{carlini2019secret,
  title     = {The Secret Sharer: Evaluating and Testing Unintended Memorization in Neural
               Networks},
  author    = {Carlini, Nicholas and Liu, Chang and Erlingsson, {\'U}lfar and Kos, Jernej and
               Song, Dawn},
  booktitle = {28th {USENIX} Security Symposium ({USENIX} Security 19)},
  pages     = {267--284},
  year      = {2019},
  publisher = {{USENIX} Association},
  url       = {https://arxiv.org/abs/1802.08232},
}
"""

_DESCRIPTION = """
Exposure tells how much a language model has memorized of a canary, a random secret that was put
into its training data: log2 of the number of possible secrets, less log2 of the canary's rank among
them by the model's log-perplexity. A secret that the model never saw has 1.44 bits on average, and
more than 10 bits once in a thousand. With as many bits as the secret space has, the canary is the
most likely of all possible secrets, and can be extracted.
"""

_KWARGS_DESCRIPTION = """
Takes log-perplexities that were measured before (predictions and references), or a model with its
tokenizer and canaries, and measures.

Args:
    predictions (list of float): the canaries' log-perplexities, -log2 Pr(secret | what precedes it)
        in bits, summed over tokens. An infinite one is a secret that the model gives probability 0.
    references (list of float): those of secrets drawn uniformly from the same secret space, in the
        same template. As many as you like, whatever the number of predictions; an exposure by
        sampling is at most log2 of their number.
    method (str): "sampling" (the default) takes the canary's place among the references, "skewnorm"
        the tail of a skew-normal distribution fitted to them, which needs 10 references or more.
        With a model the methods of `hf_exposure.measure_exposure`: "auto" (the default), "exact",
        "sampling" and "skewnorm".
    log2_size (float, *optional*): log2 of the number of possible secrets, 29.9 for nine digits. No
        exposure is larger, and without it there is no rank. With a model the canaries know it.
    confidence (float): of the intervals, defaults to 0.95.
    model: a causal language model of transformers, to measure instead of taking log-perplexities.
    model_id (str): in place of `model`, its folder or its id on the Hub.
    tokenizer: the tokenizer of `model`; with `model_id` a folder or an id, if it is not the same.
    canaries: `hf_exposure.Canaries`, the path of a manifest that `Canaries.save` wrote, the Hub id
        of a set that `Canaries.push_to_hub` has pushed, a list of `hf_exposure.Canary`, or a list
        of secrets as strings, all of which were inserted.
    format: the `hf_exposure.SecretFormat` of secrets given as strings, or a dictionary with its
        "template" and "secret".
    revision, device (str, *optional*): of `model_id`.
    samples, max_forwards, seed, batch_size, bos, accelerator, progress: with a model, as
        `hf_exposure.measure_exposure` has them.

Returns:
    dict with, for each canary in the order given (bits, unless said otherwise):
    exposure (list of float): its exposure, from 0 to `log2_size`.
    low, high (list of float): the ends of its interval. `high` is infinite for a canary cheaper
        than all references, unless `log2_size` is given.
    rank, rank_low, rank_high (list of float): its rank among all possible secrets, a count, with
        its interval; None without `log2_size`.
    p_value (list of float): the probability that a secret that the model never saw has such an
        exposure, or a larger one.
    and for all of them:
    mean_exposure, max_exposure (float): with a model, over the inserted canaries; None if none was.
    method (str), confidence (float): how it was computed.
    With references also num_references (int) and log2_size; with "skewnorm" raw_exposure (list of
    float), before `log2_size` capped it, and fit (dict with shape, loc, scale and ks, the fit's
    Kolmogorov-Smirnov distance). With a model also log_perplexity and certified (lists of float),
    exact (list of bool) and forwards (int), the token-forwards that it took.

Examples:
    Three canaries among 1,024 references, from 20 bits upwards. The first one is cheaper than all
    references, the second one has 127 of them before it:

    >>> import evaluate
    >>> from hf_exposure import metric_path
    >>> metric = evaluate.load(metric_path())
    >>> references = [20 + i / 64 for i in range(1024)]
    >>> results = metric.compute(predictions=[12.5, 21.97, 33.0], references=references)
    >>> [round(bits, 2) for bits in results["exposure"]]
    [10.0, 3.0, 0.3]
    >>> round(results["mean_exposure"], 2)
    4.43

    Of nine digits there are 10^9, which bounds the interval and gives the rank:

    >>> results = metric.compute(predictions=[21.97], references=references, log2_size=29.9)
    >>> [round(bits, 2) for bits in (results["low"][0], results["high"][0])]
    [2.78, 3.26]
    >>> f"{results['rank'][0]:.3g}"
    '1.25e+08'

    More exposure than references can show comes from the distribution fitted to them, here the
    500 quantiles of a normal one with a mean of 30 and a standard deviation of 2 bits. The canary
    is six standard deviations below:

    >>> from statistics import NormalDist
    >>> normal = NormalDist(30, 2).quantiles(501)
    >>> results = metric.compute(predictions=[18.0], references=normal, method="skewnorm")
    >>> round(results["exposure"][0])
    30
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Exposure(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """See above."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            module_type="metric",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("float64"),
                    "references": datasets.Value("float64"),
                }
            ),
            license="Apache-2.0",
            reference_urls=["https://arxiv.org/abs/1802.08232"],
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add log-perplexities of canaries, of references, or of both; any number of each.

        Args:
            predictions (list/array/tensor, *optional*): the canaries' log-perplexities in bits.
            references (list/array/tensor, *optional*): the references'.
        """
        own = log_perplexities("predictions", predictions)
        others = log_perplexities("references", references)
        rows = max(len(own), len(others))
        super().add_batch(
            predictions=own + [math.nan] * (rows - len(own)),
            references=others + [math.nan] * (rows - len(others)),
            **kwargs,
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add the log-perplexity of one canary, of one reference, or of both.

        Args:
            prediction (float, *optional*): a canary's log-perplexity in bits.
            reference (float, *optional*): a reference's.
        """
        # evaluate.combine gives them the names that they have in `compute`.
        prediction = kwargs.pop("predictions", prediction)
        reference = kwargs.pop("references", reference)
        own = log_perplexities("prediction", None if prediction is None else [prediction])
        other = log_perplexities("reference", None if reference is None else [reference])
        if not own and not other:
            raise ValueError("exposure: add needs a prediction, a reference, or both")
        own, other = own or [math.nan], other or [math.nan]
        super().add(prediction=own[0], reference=other[0], **kwargs)

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        method: str | None = None,
        log2_size: float | None = None,
        confidence: float = 0.95,
        model: Any = None,
        model_id: str | None = None,
        tokenizer: Any = None,
        canaries: Any = None,
        format: Any = None,
        revision: str | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> dict[str, Any] | None:
        """Compute the exposures of all canaries that were given here or added before.

        Of several processes process 0 gets those of all, process 0's canaries first; the others get
        None. With a model every process measures, because it may be sharded over all of them.
        """
        check_names(settings)
        check_number("confidence", confidence, 0 < number(confidence) < 1, "between 0 and 1")
        given = {"tokenizer": tokenizer, "format": format, "revision": revision, "device": device}
        if model is not None or model_id is not None or canaries is not None:
            if predictions is not None or references is not None or self.writer is not None:
                raise ValueError(
                    "exposure: predictions and references are there, and a model or canaries too; "
                    "give one or the other"
                )
            if log2_size is not None:
                raise ValueError(
                    "exposure: log2_size is what the canaries' formats say; leave it out"
                )
            model, tokenizer = loaded_model(model, model_id, canaries, given)
            canaries = canary_set(canaries, format)
            method = method or "auto"
            measured = _by_model(model, tokenizer, canaries, method, confidence, settings)
            return measured if self.process_id == 0 else None
        if useless := [name for name, value in (given | settings).items() if value is not None]:
            raise ValueError(
                f"exposure: {useless[0]} is there but no model; give model= or model_id=, and "
                "canaries="
            )
        check_method(method or "sampling")
        if log2_size is not None:
            wanted = "the size's logarithm: 0 or more, and finite; for nine digits 29.9"
            check_number("log2_size", log2_size, 0 <= number(log2_size) < math.inf, wanted)
        if predictions is None and references is None and self.writer is None:
            if self.num_process == 1:
                raise ValueError(
                    "exposure: there is nothing to compute from; give predictions and references "
                    "(log-perplexities), or a model and canaries"
                )
            self.add_batch()  # so that the other processes do not wait for this one
        columns = super().compute(predictions=predictions, references=references)
        if columns is None:
            return None
        return _by_references(
            columns["predictions"],
            np.array(columns["references"]),
            method or "sampling",
            log2_size,
            confidence,
        )

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, list[float]]:
        """What all calls of `add`, and all processes, have brought together.

        `compute` goes on from here, when evaluate's files are gone: an error leaves none behind.
        """
        columns = {"predictions": predictions, "references": references}
        return {
            name: [value for value in values if not math.isnan(value)]
            for name, values in columns.items()
        }


def _by_references(
    predictions: list[float],
    references: Any,
    method: str,
    log2_size: float | None,
    confidence: float,
) -> dict[str, Any]:
    """Where the canaries stand among the references."""
    for name, values, whose in (
        ("predictions", predictions, "the canaries'"),
        ("references", references, "uniformly drawn secrets'"),
    ):
        if not len(values):
            raise ValueError(f"exposure: {name} is empty; give {whose} log-perplexities")
    most = math.inf if log2_size is None else float(log2_size)
    extra: dict[str, Any] = {"num_references": len(references), "log2_size": log2_size}
    if method == "skewnorm":
        fit = _fit(references[np.isfinite(references)])
        estimates = [hf_exposure.skewnorm_exposure(x, fit, most, confidence) for x in predictions]
        extra["raw_exposure"] = [float(one.raw_bits) for one in estimates]
        extra["fit"] = {"shape": fit.shape, "loc": fit.loc, "scale": fit.scale, "ks": fit.ks}
    else:
        estimates = [
            hf_exposure.sampling_exposure(x, references, confidence, log2_size=most)
            for x in predictions
        ]

    def ranks(bits: list[float]) -> list[float] | None:
        if log2_size is None:
            return None
        return [max(1.0, 2.0 ** (most - x) if most - x < 1024 else math.inf) for x in bits]

    exposure = [float(one.bits) for one in estimates]
    low = [float(one.low) for one in estimates]
    high = [float(one.high) for one in estimates]
    return {
        "exposure": exposure,
        "low": low,
        "high": high,
        "rank": ranks(exposure),
        "rank_low": ranks(high),
        "rank_high": ranks(low),
        "p_value": [float(one.p_value) for one in estimates],
        "mean_exposure": math.fsum(exposure) / len(exposure),
        "max_exposure": max(exposure),
        "method": method,
        "confidence": confidence,
        **extra,
    }


def _fit(references: Any) -> Any:
    try:
        return hf_exposure.SkewNormal.fit(references)
    except ValueError as error:
        reason = str(error).split(";")[0]
        raise ValueError(f"exposure: {reason}; give others, or use method='sampling'") from None


def _by_model(
    model: Any, tokenizer: Any, canaries: Any, method: str, confidence: float, settings: Any
) -> dict[str, Any]:
    """What `measure_exposure` finds, in the form of this metric."""
    found = hf_exposure.measure_exposure(
        model, tokenizer, canaries, method=method, confidence=confidence, **settings
    )
    inserted = [float(one.bits) for one in found if one.canary.inserted]
    numbers = {
        "exposure": "bits",
        **{name: name for name in ("low", "high", "rank", "rank_low", "rank_high", "p_value")},
        **{name: name for name in ("log_perplexity", "certified")},
    }
    return {
        **{key: [float(getattr(one, name)) for one in found] for key, name in numbers.items()},
        "exact": [bool(one.exact) for one in found],
        "mean_exposure": math.fsum(inserted) / len(inserted) if inserted else None,
        "max_exposure": max(inserted, default=None),
        "method": method,
        "confidence": confidence,
        "forwards": int(found.forwards),
    }
