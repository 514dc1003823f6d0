"""A tokenizer with more tokens than another: make one; tell whether its ids are those of the other."""

import json

from config import require
from tokenizer import from_json

SAID_OF_TEXT = "tokens special_tokens added end begin chat".split()  # fields that change no token's meaning
MORE = {"bpe": "bytelevel"}  # the same byte pairs (techniques/bytelevel.py), which can have added tokens


def contains(tokenizer, base) -> bool:
    """Whether a tokenizer has all tokens of another one, with their ids, and cuts words in the same way."""
    ordinary, theirs = (dict(zip(t.ids, t.tokens, strict=True)) for t in (tokenizer, base))
    special = base.special_tokens.items() <= tokenizer.special_tokens.items()
    return special and theirs.items() <= ordinary.items() and rules(tokenizer) == rules(base)


def rules(tokenizer) -> dict:
    """How a tokenizer cuts words, as its JSON says it."""
    state = json.loads(tokenizer.to_json())
    state["type"] = MORE.get(state["type"], state["type"])
    return {key: value for key, value in state.items() if key not in SAID_OF_TEXT}


def extended(tokenizer, names: str):
    """A tokenizer with new special tokens, which it finds in every text. names: "<|user|>,<|tool|>".

    ValueError for a name that is a token already or has a blank, and for a vocabulary of characters.
    """
    wanted = [name for name in names.split(",") if name]
    if not wanted:
        return tokenizer
    state = json.loads(tokenizer.to_json())
    require(state["type"] != "char", f"add_tokens={names} is for byte pairs; characters are found one by one")
    for name in wanted:
        good = name not in tokenizer.special_tokens and name.split() == [name] and wanted.count(name) == 1
        require(good, f"add_tokens: {name!r:.40} is a token already, or has a blank; expected '<|a|>,<|b|>'")
    new = {name: tokenizer.vocab_size + i for i, name in enumerate(wanted)}
    state["special_tokens"] = {**tokenizer.special_tokens, **new}
    state |= {"type": MORE.get(state["type"], state["type"]), "added": [*state.get("added", []), *wanted]}
    return from_json(json.dumps(state))
