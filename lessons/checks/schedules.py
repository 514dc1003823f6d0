"""What the grader knows about lesson 18: learning rates by the step, and the loop that uses them."""

import math

import torch

from lessons.common import changed, generator, mistakes
from optim import lr_at

UNUSED = dict(warmup_iters=0, lr_cooldown=0.5, lr_power=1.0, lr_step_iters=1, lr_gamma=1.0)


# ---- 18a: warm-up and cosine
def reference_cosine(step, peak, floor, warmup, end):
    given = dict(learning_rate=peak, min_lr=floor, warmup_iters=warmup, lr_decay_iters=end)
    return lr_at(step, **{**UNUSED, **given}, lr_schedule="cosine")


def twin_cosine(step, peak, floor, warmup, end):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step >= end:
        return floor
    share = (step - warmup) / (end - warmup)
    return floor + (peak - floor) * (1 + math.cos(math.pi * share)) / 2


def inputs_cosine(seed):
    """With a warm-up, without one, and with one that is as long as the run."""
    peak = 0.3 + seed % 7 / 10
    return [(30, peak, 0.02, 6, 23), (18, 2 * peak, 0.06, 0, 13), (12, peak, 0.05, 8, 8)]


def values_of(schedule, steps, *args):
    """The rates of all steps: a tensor if they are numbers, which is compared at once."""
    found = [schedule(step, *args) for step in range(steps)]
    numbers = all(isinstance(rate, (int, float)) for rate in found)
    return torch.tensor(found, dtype=torch.float64) if numbers else found


def starts_above_0(schedule, steps, *args):
    return "the first update has a rate of 0: it changes nothing" if schedule(0, *args) <= 0 else ""


def never_above_the_peak(schedule, steps, peak, floor, *rest):
    found = values_of(schedule, steps, peak, floor, *rest)
    step = max(range(steps), key=found.__getitem__)
    text = f"at step {step} the rate is {found[step]:.3g}, above its peak"
    return text if found[step] > 1.0001 * peak else ""


def bars(schedule, steps, peak, *args):
    """The rate of every second step, as a bar."""
    return [f"{step:2} {'#' * round(20 * schedule(step, peak, *args) / peak)}" for step in range(0, steps, 2)]


UP, END, SHARE = "peak * (step + 1) / (warmup + 1)", "if step >= end:", "(step - warmup) / (end - warmup)"
FALL = "floor + (peak - floor) * (1 + math.cos(math.pi * share)) / 2"
wrong_cosine = mistakes(twin_cosine, {
    "0 at step 0": (UP, "peak * step / warmup"),
    "no warm-up": ("step < warmup", "False"),
    "warm-up not subtracted": (SHARE, "step / end"),
    "the end not shortened": (SHARE, "(step - warmup) / end"),
    "twice pi": ("math.pi * share", "2 * math.pi * share"),
    "a quarter wave": ("(1 + math.cos(math.pi * share)) / 2", "math.cos(math.pi / 2 * share)"),
    "climbs again": (END, "if step > 1000 or end == warmup:"),
    "floor forgotten": (FALL, "peak * (1 + math.cos(math.pi * share)) / 2", "return floor", "return 0.0"),
    "a jump to the floor": (FALL, "peak * (1 + math.cos(math.pi * share)) / 2"),
    "floor on top": ("(peak - floor) *", "peak *"),
    "floor not added": ("floor + (peak", "(peak"),
    "not halved": (" / 2", ""),
    "upwards": ("1 + math.cos", "1 - math.cos"),
    "degrees": ("math.pi *", "180 *"),
    "a straight line": ("(1 + math.cos(math.pi * share)) / 2", "(1 - share)"),
    "warm-up from the floor": (UP, "floor + (peak - floor) * (step + 1) / (warmup + 1)"),
})  # fmt: skip
also_cosine = {
    "one step earlier": changed(twin_cosine, UP, "peak * (step + 1) / warmup"),
}


# ---- 18b: the others
def reference_other(kind, step, peak, floor, end, power, every, gamma):
    given = dict(learning_rate=peak, min_lr=floor, lr_decay_iters=end, lr_power=power)
    return lr_at(step, **{**UNUSED, **given, "lr_step_iters": every, "lr_gamma": gamma}, lr_schedule=kind)


def twin_other(kind, step, peak, floor, end, power, every, gamma):
    if kind == "constant":
        return peak
    if kind == "step":
        return max(floor, peak * gamma ** (step // every))
    left = max(0.0, 1 - step / end)
    if kind == "polynomial":
        left = left**power
    return floor + left * (peak - floor)


def inputs_other(seed):
    peak = 0.3 + seed % 7 / 10
    return [
        ("all", 22, peak, 0.15 * peak, 17, 2.5, 4, 0.6),
        ("all", 15, 3 * peak, 0.5 * peak, 12, 1.5, 5, 0.3),
    ]


def each_kind(schedule, kind, steps, *args):
    """The rates of each kind; a negative number to a broken power is complex in Python, and nan here."""

    def real(kind):
        def rate(step):
            found = schedule(kind, step, *args)
            return math.nan if isinstance(found, complex) else found

        return rate

    return {kind: values_of(real(kind), steps) for kind in ("constant", "linear", "step", "polynomial")}


CUT, LEFT = "gamma ** (step // every)", "max(0.0, 1 - step / end)"
wrong_other = mistakes(twin_other, {
    "cut at every step": (CUT, "gamma ** step"),
    "exponent not whole": ("step // every", "step / every"),
    "cut from 1": ("step // every", "(step + 1) // every"),
    "cut once": (CUT, "(gamma if step >= every else 1)"),
    "cuts add up": (CUT, "max(0, 1 - (1 - gamma) * (step // every))"),
    "no floor for step": ("max(floor, peak * gamma ** (step // every))", "peak * gamma ** (step // every)"),
    "step above the floor": ("max(floor, peak * gamma ** (step // every))",
        "floor + (peak - floor) * gamma ** (step // every)"),
    "divided by gamma": ("peak * gamma", "peak / gamma"),
    "below the floor": (LEFT, "1 - step / end"),
    "a step late": (LEFT, "max(0.0, 1 - step / (end + 1))"),
    "a step early": (LEFT, "max(0.0, 1 - step / (end - 1))"),
    "floor forgotten": ("floor + left * (peak - floor)", "left * peak"),
    "power outside the bracket": ("left = left**power", "return (floor + left * (peak - floor)) ** power"),
    "power of what is done": ("left**power", "1 - (1 - left) ** power"),
    "no power": ("left = left**power", "pass"),
    "times the power": ("left**power", "left * power"),
    "constant at the floor": ("return peak", "return floor"),
})  # fmt: skip


# ---- 18c: the loop
def reference_run(optimizer, backward, schedule, updates, micro):
    for step in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step) * group["lr_scale"]
        optimizer.zero_grad()
        for i in range(micro):
            backward(step * micro + i)
        optimizer.step()


def inputs_run(seed):
    g = generator(seed)
    return [(torch.randn(40, 2, 3, generator=g), torch.rand(60, generator=g) + 0.1, 5, 4, 0.7),
            (torch.randn(40, 2, 3, generator=g), torch.rand(60, generator=g) + 0.1, 3, 2, 0.2)]  # fmt: skip


def rates_of(run, gradients, rates, updates, micro, scale):
    """The rates at each update, the micro-batches in order, and the weights at the end."""
    weights, seen, batches = [torch.zeros(3, requires_grad=True) for _ in range(2)], [], []
    groups = [dict(params=[w], lr_scale=s) for w, s in zip(weights, (1.0, scale), strict=True)]
    optimizer = torch.optim.SGD(groups, lr=0.05)
    optimizer.register_step_pre_hook(
        lambda *_: seen.append([group["lr"] for group in optimizer.param_groups])
    )

    def backward(i):
        batches.append(i)
        for w, g in zip(weights, gradients[i], strict=True):
            (w * g).sum().backward()

    run(optimizer, backward, lambda step: rates[step].item(), updates, micro)
    return dict(rates=seen, batches=batches, weights=[w.detach() for w in weights])


SET, CLEAR, STEP = (
    'group["lr"] = schedule(step) * group["lr_scale"]',
    "optimizer.zero_grad()",
    "optimizer.step()",
)
GROUPS = "        for group in optimizer.param_groups:\n            " + SET + "\n"
wrong_run = mistakes(reference_run, {
    "first group only": ("optimizer.param_groups:", "optimizer.param_groups[:1]:"),
    "one rate for all": (' * group["lr_scale"]', ""),
    "set after the step": (GROUPS, "", STEP, STEP + "\n" + GROUPS),
    "micro-batches counted": ("schedule(step)", "schedule(step * micro)"),
    "counted from 1": ("schedule(step)", "schedule(step + 1)"),
    "never set": (GROUPS, ""),
    "set once": ("schedule(step)", "schedule(0)"),
    "factors pile up": (SET, 'group["lr"] = group["lr"] * schedule(step) * group["lr_scale"]'),
    "scale piles up": (SET,
        'group["lr_scale"] = schedule(step) * group["lr_scale"]\n'
        '            group["lr"] = group["lr_scale"]'),
    "update for each micro-batch": ("+ i)\n        ", "+ i)\n            "),
    "cleared for each": ("            backward", "            optimizer.zero_grad()\n            backward"),
    "never cleared": (CLEAR, "pass"),
    "the same micro-batches": ("step * micro + i", "i"),
    "no step": (STEP, "pass"),
})  # fmt: skip

exercises = {
    "18a": dict(
        name="cosine_lr",
        reference=reference_cosine,
        project=lr_at,
        slow=twin_cosine,
        inputs=inputs_cosine,
        call=values_of,
        gradients=False,
        picture=bars,
        properties=[starts_above_0, never_above_the_peak],
        wrong=wrong_cosine,
        also=also_cosine,
    ),
    "18b": dict(
        name="other_lr",
        reference=reference_other,
        project=lr_at,
        slow=twin_other,
        inputs=inputs_other,
        call=each_kind,
        gradients=False,
        wrong=wrong_other,
        survivors={
            "left = max(0.0, 1 - step / end) => left = max(1 - step / end, 0.0)": "the larger, in any order",
            "return max(floor, peak * gamma ** (step // every)) => "
            "return max(peak * gamma ** (step // every), floor)": "the larger of two, in any order",
        },
    ),
    "18c": dict(
        name="run",
        reference=reference_run,
        twin="train.py's loop is no function, so that it can be read from top to bottom",
        inputs=inputs_run,
        call=rates_of,
        gradients=False,
        numbers=lambda value, gradients, rates, updates, micro, scale: dict(micro=micro),
        wrong=wrong_run,
    ),
}

predictions = {
    "18.1": dict(answer=5.5e-4, tol=1e-5),
}
