"""A text to be evaluated, encoded with the tokenizer that the model has."""

import json
from pathlib import Path

from text.corpora import open_text, stand_in_notice
from text.formats import Source
from text.token_files import encode


def encode_text(source: str, tokenizer, folder: Path, format: str, like: str, say: bool) -> list[str]:
    """Write a whole file or source into folder as a test split, for evaluation. Returns notes about the text.

    format, like, say: see open_text. ValueError if the source holds no text.
    """
    corpus, format = open_text(source, format=format, like=like, say=say)
    if say and "stand_in_for" in corpus.info:
        print(stand_in_notice(corpus.info))
    text = Source(corpus, format, tokenizer=tokenizer)
    closed = format != "text" or corpus.many  # else a document is closed if END stands in the text
    parts = (("test", segments, ends and (closed or text.ended > 0)) for segments, ends in text)
    end = format != "text" or tokenizer.end_id >= 0
    meta = encode(parts, tokenizer, folder, end, masks=format == "jsonl")
    meta.update(name=corpus.name, format=format, shown=source)
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    if "test" not in meta["splits"]:
        raise ValueError(f"{source} holds no text; expected some to evaluate")
    return text.notes()
