"""A ladder of meanings for a loss: what simpler models than a GPT reach on the same val split.

guessing  >  letter frequencies  >  bigrams  >  this run  >  the entropy of the source, where it is known
"""

import math

import numpy as np

from config import require
from data import open_windows
from text.dataset import floor_per_token
from text.mixture import is_mixture

PRIOR = 50  # tokens drawn by their frequency that are added to what followed a token in training
MOST = 4_000_000  # tokens of a split that are counted


def ladder(vocab_size: int, dataset: str, meta: dict) -> list[dict]:
    """The rungs {key, name, nats, meaning}, the worst first; nats per token of the val split.

    meta: the dataset's meta.json, {} if it is not here: then only guessing is known. Letters and bigrams are
    not counted for mixtures, nor for rows of which only the replies are learned.
    """
    rungs = [("uniform", "guessing", math.log(vocab_size), "every token is as likely as any other: ln V")]
    if meta and not meta.get("masked") and not is_mixture(dataset):
        letters, bigram = counted_losses(dataset, vocab_size)
        name = "letter frequencies" if meta["tokenizer"] == "char" else "token frequencies"
        rungs.append(("letters", name, letters, "knows how frequent each token is"))
        rungs.append(("bigram", "bigram", bigram, "knows which token likes to follow which"))
    floor = floor_per_token(meta, "val") if meta else 0.0
    if floor:
        rungs.append(("entropy", "exact entropy", floor, "the source's own: no model can be better"))
    return [dict(zip(("key", "name", "nats", "meaning"), rung, strict=True)) for rung in rungs]


def counted_losses(dataset: str, V: int) -> tuple[float, float]:
    """Val losses in nats per token of two models that count the training tokens: (letters, bigrams).

    p(b) = (n_b + 1) / (N + V) and p(b | a) = (n_ab + PRIOR p(b)) / (n_a + PRIOR): where a pair is rare, the
    second falls back to the first (MacKay and Peto, 1995).
    """
    train, val = (ids_of(dataset, split) for split in ("train", "val"))
    p = (np.bincount(train, minlength=V) + 1) / (len(train) + V)  # (V,)
    pairs, times = np.unique(train[:-1] * V + train[1:], return_counts=True)
    wanted = val[:-1] * V + val[1:]
    place = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
    n_ab = np.where(pairs[place] == wanted, times[place], 0)
    n_a = np.bincount(train[:-1], minlength=V)[val[:-1]]
    p_ab = (n_ab + PRIOR * p[val[1:]]) / (n_a + PRIOR)
    return float(-np.log(p[val]).mean()), float(-np.log(p_ab).mean())


def ids_of(dataset: str, split: str) -> np.ndarray:
    """The first MOST token ids of a split, int64. ValueError if it has less than two."""
    windows = open_windows(dataset, split, 1, pack=True, may_be_short=True)
    n = min(MOST, windows.n_tokens)
    require(n > 1, f"the {split} split of {dataset} has {n} tokens; expected 2 or more")
    return windows.tokens[np.arange(n)].astype(np.int64)
