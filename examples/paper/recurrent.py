"""The paper's kind of model, an LSTM or GRU over tokens, as a `PreTrainedModel`.

Transformers has no plain recurrent language model any more. This one trains with the Trainer, is
saved, loaded and generated from as any other, and keeps its state between tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

_KINDS = {"lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentConfig(PreTrainedConfig):
    """The sizes of a `RecurrentForCausalLM`.

    Args:
        vocab_size: number of tokens.
        kind: "lstm" or "gru".
        hidden_size: width of the embedding and of each layer.
        num_hidden_layers: recurrent layers.
        dropout: on the embedding, between layers and before the output.
    """

    model_type = "hf_exposure_recurrent"

    def __init__(
        self,
        vocab_size: int = 257,
        kind: str = "lstm",
        hidden_size: int = 128,
        num_hidden_layers: int = 1,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.kind = kind
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.dropout = dropout
        super().__init__(**kwargs)


class RecurrentState:
    """What the layers keep from token to token: tensors of (rows, layers, width)."""

    def __init__(self, tensors: Iterable[torch.Tensor], tokens: int) -> None:
        self.tensors = list(tensors)
        self.tokens = tokens

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep the given rows, repeats allowed."""
        self.tensors = [tensor.index_select(0, beam_idx) for tensor in self.tensors]

    def get_seq_length(self) -> int:
        """Tokens seen so far."""
        return self.tokens


class RecurrentForCausalLM(PreTrainedModel, GenerationMixin):
    """An embedding, LSTM or GRU layers, and a projection to the vocabulary.

    Raises:
        ValueError: `config.kind` is neither "lstm" nor "gru"; in `forward`, that a row is padded on
            the left, which a recurrent state would remember.
    """

    config_class = RecurrentConfig
    base_model_prefix = "layers"
    main_input_name = "input_ids"

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        if config.kind not in _KINDS:
            raise ValueError(
                f"RecurrentConfig: kind={config.kind!r} is not known; use {' or '.join(_KINDS)}"
            )
        width, depth = config.hidden_size, config.num_hidden_layers
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.layers = _KINDS[config.kind](
            width, width, depth, batch_first=True, dropout=config.dropout if depth > 1 else 0.0
        )
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(width, config.vocab_size)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        # PyTorch's own initialisation is the right one for recurrent layers.
        if isinstance(module, (nn.Embedding, nn.LSTM, nn.GRU, nn.Linear)):
            module.reset_parameters()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Linear:
        """The projection to the vocabulary."""
        head: nn.Linear = self.lm_head
        return head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: RecurrentState | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token after each one, and the loss if `labels` are given.

        Args:
            input_ids: (rows, tokens).
            attention_mask: (rows, tokens so far); zeros may stand at the end of rows only.
            labels: (rows, tokens), -100 where nothing is to be predicted.
            past_key_values: the state after the tokens before these.
            use_cache: whether to give back the state.
            logits_to_keep: for the last so many tokens only; 0 for all.
        """
        if attention_mask is not None and bool((attention_mask.diff(dim=1) > 0).any()):
            raise ValueError(
                "RecurrentForCausalLM: attention_mask has padding on the left; pad on the right "
                "(tokenizer.padding_side = 'right')"
            )
        state = None
        if past_key_values is not None:
            before = [one.transpose(0, 1).contiguous() for one in past_key_values.tensors]
            state = tuple(before) if len(before) > 1 else before[0]
        hidden, state = self.layers(self.dropout(self.embedding(input_ids)), state)
        logits = self.lm_head(self.dropout(hidden[:, -logits_to_keep:]))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        kept = None
        if use_cache or (use_cache is None and not self.training):
            seen = 0 if past_key_values is None else past_key_values.tokens
            parts = state if isinstance(state, tuple) else (state,)
            after = [part.transpose(0, 1) for part in parts]
            kept = RecurrentState(after, seen + input_ids.shape[1])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=kept,  # type: ignore[arg-type]
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: torch.Tensor, past_key_values: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The whole prompt first, then the last token and the state."""
        tokens = input_ids if past_key_values is None else input_ids[:, -1:]
        mask = kwargs.get("attention_mask")
        return {
            "input_ids": tokens,
            "past_key_values": past_key_values,
            "attention_mask": mask if past_key_values is None else None,
            "use_cache": True,
        }


AutoConfig.register(RecurrentConfig.model_type, RecurrentConfig, exist_ok=True)
AutoModelForCausalLM.register(RecurrentConfig, RecurrentForCausalLM, exist_ok=True)
