"""Decoding: the pass over one new token of a packed model of Llama's shape on a CPU, in few steps.

With int4 the kernels of 135M weights take 8 ms a token on one core. GPT.next_logits needs as long again for
its small operations, of some microseconds each: it serves any batch, shape and device. Here are fewer: q, k
and v are one product, and so are gate and up; a norm is 4 operations, not 11; queries and keys are turned
together. The logits are those of next_logits but for rounding (tests/test_quantize.py). What is not known
here goes to next_logits: several rows, prompts, full contexts, other shapes, LoRA.
"""

import weakref

import torch
import torch.nn.functional as F
from torch import Tensor

from model import GPT, RMSNorm, rope_tables
from techniques.packed_layers import QuantLinear, kernel

NOTHING = torch.zeros((), device="cpu")  # this file may be imported while a model is built on meta


class OneToken:
    """model.next_logits of a packed model."""

    def __init__(self, model):
        self.model, self.cache, self.layers = model, lambda: None, []

    def __call__(self, idx: Tensor, caches: list | None, pad: Tensor | None) -> Tensor:
        """As GPT.next_logits."""
        one = caches and caches[0].length and idx.numel() == 1 and pad is None and not caches[0].static
        if one and self.cache() is not caches[0]:  # another text; the model may have changed
            self.cache, self.layers = weakref.ref(caches[0]), self.prepared()
        if not one or not self.layers:
            return GPT.next_logits(self.model, idx, caches, pad)
        return self.step(idx[0], caches)

    def prepared(self) -> list[tuple]:
        """What step() reads of each block; [] for a model that it does not know."""
        model = self.model
        config = model.config
        llama = (
            config.position == "rope" and config.activation == "swiglu" and isinstance(model.norm, RMSNorm)
        )
        plain = not (config.token_shift or config.qk_norm or config.bias or config.qkv_bias or config.window)
        layers = [m for block in model.blocks for m in (*block.attn.children(), *block.mlp.children())]
        layers = [m for m in [*layers, model.head] if not isinstance(m, torch.nn.Identity)]
        if not (llama and plain) or not all(isinstance(m, QuantLinear) and m.has_kernel for m in layers):
            return []
        if model.norm.weight.device.type != "cpu":
            return []
        found = []
        for block in model.blocks:
            a, m = block.attn, block.mlp
            weights = (
                joined([a.q, a.k, a.v]),
                a.o.kernel_order(),
                joined([m.gate, m.up]),
                m.down.kernel_order(),
            )
            found.append((*weights, block.attn_norm.weight.float(), block.mlp_norm.weight.float()))
        return found

    def step(self, token: Tensor, caches: list) -> Tensor:
        """Token id (1) -> logits (1,V)."""
        model, config = self.model, self.model.config
        H, K, hs, eps = config.n_head, config.n_kv_head, config.head_size, config.norm_eps
        n, kind = caches[0].length, caches[0].kv.dtype
        rope = rope_tables(torch.tensor([[n]]), hs, config.rope_theta, config.rope_scaling)
        cos, sin = (t.view(1, hs).expand(H + K, hs) for t in rope)
        cos = torch.cat((cos, torch.ones(K, hs))).to(kind)  # (H+2K,hs); values are not turned
        sin = torch.cat((sin, torch.zeros(K, hs))).to(kind)
        x = model.wte(token).float()  # (1,C)
        for cache, (qkv, o, gate_up, down, attn_norm, mlp_norm) in zip(caches, self.layers, strict=True):
            heads = kernel(normed(x, attn_norm, eps), *qkv).view(H + 2 * K, hs).to(kind)
            turned = torch.addcmul(heads * cos, heads.roll(hs // 2, dims=-1), sin)  # as model.rotate
            cache.kv[:, 0, :, n] = turned[H:].view(2, K, hs)
            cache.length = n + 1
            keys, values = cache.kv[:, :, :, : n + 1].unbind()  # (1,K,n+1,hs) each
            q = turned[:H].view(1, H, 1, hs)
            y = F.scaled_dot_product_attention(q, keys, values, enable_gqa=K < H)  # (1,H,1,hs)
            x = x + kernel(y.view(1, H * hs).bfloat16(), *o)
            gate, up = kernel(normed(x, mlp_norm, eps), *gate_up).chunk(2, dim=-1)
            x = x + kernel(F.silu(gate) * up, *down)
        logits = kernel(normed(x, model.norm.weight.float(), eps), *model.head.kernel_order()).float()
        return config.logit_cap * torch.tanh(logits / config.logit_cap) if config.logit_cap else logits


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of x (1,C) float32, in bfloat16."""
    length = torch.linalg.vector_norm(x).item()
    scale = (length * length / x.numel() + eps) ** -0.5
    return torch.addcmul(NOTHING, x, weight, value=scale).bfloat16()  # 2 us; x * weight * scale takes 5


def joined(layers: list[QuantLinear]) -> list[Tensor]:
    """The matrices of several layers with the same input as one, in kernel_order(). Made once, then kept.

    int8's layers share its memory from then on. int4's kernel has an order of its own in any case.
    """
    first, rows = layers[0], [layer.out_features for layer in layers]
    found = first.ready.get("joined")
    if found and all(layer.ready.get("joined") is found for layer in layers):
        return found
    tensors = {name: torch.cat([getattr(layer, name) for layer in layers]) for name in first.names}
    whole = torch.empty(sum(rows), first.in_features, device="meta")
    whole = QuantLinear(first.kind, whole, tensors=tensors)
    for layer, codes in zip(layers, whole.codes.split(rows), strict=True):
        if layer.kind == "int8":
            layer.codes = codes
        layer.ready = {"joined": whole.kernel_order()}
    return whole.kernel_order()
