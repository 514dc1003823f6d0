"""Runs of train.py that are killed and resumed until they end, and runs that are left alone, to compare.

    PYTHONPATH=. python tests/chaos/lives.py FOLDER DATASETS KILLS SEED FLAG ...

torch is imported once; each life of a run is a fork of this process, so it costs tenths of a second. Half of
the kills come from outside, at a random moment; half from inside, at a random call of what can be torn: half
of a write to a file, before and after fsync, rename and unlink, and in the middle of an evaluation. All are
SIGKILL. Runs go on until so many kills have happened.

Writes the folders of runs FOLDER/alone-0 and -1 (the second stops early), killed-0, killed-1, ..., each with
the output of all its lives in NAME.txt, and FOLDER/lives.json: {"runs": how many were killed, "lives": ...,
"kills": {where: how many}, "resumed": lives that began from a checkpoint}.
"""

import builtins
import io
import json
import os
import random
import runpy
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
import torch._dynamo  # noqa: F401 (with the next two: 3 seconds, once for all lives)
from matplotlib import pyplot  # noqa: F401

import data
import evaluate  # noqa: F401
from runtime import report
from text import prepare

EARLY = ["--patience=3", "--min_delta=10"]  # stops at the third evaluation after the first
KINDS = ("write", "fsync", "rename", "unlink", "evaluation")
ROOT = Path(data.__file__).parent


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Torn:
    """A file whose write number `at` writes half of what it should, and then the process is killed."""

    def __init__(self, file, reached):
        self.file, self.reached = file, reached

    def write(self, content):
        if self.reached("write"):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            die()
        return self.file.write(content)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self.file, name)


def aim(folder: Path, kind: str, at: float) -> Counter:
    """Kill this process in the call number `at` of a kind; at + 0.5: right after it. Returns the counts."""
    counts = Counter()

    def reached(what: str) -> bool:
        counts[what] += 1
        return what == kind and counts[what] == int(at)

    def around(what: str, function):
        def call(*arguments, **keywords):
            here = reached(what)
            if here and at == int(at):
                die()
            result = function(*arguments, **keywords)
            if here:
                die()
            return result

        return call

    def opened(path, mode="r", *arguments, **keywords):
        file = plain_open(path, mode, *arguments, **keywords)
        ours = isinstance(path, (str, Path)) and Path(path).is_relative_to(folder) and set(mode) & set("wa")
        return Torn(file, reached) if ours else file

    plain_open = builtins.open
    builtins.open = io.open = opened
    os.fsync, os.replace = around("fsync", os.fsync), around("rename", os.replace)
    os.unlink = around("unlink", os.unlink)
    data.Windows.window_batch = around("evaluation", data.Windows.window_batch)
    return counts


def life(out: Path, flags: list[str], delay: float, kind: str, at: float) -> tuple[str, float]:
    """Start train.py; returns ("" if it came to its end, else where it was killed; its seconds).

    delay: it is killed after so many seconds, unless it has a kind and a number: see aim().
    """
    began = time.perf_counter()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            fd = os.open(out.parent / f"{out.name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            counts = aim(out, kind, at)
            sys.argv = ["train.py", f"--out_dir={out}", *flags]
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
            (out.parent / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    done = status = 0
    while not done:
        time.sleep(0.002)
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done and not kind and time.perf_counter() > began + delay:
            os.kill(pid, signal.SIGKILL)
    seconds = time.perf_counter() - began
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return kind or "any moment", seconds
    assert os.WEXITSTATUS(status) == 0, f"exit code {os.WEXITSTATUS(status)}: {out}.txt"
    return "", seconds


def main() -> None:
    folder, prepare.DATASETS, n_kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:5])
    rng, kinds = random.Random(seed), [sys.argv[5:], [*sys.argv[5:], *EARLY]]
    kills, found = Counter(), Counter()
    alone = []  # of each kind of run: its seconds, how often it writes, syncs, ...
    for i, flags in enumerate(kinds):
        where, seconds = life(folder / f"alone-{i}", flags, 1e9, "", 0)
        assert not where
        alone.append((seconds, json.loads((folder / "counts.json").read_text(encoding="utf-8"))))
    while kills.total() < n_kills:
        flags, (seconds, counts) = kinds[found["runs"] % 2], alone[found["runs"] % 2]
        out, where = folder / f"killed-{found['runs']}", "not yet"
        while where:
            kind, at = rng.choice(["", rng.choice(KINDS)]), 0.0
            if kind:
                at = rng.randint(1, 1 + counts[kind] // 3) + rng.choice((0, 0.5))
            if kills.total() == n_kills:
                kind, at, seconds = "", 0, 1e9  # the last life of all is left alone
            found["lives"] += 1
            found["resumed"] += (out / "ckpt.pt").exists()
            where, _ = life(out, flags, rng.uniform(0, 0.5) * seconds, kind, at)
            if where:
                kills[where] += 1
        found["runs"] += 1
    (folder / "lives.json").write_text(json.dumps({**found, "kills": kills}), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    plot = report.plot_loss  # takes as long as ten updates: now and then will do
    report.plot_loss = lambda rows, *rest: None if rows[-1]["step"] % 12 else plot(rows, *rest)
    main()
