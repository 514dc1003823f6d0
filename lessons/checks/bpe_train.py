"""What the grader knows about lesson 5: byte-pair encoding, training."""

import random
from collections import Counter
from itertools import pairwise

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


def right_part_kept(ids, pair, new):
    where = places(ids, pair)
    return [new if i in where else here for i, here in enumerate(ids)]


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


def past_the_end(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        found = ids[i] == pair[0] and ids[i + 1] == pair[1]
        out.append(new if found else ids[i])
        i += 2 if found else 1
    return out


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
    # then: no text; one that is soon used up; nothing to merge; ties, and pairs that occur once at the end
    return [(text, 272), ("", 260), ("ab ab", 290), ("low low low", 256), ("zz yy xx zz yy xx", 262)]


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
    if not isinstance(merges, (list, dict)):
        return merges
    return [tuple(pair) if isinstance(pair, list) else pair for pair in merges]


exercises = {
    "5a": dict(
        name="count_pairs",
        reference=reference_count_pairs,
        twin="find_merges keeps its counts to itself and corrects them instead of counting anew",
        inputs=inputs_count_pairs,
        numbers=meetings,
        wrong={
            "word counted once": (lambda words: counted(words, weigh=lambda n: 1),
                "Yours counts {yours} pairs, the text has {right}: what is the number of a word for?"),
            "across borders": (across_borders,
                "You count {yours} pairs, {right} are inside words. Who is the last letter's neighbour?"),
            "overlaps skipped": (lambda words: counted(words, without_overlaps),
                "How often is (a, a) in 'aaaa'? Here overlaps count, as the text above 5a says."),
            "order ignored": (lambda words: counted(words, lambda w: map(tuple, map(sorted, pairwise(w)))),
                "(a, b) and (b, a) are two pairs: 'on' is not 'no'."),
            "once a word": (lambda words: counted(words, lambda word: {*pairwise(word)}),
                "A pair can occur several times in one word: (a, b) in 'abab'."),
            "last pair lost": (lambda words: counted(words, lambda word: pairwise(word[:-1])),
                "Yours counts {yours} pairs of {right}: how many pairs has a word of two letters?"),
            "every second pair": (lambda words: counted(words, lambda w: zip(w[::2], w[1::2], strict=False)),
                "'abc' has the pairs (a, b) and (b, c). Is the second one in yours?"),
            "single ids": (lambda words: counted(words, lambda word: word),
                "These are counts of single ids. Which two stand side by side?"),
            "wraps around": (lambda words: counted(words, lambda w: zip(w, w[1:] + w[:1], strict=True)),
                "A last letter is paired with the first of its word. What is word[-1] in Python?"),
            "count overwritten": (overwritten,
                "A pair occurs in several words, and yours keeps the count of one."),
        },
        properties=[twice_the_words],
        hints=[
            "If a word occurs 5 times in the text, how often do its pairs?",
            "Two loops: over the words with their numbers, and over the neighbours in a word.",
            "for each word and its n: for each i but the last: counts[word[i], word[i + 1]] += n",
        ],
    ),
    "5b": dict(
        name="merge",
        reference=reference_merge,
        twin="the project merges inside its array of all words, and never a list by itself",
        inputs=inputs_merge,
        wrong={
            "right part kept": (right_part_kept,
                "The left part was replaced and the right part is still there: the new id stands for both."),
            "overlaps replaced": (overlaps_replaced,
                "'aaa' becomes two new ids here: the a in the middle was used twice."),
            "nothing merged": (lambda ids, pair, new: list(ids),
                "Nothing was merged. Is a list ever equal to a tuple in Python?"),
            "first place only": (first_place_only,
                "Only the first place was merged. The pair may stand there again."),
            "places have moved": (shifted_places,
                "The list got shorter while you went by its old places: after one merge, where is the next?"),
            "either order": (either_order,
                "(b, a) was merged, too. Then nobody can tell what the new id stands for."),
            "last id lost": (last_id_lost,
                "The last id is missing where it is not part of a pair."),
            "past the end": (past_the_end,
                "The last id has no right neighbour. What is asked of it?"),
            "changed in place": (changed_in_place,
                "The ids are right, but the caller's list was changed. Build a new one."),
            "from the right": (from_the_right,
                "'aaa' has its first a left over here. From which end does the rule go?"),
        },
        properties=[one_new_for_two],
        hints=[
            "After a merge at place i, at which place do you go on?",
            "Walk with an index of your own, which moves by one or by two, and fill a new list.",
            "if ids[i], ids[i + 1] is the pair: put new, i += 2; else: put ids[i], i += 1; mind the last id.",
        ],
    ),
    "5c": dict(
        name="train",
        reference=reference_train,
        project=find_merges,
        slow=twin_train,
        forbidden=("BPETokenizer", "train_tokenizer"),
        needs=["5a", "5b"],
        inputs=inputs_train,
        call=list_of_pairs,
        wrong={
            "counted only once": (counted_once,
                "No token of yours is longer than two bytes. What is counted in round two?"),
            "first met wins ties": (lambda text, size: twin_train(text, size, rule=first_met),
                "Of equally frequent pairs yours takes the first met. Lines in another order, other merges?"),
            "largest pair wins ties": (lambda text, size: twin_train(text, size, rule=largest),
                "Of equally frequent pairs yours takes the largest; the rule says the smallest."),
            "first met, no early end": (lambda text, size: twin_train(text, size, rule=first_met, least=1),
                "Two things: of equally frequent pairs the first met wins, and rare pairs are merged, too."),
            "largest, no early end": (lambda text, size: twin_train(text, size, rule=largest, least=1),
                "Two things: of equally frequent pairs the largest wins, and rare pairs are merged, too."),
            "256 too many": (lambda text, size: reference_train(text, size + 256),
                "vocab_size merges, and 256 bytes besides. How many tokens are there before any merge?"),
            "letters, not bytes": (lambda text, size: twin_train(text, size, code=lambda w: [*map(ord, w)]),
                "An id above the vocabulary: is that a letter, or a byte of UTF-8?"),
            "words counted once": (lambda text, size: twin_train(text, size, words_of=lambda t: {*split(t)}),
                "Each different word counts once here. How often does it occur?"),
            "no word borders": (lambda text, size: twin_train(text, size, words_of=lambda t: [t]),
                "Some of your tokens reach over a blank into the next word. Where is `split`?"),
            "cut at blanks": (lambda text, size: twin_train(text, size, words_of=str.split),
                "No token of yours has a blank in it. `split` leaves each blank with the word after it."),
            "no early end": (lambda text, size: twin_train(text, size, least=1),
                "Pairs that occur only once are merged, too. When does training end early?"),
            "rarest first": (lambda text, size: twin_train(text, size, rule=rarest),
                "Your first merge is the rarest pair. Which one saves most?"),
            "never merged": (never_merged,
                "The same pair comes again and again: do the words change after a merge?"),
            "ids from 257": (ids_from_257,
                "The first merge makes the id 256: the bytes are 0 to 255."),
            "tokens, not pairs": (as_bytes,
                "These are the bytes of the tokens. The pairs of ids were asked for."),
        },
        properties=[inner_blank],
        picture=first_tokens,
        hints=[
            "Which three steps make one round, and what does a round hand on to the next one?",
            "Words become tuples of bytes first. A round is count_pairs, the rule, and merge in all words.",
            "for new = 256, 257, ...: pair = that of smallest (-count, pair); note it; merge it everywhere.",
        ],
    ),
}  # fmt: skip

predictions = {
    "5.1": dict(
        ask="size of the vocabulary after 100 merges",
        answer=356,
        tol=0.4,
        wrong={
            100: "100 are the merges; the 256 bytes were there before, so it is 356.",
            355: "355 is the last id; with id 0 there are 356.",
            357: "357 counts an end token, which is special and no merge; it is 356.",
        },
    ),
    "5.2": dict(
        ask='how many ids are left of "aaaa" (4 bytes) when the pair (a, a) has been merged once',
        answer=2,
        tol=0.4,
        wrong={
            3: "3 pairs overlap in it; merged are the first two letters and the last two, so 2 ids are left.",
            1: "1 takes a second merge, of the new id with itself; after the first there are 2.",
        },
    ),
}
