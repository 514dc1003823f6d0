# Lesson 11 (unit B): Grouped-query attention: fewer key/value heads
# Before: each head has keys and values of its own. To write a text, all of them have to be kept.
# Seconds: 4
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 11      your copy, in work/
#     python lessons/run.py check 11      what is right, what is not yet
#     python lessons/run.py show 11       the whole lesson from top to bottom, with its plot

# %%
import torch
import torch.nn.functional as F

from lessons.course import claim, save_plot, yours_or_ours
from model import GPT, GPTConfig

predict_1 = None  # bytes of the cache for 64 tokens: 4 layers, n_kv = 2 (of 4 heads), head size 32, float32

# %% [markdown]
# ## Looking back
#
# A model writes one token at a time. The new token's queries look at the keys of all tokens before it and
# collect their values. These do not change any more, so they are kept, in the **key/value cache**, which
# lesson 27 builds. For each new token all of it is read from memory. In long texts that takes longer than
# the arithmetic, and the cache may need more room than the weights.
#
# Does each head need keys and values of its own? In multi-query attention all heads share one of each
# (Shazeer, 2019). That is cheap, and a little worse. **Grouped-query attention** stands between: each group
# of H / n_kv query heads shares one head of keys and one of values. Its quality is reported to be close to
# that of all heads, its speed to that of one (Ainslie et al., 2023).
#
# What follows uses K for n_kv. With K = H it is lesson 10, with K = 1 multi-query attention.

# %% [markdown]
# ## 11a. Who shares with whom
#
# The simplest way to compute it: repeat the keys (and the values, likewise) until there are H heads of them,
# and go on as in lesson 10. Neighbours share: with H = 6 and K = 3, query heads 0 and 1 read key head 0.
#
# Any other order would be as good for a model that is trained with it. But weights trained in one order are
# wrong in the other, and the mistake hides well: with K = 1 and with K = H all orders are the same. `check`
# draws who reads whom: row h is a query head, column s a head of keys.


# %%
def repeat_kv(k, n_head):
    """Keys (or values) for each query head: neighbours get the same.

    k: (B, K, T, hs) float32, n_head: int, a multiple of K -> (B, n_head, T, hs) float32.
    """
    raise NotImplementedError("lesson 11a")


# %%
if __name__ == "__main__":
    for K in (1, 2, 3, 6):
        k = torch.arange(float(K)).view(1, K, 1, 1).expand(2, K, 5, 4)  # each head filled with its number
        found = yours_or_ours(repeat_kv, "11a")(k, 6)
        print(f"6 query heads, {K} of keys: they read {found[0, :, 0, 0].int().tolist()}")
        assert found.shape == (2, 6, 5, 4)
    claim(6, found.size(1), tol=0)
    claim(3, k.size(1) // 2, tol=0)

# %% [markdown]
# ## 11b. What it saves
#
# The weights shrink a little: the matrices for keys and values are n_kv heads wide now. The cache shrinks
# by the whole factor H / n_kv. Work out how large it is before you ask a computer for it. Numbers here are
# float32; in half precision it would be half.


# %%
def cache_bytes(config, T):
    """Bytes of the key/value cache of one text, all layers together, in float32.

    config: a GPTConfig, with the int n_layer, n_head, n_kv_head, n_embd and others; T: int, tokens that are
    kept -> int.
    """
    raise NotImplementedError("lesson 11b")


# %% [markdown]
# The plot takes the shape of a large model, Llama 2 70B (Touvron et al., 2023). It has 64 heads of 128
# numbers in each of 80 layers, and 8 heads of keys and values. In float32 each token of a text takes 655,360
# bytes, so a text of 4,096 tokens takes 2.7 GB. If all heads had keys and values of their own, it would be
# 21.5 GB. And each text that is written at the same time has a cache of its own.

# %%
if __name__ == "__main__":
    bytes_of = yours_or_ours(cache_bytes, "11b")
    claim(131_072, bytes_of(GPTConfig(n_layer=4, n_head=4, n_kv_head=2, n_embd=128), 64), tol=0)
    llama = {
        K: GPTConfig(n_layer=80, n_head=64, n_kv_head=K, n_embd=8192, block_size=4096) for K in (64, 8, 1)
    }
    lengths = (0, 1024, 2048, 3072, 4096)
    token = {K: bytes_of(config, 1) for K, config in llama.items()}
    sizes = {K: [T * token[K] / 1e9 for T in lengths] for K in llama}
    claim(655_360, token[8], tol=0)
    claim(4_096, lengths[-1], tol=0)
    claim(2.7, sizes[8][-1], tol=0.05)
    claim(21.5, sizes[64][-1], tol=0.05)
    claim(80, llama[8].n_layer, tol=0)
    claim(64, llama[8].n_head, tol=0)
    claim(8, llama[8].n_kv_head, tol=0)
    claim(128, llama[8].n_embd // llama[8].n_head, tol=0)

    def draw(axes):
        for K, gigabytes in sizes.items():
            axes.plot(lengths, gigabytes, marker="o", label=f"{K} head{'s' * (K > 1)} of keys and values")
        axes.set(
            xlabel="tokens of one text", ylabel="GB in float32", title="The cache of 80 layers, 64 heads"
        )
        axes.legend()

    save_plot("11_grouped_query", draw)

# %% [markdown]
# ## 11c. Without copies
#
# `repeat_kv` is right, and gives away what was won: for a moment k and v are as large as with all heads,
# and copying takes time for each new token. The queries are small, one token's: so they move, not the
# keys. Heads that share keys are like several queries for the same keys, which a product of matrices does
# at once.
#
# `check` looks at what your function makes on its way: nothing as large as the repeated keys. To `expand` k
# costs nothing yet, but a product that then has to fit it to q copies it after all.
#
# There is no mask here. The cache ends with the token that asks: it may look at all there is.


# %%
def attend_new(q, k, v):
    """What one new token finds in the cache, without repeating k and v: its output in each of H heads.

    q: (B, H, hs) float32, the queries of the new token.
    k, v: (B, K, T, hs) float32, all that is kept, the new token last; K divides H, neighbours share.
    -> (B, H, hs) float32.
    """
    raise NotImplementedError("lesson 11c")


# %%
if __name__ == "__main__":
    g = torch.Generator().manual_seed(11)
    q = torch.randn(2, 6, 4, generator=g)
    k, v = torch.randn(2, 2, 3, 9, 4, generator=g)
    found = yours_or_ours(attend_new, "11c")(q, k, v)
    kernel = F.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)[:, :, 0]
    assert torch.allclose(found, kernel, atol=1e-5), "what torch's kernel says, too"
    repeated = [yours_or_ours(repeat_kv, "11a")(part, 6) for part in (k, v)]
    plain = F.scaled_dot_product_attention(q[:, :, None], *repeated)[:, :, 0]
    assert torch.allclose(found, plain, atol=1e-5), "and what 11a with lesson 10 would give"
    print("attention to 3 heads of keys is attention to 6 heads of repeated keys")

# %% [markdown]
# What do fewer heads of keys cost? The model has less to choose from. In a model of 4 layers with C = 128
# and 4 heads, n_kv = 2 makes 65,536 weights less, out of 804,224.

# %%
if __name__ == "__main__":
    weights = {
        K: sum(p.numel() for p in GPT(GPTConfig(n_embd=128, n_head=4, n_kv_head=K)).parameters())
        for K in (4, 2)
    }
    claim(804_224, weights[4], tol=0)
    claim(65_536, weights[4] - weights[2], tol=0)
    claim(4, GPTConfig().n_layer, tol=0)
    claim(2, len(weights), tol=0)

# %% [markdown]
# ## Where it stands in the project
#
# `python train.py --n_kv_head=2` trains a model of this kind; with `--arch=llama` half as many heads of keys
# are usual. `Cache` in generate.py keeps keys and values: it takes the room of a full context at once and
# fills it from the left. `Attention.forward` in model.py leaves the sharing to torch's kernel
# (`enable_gqa`), and `written_out_attention` repeats, because it keeps nothing.
