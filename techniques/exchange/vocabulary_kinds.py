"""What vocabulary.py has read becomes one of our tokenizers: checks of tokens, merges and ids, and fields.

Hugging Face and GGUF give: {token: id}, what the merges make, oldest first, names of special tokens, and
which of them ends a text. Both kinds join what spells a token and look at the order only, see BPETokenizer.
"""

import json

from config import require
from techniques.bytelevel import ByteLevelTokenizer
from techniques.exchange import chat_templates
from techniques.exchange.vocabulary_out import SEEN
from techniques.sentencepiece import SentencePieceTokenizer
from tokenizer import END, BPETokenizer, CharTokenizer, Tokenizer

BYTE_OF = {character: byte for byte, character in enumerate(SEEN)}
LARGEST = 2**20  # tokens of a vocabulary; Gemma's 262,144 are the most in wide use
DOCUMENT_ENDS = (END, "<|end_of_text|>", "</s>")  # of models whose "eos" ends a turn
ORDER = "its merges do not stand in the order of the ids, which is not known here"


def byte_level(plain: dict, joined: list[str], vocab, pattern: str, prefix: bool, form: str) -> tuple:
    """(the class of a byte-level tokenizer, its arguments).

    plain: {token: id} of the ordinary tokens, as GPT-2 spells them. joined: what merges make, oldest first.
    vocab: all tokens. pattern, prefix, form: see split_patterns.read and bytelevel.py. ValueError for tokens
    that are not of bytes, or that no merge makes, and if merges and ids have another order.
    """
    made = set(joined)
    strange = [token for token in plain if not all(character in BYTE_OF for character in token)]
    strange += [token for token in plain if len(token) > 1 and token not in made]
    strange += [token for token in joined if token not in vocab]
    require(not strange, f"{len(strange):,} of its tokens are made by no merge, such as {strange[:1]!r:.40}")
    ids = [plain[token] for token in joined if token in plain]
    require(ids == sorted(ids), ORDER)
    tokens = [bytes(BYTE_OF[character] for character in token) for token in sorted(plain, key=plain.get)]
    fields = dict(normal_form=form, prefix=prefix, incomplete=sum(len(token) == 1 for token in tokens) < 256)
    if not any(fields.values()):
        return BPETokenizer, dict(tokens=tokens, pattern=pattern)
    return ByteLevelTokenizer, dict(tokens=tokens, pattern=pattern, **fields)


def sentencepiece(plain: dict, order: list[str], prefix: str) -> tuple:
    """The same for SentencePiece's kind. order: the tokens of two characters or more, highest score first."""
    missing = [token for token in order if token not in plain]
    require(not missing, f"{len(missing):,} of its merges make what is no token, such as {missing[:1]!r:.40}")
    ids = [plain[token] for token in order]
    at = next((i for i in range(1, len(ids)) if ids[i] < ids[i - 1]), len(ids))
    require(len(ids) - at < 1000, ORDER)
    tokens = [token.encode("utf-8") for token in sorted(plain, key=plain.get)]
    return SentencePieceTokenizer, dict(tokens=tokens, prefix=prefix, late=order[at:])


def characters(plain: dict) -> tuple:
    """The same for a vocabulary of characters, which vocabulary_out.py writes as BPE without merges."""
    return CharTokenizer, dict(characters="".join(sorted(plain, key=plain.get)))


def finish(kind: tuple, plain: dict, names: dict, eos: str, begin: str, template) -> Tokenizer:
    """Make the tokenizer. kind: what a function above gives. names: "special" and "added", {name: id} each.

    eos: the name of the token that ends a text, or a reply of a chat model; begin: of the one before a text.
    template: that of chats, or None. A NOTE is printed if its form is not known.
    """
    made, fields = kind
    special = names["special"] | names["added"]
    used = {*plain.values(), *special.values()}
    require(len(used) == len(plain) + len(special), "two of its tokens have the same id or name")
    require(min(used) >= 0 and max(used) < LARGEST, f"its ids must be from 0 to {LARGEST - 1:,}")
    special |= {f"<|hole_{i}|>": i for i in range(max(used)) if i not in used}
    chat = None
    if template is not None:
        text = template if isinstance(template, str) else json.dumps(template)
        chat = chat_templates.read(text, special, eos, begin, bool(fields.get("prefix")))
    if template and chat is None:
        print(
            "NOTE: its chat template is none of ChatML, Llama and Mistral; conversations become plain lines"
        )
    end = eos if eos in special else ""
    if chat or not end:
        end = next((name for name in DOCUMENT_ENDS if name in special), end or END)
    if names["added"]:
        made = ByteLevelTokenizer if made is BPETokenizer else made
        fields["added"] = list(names["added"])
    begin = begin if begin in special else ""
    return made(special_tokens=special, end=end, begin=begin, chat=chat, **fields)
