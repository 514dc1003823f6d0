"""What the grader knows about lesson 3: cross-entropy, perplexity, bits per byte, and the exact floor."""

import contextlib
import math

import torch
import torch.nn.functional as F

from evaluate import nats_of_targets

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
    g = torch.Generator().manual_seed(seed)
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
    g = torch.Generator().manual_seed(seed)
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
    g = torch.Generator().manual_seed(seed)
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
        rate = rate - share * sum(p * math.log(p) for p in row.tolist())
    return float(loss - rate)


def entropy(p):
    return -(p * p.log()).sum(-1)


def stationary(P):
    return torch.linalg.matrix_power(P, 1000)[0]


def inputs_gap(seed):
    g = torch.Generator().manual_seed(seed)
    chain = torch.tensor(CHAIN, dtype=torch.float64)
    other = torch.rand(4, 4, generator=g, dtype=torch.float64) + 0.05
    return [(chain, 0.7991), (other / other.sum(1, keepdim=True), 1.3127)]


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
            "softmax then log": (
                lambda logits, y: -torch.softmax(logits, 1)[range(len(y)), y].log().mean(),
                "Logits of 1000 are fine, a probability of 0 has no logarithm. Where can e^x be avoided?",
            ),
            "exp overflows": (
                lambda logits, y: (logits.exp().sum(1).log() - logits[range(len(y)), y]).mean(),
                "e to the 1000 is inf. What may be subtracted from all logits without changing the answer?",
            ),
            "softmax twice": (
                lambda logits, y: F.cross_entropy(torch.softmax(logits, 1), y),
                "Even a sure and right guess costs something: are these logits, or probabilities?",
            ),
            "sum, not mean": (
                lambda logits, y: F.cross_entropy(logits, y, reduction="sum"),
                "Yours grows with the number of targets. A loss is told per target.",
            ),
            "log base 2": (
                lambda logits, y: F.cross_entropy(logits, y) / math.log(2),
                "Yours is 1.4427 times ours everywhere: which logarithm is the loss told in here?",
            ),
            "detached": (
                detached,
                "The value is right, but no gradient reaches the logits. What cut it off?",
            ),
            "sign": (
                lambda logits, y: -F.cross_entropy(logits, y),
                "Your loss is negative: what is the logarithm of a probability, above or below 0?",
            ),
            "mean over all logits": (
                lambda logits, y: F.cross_entropy(logits, y) / logits.size(1),
                "Yours is too small by the number of letters. How many targets does each row have?",
            ),
            "softmax over rows": (
                lambda logits, y: -torch.log_softmax(logits, 0)[range(len(y)), y].mean(),
                "Which numbers compete: the letters of one target, or one letter over all targets?",
            ),
            "probability, not its log": (
                lambda logits, y: 1 - torch.softmax(logits, 1)[range(len(y)), y].mean(),
                "This is the chance to be wrong. How surprised was the model, in nats?",
            ),
            "one loss per target": (
                lambda logits, y: F.cross_entropy(logits, y, reduction="none"),
                "These are the losses of each target; one number is asked for.",
            ),
            "always the largest": (
                lambda logits, y: F.cross_entropy(logits, logits.argmax(1)),
                "This is the loss of the letter the model likes best. Which letter really came?",
            ),
        },
        also={
            "in float64": (
                lambda logits, y: F.cross_entropy(logits.double(), y),
                "Yours is in float64. That is more exact; the project stays with float32, which is faster.",
            ),
        },
        properties=[never_negative, uniform_costs_ln_v],
        hints=[
            "How large may x be in e^x, and does the answer change if all logits grow alike?",
            "Subtract each row's maximum first; then the logarithm of a sum of exponentials is harmless.",
            "loss of a target = log(sum(exp(row - max))) - (row[target] - max); then the mean over targets.",
        ],
    ),
    "3b": dict(
        name="perplexity",
        reference=reference_perplexity,
        twin="evaluate.py has it in a line; a test holds both against each other",
        inputs=inputs_perplexity,
        gradients=False,
        wrong={
            "mean of exp per batch": (
                lambda n, t: float((n / t).exp().mean()),
                "One exp per batch and then a mean: the bad batch weighs too much. When is the exp due?",
            ),
            "mean of batch means": (
                lambda n, t: float((n / t).mean().exp()),
                "The last batch has 5 targets and weighs as much as one of 64.",
            ),
            "exp weighted by targets": (
                lambda n, t: float(((n / t).exp() * t).sum() / t.sum()),
                "Well weighted, but exp of a mean is not the mean of exps.",
            ),
            "exp of bits": (
                lambda n, t: float((n.sum() / t.sum() / math.log(2)).exp()),
                "e to a number of bits: base and unit have to match.",
            ),
            "two to the nats": (
                lambda n, t: float(2 ** (n.sum() / t.sum())),
                "2 to a number of nats: base and unit have to match.",
            ),
            "no exp": (
                lambda n, t: float(n.sum() / t.sum()),
                "This is the loss. Perplexity: among how many equally likely letters is that a guess?",
            ),
            "per batch": (
                lambda n, t: float((n.sum() / len(n)).exp().clamp(max=1e30)),
                "The nats of a whole batch went into the exponential. Per what is a loss told?",
            ),
            "one over": (
                lambda n, t: float((-n.sum() / t.sum()).exp()),
                "This is a probability, below 1. Perplexity is one over it.",
            ),
        },
        also={
            "a tensor": (
                lambda n, t: (n.sum() / t.sum()).exp(),
                "Yours is a tensor. Its .item() is the Python float that was asked for.",
            ),
        },
        properties=[same_for_any_cut],
        hints=[
            "Two batches, one of 64 targets, one of 5: how much should each count?",
            "Sum, count, divide once. The exponential comes last, and once.",
            "exp(all nats added / all targets added)",
        ],
    ),
    "3c": dict(
        name="bits_per_byte",
        reference=reference_bits_per_byte,
        twin="evaluate.py has it in a line; a test holds both against each other",
        inputs=inputs_bits_per_byte,
        gradients=False,
        wrong={
            "nats": (
                lambda nll, prompt, text: float(nll.sum()) / len(text.encode()),
                "Yours is 0.693 times ours: the loss comes in nats, and bits are asked for.",
            ),
            "times ln 2": (
                lambda nll, prompt, text: float(nll.sum()) * math.log(2) / len(text.encode()),
                "Yours is about half of ours. A nat is more than a bit: multiply or divide?",
            ),
            "characters": (
                lambda nll, prompt, text: float(nll.sum()) / math.log(2) / len(text),
                "Right for plain ASCII and for nothing else. How many bytes has 'ł'?",
            ),
            "tokens": (
                lambda nll, prompt, text: float(nll.mean()) / math.log(2),
                "This is per token: a tokenizer with longer tokens would look worse for the same text.",
            ),
            "prompt's bytes counted": (
                lambda nll, prompt, text: float(nll.sum()) / math.log(2) / len((prompt + text).encode()),
                "The prompt was not scored, so its bytes do not count either.",
            ),
            "UTF-16": (
                lambda nll, prompt, text: float(nll.sum()) / math.log(2) / len(text.encode("utf-16-le")),
                "Which encoding is that? A plain letter has one byte in UTF-8.",
            ),
            "different characters": (
                lambda nll, prompt, text: float(nll.sum()) / math.log(2) / len(set(text.encode())),
                "Each byte counts each time it comes.",
            ),
            "bits per byte upside down": (
                lambda nll, prompt, text: len(text.encode()) / (float(nll.sum()) / math.log(2)),
                "Bytes per bit. Which of the two stands below the line?",
            ),
        },
        also={
            "a tensor": (
                lambda nll, prompt, text: nll.sum() / math.log(2) / len(text.encode()),
                "Yours is a tensor. Its .item() is the Python float that was asked for.",
            ),
        },
        properties=[any_tokenizer],
        hints=[
            "If a tokenizer makes half as many tokens of a text, should the number change?",
            "All nats of the text, as bits, over what the text weighs on disk.",
            "sum of nll / ln 2 / number of UTF-8 bytes of the text without the prompt",
        ],
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
            "entropy of letter frequencies": (
                lambda P, loss: float(loss - entropy(stationary(P))),
                "The model seems to beat the floor. What does the letter before tell about the next?",
            ),
            "rows weigh the same": (
                lambda P, loss: float(loss - entropy(P).mean()),
                "Some letters come more often than others, and so do their rows.",
            ),
            "uniform": (
                lambda P, loss: float(loss - math.log(len(P))),
                "ln V is the floor of a text of equally likely letters. These are not.",
            ),
            "bits": (
                lambda P, loss: float(loss - stationary(P) @ entropy(P) / math.log(2)),
                "The loss is in nats. In which unit is your floor?",
            ),
            "sign": (
                lambda P, loss: float(stationary(P) @ entropy(P) - loss),
                "No model is better than the floor: which is taken from which?",
            ),
            "floor alone": (
                lambda P, loss: float(stationary(P) @ entropy(P)),
                "This is the floor itself. How far is the loss above it?",
            ),
            "sum over rows": (
                lambda P, loss: float(loss - entropy(P).sum()),
                "Your floor grows with the number of letters. It is a mean over where the text stands.",
            ),
            "columns": (
                lambda P, loss: float(loss + (stationary(P) * (P * P.log()).sum(0)).sum()),
                "P[a, b] is the chance of b after a: what sums to 1, a row or a column?",
            ),
            "ratio": (
                lambda P, loss: float(loss / (stationary(P) @ entropy(P))),
                "Nats are compared by a difference.",
            ),
            "one step only": (
                lambda P, loss: float(loss - P.mean(0) @ entropy(P)),
                "These are the frequencies after one step from anywhere. The text is longer than that.",
            ),
        },
        also={
            "a tensor": (
                lambda P, loss: loss - stationary(P) @ entropy(P),
                "Yours is a tensor. Its .item() is the Python float that was asked for.",
            ),
        },
        properties=[floor_of_a_coin],
        hints=[
            "After which letter is the next one hard to guess, and how often does that letter come?",
            "The frequencies of the letters stay the same when multiplied by P: multiply until they do.",
            "floor = sum over a of share[a] * entropy(P[a]), where share = share @ P; gap = loss - floor",
        ],
    ),
}

predictions = {
    "3.1": dict(
        ask="perplexity of a uniform guess among 65 letters",
        answer=65.0,
        tol=0.5,
        wrong={
            4.17: "4.17 is the loss in nats; perplexity is e to that, 65.",
            18.05: "18.05 is 2 to a loss in nats; with e it is 65.",
            0.0154: "0.0154 is the probability of each; perplexity is one over it, 65.",
        },
    ),
}
