# Lesson 2 (unit A): Bigrams by counting: table, probabilities, sampling
# Before: a text became ids, and windows of them. Nothing guesses yet what comes next.
# Seconds: 4
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 2      your copy, in work/
#     python lessons/run.py check 2      what is right, what is not yet
#     python lessons/run.py show 2       the whole lesson from top to bottom, with its plot

# %%
import math
from bisect import bisect  # noqa: F401 (for your answers)

import torch

from lessons.course import claim, encoded, save_plot, yours_or_ours

predict_1 = None  # loss of a model that knows nothing, in nats, with 65 letters

# %% [markdown]
# ## The smallest language model
#
# It looks at one letter and says how likely each letter is to come next. To know that, it counts: how
# often did `u` follow `q` in the training text? A table with a row for the letter before and a column for
# the letter after is the whole model. It is called a **bigram** model, and is older than computers: the
# first counted vowels and consonants of a novel in verse (Markov, 1913).
#
# How good is a table? Take the text that was held back, look up the chance that the table gave to each
# letter that really came, and take the mean of minus the logarithms: that is the **loss**. Lower is better,
# and 0 is for one who is always sure and right. A model that knows nothing gives the same chance to each of
# 65 letters; you predicted its loss.


# %%
def loss(P, ids):
    """Mean of -ln P[letter before, letter]. P: (V, V) float, ids: (n,) int64 -> float, in nats."""
    return -P[ids[:-1], ids[1:]].double().log().mean().item()


if __name__ == "__main__":
    vocabulary, train, val, is_shakespeare = encoded()  # as in lesson 1
    V = len(vocabulary)
    print(f"{'Tiny Shakespeare' if is_shakespeare else 'the generated play'}, {V} letters; to know nothing")
    print(f"costs {loss(torch.full((V, V), 1 / V), val):.3f} nats")
    claim(65, V, tol=0, when=is_shakespeare)

# %% [markdown]
# ## 2a. Count
#
# A text of n letters has n - 1 pairs of neighbours. Count them all at once: a loop over a million letters
# takes many seconds in Python. There is a trap on the way: `C[a, b] += 1` with whole tensors of rows and
# columns reads, adds and writes once for each place, so a pair that comes a thousand times counts as one.


# %%
def count_pairs(ids, V):
    """How often each letter follows each other one.

    ids: (n,) int64, each in 0 ... V - 1; V: int -> (V, V) int64; entry [a, b]: how often b comes right after
    a. In one go: no loop over the letters.
    """
    raise NotImplementedError("lesson 2a")


# %% [markdown]
# On Tiny Shakespeare 1,380 of the 4,225 pairs come at all. If each of them were counted once, the table
# would sum to that, and not to 1,003,853. Training and validation text are counted apart: a count of the
# whole text has one pair more than both together, the pair across the border.

# %%
if __name__ == "__main__":
    count = yours_or_ours(count_pairs, "2a")
    counts = count(train, V)
    seen = int((counts > 0).sum())
    print(f"{int(counts.sum()):,} pairs, {seen:,} of {V * V:,} different ones. The most frequent:")
    for place in counts.flatten().argsort(descending=True)[:5].tolist():
        pair = vocabulary[place // V] + vocabulary[place % V]
        print(f"    {pair!r:6} {int(counts.flatten()[place]):7,}")
    whole = count(torch.cat((train, val)), V)
    assert int((whole - counts - count(val, V)).sum()) == 1, "the pair across the border"
    claim(1380, seen, tol=0, when=is_shakespeare)
    claim(4225, V * V, tol=0, when=is_shakespeare)
    claim(1_003_853, int(counts.sum()), tol=0, when=is_shakespeare)

# %% [markdown]
# ## 2b. From counts to chances
#
# After a letter, some letter comes with certainty: each row has to sum to 1. And no chance may be 0. The
# validation text of Tiny Shakespeare has 187 places with a pair that the training text has not, and each of
# them alone would make the loss infinite. So before the division a little is added to each count, k: this is
# called **smoothing**; with k = 1 it is Laplace's rule.


# %%
def normalise(C, k):
    """Chances from counts.

    C: (V, V) int64, counts of pairs; k: float above 0, added to each count -> (V, V) float32, where each row
    sums to 1 and no entry is 0 (Laplace, 1814).
    """
    raise NotImplementedError("lesson 2b")


# %% [markdown]
# With k = 1 the loss on the validation text is 2.48, where the frequencies of single letters reach 3.35.
# Now a warning. If columns sum to 1 and not rows, the loss is 2.48 just the same, while rows sum to between
# 0.08 and 10.8, and no text can be drawn from them: each letter comes about as often before as behind, and
# so the wrong sums cancel on average. A loss alone proves little. (With rows and columns of the counts
# swapped, it would be 4.72.)

# %%
if __name__ == "__main__":
    chances = yours_or_ours(normalise, "2b")
    table = chances(counts, 1.0)
    alone = (counts.sum(0) / counts.sum()).expand(V, V)  # the letter before makes no difference
    totals = counts.sum(1) + V
    by_column = table * totals[:, None] / totals  # divided by the total of the other letter
    losses = [loss(P, val) for P in (table, alone, by_column, chances(counts.mT, 1.0))]
    print("loss {:.3f}; letters alone {:.3f}; columns for rows {:.3f}; counts swapped {:.3f}".format(*losses))
    assert torch.allclose(table.sum(1), torch.ones(V), atol=1e-5)
    claim(187, int(count(val, V)[counts == 0].sum()), tol=0, when=is_shakespeare)
    claim(2.48, losses[0], tol=0.005, when=is_shakespeare)
    claim(3.35, losses[1], tol=0.005, when=is_shakespeare)
    claim(2.48, losses[2], tol=0.005, when=is_shakespeare)
    claim(0.08, by_column.sum(1).min().item(), tol=0.005, when=is_shakespeare)
    claim(10.8, by_column.sum(1).max().item(), tol=0.1, when=is_shakespeare)
    claim(4.72, losses[3], tol=0.005, when=is_shakespeare)

# %% [markdown]
# How much is a little? The plot shows the loss for k from a thousandth to a million. On the training text
# less is always better. On the validation text there is a best k, and beyond it all letters become alike:
# the loss rises to that of a model that knows nothing, which is ln 65 = 4.174.

# %%
if __name__ == "__main__":
    sizes = [10 ** (exponent / 2) for exponent in range(-6, 13)]
    on_train, on_val = ([loss(chances(counts, k), part) for k in sizes] for part in (train, val))
    best = min(range(len(sizes)), key=on_val.__getitem__)
    print(f"best k on the validation text: {sizes[best]:.2g}, loss {on_val[best]:.3f}")
    assert sorted(on_train) == on_train, "on what it has counted, smoothing only harms"
    assert on_val[best] < on_val[0] and on_val[best] < on_val[-1]
    assert abs(on_val[-1] - math.log(V)) < 0.05
    claim(4.174, math.log(65), tol=0.0005)

    def draw(axes):
        axes.semilogx(sizes, on_train, marker="o", label="training text")
        axes.semilogx(sizes, on_val, marker="o", label="validation text")
        axes.axhline(math.log(V), linestyle="--", color="gray", label=f"ln {V}: knows nothing")
        axes.axhline(losses[1], linestyle=":", color="gray", label="letters alone")
        axes.set(xlabel="k, added to each count", ylabel="loss (nats per letter)", title="How much to smooth")
        axes.legend()

    save_plot("02_bigrams", draw)

# %% [markdown]
# ## 2c. Write
#
# Letter by letter: draw one from the row of the letter before, and its row is the next. Draw, do not take
# the likeliest: that text soon goes round in a circle. The random numbers come from a generator that the
# caller holds. So the same seed gives the same text, and a second call with the same generator gives
# another one.


# %%
def sample(P, n, rng):
    """A text of n letters drawn from a table of pairs. The first is drawn as if letter 0 stood before it.

    P: (V, V) float, P[a, b] is the chance of b after a; n: int; rng: torch.Generator, from which all random
    numbers come, and which is not seeded here -> (n,) int64.
    """
    raise NotImplementedError("lesson 2c")


# %%
if __name__ == "__main__":
    write = yours_or_ours(sample, "2c")
    rng = torch.Generator().manual_seed(2)
    for name, P in (("the table", table), ("letters alone", alone)):
        print(f"--- from {name}:\n{''.join(vocabulary[i] for i in write(P, 150, rng).tolist())}")

# %% [markdown]
# ## Where it stands in the project
#
# The core has no table of pairs: `GPT` in model.py takes its place, `evaluate` in evaluate.py is `loss`, and
# `stream` in generate.py is `sample`. Why not go on counting? With two letters before instead of one, the
# loss falls to 2.05, but the table has 274,625 entries, and with each letter more it grows 65 times, until
# nearly every entry is 0. A model has to say something about what it has never seen. Counting cannot; but
# the number that this lesson called loss can be pushed down by other means than counting.

# %%
if __name__ == "__main__":
    places = (train[:-2] * V + train[1:-1]) * V + train[2:]
    triples = torch.bincount(places, minlength=V**3).view(V, V, V) + 0.1
    triples = triples / triples.sum(2, keepdim=True)
    found = -triples[val[:-2], val[1:-1], val[2:]].double().log().mean().item()
    print(f"two letters before: {found:.3f} nats, {triples.numel():,} entries")
    assert found < losses[0]
    claim(2.05, found, tol=0.005, when=is_shakespeare)
    claim(274_625, triples.numel(), tol=0, when=is_shakespeare)
