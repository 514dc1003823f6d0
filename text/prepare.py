"""Prepare a text: make the dataset datasets/NAME/ with token files, tokenizer.json and meta.json.

`python data.py` is the command for it. train.py prepares the datasets in KNOWN by itself.
"""

import contextlib
import json
import math
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from config import ROOT, at_least
from machine.distributed import all_gather, barrier
from runtime import guard
from runtime.trust import read_meta
from text.corpora import open_corpus, stand_in_notice
from text.formats import Source
from text.token_files import encode, publish, summary
from tokenizer import END, BPETokenizer, CharTokenizer, Tokenizer, load_any, open_tiktoken

DATASETS = ROOT / "datasets"
KNOWN = {
    "shakespeare_char": {"source": "shakespeare", "tokenizer": "char"},
    "shakespeare_bpe": {"source": "shakespeare", "tokenizer": "bpe", "vocab_size": 1024},
    "verse": {"source": "verse", "tokenizer": "char"},
    "python": {"source": "python", "tokenizer": "bpe", "vocab_size": 4096},
    "sums": {"source": "sums", "tokenizer": "char", "format": "jsonl"},
}


def prepare(
    name: str, source: str, tokenizer: str = "char", vocab_size: int = 0, format: str = "text",
    val_ratio: float = 0.1, test_ratio: float = 0.0, val_input: str = "", seed: int = 1337,
    dedup: bool = False, clean: bool = False, skip_bad: bool = False, threads: int = 0,
    shard_mb: float = 0.0, rank: int = 0, world_size: int = 1,
) -> dict:  # fmt: skip
    """Make datasets/NAME and return its meta.json as a dict. The settings of data.py explain the arguments.

    Three passes, none of which holds the text in memory: count and hash; train the tokenizer (bpe) on the
    training split only; encode. With several processes, each reads all text and writes its own shards; rank 0
    does the rest. If this is interrupted, an older dataset of that name stays as it was. ValueError for a
    setting that makes no sense, a source that cannot be read, or a tokenizer that cannot encode the text.
    """
    if not re.fullmatch(r"\w[\w.-]*", name) or name == "downloads":
        raise ValueError(f"--name={name} is no name for a dataset; expected letters, digits and _ - .")
    if source.endswith(".jsonl") and format == "text" and rank == 0:
        print("NOTE: the JSONL file is read as plain text, braces and all; --format=jsonl reads its rows")
    if format not in ("text", "lines", "jsonl"):
        raise ValueError(f"--format={format} is unknown; expected text, lines or jsonl")
    if min(val_ratio, test_ratio) < 0 or val_ratio + test_ratio >= 1:
        raise ValueError(f"{val_ratio=} and {test_ratio=} leave nothing to train on; try 0.1 and 0.0")
    if vocab_size and tokenizer != "bpe":
        raise ValueError(f"--vocab_size={vocab_size} is for --tokenizer=bpe, not {tokenizer}; leave it out")
    at_least(0, dict(seed=seed, threads=threads, shard_mb=shard_mb), "seed threads shard_mb")
    if world_size > 1 and not shard_mb:
        raise ValueError(f"{world_size} processes cannot write one file; set --shard_mb=100, or start one")
    corpora = [open_corpus(path, seed + i) for i, path in enumerate((source, val_input)) if path]
    if "stand_in_for" in corpora[0].info:
        if rank == 0:
            print(stand_in_notice(corpora[0].info))
        source = f"{corpora[0].name}, in place of {source}"
    sources = [Source(corpus, format, clean, dedup, skip_bad) for corpus in corpora]
    alphabet = set() if tokenizer == "char" else None
    totals = [each.count(alphabet) for each in sources]
    hashes = [each.sha256.hexdigest() for each in sources]
    ratios = {"val": 0 if val_input else val_ratio, "test": test_ratio}
    shares = {split: math.ceil(round(totals[0] * ratio, 6)) for split, ratio in ratios.items() if ratio}
    if sum(shares.values()) >= totals[0]:
        raise ValueError(f"{source} is too short to be split: {totals[0]} characters or samples in all")
    sources[0].shares = {"train": totals[0] - sum(shares.values()), **shares}
    sources[-1].shares = {"val": totals[1]} if val_input else sources[0].shares

    end = format != "text" or any(corpus.many for corpus in corpora)  # an end token closes each document
    temporary = None
    with contextlib.ExitStack() as at_end:
        if rank == 0:
            at_end.enter_context(guard.alone(DATASETS / f".{name}.lock"))
            made = make_tokenizer(tokenizer, vocab_size, end, sources[0].parts(seed), alphabet)
            temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=DATASETS))
            at_end.callback(shutil.rmtree, temporary, ignore_errors=True)
            made.save(temporary / "tokenizer.json")
        if world_size > 1:  # wait for rank 0's tokenizer; its hashes tell whether all read the same text
            temporary, hashes = all_gather((temporary, hashes))[0]
            at_end.callback(shutil.rmtree, temporary, ignore_errors=True)
        text_tokenizer = load_any(str(temporary))

        def parts():
            for each in sources:
                yield from each.parts(seed)
            if [each.sha256.hexdigest() for each in sources] != hashes:
                raise ValueError(f"{source} changed while it was being read; prepare it again")

        how = (end, format == "jsonl", threads, shard_mb, rank, world_size)
        meta = {
            **corpora[0].info,
            **dict(name=name, source=source, val_input=val_input, sha256=hashes[0], seed=seed, format=format),
            "dropped": dict(sum((each.dropped for each in sources), Counter())),
            "tokenizer": text_tokenizer.kind,
            "tokenizer_hash": text_tokenizer.hash,
            "vocab_size": text_tokenizer.vocab_size,
            **encode(parts(), text_tokenizer, temporary, *how),
        }
        if rank == 0:
            (temporary / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
            publish(temporary, DATASETS / name, meta)
            print(summary(meta))
        if world_size > 1:
            barrier()  # a process that ends, finished or failed, removes the temporary folder
    return meta


def make_tokenizer(kind: str, vocab_size: int, end: bool, parts, alphabet: set[str] | None) -> Tokenizer:
    """The tokenizer that the setting names: kind is char, bpe, gpt2 or the path of a saved one.

    alphabet: the characters of all splits, for char. This is no leak: an alphabet is no statistic, and val
    could not be encoded without it. Byte pairs learn only from the training split of parts.
    """
    special = [END] if end or kind == "bpe" else []  # bpe: fine-tuning may add samples, which need it
    if kind == "char":
        return CharTokenizer.train(sorted(alphabet), special)
    if kind == "bpe":
        texts = (text for split, segments, _ in parts if split == "train" for text, _ in segments)
        return BPETokenizer.train(texts, vocab_size or 1024, special)
    return gpt2() if kind == "gpt2" else load_any(kind)


def gpt2() -> BPETokenizer:
    """GPT-2's 50,257 tokens, from tiktoken's cache or the network. "Hello world" becomes 15496, 995."""
    remedy = "connect, or set TIKTOKEN_CACHE_DIR to a folder that holds it, or use --tokenizer=bpe"
    tiktoken, _ = open_tiktoken()
    try:
        theirs = tiktoken.get_encoding("gpt2")
    except Exception as error:  # of many types: no network, a broken download, a full disk
        raise ValueError(f"GPT-2's vocabulary is not cached ({type(error).__name__}): {remedy}") from None
    return BPETokenizer([theirs.decode_single_token_bytes(i) for i in range(theirs.eot_token)], [END])


def folder_of(name: str | Path) -> Path:
    """The folder of a prepared dataset, by its name or path. ValueError names the command that makes it."""
    for folder in (DATASETS / name, Path(name)):
        if (folder / "meta.json").is_file():
            return folder
    command = f"--name={name}" if name in KNOWN else f"--input=FILE --name={Path(name).name or 'NAME'}"
    raise ValueError(f"dataset {str(name)!r} is not prepared; run: python data.py {command}")


def ensure(name: str, rank: int = 0) -> dict:
    """Return a dataset's meta.json as a dict. Rank 0 prepares a KNOWN one if it is missing; other ranks wait.

    ValueError names the command that prepares any other dataset.
    """
    if rank == 0 and name in KNOWN and not (DATASETS / name / "meta.json").is_file():
        with guard.alone(DATASETS / f".{name}.lock"):
            if not (DATASETS / name / "meta.json").is_file():  # another process may have made it meanwhile
                prepare(name, **KNOWN[name])
    barrier()
    return read_meta(folder_of(name))


def floor_per_token(meta: dict, split: str) -> float:
    """The entropy of a split in nats per token, a floor for every model's mean loss; 0.0 if it is unknown."""
    per_char = 0.0 if meta["dropped"] else meta.get("nats_per_char", 0.0)
    counts = meta["splits"][split]
    return per_char * counts["characters"] / counts["tokens"]
