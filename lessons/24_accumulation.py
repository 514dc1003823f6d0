# Lesson 24 (unit E): Gradient accumulation: k small = 1 large
# Before: half the bits for products. What a batch leaves in memory for the backward pass still grows with it.
# Seconds: 10
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 24     your copy, in work/
#     python lessons/run.py check 24     what is right, what is not yet
#     python lessons/run.py show 24      the whole lesson from top to bottom, with its plot

# %%
import time

import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from lessons.course import claim, encoded, save_plot, yours_or_ours

predict_1 = None  # activation memory at k = 4, same rows per update, as a share of that at k = 1
predict_2 = None  # computing time of an update at k = 4, same rows, as a multiple of that at k = 1

# %% [markdown]
# ## A batch that does not fit
#
# A forward pass keeps what the backward pass will need: the **activations**. They grow with the rows of the
# batch, and soon there are more of them than weights. But a large batch makes a better gradient: its noise is
# smaller.
#
# A way out: cut the batch into k **micro-batches** and read one after the other. `backward` does not replace
# what lies in `.grad`, it adds to it. In lesson 4 that was a trap; here it is the tool. After each backward
# the activations of that micro-batch are let go, and only then comes the next.
#
#     k = 1   clear | forward ........ backward ........ | step
#     k = 4   clear | f.. b.. | f.. b.. | f.. b.. | f.. b.. | step

# %% [markdown]
# ## 24a. Equal parts
#
# The loss is a mean. Four micro-batches with the mean losses 2, 4, 3 and 3 make a batch with the mean 3: the
# sum of a quarter of each. The same holds for gradients, because the gradient of a sum is the sum of
# gradients. So each loss is divided by the number of micro-batches before `backward`:
#
#     gradient of the batch = sum over micro-batches of gradient(loss / k)
#
# Without that the gradient is k times too long. Adam does not notice, since it divides constant factors away;
# clipping does, and SGD does.
#
# At the end of the data fewer than k micro-batches may be left. They are an update, too, and then the number
# to divide by is how many there are.


# %%
def accumulate(model, optimizer, batches, k):
    """One update for each k micro-batches, one more for what is left; returns the loss of each micro-batch.

    model: (B, T) int64 -> (B, T, V) float32 logits; optimizer: of its parameters, whose .grad may hold
    something old; batches: list of (x, y), each (B, T) int64, all of one shape, all y scored; k: int
    -> list of len(batches) Python floats, mean nats; one micro-batch is in memory at a time.
    """
    raise NotImplementedError("lesson 24a")


# %%
if __name__ == "__main__":
    vocabulary, ids, _, is_shakespeare = encoded()
    V = len(vocabulary)

    def network():
        torch.manual_seed(24)
        return torch.nn.Sequential(
            torch.nn.Embedding(V, 32), torch.nn.Linear(32, 128), torch.nn.Tanh(), torch.nn.Linear(128, V)
        )

    def batches_of(rows, n):
        g = torch.Generator().manual_seed(24)
        places = torch.randint(len(ids) - 32, (n * 32, 1), generator=g) + torch.arange(33)
        return [(ids[p][:, :-1], ids[p][:, 1:]) for p in places.split(rows)]

    curves = {}
    for k in (1, 4):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        losses = yours_or_ours(accumulate, "24a")(model, optimizer, batches_of(32 // k, 60), k)
        curves[f"k = {k}"] = torch.tensor(losses).view(60, k).mean(1)
    apart = (curves["k = 1"] - curves["k = 4"]).abs().max().item()
    print(f"60 updates of 32 rows, whole or in four parts: losses differ by {apart:.1e} at most")
    assert apart < 1e-3
    claim(3, (2 + 4 + 3 + 3) / 4, tol=0)
    claim(2, 3 * 4 - (4 + 3 + 3), tol=0)
    claim(4, k, tol=0)

    def wrong(model, optimizer, batches, k):  # not divided
        losses = []
        for i, (x, y) in enumerate(batches):
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
            loss.backward()
            losses.append(loss.item())
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        return losses

    for name, kind, lr in (("SGD", torch.optim.SGD, 1.0), ("Adam", torch.optim.Adam, 0.01)):
        ends = []
        for update in (yours_or_ours(accumulate, "24a"), wrong):
            model = network()
            ends.append(update(model, kind(model.parameters(), lr=lr), batches_of(8, 60), 4))
        curves[f"{name}, not divided"] = torch.tensor(ends[1]).view(60, 4).mean(1)
        curves[f"{name}, divided"] = torch.tensor(ends[0]).view(60, 4).mean(1)
        apart = (curves[f"{name}, not divided"] - curves[f"{name}, divided"]).abs().max().item()
        print(f"{name}: divided or not, losses differ by {apart:.4f} at most")
        assert (apart < 0.02) == (name == "Adam"), "Adam hides it"

# %% [markdown]
# ## 24b. Unequal parts
#
# Often some y are not scored: padding, or the prompt of an answer. Then micro-batches have unequal counts of
# targets, and the mean of their means is not the mean. One batch with 1 target of 6 nats, one with 3 targets
# of 2 nats each: the means are 6 and 2, their mean 4. But the four targets cost 12 nats, 3 each. In the mean
# of means the lonely target weighs as much as the three others together. For years popular training code had
# this mistake (transformers#34191), and short answers weighed too much.
#
# The remedy is in the order: sum the nats of each micro-batch, count all targets first, divide each sum by
# that count. If nothing at all is scored, the gradient is 0, not nan.


# %%
def add_gradients(model, batches):
    """Add to .grad the gradient of the mean over all scored targets of the micro-batches; returns that mean.

    There may be gradients already, and they stay in the sum.

    model: (B, T) int64 -> (B, T, V) float32 logits; batches: list of (x, y), each (B, T) int64, of any
    shapes; y is -1 where nothing is scored, perhaps in all of a batch
    -> a Python float: nats per scored target, 0.0 if there is none; one micro-batch is in memory at a time,
    and there is no step.
    """
    raise NotImplementedError("lesson 24b")


# %%
if __name__ == "__main__":
    add = yours_or_ours(add_gradients, "24b")
    ((x, y),) = batches_of(32, 1)
    y = torch.where(torch.arange(32)[:, None] > torch.arange(32), -1, y)  # row i: 32 - i targets
    parts = {
        1: [(x, y)],
        2: [(x[:24], y[:24]), (x[24:], y[24:])],
        32: list(zip(x.split(1), y.split(1), strict=True)),
    }
    for k, batches in parts.items():
        model = network()
        mean = add(model, batches)
        length = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
        print(f"{k:2} parts: mean {mean:.5f}, gradient {length:.5f} long")
        if k == 1:
            right = mean, length
        assert abs(mean - right[0]) < 1e-4 and abs(length - right[1]) < 1e-4
    claim(6, 12 / 2, tol=0)
    claim(12, 1 * 6 + 3 * 2, tol=0)

# %% [markdown]
# ## 24c. What it costs
#
# With R rows in an update and k micro-batches, a micro-batch has R / k rows, rounded up: one has to be that
# large. Its activations are all that is held at a time. What does not shrink: the weights, their gradients,
# and what the optimizer remembers. With AdamW these are 4 copies: weight, gradient, and two running means. So
# memory at k = 4 is not a quarter: only the activations are.
#
# Time stays about the same. Each row is read once, whatever k is. But each micro-batch has a start:
# operations are launched, weights are read from memory. With very small parts that is most of the time.


# %%
def cost(rows, k, row_bytes, weight_bytes, copies, row_seconds, start_seconds):
    """Peak memory and time of an update of so many rows in k micro-batches, as equal as can be.

    rows, k: int, k at most rows; row_bytes: int, activations of a row; weight_bytes: int, of all weights
    once; copies: int, of these, with gradients and the optimizer's state; row_seconds, start_seconds: float,
    of each row and of each micro-batch -> {"bytes": int, "seconds": float}.
    """
    raise NotImplementedError("lesson 24c")


# %%
def measured(k):
    """Bytes that a micro-batch keeps for its backward pass, and seconds of an update of 64 rows."""
    model, saved = network(), {}
    own = {p.data_ptr() for p in model.parameters()}

    def keep(t):
        if t.data_ptr() not in own:
            saved[t.data_ptr()] = t.numel() * t.element_size()
        return t

    parts, begun = batches_of(64 // k, 2), time.perf_counter()
    for i, (x, y) in enumerate(parts):
        with saved_tensors_hooks(keep if i == 0 else lambda t: t, lambda t: t):
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()) / k
        loss.backward()
    return sum(saved.values()), time.perf_counter() - begun


if __name__ == "__main__":
    measured(1)  # the first is slower
    found = {k: measured(k) for k in (1, 4, 16)}
    weights = sum(4 * p.numel() for p in network().parameters())
    row = found[1][0] // 64
    for k, (size, seconds) in found.items():
        expected = yours_or_ours(cost, "24c")(64, k, row, weights, 4, found[1][1] / 64, 0.0)
        print(f"k = {k:2}: {size / 1e6:5.2f} MB of activations, {1000 * seconds:5.1f} ms; "
              f"with weights and AdamW {expected['bytes'] / 1e6:.2f} MB")  # fmt: skip
        assert abs(size * k / found[1][0] - 1) < 0.05
    claim(4, found[1][0] / found[4][0], tol=0.2)

    def draw(axes):
        for name in ("SGD, divided", "SGD, not divided", "Adam, divided", "Adam, not divided"):
            axes.plot(curves[name], "--" if "not" in name else "-", label=name)
        axes.set(xlabel="update", ylabel="loss (nats)", title="Four micro-batches: their sum, or their mean")
        axes.legend()

    save_plot("24_accumulation", draw)

# %% [markdown]
# ## Where it stands in the project
#
# The loop of train.py reads all micro-batches of an update first, and counts their targets: `count_targets`
# in data.py, over all processes, too. `summed_nats` in model.py gives a sum; divided by the count, it is 24b.
# `--batch_size` is rows per micro-batch, `--gradient_accumulation_steps` is k, and `--global_batch_size`
# chooses k from the two. If memory runs out, runtime/memory.py halves the micro-batch, doubles k and repeats
# the update: the gradient is the same, so the run does not notice. Several processes share the micro-batches
# in lesson 36, by the same sum.
