# Lesson 25 (unit E): Gradient checkpointing: recompute instead of keep
# Before: a batch in parts needs less memory. But one row alone may leave more activations than there is room.
# Seconds: 9
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 25     your copy, in work/
#     python lessons/run.py check 25     what is right, what is not yet
#     python lessons/run.py show 25      the whole lesson from top to bottom, with its plot

# %%
import time
import weakref

import torch
from torch.autograd.graph import saved_tensors_hooks

from lessons.course import claim, save_plot, yours_or_ours
from model import GPT, GPTConfig

predict_1 = None  # time of an update with every block recomputed, as a multiple of that without
predict_2 = None  # most that is held, in inputs: 64 blocks, each recomputed alone, 16 inputs' worth inside

# %% [markdown]
# ## Forget, and compute again
#
# Each block leaves **activations** for the backward pass: what its matrices have read, what its bends have
# bent, and so on, many times the size of its input. They are held from the forward pass of the block to its
# backward pass. The first block waits longest.
#
# All of it follows from the input of the block. So keep the input alone, and when backward comes to this
# block, run it again. That is **gradient checkpointing** (Chen et al., 2016). It has nothing to do with the
# checkpoints of lesson 15, which are files.
#
#     kept, four blocks         |####|####|####|####|
#     forgotten                 |#   |#   |#   |#   |      inputs alone
#     backward at block 3       |#   |#   |####|           block 3 is computed again, block 4 is done
#
# The price is time. A backward takes about as long as two forwards: each matrix has a gradient for its input
# and one for its weights. Before, an update was 1 + 2 = 3 forwards; now it is 1 + 1 + 2 = 4. So it takes 4/3
# of the time.

# %% [markdown]
# ## 25a. One function
#
# torch lets you say what a function does in its backward pass. Here is x³ with a backward of its own:
#
#     class Cube(torch.autograd.Function):
#         @staticmethod
#         def forward(ctx, x):
#             ctx.save_for_backward(x)
#             return x**3
#
#         @staticmethod
#         def backward(ctx, gradient):
#             (x,) = ctx.saved_tensors
#             return 3 * x**2 * gradient
#
#     y = Cube.apply(x)
#
# `@staticmethod` says that there is no `self`. What `forward` does leaves no graph: only what it saves is
# held. `ctx` carries things to `backward`, and can have attributes of any name. `backward` gets the gradient
# of the loss by what forward returned, and returns one for each argument of forward, None for those without.
#
# Yours is such a class inside a function, so that it can see `fn`. Its backward runs `fn` again and goes back
# through that small graph with `y.backward(gradient)`, which fills the `.grad` of all weights on its way.
# Four things to mind:
#
# - In a backward no graph is made, unless `with torch.enable_grad():` stands around it.
# - The saved x hangs on the graph of all that came before. The small graph has to begin with a fresh x:
#   `detach()`, then `requires_grad_()`. Its `.grad` is what your backward returns.
# - Dropout has to drop the same numbers again. `torch.get_rng_state()` is the state of the random numbers,
#   `torch.set_rng_state(state)` goes back to it. Afterwards, put back what you found, or the numbers of the
#   forward come a second time.
# - If no argument of `apply` needs a gradient, there is no backward, though `fn` has weights. So hand in a
#   second argument that does, `torch.ones(1, requires_grad=True)`, and use it for nothing.


# %%
def recomputed(fn, x):
    """fn(x), of which nothing but x is held; its backward runs fn once more.

    fn: (B, T, C) float32 -> (B, T, C) float32, perhaps with weights and dropout; x: (B, T, C) float32, which
    needs a gradient or does not -> (B, T, C) float32; gradients, of weights and x, and random numbers, now
    and later, are those of fn(x).
    """
    raise NotImplementedError("lesson 25a")


# %%
class Held:
    """Counts the bytes that graphs hold for their backward, now and at most. Weights do not count."""

    def __init__(self, model):
        self.own = {p.data_ptr() for p in model.parameters()}
        self.boxes, self.most = weakref.WeakSet(), 0

    def pack(self, x):
        box = Box()
        box.x = x
        self.boxes.add(box)  # it is gone when the graph lets go of it
        stores = {b.x.untyped_storage().data_ptr(): b.x.untyped_storage().nbytes() for b in self.boxes}
        self.most = max(self.most, sum(size for place, size in stores.items() if place not in self.own))
        return box


class Box:
    pass


def update(blocks, x, run):
    """A forward and backward of run(blocks, x): bytes held at most, and the gradients of all weights."""
    held = Held(blocks)
    blocks.zero_grad()
    torch.manual_seed(25)
    with saved_tensors_hooks(held.pack, lambda box: box.x):
        run(blocks, x).square().mean().backward()
    return held.most, [p.grad.clone() for p in blocks.parameters()]


def seconds(blocks, x, *runs):
    """Of the processor, for each run: the shortest of six, in turns."""
    taken = [[] for _ in runs]
    for _ in range(6):
        for run, times in zip(runs, taken, strict=True):
            begun = time.process_time()
            run(blocks, x).square().mean().backward()
            times.append(time.process_time() - begun)
    return [min(times) for times in taken]


def plain(blocks, x):
    for block in blocks:
        x = block(x)
    return x


if __name__ == "__main__":
    once = yours_or_ours(recomputed, "25a")
    torch.manual_seed(25)
    config = GPTConfig(n_layer=16, n_head=2, n_embd=48, block_size=64, dropout=0.2, arch="gpt2")
    blocks, x = GPT(config).blocks, torch.randn(4, 64, 48)

    def each(blocks, x):
        for block in blocks:
            x = once(block, x)
        return x

    (all_kept, right), (few_kept, found) = update(blocks, x, plain), update(blocks, x, each)
    print(f"held at most: {all_kept:,} bytes, and with inputs alone {few_kept:,}")
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, right, strict=True)), "same gradients"
    before, after = seconds(blocks[:6].eval(), x.repeat(3, 1, 1), plain, each)
    blocks.train()
    print(f"an update takes {after / before:.2f} times as long; 4/3 was expected")
    assert 1 < after / before < 4, "other programs on this machine disturb the clock"
    forward, backward = 1, 2
    claim(2, backward / forward, tol=0)
    claim(3, forward + backward, tol=0)
    claim(4, forward + forward + backward, tol=0)

# %% [markdown]
# ## 25b. Segments
#
# The inputs of all blocks are still held. With many blocks that is much: so cut them into **segments** of
# several blocks each, and keep the input of each segment. When backward comes to a segment, all its blocks
# run again, and for that while all their activations are there.
#
# Count in inputs. Of n blocks, each with the activations of a inputs, cut into segments of s, at most
#
#     n / s + s · a
#
# are held. Nothing recomputed: n · a. With 64 blocks and a = 16 these are 1,024 inputs. Segments of one block
# hold 64 + 16 = 80, segments of two 32 + 32 = 64, segments of four 16 + 64 = 80 again. And one segment
# of all blocks saves nothing: in backward all is there at once. The best s is near the root of n / a. In the
# blocks below a is about 26, more than there are blocks, and single blocks are best; the plot shows it.
#
# Time does not depend on s: each block runs twice. But beware of recomputing in a function that is itself
# recomputed: then it is three times.
#
# A trap of Python, not of torch: a function reads the variables around it when it runs, not when it is
# written. In a loop, what runs again in backward finds the loop's last values. A default value,
# `def run(x, part=part)`, is read at once.


# %%
def in_segments(blocks, x, size, recomputed):
    """Run all blocks on x, one after the other, in segments that are recomputed as a whole in backward.

    blocks: list of n functions, (B, T, C) -> (B, T, C); x: (B, T, C) float32; size: int, blocks in a
    segment, the last one may have fewer; recomputed: as in 25a -> (B, T, C) float32; recomputed is called
    once for each segment, and each block runs twice in all, once of it in backward.
    """
    raise NotImplementedError("lesson 25b")


# %%
def formula(n, s, a):
    return n / s + s * a


if __name__ == "__main__":
    run, bytes_of_x = yours_or_ours(in_segments, "25b"), x.numel() * 4
    sizes, most = (1, 2, 4, 8, 16), []
    a = update(blocks[:8], x, plain)[0] / bytes_of_x / 8
    print(f"inside a block: {a:.1f} inputs")
    claim(26, a, tol=1)
    for size in sizes:
        held, found = update(blocks, x, lambda blocks, x, s=size: run(list(blocks), x, s, once))
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, right, strict=True))
        most.append(held / bytes_of_x)
        print(
            f"segments of {size:2}: {most[-1]:5.1f} inputs held; n / s + s · a = {formula(16, size, a):.1f}"
        )
    assert min(most) == most[0] and most[-1] > 0.9 * all_kept / bytes_of_x
    claim(80, formula(64, 1, 16), tol=0)
    claim(64, formula(64, 2, 16), tol=0)
    claim(80, formula(64, 4, 16), tol=0)
    claim(1024, 64 * 16, tol=0)
    claim(16, len(blocks), tol=0)
    claim(32, 64 / 2, tol=0)

    def draw(axes):
        axes.plot(sizes, most, marker="o", label="measured")
        axes.plot(sizes, [formula(16, s, a) for s in sizes], "--", label="n / s + s · a")
        axes.axhline(all_kept / bytes_of_x, color="gray", linestyle=":", label="nothing recomputed")
        axes.set(xlabel="blocks in a segment", ylabel="inputs held at most", title="16 blocks")
        axes.legend()

    save_plot("25_checkpointing", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `python train.py --gradient_checkpointing` recomputes each block by itself: `GPT.trunk` in model.py has the
# loop, with torch's own `checkpoint` in place of yours. `GPT.forward` does the same with the logits, whose V
# columns are more than all else in a small model: it cuts the tokens into chunks and never holds all of them.
# If memory runs out, smaller micro-batches (lesson 24) come first: they cost no time.
