"""A small corpus, tokenizer and model, made on the spot: to try things with, without a download.

The text is the help texts that every Python has (`pydoc_data.topics`, 465 kB of English), or a file
of one's own; the model is a Llama of four layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from datasets import Dataset

_DIGITS_APART = r"\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+|\s+(?!\S)|\s+|[^\s\p{L}\p{N}]+"


def paragraphs(text: str | Path | None = None) -> list[str]:
    """Paragraphs of a text file, or of Python's help texts."""
    if text is None:
        from pydoc_data.topics import topics

        whole = "\n\n".join(topics[name] for name in sorted(topics))
    else:
        whole = Path(text).read_text(encoding="utf-8", errors="replace")
    found = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", whole))
    return [part for part in found if len(part) > 20]


def train_tokenizer(lines: Iterable[str], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that writes digits one by one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_DIGITS_APART), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, bos_token=end, pad_token=end
    )


def small_llama(vocab_size: int, seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """An untrained Llama of 4 layers, 128 wide: 1.5 million parameters with a 2,048 vocabulary."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        **settings,
    }
    return LlamaForCausalLM(LlamaConfig(**options))


def tokenize(rows: Dataset, tokenizer: PreTrainedTokenizerFast, length: int = 128) -> Dataset:
    """Rows as token ids with an end mark, long ones cut into pieces of `length`."""

    def split(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        out = []
        for ids in tokenizer(batch["text"])["input_ids"]:
            ids = [*ids, tokenizer.eos_token_id]
            out += [ids[i : i + length] for i in range(0, len(ids), length)]
        return {"input_ids": out}

    return rows.map(split, batched=True, remove_columns=rows.column_names)
