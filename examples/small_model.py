"""A small corpus, tokenizer and model, made on the spot: what examples train without a download.

The same as `hf-exposure demo` trains: paragraphs of the help texts that every Python has (465 kB of
English), or of a file of one's own; a byte-level BPE tokenizer that writes digits one by one; and a
Llama of four layers.
"""

from hf_exposure.cli.small import paragraphs, small_llama, tokenize, train_tokenizer

__all__ = ["paragraphs", "small_llama", "tokenize", "train_tokenizer"]
