"""Get secrets back out by generation: prompt the model, and count which canaries it writes."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from hf_exposure.attacks.constraint import AtLeaf, Constraint, secret_of
from hf_exposure.attacks.generations import Generated, Generations
from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.drawing import derived
from hf_exposure.canaries.formats import MOST_DRAWS, SecretFormat
from hf_exposure.canaries.masking import secrets_masked
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.documents import versions
from hf_exposure.exposure.planning import Group, plan_measurement
from hf_exposure.models.causal import CausalModel
from hf_exposure.models.undisturbed import undisturbed
from hf_exposure.tree.scoring import check_context
from hf_exposure.utils.checks import check_count, check_temperature
from hf_exposure.utils.files import write_text
from hf_exposure.utils.progress import progress_bar
from hf_exposure.utils.typed import typed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BEYOND = 8  # tokens that a free text may be longer than the longest canary
_LONGEST = 4096  # tokens of a text if the model has no limit of its own

# What `generate_secrets` sets itself, and what to use in its place.
_OWN = {
    "inputs": "the prompt is the template's text before the secret",
    "input_ids": "the prompt is the template's text before the secret",
    "attention_mask": "the prompt is the template's text before the secret",
    "num_return_sequences": "use num_samples",
    "max_length": "use max_new_tokens",
    "generation_config": "give its settings one by one",
    "prefix_allowed_tokens_fn": "use a logits_processor",
    "return_dict_in_generate": "only the tokens are used",
    "streamer": "many sequences are generated at a time",
}


@typed
def generate_secrets(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    canaries: Canaries | Iterable[Canary],
    num_samples: int = 100,
    constrained: bool = True,
    *,
    seed: int = 0,
    bos: bool | None = None,
    batch_size: int = 50,
    progress: bool = False,
    resume: str | os.PathLike[str] | None = None,
    **generate_kwargs: Any,
) -> Generations:
    """Prompt the model with each format's prefix and count which canaries it writes.

    Guarantees:
        - Constrained sampling draws each token from the model's distribution over the tokens that
          the format allows there, so that every sequence is a secret.
        - Free sampling is the model's own: with a tokenizer that writes a canary in one way only,
          it comes out with probability 2^-log_perplexity in each sequence.
        - Constrained beam search ranks secrets by their log-perplexity, whatever their length.
        - Nothing of the model's own generation_config has a say, and it is left as it was.

    Args:
        model: a causal language model with `generate`; left as it was.
        num_samples: sequences for each format. Greedy decoding makes one, beam search at most as
            many as it has beams, all of them different.
        constrained: allow only tokens that the secret format allows. Otherwise the model writes
            what it likes, and a canary counts if it is there whole: the template's text before the
            secret, the secret, and the template's text after it.
        seed: of the sampling. Each batch of each format has draws of its own.
        bos: whether special tokens come first; None follows the tokenizer's default.
        batch_size: sequences at a time.
        progress: show a progress bar.
        resume: a file to keep what was generated in, after each batch; the same call goes on from
            there after an interruption, and gives what it would have given without one. It holds
            tokens of what the model wrote, so treat it as you treat the secrets.
        generate_kwargs: for `model.generate`: `do_sample`, `num_beams`, `temperature`, `top_k`,
            `top_p`, `max_new_tokens`, ... Without them plain sampling from the model's own
            distribution; with `num_beams` beam search; with `do_sample=False` greedy decoding.

    Returns:
        How often each canary came out.

    Raises:
        TypeError: a number is not whole.
        ValueError: a bad argument, a tokenizer that cannot write a format, or a model that cannot
            generate or whose context is too short.

    Example:
        >>> written = generate_secrets(model, tokenizer, canaries)      # doctest: +SKIP
        >>> written[0].times, written[0].attempts                       # doctest: +SKIP
        (71, 100)
    """
    canaries = canaries if isinstance(canaries, Canaries) else Canaries(canaries)
    check_count("generate_secrets: num_samples", num_samples, least=1, most=MOST_DRAWS)
    if (temperature := generate_kwargs.get("temperature")) is not None:
        check_temperature("generate_secrets: temperature", temperature)
    for name, instead in _OWN.items():
        if name in generate_kwargs:
            raise ValueError(f"generate_secrets: {name} cannot be given; {instead}")
    model = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
    if not hasattr(model, "generate"):
        raise ValueError(
            f"model: {type(model).__name__} has no generate; extract_secrets does without"
        )
    if resume is not None and os.path.isdir(resume):
        raise IsADirectoryError(f"generate_secrets: resume={os.fspath(resume)!r} is a folder")
    start = time.perf_counter()
    plan = plan_measurement(tokenizer, canaries, bos=bos)
    options = _options(tokenizer, generate_kwargs)
    counts: Counter[int] = Counter()
    attempts: dict[SecretFormat, int] = {}
    texts: dict[SecretFormat, Counter[str]] = {}
    masked, aside = secrets_masked(canaries), _own_settings_aside(model)
    asked = {
        "constrained": constrained,
        "num_samples": num_samples,
        "seed": seed,
        "bos": bos,
        "batch_size": batch_size,
        "generate": {name: _plain(value) for name, value in generate_kwargs.items()},
    }
    kept = _Kept(resume, asked, model, canaries)
    bar = progress_bar(progress, "generation")
    known = CausalModel(model)
    with masked, undisturbed(model), aside, _counting(model) as forwards, bar as tick:
        for group in plan.groups:
            tree, fmt = group.tree, group.tree.format
            known.check_tokens(max(*tree.prompt, int(tree.token_ids.max())))
            check_context(known.context, tree, group.paths)
            room = (known.context or _LONGEST) - len(tree.prompt)
            begun = kept.of(fmt)
            for ids in _batches(
                model, group, num_samples, constrained, batch_size, options, room, begun, seed
            ):
                begun.append(ids)
                kept.save()
                tick(forwards[0])
            ids = [row for batch in begun for row in batch]
            secrets = [secret_of(tree, row) for row in ids]
            free = [""] * len(ids)
            if not constrained:
                free = tokenizer.batch_decode(
                    [[*tree.prompt, *row] for row in ids], skip_special_tokens=True
                )
            attempts[fmt] = len(ids)
            texts[fmt] = Counter(filter(None, secrets if constrained else free))
            for place in group.places:
                canary = canaries[place]
                # Tokens tell it where a decoder changes spaces or case, the text where the last
                # token goes on behind the canary.
                counts[place] = sum(
                    secret == canary.secret or canary.text in text
                    for secret, text in zip(secrets, free, strict=True)
                )
    return Generations(
        [
            Generated(canary, counts[place], attempts[canary.format])
            for place, canary in enumerate(canaries)
        ],
        attempts=sum(attempts.values()),
        forwards=forwards[0],
        seconds=time.perf_counter() - start,
        settings=asked | {"versions": versions("torch", "transformers")},
        texts=texts,
    )


def _options(tokenizer: PreTrainedTokenizerBase, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `generate`: those given, and plain sampling or search in place of defaults."""
    beams = int(given.get("num_beams") or 1)
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    options: dict[str, Any] = {
        "do_sample": beams == 1,
        "pad_token_id": pad if pad is not None else end if end is not None else 0,
        "eos_token_id": end,
        **given,
    }
    if beams > 1:
        # Sums of log-probabilities, not means over tokens.
        options.setdefault("length_penalty", 0.0)
    if options["do_sample"]:
        options.setdefault("top_k", 0)  # transformers' own default is 50
    return options


def _batches(
    model: Any,
    group: Group,
    num_samples: int,
    constrained: bool,
    batch_size: int,
    options: dict[str, Any],
    room: int,
    begun: Sequence[list[list[int]]],
    seed: int,
) -> Iterator[list[list[int]]]:
    """The new tokens of each sequence, batch by batch, after those that are there already; `room`
    is how many tokens there may be."""
    tree = group.tree
    longest = room
    if constrained:
        held = Constraint(tree, int(options["pad_token_id"]), room)
        options = {
            **options,
            "eos_token_id": None,
            "logits_processor": LogitsProcessorList([*options.get("logits_processor", ()), held]),
            "stopping_criteria": StoppingCriteriaList(
                [*options.get("stopping_criteria", ()), AtLeaf(held)]
            ),
        }
    else:
        longest = min(room, max(len(path) for path in group.paths) + _BEYOND)
    options = {"max_new_tokens": longest, **options}
    prompt = torch.tensor([tree.prompt], device=model.get_input_embeddings().weight.device)
    beams = int(options.get("num_beams") or 1)
    wanted = num_samples
    if not options["do_sample"]:
        wanted = min(num_samples, beams)  # again and again would give the same
    done, number = sum(map(len, begun)), len(begun)
    if number and not options["do_sample"]:
        return
    while done < wanted:
        # Of its own for each batch, so that one can be made without those before it.
        own = derived(seed, "generation", f"{tree.format.template} {tree.format.secret} {number}")
        torch.manual_seed(own.getrandbits(63))
        most = batch_size if beams == 1 else beams
        made = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            **{**options, "num_return_sequences": min(most, wanted - done)},
        )
        # What beam search has not filled is -1.
        rows = [[i for i in row if i >= 0] for row in made[:, len(tree.prompt) :].tolist()]
        if beams > 1:
            # Where there are fewer texts than beams it fills up with copies and with nothing.
            rows = [list(row) for row in dict.fromkeys(map(tuple, rows)) if row]
        yield rows
        done, number = done + len(rows), number + 1
        if not options["do_sample"]:
            break


def _fingerprint(model: Any) -> list[Any]:
    """Tells models apart, and one from itself after more training."""
    sums = [float(weight.detach().double().sum()) for weight in model.parameters()]
    return [type(model).__name__, len(sums), math.fsum(sums)]


class _Kept:
    """Batches that were generated, in a file if there is one.

    Raises:
        ValueError: the file is of another call.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        asked: dict[str, Any],
        model: Any,
        canaries: Canaries,
    ) -> None:
        self._path = path
        self._batches: dict[str, list[list[list[int]]]] = {}
        if path is None:
            return
        formats = [fmt.to_dict() for fmt in canaries.formats]
        told = asked | {"formats": formats, "model": _fingerprint(model)}
        self._asked = json.loads(json.dumps(told))
        if not os.path.exists(path):
            return
        try:
            found: Any = json.loads(Path(path).read_text(encoding="utf-8"))
            fits = found["asked"] == self._asked
        except (KeyError, TypeError, ValueError, RecursionError):
            fits = False
        if not fits:
            raise ValueError(
                f"generate_secrets: resume={os.fspath(path)!r} does not hold what this call has "
                "generated, but something else; give another file, or remove it"
            )
        self._batches = found["batches"]

    def of(self, fmt: SecretFormat) -> list[list[list[int]]]:
        """The batches of a format, to be added to."""
        return self._batches.setdefault(json.dumps(fmt.to_dict()), [])

    def save(self) -> None:
        if self._path is not None:
            kept = {"asked": self._asked, "batches": self._batches}
            write_text(self._path, json.dumps(kept))


@contextmanager
def _own_settings_aside(model: Any) -> Iterator[None]:
    """An empty generation_config for the model, and for one that it is wrapped around.

    Whatever is not given to `generate` is read from there, so setting a few arguments would not do.
    """
    owners = [part for part in model.modules() if "generation_config" in vars(part)]
    before = [part.generation_config for part in owners]
    try:
        for part in owners:
            part.generation_config = GenerationConfig()
        yield
    finally:
        for part, config in zip(owners, before, strict=True):
            part.generation_config = config


@contextmanager
def _counting(model: Any) -> Iterator[list[int]]:
    """Counts the positions that go through the model, in the one entry of the list."""
    count = [0]

    def add(module: Any, inputs: Any, output: torch.Tensor) -> None:
        count[0] += output.shape[:-1].numel()

    hook = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield count
    finally:
        hook.remove()


def _plain(value: Any) -> Any:
    """An argument for JSON: numbers, strings and truth values as they are, others by their type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return type(value).__name__
