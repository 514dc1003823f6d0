"""A model's shape: complete() fills in what model.py's GPTConfig leaves to its architecture; checks it."""

import math

from config import require

CHOICES = dict(
    norm=("layernorm", "rmsnorm"), position=("learned", "rope"),
    activation=("gelu_erf", "gelu", "relu2", "swiglu"), qk_norm=(0, 1, 2),
    token_shift=(0, 1), tie_weights=(0, 1), zero_init=(0, 1),
)  # fmt: skip
ROPE_SCALINGS = {"linear": "FACTOR", "llama3": "FACTOR LOW HIGH ORIGINAL"}  # kind: the numbers that follow it


def complete(config, arch: str, archs: dict[str, dict]) -> None:
    """Fill in what is not given, and check the result: see GPTConfig. archs: model.py's ARCHS."""
    require(arch in archs, f"unknown arch={arch!r}; choose one of {', '.join(archs)}")
    switches = archs[arch]
    for name, choices in CHOICES.items():
        if getattr(config, name) in ("", -1):
            setattr(config, name, switches.get(name, 0))
        value = getattr(config, name)
        require(value in choices, f"unknown {name}={value!r}; choose one of {str(choices)[1:-1]}")
    if config.logit_cap == -1:
        config.logit_cap = float(switches.get("logit_cap", 0))
    if config.qkv_bias == -1:
        config.qkv_bias = int(config.bias)
    shared = 2 if arch == "llama" and config.n_head % 2 == 0 else 1  # query heads to a key/value head
    config.n_kv_head = config.n_kv_head or config.n_head // shared
    wide = 8 * max(1, round(config.n_embd / 3)) if config.activation == "swiglu" else 4 * config.n_embd
    config.n_ff = config.n_ff or wide
    check_shape(config)
    config.head_size = config.head_size or config.n_embd // config.n_head


def check_shape(config) -> None:
    """ValueError for a shape that cannot be built; where a number decides, it names the nearest that can."""
    for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_kv_head", "n_ff"):
        require(getattr(config, name) >= 1, f"{name}={getattr(config, name)} must be at least 1")
    pair = 2 if config.position == "rope" else 1  # rope turns pairs, so each head needs an even size
    groups = [("n_head", "n_kv_head", 1)]
    if config.head_size == 0:  # n_embd is divided among the heads
        nearest = pair * config.n_head * max(1, round(config.n_embd / (pair * config.n_head)))
        odd = config.n_embd % pair
        require(not odd, f"n_embd={config.n_embd} is odd, rope needs pairs; {nearest} works")
        groups.insert(0, ("n_embd", "n_head", pair))
    for whole, part, unit in groups:
        a, b = getattr(config, whole), getattr(config, part)
        nearest = min((d for d in range(1, a + 1) if a % (d * unit) == 0), key=lambda d: abs(d - b))
        how = " into even sizes for rope" if a % b == 0 else ""
        require(a % (b * unit) == 0, f"{whole}={a} is not divisible by {part}={b}{how}; {nearest} works")
    size = config.head_size
    require(size >= 0, f"head_size={size} must be at least 1, or 0 for n_embd / n_head")
    require(size % pair == 0, f"head_size={size} is odd, rope needs pairs; {size + 1} works")
    require(config.qkv_bias in (0, 1), f"unknown qkv_bias={config.qkv_bias}; choose one of -1, 0, 1")
    require(0 <= config.dropout < 1, f"dropout={config.dropout} must be at least 0 and below 1")
    require(0 < config.norm_eps < 1, f"norm_eps={config.norm_eps} must be above 0 and below 1; 1e-5 is usual")
    require(config.window >= 0, f"window={config.window} must be at least 1, or 0 for all earlier tokens")
    require(config.rope_theta > 0, f"rope_theta={config.rope_theta} must be above 0; 10000.0 is usual")
    require(config.logit_cap >= 0, f"logit_cap={config.logit_cap} must be above 0, or 0 to switch it off")
    check_scaling(config.rope_scaling)


def check_scaling(scaling: str) -> None:
    """ValueError unless this is "", or a kind of RoPE scaling and its numbers."""
    kind, *numbers = scaling.split() or [""]
    forms = ", ".join(f"'{name} {names}'" for name, names in ROPE_SCALINGS.items())
    expected = (
        f"rope_scaling={scaling!r} is not understood; expected '', or numbers above 0 in one of {forms}"
    )
    require(kind in ("", *ROPE_SCALINGS), expected)
    require(len(numbers) == len(ROPE_SCALINGS.get(kind, "").split()), expected)
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        values = [0.0]
    require(all(0 < value < math.inf for value in values), expected)
    if kind == "llama3":
        require(values[1] < values[2], f"rope_scaling={scaling!r}: LOW must be below HIGH; 1 and 4 are usual")
