"""Verse: generated plays whose entropy is known exactly. No model can have a lower loss than that entropy.

A probabilistic context-free grammar writes them. How to read GRAMMAR:

    Head = 3 symbols | 1 symbols    a rule: each alternative begins with its weight
    Head: word word ...             a class of words: word r (from 0) has weight 1 / (r + 2) (Zipf 1949)
    Act.sp = 8 Do.n | 2 Be.n State  two rules, Act.s (singular) and Act.p (plural); .n becomes the same letter
    Det.x                           a third number: after "the", "my" or "your", singular and plural are open
    king lady/ladies                singular and plural of a noun, plural and singular of a verb; the second
                                    form adds an s unless it is written out
    / and //                        a line break, an empty line
    PLACE HERE                      the place of the scene, and the same place again
    NEW0 NEW1 NEW2                  the three people of a scene; they stand in a circle
    TURN1 NAME1                     the person one place after the speaker: takes the turn, is only named

The alternatives of a rule begin with different words, so the grammar is LL(1) (Lewis and Stearns 1968; a test
proves it). Whoever reads a text from left to right never has a choice: every text has exactly one derivation.
"""

import math
import random
import re
from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate

import numpy as np

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
    """Parse GRAMMAR into {head: [(probability, symbols), ...]}.

    A symbol that is not a head is a word, a punctuation mark, or a name in capitals such as PLACE.
    """
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
HEADING = math.log(math.perm(len(NAMES), 3) * len(PLACES))  # nats of three names and a place, drawn uniformly


def verse_entropy() -> float:
    """Nats per character of verse, in closed form: E[-log p(scene)] / E[characters of a scene].

    Each rule has two means: nats and characters of the text that it writes. Both add up over a derivation:
    means = own + inner @ means. own holds what the rule adds itself (the entropy of its choice; the length of
    its words), inner[row, column] how often rule `column` is used by rule `row`. This linear system is solved
    once (Grenander 1967, Chi 1999). A text has only one derivation, so its probability is that derivation's.
    """
    rows = {head: row for row, head in enumerate(RULES)}
    # Each word counts the blank or line break before it. Names are drawn uniformly: a mean length is enough.
    lengths = {"/": 0, "//": 1} | dict.fromkeys(",.;:!?", 1)
    lengths |= dict.fromkeys("NEW0 NEW1 NEW2 TURN0 TURN1 TURN2 NAME1 NAME2".split(), 1 + mean_length(NAMES))
    lengths |= dict.fromkeys("PLACE HERE".split(), 1 + mean_length(PLACES))
    own = np.zeros((len(rows), 2))  # (rules, 2): nats, characters
    inner = np.zeros((len(rows), len(rows)))  # (rules, rules): expected uses
    for row, options in enumerate(RULES.values()):
        for p, symbols in options:
            length = sum(lengths.get(symbol, len(symbol) + 1) for symbol in symbols if symbol not in rows)
            own[row] += -p * math.log(p), p * length
            np.add.at(inner[row], [rows[symbol] for symbol in symbols if symbol in rows], p)
    nats, characters = np.linalg.solve(np.eye(len(rows)) - inner, own)[rows["Scene"]]
    return float((HEADING + nats) / characters)


def mean_length(words: list[str]) -> float:
    return sum(map(len, words)) / len(words)


def verse_scenes(seed: int = 1337) -> Iterator[tuple[str, float]]:
    """Yield (text, log-probability in nats) of one scene after another, without end."""
    rules = {}
    for head, options in RULES.items():
        limits = list(accumulate(p for p, _ in options))[:-1]
        rules[head] = limits, [(math.log(p), symbols[::-1]) for p, symbols in options]
    uniform = random.Random(seed).random  # the same numbers in every version of Python
    while True:
        names = NAMES[:]
        cast = [names.pop(int(uniform() * len(names))) for _ in range(3)]
        place = PLACES[int(uniform() * len(PLACES))]
        log_prob, speaker = -HEADING, 0
        words = []
        stack = ["Scene"]  # the symbols that are still to be written, the next one last
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
