# Lesson 14 (unit B): Initialisation: loss at step 0, residual growth
# Before: a GPT was assembled, and its weights were whatever stood there. With which numbers should it begin?
# Seconds: 5
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 14     your copy, in work/
#     python lessons/run.py check 14     what is right, what is not yet
#     python lessons/run.py show 14      the whole lesson from top to bottom, with its plot

# %%
import math

import torch
import torch.nn.functional as F

from lessons.course import claim, save_plot, yours_or_ours
from model import GPT, GPTConfig

predict_1 = None  # first loss, in nats, of a well-initialised model of 65 letters

# %% [markdown]
# ## Know that you know nothing
#
# A model that has not seen any text should hold each letter for equally likely. Its first loss is then
# ln 65 = 4.174 nats. Whatever is above that is confidence without a reason, and the first steps of the
# training are spent on taking it back. So the first loss is the cheapest test of a new model there is:
# one forward pass, before any training.
#
# Weights of zero pass that test and fail the next one. The gradient of a matrix is a product with the
# matrices above it, and a product with zeros is zero: nothing ever moves. If all weights are equal but not
# zero, all hidden units of a layer compute the same, get the same gradient, and stay equal for ever. What is
# needed are numbers that differ, and that are small.


# %%
def gpt(n_layer, n_embd=128):
    """A GPT of 65 letters in which no number is set yet: all are NaN, and so is its loss."""
    shape = dict(vocab_size=65, block_size=32, n_layer=n_layer, n_head=4, n_embd=n_embd)
    model = GPT(GPTConfig(**shape, arch="gpt2", bias=True, tie_weights=0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    return model


# %% [markdown]
# ## 14a. Where to begin
#
# GPT-2 (Radford et al., 2019) draws all matrices, embeddings included, from a normal distribution around 0
# with a standard deviation of 0.02. A norm multiplies by its gains: they begin at 1. Biases begin at 0.
# `model.named_parameters()` has all of them with their names; the gains are called `...norm.weight`.


# %%
def init(model):
    """Set every parameter of a model, in place, so that its first loss is ln V to 0.05 and it can learn.

    model: GPT; its parameters are float32 and hold NaN: matrices (out, in), embeddings (rows, C), gains and
    biases (C,) -> None.
    """
    raise NotImplementedError("lesson 14a")


# %% [markdown]
# With a standard deviation of 1 in place of 0.02, the first loss of this model of 4 layers is about 25: each
# logit is a sum over 128 numbers and as large as the root of that.


# %%
def first_loss(model, seed=14):
    """Loss on 8 texts of 32 random letters: before training, any text is as good as another."""
    g = torch.Generator().manual_seed(seed)
    idx, y = torch.randint(65, (2, 8, 32), generator=g)
    with torch.no_grad():
        return F.cross_entropy(model(idx).flatten(0, 1), y.flatten()).item()


if __name__ == "__main__":
    torch.manual_seed(14)
    model = gpt(4)
    yours_or_ours(init, "14a")(model)
    print(f"first loss {first_loss(model):.3f}, ln 65 is {math.log(65):.3f}")
    claim(4.174, math.log(65), tol=0.001)
    claim(0.05, max(0.05, abs(first_loss(model) - math.log(65))), tol=1e-6)
    claim(0.02, model.blocks[0].attn.q.weight.std().item(), tol=0.001)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 1)
    print(f"with a standard deviation of 1: {first_loss(model):.1f}")
    claim(25, first_loss(model), tol=3)
    claim(128, model.config.n_embd, tol=0)
    claim(4, len(model.blocks), tol=0)
    claim(65, model.config.vocab_size, tol=0)

# %% [markdown]
# ## 14b. What adds up
#
# In lesson 12 each block adds two outputs to the stream: attention's and the MLP's. Variances of what is
# independent add up. If the stream begins with a variance of 1 and each output has one of 1, then after L
# blocks the standard deviation is the root of 1 + 2L: 2.24 after 2 blocks, 4.12 after 8, 8.06 after 32.
# The last norm shrinks that again, so the first loss does not tell. But each block finds a stream in which
# its own output counts for less, and the gradients of a deep model differ from those of a shallow one.
#
# Divide each output by the right number, and the stream has a standard deviation of 1.41 at any depth. The
# outputs come from two matrices of each block, `attn.o` and `mlp.down`: what is divided are these.


# %%
def scale_residual(model):
    """Make the outputs of all blocks smaller, in place, so that their sum does not grow with their number.

    model: GPT, initialised as in 14a; each block of model.blocks has attn.o.weight (C, C) and mlp.down.weight
    (C, n_ff), float32 -> None.
    """
    raise NotImplementedError("lesson 14b")


# %%
def tower(n_layer, factor, C=128):
    """Standard deviation of a stream after n_layer blocks, each of which adds two random outputs x factor."""
    g = torch.Generator().manual_seed(14)
    x = torch.randn(4, 32, C, generator=g)  # four towers
    for _ in range(2 * n_layer):
        matrices = torch.randn(4, C, C, generator=g) / math.sqrt(C)
        x = x + factor * F.layer_norm(x, (C,)) @ matrices
    return x.std().item()


if __name__ == "__main__":
    spreads = {2: 2.24, 8: 4.12, 32: 8.06}
    for n_layer, stated in spreads.items():
        plain, scaled = tower(n_layer, 1.0), tower(n_layer, 1 / math.sqrt(2 * n_layer))
        print(f"{n_layer:2} blocks: the stream has a spread of {plain:.2f}, scaled {scaled:.2f}")
        assert abs(stated - plain) < 0.15
        claim(1.41, scaled, tol=0.04)
    claim(2.24, math.sqrt(1 + 2 * 2), tol=0.01)
    claim(4.12, math.sqrt(1 + 2 * 8), tol=0.01)
    claim(8.06, math.sqrt(1 + 2 * 32), tol=0.01)
    claim(2, min(spreads), tol=0)
    claim(8, sorted(spreads)[1], tol=0)
    claim(32, max(spreads), tol=0)

# %% [markdown]
# ## 14c. Look inside
#
# To see the stream of a real model you need not change it. `module.register_forward_hook(f)` has f(module,
# args, output) called after each forward pass of that module, and returns a handle. A hook stays until its
# handle's `remove()` is called. A probe is a guest: it leaves no hook behind and the mode, training or not,
# as it was. Dropout would change what it measures.


# %%
def probe(model, idx):
    """Standard deviation of the residual stream after each block, over all its numbers, without dropout.

    model: GPT in any mode; idx: (B, T) int64 -> list of len(model.blocks) Python floats.
    """
    raise NotImplementedError("lesson 14c")


# %% [markdown]
# Now both meet: GPTs of 2, 8 and 32 blocks, initialised by 14a, measured by 14c, before 14b and after it.
# The stream begins at 0.028, the spread of two embeddings added. Unscaled it ends at 0.049, 0.087 and
# 0.18, about twice as wide for four times the depth. Scaled it ends near 0.034, however deep the model.

# %%
if __name__ == "__main__":
    idx = torch.randint(65, (4, 32), generator=torch.Generator().manual_seed(14))
    curves = {}
    for n_layer in (2, 8, 32):
        torch.manual_seed(14)
        model = gpt(n_layer, n_embd=64)
        yours_or_ours(init, "14a")(model)
        begins = (model.wte(idx) + model.wpe(torch.arange(32))).std().item()
        curves[n_layer, "plain"] = [begins, *yours_or_ours(probe, "14c")(model, idx)]
        yours_or_ours(scale_residual, "14b")(model)
        curves[n_layer, "scaled"] = [begins, *yours_or_ours(probe, "14c")(model, idx)]
        claim(0.034, curves[n_layer, "scaled"][-1], tol=0.002)
    claim(0.028, begins, tol=0.001)
    claim(0.049, curves[2, "plain"][-1], tol=0.003)
    claim(0.087, curves[8, "plain"][-1], tol=0.004)
    claim(0.18, curves[32, "plain"][-1], tol=0.01)

    def draw(axes):
        for (n_layer, how), spreads in curves.items():
            style = dict(linestyle="-" if how == "plain" else "--", marker="" if n_layer > 8 else ".")
            axes.plot(range(n_layer + 1), spreads, label=f"{n_layer} blocks, {how}", **style)
        axes.set(xlabel="after block", ylabel="standard deviation of the stream", title="What adds up")
        axes.legend()

    save_plot("14_init", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `GPT.init_weights` in model.py does both at once, 14a and 14b. It goes further in two places. In wide models
# it draws the head smaller, so that the first loss stays near ln V. And the project's own architecture lets
# the outputs of all blocks begin at zero: each block is the identity at first, and the depth does not matter
# at all. That does not get stuck as all zeros do: the head is not zero, so a gradient arrives, and the
# outputs move in the first step.
