"""ids -> logits: the GPT and its variants.

    idx (B,T) -> wte (B,T,C) -> n_layer times: x += attn(norm(x)), x += mlp(norm(x)) -> norm -> head (B,T,V)

B rows, T tokens, C = n_embd, V = vocab_size, H = n_head, K = n_kv_head, hs = head_size = C / H.
The decoder-only transformer: Vaswani et al., 2017; Radford et al., 2018. The loss is train.py's; generate.py
draws tokens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from config import require
from generate import Cache, stream

# An architecture is a set of switches; what it does not name is off (0). Each can also be set alone, to any
# value that stands here. modern: what small models learn fastest with (modded-nanogpt, nanochat; 2025).
ARCHS = {
    "modern": dict(norm="rmsnorm", position="rope", activation="relu2", qk_norm=1, token_shift=1, zero_init=1,
                   logit_cap=15),
    "gpt2": dict(norm="layernorm", position="learned", activation="gelu", tie_weights=1),  # OpenAI, 2019
    "llama": dict(norm="rmsnorm", position="rope", activation="swiglu"),  # Meta, 2023
}  # fmt: skip


@dataclass
class GPTConfig:
    """The shape of a model, completed and checked when made. ValueErrors name the nearest one that works."""

    vocab_size: int = 65
    block_size: int = 128  # longest context, in tokens
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0  # of embeddings, attention weights and what is added to the residual stream
    bias: bool = False  # in linear layers and LayerNorm; RMSNorm and head have none
    arch: str = "modern"  # modern | gpt2 | llama
    norm: str = ""  # layernorm | rmsnorm; "" and -1, here and below: as arch says
    position: str = ""  # learned | rope
    activation: str = ""  # relu2 | gelu | swiglu
    n_kv_head: int = 0  # 0: n_head, or half of it for llama if n_head is even
    n_ff: int = 0  # width inside the MLP; 0: 4 * n_embd, or for swiglu 8/3 of it to a multiple of 8
    qk_norm: int = -1  # 1: queries and keys are normalised, in the way of norm
    token_shift: int = -1  # 1: half of what attention reads is from the token before
    tie_weights: int = -1  # 1: wte and head share one matrix
    zero_init: int = -1  # 1: attn.o and mlp.down start at zero, so each block begins as the identity
    rope_theta: float = 10000.0
    logit_cap: float = -1.0  # logits = cap * tanh(logits / cap); 0 = off
    gradient_checkpointing: bool = False  # recompute each block in the backward pass, keep only its input

    def __post_init__(self):
        require(self.arch in ARCHS, f"unknown arch={self.arch!r}; choose one of {', '.join(ARCHS)}")
        for name in ("norm", "position", "activation", "qk_norm", "token_shift", "tie_weights", "zero_init"):
            if getattr(self, name) in ("", -1):
                setattr(self, name, ARCHS[self.arch].get(name, 0))
            value, choices = getattr(self, name), sorted({arch.get(name, 0) for arch in ARCHS.values()})
            require(value in choices, f"unknown {name}={value!r}; choose one of {str(choices)[1:-1]}")
        if self.logit_cap == -1:
            self.logit_cap = float(ARCHS[self.arch].get("logit_cap", 0))
        shared = 2 if self.arch == "llama" and self.n_head % 2 == 0 else 1
        self.n_kv_head = self.n_kv_head or self.n_head // shared
        wide = 8 * max(1, round(self.n_embd / 3)) if self.activation == "swiglu" else 4 * self.n_embd
        self.n_ff = self.n_ff or wide
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_kv_head", "n_ff"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        pair = 2 if self.position == "rope" else 1  # rope turns pairs, so each head needs an even size
        nearest = pair * self.n_head * max(1, round(self.n_embd / (pair * self.n_head)))
        require(self.n_embd % pair == 0, f"n_embd={self.n_embd} is odd, rope needs pairs; {nearest} works")
        for whole, part, unit in (("n_embd", "n_head", pair), ("n_head", "n_kv_head", 1)):
            a, b = getattr(self, whole), getattr(self, part)
            nearest = min((d for d in range(1, a + 1) if a % (d * unit) == 0), key=lambda d: abs(d - b))
            how = " into even sizes for rope" if a % b == 0 else ""
            require(a % (b * unit) == 0, f"{whole}={a} is not divisible by {part}={b}{how}; {nearest} works")
        require(0 <= self.dropout < 1, f"dropout={self.dropout} must be at least 0 and below 1")
        require(self.rope_theta > 0, f"rope_theta={self.rope_theta} must be above 0; 10000.0 is usual")
        require(self.logit_cap >= 0, f"logit_cap={self.logit_cap} must be above 0, or 0 to switch it off")


def rope_tables(positions: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Rotary positions (Su et al., 2021): positions (B or 1, T) -> cos and sin (B or 1, T, 1, hs).

    Pair i turns by position * theta^(-2i / hs). Always in float32: bfloat16 has no number 1001. Made in each
    forward pass (30 us): there is no buffer to save, to cast, or to lose on the meta device.
    """
    even = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32)
    angles = positions[:, :, None, None] * theta ** (-even / head_size)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs a, b = x[i], x[i + hs/2] of x (B,T,H,hs) to a cos - b sin, b cos + a sin.

    Then q·k depends on the distance of two tokens alone. The public Llama ports pair the halves in this way,
    the paper pairs neighbours: as good, but weights trained with one are wrong in the other.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return x * cos + x.roll(x.size(-1) // 2, dims=-1) * sin  # roll: b, a; the minus sign is in the table


class LayerNorm(nn.LayerNorm):
    """As torch's, with weights of any precision: those of fsdp come in 16 bits where x has 32."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (p if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """Likewise."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def build_norm(config: GPTConfig) -> nn.Module:
    """LayerNorm (Ba et al., 2016) or RMSNorm (Zhang and Sennrich, 2019); both compute in float32 inside.

    On a CPU torch has one kernel for LayerNorm and many small steps for RMSNorm: forward and backward of
    2,560 x 128 numbers take 0.4 ms and 1.2 on one core. The loss is as good: CPU configs choose LayerNorm.
    """
    if config.norm == "layernorm":
        return LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)
    return RMSNorm(config.n_embd, eps=1e-5)


def written_out_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Causal softmax(q k' / sqrt(hs)) v with all T x T scores: q (B,H,T,hs), k and v (B,K,T,hs) -> like q.

    What a CPU uses in bfloat16. Forward and backward of 40 heads of 64 at T=128, one core: 6 ms; torch's
    fused kernel takes 18, and 10 in float32. 24 heads of 64 at T=512: 43, 87 and 82. From T=1024 on it is no
    faster.
    """
    B, H, T, hs = q.shape
    k, v = (t.repeat_interleave(H // t.size(1), dim=1).flatten(0, 1) for t in (k, v))  # (B*H,T,hs)
    future = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1)  # added to what a query must not see
    scores = torch.baddbmm(future, q.flatten(0, 1), k.mT, alpha=hs**-0.5)  # (B*H,T,T)
    weights = F.dropout(torch.softmax(scores, dim=-1), dropout)
    return (weights @ v).view(B, H, T, hs)


def token_shift(x: Tensor, first: Tensor, cache: Cache | None) -> Tensor:
    """The first half of the channels of x (B,T,C) from the token before (RWKV: Peng et al., 2023).

    So one layer can ask "what followed this token the last time?", which otherwise takes two. first: bool
    (B or 1,T,1), True where there is no token before; zeros stand there.
    """
    half = x.size(-1) // 2
    before = cache.token_before(x) if cache else x.roll(1, dims=1)  # (B,T,C)
    return torch.cat((before[..., :half].masked_fill(first, 0.0), x[..., half:]), dim=-1)


class Attention(nn.Module):
    """Causal self-attention. If K < H, H / K query heads share a key/value head (Ainslie et al., 2023)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        kv_size = config.n_kv_head * (config.n_embd // config.n_head)
        self.q = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.k = nn.Linear(config.n_embd, kv_size, bias=config.bias)
        self.v = nn.Linear(config.n_embd, kv_size, bias=config.bias)
        self.o = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.drop = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x: Tensor, rope=None, mask=None, cache=None) -> Tensor:
        """x (B,T,C) -> (B,T,C). mask: bool (B,1,T,keys), True where a query may look; None: causal."""
        B, T, C = x.shape
        H, K, hs = self.config.n_head, self.config.n_kv_head, C // self.config.n_head
        q = self.q(x).view(B, T, H, hs)  # (B,T,C) -> (B,T,H,hs)
        k = self.k(x).view(B, T, K, hs)  # (B,T,K*hs) -> (B,T,K,hs)
        v = self.v(x).view(B, T, K, hs)  # (B,T,K*hs) -> (B,T,K,hs)
        if self.config.qk_norm:  # bounds the scores (Henry et al., 2020); before rope, which keeps lengths
            norm = F.layer_norm if self.config.norm == "layernorm" else F.rms_norm
            q, k = norm(q, (hs,), eps=1e-5), norm(k, (hs,), eps=1e-5)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        q, k = q.to(v.dtype), k.to(v.dtype)  # CUDA's autocast normalises in float32
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B,T,heads,hs) -> (B,heads,T,hs)
        if cache is not None:
            k, v = cache.append(k, v)  # (B,K,T,hs) -> (B,K,keys,hs)
        causal = mask is None and (cache is None or T > 1)  # one new token sees all that the cache holds
        dropout = self.config.dropout if self.training else 0.0
        plain = mask is None and cache is None
        if plain and T <= 512 and x.device.type == "cpu" and v.dtype != torch.float32:
            y = written_out_attention(q, k, v, dropout)
        else:
            # The same without storing T x T scores (Dao et al., 2022), but for dropout on a CPU. enable_gqa
            # is 10% faster than repeating k and v, forward and backward, and 2x for one token.
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=K < H)
        y = y.transpose(1, 2).reshape(B, T, C)  # (B,H,T,hs) -> (B,T,H,hs) -> (B,T,C)
        return self.drop(self.o(y))


class MLP(nn.Module):
    """Each token by itself: (B,T,C) -> (B,T,n_ff) -> (B,T,C)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.activation = config.activation
        self.up = nn.Linear(config.n_embd, config.n_ff, bias=config.bias)
        if config.activation == "swiglu":
            self.gate = nn.Linear(config.n_embd, config.n_ff, bias=config.bias)
        self.down = nn.Linear(config.n_ff, config.n_embd, bias=config.bias)
        self.drop = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        if self.activation == "swiglu":
            h = F.silu(self.gate(x)) * h  # Shazeer, 2020
        elif self.activation == "gelu":
            h = F.gelu(h, approximate="tanh")  # Hendrycks and Gimpel, 2016, in GPT-2's form
        else:
            h = F.relu(h)
            h = h * h  # So et al., 2021; CUDA's autocast would do square() in float32
        return self.drop(self.down(h))


class Block(nn.Module):
    """Tokens look at each other, then each thinks for itself: (B,T,C) -> (B,T,C)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attn_norm = build_norm(config)
        self.attn = Attention(config)
        self.mlp_norm = build_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope=None, mask=None, cache=None, first=None) -> Tensor:
        h = self.attn_norm(x)
        if first is not None:
            h = token_shift(h, first, cache)
        x = x + self.attn(h, rope, mask, cache)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """A language model: model(idx) gives logits, generate() and stream() give new tokens."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = build_norm(config)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Set every parameter. A model built on the meta device needs to_empty(device=...) and then this."""
        if self.config.tie_weights:
            self.head.weight = self.wte.weight  # Press and Wolf, 2017
        # 2 * n_layer outputs add up in the residual stream; divided by the root of that, it keeps its size.
        residual_std = 0.0 if self.config.zero_init else 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith(("attn.o.weight", "mlp.down.weight")):
                parameter.normal_(std=residual_std)
            elif name == "wte.weight" and self.config.zero_init and not self.config.tie_weights:
                # It is all there is at first: 120 updates of config/fast.py end at 1.829, with 0.02 at 1.866
                # (on a split of the training text).
                parameter.normal_(std=0.2)
            elif name == "head.weight":  # a tied one goes by the name of wte
                # With 0.02 the first loss is 0.0002 * n_embd above ln(V), 0.2 at 1,024. So: 0.04 at most.
                parameter.normal_(std=min(0.02, 0.28 / math.sqrt(self.config.n_embd)))
            elif parameter.dim() == 2:
                parameter.normal_(std=0.02)
            else:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)  # else it is a bias

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Token ids (B,T) -> float32 logits (B,T,V) of each next token. T > block_size: ValueError.

        With targets (B,T), -1 where not scored: the sum of their cross-entropies instead, in nats, without
        ever holding all the logits: backward computes each chunk again (Chen et al., 2016). For 2,048 tokens
        and V = 50,304 head and loss take 0.6 GB on top of the model, not 1.3, and a quarter more time.
        """
        x = self.trunk(idx)  # (B,T,C)
        if targets is None:
            return self.to_logits(x)
        size = max(1, 2**24 // self.config.vocab_size)  # tokens with 64 MB of logits
        chunks = zip(x.flatten(0, 1).split(size), targets.flatten().split(size), strict=True)
        return sum(checkpoint(self.summed_nats, h, t, use_reentrant=False) for h, t in chunks)

    def next_logits(self, idx: Tensor, caches: list[Cache] | None, pad: Tensor | None) -> Tensor:
        """Token ids (B,T), caches and pad as in trunk() -> logits (B,V) of what follows the last token."""
        return self.to_logits(self.trunk(idx, caches, pad)[:, -1])

    def summed_nats(self, x: Tensor, targets: Tensor) -> Tensor:
        """Hidden states (N,C) and targets (N) -> the sum of the cross-entropies."""
        return F.cross_entropy(self.to_logits(x), targets, ignore_index=-1, reduction="sum")

    def trunk(self, idx: Tensor, caches: list[Cache] | None = None, pad: Tensor | None = None) -> Tensor:
        """Token ids (B,T) -> normalised hidden states (B,T,C).

        caches: one a layer; idx then holds what they have not read yet: the whole prompt, or one token.
        pad: (B,1), how many columns at the left of each row are no tokens. None: all columns are tokens.
        """
        config, T, start = self.config, idx.size(1), caches[0].length if caches else 0
        if start + T > config.block_size:
            raise ValueError(f"{start + T} tokens do not fit into block_size={config.block_size}")
        assert start == 0 or T == 1, "between a whole prompt and one token, is_causal would be wrong"
        static = start > 0 and caches[0].static
        columns = caches[0].position if static else torch.arange(start, start + T, device=idx.device)  # (T)
        positions = columns[None]  # (1,T)
        mask = rope = None
        if pad is not None or static:
            keys = config.block_size if static else start + T
            key, query = torch.arange(keys, device=idx.device), columns[:, None]  # (keys), (T,1)
            mask = (key <= query)[None, None]  # (1,1,T,keys)
            if pad is not None:
                seen = key >= torch.minimum(pad[..., None], query)  # (B,T,keys); padding sees itself: no NaN
                mask = mask & seen[:, None]  # (B,1,T,keys)
                positions = (positions - pad).clamp(min=0)  # (B,T)
        first = positions[..., None] == 0 if config.token_shift else None  # (B or 1,T,1)
        x = self.wte(idx)  # (B,T) -> (B,T,C)
        if config.position == "learned":
            x = x + self.wpe(positions)
        else:
            rope = rope_tables(positions, config.n_embd // config.n_head, config.rope_theta)
        x = self.drop(x)
        for i, block in enumerate(self.blocks):
            if config.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, first=first, use_reentrant=False)  # Chen et al., 2016
            else:
                x = block(x, rope, mask, caches[i] if caches else None, first)
        return self.norm(x)

    def to_logits(self, x: Tensor) -> Tensor:
        """(...,C) -> (...,V), in float32 at least, like the losses and probabilities made of them."""
        logits, cap = self.head(x), self.config.logit_cap
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # float64 stays: for proofs
        return cap * torch.tanh(logits / cap) if cap else logits  # Gemma 2, 2024

    def stream(self, prompts: Sequence[Sequence[int]], *args, **kwargs) -> Iterator[list[int]]:
        """Yield one new token id for each prompt, step by step. Takes the arguments of generate.stream()."""
        return stream(self, prompts, *args, **kwargs)

    def generate(self, prompts: Sequence[Sequence[int]], *args, **kwargs) -> list[list[int]]:
        """The prompts with their continuations, without the stop tokens. Takes the arguments of stream()."""
        new = list(self.stream(prompts, *args, **kwargs))
        return [[*map(int, row)] + [ids[i] for ids in new if ids[i] >= 0] for i, row in enumerate(prompts)]
