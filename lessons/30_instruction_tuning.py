# Lesson 30 (unit F): Instruction tuning: loss masks
# Before: models that go on with a text. Ask one a question, and it goes on as if the play did.
# Seconds: 15
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 30     your copy, in work/
#     python lessons/run.py check 30     what is right, what is not yet
#     python lessons/run.py show 30      the whole lesson from top to bottom, with its plot

# %%
import copy
import random
import re

import torch

from lessons.course import claim, encoded, save_plot, text, update, windows, yours_or_ours
from model import GPT, GPTConfig

predict_1 = None  # prompt of 30 tokens, answer of 9, an end token: the share of the 40 whose loss counts
predict_2 = None  # of 40 replies, how many end by themselves, if the end token was masked in tuning

# %% [markdown]
# ## A text that goes on, or an answer
#
# A model that was trained on a text goes on with it. That is a **base model**. Ask it something, and it does
# not answer: it goes on, for ever. To make it answer, train it a little more, on samples of questions with
# their answers. That is **instruction tuning** (Wei et al., 2021). Nothing in the model changes: a sample is
# a text in a fixed form, its **template**. In this project it is lines that begin with who speaks:
#
#     user: speeds
#     assistant: ds$
#
# $ is the end token, the special token of lesson 6. Up to and with "assistant: " this is the **prompt**; the
# answer follows, and the end token closes it. Here an answer is the last two letters of the word.

# %% [markdown]
# ## 30a. What is learned
#
# When the model is used, others write the prompt. So it need not learn to write one, only to read it: prompt
# tokens stay in x, but are no targets. Where nothing is to be learned, y is -1, in all of this project, and
# the loss leaves those places out. A sample, with `q:` and `a:` for the names, "." for -1:
#
#     ids    q : d o g \n a : o g $
#     x      q : d o g \n a : o g         without the last
#     y      . . . . .  . . o g $         without the first
#
# At the last token of the prompt the first one of the answer is the target. The end token is a target, too:
# it is how the model learns to stop. With a prompt of 30 tokens and an answer of 9, 10 of the 40 count.
#
# A conversation is one sample with several prompts and answers in turn: each answer is learned, each has its
# end token. Shorter samples of a batch are filled up on the right, with end tokens in x and -1 in y. There no
# harm is done: a token looks only at those before it. A sample that is too long for the window is left out.
# Cut off on the right, it would lose its answer; on the left, its question.


# %%
def labelled(samples, end, size):
    """Samples as a batch to learn answers from.

    samples: list; each is a list of pairs (prompt, answer), both lists of ints, one pair after the other, in
    one row; a prompt may be empty; end: int, closes each answer; size: int, the model's window: samples of
    more than size + 1 ids are left out, and one is left at least
    -> x, y: (B, T) int64, rows in the order of the samples; T + 1: ids of the longest that is left; x is
    filled up with end; y is the next token, -1 where nothing is learned.
    """
    raise NotImplementedError("lesson 30a")


# %%
if __name__ == "__main__":
    vocabulary, ids, _, is_shakespeare = encoded()
    V = end = len(vocabulary)  # the end token is one more token than there are letters
    code = {letter: i for i, letter in enumerate(vocabulary)}

    def encode(text):
        return [code[letter] for letter in text]

    def letters(ids):  # as one sees them in a line
        return "".join("." if i < 0 else "$" if i == end else vocabulary[i] for i in ids).replace("\n", "/")

    def sample_of(word):
        return [(encode(f"user: {word}\nassistant: "), encode(word[-2:]))]

    batch_of = yours_or_ours(labelled, "30a")
    x, y = batch_of([sample_of("dog"), sample_of("speeds")], end, 64)
    print(*map(letters, [*x.tolist(), *y.tolist()]), sep="\n")
    x, y = batch_of([[([0] * 30, [1] * 9)]], end, 64)
    claim(10, int((y != -1).sum()), tol=0)
    claim(40, x.numel() + 1, tol=0)
    claim(30, int((y == -1).sum()) + 1, tol=0)  # the first id is never a target
    claim(9, int((y == 1).sum()), tol=0)

# %% [markdown]
# ## 30b. The mean over what is learned
#
# Of four places two are learned, and cost 2 and 4 nats. Their mean is 3. Divided by all four places it would
# be 1.5: too small by the masked share, another one in each batch. With means of rows an answer of one token
# weighs as much as one of fifty: the mistake of lesson 24. If nothing is learned in a batch the loss is 0,
# and so is the gradient. Write it without `cross_entropy`: log-probabilities, the places that count, their
# mean.


# %%
def masked_mean(logits, y):
    """The mean surprise at the targets, in nats; 0 if there is none.

    logits: (B, T, V) float32, also large ones and -inf; y: (B, T) int64, -1 where nothing is learned
    -> () float32, with a gradient to the logits.
    """
    raise NotImplementedError("lesson 30b")


# %%
if __name__ == "__main__":
    loss_of = yours_or_ours(masked_mean, "30b")
    costs = torch.tensor([3.0, 1.0, 2.0, 4.0])
    x = torch.stack((-costs, torch.log1p(-torch.exp(-costs))), -1)[None]  # log-probabilities of two tokens
    mean = loss_of(x, torch.tensor([[-1, -1, 0, 0]])).item()
    claim(3, mean, tol=1e-4)
    claim(1.5, mean * 2 / 4, tol=1e-4)
    claim(2, -x[0, 2, 0].item(), tol=0)
    claim(4, -x[0, 3, 0].item(), tol=0)

# %% [markdown]
# ## 30c. The same form at use
#
# A tuned model knows one form, to the last blank. At use the prompt has to have the very ids that stood
# before the answer in training: earlier answers closed, a new line before the next "user: ", "assistant: "
# opened. A conversation grows, and the window does not. So the oldest turns are forgotten, a turn at a time:
# what the user said and the answer to it. What the **system** says, a first line that tells the model who it
# is, stays. Room is kept for the reply.
#
#     system: be brief      stays
#     user: dog             forgotten first, with
#     assistant: og$        its answer
#     user: speeds          the question stays
#     assistant:            opened, with a blank; the reply follows


# %%
def prompt_of(messages, encode, end, size, room):
    """The ids that a model reads before it replies.

    messages: list of pairs (role, text) of strings: perhaps one "system", then "user" and "assistant" by
    turns, "user" at the end; each is a line "role: text"; end closes the assistant's text, then comes a new
    line; all other lines end with a new line; at last "assistant: " is opened; encode: text -> list of ints;
    end: int; size: int, the window; room: int, tokens to be kept free in it. The system's line and the last
    question fit -> list of ints, with as many of the newest turns as fit.
    """
    raise NotImplementedError("lesson 30c")


# %% [markdown]
# ## Tuned in three ways
#
# A small base model has read a little of the play. Asked for the end of a word, it replies "the the". Then it
# is tuned on questions about words of the play, but for 40 that are kept for the test, in three ways:
#
# - **answers learned**, as above: all 40 replies are right, and each ends.
# - **all learned**, prompts, too. Nobody can guess which word is asked about, so 0.85 of the loss belongs to
#   prompts, and their gradient is noise. Only 19 of 40 are right so far. It would get there, later.
# - **end masked**: some programs fill rows with the end token, mask what fills, and so mask the true ends. Of
#   40 replies none ends.
#
# And the form matters. Leave out one blank, the one behind "assistant:", and of the first model's 40 right
# replies 0 are left.


# %%
WAYS = "answers learned", "all learned", "end masked"


def batch(words, way):
    """Questions about words, x and y (B, T), with what is learned that way."""
    samples = [sample_of(word) for word in words]
    if way == "all learned":  # the whole sample is an answer to nothing
        samples = [[([], prompt + answer)] for ((prompt, answer),) in samples]
    x, y = batch_of(samples, end, 64)
    return x, y.masked_fill(y == end, -1) if way == "end masked" else y


def replies(model, prompts, what):
    """How many of the most likely replies to the prompts are right, and how many end."""
    rows = model.generate(prompts, max_new_tokens=8, temperature=0)
    said = [letters(row[len(prompt) :]) for row, prompt in zip(rows, prompts, strict=True)]
    right = sum(reply.split("$")[0] == word[-2:] for reply, word in zip(said, test, strict=True))
    ended = sum("$" in reply for reply in said)
    print(f"{what:15}  right {right:2}, ended {ended:2} of {len(said)}:", *said[:3], sep="  ")
    return right, ended


def tuned(base, way):
    """A tuned copy of the base model, and the test loss of its answers after every 20 updates."""
    model, drawn, losses = copy.deepcopy(base), random.Random(1), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    for step in range(201):
        if step % 20 == 0:
            losses.append(loss_of(model(test_x).detach(), test_y).item())
        x, y = batch(drawn.sample(words, 16), way)
        loss = loss_of(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, losses


if __name__ == "__main__":
    words = sorted({*re.findall(r"\b[a-z]{3,7}\b", text()[0])})
    random.Random(30).shuffle(words)
    test, words = words[:40], words[40:]
    test_x, test_y = batch(test, "answers learned")
    make_prompt = yours_or_ours(prompt_of, "30c")
    prompts = [make_prompt([("user", word)], encode, end, 64, 8) for word in test]
    torch.manual_seed(30)
    base = GPT(GPTConfig(vocab_size=V + 1, block_size=64, n_layer=1, n_head=2, n_embd=32))
    optimizer = torch.optim.AdamW(base.parameters(), lr=0.005, fused=True)
    g = torch.Generator().manual_seed(30)
    for _ in range(50):
        update(base, optimizer, *windows(ids, 16, g))
    replies(base, prompts, "base model")
    models, curves = zip(*(tuned(base, way) for way in WAYS), strict=True)
    found = [replies(model, prompts, way) for model, way in zip(models, WAYS, strict=True)]
    no_blank, _ = replies(models[0], [prompt[:-1] for prompt in prompts], "a blank less")
    x, y = batch(test, "all learned")
    nats = [loss_of(models[1](x), of).item() * (of != -1).sum().item() for of in (test_y, y)]
    print(f"all learned: {1 - nats[0] / nats[1]:.2f} of the loss belongs to prompts")
    claim(40, min(found[0]), tol=1, when=is_shakespeare)
    claim(0, found[2][1], tol=0)
    claim(0, no_blank, tol=2)
    claim(19, found[1][0], tol=8, when=is_shakespeare)
    claim(0.85, 1 - nats[0] / nats[1], tol=0.06, when=is_shakespeare)

    def draw(axes):
        for way, losses in zip(WAYS, curves, strict=True):
            axes.plot(range(0, 201, 20), losses, marker=".", label=way)
        axes.set(xlabel="update", ylabel="loss of test answers (nats)", title="What is learned of a sample")
        axes.legend()

    save_plot("30_instruction_tuning", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `segments_of` in text/segments.py cuts a row of questions and answers into stretches, learned or not;
# `write` in text/token_files.py stores a byte for each token beside the ids; `Windows` in data.py makes y of
# both, and packs several samples into a row. With `--show` data.py marks what is learned: look before you
# train. `summed_nats` in model.py, divided by `count_targets` in data.py, is 30b. `Conversation` in
# text/chat.py is 30c; a tokenizer may bring a template of its own: `by_template` in text/segments.py.
