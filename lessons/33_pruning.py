# Lesson 33 (unit F): Pruning: masks that stay
# Before: each weight takes fewer bits, and all of them are kept. Many are so small that nothing needs them.
# Seconds: 12
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 33     your copy, in work/
#     python lessons/run.py check 33     what is right, what is not yet
#     python lessons/run.py show 33      the whole lesson from top to bottom, with its plot

# %%
import copy
import io

import torch
import torch.nn.functional as F

from lessons.course import claim, encoded, save_plot, update, windows, yours_or_ours
from model import GPT, GPTConfig
from techniques.prune import smallest

predict_1 = None  # size of a file of float32 weights, once 90 % of them are zero, in % of that before
predict_2 = None  # half of the weights are pruned, then one AdamW update without masks: % of these still zero

# %% [markdown]
# ## Weights that nobody would miss
#
# A weight of 0.001 beside one of 1 adds next to nothing to a sum. **Pruning** sets such weights to zero. How
# many can go before the loss rises? And can the others learn to do without them?
#
# First a disappointment. A zero is a float32 like any other, 4 bytes, and is multiplied like any other. So a
# file with 90 % zeros is as large as before, 100 %, and a model with them as slow. It becomes smaller only in
# a format that leaves zeros out and notes where the others are, faster only with a kernel that skips zeros.
#
# ## 33a. The mask
#
# The size of a weight says how much it is missed, roughly; its sign does not matter. The smallest ones go:
# this is magnitude pruning (Han et al., 2015). A **mask** is a bool for each weight: True where it goes.
#
# Smallest among whom? Here half of four weights go, from two matrices:
#
#     up      3    -0.5         all together     3    -0.5         in each matrix     3     .
#     down  0.2    -0.1                          .      .                           0.2     .
#
# Compared all together, both come from `down`: it has little to say. Compared in each matrix, -0.5 goes, and
# the smaller 0.2 stays. You write the first kind. A run has to tell which one does less harm. Only matrices
# are pruned; norms and biases have one axis, and stay.


# %%
def masks(weights, share):
    """Which weights go: the smallest of all matrices together.

    weights: dict of name -> float32 tensor, left as they are; those with two axes are the matrices; share:
    float, so much of all their weights goes: round(share * n) of n, of equal sizes the first -> dict of name
    -> bool tensor of that matrix's shape, True where a weight goes; matrices only, in the same order.
    """
    raise NotImplementedError("lesson 33a")


# %%
if __name__ == "__main__":
    choose = yours_or_ours(masks, "33a")
    four = {"up": torch.tensor([[3.0, -0.5]]), "down": torch.tensor([[0.2, -0.1]])}
    print({name: mask.tolist() for name, mask in choose(four, 0.5).items()})
    assert choose(four, 0.5)["down"].all() and not choose(four, 0.5)["up"].any()
    assert [smallest(w, 0.5).tolist() for w in four.values()] == [[[False, True]], [[False, True]]]
    claim(3, four["up"].max().item(), tol=0), claim(-0.5, four["up"].min().item(), tol=0)
    claim(0.2, four["down"].max().item(), tol=1e-6), claim(-0.1, four["down"].min().item(), tol=1e-6)

    vocabulary, ids, val_ids, is_shakespeare = encoded()
    fixed = windows(val_ids, 32, torch.Generator().manual_seed(1))

    @torch.no_grad()
    def val_loss(model):
        return F.cross_entropy(model(fixed[0]).flatten(0, 1), fixed[1].flatten()).item()

    torch.manual_seed(33)
    shape = dict(vocab_size=len(vocabulary), block_size=32, n_layer=2, n_head=2, n_embd=64)
    base, g = GPT(GPTConfig(**shape)), torch.Generator().manual_seed(33)
    optimizer = torch.optim.AdamW(base.parameters(), lr=0.004, fused=True)
    for _ in range(150):
        update(base, optimizer, *windows(ids, 16, g))

    def pruned(share, each=False):
        """A copy of the base without a share of the weights in its blocks, and the masks."""
        model = copy.deepcopy(base)
        own = {name: p.data for name, p in model.named_parameters() if name.startswith("blocks.")}
        gone = choose(own, share)
        if each:
            gone = {name: smallest(own[name], share) for name in gone}
        for name, mask in gone.items():
            own[name][mask] = 0
        return model, gone

    curves, shares = {"all together": [], "in each matrix": []}, (0.0, 0.5, 0.75, 0.9)
    for share in shares:
        for name in curves:
            curves[name].append(val_loss(pruned(share, name == "in each matrix")[0]))
    for name, losses in curves.items():
        print(f"{name}: " + ", ".join(f"{x:.3f}" for x in losses))

    def file_of(model):
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        return len(file.getvalue())

    print(f"file: {file_of(base):,} bytes, with 90 % zeros {file_of(pruned(0.9)[0]):,}")
    claim(100, 100 * file_of(pruned(0.9)[0]) / file_of(base), tol=0.1)
    claim(90, 100 * shares[-1], tol=1e-9), claim(4, base.wte.weight.element_size(), tol=0)
    claim(0.001, (torch.tensor([0.001, 1.0]).sum() - 1).item(), tol=1e-6)

# %% [markdown]
# ## 33b. Zeros that stay
#
# Trained on, the weights that are left take over. But the others come back: a zero has a gradient like any
# other weight. If half of the weights were pruned, 0 % of them are still zero after one update with AdamW:
# all came back. Of 90 % some do not: a neuron whose outputs are all pruned passes no gradient on.
#
# Masking the gradients looks like the remedy, and is not enough. An optimizer with a memory (lesson 16)
# still moves a weight whose gradient is 0, as long as its running mean is not. The simplest way is the sure
# one: after each update put the zeros back, whatever the optimizer did.
#
# The mask is made once, before training. Do not make it anew from what is zero now: some weights are zero by
# chance, and may learn. Nor from what is smallest now: then other weights go each time, and nothing that was
# learned is safe.


# %%
def finetune(model, masks, optimizer, batches):
    """Train on each batch once; after each update the pruned weights are zero again.

    model: (B, T) int64 -> (B, T, V) float32 logits, pruned already; masks: dict of a name in
    model.named_parameters() -> bool tensor of that shape, True where the weight is pruned, left as they are;
    optimizer: of its parameters, perhaps with a memory from before; batches: list of (x, y), each (B, T)
    int64 -> list of floats, the loss of each batch before its update, mean nats.
    """
    raise NotImplementedError("lesson 33b")


# %%
if __name__ == "__main__":
    train = yours_or_ours(finetune, "33b")

    def batches_of(n):
        g = torch.Generator().manual_seed(34)
        return [windows(ids, 16, g) for _ in range(n)]

    def adamw(model):
        return torch.optim.AdamW(model.parameters(), lr=0.003, weight_decay=0.1, fused=True)

    def zeros_in(model, gone):
        weights = dict(model.named_parameters())
        own = torch.cat([weights[name][mask] for name, mask in gone.items()])
        return 100 * (own == 0).float().mean().item()

    model, gone = pruned(0.5)
    before = zeros_in(model, gone)
    train(model, {}, adamw(model), batches_of(1))  # no masks
    left = zeros_in(model, gone)
    print(f"of the pruned weights {before:.0f} % are zero, after an update without masks {left:.2f} %")
    assert left < 0.5
    claim(100, before, tol=0)

    curves["and 30 updates"] = []
    for share in shares:
        model, gone = pruned(share)
        train(model, gone, adamw(model), batches_of(30))
        assert zeros_in(model, gone) == 100 or share == 0
        curves["and 30 updates"].append(val_loss(model))
    print("all together, and 30 updates: " + ", ".join(f"{x:.3f}" for x in curves["and 30 updates"]))

    def draw(axes):
        for name, losses in curves.items():
            axes.plot(shares, losses, marker=".", label=name)
        axes.set(xlabel="share of the blocks' weights that is zero", ylabel="val loss (nats)", title="Pruned")
        axes.legend()

    save_plot("33_pruning", draw)
    (full, half, quarter, tenth), each, after = curves.values()
    claim(50, 100 * shares[1], tol=0)
    claim(75, 100 * shares[2], tol=0)
    claim(30, len(batches_of(30)), tol=0)
    claim(2.16, full, 0.05, is_shakespeare)
    claim(2.18, half, 0.05, is_shakespeare)
    claim(2.30, quarter, 0.06, is_shakespeare)
    claim(2.25, each[2], 0.06, is_shakespeare)
    claim(2.53, tenth, 0.08, is_shakespeare)
    claim(2.11, after[0], 0.05, is_shakespeare)
    claim(2.11, after[2], 0.05, is_shakespeare)
    claim(2.21, after[3], 0.05, is_shakespeare)
    assert full < half < quarter < tenth and after[2] < quarter and after[3] > after[0] + 0.03

# %% [markdown]
# The model has a val loss of 2.16. Without half of the weights in its blocks it is 2.18, without 75 % of them
# 2.30 (2.25 where each matrix gave its share), without 90 % 2.53. Then 30 updates heal nearly all: 2.11
# without 75 %, as much as without pruning, for the model itself was not done yet; 2.21 without 90 %.

# %% [markdown]
# ## Where it stands in the project
#
# `smallest` in techniques/prune.py is the mask, and `set_zeros` there has four ways to choose: among all
# matrices, in each one, by size times input, or two of each four neighbours, which some GPUs can skip.
# `put_back` in techniques/prune.py runs after each update; `python train.py --technique=prune` keeps each
# mask in the checkpoint, a byte a weight. `smaller` in techniques/prune_parts.py takes out whole heads and
# neurons: then the matrices are smaller, and so are file and time. Losses for each way stand in
# docs/techniques.md.
