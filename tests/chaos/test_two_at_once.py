"""Two processes that want the same: a run's folder, a dataset, a checkpoint that is just being written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import ROOT, TINY
from runtime import checkpoint
from sample import stream_text

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="flock, which Windows does not have"),
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
# train.py on the test's data, without plots, which would take longer than all the rest
TRAIN = """
import pathlib, runpy, sys
from runtime import report
from text import prepare
prepare.DATASETS = pathlib.Path(sys.argv.pop(1))
report.plot_loss = lambda *arguments: None
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""
# Two processes prepare one dataset; each notes when it begins to and when it is through. Then again, and the
# first to begin is killed in the middle. Then both are told to prepare it, whether it is there or not.
PREPARE = """
import json, os, signal, sys, time
from pathlib import Path
from text import prepare, settle

folder = Path(sys.argv[1])
prepare.DATASETS = folder / "datasets"
prepare.KNOWN["fresh"] = {"source": str(folder / "text.txt"), "tokenizer": "char"}
plain, dying = prepare.make_tokenizer, folder / "dying"

def note(what):
    with open(folder / "log.txt", "a", encoding="utf-8") as file:
        file.write(f"{what} {os.getpid()} ")

def slowly(*arguments):
    note("begins")
    time.sleep(0.3)
    if dying.exists():
        dying.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    made = plain(*arguments)
    note("ends")
    return made

def both(job):
    pids = []
    for _ in range(2):
        pids.append(os.fork())
        if not pids[-1]:
            os._exit(0 if job()["splits"]["train"]["tokens"] else 1)
    return sorted(os.waitpid(pid, 0)[1] for pid in pids)

prepare.make_tokenizer = slowly
codes = [both(lambda: settle.ensure("fresh"))]
prepare.DATASETS = folder / "others"
dying.touch()
codes.append(both(lambda: settle.ensure("fresh")))
codes.append(both(lambda: prepare.prepare("fresh", **prepare.KNOWN["fresh"])))
print(json.dumps(codes))
"""


def start(datasets: Path, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, datasets, "--dataset=small", *TINY, *flags],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_a_second_run_in_one_folder_is_refused_while_the_first_lives(datasets, train, tmp_path):
    out = tmp_path / "out"
    first = start(datasets, f"--out_dir={out}", "--max_iters=1000000", "--eval_interval=1000000")
    try:
        wait_for(out / "ckpt.pt", first)
        first.send_signal(signal.SIGSTOP)  # it lives, but leaves the processor to the others
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        second = start(datasets, f"--out_dir={out}", "--max_iters=5")
        _, err = second.communicate(timeout=60)
        advice = "wait for its end, stop it, or choose another --out_dir"
        assert err == f"error: {out} is in use by process {first.pid}; {advice}\n"
        assert second.returncode == 2
        for start_from in ("resume", "auto", "scratch"):
            with pytest.raises(ValueError, match=f"in use by process {first.pid}; "):
                train(f"--init_from={start_from}", "--max_iters=5")
        with pytest.raises(SystemExit):
            train("--init_from=resume", "--eval_only")  # may read what another writes
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate(timeout=60)
    assert train("--init_from=auto", "--max_iters=5")["progress"].step == 5  # a dead owner stops nobody
    assert not (out / ".lock").exists()


def test_of_two_that_prepare_one_dataset_one_waits(tmp_path):
    (tmp_path / "text.txt").write_text("some text " * 500, encoding="utf-8")
    command = [sys.executable, "-c", PREPARE, tmp_path]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[0, 0], [0, signal.SIGKILL], [0, 0]]
    assert done.stdout.count("waiting for process ") == 3
    words = (tmp_path / "log.txt").read_text(encoding="utf-8").split()
    assert words[::2] == "begins ends begins begins ends begins ends begins ends".split()
    pids = words[1::2]
    assert pids[0] == pids[1]
    assert pids[2] != pids[3] == pids[4]
    assert pids[5] == pids[6] != pids[7] == pids[8]
    assert not [path.name for path in (tmp_path / "datasets").iterdir() if path.name != "fresh"]
    assert not list((tmp_path / "others").glob("*.lock"))


def test_a_checkpoint_is_read_as_a_whole_while_training_saves(datasets, tmp_path, figure):
    """Sampling and evaluating read ckpt.pt and best.pt; what each step's weights are, numbered files tell."""
    out, cpu = tmp_path / "out", torch.device("cpu")
    flags = ("--max_iters=100", "--eval_interval=1", "--save_interval=1", "--keep_checkpoints=999")
    process = start(datasets, f"--out_dir={out}", *flags, "--n_layer=1", "--sample_interval=50")
    seen, n_reads = {}, 0
    wait_for(out / "ckpt.pt", process)
    wait_for(out / "best.pt", process)
    batch = torch.arange(20).view(2, 10)
    while process.poll() is None or n_reads < 100:
        for name in ("ckpt.pt", "best.pt"):
            model, tokenizer, saved = checkpoint.load_model(out / name, cpu)
            assert len("".join(stream_text(model, tokenizer, [0], 2, 0.8, 0, 1.0, seed=1))) == 2
            assert torch.isfinite(model(batch, batch))
            seen[saved["step"]] = model.state_dict()
            n_reads += 1
    assert process.wait() == 0, process.stderr.read()
    process.stderr.close()
    n_saves = 0
    for path in out.glob("ckpt_*.pt"):
        saved = torch.load(path, weights_only=True)
        n_saves += 1
        for name, tensor in seen.get(saved["step"], {}).items():
            assert torch.equal(tensor, saved["model"][name]), (saved["step"], name)
    assert n_saves >= 100 and n_reads >= 100
    assert len(seen) > 10  # the reads fell between the saves
    figure(f"{n_reads} reads of {len(seen)} different checkpoints during {n_saves} saves, each a whole one")
