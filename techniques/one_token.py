"""Decoding: the pass over one new token of a packed model on a CPU, in few steps.

With int4 the kernels of 135M weights take 8 ms a token on one core. GPT.next_logits needs as long again for
its small operations, of some microseconds each: it serves any batch, shape and device. Here are fewer: q, k
and v are one product, and so are gate and up; a norm is at most 4 operations, not 11; queries and keys are
turned together. The logits are those of next_logits but for rounding (tests/test_quantize.py). What is not
known here goes to next_logits: several rows, prompts, full contexts, GPUs, nf4, LoRA, qk_norm=2, odd shapes.
"""

import weakref
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from machine.layers import RMSNorm, squared_relu
from model import GPT, MLP, Attention, rope_tables, token_shift
from techniques.packed_layers import QuantLinear, kernel

NOTHING = torch.zeros((), device="cpu")  # this file may be imported while a model is built on meta


class Product(NamedTuple):
    """One or several packed linear layers with the same input, as one product."""

    packed: list[Tensor]  # in kernel_order()
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """x (1,in) -> (1,out), in bfloat16 without a bias, else in float32."""
        y = kernel(x.bfloat16(), *self.packed)
        return y if self.bias is None else y + self.bias


class Norm(NamedTuple):
    """RMSNorm or LayerNorm of one float32 row."""

    layer: nn.Module
    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """x (1,C) -> (1,C)."""
        if not isinstance(self.layer, RMSNorm):
            return F.layer_norm(x, x.shape[1:], self.weight, self.bias, self.layer.eps)
        length = torch.linalg.vector_norm(x).item()
        scale = (length * length / x.numel() + self.layer.eps) ** -0.5
        return torch.addcmul(NOTHING, x, self.weight, value=scale)  # 2 us; x * weight * scale takes 5


class Layer(NamedTuple):
    """What step() needs of a block."""

    attn_norm: Norm
    qkv: Product
    o: Product
    mlp_norm: Norm
    up: Product  # swiglu: gate and up
    down: Product


class OneToken:
    """model.next_logits of a packed model."""

    def __init__(self, model):
        self.model, self.cache, self.layers = model, lambda: None, []

    def __call__(self, idx: Tensor, caches: list | None, pad: Tensor | None) -> Tensor:
        """As GPT.next_logits."""
        one = caches and caches[0].length and idx.numel() == 1 and pad is None and not caches[0].static
        one = one and caches[0].length < self.model.config.block_size  # next_logits refuses more
        if one and self.cache() is not caches[0]:  # another text; the model may have changed
            self.cache, self.layers = weakref.ref(caches[0]), self.prepared()
        if not one or not self.layers:
            return GPT.next_logits(self.model, idx, caches, pad)
        return self.step(idx[0], caches)

    def prepared(self) -> list[Layer]:
        """What step() needs of each block; [] for a model that it does not know."""
        model = self.model
        if any(type(block.attn) is not Attention or type(block.mlp) is not MLP for block in model.blocks):
            return []  # a technique has put other layers there
        layers = [m for block in model.blocks for m in (*block.attn.children(), *block.mlp.children())]
        others = nn.Identity, nn.Dropout, nn.LayerNorm, nn.RMSNorm
        layers = [m for m in [*layers, model.head] if not isinstance(m, others)]
        known = all(isinstance(m, QuantLinear) and m.has_kernel for m in layers)
        if not known or model.config.qk_norm == 2 or model.norm.weight.device.type != "cpu":
            return []
        self.norm, self.head = norm_of(model.norm), product([model.head])
        found = []
        for block in model.blocks:
            a, m = block.attn, block.mlp
            first = [m.gate, m.up] if model.config.activation == "swiglu" else [m.up]
            found.append(
                Layer(
                    norm_of(block.attn_norm),
                    product([a.q, a.k, a.v]),
                    product([a.o]),
                    norm_of(block.mlp_norm),
                    product(first),
                    product([m.down]),
                )
            )
        return found

    def step(self, token: Tensor, caches: list) -> Tensor:
        """Token id (1) -> logits (1,V)."""
        model, config = self.model, self.model.config
        H, K, hs = config.n_head, config.n_kv_head, config.head_size
        n, kind = caches[0].length, caches[0].kv.dtype
        start = max(0, n + 1 - config.window) if config.window else 0  # of what attention sees
        x = model.wte(token).float()  # (1,C)
        if config.position == "learned":
            x = x + model.wpe.weight[n].float()
        else:
            rope = rope_tables(torch.tensor([[n]]), hs, config.rope_theta, config.rope_scaling)
            cos, sin = (t.view(1, hs).expand(H + K, hs).to(kind) for t in rope)
        for cache, layer in zip(caches, self.layers, strict=True):
            h = layer.attn_norm(x)
            if config.token_shift:
                h = token_shift(h[None], cache.previous(h[None]))[0]
            heads = layer.qkv(h).view(H + 2 * K, hs)
            qk, v = heads.to(kind).split((H + K, K))
            if config.qk_norm:
                norm = F.rms_norm if config.norm == "rmsnorm" else F.layer_norm
                qk = norm(qk, (hs,), eps=config.norm_eps)
            if config.position == "rope":
                qk = torch.addcmul(qk * cos, qk.roll(hs // 2, dims=-1), sin)  # as model.rotate
            cache.kv[0, 0, :, n], cache.kv[1, 0, :, n] = qk[H:], v
            cache.length = n + 1
            keys, values = cache.kv[:, :, :, start : n + 1].unbind()  # (1,K,seen,hs) each
            q = qk[:H].view(1, H, 1, hs)
            y = F.scaled_dot_product_attention(q, keys, values, enable_gqa=K < H)  # (1,H,1,hs)
            x = x + layer.o(y.view(1, H * hs))
            x = x + layer.down(activated(layer.up(layer.mlp_norm(x)), config.activation))
        logits = self.head(self.norm(x)).float()
        return config.logit_cap * torch.tanh(logits / config.logit_cap) if config.logit_cap else logits


def activated(h: Tensor, activation: str) -> Tensor:
    """What an MLP makes of the output h of its first product."""
    if activation == "swiglu":
        gate, up = h.chunk(2, dim=-1)
        return F.silu(gate) * up
    if activation.startswith("gelu"):
        return F.gelu(h, approximate="tanh" if activation == "gelu" else "none")
    return squared_relu(h)


def norm_of(layer: nn.Module) -> Norm:
    """A norm with weights in float32."""
    bias = getattr(layer, "bias", None)
    return Norm(layer, layer.weight.float(), None if bias is None else bias.float())


def product(layers: list[QuantLinear]) -> Product:
    """Several layers with the same input as one product. Its matrix is made once, then kept by the layers.

    int8's layers share its memory from then on. int4's kernel reads a copy in its own order, and a prompt of
    few tokens a third one, layer by layer.
    """
    first, rows = layers[0], [layer.out_features for layer in layers]
    bias = None if first.bias is None else torch.cat([layer.bias for layer in layers]).float()
    if len(layers) == 1:
        return Product(first.kernel_order(), bias)
    found = first.ready.get("joined")
    if found and all(layer.ready.get("joined") is found for layer in layers):
        return Product(found, bias)
    tensors = {name: torch.cat([getattr(layer, name) for layer in layers]) for name in first.names}
    whole = torch.empty(sum(rows), first.in_features, device="meta")
    whole = QuantLinear(first.kind, whole, tensors=tensors)
    for layer, codes in zip(layers, whole.codes.split(rows), strict=True):
        if layer.kind == "int8":
            layer.codes = codes
        layer.ready = {"joined": whole.kernel_order()}
    return Product(whole.kernel_order(), bias)
