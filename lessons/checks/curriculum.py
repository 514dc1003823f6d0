"""What the grader knows about lesson 35: easy windows first, and a comparison that is fair."""

from types import SimpleNamespace

import numpy as np
import torch

from lessons.common import generator, mistakes
from techniques.curriculum import nats_per_token
from techniques.significance import interval, t_quantile


# ---- 35a: how hard each window is, and in which order they are read
def window_batch(ids, T):
    """Windows as those of data.py, the last one filled up: numbers, offset -> x, y (B, T)."""

    def read(numbers, offset):
        filled = torch.cat((ids, torch.full((T,), -1)))
        rows = torch.stack([filled[T * i : T * i + T + 1] for i in numbers.tolist()])
        return rows[:, :-1].clamp(min=0), rows[:, 1:]

    return read


def reference_order(ids, cut, T, V, stages, seed):
    shape = dict(
        n_windows=-(-(cut - 1) // T), epoch=lambda number: (None, 0), tokens=SimpleNamespace(limit=V)
    )
    nats = nats_per_token(SimpleNamespace(**shape, window_batch=window_batch(ids[:cut], T)))
    rng, easiest = np.random.default_rng(seed), np.argsort(nats, kind="stable")
    pools = [easiest[: -(-len(nats) * stage // stages)] for stage in range(1, stages + 1)]
    return nats.tolist(), [i for pool in pools for i in rng.permutation(pool).tolist()]


def twin_order(ids, cut, T, V, stages, seed):
    ids = ids[:cut]
    counts = torch.ones(V, V)
    for a, b in zip(ids[:-1], ids[1:], strict=True):
        counts[a, b] += 1
    log_p = (counts / counts.sum(1, keepdim=True)).log()
    costs = -log_p[ids[:-1], ids[1:]]
    nats = [window.mean().item() for window in costs.split(T)]
    easiest = sorted(range(len(nats)), key=lambda i: nats[i])
    rng, order = np.random.default_rng(seed), []
    for stage in range(1, stages + 1):
        pool = easiest[: -(-len(nats) * stage // stages)]
        order += rng.permutation(pool).tolist()
    return nats, order


def inputs_order(seed):
    """Texts whose windows differ by so much that no rounding changes their order."""
    g = generator(seed)

    def case(n, cut, T, V, stages):
        while True:
            ids = (V * torch.rand(n, generator=g) ** 2).long()
            ids[cut:] = torch.randint(V, (n - cut,), generator=g)  # val is another text
            nats, _ = reference_order(ids, cut, T, V, stages, seed)
            if np.diff(sorted(nats)).min() > 1e-3:
                return ids, cut, T, V, stages, seed + 10

    return [case(110, 84, 7, 5, 3), case(70, 61, 5, 4, 2), case(90, 70, 8, 6, 4)]


def all_windows_at_the_end(order_of, ids, cut, T, V, stages, seed):
    nats, order = order_of(ids, cut, T, V, stages, seed)
    n = -(-(cut - 1) // T)
    missing = n - len({*order[-n:]})
    return f"the last {n} windows that are read should be all there are; {missing} are missing" * (
        missing > 0
    )


TRAIN, SORTED = "    ids = ids[:cut]\n", "sorted(range(len(nats)), key=lambda i: nats[i])"
POOL, ADD = "easiest[: -(-len(nats) * stage // stages)]", "order += rng.permutation(pool).tolist()"
PROBABILITY, MEAN = "counts / counts.sum(1, keepdim=True)", "window.mean().item()"
RNG, STAGES = "rng, order = np.random.default_rng(seed), []", "for stage in range(1, stages + 1):"
NOT_ORDERS = mistakes(twin_order, {
    "hardest first": (SORTED, SORTED.replace("nats[i])", "-nats[i])")),
    "in the order of text": (SORTED, "list(range(len(nats)))"),
    "val counted, too": (TRAIN, "", "costs = -", "ids = ids[:cut]\n    costs = -"),
    "val alone counted": (TRAIN, "    ids, train = ids[cut:], ids[:cut]\n", "costs = -",
        "ids = train\n    costs = -"),
    "val read, too": (TRAIN, ""),
    "not shuffled": (ADD, "order += pool"),
    "permuted from text order": (ADD, "order += rng.permutation(sorted(pool)).tolist()"),
    "all shuffled": (POOL, "rng.permutation(easiest)[: -(-len(nats) * stage // stages)]"),
    "only the new ones": (ADD, "order += rng.permutation([i for i in pool if i not in order]).tolist()"),
    "all windows never reached": (STAGES, "for stage in range(stages):"),
    "one stage": (STAGES, "for stage in [stages]:"),
    "rounded down": (POOL, "easiest[: len(nats) * stage // stages]"),
    "drawn with replacement": (ADD, "order += rng.choice(pool, len(pool)).tolist()"),
    "seeded for each stage": (RNG, "order = []", ADD, "order += np.random.default_rng(seed).permutation(pool)"
        ".tolist()"),
    "sum, not mean": (MEAN, "window.sum().item()"),
    "sum by T": (MEAN, "window.sum().item() / T"),
    "last window dropped": ("costs.split(T)]", "costs.split(T) if len(window) == T]"),
    "nothing added to counts": ("torch.ones(V, V)", "torch.zeros(V, V)"),
    "wrong axis": (PROBABILITY, "counts / counts.sum(0, keepdim=True)"),
    "of all pairs": (PROBABILITY, "counts / counts.sum()"),
    "single letters": (PROBABILITY, "(counts.sum(0) / counts.sum()).expand(V, V)"),
    "in bits": (".log()", ".log2()"),
})  # fmt: skip


# ---- 35b: a fair comparison
def reference_fair(plain, other, budget, t):
    ends = [
        {s: dict(run)[max(n for n, _ in run if n <= budget)] for s, run in a.items()} for a in (plain, other)
    ]
    gains = [ends[0][seed] - ends[1][seed] for seed in plain if seed in other]
    low, high = interval(gains)
    error = (high - low) / 2 / t_quantile(0.95, len(gains) - 1)
    better = "other" if low > 0 else "plain" if high < 0 else "undecided"
    return dict(gain=(low + high) / 2, errors=(low + high) / 2 / error, better=better)


def twin_fair(plain, other, budget, t):
    def at(run, budget):
        return [loss for tokens, loss in run if tokens <= budget][-1]

    gains = [at(plain[seed], budget) - at(other[seed], budget) for seed in plain if seed in other]
    n = len(gains)
    gain = sum(gains) / n
    spread = (sum((g - gain) ** 2 for g in gains) / (n - 1)) ** 0.5
    errors = gain / (spread / n**0.5)
    better = "undecided"
    if abs(errors) > t:
        better = "other" if gain > 0 else "plain"
    return dict(gain=gain, errors=errors, better=better)


def inputs_fair(seed):
    rng = np.random.default_rng(seed)

    def run(every, looks, end, budget):
        """A run with that loss at its last look within the budget; a lower one before, others behind."""
        last = budget // every
        losses = end + 0.06 * rng.random(looks) + 0.1
        losses[last - 2], losses[last - 1] = end - 0.02 - 0.06 * rng.random(), end
        losses[last:] = end - 0.1 * rng.random(looks - last)
        return [(every * (i + 1), float(loss)) for i, loss in enumerate(losses)]

    def case(seeds, gain, spread, budget=7000):
        n = len(seeds)
        noise = rng.random(n) + np.arange(n)
        gains = gain + spread * rng.permutation((noise - noise.mean()) / noise.std(ddof=1))
        ends = 2.4 + 0.2 * rng.random(n)
        plain = {s: run(1000, 9, float(end), budget) for s, end in zip(seeds, ends, strict=True)}
        other = {
            s: run(1600, 8, float(end - g), budget) for s, end, g in zip(seeds, ends, gains, strict=True)
        }
        other = {81: run(1600, 5, 2.3, budget)} | {s: other[s] for s in seeds[::-1]}
        return plain | {82: run(1000, 9, 2.9, budget)}, other, budget, t_quantile(0.95, n - 1)

    return [case((3, 1, 2), 0.04, 0.02), case((5, 4, 7), 0.05, 0.01), case((2, 9, 6), -0.05, 0.012),
            case((4, 1, 2, 8, 3), 0.03, 0.03), case((1, 3, 2, 5), -0.004, 0.03)]  # fmt: skip


def within_the_budget(fair, plain, other, budget, t):
    """What comes behind the budget does not matter."""
    cut = [{s: [one for one in run if one[0] <= budget] for s, run in arm.items()} for arm in (plain, other)]
    apart = abs(fair(*cut, budget, t)["gain"] - fair(plain, other, budget, t)["gain"])
    return f"what was trained beyond the budget moves your gain by {apart:.3f}" * (apart > 1e-6)


PLAIN, OTHER = "at(plain[seed], budget)", "at(other[seed], budget)"
GAINS, GAIN = f"[{PLAIN} - {OTHER} for seed in plain if seed in other]", "gain = sum(gains) / n"
SPREAD, ERRORS = "/ (n - 1)) ** 0.5", "errors = gain / (spread / n**0.5)"
BEST = "min(loss for tokens, loss in {}[seed]{})"
WINNER = "better = 'other' if gain > 0 else 'plain'"
NOT_FAIR = mistakes(twin_fair, {
    "last of each run": (PLAIN, "plain[seed][-1][1]", OTHER, "other[seed][-1][1]"),
    "as many looks": (OTHER, "other[seed][sum(n <= budget for n, _ in plain[seed]) - 1][1]"),
    "first behind the budget": (PLAIN, "[v for n, v in plain[seed] if n > budget][0]", OTHER,
        "[v for n, v in other[seed] if n > budget][0]"),
    "best of one arm": (OTHER, BEST.format("other", " if tokens <= budget")),
    "best of both": (PLAIN, BEST.format("plain", " if tokens <= budget"), OTHER,
        BEST.format("other", " if tokens <= budget")),
    "best at any time": (PLAIN, BEST.format("plain", ""), OTHER, BEST.format("other", "")),
    "mean of a run": (PLAIN, "sum(v for n, v in plain[seed] if n <= budget) / sum(n <= budget for n, _ in "
        "plain[seed])", OTHER, "sum(v for n, v in other[seed] if n <= budget) / sum(n <= budget for n, _ in "
        "other[seed])"),
    "one seed": (GAIN, "gain = gains[0]"),
    "best seed": (GAIN, "gain = max(gains)"),
    "pairs by place": (GAINS, "[at(a, budget) - at(b, budget) for a, b in "
        "zip(plain.values(), other.values())]"),
    "seeds without a partner": (GAIN, "gain = (sum(at(r, budget) for r in plain.values()) / len(plain)"
        " - sum(at(r, budget) for r in other.values()) / len(other))"),
    "not in pairs": (ERRORS, "one, two = (torch.tensor([at(arm[s], budget) for s in plain if s in other])"
        ".double().var() for arm in (plain, other))\n    errors = gain / ((one + two).item() / n) ** 0.5"),
    "sign of the gain": (GAINS, f"[{OTHER} - {PLAIN} for seed in plain if seed in other]"),
    "labels exchanged": ('"other" if gain > 0', '"other" if gain < 0'),
    "size of errors": ("errors=errors", "errors=abs(errors)"),
    "look at budget left out": ("tokens <= budget][-1]", "tokens < budget][-1]"),
    "divided by n": (SPREAD, "/ n) ** 0.5"),
    "deviation, not error": (ERRORS, "errors = gain / spread"),
    "2 for t": ("abs(errors) > t", "abs(errors) > 2"),
    "any gain decides": ("abs(errors) > t", "gain"),
    "never plain": ("abs(errors) > t", "errors > t"),
    "limit on the gain": ("abs(errors) > t", "abs(gain) > t"),
})  # fmt: skip

exercises = {
    "35a": dict(name="easy_first", reference=reference_order, project=nats_per_token, slow=twin_order,
        inputs=inputs_order, gradients=False, properties=[all_windows_at_the_end], wrong=NOT_ORDERS,
        survivors={f"{STAGES} => {STAGES.replace('(1', '(0')}": "a stage 0 has no windows"},
        ),
    "35b": dict(name="fair", reference=reference_fair, project=interval, slow=twin_fair,
        inputs=inputs_fair, gradients=False, properties=[within_the_budget], wrong=NOT_FAIR,
        survivors={"if abs(errors) > t: => if abs(errors) >= t:": "no quotient is exactly t",
            f"{WINNER} => {WINNER.replace('> 0', '>= 0')}": "a gain of 0 decides nothing"},
        ),
}  # fmt: skip

predictions = {
    "35.1": dict(answer=2.0, tol=2.0),
    "35.2": dict(answer=2.0, tol=0.05),
}
