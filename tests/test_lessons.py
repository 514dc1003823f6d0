"""The course: each lesson is what it says, its grader accepts what is right and names what is wrong.

All that has a lesson as its parameter covers a new lesson by its being there. The student's side, processes
and files, is in test_classroom.py.
"""

import ast
import functools
import inspect
import itertools
import math
import os
import re
import signal
import struct
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
from lessons import course, grader, notebook, predict, solutions
from lessons.observe import SEEDS, apart, difference, observations
from mutants import mutants
from test_house import LAYERS
from text.prepare import folder_of
from tokenizer import load_any

LESSONS = list(course.lessons())
EXERCISES = [(n, name) for n in LESSONS for name in course.checks(n).exercises]
each_lesson = pytest.mark.parametrize("lesson", LESSONS)
# The README's command judges answers to lessons 1 to 13, but for 4, where they train; .ci/run all of them.
QUICK = {*range(1, 14)} - {4}
each_exercise = pytest.mark.parametrize(("lesson", "name"), EXERCISES, ids=[name for _, name in EXERCISES])
each_judged = pytest.mark.parametrize(
    ("lesson", "name"),
    [pytest.param(n, name, id=name, marks=() if n in QUICK else pytest.mark.slow) for n, name in EXERCISES],
)
OTHER_SEEDS = [(seed, seed + 1) for seed in range(100, 110, 2)]  # as `grade` draws them


def exercise_of(lesson: int, name: str) -> dict:
    return course.checks(lesson).exercises[name]


@functools.cache
def family(lesson: int, name: str, seeds=SEEDS) -> dict:
    return grader.family(exercise_of(lesson, name), seeds)


def source_of(lesson: int) -> str:
    return course.read(course.lessons()[lesson])


def stub_of(lesson: int, exercise: dict) -> ast.AST:
    return grader.node_of(ast.parse(source_of(lesson)), exercise["name"])


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
        ("rows", "ponderada | 4 | 50 | 3 s", "ponderada | 3 | 50 | 3 s"),
        ("rows", "ponderada | 4 | 50 | 3 s", "ponderada | 4 | 45 | 3 s"),
        ("rows", "ponderada | 4 | 50 | 3 s", "ponderada | 4 | 50 | 4 s"),
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


@each_lesson
def test_wrong_predictions_are_apart(lesson):
    for question in course.checks(lesson).predictions.values():
        values = [question["answer"], *question["wrong"]]
        assert len(values) >= 3
        assert all(abs(a - b) > 2 * question["tol"] for a, b in itertools.combinations(values, 2))


# ---- 3. what is right is accepted, what is not written is not
@each_judged
def test_the_reference_and_other_valid_answers_are_right(lesson, name):
    exercise, known = exercise_of(lesson, name), family(lesson, name)
    assert grader.judge(exercise, exercise["reference"], known=known)["status"] == grader.RIGHT
    if "slow" in exercise:
        assert grader.judge(exercise, exercise["slow"], known=known)["line"] == "right"
    for other, (function, remark) in exercise.get("also", {}).items():
        found = grader.judge(exercise, function, known=known)
        assert (found["status"], found["mistake"], found["remark"]) == (grader.RIGHT, other, remark)


@each_exercise
@pytest.mark.parametrize("change", ["none", "commented out", "a comment in place of the body", "gone"])
def test_what_is_not_written_is_told_so(lesson, name, change, tmp_path):
    exercises = course.checks(lesson).exercises
    source, stub = source_of(lesson), stub_of(lesson, exercises[name])
    lines = source.splitlines()
    if change == "commented out":
        lines[stub.lineno - 1 : stub.end_lineno] = [
            f"# {li}" for li in lines[stub.lineno - 1 : stub.end_lineno]
        ]
    elif change == "a comment in place of the body":
        lines[stub.end_lineno - 1] = "    # return 1"
    elif change == "gone":
        del lines[stub.lineno - 1 : stub.end_lineno]
    path = tmp_path / "lesson.py"
    path.write_text("\n".join(lines), encoding="utf-8")
    function, found = grader.find(path, exercises, name)
    if function:  # (a class whose methods raise)
        found = grader.judge(exercises[name], function)
    assert found["status"] == grader.MISSING


# ---- 4. and 5. every wrong answer gets its own hint
def check_hints(lesson: int, name: str, seeds) -> int:
    exercise, known = exercise_of(lesson, name), family(lesson, name, seeds)
    for mistake, (function, hint) in exercise["wrong"].items():
        found = grader.judge(exercise, function, seeds, known)
        assert found["status"] in (grader.WRONG, grader.FAILED)
        assert found["mistake"] == mistake, f"{mistake} is taken for {found['mistake'] or 'nothing known'}"
        assert "{" not in found["line"], "numbers are filled in"
        assert re.match(".*" + re.sub(r"\\\{.*?\\\}", ".+", re.escape(hint)), found["line"])
        assert len(found["line"]) <= grader.WIDTH
    return len(exercise["wrong"])


@each_judged
def test_wrong_answers_get_their_hints(lesson, name):
    check_hints(lesson, name, SEEDS)


@pytest.mark.slow
@each_exercise
def test_wrong_answers_get_their_hints_with_other_seeds(lesson, name, monkeypatch):
    """What each answer does is observed once: that it does the same again, the test above shows."""
    exercise, names = exercise_of(lesson, name), {}
    for part in ("wrong", "also"):
        names |= {function: mistake for mistake, (function, _) in exercise.get(part, {}).items()}
    for seeds in OTHER_SEEDS:
        known = family(lesson, name, seeds)
        with monkeypatch.context() as patch:
            patch.setattr(grader, "observations", lambda exercise, f, seeds, known=known: known[names[f]])
            check_hints(lesson, name, seeds)
        family.cache_clear()


@pytest.mark.slow
@each_exercise
def test_no_two_answers_look_alike(lesson, name):
    tol = grader.tolerance(exercise_of(lesson, name))
    for (a, seen), (b, other) in itertools.combinations(family(lesson, name).items(), 2):
        for one, two in ((seen, other), (other, seen)):
            assert apart(one, two, tol)[0] > 10, f"{a or 'the reference'} and {b}"


def test_how_many_wrong_answers_there_are(figure):
    count = sum(len(exercise_of(*place)["wrong"]) for place in EXERCISES)
    figure(f"{count} wrong answers in {len(EXERCISES)} exercises, {len(LESSONS)} lessons, each with a hint")


# ---- 6. inputs discriminate
@each_exercise
def test_inputs_hide_no_mistake(lesson, name):
    assert grader.lint(exercise_of(lesson, name)) == []


@pytest.mark.parametrize(
    "args",
    [(torch.zeros(3, 3), 2.5), (torch.zeros(3, 1), 2.5), (torch.zeros(3, 4), 1.0), (torch.zeros(3), 0)],
)
def test_inputs_that_hide_mistakes_are_found(args):
    exercise = dict(reference=lambda x, rate: x, inputs=lambda seed: [args])
    assert len(grader.lint(exercise)) == 1
    assert grader.lint({**exercise, "lint": dict.fromkeys(("x", "rate"), "a reason")}) == []


class Late(BaseException):
    """No Exception: those are caught and compared."""


def with_limit(seconds: float, function, *args):
    """The result, or None after so many seconds: a changed loop may never end."""

    def stop(number, frame):
        raise Late

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return function(*args)
    except Late:
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def survivors(exercise: dict, function, places: int = 1, most: int = 0) -> tuple[int, list[str]]:
    """(how many changes there are, those that are accepted as right)."""
    ours, alive, count = observations(exercise, exercise["reference"]), [], 0
    for what, changed in mutants(function, places, most):
        count += 1
        seen = with_limit(5, observations, exercise, changed)
        if seen is not None and apart(seen, ours, grader.tolerance(exercise))[0] <= 1:
            alive.append(what)
    return count, alive


@pytest.mark.slow
@each_exercise
@pytest.mark.filterwarnings("ignore")
def test_a_change_of_the_reference_is_rejected(lesson, name):
    """What differs from the right answer in one place is noticed, on the list of wrong answers or not."""
    exercise = exercise_of(lesson, name)
    count, alive = survivors(exercise, exercise.get("slow", exercise["reference"]))
    explained = exercise.get("survivors", {})
    assert {*alive} == {*explained}, "each survivor needs its reason in the check file"
    assert count >= 8
    assert all(len(reason) > 5 for reason in explained.values())
    rejected[1, name] = count, len(alive)


@pytest.mark.slow
@each_exercise
@pytest.mark.filterwarnings("ignore")
def test_two_changes_of_the_reference_are_rejected(lesson, name):
    """Of 20 changes in two places, drawn once: two mistakes do not hide each other."""
    exercise = exercise_of(lesson, name)
    count, alive = survivors(exercise, exercise.get("slow", exercise["reference"]), places=2, most=20)
    explained = {*exercise.get("survivors", {}), *exercise.get("survivors_of_two", {})}
    alone = [what for what in alive if what not in explained and not explained.issuperset(what.split("; "))]
    assert not alone, "each survivor of which a part is no survivor needs its reason in the check file"
    rejected[2, name] = count, len(alive)


rejected: dict[tuple[int, str], tuple[int, int]] = {}  # (places, exercise) -> changes, survivors


@pytest.mark.slow
def test_how_many_changes_are_rejected(figure):
    for places, what in (1, "one-place changes of references"), (2, "changes in two places"):
        found = [counts for (p, _), counts in rejected.items() if p == places]
        count, alive = (sum(column) for column in zip(*found, strict=True)) if found else (1, 0)
        assert alive <= 0.05 * count
        figure(f"{count} {what}, {count - alive} rejected, {alive} equivalent")


def test_a_check_with_blind_inputs_lets_a_change_through():
    """The test above can fail."""
    blind = dict(reference=sum_of_rows, inputs=lambda seed: [(torch.ones(3, 3),)], gradients=False)
    assert len(survivors(blind, sum_of_rows)[1]) > 0


def sum_of_rows(x):
    return x.sum(1) * x[0]


# ---- 8. the reference is the project
@each_exercise
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


@pytest.mark.slow
@each_lesson
def test_a_lesson_runs_in_its_time(lesson, shell, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYLM_WORK", str(tmp_path / "work"))
    stated, taken = course.header(course.lessons()[lesson])["seconds"], []
    while not taken or (taken[-1] > 2 * stated and len(taken) < 2):
        begun = time.monotonic(), sum(os.times()[2:4])
        done = shell(str(ROOT / "lessons/run.py"), "show", str(lesson), cwd=tmp_path, env=None)
        wall, processor = time.monotonic() - begun[0], sum(os.times()[2:4]) - begun[1]
        taken.append(min(wall, processor))  # where others load the machine, wall time is theirs, too
        assert done.returncode == 0, done.stdout + done.stderr
    assert min(taken) <= 2 * stated
    (plot,) = (tmp_path / "work").iterdir()
    assert plot.name == course.lessons()[lesson].stem + ".png"
    assert shades(plot) > 20, "the plot is blank"


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


# ---- the order of verdicts, and answers that no list knows
def double(x, rate):
    return x * rate


TOY = dict(
    name="double",
    reference=double,
    inputs=lambda seed: [(torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)), 2.5)],
    wrong={"added": (lambda x, rate: x + rate, "plus or times? Yours begins with {first:.2f}")},
    also={"halved twice": (lambda x, rate: (x * rate).half(), "the other precision")},
    numbers=lambda value, x, rate: dict(first=value[0, 0]),
    properties=[lambda f, x, rate: "" if (f(x, rate) * x >= 0).all() else "signs are changed"],
)
VERDICTS = [
    (double, "right", "right"),
    (lambda x, rate: (x * rate).half(), "right", "right"),
    (lambda x, rate: x + rate, "wrong", "plus or times?"),
    (lambda x, rate: None, "wrong", "is a `return` missing?"),
    (lambda x, rate: (x * rate).tolist(), "wrong", "list found, Tensor expected"),
    (lambda x, rate: (x * rate).double(), "wrong", "dtype float64 found, float32 expected"),
    (lambda x, rate: (x * rate).mT, "wrong", "shape (4, 3) found, (3, 4) expected"),
    (lambda x, rate: x * rate / np.log(2), "wrong", "1.4427 times ours everywhere, that is 1/ln 2"),
    (lambda x, rate: x * rate + 1, "wrong", "ours plus 1 everywhere"),
    (lambda x, rate: -x * rate, "wrong", "signs are changed"),
    (lambda x, rate: (x * rate).detach(), "wrong", "no gradient reaches `x`"),
    (lambda x, rate: x.mul_(rate), "wrong", "the caller's `x` was changed"),
    (lambda x, rate: x * rate * float("nan"), "wrong", "nan at (0, 0), the whole row; 12 of 12 numbers"),
    (lambda x, rate: (x * rate - 1).sqrt(), "wrong", "nan at"),
    (lambda x, rate: x * rate * 1e38, "wrong", "times ours everywhere"),
    (lambda x, rate: x.double().fill_(1e308).float(), "wrong", "12 of 12 numbers are not finite"),
    (lambda x, rate: x * rate * (torch.arange(4) + 1), "wrong", "where"),
    (lambda x, rate: x @ x, "failed", "RuntimeError"),
    (lambda x: x, "failed", "TypeError"),
    (lambda x, rate: 1 / 0, "failed", "ZeroDivisionError: division by zero"),
    (lambda x, rate: (x * rate).exp().add_(1), "failed", "a tensor was overwritten"),
    (lambda x, rate: x.chunk(2)[0].mul_(rate), "failed", "a tensor was overwritten"),
    (lambda x, rate: torch.bincount(x[0]), "failed", "torch cannot do this with numbers of the type Float"),
    (lambda x, rate: torch.softmax(x.long(), -1), "failed", "numbers of the type Long"),
    (lambda x, rate: [x for _ in range(10**12)], "failed", "stopped by the test"),
    (lambda x, rate: np, "wrong", "module found, Tensor expected"),
]


@pytest.mark.filterwarnings("error::RuntimeWarning")  # it would stand among what the student has printed
@pytest.mark.parametrize(("answer", "status", "text"), VERDICTS)
def test_verdicts(answer, status, text):
    if text == "stopped by the test":
        assert with_limit(0.1, grader.judge, TOY, answer) is None
        return
    found = grader.judge(TOY, answer)
    assert (found["status"], text in found["line"]) == (status, True), found["line"]
    assert "\n" not in found["line"]
    assert len(found["line"]) <= grader.WIDTH


@pytest.mark.parametrize(
    ("right", "wrong", "text"),
    [
        (torch.tensor([50_000, 7]), torch.tensor([50_001, 7]), "50001 at [0], where 50000 is right"),
        ([50_000, 7], [50_001, 7], "50001 at [0], where 50000 is right"),
        (50_000, 50_001, "50001, where 50000"),
        ([1, 2], [1, 2, 3], "3 entries found, 2 expected"),
        ((1, 2), [1, 2], "list found, tuple expected"),
        ({"a": 1.0}, {"b": 1.0}, "keys ['b'] found, ['a'] expected"),
        ({"a": [1.0, "x"]}, {"a": [1.0, "y"]}, "['a'] [1] 'y' found, 'x' expected"),
        (np.array(["x"]), np.array(["y"]), "'y' found, 'x' expected"),
        (True, 1, "int found, bool expected"),
        (1.5, torch.tensor(1.5), "Tensor found, float expected"),
        (1, 1.0, "float found, int expected"),
        (torch.zeros(2, 3, device="meta"), torch.zeros(2, 3), "device cpu found, meta expected"),
        (torch.zeros(3), torch.zeros(3) + 1e-8, ""),
        (torch.ones(3), torch.ones(3) + 1e-6, ""),
        (1.0, np.float64(1.0), ""),
        (model.GPTConfig, model.GPTConfig, ""),
        ([object()], [object()], ""),
    ],
)
def test_differences(right, wrong, text):
    distance, _, found = difference(wrong, right, 1e-4)
    assert difference(right, right, 1e-4)[0] == 0
    assert (distance > 1) == bool(text)
    assert text in found


def test_the_cost_counts_where_it_is_asked_for():
    exercise = {**TOY, "cost": 10, "wrong": {}, "also": {}, "properties": []}
    cost = exercise["cost"]

    def row_by_row(x, rate):
        rows = []
        for row in x:
            for _ in range(cost):
                row = row + 0
            rows.append(row * rate)
        return torch.stack(rows)

    assert grader.judge(exercise, double)["status"] == grader.RIGHT
    assert "steps, where ours takes" in grader.judge(exercise, row_by_row)["line"]


@pytest.mark.slow
def test_counting_imports_no_compiler(shell):
    """800 modules of torch, 3 seconds for each check."""
    program = """
import sys, torch
from lessons.observe import Steps
with Steps(print): torch.ones(2) + 1
print("torch._dynamo" in sys.modules)"""
    assert shell("-c", program).stdout == "False\n"


def test_a_verdict_is_the_same_twice():
    exercise = {**TOY, "reference": torch.rand_like, "inputs": lambda seed: [(torch.zeros(3, 4),)]}
    exercise["reference"] = lambda x: torch.rand(3, 4) + x
    assert grader.judge(exercise, lambda x: torch.rand(3, 4) + x)["status"] == grader.RIGHT


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
