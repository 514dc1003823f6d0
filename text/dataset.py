"""A dataset's folder: replaced as a whole or not at all, and told from another one by its content."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from runtime.trust import check_types
from text.token_files import OURS, file_names

NEW, OLD = ".new", ".old"  # folders inside a dataset's while publish() replaces it
OLD_MASK = "of a conversation, only the end of its last reply is learned"


def publish(made: Path, folder: Path, meta: dict) -> None:
    """Move a dataset's files from `made` to folder, where they replace an older dataset with all its shards.

    folder may be a link to a folder on another disk. The old dataset stays complete until the new one is
    complete on that disk, in folder/.new. Then the old files move to folder/.old, meta.json first, and the
    new ones take their places, meta.json last. If that fails, restore() moves all back; after a kill, whoever
    comes next does. ValueError for an error of the disk.
    """
    folder.mkdir(exist_ok=True)
    restore(folder)
    new, old = folder / NEW, folder / OLD
    try:
        move_folder(made, new)
        old.mkdir()
        for name in ["meta.json", *(p.name for p in folder.iterdir() if OURS.fullmatch(p.name))]:
            if (folder / name).exists():
                os.replace(folder / name, old / name)
        for name in [*names_in(meta), "meta.json"]:
            os.replace(new / name, folder / name)
    except BaseException as error:
        restore(folder)
        with contextlib.suppress(OSError):
            folder.rmdir()  # if nothing was there before
        if isinstance(error, OSError):
            raise ValueError(f"{folder} could not be replaced ({error.strerror}); it is as it was") from None
        raise
    restore(folder)


def move_folder(made: Path, new: Path) -> None:
    """Move a folder. It appears at its new place complete, also on another disk."""
    try:
        os.replace(made, new)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    part = Path(tempfile.mkdtemp(prefix=f"{NEW}-", dir=new.parent))
    try:
        shutil.copytree(made, part, dirs_exist_ok=True)
        os.replace(part, new)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def restore(folder: Path) -> None:
    """Finish what publish() left: the new dataset stays if its meta.json is in place, else the old one."""
    new, old = folder / NEW, folder / OLD
    if old.is_dir() and not (folder / "meta.json").exists():  # it leaves first and comes last
        meta = json.loads((new / "meta.json").read_text(encoding="utf-8"))
        for name in names_in(meta):
            if not (new / name).exists() and (folder / name).exists():
                os.replace(folder / name, new / name)
        for path in sorted(old.iterdir(), key=lambda path: path.name == "meta.json"):  # meta.json last
            os.replace(path, folder / path.name)
    for leftover in (old, new):
        shutil.rmtree(leftover, ignore_errors=True)


def names_in(meta: dict) -> list[str]:
    """The names of a dataset's files, but for meta.json."""
    kinds = ("", "_mask") if meta["masked"] else ("",)
    stems = [(split + kind, counts) for split, counts in meta["splits"].items() for kind in kinds]
    return [name for stem, counts in stems for name in file_names(stem, counts)] + ["tokenizer.json"]


def require_same_content(trained: dict, meta: dict, folder: Path, where: str, advice: str) -> None:
    """ValueError if a dataset does not hold what a run was trained on: other ids in a split, or another mask.

    trained: the checkpoint's "dataset". meta, folder: of the dataset that is there now. Names and paths do
    not count, nor the sizes of shards. where: the run, for the message, which ends in the advice.
    """
    types = {"splits": dict, "tokenizer_hash": str, "source": str}
    check_types(trained, types, f"{where}: dataset", required=False)  # earlier versions wrote less
    remedy = f"prepare the old text again ({trained.get('source', 'unknown')[:80]}), or {advice}"
    old_hash, new_hash = trained.get("tokenizer_hash", ""), str(meta.get("tokenizer_hash"))
    if old_hash and old_hash != new_hash:
        raise ValueError(
            f"{where} has the tokenizer {old_hash:.12} ({trained.get('vocab_size')} tokens), the dataset has "
            f"{new_hash:.12} ({meta['vocab_size']} tokens): {folder} holds another text now; {remedy}"
        )
    for split, then in trained.get("splits", {}).items():
        check_types(then, {"sha256": str, "shards": list}, f"{where}: dataset: {split}", required=False)
        now = meta["splits"].get(split, {"sha256": "none"})
        same = all(then.get(key, now.get(key)) == now.get(key) for key in ("tokens", "learned"))
        shards = then.get("shards")
        if same and shards != now.get("shards") and all(type(n) is int and n >= 0 for n in shards or []):
            now = {**now, "sha256": sha256_in_shards(folder, split, now, meta["dtype"], shards)}
        if not same or then.get("sha256", now.get("sha256")) != now.get("sha256"):
            hashes = f"{now.get('sha256', 'none'):.12}, expected {then.get('sha256', 'none'):.12}"
            raise ValueError(
                f"{where} was trained on another text than {folder} holds now: the {split} split has the "
                f"sha256 {hashes}; {remedy}"
            )


def sha256_in_shards(folder: Path, split: str, counts: dict, dtype: str, sizes: list[int] | None) -> str:
    """The sha256 that meta.json would give for a split in shards of these sizes (tokens); None: one file."""
    bytes_left = [n * np.dtype(dtype).itemsize for n in sizes or [counts["tokens"]]]
    hashes = [hashlib.sha256() for _ in bytes_left]
    number = 0
    for block in blocks(folder, file_names(split, counts)):
        while block and number < len(hashes):
            hashes[number].update(block[: bytes_left[number]])
            rest = block[bytes_left[number] :]
            bytes_left[number] -= len(block) - len(rest)
            block = rest
            number += not bytes_left[number]
    joined = "".join(each.hexdigest() for each in hashes)
    return joined if sizes is None else hashlib.sha256(joined.encode("utf-8")).hexdigest()


def blocks(folder: Path, names: list[str]) -> Iterator[bytes]:
    """What the files hold, one after the other, a megabyte at a time."""
    for name in names:
        with open(folder / name, "rb") as file:
            while block := file.read(1 << 20):
                yield block


def is_old(meta: dict) -> bool:
    """Whether the mask of JSON rows was made by a version that did not close each reply: see OLD_MASK."""
    return meta["format"] == "jsonl" and "turns" not in meta


def floor_per_token(meta: dict, split: str) -> float:
    """The entropy of a split in nats per token, a floor for every model's mean loss; 0.0 if it is unknown."""
    per_char = 0.0 if meta["dropped"] else meta.get("nats_per_char", 0.0)
    counts = meta["splits"][split]
    return per_char * counts["characters"] / counts["tokens"]
