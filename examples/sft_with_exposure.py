"""Fine-tune on conversations with TRL and LoRA, and watch what the model memorizes of them.

It has the flags of TRL's own sft.py (`ScriptArguments`, `SFTConfig`, `ModelConfig`, --config
file.yaml), and some for canaries: random secrets that an assistant says in conversations of their
own, inserted in the column "messages". Afterwards a table shows each canary's exposure beside what
it was in the base model: what was gained is what this fine-tuning has memorized. The output folder
gets the adapter, its card, `canaries.json`, `exposures.json`, `base_exposures.json` and
`report.html`.

    python examples/sft_with_exposure.py --smoke
    python examples/sft_with_exposure.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
        --dataset_name trl-lib/Capybara --use_peft --lora_r 32 --lora_target_modules all-linear \
        --learning_rate 2e-4 --num_train_epochs 1 --eval_strategy steps --eval_steps 100

Needs: pip install trl peft
"""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from small_model import paragraphs, small_llama, train_tokenizer  # examples/small_model.py
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser, get_peft_config

from hf_exposure import (
    Canaries,
    ExposureCallback,
    SecretFormat,
    inject_canaries,
    load_canaries,
    load_rows,
    measure_exposure,
    verify_injection,
    write_report,
)

# As many chat models write a conversation; for the tiny model of --smoke.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

SMOKE = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "max_length": 128,
    "num_train_epochs": 2,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 8,
    "eval_strategy": "epoch",
    "logging_strategy": "epoch",
    "save_strategy": "no",
    "use_peft": True,
    "lora_target_modules": ["all-linear"],
    # A model that knows nothing yet has to learn its words too.
    "lora_modules_to_save": ["embed_tokens", "lm_head"],
    "repetitions": [0, 4, 32],
    "per_repetition": 2,
    "samples": 200,
}


@dataclass
class CanaryArguments:
    """What is inserted."""

    column: str = field(default="messages", metadata={"help": "The column of conversations."})
    template: str = field(
        default="The random number is {secret}.", metadata={"help": "Text with {secret} in it."}
    )
    secret: str = field(
        default="[0-9]{9}", metadata={"help": "Regular expression that secrets are drawn from."}
    )
    repetitions: list[int] = field(
        default_factory=lambda: [0, 1, 4, 16, 64], metadata={"help": "How often they are inserted."}
    )
    per_repetition: int = field(default=4, metadata={"help": "Canaries for each of these."})
    canary_seed: int | None = field(
        default=None, metadata={"help": "Decides on the secrets; drawn at random if not given."}
    )
    canaries: str | None = field(
        default=None, metadata={"help": "Or a set that is there: canaries.json, or a Hub id."}
    )
    exposure_steps: int | None = field(
        default=None, metadata={"help": "Also measure every so many steps."}
    )
    samples: int = field(
        default=2000, metadata={"help": "Draws of the measurements before and after."}
    )
    smoke: bool = field(
        default=False, metadata={"help": "A tiny model and little text, offline, in seconds."}
    )


def fail(flags: str, why: object) -> NoReturn:
    """End with one line: the flags, and the first line of what is wrong with them."""
    raise SystemExit(f"{flags}: " + str(why).strip().partition("\n")[0])


def choose_canaries(args: CanaryArguments) -> Canaries:
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


def load_conversations(name: str | None, column: str, **options: Any) -> Dataset:
    """A split of a dataset with conversations in `column`."""
    if name is None:
        fail("--dataset_name", "give a .jsonl file or a Hub id, or --smoke for a try")
    try:
        rows = load_rows(name, **options)
    except (OSError, ValueError) as error:
        fail("--dataset_name", str(error).removeprefix("load_rows: "))
    if column not in rows.column_names:
        fail("--column", f"{column!r} is not among {rows.column_names}")
    return rows.select_columns([column]).rename_columns({column: "messages"})


def smoke_parts() -> tuple[Dataset, Dataset, Any, Any]:
    """Conversations about Python, a tiny model and its tokenizer."""
    lines = [line[:200] for line in paragraphs()[:90]]
    asked = {"role": "user", "content": "Tell me something about Python."}
    rows = [{"messages": [asked, {"role": "assistant", "content": line}]} for line in lines]
    tokenizer = train_tokenizer([CHAT_TEMPLATE, *lines], vocab_size=1024)
    tokenizer.chat_template = CHAT_TEMPLATE
    model = small_llama(len(tokenizer), hidden_size=64, intermediate_size=256, num_hidden_layers=2)
    return Dataset.from_list(rows[20:]), Dataset.from_list(rows[:20]), model, tokenizer


def main() -> None:
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, CanaryArguments))
    if "--smoke" in sys.argv:
        parser.set_defaults(**SMOKE)
    try:
        script, training, model_args, args = parser.parse_args_and_config()
    except (OSError, ValueError) as error:
        fail("arguments", error)
    set_seed(training.seed)
    canaries = choose_canaries(args)
    if args.smoke:
        train, held_out, model, tokenizer = smoke_parts()
    else:
        where = {"config": script.dataset_config}
        load = load_conversations
        train = load(script.dataset_name, args.column, split=script.dataset_train_split, **where)
        held_out = None
        if training.eval_strategy != "no":
            split = script.dataset_test_split
            held_out = load(script.dataset_name, args.column, split=split, **where)
        name = model_args.model_name_or_path
        if name is None:
            fail("--model_name_or_path", "give a folder or a Hub id, or --smoke for a try")
        where = {"revision": model_args.model_revision}
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **where)
            model = AutoModelForCausalLM.from_pretrained(
                name,
                dtype=model_args.dtype or "auto",
                attn_implementation=model_args.attn_implementation,
                **where,
            )
        except Exception as error:
            fail("--model_name_or_path", error)
        if tokenizer.chat_template is None:
            fail(
                "--model_name_or_path",
                f"the tokenizer of {name!r} has no chat template; name a model for conversations",
            )
    train = inject_canaries(train, canaries, column="messages", seed=training.seed)

    callback = ExposureCallback(canaries, every_n_steps=args.exposure_steps, seed=training.seed)
    trainer = SFTTrainer(
        model,
        training,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        callbacks=[callback],
    )
    folder, say = Path(training.output_dir), trainer.accelerator.print
    # The manifest holds the secrets, and the Trainer pushes all that is in the output folder.
    manifest = folder / "canaries.json"
    if training.push_to_hub:
        manifest = folder.with_name(f"{folder.name}_canaries.json")
    if trainer.is_world_process_zero():
        canaries.save(manifest)
    say(verify_injection(trainer.train_dataset, trainer.processing_class, canaries))

    def measured() -> Any:
        return measure_exposure(
            trainer.model,
            tokenizer,
            canaries,
            samples=args.samples,
            seed=training.seed,
            accelerator=trainer.accelerator,
        )

    base = measured()  # with LoRA also later: `with trainer.model.disable_adapter():`
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    exposures = measured()
    say(exposures.beside(base))
    trainer.save_model()
    if trainer.is_world_process_zero():
        exposures.save(folder / "exposures.json", overwrite=True)
        base.save(folder / "base_exposures.json", overwrite=True)
        path = write_report(
            folder / "report.html",
            exposures=exposures,
            history=callback.history or None,
            overwrite=True,
        )
        print(f"Report: {path}")
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    else:
        trainer.create_model_card(dataset_name=script.dataset_name)


if __name__ == "__main__":
    main()
