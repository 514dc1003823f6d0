"""One short answer to each exercise: `solution` prints it, and the tests hand it in as a student's.

Most are the obvious functions of the check files. Where these are loops, made to be compared with,
lessons/answers.py has what one would write with torch.
"""

import ast
import inspect
import re

from lessons import answers, course


def solution(checks, number: str) -> str:
    """The source of the answer, under the student's name, below the constants of the check file that it uses.

    checks: the module of the lesson. An answer that is found there may use other functions of that file:
    those that answer an exercise are called by the name in the lesson, others are written above it.
    """
    name = checks.exercises[number]["name"]
    if mine := vars(answers).get(f"{name}_{number}"):
        return re.sub(rf"\b({name})_{number}\b", r"\1", inspect.getsource(mine)).strip()
    module = ast.parse(inspect.getsource(checks))
    theirs = {other: answer_of(exercise).__name__ for other, exercise in checks.exercises.items()}
    function, source = theirs.pop(number), inspect.getsource(answer_of(checks.exercises[number]))
    for other, answer in theirs.items():
        source = re.sub(rf"\b{answer}\b", checks.exercises[other]["name"], source)
    source = re.sub(rf"\b{function}\b", name, source).strip()
    lesson = ast.parse(course.read(course.lessons()[int(number[:-1])]))
    used = used_by(source, module, {name for node in lesson.body for name in defined(node)})
    constants = [ast.unparse(node) for node in used if isinstance(node, ast.Assign)]
    helpers = [ast.unparse(node) for node in used if not isinstance(node, ast.Assign)]
    return "\n\n\n".join(["\n".join(constants)] * bool(constants) + [*helpers, source])


def answer_of(exercise: dict):
    """The function of a check file that answers an exercise: the twin, or the reference if there is none."""
    return exercise.get("slow", exercise["reference"])


def used_by(source: str, module: ast.Module, known: set[str]) -> list[ast.stmt]:
    """What a piece of source needs of a module's functions and constants, in the module's order; not of these
    names, nor of its own arguments."""
    parts, used, new = [ast.parse(source)], [], True
    own = known | {node.arg for node in ast.walk(parts[0]) if isinstance(node, ast.arg)}
    while new:
        names = {n.id for part in parts for n in ast.walk(part) if isinstance(n, ast.Name)} - own
        new = [node for node in module.body if names & defined(node) and node not in used]
        used, parts = [*used, *new], [*parts, *new]
    return sorted(used, key=lambda node: node.lineno)


def defined(node: ast.stmt) -> set[str]:
    """The names that a statement at the top of a file defines; imports are not looked at."""
    if isinstance(node, ast.Assign):
        return {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return {node.name} if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else set()
