# Lesson 32 (unit F): 8-bit and 4-bit: scales, rounding, packing
# Before: what is trained is small; the frozen weights are as large as ever, 4 bytes each.
# Seconds: 10
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 32     your copy, in work/
#     python lessons/run.py check 32     what is right, what is not yet
#     python lessons/run.py show 32      the whole lesson from top to bottom, with its plot

# %%
import copy
import math

import torch
import torch.nn.functional as F
from torch import nn  # noqa: F401 (for your answers)

from lessons.course import claim, encoded, save_plot, update, windows, yours_or_ours
from model import GPT, GPTConfig
from techniques.packing import encode
from techniques.quantize import bytes_of, packed

predict_1 = None  # bits per weight of 4-bit codes, where 32 weights share a scale of 16 bits
predict_2 = None  # how far a weight is from its code's value at most, in steps, if rounded to the nearest

# %% [markdown]
# ## Codes and a scale
#
# A float32 takes 32 bits. To generate one token, all weights are read once, and that is most of the time. If
# a weight takes 8 bits, a quarter is read; if it takes 4, an eighth.
#
# **Quantization** stores a whole number for each weight, its **code**, and one **scale** for many of them:
#
#     weight = scale * code        about
#
# Take the weights 0.5, -1.27 and 0.012. The largest size is 1.27, and the largest code of 8 bits is 127. So
# the scale is 1.27 / 127 = 0.01: that is one step. The codes are 50, -127 and 1, for 0.012 is 1.2 steps. Back
# come 0.5, -1.27 and 0.01.
#
# ## 32a. A scale for each row
#
# An int8 goes from -128 to 127. The code -128 is left out, so there are 127 steps on either side, and code 0
# is weight 0. Rounded to the nearest code, no weight is off by more than half a step. A conversion to int8
# cuts instead: then it is up to a whole step, and always towards 0. And what is too large wraps around: of
# 128 it makes -128.
#
# How many weights share a scale? The rows of a matrix are its outputs, and often of unequal size. If all rows
# share a scale, the largest row sets it, and the small ones are lost. Below are 64 rows of 128 weights, with
# sizes from 0.01 to 1. The mean error of a row, as a share of its norm, is 0.0066 with a scale for each
# row, 0.076 with one for each column, 0.121 with one for all.
#
# The project rounds each scale to what bfloat16 (lesson 23) can hold: then a model in bfloat16 has the same
# scales. The codes must belong to the rounded scale. A row of zeros has scale 0. Then 0 / 0 is nan, and which
# int8 nan becomes is not defined: divide by something else.


# %%
def to_int8(w):
    """The nearest codes of 8 bits, and a scale for each row: w is about codes * scales[:, None].

    w: (out, in) float32; a row may be all zeros -> (codes, scales): codes (out, in) int8, -127 to 127, of the
    rounded scales; scales (out,) float32, largest size of the row / 127, rounded to bfloat16 and back.
    """
    raise NotImplementedError("lesson 32a")


# %%
if __name__ == "__main__":
    int8 = yours_or_ours(to_int8, "32a")
    few = torch.tensor([[0.5, -1.27, 0.012]])
    codes, scales = int8(few)
    print(f"codes {codes[0].tolist()}, scale {scales[0]:.5f} after bfloat16")
    exact = few.abs().max() / 127
    claim(50, codes[0, 0].item(), tol=0), claim(-127, codes[0, 1].item(), tol=0)
    claim(0.5, few[0, 0].item(), tol=0), claim(1.27, few.abs().max().item(), tol=1e-6)
    claim(0.01, exact.item(), tol=1e-6), claim(0.012, few[0, 2].item(), tol=1e-6)
    claim(1.2, (few[0, 2] / exact).item(), tol=1e-4), claim(127, torch.iinfo(torch.int8).max, tol=0)
    claim(128, -torch.tensor(128.0).to(torch.int8).item(), tol=0)

    w = torch.logspace(-2, 0, 64)[:, None] * torch.randn(64, 128, generator=torch.Generator().manual_seed(0))

    def error(w, v):
        """Mean over rows of how far v is from w, as a share of the row's norm."""
        return ((w - v).norm(dim=1) / w.norm(dim=1)).mean().item()

    def restored(w):
        codes, scales = int8(w)
        return codes * scales[:, None]

    one = w.abs().max() / 127
    errors = [error(w, restored(w)), error(w, restored(w.T).T), error(w, (w / one).round() * one)]
    print("error by row {:.4f}, by column {:.4f}, one scale for all {:.4f}".format(*errors))
    claim(0.0066, errors[0], tol=0.0005), claim(0.076, errors[1], tol=0.002)
    claim(0.121, errors[2], tol=0.002)
    claim(64, w.size(0), tol=0)
    assert ((restored(w) - w).abs() <= 0.501 * int8(w)[1][:, None]).all(), "half a step"
    assert restored(torch.zeros(2, 3)).abs().max() == 0

# %% [markdown]
# ## 32b. Two codes in a byte
#
# A code of 4 bits is one of 16 numbers: -8 to 7. There is no type for that, so two of them share a byte, a
# uint8, 0 to 255. First each code gets 8 added: then it is 0 to 15, without a sign. A byte is 16 times the
# first of two neighbours, plus the second:
#
#     codes    -1    7          levels  7  15          byte  `0111 1111`  =  16 * 7 + 15  =  127
#
# Reading divides by 16: the result is the first level, the rest is the second; and 8 is taken off. If you
# forget that, all weights are positive. Other programs choose otherwise: the first in the lower half, or the
# first half of a row beside the second half, or -1 as 15 (two's complement). No layout is better, but
# writer and reader must agree.
#
# With an odd number of codes the last lower half is empty: it is 0. The bytes do not say how many codes there
# were, so that has to be remembered.


# %%
class Packed:
    """Rows of 4-bit codes, two in a byte. self.bytes: (rows, n / 2 rounded up) uint8; it may be replaced."""

    def __init__(self, codes):
        """codes: (rows, n) int8, -8 to 7. A code's level is 8 more; the first of two is in the upper half."""
        raise NotImplementedError("lesson 32b")

    def codes(self):
        """The codes that self.bytes holds -> (rows, n) int8."""
        raise NotImplementedError


# %%
if __name__ == "__main__":
    held = yours_or_ours(Packed, "32b")(torch.tensor([[-1, 7], [-8, 0]], dtype=torch.int8))
    print(f"bytes {held.bytes.flatten().tolist()}, back {held.codes().tolist()}")
    claim(127, held.bytes[0, 0].item(), tol=0), claim(15, held.bytes[0, 0].item() % 16, tol=0)
    claim(7, held.codes().max().item(), tol=0), claim(-8, held.codes().min().item(), tol=0)
    claim(16, 7 - -8 + 1, tol=0), claim(255, torch.iinfo(torch.uint8).max, tol=0)
    claim(8, -held.codes().min().item(), tol=0)
    int4 = {name: 8 * t.nbytes / w.numel() for name, t in encode("int4", w).items()}  # bits a weight
    claim(4, int4["codes"], tol=0), claim(4.5, int4["codes"] + int4["scales"], tol=0)
    claim(5, sum(int4.values()), tol=0), claim(32, w.numel() / encode("int4", w)["scales"].numel(), tol=0)

# %% [markdown]
# With 4 bits a row has only 15 steps, and one large weight spoils it for all others. So small groups get a
# scale of their own, 32 weights, say. The price: a scale of 16 bits for 32 weights is half a bit each, 4.5
# bits in all. The project's int4 keeps a zero for each group as well, another 16 bits: 5 bits a weight.
#
# ## 32c. A whole model
#
# The matrices are rounded: linear layers, embedding, head. What is left are vectors, the gains of norms and
# the biases. There are few of them, and each is used for every token: they stay float32. If embedding and
# head are tied (lesson 13), they are one matrix, stored once.
#
# Here the weights are put back as floats, as their codes stand for them: then the loss tells what rounding
# costs. The bytes are counted as they would be stored. Predict, then measure: a model of 106,944 numbers
# takes 427,776 bytes; in 8 bits it is 113,032, a bit more than a quarter. Its val loss is 3.13 bits per
# letter, and 8 bits change that by less than 0.001. The plot goes on to fewer bits, and shows what groups are
# good for: at 3 bits the loss is 3.27 with one scale for a whole matrix, 3.17 with a scale for 32 weights. At
# 2 bits a code is -1, 0 or 1, and no grouping saves a model that was not trained for that.


# %%
def quantize(model, restored):
    """Round all matrices of a model to 8 bits, in place: those of nn.Linear and nn.Embedding.

    model: a module; two layers may share a weight; restored: function, (out, in) float32 -> the same, as its
    codes stand for it -> int, bytes as stored: 1 for a code, 4 for the scale of a row, 4 for each number of
    all other parameters; what is shared counts once.
    """
    raise NotImplementedError("lesson 32c")


# %%
if __name__ == "__main__":
    vocabulary, ids, val_ids, is_shakespeare = encoded()
    fixed = windows(val_ids, 32, torch.Generator().manual_seed(1))

    @torch.no_grad()
    def bits_per_letter(model):
        return F.cross_entropy(model(fixed[0]).flatten(0, 1), fixed[1].flatten()).item() / math.log(2)

    torch.manual_seed(32)
    shape = dict(vocab_size=len(vocabulary), block_size=32, n_layer=2, n_head=2, n_embd=64)
    base, g = GPT(GPTConfig(**shape)), torch.Generator().manual_seed(32)
    optimizer = torch.optim.AdamW(base.parameters(), lr=0.004, fused=True)
    for _ in range(150):
        update(base, optimizer, *windows(ids, 16, g))
    before, own = bits_per_letter(base), copy.deepcopy(base)
    size = yours_or_ours(quantize, "32c")(own, restored)
    print(f"float32: {bytes_of(base):,} bytes, {before:.4f} bits per letter")
    print(f"yours:   {size:,} bytes, {bits_per_letter(own):.4f} bits per letter")
    for kind in ("int8", "int4", "nf4"):
        small = packed(copy.deepcopy(base), kind)
        print(f"{kind:8} {bytes_of(small):,} bytes, {bits_per_letter(small):.4f} bits per letter")

    def in_steps(w, bits, group):
        """w as codes of so many bits stand for it; neighbours of a group share a scale."""
        parts = w.view(-1, group)
        scale = parts.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        return ((parts / scale.clamp(min=1e-30)).round() * scale).view(w.shape)

    claim(106944, sum(p.numel() for p in base.parameters()), tol=0, when=is_shakespeare)
    claim(427776, bytes_of(base), tol=0, when=is_shakespeare)
    claim(113032, size, tol=0, when=is_shakespeare)
    claim(3.13, before, tol=0.03, when=is_shakespeare)
    claim(0.001, abs(bits_per_letter(own) - before), tol=0.001)
    assert size < 0.27 * bytes_of(base)

    curves, all_bits = {}, (8, 6, 5, 4, 3, 2)
    groups = {
        "all of a matrix": lambda w: w.numel(),
        "a row": lambda w: w.size(1),
        "32 weights": lambda w: 32,
    }
    for name, group in groups.items():
        for bits in all_bits:
            model = copy.deepcopy(base)
            for p in [p for p in model.parameters() if p.dim() == 2]:
                p.data = in_steps(p.data, bits, group(p.data))
            curves.setdefault(name, []).append(bits_per_letter(model))
        print(f"one scale for {name}: " + ", ".join(f"{x:.3f}" for x in curves[name]))

    at_3 = {name: found[all_bits.index(3)] for name, found in curves.items()}
    claim(3, all_bits[-2], tol=0), claim(2, all_bits[-1], tol=0)
    claim(3.27, at_3["all of a matrix"], tol=0.05, when=is_shakespeare)
    claim(3.17, at_3["32 weights"], tol=0.03, when=is_shakespeare)
    assert min(found[-1] for found in curves.values()) > before + 0.3

    def draw(axes):
        for name, found in curves.items():
            axes.plot(all_bits, found, marker=".", label=f"one scale for {name}")
        axes.axhline(before, color="gray", label="float32")
        axes.set(xlabel="bits of a code", ylabel="val loss (bits per letter)", title="What rounding costs")
        axes.legend()

    save_plot("32_quantization", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `encode` and `decode` in techniques/packing.py are the formats: int8 as here, int4 with groups of 32, and
# nf4, whose 16 levels are not evenly spaced. `packed` in techniques/quantize.py does a whole model: `python
# -m techniques.quantize --out_dir=RUN --bits=8`. `QuantLinear` in techniques/packed_layers.py multiplies by
# packed weights with torch's kernels. `round_model` in techniques/gptq.py chooses the codes of a layer so
# that its outputs stay, not each weight. With `--technique=lora --quantize=nf4` an adapter learns beside
# packed weights.
