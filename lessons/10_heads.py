# Lesson 10 (unit B): Several heads: split, attend, merge
# Before: one head takes one mean over the past. A token that has two questions gets one mixed answer.
# Seconds: 4
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 10      your copy, in work/
#     python lessons/run.py check 10      what is right, what is not yet
#     python lessons/run.py show 10       the whole lesson from top to bottom, with its plot

# %%
import torch

from lessons.course import claim, save_plot, yours_or_ours
from model import GPT, Attention, GPTConfig, written_out_attention

predict_1 = None  # how many numbers attention has to learn at C = 128 with 4 heads, without biases

# %% [markdown]
# ## Looking back
#
# The shares of a token sum to 1. What it gives to one place it takes from another, and the values it
# collects are mixed into one mean. But a letter may depend on two places at once: on the one just before
# and on the first of the line, say.
#
# So attention is done H times side by side, by H **heads** (Vaswani et al., 2017). Each has queries, keys
# and values of its own and its own shares. For that the C numbers of a token are cut into H pieces of
# `hs` = C / H. Head 0 works with the first hs numbers of q, k and v, head 1 with the next, and so on. More
# heads are smaller heads: the work and the number of weights stay what they were.
#
# There is no loop over heads. They become an axis of the tensor, next to the batch, and all of lesson 9
# works on the last two axes as before:
#
# `(B, T, C)` -> split -> `(B, H, T, hs)` -> attend -> `(B, H, T, hs)` -> merge -> `(B, T, C)`
#
# Scores are now divided by the root of hs, for that many products are added up in each.

# %% [markdown]
# ## 10a. Split
#
# A tensor is a row of numbers in memory plus a shape. `view` changes the shape and moves no number, so it
# can only cut an axis into two or join two that lie side by side. `transpose` says in which order axes are
# walked through. Here you need both, in the right order.
#
# One wrong way gives the right shape, too: to view `(B, T, C)` as `(B, H, T, hs)` at once. Nothing crashes.
# But the rows of such a head are no tokens, so a mask that hides later rows hides the wrong things: past is
# lost, and future leaks. `check` draws who sees whom.


# %%
def split(x, n_head):
    """The numbers of each token, shared out among the heads: head 0 gets the first C / n_head, and so on.

    x: (B, T, C) float32, n_head: int that divides C -> (B, n_head, T, C / n_head) float32.
    """
    raise NotImplementedError("lesson 10a")


# %%
if __name__ == "__main__":
    x = 10 * torch.arange(3.0)[:, None] + torch.arange(
        4.0
    )  # (3, 4): token t has the numbers 10 t ... 10 t + 3
    print("three tokens of four numbers, and their two heads:")
    heads = yours_or_ours(split, "10a")(x[None], 2)[0]
    for t in range(len(x)):
        print("   ", x[t].int().tolist(), " ", " ".join(str(head[t].int().tolist()) for head in heads))
    assert (heads[1, 2] == torch.tensor([22.0, 23.0])).all(), "token 2, the second half"

# %% [markdown]
# ## 10b. Merge
#
# The way back, with one more step. Side by side again, the heads still know nothing of each other: number 0
# comes from head 0 alone. A last matrix `wo` (in the project: `attn.o`), C times C, mixes them. You may also
# read it like this: each head has its own hs rows of wo, by which it adds to the output whatever it has
# found, and the output is the sum over heads.


# %%
def merge(y, wo):
    """The heads of each token side by side, head 0 first, and then through the output matrix.

    y: (B, H, T, hs) float32, wo: (H * hs, H * hs) float32 -> (B, T, H * hs) float32.
    """
    raise NotImplementedError("lesson 10b")


# %% [markdown]
# ## One head against two
#
# The text is two random letters, a and b, and a third token that has to know both. A head that gives the
# share s to a and the rest to b collects s a + (1 - s) b. How well can a and b be told from that? The
# measure is the part of their variance that the best linear reader explains; 1 is perfect.
#
# With one head and s = 0.5 it is 0.5 for each. At s = 0.8 it is 0.94 for a, but 0.06 for b: what is won for
# one is lost for the other, and the sum stays 1. Two heads of half the size give each letter a place of its
# own, and both are read perfectly.


# %%
def collected(letters, shares):
    """What the last of three tokens collects: letters (B, 3, 8) one-hot, shares (H, 3) by head -> (B, 16)."""
    H, hs = len(shares), 16 // len(shares)
    q, k, v = (torch.zeros(len(letters), 3, H, hs) for _ in range(3))
    q[:, 2, :, :3] = torch.tensor(shares).log() * hs**0.5  # the softmax of logarithms are the shares again
    for t in range(3):
        k[:, t, :, t] = 1.0  # each token offers its position
    v[..., :8] = letters[:, :, None]  # and hands over its letter
    q, k, v = (yours_or_ours(split, "10a")(part.flatten(2), H) for part in (q, k, v))
    return yours_or_ours(merge, "10b")(written_out_attention(q, k, v, 0.0), torch.eye(16))[:, 2]


def explained(seen, letters):
    """Part of the variance of letters (B, 8) that the best linear reader of seen (B, 16) explains."""
    seen, letters = (part.double() - part.double().mean(0) for part in (seen, letters))
    left = letters - seen @ torch.linalg.pinv(seen, rtol=1e-5) @ letters
    return (1 - left.square().sum() / letters.square().sum()).item()


if __name__ == "__main__":
    a, b = torch.cartesian_prod(torch.arange(8), torch.arange(8)).T  # all pairs of letters
    letters = torch.nn.functional.one_hot(torch.stack((a, b, a), dim=1), 8).float()  # (64, 3, 8)
    none = 1e-9  # a share so small that it counts for nothing
    places = [i / 20 for i in range(1, 20)]
    one_head = {s: collected(letters, [[s, 1 - s, none]]) for s in places}
    of_a, of_b = ([explained(seen, letters[:, t]) for seen in one_head.values()] for t in (0, 1))
    two_heads = collected(letters, [[1.0, none, none], [none, 1.0, none]])
    two = [explained(two_heads, letters[:, t]) for t in (0, 1)]
    print(f"one head, s = 0.8: a {of_a[15]:.2f}, b {of_b[15]:.2f}; two heads: a {two[0]:.2f}, b {two[1]:.2f}")
    claim(0.5, places[9], tol=0)
    claim(0.5, of_a[9], tol=0.005)
    claim(0.5, of_b[9], tol=0.005)
    claim(0.8, places[15], tol=0)
    claim(0.94, of_a[15], tol=0.005)
    claim(0.06, of_b[15], tol=0.005)
    assert all(abs(x + y - 1) < 1e-4 for x, y in zip(of_a, of_b, strict=True)), "the sum stays 1"
    assert min(two) > 0.9999, "two heads lose nothing"

    def draw(axes):
        axes.plot(places, of_a, marker="o", label="one head: letter a")
        axes.plot(places, of_b, marker="o", label="one head: letter b")
        axes.axhline(two[0], linestyle="--", color="black", label="two heads: both")
        axes.set(xlabel="share s of letter a", ylabel="explained", title="One head has one mean to give")
        axes.legend()

    save_plot("10_heads", draw)

# %% [markdown]
# ## 10c. What it weighs
#
# Before you train a model, know how many numbers it has: memory, time and the amount of text it needs
# follow from that. These have to be learned in the project's usual model, with V letters:
#
# - a table of V x C that turns letters into vectors, and at the end a matrix of C x V back to letters;
# - in each of n_layer blocks attention: the matrices of queries, keys and values, and the output matrix;
# - in each block an MLP, two matrices: from C to n_ff and back (lesson 13);
# - norms, which have C numbers each (lesson 12): one before each attention, one before each MLP, one last.
#
# There are no biases, and rotary positions (lesson 8) have nothing to learn. One switch more: keys and
# values may have fewer heads than queries, n_kv of them, each as wide as other heads. The next lesson says
# why.


# %%
def count_parameters(V, C, n_layer, n_head, n_kv, n_ff):
    """How many numbers a model has to learn.

    V letters, C numbers a token, n_head heads of queries, n_kv of keys and of values, n_ff numbers inside the
    MLP: all int -> int.
    """
    raise NotImplementedError("lesson 10c")


# %% [markdown]
# With V = 65, C = 128, 4 blocks of 4 heads and n_ff = 512 that makes 804,224 numbers, whatever the number of
# heads. One third of each block is attention; its share falls if n_ff grows.

# %%
if __name__ == "__main__":
    shape = dict(V=65, C=128, n_layer=4, n_ff=512)
    for n_head in (1, 2, 4, 8):
        claim(804_224, yours_or_ours(count_parameters, "10c")(n_head=n_head, n_kv=n_head, **shape), tol=0)
        attention = Attention(GPTConfig(n_head=n_head, n_embd=shape["C"]))
        claim(65_536, sum(p.numel() for p in attention.parameters()), tol=0)
    network = GPT(GPTConfig(vocab_size=65, n_embd=128, n_layer=4, n_head=4, n_ff=512))
    claim(804_224, sum(p.numel() for p in network.parameters()), tol=0)
    block = sum(p.numel() for p in network.blocks[0].parameters())
    assert abs(sum(p.numel() for p in network.blocks[0].attn.parameters()) / block - 1 / 3) < 0.001
    claim(65, network.config.vocab_size, tol=0)
    claim(128, network.config.n_embd, tol=0)
    claim(4, network.config.n_layer, tol=0)
    claim(512, network.config.n_ff, tol=0)

# %% [markdown]
# ## Where it stands in the project
#
# `Attention.forward` in model.py is this lesson: `view` and `transpose` for q, k and v, attention over the
# last two axes, `transpose` and `reshape` back, then `attn.o`. `written_out_attention` is lesson 9 for all
# heads. The project adds rotary positions, norms of queries and keys, a cache, and torch's fused kernel,
# which never holds the T x T scores. `on_meta` in runtime/memory.py builds a model without memory for its
# weights, only to count them; `python bench.py --only=plan` plans large runs by it.
