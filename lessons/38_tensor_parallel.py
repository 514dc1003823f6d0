# Lesson 38 (unit G): Tensor parallelism: split a matrix
# Before: each worker had all of a layer while it computed. A large enough layer fits into no worker.
# Seconds: 7
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 38     your copy, in work/
#     python lessons/run.py check 38     what is right, what is not yet
#     python lessons/run.py show 38      the whole lesson from top to bottom, with its plot

# %%
import torch
import torch.nn.functional as F

from lessons.course import claim, save_plot, yours_or_ours
from lessons.gloo import processes
from lessons.ranks import together

predict_1 = None  # all-reduces in the forward pass of one block (attention and MLP, each column then row)
predict_2 = None  # 4 ranks each add the bias before the sum: the output is off by how many times the bias

# %% [markdown]
# ## A layer in pieces
#
# In data parallelism every rank has all weights and computes with other rows. In **tensor parallelism** all
# ranks read the same rows, and each has a piece of every matrix (Shoeybi et al., 2019). No rank ever holds a
# whole layer.
#
# A linear layer is y = x W^T + b. There are two ways to cut W:
#
# - **By outputs.** Each rank has some rows of W, so it makes some of the numbers of y. In the formula these
#   rows are columns of W^T: hence the name **column** parallel. Each rank needs all of x.
# - **By inputs.** Each rank has some columns of W and the numbers of x that belong to them. So it makes some
#   terms of every sum: **row** parallel. The sums are complete when all ranks have added theirs.
#
# One fits the other. What a column layer puts out is, rank by rank, what a row layer takes in. Between them
# stands the MLP's activation, or attention head by head: both look at one rank's numbers alone.
#
#     x on all ranks -> | columns | GELU | rows | -> terms of y --+
#     x on all ranks -> | columns | GELU | rows | -> terms of y --+-- sum --> y on all ranks

# %% [markdown]
# ## 38a. By outputs
#
# Take x = (1, 2) and a layer with the rows (3, 0) and (0, 5). Rank 0 has the first row, its output is 3; rank
# 1 has the second, and 10. No rank has to send anything.
#
# Going backward it has to. The gradient of x comes from all outputs, and a rank has only some of them. With
# a gradient of 1 at each output, rank 0 finds (3, 0) for x, rank 1 finds (0, 5); right is their sum (3, 5).
# So:
#
#     forward    y of a rank = x @ (its rows)^T + (its part of the bias)
#     backward   gradient of x = sum over ranks
#
# How does a sum get into the backward pass? By a **hook**: after `x.register_hook(f)` the gradient g that
# arrives at x is replaced by f(g); f leaves g as it is, and sums a clone. Hang it on a view of x
# (`x.view_as(x)`), not on x: what else uses x, such as the residual stream, has its gradient complete
# already.
#
# A matrix often holds several, one below the other: those of queries, keys and values. If rank 0 took the
# first rows of such a stack, it would have queries and no keys. So each of the `parts` is cut by itself, and
# a rank takes one stretch of each. Then it has whole heads.


# %%
def column(x, weight, bias, parts, dist):
    """One rank's outputs of the layer x @ weight.T + bias.

    x: (B, T, D) float32, the same on all ranks, with a gradient: that of the whole layer on each rank;
    weight: (parts * N, D), bias: (parts * N,) float32, whole, so many matrices one below the other;
    dist: the group, of R ranks; N is divisible by R
    -> (B, T, parts * N / R) float32: of each part, in order, the rank's stretch of its outputs.
    """
    raise NotImplementedError("lesson 38a")


# %% [markdown]
# ## 38b. By inputs
#
# Now the layer has the single row (3, 5), with the bias 4, and x = (1, 2). Rank 0 has 3 and 1: its term is 3.
# Rank 1 has 5 and 2: 10. The sum is 13, and with the bias 17. Each rank gets all of it.
#
# - The bias belongs to the sum, once. Added to each term it would be there once for each rank; vLLM's
#   younger relatives have had this (nano-vllm#99). Divided by the number of ranks before the sum, the output
#   is right, but each rank's bias gets only a part of its gradient (torchtitan#4332).
# - An activation of the sum has to wait for the sum.
# - `dist.all_reduce` works in place and returns None. And it knows nothing of gradients: a tensor that it
#   writes into keeps its old graph, and torch warns. Hand it a copy without one, `terms.detach().clone()`.
#
# What is the gradient of a rank's terms? The output is their sum with others', so theirs is that of the
# output, unchanged, and each rank has it. A number with the value of one thing and the gradient of another
# is made so:
#
#     terms + (total - terms).detach()       value: total; gradient: that of terms


# %%
def row(x, weight, bias, activation, dist):
    """activation(x @ weight.T + bias), of an x that is spread over the ranks.

    x: (B, T, N / R) float32, this rank's stretch of the N inputs; weight: (D, N), bias: (D,) float32, whole;
    activation: a function of tensors; dist: the group, of R ranks
    -> (B, T, D) float32, the same on all ranks, with a graph to x, weight and bias.
    """
    raise NotImplementedError("lesson 38b")


# %%
def attention(qkv, n_head):
    """Causal attention of heads beside each other: (B, T, 3 C) -> (B, T, C)."""
    q, k, v = (t.unflatten(-1, (n_head, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def block(x, w, dist):
    """Attention and MLP, split over the ranks. w: the weights, whole."""
    rows, columns, size = yours_or_ours(row, "38b"), yours_or_ours(column, "38a"), dist.get_world_size()
    h = columns(F.layer_norm(x, x.shape[-1:]), w["qkv"], w["qkv bias"], 3, dist)
    x = x + rows(attention(h, 4 // size), w["out"], w["out bias"], lambda y: y, dist)
    h = F.gelu(columns(F.layer_norm(x, x.shape[-1:]), w["up"], w["up bias"], 1, dist))
    return x + rows(h, w["down"], w["down bias"], lambda y: y, dist)


def weights_of_block(C, g):
    shapes = {"qkv": (3 * C, C), "out": (C, C), "up": (4 * C, C), "down": (C, 4 * C)}
    w = {name: torch.randn(shape, generator=g) * shape[1] ** -0.5 for name, shape in shapes.items()}
    return w | {f"{name} bias": torch.randn(shape[0], generator=g) for name, shape in shapes.items()}


def run(dist, depth=6, one_block=block):
    """Through some blocks and back: the output, and the gradient's size before each block."""
    g = torch.Generator().manual_seed(38)
    x = torch.randn(2, 5, 16, generator=g).requires_grad_()
    stream, blocks = [x], [weights_of_block(16, g) for _ in range(depth)]
    for w in blocks:
        stream.append(one_block(stream[-1], w, dist))
        stream[-1].retain_grad()
    forward = len(getattr(dist, "messages", []))
    (stream[-1] * torch.randn(stream[-1].shape, generator=g)).sum().backward()
    return stream[-1].detach(), torch.stack([s.grad.norm() for s in stream]), forward / depth


if __name__ == "__main__":
    columns, rows = yours_or_ours(column, "38a"), yours_or_ours(row, "38b")

    def by_hand(dist):
        x = torch.tensor([[[1.0, 2.0]]], requires_grad=True)
        y = columns(x, torch.tensor([[3.0, 0.0], [0.0, 5.0]]), torch.zeros(2), 1, dist)
        y.sum().backward()
        part = x.detach()[..., dist.get_rank() : dist.get_rank() + 1].contiguous()
        z = rows(part, torch.tensor([[3.0, 5.0]]), torch.tensor([4.0]), lambda t: t, dist)
        return y.item(), x.grad.flatten().tolist(), z.item()

    (first, gradient, z), (second, _, _) = together(2, by_hand)
    claim(3, first, tol=0)
    claim(10, second, tol=0)
    claim(3, gradient[0], tol=0)
    claim(5, gradient[1], tol=0)
    claim(17, z, tol=0)
    claim(13, z - 4, tol=0)
    claim(4, z - 13, tol=0)
    claim(2, 10 / gradient[1], tol=0)

    whole, sizes, _ = together(1, run)[0]
    for size in (2, 4):
        for found, norms, calls in together(size, run):
            assert (found - whole).abs().max() < 1e-3 * whole.abs().max()
            assert torch.allclose(norms, sizes, rtol=1e-3)
            assert calls == 2, "the prediction"
        print(f"6 blocks on {size} ranks: as on one, with {calls:.0f} all-reduces in a block's forward pass")

# %% [markdown]
# ## If the backward sum is missing
#
# The output is right, so is the loss, and something is learned. But each block hands back only a part of its
# gradient, so the further back a block stands, the less of what it gets is right. The plot shows the
# gradient's size before each of 6 blocks on 4 ranks, beside the right one.


# %%
def without_the_sum(x, w, dist):
    """The block above, if columns forget the others on the way back."""
    y = block(x.detach().requires_grad_(), w, dist)  # the right numbers
    rank, size, rows = dist.get_rank(), dist.get_world_size(), yours_or_ours(row, "38b")

    def mine(name, parts):
        return [
            t.unflatten(0, (parts, size, -1))[:, rank].flatten(0, 1) for t in (w[name], w[f"{name} bias"])
        ]

    h = F.linear(F.layer_norm(x, x.shape[-1:]), *mine("qkv", 3))
    x = x + rows(attention(h, 4 // size), w["out"], w["out bias"], lambda y: y, dist)
    h = F.gelu(F.linear(F.layer_norm(x, x.shape[-1:]), *mine("up", 1)))
    x = x + rows(h, w["down"], w["down bias"], lambda y: y, dist)
    assert (x - y).abs().max() < 1e-4
    return x


if __name__ == "__main__":
    found = together(4, lambda dist: run(dist, one_block=without_the_sum))
    shares = {f"rank {rank}, not summed": norms / sizes for rank, (_, norms, _) in enumerate(found)}
    claim(4, len(found), tol=0)
    claim(6, len(sizes) - 1, tol=0)
    for name, share in shares.items():
        print(f"{name}: before block 0 its gradient has {share[0]:.0%} of the right length")
        assert share[0] < 0.9
        assert abs(share[-1] - 1) < 1e-4

    outputs = processes(2, lambda dist: run(dist)[0])
    for found in outputs:
        print(f"a process with gloo: the same to {(found - whole).abs().max():.0e}")
        assert (found - whole).abs().max() < 1e-3 * whole.abs().max()

    def draw(axes):
        axes.plot(sizes / sizes, lw=4, alpha=0.3, label="summed: as on one rank")
        for name, share in shares.items():
            axes.plot(share, marker=".", label=name)
        axes.set(xlabel="before block (6: the output)", ylabel="length of the gradient, as a share")
        axes.set(title="Columns whose gradient is not summed", ylim=(0, None))
        axes.legend()

    save_plot("38_tensor_parallel", draw)

# %% [markdown]
# ## Where it stands in the project
#
# Nowhere: the project splits states and weights over ranks (lesson 37), but each rank computes with whole
# matrices. Tensor parallelism talks in each half of each block and waits for the answer, so it needs the fast
# links inside one machine. It pays where a single layer is too large, or where one reply has to come sooner:
# then all ranks work on the same token. `Attention` in model.py has the matrix of queries, keys and values
# that you cut. torch has both layers ready, as ColwiseParallel and RowwiseParallel; they are the same two
# sums.
