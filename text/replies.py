"""Prompts and their replies, from the ids of samples: what exact match compares (evaluate.py)."""

import numpy as np

from text.segments import LEARNED


def learned_in(tokens, masks, starts: np.ndarray, lengths: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """(ids before it, its ids) of each learned stretch of each sample, in order: prompts and replies.

    tokens, masks: TokenFiles. starts, lengths: (n,), of the samples. A sample's own ids come before it.
    """
    found = []
    for begin, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        places = np.arange(begin, begin + length)
        ids, learned = tokens[places], masks[places] & LEARNED
        edges = np.flatnonzero(np.diff(learned, prepend=0, append=0))
        for first, end in edges.reshape(-1, 2).tolist():
            if first:
                found.append((ids[:first].tolist(), ids[first:end].tolist()))
    return found
