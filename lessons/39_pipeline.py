# Lesson 39 (unit G): Pipeline parallelism: micro-batches and bubbles
# Before: a split matrix needs an all-reduce in each half of each block. Between machines that is too slow.
# Seconds: 7
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 39     your copy, in work/
#     python lessons/run.py check 39     what is right, what is not yet
#     python lessons/run.py show 39      the whole lesson from top to bottom, with its plot

# %%
import torch
import torch.nn.functional as F

from lessons.course import claim, encoded, save_plot, windows, yours_or_ours
from lessons.gloo import processes
from lessons.ranks import together

predict_1 = None  # share of time that a stage idles, with 4 stages and 8 micro-batches

# %% [markdown]
# ## A model in a row
#
# The simplest cut of all: rank 0 has the embedding and the first blocks, rank 1 the next ones, the last rank
# the head and the loss. Each is a **stage**. What one stage puts out is sent to the next, and on the way back
# the gradient is sent the other way: one message each, not one for every layer. This is **pipeline
# parallelism** (GPipe: Huang et al., 2019).
#
# But a stage that waits does nothing. With one batch handed on whole, one rank works at a time. So the batch
# is cut into micro-batches (lesson 24): while rank 1 has the first, rank 0 has the second.

# %% [markdown]
# ## 39a. The bubble
#
# Three stages and five micro-batches, numbered from 0; a column is a step, a dot is idle:
#
#     rank 0   0 1 2 3 4 . .
#     rank 1   . 0 1 2 3 4 .
#     rank 2   . . 0 1 2 3 4
#
# Each rank works 5 steps of 7, and idles in 2. That idle time is the **bubble**. The way back has the same
# picture, mirrored; its steps take about twice as long, but the share is the same.
#
# The rule for p stages and m micro-batches. How late does the last rank begin? How many steps are there?


# %%
def bubble(stages, micro_batches):
    """The share of time in which a stage is idle, if all steps take equally long.

    stages, micro_batches: int, 1 or more -> float, from 0 to 1.
    """
    raise NotImplementedError("lesson 39a")


# %% [markdown]
# ## 39b. The gradients of one device
#
# Each rank runs the same program. Forward, for each micro-batch: receive what the stage before puts out
# (rank 0 reads x itself), run the stage, send it on. The last rank computes the loss instead. Then backward,
# for each micro-batch: receive the gradient of what you sent (the last rank has its loss), call
# `out.backward(gradient)`, send on the gradient of what came.
#
# - What came over the network has no graph. It is a **leaf**, as a weight is: ask for its gradient with
#   `requires_grad_()` before the stage reads it. Afterwards that is in its `.grad`.
# - Keep what came and what went out of each micro-batch, and go back in the same order on all ranks. `recv`
#   takes what comes next, whichever micro-batch it belongs to.
# - The loss is a mean: the last rank divides each micro-batch's by m, and nobody else divides.
# - Some weights are **tied**: embedding and head are one matrix (lesson 13). Now the first rank has one copy,
#   the last another. If one finds the gradient 2 and the other 5, both need 7, or the copies drift apart.
#   `all_reduce` would need all ranks, and those between have no copy: `send` and `recv` it between the two.
#
# `send` waits for its `recv`. If two ranks both send first, they wait for ever.


# %%
def run_stage(stage, batches, width, dist):
    """One rank's part of a gradient: all micro-batches forward, then all backward. No step.

    stage: module of this rank; rank 0's reads ids (B, T) int64, the others (B, T, width) float32; the last
    returns logits (B, T, V), the others (B, T, width); stage.tied: on the first and the last rank, the
    weight that both have a copy of; batches: list of m (x, y), each (B, T) int64, all of one shape, the same
    list on all ranks; dist: the group, of 2 ranks or more
    -> the mean loss, a Python float, on the last rank, 0.0 on the others; gradients in .grad, None at first.
    """
    raise NotImplementedError("lesson 39b")


# %%
class Stage(torch.nn.Module):
    """Layers first to last of a small model. The tied matrix is the embedding and the head."""

    def __init__(self, V, rank, size, layers=4, C=24):
        super().__init__()
        every = [torch.nn.Linear(C, C) for _ in range(layers)]  # all are drawn, so all ranks agree on them
        self.layers = torch.nn.ModuleList(every[rank * layers // size : (rank + 1) * layers // size])
        tied = torch.nn.Parameter(torch.randn(V, C) * 0.2)
        self.first, self.last = rank == 0, rank == size - 1
        self.tied = tied if self.first or self.last else None

    def forward(self, x):
        x = self.tied[x] if self.first else x
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x @ self.tied.T if self.last else x


if __name__ == "__main__":
    vocabulary, ids, _, _ = encoded()
    V, g = len(vocabulary), torch.Generator().manual_seed(39)
    batches = [windows(ids, 4, g) for _ in range(8)]

    def train(dist, updates=12):
        """The losses of some updates, and this rank's last gradients."""
        rank, size = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(39)
        stage, told = Stage(V, rank, size), []
        for _ in range(updates):
            stage.zero_grad()
            if size > 1:
                told.append(yours_or_ours(run_stage, "39b")(stage, batches, 24, dist))
            else:
                x, y = (torch.cat(part) for part in zip(*batches, strict=True))
                loss = F.cross_entropy(stage(x).flatten(0, 1), y.flatten())
                loss.backward()
                told.append(loss.item())
            with torch.no_grad():
                for p in stage.parameters():
                    p -= 1.0 * p.grad
        return told, [p.grad for p in stage.parameters()]

    losses, gradients = together(1, train)[0]
    for size in (2, 4):
        found = together(size, train)
        apart = max(abs(a - b) for a, b in zip(found[-1][0], losses, strict=True))
        print(f"{size} stages: loss {found[-1][0][-1]:.4f} after 12 updates, {apart:.0e} from one device")
        assert apart < 1e-3
        for rank in (0, -1):  # the tied gradient is whole on both
            assert (found[rank][1][0] - gradients[0]).norm() < 1e-3 * gradients[0].norm()
    for rank, (told, _) in enumerate(processes(2, train)):
        if rank == 1:
            print(f"two processes with gloo: loss {told[-1]:.4f}")
            assert abs(told[-1] - losses[-1]) < 1e-3
    claim(7, 2 + 5, tol=0)

# %% [markdown]
# ## 39c. One forward, one backward
#
# All forwards before all backwards has a price: the activations of all m micro-batches are held at once, and
# m was to be large. But the last rank could go back with micro-batch 0 as soon as it has its loss, and then
# each rank could let go of something before it takes on more. This order is called **1F1B**, one forward, one
# backward (PipeDream: Narayanan et al., 2019).
#
# Rank r runs a few forwards ahead: as many as it takes until the first gradient can be back, and the last
# rank runs 1. Then it goes back with one, forth with one, until all are through. With 3 stages and 5
# micro-batches, forward as digits, backward as letters (a is the way back of 0):
#
#     rank 0   0 1 2 . . a 3 b 4 c . d . e
#     rank 1   . 0 1 . a 2 b 3 c 4 d . e .
#     rank 2   . . 0 a 1 b 2 c 3 d 4 e . .
#
# The bubble is no smaller. But no rank holds more than p micro-batches: rank 0 has 0, 1 and 2 before a comes
# back. So m can grow, and then the bubble gets small.


# %%
def order_of(rank, stages, micro_batches):
    """What a rank does, in order, so that it holds as few micro-batches as possible and nobody waits for it.

    rank: int from 0; stages, micro_batches: int, and there may be fewer micro-batches than stages
    -> list of 2 * micro_batches str: "F0" for the forward pass of micro-batch 0, "B0" for its backward pass.
    """
    raise NotImplementedError("lesson 39c")


# %%
def timetable(orders):
    """A text for each rank: what it does in each step, if it waits for what it needs."""
    left, done, rows = [[*order] for order in orders], set(), [""] * len(orders)
    while any(left):
        now = []
        for rank, order in enumerate(left):
            kind, i = (order[0][0], int(order[0][1:])) if order else ("", 0)
            before = (kind, i, rank - 1 if kind == "F" else rank + 1)
            ready = kind and (before in done or not 0 <= before[2] < len(orders))
            rows[rank] += (chr(ord("0" if kind == "F" else "a") + i) if ready else ".") + " "
            now += [(kind, i, rank)] if ready else []
        assert now, "all wait"
        for _, _, rank in now:
            left[rank].pop(0)
        done.update(now)
    return [row.rstrip() for row in rows]


def held(order):
    """The most micro-batches that a rank holds at once."""
    counts = torch.tensor([1 if what[0] == "F" else -1 for what in order]).cumsum(0)
    return counts.max().item()


if __name__ == "__main__":
    ours, share = yours_or_ours(order_of, "39c"), yours_or_ours(bubble, "39a")
    orders = [ours(rank, 3, 5) for rank in range(3)]
    rows = timetable(orders)
    print("\n".join(rows))
    assert rows == [
        "0 1 2 . . a 3 b 4 c . d . e",
        ". 0 1 . a 2 b 3 c 4 d . e .",
        ". . 0 a 1 b 2 c 3 d 4 e . .",
    ]
    claim(3, held(orders[0]), tol=0)
    assert [held(order) for order in orders] == [3, 2, 1]
    all_first = [f"F{i}" for i in range(5)], [f"B{i}" for i in range(5)]
    rows = timetable([[*all_first[0], *all_first[1]]] * 3)
    steps = len(rows[0].split())
    assert abs(rows[0].split().count(".") / steps - share(3, 5)) < 1e-6
    claim(5, held(all_first[0]), tol=0)
    claim(7, 5 / (1 - share(3, 5)), tol=1e-9)
    claim(2, 7 * share(3, 5), tol=1e-9)
    claim(4, int(all_first[0][-1][1]), tol=0)
    for m in (1, 8, 32):
        kept = held(ours(0, 4, m))
        print(
            f"4 stages, {m:2} micro-batches: idle {share(4, m):.3f}; held {m} all forwards first, {kept} 1F1B"
        )
        assert kept == min(4, m)

    def draw(axes):
        ms = range(1, 65)
        for p in (2, 4, 8):
            axes.plot(ms, [share(p, m) for m in ms], label=f"{p} stages")
        axes.set(xlabel="micro-batches", ylabel="share of time idle", xscale="log", title="The bubble")
        axes.legend()

    save_plot("39_pipeline", draw)

# %% [markdown]
# ## Where it stands in the project
#
# Nowhere: ddp, zero1 and fsdp (lesson 37) leave every model whole, and machine/distributed.py says what each
# holds. A pipeline needs a model that is cut into stages of equal time, and the loop of train.py would no
# longer be one loop. It pays between machines with slow links, for models of hundreds of layers, and then
# all three are combined: tensors are split inside a machine, stages between machines, and copies of all that
# read other data. torch has pipelines in torch.distributed.pipelining; its Schedule1F1B is your order.
