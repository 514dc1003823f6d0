"""What the grader knows about lesson 17: Newton-Schulz, a step of Muon, and which parameters it is for."""

import torch
from torch import nn

from lessons.common import changed, generator, mistakes
from model import GPT, GPTConfig
from muon import Muon, newton_schulz
from optim import parameter_groups


# ---- 17a: all singular values near 1
def reference_orthogonalize(matrix):
    return newton_schulz(matrix[None], torch.float32)[0]


def twin_orthogonalize(matrix):
    """The same polynomial, of the singular values themselves."""
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.square().sum().sqrt().clamp(min=1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return U * s @ Vh


def by_products(matrix):
    """As most write it."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.mT if matrix.size(0) > matrix.size(1) else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        A = x @ x.mT
        x = a * x + (b * A + c * A @ A) @ x
    return x.mT if matrix.size(0) > matrix.size(1) else x


def with_values(seed, rows, cols, *values):
    """A matrix with these singular values."""
    g = generator(seed)
    U = torch.linalg.qr(torch.randn(rows, len(values), generator=g))[0]
    V = torch.linalg.qr(torch.randn(cols, len(values), generator=g))[0]
    return U * torch.tensor(values) @ V.mT


def inputs_orthogonalize(seed):
    """Wide and tall, huge and tiny, one of rank 2, one without turns, and zeros."""
    wide = with_values(seed, 4, 7, 9.0, 3.0, 0.6, 0.1)
    tall = with_values(seed + 10, 6, 3, 2.0, 1.1, 0.02)
    flat = with_values(seed + 20, 3, 5, 1.7, 0.3)
    straight = torch.tensor([[3.0, 0, 0], [0, 2, 0]])  # there A * A is A A
    return [(x,) for x in (wide, tall, 3e5 * wide, 1e-6 * tall, flat, straight, torch.zeros(2, 3))]


def tamed(orthogonalize, matrix):
    """What explodes counts as 1,000 everywhere: whether into NaN depends on the order of sums."""
    found = orthogonalize(matrix)
    exploded = isinstance(found, torch.Tensor) and matrix.any() and not (found.abs() < 1000).all()
    return torch.full_like(found, 1000.0) if exploded else found


SCALE, BACK = "x.norm().clamp(min=1e-7)", "return x.mT if matrix.size(0) > matrix.size(1) else x"
wrong_orthogonalize = mistakes(by_products, {
    "not normalised": ("x / " + SCALE, "x"),
    "nothing against zero": (".clamp(min=1e-7)", ""),
    "largest entry": ("x.norm()", "x.abs().max()"),
    "three rounds": ("range(5)", "range(3)"),
    "one round": ("range(5)", "range(1)"),
    "six rounds": ("range(5)", "range(6)"),
    "cubic only": ("b * A + c * A @ A", "-0.5 * A", "a * x +", "1.5 * x +"),
    "mistyped c": ("2.0315", "2.315"),
    "sign of b": ("-4.7750", "4.7750"),
    "A squared by element": ("A @ A", "A * A"),
    "not turned back": (BACK, "return x"),
    "values of x squared": ("c * A @ A", "c * A"),
    "norm inside the loop": (f"    x = x / {SCALE}\n", "",
        "    A = x", f"    x = x / {SCALE}\n        A = x"),
})  # fmt: skip
also_orthogonalize = {"1e-7 added to the norm": changed(by_products, SCALE, "(x.norm() + 1e-7)")}


def values_near_1(orthogonalize, matrix):
    s = torch.linalg.svdvals(tamed(orthogonalize, matrix))
    if s.max() >= 1000:
        return "the numbers explode: is it the norm, a sign, or A A, which is a matrix product?"
    text = f"singular values go from {s.min():.2f} to {s.max():.2f}, not 0.68 to 1.13"
    return text * bool(s.min() < 0.6 or s.max() > 1.2)


def bars(orthogonalize, matrix):
    """Singular values as bars, one a row."""
    values = torch.linalg.svdvals(tamed(orthogonalize, matrix)).tolist()
    return [f"{'#' * min(20, round(10 * s)):20} {s:.2f}" for s in values] if max(values) < 1000 else []


def extremes(value, matrix):
    s = torch.linalg.svdvals(value.nan_to_num())
    return dict(largest=s.max().item(), smallest=s.min().item())


# ---- 17b: a step
def reference_muon(w, g, state, lr, momentum, decay):
    if not state:
        w = state["w"] = nn.Parameter(w)  # it shares its numbers
        group = dict(params=[w], kind="muon", lr=lr)
        state["optimizer"] = Muon([group], momentum, (0.9, 0.95), False, torch.float32)
    state["w"].grad = g.clone()
    state["optimizer"].param_groups[0].update(lr=lr, weight_decay=decay)
    state["optimizer"].step()


def twin_muon(w, g, state, lr, momentum, decay):
    m = momentum * state.get("m", torch.zeros_like(w)) + (1 - momentum) * g
    state["m"] = m
    look = momentum * m + (1 - momentum) * g
    update = twin_orthogonalize(look)
    w *= 1 - lr * decay
    w -= lr * max(1.0, w.size(0) / w.size(1)) ** 0.5 * update


def steps_of(step, w, grads, state, rates, *rest):
    """How each step moves the weights. The gradient always lies in one tensor, as in a loop."""
    w, living, seen = w.clone(), grads[0].clone(), {"the gradient is": "left alone"}
    with torch.no_grad():
        for i, (new, lr) in enumerate(zip(grads, rates, strict=True), 1):
            living.copy_(new)
            before = w.clone()
            step(w, living, state, lr, *rest)
            seen[f"how step {i} moves w:"] = w - before
            if not torch.equal(living, new):
                seen["the gradient is"] = "overwritten"
    return seen


def inputs_muon(seed):
    """A tall matrix with tiny gradients, a wide one with huge ones."""
    inputs, g, rates = [], generator(seed), [0.02, 0.02, 0.05, 0.01]
    for rows, cols, size, momentum in ((9, 4, 1e-4, 0.8), (3, 5, 1e3, 0.9)):
        w, *grads = torch.randn(len(rates) + 1, rows, cols, generator=g)
        inputs.append((w, [size * x for x in grads], {}, rates, momentum, 0.3))
    return inputs


M, LOOK = "(1 - momentum) * g\n    state", "momentum * m + (1 - momentum) * g"
UPDATE = "twin_orthogonalize(look)"
SHAPE = "max(1.0, w.size(0) / w.size(1)) ** 0.5"
wrong_muon = mistakes(twin_muon, {
    "orthogonalised before momentum": (M, "(1 - momentum) * twin_orthogonalize(g)\n    state", LOOK,
        "momentum * m + (1 - momentum) * twin_orthogonalize(g)", UPDATE, "look"),
    "no shape factor": (" * " + SHAPE, ""),
    "factor without the root": (SHAPE, "max(1.0, w.size(0) / w.size(1))"),
    "factor upside down": ("w.size(0) / w.size(1)", "w.size(1) / w.size(0)"),
    "factor below 1": ("max(1.0, w.size(0) / w.size(1))", "(w.size(0) / w.size(1))"),
    "no Nesterov": (LOOK, "m"),
    "look ahead kept": ('["m"] = m\n', '["m"] = momentum * m + (1 - momentum) * g\n'),
    "first gradient whole": ("torch.zeros_like(w)", "g"),
    "no momentum": ('state["m"] = m', "pass"),
    "not orthogonalised": (UPDATE, "look"),
    "decay through the update": (UPDATE, "twin_orthogonalize(look + decay * w)", "w *= 1 - lr * decay",
        "pass"),
    "decay not times lr": ("lr * decay", "decay"),
    "no decay": ("w *= 1 - lr * decay", "pass"),
    "uphill": ("w -=", "w +="),
    "a new tensor": ("w *=", "w = w *"),
    "gradient overwritten": (LOOK, "g.lerp_(m, momentum)"),
})  # fmt: skip
also_muon = {
    "decay after the step": changed(
        twin_muon,
        "w *= 1 - lr * decay",
        "pass",
        "** 0.5 * update",
        "** 0.5 * update; w *= 1 - lr * decay",
    ),
}


# ---- 17c: for which parameters
def reference_split(model):
    settings = dict(optimizer="muon", layer_lr_decay=1, muon_lr=2, learning_rate=1, weight_decay=0)
    found = {"muon": [], "adamw": []}
    for group in parameter_groups(model, settings):
        found[group["kind"]] += [name for name, _ in group["params"]]
    return found["muon"], found["adamw"]


def twin_split(model):
    muon, rest = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (muon if p.ndim == 2 and name.startswith("blocks.") else rest).append(name)
    return muon, rest


def inputs_split(seed):
    """A GPT with all kinds of parameters, one with a tied head, one whose first block is frozen."""
    shape = dict(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
    untied = GPT(GPTConfig(**shape, arch="gpt2", bias=True, tie_weights=0))
    frozen = GPT(GPTConfig(**shape, tie_weights=1))
    frozen.blocks[0].requires_grad_(False)
    return [(untied,), (GPT(GPTConfig(**shape, tie_weights=1)),), (frozen,)]


def places(split, model):
    """In which list each parameter is, by its name, and what else is in the lists."""
    found = {name: "in no list" for name, _ in model.named_parameters()} | {"besides": ""}
    for kind, part in zip(("Muon", "AdamW"), split(model), strict=True):
        for x in part:
            if isinstance(x, str) and x in found:
                found[x] = kind if found[x] == "in no list" else f"{found[x]} and {kind}"
            else:
                found["besides"] = x if isinstance(x, str) else f"a {type(x).__name__} in place of a name"
    return found


def once_each(split, model):
    """Together both lists have each trained parameter once."""
    found = places(split, model)
    twice = [name for name, where in found.items() if " and " in where]
    missing = [name for name, p in model.named_parameters() if p.requires_grad and "no" in found[name]]
    if found["besides"]:
        return f"in the lists is also: {found['besides']}"
    return f"{twice[0]} is there twice" if twice else f"{missing[0]} is in no list" if missing else ""


MUON, KEPT = 'p.ndim == 2 and name.startswith("blocks.")', "if p.requires_grad:"
wrong_split = mistakes(twin_split, {
    "all matrices": (' and name.startswith("blocks.")', ""),
    "only the head left out": ('name.startswith("blocks.")', '"head" not in name'),
    "only embeddings left out": ('name.startswith("blocks.")', 'name[0] != "w"'),
    "all of the blocks": ("p.ndim == 2 and ", ""),
    "rest forgotten": ("rest).append", "[]).append"),
    "matrices twice": ("(muon if", "rest.append(name) if p.ndim == 2 else 0\n            (muon if"),
    "frozen included": (KEPT, "if True:"),
    "tied head counted twice": ("return",
        'rest += ["head.weight"] * (model.head.weight is model.wte.weight)\n    return'),
    "attention only": ('name.startswith("blocks.")', '"attn" in name'),
    "MLP only": ('name.startswith("blocks.")', '"mlp" in name'),
    "the other way round": ("return muon, rest", "return rest, muon"),
    "parameters, not their names": (".append(name)", ".append(p)"),
    "vectors for Muon": ("p.ndim == 2", "p.ndim == 1"),
})  # fmt: skip

exercises = {
    "17a": dict(
        name="orthogonalize",
        reference=reference_orthogonalize,
        project=newton_schulz,
        slow=twin_orthogonalize,
        forbidden=("svd", "polar", "qr"),
        inputs=inputs_orthogonalize,
        call=tamed,
        gradients=False,
        tol=1e-3,  # five rounds in float32
        numbers=extremes,
        picture=bars,
        properties=[values_near_1],
        wrong=wrong_orthogonalize,
        also=also_orthogonalize,
    ),
    "17b": dict(
        name="muon_step",
        reference=reference_muon,
        project=Muon,
        slow=twin_muon,
        needs=("17a",),
        inputs=inputs_muon,
        call=steps_of,
        gradients=False,
        tol=1e-3,
        wrong=wrong_muon,
        survivors={
            "w -= lr * max(1.0, w.size(0) / w.size(1)) ** 0.5 * update => "
            "w -= lr * max(w.size(0) / w.size(1), 1.0) ** 0.5 * update": "the larger of two, in any order"
        },
        also=also_muon,
    ),
    "17c": dict(
        survivors_of_two={
            "(muon if p.ndim == 2 and name.startswith('blocks.') else rest).append(name) => "
            "(muon if p.ndim != 1 and name.startswith('blocks.') else rest).append(name)": "there are 1 and 2"
        },
        name="split",
        reference=reference_split,
        project=parameter_groups,
        slow=twin_split,
        inputs=inputs_split,
        call=places,
        gradients=False,
        properties=[once_each],
        wrong=wrong_split,
    ),
}

predictions = {
    "17.1": dict(answer=0.68, tol=0.03),
}
