"""Small real tokenizers, one of each kind, and tiny models, for the tests.

Everything is made here in milliseconds: tokenizers are trained on a text of this file, models are
random or trained for a second. Nothing is downloaded.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import torch
from datasets import Dataset
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>"]


@functools.cache
def corpus() -> tuple[str, ...]:
    """Lines with words, numbers, codes and punctuation, so that merges of all sorts are learned."""
    draw = random.Random(0)
    words = (
        "the random number is a secret that nobody should ever know but my code and your key "
        "are in this file with many other words of no meaning at all it's we're don't"
    ).split()
    lines = []
    for _ in range(400):
        line = [draw.choice(words) for _ in range(8)]
        line.insert(3, str(draw.randrange(10 ** draw.randrange(1, 7))))
        line.insert(6, "".join(draw.choice("abcdefABC0123") for _ in range(5)))
        lines.append(" ".join(line).capitalize() + draw.choice([".", "!", " - end."]))
    return tuple(lines)


def conversations() -> Dataset:
    """Chat data of a few short conversations."""
    return Dataset.from_dict(
        {
            "messages": [
                [
                    {"role": "user", "content": f"Tell me a line, number {place}."},
                    {"role": "assistant", "content": line},
                ]
                for place, line in enumerate(corpus()[:12])
            ]
        }
    )


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )


def _with_bos(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)]),
        ]
    )


def byte_bpe(pattern: str, vocab_size: int = 420, bos: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose words are split by `pattern`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    if bos:
        _with_bos(tokenizer)
    return wrap(tokenizer)


def digits_one_by_one() -> PreTrainedTokenizerFast:
    return byte_bpe(r"\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+|\s+(?!\S)|\s+|[^\s\p{L}\p{N}]+")


def digits_in_threes() -> PreTrainedTokenizerFast:
    return byte_bpe(
        r"\p{N}{1,3}|[^\r\n\p{L}\p{N}]?\p{L}+|\s+(?!\S)|\s+|[^\s\p{L}\p{N}]+", vocab_size=700
    )


def freely_merged() -> PreTrainedTokenizerFast:
    return byte_bpe(r" ?[\p{L}\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", vocab_size=800, bos=False)


def contractions() -> PreTrainedTokenizerFast:
    """Splits as GPT-4o's tokenizer does, whose contractions break the test of pairs."""
    return byte_bpe(
        r"[^\r\n\p{L}\p{N}]?\p{L}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
        r"|\s+(?!\S)|\s+",
        vocab_size=600,
    )


def sentencepiece_bpe() -> PreTrainedTokenizerFast:
    """As Llama 2: a space before every text, spaces as ▁, bytes for unknown characters."""
    letters = sorted({char for line in corpus() for char in line} - {" "})
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trained.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(vocab_size=300, show_progress=False, initial_alphabet=letters),
    )
    import json

    model = json.loads(trained.to_str())["model"]
    tokens = [*SPECIAL, *pieces, *sorted(model["vocab"], key=model["vocab"].get)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: place for place, token in enumerate(dict.fromkeys(tokens))},
            merges=[tuple(merge) for merge in model["merges"]],
            byte_fallback=True,
            fuse_unk=True,
            unk_token="<unk>",
        )
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return wrap(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return wrap(tokenizer)


def wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return wrap(tokenizer)


def characters() -> PreTrainedTokenizerFast:
    letters = sorted({char for line in corpus() for char in line})
    vocab = {token: place for place, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return wrap(tokenizer)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    made.__name__: functools.cache(made)
    for made in (
        digits_one_by_one,
        digits_in_threes,
        freely_merged,
        contractions,
        sentencepiece_bpe,
        unigram,
        wordpiece,
        characters,
    )
}
SOME_TOKENIZERS = ("freely_merged", "sentencepiece_bpe")  # where all eight take seconds


def llama(
    vocab_size: int, *, seed: int = 0, scale: float = 1.0, **settings: object
) -> LlamaForCausalLM:
    """A random Llama of two layers, its logits spread by `scale` as training would do."""
    torch.manual_seed(seed)
    options: dict[str, object] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**options, **settings}))
    with torch.no_grad():
        model.lm_head.weight.mul_(40.0 * scale)
    return model.eval()
