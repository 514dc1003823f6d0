"""How fast text becomes tokens: learning byte pairs against Rust, preparing a dataset against tiktoken.

bench.py prints the rows.
"""

import contextlib
import io
import itertools
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import tiktoken

from lab.measure import NotMeasured, Row, alternate, compared, seconds_of, sized
from text import corpora, prepare, settle
from tokenizer import END, BPETokenizer


def of_shakespeare(target: str) -> str:
    """The target, if the real text is here. It means nothing on the stand-in that replaces it offline."""
    return "none: a stand-in" if "stand_in_for" in settle.ensure("shakespeare_char") else target


def large_text(size: int) -> list[str]:
    """At least `size` bytes of text, in chunks: Python's standard library, repeated with misspelt words.

    From the second copy on, 3 % of the words of five letters or more have one letter replaced, by a fixed
    seed. Exact copies would hold few different words; 100 MB of these hold 130,000.
    """
    chunks = [text for text, _ in corpora.open_corpus("builtin:python").chunks()]
    rng = random.Random(0)
    found, total = [], 0

    def misspell(match: re.Match) -> str:
        word, i = match[0], rng.randrange(1, len(match[0]))
        if rng.random() >= 0.03:
            return word
        return word[:i] + rng.choice("etaoinshrdlu") + word[i + 1 :]

    for i in itertools.count():
        if total >= size:
            return found
        text = chunks[i % len(chunks)]
        found.append(re.sub(r"[A-Za-z]{5,}", misspell, text) if i >= len(chunks) else text)
        total += len(found[-1].encode("utf-8"))


def rust_trainer(texts: list[str], vocab_size: int) -> Callable:
    """A side: seconds that the Rust package `tokenizers` takes to learn byte pairs."""
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        raise NotMeasured("pip install tokenizers") from None
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = dict(vocab_size=vocab_size, min_frequency=2, initial_alphabet=alphabet, show_progress=False)

    def side(turn: int) -> float:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return seconds_of(tokenizer.train_from_iterator, texts, trainers.BpeTrainer(**options))

    return side


def bytepairs(rounds: int) -> Iterator[Row]:
    """Learning byte pairs from a small and a large text, ours against Rust's; rounds: turns of each."""
    corpus = corpora.open_corpus(sized("shakespeare", "verse"), size=sized(0, 20_000))
    small = [text for text, _ in corpus.chunks()]
    yield training_row(small, rounds, "<= 2")
    yield training_row(large_text(sized(100_000_000, 1_000_000)), rounds, "<= 4")


def training_row(texts: list[str], rounds: int, target: str) -> Row:
    """Our time to learn byte pairs from these texts against Rust's."""
    size = sized(4096, 300)
    rust = rust_trainer(texts, size)
    ours, theirs = alternate(lambda turn: seconds_of(BPETokenizer.train, texts, size), rust, turns=rounds)
    what = f"training on {sum(map(len, texts)) / 1e6:.1f} MB, ours / Rust"
    return compared(what, ours, theirs, "s", target)


def preparing(rounds: int) -> Iterator[Row]:
    """How fast data.py prepares a text, on one thread and on two, against tiktoken that only encodes."""
    texts = large_text(sized(100_000_000, 1_000_000))
    tokenizer = BPETokenizer.train(texts[:20], sized(4096, 300), (END,))
    ranks = {token: rank for rank, token in enumerate(tokenizer.tokens)}
    bare = tiktoken.Encoding("", pat_str=tokenizer.pattern, mergeable_ranks=ranks, special_tokens={})
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(prepare, "DATASETS", Path(folder)):
        text_file, tokenizer_file = Path(folder, "text.txt"), Path(folder, "tokenizer.json")
        text_file.write_text("".join(texts), encoding="utf-8")
        tokenizer.save(tokenizer_file)

        def ours(threads: int) -> Callable:
            arguments = "prepared", str(text_file), str(tokenizer_file)
            return lambda turn: seconds_of(lambda: prepare.prepare(*arguments, threads=threads))

        def theirs(turn: int) -> float:
            return seconds_of(lambda: [bare.encode_ordinary(text) for text in texts])

        with contextlib.redirect_stdout(io.StringIO()):
            seconds = alternate(ours(1), ours(2), theirs, turns=rounds)
        one, two, bare = text_file.stat().st_size / 1e6 / seconds  # MB/s
    yield compared("preparing on one thread / bare tiktoken", one, bare, "MB/s", ">= 0.8")
    yield compared("preparing on two threads / bare tiktoken", two, bare, "MB/s", ">= 1.6")
