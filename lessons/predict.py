"""Asks for the predictions of a lesson before its first verdict, and answers them after it."""

import ast
import re
import sys
from pathlib import Path

from lessons import course


def number_in(text: str) -> float | None:
    """Read a number, or arithmetic such as 4 * 128. None if the text is anything else."""
    operators = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.USub)  # no power: 9**9**9 takes for ever
    allowed = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, *operators)
    try:
        tree = ast.parse(text.strip().replace(",", ""), mode="eval")
        numbers = all(type(node.value) in (int, float) for node in ast.walk(tree) if hasattr(node, "value"))
        if numbers and all(isinstance(node, allowed) for node in ast.walk(tree)):
            return float(eval(compile(tree, "guess", "eval")))  # nothing but numbers and + - * /
    except (SyntaxError, TypeError, ValueError, ArithmeticError):
        pass
    return None


def guess_in_file(path: Path, name: str) -> str:
    """The text behind `predict_1 =` in the student's file; "" if it is None or missing."""
    text = course.read(path) if path.is_file() else ""
    found = re.search(rf"^{name}[ \t]*=[ \t]*(.*?)[ \t]*(?:#.*)?$", text, re.MULTILINE)
    return "" if not found or found[1] == "None" else found[1]


def asked_first(lesson: int, path: Path, state: dict) -> bool:
    """Ask for the guesses that are missing; return whether each question of the lesson has one."""
    for key, question in course.checks(lesson).predictions.items():
        if key in state["predictions"]:
            continue
        name = f"predict_{key.split('.')[1]}"
        text, typed = guess_in_file(path, name), False
        while (guess := number_in(text)) is None:
            if text:
                print(f"{text!r} is not a number; expected one, or some with + - * / between them")
            print(f"{key}  Predict first: {question['ask']}? ", end="", flush=True)
            text, typed = sys.stdin.readline(), True
            if not text:
                print(f"\nwrite a number behind `{name} =` in {path}, and check again")
                return False
            text = text.strip()
        state["predictions"][key] = guess
        if typed:
            print()
    return True


def tell_predictions(lesson: int, state: dict, known: set[str]) -> None:
    """Print the answer to each guess of a lesson, except for those in `known`, answered before."""
    for key, question in course.checks(lesson).predictions.items():
        if key not in known:
            print(f"{key}  {verdict_on(state['predictions'][key], question)}")


def verdict_on(guess: float, question: dict) -> str:
    """Compare a guess with the answer, in one line."""
    near = lambda number: abs(guess - number) <= question["tol"]  # noqa: E731
    told = f"you predicted {guess:,.10g}"
    if near(question["answer"]):
        return f"{told}: so it is"
    known = next((text for number, text in question["wrong"].items() if near(number)), "")
    return f"{told}. {known}" if known else f"{told}. It is {question['answer']:,.10g}."
