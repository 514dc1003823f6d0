"""What the grader knows about lesson 16: momentum, Adam, AdamW, and a fair race."""

import inspect
import math

import torch
from torch import nn

from optim import build_optimizer

SETTINGS = dict(learning_rate=1.0, muon_lr=1.0, beta1=0.9, beta2=0.999, muon_momentum=0.9, layer_lr_decay=1.0)
SETTINGS |= dict(freeze="", strategy="ddp", dtype="float32")


def changed(function, *swaps):
    """A function with a mistake: a place of its source as it is, as it is then, the next place ..."""
    source, names = inspect.getsource(function), dict(globals())
    for before, after in zip(swaps[::2], swaps[1::2], strict=True):
        assert before in source, before
        source = source.replace(before, after)
    exec(source, names)
    return names[function.__name__]


def mistakes(function, table):
    return {name: (changed(function, *swaps), hint) for name, (*swaps, hint) in table.items()}


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
    g = torch.Generator().manual_seed(seed)
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
    "gradient times 1 - momentum": ("+ g", "+ (1 - momentum) * g",
        "The first step is a tenth of what it should be. With which factor does the gradient enter v?"),
    "no momentum": ("state[i] = v", "pass",
        "Each step knows only its own gradient. Where is v kept until the next call?"),
    "nothing fades": ("momentum * ", "", "Old gradients never fade: v is a sum of all. Where is the factor?"),
    "one buffer for all": ("get(i, 0)", "get(0, 0)", "state[i]", "state[0]",
        "The second tensor gets the first one's v. How many of them does the state hold?"),
    "rate inside the buffer": ("+ g", "+ lr * g", "lr * v", "v",
        "Right as long as lr stays. When it changes: which lr should old gradients be multiplied by?"),
    "uphill": ("-=", "+=", "Weights move with the gradient: the loss grows. Which sign?"),
    "Nesterov": (MOVE, "p -= lr * (g + momentum * v)",
        "That is Nesterov's variant: it looks one step ahead. Here a weight moves by lr times v."),
    "the old v": (MOVE, "p -= lr * (v - g) / momentum",
        "The first step changes nothing: you move by the v of the step before. What comes first?"),
    "a new tensor": ("p -=", "p = p -",
        "No weight has moved: p is a new tensor, the caller's is as it was. What changes it in place?"),
    "gradient kept, not copied": (V, "v = state.get(i, g); v = v if v is g else momentum * v + g",
        "state[i] was the gradient itself at first, and the next backward wrote over it. Keep a new tensor."),
    "gradient overwritten": (V, "v = g.add_(momentum * state.get(i, 0)).clone()",
        "The weights move right, but the caller's gradient is no longer what it was."),
    "momentum on the gradient": (V, "v = state.get(i, 0) + momentum * g",
        "What is multiplied by momentum: what is remembered, or what is new?"),
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
    "no bias correction": (M_HAT, "m", V_HAT, "v",
        "The first step is {first:.2f} times lr, not 1. What are m and v, which began at 0, divided by?"),
    "only m corrected": (V_HAT, "v", "The first step is {first:.1f} times lr, not 1. Is v as it began, too?"),
    "only v corrected": (M_HAT, "m", "The first step is {first:.2f} times lr, not 1. Is m as it began, too?"),
    "t from 0": ("t = state", "t = state.get('t', -1) + 1; n = state",
        "1 - beta ** 0 is 0, and m / 0 is no number. From where is t counted?"),
    "t from 0, one factor": ("t = state", "t = state.get('t', -1) + 1; n = state",
        "p -=", "p -= (1 - betas[1] ** t) ** 0.5 / (1 - betas[0] ** t) *", M_HAT, "m", V_HAT, "v",
        "In the first step t is 0, and you divide by 1 - beta ** 0. From where is t counted?"),
    "t stays 1": (T_NEXT, "pass", "The first step is right; then t is 1 again. Where is it kept?"),
    "t counts tensors": (T_NEXT, "pass", "    m, v =", "    t = state['t'] = state.get('t', 0) + 1; m, v =",
        "t grows with each tensor. It counts steps: in which loop does it stand?"),
    "corrected for good": (KEEP, "pass", HATS, HATS + "; state[i] = m_hat, v_hat",
        "m_hat and v_hat are for this step. What should the next one begin with?"),
    "eps inside the root": (ROOT, "(v_hat + eps) ** 0.5",
        "Right unless gradients are near 1e-4 or smaller. Is eps added to v, or to its root?"),
    "no eps": (" + eps", "", "A weight whose gradient was always 0: 0 / 0. What is added below the line?"),
    "eps not the argument": ("+ eps", "+ 1e-8", "Right for one eps and for no other. Where is the argument?"),
    "size, not square": ("g**2", "g.abs()", "v is a mean of |g|. Its root has a strange unit: mean of what?"),
    "no root": (ROOT, "v_hat + eps",
        "A gradient ten times as large gives a step a tenth as long. What is missing around v?"),
    "square of the mean": ("* g**2", "* m**2", "v averages m squared. It should average the square of g."),
    "betas swapped": ("t = state.get", "betas = betas[::-1]; t = state.get",
        "The two betas have changed places. Which average is the longer one?"),
    "sum, not average": ("(1 - betas[0]) * g", "g",
        "The first step is {first:.0f} times lr. In an average the weights of old and new add up to what?"),
    "one average for all": ("get(i, ", "get(0, ", "state[i]", "state[0]",
        "The second tensor gets the first one's averages. How many pairs of m and v are there?"),
    "averages not kept": (KEEP, "pass", "m and v begin at 0 in each call. Where are they kept?"),
    "uphill": ("-=", "+=", "Weights move with the gradient: the loss grows. Which sign?"),
    "a new tensor": ("p -=", "p = p -", "No weight has moved: p is a new tensor. What changes it in place?"),
})  # fmt: skip
also_adam = {
    "eps before the correction": (
        changed(twin_adam, ROOT, "v**0.5 / (1 - betas[1] ** t) ** 0.5 + eps / (1 - betas[1] ** t) ** 0.5"),
        "Yours adds eps before v is corrected, as TensorFlow does: for tiny gradients another step.",
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
    "L2 in the gradient": (SHRINK, "pass",
        "adam(params, grads,", "adam(params, [g + decay * p * (p.ndim >= 2) for p, g in zip(params, grads)],",
        "decay x weight goes through m and v, which divide it away. Where does AdamW put it?"),
    "L2 in every gradient": (SHRINK, "pass",
        "adam(params, grads,", "adam(params, [g + decay * p for p, g in zip(params, grads)],",
        "Two things: decay x weight is put into the gradient, and vectors have it, too."),
    "decay not times lr": ("lr * decay", "decay",
        "Each step takes a tenth of a weight away, however small lr is. What is decay multiplied by?"),
    "weights grow": ("1 - lr", "1 + lr", "Without a gradient weights should shrink. Yours grow."),
    "vectors decayed": (" if p.ndim >= 2 else 1.0", "",
        "Biases and gains of norms shrink, too. What tells them from matrices?"),
    "matrices left out": (">=", "<", "Vectors shrink and matrices do not. Which of them should?"),
    "nothing decayed": (SHRINK, "pass",
        "That is Adam: no weight of the caller shrinks by itself. Is decay there, and in place?"),
    "lr twice": ("lr * decay", "lr**2 * decay", "Your weights hardly shrink: how often is lr a factor?"),
    "the same for all": (SHRINK, "p -= lr * decay * (p.ndim >= 2) * p.sign()",
        "Each weight loses the same. A large one should lose more than a small one."),
    "decay twice": (ADAM, ADAM + "\n    for p in params: " + SHRINK,
        "A weight with no gradient loses twice what it should. How often does yours shrink?"),
})  # fmt: skip
also_adamw = {
    "decay after the step": (
        changed(twin_adamw, SHRINK, "pass", ADAM, ADAM + "\n    for p in params: " + SHRINK),
        "Yours shrinks what Adam has just added, too: a difference of lr squared, which nobody will notice.",
    ),
}


def shrinks(adamw, params, grads, state, rates, betas, eps, decay):
    """A weight of 2 whose gradient is 0."""
    weight = torch.full((2, 3), 2.0)
    adamw([weight], [torch.zeros(2, 3)], {}, 0.01, betas, eps, 0.1)
    found = weight[0, 0].item()
    return (
        ""
        if abs(found - 1.998) < 1e-4
        else f"lr 0.01, decay 0.1, no gradient: 2 becomes {found:.4f}, not 1.998"
    )


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
    g = torch.Generator().manual_seed(seed)
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
    "lowest of the curve": ("end = run(lr)[-last:]", "end = [min(run(lr))] * last",
        "A curve may dip and rise again. Which part of it says how good the run has become?"),
    "mean of the curve": ("run(lr)[-last:]", "run(lr)", MEAN, "sum(end) / len(end)",
        "The first steps count as much as the last. How many losses is the mean taken of?"),
    "last loss only": ("[-last:]", "[-1:] * last", "One batch is a guess. How many losses count?"),
    "first losses": ("[-last:]", "[:last]", "Those are the first losses. Which end of the list is meant?"),
    "first rate only": (RATE, "for lr in rates[name][:1]", "Each has but its first rate tried. And others?"),
    "largest rate only": (RATE, "for lr in [max(rates[name])]", "Each is raced at its largest rate only."),
    "best of the last": (MEAN, "min(end)", "The best of the last is luck. Which number stands for all?"),
    "nan not sorted out": (FINITE, "if True",
        "nan is neither less nor greater than anything: what does a sort do with it?"),
    "only nan sorted out": (FINITE, "if loss == loss", "One run ended at infinity. Is that a result?"),
    "worst first": ("sorted(found)", "sorted(found, reverse=True)", "That is the worst rate of each."),
    "not sorted by loss": ("best.values()", "best[name] for name in runs if name in best",
        "Rates and losses are right. In which order should the list be?"),
    "smallest rate wins": ("sorted(found)", "sorted(found, key=lambda r: r[2])",
        "Your list goes by rate. What does it mean for one to be best?"),
    "sum, not mean": (MEAN, "sum(end)", "Your losses are sums over the last ones. What is one loss of them?"),
})  # fmt: skip

exercises = {
    "16a": dict(
        name="momentum_step",
        reference=reference_momentum,
        project=build_optimizer,
        slow=twin_momentum,
        inputs=lambda seed: inputs_steps(seed, 0.9),
        call=steps_of,
        gradients=False,
        wrong=wrong_momentum,
        hints=[
            "What must be remembered from call to call, and for how many tensors?",
            "state[i] for tensor number i, 0 at first; a line for v, a line for p, in place.",
            "for each i: v = momentum * (old v or 0) + g, a new tensor; state[i] = v; p -= lr * v",
        ],
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
        hints=[
            "m and v begin at 0. By how much are they too small after one step, and after t?",
            "The state holds t, counted from 1, and for each tensor m and v as they are without a hat.",
            "m, v: averages of g and g^2; m / (1 - b1^t), v so too; p -= lr m_hat / (root v_hat + eps)",
        ],
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
        hints=[
            "Should the pull towards 0 be divided by the root of v, as the gradient is?",
            "Before Adam's step, each tensor of two axes or more is made smaller, in place.",
            "for p of 2 axes: p times (1 - lr * decay), in place; then adam_step as it is",
        ],
    ),
    "16d": dict(
        name="race",
        reference=reference_race,
        twin="the project races commands (techniques/sweep.py), not functions",
        inputs=inputs_race,
        gradients=False,
        wrong=wrong_race,
        hints=[
            "May one rate serve all, and may one lucky batch decide?",
            "Two loops, names and rates; means of the last losses; what is not finite is left out.",
            "best (name, rate, mean) of each name, then all of them sorted by the mean, smallest first",
        ],
    ),
}

predictions = {
    "16.1": dict(
        ask="length of Adam's first step for a gradient of 1000, with a learning rate of 0.001",
        answer=0.001,
        tol=0.0001,
        wrong={
            1.0: "1 is lr times g, which is SGD. Adam divides the gradient by its own size: 0.001.",
            0.00316: "0.00316 is lr times 0.1 / root of 0.001: with no correction. It is 0.001.",
            0.0316: "0.0316 is what comes out if only m is corrected. It is 0.001.",
            0.0001: "With only v corrected it would be 0.0001, a tenth; right is 0.001.",
        },
    ),
    "16.2": dict(
        ask="place of SGD, each at its best rate, among SGD, momentum, Adam and AdamW: 1 to 4",
        answer=4,
        tol=0.1,
        wrong={
            1: "SGD is first where all weights need one pace. In a transformer they do not: it is last, 4.",
            2: "Second would need Adam or momentum to lose. One pace for all weights is too little: 4.",
            3: "Momentum gathers what SGD forgets, so SGD is behind it, and behind both Adams: 4.",
        },
    ),
}
