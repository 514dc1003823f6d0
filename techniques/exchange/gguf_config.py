"""GGUF's metadata <-> the keys of Hugging Face's config.json.

Architectures: llama (Llama, SmolLM2, and Mistral, whose sliding window is a key), qwen2, qwen3, gpt2. Llama
3.1's rope scaling is no key there, but a tensor, rope_freqs.weight: what each frequency is divided by.
(github.com/ggml-org/llama.cpp: gguf-py/gguf/constants.py and conversion/llama.py.)
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import require
from techniques.exchange.gguf_header import Entry
from techniques.exchange.gguf_names import ARCHITECTURES, architecture

KEYS = {  # GGUF's key after "llama.", and Hugging Face's
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "attention.key_length": "head_dim",
}
GPT2_KEYS = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
FRACTIONS = (  # the keys of float32; all others are whole numbers
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
    "rope.freq_base",
    "rope.scaling.factor",
)


def config_of(metadata: dict, entries: dict[str, Entry], path: Path) -> dict:
    """A file's metadata -> the keys of config.json. entries: the tensors, under GGUF's names.

    ValueError for an unknown architecture, a missing or impossible number, and what tinylm's model cannot do.
    """
    arch = metadata.get("general.architecture")
    known = isinstance(arch, str) and arch in ARCHITECTURES.values()
    require(known, f"{path} has the architecture {arch!r}; read are llama (and Mistral), qwen2, qwen3, gpt2")
    own = {key.removeprefix(f"{arch}."): metadata[key] for key in metadata if key.startswith(f"{arch}.")}
    parts = metadata.get("split.count") or 1
    join = "join them: llama-gguf-split --merge FIRST.gguf WHOLE.gguf"
    require(parts == 1, f"{path} is one of {str(parts)[:9]} files of a model; {join}")
    require(
        "token_embd.weight" in entries, f"{path} has no embedding: a vocabulary, or an adapter; get a model"
    )
    config = {"model_type": arch, "vocab_size": entries["token_embd.weight"].shape[0]}
    config["tie_word_embeddings"] = "output.weight" not in entries
    keys = GPT2_KEYS if arch == "gpt2" else KEYS
    own = {"rope.freq_base": 10000.0, "attention.head_count_kv": own.get("attention.head_count"), **own}
    for key, name in keys.items():
        if key in own or key != "attention.key_length":
            config[name] = number(own, key, path)
    if arch == "gpt2":
        return config | {"activation_function": "gelu_new"}
    config |= {"hidden_act": "silu", "attention_bias": "blk.0.attn_q.bias" in entries}
    config["mlp_bias"] = "blk.0.ffn_up.bias" in entries
    if arch == "llama" and own.get("attention.sliding_window"):
        config |= {"model_type": "mistral", "sliding_window": number(own, "attention.sliding_window", path)}
    kind = own.get("rope.scaling.type", "linear")  # llama.cpp's defaults
    own["rope.scaling.factor"] = own.get("rope.scaling.factor") or own.get("rope.scale_linear") or 1.0
    factor = number(own, "rope.scaling.factor", path)
    if kind == "linear" and factor != 1:
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    config["head_dim"] = size = head_size(config)
    rotated, values = own.get("rope.dimension_count", size), own.get("attention.value_length", size)
    for cannot, what in (
        (own.get("expert_count"), "a mixture of experts"),
        (kind not in ("none", "linear"), f"rope scaling of type {kind}"),
        (rotated != size, f"heads of {size} channels, of which {rotated} are rotated"),
        (values != size, f"values of {values} channels and keys of {size}"),
        (own.get("attention.causal") is False, "attention that looks ahead"),
    ):
        require(not cannot, f"{path} has {what}, which tinylm's model cannot do; choose another model")
    return config


def number(own: dict, key: str, path: Path) -> int | float:
    """A number of the metadata that must be there, above 0 and finite: whole, or float32 for FRACTIONS."""
    value = own.get(key)
    require(value is not None, f"{path} is no complete model: {key} is missing; get another file of it")
    kind = float if key in FRACTIONS else int
    fits = type(value) is kind and 0 < value < (math.inf if kind is float else 2**31)
    require(fits, f"{path} is damaged: {key}={str(value)[:40]}; expected a number above 0")
    return float(str(np.float32(value))) if kind is float else value  # 1e-05, not 9.999999747378752e-06


def metadata_of(config: dict, entries: dict[str, Entry], tokenizer: dict) -> dict:
    """The keys of config.json -> a file's metadata. entries: the tensors, under GGUF's names.

    ValueError for a model_type or a rope scaling that GGUF has no key for, or a tokenizer of another size.
    """
    arch, gpt2 = architecture(config), config["model_type"] == "gpt2"
    rows, tokens = entries["token_embd.weight"].shape[0], tokenizer.get("tokenizer.ggml.tokens", [])
    fits = len(tokens) in (0, rows)
    require(fits, f"the tokenizer has {len(tokens):,} tokens, the model {rows:,}; llama.cpp wants as many")
    metadata = {"general.architecture": arch, "general.name": config["model_type"]}
    theta, scaling = rope_of(config)
    config = {**config, "rope_theta": theta}
    for key, name in (GPT2_KEYS if gpt2 else KEYS).items():
        if config.get(name) is not None:
            metadata[f"{arch}.{key}"] = float(config[name]) if key in FRACTIONS else config[name]
    metadata[f"{arch}.vocab_size"] = rows
    if gpt2:
        return {f"{arch}.feed_forward_length": 4 * config["n_embd"], **metadata}
    metadata[f"{arch}.rope.dimension_count"] = head_size(config)
    metadata[f"{arch}.attention.key_length"] = head_size(config)
    metadata[f"{arch}.attention.value_length"] = head_size(config)
    if config["model_type"] == "mistral" and config.get("sliding_window"):  # llama.cpp does not heed it
        metadata[f"{arch}.attention.sliding_window"] = config["sliding_window"]
    if scaling["rope_type"] == "linear":
        metadata[f"{arch}.rope.scaling.type"] = "linear"
        metadata[f"{arch}.rope.scaling.factor"] = float(scaling["factor"])
    if scaling["rope_type"] == "llama3":
        metadata[f"{arch}.rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    return metadata


def head_size(config: dict) -> int:
    """Channels of a head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def rope_of(config: dict) -> tuple[float, dict]:
    """(base, scaling) of the rotary positions, from either place where Hugging Face's configs have them."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = {"rope_type": scaling.get("type", "default"), **scaling}
    theta = scaling.get("rope_theta", config.get("rope_theta", 10000.0))
    known = scaling["rope_type"] in ("default", "linear", "llama3")
    require(known, f"rope scaling {scaling['rope_type']} is not written as GGUF; expected linear or llama3")
    return theta, scaling


def llama3_factors(theta: float, size: int, scaling: dict) -> Tensor:
    """What Llama 3.1 divides each frequency of a head by: float32 (hs/2).

    1 for waves that turn more than `high` times in the original context, `factor` for those that turn fewer
    than `low` times, and in between 1 / (a mean of 1 and 1 / factor).
    """
    frequencies = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - share) / scaling["factor"] + share)).float()


def scaling_of(factors: Tensor, config: dict, original: int, path: Path) -> dict:
    """The rope scaling that rope_freqs.weight stands for. ValueError if it is not Llama 3's.

    original: the context length before it was stretched; Llama 3.1, 3.2 and 3.3 have 8,192.
    """
    scaling = {"rope_type": "llama3", "factor": factors.max().item(), "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": original}
    expected = llama3_factors(config["rope_theta"], head_size(config), scaling)
    same = factors.shape == expected.shape and torch.allclose(factors.float(), expected, rtol=1e-4)
    require(same, f"{path} has a rope_freqs.weight that is not Llama 3's; tinylm does not know that scaling")
    return scaling


def extra_tensors(config: dict) -> list[tuple[str, tuple[int, ...], Tensor]]:
    """Tensors that only GGUF has, as write() takes them: the rope scaling of Llama 3.1."""
    if config["model_type"] == "gpt2" or rope_of(config)[1]["rope_type"] != "llama3":
        return []
    theta, scaling = rope_of(config)
    factors = llama3_factors(theta, head_size(config), scaling)
    return [("rope_freqs.weight", tuple(factors.shape), factors)]
