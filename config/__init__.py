"""Settings: typed globals on top of a script, changed by config files and by --key=value.

    python train.py config/shakespeare_char.py --max_iters=100 --eval_only

Every script says `config = override(globals())` once, below its settings. The idea is nanoGPT's configurator
(Karpathy, 2022); here nothing is executed inside the script, types are kept, and a misspelt name is an error.
"""

import ast
import atexit
import difflib
import errno
import io
import linecache
import os
import re
import runpy
import sys
import tokenize
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent  # of datasets/ and out-*/, whatever the working directory
BAD_PATHS = (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError, FileNotFoundError)
BAD_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # full, read-only, broken
TYPES = (bool, int, float, str)  # of settings
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
typed: set[str] = set()  # what the command line has set
given: set[str] = set()  # what a config file or the command line has set: it beats what a checkpoint holds
after_bands: set[str] = set()  # what was set after a config file had said which val losses it expects


def override(script: dict) -> dict:
    """Apply config files, then --key=value, to the settings of a script; return all settings as a dict.

    script: the script's globals(). Its settings are the lower-case globals of type bool, int, float or str
    (or dict, for config files only) that are assigned above the first function or the call of override().
    They are changed in place. Raises ValueError (one line: name, value, what was expected) for anything that
    does not fit.
    """
    start_script()
    comments = read_comments(script["__file__"])
    settings = {name: script[name] for name in comments}
    defaults = dict(settings)
    for names in (given, typed, after_bands):
        names.clear()
    arguments = [as_text(argument) for argument in sys.argv[1:]]
    if "-h" in arguments or "--help" in arguments:
        print_help(script, defaults, comments)
        sys.exit(0)

    files = [argument for argument in arguments if not argument.startswith("-")]
    flags = dict(parse_flag(argument, defaults) for argument in arguments if argument.startswith("-"))
    settings.update(flags)  # a config file sees the command line's values (device, say) ...
    for file in files:
        changes = read_config_file(file, settings, defaults)
        settings.update(changes)
        given.update(changes)
        after_bands.update(changes)
        if "expected" in changes:
            after_bands.clear()
    settings.update(flags)  # ... and the command line has the last word
    for names in (given, typed, after_bands):
        names.update(flags)

    script.update(settings)
    changed = [
        f"{name}={value}"
        for name, value in settings.items()
        if value != defaults[name] and not isinstance(value, dict)
    ]
    if changed and os.environ.get("RANK", "0") == "0":
        print("settings: " + " ".join(changed))
    return settings


def start_script(doc: str = "") -> None:
    """Mistakes end in one line; stdout and stderr are UTF-8; closed streams (`>&-`) become the null device.

    If they stayed closed, the next file to be opened, a checkpoint say, would get the number of a stream,
    and messages to stderr would land in it. doc: what -h or --help prints before it ends the script.
    """
    sys.excepthook = one_line_errors
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(null, mode, encoding="utf-8", closefd=False))  # is open until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # (a notebook's is none)
            stream.reconfigure(encoding="utf-8", errors="replace")  # other encodings cannot print an emoji
    atexit.register(flush_or_drop)
    if doc and {"-h", "--help"} & {*sys.argv[1:]}:
        print(doc.strip())
        sys.exit(0)


def flush_or_drop() -> None:
    """Write what print() has held back, to the null device if nobody reads it any more (`| head -1`).

    Called at exit: else Python would try it there, and complain.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def adopt(script: dict, config: dict, saved: dict) -> list[str]:
    """Continue with a saved run's settings: each one that was not given now takes its saved value.

    Changes `script` (globals) and `config` in place; returns one "name: old -> new" for every setting that
    was given now and differs from the saved run.
    """
    for name in config.keys() - given:
        value = saved.get(name, config[name])
        if type(value) is not type(config[name]) or value != value:
            raise ValueError(f"the checkpoint's {name} is a {type(value).__name__}; give --{name}=...")
        config[name] = value
    script.update(config)
    return [
        f"{name}: {saved[name]} -> {config[name]}"
        for name in sorted(given)
        if name in saved and saved[name] != config[name]
    ]


def read_comments(path: str) -> dict[str, str]:
    """The settings of a script and their trailing comments, read from its source: {name: comment}."""
    source = Path(path).read_text(encoding="utf-8")
    comment_of_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    comments = {}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) or "override(" in ast.unparse(node):
            break
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name.islower() and not name.startswith("_"):
                comments[name] = comment_of_line.get(node.lineno, "")
    return comments


def as_text(argument: str) -> str:
    """An argument as it was typed, in UTF-8; where the locale is another, Python has decoded it wrongly."""
    try:
        text = os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        raise ValueError(f"{ascii(argument)} is not UTF-8 text; repair it") from None
    is_prompt = text.startswith(("--start=", "--stop=")) and not text.startswith("--start=FILE:")
    names = sys.getfilesystemencoding()
    if names != "utf-8" and not is_prompt and not text.isascii():  # the file of that name would not be found
        raise ValueError(f"{text}: names of files are {names} in this locale; set PYTHONUTF8=1")
    return text


def parse_flag(argument: str, defaults: dict) -> tuple[str, object]:
    """'--learning_rate=1e-3' -> ('learning_rate', 0.001); the type of the default decides."""
    name, equals, text = argument.removeprefix("--").partition("=")
    if not argument.startswith("--") or not name:
        raise ValueError(
            f"{argument} is not understood; settings are written --name=value, -h lists them all"
        )
    check_name(name, defaults, "--")
    default = defaults[name]
    if isinstance(default, dict):
        raise ValueError(f"--{name} cannot be given here; set {name} in a config file")
    if not equals:
        if isinstance(default, bool):
            return name, True
        raise ValueError(f"--{name} needs a value: --{name}={default}")
    if isinstance(default, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"--{name}={text} is not understood; expected True or False")
        return name, text.lower() in ("true", "1")
    if isinstance(default, str):
        return name, text
    kind, example = (
        (int, "a whole number such as 100") if isinstance(default, int) else (float, "a number such as 1e-3")
    )
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"--{name}={text} is not understood; expected {example}") from None
    check_number(value, f"--{name}={text}")
    return name, value


def read_config_file(file: str, settings: dict, defaults: dict) -> dict:
    """Run a config file in a namespace that holds the settings; return the settings that it changes."""
    path = next((p for p in (Path(file), ROOT / file) if os.path.isfile(p)), None)
    if path is None:
        known = " ".join(sorted(f"config/{p.name}" for p in (ROOT / "config").glob("[a-z]*.py")))
        raise ValueError(f"config file {file} does not exist; there are: {known}")
    source = path.read_bytes()  # bytes: Python knows what to do with a byte order mark or another encoding
    if b"override(globals())" in source:
        raise ValueError(f"{file} is a script; expected a config file, such as config/tiny.py")
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
            continue  # helpers: names with an underscore, imports
        check_name(name, defaults, f"{file}: ")
        default = defaults[name]
        if type(value) is int or type(value) is float:
            check_number(value, f"{file}: {name}")  # (a number of 5,000 digits cannot even be printed)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default):
            kind, expected = type(value).__name__, type(default).__name__
            shown = f" = {value!r}" if isinstance(value, (*TYPES, type(None))) else ""
            raise ValueError(f"{file}: {name}{shown} is a {kind}; expected {expected}, as {default!r}")
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            raise ValueError(f"{file}: {name} holds NUL or half of a surrogate pair; expected text")
        changes[name] = value
    return changes


def check_number(value: float, where: str) -> None:
    """Refuse what no setting can mean: nan, infinity, and numbers that do not fit into 64 bits."""
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
    """Refuse a name that is no setting, and suggest the nearest one; where: what stands before it."""
    if name not in defaults:
        near = difflib.get_close_matches(name, defaults, n=1)
        advice = f"did you mean {near[0]}? (-h lists them all)" if near else "-h lists them all"
        if where != "--":
            advice += "; names of a file's own begin with _"
        raise ValueError(f"{where}{name} is no setting; {advice}")


def print_help(script: dict, defaults: dict, comments: dict) -> None:
    """What the script does, how it is started, and every setting with its default and its comment."""
    print((script.get("__doc__") or "").strip())
    print(f"\nusage: python {Path(script['__file__']).name} [config/file.py ...] [--name=value ...]\n")
    shown = {name: f"--{name}={value}".replace("\n", "\\n") for name, value in defaults.items()}
    width = max(map(len, shown.values()))
    for name, text in shown.items():
        print(f"  {text:<{width}}  {comments[name]}")


def is_out_of_memory(error: Exception) -> bool:
    """Python and CUDA have exceptions of their own; of the CPU's libraries there are only the words."""
    named = type(error).__name__ in ("MemoryError", "OutOfMemoryError")  # (this room does not import torch)
    words = ("you tried to allocate", "bad_alloc", "could not create a primitive")  # the last: oneDNN
    return named or getattr(error, "errno", 0) == errno.ENOMEM or any(each in str(error) for each in words)


def one_line_errors(kind, error, traceback) -> None:
    """sys.excepthook: people's mistakes end in one line and exit code 2, all else in a traceback.

    A mistake of people is a ValueError that a `raise` in one of our files has made, or a path that cannot be
    written. A ValueError out of a library, or of int("x") in our own code, is a bug: its traceback helps.
    Where a pipe's reader has gone, as with `| head -1`, the script ends without a word.
    """
    flush_or_drop()
    frame = traceback
    while frame and frame.tb_next:
        frame = frame.tb_next
    path = Path(frame.tb_frame.f_code.co_filename).resolve() if frame else ROOT
    ours = path.is_file() and path.is_relative_to(ROOT) and "site-packages" not in path.parts
    if ours and issubclass(kind, BrokenPipeError):  # of print()
        sys.exit(1)
    message = ""
    if issubclass(kind, BAD_PATHS) and error.filename:
        message = f"{error.filename}: {error.strerror}"
    elif issubclass(kind, OSError) and error.errno in BAD_DISKS:
        message = f"{error.filename or 'a file of the run'} could not be written: {error.strerror}"
    elif is_out_of_memory(error):
        what = f" ({error})" if str(error) else ""
        message = f"out of memory{what}; try a smaller batch_size, block_size, n_layer or n_embd"
    if message and getattr(error, "errno", 0) in READ_ONLY:
        message += "; choose another --out_dir, or copy the project to a folder that you may write to"
    if ours and issubclass(kind, ValueError):
        if linecache.getline(str(path), frame.tb_lineno).lstrip().startswith("raise "):
            message = str(error)
    if not message:
        sys.__excepthook__(kind, error, traceback)
        return
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""  # one of torchrun's processes
    print(f"error: {rank}" + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
