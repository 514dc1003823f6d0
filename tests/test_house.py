"""The house rules: each is a function from a folder to its breaches, that finds none in the project and finds
those that are planted. Guards in other files are tried, too: a test that cannot fail proves nothing."""

import ast
import functools
import importlib
import inspect
import os
import re
import symtable
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import config
import conftest
from conftest import ROOT, TINY
from runtime import folder
from test_errors import report
from test_errors import run as run_here
from text import prepare

ROOMS = ("text", "machine", "runtime", "lab")  # the engine rooms
CORE = ("*.py", "config/*.py", *(f"{room}/*.py" for room in ROOMS))
NOT_TESTS = (*CORE, "techniques/**/*.py", "lessons/**/*.py", "play/*.py")
ALL = (*NOT_TESTS, "tests/**/*.py")
LAYERS = [  # a room, or file at the root, imports its own layer and those above it in this list
    {"config"},
    {"tokenizer", "generate", "machine"},
    {"model", "muon", "optim"},
    {"runtime"},
    {"text"},
    {"data"},
    {"sample", "evaluate"},
    {"train"},
    {"lab", "bench"},
    {"techniques"},
    {"lessons", "play"},
]
PACKAGES = {"torch", "numpy", "tiktoken", "matplotlib"}
SCRIPTS = ("train.py", "data.py", "evaluate.py", "sample.py", "bench.py")


# ---- reading the source
parse = functools.cache(ast.parse)


@functools.cache
def walked(source: str) -> list[ast.AST]:
    """All nodes of a source: several rules look at each of them."""
    return list(ast.walk(parse(source)))


def files(root: Path, patterns: tuple) -> list[tuple[str, str]]:
    """(name, source) of the files of a project, but for this one, which is full of planted breaches."""
    paths = sorted(p for pattern in patterns for p in root.glob(pattern) if p.name != "test_house.py")
    return [(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


def nodes(root: Path, patterns: tuple, *kinds: type) -> list[tuple[str, ast.AST]]:
    """("name:line", node) of each node of these kinds."""
    found = []
    for name, source in files(root, patterns):
        found += [(f"{name}:{n.lineno}", n) for n in walked(source) if isinstance(n, kinds)]
    return found


def room_of(name: str) -> str:
    """train.py -> train, config/tiny.py -> config, techniques/lora.py -> techniques."""
    return name.split("/")[0].removesuffix(".py")


@functools.cache
def imports(source: str) -> list[tuple[str, int, bool]]:
    """(what is imported, line, at once) of each import; `from runtime import guard` is "runtime.guard".

    At once is false in a function or a branch, which may never be reached.
    """
    found = []

    def visit(node: ast.AST, at_once: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.extend((f"{node.module}.{alias.name}", node.lineno, at_once) for alias in node.names)
        later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.If))
        for child in ast.iter_child_nodes(node):
            visit(child, at_once and not later)

    visit(parse(source), True)
    return found


def file_of(imported: str, names) -> str:
    """The file among names that an import reads: "runtime.guard.alone" -> runtime/guard.py; "" if none."""
    parts = imported.split(".")
    for n in (2, 1):
        path = "/".join(parts[:n])
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if len(parts) >= n and file in names:
                return file
    return ""


@functools.cache
def text_of(node: ast.AST) -> str:
    names, inner = [], node  # of a.b.c, as most are: ast.unparse took 5 s of this file
    while isinstance(inner, ast.Attribute):
        names, inner = [inner.attr, *names], inner.value
    whole = ".".join([inner.id, *names]) if isinstance(inner, ast.Name) else ast.unparse(node)
    return whole.removeprefix("self.")


def keyword(call: ast.Call, name: str):
    """The value of a keyword argument, if it is a constant."""
    values = [k.value for k in call.keywords if k.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


# ---- the rules
def directions(root: Path) -> list[str]:
    """Imports go one way (see LAYERS), never in a circle; techniques by __init__, or where a flag asks."""
    layer = {room: i for i, rooms in enumerate(LAYERS) for room in rooms}
    sources = dict(files(root, NOT_TESTS))
    breaches, graph = [], {}
    for name, source in sources.items():
        room = room_of(name)
        if room not in layer:
            breaches.append(f"{name} is a room that LAYERS does not know")
            continue
        for imported, line, at_once in imports(source):
            target = imported.split(".")[0]
            if target not in layer:
                continue
            graph.setdefault(name, set()).add(file_of(imported, sources))
            contract = file_of(imported, sources) == "techniques/__init__.py"  # it imports a file by name
            asked_for = target == "techniques" and (not at_once or contract)
            if layer[target] > layer[room] and not asked_for:
                breaches.append(f"{name}:{line} imports {imported}: the wrong way")

    def below(name: str, seen: tuple) -> None:
        if name in seen:
            breaches.append("a circle of imports: " + " -> ".join((*seen[seen.index(name) :], name)))
            return
        if name in done:
            return
        for target in sorted(graph.get(name, ())):
            if not target.startswith("techniques/"):  # a technique imports the core that imports it
                below(target, (*seen, name))
        done.add(name)

    done: set[str] = set()
    for name in sorted(graph):
        below(name, ())
    return breaches


def packages(root: Path) -> list[str]:
    """Importing a file needs the standard library and four packages; others are imported where needed.

    Tests need pytest, regex (which tiktoken installs) and each other, too. fuzz.py is a program, which one
    test starts if there is atheris.
    """
    known = PACKAGES | sys.stdlib_module_names | set.union(*LAYERS)
    test_modules = {path.stem for path in root.glob("tests/**/*.py")} | {"pytest", "regex"}
    breaches = []
    for name, source in files(root, ALL):
        if name == "tests/chaos/fuzz.py":
            continue
        allowed = known | test_modules if name.startswith("tests/") else known
        for module, line, at_once in imports(source):
            if at_once and module.split(".")[0] not in allowed:
                breaches.append(
                    f"{name}:{line} imports {module}, which is not required; do it where it is needed"
                )
    return breaches


def budgets(root: Path) -> list[str]:
    """A file that outgrows its size holds an idea that needs a room of its own."""
    budget = {"train.py": 340, "model.py": 340}
    breaches = []
    for name, source in files(root, NOT_TESTS):
        most = 220 if name.startswith("techniques/") else budget.get(name, 300)
        if name.startswith("lessons/"):
            most = 250 if name[8].isdigit() else 300
        if (lines := source.count("\n")) > most:
            breaches.append(f"{name} has {lines} lines, {most} at most")
    return breaches


def no_pickle(root: Path) -> list[str]:
    """Nothing that is loaded can run code."""
    breaches = []
    for where, node in nodes(root, ALL, ast.Call):
        name = text_of(node.func)
        if name.endswith("torch.load") and keyword(node, "weights_only") is not True:
            breaches.append(f"{where} torch.load without weights_only=True")
        if keyword(node, "allow_pickle"):
            breaches.append(f"{where} allow_pickle")
    for where, node in nodes(root, ALL, ast.ImportFrom):
        if node.module == "torch" and "load" in {alias.name for alias in node.names}:
            breaches.append(f"{where} imports torch.load by its name alone: write torch.load(...)")
    unsafe = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for name, source in files(root, NOT_TESTS):
        breaches += [f"{name}:{line} {m}" for m, line, _ in imports(source) if m.split(".")[0] in unsafe]
    return breaches


def utf8(root: Path) -> list[str]:
    """Text files name their encoding: on Windows and in the C locale the default is another."""
    breaches = []
    for where, node in nodes(root, ALL, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("open", "fdopen"):
            called = text_of(node.func)
            place = (
                1 if called in ("open", "io.open", "os.fdopen") else 0
            )  # open(path, mode), path.open(mode)
            mode = node.args[place] if len(node.args) > place else None
            mode = mode.value if isinstance(mode, ast.Constant) else keyword(node, "mode") or "r"
            is_text = "b" not in mode and called != "os.open"
        elif name in ("NamedTemporaryFile", "TemporaryFile"):
            mode = node.args[0].value if node.args else keyword(node, "mode") or "w+b"
            is_text = "b" not in mode
        else:
            is_text = name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute)
        if is_text and keyword(node, "encoding") != "utf-8":
            breaches.append(f'{where} {name} without encoding="utf-8"')
    return breaches


def no_workers(root: Path) -> list[str]:
    """No worker processes: they break on Windows; memory-mapped files and threads do without them."""
    workers = ("multiprocessing", "torch.multiprocessing", "torch.utils.data")
    breaches = [
        f"{name}:{line} {module}"
        for name, source in files(root, CORE)
        for module, line, _ in imports(source)
        if module.startswith(workers)
    ]
    for where, node in nodes(root, CORE, ast.Attribute):
        if text_of(node) in ("torch.multiprocessing", "torch.utils.data", "os.fork"):
            breaches.append(f"{where} {text_of(node)}")
    for where, node in nodes(root, CORE, ast.Attribute, ast.alias):
        name = node.attr if isinstance(node, ast.Attribute) else node.name
        if name.startswith("ProcessPool") or name == "concurrent.futures.process":
            breaches.append(f"{where} {name}")
    return breaches


def portable(root: Path) -> list[str]:
    """No path of one machine, and no edits of sys.path (techniques are run as modules)."""
    roots = "home root work tmp mnt Users data opt usr var srv".replace(" ", "|")
    path = re.compile(rf"(?<![\w./:*-])/({roots})/\w|\b[A-Z]:\\\\?\w")
    breaches = [
        f"{name}:{number} an absolute path"
        for name, source in files(root, (*ALL, "*.md", "techniques/*.md", "lessons/**/*.md"))
        for number, line in enumerate(source.splitlines(), 1)
        if path.search(line)
    ]
    for where, node in nodes(root, ALL, ast.Call, ast.Assign, ast.AugAssign):
        changed = getattr(node, "targets", None) or [getattr(node, "target", None) or node.func]
        edits = any(text_of(target).startswith(("sys.path", "site.addsitedir")) for target in changed)
        if edits and not where.startswith("tests/forks.py"):  # which sets it as Python does for a script
            breaches.append(f"{where} edits sys.path")
    return breaches


def unused_settings(root: Path) -> list[str]:
    """A setting that nothing reads is a promise that nothing keeps. Checking its value is not reading it.

    A setting is read where its name is loaded as a global of its script, or as config["name"] there or in a
    module that the script hands its config to, where it may be called settings, too. Where a function or
    class gets settings by ** from either, those are read whose parameter or field is.
    """
    sources = dict(files(root, CORE))
    breaches = []
    for name, source in sources.items():
        if "/" in name or "override(globals())" not in source:
            continue
        settings = config.read_comments(str(root / name))
        read = globals_read(source) | keys_read(source) | starred_read(name, sources)
        for call, home, _ in calls(name, sources):
            if any(is_config(value) for value in [*call.args, *(k.value for k in call.keywords if k.arg)]):
                read |= keys_read(sources[home]) | starred_read(home, sources)
        breaches += [f"{name}: nothing reads the setting {setting}" for setting in settings.keys() - read]
    return breaches


def calls(name: str, sources: dict) -> list[tuple[ast.Call, str, str]]:
    """(call, file that defines what is called, function) of each call of something of ours in a file."""
    found = []
    for call in (node for node in walked(sources[name]) if isinstance(node, ast.Call)):
        module, _, function = text_of(call.func).rpartition(".")
        if home := defined_in(module or function, name, sources):
            found.append((call, home, function))
    return found


def starred_read(name: str, sources: dict) -> set[str]:
    """The parameters and fields that are read of all that a file calls with **."""
    read = set()
    for call, home, function in calls(name, sources):
        if any(k.arg is None for k in call.keywords):
            read |= parameters_read(sources[home], function)
    return read


def globals_read(source: str) -> set[str]:
    """Names that are loaded as globals of a script, at its level or in its functions."""
    found, tables = set(), [symtable.symtable(source, "script", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        top = table.get_type() == "module"
        found |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (top or s.is_global())}
    return found


def without_checks(tree: ast.AST):
    """The nodes of a tree, but for calls that only check a value."""
    if isinstance(tree, ast.Call) and text_of(tree.func) in ("at_least", "require"):
        return
    yield tree
    for child in ast.iter_child_nodes(tree):
        yield from without_checks(child)


@functools.cache
def keys_read(source: str) -> set[str]:
    found = set()
    for node in without_checks(parse(source)):
        if isinstance(node, ast.Subscript) and text_of(node.value) in ("config", "settings"):
            found.add(getattr(node.slice, "value", ""))
        elif isinstance(node, ast.Call) and text_of(node.func) in ("config.pop", "config.get"):
            found.add(getattr(node.args[0], "value", ""))
    return found


def is_config(value: ast.AST) -> bool:
    """config itself, {**config, ...}, or train.py's name for that."""
    parts = value.values if isinstance(value, ast.Dict) else [value]
    return any(isinstance(part, ast.Name) and part.id in ("config", "resolved") for part in parts)


@functools.cache
def names_of(source: str) -> dict[str, str]:
    """{name: the import that it stands for, or "" for a function or class of the file itself}."""
    found = {n.name: "" for n in parse(source).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def defined_in(called: str, name: str, sources: dict) -> str:
    """The file of a module or function by the name that a file knows it by; "" if it is not ours."""
    imported = names_of(sources[name]).get(called)
    return name if imported == "" else file_of(imported or "", sources)


def parameters_read(source: str, function: str) -> set[str]:
    """The parameters of a function that its body reads, or the fields of a class that its module reads."""
    tree = parse(source)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            names = {a.arg for a in [*node.args.args, *node.args.kwonlyargs]}
            inside = [n for statement in node.body for n in without_checks(statement)]
            return names & {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        if isinstance(node, ast.ClassDef) and node.name == function:
            names = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
            attributes = [n for n in without_checks(tree) if isinstance(n, ast.Attribute)]
            return names & {n.attr for n in attributes if isinstance(n.ctx, ast.Load)}
    return set()


def docstrings(root: Path) -> list[str]:
    """Public functions and classes of more than five lines say what they do."""
    breaches = []
    for name, source in files(root, (*CORE, "techniques/**/*.py")):
        for node in parse(source).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                if node.end_lineno - node.lineno >= 5 and not ast.get_docstring(node):
                    breaches.append(f"{name}:{node.lineno} {node.name} has no docstring")
        if not name.startswith("config/") and not ast.get_docstring(parse(source)):
            breaches.append(f"{name} has no docstring")
    return breaches


def settings_have_comments(root: Path) -> list[str]:
    """-h shows the comment of each setting."""
    return [
        f"{name}: the setting {setting} has no comment"
        for name, source in files(root, ("*.py",))
        if "override(globals())" in source
        for setting, comment in config.read_comments(str(root / name)).items()
        if not comment
    ]


def readme_names_all(root: Path) -> list[str]:
    """Every file and folder of code is on the README's map."""
    if not (root / "README.md").is_file():
        return []
    text = (root / "README.md").read_text(encoding="utf-8")
    names = {path.name for path in root.glob("*.py")} | {
        f"{path.parent.name}/" for path in root.glob("*/*.py")
    }
    return [f"README.md does not mention {name}" for name in sorted(names) if name not in text]


RULES = [
    directions,
    packages,
    budgets,
    no_pickle,
    utf8,
    no_workers,
    portable,
    unused_settings,
    docstrings,
    settings_have_comments,
    readme_names_all,
]
SCRIPT = '"""A script."""\n{}\nconfig = override(globals())\n'
SEED = SCRIPT.format("seed = 1  # number")
# the rule, a file with a breach, its source
BREACHES = [
    (directions, "model.py", "import train"),
    (directions, "tokenizer.py", "from data import Windows"),
    (directions, "runtime/guard.py", "from text import corpora"),
    (directions, "machine/hardware.py", "import model"),
    (directions, "text/corpora.py", "from data import Windows"),
    (directions, "data.py", "import evaluate"),
    (directions, "lab/measure.py", "from lessons.course import text"),
    (directions, "config/tiny.py", "import model"),
    (directions, "optim.py", "def f():\n    import train"),
    (directions, "train.py", "import techniques.lora"),
    (directions, "train.py", "def f():\n    from lessons import l01"),
    (directions, "techniques/lora.py", "from lessons.l01 import f"),
    (directions, "extra.py", "x = 1"),
    (packages, "model.py", "import einops"),
    (packages, "runtime/report.py", "try:\n    import wandb\nexcept ImportError:\n    wandb = None"),
    (packages, "techniques/lora.py", "from transformers import AutoModel"),
    (packages, "model.py", "import pytest"),
    (packages, "tests/test_model.py", "import transformers"),
    (packages, "tests/chaos/test_fuzz.py", "from hypothesis import given"),
    (budgets, "train.py", "x = 1\n" * 341),
    (budgets, "model.py", "x = 1\n" * 341),
    (budgets, "optim.py", "x = 1\n" * 301),
    (budgets, "techniques/lora.py", "x = 1\n" * 221),
    (budgets, "lessons/01_x.py", "x = 1\n" * 251),
    (budgets, "lessons/run.py", "x = 1\n" * 301),
    (budgets, "lessons/checks/x.py", "x = 1\n" * 301),
    (no_pickle, "sample.py", "import torch\nx = torch.load('x.pt')"),
    (no_pickle, "sample.py", "import torch\nx = torch.load('x.pt', weights_only=False)"),
    (no_pickle, "sample.py", "import torch\nx = torch.load('x.pt', weights_only=flag)"),
    (no_pickle, "tests/test_sample.py", "import torch\nx = torch.load('x.pt')"),
    (no_pickle, "sample.py", "from torch import load"),
    (no_pickle, "tokenizer.py", "def f():\n    import pickle"),
    (no_pickle, "data.py", "import numpy as np\nx = np.load('x.npy', allow_pickle=True)"),
    (utf8, "data.py", "open('x')"),
    (utf8, "data.py", "open('x', 'w', encoding='latin-1')"),
    (utf8, "data.py", "Path('x').open('a')"),
    (utf8, "data.py", "Path('x').read_text()"),
    (utf8, "tests/test_data.py", "Path('x').write_text('x', newline='')"),
    (utf8, "data.py", "tempfile.NamedTemporaryFile('w')"),
    (no_workers, "data.py", "from multiprocessing import Pool"),
    (no_workers, "data.py", "from concurrent.futures import ProcessPoolExecutor"),
    (no_workers, "data.py", "import concurrent.futures as f\nx = f.ProcessPoolExecutor()"),
    (no_workers, "data.py", "def f():\n    from torch.utils.data import DataLoader"),
    (no_workers, "data.py", "import torch\nx = torch.utils.data.DataLoader([], num_workers=2)"),
    (portable, "train.py", "folder = '/home/me/runs'"),
    (portable, "README.md", "python train.py --out_dir=/tmp/run"),
    (portable, "train.py", "folder = 'C:\\\\runs'"),
    (portable, "train.py", "import sys\nsys.path.insert(0, '.')"),
    (portable, "techniques/lora.py", "import sys\nsys.path += ['..']"),
    (unused_settings, "train.py", SCRIPT.format("dropout = 0.1  # share")),
    (unused_settings, "train.py", SEED + "at_least(0, config, 'seed')\n"),
    (unused_settings, "train.py", SEED + "def f(seed):\n    return seed\n"),
    (unused_settings, "train.py", SEED + "require(config['seed'] > 0, 'seed')\n"),
    (unused_settings, "train.py", SEED + "def f(seed):\n    pass\n\nf(**config)\n"),
    (docstrings, "model.py", '"""Models."""\ndef f():\n' + "    x = 1\n" * 6),
    (docstrings, "model.py", "x = 1"),
    (settings_have_comments, "train.py", SCRIPT.format("seed = 1")),
    (readme_names_all, "README.md", "config/ is on the map"),
]
for room in (*ROOMS, "techniques"):  # what holds at the root holds in each folder
    file = f"{room}/new.py"
    BREACHES += [
        (packages, file, "import einops"),
        (budgets, file, "x = 1\n" * 301),
        (no_pickle, file, "def f():\n    import pickle"),
        (no_pickle, file, "import torch\nx = torch.load('x.pt')"),
        (utf8, file, "open('x')"),
        (portable, file, "folder = '/home/me/runs'"),
        (directions, file, "import lessons.run"),
        (docstrings, file, '"""New."""\ndef f():\n' + "    x = 1\n" * 6),
    ]
    if room in ROOMS:
        BREACHES.append((no_workers, file, "from multiprocessing import Pool"))
# what comes near to a breach and is none
ALLOWED = [
    (directions, "train.py", "lora = 1\nif lora:\n    from techniques.lora import add\nimport data, sample"),
    (directions, "lessons/run.py", "import train\nimport techniques.lora\nimport lessons.l01"),
    (packages, "runtime/report.py", "import os, torch.nn\n\n\ndef f():\n    import wandb"),
    (packages, "tests/test_model.py", "import pytest, test_model, model\n\n\ndef f():\n    import wandb"),
    (no_pickle, "sample.py", "import torch\nx = torch.load('x.pt', weights_only=True, mmap=True)"),
    (no_workers, "text/formats.py", "from concurrent.futures import ThreadPoolExecutor"),
    (utf8, "data.py", "open('x', 'rb')\nPath('x').open('wb')\nopen('x', encoding='utf-8')"),
    (portable, "README.md", "see https://example.com/data/x and ../shared/data/x.txt"),
    (unused_settings, "train.py", SEED + "print(config['seed'])\n"),
    (unused_settings, "train.py", SEED + "def f():\n    return seed\n"),
    (unused_settings, "train.py", SEED + "def f(seed):\n    print(seed)\n\nf(**config)\n"),
    (docstrings, "model.py", '"""Models."""\ndef f():\n    return 1\n\ndef _g():\n' + "    x = 1\n" * 6),
]


def plant(root: Path, name: str, source: str) -> None:
    """A project of one file; for the README, one that has two more."""
    for path, text in {"model.py": "", "config/tiny.py": "", name: source}.items():
        if path == name or name == "README.md":
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")


def labels(rows: list) -> list[str]:
    return [f"{rule.__name__}-{i}" for i, (rule, *_) in enumerate(rows)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps(rule):
    assert rule(ROOT) == []


@pytest.mark.parametrize(("rule", "name", "source"), BREACHES, ids=labels(BREACHES))
def test_a_planted_breach_is_found(tmp_path, rule, name, source):
    plant(tmp_path, name, source)
    found = rule(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(name)


@pytest.mark.parametrize(("rule", "name", "source"), ALLOWED, ids=labels(ALLOWED))
def test_what_is_allowed_is_not_found(tmp_path, rule, name, source):
    plant(tmp_path, name, source)
    assert rule(tmp_path) == []


def test_a_circle_of_imports_is_found(tmp_path):
    (tmp_path / "model.py").write_text("def f():\n    import optim", encoding="utf-8")
    (tmp_path / "optim.py").write_text("import model", encoding="utf-8")
    assert "a circle of imports: model.py -> optim.py -> model.py" in directions(tmp_path)


def test_a_circle_inside_a_folder_is_found(tmp_path):
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime/guard.py").write_text("from runtime.trust import read", encoding="utf-8")
    (tmp_path / "runtime/trust.py").write_text("from runtime import guard", encoding="utf-8")
    circle = "a circle of imports: runtime/guard.py -> runtime/trust.py -> runtime/guard.py"
    assert directions(tmp_path) == [circle]


def test_every_rule_has_a_planted_breach():
    assert {rule for rule, *_ in BREACHES} == set(RULES)


def test_a_setting_counts_as_read_in_a_module_that_gets_the_config(tmp_path):
    plant(tmp_path, "train.py", SEED + "import optim\noptim.build({**config})\n")
    assert len(unused_settings(tmp_path)) == 1
    (tmp_path / "optim.py").write_text("def build(config):\n    return config['seed']\n", encoding="utf-8")
    assert unused_settings(tmp_path) == []


# ---- the scripts, as people start them
@pytest.mark.slow
def test_help_from_another_folder(shell, tmp_path):
    with ThreadPoolExecutor() as pool:
        done = pool.map(lambda script: shell(str(ROOT / script), "-h", cwd=tmp_path), SCRIPTS)
    for script, result in zip(SCRIPTS, done, strict=True):
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        for setting in config.read_comments(str(ROOT / script)):
            assert f"  --{setting}=" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_runs_are_found_from_any_folder(run_script, tmp_path, monkeypatch, capsys):
    """A relative out_dir lies in the project's folder, wherever a script is started."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(folder, "ROOT", tmp_path)
    run_script("train.py", "--dataset=small", *TINY, "--max_iters=2", "--out_dir=out-here")
    run_script("sample.py", "--out_dir=out-here", "--max_new_tokens=5")
    run_script("evaluate.py", "--out_dir=out-here")
    run_script("train.py", "--max_iters=3", "--out_dir=out-here", "--init_from=resume")
    assert "val split of small: loss" in capsys.readouterr().out
    assert (tmp_path / "out-here/best.pt").is_file()
    assert list(elsewhere.iterdir()) == []


# what is missing, the command that misses it, the command that makes it
MISSING = [
    ("a dataset", "train.py --dataset=mine", "python data.py --input=FILE --name=mine"),
    ("a run to go on with", "train.py --init_from=resume", "python train.py"),
    ("a run to start from", "train.py --init_from=out-base", "python train.py"),
    ("a run to sample from", "sample.py", "python train.py"),
    ("a run to evaluate", "evaluate.py", "python train.py"),
]


@pytest.mark.parametrize(("what", "command", "remedy"), MISSING, ids=[row[0] for row in MISSING])
def test_a_missing_input_names_the_command_that_makes_it(
    tmp_path, monkeypatch, capsys, run_script, what, command, remedy
):
    script, *arguments = command.split()
    with pytest.raises(ValueError) as caught:
        run_here(monkeypatch, tmp_path, script, [*arguments, f"--out_dir={tmp_path / 'out'}"])
    assert report(caught.value) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert remedy in err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_known_dataset_names_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "DATASETS", tmp_path)
    with pytest.raises(ValueError, match="run: python data.py --name=verse"):
        prepare.folder_of("verse")


@pytest.mark.slow
def test_an_emoji_is_printed_in_the_c_locale(run_script, datasets, tmp_path, shell):
    """Also where Python does not switch to UTF-8 by itself, as in a pipe on Windows."""
    (tmp_path / "emoji.txt").write_text("caf\u00e9 \U0001f600 " * 400, encoding="utf-8")
    prepare.prepare("emoji", str(tmp_path / "emoji.txt"))
    run_script("train.py", "--dataset=emoji", *TINY, "--max_iters=2", "--start=\U0001f600")
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    flags = (f"--out_dir={tmp_path / 'out'}", "--start=\U0001f600 caf\u00e9", "--max_new_tokens=20")
    done = shell(str(ROOT / "sample.py"), *flags, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "\n\U0001f600 caf\u00e9" in done.stdout


# ---- planted mistakes: with a line changed into what others got wrong, the test that guards it has to fail.
# The mistake, its file, the line as it is, the line with the mistake, the guard, its values but fixtures.
CACHED = {"arch": "modern", "sampler": {"temperature": 0.8}}
SEVEN_HEADS = {"n_embd": 256, "n_head": 7}
MISTAKES = [
    ("a bool is taken for a number", "config/__init__.py",
     "if type(value) is not type(default):", "if False:",
     "test_config.test_a_bad_config_file_is_one_line", {"text": "max_iters = True", "message": "is a bool"}),
    ("an impossible shape passes", "config/_shape.py", "require(a % (b * unit) == 0,", "require(True,",
     "test_model.test_impossible_shapes_name_the_nearest_possible_one",
     {"wrong": SEVEN_HEADS, "message": "n_embd=256 is not divisible by n_head=7; 8 works"}),
    ("validation text in the training text", "text/prepare.py", '{"train": totals[0] - sum(shares.values()),',
     '{"train": totals[0],', "test_data.test_split_is_contiguous", {}),
    ("the last window is lost", "data.py", "-(-(self.n_tokens - 1) // block_size)",
     "(self.n_tokens - 1) // block_size", "test_data.test_lengths_around_block_size", {"block_size": 7}),
    ("the mask is one place off", "data.py", "self.masks[places[filled]]", "self.masks[places[filled] - 1]",
     "test_data.test_mask_reaches_the_batch", {}),
    ("every rank reads the same", "data.py", "micro_step) * world_size + rank)", "micro_step) * world_size)",
     "test_data.test_the_same_windows_however_divided", {}),
    ("micro-steps are added, not averaged", "train.py", "nats / max(targets, 1)",
     "nats / max(int((y != -1).sum()), 1)", "test_train.test_one_large_batch_equals_four_small_ones", {}),
    ("clipped before it is unscaled", "train.py", "    scaler.unscale_(opt)\n", "",
     "test_train.test_clipping_happens_after_backward_and_before_the_step", {}),
    ("the first learning rate is 0", "optim.py",
     "return learning_rate * (step + 1) / (warmup_iters + 1)", "return learning_rate * step / warmup_iters",
     "test_optim.test_never_0_before_the_end_and_never_above_learning_rate", {}),
    ("one update too many", "train.py",
     "if progress.step >= max_iters or", "if progress.step > max_iters or",
     "test_train.test_exactly_max_iters_updates_happen_and_are_saved", {}),
    ("a NaN is stepped over", "runtime/guard.py", "if not cause:", "if True:",
     "test_train.test_a_nan_makes_no_step_and_keeps_the_last_good_file", {}),
    ("a short run saves nothing", "train.py", 'save("ckpt.pt")\nsaver.wait()', "saver.wait()",
     "test_checkpoint.test_a_run_shorter_than_every_interval_still_saves", {}),
    ("the best is overwritten", "runtime/origin.py",
     "lowest = val_loss < self.best_val_loss", "lowest = True",
     "test_train.test_best_holds_the_weights_of_the_lowest_val_loss", {}),
    ("a resumed run reads the first batches again", "train.py",
     "train_windows.batch(progress.step, batch_size",
     'train_windows.batch(progress.step - saved.get("step", 0), batch_size',
     "test_checkpoint.test_a_resumed_run_reads_the_batches_that_would_have_come", {}),
    ("eval_only writes", "runtime/report.py",
     'self.write = main and not config["eval_only"]', "self.write = main",
     "test_train.test_eval_only_writes_nothing", {}),
    ("the wrapper is saved", "train.py", "saver.save(name, state, raw_model, opt)",
     "saver.save(name, state, model, opt)",
     "test_checkpoint.test_wrapped_and_plain_runs_save_the_same_keys", {}),
    ("a checkpoint can run code", "runtime/checkpoint.py", 'map_location="cpu", weights_only=True',
     'map_location="cpu", weights_only=False', "test_checkpoint.test_a_file_cannot_run_code", {}),
    ("cached positions begin at 0", "generate.py", "torch.arange(start, start + T,", "torch.arange(T,",
     "test_model.test_cached_equals_uncached", CACHED),
    ("tokens see the future", "model.py", "mask, causal = None, True", "mask, causal = None, False",
     "test_model.test_causal", {"arch": "modern"}),
    ("the pattern is not loaded", "tokenizer.py", "(tokens, special, pattern, **fields)",
     "(tokens, special, **fields)", "test_tokenizer.test_another_pattern_is_kept", {}),
    ("luck decides ties", "tokenizer.py", "sorted((-count, pair) for pair, count in counts.items())",
     "[(-count, pair) for pair, count in counts.items()]",
     "test_tokenizer.test_ties_go_to_the_smallest_pair_of_ids", {}),
    ("LoRA is scaled by alpha", "techniques/lora.py",
     'alpha / (math.sqrt(rank) if variant == "rslora" else rank)', "alpha",
     "test_lora.test_a_layer_computes_what_the_papers_write", {"variant": "", "bias": False}),
    ("adapters on a frozen base lose their gradient", "model.py",
     "checkpoint(block, x, rope, use_reentrant=False)", "checkpoint(block, x, rope, use_reentrant=True)",
     "test_lora.test_gradient_checkpointing_keeps_the_gradients_of_adapters", {"variant": ""}),
    ("characters are broken in the stream", "sample.py", "decoder.decode(tokenizer.decode_bytes([token]))",
     "tokenizer.decode([token])", "test_sample.test_streamed_text_is_the_whole_text_for_any_bytes", {}),
]  # fmt: skip


def guard_with(request, tmp_path, monkeypatch, file: str, source: str, guard: str, values: dict):
    """A guard, ready to be called, that sees `source` in the place of a file of the project."""
    tree = tmp_path / "tree"
    (tree / file).parent.mkdir(parents=True)
    (tree / file).write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tree)
    monkeypatch.setattr(conftest, "ROOT", tree if file == "train.py" else ROOT)  # of what run_script runs
    module, name = guard.split(".")
    planted = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if "." in planted:  # a file in a room: the room looks for it in `tree` first
        room, _, stem = planted.partition(".")
        package = importlib.import_module(room)
        monkeypatch.setattr(package, "__path__", [str(tree / room), *package.__path__])
        monkeypatch.delattr(package, stem, raising=False)
    holders = {"generate": "model", "config._shape": "model", "text.prepare": "data"}  # of the old one
    importer = holders.get(planted, module)
    for fresh in (planted, importer, module):
        if fresh in sys.modules:
            monkeypatch.delitem(sys.modules, fresh)  # it is imported anew now, and comes back after the test
    function = getattr(importlib.import_module(module), name)
    monkeypatch.setattr(importlib.import_module("text.prepare"), "DATASETS", tmp_path / "datasets")
    names = inspect.signature(function).parameters
    values = {name: values[name] if name in values else request.getfixturevalue(name) for name in names}
    return lambda: function(**values)


SLOW = {  # their guards train several times, or for long
    "micro-steps are added, not averaged",
    "clipped before it is unscaled",
    "a NaN is stepped over",
    "the best is overwritten",
    "a resumed run reads the first batches again",
    "eval_only writes",
    "the wrapper is saved",
    "LoRA is scaled by alpha",
    "adapters on a frozen base lose their gradient",
}


@pytest.mark.parametrize(
    "mistake",
    [pytest.param(row, id=row[0], marks=pytest.mark.slow if row[0] in SLOW else ()) for row in MISTAKES],
)
def test_a_planted_mistake_is_caught(request, tmp_path, monkeypatch, mistake):
    _, file, right, wrong, guard, values = mistake
    source = (ROOT / file).read_text(encoding="utf-8")
    assert source.count(right) == 1, f"{file} has changed: bring the list of mistakes up to date"
    call = guard_with(request, tmp_path, monkeypatch, file, source.replace(right, wrong), guard, values)
    with pytest.raises((Exception, pytest.fail.Exception)):  # noqa: B017 (whatever it leads to)
        call()


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_its_guard_passes_without_the_mistake(request, tmp_path, monkeypatch, mistake):
    _, file, _, _, guard, values = mistake
    source = (ROOT / file).read_text(encoding="utf-8")
    guard_with(request, tmp_path, monkeypatch, file, source, guard, values)()
