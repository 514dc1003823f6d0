"""Multi-head latent attention: keys and values of all heads from one short vector (DeepSeek-V2, 2024).

    python train.py config/small.py --latent_rank=64          or --technique=latent

Attention keeps K heads of keys and of values for each token that was read: 2 K hs numbers a layer. Here it
keeps a latent c of `rank` numbers, and one rotary key r of `rope` numbers that all heads share:

    c = norm(W_c x)       (rank)     r = rotate(W_r x)    (rope)      the cache: rank + rope numbers
    k_h = (W_k,h c, r)    v_h = W_v,h c                               of head h, made again from c
    q_h = (W_q,h x, rotated behind hs)    score = q_h · k_h / sqrt(hs + rope)    y = sum over h of W_o,h v_h

The rotation cannot be a part of c: it would stand between W_k and the query. So the position has channels of
its own (decoupled rotary embedding). With C = H hs, a layer has these weights, in place of 4 C^2 with K = H:

    q: C (C + H rope)    kv: C (rank + rope)    k and v: 2 rank C    o: C^2      and rank in the norm

In training all heads are written out. In generation W_k is multiplied into the query and W_v into the output
("absorbed"): heads then read the cache itself, as multi-query attention with one head of rank + rope numbers.
That takes less memory, and more arithmetic a key: 2 rank + rope numbers a head in place of 2 hs.

qk_norm normalises queries and r; c has a norm anyway. DeepSeek also makes queries of a latent, which saves
memory in training only: left out. DeepSeek's rank is 4 hs and rope hs / 2, for 128 heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import require
from generate import Past
from machine.layers import Linear
from model import build_norm, rotate, written_out_attention

# -----------------------------------------------------------------------------
latent_rank = 64  # numbers in the latent of a token: keys and values of all heads are made of them
latent_rope = 16  # channels of the shared rotary key; even, and head_size is a multiple of it
# -----------------------------------------------------------------------------

FROM_SCRATCH = "its keys and values are made in another way than those of the base"


class LatentAttention(nn.Module):
    """Causal attention over latents: (B,T,C) -> (B,T,C), in place of model.Attention."""

    def __init__(self, config, rank: int, rope: int):
        """config: the model's. rank, rope: latent_rank and latent_rope."""
        super().__init__()
        self.config, self.rank, self.rope = config, rank, rope
        H, hs, bias = config.n_head, config.head_size, bool(config.qkv_bias)
        self.q = Linear(config.n_embd, H * (hs + rope), bias=bias)
        self.kv = Linear(config.n_embd, rank + rope, bias=bias)
        self.latent_norm = build_norm(config, rank)
        self.k = Linear(rank, H * hs, bias=False)
        self.v = Linear(rank, H * hs, bias=False)
        self.o = Linear(H * hs, config.n_embd, bias=config.bias)
        self.drop = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        if config.qk_norm:
            learned = config.qk_norm == 2
            self.q_norm = build_norm(config, hs + rope, learned)
            self.k_norm = build_norm(config, rope, learned)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], past: Past | None = None) -> Tensor:
        """x (B,T,C) -> (B,T,C). rope: the tables of a whole head. past: only in generation."""
        B, T, _ = x.shape
        H, hs = self.config.n_head, self.config.head_size
        # Pair i of a whole head turns by theta^(-2i / hs): every (hs / rope)th has theta^(-2i / rope).
        cos, sin = (table[..., :: hs // self.rope] for table in rope)  # (B or 1,T,1,rope)
        q = self.q(x).view(B, T, H, hs + self.rope)
        joined = self.kv(x)  # (B,T,rank+rope)
        c, r = joined.split((self.rank, self.rope), dim=-1)
        c, r = self.latent_norm(c), r[:, :, None]  # (B,T,rank), (B,T,1,rope)
        if self.config.qk_norm:
            q, r = self.q_norm(q), self.k_norm(r)
        q = torch.cat((q[..., :hs], rotate(q[..., hs:], cos, sin)), dim=-1)
        r = rotate(r, cos, sin)
        q = q.to(joined.dtype).transpose(1, 2)  # (B,H,T,hs+rope); autocast normalises in float32
        latents = torch.cat((c[:, :, None], r), dim=-1).to(joined.dtype).transpose(1, 2)  # (B,1,T,rank+rope)
        mask, causal = None, True
        if past is not None:
            (latents,) = past.extend(latents)  # (B,1,keys,rank+rope)
            mask = past.mask
            causal = mask is None and T > 1
        plain = type(self.k) is Linear and type(self.v) is Linear  # not with LoRA on them, not packed
        attend = self.absorbed if past is not None and plain else self.written_out
        y = attend(q, latents, mask, causal)  # (B,H,T,hs)
        return self.drop(self.o(y.transpose(1, 2).reshape(B, T, H * hs)))

    def written_out(self, q: Tensor, latents: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """q (B,H,T,hs+rope), latents (B,1,keys,rank+rope) -> (B,H,T,hs), with all heads' keys and values."""
        B, H, hs, keys = q.size(0), self.config.n_head, self.config.head_size, latents.size(2)
        c, r = latents.split((self.rank, self.rope), dim=-1)
        k, v = (layer(c[:, 0]).view(B, keys, H, hs).transpose(1, 2) for layer in (self.k, self.v))
        k = torch.cat((k, r.expand(B, H, keys, self.rope)), dim=-1)  # (B,H,keys,hs+rope)
        dropout = self.config.dropout if self.training else 0.0
        if mask is None and causal and keys <= 512 and q.device.type == "cpu" and q.dtype != torch.float32:
            return written_out_attention(q, k, v, dropout)  # as in model.Attention
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)

    def absorbed(self, q: Tensor, latents: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """The same without them: q · W_k c = (W_k' q) · c, and a sum of W_v c is W_v times the sum of c."""
        H, hs = self.config.n_head, self.config.head_size
        to_k, to_v = (layer.weight.view(H, hs, self.rank) for layer in (self.k, self.v))
        q_c, q_r = q.split((hs, self.rope), dim=-1)
        q = torch.cat((q_c @ to_k, q_r), dim=-1)  # (B,H,T,rank+rope)
        c, scale = latents[..., : self.rank], (hs + self.rope) ** -0.5
        y = F.scaled_dot_product_attention(q, latents, c, mask, 0.0, causal, scale=scale, enable_gqa=True)
        return y @ to_v.mT  # (B,H,T,rank) -> (B,H,T,hs)


def change_model(model, config: dict):
    """Put latent attention in place of each block's attention. ValueError for settings that make no sense."""
    rank, rope, shape = config["latent_rank"], config["latent_rope"], model.config
    hs = shape.head_size
    require(rank >= 1, f"latent_rank={rank} makes no sense; expected 1 or more, such as {hs}")
    even = rope >= 2 and rope % 2 == 0 and hs % rope == 0
    require(shape.position == "rope", "technique=latent has a rotary key; expected --position=rope")
    require(even, f"latent_rope={rope} does not fit heads of {hs}; expected an even divisor of {hs}")
    require(not shape.window, "technique=latent has no window; leave it out for such a base")
    require("sliding" not in config["technique"], "latent and sliding both replace attention; choose one")
    if shape.n_kv_head < shape.n_head and config.get("n_kv_head"):
        raise ValueError(f"n_kv_head={shape.n_kv_head} is not for technique=latent; leave it out")
    for block in model.blocks:
        with torch.device(model.norm.weight.device):
            block.attn = LatentAttention(shape, rank, rope).train(block.training)
        model.init_weights(block.attn)
    return model
