"""One-place changes of a function: does a check notice each of them?"""

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable, Iterator

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


def trees(tree: ast.AST) -> Iterator[ast.AST]:
    """The tree again and again, with one place changed; it is put right after each."""
    for parent in list(ast.walk(tree)):
        for field, place, child in list(children(parent)):
            if (
                isinstance(child, ast.stmt)
                and field in ("body", "orelse")
                and not isinstance(child, ast.Return)
            ):
                replacements = [ast.Pass()] if not isinstance(child, (ast.FunctionDef, ast.Pass)) else []
            elif isinstance(child, ast.expr):
                strict = isinstance(parent, ast.keyword) and parent.arg == "strict"
                replacements = [] if strict else list(changes(child))
            else:
                replacements = []
            for replacement in replacements:
                put(parent, field, place, replacement)
                yield tree
                put(parent, field, place, child)


def mutants(function: Callable) -> Iterator[tuple[str, Callable]]:
    """("line as it is => line as it is now", the changed function)."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    definition.decorator_list = []
    if ast.get_docstring(definition):
        definition.body = definition.body[1:]
    before, seen = ast.unparse(tree).splitlines(), set()
    for changed in trees(copy.deepcopy(tree)):
        try:
            source = ast.unparse(changed)
            code = compile(source, "mutant", "exec")
        except (SyntaxError, ValueError, TypeError, AttributeError):
            continue  # no Python: an assignment to a number, say
        if source in seen or source.splitlines() == before:
            continue
        seen.add(source)
        was, now = next(
            (a, b) for a, b in zip([*before, ""], [*source.splitlines(), ""], strict=False) if a != b
        )
        namespace = dict(inspect.unwrap(function).__globals__)
        exec(code, namespace)
        yield f"{was.strip()} => {now.strip()}", namespace[definition.name]
