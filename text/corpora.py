"""Where text comes from: Tiny Shakespeare, local files, Python's standard library, and generated texts.

    shakespeare   downloaded once; without a network, verse stands in for it
    verse         generated plays (see verse.py), whose entropy is known exactly
    sums          generated arithmetic problems (see sums.py); sums_easy: only those of one or two steps
    sums_text     the same kind of problems told as stories, to pre-train on
    python        the source files of Python's standard library
    PATH          a file, or all text files in a folder or zip file (see readers.py)

open_corpus opens any of them. builtin:verse is the built-in text where a file is called verse, too.
"""

import dataclasses
import functools
import hashlib
import http.client
import math
import os
import re
import sys
import sysconfig
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from config import ROOT, names_here
from text.readers import Document, documents_in, json_kind, sort_out
from text.sums import rows, stories
from text.verse import verse_entropy, verse_scenes

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_SIZE = 1_115_394  # characters; verse has about as many, unless a size is given
DOWNLOADS = ROOT / "datasets" / "downloads"
BUILT_IN = ("shakespeare", "verse", "python", "sums", "sums_easy", "sums_text")
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
    documents: list[Document] = field(default_factory=list)  # of local files; no generated text has any
    left_out: Counter = field(
        default_factory=Counter
    )  # of a folder or zip: {ending: files that are not read}

    @property
    def files(self) -> list[Path]:
        """The names of the documents, for error messages."""
        return [document.name for document in self.documents]


def open_corpus(source: str, seed: int = 1337, size: int = 0, nul: bool = False) -> Corpus:
    """Open a source: a name in BUILT_IN, or the path of a file or folder.

    seed and size (in characters; 0 = the default) are for generated texts. These end with the scene or the
    problem that reaches the size. nul: let NUL through, which --clean drops. ValueError if the source does
    not exist, could be two things, or holds no text (partly noticed while reading: see readers.py), or if the
    download is another text.
    """
    if source in BUILT_IN and Path(source).exists():
        raise ValueError(two_meanings("input", source))
    name = source.removeprefix("builtin:")
    generated = {"shakespeare": shakespeare, "verse": verse, "sums": sums, "sums_text": sums_text}
    generated["sums_easy"] = functools.partial(sums, hardest=2)
    if name in generated:
        return generated[name](seed, size)
    if name == "python":
        return standard_library()
    path = Path(source)
    if not path.exists():
        raise ValueError(f"{source}: no such file or folder, nor one of {', '.join(BUILT_IN)}")
    if not path.is_dir() and not path.is_file():
        raise ValueError(f"{source} is no file that can be read again; save the text in a file")
    if path.is_dir():
        kind = "folder's .txt, .md, .py, .jsonl and .json files"
        found = {file.relative_to(path): file for file in path.rglob("*")}
        kept, left_out = sort_out({name: f.stat().st_size for name, f in found.items() if f.is_file()})
        broken = sum(not file.exists() for file in found.values())
        left_out.update({"broken links": broken} if broken else {})
        documents = [document for name in kept for document in documents_in(path / name, nul)[0]]
    else:
        kind = "file"
        documents, left_out = documents_in(path, nul) if path.stat().st_size else ([], Counter())
    several = len(documents) > 1 or path.is_dir()
    no_rows = [d for d in documents if several and d.name.suffix.lower() == ".json" and d.kind() != "rows"]
    documents = [document for document in documents if document not in no_rows]
    left_out.update({".json without rows": len(no_rows)} if no_rows else {})
    if not documents:
        others = f" (left out: {in_words(left_out)})" if left_out else ""
        raise ValueError(f"{source}: no text in this {kind}{others}; expected UTF-8 text")
    return corpus_of(path.resolve().stem, documents, left_out)


def open_text(
    source: str, seed: int = 1337, format: str = "", like: str = "text", nul: bool = False, say: bool = True
) -> tuple[Corpus, str]:
    """Open a source, and settle its format: the given one; else jsonl for JSON rows, `like` for other text.

    Prints what that means for a reader who has not asked for it, and what a folder leaves out, if `say`.
    ValueError for a source that is not there, an unknown format, or JSON that is no rows, or text and rows.
    """
    if format not in ("", "text", "lines", "jsonl"):
        raise ValueError(f"--format={format} is unknown; expected text, lines or jsonl")
    corpus, lines = open_corpus(source, seed, nul=nul), []
    if corpus.left_out:
        lines.append(f"{source}: left out: {in_words(corpus.left_out)}")
    if not format:
        kinds = {document.kind(): document.name for document in reversed(corpus.documents)}
        kinds = kinds or {json_kind(Path(source), (text for text, _ in corpus.chunks())): corpus.name}
        remedy = "--format=text reads all of it as plain text"
        if "format" not in names_here:
            remedy = f"data.py {remedy}"
        if "json" in kinds:
            raise ValueError(f"{kinds['json']} is JSON, but no rows (a list, or one row a line); {remedy}")
        if len(kinds) > 1:
            two = f"JSON rows ({kinds['rows']}) and other text ({kinds['text']})"
            raise ValueError(f"{source} holds {two}; give one kind, or {remedy}")
        format = "jsonl" if "rows" in kinds else like
        if format == "jsonl":
            lines.append(f"{source} holds JSON rows, and is read as rows; {remedy}")
        elif format == "lines":
            lines.append(f"{source} is read as lines, as the run's dataset was; {remedy}")
    if say:
        print(*lines, sep="\n", end="\n" * bool(lines))
    return corpus, format


def two_meanings(setting: str, word: str) -> str:
    """The message for a setting's word that is also the name of a file here."""
    return (
        f"--{setting}={word} has two meanings: there is a file or folder {word} here, too; "
        f"write ./{word} for that, builtin:{word} for what --{setting} calls {word}"
    )


def in_words(left_out: Counter) -> str:
    """{".png": 12, ".pdf": 3} as "12 .png, 3 .pdf"."""
    return ", ".join(f"{n:,} {ending}" for ending, n in left_out.most_common())


def corpus_of(name: str, documents: list[Document], left_out: Counter) -> Corpus:
    """The documents as one corpus."""

    def chunks() -> Iterator[tuple[str, bool]]:
        for document in documents:
            yield from cut(document.pieces(BLOCK))

    return Corpus(name, chunks, len(documents) > 1, {}, documents, left_out)


def first_characters(corpus: Corpus, n: int, format: str) -> Corpus:
    """The corpus up to its first n characters. Behind the chunk in which these end, nothing is read.

    Of lines and JSON rows it takes the complete ones among them. ValueError if a JSON list would be cut.
    """

    def chunks() -> Iterator[tuple[str, bool]]:
        left, opening = n, ""  # opening: the first visible character of the document
        for text, ends in corpus.chunks():
            opening = opening or text.lstrip("\ufeff \t\r\n")[:1]
            if len(text) < left:
                left -= len(text)
                yield text, ends
                opening = "" if ends else opening
                continue
            whole = len(text) == left  # then it ends where a line does
            if format == "jsonl" and opening == "[" and not (whole and ends):
                what = f"first={n} ends inside a JSON list"
                raise ValueError(f"{corpus.name}: {what}; expected one row a line, or format=text")
            cut = text[:left]
            if format != "text" and not whole and text[left] not in "\r\n":
                cut = cut[: max(cut.rfind("\r"), cut.rfind("\n")) + 1]
                if left == n and not cut.strip():
                    raise ValueError(f"{corpus.name}: its first line is longer than first={n}; take more")
            yield cut, True
            return

    corpus.info["first"] = n
    return dataclasses.replace(corpus, chunks=chunks)


def standard_library() -> Corpus:
    """The source files of Python's standard library. Files in another encoding are left out."""
    path = Path(sysconfig.get_paths()["stdlib"])
    left_out = r"(^|/)(\.|tests?/|idlelib/|site-packages/|dist-packages/)"
    files = [f for f in path.rglob("*.py") if not re.search(left_out, f.relative_to(path).as_posix())]
    files = [f for f in sorted(files, key=Path.as_posix) if f.is_file() and f.stat().st_size]
    files = [f for f in files if f.read_bytes().decode("utf-8", "ignore").encode() == f.read_bytes()]
    return corpus_of(
        "python", [document for f in files for document in documents_in(f, nul=True)[0]], Counter()
    )


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


def sums(seed: int = 1337, size: int = 0, hardest: int = 5) -> Corpus:
    """Arithmetic problems with worked solutions: JSONL rows {"prompt", "response"}, about 20,000 by default.

    Difficulty, 1 to `hardest`, is the number of steps. The last line of a response is the answer.
    """
    name = "sums" if hardest == 5 else "sums_easy"
    return Corpus(name, lambda: cut(rows(seed, size, hardest)))


def sums_text(seed: int = 1337, size: int = 0) -> Corpus:
    """Problems of difficulty 1 and 2 as little stories, a document each: text to pre-train on (sums.py)."""
    return Corpus("sums_text", lambda: ((story, True) for story in stories(seed, size)), many=True)


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
