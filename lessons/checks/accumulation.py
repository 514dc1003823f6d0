"""What the grader knows about lesson 24: micro-batches whose gradients add up to those of one large batch."""

import torch
import torch.nn.functional as F
from torch import nn

from data import count_targets
from lessons.common import floats, generator, mistakes
from model import summed_nats

V = 11


class Small(nn.Module):
    """ids (B, T) -> logits (B, T, V) of each next one."""

    def __init__(self):
        super().__init__()
        self.wte, self.up, self.head = nn.Embedding(V, 6), nn.Linear(6, 8), nn.Linear(8, V)

    def forward(self, x):
        return self.head(torch.tanh(self.up(self.wte(x))))


# ---- 24a: updates of k micro-batches
def reference_updates(model, optimizer, batches, k):
    losses = []
    for i in range(0, len(batches), k):
        group = batches[i : i + k]
        optimizer.zero_grad()
        for x, y in group:
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()) / len(group)
            loss.backward()
            losses.append(loss.item() * len(group))
        optimizer.step()
    return losses


def inputs_updates(seed):
    return [(k, n, seed + 10) for k, n in ((3, 8), (2, 6), (4, 3))]  # the last update: 2, 2 and 3 batches


def gradients_of(model):
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def watched(model):
    """What the model reads, and how many graphs are alive, filled as it runs: (sizes, [now, at most])."""
    read, alive = [], [0, 0]

    def passed(module, args, out):
        read.append(args[0].numel())
        if out.requires_grad:
            alive[:] = alive[0] + 1, max(alive[1], alive[0] + 1)
            out.register_hook(lambda gradient: alive.__setitem__(0, alive[0] - 1))

    model.register_forward_hook(passed)
    return read, alive


def seen_of_updates(accumulate, k, n, seed):
    """Gradients that the optimizer gets (SGD: Adam would hide a factor), what is held, and the losses."""
    g = generator(seed)
    torch.manual_seed(seed)
    model = Small()
    ids = torch.randint(V, (n, 4, 6), generator=g)
    batches = [(part[:, :-1], part[:, 1:]) for part in ids]
    optimizer, got = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.5), []
    optimizer.register_step_pre_hook(lambda *_: got.append(gradients_of(model)))
    read, alive = watched(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)  # as an update before may leave it
    losses = accumulate(model, optimizer, batches, k)
    graphs = any(getattr(loss, "requires_grad", False) for loss in losses)
    return {"updates": len(got), "gradients": got, "largest batch read": max(read, default=0),
            "most graphs at once": alive[1],
            "losses": floats(losses), "graphs held": graphs,
            "weights": [p.detach() for p in model.parameters()]}  # fmt: skip


def as_one_large(accumulate, k, n, seed):
    """The first gradient is that of the first k batches, read as one."""
    found = seen_of_updates(accumulate, k, n, seed)["gradients"]
    right = seen_of_updates(reference_updates, k, n, seed)["gradients"]
    if not found:
        return "no update is made"
    lengths = [sum(g.square().sum().item() for g in part[0]) ** 0.5 for part in (found, right)]
    return "the first gradient has the length {:.4f}; that of one large batch {:.4f}".format(*lengths) * (
        abs(lengths[0] - lengths[1]) > 1e-3 * lengths[1])  # fmt: skip


CLEAR, STEP = "        optimizer.zero_grad()\n", "        optimizer.step()\n"
INNER, SHARE = "        for x, y in group:\n", ".flatten()) / len(group)"
TOLD, BACK = "losses.append(loss.item() * len(group))", "            loss.backward()\n"
NOT_UPDATES = mistakes(reference_updates, {
    "not divided": (SHARE, ".flatten())", TOLD, "losses.append(loss.item())"),
    "cleared in between": (CLEAR, "", INNER, INNER + "            optimizer.zero_grad()\n"),
    "stepped in between": (STEP, "", BACK, BACK + "            optimizer.step()\n"),
    "an update each": (STEP, "", CLEAR, "", INNER, INNER + "            optimizer.zero_grad()\n", SHARE,
        ".flatten())", BACK, BACK + "            optimizer.step()\n", TOLD, "losses.append(loss.item())"),
    "never cleared": (CLEAR, ""),
    "last group dropped": ("range(0, len(batches), k)", "range(0, len(batches) - k + 1, k)"),
    "last group not stepped": (STEP, "        if len(group) == k:\n            optimizer.step()\n"),
    "last group divided by k": ("/ len(group)", "/ k", "* len(group)", "* k"),
    "mean of a joined batch": (INNER, "        x = torch.cat([x for x, _ in group])\n"
        "        y = torch.cat([y for _, y in group])\n        for x, y in [(x, y)]:\n",
        "/ len(group)", "", "* len(group)", ""),
    "losses summed first": (BACK, "", CLEAR, CLEAR + "        total = 0\n", "            losses.append",
        "            total = total + loss\n            losses.append", STEP,
        "        total.backward()\n" + STEP),
    "shares told as losses": (TOLD, "losses.append(loss.item())"),
    "tensors told": (TOLD, "losses.append(loss * len(group))"),
    "no step": (STEP, ""),
    "divided twice": (BACK, "            (loss / len(group)).backward()\n"),
})  # fmt: skip


# ---- 24b: unequal counts
def reference_gradients(model, batches):
    targets = sum(count_targets(y) for _, y in batches)
    nats = 0.0
    for x, y in batches:
        share = summed_nats(model(x), y) / max(targets, 1)
        share.backward()
        nats += share.item()
    return nats


def twin_gradients(model, batches):
    targets = 0
    for _, y in batches:
        targets += (y != -1).sum().item()
    mean = 0.0
    for x, y in batches:
        scored = y != -1
        nats = -model(x).log_softmax(-1)[scored].gather(1, y[scored][:, None]).sum()
        (nats / max(1, targets)).backward()
        mean += nats.item() / max(1, targets)
    return mean


def inputs_gradients(seed):
    shapes = [[(5, 7), (2, 4), (3, 9)], [(4, 6), (3, 6)], [(2, 5), (3, 4)], [(2, 5), (3, 4)]]
    return [(shape, seed + 10 * i, i) for i, shape in enumerate(shapes, 1)]


def ragged(shapes, seed, kind):
    """Micro-batches with unequal shares of y = -1. Kind 2: one has no target, 3: none has, 4: one in all."""
    g, batches = generator(seed), []
    for i, (B, T) in enumerate(shapes):
        ids = torch.randint(V, (B, T + 1), generator=g)
        share = 1.1 if kind > 2 or (kind == 2 and i == 1) else (0.1, 0.4, 0.7)[i]
        batches.append((ids[:, :-1], ids[:, 1:].masked_fill(torch.rand(B, T, generator=g) < share, -1)))
    if kind == 4:
        batches[0][1][1, 2] = 7
    return batches


def seen_of_gradients(gradients, shapes, seed, kind):
    torch.manual_seed(seed)
    model = Small()
    read, alive = watched(model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.05) if kind == 1 else None  # of another call, say
    mean = gradients(model, ragged(shapes, seed, kind))
    held = bool(getattr(mean, "requires_grad", False))
    (told,) = floats([mean])
    joined = max(read, default=0) > max(B * T for B, T in shapes)
    return {"mean": told, "gradients": gradients_of(model), "batches joined": joined,
            "several graphs at once": alive[1] > 1, "graph held": held}  # fmt: skip


def the_split_is_no_matter(gradients, shapes, seed, kind):
    """One batch, whole and in two parts of unequal size, has the same gradient."""
    ((x, y),) = ragged([(7, 5)], seed, 1)
    y[:2] = torch.where(torch.rand(2, 5, generator=generator(seed)) < 0.8, -1, y[:2])
    found = []
    for parts in ([(x, y)], [(x[:2], y[:2]), (x[2:], y[2:])]):
        torch.manual_seed(seed)
        model = Small()
        gradients(model, parts)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    apart = ((found[0] - found[1]).norm() / found[0].norm()).item()
    return f"split in two, the same batch has another gradient: {apart:.1%} off" * (apart > 1e-4)


def padded(batches):
    xs, ys = ([F.pad(ids, (0, 9 - ids.size(1)), value=fill) for ids in part]
              for part, fill in zip(zip(*batches, strict=True), (0, -1), strict=True))  # fmt: skip
    return [(torch.cat(xs), torch.cat(ys))]


TARGETS, ALL = "max(1, targets)", "targets += (y != -1).sum().item()"
NATS, MEAN = "[:, None]).sum()", "mean += nats.item() / max(1, targets)"
SCORED, LOOP = "scored = y != -1", "for x, y in batches:\n"
GRADIENT = "(nats / max(1, targets)).backward()"
NOT_GRADIENTS = mistakes(twin_gradients, {
    "mean of means": (NATS, "[:, None]).mean().nan_to_num()", TARGETS, "len(batches)"),
    "all positions counted": (ALL, "targets += y.numel()"),
    "weighted by rows": (NATS, "[:, None]).mean().nan_to_num() * len(x)", ALL, "targets += len(y)"),
    "weighted by positions": (NATS, "[:, None]).mean().nan_to_num() * y.numel()", ALL,
        "targets += y.numel()"),
    "each by its own count": (GRADIENT, "(nats / max(1, int(scored.sum()))).backward()", MEAN,
        "mean += nats.item() / max(1, int(scored.sum()))"),
    "targets so far": (ALL, "pass", SCORED, SCORED + "\n        targets += int(scored.sum())"),
    "not divided": (GRADIENT, "nats.backward()"),
    "sum told": (MEAN, "mean += nats.item()"),
    "last batch told": (MEAN, "mean = nats.item() / max(1, targets)"),
    "no targets at all": (TARGETS, "targets"),
    "-1 taken for a letter": ("scored = y != -1", "scored = y >= -1; y = y % V"),
    "in one batch": (LOOP + "        scored", "for x, y in padded(batches):\n        scored"),
    "no backward": (GRADIENT, "pass"),
    "gradients cleared first": ("targets = 0\n", "targets = model.zero_grad() or 0\n"),
    "losses summed first": ("mean = 0.0", "mean = total = 0.0", GRADIENT,
        "total = total + nats / max(1, targets)", "return mean", "total.backward()\n    return mean"),
    "a tensor told": (MEAN, "mean = mean + nats / max(1, targets)"),
})  # fmt: skip


# ---- 24c: what it costs
def reference_cost(rows, k, row_bytes, weight_bytes, copies, row_seconds, start_seconds):
    micro = -(-rows // k)
    return dict(
        bytes=copies * weight_bytes + micro * row_bytes, seconds=rows * row_seconds + k * start_seconds
    )


def inputs_cost(seed):
    g = generator(seed)

    def case(rows, k, copies):
        row, weight = torch.randint(2_000_000, 9_000_000, (2,), generator=g).tolist()
        once, start = (1e-3 + torch.rand(2, generator=g) / 50).tolist()
        return rows, k, row, 11 * weight, copies, once, start

    return [case(48, 4, 4), case(48, 16, 3), case(50, 7, 4), case(33, 3, 2), case(21, 21, 4)]


def k_1_is_the_whole(cost, rows, k, row_bytes, weight_bytes, *rest):
    found = cost(rows, rows, row_bytes, weight_bytes, *rest)["bytes"]
    right = reference_cost(rows, rows, row_bytes, weight_bytes, *rest)["bytes"]
    return f"in micro-batches of one row it takes {found:,} bytes, where {right:,} is right" * (
        found != right
    )


MICRO, BYTES = "-(-rows // k)", "copies * weight_bytes + micro * row_bytes"
SECONDS = "rows * row_seconds + k * start_seconds"
NOT_COSTS = mistakes(reference_cost, {
    "all memory divided": (BYTES, "-(-(copies * weight_bytes + rows * row_bytes) // k)"),
    "memory as without it": (BYTES, "copies * weight_bytes + rows * row_bytes"),
    "weights once": (BYTES, "weight_bytes + micro * row_bytes"),
    "weights for each k": (BYTES, "copies * weight_bytes * k + micro * row_bytes"),
    "weights left out": (BYTES, "micro * row_bytes"),
    "rounded down": (MICRO, "rows // k"),
    "time divided by k": (SECONDS, "rows * row_seconds / k + k * start_seconds"),
    "time times k": (SECONDS, "k * rows * row_seconds + k * start_seconds"),
    "one start": (SECONDS, "rows * row_seconds + start_seconds"),
    "no start": (SECONDS, "rows * row_seconds"),
    "a start for each row": (SECONDS, "rows * (row_seconds + start_seconds)"),
})  # fmt: skip

exercises = {
    "24a": dict(name="accumulate", reference=reference_updates, inputs=inputs_updates, call=seen_of_updates,
        twin="the loop of train.py is no function; one large batch is the measure", gradients=False,
        properties=[as_one_large], wrong=NOT_UPDATES,
        ),
    "24b": dict(name="add_gradients", reference=reference_gradients, project=count_targets,
        slow=twin_gradients, inputs=inputs_gradients, call=seen_of_gradients, gradients=False,
        properties=[the_split_is_no_matter], wrong=NOT_GRADIENTS,
        survivors={f"{ALL} => {ALL.removesuffix('.item()')}": "a tensor counts as well",
            f"{MEAN} => {MEAN.replace(TARGETS, 'max(targets, 1)')}": "the larger of two",
            f"{GRADIENT} => {GRADIENT.replace(TARGETS, 'max(targets, 1)')}": "the larger of two",
            f"{GRADIENT} => {GRADIENT.replace(TARGETS, 'max(0, targets)')}": "no target, no gradient"},
        ),
    "24c": dict(name="cost", reference=reference_cost, inputs=inputs_cost, gradients=False,
        twin="runtime/memory.py halves a micro-batch when memory ran out; it does not predict",
        properties=[k_1_is_the_whole], wrong=NOT_COSTS, tol=1e-6,
        ),
}  # fmt: skip

predictions = {
    "24.1": dict(answer=0.25, tol=0.01),
    "24.2": dict(answer=1.0, tol=0.1),
}
