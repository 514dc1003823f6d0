# Lesson 12 (unit B): Normalisation and residuals: LayerNorm, RMSNorm, pre-norm block
# Before: heads look back, many or few. Put one such layer on another, and the tokens become all alike.
# Seconds: 4
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 12     your copy, in work/
#     python lessons/run.py check 12     what is right, what is not yet
#     python lessons/run.py show 12      the whole lesson from top to bottom, with its plot

# %%
import torch
import torch.nn.functional as F

from lessons.course import claim, save_plot, yours_or_ours
from model import GPT, Block, GPTConfig

predict_1 = None  # factor on LayerNorm's output at D = 4, if the variance is divided by 3 and not by 4

# %% [markdown]
# ## Two problems of depth
#
# A model is a stack of layers, and each multiplies by matrices. Two things go wrong with depth.
#
# - **Size.** If each layer makes its numbers a little larger, a stack makes them huge; a little smaller, and
#   they vanish. A **norm** brings each token's vector to a fixed size before a layer reads it.
# - **Identity.** Attention mixes tokens. After a few mixings all tokens of a text look alike, and nobody
#   knows any more who is who. A **residual** connection (He et al., 2015) keeps the token and adds what the
#   layer found: x + f(x), not f(x).

# %% [markdown]
# ## 12a. LayerNorm
#
# Each token has a vector of D numbers. Subtract their mean, divide by their standard deviation: then they
# have mean 0 and deviation 1 (Ba et al., 2016). After that each channel is scaled by a learned weight and
# moved by a learned bias, so the layer can undo what does not suit it.
#
# Each token is normalised by itself. A mean over tokens would let the past see the future; a mean over the
# batch would let texts see each other.
#
# The variance is divided by D, not by D - 1. At D = 4 the other choice multiplies the output by 0.866, at
# D = 768 by 0.9993: no test on wide rows finds it. A small eps, 1e-5 as a rule, is added to the variance
# before the root is taken. For a row of equal numbers that is all there is to divide by.


# %%
def layer_norm(x, weight, bias, eps):
    """Each token's vector with mean 0 and variance 1, then scaled by weight and moved by bias.

    x: (B, T, D) float32; weight, bias: (D,) float32; eps: float, added to the variance
    -> (B, T, D) float32.
    """
    raise NotImplementedError("lesson 12a")


# %%
if __name__ == "__main__":
    g = torch.Generator().manual_seed(12)
    norm = yours_or_ours(layer_norm, "12a")
    x = 3 + 5 * torch.randn(2, 6, 4, generator=g)
    once = norm(x, torch.ones(4), torch.zeros(4), 1e-5)
    print(f"before: mean {x[0, 0].mean():5.2f}, deviation {x[0, 0].std(unbiased=False):.2f}")
    print(f"after:  mean {once[0, 0].mean():5.2f}, deviation {once[0, 0].std(unbiased=False):.2f}")
    assert (norm(1000 * x, torch.ones(4), torch.zeros(4), 1e-5) - once).abs().max() < 1e-3, (
        "size is forgotten"
    )
    ratios = {}
    for D in (4, 768):
        row = torch.randn(1, 1, D, generator=g)
        other = (row - row.mean()) / row.std(unbiased=True)
        ratios[D] = (other.norm() / norm(row, torch.ones(D), torch.zeros(D), 0.0).norm()).item()
    claim(0.866, ratios[4], tol=0.0005)
    claim(0.9993, ratios[768], tol=0.0001)
    claim(4, min(ratios), tol=0)
    claim(768, max(ratios), tol=0)

# %% [markdown]
# ## 12b. RMSNorm
#
# Subtracting the mean turns out to be needless. RMSNorm divides by the root of the mean square, and has no
# bias (Zhang and Sennrich, 2019). Most large models of today use it.
#
# The mean of squares has to be taken in float32, whatever x is. In float16 the largest number is 65,504, and
# 300 squared is 90,000: infinite, and all outputs are 0. In bfloat16 nothing overflows, but each step
# rounds: at D = 128 the worst relative error is 0.0086, where rounding only the result costs 0.0039.


# %%
def rms_norm(x, weight, eps):
    """Each token's vector divided by the root of its mean square, then scaled by weight.

    x: (B, T, D) float32 or float16; weight: (D,) float32; eps: float, added to the mean square
    -> (B, T, D) of the type of x; computed in float32.
    """
    raise NotImplementedError("lesson 12b")


# %%
if __name__ == "__main__":
    norm = yours_or_ours(rms_norm, "12b")
    half = torch.full((1, 1, 4), 300.0, dtype=torch.float16)
    normed = norm(half, torch.ones(4), 1e-5)
    print(f"300 squared in float16: {half[0, 0, 0] ** 2:.0f}; normalised: {normed[0, 0].tolist()}")
    assert (normed == 1).all()
    claim(65504, torch.finfo(torch.float16).max, tol=0)
    claim(300, half.max().item(), tol=0)
    claim(90000, half.max().item() ** 2, tol=0)
    x = torch.randn(1, 200, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = norm(x.float(), torch.ones(128), 1e-5)
    rough = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()  # each step in bfloat16
    claim(0.0086, ((rough - exact) / exact).abs().max().item(), tol=0.0006)
    claim(0.0039, ((exact.bfloat16() - exact) / exact).abs().max().item(), tol=0.0001)
    claim(128, x.size(-1), tol=0)

# %% [markdown]
# ## 12c. The block
#
# A block has two parts. Attention lets tokens look at each other; the MLP (next lesson) lets each token think
# about what it has seen. Both are wrapped in the same way: read the stream through a norm, add what comes
# out.
#
# The norm stands before the part and not after the sum. So nothing on the way of x itself is ever
# multiplied: the stream runs through all blocks, and the gradient runs back as freely. This is called
# pre-norm (Xiong et al., 2020). The first transformer normalised each sum (Vaswani et al., 2017), which needs
# a careful warm-up.
#
# If attention and MLP put out 0, the block changes nothing: it is the identity. A deep stack of such blocks
# starts as a shallow model and grows from there.


# %%
def block(x, attn_norm, attn, mlp_norm, mlp):
    """One block of a transformer: tokens look at each other, then each thinks for itself.

    x: (B, T, C) float32, left as it is; attn_norm, attn, mlp_norm, mlp: modules, called as functions, that
    make (B, T, C) of (B, T, C) -> (B, T, C) float32.
    """
    raise NotImplementedError("lesson 12c")


# %% [markdown]
# ## Who is who, after many blocks?
#
# The plot runs texts of 8 random tokens through 24 untrained blocks and shows how alike the tokens of a text
# become: the mean cosine between their vectors. In your block they stay apart: 0.71 at the end. If each sum
# is normalised instead, post-norm, it is 0.998: what told them apart is nearly gone. Without the
# residual the tokens are the same vector after 10 blocks: 1.000. Nothing that comes later can tell them
# apart, so nothing can be learned about them (Dong et al., 2021).
#
# And without norms? The matrices here keep sizes on average, and still the largest number at the end is
# beyond a million.
#
# One more count: a block at C = 128 with biases has 512 numbers in its two norms. A norm shared by both parts
# would save 256 of them, and force both to read the same thing.


# %%
def alike(x):
    """Mean cosine between the vectors of different tokens of a text: x (B, T, C) -> float."""
    unit, T = F.normalize(x, dim=-1), x.size(1)
    cosines = unit @ unit.mT  # (B, T, T)
    return ((cosines.sum((1, 2)) - T) / (T * (T - 1))).mean().item()


def post_norm(x, attn_norm, attn, mlp_norm, mlp):
    """The first transformer's block: the norm stands on the way of x."""
    x = attn_norm(x + attn(x))
    return mlp_norm(x + mlp(x))


def no_residual(x, attn_norm, attn, mlp_norm, mlp):
    return mlp(mlp_norm(attn(attn_norm(x))))


def stacked(one, blocks, x):
    """The stream before each block and after the last: a list of (B, T, C)."""
    found = [x]
    for b in blocks:
        found.append(one(found[-1], b.attn_norm, b.attn, b.mlp_norm, b.mlp))
    return found


@torch.no_grad()
def compare():
    """Cosines of tokens by depth, for three kinds of block with the same weights."""
    torch.manual_seed(12)
    config = GPTConfig(n_layer=24, n_head=4, n_embd=64, block_size=8, arch="gpt2", bias=True)
    blocks = GPT(config).blocks
    for p in blocks.parameters():
        if p.dim() == 2:
            p.normal_(std=p.size(1) ** -0.5)  # each matrix keeps the size of what it multiplies
    start, curves = torch.randn(4, 8, 64), {}
    kinds = {"your block": yours_or_ours(block, "12c"), "post-norm": post_norm, "no residual": no_residual}
    for name, one in kinds.items():
        curves[name] = [alike(x) for x in stacked(one, blocks, start)]
        print(f"{name:12} cosine of tokens: {curves[name][0]:.3f} before, {curves[name][-1]:.3f} after")
    for b in blocks:
        b.attn_norm = b.mlp_norm = torch.nn.Identity()
    assert stacked(kinds["your block"], blocks, start)[-1].abs().max() > 1e6, "no norms"
    claim(8, start.size(1), tol=0)
    claim(24, len(blocks), tol=0)
    return curves


if __name__ == "__main__":
    curves = compare()
    claim(0.71, curves["your block"][-1], tol=0.02)
    claim(0.998, curves["post-norm"][-1], tol=0.002)
    claim(10, [cosine > 0.9995 for cosine in curves["no residual"]].index(True), tol=2)
    claim(1.000, curves["no residual"][-1], tol=0.0005)
    wide = Block(GPTConfig(n_embd=128, bias=True, arch="gpt2"))
    counts = [p.numel() for name, p in wide.named_parameters() if "norm" in name]
    claim(128, counts[0], tol=0)
    claim(512, sum(counts), tol=0)
    claim(256, sum(counts) // 2, tol=0)

    def draw(axes):
        for name, cosines in curves.items():
            axes.plot(cosines, marker=".", label=name)
        axes.set(xlabel="blocks", ylabel="cosine between tokens", title="How alike the tokens of a text are")
        axes.legend()

    save_plot("12_norms", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `LayerNorm` and `RMSNorm` in machine/layers.py are the norms, and `build_norm` in model.py makes one of
# them; torch's fused kernels do the work, and the choice is one of speed. `Block` is yours, with more to hand
# through: rotary tables, and while text is generated its past. With `zero_init` the last matrix of each part
# starts at zero, so a new model is the identity between embedding and head.
