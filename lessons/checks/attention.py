"""What the grader knows about lesson 9: causal attention with one head."""

import math

import torch
import torch.nn.functional as F

from lessons.common import generator, mistakes, normal
from model import written_out_attention


# ---- 9a: the scores. The project's attention never shows them, so the reference is a slow, obvious loop.
def reference_scores(q, k):
    rows = []
    for b in range(q.size(0)):
        rows.append(torch.stack([torch.stack([(q_t * k_s).sum() for k_s in k[b]]) for q_t in q[b]]))
    return torch.stack(rows) / math.sqrt(q.size(2))


def inputs_scores(seed):
    g = generator(seed)
    return [tuple(normal(g, shape, shape)) for shape in ((3, 7, 6), (2, 5, 9))]


def spread(q, k):
    return dict(spread=(q @ k.mT).std(), entries=q.size(-1))


def spread_near_one(scores, q, k):
    """With entries of variance 1, scores have a standard deviation of 1 whatever the head size."""
    g = generator(0)
    found = scores(*normal(g, (2, 50, 64), (2, 50, 64))).std()
    said = f"for d = 64 the standard deviation of your scores is {found:.2f}, not near 1"
    return "" if 0.8 < found < 1.25 else said


# ---- 9b: the mask and the softmax. With q = scores * sqrt(T) and k = v = identity, attention is that.
def reference_causal(scores):
    B, T, _ = scores.shape
    eye = torch.eye(T).expand(B, 1, T, T)
    return written_out_attention(scores[:, None] * T**0.5, eye, eye, 0.0)[:, 0]


def twin_causal(scores):
    weights = torch.zeros_like(scores)
    for t in range(scores.size(1)):
        seen = scores[:, t, : t + 1]
        seen = (seen - seen.amax(1, keepdim=True)).exp()  # nothing else changes, and no exp overflows
        weights[:, t, : t + 1] = seen / seen.sum(1, keepdim=True)
    return weights


def inputs_causal(seed):
    g = generator(seed)
    ordinary, small, huge = normal(g, (3, 7, 7), (2, 4, 4), (3, 6, 6))
    return [(2 * ordinary,), (small,), (200 * huge,)]


def upper(scores):
    return scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -math.inf)


def without(scores, hidden):
    return scores.masked_fill(hidden > 0, -math.inf).softmax(-1)


def shares(scores, largest):
    powers = (upper(scores) - largest).exp()
    return powers / powers.sum(-1, keepdim=True)


def with_minus_10(scores):
    return scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -10.0)


def masked_after(scores):
    return torch.softmax(scores, -1).tril()


def row_sums(weights, scores):
    return dict(row0=weights[0, 0].sum(), low=weights.sum(-1).min(), high=weights.sum(-1).max())


def rows_sum_to_one(causal, scores):
    sums = causal(scores).sum(-1)[0]
    wrong = ((sums - 1).abs() > 1e-3).nonzero().flatten().tolist()
    return (
        f"rows of the weights do not sum to 1: row {wrong[0]} sums to {sums[wrong[0]]:.2f}" if wrong else ""
    )


def no_future(causal, scores):
    weights = causal(scores)[0]
    if (ahead := weights.triu(1).abs()).max() > 1e-6:
        t, s = divmod(int(ahead.argmax()), len(ahead))
        return f"token {t} looks at token {s}, which comes later: weight {weights[t, s]:.2f}"


def sees_itself(causal, scores):
    own = causal(scores)[0].diagonal()
    return "" if (own > 0).all() else f"token {int(own.argmin())} does not look at itself"


def seen_with(causal, scores):
    """Who sees whom in a head that is ours but for this function."""

    def head(x, wq, wk, wv):
        return causal((x @ wq) @ (x @ wk).mT / math.sqrt(wq.size(1))) @ (x @ wv)

    return who_sees_whom(head, *inputs_attend(1)[0])


# ---- 9c: all of one head
def reference_attend(x, wq, wk, wv):
    q, k, v = ((x @ w)[:, None] for w in (wq, wk, wv))
    return written_out_attention(q, k, v, 0.0)[:, 0]


def twin_attend(x, wq, wk, wv):
    rows = []
    for t in range(x.size(1)):
        past = x[:, : t + 1]
        scores = ((past @ wk) * (x[:, t : t + 1] @ wq)).sum(-1) / math.sqrt(wq.size(1))
        weights = torch.softmax(scores, -1)
        rows.append((weights[..., None] * (past @ wv)).sum(1))
    return torch.stack(rows, dim=1)


def inputs_attend(seed):
    g = generator(seed)
    x, *w = normal(g, (3, 7, 24), (24, 6), (24, 6), (24, 6))
    w = [m / 24**0.5 for m in w]  # queries and keys of variance 1: no softmax is sure of itself
    large = 3 * torch.randn(2, 5, 24, generator=g)
    return [(x, *w), (large, w[0], -w[0], w[2])]  # the second: own scores are below -10


def attend(x, wq, wk, wv, scale=True, mask=upper, value=None):
    q, k = x @ wq, x @ wk
    scores = q @ k.mT / (math.sqrt(q.size(-1)) if scale else 1)
    return torch.softmax(mask(scores), -1) @ (x @ wv if value is None else value)


def who_sees_whom(attend, x, wq, wk, wv):
    """Change input token s, mark output t with x if it moves: row t, column s."""
    x, T = x[:1, :6].clone(), 6
    before = attend(x, wq, wk, wv)
    rows = [["."] * T for _ in range(T)]
    for s in range(T):
        moved = x.clone()
        moved[:, s] += 1
        apart = (attend(moved, wq, wk, wv) - before).abs().amax((0, 2))
        for t in (apart > 1e-6).nonzero().flatten().tolist():
            rows[t][s] = "x"
    return ["NaN" if before[0, t].isnan().any() else "".join(row) for t, row in enumerate(rows)]


def past_only(attend, x, wq, wk, wv):
    rows = who_sees_whom(attend, x, wq, wk, wv)
    ahead = [(t, s) for t, row in enumerate(rows) for s in range(t + 1, len(row)) if row[s] == "x"]
    return f"output {ahead[0][0]} moves when input {ahead[0][1]}, a later token, is changed" if ahead else ""


def first_is_its_value(attend, x, wq, wk, wv):
    """The first token has nobody else to look at."""
    apart = (attend(x, wq, wk, wv)[:, 0] - x[:, 0] @ wv).abs().max()
    return "" if apart < 1e-3 else "output 0 should be the value of token 0, which has nobody else to look at"


def weights_for_values(x, wq, wk, wv):
    weights = torch.softmax(upper((x @ wq) @ (x @ wk).mT / math.sqrt(wq.size(1))), -1)
    return weights.mT @ (x @ wv)


# ---- 9d: a head that hands over the token before
LOUD = 1000.0  # so that nobody else counts


def reference_look_back(T, V):
    wq, wk, wv = torch.zeros(T + V, T), torch.zeros(T + V, T), torch.zeros(T + V, V)
    wk[:T] = torch.eye(T)  # "I stand at t"
    for t in range(1, T):
        wq[t, t - 1] = LOUD  # "who stands at t - 1?"
    wv[T:] = torch.eye(V)
    return wq, wk, wv


def inputs_look_back(seed):
    return [(7, 4, seed), (5, 9, seed)]


def copied(look_back, T, V, seed):
    """What a head with these matrices puts out for random tokens."""
    tokens = torch.randn(3, T, V, generator=generator(seed))
    matrices = look_back(T, V)
    x = torch.cat((torch.eye(T).expand(3, T, T), tokens), dim=2)
    return {"shape of wv": str(tuple(matrices[2].shape)), "output": attend(x, *matrices)}


ASKS, FROM = "wq[t, t - 1] = LOUD", "wv[T:] = torch.eye(V)"
NOT_LOOK_BACK = mistakes(reference_look_back, {
    "looks at itself": (ASKS, "wq[t, t] = LOUD"),
    "asks for the next": (ASKS, "wq[t, min(t + 1, T - 1)] = LOUD"),
    "two back": (ASKS, "wq[t, max(t - 2, 0)] = LOUD"),
    "too soft": (ASKS, "wq[t, t - 1] = 1.0"),
    "away from it": (ASKS, "wq[t, t - 1] = -LOUD"),
    "always the first": (ASKS, "wq[t, 0] = LOUD"),
    "tokens in the keys": (FROM, FROM + "; wk[T:, 0] = 1.0"),
    "position handed over": (FROM, "wv[:T] = torch.eye(T, V)"),
    "position and token": (FROM, FROM + "; wv[:T] = torch.eye(T, V)"),
    "nothing handed over": (FROM, "pass"),
})  # fmt: skip


exercises = {
    "9a": dict(
        name="scores", reference=reference_scores,
        twin="scores: the fused kernel never holds them, so ours is a loop",
        inputs=inputs_scores,
        numbers=lambda value, q, k: dict(spread(q, k), yours=value.std()),
        wrong={
            "no scale": lambda q, k: q @ k.mT,
            "divided by d": lambda q, k: q @ k.mT / q.size(-1),
            "root of T": lambda q, k: q @ k.mT / math.sqrt(q.size(-2)),
            "multiplied by the root": lambda q, k: q @ k.mT * math.sqrt(q.size(-1)),
            "keys ask queries": lambda q, k: k @ q.mT / math.sqrt(q.size(-1)),
            "softmax already": lambda q, k: torch.softmax(q @ k.mT / math.sqrt(q.size(-1)), -1),
            "cosine": lambda q, k: F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT,
            "batch first": lambda q, k: torch.einsum("btd,bsd->tsb", q, k) / math.sqrt(q.size(-1)),
        },
        properties=[spread_near_one],
    ),
    "9b": dict(
        name="causal", reference=reference_causal, project=written_out_attention, slow=twin_causal,
        inputs=inputs_causal,
        lint={"scores": "a T x T square by nature"},
        survivors={
            "for t in range(scores.size(1)): => for t in range(scores.size(2)):": "the square again",
        },
        numbers=row_sums,
        wrong={
            "no mask": lambda s: torch.softmax(s, -1),
            "upper triangle kept": lambda s: without(s, torch.ones_like(s).tril(-1)),
            "diagonal cut": lambda s: without(s, torch.ones_like(s).triu(0)),
            "one ahead": lambda s: without(s, torch.ones_like(s).triu(2)),
            "masked with 0": lambda s: torch.softmax(s.tril(), -1),
            "mask after softmax": masked_after,
            "detached denominator": lambda s: masked_after(s) / masked_after(s).sum(-1, True).detach(),
            "divided by the past's sum": lambda s: masked_after(s) / masked_after(s).sum(-1, keepdim=True),
            "masked with -10": lambda s: torch.softmax(with_minus_10(s), -1),
            "exp overflows": lambda s: shares(s, 0.0),
            "one maximum for all": lambda s: shares(s, upper(s).max()),
            "softmax over queries": lambda s: torch.softmax(upper(s), -2),
            "log softmax": lambda s: torch.log_softmax(s, -1).tril(),
            "no exponential": lambda s: s.tril() / s.tril().sum(-1, keepdim=True),
            "changed in place": lambda s: s.copy_(upper(s)).softmax(-1),
        },
        properties=[rows_sum_to_one, no_future, sees_itself],
        picture=seen_with,
    ),
    "9c": dict(
        name="attend", reference=reference_attend, project=written_out_attention, slow=twin_attend,
        forbidden=("scaled_dot_product_attention",),
        inputs=inputs_attend,
        tol=1e-3,
        needs=["9a", "9b"],
        survivors={
            "weights = torch.softmax(scores, -1) => weights = torch.softmax(scores, 1)": "1 is the last axis",
        },
        wrong={
            "keys for values": lambda x, wq, wk, wv: attend(x, wq, wk, wv, value=x @ wk),
            "weights transposed": weights_for_values,
            "value not projected": lambda x, wq, wk, wv: attend(x, wq, wk, wv, value=x),
            "queries and keys swapped": lambda x, wq, wk, wv: attend(x, wk, wq, wv),
            "no scale": lambda x, wq, wk, wv: attend(x, wq, wk, wv, scale=False),
            "no mask": lambda x, wq, wk, wv: attend(x, wq, wk, wv, mask=lambda s: s),
            "x for queries": lambda x, wq, wk, wv: (
                torch.softmax(upper(x @ wq @ (x @ wq).mT / math.sqrt(wq.size(1))), -1) @ (x @ wv)
            ),
            "masked with -10": lambda x, wq, wk, wv: attend(x, wq, wk, wv, mask=with_minus_10),
            "input added": lambda x, wq, wk, wv: attend(x, wq, wk, wv) + x @ wv,
            "mean of the past": lambda x, wq, wk, wv: (
                torch.softmax(upper(torch.zeros(x.size(1), x.size(1))), -1) @ (x @ wv)
            ),
        },
        properties=[past_only, first_is_its_value],
        picture=who_sees_whom,
    ),
    "9d": dict(name="look_back", reference=reference_look_back, inputs=inputs_look_back, call=copied,
        twin="the project's heads learn their matrices", gradients=False, wrong=NOT_LOOK_BACK,
        survivors={"for t in range(1, T): => for t in range(0, T):": "token 0 sees itself alone"}),
}  # fmt: skip

predictions = {
    "9.1": dict(answer=8.0, tol=0.05),
}
