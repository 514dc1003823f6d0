"""Takes attention heads or MLP neurons out of a model: the matrices become smaller (see prune.py).

A part is what neighbouring columns of a layer read: hs columns of attn.o for a head, one column of mlp.down
for a neuron. What it adds to the residual stream is y = W x, with its columns W and its outputs x. The parts
with the least energy, the sum of y.y over a sample of text, go: wanda's score (Sun et al., 2023), summed over
a part (Wanda-sp in An et al., 2024). Michel et al. (2019) found that many heads can go.

First the columns are set to zero. Then the rows that compute x have no effect, and both are cut out: the
smaller model computes the same. With grouped-query attention a part is a key/value head with all its query
heads. In each layer the same number of parts goes, because a GPTConfig has one n_head and one n_ff.
"""

import dataclasses

import torch
from torch import Tensor

from lab.measure import alternate, compared, decoding_rate
from model import GPT
from techniques import gptq

METHODS = {"heads": "attn.o", "neurons": "mlp.down"}  # method: the layer that reads the parts
TOKENS, TURNS = 64, 5  # of generation, to compare the speeds


def energies(weight: Tensor, hessian: Tensor, size: int) -> Tensor:
    """Weights (out,in) and H = x.T x (in,in) of their inputs -> the energy of each run of `size` columns.

    Of a run with columns W and inputs x: the sum of |W x|^2 = the trace of W H W.T, (in / size).
    """
    found = []
    for start in range(0, weight.size(1), size):
        part = slice(start, start + size)
        found.append((weight[:, part] @ hessian[part, part] * weight[:, part]).sum())
    return torch.stack(found)


def columns_of(parts: Tensor, size: int) -> Tensor:
    """Numbers of parts (n) -> the numbers of their columns or rows (n x size)."""
    return (parts[:, None] * size + torch.arange(size)).flatten()


def part_size(config, method: str) -> int:
    """The columns that a part has: one, or the head_size of each query head of a key/value head."""
    return config.head_size * (config.n_head // config.n_kv_head) if method == "heads" else 1


@torch.no_grad()
def silence(model, share: float, method: str, batches: list[Tensor]) -> list[Tensor]:
    """Set the columns of a share of the parts to zero, in place; returns the parts that are left, by layer.

    batches: token ids (B,T). At least one part is left.
    """
    size, kept = part_size(model.config, method), []
    for name, layer, hessian in gptq.with_inputs(model, batches):
        if name.endswith(METHODS[method]):
            scores = energies(layer.weight, hessian, size)
            left = max(1, len(scores) - round(share * len(scores)))
            kept.append(scores.topk(left).indices.sort().values)
            others = torch.ones(layer.in_features, dtype=torch.bool)
            others[columns_of(kept[-1], size)] = False
            layer.weight[:, others] = 0
    return kept


@torch.no_grad()
def cut(model, kept: list[Tensor], method: str) -> GPT:
    """The smaller GPT with the parts of `model` that are kept, by layer."""
    shape, weights = model.config, dict(model.state_dict())
    n, size = len(kept[0]), part_size(shape, method)
    for i, parts in enumerate(kept):
        columns = columns_of(parts, size)
        if method == "heads":
            of_keys = columns_of(parts, shape.head_size)
            rows = {"attn.q": columns, "attn.k": of_keys, "attn.v": of_keys}
        else:
            rows = {"mlp.up": columns, "mlp.gate": columns}
        for layer, numbers in rows.items():
            for name in (f"blocks.{i}.{layer}.weight", f"blocks.{i}.{layer}.bias"):
                if name in weights:
                    weights[name] = weights[name][numbers]
        name = f"blocks.{i}.{METHODS[method]}.weight"
        weights[name] = weights[name][:, columns]
    changes = {"n_ff": n}
    if method == "heads":
        changes = {"n_kv_head": n, "n_head": n * (shape.n_head // shape.n_kv_head)}
    smaller = GPT(dataclasses.replace(shape, **changes))
    smaller.load_state_dict(weights)
    return smaller.eval()


def smaller(model, share: float, method: str, batches: list[Tensor]) -> GPT:
    """The model without a share of its heads or neurons; in `model` they are silenced."""
    return cut(model, silence(model, share, method, batches), method)


def gains(before: GPT, after: GPT) -> list[str]:
    """Lines about what the smaller model saves: shape, bytes, and the speed of generation on this machine."""
    shapes, sizes = (before.config, after.config), []
    for model in (before, after):
        sizes.append(sum(p.numel() for p in model.parameters()))
    changed = [
        f"{name} {getattr(shapes[0], name):,} -> {getattr(shapes[1], name):,}"
        for name in ("n_head", "n_kv_head", "n_ff")
        if getattr(shapes[0], name) != getattr(shapes[1], name)
    ]
    if not changed:
        return ["nothing was taken out: too small a share of the parts of each layer, or only one is there"]
    n = min(TOKENS, before.config.block_size - 1)
    sides = [decoding_rate(model, 1, n, temperature=0.0) for model in (after, before)]
    row = compared("generation", *alternate(*sides, turns=TURNS), "tokens/s")
    return [
        f"{', '.join(changed)} in each layer",
        f"parameters: {sizes[0]:,} -> {sizes[1]:,}, {4 * sizes[0] / 1e6:.1f} -> {4 * sizes[1] / 1e6:.1f} MB",
        f"generation: {row.ratio} x as fast ({row.spread}; {row.absolute}, after / before)",
    ]
