"""Weights to codes of 4 or 8 bits and back: the number formats of quantize.py and gptq.py.

    int8  a row has one scale: w = scale x code, |code| <= 127 (Dettmers et al., 2022: LLM.int8)
    int4  32 weights of a row share a scale and a zero: w = zero + scale x code, -8 <= code <= 7
    nf4   64 weights share a scale: w = scale x level. The 16 levels are spaced as a normal distribution is
          dense, and the scales are themselves kept in 8 bits (Dettmers et al., 2023: QLoRA)

Bits a weight: 8 + 32 / in, 4 + 32 / 32 = 5 (in a multiple of 32), 4 + 8 / 64 + 32 / (64 x 256) = 4.127.
A weight is wrong by half a step at most; of nf4, half of the widest gap between two levels, 0.152 scales, and
half a step of the scale. tests/test_quantize.py proves it, block by block.
"""

import functools
import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP, BLOCK, SUPER = 32, 64, 256  # weights to a scale of int4, to a scale of nf4; scales of nf4 to a step
LIMITS = {"int8": (-127, 127), "int4": (-8, 7)}


def nf4_levels() -> list[float]:
    """The 16 levels in [-1, 1]: quantiles of a normal distribution, 8 above zero, 7 below it, and zero."""
    inv_cdf, last = statistics.NormalDist().inv_cdf, 1 - (1 / 30 + 1 / 32) / 2
    above = [inv_cdf(0.5 + (last - 0.5) * i / 8) for i in range(1, 9)]
    below = [-inv_cdf(0.5 + (last - 0.5) * i / 7) for i in range(1, 8)]
    return sorted(level / above[-1] for level in [*below, 0.0, *above])


LEVELS = {"nf4": nf4_levels(), "int4": [float(code) for code in range(-8, 8)]}


# ---- two codes of 4 bits in a byte
def pack(codes: Tensor) -> Tensor:
    """Codes (..., n), 0 to 15 -> bytes (..., n / 2 rounded up). The first of two is in the upper bits."""
    codes = F.pad(codes.to(torch.uint8), (0, codes.size(-1) % 2))
    return codes[..., ::2] << 4 | codes[..., 1::2]


@functools.cache
def level_pairs(kind: str, device: torch.device) -> Tensor:
    """(256) int64: the two float32 levels that a byte stands for, side by side, as if they were one."""
    levels = torch.tensor(LEVELS[kind], dtype=torch.float32, device=device)
    return torch.cartesian_prod(levels, levels).view(torch.int64)[:, 0]


def unpack(kind: str, packed: Tensor, n: int) -> Tensor:
    """Bytes (..., n / 2 rounded up) -> the float32 levels (..., n) of their codes.

    Both levels of a byte are looked up at once, as 8 bytes: 0.4 ms for 1,536 x 576 weights, one by one 12.8.
    """
    table = level_pairs.__wrapped__ if torch.compiler.is_compiling() else level_pairs  # it warns of caches
    pairs = table(kind, packed.device).index_select(0, packed.flatten().int())
    return pairs.view(torch.float32).view(*packed.shape[:-1], -1)[..., :n]


# ---- scales
def held(t: Tensor) -> Tensor:
    """Round float32 to what bfloat16 can hold: then model.bfloat16() changes no scale."""
    return t.bfloat16().float()


def codes_of(kind: str, w: Tensor, scales: Tensor, zeros: Tensor | float = 0.0) -> Tensor:
    """The nearest codes, in float32. Where the scale is 0, all weights are equal and any code will do."""
    return ((w - zeros) / scales.masked_fill(scales == 0, 1.0)).round().clamp(*LIMITS[kind])


def int8_scales(w: Tensor) -> Tensor:
    """Weights (..., n) -> (..., 1). bfloat16 may hold 0.4 % less; then the largest code is 127.49, or 127."""
    return held(w.abs().amax(-1, keepdim=True) / 127)


def int4_scales(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (..., n) -> scales and zeros (..., 1), such that all codes are in -8.5 to 7.5 before rounding.

    From the lowest weight to the highest there are 15 steps. bfloat16 may move the zero by 0.4 % of itself,
    and the scale by 0.4 %; a group far from 0 needs wider steps because of that.
    """
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / 15
    zeros = held(low + 8 * step)
    return held(torch.maximum(step, torch.maximum((high - zeros) / 7.4, (zeros - low) / 8.4))), zeros


def in_groups(w: Tensor) -> Tensor:
    """(out,in) -> (out,groups,GROUP). The last column is repeated until it fills the last group."""
    missing = -w.size(1) % GROUP
    if missing:
        w = torch.cat((w, w[:, -1:].expand(-1, missing)), dim=1)
    return w.view(len(w), -1, GROUP)


def nf4_scales(codes: Tensor, steps: Tensor, mean: Tensor) -> Tensor:
    """The scales (blocks,1) of their codes (blocks): mean + step x code; SUPER of them have a step."""
    return (mean.float() + codes * steps.float().repeat_interleave(SUPER)[: len(codes)])[:, None]


# ---- a matrix to named tensors and back; their order is that of decode's arguments
def encode(kind: str, w: Tensor) -> dict[str, Tensor]:
    """Weights (out,in) -> the tensors that stand for them.

    Works on the meta device, too: no value decides a shape.
    """
    w = w.detach().float()
    if kind == "int8":
        scales = int8_scales(w)
        return {"codes": codes_of(kind, w, scales).to(torch.int8), "scales": scales[:, 0]}
    if kind == "int4":
        groups = in_groups(w)
        return int4_tensors(codes_of(kind, groups, *int4_scales(groups)), *int4_scales(groups), w.size(1))
    blocks = F.pad(w.flatten(), (0, -w.numel() % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1)  # (blocks)
    mean = held(largest.mean())
    apart = F.pad(largest - mean, (0, -len(largest) % SUPER)).view(-1, SUPER)
    steps = int8_scales(apart)
    scales = codes_of("int8", apart, steps).to(torch.int8).flatten()[: len(largest)]
    scale = nf4_scales(scales, steps[:, 0], mean)
    levels = torch.tensor(LEVELS["nf4"], dtype=torch.float32, device=w.device)
    middles = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(blocks / scale.masked_fill(scale == 0, 1.0), middles).flatten()[: w.numel()]
    return {"codes": pack(codes), "scales": scales, "steps": steps[:, 0], "mean": mean}


def int4_tensors(codes: Tensor, scales: Tensor, zeros: Tensor, n: int) -> dict[str, Tensor]:
    """int4's codes (out,groups,GROUP), scales and zeros (out,groups,1) as encode returns them; n: in."""
    packed = pack(codes.flatten(1)[:, :n] + 8)
    return {"codes": packed, "scales": scales[..., 0].bfloat16(), "zeros": zeros[..., 0].bfloat16()}


def decode(kind: str, shape: tuple[int, int], codes: Tensor, scales: Tensor, *more: Tensor) -> Tensor:
    """The float32 weights (out,in) that encode's tensors stand for."""
    if kind == "int8":
        return codes * scales.float()[:, None]
    if kind == "int4":
        groups = in_groups(unpack(kind, codes, shape[1])) * scales.float()[..., None]
        return (groups + more[0].float()[..., None]).flatten(1)[:, : shape[1]]
    n = len(scales) * BLOCK
    blocks = unpack(kind, F.pad(codes, (0, n // 2 - len(codes))), n).view(-1, BLOCK)
    return (blocks * nf4_scales(scales, *more)).flatten()[: shape[0] * shape[1]].view(shape)
