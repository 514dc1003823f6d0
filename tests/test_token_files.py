"""token_files.py: many files read like one, are opened lazily, and are written by many processes."""

import builtins
import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import data
from runtime.trust import read_meta
from test_data import dataset_of, error_of, own_datasets, project, samples_of, write, write_rows
from text import prepare, settle, token_files
from text.corpora import open_corpus

__all__ = ["own_datasets"]  # a fixture: each test has its own datasets folder
KINDS = ["text", "rows", "one row a sample", "unmasked rows"]


def cut(folder, sizes):
    """Cut the files of the split "train" into shards of these sizes: the same dataset, in other files."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    borders = np.cumsum(sizes)
    for stem, dtype in (("train", meta["dtype"]), ("train_mask", np.uint8)):
        if (folder / f"{stem}.bin").exists():
            ids = np.fromfile(folder / f"{stem}.bin", dtype)
            assert borders[-1] == len(ids)
            for i, part in enumerate(np.split(ids, borders[:-1])):
                part.tofile(folder / f"{stem}_{i:03}.bin")
            (folder / f"{stem}.bin").unlink()
    meta["splits"]["train"]["shards"] = [int(size) for size in sizes]
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder


def dataset(folder, kind):
    """2,001 tokens or 200 samples, and whether they are packed."""
    ids, mask, _ = samples_of(200, 17)
    if kind == "text":
        return dataset_of(folder, np.arange(2001)), True
    mask = None if kind == "unmasked rows" else mask
    return dataset_of(folder, ids, mask, end_id=0, format="jsonl"), kind == "rows"


def sizes_of(n, how):
    """The sizes of shards of n tokens together."""
    if how == "equal":
        return [len(part) for part in np.array_split(np.arange(n), 7)]
    if how == "unequal":  # one token, none, most of them
        return [1, 40, 0, n - 45, 3, 1]
    return [5] * (n // 5) + [n % 5] * (
        n % 5 > 0
    )  # "small": a window of 17 tokens reaches over 4 or 5 of them


@pytest.mark.parametrize("how", ["equal", "unequal", pytest.param("small", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_the_same_however_a_split_is_divided(tmp_path, kind, how):
    """Bit for bit: 400 batches of several epochs, in parts, and the windows of an evaluation."""
    folder, pack = dataset(tmp_path / "one", kind)
    other, _ = dataset(tmp_path / "many", kind)
    one = data.Windows(folder, "train", 16, pack=pack)
    many = data.Windows(cut(other, sizes_of(one.n_tokens, how)), "train", 16, pack=pack)
    assert many.n_windows == one.n_windows and many.n_dropped == one.n_dropped
    everything = range(one.n_windows)
    pairs = [(one.window_batch(everything), many.window_batch(everything))]
    for step in range(200):
        pairs.append((one.batch(step, 8), many.batch(step, 8)))
        pairs.append((one.batch(step, 4, 1, 2, 1, 2), many.batch(step, 4, 1, 2, 1, 2)))
    for (x, y), (x_many, y_many) in pairs:
        assert torch.equal(x, x_many) and torch.equal(y, y_many) and x_many.dtype == torch.int64


def test_two_thousand_shards_are_opened_when_they_are_read(tmp_path, monkeypatch):
    """Windows opens none of them; a batch opens those with its tokens, each once; none stays open."""
    folder = cut(dataset_of(tmp_path / "a", np.arange(100_000)), [50] * 2000)
    opened, real_open = [], builtins.open

    def counting(file, *arguments, **settings):
        if str(file).endswith(".bin"):
            opened.append(os.path.basename(file))
        return real_open(file, *arguments, **settings)

    monkeypatch.setattr(builtins, "open", counting)
    monkeypatch.setattr(np, "fromfile", None)
    windows = data.Windows(folder, "train", 32)
    assert opened == []
    for step in (0, 1, 500):
        opened.clear()
        x, _ = windows.batch(step, 8)
        first, last = x[:, 0] // 50, (x[:, -1] + 1) // 50  # every id is its own place; y is one further
        needed = {f"train_{i:03}.bin" for i in torch.cat([first, last]).tolist()}
        assert sorted(opened) == sorted(needed) and 8 <= len(opened) <= 16
    windows.batch(3000, 8)  # another epoch
    assert len(os.listdir("/proc/self/fd" if os.path.exists("/proc/self/fd") else tmp_path)) < 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_is_missing_or_cut_short_is_found_at_the_start(tmp_path, kind):
    folder, pack = dataset(tmp_path / "a", kind)
    n = data.Windows(folder, "train", 16, pack=pack).n_tokens
    cut(folder, sizes_of(n, "equal"))
    names = ["train_000.bin", "train_006.bin"] + ["train_mask_003.bin"] * (
        "mask" not in kind and kind != "text"
    )
    for name in names:
        whole = (folder / name).read_bytes()
        for part in (whole[:-1], whole + b"\0", b"", None):
            (folder / name).unlink()
            if part is not None:
                (folder / name).write_bytes(part)
            message = error_of(data.Windows, folder, "train", 16, pack=pack)
            assert f"{name} is not what meta.json says; prepare the dataset again" in message
            (folder / name).write_bytes(whole)
    data.Windows(folder, "train", 16, pack=pack)


# ---- written
def test_numbers_by_hand():
    """A shard begins where 10 more characters are full; parts stay whole, and no number is left out."""
    lengths = [("train", 6), ("train", 6), ("val", 9), ("train", 6), ("train", 31), ("train", 1), ("val", 2)]
    lengths += [("train", 0), ("val", 0), ("val", 1)]
    parts = [(split, [("x" * n, True)], False) for split, n in lengths]
    found = [place for place, _, _ in token_files.numbered(parts, 10)]
    assert found == [
        ("train", 0), ("train", 0), ("val", 0), ("train", 1), ("train", 1), ("train", 2), ("val", 0),
        ("train", 2), ("val", 0), ("val", 1),
    ]  # fmt: skip
    assert {number for (_, number), _, _ in token_files.numbered(parts, 0)} == {0}


def contents(folder):
    """{name: bytes} of a dataset."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sources(tmp_path):
    """One corpus of each kind, with its settings and the millions of characters of a shard."""
    text = "".join(text for text, _ in open_corpus("verse", size=1_200_000).chunks())
    (tmp_path / "folder").mkdir()
    for i in range(30):
        write(tmp_path / "folder" / f"{i:02}.txt", text[i * 1000 : i * 3000 + 9])
    lines = "".join(f"{line}\n" for line in text[:60_000].split("\n") if line)
    rows = [{"prompt": f"{i}+{i}=", "response": str(2 * i)} for i in range(900)]
    return {
        "text": (write(tmp_path / "a.txt", text), {"tokenizer": "bpe", "vocab_size": 300}, 0.2),
        "lines": (write(tmp_path / "l.txt", lines), {"format": "lines", "test_ratio": 0.1}, 0.004),
        "rows": (write_rows(tmp_path / "a.jsonl", rows), {"format": "jsonl"}, 0.001),
        "folder": (str(tmp_path / "folder"), {"val_input": str(tmp_path / "l.txt")}, 0.02),
    }


def test_shards_hold_what_one_file_holds(tmp_path):
    """Joined, they are the file; meta.json says the same but for the shards, and the hash of their hashes."""
    for name, (source, settings, shard_mb) in sources(tmp_path).items():
        one = prepare.prepare(name, source, **settings)
        whole = contents(prepare.DATASETS / name)
        many = prepare.prepare(name, source, **settings, shard_mb=shard_mb)
        found = contents(prepare.DATASETS / name)
        names = {"meta.json", "tokenizer.json"}
        for split, counts in many["splits"].items():
            files = token_files.file_names(split, counts)
            assert b"".join(found[file] for file in files) == whole[f"{split}.bin"]
            hashes = "".join(hashlib.sha256(found[file]).hexdigest() for file in files)
            assert counts.pop("sha256") == hashlib.sha256(hashes.encode()).hexdigest()
            assert one["splits"][split].pop("sha256") == hashlib.sha256(whole[f"{split}.bin"]).hexdigest()
            itemsize = np.dtype(many["dtype"]).itemsize
            assert counts["shards"] == [len(found[file]) // itemsize for file in files]
            names |= set(files)
            if many["masked"]:
                masks = token_files.file_names(f"{split}_mask", counts)
                assert b"".join(found[file] for file in masks) == whole[f"{split}_mask.bin"]
                names |= set(masks)
            assert counts.pop("shards") and "shards" not in one["splits"][split]
        counts = read_meta(prepare.DATASETS / name)["splits"]["train"]
        assert len(token_files.file_names("train", counts)) > 4
        assert one == many and set(found) == names and name in os.listdir(prepare.DATASETS)
    assert len(os.listdir(prepare.DATASETS)) == 4  # nothing temporary is left


def test_more_than_999_shards_and_back_to_one_file(tmp_path):
    """train_1000.bin comes after train_999.bin, not after train_100.bin; no older file stays."""
    lines = [f"line {i:04}" for i in range(1100)]
    settings = {"source": write(tmp_path / "a.txt", "\n".join(lines)), "format": "lines", "val_ratio": 0}
    meta = prepare.prepare("mine", **settings, shard_mb=1e-6)
    folder = prepare.DATASETS / "mine"
    assert meta["splits"]["train"]["shards"] == [10] * 1100
    assert (folder / "train_1099.bin").exists() and len(os.listdir(folder)) == 1102
    many = data.Windows("mine", "train", 64, pack=False).window_batch(range(1100))
    prepare.prepare("mine", **settings, shard_mb=0.005)
    assert len(os.listdir(folder)) == 4
    (folder / "val_mask_003.bin").touch()  # of an interrupted one, say
    (folder / "notes.txt").touch()
    prepare.prepare("mine", **settings)
    assert sorted(os.listdir(folder)) == ["meta.json", "notes.txt", "tokenizer.json", "train.bin"]
    one = data.Windows("mine", "train", 64, pack=False).window_batch(range(1100))
    assert torch.equal(many[0], one[0]) and torch.equal(many[1], one[1])


def test_settings_that_cannot_be(tmp_path):
    source = write(tmp_path / "a.txt", "some text " * 50)
    assert "shard_mb=-1" in error_of(prepare.prepare, "mine", source, shard_mb=-1)
    message = error_of(prepare.prepare, "mine", source, rank=0, world_size=2)
    assert message == "2 processes cannot write one file; set --shard_mb=100, or start one"
    assert not prepare.DATASETS.exists()


# ---- several processes
def torchrun(folder, n, *flags):
    """data.py in n processes; the CompletedProcess."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"]
    return subprocess.run(
        [*command, "data.py", *flags],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


@pytest.mark.parametrize(("kind", "n"), [("lines", 2), ("text", 3)])
@pytest.mark.slow
def test_several_processes_write_what_one_writes(tmp_path, kind, n):
    """Byte for byte, meta.json too; one of them speaks."""
    source, settings, shard_mb = sources(tmp_path)[kind]
    prepare.prepare("mine", source, **settings, shard_mb=shard_mb)
    folder = project(tmp_path)
    flags = [f"--{key}={value}" for key, value in settings.items()]
    done = torchrun(folder, n, f"--input={source}", "--name=mine", f"--shard_mb={shard_mb}", *flags)
    assert done.returncode == 0, done.stderr
    assert contents(folder / "datasets/mine") == contents(prepare.DATASETS / "mine")
    assert os.listdir(folder / "datasets") == ["mine"]
    words = ["settings:", "datasets/mine:", *(f"{split}:" for split in settle.ensure("mine")["splits"])]
    assert [line.split()[0] for line in done.stdout.splitlines()] == words


@pytest.mark.slow
def test_the_older_dataset_is_whole_after_a_failure(tmp_path):
    """One rank meets a character that the tokenizer lacks: it says so, all end, and nothing has changed."""
    folder = project(tmp_path)
    source = write(tmp_path / "a.txt", "".join(f"line {i}\n" for i in range(900)))
    prepare.prepare("mine", source, format="lines", val_ratio=0, shard_mb=0.002)
    shutil.copytree(prepare.DATASETS, folder / "datasets")
    write(tmp_path / "a.txt", "".join(f"line {i}\n" for i in range(300, 1200)) + "5 €\n")
    flags = (f"--input={source}", "--name=mine", "--format=lines", "--val_ratio=0", "--shard_mb=0.002")
    done = torchrun(folder, 2, *flags, f"--tokenizer={folder / 'datasets/mine'}")
    assert done.returncode != 0 and "unknown characters: '€' at position 2; leave them out" in done.stderr
    assert contents(folder / "datasets/mine") == contents(prepare.DATASETS / "mine")
