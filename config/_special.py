"""A tokenizer's JSON, and its special tokens: which ids they have, and what they are for. Optional fields are

"end": name            of the token that ends a document
"begin": name          of the token before a document; "": none
"chat": {...}          how a conversation is written, as plain texts. No template language is run.
    "user": [before, after]    what stands around a user's message, as "<|im_start|>user\\n", "<|im_end|>\\n";
                       as well "assistant" and, if the model knows them, "system" and "tool". Names of
                       special tokens are those tokens here. The first one behind a reply ends the turn.
    "default_system": text     what the system says if a conversation does not tell; "": it has no turn
    "system_in_user": true     system's texts and words stand in the first user's turn, behind "before"
    "trim": true       messages lose the blanks around them
"""

import json
import re

KINDS = ("char", "bpe", "bytelevel", "sentencepiece")  # the last two: other people's models, in techniques/
CHAT = {"default_system": str, "system_in_user": bool, "trim": bool}
CHAT |= dict.fromkeys(("system", "user", "assistant", "tool"), list)


def parse(text: str) -> tuple[str, list[bytes], list | dict, str, dict]:
    """Read the JSON of Tokenizer.to_json: (kind, tokens, special tokens, pattern, the optional fields).

    ValueError or another Exception for any other text.
    """
    fields = json.loads(text)
    kind = fields.pop("type", None)
    if kind not in KINDS:
        raise ValueError(f"type {kind!r} is unknown: expected one of {', '.join(KINDS)}")
    tokens, special, pattern = [fields.pop(key) for key in ("tokens", "special_tokens", "pattern")]
    lists = type(tokens) is list and type(special) in (list, dict)
    if not lists or not all(type(string) is str for string in [*tokens, *special, pattern]):
        raise ValueError("tokens must be a list of strings, special_tokens also {name: id}, pattern a string")
    tokens = [token.encode("utf-8").decode("unicode_escape").encode("latin-1") for token in tokens]
    return kind, tokens, special, pattern, fields


def place_ids(tokens: list[bytes], special_tokens) -> tuple[dict[str, int], list[int]]:
    """Give every token its id: ({special name: id}, by rising id; the ids of tokens, in their order).

    special_tokens: names, whose ids come last, or {name: id}; tokens fill the other ids. ValueError if two
    tokens or ids are the same, a token is empty, or an id is missing between the first and the last.
    """
    names, size = list(special_tokens), len(tokens) + len(special_tokens)
    if "" in names or b"" in tokens or len({*tokens, *names}) < size:
        raise ValueError(f"tokens and special_tokens={names} must all be different and not empty")
    is_dict = isinstance(special_tokens, dict)
    ids = list(special_tokens.values()) if is_dict else range(len(tokens), size)
    others = sorted(set(range(size)) - set(ids))
    if len(others) > len(tokens) or any(type(i) is not int for i in ids):
        raise ValueError(f"special_tokens must have different ids from 0 to {size - 1}")
    return {name: i for i, name in sorted(zip(ids, names, strict=True))}, others


def pattern_of(names) -> str:
    """A regular expression that finds the names; one that begins with another name is tried first."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


def uses(fields: dict, known: dict, special_tokens: dict[str, int]) -> tuple[int, int, list[int]]:
    """Read the fields: (end_id, begin_id, ids at which generation stops); -1: there is no such token.

    known: the fields that there are, and their defaults. ValueError for others, and for another form.
    """
    unknown = fields.keys() - known.keys()
    if unknown:
        raise ValueError(f"unknown fields {sorted(unknown)}: expected {', '.join(known)}")
    end, begin, chat = fields["end"], fields["begin"], fields["chat"]
    if type(end) is not str or begin not in ("", *special_tokens):
        raise ValueError("end and begin must be names of special tokens")
    names = {end} if chat is None else {end, end_of_turn(chat, pattern_of(special_tokens))}
    stops = sorted(special_tokens[name] for name in names if name in special_tokens)
    return special_tokens.get(end, -1), special_tokens.get(begin, -1), stops


def end_of_turn(chat: dict, special_pattern: str) -> str:
    """The name of the special token that ends a reply. ValueError if chat does not have the form above."""
    good = isinstance(chat, dict) and {"user", "assistant"} <= chat.keys()
    good = good and all(type(value) is CHAT.get(key) for key, value in chat.items())
    pairs = [value for value in chat.values() if type(value) is list] if good else []
    good = good and all([type(text) for text in pair] == [str, str] for pair in pairs)
    found = re.search(special_pattern, chat["assistant"][1]) if good else None
    if not found or not found[0]:
        raise ValueError(
            "chat must give the texts around messages of user and assistant, a special token behind the "
            f"assistant's, and may only have {', '.join(CHAT)}"
        )
    return found[0]
