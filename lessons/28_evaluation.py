# Lesson 28 (unit E): Evaluation: one honest number
# Before: models that write, fast. Of two of them, which is better, and how sure are you?
# Seconds: 14
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 28     your copy, in work/
#     python lessons/run.py check 28     what is right, what is not yet
#     python lessons/run.py show 28      the whole lesson from top to bottom, with its plot

# %%
import copy
import math

import torch
import torch.nn.functional as F

from lessons.course import claim, encoded, save_plot, update, windows, yours_or_ours
from model import GPT, GPTConfig

predict_1 = None  # standard error of a mean over 100 windows whose losses have a standard deviation of 0.1

# %% [markdown]
# ## What can go wrong with a mean
#
# The loss on a text is a mean over its letters. It sounds as if nothing could go wrong. Three things do. The
# first letters of a window have little before them, and so a high loss: where the cuts are changes the
# number. Another draw of windows gives another number: is a small difference a better model, or luck?
# And a text that the model has seen says nothing about texts that it has not.
#
# Below, a small model learns for 120 updates. 20 before the end a copy is kept: a model a little worse.


# %%
if __name__ == "__main__":
    vocabulary, ids, val, is_shakespeare = encoded()
    V, g = len(vocabulary), torch.Generator().manual_seed(28)
    torch.manual_seed(28)
    model = GPT(GPTConfig(V, block_size=32, n_layer=2, n_head=2, n_embd=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005, fused=True)
    for i in range(120):
        if i == 100:
            worse = copy.deepcopy(model).eval()
            claim(20, 120 - i, tol=0)
        update(model, optimizer, *windows(ids, 24, g))
    claim(120, i + 1, tol=0)
    model.eval()

# %% [markdown]
# ## 28a. A window that slides
#
# A model of 32 letters cannot read a long text at once. Cut the text into windows of 32, and the first target
# of each window is predicted from a single letter. Nobody who reads a text forgets the page before at each
# line. So let windows overlap by half, and score only what no window has scored yet:
#
#     text       a b c d e f g h i j k l m      windows of six letters, which overlap
#     1st        a B C D E F                    capitals are scored
#     2nd              d e f G H I              G is predicted from d, e, f
#     3rd                    g h i J K L
#     4th                          j k l M      what is left
#
# Each letter but the very first is scored once, and has half a window before it, or all there is. Sum the
# nats, divide once. The last window is short: with means 2, 2, 2 and 5 a mean of means is 2.75. But its 5 is
# that of one letter in twelve, and the mean is 2.25.
#
# One letter at a time would give each a full window, for as many passes as there are letters. Half is the
# usual bargain: each letter is read twice.


# %%
def sliding_loss(model, ids, size):
    """Mean loss of a text, read in windows that overlap.

    model: (B, T) int64 -> (B, T, V) float32 logits, T at most size; ids: (n,) int64, n may be less than size;
    size: int, 2 or more: ids in a window, of which each but the first is predicted. A window begins with the
    last size // 2 ids of the one before, and these are not scored again
    -> a Python float, nats per id but the first; no graph is kept.
    """
    raise NotImplementedError("lesson 28a")


# %%
@torch.no_grad()
def nats_of(model, x, y):
    """Nats of each target, (B, T)."""
    return F.cross_entropy(model(x).mT, y, reduction="none")


@torch.no_grad()
def by_context(model, ids, step):
    """Loss at each place of a window, (32,), mean over all windows that begin `step` letters apart."""
    parts = ids.unfold(0, 33, step).split(256)
    return torch.cat([nats_of(model, part[:, :-1], part[:, 1:]) for part in parts]).mean(0)


if __name__ == "__main__":
    text, slide = val[:4097], yours_or_ours(sliding_loss, "28a")
    places = by_context(model, text, 1)
    found = {
        "disjoint windows": by_context(model, text, 32).mean().item(),
        "overlapping by half": slide(model, text, 32),
        "a letter at a time": places[-1].item(),
    }
    print(*(f"{name}: {loss:.4f} nats" for name, loss in found.items()), sep="\n")
    assert found["disjoint windows"] > found["overlapping by half"]
    assert places[0] > places[1] > places[16:].mean(), "context helps"
    claim(2.75, (2 + 2 + 2 + 5) / 4, tol=0)
    claim(2.25, (5 * 2 + 3 * 2 + 3 * 2 + 1 * 5) / 12, tol=0)
    claim(5, 12 * 2.25 - 11 * 2, tol=0)
    claim(32, len(places), tol=0)
    claim(2.19, found["disjoint windows"], tol=0.05, when=is_shakespeare)
    claim(2.17, found["overlapping by half"], tol=0.05, when=is_shakespeare)
    claim(2.63, places[0].item(), tol=0.05, when=is_shakespeare)

# %% [markdown]
# On Tiny Shakespeare disjoint windows say 2.19 nats, your function 2.17, for the same model and the same
# text. The first target of a window costs 2.63 nats; from half a window on, the mean is as low as yours. A
# full window for each letter is no better here: so small a model makes little of letters far back. The
# longer windows are, the less it matters. But two losses can be compared only if both were cut alike.
#
# ## 28b. Better, or luck?
#
# The loss of a window depends on the window: some text is easy. The **spread** s is the standard deviation
# of the losses of n windows: the root of the mean squared distance from their mean. Their mean is less noisy
# than each of them. Its own standard deviation, if the windows were drawn again, is the **standard error**:
#
#     standard error = s / sqrt(n)
#
# Nine windows with a spread of 0.3 have a mean that is uncertain by 0.1. A difference of two standard errors
# is rarely luck: one time in twenty if nothing is different.
#
# Two models that are scored on the same windows find the same windows hard. So do not compare two means, take
# the difference window by window, and look at the spread of these differences: what is hard for both cancels.
# That is a **paired** comparison. The window is the unit: what is hard about one of its letters is hard about
# others, too, so letters are not independent.


# %%
def compare(first, second, draw, k):
    """Is the second model better than the first? On k batches of val, the same for both.

    first, second: (B, T) int64 -> (B, T, V) float32 logits; draw(split) -> x, y, (B, T) int64 each, other
    windows at each call, split is "train" or "val"; k: int
    -> (difference, standard error), two Python floats, nats per letter: the mean of the second's loss minus
    the first's, negative if the second is better, and how sure that is. No graph is kept.
    """
    raise NotImplementedError("lesson 28b")


# %%
if __name__ == "__main__":
    drawn = []

    def draw(split):
        drawn.append(windows({"train": ids, "val": val}[split], 16, g))
        return drawn[-1]

    difference, error = yours_or_ours(compare, "28b")(worse, model, draw, 16)
    x, y = (torch.cat(part) for part in zip(*drawn, strict=True))
    a, b = (nats_of(m, x, y).mean(1) for m in (worse, model))
    unpaired = math.sqrt((a.var() + b.var()).item() / len(a))
    print(f"20 updates more: {difference:+.4f} +- {error:.4f} nats in pairs, +- {unpaired:.4f} unpaired")
    assert error < unpaired
    claim(0.1, 0.3 / math.sqrt(9), tol=1e-9)
    claim(0.3, 0.1 * 3, tol=1e-9)
    claim(0.037, -difference, tol=0.02, when=is_shakespeare)
    claim(0.006, error, tol=0.002, when=is_shakespeare)
    claim(0.022, unpaired, tol=0.004, when=is_shakespeare)
    claim(15, (unpaired / error) ** 2, tol=5, when=is_shakespeare)

# %% [markdown]
# After 20 updates more the loss is lower by 0.037. The standard error of that is 0.006 in pairs and 0.022
# without: the same windows prove a gain, or prove nothing. To get from 0.022 to 0.006 without pairs you would
# need 15 times as many windows.
#
# ## 28c. Has it seen the test?
#
# Texts are copied. If a part of the test stands in the training text, the model may know it by heart
# (lesson 20), and the loss on it is no measure of anything. That is **contamination**. A usual way to find it
# takes **n-grams**: n words in a row. Texts by different people share single words, and pairs of them, but
# hardly ever eight words in a row:
#
#     test  "the king is dead , long live"    n = 3: "the king is", "king is dead", "is dead ," ...
#     train "O the King is dead"              2 of the 5 are in it: an overlap of 0.4
#
# Words are what stands between blanks or line breaks, in lower case, for a copy may begin a sentence. All
# n-grams of the test count, also the same one twice: asked is which share of the test was seen.


# %%
def overlap(train, test, n):
    """The share of the n-grams of a test text that stand in a training text, too.

    train, test: str; n: int, words in a row
    -> a Python float from 0 to 1; 0.0 if the test has less than n words.
    """
    raise NotImplementedError("lesson 28c")


# %%
if __name__ == "__main__":
    train_text, val_text = ("".join(vocabulary[i] for i in part.tolist()) for part in (ids, val))
    part_of = yours_or_ours(overlap, "28c")
    share = {n: part_of(train_text, val_text, n) for n in (1, 2, 4, 8)}
    share["leak"] = part_of(train_text + val_text[: len(val_text) // 10], val_text, 8)
    print("overlap of val with train:", ", ".join(f"{n}: {part:.3f}" for n, part in share.items()))
    seen, unseen = val[:2048], val[-2048:]
    leaked = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(leaked.parameters(), lr=0.003, fused=True)
    for _ in range(30):
        update(leaked, optimizer, *windows(seen, 24, g))
    leaked.eval()
    losses = [slide(m, part, 32) for part in (seen, unseen) for m in (model, leaked)]
    print("before and after a leak: {:.2f}, {:.2f}; on other text {:.2f}, {:.2f}".format(*losses))
    assert losses[1] < losses[0] and losses[3] > losses[2], "better where it was seen, worse elsewhere"
    claim(0.89, share[1], tol=0.005, when=is_shakespeare)
    claim(0.42, share[2], tol=0.005, when=is_shakespeare)
    claim(0.008, share[4], tol=0.001, when=is_shakespeare)
    claim(0.10, share["leak"], tol=0.005, when=is_shakespeare)
    claim(2.23, losses[0], tol=0.1, when=is_shakespeare)
    claim(1.50, losses[1], tol=0.3, when=is_shakespeare)
    claim(2.48, losses[3], tol=0.2, when=is_shakespeare)
    example = "O the King is dead", "the king is dead , long live"
    claim(0.4, part_of(*example, 3), tol=1e-6)
    claim(2, 5 * part_of(*example, 3), tol=1e-6)
    claim(3, len(example[1].split()) + 1 - 5, tol=0)

    def draw(axes):
        axes.plot(range(1, 33), places, "k", label="at each place of a window")
        for style, (name, loss) in zip(("--", "-.", ":"), found.items(), strict=True):
            axes.axhline(loss, linestyle=style, label=f"{name}: {loss:.3f}")
        axes.set(xlabel="letters before the target", ylabel="loss (nats)", title="One model, three losses")
        axes.legend()

    save_plot("28_evaluation", draw)

# %% [markdown]
# Of the words of the validation text 0.89 are in the training text, of the pairs 0.42, of four words in a
# row 0.008, of eight none. Mix a tenth of it into the training text, and eight words say 0.10: the copy is
# found. A model that trains for a moment on a page of the test has a loss of 1.50 on it, not 2.23, and would
# win each comparison of 28b. On other text of the play its loss rises, to 2.48.
#
# ## Where it stands in the project
#
# `evaluate` in evaluate.py sums nats and targets over all windows and divides once; `standard_error` there is
# that of 28b, also for windows with unequal counts. Its windows are disjoint, for speed, and with `--plot` it
# draws the loss over the context, as above. `surprise` in play/look.py slides by half a window, as in 28a.
# For two ways to train, windows are not enough: another seed gives another model. `interval` in
# techniques/significance.py compares in pairs over seeds. `near_duplicates` in text/near_duplicates.py drops
# copies before a text is split, so that none comes to lie on both sides.
