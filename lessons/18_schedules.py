# Lesson 18 (unit C): Schedules: constant, linear, cosine, step, polynomial, warm-up
# Before: four update rules and a fifth; all take a learning rate, and it was the same from start to end.
# Seconds: 7
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 18     your copy, in work/
#     python lessons/run.py check 18     what is right, what is not yet
#     python lessons/run.py show 18      the whole lesson from top to bottom, with its plot

# %%
import math  # noqa: F401 (for your answers)

import torch

from lessons.course import claim, save_plot, yours_or_ours
from optim import lr_at

predict_1 = None  # cosine from 1e-3 to 1e-4: the learning rate half way

# %% [markdown]
# ## One rate is never right for long
#
# - **At first** it is too large. Weights are random, gradients are large and change direction, and what the
#   optimizer remembers of past gradients is a mean of few. A **warm-up** raises the rate from nearly 0 to its
#   peak over some updates.
# - **At the end** it is too large again. Each batch moves the weights by about lr, to here and there, so they
#   circle around the bottom of the valley at a distance that depends on lr. To come closer, the rate falls.
#
# A **schedule** is a function of the number of the update, counted from 0, and of nothing else. So a run
# that was stopped and resumed has the same rates as one that was not (lesson 15).

# %% [markdown]
# ## 18a. Warm-up and cosine
#
# The warm-up has `warmup` updates. Update number `step` of it has the rate
#
#     peak * (step + 1) / (warmup + 1)
#
# By hand, with a warm-up of 4 and a peak of 0.5: 0.1, 0.2, 0.3, 0.4, and update 4, the first after the
# warm-up, has 0.5. Why + 1? With step / warmup the first rate is 0: an update that costs as much as any
# other and changes nothing.
#
# Then the rate falls from the peak to the floor, which is reached at update `end`, and stays there. The
# usual shape of the fall is half a wave of a cosine (Loshchilov and Hutter, 2017): flat at the start, steep
# in the middle, flat at the end.
#
#     share = (step - warmup) / (end - warmup)                        from 0 to 1
#     floor + (peak - floor) * (1 + cos(pi * share)) / 2              from peak to floor
#
# By hand, half way: cos(pi / 2) is 0, so the rate is (peak + floor) / 2. A warm-up may be 0 updates long. Or
# it is as long as the whole run: then nothing falls, and from `end` on the rate is the floor.


# %%
def cosine_lr(step, peak, floor, warmup, end):
    """The learning rate of update number `step`: warm-up, half a wave of a cosine, then the floor.

    step, warmup, end: int, steps are counted from 0; peak, floor: float -> float.
    """
    raise NotImplementedError("lesson 18a")


# %%
if __name__ == "__main__":
    cosine = yours_or_ours(cosine_lr, "18a")
    for step in range(0, 22, 2):
        rate = cosine(step, 0.5, 0.05, 4, 20)
        print(f"update {step:2}  {'#' * round(100 * rate):50} {rate:.3f}")
    claim(4, [cosine(step, 0.5, 0.05, 4, 20) for step in range(20)].index(0.5), tol=0)
    claim(0.1, cosine(0, 0.5, 0.05, 4, 20), tol=1e-6), claim(0.2, cosine(1, 0.5, 0.05, 4, 20), tol=1e-6)
    claim(0.3, cosine(2, 0.5, 0.05, 4, 20), tol=1e-6), claim(0.4, cosine(3, 0.5, 0.05, 4, 20), tol=1e-6)
    claim(0.5, cosine(4, 0.5, 0.05, 4, 20), tol=1e-6), claim(2, (0.5 + 0.05) / cosine(12, 0.5, 0.05, 4, 20))

# %% [markdown]
# ## 18b. The other four
#
# Here `step` and `end` are both counted from the end of the warm-up, so there is none to think of.
#
# - **constant**: stays at the peak. Good while you do not know how long the run will be.
# - **linear**: falls along a straight line, and is at the floor at update `end` and after it.
# - **polynomial**: what is left of the fall, from 1 to 0 as in linear, is raised to a power: floor +
#   left^power * (peak - floor). With power 2 most of the fall is over early.
# - **step**: is multiplied by gamma at once, after each `every` updates, but never goes below the floor. By
#   hand, with a peak of 0.8, gamma 0.5 and every 3 updates: 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2. It does not
#   know the end.


# %%
def other_lr(kind, step, peak, floor, end, power, every, gamma):
    """The learning rate of update number `step` after the warm-up, for four kinds of schedule.

    kind: "constant", "linear", "polynomial" or "step"; step, end, every: int, steps are counted from 0;
    peak, floor, power, gamma: float -> float.
    """
    raise NotImplementedError("lesson 18b")


# %%
if __name__ == "__main__":
    other, found = yours_or_ours(other_lr, "18b"), {}
    for kind in ("constant", "linear", "polynomial", "step"):
        found[kind] = [other(kind, step, 0.8, 0.05, 10, 2.0, 3, 0.5) for step in range(12)]
        print(f"{kind:10}", " ".join(f"{rate:.2f}" for rate in found[kind]))
    claim(0.8, found["step"][2], tol=1e-6), claim(0.4, found["step"][3], tol=1e-6)
    claim(0.2, found["step"][6], tol=1e-6), claim(0.5, found["step"][3] / found["step"][2], tol=1e-6)
    claim(3, found["step"].index(found["step"][3]), tol=0)
    assert found["linear"][10:] == [0.05, 0.05]

# %% [markdown]
# ## 18c. Into the loop
#
# An optimizer keeps its parameters in groups, `optimizer.param_groups`: a list of dicts, each with a rate of
# its own in `group["lr"]`. That is the number which `optimizer.step()` reads. To change the rate is to
# write it into each group, before the step. Groups may want different rates, Muon's matrices and the rest,
# say. They follow one schedule, each with a factor of its own: `group["lr_scale"]`.
#
# A schedule counts **updates**. Often an update reads several small batches, called micro-batches, one after
# another, because they do not fit into memory together: `backward` adds to the gradients, and only then comes
# the step. A schedule that counts micro-batches is through too early. One that counts epochs (passes over
# the whole text) hardly moves, for there may be only one.
#
# By hand: with 3 updates of 2 micro-batches, the micro-batches 0 and 1 make update 0 with the rate
# schedule(0); 2 and 3 make update 1, with schedule(1); 4 and 5 make update 2, with schedule(2).


# %%
def run(optimizer, backward, schedule, updates, micro):
    """Make so many updates, each of `micro` micro-batches, and each with the rates of its number.

    optimizer: its groups have "lr_scale"; backward(i) -> None, adds the gradients of micro-batch i, counted
    from 0 through the run; schedule(step) -> float; updates, micro: int -> None.
    """
    raise NotImplementedError("lesson 18c")


# %%
if __name__ == "__main__":
    w = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([dict(params=[w], lr_scale=1.0)], lr=99.0)
    batches, rates = [], []
    optimizer.register_step_pre_hook(lambda *_: rates.append((len(batches), optimizer.param_groups[0]["lr"])))

    def backward(i):
        batches.append(i)
        w.sum().backward()

    yours_or_ours(run, "18c")(optimizer, backward, lambda step: 0.1 * (step + 1), 3, 2)
    print("(micro-batches so far, rate) at each update:", rates)
    claim(3, len(rates), tol=0), claim(2, batches[2], tol=0), claim(5, batches[-1], tol=0)
    assert [n for n, _ in rates] == [2, 4, 6]

# %% [markdown]
# ## Does it matter?
#
# The plot has the schedules, and one more: **trapezoid**, the default of train.py. It stays at the peak, and
# falls along a straight line over the last half. Its advantage is that the end need not be known before
# the fall begins (Hägele et al., 2024).
#
# A toy shows why the rate has to fall. A weight w has the loss w^2 / 2, whose gradient is w, and each
# batch adds noise of size 1 to it. A thousand such weights begin at 10 and make 300 steps of SGD.
# With a constant rate of 0.1 they are soon at the bottom, and circle around it with a deviation of 0.23. With
# 0.01 they have not arrived: 0.49. With a rate that falls from 0.1 to 0 they get there and settle: 0.09.

# %%
KINDS = ("constant", "linear", "cosine", "step", "polynomial", "trapezoid")


def project_rates(kind, warmup=10, end=100):
    """The rates of 110 updates, by the project's lr_at."""
    shape = dict(lr_cooldown=0.5, lr_power=2.0, lr_step_iters=25, lr_gamma=0.5)
    given = dict(learning_rate=1.0, min_lr=0.1, warmup_iters=warmup, lr_decay_iters=end, **shape)
    return [lr_at(step, lr_schedule=kind, **given) for step in range(110)]


BEGIN, STEPS, SLOW = 10.0, 300, 0.01


def spread(schedule):
    """Deviation from the bottom after STEPS steps with noise, of 1,000 weights that start at BEGIN."""
    g, w = torch.Generator().manual_seed(18), torch.full((1000,), BEGIN)
    for step in range(STEPS):
        w -= schedule(step) * (w + torch.randn(1000, generator=g))
    return w.square().mean().sqrt().item()


if __name__ == "__main__":
    rates = {kind: project_rates(kind) for kind in KINDS}
    ours = [cosine(step, 1.0, 0.1, 10, 100) for step in range(110)]
    assert all(abs(a - b) < 1e-6 for a, b in zip(ours, rates["cosine"], strict=True)), (
        "yours is the project's"
    )
    spreads = [spread(lambda step, lr=lr: lr) for lr in (0.1, SLOW)]
    spreads.append(spread(lambda step: other("linear", step, 0.1, 0.0, STEPS, 1.0, 1, 1.0)))
    print(
        "deviation at the end: constant 0.1: {:.3f}, constant 0.01: {:.3f}, falling: {:.3f}".format(*spreads)
    )
    claim(0.23, spreads[0])
    claim(0.49, spreads[1], tol=0.02)
    claim(0.09, spreads[2])
    claim(0.01, SLOW, tol=0)
    claim(10, BEGIN, tol=0), claim(300, STEPS, tol=0)

    def draw(axes):
        for kind, values in rates.items():
            axes.plot(values, label=kind)
        axes.set(xlabel="update", ylabel="learning rate", title="Warm-up of 10, then six ways to the end")
        axes.legend()

    save_plot("18_schedules", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `lr_at` in optim.py is 18a and 18b in one function, with trapezoid. `resolve_schedule` in optim.py reads
# `--lr_schedule`, `--warmup_iters`, `--lr_decay_iters` and `--min_lr`, fills in what is left open (the floor
# is a tenth of the peak), and warns of a warm-up that is longer than the run. "The loop" in train.py begins
# as 18c does. Which peak to choose is the next lesson.
