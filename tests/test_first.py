"""--first: the beginning of an input, which stands for all of it."""

import gzip
import json

import pytest

from test_data import decode, error_of, own_datasets, samples, write, write_rows
from text import corpora, prepare, readers, settle
from text.dataset import require_same_content

assert own_datasets  # a fixture


@pytest.mark.parametrize("packed", [False, True])
def test_the_first_characters_of_a_text(tmp_path, packed):
    """Characters, not bytes; nothing is cut twice, and 10 % of them are for validation."""
    text = "".join(f"Zeile {i}: für Größe 😀\r\n" for i in range(2000))
    source = write(tmp_path / "a.txt", text)
    if packed:
        source = str(tmp_path / "a.txt.gz")
        (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode("utf-8")))
    meta = prepare.prepare("mine", source, first=25_000)
    assert decode("mine") + decode("mine", "val") == text[:25_000] and len(decode("mine", "val")) == 2500
    assert meta["first"] == 25_000
    whole = prepare.prepare("whole", source, first=10**9)
    assert decode("whole") + decode("whole", "val") == text
    assert "first" not in prepare.prepare("all", source)
    assert settle.ensure("all")["sha256"] == whole["sha256"] != meta["sha256"]


def test_two_beginnings_are_two_datasets(tmp_path):
    """A run on one refuses the other, by the hash of the ids."""
    source = write(tmp_path / "a.txt", "some text to be cut " * 100)
    one, two = (prepare.prepare(f"d{n}", source, first=n) for n in (1000, 1200))
    with pytest.raises(ValueError, match="was trained on another text"):
        require_same_content(one, two, prepare.DATASETS / "d1200", "out", "start anew")
    require_same_content(one, prepare.prepare("again", source, first=1000), prepare.DATASETS, "out", "")


def test_lines_and_rows_stay_whole(tmp_path):
    """For each number of characters: the lines, and rows, that end within them."""
    lines = ["one", "three", "sixteen", "", "five"]
    text = "\n".join(lines) + "\n"
    source = write(tmp_path / "a.txt", text)
    for n in range(3, len(text) + 2):
        expected = [line for i, line in enumerate(lines) if line and len("\n".join(lines[: i + 1])) <= n]
        prepare.prepare("mine", source, format="lines", val_ratio=0, first=n)
        assert samples("mine") == expected, n
    assert "first line is longer than first=2; take more" in error_of(
        prepare.prepare, "mine", source, format="lines", first=2
    )
    rows = [{"prompt": f"{i} ", "response": "x" * i} for i in range(1, 40)]
    ends = [len("".join(json.dumps(row) + "\n" for row in rows[: i + 1])) - 1 for i in range(39)]
    source = write_rows(tmp_path / "a.jsonl", rows)
    for n in (ends[3] - 1, ends[3], ends[3] + 5):
        prepare.prepare("rows", source, val_ratio=0, first=n)
        assert len(samples("rows")) == sum(end <= n for end in ends)


def test_a_json_list_cannot_be_cut(tmp_path):
    text = json.dumps([{"text": f"row {i}"} for i in range(30)], indent=1)
    source = write(tmp_path / "a.json", text)
    message = error_of(prepare.prepare, "mine", source, first=100)
    assert message == "a: first=100 ends inside a JSON list; expected one row a line, or format=text"
    for n in (len(text), len(text) + 1):
        prepare.prepare("mine", source, first=n, val_ratio=0)
        assert len(samples("mine")) == 30
    prepare.prepare("mine", source, first=100, val_ratio=0, format="text")
    assert decode("mine") == text[:100]


def test_documents_and_built_in_texts(tmp_path):
    """The last document that is begun ends there. val_input is read as a whole."""
    (tmp_path / "in").mkdir()
    for i in range(3):
        write(tmp_path / "in" / f"{i}.txt", f"document {i}")
    val = write(tmp_path / "v.txt", "document " * 30)
    meta = prepare.prepare("mine", str(tmp_path / "in"), first=13, val_input=val)
    assert samples("mine") == ["document 0", "doc"] and meta["splits"]["val"]["characters"] == 270
    text, _ = next(corpora.open_corpus("sums_text").chunks())
    prepare.prepare("play", "builtin:sums_text", first=99, val_ratio=0)
    assert samples("play") == [text[:99]]
    prepare.prepare("play", "builtin:sums", first=2000, val_ratio=0)
    assert 5 < len(samples("play")) < 20
    assert "first=-1 makes no sense; expected 0 or more" in error_of(prepare.prepare, "x", val, first=-1)


def test_the_rest_is_not_read(tmp_path, monkeypatch):
    """Of a text of 3 MB, 25,000 characters need its first chunk; damage behind it is not noticed."""
    source = tmp_path / "a.txt"
    source.write_bytes(b"some words in a line\n" * 150_000 + b"\xff")
    read = []
    plain = readers.Document.read

    def noted(*arguments):
        block = plain(*arguments)
        read.append(len(block))
        return block

    monkeypatch.setattr(readers.Document, "read", noted)
    corpus, format = corpora.open_text(str(source))
    read.clear()
    chunks = list(corpora.first_characters(corpus, 25_000, format).chunks())
    assert sum(len(text) for text, _ in chunks) == 25_000 and sum(read) <= readers.HEAD + 3 * corpora.BLOCK
    prepare.prepare("mine", str(source), first=25_000)
    assert "not UTF-8 at byte 3150000" in error_of(prepare.prepare, "mine", str(source))
