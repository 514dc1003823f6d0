# Lesson 1 (unit A): Characters: vocabulary, encode, decode, split, batches
# Before: a text is a row of characters. A model computes with numbers, and with many rows of them at once.
# Seconds: 4
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 1      your copy, in work/
#     python lessons/run.py check 1      what is right, what is not yet
#     python lessons/run.py show 1       the whole lesson from top to bottom, with its plot

# %%
import math

import numpy as np
import torch

from lessons.course import claim, save_plot, text, yours_or_ours

predict_1 = None  # start positions for windows of 64 in 1,003,854 ids, each with its 64 targets

# %% [markdown]
# ## From a text to what a model is trained on
#
# A language model guesses what comes next. This lesson prepares what it guesses on, in four steps: each
# character becomes a number, its **id**; the end of the text is held back to test on; windows of T ids are
# cut out, each with the T ids that follow; and it is settled at which places the windows of a training step
# begin. None of this is difficult, and each step can be wrong in a way that no error message tells. Such a
# mistake shows days later, as a loss that is too good or a little too high.
#
# In the cells of code you will meet two lines that you need not write. `claim(65, V)` compares a number of
# this text with what the run found, and `assert` stops the lesson where something does not hold. They are
# there so that what you read is true.

# %%
if __name__ == "__main__":
    letters, is_shakespeare = text()
    name = "Tiny Shakespeare" if is_shakespeare else "a generated play (data.py prepares the real one)"
    print(f"{name}, {len(letters):,} characters. It begins:\n{letters[:60]}")

# %% [markdown]
# ## 1a. A vocabulary
#
# Two tables are needed: from id to character, to read what the model writes, and from character to id. The
# ids are 0, 1, 2 and so on without gaps, since they will be rows of a matrix. And they must be the same
# wherever and whenever they are made: a saved model knows ids, not letters. So the vocabulary is sorted.
# (Python's sets of strings come out in another order in each process.)


# %%
def vocab(text):
    """The tables from id to character and from character to id.

    text: str -> (vocabulary, code); vocabulary: list of str, the different characters of the text, sorted;
    code: dict, character -> its id, which is its place in vocabulary.
    """
    raise NotImplementedError("lesson 1a")


# %% [markdown]
# With them, to **encode** and to **decode** is one line each. Tiny Shakespeare has 1,115,394 characters and
# 65 different ones: a line end, a blank, 10 signs, the digit three, and twice 26 letters.

# %%
if __name__ == "__main__":
    vocabulary, code = yours_or_ours(vocab, "1a")(letters)
    encode = lambda string: [code[character] for character in string]  # noqa: E731
    decode = lambda ids: "".join(vocabulary[i] for i in ids)  # noqa: E731
    ids = torch.tensor(encode(letters))
    print(f"{len(vocabulary)} characters: {decode(range(len(vocabulary)))!r}")
    print(f"{letters[:12]!r} is {ids[:12].tolist()}")
    assert decode(ids[:1000].tolist()) == letters[:1000], "there and back"
    claim(1_115_394, len(letters), tol=0, when=is_shakespeare)
    claim(65, len(vocabulary), tol=0, when=is_shakespeare)
    signs = [c for c in code if not c.isalpha() and not c.isspace()]
    claim(10, len(signs) - 1, tol=0, when=is_shakespeare)
    assert "3" in signs or not is_shakespeare
    claim(26, sum(c.isupper() for c in code), tol=0, when=is_shakespeare)

# %% [markdown]
# ## 1b. Hold back the end
#
# A model of this size can learn a text by heart. Whether it learned more than that, only text that it has
# never seen can tell: the **validation** part. Here it is the last 10 percent, in one piece. If single
# characters were drawn for it, each would stand between two that were learned. If windows that overlap
# were drawn, nearly every one would have a twin among those for training, and val would equal train for
# ever.


# %%
def split(ids, fraction):
    """The beginning of the ids to train on, and the rest, to validate.

    ids: (n,) int64; fraction: float between 0 and 1 -> (train, val), both int64; train has fraction * n ids,
    rounded down to a whole number.
    """
    raise NotImplementedError("lesson 1b")


# %%
if __name__ == "__main__":
    train, val = yours_or_ours(split, "1b")(ids, 0.9)
    print(f"{len(train):,} ids to train on, {len(val):,} to validate")
    claim(10, 100 * len(val) / len(ids), tol=0.01)
    assert torch.equal(torch.cat((train, val)), ids)

# %% [markdown]
# ## 1c. Windows
#
# Training looks at B windows at once, each T ids long. In a window every position is a question: after
# the first letter, what is the second; after the first two, what is the third? So x holds T ids, and y, the
# **targets**, the same stretch of text one place later. Together they are T + 1 ids in a row.


# %%
def windows(ids, starts, T):
    """B windows of the ids and their targets.

    ids: (n,) int64; starts: (B,) int64, the place of each window's first id; T: int, ids in a window
    -> (x, y), both (B, T) int64; y[b, t] is the id that follows x[b, t] in the text.
    """
    raise NotImplementedError("lesson 1c")


# %%
if __name__ == "__main__":
    cut_out = yours_or_ours(windows, "1c")
    x, y = cut_out(train, torch.tensor([0, 1000]), 16)
    for row_x, row_y in zip(x.tolist(), y.tolist(), strict=True):
        print(f"x {decode(row_x)!r}\ny {decode(row_y)!r}")
    assert torch.equal(x[:, 1:], y[:, :-1]), "y is x, one later"

# %% [markdown]
# ## 1d. Where windows start
#
# At random places, each as likely as any other. For T = 64 you predicted how many there are in the
# 1,003,854 ids of the training part: the last window needs a target for its last id, too.
#
# Random and yet repeatable: a run that stops at some step and goes on the next day has to see the batches
# that it would have seen. The simplest way is to make the batch a **pure function** of the seed of the run
# and the step. Nothing has to be saved then, and nothing that is drawn elsewhere, for dropout or samples,
# can shift it. Both numbers count on their own: with a sum of the two, seed 1 at step 2 would get the batch
# of seed 2 at step 1. A generator of torch is seeded by one number; NumPy's take a list of them, as in
# `np.random.default_rng([3, 1, 4])`. `torch.from_numpy` turns what they draw into a tensor.


# %%
def starts(n, B, T, seed, step):
    """Where the B windows of a training step start: random, but always the same for this seed and step.

    n: int, number of ids; B, T, seed, step: int -> (B,) int64; each start as likely at which x and y of T ids
    fit into the n ids. No generator outside of the function is used or changed.
    """
    raise NotImplementedError("lesson 1d")


# %%
if __name__ == "__main__":
    B, T = 32, 64
    places = yours_or_ours(starts, "1d")
    claim(64, T, tol=0)
    claim(1_003_854, len(train), tol=0, when=is_shakespeare)
    print(f"step 0: {places(len(train), 4, T, 1337, 0).tolist()}")
    print(f"step 1: {places(len(train), 4, T, 1337, 1).tolist()}")
    claim(2, len({tuple(places(len(train), B, T, *pair).tolist()) for pair in ((1, 2), (2, 1))}), tol=0)

# %% [markdown]
# ## How much of the text does a run see?
#
# After as many windows as would cover the text side by side, one **epoch**, some letters were a target
# several times and some never. Drawn at random, a letter is missed by all of them with a chance of 1/e: an
# epoch shows 63 percent of the text, two show 86, three 95. The plot has both: what your functions drew,
# and the curve.

# %%
if __name__ == "__main__":
    seen, shares = np.zeros(len(train), dtype=bool), [0.0]
    steps_per_epoch = len(train) / (B * T)
    epochs = [0.25 * i for i in range(13)]
    everywhere = torch.arange(len(train))  # as ids: windows of these tell which places were targets
    step = 0
    for epoch in epochs[1:]:
        while step < epoch * steps_per_epoch:
            _, y = cut_out(everywhere, places(len(train), B, T, 1337, step), T)
            seen[y.flatten().numpy()] = True
            step += 1
        shares.append(100 * seen.mean())
    expected = [100 * (1 - math.exp(-epoch)) for epoch in epochs]
    after = {epoch: shares[epochs.index(epoch)] for epoch in (1, 2, 3)}
    for epoch, share in after.items():
        print(f"after {epoch} x {steps_per_epoch:.0f} steps: {share:.1f} % of the text")
    claim(63, after[1], tol=1)
    claim(86, after[2], tol=1)
    claim(95, after[3], tol=1)

    def draw(axes):
        axes.plot(epochs, shares, "o", label="random starts")
        axes.plot(epochs, expected, label="100 (1 - 1 / e to the epochs)")
        axes.plot(epochs, [100 * min(1, epoch) for epoch in epochs], "--", label="side by side")
        axes.set(xlabel="epochs", ylabel="% of the text seen as a target", title="What random windows miss")
        axes.legend()

    save_plot("01_characters", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `CharTokenizer` in tokenizer.py is 1a; it also says which character it does not know, and where. `prepare`
# in text/prepare.py writes the two parts of 1b to files, so that a text need not fit into memory. `Windows`
# in data.py is 1c and 1d with the dashed line of the plot: in each epoch it cuts the text into windows that
# stand side by side, at a random offset, and goes through them in a random order. So every letter is a target
# once an epoch, and a batch is still a pure function of seed and step.
