"""A lesson as a student would hand it in: its gaps filled with the obvious answers of its check file."""

import ast
import inspect
import textwrap

from lessons import course, grader


def solved(lesson: int) -> str:
    """The text of a lesson with each exercise and prediction filled in."""
    checks, source = course.checks(lesson), course.read(course.lessons()[lesson])
    module = ast.parse(inspect.getsource(checks))
    lines = source.splitlines()
    for exercise in reversed(checks.exercises.values()):  # from below: the lines above keep their numbers
        stub = grader.node_of(ast.parse(source), exercise["name"])
        answer = written_out(exercise.get("slow", exercise["reference"]), exercise["name"], module)
        lines[stub.lineno - 1 : stub.end_lineno] = answer.splitlines()
    for number, question in enumerate(checks.predictions.values(), 1):
        was = f"predict_{number} = None"
        lines = [line.replace(was, f"predict_{number} = {question['answer']!r}", 1) for line in lines]
    imports = [ast.unparse(n) for n in module.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    return "\n".join([*imports, *lines, ""])


def written_out(function, name: str, module: ast.Module) -> str:
    """A function or class of a check file under another name, with all that it uses from there inside it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    needed, found = [], [tree]
    while found:
        names = {n.id for part in found for n in ast.walk(part) if isinstance(n, ast.Name)}
        found = [node for node in module.body if names & defined(node) and node not in needed]
        found = [node for node in found if getattr(node, "name", "") != getattr(function, "__name__", "")]
        needed = [*found, *needed]
    tree.name, tree.decorator_list = name, []
    helpers = [node for node in needed if not isinstance(node, (ast.Import, ast.ImportFrom))]
    if isinstance(tree, ast.FunctionDef):
        tree.body[:0] = helpers
        return ast.unparse(ast.fix_missing_locations(tree))
    return "\n\n".join(ast.unparse(node) for node in [*helpers, tree])


def defined(node: ast.stmt) -> set[str]:
    """The names that a statement at the top of a file defines."""
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {node.name} if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else set()
