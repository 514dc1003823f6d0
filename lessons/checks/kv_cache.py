"""What the grader knows about lesson 27: a text written with a key/value cache, and what the cache costs."""

import torch

from generate import generate
from lessons.common import fill, generator, mistakes
from model import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=11, block_size=64, n_layer=2, n_head=3, n_embd=15, arch="gpt2", tie_weights=0)


# ---- 27a: cached = uncached. These two stand in the lesson, too.
def heads_of(block, x):
    h, attn = block.attn_norm(x), block.attn
    return [part(h).unflatten(-1, (attn.config.n_head, -1)).transpose(1, 2)
            for part in (attn.q, attn.k, attn.v)]  # fmt: skip


def rest_of(block, x, found):
    x = x + block.attn.o(found.transpose(1, 2).flatten(2))
    return x + block.mlp(block.mlp_norm(x))


def reference_write(gpt, ids, n):
    return torch.tensor(generate(gpt, ids.tolist(), n, temperature=0.0))


def twin_write(gpt, ids, n):
    past, new, start = {}, ids, 0
    for _ in range(n):
        places = torch.arange(start, start + new.size(1))
        x = gpt.wte(new) + gpt.wpe(places)
        for i, block in enumerate(gpt.blocks):
            q, k, v = heads_of(block, x)
            if i in past:
                k, v = torch.cat((past[i][0], k), 2), torch.cat((past[i][1], v), 2)
            past[i] = k, v
            hidden = torch.arange(k.size(2)) > places[:, None]
            scores = (q @ k.mT / q.size(-1) ** 0.5).masked_fill(hidden, -torch.inf)
            x = rest_of(block, x, torch.softmax(scores, -1) @ v)
        start += new.size(1)
        new = gpt.head(gpt.norm(x))[:, -1:].argmax(-1)
        ids = torch.cat((ids, new), 1)
    return ids


def inputs_write(seed):
    """Seed, rows, length of the prompt, new tokens."""
    return [(10 + seed, 2, 5, 14), (30 + seed, 3, 4, 2), (50 + seed, 2, 1, 4)]


def small_gpt(seed):
    return fill(GPT(CONFIG).eval(), generator(seed))


def two_prompts(seed, B, T):
    return torch.randint(CONFIG.vocab_size, (2, B, T), generator=generator(seed))


@torch.no_grad()
def seen_of_write(write, seed, B, T, n):
    """Two texts one after the other: ids, the logits they were chosen by, and how many tokens were read."""
    gpt, found = small_gpt(seed), []
    for prompt in two_prompts(seed, B, T):
        logits, read = [], []
        hooks = [
            gpt.head.register_forward_hook(lambda m, args, out, to=logits: to.append(last_of(out))),
            gpt.blocks[0].mlp.register_forward_hook(lambda m, args, out, to=read: to.append(args[0].size(1))),
        ]
        ids = write(gpt, prompt, n)
        for hook in hooks:
            hook.remove()
        # The very last token need not be read; who reads it all the same wastes one pass.
        found.append({"ids": ids, "logits": torch.stack(logits[:n]) if logits else None,
                      "tokens read": max(sum(read), T + n)})  # fmt: skip
    return found


def last_of(logits):
    return logits if logits.dim() == 2 else logits[:, -1]


def same_as_uncached(write, seed, B, T, n):
    """The text of the whole model, which reads everything again for each token."""
    gpt, ids = small_gpt(seed), two_prompts(seed, B, T)[0]
    with torch.no_grad():
        found = write(gpt, ids, n)
        for t in range(T, T + n):
            ids = torch.cat((ids, gpt(ids)[:, -1:].argmax(-1)), 1)
            if not torch.equal(found[:, : t + 1], ids):
                return f"new token {t - T + 1} of {n} is another one than without a cache"


@torch.no_grad()
def who_sees_whom(write, seed, B, T, n):
    """Row: the logits of a new token. Column: a token that was read. x where the one moves the other."""
    T, n = 4, 5
    gpt, ids = small_gpt(seed), two_prompts(seed, 2, T)[0]
    logits, state = [], {}

    def moved(module, args, out):
        out = out.clone()
        start = state["read"] if out.size(1) < 2 else 0  # who reads all again begins at 0
        place, state["read"] = state["moved"] - start, start + out.size(1)
        if 0 <= place < out.size(1):
            out[:, place, 0] += 3.0
        return out

    def forced(module, args, out):  # the text stays the same, whatever is moved
        logits.append(last_of(out))
        return torch.zeros_like(out).index_fill(-1, torch.tensor([len(logits) % 7]), 1.0)

    gpt.wte.register_forward_hook(moved), gpt.head.register_forward_hook(forced)

    def run(place):
        logits.clear(), state.update(moved=place, read=0)
        write(gpt, ids, n)
        return torch.stack(logits)

    base = run(-1)
    differ = [(run(s) - base).abs().amax((1, 2)) > 1e-4 for s in range(T + n - 1)]
    return ["".join("x" if d[t] else "." for d in differ) for t in range(n)]


KEPT, JOIN = "past[i] = k, v", "if i in past:"
PLACES, WPE = "torch.arange(start, start + new.size(1))", "gpt.wpe(places)"
BEGIN, NEXT = "past, new, start = {}, ids, 0", "new = gpt.head(gpt.norm(x))[:, -1:].argmax(-1)"
HIDDEN, GROW = "torch.arange(k.size(2)) > places[:, None]", "ids = torch.cat((ids, new), 1)"
NOT_WRITE = mistakes(twin_write, {
    "position always 0": (WPE, "gpt.wpe(torch.arange(new.size(1)))"),
    "position one too far": (WPE, "gpt.wpe(places + (start > 0))"),
    "position counts passes": (WPE, "gpt.wpe(places - max(0, start - _))"),
    "sees only the first token": (HIDDEN, "torch.ones(new.size(1), k.size(2)).triu(1).bool()"),
    "sees only itself": (JOIN, "if False:"),
    "own key not seen": (HIDDEN, "torch.arange(k.size(2)) >= places[:, None] + (start == 0)"),
    "prompt without a mask": (HIDDEN, "torch.zeros(1, 1).bool()"),
    "joined along heads": ("k), 2)", "k), 1)", "v), 2)", "v), 1)"),
    "joined along features": ("k), 2)", "k), 3)", "v), 2)", "v), 3)"),
    "values not kept": ("torch.cat((past[i][1], v), 2)", "v"),
    "new ones not kept": (KEPT, "past.setdefault(i, (k, v))"),
    "one cache for all layers": (JOIN, "if past:", KEPT, "past[0] = k, v", "past[i]", "past[0]"),
    "not reset between prompts": (BEGIN, 'past, new = gpt.__dict__.setdefault("past", {}), ids\n'
        "    start = past[0][0].size(2) if past else 0"),
    "last token read twice": (GROW, GROW + "\n        new = ids[:, -2:]"),
    "recomputes everything": (GROW, GROW + "\n        past, new, start = {}, ids, 0"),
    "first token's guess": ("[:, -1:]", "[:, :1]"),
    "scores not divided": (" / q.size(-1) ** 0.5", ""),
    "new tokens alone returned": ("return ids", "return ids[:, -n:]"),
    "one token too many": ("range(n)", "range(n + 1)"),
})  # fmt: skip


# ---- 27b: passes and bytes
def reference_costs(config, prompt, n, width):
    plain = sum(prompt + i for i in range(n))
    cached = prompt + n - 1
    numbers = 2 * config.n_layer * config.n_kv_head * config.head_size
    return dict(plain=plain, cached=cached, bytes=width * numbers * cached)


def inputs_costs(seed):
    shapes = [(3, 6, 2, 5), (5, 4, 4, 8), (2, 8, 1, 6)]  # layers, heads, heads of keys, head size
    configs = [GPTConfig(n_layer=L, n_head=H, n_kv_head=K, n_embd=H * hs + 6, head_size=hs, arch="gpt2")
               for L, H, K, hs in shapes]  # fmt: skip
    more = seed % 9
    return [(configs[0], 5 + more, 37, 4), (configs[1], 11, 64 + more, 2), (configs[2], 1, 90 + more, 3),
            (configs[0], 6 + more, 1, 2)]  # fmt: skip


def one_new_token_reads_the_prompt(costs, config, prompt, n, width):
    found = costs(config, prompt, 1, width)
    return (
        f"for one new token you say plain {found['plain']}, cached {found['cached']}; both read the prompt "
        f"alone, {prompt}" * (not found["plain"] == found["cached"] == prompt)
    )


PLAIN, CACHED = "sum(prompt + i for i in range(n))", "cached = prompt + n - 1"
NUMBERS, BYTES = "2 * config.n_layer * config.n_kv_head * config.head_size", "width * numbers * cached"
NOT_COSTS = mistakes(reference_costs, {
    "each pass the longest": (PLAIN, "n * (prompt + n - 1)"),
    "each pass the prompt": (PLAIN, "n * prompt"),
    "prompt left out": (PLAIN, "sum(1 + i for i in range(n))"),
    "one pass too far": (PLAIN, "sum(prompt + i + 1 for i in range(n))"),
    "passes, not tokens": (PLAIN, "n", CACHED, "cached = n", BYTES, "width * numbers * (prompt + n - 1)"),
    "prompt read for free": (CACHED, "cached = n", BYTES, "width * numbers * (prompt + n - 1)"),
    "prompt read each time": (CACHED, "cached = n * (prompt + 1)", BYTES,
        "width * numbers * (prompt + n - 1)"),
    "last token read, too": (CACHED, "cached = prompt + n"),
    "keys alone": (NUMBERS, NUMBERS.replace("2 * ", "")),
    "all heads": (NUMBERS, NUMBERS.replace("n_kv_head", "n_head")),
    "one head": (NUMBERS, NUMBERS.replace(" * config.n_kv_head", "")),
    "one layer": (NUMBERS, NUMBERS.replace(" * config.n_layer", "")),
    "width of the stream": (NUMBERS, "2 * config.n_layer * config.n_embd"),
    "room for the whole context": (BYTES, "width * numbers * config.block_size"),
    "new tokens alone kept": (BYTES, "width * numbers * (n - 1)"),
    "always four bytes": (BYTES, "4 * numbers * cached"),
    "numbers, not bytes": (BYTES, "numbers * cached"),
})  # fmt: skip

exercises = {
    "27a": dict(name="write", reference=reference_write, project=generate, slow=twin_write,
        inputs=inputs_write, call=seen_of_write, gradients=False, properties=[same_as_uncached],
        picture=who_sees_whom, forbidden=["generate", "stream", "next_logits", "Cache"], wrong=NOT_WRITE,
        ),
    "27b": dict(name="costs", reference=reference_costs, inputs=inputs_costs, gradients=False,
        twin="generate.py fills a cache and counts nothing; a test counts what it reads",
        properties=[one_new_token_reads_the_prompt], wrong=NOT_COSTS,
        ),
}  # fmt: skip

predictions = {
    "27.1": dict(answer=32.5, tol=0.1),
    "27.2": dict(answer=512.5, tol=0.1),
}
