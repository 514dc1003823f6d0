"""What a model does with a text: its surprise, its attention, what each layer would say, and what breaks when
a part of it is switched off. All of it on one text of T ids, in float32, with the model's own layers.

Every number has a twin in tests/test_play.py that computes it in another way.
"""

import contextlib
import functools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from config import require
from generate import token_probs, visible
from model import Attention, rotate

CHANGED = 3  # other tokens that are tried in place of one, by depends()


@torch.no_grad()
def surprise(model, ids: list[int]) -> list[float | None]:
    """-log2 p(token | tokens before) of each id, in bits; None for the first.

    A text that is longer than a window is read in windows that overlap by half: each token is predicted from
    at least half of a window, or from all that stands before it.
    """
    T, size = len(ids), model.config.block_size
    bits: list[float | None] = [None] * T
    scored, begin = 1, 0  # the first token without bits, and where the window begins that predicts it
    while scored < T:
        end = min(T, begin + size)
        x = torch.tensor([ids[begin:end]])  # (1,T)
        nats = F.cross_entropy(model(x)[0, :-1], x[0, 1:], reduction="none")  # (T-1)
        bits[scored:end] = (nats[scored - begin - 1 :].double() / math.log(2)).tolist()
        scored, begin = end, max(0, end - max(1, size // 2))
    return bits


def totals(tokenizer, ids: list[int], bits: list[float | None]) -> dict:
    """The sum of the bits; per byte of the text that they stand for; the mean loss in nats per token."""
    known = [(i, b) for i, b in zip(ids, bits, strict=True) if b is not None]
    sizes, total = tokenizer.token_bytes(), sum(b for _, b in known)
    size = int(sum(sizes[i] for i, _ in known))
    return {
        "total_bits": total,
        "bytes": size,
        "bits_per_byte": total / size if size else None,
        "loss": total * math.log(2) / len(known) if known else None,
    }


@torch.no_grad()
def next_tokens(model, tokenizer, ids: list[int], temperature: float, top_p: float) -> dict:
    """The ten likeliest tokens after some ids, with the probabilities that generate.py would draw with."""
    logits = model(torch.tensor([ids[-model.config.block_size :]]))[:, -1]  # (1,V)
    raw = torch.softmax(logits, dim=-1)[0].double()
    probs = token_probs(logits, temperature, 0, top_p)[0].double()
    probs /= probs.sum()
    best = raw.topk(min(10, len(raw))).indices.tolist()
    return {
        "tokens": [
            {
                "id": i,
                "piece": tokenizer.decode([i]),
                "probability": probs[i].item(),
                "raw": raw[i].item(),
                "kept": bool(probs[i] > 0),
            }
            for i in best
        ],
        "kept": int((probs > 0).sum()),
        "entropy_bits": -(probs * probs.clamp(min=1e-300).log2()).sum().item(),
    }


# ---- look
def written_out(attn: Attention, x: Tensor, rope=None, past=None, causal=True, keep=None) -> Tensor:
    """Attention.forward with all scores in sight: x (B,T,C) -> (B,T,C).

    causal=False lets tokens look at later ones. keep: a list that gets the weights (B,H,T,keys), and the
    values (B,H,keys,hs) that they weigh.
    """
    config, (B, T, _) = attn.config, x.shape
    q, k, v = (layer(x).view(B, T, -1, config.head_size) for layer in (attn.q, attn.k, attn.v))
    if config.qk_norm:
        q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        q, k = rotate(q, *rope), rotate(k, *rope)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B,T,heads,hs) -> (B,heads,T,hs)
    if past is not None:
        k, v = past.extend(k, v)
    k, v = (t.repeat_interleave(config.n_head // config.n_kv_head, dim=1) for t in (k, v))
    scores = q @ k.mT / math.sqrt(config.head_size)  # (B,H,T,keys)
    if causal:
        keys = k.size(2)
        seen = visible(torch.arange(keys - T, keys), keys, config.window)
        scores = scores.masked_fill(~seen, -math.inf)
    weights = torch.softmax(scores, dim=-1)
    if keep is not None:
        keep += [weights, v]
    return attn.o((weights @ v).transpose(1, 2).flatten(2))


@torch.no_grad()
def attention(model, ids: list[int], layer: int) -> dict:
    """Who looks at whom: the weights (H,T,T) of a layer's heads, row t those of token t, and the lengths
    (H,T) of the values, which are what is fetched. ValueError for a layer that has no such weights."""
    L = len(model.blocks)
    require(0 <= layer < L, f"layer={layer!r:.40} is none; expected 0 to {L - 1}")
    attn, keep = model.blocks[layer].attn, []
    kind = type(attn).__name__
    require(isinstance(attn, Attention), f"layer {layer + 1} has {kind}, whose weights are not shown")
    with contextlib.ExitStack() as stack:
        patch(stack, attn, "forward", functools.partial(written_out, attn, keep=keep))
        model(torch.tensor([ids]))
    weights, values = keep
    return {"attention": weights[0].tolist(), "value_length": values[0].norm(dim=-1).tolist(), "layer": layer}


@torch.no_grad()
def lens(model, tokenizer, ids: list[int]) -> dict:
    """The logit lens (nostalgebraist, 2020); the sizes of the residual stream x and of what is added to it.

    After each block the last norm and the head are asked what they would say now. Sizes are root mean
    squares over the C channels, so that they mean the same in every model.
    """
    streams, added = [], {"attn": [], "mlp": []}
    with contextlib.ExitStack() as stack:
        for i, block in enumerate(model.blocks):
            if i == 0:
                on_call(stack, block, before=lambda module, args: streams.append(args[0][0]))
            on_call(stack, block, after=lambda module, args, x: streams.append(x[0]))
            for name, outputs in added.items():
                part = getattr(block, name)
                on_call(stack, part, after=lambda module, args, y, outputs=outputs: outputs.append(y[0]))
        model(torch.tensor([ids]))
    probs = [torch.softmax(model.to_logits(model.norm(x)), dim=-1) for x in streams]  # L+1 times (T,V)
    best = [p.max(dim=-1) for p in probs]
    follows = torch.tensor(ids[1:])[:, None]
    size = [[t.square().mean(-1).sqrt().tolist() for t in ts] for ts in (streams, *added.values())]
    return {
        "layers": ["embedding", *(f"block {i}" for i in range(1, len(streams)))],
        "top": [[tokenizer.decode([i]) for i in b.indices.tolist()] for b in best],
        "probability": [b.values.tolist() for b in best],
        "truth": [[*p[:-1].gather(1, follows)[:, 0].tolist(), None] for p in probs],
        "residual": size[0],
        "attention_out": size[1],
        "mlp_out": size[2],
    }


@torch.no_grad()
def depends(model, ids: list[int]) -> list[list[float]]:
    """Who really depends on whom, (T,T): row t, column s tells how far the prediction after token t moves
    when token s is another one. Total variation, 0 to 1 (nothing in common), a mean over three others."""
    V, T = model.config.vocab_size, len(ids)
    generator = torch.Generator().manual_seed(1337)
    change = torch.zeros(T, T)
    for s in range(T):
        rows = torch.tensor([ids] * (1 + CHANGED))  # the text as it is, and with other tokens at s
        rows[1:, s] = (rows[1:, s] + torch.randint(1, V, (CHANGED,), generator=generator)) % V
        probs = torch.softmax(model(rows), dim=-1)  # (1 + CHANGED,T,V)
        change[:, s] = (probs[1:] - probs[:1]).abs().sum(-1).mean(0) / 2
    return change.tolist()


# ---- break
def switches(model) -> dict[str, str]:
    """What can be switched off: {key: name}. Layers and heads count from 0 in keys, from 1 in names."""
    config = model.config
    plain = all(isinstance(block.attn, Attention) for block in model.blocks)
    found = {"mask": "the causal mask"} if plain else {}
    if config.position == "learned" or (config.position and plain):
        found["position"] = f"the positions ({config.position})"
    if config.qk_norm and plain:
        found["qk_norm"] = "the norm of queries and keys"
    if config.token_shift:
        found["token_shift"] = "the token shift"
    for i, block in enumerate(model.blocks):
        found[f"block.{i}"] = f"block {i + 1}"
        found[f"attention.{i}"] = f"the attention of block {i + 1}"
        found[f"mlp.{i}"] = f"the MLP of block {i + 1}"
        if isinstance(block.attn, Attention):
            heads = range(config.n_head)
            found |= {f"head.{i}.{h}": f"head {h + 1} of block {i + 1}" for h in heads}
    return found


@contextlib.contextmanager
def without(model, off: list[str]) -> Iterator[None]:
    """Switch parts of a model off while the `with` block runs. off: keys of switches().

    A block that is off hands on what it gets; attention or MLP that is off adds nothing; a head that is off
    is zero where the heads come together. ValueError for an unknown key.
    """
    known = switches(model)
    with contextlib.ExitStack() as stack:
        if "next_logits" in vars(model):  # of a packed model: it knows shorter ways around what is off
            patch(stack, model, "next_logits", functools.partial(type(model).next_logits, model))
        for key in dict.fromkeys(off):
            require(
                key in known, f"{key!r:.40} cannot be switched off here; expected one of {[*known]!r:.200}"
            )
            kind, *place = key.split(".")
            if kind == "position":
                patch(stack, model.config, "position", "")
            elif not place:
                for block in model.blocks:
                    if kind == "token_shift":
                        patch(stack, block, "token_shift", 0)
                    elif kind == "qk_norm":
                        patch(stack, block.attn.config, "qk_norm", 0)
                    else:
                        blind = functools.partial(written_out, block.attn, causal=False)
                        patch(stack, block.attn, "forward", blind)
            else:
                block = model.blocks[int(place[0])]
                if kind == "block":
                    on_call(stack, block, after=lambda module, args, x: args[0])
                elif kind == "head":
                    first = int(place[1]) * block.attn.config.head_size
                    channels = slice(first, first + block.attn.config.head_size)
                    on_call(stack, block.attn.o, before=functools.partial(zeroed, channels))
                else:
                    part = block.attn if kind == "attention" else block.mlp
                    on_call(stack, part, after=lambda module, args, y: torch.zeros_like(y))
        yield


def zeroed(channels: slice, module, args: tuple) -> tuple:
    """The input (...,C) of a layer with some channels at zero."""
    x = args[0].clone()
    x[..., channels] = 0.0
    return (x,)


def patch(stack: contextlib.ExitStack, owner, name: str, value) -> None:
    """Set an attribute until the stack closes; then it is what it was, or none of the instance's own."""
    old = vars(owner).get(name, stack)  # the stack itself: there was none
    stack.callback(lambda: vars(owner).pop(name) if old is stack else vars(owner).__setitem__(name, old))
    vars(owner)[name] = value


def on_call(stack: contextlib.ExitStack, module, before=None, after=None) -> None:
    """Call a hook before or after a module until the stack closes."""
    hook = module.register_forward_pre_hook(before) if before else module.register_forward_hook(after)
    stack.callback(hook.remove)


def loss(model, ids: list[int]) -> float:
    """The mean surprise of a text in nats per token."""
    bits = surprise(model, ids)[1:]
    require(len(bits) > 0, "this text has less than two tokens; write a longer one")
    return sum(bits) * math.log(2) / len(bits)


def importance(model, ids: list[int]) -> dict:
    """How much the loss rises, in nats per token, when a part alone is off: heads (L,H), attention, mlp,
    block (L)."""
    whole, known, L = loss(model, ids), switches(model), range(len(model.blocks))

    def change(key: str) -> float | None:
        if key not in known:
            return None
        with without(model, [key]):
            return loss(model, ids) - whole

    heads = [[change(f"head.{i}.{h}") for h in range(model.config.n_head)] for i in L]
    return {
        "heads": heads,
        **{kind: [change(f"{kind}.{i}") for i in L] for kind in ("attention", "mlp", "block")},
    }
