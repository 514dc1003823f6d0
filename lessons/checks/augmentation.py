"""What the grader knows about lesson 22: an epoch of windows, noise in the inputs, a decision over seeds."""

import inspect
import random
import statistics
from types import SimpleNamespace

import numpy as np
import torch

from data import Windows
from techniques.significance import interval, t_quantile


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
    "fixed blocks": (MOVED, "1 + w * T", "Each token stands at the same place of its window in every epoch."),
    "never shuffled": ("in order:", "in range(n_windows):",
        "The windows come in the order of the text, epoch after epoch. Which step mixes them?"),
    "drawn with replacement": (SHUFFLE, "rng.integers(n_windows, size=n_windows)",
        "Some windows come twice, and more than a third not at all. What draws without putting back?"),
    "epoch left out": ("[seed, epoch]", "[seed]",
        "Two epochs are alike, cuts and order. What should the random numbers depend on, beside the seed?"),
    "seed left out": ("[seed, epoch]", "[epoch]", "Two seeds give one and the same run. Where is the seed?"),
    "seed plus epoch": ("[seed, epoch]", "seed + epoch",
        "Epoch 1 of seed 1 is epoch 0 of seed 2: sums meet. Hand both numbers to the generator."),
    "last window left out": ("(n_tokens - 1 + T - 1) // T", "(n_tokens - 1) // T", OFFSET, "rng.integers(T)",
        "The tokens at the end are never asked for. Is the number of windows rounded up?"),
    "offset up to T": (OFFSET, "rng.integers(T)",
        "The cuts can move further than there is room: how much is left over at offset 0?"),
    "largest offset never drawn": ("- (n_tokens - 1) + 1)", "- (n_tokens - 1) or 1)",
        "Of `spare` + 1 offsets you draw from the first `spare`. Does rng.integers(n) ever give n?"),
    "moved the other way": (MOVED, "1 + w * T + offset",
        "The first tokens are never asked for. Which way do the cuts move?"),
    "begins before the text": (FIRST, "start",
        "A window begins at a target that is not there. What is the first place that can be a target?"),
    "ends behind the text": (LAST, "start + T", "A window ends behind the text. How many targets are left?"),
    "token 0 as target": (MOVED, "w * T - offset", FIRST, "max(0, start)",
        "Your targets begin at place 0. What comes before it, to guess it from?"),
    "a start anywhere": (LAST, "start + T", MOVED, "rng.integers(1, n_tokens - T + 1)",
        "Each window begins anywhere: some targets come often, others never. An epoch has each once."),
    "short windows left out": ("return windows", "return [(a, b) for a, b in windows if b - a == T]",
        "The short windows at both ends are gone, and with them their tokens."),
    "stop included": (LAST, "min(start + T, n_tokens) - 1",
        "One target is missing between a window and the next. Does `stop` still belong to it?"),
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
    g = torch.Generator().manual_seed(seed)

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
        "    return x, torch.cat((torch.where(y[:, :-1] < 0, -1, x[:, 1:]), y[:, -1:]), 1)",
        "Your targets are the noise, one token later: nobody can guess that. Which ids should y hold?"),
    "targets replaced, too": (RETURN, "return torch.where(places, noise, x), torch.where(places, noise, y)",
        "Targets are drawn at random, too: the loss cannot fall below a floor. What should y be?"),
    "val replaced, too": ("if not training:", "if rate == 0:",
        "Noise without training: your val loss changes with the seed. When is x to stay as it is?"),
    "same noise each step": ("[seed, step]", "[seed]",
        "Two steps have their noise at the same places. What should it depend on, beside the seed?"),
    "seed left out": ("[seed, step]", "[step]", "Two seeds have the same noise. Where is the seed?"),
    "another noise each call": (RNG, "rng = np.random.default_rng()",
        "The same step, called again, has other noise: a resumed run would be another run."),
    "global generator drawn from": (RNG, "rng = np.random", "rng.integers", "rng.randint",
        "The noise comes from random numbers that everyone draws from. Who seeds them for a step?"),
    "global generator seeded": (RNG, "torch.manual_seed(step); " + RNG,
        "You seed a generator that others use: dropout, say. Can the noise have one of its own?"),
    "ids outside": (NOISE, "rng.integers(V + 1, size=x.shape)",
        "One of your ids has no row in the embedding table. What is the largest id of V?"),
    "last id never drawn": (NOISE, "rng.integers(V - 1, size=x.shape)",
        "One id is never drawn. What does the upper end of your draw mean: up to it, or below it?"),
    "one id for all": (NOISE, "np.zeros(x.shape, dtype=np.int64)",
        "What is replaced is always the same id. That is a blank, not noise."),
    "a row at a time": ("rng.random(x.shape)", "rng.random((len(x), 1))",
        "Whole texts become noise, and all others none. For what should be drawn?"),
    "a column at a time": ("rng.random(x.shape)", "rng.random((1, x.size(1)))",
        "All texts of the batch have their noise at the same places. For what should be drawn?"),
    "rate turned around": ("< rate", ">= rate", "Nearly all tokens are noise. Which way is the comparison?"),
    "rate not the argument": ("< rate", "< 0.05", "Right for one rate. Where is the argument?"),
    "everything replaced": (RETURN, "return noise, y", "Nothing is left of x. Which places are replaced?"),
    "no noise": (RETURN, "return x, y", "In training, too, x comes back as it is."),
    "in place": (RETURN, "x[places] = noise[places]\n    return x, y",
        "The caller's x was changed: val may be made of the same tensor. Work on a copy."),
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
    "one seed": (GAIN, "gain = gains[0]", "The first seed decides. What do the others say?"),
    "best of each": (GAIN, "gain = min(plain) - min(other)",
        "The luckiest run of each side is compared: more seeds, more luck. What is compared instead?"),
    "middle one": (GAIN, "gain = statistics.median(gains)", "This is the median, asked for is the mean."),
    "largest gain": (GAIN, "gain = max(gains)", "The seed that suits best decides. What about the others?"),
    "not in pairs": (ROOT, BOTH + ROOT,
        "Your interval holds what both sides of a seed have in common. What spreads less: losses, or gains?"),
    "pairs sorted": ("zip(plain, other", "zip(sorted(plain), sorted(other)",
        "Sorted, the losses of different seeds meet. What makes two runs a pair?"),
    "sign of the gain": ("a - b for", "b - a for", "Lower is better, and your gain grows with the loss."),
    "divided by n": (SPREAD, "/ len(gains)",
        "Your spread is too small for so few seeds: by how many is the sum of squares divided?"),
    "variance for deviation": (") ** 0.5\n    radius", ")\n    radius", "The spread is a root of squares."),
    "spread of single runs": (RADIUS, "t * spread",
        "That is how far single gains spread. The mean of n of them spreads less: by which factor?"),
    "divided by n, again": (RADIUS, "t * spread / len(gains)",
        "The mean of four gains spreads half as much as one, not a quarter."),
    "t left out": (RADIUS, "spread / len(gains) ** 0.5",
        "One standard error to each side leaves the truth out far too often. Where is t?"),
    "1.96 for t": (RADIUS, "1.96 * spread / len(gains) ** 0.5",
        "1.96 is for many seeds. With few, the spread itself is a guess: what does t say?"),
    "any gain decides": (VERDICT, 'better = "undecided"\n    radius = 0\n    if gain - radius > 0:',
        "low, gain and high are one number: nothing is ever undecided."),
    "decided by the gain": ("if gain - radius > 0", "if gain > 0", "if gain + radius < 0", "if gain < 0",
        "The interval is right, and yet luck is called a gain. When is it undecided?"),
    "never plain": ('better = "plain"', "pass", "What if the whole interval lies below 0?"),
})  # fmt: skip

exercises = {
    "22a": dict(name="epoch_of", reference=reference_epoch, project=Windows, slow=twin_epoch,
        inputs=inputs_epoch, properties=[every_token_once], wrong=NOT_EPOCHS, gradients=False,
        survivors={
            f"start = int({MOVED}) => start = {MOVED}": "a whole number of numpy's is one, too",
            f"{APPEND} => {APPEND.replace(FIRST, 'max(start, 1)')}": "the larger of two numbers",
            f"{APPEND} => {APPEND.replace(LAST, 'min(n_tokens, start + T)')}": "the smaller of two numbers",
        },
        hints=[
            "How many windows are needed so that each target is in one? How many targets too many have they?",
            "Both draws come from one generator, made of seed and epoch; then cut at both ends of the text.",
            "W = ceil((n-1)/T); order, offset; for w: a = 1 + w T - offset, (max(a, 1), min(a+T, n))"]),
    "22b": dict(name="noisy", reference=reference_noisy, inputs=inputs_noisy, call=what_noise_does,
        survivors={"places = torch.from_numpy(rng.random(x.shape) < rate) => "
            "places = torch.from_numpy(rng.random(x.shape) <= rate)": "no draw is exactly the rate"},
        twin="techniques/augment.py rewrites whole windows; it has no noise of single tokens",
        gradients=False, wrong=NOT_NOISE,
        also={"ids of the batch": (
                changed(reference_noisy, NOISE, "x.flatten().numpy()[rng.integers(x.numel(), size=x.shape)]"),
                "The noise is drawn as often as in the batch; asked was each id alike."),
            "seed plus step": (changed(reference_noisy, "[seed, step]", "seed + step"),
                "Seed 1 at step 2 has the noise of seed 2 at step 1: sums meet.")},
        hints=[
            "Which of x and y is what the model reads, and which is what it is asked?",
            "A generator of your own; for each token one draw says whether, another what.",
            "not training: as they are; places = uniform (B, T) < rate; random ids there, else x; y"]),
    "22c": dict(name="decide", reference=reference_decide, project=interval, slow=twin_decide,
        inputs=inputs_decide, properties=[inside], wrong=NOT_DECISIONS, gradients=False,
        hints=[
            "Two runs with the same seed share luck. What is left of it in the difference of their losses?",
            "Mean and standard deviation (n - 1) of the gains; the mean of n spreads less, by a root.",
            "gains a - b; radius = t * deviation / sqrt(n); decided if 0 is not within it"]),
}  # fmt: skip

predictions = {
    "22.1": dict(ask="share of 300 windows never seen, if 300 are drawn one by one and put back each time",
        answer=0.367, tol=0.005, wrong={
            0.0: "That is the case if none is put back; put back, some come twice and 0.367 never.",
            0.5: "A half would be a fair guess; each is missed with (1 - 1/300)^300, 0.367.",
            0.632: "0.632 is the share that is seen; 0.367 is not."}),
    "22.2": dict(ask="the lowest loss possible in nats, if one target of 65 letters in 20 is drawn at random",
        answer=0.401, tol=0.004, wrong={
            0.0: "Nobody can know a drawn letter; that costs 0.401 on average.",
            0.209: "0.05 x ln 65 knows which are drawn; not to know that costs, too: 0.401.",
            4.174: "ln 65 is the price if all are drawn; one in 20 costs 0.401."}),
}  # fmt: skip
