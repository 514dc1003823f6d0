"""What the grader knows about lesson 36: averaged gradients, and who reads which windows."""

import torch
import torch.nn.functional as F
from torch import nn

from data import Windows
from lessons.common import fill, floats, generator, mistakes
from lessons.ranks import together

V = 11


class Small(nn.Module):
    """ids (B, T) -> logits (B, T, V). `rare` is used only where the id 0 is met."""

    def __init__(self):
        super().__init__()
        self.wte, self.rare, self.head = nn.Embedding(V, 6), nn.Parameter(torch.zeros(6)), nn.Linear(6, V)

    def forward(self, x):
        h = self.wte(x)
        if (x == 0).any():
            h = h + self.rare * (x == 0)[:, :, None]
        return self.head(torch.tanh(h))


# ---- 36a: the same weights on all ranks
def reference_train(model, optimizer, batches, dist):
    rank, size, losses = dist.get_rank(), dist.get_world_size(), []
    for p in model.parameters():
        dist.broadcast(p.data, src=0)
    for x, y in batches:
        n = len(x) // size
        mine = slice(rank * n, rank * n + n)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[mine]).flatten(0, 1), y[mine].flatten())
        loss.backward()
        for p in model.parameters():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            dist.all_reduce(p.grad)
            p.grad /= size
        optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(total.item() / size)
    return losses


def inputs_train(seed):
    return [(2, 3, seed + 10), (3, 4, seed + 20)]


def data_of(size, n, seed):
    """Batches of 2 rows for each rank. The id 0 is met in one row of each."""
    g, batches = generator(seed), []
    for i in range(n):
        ids = torch.randint(1, V, (2 * size, 6), generator=g)
        ids[i % len(ids), 2] = 0
        batches.append((ids[:, :-1], ids[:, 1:]))
    return batches


def seen_of_train(train, size, n, seed):
    """Of each rank: weights, the gradients that its optimizer got (SGD: Adam would hide a factor), losses."""
    batches = data_of(size, n, seed)
    whole = torch.cat([x for x, _ in batches])
    read = []

    def one_rank(dist):
        model, got = fill(Small(), generator(seed + 100 * dist.get_rank())), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
        optimizer.register_step_pre_hook(
            lambda *_: got.append(
                [(0 * p if p.grad is None else p.grad).detach().clone() for p in model.parameters()]
            )
        )
        model.register_forward_hook(lambda module, args, out: read.append(args[0]))
        losses = train(model, optimizer, batches, dist)
        return {"weights": [p.detach() for p in model.parameters()], "gradients": got,
                "losses": floats(losses)}  # fmt: skip

    ranks = together(size, one_rank)
    rows = [place for x in read for row in x for place in (whole == row).all(1).nonzero().flatten().tolist()]
    return {
        "how often each row is read": [rows.count(i) for i in range(len(whole))],
        "rows at once": max(map(len, read)),
        "ranks": ranks,
    }


def each_row_is_read_once(train, size, n, seed):
    counts = seen_of_train(train, size, n, seed)["how often each row is read"]
    if max(counts) > 1:
        return f"the {size} ranks together read one row {max(counts)} times: which rows belong to a rank?"
    return f"{counts.count(0)} of {len(counts)} rows are read by no rank" * (min(counts) == 0)


def ranks_agree(train, size, n, seed):
    first, *others = (one["weights"] for one in seen_of_train(train, size, n, seed)["ranks"])
    apart = max((a - b).abs().max().item() for other in others for a, b in zip(first, other, strict=True))
    return f"after {n} updates the ranks' weights differ, by {apart:.2g}" * (apart > 1e-5)


def as_one_worker(train, size, n, seed):
    """Together they are one worker with the whole batch."""
    found = seen_of_train(train, size, n, seed)["ranks"][0]["weights"]
    model = fill(Small(), generator(seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    together(1, lambda dist: reference_train(model, optimizer, data_of(size, n, seed), dist))
    apart = max((a - b).abs().max().item() for a, b in zip(found, model.parameters(), strict=True))
    return f"one worker with the whole batch has other weights, by {apart:.2g}" * (apart > 1e-4)


SHARE, STEP, CLEAR = (
    "            p.grad /= size\n",
    "        optimizer.step()\n",
    "        optimizer.zero_grad()\n",
)
EXCHANGE = "            dist.all_reduce(p.grad)\n"
MINE, NONE = "slice(rank * n, rank * n + n)", "p.grad = torch.zeros_like(p)"
AVERAGED = ("{0}        for p in model.parameters():\n            dist.all_reduce(p.data)\n"
            "            p.data /= size\n")  # fmt: skip
NOT_TRAIN = mistakes(reference_train, {
    "summed, not averaged": (SHARE, ""),
    "same rows on all": (MINE, "slice(0, n)"),
    "all rows on all": (MINE, "slice(0, len(x))"),
    "no broadcast": ("dist.broadcast(p.data, src=0)", "pass"),
    "each broadcasts its own": ("src=0", "src=rank"),
    "broadcast from the last": ("src=0", "src=size - 1"),
    "losses averaged, not gradients": (EXCHANGE, "", SHARE, "            pass\n"),
    "unused parameter skipped": (NONE, "continue"),
    "weights averaged, not gradients": (EXCHANGE, "", SHARE, "", STEP, AVERAGED.format(STEP)),
    "averaged twice": (SHARE, "            p.grad /= size**2\n"),
    "only rank 0 steps": (STEP, "        if rank == 0:\n    " + STEP),
    "never cleared": (CLEAR, ""),
    "own loss told": ("        dist.all_reduce(total)\n", "", "total.item() / size", "total.item()"),
    "sum of losses told": ("total.item() / size", "total.item()"),
    "matrices alone exchanged": (EXCHANGE,
        "            if p.dim() < 2:\n                continue\n" + EXCHANGE),
})  # fmt: skip


# ---- 36b: who reads what
def reference_windows(order, n_windows, step, batch_size, micro_step, n_micro_steps, rank, world_size):
    windows = Windows.__new__(Windows)  # of numbers alone, without a text
    windows.n_windows, windows.on_device, windows.epoch = n_windows, None, lambda epoch: (order(epoch), 0)
    windows._read = lambda numbers, offsets: numbers.tolist()
    return windows.batch(step, batch_size, micro_step, n_micro_steps, rank, world_size)


def twin_windows(order, n_windows, step, batch_size, micro_step, n_micro_steps, rank, world_size):
    part = (step * n_micro_steps + micro_step) * world_size + rank
    found = []
    for number in range(part * batch_size, part * batch_size + batch_size):
        epoch, place = number // n_windows, number % n_windows
        found.append(order(epoch)[place])
    return found


def inputs_windows(seed):
    return [(19, 3, 2, 4, seed + 10), (17, 2, 3, 2, seed + 20), (5, 4, 2, 3, seed + 30), (3, 7, 1, 2, seed)]


def shuffled(n, seed):
    """Epoch -> the windows in its order."""
    return lambda epoch: torch.randperm(n, generator=generator(1000 * seed + int(epoch))).tolist()


def seen_of_windows(windows, n, batch_size, n_micro_steps, world_size, seed):
    order = shuffled(n, seed)
    return {
        f"step {step}, micro-step {i}, rank {rank}":
            windows(order, n, step, batch_size, i, n_micro_steps, rank, world_size)
        for step in (0, 1, 3) for i in range(n_micro_steps) for rank in range(world_size)
    }  # fmt: skip


def the_split_is_no_matter(windows, *args):
    """8 windows in a step, however they are divided."""
    seen = []
    for world_size, n_micro_steps in ((1, 1), (2, 1), (2, 4)):
        each = 8 // (world_size * n_micro_steps)
        order, parts = shuffled(23, 5), [(i, r) for i in range(n_micro_steps) for r in range(world_size)]
        found = [windows(order, 23, 2, each, i, n_micro_steps, r, world_size) for i, r in parts]
        seen.append(sorted(w for part in found for w in part))
    for other, name in ((seen[1], "2 ranks of 4"), (seen[2], "2 ranks, 4 micro-steps")):
        if other != seen[0]:
            return f"step 2, of 8 windows: one process reads {seen[0]}, {name} read {other}"
    return ""


PART, RANGE = "(step * n_micro_steps + micro_step) * world_size + rank", "part * batch_size + batch_size"
PLACE, FOUND = "epoch, place = number // n_windows, number % n_windows", "found.append(order(epoch)[place])"
LOOP = "for number in range(part * batch_size, part * batch_size + batch_size):"
STRIDED = ("for number in range(part // world_size * world_size * batch_size + rank, "
           "(part // world_size + 1) * world_size * batch_size, world_size):")  # fmt: skip
NOT_WINDOWS = mistakes(twin_windows, {
    "rank left out": (PART, "(step * n_micro_steps + micro_step) * world_size"),
    "micro-step left out": (PART, "step * n_micro_steps * world_size + rank"),
    "step left out": (PART, "micro_step * world_size + rank"),
    "ranks overlap": (PART, "step * n_micro_steps + micro_step + rank"),
    "steps overlap": (PART, "step * world_size + micro_step * world_size + rank"),
    "same order each epoch": (FOUND, "found.append(order(0)[place])"),
    "an order for each step": (FOUND, "found.append(order(step)[place])"),
    "an order for each rank": (FOUND, "found.append(order(epoch + rank)[place])"),
    "epoch of the first window": (PLACE, "epoch = part * batch_size // n_windows; "
        "place = number % n_windows"),
    "starts again in mid-batch": (PLACE, "epoch = part * batch_size // n_windows; "
        "place = (number - epoch * n_windows) % n_windows if number // n_windows == epoch "
        "else number - part * batch_size; place = place % n_windows"),
    "end of an epoch dropped": (PLACE, "n = max(1, n_windows // batch_size); "
        "epoch, place = part // n, (part % n * batch_size + number - part * batch_size) % n_windows"),
    "batch divided by the ranks": (RANGE, "part * batch_size + max(1, batch_size // world_size)"),
    "a region for each rank": (PART, "step * n_micro_steps + micro_step", PLACE,
        "epoch, place = 0, (rank * (n_windows // world_size) + number) % n_windows"),
    "ends with the epoch": ("    return found", "    there = n_windows - part * batch_size % n_windows\n"
        "    return found[:there]"),
    "numbers, not windows": (FOUND, "found.append(number)"),
    "not shuffled": (FOUND, "found.append(place)"),
})  # fmt: skip
ALSO_WINDOWS = mistakes(twin_windows, {
    "rank before micro-step": (PART, "(step * world_size + rank) * n_micro_steps + micro_step"),
    "ranks take turns": (LOOP, STRIDED),
})  # fmt: skip

exercises = {
    "36a": dict(name="train", reference=reference_train, inputs=inputs_train, call=seen_of_train,
        twin="machine/distributed.py leaves it to DistributedDataParallel; the lesson's end compares with it",
        gradients=False, properties=[each_row_is_read_once, ranks_agree, as_one_worker], wrong=NOT_TRAIN,
        forbidden=("DistributedDataParallel",),
        survivors={
            "total = loss.detach().clone() => total = loss.detach()": "nobody needs the loss any more",
            "total = loss.detach().clone() => total = loss.clone()": "a loss with a graph is summed as well",
            "losses.append(total.item() / size) => losses.append(total / size)": "a tensor tells it, too",
        },
        ),
    "36b": dict(name="windows_of", reference=reference_windows, project=Windows, slow=twin_windows,
        inputs=inputs_windows, call=seen_of_windows, gradients=False, properties=[the_split_is_no_matter],
        wrong=NOT_WINDOWS, also=ALSO_WINDOWS,
        ),
}  # fmt: skip

predictions = {
    "36.1": dict(answer=6.0, tol=0.05),
}
