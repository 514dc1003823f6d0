# Lesson 23 (unit E): Mixed precision: ranges, loss scaling, what stays fp32
# Before: a model that generalises. Each number of it takes 32 bits, and most of these bits are never needed.
# Seconds: 11
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 23     your copy, in work/
#     python lessons/run.py check 23     what is right, what is not yet
#     python lessons/run.py show 23      the whole lesson from top to bottom, with its plot

# %%
import math  # noqa: F401 (for your answers)

import torch
import torch.nn.functional as F

from lessons.course import claim, encoded, save_plot, yours_or_ours
from machine.hardware import choose_precision

predict_1 = None  # 70,000, stored in bfloat16
predict_2 = None  # 1 + 0.001, added in bfloat16

# %% [markdown]
# ## Half the bits
#
# Numbers of 16 bits take half the memory of float32, and processors that are made for them multiply matrices
# several times as fast. There are two kinds, and each gives up something else. A number is stored as sign,
# power of two, and digits. **float16** keeps 11 binary digits and few powers: it ends at 65,504. **bfloat16**
# keeps 8 digits, and all the powers of float32, to 3e38.
#
#     float16     s ppppp dddddddddd      largest 65,504     after 1 comes 1.00098
#     bfloat16    s pppppppp ddddddd      largest 3e38       after 1 comes 1.0078
#
# The first digit is not among the d: it is always a one, and not stored.

# %% [markdown]
# ## 23a. Which numbers there are
#
# Between a power of two and the next, numbers are equally far apart. With 8 digits there are 128 of them from
# 1 to 2, a spacing of 1/128; from 2 to 4 it is 1/64, and so on. In general a number between 2^p and 2^(p + 1)
# has the spacing 2^(p - digits + 1). What lies between two neighbours goes to the nearer one; what lies half
# way goes to the even multiple of the spacing, as Python's `round` does it: 257 in bfloat16, where the
# spacing is 2, lies half way between 128 and 129 times 2, and becomes 256.
#
# The spacing does not shrink for ever. In float16 it is never below 2^-24, about 6e-8. So 1e-8 is nearer to 0
# than to the first number after it, and is stored as 0. Numbers below 2^-14 have fewer digits the smaller
# they are. In bfloat16 the smallest spacing is 2^-133, and 1e-8 is 1e-8.
#
# What is still above the largest number after rounding becomes infinite: 70,000 in float16 is inf.


# %%
def rounded(x, digits, smallest, largest):
    """Each number as a format stores it that has so many binary digits, the first one counted.

    x: (N,) float64, of either sign, also 0; digits: int; smallest: float, the smallest spacing; largest:
    float, the largest number -> (N,) float64: the nearest numbers of that format, or inf with a sign.
    """
    raise NotImplementedError("lesson 23a")


# %%
if __name__ == "__main__":
    store = yours_or_ours(rounded, "23a")
    formats = {"float16": (11, 2.0**-24, 65504.0), "bfloat16": (8, 2.0**-133, 3.3895e38)}
    some = torch.tensor([1e-8, 6e-8, 0.1, 1.001, 257.0, 2049.0, 65510.0, 70_000.0], dtype=torch.float64)
    print(f"{'':9}" + "".join(f"{v:12.7g}" for v in some))
    for name, form in formats.items():
        print(f"{name:9}" + "".join(f"{v:12.7g}" for v in store(some, *form)))
    half, brain = (store(some, *form).tolist() for form in formats.values())
    assert half[0] == 0 and half[-1] == float("inf") and abs(brain[0] - 1e-8) < 2e-11 and brain[-1] == 70144
    claim(1e-8, some[0].item(), tol=0)
    claim(6e-8, 2.0**-24, tol=1e-9)
    claim(16, torch.finfo(torch.bfloat16).bits, tol=0)
    claim(65504, torch.finfo(torch.float16).max, tol=0)
    claim(3e38, torch.finfo(torch.bfloat16).max, tol=0.5e38)
    claim(11, formats["float16"][0], tol=0)
    claim(8, formats["bfloat16"][0], tol=0)
    claim(128, 2.0 ** (8 - 1), tol=0)
    claim(64, 128 / 2, tol=0)
    claim(257, some[4].item(), tol=0)
    claim(256, brain[4], tol=0)
    claim(129, 258 / 2, tol=0)
    claim(70000, some[-1].item(), tol=0)
    claim(1.0078, 1 + 1 / 128, tol=0.0001)
    claim(1.00098, 1 + 2.0**-10, tol=0.00001)
    claim(2, 2.0 ** (8 - 8 + 1), tol=0)
    claim(4, 2 * 2, tol=0)

# %% [markdown]
# ## 23b. A scaled loss
#
# Gradients are small numbers, and in float16 many of them are stored as 0. Take 8,192 tokens and 65 letters:
# the gradient of a wrong letter's logit is its probability over 8,192. With random logits, below, 44 % of
# these gradients become 0 in float16. Nothing warns: the loss is right, and the model learns from half of it.
#
# The remedy (Micikevicius et al., 2018): multiply the loss by a large **scale**, 65,536, say. By the chain
# rule all gradients are as many times larger, and float16 can hold them. Before they are used, divide by the
# scale, in float32. A power of two changes no digit.
#
# Too large a scale makes some gradients infinite. Then this update is lost: leave it out, as one inf would
# make all weights nan, and halve the scale. After `every` good updates in a row double it. So it stays just
# below what fits. A few updates of thousands are lost.
#
# Order matters. The limit of clipping (lesson 15) is for true gradients; a scaled one is always too long. And
# a mistake here hides: Adam divides a constant factor away, so with it a scale that is never taken out
# changes nothing at all, until clipping or decay is added. Look at gradients, not at losses.


# %%
def scaled_step(loss, parameters, optimizer, limit, scale, good, every):
    """One update from a loss whose gradients pass through float16; none if one of them is not finite.

    loss: () float32 with its graph, which does the rounding; parameters: list of float32 tensors, .grad may
    hold the last gradients; optimizer: of these; limit: float, longest gradient of all together (lesson 15);
    scale: float; good: int, updates since one was lost or the scale grew; every: int, so many double it
    -> (scale, good) for the next update, a float and an int; the weights are changed in place.
    """
    raise NotImplementedError("lesson 23b")


# %%
if __name__ == "__main__":
    logits = 3 * torch.randn(8192, 65, generator=torch.Generator().manual_seed(23))
    gradients = logits.softmax(-1) / len(logits)  # of all letters but the right one
    lost = {scale: ((scale * gradients).half() == 0).float().mean().item() for scale in (1, 65536)}
    print(f"stored as 0 in float16: {lost[1]:.0%} of the gradients, scaled {lost[65536]:.1%}")
    claim(44, 100 * lost[1], tol=1)
    assert lost[65536] < 0.001
    claim(8192, len(logits), tol=0)
    claim(65, logits.size(1), tol=0)
    claim(65536, 2.0**16, tol=0)

    vocabulary, ids, _, is_shakespeare = encoded()
    torch.manual_seed(23)
    table = torch.nn.Embedding(len(vocabulary), 16)
    network = torch.nn.Sequential(
        torch.nn.Linear(96, 64), torch.nn.Tanh(), torch.nn.Linear(64, len(vocabulary))
    )
    weights = [*table.parameters(), *network.parameters()]
    optimizer, scale, good, told = torch.optim.AdamW(weights, lr=0.01), 2.0**24, 0, []
    for _ in range(150):
        places = torch.randint(len(ids) - 6, (256, 1)) + torch.arange(7)
        with choose_precision("float16", torch.device("cpu"))[0]:
            logits = network(table(ids[places[:, :6]]).flatten(1))
        loss = F.cross_entropy(logits.float(), ids[places[:, 6]])
        scale, good = yours_or_ours(scaled_step, "23b")(loss, weights, optimizer, 1.0, scale, good, 50)
        told.append((loss.item(), scale))
    print(
        "scale:", *(f"2^{torch.tensor(s).log2():.0f} at {i}" for i, (_, s) in enumerate(told) if i % 25 == 0)
    )
    print(f"loss: {told[0][0]:.2f} ... {told[-1][0]:.2f}")
    assert told[-1][0] < told[0][0] - 1

# %% [markdown]
# ## 23c. What stays in float32
#
# bfloat16 has the range of float32, so nothing needs a scale. It lacks digits, and so it is kept to where the
# time goes: products of matrices. They are sums of many products, and the errors of these cancel; the sums
# themselves are in float32 inside the processor. All else is float32:
#
# - **The weights.** With a rate of 0.001 and a gradient of 1, a weight of 1 should fall to 0 in 1,000
#   updates. In bfloat16 it stays 1 for ever, because the next number below, 0.996, is too far away. So
#   float32 weights are kept, and for each product a copy of them is rounded: hence *mixed* precision.
# - **Norms.** A mean is subtracted. Near 100 numbers of bfloat16 are 0.5 apart: what is left is noise.
# - **The loss.** Near 4 it would come in steps of 1/32: 4.1744 reads 4.1875, and a gain of 0.01 is not seen.
#
# The gradient of a weight arrives as float32, as the weight is: `.bfloat16()` is an operation with a gradient
# like any other, and hands it back in the type of what came in.


# %%
def mixed_steps(x, y, weight, lr, steps):
    """Updates of a model's last layer in mixed precision by plain gradient descent, on one batch.

    x: (N, C) float32, the stream; h is x through LayerNorm without weight and bias (F.layer_norm has it), and
    logits = h weight^T, a product of two bfloat16 matrices; y: (N,) int64, targets; weight: (V, C) float32,
    left as it is; lr: float; steps: int
    -> (list of that many floats, the mean loss before each update; (V, C) float32, the new weight).
    """
    raise NotImplementedError("lesson 23c")


# %%
if __name__ == "__main__":
    g = torch.Generator().manual_seed(23)
    x, y = 100 + torch.randn(40, 12, generator=g), torch.randint(65, (40,), generator=g)
    losses, _ = yours_or_ours(mixed_steps, "23c")(x, y, 0.1 * torch.randn(65, 12, generator=g), 3.0, 5)
    print("losses:", *(f"{loss:.4f}" for loss in losses))
    assert losses == sorted(losses, reverse=True), "it learns"
    ends = {}
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.ones((), dtype=dtype)
        for _ in range(1000):
            weight -= 0.001
        ends[dtype] = weight.item()
    print(f"1,000 updates by 0.001: {ends[torch.float32]:.4f} in float32, {ends[torch.bfloat16]} in bfloat16")
    assert ends[torch.bfloat16] == 1
    claim(0, ends[torch.float32], tol=1e-4)
    claim(1000, 1 / 0.001, tol=1e-6)
    claim(0.001, 1 / 1000, tol=0)
    claim(0.996, 1 - 1 / 256, tol=0.0002)
    claim(0.5, 2.0 ** (6 - 8 + 1), tol=0)
    claim(100, x.mean().item(), tol=0.2)
    claim(32, 1 / 2.0 ** (2 - 8 + 1), tol=0)
    claim(4.1744, torch.tensor(65.0).log().item(), tol=0.0001)
    claim(4.1875, torch.tensor(4.1744).bfloat16().item(), tol=0)
    claim(0.01, 1 / 32, tol=0.03)

# %% [markdown]
# ## How far off
#
# The plot shows how far a stored number is off, relative to the number itself. Both formats are flat where
# they have all their digits: at most 1/256 in bfloat16, 1/2,048 in float16. bfloat16 is flat all over;
# float16 begins to lose digits below 2^-14, has lost all at 3e-8, and ends at 65,504.

# %%
if __name__ == "__main__":
    sizes = 10.0 ** torch.linspace(-10, 6, 1601, dtype=torch.float64)
    errors = {name: (store(sizes, *form) - sizes).abs() / sizes for name, form in formats.items()}
    usual = (sizes > 2.0**-14) & (sizes < 65504)
    claim(256, 1 / errors["bfloat16"].max().item(), tol=15)
    claim(2048, 1 / errors["float16"][usual].max().item(), tol=100)
    claim(3e-8, sizes[errors["float16"] < 1].min().item(), tol=2e-9)
    assert errors["float16"][-1] == float("inf")

    def draw(axes):
        for name, found in errors.items():
            axes.loglog(sizes, found.clamp(min=1e-7), ".", markersize=2, label=name)
        axes.set(xlabel="number", ylabel="relative error when stored", ylim=(1e-6, 3))
        axes.set_title("Two ways to spend 16 bits")
        axes.legend()

    save_plot("23_mixed_precision", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `choose_precision` in machine/hardware.py gives train.py its context, `torch.autocast`: inside it, products
# are made of 16-bit copies, and the weights stay float32. `GPT.to_logits` widens the logits before the loss;
# `build_norm` says that both norms compute in float32 inside. With `--dtype=float16` train.py has a scaler,
# `loss_scaler`; its loop calls `unscale_` before it measures and clips the gradient. `auto` is bfloat16 where
# the processor has instructions for it, and never float16.
