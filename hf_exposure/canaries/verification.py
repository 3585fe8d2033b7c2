"""Whether canaries are still whole after tokenizing and packing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_exposure.canaries.search import Search
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.survival import InjectionReport
from hf_exposure.canaries.token_rows import chunks
from hf_exposure.utils.typed import typed

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

MASKS = ("assistant_masks", "completion_mask")  # 0 for tokens that training will leave out


@typed
def verify_injection(
    tokenized: Dataset | IterableDataset | Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    canaries: Canaries,
    *,
    column: str = "input_ids",
    label_column: str = "labels",
    mask_columns: Sequence[str] = MASKS,
) -> InjectionReport:
    """Look for every canary in data that was tokenized, and packed or truncated.

    Takes seconds for 100,000 rows. A canary that is followed by further letters or digits counts as
    whole: its probability is the same.

    What `SFTTrainer` trains on can be given as it is: `trainer.train_dataset`, packed or not. Where
    it has "seq_lengths", each of the documents that were packed into a row is a row here, because
    none of them sees another.

    Args:
        tokenized: a `Dataset`, an `IterableDataset`, a list of dictionaries, or a dictionary of
            datasets, of which the "train" split is meant. Rows in the order of training: a canary
            cut in two is told from a truncated one by its rest in the next row.
        tokenizer: the one that tokenized it.
        canaries: the canaries that were inserted.
        column: where the token ids are.
        label_column: where the labels are, if there are any: canaries under -100 are not trained
            on, and reported.
        mask_columns: masks that become labels later, where there are no labels yet: a token under
            a 0 in one of them is not trained on. TRL's data collators, and chat templates with
            `return_assistant_tokens_mask=True`, write "assistant_masks" and "completion_mask";
            with `completion_only_loss=False`, leave the latter out.

    Returns:
        What has become of each canary; prints as a table.

    Raises:
        TypeError: `tokenized` holds no rows, or an argument has the wrong type.
        ValueError: there are no token ids, or the tokenizer cannot encode a canary.

    Usage:

        report = verify_injection(packed, tokenizer, canaries)
        print(report)
        report.raise_if_lost()
    """
    search = Search(canaries, tokenizer)
    search.scan(chunks(tokenized, column, label_column, tuple(mask_columns)))
    return search.report()
