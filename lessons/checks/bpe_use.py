"""What the grader knows about lesson 6: byte-pair encoding, use."""

import functools
import math
import random
import re
from functools import partial
from itertools import pairwise

from lessons.checks.bpe_train import split
from lessons.common import rows_as_tuples
from tokenizer import BPETokenizer

SAMPLE = (  # what the vocabulary of the checks is learned from
    "the mother of the other brother, to be or not to be; that is the question. it's 1212 of 12.\n\nthey'll "
    "tell; other things there. 안녕 안 łaska ła naïve \U0001f600 \U0001f601 aaaa aaa then\ntell\ntell\n"
)
END = "<|end|>"
TEXTS = [  # and 8 more that are drawn
    "the other brother", "aaaaa aaa aa", "안녕", "łaska", "\U0001f600 \U0001f600\U0001f602", "",
    "  to  be \n\n or", "skate xyz", "it's they'll", "'tell 'other", "1212 12121", "naïveté", "a" + END, END,
    f"to be.{END}{END} not", "<|end|", f"tell{END}!<|user|>the",
]  # fmt: skip


@functools.cache
def built(tokens: tuple, special: tuple) -> BPETokenizer:
    return BPETokenizer(list(tokens), special)


@functools.cache
def learned() -> list[bytes]:
    return BPETokenizer.train([SAMPLE * 3], 330).tokens


def special_ids(n):  # not in the order of names, of which the first begins the last, too
    return {END: n + 2, "<|user|>": n, END + "!": n + 1}


# ---- 6a
def reference_encode(text, tokens, special):
    theirs = {len(tokens) + i: there for i, there in enumerate(special.values())}
    ids = built(tuple(tokens), tuple(special)).encode(text, allow_special=True).tolist()
    return [theirs.get(i, i) for i in ids]


def cut_at(text, names):
    """The text in parts; each name is one, and where two fit, the one that stands first among them."""
    return re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]


def twin_encode(text, tokens, special, words_of=split, pick=min, rounds=len, order=lambda x: sorted(x)[::-1]):
    rank, ids = {token: i for i, token in enumerate(tokens)}, []
    for part in cut_at(text, order(special)):  # "<|end|>!", then "<|end|>"
        if part in special:
            ids.append(special[part])
            continue
        for word in words_of(part):
            parts = [bytes([byte]) for byte in word.encode()]
            for _ in range(rounds(parts)):
                ages = [rank.get(left + right, math.inf) for left, right in pairwise(parts)]
                known = [age for age in ages if age < math.inf]
                if known:
                    i = ages.index(pick(known))
                    parts[i : i + 2] = [parts[i] + parts[i + 1]]
            ids += [rank[piece] for piece in parts]
    return ids


def inputs_encode(seed):
    rng, words = random.Random(seed), SAMPLE.split()
    drawn = [" ".join(rng.choices(words, k=3)) + "".join(rng.choices("aehort n", k=9)) for _ in range(8)]
    return [(TEXTS + drawn, learned(), special_ids(len(learned()))), (TEXTS[:9], learned(), {})]


def each_text(encode, texts, tokens, special):
    """Text -> its ids, so that a verdict names the text."""
    return {text: encode(text, tokens, special) for text in texts}


def by_word(text, tokens, special, ids_of, names=True):
    """Right but for what becomes of a word, and of names, if these are not known."""
    rank, ids = {token: i for i, token in enumerate(tokens)}, []
    for part in cut_at(text, sorted(special, reverse=True) if names else ()):
        name = names and part in special
        ids += [special[part]] if name else [i for word in split(part) for i in ids_of(word, rank)]
    return ids


def longest_match(word, rank):
    data, ids = word.encode(), []
    while data:
        n = next(n for n in range(len(data), 0, -1) if data[:n] in rank)
        ids.append(rank[data[:n]])
        data = data[n:]
    return ids


def from_the_left(word, rank):
    parts, i = [bytes([byte]) for byte in word.encode()], 0
    while i < len(parts) - 1:
        if parts[i] + parts[i + 1] in rank:
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        else:
            i += 1
    return [rank[part] for part in parts]


def as_letters(text, tokens, special, id_of=lambda letter, rank: rank[letter.encode()]):
    """Right for ASCII; other letters are looked up one by one."""
    if text.isascii():
        return reference_encode(text, tokens, special)
    rank = {token: i for i, token in enumerate(tokens)}
    return [id_of(letter, rank) for letter in text]


def decodes_back(encode, texts, tokens, special):
    for text in texts:
        back = reference_decode(encode(text, tokens, special), tokens, special)
        if back != text:
            return f"your ids of {text!r} decode to {back!r}"
    return ""


# ---- 6b
def reference_decode(ids, tokens, special):
    ours = {there: len(tokens) + i for i, there in enumerate(special.values())}
    return built(tuple(tokens), tuple(special)).decode([ours.get(i, i) for i in ids])


def twin_decode(ids, tokens, special):
    names, data = {i: name for name, i in special.items()}, b""
    for i in ids:
        data += names[i].encode() if i in names else tokens[i]
    return data.decode("utf-8", errors="replace")


def inputs_decode(seed):
    rng, tokens = random.Random(seed), learned()
    special = special_ids(len(tokens))
    ids = reference_encode(f"the other 안녕 łaska\U0001f602{END}<|user|>then", tokens, special)
    return [
        (ids, tokens, special),
        (list("안녕".encode())[:4], tokens, special),  # the second letter is cut
        (rng.choices(range(300), k=17) + [255, 0x80], tokens, special),  # as from an untrained model
        ([104, 105], tokens, {}),
        ([104, special[END]], tokens, special),
        ([], tokens, special),
    ]


def bytes_of(ids, tokens, special, between=b""):
    names = {i: name.encode() for name, i in special.items()}
    return between.join(names[i] if i in names else tokens[i] for i in ids)


def read(ids, tokens, special, errors="replace", encoding="utf-8", between=b""):
    return bytes_of(ids, tokens, special, between).decode(encoding, errors)


def one_by_one(ids, tokens, special, errors="strict"):
    return "".join(read([i], tokens, special, errors) for i in ids)


def there_and_back(decode, ids, tokens, special):
    text = "to be or 안녕" + "".join(special)
    back = decode(reference_encode(text, tokens, special), tokens, special)
    return "" if back == text else f"{text!r}, encoded and decoded, is {back!r}"


# ---- 6c
def reference_compare(runs, text, body):
    rows = []
    for name, run in runs.items():
        bits = run["loss"] * run["tokens"] / math.log(2)
        parameters = body + run["vocab_size"] * run["n_embd"]
        rows.append((name, bits / len(text.encode("utf-8")), parameters))
    return sorted(rows, key=lambda row: row[1])


def inputs_compare(seed):
    rng = random.Random(seed)
    losses = dict(letters=(2.3, 71, 65), many=(4.4, 24, 900), few=(3.3, 42, 300), bytes=(2.6, 90, 256))
    runs = {}
    for name, (loss, tokens, V) in losses.items():
        runs[name] = dict(loss=loss + rng.random() / 9, tokens=tokens, vocab_size=V, n_embd=48)
    runs["few"]["n_embd"] = 96
    return [(runs, "ROMEO: zażółć gęślą jaźń, 안녕, and a good deal more of that kind.", 7321)]


def compared(runs, text, body, bits=None, weighs=None, key=lambda row: row[1]):
    """Right but for one part: the number that ranks, the parameters, or the order."""
    rows = []
    for name, right, parameters in reference_compare(runs, text, body):
        loss, n, V, C = (runs[name][what] for what in ("loss", "tokens", "vocab_size", "n_embd"))
        parameters = weighs(V, C, body) if weighs else parameters
        rows.append((name, bits(loss, n, text) if bits else right, parameters))
    return sorted(rows, key=key)


def one_row(compare, text, body, **changed):
    run = dict(loss=2.5, tokens=60, vocab_size=65, n_embd=48)
    return compare({"a": {**run, **changed}}, text, body)[0]


def same_for_any_tokens(compare, runs, text, body):
    """The same nats in half as many tokens: the same bits per byte."""
    one, two = (one_row(compare, text, body, **run)[1] for run in ({}, dict(loss=5.0, tokens=30)))
    apart = abs(one - two) > 1e-3 * abs(one)
    return f"the same nats in half as many tokens make {two:.2f} of {one:.2f} bits per byte" if apart else ""


def rows_are_paid_for(compare, runs, text, body):
    more = one_row(compare, text, body, vocab_size=165)[2] - one_row(compare, text, body)[2]
    return "" if more == 4800 else f"100 tokens more, each with a row of 48 numbers, make {more} parameters"


def best_first(compare, runs, text, body):
    bits = [row[1] for row in compare(runs, text, body)]
    return "" if bits == sorted(bits) else "the rows are not in order: fewest bits per byte first"


exercises = {
    "6a": dict(name="encode", reference=reference_encode, project=BPETokenizer, slow=twin_encode,
        forbidden=("tiktoken", "encode_slowly"), inputs=inputs_encode, call=each_text,
        properties=[decodes_back],
        wrong={
            "longest match first": partial(by_word, ids_of=longest_match),
            "longest match, names cut": partial(by_word, ids_of=longest_match, names=False),
            "from the left": partial(by_word, ids_of=from_the_left),
            "leftmost pair again": partial(twin_encode, pick=lambda ages: ages[0]),
            "leftmost pair, names cut":
                lambda text, tokens, special: twin_encode(text, tokens, {}, pick=lambda ages: ages[0]),
            "youngest first": partial(twin_encode, pick=max),
            "one merge a word": partial(twin_encode, rounds=lambda parts: 1),
            "no merge": partial(twin_encode, rounds=lambda parts: 0),
            "whole words or bytes": partial(
                by_word, ids_of=lambda w, rank: [rank[w.encode()]] if w.encode() in rank else [*w.encode()]),
            "letters, not bytes": as_letters,
            "letters, by index": partial(as_letters, id_of=lambda x, rank: [*rank].index(x.encode())),
            "list of letters": partial(by_word, ids_of=lambda word, rank: [rank[x] for x in word]),
            "list of letters, by index": partial(by_word, ids_of=lambda w, r: [[*r].index(x) for x in w]),
            "code points": partial(as_letters, id_of=lambda letter, rank: ord(letter)),
            "special token cut up": lambda text, tokens, special: reference_encode(text, tokens, {}),
            "special token lost": lambda text, tokens, special: [
                i for i in reference_encode(text, tokens, special) if i < len(tokens)],
            "shorter name first": partial(twin_encode, order=list),
            "first name only": partial(twin_encode, order=lambda special: [*special][:1]),
            "ids in order": lambda text, tokens, special: twin_encode(
                text, tokens, {name: len(tokens) + i for i, name in enumerate(special)}, order=list),
            "no names, cut everywhere": lambda text, tokens, special: [
                i for part in ([text] if special else text) for i in reference_encode(part, tokens, special)],
            "blanks lost": partial(twin_encode, words_of=str.split),
            "words not cut": partial(twin_encode, words_of=lambda text: [text]),
        }),
    "6b": dict(name="decode", reference=reference_decode, project=BPETokenizer, slow=twin_decode,
        inputs=inputs_decode, properties=[there_and_back],
        wrong={
            "token by token": one_by_one,
            "token by token, replaced": partial(one_by_one, errors="replace"),
            "errors ignored": partial(read, errors="ignore"),
            "strict": partial(read, errors="strict"),
            "latin-1": partial(read, encoding="latin-1"),
            "ids as code points": lambda ids, tokens, special: "".join(map(chr, ids)),
            "special tokens lost": lambda ids, k, names: read([i for i in ids if i < len(k)], k, names),
            "special tokens not known": lambda ids, tokens, special: read(ids, tokens, {}),
            "first name only": lambda ids, tokens, names: read(ids, tokens, dict([*names.items()][:1])),
            "ids in order": lambda ids, tokens, special: read(
                ids, tokens, {name: len(tokens) + i for i, name in enumerate(special)}),
            "blanks between": partial(read, between=b" "),
            "written as bytes": lambda *args: str(bytes_of(*args)),
            "bytes": bytes_of,
        }),
    "6c": dict(name="compare", reference=reference_compare,
        twin="evaluate.py scores one model, GPT counts its own parameters; a test holds both against it",
        inputs=inputs_compare, call=rows_as_tuples,
        properties=[same_for_any_tokens, rows_are_paid_for, best_first],
        wrong={
            "loss per token": partial(compared, bits=lambda loss, n, text: loss),
            "perplexity per token": partial(compared, bits=lambda loss, n, text: math.exp(loss)),
            "bits per token": partial(compared, bits=lambda loss, n, text: loss / math.log(2)),
            "nats per byte": partial(compared, bits=lambda loss, n, text: loss * n / len(text.encode())),
            "times ln 2": partial(compared, bits=lambda x, n, t: x * n * math.log(2) / len(t.encode())),
            "bits per character": partial(compared, bits=lambda x, n, t: x * n / math.log(2) / len(t)),
            "upside down": partial(compared, bits=lambda x, n, t: x * len(t.encode()) / math.log(2) / n),
            "ranked by loss": lambda runs, t, b: compared(runs, t, b, key=lambda row: runs[row[0]]["loss"]),
            "not ranked": lambda runs, t, b: compared(runs, t, b, key=lambda row: [*runs].index(row[0])),
            "worst first": partial(compared, key=lambda row: -row[1]),
            "embedding forgotten": partial(compared, weighs=lambda V, C, body: body),
            "one number per token": partial(compared, weighs=lambda V, C, body: body + V),
            "embedding twice": partial(compared, weighs=lambda V, C, body: body + 2 * V * C),
            "embedding alone": partial(compared, weighs=lambda V, C, body: V * C),
        }),
}  # fmt: skip

predictions = {
    "6.1": dict(answer=6, tol=0.4),
    "6.2": dict(answer=2.885, tol=0.02),
}
