"""Judges an answer: is it written, is it of the right kind, is it right, and if not, which mistake is it?

A check file (lessons/checks/) says for each exercise what is right, which wrong answers are typical, and what
must hold. `judge` observes what the student's function does (observe.py) and looks for the first of these:
an answer that is right or also valid; a known wrong answer, whose hint is given; a property that does not
hold; the exception, kind or number that differs. Nothing here starts a process: worker.py does, and the tests
judge whole lists in one process.
"""

import ast
import inspect
import re
import warnings
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from lessons.course import load
from lessons.observe import SEEDS, TOL, alike, apart, last_line, observations

WIDTH = 160  # characters of a verdict, which is one line
RIGHT, MISSING, FAILED, WRONG = "right", "not written", "failed", "wrong"
# A NotImplementedError that says this, or nothing, is a stub's or the student's own; torch's say more.
STUB = re.compile(r"(lesson \d+\w)?")
# Modules that a student's file may not import.
THE_CHECKS = "answers|checks|common|grader|observe|solutions|worker"
OTHERS = {  # what an exception means, where Python's own message does not say it
    "RecursionError": "calls itself without an end",
    "EOFError": "asked for keyboard input, there is none",
    "SystemExit": "ended the program itself before returning an answer",
    "KeyboardInterrupt": "interrupted",
}


def verdict(status: str, line: str, mistake: str = "", picture: str = "", remark: str = "") -> dict:
    line = " ".join(line.split())
    line = line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
    return dict(status=status, line=line, mistake=mistake, picture=picture, remark=remark)


# ---- the student's file
def what_failed(error: BaseException, path: Path) -> str:
    """Describe an exception in one line: its meaning, and the last line it passed in the student's file."""
    kind, message = type(error).__name__, " ".join(str(error).split())
    line = 0
    if isinstance(error, SyntaxError):
        line, message = error.lineno or 0, error.msg
    else:
        line = last_line(error, str(path))
    where = f"line {line}: " if line else ""
    return where + in_words(kind, message)


def in_words(kind: str, message: str) -> str:
    asked = re.search(r"tried to allocate (\d+) bytes", message)
    if asked or kind == "MemoryError":
        return f"asked for {int(asked[1]) / 2**30:.3g} GiB" if asked else "ran out of memory"
    if re.search(r"modified (by an )?inplace", message):
        return "a tensor was overwritten, and the gradient needs what was in it: write into a new one"
    if "no attribute 'numerator'" in message:
        return "statistics.stdev, or a mean, was given a nan"
    if unknown := re.search(r"not implemented for '(\w+)'", message):
        return f"torch cannot do this with numbers of the type {unknown[1]}"
    return OTHERS.get(kind) or (f"{kind}: {message}" if message else kind)


def node_of(tree: ast.Module, name: str):
    """The definition of a function or class at the top of a file, or None."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return next((node for node in tree.body if isinstance(node, kinds) and node.name == name), None)


def is_stub(node) -> bool:
    """Is there only a docstring, pass, ... or raise NotImplementedError? In a class: in each method."""
    if isinstance(node, ast.ClassDef):
        methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        return all(is_stub(n) for n in methods) if methods else True
    for statement in node.body:
        if isinstance(statement, ast.Raise):
            return "NotImplementedError" in ast.unparse(statement)
        constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not (constant or isinstance(statement, ast.Pass)):
            return False
    return True


def not_your_own(tree: ast.Module, exercise: dict) -> str:
    """Say in one line whether the file takes the answer from the course or the project; "" if it does not."""
    for node in ast.walk(tree):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.module == "lessons":
            modules += [alias.name for alias in node.names]
        if any(re.match(rf"(lessons\.)?({THE_CHECKS})\b", module) for module in modules):
            return f"line {node.lineno} imports the checks: the answer has to be your own"
    forbidden = {*exercise.get("forbidden", ())} | {getattr(exercise.get("project"), "__name__", "")} - {""}
    function = node_of(tree, exercise["name"])
    for node in ast.walk(function):
        used = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
        itself = isinstance(node, ast.Name) and used == exercise["name"]
        if used in forbidden and not itself:
            return f"line {node.lineno} calls `{used}`, which is what this exercise builds: write it out"
    return ""


def find(path: Path, exercises: dict, number: str):
    """Load the student's function. Returns (function, None), or (None, the verdict on why there is none)."""
    exercise = exercises[number]
    name = exercise["name"]
    if not path.is_file():
        return None, verdict(MISSING, f"not started yet: python lessons/run.py start {number}")
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:  # ValueError: a zero byte
        return None, verdict(FAILED, what_failed(error, path))
    node = node_of(tree, name)
    if node is not None and is_stub(node):
        return None, verdict(MISSING, f"`{name}` is not written yet")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = load(path, "yours")
    except BaseException as error:
        return None, verdict(FAILED, what_failed(error, path))
    function = getattr(module, name, None)
    if function is None:
        return None, verdict(MISSING, f"`{name}` is not in your file: was it renamed or deleted?")
    if not callable(function):
        return None, verdict(FAILED, f"`{name}` is {type(function).__name__}, not a function")
    if node is None:
        return None, verdict(FAILED, f"`{name}` is not defined in your file: write it with def")
    if borrowed := not_your_own(tree, exercise):
        return None, verdict(FAILED, borrowed)
    for other in exercise.get("needs", ()):  # a mistake in another exercise is not reported here again
        setattr(module, exercises[other]["name"], exercises[other]["reference"])
    return function, None


# ---- the verdict
def tolerance(exercise: dict) -> float:
    return exercise.get("tol", TOL)


def family(exercise: dict, seeds=SEEDS) -> dict[str, list[dict]]:
    """Observe the reference ("") and all valid and wrong answers once, to judge many functions by them."""
    functions = {"": exercise["reference"]}
    functions |= {
        name: entry[0] for part in ("also", "wrong") for name, entry in exercise.get(part, {}).items()
    }
    return {name: observations(exercise, function, seeds) for name, function in functions.items()}


def judge(exercise: dict, function: Callable, seeds=SEEDS, known: dict | None = None) -> dict:
    """Judge a function. known: observations from family(), or some of them; others are made as needed."""
    known = known if known is not None else {}
    tol = tolerance(exercise)

    def seen(name: str, answer: Callable) -> list[dict]:
        if name not in known:
            known[name] = observations(exercise, answer, seeds)
        return known[name]

    ours = seen("", exercise["reference"])
    mine = observations(exercise, function, seeds)
    raised = [one["message"] for one in mine if one.get("raises") == "NotImplementedError"]
    if any(STUB.fullmatch(message) for message in raised):
        return verdict(MISSING, f"`{exercise['name']}` is not written yet")
    distance, other_kind, text = apart(mine, ours, tol)
    if distance <= 1:
        first = exercise["inputs"](seeds[0])[0]
        return verdict(RIGHT, "right", picture=draw(exercise, [exercise["reference"]], first))
    for name, (answer, remark) in exercise.get("also", {}).items():
        if alike(mine, seen(name, answer), tol):
            return verdict(RIGHT, "right", mistake=name, remark=remark)
    failed = next((one for one in mine if "raises" in one), None)
    if failed and text.startswith(failed["raises"]):
        where = f"line {failed['line']}: " if failed["line"] else ""
        text = where + in_words(failed["raises"], failed["message"])
    if any("value" in one and one["value"] is None for one in ours):  # None may be an answer here
        text = text.replace(": is a `return` missing?", ", where a value is right")
    status = FAILED if failed else WRONG
    place = next(i for i in range(len(mine)) if not alike(mine[i : i + 1], ours[i : i + 1], tol))
    args = [args for seed in seeds for args in exercise["inputs"](seed)][place]  # the first that tells
    pictures = draw(exercise, [function, exercise["reference"]], args)
    for name, (answer, hint) in exercise["wrong"].items():
        if alike(mine, seen(name, answer), tol):
            hint = fill(exercise, hint, mine[place], args)
            both = f"{text} {hint}" if text.endswith("?") else f"{text}. {hint}"
            line = both if other_kind and len(both) <= WIDTH else hint
            return verdict(status, line, name, pictures)
    for name, (answer, hint) in exercise["wrong"].items():  # two mistakes at once
        if second := beside(mine, seen(name, answer), ours, tol):
            return verdict(
                status, f"{fill(exercise, hint, mine[place], args)} And {second}", picture=pictures
            )
    if not failed and not other_kind and "not finite" not in text:  # of nan, properties say what is not so
        for holds in exercise.get("properties", ()):
            if broken := guarded(holds, function, *args):
                return verdict(status, broken, picture=pictures)
    return verdict(status, text, picture=pictures)


def beside(mine: list[dict], known: list[dict], ours: list[dict], tol: float) -> str:
    """What is wrong beside a known mistake, in words; "" if it is not that mistake and one more.

    The other one is an argument that was changed, a gradient that is lost, or, if the value is a tensor or a
    float, all numbers times or plus one.
    """
    if any("raises" in one for one in (*mine, *known, *ours)):
        return ""
    for part in ("changed", "gradients"):
        as_ours = [{**one, part: right[part]} for one, right in zip(mine, ours, strict=True)]
        rest = [{**one, part: right[part]} for one, right in zip(known, ours, strict=True)]
        alone = [{**right, part: one[part]} for one, right in zip(mine, ours, strict=True)]
        distance, _, text = apart(alone, ours, tol)
        if distance > 1 and re.match("the caller|no gradient", text) and alike(as_ours, rest, tol):
            return text
    if not all(isinstance(one["value"], (Tensor, float)) for one in known):
        return ""  # of several parts only the first to differ is told
    found = {
        apart([one], [other], tol)[2].partition(": yours is ")[2]
        for one, other in zip(mine, known, strict=True)
    }
    (first, *others) = found
    return f"your numbers are {first.replace('ours', 'that')}" if first and not others else ""


def fill(exercise: dict, hint: str, seen: dict, args: tuple) -> str:
    """Put the numbers of this run into a hint."""
    if "numbers" not in exercise or "value" not in seen:
        return hint
    found = guarded(exercise["numbers"], seen["value"], *args)
    return hint.format(**found) if isinstance(found, dict) else hint


def guarded(function: Callable, *args):
    """Call a property or picture of an answer of any kind; "" if it raises, then there is nothing to show."""
    try:
        return function(*args)
    except Exception:
        return ""


def draw(exercise: dict, functions: list[Callable], args: tuple) -> str:
    """Draw the student's picture beside the right one, or the right one alone."""
    if "picture" not in exercise:
        return ""
    columns = [guarded(exercise["picture"], function, *args) for function in functions]
    if not columns[0] or not columns[-1]:
        return ""
    titles = ["yours", "right"][-len(columns) :]
    width = max(len(row) for column in columns for row in [*column, "yours"]) + 4
    rows = zip(*columns, strict=False)
    lines = ["".join(f"{title:<{width}}" for title in titles)]
    return "\n".join([*lines, *("".join(f"{cell:<{width}}" for cell in row).rstrip() for row in rows)])


def lint(exercise: dict, seed: int = SEEDS[0]) -> list[str]:
    """List inputs that could hide a mistake: equal sizes, sizes of 1, and the numbers 0, 0.5 and 1.

    An exercise may give a reason for such an argument: `lint={"scores": "a square by nature"}`.
    """
    allowed, names = exercise.get("lint", {}), [*inspect.signature(exercise["reference"]).parameters]
    breaches = set()
    args = exercise["inputs"](seed)[0]  # the first is the ordinary one; edge cases follow it
    for name, value in zip(names, args, strict=False):
        sizes = [n for n in getattr(value, "shape", ())]
        if name not in allowed and (1 in sizes or len({*sizes}) < len(sizes)):
            breaches.add(f"{name} has the shape {tuple(sizes)}: sizes that differ, and no 1")
        if name not in allowed and type(value) in (int, float) and value in (0, 0.5, 1):
            breaches.add(f"{name} is {value}, where many mistakes change nothing")
    return sorted(breaches)
