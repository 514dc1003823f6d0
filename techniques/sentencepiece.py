"""Byte pairs as SentencePiece makes them (Kudo and Richardson 2018): the vocabularies of Llama 2 and Mistral.

What differs from tokenizer.py's: pairs of characters are joined, not of bytes. A blank is written as ▁ and is
a character as others: "▁the". One is put before every text. A character that is no token becomes its bytes,
"<0xE2>": byte fallback.

    "Hello 🐍" -> "▁Hello▁🐍" -> ▁Hello|▁|<0xF0>|<0x9F>|<0x90>|<0x8D>

Of all neighbours that spell a token, those with the highest score are joined first, the left ones if there
are several. Scores fall from id to id, so that ids say it, too; only Llama 2's 15 runs of blanks come last.
"""

import functools
import heapq
import re

import numpy as np

from config import require
from config._special import pattern_of
from tokenizer import Tokenizer

BLANK = "▁"  # U+2581
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PREFIXES = ("always", "unless blank", "")  # when a blank is put before a text


class SentencePieceTokenizer(Tokenizer):
    """tokens: as they are spelled, "▁the" and "<0x0A>", in UTF-8. Fields besides those of Tokenizer:
    "prefix": when a blank is put before a text, one of PREFIXES; "added": special tokens that are plain text;
    "late": tokens that are joined after all others, in this order."""

    KIND = "sentencepiece"
    FIELDS = {**Tokenizer.FIELDS, "prefix": "always", "added": [], "late": []}

    def __init__(self, tokens: list[bytes], special_tokens=(), pattern: str = "", **fields):
        super().__init__(self.KIND, tokens, special_tokens, pattern, **fields)
        added, late = self.fields["added"], self.fields["late"]
        require(pattern == "" and self.fields["prefix"] in PREFIXES, f"prefix must be one of {PREFIXES}")
        good = type(added) is list and all(
            type(name) is str and name in self.special_tokens for name in added
        )
        require(good, "added must be a list of names of special tokens")
        self._added_pattern = pattern_of(added)
        self._id = {piece.decode("utf-8"): i for piece, i in zip(tokens, self.ids, strict=True)}
        missing = [name for name in BYTES if name not in self._id]
        require(not missing, f"{len(missing)} of the 256 bytes are no tokens, such as {missing[:1]}")
        self._byte_ids = [self._id.pop(name) for name in BYTES]
        good = type(late) is list and all(type(piece) is str and piece in self._id for piece in late)
        require(good, "late must be a list of tokens")
        self._rank = self._id | {piece: self.vocab_size + i for i, piece in enumerate(late)}
        for piece, i in self._id.items():
            self._bytes[i] = piece.replace(BLANK, " ").encode("utf-8")
        for byte, i in enumerate(self._byte_ids):
            self._bytes[i] = bytes([byte])
        # If no token goes on behind a blank after other characters, words are joined by themselves, and kept.
        crossing = any(re.search(f"[^{BLANK}]{BLANK}", piece) for piece in self._rank)
        self._words = None if crossing else re.compile(f"{BLANK}*[^{BLANK}]+|{BLANK}+")
        self._ids_of_word = functools.lru_cache(2**16)(self._ids_of)

    def encode(self, text: str, allow_special: bool = False, unknown: str = "error") -> np.ndarray:
        """(tokens,) uint32, about 2 MB of English a second on one core. `unknown` changes nothing: bytes can
        write any character. ValueError for a lone surrogate."""
        text.encode("utf-8")  # raises UnicodeEncodeError, a ValueError
        names = self._special_pattern if allow_special else self._added_pattern
        ids = []
        for i, part in enumerate(re.split(f"({names})", text) if names else [text]):
            if i % 2:
                ids.append(self.special_tokens[part])
                continue
            spelled = self.spell(part)
            words = [spelled] if self._words is None else self._words.findall(spelled)
            for word in words:
                ids += self._ids_of_word(word) if len(word) < 100 else self._ids_of(word)
        return np.array(ids, dtype=np.uint32)

    def spell(self, text: str) -> str:
        """The text with ▁ for blanks, and with the blank in front, if it gets one. "" stays empty."""
        text = text.replace(" ", BLANK)
        prefix = self.fields["prefix"]
        wanted = prefix == "always" or (prefix == "unless blank" and not text.startswith(BLANK))
        return BLANK + text if text and wanted else text

    def _ids_of(self, text: str) -> list[int]:
        """Join neighbours, best pair first, in O(n log n): a pair goes on the heap when one of its parts is
        made, and counts if both still are what they were."""
        parts = list(text)  # the token that begins here; "" inside a token
        before, after = list(range(-1, len(parts) - 1)), list(range(1, len(parts) + 1))
        rank = self._rank
        heap = []
        for i in range(len(parts) - 1):
            pair = parts[i] + parts[i + 1]
            if pair in rank:
                heap.append((rank[pair], i, pair))
        heapq.heapify(heap)
        while heap:
            _, i, pair = heapq.heappop(heap)
            right = after[i]
            if right == len(parts) or not parts[i] or parts[i] + parts[right] != pair:
                continue
            parts[i], parts[right], after[i] = pair, "", after[right]
            if after[right] < len(parts):
                before[after[right]] = i
            for left, neighbour in ((before[i], i), (i, after[i])):
                if left >= 0 and neighbour < len(parts) and parts[left] + parts[neighbour] in rank:
                    joined = parts[left] + parts[neighbour]
                    heapq.heappush(heap, (rank[joined], left, joined))
        ids = []
        for part in parts:
            if part in self._id:
                ids.append(self._id[part])
            else:  # "" has no bytes
                ids += [self._byte_ids[byte] for byte in part.encode("utf-8")]
        return ids

    def decode(self, ids) -> str:
        """The text of the ids, without the blank that encode has put in front. decode_bytes keeps it, since a
        stream does not know where a text begins."""
        text = super().decode(ids)
        return text.removeprefix(" ") if self.fields["prefix"] else text

    def token_bytes(self) -> np.ndarray:
        """(V,) int64, see Tokenizer.token_bytes. Those in "added" are text and count."""
        sizes = np.array([len(each) for each in self._bytes], dtype=np.int64)
        special = [i for name, i in self.special_tokens.items() if name not in self.fields["added"]]
        sizes[special] = 0
        return sizes


TOKENIZER = SentencePieceTokenizer  # what tokenizer.from_json makes of "type": "sentencepiece"
