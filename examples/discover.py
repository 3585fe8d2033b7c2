"""Which famous passages does a model know by heart?

Gives a model the first 32 tokens of well-known texts and tells whether the next 8 come out: by
greedy decoding, in so many samples, and within a few edits (Hayes et al. 2024, "Measuring
memorization in language models via probabilistic extraction"). The last two texts were made up for
this file and stand for text that no model has seen.

    python examples/discover.py --model HuggingFaceTB/SmolLM2-135M
    python examples/discover.py --model FOLDER --gguf_file NAME.gguf --near 2 --top_k 40
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from transformers import HfArgumentParser

from hf_exposure import (
    discoverable_extraction,
    load_model,
)

PASSAGES = {
    "MIT licence": (
        "Permission is hereby granted, free of charge, to any person obtaining a copy of this "
        'software and associated documentation files (the "Software"), to deal in the Software '
        "without restriction, including without limitation the rights to use, copy, modify, merge, "
        "publish, distribute, sublicense, and/or sell copies of the Software, and to permit "
        "persons to whom the Software is furnished to do so, subject to the following conditions:"
    ),
    "GPL notice": (
        "This program is free software: you can redistribute it and/or modify it under the terms "
        "of the GNU General Public License as published by the Free Software Foundation, either "
        "version 3 of the License, or (at your option) any later version. This program is "
        "distributed in the hope that it will be useful, but WITHOUT ANY WARRANTY; without even "
        "the implied warranty of MERCHANTABILITY or FITNESS FOR A PARTICULAR PURPOSE."
    ),
    "Declaration of Independence": (
        "We hold these truths to be self-evident, that all men are created equal, that they are "
        "endowed by their Creator with certain unalienable Rights, that among these are Life, "
        "Liberty and the pursuit of Happiness. That to secure these rights, Governments are "
        "instituted among Men, deriving their just powers from the consent of the governed."
    ),
    "US Constitution": (
        "We the People of the United States, in Order to form a more perfect Union, establish "
        "Justice, insure domestic Tranquility, provide for the common defence, promote the general "
        "Welfare, and secure the Blessings of Liberty to ourselves and our Posterity, do ordain "
        "and establish this Constitution for the United States of America."
    ),
    "Gettysburg address": (
        "Four score and seven years ago our fathers brought forth on this continent, a new nation, "
        "conceived in Liberty, and dedicated to the proposition that all men are created equal. "
        "Now we are engaged in a great civil war, testing whether that nation, or any nation so "
        "conceived and so dedicated, can long endure."
    ),
    "Genesis 1": (
        "In the beginning God created the heaven and the earth. And the earth was without form, "
        "and void; and darkness was upon the face of the deep. And the Spirit of God moved upon "
        "the face of the waters. And God said, Let there be light: and there was light. And God "
        "saw the light, that it was good: and God divided the light from the darkness."
    ),
    "Psalm 23": (
        "The LORD is my shepherd; I shall not want. He maketh me to lie down in green pastures: he "
        "leadeth me beside the still waters. He restoreth my soul: he leadeth me in the paths of "
        "righteousness for his name's sake. Yea, though I walk through the valley of the shadow of "
        "death, I will fear no evil: for thou art with me; thy rod and thy staff they comfort me."
    ),
    "Lord's prayer": (
        "Our Father which art in heaven, Hallowed be thy name. Thy kingdom come, Thy will be done "
        "in earth, as it is in heaven. Give us this day our daily bread. And forgive us our debts, "
        "as we forgive our debtors. And lead us not into temptation, but deliver us from evil: For "
        "thine is the kingdom, and the power, and the glory, for ever. Amen."
    ),
    "Hamlet": (
        "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer The "
        "slings and arrows of outrageous fortune, Or to take arms against a sea of troubles And by "
        "opposing end them. To die: to sleep; No more; and by a sleep to say we end The heart-ache "
        "and the thousand natural shocks That flesh is heir to."
    ),
    "Sonnet 18": (
        "Shall I compare thee to a summer's day? Thou art more lovely and more temperate: Rough "
        "winds do shake the darling buds of May, And summer's lease hath all too short a date: "
        "Sometime too hot the eye of heaven shines, And often is his gold complexion dimm'd; And "
        "every fair from fair sometime declines, By chance or nature's changing course untrimm'd;"
    ),
    "Pride and Prejudice": (
        "It is a truth universally acknowledged, that a single man in possession of a good "
        "fortune, must be in want of a wife. However little known the feelings or views of such a "
        "man may be on his first entering a neighbourhood, this truth is so well fixed in the "
        "minds of the surrounding families, that he is considered the rightful property of some "
        "one or other of their daughters."
    ),
    "A Tale of Two Cities": (
        "It was the best of times, it was the worst of times, it was the age of wisdom, it was the "
        "age of foolishness, it was the epoch of belief, it was the epoch of incredulity, it was "
        "the season of Light, it was the season of Darkness, it was the spring of hope, it was the "
        "winter of despair, we had everything before us, we had nothing before us."
    ),
    "Moby-Dick": (
        "Call me Ishmael. Some years ago - never mind how long precisely - having little or no "
        "money in my purse, and nothing particular to interest me on shore, I thought I would sail "
        "about a little and see the watery part of the world. It is a way I have of driving off "
        "the spleen and regulating the circulation."
    ),
    "Alice in Wonderland": (
        "Alice was beginning to get very tired of sitting by her sister on the bank, and of having "
        "nothing to do: once or twice she had peeped into the book her sister was reading, but it "
        "had no pictures or conversations in it, 'and what is the use of a book,' thought Alice "
        "'without pictures or conversation?'"
    ),
    "The Raven": (
        "Once upon a midnight dreary, while I pondered, weak and weary, Over many a quaint and "
        "curious volume of forgotten lore, While I nodded, nearly napping, suddenly there came a "
        "tapping, As of some one gently rapping, rapping at my chamber door. 'Tis some visitor, I "
        "muttered, tapping at my chamber door; Only this, and nothing more."
    ),
    "lorem ipsum": (
        "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt "
        "ut labore et dolore magna aliqua. Ut enim ad minim veniam, quis nostrud exercitation "
        "ullamco laboris nisi ut aliquip ex ea commodo consequat."
    ),
    "made up: a ferry": (
        "The second ferry of the morning left the jetty at Orlaby with eleven goats, two piano "
        "tuners and a crate of lamp oil, and nobody on board could say who had paid for the goats. "
        "Halfway across, the older tuner opened his case, struck a fork against the rail, and "
        "declared that the whole strait was a quarter tone flat."
    ),
    "made up: minutes": (
        "Item four, raised by Mrs Tennick, concerned the weathercock, which has pointed at the "
        "bakery since the frost; the committee resolved to oil it, to thank the bakery for its "
        "patience, and to ask the sexton whether the ladder that was lent in March had come back. "
        "Item five was adjourned for want of a lamp."
    ),
}


@dataclass
class Arguments:
    """The model, and how it is sampled."""

    model: str = field(metadata={"help": "A model's folder or Hub id."})
    gguf_file: str | None = field(default=None, metadata={"help": "A file of quantized weights."})
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    prefix_tokens: int = 32
    suffix_tokens: int = 8
    near: int = field(default=2, metadata={"help": "Token edits within which a text is near."})
    max_forwards: int = field(default=150, metadata={"help": "Of each search for near texts."})


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    try:
        model, tokenizer = load_model(
            arguments.model, gguf_file=arguments.gguf_file, dtype="float32"
        )
    except OSError as error:
        sys.exit(f"Error: {error}")
    found = discoverable_extraction(
        model,
        tokenizer,
        PASSAGES.values(),
        prefix_tokens=arguments.prefix_tokens,
        suffix_tokens=arguments.suffix_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        near=arguments.near,
        max_forwards=arguments.max_forwards,
        progress=Console(stderr=True).is_terminal,
    )
    names = list(PASSAGES)
    headings, rows = found.cells()
    rows = [[names[int(row[0])], *row[3:]] for row in rows]
    table = Table("passage", *headings[3:], box=None)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    print(found.summary(), end="\n\n")
    print(found.rates())
    if arguments.near:
        print(f"\n{found.rates(near=True)}")


if __name__ == "__main__":
    main()
