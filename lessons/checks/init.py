"""What the grader knows about lesson 14: where a model begins, and how its stream grows."""

import copy
import functools
import math

import torch
import torch.nn.functional as F

from lessons.common import generator
from model import GPT, GPTConfig

SHAPE = dict(vocab_size=65, block_size=11, n_layer=3, n_head=2, n_embd=24, arch="gpt2", bias=True)
init_weights = GPT.init_weights


def in_place(change):
    """A function of a model from one of (name, parameter)."""

    @torch.no_grad()
    def each(model):
        for name, parameter in model.named_parameters():
            change(name, parameter)

    return each


# ---- 14a: what kind of numbers stands where, and the loss they lead to; another draw is as good
def reference_init(model):
    init_weights(model)
    scaling(lambda L: math.sqrt(2 * L))(model)  # undone: it is the subject of 14b


@torch.no_grad()
def twin_init(model):
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.fill_(0.0)
        else:
            parameter.copy_(0.02 * torch.randn(parameter.shape))


def inputs_init(seed):
    return [tuple(torch.randint(65, (2, 5, 11), generator=generator(seed)))]


def after_init(init, idx, y):
    model = GPT(GPTConfig(**SHAPE, tie_weights=0))
    in_place(lambda name, p: p.fill_(math.nan))(model)
    init(model)
    with torch.no_grad():
        loss = F.cross_entropy(model(idx).flatten(0, 1), y.flatten()).item()
    found = dict(loss=where(loss), matrices=[], embeddings=[], gains=[], biases=[])
    for name, p in model.named_parameters():
        group = "gains" if name.endswith("norm.weight") else "biases" if p.dim() < 2 else "matrices"
        found["embeddings" if name.startswith("w") else group].append(kind_of(p.detach(), name))
    several = {key: " or ".join(sorted({*kinds})) for key, kinds in found.items() if key != "loss"}
    return dict(loss=found["loss"], **several, told=lambda: dict(loss=loss))  # (functions are not compared)


def where(loss):
    if not math.isfinite(loss):
        return "not a number"
    above = loss - math.log(65)
    return "near ln V" if abs(above) < 0.05 else "above ln V" if above < 3 else "far above ln V"


def kind_of(p, name):
    """The numbers of a parameter, in words."""
    if p.isnan().any():
        return "not set"
    if p.max() == p.min():
        return f"all {p.max():.3g}"
    if p.mean().abs() > p.std() / 2:
        return "around another number than 0"
    widest = 1.5 if name.startswith("w") else 1.5 / math.sqrt(p.size(-1))  # beyond, a layer makes x grow
    return "random" if p.std() < widest else "random and large"


def init_with(matrix=lambda p: p.normal_(0, 0.02), table=None, gain=lambda p: p.fill_(1),
              bias=lambda p: p.fill_(0)):  # fmt: skip
    """An init that does other things to matrices, embeddings, gains or biases."""

    def change(name, p):
        drawn = table if table and name.startswith("w") else matrix
        (gain if name.endswith("norm.weight") else bias if p.dim() < 2 else drawn)(p)

    return in_place(change)


wrong_inits = {
    "standard deviation 1": init_with(lambda p: p.normal_(0, 1)),
    "all zeros": init_with(lambda p: p.zero_()),
    "all equal": init_with(lambda p: p.fill_(0.02)),
    "root of the width": init_with(lambda p: p.normal_(0, p.size(1) ** -0.5)),
    "only positive": init_with(lambda p: p.uniform_(0, 0.04)),
    "everything drawn": in_place(lambda name, p: p.normal_(0, 0.02)),
    "gains at zero": init_with(gain=lambda p: p.fill_(0)),
    "biases at one": init_with(bias=lambda p: p.fill_(1)),
    "embeddings forgotten": init_with(table=lambda p: p),
    "gradients recorded": lambda model: [p.normal_(0, 0.02) for p in model.parameters()],
}


# ---- 14b: from the same seed the project draws the same numbers, but for what it divides them by
def drawn(seed, **shape):
    """A model whose matrices all have 0.02, and whose numbers init_weights would draw from the same seed."""
    model = GPT(GPTConfig(**{**SHAPE, **shape}, tie_weights=0))
    torch.manual_seed(seed)
    init_with()(model)
    model.drawn_with = seed
    return model


def reference_scale(model):
    torch.manual_seed(getattr(model, "drawn_with", 0))
    init_weights(model)


@torch.no_grad()
def twin_scale(model):
    for block in model.blocks:
        for layer in (block.attn.o, block.mlp.down):
            layer.weight.copy_(layer.weight / math.sqrt(2 * len(model.blocks)))


@functools.cache  # the grader works on copies
def inputs_scale(seed):
    return [(drawn(seed),), (drawn(seed, n_layer=2, n_embd=16),)]


def after_scale(scale, model):
    torch.manual_seed(model.drawn_with + 1)
    scale(model)
    kinds = {}
    for name, p in model.named_parameters():
        kind = next((k for k in ("attn.o", "mlp.down", "mlp.up") if name.endswith(k + ".weight")), "others")
        kinds.setdefault(kind, []).append(p.detach().flatten())
    return {kind: torch.cat(tensors) for kind, tensors in kinds.items()}  # all blocks in one


def scaling(factor, names=("attn.o.weight", "mlp.down.weight")):
    """A scale_residual with another factor(number of blocks), or of other parameters."""

    def scale(model):
        change = lambda name, p: p.mul_(factor(len(model.blocks)) if name.endswith(names) else 1)  # noqa: E731
        in_place(change)(model)

    return scale


def right(L):
    return 1 / math.sqrt(2 * L)


@torch.no_grad()
def each_its_own(model):
    for i, block in enumerate(model.blocks, 1):
        for layer in (block.attn.o, block.mlp.down):
            layer.weight.mul_(right(i))


@torch.no_grad()
def drawn_anew(model):
    for block in model.blocks:
        for layer in (block.attn.o, block.mlp.down):
            layer.weight.normal_(0, 0.02 * right(len(model.blocks)))


wrong_scales = {
    "nothing changed": lambda model: None,
    "root of L": scaling(lambda L: L**-0.5),
    "no root": scaling(lambda L: 1 / (2 * L)),
    "multiplied": scaling(lambda L: math.sqrt(2 * L)),
    "twelve layers": scaling(lambda L: right(12)),
    "each its own depth": each_its_own,
    "every matrix": scaling(right, "weight"),
    "attention only": scaling(right, "attn.o.weight"),
    "MLP only": scaling(right, "mlp.down.weight"),
    "up, not down": scaling(right, ("o.weight", "up.weight")),
    "initialised again": lambda model: [scaling(right)(model), init_with()(model)],
}


# ---- 14c
def reference_probe(model, idx):
    found, training = [], model.training
    note = lambda module, args, output: found.append(output.std().item())  # noqa: E731
    handles = [block.register_forward_hook(note) for block in model.blocks]
    with torch.no_grad():
        model.eval()(idx)
    for handle in handles:
        handle.remove()
    model.train(training)
    return found


def twin_probe(model, idx):
    found, training = [], model.training
    model.eval()
    x = model.wte(idx) + model.wpe(torch.arange(idx.size(1)))
    for block in model.blocks:
        x = block(x)
        found.append(x.std().item())
    model.train(training)
    return found


@functools.cache
def inputs_probe(seed):
    """Models with dropout and weights so large that each block tells; one in training mode, one not."""
    model, other = (drawn(seed + i, n_layer=2, dropout=0.3) for i in range(2))
    for each in (model, other):
        in_place(lambda name, p: p.mul_(6) if p.dim() == 2 else p)(each)
        each.wte.weight.data *= torch.linspace(0.5, 12, 65)[:, None]  # so tokens differ in spread
    idx = torch.randint(65, (3, 7), generator=generator(seed))
    return [(model.train(), idx), (other.eval(), idx)]


def twice(probe, model, idx):
    """Two calls in a row, and what they leave behind."""
    first, second = probe(model, idx), probe(model, idx)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return dict(first=first, second=second, hooks=hooks, training=model.training)


def nothing_random(probe, model, idx):
    found = twice(probe, copy.deepcopy(model), idx)
    same = found["first"] == found["second"]
    return "" if same else "two calls give different numbers: what is random in your pass?"


def no_trace(probe, model, idx):
    hooks = twice(probe, copy.deepcopy(model), idx)["hooks"]
    return f"after two calls the model has {hooks} hooks: who removes them?" if hooks else ""


def probing(of=lambda out: out.std().item(), at=lambda m: m.blocks, eval=True, train=None, leave=False):
    """A probe that measures something else, elsewhere, in another mode, or leaves things behind."""

    def probe(model, idx):
        found, training = [], model.training
        handles = [m.register_forward_hook(lambda m, args, out: found.append(of(out))) for m in at(model)]
        with torch.no_grad():
            model.train(not eval and training)(idx)
        for handle in [] if leave else handles:
            handle.remove()
        model.train(training if train is None else train)
        return found

    return probe


def entering(model, idx):
    first = (model.wte(idx) + model.wpe.weight[: idx.size(1)]).std().item()
    return [first, *reference_probe(model, idx)[:-1]]


wrong_probes = {
    "hooks left": probing(leave=True),
    "dropout on": probing(eval=False),
    "left in eval": probing(train=False),
    "always back to train": probing(train=True),
    "what enters": entering,
    "over the last axis": probing(lambda out: out.std(-1).mean().item()),
    "over the batch": probing(lambda out: out.std(0).mean().item()),
    "variance": probing(lambda out: out.var().item()),
    "mean": probing(lambda out: out.mean().item()),
    "what attention adds": probing(at=lambda model: [block.attn for block in model.blocks]),
    "what the MLP adds": probing(at=lambda model: [block.mlp for block in model.blocks]),
    "last block only": probing(at=lambda model: model.blocks[-1:]),
}

exercises = {
    "14a": dict(name="init", reference=reference_init, project=init_weights, slow=twin_init,
        inputs=inputs_init, call=after_init, gradients=False, numbers=lambda value, idx, y: value["told"](),
        also={"a head of zeros": lambda model: [init_with()(model), model.head.weight.data.zero_()]},
        wrong=wrong_inits),
    "14b": dict(name="scale_residual", reference=reference_scale, project=init_weights, slow=twin_scale,
        inputs=inputs_scale, call=after_scale, gradients=False, also={"drawn anew": drawn_anew},
        wrong=wrong_scales),
    "14c": dict(name="probe", reference=reference_probe,
        twin="model.py has no probe; the other way is to call the blocks one after another", slow=twin_probe,
        inputs=inputs_probe, call=twice, gradients=False,
        tol=3e-3,  # torch's std divides by n - 1, numpy's by n: both are right
        numbers=lambda value, model, idx: dict(entries=len(value["first"])),
        also={"tensors": probing(lambda out: out.std())}, properties=[no_trace, nothing_random],
        wrong=wrong_probes),
}  # fmt: skip

predictions = {
    "14.1": dict(answer=4.174, tol=0.007),
}
