"""What the grader knows about lesson 39: stages, the share of time they idle, gradients, orders of work."""

import torch
import torch.nn.functional as F
from torch import nn

from lessons.common import fill, floats, generator, mistakes
from lessons.ranks import together

V, C = 11, 6


# ---- 39a: the bubble
def reference_bubble(stages, micro_batches):
    return (stages - 1) / (micro_batches + stages - 1)


def inputs_bubble(seed):
    return [(4, 8), (3, 5), (8, 32), (2, 3), (7, 2), (1, 6)]


def between_nothing_and_all(bubble, stages, micro_batches):
    found = bubble(stages, micro_batches)
    return f"{found:.3g} is no share of the time: it lies between 0 and 1" * (not 0 <= found < 1)


def one_stage_never_waits(bubble, *_):
    found = bubble(1, 5)
    return f"one stage alone never waits, and yours idles {found:.3g} of the time" * (found != 0)


BUBBLE = "(stages - 1) / (micro_batches + stages - 1)"
NOT_BUBBLES = mistakes(reference_bubble, {
    "idle over busy": (BUBBLE, "(stages - 1) / micro_batches"),
    "one stage too many": (BUBBLE, "stages / (micro_batches + stages)"),
    "busy share": (BUBBLE, "micro_batches / (micro_batches + stages - 1)"),
    "one step too long": (BUBBLE, "(stages - 1) / (micro_batches + stages)"),
    "number of idle steps": (BUBBLE, "float(stages - 1)"),
    "in percent": (BUBBLE, "100 * " + BUBBLE),
    "filled, never emptied": (BUBBLE, "(stages - 1) / 2 / (micro_batches + (stages - 1) / 2)"),
    "both passes, counted twice": (BUBBLE, "2 * (stages - 1) / (micro_batches + 2 * (stages - 1))"),
    "share of one micro-batch": (BUBBLE, "(stages - 1) / (micro_batches * stages)"),
    "no micro-batches": (BUBBLE, "(stages - 1) / stages"),
})  # fmt: skip


# ---- 39b: the gradients of one device
class Stage(nn.Module):
    """The rank's part of a small model. `tied`: the embedding, which the last stage has a copy of as head."""

    def __init__(self, rank: int, stages: int, seed: int):
        super().__init__()
        self.first, self.last, self.tied = rank == 0, rank == stages - 1, None
        self.layer = fill(nn.Linear(C, C), generator(seed + rank))
        if self.first or self.last:
            self.tied = nn.Parameter(torch.randn(V, C, generator=generator(seed - 1)))

    def forward(self, x):
        if self.first:
            x = self.tied[x]
        x = x + torch.tanh(self.layer(x))
        return x @ self.tied.T if self.last else x


def reference_stage(stage, batches, width, dist):
    rank, last, kept, told = dist.get_rank(), dist.get_world_size() - 1, [], 0.0
    for x, y in batches:
        if rank > 0:
            x = torch.empty(*x.shape, width)
            dist.recv(x, rank - 1)
            x.requires_grad_()
        out = stage(x)
        if rank < last:
            dist.send(out.detach(), rank + 1)
        else:
            out = F.cross_entropy(out.flatten(0, 1), y.flatten()) / len(batches)
            told += out.item()
        kept.append((x, out))
    for x, out in kept:
        gradient = torch.ones_like(out)
        if rank < last:
            dist.recv(gradient, rank + 1)
        out.backward(gradient)
        if rank > 0:
            dist.send(x.grad, rank - 1)
    if rank == 0:
        dist.send(stage.tied.grad, last)
        dist.recv(stage.tied.grad, last)
    elif rank == last:
        other = torch.empty_like(stage.tied.grad)
        dist.recv(other, 0)
        stage.tied.grad += other
        dist.send(stage.tied.grad, 0)
    return told


def inputs_stage(seed):
    return [(3, 4, seed + 10), (2, 3, seed + 20), (4, 2, seed + 30)]


def data_of(m, seed):
    ids = torch.randint(V, (m, 2, 6), generator=generator(seed))
    return [(part[:, :-1], part[:, 1:]) for part in ids]


def seen_of_stage(run, stages, m, seed):
    """Of each rank: gradients, what it tells, and whether the stages can work at the same time."""

    def one_rank(dist):
        stage, passes = Stage(dist.get_rank(), stages, seed), []

        def passed(module, args, out):
            passes.append("F")
            out.register_hook(lambda gradient: passes.append("B"))

        stage.register_forward_hook(passed)
        (told,) = floats([run(stage, data_of(m, seed), C, dist)])
        before = passes.index("B") if "B" in passes else m
        return {"gradients": {name: torch.zeros_like(p) if p.grad is None else p.grad
                              for name, p in stage.named_parameters()},
                "loss": told, "forward passes": passes.count("F"),
                "filled": dist.get_rank() > 0 or before >= min(stages, m)}  # fmt: skip

    return together(stages, one_rank)


def as_one_device(run, stages, m, seed):
    """The gradients of all stages one after the other, on the whole batch."""
    parts = [Stage(rank, stages, seed) for rank in range(stages)]
    parts[-1].tied = parts[0].tied
    x, y = (torch.cat(part) for part in zip(*data_of(m, seed), strict=True))
    for part in parts:
        x = part(x)
    F.cross_entropy(x.flatten(0, 1), y.flatten()).backward()
    for rank, (one, part) in enumerate(zip(seen_of_stage(run, stages, m, seed), parts, strict=True)):
        apart = {name: (one["gradients"][name] - p.grad).norm() / p.grad.norm()
                 for name, p in part.named_parameters()}  # fmt: skip
        if off := [f"{name} {share:.0%}" for name, share in apart.items() if share > 1e-4]:
            return f"rank {rank}: off the gradient of one device are {', '.join(off)}"
    return ""


DIVIDED, KEPT, GRADIENT = " / len(batches)\n", "for x, out in kept:", "out.backward(gradient)"
BACK = "        dist.recv(stage.tied.grad, last)\n"
LAST_BACK = "        dist.send(stage.tied.grad, 0)\n"
NOT_STAGES = mistakes(reference_stage, {
    "not divided": (DIVIDED, "\n", "out.item()", "out.item() / len(batches)"),
    "divided twice": (DIVIDED, " / len(batches)**2\n", "out.item()", "out.item() * len(batches)"),
    "divided on each stage": (GRADIENT, "out.backward(gradient / len(batches) if rank < last else gradient)"),
    "sum of losses told": ("out.item()", "out.item() * len(batches)"),
    "last loss told": ("told += out.item()", "told = out.item() * len(batches)"),
    "taken in another order": (KEPT, "for x, out in kept if rank < last else kept[::-1]:"),
    "tied gradients not summed": ("if rank == 0:", "if last < 0:", "elif rank == last:", "elif last < 0:"),
    "tied sum on one stage": (BACK, "", LAST_BACK, ""),
    "tied gradients averaged": ("stage.tied.grad += other", "stage.tied.grad += other; stage.tied.grad /= 2"),
    "all_reduce by two ranks": ("    if rank == 0:\n",
        "    if rank in (0, last):\n        dist.all_reduce(stage.tied.grad)\n    if last < 0:\n",
        "elif rank == last:", "elif last < 0:"),
    "both send first": ("        dist.recv(other, 0)\n", LAST_BACK + "        dist.recv(other, 0)\n"),
    "both receive first": ("        dist.send(stage.tied.grad, last)\n", BACK),
    "rank 0 receives": ("if rank > 0:\n            x =", "if True:\n            x ="),
    "ones for a gradient": ("dist.recv(gradient, rank + 1)", "dist.recv(torch.ones_like(out), rank + 1)"),
    "last micro-batch alone": (KEPT, "for x, out in kept[-1:]:"),
    "what came has no gradient": ("            x.requires_grad_()\n", ""),
    "last stage waits": ("        if rank < last:\n            dist.recv",
        "        if True:\n            dist.recv"),
    "one large batch": ("    for x, y in batches:\n        if",
        "    x, y = (torch.cat(t) for t in zip(*batches))\n    for x, y in [(x, y)]:\n        if",
        DIVIDED, "\n"),
    "one micro-batch at a time": ("        kept.append((x, out))\n    for x, out in kept:\n", ""),
})  # fmt: skip


# ---- 39c: one forward, one backward
def reference_order(rank, stages, micro_batches):
    ahead = min(stages - rank, micro_batches)
    order = [f"F{i}" for i in range(ahead)]
    for i in range(micro_batches):
        order.append(f"B{i}")
        if ahead + i < micro_batches:
            order.append(f"F{ahead + i}")
    return order


def inputs_order(seed):
    return [(2, 4, 8), (0, 4, 8), (3, 4, 8), (0, 3, 5), (2, 3, 5), (0, 5, 2), (3, 5, 2), (0, 2, 3)]


def live(order):
    """The most micro-batches whose activations are held at once."""
    return torch.tensor([1 if what[0] == "F" else -1 for what in order]).cumsum(0).max().item()


def in_one_text(order, rank, stages, micro_batches):
    found = order(rank, stages, micro_batches)
    if found is not None and not (isinstance(found, (list, tuple)) and {type(x) for x in found} == {str}):
        raise TypeError('asked for is a list of str, as "F0" and "B0"')
    return found and " ".join(found)


def few_are_held(order, *_):
    for rank, p, m in RANKS:
        if (held := live(order(rank, p, m))) > min(p - rank, m):
            return f"rank {rank} of {p} holds {held} of {m} micro-batches, {min(p - rank, m)} are enough"
    return ""


def each_once(order, *_):
    for rank, p, m in RANKS:
        found, right = order(rank, p, m), [f"{kind}{i}" for i in range(m) for kind in "FB"]
        for what in sorted({*found, *right}):
            if (n := found.count(what)) != (what in right):
                return f"rank {rank} of {p}, {m} micro-batches: {what} comes {n} times, not {what in right:d}"
    return ""


def no_longer_than_it_has_to_be(order, *_):
    for p, m in CASES:
        row, right = timetable(order, 0, p, m)[0], 2 * (p + m - 1)
        said = "all wait for each other" if "stuck" in row else f"{len(row)} steps, {right} are enough"
        if len(row) > right or "stuck" in row:
            return f"{p} stages, {m} micro-batches: {said}"
    return ""


def timetable(order, rank, stages, micro_batches):
    """A row for each rank, a column for each step: forward as a digit, backward as a letter, a dot: idle."""
    left, done, rows = [[*order(r, stages, micro_batches)] for r in range(stages)], set(), [""] * stages
    while any(left) and len(rows[0]) < 64:  # one after the other, of 4 stages and 8
        now = []
        for r in range(stages):
            what = left[r][0] if left[r] else ""
            before = (what, r - 1) if what[:1] == "F" else (what, r + 1)
            ready = what and (not 0 <= before[1] < stages or before in done)
            if ready and (what[0] == "F" or ("F" + what[1:], r) in done):
                now.append((left[r].pop(0), r))
                rows[r] += chr(ord("0" if what[0] == "F" else "a") + int(what[1:]))
            else:
                rows[r] += "."
        if not now:
            return [row[:-1] + "  stuck" for row in rows]
        done.update(now)
    return rows


def timetables(order, rank, *case):
    """Of the first input, and of one with fewer micro-batches than stages."""
    tables = [(f"{p} stages, {m} micro-batches", *timetable(order, 0, p, m)) for p, m in (case, CASES[-1])]
    return [row for table in tables for row in table]


CASES = [(4, 8), (3, 5), (5, 2)]  # stages, micro-batches
RANKS = [(rank, p, m) for p, m in CASES for rank in range(p)]
AHEAD, LATER = "min(stages - rank, micro_batches)", "        if ahead + i < micro_batches:\n"
GPIPE = ("ahead = " + AHEAD, "ahead = micro_batches")
NOT_ORDERS = mistakes(reference_order, {
    "all forwards first": GPIPE,
    "last backward first": (*GPIPE, "for i in range(micro_batches):", "for i in range(micro_batches)[::-1]:"),
    "one at a time": (AHEAD, "1"),
    "same start on all ranks": (AHEAD, "min(stages, micro_batches)"),
    "one too few ahead": (AHEAD, "min(stages - rank - 1, micro_batches)"),
    "one too many ahead": (AHEAD, "min(stages - rank + 1, micro_batches)"),
    "last rank the furthest ahead": (AHEAD, "min(rank + 1, micro_batches)"),
    "more than there are": ("ahead = " + AHEAD, "ahead = stages - rank"),
    "too far ahead, rest left": ("ahead = " + AHEAD, "ahead = stages - rank",
        "    for i in range(micro_batches):", "    for i in range(max(0, micro_batches - ahead)):",
        "return order", 'return order + [f"B{i}" for i in range(micro_batches - ahead, micro_batches)]'),
    "last backwards forgotten": ("for i in range(micro_batches):", "for i in range(micro_batches - ahead):"),
    "counted from 1": ('f"F{i}"', 'f"F{i + 1}"', 'f"B{i}"', 'f"B{i + 1}"', 'f"F{ahead + i}"',
        'f"F{ahead + i + 1}"'),
    "forwards at the end": (LATER + '            order.append(f"F{ahead + i}")\n', "",
        "    return order", '    return order + [f"F{i}" for i in range(ahead, micro_batches)]'),
})  # fmt: skip

exercises = {
    "39a": dict(name="bubble", reference=reference_bubble, inputs=inputs_bubble, gradients=False,
        twin="the project has no pipeline; the lesson counts the steps of a timetable",
        properties=[between_nothing_and_all, one_stage_never_waits], wrong=NOT_BUBBLES, tol=1e-6,
        ),
    "39b": dict(name="run_stage", reference=reference_stage, inputs=inputs_stage, call=seen_of_stage,
        twin="the project has no pipeline; one device with the whole batch is the measure",
        gradients=False, properties=[as_one_device], wrong=NOT_STAGES,
        survivors={
            "told += out.item() => told += out": "a tensor tells it, too",
            "dist.send(out.detach(), rank + 1) => dist.send(out, rank + 1)": "a graph is not sent anyway",
        },
        ),
    "39c": dict(name="order_of", reference=reference_order, inputs=inputs_order, gradients=False,
        twin="the project has no pipeline", call=in_one_text, wrong=NOT_ORDERS, picture=timetables,
        properties=[each_once, few_are_held, no_longer_than_it_has_to_be],
        survivors={
            "ahead = min(stages - rank, micro_batches) => ahead = min(micro_batches, stages - rank)":
                "the smaller of two",
        },
        ),
}  # fmt: skip

predictions = {
    "39.1": dict(answer=0.273, tol=0.005),
}
