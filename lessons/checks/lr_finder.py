"""What the grader knows about lesson 19: a sweep over learning rates, and what to read from it."""

import copy
import math

import torch
from torch import nn

from lessons.common import floats, generator, mistakes
from lessons.observe import leaves
from techniques.lr_finder import Sweep, averages_of, rates_between, suggested, sweep


# ---- 19a: the losses are scripted, the updates are real
def reference_sweep(model, optimizer, update, lowest, highest, updates, smoothing, too_high):
    rates = rates_between(lowest, highest, updates)
    return sweep(model, optimizer, update, rates, smoothing, too_high)[:3]


def twin_sweep(model, optimizer, update, lowest, highest, updates, smoothing, too_high):
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    dice = torch.get_rng_state()
    rates, losses, averages, mean = [], [], [], 0.0
    for i in range(updates):
        rate = lowest * (highest / lowest) ** (i / (updates - 1))
        loss = update(i, rate)
        mean = smoothing * mean + (1 - smoothing) * loss
        rates.append(rate)
        losses.append(loss)
        averages.append(mean / (1 - smoothing ** (i + 1)))
        if not loss <= too_high * min(averages):
            break
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    optimizer.zero_grad()
    torch.set_rng_state(dice)
    return rates, losses, averages


def inputs_sweep(seed):
    g = generator(seed)
    falling = (4 - torch.linspace(0, 1.4, 32) + 0.1 * torch.rand(32, generator=g)).tolist()
    falling[14] = 5.5  # a hard batch: no explosion
    falling[18], falling[19] = 1.5, 4.3  # an easy one: what follows is far above it, not above the average
    falling[25], falling[26] = 9.2, 2.2  # the explosion, and a loss that looks well again
    falling[29] = 12.0  # who did not stop at 9.2
    broken = [*falling[:12], math.nan, *falling[12:15]]
    constant = [2.0] * 10 + [4.0] + [2.0] * 3  # 4 is not more than twice 2
    return [
        (falling, 1e-5, 3.0, 32, 0.8, 2.5),
        (broken, 1e-3, 10.0, 16, 0.9, 2.0),
        (constant, 1e-2, 7.0, 14, 0.5, 2.0),
    ]


def swept(sweep, script, lowest, highest, updates, smoothing, too_high):
    """What a sweep returns, what it asks for, and what it leaves behind; in the middle of a run."""
    g, asked = torch.Generator().manual_seed(0), []
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))  # (running means are buffers)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)

    def update(i, rate):
        asked.append((i, math.log10(rate)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if i < 3:  # a few are enough to leave a trace
            model(torch.randn(5, 3)).pow(3).sum().backward()
            optimizer.step()
        return script[i]

    update(0, 0.02), update(1, 0.02)
    asked.clear()
    parts = lambda: [  # noqa: E731
        *model.parameters(), *model.buffers(), *leaves(optimizer.state_dict()["state"]), torch.get_rng_state()
    ]  # fmt: skip
    before = copy.deepcopy(parts())
    rates, losses, averages = sweep(model, optimizer, update, lowest, highest, updates, smoothing, too_high)
    equal = [torch.equal(*pair) for pair in zip(before, parts(), strict=True)]
    return {
        "batches asked for": " ".join(str(i) for i, _ in asked),
        "rates asked for, in powers of ten": [power for _, power in asked],
        "rates, in powers of ten": [math.log10(rate) for rate in rates],
        "losses": floats(losses),
        "averages": floats(averages),
        "weights are back": all(equal[:4]),
        "buffers are back": all(equal[4:7]),
        "the optimizer's averages are back": all(equal[7:-1]),
        "the optimizer's rate is back": optimizer.param_groups[0]["lr"] == 0.02,
        "random numbers are back": equal[-1],
        "gradients are gone": all(p.grad is None or not p.grad.any() for p in model.parameters()),
    }


def sweep_facts(value, script, *rest):
    second = [*value["rates, in powers of ten"], math.nan][1]
    return dict(updates=len(value["losses"]), first=value["averages"][0], loss=script[0], second=second)


RATE, MEAN = "lowest * (highest / lowest) ** (i / (updates - 1))", "smoothing * mean + (1 - smoothing) * loss"
STOP, DIVIDED = "not loss <= too_high * min(averages)", "mean / (1 - smoothing ** (i + 1))"
LOAD, STATE = "model.load_state_dict(weights)", "optimizer.load_state_dict(state)"
NOT_SWEEPS = mistakes(twin_sweep, {
    "linear spacing": (RATE, "lowest + (highest - lowest) * i / (updates - 1)"),
    "one gap too many": ("(updates - 1)", "updates"),
    "first rate left out": ("(i / (", "((i + 1) / ("),
    "no correction": (DIVIDED, "mean"),
    "begins at the first loss": (DIVIDED, "mean", MEAN, "loss if i == 0 else " + MEAN),
    "shares swapped": (MEAN, "(1 - smoothing) * mean + smoothing * loss"),
    "corrected once too late": (DIVIDED, "mean / (1 - smoothing ** (i + 2))"),
    "no stop": (STOP, "False"),
    "nan goes on": (STOP, "loss > too_high * min(averages)"),
    "stops at any rise": (STOP, "i and not loss <= losses[-2]"),
    "the average has to explode": (STOP, "not averages[-1] <= too_high * min(averages)"),
    "the lowest loss as measure": (STOP, "not loss <= too_high * min(losses)"),
    "the first loss as measure": (STOP, "not loss <= too_high * losses[0]"),
    "explosion left out": (STOP, STOP, "        rates.append(rate)\n        losses.append(loss)\n", "",
        "            break\n", "            averages.pop()\n            break\n        rates.append(rate)\n"
        "        losses.append(loss)\n"),
    "weights not put back": (LOAD, "pass"),
    "only parameters put back": ("copy.deepcopy(model.state_dict())",
        "[p.detach().clone() for p in model.parameters()]", LOAD,
        "[p.data.copy_(w) for p, w in zip(model.parameters(), weights)]"),
    "optimizer not put back": (STATE, "pass"),
    "optimizer's state not copied": ("copy.deepcopy(optimizer.state_dict())", "optimizer.state_dict()"),
    "rate left at the end": (STATE,
        "[s.update(state['state'][i]) for i, s in enumerate(optimizer.state.values())]"),
    "nothing put back": (LOAD, "pass", STATE, "pass", "    optimizer.zero_grad()\n", "",
        "torch.set_rng_state(dice)", "pass"),
    "gradients left": ("    optimizer.zero_grad()\n", ""),
    "random numbers used up": ("torch.set_rng_state(dice)", "pass"),
    "the same batch each time": ("update(i, rate)", "update(0, rate)"),
    "the same rate each time": ("update(i, rate)", "update(i, lowest)"),
})  # fmt: skip


# ---- 19b: one of the rates
def reference_choose(rates, losses, averages):
    try:
        return suggested(Sweep(rates, losses, averages, True))
    except ValueError:
        return None


def twin_choose(rates, losses, averages):
    begin, end = averages[0], min(averages)
    first = losses[: max(2, len(losses) // 10)]
    mean = sum(first) / len(first)
    noise = (sum((loss - mean) ** 2 for loss in first) / (len(first) - 1)) ** 0.5
    if begin - end <= 2 * noise:
        return None
    for rate, average in zip(rates, averages, strict=True):
        if average <= begin - 0.9 * (begin - end):
            return rate


def inputs_choose(seed):
    g = generator(seed)
    at = torch.arange(50)
    level = 4.2 - 2.2 * torch.sigmoid((at - 25) / 3.0) + 3 * torch.sigmoid((at - 46) / 1.5)
    losses = (level + 0.06 * torch.rand(50, generator=g)).tolist()
    losses[20] = 1.7  # an easy batch
    losses[8] += 0.3  # a hard one
    losses[-1] = math.nan
    grow = lambda n: rates_between(1e-3, 30.0, n)  # noqa: E731
    ramp = lambda begin, end, n: torch.linspace(begin, end, n).tolist()  # noqa: E731
    few = [4.0, 4.02, 2.5, *ramp(3.9, 3.2, 10), 3.9, 90.0]
    chance = [4.0, 4.3, 3.8, 4.1, 5.0, *ramp(4, 3.7, 44)]  # a deviation of 0.208: a tenth of 49 is four
    exactly = [10.0, 9.5, 9.0, 4.0, 1.0, 0.5, 0.25, 0.0, 0.25, 3.0, 9.0]  # 10 - 9 / 10 of 10 is 1
    twice = [1.0, 2.0, 3.0, *ramp(2, 1, 28)]  # a deviation of exactly 1
    return [
        (grow(50), losses, averages_of(losses, 0.8)),
        (grow(15), few, [*ramp(4.0, 3.2, 12), 3.3, 3.5, 9.0]),
        *((grow(49), chance, ramp(4.0, 4.0 - fall, 49)) for fall in (0.1, 0.3, 0.4, 0.45)),
        (grow(11), [10.0, 10.1, *exactly[2:]], exactly),
        (grow(31), twice, ramp(3.0, 1.0, 31)),
    ]


MAX = [f"first = losses[:max({pair})]" for pair in ("2, len(losses) // 10", "len(losses) // 10, 2")]
END, NOISE = "min(averages)", "losses[: max(2, len(losses) // 10)]"
REACHED, LOOP = (
    "average <= begin - 0.9 * (begin - end)",
    "for rate, average in zip(rates, averages, strict=True):",
)
NOT_CHOICES = mistakes(twin_choose, {
    "lowest average": (REACHED, "average <= end"),
    "lowest single loss": (REACHED, "average == averages[losses.index(min(losses))]"),
    "lowest divided by ten": (REACHED, "average <= end: return rate / 10\n        if False"),
    "steepest fall": (REACHED,
        "average == min(zip([b - a for a, b in zip(averages, averages[1:])], averages))[1]"),
    "steepest rise": (REACHED,
        "average == max(zip([b - a for a, b in zip(averages, averages[1:]) if b == b], averages))[1]"),
    "the first jump": (REACHED, "losses[rates.index(rate) + 1] > losses[rates.index(rate)]"),
    "where it explodes": (REACHED, "rate == rates[-1]"),
    "single losses read": (LOOP, "for rate, average in zip(rates, losses, strict=True):"),
    "one step too early": ("return rate\n", "return rates[rates.index(rate) - 1]\n"),
    "the last one below": (LOOP, "for rate, average in [*zip(rates, averages, strict=True)][::-1]:"),
    "a tenth of the fall": ("0.9", "0.1"),
    "half of the fall": ("0.9", "0.5"),
    "share of the loss": ("average <= begin - 0.9 * (begin - end)", "average <= 0.1 * begin"),
    "near the lowest": (REACHED, "average <= end / 0.9"),
    "the end as lowest": (END, "averages[-1]"),
    "begins at the highest": ("begin, end = averages[0]", "begin, end = max(a for a in averages if a == a)"),
    "nan is the lowest": (END, "torch.tensor(averages).min().item()"),
    "chance not asked": ("begin - end <= 2 * noise", "False"),
    "noise once": ("2 * noise", "noise"),
    "noise of all losses": (NOISE, "[x for x in losses if x == x]"),
    "first two always": (NOISE, "losses[:2]"),
    "a tenth rounded up": (NOISE, "losses[: max(2, -(-len(losses) // 10))]"),
    "divided by n": ("(len(first) - 1)", "len(first)"),
    "an index": ("return rate\n", "return rates.index(rate)\n"),
})  # fmt: skip


exercises = {
    "19a": dict(
        name="sweep", reference=reference_sweep, project=sweep, slow=twin_sweep, inputs=inputs_sweep,
        call=swept, gradients=False, wrong=NOT_SWEEPS, numbers=sweep_facts,
        forbidden=("rates_between", "averages_of"),
    ),
    "19b": dict(
        name="choose", reference=reference_choose, project=suggested, slow=twin_choose, inputs=inputs_choose,
        gradients=False, wrong=NOT_CHOICES,
        survivors={MAX[0] + " => " + MAX[1]: "the larger of two, in any order"},
    ),
}  # fmt: skip

predictions = {
    "19.1": dict(answer=1.1498, tol=0.0005),
}
