"""Which samples of a corpus, or paragraphs of a text, are kept: quality filters, then near-duplicates.

The verdict on each is found in one pass, and applied in all later ones. So all passes see the same text, and
so do several processes, each of which reads it for itself.
"""

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from text.near_duplicates import near_duplicates
from text.quality import broken_rule, rules_of
from text.segments import LEARNED, SPECIAL, Segments

NEAR = "near-duplicates"
LONGEST = 2**18  # characters; a longer paragraph is cut, for it may not fit into memory
BLANK_LINES = 0.05  # share of all lines; with fewer blank ones, each line is taken for a paragraph
Units = Iterator[tuple[Segments, bool]]  # (segments, whether they end a document), ...


class Selection:
    """The verdicts on all samples or paragraphs, made when this is made. apply() lets pass what is kept."""

    def __init__(self, units: Callable[[], Units], is_text: bool, quality: str, near_dedup: float):
        """units() begins a pass over the lines of a text, or samples. quality, near_dedup: see data.py.

        ValueError for a rule or a threshold that makes no sense.
        """
        rules = rules_of(quality)
        asked = {"quality": quality, "near_dedup": near_dedup}
        self.asked = " ".join(f"--{name}={value}" for name, value in asked.items() if value)
        self.reasons = ["", *rules, NEAR]  # a verdict is a place in this list; 0: kept
        self.is_text, self.by_line = is_text, is_text and not has_paragraphs(units())
        self.kind = "lines" if self.by_line else "paragraphs" if is_text else "samples"
        verdicts = bytearray()

        def good() -> Iterator[str]:
            for segments, _ in self.pieces(units()):
                text = plain(segments)
                if text.strip():
                    verdicts.append(self.reasons.index(broken_rule(text, rules)))
                    if not verdicts[-1]:
                        yield text

        first = near_duplicates(good(), near_dedup) if near_dedup else np.full(sum(1 for _ in good()), -1)
        self.verdicts = np.array(verdicts, dtype=np.uint8)
        places, near = np.flatnonzero(self.verdicts == 0), np.flatnonzero(first >= 0)
        self.verdicts[places[near]] = len(self.reasons) - 1
        self.original = int(places[first[near[0]]]) if len(near) else -1  # what the first one is like

    def pieces(self, units: Units) -> Units:
        """What is judged: samples, paragraphs, or the lines of a text that has no blank ones."""
        return paragraphs(units, self.by_line) if self.is_text else units

    def apply(self, units: Units, dropped: Counter) -> Units:
        """What is kept of a pass; dropped counts the rest, and notes() tells of it.

        A dropped paragraph becomes empty, for it may end a document. A document goes as a whole if nothing of
        it is kept, and else begins without the blank lines that stood before its first kept paragraph.
        """
        self.total, self.number, self.characters = Counter(), Counter(), Counter()
        self.examples: dict[str, str] = {}  # reason -> the first text that was dropped for it
        place, original = -1, ""
        lost = kept = False  # some of this document
        for segments, ends in self.pieces(units):
            text = plain(segments)
            visible, reason = bool(text.strip()), ""
            if visible:
                place += 1
                reason = self.reasons[self.verdicts[place]]
                original = text if place == self.original else original
                self.total.update(pieces=1, characters=len(text))
            if reason:
                lost = True
                dropped[reason if reason == NEAR else f"{self.kind} ({reason})"] += 1
                self.number[reason] += 1
                self.characters[reason] += len(text)
                like = f", like {shortened(original)}" if reason == NEAR else ""
                self.examples.setdefault(reason, shortened(text) + like)
            if not self.is_text:
                if not reason:
                    yield segments, ends
                continue
            if reason:
                text = ""
            elif lost and not kept:
                text = text.lstrip("\r\n")
            kept = kept or (visible and not reason)
            if kept or not lost or not ends:
                yield [(text, LEARNED)], ends
            if ends:
                lost = kept = False

    def notes(self, name: str) -> list[str]:
        """What the last pass dropped, and why. name: of the corpus."""
        gone = sum(self.number.values())
        of = f"of {self.total['pieces']:,} {self.kind} with {self.total['characters']:,} characters"
        lines = [f"{name}: {self.asked} dropped {gone:,} {of}"]
        for reason in filter(self.number.get, self.reasons):
            n, characters = self.number[reason], self.characters[reason]
            share = f"({characters / self.total['characters']:.1%} of all)"
            example = self.examples[reason]
            lines.append(f"  {reason}: {n:,} {self.kind}, {characters:,} characters {share}: {example}")
        if 2 * sum(self.characters.values()) > self.total["characters"]:
            most = self.characters.most_common(1)[0][0]
            lines.append(
                f"NOTE: {name}: more than half of the text was dropped, most of it as {most}; if the example "
                "above is text that you want, run python data.py with other rules (--quality=...) or a "
                "higher --near_dedup"
            )
        return lines


def plain(segments: Segments) -> str:
    """What is judged of a sample: all that people wrote, also what is not learned."""
    return "".join(text for text, what in segments if not what & SPECIAL)


def shortened(text: str) -> str:
    """A text as one line of at most 60 characters, in quotation marks."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 60 else line[:57] + "...")


def has_paragraphs(lines: Units) -> bool:
    """Whether blank lines tell the paragraphs of a text."""
    visible = blank = 0
    for [(line, _)], _ in lines:
        visible += bool(line.strip())
        blank += bool(line) and not line.strip()
    return blank > BLANK_LINES * (visible + blank)


def paragraphs(lines: Units, by_line: bool) -> Units:
    """Join lines to paragraphs, each with the blank lines before it. by_line: each line is one."""
    parts, length, begun = [], 0, False  # begun: it has a visible line
    for [(line, _)], ends in lines:
        border = by_line or length > LONGEST or not line.strip()
        if begun and line and border:
            yield [("".join(parts), LEARNED)], False
            parts, length, begun = [], 0, False
        parts.append(line)
        length += len(line)
        begun = begun or bool(line.strip())
        if ends:
            yield [("".join(parts), LEARNED)], True
            parts, length, begun = [], 0, False
