# Lesson 5 (unit A): Byte-pair encoding, training: merges from counts
# Before: the models know single letters. Each one costs a step, and a letter that is new has no id.
# Seconds: 6
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 5      your copy, in work/
#     python lessons/run.py check 5      what is right, what is not yet
#     python lessons/run.py show 5       the whole lesson from top to bottom, with its plot

# %%
from collections import Counter
from pathlib import Path

import tokenizer
from lessons.course import claim, save_plot, text, yours_or_ours
from tokenizer import BPETokenizer

BYTES = [bytes([byte]) for byte in range(256)]  # where every vocabulary begins: token = id
split = BPETokenizer(BYTES).split  # text -> its words: "it's  2" -> ["it", "'s", " ", " 2"]

predict_1 = None  # size of the vocabulary after 100 merges
predict_2 = None  # how many ids are left of "aaaa" (4 bytes) when the pair (a, a) has been merged once

# %% [markdown]
# ## From letters to bytes
#
# A vocabulary of letters has two faults. A text becomes long: every letter is a step of the model. And it
# is not closed: a letter that the training text did not have cannot be written at all.
#
# The second fault goes away with bytes. In UTF-8 any text is a row of bytes, and there are only 256 of
# them: "é" is 195, 169. The first fault gets worse: more steps, not fewer.
#
# **Byte-pair encoding** mends it. Start with the bytes. Find the two neighbours that stand side by side
# most often, and give the pair an id of its own. Repeat. Frequent words end up as one id, rare ones as a
# few, and whatever comes can still be written, byte by byte if need be. The idea is from compression
# (Gage, 1994), and was first used for words by Sennrich et al. (2016).

# %%
if __name__ == "__main__":
    claim(256, len(BYTES), tol=0)
    claim(195, "é".encode()[0], tol=0)
    claim(169, "é".encode()[1], tol=0)
    print(split("To be, or not to be: that's the question."))

# %% [markdown]
# ## 5a. Count the neighbours
#
# Pairs are counted inside words only, so that no token will reach from one word into the next. What a word
# is, a pattern says (`split`, above; Radford et al., 2019). Of these it takes the first that fits:
#
#     's  't  're  've  'm  'll  'd       the end of it's, don't, we're
#     at most one blank, then letters     " question"
#     at most one blank, then digits
#     at most one blank, then signs       "..."
#     what is left: more blanks, line ends
#
# So a blank belongs to the word after it.
#
# Most words of a text are repeats. So each different word is kept once, as a tuple of its ids, with the
# number of times it occurs. One visit to a word then counts for all of its places.
#
# One rule has to be written down, because both ways are in use: **overlaps count**. In "aaaa" the pair
# (a, a) is found 3 times, although only two of these pairs can be merged.


# %%
def count_pairs(words):
    """How often each two neighbours stand side by side in a text. Overlaps count: (a, a) twice in "aaa".

    words: dict, a word as a tuple of ids -> how often it occurs in the text
    -> dict, (left id, right id) -> count, with the pairs that occur.
    """
    raise NotImplementedError("lesson 5a")


# %% [markdown]
# The frequencies matter. In "low low low lowest newest widest" the pairs of `low` are the most frequent,
# 4 places each. If every different word counted once, the ending `est` would win with 3.

# %%
if __name__ == "__main__":
    words = Counter(tuple(word.encode()) for word in "low low low lowest newest widest".split())
    pairs = yours_or_ours(count_pairs, "5a")(words)
    for (left, right), count in sorted(pairs.items(), key=lambda item: -item[1])[:5]:
        print(f"{bytes([left, right]).decode()!r} {count} times")
    claim(4, pairs[tuple(b"lo")], tol=0)
    claim(3, pairs[tuple(b"es")], tol=0)
    claim(3, yours_or_ours(count_pairs, "5a")({tuple(b"aaaa"): 1})[tuple(b"aa")], tol=0)

# %% [markdown]
# ## 5b. Merge one pair
#
# Go from left to right. Where the pair stands, the new id takes its place and both of its parts are used
# up. So in "aaa" the first two are merged and the third is left over. The list that was passed in stays as
# it is.


# %%
def merge(ids, pair, new):
    """The ids with each occurrence of the pair replaced by the new id, from left to right.

    ids: list of int, left as it is; pair: (int, int); new: int -> list of int, shorter by one per place.
    """
    raise NotImplementedError("lesson 5b")


# %%
if __name__ == "__main__":
    for sample in ("aaaa", "aaa", "banana"):
        left, right = sample[-2:].encode()
        print(f"{sample!r}: {yours_or_ours(merge, '5b')(list(sample.encode()), (left, right), 256)}")
    low = yours_or_ours(count_pairs, "5a")({tuple(b"low"): 2, tuple(b"lower"): 1})
    assert low[tuple(b"ow")] == low[tuple(b"lo")] and low[tuple(b"er")] == 1
    claim(3, low[tuple(b"lo")], tol=0)

# %% [markdown]
# ## 5c. Train
#
# By hand, for the words low, low and lower; the letters stand for their bytes:
#
#     l o w     l o w     l o w e r      (l, o) and (o, w) stand 3 times, the others once: merge (l, o)
#     lo w      lo w      lo w e r       (lo, w) stands 3 times: merge it
#     low       low       low e r        no pair stands twice: the end
#
# Count, choose, merge everywhere, repeat. Each round counts what is there *now*, merged ids included: that
# is how tokens grow longer than two bytes.
#
# Which pair is next must not depend on chance, or on the order of the text. The rule of this project: the
# pair with the highest count, and of several the smallest pair of ids, as Python compares tuples. Training
# ends early when no pair occurs twice any more.
#
# The k-th merge, counted from 0, makes the id 256 + k. A vocabulary of 356 tokens has had 100 merges.


# %%
def train(text, vocab_size):
    """The merges that byte-pair encoding learns from a text. It may call `split`, `count_pairs` and `merge`.

    text: str; vocab_size: int, 256 bytes and the merges together -> list of (int, int), the pairs in the
    order in which they were merged; fewer than asked for if no pair occurs twice any more.
    """
    raise NotImplementedError("lesson 5c")


# %% [markdown]
# On the first 30,000 letters of Tiny Shakespeare the first merge joins a blank and `t`: so many words begin
# like that. `he` follows, and after 100 merges there are whole words.
#
# Longest tokens first, here is what 100 merges make. The text got shorter by more than a third.


# %%
def tokens_of(merges):
    """The bytes of every token of a vocabulary, in the order of their ids."""
    tokens = list(BYTES)
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


if __name__ == "__main__":
    letters, is_shakespeare = text()
    sample = letters[:30_000]
    merges = yours_or_ours(train, "5c")(sample, 356)
    tokens = tokens_of(merges)
    print("first:", tokens[256:264])
    print("longest:", sorted(tokens, key=len, reverse=True)[:12])
    left, before = Counter(split(sample)), len(sample.encode())
    joined = {word: list(word.encode()) for word in left}
    for new, pair in enumerate(merges, 256):
        joined = {word: yours_or_ours(merge, "5b")(ids, pair, new) for word, ids in joined.items()}
    after = sum(len(joined[word]) * count for word, count in left.items())
    print(f"{before:,} bytes have become {after:,} ids")
    claim(100, len(merges), tol=0)
    claim(356, len(tokens), tol=0)
    claim(30_000, len(sample), tol=0)
    assert after < 2 / 3 * before
    assert all(b" " not in token[1:].lstrip() for token in tokens), "no token reaches into the next word"
    assert not is_shakespeare or tokens[256:258] == [b" t", b"he"]

# %% [markdown]
# ## How large should it be?
#
# The plot shows how many bytes a token stands for on average, against the size of the vocabulary, for the
# text that it was trained on and for a program in Python. Doubling the vocabulary again and again brings
# less and less, and each token needs its own row of numbers in the model. Learned from 300,000 letters of
# Tiny Shakespeare, 512 tokens stand for 1.96 bytes each on average, 4,096 tokens for 3.38.
#
# A tokenizer is fitted to its text like a model. On the program the same tokens are shorter.

# %%
if __name__ == "__main__":
    part = letters[:300_000]
    trained = BPETokenizer.train([part], 4096).tokens
    program = Path(tokenizer.__file__).read_text(encoding="utf-8")
    sizes = (256, 288, 320, 384, 512, 1024, 2048, 4096)
    curves = {}
    for name, sample in (("the text it learned from", part), ("a program in Python", program)):
        counts = [len(BPETokenizer(trained[:size]).encode(sample)) for size in sizes]
        curves[name] = [len(sample.encode()) / count for count in counts]
    own, other = curves.values()
    for size, value in zip(sizes, own, strict=True):
        print(f"{size:5,} tokens: {value:.2f} bytes per token")
    claim(300_000, len(part), tol=0)
    claim(512, sizes[4], tol=0)
    claim(4096, sizes[-1], tol=0)
    claim(1.96, own[4], tol=0.01, when=is_shakespeare)
    claim(3.38, own[-1], tol=0.01, when=is_shakespeare)
    assert own[-1] > other[-1] > own[0] == other[0] == 1.0

    def draw(axes):
        for name, values in curves.items():
            axes.semilogx(sizes, values, marker="o", base=2, label=name)
        axes.set(xlabel="size of the vocabulary", ylabel="bytes per token", title="What merges buy")
        axes.legend()

    save_plot("05_bpe_train", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `find_merges` in tokenizer.py gives the same merges, tie for tie. It does not count everything anew for
# each merge: it remembers the places of each pair, visits only those of the pair that is merged, corrects
# the counts of its neighbours, and keeps the pairs in a heap. `BPETokenizer.train` around it reads a text
# in chunks and keeps only the different words. `python data.py --tokenizer=bpe` uses it.
