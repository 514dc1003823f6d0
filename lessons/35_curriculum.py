# Lesson 35 (unit F): Curriculum learning: order, pacing, fair test
# Before: what a model learns from, and from whom. The windows came in a random order, and nobody asked why.
# Seconds: 13
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 35     your copy, in work/
#     python lessons/run.py check 35     what is right, what is not yet
#     python lessons/run.py show 35      the whole lesson from top to bottom, with its plot

# %%
import math
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F

from lessons.course import claim, encoded, save_plot, yours_or_ours
from techniques.significance import t_quantile

predict_1 = None  # easy first against plain, three seeds each: by how many standard errors do they differ
predict_2 = None  # windows read in three stages (a third, two thirds, all of n), as a multiple of n

# %% [markdown]
# ## Easy things first?
#
# Children begin with easy words. Should a model? A **curriculum** is an order of the training windows that is
# not random: the easy ones first, the hard ones later (Bengio et al., 2009). It needs two things: a score
# that says how hard a window is, and a **pace** that says when the harder ones come. The idea is so plausible
# that it is often believed without a test. So this lesson builds it, and then tests it fairly.

# %% [markdown]
# ## 35a. Score and pace
#
# The score: how many nats does a simple model pay for each target of a window? The simplest is the bigram of
# lesson 2, counts + 1. In a text of three letters, t was followed by h 6 times, by o 2 times, by t never.
# Then P(h | t) is 7/11 and costs 0.452 nats, o costs 1.299. The score of a window is the mean over its
# targets. The table is counted on the training text alone. If it knew val, val would decide what is read, and
# could not judge what came of it.
#
# The pace: in stages. Sort the windows by their score. Stage 1 of S reads the easiest n / S of them, stage 2
# the easiest 2 n / S, each rounded up, and so on; the last stage reads all. Within a stage the order is
# random. With 7 windows and 3 stages:
#
#     windows, easy to hard    a b c d e f g
#     stage 1                  x x x
#     stage 2                  x x x x x
#     stage 3                  x x x x x x x
#
# That makes 3 + 5 + 7 windows. A plan that never comes to all windows trains on another text than it will be
# asked about.


# %%
def easy_first(ids, cut, T, V, stages, seed):
    """How hard each window of the training text is, and the order in which a curriculum reads them.

    ids: (n,) int64, 0 to V - 1; cut: int, the first cut ids are trained on, the rest is val; T: int, targets
    of a window: window 0 has the targets 1 to T of the training text, and the last one may have fewer;
    stages: int; seed: int, of one rng = np.random.default_rng(seed) for all stages; a stage reads
    rng.permutation(its windows, listed from easy to hard); no two windows are equally hard
    -> (list of W floats: mean nats of each window, in the order of the text; list of ints: windows to read).
    """
    raise NotImplementedError("lesson 35a")


# %%
if __name__ == "__main__":
    vocabulary, ids, val_ids, is_shakespeare = encoded()
    V, T, N = len(vocabulary), 32, 64_000
    order_of = yours_or_ours(easy_first, "35a")
    text = torch.cat((ids[: N + 1], val_ids))
    nats, _ = order_of(text, N + 1, T, V, 3, 1)
    for name, pick in (("easiest", min), ("hardest", max)):
        i = nats.index(pick(nats))
        print(f"{name}: {nats[i]:.2f} nats", repr("".join(vocabulary[j] for j in text[i * T : i * T + T])))
    claim(1.79, min(nats), tol=0.01, when=is_shakespeare)
    claim(3.21, max(nats), tol=0.01, when=is_shakespeare)
    tiny = "th" * 6 + "to" * 2
    costs, _ = order_of(torch.tensor(["hot".index(letter) for letter in tiny]), len(tiny), 1, 3, 2, 1)
    claim(0.452, costs[0], tol=0.001)  # h behind t
    claim(1.299, costs[-1], tol=0.001)  # o behind t
    claim(6, tiny.count("th"), tol=0)
    claim(2, tiny.count("to"), tol=0)
    claim(11, 7 / math.exp(-costs[0]), tol=0.001)
    small = torch.randint(5, (29,), generator=torch.Generator().manual_seed(1))
    scores, order = order_of(small, 29, 4, 5, 3, 1)
    claim(7, len(scores), tol=0)
    claim(3, sum(i in order[:3] for i in sorted(range(7), key=lambda i: scores[i])[:3]), tol=0)
    claim(5, len({*order[3:8]}), tol=0)
    claim(15, len(order), tol=0)

# %% [markdown]
# ## 35b. A fair comparison
#
# Two arms: plain, and easy first. What may differ is the order, and nothing else. So:
#
# - **The same budget.** Compare where both have read equally many tokens. In the plan above 15 windows are
#   read before it ends, more than twice the text. A plain run of one pass has read half of that.
# - **The same look.** Take the loss at the budget in both arms. Whoever takes the lowest of many looks for
#   one arm gives it a chance that the other has not.
# - **The same seeds**, in pairs, as in lesson 22: the gain of a seed is plain minus other.
#
# With gains of 0.01, 0.03 and 0.05 the mean is 0.03, and s, their standard deviation (n - 1), 0.02. The
# **standard error** is s / sqrt(n), 0.0115: a mean of n gains is usually off by about that. The mean is 2.6
# standard errors from 0. Is that enough? With many seeds 2 would be, with three it takes 4.303, Student's t
# of lesson 22. So: undecided.


# %%
def fair(plain, other, budget, t):
    """Which arm has the lower loss after a budget of tokens, by so many standard errors?

    plain, other: dicts, seed -> list of looks (tokens read, val loss), by rising tokens; seeds that one arm
    lacks are left out; budget: int; each run's loss is that of its last look at budget tokens or fewer; t:
    float, Student's
    -> {"gain": float, mean over seeds of plain minus other; "errors": float, gain in standard errors;
        "better": "other" if errors is above t, "plain" if it is below -t, else "undecided"}.
    """
    raise NotImplementedError("lesson 35b")


# %%
if __name__ == "__main__":
    compare = yours_or_ours(fair, "35b")
    plain = {1: [(64, 2.50), (128, 2.40)], 2: [(64, 2.60), (128, 2.51)], 3: [(64, 2.55), (128, 2.47)]}
    other = {1: [(96, 2.49), (160, 2.3)], 2: [(96, 2.57), (160, 2.4)], 3: [(96, 2.50), (160, 2.3)]}
    found = compare(plain, other, 100, 4.303)
    claim(0.03, found["gain"], tol=1e-6)
    claim(2.6, found["errors"], tol=0.01)
    claim(0.02, found["gain"] / found["errors"] * math.sqrt(3), tol=1e-6)
    claim(0.0115, found["gain"] / found["errors"], tol=1e-4)
    claim(0.01, 2.50 - 2.49, tol=1e-6)
    claim(0.05, 2.55 - 2.50, tol=1e-6)
    claim(4.303, t_quantile(0.95, 2), tol=0.001)
    claim(2, t_quantile(0.95, 60), tol=0.001)
    assert found["better"] == "undecided"

# %% [markdown]
# ## The test
#
# A small model sees six letters and guesses the next. It learns from 64,000 letters, 2,000 windows; the
# easiest costs 1.79 nats, the hardest 3.21. Both arms read 4,000 windows: easy first in three stages, plain
# in random order, two passes. Three seeds.
#
# Easy first loses: it is 0.032 nats behind, and behind with each seed. And yet it is undecided: 2 standard
# errors are less than 4.303. That is what to write down: no gain was seen, and three seeds do not tell
# whether it is worse. Compare without a budget, the whole plan against one pass of plain, and easy first
# seems to gain 0.034, because it has read twice as much.
#
# Why no gain? The easiest windows are names and line breaks in a row, of which a few would be enough. A
# random order shows everything from the start.


# %%
class Guess(torch.nn.Module):
    """Guesses each next letter from the six letters up to it: ids (B, T) -> logits (B, T, V)."""

    def __init__(self):
        super().__init__()
        self.wte, self.up, self.down = (
            torch.nn.Embedding(V, 16),
            torch.nn.Linear(96, 64),
            torch.nn.Linear(64, V),
        )

    def forward(self, x):
        return self.down(self.up(F.pad(self.wte(x), (0, 0, 5, 0)).unfold(1, 6, 1).flatten(2)).relu())


def looks(order, seed):
    """Train on windows in that order; tokens read and val loss after every 25 updates."""
    torch.manual_seed(seed)
    model, seen = Guess(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005, weight_decay=0.0, fused=True)
    x, y = text[:N].view(-1, T), text[1 : N + 1].view(-1, T)
    for i in range(0, len(order), 16):
        window = order[i : i + 16]
        loss = F.cross_entropy(model(x[window]).flatten(0, 1), y[window].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (i + 16) % 400 == 0:
            with torch.no_grad():
                val_loss = F.cross_entropy(model(val_x).flatten(0, 1), val_y.flatten()).item()
            seen.append(((i + 16) * T, val_loss))
    return seen


if __name__ == "__main__":
    val_x, val_y = val_ids[:8192].view(-1, T), val_ids[1:8193].view(-1, T)
    plain, easy = {}, {}
    for seed in (1, 2, 3):
        order = order_of(text, N + 1, T, V, 3, seed)[1]
        rng = np.random.default_rng(seed)
        passes = [i for _ in range(2) for i in rng.permutation(len(nats)).tolist()]
        easy[seed], plain[seed] = looks(order, seed), looks(passes[: len(order)], seed)
    half = {seed: run[: len(run) // 2] for seed, run in plain.items()}  # one pass
    found, unfair = compare(plain, easy, 2 * N, 4.303), compare(half, easy, 2 * N, 4.303)
    curves = {}
    for name, arm in (("plain", plain), ("easy first", easy)):
        curves[name] = [
            mean(losses) for losses in zip(*([v for _, v in run] for run in arm.values()), strict=True)
        ]
        print(f"{name:10}", *(f"{loss:.3f}" for loss in curves[name]))
    print("the same budget", found, "one pass against the plan", unfair, sep="\n")
    claim(0.032, -found["gain"], tol=0.01, when=is_shakespeare)
    claim(2.0, -found["errors"], tol=0.7, when=is_shakespeare)
    claim(0.034, unfair["gain"], tol=0.012, when=is_shakespeare)
    if is_shakespeare:
        assert found["better"] == "undecided"
        assert all(plain[seed][-1][1] < easy[seed][-1][1] for seed in plain)
    claim(64_000, N, tol=0)
    claim(2_000, len(nats), tol=0)
    claim(4_000, len(order), tol=1, when=is_shakespeare)

    def draw(axes):
        for name, losses in curves.items():
            axes.plot([tokens for tokens, _ in plain[1]], losses, marker=".", label=name)
        axes.set(
            xlabel="tokens read", ylabel="val loss (nats)", title="Easy first, or at random: three seeds"
        )
        axes.legend()

    save_plot("35_curriculum", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `nats_per_token` in techniques/curriculum.py is the score, and `--curriculum=difficulty` sorts the windows
# of the first pass by it. With `--curriculum=length` windows are cut into short ones at first, `cut` in
# techniques/curriculum.py: as many tokens an update, less to look back at. docs/feeding.md has both tests, at
# equal tokens, with three seeds: short windows first make no difference that can be seen, and easy ones first
# are worse with each seed, there as here. `interval` in techniques/significance.py is 35b;
# techniques/sweep.py and techniques/race.py compare settings by it.
