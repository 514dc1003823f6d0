"""Settings: typed globals at the top of a script, changed by config files and by --key=value.

    python train.py config/shakespeare_char.py --max_iters=100 --eval_only

Each script calls `config = override(globals())` once, below its settings. The idea is nanoGPT's configurator
(Karpathy, 2022). Here no config file runs inside the script, types are kept, and a misspelt name is an error.
"""

import ast
import atexit
import difflib
import errno
import io
import os
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from traceback import extract_tb
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent  # the project's folder; holds datasets/ and out-*/
BAD_PATHS = (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError, FileNotFoundError)
BAD_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # full, read-only, broken
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
COMMAND_LINE = "the command line"
given: dict[str, str] = {}  # setting -> the config file, or COMMAND_LINE, that set it; all others are default


def override(script: dict) -> dict:
    """Apply config files, then --key=value, to the settings of a script; return all settings as a dict.

    script: the script's globals(), changed in place. Its settings are the lower-case names assigned above the
    first function, class or call of override(): a bool, int, float, str, or a dict (for config files only).
    Raises ValueError with one line (name, value, what was expected) for anything that does not fit.
    """
    start_script()
    comments = read_comments(script["__file__"])
    settings = {name: script[name] for name in comments}
    defaults = dict(settings)
    arguments = [as_text(argument) for argument in sys.argv[1:]]
    if "-h" in arguments or "--help" in arguments:
        print_help(script, defaults, comments)
        sys.exit(0)

    files = [argument for argument in arguments if not argument.startswith("-")]
    flags = dict(parse_flag(argument, defaults) for argument in arguments if argument.startswith("-"))
    given.clear()
    settings.update(flags)  # a config file sees the command line's values (device, for example) ...
    for file in files:
        changes = read_config_file(file, settings, defaults)
        settings.update(changes)
        given.update(dict.fromkeys(changes, file))
    settings.update(flags)  # ... and the command line has the last word
    given.update(dict.fromkeys(flags, COMMAND_LINE))

    script.update(settings)
    plain = {name: value for name, value in settings.items() if not isinstance(value, dict)}
    changed = [f"{name}={value}" for name, value in plain.items() if value != defaults[name]]
    if changed and os.environ.get("RANK", "0") == "0":
        print("settings: " + " ".join(changed))
    return settings


def typed(name: str) -> bool:
    """Whether the command line has set this setting."""
    return given.get(name) == COMMAND_LINE


def start_script(doc: str = "") -> None:
    """Set up a script: one-line errors, UTF-8 output, and no closed standard streams (`>&-`).

    A closed stream is opened on the null device. Otherwise the next file to be opened, perhaps a checkpoint,
    would get the stream's file number, and messages to stderr would be written into it.
    doc: what -h or --help prints before it ends the script; "" if the script calls override().
    """
    sys.excepthook = one_line_errors
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(null, mode, encoding="utf-8", closefd=False))  # open to the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's streams are not
            stream.reconfigure(encoding="utf-8", errors="replace")  # not every encoding has emoji
    atexit.register(flush_or_drop)
    if doc and {"-h", "--help"} & {*sys.argv[1:]}:
        print(doc.strip())
        sys.exit(0)


def flush_or_drop() -> None:
    """Flush stdout at exit, and drop the rest if its reader has gone (`| head -1`): Python would complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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


def as_text(argument: str) -> str:
    """An argument decoded as UTF-8, as it was typed. Python has used the locale's encoding instead."""
    try:
        text = os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        raise ValueError(f"{ascii(argument)} is not UTF-8; type it in a terminal that uses UTF-8") from None
    is_prompt = text.startswith(("--start=", "--stop=")) and not text.startswith("--start=FILE:")
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
        return name, text
    example = "a whole number such as 100" if isinstance(default, int) else "a number such as 1e-3"
    try:
        value = type(default)(text)
    except ValueError:
        raise ValueError(f"--{name}={text} is not understood; expected {example}") from None
    check_number(value, f"--{name}={text}")
    return name, value


def read_config_file(file: str, settings: dict, defaults: dict) -> dict:
    """Run a config file in a namespace of its own that holds the settings; return the settings it assigns."""
    path = next((p for p in (Path(file), ROOT / file) if os.path.isfile(p)), None)
    if path is None:
        known = " ".join(sorted(f"config/{p.name}" for p in (ROOT / "config").glob("[a-z]*.py")))
        raise ValueError(f"config file {file} does not exist; there are: {known}")
    source = path.read_bytes()  # bytes: Python itself handles a byte order mark and `# coding:`
    if b"override(globals())" in source:
        raise ValueError(f"{file} is a script; expected a config file such as config/tiny.py")
    try:
        nodes = ast.walk(ast.parse(source))
        names = runpy.run_path(str(path), init_globals=dict(settings))
    except SyntaxError as error:
        raise ValueError(f"{file} line {error.lineno or 1}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        raise ValueError(f"{file} does not run: {type(error).__name__}: {error}") from None
    assigned = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    changes = {}
    for name in assigned & names.keys():
        value = names[name]
        helper = isinstance(value, ModuleType) or callable(value)
        if name.startswith("_") or (helper and name not in defaults):
            continue  # not a setting: a name with an underscore, an import, a function
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
        changes[name] = value
    return changes


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
        near = difflib.get_close_matches(name, defaults, n=1)
        advice = f"did you mean {near[0]}? (-h lists them all)" if near else "-h lists them all"
        if where != "--":
            advice += "; a config file's own names begin with _"
        raise ValueError(f"{where}{name} is not a setting; {advice}")


def print_help(script: dict, defaults: dict, comments: dict) -> None:
    """Print what the script does, how to start it, and each setting with its default and its comment."""
    print((script.get("__doc__") or "").strip())
    print(f"\nusage: python {Path(script['__file__']).name} [config/file.py ...] [--name=value ...]\n")
    shown = {name: f"--{name}={value}".replace("\n", "\\n") for name, value in defaults.items()}
    width = max(map(len, shown.values()))
    for name, text in shown.items():
        print(f"  {text:<{width}}  {comments[name]}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python and CUDA have exceptions for it, the CPU's libraries only words."""
    named = type(error).__name__ in ("MemoryError", "OutOfMemoryError")  # by name: torch is not imported here
    words = ("you tried to allocate", "bad_alloc", "could not create a primitive")  # the last: oneDNN
    return named or getattr(error, "errno", 0) == errno.ENOMEM or any(each in str(error) for each in words)


def one_line_errors(kind, error, traceback) -> None:
    """sys.excepthook: a user's mistake ends in one line and exit code 2, everything else in a traceback.

    A user's mistake is a ValueError from a `raise` in one of our files, or a path that cannot be written.
    A ValueError from a library, or from int("x") in our code, is a bug, and its traceback helps.
    If the reader of a pipe has gone (`| head -1`), the script ends without a message.
    """
    flush_or_drop()
    frames = extract_tb(traceback, limit=-1)  # the last one
    path = Path(frames[-1].filename).resolve() if frames else ROOT
    ours = path.is_file() and path.is_relative_to(ROOT) and "site-packages" not in path.parts
    if ours and issubclass(kind, BrokenPipeError):  # print() raised it
        sys.exit(1)
    message = ""
    if (issubclass(kind, BAD_PATHS) or getattr(error, "errno", 0) == errno.ENAMETOOLONG) and error.filename:
        message = f"{error.filename}: {error.strerror}"
    elif issubclass(kind, OSError) and error.errno in BAD_DISKS:
        message = f"{error.filename or 'a file of the run'} could not be written: {error.strerror}"
    elif is_out_of_memory(error):
        what = f" ({error})" if str(error) else ""
        message = f"out of memory{what}; try a smaller batch_size, block_size, n_layer or n_embd"
    if message and getattr(error, "errno", 0) in READ_ONLY:
        message += "; choose another --out_dir, or copy the project to a folder that you may write to"
    if ours and issubclass(kind, ValueError) and frames[-1].line.startswith("raise "):
        message = str(error)
    if not message:
        sys.__excepthook__(kind, error, traceback)
        return
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""  # torchrun sets it
    print(f"error: {rank}" + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
