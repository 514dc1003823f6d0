"""GGUF's names of tensors <-> Hugging Face's, and the order of their rows, which is not always the same.

    llama   the rows of q and k, in each head: GGUF rotates neighbours, Hugging Face a row of either half (see
            model.rotate). Hugging Face's row i is GGUF's row 2 i, and row i + hs/2 is row 2 i + 1
    gpt2    GGUF has matrices as (out, in), Hugging Face's GPT-2 as (in, out)

(github.com/ggml-org/llama.cpp: gguf-py/gguf/constants.py, conversion/llama.py and gpt2.py.)
"""

import re
from pathlib import Path

from torch import Tensor

from config import require

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}
TENSORS = {  # without .weight or .bias
    "token_embd": "model.embed_tokens",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}
GPT2_TENSORS = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "blk.{}.attn_norm": "transformer.h.{}.ln_1",
    "blk.{}.attn_qkv": "transformer.h.{}.attn.c_attn",
    "blk.{}.attn_output": "transformer.h.{}.attn.c_proj",
    "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
    "blk.{}.ffn_up": "transformer.h.{}.mlp.c_fc",
    "blk.{}.ffn_down": "transformer.h.{}.mlp.c_proj",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}


def architecture(config: dict) -> str:
    """GGUF's architecture for a model_type of Hugging Face. ValueError if it has none here."""
    kind = config["model_type"]
    require(kind in ARCHITECTURES, f"model_type={kind} is no GGUF of ours; choose {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[kind]


def to_hugging_face(name: str, config: dict, path: Path) -> str:
    """blk.0.attn_q.weight -> model.layers.0.self_attn.q_proj.weight. ValueError for an unknown name."""
    new = renamed(name, GPT2_TENSORS if config["model_type"] == "gpt2" else TENSORS)
    require(new, f"{path} has a tensor {name}, which tinylm's {config['model_type']} has no place for")
    return new


def to_gguf(name: str, config: dict) -> str:
    """model.layers.0.self_attn.q_proj.weight -> blk.0.attn_q.weight. ValueError for an unknown name."""
    if name == "rope_freqs.weight":
        return name
    table = GPT2_TENSORS if architecture(config) == "gpt2" else TENSORS
    new = renamed(name, {theirs: ours for ours, theirs in table.items()})
    require(new, f"GGUF has no name for the tensor {name} of a {config['model_type']}")
    return new


def renamed(name: str, table: dict[str, str]) -> str:
    """The name's translation by a table like TENSORS; "" if it has none."""
    stem, _, last = name.rpartition(".")
    number = re.search(r"\.([0-9]+)\.", stem)
    if number:
        stem = stem.replace(number[0], ".{}.", 1)
    if stem not in table or last not in ("weight", "bias"):
        return ""
    return f"{table[stem].format(number and number[1])}.{last}"


def is_transposed(name: str) -> bool:
    """Whether Hugging Face keeps this matrix, of GPT-2, as (in, out)."""
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def from_gguf(t: Tensor, name: str, config: dict) -> Tensor:
    """A tensor as GGUF has it -> as Hugging Face has it. name: Hugging Face's."""
    if is_transposed(name):
        return t.T.contiguous()
    heads = rotated_heads(name, config)
    if heads:
        require(t.shape[0] % (2 * heads) == 0, f"{name} has {t.shape[0]} rows, not pairs for {heads} heads")
        return t.reshape(heads, -1, 2, *t.shape[1:]).transpose(1, 2).reshape(t.shape)
    return t


def to_gguf_order(t: Tensor, name: str, config: dict) -> Tensor:
    """A tensor as Hugging Face has it -> as GGUF has it. name: Hugging Face's."""
    if is_transposed(name):
        return t.T
    heads = rotated_heads(name, config)
    if heads:
        return t.reshape(heads, 2, -1, *t.shape[1:]).transpose(1, 2).reshape(t.shape)
    return t


def rotated_heads(name: str, config: dict) -> int:
    """How many heads the rows of a tensor belong to, if GGUF has them in another order, else 0."""
    if architecture(config) != "llama" or ".self_attn." not in name:
        return 0
    part = name.split(".")[-2]
    key = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(part)
    return config.get(key) or config["num_attention_heads"] if key else 0
