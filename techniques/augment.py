"""Augmentation: some windows of the training text are rewritten, so that a small text is not seen so often.

    python train.py config/tiny.py --dataset=mine.txt --augment=0.1         one window in ten, in each epoch

A rewritten window is changed in one way throughout, so that the model can tell from its beginning:

    case            all letters in capitals, or none
    punctuation     all marks left out, or all exchanged, each kind for another one
    white space     line breaks become blanks, or several in a row become one

Which windows, and how, is a function of the seed and the window's number in the run's series. y stays x one
token later. Where characters are left out, the others move up, and the end of the window is not scored. Only
characters of the alphabet are written. Val text, and the train loss of an evaluation, are as they are.
"""

import functools

import numpy as np
import torch

from config import require
from tokenizer import load_any

# -----------------------------------------------------------------------------
augment = 0.0  # share of the training windows that are rewritten, each time anew; 0 = none
# -----------------------------------------------------------------------------

MARKS = ".,;:!?-'\"()"
WAYS = ("upper", "lower", "no marks", "other marks", "one line", "single blanks")


def change_data(windows, config: dict):
    """Rewrite what windows.at() reads. ValueError for a share that makes no sense, and for other tokens."""
    share = config["augment"]
    require(0 <= share <= 1, f"augment={share} makes no sense; expected a share from 0 to 1, such as 0.1")
    corpora = getattr(windows, "corpora", [windows])  # of a mixture, several
    tokenizer = load_any(corpora[0].path.parent)
    require(
        tokenizer.kind == "char",
        f"augment changes characters, and this text is {tokenizer.kind} tokens; leave it out, or prepare the "
        "text with data.py --tokenizer=char",
    )
    require(
        not any(each.masked for each in corpora),
        "augment is for running text, and would change what prompts ask; leave it out for these samples",
    )
    if share:
        for each in corpora:
            each.on_device = None  # the ids are changed on the CPU
        rewrite = Rewriter([tokenizer.decode([i]) for i in range(tokenizer.vocab_size)])
        windows.at = functools.partial(rewritten, windows.at, rewrite, share, windows.seed)
    return windows


def rewritten(read, rewrite: "Rewriter", share: float, seed: int, numbers) -> tuple:
    """x, y (B, T) of the windows with these numbers, some of them rewritten. read: of those as they are."""
    x, y = read(numbers)
    for row, number in enumerate(numbers):
        rng = np.random.default_rng([seed, number, len(WAYS)])
        if rng.random() < share:
            last = y[row, -1:] if y[row, -1] >= 0 else x[row, -1:]  # where it is not scored, any id will do
            ids, scored = torch.cat((x[row], last)).numpy(), np.append(False, y[row].numpy() >= 0)  # (T + 1,)
            ids, scored = rewrite(WAYS[rng.integers(len(WAYS))], ids, scored, rng)
            x[row] = torch.from_numpy(ids[:-1])
            y[row] = torch.from_numpy(np.where(scored, ids, -1)[1:])
    return x, y


class Rewriter:
    """Rewrites windows of ids; characters: that of each id, a special token has several."""

    def __init__(self, characters: list[str]):
        id_of = {character: i for i, character in enumerate(characters)}

        def table(change) -> np.ndarray:
            """(V,): the id of each character's change; its own if the alphabet lacks that."""
            return np.array([id_of.get(change(c), i) for i, c in enumerate(characters)])

        self.changed = {
            "upper": table(str.upper),
            "lower": table(str.lower),
            "one line": table(lambda c: " " if c == "\n" else c),
        }
        self.is_mark = np.array([c in MARKS for c in characters])
        self.is_white = np.array([c.isspace() for c in characters])
        self.marks = np.flatnonzero(self.is_mark)

    def __call__(self, way: str, ids: np.ndarray, scored: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
        """(ids, scored), both (T + 1,), rewritten in one of the WAYS."""
        if way in self.changed:
            return self.changed[way][ids], scored
        if way == "other marks":
            table = np.arange(len(self.is_mark))
            if len(self.marks) > 1:
                table[self.marks] = np.roll(self.marks, rng.integers(1, len(self.marks)))
            return table[ids], scored
        white = self.is_white[ids]
        leave_out = self.is_mark[ids] if way == "no marks" else white & np.append(False, white[:-1])
        if leave_out.all():
            return ids, scored
        rest = int(leave_out.sum())  # what is missing at the end is filled with the last id, and not scored
        ids, scored = ids[~leave_out], scored[~leave_out]
        return np.append(ids, ids[-1:].repeat(rest)), np.append(scored, np.zeros(rest, dtype=bool))
