"""What the grader knows about lesson 22: an epoch of windows, noise in the inputs, a decision over seeds."""

import random
import statistics
from types import SimpleNamespace

import numpy as np
import torch

from data import Windows
from lessons.common import changed, generator, mistakes
from techniques.significance import interval, t_quantile


# ---- 22a: one epoch
def reference_epoch(n_tokens, T, seed, epoch):
    shape = SimpleNamespace(n_tokens=n_tokens, block_size=T, seed=seed, pack=True, in_rows=False)
    shape.n_windows = -(-(n_tokens - 1) // T)
    order, offset = Windows._draw_epoch(shape, epoch)
    first = Windows._begin(shape, order, offset)[0].flatten().tolist()
    return [(max(start, 1), min(start + T, n_tokens)) for start in first]


def twin_epoch(n_tokens, T, seed, epoch):
    n_windows = (n_tokens - 1 + T - 1) // T
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(n_windows)
    offset = rng.integers(n_windows * T - (n_tokens - 1) + 1)
    windows = []
    for w in order:
        start = int(1 + w * T - offset)
        windows.append((max(1, start), min(start + T, n_tokens)))
    return windows


def inputs_epoch(seed):
    shapes = [(44, 13), (150, 32), (41, 10), (29, 9)]  # the third: 40 targets, and nothing to spare
    return [(n, T, seed + 10, epoch) for n, T in shapes for epoch in (3, 0, 4, 17)]


def every_token_once(epoch_of, n_tokens, T, seed, epoch):
    targets = [i for start, stop in epoch_of(n_tokens, T, seed, epoch) for i in range(start, stop)]
    missing, twice = {*range(1, n_tokens)} - {*targets}, len(targets) - len({*targets})
    if missing or twice:
        return f"of {n_tokens - 1} targets, {len(missing)} are never asked for and {twice} more than once"
    return ""


DRAW, MOVED = "rng = np.random.default_rng([seed, epoch])", "1 + w * T - offset"
LAST, FIRST = "min(start + T, n_tokens)", "max(1, start)"
APPEND = f"windows.append(({FIRST}, {LAST}))"
OFFSET, SHUFFLE = "rng.integers(n_windows * T - (n_tokens - 1) + 1)", "rng.permutation(n_windows)"
NOT_EPOCHS = mistakes(twin_epoch, {
    "fixed blocks": (MOVED, "1 + w * T"),
    "never shuffled": ("in order:", "in range(n_windows):"),
    "drawn with replacement": (SHUFFLE, "rng.integers(n_windows, size=n_windows)"),
    "epoch left out": ("[seed, epoch]", "[seed]"),
    "seed left out": ("[seed, epoch]", "[epoch]"),
    "seed plus epoch": ("[seed, epoch]", "seed + epoch"),
    "last window left out": ("(n_tokens - 1 + T - 1) // T", "(n_tokens - 1) // T", OFFSET, "rng.integers(T)"),
    "offset up to T": (OFFSET, "rng.integers(T)"),
    "largest offset never drawn": ("- (n_tokens - 1) + 1)", "- (n_tokens - 1) or 1)"),
    "moved the other way": (MOVED, "1 + w * T + offset"),
    "begins before the text": (FIRST, "start"),
    "ends behind the text": (LAST, "start + T"),
    "token 0 as target": (MOVED, "w * T - offset", FIRST, "max(0, start)"),
    "a start anywhere": (LAST, "start + T", MOVED, "rng.integers(1, n_tokens - T + 1)"),
    "short windows left out": ("return windows", "return [(a, b) for a, b in windows if b - a == T]"),
    "stop included": (LAST, "min(start + T, n_tokens) - 1"),
})  # fmt: skip


# ---- 22b: noise in the inputs
def reference_noisy(x, y, V, rate, seed, step, training):
    if not training:
        return x, y
    rng = np.random.default_rng([seed, step])
    places = torch.from_numpy(rng.random(x.shape) < rate)
    noise = torch.from_numpy(rng.integers(V, size=x.shape))
    return torch.where(places, noise, x), y


def inputs_noisy(seed):
    g = generator(seed)

    def batch(B, T, V):  # ids near 0 are frequent, as some letters are
        ids = (V * torch.rand(B, T + 1, generator=g) ** 3).long()
        return ids[:, :-1], ids[:, 1:].masked_fill(torch.rand(B, T, generator=g) < 0.1, -1), V

    first = batch(300, 80, 65)
    cases = [(first, 0.05, True), (batch(250, 90, 50), 0.2, True), (first, 0.05, False), (first, 0.0, True)]
    return [(*ids, rate, seed + 10, 7, training) for ids, rate, training in cases]


def near(found, expected, units):
    """Is a share as expected, within six standard deviations of so many draws?"""
    return abs(found - expected) <= 6 * (expected * (1 - expected) / units) ** 0.5 + 0.1 / units


def others_of(one, other, x):
    """Are two noisy versions of one x the same, or replaced at the same places?"""
    if torch.equal(one, other):
        return "the same" if (one != x).any() else "no noise in either"
    return "the same places" if ((one != x) & (other != x)).sum() > 0.6 * (one != x).sum() else "others"


def what_noise_does(noisy, x, y, V, rate, seed, step, training):
    """What it does to a large batch, in words: which draws a right answer makes is its own affair."""

    def called(seed=seed, step=step):
        found = noisy(x, y, V, rate, seed, step, training)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise TypeError("a pair (x, y) is expected back")
        if any(part.shape != x.shape or part.dtype != x.dtype for part in found):
            raise TypeError(f"x and y of shape {tuple(x.shape)}, int64, are expected back")
        return found

    was, generators = x.clone(), (torch.get_rng_state(), str(np.random.get_state()), random.getstate())
    noisy_x, noisy_y = (part.clone() for part in called())
    left = torch.equal(x, was)
    x.copy_(was)
    untouched = torch.equal(generators[0], torch.get_rng_state()) and generators[1:] == (
        str(np.random.get_state()), random.getstate())  # fmt: skip
    again, later, elsewhere, crossed, turned = (
        called(*at)[0].clone() for at in
        [(seed, step), (seed, step + 1), (seed + 1, step), (seed + 1, step + 2), (seed + 2, step + 1)]
    )  # fmt: skip
    hit = noisy_x != was  # (B, T)
    rows, columns = hit.float().mean(1).max() > 0.8, hit.float().mean(0).max() > 0.8
    units, share = len(x) if rows else x.size(1) if columns else x.numel(), hit.float().mean().item()
    drawn = noisy_x[hit].clamp(0, V).bincount(minlength=V + 1)
    known = {"as asked": rate, "all others": 1 - rate, "all": 1.0, "5 in 100": 0.05}
    names = [name for name, p in known.items() if near(share, p * (1 - 0.5 / V), units)]
    follows = torch.where(y[:, :-1] < 0, -1, noisy_x[:, 1:])
    return {
        "tokens replaced": "none" if not hit.any() else names[0] if names else "another share",
        "drawn for each": "row" if rows and not columns else "column" if columns and not rows else "token",
        "ids": "outside" if ((noisy_x < 0) | (noisy_x >= V)).any() else "inside",
        "noise": "none" if not hit.any() else "one id" if drawn.max() > 0.9 * drawn.sum()
        else "some more often" if drawn.max() > 0.06 * drawn.sum()
        else "not all ids" if (drawn[:V] == 0).any() else "all ids",
        "y": "as given" if torch.equal(noisy_y, y) else "the noisy x, one later"
        if torch.equal(noisy_y[:, :-1], follows) or torch.equal(noisy_y[:, :-1], noisy_x[:, 1:])
        else "changed",
        "the same call again": others_of(noisy_x, again, was),
        "the next step": others_of(noisy_x, later, was),
        "another seed": others_of(noisy_x, elsewhere, was),
        "seed + 1 and seed + 2, a step apart": others_of(crossed, turned, was),
        "random numbers of others": "as they were" if untouched else "moved",
        "x of the caller": "as it was" if left else "changed",
    }  # fmt: skip


def per(shape):
    """Noise drawn once for a row or a column, not for each token."""
    return changed(reference_noisy, "rng.random(x.shape)", f"rng.random({shape})",
                   "return torch.where(places,", "return torch.where(places.expand(x.shape),")  # fmt: skip


RNG, PLACES = "rng = np.random.default_rng([seed, step])", "rng.random(x.shape) < rate"
RETURN = "return torch.where(places, noise, x), y"
NOISE = "rng.integers(V, size=x.shape)"
NOT_NOISE = mistakes(reference_noisy, {
    "targets follow the noise": (RETURN, "x = torch.where(places, noise, x)\n"
        "    return x, torch.cat((torch.where(y[:, :-1] < 0, -1, x[:, 1:]), y[:, -1:]), 1)"),
    "targets replaced, too": (RETURN, "return torch.where(places, noise, x), torch.where(places, noise, y)"),
    "val replaced, too": ("if not training:", "if rate == 0:"),
    "same noise each step": ("[seed, step]", "[seed]"),
    "seed left out": ("[seed, step]", "[step]"),
    "another noise each call": (RNG, "rng = np.random.default_rng()"),
    "global generator drawn from": (RNG, "rng = np.random", "rng.integers", "rng.randint"),
    "global generator seeded": (RNG, "torch.manual_seed(step); " + RNG),
    "ids outside": (NOISE, "rng.integers(V + 1, size=x.shape)"),
    "last id never drawn": (NOISE, "rng.integers(V - 1, size=x.shape)"),
    "one id for all": (NOISE, "np.zeros(x.shape, dtype=np.int64)"),
    "a row at a time": ("rng.random(x.shape)", "rng.random((len(x), 1))"),
    "a column at a time": ("rng.random(x.shape)", "rng.random((1, x.size(1)))"),
    "rate turned around": ("< rate", ">= rate"),
    "rate not the argument": ("< rate", "< 0.05"),
    "everything replaced": (RETURN, "return noise, y"),
    "no noise": (RETURN, "return x, y"),
    "in place": (RETURN, "x[places] = noise[places]\n    return x, y"),
})  # fmt: skip


# ---- 22c: which one is better?
def reference_decide(plain, other, t):
    gains = [a - b for a, b in zip(plain, other, strict=True)]
    low, high = interval(gains)
    better = "other" if low > 0 else "plain" if high < 0 else "undecided"
    return dict(gain=sum(gains) / len(gains), low=low, high=high, better=better)


def twin_decide(plain, other, t):
    gains = [a - b for a, b in zip(plain, other, strict=True)]
    gain = sum(gains) / len(gains)
    spread = (sum((g - gain) ** 2 for g in gains) / (len(gains) - 1)) ** 0.5
    radius = t * spread / len(gains) ** 0.5
    better = "undecided"
    if gain - radius > 0:
        better = "other"
    if gain + radius < 0:
        better = "plain"
    return dict(gain=gain, low=gain - radius, high=gain + radius, better=better)


def inputs_decide(seed):
    rng = np.random.default_rng(seed)

    def case(n, gain, spread):
        plain = 2.6 + 0.2 * rng.random(n)  # seeds differ more than the two settings do
        noise = rng.random(n) + np.arange(n)  # never alike
        gains = gain + spread * (noise - noise.mean()) / noise.std()
        order = rng.permutation(n)
        return plain.tolist(), (plain - gains[order]).tolist(), t_quantile(0.95, n - 1)

    return [case(3, 0.05, 0.005), case(3, -0.05, 0.005), case(3, 0.02, 0.02), case(5, 0.03, 0.024),
            case(4, -0.01, 0.02), ([2.5, 2.25, 2.75], [2.5, 2.25, 2.75], 4.303)]  # fmt: skip


def inside(decide, plain, other, t):
    found = decide(plain, other, t)
    right = statistics.mean(plain) - statistics.mean(other)
    if abs(found["gain"] - right) > 1e-6:
        return f"the mean loss falls by {right:.4f}, and your gain is {found['gain']:.4f}"
    return "" if found["low"] <= right <= found["high"] else "the gain lies outside its own interval"


ROOT, BOTH = "radius = t *", "spread = (statistics.variance(plain) + statistics.variance(other)) ** 0.5\n    "
SPREAD, RADIUS = "/ (len(gains) - 1)", "t * spread / len(gains) ** 0.5"
GAIN = "gain = sum(gains) / len(gains)"
VERDICT = 'better = "undecided"\n    if gain - radius > 0:'
NOT_DECISIONS = mistakes(twin_decide, {
    "one seed": (GAIN, "gain = gains[0]"),
    "best of each": (GAIN, "gain = min(plain) - min(other)"),
    "middle one": (GAIN, "gain = statistics.median(gains)"),
    "largest gain": (GAIN, "gain = max(gains)"),
    "not in pairs": (ROOT, BOTH + ROOT),
    "pairs sorted": ("zip(plain, other", "zip(sorted(plain), sorted(other)"),
    "sign of the gain": ("a - b for", "b - a for"),
    "divided by n": (SPREAD, "/ len(gains)"),
    "variance for deviation": (") ** 0.5\n    radius", ")\n    radius"),
    "spread of single runs": (RADIUS, "t * spread"),
    "divided by n, again": (RADIUS, "t * spread / len(gains)"),
    "t left out": (RADIUS, "spread / len(gains) ** 0.5"),
    "1.96 for t": (RADIUS, "1.96 * spread / len(gains) ** 0.5"),
    "any gain decides": (VERDICT, 'better = "undecided"\n    radius = 0\n    if gain - radius > 0:'),
    "decided by the gain": ("if gain - radius > 0", "if gain > 0", "if gain + radius < 0", "if gain < 0"),
    "never plain": ('better = "plain"', "pass"),
})  # fmt: skip

exercises = {
    "22a": dict(name="epoch_of", reference=reference_epoch, project=Windows, slow=twin_epoch,
        inputs=inputs_epoch, properties=[every_token_once], wrong=NOT_EPOCHS, gradients=False,
        survivors={
            f"start = int({MOVED}) => start = {MOVED}": "a whole number of numpy's is one, too",
            f"{APPEND} => {APPEND.replace(FIRST, 'max(start, 1)')}": "the larger of two numbers",
            f"{APPEND} => {APPEND.replace(LAST, 'min(n_tokens, start + T)')}": "the smaller of two numbers",
        },
        ),
    "22b": dict(name="noisy", reference=reference_noisy, inputs=inputs_noisy, call=what_noise_does,
        survivors={"places = torch.from_numpy(rng.random(x.shape) < rate) => "
            "places = torch.from_numpy(rng.random(x.shape) <= rate)": "no draw is exactly the rate"},
        twin="techniques/augment.py rewrites whole windows; it has no noise of single tokens",
        gradients=False, wrong=NOT_NOISE,
        also={"ids of the batch": changed(reference_noisy, NOISE,
                "x.flatten().numpy()[rng.integers(x.numel(), size=x.shape)]"),
            "seed plus step": changed(reference_noisy, "[seed, step]", "seed + step")},
        ),
    "22c": dict(name="decide", reference=reference_decide, project=interval, slow=twin_decide,
        inputs=inputs_decide, properties=[inside], wrong=NOT_DECISIONS, gradients=False,
        ),
}  # fmt: skip

predictions = {
    "22.1": dict(answer=0.367, tol=0.005),
    "22.2": dict(answer=0.401, tol=0.004),
}
