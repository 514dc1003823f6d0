"""Text to token ids and back, and the ladder from the simplest vocabulary to the kind that GPT-2 uses.

1. One id per character (CharTokenizer): easy to read, few ids. What it lacks: a character it has not met
   cannot be written, and every letter costs the model a step.
2. One id per byte of the UTF-8 text: 256 ids write any text ("é" is 195, 169), but in even more steps.
3. Byte-pair encoding (BPETokenizer): begin with the bytes, join the two neighbours that meet most often to
   a new token, and again, and again. Nothing is unknown, and frequent words become one id.

>>> CharTokenizer.train(["hello"]).encode("hole")  # the vocabulary is e h l o
array([1, 3, 2, 0], dtype=uint32)
>>> t = BPETokenizer.train(["low low lower lowest"], vocab_size=260)
>>> t.tokens[256:]  # l+o meet 4 times, then lo+w 4, then blank+low 3, then " low"+e 2 times
[b'lo', b'low', b' low', b' lowe']
>>> t.encode("low lower").tolist()  # low| lowe|r
[257, 259, 114]

Joining byte pairs comes from compression (Gage 1994, "A New Algorithm for Data Compression"). Sennrich et al.
2016 ("Neural Machine Translation of Rare Words with Subword Units") cut words with it. Radford et al. 2019
(GPT-2) ran it on bytes, inside the pieces that a pattern cuts, so that no token reaches past a word's end.
"""

import functools
import hashlib
import heapq
import itertools
import json
import re
import sys
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

import techniques
from config import ROOT, require
from config._special import parse, pattern_of, place_ids, uses

END = "<|endoftext|>"  # the special token that ends a document, named as in GPT-2
# GPT-2's pattern cuts a text into words: English endings; letters, digits or signs, each after at most one
# blank; white space, whose last blank goes to the next word. "++" does not backtrack.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
FOREIGN = ("tokenizer_config.json", "merges.txt", "tokenizer.model")  # what only Hugging Face's folders have
PROBE = "".join(map(chr, range(256))) + "it's  12 \u00e9\u4e2d\U0001f600 \n\n  " + "a" * 64


class Tokenizer:
    """A table from id to bytes. encode reads names of special tokens as plain text unless allow_special=True,
    because a prompt may quote them. config/_special.py tells about special_tokens and the fields."""

    FIELDS = {"end": END, "begin": "", "chat": None}  # what the JSON may leave out

    def __init__(self, kind: str, tokens: list[bytes], special_tokens=(), pattern: str = "", **fields):
        self.kind, self.tokens, self.pattern = kind, tokens, pattern  # the ordinary tokens, by rising id
        self.special_tokens, self.ids = place_ids(tokens, special_tokens)  # name -> id; the ids of tokens
        self.vocab_size = len(tokens) + len(self.special_tokens)
        self._bytes = list(tokens)
        for name, i in self.special_tokens.items():
            self._bytes.insert(i, name.encode("utf-8"))
        self._special_pattern = pattern_of(self.special_tokens)
        self.fields = {**self.FIELDS, **fields}
        self.end_id, self.begin_id, self.stop_ids = uses(self.fields, self.FIELDS, self.special_tokens)
        self.chat = self.fields["chat"]  # None: conversations have no form of their own

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of the ids. For streaming: one token may hold only a part of a character."""
        ids = np.asarray(ids, dtype=np.int64)
        wrong = ids[(ids < 0) | (ids >= self.vocab_size)]
        if len(wrong):
            raise ValueError(f"token id {wrong[0]} is not in this vocabulary of {self.vocab_size} tokens")
        return b"".join([self._bytes[i] for i in ids.tolist()])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids. Bytes that are not UTF-8 become U+FFFD, the replacement character."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """(V,) int64: how many bytes of text each token stands for, 0 for special tokens."""
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        sizes[self.ids] = [len(token) for token in self.tokens]
        return sizes

    def to_json(self) -> str:
        """JSON for people, too: bytes that are not UTF-8 are written as \\xe4, a backslash as two."""
        special = list(self.special_tokens) if self.ids == [*range(len(self.ids))] else self.special_tokens
        state = {"type": self.kind, "pattern": self.pattern, "special_tokens": special}
        state |= {key: value for key, value in self.fields.items() if value != self.FIELDS[key]}
        state["tokens"] = [t.replace(b"\\", rb"\\").decode("utf-8", "backslashreplace") for t in self.tokens]
        return json.dumps(state, ensure_ascii=False, indent=1) + "\n"

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json(), encoding="utf-8", newline="\n")

    @functools.cached_property
    def hash(self) -> str:
        """sha256 of to_json(), in hex. Tokenizers with the same hash give the same ids for every text."""
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()


class CharTokenizer(Tokenizer):
    """One id per character: the sorted characters of the training text, then the special tokens."""

    def __init__(self, characters: str, special_tokens=(), **fields):
        super().__init__("char", [c.encode("utf-8") for c in characters], special_tokens, **fields)
        self._ids = dict(zip(characters, self.ids, strict=True))

    @classmethod
    def train(cls, chunks: Iterable[str], special_tokens: tuple = ()) -> "CharTokenizer":
        return cls("".join(sorted(set(itertools.chain.from_iterable(chunks)))), special_tokens)

    def encode(self, text: str, allow_special: bool = False, unknown: str = "error") -> np.ndarray:
        """(characters,) uint32. ValueError that lists unknown characters; unknown="skip" leaves them out."""
        special = self._special_pattern if allow_special else ""
        symbols = re.findall(f"{special}|.", text, re.DOTALL) if special else text
        known = {**self._ids, **self.special_tokens} if allow_special else self._ids
        ids = np.array([known.get(symbol, -1) for symbol in symbols], dtype=np.int64)
        if unknown != "skip" and (ids < 0).any():
            missing = list(dict.fromkeys(symbols[i] for i in np.flatnonzero(ids < 0)))[:20]
            shown = ", ".join(f"{c!r} at position {symbols.index(c)}" for c in missing)
            raise ValueError(f"unknown characters: {shown}; leave them out, or use data.py --tokenizer=bpe")
        return ids[ids >= 0].astype(np.uint32)


class BPETokenizer(Tokenizer):
    """Byte-level byte pairs. tokens: the 256 single bytes in any order, then the merges, oldest first."""

    KIND = "bpe"

    def __init__(self, tokens: list[bytes], special_tokens=(), pattern: str = GPT2_PATTERN, **fields):
        tiktoken, regex = open_tiktoken()
        super().__init__(self.KIND, tokens, special_tokens, pattern, **fields)
        if self.KIND == "bpe" and (len(tokens) < 256 or any(len(token) != 1 for token in tokens[:256])):
            raise ValueError("the first 256 tokens must be the 256 bytes, so that any text can be encoded")
        self.split = regex.compile(pattern).findall  # "it's  2" -> ["it", "'s", " ", " 2"]
        words = self.split(PROBE, timeout=1)  # PROBE: characters of many kinds
        if "".join(words) != PROBE or "" in words:  # tiktoken crashes on an empty word
            raise ValueError(f"the pattern {pattern[:40]!r} loses characters, or finds words without any")
        self._rank = rank = dict(zip(tokens, self.ids, strict=True))  # ids rise from merge to merge
        self._compiled = tiktoken.Encoding("", pat_str=pattern, mergeable_ranks=rank, special_tokens={})

    @classmethod
    def train(cls, chunks: Iterable[str], vocab_size: int, special_tokens: tuple = ()) -> "BPETokenizer":
        """Learn vocab_size tokens: 256 bytes, merges, special tokens; fewer if no pair occurs twice. Memory
        holds the different words of the chunks and their counts. 1.1 MB to 4,096 tokens: 0.5 s."""
        tokens = [bytes([i]) for i in range(256)]
        smallest = 256 + len(special_tokens)
        require(vocab_size >= smallest, f"vocab_size={vocab_size} is too small: expected {smallest} or more")
        words, split = Counter(), cls(tokens).split
        due = time.monotonic() + 2
        for n, chunk in enumerate(chunks, 1):
            words.update(split(chunk))
            due = _progress(due, f"{n:,} chunks of text read, {len(words):,} different words")
        for a, b in find_merges(words, vocab_size - smallest):
            tokens.append(tokens[a] + tokens[b])
        size = len(tokens) + len(special_tokens)
        if size < vocab_size:
            print(f"tokenizer: {size:,} tokens instead of {vocab_size:,}: no pair occurs twice any more")
        return cls(tokens, special_tokens)

    def encode(self, text: str, allow_special: bool = False, unknown: str = "error") -> np.ndarray:
        """(tokens,) uint32: encode_slowly's ids by tiktoken's compiled code (about 10 MB/s, GIL-free).
        `unknown` changes nothing: bytes can write any character. ValueError for a lone surrogate."""
        text.encode("utf-8")  # raises UnicodeEncodeError, a ValueError; tiktoken would replace the surrogate
        special = self._special_pattern if allow_special else ""
        ids = array("I")  # numpy reads it 5 times as fast as a list
        for i, part in enumerate(re.split(f"({special})", text) if special else [text]):
            # A million blanks in a row overflow the compiled splitter's stack. Such a text is split here.
            blanks = len(part) > 900_000 and re.search(r"\s{900000}", part)
            for word in self.split(part) if blanks else [part]:
                new = [self.special_tokens[word]] if i % 2 else self._compiled.encode_ordinary(word)
                ids += array("I", new)
        return np.array(ids, dtype=np.uint32)

    def encode_slowly(self, text: str) -> list[int]:
        """encode, written out to be read (all text is plain): what merging leaves of each word."""
        return [self._rank[part] for word in self.split(text) for part in self.steps(word)[-1]]

    def steps(self, word: str) -> list[list[bytes]]:
        """A word's bytes, then its parts after each merge: join the two neighbours whose joined bytes are the
        oldest token, leftmost first. This equals all merges in order: text that no token straddles is cut the
        same way wherever it stands. When Z was made of P and Q, all such text that spells Z was cut P|Q and
        became Z at once; no other pair spells Z later."""
        steps = [[bytes([byte]) for byte in word.encode("utf-8") if bytes([byte]) in self._rank]]
        while True:
            joined = [left + right for left, right in itertools.pairwise(steps[-1])]
            known = [(self._rank[token], i) for i, token in enumerate(joined) if token in self._rank]
            if not known:
                return steps
            _, i = min(known)
            steps.append([*steps[-1][:i], joined[i], *steps[-1][i + 2 :]])


def find_merges(words: dict[str, int], n: int) -> list[tuple[int, int]]:
    """Learn at most n merges: pairs of ids in the order in which to join them. Merge k (from 0) makes id
    256 + k. Next is the pair that occurs most often in words (word -> its count), and of several the smallest
    pair of ids. Overlaps count: "aaa" has (a, a) twice.

    Counting all pairs after each merge would take minutes. Here all words stand in one array; a merge visits
    the places of its pair and corrects the counts there. A pair goes on the heap once, after the merge that
    made the younger of its tokens. Then its count can only fall: one popped too high goes back corrected."""
    ids = array("i", [-1])  # the token that begins here; -1: inside a token or between words
    weight = array("q", [0])  # how often the word here occurs
    for word, count in words.items():
        ids.extend([*word.encode("utf-8"), -1])
        weight.extend([count] * (len(ids) - len(weight)))
    before = array("i", range(-1, len(ids) - 1))  # where the token to the left begins
    length = [1] * 256  # bytes of each token; the token to the right begins at place + length
    counts = defaultdict(int)
    places = defaultdict(lambda: array("i"))  # pair -> where it was put, left to right; some are gone
    for place, pair in enumerate(itertools.pairwise(ids)):
        if min(pair) >= 0:
            counts[pair] += weight[place]
            places[pair].append(place)
    heap = sorted((-count, pair) for pair, count in counts.items())  # a sorted list is a heap
    merges = []
    due = time.monotonic() + 2
    while len(merges) < n and heap and heap[0][0] <= -2:
        due = _progress(due, f"{len(merges):,} of {n:,} merges")
        count, pair = heapq.heappop(heap)
        if -count > counts[pair]:
            heapq.heappush(heap, (-counts[pair], pair))
            continue
        a, b = pair
        new = 256 + len(merges)
        merges.append(pair)
        length.append(length[a] + length[b])
        made = set()
        for place in places.pop(pair):
            right = place + length[a]
            if ids[place] != a or ids[right] != b:  # an earlier merge took one of the two
                continue
            left, after = before[place], right + length[b]
            x, y = ids[left], ids[after]  # x a b y becomes x new y
            ids[place], ids[right], before[after] = new, -1, place
            for old, now, where in ((x, a), (x, new), left), ((b, y), (new, y), place):
                if min(now) >= 0:  # -1: the word begins or ends here
                    counts[old] -= weight[place]
                    counts[now] += weight[place]
                    places[now].append(where)
                    made.add(now)
        for pair in made:
            heapq.heappush(heap, (-counts[pair], pair))
    return merges


def _progress(due: float, text: str) -> float:
    """Print a line of progress on stderr if it is due. Returns the time when the next one is due."""
    if time.monotonic() < due:
        return due
    print(f"tokenizer: {text}", file=sys.stderr, flush=True)
    return time.monotonic() + 5


def from_json(text: str) -> Tokenizer:
    """The tokenizer that to_json has written. ValueError for any other text."""
    try:
        kind, tokens, special, pattern, fields = parse(text)
        if kind == "char":
            return CharTokenizer(b"".join(tokens).decode("utf-8"), special, **fields)
        made = BPETokenizer if kind == "bpe" else techniques.load(kind)[0].TOKENIZER
        return made(tokens, special, pattern, **fields)
    except Exception as error:  # broken JSON, a missing key, another type, a bad pattern
        raise ValueError(f"this is no tokenizer of tinylm: {type(error).__name__}: {error}") from None


def load(path: str | Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json. ValueError that names the file if it is missing or damaged."""
    try:
        tokenizer = from_json(Path(path).read_text(encoding="utf-8"))
        meta = Path(path).with_name("meta.json")  # a dataset has one; its token files need this tokenizer
        if meta.is_file():
            wanted = json.loads(meta.read_text(encoding="utf-8"))
            if (tokenizer.hash, tokenizer.vocab_size) != (wanted["tokenizer_hash"], wanted["vocab_size"]):
                raise ValueError("it is not that of the token files beside it; prepare the dataset again")
    except (KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"no tokenizer can be read from {path}: {error}") from None
    return tokenizer


def load_any(spec: str | Path) -> Tokenizer:
    """spec: a dataset's name, or the path of a tokenizer.json, .gguf or folder of a dataset, run or model."""
    for place in (Path(spec), ROOT / spec, ROOT / "datasets" / spec):
        path = place / "tokenizer.json" if place.is_dir() else place
        if place.suffix == ".gguf" or any((place / name).is_file() for name in FOREIGN):
            return techniques.load("pretrained")[0].vocabulary.read(place)
        if path.is_file():
            return load(path)
    raise ValueError(f"no tokenizer '{spec}': expected char, bpe, gpt2, or a tokenizer.json or its folder")


def open_tiktoken() -> tuple:
    """The modules tiktoken and regex, imported only here: characters do without. ValueError if missing."""
    try:
        import regex  # comes with tiktoken; Python's own re has no \p{L}
        import tiktoken
    except ImportError:
        raise ValueError("byte pairs need what is not installed: pip install tiktoken") from None
    return tiktoken, regex
