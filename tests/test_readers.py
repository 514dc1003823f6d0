"""readers.py: what a file is, its content tells. It is read as that, or refused by name."""

import bz2
import gzip
import json
import lzma
import os
import random
import runpy
import shutil
import string
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

import data
import sample
import tokenizer
from test_data import error_of, own_datasets, samples, write, write_rows
from text import corpora, prepare, settle
from text.corpora import open_corpus
from text.readers import HEAD, encoding_of

__all__ = ["own_datasets"]  # a fixture: each test has its own datasets folder
TEXTS = {
    "english": "Slow green river.\r\nQuiet stone garden, 42.\n" * 30,
    "german": "Über den Flüssen, „dort“ drüben – schön.\n" * 30,
    "russian": "Быстрый свет над рекой, и тихий сад.\n" * 30,
    "greek": "Το ποτάμι είναι ήσυχο, ο κήπος όχι.\n" * 30,
    "chinese": "小河静静地流，石头花园很安静。一切都好 \n" * 30,
    "chinese, a line": "小河静静地流，石头花园很安静。\n",
    "hindi": "नदी धीरे बहती है।\n",
    "korean": "느린 강과 조용한 정원.\n" * 30,
    "emoji": "river 🐍 stone 👩‍👩‍👧\n" * 30,
    "short": "hi\n",
    "one letter": "a",
}
ENCODINGS = ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]


def read(path) -> list[str]:
    """The documents of a source, each as one text."""
    texts, parts = [], []
    for text, ends in open_corpus(str(path)).chunks():
        parts.append(text)
        if ends:
            texts.append("".join(parts))
            parts = []
    return texts


@pytest.mark.parametrize("mark", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", *ENCODINGS])
def test_every_encoding_with_and_without_a_byte_order_mark(tmp_path, monkeypatch, encoding, mark):
    monkeypatch.setattr(corpora, "BLOCK", 7)  # characters and surrogates are cut
    for text in TEXTS.values():
        (tmp_path / "a.txt").write_bytes(("\ufeff" * mark + text).encode(encoding))
        assert read(tmp_path / "a.txt") == [text]


def test_utf_8_is_never_taken_for_another_encoding():
    """Random text in UTF-8, cut at any place, and UTF-8 with some NUL in it."""
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices("ab \t\n\r\x00é\ufeff你🐍", k=300))
        assert encoding_of(b"x" + text.encode("utf-8")) == "utf-8"
    assert encoding_of(("x" + "é你🐍" * HEAD).encode("utf-8")[:HEAD]) == "utf-8"


@pytest.mark.parametrize("unpacked", ["gzip", "bz2", "xz", "gzip twice"])
def test_compressed_texts(tmp_path, unpacked):
    pack = {"gzip": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    pack["gzip twice"] = lambda content: gzip.compress(gzip.compress(content))
    for encoding in ("utf-8", "utf-8-sig", "utf-16-le", "utf-32"):
        (tmp_path / "any name").write_bytes(pack[unpacked](TEXTS["german"].encode(encoding)))
        assert read(tmp_path / "any name") == [TEXTS["german"]]
    packed = (tmp_path / "any name").read_bytes()
    (tmp_path / "half.gz").write_bytes(packed[: len(packed) // 2])
    message = error_of(read, tmp_path / "half.gz")
    assert "half.gz cannot be unpacked" in message


def test_a_compressed_text_is_a_stream(tmp_path):
    with gzip.GzipFile(tmp_path / "long.txt.gz", "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(b"x" * 99_999 + b"\n")
    tracemalloc.start()
    assert sum(len(chunk) for chunk, _ in open_corpus(str(tmp_path / "long.txt.gz")).chunks()) == 20_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def zip_of(path, members: dict) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return str(path)


def test_zip_files(tmp_path):
    """Each text in it is a document, whatever its encoding; others are counted; one file needs no ending."""
    members = {"b.txt": "\ufeffb", "a/c.md": "c".encode("utf-16"), "x.png": "p", "__MACOSX/b.txt": "m"}
    members |= {"d.txt.gz": gzip.compress(b"d"), "e.txt": ""}
    path = zip_of(tmp_path / "many.zip", members)
    corpus = open_corpus(path)
    assert read(path) == ["c", "b", "d"] and corpus.many
    names = ("a/c.md", "b.txt", "d.txt.gz")
    assert [file.as_posix() for file in corpus.files] == [f"{path}/{name}" for name in names]
    assert corpus.left_out == {".png": 1, "hidden": 1, "empty": 1}
    word = zip_of(tmp_path / "letter.docx", {"[Content_Types].xml": "<x/>", "word/document.xml": "<x/>"})
    assert "Office document" in error_of(read, word)
    random_text = "".join(random.Random(0).choices("abcdefgh ", k=5000))
    path = zip_of(tmp_path / "text8.zip", {"text8": random_text})
    assert read(path) == [random_text]
    whole = (tmp_path / "text8.zip").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:500] + b"12345678" + whole[508:]):
        (tmp_path / "bad.zip").write_bytes(content)
        assert "bad.zip" in (message := error_of(read, tmp_path / "bad.zip"))
        assert "cannot be unpacked" in message


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 12345\n"
FOREIGN = {
    "a Git LFS pointer": (LFS.encode(), "git lfs pull"),
    "a Git LFS pointer in a gzip": (gzip.compress(LFS.encode()), "git lfs pull"),
    "a git-annex pointer": (b"/annex/objects/SHA256E-s1--ab.txt\n", "git annex get"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)), "a picture"),
    "a PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "a PDF"),
    "formatted text": (b"{\\rtf1\\ansi Hello}", "RTF"),
    "a tar archive": (b"a.txt".ljust(257, b"\0") + b"ustar\x0000" + b"\0" * 250, "a tar archive"),
    "a tar archive in a gzip": (gzip.compress(b"a.txt".ljust(257, b"\0") + b"ustar\x0000"), "a tar archive"),
    "a Parquet table": (b"PAR1\x15\x04\x15\x10" + b"\0" * 90, "JSON rows"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x58", "zstd"),
    "numbers": (np.arange(1000, dtype="<u2").tobytes(), "not UTF-8"),
    "more numbers": (np.random.default_rng(0).normal(size=1000).tobytes(), "a.txt"),
    "token files": (np.random.default_rng(0).integers(0, 60, 1000, dtype="<u2").tobytes(), "NUL"),
    "a disk that was full": (b"some text\n" * 50 + bytes(5000), "NUL"),
    "a disk that was full, later": (b"some text\n" * 50_000 + bytes(5000), "NUL"),
    "names with NUL between": (b"one.txt\0two.txt\0three.txt\0", "NUL"),
    "half a UTF-16 file's letters": ("stone ".encode("utf-16-le") * 40 + b"river" * 40, "NUL"),
    "Latin-1": ("ein Fluß in der Höhe".encode("latin-1"), "not UTF-8 at byte 7"),
    "UTF-16 that is cut": ("\ufeffa river".encode("utf-16-le")[:-1], "not UTF-16"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_text_is_refused_by_name_the_same_by_both(tmp_path, kind):
    content, words = FOREIGN[kind]
    (tmp_path / "a.txt").write_bytes(content)
    letters = tokenizer.CharTokenizer.train([string.printable], special_tokens=[tokenizer.END])
    by_data = error_of(prepare.prepare, "mine", str(tmp_path / "a.txt"))
    assert words in by_data and "a.txt" in by_data
    assert by_data == error_of(data.windows_of_text, str(tmp_path / "a.txt"), letters, 8)
    assert by_data == error_of(settle.settle, str(tmp_path / "a.txt"))
    (tmp_path / "folder").mkdir()
    os.rename(tmp_path / "a.txt", tmp_path / "folder" / "a.txt")
    assert words in error_of(prepare.prepare, "mine", str(tmp_path / "folder"))


def test_clean_drops_nul_as_it_drops_all_control_characters(tmp_path):
    path = write(tmp_path / "a.txt", "some\0 text here\n" * 20)
    assert "NUL in its first" in error_of(prepare.prepare, "mine", path)
    meta = prepare.prepare("mine", path, clean=True)
    assert meta["dropped"] == {"control characters": 20}


def test_a_pipe_cannot_be_read_twice(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "save the text in a file" in error_of(read, tmp_path / "pipe")


def test_what_a_folder_leaves_out_is_counted_by_ending(tmp_path, capsys):
    names = "a.txt b.TXT c.png d.png e.PNG f.pdf README .hidden g.txt h.csv c.json"
    for name in names.split():
        write(tmp_path / name, "" if name == "g.txt" else "a river\n" * 20)
    os.symlink(tmp_path / "gone", tmp_path / "link.txt")
    prepare.prepare("mine", str(tmp_path))
    line = next(line for line in capsys.readouterr().out.splitlines() if "left out" in line)
    expected = (
        "1 .csv, 1 .json without rows, 1 .pdf, 1 broken links, 1 empty, 1 hidden, 1 without ending, 3 .png"
    )
    assert sorted(line.removeprefix(f"{tmp_path}: left out: ").split(", ")) == expected.split(", ")


# ---- rows
ROWS = [{"prompt": f"{i}+1=", "response": f"{i + 1}"} for i in range(30)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
LIST = json.dumps(ROWS, indent=1)
HOLD_ROWS = {
    "rows.jsonl": LINES,
    "rows.JSONL": LINES,
    "rows.json": LIST,
    "rows.JSON": "\ufeff\n" + LIST,
    "rows.txt": LINES,
    "rows": "\r\n" + LINES,
    "rows.jsonl.gz": gzip.compress(LINES.encode()),
    "utf16.json": LIST.encode("utf-16-le"),
    "long.json": json.dumps([{"text": "a" * 300_000}, *ROWS]),
}


@pytest.mark.parametrize("name", HOLD_ROWS)
def test_rows_are_read_as_rows_by_both(tmp_path, capsys, name):
    """Once, they were learned and scored braces and all; --format=text still does that."""
    content = HOLD_ROWS[name]
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    meta = prepare.prepare("mine", str(tmp_path / name), val_ratio=0)
    assert meta["format"] == "jsonl" and samples("mine")[-1] == "29+1=30"
    out = capsys.readouterr().out
    assert f"{name} holds JSON rows, and is read as rows; " in out and "--format=text reads" in out
    letters = tokenizer.load_any(str(prepare.DATASETS / "mine"))
    windows = data.windows_of_text(str(tmp_path / name), letters, 16, say=True)
    _, y = windows.window_batch(range(windows.n_windows))
    assert (y != -1).sum() == sum(len(row["response"]) + 1 for row in ROWS)
    assert "holds JSON rows" in capsys.readouterr().out
    meta = prepare.prepare("plain", str(tmp_path / name), format="text")
    assert meta["format"] == "text" and not meta["masked"] and capsys.readouterr().out.count("\n") == 3


def test_folders_and_zip_files_of_rows(tmp_path, capsys):
    (tmp_path / "rows").mkdir()
    for i in range(3):
        write_rows(tmp_path / "rows" / f"{i}.JSONL", ROWS[i * 10 : i * 10 + 10])
    zip_of(tmp_path / "rows.zip", {f"{i}.json": json.dumps(ROWS[i * 10 : i * 10 + 10]) for i in range(3)})
    for source in ("rows", "rows.zip"):
        prepare.prepare("mine", str(tmp_path / source), val_ratio=0)
        assert samples("mine") == [row["prompt"] + row["response"] for row in ROWS]
        assert capsys.readouterr().out.count("holds JSON rows") == 1
    write(tmp_path / "rows" / "notes.txt", "a river\n")
    message = error_of(prepare.prepare, "mine", str(tmp_path / "rows"))
    assert "0.JSONL" in message and "notes.txt" in message and "--format=text" in message
    assert prepare.prepare("mine", str(tmp_path / "rows"), format="text")["format"] == "text"


@pytest.mark.parametrize("text", [LIST[: LIST.index("]")], '{"a": 1\n}', '{"messages": [\n]}'])
def test_json_that_is_no_rows_is_refused(tmp_path, text):
    path = write(tmp_path / "one.json", text)
    assert "one.json" in error_of(prepare.prepare, "mine", path)


BRACKETS = ["[1] A river.\n", "{a river}\n", "[a river]\n", '["Hello," he said]\n', "{\n", "[[1, 2]]\n"]


@pytest.mark.parametrize("text", [*BRACKETS, "{'a': 1}\n"])
def test_a_text_that_begins_with_a_bracket_is_a_text(tmp_path, text, capsys):
    meta = prepare.prepare("mine", write(tmp_path / "a.txt", text * 20))
    assert meta["format"] == "text" and "rows" not in capsys.readouterr().out


def test_a_bad_first_row_is_named(tmp_path):
    path = write(tmp_path / "rows.jsonl", '{"text": "a river"\n' + LINES)
    assert "rows.jsonl line 1: no JSON" in error_of(prepare.prepare, "mine", path)
    rows = [{"instruction": "a", "output": "b"}]
    for name, content in (("alpaca.json", json.dumps(rows)), ("texts.json", '["a river", "a stone"]')):
        assert "expected text, prompt and response, or messages" in error_of(
            prepare.prepare, "mine", write(tmp_path / name, content)
        )


def test_the_validation_text_is_of_the_same_kind(tmp_path):
    rows, text = write(tmp_path / "a.jsonl", LINES), write(tmp_path / "b.txt", "a river\n" * 20)
    assert "--val_input is text" in error_of(prepare.prepare, "mine", rows, val_input=text)
    prepare.prepare("mine", rows, val_input=write(tmp_path / "c.json", LIST))
    assert samples("mine") == samples("mine", "val")


# ---- names with two meanings
@pytest.mark.parametrize("kind", ["char", "bpe", "gpt2"])
def test_a_local_tokenizer_called_like_a_kind(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    text = write(tmp_path / "a.txt", "a river and a stone\n" * 20)
    prepare.prepare("made", text)
    os.rename(prepare.DATASETS / "made", tmp_path / kind)
    flags = ["data.py", f"--input={text}", "--name=mine"]
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", [*flags, f"--tokenizer={kind}"])
    with pytest.raises(ValueError, match=f"write ./{kind} for that, builtin:{kind} for what"):
        runpy.run_path(data.__file__, run_name="__main__")
    monkeypatch.setattr(sys, "argv", [*flags, f"--tokenizer=./{kind}"])
    runpy.run_path(data.__file__, run_name="__main__")
    hash = tokenizer.load_any(f"./{kind}").hash
    assert settle.ensure("mine")["tokenizer_hash"] == hash
    monkeypatch.setattr(sys, "argv", flags)  # the default is no word that was typed
    runpy.run_path(data.__file__, run_name="__main__")
    assert prepare.prepare("mine", text, tokenizer="builtin:char")["tokenizer"] == "char"


def test_a_tokenizer_that_a_folder_here_and_a_dataset_have(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for letters in ("a river\n", "a stone\n"):
        text = write(tmp_path / "a.txt", letters * 20)
        prepare.prepare("one", text)
        if not os.path.exists("one"):
            shutil.copytree(prepare.DATASETS / "one", "one")
            prepare.prepare("two", text, tokenizer="one")  # both are the same
    message = error_of(prepare.prepare, "two", text, tokenizer="one")
    assert "two meanings" in message and str(prepare.DATASETS / "one") in message
    prepare.prepare("two", text, tokenizer=str(prepare.DATASETS / "one"))


@pytest.mark.parametrize(
    "name",  # to read all of the standard library takes a second
    [pytest.param(n, marks=pytest.mark.slow if n == "python" else ()) for n in corpora.BUILT_IN],
)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_local_file_called_like_a_built_in_text(tmp_path, monkeypatch, name, kind):
    """Neither is taken in silence; each can be written; what knows what it wants is not disturbed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(corpora, "DOWNLOADS", tmp_path / "downloads")
    if kind == "folder":
        os.mkdir(name)
    write(tmp_path / name / "a.txt" if kind == "folder" else tmp_path / name, "a river and a stone\n" * 20)
    letters = tokenizer.CharTokenizer.train(["a river and a stone\n"])
    for call in (
        lambda: prepare.prepare("mine", name),
        lambda: prepare.prepare("mine", f"./{name}", val_input=name),
        lambda: data.windows_of_text(name, letters, 16),
    ):
        message = error_of(call)
        assert f"write ./{name} for that, builtin:{name} for what" in message
    assert prepare.prepare("mine", f"./{name}")["splits"]["train"]["tokens"] == 360
    assert data.windows_of_text(f"./{name}", letters, 16).n_tokens == 400
    corpus = open_corpus(f"builtin:{name}")
    assert corpus.name in (name, "verse")
    assert next(corpus.chunks())[0][:20] != "a river and a stone\n"


def test_a_prompt_file_is_read_as_a_text_is(tmp_path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le"):
        (tmp_path / "prompt.txt").write_bytes("ein Fluß\r\n".encode(encoding))
        assert sample.read_start(f"FILE:{tmp_path / 'prompt.txt'}") == "ein Fluß\n"
    (tmp_path / "prompt.txt").write_bytes(LFS.encode())
    assert "git lfs pull" in error_of(sample.read_start, f"FILE:{tmp_path / 'prompt.txt'}")


def test_a_text_that_stands_in_is_never_silent(tmp_path, monkeypatch, capsys):
    """As validation text, and for evaluate.py, too."""
    monkeypatch.setattr(corpora, "DOWNLOADS", tmp_path / "downloads")
    monkeypatch.setattr(corpora, "SHAKESPEARE_SIZE", 5000)
    path = write(tmp_path / "a.txt", "".join(text for text, _ in open_corpus("verse", size=90_000).chunks()))
    prepare.prepare("mine", path, val_input="shakespeare")
    letters = tokenizer.load_any(str(prepare.DATASETS / "mine"))
    data.windows_of_text("shakespeare", letters, 16, say=True)
    assert capsys.readouterr().out.count("COULD NOT BE DOWNLOADED") == 2


def test_train_refuses_a_name_with_two_meanings(train, tmp_path, monkeypatch):
    """--dataset=verse beside a file verse took the built-in text, and so on, without a word."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "DATASETS", tmp_path / "datasets")
    for name in ("verse", "mine.txt", "other.txt"):
        Path(name).write_text(f"It was the {name} of times.\n" * 200, encoding="utf-8")
    with pytest.raises(ValueError, match=r"--dataset=verse has two meanings.* ./verse .* builtin:verse"):
        train("--dataset=verse")
    prepare.prepare("mine.txt", "other.txt")
    with pytest.raises(ValueError, match=r"two meanings: the file here.* \./mine.txt or datasets/mine.txt"):
        train("--dataset=mine.txt")
    assert train("--dataset=./mine.txt", "--max_iters=1")["meta"]["source"] == str(tmp_path / "mine.txt")
    assert train("--dataset=datasets/mine.txt", "--max_iters=1")["meta"]["source"].endswith("other.txt")
