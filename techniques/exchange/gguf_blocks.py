"""Numbers of a GGUF file <-> tensors: plain ones, and blocks of 32 that share a scale.

A matrix is a row of numbers, or of blocks of 32 neighbours in a row of it, with a scale d (and m) in float16:

    Q8_0  d, 32 int8                   number = code * d          8.5 bits a number
    Q4_0  d, 16 bytes                  number = (code - 8) * d    4.5
    Q4_1  d, m, 16 bytes               number = code * d + m      5.0

Byte i of the 16 holds code i in its low half and code i + 16 in its high half.
(github.com/ggml-org/llama.cpp: ggml-common.h has the layouts, ggml-quants.c the arithmetic.)
"""

import numpy as np
import torch
from torch import Tensor

from config import require

TYPES = {  # the file's number: (name, numbers in a block, bytes of a block)
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    8: ("Q8_0", 32, 34),
    30: ("BF16", 1, 2),
}
REFUSED = {  # ggml.h's names of the others, for the message
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
    39: "MXFP4",
}  # fmt: skip
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dequantize(data: np.ndarray, kind: str, shape: tuple[int, ...], name: str) -> Tensor:
    """The bytes of a tensor -> the tensor: F16 and BF16 as they are, all others in float32.

    data: uint8, as many as kind and shape need. ValueError, with the name, if it holds NaN or infinity.
    """
    if kind in PLAIN:
        t = torch.from_numpy(np.array(data)).view(PLAIN[kind])
        finite = bool(t.isfinite().all())
    else:
        numbers, finite = from_blocks(data, kind)
        t = torch.from_numpy(numbers)
    require(finite, f"{name} holds NaN or infinity; get the file again, or another one")
    return t.view(shape)


def from_blocks(data: np.ndarray, kind: str) -> tuple[np.ndarray, bool]:
    """n blocks, as bytes -> float32 (n,32), and whether all scales are finite."""
    head = 4 if kind == "Q4_1" else 2
    blocks = data.reshape(-1, head + (32 if kind == "Q8_0" else 16))
    scales = np.ascontiguousarray(blocks[:, :head]).view("<f2").astype(np.float32)  # d (n,1), or d, m (n,2)
    codes = blocks[:, head:]  # (n,32), or two in a byte (n,16)
    if kind == "Q8_0":
        numbers = codes.view(np.int8).astype(np.float32)
    else:
        numbers = np.concatenate((codes & 15, codes >> 4), axis=1).astype(np.float32)
    if kind == "Q4_0":
        numbers -= 8
    numbers *= scales[:, :1]
    if kind == "Q4_1":
        numbers += scales[:, 1:]
    return numbers, bool(np.isfinite(scales).all())


def quantize(t: Tensor, kind: str, name: str) -> np.ndarray:
    """A tensor -> its bytes as F32, F16, BF16, Q8_0 or Q4_1. ValueError, with the name, if it cannot be."""
    if kind in PLAIN:
        plain = t.to(PLAIN[kind]).contiguous()
        fits = bool(plain.isfinite().all())
        content = plain.view(-1).view(torch.uint8).numpy()
    else:
        blocks = t.float().contiguous().view(-1, 32).numpy()
        with np.errstate(over="ignore", invalid="ignore"):  # fits tells
            scales, codes = to_q8_0(blocks) if kind == "Q8_0" else to_q4_1(blocks)
            scales = scales.astype("<f2")
        fits = bool(np.isfinite(scales).all())
        content = np.concatenate((scales.view(np.uint8), codes), axis=1).ravel()
    require(fits, f"{name} holds NaN, infinity, or numbers too large for {kind}; try --dtype=float32")
    return content


def to_q8_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 (n,32) -> scales (n,1) and codes (n,32): the largest of a block becomes 127 or -127."""
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = np.nan_to_num(blocks * inverse_of(scales))
    whole = np.floor(np.abs(scaled))
    codes = np.sign(scaled) * (whole + (np.abs(scaled) - whole >= 0.5))  # halves away from 0, as in C
    return scales, codes.astype(np.int8).view(np.uint8)


def to_q4_1(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 (n,32) -> scales d, m (n,2) and bytes (n,16): a block goes from 0 to 15.

    So what was Q4_1 before becomes the same bytes again.
    """
    low = blocks.min(axis=1, keepdims=True)
    scales = (blocks.max(axis=1, keepdims=True) - low) / np.float32(15)
    codes = np.nan_to_num((blocks - low) * inverse_of(scales) + np.float32(0.5)).clip(0, 15).astype(np.uint8)
    return np.concatenate((scales, low), axis=1), codes[:, :16] | (codes[:, 16:] << 4)


def inverse_of(scales: np.ndarray) -> np.ndarray:
    """1 / scales, and 0 where a scale is 0."""
    return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
