# Lesson 13 (unit B): A GPT, assembled: MLP, tied head, loss
# Before: a block, and stacks of it. Nothing yet goes in as text and comes out as a guess.
# Seconds: 10
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 13     your copy, in work/
#     python lessons/run.py check 13     what is right, what is not yet
#     python lessons/run.py show 13      the whole lesson from top to bottom, with its plot

# %%
import math

import torch
import torch.nn.functional as F  # noqa: F401 (for your answers)
from torch import nn

from lessons.course import claim, encoded, save_plot, yours_or_ours
from model import GPT, GPTConfig

predict_1 = None  # numbers in the matrices of 4 blocks at C = 128, if the MLP is 4C wide

# %% [markdown]
# ## What is there, and what is missing
#
# A GPT has five parts:
#
# - `wte`, the table of tokens, and `wpe`, the table of positions (lesson 7);
# - `blocks`, a list; each has two norms and attention (lesson 9 to lesson 12), and an **MLP**, which is new;
# - `norm`, one more norm, because the stream leaves the last block as large as it has grown;
# - `head`, a matrix that makes a score for each letter of the vocabulary out of a token's vector.
#
#     ids --> wte + wpe --+---------------------> + --+---------------> + --> ... --> norm --> head --> logits
#     (B, T)  (B, T, C)   '--> norm, attention ---'   '--> norm, MLP ---'                      (B, T, V)
#                         '---------- one of the blocks ----------------'
#
# Parts with weights are written as classes. A class that inherits from `nn.Module` makes its layers in
# `__init__` (after `super().__init__()`) and uses them in `forward`; calling the object calls `forward`.

# %% [markdown]
# ## 13a. The MLP
#
# Attention only takes means of values. What a token makes of them is the business of the MLP: a matrix up to
# 4C numbers, a bend, a matrix down to C. Each token is handled by itself.
#
# The bend is the point. Without it, f(a + b) = f(a) + f(b), and two matrices are no more than one. Here it
# is GELU in GPT-2's form, `F.gelu(h, approximate="tanh")`: nearly 0 for negative numbers, nearly h for
# positive ones, and smooth in between (Hendrycks and Gimpel, 2016).


# %%
class FeedForward(nn.Module):
    """Each token by itself: C numbers -> 4C -> GELU -> C. No biases, and no residual: the block adds it."""

    def __init__(self, C):
        """C: int -> a module with two nn.Linear, `up` with a weight of (4C, C) and `down` with (C, 4C)."""
        raise NotImplementedError("lesson 13a")

    def forward(self, x):
        """x: (B, T, C) float32 -> (B, T, C) float32."""
        raise NotImplementedError


# %%
if __name__ == "__main__":
    C, L = 128, 4
    mlp = yours_or_ours(FeedForward, "13a")(C)
    a, b = torch.randn(2, 1, 1, C, generator=torch.Generator().manual_seed(13))
    with torch.no_grad():
        assert (mlp(a + b) - mlp(a) - mlp(b)).abs().max() > 0.01, "not additive"

# %% [markdown]
# Count. Attention has four matrices of C x C: 4C². The MLP has two of 4C x C: 8C². A block has 12C², and 4 of
# them at C = 128 have 786,432 numbers: 524,288 in the MLPs, 262,144 in attention. Two thirds of a block are
# MLP.

# %%
if __name__ == "__main__":
    blocks = GPT(GPTConfig(n_layer=L, n_embd=C, arch="gpt2")).blocks
    sizes = {name: p.numel() for name, p in blocks.named_parameters() if p.dim() == 2}
    claim(786432, sum(sizes.values()), tol=0)
    claim(786432, 12 * L * C**2, tol=0)
    claim(524288, sum(n for name, n in sizes.items() if "mlp" in name), tol=0)
    claim(262144, sum(n for name, n in sizes.items() if "attn" in name), tol=0)
    claim(128, C, tol=0)
    claim(4, L, tol=0)
    print(f"{sum(sizes.values()):,} numbers in the matrices of {L} blocks at C = {C}")

# %% [markdown]
# ## 13b. Forward and loss
#
# Now everything in a row. Ids become vectors, positions are added, the blocks follow each other, then the
# last norm and the head. Each of the B · T tokens gets V logits, and all of them are scored at once: the
# targets are the same text, one letter later. The loss is lesson 3's, a mean over all targets.
#
# Most mistakes here crash nothing. If the targets, which are one later already, are shifted again, the model
# learns to skip a letter. If (B, T, V) is reshaped where it should be transposed, the logits of one token
# are scored with the target of another: the loss falls slowly, and the guesses get worse. A short task tells:
# train on `abcabc...`, then ask what follows `a`.


# %%
def forward(gpt, idx, targets):
    """Logits of each next token, and the mean loss in nats.

    gpt: has the parts `wte`, `wpe`, `blocks`, `norm` and `head`. wte and wpe make vectors of int64 ids and
    positions; each of the blocks, and norm, makes (B, T, C) of (B, T, C); head makes (B, T, V) of that.
    idx, targets: (B, T) int64; targets are what follows each token
    -> (logits (B, T, V) float32, loss () float32)
    """
    raise NotImplementedError("lesson 13b")


# %%
def build(V, T, C, n_layer):
    """The five parts with fresh weights, and your MLP in each block. (Next lesson: why these weights.)"""
    torch.manual_seed(13)
    shape = dict(vocab_size=V, block_size=T, n_embd=C, n_layer=n_layer, n_head=4)
    gpt = GPT(GPTConfig(**shape, arch="gpt2", tie_weights=0))
    for block in gpt.blocks:
        block.mlp = yours_or_ours(FeedForward, "13a")(C)
    gpt.init_weights()
    return gpt


def train(gpt, batches, steps, lr):
    """Losses of so many steps; the learning rate rises for 60 steps, then falls to 0 in a straight line."""
    optimizer, losses = torch.optim.AdamW(gpt.parameters(), lr=lr), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min((step + 1) / 60, 1 - step / steps)
        _, loss = yours_or_ours(forward, "13b")(gpt, *batches(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    abc = build(3, 8, 16, 1)
    places = torch.arange(8)[None]
    losses = train(abc, lambda step: ((places + step) % 3, (places + step + 1) % 3), 100, 0.01)
    ids = torch.tensor([[0, 1, 2, 0]])
    with torch.no_grad():
        logits, _ = yours_or_ours(forward, "13b")(abc, ids, ids)
    said = "abc"[logits[0, -1].argmax()]
    print(f"abcabc...: loss {losses[0]:.2f} -> {losses[-1]:.3f}; after abca comes {said}")
    assert said == "b"

# %% [markdown]
# ## The first text
#
# The same model, a little larger, on letters. You have three lines to compare with: ln V for a model that
# knows nothing, the frequencies of single letters, and the table of pairs of lesson 2, each on text that it
# has not seen. On Tiny Shakespeare these are 4.174, 3.347 and 2.482 nats. After 200 steps this GPT is below
# the table: 2.36. The table looks back by one letter, the model by up to 16. Then it writes 200 letters:
# each is drawn with the chances that the logits give it, and goes in before the next (lesson 26).

# %%
if __name__ == "__main__":
    vocabulary, seen, unseen, is_shakespeare = encoded()
    V = len(vocabulary)
    singles = torch.bincount(seen, minlength=V).double() + 1
    pairs = torch.bincount(seen[:-1] * V + seen[1:], minlength=V * V).view(V, V).double() + 1
    levels = {
        "knows nothing": math.log(V),
        "letters": -(singles / singles.sum())[unseen].log().mean().item(),
        "pairs": -(pairs / pairs.sum(1, keepdim=True))[unseen[:-1], unseen[1:]].log().mean().item(),
    }
    T, g = 16, torch.Generator().manual_seed(13)

    def windows(ids, B):
        at = torch.randint(len(ids) - T, (B, 1), generator=g) + torch.arange(T)
        return ids[at], ids[at + 1]  # (B, T) each

    gpt = build(V, T, 64, 2)
    losses = train(gpt, lambda step: windows(seen, 32), 200, 0.006)
    with torch.no_grad():
        _, found = yours_or_ours(forward, "13b")(gpt, *windows(unseen, 256))
    print(f"{'Tiny Shakespeare' if is_shakespeare else 'the generated play'}, nats on unseen text:")
    print(", ".join(f"{name} {level:.3f}" for name, level in [*levels.items(), ("GPT", found.item())]))
    ids = torch.zeros(1, 1, dtype=torch.int64)  # a line's end, the first of the letters
    for _ in range(200):
        with torch.no_grad():
            logits, _ = yours_or_ours(forward, "13b")(gpt, ids[:, -T:], ids[:, -T:])
        ids = torch.cat((ids, torch.multinomial(logits[:, -1].softmax(-1), 1, generator=g)), 1)
    print("It writes:" + "".join(vocabulary[i] for i in ids[0]))
    assert found < levels["pairs"] < levels["letters"] < levels["knows nothing"]
    claim(4.174, levels["knows nothing"], tol=0.001, when=is_shakespeare)
    claim(3.347, levels["letters"], tol=0.001, when=is_shakespeare)
    claim(2.482, levels["pairs"], tol=0.001, when=is_shakespeare)
    claim(2.36, found.item(), tol=0.05, when=is_shakespeare)
    claim(200, len(losses), tol=0)
    claim(16, T, tol=0)

    def draw(axes):
        axes.plot(losses, label="GPT, training")
        for name, level in levels.items():
            axes.axhline(level, linestyle="--", color="grey")
            axes.text(len(losses), level, name, ha="right", va="bottom")
        axes.set(xlabel="step", ylabel="nats per letter", title="Past the table of pairs")
        axes.legend()

    save_plot("13_gpt", draw)

# %% [markdown]
# ## 13c. The tied head
#
# `wte` is a table of V x C: a vector for each letter that comes in. `head` is a matrix of V x C: a vector for
# each letter that may come out. Letters that mean the same going in mean the same coming out, so one table
# can be both (Press and Wolf, 2017). At V = 65 and C = 128 that saves 8,320 numbers; at V = 50,257 and
# C = 768, as in the small GPT-2, it saves 38,597,376 of 163 million.
#
# Equal numbers are not enough: after one step a copy differs. There has to be one parameter under two names.
# A list of parameters names it once, a saved model twice, so counts can go wrong, too.


# %%
def tie(gpt):
    """Let the head use the embedding's table, with the numbers it has; return how many numbers are trained.

    gpt: an nn.Module with the parts of 13b; gpt.wte.weight and gpt.head.weight: (V, C) float32, changed in
    place -> a Python int, in which the shared table counts once.
    """
    raise NotImplementedError("lesson 13c")


# %%
if __name__ == "__main__":
    gpt = build(65, 64, 128, 4)
    before = sum(p.numel() for p in gpt.parameters())
    after = yours_or_ours(tie, "13c")(gpt)
    print(f"{before:,} numbers, tied {after:,}")
    claim(8320, before - after, tol=0)
    claim(65, gpt.wte.num_embeddings, tol=0)
    with torch.device("meta"):  # shapes without numbers
        gpt2 = GPT(GPTConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768, bias=True,
                             arch="gpt2", tie_weights=0))  # fmt: skip
    claim(50257, gpt2.config.vocab_size, tol=0)
    claim(768, gpt2.config.n_embd, tol=0)
    claim(38597376, gpt2.head.weight.numel(), tol=0)
    claim(163, sum(p.numel() for p in gpt2.parameters()) / 1e6, tol=0.1)

# %% [markdown]
# ## Where it stands in the project
#
# `MLP` and `GPT` in model.py. The project's forward does more: it hands out rotary tables, masks and caches,
# and with targets it makes the loss in pieces, so that the logits of a large vocabulary never exist all at
# once. It returns a sum of nats, and train.py divides once. `tie_weights=1` is GPT-2's way; the other recipes
# keep a head of their own.
