"""How a byte-level vocabulary cuts a text into words: Hugging Face's pre_tokenizer, GGUF's "pre", and ours.

    GPT-2     "it's  12" -> it|'s| | 12           Radford et al. 2019
    SmolLM2   the same, each digit by itself      it|'s|  |1|2
    Llama 3   up to 3 digits, line ends of their own; "(word" is one word      Dubey et al. 2024
    Qwen2     the same, each digit by itself      Yang et al. 2024

A pattern of a stranger may take minutes on one line, "(a+)+b". So only alternatives that are known are taken,
in any order, and written without backtracking, which finds the same words ("++" is possessive).
"""

import re

from config import require
from tokenizer import GPT2_PATTERN

ENDINGS = "'s|'t|'re|'ve|'m|'ll|'d"
SHORT = "'(?:[sdmt]|ll|ve|re)"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
ALTERNATIVES = {  # as they are published: as we write them
    SHORT: SHORT,
    f"(?i:{ENDINGS})": f"(?i:{ENDINGS})",
    "'(?i:[sdmt]|ll|ve|re)": "'(?i:[sdmt]|ll|ve|re)",
    r" ?\p{L}+": r" ?\p{L}++",
    r" ?\p{N}+": r" ?\p{N}++",
    r" ?[^\s\p{L}\p{N}]+": r" ?[^\s\p{L}\p{N}]++",
    WORD: r"[^\r\n\p{L}\p{N}]?+\p{L}++",
    r"\p{N}": r"\p{N}",
    r"\p{N}+": r"\p{N}++",
    r"\p{N}{1,3}": r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*": r" ?[^\s\p{L}\p{N}]++[\r\n]*+",
    r"\s*[\r\n]+": r"\s*[\r\n]",
    r"\s+(?!\S)": r"\s++$|\s+(?!\S)",
    r"\s+": r"\s++",
}
GPT2 = rf"{ENDINGS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"(?i:{ENDINGS})|{WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
DIGITS = {True: r"\p{N}", False: r"\p{N}+"}  # whether each digit is a word
DIGIT_STEPS = (r"\p{N}", r"\p{N}+", r"\p{N}{1,3}")
PRE = {  # GGUF's tokenizer.ggml.pre: how digits are cut first, and the published pattern
    "gpt-2": ("", GPT2), "default": ("", GPT2), "olmo": ("", GPT2), "phi-2": ("", GPT2), "mpt": ("", GPT2),
    "smollm": (r"\p{N}", GPT2), "starcoder": (r"\p{N}", GPT2), "refact": (r"\p{N}", GPT2),
    "llama-bpe": ("", LLAMA3), "llama3": ("", LLAMA3), "llama-v3": ("", LLAMA3), "qwen2": ("", QWEN2),
}  # fmt: skip


def alternatives(pattern: str) -> list[str]:
    """A pattern, cut at each | that stands in no brackets."""
    return re.split(r"\|(?![^(]*\))", pattern)


BEFORE_DIGITS = r"\s+(?![^\s\p{N}])"  # \s+(?!\S) in a text between digits, which ends where one begins
OURS = {part for pattern in ALTERNATIVES.values() for part in alternatives(pattern)} | {BEFORE_DIGITS, r"\s"}


def ours(digits: str, published: str) -> str:
    """One pattern that cuts a text at the same places. ValueError if it has an alternative that is not known.

    digits: \\p{N}, \\p{N}+ or \\p{N}{1,3} if a first step makes words of the digits, and the published
    pattern cuts what is between them; "" if there is no such step.
    """
    if all(part in OURS for part in alternatives(published)):
        return published
    if published.startswith(ENDINGS):
        published = published.replace(ENDINGS, SHORT, 1)
    cut = []
    for part in alternatives(published):
        known = "expected one like those of GPT-2, SmolLM2, Llama 3 or Qwen2"
        require(part in ALTERNATIVES, f"its pattern, which cuts words, has {part[:40]!r}; {known}")
        if digits and part in (r" ?\p{N}+", *DIGIT_STEPS):
            part = digits
        after_blanks = cut and cut[-1].startswith(r"\s++$") and part == r"\s+"
        cut.append(r"\s" if after_blanks else ALTERNATIVES[part])
    if digits:
        cut = [part.replace(r"\s+(?!\S)", BEFORE_DIGITS) for part in cut]
    return "|".join(cut)


def name_of(pattern: str) -> str:
    """GGUF's name of a pattern of ours; "" if it has none."""
    return next((name for name, steps in PRE.items() if ours(*steps) == pattern), "")


def read(steps: list[dict]) -> tuple[str, bool]:
    """Turn the steps of a Hugging Face pre_tokenizer into (our pattern, whether a blank is put in front).

    ValueError for steps that no single pattern of ours can take the place of.
    """
    kinds = [step.get("type") for step in steps]
    digits, published, prefix = "", "", False
    for i, step in enumerate(steps):
        kind, pattern = kinds[i], step.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        isolated = (step.get("behavior"), step.get("invert", False)) in (
            ("Isolated", False),
            ("Removed", True),
        )
        if kind == "Digits" and i == 0:
            digits = DIGITS[bool(step.get("individual_digits"))]
        elif kind == "Split" and i == 0 and isolated and regex in DIGIT_STEPS and len(steps) > 2:
            digits = regex
        elif kind == "Split" and isolated and isinstance(regex, str) and not published:
            published = regex
        elif kind == "ByteLevel" and i == len(steps) - 1 and not (published and step.get("use_regex", True)):
            published = published or GPT2
            prefix = bool(step.get("add_prefix_space", True))
        else:
            raise ValueError(
                f"its pre_tokenizer cuts words by {kinds}, {kind} as no. {i + 1}, which is not known"
            )
    require(kinds[-1:] == ["ByteLevel"], f"its pre_tokenizer {kinds} does not end with ByteLevel")
    require(not prefix or len(steps) == 1, f"its pre_tokenizer {kinds} puts a blank before every word")
    return ours(digits, published), prefix


def write(pattern: str, prefix: bool) -> dict:
    """The pre_tokenizer of Hugging Face that cuts as our pattern does. prefix: see read()."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": False}
    if pattern == GPT2_PATTERN:
        return {**byte_level, "use_regex": True}
    name = name_of(pattern)
    digits, published = PRE[name] if name else ("", pattern)
    if digits:
        first = {"type": "Digits", "individual_digits": True}
        return {"type": "Sequence", "pretokenizers": [first, {**byte_level, "use_regex": True}]}
    split = {"type": "Split", "pattern": {"Regex": published}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}
