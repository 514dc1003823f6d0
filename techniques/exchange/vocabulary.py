"""Tokenizers of other people's models: Hugging Face folders and GGUF files become ours, and ours theirs.

    read_folder(folder)    tokenizer.json (with tokenizer_config.json), or vocab.json and merges.txt (GPT-2)
    read_gguf(metadata)    the keys tokenizer.* of a GGUF file
    write_folder, gguf_metadata: the way back, in vocabulary_out.py

Known are byte-level BPE (bytelevel.py; its patterns in split_patterns.py) and SentencePiece's BPE with byte
fallback (sentencepiece.py). A stranger's file is checked, and nothing in it is run: a chat template is read
as text (chat_templates.py). Formats: https://github.com/huggingface/tokenizers and docs/gguf.md of ggml.
"""

import json
import re
from pathlib import Path

from config import require
from techniques.bytelevel import FORMS
from techniques.exchange import split_patterns
from techniques.exchange.vocabulary_kinds import LARGEST, byte_level, characters, finish, sentencepiece
from techniques.exchange.vocabulary_out import gguf_metadata, write_folder
from techniques.sentencepiece import BYTES
from tokenizer import END, Tokenizer, from_json

__all__ = ["gguf_metadata", "padded", "read", "read_folder", "read_gguf", "write_folder"]
TYPES = {1: "", 2: "special", 3: "special", 4: "added", 5: "special", 6: ""}  # GGUF's token_type
ADVICE = (
    "for other files, open the folder in transformers and save it: AutoTokenizer.from_pretrained(FOLDER)"
    ".save_pretrained(FOLDER)"
)


def read(path: str | Path) -> Tokenizer:
    """The tokenizer of a folder of Hugging Face or of a .gguf file, padded() to the size of its model."""
    path = Path(path)
    if path.suffix != ".gguf":
        return read_folder(path)
    from techniques.exchange.gguf_header import open_file  # it needs torch

    metadata, entries, _ = open_file(path)
    rows = entries["token_embd.weight"].shape[0] if "token_embd.weight" in entries else 0
    return padded(read_gguf(metadata), rows)


def padded(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    """The tokenizer with reserved tokens, <|unused_0|> and so on, for the rows that its model has more."""
    n = tokenizer.vocab_size
    if type(rows) is not int or not n < rows <= LARGEST:
        return tokenizer
    state = json.loads(tokenizer.to_json())
    state["special_tokens"] = tokenizer.special_tokens | {f"<|unused_{i}|>": n + i for i in range(rows - n)}
    return from_json(json.dumps(state))


def read_folder(folder: str | Path) -> Tokenizer:
    """The tokenizer of a folder of Hugging Face. ValueError, one line that names it, for what is unknown."""
    folder = Path(folder)
    try:
        state, settings = json_of(folder / "tokenizer.json"), json_of(folder / "tokenizer_config.json")
        merges = folder / "merges.txt"
        if not state and merges.is_file():
            state = gpt2_state(json_of(folder / "vocab.json"), merges.read_text(encoding="utf-8"))
        require(bool(state), f"expected tokenizer.json, or vocab.json and merges.txt; {ADVICE}")
        template = folder / "chat_template.jinja"
        if template.is_file():
            settings["chat_template"] = template.read_text(encoding="utf-8")
        rows = json_of(folder / "config.json").get("vocab_size")
        return padded(from_hugging_face(state, settings), rows)
    except Exception as error:  # of many types: a stranger's file may hold anything anywhere
        raise ValueError(f"no tokenizer can be read from {folder}: {told(error)}") from None


def told(error: Exception) -> str:
    """What an error says, in one short line."""
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())[:400]


def json_of(path: Path) -> dict:
    """The object in a JSON file; {} if the file is missing."""
    state = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    require(isinstance(state, dict), f"{path.name} is no JSON object")
    return state


def gpt2_state(vocab: dict, merges: str) -> dict:
    """vocab.json and merges.txt as GPT-2 has them, in the form of a tokenizer.json."""
    lines = [line for line in merges.split("\n") if line.strip() and not line.startswith("#version")]
    added = [{"id": vocab[END], "content": END, "special": True}] if END in vocab else []
    steps = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    model = {"type": "BPE", "vocab": vocab, "merges": [line.rstrip("\r") for line in lines]}
    return {"model": model, "added_tokens": added, "pre_tokenizer": steps}


def from_hugging_face(state: dict, settings: dict) -> Tokenizer:
    """The tokenizer of a tokenizer.json and its tokenizer_config.json."""
    model = state["model"]
    kind = model.get("type", "BPE" if "merges" in model else None)
    require(
        kind == "BPE", f"its model is {kind}; expected BPE, as GPT-2, Llama, Mistral, Qwen and SmolLM2 have"
    )
    vocab = model["vocab"]
    require(type(vocab) is dict and all(type(i) is int for i in vocab.values()), "vocab must be {token: id}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        require(not model.get(key), f"its model has {key}={model.get(key)!r:.20}, which is not known here")
    names = {"special": {}, "added": {}}
    for token in state.get("added_tokens") or []:
        flags = [flag for flag in ("lstrip", "rstrip", "single_word") if token.get(flag)]
        name = token["content"]
        require(not flags, f"its token {name!r:.40} has {flags}, which is not known here")
        require(type(name) is str and type(token["id"]) is int, f"the id of {name!r:.40} is no number")
        names["special" if token.get("special") else "added"][name] = token["id"]
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    require(
        all(len(m) == 2 and type(m[0]) is type(m[1]) is str for m in merges), "a merge must be two tokens"
    )
    joined = list(dict.fromkeys(left + right for left, right in merges))
    taken = names["special"] | names["added"]
    plain = {token: i for token, i in vocab.items() if token not in taken}
    normalizers, steps = flat(state.get("normalizer")), flat(state.get("pre_tokenizer"))
    if model.get("byte_fallback"):
        made = sentencepiece(plain, joined, prefix_of(normalizers, steps))
    elif not merges and not normalizers and not steps:
        made = characters(plain)
    else:
        forms = [step.get("type") for step in normalizers]
        good = len(forms) < 2 and {*forms} <= {*FORMS}
        require(good, f"its normalizer {forms} is not known; expected NFC or none")
        pattern, prefix = split_patterns.read(steps)
        made = byte_level(plain, joined, vocab, pattern, prefix, "".join(forms))
    begin, eos = beginning(state, settings), name_of(settings.get("eos_token"))
    return finish(made, plain, names, eos, begin, settings.get("chat_template"))


def flat(step: dict | None) -> list[dict]:
    """The steps of a normalizer, pre_tokenizer or post_processor, which may be a Sequence of others."""
    for key in ("normalizers", "pretokenizers", "processors"):
        if step and key in step:
            return step[key]
    return [step] if step else []


def name_of(token) -> str:
    """The name of a token, which tokenizer_config.json gives as a text or as an object."""
    return str(token.get("content", "") if isinstance(token, dict) else token or "")


def beginning(state: dict, settings: dict) -> str:
    """The name of the token that is put before a text, "" if there is none."""
    wanted = settings.get("add_bos_token")
    if wanted is not None:
        return name_of(settings.get("bos_token")) if wanted else ""
    single = [each for step in flat(state.get("post_processor")) for each in step.get("single") or []]
    return single[0].get("SpecialToken", {}).get("id", "") if single else ""


def prefix_of(normalizers: list[dict], steps: list[dict]) -> str:
    """When a blank is put before a text: one of sentencepiece.PREFIXES. ValueError for unknown steps."""
    kinds = [step.get("type") for step in [*normalizers, *steps]]
    if kinds == ["Prepend", "Replace"] and normalizers[0]["prepend"] == normalizers[1]["content"] == "▁":
        return "always"
    if kinds == ["Replace"] and normalizers and normalizers[0]["content"] == "▁":
        return ""
    require(kinds == ["Metaspace"] and steps[0]["replacement"] == "▁", f"its steps {kinds} are not known")
    scheme = steps[0].get("prepend_scheme") or "always" * steps[0].get("add_prefix_space", True)
    return "unless blank" if scheme in ("always", "first") else ""


def read_gguf(metadata: dict) -> Tokenizer:
    """The tokenizer of a GGUF file's keys tokenizer.*. ValueError, one line, for what is not known."""
    try:
        return from_gguf({key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()})
    except Exception as error:  # of many types: a stranger's file may hold anything anywhere
        raise ValueError(f"no tokenizer can be read from this GGUF file: {told(error)}") from None


def from_gguf(own: dict) -> Tokenizer:
    """read_gguf, for keys without "tokenizer.ggml."."""
    kind, pre = own.get("model"), own.get("pre", "default")
    require(
        kind in ("gpt2", "llama"), f"its tokenizer is {kind!r:.20}; expected 'gpt2' or 'llama', kinds of BPE"
    )
    tokens, types = own["tokens"], own.get("token_type") or [1] * len(own["tokens"])
    good = type(tokens) is list and len(types) == len(tokens) == len(set(tokens)) and {*types} <= TYPES.keys()
    require(good, "its tokens must be different, with a known token_type each")
    names = {"special": {}, "added": {}, "": {}}
    for i, (token, number) in enumerate(zip(tokens, types, strict=True)):
        unused = re.fullmatch(r"\[PAD\d+\]", token)  # rows of the model that no token of its tokenizer has
        names["special" if unused else TYPES[number]][token] = i
    plain = names[""]
    if kind == "llama":
        scores = own["scores"]
        require(len(scores) == len(tokens), "each token must have a score")
        order = [token for token in plain if len(token) > 1 and token not in BYTES]
        order.sort(key=lambda token: (-scores[plain[token]], plain[token]))
        made = sentencepiece(plain, order, "always" if own.get("add_space_prefix", True) else "")
    else:
        require(
            pre in split_patterns.PRE, f"its pre={pre!r:.20}; expected one of {', '.join(split_patterns.PRE)}"
        )
        joined = list(dict.fromkeys(merge.replace(" ", "") for merge in own["merges"]))
        form = "NFC" if pre == "qwen2" else ""  # as Qwen's own tokenizer; GGUF has no key for it
        pattern, prefix = split_patterns.ours(*split_patterns.PRE[pre]), bool(own.get("add_space_prefix"))
        made = byte_level(plain, joined, set(tokens), pattern, prefix, form)
    ids = [own.get("eos_token_id"), own.get("bos_token_id")]
    eos, bos = (tokens[i] if type(i) is int and 0 <= i < len(tokens) else "" for i in ids)
    begin = bos if own.get("add_bos_token", kind == "llama") else ""
    return finish(made, plain, names, eos, begin, own.get("tokenizer.chat_template"))
