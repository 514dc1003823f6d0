# Lesson 8 (unit B): Rotary positions: rotate pairs, relative by construction
# Before: a table is added to the tokens. It says where a token stands; what counts is how far apart two are.
# Seconds: 4
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 8      your copy, in work/
#     python lessons/run.py check 8      what is right, what is not yet
#     python lessons/run.py show 8       the whole lesson from top to bottom, with its plot

# %%
import math

import torch

from lessons.course import claim, save_plot, yours_or_ours

predict_1 = None  # change of q·k when both tokens move on by 10 positions

# %% [markdown]
# ## Turn, do not add
#
# In the next lesson a token asks with a vector q, its query, and another one answers with a vector k, its
# key. How much the first looks at the second is decided by their product q·k alone. Here q and k are just
# two vectors of d numbers.
#
# "The word before this one" means the same on page one and on page nine. So q·k should depend on how far
# the two tokens are apart, and not on where they stand. If positions are added to the tokens (lesson 7), a
# model has to learn that for each place anew.
#
# Rotary positions (Su et al., 2021) get it for nothing. The product of two vectors in a plane depends on
# their lengths and on the angle between them. Turn q by its position and k by its own, and the angle
# between them changes by the distance of the two. Turn both further by the same amount, and you predicted
# above what happens.

# %% [markdown]
# ## 8a. Angles
#
# A vector of d numbers has `d/2` pairs, and each pair turns at a speed of its own, like the hands of
# lesson 7: pair i turns by `base^(-2i / d)` radians per position. Usually the base is 10,000. At d = 64 the
# first pair is back after 6.28 positions, the last one after 47,117. All that a turn needs of an angle is
# its cosine and its sine, so these are computed once for all texts.


# %%
def tables(T, d, base):
    """Cosines and sines of the angles of positions 0 ... T - 1, a column for each pair.

    T, d: int, d is even; base: float -> (cos, sin), each (T, d/2) float32.
    """
    raise NotImplementedError("lesson 8a")


# %% [markdown]
# Positions are whole numbers and may be large. The short format bfloat16, in which much of a model is
# computed, has no 1001: the nearest is 1000, and the fastest pair would be off by a whole radian. So the
# tables are made in float32.

# %%
if __name__ == "__main__":
    T, d = 200, 64
    cos, sin = yours_or_ours(tables, "8a")(T, d, 10000.0)
    speeds = torch.atan2(sin[1], cos[1])  # (d/2,): radians per position
    turns = math.tau / speeds  # (d/2,): positions after which a pair is back
    print(f"back after {turns[0]:.2f} positions: the first pair; after {turns[-1]:,.0f}: the last")
    claim(6.28, turns[0].item(), tol=0.01)
    claim(47117, turns[-1].item(), tol=50)
    claim(64, d, tol=0)
    claim(10000, float(speeds[1] ** (-d / 2)), tol=10)
    claim(1000, torch.tensor(1001).bfloat16().item(), tol=0)
    claim(1001, torch.tensor(1001.0).item(), tol=0)

# %% [markdown]
# ## 8b. The turn
#
# A point (a, b) that is turned about the origin by an angle lands at
#
#     `a cos - b sin,  b cos + a sin`
#
# Which numbers make a pair is a convention. The paper takes neighbours. The public ports of Llama, and this
# project, take `x[i]` and `x[i + d/2]`: then the pairs are two halves of the vector, and all turn at once.
# The grader accepts both and says which one it saw.
#
# `check` draws q·k over the distance, from three positions. Its rows have to be equal. That is not all: if q
# and k both come back with their numbers in another order, no product tells, but the weights do not fit.


# %%
def rotate(x, cos, sin):
    """Turn each pair x[i], x[i + d/2] by its angle.

    x: (B, T, d) float32, left as it is; cos, sin: (T, d/2), or (B, T, d/2) if each text has its own, float32
    -> (B, T, d) float32.
    """
    raise NotImplementedError("lesson 8b")


# %% [markdown]
# A turn keeps the length of a vector. That is the quickest test: with a plus sign in both places of the
# formula the lengths below change by factors from 0.84 to 1.13, and q·k varies with the position. Nothing
# crashes.

# %%
if __name__ == "__main__":
    turn = yours_or_ours(rotate, "8b")
    g = torch.Generator().manual_seed(8)
    x = torch.randn(1, T, d, generator=g)
    assert torch.allclose(turn(x, cos, sin).norm(dim=-1), x.norm(dim=-1), atol=1e-4), "a turn keeps lengths"
    a, b = torch.randn(2, T, d // 2, generator=g)  # the pairs of T vectors
    two_plus = (a * cos + b * sin).square() + (b * cos + a * sin).square()
    factors = (two_plus.sum(1) / (a.square() + b.square()).sum(1)).sqrt()
    print(f"with two plus signs lengths change by {factors.min():.2f} to {factors.max():.2f}")
    claim(0.84, factors.min().item(), tol=0.005)
    claim(1.13, factors.max().item(), tol=0.005)

# %% [markdown]
# ## Two conventions
#
# Turning neighbours is turning halves with the numbers in another order: below, in `order`. Both give a
# q·k that depends on the distance alone, and a model can be trained with either. But a trained model
# has learned one of them. In a program that turns the other pairs it still runs: position 0 is not turned
# at all and the first few are turned little, so its text begins well and then falls apart (shainet#111). To
# move weights from one to the other, reorder what makes q and k.

# %%
if __name__ == "__main__":
    order = torch.arange(d).view(-1, 2).T.flatten()  # 0, 2, 4, ..., 1, 3, 5, ...

    def turn_neighbours(x):
        return turn(x[..., order], cos, sin)[..., order.argsort()]

    q, k = torch.randn(2, 1, T, d, generator=g)
    halves, neighbours = turn(q, cos, sin) @ turn(k, cos, sin).mT, turn_neighbours(q) @ turn_neighbours(k).mT
    reordered = turn(q[..., order], cos, sin) @ turn(k[..., order], cos, sin).mT
    assert torch.allclose(halves[0, 0, 0], neighbours[0, 0, 0], atol=1e-3), "position 0 is not turned"
    assert (halves - neighbours).abs().max() > 10, "two conventions, two models"
    assert torch.allclose(reordered, neighbours, atol=1e-3), "the order is all that differs"

# %% [markdown]
# ## 8c. At the given positions
#
# A token's column in the batch is not always its position. A text that is continued comes token by token:
# each comes alone, but stands far behind the first. Texts of unequal length are filled up at the left, so
# their first token is not in the first column. So positions are given, a number for each token.
#
# A third vector, v, is what a token hands over when it is looked at. Is it turned?


# %%
def place(q, k, v, positions, base):
    """Give q and k their positions, so that q·k sees distances alone. It may call `tables` and `rotate`.

    q, k, v: (B, T, d) float32; positions: (B, T) int64, any from 0 on; base: float
    -> (q, k, v), each (B, T, d) float32.
    """
    raise NotImplementedError("lesson 8c")


# %% [markdown]
# The plot takes one q and one k, always 5 positions apart, and moves them through a text. With rotary
# positions q·k stays what it is: moving both by 10 changes it by 0. With the sinusoidal table of
# lesson 7 added to both, its lowest and its highest value are 29 apart.

# %%
if __name__ == "__main__":
    q, k = (torch.randn(1, 1, d, generator=g).expand(1, T, d) for _ in range(2))
    rows = torch.arange(T)[None]
    turned_q, turned_k, _ = yours_or_ours(place, "8c")(q, k, k, rows, 10000.0)
    rotary = (turned_q[0, 5:] * turned_k[0, :-5]).sum(1)  # (T - 5,): the query stands 5 behind the key
    table = torch.stack((sin, cos), -1).flatten(1)  # (T, d)
    added = ((q[0] + table)[5:] * (k[0] + table)[:-5]).sum(1)
    claim(5, T - len(rotary), tol=0)
    claim(10, len(rotary[10:]) - len(rotary[20:]), tol=0)
    claim(0, (rotary[10:] - rotary[:-10]).abs().max().item(), tol=1e-3)
    claim(29, (added.max() - added.min()).item(), tol=0.5)

    def draw(axes):
        axes.plot(range(5, T), added, label="sinusoidal table added")
        axes.plot(range(5, T), rotary, label="rotary")
        axes.set(xlabel="position of the query", ylabel="q·k", title="One query, one key, 5 positions apart")
        axes.legend(loc=(0.02, 0.1))

    save_plot("08_rotary", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `rope_tables` and `rotate` in model.py, called for q and k in `Attention`. Nothing is learned and nothing
# saved: the tables are made in each forward pass, from the positions that `GPT.trunk` counts. Its sine
# table holds the minus sign, so a turn is two products and one sum. `rope_theta` is the base; models for
# long texts take a larger one: slower hands.
