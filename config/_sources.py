"""What a script's source says about its settings: their names, defaults and comments. Nothing is run.

A technique is a file in techniques/ that has one of the HOOKS. Its settings stand at the top, and their names
begin with the file's: quantize, lora_rank. What else stands there is for its command, python -m techniques.X.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from config._errors import ROOT

TECHNIQUES = ROOT / "techniques"
HOOKS = ("change_model", "change_data", "loss", "after_step", "after_save")  # see techniques/__init__.py


def read_comments(path: str) -> dict[str, str]:
    """The trailing comment of each setting of a script, read from its source: {name: comment}."""
    source = Path(path).read_text(encoding="utf-8")
    lines = source.encode("utf-8").split(b"\n")  # ast counts columns in bytes
    comments = {}
    for node in setting_lines(source):
        after = lines[node.end_lineno - 1][node.end_col_offset :]
        comments[node.targets[0].id] = after.decode("utf-8").lstrip("# ")
    return comments


def defaults_of(script: str) -> dict:
    """The settings of a script with their defaults, without running it. script: a path in the project."""
    source = (ROOT / script).read_text(encoding="utf-8")
    return {node.targets[0].id: ast.literal_eval(node.value) for node in setting_lines(source)}


def setting_lines(source: str) -> Iterator[ast.Assign]:
    """The assignments `name = default` that are settings: see override()."""
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) or "override(" in ast.unparse(node):
            return
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name.islower() and not name.startswith("_"):
                yield node


@functools.cache
def technique_settings() -> dict[str, dict]:
    """The settings of each technique with their defaults: {"lora": {"lora_rank": 8, ...}, ...}."""
    found = {}
    for path in sorted(TECHNIQUES.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name in HOOKS for node in tree.body):
            name, defaults = path.stem, defaults_of(str(path))
            own = [key for key in defaults if key == name or key.startswith(f"{name}_")]
            found[name] = {key: defaults[key] for key in own}
    return found


def training_settings() -> dict:
    """The settings of train.py and of all techniques, with their defaults."""
    defaults = defaults_of("train.py")
    for own in technique_settings().values():
        defaults |= own
    return defaults


def comments_of_techniques() -> dict[str, str]:
    """The comment of each setting of each technique: {"lora_rank": ..., ...}."""
    comments = {}
    for name, settings in technique_settings().items():
        own = read_comments(str(TECHNIQUES / f"{name}.py"))
        comments |= {key: own[key] for key in settings}
    return comments
