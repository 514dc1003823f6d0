"""What tests of the course share: lessons and exercises as parameters, and their answers, observed once."""

import ast
import functools

import pytest

from lessons import course, grader
from lessons.observe import SEEDS

LESSONS = list(course.lessons())
EXERCISES = [(n, name) for n in LESSONS for name in course.checks(n).exercises]
each_lesson = pytest.mark.parametrize("lesson", LESSONS)
# The README's command judges answers to these lessons; .ci/run to all.
QUICK = {1, 3, 9}
each_exercise = pytest.mark.parametrize(("lesson", "name"), EXERCISES, ids=[name for _, name in EXERCISES])
each_judged = pytest.mark.parametrize(
    ("lesson", "name"),
    [pytest.param(n, name, id=name, marks=() if n in QUICK else pytest.mark.slow) for n, name in EXERCISES],
)


def exercise_of(lesson: int, name: str) -> dict:
    return course.checks(lesson).exercises[name]


@functools.cache
def family(lesson: int, name: str, seeds=SEEDS) -> dict:
    return grader.family(exercise_of(lesson, name), seeds)


def source_of(lesson: int) -> str:
    return course.read(course.lessons()[lesson])


def stub_of(lesson: int, exercise: dict) -> ast.AST:
    return grader.node_of(ast.parse(source_of(lesson)), exercise["name"])
