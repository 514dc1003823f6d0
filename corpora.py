"""Where text comes from: Tiny Shakespeare, local files, Python's own sources, and two generated texts.

    for text, ends_document in open_corpus("verse").chunks():  # the whole text is never in memory at once

`verse` is a laboratory: a play whose entropy is known exactly, so a loss can be compared with the best possible one.
"""

import codecs
import functools
import hashlib
import http.client
import json
import math
import os
import random
import re
import sys
import sysconfig
import textwrap
import urllib.request
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_SIZE = 1_115_394  # characters; verse is made as long, unless told otherwise
SUFFIXES = (".txt", ".md", ".py", ".jsonl")  # what is read in a folder
PYTHON_SKIPS = ("test", "tests", "idlelib", "site-packages", "dist-packages")
BLOCK = 1 << 18  # bytes read at once; chunks are about as long, up to the last line break


@dataclass
class Corpus:
    """A text that can be read again and again: each call of chunks() starts anew.

    chunks() yields (text, ends_document); the chunks of one document, joined, are that document exactly.
    """

    name: str
    chunks: Callable[[], Iterator[tuple[str, bool]]]
    many: bool = False  # several documents: an end-of-text token belongs between them
    info: dict = field(default_factory=dict)  # facts for meta.json
    files: list[Path] = field(default_factory=list)  # local files, for error messages


def open_corpus(source: str, seed: int = 1337, size: int = 0) -> Corpus:
    """Open "shakespeare", "verse", "sums", "python" (its standard library), or the file or folder at that path.

    seed and size (characters, 0 = the default) are for generated texts: they end with the scene or problem that
    reaches the size. ValueError: nothing there, no text in it, not UTF-8 (found while reading), a wrong download.
    """
    if source in ("shakespeare", "verse", "sums"):
        return {"shakespeare": shakespeare, "verse": verse, "sums": sums}[source](seed, size)
    path = Path(sysconfig.get_paths()["stdlib"] if source == "python" else source)
    if not path.exists():
        known = "shakespeare, verse, python, sums or the path of a file or folder"
        raise ValueError(f"{source}: no such corpus, file or folder; expected {known}")
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"{source}: the file is empty; expected UTF-8 text")
    files = [path]
    if path.is_dir():
        names = sorted((p.relative_to(path) for p in path.rglob("*")), key=Path.as_posix)
        names = [n for n in names if n.suffix in SUFFIXES and not any(part[0] == "." for part in n.parts)]
        if source == "python":
            names = [
                n
                for n in names
                if n.suffix == ".py" and not set(n.parts) & set(PYTHON_SKIPS) and _is_utf8(path / n)
            ]
        files = [path / n for n in names if (path / n).is_file() and (path / n).stat().st_size]
    if not files:
        raise ValueError(f"{source}: no text in this folder; expected {' '.join(SUFFIXES)} files, not empty")

    def chunks() -> Iterator[tuple[str, bool]]:
        for file in files:
            yield from cut(read_text(file))

    return Corpus(source if source == "python" else path.resolve().stem, chunks, len(files) > 1, {}, files)


def _is_utf8(path: Path) -> bool:
    return path.read_bytes().decode("utf-8", "ignore").encode("utf-8") == path.read_bytes()


def read_text(path: Path) -> Iterator[str]:
    """Decode a UTF-8 file block by block, every character kept, carriage returns too. ValueError: not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        block = b"-"
        while block:
            block = file.read(BLOCK)
            try:
                yield decoder.decode(block, final=not block)
            except (
                UnicodeDecodeError
            ) as error:  # error.object: what was left of the last block, and this block
                where = file.tell() - len(error.object) + error.start
                what = f"byte 0x{error.object[error.start]:02X} at position {where}"
                raise ValueError(f"{path}: {what} is not UTF-8; save the file as UTF-8") from None


def cut(pieces: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Regroup the pieces of one document into chunks, cut only where no tokenizer joins characters.

    That is before a line break that follows something other than white space: GPT-2-style splitters never join
    across that point. A document without any such point stays whole.
    """
    held, length, wanted = [], 0, BLOCK
    for piece in pieces:
        held.append(piece)
        length += len(piece)
        if length < wanted:
            continue
        text = "".join(held)
        match = re.match(r".*\S(?=\r?\n)", text, re.DOTALL)
        wanted = (
            BLOCK if match else 2 * length
        )  # doubled, so that an endless line is not searched at every piece
        if match:
            yield match[0], False
            text = text[match.end() :]
        held, length = [text], len(text)
    yield "".join(held), True


def shakespeare(seed: int = 1337, size: int = 0) -> Corpus:
    """Tiny Shakespeare; where it cannot be downloaded, verse of the same size, with the reason in its info."""
    try:
        corpus = open_corpus(str(download()))
        corpus.name = "shakespeare"
    except (OSError, http.client.HTTPException) as error:
        corpus = verse(seed, size)
        reason = " ".join(f"{URL}: {error or type(error).__name__}".split())
        corpus.info |= {"stand_in_for": "shakespeare", "stand_in_reason": reason}
    return corpus


def download() -> Path:
    """Where Tiny Shakespeare lies on this disk, fetched if need be. OSError: no network; ValueError: not that text."""
    path = ROOT / "datasets" / "downloads" / "tinyshakespeare.txt"
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not path.exists():
            with urllib.request.urlopen(URL, timeout=10) as reply, open(part, "wb") as file:
                total = int(reply.headers.get("Content-Length") or 0)
                while block := reply.read(BLOCK):
                    file.write(block)
                    print(f"downloading {path.name}: {file.tell():,} of {total:,} bytes", file=sys.stderr)
            if part.stat().st_size < total:
                raise OSError(f"the connection was lost after {part.stat().st_size:,} of {total:,} bytes")
        found = hashlib.sha256((path if path.exists() else part).read_bytes()).hexdigest()
        if found != SHA256:
            what = f"{path} (delete it)" if path.exists() else f"{path.name} from {URL} (not kept)"
            raise ValueError(f"{what} is refused: its sha256 is {found}, Tiny Shakespeare's is {SHA256}")
        if part.exists():
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def stand_in_notice(info: dict) -> str:
    """The boxed message for a corpus that stands in for another; "" for any other corpus."""
    if "stand_in_for" not in info:
        return ""
    text = f"""TINY SHAKESPEARE COULD NOT BE DOWNLOADED. Another text is used: losses cannot be compared.
        What failed: {info["stand_in_reason"]}
        Used instead: verse, a generated play of the same size (see corpora.py).
        For the real text, save it as tinyshakespeare.txt and run
        python data.py --input=tinyshakespeare.txt --name=shakespeare_char --tokenizer=char"""
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line.strip(), 100)]
    edge = "+" + "-" * 102 + "+"
    return "\n".join([edge, *(f"| {line:100} |" for line in lines), edge])


def sums(seed: int = 1337, size: int = 0) -> Corpus:
    """Worked arithmetic problems, one {"prompt", "response"} a line (JSONL), difficulty 1 to 5: 20,000 unless size."""

    def lines() -> Iterator[str]:
        rng = random.Random(seed)
        problems = characters = 0
        while characters < size if size else problems < 20_000:
            prompt, response = sum_problem(rng, 1 + int(rng.random() * 5))
            line = json.dumps({"prompt": prompt, "response": response}) + "\n"
            problems += 1
            characters += len(line)
            yield line

    return Corpus("sums", lambda: cut(lines()))


def sum_problem(rng: random.Random, difficulty: int) -> tuple[str, str]:
    """(prompt, response) with `difficulty` steps, 1-5; the response shows each step and ends in the answer.

    Steps add and subtract; from difficulty 3 they multiply too, from 4 also divide; the numbers grow.
    """

    def pick(items):  # only rng.random() is promised to give the same numbers in every version of Python
        return items[int(rng.random() * len(items))]

    name, largest = pick(NAMES), (10, 20, 40, 60, 99)[difficulty - 1]
    thing = pick(RULES["Thing.p"])[1][0]
    value = pick(range(2, largest))
    story, steps = [f"{name} has {value} {thing}."], []
    for _ in range(difficulty):
        n = pick(range(2, largest))
        few = pick([d for d in range(2, 10) if value % d == 0] or range(2, 10))
        ways = [
            (True, f"{name} finds {n} more.", f"{value} + {n}", value + n),
            (value > n + 1, f"{name} gives {n} away.", f"{value} - {n}", value - n),
            (difficulty > 2, f"A spell turns each of them into {few}.", f"{value} * {few}", value * few),
            (
                difficulty > 3 and value % few == 0 and value > few,
                f"{name} makes {few} equal heaps and keeps one.",
                f"{value} / {few}",
                value // few,
            ),
        ]
        _, sentence, step, value = pick([way for way in ways if way[0]])
        story.append(sentence)
        steps.append(f"{step} = {value}")
    return " ".join([*story, f"How many {thing} does {name} have now?"]), "\n".join(
        [*steps, f"answer: {value}"]
    )


# verse: plays drawn from a probabilistic context-free grammar. A line is a rule: `Head = weight symbols | ...`, or a
# class of words, `Head: word ...`, the r-th (from 0) with weight 1 / (r + 2), as in Zipf (1949). Agreement is in the
# names: `Act.sp` stands for two rules, Act.s (singular) and Act.p (plural), and `.n` in them for the same letter;
# after "the" or "my" it is x, not yet known. Plurals of nouns and singulars of verbs add an s unless written. "/" is a
# line break, "//" an empty line. NEW is a name that enters, LEAD the first of the three, NEXT one of the two others,
# who speaks now, NAME one of the two who do not, PLACE a place and HERE the same place again.
# The alternatives of every rule begin with different words (LL(1): Lewis and Stearns, 1968; a test proves it), so
# reading from the left there is never a choice, and every text has exactly one derivation.
NAMES = "Anne Boris Clara Duncan Edith Felix Greta Hugo Iris Jonas Kate Leon".split()
PLACES = "forest garden castle harbour market tower meadow kitchen chapel valley palace desert".split()
GRAMMAR = """
Scene = 1 SCENE: The PLACE . Enter NEW , NEW and NEW . // LEAD : / Speech Turn Turn Turns
Turns = 4 Turn Turns | 1 // [Exeunt.] END
Turn = 1 // NEXT : / Speech
Speech = 1 O gentle NAME , Sentence More | 1 alas , poor NAME , Sentence More | 1 [Aside] / Sentence More | 12 Sentence More
More = 1 | 2 / Sentence More
Sentence = 10 Clause Join | 3 when Clause , / Clause . | 2 if Clause , / then Clause . | 1 why Ask ? \
 | 1 though Clause , / yet Clause . | 1 who would have thought that Clause ? | 1 it was foretold that Clause . \
 | 1 let Obj Vi.p Way !
Join = 6 . | 3 , / And Clause . | 1 ; / but Clause .
Ask = 1 does Det.x Person.s Who.s Vi.p Way | 1 do Det.x Person.p Who.p Vi.p Way | 2 must you Vt.p Obj
Clause = 5 Det.s Subj.s | 4 Det.p Subj.p | 9 Det.x Subj.x | 4 I Vow | 2 you Do.p | 1 we Do.p | 1 NAME Act.s
Vow = 6 Do.p | 2 am State | 2 Plead you Way
Subj.spx = 2 Adj Bare.n | 5 Bare.n
Bare.sp = 5 Person.n Who.n Act.n | 3 Thing.n That.n Fare.n
Bare.x = 3 Bare.s | 2 Bare.p
Act.sp = 8 Do.n | 2 Be.n State
Do.sp = 5 Vt.n Obj | 3 Vi.n Way | 1 Say.n that Clause
Fare.sp = 3 Vm.n Way | 3 Be.n State | 2 Vc.n Obj
State = 5 Adj | 1 so Adj that Clause | 1 as Adj as Obj
Obj = 4 Det.s Goal.s | 3 Det.p Goal.p | 7 Det.x Goal.x | 1 NAME
Goal.spx = 2 Adj Aim.n | 5 Aim.n
Aim.sp = 2 Person.n Who.n | 4 Thing.n That.n
Aim.x = 3 Aim.s | 2 Aim.p
Who.sp = 14 | 2 who Vi.n | 2 whom Near | 1 / who Vt.n Obj
That.sp = 12 | 2 of Mass | 2 that Near
Near = 5 I Vt.p | 3 you Vt.p | 1 NAME Vt.s | 2 Det.x Lord.x
Lord.sp = 1 Person.n Who.n Vt.n
Lord.x = 3 Lord.s | 2 Lord.p
Way = 6 | 3 Adv | 2 at Hour | 1 in this HERE | 1 like Obj | 1 by the light of the moon | 1 before the break of day \
 | 1 with a heavy heart | 1 from morning to midnight
And = 4 and | 2 for | 1 so
Be.ps: are/is
Det.s = 4 a | 2 this | 2 every
Det.p = 3 these | 2 those | 2 all | 1 two
Det.x = 6 the | 3 my | 2 your | 1 our
Person.sp: king queen maid soldier child/children lady/ladies brother fool sailor thief/thieves sister monk knight poet \
 friend beggar miller piper hunter widow shepherd stranger baker pilgrim
Thing.sp: rose sword star heart bird crown river song ship letter lamp fire wolf/wolves tree ring candle storm bell \
 dream stone grave drum mirror door book cup horse cloud field wave ghost bridge
Vt.ps: love fear see follow praise trust serve know hate seek forget mock blame need watch/watches hear find save curse \
 want paint pity/pities leave keep
Vi.ps: sing weep sleep dance laugh wait wander kneel pray tremble smile work whisper march/marches sigh rest hide run
Vm.ps: shine burn fade fall rise break bloom gleam vanish/vanishes turn drift
Vc.ps: wound warm wake guard haunt bless/blesses cover please burden
Say.ps: think swear hope say doubt
Plead: thank beg warn pardon
Adj: sweet cold brave fair dark proud kind gentle pale wise wild true young bright cruel merry golden quiet faithful \
 noble weary silent lonely bold tender humble secret bitter blind hungry famous broken
Adv: softly again alone gladly slowly tonight sadly bravely together forever
Mass: gold silver glass winter sorrow smoke
Hour: night dawn dusk noon sunset
"""


def _parse(table: str) -> dict[str, list[tuple[float, tuple[str, ...]]]]:
    """{head: [(probability, symbols), ...]}; a symbol that is no head is a word, a mark or a name."""
    rules = {}
    for line in table.strip().splitlines():
        head, sign, body = re.fullmatch(r"(\S+?)(:| =) (.*)", line).groups()
        base, _, numbers = head.partition(".")
        for form, n in enumerate(numbers or [""]):
            options = []
            if sign == ":":
                for rank, word in enumerate(body.split()):
                    forms = word.split("/") if "/" in word else (word, word + "s")
                    options.append((1 / (rank + 2), (forms[form],)))
            else:
                for option in body.split("|"):
                    weight, *symbols = option.replace(".n", f".{n}").split()
                    options.append((float(weight), tuple(symbols)))
            total = sum(weight for weight, _ in options)
            rules[f"{base}.{n}".rstrip(".")] = [(weight / total, symbols) for weight, symbols in options]
    return rules
