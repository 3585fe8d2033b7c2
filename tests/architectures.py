"""Tiny random models of many architectures of transformers, each made from its config.

`ARCHITECTURES` is the matrix of tests/test_architectures.py and of benchmarks/architectures.py,
which both use `compare`: the decoder's cached, re-ordered and joined steps against full forwards.
Windows and chunks of attention are shorter than a canary's text, so that they are seen to work.
Nothing is downloaded.
"""

from __future__ import annotations

import copy
import functools
import math
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import transformers as hf

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.models.decoder import Decoder
from hf_exposure.models.next_tokens import together
from hf_exposure.models.undisturbed import undisturbed
from hf_exposure.tree.tokens import TokenTree
from tests.tiny import TOKENIZERS

TOKENIZER = TOKENIZERS["digits_one_by_one"]
FORMAT = SecretFormat("The random number is {secret}.", secret="[0-9]{2}[0-4]")

WINDOW = 4  # tokens that sliding windows and chunks of attention reach, less than any text has

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}
_BART = {
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
}
_MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "use_mamba_kernels": False}
_MAMBA2 = {
    **_MAMBA,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
_ROUTED = {
    **_EXPERTS,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_INDEXED = {"index_topk": 4, "index_head_dim": 8, "index_n_heads": 16}  # of sparse attention
_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_FALCON = {"head_dim": None}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
_SECTIONS = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
}
_DECODER = {"is_decoder": True, "type_vocab_size": 2}


@dataclass(frozen=True)
class Architecture:
    """A tiny model of one architecture.

    Attributes:
        model_type: its name in transformers.
        settings: of its config, beside `_SMALL`.
        cached: whether its cache can be used and re-ordered.
        joined: whether rows of several caches can then be run together.
        auto: the class of transformers that makes the model.
    """

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    cached: bool = True
    joined: bool = True
    auto: str = "AutoModelForCausalLM"


def _of(model_type: str, *settings: dict[str, Any], **rest: Any) -> Architecture:
    flags = {name: rest.pop(name) for name in ("cached", "joined") if name in rest}
    merged = {key: value for some in (*settings, rest) for key, value in some.items()}
    return Architecture(model_type, merged, **flags)


def _with_images(
    model_type: str, text: dict[str, Any], vision: dict[str, Any], **rest: Any
) -> Architecture:
    """A model that reads images too, of which only the text part is used."""
    rest = {"text_config": text, "vision_config": vision, **rest}
    return replace(_of(model_type, rest), auto="AutoModelForImageTextToText")


ARCHITECTURES: dict[str, Architecture] = {
    # Dense, with keys and values of all that came before
    "llama": _of("llama"),
    "arcee": _of("arcee"),
    "apertus": _of("apertus"),
    "bitnet": _of("bitnet"),
    "bloom": _of("bloom", n_layer=2, n_head=4),
    "codegen": _of("codegen", _GPT, rotary_dim=4),
    "cohere": _of("cohere"),
    "ctrl": _of("ctrl", _GPT, dff=48),
    "diffllama": _of("diffllama"),
    "ernie4_5": _of("ernie4_5"),
    "falcon": _of("falcon", _FALCON),
    "falcon, alibi": _of("falcon", _FALCON, alibi=True),
    "falcon, new decoder": _of("falcon", _FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "gemma": _of("gemma"),
    "glm": _of("glm"),
    "glm4": _of("glm4"),
    "gpt2": _of("gpt2", _GPT),
    "gpt_bigcode": _of("gpt_bigcode", _GPT),
    "gpt_neox": _of("gpt_neox"),
    "gpt_neox_japanese": _of("gpt_neox_japanese"),
    "gptj": _of("gptj", _GPT, rotary_dim=4),
    "granite": _of("granite"),
    "helium": _of("helium"),
    "hunyuan_v1_dense": _of("hunyuan_v1_dense"),
    "mpt": _of("mpt", d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
    "nanochat": _of("nanochat"),
    "nemotron": _of("nemotron"),
    "olmo": _of("olmo"),
    "olmo2": _of("olmo2"),
    "openai-gpt": _of("openai-gpt", _GPT, cached=False),
    "opt": _of("opt", ffn_dim=48, word_embed_proj_dim=32),
    "persimmon": _of("persimmon", num_key_value_heads=4),
    "phi": _of("phi"),
    "qwen2": _of("qwen2"),
    "qwen3": _of("qwen3"),
    "seed_oss": _of("seed_oss"),
    "smollm3": _of("smollm3", no_rope_layers=[1, 0]),
    "stablelm": _of("stablelm"),
    "youtu": _of("youtu", _LATENT),
    "beam": _of("beam"),
    "doge": _of("doge"),
    "flint": _of("flint"),
    "hrm_text": _of("hrm_text"),
    "hyperclovax": _of("hyperclovax"),
    "jais2": _of("jais2"),
    "minicpm3": _of("minicpm3", _LATENT),
    "xlm, causal": _of("xlm", emb_dim=32, n_layers=2, n_heads=4, causal=True, cached=False),
    # Decoders of encoder-decoder families, and of BERT's
    "bart": _of("bart", _BART),
    "bert": _of("bert", _DECODER),
    "biogpt": _of("biogpt"),
    "blenderbot": _of("blenderbot", _BART),
    "megatron-bert": _of("megatron-bert", _DECODER),
    "modernbert-decoder": _of("modernbert-decoder", _SLIDING, local_attention=2 * WINDOW),
    "roberta": _of("roberta", _DECODER, max_position_embeddings=66),
    "roformer": _of("roformer", _DECODER),
    "trocr": _of("trocr", _BART),
    "xglm": _of("xglm", d_model=32, ffn_dim=48, num_layers=2, attention_heads=4, pad_token_id=0),
    "big_bird": _of("big_bird", _DECODER, attention_type="original_full"),
    "electra": _of("electra", _DECODER, embedding_size=32),
    "mbart": _of("mbart", _BART),
    "plbart": _of("plbart", _BART),
    "rembert": _of("rembert", _DECODER, input_embedding_size=32, output_embedding_size=32),
    "whisper": _of("whisper", _BART, max_target_positions=64),
    # Sliding windows and chunks
    "cohere2": _of("cohere2", _SLIDING),
    "exaone4": _of("exaone4", _SLIDING, sliding_window_pattern=2),
    "gemma2": _of("gemma2", _SLIDING, query_pre_attn_scalar=8),
    "gemma3_text": _of("gemma3_text", _SLIDING, query_pre_attn_scalar=8),
    "gemma3n_text": _of(
        "gemma3n_text",
        _SLIDING,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        laurel_rank=8,
        intermediate_size=[48, 48],
        activation_sparsity_pattern=[0.0, 0.0],
        vocab_size_per_layer_input=len(TOKENIZER()),
    ),
    "gemma4_text": _of(
        "gemma4_text",
        _SLIDING,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=len(TOKENIZER()),
    ),
    "gpt_neo": _of(
        "gpt_neo",
        num_layers=2,
        num_heads=4,
        window_size=WINDOW,
        attention_types=[[["local", "global"], 1]],
    ),
    "gpt_oss": _of("gpt_oss", _EXPERTS, _SLIDING),
    "llama4_text": _of(
        "llama4_text",
        _EXPERTS,
        attention_chunk_size=WINDOW,
        intermediate_size_mlp=48,
        layer_types=["chunked_attention", "full_attention"],
        no_rope_layers=[1, 0],
    ),
    "mistral": _of("mistral", sliding_window=WINDOW),
    "ministral": _of("ministral", _SLIDING),
    "olmo3": _of("olmo3", _SLIDING),
    "phi3": _of("phi3", sliding_window=WINDOW),
    "qwen2, sliding window": _of("qwen2", _SLIDING, use_sliding_window=True),
    "starcoder2": _of("starcoder2", sliding_window=WINDOW),
    "vaultgemma": _of("vaultgemma", _SLIDING, query_pre_attn_scalar=8),
    "cwm": _of("cwm", _SLIDING),
    "granite_swa": _of("granite_swa", _SLIDING),
    "ministral3": _of("ministral3", sliding_window=WINDOW),
    # Mixture of experts
    "afmoe": _of("afmoe", _ROUTED, _SLIDING, num_shared_experts=1),
    "dbrx": _of(
        "dbrx",
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=64,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    ),
    "deepseek_v2": _of("deepseek_v2", _ROUTED, _LATENT),
    "deepseek_v3": _of("deepseek_v3", _ROUTED, _LATENT),
    "dots1": _of("dots1", _ROUTED),
    "ernie4_5_moe": _of(
        "ernie4_5_moe",
        moe_intermediate_size=24,
        moe_k=2,
        moe_num_experts=4,
        moe_num_shared_experts=1,
        moe_layer_end_index=1,
    ),
    "flex_olmo": _of("flex_olmo", _EXPERTS),
    "glm4_moe": _of("glm4_moe", _ROUTED),
    "granitemoe": _of("granitemoe", _EXPERTS),
    "granitemoeshared": _of("granitemoeshared", _EXPERTS, shared_intermediate_size=24),
    "hunyuan_v1_moe": _of("hunyuan_v1_moe", _EXPERTS, moe_topk=2),
    "jetmoe": _of("jetmoe", _EXPERTS, kv_channels=8, num_key_value_heads=2),
    "longcat_flash": _of(
        "longcat_flash",
        _ROUTED,
        _LATENT,
        num_layers=1,
        num_hidden_layers=2,
        ffn_hidden_size=48,
        expert_ffn_hidden_size=24,
        moe_topk=2,
        zero_expert_num=2,
    ),
    "minimax_m2": _of("minimax_m2", _EXPERTS),
    "mixtral": _of("mixtral", _EXPERTS),
    "mixtral, sliding window": _of("mixtral", _EXPERTS, sliding_window=WINDOW),
    "olmoe": _of("olmoe", _EXPERTS),
    "phimoe": _of("phimoe", _EXPERTS),
    "qwen2_moe": _of("qwen2_moe", _EXPERTS),
    "qwen3_moe": _of("qwen3_moe", _EXPERTS),
    "axk1": _of("axk1", _ROUTED, _LATENT),
    "cohere2_moe": _of("cohere2_moe", _EXPERTS, _SLIDING),
    "deepseek_v32": _of("deepseek_v32", _ROUTED, _LATENT, _INDEXED),
    "deepseek_v4": _of("deepseek_v4", _ROUTED, _LATENT, _INDEXED),
    "exaone_moe": _of("exaone_moe", _ROUTED, _SLIDING, num_shared_experts=1),
    "glm4_moe_lite": _of("glm4_moe_lite", _ROUTED, _LATENT),
    "glm_moe_dsa": _of("glm_moe_dsa", _ROUTED, _LATENT, _INDEXED),
    "granitemoe_swa": _of("granitemoe_swa", _EXPERTS, _SLIDING),
    "hy_v3": _of("hy_v3", _ROUTED),
    "laguna": _of("laguna", _EXPERTS, _SLIDING),
    "mellum": _of("mellum", _EXPERTS, _SLIDING),
    "mimo_v2_flash": _of("mimo_v2_flash", _ROUTED, _SLIDING, v_head_dim=8),
    "solar_open": _of("solar_open", _ROUTED),
    "zaya": _of("zaya", _EXPERTS, router_hidden_size=16, num_experts_per_tok=1),
    # Recurrent states, alone and beside attention
    "bamba": _of("bamba", _MAMBA2, attn_layer_indices=[1]),
    "falcon_h1": _of("falcon_h1", _MAMBA2, mamba_d_ssm=64),
    "falcon_mamba": _of("falcon_mamba", state_size=8),
    "granitemoehybrid": _of(
        "granitemoehybrid",
        _EXPERTS,
        _MAMBA2,
        layer_types=["mamba", "attention"],
        shared_intermediate_size=24,
    ),
    "jamba": _of(
        "jamba",
        _EXPERTS,
        _MAMBA,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
    ),
    "kimi_linear": _of(
        "kimi_linear",
        _ROUTED,
        _LATENT,
        _LINEAR,
        linear_head_dim=8,
        linear_num_heads=4,
        num_shared_experts=1,
        num_experts_per_token=2,
        num_expert_group=1,
    ),
    "lfm2": _of("lfm2", layer_types=["conv", "full_attention"]),
    "lfm2_moe": _of(
        "lfm2_moe", _EXPERTS, layer_types=["conv", "full_attention"], num_dense_layers=1
    ),
    "mamba": _of("mamba", state_size=8),
    "mamba2": _of("mamba2", state_size=8, num_heads=4, head_dim=16, n_groups=1, chunk_size=8),
    "minimax": _of(
        "minimax",
        _EXPERTS,
        layer_types=["linear_attention", "full_attention"],
        block_size=8,
        cached=False,
    ),
    "nemotron_h": _of(
        "nemotron_h",
        _ROUTED,
        layers_block_type=["linear_attention", "moe", "full_attention"],
        ssm_state_size=8,
        mamba_num_heads=4,
        mamba_head_dim=16,
        n_groups=1,
        chunk_size=8,
        use_mamba_kernels=False,
        moe_shared_expert_intermediate_size=24,
        num_hidden_layers=3,
    ),
    "olmo_hybrid": _of("olmo_hybrid", _LINEAR),
    "qwen3_5_text": _of("qwen3_5_text", _LINEAR),
    "qwen3_5_moe_text": _of("qwen3_5_moe_text", _LINEAR, _EXPERTS),
    "qwen3_next": _of("qwen3_next", _LINEAR, _EXPERTS),
    "recurrent_gemma": _of(
        "recurrent_gemma", lru_width=32, attention_window_size=8, num_hidden_layers=3, cached=False
    ),
    "rwkv": _of("rwkv", attention_hidden_size=32, context_length=64, cached=False),
    "xlstm": _of(
        "xlstm",
        hidden_size=64,
        embedding_dim=64,
        num_heads=4,
        num_blocks=2,
        chunk_size=16,
        qk_dim_factor=1.0,
        ffn_round_up_to_multiple_of=8,
        cached=False,
    ),
    "zamba": _of(
        "zamba",
        _MAMBA,
        layer_types=["mamba", "hybrid"],
        n_mamba_heads=2,
        attention_hidden_size=64,
        attention_head_dim=16,
        mamba_dt_rank=4,
        num_key_value_heads=4,
    ),
    "zamba2": _of(
        "zamba2",
        _MAMBA,
        mamba_ngroups=1,
        n_mamba_heads=4,
        mamba_headdim=16,
        chunk_size=8,
        hybrid_layer_ids=[1],
        layers_block_type=["mamba", "hybrid"],
        num_key_value_heads=4,
        num_mem_blocks=1,
        adapter_rank=8,
    ),
    # The text part of models that read images too
    "aya_vision": _with_images(
        "aya_vision",
        {"model_type": "cohere2", **_SLIDING},
        {"model_type": "siglip_vision_model", **_VISION},
    ),
    "gemma3": _with_images(
        "gemma3", {**_SLIDING, "query_pre_attn_scalar": 8}, _VISION, mm_tokens_per_image=4
    ),
    "glm4v": _with_images("glm4v", _SECTIONS, {**_QWEN_VISION, "out_hidden_size": 32}),
    "idefics3": _with_images("idefics3", {"model_type": "llama"}, _VISION),
    "internvl": _with_images(
        "internvl",
        {"model_type": "qwen2"},
        {**_VISION, "image_size": [28, 28], "patch_size": [14, 14]},
    ),
    "llama4": _with_images(
        "llama4",
        {
            **_EXPERTS,
            "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 48,
            "layer_types": ["chunked_attention", "full_attention"],
            "no_rope_layers": [1, 0],
        },
        {**_VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    ),
    "llava": _with_images(
        "llava", {"model_type": "llama"}, {"model_type": "clip_vision_model", **_VISION}
    ),
    "llava_next": _with_images(
        "llava_next",
        {"model_type": "mistral", "sliding_window": WINDOW},
        {"model_type": "clip_vision_model", **_VISION},
    ),
    "mistral3": _with_images(
        "mistral3", {"model_type": "mistral"}, {"model_type": "pixtral", **_VISION}
    ),
    "mllama": _with_images(
        "mllama",
        {"cross_attention_layers": [1]},
        {
            **_VISION,
            "num_global_layers": 1,
            "attention_heads": 2,
            "vision_output_dim": 64,
            "intermediate_layers_indices": [0],
        },
    ),
    "qwen2_vl": _with_images(
        "qwen2_vl", _SECTIONS, {**_QWEN_VISION, "embed_dim": 32, "mlp_ratio": 2}
    ),
    "qwen2_5_vl": _with_images(
        "qwen2_5_vl",
        _SECTIONS,
        {**_QWEN_VISION, "out_hidden_size": 32, "fullatt_block_indexes": [0]},
    ),
    "qwen3_vl": _with_images(
        "qwen3_vl",
        _SECTIONS,
        {
            **_QWEN_VISION,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
    ),
    "qwen3_5": _with_images(
        "qwen3_5",
        {**_LINEAR, **_SECTIONS},
        {
            **_QWEN_VISION,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [],
        },
    ),
    "smolvlm": _with_images("smolvlm", {"model_type": "llama"}, _VISION),
}


@functools.cache
def made(name: str) -> Any:
    """The model of that name in `ARCHITECTURES`, in eval mode."""
    return make(ARCHITECTURES[name])


def make(one: Architecture) -> Any:
    """A model from its config, with large weights, in eval mode."""
    text = {**_SMALL, "vocab_size": len(TOKENIZER())}
    if "text_config" in one.settings:
        settings = {**one.settings, "text_config": {**text, **one.settings["text_config"]}}
    else:
        settings = {**text, **one.settings}
    # Several share a part, which a config may write into.
    settings = copy.deepcopy({key: value for key, value in settings.items() if value is not None})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = hf.AutoConfig.for_model(one.model_type, **settings)
        torch.manual_seed(0)
        model = getattr(hf, one.auto).from_config(config).float().eval()
    return spread(model)


def spread(model: Any) -> Any:
    """The model with layers so strong that what came before matters, as in a trained one, and with
    logits that differ by a few bits: otherwise a mistake would not show."""
    embeddings = {id(model.get_input_embeddings().weight)}
    head = model.get_output_embeddings()
    if head is not None:
        embeddings.add(id(head.weight))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1 and id(weight) not in embeddings:
                weight.mul_(6.0)
        if head is not None:
            ids = torch.arange(3, 63).reshape(5, 12)
            head.weight.mul_(3.0 / model(input_ids=ids).logits.std())
    return model


@functools.cache
def tree() -> TokenTree:
    """The token tree of `FORMAT`."""
    return TokenTree(FORMAT, TOKENIZER())


@dataclass(frozen=True)
class Comparison:
    """What came of `compare`.

    Attributes:
        model_class: the model's class.
        cached: whether the decoder uses the model's cache.
        joined: whether it runs rows of several caches together.
        difference: the largest one in bits between the cost of a token by the decoder and by a
            full forward of the same tokens.
        told: what the decoder warned of.
    """

    model_class: str
    cached: bool
    joined: bool
    difference: float
    told: str


def compare(model: Any, seed: int = 0) -> Comparison:
    """Probe a model as a measurement does, grow random branches with rows swapped, repeated, left
    out and joined from chunks, and compare all their costs with plain forwards."""
    draw = np.random.default_rng(seed)
    paths = tree().paths(FORMAT.sample(4, seed=seed))
    with undisturbed(model), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decoder = Decoder(model, tree().prompt, tree().token_ids, batch_size=4)
        decoder.probe(paths)
        branches, worst = decoder.root(), _difference(model, decoder.root())
        for _ in range(5):
            n = 7 if decoder.joins else decoder.batch_size
            rows = draw.integers(len(branches.paths), size=n)
            columns = draw.integers(len(tree().token_ids), size=n)
            parts = [part for _, part in decoder.step(branches, rows, columns)]
            branches = parts[0]
            if len(parts) > 1:
                branches = together([(part, np.arange(len(part.paths))) for part in parts])
                branches.bits = np.concatenate([part.bits for part in parts])
            worst = max(worst, _difference(model, branches))
    return Comparison(
        type(model).__name__,
        decoder.cached,
        decoder.cached and decoder.joins,
        worst,
        " ".join(str(one.message) for one in caught if one.category is UserWarning),
    )


def _difference(model: Any, branches: Any) -> float:
    """The largest difference in bits to a plain forward of the same tokens."""
    prompt = np.tile(tree().prompt, (len(branches.paths), 1))
    ids = np.concatenate([prompt, tree().token_ids[branches.paths]], axis=1)
    logits = logits_of(model(input_ids=torch.tensor(ids)))[:, -1].double()
    bits = -torch.log_softmax(logits, dim=-1).numpy()[:, tree().token_ids] / math.log(2)
    return float(np.abs(branches.bits - bits).max())


def logits_of(output: Any) -> torch.Tensor:
    """Of a model of transformers, or of one of somebody's own that gives something plainer."""
    if isinstance(output, torch.Tensor):
        return output
    return output[0] if isinstance(output, tuple) else output["logits"]


def table(compared: dict[str, Comparison]) -> str:
    """What came of comparisons, by architecture, as Markdown."""
    lines = [
        "| architecture | class | its cache | largest difference, bits |",
        "|---|---|---|---:|",
    ]
    for name, one in compared.items():
        used = "used, rows joined" if one.joined else "used" if one.cached else "not used"
        if not one.cached:
            why = one.told.partition("scoring with its cache ")[2].partition(";")[0]
            used += f": {why.removeprefix('is not possible, for it ')}"
        lines.append(f"| {name} | `{one.model_class}` | {used} | {one.difference:.0e} |")
    return "\n".join(lines)
