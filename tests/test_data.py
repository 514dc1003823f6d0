"""data.py, formats.py and token_files.py: text to token files, token files to batches."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
import tokenizer
from text import formats, prepare, settle, token_files
from text.corpora import Corpus, open_corpus
from text.dataset import floor_per_token

ROOT = Path(__file__).resolve().parent.parent
on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@pytest.fixture(autouse=True)
def own_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "DATASETS", tmp_path / "datasets")
    return tmp_path / "datasets"


def write(path, text):
    path.write_bytes(text.encode("utf-8"))
    return str(path)


def write_rows(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_ids(name, split="train"):
    folder = prepare.folder_of(name)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return np.fromfile(folder / f"{split}.bin", dtype=meta["dtype"])


def read_mask(name, split="train"):
    return np.fromfile(prepare.folder_of(name) / f"{split}_mask.bin", dtype=np.uint8)


def decode(name, split="train"):
    return tokenizer.load_any(str(prepare.folder_of(name))).decode(read_ids(name, split))


def samples(name, split="train"):
    """The texts of a split between its end tokens, which must close the last one."""
    *texts, rest = decode(name, split).split(tokenizer.END)
    assert rest == ""
    return texts


def dataset_of(folder, ids, masks=None, dtype="uint32", end_id=-1, format="text"):
    """A dataset with a split "train" of exactly these ids."""
    folder.mkdir(parents=True)
    ids = np.asarray(ids, dtype=dtype)
    ids.tofile(folder / "train.bin")
    if masks is not None:
        np.asarray(masks, dtype=np.uint8).tofile(folder / "train_mask.bin")
    meta = dict(name="made", dtype=dtype, masked=masks is not None, end_id=end_id, format=format)
    meta["splits"] = {"train": {"tokens": len(ids)}}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder


def samples_of(n, longest, seed=0, masked=True):
    """n samples of unequal length, every id but the end token (0) once: (ids, mask, lengths)."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest + 1, n)
    ids, mask, fresh = [], [], 1
    for length in lengths:
        ids += [*range(fresh, fresh + length - 1), 0]
        prompt = int(rng.integers(0, length)) if masked else 0
        mask += [0] * prompt + [1] * (length - prompt)
        fresh += length - 1
    return np.array(ids), np.array(mask), lengths


def one_epoch(windows, batch_size, epoch=0):
    """The batches of an epoch that batch_size divides (of as many epochs as are needed for that: 1 here)."""
    assert windows.n_windows % batch_size == 0
    n = windows.n_windows // batch_size
    return [windows.batch(epoch * n + i, batch_size) for i in range(n)]


def scored(batches):
    """All targets of some batches, sorted."""
    return np.sort(np.concatenate([y[y != -1].numpy() for _, y in batches]))


def error_of(call, *arguments, **settings):
    with pytest.raises(ValueError) as caught:
        call(*arguments, **settings)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- text in, files out
def test_text_file(tmp_path):
    """D1: what lies in the folder, and what meta.json says of it."""
    text = "To be, or not to be?\n" * 50
    meta = prepare.prepare("mine", write(tmp_path / "a.txt", text))
    folder = prepare.DATASETS / "mine"
    assert sorted(os.listdir(folder)) == ["meta.json", "tokenizer.json", "train.bin", "val.bin"]
    assert os.listdir(prepare.DATASETS) == ["mine"]  # nothing temporary is left
    assert json.loads((folder / "meta.json").read_text(encoding="utf-8")) == meta == settle.ensure("mine")
    assert meta["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert meta["splits"]["val"]["sha256"] == hashlib.sha256((folder / "val.bin").read_bytes()).hexdigest()
    assert (meta["vocab_size"], meta["dtype"], meta["masked"]) == (len(set(text)), "uint16", False)
    assert meta["tokenizer_hash"] == tokenizer.load_any(str(folder)).hash
    train = meta["splits"]["train"]
    assert train["tokens"] == train["characters"] == train["bytes"] == 945 and train["documents"] == 1
    assert decode("mine") + decode("mine", "val") == text


def test_split_is_contiguous(tmp_path):
    """D5, mistake 7: 10,000 tokens give 9,000 and 1,000, the tail is val, and no window reaches across."""
    prepare.prepare("mine", write(tmp_path / "a.txt", "a" * 9000 + "b" * 1000))
    assert decode("mine") == "a" * 9000 and decode("mine", "val") == "b" * 1000
    windows = data.Windows("mine", "train", 32)
    for step in range(100):
        x, y = windows.batch(step, 8)
        assert set(x.unique().tolist()) == {0} and set(y.unique().tolist()) <= {-1, 0}
    prepare.prepare("three", write(tmp_path / "a.txt", "a" * 80 + "b" * 10 + "c" * 10), test_ratio=0.1)
    assert [decode("three", split) for split in ("train", "val", "test")] == ["a" * 80, "b" * 10, "c" * 10]


def test_lines(tmp_path):
    """D2: 100 lines are 100 samples, each closed by the end token; no padding in any window."""
    lines = [f"line {i} ist für ü{i * i}" for i in range(100)]
    for newline in ("\n", "\r\n"):
        meta = prepare.prepare(
            "mine", write(tmp_path / "a.txt", newline.join(lines)), format="lines", val_ratio=0
        )
        assert samples("mine") == lines
        assert meta["splits"]["train"]["documents"] == 100 and meta["splits"]["train"]["learned"] == len(
            read_ids("mine")
        )
        assert not (prepare.DATASETS / "mine" / "train_mask.bin").exists()
    windows = data.Windows("mine", "train", 64)
    targets = scored([windows.window_batch(range(windows.n_windows))])
    assert len(targets) == len(read_ids("mine")) - 1 and (targets == meta["end_id"]).sum() == 100


def test_seeded_samples(tmp_path):
    """D6: 1,000 lines give 800, 100, 100; the same seed the same bytes, another seed others."""
    path = write(tmp_path / "a.txt", "".join(f"line {i}\n" for i in range(1000)))
    settings = dict(format="lines", val_ratio=0.1, test_ratio=0.1)
    for name, seed in (("a", 42), ("b", 42), ("c", 43)):
        prepare.prepare(name, path, seed=seed, **settings)
    found = {name: [samples(name, split) for split in ("train", "val", "test")] for name in "abc"}
    assert [len(split) for split in found["a"]] == [800, 100, 100]
    assert sorted(sum(found["a"], [])) == sorted(f"line {i}" for i in range(1000))
    for file in ("train.bin", "val.bin", "test.bin"):
        bytes_of = [(prepare.DATASETS / name / file).read_bytes() for name in "abc"]
        assert bytes_of[0] == bytes_of[1] != bytes_of[2]


def test_val_input(tmp_path):
    """D7: a validation file of its own; train holds all of the input."""
    train, val = write(tmp_path / "a.txt", "abcd" * 100), write(tmp_path / "b.txt", "dcbaX" * 20)
    meta = prepare.prepare("mine", train, val_input=val)
    assert decode("mine") == "abcd" * 100 and decode("mine", "val") == "dcbaX" * 20
    assert list(meta["splits"]) == ["train", "val"] and meta["val_input"] == val
    rows, more = [{"text": f"t{i}"} for i in range(20)], [{"text": f"v{i}"} for i in range(5)]
    files = write_rows(tmp_path / "a.jsonl", rows), write_rows(tmp_path / "b.jsonl", more)
    prepare.prepare("rows", files[0], format="jsonl", val_input=files[1], test_ratio=0.1)
    assert samples("rows", "val") == [row["text"] for row in more]
    assert len(samples("rows")) == 18 and len(samples("rows", "test")) == 2


def test_three_kinds_of_rows(tmp_path):
    """D4: text, prompt and response, messages; 100 rows each, also as a JSON list; each once, in order."""
    kinds = {
        "text": ([{"text": f"t{i} ünï"} for i in range(100)], [f"t{i} ünï" for i in range(100)]),
        "pairs": (
            [{"prompt": f"{i}+1=", "response": f"{i + 1}"} for i in range(100)],
            [f"{i}+1={i + 1}" for i in range(100)],
        ),
        "chat": (
            [{"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}
             for i in range(100)],
            [f"user: q{i}\nassistant: a{i}" for i in range(100)],
        ),
    }  # fmt: skip
    for name, (rows, texts) in kinds.items():
        prepare.prepare(name, write_rows(tmp_path / f"{name}.jsonl", rows), format="jsonl", val_ratio=0)
        assert samples(name) == texts
        prepare.prepare(
            "list", write(tmp_path / "l.json", json.dumps(rows, indent=2)), format="jsonl", val_ratio=0
        )
        assert samples("list") == texts
        assert (prepare.DATASETS / name / "train_mask.bin").exists() == (name != "text")
        for pack in (True, False):
            windows = data.Windows(name, "train", 48, pack=pack)
            x, y = windows.window_batch(range(windows.n_windows))
            end = tokenizer.load_any(str(prepare.DATASETS / name)).end_id
            assert (y == end).sum() == 100 and windows.n_dropped == 0  # every row's end token is scored


def test_folder_of_documents(tmp_path):
    """Several files: an end token between them, none inside; the folder's files in order."""
    (tmp_path / "texts").mkdir()
    for name in ("a", "b", "c"):
        write(tmp_path / "texts" / f"{name}.txt", f"this is {name}\n" * 4)
    meta = prepare.prepare("mine", str(tmp_path / "texts"), val_ratio=0)
    assert samples("mine") == [f"this is {name}\n" * 4 for name in "abc"]
    assert meta["splits"]["train"]["documents"] == 3


def test_mask_by_hand(tmp_path):
    """D3, mistake 10: the mask token by token, for characters and byte pairs. The end token is learned where
    it closes a sample (1) and where it closes a reply inside one (3)."""
    chat = [("system", "Be"), ("user", "a?"), ("assistant", "b"), ("user", "c"), ("assistant", "dd")]
    rows = [
        {"prompt": "2+2=", "response": "4!"},
        {"messages": [{"role": role, "content": content} for role, content in chat]},
        {"text": "all"},
        {"prompt": "", "response": "x"},
    ]
    path = write_rows(tmp_path / "a.jsonl", rows)
    prepare.prepare("chars", path, format="jsonl", val_ratio=0)
    text = "2+2=4!E" + "system: Be\nuser: a?\nassistant: bE\nuser: c\nassistant: ddE" + "allE" + "xE"
    mask = (
        "0000111"
        + "00000000000"
        + "000000000"
        + "00000000000"
        + "13"
        + "000000000"
        + "00000000000"
        + "111"
        + "1111"
        + "11"
    )
    assert decode("chars").replace(tokenizer.END, "E") == text
    assert "".join(map(str, read_mask("chars"))) == mask

    pieces = [("2+2=", 0), ("4!", 1), ("", 2), ("system: Be\nuser: a?\nassistant: ", 0), ("b", 1)]
    pieces += [
        ("", 3),
        ("\nuser: c\nassistant: ", 0),
        ("dd", 1),
        ("", 2),
        ("all", 1),
        ("", 2),
        ("x", 1),
        ("", 2),
    ]
    prepare.prepare("pairs", path, "bpe", 300, format="jsonl", val_ratio=0)
    bpe = tokenizer.load_any(str(prepare.DATASETS / "pairs"))
    ids, mask = [], []
    for text, learned in pieces:
        new = [bpe.end_id] if learned >= 2 else bpe.encode(text).tolist()
        ids += new
        mask += [1 if learned == 2 else learned] * len(new)
    assert read_ids("pairs").tolist() == ids and read_mask("pairs").tolist() == mask


def test_masked_loss_by_hand(tmp_path):
    """D3: the loss of a 2-row batch is the hand-made sum; what stands on a prompt changes nothing."""
    rows = [{"prompt": "abc", "response": "de"}, {"prompt": "b", "response": "cab"}]
    prepare.prepare("mine", write_rows(tmp_path / "a.jsonl", rows), format="jsonl", val_ratio=0)
    windows = data.Windows("mine", "train", 8, pack=False)
    x, y = windows.window_batch([0, 1])
    letters = {c: i for i, c in enumerate("abcde")} | {"E": 5}
    assert x.tolist() == [[letters[c] for c in "abcde"], [letters[c] for c in "bcabE"]]
    assert y.tolist() == [[-1, -1, 3, 4, 5], [2, 0, 1, 5, -1]]
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 6, dtype=torch.float64)
    by_hand = [(0, 2, 3), (0, 3, 4), (0, 4, 5), (1, 0, 2), (1, 1, 0), (1, 2, 1), (1, 3, 5)]
    expected = sum(torch.logsumexp(logits[b, t], 0) - logits[b, t, c] for b, t, c in by_hand) / len(by_hand)

    def loss(y):
        return F.cross_entropy(logits.transpose(1, 2), y, ignore_index=-1, reduction="sum") / (y != -1).sum()

    assert abs(loss(y) - expected) < 1e-6
    ids = read_ids("mine")
    ids[1] = letters["e"]  # the label of a prompt's second letter
    ids.tofile(prepare.DATASETS / "mine" / "train.bin")
    assert loss(windows.window_batch([0, 1])[1]) == loss(y)


def test_dedup(tmp_path):
    """D13: repeats go, the first stays, order is kept, blank lines are no repeats, and the count is told."""
    text = "one\ntwo\n\none\nthree\n\ntwo\nfour\none"
    meta = prepare.prepare("text", write(tmp_path / "a.txt", text), dedup=True, val_ratio=0)
    assert decode("text") == "one\ntwo\n\nthree\n\nfour" and meta["dropped"] == {"repeats": 3}
    for newline in ("\n", "\r\n"):
        path = write(tmp_path / "a.txt", text.replace("\n", newline) + newline)
        meta = prepare.prepare("lines", path, format="lines", dedup=True, val_ratio=0)
        assert samples("lines") == ["one", "two", "three", "four"] and meta["dropped"] == {"repeats": 3}
    rows = [{"prompt": "a", "response": r} for r in "xyxzx"] + [{"text": "ax"}]
    meta = prepare.prepare(
        "rows", write_rows(tmp_path / "a.jsonl", rows), format="jsonl", dedup=True, val_ratio=0
    )
    assert samples("rows") == ["ax", "ay", "az", "ax"] and meta["dropped"] == {"repeats": 2}


def test_dedup_of_many_chunks(tmp_path):
    """A text of several chunks loses its repeats and nothing else; documents still end where they ended."""
    rng = np.random.default_rng(0)
    lines = [f"{rng.integers(0, 30_000)} some words to make it longer{' ' * (i % 2)}" for i in range(60_000)]
    (tmp_path / "texts").mkdir()
    write(tmp_path / "texts" / "a.txt", "\n".join(lines[:40_000]))
    write(tmp_path / "texts" / "b.txt", "\r\n".join(lines[40_000:]))
    meta = prepare.prepare("mine", str(tmp_path / "texts"), dedup=True, val_ratio=0)
    documents = samples("mine")
    first = list(dict.fromkeys(lines[:40_000]))
    assert documents[0] == "\n".join(first)
    known = set(first)
    second = [line for line in dict.fromkeys(lines[40_000:]) if line not in known]
    assert documents[1].strip("\r\n").split("\r\n") == second
    assert meta["dropped"]["repeats"] == len(lines) - len(first) - len(second)


def test_clean(tmp_path, capsys):
    """D14: control characters, runs of blanks and short lines go, with counts; twice is the same as once."""
    dirty = "\n\na\x00bc  d\t\te\r\n\r\n\r\nx\n \n\ufefffine  line\nif a:\n    go()\n\n\n\n"
    meta = prepare.prepare("once", write(tmp_path / "a.txt", dirty), clean=True, val_ratio=0)
    once = decode("once")
    assert once == "abc d e\n\nfine line\nif a:\n go()\n"
    counts = {"control characters": 5, "runs of blanks": 4, "short lines": 1, "blank lines": 6}
    assert meta["dropped"] == counts and "4 runs of blanks" in capsys.readouterr().out
    prepare.prepare("twice", write(tmp_path / "b.txt", once), clean=True, val_ratio=0)
    assert decode("twice") == once and settle.ensure("twice")["dropped"] == {}
    rows = [
        {"prompt": "2+2  =\t", "response": "4"},
        {"text": "a\x01"},
        {"prompt": "good", "response": "\x00"},
    ]
    path = write_rows(tmp_path / "a.jsonl", rows)
    meta = prepare.prepare("rows", path, format="jsonl", clean=True, val_ratio=0)
    assert samples("rows") == ["2+2 =\t4"] and meta["dropped"]["short samples"] == 2


def test_clean_is_idempotent_on_random_text(tmp_path):
    rng = np.random.default_rng(1)
    for _ in range(30):
        dirty = "".join(rng.choice(list("ab \t\n\n\r\x00é\ufeff"), 300))
        path = write(tmp_path / "a.txt", "start\n" + dirty)
        prepare.prepare("once", path, clean=True, val_ratio=0)
        prepare.prepare("twice", write(tmp_path / "b.txt", decode("once")), clean=True, val_ratio=0)
        assert decode("twice") == decode("once") and settle.ensure("twice")["dropped"] == {}


def test_skip_bad(tmp_path):
    """D18: the bad row is named by file and line, or counted; the others arrive. BOM and CRLF are fine."""
    rows = [json.dumps({"prompt": "p", "response": f"r{i}"}) for i in range(10)]
    rows[6] = '{"prompt": "p", "response": "r6"'
    path = write(tmp_path / "rows.jsonl", "\ufeff" + "\r\n".join(rows))
    message = error_of(prepare.prepare, "mine", path, format="jsonl")
    assert "rows.jsonl line 7:" in message and "--skip_bad" in message
    meta = prepare.prepare("mine", path, format="jsonl", skip_bad=True, val_ratio=0)
    assert samples("mine") == [f"pr{i}" for i in range(10) if i != 6] and meta["dropped"] == {"bad rows": 1}


BAD_ROWS = {
    "5": "expected text",
    "[1]": "expected text",
    '{"prompt": "only"}': "expected text",
    '{"text": 5}': "expected text",
    '{"text": ""}': "nothing to learn",
    '{"prompt": "p", "response": ""}': "nothing to learn",
    '{"prompt": null, "response": "r"}': "expected text",
    '{"messages": []}': "assistant",
    '{"messages": "hello"}': "assistant",
    '{"messages": [{"role": "user", "content": "q"}]}': "assistant",
    '{"messages": [{"role": "robot", "content": "q"}, {"role": "assistant", "content": "a"}]}': "robot",
    '{"messages": [{"role": "assistant"}]}': "content",
    '{"text": "\\ud83d"}': "surrogate",
    "{'text': 'quotes'}": "no JSON",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_bad_rows(tmp_path, row):
    path = write(tmp_path / "rows.jsonl", '{"text": "good"}\n\n' + row + '\n{"text": "good too"}\n')
    message = error_of(prepare.prepare, "mine", path, format="jsonl", val_ratio=0)
    assert "rows.jsonl line 3:" in message and BAD_ROWS[row] in message
    prepare.prepare("mine", path, format="jsonl", val_ratio=0, skip_bad=True)
    assert samples("mine") == ["good", "good too"]


def test_files_of_a_folder_are_named(tmp_path):
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows" / "a.jsonl", '{"text": "aaa"}\n' * 3)
    write(tmp_path / "rows" / "b.jsonl", '{"text": "bbb"}\n{"oops"}\n')
    assert "b.jsonl line 2:" in error_of(prepare.prepare, "mine", str(tmp_path / "rows"), format="jsonl")
    write(tmp_path / "rows" / "b.jsonl", '[{"text": "bbb"},\n {"oops": 1}]')
    assert "b.jsonl row 2:" in error_of(prepare.prepare, "mine", str(tmp_path / "rows"), format="jsonl")
    write(tmp_path / "rows" / "b.jsonl", '[{"text": "bbb"},\n {"oops"]')
    for skip_bad in (False, True):
        message = error_of(prepare.prepare, "mine", str(tmp_path / "rows"), format="jsonl", skip_bad=skip_bad)
        assert "b.jsonl line 2:" in message


def test_errors(tmp_path):
    """D1, D18: wrong files and wrong settings, each one line that names the value; nothing is written."""
    good = write(tmp_path / "good.txt", "some text " * 20)
    empty, latin = write(tmp_path / "empty.txt", ""), tmp_path / "latin.txt"
    latin.write_bytes("für".encode("latin-1"))
    blank = write(tmp_path / "blank.txt", "\n\n \n")
    cases = [
        (dict(source=str(tmp_path / "missing.txt")), "missing.txt"),
        (dict(source=empty), "empty"),
        (dict(source=str(latin)), "latin.txt"),
        (dict(source=good, val_input=str(tmp_path / "gone.txt")), "gone.txt"),
        (dict(source=blank, format="lines"), "blank"),
        (dict(source=write(tmp_path / "short.txt", "a")), "short"),
        (dict(source=good, clean=True, name="../x"), "../x"),
        (dict(source=good, name=""), "--name="),
        (dict(source=good, name="downloads"), "downloads"),
        (dict(source=good, format="csv"), "csv"),
        (dict(source=good, val_ratio=1.5), "1.5"),
        (dict(source=good, val_ratio=-0.1), "-0.1"),
        (dict(source=good, val_ratio=0.5, test_ratio=0.5), "0.5"),
        (dict(source=good, vocab_size=500), "500"),
        (dict(source=good, tokenizer="bpe", vocab_size=100), "100"),
        (dict(source=good, tokenizer="wordpiece"), "wordpiece"),
        (dict(source=good, seed=-1), "-1"),
    ]
    for settings, expected in cases:
        assert expected in error_of(prepare.prepare, **{"name": "mine", **settings}), settings
        assert not prepare.DATASETS.exists() or os.listdir(prepare.DATASETS) == []


def test_reused_tokenizer(tmp_path):
    """--tokenizer=PATH: the original's ids; characters it lacks and no end token are errors."""
    prepare.prepare("first", write(tmp_path / "a.txt", "hello world " * 20), "bpe", 270)
    prepare.prepare(
        "second", write(tmp_path / "b.txt", "low hell " * 20), str(prepare.DATASETS / "first"), val_ratio=0
    )
    bpe = tokenizer.load_any(str(prepare.DATASETS / "first"))
    assert read_ids("second").tolist() == bpe.encode("low hell " * 20).tolist()
    assert settle.ensure("second")["tokenizer_hash"] == settle.ensure("first")["tokenizer_hash"] == bpe.hash
    prepare.prepare("chars", write(tmp_path / "c.txt", "abc" * 20))
    message = error_of(
        prepare.prepare, "x", write(tmp_path / "d.txt", "abz" * 9), str(prepare.DATASETS / "chars")
    )
    assert "'z'" in message
    message = error_of(
        prepare.prepare,
        "x",
        str(tmp_path / "c.txt"),
        str(prepare.DATASETS / "chars"),
        format="lines",
        val_ratio=0,
    )
    assert "end token" in message


def test_val_text_leaves_merges_alone(tmp_path):
    """T2: byte pairs are counted on the training split only; the alphabet of characters is not a count."""
    train = "the cat sat on the mat and the rat sat too. " * 45
    for name, val in (("a", "zebra zebra zebra " * 13), ("b", "quick quick quick " * 13)):
        prepare.prepare(name, write(tmp_path / f"{name}.txt", train + val[:220]), "bpe", 300)
    assert decode("a") == decode("b") == train
    assert settle.ensure("a")["tokenizer_hash"] == settle.ensure("b")["tokenizer_hash"]
    lines = {name: [f"the cat sat {name * 5} {i}" for i in range(100)] for name in "ab"}
    labels = np.repeat([0, 1], [90, 10])
    np.random.default_rng(7).shuffle(labels)  # as documented: the seed draws which samples are val
    lines["b"] = [lines["a"][i] if labels[i] == 0 else lines["b"][i] for i in range(100)]
    for name in "ab":
        path = write(tmp_path / f"{name}.txt", "\n".join(lines[name]))
        prepare.prepare(name, path, "bpe", 300, format="lines", seed=7)
    assert samples("a") == samples("b") and samples("a", "val") != samples("b", "val")
    assert settle.ensure("a")["tokenizer_hash"] == settle.ensure("b")["tokenizer_hash"]


def test_dtype(tmp_path):
    """uint16 up to 65,536 different tokens, uint32 above; the text survives both."""
    for n, dtype in ((65_536, "uint16"), (65_537, "uint32")):
        text = "".join(chr(i) for i in range(0x10000, 0x10000 + n))
        meta = prepare.prepare("mine", write(tmp_path / "a.txt", text))
        assert (meta["dtype"], meta["vocab_size"]) == (dtype, n)
        assert decode("mine") + decode("mine", "val") == text
        x, _ = data.Windows("mine", "val", 16).batch(0, 4)
        assert x.dtype == torch.int64 and x.max() > 58_000


# ---- datasets: known, moved, interrupted
def test_ensure(tmp_path, monkeypatch):
    """D19: prepared once; the second time nothing is touched. Unknown names give the command."""
    known = {"tiny": {"source": write(tmp_path / "a.txt", "some text " * 20), "tokenizer": "char"}}
    monkeypatch.setattr(prepare, "KNOWN", known)
    meta = settle.ensure("tiny")
    path = prepare.DATASETS / "tiny" / "train.bin"
    before = path.stat().st_mtime_ns
    time.sleep(0.01)
    assert settle.ensure("tiny") == meta and path.stat().st_mtime_ns == before
    message = error_of(settle.ensure, "other")
    assert "'other'" in message and "python data.py --input=FILE --name=other" in message
    assert "python data.py --name=tiny" in error_of(
        data.Windows, shutil.move(path.parent, tmp_path / "x") and "tiny", "val", 4
    )
    assert settle.ensure(str(tmp_path / "x")) == meta  # a path is as good as a name
    assert data.Windows(tmp_path / "x", "val", 4).n_tokens == 20
    monkeypatch.chdir(tmp_path)
    assert prepare.folder_of("x") == Path("x")
    (tmp_path / "x" / "meta.json").write_text("{", encoding="utf-8")
    assert "damaged" in error_of(settle.ensure, "x")


def test_known_datasets():
    assert {"shakespeare_char", "shakespeare_bpe", "verse", "python", "sums"} <= set(prepare.KNOWN)
    for settings in prepare.KNOWN.values():
        assert isinstance(open_corpus(settings["source"]), Corpus) or settings["source"] == "shakespeare"


def test_interruption_leaves_the_old_dataset(tmp_path, monkeypatch):
    """An exception or Ctrl-C while encoding: the old files stay, byte for byte, and nothing temporary."""
    path = write(tmp_path / "a.txt", "old text " * 50)
    prepare.prepare("mine", path, test_ratio=0.1)
    folder = prepare.DATASETS / "mine"
    old = {file.name: file.read_bytes() for file in folder.iterdir()}
    write(tmp_path / "a.txt", "something new " * 50)
    for stop in (KeyboardInterrupt, MemoryError):

        def stopped(self, path, stop=stop):
            raise stop

        with monkeypatch.context() as patch, pytest.raises(stop):
            patch.setattr(tokenizer.CharTokenizer, "save", stopped)
            prepare.prepare("mine", path)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == old
        assert os.listdir(prepare.DATASETS) == ["mine"]

    prepare.prepare("mine", path)
    assert sorted(os.listdir(folder)) == [
        "meta.json",
        "tokenizer.json",
        "train.bin",
        "val.bin",
    ]  # no stale test.bin


KILLED = """
import os, pathlib, signal, sys
from text import prepare, token_files
prepare.DATASETS = pathlib.Path(sys.argv[1])
class Killer:
    def __init__(self, parts): self.parts = parts
    def __iter__(self):
        for part in self.parts:
            yield part
            os.kill(os.getpid(), signal.SIGKILL)
encode = token_files.encode
prepare.encode = lambda parts, *rest, **more: encode(Killer(parts), *rest, **more)
prepare.prepare("mine", sys.argv[2])
"""


def test_killed_preparation(tmp_path):
    """kill -9 in the middle of encoding: the old dataset is the dataset, and preparing again works."""
    path = write(tmp_path / "a.txt", "old text " * 50)
    prepare.prepare("mine", path)
    old = {file.name: file.read_bytes() for file in (prepare.DATASETS / "mine").iterdir()}
    write(tmp_path / "a.txt", "something new " * 50)
    run = subprocess.run(
        [sys.executable, "-c", KILLED, prepare.DATASETS, path], cwd=ROOT, capture_output=True
    )
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert {file.name: file.read_bytes() for file in (prepare.DATASETS / "mine").iterdir()} == old
    assert settle.ensure("mine")["sha256"] and data.Windows("mine", "train", 8).n_tokens == 405
    prepare.prepare("mine", path)
    assert decode("mine").startswith("something new")


# ---- several threads
@pytest.mark.slow
def test_any_number_of_threads_makes_the_same_files(tmp_path):
    """A text of many chunks, a folder of documents, masked rows: byte for byte, meta.json too."""
    text = "".join(text for text, _ in open_corpus("verse", size=1_500_000).chunks())
    (tmp_path / "folder").mkdir()
    for i in range(40):  # many short documents and some long ones
        write(tmp_path / "folder" / f"{i:02}.txt", text[: 10 ** (i % 6)])
    rows = [{"prompt": text[i : i + 300], "response": text[i : i + i % 90 + 1]} for i in range(3000)]
    cases = {
        "text": (write(tmp_path / "a.txt", text), {"tokenizer": "bpe", "vocab_size": 400}),
        "documents": (str(tmp_path / "folder"), {"tokenizer": "TEXT", "test_ratio": 0.3}),
        "rows": (write_rows(tmp_path / "a.jsonl", rows), {"tokenizer": "TEXT", "format": "jsonl"}),
        "characters": (str(tmp_path / "a.txt"), {"tokenizer": "char"}),
    }
    for name, (source, settings) in cases.items():
        if settings["tokenizer"] == "TEXT":
            settings["tokenizer"] = str(prepare.DATASETS / "text")
        made = []
        for threads in (1, 2, 5):
            prepare.prepare(name, source, **settings, threads=threads)
            made.append({file.name: file.read_bytes() for file in (prepare.DATASETS / name).iterdir()})
        assert made[0] == made[1] == made[2] and len(made[0]) >= 4
    assert decode("text") + decode("text", "val") == text


class Meeting:
    """A tokenizer whose encode returns when so many of its calls are under way at once."""

    kind = "bpe"
    vocab_size = 10**9  # a copy of so many tokens never pays

    def __init__(self, n):
        self.barrier = threading.Barrier(n, timeout=20)

    def encode(self, text):
        self.barrier.wait()
        return np.array([len(text)])


def test_threads_encode_at_once_and_read_little_ahead():
    """3 of 3 threads are in encode together; of an endless text, 6 batches at most are under way."""
    read = []

    def endless():
        while True:
            read.append("x" * (formats.CHUNK + len(read)))
            yield "train", [(read[-1], True)], False

    tokenizer_of_three = Meeting(3)
    parts = token_files.encoded(endless(), tokenizer_of_three, 3)
    for i in range(30):
        split, segments, ends, ids = next(parts)
        assert (split, segments, ends) == ("train", [(read[i], True)], False)
        assert ids[0].tolist() == [formats.CHUNK + i] and len(read) - i <= 6
    tokenizer_of_three.barrier.abort()  # those under way wait for a third that does not come
    parts.close()


def test_threads_of_a_long_text_have_a_tokenizer_each(monkeypatch):
    """Threads that share one wait for each other. One thread, or a short text, needs no copy."""
    shared = tokenizer.BPETokenizer([bytes([i]) for i in range(256)])
    used, meet = {}, None  # thread -> the tokenizers of its calls, in order

    def noted(self, text):
        meet.wait()  # so that all threads make the same number of calls
        used.setdefault(threading.get_ident(), []).append(self)
        return np.array([len(text)])

    monkeypatch.setattr(tokenizer.BPETokenizer, "encode", noted)
    part = "train", [("x" * 150_000, True)], True  # a batch of its own
    for threads, vocab_size, copies in ((1, 256, 0), (2, 10**6, 0), (2, 256, 2)):
        used.clear()
        meet, shared.vocab_size = threading.Barrier(threads, timeout=20), vocab_size
        found = list(token_files.encoded(iter([part] * 8), shared, threads))
        assert [(*before, ids[0].tolist()) for *before, ids in found] == [(*part, [150_000])] * 8
        last = {of_thread[-1] for of_thread in used.values()} - {shared}
        assert len(used) == threads and len(last) == copies
        assert {each.hash for each in last} <= {shared.hash}
        # The first batch of each comes before a copy would pay.
        assert all(of_thread[0] is shared and len(set(of_thread[1:])) == 1 for of_thread in used.values())


def test_threads_take_short_parts_together():
    """100,000 lines of 10 characters are 8 batches, not 100,000; parts without text do not stay behind."""
    parts = [("train", [("0123456789", True)], True)] * 100_000 + [("train", [], True)]
    found = list(token_files.batches(iter(parts)))
    assert sum(found, []) == parts and len(found) == 8


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_an_error_in_a_thread_is_one_line(tmp_path, monkeypatch, threads):
    """It reaches the one who prepares, at the place of `raise`; no thread and nothing temporary is left."""
    text = "".join(f"line {i}\n" for i in range(200_000))
    source = write(tmp_path / "a.txt", text)
    before = threading.active_count()
    encode = tokenizer.BPETokenizer.encode

    def wrong(self, part):
        if "line 100000\n" in part:
            raise ValueError("line 100000 is wrong")
        return encode(self, part)

    monkeypatch.setattr(tokenizer.BPETokenizer, "encode", wrong)
    with pytest.raises(ValueError, match="line 100000 is wrong") as caught:
        prepare.prepare("mine", source, "bpe", 260, threads=threads)
    assert caught.traceback[-1].name == "wrong"
    assert threading.active_count() == before and os.listdir(prepare.DATASETS) == []


STOPPED = """
import pathlib, signal, sys, threading, time
import tokenizer
from text import prepare
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell started in the background
prepare.DATASETS = pathlib.Path(sys.argv[1])
encode = tokenizer.BPETokenizer.encode
def slow(self, text):
    if threading.current_thread() is not threading.main_thread():
        print("encoding", flush=True)
    time.sleep(0.5)
    return encode(self, text)
tokenizer.BPETokenizer.encode = slow
prepare.prepare("mine", sys.argv[2], sys.argv[3], threads=2)
"""


@pytest.mark.slow
def test_ctrl_c_ends_all_threads(tmp_path):
    """Ctrl-C while threads encode: the process ends within seconds and leaves nothing."""
    source = write(tmp_path / "a.txt", "".join(f"line {i}\n" for i in range(1_000_000)))  # 12 s of encoding
    tokenizer.BPETokenizer.train(["a text"], 256).save(tmp_path / "t.json")
    command = [sys.executable, "-c", STOPPED, prepare.DATASETS, source, tmp_path / "t.json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "encoding\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)  # on a busy machine; else 2 seconds
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert process.returncode == -signal.SIGINT and os.listdir(prepare.DATASETS) == []


def test_changed_while_read(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write(path, "some text " * 50)
    count = formats.Source.count

    def then_grow(self, alphabet):
        total = count(self, alphabet)
        write(path, "some text " * 60)
        return total

    monkeypatch.setattr(formats.Source, "count", then_grow)
    assert "changed" in error_of(prepare.prepare, "mine", str(path))
    assert os.listdir(prepare.DATASETS) == []


def test_truncated_token_file(tmp_path):
    prepare.prepare("mine", write(tmp_path / "a.txt", "some text " * 50))
    path = prepare.DATASETS / "mine" / "train.bin"
    path.write_bytes(path.read_bytes()[:-3])
    assert "train.bin" in error_of(data.Windows, "mine", "train", 8)
    path.unlink()
    assert "train.bin" in error_of(data.Windows, "mine", "train", 8)


# ---- windows of text
@pytest.mark.parametrize("block_size", [1, 7, 32])
def test_lengths_around_block_size(tmp_path, block_size):
    """D8, mistake 8: block_size + 1 tokens are one window, fewer are an error with both numbers."""
    for extra in (-1, 0, 1, 2):
        n = block_size + extra
        if n < 1:
            continue
        dataset_of(tmp_path / f"n{n}", np.arange(n))
        if extra < 1:
            message = error_of(data.Windows, tmp_path / f"n{n}", "train", block_size)
            assert (
                f"has {n} tokens" in message and f"block_size={block_size} needs {block_size + 1}" in message
            )
            continue
        windows = data.Windows(tmp_path / f"n{n}", "train", block_size)
        assert windows.n_windows == extra  # 1 or 2
        for epoch in range(4):
            batches = one_epoch(windows, 1, epoch)
            assert all(x.shape == y.shape == (1, block_size) for x, y in batches)
            assert scored(batches).tolist() == list(range(1, n))


def test_targets_are_the_next_tokens(tmp_path):
    """D8: y[i] is x[i + 1], int64, and in y nothing but ids of the file or -1."""
    dataset_of(tmp_path / "a", np.random.default_rng(0).integers(0, 1000, 5000), dtype="uint16")
    windows = data.Windows(tmp_path / "a", "train", 32)
    for step in range(50):
        x, y = windows.batch(step, 8)
        assert x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (8, 32) and x.is_contiguous()
        inside = (y != -1)[:, :-1]
        assert torch.equal(y[:, :-1][inside], x[:, 1:][inside]) and x.min() >= 0


@pytest.mark.parametrize("n", [33, 34, 63, 64, 65, 66, 97, 1000, 1025])
def test_each_target_once_an_epoch(tmp_path, n):
    """D9: text, in each of the first epochs, at evaluation, and with batches that straddle epochs."""
    dataset_of(tmp_path / "a", np.arange(n))
    windows = data.Windows(tmp_path / "a", "train", 32)
    assert windows.n_windows == -(-(n - 1) // 32)
    for epoch in range(5):
        assert scored(one_epoch(windows, 1, epoch)).tolist() == list(range(1, n))
    assert scored([windows.window_batch(range(windows.n_windows))]).tolist() == list(range(1, n))
    batch_size = 5
    steps = [windows.batch(step, batch_size) for step in range(windows.n_windows)]  # exactly 5 epochs
    assert scored(steps).tolist() == sorted(list(range(1, n)) * 5)


def test_epochs_differ(tmp_path):
    """Another order and another offset in each epoch; another seed, another order; every offset comes up."""
    dataset_of(tmp_path / "a", np.arange(1000))
    windows = data.Windows(tmp_path / "a", "train", 32, seed=1)
    first, second = one_epoch(windows, 32, 0)[0][0], one_epoch(windows, 32, 1)[0][0]
    assert not torch.equal(first, second) and not torch.equal(first.sort(0)[0], second.sort(0)[0])
    other = data.Windows(tmp_path / "a", "train", 32, seed=2)
    assert not torch.equal(first, one_epoch(other, 32, 0)[0][0])
    offsets = {windows.epoch(epoch)[1] for epoch in range(400)}
    assert offsets == set(range(32 * 32 - 999 + 1))


def test_batches_are_a_pure_function(tmp_path):
    """D9: asked in any order, by another object, after an evaluation: the same batch."""
    dataset_of(tmp_path / "a", np.arange(2000))
    one, two = (data.Windows(tmp_path / "a", "train", 16, seed=5) for _ in range(2))
    forward = [one.batch(step, 12) for step in range(60)]
    for step in (59, 0, 31, 30, 5, 58):
        two.window_batch([3, 1])
        for a, b in zip(two.batch(step, 12), forward[step], strict=True):
            assert torch.equal(a, b)


def datasets_of_every_kind(folder):
    ids, mask, _ = samples_of(101, 17)
    dataset_of(folder / "text", np.arange(3001))
    dataset_of(folder / "rows", ids, mask, end_id=0, format="jsonl")
    dataset_of(folder / "lines", ids, end_id=0, format="lines")
    return [
        (folder / "text", True),
        (folder / "rows", True),
        (folder / "rows", False),
        (folder / "lines", False),
    ]


def rows_of(x, y):
    """The rows of a batch without their padding, which depends on the neighbours in the batch."""
    return [
        (a[: len(a) - (a.flip(0) == 0).int().cumprod(0).sum()].tolist(), b[b != -1].tolist())
        for a, b in zip(x, y, strict=True)
    ]


def test_the_same_windows_however_divided(tmp_path):
    """D9, D12: 1 x 8 == 2 ranks x 4 == 4 micro-steps x 2 == 2 ranks x 2 micro-steps x 2; 3 ranks too."""
    for folder, pack in datasets_of_every_kind(tmp_path):
        windows = data.Windows(folder, "train", 16, pack=pack)
        for step in range(30):
            whole = rows_of(*windows.batch(step, 8))
            for ranks, micro_steps in ((2, 1), (1, 4), (2, 2), (8, 1)):
                size = 8 // ranks // micro_steps
                divided = [
                    row
                    for micro_step in range(micro_steps)
                    for rank in range(ranks)
                    for row in rows_of(*windows.batch(step, size, micro_step, micro_steps, rank, ranks))
                ]
                assert divided == whole
            thirds = [row for rank in range(3) for row in rows_of(*windows.batch(step, 5, 0, 1, rank, 3))]
            assert thirds == rows_of(*windows.batch(step, 15))


def test_batches_gathered_on_a_device_are_the_batches(tmp_path):
    """All of them, the windows at both ends of the text, and ids in several files."""
    folder, ids = dataset_of(tmp_path / "a", np.arange(1, 1002)), read_ids(tmp_path / "a")
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    meta["splits"]["train"]["shards"] = [400, 601]
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    ids[:400].tofile(folder / "train_000.bin")
    ids[400:].tofile(folder / "train_001.bin")
    for T, room in ((8, 4 * 1001), (7, 1e9), (999, 1e9)):
        windows, twin = (data.Windows(tmp_path / "a", "train", T) for _ in range(2))
        windows.keep_on(torch.device("cpu"), 4 * 1001 - 1)
        assert windows.on_device is None  # no room
        windows.keep_on(torch.device("cpu"), room)
        assert windows.on_device is not None
        for step in range(60):
            (x, y), (x_twin, y_twin) = windows.batch(step, 5, 1, 2), twin.batch(step, 5, 1, 2)
            assert x.dtype == y.dtype == torch.int64 and torch.equal(x, x_twin) and torch.equal(y, y_twin)
            assert data.count_targets(y) == y.n_targets == data.count_targets(y_twin)
        assert torch.equal(windows.window_batch([0])[0], twin.window_batch([0])[0])
    for folder, pack in datasets_of_every_kind(tmp_path / "kinds"):
        windows, twin = (data.Windows(folder, "train", 16, pack=pack) for _ in range(2))
        windows.keep_on(torch.device("cpu"), 1e9)
        assert (windows.on_device is None) == windows.in_rows
        assert all(map(torch.equal, windows.batch(3, 8), twin.batch(3, 8)))


def test_ranks_that_do_not_divide(tmp_path):
    """D12: 2 and 3 ranks on 101 windows: as many steps for all, and each window equally often."""
    dataset_of(tmp_path / "a", np.arange(101 * 8 + 1))
    windows = data.Windows(tmp_path / "a", "train", 8)
    assert windows.n_windows == 101
    for ranks in (2, 3):
        seen = [[windows.batch(step, 4, 0, 1, rank, ranks) for step in range(101)] for rank in range(ranks)]
        assert scored(sum(seen, [])).tolist() == sorted(list(range(1, 809)) * 4 * ranks)
        steps = -(-101 // (4 * ranks))  # the first epoch: disjoint, and complete with a part of the next
        first = [
            seen[rank][step][1][row] for step in range(steps) for rank in range(ranks) for row in range(4)
        ]
        assert torch.cat(first[:101]).sort()[0].tolist() == list(range(1, 809))


# ---- rows of samples
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_each_row_once_an_epoch(tmp_path, pack, masked):
    """D9, D11, mistakes 10 and 12: every sample whole, each target once; the first id is context."""
    ids, mask, lengths = samples_of(500, 33)
    mask = mask if masked else np.ones_like(mask)
    dataset_of(tmp_path / "a", ids, mask if masked else None, end_id=0, format="jsonl")
    windows = data.Windows(tmp_path / "a", "train", 32, pack=pack)
    if pack and not masked:  # then samples are running text
        assert windows.n_windows == -(-(len(ids) - 1) // 32)
        return
    starts = np.cumsum(lengths) - lengths
    targets = mask.copy()
    targets[starts] = 0
    expected = np.sort(ids[targets == 1]).tolist()
    assert windows.n_dropped == 0 and windows.n_tokens == len(ids)
    for epoch in range(3):
        assert scored(one_epoch(windows, 1, epoch)).tolist() == expected
    x, y = windows.window_batch(range(windows.n_windows))
    assert scored([(x, y)]).tolist() == expected
    whole = {tuple(ids[s : s + n]) for s, n in zip(starts, lengths, strict=True)}
    found = set()
    for row, target in zip(x.tolist(), y.tolist(), strict=True):
        sample = []
        for i, token in enumerate([*row, 0]):
            sample.append(token)
            if token == 0:
                found.add(tuple(sample))
                sample = []
            if i < len(target) and target[i] != -1:
                assert target[i] == ([*row, 0])[i + 1]
    assert whole <= found  # no sample is cut
    if not pack:
        assert windows.n_windows == 500
    else:
        assert windows.filled > 0.9 and x.shape == (windows.n_windows, 32)


def test_long_samples_are_counted(tmp_path):
    """Mistakes 11 and 12, ask 12: a sample longer than a row is left out and counted; none fits: an error."""
    ids, mask, lengths = samples_of(200, 40)
    dataset_of(tmp_path / "a", ids, mask, end_id=0, format="jsonl")
    for pack in (True, False):
        windows = data.Windows(tmp_path / "a", "train", 24, pack=pack)
        assert windows.n_dropped == (lengths > 25).sum() > 0
        _, y = windows.window_batch(range(windows.n_windows))
        assert (y == 0).sum() == (lengths <= 25).sum()  # the end token of each of the others is a target
        assert (y != -1).any(1).all()  # no row without a target
    dataset_of(tmp_path / "b", [*range(1, 12), 0] * 3, [0] * 11 + [1] + [1] * 24, end_id=0, format="jsonl")
    message = error_of(data.Windows, tmp_path / "b", "train", 8)
    assert "no sample fits" in message and "--block_size=11" in message
    assert data.Windows(tmp_path / "b", "train", 11).n_windows == 3


def test_like_lengths_together(tmp_path):
    """D11: with pack=False less padding than in random order, at most batch_size x block_size ids a batch."""
    ids, mask, lengths = samples_of(500, 65)
    dataset_of(tmp_path / "a", ids, mask, end_id=0, format="jsonl")
    windows = data.Windows(tmp_path / "a", "train", 64, pack=False)
    batches = one_epoch(windows, 10)
    size = sum(x.numel() for x, _ in batches)
    assert all(x.numel() <= 10 * 64 for x, _ in batches)
    needed = (lengths - 1).sum()
    shuffled = np.random.default_rng(0).permutation(lengths - 1).reshape(50, 10)
    assert 1 - needed / size < 0.5 * (1 - needed / (shuffled.max(1) * 10).sum())
    widths = [x.shape[1] for x, _ in batches]
    assert widths != sorted(widths)  # not from short to long
    assert "text" in error_of(data.Windows, dataset_of(tmp_path / "t", np.arange(99)), "train", 8, pack=False)


def test_mask_reaches_the_batch(tmp_path):
    """Mistake 10: a packed row, by hand."""
    ids = [1, 2, 3, 0, 4, 5, 0, 6, 7, 8, 9, 0]
    mask = [0, 0, 1, 1, 0, 1, 1, 0, 1, 0, 1, 1]
    windows = data.Windows(dataset_of(tmp_path / "a", ids, mask, end_id=0, format="jsonl"), "train", 8)
    x, y = windows.window_batch(range(windows.n_windows))
    assert x.tolist() == [[1, 2, 3, 0, 4, 5, 0, 0], [6, 7, 8, 9, 0, 0, 0, 0]]
    assert y.tolist() == [[-1, 3, 0, -1, 5, 0, -1, -1], [7, -1, 9, 0, -1, -1, -1, -1]]


def test_missing_split(tmp_path):
    prepare.prepare("mine", write(tmp_path / "a.txt", "some text " * 50), val_ratio=0)
    assert "--val_ratio=0.1" in error_of(data.Windows, "mine", "val", 8)


def test_windows_of_text(tmp_path):
    """Any file as windows, with a given tokenizer; rows keep their masks; unknown characters: an error."""
    text = "abc de fgh " * 30
    letters = tokenizer.CharTokenizer.train([text], special_tokens=[tokenizer.END])
    windows = data.windows_of_text(write(tmp_path / "a.txt", text), letters, 16)
    x, y = windows.window_batch(range(windows.n_windows))
    assert (y != -1).sum() == len(text) - 1 == windows.n_tokens - 1
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "abc", "response": "de"}] * 3)
    _, y = data.windows_of_text(path, letters, 16).window_batch([0])
    assert (y != -1).sum() == 6
    assert "'x'" in error_of(data.windows_of_text, write(tmp_path / "b.txt", "xyz" * 20), letters, 16)


def test_floor():
    meta = {"nats_per_char": 0.5, "dropped": {}, "splits": {"val": {"characters": 300, "tokens": 100}}}
    assert floor_per_token(meta, "val") == 1.5
    assert floor_per_token(meta | {"dropped": {"repeats": 1}}, "val") == 0.0
    assert floor_per_token({"dropped": {}, "splits": meta["splits"]}, "val") == 0.0


# ---- the script
def project(tmp_path):
    """A copy of what the script needs, so that it writes its datasets/ there."""
    folder = tmp_path / "project"
    folder.mkdir()
    for file in ("data.py", "tokenizer.py"):
        shutil.copy(ROOT / file, folder / file)
    for room in ("config", "machine", "runtime", "techniques", "text"):
        shutil.copytree(ROOT / room, folder / room)
    return folder


@pytest.mark.slow
def test_script(tmp_path):
    """From another folder: datasets/ beside data.py; packing is told; bad JSON: one line, exit code 2."""
    folder = project(tmp_path)
    rows = [{"prompt": f"{i}+{i}=", "response": str(2 * i)} for i in range(50)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    command = [sys.executable, folder / "data.py", f"--input={path}", "--format=jsonl", "--name=mine"]
    run = subprocess.run(
        [*command, "--dedup"], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
    )
    assert run.returncode == 0, run.stderr
    assert "train: " in run.stdout and re.search(r"with block_size=64: rows \d+\.\d% full, 0 ", run.stdout)
    assert re.search(r": \S+, vocabulary \d+", run.stdout)
    assert re.search(r" 45 samples, .* \d\d\.\d% of the tokens count in the loss\n", run.stdout)
    assert (folder / "datasets" / "mine" / "train_mask.bin").exists()
    write(tmp_path / "rows.jsonl", '{"text": "a"}\n' * 6 + "{oops\n")
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and "rows.jsonl line 7" in run.stderr
    assert (folder / "datasets" / "mine" / "train_mask.bin").exists()
    run = subprocess.run([sys.executable, folder / "data.py"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2 and "--input is empty" in run.stderr and run.stderr.count("\n") == 1


# ---- memory
def memory(key):
    """VmRSS (now) or VmHWM (peak) of this process in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def big_file(path, megabytes):
    """Lines of random words, no two the same: in each round all of them in another order, and its number."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("etaoinshrdlu"), 2 + i % 9)) for i in range(20_000)]
    lines = [" ".join(words[i] for i in rng.integers(0, len(words), 3 + n % 17)) for n in range(20_000)]
    with open(path, "w", encoding="utf-8", newline="") as file:
        size = rounds = 0
        while size < megabytes * 1e6:
            size += file.write("".join([f"{lines[i]} {rounds}\n" for i in rng.permutation(len(lines))]))
            rounds += 1
    return str(path)


@pytest.mark.parametrize("megabytes", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_prepare_in_little_memory(tmp_path, megabytes):
    """D10: of a text of any size, Python's and numpy's allocations together peak below 20 MB."""
    path = big_file(tmp_path / "big.txt", megabytes)
    tracemalloc.start()
    try:
        prepare.prepare("mine", path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6, peak
    assert len(read_ids("mine")) + len(read_ids("mine", "val")) == os.path.getsize(path)


@on_linux
def test_memory_stays_flat_while_reading(tmp_path):
    """D10, mistake 44: 2,000 batches of a 200 MB token file grow RSS by < 50 MB (one mapping: by 190 MB)."""
    dataset_of(tmp_path / "a", np.zeros(100_000_000, dtype=np.uint16), dtype="uint16")
    windows = data.Windows(tmp_path / "a", "train", 64)
    windows.batch(0, 32)
    before = memory("VmRSS")
    for step in range(2000):
        windows.batch(step, 32)
    assert memory("VmRSS") - before < 50


PREPARE = """
import json, pathlib, sys, time
from tests.test_data import memory
from text import prepare
prepare.DATASETS = pathlib.Path(sys.argv[1])
idle, start = memory("VmHWM"), time.time()
prepare.prepare("mine", sys.argv[2], **json.loads(sys.argv[3]))
print(json.dumps([time.time() - start, memory("VmHWM") - idle]))
"""


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("megabytes", "limit", "settings"),
    [
        (75, 50, {}),
        (30, 30, {"tokenizer": "bpe"}),
        (25, 25, {"format": "lines", "dedup": True, "clean": True}),
    ],
    ids=["char", "bpe", "lines"],
)
def test_prepare_in_flat_memory(tmp_path, megabytes, limit, settings):
    """The peak, above a process that has imported torch and waits, is below the size of the text."""
    path = big_file(tmp_path / "big.txt", megabytes)
    command = [sys.executable, "-c", PREPARE, tmp_path / "datasets", path, json.dumps(settings)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    seconds, peak = json.loads(run.stdout.splitlines()[-1])
    print(f"{megabytes} MB, {settings}: {seconds:.0f} s, {peak:.0f} MB above idle")
    assert peak < limit
