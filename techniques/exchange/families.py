"""Hugging Face's config.json <-> the shape of a GPT. weights.py has the names of the tensors.

    gpt2      GPT-2: LayerNorm, learned positions, GELU, biases
    llama     Llama 2 and 3, SmolLM2, TinyLlama: RMSNorm, RoPE, SwiGLU
    mistral   the same, and a token attends to the last sliding_window tokens only
    qwen2     the same as llama, with biases of q, k and v
    qwen3     the same as llama, with learned norms of q and k, and heads of any size

(github.com/huggingface/transformers: src/transformers/models/*/configuration_*.py.)
"""

from config import require
from model import GPTConfig

CLASSES = {"gpt2": "GPT2", "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
KNOWN = "gpt2, llama (Llama 2 and 3, SmolLM2, TinyLlama), mistral, qwen2, qwen3"
GELUS = {"gelu": "gelu_new", "gelu_erf": "gelu"}  # ours: theirs
SCALINGS = {  # kind of RoPE scaling: the numbers that GPTConfig's rope_scaling has after it
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def number(
    config: dict, name: str, default=None, kind: type = int, where: str = "config.json"
) -> int | float:
    """A number above 0 from a config.json. ValueError if it is missing, of another type, or too large."""
    value = config.get(name)
    value = default if value is None else value
    fits = type(value) in (int, kind) and 0 < value < 2**31
    require(fits, f"{where}: {name}={str(value)[:40]}; expected a number above 0")
    return kind(value)


def shape_of(config: dict) -> GPTConfig:
    """Hugging Face's config.json -> the shape of our model. ValueError for what it cannot do, by name."""
    family = str(config.get("model_type"))
    require(family in CLASSES, f"config.json: model_type={family[:40]!r} is not read; these are: {KNOWN}")
    only = {"quantization_config": None, "partial_rotary_factor": 1, "add_cross_attention": False}
    only |= {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
    for name, value in only.items():
        found = config.get(name, value)
        require(found == value, f"config.json: {name}={str(found)[:40]} is not read; expected {value}")
    activation = config.get("activation_function" if family == "gpt2" else "hidden_act")
    known = ("gelu_new", "gelu_pytorch_tanh", "gelu") if family == "gpt2" else ("silu", "swish")
    require(activation in (None, *known), f"config.json: activation {activation!r:.40} is not {known[0]}")
    tied = int(config.get("tie_word_embeddings", family == "gpt2") is True)
    if family == "gpt2":
        width, eps = number(config, "n_embd"), number(config, "layer_norm_epsilon", 1e-5, float)
        return GPTConfig(
            number(config, "vocab_size"), number(config, "n_positions"), number(config, "n_layer"),
            number(config, "n_head"), width, arch="gpt2", bias=True, norm_eps=eps,
            n_ff=number(config, "n_inner", 4 * width), tie_weights=tied,
            activation="gelu_erf" if activation == "gelu" else "gelu",
        )  # fmt: skip
    heads, width = number(config, "num_attention_heads"), number(config, "hidden_size")
    theta, scaling = rope_of(config)
    biases = {"llama": ("attention_bias", "mlp_bias"), "qwen3": ("attention_bias",)}.get(family, ())
    bias = any(config.get(name) is True for name in biases)
    return GPTConfig(
        number(config, "vocab_size"), number(config, "max_position_embeddings"),
        number(config, "num_hidden_layers"), heads, width, arch="llama", bias=bias,
        qkv_bias=1 if family == "qwen2" else -1, qk_norm=2 if family == "qwen3" else 0,
        n_kv_head=number(config, "num_key_value_heads", heads), n_ff=number(config, "intermediate_size"),
        head_size=number(config, "head_dim", 128 if family == "qwen3" else max(1, width // heads)),
        norm_eps=number(config, "rms_norm_eps", 1e-6, float), rope_theta=theta, rope_scaling=scaling,
        window=window_of(config), tie_weights=tied,
    )  # fmt: skip


def rope_of(config: dict) -> tuple[float, str]:
    """(base, scaling) of the rotary positions, as GPTConfig has them. Newer files say rope_parameters."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    require(isinstance(rope, dict), "config.json: rope_scaling is no table; expected rope_type, factor, ...")
    theta = number({"rope_theta": rope.get("rope_theta", config.get("rope_theta"))}, "rope_theta", 1e4, float)
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    if kind == "default":
        return theta, ""
    known = ", ".join(SCALINGS)
    require(kind in SCALINGS, f"config.json: RoPE scaling {kind[:40]!r} is not read; these are: {known}")
    values = [f"{number(rope, name, kind=float):.17g}" for name in SCALINGS[kind]]
    return theta, " ".join([kind, *values])


def window_of(config: dict) -> int:
    """The sliding window of all layers, 0 for none. ValueError where only some layers have one."""
    family, n = config["model_type"], number(config, "num_hidden_layers")
    first = n  # the layers from this one on have it
    if family == "mistral":
        first = 0
    elif family != "llama" and config.get("use_sliding_window") is True:
        first = number(config, "max_window_layers", 28) if config.get("max_window_layers") != 0 else 0
    sliding = [i >= first for i in range(min(n, first + 1))] if first < n else [False]
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and family != "llama":
        sliding = [kind == "sliding_attention" for kind in kinds]
    same = len(set(sliding)) == 1
    require(same, "config.json: some layers have a sliding window and some do not; all or none is read")
    if not sliding[0] or ("sliding_window" in config and config["sliding_window"] is None):
        return 0
    return number(config, "sliding_window", 4096)


def family_of(shape: GPTConfig) -> str:
    """The stock architecture of a model. ValueError that names what no stock architecture has."""
    stock = {"token_shift": 0, "logit_cap": 0.0}
    if shape.norm == "layernorm":
        family, size = "gpt2", shape.n_embd // shape.n_head
        stock |= {"position": "learned", "qk_norm": 0, "window": 0, "head_size": size}
        stock["activation"] = shape.activation if shape.activation in GELUS else "gelu"
        stock |= {"n_kv_head": shape.n_head, "qkv_bias": int(shape.bias)}
    else:
        stock |= {"position": "rope", "activation": "swiglu", "qk_norm": 0}
        family = "mistral" if shape.window else "llama"
        if shape.qk_norm:
            family = "qwen3"
            stock |= {"qk_norm": 2, "bias": False, "qkv_bias": 0}
        elif shape.qkv_bias != shape.bias:
            family = "qwen2"
            stock |= {"bias": False}
        elif shape.window:
            stock |= {"bias": False}
    found = {name: getattr(shape, name) for name in stock}
    strange = [f"{name}={value}" for name, value in found.items() if value != stock[name]]
    require(
        not strange,
        f"arch={shape.arch} with {', '.join(strange)} is no architecture of other programs; "
        "train with --arch=llama (or gpt2), and export that run",
    )
    return family


def config_of(shape: GPTConfig, family: str) -> dict:
    """The shape of our model -> Hugging Face's config.json, with the keys that all versions of it read."""
    config = {"model_type": family, "architectures": [f"{CLASSES[family]}ForCausalLM"]}
    config |= {"vocab_size": shape.vocab_size, "tie_word_embeddings": bool(shape.tie_weights)}
    if family == "gpt2":
        config["architectures"] = ["GPT2LMHeadModel"]
        config |= {"n_positions": shape.block_size, "n_ctx": shape.block_size, "n_layer": shape.n_layer}
        config |= {"n_head": shape.n_head, "n_embd": shape.n_embd, "n_inner": shape.n_ff}
        return config | {"layer_norm_epsilon": shape.norm_eps, "activation_function": GELUS[shape.activation]}
    config |= {"hidden_size": shape.n_embd, "intermediate_size": shape.n_ff, "head_dim": shape.head_size}
    config |= {"num_hidden_layers": shape.n_layer, "num_attention_heads": shape.n_head}
    config |= {"num_key_value_heads": shape.n_kv_head, "max_position_embeddings": shape.block_size}
    config |= {"rms_norm_eps": shape.norm_eps, "hidden_act": "silu", "rope_theta": shape.rope_theta}
    config |= {"attention_bias": shape.bias, "mlp_bias": shape.bias, "rope_scaling": None}
    if shape.rope_scaling:
        kind, *values = shape.rope_scaling.split()
        rope = dict(zip(SCALINGS[kind], map(float, values), strict=True))
        config["rope_scaling"] = {"rope_type": kind, "type": kind, **rope}
        if kind == "llama3":
            config["rope_scaling"]["original_max_position_embeddings"] = int(float(values[-1]))
    if family in ("mistral", "qwen2", "qwen3"):
        config["sliding_window"] = shape.window or None
    if family.startswith("qwen"):
        kind = "sliding_attention" if shape.window else "full_attention"
        config |= {"use_sliding_window": shape.window > 0, "max_window_layers": 0}
        config["layer_types"] = [kind] * shape.n_layer
    return config
