"""corpora.py, verse.py: the grammar against slow twins (entropy, uniqueness); files, downloads, stand-ins."""

import collections
import functools
import hashlib
import http.client
import io
import json
import math
import random
import re
import socket
import time
import tracemalloc

import numpy as np
import pytest

from text import corpora
from text.corpora import cut, open_corpus
from text.verse import NAMES, PLACES, RULES, verse_entropy, verse_scenes

MARKS = ",.;:!?"
SPECIAL = {"NEW0", "NEW1", "NEW2", "TURN0", "TURN1", "TURN2", "NAME1", "NAME2", "PLACE", "HERE", "/", "//"}


def joined(corpus):
    return "".join(text for text, _ in corpus.chunks())


@pytest.fixture(scope="module")
def megabyte():
    """Scenes of 1 MB of verse with their log-probabilities."""
    scenes, size = [], 0
    for scene in verse_scenes(seed=7):
        scenes.append(scene)
        size += len(scene[0])
        if size >= 1_000_000:
            return scenes


def ratio_and_error(scenes):
    """Sampled nats per character, and its standard error: a ratio of two sums over independent scenes."""
    nats = np.array([-log_prob for _, log_prob in scenes])
    lengths = np.array([len(text) for text, _ in scenes])
    ratio = nats.sum() / lengths.sum()
    return ratio, math.sqrt(((nats - ratio * lengths) ** 2).sum()) / lengths.sum()


# --- verse: numbers


def test_closed_form_agrees_with_the_sampled_log_probability(megabyte):
    sampled, error = ratio_and_error(megabyte)
    assert error < 0.002
    assert abs(sampled - verse_entropy()) < 4 * error


def test_closed_form_notices_a_wrong_rule(megabyte, monkeypatch):
    halves = [(0.5, symbols) for _, symbols in RULES["More"]]
    monkeypatch.setitem(RULES, "More", halves)
    sampled, error = ratio_and_error(megabyte)
    assert abs(sampled - verse_entropy()) > 4 * error


def test_info_holds_the_floor_and_the_log_probability_of_the_very_text():
    corpus = open_corpus("verse", seed=3, size=50_000)
    assert corpus.info["nats_per_char"] == verse_entropy()
    assert math.isclose(corpus.info["bits_per_char"] * math.log(2), verse_entropy())
    text = joined(corpus)
    wanted, length = 0.0, 0
    for scene, log_prob in verse_scenes(3):
        wanted += log_prob
        length += len(scene)
        if length >= 50_000:
            break
    assert corpus.info["characters"] == len(text) == length
    assert math.isclose(corpus.info["log_prob"], wanted)
    assert text.endswith("[Exeunt.]\n\n")
    json.dumps(corpus.info)


def test_same_seed_same_bytes():
    corpus = open_corpus("verse", seed=1, size=100_000)
    text = joined(corpus)
    assert text == joined(corpus) == joined(open_corpus("verse", seed=1, size=100_000))
    assert text != joined(open_corpus("verse", seed=2, size=100_000))
    assert joined(open_corpus("verse", seed=1, size=200_000)).startswith(text)


def test_default_size_and_speed():
    start = time.process_time()
    text = joined(open_corpus("verse"))
    assert time.process_time() - start < 3
    assert 1_115_394 <= len(text) < 1_115_394 + 20_000


@pytest.mark.slow
def test_verse_streams_in_flat_memory():
    corpus = open_corpus("verse", size=1_500_000)
    tracemalloc.start()
    assert sum(len(text) for text, _ in corpus.chunks()) >= 1_500_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_500_000


# --- verse: the grammar


def test_size_of_the_grammar():
    terminals = {symbol for options in RULES.values() for _, symbols in options for symbol in symbols}
    terminals -= set(RULES) | SPECIAL
    words = {word.lower() for word in terminals if word.isalpha()} | set(PLACES)
    classes = {
        head for head, options in RULES.items() if all(len(s) == 1 and s[0] in terminals for _, s in options)
    }
    assert len(words) >= 400
    assert len(RULES.keys() - classes) >= 40
    assert all(math.isclose(sum(p for p, _ in options), 1) for options in RULES.values())
    assert all(symbol.lower() in words | set(MARKS) | {"[exeunt.]"} for symbol in terminals)
    # A text is cut into words in one way: words differ also without capitals ("The" begins the heading only).
    assert len({symbol.lower() for symbol in terminals}) == len(terminals) - 1
    assert not {name.lower() for name in NAMES} & words
    assert not set(PLACES) & terminals


def test_nouns_and_adjectives_go_with_a():
    for head in ("Person.s", "Thing.s", "Adj"):
        for _, (word,) in RULES[head]:
            assert word[0] not in "aeiou"


def test_alternatives_begin_with_different_words():
    """The grammar is LL(1), so no text has two derivations (Lewis and Stearns 1968)."""
    first = collections.defaultdict(set)  # "" in first[A]: A can be empty
    follow = collections.defaultdict(set)

    def first_of(symbols):
        found = set()
        for symbol in symbols:
            own = first[symbol] if symbol in RULES else {symbol}
            found |= own - {""}
            if "" not in own:
                return found
        return found | {""}

    sizes = None
    while sizes != (sizes := (sum(map(len, first.values())), sum(map(len, follow.values())))):
        for head, options in RULES.items():
            for _, symbols in options:
                first[head] |= first_of(symbols)
                for i, symbol in enumerate(symbols):
                    if symbol in RULES:
                        rest = first_of(symbols[i + 1 :])
                        follow[symbol] |= rest - {""}
                        if "" in rest:
                            follow[symbol] |= follow[head]
    for head, options in RULES.items():
        seen = set()
        for _, symbols in options:
            starts = first_of(symbols)
            starts = starts - {""} | (follow[head] if "" in starts else set())
            assert not starts & seen, f"{head}: two alternatives begin with {starts & seen}"
            seen |= starts


def derivations(text, rules=RULES):
    """How many derivations a scene has and the log of their summed probability: a slow twin of the generator.

    An inside chart (Baker 1979), character by character: (symbol, position, who spoke last) gives
    {(end, who speaks): (count, log p)}.
    """
    heading = re.match(r"SCENE: The (\w+)\. Enter (\w+), (\w+) and (\w+)\.", text)
    place, *cast = heading.groups() if heading else ("", "", "", "")

    def terminal(symbol, at, speaker):
        if symbol in ("/", "//") or symbol in MARKS:
            written = {"/": "\n", "//": "\n\n"}.get(symbol, symbol)
        else:
            word = {"PLACE": place, "HERE": place}.get(symbol, symbol)
            if symbol in SPECIAL and symbol[-1].isdigit():
                who = (speaker + int(symbol[-1])) % 3
                speaker = who if symbol.startswith("TURN") else speaker
                word = cast[who].title() if symbol.startswith("NAME") else cast[who]
            new_line = at == 0 or text[at - 1] == "\n"
            written = word[0].upper() + word[1:] if new_line else " " + word
        return {(at + len(written), speaker): (1, 0.0)} if text.startswith(written, at) else {}

    @functools.cache
    def inside(symbol, at, speaker):
        if symbol not in rules:
            return terminal(symbol, at, speaker)
        total = {}
        for p, symbols in rules[symbol]:
            states = {(at, speaker): (1, math.log(p))}
            for part in symbols:
                following = {}
                for state, (n, log_p) in states.items():
                    for end, (m, log_q) in inside(part, *state).items():
                        add(following, end, n * m, log_p + log_q)
                states = following
            for end, (n, log_p) in states.items():
                add(total, end, n, log_p)
        return total

    def add(table, key, n, log_p):
        m, log_q = table.get(key, (0, -math.inf))
        table[key] = (m + n, float(np.logaddexp(log_p, log_q)))

    ends = [value for (end, _), value in inside("Scene", 0, 0).items() if end == len(text)]
    log_heading = math.log(1 / 12 / 11 / 10 / 12) if heading else 0.0
    return sum(n for n, _ in ends), sum(log_p for _, log_p in ends) + log_heading


def test_every_scene_has_one_derivation_and_its_probability(megabyte):
    for text, log_prob in megabyte[:12]:
        count, total = derivations(text)
        assert count == 1
        assert math.isclose(total, log_prob, rel_tol=1e-9)


def test_the_chart_sees_wrong_texts_and_ambiguous_grammars(megabyte):
    text, _ = next(scene for scene in megabyte if " king " in scene[0])
    assert derivations(text.replace(" king ", " kings ", 1))[0] == 0
    assert derivations(text.replace("\n\n", "\n", 1))[0] == 0
    cast = re.search(r"Enter (\w+)", text)[1]
    stranger = next(name for name in NAMES if name.upper() not in text).upper()
    head, body = text.split(".", 2)[:2], text.split(".", 2)[2]
    assert derivations(".".join(head) + "." + body.replace(f"{cast}:", f"{stranger}:"))[0] == 0
    toy = {"Scene": [(1.0, ("X", "Y"))]}
    toy |= {head: [(0.5, ("la",)), (0.5, ("la", "la"))] for head in "XY"}
    count, log_p = derivations("La la la", toy)
    assert (count, math.isclose(math.exp(log_p), 0.5)) == (2, True)


def test_cast_and_place_recur(megabyte):
    for text, _ in megabyte:
        cast = re.search(r"Enter (\w+), (\w+) and (\w+)\.", text).groups()
        speakers = re.findall(r"^([A-Z]+):$", text, re.MULTILINE)
        assert len(set(cast)) == 3 and set(speakers) <= set(cast) and speakers[0] == cast[0]
        assert all(a != b for a, b in zip(speakers, speakers[1:], strict=False))
        assert set(re.findall(r"\b(?:" + "|".join(NAMES) + r")\b", text)) <= {name.title() for name in cast}
        assert set(re.findall(r"in this (\w+)", text)) <= {re.match(r"SCENE: The (\w+)", text)[1]}
        assert (
            text.startswith("SCENE: ")
            and text.endswith(".\n\n[Exeunt.]\n\n")
            or text.endswith("\n\n[Exeunt.]\n\n")
        )
        assert "  " not in text and " \n" not in text and "\n " not in text


# --- verse: a floor for models


def n_gram_loss(train, test, order):
    """Nats per character of `test` under a Witten-Bell n-gram model that has counted `train`."""
    counts = [collections.defaultdict(collections.Counter) for _ in range(order)]
    for i in range(order, len(train)):
        for k in range(order):
            counts[k][train[i - k : i]][train[i]] += 1
    sums = [{context: (sum(c.values()), len(c)) for context, c in table.items()} for table in counts]
    nats = 0.0
    for i in range(order, len(test)):
        p = 1 / 128
        for k in range(order):
            context = test[i - k : i]
            n, kinds = sums[k].get(context, (0, 0))
            if n:
                p = (counts[k][context][test[i]] + kinds * p) / (n + kinds)
        nats -= math.log(p)
    return nats / (len(test) - order)


@pytest.mark.slow
def test_no_model_goes_below_the_floor_but_a_leak_does(megabyte):
    train, held_out = megabyte[:200], megabyte[200:250]
    test = "".join(text for text, _ in held_out)
    floor, error = verse_entropy(), ratio_and_error(held_out)[1]
    losses = [n_gram_loss("".join(text for text, _ in train), test, order) for order in (2, 4, 7)]
    assert losses[0] > losses[1] > losses[2] > floor - 3 * error
    assert n_gram_loss(test, test, 12) < floor - 3 * error


# --- Tiny Shakespeare


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "DOWNLOADS", tmp_path / "downloads")
    return tmp_path / "downloads"


def serve(monkeypatch, data, error=None):
    class Reply(io.BytesIO):
        def read(self, *size):
            block = super().read(*size)
            if error and not block:
                raise error
            return block

    monkeypatch.setattr(corpora.urllib.request, "urlopen", lambda url, timeout: Reply(data))


def test_without_network_verse_stands_in_loudly(downloads, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    corpus = open_corpus("shakespeare")
    assert corpus.name == "verse" and corpus.info["stand_in_for"] == "shakespeare"
    assert "network is unreachable" in corpus.info["stand_in_reason"]
    assert joined(corpus) == joined(open_corpus("verse"))
    assert not list(downloads.glob("*"))
    notice = corpora.stand_in_notice(corpus.info)
    assert "network is unreachable" in notice and corpora.URL in notice and "Used instead: verse" in notice
    assert "python data.py --input=tinyshakespeare.txt --name=shakespeare_char --tokenizer=char" in notice
    lines = notice.splitlines()
    assert (
        len({len(line) for line in lines}) == 1
        and lines[0] == lines[-1] == "+" + "-" * (len(lines[0]) - 2) + "+"
    )
    assert corpora.stand_in_notice(open_corpus("verse").info) == ""


def test_a_broken_download_is_replaced_too(downloads, monkeypatch):
    serve(monkeypatch, b"First Citizen:", http.client.IncompleteRead(b""))
    assert "IncompleteRead" in open_corpus("shakespeare").info["stand_in_reason"]
    assert not list(downloads.glob("*"))


def test_a_good_download_is_kept(downloads, monkeypatch, capsys):
    data = b"First Citizen:\nBefore we proceed any further, hear me speak.\n"
    monkeypatch.setattr(corpora, "SHA256", hashlib.sha256(data).hexdigest())
    serve(monkeypatch, data)
    corpus = open_corpus("shakespeare")
    assert (corpus.name, corpus.info, joined(corpus)) == ("shakespeare", {}, data.decode())
    assert [path.name for path in downloads.iterdir()] == ["tinyshakespeare.txt"]
    assert "downloading" in capsys.readouterr().err
    monkeypatch.setattr(corpora.urllib.request, "urlopen", None)  # is not called again
    assert joined(open_corpus("shakespeare")) == data.decode()


def test_wrong_contents_are_refused_by_name(downloads, monkeypatch):
    serve(monkeypatch, b"<html>Please log in</html>")
    with pytest.raises(ValueError, match=r"tinyshakespeare\.txt .*is refused.*sha256") as caught:
        open_corpus("shakespeare")
    assert "\n" not in str(caught.value) and corpora.URL in str(caught.value)
    assert not list(downloads.glob("*"))
    downloads.mkdir()
    (downloads / "tinyshakespeare.txt").write_text("To be", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tinyshakespeare\.txt .*is refused.*delete"):
        open_corpus("shakespeare")
    assert (downloads / "tinyshakespeare.txt").read_text(encoding="utf-8") == "To be"


# --- local files


def one_line(source, *wanted):
    with pytest.raises(ValueError) as caught:
        joined(open_corpus(str(source)))
    message = str(caught.value)
    assert "\n" not in message and str(source) in message
    for part in wanted:
        assert part in message


def test_errors_are_one_line(tmp_path):
    one_line(tmp_path / "missing.txt", "no such")
    one_line("shakespear", "no such", "shakespeare, verse, python, sums")
    (tmp_path / "empty.txt").touch()
    one_line(tmp_path / "empty.txt", "no text in this file")
    one_line(tmp_path, "no text in this folder", ".jsonl")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    one_line(tmp_path, "no text in this folder")
    (tmp_path / "latin.txt").write_bytes("ABC café".encode("latin-1"))
    one_line(tmp_path / "latin.txt", "not UTF-8 at byte 7")


@pytest.mark.parametrize("position", [0, 3, 4, 5, 1000])
def test_the_position_of_a_wrong_byte(tmp_path, monkeypatch, position):
    monkeypatch.setattr(corpora, "BLOCK", 4)
    good = ("日本語 é" * 200).encode()
    position -= next(k for k in range(4) if good[position - k] & 0xC0 != 0x80)  # where a character begins
    (tmp_path / "a.txt").write_bytes(good[:position] + b"\xe9!" + good[position:])
    one_line(tmp_path / "a.txt", f"at byte {position};")
    (tmp_path / "b.txt").write_bytes(good[:position] + b"\xe6\x97")  # the file ends inside a character
    one_line(tmp_path / "b.txt", f"at byte {position};")


def test_folders(tmp_path):
    for name, text in [
        ("b.txt", "two"),
        ("a/z.md", "one"),
        ("c.py", "three"),
        ("d.jsonl", "{}"),
        ("e.txt", ""),
    ]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in ("x.html", ".hidden.txt", ".git/y.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no", encoding="utf-8")
    corpus = open_corpus(str(tmp_path))
    assert list(corpus.chunks()) == [("one", True), ("two", True), ("three", True), ("{}", True)]
    assert corpus.many and [file.name for file in corpus.files] == ["z.md", "b.txt", "c.py", "d.jsonl"]
    single = open_corpus(str(tmp_path / "b.txt"))
    assert (single.name, single.many, list(single.chunks())) == ("b", False, [("two", True)])


def random_text(rng):
    return "".join(
        rng.choice(["a", "bc", " ", "\n", "\n", "\n\n", "\r\n", "\t", "é", "\u3000", "."]) for _ in range(400)
    )


def test_chunks_are_cut_before_line_breaks_only(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "BLOCK", 16)
    rng = random.Random(1)
    for _ in range(50):
        text = random_text(rng)
        (tmp_path / "t.txt").write_text(text, encoding="utf-8", newline="")
        chunks = list(open_corpus(str(tmp_path / "t.txt")).chunks())
        assert "".join(chunk for chunk, _ in chunks) == text
        assert [ends for _, ends in chunks] == [False] * (len(chunks) - 1) + [True]
        assert len(chunks) > 5
        for (before, _), (after, _) in zip(chunks, chunks[1:], strict=False):
            assert not before[-1].isspace() and after.startswith(("\n", "\r\n"))


def test_cuts_do_not_change_pre_tokens(monkeypatch):
    import regex  # comes with tiktoken

    gpt2 = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    monkeypatch.setattr(corpora, "BLOCK", 16)
    rng = random.Random(2)
    for _ in range(50):
        text = random_text(rng)
        pieces = [text[i : i + 7] for i in range(0, len(text), 7)]
        assert [token for chunk, _ in cut(pieces) for token in gpt2.findall(chunk)] == gpt2.findall(text)


def test_long_files_are_streams(tmp_path):
    path = tmp_path / "long.txt"
    line = "x" * 99 + "\n"
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(200):
            file.write(line * 1000)
    tracemalloc.start()
    lengths = [len(chunk) for chunk, _ in open_corpus(str(path)).chunks()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(lengths) == 20_000_000 and max(lengths) < 1_000_000 and peak < 5_000_000
    path.write_text("y" * 3_000_000, encoding="utf-8")  # no line break at all: one chunk
    assert [len(chunk) for chunk, _ in open_corpus(str(path)).chunks()] == [3_000_000]


# --- python and sums


def test_python_is_the_standard_library():
    corpus = open_corpus("python")
    assert corpus.many and corpus.name == "python"
    documents = sum(ends for _, ends in corpus.chunks())
    assert documents == len(corpus.files) > 300
    assert sum(len(text.encode()) for text, _ in corpus.chunks()) >= 5_000_000
    names = [file.as_posix() for file in corpus.files]
    assert names == sorted(names) and any(name.endswith("/argparse.py") for name in names)
    assert not [
        name for name in names if re.search(r"lib/python3[^/]*/(.*/)?(tests?|idlelib|site-packages)/", name)
    ]


def test_sums_are_right():
    corpus = open_corpus("sums", seed=5, size=300_000)
    text = joined(corpus)
    assert 300_000 <= len(text) < 301_000 and text == joined(corpus)
    assert text != joined(open_corpus("sums", seed=6, size=300_000))
    difficulties = collections.Counter()
    for line in text.splitlines():
        problem = json.loads(line)
        assert problem.keys() == {"prompt", "response"}
        *steps, answer = problem["response"].split("\n")
        difficulties[len(steps)] += 1
        sentences = problem["prompt"].split(". ")
        now = int(re.search(r" has (\d+) ", sentences[0])[1])
        for sentence, step in zip(sentences[1:-1], steps, strict=True):
            n = int(re.search(r"\d+|$", sentence)[0])
            verb = sentence.split()[1]
            sign = {"finds": "+", "gives": "-", "swaps": "*", "keeps": "/"}[verb]
            result = {"+": now + n, "-": now - n, "*": now * n, "/": now // n}[sign]
            assert step == f"{now} {sign} {n} = {result}" and result >= 2
            now = result
        assert answer == f"answer: {now}"
        assert len(steps) >= 3 or "*" not in problem["response"]
    assert set(difficulties) == {1, 2, 3, 4, 5} and min(difficulties.values()) > 100


def test_sums_default_size():
    lines = sum(text.count("\n") for text, _ in open_corpus("sums").chunks())
    assert 18_000 < lines < 22_000
