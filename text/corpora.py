"""Where text comes from: Tiny Shakespeare, local files, Python's own sources, and two generated texts.

`verse` is a laboratory: a play whose entropy is known exactly, which is the loss that no model can beat.
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
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np

from config import ROOT

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_SIZE = 1_115_394  # characters; verse is as long unless told otherwise
DOWNLOADS = ROOT / "datasets" / "downloads"
SUFFIXES = (".txt", ".md", ".py", ".jsonl")  # what is read in a folder
BLOCK = 1 << 18  # bytes read at once; a chunk has about as many characters, up to the last line break


@dataclass
class Corpus:
    """A text to read again and again: chunks() starts anew, and joined chunks are each document exactly."""

    name: str
    chunks: Callable[[], Iterator[tuple[str, bool]]]
    many: bool = False  # several documents: an end-of-text token belongs between them
    info: dict = field(default_factory=dict)  # facts for meta.json
    files: list[Path] = field(default_factory=list)  # local files, for error messages


def open_corpus(source: str, seed: int = 1337, size: int = 0) -> Corpus:
    """Open "shakespeare", "verse", "sums", "python" (its standard library), or a file or folder by its path.

    seed and size (characters, 0 = the default) are for generated texts, which end with the scene or problem
    that reaches the size. ValueError: nothing there, no text, not UTF-8 (while reading), a wrong download.
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
    if python:  # some may declare another encoding
        files = [f for f in files if f.read_bytes().decode("utf-8", "ignore").encode() == f.read_bytes()]
    if not files:
        raise ValueError(f"{source}: there is no text in this {kind}; expected UTF-8 text")

    def chunks() -> Iterator[tuple[str, bool]]:
        for file in files:
            yield from cut(read_text(file))

    return Corpus("python" if python else path.resolve().stem, chunks, len(files) > 1, {}, files)


def read_text(path: Path) -> Iterator[str]:
    """Decode a UTF-8 file block by block; every character is kept, carriage returns too."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        block = b"-"
        while block:
            block = file.read(BLOCK)
            try:
                yield decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:  # error.object: the rest of the last block, and this one
                where = file.tell() - len(error.object) + error.start
                raise ValueError(f"{path}: not UTF-8 at byte {where}; save the file as UTF-8") from None


def cut(pieces: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Regroup one document into chunks, cut only where GPT-2-style splitters never join characters.

    That is before a line break that follows something other than white space; without any, it stays whole.
    """
    text, wanted = "", BLOCK
    for piece in pieces:
        text += piece
        if len(text) >= wanted:
            match = re.match(r".*\S(?=\r?\n)", text, re.DOTALL)
            if match:
                yield match[0], False
                text = text[match.end() :]
            wanted = max(BLOCK, 2 * len(text))  # an endless line is not searched again for every piece
    yield text, True


def shakespeare(seed: int = 1337, size: int = 0) -> Corpus:
    """Tiny Shakespeare, downloaded once; without a network, verse of that size with the reason in its info.

    ValueError: the file or the download is another text, told by its sha256; no wrong download is kept.
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
        what = f"its sha256 is {found}, Tiny Shakespeare's is {SHA256}"
        raise ValueError(f"{path} from {URL} is refused: {what}; delete that file if it is there")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(data)
        part.replace(path)
    corpus = open_corpus(str(path))
    corpus.name = "shakespeare"
    return corpus


def stand_in_notice(info: dict) -> str:
    """The boxed message for a corpus that stands in for another; "" for any other corpus."""
    if "stand_in_for" not in info:
        return ""
    text = f"""TINY SHAKESPEARE COULD NOT BE DOWNLOADED. Another text is used: losses cannot be compared.
What failed: {info["stand_in_reason"]}
             {URL}
Used instead: verse, a generated play of the same size (see corpora.py).
For the real text, save it as tinyshakespeare.txt and run
python data.py --input=tinyshakespeare.txt --name=shakespeare_char --tokenizer=char
or, with network again, python data.py --name=shakespeare_char"""
    width = max(map(len, text.splitlines()))
    edge = "+" + "-" * (width + 2) + "+"
    return "\n".join([edge, *(f"| {line:{width}} |" for line in text.splitlines()), edge])


def sums(seed: int = 1337, size: int = 0) -> Corpus:
    """Worked arithmetic problems, JSONL lines {"prompt", "response"}; without a size about 20,000 of them.

    Difficulty 1-5 is the number of steps: from 3 on they multiply, from 4 on divide; the answer comes last.
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


# verse: plays of a probabilistic context-free grammar. `Head = weight symbols | ...` is a rule, `Head: words`
# a class whose r-th word (from 0) has weight 1 / (r + 2), as in Zipf (1949). `Act.sp` is two rules, singular
# and plural, with `.n` in them for the same letter; x is a number that "the" leaves open. Plurals of nouns
# and singulars of verbs take an s unless written. / is a line break, // an empty line. HERE is PLACE again,
# NEWk the k-th of three names, TURNk (who speaks next) and NAMEk the k-th after the speaker's, in that
# circle.
# The alternatives of every rule begin with different words (LL(1): Lewis and Stearns, 1968; a test proves it)
# so, reading from the left, there is never a choice: every text has exactly one derivation.
NAMES = "Anne Boris Clara Duncan Edith Felix Greta Hugo Iris Jonas Kate Leon".split()
PLACES = "forest garden castle harbour market tower meadow kitchen chapel valley palace desert".split()
GRAMMAR = r"""
Scene = 1 SCENE : The PLACE . Enter NEW0 , NEW1 and NEW2 . // TURN0 : / Speech // Turn Turn Turns
Turns = 4 Turn Turns | 1 [Exeunt.] //   Turn = 1 Next : / Speech //   Next = 1 TURN1 | 1 TURN2
Speech = 1 O gentle Name , Sentence More | 1 alas , poor Name , Sentence More | 12 Sentence More
Sentence = 10 Clause Join | 3 when Clause , / Clause . | 2 if Clause , / then Clause . | 1 why Ask ? \
 | 1 though Clause , / yet Clause . | 1 let Obj Vi.p Way ! | 1 upon my honour , Clause . \
 | 1 it was foretold that Clause . | 1 who would have thought that Clause ? \
 | 1 by all the angels of heaven , / Clause .   More = 1 | 2 / Sentence More   Name = 1 NAME1 | 1 NAME2
Join = 6 . | 3 , / And Clause . | 1 ; / but Clause .   And = 4 and | 2 for | 1 so
Ask = 1 does Det.x Person.s Who.s Vi.p Way | 1 do Det.x Person.p Who.p Vi.p Way | 2 must you Vt.p Obj
Clause = 5 Det.s Subj.s | 4 Det.p Subj.p | 9 Det.x Subj.x | 4 I Vow | 2 you Do.p | 1 we Do.p | 1 Name Act.s
Subj.spx = 2 Adj Bare.n | 5 Bare.n   Bare.sp = 5 Person.n Who.n Act.n | 3 Thing.n That.n Fare.n
Bare.x = 3 Bare.s | 2 Bare.p   Act.sp = 8 Do.n | 2 Be.n State   Vow = 6 Do.p | 2 am State | 2 Plead you Way
Do.sp = 5 Vt.n Obj | 3 Vi.n Way | 1 Say.n that Clause   Fare.sp = 3 Vm.n Way | 3 Be.n State | 2 Vc.n Obj
State = 5 Adj | 1 so Adj that Clause | 1 as Adj as Obj   Be.ps: are/is   Aim.x = 3 Aim.s | 2 Aim.p
Obj = 4 Det.s Goal.s | 3 Det.p Goal.p | 7 Det.x Goal.x | 1 Name   Goal.spx = 2 Adj Aim.n | 5 Aim.n
Aim.sp = 2 Person.n Who.n | 4 Thing.n That.n   That.sp = 12 | 2 of Mass | 2 that Near
Who.sp = 14 | 2 who Vi.n | 2 whom Near | 1 / who Vt.n Obj   Lord.sp = 1 Person.n Who.n Vt.n
Near = 5 I Vt.p | 3 you Vt.p | 1 Name Vt.s | 2 Det.x Lord.x   Lord.x = 3 Lord.s | 2 Lord.p
Way = 6 | 3 Adv | 2 at Hour | 2 in this HERE | 1 like Obj | 2 by the light of the moon \
 | 2 with a heavy heart | 1 before the break of day | 1 from morning to midnight
Det.s = 4 a | 2 this | 2 every   Det.p = 3 these | 2 those | 2 all | 1 two   Det.x = 6 the | 3 my | 2 your
Person.sp: king queen maid soldier child/children lady/ladies brother fool sailor thief/thieves sister \
 monk knight poet friend beggar miller piper hunter widow shepherd stranger baker pilgrim neighbour merchant
Thing.sp: rose sword star heart bird crown river song ship letter lamp fire wolf/wolves tree ring candle \
 storm bell dream stone grave drum mirror door book cup horse cloud field wave ghost bridge sparrow lantern
Vt.ps: love fear see follow praise trust serve know hate seek forget mock blame need watch/watches hear find \
 save curse want paint pity/pities leave keep remember obey forgive admire betray resemble describe escape
Vi.ps: sing weep sleep dance laugh wait wander kneel pray tremble smile work whisper march/marches sigh rest \
 hide linger shiver travel   Plead: thank beg warn pardon   Say.ps: think swear hope say doubt
Vm.ps: shine burn fade fall rise break bloom gleam vanish/vanishes turn drift   Hour: night dawn dusk noon
Vc.ps: wound warm wake guard haunt bless/blesses cover please burden   Mass: gold silver glass winter sorrow
Adj: sweet cold brave fair dark proud kind pale wise wild true young bright cruel merry golden quiet \
 noble weary silent lonely bold tender humble secret bitter blind hungry famous broken patient faithful
Adv: softly again alone gladly slowly tonight sadly bravely forever together meekly afar proudly humbly anew
"""


def _parse(table: str) -> dict[str, list[tuple[float, tuple[str, ...]]]]:
    """{head: [(probability, symbols), ...]}; a symbol that is no head is a word, a mark or a name."""
    rules = {}
    for rule in re.split(r"\n| {3}", table.replace("\\\n", "").strip()):
        head, is_class, body = re.fullmatch(r"(\S+?)(:?)(?: =)? (.*)", rule).groups()
        base, _, numbers = head.partition(".")
        for form, n in enumerate(numbers or [""]):
            if is_class:
                words = [word.split("/") if "/" in word else (word, word + "s") for word in body.split()]
                options = [(1 / (rank + 2), (forms[form],)) for rank, forms in enumerate(words)]
            else:
                options = [option.replace(".n", f".{n}").split() for option in body.split("|")]
                options = [(int(weight), tuple(symbols)) for weight, *symbols in options]
            total = sum(weight for weight, _ in options)
            rules[f"{base}.{n}".rstrip(".")] = [(weight / total, symbols) for weight, symbols in options]
    return rules


RULES = _parse(GRAMMAR)
HEADING = math.log(math.perm(len(NAMES), 3) * len(PLACES))  # nats of a cast and a place, all equally likely


def verse_entropy() -> float:
    """Nats per character of verse, in closed form: E[-log p(scene)] / E[characters of a scene].

    Both add up over a derivation, so a rule's means are its own part (its choice's entropy; its words) plus
    the means of the rules in it: means = own + inner means, a linear system (Grenander 1967, Chi 1999). That
    is the text's entropy because a text has one derivation only.
    """
    rows = {head: row for row, head in enumerate(RULES)}
    # A word counts the space or line break before it; names are all equally likely, so a mean length will do.
    lengths = {"/": 0, "//": 1} | dict.fromkeys(",.;:!?", 1)
    for words, symbols in (NAMES, "NEW0 NEW1 NEW2 TURN0 TURN1 TURN2 NAME1 NAME2"), (PLACES, "PLACE HERE"):
        lengths |= dict.fromkeys(symbols.split(), 1 + sum(map(len, words)) / len(words))
    own, inner = np.zeros((len(rows), 2)), np.zeros((len(rows), len(rows)))
    for row, options in enumerate(RULES.values()):
        for p, symbols in options:
            length = sum(lengths.get(symbol, len(symbol) + 1) for symbol in symbols if symbol not in rows)
            own[row] += -p * math.log(p), p * length
            np.add.at(inner[row], [rows[symbol] for symbol in symbols if symbol in rows], p)
    nats, characters = np.linalg.solve(np.eye(len(rows)) - inner, own)[rows["Scene"]]
    return float((HEADING + nats) / characters)


def verse_scenes(seed: int = 1337) -> Iterator[tuple[str, float]]:
    """Endless scenes, each with its exact log-probability in nats."""
    rules = {}
    for head, options in RULES.items():
        limits = list(accumulate(p for p, _ in options))[:-1]
        rules[head] = limits, [(math.log(p), symbols[::-1]) for p, symbols in options]
    uniform = random.Random(seed).random  # its numbers are promised to be the same in every version of Python
    while True:
        names = NAMES[:]
        cast = [names.pop(int(uniform() * len(names))) for _ in range(3)]
        place = PLACES[int(uniform() * len(PLACES))]
        log_prob, speaker, words, stack = -HEADING, 0, [], ["Scene"]
        while stack:
            symbol = stack.pop()
            if symbol in rules:
                limits, options = rules[symbol]
                nats, symbols = options[bisect(limits, uniform())]
                log_prob += nats
                stack += symbols
                continue
            if symbol in ("PLACE", "HERE"):
                symbol = place
            elif symbol[:-1] in ("NEW", "TURN", "NAME"):
                who = (speaker + int(symbol[-1])) % 3
                speaker = who if symbol[:-1] == "TURN" else speaker
                symbol = cast[who] if symbol[:-1] == "NAME" else cast[who].upper()
            words.append(symbol)
        text = re.sub(r" ([,.;:!?])", r"\1", " ".join([*words, ""]))
        lines = text.replace(" // ", "\n\n").replace(" / ", "\n").split("\n")
        yield "\n".join(line[:1].upper() + line[1:] for line in lines), log_prob


def verse(seed: int = 1337, size: int = 0) -> Corpus:
    """Scenes until they reach the size. A whole pass adds its log_prob (nats) and characters to info."""
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
