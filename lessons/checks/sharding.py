"""What the grader knows about lesson 37: Adam, and a gradient's norm, in shards; what each rank holds."""

import torch

from lessons.common import floats, generator, mistakes
from lessons.observe import leaves
from lessons.ranks import together

BETAS, EPS = (0.9, 0.95), 1e-8


# ---- 37a: each rank updates its share
def reference_step(weights, gradient, state, lr, dist):
    rank, size, P = dist.get_rank(), dist.get_world_size(), len(weights)
    shard = -(-P // size)
    mean = gradient.clone()
    dist.all_reduce(mean)
    mean /= size
    mine = slice(rank * shard, rank * shard + shard)
    g, w = mean[mine], weights[mine]
    if not state:
        state.update(t=0, m=torch.zeros_like(w), v=torch.zeros_like(w))
    state["t"] += 1
    state["m"] = 0.9 * state["m"] + 0.1 * g
    state["v"] = 0.95 * state["v"] + 0.05 * g**2
    m, v = state["m"] / (1 - 0.9 ** state["t"]), state["v"] / (1 - 0.95 ** state["t"])
    weights[mine] = w - lr * m / (v.sqrt() + 1e-8)
    for src in range(size):
        dist.broadcast(weights[src * shard : src * shard + shard], src)


def inputs_step(seed):
    return [(2, 7, seed + 10), (3, 11, seed + 20), (4, 10, seed + 30), (3, 12, seed + 40), (4, 9, seed + 50)]


def data_of(size, P, seed, steps=3):
    """Weights (P,) and gradients (steps, size, P), of very different sizes: some near Adam's eps."""
    g = generator(seed)
    scale = 10.0 ** (-4.0 * torch.randint(3, (P,), generator=g))
    return torch.randn(P, generator=g), torch.randn(steps, size, P, generator=g) * scale


def seen_of_step(step, size, P, seed):
    """Of each rank: the weights after each of three updates, and whether it keeps a share of the state."""
    start, gradients = data_of(size, P, seed)

    def one_rank(dist):
        weights, state, after = start.clone(), {}, []
        for each in gradients:
            step(weights, each[dist.get_rank()].clone(), state, 0.1, dist)
            after.append(weights.clone())
        kept = sum(t.numel() for t in leaves(state) if t.dim())
        return {"weights": after, "keeps a share": kept <= 2 * (-(-P // size) + 1)}

    return together(size, one_rank)


def ranks_agree(step, size, P, seed):
    found = [one["weights"] for one in seen_of_step(step, size, P, seed)]
    for t in range(3):
        apart = max((one[t] - found[0][t]).abs().max().item() for one in found)
        if apart > 1e-6:
            return f"after update {t + 1} the ranks' weights differ, by {apart:.2g}"
    return ""


def as_one_adam(step, size, P, seed):
    start, gradients = data_of(size, P, seed)
    weights = torch.nn.Parameter(start.clone())
    adam = torch.optim.Adam([weights], lr=0.1, betas=BETAS, eps=EPS)
    for each in gradients:
        weights.grad = each.mean(0)
        adam.step()
    found = seen_of_step(step, size, P, seed)[0]["weights"][-1]
    wrong = ((found - weights).abs() > 1e-3).nonzero().flatten().tolist()
    return f"other than Adam on one device: weights {wrong} of {P} on {size} ranks" * bool(wrong)


CEIL, MEAN, MINE = "-(-P // size)", "    mean /= size\n", "slice(rank * shard, rank * shard + shard)"
SHARE = (
    "    for src in range(size):\n        dist.broadcast(weights[src * shard : src * shard + shard], src)\n"
)
NOT_STEPS = mistakes(reference_step, {
    "no gather": (SHARE, ""),
    "all state on each rank": (MINE, "slice(0, P)"),
    "last weights left out": (CEIL, "P // size"),
    "shards overlap": (MINE, "slice(rank * (P // size), rank * (P // size) + shard)"),
    "own gradient": ("    dist.all_reduce(mean)\n" + MEAN, ""),
    "summed, not averaged": (MEAN, ""),
    "own stretch sent each time": ("weights[src * shard : src * shard + shard], src)", "weights[mine], src)"),
    "stretches gathered": (SHARE, "    parts = [torch.empty_like(w) for _ in range(size)]\n"
        "    dist.all_gather(parts, weights[mine])\n    weights[:] = torch.cat(parts)\n"),
    "usual beta for v": ('0.95 * state["v"] + 0.05', '0.999 * state["v"] + 0.001', "0.95 **", "0.999 **"),
    "all from rank 0": ("+ shard], src)", "+ shard], 0)"),
    "weights summed": (SHARE, "    dist.all_reduce(weights)\n"),
    "updates the next rank's shard": (MINE,
        "slice((rank + 1) % size * shard, ((rank + 1) % size + 1) * shard)"),
    "state thrown away": ("    if not state:\n", "    if True:\n"),
    "updates not counted": ('    state["t"] += 1\n', '    state["t"] = 1\n'),
    "no bias correction": ('state["m"] / (1 - 0.9 ** state["t"]), state["v"] / (1 - 0.95 ** state["t"])',
        'state["m"], state["v"]'),
    "eps inside the root": ("(v.sqrt() + 1e-8)", "(v + 1e-8).sqrt()"),
    "plain descent": ("lr * m / (v.sqrt() + 1e-8)", "lr * g"),
})  # fmt: skip


# ---- 37b: clip across shards
def reference_clip(shards, copies, limit, dist):
    squares = sum(g.square().sum() for g in shards)
    dist.all_reduce(squares)
    norm = (squares + sum(g.square().sum() for g in copies)).sqrt().item()
    if norm > limit:
        for g in [*shards, *copies]:
            g *= limit / norm
    return norm


def inputs_clip(seed):
    return [
        (2, 3.0, 1.2, seed + 10),
        (3, 2.5, 0.1, seed + 20),
        (2, 5.0, 0.0, seed + 30),
        (4, 80.0, 1.0, seed),
    ]


def seen_of_clip(clip, size, limit, scale, seed):
    """What is told, and the gradients after it. The ranks' shards are of very different length."""

    def one_rank(dist):
        rank = dist.get_rank()
        g, same = generator(seed + 50 * rank), generator(seed)
        shards = [scale * (1 + 3 * rank) * torch.randn(n, generator=g) for n in (5, 4 + rank)]
        copies = [scale * 4 * torch.randn(3, 2, generator=same)]
        (told,) = floats([clip(shards, copies, limit, dist)])
        return {"norm": told, "shards": shards, "copies": copies}

    return together(size, one_rank)


def all_ranks_scale_alike(clip, *args):
    first, *others = seen_of_clip(clip, *args)
    for rank, one in enumerate(others, 1):
        if not torch.allclose(one["copies"][0], first["copies"][0]):
            return f"what all ranks have alike is another on rank {rank} than on rank 0 afterwards"
    return ""


SQUARES, REDUCE = "sum(g.square().sum() for g in shards)", "    dist.all_reduce(squares)\n"
NORM, COPIES = "(squares + sum(g.square().sum() for g in copies)).sqrt().item()", "[*shards, *copies]"
NOT_CLIPS = mistakes(reference_clip, {
    "own norm": (REDUCE, ""),
    "copies counted on each rank": (SQUARES, "sum(g.square().sum() for g in [*shards, *copies])",
        NORM, "squares.sqrt().item()"),
    "copies left out": (NORM, "squares.sqrt().item()"),
    "norms summed": (SQUARES, "sum(g.square().sum() for g in shards).sqrt()",
        NORM, "(squares + sum(g.square().sum() for g in copies).sqrt()).item()"),
    "a number is sent": (SQUARES, "sum(g.square().sum().item() for g in shards)"),
    "squares averaged": (REDUCE, REDUCE + "    squares /= dist.get_world_size()\n"),
    "largest rank's norm": ("dist.all_reduce(squares)", "dist.all_reduce(squares, op=dist.ReduceOp.MAX)"),
    "squared norm": (".sqrt().item()", ".item()"),
    "told, not scaled": ("g *= limit / norm", "g * (limit / norm)"),
    "always scaled": ("norm > limit", "norm > 0"),
    "shards alone scaled": (COPIES, "shards"),
    "scaled by the own norm": (REDUCE, "    own = squares.sqrt().item()\n" + REDUCE,
        "limit / norm", "limit / own"),
    "norm after clipping told": ("return norm", "return min(norm, limit)"),
    "each tensor by itself": ("    if norm > limit:\n", "    if True:\n",
        "g *= limit / norm", "g *= min(1.0, limit / max(g.norm().item(), 1e-9))"),
    "not a number at zero": ("    if norm > limit:\n", "    if not norm <= limit or norm == 0:\n",
        "g *= limit / norm", "g *= limit / torch.tensor(norm)"),
})  # fmt: skip


# ---- 37c: what each rank holds
def reference_bytes(stage, ranks, weight, gradient, master, moments):
    held = [weight, gradient, master + moments]
    divided = [stage >= 3, stage >= 2, stage >= 1]
    return sum(size / ranks if share else float(size) for size, share in zip(held, divided, strict=True))


def inputs_bytes(seed):
    return [(2, 8, 2, 3, 4, 8), *((stage, ranks, 2, 2, 4, 8) for stage in range(4) for ranks in (8, 3)),
            (1, 5, 4, 5, 6, 16), (2, 7, 3, 5, 0, 16), (3, 16, 4, 6, 5, 9)]  # fmt: skip


def a_rank_holds_no_less_than_its_part(count, *_):
    for stage in range(4):
        found = count(stage, 8, 2, 2, 4, 8)
        if not 2 <= found <= 16:
            return f"stage {stage} on 8 ranks: {found:g} bytes, where 16 unsharded ones are shared by 8"
    return ""


HELD, DIVIDED = "[weight, gradient, master + moments]", "[stage >= 3, stage >= 2, stage >= 1]"
NOT_BYTES = mistakes(reference_bytes, {
    "master weights forgotten": (HELD, "[weight, gradient, moments]"),
    "one moment forgotten": (HELD, "[weight, gradient, master + moments / 2]"),
    "everything divided": (DIVIDED, "[stage >= 1] * 3"),
    "gradients a stage early": (DIVIDED, "[stage >= 3, stage >= 1, stage >= 1]"),
    "weights a stage early": (DIVIDED, "[stage >= 2, stage >= 2, stage >= 1]"),
    "weights never divided": (DIVIDED, "[False, stage >= 2, stage >= 1]"),
    "weights before gradients": (DIVIDED, "[stage >= 2, stage >= 3, stage >= 1]"),
    "master counted as weights": (HELD, "[weight + master, gradient, moments]"),
    "one stage behind": (DIVIDED, "[stage > 3, stage > 2, stage > 1]"),
    "nothing divided": (DIVIDED, "[False] * 3"),
    "of all ranks": ("return sum(", "return ranks * sum("),
})  # fmt: skip

exercises = {
    "37a": dict(name="sharded_step", reference=reference_step, inputs=inputs_step, call=seen_of_step,
        twin="optim.py leaves it to torch's ZeroRedundancyOptimizer; Adam on one device is the measure",
        gradients=False, properties=[ranks_agree, as_one_adam], wrong=NOT_STEPS, forbidden=("Adam", "AdamW"),
        survivors={
            "mean = gradient.clone() => mean = gradient": "a gradient may be changed, as .grad is",
            "dist.broadcast(weights[src * shard:src * shard + shard], src) => "
            "dist.broadcast(weights[:src * shard + shard], src)": "what is sent once more is the same",
            "dist.broadcast(weights[src * shard:src * shard + shard], src) => "
            "dist.broadcast(weights[src:src * shard + shard], src)": "what is sent once more is the same",
        },
        ),
    "37b": dict(name="clip", reference=reference_clip, inputs=inputs_clip, call=seen_of_clip,
        twin="train.py asks torch for the norm, whose DTensors know where the shards are", gradients=False,
        properties=[all_ranks_scale_alike], wrong=NOT_CLIPS,
        survivors={
            "if norm > limit: => if norm >= limit:": "at the limit the factor is 1",
            "norm = (squares + sum((g.square().sum() for g in copies))).sqrt().item() => "
            "norm = (squares + sum((g.square().sum() for g in copies))).sqrt()": "a tensor tells it, too",
        },
        forbidden=("clip_grad_norm_", "get_total_norm", "clip_grads_with_norm_"),
        ),
    "37c": dict(name="bytes_per_parameter", reference=reference_bytes, inputs=inputs_bytes, gradients=False,
        twin="lab/plan.py counts tensors of a real model; the lesson counts them, too", wrong=NOT_BYTES,
        properties=[a_rank_holds_no_less_than_its_part], tol=1e-6,
        survivors={
            "return sum((size / ranks if share else float(size) for size, share in "
            "zip(held, divided, strict=True))) => return sum((size / ranks if share else size for size, "
            "share in zip(held, divided, strict=True)))": "a whole number is as good",
        },
        ),
}  # fmt: skip

predictions = {
    "37.1": dict(answer=5.5, tol=0.05),
    "37.2": dict(answer=3.75, tol=0.05),
    "37.3": dict(answer=2.0, tol=0.05),
}
