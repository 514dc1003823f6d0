"""tokenizer.py: nothing is lost, the fast ways equal the slow ones, and bad input ends in one line."""

import argparse
import codecs
import doctest
import itertools
import json
import random
import subprocess
import sys
import time
import types
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken

import tokenizer
from text import new_tokenizer, prepare
from tokenizer import END, BPETokenizer, CharTokenizer

SHAKESPEARE = Path(__file__).parents[2] / "shared/data/tinyshakespeare.txt"
# As GPT-2 published it, with backtracking and without "++": ours must cut at the same places.
PUBLISHED_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LANGUAGES = {
    "chinese": "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少？\n" * 40,
    "bengali": "আমার সোনার বাংলা, আমি তোমায় ভালোবাসি। চিরদিন তোমার আকাশ, তোমার বাতাস\n" * 20,
    "emoji": "I 💚 🐍! 👩‍👩‍👧‍👦 and 🏳️‍🌈, 🇧🇩 5️⃣ 👍🏽\r\n" * 50,
    "python": Path(argparse.__file__).read_text(encoding="utf-8")[:20_000],
}


def trained(kind: str, chunks: list[str], vocab_size: int, special_tokens: tuple) -> tokenizer.Tokenizer:
    if kind == "char":
        return CharTokenizer.train(chunks, special_tokens)
    return BPETokenizer.train(chunks, vocab_size, special_tokens)


@pytest.fixture(scope="module")
def text() -> str:
    """Tiny Shakespeare where it is at hand, else as many characters of random words in lines."""
    if SHAKESPEARE.exists():
        return SHAKESPEARE.read_text(encoding="utf-8")
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", k=rng.randint(1, 9))) for _ in range(12_000)]
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(len(words))))
    lines = [
        " ".join(rng.choices(words, cum_weights=weights, k=8)) + rng.choice(".,;:!?") for _ in range(40_000)
    ]
    return "\n".join(lines)[:1_115_394]


@pytest.fixture(scope="module")
def bpe(text: str) -> BPETokenizer:
    return BPETokenizer.train([text], 4096)


def random_strings(n: int, seed: int) -> list[str]:
    """Strings of all scripts and of the pieces that break tokenizers. Only characters that Unicode 3.2 (2002)
    had already: tables of different years, Python's, regex's and tiktoken's, agree on those."""
    rng = random.Random(seed)
    has = unicodedata.ucd_3_2_0.category
    assigned = [chr(c) for c in range(0x30000) if has(chr(c)) not in ("Cn", "Cs")]
    traps = [
        "\r\n",
        "\0",
        " ",
        "  ",
        "   ",
        "\t",
        "\n\n",
        "\x1c",
        "\x85",
        "\u00a0",
        "\u2028",
        "\u3000",
        "\ufeff",
    ]
    traps += ["e\u0301", "\u0301", "\u200d", "👩‍👩‍👧", "🇧🇩", "👍🏽"]
    traps += ["12345", "'s", "'ll", "'", "don't", "\\", "\\x41", '"', END]
    letters = list("aabbccdefgh  ABC 0123456789.,!?-'\n")
    strings = []
    for _ in range(n):
        pools = rng.choice([[letters, traps], [assigned, traps], [letters, assigned, traps], [traps]])
        strings.append("".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(0, 40))))
    return strings


def tiktoken_from(ours: BPETokenizer, pattern: str = PUBLISHED_PATTERN) -> tiktoken.Encoding:
    """The oracle: tiktoken given nothing but our tokens, and the pattern as GPT-2 published it."""
    ranks = {token: i for i, token in enumerate(ours.tokens)}
    return tiktoken.Encoding("oracle", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def naive_merge(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """ids with every pair replaced by new, from the left."""
    out = []
    i = 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def naive_train(words: list[str], n: int) -> list[tuple[int, int]]:
    """The slow obvious twin of find_merges: count all pairs anew for each merge, take the best, merge it."""
    pieces = [list(word.encode("utf-8")) for word in words]
    merges = []
    while len(merges) < n:
        counts = Counter(pair for ids in pieces for pair in zip(ids, ids[1:], strict=False))
        if not counts or max(counts.values()) < 2:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        pieces = [naive_merge(ids, best, 256 + len(merges)) for ids in pieces]
        merges.append(best)
    return merges


# --- nothing is lost, and the fast ways equal the slow ones ---


def test_examples_in_the_docstrings():
    result = doctest.testmod(tokenizer)
    assert result.attempted >= 4
    assert result.failed == 0


@pytest.mark.parametrize("n", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_random_unicode_strings(text, n):
    strings = random_strings(n, seed=1)
    ours = BPETokenizer.train([text[: 50 * n], *random_strings(n, seed=2)], 1500)
    oracle = tiktoken_from(ours)
    published = regex.compile(PUBLISHED_PATTERN)
    merged = 0
    for s in strings:
        assert ours.split(s) == published.findall(s)
        ids = ours.encode(s)
        assert ids.dtype == np.uint32
        assert ours.encode_slowly(s) == ids.tolist() == oracle.encode_ordinary(s), repr(s)
        assert ours.decode(ids) == s
        merged += len(ids) < len(s.encode("utf-8"))
    assert merged > n / 2  # the merges were at work, it was not all single bytes


def test_tiny_shakespeare_equals_tiktoken_and_round_trips(text, bpe):
    ids = bpe.encode(text)
    assert ids.tolist() == tiktoken_from(bpe).encode_ordinary(text)
    assert bpe.decode(ids) == text
    assert len(ids) < 0.4 * len(text)


@pytest.mark.parametrize("n", [50_000, pytest.param(2_000_000, marks=pytest.mark.slow)])
def test_tiny_shakespeare_encoded_slowly_is_the_same(text, bpe, n):
    assert bpe.encode_slowly(text[:n]) == bpe.encode(text[:n]).tolist()


def test_100_kb_of_code_equals_tiktoken(bpe):
    code = "".join(
        p.read_text(encoding="utf-8") for p in sorted(Path(argparse.__file__).parent.glob("s*.py"))
    )
    code = code[:100_000]
    assert len(code) == 100_000
    assert bpe.encode_slowly(code) == bpe.encode(code).tolist() == tiktoken_from(bpe).encode_ordinary(code)
    assert bpe.decode(bpe.encode(code)) == code


def test_long_runs_of_one_character(bpe):
    for s in (" " * 1_200_000 + "a", "\n" * 1_200_000 + " b\n", "a" * 300_000, "!" * 300_000):
        assert bpe.decode(bpe.encode(s)) == s


@pytest.mark.parametrize("name", LANGUAGES)
def test_any_language(name):
    sample = LANGUAGES[name]
    ours = BPETokenizer.train([sample], 400, (END,))
    ids = ours.encode(sample)
    assert ours.decode(ids) == sample
    assert ids.tolist() == ours.encode_slowly(sample) == tiktoken_from(ours).encode_ordinary(sample)
    assert len(ids) < 0.5 * len(sample.encode("utf-8"))
    for other in LANGUAGES.values():  # nothing is unknown to bytes
        assert ours.decode(ours.encode(other)) == ours.decode(ours.encode(other, unknown="skip")) == other
    characters = CharTokenizer.train([sample])
    assert characters.decode(characters.encode(sample)) == sample
    assert tokenizer.from_json(ours.to_json()).encode(sample).tolist() == ids.tolist()


@pytest.mark.parametrize("texts", [20, pytest.param(50, marks=pytest.mark.slow)])
def test_training_equals_the_naive_trainer_merge_for_merge(texts):
    rng = random.Random(3)
    n_merges = 0
    for i in range(texts):
        alphabet = ["a", "ab ", "abc  \n", "aabbé你 ", "etaoin shrdlu'.0\n"][i % 5]
        sample = "".join(rng.choices(alphabet, k=rng.choice([3, 30, 300, 3000])))
        blank = BPETokenizer([bytes([b]) for b in range(256)])
        words = blank.split(sample)
        n = rng.choice([5, 200])
        expected = naive_train(words, n)
        assert tokenizer.find_merges(Counter(words), n) == expected, sample
        trained = BPETokenizer.train([sample], 256 + len(expected))
        by_hand = [bytes([b]) for b in range(256)]
        for a, b in expected:
            by_hand.append(by_hand[a] + by_hand[b])
        assert trained.tokens == by_hand
        n_merges += len(expected)
    assert n_merges > (1000 if texts == 50 else 200)


def test_encoding_equals_the_merges_one_after_the_other():
    """What encode_slowly's docstring claims: the joined bytes alone are enough, also in runs like "aaaaa"."""
    rng = random.Random(4)
    for alphabet in ("a", "ab", "abc", "abcd é", "aab 你好"):
        sample = "".join(rng.choices(alphabet, k=3000))
        ours = BPETokenizer.train([sample], 330)
        merges = tokenizer.find_merges(Counter(ours.split(sample)), 330 - 256)
        for _ in range(20):
            fresh = "".join(rng.choices(alphabet, k=rng.randint(1, 60)))
            expected = []
            for word in ours.split(fresh):
                ids = list(word.encode("utf-8"))
                for k, pair in enumerate(merges):
                    ids = naive_merge(ids, pair, 256 + k)
                expected += ids
            assert ours.encode_slowly(fresh) == expected == ours.encode(fresh).tolist()


def test_ties_go_to_the_smallest_pair_of_ids():
    assert BPETokenizer.train(["cd", "cd", "ab", "ab"], 258).tokens[256:] == [b"ab", b"cd"]
    # of 3 x "aab": (a, a) and (a, b) meet 3 times each, and a < b
    assert BPETokenizer.train(["aab aab aab"], 257).tokens[256:] == [b"aa"]


def test_merges_do_not_depend_on_the_order_of_lines(text):
    lines = text[:300_000].splitlines(keepends=True)
    shuffled = random.Random(5).sample(lines, len(lines))
    assert shuffled != lines
    assert BPETokenizer.train(shuffled, 1000).hash == BPETokenizer.train(lines, 1000).hash
    full = [line for line in lines if line.strip()]  # blank lines join with their neighbours: leave them out
    shuffled = random.Random(6).sample(full, len(full))
    assert (
        BPETokenizer.train(["".join(shuffled)], 1000).hash == BPETokenizer.train(["".join(full)], 1000).hash
    )


def test_chunks_are_read_as_a_stream(text, bpe):
    """A generator is enough, and chunks cut before a line break that follows a word change nothing."""
    cuts = [0] + [text.index("\n", i) for i in range(100_000, 1_000_000, 100_000)] + [len(text)]
    cuts = [0] + [cut for cut in cuts[1:-1] if not text[cut - 1].isspace()] + [len(text)]
    assert len(cuts) > 5
    chunks = [text[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    assert BPETokenizer.train((chunk for chunk in chunks), 4096).hash == bpe.hash
    assert np.concatenate([bpe.encode(chunk) for chunk in chunks]).tolist() == bpe.encode(text).tolist()
    assert CharTokenizer.train(chunk for chunk in chunks).hash == CharTokenizer.train([text]).hash


def test_training_is_fast(text):
    start = time.process_time()
    assert BPETokenizer.train([text], 4096).vocab_size == 4096
    assert time.process_time() - start < 5  # 0.4 s measured


def test_slow_training_reports_on_stderr(capsys, monkeypatch):
    BPETokenizer.train(["low low lower"], 260)
    assert capsys.readouterr().err == ""
    clock = iter(range(0, 10_000, 3))  # every look at the clock is 3 seconds later
    monkeypatch.setattr(tokenizer, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    BPETokenizer.train(["low low", " lower lowest"], 260)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tokenizer: 1 chunks of text read, 2 different words"
    assert any(line.endswith("of 4 merges") for line in lines)


def test_asking_for_too_many_tokens_stops_early_and_says_so(text, capsys):
    ours = BPETokenizer.train([text[:20_000]], 50_257, (END,))
    out = capsys.readouterr().out
    assert 1000 < ours.vocab_size < 10_000
    assert out.count("\n") == 1
    assert f"{ours.vocab_size:,} tokens" in out
    assert "50,257" in out
    assert ours.end_id == ours.vocab_size - 1
    assert ours.decode(ours.encode(text[:20_000])) == text[:20_000]
    again = BPETokenizer.train([text[:20_000]], ours.vocab_size, (END,))
    assert again.hash == ours.hash
    assert capsys.readouterr().out == ""


# --- special tokens ---


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_special_tokens_are_plain_text_unless_allowed(kind):
    corpus = f"GPT-2 ends a text with {END}, and <|end|> or <|end|>x are other names. {END}{END}"
    names = (END, "<|end|>", "<|end|>x")
    ours = trained(kind, [corpus], 300, names)
    assert list(ours.special_tokens) == list(names)
    assert ours.special_tokens[END] == ours.end_id == ours.vocab_size - 3
    plain = ours.encode(corpus)
    assert plain.max() < ours.end_id
    assert ours.decode(plain) == corpus
    assert ours.encode(END).max() < ours.end_id
    ids = ours.encode(corpus, allow_special=True)
    special = ids[ids >= ours.end_id].tolist()
    assert special == [
        ours.end_id,
        ours.end_id + 1,
        ours.end_id + 2,
        ours.end_id,
        ours.end_id,
    ]  # longest first
    assert ours.decode(ids) == corpus
    assert ours.encode(END, allow_special=True).tolist() == [ours.end_id]
    assert ours.encode("", allow_special=True).tolist() == ours.encode("").tolist() == []
    # Without special tokens the same text gives the same ordinary ids, and there is no end.
    bare = trained(kind, [corpus], 297, ())
    assert bare.end_id == -1
    assert bare.encode(corpus, allow_special=True).tolist() == plain.tolist()


def test_special_tokens_must_be_different():
    for names in ((END, END), ("",)):
        with pytest.raises(ValueError, match="special_tokens"):
            CharTokenizer("ab", names)


def test_a_special_token_of_one_character_is_plain_too():
    ours = CharTokenizer("ab", ("§",))
    assert ours.encode("a§", allow_special=True).tolist() == [0, 2]
    with pytest.raises(ValueError, match="'§' at position 1"):
        ours.encode("a§")


CHATML = {
    "system": ["<|im_start|>system\n", "<|im_end|>\n"],
    "user": ["<|im_start|>user\n", "<|im_end|>\n"],
    "assistant": ["<|im_start|>assistant\n", "<|im_end|>\n"],
}


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_special_tokens_may_have_any_id(kind):
    """GPT-2 and Llama 3 put them last, SmolLM2 first; the other tokens keep their order around them."""
    corpus = "low low lower lowest <|a|><|a|>x"
    last = trained(kind, [corpus], 263, (END, "<|a|>x", "<|a|>"))
    first_argument = "".join(t.decode() for t in last.tokens) if kind == "char" else last.tokens
    ids = {"<|a|>": 0, END: 5, "<|a|>x": last.vocab_size - 1}
    ours = type(last)(first_argument, ids)
    assert ours.special_tokens == ids and list(ours.special_tokens) == list(ids)
    assert (ours.end_id, ours.stop_ids) == (5, [5])
    new = {i: ours.ids[i] for i in range(len(last.tokens))}
    new |= {last.special_tokens[name]: i for name, i in ids.items()}
    assert sorted(new.values()) == list(range(ours.vocab_size))
    for text in (corpus, corpus + END, "", END):
        for allow_special in (False, True):
            old = last.encode(text, allow_special, unknown="skip").tolist()
            assert ours.encode(text, allow_special, unknown="skip").tolist() == [new[i] for i in old]
            assert ours.decode([new[i] for i in old]) == last.decode(old)
    assert ours.token_bytes()[list(new.values())].tolist() == last.token_bytes()[list(new)].tolist()
    again = tokenizer.from_json(ours.to_json())
    assert (again.hash, again.special_tokens, again.ids) == (ours.hash, ids, ours.ids)
    assert json.loads(ours.to_json())["special_tokens"] == ids
    # The same ids, written in another way, are the same tokenizer.
    assert type(last)(first_argument, dict(reversed(last.special_tokens.items()))).hash == last.hash
    if kind == "bpe":
        assert ours.encode_slowly(corpus) == ours.encode(corpus).tolist()


def test_the_json_of_older_tokenizers_stays_the_same():
    """Their hash is in datasets and runs. Both texts were written before special tokens could have any id."""
    old = '{\n "type": "char",\n "pattern": "",\n "special_tokens": [\n  "<|endoftext|>"\n ],\n "tokens": ['
    old += '\n  "a",\n  "é"\n ]\n}\n'
    assert CharTokenizer("aé", (END,)).to_json() == tokenizer.from_json(old).to_json() == old
    assert CharTokenizer("aé", {END: 2}, end=END, begin="", chat=None).to_json() == old
    hashed = BPETokenizer.train(["low low lower"], 260, (END, "<|b|>")).hash
    assert hashed == "22dffc362f53bbbac4c9bf4ef79c8f61cc8e1423cecd0dfcf4e423bfc6a4ba46"


def test_the_end_of_a_turn_stops_like_the_end_of_a_document():
    names = {"</s>": 2, "<s>": 0, "<|im_start|>": 1, "<|im_end|>": 4}
    ours = CharTokenizer("abc", names, end="</s>", begin="<s>", chat=CHATML)
    assert (ours.end_id, ours.begin_id, ours.stop_ids) == (2, 0, [2, 4])
    again = tokenizer.from_json(ours.to_json())
    assert (again.end_id, again.begin_id, again.stop_ids, again.chat) == (2, 0, [2, 4], CHATML)
    assert again.hash == ours.hash != CharTokenizer("abc", names, end="</s>", begin="<s>").hash
    assert CharTokenizer("abc", names, chat=CHATML).stop_ids == [4]
    same = {
        **CHATML,
        "assistant": ["", " </s><s>"],
        "system_in_user": True,
        "default_system": "",
        "trim": False,
    }
    assert CharTokenizer("abc", names, end="</s>", chat=same).stop_ids == [2]
    plain = CharTokenizer("abc", names)
    assert (plain.end_id, plain.begin_id, plain.stop_ids, plain.chat) == (-1, -1, [], None)


SPECIAL_MISTAKES = {
    "an id twice": {"special_tokens": {"<|x|>": 2, "<|im_end|>": 2}},
    "an id that leaves a hole": {"special_tokens": {"<|x|>": 0, "<|im_end|>": 9}},
    "a negative id": {"special_tokens": {"<|x|>": 0, "<|im_end|>": -1}},
    "an id of 10**30": {"special_tokens": {"<|x|>": 0, "<|im_end|>": 10**30}},
    "an id that is text": {"special_tokens": {"<|x|>": 0, "<|im_end|>": "1"}},
    "an id that is true": {"special_tokens": {"<|x|>": 0, "<|im_end|>": True}},
    "an id that is 1.0": {"special_tokens": {"<|x|>": 0, "<|im_end|>": 1.0}},
    "an id that is a list": {"special_tokens": {"<|x|>": 0, "<|im_end|>": [1]}},
    "an empty name": {"special_tokens": {"": 0, "<|im_end|>": 1}},
    "a name that is a number": {"special_tokens": [1, "<|im_end|>"]},
    "special tokens that are text": {"special_tokens": "xy"},
    "an unknown field": {"shoe": 1},
    "an end of no text": {"end": 5},
    "a beginning that is no token": {"begin": "<s>"},
    "a beginning that is a list": {"begin": ["<|x|>"]},
    "a chat that is text": {"chat": "chatml"},
    "a chat that is false": {"chat": False},
    "an empty chat": {"chat": {}},
    "a chat without the assistant": {"chat": {"user": ["", ""]}},
    "a role of three texts": {"chat": {**CHATML, "user": ["", "", ""]}},
    "a role of numbers": {"chat": {**CHATML, "user": ["", 1]}},
    "a role that is a text": {"chat": {**CHATML, "user": "ab"}},
    "an unknown role": {"chat": {**CHATML, "critic": ["", ""]}},
    "a default that is a number": {"chat": {**CHATML, "default_system": 1}},
    "a switch that is a number": {"chat": {**CHATML, "system_in_user": 1}},
    "a reply that no special token ends": {"chat": {**CHATML, "assistant": ["<|im_end|>", "\n"]}},
}  # fmt: skip


@pytest.mark.parametrize("case", SPECIAL_MISTAKES)
def test_special_tokens_of_a_stranger_are_checked(case):
    good = json.loads(CharTokenizer("ab", ("<|x|>", "<|im_end|>"), chat=CHATML).to_json())
    assert tokenizer.from_json(json.dumps(good)).stop_ids == [3]
    with pytest.raises(ValueError, match="this is no tokenizer of tinylm") as error:
        tokenizer.from_json(json.dumps({**good, **SPECIAL_MISTAKES[case]}))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


# --- on disk ---


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_save_and_load_keep_everything(kind, tmp_path):
    sample = "".join(LANGUAGES.values()) + '"\\ \\xe4 \\\\ \0\x7f\u2028\r\n' * 3
    ours = trained(kind, [sample], 700, (END, "<|ünïcode|>"))
    path = tmp_path / "tokenizer.json"
    ours.save(path)
    theirs = tokenizer.load(path)
    assert type(theirs) is type(ours)
    assert theirs.hash == ours.hash
    assert theirs.to_json() == ours.to_json() == path.read_text(encoding="utf-8")
    assert theirs.tokens == ours.tokens
    assert theirs.pattern == ours.pattern
    assert list(theirs.special_tokens.items()) == list(ours.special_tokens.items())
    assert theirs.encode(sample).tolist() == ours.encode(sample).tolist()
    assert "春" in path.read_text(encoding="utf-8")  # readable, not escaped
    assert tokenizer.load_any(str(path)).hash == tokenizer.load_any(str(tmp_path)).hash == ours.hash


def test_load_any_finds_datasets_and_runs_from_any_folder(tmp_path, monkeypatch):
    ours = CharTokenizer.train(["abc"])
    monkeypatch.setattr(tokenizer, "ROOT", tmp_path / "project")
    for folder in ("datasets/mine", "out-mine"):
        (tmp_path / "project" / folder).mkdir(parents=True)
        ours.save(tmp_path / "project" / folder / "tokenizer.json")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for spec in ("mine", "out-mine", "datasets/mine", "out-mine/tokenizer.json", "../project/out-mine"):
        assert tokenizer.load_any(spec).hash == ours.hash


def test_another_pattern_is_kept(tmp_path):
    lines = BPETokenizer([bytes([b]) for b in range(256)] + [b"a ", b"a b"], (), r"[^\n]+|\n")
    lines.save(tmp_path / "t.json")
    theirs = tokenizer.load(tmp_path / "t.json")
    assert theirs.pattern == lines.pattern
    assert theirs.encode("a b\n").tolist() == theirs.encode_slowly("a b\n") == [257, 10]


def test_every_byte_string_is_saved_unambiguously():
    rng = random.Random(7)
    tokens = [bytes([b]) for b in range(256)]
    seen = set(tokens)
    while len(tokens) < 3000:
        token = bytes(rng.choices(b"\\x0aAe4\xe4\xbd\xa0\xff\x00\n", k=rng.randint(2, 6)))
        if token not in seen:
            seen.add(token)
            tokens.append(token)
    assert tokenizer.from_json(BPETokenizer(tokens).to_json()).tokens == tokens


def test_bad_files_are_one_line(tmp_path):
    good = json.loads(BPETokenizer([bytes([b]) for b in range(256)]).to_json())
    cases = {
        "empty": "",
        "broken": '{"type": "bpe", ',
        "list": "[]",
        "other": '{"type": "unigram"}',
        "hugging": '{"version": "1.0", "model": {"type": "BPE"}}',
        "keys": '{"type": "bpe"}',
        "bytes": json.dumps({**good, "tokens": good["tokens"][1:]}),
        "twice": json.dumps({**good, "tokens": [*good["tokens"], "a"]}),
        "pattern": json.dumps({**good, "pattern": "("}),
        "number": json.dumps({**good, "tokens": 5}),
        "characters": '{"type": "char", "special_tokens": [], "tokens": ["a", "a"]}',
    }
    for name, content in cases.items():
        path = tmp_path / f"{name}.json"
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError) as error:
            tokenizer.load(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="'unigram' is unknown: expected one of char, bpe"):
        tokenizer.load(tmp_path / "other.json")
    (tmp_path / "latin.json").write_bytes(b"\xff\xfe{}")
    for path in (tmp_path / "latin.json", tmp_path / "missing.json", tmp_path):
        with pytest.raises(ValueError) as error:
            tokenizer.load(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no tokenizer 'nowhere': expected"):
        tokenizer.load_any("nowhere")
    with pytest.raises(ValueError, match="no tokenizer 'words': expected char, bpe, gpt2, or"):
        prepare.saved_tokenizer("words")


def test_the_same_on_every_run_whatever_the_hash_seed():
    program = (
        "import tokenizer as t; text = 'to be or not to be, that is the question: ' * 3 + 'é你';"
        "names = ('<|endoftext|>', '<|b|>', '<|a|>');"
        "print(t.BPETokenizer.train([text], 270, names).hash, t.CharTokenizer.train([text], names).hash)"
    )
    hashes = set()
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tokenizer.ROOT,
            env={"PYTHONHASHSEED": seed, "PATH": "", "SYSTEMROOT": ""},
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stderr
        hashes.add(done.stdout)
    assert len(hashes) == 1
    assert [len(h) for h in hashes.pop().split()] == [64, 64]


# --- ids and bytes ---


def test_token_bytes_sum_to_the_length_of_the_text(text, bpe):
    sizes = bpe.token_bytes()
    assert sizes.dtype == np.int64
    assert sizes.shape == (bpe.vocab_size,)
    assert sizes[bpe.encode(text)].sum() == len(text.encode("utf-8"))
    mixed = "".join(LANGUAGES.values())
    for kind in ("char", "bpe"):
        ours = trained(kind, [mixed], 500, (END,))
        ids = ours.encode(END + mixed + END, allow_special=True)
        assert ours.token_bytes()[ids].sum() == len(mixed.encode("utf-8"))  # special tokens count nothing


def test_decode_takes_any_ids_and_streams():
    ours = BPETokenizer.train(["aab"], 256)
    assert ours.decode(list("你".encode())[:2]) == "\ufffd"
    assert ours.decode(np.arange(256, dtype=np.uint16)).startswith("\0\1\2")
    assert ours.decode([]) == ""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    shown = [decoder.decode(ours.decode_bytes([i])) for i in ours.encode("a你👍")]
    assert "".join(shown) == "a你👍"
    assert "\ufffd" not in "".join(shown)


@pytest.mark.parametrize("bad", [257, -1, 10**9])
def test_ids_outside_the_vocabulary(bad):
    ours = BPETokenizer.train(["aab"], 257, (END,))
    with pytest.raises(ValueError, match=f"token id {bad} .* vocabulary of 257"):
        ours.decode([97, bad])


def test_lone_surrogates_are_one_line():
    for ours in (BPETokenizer.train(["ab"], 257, (END,)), CharTokenizer("ab", (END,))):
        for allow_special in (False, True):
            with pytest.raises(ValueError, match="position 1") as error:
                ours.encode("a\ud800b", allow_special)
            assert "\n" not in str(error.value)
            assert "ud800" in str(error.value)
    with pytest.raises(ValueError, match="surrogates not allowed"):
        BPETokenizer.train(["ab"], 256).encode_slowly("a\ud83d")
    with pytest.raises(ValueError, match="surrogates not allowed"):
        BPETokenizer.train(["a\ud800b"], 300)
    with pytest.raises(ValueError, match="surrogates not allowed"):
        CharTokenizer.train(["a\ud800b"])


def test_vocabulary_smaller_than_the_bytes():
    with pytest.raises(ValueError, match="vocab_size=256 is too small: expected 257 or more"):
        BPETokenizer.train(["text"], 256, (END,))
    assert BPETokenizer.train(["text"], 257, (END,)).vocab_size == 257


# --- characters ---


def test_characters_of_tiny_shakespeare(text):
    ours = CharTokenizer.train([text])
    if SHAKESPEARE.exists():
        assert ours.vocab_size == 65
        assert ours.encode("\n !z").tolist() == [0, 1, 2, 64]
    ids = ours.encode(text)
    assert ids.dtype == np.uint32
    assert len(ids) == len(text)
    assert ours.decode(ids) == text
    assert ours.end_id == -1


def test_unknown_characters_are_listed_with_positions():
    ours = CharTokenizer.train(["hello"], (END,))
    with pytest.raises(
        ValueError, match="unknown characters: 'é' at position 1, '你' at position 4; "
    ) as error:
        ours.encode("hélé你l")
    assert "data.py --tokenizer=bpe" in str(error.value)  # it names the script: sample.py has no such setting
    assert ours.decode(ours.encode("hélé你l", unknown="skip")) == "hll"
    with pytest.raises(ValueError) as error:
        ours.encode("".join(map(chr, range(0x4E00, 0x5E00))))
    assert len(str(error.value)) < 1000  # the first 20 are enough
    assert "\n" not in str(error.value)


# --- GPT-2's own vocabulary ---


def test_gpt2_ids():
    try:
        ours = new_tokenizer.gpt2()  # the network is blocked in tests: from the cache or not at all
    except ValueError:
        pytest.skip("tiktoken has not cached GPT-2's vocabulary on this machine")
    assert ours.vocab_size == 50_257
    assert ours.end_id == 50_256
    assert ours.encode("Hello world").tolist() == ours.encode_slowly("Hello world") == [15496, 995]
    theirs = tiktoken.get_encoding("gpt2")
    for s in random_strings(300, seed=8) + list(LANGUAGES.values()):
        assert ours.encode(s).tolist() == ours.encode_slowly(s) == theirs.encode_ordinary(s)
        assert ours.decode(ours.encode(s)) == s
    assert ours.encode("<|endoftext|>", allow_special=True).tolist() == [50_256]


def test_gpt2_without_cache_and_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.delitem(tiktoken.registry.ENCODINGS, "gpt2", raising=False)
    for load in (new_tokenizer.gpt2, lambda: new_tokenizer.make_tokenizer("gpt2", 0, False, [], None)):
        with pytest.raises(ValueError) as error:
            load()
        assert "\n" not in str(error.value)
        assert "TIKTOKEN_CACHE_DIR" in str(error.value)
        assert "--tokenizer=bpe" in str(error.value)


def test_a_vocabulary_with_its_bytes_in_another_order(bpe, monkeypatch):
    """GPT-2 numbers the single bytes in its own order. A small stand-in for it, with ours shuffled."""
    tokens = random.Random(9).sample(bpe.tokens[:256], 256) + bpe.tokens[256:]
    theirs = tiktoken.Encoding(
        "stand-in",
        pat_str=PUBLISHED_PATTERN,
        mergeable_ranks={token: i for i, token in enumerate(tokens)},
        special_tokens={END: len(tokens)},
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: theirs)
    ours = new_tokenizer.gpt2()
    assert ours.end_id == theirs.eot_token
    for s in random_strings(200, seed=10) + list(LANGUAGES.values()):
        assert ours.encode(s).tolist() == ours.encode_slowly(s) == theirs.encode_ordinary(s)
        assert ours.decode(ours.encode(s)) == s
    assert tokenizer.from_json(ours.to_json()).encode("Hello world").tolist() == theirs.encode("Hello world")
