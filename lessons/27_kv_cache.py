# Lesson 27 (unit E): KV cache: same text, less work
# Before: letters are drawn well. But for each new one the model reads the whole text again.
# Seconds: 8
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 27     your copy, in work/
#     python lessons/run.py check 27     what is right, what is not yet
#     python lessons/run.py show 27      the whole lesson from top to bottom, with its plot

# %%
import time

import torch

from lessons.course import claim, save_plot, yours_or_ours
from model import GPT, GPTConfig

predict_1 = None  # tokens read without a cache, as a multiple of those with it, for 64 new tokens after 1
predict_2 = None  # tokens read without a cache, as a multiple of those with it, for 1,024 new tokens after 1

# %% [markdown]
# ## What does not change
#
# To write a token, the model reads the text and looks at the logits behind the last token. Then the text is
# one longer, and everything is read again: a text of 5 tokens that grows by 3 costs 5 + 6 + 7 = 18 tokens.
#
# What is computed anew each time is nearly always the same. A token looks at itself and at earlier ones
# (lesson 9). So nothing that belongs to a token changes when later ones come: not its vector in any block,
# and not its query, key or value.
#
# And the new token, what does it need of the others? Of their vectors nothing. In each block its query meets
# their keys, and it takes a share of their values. These two are kept: the **key/value cache**, KV cache for
# short, one in each block. The queries of old tokens have done their work.
#
#     reads all again                  with a cache
#     1st pass  a b c d e              a b c d e      the prompt
#     2nd pass  a b c d e f            . . . . . f    . is in the cache, and is not computed
#     3rd pass  a b c d e f g          . . . . . . g
#
# With the cache the same text costs 5 + 1 + 1 = 7 tokens. The last new token is read by nobody.

# %% [markdown]
# ## 27a. With a cache
#
# The first pass reads the prompt, all further ones a single token, the newest. In each block the new keys
# and values are joined to those of earlier passes, along the axis of tokens. Then the block attends as
# always. Three things are easily forgotten:
#
# - **The place.** A new token stands behind all that were read, though it is alone in its pass. Its row of
#   `wpe` is that of its place in the text: after a prompt of 5 the first new token has place 5, not 0.
# - **The mask.** A new token may see everything in the cache, and itself. Query and key are compared by their
#   places in the text: key s is hidden from a query at place t if s > t. The square mask of lesson 9 does not
#   fit any more: one query meets many keys.
# - **The end.** A cache belongs to one text. The next prompt begins with an empty one.
#
# The result must be the same text, not nearly the same: here it is greedy (lesson 26), so that it can be
# compared. Two functions of a block are given: `heads_of` is what comes before attention, with the heads
# split (lesson 10), and `rest_of` what comes after it (lesson 12 and lesson 13).


# %%
def heads_of(block, x):
    """Queries, keys and values of tokens x (B, T, C): a list of three, (B, H, T, hs) each."""
    h, attn = block.attn_norm(x), block.attn
    return [part(h).unflatten(-1, (attn.config.n_head, -1)).transpose(1, 2)
            for part in (attn.q, attn.k, attn.v)]  # fmt: skip


def rest_of(block, x, found):
    """What the block makes of tokens x (B, T, C) and what their heads found (B, H, T, hs): (B, T, C)."""
    x = x + block.attn.o(found.transpose(1, 2).flatten(2))
    return x + block.mlp(block.mlp_norm(x))


def write(gpt, ids, n):
    """Go on with a text by n tokens, always the likeliest, and read each token once.

    gpt: has `wte`, `wpe`, `blocks`, `norm` and `head` (lesson 13), without dropout; ids: (B, T) int64, the
    prompts; n: int, at least 1; T + n tokens have a place in wpe
    -> (B, T + n) int64, the prompts and what follows them. Nothing is kept from one call to the next.
    """
    raise NotImplementedError("lesson 27a")


# %%
if __name__ == "__main__":
    torch.manual_seed(27)
    config = GPTConfig(65, block_size=1041, n_layer=2, n_head=4, n_embd=64, arch="gpt2")
    gpt = GPT(config).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(5)  # an untrained model says nearly the same after any text
        ids = torch.randint(65, (3, 5))
        found, plain = yours_or_ours(write, "27a")(gpt, ids, 50), ids
        for _ in range(50):
            plain = torch.cat((plain, gpt(plain)[:, -1:].argmax(-1)), 1)
    print("row 0 with a cache:   ", *found[0, 5:25].tolist())
    print("row 0 without a cache:", *plain[0, 5:25].tolist())
    assert torch.equal(found, plain), "the same text"

# %% [markdown]
# ## 27b. What is saved, and what it takes
#
# Count tokens that are read. From a prompt of 1 token, n new ones cost 1 + 2 + ... + n without a cache, and n
# with it: the ratio is (n + 1) / 2. It grows with the text: 32.5 for 64 new tokens, 512.5 for 1,024.
#
# The price is memory. Each token that was read leaves a key and a value in each block, for each head of keys
# (lesson 11): 2 x layers x heads x head size numbers.
#
# What comes back in time is less than these ratios. A pass over one token has to read all weights, like a
# pass over many, and each operation has to be started (lesson 24). And the new token still looks at the
# whole cache. So with a small model and a short text nothing may come back. The plot shows the milliseconds
# of one new token, after short and long texts.
#
# By the way: the order of the cache does not matter. A single token sees all of it, and a sum has no order;
# what tells the places apart is in the keys.


# %%
def costs(config, prompt, n, width):
    """What it takes to write n tokens after a prompt, for one row.

    config: a GPTConfig, with the int n_layer, n_kv_head, head_size and others; prompt: int, its tokens; n:
    int, at least 1; width: int, bytes of a number -> dict of ints: "plain", tokens read in all passes
    together if each reads the whole text; "cached", if each token is read once, and the very last one never;
    "bytes" of the keys and values that the cache holds in the end.
    """
    raise NotImplementedError("lesson 27b")


# %%
def milliseconds(function):
    """The shortest of three runs."""
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        function()
        taken.append(1000 * (time.perf_counter() - begun))
    return min(taken)


if __name__ == "__main__":
    price, either = yours_or_ours(costs, "27b"), yours_or_ours(write, "27a")
    lengths, curves = (1, 64, 256, 512, 1024), {"reads all again": [], "with a cache": []}
    with torch.no_grad():
        for length in lengths:
            text = torch.randint(65, (1, length))
            curves["reads all again"].append(milliseconds(lambda text=text: gpt(text)))
            more, one = (
                milliseconds(lambda n=n, t=text: yours_or_ours(write, "27a")(gpt, t, n)) for n in (17, 1)
            )
            curves["with a cache"].append(max(more - one, 0.01) / 16)
    for T in (64, 1024):
        found, upto = price(config, 1, T, 4), lengths.index(T) + 1
        seconds = [torch.trapezoid(torch.tensor(curve[:upto]), torch.tensor(lengths[:upto])).item() / 1000
                   for curve in curves.values()]  # fmt: skip
        faster, fewer = seconds[0] / seconds[1], found["plain"] / found["cached"]
        print(f"{T} new tokens: {found['plain']:,} or {found['cached']:,} are read, {fewer} times fewer; "
              f"{seconds[0]:.2f} s or {seconds[1]:.2f} s, {faster:.1f} times faster")  # fmt: skip
        print(f"the cache holds {found['bytes']:,} bytes then")
    assert faster < fewer, "time gains less"
    assert curves["reads all again"][-1] > 2 * curves["with a cache"][-1]
    claim(32.5, price(config, 1, 64, 4)["plain"] / 64, tol=0)
    claim(512.5, price(config, 1, 1024, 4)["plain"] / 1024, tol=0)
    lengths_read = [ids.size(1) + i for i in range(3)]
    claim(5, lengths_read[0], tol=0)
    claim(6, lengths_read[1], tol=0)
    claim(3, len(lengths_read), tol=0)
    claim(18, price(config, 5, 3, 4)["plain"], tol=0)
    claim(7, price(config, 5, 3, 4)["cached"], tol=0)
    claim(2, price(config, 1, 3, 4)["plain"] / price(config, 1, 3, 4)["cached"], tol=0)
    claim(64, lengths[1], tol=0)
    claim(1024, lengths[-1], tol=0)

    def draw(axes):
        for name, curve in curves.items():
            axes.plot(lengths, curve, marker="o", label=name)
        axes.set(xlabel="tokens before", ylabel="ms", title="One new token")
        axes.legend()

    save_plot("27_kv_cache", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `Cache` in generate.py is the cache of one block: it takes the room for all tokens at once and fills it, so
# nothing is copied when a token comes. `reading` there makes places and mask, and `stream` is your loop, with
# the knobs of lesson 26 and rows of unequal length. When the context is full, each new token shifts the
# places of all others; then the cache is of no use, and the last `block_size` tokens are read again.
