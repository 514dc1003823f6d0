# Lesson 20 (unit D): Overfitting and dropout: one batch, a small text, a gap
# Before: a loop, an optimizer and a good rate make the training loss fall. Is that what you wanted?
# Seconds: 22
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 20     your copy, in work/
#     python lessons/run.py check 20     what is right, what is not yet
#     python lessons/run.py show 20      the whole lesson from top to bottom, with its plot

# %%
import torch
import torch.nn.functional as F

from lessons.course import claim, encoded, save_plot, update, windows, yours_or_ours
from model import GPT, GPTConfig

predict_1 = None  # loss in nats of one batch of 4 windows of 32 letters, after 60 updates on it alone
predict_2 = None  # dropout with p = 0.2: in training each number that is kept is multiplied by

# %% [markdown]
# ## By heart
#
# A model with more weights than the text has letters can learn the text by heart. The training loss falls
# and falls, and says nothing about other texts. That is **overfitting**. It is seen only on text that was not
# trained on, the validation text: its loss falls, too, at first; then it turns and rises.
#
# ```
# loss  \
#        `.            .-'  val: what is learned now holds for the training text alone
#          `-.____.--'
#             `.    |
#               `-._|____   train: goes on falling
#                   ^ here val turns: the best weights
# ```
#
# The gap is what was learned by heart. Overfitting is also useful, as a test.


# %%
def gpt(V, dropout):
    torch.manual_seed(20)
    model = GPT(GPTConfig(V, block_size=32, n_layer=2, n_head=2, n_embd=64, dropout=dropout))
    return model, torch.optim.AdamW(model.parameters(), lr=0.005, fused=True)


# %% [markdown]
# ## 20a. One batch
#
# The cheapest test of a new training loop: take one batch, and train on it again and again. Any model that is
# larger than the batch has to get its loss near 0. One that does not has a bug, and you know it after a
# minute and not after a night. Three things spoil the test:
#
# - a new batch at each update. Then the loss goes where it goes in training;
# - dropout. It hides other numbers at each update, so the loss keeps a floor. Eval mode has no dropout, and
#   gradients are computed in it as always;
# - a bug that makes the task too easy. If the targets are the inputs, y = x, the model copies what it sees.
#   Its loss falls to 0 on any text, also on text that it has never seen.


# %%
def overfit(model, optimizer, batch, most):
    """Train on one batch, without dropout, until its loss is below 0.1 or `most` updates are made.

    model: (B, T) int64 -> (B, T, V) float32 logits, in either mode, and left in it; optimizer: of its
    parameters; batch() -> x, y, (B, T) int64 each, others at each call; most: int
    -> the losses before each update, a list of floats; the one below 0.1 is the last, without an update.
    """
    raise NotImplementedError("lesson 20a")


# %% [markdown]
# Below is a batch of 4 windows of 32 letters. Your loop is below 0.1 after 26 updates; after 60 it would be
# at 0.01. With a dropout of 0.5 left on it is 0.91 after 60, with new batches 2.55. With y = x one batch
# tells nothing: it is learned as fast as the right one. New batches tell: even there the loss is 0.02.


# %%
if __name__ == "__main__":
    vocabulary, ids, val_ids, is_shakespeare = encoded()
    V, g = len(vocabulary), torch.Generator().manual_seed(20)

    def last_of(p, x_of, y_of):
        """The last loss of 60 updates, whatever happens: the loop with its bugs."""
        model, optimizer = gpt(V, p)
        return [update(model, optimizer, x_of(i), y_of(i)) for i in range(60)][-1]

    x, y = windows(ids, 4, g)
    losses = yours_or_ours(overfit, "20a")(*gpt(V, 0.5), lambda: (x, y), 120)
    new = [windows(ids, 4, g) for _ in range(60)]
    ends = {
        "one batch": last_of(0.0, lambda i: x, lambda i: y),
        "dropout on": last_of(0.5, lambda i: x, lambda i: y),
        "new batches": last_of(0.0, lambda i: new[i][0], lambda i: new[i][1]),
        "new, y = x": last_of(0.0, lambda i: new[i][0], lambda i: new[i][0]),
    }
    print(f"yours: loss {losses[0]:.2f}, {losses[-1]:.3f} after {len(losses) - 1} updates")
    print("after 60 updates:", *(f"{name} {loss:.3f};" for name, loss in ends.items()))
    assert losses[-1] < 0.1 and not any(loss < 0.1 for loss in losses[:-1])
    claim(26, len(losses) - 1, tol=3, when=is_shakespeare)
    claim(0.01, ends["one batch"], tol=0.01, when=is_shakespeare)
    claim(0.91, ends["dropout on"], tol=0.1, when=is_shakespeare)
    claim(2.55, ends["new batches"], tol=0.1, when=is_shakespeare)
    claim(0.02, ends["new, y = x"], tol=0.02, when=is_shakespeare)
    claim(60, len(new), tol=0)
    claim(4, len(x), tol=0)
    claim(32, x.size(1), tol=0)
    claim(0.1, max(0.1, losses[-1]), tol=0)
    claim(0.5, gpt(V, 0.5)[0].config.dropout, tol=0)

# %% [markdown]
# ## 20b. Dropout
#
# Who knows a text by heart leans on single numbers that happen to give it away. **Dropout** sets each number
# to 0 with probability p, at random, anew at each pass (Srivastava et al., 2014). No number can be relied on.
#
# A layer behind it adds up its inputs. With p = 0.2 only 0.8 of the sum would arrive, and later, without
# dropout, all of it. So what is kept is divided by 1 - p: multiplied by 1.25 here. Then the mean stays. Of
# (1, 1, 1, 1, 1) perhaps (1.25, 0, 1.25, 1.25, 1.25) is left, and the sum is as before. In evaluation
# nothing is dropped and nothing multiplied.
#
# Each number has its own draw: not one for a token with all its features, and not one for all texts.


# %%
def dropout(x, p, training):
    """Set each number to 0 with probability p, and keep the mean; in evaluation return x as it is.

    x: (B, T, C) float32, left as it is; p: float, 0 <= p < 1; training: bool -> (B, T, C) float32; random
    numbers are torch's own.
    """
    raise NotImplementedError("lesson 20b")


# %%
if __name__ == "__main__":
    torch.manual_seed(20)
    ones = torch.ones(1, 1, 10_000)
    hit = yours_or_ours(dropout, "20b")(ones, 0.2, True)
    print(
        f"p = 0.2: {(hit == 0).float().mean():.3f} are 0, the others {hit.max():.2f}, mean {hit.mean():.3f}"
    )
    assert abs(hit.mean() - 1) < 0.03 and torch.equal(yours_or_ours(dropout, "20b")(ones, 0.2, False), ones)
    claim(0.2, (hit == 0).float().mean().item(), tol=0.02)
    claim(1.25, hit.max().item(), tol=0.001)
    claim(0.8, (hit > 0).float().mean().item(), tol=0.02)

# %% [markdown]
# ## 20c. Read the plot
#
# The plot has a small model that learns 6,000 letters, once without dropout, once with
# p = 0.4. At which update does val turn? That is the step with the lowest val loss; of equal ones the first.
# The lowest training loss does not tell: it is at the end. Where the curves cross does not tell either:
# before anything is learned they may cross by chance. And the first rise of val may be a bump.


# %%
def turning_point(steps, train, val):
    """The step at which val is lowest, the first if there are several, and the gap there: val minus train.

    steps: list of ints, rising; train, val: lists of floats, the losses at these steps; val may end in a nan
    -> (int, float).
    """
    raise NotImplementedError("lesson 20c")


# %%
@torch.no_grad()
def loss_on(model, x, y):
    model.eval()
    loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item()
    model.train()
    return loss


if __name__ == "__main__":
    small, curves, turns = ids[:6000], {}, {}
    fixed = {"train": windows(small, 48, g), "val": windows(val_ids, 48, g)}
    for p in (0.0, 0.4):
        model, optimizer = gpt(V, p)
        draws = torch.Generator().manual_seed(20)
        steps, curve = [], {"train": [], "val": []}
        for step in range(201):
            if step % 20 == 0:
                steps.append(step)
                for name, pair in fixed.items():
                    curve[name].append(loss_on(model, *pair))
            update(model, optimizer, *windows(small, 12, draws))
        curves[p] = curve
        turns[p] = yours_or_ours(turning_point, "20c")(steps, curve["train"], curve["val"])
        print(
            f"p = {p}: val turns at {turns[p][0]}, at {min(curve['val']):.3f}, gap {turns[p][1]:.3f};",
            end=" ",
        )
        print(f"at the end train {curve['train'][-1]:.3f}, val {curve['val'][-1]:.3f}")

# %% [markdown]
# Without dropout val turns after 40 updates, at 2.66. At the end it is at 2.80, and train at 1.72: a gap of
# 1.08. With dropout val is lowest after 120 updates, at 2.72, and at the end it is 2.75, with a gap of 0.59.
# So dropout slows everything: a model that may not lean on single numbers learns less by heart, and learns
# more slowly. The rise is nearly gone. The lowest val loss is not lower here; longer runs and larger models
# may gain there, too.

# %%
if __name__ == "__main__":
    plain, less = curves[0.0], curves[0.4]
    ends = {p: (curve["train"][-1], curve["val"][-1]) for p, curve in curves.items()}
    claim(40, turns[0.0][0], tol=0, when=is_shakespeare)
    claim(2.66, min(plain["val"]), tol=0.03, when=is_shakespeare)
    claim(2.80, ends[0.0][1], tol=0.06, when=is_shakespeare)
    claim(1.72, ends[0.0][0], tol=0.06, when=is_shakespeare)
    claim(1.08, ends[0.0][1] - ends[0.0][0], tol=0.08, when=is_shakespeare)
    claim(120, turns[0.4][0], tol=0, when=is_shakespeare)
    claim(2.72, min(less["val"]), tol=0.03, when=is_shakespeare)
    claim(2.75, ends[0.4][1], tol=0.04, when=is_shakespeare)
    claim(0.59, ends[0.4][1] - ends[0.4][0], tol=0.06, when=is_shakespeare)
    claim(0.4, max(curves), tol=0)
    claim(6000, len(small), tol=0)

    def draw(axes):
        for color, (p, curve) in zip(("C0", "C1"), curves.items(), strict=True):
            axes.plot(steps, curve["train"], "--", color=color, label=f"train, p = {p}")
            axes.plot(steps, curve["val"], "-", color=color, label=f"val, p = {p}")
            axes.plot(turns[p][0], min(curve["val"]), "o", color=color)
        axes.set(xlabel="update", ylabel="loss (nats)", title="6,000 letters, by heart")
        axes.legend()

    save_plot("20_overfitting", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `--dropout=0.2` of train.py puts `nn.Dropout` behind the embeddings, behind attention and behind the MLP
# (`MLP` in model.py), and drops attention weights. train.py writes both losses at each evaluation and keeps
# the weights of the lowest val loss in best.pt. docs/trouble.md compares what helps against a rising val
# loss: more text first, then dropout.
