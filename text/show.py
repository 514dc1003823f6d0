"""Prepared rows as people see them, with what is learned marked: a wrong mask is seen before the run."""

import itertools
import os
import re
import sys
from collections.abc import Iterator

import numpy as np

from runtime.trust import read_meta
from text.formats import CONTROL
from text.prepare import folder_of
from text.segments import GOES_ON, LEARNED
from text.token_files import TokenFiles
from tokenizer import load_any

LONGEST = 1000  # tokens that are shown of a row
GREEN, PLAIN = "\x1b[32m", "\x1b[0m"


def show(name: str, n: int) -> None:
    """Print the first n rows (documents, samples) of a dataset's training split, decoded from its files.

    Learned tokens are green on a terminal (unless NO_COLOR is set), and stand in [[ ]] elsewhere.
    """
    folder = folder_of(name)
    meta, tokenizer = read_meta(folder), load_any(folder)
    counts = meta["splits"]["train"]
    tokens = TokenFiles(folder, "train", counts, meta["dtype"], meta["vocab_size"])
    masks = TokenFiles(folder, "train_mask", counts, np.uint8) if meta["masked"] else None
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    before, after = (GREEN, PLAIN) if colour else ("[[", "]]")
    for number, (start, length) in enumerate(itertools.islice(rows(tokens, masks, meta), n), 1):
        places = np.arange(start, start + min(length, LONGEST))
        ids = tokens[places]
        learned = masks[places] & LEARNED if masks else np.ones_like(ids)
        edges = [0, *np.flatnonzero(np.diff(learned)) + 1, len(ids)]
        text = ""
        for first, end in itertools.pairwise(edges):
            part = visible(tokenizer.decode(ids[first:end]))
            text += f"{before}{part}{after}" if learned[first] else part
        more = f" ... and {length - LONGEST:,} more tokens" if length > LONGEST else ""
        print(f"--- row {number}: {learned.sum():,} of {len(ids):,} tokens are learned\n{text}{more}")
    print(f"--- learned is what is {'green' if colour else 'in [[ ]]'}")


def rows(tokens: TokenFiles, masks: TokenFiles | None, meta: dict) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of each row. Behind the last end token, or without any, the rest is one."""
    total, begin = meta["splits"]["train"]["tokens"], 0
    for at in range(0, total, 2**16):
        places = np.arange(at, min(at + 2**16, total))
        closes = tokens[places] == meta["end_id"]
        if masks:
            closes &= masks[places] & GOES_ON == 0
        for end in (at + 1 + np.flatnonzero(closes)).tolist():
            yield begin, end - begin
            begin = end
    if begin < total:
        yield begin, total - begin


def visible(text: str) -> str:
    """Control characters as \\x1b: what is shown must not change the terminal."""
    return re.sub(CONTROL, lambda match: repr(match[0])[1:-1], text)
