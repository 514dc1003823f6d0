# Lesson 9 (unit B): Causal attention, one head: scores, mask, weighted sum
# Before: embeddings and positions say what a token is and where it stands. No token knows another one yet.
# Seconds: 6
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 9      your copy, in work/
#     python lessons/run.py check 9      what is right, what is not yet
#     python lessons/run.py show 9       the whole lesson from top to bottom, with its plot

# %%
import math

import torch

from lessons.course import claim, save_plot, yours_or_ours

predict_1 = None  # standard deviation of q·k at head size 64, if all entries have variance 1

# %% [markdown]
# ## Looking back
#
# To guess the next letter a model should use the letters before it. A mean over all of them would do, but
# not all of them matter: after `q` the letter `u` follows whatever stood before, and the rhyme of a line
# hangs on the end of another line. So each token needs to choose whom it looks at.
#
# Attention does that with three vectors per token, all made of the token's own vector x by a matrix:
#
# - the **query** q: what am I looking for?
# - the **key** k: what do I have to offer?
# - the **value** v: what do I hand over, if I am chosen?
#
# The score of token t for token s is the product q_t · k_s. It is high where the question fits the offer.
# The scores of a token become shares by a softmax (lesson 3), and its output is the mean of the values by
# these shares. That is all; the formula fits in a line (Vaswani et al., 2017):
#
#     output = softmax(q k^T / root of d, without the future) v
#
# By hand: a token has the scores 0 and 1.0986 for itself and the one before. The exponentials are 1 and 3,
# the shares 0.25 and 0.75. With the values 8 and 4 its output is 0.25 · 8 + 0.75 · 4 = 5.

# %%
if __name__ == "__main__":
    shares = torch.tensor([0.0, 1.0986]).softmax(0)
    claim(0.25, shares[0].item()), claim(0.75, shares[1].item()), claim(1.0986, math.log(3))
    values = torch.tensor([8.0, 4.0])
    claim(8, values[0].item())
    claim(4, values[1].item())
    claim(5, (shares @ values).item())
    claim(3, math.exp(1.0986), tol=1e-3)

# %% [markdown]
# ## 9a. Scores
#
# Shapes: B texts at once, T tokens in each, d numbers in a query or key. In this project d is called
# `hs`, the head size. Each text has T x T scores: one for each pair of query and key.
#
# The sum of d products grows with d. If the entries of q and k have variance 1, so has each product, and
# variances add up. You predicted above how large the scores get. Large scores make a sharp softmax: one
# share is nearly 1, the others nearly 0, and where a softmax is that sure, it passes nearly no gradient
# on.


# %%
def scores(q, k):
    """How much each query asks for each key, scaled so that the spread does not depend on the head size.

    q: (B, T, d) float32, k: (B, T, d) float32 -> (B, T, T) float32; entry (b, t, s): query t, key s.
    """
    raise NotImplementedError("lesson 9a")


# %% [markdown]
# Below: the largest share of a token among 64 others, averaged, and the entropy of its shares, in nats.
# Without the scale the largest share is about 0.79 on average, where it should be about 0.11, and the
# entropy falls from 3.69 to 0.59. If you divide by d and not by its root, the shares are nearly equal: an
# entropy of 4.15, where the ceiling, ln 64, is 4.159.


# %%
def sharpness(s):
    """Mean largest weight and mean entropy (nats) of a softmax over the last axis."""
    weights = torch.softmax(s, -1)
    return weights.amax(-1).mean().item(), -(weights * weights.clamp(min=1e-30).log()).sum(-1).mean().item()


if __name__ == "__main__":
    g = torch.Generator().manual_seed(9)
    q, k = torch.randn(64, 64, 64, generator=g), torch.randn(64, 64, 64, generator=g)
    scaled = yours_or_ours(scores, "9a")(q, k)
    for name, s in (("q·k / root of d", scaled), ("q·k", scaled * 8), ("q·k / d", scaled / 8)):
        largest, entropy = sharpness(s)
        print(f"{name:16} spread {s.std():.2f}, largest weight {largest:.3f}, entropy {entropy:.3f}")
    largest, entropy = sharpness(scaled)
    claim(0.11, largest, tol=0.005)
    claim(3.69, entropy, tol=0.005)
    largest, entropy = sharpness(scaled * 8)
    claim(0.79, largest, tol=0.005)
    claim(0.59, entropy, tol=0.005)
    claim(4.15, sharpness(scaled / 8)[1], tol=0.005)
    claim(4.159, math.log(64), tol=0.001)
    claim(64, q.size(-1), tol=0)
    claim(8.0, (scaled * 8).std().item(), tol=0.1)

# %% [markdown]
# ## 9b. Nobody sees the future
#
# In training all T positions of a text are guessed at once: position t guesses letter t + 1. If it could
# look at that letter, the loss would fall to nothing and the model would have learned to copy. So the
# score of a later token must not count. After the softmax it is too late: the future is in the
# denominator by then, and the past would still be moved by it. The mask comes before.
#
# `check` draws who sees whom. Row t, column s: an x stands where a change of token s moves the result at
# t. Right is the lower triangle, diagonal included: a token may always look at itself, and the first one
# has nobody else.
#
#     t     s ->
#     |     x . . .     the first token sees itself
#     v     x x . .
#           x x x .     the third sees two before it, and itself
#           x x x x


# %%
def causal(scores):
    """Shares of attention: a softmax over the past and the token itself, 0 for the future.

    scores: (B, T, T) float32, entry (b, t, s) of query t and key s, left as it is -> (B, T, T) float32, where
    each row sums to 1.
    """
    raise NotImplementedError("lesson 9b")


# %%
if __name__ == "__main__":
    weights = yours_or_ours(causal, "9b")(scaled[:, :6, :6])
    print("shares of attention of six tokens with random queries and keys:")
    for row in weights[0]:
        print("   " + "  ".join(f"{share:.2f}" for share in row))
    assert torch.allclose(weights.sum(-1), torch.ones(64, 6)), "each row is shared out once"

# %% [markdown]
# ## 9c. All of one head
#
# Now put both together. Note the three matrices: what is compared (keys) is not what is handed over
# (values).


# %%
def attend(x, wq, wk, wv):
    """One head of causal attention, from token vectors to outputs. It may call `scores` and `causal`.

    x: (B, T, C) float32; wq, wk, wv: (C, d) float32 -> (B, T, d) float32.
    """
    raise NotImplementedError("lesson 9c")


# %% [markdown]
# ## 9d. A head by hand
#
# A head learns its three matrices. To see what they can say, build one that hands over **the token before**.
# Large models have such heads, and use them to find what followed the last time (Olsson et al., 2022).
#
# Let x hold two things side by side: first the position, T numbers with a 1 at place t and zeros beside it;
# then the token, V numbers. The product x @ wk then reads, of wk, the row of the position and the rows of the
# token. So a key can say "I stand at t", and a query "who stands at t - 1?". Their product is large where the
# two fit. How large must it be, if the softmax is to give nearly all to one?


# %%
def look_back(T, V):
    """The matrices of a head whose output t is token t - 1, and whose output 0 is token 0.

    T, V: int; the vectors x are (B, T, T + V) float32: the position, then the token
    -> (wq, wk, wv), float32, for `attend`: (T + V, d), (T + V, d) with any d, and (T + V, V).
    """
    raise NotImplementedError("lesson 9d")


# %%
if __name__ == "__main__":
    word = "attention"
    T, letters = len(word), sorted({*word})
    tokens = torch.eye(len(letters))[[letters.index(letter) for letter in word]]
    x = torch.cat((torch.eye(T), tokens), dim=1)[None]
    wq, wk, wv = yours_or_ours(look_back, "9d")(T, len(letters))
    handed = yours_or_ours(attend, "9c")(x, wq, wk, wv)[0].argmax(1)
    print(f"{word} -> {''.join(letters[i] for i in handed)}")
    assert "".join(letters[i] for i in handed) == word[0] + word[:-1]
    for row in yours_or_ours(causal, "9b")(yours_or_ours(scores, "9a")(x @ wq, x @ wk))[0]:
        print("   " + " ".join(" .:-=+*#"[min(7, int(8 * share))] for share in row))  # dark: a large share

# %% [markdown]
# ## What it is good for
#
# A task that no table of pairs can do: to repeat the very first token of a text, however long ago that
# was. A single head solves it without any training, if each query asks for position zero and only that
# position's key answers. The plot shows how much of token 0 each output holds. As the question gets
# sharper, the head goes from a mean over the past to a plain look-up.

# %%
if __name__ == "__main__":
    T, C = 12, 12
    x = torch.eye(T)[None]  # (1, T, C): each token knows only its position
    head = yours_or_ours(attend, "9c")
    wq, wk = torch.zeros(C, C), torch.zeros(C, C)
    wq[:, 0], wk[0, 0] = 1.0, 1.0  # everyone asks for what only position 0 offers
    shares = {}
    for sharp in (0, 2, 8, 32):
        shares[sharp] = head(x, sharp * wq, wk, torch.eye(C))[
            0, :, 0
        ]  # (T,): how much of token 0 is handed over
    assert torch.allclose(shares[0], 1 / torch.arange(1, T + 1)), "no question: a mean over the past"
    assert (shares[32] > 0.99).all(), "a sharp question: a look-up"

    def draw(axes):
        for sharp, share in shares.items():
            axes.plot(range(T), share, marker="o", label=f"question x {sharp}")
        axes.set(xlabel="token t", ylabel="share of token 0 in output t", title="From a mean to a look-up")
        axes.legend()

    save_plot("09_attention", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `written_out_attention` in model.py is this lesson with several heads (the next lesson's subject). On
# most devices the project calls `scaled_dot_product_attention` instead, which computes the same without
# ever holding the T x T scores (Dao et al., 2022). What attention costs grows with the square of T: twice
# the text, four times the scores.
