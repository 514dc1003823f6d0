"""Prepare a text: make the dataset datasets/NAME/ with token files, tokenizer.json and meta.json.

`python data.py` is the command for it. train.py prepares by itself: the datasets in KNOWN, and a file or
folder of text that its setting `dataset` names (settle.py).
"""

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from config import ROOT, at_least
from config._nanogpt import DATASETS as OF_NANOGPT
from machine.distributed import all_gather, barrier
from runtime import guard
from runtime.more_tokens import extended
from text.corpora import first_characters, open_text, stand_in_notice
from text.dataset import OLD, publish, restore
from text.formats import Source
from text.new_tokenizer import make_tokenizer
from text.token_files import encode, summary
from tokenizer import Tokenizer, load_any

DATASETS = ROOT / "datasets"
KNOWN = {
    "shakespeare_char": {"source": "builtin:shakespeare", "tokenizer": "char"},
    "shakespeare_bpe": {"source": "builtin:shakespeare", "tokenizer": "bpe", "vocab_size": 1024},
    "verse": {"source": "builtin:verse", "tokenizer": "char"},
    "python": {"source": "builtin:python", "tokenizer": "bpe", "vocab_size": 4096},
    "sums": {"source": "builtin:sums", "tokenizer": "char", "format": "jsonl"},
    "sums_text": {"source": "builtin:sums_text", "tokenizer": "char"},
    "sums_easy": {"source": "builtin:sums_easy", "tokenizer": "char", "format": "jsonl", "dedup": True},
}


def prepare(
    name: str, source: str, tokenizer: str = "char", vocab_size: int = 0, format: str = "", val_ratio=0.1,
    test_ratio=0.0, val_input: str = "", seed: int = 1337, dedup=False, clean=False, skip_bad=False,
    threads: int = 0, shard_mb=0.0, add_tokens: str = "", first: int = 0, near_dedup=0.0, quality: str = "",
    rank: int = 0, world_size: int = 1, automatic: dict | None = None,
) -> dict:  # fmt: skip
    """Make datasets/NAME and return its meta.json as a dict. The settings of data.py explain the arguments.

    Three passes, none of which holds the text in memory: count and hash; train the tokenizer (bpe) on the
    training split only; encode. With several processes, each reads all text and writes its own shards; rank 0
    does the rest. If this is interrupted, an older dataset of that name stays as it was. automatic: for
    meta.json, if settle() asks for it. ValueError for a setting that makes no sense, a source that cannot be
    read, or a tokenizer that cannot encode the text.
    """
    if not re.fullmatch(r"\w[\w.-]*", name) or name == "downloads":
        raise ValueError(f"--name={name} is no name for a dataset; expected letters, digits and _ - .")
    folder, tokenizer = DATASETS / name, tokenizer.removeprefix("builtin:")
    if folder.is_symlink() and not folder.is_dir():
        raise ValueError(f"{folder} is a link to {os.readlink(folder)}, which is not there; mount that disk")
    if min(val_ratio, test_ratio) < 0 or val_ratio + test_ratio >= 1:
        raise ValueError(f"{val_ratio=} and {test_ratio=} leave nothing to train on; try 0.1 and 0.0")
    if vocab_size and tokenizer != "bpe":
        raise ValueError(f"--vocab_size={vocab_size} is for --tokenizer=bpe, not {tokenizer}; leave it out")
    numbers = dict(seed=seed, threads=threads, shard_mb=shard_mb, first=first)
    at_least(0, numbers, "seed threads shard_mb first")
    if world_size > 1 and not shard_mb:
        raise ValueError(f"{world_size} processes cannot write one file; set --shard_mb=100, or start one")
    paths = [path for path in (source, val_input) if path]
    opened = [open_text(path, seed + i, format, nul=clean, say=rank == 0) for i, path in enumerate(paths)]
    corpora, formats = zip(*opened, strict=True)
    format = formats[0]
    if format != formats[-1]:
        raise ValueError(f"--input is {format}, --val_input is {formats[-1]}; give one kind, or set --format")
    if first:
        corpora = (first_characters(corpora[0], first, format), *corpora[1:])
    source = source.removeprefix("builtin:")
    if rank == 0 and "stand_in_for" in corpora[-1].info and val_input:
        print(stand_in_notice(corpora[-1].info))
    if "stand_in_for" in corpora[0].info:
        source = f"{corpora[0].name}, in place of {source}"
    known = None if tokenizer in ("char", "bpe", "gpt2") else saved_tokenizer(tokenizer)
    selection = [(quality, near_dedup), ("", 0.0)]  # val_input stays whole: losses on it can be compared
    sources = [
        Source(corpus, format, clean, dedup, skip_bad, known, *how)
        for corpus, how in zip(corpora, selection, strict=False)
    ]
    alphabet = set() if tokenizer == "char" else None
    totals = [each.count(alphabet) for each in sources]
    hashes = [each.sha256.hexdigest() for each in sources]
    for line in itertools.chain.from_iterable(each.notes() for each in sources if rank == 0):
        print(line)
    ratios = {"val": 0 if val_input else val_ratio, "test": test_ratio}
    shares = {split: math.ceil(round(totals[0] * ratio, 6)) for split, ratio in ratios.items() if ratio}
    if sum(shares.values()) >= totals[0]:
        raise ValueError(f"{source} is too short to be split: {totals[0]} characters or samples in all")
    sources[0].shares = {"train": totals[0] - sum(shares.values()), **shares}
    sources[-1].shares = {"val": totals[1]} if val_input else sources[0].shares

    # An end token closes each document.
    end = format != "text" or any(each.corpus.many or each.ended for each in sources)
    temporary = None
    with contextlib.ExitStack() as at_end:
        if rank == 0:
            at_end.enter_context(guard.alone(DATASETS / f".{name}.lock"))
            made = known or make_tokenizer(tokenizer, vocab_size, end, sources[0].parts(seed), alphabet)
            made = extended(made, add_tokens)
            on_its_disk = folder if folder.is_symlink() else DATASETS
            temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=on_its_disk))
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
            **dict(tokenizer=text_tokenizer.kind, tokenizer_hash=text_tokenizer.hash),
            "vocab_size": text_tokenizer.vocab_size,
            **encode(parts(), text_tokenizer, temporary, *how),
            **({"automatic": automatic} if automatic else {}),
        }
        if rank == 0:
            (temporary / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
            publish(temporary, folder, meta)
            print(summary(meta))
        if world_size > 1:
            barrier()  # a process that ends, finished or failed, removes the temporary folder
    return meta


def saved_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer of a run, dataset or file. ValueError if a file here and a dataset have that name."""
    found = load_any(spec)
    if spec == Path(spec).name and (DATASETS / spec / "tokenizer.json").is_file():
        if found.hash != load_any(DATASETS / spec).hash:
            raise ValueError(
                f"--tokenizer={spec} has two meanings, {Path(spec).absolute()} and the dataset "
                f"{DATASETS / spec}, whose tokenizers differ; write the path"
            )
    return found


def folder_of(name: str | Path) -> Path:
    """The folder of a prepared dataset, by its name or path. ValueError names the command that makes it."""
    for folder in (DATASETS / name, Path(name)):
        if not (folder / "meta.json").is_file() and (folder / OLD).is_dir():  # killed while replacing it
            with guard.alone(folder.parent / f".{folder.name}.lock"):
                restore(folder)
        if (folder / "meta.json").is_file():
            return folder
    command = f"--name={name}" if name in KNOWN else f"--input=FILE --name={Path(name).name or 'NAME'}"
    advice = OF_NANOGPT.get(str(name), f"run: python data.py {command}")
    raise ValueError(f"dataset {str(name)!r} is not prepared; {advice}")


def is_prepared(name: str | Path) -> bool:
    """Whether a dataset is there, by its name or path."""
    with contextlib.suppress(ValueError):
        return bool(folder_of(name))
    return False
