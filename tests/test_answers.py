"""The grader of the course: what is right passes, typical mistakes are named, nothing wrong gets through."""

import itertools
import math
import re
import signal
import statistics

import numpy as np
import pytest
import torch

import model
from exercises import (
    EXERCISES,
    LESSONS,
    QUICK,
    each_exercise,
    each_judged,
    exercise_of,
    family,
    source_of,
    stub_of,
)
from lessons import course, grader, solutions
from lessons.observe import SEEDS, alike, difference, observations, observe
from mutants import mutants

OTHER_SEEDS = [(seed, seed + 1) for seed in (2**31 - 2, *range(100, 108, 2))]  # `grade` draws such large ones


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


@pytest.mark.slow
@each_exercise
def test_right_answers_are_right_with_large_seeds(lesson, name):
    """Inputs that need a small seed once failed whole classes."""
    exercise = exercise_of(lesson, name)
    for answer in {exercise["reference"], solutions.answer_of(exercise)}:  # often one and the same
        assert grader.judge(exercise, answer, OTHER_SEEDS[0])["status"] == grader.RIGHT


@each_judged
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
    assert ("renamed or deleted?" in found["line"]) == (change in ("commented out", "gone"))


# ---- 4. and 5. every wrong answer gets its own hint
def check_hints(lesson: int, name: str, seeds) -> None:
    exercise, known = exercise_of(lesson, name), family(lesson, name, seeds)
    for mistake, (function, hint) in exercise["wrong"].items():
        found = grader.judge(exercise, function, seeds, known)
        assert found["status"] in (grader.WRONG, grader.FAILED)
        assert found["mistake"] == mistake, f"{mistake} is taken for {found['mistake'] or 'nothing known'}"
        assert "{" not in found["line"], "numbers are filled in"
        assert re.match(".*" + re.sub(r"\\\{.*?\\\}", ".+", re.escape(hint)), found["line"])
        assert len(found["line"]) <= grader.WIDTH


@pytest.fixture
def observed_once(monkeypatch):
    """observed_once(lesson, name, seeds): the grader takes what answers do from their family.

    That they do the same again, the lessons of QUICK show.
    """

    def use(lesson: int, name: str, seeds) -> None:
        exercise, known = exercise_of(lesson, name), family(lesson, name, seeds)
        names = {exercise["reference"]: ""}
        for part in ("wrong", "also"):
            names |= {function: other for other, (function, _) in exercise.get(part, {}).items()}
        monkeypatch.setattr(grader, "observations", lambda exercise, answer, seeds: known[names[answer]])

    return use


@each_judged
def test_wrong_answers_get_their_hints(lesson, name, observed_once):
    if lesson not in QUICK:
        observed_once(lesson, name, SEEDS)
    check_hints(lesson, name, SEEDS)


@pytest.mark.slow
@each_exercise
def test_wrong_answers_get_their_hints_with_other_seeds(lesson, name, observed_once, pytestconfig):
    if name[-1] != "b" and not pytestconfig.getoption("--long"):
        pytest.skip("one exercise of a lesson; all with --long")
    for seeds in OTHER_SEEDS if pytestconfig.getoption("--long") else OTHER_SEEDS[:1]:
        observed_once(lesson, name, seeds)
        check_hints(lesson, name, seeds)


@pytest.mark.slow
@each_exercise
def test_no_two_answers_look_alike(lesson, name):
    tol = grader.tolerance(exercise_of(lesson, name))
    for (a, seen), (b, other) in itertools.combinations(family(lesson, name).items(), 2):
        for one, two in ((seen, other), (other, seen)):
            assert not alike(one, two, 10 * tol), f"{a or 'the reference'} and {b}"


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


def is_right(exercise: dict, function, ours: list[dict]) -> bool:
    """Whether it does what the reference does; the first input on which it does not decides."""
    places = ((args, seed) for seed in SEEDS for args in exercise["inputs"](seed))
    return all(
        alike([observe(exercise, function, *place)], [right], grader.tolerance(exercise))
        for place, right in zip(places, ours, strict=True)
    )


def survivors(exercise: dict, function, places: int = 1, most: int = 0) -> tuple[int, list[str]]:
    """(how many changes there are, those that are accepted as right)."""
    ours, alive, count = observations(exercise, exercise["reference"]), [], 0
    for what, changed in mutants(function, places, most):
        count += 1
        if with_limit(5, is_right, exercise, changed, ours):
            alive.append(what)
    return count, alive


@pytest.mark.slow
@each_exercise
@pytest.mark.filterwarnings("ignore")
def test_a_change_of_the_reference_is_rejected(lesson, name):
    """What differs from the right answer in one place is noticed, on the list of wrong answers or not."""
    exercise = exercise_of(lesson, name)
    count, alive = survivors(exercise, solutions.answer_of(exercise))
    explained = exercise.get("survivors", {})
    assert {*alive} == {*explained}, "each survivor needs its reason in the check file"
    assert count >= 8
    assert all(len(reason) > 5 for reason in explained.values())
    rejected[1, name] = count, len(alive)


@pytest.mark.slow
@each_exercise
@pytest.mark.filterwarnings("ignore")
def test_two_changes_of_the_reference_are_rejected(lesson, name):
    """Of 10 changes in two places, drawn once: two mistakes do not hide each other."""
    exercise = exercise_of(lesson, name)
    count, alive = survivors(exercise, solutions.answer_of(exercise), places=2, most=10)
    explained = {*exercise.get("survivors", {}), *exercise.get("survivors_of_two", {})}
    alone = [what for what in alive if what not in explained and not explained.issuperset(what.split("; "))]
    assert not alone, "each survivor of which a part is no survivor needs its reason in the check file"
    rejected[2, name] = count, len(alive)


rejected: dict[tuple[int, str], tuple[int, int]] = {}  # (places, exercise) -> changes, survivors


@pytest.mark.slow
def test_how_many_changes_are_rejected(figure):
    for places, what in (1, "one-place changes of references"), (2, "changes in two places"):
        if found := [counts for (p, _), counts in rejected.items() if p == places]:
            count, alive = (sum(column) for column in zip(*found, strict=True))
            assert alive <= 0.05 * count
            figure(f"{count} {what}, {count - alive} rejected, {alive} equivalent")


def test_a_check_with_blind_inputs_lets_a_change_through():
    """The test above can fail."""
    blind = dict(reference=sum_of_rows, inputs=lambda seed: [(torch.ones(3, 3),)], gradients=False)
    assert len(survivors(blind, sum_of_rows)[1]) > 0


def sum_of_rows(x):
    return x.sum(1) * x[0]


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
    (lambda x, rate: statistics.stdev([1.0, math.nan]), "failed", "was given a nan"),
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


def square_in_place(x, rate):
    squares = x.clone() ** 2
    x.data.add_(1)
    return squares


TWO = [
    (square_in_place, "A square? And the caller's `x` was changed: work on a copy"),
    (lambda x, rate: (x * x).detach(), "A square? And no gradient reaches `x`"),
    (lambda x, rate: 3 * x * x, "A square? And your numbers are 3 times that everywhere"),
    (lambda x, rate: x * x + 2, "A square? And your numbers are that plus 2 everywhere"),
    (lambda x, rate: x * x * rate, "where"),  # another factor for each input is another mistake
]


@pytest.mark.parametrize(("answer", "text"), TWO)
def test_two_mistakes_are_told_as_two(answer, text):
    rates = [(torch.randn(3, 4, generator=torch.Generator().manual_seed(i)), 2.5 + i) for i in range(2)]
    wrong = {"squared": (lambda x, rate: x * x, "A square?")}
    exercise = {**TOY, "wrong": wrong, "inputs": lambda seed: rates, "properties": []}
    found = grader.judge(exercise, answer)
    assert found["status"] == grader.WRONG
    assert text in found["line"]
    assert ("A square?" in found["line"]) == text.startswith("A square?")


def test_of_an_answer_in_parts_no_second_mistake_is_made_up():
    """Right scores in another order were told to be bits, and 0.69315 times that."""
    scores = [(torch.tensor([1.0, 3.0, 2.0]),), (torch.tensor([5.0, 3.0, 2.0]),)]
    wrong = {"bits": (lambda x: (x / math.log(2), x.argsort().tolist()), "Those are bits")}
    exercise = dict(name="rank", reference=lambda x: (x, x.argsort().tolist()), inputs=lambda seed: scores)
    found = grader.judge({**exercise, "wrong": wrong}, lambda x: (x, [2, 0, 1]))
    assert found["line"].startswith("[1] ")


def test_where_none_may_be_right_no_return_is_missing():
    exercise = dict(
        name="above", reference=lambda x: x if x > 0 else None, inputs=lambda seed: [(2.5,), (-1.5,)]
    )
    found = grader.judge({**exercise, "wrong": {}}, lambda x: None)
    assert found["line"] == "None is returned, where a value is right"


def test_a_picture_is_of_the_first_input_that_tells():
    inputs = [(torch.full((2, 3), value), 2.5) for value in (1.0, 4.0)]
    shown = dict(picture=lambda function, x, rate: [f"{function(x, rate).max():.1f}"], wrong={})
    exercise = {**TOY, **shown, "inputs": lambda seed: inputs}
    found = grader.judge(exercise, lambda x, rate: (x * rate).clamp(max=5))
    assert found["picture"].splitlines()[1].split() == ["5.0", "10.0"]


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
        (torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), "1 at [0], where 0 is right"),
        (torch.tensor([2.0, 0.0]), torch.tensor([4.0, 1.0]), "4 at [0], where 2 is right"),
        (torch.tensor([2.0, 3.0, 0.0]), torch.tensor([4.0, 6.0, 0.0]), "2 times ours everywhere"),
        (torch.tensor([2.0, 1.0]), torch.tensor([0.0, 0.0]), "0 at [0], where 2 is right"),
        (model.GPTConfig, model.GPTConfig, ""),
        ([object()], [object()], ""),
    ],
)
def test_differences(right, wrong, text):
    distance, _, found = difference(wrong, right, 1e-4)
    assert difference(right, right, 1e-4)[0] == 0
    assert (distance > 1) == bool(text)
    assert text in found
    assert ("everywhere" in text) == ("everywhere" in found and distance > 1)


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
