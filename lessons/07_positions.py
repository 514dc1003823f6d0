# Lesson 7 (unit B): Embeddings and position tables: one-hot product, learned, sinusoidal
# Before: a tokenizer turns text into ids. An id is a name: it tells neither what is like it nor where it is.
# Seconds: 3
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 7      your copy, in work/
#     python lessons/run.py check 7      what is right, what is not yet
#     python lessons/run.py show 7       the whole lesson from top to bottom, with its plot

# %%
import math
import string

import torch
import torch.nn.functional as F  # noqa: F401 (for your answers)

from lessons.course import claim, save_plot, yours_or_ours
from model import GPT, Block, GPTConfig

predict_1 = None  # how many numbers does a learned table for 64 positions with C = 128 train
predict_2 = None  # and how many does a sinusoidal one

# %% [markdown]
# ## From ids to vectors
#
# The fortieth letter is not twice the twentieth, and not near the next one in the list. So a model does not
# compute with ids. It gives each token a vector of C numbers, its **embedding**, and learns them: tokens
# that are used alike end up with vectors that are alike.
#
# All vectors together are a table W with V rows: one for each token of the vocabulary.

# %% [markdown]
# ## 7a. A look-up is a product
#
# Write an id as a row of V numbers, all 0 but a single 1 in the place of the id. That is its **one-hot**
# row. Times the table W it gives one row of W: every other row is multiplied by 0. So the first layer of a
# language model is a matrix like all others, and its gradient follows from the same rule: rows of letters
# that did not come get none.
#
# For 65 letters and C = 128 the product takes 8,320 multiplications for each token, of which all but 128
# are by zero. That is why programs look the row up. The grader accepts both; write the product once.


# %%
def embed(ids, W):
    """The vector of each token: its one-hot row times the table.

    ids: (B, T) int64, 0 <= id < V; W: (V, C) float32 -> (B, T, C) float32, with a gradient to W.
    """
    raise NotImplementedError("lesson 7a")


# %% [markdown]
# Below, the table gets its gradient from the single word "hello". It has 4 different letters, so 4 rows
# of the 65 have a gradient. A rare letter learns rarely.

# %%
ALPHABET = sorted(string.ascii_letters + "\n !$&',-.3:;?")  # the letters of Tiny Shakespeare

if __name__ == "__main__":
    g = torch.Generator().manual_seed(7)
    W = torch.randn(len(ALPHABET), 128, generator=g, requires_grad=True)
    ids = torch.tensor([[ALPHABET.index(letter) for letter in "hello"]])
    yours_or_ours(embed, "7a")(ids, W).square().sum().backward()
    used = [ALPHABET[i] for i in range(len(W)) if W.grad[i].any()]
    print(f"letters whose row has a gradient: {' '.join(used)}")
    claim(65, len(W), tol=0)
    claim(128, W.size(1), tol=0)
    claim(8320, W.numel(), tol=0)
    claim(4, len(used), tol=0)

# %% [markdown]
# ## 7b. Where: a table out of a formula
#
# The second thing a model has to know is where a token stands. That is a table, too, with a row per
# position. Two kinds are common. The **learned** table starts with random numbers and is trained like W.
# The **sinusoidal** one (Vaswani et al., 2017) comes out of a formula and is never trained: it works like
# the hands of many clocks. Pair i of the columns is one hand. At position t it stands at the angle
#
#     `t / 10000^(2i / C)` in radians, for `i = 0, 1, ..., C/2 - 1`
#
# and the pair holds its sine (column 2i) and its cosine (column 2i + 1). At C = 128 the first hand is back
# after 6.28 positions, the last one after 54,410. Fast hands tell neighbours apart, slow ones tell the
# beginning of a text from its end. With i / C in the exponent the last hand would be back after 585.


# %%
def sinusoidal(T, C):
    """The table of positions 0 ... T - 1, sines in the even columns, cosines in the odd ones.

    T, C: int, C is even -> (T, C) float32.
    """
    raise NotImplementedError("lesson 7b")


# %%
if __name__ == "__main__":
    table = yours_or_ours(sinusoidal, "7b")(200, 128)
    for t in (0, 1, 2, 100):
        shown = "  ".join(f"{number:5.2f}" for number in (*table[t, :4].tolist(), *table[t, -2:].tolist()))
        print(f"position {t:3}: columns 0 to 3 and the last two  {shown}")
    claim(6.28, math.tau / math.atan2(*table[1, :2].tolist()), tol=0.01)
    claim(54410, math.tau / math.atan2(*table[1, -2:].tolist()), tol=100)
    claim(585, math.tau * 10000 ** (63 / 128), tol=1)
    claim(10000, GPTConfig().rope_theta, tol=0)
    # the predictions
    learned = GPT(GPTConfig(arch="gpt2", block_size=64, n_embd=128, n_layer=1)).wpe.weight
    claim(8192, learned.numel(), tol=0)
    claim(0, table.numel() * table.requires_grad, tol=0)

# %% [markdown]
# ## 7c. What and where in one vector
#
# Token vector and position vector are added. Both have C numbers; in so many dimensions there is room
# for both, and the next layer can learn to read either. A text that is shorter than the table uses its
# first T rows. Mind the axes: a table row belongs to a position, whatever the letter and whatever the text
# of the batch.


# %%
def input_vectors(ids, tokens, positions):
    """What the first block of a model reads. It may call `embed`.

    ids: (B, T) int64; tokens: (V, C) float32, a row per token; positions: (longest, C) float32, a row per
    position, longest >= T -> (B, T, C) float32.
    """
    raise NotImplementedError("lesson 7c")


# %% [markdown]
# Is it needed at all? Below, a block of the project with random weights reads two sentences made of the
# same letters, "dog bites man." and "man bites dog.". A block lets each token look back at those before
# it (how, is lesson 9). Its output at the last token, the full stop, is what the next letter would be
# guessed from. Without positions it is the same for both, but for rounding: it saw the same set of
# letters. With positions it differs.
#
# The order is not lost entirely in a deeper model. In the second block tokens can tell how much their
# neighbours have seen (Haviv et al., 2022). But that has to be found out, and a table just says it.

# %%
if __name__ == "__main__":
    sentences = ("dog bites man.", "man bites dog.")
    ids = torch.tensor([[ALPHABET.index(letter) for letter in sentence] for sentence in sentences])
    torch.manual_seed(7)
    blocks = [Block(GPTConfig(arch="gpt2", n_head=2, n_embd=32)).requires_grad_(False) for _ in range(2)]
    for block in blocks:
        for weight in block.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape) + (weight.dim() == 1))  # around 1 in a norm
    tokens, positions = torch.randn(65, 32), torch.randn(64, 32)
    moved = {}
    for name, rows in (("no positions", torch.zeros(64, 32)), ("positions", positions)):
        x = blocks[0](yours_or_ours(input_vectors, "7c")(ids, tokens, rows))  # (2, T, C)
        y = blocks[1](x)
        moved[name] = [(out[0, -1] - out[1, -1]).abs().max().item() for out in (x, y)]
        print(f"{name}: the sentences differ by {moved[name][0]:.1e}, after two blocks {moved[name][1]:.1e}")
    assert moved["no positions"][0] < 1e-5 < 1 < moved["positions"][0], "one block cannot tell the order"
    assert moved["no positions"][1] > 0.1, "a second one can"

# %% [markdown]
# ## What the formula gives away for nothing
#
# The product of two rows says how alike two positions are. In the sinusoidal table it depends on their
# distance alone: 64 at distance 0, 62.1 at 1, 30.5 at 100, wherever one begins. The plot draws it from
# three positions, and the curves lie on each other. The nearer, the more alike, roughly, and without any
# training. In a learned table that is not trained yet nothing is near anything.

# %%
if __name__ == "__main__":
    random = torch.randn(200, 128, generator=g)
    alike = {start: table[start : start + 101] @ table[start] for start in (0, 40, 90)}  # (101,)
    for curve in alike.values():
        assert torch.allclose(curve, alike[0], atol=0.01), "only the distance counts"
    claim(64, alike[0][0].item(), tol=0.01)
    claim(62.1, alike[40][1].item(), tol=0.05)
    claim(30.5, alike[90][100].item(), tol=0.05)
    claim(100, len(alike[0]) - 1, tol=0)
    noise = random[:101] @ random[0] * 64 / (random[0] @ random[0])
    assert noise[1:].abs().max() < 30, "in a random table neighbours are strangers"

    def draw(axes):
        for start, curve in alike.items():
            axes.plot(
                curve, label=f"sinusoidal, from position {start}", lw=5 - 2 * (start > 0) - (start > 40)
            )
        axes.plot(noise, ":", label="learned, before training, from position 0")
        axes.set(
            xlabel="distance in tokens", ylabel="product of the rows", title="How alike are two positions"
        )
        axes.legend()

    save_plot("07_positions", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `GPT.trunk` in model.py is 7c: `wte` is the table of tokens, and with `position="learned"`, as in GPT-2,
# `wpe` is that of positions. A learned table has no row beyond its last: a text that is longer than
# `block_size` is an error. No sinusoidal table is kept. The project's default and Llama's, rotary
# positions, turn the same clock hands without adding anything, and only the distance is left. That is the
# next lesson.
