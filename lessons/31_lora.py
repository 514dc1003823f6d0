# Lesson 31 (unit F): LoRA and merging: low-rank update
# Before: a trained model learned a new kind of text. All weights moved: each such model is a whole copy.
# Seconds: 12
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 31     your copy, in work/
#     python lessons/run.py check 31     what is right, what is not yet
#     python lessons/run.py show 31      the whole lesson from top to bottom, with its plot

# %%
import copy

import torch
import torch.nn.functional as F
from torch import nn

from lessons.course import claim, encoded, save_plot, update, windows, yours_or_ours
from model import GPT, GPTConfig

predict_1 = None  # numbers that LoRA trains beside a layer of 128 inputs and 256 outputs, rank 4
predict_2 = None  # rank 4, alpha 16, merged without the scale: how many times the right change is that

# %% [markdown]
# ## A small change of a large matrix
#
# Fine-tuning changes a trained model a little: each matrix W becomes W + D. D is as large as W, and so are
# its gradient and the two running means of AdamW. But D need not be just any matrix. LoRA (Hu et al., 2021)
# makes it a product of two thin ones:
#
#     W (out, in)          B (out, r)   A (r, in)
#     . . . . . . . .          x
#     . . . . . . . .          x
#     . . . . . . . .    +     x    times  x x x x x x x x
#     . . . . . . . .          x
#     frozen                   trained
#
# Here r, the **rank**, is 1. With A = [1, 2] and B = [3, 5] the product has the rows 3 * A = [3, 6] and
# 5 * A = [5, 10]. Every row is a multiple of A. With rank r every row is a mixture of the r rows of A: it
# cannot be any change, but often it is change enough.
#
# At 128 inputs and 256 outputs, W has 32,768 numbers. With r = 4, A has 512 and B has 1,024: 1,536 together.

# %%
if __name__ == "__main__":
    A, B = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [5.0]])
    (three, six), (five, ten) = (B @ A).tolist()
    claim(2, A[0, 1].item(), tol=0), claim(3, three, tol=0), claim(6, six, tol=0)
    claim(5, five, tol=0), claim(10, ten, tol=0)

# %% [markdown]
# ## 31a. The layer
#
# The layer that was there computes what it did, and the thin way is added:
#
#     y = layer(x) + alpha / r * B (A x)        A x is a vector of r numbers
#
# - **Frozen.** The layer's own weight and bias get no updates: `requires_grad_(False)`. Frozen is not cut
#   off: the gradient still runs through the layer to x, for there may be other adapters below.
# - **The start.** B is 0 and A is random. So B A = 0, and update 0 is the model as it was. The gradient of B
#   needs A, which is not 0: B moves, and then A does. With both at 0 neither would ever move. The size of A
#   is that of nn.Linear's weights: uniform between -1 / root of in and 1 / root of in.
# - **The scale.** B A is a sum of r products, so it grows with r. Dividing by r keeps it alike, and alpha is
#   one number that says how strong the update is, whatever the rank. Twice the rank is usual.


# %%
class LoRA(nn.Module):
    """A linear layer, frozen, and beside it a trained update of low rank.

    self.A: nn.Parameter (rank, in), random at first; self.B: nn.Parameter (out, rank), zeros at first.
    """

    def __init__(self, layer, rank, alpha):
        """layer: nn.Linear, with or without a bias, which is used and not copied; rank: int; alpha: float."""
        raise NotImplementedError("lesson 31a")

    def forward(self, x):
        """x: (..., in) float32 -> (..., out) float32."""
        raise NotImplementedError


# %% [markdown]
# ## It learns to shout
#
# A model has learned Shakespeare. The new text is the same in capital letters: it has seen few of those.
# In the code below, each linear layer of the blocks gets an **adapter**, a pair A and B, and nothing else is
# trained. `set_submodule` puts another module in the place of one, by its name. The val loss on capitals is
# 3.7 before. After 60 updates it is 2.6 with rank 1, and 2.5 with rank 4. All weights together reach 2.3, and
# need all of their 106,944 numbers for that; rank 4 trains 9,216.


# %%
if __name__ == "__main__":
    vocabulary, ids, val_ids, is_shakespeare = encoded()
    capitals = [c.upper() if c.upper() in vocabulary else c for c in vocabulary]
    capital = torch.tensor([vocabulary.index(c) for c in capitals])  # id -> id of the capital letter
    fixed = [windows(t, 24, torch.Generator().manual_seed(1)) for t in (val_ids, capital[val_ids])]

    @torch.no_grad()
    def val_losses(model):  # on the text as it is, and in capitals
        return [F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item() for x, y in fixed]

    torch.manual_seed(31)
    shape = dict(vocab_size=len(vocabulary), block_size=32, n_layer=2, n_head=2, n_embd=64)
    base, g, capital_ids = GPT(GPTConfig(**shape)), torch.Generator().manual_seed(31), capital[ids]
    optimizer = torch.optim.AdamW(base.parameters(), lr=0.004, fused=True)
    for _ in range(150):
        update(base, optimizer, *windows(ids, 16, g))
    before = val_losses(base)
    claim(3.7, before[1], tol=0.1, when=is_shakespeare)

    def with_adapters(rank):
        """A copy of the base in which only adapters are trained; rank 0: the whole copy is."""
        model = copy.deepcopy(base)
        if rank:
            model.requires_grad_(False)
            for name, layer in list(model.blocks.named_modules()):
                if isinstance(layer, nn.Linear):
                    model.blocks.set_submodule(name, yours_or_ours(LoRA, "31a")(layer, rank, 2.0 * rank))
        return model

    curves, models, counts = {}, {}, {}
    for name, rank, lr in (("rank 1", 1, 0.01), ("rank 4", 4, 0.01), ("all weights", 0, 0.004)):
        model, g = with_adapters(rank), torch.Generator().manual_seed(32)
        own = [p for p in model.parameters() if p.requires_grad]
        counts[name], models[name] = sum(p.numel() for p in own), model
        optimizer, losses = torch.optim.AdamW(own, lr=lr, fused=True), val_losses(model)[1:]
        assert losses == before[1:], "update 0 is the base, bit for bit"
        for step in range(1, 61):
            update(model, optimizer, *windows(capital_ids, 10, g))
            losses += val_losses(model)[1:] if step % 10 == 0 else []
        curves[name] = losses
        print(f"{name}: {counts[name]:,} numbers trained, {losses[-1]:.3f} in capitals")
    claim(60, 10 * (len(losses) - 1), tol=0)
    claim(2.6, curves["rank 1"][-1], tol=0.1, when=is_shakespeare)
    claim(2.5, curves["rank 4"][-1], tol=0.1, when=is_shakespeare)
    claim(2.3, curves["all weights"][-1], tol=0.1, when=is_shakespeare)

    def draw(axes):
        for name, losses in curves.items():
            axes.plot(range(0, 61, 10), losses, marker=".", label=f"{name}: {counts[name]:,} numbers")
        axes.set(xlabel="update", ylabel="val loss in capitals (nats)", title="The same text, in capitals")
        axes.legend()

    save_plot("31_lora", draw)

# %% [markdown]
# ## 31b. In the weights, or out of them
#
# An adapter costs two more products in each layer. It need not: W + alpha / r * B A is one matrix as large
# as W. To **merge** is to put that in the place of W. The scale belongs to it. At r = 4 and alpha = 16 it is
# 4, and an update merged without it is a quarter of the right one: 0.25.
#
# One base may serve many adapters, so it must be possible to go back. Two traps. Merging twice adds the
# change twice. And subtracting what was added does not bring back W: in bfloat16 (lesson 23) the sum is
# rounded. Here 0.01 is added to 1 and subtracted again, and 0.9961 is left. So keep a copy of W. No tensor
# can take the place of a parameter, but `copy_`, under `torch.no_grad()`, puts new numbers into it.


# %%
class Switch:
    """Puts an adapter into the weight of a layer, and takes it out again.

    on() -> None: the weight is W + alpha / rank * B A, summed in float32, in the dtype that it has.
    off() -> None: the weight is W, bit for bit. Turning on what is on, or off what is off, changes nothing.
    """

    def __init__(self, layer, A, B, alpha):
        """layer: nn.Linear, its weight (out, in) float32 or bfloat16, off at first; A: (rank, in) float32;
        B: (out, rank) float32; alpha: float."""
        raise NotImplementedError("lesson 31b")

    def on(self):
        """Merge -> None."""
        raise NotImplementedError

    def off(self):
        """Take it out -> None."""
        raise NotImplementedError


# %%
if __name__ == "__main__":
    one, little = torch.tensor(1.0).bfloat16(), 0.01
    claim(0.9961, (one + little - little).item(), tol=0.0001), claim(0.01, little, tol=0)
    layer, A, B = nn.Linear(6, 5, bias=False), torch.rand(4, 6), torch.rand(5, 4)
    W, alpha = layer.weight.detach().clone(), 16
    yours_or_ours(Switch, "31b")(layer, A, B, alpha).on()
    claim(0.25, ((B @ A).norm() / (layer.weight - W).norm()).item(), tol=1e-4)
    claim(4, len(A), tol=0), claim(16, alpha, tol=0)

    plain, lora, switches = copy.deepcopy(base), models["rank 4"], []
    adapters = {name: p.detach() for name, p in lora.named_parameters() if p.requires_grad}
    for name, layer in plain.named_modules():
        if f"{name}.A" in adapters:
            A, B = adapters[f"{name}.A"], adapters[f"{name}.B"]
            switches.append(yours_or_ours(Switch, "31b")(layer, A, B, 8.0))
    for turn in ("off", "on", "on", "off"):
        [getattr(switch, turn)() for switch in switches]
        found = val_losses(plain)
        print(f"{turn:3}: {found[0]:.3f} on the text as it is, {found[1]:.3f} in capitals")
        right = before if turn == "off" else val_losses(lora)
        assert max(abs(a - b) for a, b in zip(found, right, strict=True)) < 1e-4
    assert found == before, "bit for bit"

# %% [markdown]
# A file of 9,216 numbers is a second model, and a turn of the switch forgets it again. Where all weights were
# fine-tuned, there is no way back: on the text as it is, that model is now worse than the base.
#
# ## 31c. How much is trained?
#
# A layer of `in` inputs and `out` outputs has r * in numbers in A and out * r in B. Which layers get an
# adapter is a choice: q and v of attention in the paper, all of the blocks today. In a model the layers have
# names with dots, such as `blocks.0.attn.q`. The targets name the last part: "q" means that one in each
# block, and not the "q" of any longer word.


# %%
def trained(model, targets, rank):
    """How many numbers LoRA trains in a model. No adapter has a bias.

    model: a module; names have dots; targets: list of str, the last parts of the names of the nn.Linear
    layers that get an adapter (nothing else does); rank: int -> int; the model is left as it is.
    """
    raise NotImplementedError("lesson 31c")


# %%
if __name__ == "__main__":
    count = yours_or_ours(trained, "31c")
    everywhere = ["q", "k", "v", "o", "up", "down"]
    assert [count(base, everywhere, rank) for rank in (1, 4)] == [counts["rank 1"], counts["rank 4"]]
    claim(9216, count(base, everywhere, 4), tol=0)
    claim(106944, counts["all weights"], tol=0, when=is_shakespeare)
    one = yours_or_ours(LoRA, "31a")(nn.Linear(128, 256, bias=False), 4, 16.0)
    claim(128, one.A.size(1), tol=0), claim(512, one.A.numel(), tol=0)
    claim(256, one.B.size(0), tol=0), claim(1024, one.B.numel(), tol=0)
    claim(1536, sum(p.numel() for p in one.parameters() if p.requires_grad), tol=0)
    claim(32768, sum(p.numel() for p in one.parameters() if not p.requires_grad), tol=0)
    assert val_losses(models["all weights"])[0] > before[0] + 1, "no way back"

# %% [markdown]
# ## Where it stands in the project
#
# `LoRALinear` in techniques/lora.py is yours, with dropout before A and two variants; `change_model` puts it
# into a model: `python train.py config/finetune_lora.py`, with `--lora_rank`, `--lora_alpha` and
# `--lora_targets`. A run writes lora.pt, which has A and B alone, and a hash of the base: with another base
# they are only noise, so it is refused. `merge` in techniques/lora.py makes a plain run. With
# `--quantize=nf4` the frozen base has 4 bits a weight: that is QLoRA, and the next lesson has the bits.
