"""Commands without the wait: a Python that has imported torch forks itself for each.

To start Python and to import torch and what its optimizers import takes 5 s of a core, a small run takes 2. A
forked command has its own process, folder, environment, standard streams and exit code, as one that is typed.
So it is for tests of what commands do, not of how they start or how much memory they hold.
"""

import gc
import json
import os
import runpy
import select
import socket
import subprocess
import sys
from pathlib import Path


class Forks:
    """run(words, cwd, env) runs `python words`; ranks(words, n, cwd, env) does as torchrun does."""

    def __init__(self, folder: Path):
        self.folder = folder  # for what the commands print
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        self.server = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)

    def run(self, words, cwd: Path, env=None, timeout=200.0, both=False) -> subprocess.CompletedProcess:
        """words: a script, -m and a module, or -c and a program, then arguments. both: stderr goes to stdout.

        env: if None, that of this process. The result has `seconds` of a core, too. TimeoutExpired if it
        takes longer than timeout, in seconds.
        """
        return self.together(words, cwd, [env or {**os.environ}], timeout, both)[0]

    def ranks(self, words, n: int, cwd: Path, env: dict, timeout=400.0) -> list[subprocess.CompletedProcess]:
        """The same command in n processes that find each other, as torchrun starts them."""
        place = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE=str(n))
        each = [{**env, **place, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(n)]
        return self.together(words, cwd, each, timeout)

    def together(self, words, cwd: Path, environments: list[dict], timeout: float, both=False) -> list:
        """A process for each environment, all at once."""
        words, requests = [*map(str, words)], []
        for i, env in enumerate(environments):
            files = [str(self.folder / f"{stream}-{i}.txt") for stream in ("out", "out" if both else "err")]
            for name in files:
                Path(name).write_text("", encoding="utf-8")
            requests.append(dict(words=words, cwd=str(cwd), env=env, files=[os.devnull, *files]))
        self.server.stdin.write(json.dumps(requests) + "\n")
        self.server.stdin.flush()
        if not select.select([self.server.stdout], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(words, timeout)
        done = []
        for request, ended in zip(requests, json.loads(self.server.stdout.readline()), strict=True):
            _, *files = map(Path, request["files"])
            out, err = (path.read_text(encoding="utf-8", errors="replace") for path in files)
            done.append(subprocess.CompletedProcess(words, ended["code"], out, "" if both else err))
            done[-1].seconds = ended["seconds"]
        return done

    def close(self) -> None:
        self.server.kill()
        self.server.communicate()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def serve() -> dict:
    """In the process that forks: answer each line of requests with how they ended. In a fork: return it."""
    while line := sys.stdin.readline():
        children, ended = [], []
        for request in json.loads(line):
            children.append(os.fork())
            if not children[-1]:
                return request
        for child in children:
            _, status, used = os.wait4(child, 0)
            seconds = used.ru_utime + used.ru_stime
            ended.append(dict(code=os.waitstatus_to_exitcode(status), seconds=seconds))
        print(json.dumps(ended), flush=True)
    sys.exit()


if __name__ == "__main__":
    import matplotlib.figure  # noqa: F401 (what scripts import)
    import torch._dynamo  # noqa: F401

    gc.collect()
    gc.freeze()  # else each fork looks through all that torch made when it ends: 1.5 s
    asked = serve()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    for number, path in enumerate(asked["files"]):
        opened = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    how, *rest = asked["words"]
    sys.argv = rest if how == "-m" else ["-c", *rest[1:]] if how == "-c" else asked["words"]
    sys.path[0] = os.getcwd() if how in ("-m", "-c") else os.path.dirname(os.path.abspath(how))
    sys.path[1:1] = os.environ["PYTHONPATH"].split(os.pathsep) if "PYTHONPATH" in os.environ else []
    if how == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        exec(rest[0], {"__name__": "__main__"})
    else:
        runpy.run_path(how, run_name="__main__")
