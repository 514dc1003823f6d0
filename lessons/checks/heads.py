"""What the grader knows about lesson 10: several heads."""

import torch

from generate import Cache, Past
from lessons.checks.attention import who_sees_whom
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
    g = torch.Generator().manual_seed(seed)
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
    g = torch.Generator().manual_seed(0)
    x, *w = (torch.randn(*shape, generator=g) for shape in ((1, 6, 8), (8, 8), (8, 8), (8, 8), (8, 8)))

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
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(3, 4, 7, 6, generator=g), torch.randn(24, 24, generator=g) / 24**0.5),
        (torch.randn(2, 3, 5, 7, generator=g), torch.randn(21, 21, generator=g) / 21**0.5),
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


def whole(count, *args):
    """What a count says; 12.0 is as good as 12."""
    found = count(*args)
    return int(found) if isinstance(found, float) and found.is_integer() else found


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
            "view without transpose": (
                by_view,
                "The shape is right, the picture is not: rows of your heads are pieces of a few tokens.",
            ),
            "heads behind time": (
                pieces,
                "Attention works on the last two axes. With these, who would look at whom?",
            ),
            "heads summed": (
                lambda x, n_head: pieces(x, n_head).sum(2),
                "The heads are added up. They should stay apart, on an axis of their own.",
            ),
            "every n-th number": (
                lambda x, n_head: x.unflatten(2, (-1, n_head)).permute(0, 3, 1, 2),
                "Your head 0 takes every n-th number. Its numbers are neighbours: the first hs of a token.",
            ),
            "as many heads as numbers": (
                lambda x, n_head: x.unflatten(2, (-1, n_head)).transpose(1, 2),
                "Which of C = H x hs is H? You have as many heads as a head should have numbers.",
            ),
            "numbers before tokens": (
                lambda x, n_head: pieces(x, n_head).permute(0, 2, 3, 1),
                "Heads come second, so far so good. What comes last, the tokens or the numbers of a token?",
            ),
            "wrong two axes swapped": (
                lambda x, n_head: pieces(x, n_head).transpose(2, 3),
                "Counted from 0, which two of (B, T, H, hs) have to change places?",
            ),
            "heads into the batch": (
                lambda x, n_head: pieces(x, n_head).transpose(1, 2).flatten(0, 1),
                "Batch and heads are one axis here. That works inside, but four axes are asked for.",
            ),
            "stacked in front": (
                lambda x, n_head: torch.stack(x.chunk(n_head, dim=2)),
                "The heads stand before the batch. A stack can be put on another axis.",
            ),
            "a tuple of heads": (
                lambda x, n_head: x.chunk(n_head, dim=2),
                "The pieces are right. Put them on an axis of their own, so that all heads compute at once.",
            ),
            "all of x for each": (
                lambda x, n_head: x[:, None].expand(-1, n_head, -1, -1),
                "Each head gets the whole vector. How many numbers are left for one, if H heads share C?",
            ),
            "text cut, not vectors": (
                lambda x, n_head: torch.stack(x.tensor_split(n_head, dim=1), dim=1),
                "The text is cut into pieces. Which axis do the heads share out among themselves?",
            ),
        },
        properties=[own_token_only],
        picture=lambda split, x, n_head: seen_with(split, lambda y, wo: beside(y) @ wo),
        hints=[
            "In memory the C numbers of a token lie side by side. Which axis can be cut without moving any?",
            "First cut the last axis in two, (H, hs), by view. Then exchange two axes by transpose.",
            "(B, T, C) cut into (B, T, H, hs); axes 1 and 2 exchanged: (B, H, T, hs).",
        ],
    ),
    "10b": dict(
        name="merge",
        reference=reference_merge,
        project=Attention,
        slow=twin_merge,
        inputs=inputs_merge,
        lint={"wo": "the output matrix leads from C to C"},
        wrong={
            "reshape without transpose": (
                lambda y, wo: rows_of_one_head(y) @ wo,
                "The shape is right, the picture is not: rows of one head stand side by side as one token.",
            ),
            "view after transpose": (
                lambda y, wo: y.transpose(1, 2).view(y.size(0), y.size(2), -1) @ wo,
                "A transpose moves no number; view cannot bridge that. Look up `contiguous` and `reshape`.",
            ),
            "output matrix missing": (
                lambda y, wo: beside(y),
                "The heads know nothing of each other yet. What mixes them, with C x C numbers?",
            ),
            "no transpose, no output": (
                lambda y, wo: rows_of_one_head(y),
                "Two things: rows of one head stand side by side as one token, and nothing mixes the heads.",
            ),
            "output matrix transposed": (
                lambda y, wo: beside(y) @ wo.T,
                "Here a row vector stands before its matrix, as in x @ wq. Is yours turned around?",
            ),
            "heads added": (
                lambda y, wo: y.sum(1) @ wo,
                "Added up, the heads are only hs wide, and no longer apart. Put them side by side.",
            ),
            "output matrix per head": (
                lambda y, wo: y @ wo,
                "A single head is only hs wide. The output matrix reads all heads of a token at once.",
            ),
            "same rows for each head": (
                lambda y, wo: y.sum(1) @ wo[: y.size(3)],
                "All heads go through the same few rows of wo. Each has rows of its own.",
            ),
            "numbers of heads interleaved": (
                lambda y, wo: y.permute(0, 2, 3, 1).flatten(2) @ wo,
                "First all of head 0, then all of head 1: in which order do your numbers stand?",
            ),
            "wrong two axes swapped": (
                lambda y, wo: rows_of_one_head(y.transpose(2, 3)) @ wo,
                "Counted from 0, which two of (B, H, T, hs) have to change places?",
            ),
        },
        properties=[undoes_the_split],
        picture=lambda merge, y, wo: seen_with(twin_split, merge),
        hints=[
            "What is on its way back has to go the same way: what did 10a do last?",
            "Exchange the axes first, then join two into one (reshape), then comes the output matrix.",
            "(B, H, T, hs), axes 1 and 2 exchanged, joined to (B, T, H * hs), times wo.",
        ],
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
            "attn.o forgotten": (
                but(lambda V, C, L, H, K, F: -L * C * C),
                "{off:,} short: C x C in each block. What comes after the merge?",
            ),
            "heads multiply": (
                but(lambda V, C, L, H, K, F: (H - 1) * L * (2 * C * C + 2 * kv(C, H, K))),
                "{off:,} too many: more heads are smaller heads. Together they are as wide as one.",
            ),
            "all heads have keys": (
                lambda V, C, L, H, K, F: twin_count(V, C, L, H, H, F),
                "{off:,} too many: there are only n_kv heads of keys and values.",
            ),
            "key heads C wide": (
                lambda V, C, L, H, K, F: twin_count(V, C, L, H, H * K, F),
                "{off:,} too many: a head of keys has C / n_head numbers, not C.",
            ),
            "keys or values forgotten": (
                but(lambda V, C, L, H, K, F: -L * kv(C, H, K)),
                "{off:,} short. Keys and values have a matrix each.",
            ),
            "MLP always 4C": (
                lambda V, C, L, H, K, F: twin_count(V, C, L, H, K, 4 * C),
                "The MLP is n_ff wide inside. 4 C is only what is usual.",
            ),
            "12 C squared": (
                lambda V, C, L, H, K, F: 2 * V * C + L * (12 * C * C + 2 * C) + C,
                "12 C x C a block is the rule of thumb for n_kv = n_head and n_ff = 4 C. Here neither is so.",
            ),
            "MLP one matrix": (
                but(lambda V, C, L, H, K, F: -L * C * F),
                "{off:,} short: the MLP goes up to n_ff, and has to come down again.",
            ),
            "one block": (
                lambda V, C, L, H, K, F: twin_count(V, C, 1, H, K, F),
                "{off:,} short: do blocks share their numbers?",
            ),
            "V x C once": (
                but(lambda V, C, L, H, K, F: -V * C),
                "{off:,} short, which is V x C. Letters come in by one table and go out by another.",
            ),
            "norms forgotten": (
                but(lambda V, C, L, H, K, F: -(2 * L + 1) * C),
                "{off:,} short: small, but all norms have their C numbers. How many norms are there?",
            ),
            "last norm forgotten": (
                but(lambda V, C, L, H, K, F: -C),
                "{off:,} short, which is C. What stands between the last block and the head?",
            ),
            "one norm a block": (
                but(lambda V, C, L, H, K, F: -L * C),
                "{off:,} short: attention has a norm before it. What about the MLP?",
            ),
            "biases counted": (
                but(lambda V, C, L, H, K, F: L * (3 * C + F + 2 * kv(C, H, K) // C)),
                "{off:,} too many. There are no biases here.",
            ),
            "four equal matrices only": (
                lambda V, C, L, H, K, F: L * (2 * C * C + 2 * kv(C, H, K)),
                "That is attention in all blocks. The rest of the model learns, too.",
            ),
        },
        properties=[heads_do_not_multiply, each_part],
        hints=[
            "Which matrices of a block change their size if n_kv does, and which if n_head does?",
            "By block: four matrices of attention, two of the MLP, two norms. Then what is there once.",
            "2 V C + n_layer * (2 C C + 2 C (n_kv * hs) + 2 C n_ff + 2 C) + C, with hs = C / n_head",
        ],
    ),
}

predictions = {
    "10.1": dict(
        ask="how many numbers attention has to learn at C = 128 with 4 heads, without biases",
        answer=65536.0,
        tol=0.5,
        wrong={
            49152.0: "49,152 is 3 C x C: queries, keys and values. The output matrix makes it 65,536.",
            262144.0: "262,144 is 4 heads times too many: heads share C among themselves; 65,536.",
            196608.0: "196,608 is 12 C x C, the whole block with its MLP; attention alone has 65,536.",
        },
    )
}
