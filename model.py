"""ids -> logits: the GPT and its variants.

    idx (B,T) -> wte (B,T,C) -> n_layer times: x += attn(norm(x)), x += mlp(norm(x)) -> norm -> head (B,T,V)

B rows, T tokens, C = n_embd, V = vocab_size, H = n_head, K = n_kv_head, hs = head_size = C / H.
The decoder-only transformer: Vaswani et al., 2017; Radford et al., 2018. generate.py draws tokens from it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from config import require
from generate import Cache, Past, generate, reading, stream

# An architecture is a set of switches; a switch that it does not name is off (0). Each can also be set alone.
# modern: what small models learn fastest with (modded-nanogpt, nanochat; 2025).
ARCHS = {
    "modern": dict(norm="rmsnorm", position="rope", activation="relu2", qk_norm=1, token_shift=1, zero_init=1,
                   logit_cap=15),
    "gpt2": dict(norm="layernorm", position="learned", activation="gelu", tie_weights=1),  # OpenAI, 2019
    "llama": dict(norm="rmsnorm", position="rope", activation="swiglu"),  # Meta, 2023
}  # fmt: skip
CHOICES = dict(
    norm=("layernorm", "rmsnorm"), position=("learned", "rope"), activation=("gelu", "relu2", "swiglu"),
    qk_norm=(0, 1), token_shift=(0, 1), tie_weights=(0, 1), zero_init=(0, 1),
)  # fmt: skip
Rope = tuple[Tensor, Tensor]  # cos and sin, see rope_tables()


@dataclass
class GPTConfig:
    """A model's hyperparameters. arch fills in what is not given; a ValueError names a value that works."""

    vocab_size: int = 65
    block_size: int = 128  # longest context, in tokens
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0  # of embeddings, attention weights, and the outputs of attention and MLP
    bias: bool = False  # in linear layers and LayerNorm; RMSNorm and head have none
    arch: str = "modern"  # modern | gpt2 | llama
    norm: str = ""  # layernorm | rmsnorm; "" and -1, here and below: as arch says
    position: str = ""  # learned | rope
    activation: str = ""  # relu2 | gelu | swiglu
    n_kv_head: int = 0  # 0: n_head, or half of it for llama if n_head is even
    n_ff: int = 0  # width inside the MLP; 0: 4 * n_embd, or for swiglu 8/3 of it to a multiple of 8
    qk_norm: int = -1  # 1: queries and keys are normalised, by the same kind of norm
    token_shift: int = -1  # 1: half of attention's input channels come from the previous token
    tie_weights: int = -1  # 1: wte and head share one matrix
    zero_init: int = -1  # 1: attn.o and mlp.down start at zero, so each block begins as the identity
    rope_theta: float = 10000.0
    logit_cap: float = -1.0  # logits = cap * tanh(logits / cap); 0 = off
    gradient_checkpointing: bool = False  # recompute each block in the backward pass, keep only its input

    def __post_init__(self):
        require(self.arch in ARCHS, f"unknown arch={self.arch!r}; choose one of {', '.join(ARCHS)}")
        for name, choices in CHOICES.items():
            if getattr(self, name) in ("", -1):
                setattr(self, name, ARCHS[self.arch].get(name, 0))
            value = getattr(self, name)
            require(value in choices, f"unknown {name}={value!r}; choose one of {str(choices)[1:-1]}")
        if self.logit_cap == -1:
            self.logit_cap = float(ARCHS[self.arch].get("logit_cap", 0))
        shared = 2 if self.arch == "llama" and self.n_head % 2 == 0 else 1  # query heads to a key/value head
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


def rope_tables(positions: Tensor, head_size: int, theta: float) -> Rope:
    """Rotary positions (Su et al., 2021): positions (B or 1, T) -> cos and sin (B or 1, T, 1, hs).

    Pair i is rotated by position * theta^(-2i / hs). Always float32: bfloat16 cannot hold 1001. Made in each
    forward pass (30 us): there is no buffer to save, to cast, or to lose on the meta device.
    """
    even = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32)
    angles = positions[:, :, None, None] * theta ** (-even / head_size)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs a, b = x[i], x[i + hs/2] of x (B,T,H,hs): a cos - b sin, b cos + a sin.

    Then q·k depends on the distance of two tokens alone. As in Hugging Face's Llama, each pair has a channel
    of either half; the paper pairs neighbours: as good, but weights trained with one are wrong in the other.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return x * cos + x.roll(x.size(-1) // 2, dims=-1) * sin  # roll: b, a; the minus sign is in the table


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm that casts its weights to x's dtype: FSDP supplies them in 16 bits."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm that casts its weights to x's dtype: FSDP supplies them in 16 bits."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def build_norm(config: GPTConfig) -> nn.Module:
    """LayerNorm (Ba et al., 2016) or RMSNorm (Zhang and Sennrich, 2019); both compute in float32 inside.

    On a CPU torch has one kernel for LayerNorm and many small steps for RMSNorm: forward and backward of
    2,560 x 128 numbers take 0.4 ms against 1.2 on one core. The loss is as good: CPU configs use LayerNorm.
    """
    if config.norm == "layernorm":
        return LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)
    return RMSNorm(config.n_embd, eps=1e-5)


def written_out_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Causal softmax(q k' / sqrt(hs)) v with all T x T scores: q (B,H,T,hs), k and v (B,K,T,hs) -> like q.

    For bfloat16 on a CPU: forward and backward of 40 heads of 64 at T=128 take 6 ms on one core; torch's
    fused kernel takes 18, and 10 in float32. 24 heads at T=512: 43, 87 and 82. It gains nothing at T=1024.
    """
    B, H, T, hs = q.shape
    k, v = (t.repeat_interleave(H // t.size(1), dim=1).flatten(0, 1) for t in (k, v))  # (B*H,T,hs)
    future = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1)  # added to what a query must not see
    scores = torch.baddbmm(future, q.flatten(0, 1), k.mT, alpha=hs**-0.5)  # (B*H,T,T)
    weights = F.dropout(torch.softmax(scores, dim=-1), dropout)
    return (weights @ v).view(B, H, T, hs)


def token_shift(x: Tensor, previous: Tensor | None = None) -> Tensor:
    """Replace the first half of the channels of x (B,T,C) by those of the previous token (RWKV: Peng, 2023).

    So one layer, not two, can look up what followed this token the last time. The first token gets zeros.
    previous (B,T,C): the tokens before, where generation knows them.
    """
    if previous is None:
        previous = F.pad(x[:, :-1], (0, 0, 1, 0))  # (B,T,C), one place to the right
    half = x.size(-1) // 2
    return torch.cat((previous[..., :half], x[..., half:]), dim=-1)


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

    def forward(self, x: Tensor, rope: Rope | None = None, past: Past | None = None) -> Tensor:
        """x (B,T,C) -> (B,T,C). rope: its tables. past: only in generation, earlier keys and values."""
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
        mask, causal = None, True
        if past is not None:
            k, v = past.extend(k, v)  # (B,K,T,hs) -> (B,K,keys,hs)
            mask = past.mask
            causal = mask is None and T > 1  # one new token sees all that the cache holds
        dropout = self.config.dropout if self.training else 0.0
        if past is None and T <= 512 and x.device.type == "cpu" and v.dtype != torch.float32:
            y = written_out_attention(q, k, v, dropout)
        else:
            # Flash attention: no T x T scores (Dao et al., 2022), except for dropout on a CPU. enable_gqa
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
    """Pre-norm block: attention between tokens, then the MLP on each token: (B,T,C) -> (B,T,C)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attn_norm = build_norm(config)
        self.attn = Attention(config)
        self.mlp_norm = build_norm(config)
        self.mlp = MLP(config)
        self.token_shift = config.token_shift

    def forward(self, x: Tensor, rope: Rope | None = None, past: Past | None = None) -> Tensor:
        h = self.attn_norm(x)
        if self.token_shift:
            h = token_shift(h, past.previous(h) if past else None)
        x = x + self.attn(h, rope, past)
        return x + self.mlp(self.mlp_norm(x))


def summed_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (...,V) and targets (...), -1 where nothing is scored -> the sum of the cross-entropies."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-1, reduction="sum")


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
        # 2 * n_layer outputs add up in the residual stream; std / sqrt(2 * n_layer) keeps its size.
        residual_std = 0.0 if self.config.zero_init else 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith(("attn.o.weight", "mlp.down.weight")):
                parameter.normal_(std=residual_std)
            elif name == "wte.weight" and self.config.zero_init and not self.config.tie_weights:
                # At first the residual stream is this alone. config/fast.py: val 1.829, and with 0.02 1.866.
                parameter.normal_(std=0.2)
            elif name == "head.weight":  # a tied one goes by the name of wte
                # With 0.02 the first loss is 0.0002 * n_embd above ln(V), 0.2 at 1,024. This: 0.04 at most.
                parameter.normal_(std=min(0.02, 0.28 / math.sqrt(self.config.n_embd)))
            elif parameter.dim() == 2:
                parameter.normal_(std=0.02)
            else:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)  # else it is a bias

    def trunk(self, idx: Tensor, positions: Tensor | None = None, pasts: list[Past] | None = None) -> Tensor:
        """Token ids (B,T) -> normalised hidden states (B,T,C). ValueError if T > block_size.

        positions (B or 1,T) and pasts (one a layer) come from generate.reading(). Training has neither.
        """
        config, T = self.config, idx.size(1)
        require(T <= config.block_size, f"{T} tokens do not fit into block_size={config.block_size}")
        if positions is None:
            positions = torch.arange(T, device=idx.device)[None]  # (1,T)
        hs = config.n_embd // config.n_head
        rope = rope_tables(positions, hs, config.rope_theta) if config.position == "rope" else None
        x = self.wte(idx)  # (B,T) -> (B,T,C)
        if config.position == "learned":
            x = x + self.wpe(positions)
        x = self.drop(x)
        for i, block in enumerate(self.blocks):
            if config.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, use_reentrant=False)  # Chen et al., 2016
            else:
                x = block(x, rope, pasts[i] if pasts else None)
        return self.norm(x)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Token ids (B,T) -> float32 logits (B,T,V) of each next token.

        With targets (B,T): their summed_nats, without holding all logits at once. The backward pass computes
        each chunk again (Chen et al., 2016). 2,048 tokens of V = 50,304: 0.6 GB, not 1.3, in 5/4 of the time.
        """
        x = self.trunk(idx)  # (B,T,C)
        if targets is None:
            return self.to_logits(x)
        size = max(1, 2**24 // self.config.vocab_size)  # tokens with 64 MB of logits
        chunks = zip(x.flatten(0, 1).split(size), targets.flatten().split(size), strict=True)

        def nats_of(x: Tensor, targets: Tensor) -> Tensor:
            return summed_nats(self.to_logits(x), targets)  # (N,C) and (N) -> scalar

        return sum(checkpoint(nats_of, *chunk, use_reentrant=False) for chunk in chunks)

    def next_logits(self, idx: Tensor, caches: Sequence[Cache] | None, pad: Tensor | None) -> Tensor:
        """Token ids (B,T) that generate.stream() reads -> logits (B,V) of what follows the last of them."""
        positions, pasts = reading(self.config, idx, caches, pad)
        return self.to_logits(self.trunk(idx, positions, pasts)[:, -1])

    def to_logits(self, x: Tensor) -> Tensor:
        """(...,C) -> (...,V), in float32 at least, like the losses and probabilities made of them."""
        logits, cap = self.head(x), self.config.logit_cap
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # float64 stays: for proofs
        return cap * torch.tanh(logits / cap) if cap else logits  # Gemma 2, 2024

    stream, generate = stream, generate  # GPT's methods: generate.py
