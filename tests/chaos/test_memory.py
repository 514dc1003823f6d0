"""Out of memory, injected and real: the same gradient in smaller pieces; else what helps is said."""

import errno
import functools
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import data
import evaluate
import muon
import optim
from conftest import ROOT, TINY
from machine import hardware
from runtime import checkpoint

pytestmark = pytest.mark.slow
FLAGS = ("--batch_size=8", "--max_iters=6", "--eval_interval=3", "--log_interval=1")
ERROR = torch.OutOfMemoryError("injected")


def weights(path) -> dict:
    return checkpoint.load(path)["model"]


def same(ours: dict, theirs: dict) -> None:
    for name, t in theirs.items():
        torch.testing.assert_close(ours[name], t, rtol=0, atol=2e-5, msg=name)


@pytest.fixture
def too_large(monkeypatch):
    """too_large(where, size): from update 3 on, memory runs out there with over `size` windows at once."""

    def inject(where: str, size: int) -> dict:
        state = {"updates": 0, "windows": 0, "failed": 0}

        def check(error=ERROR):
            if state["updates"] >= 3 and state["windows"] > size:
                state["failed"] += 1
                raise error

        move, batch = hardware.to_device, data.Windows.batch

        def batch_spy(self, step, batch_size, *args):
            state.update(updates=step + 1, windows=batch_size)
            if where == "reading":
                check(OSError(errno.ENOMEM, "injected"))  # of mmap
            return batch(self, step, batch_size, *args)

        def move_spy(t, device):
            state["windows"] = len(t)
            if where == "forward":
                check()
            return move(t, device)

        monkeypatch.setattr(data.Windows, "batch", batch_spy)
        monkeypatch.setattr(hardware, "to_device", move_spy)
        for room, name, place in (
            (torch.Tensor, "backward", "backward"),
            (torch.nn.utils, "get_total_norm", "clip"),
            (torch.amp.GradScaler, "step", "step"),
        ):
            plain = getattr(room, name)

            @functools.wraps(plain)
            def spy(*args, plain=plain, place=place, **kwargs):
                if where == place:
                    check()
                return plain(*args, **kwargs)

            monkeypatch.setattr(room, name, spy)
        return state

    return inject


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("where", ["reading", "forward", "backward", "clip", "step"])
def test_the_batch_is_divided_and_nothing_else_changes(
    train, run_script, tmp_path, too_large, capsys, where, dtype, figure
):
    out = tmp_path / "out"
    train(*FLAGS, f"--dtype={dtype}")
    expected = weights(out / "ckpt.pt")
    capsys.readouterr()
    state = too_large(where, 2)
    names = train(*FLAGS, f"--dtype={dtype}")
    printed = capsys.readouterr().out
    sizes = re.findall(r"going on with batch_size=(\d+), gradient_accumulation_steps=(\d+)", printed)
    assert sizes == [("4", "2"), ("2", "4")] and state["failed"] == 2
    if dtype == "float32":
        same(weights(out / "ckpt.pt"), expected)
    else:  # float16 rounds sums of other lengths differently
        for name, t in weights(out / "ckpt.pt").items():
            assert (t - expected[name]).abs().max() < 0.02, name
    assert names["progress"].step == 6
    figure("out of memory, injected at five places: batch divided twice, same weights, kept on resume")
    names = run_script("train.py", "--init_from=resume", "--max_iters=8")
    assert (names["batch_size"], names["micro_steps"]) == (2, 4)
    assert "out of memory" not in capsys.readouterr().out


def test_a_step_that_broke_off_in_the_middle_is_not_repeated(train, tmp_path, monkeypatch):
    """Muon has changed the matrices of one shape, and memory runs out with the next."""
    plain, calls = muon.newton_schulz, []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise ERROR
        return plain(*args, **kwargs)

    monkeypatch.setattr(muon, "newton_schulz", fail)
    with pytest.raises(
        ValueError, match="in the middle of the optimizer's step .go on from the last checkpoint"
    ):
        train(*FLAGS)
    saved = checkpoint.load(tmp_path / "out/ckpt.pt")
    assert saved["step"] == 0
    assert train("--init_from=resume", "--max_iters=6")["progress"].step == 6


def test_the_averages_are_there_before_the_first_update(train, monkeypatch):
    """Else their memory would be missing in the first step, where smaller batches do not help."""

    def stop(*args):
        raise KeyboardInterrupt

    built, build = [], optim.build_optimizer
    monkeypatch.setattr(optim, "build_optimizer", lambda *args: built.append(build(*args)) or built[0])
    monkeypatch.setattr(data.Windows, "batch", stop)
    with pytest.raises(KeyboardInterrupt):
        train(*FLAGS, "--optimizer=adamw")
    assert all(set(state) == {"exp_avg", "exp_avg_sq", "step"} for state in built[0].state.values())
    assert len(built[0].state) == len(
        list(built[0].param_groups[0]["params"] + built[0].param_groups[1]["params"])
    )


def test_one_window_that_does_not_fit_is_told_what_helps(train, tmp_path, too_large):
    state = too_large("forward", 0)
    with pytest.raises(ValueError, match="out of memory with batch_size=1; ") as error:
        train(*FLAGS)
    assert state["failed"] == 4
    assert checkpoint.load(tmp_path / "out/ckpt.pt")["step"] == 0
    text = str(error.value)
    flags = re.findall(r"(--\w+=\w+) \(needs (\d+)% as much\)", text)
    shares = [int(share) for _, share in flags]
    assert shares == sorted(shares) and len(flags) >= 2


def test_evaluation_takes_smaller_batches(train, tmp_path, monkeypatch):
    train(*FLAGS, "--eval_iters=3")
    found = {}
    for limit in (1000, 3):
        forward = torch.nn.functional.cross_entropy

        def spy(logits, *args, limit=limit, forward=forward, **kwargs):
            if len(logits) > limit:
                raise ERROR
            return forward(logits, *args, **kwargs)

        model, _, saved = checkpoint.load_model(tmp_path / "out/best.pt", torch.device("cpu"))
        windows = data.Windows("small", "val", 32)
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "cross_entropy", spy)
            found[limit] = evaluate.evaluate(
                model,
                windows,
                range(windows.n_windows),
                torch.device("cpu"),
                torch.autocast("cpu", enabled=False),
            )["loss"]
    assert found[3] == pytest.approx(found[1000], abs=1e-6)


# ---- real: an address space that is too small
ROOM = 230  # MB; 80 of them are the addresses that a waiting thread (machine/stages.py) reserves, no memory
LIMITED = """
import pathlib, resource, runpy, sys
import torch
from text import prepare
import torch._dynamo
prepare.DATASETS = pathlib.Path(sys.argv.pop(1))
room = int(sys.argv.pop(1))
torch.set_num_threads(1)
size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
if room:
    resource.setrlimit(resource.RLIMIT_AS, (size + room, size + room))
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def limited(datasets, out, room: int, *flags: str) -> subprocess.CompletedProcess:
    """train.py with so many MB of memory beyond what it has when torch is imported; 0: no limit."""
    shape = (
        "--n_layer=4 --n_embd=128 --block_size=128 --batch_size=64 --max_iters=2 --eval_interval=2".split()
    )
    command = [sys.executable, "-c", LIMITED, datasets, room * 2**20, "--dataset=small", f"--out_dir={out}"]
    return subprocess.run(
        [str(word) for word in (*command, *TINY, *shape, *flags)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is kept on Linux")
def test_memory_that_really_runs_out(datasets, tmp_path, figure):
    def run(room: int) -> subprocess.CompletedProcess:
        return limited(datasets, tmp_path / str(room), room)

    with ThreadPoolExecutor(2) as pool:
        free, tight = pool.map(run, (0, ROOM))
    assert (free.returncode, tight.returncode) == (0, 0), free.stderr + tight.stderr
    same(weights(tmp_path / f"{ROOM}/ckpt.pt"), weights(tmp_path / "0/ckpt.pt"))
    n = tight.stdout.count("out of memory: going on with batch_size=")
    assert n and "out of memory" not in free.stdout
    figure(f"{ROOM} MB for a batch of 64 windows: divided {n} times, weights equal to 2e-5")
