"""Quality filters: rules of thumb that tell prose from menus, tables, code and noise, by counting.

    --quality=gopher          the rules of Gopher (Rae et al., 2021, appendix A.1.1)
    --quality=c4              those of C4 (Raffel et al., 2020, section 2.2)
    --quality=few_words,code  some of them, by their names in RULES

They were made for web pages in English. Here each sample or paragraph is judged by itself: Gopher's least
length of 50 words and its English stop words are left out, and a heading or a line of a list may go.

Words stand between blanks. Where a script writes none (Chinese, Japanese, Thai, ...), each character counts
as a word. The length of those says nothing, nor does that of Korean words, which are short: `word_length`
lets them pass.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import NamedTuple

UNSPACED = (  # Thai to Myanmar, Khmer, kana, Chinese characters
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
SHORT = re.compile(rf"[{UNSPACED}\u1100-\u11ff\uac00-\ud7af]")  # the last two: Korean
SYMBOL = re.compile(r"#|\.\.\.|…")
BULLET = re.compile(r"[•‣▪●◦*-]\s*\w")
ENDING = re.compile(r"[.!?…。！？।۔؟][\"'”’»」)]*$|[\"”»」]$")
BOILERPLATE = re.compile(
    r"lorem ipsum|javascript|terms of use|(privacy|cookie) policy|uses? (of )?cookies", re.IGNORECASE
)
REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # words per n-gram: largest share


class Text(NamedTuple):
    """A text, cut for the rules."""

    text: str
    words: list[str]
    lines: list[str]  # the visible ones, without blanks around them


class Rule(NamedTuple):
    """A text is dropped unless what is measured lies from least to most."""

    by: str  # gopher or c4
    measure: Callable[[Text], float]
    least: float
    most: float


def share(found: Iterable) -> float:
    """The share of true values; 0 of none."""
    found = list(map(bool, found))
    return sum(found) / max(1, len(found))


def has_letter(word: str) -> bool:
    """Whether a word has a letter, or a mark that stands for a vowel, as in Thai."""
    return any(c.isalpha() or unicodedata.category(c).startswith("M") for c in word)


def word_length(text: Text) -> float:
    """The mean length of words; 5, which passes, where half or more of them are of short scripts."""
    lengths = [len(word) for word in text.words if not SHORT.search(word)]
    return sum(lengths) / len(lengths) if 2 * len(lengths) > len(text.words) else 5.0


def repeated_lines(text: Text) -> float:
    """The share of lines that stand further up already."""
    return (len(text.lines) - len(set(text.lines))) / max(1, len(text.lines))


def repeated_ngrams(text: Text) -> float:
    """The share of characters in n-grams of words that occur before, over its limit: the largest for any n.

    A word counts once for each n, however many repeated n-grams it stands in. (For n of 2 to 4, Gopher limits
    the most frequent n-gram; in short texts, that drops all with a phrase.)
    """
    lengths = [len(word) for word in text.words]
    worst = 0.0
    for n, most in REPEATED.items():
        ngrams = list(zip(*(text.words[i:] for i in range(n)), strict=False))
        if len(set(ngrams)) == len(ngrams):
            break  # longer ones are not repeated either
        seen, covered, end = set(), 0, 0  # end: words before this one are counted
        for i, ngram in enumerate(ngrams):
            if ngram in seen:
                covered += sum(lengths[max(i, end) : i + n])
                end = i + n
            seen.add(ngram)
        worst = max(worst, covered / sum(lengths) / most)
    return worst


# -----------------------------------------------------------------------------
ANY = float("inf")
RULES = {  # tried in this order; the first one that a text breaks is counted
    "few_words": Rule("c4", lambda t: len(t.words), 5, ANY),
    "few_letters": Rule("gopher", lambda t: share(map(has_letter, t.words)), 0.8, 1),
    "word_length": Rule("gopher", word_length, 3, 10),
    "symbols": Rule("gopher", lambda t: len(SYMBOL.findall(t.text)) / max(1, len(t.words)), 0, 0.1),
    "bullets": Rule("gopher", lambda t: share(map(BULLET.match, t.lines)), 0, 0.9),
    "ellipses": Rule("gopher", lambda t: share(line.endswith(("...", "…")) for line in t.lines), 0, 0.3),
    "repeated_lines": Rule("gopher", repeated_lines, 0, 0.3),
    "repeated_ngrams": Rule("gopher", repeated_ngrams, 0, 1),
    "no_ending": Rule("c4", lambda t: bool(ENDING.search(t.text.rstrip())), 1, 1),
    "boilerplate": Rule("c4", lambda t: len(BOILERPLATE.findall(t.text)), 0, 0),
    "code": Rule("c4", lambda t: t.text.count("{"), 0, 0),
}
# -----------------------------------------------------------------------------


def rules_of(setting: str) -> dict[str, Rule]:
    """The rules that --quality names, in their order: gopher, c4, or some of RULES, joined by commas.

    ValueError for an unknown name, and for an empty one.
    """
    wanted = [name.strip() for name in setting.split(",")] if setting else []
    groups = {rule.by for rule in RULES.values()}
    for name in wanted:
        if name not in groups | RULES.keys():
            known = ", ".join(["gopher", "c4", *RULES])
            raise ValueError(f"quality={name} is unknown; expected some of these: {known}")
    return {name: rule for name, rule in RULES.items() if name in wanted or rule.by in wanted}


def broken_rule(text: str, rules: dict[str, Rule]) -> str:
    """The name of the first rule that a text breaks; "" if it breaks none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cut = Text(text, WORD.findall(text), lines)
    for name, rule in rules.items():
        if not rule.least <= rule.measure(cut) <= rule.most:
            return name
    return ""
