"""Get secrets back out by shortest-path search, which proves what it finds.

Secrets are masked in all that is printed or written, unless `reveal=True`: one that comes out and
was not inserted may be somebody's.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_exposure.canaries.canary import MASK, Canary, MaskedCanary, check_length, read_canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.masking import secrets_masked
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.documents import Result, Row, versions
from hf_exposure.exposure.planning import context_before, first_tokens
from hf_exposure.exposure.records import short_label
from hf_exposure.models.next_tokens import NextTokens
from hf_exposure.tree.explorer import Explorer
from hf_exposure.tree.frontier import Beam, CheapestFirst, Frontier, Nodes
from hf_exposure.tree.scoring import Served, check_context, decoder_of, measuring
from hf_exposure.tree.tokens import TokenTree
from hf_exposure.tree.walk import unvisited, walk
from hf_exposure.utils.checks import check_count, check_tokenizer
from hf_exposure.utils.progress import progress_bar
from hf_exposure.utils.typed import typed
from hf_exposure.utils.warn import warn
from hf_exposure.utils.words import plural, times

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LAST_BEAM = 8  # width of the quick look for something to return if a search's budget has ended


@typed
@dataclass(frozen=True, repr=False)
class Extraction(Row):
    """One secret that came out.

    Attributes:
        secret: the string; not shown by `repr`. One "•" for each character if it was loaded from a
            file without secrets.
        log_perplexity: of the secret and what follows it, in bits.
        proved: whether no string of the secret space is more likely but those before it in the
            list, up to the rounding of scoring.
        forwards: token-forwards spent until it was found and, if it is, proved.
        canary: the inserted canary that it is, if canaries were given. Not shown by `repr`: with
            its place in the list it tells the secret.
        format: the secret format that was searched.
        place: the canary's position in the set.
    """

    secret: str = field(repr=False)
    log_perplexity: float
    proved: bool
    forwards: int
    canary: Canary | MaskedCanary | None = field(default=None, repr=False)
    format: SecretFormat | None = field(default=None, repr=False)
    place: int | None = field(default=None, repr=False)

    @typed
    def label(self, reveal: bool = False) -> str:
        """The text to show: the secret as one "•" for each character, unless `reveal`."""
        shown = self.secret if reveal else MASK * len(self.secret)
        fmt = self.format or (self.canary.format if self.canary is not None else None)
        return fmt.render(shown) if fmt is not None else shown


@typed
class Extractions(Result[Extraction]):
    """The secrets that a search brought out, most likely first.

    Attributes:
        format: the secret format that was searched.
        forwards: token-forwards that the whole search took, the decoder's check included.
        seconds: how long it took.
        settings: how it was searched.

    Example:
        >>> fmt = SecretFormat("My code is {secret}.", secret=r"[0-9]{4}")
        >>> one = Extraction("1234", 1.25, True, 61, Canary(fmt, "1234", 8), fmt)
        >>> print(Extractions([one], format=fmt, forwards=61, seconds=0.2))
           secret          inserted  log-perplexity  proved  token-forwards
        1  …code is ••••.  8 times              1.2  yes                 61
        1 secret of 13.3 bits; 61 token-forwards in 0.2 s
    """

    kind = "extractions"
    entries = "extractions"
    right = frozenset({0, 3, 5})

    def __init__(self, items: Iterable[Extraction], *, format: SecretFormat, **took: Any) -> None:
        super().__init__(items, **took)
        self.format = format

    # Tables

    @typed
    def cells(self, reveal: bool = False) -> tuple[list[str], list[list[str]]]:
        """The table as text: its headings, and a row of them for each secret."""
        headings = ["", "secret", "inserted", "log-perplexity", "proved", "token-forwards"]
        rows = [
            [
                f"{number}",
                short_label(self._canary(one), reveal),
                "–" if one.canary is None else times(one.canary.repetitions),
                f"{one.log_perplexity:.1f}",
                "yes" if one.proved else "no",
                f"{one.forwards:,}",
            ]
            for number, one in enumerate(self if reveal else leading(self), 1)
        ]
        return headings, rows

    def coarse(self) -> Extractions:
        """The same without telling which strings are canaries that are not the likeliest: the place
        of such a one is as good as the secret, for those who have the model."""
        return self._like(leading(self))

    def _canary(self, one: Extraction) -> Canary | MaskedCanary:
        """The canary that it is, or would be."""
        if one.canary is not None:
            return one.canary
        if MASK in one.secret:
            return MaskedCanary(self.format, len(one.secret))
        return Canary(self.format, one.secret)

    @property
    def _wanted(self) -> int:
        return min(int(self.settings.get("count", 0)), self.format.size)

    @property
    def cut_short(self) -> bool:
        """Whether `max_forwards` ran out before as many secrets as asked for had come out."""
        return self.settings.get("ended") is False and len(self) < self._wanted

    def summary(self) -> str:
        """One line about what came out and what it took."""
        secrets = plural(len(self), "secret")
        line = f"{len(self)} of {self._wanted} secrets" if self.cut_short else secrets
        line += f" of {self.format.bits:.1f} bits; {self.took}"
        if self.cut_short:
            line += (
                f"; max_forwards={self.settings['max_forwards']:,} ran out before the rest "
                f"was found (the decoder's check alone took {self.settings['check_forwards']:,}): "
                "give more"
            )
        return line

    # Files

    def _entry(self, item: Extraction, reveal: bool) -> dict[str, Any]:
        canary = item.canary
        known = reveal and MASK not in item.secret
        return {
            "length": len(item.secret),
            "log_perplexity": item.log_perplexity,
            "proved": item.proved,
            "forwards": item.forwards,
            "canary": canary and {**canary.to_dict([self.format], reveal), "place": item.place},
            **({"secret": item.secret} if known else {}),
        }

    def _content(self, reveal: bool) -> dict[str, Any]:
        shown = self if reveal else self.coarse()
        return {"format": self.format.to_dict(), **super(Extractions, shown)._content(reveal)}

    @classmethod
    def _from_content(cls, data: dict[str, Any], canaries: Canaries | None) -> Extractions:
        fmt = SecretFormat.from_dict(data["format"])
        entries = [_extraction(entry, fmt, canaries) for entry in data["extractions"]]
        return cls(entries, format=fmt, **cls._read_took(data))


def leading(found: Sequence[Extraction]) -> list[Extraction]:
    """What searches brought out, where only those are named as canaries that have rank 1: none but
    inserted canaries of the format come before them."""
    out, ended = [], set()
    for one in found:
        out.append(replace(one, canary=None, place=None) if one.format in ended else one)
        if one.canary is None or not one.canary.inserted:
            ended.add(one.format)
    return out


@typed
def extract_secrets(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    fmt: SecretFormat,
    count: int = 3,
    beam_width: int | None = None,
    max_forwards: int | None = None,
    *,
    canaries: Canaries | Iterable[Canary] | None = None,
    bos: bool | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Extractions:
    """The `count` most likely secrets of a format, most likely first.

    Searches the tree of token prefixes cheapest first (the paper, section 6.1): the first leaf that
    it takes is the most likely string of the whole space, which is thereby proved. With a width it
    keeps only the best prefixes of each length, as the paper's beam does; that is quick and proves
    nothing, unless nothing had to be dropped.

    Args:
        model: a causal language model; left as it was. Or a `CompletionsScorer`, for one behind an
            endpoint.
        tokenizer: the one that it was trained with; at an endpoint, None looks for the one that
            the server names.
        fmt: what the secrets look like.
        count: how many to look for.
        beam_width: prefixes to keep at each length; None searches with proof.
        max_forwards: token-forwards to spend. The search has three quarters of them; if it has not
            come to its end by then, a beam looks with the rest for something to return, marked as
            not proved, and need not use all of it. The check of the decoder on first use (about
            ten times the tokens of one canary) is made whatever the budget, and counted.
        canaries: what was inserted, to tell which canary came out and in which context to look. If
            none of them has this format, none can come out, which is warned of.
        bos: whether special tokens come first; None follows the tokenizer's default.
        batch_size: rows of a forward; None chooses, and memory running out halves it.
        progress: show a progress bar.

    Returns:
        At most `count` secrets; fewer if the space is smaller or the budget too small.

    Raises:
        TypeError: `fmt` is no SecretFormat, or a number is not whole.
        ValueError: a bad argument, a tokenizer that cannot write the format, or a model that gives
            NaN or whose context is too short.

    Example:
        >>> found = extract_secrets(model, tokenizer, fmt)              # doctest: +SKIP
        >>> found[0].log_perplexity, found[0].proved, found[0].forwards # doctest: +SKIP
        (0.4, True, 163)
    """
    check_count("extract_secrets: count", count, least=1)
    for name, value in {"beam_width": beam_width, "max_forwards": max_forwards}.items():
        if value is not None:
            check_count(f"extract_secrets: {name}", value, least=1)
    if canaries is not None and not isinstance(canaries, Canaries):
        canaries = Canaries(canaries)
    if canaries is not None and not canaries.by_format(fmt):
        warn(
            f"extract_secrets: none of the canaries has the format {fmt.template!r} with "
            f'secret=r"{fmt.secret}", so none can come out of this search; theirs: '
            + ", ".join(f'{one.template!r} with r"{one.secret}"' for one in canaries.formats),
        )
    if isinstance(model, Served) and tokenizer is None:
        tokenizer = model.find_tokenizer()
    check_tokenizer("extract_secrets: tokenizer", tokenizer)
    assert tokenizer is not None
    before = context_before(canaries, tokenizer) if canaries is not None else ""
    start = time.perf_counter()
    tree = TokenTree(fmt, tokenizer, before=before, bos=first_tokens(canaries, bos))
    with (
        secrets_masked(canaries or ()),
        measuring(model),
        progress_bar(progress, "extraction") as tick,
    ):
        decoder = decoder_of(model, tree, bos=bos, batch_size=batch_size)
        limit = math.inf if max_forwards is None else max_forwards
        samples = tree.random_paths(4)
        check_context(decoder.context, tree, samples)
        decoder.probe(samples)
        checked = decoder.forwards

        def report() -> None:
            tick(decoder.forwards)

        if beam_width is not None:
            found, ended = _search(decoder, tree, count, Beam(beam_width), limit, report)
        elif max_forwards is None:
            found, ended = _search(decoder, tree, count, CheapestFirst(), limit, report)
        else:  # a part is kept for something to return if the search does not come to its end
            depth = max(len(path) for path in samples)
            kept = max((limit - decoder.forwards) / 4, 1.5 * depth)
            found, ended = _search(decoder, tree, count, CheapestFirst(), limit - kept, report)
            if sum(one.proved for one in found.values()) < min(count, fmt.size):
                width = int(min(max(count, _LAST_BEAM), max(1, kept // depth)))
                more, _ = _search(decoder, tree, count, Beam(width), limit, report)
                found = more | found
    best = sorted(found.values(), key=lambda one: one.log_perplexity)[:count]
    return Extractions(
        _named(best, fmt, canaries),
        format=fmt,
        forwards=decoder.forwards,
        seconds=time.perf_counter() - start,
        settings={
            "count": count,
            "beam_width": beam_width,
            "max_forwards": max_forwards,
            "ended": ended,
            "bos": bos,
            "paths": tree.way,
            "prompt_tokens": len(tree.prompt),
            "check_forwards": checked,
            "cached": decoder.cached,
            "noise_bits": decoder.noise,
            "batch_size": decoder.batch_size,
            "canaries": None if canaries is None else len(canaries.by_format(fmt)),
            "versions": versions("torch", "transformers"),
        },
    )


@dataclass
class _Search(Explorer):
    """Remembers at how many forwards each leaf was met, and each further one was proved to be the
    next best."""

    decoder: NextTokens = field(kw_only=True)
    met_at: list[int] = field(default_factory=list)
    proved_at: list[int] = field(default_factory=list)

    def leaves(self, nodes: Nodes) -> None:
        super().leaves(nodes)
        self.met_at += [self.decoder.forwards] * len(nodes)

    def done(self, least: float) -> bool:
        certain = self.certain(least)
        self.proved_at += [self.decoder.forwards] * (certain - len(self.proved_at))
        return certain >= self.wanted


def _search(
    decoder: NextTokens,
    tree: TokenTree,
    count: int,
    frontier: Frontier,
    limit: float,
    report: Callable[[], None],
) -> tuple[dict[tuple[int, ...], Extraction], bool]:
    """The best leaves that a walk comes to, by path, and whether each is proved; and whether it
    came to its end, and not only to that of the forwards."""
    # What costs infinitely much the model never writes, so it cannot come out.
    search = _Search(wanted=count, decoder=decoder, bound=sys.float_info.max)
    beam = isinstance(frontier, Beam)
    if beam:
        search.wanted = math.inf  # the leaves of one length say nothing about longer ones
    ended = walk(decoder, tree, search, frontier, max_forwards=limit, eager=beam, progress=report)
    least = frontier.least()
    unvisited(tree, search, frontier)
    cut = isinstance(frontier, Beam) and frontier.cut
    order = np.argsort(search.log_perplexities, kind="stable")
    out = {}
    for position, place in enumerate(order[:count].tolist()):
        cost, path = search.log_perplexities[place], search.paths[place]
        proved = cost <= least and not cut
        known = search.proved_at[position : position + 1]
        spent = known[0] if proved and known else search.met_at[place]
        out[path] = Extraction(tree.secret(path), cost, proved, spent)
    return out, ended


def _named(
    found: Iterable[Extraction], fmt: SecretFormat, canaries: Canaries | None
) -> list[Extraction]:
    """The same with the canary that each is, if it is one."""
    place_of = {
        canary.secret: place for place, canary in enumerate(canaries or ()) if canary.format == fmt
    }
    out = []
    for one in found:
        place = place_of.get(one.secret)
        canary = canaries[place] if canaries is not None and place is not None else None
        out.append(
            Extraction(one.secret, one.log_perplexity, one.proved, one.forwards, canary, fmt, place)
        )
    return out


def _extraction(entry: dict[str, Any], fmt: SecretFormat, canaries: Canaries | None) -> Extraction:
    """One entry of a file, as far as the file and the set know its secret."""
    secret = entry.get("secret", MASK * check_length(entry["length"]))
    described = entry["canary"]
    canary: Canary | MaskedCanary | None = None
    place = None
    if described is not None:
        place = described["place"]
        canary = read_canary(described, [fmt])
        if canaries is not None and place is not None:
            if place >= len(canaries) or canaries[place].masked() != canary.masked():
                raise ValueError("it was searched with other canaries than these")
            canary = canaries[place]
            secret = canary.secret
    return Extraction(
        secret, entry["log_perplexity"], entry["proved"], entry["forwards"], canary, fmt, place
    )
