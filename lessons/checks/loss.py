"""What the grader knows about lesson 3: cross-entropy, perplexity, bits per byte, and the exact floor."""

import contextlib
import math

import torch
import torch.nn.functional as F

from evaluate import nats_of_targets
from lessons.common import entropy, generator

TEXTS = [  # (prompt, text): letters of one, two, three and four bytes, and a text without any prompt
    ("Zażółć ", "gęślą jaźń"),
    ("say: ", "안녕 to be"),
    ("", "plain ascii"),
    ("ROMEO: ", "\U0001f600 soft!"),
]


# ---- 3a: the reference is the function by which evaluate.py scores a model, for a model with these logits
def reference_cross_entropy(logits, y):
    nats = nats_of_targets(lambda _: logits[None], y[None], y[None], "cpu", contextlib.nullcontext())
    return nats.mean().float()


def twin_cross_entropy(logits, y):
    total = 0.0
    for row, target in zip(logits, y, strict=True):
        largest = row.max()
        total = total + largest + (row - largest).exp().sum().log() - row[target]
    return total / len(y)


def inputs_cross_entropy(seed):
    g = generator(seed)
    logits, y = torch.randn(13, 7, generator=g), torch.randint(7, (13,), generator=g)
    return [(logits, y), (1000 * logits, y)]


def detached(logits, y):
    return F.cross_entropy(logits, y).detach()


def never_negative(cross_entropy, logits, y):
    found = cross_entropy(logits, y).item()
    return "" if found >= 0 else f"the loss is {found:.2f}: -ln of a probability cannot be below 0"


def uniform_costs_ln_v(cross_entropy, logits, y):
    """A model that knows nothing pays ln V a letter."""
    found = cross_entropy(torch.zeros(5, 65), torch.arange(5)).item()
    return (
        ""
        if abs(found - math.log(65)) < 0.01
        else f"equal logits for 65 letters cost ln 65; yours: {found:.3f}"
    )


# ---- 3b
def reference_perplexity(nll_sums, counts):
    nats = targets = 0.0
    for n, t in zip(nll_sums.tolist(), counts.tolist(), strict=True):
        nats, targets = nats + n, targets + t
    return math.exp(nats / targets)


def inputs_perplexity(seed):
    g = generator(seed)
    counts = torch.tensor([64, 64, 31, 5])  # the last batches are short
    nats = torch.tensor([2.0, 2.4, 2.9, 3.7]) + torch.rand(4, generator=g) / 4
    return [(nats * counts, counts)]


def same_for_any_cut(perplexity, nll_sums, counts):
    """Two batches counted as one are the same text."""
    joined = torch.cat((nll_sums[:1] + nll_sums[1:2], nll_sums[2:]))
    a, b = perplexity(nll_sums, counts), perplexity(joined, torch.cat((counts[:1] + counts[1:2], counts[2:])))
    return "" if abs(a - b) < 1e-3 * b else f"the same text in larger batches gives {b:.2f}, not {a:.2f}"


# ---- 3c
def reference_bits_per_byte(nll, prompt, text):
    bits = 0.0
    for nats in nll.tolist():
        bits += nats / math.log(2)
    return bits / len(bytearray(text, "utf-8"))


def inputs_bits_per_byte(seed):
    g = generator(seed)
    # as many losses as tokens: now fewer than characters (byte pairs), now more (bytes)
    return [(1 + torch.rand(7 + 5 * i, generator=g), *texts) for i, texts in enumerate(TEXTS)]


def any_tokenizer(bits_per_byte, nll, prompt, text):
    """The same nats, told token by token or in one: the same bits per byte."""
    a, b = bits_per_byte(nll, prompt, text), bits_per_byte(nll.sum()[None], prompt, text)
    return (
        "" if abs(a - b) < 1e-3 * abs(a) else f"with one long token for the text it is {b:.2f}, not {a:.2f}"
    )


# ---- 3d
CHAIN = ((0.80, 0.15, 0.05), (0.10, 0.20, 0.70), (0.30, 0.30, 0.40))


def reference_gap(P, loss):
    how_often = torch.ones(len(P), dtype=P.dtype) / len(P)
    for _ in range(1000):  # however it begins, a chain forgets it
        how_often = how_often @ P
    rate = 0.0
    for share, row in zip(how_often, P, strict=True):
        rate = rate - share * sum(p * math.log(p) for p in row.tolist() if p)
    return float(loss - rate)


def stationary(P):
    return torch.linalg.matrix_power(P, 1000)[0]


def inputs_gap(seed):
    g = generator(seed)
    chain = torch.tensor(CHAIN, dtype=torch.float64)
    other = torch.rand(4, 4, generator=g, dtype=torch.float64) + 0.05
    never = torch.tensor(((0.0, 0.6, 0.4), (0.5, 0.0, 0.5), (0.3, 0.7, 0.0)), dtype=torch.float64)
    return [(chain, 0.7991), (other / other.sum(1, keepdim=True), 1.3127), (never, 1.0173)]


def floor_of_a_coin(gap, P, loss):
    """With equal rows the letters are drawn one by one, and the floor is their entropy."""
    found = gap(torch.tensor([[0.9, 0.1], [0.9, 0.1]], dtype=torch.float64), 0.4)
    right = 0.4 - entropy(torch.tensor([0.9, 0.1])).item()
    return (
        ""
        if abs(found - right) < 1e-3
        else f"for a coin of 0.9 and 0.1 the gap of a loss of 0.4 is {right:.3f}"
    )


exercises = {
    "3a": dict(
        name="cross_entropy",
        reference=reference_cross_entropy,
        project=nats_of_targets,
        slow=twin_cross_entropy,
        forbidden=("cross_entropy", "nll_loss", "log_softmax", "CrossEntropyLoss", "NLLLoss"),
        inputs=inputs_cross_entropy,
        wrong={
            "softmax then log": lambda logits, y: -torch.softmax(logits, 1)[range(len(y)), y].log().mean(),
            "exp overflows": lambda logits, y: (logits.exp().sum(1).log() - logits[range(len(y)), y]).mean(),
            "softmax twice": lambda logits, y: F.cross_entropy(torch.softmax(logits, 1), y),
            "sum, not mean": lambda logits, y: F.cross_entropy(logits, y, reduction="sum"),
            "log base 2": lambda logits, y: F.cross_entropy(logits, y) / math.log(2),
            "detached": detached,
            "sign": lambda logits, y: -F.cross_entropy(logits, y),
            "mean over all logits": lambda logits, y: F.cross_entropy(logits, y) / logits.size(1),
            "softmax over rows": lambda logits, y: -torch.log_softmax(logits, 0)[range(len(y)), y].mean(),
            "probability, not its log": lambda logits, y: (
                1 - torch.softmax(logits, 1)[range(len(y)), y].mean()
            ),
            "one loss per target": lambda logits, y: F.cross_entropy(logits, y, reduction="none"),
            "always the largest": lambda logits, y: F.cross_entropy(logits, logits.argmax(1)),
        },
        also={
            "in float64": lambda logits, y: F.cross_entropy(logits.double(), y),
        },
        properties=[never_negative, uniform_costs_ln_v],
    ),
    "3b": dict(
        name="perplexity",
        survivors_of_two={
            "nats, targets = (nats + n, targets + t) => nats, targets = (nats - n, targets - t)": "-a / -b"
        },
        reference=reference_perplexity,
        twin="evaluate.py has it in a line; a test holds both against each other",
        inputs=inputs_perplexity,
        gradients=False,
        wrong={
            "mean of exp per batch": lambda n, t: float((n / t).exp().mean()),
            "mean of batch means": lambda n, t: float((n / t).mean().exp()),
            "exp weighted by targets": lambda n, t: float(((n / t).exp() * t).sum() / t.sum()),
            "exp of bits": lambda n, t: float((n.sum() / t.sum() / math.log(2)).exp()),
            "two to the nats": lambda n, t: float(2 ** (n.sum() / t.sum())),
            "no exp": lambda n, t: float(n.sum() / t.sum()),
            "per batch": lambda n, t: float((n.sum() / len(n)).exp().clamp(max=1e30)),
            "one over": lambda n, t: float((-n.sum() / t.sum()).exp()),
        },
        also={
            "a tensor": lambda n, t: (n.sum() / t.sum()).exp(),
        },
        properties=[same_for_any_cut],
    ),
    "3c": dict(
        name="bits_per_byte",
        reference=reference_bits_per_byte,
        twin="evaluate.py has it in a line; a test holds both against each other",
        inputs=inputs_bits_per_byte,
        gradients=False,
        wrong={
            "nats": lambda nll, prompt, text: float(nll.sum()) / len(text.encode()),
            "times ln 2": lambda nll, prompt, text: float(nll.sum()) * math.log(2) / len(text.encode()),
            "characters": lambda nll, prompt, text: float(nll.sum()) / math.log(2) / len(text),
            "tokens": lambda nll, prompt, text: float(nll.mean()) / math.log(2),
            "prompt's bytes counted": lambda nll, prompt, text: (
                float(nll.sum()) / math.log(2) / len((prompt + text).encode())
            ),
            "UTF-16": lambda nll, prompt, text: (
                float(nll.sum()) / math.log(2) / len(text.encode("utf-16-le"))
            ),
            "different characters": lambda nll, prompt, text: (
                float(nll.sum()) / math.log(2) / len(set(text.encode()))
            ),
            "bits per byte upside down": lambda nll, prompt, text: (
                len(text.encode()) / (float(nll.sum()) / math.log(2))
            ),
        },
        also={
            "a tensor": lambda nll, prompt, text: nll.sum() / math.log(2) / len(text.encode()),
        },
        properties=[any_tokenizer],
    ),
    "3d": dict(
        name="gap",
        reference=reference_gap,
        twin="text/verse.py has the entropy of its grammar, not of a chain",
        inputs=inputs_gap,
        gradients=False,
        tol=1e-3,
        lint={"P": "a transition matrix is square"},
        survivors={
            "for _ in range(1000): => for _ in range(1001):": "the chain has long forgotten its start",
            "for _ in range(1000): => for _ in range(999):": "the same",
        },
        wrong={
            "entropy of letter frequencies": lambda P, loss: float(loss - entropy(stationary(P))),
            "rows weigh the same": lambda P, loss: float(loss - entropy(P).mean()),
            "uniform": lambda P, loss: float(loss - math.log(len(P))),
            "bits": lambda P, loss: float(loss - stationary(P) @ entropy(P) / math.log(2)),
            "sign": lambda P, loss: float(stationary(P) @ entropy(P) - loss),
            "floor alone": lambda P, loss: float(stationary(P) @ entropy(P)),
            "sum over rows": lambda P, loss: float(loss - entropy(P).sum()),
            "columns": lambda P, loss: float(loss + (stationary(P) * torch.xlogy(P, P).sum(0)).sum()),
            "0 times log 0": lambda P, loss: float(loss + stationary(P) @ (P * P.log()).sum(1)),
            "ratio": lambda P, loss: float(loss / (stationary(P) @ entropy(P))),
            "one step only": lambda P, loss: float(loss - P.mean(0) @ entropy(P)),
        },
        also={
            "a tensor": lambda P, loss: loss - stationary(P) @ entropy(P),
        },
        properties=[floor_of_a_coin],
    ),
}

predictions = {
    "3.1": dict(answer=65.0, tol=0.5),
}
