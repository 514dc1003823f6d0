"""How a script begins and ends: one-line errors, UTF-8 streams, and nothing left behind in the process.

A notebook (`%run train.py`) starts script after script in one process. What a script changes there, such as
sys.excepthook, signal handlers or the number of threads, is put back when the script has ended: see at_end().
"""

import atexit
import contextlib
import errno
import gc
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from traceback import extract_tb

ROOT = Path(__file__).resolve().parent.parent  # the project's folder; holds datasets/ and out-*/
BAD_PATHS = (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError, FileNotFoundError)
BAD_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # full, read-only, broken
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
SIZES = ("batch_size", "block_size", "n_layer", "n_embd")  # smaller ones take less memory
names_here: set[str] = set()  # the settings of the running script: its errors advise to change no others
undo = contextlib.ExitStack()  # what puts the process back as it was before the script: see at_end()
running = False  # whether a script has started and not ended


def start_script(doc: str = "") -> None:
    """Set up a script: one-line errors, UTF-8 streams, and no closed standard streams (`>&-`).

    A closed stream is opened on the null device. Otherwise the next file to be opened, perhaps a checkpoint,
    would get the stream's file number, and messages to stderr would be written into it.
    doc: what -h or --help prints before it ends the script; "" if the script calls override().
    """
    global running
    end_script()  # an earlier script of this process may have ended in an error
    running = True
    set_excepthook(one_line_errors)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(null, mode, encoding="utf-8", closefd=False))  # open to the end
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        use_utf8(stream)
    undo.callback(flush_or_drop)
    keep_torch_settings()
    notebook = in_notebook()
    if notebook:
        notebook.events.register("post_run_cell", after_cell)
        undo.callback(notebook.events.unregister, "post_run_cell", after_cell)
    if doc and {"-h", "--help"} & {*sys.argv[1:]}:
        print(doc.strip())
        leave(0)


def at_end(step: Callable, *arguments, **options) -> None:
    """Call step(*arguments, **options) when the running script has ended; the last one first.

    That is when the script says so (end_script), or at the end of the notebook's cell, or of the process, or
    when the next script of the process starts. Without a script: at the end of the process.
    """
    if running:
        undo.callback(step, *arguments, **options)
    else:
        atexit.register(step, *arguments, **options)


def end_script() -> None:
    """Leave the process as it was before the script: the last line of a script."""
    global running
    running = False
    names_here.clear()
    undo.close()


def leave(code: int | None = None) -> None:
    """End the script here: as end_script(), then sys.exit()."""
    end_script()
    sys.exit(code)


def after_cell(*result) -> None:
    """What IPython calls after a cell, which may have ended in an error."""
    end_script()


def in_notebook():
    """IPython's shell if the script was started from it (`%run train.py`), else None."""
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def set_excepthook(hook: Callable) -> None:
    """Replace sys.excepthook until the script has ended."""
    undo.callback(setattr, sys, "excepthook", sys.excepthook)
    sys.excepthook = hook


def use_utf8(stream) -> None:
    """Read or write UTF-8, whatever the locale: not every encoding has emoji. A notebook's streams do."""
    if not isinstance(stream, io.TextIOWrapper):
        return
    undo.callback(reconfigure, stream, stream.encoding, stream.errors)
    reconfigure(stream, "utf-8", "replace")


def reconfigure(stream: io.TextIOWrapper, encoding: str, errors: str) -> None:
    """Change a stream's encoding, unless it is closed, or an input of which something has been read."""
    with contextlib.suppress(ValueError):
        stream.reconfigure(encoding=encoding, errors=errors)


def keep_torch_settings() -> None:
    """Note torch's settings for the whole process, to be put back; config itself does not import torch."""
    torch = sys.modules.get("torch")
    if not torch:
        return
    undo.callback(torch.set_num_threads, torch.get_num_threads())
    undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    undo.callback(torch.set_default_dtype, torch.get_default_dtype())
    undo.callback(torch.set_rng_state, torch.get_rng_state())


def flush_or_drop() -> None:
    """Flush stdout, and drop the rest if its reader has gone (`| head -1`): Python would complain at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python and CUDA have exceptions for it, the CPU's libraries only words."""
    named = type(error).__name__ in ("MemoryError", "OutOfMemoryError")  # by name: torch is not imported here
    words = ("you tried to allocate", "bad_alloc", "could not create a primitive")  # the last: oneDNN
    return named or getattr(error, "errno", 0) == errno.ENOMEM or any(each in str(error) for each in words)


def one_line_errors(kind, error, traceback) -> None:
    """sys.excepthook: a user's mistake ends in one line and exit code 2, everything else in a traceback.

    A user's mistake is a ValueError from a `raise` in one of our files, or a path that cannot be written.
    A ValueError from a library, or from int("x") in our code, is a bug, and its traceback helps.
    If the reader of a pipe has gone (`| head -1`), the script ends without a message. After Ctrl-C it ends
    with exit code 130, as the shell counts.
    """
    flush_or_drop()
    if issubclass(kind, KeyboardInterrupt):
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
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
        can_change = "device" in names_here  # not bench.py: its sizes are those of a plan
        sizes = " or ".join(name for name in SIZES if can_change and name in names_here)
        message = f"out of memory{what}; " + (f"try a smaller {sizes}" if sizes else "close other programs")
    if message and getattr(error, "errno", 0) in READ_ONLY:
        other = "choose another --out_dir, or " if "out_dir" in names_here else ""
        message += f"; {other}copy the project to a folder that you may write to"
    if ours and issubclass(kind, ValueError) and frames[-1].line.startswith("raise "):
        message = str(error)
    if not message:
        sys.__excepthook__(kind, error, traceback)
        return
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""  # torchrun sets it
    print(f"error: {rank}" + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def started(main) -> bool:
    """Whether the program that runs is one of the project's files. main: the module __main__."""
    file = getattr(main, "__file__", None)
    return bool(file) and Path(file).resolve().is_relative_to(ROOT)


atexit.register(gc.freeze)  # called last: else Python looks through all that torch has made, for a second
atexit.register(end_script)
if started(sys.modules["__main__"]):  # now, because the next import may be torch: Ctrl-C is one line there
    set_excepthook(one_line_errors)
