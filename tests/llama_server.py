"""A real llama.cpp server on this machine, and files of weights for it.

Run as a program it serves a GGUF file until it is ended. A tiny model of the tests is written as
GGUF in single precision, so that what the server says can be held against transformers.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import requests

if TYPE_CHECKING:  # the server itself needs none of it, and would start far later
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, path: Path, split: str = "qwen2"
) -> Path:
    """A Llama with a byte-level BPE tokenizer as one file.

    Args:
        split: how the tokenizer splits texts before it merges, in llama.cpp's words; "qwen2" takes
            digits one by one.
    """
    import gguf

    config, backend = model.config, tokenizer.backend_tokenizer
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    special = set(tokenizer.all_special_ids)
    kind = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types(
        [kind.CONTROL if i in special else kind.NORMAL for i in range(len(tokenizer))]
    )
    import json

    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
    for name, tensor in model.state_dict().items():
        data = tensor.float().numpy()
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        if name.startswith("model.layers."):
            part = rest.removesuffix(".weight")
            if part in ("self_attn.q_proj", "self_attn.k_proj"):  # its pairs are neighbours
                heads = config.num_attention_heads
                heads = config.num_key_value_heads if "k_proj" in part else heads
                data = data.reshape(heads, 2, -1, data.shape[-1]).swapaxes(1, 2).reshape(data.shape)
            written = f"blk.{layer}.{_NAMES[part]}.weight"
        else:
            written = {
                "model.embed_tokens.weight": "token_embd.weight",
                "model.norm.weight": "output_norm.weight",
                "lm_head.weight": "output.weight",
            }[name]
        writer.add_tensor(written, data.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def start(path: Path, port: int = 0) -> tuple[subprocess.Popen[str], str]:
    """A server of its own process, and its address once it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.llama_server", str(path), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url.startswith("http"), "the server has not started"
    while requests.get(f"{url}/health", timeout=60).status_code != 200:
        time.sleep(0.05)
    return process, f"{url}/v1"


def end(process: subprocess.Popen[str]) -> None:
    """Kill it, as a crash would."""
    process.kill()
    process.communicate()


@contextmanager
def llama_server(path: Path) -> Iterator[str]:
    """The address of a server that is there until the block ends."""
    process, url = start(path)
    try:
        yield url
    finally:
        end(process)


if __name__ == "__main__":
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.port = sys.argv[1], int(sys.argv[2])
    params.hostnames = ["127.0.0.1"]
    params.n_ctx, params.n_parallel = 1024, 4
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.ui = params.warmup = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(60)
