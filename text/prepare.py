"""Prepare a text: make the dataset datasets/NAME/ with token files, tokenizer.json and meta.json.

`python data.py` is the command for it. train.py prepares by itself: the datasets in KNOWN, and a file or
folder of text that its setting `dataset` names (see settle).
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

from config import ROOT, at_least, require, typed
from config._nanogpt import DATASETS as OF_NANOGPT
from machine.distributed import all_gather, barrier
from runtime import guard
from runtime.more_tokens import extended
from runtime.trust import read_meta
from text.corpora import first_characters, open_text, stand_in_notice, two_meanings
from text.dataset import OLD, OLD_MASK, is_old, publish, require_same_content, restore
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
AUTOMATIC = {"tokenizer": "char", "val_ratio": 0.1, "seed": 1337}  # how train.py prepares a file of text


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


def ensure(name: str) -> dict:
    """Return a dataset's meta.json as a dict; prepares what settle() can prepare."""
    return settle(name)[1]


def settle(dataset: str, rank: int = 0, resume: bool = False) -> tuple[str, dict]:
    """What train.py's setting names: (the name of a prepared dataset, or its absolute path; its meta.json).

    dataset: a name in KNOWN, a prepared dataset's name or path, or a file or folder of text. If a known one
    is missing, or the text has not been prepared as it is now, rank 0 prepares it; other ranks wait. resume:
    a text that has changed since then is an error instead. ValueError names the command that prepares others.
    """
    refuse_two_meanings(dataset)
    dataset = dataset.removeprefix("builtin:") if dataset.removeprefix("builtin:") in KNOWN else dataset
    if dataset in KNOWN:
        if rank == 0 and not (DATASETS / dataset / "meta.json").is_file():
            with guard.alone(DATASETS / f".{dataset}.lock"):
                if not is_prepared(dataset):  # another process may have made it meanwhile
                    prepare(dataset, **KNOWN[dataset])
        barrier()
        return dataset, read_meta(folder_of(dataset))
    text = text_of(dataset, resume)
    if text and rank == 0:
        prepare_text(text, dataset, resume)
    barrier()
    folder = Path(os.path.abspath(folder_of(automatic_name(text) if text else dataset)))
    inside = folder.parent.resolve() == DATASETS.resolve()
    meta = read_meta(folder)
    if rank == 0 and is_old(meta):
        print(f"NOTE: {dataset} was prepared by an older version: {OLD_MASK}; prepare it again with data.py")
    return folder.name if inside else str(folder), meta


def refuse_two_meanings(dataset: str) -> None:
    """ValueError if the typed setting names a file here and another dataset, of the project or prepared."""
    path = Path(dataset)
    if not typed("dataset") or dataset != path.name or not path.exists():
        return
    require(dataset not in KNOWN, two_meanings("dataset", dataset))
    if path.is_file() and is_prepared(DATASETS / dataset) and not automatic_source(dataset):
        source = read_meta(folder_of(DATASETS / dataset))["source"]
        if not (Path(source).exists() and path.samefile(source)):
            raise ValueError(
                f"--dataset={dataset} has two meanings: the file here, and {DATASETS / dataset}, made from "
                f"{source}; write ./{dataset} or datasets/{dataset}"
            )


def is_prepared(name: str | Path) -> bool:
    """Whether a dataset is there, by its name or path."""
    with contextlib.suppress(ValueError):
        return bool(folder_of(name))
    return False


def text_of(dataset: str, resume: bool) -> Path | None:
    """The file or folder of text that train.py's setting names; None if it names a prepared dataset."""
    path = Path(dataset)
    if dataset == path.name and is_prepared(DATASETS / dataset):
        source = automatic_source(dataset)
        candidates = [source, path] if resume else [path, source]
        return next((each for each in candidates if source and each.exists()), None)
    return path if path.exists() and not is_prepared(path.absolute()) else None


def automatic_source(name: str) -> Path | None:
    """The file or folder that settle() has made this dataset from; None if it was made by hand, or copied."""
    meta = read_meta(folder_of(DATASETS / name))
    return Path(meta["source"]) if "automatic" in meta and meta["name"] == name else None


def automatic_name(text: Path) -> str:
    """The name of the dataset that is made from a file or folder: mine.txt, texts.folder.

    If another dataset has it, a number follows.
    """
    text = text.resolve()
    base = re.sub(r"[^\w.-]+", "-", text.name).lstrip(".-") or "text"
    base += ".folder" if text.is_dir() else ""
    for name in itertools.chain([base], (f"{base}-{n}" for n in itertools.count(2))):
        if name not in KNOWN and (not is_prepared(DATASETS / name) or automatic_source(name) == text):
            return name


def prepare_text(text: Path, dataset: str, resume: bool) -> None:
    """Prepare a file or folder of text as train.py does, unless that was done and its content is the same."""
    name = automatic_name(text)
    with guard.alone(DATASETS / f".{name}.lock"):
        source = Source(*open_text(str(text), say=False))
        changed = is_prepared(DATASETS / name)
        if changed:
            meta = read_meta(folder_of(DATASETS / name))
            for _ in source.chunks():
                pass
            if (source.sha256.hexdigest(), AUTOMATIC) == (meta["sha256"], meta["automatic"]):
                return
        if changed and resume:
            raise ValueError(
                f"{text} is not the text in {DATASETS / name}; for a new run on {text}: "
                "--init_from=scratch --out_dir=NEW; to resume, add --dataset=NAME, and prepare the text that "
                "the run was trained on (python data.py --input=FILE --name=NAME)"
            )
        what = f"the folder {dataset}" if text.is_dir() else dataset
        what += ", which has changed," if changed else ""
        print(f"preparing {what} by characters as dataset {name} (python data.py offers more)", flush=True)
        prepare(name, str(text.resolve()), **AUTOMATIC, automatic=AUTOMATIC)


def require_same(saved: dict, meta: dict, dataset: str, out_dir: str) -> None:
    """ValueError if a run that is resumed was trained on another text than the dataset holds now."""
    same_tokenizer = saved["dataset"].get("tokenizer_hash") == meta.get("tokenizer_hash")
    base = out_dir if same_tokenizer else "scratch"  # with other tokens its weights would mean nothing
    advice = f"start a new run on this one: --init_from={base} --out_dir=NEW"
    require_same_content(saved["dataset"], meta, folder_of(dataset), out_dir, advice)
