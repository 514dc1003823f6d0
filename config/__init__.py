"""Settings: typed globals at the top of a script, changed by config files and by --key=value.

    python train.py config/shakespeare_char.py --max_iters=100 --eval_only

Each script calls `config = override(globals())` once, below its settings. The idea is nanoGPT's configurator
(Karpathy, 2022). Here no config file runs inside the script, types are kept, and a misspelt name is an error.
"""

import ast
import copy
import difflib
import os
import re
import runpy
import symtable
import sys
from pathlib import Path
from types import ModuleType

from config import _nanogpt
from config._errors import (  # noqa: F401 (others import them from here)
    ROOT,
    at_end,
    end_script,
    in_notebook,
    is_out_of_memory,
    leave,
    names_here,
    one_line_errors,
    set_excepthook,
    start_script,
)
from config._paths import find_config_file, path_of
from config._sources import (  # noqa: F401 (others import them from here)
    comments_of_techniques,
    defaults_of,
    read_comments,
    setting_lines,
    technique_settings,
    training_settings,
)

COMMAND_LINE = "the command line"
given: dict[str, str] = {}  # setting -> the config file, or COMMAND_LINE, that set it; all others are default
untyped: dict[str, object] = {}  # every setting as it would be without the command line


def override(script: dict, base: str = "") -> dict:
    """Apply config files, then --key=value, to the settings of a script; return all settings as a dict.

    script: the script's globals(), changed in place. Its settings are the lower-case names assigned above the
    first function, class or call of override(): a bool, int, float, str, or a dict (for config files only).
    base: a script, "train.py", whose settings and config files this one takes, too, beside its own.
    Raises ValueError with one line (name, value, what was expected) for anything that does not fit.
    """
    start_script()
    comments = read_comments(script["__file__"])
    settings = {name: script[name] for name in comments}
    if base:
        settings.update(defaults_of(base))
        comments.update(read_comments(str(ROOT / base)))
    techniques = technique_settings() if "technique" in settings else {}
    for own in techniques.values():
        settings.update(own)
    names_here.update(settings)
    defaults = dict(settings)
    arguments = [as_text(argument) for argument in sys.argv[1:]]
    if "-h" in arguments or "--help" in arguments:
        print_help(script, defaults, comments, techniques)
        leave(0)

    files = [argument for argument in arguments if not argument.startswith("-")]
    flags = dict(parse_flag(argument, defaults) for argument in arguments if argument.startswith("-"))
    given.clear()
    untyped.clear()
    untyped.update(defaults)
    settings.update(flags)  # a config file sees the command line's values (device, for example) ...
    for file in files:
        changes = read_config_file(file, settings, defaults)
        settings.update(changes)
        untyped.update(changes)
        given.update(dict.fromkeys(changes, file))
    settings.update(flags)  # ... and the command line has the last word
    given.update(dict.fromkeys(flags, COMMAND_LINE))
    if techniques:
        on = switched_on(settings["technique"], techniques)
        settings["technique"] = ",".join(on)
        for name in techniques.keys() - set(on):
            for setting in techniques[name]:
                del settings[setting]

    _nanogpt.refuse_weights(settings)
    script.update(settings)
    plain = {name: value for name, value in settings.items() if not isinstance(value, dict)}
    changed = [f"{name}={value}" for name, value in plain.items() if value != defaults[name]]
    note = _nanogpt.differences(settings, given, defaults)
    if os.environ.get("RANK", "0") == "0":
        for line in ("settings: " + " ".join(changed) if changed else "", note):
            if line:
                print(line)
    return settings


def switched_on(technique: str, techniques: dict[str, dict]) -> list[str]:
    """The techniques of a run: those that `technique` names, and those that have a setting which is given.

    A typed --technique has the last word over a config file: only typed settings add to it. techniques: their
    settings. ValueError for a name that is none.
    """
    names = [name.strip() for name in technique.split(",") if name.strip()]
    known = ", ".join(techniques)
    for name in names:
        require(name in techniques, f"technique={name} is unknown; expected some of these: {known}")
    for name, settings in techniques.items():
        if any(typed(setting) or (setting in given and not typed("technique")) for setting in settings):
            names.append(name)
    return list(dict.fromkeys(names))


def typed(name: str) -> bool:
    """Whether the command line has set this setting."""
    return given.get(name) == COMMAND_LINE


def adopt(script: dict, config: dict, saved: dict) -> list[str]:
    """Take over a saved run's settings, except those that this run was given.

    Changes `script` (its globals) and `config` in place. Returns a line for each setting that was given and
    differs from the saved run's. ValueError for a saved value of another type.
    """
    for name in config.keys() - given.keys():
        value = saved.get(name, config[name])
        if type(value) is not type(config[name]) or value != value:
            raise ValueError(f"the checkpoint's {name} is a {type(value).__name__}; set it with --{name}=...")
        config[name] = value
    script.update(config)
    differ = [name for name in sorted(given) if name in saved and saved[name] != config[name]]
    return [f"changed since the checkpoint: {name}: {saved[name]} -> {config[name]}" for name in differ]


def as_text(argument: str) -> str:
    """An argument decoded as UTF-8, as it was typed. Python has used the locale's encoding instead."""
    try:
        text = os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        raise ValueError(f"{ascii(argument)} is not UTF-8; type it in a terminal that uses UTF-8") from None
    is_prompt = text.startswith(("--start=", "--stop=", "--system=")) and not text.startswith("--start=FILE:")
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and not is_prompt and not text.isascii():  # no file of that name is found
        raise ValueError(f"{text}: this locale encodes file names in {encoding}; set PYTHONUTF8=1")
    return text


def parse_flag(argument: str, defaults: dict) -> tuple[str, object]:
    """'--learning_rate=1e-3' -> ('learning_rate', 0.001); the type of the default decides."""
    name, equals, text = argument.removeprefix("--").partition("=")
    if not argument.startswith("--") or not name:
        raise ValueError(f"{argument} is not understood; settings are written --name=value, -h lists them")
    check_name(name, defaults, "--")
    default = defaults[name]
    if isinstance(default, dict):
        raise ValueError(f"--{name} cannot be given here; set {name} in a config file")
    if not equals and isinstance(default, bool):
        return name, True
    if not equals:
        raise ValueError(f"--{name} needs a value: --{name}={default}")
    if isinstance(default, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"--{name}={text} is not understood; expected True or False")
        return name, text.lower() in ("true", "1")
    if isinstance(default, str):
        return name, path_of(name, text, f"--{name}=")
    example = "a whole number such as 100" if isinstance(default, int) else "a number such as 1e-3"
    try:
        value = type(default)(text)
    except ValueError:
        raise ValueError(f"--{name}={text} is not understood; expected {example}") from None
    check_number(value, f"--{name}={text}")
    return name, value


def read_config_file(file: str, settings: dict, defaults: dict) -> dict:
    """Run a config file in a namespace of its own that holds the settings; return the settings it changes.

    Those are the names that it assigns or imports, and those whose value it changes in any other way, such as
    exec(), globals().update() or expected[100] = ...
    """
    path = find_config_file(file)
    source = path.read_bytes()  # bytes: Python itself handles a byte order mark and `# coding:`
    if b"override(globals()" in source:
        raise ValueError(f"{file} is a script; expected a config file such as config/tiny.py")
    try:
        table = symtable.symtable(source, str(path), "exec")
        names = runpy.run_path(str(path), init_globals=copy.deepcopy(settings))
    except SyntaxError as error:
        raise ValueError(f"{file} line {error.lineno or 1}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        blind = isinstance(error, NameError) and error.name in settings
        advice = "; an imported config file sees no settings: name both files in the command" if blind else ""
        raise ValueError(f"{file} does not run: {type(error).__name__}: {error}{advice}") from None
    assigned = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned()}
    imported = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_imported()}
    for node in ast.walk(ast.parse(source)):
        if is_star_import(node) and node.module in sys.modules:
            assigned |= settings.keys() & vars(sys.modules[node.module]).keys()
    changes = {}
    for name, value in names.items():
        helper = isinstance(value, ModuleType) or callable(value)
        if name.startswith("_") or (name not in defaults and (helper or name in imported)):
            continue  # not a setting: a name with an underscore, an import, a function
        before = settings.get(name)
        if name not in assigned | imported and type(value) is type(before) and value == before:
            continue  # the file has left this setting as it was
        changes[name] = checked(value, name, file, defaults)
    deleted = sorted(settings.keys() - names.keys())
    if deleted:
        raise ValueError(f"{file} deletes {deleted[0]}; expected a value, as {defaults[deleted[0]]!r}")
    return changes


def is_star_import(node: ast.AST) -> bool:
    """Whether a node is `from module import *`."""
    return isinstance(node, ast.ImportFrom) and node.names[0].name == "*"


def checked(value: object, name: str, file: str, defaults: dict) -> object:
    """A value from a config file as its setting takes it. ValueError if the setting cannot have it."""
    check_name(name, defaults, f"{file}: ")
    default = defaults[name]
    if type(value) is int or type(value) is float:
        check_number(value, f"{file}: {name}")  # before any message prints it: 5,000 digits cannot be
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        kind, expected = type(value).__name__, type(default).__name__
        shown = f" = {value!r}" if isinstance(value, (bool, int, float, str, type(None))) else ""
        raise ValueError(f"{file}: {name}{shown} is a {kind}; expected {expected}, as {default!r}")
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        raise ValueError(f"{file}: {name} holds NUL or half of a surrogate pair; expected text")
    if isinstance(value, str):
        return path_of(name, value, f"{file}: {name}=")
    return copy.deepcopy(value)  # a dict: an imported file keeps its own, for the next run of this process


def check_number(value: float, where: str) -> None:
    """ValueError for nan, infinity and numbers that do not fit into 64 bits: no setting can mean them."""
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{where} is not finite or too large; expected a number below 2**63")


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds. The message is one line for people."""
    if not condition:
        raise ValueError(message)


def at_least(minimum: int, settings: dict, names: str) -> None:
    """Require each of these settings (names separated by blanks) to be the minimum or more."""
    for name in names.split():
        value = settings[name]
        require(value >= minimum, f"{name}={value} makes no sense; expected {minimum} or more")


def check_name(name: str, defaults: dict, where: str) -> None:
    """ValueError for a name that is not a setting; suggests the nearest. where: printed before the name."""
    if name not in defaults:
        if advice := _nanogpt.advice_for(name, defaults):
            raise ValueError(f"{where}{name} is not a setting; {advice}")
        near = difflib.get_close_matches(name, defaults, n=1)
        advice = f"did you mean {near[0]}? (-h lists them all)" if near else "-h lists them all"
        if where != "--":
            advice += "; a config file's own names begin with _"
        raise ValueError(f"{where}{name} is not a setting; {advice}")


def print_help(script: dict, defaults: dict, comments: dict, techniques: dict[str, dict]) -> None:
    """Print what the script does, how to start it, and each setting with its default and its comment.

    techniques: their settings, which follow the script's own.
    """
    print((script.get("__doc__") or "").strip())
    path = Path(script["__file__"])
    module = f"{path.parent.name}.{path.stem}".removesuffix(".__main__")
    how = path.name if path.parent.resolve() == ROOT else f"-m {module}"
    print(f"\nusage: python {how} [config/file.py ...] [--name=value ...]\n")
    shown = {name: f"--{name}={value}".replace("\n", "\\n") for name, value in defaults.items()}
    width = max(map(len, shown.values()))
    comments = comments | (comments_of_techniques() if techniques else {})
    headings = {next(iter(own)): name for name, own in techniques.items() if own}
    for name, text in shown.items():
        if name in headings:
            print(f"of techniques/{headings[name]}.py; to give one switches it on")
        print(f"  {text:<{width}}  {comments[name]}")
