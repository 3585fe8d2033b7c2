"""Fine-tune a causal language model, or train one from scratch, and watch what it memorizes.

It has the flags of the well-known run_clm.py, those of TrainingArguments, and some for canaries:
random secrets inserted in the training texts. Texts are put one behind another, with an end
mark between them, and cut into blocks; the script says how many canaries that has cut in two. The
log has `eval_exposure` beside `eval_loss`. The output folder gets the model, its card,
`canaries.json`, `injection.json`, `exposure_history.json` and `report.html`. A second call with the
same --output_dir takes up an interrupted training again.

    python examples/run_clm_with_exposure.py --smoke
    python examples/run_clm_with_exposure.py --model_name_or_path HuggingFaceTB/SmolLM2-135M \
        --dataset_name Salesforce/wikitext --dataset_config_name wikitext-2-raw-v1 \
        --per_device_train_batch_size 8 --num_train_epochs 3 --do_train --do_eval

From scratch: --model_type llama --config_overrides num_hidden_layers=6,hidden_size=512
--tokenizer_name HuggingFaceTB/SmolLM2-135M in place of the model. All flags can stand in a YAML or
JSON file: run_clm_with_exposure.py config.yaml
"""

from __future__ import annotations

import json
import math
import secrets
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from datasets import Dataset, DatasetDict
from small_model import paragraphs, small_llama, train_tokenizer  # examples/small_model.py
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import IntervalStrategy, get_last_checkpoint

from hf_exposure import (
    Canaries,
    ExposureCallback,
    SecretFormat,
    inject_canaries,
    load_canaries,
    load_rows,
    verify_injection,
)


def flag(default: Any, help: str) -> Any:
    """A field of the arguments."""
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    """Which model."""

    model_name_or_path: str | None = flag(None, "The model to fine-tune: a folder or a Hub id.")
    model_type: str | None = flag(None, "Or the architecture to train from scratch, as llama.")
    config_overrides: str | None = flag(None, "From scratch: settings, as n_embd=256,n_layer=4.")
    tokenizer_name: str | None = flag(None, "The tokenizer, if not that of the model.")
    model_revision: str = flag("main", "Branch, tag or commit on the Hub.")
    dtype: str = flag("auto", "Of the weights, such as bfloat16; auto: as they were saved.")


@dataclass
class DataTrainingArguments:
    """Which text. Its column is "text", or the first one."""

    dataset_name: str | None = flag(None, "A dataset on the Hub.")
    dataset_config_name: str | None = flag(None, "Its configuration.")
    train_file: str | None = flag(None, "Or a .jsonl, .csv, .parquet or .txt file (line by line).")
    validation_file: str | None = flag(None, "To evaluate on.")
    validation_split_percentage: int = flag(5, "Of the rows, to evaluate on if nothing else is.")
    max_train_samples: int | None = flag(None, "Rows to train on at most, for a try.")
    block_size: int | None = flag(None, "Tokens of a block; 1024, or what the model can take.")
    smoke: bool = flag(False, "A tiny model and little text, offline, in seconds.")


@dataclass
class CanaryArguments:
    """What is inserted, and when it is measured."""

    template: str = flag("The random number is {secret}.", "Text of a canary, with {secret} in it.")
    secret: str = flag("[0-9]{9}", "Regular expression that the secrets are drawn from.")
    repetitions: list[int] = field(
        default_factory=lambda: [0, 1, 4, 16, 64], metadata={"help": "How often they are inserted."}
    )
    per_repetition: int = flag(4, "Canaries for each of these.")
    canary_seed: int | None = flag(None, "Decides on the secrets; drawn at random if not given.")
    canaries: str | None = flag(None, "Or a set that is there: canaries.json, or a Hub id.")
    exposure_steps: int | None = flag(None, "Also measure every so many steps.")


def fail(flags: str, why: object) -> NoReturn:
    """End with one line: the flags, and the first line of what is wrong with them."""
    raise SystemExit(f"{flags}: " + str(why).strip().partition("\n")[0])


def choose_canaries(args: CanaryArguments, path: Path) -> Canaries:
    """A set from a manifest, or drawn; the one that an earlier call left in `path`, if any."""
    if args.canaries is not None:
        try:
            return load_canaries(args.canaries)
        except (OSError, ValueError, RuntimeError) as error:
            fail("--canaries", str(error).removeprefix("--canaries: "))
    before = Canaries.load(path) if path.is_file() else None
    seed = args.canary_seed
    if seed is None:  # whoever knows format and seed can draw the same secrets
        seed = before.seed if before is not None else secrets.randbits(32)
    try:
        fmt = SecretFormat(args.template, args.secret)
    except ValueError as error:
        fail("--template, --secret", error)
    try:
        drawn = Canaries.generate(fmt, args.repetitions, args.per_repetition, seed)
    except ValueError as error:
        fail("--repetitions, --per_repetition", error)
    if before is not None and list(before) != list(drawn):
        fail(
            "--output_dir",
            f"{str(path)!r} has other canaries than the flags ask for; name "
            f"another folder, or give --canaries {path}",
        )
    return drawn


def load_texts(args: DataTrainingArguments, seed: int) -> DatasetDict:
    """Rows to train on, and rows to evaluate on, in a column "text"."""

    def text_of(rows: Dataset) -> Dataset:
        column = "text" if "text" in rows.column_names else rows.column_names[0]
        return rows.select_columns([column]).rename_columns({column: "text"})

    def load(flags: str, name: str, **options: Any) -> Dataset:
        try:
            return text_of(load_rows(name, **options))
        except (OSError, ValueError) as error:
            fail(flags, str(error).removeprefix("load_rows: "))

    held_out = None
    if args.smoke:
        rows = Dataset.from_dict({"text": paragraphs()[:400]})
    elif (args.dataset_name is None) == (args.train_file is None):
        fail("--dataset_name, --train_file", "give one of them, or --smoke for a try")
    elif args.train_file is not None:
        rows = load("--train_file", args.train_file)
    else:
        where = {"name": args.dataset_name, "config": args.dataset_config_name}
        rows = load("--dataset_name", **where)
        with suppress(OSError, ValueError):  # not every dataset has such a split
            held_out = text_of(load_rows(**where, split="validation"))
    if args.validation_file is not None:
        held_out = load("--validation_file", args.validation_file)
    if held_out is None:
        if not 0 < args.validation_split_percentage < 100:
            fail("--validation_split_percentage", "must lie between 0 and 100")
        share = args.validation_split_percentage / 100
        rows, held_out = rows.train_test_split(test_size=share, seed=seed).values()
    if args.max_train_samples is not None:
        rows = rows.select(range(min(args.max_train_samples, len(rows))))
    return DatasetDict(train=rows, validation=held_out)


def load_model(args: ModelArguments, seed: int) -> tuple[Any, Any]:
    """Model and tokenizer: from a folder or the Hub, or from scratch."""
    if (args.model_name_or_path is None) == (args.model_type is None):
        fail("--model_name_or_path, --model_type", "give one of them, or --smoke for a try")
    name = args.tokenizer_name or args.model_name_or_path
    if name is None:
        fail("--tokenizer_name", "a model from scratch needs one; name a folder or a Hub id")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=args.model_revision)
    except Exception as error:
        fail("--tokenizer_name" if args.tokenizer_name else "--model_name_or_path", error)
    if args.model_name_or_path is not None:
        where = {"revision": args.model_revision, "dtype": args.dtype}
        try:
            model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, **where)
        except Exception as error:
            fail("--model_name_or_path", error)
    elif args.model_type not in CONFIG_MAPPING:
        fail("--model_type", f"{args.model_type!r} is not known to transformers")
    else:
        ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
        config = AutoConfig.for_model(args.model_type, vocab_size=len(tokenizer), **ends)
        try:
            if args.config_overrides:
                config.update_from_string(args.config_overrides)
            model = AutoModelForCausalLM.from_config(config)
        except ValueError as error:
            fail("--model_type, --config_overrides", error)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    return model, tokenizer


def blocks_of(texts: DatasetDict, tokenizer: Any, size: int) -> DatasetDict:
    """All texts one behind another, with an end mark after each, cut into blocks."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def cut(batch: dict[str, list[str | None]]) -> dict[str, list[list[int]]]:
        rows = [text for text in batch["text"] if text]
        encoded = tokenizer(rows)["input_ids"] if rows else []
        ids = list(chain.from_iterable([*row, *end] for row in encoded))
        blocks = [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)]
        return {"input_ids": blocks, "labels": blocks}

    blocks = texts.map(cut, batched=True, remove_columns=["text"])
    for split, rows in blocks.items():
        if not len(rows):
            fail(
                "--block_size",
                f"the {split} texts do not fill one block of {size} tokens; "
                "lower it, or give more text",
            )
    return blocks


def parse() -> tuple[Any, ...]:
    """The arguments, from the command line or from one YAML or JSON file."""
    kinds = (ModelArguments, DataTrainingArguments, CanaryArguments, TrainingArguments)
    parser, file = HfArgumentParser(kinds), sys.argv[1] if len(sys.argv) == 2 else ""
    try:
        if file.endswith((".yaml", ".yml")):
            return parser.parse_yaml_file(file)
        if file.endswith(".json"):
            return parser.parse_json_file(file)
        return parser.parse_args_into_dataclasses()
    except (OSError, ValueError) as error:
        fail(file or "arguments", error)


def main() -> None:
    model_args, data_args, canary_args, training = parse()
    if data_args.smoke:
        training.do_train = training.do_eval = True
        training.num_train_epochs, training.learning_rate = 3, 3e-3
        training.save_strategy, training.logging_strategy = "no", "epoch"
        data_args.block_size = data_args.block_size or 128
    if not (training.do_train or training.do_eval):
        fail("--do_train, --do_eval", "give at least one of them")
    every = canary_args.exposure_steps
    if training.do_train and training.eval_strategy == "no" and every is None:
        training.eval_strategy = IntervalStrategy.EPOCH  # exposure is measured when it evaluates
    set_seed(training.seed)
    folder, main_process = Path(training.output_dir), training.process_index == 0
    # The manifest holds the secrets, and the Trainer pushes all that is in the output folder.
    manifest = folder / "canaries.json"
    if training.push_to_hub:
        manifest = folder.with_name(f"{folder.name}_canaries.json")
    with training.main_process_first(desc="insert and tokenize"):
        canaries = choose_canaries(canary_args, manifest)
        inserted = inject_canaries(
            load_texts(data_args, training.seed), canaries, seed=training.seed
        )
        if data_args.smoke:
            tokenizer = train_tokenizer(inserted["train"]["text"], vocab_size=1024)
            sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
            model = small_llama(len(tokenizer), training.seed, **sizes)
        else:
            model, tokenizer = load_model(model_args, training.seed)
        most = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
        size = min(1024, most) if data_args.block_size is None else data_args.block_size
        if not 1 < size <= most:
            fail("--block_size", f"{size} is not between 2 and {most}, as the model has it")
        blocks = blocks_of(inserted, tokenizer, size)
        if main_process:
            canaries.save(manifest)
    survived = verify_injection(blocks, tokenizer, canaries)
    if main_process:
        print(f"In blocks of {size} tokens {survived}")
        if not survived.ok:
            print("Cut canaries are learned less well; a larger --block_size cuts fewer of them.")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "injection.json").write_text(json.dumps(survived.to_dict(), indent=1))

    callback = ExposureCallback(canaries, every_n_steps=every, seed=training.seed)
    trainer = Trainer(
        model,
        training,
        train_dataset=blocks["train"],
        eval_dataset=blocks["validation"],
        processing_class=tokenizer,
        data_collator=default_data_collator,
        callbacks=[callback],
    )
    if training.do_train:
        last = get_last_checkpoint(folder) if folder.is_dir() else None
        result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint or last)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    if training.do_eval:
        metrics = trainer.evaluate()
        metrics["perplexity"] = math.exp(min(metrics["eval_loss"], 700))
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if main_process and callback.history:
        print(callback.history[-1].exposures)
        print(f"Report: {callback.report(folder / 'report.html', overwrite=True)}")
    card = {"tasks": "text-generation", "finetuned_from": model_args.model_name_or_path}
    if data_args.dataset_name is not None:
        card |= {"dataset": data_args.dataset_name, "dataset_tags": data_args.dataset_name}
    if training.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)


if __name__ == "__main__":
    main()
