"""What the grader knows about lesson 5: byte-pair encoding, training."""

import random
from collections import Counter
from itertools import pairwise

from lessons.common import changed, rows_as_tuples
from tokenizer import BPETokenizer, find_merges

BYTES = [bytes([byte]) for byte in range(256)]
split = BPETokenizer(BYTES).split


# ---- 5a. find_merges keeps its counts to itself, and corrects them instead of counting anew.
def reference_count_pairs(words):
    counts = {}
    for word, n in words.items():
        for i in range(len(word) - 1):
            pair = word[i], word[i + 1]
            counts[pair] = counts.get(pair, 0) + n
    return counts


def inputs_count_pairs(seed):
    rng = random.Random(seed)
    ids = [97, 98, 99, 195, 300]
    words = {tuple(rng.choices(ids, k=k)): rng.randint(2, 9) for k in (2, 3, 3, 4, 5, 6, 7)}
    words |= {(97,) * 4: 3, (98, 97): 5, (97, 98, 97, 98): 2, (99,): 7}  # a run, a repeat, one letter
    return [(words,), ({(101, 101, 101): 4, (98,): 2},), ({},)]


def counted(words, pairs_of=pairwise, weigh=lambda n: n):
    counts = Counter()
    for word, n in words.items():
        for pair in pairs_of(word):
            counts[pair] += weigh(n)
    return dict(counts)


def across_borders(words):
    return counted({tuple(i for word, n in words.items() for i in word * n): 1})


def without_overlaps(word):
    i = 0
    while i < len(word) - 1:
        yield word[i : i + 2]
        i += 2 if word[i : i + 3] == word[i : i + 1] * 3 else 1


def overwritten(words):
    return {pair: n for word, n in words.items() for pair in pairwise(word)}


def meetings(value, words):
    return dict(yours=sum(value.values()), right=sum(n * max(len(word) - 1, 0) for word, n in words.items()))


def twice_the_words(count_pairs, words):
    """With every word twice as often, each pair is counted twice as often."""
    once, twice = count_pairs(words), count_pairs({word: 2 * n for word, n in words.items()})
    off = [pair for pair in once if twice.get(pair) != 2 * once[pair]]
    return f"with every word twice as often, {off[0]} should be counted twice as often" if off else ""


# ---- 5b. The project merges inside its array of all words, or bytes in one word: never a list of ids.
def reference_merge(ids, pair, new):
    out, used = [], False
    for i, here in enumerate(ids):
        if used:
            used = False
        elif i + 1 < len(ids) and (here, ids[i + 1]) == pair:
            out.append(new)
            used = True
        else:
            out.append(here)
    return out


def inputs_merge(seed):
    rng = random.Random(seed)
    a, b, c, new = rng.sample(range(100, 400), 4)
    ids = [*rng.choices([a, b, c], k=17), b, a, b, a, b]  # "ba" stands there, too; a pair at the end
    return [
        (ids, (a, b), new),
        ([a, b, c, *ids, c, a], (a, b), new),  # a pair at the beginning, half of one at the end
        ([c, a, a, a, c, a, a, a, a], (a, a), new),
        ([c, b, a, c], (a, b), new),  # nothing to merge
        ([], (a, b), new),
    ]


def places(ids, pair):
    return [i for i in range(len(ids) - 1) if (ids[i], ids[i + 1]) == pair]


def overlaps_replaced(ids, pair, new):
    where = places(ids, pair)
    return [new if i in where else here for i, here in enumerate(ids) if i in where or i - 1 not in where]


def first_place_only(ids, pair, new):
    where = places(ids, pair)
    return [*ids[: where[0]], new, *ids[where[0] + 2 :]] if where else list(ids)


def shifted_places(ids, pair, new):
    out = list(ids)
    for i in places(ids, pair):
        out[i : i + 2] = [new]
    return out


def either_order(ids, pair, new):
    out = []
    for here in ids:
        if out and (out[-1], here) in (pair, pair[::-1]):
            out[-1] = new
        else:
            out.append(here)
    return out


def last_id_lost(ids, pair, new):
    out = reference_merge(ids, pair, new)
    return out if places(ids, pair)[-1:] == [len(ids) - 2] else out[:-1]


def changed_in_place(ids, pair, new):
    ids[:] = reference_merge(ids, pair, new)
    return ids


def from_the_right(ids, pair, new):
    return reference_merge(ids[::-1], pair[::-1], new)[::-1]


def one_new_for_two(merge, ids, pair, new):
    """Each new id stands for two, so that is how much shorter the list is."""
    out = merge(ids, pair, new)
    short, made = len(ids) - len(out), out.count(new)
    return "" if short == made else f"{made} new ids, and the list is shorter by {short}: each replaces two"


# ---- 5c
def reference_train(text, vocab_size):
    return find_merges(Counter(split(text)), vocab_size - 256)


def twin_train(text, vocab_size, words_of=split, code=lambda word: [*word.encode()], rule=None, least=2):
    rule = rule or (lambda counts: min(counts, key=lambda pair: (-counts[pair], pair)))
    words, merges = [code(word) for word in words_of(text)], []
    for new in range(256, vocab_size):
        counts = Counter()
        for ids in words:
            counts.update(pairwise(ids))
        if not counts or counts[rule(counts)] < least:
            break
        merges.append(rule(counts))
        words = [reference_merge(ids, merges[-1], new) for ids in words]
    return merges


WORDS = "to be or not the other mother łaska 안녕 안 naïve 1212 it's aaaa aaa \U0001f600 \U0001f601".split()


def inputs_train(seed):
    rng = random.Random(seed)
    text = "the mother  aaaa 안녕 \U0001f600\n" + " ".join(rng.choices(WORDS, k=40))
    # then: no text; one that is soon used up; nothing to merge; ties, and pairs that occur once at the end;
    # capitals
    return [(text, 272), ("", 260), ("ab ab", 290), ("low low low", 256), ("zz yy xx zz yy xx", 262),
            ("Ab ab Ab AB", 262)]  # fmt: skip


def first_met(counts):
    return max(counts, key=counts.get)


def largest(counts):
    return max(counts, key=lambda pair: (counts[pair], pair))


def rarest(counts):
    return min(counts, key=lambda pair: (counts[pair], pair))


def counted_once(text, vocab_size):
    counts = Counter(pair for word in split(text) for pair in pairwise(word.encode()))
    pairs = sorted(counts, key=lambda pair: (-counts[pair], pair))
    return [pair for pair in pairs if counts[pair] > 1][: vocab_size - 256]


def never_merged(text, vocab_size):
    return twin_train(text, min(vocab_size, 257)) * (vocab_size - 256)


def ids_from_257(text, vocab_size):
    return [tuple(i + (i > 255) for i in pair) for pair in reference_train(text, vocab_size)]


def as_bytes(text, vocab_size):
    return tokens_of(reference_train(text, vocab_size))[256:]


def tokens_of(merges):
    tokens = [*BYTES]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def inner_blank(train, text, vocab_size):
    bad = [token for token in tokens_of(train(text, vocab_size)) if b" " in token.lstrip()]
    return f"the token {bad[0].decode(errors='replace')!r} reaches from one word into the next" if bad else ""


def first_tokens(train, text, vocab_size):
    return [repr(token.decode(errors="replace")) for token in tokens_of(train(text, vocab_size))[256:266]]


def list_of_pairs(train, text, vocab_size):
    """A pair may be a list, and the merges a dict from pair to id, whose order is theirs."""
    merges = train(text, vocab_size)
    return rows_as_tuples(lambda: [*merges] if isinstance(merges, dict) else merges)


exercises = {
    "5a": dict(name="count_pairs", reference=reference_count_pairs,
        twin="find_merges keeps its counts to itself and corrects them instead of counting anew",
        inputs=inputs_count_pairs, numbers=meetings, properties=[twice_the_words],
        wrong={
            "word counted once": lambda words: counted(words, weigh=lambda n: 1),
            "across borders": across_borders,
            "overlaps skipped": lambda words: counted(words, without_overlaps),
            "order ignored": lambda words: counted(words, lambda w: map(tuple, map(sorted, pairwise(w)))),
            "once a word": lambda words: counted(words, lambda word: {*pairwise(word)}),
            "last pair lost": lambda words: counted(words, lambda word: pairwise(word[:-1])),
            "every second pair": lambda words: counted(words, lambda w: zip(w[::2], w[1::2], strict=False)),
            "single ids": lambda words: counted(words, lambda word: word),
            "wraps around": lambda words: counted(words, lambda w: zip(w, w[1:] + w[:1], strict=True)),
            "count overwritten": overwritten,
        }),
    "5b": dict(name="merge", reference=reference_merge,
        twin="the project merges inside its array of all words, and never a list by itself",
        inputs=inputs_merge, properties=[one_new_for_two],
        wrong={
            "right part kept": changed(reference_merge, "used = True", "used = False"),
            "overlaps replaced": overlaps_replaced,
            "nothing merged": lambda ids, pair, new: list(ids),
            "first place only": first_place_only,
            "places have moved": shifted_places,
            "either order": either_order,
            "last id lost": last_id_lost,
            "past the end": changed(reference_merge, "i + 1 < len(ids) and (here, ids[i + 1]) == pair",
                                    "here == pair[0] and ids[i + 1] == pair[1]"),
            "changed in place": changed_in_place,
            "from the right": from_the_right,
        }),
    "5c": dict(name="train", reference=reference_train, project=find_merges, slow=twin_train,
        forbidden=("BPETokenizer", "train_tokenizer"), needs=["5a", "5b"], inputs=inputs_train,
        call=list_of_pairs, properties=[inner_blank], picture=first_tokens,
        wrong={
            "counted only once": counted_once,
            "first met wins ties": lambda text, size: twin_train(text, size, rule=first_met),
            "largest pair wins ties": lambda text, size: twin_train(text, size, rule=largest),
            "first met, no early end": lambda text, size: twin_train(text, size, rule=first_met, least=1),
            "largest, no early end": lambda text, size: twin_train(text, size, rule=largest, least=1),
            "256 too many": lambda text, size: reference_train(text, size + 256),
            "letters, not bytes": lambda text, size: twin_train(text, size, code=lambda w: [*map(ord, w)]),
            "words counted once": lambda text, size: twin_train(text, size, words_of=lambda t: {*split(t)}),
            "no word borders": lambda text, size: twin_train(text, size, words_of=lambda t: [t]),
            "cut at blanks": lambda text, size: twin_train(text, size, words_of=str.split),
            "no early end": lambda text, size: twin_train(text, size, least=1),
            "rarest first": lambda text, size: twin_train(text, size, rule=rarest),
            "lower case first": lambda text, size: reference_train(text.lower(), size),
            "never merged": never_merged,
            "ids from 257": ids_from_257,
            "tokens, not pairs": as_bytes,
        }),
}  # fmt: skip

predictions = {
    "5.1": dict(answer=356, tol=0.4),
    "5.2": dict(answer=2, tol=0.4),
}
