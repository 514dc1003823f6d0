"""What the grader knows about lesson 29: weights and FLOPs, a curve with a floor, a forecast, the entropy."""

import math

import numpy as np
import torch
from torch import nn

from lab.scaling import exponent, weights_of
from lessons.common import entropy, generator, mistakes, normal, whole


# ---- 29a: weights and operations
class Small(nn.Module):
    """A model in the form of GPT: token table, block, norm, head; it is never run."""

    def __init__(self, V, C, tied):
        super().__init__()
        self.wte = nn.Embedding(V, C)
        self.up, self.down = nn.Linear(C, 3 * C), nn.Linear(3 * C, C, bias=False)
        self.norm, self.head = nn.LayerNorm(C), nn.Linear(C, V, bias=False)
        self.register_buffer("mask", torch.zeros(7, 5))
        self.norm.bias.requires_grad_(False)
        if tied:
            self.head.weight = self.wte.weight


def reference_count(model, updates, rows, T):
    return weights_of(model), 6 * weights_of(model) * updates * rows * T


def twin_count(model, updates, rows, T):
    weights = 0
    for name, p in model.named_parameters():
        if name != "wte.weight":
            weights += p.numel()
    return weights, 6 * weights * updates * rows * T


def inputs_count(seed):
    sizes = torch.randint(3, 40, (3, 4), generator=generator(seed)).tolist()
    return [
        (Small(V + 7, V, tied), n, 2 * B + 3, T + 60)
        for (V, n, B, T), tied in zip(sizes, (0, 1, 1), strict=True)
    ]


def seen_of_count(count, *args):
    return tuple(whole(lambda part=part: part) for part in count(*args))


def a_row_more_costs_the_same(count, model, updates, rows, T):
    one, two = (count(model, updates, n, T)[1] for n in (rows, 2 * rows))
    return f"twice the rows cost {two / one:.2f} times as much" * (abs(two / one - 2) > 1e-6)


NAMED, OUT, FLOPS = "model.named_parameters()", 'name != "wte.weight"', "6 * weights * updates * rows * T"
SUM = "weights += p.numel()"
NOT_COUNT = mistakes(twin_count, {
    "embedding counted": (OUT, "True"),
    "tied head twice": (NAMED, "[*model.named_parameters(remove_duplicate=False)]"),
    "head left out": (OUT, 'name not in ("wte.weight", "head.weight")'),
    "buffers, too": (NAMED, "[*model.named_parameters(), *model.named_buffers()]"),
    "matrices alone": (OUT, 'name != "wte.weight" and p.dim() > 1'),
    "frozen ones left out": (OUT, 'name != "wte.weight" and p.requires_grad'),
    "tensors, not numbers": (SUM, "weights += 1"),
    "forward alone": (FLOPS, "2 * weights * updates * rows * T"),
    "backward alone": (FLOPS, "4 * weights * updates * rows * T"),
    "a product each": (FLOPS, "3 * weights * updates * rows * T"),
    "weights times letters": (FLOPS, "weights * updates * rows * T"),
    "steps for letters": (FLOPS, "6 * weights * updates"),
    "rows for letters": (FLOPS, "6 * weights * updates * rows"),
    "one update": (FLOPS, "6 * weights * rows * T"),
})  # fmt: skip


# ---- 29b: a power law with a floor
def reference_fit(N, D, L, floors):
    N, L, best = N[D == D.max()].numpy(), L[D == D.max()].numpy(), (math.inf,)
    for E in floors[floors < float(L.min())].tolist():
        a = -exponent(N, L - E)
        A = float(np.exp(np.mean(np.log(L - E)) + a * np.mean(np.log(N))))
        best = min(best, (float(np.sum(np.log(L / (E + A * N**-a)) ** 2)), E, A, a))
    return *best[1:], best[0]


def twin_fit(N, D, L, floors):
    used, best = D == D.max(), None
    N, L = N[used], L[used]
    for E in floors.tolist():
        if E < L.min():
            x, y = N.log(), (L - E).log()
            dx = x - x.mean()
            a = -(dx * y).sum() / (dx * dx).sum()
            A = (y.mean() + a * x.mean()).exp()
            error = (L.log() - (E + A * N**-a).log()).square().sum()
            if best is None or error < best[3]:
                best = E, A, a, error
    return tuple(float(part) for part in best)


fit = twin_fit  # as the student's file calls it


def made_up(seed, n, E, A, a, noise):
    """N, D, L of n runs with much data and n // 2 with little, (n + n // 2,) float64 each, mixed."""
    g = generator(seed)
    N = 10 ** (3 + 3.5 * torch.rand(n + n // 2, generator=g, dtype=torch.float64))
    little = torch.arange(len(N)) >= n
    D = torch.where(little, 3e5, 1.2e6).double()
    (z,) = normal(g, (len(N),))
    L = (E + little * 0.4 + A * N**-a) * (noise * z.double()).exp()
    order = torch.randperm(len(N), generator=g)
    return N[order], D[order], L[order]


def inputs_fit(seed):
    shapes = [
        (7, 0.5, 30.0, 0.4, 0.02),
        (9, 1.2, 4000.0, 0.8, 0.06),
        (8, 0.3, 900.0, 0.6, 0.1),
    ]
    runs = [made_up(seed + 10 * i, *shape) for i, shape in enumerate(shapes)]
    return [(N, D, L, grid(D, L)) for N, D, L in runs]


def grid(D, L):
    """Candidates in no order: the lowest loss itself, 0, some below it and some above."""
    low = L[D == D.max()].min()
    return torch.cat((low[None], low * torch.linspace(0, 1.3, 37, dtype=torch.float64)))


def a_curve_is_found(fit, N, D, L, floors):
    """Losses that lie on a curve: it is that curve."""
    N = torch.tensor([2e3, 9e3, 5e4, 3e5], dtype=torch.float64)
    found = fit(N, torch.full_like(N, 1e6), 0.7 + 50 * N**-0.5, torch.linspace(0, 1, 11, dtype=torch.float64))
    return "on 0.7 + 50 N^-0.5 your fit finds {:.3g}, {:.3g}, {:.3g}".format(*found) * (
        max(abs(found[0] - 0.7), abs(found[1] / 50 - 1), abs(found[2] - 0.5)) > 1e-3
    )


USED, BELOW, ERROR = "D == D.max()", "E < L.min()", "(L.log() - (E + A * N**-a).log()).square().sum()"
LOGS, SLOPE, HIGH = (
    "x, y = N.log(), (L - E).log()",
    "-(dx * y).sum() / (dx * dx).sum()",
    "(y.mean() + a * x.mean()).exp()",
)
BETTER, TOLD = "error < best[3]", "best = E, A, a, error"
NOT_FIT = mistakes(twin_fit, {
    "no floor": ("floors.tolist()", "[0.0]"),
    "errors in nats": (ERROR, "(L - E - A * N**-a).square().sum()"),
    "errors above the floor": (ERROR, "(y - y.mean() + a * dx).square().sum()"),
    "unequal training mixed in": (USED, "D == D"),
    "least text": (USED, "D == D.min()"),
    "nan wins": (BELOW, "True", BETTER, "not error >= best[3]"),
    "base ten": (LOGS, "x, y = N.log10(), (L - E).log10()"),
    "logarithm of A": (HIGH, "y.mean() + a * x.mean()", ERROR,
        "(L.log() - (E + A.exp() * N**-a).log()).square().sum()"),
    "sign of a": (TOLD, "best = E, A, -a, error"),
    "ends at a high floor": ("if E < L.min():", "if not E < L.min(): break\n        if True:"),
    "highest floor": (BETTER, "E > best[0]"),
    "worst floor": (BETTER, "error > best[3]"),
    "n against the loss": (SLOPE, "-((y - y.mean()) ** 2).sum() / (dx * y).sum()"),
    "weights without logarithm": (LOGS, "x, y = N, (L - E).log()", ERROR,
        "(L.log() - (E + A * (-a * N).exp()).log()).square().sum()"),
    "no line for A": (HIGH, "y.mean().exp()"),
    "largest error": (ERROR, "(L.log() - (E + A * N**-a).log()).abs().max()"),
})  # fmt: skip


# ---- 29c: a run that was not fitted
def reference_forecast(N, L, E, new, t):
    x, y = N.log(), (L - E).log()
    dx, away = x - x.mean(), math.log(new) - x.mean()
    slope = (dx * y).sum() / dx.square().sum()
    middle = y.mean() + slope * away
    s2 = (y - y.mean() - slope * dx).square().sum() / (len(N) - 2)
    radius = t * (s2 * (1 + 1 / len(N) + away**2 / dx.square().sum())).sqrt()
    return tuple(float(E + v.exp()) for v in (middle - radius, middle, middle + radius))


def inputs_forecast(seed):
    runs = [
        made_up(seed + 10 * i, n, E, A, a, 0.05)
        for i, (n, E, A, a) in enumerate(((5, 0.5, 60.0, 0.4), (8, 1.1, 400.0, 0.7)))
    ]
    return [
        (N, 1.5 * L + 0.1, 0.9 * E, new, t)
        for (N, _, L), E, new, t in zip(runs, (0.5, 1.1), (8e6, 2.5e4), (2.57, 2.2), strict=True)
    ]


def in_the_middle(forecast, N, L, E, new, t):
    found = forecast(N, L, E, new, t)
    said = "low, middle, high are {:.3f}, {:.3f}, {:.3f}; they have to rise, above the floor of {:.3f}"
    return said.format(*found, E) * (not E < found[0] < found[1] < found[2])


ROOM, S2, BACK = "1 + 1 / len(N) + away**2 / dx.square().sum()", "(len(N) - 2)", "float(E + v.exp())"
NOT_FORECAST = mistakes(reference_forecast, {
    "residuals alone": (f"({ROOM})", "1"),
    "the curve, no run": ("1 + 1 / len(N) +", "1 / len(N) +"),
    "as if in the middle": (" + away**2 / dx.square().sum()", ""),
    "error of a mean": (f"({ROOM})", "(1 / len(N))"),
    "divided by n": (S2, "len(N)"),
    "divided by n - 1": (S2, "(len(N) - 1)"),
    "floor not added": (BACK, "float(v.exp())"),
    "floor not taken off": ("(L - E).log()", "L.log()", BACK, "float(v.exp())"),
    "same in nats": ("(middle - radius, middle, middle + radius)", "(0, 0, 0)", BACK, "0.0",
        "return tuple", "m = E + float(middle.exp()); r = float(radius); return m - r, m, m + r\n    tuple"),
    "one deviation": ("t * (", "("),
    "variance for deviation": (".sqrt()", ""),
    "new weights without logarithm": ("math.log(new)", "new / N.mean()"),
    "high before low": ("middle - radius,", "middle + radius,", "middle + radius)", "middle - radius)"),
    "distance not squared": ("away**2", "away.abs()"),
    "mean of the losses": ("middle = y.mean() + slope * away", "middle = y.mean()"),
})  # fmt: skip


# ---- 29d: is the floor the entropy?
def reference_floor(runs, floors, t, play):
    N, D, L = runs["N"], runs["D"], runs["val"]
    n, lowest = (D == D.max()).sum().item(), L[D == D.max()].min()
    fits = [fit(N, D, L, E[None]) for E in floors if E < lowest]
    best = min(fits, key=lambda one: one[3])
    inside = [one[0] for one in fits if one[3] <= best[3] * (1 + t**2 / (n - 3))]
    return min(inside), best[0], max(inside), play["nats"] / play["tokens"]


def inputs_floor(seed):
    inputs = []
    for i, shape in enumerate(((10, 0.5, 30.0, 0.4, 0.02), (5, 1.2, 400.0, 0.6, 0.05))):
        N, D, L = made_up(seed + 10 * i, *shape)
        L[D.argmin()] = 0.6 * L.min()  # one of the runs with little text is the lowest, by some luck
        counts = torch.randint(20, 900, (9 + i,), generator=generator(seed + i))
        tokens = int(counts.sum())
        play = dict(nats=1.3217 * tokens, letters=3 * tokens + 17, tokens=tokens, counts=counts)
        floors = torch.cat(
            (
                torch.linspace(0, 1.2, 64, dtype=torch.float64) * L[D == D.max()].min(),
                L[D == D.max()].min()[None],
            )
        )
        train = L - 0.3 * shape[1] * (N / N.max()) ** 0.2
        inputs.append((dict(N=N, D=D, train=train, val=L), floors, (2.78, 3.1)[i], play))
    return inputs


def unigram(play):
    return entropy(play["counts"] / play["tokens"]).item()


BEST, INSIDE, EXACT = "best[0], max", "best[3] * (1 + t**2 / (n - 3))", 'play["nats"] / play["tokens"]'
NOT_FLOOR = mistakes(reference_floor, {
    "training loss fitted": ('runs["val"]', 'runs["train"]'),
    "per letter": (EXACT, 'play["nats"] / play["letters"]'),
    "unigram entropy": (EXACT, "unigram(play)"),
    "of the whole play": (EXACT, 'play["nats"]'),
    "bits": (EXACT, EXACT + " / math.log(2)"),
    "above the lowest loss": ("fit(N, D, L, E[None]) for E in floors if E < lowest",
        "fit(N[L > E], D[L > E], L[L > E], E[None]) for E in floors if (L > E).sum() > 3"),
    "all runs count": ("(D == D.max()).sum().item()", "len(D)"),
    "lowest loss of all runs": ("L[D == D.max()].min()", "L.min()"),
    "nothing counted as fitted": ("(n - 3)", "n"),
    "two fitted, not three": ("(n - 3)", "(n - 2)"),
    "t not squared": ("t**2", "t"),
    "no interval": (INSIDE, "best[3]"),
    "middle of the interval": (BEST, "(min(inside) + max(inside)) / 2, max"),
    "twice the error": (INSIDE, "2 * best[3]"),
    "outside for inside": ("one[3] <= best", "one[3] >= best"),
})  # fmt: skip

ALL = "n, lowest = ((D == D.max()).sum().item(), L[D == D.max()].min())"
IN = "inside = [one[0] for one in fits if one[3] <= best[3] * (1 + t ** 2 / (n - 3))]"

exercises = {
    "29a": dict(name="count", reference=reference_count, project=weights_of, slow=twin_count,
        inputs=inputs_count, call=seen_of_count, gradients=False,
        properties=[a_row_more_costs_the_same], wrong=NOT_COUNT,
        ),
    "29b": dict(name="fit", reference=reference_fit, project=exponent, slow=twin_fit, inputs=inputs_fit,
        gradients=False, properties=[a_curve_is_found], wrong=NOT_FIT,
        survivors={f"if best is None or {BETTER}: => if best is None or error <= best[3]:":
            "no two floors are equally good"},
        ),
    "29c": dict(name="forecast", reference=reference_forecast, inputs=inputs_forecast, gradients=False,
        twin="techniques/significance.py has Student's t; lab/scaling.py fits lines and does not forecast",
        properties=[in_the_middle], wrong=NOT_FORECAST,
        ),
    "29d": dict(name="floor_and_entropy", reference=reference_floor, inputs=inputs_floor, gradients=False,
        twin="lab/scaling.py takes the entropy as known: it fits no floor", needs=["29b"], wrong=NOT_FLOOR,
        survivors={f"{ALL} => {ALL.replace('.item()', '')}": "a tensor counts as well",
            f"{IN} => {IN.replace('<=', '<')}": "no floor lies on the limit"},
        ),
}  # fmt: skip

predictions = {
    "29.1": dict(answer=120.0, tol=2.0),
}
