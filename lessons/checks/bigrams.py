"""What the grader knows about lesson 2: a table of pairs, counted, smoothed, and drawn from."""

from bisect import bisect

import torch

from lessons.common import generator, p_value, pair_counts


# ---- 2a
def reference_count_pairs(ids, V):
    return torch.bincount(ids[:-1] * V + ids[1:], minlength=V * V).view(V, V)


def inputs_count_pairs(seed):
    g, sizes = generator(seed), ((601, 9), (50, 11), (2, 4), (1601, 4))
    cases = [
        (torch.randint(V - 2, (n,), generator=g), V) for n, V in sizes
    ]  # the last two letters never come
    cases[0][0][:4] = 3  # a letter that follows itself
    return [*cases, (torch.tensor([2]), 5)]  # one letter is no pair


def one_by_one(ids, V):
    C = torch.zeros(V, V, dtype=torch.int64)
    for a, b in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True):
        C[a, b] += 1
    return C


def every_second(ids, V):
    return pair_counts(ids[:-1:2], ids[1::2], V)


def index_arrays(ids, V):
    C = torch.zeros(V, V, dtype=torch.int64)
    C[ids[:-1], ids[1:]] += 1
    return C


def sum_is_number_of_pairs(count_pairs, ids, V):
    total = count_pairs(ids, V).sum()
    return (
        ""
        if total == len(ids) - 1
        else f"{len(ids)} letters have {len(ids) - 1} pairs; your table sums to {total}"
    )


# ---- 2b
def reference_normalise(C, k):
    rows = []
    for row in C:
        smoothed = row + k
        rows.append(smoothed / smoothed.sum())
    return torch.stack(rows)


def inputs_normalise(seed):
    g = generator(seed)
    some, fewer = torch.randint(30, (7, 7), generator=g), torch.randint(3, (5, 5), generator=g)
    some[2, 5], some[0, 0], fewer[3] = 0, 25, 0  # a pair, and a letter, that never came
    fewer[0, 1] = 2
    return [(some, 0.3), (fewer, 2.5)]


def row_sums(P, C, k):
    return dict(low=P.sum(1).min(), high=P.sum(1).max(), least=P.min())


def rows_sum_to_one(normalise, C, k):
    sums = normalise(C, k).sum(1)
    worst = int((sums - 1).abs().argmax())
    return (
        ""
        if (sums[worst] - 1).abs() < 1e-3
        else f"row {worst} sums to {sums[worst]:.2f}: what follows is certain to"
    )


def nothing_is_impossible(normalise, C, k):
    return (
        ""
        if (normalise(C, k) > 0).all()
        else "a chance of 0 is left: one such letter makes the loss infinite"
    )


# ---- 2c: a right answer may draw as it likes, so what is compared is what has to hold of any
def reference_sample(P, n, rng):
    limits = P.cumsum(1)[:, :-1].tolist()
    letter, letters = 0, []
    for u in torch.rand(n, generator=rng).tolist():
        letter = bisect(limits[letter], u)
        letters.append(letter)
    return torch.tensor(letters)


def inputs_sample(seed):
    g = generator(seed)
    logits = 1.2 * torch.randn(6, 6, generator=g, dtype=torch.float64)
    logits[0] = torch.linspace(-1, 1, 6)  # what comes first is neither 0 nor any letter alike
    return [(torch.softmax(logits, 1), 20_000, g)]


RING = 0.12 + 0.28 * torch.eye(6, dtype=torch.float64).roll(
    1, 1
)  # 1 is the likeliest after 0, 2 after 1, ...


def counted(letters, V):
    """(V, V) of a text whose first letter follows letter 0."""
    return reference_count_pairs(torch.cat((letters.new_zeros(1), letters)), V).double()


def fits(C, P):
    """Whether counts (V, V) come from chances (V, V): a right answer misses this once in a million times."""
    C, P = C[C.sum(1) > 0], P[C.sum(1) > 0]
    return p_value(C.flatten(), (P * C.sum(1, keepdim=True) / C.sum()).flatten(), len(C)) > 1e-6


def rule_of(C, P):
    """What the pairs of a text hang on."""
    if (C > 20).sum() <= len(C):
        return "one and the same letter after each"
    rules = {
        "rows of P": P, "row 0 of P alone": P[:1].expand_as(P), "columns of P": P.mT / P.sum(0)[:, None],
        "a softmax of P": torch.softmax(P, 1), "no letter before": (C.sum(0) / C.sum()).expand_as(P),
    }  # fmt: skip
    return next((rule for rule, table in rules.items() if fits(C, table)), "something else")


FACTS = (
    "a text",
    "pairs hang on",
    "the likeliest alone",
    "repeatable",
    "another text each time",
    "first letter",
)


def facts_of_sample(sample, P, n, rng):
    letters, V = sample(P, n, rng), len(P)
    if not isinstance(letters, torch.Tensor) or letters.shape != (n,) or letters.dtype != torch.int64:
        return None if letters is None else {**dict.fromkeys(FACTS), "a text": letters}
    if letters.min() < 0 or letters.max() >= V:
        raise ValueError(f"a letter {int(letters.max())} was drawn, and ids are 0 ... {V - 1}")
    one, same = (sample(P, 50, generator(7)) for _ in range(2))
    firsts = torch.stack([sample(P, 2, rng)[0] for _ in range(200)])
    as_told = p_value(torch.bincount(firsts, minlength=V).double(), P[0]) > 1e-6
    first = (
        "as after letter 0" if as_told else "always the same" if firsts.unique().numel() == 1 else "otherwise"
    )
    values = (
        torch.zeros_like(letters), rule_of(counted(letters, V), P),
        torch.equal(sample(RING, 20, rng), torch.arange(1, 21) % 6), torch.equal(one, same),
        not torch.equal(sample(P, 50, rng), sample(P, 50, rng)),
        first,
    )  # fmt: skip
    return dict(zip(FACTS, values, strict=True))


def pairs_as_often(sample, P, n, rng):
    C = counted(sample(P, n, rng), len(P))
    found = C / C.sum(1, keepdim=True).clamp(min=1)
    a, b = divmod(int((found - P).abs().argmax()), len(P))
    if (found - P)[a, b].abs() > 0.05:
        return f"after letter {a}, letter {b} came in {found[a, b]:.0%} of all cases; P says {P[a, b]:.0%}"


def drawn_from(table):
    """The wrong answer that draws rightly, but from another table."""
    return lambda P, n, rng: reference_sample(table(P), n, rng)


def begun_with(letters):
    """The wrong answer that writes one of so many letters down before it draws."""
    first = lambda rng: torch.randint(letters, (1,), generator=rng)  # noqa: E731
    return lambda P, n, rng: torch.cat((first(rng), reference_sample(P, n - 1, rng)))


def seeded_again(P, n, rng):
    """The same random number at every step."""
    limits, letters = P.cumsum(1)[:, :-1].tolist(), [0]
    u = torch.rand((), generator=rng.manual_seed(1337)).item()
    for _ in range(n):
        letters.append(bisect(limits[letters[-1]], u))
    return torch.tensor(letters[1:])


exercises = {
    "2a": dict(name="count_pairs", reference=reference_count_pairs,
        twin="the core has no table of pairs; a test holds ours against a loop", inputs=inputs_count_pairs,
        cost=450, numbers=lambda C, ids, V: dict(sum=int(C.sum()), pairs=len(ids) - 1),
        also={
            "in float32": lambda ids, V: reference_count_pairs(ids, V).float(),
            "in float64": lambda ids, V: reference_count_pairs(ids, V).double(),
            "in int32": lambda ids, V: reference_count_pairs(ids, V).int(),
        },
        properties=[sum_is_number_of_pairs],
        wrong={
            "index arrays": index_arrays,
            "transposed": lambda ids, V: reference_count_pairs(ids, V).mT,
            "wraps around": lambda ids, V: reference_count_pairs(torch.cat((ids, ids[:1])), V),
            "next but one": lambda ids, V: sum(reference_count_pairs(ids[i::2], V) for i in (0, 1)),
            "every second pair": every_second,
            "both directions": lambda ids, V: sum(reference_count_pairs(i, V) for i in (ids, ids.flip(0))),
            "only seen letters": lambda ids, V: reference_count_pairs(ids, int(ids.max()) + 1),
            "no minlength": lambda ids, V: torch.bincount(ids[:-1] * V + ids[1:]).view(V, V),
            "single letters": lambda ids, V: torch.bincount(ids, minlength=V),
            "smoothed already": lambda ids, V: reference_count_pairs(ids, V) + 1,
            "counted in uint8": lambda ids, V: reference_count_pairs(ids, V).to(torch.uint8).long(),
            "one by one": one_by_one,
        }),
    "2b": dict(name="normalise", reference=reference_normalise, twin="the core has no table of pairs",
        inputs=inputs_normalise, lint={"C": "a table of pairs is square"}, gradients=False, numbers=row_sums,
        also={
            "in float64": lambda C, k: reference_normalise(C.double(), k),
        },
        properties=[rows_sum_to_one, nothing_is_impossible],
        wrong={
            "columns": lambda C, k: (C + k) / (C + k).sum(0, keepdim=True),
            "no keepdim": lambda C, k: (C + k) / (C + k).sum(1),
            "no smoothing": lambda C, k: C / C.sum(1, keepdim=True),
            "only zeros smoothed": lambda C, k: reference_normalise(C + k * (C == 0), 0),
            "smoothed after dividing": lambda C, k: C / C.sum(1, keepdim=True) + k,
            "smoothed after, divided again": lambda C, k: reference_normalise(C / C.sum(1, keepdim=True), k),
            "k in the numerator only": lambda C, k: (C + k) / C.sum(1, keepdim=True),
            "k once in the sum": lambda C, k: (C + k) / (C.sum(1, keepdim=True) + k),
            "always add one": lambda C, k: reference_normalise(C, 1.0),
            "whole table": lambda C, k: (C + k) / (C + k).sum(),
            "softmax": lambda C, k: torch.softmax(C + k, 1),
            "logarithms": lambda C, k: reference_normalise(C, k).log(),
        }),
    "2c": dict(name="sample", reference=reference_sample,
        twin="the project draws from a model's logits (lesson 26)", inputs=inputs_sample,
        call=facts_of_sample, lint={"P": "a table of pairs is square"}, gradients=False,
        survivors={
            "limits = P.cumsum(1)[:, :-1].tolist() => limits = P.cumsum(1)[:, :].tolist()": "it is always 1",
        },
        properties=[pairs_as_often],
        wrong={
            "always the likeliest": drawn_from(lambda P: torch.eye(len(P)).double()[P.argmax(1)]),
            "seeded at every step": seeded_again,
            "seeded at the start": lambda P, n, rng: reference_sample(P, n, rng.manual_seed(1337)),
            "generator not used": lambda P, n, rng: reference_sample(P, n, torch.default_generator),
            "letter before ignored": drawn_from(lambda P: torch.linalg.matrix_power(P, 1000)),
            "always after letter 0": drawn_from(lambda P: P[:1].expand_as(P)),
            "column, not row": drawn_from(lambda P: P.mT / P.sum(0)[:, None]),
            "softmax of chances": drawn_from(lambda P: torch.softmax(P, 1)),
            "begins with 0": begun_with(1),
            "any first letter": begun_with(6),
            "one letter too many": lambda P, n, rng: reference_sample(P, n + 1, rng),
        }),
}  # fmt: skip

predictions = {
    "2.1": dict(answer=4.174, tol=0.005),
}
