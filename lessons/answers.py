"""Answers as one would write them with torch, to exercises whose answer in the check file is a loop.

A name ends in the number: scores_9a answers 9a. solutions.py finds them. An answer calls those before it by
the names that they have in the lesson.
"""

# ruff: noqa: F821 (those names)

import copy
import math
import re
from collections import Counter
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


# ---- unit A
def vocab_1a(text):
    vocabulary = sorted(set(text))
    return vocabulary, {character: i for i, character in enumerate(vocabulary)}


def windows_1c(ids, starts, T):
    places = starts[:, None] + torch.arange(T)
    return ids[places], ids[places + 1]


def normalise_2b(C, k):
    smoothed = C + k
    return smoothed / smoothed.sum(1, keepdim=True)


def cross_entropy_3a(logits, y):
    above = logits - logits.amax(1, keepdim=True)
    right = above.gather(1, y[:, None])[:, 0]
    return (above.exp().sum(1).log() - right).mean()


def perplexity_3b(nll_sums, counts):
    return math.exp(nll_sums.sum().item() / counts.sum().item())


def bits_per_byte_3c(nll, prompt, text):
    return nll.sum().item() / math.log(2) / len(text.encode("utf-8"))


def train_step_4a(model, opt, x, y):
    loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    opt.zero_grad()
    loss.backward()
    opt.step()
    return loss.item()


def train_5c(text, vocab_size):
    words = Counter(tuple(word.encode("utf-8")) for word in split(text))
    merges = []
    while 256 + len(merges) < vocab_size:
        counts = count_pairs(words)
        pair = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if pair is None or counts[pair] < 2:
            break
        merged = Counter()
        for word, n in words.items():
            merged[tuple(merge(list(word), pair, 256 + len(merges)))] += n
        words = merged
        merges.append(pair)
    return merges


def encode_6a(text, tokens, special):
    age = {token: i for i, token in enumerate(tokens)}
    names = sorted(special, key=len, reverse=True)
    ids = []
    for part in re.split("(" + "|".join(map(re.escape, names)) + ")", text) if names else [text]:
        if part in special:
            ids.append(special[part])
            continue
        for word in split(part):
            pieces = [bytes([byte]) for byte in word.encode("utf-8")]
            while True:
                joined = [age.get(a + b, math.inf) for a, b in pairwise(pieces)]
                if min(joined, default=math.inf) == math.inf:
                    break
                i = joined.index(min(joined))
                pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
            ids += [age[piece] for piece in pieces]
    return ids


# ---- unit B
def embed_7a(ids, W):
    return F.one_hot(ids, len(W)).float() @ W


def sinusoidal_7b(T, C):
    i = torch.arange(C // 2)
    angles = torch.arange(T)[:, None] / 10000 ** (2 * i / C)
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)


def input_vectors_7c(ids, tokens, positions):
    return tokens[ids] + positions[: ids.size(1)]


def tables_8a(T, d, base):
    speeds = base ** (-2 * torch.arange(d // 2) / d)
    angles = torch.arange(T)[:, None] * speeds
    return angles.cos(), angles.sin()


def rotate_8b(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def place_8c(q, k, v, positions, base):
    cos, sin = tables(int(positions.max()) + 1, q.size(-1), base)
    cos, sin = cos[positions], sin[positions]
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def scores_9a(q, k):
    return q @ k.mT / k.size(-1) ** 0.5


def causal_9b(scores):
    T = scores.size(-1)
    past = torch.ones(T, T, dtype=torch.bool).tril()
    return scores.masked_fill(~past, -math.inf).softmax(-1)


def attend_9c(x, wq, wk, wv):
    q, k, v = x @ wq, x @ wk, x @ wv
    past = torch.ones(x.size(1), x.size(1), dtype=torch.bool).tril()
    scores = (q @ k.mT / k.size(-1) ** 0.5).masked_fill(~past, -math.inf)
    return scores.softmax(-1) @ v


def split_10a(x, n_head):
    B, T, C = x.shape
    return x.view(B, T, n_head, C // n_head).transpose(1, 2)


def merge_10b(y, wo):
    return y.transpose(1, 2).flatten(2) @ wo


def repeat_kv_11a(k, n_head):
    return k.repeat_interleave(n_head // k.size(1), dim=1)


def attend_new_11c(q, k, v):
    B, H, hs = q.shape
    groups = q.view(B, k.size(1), -1, hs)
    weights = (groups @ k.mT / hs**0.5).softmax(-1)
    return (weights @ v).view(B, H, hs)


def layer_norm_12a(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def rms_norm_12b(x, weight, eps):
    wide = x.float()
    return (wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight).to(x.dtype)


class FeedForward_13a(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.up = nn.Linear(C, 4 * C, bias=False)
        self.down = nn.Linear(4 * C, C, bias=False)

    def forward(self, x):
        return self.down(F.gelu(self.up(x), approximate="tanh"))


def forward_13b(gpt, idx, targets):
    x = gpt.wte(idx) + gpt.wpe(torch.arange(idx.size(1)))
    for block in gpt.blocks:
        x = block(x)
    logits = gpt.head(gpt.norm(x))
    return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def tie_13c(gpt):
    gpt.head.weight = gpt.wte.weight
    return sum(p.numel() for p in gpt.parameters())


# ---- unit C
def adamw_step_16c(params, grads, state, lr, betas, eps, decay):
    for p in params:
        if p.ndim >= 2:
            p *= 1 - lr * decay
    adam_step(params, grads, state, lr, betas, eps)


def orthogonalize_17a(matrix):
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        A = x @ x.mT
        x = a * x + (b * A + c * A @ A) @ x
    return x.mT if tall else x


# ---- unit D
class EarlyStopper_21b:
    def __init__(self, patience, min_delta):
        self.patience, self.min_delta = patience, min_delta
        self.to_beat = self.lowest = math.inf
        self.bad, self.best = 0, None

    def see(self, loss, model):
        if loss < self.lowest:
            self.lowest, self.best = loss, copy.deepcopy(model.state_dict())
        if loss < self.to_beat - self.min_delta:
            self.to_beat, self.bad = loss, 0
        else:
            self.bad += 1
        return 0 < self.patience <= self.bad


# ---- unit E
def keep_k_26b(logits, k):
    likeliest = logits.argsort(dim=1, descending=True, stable=True)
    kept = torch.full_like(logits, -math.inf)
    likeliest = likeliest[:, :k] if k > 0 else likeliest
    return kept.scatter(1, likeliest, logits.gather(1, likeliest))


def keep_p_26c(probs, p):
    sorted_p, order = probs.sort(dim=1, descending=True, stable=True)
    before = sorted_p.cumsum(1) - sorted_p
    kept = torch.zeros_like(probs).scatter(1, order, sorted_p * (before < p))
    return kept / kept.sum(1, keepdim=True)


# ---- unit F
class LoRA_31a(nn.Module):
    def __init__(self, layer, rank, alpha):
        super().__init__()
        self.layer, self.scale = layer.requires_grad_(False), alpha / rank
        bound = layer.in_features**-0.5
        self.A = nn.Parameter(torch.empty(rank, layer.in_features).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x):
        return self.layer(x) + self.scale * (x @ self.A.T @ self.B.T)


class Switch_31b:
    def __init__(self, layer, A, B, alpha):
        self.layer, self.before = layer, layer.weight.detach().clone()
        self.after = (self.before.float() + alpha / len(A) * (B @ A)).to(self.before.dtype)

    def on(self):
        self.layer.weight.data = self.after.clone()

    def off(self):
        self.layer.weight.data = self.before.clone()


def to_int8_32a(w):
    scales = (w.abs().amax(1) / 127).bfloat16().float()
    codes = w / scales.clamp(min=1e-30)[:, None]  # a row of zeros: 0 / 1e-30
    return codes.round().to(torch.int8), scales


class Packed_32b:
    def __init__(self, codes):
        self.n = codes.size(1)
        levels = (codes + 8).to(torch.uint8)
        if self.n % 2:
            levels = torch.cat((levels, torch.zeros_like(levels[:, :1])), 1)
        self.bytes = levels[:, ::2] << 4 | levels[:, 1::2]

    def codes(self):
        levels = torch.stack((self.bytes >> 4, self.bytes & 15), 2).flatten(1)
        return levels[:, : self.n].to(torch.int8) - 8


def masks_33a(weights, share):
    matrices = {name: w for name, w in weights.items() if w.dim() == 2}
    sizes = torch.cat([w.abs().flatten() for w in matrices.values()])
    order = sizes.argsort(stable=True)
    gone = torch.zeros(len(sizes), dtype=torch.bool)
    gone[order[: round(share * len(sizes))]] = True
    parts = gone.split([w.numel() for w in matrices.values()])
    return {name: part.view(w.shape) for part, (name, w) in zip(parts, matrices.items(), strict=True)}
