"""What the grader knows about lesson 1: characters and their ids, a split, windows, and where they start."""

import contextlib
import random

import numpy as np
import torch

from data import Windows
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
    g = torch.Generator().manual_seed(seed)
    return [(torch.randint(65, (n,), generator=g), f) for n, f in ((1013, 0.8), (57, 0.9), (13, 0.6))]


def a_pair(function, *args):
    """A list of two is as good as a tuple."""
    found = function(*args)
    return tuple(found) if isinstance(found, list) else found


def cut(first, second):
    """The wrong answer that takes ids[:first] and ids[second:]; both see len(ids) and the right place."""

    def split(ids, fraction):
        n, k = len(ids), int(fraction * len(ids))
        return ids[: first(n, k)], ids[second(n, k) :]

    return split


def windows_shuffled(ids, fraction):
    every = ids.unfold(0, 8, 1)
    every = every[torch.randperm(len(every))]
    k = int(fraction * len(every))
    return every[:k].flatten(), every[k:].flatten()


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
    g, cases = torch.Generator().manual_seed(seed), []
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


def zero_at_the_end(ids, places):
    y = torch.zeros_like(places)
    y[:, :-1] = ids[places[:, 1:]]
    return y


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


def inputs_starts(seed):
    return [(207, 100, 7, 40 + seed, 300)]


SEEDS_AND_STEPS = [(a, b) for a in range(7) for b in (*range(7), 100, 1_000, 10_000, 100_000)]
FACTS = ("a batch", "the same in a second call", "leaves other generators alone", "different batches", "rows",
         "starts beyond the last", "starts never drawn", "equally often", "in no order")  # fmt: skip


def p_value(counts, chances, rows=1):
    """Chance of counts so far from the expected ones, or farther (Pearson's chi-square, 1900). The sums of so
    many rows are given."""
    expected = counts.sum() * chances
    chi_square = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(
        torch.tensor((len(counts) - rows) / 2).double(), chi_square.double() / 2
    ).item()


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


ONGOING = torch.Generator().manual_seed(1)


def seeded_globally(mix):
    def starts(n, B, T, seed, step):
        torch.default_generator.manual_seed(mix(seed, step))  # as torch.manual_seed, faster
        return torch.randint(n - T, (B,))

    return starts


def no_batch_twice(starts, n, B, T, seed, step):
    seen = {}
    for pair in SEEDS_AND_STEPS:
        if (other := seen.setdefault(tuple(starts(1_000_003, B, T, *pair).tolist()), pair)) != pair:
            return f"seed {pair[0]} at step {pair[1]} gets the batch of seed {other[0]} at step {other[1]}"


exercises = {
    "1a": dict(name="vocab", reference=reference_vocab, project=CharTokenizer, slow=twin_vocab,
        inputs=inputs_vocab, call=both_ways,
        wrong={
            "set not sorted": (lambda text: with_order([*{*text}]),
                "A set has no order: in another process your ids differ, and a saved model prints garbage."),
            "order of appearance": (lambda text: with_order([*dict.fromkeys(text)]),
                "Your ids hang on which character comes first in the text. Which order is the same for all?"),
            "from a part": (lambda text: with_order(sorted({*text[: len(text) // 2]})),
                "This character comes late in the text. Of how much of it did you make the vocabulary?"),
            "ids from 1": (lambda text: (sorted({*text}), counted_from_1(text)[1]),
                "Your first id is 1, and a list's first place is 0. What does the largest id point to?"),
            "ids from 1, both ways": (counted_from_1,
                "The text comes back, but your largest id is V. An embedding of V rows ends at V - 1."),
            "tables in different orders": (lambda text: ([*dict.fromkeys(text)], reference_vocab(text)[1]),
                "The decoded text is as long, with other letters. Is id 0 the same one in both tables?"),
            "code points": (lambda text: ({ord(c): c for c in text}, {c: ord(c) for c in text}),
                "That is a row of the table for every letter of the world. How many does this text use?"),
            "code points as ids": (lambda text: (sorted({*text}), {c: ord(c) for c in text}),
                "Your ids are code points, 'A' is 65 in any text. At which place of the list does it stand?"),
            "lower case": (lambda text: with_order(sorted({*text.lower()})),
                "Capitals are characters of their own: the text has to come back as it was."),
            "words": (lambda text: with_order(sorted({*text.split()})),
                "These are words. What do you get by going through a text without splitting it?"),
            "tables swapped": (lambda text: reference_vocab(text)[::-1],
                "First the vocabulary, id to character; then the code, character to id."),
        },
        properties=[comes_back, ids_without_gaps], hints=[
            "Two programs read the same text. How can both give each character the same id?",
            "A set holds each character once; sorted brings it into an order; enumerate counts it through.",
            "vocabulary = the different characters, sorted; code[character] = its place in that list."]),
    "1b": dict(name="split", reference=reference_split,
        twin="data.py counts characters on their way into files; a test holds both against each other",
        inputs=inputs_split, call=a_pair,
        wrong={
            "shuffled first": (lambda ids, fraction: reference_split(ids[torch.randperm(len(ids))], fraction),
                "The characters are shuffled: what follows what is lost, and that was to be learned."),
            "overlapping windows shuffled": (windows_shuffled,
                "Nearly every window of val overlaps one of train: val will equal train for ever."),
            "fractions swapped": (cut(lambda n, k: n - k, lambda n, k: n - k),
                "Your train part is the small one. Whose share is the fraction?"),
            "val inside train": (cut(lambda n, k: n, lambda n, k: k),
                "All of val stands in train, too: a model that learned it by heart would look good."),
            "last block used twice": (cut(lambda n, k: k, lambda n, k: k - 8),
                "The last 8 ids of train begin val: they are learned and then asked."),
            "last id in both": (cut(lambda n, k: k, lambda n, k: k - 1),
                "One id stands in both parts. Is the end of a slice part of it?"),
            "one id lost": (cut(lambda n, k: k, lambda n, k: k + 1),
                "One id is in neither part. Is the end of a slice part of it?"),
            "val from the beginning": (lambda ids, fraction: reference_split(ids, 1 - fraction)[::-1],
                "Your val is the beginning of the text; here, as in the project, the end is held back."),
            "every so many held back": (every_fifth,
                "Each id of val stands between two of train. A text is held back in one piece."),
            "parts swapped": (lambda ids, fraction: reference_split(ids, fraction)[::-1],
                "Both parts are right, in the other order: which is returned first?"),
            "a fraction of an id": (lambda ids, fraction: ids[: fraction * len(ids)],
                "fraction * n is no whole number: what makes it one?"),
            "rounded to nearest": (lambda ids, fraction: reference_split(ids, fraction + 0.5 / len(ids)),
                "Of 13 ids, 0.6 are 7.8: train gets 7. Rounded down, not to the nearest."),
            "rounded up": (cut(lambda n, k: k + 1, lambda n, k: k + 1),
                "Your train part is longer by one id: fraction * n is rounded down."),
        },
        properties=[in_one_piece], hints=[
            "If a letter of val stands between two that were learned, is it new to the model?",
            "One place in the ids is enough: what lies before it, what lies behind it.",
            "n_train = fraction * n, rounded down to a whole number; ids up to there, and ids from there."]),
    "1c": dict(name="windows", reference=reference_windows, project=Windows, slow=twin_windows,
        inputs=inputs_windows, call=a_pair,
        wrong={
            "y = x": (x_and(lambda ids, places: ids[places]),
                "Your y is x: the loss falls to 0, and samples repeat one letter. What is to be guessed?"),
            "roll inside the window": (x_and(lambda ids, places: ids[places].roll(-1, 1)),
                "The last target of each row is the first letter of its x. Where does the text go on?"),
            "zero at the end": (x_and(zero_at_the_end),
                "The last target of each row is 0. T ids and their targets: how many ids does that take?"),
            "no room for targets": (lambda ids, starts, T: twin_windows(ids, starts, T - 1),
                "Each row lacks one. T ids and their targets: how many ids does a window take?"),
            "y two later": (x_and(lambda ids, places: ids[(places + 2).clamp(max=len(ids) - 1)]),
                "Your y lies two places after x. Which letter follows the first of x?"),
            "x and y swapped": (lambda ids, starts, T: twin_windows(ids, starts, T)[::-1],
                "Your x lies after y: such a model guesses the letter before."),
            "next window": (next_window,
                "The targets are no other stretch of text: each is the letter after its own."),
            "one target per window": (x_and(lambda ids, places: ids[places[:, -1] + 1]),
                "Each place of a window asks what comes next, not only the last: T targets in a row."),
            "float ids": (both(lambda part: part.float()),
                "An embedding looks up rows by whole numbers. Where did yours get their fraction?"),
            "time first": (both(lambda part: part.mT),
                "Rows are windows here, columns are places in them. Along which axis are they stacked?"),
            "one long row": (both(lambda part: part.flatten()),
                "The windows are joined to one row. Which function stacks them?"),
            "starts ignored": (lambda ids, starts, T: twin_windows(ids, T * torch.arange(len(starts)), T),
                "Your windows stand side by side from the beginning. Where should they start?"),
        },
        picture=one_row, hints=[
            "If x is R O M E, what should the model have guessed at each of the four places?",
            "Each window takes T + 1 ids in a row: x is all but the last of them, y is all but the first.",
            "for each start s: ids s up to s + T are a row of x, s + 1 up to s + T + 1 one of y; stack."]),
    "1d": dict(name="starts", reference=reference_starts,
        twin="the project takes each window once an epoch, here a start may come again",
        inputs=inputs_starts, call=facts_of_starts,
        wrong={
            "last window never drawn": (draws(lambda n, T: n - T - 1),
                "One start is never drawn, the last. Is the upper limit of your function drawn itself?"),
            "first window never drawn": (draws(low=1),
                "One start is never drawn, the first. Ids are counted from 0."),
            "one too far": (draws(lambda n, T: n - T + 1),
                "At your last start x fits in, but the text has no target for its last id."),
            "no room for the window": (draws(lambda n, T: n),
                "A window that starts at the last id has nothing in it. How much room does it need?"),
            "one start per batch": (draws(rows=1),
                "All rows of a batch are the same window: how many are asked for?"),
            "global generator": (lambda n, B, T, seed, step: torch.randint(n - T, (B,)),
                "Your batch hangs on what was drawn before. Is step 500 the same after a restart?"),
            "generator that goes on": (lambda n, B, T, *_: torch.randint(n - T, (B,), generator=ONGOING),
                "A second call gives another batch: the generator has moved on. When is it made?"),
            "global generator seeded": (seeded_globally(lambda seed, step: 1_000_003 * seed + step),
                "You seed the generator of all: what is drawn later, dropout say, repeats. Make your own."),
            "global, seed plus step": (seeded_globally(lambda seed, step: seed + step),
                "Two things: the generator of all is seeded, and 1 + 2 is 2 + 1. Who shares a batch?"),
            "seed plus step": (draws(mix=lambda seed, step: seed + step),
                "1 + 2 is 2 + 1: run 1 at step 2 gets the batch of run 2 at step 1."),
            "seed times 1000": (draws(mix=lambda seed, step: 1000 * seed + step),
                "Run 1 at step 1,000 gets the batch of run 2 at step 0. Can a generator take two numbers?"),
            "step ignored": (draws(mix=lambda seed, step: seed),
                "Each step gets the same batch: the model learns it by heart and nothing else."),
            "seed ignored": (draws(mix=lambda seed, step: step),
                "Two runs with other seeds get the same batches. What is the seed for?"),
            "disjoint windows": (lambda n, B, T, *pair: T * draws(lambda n, T: (n - 1) // T)(n, B, T, *pair),
                "Your starts are multiples of T. A window may start at any id."),
            "one after the other": (lambda n, B, T, seed, step: (step * B + torch.arange(B)) % (n - T),
                "Your starts go through the text in order, and neighbours tell nearly the same."),
        },
        properties=[no_batch_twice], hints=[
            "A run stops at step 500 and goes on tomorrow. What must its next batch hang on, and what not?",
            "A generator made in the function, from both numbers. Which is the last start with all targets?",
            "n - T starts are there: 0 ... n - T - 1. A new generator from [seed, step] draws B of them."]),
}  # fmt: skip

predictions = {
    "1.1": dict(
        ask="start positions for windows of 64 in 1,003,854 ids, each with its 64 targets",
        answer=1_003_790.0, tol=0.4,
        wrong={
            1_003_791.0: "At the last of 1,003,791 starts one target is missing: it is 1,003,790.",
            1_003_789.0: "With 1,003,789 the last window would never be drawn: it is 1,003,790.",
            15_685.0: "15,685 windows stand side by side; they may start anywhere, at 1,003,790 places.",
        },
    ),
}  # fmt: skip
