"""What the grader knows about lesson 31: two thin matrices beside a frozen one, merged, counted."""

import copy
import re
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from lessons.common import fill, generator, mistakes, normal
from model import GPT, GPTConfig
from techniques.lora import LoRALinear, change_model


# ---- 31a: the layer
def reference_lora(layer, rank, alpha):
    layer.requires_grad_(False)
    return LoRALinear(layer, rank, alpha)


def twin_lora(layer, rank, alpha):
    module = nn.Module()
    module.layer, scale = layer, alpha / rank
    for p in layer.parameters():
        p.requires_grad_(False)
    module.A = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
    module.B = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(x):
        return layer(x) + scale * F.linear(F.linear(x, module.A), module.B)

    module.forward = forward
    return module


def inputs_lora(seed):
    return [
        (24, 10, 6, 8.0, True, seed),
        (16, 40, 7, 6.0, False, seed + 10),
        (60, 9, 5, 2.5, True, seed + 20),
    ]


def about(t, size):
    """In words: is it zero, or spread around zero with about this size?"""
    root, mean = t.square().mean().sqrt().item(), abs(t.mean()).item()
    ratio = root / size
    if ratio == 0:
        return "zeros"
    if 0.3 < ratio < 2:
        return "as asked for" if mean < 0.65 * root else "not around 0"
    return "too large" if ratio > 1 else "too small"


def seen_of_layer(build, n_in, n_out, rank, alpha, bias, seed):
    """What is trained, how it starts, and what it computes once A and B hold given numbers."""
    g = generator(seed)
    layer = fill(nn.Linear(n_in, n_out, bias=bias), g)
    x, A, B, dy = normal(g, (2, 5, n_in), (rank, n_in), (n_out, rank), (2, 5, n_out))
    weight, right, own = layer.weight.detach().clone(), layer(x).detach(), dict(layer.named_parameters())
    lora = build(layer, rank, alpha)
    names = {id(p) for p in own.values()}
    trained = [(n, *p.shape) for n, p in lora.named_parameters() if p.requires_grad and id(p) not in names]
    thawed = [n for n, p in own.items() if p.requires_grad]
    first, x = lora(x).detach(), x.requires_grad_()
    start = "the layer's" if torch.allclose(first, right, rtol=0, atol=1e-6) else "another"
    sizes = about(lora.A.detach(), n_in**-0.5), about(lora.B.detach(), 1e-3)
    with torch.no_grad():
        lora.A.copy_(A), lora.B.copy_(B)
    y = lora(x)
    if y.requires_grad:
        y.backward(dy)
    grads = {n: torch.zeros(()) if t.grad is None else t.grad
             for n, t in (("x", x), ("A", lora.A), ("B", lora.B))}  # fmt: skip
    return {"trained": " ".join(f"{n} {size}" for n, *size in sorted(trained)), "output at first": start,
            "trained of the layer": " and ".join(thawed) or "nothing",
            "A and B at first": sizes, "output": y, "gradients": grads,
            "the layer's weight moved": not torch.equal(weight, layer.weight)}  # fmt: skip


def starts_as_the_layer(build, n_in, n_out, rank, alpha, bias, seed):
    layer, (x,) = fill(nn.Linear(n_in, n_out, bias=bias), generator(seed)), normal(generator(seed), (3, n_in))
    lora = build(layer, rank, alpha)
    apart = (layer(x) - lora(x)).abs().max().item()
    why = "which of A and B has to be 0?"
    if not (lora.B @ lora.A).any():
        why = "and B A is 0. Is all there that the layer computes, its bias, too?"
    return f"before any update the output is off by {apart:.3f}: {why}" * (apart > 1e-6)


A_IS = "torch.randn(rank, layer.in_features) / layer.in_features**0.5"
B_IS = "torch.zeros(layer.out_features, rank)"
RANDOM_B = B_IS.replace("zeros", "randn")
SCALE, SUM = "alpha / rank", "layer(x) + scale * F.linear(F.linear(x, module.A), module.B)"
FREEZE = "    for p in layer.parameters():\n        p.requires_grad_(False)\n"
NOT_LAYERS = mistakes(twin_lora, {
    "A and B both random": (B_IS, RANDOM_B),
    "both zero": (A_IS, "torch.zeros(rank, layer.in_features)"),
    "A zero, B random": (A_IS, "torch.zeros(rank, layer.in_features)", B_IS, RANDOM_B),
    "layer not frozen": (FREEZE, ""),
    "bias not frozen": (FREEZE, "    layer.weight.requires_grad_(False)\n"),
    "alpha without rank": (SCALE, "alpha"),
    "no scale": (SCALE, "1.0"),
    "scale upside down": (SCALE, "rank / alpha"),
    "root of the rank": (SCALE, "alpha / rank**0.5"),
    "layer without gradients": (SUM, SUM.replace("layer(x)", "layer(x).detach()")),
    "layer left out": (SUM, SUM.replace("layer(x) + ", "")),
    "bias left out": (SUM, SUM.replace("layer(x)", "F.linear(x, layer.weight)")),
    "bias added twice": (SUM, SUM.replace("module.B)", "module.B, layer.bias)")),
    "A of size 1": (A_IS, "torch.randn(rank, layer.in_features)"),
    "A never negative": (A_IS, "torch.rand(rank, layer.in_features) / layer.in_features**0.5"),
    "no parameters": (f"nn.Parameter({A_IS})", A_IS, f"nn.Parameter({B_IS})", B_IS),
    "written into the weight": (f"        return {SUM}", "        with torch.no_grad():\n"
        "            layer.weight += scale * module.B @ module.A\n        return layer(x)"),
    "shapes the other way": (A_IS, "torch.randn(layer.in_features, rank) / layer.in_features**0.5",
        B_IS, "torch.zeros(rank, layer.out_features)", SUM, "layer(x) + scale * (x @ module.A @ module.B)"),
    "A and B are layers": (f"nn.Parameter({A_IS})", "nn.Linear(layer.in_features, rank, bias=False)",
        f"nn.Parameter({B_IS})", "nn.Linear(rank, layer.out_features, bias=False)",
        SUM, "layer(x) + scale * module.B(module.A(x))"),
    "update alone detached": (SUM, SUM.replace("F.linear(x, module.A)", "F.linear(x.detach(), module.A)")),
})  # fmt: skip


# ---- 31b: in the weights, or out of them
def reference_switch(layer, A, B, alpha):
    lora, before = LoRALinear(layer, len(A), alpha), layer.weight.detach().clone()
    lora.A.data, lora.B.data = A, B
    merged = lora.merged()
    put = layer.weight.data.copy_
    return SimpleNamespace(on=lambda: put(merged), off=lambda: put(before))


def twin_switch(layer, A, B, alpha):
    weight = layer.weight.data
    before = weight.clone()
    change = alpha / len(A) * torch.stack([(A * row[:, None]).sum(0) for row in B])

    def on():
        weight.copy_(before.float() + change)

    def off():
        weight.copy_(before)

    return SimpleNamespace(on=on, off=off)


def inputs_switch(seed):
    kinds = torch.float32, torch.bfloat16, torch.float32
    return [
        (kind, *sizes, seed)
        for kind, sizes in zip(kinds, ((7, 3, 7.5), (5, 4, 6.0), (4, 2, 3.0)), strict=True)
    ]


def switched(build, dtype, n, rank, alpha, seed):
    """The weights after each of seven turns of the switch. A and B are 64ths: their sums are exact."""
    g = generator(seed)
    layer = fill(nn.Linear(n, 6), g).to(dtype)
    A, B = (torch.randint(-99, 100, shape, generator=g) / 64 for shape in ((rank, n), (6, rank)))
    given, found = (A.clone(), B.clone()), {}
    switch = build(layer, A, B, alpha)
    for i, turn in enumerate(("off", "on", "on", "off", "off", "on", "off")):
        try:
            getattr(switch, turn)()
        except TypeError as error:  # of whichever type the tensor is
            said = re.sub(r"'torch\.\w+'", "a tensor", str(error))
            raise TypeError(said).with_traceback(error.__traceback__) from None
        found[f"weights after turn {i}, {turn}:"] = layer.weight.detach().clone()
    found["A and B left alone"] = torch.equal(A, given[0]) and torch.equal(B, given[1])
    return found


def off_is_as_before(build, dtype, n, rank, alpha, seed):
    seen = switched(build, dtype, n, rank, alpha, seed)
    right = switched(reference_switch, dtype, n, rank, alpha, seed)
    for turn, weights in right.items():
        if "off" in turn and not torch.equal(weights, seen[turn]):
            return f"{turn} are not those that the layer had before the first turn"


ON, OFF = "        weight.copy_(before.float() + change)\n", "        weight.copy_(before)\n"
NOT_SWITCHES = mistakes(twin_switch, {
    "no scale": ("alpha / len(A) * ", ""),
    "scale upside down": ("alpha / len(A)", "len(A) / alpha"),
    "alpha without rank": ("alpha / len(A)", "alpha"),
    "divided by out": ("len(A)", "len(B)"),
    "merged twice": (ON, "        weight.add_(change)\n"),
    "taken out twice": (OFF, "        weight.sub_(change)\n"),
    "added and taken out": (ON, "        weight.add_(change)\n", OFF, "        weight.sub_(change)\n"),
    "subtracted from the merged one": (OFF,
        "        weight.copy_((before.float() + change).to(before.dtype) - change)\n"),
    "before is no copy": ("weight.clone()", "weight"),
    "product transposed": (ON, "        weight.copy_(before.float() + change.T)\n"),
    "reshaped, not multiplied right": ("torch.stack([(A * row[:, None]).sum(0) for row in B])",
        "(A.T @ B.T).reshape(len(B), -1)"),
    "change rounded first": ("before.float() + change", "before.float() + change.to(before.dtype)"),
    "float32 comes back": (ON, "        layer.weight.data = before.float() + change\n",
        OFF, "        layer.weight.data = before\n"),
    "a tensor assigned": (OFF, "        layer.weight = before\n"),
    "changed with a graph": (OFF, "        layer.weight.copy_(before)\n"),
    "off does nothing": (OFF, "        pass\n"),
    "the change alone": (ON, "        weight.copy_(change)\n"),
    "on only once": (ON, ON + "        change.zero_()\n"),
})  # fmt: skip


# ---- 31c: how much is trained
def reference_trained(model, targets, rank):
    settings = dict(lora_rank=rank, lora_alpha=1.0, lora_dropout=0.0, lora_variant="")
    adapted = change_model(copy.deepcopy(model), settings | {"lora_targets": ",".join(targets)})
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def twin_trained(model, targets, rank):
    total = 0
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets:
            total += rank * layer.in_features + layer.out_features * rank
    return total


def inputs_trained(seed):
    sizes = dict(vocab_size=11 + seed % 7, block_size=8)
    a = GPT(GPTConfig(**sizes, n_layer=3, n_embd=24, n_head=4, n_kv_head=2, n_ff=40))
    a.blocks[0].attn.freq = nn.Linear(24, 14)  # ends in q, and is no target
    a.blocks[1].mlp.q, a.blocks[2].mlp.k = nn.Embedding(9, 24), nn.LayerNorm(24)
    b = GPT(GPTConfig(**sizes, n_layer=2, n_embd=18, n_head=3, bias=True, arch="gpt2"))
    return [
        (a, ["q", "v", "down"], 5),
        (b, ["o", "up"], 3),
        (a, ["k", "v", "up"], 4),
        (b, ["q", "k", "v", "o", "up"], 2),
    ]


TERMS = "rank * layer.in_features + layer.out_features * rank"
LINEAR, LAST = "isinstance(layer, nn.Linear)", 'name.split(".")[-1] in targets'
TEST = f"{LINEAR} and {LAST}"
NOT_COUNTS = mistakes(twin_trained, {
    "A alone": (TERMS, "rank * layer.in_features"),
    "B alone": (TERMS, "rank * layer.out_features"),
    "rank squared": (TERMS, "rank**2"),
    "the layer's own weights": (TERMS, "layer.weight.numel()"),
    "A, B and the layer": (TERMS, TERMS + " + layer.weight.numel()"),
    "in times out": (TERMS, "rank * layer.in_features * layer.out_features"),
    "all layers square": (TERMS, "2 * rank * layer.in_features"),
    "a bias for each": (TERMS, TERMS + " + layer.out_features"),
    "all that the layers have": (TERMS, "sum(p.numel() for p in layer.parameters())"),
    "all that is so named": (TEST, LAST, TERMS, "sum(p.numel() for p in layer.parameters())"),
    "outermost modules alone": ("named_modules", "named_children"),
    "end of a name": (LAST, "any(name.endswith(target) for target in targets)"),
    "no look at the kind": (TEST, LAST),
    "weights of any kind": (TEST, LAST, TERMS, "rank * sum(layer.weight.shape)"),
    "one block": ("model.named_modules()", "model.blocks[0].named_modules()"),
    "every linear layer": (TEST, LINEAR),
    "every linear layer of blocks": (TEST, f"{LINEAR} and name != 'head'"),
    "part of a name": (LAST, "any(target in name for target in targets)"),
    "first target alone": ("in targets", "in targets[:1]"),
    "layers counted": (TERMS, "1"),
})  # fmt: skip

exercises = {
    "31a": dict(name="LoRA", reference=reference_lora, project=LoRALinear, slow=twin_lora,
        inputs=inputs_lora, call=seen_of_layer, gradients=False,
        properties=[starts_as_the_layer],
        wrong=NOT_LAYERS,
        ),
    "31b": dict(name="Switch", reference=reference_switch, project=LoRALinear, slow=twin_switch,
        inputs=inputs_switch, call=switched, gradients=False,
        properties=[off_is_as_before], wrong=NOT_SWITCHES,
        survivors={"weight.copy_(before.float() + change) => weight.copy_(before + change)":
            "bfloat16 and float32 add up to float32"},
        ),
    "31c": dict(name="trained", reference=reference_trained, project=change_model, slow=twin_trained,
        inputs=inputs_trained, gradients=False, wrong=NOT_COUNTS,
        ),
}  # fmt: skip

predictions = {
    "31.1": dict(answer=1536, tol=0.4),
    "31.2": dict(answer=0.25, tol=0.01),
}
