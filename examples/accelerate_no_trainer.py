"""Train in a loop of your own, with Accelerate, and watch what the model memorizes.

It has the flags of the well-known run_clm_no_trainer.py, and some for canaries: random secrets that
are inserted in the training texts. After every epoch `measure_exposure` is called in all processes,
which share its work, and `accelerator.log` gets the same figures that `ExposureCallback` logs. The
output folder gets the model, `canaries.json`, `exposure_history.json` and `report.html`.

    python examples/accelerate_no_trainer.py --smoke
    accelerate launch examples/accelerate_no_trainer.py --with_tracking --report_to tensorboard \
        --model_name_or_path HuggingFaceTB/SmolLM2-135M --dataset_name Salesforce/wikitext \
        --dataset_config_name wikitext-2-raw-v1 --output_dir clm_run

Two processes without a GPU: torchrun --nproc_per_node 2 examples/accelerate_no_trainer.py --smoke
"""

from __future__ import annotations

import argparse
import math
import secrets
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from datasets import Dataset
from small_model import paragraphs, small_llama, train_tokenizer  # examples/small_model.py
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    SchedulerType,
    default_data_collator,
    get_scheduler,
)

from hf_exposure import (
    Canaries,
    History,
    Measurement,
    SecretFormat,
    inject_canaries,
    load_canaries,
    load_rows,
    measure_exposure,
    verify_injection,
    write_report,
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model_name_or_path", help="The model to fine-tune: a folder or a Hub id.")
    add("--dataset_name", help="A dataset on the Hub.")
    add("--dataset_config_name", help="Its configuration.")
    add("--train_file", help="Or a .jsonl, .csv, .parquet or .txt file (line by line).")
    add("--validation_split_percentage", type=int, default=5, help="Of the rows, to evaluate on.")
    add("--block_size", type=int, help="Tokens of a block; 1024, or what the model can take.")
    add("--per_device_train_batch_size", type=int, default=8)
    add("--per_device_eval_batch_size", type=int, default=8)
    add("--learning_rate", type=float, default=5e-5)
    add("--weight_decay", type=float, default=0.0)
    add("--num_train_epochs", type=int, default=3)
    add("--max_train_steps", type=int, help="Ends the training early.")
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--lr_scheduler_type", type=SchedulerType, default="linear", choices=[*SchedulerType])
    add("--num_warmup_steps", type=int, default=0)
    add("--output_dir", default="accelerate_run", help="For the model, the canaries, the report.")
    add("--seed", type=int, default=0, help="Of the training and of the canaries' places.")
    add("--with_tracking", action="store_true", help="Log to the trackers of --report_to.")
    add("--report_to", default="all", help="tensorboard, wandb, trackio, ..., or all there are.")
    add("--template", default="The random number is {secret}.", help="With {secret} in it.")
    add("--secret", default="[0-9]{9}", help="Regular expression that secrets are drawn from.")
    add(
        "--repetitions",
        type=int,
        nargs="+",
        default=[0, 1, 4, 16, 64],
        help="How often canaries are inserted.",
    )
    add("--per_repetition", type=int, default=4, help="Canaries for each of these.")
    add("--canary_seed", type=int, help="Decides on the secrets; drawn at random if not given.")
    add("--canaries", help="Or a set that is there: canaries.json, or a Hub id.")
    add("--max_forwards", type=int, help="Token-forwards to spend on each measurement.")
    add("--smoke", action="store_true", help="A tiny model and little text, offline, in seconds.")
    args = parser.parse_args()
    if args.smoke:
        args.block_size, args.learning_rate, args.num_train_epochs = 128, 3e-3, 2
        args.repetitions, args.per_repetition, args.max_forwards = [0, 4, 32], 2, 2000
    elif args.model_name_or_path is None:
        parser.error("--model_name_or_path: give a folder or a Hub id, or --smoke for a try")
    elif (args.dataset_name is None) == (args.train_file is None):
        parser.error("--dataset_name, --train_file: give one of them, or --smoke for a try")
    if not 0 < args.validation_split_percentage < 100:
        parser.error("--validation_split_percentage: must lie between 0 and 100")
    return args


def fail(flags: str, why: object) -> NoReturn:
    """End with one line: the flags, and the first line of what is wrong with them."""
    raise SystemExit(f"{flags}: " + str(why).strip().partition("\n")[0])


def choose_canaries(args: argparse.Namespace) -> Canaries:
    """A set from a manifest, or drawn; the same in all processes."""
    try:
        if args.canaries is not None:
            return load_canaries(args.canaries)
        # Whoever knows format and seed can draw the same secrets.
        (seed,) = broadcast_object_list([secrets.randbits(32)])
        seed = seed if args.canary_seed is None else args.canary_seed
        fmt = SecretFormat(args.template, args.secret)
        return Canaries.generate(fmt, args.repetitions, args.per_repetition, seed)
    except (OSError, ValueError, RuntimeError) as error:
        fail("--canaries" if args.canaries else "--template, --secret, --repetitions", error)


def load_texts(args: argparse.Namespace) -> Dataset:
    """The rows, in a column "text"."""
    if args.smoke:
        return Dataset.from_dict({"text": paragraphs()[:250]})
    try:
        rows = load_rows(args.dataset_name or args.train_file, config=args.dataset_config_name)
    except (OSError, ValueError) as error:
        what = "--dataset_name" if args.dataset_name else "--train_file"
        fail(what, str(error).removeprefix("load_rows: "))
    column = "text" if "text" in rows.column_names else rows.column_names[0]
    return rows.select_columns([column]).rename_columns({column: "text"})


def load_model(args: argparse.Namespace, texts: list[str]) -> tuple[Any, Any]:
    if args.smoke:
        tokenizer = train_tokenizer(texts, vocab_size=1024)
        sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
        return small_llama(len(tokenizer), args.seed, **sizes), tokenizer
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
        return AutoModelForCausalLM.from_pretrained(args.model_name_or_path), tokenizer
    except Exception as error:
        fail("--model_name_or_path", error)


def blocks_of(texts: Dataset, tokenizer: Any, size: int) -> Dataset:
    """All texts one behind another, with an end mark after each, cut into blocks."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def cut(batch: dict[str, list[str | None]]) -> dict[str, list[list[int]]]:
        rows = [text for text in batch["text"] if text]
        encoded = tokenizer(rows)["input_ids"] if rows else []
        ids = list(chain.from_iterable([*row, *end] for row in encoded))
        blocks = [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)]
        return {"input_ids": blocks, "labels": blocks}

    blocks = texts.map(cut, batched=True, remove_columns=["text"])
    if not len(blocks):
        fail("--block_size", f"the texts do not fill one block of {size} tokens; lower it")
    return blocks


@torch.no_grad()
def evaluate(model: Any, loader: DataLoader, accelerator: Accelerator) -> float:
    """Mean loss in nats for each token."""
    model.eval()
    losses = []
    for batch in loader:
        loss = model(**batch).loss.repeat(len(batch["input_ids"]))
        losses.append(accelerator.gather_for_metrics(loss).cpu())
    return float(torch.cat(losses).mean())


def main() -> None:
    args = parse()
    tracking = {"log_with": args.report_to, "project_dir": args.output_dir}
    # Without cpu=True, several processes on CPU would each train a model of their own.
    devices = (torch.cuda, torch.xpu, torch.backends.mps)
    accelerator = Accelerator(
        cpu=not any(device.is_available() for device in devices),
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        **(tracking if args.with_tracking else {}),
    )
    set_seed(args.seed)
    folder, say = Path(args.output_dir), accelerator.print
    canaries = choose_canaries(args)
    with accelerator.main_process_first():  # the others read what the first one has cached
        parts = load_texts(args).train_test_split(
            test_size=args.validation_split_percentage / 100, seed=args.seed
        )
        inserted = inject_canaries(parts["train"], canaries, seed=args.seed)
        model, tokenizer = load_model(args, inserted["text"])
        most = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
        size = min(1024, most) if args.block_size is None else args.block_size
        if not 1 < size <= most:
            fail("--block_size", f"{size} is not between 2 and {most}, as the model has it")
        train, held_out = (blocks_of(rows, tokenizer, size) for rows in (inserted, parts["test"]))
    if accelerator.is_main_process:
        canaries.save(folder / "canaries.json")  # the one file that holds the secrets
        say(f"In blocks of {size} tokens {verify_injection(train, tokenizer, canaries)}")

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay
    )
    model, optimizer, loader, eval_loader = accelerator.prepare(
        model,
        optimizer,
        DataLoader(train, args.per_device_train_batch_size, True, collate_fn=default_data_collator),
        DataLoader(held_out, args.per_device_eval_batch_size, collate_fn=default_data_collator),
    )
    steps = args.num_train_epochs * math.ceil(len(loader) / args.gradient_accumulation_steps)
    steps = min(steps, args.max_train_steps or steps)
    # A prepared scheduler goes one step in each process.
    ways = accelerator.num_processes
    scheduler = accelerator.prepare(
        get_scheduler(args.lr_scheduler_type, optimizer, args.num_warmup_steps * ways, steps * ways)
    )
    if args.with_tracking:
        settings = {k: v for k, v in vars(args).items() if isinstance(v, (int, float, str, bool))}
        accelerator.init_trackers("clm_with_exposure", settings)
    say(f"Steps: {steps}, processes: {ways}.")

    history, step = History(), 0
    for epoch in range(1, args.num_train_epochs + 1):
        model.train()
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            step += accelerator.sync_gradients
            if step >= steps:
                break
        loss = evaluate(model, eval_loader, accelerator)
        exposures = measure_exposure(
            model,
            tokenizer,
            canaries,
            max_forwards=args.max_forwards,
            seed=args.seed,
            accelerator=accelerator,
        )
        figures = {"eval_loss": loss, **exposures.coarse().metrics()}
        say(f"epoch {epoch}: " + ", ".join(f"{name} {x:.4g}" for name, x in figures.items()))
        if args.with_tracking:
            accelerator.log(figures, step=step)
        history.append(Measurement(step, exposures, epoch=epoch, metrics={"eval_loss": loss}))
        if step >= steps:
            break

    accelerator.wait_for_everyone()
    weights = accelerator.get_state_dict(model)  # all of them, where the model is sharded
    accelerator.unwrap_model(model).save_pretrained(
        folder, is_main_process=accelerator.is_main_process, state_dict=weights
    )
    if accelerator.is_main_process:
        tokenizer.save_pretrained(folder)
        history.save(folder / "exposure_history.json", overwrite=True)
        print(history[-1].exposures)
        page = write_report(folder / "report.html", history=history, overwrite=True)
        print(f"Report: {page}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
