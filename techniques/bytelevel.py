"""Byte-level byte pairs of other people's models that do more than ours, or have less.

GPT-2's and Llama 3's vocabularies are a BPETokenizer. Others differ in one of four ways, each a field:
    "normal_form": "NFC"      a text is normalized first (Qwen2); decoding gives the normalized text
    "prefix": true            a text that does not begin with a blank gets one
    "incomplete": true        some of the 256 bytes are no tokens, and are left out: SmolLM2 lacks 21
    "added": [names]          special tokens that encode always finds: text such as Qwen's <tool_call>
"""

import re
import unicodedata

import numpy as np

from config import require
from config._special import pattern_of
from tokenizer import GPT2_PATTERN, BPETokenizer

FORMS = ("", "NFC", "NFD", "NFKC", "NFKD")


class ByteLevelTokenizer(BPETokenizer):
    """See above. tokens: single bytes first, then the merges, oldest first, as in BPETokenizer."""

    KIND = "bytelevel"
    FIELDS = {**BPETokenizer.FIELDS, "normal_form": "", "prefix": False, "incomplete": False, "added": []}

    def __init__(self, tokens: list[bytes], special_tokens=(), pattern: str = GPT2_PATTERN, **fields):
        super().__init__(tokens, special_tokens, pattern, **fields)
        form, prefix, added = (self.fields[key] for key in ("normal_form", "prefix", "added"))
        require(form in FORMS, f"normal_form must be one of {FORMS}")
        require(type(prefix) is bool, "prefix must be true or false")
        good = type(added) is list and all(
            type(name) is str and name in self.special_tokens for name in added
        )
        require(good, "added must be a list of names of special tokens")
        single = [token for token in tokens if len(token) == 1]
        require(tokens[: len(single)] == single, "the tokens of one byte must come before all others")
        self._missing = bytes(set(range(256)) - {token[0] for token in single})
        require(self.fields["incomplete"] is bool(self._missing), f"{len(self._missing)} bytes are no tokens")
        self._added_pattern = pattern_of(added)

    def encode(self, text: str, allow_special: bool = False, unknown: str = "error") -> np.ndarray:
        """(tokens,) uint32, see BPETokenizer.encode."""
        text.encode("utf-8")  # raises UnicodeEncodeError, a ValueError, for a lone surrogate
        names = self._special_pattern if allow_special else self._added_pattern
        parts = re.split(f"({names})", text) if names else [text]
        ids = [
            [self.special_tokens[part]] if i % 2 else self._encode_plain(part) for i, part in enumerate(parts)
        ]
        return np.concatenate([np.array(each, dtype=np.uint32) for each in ids])

    def _encode_plain(self, text: str) -> np.ndarray | list[int]:
        """The ids of a text without special tokens."""
        if self.fields["normal_form"]:
            text = unicodedata.normalize(self.fields["normal_form"], text)
        if self.fields["prefix"] and text and not text.startswith(" "):
            text = " " + text
        data = text.encode("utf-8")
        if len(data.translate(None, self._missing)) == len(data):
            return super().encode(text)
        ids = []
        for word in self.split(text):  # left out is a byte after words were cut, as Hugging Face does it
            kept = word.encode("utf-8").translate(None, self._missing)
            ids += self._compiled._encode_single_piece(kept) if kept else []
        return ids

    def token_bytes(self) -> np.ndarray:
        """(V,) int64, see Tokenizer.token_bytes. Those in "added" are text and count."""
        sizes = super().token_bytes()
        for name in self.fields["added"]:
            sizes[self.special_tokens[name]] = len(name.encode("utf-8"))
        return sizes


TOKENIZER = ByteLevelTokenizer  # what tokenizer.from_json makes of "type": "bytelevel"
