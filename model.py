"""ids -> logits: the GPT and its variants.

    idx (B,T) -> wte (B,T,C) -> n_layer times: x += attn(norm(x)), x += mlp(norm(x)) -> norm -> head (B,T,V)

B rows, T tokens, C = n_embd, V = vocab_size, H = n_head, K = n_kv_head, hs = head_size = C / H.
The decoder-only transformer: Vaswani et al., 2017; Radford et al., 2018. generate.py draws tokens from it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from config import require
from config._shape import complete
from generate import Cache, Past, generate, reading, stream, visible
from machine.layers import LayerNorm, Linear, RMSNorm, joined_linear, squared_relu

# An architecture is a set of switches; a switch that it does not name is off (0). Each can also be set alone.
# modern: what small models learn fastest with (modded-nanogpt, nanochat; 2025).
ARCHS = {
    "modern": dict(norm="rmsnorm", position="rope", activation="relu2", qk_norm=1, token_shift=1, zero_init=1,
                   logit_cap=15),
    "gpt2": dict(norm="layernorm", position="learned", activation="gelu", tie_weights=1),  # OpenAI, 2019
    "llama": dict(norm="rmsnorm", position="rope", activation="swiglu"),  # Meta, 2023
}  # fmt: skip
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
    norm_eps: float = 1e-5  # added to the variance
    position: str = ""  # learned | rope
    activation: str = ""  # relu2 | gelu | gelu_erf | swiglu
    head_size: int = 0  # 0: n_embd / n_head
    n_kv_head: int = 0  # 0: n_head, or half of it for llama if n_head is even
    n_ff: int = 0  # width inside the MLP; 0: 4 * n_embd, or for swiglu 8/3 of it to a multiple of 8
    qkv_bias: int = -1  # biases of q, k and v: -1 as `bias` says | 0 | 1
    qk_norm: int = -1  # 1: queries and keys are normalised, by the same kind of norm; 2: with learned weights
    window: int = 0  # a token attends to itself and the window - 1 tokens before it; 0: to all before it
    token_shift: int = -1  # 1: half of attention's input channels come from the previous token
    tie_weights: int = -1  # 1: wte and head share one matrix
    zero_init: int = -1  # 1: attn.o and mlp.down start at zero, so each block begins as the identity
    rope_theta: float = 10000.0
    rope_scaling: str = ""  # "" | "linear FACTOR" | "llama3 FACTOR LOW HIGH ORIGINAL", see stretched()
    logit_cap: float = -1.0  # logits = cap * tanh(logits / cap); 0 = off
    gradient_checkpointing: bool = False  # recompute each block in the backward pass, keep only its input

    def __post_init__(self):
        complete(self, self.arch, ARCHS)


def rope_tables(positions: Tensor, head_size: int, theta: float, scaling: str = "") -> Rope:
    """Rotary positions (Su et al., 2021): positions (B or 1, T) -> cos and sin (B or 1, T, 1, hs).

    Pair i is rotated by position * theta^(-2i / hs). Always float32: bfloat16 cannot hold 1001. Made in each
    forward pass (30 us): there is no buffer to save, to cast, or to lose on the meta device.
    """
    even = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32)
    angles = positions[:, :, None, None] * stretched(theta ** (-even / head_size), scaling)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def stretched(frequencies: Tensor, scaling: str) -> Tensor:
    """Divide rotary frequencies (hs/2) by FACTOR, so that a trained model reads a longer context.

    linear: all of them (Chen et al., 2023). llama3 (Meta, 2024): those with less than LOW turns in ORIGINAL
    tokens, the context before; from HIGH turns on they stay, and between the two the share that stays rises.
    """
    if not scaling:
        return frequencies
    kind, factor, *numbers = scaling.split()
    stays = 0.0
    if kind == "llama3":
        low, high, original = map(float, numbers)
        turns = original * frequencies / (2 * math.pi)
        stays = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (stays + (1 - stays) / float(factor))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs a, b = x[i], x[i + hs/2] of x (B,T,H,hs): a cos - b sin, b cos + a sin.

    Then q·k depends on the distance of two tokens alone. As in Hugging Face's Llama, each pair has a channel
    of either half; the paper pairs neighbours: as good, but weights trained with one are wrong in the other.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return x * cos + x.roll(x.size(-1) // 2, dims=-1) * sin  # roll: b, a; the minus sign is in the table


def build_norm(config: GPTConfig, size: int, learned: bool = True) -> nn.Module:
    """LayerNorm (Ba et al., 2016) or RMSNorm (Zhang and Sennrich, 2019); both compute in float32 inside.

    On one CPU core, forward and backward of 2,560 x 128 numbers take 0.4 ms with LayerNorm, which has one
    kernel there, and 1.2 with RMSNorm. The loss is as good: CPU configs use LayerNorm.
    """
    if config.norm == "layernorm":
        return LayerNorm(size, config.norm_eps, learned, bias=config.bias)
    return RMSNorm(size, config.norm_eps, learned)


def written_out_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int = 0) -> Tensor:
    """Causal softmax(q k' / sqrt(hs)) v with all T x T scores: q (B,H,T,hs), k and v (B,K,T,hs) -> like q.

    For bfloat16 on a CPU: forward and backward of 40 heads of 64 at T=128 take 6 ms on one core; torch's
    fused kernel takes 18, and 10 in float32. 24 heads at T=512: 43, 87 and 82. It gains nothing at T=1024.
    """
    q, k, v = (t.transpose(0, 1) for t in (q, k, v))  # the order in memory after heads_in_front()
    H, B, T, hs = q.shape
    if k.size(0) < H:
        k, v = (t.repeat_interleave(H // t.size(0), dim=0) for t in (k, v))
    hidden = torch.where(visible(torch.arange(T), T, window), 0.0, -math.inf).to(q.dtype)  # added to scores
    scores = torch.baddbmm(hidden, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=hs**-0.5)  # (H*B,T,T)
    weights = F.dropout(torch.softmax(scores, dim=-1), dropout)
    return (weights @ v.flatten(0, 1)).view(H, B, T, -1).transpose(0, 1)


def token_shift(x: Tensor, previous: Tensor | None = None) -> Tensor:
    """Replace the first half of the channels of x (B,T,C) by those of the previous token (RWKV: Peng, 2023).

    So one layer, not two, can look up what followed this token the last time. The first token gets zeros.
    previous (B,T,C): the tokens before, where generation knows them.
    """
    half = x.size(-1) // 2
    if previous is None:
        previous = F.pad(x[:, :-1, :half], (0, 0, 1, 0))  # (B,T,C/2), one place to the right
    return torch.cat((previous[..., :half], x[..., half:]), dim=-1)


class Attention(nn.Module):
    """Causal self-attention. If K < H, H / K query heads share a key/value head (Ainslie et al., 2023)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        q_size, kv_size = config.n_head * config.head_size, config.n_kv_head * config.head_size
        self.q = Linear(config.n_embd, q_size, bias=bool(config.qkv_bias))
        self.k = Linear(config.n_embd, kv_size, bias=bool(config.qkv_bias))
        self.v = Linear(config.n_embd, kv_size, bias=bool(config.qkv_bias))
        self.o = Linear(q_size, config.n_embd, bias=config.bias)
        if config.qk_norm:  # bounds the scores (Henry et al., 2020)
            self.q_norm = build_norm(config, config.head_size, learned=config.qk_norm == 2)
            self.k_norm = build_norm(config, config.head_size, learned=config.qk_norm == 2)
        self.drop = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x: Tensor, rope: Rope | None = None, past: Past | None = None) -> Tensor:
        """x (B,T,C) -> (B,T,C). rope: its tables. past: only in generation, earlier keys and values."""
        B, T, _ = x.shape
        H, K, hs = self.config.n_head, self.config.n_kv_head, self.config.head_size
        q, k, v = (t.view(B, T, -1, hs) for t in joined_linear(x, self.q, self.k, self.v))  # (B,T,heads,hs)
        dropout, window = self.config.dropout if self.training else 0.0, self.config.window
        if past is None and T <= 512 and x.device.type == "cpu" and v.dtype != torch.float32:
            y = self.heads_in_front(q, k, v, rope, dropout)  # (B,T,H,hs)
        else:
            if self.config.qk_norm:
                q, k = self.q_norm(q), self.k_norm(k)  # before rope, which keeps lengths
            if rope is not None:
                q, k = rotate(q, *rope), rotate(k, *rope)
            q, k = q.to(v.dtype), k.to(v.dtype)  # CUDA's autocast normalises in float32
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B,T,heads,hs) -> (B,heads,T,hs)
            mask, causal = None, True
            if past is not None:
                k, v = past.extend(k, v)  # (B,K,T,hs) -> (B,K,keys,hs)
                mask = past.mask
                causal = mask is None and T > 1  # one new token sees all that the cache holds
            elif 0 < window < T:
                mask, causal = visible(torch.arange(T, device=x.device), T, window), False
            # Flash attention: no T x T scores (Dao et al., 2022), except for dropout on a CPU. enable_gqa
            # is 10% faster than repeating k and v, forward and backward, and 2x for one token.
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=K < H)
            y = y.transpose(1, 2)  # (B,H,T,hs) -> (B,T,H,hs)
        return self.drop(self.o(y.reshape(B, T, H * hs)))

    def heads_in_front(self, q: Tensor, k: Tensor, v: Tensor, rope: Rope | None, dropout: float) -> Tensor:
        """The same from q (B,T,H,hs), k and v (B,T,K,hs) on, with all T x T scores -> (B,T,H,hs)."""
        H, K = self.config.n_head, self.config.n_kv_head
        # Heads before rows in memory, q and k together: a step takes up to a fifth less time.
        heads = torch.cat([t.permute(2, 0, 1, 3) for t in (q, k, v)])
        qk, v = heads.split((H + K, K))
        if self.config.qk_norm == 2:
            qk = torch.cat((self.q_norm(qk[:H]), self.k_norm(qk[H:])))
        elif self.config.qk_norm:
            qk = self.q_norm(qk)
        if rope is not None:
            qk = rotate(qk, *(table.permute(2, 0, 1, 3) for table in rope))
        q, k = qk.to(v.dtype).split((H, K))
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))  # (heads,B,T,hs) -> (B,heads,T,hs)
        return written_out_attention(q, k, v, dropout, self.config.window).transpose(1, 2)


class MLP(nn.Module):
    """Each token by itself: (B,T,C) -> (B,T,n_ff) -> (B,T,C)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.activation = config.activation
        self.up = Linear(config.n_embd, config.n_ff, bias=config.bias)
        if config.activation == "swiglu":
            self.gate = Linear(config.n_embd, config.n_ff, bias=config.bias)
        self.down = Linear(config.n_ff, config.n_embd, bias=config.bias)
        self.drop = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        if self.activation == "swiglu":
            h = F.silu(self.gate(x)) * h  # Shazeer, 2020
        elif self.activation.startswith("gelu"):  # Hendrycks and Gimpel, 2016; GPT-2 takes tanh for erf
            h = F.gelu(h, approximate="tanh" if self.activation == "gelu" else "none")
        else:
            h = squared_relu(h)
        return self.drop(self.down(h))


class Block(nn.Module):
    """Pre-norm block: attention between tokens, then the MLP on each token: (B,T,C) -> (B,T,C)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attn_norm = build_norm(config, config.n_embd)
        self.attn = Attention(config)
        self.mlp_norm = build_norm(config, config.n_embd)
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
        self.norm = build_norm(config, config.n_embd)
        self.head = Linear(config.n_embd, config.vocab_size, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, part: nn.Module | None = None):
        """Set every parameter, of a part alone if it is new. A model from meta needs to_empty() before."""
        if self.config.tie_weights and part is None:
            self.head.weight = self.wte.weight  # Press and Wolf, 2017
        # 2 * n_layer outputs add up in the residual stream; std / sqrt(2 * n_layer) keeps its size.
        residual_std = 0.0 if self.config.zero_init else 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in (self if part is None else part).named_parameters():
            if f".{name}".endswith((".o.weight", ".down.weight")):  # of attention and MLP
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
        rope = None
        if config.position == "rope":
            rope = rope_tables(positions, config.head_size, config.rope_theta, config.rope_scaling)
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

    def next_logits(self, idx: Tensor, caches: list[Cache] | None, pad: Tensor | None) -> Tensor:
        """Token ids (B,T) that generate.stream() reads -> logits (B,V) of what follows the last of them."""
        positions, pasts = reading(self.config, idx, caches, pad)
        return self.to_logits(self.trunk(idx, positions, pasts)[:, -1])

    def to_logits(self, x: Tensor) -> Tensor:
        """(...,C) -> (...,V), in float32 at least, like the losses and probabilities made of them."""
        logits, cap = self.head(x), self.config.logit_cap
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # float64 stays: for proofs
        return cap * torch.tanh(logits / cap) if cap else logits  # Gemma 2, 2024

    stream, generate = stream, generate  # GPT's methods: generate.py
