"""Corpora as items: stretches of a text, or samples together with what is to be learned of them.

    text    the chunks of corpora.py, about 256,000 characters each
    lines   one sample per line
    jsonl   one sample per row: {"text"}, {"prompt", "response"} or {"messages": [{"role", "content"}, ...]}

Everything is streamed. Each pass over a Source reads the corpus again and sees the same items. Only one
chunk, line or (JSON lists) document is in memory. Items are cleaned, dropped and split on the way.
"""

import hashlib
import itertools
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator

import numpy as np

from text.corpora import Corpus
from text.segments import BORDER, LEARNED, SPECIAL, Segments, segments_of, unused_keys
from text.selection import Selection
from tokenizer import END, Tokenizer

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")  # all except tab and newline; \r is one of them
BLANKS = re.compile(r"[ \t]{2,}")
LINE = re.compile(r"(?=\r\n)|(?<!\r)(?=\n)")  # a text is cut before a newline, which begins the next line
SHORTEST = 3  # --clean drops lines and samples with fewer visible characters
CHUNK = 2**20  # characters; lines that were cleaned or compared are joined to chunks of this size


class Source:
    """A corpus as a stream of (segments, ends_document), to be iterated as often as needed.

    After a pass, `dropped` counts what was left out, notes() says what should be known of the text, and
    `sha256` is the hash of the text as it was read.
    """

    def __init__(
        self, corpus: Corpus, format="text", clean=False, dedup=False, skip_bad=False,
        tokenizer: Tokenizer | None = None, quality="", near_dedup=0.0,
    ):  # fmt: skip
        """tokenizer: the one that is given for the text, with its chat template; None: one will be made."""
        self.corpus, self.format, self.clean, self.skip_bad = corpus, format, clean, skip_bad
        self.tokenizer = tokenizer
        self.ends = tokenizer is None or tokenizer.end_id >= 0  # else END is always read as characters
        self.dropped: Counter = Counter()
        self.unused: Counter = Counter()  # key of a JSON row, which nothing uses -> how many rows have it
        self.documents = self.ended = self.quoted = 0  # documents; END that ended one; END read as characters
        self.shares: dict[str, int] = {}  # split -> how many characters of a text, or samples; in this order
        self.first = None  # dedup: for each sample or visible line, whether it is the first of its kind
        if dedup:  # 8 bytes a hash: of 370,000 corpora of 10 million lines, one has two equal by accident
            hashes = array("Q", (digest(unit) for unit, _ in self.units() if self.countable(unit)))
            self.first = np.zeros(len(hashes), dtype=bool)
            self.first[np.unique(np.array(hashes, dtype=np.uint64), return_index=True)[1]] = True
        self.selection = None
        if quality or near_dedup:
            self.selection = Selection(self.kept, format == "text", quality, near_dedup)

    def __iter__(self) -> Iterator[tuple[Segments, bool]]:
        if self.format == "text" and not self.clean and self.first is None and not self.selection:
            return (([(text, LEARNED)], ends) for text, ends in self.chunks())
        kept = self.selection.apply(self.kept(), self.dropped) if self.selection else self.kept()
        return joined(kept) if self.format == "text" else kept

    def count(self, alphabet: set[str] | None = None) -> int:
        """Count the characters (text) or samples in one pass. Adds all characters that occur to alphabet."""
        total = 0
        for segments, _ in self:
            total += len(segments[0][0]) if self.format == "text" else 1
            if alphabet is not None:
                alphabet.update(*(text for text, _ in segments))
        if not total:
            raise ValueError(f"{self.corpus.name} holds no text; dropped: {dict(self.dropped)}")
        return total

    def parts(self, seed: int) -> Iterator[tuple[str, Segments, bool]]:
        """Yield (split, segments, ends_document). A text is cut between characters, one split after the
        other. Samples stay whole; the seed draws the split of each."""
        names, sizes = list(self.shares), list(self.shares.values())
        if self.format != "text":
            labels = np.repeat(np.arange(len(names), dtype=np.uint8), sizes)
            np.random.default_rng(seed).shuffle(labels)
            for (segments, ends), label in zip(self, labels, strict=False):
                yield names[label], segments, ends
            return
        split = 0
        for segments, ends in self:
            text = segments[0][0]
            while len(text) > sizes[split] and split < len(names) - 1:
                if sizes[split]:
                    yield names[split], [(text[: sizes[split]], LEARNED)], False
                text = text[sizes[split] :]
                split += 1
            sizes[split] -= len(text)
            yield names[split], [(text, LEARNED)], ends

    def chunks(self) -> Iterator[tuple[str, bool]]:
        """The chunks of the corpus, from the beginning. Hashes them on the way, and ends a document where END
        does. (In JSON, that is done row by row.)"""
        self.dropped.clear()
        self.unused.clear()
        self.documents = self.ended = self.quoted = 0
        self.sha256 = hashlib.sha256()
        begun = cut = False  # the document has a visible character; the file has been cut
        border = b""
        for text, ends in self.corpus.chunks():
            self.sha256.update(border + text.encode("utf-8"))
            border = b"\xff" * ends  # no text in UTF-8 holds this byte; it tells where a file ends
            *documents, rest = [text] if self.format == "jsonl" else self.cut(text)
            for document in documents:
                if begun or document.strip():
                    self.documents += 1
                    yield document, True
                begun, cut = False, True
            begun = begun or bool(rest.strip())
            if begun or not cut:  # else only blanks follow the last END
                self.documents += ends
                yield rest, ends
            if ends:
                begun = cut = False

    def cut(self, text: str) -> list[str]:
        """Cut a text where END ends a document, and count."""
        parts = BORDER.split(text) if self.ends and END in text else [text]
        self.ended += len(parts) - 1
        self.quoted += text.count(END) - len(parts) + 1
        return parts

    def notes(self) -> list[str]:
        """Lines that tell how END was read, which keys of rows have no use, and what was dropped and why."""
        lines = []
        if self.ended:
            documents = "" if self.format == "jsonl" else f"{self.documents:,} documents, "
            lines.append(f"{self.corpus.name}: {documents}{END} read as the end token {self.ended:,} times")
        if self.quoted:
            why = "inside a line; alone on a line it" if self.ends else "for the tokenizer has no token that"
            times = f"{self.quoted:,} times, {why} ends a document"
            lines.append(f"NOTE: {self.corpus.name}: {END} read as characters {times}")
        if self.unused:
            keys = ", ".join(f"{key!r:.40} of {n:,} rows" for key, n in self.unused.most_common(8))
            lines.append(f"NOTE: {self.corpus.name}: keys that are not used: {keys}")
        return lines + (self.selection.notes(self.corpus.name) if self.selection else [])

    def lines(self) -> Iterator[tuple[str, bool]]:
        """Yield (line, ends_document): the text, cut before every newline."""
        rest = ""
        for text, ends in self.chunks():
            *lines, rest = LINE.split(rest + text)
            for line in filter(None, lines):
                yield line, False
            if ends:
                yield rest, True
                rest = ""

    def samples(self) -> Iterator[Segments]:
        """One sample per visible line or JSON row. A document that begins with "[" is one list of rows."""
        files = itertools.chain(self.corpus.files, itertools.repeat(self.corpus.name))
        file, number, begun, document = next(files), 1, False, []
        for line, ends in self.lines():
            number += line.startswith(("\n", "\r\n"))
            visible = line.strip("\ufeff \t\r\n")
            if self.format == "lines":
                if visible:
                    yield [(line.strip("\r\n"), LEARNED)]
            elif document or (visible.startswith("[") and not begun):
                document.append(line if document else "\n" * (number - 1) + line.lstrip("\r\n"))
            elif visible:
                yield from self.row(visible, f"{file} line {number}")
            begun = begun or bool(visible)
            if ends:
                for i, row in enumerate(parse_list("".join(document), file), 1):
                    yield from self.row(row, f"{file} row {i}")
                file, number, begun, document = next(files), 1, False, []

    def row(self, text: str, where: str) -> Iterator[Segments]:
        """The sample in a JSON row. ValueError for a bad row; with skip_bad it is counted and left out."""
        try:
            row = json.loads(text)
            samples = [segments_of(row, self.tokenizer)]
            if len(samples[0]) == 1 and END in samples[0][0][0]:  # {"text"}: each document is a sample
                samples = [[(part, LEARNED)] for part in BORDER.split(samples[0][0][0]) if part.strip()]
            self.unused.update(unused_keys(row))
            plain = [part for segments in samples for part, what in segments if not what & SPECIAL]
            quoted = sum(part.count(END) for part in plain)
            self.ended += max(0, text.count(END) - quoted)
            self.quoted += quoted
            yield from samples
        except (ValueError, RecursionError) as error:
            if not self.skip_bad:
                what = f"no JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else error
                raise ValueError(f"{where}: {what}; repair it, or leave it out: data.py --skip_bad") from None
            self.dropped["bad rows"] += 1

    def units(self) -> Iterator[tuple[Segments, bool]]:
        """What is cleaned and compared: the lines of a text, or samples."""
        return self.clean_lines() if self.format == "text" else self.clean_samples()

    def clean_lines(self) -> Iterator[tuple[Segments, bool]]:
        """The lines of a text, cleaned if asked for. A dropped line becomes empty: it may end a document."""
        before = ""  # the last line that was kept since the document began
        for line, ends in self.lines():
            if self.clean:
                line = self.tidy(line)
                length = len(line.strip())
                # One of several blank lines is kept, and none at the beginning of a document.
                blank_again = line and not length and not before.strip()
                if 0 < length < SHORTEST or blank_again:
                    self.dropped["short lines" if length else "blank lines"] += 1
                    line = ""
                elif not before:
                    line = line.lstrip("\n")
                before = "" if ends else line or before
            yield [(line, LEARNED)], ends

    def clean_samples(self) -> Iterator[tuple[Segments, bool]]:
        """The samples, cleaned if asked for. Each is a document of its own."""
        for segments in self.samples():
            if self.clean:
                segments = [(text if what & SPECIAL else self.tidy(text), what) for text, what in segments]
                visible = "".join(text for text, _ in segments).strip()
                if len(visible) < SHORTEST or ("", LEARNED) in segments:
                    self.dropped["short samples"] += 1
                    continue
            yield segments, True

    def tidy(self, text: str) -> str:
        """Remove control characters, and make each run of blanks one blank."""
        for what, pattern, new in (("control characters", CONTROL, ""), ("runs of blanks", BLANKS, " ")):
            text, n = pattern.subn(new, text)
            self.dropped[what] += n
        return text

    def countable(self, segments: Segments) -> bool:
        """Whether dedup compares it: blank lines of a text are never repeats."""
        return self.format != "text" or bool(segments[0][0].strip())

    def kept(self) -> Iterator[tuple[Segments, bool]]:
        """The units without repeats. A dropped line stays as an empty one: it may end a document."""
        number = -1
        for segments, ends in self.units():
            if self.first is not None and self.countable(segments):
                number += 1
                if not self.first[number]:
                    self.dropped["repeats"] += 1
                    segments = [("", LEARNED)]
            if self.format == "text" or segments != [("", LEARNED)]:
                yield segments, ends


def digest(segments: Segments) -> int:
    """A hash of 8 bytes, for dedup. Newlines at the ends do not count."""
    text = "\0".join(text for text, _ in segments).strip("\r\n")
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def joined(lines: Iterator[tuple[Segments, bool]]) -> Iterator[tuple[Segments, bool]]:
    """Join lines to chunks again, which end as in corpora.py: after a visible character, before a newline."""
    parts, length = [], 0
    for segments, ends in lines:
        parts.append(segments[0][0])
        length += len(parts[-1])
        if ends or (length > CHUNK and parts[-1][-1:].strip()):
            yield [("".join(parts), LEARNED)], ends
            parts, length = [], 0


def parse_list(document: str, file) -> Iterator[str]:
    """The rows of a JSON list, each as JSON text. ValueError, naming the file, for another document."""
    try:
        for row in json.loads(document.removeprefix("\ufeff")) if document else []:
            yield json.dumps(row)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} line {error.lineno}: no JSON ({error.msg}); expected a list") from None
    except (ValueError, RecursionError) as error:  # thousands of digits, or of lists in lists
        raise ValueError(f"{file}: {error}; expected a list of rows") from None
