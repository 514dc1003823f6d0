"""Sliding-window attention: a token attends to itself and the few tokens before it (Beltagy et al., 2020).

    python train.py config/small.py --sliding_window=32 --sliding_global_every=2      or --technique=sliding

Layers that slide see `window` tokens; what is further back reaches a token through the layers below, up to
n_layer x (window - 1) tokens. Every n-th layer may attend to all tokens: every second as in Gemma 2 (2024),
every sixth as in Gemma 3 (2025), none as in Mistral (2023).

What it saves is the cache: a layer that slides keeps the keys and values of `window` tokens, however long the
text, in a ring: token n overwrites token n - window. Attention does not heed the order of its keys, and they
are rotated already. Bytes a row, with L layers of which G are global, and 2 K hs numbers a token:

    2 K hs (G block_size + (L - G) window) x bytes of a number

Parameters stay as they are. In training nothing is saved here: on a CPU, and on a GPU without kernels for
windows, all T x T scores are computed, and those outside of the window are masked. A recorded step
(graph=True, GPUs) keeps all keys, too, since its shapes must not change.

train.py has no setting for GPTConfig.window, which is one window for all layers, of imported models.
"""

import dataclasses

import torch
from torch import Tensor

from config import require
from generate import Cache, Past, visible
from model import Attention, Rope

# -----------------------------------------------------------------------------
sliding_window = 64  # a token attends to itself and the window - 1 tokens before it
sliding_global_every = 0  # every n-th layer attends to all tokens: 2 as in Gemma 2, 6 as in Gemma 3; 0 = none
# -----------------------------------------------------------------------------


class SlidingAttention(Attention):
    """model.Attention with a window of its own in generation, too, and a cache that is no longer than it."""

    def forward(self, x: Tensor, rope: Rope | None = None, past: Past | None = None) -> Tensor:
        """As Attention.forward, which knows the window in training: config.window."""
        return super().forward(x, rope, past and Recent(past, self.config.window))


class Recent(Past):
    """A layer's Past with a window."""

    def __init__(self, past: Past, window: int):
        super().__init__(past.cache, past.mask, past.first)
        self.window = window

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """k and v (B,K,T,hs) of the new tokens -> those that attention reads; sets the mask over them."""
        cache, T, device = self.cache, k.size(2), k.device
        if cache is not None and cache.length and not cache.static:
            return self.add_to_ring(k, v)
        if cache is not None and cache.static and cache.length:
            k, v = cache.append(k, v)  # all columns
            key = torch.arange(cache.columns, device=device)
            self.mask = self.mask.masked_fill(
                key < cache.position - self.window, -torch.inf
            )  # it has moved on
            return k, v
        mask = visible(torch.arange(T, device=device), T, self.window)  # (T,T)
        self.mask = mask if self.mask is None else self.mask & mask
        if cache is not None and cache.static:
            return cache.append(k, v)
        if cache is not None:
            self.fill_ring(cache, k, v)
        return k, v

    def fill_ring(self, cache: Cache, k: Tensor, v: Tensor) -> None:
        """Keep the last tokens of a prompt; token n is in column n % window."""
        B, K, T, hs = k.shape
        size = min(self.window, cache.columns)
        kept = torch.arange(max(0, T - size), T, device=k.device)
        cache.kv = k.new_zeros(2, B, K, size, hs)
        cache.kv[:, :, :, kept % size] = torch.stack((k, v))[:, :, :, kept]
        cache.length = T

    def add_to_ring(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """One token more, (B,K,1,hs) -> all that the ring holds."""
        cache, n = self.cache, self.cache.length  # n: the new token's number
        size = cache.kv.size(3)
        cache.kv[:, :, :, n % size] = torch.stack((k, v))[:, :, :, 0]
        cache.length += 1
        if self.mask is not None:  # over all tokens so far, because of padding -> over those of the ring
            columns = torch.arange(min(size, n + 1), device=k.device)
            self.mask = self.mask[..., n - (n - columns) % size]
        return cache.kv[:, :, :, : n + 1].unbind()


def change_model(model, config: dict):
    """Give the layers that slide a window. ValueError for settings that make no sense."""
    window, every = config["sliding_window"], config["sliding_global_every"]
    require(window >= 1, f"sliding_window={window} makes no sense; expected 1 or more tokens, such as 64")
    legal = every == 0 or every >= 2
    require(legal, f"sliding_global_every={every} makes no sense; expected 2 or more layers, or 0 for none")
    require(not model.config.window, f"the base has a window of {model.config.window}; leave sliding out")
    require("latent" not in config["technique"], "latent and sliding both replace attention; choose one")
    for i, block in enumerate(model.blocks, start=1):
        if every == 0 or i % every:
            block.attn.config = dataclasses.replace(model.config, window=window)
            block.attn.__class__ = SlidingAttention
    return model
