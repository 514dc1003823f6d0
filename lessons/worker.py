"""Judges each exercise in its own process: whatever a student's file does, it costs that exercise only.

    python -m lessons.worker        reads jobs from stdin, one JSON object a line, and prints verdicts

The worker imports torch and the checks once, and forks for each exercise. A check then takes milliseconds:
importing torch alone takes 1.3 seconds. Without fork (Windows), each exercise gets a fresh process. A child
has its own process group, no stdin, and limits of time and memory. This protects against accidents, not
against malice: run strangers' code in a container.
"""

import contextlib
import faulthandler
import functools
import inspect
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from config import ROOT, start_script

SECONDS, GIBIBYTES, LINES = 20, 2, 20  # default limits of an exercise; lines of output that are kept
BROKEN = "broken check"  # a status: there is no verdict
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "PYTHONIOENCODING": "utf-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",  # the same numbers everywhere
    "CUDA_VISIBLE_DEVICES": "",
}
EMPTY = dict(status="failed", line="", mistake="", picture="", remark="", output=[], seconds=0.0)


class Worker:
    """A process that waits for jobs: Worker().check(job) -> verdict. job: lesson, exercise, file, seeds."""

    def __init__(self):
        self.process = None

    def warm(self) -> None:
        """Start the process now: it imports torch while the student is still reading."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lessons.worker"],
                cwd=ROOT, env={**os.environ, **ENVIRONMENT}, encoding="utf-8",
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip

    def check(self, job: dict) -> dict:
        self.warm()
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer and hasattr(os, "fork"):
            raise ValueError("the grader's process has ended; its message stands above")
        if not answer:  # without fork, a student's file can end the worker
            self.close()
            return dict(EMPTY, line=f"ended the program itself, or took more than {SECONDS} s")
        found = json.loads(answer)
        if not hasattr(os, "fork"):
            self.close()  # it has run the student's file: take a fresh one
        return found

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
            self.process = None


# ---- inside the worker
def answer(job: dict) -> dict:
    """The verdict on one exercise, in this process."""
    from lessons import course, grader

    exercises = course.checks(job["lesson"]).exercises
    exercise, seeds = exercises[job["exercise"]], tuple(job["seeds"])
    # The reference is observed first: the student's file may change what it uses.
    try:
        known = {"": grader.observations(exercise, exercise["reference"], seeds)}
    except Exception as error:  # of `inputs`: what the reference raises is observed
        return grader.verdict(BROKEN, f"no inputs for the seeds {seeds}: {error}")
    function, found = grader.find(Path(job["file"]), exercises, job["exercise"])
    return found or grader.judge(exercise, function, seeds, known)


@functools.cache
def warm_up(checks) -> None:
    """Build an optimizer here if the checks use one: torch then imports its compiler once (a second), and not
    in each fork."""
    if "torch.optim" in inspect.getsource(checks):
        import torch

        torch.optim.SGD([torch.zeros(1)], lr=0.1)


def limit_memory(gibibytes: float) -> None:
    """Allow so much more memory than the process has now. Linux only; elsewhere only time is limited."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        import resource

        used = int(statm.read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + int(gibibytes * 2**30),) * 2)


def child(job: dict, seconds: float, gibibytes: float, note) -> None:
    """Judge, and write the verdict to the file `note`. After `seconds`, faulthandler instead writes there in
    which line each thread is, and ends the process."""
    limit_memory(gibibytes)
    faulthandler.dump_traceback_later(seconds, exit=True, file=note)
    try:
        found = answer(job)
    except SystemExit:
        os._exit(0)  # the note stays empty, which tells the parent
    except BaseException as error:
        from lessons import grader

        found = grader.verdict(grader.FAILED, grader.what_failed(error, Path(job["file"])))
    faulthandler.cancel_dump_traceback_later()
    os.write(note.fileno(), json.dumps(found).encode())
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the student may have closed it
            stream.flush()


def forked(job: dict, seconds: float, gibibytes: float) -> dict:
    """Judge one exercise in a fork of this process."""
    with tempfile.TemporaryFile() as note:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, write_end), (2, write_end)):
                os.dup2(source, target)
            os.close(read_end)
            try:
                child(job, seconds, gibibytes, note)
            finally:
                os._exit(0)  # not through the parent's clean-up
        os.close(write_end)
        kept, lines = watch(pid, read_end, seconds + 2)
        note.seek(0)
        return read_note(note.read().decode("utf-8", "replace"), job, seconds, gibibytes, kept, lines)


def watch(pid: int, pipe: int, seconds: float) -> tuple[list[str], int]:
    """Wait for a child, kill its process group; return its first lines, and how many it printed."""
    end, kept, lines, over = time.monotonic() + seconds, b"", 0, False
    while True:
        if select.select([pipe], [], [], 0 if over else 0.02)[0]:
            part = os.read(pipe, 1 << 16)
            lines += part.count(b"\n")
            if len(kept) < 1 << 14:
                kept += part
            if part and time.monotonic() < end:
                continue
        elif not over and not os.waitpid(pid, os.WNOHANG)[0] and time.monotonic() < end:
            continue
        if over:
            os.close(pipe)
            return kept.decode("utf-8", "replace").splitlines()[:LINES], lines
        try:
            os.killpg(pid, signal.SIGKILL)  # whatever it has started, too
        except (ProcessLookupError, PermissionError):
            pass
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass  # the poll above has already collected it
        over, end = True, time.monotonic() + 1


def read_note(text: str, job: dict, seconds: float, gibibytes: float, kept: list, lines: int) -> dict:
    """The verdict that a child has written, or one that says why it wrote none."""
    from lessons import grader

    if text.startswith("{"):
        found = json.loads(text)
        if found["status"] == grader.FAILED and re.search(r"( GiB| out of memory)$", found["line"]):
            found["line"] += f", the limit is {gibibytes:g} GiB"
    elif text.startswith("Timeout"):
        here = re.search(rf'File "{re.escape(job["file"])}", line (\d+)', text)
        where = f", in line {here[1]} of your file" if here else ""
        found = grader.verdict(grader.FAILED, f"stopped after {seconds:g} s{where}")
    else:
        found = grader.verdict(grader.FAILED, grader.OTHERS["SystemExit"])
    found["output"] = kept
    if lines > LINES:
        found["output"] = [*kept, f"(printed {lines:,} lines, the first {LINES} are kept)"]
    return found


def main() -> None:
    import torch

    from lessons import course, grader

    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        start = time.monotonic()
        checks = course.checks(job["lesson"])
        exercise = checks.exercises[job["exercise"]]
        seconds, gibibytes = (
            job.get("limit") or exercise.get("limit", SECONDS),
            exercise.get("memory", GIBIBYTES),
        )
        if hasattr(os, "fork"):
            warm_up(checks)
            found = forked(job, seconds, gibibytes)
        else:
            with tempfile.TemporaryFile() as note:
                stdout, sys.stdout = sys.stdout, open(os.devnull, "w", encoding="utf-8")
                child(job, seconds, gibibytes, note)
                sys.stdout = stdout
                note.seek(0)
                found = read_note(note.read().decode("utf-8", "replace"), job, seconds, gibibytes, [], 0)
        assert found["status"] in (grader.RIGHT, grader.MISSING, grader.FAILED, grader.WRONG, BROKEN)
        print(json.dumps({**found, "seconds": round(time.monotonic() - start, 2)}), flush=True)


if __name__ == "__main__":
    start_script(__doc__)
    main()
