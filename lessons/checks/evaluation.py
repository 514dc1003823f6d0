"""What the grader knows about lesson 28: a sliding window, two models compared in pairs, text seen before."""

import math
import types

import torch
import torch.nn.functional as F
from torch import nn

from evaluate import Sums, standard_error
from lessons.common import floats, generator, mistakes, normal
from play.look import surprise

V = 11


class Small(nn.Module):
    """ids (B, T) -> logits (B, T, V); each letter counts less, the longer ago it was."""

    def __init__(self, seed: int, size: int, scale: float = 1.0):
        super().__init__()
        table, head = normal(generator(seed), (V, 6), (6, V))
        self.wte, self.head = nn.Parameter(table), nn.Parameter(scale * head)
        self.config = types.SimpleNamespace(block_size=size)
        self.longest = 0  # ids of a row that was read

    def forward(self, x):
        t = torch.arange(x.size(1))
        self.longest = max(self.longest, len(t))
        weights = (0.8 ** (t[:, None] - t)).tril()
        return weights @ self.wte[x] @ self.head / 2


# ---- 28a: each target once, with half a window before it
def reference_sliding(model, ids, size):
    bits = surprise(model, ids.tolist())[1:]
    return math.log(2) * sum(bits) / len(bits)


def twin_sliding(model, ids, size):
    half, nats = size // 2, 0.0
    for begin in range(0, len(ids) - 1, size - half):
        window = ids[begin : begin + size]
        with torch.no_grad():
            logits = model(window[None])[0, :-1]
        losses = F.cross_entropy(logits, window[1:], reduction="none")
        new = losses[half - 1 :] if begin else losses
        nats += new.sum().item()
    return nats / (len(ids) - 1)


def inputs_sliding(seed):
    return [(23, 6, 1.3, seed), (17, 7, 1.3, seed + 10), (5, 9, 1.3, seed + 20), (19, 2, 300.0, seed + 30)]


def seen_of_sliding(sliding_loss, n, size, scale, seed):
    model = Small(seed, size, scale)
    found = sliding_loss(model, torch.randint(V, (n,), generator=generator(seed)), size)
    held = bool(getattr(found, "requires_grad", False))
    return {"loss": floats([found])[0], "graph held": held, "longer than a window": model.longest > size}


def the_tail_counts_as_the_rest(sliding_loss, n, size, scale, seed):
    """A model that knows nothing has the same loss wherever windows end."""

    def uniform(x):
        return torch.zeros(*x.shape, V)

    uniform.config = types.SimpleNamespace(block_size=size)
    found = sliding_loss(uniform, torch.randint(V, (n,), generator=generator(seed)), size)
    return f"of equal logits the loss is {found:.3f}, not ln {V} = {math.log(V):.3f}" * (
        abs(found - math.log(V)) > 1e-3
    )


STEPS, WINDOW = "range(0, len(ids) - 1, size - half)", "ids[begin : begin + size]"
NEW, ADD, TOLD = "losses[half - 1 :] if begin", "nats += new.sum().item()", "nats / (len(ids) - 1)"
FORWARD = "model(window[None])[0, :-1]"
COUNTED = "nats = size // 2, 0.0", "nats, count = size // 2, 0.0, 0", TOLD, "nats / count"  # with ADD_COUNT
ADD_COUNT = ADD, ADD + "; count += len(new)"
NOT_SLIDING = mistakes(twin_sliding, {
    "disjoint windows": (STEPS, "range(0, len(ids) - 1, size - 1)", NEW, "losses if begin"),
    "first letters never scored": (STEPS, "range(0, len(ids) - 1, size)", NEW, "losses if begin",
        *ADD_COUNT, *COUNTED),
    "overlap counted twice": (NEW, "losses if begin", *ADD_COUNT, *COUNTED),
    "a target lost each window": (NEW, "losses[half:] if begin", *ADD_COUNT, *COUNTED),
    "overlap in the sum alone": (NEW, "losses if begin"),
    "mean of window means": (ADD, "nats += new.mean().nan_to_num().item(); count += len(new) > 0", *COUNTED),
    "short last one dropped": (STEPS, "range(0, max(1, len(ids) - size + 1), size - half)", *ADD_COUNT,
        *COUNTED),
    "one letter at a time": (STEPS, "range(max(1, len(ids) - size + 1))", NEW, "losses[-1:] if begin"),
    "whole text at once": (STEPS, "range(1)", WINDOW, "ids"),
    "windows half as long": (STEPS, "range(0, len(ids) - 1, half)", WINDOW, "ids[begin : begin + half + 1]",
        NEW, "losses if begin"),
    "its own letter": ("window[1:]", "window[:-1]"),
    "a sum": (TOLD, "nats"),
    "divided by all ids": (TOLD, "nats / len(ids)"),
    "bits": (TOLD, "nats / (len(ids) - 1) / math.log(2)"),
    "perplexity": (TOLD, "math.exp(min(nats / (len(ids) - 1), 700))"),
    "a graph held": ("torch.no_grad()", "torch.enable_grad()", ".sum().item()", ".sum()"),
})  # fmt: skip
ALSO_SLIDING = mistakes(twin_sliding, {
    "one target more": (STEPS, "range(0, len(ids) - 1, size - half)", WINDOW,
        "ids[begin : begin + size + 1]", FORWARD, "model(window[None, :-1])[0]",
        NEW, "losses[half:] if begin"),
})  # fmt: skip


# ---- 28b: the same windows for both
def reference_compare(first, second, draw, k):
    batches = [draw("val") for _ in range(k)]
    d = sum_of_windows(second, batches) - sum_of_windows(first, batches)
    T, n = batches[0][1].size(1), len(d)
    sums = Sums(
        nats=d.sum(), targets=n * T, nats_nats=d @ d, nats_targets=T * d.sum(), targets_targets=n * T * T
    )
    return float(d.sum()) / (n * T), standard_error(sums)


def sum_of_windows(model, batches):
    """Nats of each window, (n,) float64."""
    with torch.no_grad():
        parts = [F.cross_entropy(model(x).mT, y, reduction="none").double().sum(1) for x, y in batches]
    return torch.cat(parts).numpy()


def twin_compare(first, second, draw, k):
    differences = []
    for _ in range(k):
        x, y = draw("val")
        with torch.no_grad():
            a, b = (F.cross_entropy(model(x).mT, y, reduction="none") for model in (first, second))
        differences.append((b - a).mean(1))
    d = torch.cat(differences)
    error = d.std(correction=0) / math.sqrt(len(d))
    return d.mean().item(), error.item()


def inputs_compare(seed):
    return [(4, 3, 9, seed + 40), (3, 5, 6, seed + 10), (2, 4, 7, seed + 20)]


def seen_of_compare(compare, k, B, T, seed):
    g = generator(seed)
    first = Small(seed, T, 1.2)
    second = Small(seed, T, 1.2)
    with torch.no_grad():
        second.head += 0.2 * torch.randn(second.head.shape, generator=g)
    drawn = []

    def draw(split):
        """Windows of train are easier: they have half of the letters."""
        ids = torch.randint({"train": V // 2, "val": V}[split], (B, T + 1), generator=g)
        ids[:, 1:] = torch.where(torch.rand(B, 1, generator=g) < 0.5, ids[:, :-1], ids[:, 1:])
        drawn.append(split)
        return ids[:, :-1], ids[:, 1:]

    difference, error = compare(first, second, draw, k)
    held = any(getattr(x, "requires_grad", False) for x in (difference, error))
    told = floats([difference, error])
    return {"difference": told[0], "standard error": told[1], "graph held": held, "drawn": " ".join(drawn)}


def equal_models_differ_by_nothing(compare, k, B, T, seed):
    g, model = generator(seed), Small(seed, T)

    def draw(split):
        ids = torch.randint(V, (B, T + 1), generator=g)
        return ids[:, :-1], ids[:, 1:]

    found = floats(compare(model, model, draw, k))
    return f"a model differs from itself by {found[0]:.4f} +- {found[1]:.4f}, on the same windows by 0" * any(
        abs(x) > 1e-6 for x in found
    )


DRAW, BOTH, MEANS = 'draw("val")', "(b - a).mean(1)", "d.mean().item()"
ERROR, JOIN = "d.std(correction=0) / math.sqrt(len(d))", "d = torch.cat(differences)"
NLL = '{} = F.cross_entropy({}(x).mT, y, reduction="none")'
BOTH_READ = 'a, b = (F.cross_entropy(model(x).mT, y, reduction="none") for model in (first, second))'
NOT_COMPARE = mistakes(twin_compare, {
    "unpaired": ("differences = []", "differences, both = [], []", JOIN, JOIN + "; s = torch.cat(both, 1)",
        BOTH, BOTH + "); both.append(torch.stack((a.mean(1), b.mean(1)))", ERROR,
        "(s.var(1, correction=0).sum() / len(d)).sqrt()"),
    "spread, not standard error": (ERROR, "d.std(correction=0)"),
    "divided by n": (ERROR, "d.std(correction=0) / len(d)"),
    "root of n forgotten twice": (ERROR, "d.var(correction=0) / len(d)"),
    "other batches per model": (BOTH_READ, NLL.format("a", "first") + "; x, y = draw('val'); "
        + NLL.format("b", "second")),
    "train text": (DRAW, 'draw("train")'),
    "first minus second": (BOTH, "(a - b).mean(1)"),
    "sums of windows": (BOTH, "(b - a).sum(1)"),
    "batches as units": (BOTH, "(b - a).mean()[None]"),
    "letters as units": (BOTH, "(b - a).flatten()"),
    "how far, not which way": (BOTH, "(b - a).mean(1).abs()"),
    "one batch": ("range(k)", "range(1)"),
    "error of the second alone": ("differences = []", "differences, both = [], []",
        BOTH, BOTH + "); both.append(b.mean(1)", "d.std(", "torch.cat(both).std("),
    "two standard errors": (ERROR, "2 * " + ERROR),
    "bits": (BOTH, "(b - a).mean(1) / math.log(2)"),
    "a ratio": (BOTH, "(b.mean(1) / a.mean(1))"),
    "a graph held": ("torch.no_grad()", "torch.enable_grad()", MEANS, "d.mean()"),
})  # fmt: skip
ALSO_COMPARE = mistakes(twin_compare, {"n - 1": ("correction=0", "correction=1")})


# ---- 28c: text that was seen before
def reference_overlap(train, test, n):
    def grams(text):
        words = text.lower().split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    seen, wanted = {*grams(train)}, grams(test)
    return sum(gram in seen for gram in wanted) / len(wanted) if wanted else 0.0


WORDS = (
    "The the THE to day today art heart he a rt, rt Łódź łódź be be".split()
)  # glued or cut, some are alike


def inputs_overlap(seed):
    g = generator(seed)

    def passage(size):
        words = [WORDS[i] for i in torch.randint(len(WORDS), (size,), generator=g)]
        blanks = [" \n "[i % 2 : 1 + i % 3] or " " for i in torch.randint(6, (size,), generator=g).tolist()]
        return "".join(word + blank for word, blank in zip(words, blanks, strict=True))

    shared = passage(14)
    test = passage(11) + shared + shared.upper() + passage(9)
    return [
        (passage(60) + shared + passage(31), test, 3),
        (passage(70) + "he art ", passage(40) + "hea rt", 2),
        (passage(30), passage(3), 4),  # shorter than an n-gram
        (passage(4), test, 5),
        (passage(30), "", 2),
    ]


def all_of_a_copy(overlap, train, test, n):
    found = overlap(train, train, n)
    return f"a test that is the training text itself overlaps by {found:.2f}, not 1" * (abs(found - 1) > 1e-6)


CASE, STEP = "text.lower().split()", "range(len(words) - n + 1)"
GRAM, SEEN = "tuple(words[i : i + n])", "{*grams(train)}, grams(test)"
SHARE = "sum(gram in seen for gram in wanted) / len(wanted) if wanted else 0.0"
NOT_OVERLAP = mistakes(reference_overlap, {
    "letters for words": (CASE, "text.lower()"),
    "set of test n-grams": (SEEN, "{*grams(train)}, {*grams(test)}"),
    "case kept": (CASE, "text.split()"),
    "the wrong way round": (SEEN, "{*grams(test)}, grams(train)"),
    "jaccard": (SEEN, "{*grams(train)}, {*grams(test)}", SHARE,
        "len(seen & wanted) / len(seen | wanted) if seen | wanted else 0.0"),
    "split at blanks alone": (CASE, "text.lower().split(' ')"),
    "single words": (GRAM, "words[i]"),
    "n-grams side by side": (STEP, "range(0, len(words) - n + 1, n)"),
    "last n-gram lost": (STEP, "range(len(words) - n)"),
    "nothing to divide by": (" if wanted else 0.0", ""),
    "parts of words": (SEEN, "' '.join(train.lower().split()), map(' '.join, grams(test))", "seen, wanted =",
        "seen, wanted =", SHARE, "(lambda w: sum(g in seen for g in w) / len(w) if w else 0.0)([*wanted])"),
    "order ignored": (GRAM, "tuple(sorted(words[i : i + n]))"),
    "glued words": (GRAM, "''.join(words[i : i + n])"),
    "counted, not divided": (SHARE, "float(sum(gram in seen for gram in wanted))"),
    "percent": ("sum(", "100 * sum("),
    "punctuation cut off": (CASE, "text.lower().replace(',', '').split()"),
    "each copy once": (SEEN, "grams(train), grams(test)", SHARE,
        "sum(min(seen.count(g), wanted.count(g)) for g in {*wanted}) / max(1, len(wanted))"),
})  # fmt: skip

exercises = {
    "28a": dict(name="sliding_loss", reference=reference_sliding, project=surprise, slow=twin_sliding,
        inputs=inputs_sliding, call=seen_of_sliding, gradients=False,
        properties=[the_tail_counts_as_the_rest], wrong=NOT_SLIDING, also=ALSO_SLIDING,
        survivors={f"for begin in {STEPS}: => for begin in {STEPS.replace(' - 1', other)}:":
            "it scores no letter more" for other in ("", " - 0", " + 1")}
            | {f"{ADD} => nats += new.sum()": "a tensor counts as well",
                f"logits = {FORWARD} => logits = model(window[None])[-1, :-1]": "there is one row"},
        ),
    "28b": dict(name="compare", reference=reference_compare, project=standard_error, slow=twin_compare,
        inputs=inputs_compare, call=seen_of_compare, gradients=False, tol=1e-3,
        properties=[equal_models_differ_by_nothing], wrong=NOT_COMPARE, also=ALSO_COMPARE,
        survivors={f"return ({MEANS}, error.item()) => return ({told}": "a tensor without a graph is as good"
            for told in ("d.mean(), error.item())", f"{MEANS}, error)")},
        ),
    "28c": dict(name="overlap", reference=reference_overlap, inputs=inputs_overlap, gradients=False,
        twin="text/near_duplicates.py compares sets of letters' n-grams, to clean a training text",
        properties=[all_of_a_copy], wrong=NOT_OVERLAP,
        ),
}  # fmt: skip

predictions = {
    "28.1": dict(answer=0.01, tol=0.0004),
}
