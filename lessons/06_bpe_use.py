# Lesson 6 (unit A): Byte-pair encoding, use: encode, decode, compare fairly
# Before: a list of merges was learned. How does it turn a new text into ids and back, and is it worth it?
# Seconds: 5
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 6      your copy, in work/
#     python lessons/run.py check 6      what is right, what is not yet
#     python lessons/run.py show 6       the whole lesson from top to bottom, with its plot

# %%
import math
import re  # noqa: F401 (for your answers)
from itertools import pairwise  # noqa: F401 (for your answers)

import torch

from lessons.course import claim, save_plot, text, yours_or_ours
from tokenizer import BPETokenizer, CharTokenizer

BYTES = [bytes([byte]) for byte in range(256)]
split = BPETokenizer(BYTES).split  # text -> its words: "it's  2" -> ["it", "'s", " ", " 2"]

predict_1 = None  # ids of "안녕" (two letters) before any merge
predict_2 = None  # bits per byte at 4.0 nats per token, where a token has 2 bytes on average

# %% [markdown]
# ## 6a. Encode
#
# What training leaves behind is a list of tokens, each the bytes it stands for, in the order in which they
# were made: first the 256 bytes, then one per merge. A token's place in the list is its id and its age.
#
# To encode a text, do what training did. Cut it into words with the same `split`. Begin with the bytes of
# a word. Of all neighbours that together are a token, join the two that make the **oldest** one, of equal
# ones the leftmost. Repeat until no neighbours are a token.
#
# Two shortcuts look harmless: to take the longest token that fits, or to join whatever fits from the left.
# Both give ids that decode to the right text, and both give other ids than those that the model was
# trained on, for some words only. Nothing crashes; the model just meets words as it has never seen them.
#
# A **special token** is no part of the text: `<|end|>`, say, ends a document. Its name in the text becomes
# its one id before anything else is looked at. Forgotten, it is cut up like a word: with 512 tokens learned
# from Tiny Shakespeare it becomes 5 ids, and no document ever ends.


# %%
def encode(text, tokens, special):
    """The ids of a text by byte-pair encoding. It may call `split`.

    text: str.
    tokens: list of bytes; a token's place is its id: first the 256 bytes, then one per merge, oldest first.
    special: dict, name of a special token -> its id. It may be empty. In the text a name becomes that id;
        where two names fit, the longer one.
    -> list of int.
    """
    raise NotImplementedError("lesson 6a")


# %%
if __name__ == "__main__":
    letters, is_shakespeare = text()
    name_of_text = (
        "Tiny Shakespeare" if is_shakespeare else "a generated play (data.py prepares the real one)"
    )
    print(f"the text is {name_of_text}, {len(letters):,} characters")
    cut = int(0.9 * len(letters))
    train, val = letters[:cut], letters[cut:]
    learned = BPETokenizer.train([train], 1024).tokens
    tokens, special = learned[:512], {"<|end|>": 512}
    for sample in ("the mother of all", "안녕", "to be.<|end|>"):
        ids = yours_or_ours(encode, "6a")(sample, tokens, special)
        print(f"{sample!r}: {[(tokens + [b'END'])[i].decode(errors='backslashreplace') for i in ids]}")
    project = BPETokenizer(tokens, tuple(special))
    assert yours_or_ours(encode, "6a")(val[:2000], tokens, special) == project.encode(val[:2000]).tolist()
    claim(512, len(tokens), tol=0)
    claim(256, len(BYTES), tol=0)
    claim(5, len(project.encode("<|end|>")), tol=0, when=is_shakespeare)

# %% [markdown]
# ## 6b. Decode
#
# The way back is easier, with one trap. A token is a piece of bytes, and a letter may lie across two or
# three of them: "안" has 3 bytes. So bytes are joined first, and are read as UTF-8 once, at the end.
#
# A model may also put out ids whose bytes are no UTF-8 at all, above all at the beginning of its training.
# Decoding must not fail then. What cannot be read is shown as U+FFFD, the replacement character, so that
# everyone sees that something was there.


# %%
def decode(ids, tokens, special):
    """The text of any ids: bytes that are not UTF-8 become U+FFFD, a special token its name.

    ids: list of int; tokens: list of bytes, as in 6a; special: dict, name -> id -> str.
    """
    raise NotImplementedError("lesson 6b")


# %%
if __name__ == "__main__":
    hello = "안녕"
    for ids in (list(hello.encode()), list(hello.encode())[:4], [512, 255]):
        print(f"{ids}: {yours_or_ours(decode, '6b')(ids, tokens, special)!r}")
    claim(3, len("안".encode()), tol=0)

# %% [markdown]
# ## 6c. Which tokenizer is better?
#
# Loss per token cannot tell. A token of two letters is harder to guess than one letter, and there are
# fewer of them: so the larger the vocabulary, the higher the loss per token, and the perplexity with it.
# Whoever compares these will always choose letters. What a whole text costs can be compared: all nats
# added up, as bits, for each byte of the text (lesson 3).
#
# A larger vocabulary has a price of its own. A model holds a row of numbers for each token, its embedding.
# In a **tied** model, GPT-2 for one, the output uses the same rows as the input, so they count once. Say
# what a model weighs when you say how good it is.


# %%
def compare(runs, text, body):
    """How good and how large are models with different tokenizers, scored on the same text?

    runs: dict, name -> dict(loss=mean nats per token, tokens=number of tokens of the text, vocab_size=V,
    n_embd=numbers per row of the embedding); text: str, what was scored; body: int, parameters of each model
    but for its embedding (the models are tied) -> list of (name, bits per byte as float, parameters as int),
    best first.
    """
    raise NotImplementedError("lesson 6c")


# %% [markdown]
# The tables of pairs of lesson 2, with one added to each count, on letters and on byte pairs of several
# sizes. Each has a row of V numbers for each of its V tokens and nothing else.
#
# On Tiny Shakespeare letters cost 2.48 nats each, a token out of 512 costs 3.75. By that letters win. In
# bits per byte it is 3.58 against 2.88, and they lose. But their table has 4,225 numbers, that of the 512
# tokens has 262,144. Byte pairs buy a better guess per byte for more rows, so both numbers belong together.
#
# More is not better for ever. Each token comes up more rarely than a letter, so less is known about it.
# With 1,024 tokens the loss per token climbs to 4.50 on Tiny Shakespeare, and bits per byte hardly move. (The
# generated play repeats itself so often that they still fall.)


# %%
def loss_of_pairs(train_ids, val_ids, V):
    """Mean nats per token of a table of pairs, one added to each count."""
    a, b = (torch.from_numpy(ids.astype("int64")) for ids in (train_ids, val_ids))
    counts = torch.bincount(a[:-1] * V + a[1:], minlength=V * V).view(V, V) + 1
    before = torch.cat((a[-1:], b[:-1]))  # val follows train: its first token has one before it, too
    return -(counts[before, b] / counts.sum(1)[before]).double().log().mean().item()


if __name__ == "__main__":
    tokenizers = {"letters": CharTokenizer.train([letters])}
    tokenizers |= {f"{V} tokens": BPETokenizer(learned[:V]) for V in (256, 320, 512, 768, 1024)}
    runs = {}
    for name, tokenizer in tokenizers.items():
        ids, V = tokenizer.encode(val), tokenizer.vocab_size
        loss = loss_of_pairs(tokenizer.encode(train), ids, V)
        runs[name] = dict(loss=loss, tokens=len(ids), vocab_size=V, n_embd=V)
    rows = yours_or_ours(compare, "6c")(runs, val, 0)
    print(f"on {name_of_text}:")
    for name, bits, parameters in rows:
        print(f"{name:11} {runs[name]['loss']:.2f} nats per token, {bits:.2f} bits per byte, {parameters:,}")
    bits = {name: value for name, value, _ in rows}
    assert runs["letters"]["loss"] < runs["512 tokens"]["loss"] < runs["1024 tokens"]["loss"]
    assert bits["letters"] > bits["320 tokens"] > bits["512 tokens"], "the other way round"
    sizes = {name: parameters for name, _, parameters in rows}
    claim(2.48, runs["letters"]["loss"], tol=0.005, when=is_shakespeare)
    claim(3.75, runs["512 tokens"]["loss"], tol=0.005, when=is_shakespeare)
    claim(3.58, bits["letters"], tol=0.005, when=is_shakespeare)
    claim(2.88, bits["512 tokens"], tol=0.005, when=is_shakespeare)
    claim(4225, sizes["letters"], tol=0, when=is_shakespeare)
    claim(262_144, sizes["512 tokens"], tol=0)
    claim(4.50, runs["1024 tokens"]["loss"], tol=0.005, when=is_shakespeare)
    claim(1024, len(learned), tol=0)
    fall = bits["512 tokens"] - bits["1024 tokens"]
    assert abs(fall) < 0.02 if is_shakespeare else fall > 0.1

    def draw(axes):
        V = [run["vocab_size"] for run in runs.values()]
        axes.semilogx(V, [run["loss"] / math.log(2) for run in runs.values()], "o--", base=2)
        axes.semilogx(V, [bits[name] for name in runs], "o-", base=2)
        axes.legend(["bits per token: letters win", "bits per byte: byte pairs win"])
        axes.set(xlabel="size of the vocabulary", ylabel="bits", title="One text, the same kind of model")

    save_plot("06_bpe_use", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `BPETokenizer.encode_slowly` in tokenizer.py is 6a for plain text, and its docstring says why oldest first
# equals all merges in the order of training. `BPETokenizer.encode` gives the same ids by tiktoken, compiled
# code that is given our tokens and our pattern. What users type may quote `<|end|>` and must not end a
# document, so it cuts such names up like any text, unless it is called with `allow_special=True`. `decode`
# there also says which id is not in the vocabulary. `evaluate` in evaluate.py tells bits per byte for any
# tokenizer, from the bytes of each token.
