# Lesson 16 (unit C): SGD, momentum, Adam, AdamW: four update rules
# Before: a loop that can be trusted. Each step in it is made by an optimizer of torch, a closed box so far.
# Seconds: 19
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 16     your copy, in work/
#     python lessons/run.py check 16     what is right, what is not yet
#     python lessons/run.py show 16      the whole lesson from top to bottom, with its plot

# %%
import math  # noqa: F401 (for your answers)

import torch
import torch.nn.functional as F

from config import training_settings
from lessons.course import claim, encoded, save_plot, yours_or_ours
from model import GPT, GPTConfig

predict_1 = None  # length of Adam's first step for a gradient of 1000, with a learning rate of 0.001
predict_2 = None  # place of SGD, each at its best rate, among SGD, momentum, Adam and AdamW: 1 to 4

# %% [markdown]
# ## From gradients to new weights
#
# `loss.backward()` says for each weight in which direction the loss grows. The **optimizer** decides how far
# the weight moves. The simplest rule is SGD: w becomes w - lr * g, with the gradient g and the learning rate
# lr. It has two weak spots.
#
# - **Noise.** g comes from one batch. The next batch says something else, and the weight staggers.
# - **Size.** One rate serves all weights. In a transformer some gradients are a thousand times larger than
#   others: what is right for the one hardly moves the other.
#
# Momentum is a remedy for the first, Adam for both. All rules here have one form: a function called once a
# step with `params` and `grads`, two lists of tensors of equal shapes, that changes params **in place**
# (`p -= ...`, not `p = p - ...`). What it has to remember lies in `state`, a dict that is empty before the
# first step and handed in again each time. The grads are only read: the next `backward` writes into them.

# %% [markdown]
# ## 16a. Momentum
#
# Keep a running sum v of gradients that slowly forgets (Polyak, 1964), and move by v instead of g:
#
#     v = momentum * v + g          w = w - lr * v
#
# By hand, with momentum 0.9: gradients of 1, 1 and then -1 give v = 1, then 1.9, then 0.71. Directions that
# all batches agree on add up, up to 10 times g; those that change their sign cancel. v is 0 before the
# first step, and each tensor has its own. lr multiplies v, not g: when lr falls, all of v is slower at once.


# %%
def momentum_step(params, grads, state, lr, momentum):
    """One step of SGD with momentum; changes params in place, and keeps in state what the next step needs.

    params, grads: lists of float32 tensors, equal shapes in pairs; state: dict, {} at first; lr, momentum:
    float -> None.
    """
    raise NotImplementedError("lesson 16a")


# %%
if __name__ == "__main__":
    w, state, found = torch.zeros(1), {}, []
    for g in (1.0, 1.0, -1.0):
        found.append(w.item())
        yours_or_ours(momentum_step, "16a")([w], [torch.tensor([g])], state, 0.01, 0.9)
    found = [100 * (a - b) for a, b in zip(found, [*found[1:], w.item()], strict=True)]
    print("v:", [round(v, 3) for v in found])
    claim(0.9, found[1] - found[0], tol=1e-4), claim(1.9, found[1], tol=1e-4), claim(0.71, found[2], tol=1e-4)
    claim(10, 1 / (1 - 0.9), tol=1e-6)

# %% [markdown]
# ## 16b. Adam
#
# Adam (Kingma and Ba, 2015) keeps two running averages for each weight: m of the gradient, v of its square.
# The root of v says how large gradients of this weight usually are. To divide by it gives each weight a pace
# of its own: a weight with gradients of 1000 and one with gradients of 0.001 make steps of the same length.
#
#     m = beta1 * m + (1 - beta1) * g                with betas = (beta1, beta2), here 0.9 and 0.999
#     v = beta2 * v + (1 - beta2) * g²
#     m_hat = m / (1 - beta1^t)                      t = 1 in the first step, 2 in the second, ...
#     v_hat = v / (1 - beta2^t)
#     w = w - lr * m_hat / (sqrt(v_hat) + eps)
#
# Why the hats? m and v begin at 0, and so they are too small at first. By hand, with g = 2 in the first
# step: m = 0.2 and v = 0.004, where 2 and 4 would be right. The factor 1 - beta^t is what is missing: it is
# 0.1 for m and 0.001 for v. Then m_hat / sqrt(v_hat) is 2 / 2 = 1, and the step is lr long, exactly.
# Without the correction it is 0.2 / sqrt(0.004) = 3.162 times lr. With a gradient that stays the same it
# grows to 6.53 times lr at step 10, as m gets there sooner than v: see the bars that are printed below.
#
# eps, 1e-8 as a rule, is added to the root. It keeps 0 / 0 away where a weight has never had a gradient.


# %%
def adam_step(params, grads, state, lr, betas, eps):
    """One step of Adam with bias correction; changes params in place, keeps in state what the next needs.

    params, grads: lists of float32 tensors, equal shapes in pairs; state: dict, {} at first; lr, eps: float;
    betas: (float, float), of m and of v -> None.
    """
    raise NotImplementedError("lesson 16b")


# %%
if __name__ == "__main__":
    adam = yours_or_ours(adam_step, "16b")
    for g in (1000.0, 2.0, 0.001):
        adam([w := torch.zeros(1)], [torch.tensor([g])], {}, 0.001, (0.9, 0.999), 1e-8)
        print(f"gradient {g:8}: the first step is {-w.item():.6f} long")
        claim(0.001, -w.item(), tol=1e-6)
    beta1, beta2, g = 0.9, 0.999, 2
    m, v = (1 - beta1) * g, (1 - beta2) * g**2
    claim(1000, 1 / (1 - beta2), tol=1e-6), claim(0.999, beta2, tol=0), claim(0.1, 1 - beta1, tol=1e-9)
    claim(2, g, tol=0), claim(4, g**2, tol=0), claim(0.2, m, tol=1e-9), claim(0.004, v, tol=1e-9)
    print("step lengths in lr for one gradient again and again, without the correction; with it, all are 1")
    lengths = {t: (1 - beta1**t) / (1 - beta2**t) ** 0.5 for t in (1, 3, 10, 30, 100, 1000, 10_000)}
    for t, length in lengths.items():
        print(f"  step {t:6}  {'#' * round(8 * length)} {length:.2f}")
    claim(3.162, m / v**0.5, tol=0.001), claim(6.53, lengths[10], tol=0.005)

# %% [markdown]
# ## 16c. AdamW
#
# **Weight decay** pulls weights towards 0, so that only those stay large which the text asks for. The old way
# is to add decay * w to the gradient, as if the loss had a term for the size of weights (L2). In SGD that
# does what it should. In Adam the term goes through m and v, and is divided by its own size: a large weight
# and a small one are pulled equally hard, and where gradients are large nothing is left of the pull.
#
# AdamW (Loshchilov and Hutter, 2019) keeps the two apart: each weight shrinks by the factor 1 - lr * decay,
# then Adam makes its step as if there were no decay. By hand, with lr 0.01, decay 0.1 and no gradient at
# all: 2 becomes 1.998. L2 in the gradient makes it 1.990: one full step of Adam, whatever decay is.
#
# Only tensors with two axes or more are decayed: matrices and embeddings. The gain of a norm is to be near
# 1, not near 0, and a bias has nothing to be kept small for.


# %%
def adamw_step(params, grads, state, lr, betas, eps, decay):
    """One step of AdamW; it may call `adam_step`. Only tensors of two axes or more have weight decay.

    params, grads: lists of float32 tensors, equal shapes in pairs; state: dict, {} at first; lr, eps, decay:
    float; betas: (float, float), of m and of v -> None.
    """
    raise NotImplementedError("lesson 16c")


# %%
if __name__ == "__main__":
    w, l2 = torch.full((2, 1, 1), 2.0)
    yours_or_ours(adamw_step, "16c")([w], [torch.zeros(1, 1)], {}, 0.01, (0.9, 0.999), 1e-8, 0.1)
    adam([l2], [0.1 * l2], {}, 0.01, (0.9, 0.999), 1e-8)
    print(f"no gradient: 2 becomes {w.item():.4f}, with L2 {l2.item():.4f}")
    claim(1.998, w.item(), tol=1e-5), claim(1.990, l2.item(), tol=1e-5), claim(0.01, 2 - l2.item(), tol=1e-5)

# %% [markdown]
# ## 16d. A race, and a fair one
#
# Which rule is best? The easiest way to get the answer you like is to give your favourite a good learning
# rate and the others the same one. Here SGD needs a rate a hundred times as large as Adam's: at Adam's rate
# it looks broken. So each rule gets a few rates of its own, and is judged by its best one.
#
# The end of a run is judged by the mean of its last losses. One loss is the luck of one batch, and the
# lowest loss of a curve is the luck of the best batch. A run that blew up ends at nan or inf: it has no
# result. Beware: nan is neither less nor greater than any number, so a sort or a min with a nan in it
# returns nonsense without a word.


# %%
def race(runs, rates, last):
    """Make each run at each of its rates, once; find for each the rate with the lowest loss at the end.

    runs: {name: run}, run(lr) -> list of float losses, one for each step; rates: {name: list of float};
    last: int; a run's result is the mean of its last losses, so many; if that is nan or inf, there is none
    -> list of (name, rate, result), lowest result first; a name without any result is not in it.
    """
    raise NotImplementedError("lesson 16d")


# %% [markdown]
# The four run below for 200 steps on a small GPT, at two rates each to save time. Predict the order before
# you look. The run says: SGD ends last, at 2.43 nats with its best rate; momentum gets to 2.40, Adam to 2.35.
# AdamW is within 0.03 of Adam: in so short a run, decay has nothing to tell yet (lesson 21). A real race has
# longer lists, and where the best rate is the first or last of its list, the list was too short.

# %%
RATES = dict(SGD=[0.3, 1.0], momentum=[0.2, 0.6], Adam=[0.003, 0.01], AdamW=[0.003, 0.01])


def gpt_run(rule, curves):
    """A function of the learning rate that trains a small GPT for 200 steps by a rule, and returns losses."""

    def run(lr):
        torch.manual_seed(16)
        model = GPT(GPTConfig(len(vocabulary), block_size=16, n_layer=1, n_head=2, n_embd=24))
        g, params, state, losses = torch.Generator().manual_seed(16), list(model.parameters()), {}, []
        for _ in range(200):
            places = torch.randint(len(ids) - 16, (16, 1), generator=g) + torch.arange(16)
            loss = F.cross_entropy(model(ids[places]).flatten(0, 1), ids[places + 1].flatten())
            grads = torch.autograd.grad(loss, params)
            with torch.no_grad():
                rule(params, grads, state, lr)
            losses.append(loss.item())
        curves[lr] = losses
        return losses

    return run


if __name__ == "__main__":
    vocabulary, ids, _, is_shakespeare = encoded()
    momentum, adamw = yours_or_ours(momentum_step, "16a"), yours_or_ours(adamw_step, "16c")
    rules = {
        "SGD": lambda *step: momentum(*step, 0.0),
        "momentum": lambda *step: momentum(*step, 0.9),
        "Adam": lambda *step: adam(*step, (0.9, 0.999), 1e-8),
        "AdamW": lambda *step: adamw(*step, (0.9, 0.999), 1e-8, 0.1),
    }
    curves = {name: {} for name in rules}
    runs = {name: gpt_run(rule, curves[name]) for name, rule in rules.items()}
    order = yours_or_ours(race, "16d")(runs, RATES, 20)
    for name, lr, loss in order:
        print(f"{name:9} {loss:.3f} nats at its best rate, {lr}")
    ends, best = {name: loss for name, _, loss in order}, {name: lr for name, lr, _ in order}
    claim(200, len(curves["SGD"][1.0]), tol=0)
    claim(2.43, ends["SGD"], tol=0.02, when=is_shakespeare)
    claim(2.40, ends["momentum"], tol=0.02, when=is_shakespeare)
    claim(2.35, ends["Adam"], tol=0.02, when=is_shakespeare)
    claim(0.03, max(0.03, abs(ends["AdamW"] - ends["Adam"])), tol=1e-6, when=is_shakespeare)
    assert not is_shakespeare or (order[-1][0] == "SGD" and best["SGD"] > 50 * best["Adam"])
    claim(0.95, training_settings()["beta2"], tol=0), claim(20, 1 / (1 - 0.95), tol=1e-6)

    def draw(axes):
        for name, lr in best.items():
            losses = torch.tensor(curves[name][lr]).unfold(0, 20, 1).mean(1)  # of 20 steps each
            axes.plot(range(20, 201), losses, label=f"{name}, rate {lr}")
        axes.set(xlabel="step", ylabel="nats (mean of 20 steps)", title="Each at its best rate")
        axes.legend()

    save_plot("16_optimizers", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `build_optimizer` in optim.py makes the optimizer of `--optimizer=adamw`, `adam` or `sgd`: torch's own, with
# one kernel for all tensors. `parameter_groups` in optim.py decides as in 16c what is decayed. In `adam`
# and `sgd` weight decay is L2, as in the first paper. The project takes 0.95 for beta2: v forgets after
# some 20 steps instead of 1,000, and a sudden large gradient is soon forgotten. SGD's momentum and Muon's
# are one setting, `--muon_momentum`. A race over several seeds, stopped as soon as it is decided, is
# `python -m techniques.sweep`. Its default is none of these four but Muon: next lesson.
