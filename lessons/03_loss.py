# Lesson 3 (unit A): Cross-entropy, perplexity, bits per byte, and the exact floor
# Before: a table of pairs was fitted by counting. Which number says how good it is, and how good can it get?
# Seconds: 6
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 3      your copy, in work/
#     python lessons/run.py check 3      what is right, what is not yet
#     python lessons/run.py show 3       the whole lesson from top to bottom, with its plot

# %%
import math

import torch

from lessons.course import claim, encoded, save_plot, yours_or_ours

predict_1 = None  # perplexity of a uniform guess among 65 letters

# %% [markdown]
# ## One number for a guess
#
# A model gives a probability to each letter that may come next. Then one comes. The loss is how surprised
# the model was: minus the logarithm of the probability it gave to that letter. A sure and right guess
# costs nothing. A letter that was held to be impossible costs infinitely much. The mean over many letters
# is the **cross-entropy**, and training does nothing but push it down.
#
# The unit depends on the logarithm: **nats** with the natural one, which this project uses everywhere,
# **bits** with base two. One nat is 1.4427 bits. A model that knows nothing about 65 letters pays ln 65 =
# 4.174 nats or 6.022 bits for each.

# %%
if __name__ == "__main__":
    claim(1.4427, 1 / math.log(2), tol=0.0001)
    claim(4.174, math.log(65), tol=0.001)
    claim(6.022, math.log2(65), tol=0.001)

# %% [markdown]
# ## 3a. Cross-entropy from scratch
#
# A model puts out **logits**, any real numbers, and the **softmax** makes probabilities of them: each becomes
# its exponential, divided by the sum of all exponentials.
#
#     p_i = exp(logit_i) / (exp(logit_1) + exp(logit_2) + ...)
#
# By hand: the logits 0 and 1.0986 (ln 3) have the exponentials 1 and 3, so the probabilities 0.25 and 0.75.
# If the second letter came, the loss is -ln 0.75 = 0.288 nats.
#
# Softmax first, logarithm after: that is the definition, and it breaks. For logits of 1000 the exponential
# is infinite, and a probability of zero has no logarithm. Both are needless: logarithm and exponential
# cancel if you let them.
#
# The gradient of this loss is short: softmax minus one at the letter that came, divided by the number of
# targets. The grader compares it, too. A loss with the right value and no gradient trains nothing.


# %%
def cross_entropy(logits, y):
    """Mean of -ln p(target) over the targets, as a 0-dimensional tensor. Logits may be as large as 1000.

    logits: (N, V) float32, y: (N,) int64 -> () float32, with a gradient to the logits.
    """
    raise NotImplementedError("lesson 3a")


# %% [markdown]
# If the probabilities go in where logits are expected, the softmax is applied twice. It flattens
# everything: with 65 letters the loss can then never fall below 3.20, even if every guess is sure and
# right. Nothing crashes. Training just gets stuck above a floor that is not there.

# %%
if __name__ == "__main__":
    loss_of = yours_or_ours(cross_entropy, "3a")
    perfect, y = torch.eye(65) * 1000, torch.arange(65)
    assert loss_of(perfect, y) < 1e-6, "sure and right costs nothing"
    claim(3.20, loss_of(torch.softmax(perfect, 1), y).item(), tol=0.005)
    claim(1000, perfect.max().item(), tol=0)
    claim(65, len(y), tol=0)
    two = torch.tensor([[0.0, math.log(3)]])
    claim(1.0986, two[0, 1].item(), tol=1e-4), claim(3, two.exp()[0, 1].item(), tol=1e-5)
    claim(0.25, two.softmax(1)[0, 0].item()), claim(0.75, two.softmax(1)[0, 1].item())
    claim(0.288, loss_of(two, torch.tensor([1])).item(), tol=0.0005)

# %% [markdown]
# ## 3b. Perplexity
#
# e to the loss is the **perplexity**: among how many equally likely letters is the model as unsure as
# that? It is a readable number with one trap. The exponential comes after the mean. Perplexities of
# batches must not be averaged, and neither must losses of batches of unequal size.


# %%
def perplexity(nll_sums, counts):
    """Perplexity of a text that was scored in batches, which need not be equally long.

    nll_sums: (batches,) float32, the summed nats of each batch; counts: (batches,) int64, its number of
    targets -> a Python float.
    """
    raise NotImplementedError("lesson 3b")


# %% [markdown]
# Here a bigram table (lesson 2) is scored on text that it has not seen, in batches of 64 letters. On Tiny
# Shakespeare the perplexity is 11.96. A mean of the perplexities of batches says 12.13, a mean over
# single letters 43.3, and e to a number of bits 35.9: four numbers for one model and one text.

# %%
if __name__ == "__main__":
    vocabulary, train, val, is_shakespeare = encoded()
    V = len(vocabulary)
    counts = torch.bincount(train[:-1] * V + train[1:], minlength=V * V).view(V, V).double() + 1
    table = counts / counts.sum(1, keepdim=True)  # (V, V): chance of the column after the row
    nll = -table[val[:-1], val[1:]].log()  # (n - 1,)
    batches = nll.split(64)
    sums, sizes = torch.stack([b.sum() for b in batches]), torch.tensor([len(b) for b in batches])
    found = yours_or_ours(perplexity, "3b")(sums.float(), sizes)
    print(
        f"{'Tiny Shakespeare' if is_shakespeare else 'the generated play'}: {nll.mean():.3f} nats a letter,"
    )
    print(f"perplexity {found:.2f}; mean over batches {(sums / sizes).exp().mean():.2f},")
    print(f"mean over letters {nll.exp().mean():.1f}, e to the bits {math.exp(nll.mean() / math.log(2)):.1f}")
    assert found < (sums / sizes).exp().mean() < nll.exp().mean(), "a mean of exps is too large (Jensen)"
    claim(64, len(batches[0]), tol=0)
    claim(11.96, found, tol=0.01, when=is_shakespeare)
    claim(12.13, (sums / sizes).exp().mean().item(), tol=0.01, when=is_shakespeare)
    claim(43.3, nll.exp().mean().item(), tol=0.1, when=is_shakespeare)
    claim(35.9, math.exp(nll.mean() / math.log(2)), tol=0.1, when=is_shakespeare)

# %% [markdown]
# ## 3c. Bits per byte
#
# Loss per token and perplexity depend on what a token is. A model on byte pairs guesses rarer and longer
# things: its loss per token is higher though it may know the text better. What the text weighs on disk is
# the same for all: so add up all nats, turn them into bits, and divide by the UTF-8 bytes of the text
# that was scored.
#
# Bytes are not characters: "ł" has two, "안" three. And what was only a prompt was not scored: its bytes
# stay out.


# %%
def bits_per_byte(nll, prompt, text):
    """Bits per UTF-8 byte of a text, whatever its tokens were.

    nll: (tokens of the text,) float32, nats of each; prompt: str, stood before the text and was not scored;
    text: str -> a Python float.
    """
    raise NotImplementedError("lesson 3c")


# %%
if __name__ == "__main__":
    for sample in ("to be", "być łaską", "안녕"):
        found = yours_or_ours(bits_per_byte, "3c")(torch.full((len(sample),), 2.0), "", sample)
        print(f"{sample!r}: {len(sample)} letters, {len(sample.encode())} bytes, {found:.3f} bits per byte")

# %% [markdown]
# ## 3d. How good can it get?
#
# For a real text nobody knows. For a generated text it can be computed: a chain that draws each letter by
# the one before has an **entropy rate**, and no model can have a lower loss on average. The rate is the
# mean entropy of the rows, each weighed by how often its letter comes up.
#
# The chain below has three letters and a rate of 0.7838 nats, which is 1.1307 bits. Three wrong floors:
# the entropy of the letter frequencies, 1.0195; rows that weigh the same, 0.8345; ln 3 = 1.0986. A good
# model falls below each of them, which looks like a wonder and is a mistake.


# %%
def gap(P, loss):
    """How far a loss is above the lowest possible one, in nats per letter.

    P: (V, V) float64, P[a, b] is the chance of letter b after letter a; loss: float, nats per letter
    -> a Python float.
    """
    raise NotImplementedError("lesson 3d")


# %% [markdown]
# A table of pairs with one added to each count has to learn six free numbers here. Theory says that its
# loss is above the floor by about 6/(2n) after n letters. The plot draws that, and what was measured: the
# mean over 5 chains, each table's loss computed exactly.


# %%
def excess(P, n, seed):
    """Loss above the floor of a table counted on n letters; exact, for no letters are drawn to score it."""
    g = torch.Generator().manual_seed(seed)
    limits, letter, counts = P.cumsum(1).tolist(), 0, torch.ones(len(P), len(P), dtype=P.dtype)
    for u in torch.rand(n, generator=g, dtype=torch.float64).tolist():
        following = sum(u > limit for limit in limits[letter][:-1])
        counts[letter, following] += 1
        letter = following
    share = torch.linalg.matrix_power(P, 1000)[0]
    loss = -(share @ (P * (counts / counts.sum(1, keepdim=True)).log()).sum(1)).item()
    return yours_or_ours(gap, "3d")(P, loss)


if __name__ == "__main__":
    P = torch.tensor([[0.80, 0.15, 0.05], [0.10, 0.20, 0.70], [0.30, 0.30, 0.40]], dtype=torch.float64)
    entropies, share = -(P * P.log()).sum(1), torch.linalg.matrix_power(P, 1000)[0]
    rate = -yours_or_ours(gap, "3d")(P, 0.0)
    claim(0.7838, rate, tol=0.0001)
    claim(1.1307, rate / math.log(2), tol=0.0001)
    claim(1.0195, -(share * share.log()).sum().item(), tol=0.0001)
    claim(0.8345, entropies.mean().item(), tol=0.0001)
    claim(1.0986, math.log(3), tol=0.0001)
    claim(3, len(P), tol=0)
    claim(6, P.numel() - len(P), tol=0)  # each row sums to 1
    lengths, seeds = (100, 300, 1000, 3000, 10000), range(5)
    claim(5, len(seeds), tol=0)
    measured = [sum(excess(P, n, seed) for seed in seeds) / len(seeds) for n in lengths]
    assert all(value > 0 for value in measured), "nothing is better than the floor"
    assert all(0.3 < value / (6 / (2 * n)) < 3 for value, n in zip(measured, lengths, strict=True))

    def draw(axes):
        axes.loglog(lengths, measured, marker="o", label="counted table, above the floor")
        axes.loglog(lengths, [6 / (2 * n) for n in lengths], "--", label="6 / (2n)")
        axes.set(
            xlabel="letters seen", ylabel="nats per letter above the floor", title="What is left to learn"
        )
        axes.legend()

    save_plot("03_loss", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `evaluate` in evaluate.py sums nats, counts targets and bytes, and divides once; loss, perplexity and
# bits per byte come out of the same three sums. `verse_entropy` in text/verse.py is the exact floor of the
# generated play on which `python train.py config/verse.py` trains, so that run can say how much is left
# to learn.
#
# A measured loss may lie below the floor by less than its standard error: the letters it was measured on
# were easy by chance. That is no bug. More than three standard errors below is one.
