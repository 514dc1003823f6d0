"""A lesson as a student would hand it in: its gaps filled with the obvious answers of its check file."""

import ast
import inspect

from lessons import course, grader


def solved(lesson: int) -> str:
    """The text of a lesson with each exercise and prediction filled in, and no import of its check file."""
    checks, source = course.checks(lesson), course.read(course.lessons()[lesson])
    module = ast.parse(inspect.getsource(checks))
    top = [node for node in module.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    theirs = ("from lessons.checks", "from lessons.common", "from lessons.observe")  # not for students
    top = [node for node in top if not ast.unparse(node).startswith(theirs)]
    lines = source.splitlines()
    for exercise in reversed(checks.exercises.values()):  # from below: the lines above keep their numbers
        stub = grader.node_of(ast.parse(source), exercise["name"])
        for key in ("slow", "reference"):
            if key in exercise:
                constants, answer = written_out(exercise[key].__name__, exercise["name"], module)
                if not grader.not_your_own(ast.parse(answer), exercise):
                    break
        top += [node for node in constants if node not in top]
        lines[stub.lineno - 1 : stub.end_lineno] = answer.splitlines()
    for number, question in enumerate(checks.predictions.values(), 1):
        was = f"predict_{number} = None"
        lines = [line.replace(was, f"predict_{number} = {question['answer']!r}", 1) for line in lines]
    return "\n".join([*map(ast.unparse, top), *lines, ""])


def written_out(answer: str, name: str, module: ast.Module) -> tuple[list[ast.stmt], str]:
    """A function of a check file under another name, the functions that it uses inside it; and the constants
    that these use."""
    tree, used, new = grader.node_of(module, answer), [], True
    while new:
        names = {n.id for part in [tree, *used] for n in ast.walk(part) if isinstance(n, ast.Name)}
        new = [node for node in module.body if names & defined(node) and node not in (tree, *used)]
        used = [*new, *used]
    constants = [node for node in used if isinstance(node, ast.Assign)]
    helpers = "\n".join(ast.unparse(node) for node in used if node not in constants)
    tree = ast.parse(ast.unparse(tree)).body[0]
    tree.name = name
    tree.body[:0] = ast.parse(helpers).body
    return constants, ast.unparse(tree)


def defined(node: ast.stmt) -> set[str]:
    """The names that a statement at the top of a file defines; of imports none, they are copied anyway."""
    if isinstance(node, ast.Assign):
        return {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return {node.name} if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else set()
