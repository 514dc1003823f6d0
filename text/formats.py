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

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")  # all except tab and newline; \r is one of them
BLANKS = re.compile(r"[ \t]{2,}")
LINE = re.compile(r"(?=\r\n)|(?<!\r)(?=\n)")  # a text is cut before a newline, which begins the next line
SHORTEST = 3  # --clean drops lines and samples with fewer visible characters
CHUNK = 2**20  # characters; lines that were cleaned or compared are joined to chunks of this size
Segments = list[tuple[str, bool]]  # [(text, learned), ...]: a stretch of a text, or one sample


def segments_of(row) -> Segments:
    r"""Turn a JSON row into [(text, learned), ...]. ValueError if it is none of the three kinds.

    {"text"}: everything is learned. {"prompt", "response"}: the response is. {"messages"}: they become lines
    "role: content", such as "user: 2+2?\nassistant: 4"; what the assistant says is learned.

    Segments are encoded one by one. So no token spans a border: the mask is exact, and a prompt has the same
    ids when text is generated. The end token that closes each sample is learned, too.
    """
    match row:
        case {"messages": [*_, {"role": "assistant"}]}:
            segments, context = [], ""
            for message in row["messages"]:
                match message:
                    case {"role": "assistant", "content": str(content)}:
                        segments += [(f"{context}assistant: ", False), (content, True)]
                        context = "\n"
                    case {"role": "system" | "user" as role, "content": str(content)}:
                        context += f"{role}: {content}\n"
                    case _:
                        raise ValueError(f"expected system, user or assistant with content: {message!r:.60}")
        case {"messages": _}:
            raise ValueError(f"expected a list of messages that ends with the assistant's: {row!r:.60}")
        case {"prompt": str(prompt), "response": str(response)}:
            segments = [(prompt, False), (response, True)]
        case {"text": str(text)}:
            segments = [(text, True)]
        case _:
            raise ValueError(f"expected text, prompt and response, or messages: {row!r:.60}")
    if ("", True) in segments:
        raise ValueError(f"there is nothing to learn: {row!r:.60}")
    for text, _ in segments:
        text.encode("utf-8")  # UnicodeEncodeError, a ValueError, for half a surrogate pair such as "\ud83d"
    return segments


class Source:
    """A corpus as a stream of (segments, ends_document), to be iterated as often as needed.

    After a pass, `dropped` counts what was left out, and `sha256` is the hash of the text as it was read.
    """

    def __init__(self, corpus: Corpus, format="text", clean=False, dedup=False, skip_bad=False):
        self.corpus, self.format, self.clean, self.skip_bad = corpus, format, clean, skip_bad
        self.dropped: Counter = Counter()
        self.shares: dict[str, int] = {}  # split -> how many characters of a text, or samples; in this order
        self.first = None  # dedup: for each sample or visible line, whether it is the first of its kind
        if dedup:  # 8 bytes a hash: of 370,000 corpora of 10 million lines, one has two equal by accident
            hashes = array("Q", (digest(unit) for unit, _ in self.units() if self.countable(unit)))
            self.first = np.zeros(len(hashes), dtype=bool)
            self.first[np.unique(np.array(hashes, dtype=np.uint64), return_index=True)[1]] = True

    def __iter__(self) -> Iterator[tuple[Segments, bool]]:
        if self.format == "text" and not self.clean and self.first is None:
            return (([(text, True)], ends) for text, ends in self.chunks())
        return joined(self.kept()) if self.format == "text" else self.kept()

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
                    yield names[split], [(text[: sizes[split]], True)], False
                text = text[sizes[split] :]
                split += 1
            sizes[split] -= len(text)
            yield names[split], [(text, True)], ends

    def chunks(self) -> Iterator[tuple[str, bool]]:
        """The chunks of the corpus, from the beginning; hashes them on the way."""
        self.dropped.clear()
        self.sha256 = hashlib.sha256()
        for text, ends in self.corpus.chunks():
            self.sha256.update(text.encode("utf-8"))
            yield text, ends

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
                    yield [(line.strip("\r\n"), True)]
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
            yield segments_of(json.loads(text))
        except (ValueError, RecursionError) as error:
            if not self.skip_bad:
                what = f"no JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else error
                raise ValueError(f"{where}: {what}; repair it, or leave out such rows: --skip_bad") from None
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
            yield [(line, True)], ends

    def clean_samples(self) -> Iterator[tuple[Segments, bool]]:
        """The samples, cleaned if asked for. Each is a document of its own."""
        for segments in self.samples():
            if self.clean:
                segments = [(self.tidy(text), learned) for text, learned in segments]
                visible = "".join(text for text, _ in segments).strip()
                if len(visible) < SHORTEST or ("", True) in segments:
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
                    segments = [("", True)]
            if self.format == "text" or segments != [("", True)]:
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
            yield [("".join(parts), True)], ends
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
