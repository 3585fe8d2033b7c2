"""Exposure by other scores than log-perplexity: ranks of canaries among uniform references.

A secret is drawn uniformly, so among n uniform references its rank is uniform under any model that
was not trained on it, whatever the score. But only log-perplexity grows along a branch of the token
tree; other scores need whole texts, and their ranks are known up to n only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.exposure.details import GroupResult
from hf_exposure.exposure.planning import Group, Settings
from hf_exposure.exposure.references import by_references, noise_of, tie_of, with_tree
from hf_exposure.exposure.scores import min_k, min_k_plus_plus, zlib_bits
from hf_exposure.models.causal import CausalModel
from hf_exposure.models.continuations import TokenSignals, token_signals
from hf_exposure.models.precision import difference
from hf_exposure.models.processes import Processes
from hf_exposure.models.undisturbed import said_of_base
from hf_exposure.tree.scoring import check_context
from hf_exposure.tree.tokens import TokenTree
from hf_exposure.utils.arrays import Floats

Costs = tuple[Floats, Floats]


@dataclass
class SignalScorer:
    """Costs of secrets by a score; a `Scorer` for the estimators that ask for nothing else.

    Attributes:
        score: one of `scores.SCORES`; a cost is lower the more speaks for membership.
        base: the model before training; Min-K% and Min-K%++ are then less those under it.
        processes: those that measure together; each scores its part.
    """

    tree: TokenTree
    model: CausalModel
    base: CausalModel | None
    score: str
    processes: Processes = field(default_factory=Processes)
    progress: Callable[[], None] | None = None
    _others: int = 0

    @property
    def own_forwards(self) -> int:
        """Token-forwards of both models in this process."""
        return self.model.forwards + (0 if self.base is None else self.base.forwards)

    @property
    def forwards(self) -> int:
        """Token-forwards so far, of all processes as of the last time that they met."""
        return self.own_forwards + self._others

    def log_perplexities(
        self, fmt: SecretFormat, secrets: Sequence[str], before: str = ""
    ) -> Floats:
        """(n,) costs by the score; see `Scorer`."""
        return self.costs(secrets)[0]

    def costs(self, secrets: Sequence[str]) -> Costs:
        """(n,) costs by the score, and (n,) log-perplexities in bits."""
        mine = self._costs(self.processes.part(list(secrets)))
        met = self.processes.gather((self.own_forwards, mine))
        self._others = sum(spent for spent, _ in met) - self.own_forwards
        costs, bits = zip(*(found for _, found in met), strict=True)
        return np.concatenate(costs), np.concatenate(bits)

    def _costs(self, secrets: Sequence[str]) -> Costs:
        if not secrets:
            return np.zeros(0), np.zeros(0)
        own = self._signals(self.model, secrets)
        with said_of_base():
            base = None if self.base is None else self._signals(self.base, secrets)
        bits = np.array([found.bits.sum() for found in own])
        if self.score == "ratio":
            assert base is not None
            return difference(bits, np.array([found.bits.sum() for found in base])), bits
        if self.score == "zlib":
            sizes = [zlib_bits(self.tree.format.render(secret)) for secret in secrets]
            return bits / np.array(sizes), bits
        rule = min_k_plus_plus if self.score == "min_k_plus_plus" else _min_k
        values = np.array([rule(found) for found in own])
        if base is not None:
            values = difference(values, np.array([rule(found) for found in base]))
        return -values, bits

    def _signals(self, model: CausalModel, secrets: Sequence[str]) -> list[TokenSignals]:
        paths = [self.tree.token_ids[path] for path in self.tree.paths(secrets)]
        prompt = np.asarray(self.tree.prompt, dtype=np.int64)
        whole = [np.concatenate([prompt, path]) for path in paths]
        begins = np.full(len(whole), len(prompt), dtype=np.int64)
        out = [TokenSignals.none()] * len(whole)
        moments = self.score == "min_k_plus_plus"
        for place, found in token_signals(model, whole, begins, moments=moments):
            out[place] = found
            if self.progress is not None:
                self.progress()
        return out


def _min_k(found: TokenSignals) -> float:
    return min_k(-found.bits)


def measure_by_score(
    model: Any,
    base: Any | None,
    group: Group,
    settings: Settings,
    processes: Processes,
    report: Callable[[int], None],
) -> tuple[GroupResult, int]:
    """The exposures of a group by `settings.score`, and the token-forwards that they took.

    Args:
        report: shows token-forwards.

    Raises:
        ContextError: a secret does not fit the model's context.
        ValueError: the model does not know a token, or gives NaN.
    """
    size = settings.batch_size
    with said_of_base():
        other = None if base is None else CausalModel(base, batch_size=size)
    reader = SignalScorer(
        group.tree,
        CausalModel(model, batch_size=size, turn=processes.forward_turn),
        other,
        settings.score,
        processes,
    )
    reader.progress = lambda: report(reader.own_forwards)
    processes.forward = reader.model.idle
    check_context(reader.model.context, group.tree, group.paths)
    secrets = [canary.secret for canary in group.canaries]
    costs, bits = reader.costs(secrets)
    # In another order, so that whatever hangs on the company shows.
    noise = noise_of(costs, reader.costs(secrets[::-1])[0][::-1])
    tie = tie_of(noise, costs)
    measured = by_references(reader, group.canaries, costs, tie, settings, group.tree.before)
    exposures = [
        replace(
            one,
            cost=one.log_perplexity,
            log_perplexity=float(own),
            certified=one.certified if one.exact else 0.0,  # which log-perplexity alone proves
        )
        for one, own in zip(measured.exposures, bits, strict=True)
    ]
    measured = replace(measured, exposures=exposures)
    return with_tree(measured, group, reader.model, noise, tie), reader.forwards
