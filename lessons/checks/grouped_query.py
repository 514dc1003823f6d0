"""What the grader knows about lesson 11: grouped-query attention and its cache."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from generate import Cache
from lessons.common import generator, normal, whole
from lessons.observe import Steps
from model import GPTConfig, written_out_attention


# ---- 11a: a token that stands alone looks at itself only, so attention hands over the value of its head
def reference_repeat_kv(k, n_head):
    B, K, T, hs = k.shape
    alone = k.transpose(1, 2).reshape(B * T, K, 1, hs)
    y = written_out_attention(torch.zeros(B * T, n_head, 1, hs), alone, alone, 0.0)
    return y.view(B, T, n_head, hs).transpose(1, 2)


def twin_repeat_kv(k, n_head):
    share, heads = n_head // k.size(1), []
    for h in range(n_head):
        heads.append(k[:, h // share])
    return torch.stack(heads, dim=1)


def inputs_repeat_kv(seed):
    g = generator(seed)
    shapes = ((2, 3, 7, 4), (3, 2, 5, 4), (2, 1, 3, 4), (2, 6, 3, 4))  # one for all, and one each, hide much
    return [(torch.randn(*shape, generator=g), 6) for shape in shapes]


def repeat(k, n_head, axis):
    return k.repeat_interleave(n_head // k.size(1), dim=axis)


def tiled(k, n_head):
    return k.repeat(1, n_head // k.size(1), 1, 1)


def who_reads_whom(read, n_kv=3, n_head=6):
    """Change key/value head s, mark query head h with x if it moves: row h, column s."""
    kv = torch.randn(2, n_kv, 5, 4, generator=generator(0))
    before, rows = read(kv), [["."] * n_kv for _ in range(n_head)]
    for s in range(n_kv):
        moved = kv.clone()
        moved[:, s] += 1 + torch.arange(5.0)[:, None]
        changes = (read(moved) - before).abs().transpose(0, 1).flatten(1).amax(1)
        for h in (changes > 1e-6).nonzero().flatten().tolist():
            rows[h][s] = "x"
    return ["".join(row) for row in rows]


def neighbours_share(read):
    """What a picture shows, in a line."""
    for h, row in enumerate(who_reads_whom(read)):
        if row.count("x") != 1:
            return f"query head {h} reads {row.count('x')} key/value heads, where it should read one"
        if row.index("x") != h // 2:
            return (
                f"of 6 query heads, head {h} reads key/value head {row.index('x')} of 3: neighbours share one"
            )
    return ""


# ---- 11b: the caches of generate.py, filled with so many tokens
def reference_cache_bytes(config, T):
    k = torch.zeros(1, config.n_kv_head, T, config.n_embd // config.n_head)
    caches = [Cache(T) for _ in range(config.n_layer)]
    for cache in caches:
        cache.append(k, k)
    return sum(cache.kv.nbytes for cache in caches)


def twin_cache_bytes(config, T):
    head_size = config.n_embd // config.n_head
    return 2 * config.n_layer * config.n_kv_head * head_size * T * 4


def inputs_cache_bytes(seed):
    shapes = ((3, 6, 2, 48, 17), (2, 12, 3, 72 + 24 * (seed % 3), 23), (5, 4, 4, 40, 32))
    return [
        (GPTConfig(n_layer=L, n_head=H, n_kv_head=K, n_embd=C, block_size=size), 7 + i)
        for i, (L, H, K, C, size) in enumerate(shapes)
    ]


def no_factor(cache_bytes, config, T):
    ratio = cache_bytes(config, T) / twin_cache_bytes(config, T)
    return (
        "" if ratio == 1 else f"the first cache is {cache_bytes(config, T):,g} bytes, {ratio:.4g} times ours"
    )


def linear_in_tokens(cache_bytes, config, T):
    few, many = cache_bytes(config, T), cache_bytes(config, 2 * T)
    return "" if many == 2 * few else f"{T} tokens take {few:,} bytes, twice as many tokens {many:,}. Why?"


# ---- 11c: one new token against the cache
def reference_attend_new(q, k, v):
    q = q.unflatten(1, (k.size(1), -1))  # (B,H,hs) -> (B,K,H/K,hs)
    weights = torch.softmax(q @ k.mT / q.size(3) ** 0.5, dim=-1)  # (B,K,H/K,T)
    return (weights @ v).flatten(1, 2)  # (B,K,H/K,hs) -> (B,H,hs)


def twin_attend_new(q, k, v):
    B, H, hs = q.shape
    share, heads = H // k.size(1), []
    for h in range(H):
        scores = (k[:, h // share] * q[:, h][:, None]).sum(2) / hs**0.5  # (B,T)
        weights = torch.softmax(scores, dim=1)
        heads.append((weights[:, :, None] * v[:, h // share]).sum(1))
    return torch.stack(heads, dim=1)


def inputs_attend_new(seed):
    g = generator(seed)
    shapes = ((2, 6, 5), (2, 3, 7, 5), (2, 3, 7, 5)), ((3, 6, 4), (3, 2, 5, 4), (3, 2, 5, 4))
    cases = [normal(g, *three) for three in (*shapes, shapes[0])]
    cases[2][0] *= 400  # scores far beyond what exp can bear
    return [tuple(case) for case in cases]


class Largest(TorchDispatchMode):
    """The size of the largest tensor that is made, in numbers, also within matmul; views make none."""

    size, _should_skip_dynamo = 0, Steps._should_skip_dynamo

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for t in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(t, torch.Tensor):
                self.size = max(self.size, t.untyped_storage().nbytes() // t.element_size())
        return found


def seen_working(attend_new, q, k, v):
    """The output, and whether anything was made that is as large as k would be with all H heads."""
    with Largest() as largest:
        output = attend_new(q, k, v)
    return dict(output=output, copies=largest.size >= q.size(1) * k[:, 0].numel())


def scores_of(q, k):
    """(B,K,H/K,T)"""
    return q.unflatten(1, (k.size(1), -1)) @ k.mT / q.size(2) ** 0.5


def shares(scores, largest):
    powers = (scores - largest).exp()
    return powers / powers.sum(-1, keepdim=True)


def mixed_up(q, k, v):
    q = q.unflatten(1, (-1, k.size(1))).transpose(1, 2).flatten(1, 2)
    return reference_attend_new(q, k, v).unflatten(1, (k.size(1), -1)).transpose(1, 2).flatten(1, 2)


def copied(q, k, v):
    return reference_attend_new(q, *(repeat(part, q.size(1), 1) for part in (k, v)))


def group_means(q, k, v):
    means = q.unflatten(1, (k.size(1), -1)).mean(2)
    return repeat(reference_attend_new(means, k, v), q.size(1), 1)


def heads_read(attend_new, q, k, v):
    """Who reads whom, of 6 query heads and 3 of keys and values."""
    q = torch.randn(2, 6, 4, generator=generator(1))
    return lambda kv: attend_new(q, kv, kv)


def shares_sum_to_one(attend_new, q, k, v):
    found = attend_new(q, k, torch.ones_like(v))
    return (
        ""
        if (found - 1).abs().max() < 1e-3
        else f"with values of 1 the output is {found[0, 0, 0]:.2f}, not 1"
    )


exercises = {
    "11a": dict(
        name="repeat_kv",
        reference=reference_repeat_kv,
        project=written_out_attention,
        slow=twin_repeat_kv,
        inputs=inputs_repeat_kv,
        wrong={
            "tiled": tiled,
            "time repeated": lambda k, n_head: repeat(k, n_head, 2),
            "batch repeated": lambda k, n_head: repeat(k, n_head, 0),
            "numbers repeated": lambda k, n_head: repeat(k, n_head, 3),
            "n_head times": lambda k, n_head: k.repeat_interleave(n_head, dim=1),
            "n_kv times": lambda k, n_head: k.repeat_interleave(k.size(1), dim=1),
            "left as it is": lambda k, n_head: k + 0,
            "an axis of its own": lambda k, n_head: k[:, :, None].expand(-1, -1, n_head // k.size(1), -1, -1),
            "time repeated, then viewed": lambda k, n_head: repeat(k, n_head, 2).view(
                len(k), n_head, k.size(2), -1
            ),
            "first head for all": lambda k, n_head: k[:, :1].expand(-1, n_head, -1, -1),
            "filled up with zeros": lambda k, n_head: torch.cat(
                (k, k.new_zeros(len(k), n_head - k.size(1), *k.shape[2:])), 1
            ),
        },
        properties=[lambda repeat_kv, k, n_head: neighbours_share(lambda kv: repeat_kv(kv, n_head))],
        picture=lambda repeat_kv, k, n_head: who_reads_whom(lambda kv: repeat_kv(kv, n_head)),
    ),
    "11b": dict(
        name="cache_bytes",
        reference=reference_cache_bytes,
        project=Cache,
        slow=twin_cache_bytes,
        inputs=inputs_cache_bytes,
        call=whole,
        wrong={
            "half": lambda config, T: twin_cache_bytes(config, T) // 2,
            "all heads": lambda config, T: 8 * config.n_layer * config.n_embd * T,
            "one layer": lambda config, T: twin_cache_bytes(config, T) // config.n_layer,
            "bits": lambda config, T: twin_cache_bytes(config, T) * 8,
            "numbers, not bytes": lambda config, T: twin_cache_bytes(config, T) // 4,
            "heads C wide": lambda config, T: twin_cache_bytes(config, T) * config.n_head,
            "whole context": lambda config, T: twin_cache_bytes(config, config.block_size),
            "one token": lambda config, T: twin_cache_bytes(config, 1),
            "queries too": lambda config, T: (
                twin_cache_bytes(config, T) + 4 * config.n_layer * config.n_embd * T
            ),
            "scores": lambda config, T: 4 * config.n_layer * config.n_head * T * T,
            "token vectors": lambda config, T: 4 * config.n_layer * config.n_embd * T,
            "megabytes": lambda config, T: twin_cache_bytes(config, T) / 2**20,
        },
        properties=[linear_in_tokens, no_factor],
    ),
    "11c": dict(
        name="attend_new",
        reference=reference_attend_new,
        twin="in the project torch's kernel does it within Attention.forward; a test holds both together",
        slow=twin_attend_new,
        forbidden=("scaled_dot_product_attention",),
        inputs=inputs_attend_new,
        call=seen_working,
        tol=1e-3,
        wrong={
            "k and v copied": copied,
            "groups mixed up": mixed_up,
            "queries cut": lambda q, k, v: reference_attend_new(q[:, : k.size(1)], k, v),
            "queries averaged": group_means,
            "no scale": lambda q, k, v: reference_attend_new(q * q.size(2) ** 0.5, k, v),
            "root of T": lambda q, k, v: reference_attend_new(q * (q.size(2) / k.size(2)) ** 0.5, k, v),
            "softmax over queries": lambda q, k, v: (torch.softmax(scores_of(q, k), -2) @ v).flatten(1, 2),
            "exp overflows": lambda q, k, v: (shares(scores_of(q, k), 0.0) @ v).flatten(1, 2),
            "one maximum for all": lambda q, k, v: (
                shares(scores_of(q, k), scores_of(q, k).max()) @ v
            ).flatten(1, 2),
            "no softmax": lambda q, k, v: (scores_of(q, k) @ v).flatten(1, 2),
            "keys for values": lambda q, k, v: reference_attend_new(q, k, k),
            "newest token left out": lambda q, k, v: reference_attend_new(q, k[:, :, :-1], v[:, :, :-1]),
            "newest token only": lambda q, k, v: repeat(v[:, :, -1], q.size(1), 1),
        },
        properties=[lambda *given: neighbours_share(heads_read(*given)), shares_sum_to_one],
        picture=lambda *given: who_reads_whom(heads_read(*given)),
    ),
}


predictions = {
    "11.1": dict(answer=131072.0, tol=0.5),
}
