# Lesson 29 (unit E): Scaling laws: fit, extrapolate, be wrong
# Before: one honest number for one model. What would a larger one have, that nobody has trained?
# Seconds: 5
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 29     your copy, in work/
#     python lessons/run.py check 29     what is right, what is not yet
#     python lessons/run.py show 29      the whole lesson from top to bottom, with its plot

# %%
import csv
import math  # noqa: F401 (for your answers)

import torch

from lessons.course import LESSONS, claim, read, save_plot, yours_or_ours
from model import GPT, GPTConfig
from techniques.significance import t_quantile
from text.corpora import open_corpus
from text.verse import verse_entropy

LITTLE, MUCH = 204_800, 819_200  # letters that a run read
predict_1 = None  # operations to train a model of 1e6 weights on 2e7 letters, in units of 1e12

# %% [markdown]
# ## Small runs tell of large ones
#
# A large run is made once. What will it reach, and is it worth its price? Nobody can try. But losses of
# models that are trained alike fall in a regular way with their size. Fit that curve to small runs, and read
# off the large one (Kaplan et al., 2020; Hoffmann et al., 2022). Such a curve is a **scaling law**.
#
# Training the runs takes half an hour, so they are in lessons/scaling_runs.csv, and their command in its
# first line. Models of two blocks and of seven widths learned from a generated play (lesson 3), each with two
# amounts of text, 204,800 letters and four times as many. No letter was read twice. Most runs were made with
# two seeds. The widest model is kept from all fits: it is the one to be foretold.


# %%
def runs_of(widest):
    """N, D, L of the runs, (3, n): of the widest model alone, or of all others."""
    lines = read(LESSONS / "scaling_runs.csv").splitlines()[1:]
    rows = [row for row in csv.DictReader(lines) if (row["width"] == "128") == widest]
    columns = [[float(row[key]) for row in rows] for key in ("weights", "letters", "loss")]
    return torch.tensor(columns, dtype=torch.float64)


# %% [markdown]
# ## 29a. Size and price
#
# The size N of a model is the number of its weights without the table of embeddings, of which a letter looks
# up one row (by custom also if the head is that matrix). With it, a large vocabulary would look like size.
#
# The price is counted in **operations** (FLOPs, floating-point operations). In the forward pass each weight
# is multiplied with one number, and the product is added to a sum: 2 operations for each weight and letter.
# The backward pass has two such products, one for the gradient of the weights and one for that of the inputs:
# 4. So D letters cost
#
#     operations = 6 N D
#
# A thousand weights on fifty letters: 300,000.


# %%
def count(model, updates, rows, T):
    """Weights of a model, and operations of its training.

    model: a module whose table of embeddings is wte.weight; its head may be the same matrix (tied); updates,
    rows, T: int, each update reads so many rows of T letters
    -> (N, operations), two ints. N counts all parameters once, also frozen ones, but for the table.
    """
    raise NotImplementedError("lesson 29a")


# %%
if __name__ == "__main__":
    N, D, L = runs_of(widest=False)
    model = GPT(GPTConfig(vocab_size=56, block_size=128, n_layer=2, n_head=2, n_embd=64, norm="layernorm"))
    weights, operations = yours_or_ours(count, "29a")(model, 800, 8, 128)
    print(f"width 64: {weights:,} weights, {operations:.2e} operations with much text")
    assert weights in N.tolist() and operations == 6 * weights * MUCH
    claim(300_000, 6 * 1000 * 50, tol=0)
    claim(4, operations / (weights * MUCH) - 2, tol=0)
    claim(204_800, D.min().item(), tol=0)
    claim(6, operations / (weights * 4 * D.min().item()), tol=0)

# %% [markdown]
# ## 29b. A curve with a floor
#
# The loss falls as a power of N, but not to 0: it has a **floor** E, which no size can remove.
#
#     L = E + A N^-a          so          ln(L - E) = ln A - a ln N
#
# With a known E, ln(L - E) against ln N is a straight line, and least squares gives it: with x = ln N and y =
# ln(L - E), their means mx and my,
#
#     -a = sum((x - mx)(y - my)) / sum((x - mx)^2)          ln A = my + a mx
#
# E is not known. So try many, each below all losses, and keep the one whose curve errs least. The yardstick
# has to be the same for all: the sum of squares of ln L - ln(E + A N^-a). In ln(L - E) each floor would have
# its own; in nats the worst models, whose losses are high, would decide alone.
#
# By hand: losses 3, 2 and 1.5, N doubled each time. Above E = 1 the losses are halved each time: so a = 1.
#
# Only compare what was trained alike. Runs that saw less text lie on another curve.


# %%
def fit(N, D, L, floors):
    """Fit L = E + A N^-a to the runs with the most text, by the best of some floors.

    N, D, L: (n,) float64, weights, letters read and loss of each run; floors: (k,) float64, candidates for E
    in any order; of those below all fitted losses the one with the least error in ln L counts
    -> (E, A, a, error), four Python floats; error is the sum of squares of ln L - ln(E + A N^-a).
    """
    raise NotImplementedError("lesson 29b")


# %%
if __name__ == "__main__":
    law, floors = yours_or_ours(fit, "29b"), torch.linspace(0, 0.75, 751, dtype=torch.float64)
    curves = {}
    for letters in (LITTLE, MUCH):
        curves[letters] = law(*(column[D == letters] for column in (N, D, L)), floors)
        print("{:,} letters: E {:.3f}, A {:.0f}, a {:.2f}".format(letters, *curves[letters][:3]))
    (size, *_), amounts, measured = runs_of(widest=True)
    straight = law(N, D, L, torch.zeros(1, dtype=torch.float64))
    without = straight[1] * size.item() ** -straight[2]
    claim(0.546, curves[MUCH][0], tol=0.0006)
    claim(0.467, without, tol=0.0006)
    claim(0.488, verse_entropy(), tol=0.0006)
    example = torch.tensor([[1.0, 2, 4], [1, 1, 1], [3, 2, 1.5]], dtype=torch.float64)
    found = law(*example, torch.tensor([0.5, 1.0]).double())
    claim(1.5, found[0] + 0.5, tol=1e-6)
    claim(2, found[1], tol=1e-6), claim(3, found[0] + found[1], tol=1e-6)

# %% [markdown]
# With much text E is 0.546. Without a floor the line foretells 0.467 for the widest model, with much text.
# But such a play costs 0.488 nats a letter on average, as its grammar knows: no model can do that.
#
# ## 29c. A forecast, with an interval
#
# A forecast without an interval is a guess. Let r be what is left of each y beside the line, n the number of
# runs, and x the ln N of the new one. Three things are unsure, and add up under the root:
#
#     radius = t s sqrt(1 + 1/n + (x - mx)^2 / S)       s^2 = sum(r^2) / (n - 2)       S = sum((x_i - mx)^2)
#
# The 1 is the noise of the new run itself, 1/n the height of the line, the last term its slope: it grows with
# the distance from the runs. t comes from Student's distribution (1908), and says how often the interval may
# miss. The radius is one of ln(L - E). From there exp leads back, and then E is added.


# %%
def forecast(N, L, E, new, t):
    """Between which losses a new run will lie, by the line through ln(L - E) against ln N.

    N, L: (n,) float64, weights and loss of runs with equal text; E: float, the floor; new: float, weights of
    the new run; t: float -> (low, middle, high), three Python floats, losses in nats.
    """
    raise NotImplementedError("lesson 29c")


# %%
if __name__ == "__main__":
    seen = {}
    for letters, loss in zip(amounts.tolist(), measured.tolist(), strict=True):
        t = t_quantile(0.95, int((D == letters).sum()) - 2)
        ahead = yours_or_ours(forecast, "29c")
        seen[letters] = *ahead(N[D == letters], L[D == letters], curves[letters][0], size.item(), t), loss
        print("{:,} letters: {:.3f}, between {:.3f} and {:.3f}; measured: {:.4f}".format(
            int(letters), *(seen[letters][i] for i in (1, 0, 2, 3))))  # fmt: skip
    claim(0.560, seen[MUCH][0], tol=0.0006)
    claim(0.567, seen[MUCH][2], tol=0.0006)
    claim(0.559, seen[MUCH][3], tol=0.0006)

# %% [markdown]
# With much text the forecast for the widest model is 0.560 to 0.567; it reached 0.559. With little text the
# run ends above its interval. Both forecasts are wrong. Their intervals allow for noise and for an unsure
# line, and take E as known. But E was fitted, too.
#
# ## 29d. Is the floor the entropy?
#
# Is E the entropy of the text? Here that can be tested, for the grammar that wrote the play knows the
# probability of all of it: the exact value is the nats of the play divided by its tokens, which are letters
# here. The entropy of letter frequencies is no floor, for a model knows what came before.
#
# And how sure is E? Floors that fit nearly as well as the best one might be true, too: those whose error is
# at most 1 + t^2/(n - 3) times the least; three numbers are fitted. A loss on text that was trained on will
# not do: it falls below the entropy of any new text.


# %%
def floor_and_entropy(runs, floors, t, play):
    """The floor of the runs with the most text, how sure it is, and what it may be compared with.

    runs: dict of N, D, train, val, (n,) float64 each: weights, letters read, losses; floors: (k,) float64;
    t: float; play: dict of nats, float, -ln of the probability of the val text; letters and tokens in it,
    int; counts, (V,) int64, of each token. Call fit (29b) with a single floor to get its error
    -> (low, best, high, exact), four Python floats in nats per token.
    """
    raise NotImplementedError("lesson 29d")


# %%
if __name__ == "__main__":
    corpus, floor = open_corpus("builtin:verse", 3, 65_536), yours_or_ours(floor_and_entropy, "29d")
    n = sum(len(text) for text, _ in corpus.chunks())
    play = dict(nats=-corpus.info["log_prob"], letters=n, tokens=n)
    found = {}
    for letters in (LITTLE, MUCH):
        runs = dict(N=N[D == letters], D=D[D == letters], val=L[D == letters])
        found[letters] = floor(runs, floors, t_quantile(0.95, len(runs["N"]) - 3), play)
        print("{:,} letters: E {:.3f}, from {:.3f} to {:.3f}; exact: {:.4f}".format(
            letters, *(found[letters][i] for i in (1, 0, 2, 3))))  # fmt: skip
        ends = [ahead(N[D == letters], L[D == letters], found[letters][i], size.item(), t) for i in (0, 2)]
        assert not seen[letters][0] < seen[letters][3] < seen[letters][2], "E as known: wrong"
        assert ends[0][0] < seen[letters][3] < ends[1][2], "E as unsure: right"
    assert found[LITTLE][2] - found[LITTLE][0] > 10 * (found[MUCH][2] - found[MUCH][0])
    assert found[LITTLE][0] < found[LITTLE][3] < found[MUCH][0], "E is above the entropy"
    claim(0.538, found[MUCH][0], tol=0.0006)
    claim(0.552, found[MUCH][2], tol=0.0006)
    claim(0.489, found[MUCH][3], tol=0.0006)

    def draw(axes):
        sizes = torch.logspace(3.7, 6, 60, dtype=torch.float64)
        for letters, colour in ((LITTLE, "C1"), (MUCH, "C0")):
            (E, A, a, _), (low, middle, high, loss) = curves[letters], seen[letters]
            axes.loglog(N[D == letters], L[D == letters], "o", color=colour, label=f"{letters:,} letters")
            axes.loglog(sizes, E + A * sizes**-a, color=colour)
            axes.errorbar(size, middle, [[middle - low], [high - middle]], color=colour, capsize=6)
            axes.loglog(size, loss, "*", color=colour, markersize=14)
        axes.axhline(found[MUCH][3], color="black", linestyle="--", label="entropy")
        axes.set(xlabel="weights", ylabel="loss (nats per letter)", title="Stars were foretold")
        axes.legend()

    save_plot("29_scaling_laws", draw)

# %% [markdown]
# With much text 0.538 to 0.552 would do for E. The entropy of this val text is 0.489: so E is not the
# entropy. It is what any size keeps if trained like these: on little text, in windows shorter than a scene.
# With little text E's interval is ten times as wide. The entropy is in it, and that proves nothing.
#
# With E anywhere in its interval, the forecasts of 29c are wide enough to hold both measured losses. Without
# the narrowest models one of them would have held as it was: which runs to fit is a choice, too.
#
# ## Where it stands in the project
#
# `weights_of` and `exponent` in lab/scaling.py count N and fit lines, and `growth_of_loss` there fits the
# loss above the exact entropy, `verse_entropy` in text/verse.py, so that no floor has to be guessed. The
# command `python bench.py --only=sizes` compares six sizes at one price; docs/compare.md has its table.
