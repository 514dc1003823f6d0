"""The course: each lesson has its parts, runs, and is what it says.

All that has a lesson as its parameter covers a new lesson by its being there. What the grader says to answers
is in test_answers.py; the student's side, processes and files, in test_classroom.py.
"""

import ast
import builtins
import inspect
import itertools
import math
import os
import re
import struct
import symtable
import time
import types
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import evaluate
import model
from conftest import ROOT
from data import Windows
from exercises import (
    LESSONS,
    each_exercise,
    each_judged,
    each_lesson,
    exercise_of,
    source_of,
    stub_of,
)
from lessons import course, grader, notebook, predict, run, solutions
from lessons.worker import ENVIRONMENT
from test_house import LAYERS
from text.prepare import folder_of
from tokenizer import load_any


# ---- 1. structure
@each_lesson
def test_a_lesson_has_its_parts(lesson):
    path, checks = course.lessons()[lesson], course.checks(lesson)
    assert course.header(path)["number"] == lesson
    source = source_of(lesson)
    assert f'save_plot("{path.stem}"' in source
    assert len(source.splitlines()) <= 250
    assert len(inspect.getsource(checks).splitlines()) <= 300
    stubs = re.findall(r'raise NotImplementedError\("lesson (\w+)"\)', source)
    assert stubs == [*checks.exercises]
    assert checks.predictions
    for number, question in enumerate(checks.predictions.values(), 1):
        assert re.search(rf"^predict_{number} = None  # {re.escape(question['ask'])}", source, re.MULTILINE)


def minutes(lesson: int) -> int:
    """To read the text, 180 words a minute, and ten for each exercise; in steps of five."""
    words = sum(len(text.split()) for kind, text in notebook.cells(source_of(lesson)) if kind == "markdown")
    assert words <= 1800, "ten minutes to read"
    return 5 * math.ceil((words / 180 + 10 * len(course.checks(lesson).exercises)) / 5)


def test_the_map_has_a_row_for_each_lesson():
    rows = ["| lesson | what | exercises | minutes | runs |", "|---|---|---|---|---|"]
    for lesson, path in course.lessons().items():
        head, exercises = course.header(path), len(course.checks(lesson).exercises)
        link = f"[{lesson}]({path.name})"
        rows.append(f"| {link} | {head['title']} | {exercises} | {minutes(lesson)} | {head['seconds']} s |")
    assert "\n".join(rows) in course.read(course.LESSONS / "README.md"), "\n" + "\n".join(rows)


def in_any_language(page: str) -> dict:
    """What a translation of a page leaves as it is. Its first line links the other page."""
    page = page.split("\n", 1)[1]
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    columns = re.search(r"^\| (.+) \|$", prose, re.MULTILINE)[1].split(" | ")
    return dict(
        blocks=re.findall(r"^```.*?^```$", page, re.MULTILINE | re.DOTALL),
        links=sorted(re.findall(r"\[[^]]*\]\([^)]*\)", prose)),
        headings=re.findall(r"^#+(?= )", prose, re.MULTILINE),
        rows=re.findall(r"^\| (\[.+?) \| .+? \| (\d+) \| (\d+) \| (\d+ s) \|$", prose, re.MULTILINE),
        code=sorted(span for span in re.findall(r"`([^`]+)`", prose) if span not in columns),
        numbers=sorted(re.findall(r"\d+", prose)),
    )


def test_the_spanish_page_says_what_the_english_one_says():
    english, spanish = (course.read(course.LESSONS / name) for name in ("README.md", "README.es.md"))
    assert english.startswith("Español: [README.es.md](README.es.md)")
    assert spanish.startswith("English: [README.md](README.md)")
    kept = in_any_language(english)
    assert len(kept["rows"]) == len(LESSONS)
    for part, found in in_any_language(spanish).items():
        assert found == kept[part], part


@pytest.mark.parametrize(
    ("part", "old", "new"),
    [
        ("blocks", "run.py start 1\n", "run.py start 2\n"),
        ("blocks", "```\n# Lesson 9 (unit B): title", "```\n# Lección 9 (unit B): title"),
        ("links", "(GLOSSARY.md)", "(GLOSARIO.md)"),
        ("headings", "## Añadir una lección", "### Añadir una lección"),
        ("headings", "## Para docentes\n", ""),
        ("rows", "[9](09_attention.py)", "[9](09_atencion.py)"),
        ("rows", "ponderada | 4 | 50 | 6 s", "ponderada | 3 | 50 | 6 s"),
        ("rows", "ponderada | 4 | 50 | 6 s", "ponderada | 4 | 45 | 6 s"),
        ("rows", "ponderada | 4 | 50 | 6 s", "ponderada | 4 | 50 | 7 s"),
        ("code", "`--gradescope=results.json`", "`--gradescope=notas.json`"),
        ("code", "| `forbidden` |", "| `prohibidos` |"),
        ("numbers", "si no son 20 y 2", "si no son 20 y 4"),
    ],
)
def test_a_page_that_says_something_else_is_found(part, old, new):
    page = course.read(course.LESSONS / "README.es.md")
    assert page.count(old) == 1
    assert in_any_language(page.replace(old, new))[part] != in_any_language(page)[part]


@each_exercise
def test_an_exercise_has_its_parts(lesson, name):
    exercise = exercise_of(lesson, name)
    stub = stub_of(lesson, exercise)
    described = ast.get_docstring(stub) + "".join(
        ast.get_docstring(n) or "" for n in stub.body if hasattr(n, "body")
    )
    assert "->" in described, "shapes and dtypes in the stub's docstring"
    assert len(exercise["hints"]) == 3
    assert len(exercise["wrong"]) >= 4
    hints = [hint for _, hint in exercise["wrong"].values()]
    assert len({*hints}) == len(hints), "a hint of its own for each"
    assert all(len(mistake.split()) <= 5 for mistake in exercise["wrong"])
    assert all(len(hint) <= grader.WIDTH and "\n" not in hint for hint in [*hints, *exercise["hints"]])


@each_exercise
def test_a_solution_is_short_and_takes_nothing_from_us(lesson, name):
    """That it is right, all lessons solved with them show (test_classroom.py)."""
    exercise, text = exercise_of(lesson, name), solutions.solution(course.checks(lesson), name)
    assert len(text.splitlines()) <= 30
    assert grader.not_your_own(ast.parse(text), exercise) == ""
    assert not re.search(r"\b(reference|twin)_", text), "the student's names"


def names_at_the_top(source: str) -> set[str]:
    """What a file imports or defines at its top level."""
    found = set()
    for node in ast.parse(source).body:
        aliases = node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        found |= {(alias.asname or alias.name).split(".")[0] for alias in aliases} | solutions.defined(node)
    return found


def names_from_outside(text: str) -> set[str]:
    """What a piece of source uses and does not define."""
    tables, found = [symtable.symtable(text, "answer", "exec")], set()
    for table in tables:
        tables += table.get_children()
        found |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and s.is_global()}
    return found - names_at_the_top(text) - {*dir(builtins)}


@each_exercise
def test_a_solution_uses_what_the_lesson_has(lesson, name):
    """Pasted into the student's file it runs. The exercises' names are among those that the file defines."""
    text = solutions.solution(course.checks(lesson), name)
    assert names_from_outside(text) - names_at_the_top(source_of(lesson)) == set()


def test_a_name_from_outside_is_found():
    text = "k = 2\ndef f(x: T, n=a):\n    def g(y):\n        return F.gelu(y) + k\n    return g(len(x), n)"
    assert names_from_outside(text) == {"T", "a", "F"}
    assert names_at_the_top("import a.b as F\nimport c.d\nif x:\n    y = 1\nfrom e import T\nk = 2") == {
        "F", "c", "T", "k"
    }  # fmt: skip


@each_lesson
def test_wrong_predictions_are_apart(lesson):
    for question in course.checks(lesson).predictions.values():
        values = [question["answer"], *question["wrong"]]
        assert len(values) >= 3
        assert all(abs(a - b) > 2 * question["tol"] for a, b in itertools.combinations(values, 2))


# ---- 8. the reference is the project
@each_judged
def test_the_reference_is_the_projects_or_a_twin_with_a_reason(lesson, name, monkeypatch):
    exercise, checks = exercise_of(lesson, name), course.checks(lesson)
    if "project" not in exercise:
        assert len(exercise["twin"]) > 10
        return
    function = exercise["project"]
    room = inspect.getmodule(function).__name__.split(".")[0]
    assert any(room in rooms for rooms in LAYERS if rooms != {"lessons"}) or room == "torch"
    if inspect.isfunction(function) and "slow" in exercise:
        monkeypatch.setattr(
            checks, function.__name__, lambda *args, **kwargs: 1.5 * function(*args, **kwargs)
        )
        assert grader.judge(exercise, exercise["slow"])["status"] == grader.WRONG, "a change of it is noticed"


def test_perplexity_and_bits_per_byte_are_those_of_evaluate(datasets, monkeypatch):
    monkeypatch.setattr("text.prepare.DATASETS", datasets)
    windows = Windows("small", "val", 16)
    tokenizer = load_any(folder_of("small"))
    shape = dict(block_size=16, n_layer=1, n_head=2, n_embd=16)
    network = model.GPT(model.GPTConfig(vocab_size=tokenizer.vocab_size, **shape))
    indices = np.arange(windows.n_windows)
    sizes = tokenizer.token_bytes()
    found = evaluate.evaluate(network, windows, indices, "cpu", nullcontext(), token_bytes=sizes)
    with torch.no_grad():
        x, y = windows.window_batch(indices)
        nats = evaluate.nats_of_targets(network, x, y, "cpu", nullcontext())
    loss = course.checks(3)
    rows, counts = nats.sum(1), (y != -1).sum(1)
    assert loss.reference_perplexity(rows, counts) == pytest.approx(found["perplexity"])
    letters = "x" * int(sizes[y[y != -1].numpy()].sum())
    assert loss.reference_bits_per_byte(nats[y != -1], "", letters) == pytest.approx(found["bits_per_byte"])


# ---- 7. and 9. prose and run agree
FREE = r"\(.*?(?:19|20)\d\d\)|[Ll]essons? \d+|`[^`]*`|\w+#\d+"  # references, other lessons, code


def numbers_of_prose(source: str) -> set[float]:
    """The numbers of the text cells, but for 0, 1 and what is part of a name or formula (2n, 9a)."""
    below_the_header = source[source.index("# %%") :]
    text = " ".join(body for kind, body in notebook.cells(below_the_header) if kind == "markdown")
    found = re.findall(r"(?<![\w.^-])\d[\d,]*(?:\.\d+)?(?![\w]|\.\w)", re.sub(FREE, " ", text))
    return {float(number.rstrip(",").replace(",", "")) for number in found} - {0.0, 1.0}


def claimed(source: str) -> set[float]:
    calls = [
        n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "claim"
    ]
    return {float(eval(ast.unparse(call.args[0]))) for call in calls}


@each_lesson
def test_every_number_of_the_prose_is_claimed(lesson):
    source = source_of(lesson)
    assert numbers_of_prose(source) <= claimed(source)


def test_a_changed_digit_of_the_prose_is_found():
    source = "# %% [markdown]\n# A loss of 4.174 (Who, 2017), as in lesson 2.\n# %%\nclaim(4.174, x)\n"
    assert numbers_of_prose(source) == {4.174}
    assert not numbers_of_prose(source.replace("of 4.174", "of 4.175")) <= claimed(source)


def test_a_claim_that_does_not_hold_is_an_error():
    course.claim(2.0, 2.005)
    course.claim(2.0, 3.0, when=False)
    for found in (2.02, float("nan")):
        with pytest.raises(AssertionError, match="the lesson says 2.0"):
            course.claim(2.0, found)


# ---- 2. lessons run
def shades(path) -> int:
    """How many different bytes the pixels of a PNG have."""
    data, position, pixels = path.read_bytes(), 8, b""
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        pixels += data[position + 8 : position + 8 + length] if kind == b"IDAT" else b""
        position += length + 12
    return len({*zlib.decompress(pixels)})


START = 4  # seconds of a core to start Python and import torch, which a fork does not need


@pytest.mark.slow
@pytest.mark.parametrize(  # lesson 15 starts train.py, whose threads wait for each other if disturbed
    "lesson", [pytest.param(n, marks=pytest.mark.alone) if n == 15 else n for n in LESSONS]
)
def test_a_lesson_runs_in_its_time(lesson, forks, tmp_path):
    """As `show` runs it; with the command itself, two lessons do in test_made_before.py."""
    path, stated, taken = course.lessons()[lesson], course.header(course.lessons()[lesson])["seconds"], []
    env = {**os.environ, **ENVIRONMENT, "TINYLM_WORK": str(tmp_path / "work")}
    while not taken or (taken[-1] > 2 * stated and len(taken) < 2):
        begun = time.monotonic()
        done = forks.run(["-c", run.SHOW, path], ROOT, env)
        # where others load the machine, wall time is theirs, too
        taken.append(START + min(time.monotonic() - begun, done.seconds))
        assert done.returncode == 0, done.stdout + done.stderr
    assert min(taken) <= 2 * stated
    (plot,) = (tmp_path / "work").iterdir()
    assert plot.name == path.stem + ".png"
    assert shades(plot) > 20, "the plot is blank"


@pytest.mark.slow
@pytest.mark.parametrize("lesson", [n for n in LESSONS if re.search(r"encoded\(|text\(\)", source_of(n))])
def test_a_lesson_runs_without_the_real_text(lesson, forks, tmp_path, pytestconfig):
    """Other losses may not end it. Lessons 19 and 22 did end; the rest with --long."""
    if lesson not in (19, 22) and not pytestconfig.getoption("--long"):
        pytest.skip("all lessons with --long")
    on_the_play = f"from lessons import course\ncourse.text = lambda: (course.play(), False)\n{run.SHOW}"
    env = {**os.environ, **ENVIRONMENT, "TINYLM_WORK": str(tmp_path)}
    done = forks.run(["-c", on_the_play, course.lessons()[lesson]], ROOT, env)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- 14. predictions
@each_lesson
def test_a_prediction_is_answered(lesson):
    for question in course.checks(lesson).predictions.values():
        assert predict.verdict_on(question["answer"], question).endswith("so it is")
        for number, text in question["wrong"].items():
            assert predict.verdict_on(number, question).endswith(text)
        unknown = predict.verdict_on(-123.25, question)
        assert float(re.search(r"It is ([\d,.]+)\.$", unknown)[1].replace(",", "")) == question["answer"]


def test_large_numbers_are_told_in_full():
    question = dict(answer=1_003_790.0, tol=0.4, wrong={})
    assert predict.verdict_on(1_003_790, question) == "you predicted 1,003,790: so it is"
    assert predict.verdict_on(1_003_792, question) == "you predicted 1,003,792. It is 1,003,790."
    assert predict.verdict_on(0.25, dict(answer=0.1, tol=0.01, wrong={})) == "you predicted 0.25. It is 0.1."


@pytest.mark.parametrize(
    ("text", "number"),
    [("8", 8), (" 8.0 ", 8), ("1,003,790", 1003790), ("4 * 128", 512), ("-1e-3", -0.001), ("9**9**9", None),
     ("", None), ("eight", None), ("'8'", None), ("print(8)", None), ("1/0", None), ("[8]", None)],
)  # fmt: skip
def test_a_guess_is_a_number_or_arithmetic(text, number):
    assert predict.number_in(text) == number


# ---- 17. hints do not give it away
@each_exercise
def test_no_line_of_the_reference_is_in_the_first_hints(lesson, name):
    exercise = exercise_of(lesson, name)
    for function in (exercise["reference"], exercise.get("slow")):
        lines = inspect.getsource(function).splitlines()[1:] if function else []
        for line in [line.strip() for line in lines if len(line.strip()) > 12]:
            assert all(line not in hint for hint in exercise["hints"][:2])


# ---- the picture of lesson 9, as it has to look for a few mistakes
LOWER = ["x.....", "xx....", "xxx...", "xxxx..", "xxxxx.", "xxxxxx"]
PICTURES = {
    "": LOWER,
    "no mask": ["x" * 6] * 6,
    "mask after softmax": ["x" * 6] * 6,
    "masked with 0": ["x" * 6] * 6,
    "diagonal cut": ["NaN", "x.....", *LOWER[2:]],  # from row 2 on a token's own query moves its output
}


@pytest.mark.parametrize("mistake", PICTURES)
def test_who_sees_whom(mistake):
    exercise = exercise_of(9, "9b")
    causal = exercise["wrong"][mistake][0] if mistake else exercise["reference"]
    found = exercise["picture"](causal, *exercise["inputs"](1)[0])
    assert found == PICTURES[mistake]


# ---- the text
def test_without_the_real_text_a_generated_one_is_used(monkeypatch, tmp_path, datasets):
    course.text.cache_clear()
    monkeypatch.setattr(course, "ROOT", tmp_path)
    generated, real = course.text()
    assert (len(generated) >= 300_000, real) == (True, False)
    course.text.cache_clear()
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/shakespeare_char").symlink_to(datasets / "small")  # prepared, but from another text
    assert course.text() == (generated, False)
    course.text.cache_clear()


def test_the_real_text_is_recognised():
    if not (ROOT / "datasets/shakespeare_char/meta.json").is_file():
        pytest.skip("the real text is not prepared here")
    text, real = course.text()
    assert real == (len(text) == 1_115_394 and len({*text}) == 65)


def test_an_error_of_torch_is_not_taken_for_a_stub(monkeypatch):
    """torch raises NotImplementedError, too: of an answer that is written, it is seen."""

    def scores(q, k):
        return torch.bincount(q)

    with pytest.raises(NotImplementedError, match="not implemented for 'Float'"):
        course.yours_or_ours(scores, "9a")(torch.ones(3), torch.ones(3))


def test_an_entry_without_words_is_named():
    module = types.SimpleNamespace(exercises={"9a": dict(wrong={"squared": sum})}, predictions={})
    words = types.ModuleType("lessons.words.attention")
    words.exercises, words.predictions = {"9a": dict(hints=["x"], wrong={})}, {}
    with pytest.raises(ValueError, match="lessons.words.attention has no words for 'squared' of 9a"):
        course.worded(module, words)


def test_an_exam_keeps_its_own_words():
    mine = dict(wrong={"no scale": (sum, "mine"), "squared": sum}, hints=["a", "b", "c"])
    module = types.SimpleNamespace(exercises={"9a": mine}, predictions={"9.1": dict(ask="mine", wrong={})})
    theirs = dict(hints=["x"], wrong={"no scale": "ours", "squared": "of d?"})
    asked = dict(ask="ours", wrong={})
    words = types.SimpleNamespace(exercises={"9a": theirs, "9b": theirs}, predictions={"9.1": asked})
    (found,) = course.worded(module, words).exercises.values()
    assert found["wrong"] == {"no scale": (sum, "mine"), "squared": (sum, "of d?")}
    assert found["hints"] == ["a", "b", "c"]
    assert module.predictions == {"9.1": dict(ask="mine", wrong={})}


# ---- the pages beside the lessons
def wrong_places(source: str) -> list[str]:
    """List what a lesson places in a file of the project, as `GPT.trunk` in model.py, and is not there."""
    text = re.sub(r"\n# ?", " ", source)
    wrong = [file for file in re.findall(r"(?:\w+/)*\w+\.py\b", text) if not (ROOT / file).is_file()]
    for names, file in re.findall(r"((?:`[\w.]+`(?:, | and )?)+) in ((?:\w+/)*\w+\.py)", text):
        defined = course.read(ROOT / file) if file not in wrong else ""
        for name in re.findall(r"\w+", names.replace("and", "")):
            if not re.search(rf"^ *(def|class) {name}\b", defined, re.MULTILINE):
                wrong.append(f"{name} in {file}")
    return wrong


@each_lesson
def test_what_a_lesson_names_is_where_it_says(lesson):
    assert wrong_places(source_of(lesson)) == []


def test_a_wrong_place_is_found():
    assert wrong_places("# `GPT.trunk` and\n# `Attention` in model.py, as optim.py") == []
    assert wrong_places("# `GPT.track` in model.py") == ["track in model.py"]
    assert wrong_places("# see checkpoint.py") == ["checkpoint.py"]


def test_each_word_of_the_glossary_has_its_place():
    source = course.read(course.LESSONS / "GLOSSARY.md")
    _, *rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", source, re.MULTILINE)
    words = [row[0].lower() for row in rows]
    assert len(words) >= 60 and words == sorted({*words})
    for word, meaning, lesson, place in rows:
        assert len(meaning.split()) >= 3
        file = re.fullmatch(r"\[(.+)\]\(\.\./\1\)|none here", place)[1]
        assert file is None or (ROOT / file).is_file(), place
        stem = re.split(r",| \(", word.lower())[0].rstrip("s")
        text = source_of(int(lesson)).lower().replace("\n# ", " ")
        assert stem in text, f"{word} is not in lesson {lesson}"
    assert {*LESSONS} == {int(lesson) for _, _, lesson, _ in rows}, "each lesson explains a word"


def test_the_core_does_not_know_the_course():
    knows = re.compile(r"^\s*(import|from) lessons", re.MULTILINE)
    assert [path.name for path in ROOT.glob("*.py") if knows.search(course.read(path))] == []
