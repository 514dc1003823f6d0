# Lesson 19 (unit C): Learning-rate finder: sweep, smooth, choose
# Before: a schedule raises and lowers the learning rate. How high its top should be, nobody has said.
# Seconds: 16
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 19     your copy, in work/
#     python lessons/run.py check 19     what is right, what is not yet
#     python lessons/run.py show 19      the whole lesson from top to bottom, with its plot

# %%
import copy  # noqa: F401 (for your answers)
import math

import torch
import torch.nn.functional as F

from lessons.course import claim, encoded, save_plot, yours_or_ours
from model import GPT, GPTConfig

predict_1 = None  # factor from one rate to the next: 100 rates from 1e-6 to 1, with equal ratios

# %% [markdown]
# ## One run in place of many
#
# Which learning rate is good depends on model, optimizer, batch and text. You could train once with each of
# ten rates. That is ten runs. A finder needs part of one (Smith, 2015): it begins with a rate that is far too
# low and multiplies it before each update, until the loss explodes. Three things are then seen in one curve:
#
# ```
# loss  ------------.                       /
#                    `.                    /
#                      `--.______________/
#       too low: nothing   good: it falls   too high: it explodes
#       --------------- learning rate, each factor as wide as the next --------------->
# ```
#
# The weights of that run are worth nothing afterwards. The curve is what is kept.

# %% [markdown]
# ## 19a. Sweep
#
# **Rates with equal ratios.** Good rates may lie anywhere from 0.00001 to 1, so what counts is the factor. Of
# three rates from 0.0001 to 0.01 the middle one is 0.001. Equal steps would have 0.00505 in the middle: of
# 100 rates from 1e-6 to 1 with equal steps, all but one are above 0.01. With n rates there are n - 1 gaps:
#
#     rate i = lowest * (highest / lowest) ** (i / (n - 1)),     i = 0 ... n - 1
#
# **A moving average.** One batch is easier than another, so a single loss jumps. The average m keeps a share
# s of itself at each update: m = s * m + (1 - s) * loss. It begins at 0, not at a loss, so it is too low at
# first. With s = 0.9 and the losses 4 and 2 it is 0.4, then 0.56. The shares given out so far are 0.1 and
# 0.19, that is 1 - s ** n after n losses. Divided by these it is 4, then 2.947. Adam does the same
# (lesson 16).
#
# **The end.** The loss has exploded if it is more than `too_high` times the lowest average so far, this
# update's included, or is not a number. That loss and its average are still written down. Then it stops.
#
# **No trace.** A finder may be called in the middle of a run. After it, all is as it was: weights and
# buffers, the optimizer's averages and rate, and the random numbers of torch: `torch.get_rng_state()` reads
# their state, and `torch.set_rng_state` sets it. No gradient is left. A `state_dict()` refers to the living
# tensors; `copy.deepcopy` makes it yours.


# %%
def sweep(model, optimizer, update, lowest, highest, updates, smoothing, too_high):
    """Make updates at higher and higher rates until the loss explodes or none is left, then put all back.

    model: any module; optimizer: of its parameters; update(i, rate) -> float: makes update i (0, 1, 2 ...) at
    that rate, and returns the loss before it; lowest, highest: floats, of the first and the last rate;
    updates: int; smoothing: float, what the average keeps; too_high: float
    -> (rates, losses, averages), three lists of equally many floats.
    """
    raise NotImplementedError("lesson 19a")


# %%
if __name__ == "__main__":
    vocabulary, ids, _, is_shakespeare = encoded()

    def batch(i):
        """The windows of update i: x and y, (8, 32) each."""
        g = torch.Generator().manual_seed(i)
        rows = torch.stack([ids[at : at + 33] for at in torch.randint(len(ids) - 33, (8,), generator=g)])
        return rows[:, :-1], rows[:, 1:]

    def fresh(lr):
        """The same model each time, its optimizer, and the update that a sweep asks for."""
        torch.manual_seed(19)
        shape = dict(vocab_size=len(vocabulary), block_size=32, n_layer=2, n_head=2, n_embd=32)
        model = GPT(GPTConfig(**shape))
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)

        def update(i, rate):
            for group in optimizer.param_groups:
                group["lr"] = rate
            x, y = batch(i)
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        return model, optimizer, update

    model, optimizer, update = fresh(1e-3)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    smoothing, first, second = 0.9, 4, 2  # the example by hand has two losses
    found = yours_or_ours(sweep, "19a")(model, optimizer, update, 1e-6, 3.0, 150, smoothing, 2.0)
    rates, losses, averages = found
    for rate, average in [*zip(rates, averages, strict=True)][::10]:
        print(f"rate {rate:8.1e}  loss {average:5.2f}  {'#' * round(10 * min(average, 6))}")
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert losses[-1] > 2 * min(averages) and len(rates) < 150, "it exploded"
    claim(100, len(torch.linspace(1e-6, 1, 100)), tol=0)
    claim(0.01, torch.linspace(1e-6, 1, 100)[1].item(), tol=0.0002)
    claim(0.001, math.sqrt(0.0001 * 0.01), tol=1e-9)
    claim(0.00001, 1e-5, tol=0)
    claim(0.0001, 1e-4, tol=0)
    claim(0.00505, (0.0001 + 0.01) / 2, tol=1e-9)
    share = 1 - smoothing
    once = share * first
    twice = smoothing * once + share * second
    claim(0.9, smoothing, tol=0)
    claim(4, once / share, tol=1e-9)
    claim(2, second, tol=0)
    claim(0.4, once, tol=1e-9)
    claim(0.56, twice, tol=1e-9)
    claim(0.1, share, tol=1e-9)
    claim(0.19, 1 - smoothing**2, tol=1e-9)
    claim(2.947, twice / (1 - smoothing**2), tol=0.001)

# %% [markdown]
# ## 19b. Choose
#
# Where on the curve is the rate to train with? Not where the average is lowest: there the loss is about to
# explode, and the average, which lags, does not know yet. Nor where the first loss jumps: that was a hard
# batch. This project takes the rate at which **90 % of the fall** is done. Say the average begins at 4 and
# its lowest is 2. Then the fall is 2, nine tenths of it are 1.8, and the first rate whose average is at or
# below 2.2 is the one.
#
# A curve may also say nothing: all rates were too low, or the text cannot be learned. Then it goes up and
# down by chance, and any choice is wrong. How large is chance? The losses of the first tenth of the updates
# (rounded down, but at least 2) were made while nothing was learned. Their standard deviation
# (`statistics.stdev`) is the noise. A fall of at most twice the noise is no fall: return None.
#
# The last average may be nan, if the loss was. Nothing compares with nan: `min` of a list passes over it if
# it is not the first, the minimum of a tensor or an array is nan.


# %%
def choose(rates, losses, averages):
    """The first rate at which nine tenths of the fall of the averages are done.

    rates, losses, averages: lists of equally many floats, as `sweep` returns them; losses and averages may
    end in a nan -> float, one of the rates, or None if the averages fell by no more than twice the noise.
    """
    raise NotImplementedError("lesson 19b")


# %% [markdown]
# ## Was it right?
#
# A rule is tested by training. Here the same model makes 100 updates at four rates: a thirtieth of the chosen
# one, the chosen one, that of the lowest average, and that of the explosion. Each run begins with the same
# loss, near 4.17: each makes its model anew, from one seed. The chosen rate ends lowest, at 2.43. A
# thirtieth of it ends at 2.90: nothing is wrong there, it is only slow. The rate of the lowest average ends
# at 2.98, worse than the slow one: its steps are too long. And the rate of the explosion learns nothing.
#
# So the finder does not tell the second digit. It tells the power of ten, for the price of one short run.

# %%
if __name__ == "__main__":
    chosen = yours_or_ours(choose, "19b")(rates, losses, averages)
    lowest = rates[averages.index(min(averages))]
    runs = {"chosen / 30": chosen / 30, "chosen": chosen, "lowest average": lowest, "explosion": rates[-1]}
    ends = {}
    for name, rate in runs.items():
        _, _, update = fresh(rate)
        curve = [update(i, rate) for i in range(100)]
        claim(4.17, curve[0], tol=0.05, when=is_shakespeare)
        ends[name] = sum(curve[-20:]) / 20
        print(f"{name:15} rate {rate:.1e}: loss {curve[0]:.2f} at first, {ends[name]:.2f} at the end")
    assert min(ends, key=ends.get) == "chosen" or not is_shakespeare
    claim(100, len(curve), tol=0)
    claim(2.43, ends["chosen"], tol=0.03, when=is_shakespeare)
    claim(2.90, ends["chosen / 30"], tol=0.03, when=is_shakespeare)
    claim(2.98, ends["lowest average"], tol=0.05, when=is_shakespeare)
    assert ends["explosion"] > 4.0 or not is_shakespeare, "it learns nothing"
    claim(90, 100 * 1.8 / 2, tol=1e-9)
    claim(1.8, 0.9 * 2, tol=1e-9)
    claim(2.2, 4 - 0.9 * (4 - 2), tol=1e-9)

    def draw(axes):
        axes.set_xscale("log")
        axes.plot(rates, losses, ".", color="0.7", label="loss of each update")
        axes.plot(rates, averages, label="moving average")
        axes.axvline(chosen, linestyle="--", color="C1", label=f"chosen: {chosen:.1e}")
        axes.axvline(lowest, linestyle=":", color="C3", label=f"lowest average: {lowest:.1e}")
        axes.set(xlabel="learning rate", ylabel="loss (nats)", ylim=(2, 6), title="One run, all rates")
        axes.legend()

    save_plot("19_lr_finder", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `sweep` and `suggested` in techniques/lr_finder.py are the two exercises; that `sweep` puts all back even
# if an update raises an error. As a command it takes the settings of train.py:
# `python -m techniques.lr_finder config/tiny.py`. docs/compare.md has the test of the rule, and of others:
# steepest fall, lowest average divided by ten, other shares of the fall. With two hundred
# updates its suggestions were within a factor of three of the best rate of each of three configs.
