# Lesson 26 (unit E): Sampling: temperature, top-k, top-p
# Before: a model that fits into memory and is trained. It gives chances; a text needs one letter, each time.
# Seconds: 5
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 26     your copy, in work/
#     python lessons/run.py check 26     what is right, what is not yet
#     python lessons/run.py show 26      the whole lesson from top to bottom, with its plot

# %%
import math  # noqa: F401 (for your answers)

import torch

from lessons.course import claim, encoded, save_plot, yours_or_ours

predict_1 = None  # letters kept from the chances 0.5, 0.3, 0.15, 0.05 by top-p with p = 0.6
predict_2 = None  # chance of the likelier of two letters, 0.8 and 0.2 at temperature 1, at temperature 0.5

# %% [markdown]
# ## Which letter comes next?
#
# A model gives logits, one for each letter, and the softmax makes chances of them. Which letter is written
# down? There are two simple answers, and both disappoint.
#
# - Always the likeliest. It is called **greedy**. The text soon meets a letter pair it has met before, goes
#   on as it did then, and runs in a circle.
# - Draw by the chances, as in lesson 2. Each wrong letter has a small chance, but there are many wrong
#   letters: their chances add up. This long **tail** is where a model is worst, and a text of hundreds of
#   letters meets it again and again. What follows such a letter is written after a text nobody ever wrote.
#
# The three knobs of this lesson lie in between.

# %% [markdown]
# ## 26a. Temperature
#
# Divide the logits by a number T before the softmax. T below 1 makes them differ more: the likely gets
# likelier. T above 1 makes them more alike. T = 1 changes nothing.
#
#     softmax(logits / T)
#
# By hand: two letters with chances 0.8 and 0.2. Their logits differ by ln 4 = 1.386. At T = 0.5 they
# differ by 2.773, and that is 16 to 1: chances 0.941 and 0.059. Chances are raised to the power 1 / T, and
# divided by their new sum.
#
# At T = 0 the division fails. Where does it go when T gets smaller and smaller? All chance goes to the
# likeliest letter. So T = 0 stands for greedy, and is a case by itself.
#
# Some logits may be -inf: letters that must not come. Their chance is 0, and stays 0 at any temperature.


# %%
def tempered(logits, temperature):
    """Chances of each next letter at a temperature.

    logits: (B, V) float32, perhaps -inf at some letters, never at all of a row; perhaps in the thousands;
    temperature: float, 0 or above; 0: the likeliest letter of each row has the chance 1
    -> (B, V) float32, each row sums to 1; logits are left as they are.
    """
    raise NotImplementedError("lesson 26a")


# %%
if __name__ == "__main__":
    chances = yours_or_ours(tempered, "26a")
    two = torch.tensor([[0.8, 0.2]]).log()
    for T in (2.0, 1.0, 0.5, 0.0):
        print(f"0.8 and 0.2 at temperature {T}:", "and".join(f" {x:.3f} " for x in chances(two, T)[0]))
    claim(0.941, chances(two, 0.5)[0, 0].item(), tol=0.0005)
    claim(0.059, chances(two, 0.5)[0, 1].item(), tol=0.0005)
    claim(1.386, (two[0, 0] - two[0, 1]).item(), tol=0.0005)
    claim(2.773, (two[0, 0] - two[0, 1]).item() / 0.5, tol=0.0005)
    claim(16, (chances(two, 0.5)[0, 0] / chances(two, 0.5)[0, 1]).item(), tol=0.01)
    claim(4, (chances(two, 1.0)[0, 0] / chances(two, 1.0)[0, 1]).item(), tol=0.01)
    claim(0.8, chances(two, 1.0)[0, 0].item(), tol=0.0005)
    claim(0.2, chances(two, 1.0)[0, 1].item(), tol=0.0005)

# %% [markdown]
# ## 26b. Top-k
#
# Temperature makes the tail thin, but never cuts it. **Top-k** does: the k letters with the largest logits
# stay as they are, the others get a chance of 0 (Fan et al., 2018). A logit is no chance: 0 would be an
# ordinary logit. What gives e^x = 0 is x = -inf.
#
#     logits     3    1    0   -2   -4
#     k = 2      3    1  -inf -inf -inf      chances 0.88 and 0.12


# %%
def keep_k(logits, k):
    """Logits with all but the k largest of each row set to -inf; of equal ones it does not matter which.

    logits: (B, V) float32; k: int, 0 keeps all, and so does a k of V or more -> (B, V) float32; logits are
    left as they are.
    """
    raise NotImplementedError("lesson 26b")


# %%
if __name__ == "__main__":
    few = yours_or_ours(keep_k, "26b")
    example = torch.tensor([[3.0, 1, 0, -2, -4]])
    print("two of five:", few(example, 2)[0].tolist())
    left = chances(few(example, 2), 1.0)[0]
    claim(0.88, left[0].item(), tol=0.005)
    claim(0.12, left[1].item(), tol=0.005)
    claim(2, int((left > 0).sum()), tol=0)
    claim(3, example.max().item(), tol=0)

# %% [markdown]
# ## 26c. Top-p
#
# How many letters are good differs from place to place. After `q` there is one; after a space there are
# dozens. A fixed k is too many here and too few there. **Top-p**, or nucleus sampling, fixes the sum: the
# likeliest letters are kept, as few as together reach p (Holtzman et al., 2019).
#
#     chances     0.5    0.3    0.15   0.05
#     p = 0.6     xxxx   xxxx                 0.5 is not enough; with 0.3 it is 0.8, and that reaches 0.6
#     rescaled    0.625  0.375
#
# The letter that crosses p is kept: without it the sum is too small. So one letter always stays, however
# small p is. The order of chances is not the order of ids: what is kept has to find back to its own id.


# %%
def keep_p(probs, p):
    """The likeliest letters of each row, as few as have a sum of p or more; then rescaled to sum to 1.

    probs: (B, V) float32, each row sums to 1; p: float, 0 < p <= 1; of equal letters it does not matter
    which are kept -> (B, V) float32, 0 where a letter is cut; probs are left as they are.
    """
    raise NotImplementedError("lesson 26c")


# %%
if __name__ == "__main__":
    nucleus = yours_or_ours(keep_p, "26c")
    example, p = torch.tensor([[0.5, 0.3, 0.15, 0.05]]), 0.6
    print(f"p = {p}: {nucleus(example, p)[0].tolist()}")
    claim(0.625, nucleus(example, p)[0, 0].item(), tol=0.0005)
    claim(0.375, nucleus(example, p)[0, 1].item(), tol=0.0005)
    claim(0.5, example[0, 0].item(), tol=1e-6)
    claim(0.3, example[0, 1].item(), tol=1e-6)
    claim(0.15, example[0, 2].item(), tol=1e-6)
    claim(0.05, example[0, 3].item(), tol=1e-6)
    claim(0.8, example[0, :2].sum().item(), tol=1e-6)
    claim(0.6, p, tol=0)

# %% [markdown]
# ## The three together
#
# The model below needs no training: it has counted which letter follows which two, with 0.1 added to each
# count (lesson 2), and its logits are the logarithms. That 0.1 gives a chance to each **new triple**: three
# letters in a row that the training text does not have. So the tail is easy to see. At 500 random places of
# the text, the chance that the next letter makes a new triple is 0.56 % at T = 1 and 4.1 % at T = 1.5:
# four times in a hundred letters. With p = 0.9 and T = 1 it is below 0.1 %. With T = 0 it is 0, but then the
# text is "the the the".
#
# At T = 1.5, p = 0.9 leaves 1.3 %. Temperature comes first: it has lifted the tail before top-p measures it.


# %%
def with_knobs(logits, temperature, k, p):
    """Logits (B, V) -> chances to draw with (B, V)."""
    chances = yours_or_ours(tempered, "26a")(yours_or_ours(keep_k, "26b")(logits, k), temperature)
    return yours_or_ours(keep_p, "26c")(chances, p)


def write(logits_of, n, *knobs):
    """n letters after letter 0 twice -> their ids, a list."""
    g, ids = torch.Generator().manual_seed(26), [0, 0]
    for _ in range(n):
        probs = with_knobs(logits_of[ids[-2], ids[-1]][None], *knobs)[0]
        ids.append(int(torch.multinomial(probs, 1, generator=g)))
    return ids[2:]


if __name__ == "__main__":
    vocabulary, train, _, is_shakespeare = encoded()
    V, added = len(vocabulary), 0.1
    triples = torch.bincount((train[:-2] * V + train[1:-1]) * V + train[2:], minlength=V**3).view(V, V, V)
    logits_of = (triples + added).log()
    places = torch.randint(len(train) - 2, (500,), generator=torch.Generator().manual_seed(26))
    before, last = train[places], train[places + 1]

    def tail(*knobs):
        """Chance in % that the next letter makes a new triple, at these places on average."""
        chances = with_knobs(logits_of[before, last], *knobs)
        return 100 * (chances * (triples[before, last] == 0)).sum(1).mean().item()

    for knobs in ((0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.9), (1.5, 0, 1.0), (1.5, 0, 0.9)):
        text = repr("".join(vocabulary[i] for i in write(logits_of, 70, *knobs)))
        print("T = {}, k = {}, p = {}:".format(*knobs), f"{tail(*knobs):5.2f} % of the tail; {text}")
    claim(500, len(places), tol=0)
    claim(0.1, logits_of[triples == 0].exp().max().item(), tol=1e-6)
    claim(0.56, tail(1.0, 0, 1.0), tol=0.01, when=is_shakespeare)
    claim(4.1, tail(1.5, 0, 1.0), tol=0.05, when=is_shakespeare)
    claim(1.3, tail(1.5, 0, 0.9), tol=0.05, when=is_shakespeare)
    claim(1.5, knobs[0], tol=0)
    claim(0.9, knobs[2], tol=0)
    assert tail(1.0, 0, 0.9) < 0.1 and tail(0.0, 0, 1.0) == 0

    temperatures = (0.4, 0.7, 1.0, 1.3, 1.6)
    curves = {
        name: [tail(T, k, p) for T in temperatures]
        for name, k, p in (("all letters", 0, 1.0), ("k = 10", 10, 1.0), ("p = 0.9", 0, 0.9))
    }
    assert sorted(curves["all letters"]) == curves["all letters"], "hotter is wilder"
    assert all(cut <= whole for cut, whole in zip(curves["p = 0.9"], curves["all letters"], strict=True))

    def draw(axes):
        for name, shares in curves.items():
            axes.plot(temperatures, shares, marker="o", label=name)
        axes.set(xlabel="temperature", ylabel="chance of a new triple (%)", title="Chance of the tail")
        axes.legend()

    save_plot("26_sampling", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `token_probs` in generate.py has all three, in the order used here. It leaves the last division away: `draw`
# multiplies its random number by the sum instead, and finds the first letter where the running sum is
# larger. `python sample.py --temperature=0.8 --top_p=0.9` sets the knobs; `--temperature=0` is greedy.
# Whatever is drawn, the model reads the whole text again for each letter. The next lesson ends that.
