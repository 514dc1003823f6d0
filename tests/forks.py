"""Commands without the wait: a Python that has imported torch forks itself for each.

To start Python and to import torch and what its optimizers import takes 5 s of a core, a small run takes 2. A
forked command has its own process, folder, environment, standard streams and exit code, as one that is typed.
So it is for tests of what commands do, not of how they start or how much memory they hold.
"""

import json
import os
import runpy
import select
import subprocess
import sys
from pathlib import Path


class Forks:
    """run(words, cwd, env) runs `python words`, one after the other; close() ends the process that forks."""

    def __init__(self, folder: Path):
        self.folder = folder  # for what the commands print
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        self.server = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)

    def run(self, words, cwd: Path, env: dict, timeout=200.0, both=False) -> subprocess.CompletedProcess:
        """words: a script or -m and a module, and its arguments. both: stderr goes to stdout.

        TimeoutExpired if it takes longer than timeout, in seconds.
        """
        names = [self.folder / name for name in ("out.txt", "out.txt" if both else "err.txt")]
        for name in names:
            name.write_text("", encoding="utf-8")
        words = [*map(str, words)]
        request = dict(words=words, cwd=str(cwd), env=env, files=[os.devnull, *map(str, names)])
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        if not select.select([self.server.stdout], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(words, timeout)
        code = int(self.server.stdout.readline())
        out, err = (name.read_text(encoding="utf-8", errors="replace") for name in names)
        return subprocess.CompletedProcess(words, code, out, "" if both else err)

    def close(self) -> None:
        self.server.kill()
        self.server.communicate()


def serve() -> dict:
    """In the process that forks: answer each request with an exit code. In a fork: return its request."""
    while line := sys.stdin.readline():
        request = json.loads(line)
        child = os.fork()
        if not child:
            return request
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


if __name__ == "__main__":
    import matplotlib.figure  # noqa: F401 (what scripts import)
    import torch._dynamo  # noqa: F401

    asked = serve()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    for number, path in enumerate(asked["files"]):
        opened = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = asked["words"][asked["words"][0] == "-m" :]
    if asked["words"][0] == "-m":
        sys.path[0] = os.getcwd()
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")
