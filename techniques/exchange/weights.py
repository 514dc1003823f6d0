"""Which tensor of a Hugging Face model is which parameter of a GPT, both ways. families.py has the shapes.

GPT-2 keeps q, k and v as thirds of one matrix, c_attn, and its matrices as (in, out); Llama and those like it
have one tensor a parameter. nanoGPT's ckpt.pt has GPT-2's names, with matrices as (out, in).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from config import require
from model import GPT, GPTConfig

LLAMA = {
    "wte": "model.embed_tokens", "norm": "model.norm", "head": "lm_head",
    "attn_norm": "model.layers.{}.input_layernorm", "mlp_norm": "model.layers.{}.post_attention_layernorm",
    "attn.q": "model.layers.{}.self_attn.q_proj", "attn.k": "model.layers.{}.self_attn.k_proj",
    "attn.v": "model.layers.{}.self_attn.v_proj", "attn.o": "model.layers.{}.self_attn.o_proj",
    "attn.q_norm": "model.layers.{}.self_attn.q_norm", "attn.k_norm": "model.layers.{}.self_attn.k_norm",
    "mlp.gate": "model.layers.{}.mlp.gate_proj", "mlp.up": "model.layers.{}.mlp.up_proj",
    "mlp.down": "model.layers.{}.mlp.down_proj",
}  # fmt: skip
GPT2 = {
    "wte": "transformer.wte", "wpe": "transformer.wpe", "norm": "transformer.ln_f", "head": "lm_head",
    "attn_norm": "transformer.h.{}.ln_1", "mlp_norm": "transformer.h.{}.ln_2",
    "attn.q": "transformer.h.{}.attn.c_attn", "attn.k": "transformer.h.{}.attn.c_attn",
    "attn.v": "transformer.h.{}.attn.c_attn", "attn.o": "transformer.h.{}.attn.c_proj",
    "mlp.up": "transformer.h.{}.mlp.c_fc", "mlp.down": "transformer.h.{}.mlp.c_proj",
}  # fmt: skip
THIRDS = {"attn.q": 0, "attn.k": 1, "attn.v": 2}  # of c_attn
LEFTOVERS = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
)  # computed, and yet saved by old files


class Source(NamedTuple):
    """Where a parameter is in a file: the tensor's name, which third of its rows (-1: all), how it lies."""

    name: str
    third: int
    transposed: bool


def source_of(ours: str, family: str) -> Source:
    """The source of a parameter: GPT-2's blocks.0.attn.q.weight is a third of h.0.attn.c_attn.weight."""
    module, _, kind = ours.rpartition(".")
    layer = 0
    if module.startswith("blocks."):
        _, layer, module = module.split(".", 2)
    fused = family in ("gpt2", "nanogpt")
    name = (GPT2 if fused else LLAMA)[module].format(layer)
    transposed = family == "gpt2" and kind == "weight" and module.startswith(("attn.", "mlp."))
    return Source(f"{name}.{kind}", THIRDS[module] if fused and module in THIRDS else -1, transposed)


def shape_in_file(shape: tuple[int, ...], source: Source) -> tuple[int, ...]:
    """A parameter's shape -> that of the tensor that holds it."""
    rows, *rest = shape
    shape = (3 * rows if source.third >= 0 else rows, *rest)
    return shape[::-1] if source.transposed else shape


# ---- in
def weights_of(shape: GPTConfig, tensors: Mapping[str, Tensor], family: str) -> tuple[dict, list[str]]:
    """(a GPT's state_dict in float32, lines about what was left over or is missing).

    tensors: under the family's names, with tensors.shape(name), each made when it is asked for. All shapes
    are compared before anything is allocated; then one tensor after the other is made, copied and dropped:
    memory holds the result and one tensor. ValueError for a tensor that is missing, of another shape, or not
    finite. Missing biases are zeros.
    """
    require(shape.n_layer <= len(tensors), f"the model has {len(tensors)} tensors for {shape.n_layer} layers")
    largest = max(max(tensors.shape(name), default=1) for name in tensors)
    for name in ("vocab_size", "n_embd", "n_ff", "n_head", "n_kv_head", "head_size"):
        value = getattr(shape, name)
        require(value <= largest, f"no tensor is as large as the config's {name}={value}")
    with torch.device("meta"):
        parameters = dict(GPT(shape).named_parameters())  # a tied head goes by the name of wte
    parts, zeros = {}, []
    for ours, p in parameters.items():
        source = source_of(ours, family)
        name = next((each for each in (source.name, without_prefix(source.name)) if each in tensors), "")
        if not name and ours.endswith(".bias"):
            zeros.append(ours)
            continue
        require(name != "", f"{source.name} is missing; it is {ours} here")
        found, expected = tuple(tensors.shape(name)), shape_in_file(tuple(p.shape), source)
        require(found == expected, f"{name} has the shape {found}; the config makes that {expected}")
        parts.setdefault(name, []).append((ours, source))
    state = {ours: torch.zeros(p.shape) for ours, p in parameters.items()}
    for name, places in parts.items():
        t = tensors[name]
        least, most = t.aminmax()  # NaN if there is one; isfinite() would take twice the tensor's memory
        require(math.isfinite(least) and math.isfinite(most), f"{name} holds NaN or infinity")
        for ours, source in places:
            t_here = t.T if source.transposed else t
            state[ours].copy_(t_here.chunk(3)[source.third] if source.third >= 0 else t_here)
    notes = [f"not in the source, so zero: {shorten(zeros)}"] if zeros else []
    unused = [name for name in tensors if name not in parts and not name.endswith(LEFTOVERS)]
    if shape.tie_weights:
        state["head.weight"] = state["wte.weight"]
        if "lm_head.weight" in unused:
            unused.remove("lm_head.weight")
            if not torch.equal(tensors["lm_head.weight"].float(), state["wte.weight"]):
                notes.append("not used: lm_head.weight, which differs from the embedding that it is tied to")
    if unused:
        notes.append(f"not used, because this model has no place for it: {shorten(unused)}")
    return state, notes


def without_prefix(name: str) -> str:
    """GPT-2's first files say h.0.ln_1.weight, those of GPT2LMHeadModel transformer.h.0.ln_1.weight."""
    return name.removeprefix("transformer.").removeprefix("model.")


def shorten(names: list[str]) -> str:
    """At most four names, and how many there are."""
    more = f", ... ({len(names)} in all)" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


# ---- out
def tensors_of(
    state: dict[str, Tensor], shape: GPTConfig, family: str
) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Tensor]]]:
    """A GPT's state_dict -> (name, shape, function that makes it) of each tensor of the family's files.

    Biases that GPT-2 has and this model does not are zeros.
    """
    if family == "gpt2":
        shape = dataclasses.replace(shape, bias=True, qkv_bias=1)
    with torch.device("meta"):
        parameters = dict(GPT(shape).named_parameters())
    parts = {}
    for ours in parameters:
        parts.setdefault(source_of(ours, family).name, []).append(ours)
    for name, places in parts.items():
        source, rows = source_of(places[0], family), tuple(parameters[places[0]].shape)
        shapes = [tuple(parameters[ours].shape) for ours in places]
        yield name, shape_in_file(rows, source), functools.partial(joined, state, places, shapes, source)


def joined(state: dict, places: list[str], shapes: list[tuple], source: Source) -> Tensor:
    """One tensor of a file, from the parameters that it holds."""
    parts = [state[ours] if ours in state else torch.zeros(n) for ours, n in zip(places, shapes, strict=True)]
    t = torch.cat(parts) if len(parts) > 1 else parts[0]
    return t.T.contiguous() if source.transposed else t
