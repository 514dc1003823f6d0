"""What the page asks for, a function each: a request (a dict from outside) to JSON or a stream of events.

Texts, numbers and lists are checked here; the names of runs and checkpoints by the desk (server.py).
"""

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator

import numpy as np

from config import ROOT, require
from data import open_windows
from machine.speed import parameters_of
from play import look, runs
from sample import prompt_ids, stream_pieces
from text.mixture import is_mixture
from text.settle import tokenizer_of

TEXT = 20_000  # characters of a text, or ids
WORDS, LONGEST = 200, 80  # whose byte pairs are shown, step by step; the characters that one may have
NEW = 2_000  # tokens that are written for one request
BEGIN = 160  # tokens of the text that is there at first
WIDE, SQUARE = 96, 48  # tokens whose attention is shown; whose dependence is measured, with a pass for each
RANGES = {"temperature": (0.0, 10.0), "top_p": (1e-6, 1.0), "max_new_tokens": (0, NEW), "seed": (0, 2**62)}
DEFAULTS = {"max_new_tokens": 100, "temperature": 0.8, "top_p": 1.0, "seed": 1337}
Stream = Iterator[list[tuple[str, object]]]

# Where each figure of the page is computed: key -> (what it is called, formula, file, a line of that file).
FORMULAS = {
    "surprise": ("surprise", "-log2 p(token | tokens before), in bits", "play/look.py", "def surprise("),
    "bits_per_byte": ("bits per byte", "sum of bits / UTF-8 bytes", "play/look.py", "def totals("),
    "loss": ("loss", "-ln p(token | tokens before), mean over tokens", "model.py", "def summed_nats("),
    "next": ("next token", "softmax(logits of the last token)", "model.py", "def to_logits("),
    "temperature": ("temperature and top-p", "softmax(logits / temperature), the likeliest that reach p",
                    "generate.py", "def token_probs("),
    "entropy": ("entropy", "-sum of p log2 p, after temperature and top-p",
                "play/look.py", "def next_tokens("),
    "generation": ("writing", "draw, append, read again", "generate.py", "def stream("),
    "merges": ("byte pairs", "join the oldest pair first", "tokenizer.py", "def steps("),
    "attention": ("attention", "softmax(q k' / sqrt(head size))", "model.py", "def written_out_attention("),
    "value_length": ("length of a value", "|v|", "play/look.py", "def attention("),
    "lens": ("logit lens", "softmax(head(norm(x))) after each block", "play/look.py", "def lens("),
    "residual": ("residual stream", "root of the mean of x^2", "model.py", "x = x + self.attn("),
    "depends": ("dependence", "mean of |p - p'| / 2, token s replaced", "play/look.py", "def depends("),
    "ablation": ("what a part is worth", "loss without it - loss", "play/look.py", "def without("),
    "ladder_uniform": ("guessing", "ln V", "lab/ladder.py", "def ladder("),
    "ladder_letters": ("frequencies", "-ln p(b), p(b) = (n_b + 1) / (N + V): counts of the train split",
                       "lab/ladder.py", "def counted_losses("),
    "ladder_bigram": ("bigram", "-ln p(b | a), p(b | a) = (n_ab + 50 p(b)) / (n_a + 50)",
                      "lab/ladder.py", "def counted_losses("),
    "ladder_entropy": ("exact entropy", "E[-ln p] of the grammar", "text/verse.py", "def verse_entropy("),
    "learning_rate": ("learning rate", "rises for warmup_iters updates, then follows lr_schedule to min_lr",
                      "optim.py", "def lr_at("),
    "grad_norm": ("gradient norm", "root of the sum of squares", "train.py", "clip_grads_with_norm_("),
    "speed": ("tokens per second", "tokens / seconds since the last row", "runtime/report.py",
              'row["tokens_per_second"] ='),
    "memory": ("memory", "the most that was held so far", "machine/hardware.py", "def memory_mb("),
}  # fmt: skip


def take(request: dict, name: str, default):
    """A value of a request with its default's type. ValueError if it has another, or is out of range."""
    value = request.get(name, default)
    if isinstance(default, float) and type(value) is int:
        value = float(value) if abs(value) < 2**53 else value
    require(type(value) is type(default), f"{name} is {value!r:.40}; expected {type(default).__name__}")
    if name in RANGES:
        low, high = RANGES[name]
        require(low <= value <= high, f"{name}={value!r:.40} makes no sense; expected {low} to {high}")
    if isinstance(value, str):
        require(len(value) <= TEXT, f"{name} has {len(value):,} characters; expected {TEXT:,} at most")
    return value


def sampling(request: dict) -> tuple:
    """(max_new_tokens, temperature, top_p, seed) of a request."""
    n, temperature, top_p, seed = (take(request, name, default) for name, default in DEFAULTS.items())
    legal = temperature == 0 or temperature >= 0.001
    require(legal, f"temperature={temperature} is too small; expected 0, or 0.001 and more")
    return n, temperature, top_p, seed


def opened(desk, request: dict, most: int = TEXT) -> tuple:
    """(model, tokenizer, ids, cut): the run of a request, and its text or ids. cut: characters behind `most`
    tokens, which are left out."""
    model, tokenizer, _ = desk.model(take(request, "run", ""), take(request, "file", ""))
    if "ids" in request:
        ids, V = take(request, "ids", []), tokenizer.vocab_size
        require(all(type(i) is int and 0 <= i < V for i in ids), f"ids are not all of 0 to {V - 1}")
        require(len(ids) <= TEXT, f"there are {len(ids):,} ids; expected {TEXT:,} at most")
    else:
        try:
            ids = prompt_ids(tokenizer, take(request, "text", ""))
        except ValueError as error:
            raise ValueError(f"{request['run']:.60}: {error}") from None
    require(len(ids) > 0, "the text is empty; write at least one character")
    if most < TEXT:  # it is read in one piece
        most = min(most, model.config.block_size)
    return model, tokenizer, ids[:most], len(tokenizer.decode(ids[most:]))


def pieces(tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.decode([i]) for i in ids]


# ---- GET
def run_list(desk, query: dict) -> dict:
    return {"runs": runs.list_runs(desk.home), "chosen": desk.chosen}


def follow(desk, query: dict) -> Stream:
    return runs.follow(desk.folder(take(query, "run", "")))


def model(desk, query: dict) -> dict:
    """What is known of a checkpoint, what can be switched off in it, and a text to begin with."""
    name, file = take(query, "run", ""), take(query, "file", "")
    model, tokenizer, saved = desk.model(name, file)
    with runs.intact(desk.folder(name)):
        return {
            "run": name,
            "file": file or runs.checkpoints(desk.folder(name))[0],
            "step": saved["step"],
            "val_loss": saved.get("val_loss"),
            "parameters": parameters_of(model),
            "config": vars(model.config),
            "tokenizer": tokenizer.kind,
            "techniques": saved["config"].get("technique", ""),
            "chat": bool(tokenizer.stop_ids) and runs.about(desk.folder(name))["chat"],
            "text": first_text(model, tokenizer, saved["config"]),
            "switches": [{"key": key, "name": name} for key, name in look.switches(model).items()],
        }


def first_text(model, tokenizer, settings: dict) -> str:
    """A text to begin with, which the tokenizer can encode: whole lines from the beginning of the val split,
    or a sample of it; if that is not here, the run's prompt, or some tokens."""
    dataset = settings["dataset"]
    with contextlib.suppress(OSError, KeyError, ValueError):
        require(not is_mixture(dataset), "there is no one val split")
        require(tokenizer.hash == tokenizer_of(dataset).hash, "another tokenizer")
        val = open_windows(dataset, "val", model.config.block_size, may_be_short=True)
        ids = val.tokens[np.arange(min(BEGIN, val.n_tokens))].tolist()
        special = set(tokenizer.special_tokens.values())
        parts = [[*part] for marks, part in itertools.groupby(ids, special.__contains__) if not marks]
        lines = tokenizer.decode(max(parts, key=len, default=[])).split("\n")
        is_cut = len(lines) > 3 and not val.in_rows  # a text is cut anywhere
        return "\n".join(lines[1:-1] if is_cut else lines).strip("\n")
    for text in (settings.get("start", "").strip(), "The"):
        with contextlib.suppress(ValueError):
            if prompt_ids(tokenizer, text):
                return text
    return tokenizer.decode([*range(min(20, tokenizer.vocab_size))])


@functools.cache  # what is listed and what is linked to stay the same text, also when the file is edited
def lines_of(file: str) -> list[str]:
    """The lines of a source file."""
    return (ROOT / file).read_text(encoding="utf-8").split("\n")


def formulas(desk, query: dict) -> dict:
    """Each figure's formula, and the line that computes it."""
    found = {}
    for key, (name, formula, file, line) in FORMULAS.items():
        number = next(n for n, text in enumerate(lines_of(file), 1) if line in text)
        found[key] = {"name": name, "formula": formula, "file": file, "line": number}
    return found


# ---- POST: a text, and what a model does with it
def read(desk, request: dict) -> dict:
    model, tokenizer, ids, cut = opened(desk, request)
    bits = look.surprise(model, ids)
    found = {"ids": ids, "pieces": pieces(tokenizer, ids), "bits": bits, "cut": cut}
    return found | look.totals(tokenizer, ids, bits)


def next_token(desk, request: dict) -> dict:
    model, tokenizer, ids, _ = opened(desk, request)
    _, temperature, top_p, _ = sampling(request)
    return look.next_tokens(model, tokenizer, ids, temperature, top_p)


def write(desk, request: dict) -> Stream:
    """The tokens that follow, one by one: {"id", "piece"}. Pieces are whole characters, and may be empty."""
    model, tokenizer, ids, _ = opened(desk, request)
    steps = ([("", {"id": i, "piece": piece})] for i, piece in written(desk, model, tokenizer, ids, request))
    return desk.in_turns(steps)


def written(desk, model, tokenizer, ids: list[int], request: dict) -> Iterator[tuple[int, str]]:
    """(id, piece) of the tokens that a model draws after some ids."""
    n, temperature, top_p, seed = sampling(request)
    return desk.while_asked(stream_pieces(model, tokenizer, ids, n, temperature, 0, top_p, seed))


def tokens(desk, request: dict) -> dict:
    """How the tokenizer cuts a text; of byte pairs, the steps of each word, from its bytes to its tokens."""
    _, tokenizer, ids, _ = opened(desk, request)
    words = []
    if hasattr(tokenizer, "steps"):
        split = dict.fromkeys(tokenizer.split(take(request, "text", "")))
        for word in [word for word in split if len(word) <= LONGEST][:WORDS]:
            steps = [[part.decode("utf-8", "replace") for part in parts] for parts in tokenizer.steps(word)]
            words.append({"word": word, "steps": steps})
    return {"kind": tokenizer.kind, "ids": ids, "pieces": pieces(tokenizer, ids), "words": words}


def look_at(desk, request: dict, most: int, question) -> dict:
    """What a question(model, tokenizer, ids) of look.py brings, with the pieces of the text beside it."""
    model, tokenizer, ids, cut = opened(desk, request, most)
    return {"pieces": pieces(tokenizer, ids), "cut": cut, **question(model, tokenizer, ids)}


def attention(desk, request: dict) -> dict:
    layer = take(request, "layer", 0)
    return look_at(desk, request, WIDE, lambda model, _, ids: look.attention(model, ids, layer))


def lens(desk, request: dict) -> dict:
    return look_at(desk, request, WIDE, look.lens)


def depends(desk, request: dict) -> dict:
    return look_at(desk, request, SQUARE, lambda model, _, ids: {"change": look.depends(model, ids)})


def importance(desk, request: dict) -> dict:
    return look_at(desk, request, WIDE, lambda model, _, ids: look.importance(model, ids))


def broken(desk, request: dict) -> dict:
    """Loss and writing of a model as it is, and with parts of it switched off."""
    model, tokenizer, ids, _ = opened(desk, request)
    off, found = take(request, "off", []), {}
    require(all(isinstance(key, str) for key in off), "off is no list of names; /api/model lists them")
    for when, keys in (("before", []), ("after", off)):
        with look.without(model, keys):
            sums = look.totals(tokenizer, ids, look.surprise(model, ids))
            found[f"loss_{when}"], found[f"bits_{when}"] = sums["loss"], sums["bits_per_byte"]
            found[when] = "".join(piece for _, piece in written(desk, model, tokenizer, ids, request))
    return found


def compare(desk, request: dict) -> dict:
    """Two checkpoints on one text. pieces: what each writes; part: where that parts; curve: (bytes before a
    token, its bits per byte), which can be compared whatever the tokenizers."""
    found, texts = {}, {}
    for side in ("a", "b"):
        model, tokenizer, ids, _ = opened(desk, {**request, **take(request, side, {})})
        bits = look.surprise(model, ids)
        sizes = tokenizer.token_bytes()[ids].tolist()
        places = zip(itertools.accumulate(sizes, initial=0), bits, sizes, strict=False)
        curve = [(before, b / size) for before, b, size in places if b is not None and size]
        new = list(written(desk, model, tokenizer, ids, request))
        found[side] = {"pieces": [piece for _, piece in new], "curve": curve}
        found[side] |= look.totals(tokenizer, ids, bits)
        texts[side] = "".join(found[side]["pieces"])
    same = len(os.path.commonprefix(list(texts.values())))
    ends = {side: list(itertools.accumulate(map(len, found[side]["pieces"]))) for side in texts}
    part = {side: sum(end <= same for end in ends[side]) for side in texts}
    return {**found, "part": None if texts["a"] == texts["b"] else part}


GET = {"runs": run_list, "follow": follow, "model": model, "formulas": formulas}
POST = {
    "read": read, "next": next_token, "write": write, "tokens": tokens, "look": attention, "lens": lens,
    "depends": depends, "importance": importance, "break": broken, "compare": compare,
}  # fmt: skip
