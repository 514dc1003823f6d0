"""What the grader knows about lesson 26: probabilities to draw with, by temperature, top-k and top-p."""

from functools import partial

import torch

from generate import token_probs
from lessons.common import entropy, generator, mistakes, normal

INF = torch.inf


# ---- 26a: temperature
def reference_tempered(logits, temperature):
    return token_probs(logits, temperature)


def twin_tempered(logits, temperature):
    if temperature == 0:
        likeliest = logits.argmax(1, keepdim=True)
        return torch.zeros_like(logits).scatter(1, likeliest, 1.0)
    scaled = logits / temperature
    weights = (scaled - scaled.amax(1, keepdim=True)).exp()
    return weights / weights.sum(1, keepdim=True)


def inputs_tempered(seed):
    (logits,) = normal(generator(seed), (3, 7))
    some = logits.clone()
    some[1:, 2:5] = -INF  # as top-k leaves them
    cases = ((2 * logits, 0.7), (2 * logits, 1.8), (logits, 0.0), (logits - 5, 0.0), (1000 * logits, 0.6))
    tied, wide = logits.clone(), 30 * logits
    tied[0, [1, 4]] = 4.0
    wide[0, :2] = torch.tensor([90.0, -90.0])  # a chance that is 0 in float32 and counts at T = 90
    return [*cases, (2 * some, 2.5), (some, 0.0), (wide, 90.0), (tied, 0.0)]


def any_likeliest(tempered, logits, temperature):
    """What is returned. At temperature 0 it does not matter which of equal ones is sure, and NaN is a word:
    what goes wrong at other temperatures is told first."""
    rows, found = logits.clone(), tempered(logits, temperature)
    if temperature > 0 or not isinstance(found, torch.Tensor) or found.shape != rows.shape:
        return {"chances": found, "at temperature 0": "numbers"}
    kind = "NaN" if found.isnan().any() else "numbers"
    return {"chances": in_any_order(found.nan_to_num(), rows), "at temperature 0": kind}


def has_equals(row, cut=-INF):
    own = row[row != cut]
    return len(own.unique()) < len(own)


def in_any_order(found, rows, cut=-INF):
    """What was found for each row, sorted where two of its numbers are equal."""
    both = zip(found, rows, strict=True)
    return torch.stack([x.sort().values if has_equals(row, cut) else x for x, row in both])


def cold_is_sure(tempered, logits, temperature):
    """The lower the temperature, the lower the entropy."""
    cold, warm = (entropy(tempered(logits, t))[0].item() for t in (0.5, 2.0))
    text = f"row 0 has an entropy of {cold:.2f} nats at temperature 0.5, and {warm:.2f} at 2"
    return f"{text}: which of them is nearer to the likeliest letter?" * (cold >= warm)


SCALED, ZERO = "scaled = logits / temperature", "    if temperature == 0:\n"
LIKELIEST, SUM = "likeliest = logits.argmax(1, keepdim=True)", "return weights / weights.sum(1, keepdim=True)"
NOT_TEMPERED = mistakes(twin_tempered, {
    "multiplied": (SCALED, "scaled = logits * temperature"),
    "after softmax": (SCALED, "scaled = logits", SUM, "weights = weights / weights.sum(1, keepdim=True) / "
        "temperature\n    " + SUM),
    "after softmax, sum not 1": (SCALED, "scaled = logits", SUM, SUM + " / temperature"),
    "softmax of chances": (SCALED, "scaled = torch.softmax(logits, -1) / temperature"),
    "divides by zero": (ZERO, "    if False:\n"),
    "zero ignored": (ZERO, "    if temperature == 0:\n        temperature = 1.0\n    if False:\n"),
    "zero makes all alike": (LIKELIEST,
        "return torch.full_like(logits, 1 / logits.size(-1))\n        " + LIKELIEST),
    "likeliest of all rows": (LIKELIEST, "likeliest = logits.flatten().argmax().expand(len(logits), 1)"
        " % logits.size(-1)"),
    "letters, not chances": (LIKELIEST, "return logits.argmax(-1)\n        " + LIKELIEST),
    "exp overflows": ("(scaled - scaled.amax(1, keepdim=True)).exp()", "scaled.exp()"),
    "one sum for all": (SUM, "return weights / weights.sum()"),
    "along the batch": (SUM, "return torch.softmax(scaled, 0)"),
    "logarithms returned": (SUM, "return (weights / weights.sum(1, keepdim=True)).log()"),
    "scaled in place": (SCALED, "scaled = logits.div_(temperature)"),
    "only divided": (SUM, "return scaled"),
    "equal ones all sure": ("torch.zeros_like(logits).scatter(1, likeliest, 1.0)",
        "(logits == logits.gather(1, likeliest)).float()"),
})  # fmt: skip
ALSO_TEMPERED = mistakes(twin_tempered, {
    "equal ones share": ("torch.zeros_like(logits).scatter(1, likeliest, 1.0)",
        "torch.softmax(1e9 * (logits - logits.gather(1, likeliest)), -1)"),
    "chances to a power": (SCALED, "scaled = logits", SUM,
        "weights = (weights / weights.sum(1, keepdim=True)) ** (1 / temperature)\n    " + SUM),
})  # fmt: skip


# ---- 26b: top-k
def reference_keep_k(logits, k):
    warm = logits[logits.isfinite()].abs().max().item()  # no probability is rounded to 0
    kept = token_probs(logits, warm, k)  # rows sum to 1 where top_p is 1
    return torch.where(kept > 0, logits * kept.sum(-1, keepdim=True), -INF)


def twin_keep_k(logits, k):
    kept = torch.full_like(logits, -INF)
    for row, out in zip(logits, kept, strict=True):
        order = row.argsort(descending=True).tolist()
        for i in order[:k] if k > 0 else order:
            out[i] = row[i]
    return kept


def inputs_keep_k(seed):
    (logits,) = normal(generator(seed), (4, 9))
    tied = logits.round()  # some rows have equal numbers at place k
    tied[0] = torch.tensor([3.0, 1, 1, 2, 1, 0, -1, 1, -2])
    cases = ((3 * logits - 4, 3), (logits - 1, 8), (2 * logits, 9), (2 * logits, 20), (2 * logits, 0))
    return [*cases, (1000 * logits, 2), (logits, 1), (tied, 4)]


def any_of_equals(keep, given, limit, cut=-INF):
    """Which letters each row keeps, and their numbers; of equal ones it does not matter which are kept."""
    rows = given.clone()
    found, seen = keep(given, limit), {f"row {i} keeps letters": "" for i in range(len(rows))}
    if not isinstance(found, torch.Tensor) or found.shape != rows.shape:
        return seen | {"what is returned:": found}
    for name, row, x in zip(seen, rows, found, strict=True):
        letters = (x != cut).nonzero().flatten().tolist()
        text = f"{len(letters)} of them" if has_equals(row, cut) else str(letters)[1:-1] or "none"
        seen[name] = "NaN" if x.isnan().any() else text
    return seen | {"what is returned:": in_any_order(found.masked_fill(~found.isfinite(), 0), rows, cut)}


def k_are_kept(keep_k, logits, k):
    for i, row in enumerate(keep_k(logits, k)):
        count = int((row > -INF).sum())
        if count != k:
            return f"row {i} keeps {count} of {logits.size(-1)} letters, where k is {k}"


def keep_tied(logits, k):
    if not 0 < k < logits.size(-1):
        return logits.clone()
    return logits.masked_fill(logits < logits.topk(k).values[:, -1:], -INF)


FULL, ORDER = "torch.full_like(logits, -INF)", "order[:k] if k > 0 else order"
ARGSORT, KEPT = "row.argsort(descending=True)", "out[i] = row[i]"
NOT_KEEP_K = mistakes(twin_keep_k, {
    "the others set to 0": (FULL, "torch.zeros_like(logits)"),
    "the least likely kept": (ARGSORT, "row.argsort()"),
    "the k likeliest dropped": (ORDER, "order[k:] if k > 0 else order"),
    "the first k letters": (ARGSORT, "torch.arange(len(row))"),
    "by size without sign": (ARGSORT, "row.abs().argsort(descending=True)"),
    "one too many": (ORDER, "order[: k + 1] if k > 0 else order"),
    "one too few": (ORDER, "order[: max(1, k - 1)] if k > 0 else order"),
    "sorted, not put back": (KEPT, "out[order.index(i)] = row[i]"),
    "0 keeps nothing": (ORDER, "order[:k]"),
    "0 keeps one": (ORDER, "order[: max(1, k)]"),
    "more than there are": ("    kept =", "    logits.topk(k)\n    kept =",
        "return kept", "return kept if k else logits.clone()"),
    "k of all rows": ("    return kept", "    if 0 < k < logits.size(-1):\n        return logits.masked_fill("
        "logits < logits.flatten().topk(k).values[-1], -INF)\n    return kept"),
    "probabilities returned": ("return kept", "return torch.softmax(kept, -1)"),
    "topk fails above V": ("    kept =", "    if k > 0:\n        return logits.masked_fill(logits < "
        "logits.topk(k).values[:, -1:], -INF)\n    kept ="),
    "the numbers of topk": ("    kept =", "    if 0 < k < logits.size(-1):\n"
        "        return logits.topk(k).values\n    kept ="),
    "only the k returned": ("return kept", "return logits.topk(min(k or 9, 9)).values"),
    "cut in place": ("return kept", "return logits.copy_(kept)"),
})  # fmt: skip


# ---- 26c: top-p
def reference_keep_p(probs, p):
    kept = token_probs(
        probs.log(), 1.0, 0, p - 1e-6 * (p < 1)
    )  # logarithms are rounded, p may be an exact sum
    return kept / torch.where(kept > 0, probs, 0.0).sum(-1, keepdim=True)


def twin_keep_p(probs, p):
    kept = torch.zeros_like(probs)
    for row, out in zip(probs, kept, strict=True):
        total = 0.0
        for i in row.argsort(descending=True).tolist():
            if total < p:
                out[i] = row[i]
            total += row[i]
    return kept / kept.sum(1, keepdim=True)


def inputs_keep_p(seed):
    """The rows keep unequal numbers of letters, and their orders differ."""
    g = generator(seed)
    logits = torch.tensor([0.6, 1.4, 3.0])[:, None] * torch.randn(3, 8, generator=g)
    probs = torch.softmax(logits, -1)
    example = torch.tensor([[0.15, 0.5, 0.05, 0.3], [0.05, 0.15, 0.3, 0.5]])
    sparse = torch.softmax(torch.where(logits < logits.median(1, keepdim=True).values, -INF, logits), -1)
    tied = torch.tensor([[0.1, 0.22, 0.22, 0.24, 0.22], [0.2, 0.2, 0.2, 0.2, 0.2]])
    steep = torch.softmax(1000 * logits, -1)
    halves = torch.tensor([[0.0625, 0.5, 0.03125, 0.28125, 0.125], [0.25, 0.0625, 0.5, 0.125, 0.0625]])
    cases = (probs, 0.71), (probs, 0.93), (probs, 0.02), (example, 0.6), (sparse, 0.88), (halves, 0.5)
    return [*cases, (halves, 1.0), (steep, 0.97), (tied, 0.55)]


def the_fewest_that_reach_p(keep_p, probs, p):
    for i, (kept, row) in enumerate(zip(keep_p(probs, p), probs, strict=True)):
        right = int((row.sort(descending=True).values.cumsum(0) < p).sum()) + 1
        if (count := int((kept > 0).sum())) != right:
            return f"row {i} keeps {count} letters; the fewest with {p} together are {right}"


def sums(value, probs, p):
    return dict(row0=value["what is returned:"][0].sum().item())


def kept_tokens(keep_p, probs, p):
    """Row by row: what is kept of the letters, the likeliest first."""
    order = probs.argsort(-1, descending=True)
    return ["".join("x" if i else "." for i in row) for row in (keep_p(probs, p) > 0).gather(-1, order)]


def keep_p_tied(probs, p):
    ordered = probs.sort(descending=True).values
    crossing = ordered.gather(
        -1, (ordered.cumsum(-1) < p).sum(-1, keepdim=True).clamp(max=probs.size(-1) - 1)
    )
    kept = probs.masked_fill(probs < crossing, 0.0)
    return kept / kept.sum(-1, keepdim=True)


BELOW, RESCALED = "if total < p:", "return kept / kept.sum(1, keepdim=True)"
DROPPED = "if total + row[i] <= p:"
NOT_KEEP_P = mistakes(twin_keep_p, {
    "crossing token dropped": (BELOW, "if total == 0 or total + row[i] <= p:"),
    "nothing left": (BELOW, DROPPED),
    "nothing left below p": (BELOW, DROPPED.replace("<=", "<")),
    "one more than reaches p": (BELOW, "if total <= p:"),
    "nothing left, so all alike": (BELOW, DROPPED, RESCALED,
        "kept[kept.sum(-1) == 0] = 1.0\n    " + RESCALED),
    "nothing left, so all": (BELOW, DROPPED, RESCALED,
        "kept = torch.where(kept.sum(-1, keepdim=True) == 0, probs, kept)\n    " + RESCALED),
    "threshold 1 - p": (BELOW, "if total < 1 - p or total == 0:"),
    "smallest first": (ARGSORT, "row.argsort()"),
    "not sorted": (ARGSORT, "torch.arange(len(row))"),
    "each above p": (BELOW, "if row[i] >= p or total == 0:"),
    "relative to the likeliest": (BELOW, "if row[i] >= p * row.max():"),
    "not rescaled": (RESCALED, "return kept"),
    "softmax again": (RESCALED, "return torch.softmax(kept, -1)"),
    "one sum for all": (RESCALED, "return kept / kept.sum()"),
    "only the likeliest": (BELOW, "if total == 0:"),
    "always half": (BELOW, "if total < 0.5:"),
    "cut in place": (RESCALED, RESCALED.replace("return ", "return probs.copy_(") + ")"),
})  # fmt: skip


def by_sums(probs, p):
    """As most write it."""
    ordered, order = probs.sort(descending=True)
    kept = torch.zeros_like(probs).scatter(1, order, ordered * (ordered.cumsum(1) - ordered < p))
    return kept / kept.sum(1, keepdim=True)


BEFORE = "ordered.cumsum(1) - ordered < p"
PUT = f"torch.zeros_like(probs).scatter(1, order, ordered * ({BEFORE}))"
NOT_KEEP_P |= mistakes(by_sums, {
    "one past the crossing token":
        (BEFORE, "(ordered.cumsum(1) - ordered).roll(1, 1).index_fill(1, torch.tensor(0), 0) < p"),
    "sorted, not put back": (PUT, f"ordered * ({BEFORE})"),
    "sorted once more": (PUT, f"(ordered * ({BEFORE})).gather(1, order)"),
    "put back the wrong way": (PUT, f"probs * ({BEFORE}).gather(1, order)"),
    "mask not put back": (PUT, f"probs * ({BEFORE})"),
})  # fmt: skip

exercises = {
    "26a": dict(name="tempered", reference=reference_tempered, project=token_probs, slow=twin_tempered,
        inputs=inputs_tempered, call=any_likeliest, gradients=False, properties=[cold_is_sure],
        numbers=lambda value, logits, T: dict(T=T), also=ALSO_TEMPERED, wrong=NOT_TEMPERED,
        ),
    "26b": dict(name="keep_k", reference=reference_keep_k, project=token_probs, slow=twin_keep_k,
        inputs=inputs_keep_k, call=any_of_equals, gradients=False, properties=[k_are_kept],
        also={"ties are all kept": keep_tied}, wrong=NOT_KEEP_K,
        ),
    "26c": dict(name="keep_p", reference=reference_keep_p, project=token_probs, slow=twin_keep_p,
        inputs=inputs_keep_p, call=partial(any_of_equals, cut=0.0), gradients=False, numbers=sums,
        properties=[the_fewest_that_reach_p], picture=kept_tokens,
        also={"ties are all kept": keep_p_tied}, wrong=NOT_KEEP_P,
        ),
}  # fmt: skip

predictions = {
    "26.1": dict(answer=2.0, tol=0.1),
    "26.2": dict(answer=0.941, tol=0.006),
}
