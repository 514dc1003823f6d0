"""Several machines, and what breaks: two network namespaces, joined by a cable that can be cut."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from conftest import ROOT, TINY
from machine import distributed
from test_distributed import rows

# Started by torchrun in place of train.py: the same on the test's data, and in the first start a pause after
# each update, for a test to break something in the middle of a run.
DRIVER = """
import os, runpy, sys, time
from pathlib import Path
from runtime import report
from text import prepare

folder = Path(sys.argv[1])
pause = 0 if (folder / "out/ckpt.pt").exists() else float(os.environ["PAUSE"])
(folder / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
prepare.DATASETS = folder / "datasets"
report.plot_loss = lambda *args: None
count_update = report.Report.count_update

def slowly(*args):
    time.sleep(pause)
    count_update(*args)

report.Report.count_update = slowly
sys.argv = ["train.py", "--dataset=small", f"--out_dir={folder / 'out'}", *sys.argv[2:]]
runpy.run_path("train.py", run_name="__main__")
"""
FLAGS = (
    *TINY,
    "--threads=1",
    "--global_batch_size=4",
    "--max_iters=40",
    "--eval_interval=10",
    "--log_interval=1",
    "--save_interval=5",
    "--init_from=auto",
)
# Of torchrun: a machine that has sent no sign of life for 3 x 1 s is gone (else 3 x 5 s), and one that has
# had no answer from the machine with the store for 8 s gives up (else 60 s).
TIMES = "keep_alive_interval=1,keep_alive_max_attempt=3,read_timeout=8"


def torchrun(folder: Path, *options: str, flags=FLAGS, pause=0.0, inside=()) -> subprocess.Popen:
    """A session of its own of torchrun, its workers in it; what it prints goes to folder/NAME.txt."""
    command = [*inside, sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", *options]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PAUSE": str(pause)}
    if inside:
        # Else a machine that comes back waits in vain for an address (torch 2.5 to 2.13, issue 135712).
        environment |= {"GLOO_SOCKET_IFNAME": inside[-1], "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with open(folder / f"{inside[-1] if inside else 'alone'}.txt", "ab") as file:
        return subprocess.Popen(
            [*command, folder / "driver.py", folder, *flags],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def new_folder(path: Path, datasets: Path) -> Path:
    path.mkdir()
    (path / "driver.py").write_text(DRIVER, encoding="utf-8")
    (path / "datasets").symlink_to(datasets)
    return path


def kill(process: subprocess.Popen) -> None:
    """The whole session: torchrun starts each worker in a session of its own, so go by the parents."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = [process.pid, *map(int, children.read_text(encoding="utf-8").split() if children.exists() else ())]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(10)


@contextlib.contextmanager
def running(*processes: subprocess.Popen):
    try:
        yield processes
    finally:
        for process in processes:
            kill(process)


@pytest.fixture(scope="module")
def nodes():
    """Two machines, as the start of a command line each, at 10.77.0.1 and 10.77.0.2; interface = name."""
    names = [f"tl{os.getpid()}{letter}" for letter in "ab"]
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the command ip")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", names[1], "netns", names[1])
        for i, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.77.0.{i}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
            # TCP tries for 6 s, not for 15 minutes: that long torchrun (not its workers) hangs where the
            # machine with the store has gone without a word. read_timeout alone does not help: torch then
            # asks the store to forget the question, and waits without a limit for the answer to that.
            ip("netns", "exec", name, "sysctl", "-w", "net.ipv4.tcp_retries2=4")
        yield [("ip", "netns", "exec", name) for name in names]
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not allowed: {error.stderr.decode().strip()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=20)


def start_node(nodes, i: int, folder: Path, *options: str, **kwargs) -> subprocess.Popen:
    """Machine i of 0 and 1; the store of the rendezvous is on machine 0.

    Both machines have the same name here, so each is told its address, and which one is to make the store.
    """
    where = ("--rdzv_endpoint=10.77.0.1:29400", f"--local_addr=10.77.0.{i + 1}", "--rdzv_id=test")
    conf = f"--rdzv_conf=is_host={int(i == 0)},{TIMES}"
    options = ("--nnodes=2", "--rdzv_backend=c10d", *where, conf, *options)
    return torchrun(folder, *options, inside=nodes[i], **kwargs)


def printed(folder: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt")))


def wait_for_update(folder: Path, step: int, *processes: subprocess.Popen) -> None:
    out, deadline = folder / "out", time.monotonic() + 90
    while not (out / "metrics.jsonl").is_file() or all(row["step"] < step for row in rows(out)):
        assert time.monotonic() < deadline, printed(folder)[-4000:]
        assert all(process.poll() is None for process in processes), printed(folder)[-4000:]
        time.sleep(0.05)


def end(folder: Path, *processes: subprocess.Popen, limit=90) -> list[int]:
    """The exit codes, once all have ended."""
    deadline = time.monotonic() + limit
    try:
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]
    except subprocess.TimeoutExpired:
        pytest.fail(f"still running after {limit} s:\n{printed(folder)[-6000:]}")


def assert_same_weights(folder: Path, other: Path) -> None:
    ours, theirs = (torch.load(f / "out/ckpt.pt", weights_only=True) for f in (folder, other))
    assert ours["step"] == theirs["step"] == 40
    for name, tensor in ours["model"].items():
        assert torch.equal(tensor, theirs["model"][name]), name


def assert_resumed(folder: Path) -> None:
    """Rank 0 was left over and saved the last update: none is made twice."""
    text = printed(folder)
    assert [text.count(f"iter {step}: loss") for step in (1, 12, 40)] == [1, 1, 1]
    assert "error: rank 0 of 2, update " in text


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, datasets) -> Path:
    """The folder of a run of two processes on one machine that nothing has broken."""
    folder = new_folder(tmp_path_factory.mktemp("nodes") / "undisturbed", datasets)
    with running(torchrun(folder, "--standalone", "--nproc_per_node=2")) as processes:
        assert end(folder, *processes) == [0], printed(folder)
    return folder


@pytest.mark.slow
@pytest.mark.alone
def test_a_killed_worker_starts_again_with_the_same_end(undisturbed, tmp_path, datasets):
    """On one machine, so it needs no namespaces. Without rank 0 nobody saves: the checkpoint of 10 counts."""
    folder = new_folder(tmp_path / "run", datasets)
    options = ("--standalone", "--nproc_per_node=2", "--max-restarts=1")
    with running(torchrun(folder, *options, pause=0.1)) as processes:
        wait_for_update(folder, 12, *processes)
        os.kill(int((folder / "pid-0").read_text(encoding="utf-8")), signal.SIGKILL)
        assert end(folder, *processes) == [0], printed(folder)
    assert_same_weights(folder, undisturbed)
    text = printed(folder)
    assert [text.count(f"iter {step}: loss") for step in (10, 11, 40)] == [1, 2, 1]
    assert "error: rank 1 of 2, update " in text


@pytest.mark.slow
@pytest.mark.alone
def test_two_machines_train_together(nodes, undisturbed, tmp_path, datasets, train):
    folder = new_folder(tmp_path / "run", datasets)
    with running(*(start_node(nodes, i, folder) for i in (0, 1))) as processes:
        assert end(folder, *processes) == [0, 0], printed(folder)
    assert_same_weights(folder, undisturbed)
    train(*FLAGS, "--init_from=scratch")
    for kind, keys in (("loss", "loss grad_norm lr tokens"), ("val_loss", "train_loss val_loss")):
        for key in keys.split():
            ours, alone = (
                [row[key] for row in rows(out, kind)] for out in (folder / "out", tmp_path / "out")
            )
            assert ours == pytest.approx(alone, abs=1e-5), key
    texts = [(folder / f"{node[-1]}.txt").read_text(encoding="utf-8") for node in nodes]
    assert [text.count("iter 40: loss") for text in texts] == [1, 0]


@pytest.mark.slow
@pytest.mark.alone
def test_a_cut_cable_ends_both_with_one_line(nodes, tmp_path, datasets):
    folder = new_folder(tmp_path / "run", datasets)
    flags = (*FLAGS, "--timeout=3", "--max_iters=100000")
    with running(*(start_node(nodes, i, folder, flags=flags, pause=0.05) for i in (0, 1))) as processes:
        wait_for_update(folder, 12, *processes)
        cable = ["ip", "-n", nodes[0][-1], "link", "set", nodes[0][-1]]
        subprocess.run([*cable, "down"], check=True, timeout=20)
        try:
            codes = end(folder, *processes, limit=60)
        finally:
            subprocess.run([*cable, "up"], check=True, timeout=20)
    assert all(codes)
    for rank, node in enumerate(nodes):
        text = (folder / f"{node[-1]}.txt").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if "error: rank" in line]
        assert len(lines) == 1, text
        assert f"error: rank {rank} of 2, update " in lines[0]
        assert "no longer answers" in lines[0]
        assert "Traceback" not in text.split("error: rank")[0]
    assert torch.load(folder / "out/ckpt.pt", weights_only=True)["step"] >= 10
    assert not list((folder / "out").glob("*.tmp"))


@pytest.mark.slow
@pytest.mark.alone
def test_a_killed_worker_of_two_machines_starts_again(nodes, undisturbed, tmp_path, datasets):
    folder = new_folder(tmp_path / "run", datasets)
    processes = [start_node(nodes, i, folder, "--max-restarts=3", pause=0.1) for i in (0, 1)]
    with running(*processes):
        wait_for_update(folder, 12, *processes)
        os.kill(int((folder / "pid-1").read_text(encoding="utf-8")), signal.SIGKILL)
        assert end(folder, *processes) == [0, 0], printed(folder)
    assert_same_weights(folder, undisturbed)
    assert_resumed(folder)


@pytest.mark.slow
@pytest.mark.alone
def test_a_killed_machine_comes_back(nodes, undisturbed, tmp_path, datasets):
    """The one without the store, its torchrun and its worker at once."""
    folder = new_folder(tmp_path / "run", datasets)
    processes = [start_node(nodes, i, folder, "--max-restarts=3", pause=0.1) for i in (0, 1)]
    with running(*processes):
        wait_for_update(folder, 12, *processes)
        kill(processes[1])
        processes[1] = again = start_node(nodes, 1, folder, "--max-restarts=3")
        with running(again):
            assert end(folder, *processes) == [0, 0], printed(folder)
    assert_same_weights(folder, undisturbed)
    assert_resumed(folder)


@pytest.mark.parametrize(
    "rank, missing", [pytest.param(0, "another rank", marks=pytest.mark.slow), (1, "rank 0")]
)
def test_who_does_not_come_is_named(monkeypatch, rank, missing):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {
        "RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match=f"{missing} has not joined within 1 s .*--timeout"):
        distributed.start("cpu", timeout=1)


def test_a_second_start_does_not_meet_the_first(monkeypatch):
    """In the store are an address and a question of processes that are gone."""
    store = torch.distributed.HashStore()
    store.set("rank 1 asks", "gone")
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *args, **kwargs: iter([(store, 0, 2)]))
    limit, names = timedelta(seconds=20), {}

    def meet(rank: int) -> None:
        found = distributed.meet(rank, 2, limit)
        found.set(f"address {rank}", "here")
        names[rank] = found.get(f"address {1 - rank}")

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)  # rank 0 answers the one that is gone, first
    for thread in threads:
        thread.join(30)
    assert names == {0: b"here", 1: b"here"}
    with pytest.raises(ValueError, match="rank 1 of 2 has not joined within 1 s"):
        distributed.meet(0, 2, timedelta(seconds=1))
