"""What the grader knows about lesson 10: several heads."""

import torch

from generate import Cache, Past
from lessons.checks.attention import who_sees_whom
from lessons.common import generator, normal, whole
from model import GPT, Attention, GPTConfig, written_out_attention


def bare(width, n_head, n_kv=0):
    """The project's attention layer with nothing to learn: q, k and v are x, the output is the heads."""
    attention = Attention(GPTConfig(n_embd=width, n_head=n_head, n_kv_head=n_kv, arch="gpt2"))
    attention.q, attention.k, attention.v, attention.o = (torch.nn.Identity() for _ in range(4))
    return attention


# ---- 10a: the keys that the project's layer puts into its cache
def reference_split(x, n_head):
    cache = Cache(x.size(1))
    bare(x.size(2), n_head)(x, past=Past(cache, None, None))
    return cache.kv[0]  # (B,H,T,hs)


def twin_split(x, n_head):
    size, heads = x.size(2) // n_head, []
    for h in range(n_head):
        heads.append(x[:, :, h * size : (h + 1) * size])
    return torch.stack(heads, dim=1)


def inputs_split(seed):
    g = generator(seed)
    return [(torch.randn(3, 7, 24, generator=g), 4), (torch.randn(2, 5, 21, generator=g), 3)]


def pieces(x, n_head):
    """(B,T,C) -> (B,T,H,hs): half of the way."""
    return x.unflatten(2, (n_head, -1))


def by_view(x, n_head):
    return x.reshape(x.size(0), n_head, x.size(1), -1)


def own_token_only(split, x, n_head):
    """Change one token: in each head its own row moves and no other."""
    before, moved = split(x, n_head), x.clone()
    moved[:, 2] += 1
    rows = ((split(moved, n_head) - before).abs().amax((0, 3)) > 1e-6).nonzero().tolist()
    strange = [(h, t) for h, t in rows if t != 2]
    return f"when token 2 changes, head {strange[0][0]} moves at token {strange[0][1]}" if strange else ""


def seen_with(split, merge):
    """Who sees whom in a layer of two heads that is ours but for one function."""
    g = generator(0)
    x, *w = normal(g, (1, 6, 8), (8, 8), (8, 8), (8, 8), (8, 8))

    def layer(x, *_):
        q, k, v = (split(x @ m, 2) for m in w[:3])
        return merge(written_out_attention(q, k, v, 0.0), w[3])

    return who_sees_whom(layer, x, None, None, None)


# ---- 10b: an attention layer in which each token looks only at itself hands over what it is given
def reference_merge(y, wo):
    B, H, T, hs = y.shape
    attention = bare(H * hs, H)
    attention.v.forward = lambda x: y.transpose(1, 2)
    own = Past(None, torch.eye(T, dtype=torch.bool), None)
    return attention(torch.zeros(B, T, H * hs), past=own) @ wo


def twin_merge(y, wo):
    size, total = y.size(3), 0.0
    for h in range(y.size(1)):
        total = total + y[:, h] @ wo[h * size : (h + 1) * size]
    return total


def inputs_merge(seed):
    g = generator(seed)
    return [
        (torch.randn(3, 4, 7, 6, generator=g), torch.randn(24, 24, generator=g) / 24**0.5),
        (torch.randn(2, 3, 5, 7, generator=g), torch.randn(21, 21, generator=g) / 21**0.5),
        (torch.randn(1, 2, 4, 3, generator=g), torch.randn(6, 6, generator=g) / 6**0.5),  # one text
    ]


def beside(y):
    return y.transpose(1, 2).flatten(2)


def rows_of_one_head(y):
    return y.reshape(y.size(0), y.size(2), -1)


def undoes_the_split(merge, y, wo):
    """With an output matrix that changes nothing, the heads stand side by side again."""
    x = torch.arange(2 * 5 * 12.0).view(2, 5, 12)
    found = merge(twin_split(x, 3), torch.eye(12))
    if (wrong := (found != x).nonzero().tolist()) and found.shape == x.shape:
        b, t, c = wrong[0]
        was, now = x[b, t, c], found[b, t, c]
        return f"split, then merged with wo = 1: number {c} of token {t} was {was:g} and is {now:g}"
    return ""


# ---- 10c
def reference_count(V, C, n_layer, n_head, n_kv, n_ff):
    config = GPTConfig(V, n_embd=C, n_layer=n_layer, n_head=n_head, n_kv_head=n_kv, n_ff=n_ff)
    return sum(p.numel() for p in GPT(config).parameters())


def twin_count(V, C, n_layer, n_head, n_kv, n_ff):
    attention = C * C + C * C + 2 * C * (n_kv * C // n_head)  # q, o; k and v
    block = attention + 2 * C * n_ff + 2 * C  # two matrices of the MLP, two norms
    return 2 * V * C + n_layer * block + C  # embedding and head; the last norm


def inputs_count(seed):
    return [(65, 24, 3, 4, 2, 40), (50 + seed % 13, 48 + 16 * (seed % 5), 2, 8, 8, 50)]


def but(extra):
    """A count that is wrong by so much."""
    return lambda *args: twin_count(*args) + extra(*args)


def kv(C, H, K):
    """The numbers of the matrix for keys, and of that for values."""
    return C * K * (C // H)


def heads_do_not_multiply(count, *args):
    """With as many key/value heads as heads, their number does not matter."""
    few, many = count(65, 48, 3, 2, 2, 40), count(65, 48, 3, 8, 8, 40)
    return "" if few == many else f"8 heads instead of 2, all else equal: {many - few:,} more. Why?"


def each_part(count, V, C, n_layer, *rest):
    """What one more block adds, and what is there once."""
    block, right = (f(V, C, n_layer + 1, *rest) - f(V, C, n_layer, *rest) for f in (count, twin_count))
    if block != right:
        return f"one more block adds {block:,g} numbers in yours, where {right:,} is right"
    once, right = (f(V, C, n_layer, *rest) - n_layer * block for f in (count, twin_count))
    return f"your blocks are right; beside them you have {once:,g} numbers, where {right:,} is right"


exercises = {
    "10a": dict(
        name="split",
        reference=reference_split,
        project=Attention,
        slow=twin_split,
        inputs=inputs_split,
        wrong={
            "view without transpose": by_view,
            "heads behind time": pieces,
            "heads summed": lambda x, n_head: pieces(x, n_head).sum(2),
            "every n-th number": lambda x, n_head: x.unflatten(2, (-1, n_head)).permute(0, 3, 1, 2),
            "as many heads as numbers": lambda x, n_head: x.unflatten(2, (-1, n_head)).transpose(1, 2),
            "numbers before tokens": lambda x, n_head: pieces(x, n_head).permute(0, 2, 3, 1),
            "wrong two axes swapped": lambda x, n_head: pieces(x, n_head).transpose(2, 3),
            "heads into the batch": lambda x, n_head: pieces(x, n_head).transpose(1, 2).flatten(0, 1),
            "stacked in front": lambda x, n_head: torch.stack(x.chunk(n_head, dim=2)),
            "a tuple of heads": lambda x, n_head: x.chunk(n_head, dim=2),
            "all of x for each": lambda x, n_head: x[:, None].expand(-1, n_head, -1, -1),
            "text cut, not vectors": lambda x, n_head: torch.stack(x.tensor_split(n_head, dim=1), dim=1),
        },
        properties=[own_token_only],
        picture=lambda split, x, n_head: seen_with(split, lambda y, wo: beside(y) @ wo),
    ),
    "10b": dict(
        name="merge",
        reference=reference_merge,
        project=Attention,
        slow=twin_merge,
        inputs=inputs_merge,
        lint={"wo": "the output matrix leads from C to C"},
        wrong={
            "reshape without transpose": lambda y, wo: rows_of_one_head(y) @ wo,
            "view after transpose": lambda y, wo: y.transpose(1, 2).view(y.size(0), y.size(2), -1) @ wo,
            "output matrix missing": lambda y, wo: beside(y),
            "no transpose, no output": lambda y, wo: rows_of_one_head(y),
            "output matrix transposed": lambda y, wo: beside(y) @ wo.T,
            "heads added": lambda y, wo: y.sum(1) @ wo,
            "output matrix per head": lambda y, wo: y @ wo,
            "same rows for each head": lambda y, wo: y.sum(1) @ wo[: y.size(3)],
            "numbers of heads interleaved": lambda y, wo: y.permute(0, 2, 3, 1).flatten(2) @ wo,
            "squeezed": lambda y, wo: (beside(y) @ wo).squeeze(),
            "wrong two axes swapped": lambda y, wo: rows_of_one_head(y.transpose(2, 3)) @ wo,
        },
        properties=[undoes_the_split],
        picture=lambda merge, y, wo: seen_with(twin_split, merge),
    ),
    "10c": dict(
        name="count_parameters",
        reference=reference_count,
        project=GPT,
        slow=twin_count,
        inputs=inputs_count,
        call=whole,
        numbers=lambda value, *args: dict(off=abs(value - twin_count(*args))),
        wrong={
            "attn.o forgotten": but(lambda V, C, L, H, K, F: -L * C * C),
            "heads multiply": but(lambda V, C, L, H, K, F: (H - 1) * L * (2 * C * C + 2 * kv(C, H, K))),
            "all heads have keys": lambda V, C, L, H, K, F: twin_count(V, C, L, H, H, F),
            "key heads C wide": lambda V, C, L, H, K, F: twin_count(V, C, L, H, H * K, F),
            "keys or values forgotten": but(lambda V, C, L, H, K, F: -L * kv(C, H, K)),
            "MLP always 4C": lambda V, C, L, H, K, F: twin_count(V, C, L, H, K, 4 * C),
            "12 C squared": lambda V, C, L, H, K, F: 2 * V * C + L * (12 * C * C + 2 * C) + C,
            "MLP one matrix": but(lambda V, C, L, H, K, F: -L * C * F),
            "one block": lambda V, C, L, H, K, F: twin_count(V, C, 1, H, K, F),
            "V x C once": but(lambda V, C, L, H, K, F: -V * C),
            "norms forgotten": but(lambda V, C, L, H, K, F: -(2 * L + 1) * C),
            "last norm forgotten": but(lambda V, C, L, H, K, F: -C),
            "one norm a block": but(lambda V, C, L, H, K, F: -L * C),
            "biases counted": but(lambda V, C, L, H, K, F: L * (3 * C + F + 2 * kv(C, H, K) // C)),
            "four equal matrices only": lambda V, C, L, H, K, F: L * (2 * C * C + 2 * kv(C, H, K)),
        },
        properties=[heads_do_not_multiply, each_part],
    ),
}

predictions = {
    "10.1": dict(answer=65536.0, tol=0.5),
}
