"""Quality filters: each rule at its limit, by hand; languages without blanks; the report of what went."""

import random

import pytest

from test_data import decode, error_of, own_datasets, samples, write, write_rows
from text import prepare, quality

assert own_datasets  # a fixture
PROSE = "The cat sat on the mat and looked at the dog that came in."
FAILS = {  # rule: a text that just passes, and one that just fails
    "few_words": ("one two three four five", "one two three four"),
    "few_letters": ("one two three four 55", "one two three 4 5"),  # 4 of 5; 3 of 5
    "word_length": ("abc " * 5 + "a" * 2 + "b" * 2, "abc " * 5 + "ab"),  # (15 + 4) / 6; 17 / 6
    "symbols": ("word " * 9 + "end...", "word " * 8 + "end..."),  # 1 in 10; 1 in 9
    "bullets": ("- point\n" * 9 + "and so on", "- point\n" * 10 + "* more\n"),  # 9 of 10; 11 of 11
    "ellipses": ("a line...\nb\nc\nd", "a line…\nb\nc"),  # 1 of 4; 1 of 3
    "repeated_lines": ("a\nb\nc\nd\ne\nf\ng\na\nb\n\n c\n", "a\nb\na"),  # 3 of 10, with blanks; 1 of 3
    "repeated_ngrams": ("a b c d e " * 2 + " ".join([f"x{i}" for i in range(29)]), "a b c d e f " * 2),
    "no_ending": ("He said: “So it is.”", "and so on,"),
    "boilerplate": ("We drink coffee.", "Please enable JavaScript."),
    "code": ("f(x) = [1, 2]", "if (x) { y(); }"),
}


@pytest.mark.parametrize("name", quality.RULES)
def test_a_rule_at_its_limit(name):
    rules = quality.rules_of(name)
    passes, fails = FAILS[name]
    assert [quality.broken_rule(text, rules) for text in (passes, fails, PROSE)] == ["", name, ""]
    assert list(rules) == [name]


def test_long_words_fail_too():
    rules = quality.rules_of("word_length")
    assert quality.broken_rule("a" * 10 + " " + "b" * 10, rules) == ""
    assert quality.broken_rule("a" * 10 + " " + "b" * 11, rules) == "word_length"


def slow_share(words, n):
    """The share of characters in n-grams of words that stand further up already."""
    covered = set()
    for i in range(len(words) - n + 1):
        if any(words[j : j + n] == words[i : i + n] for j in range(i)):
            covered |= set(range(i, i + n))
    return sum(len(words[i]) for i in covered) / sum(map(len, words))


def test_repeated_ngrams_against_a_slow_twin():
    rng = random.Random(0)
    for _ in range(200):
        words = rng.choices(["a", "bb", "ccc"], k=rng.randint(1, 40))
        text = quality.Text(" ".join(words), words, [])
        limits = quality.REPEATED.items()
        assert quality.repeated_ngrams(text) == max(slow_share(words, n) / most for n, most in limits)
    assert quality.repeated_ngrams(quality.Text("", [], [])) == 0


def test_rules_by_group_and_name():
    gopher, c4 = quality.rules_of("gopher"), quality.rules_of("c4")
    assert quality.rules_of("c4, gopher") == quality.RULES and len(gopher) + len(c4) == len(quality.RULES)
    assert list(quality.rules_of("code,few_words")) == ["few_words", "code"]  # tried in this order
    assert "quality=goofer is unknown; expected some of these: gopher, c4, few_words" in error_of(
        quality.rules_of, "c4,goofer"
    )
    for nothing in (" ", ",", "gopher,"):
        assert "quality= is unknown" in error_of(quality.rules_of, nothing)
    assert quality.rules_of("") == {}


@pytest.mark.parametrize(
    "text",
    [
        "他们在大学里学习数学和物理，每天早上七点起床，晚上在图书馆看书。",
        "猫は窓のそばで眠っています。外では雨が降り、子供たちが学校から帰ってきました。",
        "แมวนั่งอยู่บนเสื่อและมองดูสุนัขที่เข้ามาในบ้านเมื่อเช้านี้",
        "나는 오늘 집에서 책을 읽고 밥을 먹은 뒤 친구와 길을 걸었다.",
        "Кошка сидела на коврике и смотрела на собаку, которая вошла.",
        "جلست القطة على الحصيرة ونظرت إلى الكلب الذي دخل البيت.",
        "बिल्ली चटाई पर बैठी और अंदर आए कुत्ते को देखने लगी।",
        "Con mèo ngồi trên tấm thảm và nhìn con chó đi vào nhà.",
    ],
    ids="Chinese Japanese Thai Korean Russian Arabic Hindi Vietnamese".split(),
)
def test_other_languages_pass(text):
    """Also those without blanks between words, and those with short words."""
    assert quality.broken_rule(text, quality.rules_of("gopher,few_words")) == ""


def test_the_report_says_what_went_and_why(tmp_path, capsys):
    """Counts and characters of each rule, one example in a line; meta.json has the counts."""
    text = f"{PROSE}\n\n1 2 3 4 5\n6 7 8 9\n\n\n{PROSE}\n\nHome | About | Us\n\n99 98 97 96 95 94\n"
    meta = prepare.prepare("mine", write(tmp_path / "a.txt", text), quality="gopher,few_words", val_ratio=0)
    assert decode("mine") == f"{PROSE}\n\n\n{PROSE}\n"
    assert meta["dropped"] == {"paragraphs (few_letters)": 3}
    said = capsys.readouterr().out
    assert "a: --quality=gopher,few_words dropped 3 of 5 paragraphs with 176 characters\n" in said
    assert "few_letters: 3 paragraphs, 57 characters (32.4% of all): '1 2 3 4 5 6 7 8 9'\n" in said
    assert "NOTE" not in said and ", 3 paragraphs (few_letters) dropped" in said
    prepare.prepare("mine", write(tmp_path / "a.txt", decode("mine")), quality="gopher", val_ratio=0)
    assert "dropped 0 of 2 paragraphs" in capsys.readouterr().out


def test_more_than_half_is_a_note(tmp_path, capsys):
    """Nobody loses most of a text without being told by what; all of it is an error."""
    text = "".join(f"value_{i} = call(value_{i + 1})\n\n" for i in range(20)) + PROSE
    prepare.prepare("mine", write(tmp_path / "a.txt", text), quality="no_ending", val_ratio=0)
    note = [line for line in capsys.readouterr().out.splitlines() if line.startswith("NOTE")]
    assert len(note) == 1 and "more than half of the text was dropped, most of it as no_ending" in note[0]
    source = write(tmp_path / "b.txt", "1 2 3 4 5 6\n\n7 8 9 1 2 3\n")
    message = error_of(prepare.prepare, "other", source, quality="gopher")
    assert "b holds no text; dropped: {'paragraphs (few_letters)': 2}" in message
    assert not (prepare.DATASETS / "other").exists()


def test_samples_and_validation_text(tmp_path):
    """Rows are judged whole, prompt and response; a text for validation stays as it is."""
    good, bad = {"prompt": "What did the cat do? ", "response": "It sat on the mat."}, {"text": "1 2 3 4 5 6"}
    rows = write_rows(tmp_path / "a.jsonl", [bad, good, good, {"prompt": "Where? ", "response": "4 5 6 7 8"}])
    val = write_rows(tmp_path / "v.jsonl", [bad, bad])
    meta = prepare.prepare("rows", rows, val_input=val, quality="few_letters", near_dedup=0.9)
    assert samples("rows") == ["What did the cat do? It sat on the mat."]
    assert samples("rows", "val") == ["1 2 3 4 5 6"] * 2
    assert meta["dropped"] == {"samples (few_letters)": 2, "near-duplicates": 1}
    source = write(tmp_path / "l.txt", f"{PROSE}\n1 2 3 4 5 6\n")
    prepare.prepare("lines", source, format="lines", quality="gopher", val_ratio=0)
    assert samples("lines") == [PROSE]
