"""GPTQ: int4 weights, chosen so that each layer's outputs stay as they were (Frantar et al., 2022).

    python -m techniques.quantize --out_dir=out-x --bits=4 --method=gptq

Plain rounding makes each weight as right as it can be. But a layer's output is a sum over its inputs, and
inputs go together: the error of one weight can be undone by others. GPTQ rounds a matrix column by column,
and after each one changes the columns to its right so that the error of the outputs, summed in squares over a
sample of inputs x (n, in), is as small as it can be. What it needs of the sample is H = x.T x, (in, in).

In the order of the model: each block is rounded with inputs that come from blocks already rounded.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from data import open_windows, windows_of_text
from evaluate import spread
from techniques.packing import GROUP, codes_of, decode, in_groups, int4_scales, int4_tensors
from text.settle import meta_of, require_same_text

DAMPING = 0.01  # of the mean of H's diagonal, added to it: inputs that hardly vary cannot undo anything


def round_matrix(weight: Tensor, hessian: Tensor) -> dict[str, Tensor]:
    """Weights (out,in) and H (in,in) -> what packing.encode("int4", weight) returns, with other codes.

    With H = L L.T inverted, row j of the upper Cholesky factor U of its inverse says how the columns right of
    j undo an error in column j (section 3 of the paper, step 3). In float64.
    """
    w, H = weight.detach().double().clone(), hessian.double().clone()
    n = w.size(1)
    H.diagonal().add_(DAMPING * H.diagonal().mean().clamp(min=1e-30))
    U = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    codes, grids = [], []
    for start in range(0, n, GROUP):
        end = min(start + GROUP, n)
        scales, zeros = int4_scales(w[:, start:end].float())  # (out,1): of the weights as they are by now
        grids.append((scales, zeros))
        errors = torch.zeros(len(w), end - start, dtype=w.dtype)
        for j in range(start, end):
            code = codes_of("int4", w[:, j : j + 1], scales, zeros)  # (out,1)
            codes.append(code)
            error = (w[:, j : j + 1] - (zeros + scales * code)) / U[j, j]  # (out,1)
            w[:, j:end] -= error * U[j, j:end]
            errors[:, j - start] = error[:, 0]
        w[:, end:] -= errors @ U[start:end, end:]  # the columns of later groups, all at once
    scales, zeros = (torch.stack(each, dim=1) for each in zip(*grids, strict=True))  # (out,groups,1)
    return int4_tensors(in_groups(torch.cat(codes, dim=1)).float(), scales, zeros, n)


@torch.no_grad()
def round_model(model, batches: list[Tensor]) -> dict[str, dict[str, Tensor]]:
    """Round the linear layers of all blocks, on token ids (B,T); returns {layer: tensors} for packed().

    The model's weights become the rounded ones.
    """
    found = {}
    for name, layer, hessian in with_inputs(model, batches):
        found[name] = round_matrix(layer.weight, hessian)
        layer.weight.copy_(decode("int4", tuple(layer.weight.shape), *found[name].values()))
    return found


@torch.no_grad()
def with_inputs(model, batches: list[Tensor]) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield (name, linear layer, H) for all blocks in the order of the model, on token ids (B,T).

    The caller may change the weights of what it gets: inputs of the next block come from the changed ones.
    """
    inputs = []  # of a block: (x, rope) for each batch
    hook = model.blocks[0].register_forward_pre_hook(lambda block, arguments: inputs.append(arguments[:2]))
    for idx in batches:
        model.trunk(idx)
    hook.remove()
    for i, block in enumerate(model.blocks):
        layers = {f"blocks.{i}.{n}": m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
        hessians = {name: torch.zeros(m.in_features, m.in_features) for name, m in layers.items()}
        hooks = [m.register_forward_pre_hook(adder(hessians[name])) for name, m in layers.items()]
        for x, rope in inputs:
            block(x, rope)
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            yield name, layer, hessians[name]
        inputs = [(block(x, rope), rope) for x, rope in inputs]


def adder(hessian: Tensor):
    """A hook that adds x.T x of a layer's inputs x (..., in)."""

    def hook(layer: nn.Module, arguments: tuple) -> None:
        x = arguments[0].flatten(0, -2).float()
        hessian.addmm_(x.T, x)

    return hook


def calibration(config: dict, saved: dict, tokenizer) -> list[Tensor]:
    """Batches of token ids (B,T) to calibrate on: of the text `input`, or of the run's training split.

    Their windows are spread evenly. ValueError if there is neither.
    """
    T = saved["model_config"]["block_size"]
    if config["input"]:
        windows = windows_of_text(config["input"], tokenizer, T)
    else:
        name = saved["config"]["dataset"]
        advice = "calibrate on a text: --input=FILE"
        require_same_text(saved["dataset"], meta_of(name), name, config["out_dir"], advice)
        windows = open_windows(name, "train", T, pack=saved["config"]["pack"])
    numbers = spread(windows, math.ceil(config["tokens"] / T))
    size = max(1, 4096 // T)
    return [windows.window_batch(numbers[i : i + size])[0] for i in range(0, len(numbers), size)]
