"""What the grader knows about lesson 7: embeddings, and tables of positions."""

import math
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import embedding

from lessons.common import generator, normal
from model import GPT, GPTConfig, rope_tables

trunk = GPT.trunk  # by a name of its own, so that a test can change it


# ---- 7a: the look-up of nn.Embedding, which the project's wte is
def reference_embed(ids, W):
    return embedding(ids, W)


def twin_embed(ids, W):
    rows = []
    for text in ids:
        one_hot = torch.zeros(len(text), len(W))
        for t, letter in enumerate(text.tolist()):
            one_hot[t, letter] = 1.0
        rows.append(one_hot @ W)
    return torch.stack(rows)


def some_ids(g, B, T):
    """(B, T) ids below 9; 1, 4, 6 and the last, 8, never come, 0 and 7 always do."""
    ids = torch.tensor([0, 2, 3, 5, 7])[torch.randint(5, (B, T), generator=g)]
    ids[0, :2] = torch.tensor([7, 0])
    return ids


def inputs_embed(seed):
    g = generator(seed)
    return [(some_ids(g, 3, 7), torch.randn(9, 12, generator=g))]


def one_hot(ids, W):
    return F.one_hot(ids, len(W)).float()


def each_row_is_one_of_the_table(embed, ids, W):
    apart = (embed(ids, W)[0, 0] - W).abs().amax(1)
    row = int(apart.argmin())
    if apart[row] > 1e-3:
        return f"your vector of the first token, id {int(ids[0, 0])}, is no row of the table"
    return "" if row == ids[0, 0] else f"id {int(ids[0, 0])} gets row {row} of the table"


# ---- 7b: the project has no such table, but rotary positions use the same sines and cosines
def reference_sinusoidal(T, C):
    cos, sin = rope_tables(torch.arange(T)[None], C, 10000.0)
    return torch.stack((sin[0, :, 0, C // 2 :], cos[0, :, 0, C // 2 :]), -1).flatten(1)


def twin_sinusoidal(T, C):
    rows = []
    for t in range(T):
        row = []
        for i in range(C // 2):
            angle = t / 10000 ** (2 * i / C)
            row += [math.sin(angle), math.cos(angle)]
        rows.append(row)
    return torch.tensor(rows)


def inputs_sinusoidal(seed):
    return [(9 + 2 * (seed % 4), 12), (151 + seed % 7, 6 + 2 * (seed % 3))]


def waves(T, C, exponent=lambda i, C: 2 * i / C, start=0, unit=1.0, parts=(torch.sin, torch.cos)):
    """The table with one thing changed: (T, C)."""
    i, t = torch.arange(C // 2, dtype=torch.float64), torch.arange(start, start + T)[:, None]
    angles = unit * t / 10000 ** exponent(i, C)
    return torch.stack([part(angles) for part in parts], -1).flatten(1).float()


def by_column(T, C, factor):
    """Each column has an angle of its own; sine and cosine of a pair no longer belong together."""
    j = torch.arange(C)
    angles = torch.arange(T)[:, None] / 10000 ** (factor * j / C)
    return torch.where(j % 2 == 0, angles.sin(), angles.cos())


def begins_with_zeros_and_ones(sinusoidal, T, C):
    row = sinusoidal(T, C)[0]
    right = torch.tensor([0.0, 1.0] * (C // 2))
    found = ", ".join(f"{x:.2f}" for x in row[:4])
    return "" if (row - right).abs().max() < 1e-3 else f"row 0 begins with {found}, not 0, 1, 0, 1"


def end_wavelengths(sinusoidal, T, C):
    """How many positions the first and the last pair take for a turn, read off row 1."""
    for column, right in ((0, math.tau), (C - 2, math.tau * 10000 ** ((C - 2) / C))):
        sine, cosine = sinusoidal(T, C)[1, column : column + 2].tolist()
        found = math.tau / (math.atan2(sine, cosine) % math.tau or 1e-9)
        if abs(found / right - 1) > 0.02:
            return f"the pair at column {column} turns once in {found:,.5g} positions; {right:,.5g} is right"
    return ""


def distance_counts(sinusoidal, T, C):
    """The product of two rows depends on how far they are apart, not on where they are."""
    rows = sinusoidal(60, 32)
    products = (rows[:-3] * rows[3:]).sum(1)
    spread = (products.max() - products.min()).item()
    return "" if spread < 1e-2 else f"rows that are 3 apart have products that differ by up to {spread:.2f}"


# ---- 7c: the project's model without its blocks
def reference_input_vectors(ids, tokens, positions):
    config = GPTConfig(arch="gpt2", block_size=len(positions))
    nothing = SimpleNamespace(config=config, blocks=[], drop=nn.Identity(), norm=nn.Identity())
    nothing.wte, nothing.wpe = partial(embedding, weight=tokens), partial(embedding, weight=positions)
    return trunk(nothing, ids)


def twin_input_vectors(ids, tokens, positions):
    texts = []
    for text in ids.tolist():
        rows = []
        for t in range(len(text)):
            rows.append(tokens[text[t]] + positions[t])
        texts.append(torch.stack(rows))
    return torch.stack(texts)


def inputs_input_vectors(seed):
    g = generator(seed)
    tokens, positions = normal(g, (9, 12), (16, 12))
    return [(some_ids(g, 3, 7), tokens, positions), (some_ids(g, 5, 4), tokens, positions)]


def place_counts(input_vectors, ids, tokens, positions):
    """The same letter at two places: the difference is that of the two positions."""
    same = input_vectors(torch.full_like(ids, 3), tokens, positions)
    moved, right = same[:, 2] - same[:, 1], positions[2] - positions[1]
    if moved.abs().max() < 1e-6:
        return "the same letter has the same vector at places 1 and 2"
    text = "the same letter at places 1 and 2 does not differ by row 2 minus row 1 of the positions"
    return "" if (moved - right).abs().max() < 1e-3 else text


exercises = {
    "7a": dict(
        name="embed",
        reference=reference_embed,
        project=embedding,
        slow=twin_embed,
        forbidden=("Embedding",),
        inputs=inputs_embed,
        wrong={
            "W.T": lambda ids, W: one_hot(ids, W) @ W.T,
            "columns looked up": lambda ids, W: W.T[ids],
            "one-hot as whole numbers": lambda ids, W: F.one_hot(ids, len(W)) @ W,
            "ids as float": lambda ids, W: W[ids.float()],
            "only as many as come": lambda ids, W: F.one_hot(ids).float() @ W,
            "number times vector": lambda ids, W: ids[..., None] * W[0],
            "sum over the text": lambda ids, W: one_hot(ids, W).sum(1) @ W,
            "texts joined": lambda ids, W: one_hot(ids, W).flatten(0, 1) @ W,
            "ids from 1": lambda ids, W: W[ids - 1],
            "root of C": lambda ids, W: one_hot(ids, W) @ W * W.size(1) ** 0.5,
            "cut off the graph": lambda ids, W: W.detach()[ids],
        },
        properties=[each_row_is_one_of_the_table],
    ),
    "7b": dict(
        name="sinusoidal",
        reference=reference_sinusoidal,
        project=rope_tables,
        slow=twin_sinusoidal,
        inputs=inputs_sinusoidal,
        numbers=lambda value, T, C: dict(a=value[0, 0], b=value[0, 1]),
        wrong={
            "i over C": lambda T, C: waves(T, C, lambda i, C: i / C),
            "a wave per column": lambda T, C: by_column(T, C, 1),
            "i counts columns": lambda T, C: by_column(T, C, 2),
            "one wave for all": lambda T, C: waves(T, C, lambda i, C: 2 * i // C),
            "up to 10,000 itself": lambda T, C: waves(T, C, lambda i, C: 2 * i / (C - 2)),
            "exponent's sign": lambda T, C: waves(T, C, lambda i, C: -2 * i / C),
            "positions from 1": lambda T, C: waves(T, C, start=1),
            "cosine first": lambda T, C: waves(T, C, parts=(torch.cos, torch.sin)),
            "sines only": lambda T, C: waves(T, C, parts=(torch.sin, torch.sin)),
            "degrees": lambda T, C: waves(T, C, unit=math.pi / 180),
            "whole turns": lambda T, C: waves(T, C, unit=math.tau),
            "transposed": lambda T, C: waves(T, C).mT,
            "angles": lambda T, C: waves(T, C, parts=(torch.clone, torch.clone)),
            "float64": lambda T, C: waves(T, C).double(),
        },
        also={
            "halves": lambda T, C: torch.cat((waves(T, C)[:, ::2], waves(T, C)[:, 1::2]), 1),
        },
        properties=[begins_with_zeros_and_ones, end_wavelengths, distance_counts],
    ),
    "7c": dict(
        name="input_vectors",
        reference=reference_input_vectors,
        project=trunk,
        slow=twin_input_vectors,
        forbidden=("Embedding", "embedding"),
        needs=["7a"],
        inputs=inputs_input_vectors,
        wrong={
            "none added": lambda ids, tokens, positions: tokens[ids],
            "along the batch": lambda ids, tokens, positions: tokens[ids] + positions[: len(ids), None],
            "not cut to T": lambda ids, tokens, positions: tokens[ids] + positions,
            "cut to B": lambda ids, tokens, positions: tokens[ids] + positions[: len(ids)],
            "concatenated": lambda ids, tokens, positions: torch.cat(
                    (tokens[ids], positions[: ids.size(1)].expand(len(ids), -1, -1)), -1
                ),
            "position of the letter": lambda ids, tokens, positions: tokens[ids] + positions[ids],
            "one row for all": lambda ids, tokens, positions: tokens[ids] + positions[ids.size(1)],
            "last rows": lambda ids, tokens, positions: tokens[ids] + positions[-ids.size(1) :],
            "positions from 1": lambda ids, tokens, positions: tokens[ids] + positions[1 : ids.size(1) + 1],
            "multiplied": lambda ids, tokens, positions: tokens[ids] * positions[: ids.size(1)],
            "positions alone":
                lambda ids, tokens, positions: positions[: ids.size(1)].expand(len(ids), -1, -1),
            "positions cut off":
                lambda ids, tokens, positions: tokens[ids] + positions[: ids.size(1)].detach(),
        },
        properties=[place_counts],
    ),
}  # fmt: skip

predictions = {
    "7.1": dict(answer=8192.0, tol=0.5),
    "7.2": dict(answer=0.0, tol=0.5),
}
