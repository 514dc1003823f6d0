"""What the grader knows about lesson 1: characters and their ids, a split, windows, and where they start."""

import contextlib
import random

import numpy as np
import torch
from torch.nn.functional import pad

from data import Windows
from lessons.common import as_tuple, generator, p_value
from tokenizer import CharTokenizer

PLAY = "To be, or not to be: that is the question\nWhether 'tis nobler in the mind to suffer"


# ---- 1a: what counts is what the two tables do, whether they are lists, texts or dicts
def reference_vocab(text):
    vocabulary = [token.decode("utf-8") for token in CharTokenizer.train([text]).tokens]
    return vocabulary, {character: i for i, character in enumerate(vocabulary)}


def twin_vocab(text):
    vocabulary, code = [], {}
    for character in text:
        if character not in vocabulary:
            vocabulary.append(character)
    vocabulary.sort()
    for character in vocabulary:
        code[character] = len(code)
    return vocabulary, code


def inputs_vocab(seed):
    letters = random.Random(seed).choices(PLAY, k=3000)
    return [("To" + "".join(letters) + " Zażółć 안녕 \U0001f600",), ("aaaa",), ("",)]


def both_ways(vocab, text):
    """Encode a text with the second table and decode it with the first."""
    found = vocab(text)
    if found is None:
        return None
    if not isinstance(found, (list, tuple)) or len(found) != 2:
        raise TypeError(f"{type(found).__name__} is returned, where a pair (vocabulary, code) is asked for")
    vocabulary, code = found
    ids, decoded = [int(code[character]) for character in text], ""  # which it stays if an id has no place
    with contextlib.suppress(IndexError, KeyError):
        decoded = "".join(vocabulary[i] for i in ids)
    return {"ids": ids, "decoded": decoded, "V": len(vocabulary)}


def with_order(vocabulary):
    """Both tables of a list of characters, whatever its order."""
    return vocabulary, {character: i for i, character in enumerate(vocabulary)}


def counted_from_1(text):
    return dict(enumerate(sorted({*text}), 1)), {c: i for i, c in enumerate(sorted({*text}), 1)}


def comes_back(vocab, text):
    found = both_ways(vocab, text)["decoded"]
    wrong = [i for i, (a, b) in enumerate(zip(found, text, strict=False)) if a != b]
    return f"decoded, letter {wrong[0]} is {found[wrong[0]]!r}; it was {text[wrong[0]]!r}" if wrong else ""


def ids_without_gaps(vocab, text):
    vocabulary, code = vocab(text)
    found = sorted(code.values())
    if found != list(range(len(code))):
        return f"the ids of {len(code)} characters are {found[0]} ... {found[-1]}, not 0 ... {len(code) - 1}"


# ---- 1b
def reference_split(ids, fraction):
    n_train = int(fraction * len(ids))
    return ids[:n_train], ids[n_train:]


def inputs_split(seed):
    g = generator(seed)
    return [(torch.randint(65, (n,), generator=g), f) for n, f in ((1013, 0.8), (57, 0.9), (13, 0.6))]


def cut(first, second):
    """The wrong answer that takes ids[:first] and ids[second:]; both see len(ids) and the right place."""

    def split(ids, fraction):
        n, k = len(ids), int(fraction * len(ids))
        return ids[: first(n, k)], ids[second(n, k) :]

    return split


def windows_shuffled(ids, fraction):
    every = ids.unfold(0, 8, 1)
    parts = reference_split(every[torch.randperm(len(every))], fraction)
    return tuple(part.flatten() for part in parts)


def every_fifth(ids, fraction):
    held_back = torch.arange(len(ids)) % round(1 / (1 - fraction)) == 0
    return ids[~held_back], ids[held_back]


def in_one_piece(split, ids, fraction):
    """Run on the ids 0, 1, 2, ..., so that each tells where it stood."""
    train, val = (part.tolist() for part in split(torch.arange(1013), fraction))
    both, neither = len({*train} & {*val}), 1013 - len({*train, *val})
    if both or neither:
        return f"of 1,013 ids {both} are in both parts and {neither} in none"
    moved = [(place, i) for place, i in enumerate(train + val) if place != i]
    return "the order is lost: at place {} stands what was at place {}".format(*moved[0]) if moved else ""


# ---- 1c: the project's Windows on ids that lie in memory, at the starts that are asked for
def reference_windows(ids, starts, T):
    windows = Windows.__new__(Windows)  # has no folder
    vars(windows).update(tokens=ids.numpy(), n_tokens=len(ids), block_size=T, in_rows=False)
    return windows._read(np.zeros(len(starts), dtype=np.int64), -starts.numpy())


def twin_windows(ids, starts, T):
    x, y = [], []
    for start in starts.tolist():
        x.append(ids[start : start + T])
        y.append(ids[start + 1 : start + T + 1])
    return torch.stack(x), torch.stack(y)


def inputs_windows(seed):
    g, cases = generator(seed), []
    for n, B, T in ((211, 5, 7), (97, 3, 16)):
        starts = torch.randint(n - T, (B,), generator=g)
        starts[0], starts[2] = n - T - 1, 0  # the last window and the first
        cases.append((torch.randint(65, (n,), generator=g), starts, T))
    return cases


def x_and(y_of):
    """The wrong answer with the right x and another y: y_of(ids, places of x)."""
    places = lambda starts, T: starts[:, None] + torch.arange(T)  # noqa: E731
    return lambda ids, starts, T: (ids[places(starts, T)], y_of(ids, places(starts, T)))


def both(change):
    """The right x and y, changed in the same way."""
    return lambda ids, starts, T: tuple(change(part) for part in twin_windows(ids, starts, T))


def next_window(ids, starts, T):
    rows = [(ids[s : s + T], ids[s + T : s + 2 * T]) for s in starts.tolist()]
    return tuple(torch.stack(part) for part in zip(*rows, strict=True))


def one_row(windows, ids, starts, T):
    """Row 1 where the ids are 0, 1, 2, ..."""
    x, y = windows(torch.arange(len(ids)), starts, T)
    return [f"{name} " + " ".join(f"{i:3}" for i in part[1].tolist()) for name, part in (("x", x), ("y", y))]


# ---- 1d: a right answer may draw as it likes, so what is compared is what has to hold of any
def reference_starts(n, B, T, seed, step):
    return torch.from_numpy(np.random.default_rng([seed, step]).integers(0, n - T, size=B))


SEEDS_AND_STEPS = [(a, b) for a in (*range(7), 1000) for b in (*range(6), *(10**i for i in range(1, 7)))]
FACTS = ("a batch", "the same in a second call", "leaves other generators alone", "different batches", "rows",
         "starts beyond the last", "starts never drawn", "equally often", "in no order")  # fmt: skip


def set_generators(seed):
    """Seed all generators that are not the function's own; what tells whether they are used since."""
    torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
    return lambda: (torch.rand(()).item(), np.random.rand(), random.random())


def facts_of_starts(starts, n, B, T, seed, step):
    batch, n_starts = starts(n, B, T, seed, step), n - T
    if not isinstance(batch, torch.Tensor) or batch.shape != (B,) or batch.dtype != torch.int64:
        return None if batch is None else {**dict.fromkeys(FACTS), "a batch": batch}
    unused, after = set_generators(seed)(), set_generators(seed)
    again, used = starts(n, B, T, seed, step), after()
    drawn = torch.stack([starts(n, B, T, seed, step + i) for i in range(20_000 // B)])
    batches = {tuple(starts(1_000_003, B, T, *pair).tolist()) for pair in SEEDS_AND_STEPS}
    counts = torch.bincount(drawn.flatten().clamp(min=0), minlength=n_starts)[:n_starts]
    never, hits = (counts == 0).nonzero().flatten().tolist(), counts[counts > 0]
    fair = p_value(hits, torch.full((len(hits),), 1 / len(hits))) > 1e-6
    steps = (drawn[:, 1:] - drawn[:, :-1]).unique(), (drawn[1:, 0] - drawn[:-1, 0]).unique()
    never = "many" if len(never) > 2 else ", ".join(map(str, never))
    values = (torch.zeros_like(batch), torch.equal(batch, again), used == unused, len(batches),
              len(batch.unique()) > B / 3, max(0, int(drawn.max()) + 1 - n_starts), never, fair,
              min(map(len, steps)) > 20)  # fmt: skip
    return dict(zip(FACTS, values, strict=True))


def draws(limit=lambda n, T: n - T, mix=lambda *seed_and_step: seed_and_step, rows=None, low=0):
    """The reference with something changed."""

    def starts(n, B, T, seed, step):
        generator = np.random.default_rng(mix(seed, step))
        return torch.from_numpy(generator.integers(low, limit(n, T), size=rows or B)).expand(B)

    return starts


ONGOING = generator(1)


def seeded_globally(seed, n_starts, B):
    torch.default_generator.manual_seed(seed)  # as torch.manual_seed, faster
    return torch.randint(n_starts, (B,))


def no_batch_twice(starts, n, B, T, seed, step):
    seen = {}
    for pair in SEEDS_AND_STEPS:
        if (other := seen.setdefault(tuple(starts(1_000_003, B, T, *pair).tolist()), pair)) != pair:
            return f"seed {pair[0]} at step {pair[1]} gets the batch of seed {other[0]} at step {other[1]}"


exercises = {
    "1a": dict(name="vocab", reference=reference_vocab, project=CharTokenizer, slow=twin_vocab,
        inputs=inputs_vocab, call=both_ways, properties=[comes_back, ids_without_gaps],
        wrong={
            "set not sorted": lambda text: with_order([*{*text}]),
            "order of appearance": lambda text: with_order([*dict.fromkeys(text)]),
            "from a part": lambda text: with_order(sorted({*text[: len(text) // 2]})),
            "ids from 1": lambda text: (sorted({*text}), counted_from_1(text)[1]),
            "ids from 1, both ways": counted_from_1,
            "tables in different orders": lambda text: ([*dict.fromkeys(text)], reference_vocab(text)[1]),
            "code points": lambda text: ({ord(c): c for c in text}, {c: ord(c) for c in text}),
            "code points as ids": lambda text: (sorted({*text}), {c: ord(c) for c in text}),
            "lower case": lambda text: with_order(sorted({*text.lower()})),
            "words": lambda text: with_order(sorted({*text.split()})),
            "tables swapped": lambda text: reference_vocab(text)[::-1],
        }),
    "1b": dict(name="split", reference=reference_split,
        twin="data.py counts characters on their way into files; a test holds both against each other",
        inputs=inputs_split, call=as_tuple, properties=[in_one_piece],
        wrong={
            "shuffled first": lambda ids, fraction: reference_split(ids[torch.randperm(len(ids))], fraction),
            "overlapping windows shuffled": windows_shuffled,
            "fractions swapped": cut(lambda n, k: n - k, lambda n, k: n - k),
            "val inside train": cut(lambda n, k: n, lambda n, k: k),
            "last block used twice": cut(lambda n, k: k, lambda n, k: k - 8),
            "last id in both": cut(lambda n, k: k, lambda n, k: k - 1),
            "one id lost": cut(lambda n, k: k, lambda n, k: k + 1),
            "val from the beginning": lambda ids, fraction: reference_split(ids, 1 - fraction)[::-1],
            "every so many held back": every_fifth,
            "parts swapped": lambda ids, fraction: reference_split(ids, fraction)[::-1],
            "a fraction of an id": lambda ids, fraction: ids[: fraction * len(ids)],
            "rounded to nearest": lambda ids, fraction: reference_split(ids, fraction + 0.5 / len(ids)),
            "rounded up": cut(lambda n, k: k + 1, lambda n, k: k + 1),
        }),
    "1c": dict(name="windows", reference=reference_windows, project=Windows, slow=twin_windows,
        inputs=inputs_windows, call=as_tuple, picture=one_row,
        wrong={
            "y = x": x_and(lambda ids, places: ids[places]),
            "roll inside the window": x_and(lambda ids, places: ids[places].roll(-1, 1)),
            "zero at the end": x_and(lambda ids, places: pad(ids[places[:, 1:]], (0, 1))),
            "no room for targets": lambda ids, starts, T: twin_windows(ids, starts, T - 1),
            "y two later": x_and(lambda ids, places: ids[(places + 2).clamp(max=len(ids) - 1)]),
            "x and y swapped": lambda ids, starts, T: twin_windows(ids, starts, T)[::-1],
            "next window": next_window,
            "one target per window": x_and(lambda ids, places: ids[places[:, -1] + 1]),
            "float ids": both(lambda part: part.float()),
            "time first": both(lambda part: part.mT),
            "one long row": both(lambda part: part.flatten()),
            "starts ignored": lambda ids, starts, T: twin_windows(ids, T * torch.arange(len(starts)), T),
        }),
    "1d": dict(name="starts", reference=reference_starts,
        twin="the project takes each window once an epoch, here a start may come again",
        inputs=lambda seed: [(207, 100, 7, 40 + seed, 300)], call=facts_of_starts,
        properties=[no_batch_twice],
        wrong={
            "last window never drawn": draws(lambda n, T: n - T - 1),
            "first window never drawn": draws(low=1),
            "one too far": draws(lambda n, T: n - T + 1),
            "no room for the window": draws(lambda n, T: n),
            "one start per batch": draws(rows=1),
            "global generator": lambda n, B, T, seed, step: torch.randint(n - T, (B,)),
            "generator that goes on": lambda n, B, T, *_: torch.randint(n - T, (B,), generator=ONGOING),
            "global generator seeded": lambda n, B, T, a, b: seeded_globally(1_000_003 * a + b, n - T, B),
            "global, seed plus step": lambda n, B, T, a, b: seeded_globally(a + b, n - T, B),
            "seed plus step": draws(mix=lambda seed, step: seed + step),
            "seed times 1000": draws(mix=lambda seed, step: 1000 * seed + step),
            "step times 1000": draws(mix=lambda seed, step: 1000 * step + seed),
            "digits joined": draws(mix=lambda seed, step: int(f"{seed}{step}")),
            "step ignored": draws(mix=lambda seed, step: seed),
            "seed ignored": draws(mix=lambda seed, step: step),
            "disjoint windows": lambda n, B, T, *pair: T * draws(lambda n, T: (n - 1) // T)(n, B, T, *pair),
            "one after the other": lambda n, B, T, seed, step: (step * B + torch.arange(B)) % (n - T),
        }),
}  # fmt: skip

predictions = {
    "1.1": dict(answer=1_003_790.0, tol=0.4),
}
