r"""Our tokenizers as other programs read them: Hugging Face's tokenizer.json, and the keys of a GGUF file.

    BPETokenizer, bytelevel     byte-level BPE with the same ids; both formats
    sentencepiece               the same; Hugging Face's normalizer or Metaspace, GGUF's "llama"
    char                        Hugging Face: BPE without merges, which leaves out unknown characters;
                                GGUF has no such kind

A chat template is written in Jinja, made from our plain fields (chat_templates.py).
"""

import json
from pathlib import Path

from config import require
from config._special import end_of_turn, pattern_of
from techniques.exchange import chat_templates, split_patterns
from tokenizer import Tokenizer

# GPT-2 writes each byte as a character that can be seen: itself, or one from U+0100 on. " the" is "Ġthe".
_VISIBLE = {*range(33, 127), *range(161, 173), *range(174, 256)}
_OTHERS = sorted({*range(256)} - _VISIBLE)
SEEN = [chr(byte) if byte in _VISIBLE else chr(256 + _OTHERS.index(byte)) for byte in range(256)]  # by byte
BLANK = "▁"  # SentencePiece's blank


def write_folder(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json, for transformers and others."""
    folder, names = Path(folder), {i: name for name, i in tokenizer.special_tokens.items()}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    generation = {}
    if tokenizer.stop_ids:
        stop = stop_id(tokenizer)
        settings |= {
            "eos_token": names[stop],
            "pad_token": names[max(tokenizer.end_id, tokenizer.stop_ids[0])],
        }
        others = [i for i in tokenizer.stop_ids if i != stop]
        generation["eos_token_id"] = [stop, *others] if others else stop
    if tokenizer.begin_id >= 0:
        settings |= {"bos_token": names[tokenizer.begin_id], "add_bos_token": True}
        generation["bos_token_id"] = tokenizer.begin_id
    if tokenizer.chat:
        prefix = tokenizer.kind == "sentencepiece" and bool(tokenizer.fields["prefix"])
        settings["chat_template"] = chat_templates.write(tokenizer, prefix)
    written = {
        "tokenizer": to_hugging_face(tokenizer),
        "tokenizer_config": settings,
        "generation_config": generation,
    }
    for name, state in written.items():
        text = json.dumps(state, ensure_ascii=False, indent=1) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8", newline="\n")


def stop_id(tokenizer: Tokenizer) -> int:
    """The id of which others say that it ends a text: that of a reply's end if there is a chat template."""
    if not tokenizer.chat:
        return tokenizer.end_id
    return tokenizer.special_tokens[end_of_turn(tokenizer.chat, pattern_of(tokenizer.special_tokens))]


def to_hugging_face(tokenizer: Tokenizer) -> dict:
    """The tokenizer.json: an object of normalizer, pre_tokenizer, model, post_processor and decoder."""
    spelled, added = spell(tokenizer), tokenizer.fields.get("added", [])
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    tokens = [{"id": i, "content": name, **flags, "special": name not in added}
              for name, i in tokenizer.special_tokens.items()]  # fmt: skip
    model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None, "ignore_merges": False}
    model |= {"vocab": {token: i for i, token in enumerate(spelled)}, "merges": merges_of(tokenizer, spelled)}
    normalizer, cut, decoder = None, None, {"type": "Fuse"}
    if tokenizer.kind == "sentencepiece":
        model["byte_fallback"] = True
        prefix = tokenizer.fields["prefix"]
        normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
        if prefix == "always":
            steps = [{"type": "Prepend", "prepend": BLANK}, normalizer]
            normalizer = {"type": "Sequence", "normalizers": steps}
        elif prefix:
            normalizer = None
            cut = {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": "always", "split": False}
        steps = [{"type": "Replace", "pattern": {"String": BLANK}, "content": " "}, {"type": "ByteFallback"}]
        steps += [{"type": "Fuse"}] + [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * bool(
            prefix
        )
        decoder = {"type": "Sequence", "decoders": steps}
    elif tokenizer.kind != "char":
        form = tokenizer.fields.get("normal_form")
        normalizer = {"type": form} if form else None
        cut = split_patterns.write(tokenizer.pattern, tokenizer.fields.get("prefix", False))
        decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    state = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens}
    state |= {"normalizer": normalizer, "pre_tokenizer": cut, "post_processor": beginning(tokenizer)}
    return {**state, "decoder": decoder, "model": model}


def beginning(tokenizer: Tokenizer) -> dict | None:
    """The post_processor that puts the begin token before a text; None if there is no such token."""
    if tokenizer.begin_id < 0:
        return None
    name = tokenizer.fields["begin"]
    single = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"SpecialToken": {"id": name, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    special = {name: {"id": name, "ids": [tokenizer.begin_id], "tokens": [name]}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def spell(tokenizer: Tokenizer) -> list[str]:
    """All tokens by id, as both formats spell them: GPT-2's characters for bytes, special tokens by name."""
    if tokenizer.kind in ("char", "sentencepiece"):
        plain = [token.decode("utf-8") for token in tokenizer.tokens]
    else:
        plain = ["".join(SEEN[byte] for byte in token) for token in tokenizer.tokens]
    for name, i in tokenizer.special_tokens.items():
        plain.insert(i, name)
    require(len(set(plain)) == len(plain), "a special token is spelled as another token; rename it")
    return plain


def merges_of(tokenizer: Tokenizer, spelled: list[str]) -> list[list[str]]:
    """All pairs of tokens that spell a token, in the order in which tokens are made. More than were learned:
    we join what spells a token, whatever it is made of, and so do others with this list."""
    if tokenizer.kind == "char":
        return []
    rank = {spelled[i]: i for i in tokenizer.ids}
    if tokenizer.kind == "sentencepiece":
        rank = dict(tokenizer._rank)
    merges = []
    for token in sorted(rank, key=rank.get):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs = [
            (rank[left], rank[right], left, right) for left, right in cuts if left in rank and right in rank
        ]
        merges += [[left, right] for _, _, left, right in sorted(pairs)]
    return merges


def gguf_metadata(tokenizer: Tokenizer) -> dict:
    """The keys tokenizer.* of a GGUF file. ValueError for a vocabulary that GGUF has no kind for."""
    advice = "export --format=hf, or train on a text prepared with data.py --tokenizer=bpe"
    require(tokenizer.kind != "char", f"GGUF has no vocabulary of characters; {advice}")
    spelled, added = spell(tokenizer), tokenizer.fields.get("added", [])
    types = [1] * len(spelled)
    for name, i in tokenizer.special_tokens.items():
        types[i] = 4 if name in added else 5 if name.startswith("<|unused_") else 2 if name == "<unk>" else 3
    own = {"model": "gpt2", "tokens": spelled, "token_type": types}
    if tokenizer.kind == "sentencepiece":
        own |= {"model": "llama", "pre": "default", "add_space_prefix": bool(tokenizer.fields["prefix"])}
        scores = [0.0] * len(spelled)
        for piece, rank in tokenizer._rank.items():
            scores[tokenizer._id[piece]] = -float(rank)
        own["scores"] = scores
        for i in tokenizer._byte_ids:
            types[i] = 6
    else:
        pre = split_patterns.name_of(tokenizer.pattern)
        require(pre != "", f"GGUF has no name for the pattern {tokenizer.pattern:.40}; export --format=hf")
        own |= {"pre": pre, "add_space_prefix": tokenizer.fields.get("prefix", False)}
        own["merges"] = [" ".join(pair) for pair in merges_of(tokenizer, spelled)]
    own["add_bos_token"] = tokenizer.begin_id >= 0
    if tokenizer.begin_id >= 0:
        own["bos_token_id"] = tokenizer.begin_id
    if tokenizer.stop_ids:
        own["eos_token_id"] = stop_id(tokenizer)
    metadata = {f"tokenizer.ggml.{key}": value for key, value in own.items()}
    if tokenizer.chat:
        metadata["tokenizer.chat_template"] = chat_templates.write(tokenizer)
    return metadata
