# Lesson 22 (unit D): Data augmentation for text: random windows, token noise
# Before: dropout, weight decay and an early stop hold a model back; the text was the same in each pass.
# Seconds: 13
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 22     your copy, in work/
#     python lessons/run.py check 22     what is right, what is not yet
#     python lessons/run.py show 22      the whole lesson from top to bottom, with its plot

# %%
import itertools
import math
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F

from lessons.course import claim, encoded, save_plot, yours_or_ours
from techniques.significance import t_quantile

predict_1 = None  # share of 300 windows never seen, if 300 are drawn one by one and put back each time
predict_2 = None  # lowest loss in nats per target, if 1 target in 20 is one of 65 letters, drawn at random

# %% [markdown]
# ## A small text, read often
#
# A small text is read many times, and each time the model knows it better by heart. Pictures can be mirrored
# and cropped, and so become new ones: that is **augmentation**. What is a mirrored text? Two things can be
# done without a change of meaning. Cut the text elsewhere, so that a token stands at another place of its
# window. And disturb a few of the tokens that the model reads, so that it does not rely on any single one.

# %% [markdown]
# ## 22a. An epoch: other cuts, another order
#
# One pass over the text, an **epoch**, should ask for each target once. Draw windows one by one and put each
# back, and after n draws of n windows a share of (1 - 1/n)^n was never seen: nearly 1/e, 0.368, and others
# came two or three times. So draw an order instead: a permutation.
#
# Token 0 follows nothing, so a text of n tokens has n - 1 targets, places 1 to n - 1. With T targets in each
# window they fill W windows, where W is (n - 1) / T rounded up. There is room for W T targets, so
# W T - (n - 1) places are to spare, and by so many all cuts can move to the left: by 0, by all of them, or by
# anything between. Here are the targets b to k in windows of 4, with 2 to spare:
#
#     offset 0    [b c d e][f g h i][j k . .]
#     offset 1    [. b c d][e f g h][i j k .]
#     offset 2    [. . b c][d e f g][h i j k]
#
# So window w, counted from 0, begins at target 1 + w T - offset. What sticks out of the text is cut off. At
# offset 1 the windows are `(1, 4)`, `(4, 8)` and `(8, 11)`: start, and stop behind the last target. Order and
# offset are functions of seed and epoch: a run that is resumed reads what it would have read.
# `np.random.default_rng([seed, epoch])` takes both numbers. A sum of them will not do: seed 2 in epoch 0
# would be seed 1 in epoch 1.


# %%
def epoch_of(n_tokens, T, seed, epoch):
    """The windows of an epoch in the order in which they are read; each target is in exactly one.

    n_tokens: int, at least T + 1; T: int, most targets of a window; seed, epoch: int. Drawn from
    np.random.default_rng([seed, epoch]): first the order, with its permutation(W), then the offset, with its
    integers(number of offsets) -> list of W tuples (start, stop) of ints, 1 <= start < stop <= n_tokens.
    """
    raise NotImplementedError("lesson 22a")


# %%
if __name__ == "__main__":
    cut = yours_or_ours(epoch_of, "22a")
    for epoch in range(3):
        print(f"epoch {epoch}:", *("[" + "abcdefghijk"[a:b] + "]" for a, b in cut(11, 4, 22, epoch)))
    claim(4, max(b - a for epoch in range(9) for a, b in cut(11, 4, 22, epoch)), tol=0)
    claim(2, 3 * 4 - 10, tol=0)
    drawn = np.random.default_rng(22).integers(3000, size=3000)
    claim(0.368, 1 - len({*drawn.tolist()}) / 3000, tol=0.015)

# %% [markdown]
# ## 22b. Noise in what is read
#
# Replace a small share of the tokens that the model reads, each on its own, by a random id: at a rate of 0.05
# it is one token in twenty (Xie et al., 2017). What a model knows by heart hangs on exact words; what it has
# understood survives a slip. Six letters in a row stay whole with probability `0.95^6`, 0.735.
#
#     read      t h e   q i n g      one letter replaced
#     targets   h e   k i n g .      as they were
#
# The targets stay as they were. A target that was drawn can be guessed by nobody, and even a perfect model
# would pay for it: with these letters and a rate of 0.05 at least 0.401 nats per target. And what is
# validated stays as it is: a val loss that changes with the noise is no measure. The noise is a function of
# seed and step. It has a generator of its own, since dropout draws from the global one. Any other generator
# will do, seeded with both numbers, and best with `[seed, step]`, which keeps them apart.


# %%
def noisy(x, y, V, rate, seed, step, training):
    """A batch in which some of the tokens to read are random ids, other ones in each step.

    x, y: (B, T) int64, left as they are; y is -1 where nothing is scored; V: int, ids are 0 to V - 1, all
    equally likely as noise; rate: float, the probability for each token of x; seed, step: int; training:
    bool, False: no noise -> (x, y), each (B, T) int64.
    """
    raise NotImplementedError("lesson 22b")


# %%
if __name__ == "__main__":
    vocabulary, ids, val_ids, is_shakespeare = encoded()
    V, T, K = len(vocabulary), 32, 6
    add_noise = yours_or_ours(noisy, "22b")
    for step in range(3):
        x, _ = add_noise(ids[:120].view(2, 60), ids[1:121].view(2, 60), V, 0.05, 22, step, True)
        print("".join(vocabulary[i] for i in x[0]).replace("\n", "/"))
    claim(0.735, 0.95**6, tol=0.001)
    claim(0.05, 1 / 20, tol=1e-9)
    stays, other = 0.95 + 0.05 / 65, 0.05 / 65  # probabilities of the true letter and of each other one
    claim(0.401, -stays * math.log(stays) - 64 * other * math.log(other), tol=0.001)

# %% [markdown]
# ## 22c. Does it help, or was it luck?
#
# Train twice with two seeds, and the losses differ; so one run of each kind proves nothing. Nor does the best
# of three: more runs, more luck. Compare in pairs. The same seed means the same first weights and the same
# windows, so what both owe to these cancels in the difference, the **gain** of that seed.
#
# With gains 0.02, 0.06 and 0.10 the mean is 0.06. Their deviations from it are -0.04, 0 and 0.04: add the
# squares, divide by n - 1 = 2, take the root, and s, the standard deviation, is 0.04. The mean of three
# spreads less, by the root of 3. How sure is that? The deviation itself is a guess from three numbers.
# Student's t (1908) allows for it: 4.303 for three numbers, less for more, so that the interval gain - t s /
# sqrt(n) to gain + t s / sqrt(n) misses the true gain one time in twenty. Here it reaches from -0.04 to 0.16.
# It holds 0: undecided, though all three seeds agree.


# %%
def decide(plain, other, t):
    """Which of two settings ends with the lower loss? "undecided" if the interval of the mean gain holds 0.

    plain, other: lists of n floats, val losses; the same place is the same seed; t: float, Student's for n
    -> {"gain": float, mean of plain minus other, "low": float, "high": float, its interval,
        "better": "plain", "other" or "undecided"}.
    """
    raise NotImplementedError("lesson 22c")


# %%
if __name__ == "__main__":
    choose = yours_or_ours(decide, "22c")
    found = choose([2.50, 2.60, 2.40], [2.48, 2.54, 2.30], 4.303)
    claim(0.06, found["gain"], tol=1e-6)
    claim(0.16, found["high"], tol=0.005)
    claim(0.04, -found["low"], tol=0.005)
    claim(0.02, 2.50 - 2.48, tol=1e-6)
    claim(0.10, 2.40 - 2.30, tol=1e-6)
    claim(3, len([2.48, 2.54, 2.30]), tol=0)
    assert found["better"] == "undecided"
    claim(4.303, t_quantile(0.95, 2), tol=0.001)

# %% [markdown]
# ## Three ways to read a small text
#
# A small model sees six letters and guesses the next. It reads the first 6,000 letters of the play 12 times,
# in three ways, with three seeds each. The plot shows the mean val loss. After a few passes the models begin
# to learn by heart, and it climbs. Noise takes the climb away. At the end it gains 0.085 over random cuts
# alone, and its interval lies above 0: from 0.04 to 0.13. Random cuts gain 0.035 over fixed ones, each of the
# three seeds agrees, and still it is undecided. If training stops at its lowest val loss, as in lesson 21,
# the gains shrink: noise is worth 0.022 then, cuts 0.013. So what you find depends on where you look; decide
# that before you run.


# %%
def guess(model, x):
    """Logits for each next letter from the six letters up to it: ids (B, T) -> (B, T, V)."""
    wte, up, down = model
    return down(up(F.pad(wte(x), (0, 0, K - 1, 0)).unfold(1, K, 1).flatten(2)).relu())


def batch_of(text, windows):
    """x, y (B, T) of windows (start, stop); y is -1 outside of them."""
    start, stop = torch.tensor(windows).T[..., None]  # (B, 1)
    places = (start - 1).clamp(max=len(text) - 1 - T) + torch.arange(T + 1)
    y = torch.where((start <= places) & (places < stop), text[places], -1)
    return text[places][:, :-1], y[:, 1:]


def fixed(n_tokens, T, seed, epoch):
    return np.random.default_rng([seed, epoch]).permutation(cut(n_tokens, T, seed, 0)).tolist()


def val_losses(seed, epoch_of, rate):
    """Val loss after every second pass over the text."""
    torch.manual_seed(seed)
    parts = torch.nn.Embedding(V, 16), torch.nn.Linear(16 * K, 64), torch.nn.Linear(64, V)
    model, step, losses = torch.nn.ModuleList(parts), 0, []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005, weight_decay=0.0, fused=True)
    for epoch in range(12):
        windows = epoch_of(len(small), T, seed, epoch)
        for i in range(0, len(windows), 16):
            x, y = add_noise(*batch_of(small, windows[i : i + 16]), V, rate, seed, step, True)
            loss = F.cross_entropy(guess(model, x).flatten(0, 1), y.flatten(), ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        if epoch % 2:
            with torch.no_grad():
                losses.append(F.cross_entropy(guess(model, val_x).flatten(0, 1), val_y.flatten()).item())
    return losses


if __name__ == "__main__":
    small, val_x, val_y = ids[:6000], val_ids[:8192].view(-1, T), val_ids[1:8193].view(-1, T)
    kinds = {"fixed cuts": (fixed, 0.0), "random cuts": (cut, 0.0), "with noise": (cut, 0.05)}
    curves = {name: [val_losses(seed, *kind) for seed in (1, 2, 3)] for name, kind in kinds.items()}
    gains = {}
    for (a, was), (b, now) in itertools.pairwise(curves.items()):
        for end, of in (("end", lambda losses: losses[-1]), ("lowest", min)):
            gains[end, b] = gain = choose([*map(of, was)], [*map(of, now)], 4.303)
            print(f"{end:6} {a} -> {b}: {gain['gain']:.3f}, {gain['better']}")
    claim(0.085, gains["end", "with noise"]["gain"], tol=0.015, when=is_shakespeare)
    claim(0.04, gains["end", "with noise"]["low"], tol=0.015, when=is_shakespeare)
    claim(0.13, gains["end", "with noise"]["high"], tol=0.02, when=is_shakespeare)
    claim(0.035, gains["end", "random cuts"]["gain"], tol=0.01, when=is_shakespeare)
    claim(0.022, gains["lowest", "with noise"]["gain"], tol=0.008, when=is_shakespeare)
    claim(0.013, gains["lowest", "random cuts"]["gain"], tol=0.006, when=is_shakespeare)
    if is_shakespeare:
        assert all(losses[-1] > min(losses) + 0.02 for losses in curves["random cuts"]), "learned by heart"
        assert gains["end", "random cuts"]["better"] == "undecided"
        assert all(a[-1] > b[-1] for a, b in zip(curves["fixed cuts"], curves["random cuts"], strict=True))
    claim(6000, len(small), tol=0)
    claim(12, 2 * len(curves["with noise"][0]), tol=0)

    def draw(axes):
        for name, runs in curves.items():
            axes.plot(range(2, 13, 2), [mean(v) for v in zip(*runs, strict=True)], marker=".", label=name)
        axes.set(xlabel="passes over the text", ylabel="val loss (nats)", title="A small text, read often")
        axes.legend()

    save_plot("22_augmentation", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `Windows` in data.py is 22a, with one addition: a window that would stick out of the text is moved inward
# and has T tokens all the same; the targets that another window asks for are -1 in it. As here, windows of
# running text cross from one document to the next; samples with masks are packed whole instead. The project
# has no noise of single tokens. `--augment` (techniques/augment.py) rewrites whole windows of training text:
# all in capitals, without marks, without line breaks. docs/feeding.md has its gain over three seeds, which is
# within noise, and says so. `interval` in techniques/significance.py is 22c, and techniques/sweep.py compares
# settings by it. It looks after each seed, and stops once the answer is clear. For that the interval has to
# be wider: who looks often is often lucky.
