"""Several processes do the work of one: the same losses, the same weights, one writer, one end for all."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import evaluate
from conftest import ROOT, TINY
from machine import distributed, hardware
from runtime import checkpoint
from text import corpora, prepare

# What torchrun starts in place of train.py: the same, and notes on what this process has seen and done.
DRIVER = """
import atexit, json, os, runpy, sys
from pathlib import Path
import numpy as np
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
import config, data
from machine import distributed
from text import prepare

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
(folder / f"pid-{rank}").write_text(str(os.getpid()))
prepare.DATASETS = folder / "datasets"
prepare.KNOWN["fresh"] = {"source": str(folder / "text.txt"), "tokenizer": "char"}
seen = {"prepared": 0, "reductions": 0, "batches": []}
plain_prepare, wrap, batch = prepare.prepare, distributed.wrap, data.Windows.batch

def count_prepare(*args, **kwargs):
    seen["prepared"] += 1
    return plain_prepare(*args, **kwargs)

def count_reductions(model, world_size, strategy):
    model = wrap(model, world_size, strategy)
    def hook(state, bucket):
        seen["reductions"] += bucket.is_last()  # a set of reductions is complete
        return allreduce_hook(state, bucket)
    model.register_comm_hook(None, hook)
    return model

def note_batch(self, step, *args, **kwargs):
    x, y = batch(self, step, *args, **kwargs)
    seen["batches"].append([step, x[:, :8].tolist()])
    return x, y

def break_down(loss):
    if seen["batches"][-1][0] == 3:
        raise KeyError("injected")
    return loss

prepare.prepare, distributed.wrap, data.Windows.batch = count_prepare, count_reductions, note_batch
if os.environ.get("BROKEN_RANK") == str(rank):
    torch.amp.GradScaler.scale = lambda self, loss: break_down(loss)
sys.argv = ["train.py", "--dataset=fresh", f"--out_dir={folder / f'out-{rank}'}", *sys.argv[2:]]
atexit.register(lambda: (folder / f"updates-{rank}").write_text(str(seen["batches"][-1][0] + 1)))
config.end_script = lambda: None  # the processes stay together; they part at exit
names = runpy.run_path("train.py", run_name="__main__")
model, windows = names["raw_model"], names["val_windows"]
torch.save(model.state_dict(), folder / f"weights-{rank}.pt")
found = names["evaluate"](
    model, windows, np.arange(windows.n_windows), names["torch_device"], names["autocast"], rank, 2,
    batch_size=7,
)
seen |= {"val_loss": found["loss"], "wrapper": type(names["model"]).__name__}
seen |= {"backend": torch.distributed.get_backend()}
(folder / f"seen-{rank}.json").write_text(json.dumps(seen))
"""
FLAGS = (
    *TINY,
    "--batch_size=2",
    "--gradient_accumulation_steps=3",
    "--max_iters=8",
    "--log_interval=1",
    "--eval_interval=4",
    "--eval_iters=0",
    "--save_interval=2",
    "--keep_checkpoints=2",
)


def start(folder: Path, *flags: str, **environment) -> subprocess.Popen:
    """torchrun --standalone --nproc_per_node=2 driver.py folder flags, in a folder with a text."""
    folder.mkdir(exist_ok=True)
    (folder / "driver.py").write_text(DRIVER, encoding="utf-8")
    text = next(corpora.open_corpus("python").chunks())[0][:20000]
    (folder / "text.txt").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.Popen(
        [*command, folder / "driver.py", folder, *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def rows(out: Path, key="loss") -> list[dict]:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if key in row]


def no_process_is_left(folder: Path) -> bool:
    for rank in (0, 1):
        try:
            os.kill(int((folder / f"pid-{rank}").read_text(encoding="utf-8")), 0)
        except ProcessLookupError:
            continue
        return False
    return True


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """The folder of a run of two processes that has ended."""
    folder = tmp_path_factory.mktemp("together")
    process = start(folder, *FLAGS)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    (folder / "stdout").write_text(out, encoding="utf-8")
    return folder


@pytest.fixture
def seen(together) -> list[dict]:
    """What each of the two processes has noted."""
    return [json.loads((together / f"seen-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def test_two_processes_give_the_losses_of_one(together, train, tmp_path):
    train(*FLAGS, f"--dataset={together / 'datasets/fresh'}", "--batch_size=4")
    outs = together / "out-0", tmp_path / "out"
    for kind, n, keys in (("loss", 8, "loss grad_norm lr tokens"), ("val_loss", 3, "train_loss val_loss")):
        for key in keys.split():
            ours, alone = ([row[key] for row in rows(out, kind)] for out in outs)
            assert len(ours) == n
            assert ours == pytest.approx(alone, abs=1e-5), key
    saved = [torch.load(out / "ckpt.pt", weights_only=True) for out in outs]
    assert list(saved[0]["model"]) == list(saved[1]["model"])  # DDP leaves no trace in the names
    assert saved[0].keys() == saved[1].keys()


def test_both_processes_end_with_the_same_weights(together):
    first, second = (torch.load(together / f"weights-{rank}.pt", weights_only=True) for rank in (0, 1))
    saved = torch.load(together / "out-0/ckpt.pt", weights_only=True)["model"]
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert torch.equal(tensor, saved[name]), name


def test_only_rank_0_writes_and_speaks(together):
    assert not (together / "out-1").exists()
    names = {path.name for path in (together / "out-0").iterdir()}
    numbered = {"ckpt_000006.pt", "ckpt_000008.pt"}
    expected = "best.pt ckpt.pt config.json metrics.jsonl samples.txt result.json loss.png tokenizer.json"
    assert names == {*expected.split(), *numbered}
    text = (together / "stdout").read_text(encoding="utf-8")
    assert text.count("step 8: train loss") == text.count("iter 8: loss") == 1
    assert text.count("settings: ") == text.count("--- a sample") == 1
    assert "tokens/iter: 384 = 2 windows x 32 tokens x 3 micro-steps x 2 processes" in text


def test_the_data_is_prepared_once(seen):
    assert [each["prepared"] for each in seen] == [1, 0]


def test_one_reduction_per_update(seen):
    """Eight updates of three micro-steps each."""
    assert [each["reductions"] for each in seen] == [8, 8]
    assert [each["wrapper"] for each in seen] == ["DistributedDataParallel"] * 2
    assert [each["backend"] for each in seen] == ["gloo"] * 2


def test_both_see_the_windows_of_one_process(together, seen):
    windows = data.Windows(together / "datasets/fresh", "train", 32)
    for step in range(8):
        x, _ = windows.batch(step, 12)
        ours = [row for each in seen for at, rows_of in each["batches"] if at == step for row in rows_of]
        assert sorted(ours) == sorted(x[:, :8].tolist())


def test_evaluation_is_the_same_with_one_and_two(together, seen):
    assert seen[0]["val_loss"] == seen[1]["val_loss"]
    model, _, saved = checkpoint.load_model(together / "out-0/ckpt.pt", torch.device("cpu"))
    windows = data.Windows(together / "datasets/fresh", "val", 32)
    assert windows.n_windows % 14  # the last batch is short, and one rank has more to do
    autocast, _ = hardware.choose_precision("float32", torch.device("cpu"))
    found = evaluate.evaluate(model, windows, np.arange(windows.n_windows), torch.device("cpu"), autocast)
    assert seen[0]["val_loss"] == pytest.approx(found["loss"], abs=1e-6)
    assert saved["val_loss"] == pytest.approx(found["loss"], abs=1e-6)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_read_disjoint_parts_whose_union_is_the_batch(datasets, monkeypatch, world_size):
    """Also over the end of an epoch, which does not come at the end of a batch."""
    monkeypatch.setattr(prepare, "DATASETS", datasets)
    windows = data.Windows("small", "train", 32)
    per_step = 5 * 2 * world_size
    assert windows.n_windows % per_step
    for step in (0, 1, windows.n_windows // per_step, 2 * windows.n_windows // per_step):
        whole, _ = windows.batch(step, per_step)
        parts = [
            windows.batch(step, 5, micro_step, 2, rank, world_size)[0]
            for micro_step in range(2)
            for rank in range(world_size)
        ]
        assert torch.equal(torch.cat(parts), whole)
    per_step = 4 * world_size
    n_steps = windows.n_windows // per_step  # whole steps of the first epoch
    ranks = [
        [windows.batch(step, 4, 0, 1, rank, world_size)[0] for step in range(n_steps)] for rank in range(3)
    ]
    parts = [{row.numpy().tobytes() for x in ranks[rank] for row in x} for rank in range(world_size)]
    assert [len(part) for part in parts] == [n_steps * 4] * world_size
    assert len(set.union(*parts)) == n_steps * per_step


@pytest.mark.slow
def test_a_rank_that_raises_ends_the_whole_run(tmp_path):
    began = time.perf_counter()
    process = start(tmp_path / "run", *FLAGS, "--save_interval=1", BROKEN_RANK="1")
    _, err = process.communicate(timeout=120)
    assert time.perf_counter() - began < 60
    assert process.returncode != 0
    assert "KeyError: 'injected'" in err
    assert no_process_is_left(tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert not (tmp_path / "run/out-1").exists()
    assert torch.load(tmp_path / "run/out-0/ckpt_000003.pt", weights_only=True)["step"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(("number", "to"), [(signal.SIGINT, "torchrun"), (signal.SIGTERM, "rank 1")])
def test_a_signal_stops_all_ranks_at_the_same_step(tmp_path, number, to):
    """torchrun hands it on, and ends with a code of its own; if it heard nothing, with that of the ranks."""
    out = tmp_path / "run/out-0"
    process = start(tmp_path / "run", *FLAGS, "--max_iters=100000", "--save_interval=0")
    while not (out / "metrics.jsonl").is_file() or len(rows(out)) < 5:
        assert process.poll() is None
        time.sleep(0.1)
    if to == "torchrun":
        process.send_signal(number)
    else:
        os.kill(int((tmp_path / "run/pid-1").read_text(encoding="utf-8")), number)
    text, _ = process.communicate(timeout=60)
    assert (process.returncode != 0) == (to == "torchrun")
    assert no_process_is_left(tmp_path / "run")
    step = torch.load(out / "ckpt.pt", weights_only=True)["step"]
    how = "torchrun --nproc_per_node=2 train.py --init_from=resume"
    assert f"stopped at step {step}, saved; go on: {how}" in text
    updates = [(tmp_path / f"run/updates-{rank}").read_text(encoding="utf-8") for rank in (0, 1)]
    assert updates == [str(step), str(step)]
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_without_torchrun_nothing_happens(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.start("cpu") == (0, 1, torch.device("cpu"))
    assert not torch.distributed.is_initialized()
    model = torch.nn.Linear(2, 2)
    assert distributed.wrap(model, 1, "ddp") is model
    assert distributed.sum_over_ranks([1.5, 2], torch.device("cpu")) == [1.5, 2]
    distributed.barrier()
    with pytest.raises(ValueError, match="backend=mpi is unknown; expected auto, nccl or gloo"):
        distributed.start("cpu", "mpi")


GLOO_IN_PYTHON = """
import time
import torch
import torch.distributed as dist
from machine import distributed
distributed.start("cpu", "gloo", strategy="fsdp")
wrapped = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 3))
wrapped(torch.ones(5, 2)).sum().backward()
for _ in range(20):
    dist.all_reduce(torch.ones(3), async_op=True).get_future().then(lambda done: time.sleep(0.002))
"""


@pytest.mark.slow
def test_a_process_ends_while_threads_of_gloo_hold_python(shell):
    """It aborted, once in some hundred runs: one of them had to free an object when Python was gone."""
    done = shell("-c", GLOO_IN_PYTHON)
    assert (done.returncode, done.stderr) == (0, "")
