"""What the grader knows about lesson 19: a sweep over learning rates, and what to read from it."""

import copy
import inspect
import math

import torch
from torch import nn

from lessons.observe import leaves
from techniques.lr_finder import Sweep, averages_of, rates_between, suggested, sweep


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
    g = torch.Generator().manual_seed(seed)
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
        "losses": [float(loss) for loss in losses],
        "averages": [float(average) for average in averages],
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
    "linear spacing": (RATE, "lowest + (highest - lowest) * i / (updates - 1)",
        "The second rate is 10 to the {second:.1f} already. What is to be equal between neighbours?"),
    "one gap too many": ("(updates - 1)", "updates",
        "The last rate is not the highest. How many gaps have n rates?"),
    "first rate left out": ("(i / (", "((i + 1) / (",
        "The first rate is not the lowest. Which power belongs to i = 0?"),
    "no correction": (DIVIDED, "mean",
        "Your average begins at {first:.2f}, the loss at {loss:.2f}. What share of it is real after one "
        "loss?"),
    "begins at the first loss": (DIVIDED, "mean", MEAN, "loss if i == 0 else " + MEAN,
        "The average begins at the first loss, so that one weighs too much. Begin at 0, and divide."),
    "shares swapped": (MEAN, "(1 - smoothing) * mean + smoothing * loss",
        "Your average hardly remembers. Which share does it keep of itself?"),
    "corrected once too late": (DIVIDED, "mean / (1 - smoothing ** (i + 2))",
        "Your average begins at {first:.2f}, the loss at {loss:.2f}. How many losses are in the first "
        "average?"),
    "no stop": (STOP, "False", "{updates} updates were made: none of them stops. When has a loss exploded?"),
    "nan goes on": (STOP, "loss > too_high * min(averages)",
        "A nan does not stop you. Which comparisons hold for a nan?"),
    "stops at any rise": (STOP, "i and not loss <= losses[-2]",
        "You stop after {updates} updates, at the first loss above the one before. Is that an explosion?"),
    "the average has to explode": (STOP, "not averages[-1] <= too_high * min(averages)",
        "The average lags, and so does your stop. Which number explodes first?"),
    "the lowest loss as measure": (STOP, "not loss <= too_high * min(losses)",
        "One easy batch, and what follows seems to explode. Which number is less moved by chance?"),
    "the first loss as measure": (STOP, "not loss <= too_high * losses[0]",
        "You measure by the first loss. How far has the average come down since?"),
    "explosion left out": (STOP, STOP, "        rates.append(rate)\n        losses.append(loss)\n", "",
        "            break\n",
        "            averages.pop()\n            break\n        rates.append(rate)\n        "
        "losses.append(loss)\n",
        "The last loss is missing: the one that exploded is written down, too."),
    "weights not put back": (LOAD, "pass",
        "The real run begins with weights that exploded. Put back, but not from a copy? state_dict() is "
        "none."),
    "only parameters put back": ("copy.deepcopy(model.state_dict())",
        "[p.detach().clone() for p in model.parameters()]",
        LOAD, "[p.data.copy_(w) for p, w in zip(model.parameters(), weights)]",
        "Weights are back, but a module may hold more than parameters. What else is in state_dict()?"),
    "optimizer not put back": (STATE, "pass", "The optimizer remembers the explosion, and keeps its rate."),
    "optimizer's state not copied": ("copy.deepcopy(optimizer.state_dict())", "optimizer.state_dict()",
        "The optimizer's rate is back, its averages are not. Were they saved, and as a copy?"),
    "rate left at the end": (STATE,
        "[s.update(state['state'][i]) for i, s in enumerate(optimizer.state.values())]",
        "The averages are back, but the rate is that of the explosion."),
    "nothing put back": (LOAD, "pass", STATE, "pass", "    optimizer.zero_grad()\n", "",
        "torch.set_rng_state(dice)", "pass",
        "The curve is right. But the run that follows begins in the ruins: what was to be put back?"),
    "gradients left": ("    optimizer.zero_grad()\n", "",
        "The last gradient is still there. The next update would add to it."),
    "random numbers used up": ("torch.set_rng_state(dice)", "pass",
        "torch's random numbers have moved on: the next dropout mask is another than without you."),
    "the same batch each time": ("update(i, rate)", "update(0, rate)",
        "update(0, ...) is called each time: the same batch. What is the first argument for?"),
    "the same rate each time": ("update(i, rate)", "update(i, lowest)",
        "All updates are made at the lowest rate. Which number was to rise?"),
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
    g = torch.Generator().manual_seed(seed)
    at = torch.arange(50)
    level = 4.2 - 2.2 * torch.sigmoid((at - 25) / 3.0) + 3 * torch.sigmoid((at - 46) / 1.5)
    losses = (level + 0.06 * torch.rand(50, generator=g)).tolist()
    losses[20] = 1.7  # an easy batch
    losses[8] += 0.3  # a hard one
    losses[-1] = math.nan
    grow = lambda n: rates_between(1e-3, 30.0, n)  # noqa: E731
    ramp = lambda begin, end, n: torch.linspace(begin, end, n).tolist()  # noqa: E731
    few = [4.0, 4.02, 2.5, *ramp(3.9, 3.2, 10), 3.9, 90.0]
    chance = [4.0, 4.3, 3.8, 4.1, *ramp(4, 3.7, 45)]  # their deviation is 0.208
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
    "lowest average": (REACHED, "average <= end",
        "At its lowest the loss is about to explode. How much of the fall is enough?"),
    "lowest single loss": (REACHED, "average == averages[losses.index(min(losses))]",
        "One easy batch decides for you. What is the average for?"),
    "lowest divided by ten": (REACHED, "average <= end: return rate / 10\n        if False",
        "A tenth of the rate of the lowest average: a rule, but not this one. Where are 90 % done?"),
    "steepest fall": (REACHED,
        "average == min(zip([b - a for a, b in zip(averages, averages[1:])], averages))[1]",
        "There the loss falls fastest: another rule. Where are nine tenths of the fall done?"),
    "steepest rise": (REACHED,
        "average == max(zip([b - a for a, b in zip(averages, averages[1:]) if b == b], averages))[1]",
        "There the loss rises fastest: it explodes. Which sign has a slope that goes down?"),
    "the first jump": (REACHED, "losses[rates.index(rate) + 1] > losses[rates.index(rate)]",
        "The first loss above the one before is a hard batch. Which list is smooth?"),
    "where it explodes": (REACHED, "rate == rates[-1]", "The last rate is the one that exploded."),
    "single losses read": (LOOP, "for rate, average in zip(rates, losses, strict=True):",
        "A single loss may get there by chance. Which list should be compared?"),
    "one step too early": ("return rate\n", "return rates[rates.index(rate) - 1]\n",
        "The rate before the right one: at which index is the average at or below the line?"),
    "the last one below": (LOOP, "for rate, average in [*zip(rates, averages, strict=True)][::-1]:",
        "Many averages lie below that line. The last of them is next to the explosion."),
    "a tenth of the fall": ("0.9", "0.1", "Only a tenth of the fall is done there. How much should be?"),
    "half of the fall": ("0.9", "0.5", "Half of the fall is done there. How much should be?"),
    "share of the loss": ("average <= begin - 0.9 * (begin - end)", "average <= 0.1 * begin",
        "Nine tenths of the loss, or of its fall? It never falls to nothing."),
    "near the lowest": (REACHED, "average <= end / 0.9",
        "You ask for a tenth above the lowest. Nine tenths of what are to be done?"),
    "the end as lowest": (END, "averages[-1]",
        "The last average is that of the explosion. Where does the fall end?"),
    "begins at the highest": ("begin, end = averages[0]", "begin, end = max(a for a in averages if a == a)",
        "The highest average is that of the explosion. Where does the fall begin?"),
    "nan is the lowest": (END, "torch.tensor(averages).min().item()",
        "The minimum of a tensor with a nan in it is nan, and no average is below that."),
    "chance not asked": ("begin - end <= 2 * noise", "False",
        "Where nothing was learned you choose a rate, too. By how much do batches differ?"),
    "noise once": ("2 * noise", "noise", "Is the fall more than twice the noise, or more than the noise?"),
    "noise of all losses": (NOISE, "[x for x in losses if x == x]",
        "Most of your noise is the fall itself, and the explosion. Which losses were made before anything "
        "moved?"),
    "first two always": (NOISE, "losses[:2]",
        "Two losses are little to judge noise by. How many are a tenth?"),
    "divided by n": ("(len(first) - 1)", "len(first)", "Which deviation is it: divided by n, or by n - 1?"),
    "an index": ("return rate\n", "return rates.index(rate)\n",
        "That is the place in the list. Which rate stands there?"),
})  # fmt: skip


exercises = {
    "19a": dict(
        name="sweep", reference=reference_sweep, project=sweep, slow=twin_sweep, inputs=inputs_sweep,
        call=swept, gradients=False, wrong=NOT_SWEEPS, numbers=sweep_facts,
        forbidden=("rates_between", "averages_of"),
        hints=[
            "What would a run that follows notice of you? And what does an average know after one loss?",
            "Copies first; in the loop the rate, the update, the average, the stop; then all goes back.",
            "m = s m + (1 - s) loss; m / (1 - s^n); stop unless loss <= too_high x lowest; load both, rng, "
            "zero_grad",
        ],
    ),
    "19b": dict(
        name="choose", reference=reference_choose, project=suggested, slow=twin_choose, inputs=inputs_choose,
        gradients=False, wrong=NOT_CHOICES,
        survivors={MAX[0] + " => " + MAX[1]: "the larger of two, in any order"},
        hints=[
            "If the average begins at 4 and its lowest is 2, below which line are nine tenths of the fall "
            "done?",
            "First the noise: two losses at least, a tenth of all at most. Then the first average at the "
            "line.",
            "fall = begin - lowest; None if fall <= 2 noise; the first rate with average <= begin - 9/10 "
            "fall",
        ],
    ),
}  # fmt: skip

predictions = {
    "19.1": dict(
        ask="factor from one rate to the next: 100 rates from 1e-6 to 1, with equal ratios",
        answer=1.1498,
        tol=0.0005,
        wrong={
            1.1482: "1.1482 would be for 100 gaps; 100 rates have 99: 1.1498.",
            0.0101: "0.0101 is the step of equal differences; the equal ratio is 1.1498.",
            1000000.0: "A million is the factor from the first to the last; its 99th root is 1.1498.",
        },
    ),
}
