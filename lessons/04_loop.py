# Lesson 4 (unit A): A loop that learns: the bigram again, by gradient descent
# Before: a table of pairs was counted, and its loss measured. Counting works for tables and for nothing else.
# Seconds: 8
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 4      your copy, in work/
#     python lessons/run.py check 4      what is right, what is not yet
#     python lessons/run.py show 4       the whole lesson from top to bottom, with its plot

# %%
import math

import torch
import torch.nn.functional as F

from lessons.course import claim, encoded, save_plot, yours_or_ours

predict_1 = None  # loss at step 0, in nats, of a table of zeros for 65 letters
predict_2 = None  # training loss where it must end; counted pairs cost 2.45 in training, 2.48 held out

# %% [markdown]
# ## Looking back
#
# Lesson 2 filled a table of pairs by counting, and lesson 3 said how good it is. A larger model has nothing
# to count: nobody knows what its numbers should be. What works for every model is to begin anywhere and to
# improve: measure the loss, ask for each number in which direction the loss falls, move it a little that
# way, and do so again and again. That is **gradient descent**.
#
# Whether a loop works is best seen where the answer is known. So here is the bigram again. On the first
# nine tenths of Tiny Shakespeare the letters alone cost 3.309 nats, each by its frequency; the counted table
# costs 2.452. No table of pairs can cost less on the text it was counted on: the counted shares are the
# minimum. A loop that ends above that has not finished, and one that ends below has a bug.

# %%
if __name__ == "__main__":
    vocabulary, ids, _, is_shakespeare = encoded()  # ids: (n,) int64
    V = len(vocabulary)
    counts = torch.bincount(ids[:-1] * V + ids[1:], minlength=V * V).view(V, V).double()
    pairs, alone = counts / counts.sum(1, keepdim=True), counts.sum(0) / counts.sum()
    counted = -(counts * pairs.clamp(min=1e-99).log()).sum().item() / (len(ids) - 1)
    unigram = -(alone * alone.clamp(min=1e-99).log()).sum().item()
    print("Tiny Shakespeare" if is_shakespeare else "a generated play; the prose is about the real one")
    print(f"{V} letters; alone they cost {unigram:.3f} nats, in counted pairs {counted:.3f}")
    claim(3.309, unigram, tol=0.001, when=is_shakespeare)
    claim(2.452, counted, tol=0.001, when=is_shakespeare)


# %% [markdown]
# ## A table is a model, too
#
# `torch.nn.Embedding(V, V)` is a table of V rows that looks up one row for each id: `model(x)` turns ids
# (B, T) into logits (B, T, V). Row a holds the logits of what follows letter a. All are zero at first, so
# you know the first loss without running anything.


# %%
def blank(V):
    """A model whose logits for the next letter are a row of a (V, V) table of zeros."""
    model = torch.nn.Embedding(V, V)
    torch.nn.init.zeros_(model.weight)
    return model


def batch(ids, generator, B=64, T=32):
    """B random windows of T letters, and the letters that follow each: x, y (B, T) int64, as in lesson 1."""
    places = torch.randint(len(ids) - T, (B, 1), generator=generator) + torch.arange(T)  # (B, T)
    return ids[places], ids[places + 1]


# %% [markdown]
# ## 4a. One step
#
# Four things happen in a step: logits and loss of the batch; `loss.backward()`, which puts into `.grad` of
# each weight how fast the loss grows with it; `opt.step()`, which moves each weight against its gradient,
# by a small factor called the **learning rate**; and `opt.zero_grad()`, because `backward` does not replace
# what lies in `.grad`, it adds to it. In which order?
#
# The loss is that of lesson 3; torch has it as `F.cross_entropy(rows, targets)`, for rows (N, V) of logits
# and (N,) targets: so the axes B and T are joined to one before.
#
# Return the loss as a Python float. A loss that is still a tensor keeps alive the graph of all that it was
# computed by, for as long as you keep the loss.


# %%
def train_step(model, opt, x, y):
    """One update of the model's weights on one batch; any torch optimizer of the model's parameters will do.

    model: ids (B, T) -> logits (B, T, V) float32; x, y: (B, T) int64 -> a Python float: mean nats per target,
    as it was before the update.
    """
    raise NotImplementedError("lesson 4a")


# %% [markdown]
# Below are three learning rates for plain gradient descent (SGD), 200 steps of 2,048 letters each. A row of
# the table has a gradient only where its letter comes up, and the mean over the batch makes that small: so
# the best rate is large here. With a rate of 1 the loss is still near 3.44 at the end. With 60 it gets to
# 2.51. With 400 each step jumps across the valley: the loss goes up and down without end, and stops above
# 4.174, worse than knowing nothing. Too small and too large both look like "does not learn" in one number.
# The curve tells them apart.


# %%
def loss_of(table):
    """Nats per letter of a (V, V) table of logits on the whole training text."""
    return -(counts * F.log_softmax(table.double(), 1)).sum().item() / (len(ids) - 1)


if __name__ == "__main__":
    step, curves, ends = yours_or_ours(train_step, "4a"), {}, {}
    for lr in (1, 60, 400):
        model, g = blank(V), torch.Generator().manual_seed(4)
        opt = torch.optim.SGD(model.parameters(), lr=lr)
        curves[lr] = [step(model, opt, *batch(ids, g)) for _ in range(200)]
        ends[lr] = loss_of(model.weight.detach())
        print(f"learning rate {lr:4}: loss {curves[lr][0]:.3f} at step 0, {ends[lr]:.3f} at the end")
        assert abs(curves[lr][0] - math.log(V)) < 1e-4, "zeros: each letter is equally likely"
    claim(200, len(curves[1]), tol=0)
    claim(2048, batch(ids, g)[0].numel(), tol=0)
    claim(3.44, ends[1], tol=0.02, when=is_shakespeare)
    claim(60, sorted(curves)[1], tol=0)
    claim(2.51, ends[60], tol=0.02, when=is_shakespeare)
    claim(400, max(curves), tol=0)
    claim(4.174, math.log(65), tol=0.001)
    assert counted < ends[60] < ends[1] < ends[400]
    assert ends[400] > math.log(V) or not is_shakespeare, "worse than knowing nothing"

# %% [markdown]
# ## 4b. To the end
#
# Now the whole loop is yours: model, optimizer, learning rate, batches, number of steps. It has to end
# within 0.02 of the counted table, on all of the text, in a few seconds. Any optimizer of `torch.optim`
# will do. Rare rows make SGD slow; `torch.optim.Adam` gives each number a pace of its own, and lesson 16
# opens it up. A table that was counted is not accepted: the check looks whether a gradient was computed. To
# print the loss every now and then is the one instrument you have.


# %%
def learn(ids, V):
    """Train a table of logits on the pairs of a text by gradient descent. It may call `train_step`.

    ids: (n,) int64, from 0 to V - 1; V: int -> (V, V) float32; row a: the logits of what follows letter a.
    """
    raise NotImplementedError("lesson 4b")


# %%
if __name__ == "__main__":
    torch.manual_seed(4)
    end = loss_of(yours_or_ours(learn, "4b")(ids, V).detach())
    print(f"trained: {end:.3f} nats, counted: {counted:.3f}")
    assert end > counted - 1e-4, "nothing is better than the counted table"
    claim(0.02, max(end - counted, 0.02), tol=1e-6)

# %% [markdown]
# The plot has the three curves and the three heights to compare them with: ln V, where every loop begins
# that knows nothing; the letters alone, where a model ends that does not look at the letter before; and
# the counted table. A curve that stops at one of these heights says what is wrong with its model.

# %%
if __name__ == "__main__":

    def draw(axes):
        for lr, losses in curves.items():
            axes.plot(losses, label=f"learning rate {lr}")
        for height, name in ((math.log(V), "ln V"), (unigram, "letters alone"), (counted, "counted pairs")):
            axes.axhline(height, linestyle=":", color="black")
            axes.text(200, height - 0.06, name, ha="right", va="top")
        axes.set(xlabel="step", ylabel="nats per letter", ylim=(1.8, 7), title="The same model, three rates")
        axes.legend(loc="upper right")

    claim(3, len(curves), tol=0)
    save_plot("04_loop", draw)

# %% [markdown]
# ## Where it stands in the project
#
# "The loop" in train.py is this lesson at the top level of the file, so that you can read it and change it:
# forward, loss, backward, clip, step, zero_grad. Around these it adds a learning rate that changes over the
# steps, several batches for one update, mixed precision, evaluation, and a file from which a stopped run
# goes on. Nothing in the loop knows that the model was a table. All the models to come are trained by it.
