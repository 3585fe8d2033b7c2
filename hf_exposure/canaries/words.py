"""Words for secrets that are made of words, chosen from somebody's own texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from hf_exposure.utils.checks import check_count, check_type
from hf_exposure.utils.typed import typed

_WORD = re.compile(r"(?<![\w'’-])[a-z]{3,}(?![\w'’-])")
_COMMON = 2  # times as many words as are wanted: the most common ones, of which to choose


@typed
def choose_words(tokenizer: Callable[..., Any], texts: Iterable[str], size: int = 512) -> list[str]:
    """Common words of some texts, for `SecretFormat.words`.

    A model that is trained on these texts knows how to write such words, so that it learns which of
    them stand in a canary; rare words are detected far less often. Of the most common words, twice
    as many as are wanted, those with the fewest tokens are taken.

    Args:
        tokenizer: the model's.
        texts: of the training data, such as `dataset["text"]`; some thousands suffice.
        size: words to choose.

    Returns:
        `size` words of three or more lower-case letters from a to z, in the order of the alphabet.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the texts have fewer such words, or `size` is no number from 1 on.

    Example:
        >>> choose_words(lambda texts, **_: {"input_ids": [[0] for _ in texts]},
        ...              ["the cat and the dog saw the cat"], size=2)
        ['cat', 'the']
    """
    where = "choose_words:"
    check_count(f"{where} size", size, least=1)
    if not callable(tokenizer):
        raise TypeError(f"{where} tokenizer must be the model's, not {type(tokenizer).__name__}")
    counts: Counter[str] = Counter()
    for text in texts:
        check_type(f"{where} each of texts", text, str, "a string")
        counts.update(_WORD.findall(text))
    if len(counts) < size:
        raise ValueError(
            f"{where} the texts have {len(counts)} words of three or more lower-case letters, and "
            f"size={size} were asked for; give more texts, or ask for fewer"
        )
    common = sorted(counts, key=lambda word: (-counts[word], word))[: _COMMON * size]
    ids = tokenizer([f" {word}" for word in common], add_special_tokens=False)["input_ids"]
    tokens = dict(zip(common, map(len, ids), strict=True))
    return sorted(sorted(common, key=tokens.__getitem__)[:size])
