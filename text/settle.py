"""What train.py's setting `dataset` names: a known dataset, a prepared one, a text, which is prepared, or a
mixture of several (techniques/mixture.py)."""

import itertools
import os
import re
from pathlib import Path

from config import require, typed
from machine.distributed import barrier
from runtime import guard
from runtime.trust import check_types, read_meta
from text import prepare
from text.corpora import open_text, two_meanings
from text.dataset import OLD_MASK, is_old, require_same_content
from text.formats import Source
from text.mixture import UNIT, is_mixture, joined, parts_of, require_same_mixture
from text.prepare import folder_of, is_prepared
from tokenizer import Tokenizer, load_any

AUTOMATIC = {"tokenizer": "char", "val_ratio": 0.1, "seed": 1337}  # how train.py prepares a file of text


def ensure(name: str) -> dict:
    """Return a dataset's meta.json as a dict; prepares what settle() can prepare."""
    return settle(name)[1]


def settle(dataset: str, rank: int = 0, resume: bool = False) -> tuple[str, dict]:
    """What train.py's setting names: (the name of a prepared dataset, or its absolute path; its meta.json).

    dataset: a name in KNOWN, a prepared dataset's name or path, or a file or folder of text. If a known one
    is missing, or the text has not been prepared as it is now, rank 0 prepares it; other ranks wait. resume:
    a text that has changed since then is an error instead. ValueError names the command that prepares others.
    Of a mixture, each is settled; its name is then "a:0.7,b:0.3", with the names and paths of all.
    """
    if is_mixture(dataset):
        found = [(settle(name, rank, resume)[0], share) for name, share in parts_of(dataset).items()]
        for i, (name, _) in enumerate(found):
            require("," not in name, f"{name} has a comma in its path, which separates datasets; rename it")
            same = [other for other, _ in found[:i] if Path(other).name == Path(name).name]
            require(not same, f"dataset={dataset} names {name} twice; add its shares up")
        dataset = ",".join(f"{name}:{share / UNIT:g}" for name, share in found)
        return dataset, joined(dataset)
    refuse_two_meanings(dataset)
    known = dataset.removeprefix("builtin:")
    if known in prepare.KNOWN:
        dataset = known
        if rank == 0 and not (prepare.DATASETS / dataset / "meta.json").is_file():
            with guard.alone(prepare.DATASETS / f".{dataset}.lock"):
                if not is_prepared(dataset):  # another process may have made it meanwhile
                    prepare.prepare(dataset, **prepare.KNOWN[dataset])
        barrier()
        return dataset, read_meta(folder_of(dataset))
    text = text_of(dataset, resume)
    if text and rank == 0:
        prepare_text(text, dataset, resume)
    barrier()
    folder = Path(os.path.abspath(folder_of(automatic_name(text) if text else dataset)))
    inside = folder.parent.resolve() == prepare.DATASETS.resolve()
    meta = read_meta(folder)
    if rank == 0 and is_old(meta):
        print(f"NOTE: {dataset} was prepared by an older version: {OLD_MASK}; prepare it again with data.py")
    return folder.name if inside else str(folder), meta


def refuse_two_meanings(dataset: str) -> None:
    """ValueError if the typed setting names a file here and another dataset, of the project or prepared."""
    path = Path(dataset)
    if not typed("dataset") or dataset != path.name or not path.exists():
        return
    require(dataset not in prepare.KNOWN, two_meanings("dataset", dataset))
    place = prepare.DATASETS / dataset
    if path.is_file() and is_prepared(place) and not automatic_source(dataset):
        source = read_meta(folder_of(place))["source"]
        if not (Path(source).exists() and path.samefile(source)):
            raise ValueError(
                f"--dataset={dataset} has two meanings: the file here, and {place}, made from {source}; "
                f"write ./{dataset} or datasets/{dataset}"
            )


def text_of(dataset: str, resume: bool) -> Path | None:
    """The file or folder of text that train.py's setting names; None if it names a prepared dataset."""
    path = Path(dataset)
    if dataset == path.name and is_prepared(prepare.DATASETS / dataset):
        source = automatic_source(dataset)
        candidates = [source, path] if resume else [path, source]
        return next((each for each in candidates if source and each.exists()), None)
    return path if path.exists() and not is_prepared(path.absolute()) else None


def automatic_source(name: str) -> Path | None:
    """The file or folder that settle() has made this dataset from; None if it was made by hand, or copied."""
    meta = read_meta(folder_of(prepare.DATASETS / name))
    return Path(meta["source"]) if "automatic" in meta and meta["name"] == name else None


def automatic_name(text: Path) -> str:
    """The name of the dataset that is made from a file or folder: mine.txt, texts.folder.

    If another dataset has it, a number follows.
    """
    text = text.resolve()
    base = re.sub(r"[^\w.-]+", "-", text.name).lstrip(".-") or "text"
    base += ".folder" if text.is_dir() else ""
    for name in itertools.chain([base], (f"{base}-{n}" for n in itertools.count(2))):
        taken = is_prepared(prepare.DATASETS / name) and automatic_source(name) != text
        if name not in prepare.KNOWN and not taken:
            return name


def prepare_text(text: Path, dataset: str, resume: bool) -> None:
    """Prepare a file or folder of text as train.py does, unless that was done and its content is the same."""
    name = automatic_name(text)
    with guard.alone(prepare.DATASETS / f".{name}.lock"):
        source = Source(*open_text(str(text), say=False))
        changed = is_prepared(prepare.DATASETS / name)
        if changed:
            meta = read_meta(folder_of(prepare.DATASETS / name))
            for _ in source.chunks():
                pass
            if (source.sha256.hexdigest(), AUTOMATIC) == (meta["sha256"], meta["automatic"]):
                return
        if changed and resume:
            raise ValueError(
                f"{text} is not the text in {prepare.DATASETS / name}; for a new run on {text}: "
                "--init_from=scratch --out_dir=NEW; to resume, add --dataset=NAME, and prepare the text that "
                "the run was trained on (python data.py --input=FILE --name=NAME)"
            )
        what = f"the folder {dataset}" if text.is_dir() else dataset
        what += ", which has changed," if changed else ""
        print(f"preparing {what} by characters as dataset {name} (python data.py offers more)", flush=True)
        prepare.prepare(name, str(text.resolve()), **AUTOMATIC, automatic=AUTOMATIC)


def require_same(saved: dict, meta: dict, dataset: str, out_dir: str) -> None:
    """ValueError if a run that is resumed was trained on another text than the dataset holds now."""
    same_tokenizer = saved["dataset"].get("tokenizer_hash") == meta.get("tokenizer_hash")
    base = out_dir if same_tokenizer else "scratch"  # with other tokens its weights would mean nothing
    advice = f"start a new run on this one: --init_from={base} --out_dir=NEW"
    require_same_text(saved["dataset"], meta, dataset, out_dir, advice)


def require_same_text(trained: dict, meta: dict, dataset: str, where: str, advice: str) -> None:
    """As require_same_content; a mixture has to consist of the same datasets, with the same shares."""
    check_types(trained, {"mixture": dict}, f"{where}: dataset", required=False)
    if trained.get("mixture") or "mixture" in meta:
        require_same_mixture(trained, meta, where, advice)
    else:
        require_same_content(trained, meta, folder_of(dataset), where, advice)


def meta_of(dataset: str) -> dict:
    """What meta.json says of a prepared dataset; of a mixture, the same keys for all of it together."""
    if is_mixture(dataset):
        return joined(dataset)
    return read_meta(folder_of(dataset))


def tokenizer_of(dataset: str) -> Tokenizer:
    """The tokenizer of a prepared dataset, or of a mixture, whose datasets have the same one."""
    if is_mixture(dataset):
        dataset = next(iter(parts_of(dataset)))
    return load_any(folder_of(dataset))
