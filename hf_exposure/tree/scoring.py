"""Log-perplexities of given secrets: by the token tree and a model at hand, or by any `Scorer`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.models.causal import ContextError
from hf_exposure.models.decoder import Decoder
from hf_exposure.models.next_tokens import NextTokens
from hf_exposure.models.processes import Processes
from hf_exposure.models.undisturbed import undisturbed
from hf_exposure.tree.frontier import DepthFirst
from hf_exposure.tree.sampler import Draws, Sampler
from hf_exposure.tree.tokens import TokenTree
from hf_exposure.tree.walk import walk
from hf_exposure.utils.arrays import Floats, Ints

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


def check_context(context: int | None, tree: TokenTree, paths: Sequence[Ints] = ()) -> None:
    """Refuse a format some of whose strings do not fit a context of so many tokens.

    Longer paths that are not canonical are no reason: the walk leaves them out.

    Raises:
        ContextError: a string that the tree has tried, or one of these paths, does not fit.
    """
    longest = len(tree.prompt) + max([tree.longest, *map(len, paths)])
    if context is not None and longest > context:
        raise ContextError(
            f"SecretFormat: strings of {tree.format.template!r} have up to {longest} tokens, "
            f"more than the model's context of {context}; use a shorter template or secret"
        )


@runtime_checkable
class Scorer(Protocol):
    """A model of which nothing is known but log-perplexities, such as one behind an endpoint.

    It is all that the paper's estimators ask of a model: `measure_exposure` takes one in the
    model's place, with method "sampling" or "skewnorm".
    """

    @property
    def forwards(self) -> int:
        """Token-forwards so far."""

    def log_perplexities(
        self, fmt: SecretFormat, secrets: Sequence[str], before: str = ""
    ) -> Floats:
        """(n,) bits of each secret and the template's text after it, given what stands before.

        A part that is the same for all secrets of a format may be left in or out; left out, the
        certificate is tighter.

        Args:
            fmt: the secret format.
            secrets: strings of its secret space.
            before: text before the template.
        """


@runtime_checkable
class Served(Scorer, Protocol):
    """A scorer that may tell of next tokens as well, so that the tree is walked with it."""

    def walks(self, needed: bool) -> bool:
        """Whether the tree is to be walked with it.

        Args:
            needed: whether nothing else would do; otherwise only if it scores no texts.
        """

    def find_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that it works with, as far as it can be had from here."""

    def decoder(self, tree: TokenTree, bos: bool | None, batch_size: int | None) -> NextTokens:
        """What a walk over this tree asks, once the tokenizer of the tree was checked.

        Args:
            bos: what was said of the special tokens before the text.
        """

    def measuring(self) -> contextlib.AbstractContextManager[None]:
        """Held during a measurement: what was answered is kept until it has ended well."""


def decoder_of(
    model: Any,
    tree: TokenTree,
    *,
    bos: bool | None = None,
    batch_size: int | None = None,
    turn: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> NextTokens:
    """What a walk over a tree asks of a model at hand or of a served one.

    Raises:
        ValueError: see `Decoder` and `CompletionsScorer`.
    """
    if isinstance(model, Served):
        return model.decoder(tree, bos, batch_size)
    return Decoder(model, tree.prompt, tree.token_ids, batch_size=batch_size, turn=turn)


def measuring(model: Any) -> contextlib.AbstractContextManager[None]:
    """Held while a model is measured, which is left as it was."""
    return model.measuring() if isinstance(model, Served) else undisturbed(model)


@dataclass
class ScoredTree:
    """One token tree under one model, with the forwards that it may spend. A `Scorer`.

    Attributes:
        max_forwards: token-forwards that all questions together may take, of all processes; the
            canaries' own log-perplexities and the decoder's probe are always done.
        progress: called now and then while forwards are made.
        processes: those that measure together.
    """

    tree: TokenTree
    decoder: NextTokens
    max_forwards: float = math.inf
    progress: Callable[[], None] | None = None
    processes: Processes = field(default_factory=Processes)
    _others: int = 0  # forwards of the other processes, as far as they have told

    @property
    def forwards(self) -> int:
        """Token-forwards so far, of all processes as of the last time that they met."""
        return self.decoder.forwards + self._others

    @property
    def room(self) -> float:
        """Forwards that are left. The same in all processes right after they have met."""
        return max(0.0, self.max_forwards - self.forwards)

    def gather(self, value: T) -> list[T]:
        """What every process has found; see `Processes.gather`."""
        met = self.processes.gather((self.decoder.forwards, value))
        self._others = sum(forwards for forwards, _ in met) - self.decoder.forwards
        return [found for _, found in met]

    def paths(self, secrets: Sequence[str]) -> list[Ints]:
        """The canonical path of each secret.

        Raises:
            ContextError: one does not fit the model's context.
        """
        paths = self.tree.paths(secrets)
        check_context(self.decoder.context, self.tree, paths)
        return paths

    def follow(self, paths: list[Ints]) -> Floats:
        """(n,) log-perplexities in bits of given leaves. Shared prefixes are run once."""
        order = sorted(range(len(paths)), key=lambda place: tuple(paths[place]))
        mine = self.processes.part(order)
        sampler = Sampler(Draws([paths[place] for place in mine]))
        if mine:
            walk(self.decoder, self.tree, sampler, DepthFirst(), progress=self.progress)
        log_perplexities = np.zeros(len(paths))
        log_perplexities[order] = np.concatenate(self.gather(sampler.log_perplexities))
        return log_perplexities

    def log_perplexities(
        self, fmt: SecretFormat, secrets: Sequence[str], before: str = ""
    ) -> Floats:
        """(n,) log-perplexities in bits; see `Scorer`.

        Raises:
            ValueError: they are of another format or context than the tree.
        """
        if (fmt, before) != (self.tree.format, self.tree.before):
            raise ValueError(
                f"ScoredTree: it scores secrets of {self.tree.format.template!r}, not of "
                f"{fmt.template!r}; make one for each format"
            )
        return self.follow(self.paths(secrets)) if len(secrets) else np.zeros(0)
