# Lesson 17 (unit C): Muon: orthogonal updates for matrices
# Before: Adam gives each number a pace of its own, as if a matrix were nothing but a list of numbers.
# Seconds: 9
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 17     your copy, in work/
#     python lessons/run.py check 17     what is right, what is not yet
#     python lessons/run.py show 17      the whole lesson from top to bottom, with its plot

# %%
import torch
import torch.nn.functional as F

from lessons.course import claim, encoded, save_plot, yours_or_ours
from model import GPT, GPTConfig

predict_1 = None  # smallest that the five rounds of 17a make of any singular value from 0.01 to 1

# %% [markdown]
# ## What a matrix does
#
# A matrix turns vectors into vectors. Any matrix does it in three moves: it turns the vector (V^T), stretches
# it along each axis by a number (the **singular values**, none below 0), and turns it again (U). Written
# out, W = U S V^T, with the singular values on the diagonal of S. The columns of U and V are the matrix's
# **directions**. If all singular values are 1, the matrix only turns or mirrors: it is called orthogonal.
#
# The gradient of a matrix is a matrix, too. A few of its singular values are large and most are small: most
# of the step goes along a few directions that all texts share, and what only rare texts ask for is hardly
# learned. **Muon** (Jordan et al., 2024) makes all singular values of a step about equal, and keeps the
# directions: U S V^T becomes U V^T. All directions are learned at one pace.
#
# By hand: the matrix with rows (3, 0) and (0, 0.1) has the singular values 3 and 0.1. A step with it is 30
# times as long in one direction as in the other. U V^T has rows (1, 0) and (0, 1).

# %% [markdown]
# ## 17a. Newton-Schulz
#
# A singular value decomposition (SVD) finds U, S and V, but it is slow, and on a GPU very slow. There is a
# way with matrix products alone. The product of x with its own transpose and with x again, x x^T x, is
# U S^3 V^T: the directions stay, each singular value s becomes s^3. So a polynomial of odd powers works on
# the singular values alone. This is called Newton-Schulz:
#
#     A = x x^T           x becomes  a x + (b A + c A A) x        s becomes  a s + b s^3 + c s^5
#
# A A is a matrix product, too. With a = 3.4445, b = -4.7750 and c = 2.0315, five rounds of this bring every
# s between 0.01 and 1 to somewhere between 0.68 and 1.13. By hand, 0.01 goes to 0.034, 0.118, 0.400, 1.093
# and 0.699. That is not 1, and it need not be: the coefficients were chosen to lift small values fast.
#
# A value above 1.26 explodes: 1.27 is above 10^21 after five rounds. So first divide x by its norm, the
# root of the sum of all squares (the Frobenius norm): it is the root of the sum of all s squared, so no s
# is above it. A matrix of zeros has the norm 0; let the divisor be 1e-7 at least. Last, speed: x x^T is
# rows x rows. For a tall matrix, with more rows than columns, work on its transpose and turn that back.


# %%
def orthogonalize(matrix):
    """The same directions, all singular values near 1: normalise, then five rounds of the polynomial.

    matrix: (rows, cols) float32, wide or tall; it may be all zeros -> (rows, cols) float32.
    """
    raise NotImplementedError("lesson 17a")


# %%
if __name__ == "__main__":
    orthogonal = yours_or_ours(orthogonalize, "17a")
    example = torch.tensor([[3.0, 0.0], [0.0, 0.1]])
    claim(3, example.max().item(), tol=0)
    claim(0.1, example[1, 1].item())
    claim(30, (example[0, 0] / example[1, 1]).item(), tol=1e-4)
    assert orthogonal(example).diag().min() > 0.68 and orthogonal(example)[0, 1].abs() < 1e-5
    a, b, c = 3.4445, -4.7750, 2.0315
    claim(3.4445, a, tol=0), claim(4.7750, -b, tol=0), claim(2.0315, c, tol=0)
    lowest, path = 0.01, []
    s = torch.linspace(lowest, 1, 1000).double()
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
        path.append(s[0].item())
    claim(0.01, lowest, tol=0)
    claim(0.68, s.min().item(), tol=0.005), claim(1.13, s.max().item(), tol=0.005)
    claim(0.034, path[0], tol=0.0005), claim(0.118, path[1], tol=0.0005), claim(0.400, path[2], tol=0.0005)
    first, last = torch.arange(100, 140) / 100, torch.arange(100, 140).double() / 100
    for _ in range(5):
        last = a * last + b * last**3 + c * last**5
    claim(1.26, first[last < 2].max().item(), tol=1e-6)
    claim(1.27, first[last > 1e21].min().item(), tol=1e-6)
    claim(1.093, path[3], tol=0.0005), claim(0.699, path[4], tol=0.0005)

# %% [markdown]
# ## A gradient, before and after
#
# Here is the gradient of a real matrix: the first of the MLP in a small GPT, after a few steps of training.
# The bars are every eighth of its singular values. The largest is more than 10 times the median; after
# your function most are close to 1. Those that were below a hundredth of the norm end anywhere up to 1.2.

# %%
if __name__ == "__main__":
    vocabulary, ids, _, is_shakespeare = encoded()
    torch.manual_seed(17)
    model = GPT(GPTConfig(len(vocabulary), block_size=32, n_layer=2, n_head=2, n_embd=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for _ in range(20):
        places = torch.randint(len(ids) - 32, (8, 1)) + torch.arange(32)
        optimizer.zero_grad()
        F.cross_entropy(model(ids[places]).flatten(0, 1), ids[places + 1].flatten()).backward()
        optimizer.step()
    gradient = model.blocks[0].mlp.up.weight.grad  # (256, 64)
    before = torch.linalg.svdvals(gradient)
    after = torch.linalg.svdvals(orthogonal(gradient))
    for name, values in (("before", before / before[0]), ("after", after)):
        print(f"{name}:")
        for s in values[::8].tolist():
            print(f"  {'#' * round(40 * s):48} {s:.3f}")
    claim(10, min(10.0, (before[0] / before.median()).item()), tol=0)
    kept = (before / before.norm() > 0.01).sum()
    lifted = after.sort(descending=True).values[:kept]
    assert 0.6 < lifted.min() and after.max() < 1.21, "order is not kept, so the smallest are left out"

    def draw(axes):
        axes.semilogy(before / before.norm(), marker=".", label="gradient, divided by its norm")
        axes.semilogy(after, marker=".", label="after five rounds")
        axes.axhline(1, linestyle=":", color="black")
        axes.set(xlabel="number of the singular value", ylabel="size", title="A gradient, before and after")
        axes.legend()

    claim(1.2, max(1.2, after.max().item()), tol=0.01)
    save_plot("17_muon", draw)

# %% [markdown]
# ## 17b. A step of Muon
#
# Around 17a there is a momentum as in lesson 16, but written as an average, and with a look ahead that is
# called Nesterov's: mix the gradient in once more, as if the next one were like it.
#
#     m = momentum * m + (1 - momentum) * g           m is 0 before the first step
#     look = momentum * m + (1 - momentum) * g
#     w = w * (1 - lr * decay)                        weight decay as in AdamW
#     w = w - lr * sqrt(max(1, rows / cols)) * orthogonalize(look)
#
# The order matters. The gradient of one batch is noise in most directions, and to orthogonalize it would
# make that noise as large as the rest. So average first. (A sum as in lesson 16 does the same here: it is
# larger by one factor, and 17a divides by the norm.)
#
# A matrix (rows, cols) makes vectors of `rows` numbers from vectors of `cols` numbers. A square or tall one
# with all singular values at 1 keeps the length of a vector. A tall one spreads that length over more
# numbers: from 64 to 256 numbers, each output number is half as large. The root of rows / cols, here 2,
# makes up for it. Wide matrices have the factor 1.


# %%
def muon_step(w, g, state, lr, momentum, decay):
    """One step of Muon on one matrix, changed in place; it may call `orthogonalize`. g is only read.

    w, g: (rows, cols) float32; state: dict, {} at first, keeps what the next step needs; lr, momentum, decay:
    float -> None.
    """
    raise NotImplementedError("lesson 17b")


# %%
if __name__ == "__main__":
    step = yours_or_ours(muon_step, "17b")
    for size in (0.001, 1.0, 1000.0):
        w = torch.zeros(256, 64)
        step(w, size * gradient, {}, 0.02, 0.95, 0.0)
        print(f"gradient times {size:6}: the step is {w.norm():.4f} long, its entries are {w.std():.5f}")
    claim(256, w.size(0), tol=0), claim(64, w.size(1), tol=0), claim(2, (256 / 64) ** 0.5, tol=0)

# %% [markdown]
# ## 17c. Which parameters?
#
# Muon is for matrices that turn vectors into vectors: those inside the blocks. Not for the others:
#
# - Embeddings and the head have two axes, but each row belongs to one letter, and most rows have a gradient
#   of 0 in a batch. To give all directions the same size is to move letters that did not come up.
# - Gains and biases have one axis, and no singular values.
#
# These are left to AdamW. Parameters that are frozen (`requires_grad` is False) are in neither list, and a
# parameter with two names, as a tied head has, is in one list once: `named_parameters()` sees to that.


# %%
def split(model):
    """The names of the parameters for Muon, and of those for AdamW; each trained parameter is in one list.

    model: GPT; its blocks' parameters have names that begin with "blocks." -> (list of str, list of str).
    """
    raise NotImplementedError("lesson 17c")


# %%
if __name__ == "__main__":
    muon, rest = yours_or_ours(split, "17c")(model)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    print(f"Muon: {len(muon)} matrices, {sum(sizes[n] for n in muon):,} numbers; AdamW: {', '.join(rest)}")
    assert sorted(muon + rest) == sorted(sizes)

# %% [markdown]
# ## Where it stands in the project
#
# `newton_schulz` and `Muon` in muon.py are 17a and 17b, for all matrices of one shape in one call; on CPUs
# and GPUs that can, in bfloat16. `parameter_groups` in optim.py is 17c. Muon and AdamW have learning rates of
# their own, `--muon_lr` and `--learning_rate`, and follow one schedule: next lesson. Muon is train.py's
# default. It costs five rounds of matrix products a step, and half the memory of Adam: one average, not two.
