"""Changes of a function in one place or two: does a check notice each of them?"""

import ast
import functools
import inspect
import itertools
import random
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence

SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What could stand in the place of an expression: another operator, a number beside it, a part of it."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, (int, float)):
            yield from (ast.Constant(node.value + 1), ast.Constant(node.value - 1))
    elif isinstance(node, ast.BinOp):
        if type(node.op) in SWAPS:
            yield ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
        yield from (node.left, node.right)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(SWAPS[type(node.op)](), node.values)
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield ast.Compare(node.left, [SWAPS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.Call):
        if len(node.args) == 2 and not any(isinstance(a, ast.Starred) for a in node.args):
            yield ast.Call(node.func, node.args[::-1], node.keywords)
        for i in range(len(node.keywords)):
            if node.keywords[i].arg == "strict":
                continue  # only ever raises
            yield ast.Call(node.func, node.args, node.keywords[:i] + node.keywords[i + 1 :])
        if isinstance(node.func, ast.Attribute) and node.func.attr != "tolist":  # a loop runs over both
            yield node.func.value  # x.exp() -> x
        elif node.args:
            yield node.args[0]  # f(x) -> x
    elif isinstance(node, ast.Slice):
        if node.lower:
            yield ast.Slice(None, node.upper, node.step)
        if node.upper:
            yield ast.Slice(node.lower, None, node.step)
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)


def children(node: ast.AST) -> Iterator[tuple]:
    """(field, place in its list or None, child) of each child."""
    for field, value in ast.iter_fields(node):
        if isinstance(value, list):
            yield from ((field, i, child) for i, child in enumerate(value) if isinstance(child, ast.AST))
        elif isinstance(value, ast.AST):
            yield field, None, value


def put(node: ast.AST, field: str, place, value) -> None:
    if place is None:
        setattr(node, field, value)
    else:
        getattr(node, field)[place] = value


def edits(tree: ast.AST) -> list[tuple]:
    """(parent, field, place, what stands there, what could) of each one-place change of a tree."""
    found = []
    for parent in ast.walk(tree):
        for field, place, child in children(parent):
            statement = isinstance(child, ast.stmt) and field in ("body", "orelse")
            strict = isinstance(parent, ast.keyword) and parent.arg == "strict"
            replacements = []
            if statement and not isinstance(child, (ast.Return, ast.FunctionDef, ast.Pass)):
                replacements = [ast.Pass()]
            elif isinstance(child, ast.expr) and not strict:
                replacements = changes(child)
            found += [(parent, field, place, child, replacement) for replacement in replacements]
    return found


def mutants(function: Callable, places: int = 1, most: int = 0) -> Iterator[tuple[str, Callable]]:
    """("line as it is => line as it is now", the changed function) of each change.

    places: how many are changed at once: 1, or 2, then the two changes stand in one description.
    most: that many, drawn with a fixed seed; 0: all. What is the same source again is left out.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    definition.decorator_list = []
    if ast.get_docstring(definition):
        definition.body = definition.body[1:]
    before = ast.unparse(tree).splitlines()
    found, seen = edits(tree), {"\n".join(before)}
    choices = [[edit] for edit in found]
    if places == 2:
        seen |= {source for source, _ in map(functools.partial(written, tree), choices)}
        choices = [pair for pair in itertools.combinations(found, 2) if pair[0][:3] != pair[1][:3]]
        random.Random(0).shuffle(choices)
    made = 0
    for choice in choices:
        source, code = written(tree, choice)
        if code is None or source in seen or made == most > 0:
            continue
        seen.add(source)
        made += 1
        namespace = dict(inspect.unwrap(function).__globals__)
        exec(code, namespace)
        yield described(before, source.splitlines()), namespace[definition.name]


def written(tree: ast.AST, choice: Sequence[tuple]) -> tuple[str, types.CodeType | None]:
    """The source of a tree with these edits, and its code; None if it is no Python (a number assigned to)."""
    for parent, field, place, _, replacement in choice:
        put(parent, field, place, replacement)
    try:
        source = ast.unparse(tree)
        return source, compile(source, "mutant", "exec")
    except (SyntaxError, ValueError, TypeError, AttributeError):
        return "", None
    finally:
        for parent, field, place, child, _ in reversed(choice):
            put(parent, field, place, child)


def described(before: list[str], after: list[str]) -> str:
    """The lines that differ; where one has gone or come, the first of them alone."""
    pairs = [(a, b) for a, b in zip([*before, ""], [*after, ""], strict=False) if a != b]
    if len(before) != len(after):
        pairs = pairs[:1]
    return "; ".join(f"{was.strip()} => {now.strip()}" for was, now in pairs)
