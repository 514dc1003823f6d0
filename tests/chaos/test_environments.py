"""Odd places to work in: data.py, train.py and sample.py do there what they do elsewhere, or say in one line
what is missing.

Environments that do not get in each other's way share one run of the three scripts. Where that fails, each
runs alone, and the one to blame is named.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import ROOT, TINY
from runtime import checkpoint
from runtime.report import read_rows
from test_disk import one_line

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="bash, setsid, unshare and /proc as on Linux"),
]
NO_SOCKETS = """
import socket
class Blocked:
    def __init__(self, *arguments, **keywords):
        raise AssertionError("a socket was opened")
socket.socket = Blocked
"""
# The project may ask whether there is a GPU. (torch.manual_seed and the like call torch.cuda by themselves.)
NO_CUDA = """
import os, sys, types, torch
def refuse(name, function):
    def call(*arguments, **keywords):
        assert not sys._getframe(1).f_code.co_filename.startswith(os.environ["HERE"]), f"torch.cuda.{name}"
        return function(*arguments, **keywords)
    return call
for name, function in list(vars(torch.cuda).items()):
    if isinstance(function, types.FunctionType) and name != "is_available":
        setattr(torch.cuda, name, refuse(name, function))
"""
NO_MATPLOTLIB = "import sys\nsys.modules['matplotlib'] = None"
NO_TIKTOKEN = "import sys\nsys.modules['tiktoken'] = None"
TERMINAL = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
DUMB = f'run() {{ "$PYTHON" -c "{TERMINAL}" "$@"; }}; export TERM=dumb'
MOUNT = ["unshare", "-rm", "mount", "--bind", ".", "."]
CAN_MOUNT = shutil.which("unshare") and not subprocess.run(MOUNT, capture_output=True).returncode
READ_ONLY = """
run() {
    unshare -rm bash -c \\
        'mount --bind "$HERE" "$HERE" && mount -o remount,ro,bind "$HERE" && cd / && exec "$@"' - "$@"
}
"""
UMLAUT = 'mv "$HERE" "$HERE \u00fc b"; cd "$HERE \u00fc b"'
C = "unset LANG LC_CTYPE PYTHONUTF8; export LC_ALL=C"
NO_UTF8 = f"{C} PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"
FLAGS = " ".join([*TINY, "--max_iters=3", "--eval_interval=2", "--log_interval=1"])
DATA = 'run "$PYTHON" "$HERE/data.py" --input="$HERE/in.txt" --name=mine; '
RUN = (
    f'run "$PYTHON" "$HERE/train.py" {FLAGS} --dataset=mine --out_dir="$OUT"; '
    'run "$PYTHON" "$HERE/sample.py" --device=cpu --max_new_tokens=20 --out_dir="$OUT"'
)
# The commands that a group of environments shares, and for each of these what bash does first (`run` then
# starts the scripts) and what Python does first in every script.
GROUPS = [
    (
        DATA + RUN,
        {
            "another working directory": ('mkdir "$HERE/../away"; cd "$HERE/../away"', ""),
            "LC_ALL=C": (C, ""),
            "no HOME": ("unset HOME", ""),
            "no terminal and no stdin": ('run() { setsid --wait "$@"; }; exec <&-', ""),
            "OMP_NUM_THREADS=1": ("export OMP_NUM_THREADS=1", ""),
            "python -W error": ("export PYTHONWARNINGS=error", ""),
            "no sockets": ("", NO_SOCKETS),
            "no torch.cuda": ("", NO_CUDA),
            "PYTHONDONTWRITEBYTECODE": ("export PYTHONDONTWRITEBYTECODE=1", ""),
            "another time zone": ("export TZ=Pacific/Kiritimati", ""),
            "a umask of 077": ("umask 077", ""),
            "64 open files at most": ("ulimit -n 64", ""),
        },
    ),
    (
        DATA + RUN,
        {
            "blanks and an umlaut in the path": (f"{UMLAUT}; HERE=.", ""),
            "a C locale without UTF-8": (NO_UTF8, ""),
            "a HOME that is not writable": ("export HOME=/proc/nobody", ""),
        },
    ),
    (
        RUN,
        {
            "no matplotlib": ("", NO_MATPLOTLIB),
            "no tiktoken": ("", NO_TIKTOKEN),
            "a dumb terminal": (DUMB, ""),
        },
    ),
    (
        RUN,
        {
            "a read-only project": (f'{READ_ONLY} OUT="$HERE/../out-mine"', ""),
            "no folder for matplotlib": ("export MPLCONFIGDIR=/proc/nobody", ""),
            "a closed stdout": ("exec >&-", ""),
        },
    ),
    (RUN, {"a closed stderr": ("exec 2>&-", "")}),
]
NAMES = [name for _, group in GROUPS for name in group]


@pytest.fixture(scope="module")
def bash(datasets, tmp_path_factory):
    """bash(before, python, commands) runs commands in a fresh copy of the project; (its parent, their end).

    before, python: of an environment. $OUT is where runs go, in.txt a text, mine a dataset made of it.
    """
    left_out = shutil.ignore_patterns("datasets", "out*", ".*", "__pycache__", "venv", "tests", "assets")
    not_kept = ("PYTHON", "MPL", "XDG_", "TERM")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(not_kept)}

    def run(before: str, python: str, commands: str):
        folder = tmp_path_factory.mktemp("places")
        shutil.copytree(ROOT, folder / "tinylm", ignore=left_out)
        shutil.copytree(datasets / "small", folder / "tinylm/datasets/mine")
        shutil.copy(datasets / "small.txt", folder / "tinylm/in.txt")
        (folder / "site").mkdir()
        (folder / "site/sitecustomize.py").write_text(python, encoding="utf-8")
        places = dict(HERE=f"{folder}/tinylm", PYTHONPATH=f"{folder}/site", PYTHON=sys.executable)
        done = subprocess.run(
            ["bash", "-c", f'run() {{ "$@"; }}\n{before}\n{commands}'],
            cwd=folder / "tinylm",
            env={**kept, **places, "OUT": "out-mine", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=120,
        )
        return folder, done

    return run


def check(names: list[str], folder: Path, done) -> None:
    """3 updates and a sample: on the screen nothing but what belongs there, on the disk all of it."""
    assert done.returncode == 0, done.stdout + done.stderr
    screen = done.stdout.replace("\r\n", "\n") + done.stderr
    written, errors = "a closed stdout" not in names, "a closed stderr" not in names
    if errors and "a dumb terminal" not in names:  # (a terminal shows both)
        assert re.fullmatch(r"[\d,]+ tokens/s\n", done.stderr), done.stderr
    assert screen.count("tokens/s\n") == errors, screen
    for word in ("Traceback", "Warning", "Matplotlib", "error", "\033"):
        assert word not in screen, screen
    assert screen.count("\niter 3: ") == written, screen
    assert screen.count("loss.png") == written, screen
    plot = "no matplotlib" not in names
    if not plot:
        assert "WARNING: no loss.png: a plot needs what is not installed: pip install matplotlib\n" in screen
        assert "\n  metrics.jsonl samples.txt result.json config.json\n" in screen
    (out,) = folder.glob("**/out-mine")
    wanted = set("ckpt.pt best.pt metrics.jsonl samples.txt result.json config.json tokenizer.json".split())
    assert {path.name for path in out.iterdir()} == wanted | ({"loss.png"} if plot else set())
    assert [checkpoint.load(out / name)["step"] for name in ("ckpt.pt", "best.pt")] == [3, 3]
    assert [row["step"] for row in read_rows(out / "metrics.jsonl")] == [0, 1, 2, 2, 3, 3]
    assert json.loads((out / "result.json").read_text(encoding="utf-8"))["best_step"] == 3
    if "a umask of 077" in names:
        assert not any(path.stat().st_mode & 0o077 for path in out.iterdir())
    if "PYTHONDONTWRITEBYTECODE" in names:
        assert not list(folder.glob("**/__pycache__"))
    if "another working directory" in names:
        assert not list((folder / "away").iterdir())


@pytest.fixture(scope="module")
def problems(bash):
    """Each group tried together and, if that fails, each of it alone: [{name: what is wrong}, ...]."""

    def attempt(commands: str, group: dict) -> str:
        before, python = ("\n".join(lines) for lines in zip(*group.values(), strict=True))
        try:
            check(list(group), *bash(before, python, "set -e; " + commands))
        except AssertionError as error:
            return str(error)
        return ""

    def find(commands: str, group: dict) -> dict:
        if not CAN_MOUNT:
            group = {name: how for name, how in group.items() if READ_ONLY not in how[0]}
        together = attempt(commands, group)
        alone = {name: attempt(commands, {name: how}) for name, how in group.items() if together}
        return alone if any(alone.values()) else dict.fromkeys(group, together)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(find, *zip(*GROUPS, strict=True)))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_works_with(problems, name, figure):
    (i,) = (i for i, (_, group) in enumerate(GROUPS) if name in group)
    if name not in problems[i]:
        pytest.skip("mounting is not allowed here")
    if problem := problems[i][name]:
        pytest.fail(f"{name}: {problem}")
    if name == NAMES[-1]:
        figure(f"{len(NAMES)} environments, from no HOME to a closed stdout: prepare, train and sample work")


# what is missing, its environment, the command, words of the one line
LINES = [
    ("byte pairs without tiktoken", ("", NO_TIKTOKEN), "data.py --input=in.txt --name=bpe --tokenizer=bpe",
     "error: byte pairs need what is not installed: pip install tiktoken"),
    ("no place for a run", (READ_ONLY, ""), f"train.py {FLAGS} --dataset=mine",
     "Read-only file system; choose another --out_dir, or copy the project"),
    ("a name that a C locale lacks", (NO_UTF8, ""), "data.py --input=\u00fc.txt --name=mine",
     "\u00fc.txt: this locale encodes file names in ascii; set PYTHONUTF8=1"),
]  # fmt: skip


@pytest.mark.parametrize("case", LINES, ids=[case[0] for case in LINES])
def test_one_line_says_what_to_do(bash, case):
    _, (before, python), command, words = case
    if before == READ_ONLY and not CAN_MOUNT:
        pytest.skip("mounting is not allowed here")
    _, done = bash(before, python, f'run "$PYTHON" "$HERE"/{command}')
    assert words in one_line(done)


def test_a_reader_that_leaves_ends_the_run_in_silence_and_saved(bash):
    """As with `| head`: the run would go on for hours, and nobody would see it."""
    endless = (
        f"train.py {FLAGS} --dataset=mine --out_dir=out-mine --max_iters=10000000 --eval_interval=10000000"
    )
    commands = (
        f'"$PYTHON" {endless} | head -14; "$PYTHON" -u sample.py --out_dir=out-mine | head -1; '
        '"$PYTHON" train.py -h | head -1'
    )
    folder, done = bash("", "", commands)
    lines = done.stdout.splitlines()
    assert len(lines) == 14 + 1 + 1, done.stdout
    steps = [line for line in lines[:14] if not line.endswith(" ...")]  # a slow stage's line
    assert steps[8].startswith("iter 1: ") and steps[-1].startswith("iter "), done.stdout
    step = checkpoint.load(folder / "tinylm/out-mine/ckpt.pt")["step"]
    assert step >= 1
    assert re.fullmatch(f"saved step {step} in .*ckpt.pt before stopping\n", done.stderr)
    assert read_rows(folder / "tinylm/out-mine/metrics.jsonl")[-1]["step"] >= step
