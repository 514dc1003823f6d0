# Lesson 37 (unit G): ZeRO / FSDP: shard state, then gradients, then weights
# Before: all ranks held the same weights, the same gradients and the same running means, once for each rank.
# Seconds: 9
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 37     your copy, in work/
#     python lessons/run.py check 37     what is right, what is not yet
#     python lessons/run.py show 37      the whole lesson from top to bottom, with its plot

# %%
import torch
import torch.nn.functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lessons.course import claim, encoded, save_plot, yours_or_ours
from lessons.gloo import processes
from lessons.ranks import together

predict_1 = None  # bytes per parameter, 8 ranks, bfloat16 + float32 master weights and Adam, ZeRO stage 1
predict_2 = None  # bytes per parameter, 8 ranks, bfloat16 + float32 master weights and Adam, ZeRO stage 2
predict_3 = None  # bytes per parameter, 8 ranks, bfloat16 + float32 master weights and Adam, ZeRO stage 3

# %% [markdown]
# ## Who needs what, and when
#
# In data parallelism every rank makes the same update, with the same numbers. That is work done many times
# and, worse, memory: Adam's two running means are each as large as the weights, on every rank. But a weight
# is updated once in a while, and one rank could do that for all.
#
# To give each rank a part is called **sharding**, the part a **shard**. There are three stages, each with
# more to send (ZeRO: Rajbhandari et al., 2020):
#
#     w: weights, g: gradients, s: the optimizer's state; what rank 0 and rank 1 of four hold
#
#     stage 0   wwww gggg ssss    wwww gggg ssss
#     stage 1   wwww gggg s...    wwww gggg .s..     after the step each rank sends its new weights
#     stage 2   wwww g... s...    wwww .g.. .s..     each rank gets the sum of its gradients only
#     stage 3   w... g... s...    .w.. .g.. .s..     a block's weights are gathered when it computes
#
# Stage 3 is what torch calls **fully sharded data parallel**, FSDP.

# %% [markdown]
# ## 37a. Shard the optimizer
#
# Put all weights into one long vector and cut it. Rank r owns the stretch that begins at r n, where n is the
# number of weights divided by the number of ranks, rounded up. 7 weights on 2 ranks: the first owns 4, the
# last the 3 that are left. The last stretch may be shorter, or empty; nothing may be left over.
#
# An update is then:
#
# 1. average the gradient over ranks, as in lesson 36;
# 2. on your stretch alone, make Adam's step (lesson 16); the running means are as long as the stretch;
# 3. let each owner send its stretch to all: a `broadcast` for each rank, of `weights[begin:end]`.
#
# A slice of a vector is a view: what is received into it stands in the vector.


# %%
def sharded_step(weights, gradient, state, lr, dist):
    """One update by Adam, each rank for its own stretch; in place, all ranks end with the same weights.

    weights: (P,) float32, the same on all ranks; gradient: (P,) float32, of this rank's rows; state: dict,
    empty at first, and the same one at each call: keep in it what the next call needs, of your stretch only;
    lr: float; dist: the group. Adam: m = 0.9 m + 0.1 g and v = 0.95 v + 0.05 g^2, from 0; divided by
    1 - 0.9^t and 1 - 0.95^t in update t, from 1; the step is lr * m / (sqrt(v) + 1e-8) -> None.
    """
    raise NotImplementedError("lesson 37a")


# %%
if __name__ == "__main__":
    vocabulary, ids, _, _ = encoded()
    V = len(vocabulary)
    places = torch.randint(len(ids) - 32, (40, 32, 1), generator=torch.Generator().manual_seed(37))
    rows = ids[places + torch.arange(33)]  # 40 batches of 32 rows

    def train(dist):
        """The losses of this rank's rows in 40 updates, the weights at the end, the bytes of its state."""
        torch.manual_seed(37)
        model = torch.nn.Sequential(torch.nn.Embedding(V, 24), torch.nn.Linear(24, V))
        state, losses = {}, []
        for batch in rows:
            mine = batch.chunk(dist.get_world_size())[dist.get_rank()]
            loss = F.cross_entropy(model(mine[:, :-1]).flatten(0, 1), mine[:, 1:].flatten())
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])])
            weights = parameters_to_vector(model.parameters()).detach()
            yours_or_ours(sharded_step, "37a")(weights, gradient, state, 0.02, dist)
            vector_to_parameters(weights, model.parameters())
            losses.append(loss.item())
        held = sum(t.nbytes for t in state.values() if torch.is_tensor(t) and t.dim())
        return losses, weights, held / len(weights)

    alone = together(1, train)[0]
    for size in (2, 4):
        found = together(size, train)
        losses = torch.tensor([losses for losses, _, _ in found]).mean(0)
        print(f"{size} ranks: loss {losses[-1]:.4f}; alone {alone[0][-1]:.4f}; "
              f"state of rank 0: {found[0][2]:.2f} bytes per parameter, alone {alone[2]:.2f}")  # fmt: skip
        assert all(torch.equal(weights, found[0][1]) for _, weights, _ in found)
        assert (losses - torch.tensor(alone[0])).abs().max() < 0.02
        assert abs(found[0][2] - 8 / size) < 0.1
    for losses, weights, _ in processes(2, train):
        half = (weights - together(2, train)[0][1]).abs().max().item()
        print(f"a process with gloo: loss of its rows {losses[-1]:.4f}, weights {half:.0e} from the threads'")
        assert half < 1e-3
    claim(7, 4 + 3, tol=0)
    claim(4, -(-7 // 2), tol=0)
    claim(3, len(torch.arange(7)[4:8]), tol=0)
    claim(2, 7 // 3, tol=0)

# %% [markdown]
# ## 37b. Clip across shards
#
# Clipping (lesson 15) needs the length of the whole gradient, and no rank has it. Lengths of pieces do not
# add up, their squares do. If one shard is (3) and the other (4), the whole has the length 5: the root of
# 9 + 16.
#
# The usual mistake is to ask for the length of what is there: rank 0 would see 3, rank 1 would see 4. With
# shards of about equal length a rank of two finds 0.71 of the truth, clips too little, and each rank scales
# by a factor of its own (SpecForge#663). The other mistake is about what is not sharded: small tensors such
# as norms are often the same on all ranks. If they have the length 12 in our example, the whole has 13; but
# if the sum over ranks counts their square on both, it is longer.


# %%
def clip(shards, copies, limit, dist):
    """Scale the whole gradient to the length `limit`, in place, if it is longer; tell how long it was.

    shards: list of tensors, float32, this rank's pieces, not empty; copies: list of tensors, float32, the
    same on all ranks; both may be all zeros; limit: float above 0; dist: the group
    -> Python float, the length of the gradient before, the same on all ranks.
    """
    raise NotImplementedError("lesson 37b")


# %%
if __name__ == "__main__":

    def by_hand(dist, copies=()):
        piece = torch.tensor([3.0 + dist.get_rank()])
        return yours_or_ours(clip, "37b")([piece], [*copies], 1.0, dist), piece.item()

    (whole, first), (_, second) = together(2, by_hand)
    print(
        f"shards of 3 and 4: the whole is {whole:.1f} long; clipped to 1 they are {first:.1f}, {second:.1f}"
    )
    claim(5, whole, tol=1e-5)
    claim(9, whole**2 - 16, tol=1e-4)
    claim(16, whole**2 - 9, tol=1e-4)
    claim(13, together(2, lambda dist: by_hand(dist, [torch.tensor([12.0])]))[0][0], tol=1e-5)
    claim(12, (13**2 - whole**2) ** 0.5, tol=1e-4)
    pieces = torch.randn(2, 5000, generator=torch.Generator().manual_seed(37))
    claim(0.71, (pieces[0].norm() / pieces.norm()).item(), tol=0.02)

# %% [markdown]
# ## 37c. What each rank holds
#
# Large models compute in bfloat16 (lesson 23): weights of 2 bytes, gradients of 2. The optimizer needs more.
# Small updates would be lost in bfloat16, so it keeps the weights once more in float32, the **master
# weights**, 4 bytes, and two running means of 4 bytes each, 8 together. That makes 16 bytes per parameter: a
# model of 7 billion parameters takes 112 GB before it has read a word.
#
# - Stage 1 divides what belongs to the optimizer by the number of ranks.
# - Stage 2 divides gradients, too.
# - Stage 3 divides weights, too.


# %%
def bytes_per_parameter(stage, ranks, weight, gradient, master, moments):
    """What one rank holds, for each parameter of the model.

    stage: int, 0 (nothing is divided) to 3; ranks: int; the others: int, bytes of a weight, of a gradient,
    of a master weight, of all running means of a weight -> float.
    """
    raise NotImplementedError("lesson 37c")


# %%
def measured(dist, stage, P=8000):
    """Make the tensors of a rank, and count their bytes."""
    n = P // dist.get_world_size()
    sizes = [n if stage >= since else P for since in (3, 2, 1, 1, 1)]
    kinds = [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32, torch.float32]
    held = [torch.zeros(size, dtype=kind) for size, kind in zip(sizes, kinds, strict=True)]
    return sum(t.nbytes for t in held) / P


if __name__ == "__main__":
    count = yours_or_ours(bytes_per_parameter, "37c")
    for stage in range(4):
        found = together(8, lambda dist, stage=stage: measured(dist, stage))
        print(f"stage {stage}: {found[0]:5.2f} bytes per parameter on each of 8 ranks")
        assert abs(count(stage, 8, 2, 2, 4, 8) - found[0]) < 1e-9
    claim(16, count(0, 8, 2, 2, 4, 8), tol=0)
    claim(8, count(0, 8, 0, 0, 0, 8), tol=0)
    claim(112, 7 * count(0, 8, 2, 2, 4, 8), tol=0)

    def draw(axes):
        ranks = [2**i for i in range(8)]
        for stage, name in enumerate(("all on each rank", "optimizer", "and gradients", "and weights")):
            axes.plot(ranks, [count(stage, n, 2, 2, 4, 8) for n in ranks], marker=".", label=name)
        axes.set(xlabel="ranks", ylabel="bytes per parameter", xscale="log", ylim=(0, None))
        axes.set(title="What a rank holds, if it is divided by the ranks")
        axes.legend()

    save_plot("37_sharding", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `--strategy=zero1` is 37a: `build_optimizer` in optim.py takes torch's ZeroRedundancyOptimizer, which cuts
# between tensors, and each rank sends what it has updated. `--strategy=fsdp` is stage 3: `place` in
# machine/distributed.py wraps each block, whose weights are gathered right before it computes and let go
# after. Its tensors are DTensors: they know that they are shards, so torch's norm is that of the whole. The
# project keeps float32 weights, which are their own master. `python bench.py --only=sharding` counts the
# bytes of real runs, and lab/plan.py computes them for machines you do not have.
