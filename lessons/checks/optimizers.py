"""What the grader knows about lesson 16: momentum, Adam, AdamW, and a fair race."""

import math

import torch
from torch import nn

from lessons.common import changed, generator, mistakes
from optim import build_optimizer

SETTINGS = dict(learning_rate=1.0, muon_lr=1.0, beta1=0.9, beta2=0.999, muon_momentum=0.9, layer_lr_decay=1.0)
SETTINGS |= dict(freeze="", strategy="ddp", dtype="float32")


# ---- the project's optimizer, kept in the state; and several steps, as a loop makes them
def project_step(kind, params, grads, state, decay=0.0, **options):
    """One step of optim.py's optimizer on these tensors. options: its settings in this step."""
    if not state:
        model = nn.Module()
        model.blocks = nn.ParameterList([nn.Parameter(p) for p in params])  # they share their numbers
        config = dict(SETTINGS, optimizer=kind, weight_decay=decay)
        state.update(model=model, optimizer=build_optimizer(model, config, "cpu"))
    for p, g in zip(state["model"].blocks, grads, strict=True):
        p.grad = g.clone()
    for group in state["optimizer"].param_groups:
        group.update(options)
    state["optimizer"].step()


def steps_of(step, params, grads, state, rates, *rest):
    """How each step moves each tensor. Gradients always lie in the same tensors, as in a loop."""
    params, living, moves = [p.clone() for p in params], [g.clone() for g in grads[0]], []
    with torch.no_grad():
        for new, lr in zip(grads, rates, strict=True):
            for g, values in zip(living, new, strict=True):
                g.copy_(values)
            before = [p.clone() for p in params]
            step(params, living, state, lr, *rest)
            moves.append([p - b for p, b in zip(params, before, strict=True)])
            if any(not torch.equal(g, values) for g, values in zip(living, new, strict=True)):
                moves.append("a gradient was changed")
    return moves


def inputs_steps(seed, *rest):
    """Two matrices of one shape, a vector, and gradients from 1e-10 to 1e4, some of them 0 to the end."""
    g = generator(seed)
    shapes, sizes = [(3, 4), (3, 4), (5,), (2, 6)], [1.0, 1e-4, 3e-8, 1e4]
    params = [torch.randn(shape, generator=g) for shape in shapes]
    grads = [[size * torch.randn(shape, generator=g) for shape, size in zip(shapes, sizes, strict=True)]
             for _ in range(4)]  # fmt: skip
    for step in grads:
        step[0][1] = 0.0
    grads[2] = [torch.zeros_like(p) for p in params]
    grads[3][1] *= 100
    alike = [[part[:2] for part in each] for each in ([params], grads)]
    rates = [0.03, 0.03, 0.02, 0.05]
    return [(params, grads, {}, rates, *rest), (*alike[0], alike[1], {}, rates, *rest)]


# ---- 16a: SGD with momentum
def reference_momentum(params, grads, state, lr, momentum):
    project_step("sgd", params, grads, state, lr=lr, momentum=momentum)


def twin_momentum(params, grads, state, lr, momentum):
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        v = momentum * state.get(i, 0) + g
        state[i] = v
        p -= lr * v


V, MOVE = "v = momentum * state.get(i, 0) + g", "p -= lr * v"
wrong_momentum = mistakes(twin_momentum, {
    "gradient times 1 - momentum": ("+ g", "+ (1 - momentum) * g"),
    "no momentum": ("state[i] = v", "pass"),
    "nothing fades": ("momentum * ", ""),
    "one buffer for all": ("get(i, 0)", "get(0, 0)", "state[i]", "state[0]"),
    "rate inside the buffer": ("+ g", "+ lr * g", "lr * v", "v"),
    "uphill": ("-=", "+="),
    "Nesterov": (MOVE, "p -= lr * (g + momentum * v)"),
    "the old v": (MOVE, "p -= lr * (v - g) / momentum"),
    "a new tensor": ("p -=", "p = p -"),
    "gradient kept, not copied": (V, "v = state.get(i, g); v = v if v is g else momentum * v + g"),
    "gradient overwritten": (V, "v = g.add_(momentum * state.get(i, 0)).clone()"),
    "momentum on the gradient": (V, "v = state.get(i, 0) + momentum * g"),
})  # fmt: skip


# ---- 16b: Adam
def reference_adam(params, grads, state, lr, betas, eps):
    project_step("adam", params, grads, state, lr=lr, betas=betas, eps=eps)


def twin_adam(params, grads, state, lr, betas, eps):
    t = state.get("t", 0) + 1
    state["t"] = t
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        m, v = state.get(i, (0, 0))
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        state[i] = m, v
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        p -= lr * m_hat / (v_hat**0.5 + eps)


KEEP, M_HAT, V_HAT = "state[i] = m, v", "m / (1 - betas[0] ** t)", "v / (1 - betas[1] ** t)"
T_NEXT, ROOT = 'state["t"] = t', "v_hat**0.5 + eps"
HATS = f"m_hat, v_hat = {M_HAT}, {V_HAT}"
wrong_adam = mistakes(twin_adam, {
    "no bias correction": (M_HAT, "m", V_HAT, "v"),
    "only m corrected": (V_HAT, "v"),
    "only v corrected": (M_HAT, "m"),
    "t from 0": ("t = state", "t = state.get('t', -1) + 1; n = state"),
    "t from 0, one factor": ("t = state", "t = state.get('t', -1) + 1; n = state", "p -=",
        "p -= (1 - betas[1] ** t) ** 0.5 / (1 - betas[0] ** t) *", M_HAT, "m", V_HAT, "v"),
    "t stays 1": (T_NEXT, "pass"),
    "t counts tensors": (T_NEXT, "pass", "    m, v =", "    t = state['t'] = state.get('t', 0) + 1; m, v ="),
    "corrected for good": (KEEP, "pass", HATS, HATS + "; state[i] = m_hat, v_hat"),
    "eps inside the root": (ROOT, "(v_hat + eps) ** 0.5"),
    "no eps": (" + eps", ""),
    "eps not the argument": ("+ eps", "+ 1e-8"),
    "size, not square": ("g**2", "g.abs()"),
    "no root": (ROOT, "v_hat + eps"),
    "square of the mean": ("* g**2", "* m**2"),
    "betas swapped": ("t = state.get", "betas = betas[::-1]; t = state.get"),
    "sum, not average": ("(1 - betas[0]) * g", "g"),
    "one average for all": ("get(i, ", "get(0, ", "state[i]", "state[0]"),
    "averages not kept": (KEEP, "pass"),
    "uphill": ("-=", "+="),
    "a new tensor": ("p -=", "p = p -"),
})  # fmt: skip
also_adam = {
    "eps before the correction": changed(
        twin_adam, ROOT, "v**0.5 / (1 - betas[1] ** t) ** 0.5 + eps / (1 - betas[1] ** t) ** 0.5"
    ),
}


def first_step_is_lr(adam, params, grads, state, rates, betas, eps):
    """Whatever the size of a gradient, the first step is lr long, for each weight."""
    found = first(steps_of(adam, params, grads, {}, rates, betas, eps))["first"]
    return "" if abs(found - 1) < 0.01 else f"the first step is {found:.3g} times lr long; it should be 1"


def first(moves, *args):
    """The length of the first step of the first weight, in rates."""
    return dict(first=moves[0][0][0, 0].abs().item() / 0.03)


# ---- 16c: AdamW
def reference_adamw(params, grads, state, lr, betas, eps, decay):
    project_step("adamw", params, grads, state, decay, lr=lr, betas=betas, eps=eps)


def twin_adamw(params, grads, state, lr, betas, eps, decay):
    for p in params:
        p *= 1 - lr * decay if p.ndim >= 2 else 1.0
    twin_adam(params, grads, state, lr, betas, eps)


SHRINK, ADAM = (
    "p *= 1 - lr * decay if p.ndim >= 2 else 1.0",
    "twin_adam(params, grads, state, lr, betas, eps)",
)
wrong_adamw = mistakes(twin_adamw, {
    "L2 in the gradient": (SHRINK, "pass", "adam(params, grads,",
        "adam(params, [g + decay * p * (p.ndim >= 2) for p, g in zip(params, grads)],"),
    "L2 in every gradient": (SHRINK, "pass", "adam(params, grads,",
        "adam(params, [g + decay * p for p, g in zip(params, grads)],"),
    "decay not times lr": ("lr * decay", "decay"),
    "weights grow": ("1 - lr", "1 + lr"),
    "vectors decayed": (" if p.ndim >= 2 else 1.0", ""),
    "matrices left out": (">=", "<"),
    "nothing decayed": (SHRINK, "pass"),
    "lr twice": ("lr * decay", "lr**2 * decay"),
    "the same for all": (SHRINK, "p -= lr * decay * (p.ndim >= 2) * p.sign()"),
    "decay twice": (ADAM, ADAM + "\n    for p in params: " + SHRINK),
})  # fmt: skip
also_adamw = {
    "decay after the step": changed(
        twin_adamw, SHRINK, "pass", ADAM, ADAM + "\n    for p in params: " + SHRINK
    ),
}


def shrinks(adamw, params, grads, state, rates, betas, eps, decay):
    """A weight of 2 whose gradient is 0."""
    weight = torch.full((2, 3), 2.0)
    adamw([weight], [torch.zeros(2, 3)], {}, 0.01, betas, eps, 0.1)
    found = weight[0, 0].item()
    right = abs(found - 1.998) < 1e-4
    return "" if right else f"lr 0.01, decay 0.1, no gradient: 2 becomes {found:.4f}, not 1.998"


# ---- 16d: a fair race
def reference_race(runs, rates, last):
    found = []
    for name, run in runs.items():
        for lr in rates[name]:
            end = run(lr)[-last:]
            loss = sum(end) / last
            if math.isfinite(loss):
                found.append((loss, name, lr))
    best = {}
    for loss, name, lr in sorted(found):
        best.setdefault(name, (name, lr, loss))
    return list(best.values())


def inputs_race(seed):
    """Made-up curves: some are low early and rise, some are noisy, one is nan at the end."""
    g = generator(seed)
    ends = {"slow": {0.3: 2.9, 3.0: 2.75, 0.03: 3.4}, "steady": {0.1: 2.6, 0.01: 2.5, 1.0: 2.7},
            "wild": {0.2: math.nan, 0.02: 2.3, 2.0: math.inf}, "rising": {0.05: 2.65, 0.5: 2.85, 0.005: 3.1},
            "lost": {7.0: math.nan, 70.0: math.inf}}  # fmt: skip

    def run_of(name):
        def run(lr):
            runs_made.append((name, lr))
            curve = torch.linspace(4.17, ends[name][lr], 24) + 0.01 * torch.rand(24, generator=g_of(name, lr))
            if name == "rising":
                curve[:12] = 1.2 + lr
            curve[-6:] = ends[name][lr] + torch.tensor([0.2, -0.25, 0.1, 0.02, -0.15, 0.08 + lr / 10])
            curve[-1] += 0.3 if name == "steady" and lr == 0.01 else 0
            return curve.tolist()

        return run

    offset, runs_made = int(torch.randint(99, (), generator=g)), []
    g_of = lambda name, lr: torch.Generator().manual_seed(offset + int(1000 * lr) + len(name))  # noqa: E731
    names = ["slow", "steady", "rising", "wild", "lost"]
    return [({name: run_of(name) for name in names}, {name: [*ends[name]] for name in names}, 6)]


RATE, MEAN, FINITE = "for lr in rates[name]", "sum(end) / last", "if math.isfinite(loss)"
wrong_race = mistakes(reference_race, {
    "lowest of the curve": ("end = run(lr)[-last:]", "end = [min(run(lr))] * last"),
    "mean of the curve": ("run(lr)[-last:]", "run(lr)", MEAN, "sum(end) / len(end)"),
    "last loss only": ("[-last:]", "[-1:] * last"),
    "first losses": ("[-last:]", "[:last]"),
    "first rate only": (RATE, "for lr in rates[name][:1]"),
    "largest rate only": (RATE, "for lr in [max(rates[name])]"),
    "best of the last": (MEAN, "min(end)"),
    "nan not sorted out": (FINITE, "if True"),
    "only nan sorted out": (FINITE, "if loss == loss"),
    "worst first": ("sorted(found)", "sorted(found, reverse=True)"),
    "not sorted by loss": ("best.values()", "best[name] for name in runs if name in best"),
    "smallest rate wins": ("sorted(found)", "sorted(found, key=lambda r: r[2])"),
    "sum, not mean": (MEAN, "sum(end)"),
})  # fmt: skip

exercises = {
    "16a": dict(
        name="momentum_step", reference=reference_momentum, project=build_optimizer, slow=twin_momentum,
        inputs=lambda seed: inputs_steps(seed, 0.9), call=steps_of, gradients=False, wrong=wrong_momentum,
    ),
    "16b": dict(
        name="adam_step",
        reference=reference_adam,
        project=build_optimizer,
        slow=twin_adam,
        inputs=lambda seed: [
            inputs_steps(seed, (0.9, 0.999), 1e-8)[0],
            inputs_steps(seed, (0.8, 0.99), 1e-5)[1],
        ],
        call=steps_of,
        gradients=False,
        numbers=first,
        properties=[first_step_is_lr],
        wrong=wrong_adam,
        also=also_adam,
    ),
    "16c": dict(
        name="adamw_step",
        reference=reference_adamw,
        project=build_optimizer,
        slow=twin_adamw,
        needs=("16b",),
        inputs=lambda seed: inputs_steps(seed, (0.9, 0.999), 1e-8, 0.1),
        call=steps_of,
        gradients=False,
        properties=[shrinks],
        wrong=wrong_adamw,
        also=also_adamw,
    ),
    "16d": dict(
        name="race", reference=reference_race, inputs=inputs_race, gradients=False, wrong=wrong_race,
        twin="the project races commands (techniques/sweep.py), not functions",
    ),
}  # fmt: skip

predictions = {
    "16.1": dict(answer=0.001, tol=0.0001),
    "16.2": dict(answer=4, tol=0.1),
}
