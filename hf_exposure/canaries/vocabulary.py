"""What a tokenizer does to text: its special tokens, the bytes of its tokens, where they stand.

Found by asking the tokenizer rather than by knowing its kind: the bytes of a token are read in each
of the usual ways, and the way that puts the encodings of sample texts together again is the right
one.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Readings = Mapping[int, tuple[bytes, ...]]
Reader = Callable[[str], list[bytes]]


@dataclass(frozen=True)
class Encoder:
    """Text to tokens, as in training, with the special tokens around it kept apart.

    Args:
        tokenizer: any tokenizer of transformers.
        bos: whether special tokens come before the text. None follows the tokenizer's default.

    Attributes:
        lead: the special tokens before a text; the ones after it are left out.

    Raises:
        ValueError: it gives one text different tokens each time, or has no such special token.
    """

    tokenizer: PreTrainedTokenizerBase
    bos: bool | None = None
    lead: tuple[int, ...] = field(init=False)
    special: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        tokenizer = self.tokenizer
        if not hasattr(tokenizer, "get_vocab"):
            kind = "None" if tokenizer is None else type(tokenizer).__name__
            raise TypeError(f"tokenizer must be a tokenizer of transformers, not {kind}")
        self._refuse_sampling()
        added = _added_tokens(tokenizer)
        marked = {number for number, token in added.items() if token.special}
        special = frozenset({*marked, *tokenizer.all_special_ids})
        lead = self._lead(special)
        if self.bos is False:
            lead = ()
        elif self.bos is True and not lead:
            if tokenizer.bos_token_id is None:
                raise ValueError(
                    "tokenizer: bos=True was asked for, but the tokenizer has no bos_token"
                )
            lead = (tokenizer.bos_token_id,)
        object.__setattr__(self, "lead", lead)
        object.__setattr__(self, "special", special)

    def _lead(self, special: frozenset[int]) -> tuple[int, ...]:
        """What the tokenizer puts before a text, seen on the first that it can write at all."""
        whole: list[int] = []
        for text in ("a", "0", ".", " "):
            whole = list(self.tokenizer(text, padding=False, truncation=False)["input_ids"])
            plain = self([text])[0]
            for start in range(len(whole) - len(plain) + 1 if plain else 0):
                if whole[start : start + len(plain)] == plain:
                    return tuple(whole[:start])
        return tuple(itertools.takewhile(special.__contains__, whole))

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, without any special token around it."""
        if not texts:
            return []
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if (
            isinstance(backend, Tokenizer)
            and backend.truncation is None
            and backend.padding is None
            and not backend.encode_special_tokens
        ):
            # The same, and four times faster.
            fast = backend.encode_batch_fast(list(texts), add_special_tokens=False)
            return [encoding.ids for encoding in fast]
        return self._as_training_does(texts)

    def _as_training_does(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            verbose=False,
        )
        return [list(ids) for ids in encoded["input_ids"]]

    def _refuse_sampling(self) -> None:
        """Refuse BPE dropout and subword sampling, by their settings and by trying."""
        setting = _sampling(self.tokenizer)
        if not setting:
            texts = [_TRIAL]
            with contextlib.suppress(Exception):  # texts of its own, which many words merge in
                size = len(self.tokenizer)
                ids = list(range(0, size, max(1, size // 500)))
                own = str(self.tokenizer.decode(ids, skip_special_tokens=True))
                texts.append(own.encode("utf-8", "ignore").decode())
            found = [self._as_training_does([*texts, *texts]) for _ in range(2)]
            if found[0] == found[1] and found[0][: len(texts)] == found[0][len(texts) :]:
                return
        raise ValueError(
            "tokenizer: it gives one text different tokens each time"
            f"{f', by {setting}' if setting else ''}, so that no log-perplexity is the text's own; "
            "turn sampling off (training may use it)"
        )

    def readings(self, samples: Iterable[tuple[str, Sequence[int], int]]) -> Readings:
        """The bytes that each ordinary token stands for, or several where that depends.

        Args:
            samples: texts, their tokens, and how many bytes at the end of the text have to come
                out right. What stands before them may change (a lower-casing tokenizer and a
                template in mixed case).

        Raises:
            ValueError: no reading gives the texts back. The message is a half-sentence to be put
                after "tokenizer".
        """
        samples = list(samples)
        best: tuple[int, Reader] | None = None
        whole = sum(len(text.encode()) for text, _, _ in samples)
        tokens = {number: token for token, number in self.tokenizer.get_vocab().items()}
        met = {n: tokens[n] for _, ids, _ in samples for n in ids if n in tokens}
        # Digits read alike in most ways, the words before them do not.
        for read in _READERS:
            readings = self._read(read, met)
            found = [align(ids, text.encode(), readings, n) for text, ids, n in samples]
            reach = sum(starts[0] for starts in found if starts is not None)
            if None not in found and (best is None or reach > best[0]):
                best = reach, read
                if reach >= whole:
                    break
        if best is not None:
            return self._read(best[1], tokens)
        raise ValueError(f"does not keep the text{self._changed(samples)}")

    def _changed(self, samples: Sequence[tuple[str, Sequence[int], int]]) -> str:
        """Which characters the tokenizer does not give back; no text, for it may be a secret."""
        ends = (text.encode()[-n:].decode("utf-8", "ignore") for text, _, n in samples if n)
        characters = sorted({char for end in ends for char in end})
        encodings = self(["a" + char for char in characters])
        back = [self.tokenizer.decode(ids) for ids in encodings]
        changed = [c for c, text in zip(characters, back, strict=True) if c not in text]
        return f": {''.join(changed)[:40]!r} come back otherwise" if changed else ""

    def _read(self, read: Reader, tokens: Mapping[int, str]) -> Readings:
        added = _added_tokens(self.tokenizer)
        out: dict[int, tuple[bytes, ...]] = {}
        for number, token in tokens.items():
            if number in self.special:
                continue
            data = [some for some in read(token) if some]
            if number in added:
                # It stands for its own text, unless it is a token of the model as well, which
                # comes from the text that the model reads (Gemma 3's runs of spaces, "▁▁▁").
                data.insert(0, added[number].content.encode())
            out[number] = tuple(dict.fromkeys(data)) if len(data) > 1 else tuple(data)
        return out


# Many short words and numbers: nearly 300 merges, so that a dropout of 0.01 shows.
_TRIAL = " ".join(
    f"The random number of word {n} is {n * 7919 % 100003}, and nobody's code-{n * 31}."
    for n in range(30)
)


def _sampling(tokenizer: PreTrainedTokenizerBase) -> str:
    """The setting by which a tokenizer draws its tokens at random, "" if none is seen."""
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(model, "dropout", None):
        return f"dropout={model.dropout:g} of its BPE model"
    if getattr(model, "alpha", None) is not None and model.nbest_size != 1:
        return f"alpha={model.alpha:g} and nbest_size={model.nbest_size} of its Unigram model"
    options = getattr(tokenizer, "sp_model_kwargs", None) or {}
    processor = getattr(tokenizer, "sp_model", None)
    if options.get("enable_sampling") or getattr(processor, "_enable_sampling", False):
        return "enable_sampling=True of SentencePiece (sp_model_kwargs)"
    return ""


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> Mapping[int, AddedToken]:
    try:
        added = tokenizer.added_tokens_decoder
    except (AttributeError, NotImplementedError):
        return {}
    # A method that only raises, in transformers' wrapper of mistral-common.
    return {} if callable(added) else added


def align(ids: Sequence[int], text: bytes, readings: Readings, needed: int) -> list[int] | None:
    """Where each token begins, counted in bytes from the end of the text, as far as it fits.

    Returns:
        For the last tokens of `ids`, first to last, the number of bytes from their first to the
        text's end; None if fewer than `needed` bytes fit. A tokenizer that puts a space before
        every text makes the first token reach one byte beyond the text.
    """
    surface = b" " + text
    position = len(surface)
    starts: list[int] = []
    for number in reversed(ids):
        options = readings.get(number, ())
        fitting = [data for data in options if surface.endswith(data, 0, position)]
        if not fitting or position == 0:
            break
        position -= len(max(fitting, key=len))
        starts.append(len(surface) - position)
    if not starts or starts[-1] < needed:
        return None
    return starts[::-1]


def common_length(sequences: Iterable[Iterable[object]]) -> int:
    """How many items all sequences begin with alike."""
    items = zip(*sequences, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda alike: len(set(alike)) == 1, items))


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes bytes as (GPT-2)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {
        chr(256 + place): byte for place, byte in enumerate(hidden)
    }


_BYTES = _byte_alphabet()
# For str.translate, as quick as a vocabulary of 256,000 needs; what is no such character is lost.
_TO_LATIN = dict.fromkeys(range(256), "\uffff") | {ord(c): chr(b) for c, b in _BYTES.items()}
_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


def _utf8(token: str) -> bytes:
    # CANINE has a token for each code point, and so for halves of surrogate pairs.
    return token.encode("utf-8", "surrogatepass")


def _byte_level(token: str) -> list[bytes]:
    try:
        return [token.translate(_TO_LATIN).encode("latin-1")]
    except UnicodeEncodeError:
        return []


def _sentencepiece(token: str) -> list[bytes]:
    fallback = _FALLBACK.fullmatch(token)
    if fallback:
        return [bytes([int(fallback.group(1), 16)])]
    return [_utf8(token.replace("\u2581", " "))]


def _plain(token: str) -> list[bytes]:
    return [_utf8(token)]


def _wordpiece(token: str) -> list[bytes]:
    # A word's first piece stands for itself with the space before it, which such tokenizers drop.
    if token.startswith("##"):
        return [_utf8(token[2:])]
    return [_utf8(token), b" " + _utf8(token)]


def _byte_characters(token: str) -> list[bytes]:
    # ByT5 writes byte 233 as the character of that number.
    return [bytes([ord(token)])] if len(token) == 1 and ord(token) < 256 else []


def _word_ends(token: str) -> list[bytes]:
    # What ends no word is marked (CTRL, "th@@ e"), or what does (GPT, "th e</w>"); spaces are
    # dropped, so that a word's first piece stands for itself with the space before it.
    data = _utf8(token.removesuffix("@@").removesuffix("</w>"))
    return [data, b" " + data]


_READERS: tuple[Reader, ...] = (
    _byte_level,
    _sentencepiece,
    _plain,
    _wordpiece,
    _word_ends,
    _byte_characters,
)
