"""Where text comes from: Tiny Shakespeare, local files, Python's standard library, and two generated texts.

    shakespeare   downloaded once; without a network, verse stands in for it
    verse         generated plays (see verse.py), whose entropy is known exactly
    sums          generated arithmetic problems
    python        the source files of Python's standard library
    PATH          a file, or all text files in a folder

open_corpus opens any of them.
"""

import codecs
import hashlib
import http.client
import json
import math
import os
import random
import re
import sys
import sysconfig
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from config import ROOT
from text.verse import NAMES, RULES, verse_entropy, verse_scenes

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_SIZE = 1_115_394  # characters; verse has about as many, unless a size is given
DOWNLOADS = ROOT / "datasets" / "downloads"
SUFFIXES = (".txt", ".md", ".py", ".jsonl")  # the files of a folder that are read
BLOCK = 1 << 18  # bytes per read; a chunk ends at the last line break, after about as many characters


@dataclass
class Corpus:
    """A text that can be read again and again, in chunks.

    Each call of chunks() starts at the beginning and yields (text, ends_document). The chunks of a document,
    joined, are exactly the document.
    """

    name: str
    chunks: Callable[[], Iterator[tuple[str, bool]]]
    many: bool = False  # several documents; an end token belongs after each
    info: dict = field(default_factory=dict)  # facts for meta.json
    files: list[Path] = field(default_factory=list)  # local files, for error messages


def open_corpus(source: str, seed: int = 1337, size: int = 0) -> Corpus:
    """Open a source: "shakespeare", "verse", "sums", "python", or the path of a file or folder.

    seed and size (in characters; 0 = the default) are for generated texts. These end with the scene or the
    problem that reaches the size. ValueError if the source does not exist, holds no text or is not UTF-8
    (noticed while reading), or if the download is another text.
    """
    if source in ("shakespeare", "verse", "sums"):
        return {"shakespeare": shakespeare, "verse": verse, "sums": sums}[source](seed, size)
    python = source == "python"
    path = Path(sysconfig.get_paths()["stdlib"] if python else source)
    if not path.exists():
        raise ValueError(f"{source}: no such file or folder, nor one of shakespeare, verse, python, sums")
    files, kind = [path], "file"
    if path.is_dir():
        kind = "folder's .txt, .md, .py and .jsonl files"
        left_out = r"(^|/)(\.|tests?/|idlelib/|site-packages/|dist-packages/)" if python else r"(^|/)\."
        files = [f for f in path.rglob("*.py" if python else "*") if f.suffix in SUFFIXES and f.is_file()]
        files = [f for f in files if not re.search(left_out, f.relative_to(path).as_posix())]
    files = [f for f in sorted(files, key=Path.as_posix) if f.stat().st_size]
    if python:  # a few files declare an encoding other than UTF-8
        files = [f for f in files if f.read_bytes().decode("utf-8", "ignore").encode() == f.read_bytes()]
    if not files:
        raise ValueError(f"{source}: no text in this {kind}; expected UTF-8 text")

    def chunks() -> Iterator[tuple[str, bool]]:
        for file in files:
            yield from cut(read_text(file))

    return Corpus("python" if python else path.resolve().stem, chunks, len(files) > 1, {}, files)


def read_text(path: Path) -> Iterator[str]:
    """Decode a UTF-8 file block by block. Keeps every character, also carriage returns."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        block = b"-"
        while block:
            block = file.read(BLOCK)
            try:
                yield decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # error.object is what was decoded: undecoded bytes of the block before, then this block.
                where = file.tell() - len(error.object) + error.start
                raise ValueError(f"{path}: not UTF-8 at byte {where}; save the file as UTF-8") from None


def cut(pieces: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Regroup the pieces of one document into chunks, and yield (chunk, ends_document).

    A chunk ends before a line break that follows a visible character: no pattern in GPT-2's style joins
    characters across that place, so cutting there changes no token. Text without such a place stays whole.
    """
    text, wanted = "", BLOCK
    for piece in pieces:
        text += piece
        if len(text) >= wanted:
            match = re.match(r".*\S(?=\r?\n)", text, re.DOTALL)
            if match:
                yield match[0], False
                text = text[match.end() :]
            wanted = max(BLOCK, 2 * len(text))  # search a long line again only when it has doubled
    yield text, True


def shakespeare(seed: int = 1337, size: int = 0) -> Corpus:
    """Tiny Shakespeare, downloaded once. Without a network: verse of the same size, with the reason in info.

    ValueError if the file or the download is another text (its sha256 differs). A wrong download is not kept.
    """
    path = DOWNLOADS / "tinyshakespeare.txt"
    data = path.read_bytes() if path.exists() else b""
    try:
        if not path.exists():
            with urllib.request.urlopen(URL, timeout=10) as reply:
                while block := reply.read(BLOCK):
                    data += block
                    print(f"downloading {URL}: {len(data):,} of {SHAKESPEARE_SIZE:,} bytes", file=sys.stderr)
    except (OSError, http.client.HTTPException) as error:
        corpus = verse(seed, size)
        reason = " ".join((str(error) or repr(error)).split())
        corpus.info |= {"stand_in_for": "shakespeare", "stand_in_reason": reason}
        return corpus
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        what = f"its sha256 is {found}; expected {SHA256}, that of Tiny Shakespeare"
        raise ValueError(f"{path} from {URL} is refused: {what}; delete the file if it exists")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(data)
        part.replace(path)
    corpus = open_corpus(str(path))
    corpus.name = "shakespeare"
    return corpus


def stand_in_notice(info: dict) -> str:
    """Say, in a box, that verse stands in for Tiny Shakespeare; "" if it does not. info: that of a Corpus."""
    if "stand_in_for" not in info:
        return ""
    text = f"""TINY SHAKESPEARE COULD NOT BE DOWNLOADED. Another text is used: losses cannot be compared.
What failed: {info["stand_in_reason"]}
             {URL}
Used instead: verse, a generated play of the same size (see text/verse.py).
For the real text, save it as tinyshakespeare.txt and run
python data.py --input=tinyshakespeare.txt --name=shakespeare_char --tokenizer=char
or, with network again, python data.py --name=shakespeare_char"""
    width = max(map(len, text.splitlines()))
    edge = "+" + "-" * (width + 2) + "+"
    return "\n".join([edge, *(f"| {line:{width}} |" for line in text.splitlines()), edge])


def sums(seed: int = 1337, size: int = 0) -> Corpus:
    """Arithmetic problems with worked solutions: JSONL rows {"prompt", "response"}, about 20,000 by default.

    Difficulty, 1 to 5, is the number of steps. From difficulty 3 on problems multiply, from 4 on they divide.
    The last line of a response is the answer.
    """
    stories = {"+": "finds {} more", "-": "gives {} away", "*": "swaps each for {}", "/": "keeps one in {}"}

    def lines() -> Iterator[str]:
        rng, characters = random.Random(seed), 0
        while characters < (size or 4_000_000):
            name, thing, difficulty = rng.choice(NAMES), rng.choice(RULES["Thing.p"])[1][0], rng.randint(1, 5)
            now = rng.randint(2, 20 * difficulty)
            story, steps = [f"{name} has {now} {thing}."], []
            while len(steps) < difficulty:
                sign = rng.choice("+-*/"[: max(2, difficulty)])
                n = rng.randint(2, 20 * difficulty if sign in "+-" else 9)
                result = {"+": now + n, "-": now - n, "*": now * n, "/": now / n}[sign]
                if 2 <= result < 1000 and result == int(result):
                    story.append(f"{name} {stories[sign].format(n)}.")
                    steps.append(f"{now} {sign} {n} = {int(result)}")
                    now = int(result)
            prompt = " ".join([*story, f"How many {thing} does {name} have now?"])
            line = json.dumps({"prompt": prompt, "response": "\n".join([*steps, f"answer: {now}"])}) + "\n"
            characters += len(line)
            yield line

    return Corpus("sums", lambda: cut(lines()))


def verse(seed: int = 1337, size: int = 0) -> Corpus:
    """Scenes up to the given size. A complete pass adds their log_prob (nats) and characters to info."""
    info = {"nats_per_char": verse_entropy(), "bits_per_char": verse_entropy() / math.log(2)}

    def scenes() -> Iterator[str]:
        log_prob, characters = 0.0, 0
        for text, nats in verse_scenes(seed):
            yield text
            log_prob += nats
            characters += len(text)
            if characters >= (size or SHAKESPEARE_SIZE):
                break
        info.update(log_prob=log_prob, characters=characters)

    return Corpus("verse", lambda: cut(scenes()), info=info)
