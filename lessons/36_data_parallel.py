# Lesson 36 (unit G): Data parallelism: same weights, other data
# Before: one process did all of the work, however large the batch was.
# Seconds: 12
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 36     your copy, in work/
#     python lessons/run.py check 36     what is right, what is not yet
#     python lessons/run.py show 36      the whole lesson from top to bottom, with its plot

# %%
import torch
import torch.nn.functional as F  # noqa: F401 (for your answers)

from lessons.course import claim, encoded, save_plot, yours_or_ours
from lessons.gloo import processes
from lessons.ranks import Deadlock, together
from machine import distributed

predict_1 = None  # 4 workers average N float32 gradients in a ring: bytes that each sends, as a multiple of N

# %% [markdown]
# ## Several workers
#
# Accumulation reads a large batch in parts, one after the other. Several workers read the parts at the same
# time. That is **data parallelism**: each worker has all weights, and other rows of the batch.
#
# A worker is called a **rank**, and its number is its rank, too: 0, 1, and so on up to the **world size**
# less 1. On a cluster each rank is a process with a GPU of its own. All run the same program; only the rank
# tells them apart. They share no memory. What they want to know of each other they have to send, by
# **collectives**, calls that all ranks make together:
#
#     dist.get_rank()   dist.get_world_size()
#     dist.broadcast(t, src=0)     everyone's t becomes that of rank 0
#     dist.all_reduce(t)           everyone's t becomes the sum of all
#     dist.all_gather(list, t)     everyone's list gets the t of each rank
#     dist.send(t, dst)            to one rank, which calls dist.recv(t, src)
#
# All of them change a tensor in place and return None. Each waits until the others have made the same call.
# If one rank does not, the rest wait for ever: a **deadlock**, the usual disease of such programs.
#
# These are the names of `torch.distributed`. Here `dist` is an argument, and at first the ranks are threads
# of one process (lessons/ranks.py). They take turns, so nothing gets faster; but what is right and wrong is
# the same, and a deadlock is told in a line. At the end `dist` is `torch.distributed` itself.

# %%
if __name__ == "__main__":
    try:
        together(3, lambda dist: dist.get_rank() == 1 or dist.barrier())
        raise AssertionError("nobody waits")
    except Deadlock as error:
        print(f"a rank that does not call: {error}")

# %% [markdown]
# ## 36a. One batch, many ranks
#
# The gradient of a mean is the mean of the gradients. If rank 0 finds the gradient 2 on its half of the
# batch and rank 1 finds 4 on the other, the whole batch has the gradient 3. So:
#
#     rank 0   rows 0, 1 | forward, backward | --+                   | step
#     rank 1   rows 2, 3 | forward, backward | --+-- sum / ranks --> | step
#
#     gradient of the batch = sum over ranks of the gradient on its rows / number of ranks
#
# After that all ranks hold the same gradient. If they held the same weights before the step, they do
# afterwards, and no weight is ever sent again. Three things go wrong:
#
# - Ranks begin with weights of their own. So rank 0 sends its weights to all, once, before anything else.
#   Send `p.data`, the numbers alone: collectives know nothing of graphs, and torch warns if one is sent.
# - The sum is not divided. With SGD this is a learning rate that is too large by the number of ranks; Adam
#   divides the factor away, and nobody notices.
# - A parameter has no gradient on one rank: no row there has used it, and `.grad` is None. On the other ranks
#   it has one. All have to make the same calls, so None goes into the sum as zeros.


# %%
def train(model, optimizer, batches, dist):
    """Train one model on all ranks: each reads its rows of a batch, all make the same steps.

    model: (B, T) int64 -> (B, T, V) float32 logits; each rank has its own, rank 0's weights count; some
    parameters are used by some rows only; optimizer: of this rank's parameters; batches: list of (x, y), each
    (B, T) int64, the same list on all ranks, B divisible by the number of ranks; dist: the group
    -> list of len(batches) Python floats, the mean loss of each whole batch, the same on all ranks.
    """
    raise NotImplementedError("lesson 36a")


# %%
if __name__ == "__main__":
    vocabulary, ids, _, _ = encoded()
    V = len(vocabulary)
    draw_them = torch.Generator().manual_seed(36)
    rows = ids[torch.randint(len(ids) - 32, (50 * 32, 1), generator=draw_them) + torch.arange(33)]
    batches = [(part[:, :-1], part[:, 1:]) for part in rows.split(32)]

    def run(dist, lr=1.0, batches=batches):
        torch.manual_seed(36 + dist.get_rank())  # each rank begins with weights of its own
        model = torch.nn.Sequential(
            torch.nn.Embedding(V, 32), torch.nn.Linear(32, 96), torch.nn.Tanh(), torch.nn.Linear(96, V)
        )
        losses = yours_or_ours(train, "36a")(model, torch.optim.SGD(model.parameters(), lr=lr), batches, dist)
        return losses, sum(p.double().sum().item() for p in model.parameters())

    curves = {}
    for size in (1, 2, 4):
        found = together(size, run)
        assert len({weights for _, weights in found}) == 1, "all ranks end with the same weights"
        curves[size] = torch.tensor(found[0][0])
        print(f"{size} ranks: loss {curves[size][-1]:.4f} after 50 updates, weights {found[0][1]:.4f}")
        assert (curves[size] - curves[1]).abs().max() < 1e-3
    curves["summed"] = torch.tensor(together(1, lambda dist: run(dist, lr=4.0))[0][0])
    quarter = [(x[:8], y[:8]) for x, y in batches]
    curves["alone"] = torch.tensor(together(1, lambda dist: run(dist, batches=quarter))[0][0])
    assert curves["alone"].diff().abs().mean() > 1.3 * curves[4].diff().abs().mean(), "a quarter is noisier"

# %% [markdown]
# ## How a sum travels
#
# Who adds up? If all sent their gradients to rank 0, its network would be the bottle-neck. In a **ring** each
# rank sends to its right neighbour only. The gradient is cut into as many parts as there are ranks. First
# each part travels round the ring, and each rank adds its own numbers to it. When a part has been everywhere,
# its sum is complete, at one rank. Then the sums travel round once more, and are copied.
#
# `send` waits for the receiver: if all send at once, all wait. Count before you run: parts, hops, bytes.


# %%
def ring(t, dist):
    rank, size = dist.get_rank(), dist.get_world_size()
    parts = [part.clone() for part in t.chunk(size)]
    for hop in range(2 * (size - 1)):
        out, into = (rank - hop) % size, (rank - hop - 1) % size
        came = torch.empty_like(parts[into])
        if rank % 2:
            dist.recv(came, (rank - 1) % size)
        dist.send(parts[out], (rank + 1) % size)
        if rank % 2 == 0:
            dist.recv(came, (rank - 1) % size)
        parts[into] = parts[into] + came if hop < size - 1 else came
    return torch.cat(parts)


if __name__ == "__main__":

    def counted(dist):
        t = torch.arange(1000.0) * (1 + dist.get_rank())
        assert torch.equal(ring(t, dist), torch.arange(1000.0) * sum(range(1, 1 + dist.get_world_size())))
        return sum(size for call, size in dist.messages if call == "send") / 1000

    sent = {size: together(size, counted)[0] for size in (2, 4, 8)}
    print(f"in a ring of 2, 4, 8 each sends for each of N numbers {[*sent.values()]} bytes")

# %% [markdown]
# A part takes size - 1 hops to become a sum, and as many to be copied. With 4 ranks these are 6 hops of N / 4
# numbers of 4 bytes, so 6N bytes; with any number of ranks it stays below 8N.
#
# ## 36b. Who reads what
#
# Shuffled windows (lesson 1) come in epochs, and each epoch has an order of its own. Put all epochs one after
# the other: an endless series of windows, numbered from 0. A step reads a stretch of it, and that stretch is
# cut: first by micro-step, within a micro-step by rank. With 2 ranks, 2 micro-steps and windows by threes,
# step 0 reads 12 windows:
#
#     window       a b c | d e f | g h i | j k l
#     micro-step   0     | 0     | 1     | 1
#     rank         0     | 1     | 0     | 1
#
# Now a step sees the same windows however the work is divided: a run on 1 rank, on 2, or on 2 with
# 4 micro-steps is one and the same. Nobody has to talk about it, because a rank computes what it reads.
#
# Number i belongs to epoch i // n, place i % n, if an epoch has n windows. A batch may reach into the next
# epoch. And each epoch has to have its own order: who forgets that (DALLE-pytorch#230) is told by no error.


# %%
def windows_of(order, n_windows, step, batch_size, micro_step, n_micro_steps, rank, world_size):
    """The windows that a rank reads in a micro-step.

    order: order(epoch) -> list of n_windows int, the windows of that epoch, shuffled; all others: int;
    step, micro_step, rank: counted from 0; batch_size: windows of one rank in one micro-step
    -> list of batch_size int.
    """
    raise NotImplementedError("lesson 36b")


# %%
if __name__ == "__main__":
    read = yours_or_ours(windows_of, "36b")

    def order(epoch):
        return torch.randperm(20, generator=torch.Generator().manual_seed(epoch)).tolist()

    seen = {}
    for world_size, micro_steps in ((1, 1), (2, 1), (2, 4)):
        each, parts = 8 // (world_size * micro_steps), []
        for i in range(micro_steps):
            parts += [read(order, 20, 2, each, i, micro_steps, r, world_size) for r in range(world_size)]
        seen[world_size, micro_steps] = sum(parts, [])
        print(f"{world_size} ranks, {micro_steps} micro-steps: step 2 reads {' '.join(map(str, parts))}")
    assert len({tuple(sorted(windows)) for windows in seen.values()}) == 1
    claim(2, max(seen)[0], tol=0), claim(4, max(seen)[1], tol=0), claim(6, sent[4], tol=0)
    claim(12, len(read(order, 20, 0, 12, 0, 1, 0, 1)), tol=0)
    letters = [read(lambda epoch: "abcdefghijkl", 12, 0, 3, i, 2, r, 2) for i in range(2) for r in range(2)]
    assert ["".join(part) for part in letters] == ["abc", "def", "ghi", "jkl"], "the table above"

# %% [markdown]
# ## In processes
#
# The same function, unchanged, in two processes that **gloo** connects, the part of torch that talks between
# CPUs. (Between NVIDIA's GPUs it is NCCL.) The losses are those of the threads.
#
# torch has this ready: DistributedDataParallel (Li et al., 2020). It does not wait for the end of backward:
# as soon as some gradients are there they are sent, so most of the exchange costs no time.

# %%
if __name__ == "__main__":

    def with_ddp(dist):
        mine = run(dist)[0]
        torch.manual_seed(36 + dist.get_rank())
        model = distributed.wrap(torch.nn.Linear(5, 3), dist.get_world_size(), "ddp")
        model(torch.full((2, 5), 1.0 + dist.get_rank())).sum().backward()
        return mine, model.module.weight.grad

    for losses, gradient in processes(2, with_ddp):
        apart = (torch.tensor(losses) - curves[2]).abs().max().item()
        print(f"a process with gloo: losses as in threads, to {apart:.0e}; DDP's gradient {gradient[0, 0]}")
        assert apart < 1e-4
        claim(3, gradient[0, 0].item(), tol=1e-5)  # 2 rows of 1 and 2 rows of 2: (2 + 4) / 2

    def draw(axes):
        axes.plot(curves[1], label="1 rank", lw=4, alpha=0.3)
        axes.plot(curves[4], label="4 ranks")
        axes.plot(curves["alone"], ":", label="a quarter of the rows, alone")
        axes.plot(curves["summed"], "--", label="4 ranks, summed: 4 times the learning rate")
        axes.set(xlabel="update", ylabel="loss (nats)", title="32 rows, on one rank or on four")
        axes.legend()

    save_plot("36_data_parallel", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `Windows` in data.py numbers the windows as you did, and `wrap` in machine/distributed.py hands the model to
# DistributedDataParallel. train.py divides by the targets of all ranks, not by ranks, since rows may have
# unequal numbers of targets (lesson 24). Start it on as many processes as you like:
# `torchrun --standalone --nproc_per_node=2 train.py --dataset=verse --device=cpu --max_iters=20`
#
# torchrun starts the processes and tells each its rank. techniques/allreduce.py measures how fast your
# machines sum, and docs/many_gpus.md goes on from there.
