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
    """A tensor -> its bytes as F32, F16, BF16 or Q8_0. ValueError, with the name, for what does not fit."""
    if kind in PLAIN:
        plain = t.to(PLAIN[kind]).contiguous()
        fits = bool(plain.isfinite().all())
        content = plain.view(-1).view(torch.uint8).numpy()
    else:
        content, fits = to_blocks(t.float().contiguous().view(-1, 32).numpy())
    require(fits, f"{name} holds NaN, infinity, or numbers too large for {kind}; try --dtype=float32")
    return content


def to_blocks(blocks: np.ndarray) -> tuple[np.ndarray, bool]:
    """float32 (n,32) -> Q8_0 blocks as bytes (n*34), and whether all scales are finite.

    The scale is the largest of the 32 / 127, so that codes go from -127 to 127.
    """
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)  # (n,1)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    scaled = np.nan_to_num(blocks * inverse)
    whole = np.floor(np.abs(scaled))
    codes = np.sign(scaled) * (whole + (np.abs(scaled) - whole >= 0.5))  # halves away from 0, as in C
    with np.errstate(over="ignore"):
        halves = scales.astype("<f2")
    content = np.concatenate((halves.view(np.uint8), codes.astype(np.int8).view(np.uint8)), axis=1)
    return content.ravel(), bool(np.isfinite(halves).all())
