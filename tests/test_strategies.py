"""ddp, zero1 and fsdp on 1 to 4 processes: the numbers of one process, and checkpoints that all can read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import checkpoint
import data
from conftest import ROOT

STRATEGIES = ("ddp", "zero1", "fsdp")
# Started by torchrun in place of train.py: makes one run after the other in the same processes, because to
# start a process takes longer than such a run.
DRIVER = """
import os, runpy, sys
from pathlib import Path
import torch
import torch.distributed as dist
import data, distributed, report

folder = Path(sys.argv[1])
data.DATASETS = folder / "datasets"
report.plot_loss = lambda *args: None
join = dist.init_process_group
dist.init_process_group = lambda *args, **kwargs: dist.is_initialized() or join(*args, **kwargs)
distributed.atexit.register = lambda function: None
for line in Path(sys.argv[2]).read_text(encoding="utf-8").splitlines():
    out_dir, *flags = line.split()
    sys.argv = ["train.py", f"--out_dir={folder / out_dir}", *flags]
    runpy.run_path("train.py", run_name="__main__")
if dist.is_initialized():
    dist.barrier()
    dist.destroy_process_group()
"""
WINDOWS = 48  # per update; 1, 2, 3 and 4 processes share them, in 1 and in 4 micro-steps
MODEL = (
    f"--device=cpu --dtype=float32 --threads=1 --n_layer=1 --n_head=2 --n_embd=16 --block_size=16 "
    f"--global_batch_size={WINDOWS} --log_interval=1 --eval_iters=1 --max_new_tokens=1"
)


def run_all(folder: Path, world_size: int, runs: list[str]) -> str:
    """Make the runs ("out_dir --flag --flag", ...) on so many processes; returns what was printed."""
    (folder / "driver.py").write_text(DRIVER, encoding="utf-8")
    todo = folder / f"runs-{world_size}.txt"
    todo.write_text("\n".join(runs), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
    done = subprocess.run(
        [sys.executable, *(launcher if world_size > 1 else ()), folder / "driver.py", folder, todo],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=400,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def losses(out: Path) -> torch.Tensor:
    """(updates, 2): loss and gradient norm of each."""
    rows = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return torch.tensor([[row["loss"], row["grad_norm"]] for row in rows if "loss" in row])


def tensors(out: Path) -> dict[str, torch.Tensor]:
    """All weights and averages of a run's last checkpoint, by name."""
    saved = checkpoint.load(out / "ckpt.pt")
    found = dict(saved["model"])
    names = [name for group in saved["optimizer"]["param_groups"] for name in group["param_names"]]
    for i, state in saved["optimizer"]["state"].items():
        found |= {f"{names[i]} {average}": t for average, t in state.items()}
    return found


def largest_difference(one: Path, other: Path) -> float:
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with two datasets: plain text, and rows of which only the response is learned."""
    folder = tmp_path_factory.mktemp("strategies")
    rows = [{"prompt": f"{a} and {b}? ", "response": str(a + b)} for a in range(40) for b in range(30)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "sums.jsonl").write_text(lines, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "DATASETS", folder / "datasets")
        data.prepare("plain", "verse")
        data.prepare("masked", str(folder / "sums.jsonl"), format="jsonl")
    return folder


# ---- the same numbers
COMBINATIONS = [
    (micro_steps, optimizer, dataset)
    for micro_steps in (1, 4)
    for optimizer in ("adamw", "muon")
    for dataset in ("plain", "masked")
]


@pytest.fixture(scope="module")
def curves(folder) -> Path:
    """Thirty updates with each strategy on 1 to 4 processes, for each of the combinations."""
    for world_size in (1, 2, 3, 4):
        runs = []
        for micro_steps, optimizer, dataset in COMBINATIONS:
            for strategy in STRATEGIES:
                out = f"curve-{world_size}-{strategy}-{micro_steps}-{optimizer}-{dataset}"
                batch_size = WINDOWS // world_size // micro_steps
                runs.append(
                    f"{out} {MODEL} --max_iters=30 --eval_interval=30 --always_save_checkpoint=False "
                    f"--dataset={dataset} --optimizer={optimizer} --strategy={strategy} "
                    f"--batch_size={batch_size}"
                )
        text = run_all(folder, world_size, runs)
        assert text.count(f"x 4 micro-steps x {world_size} processes") == len(runs) // 2
    return folder


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_strategy_gives_the_losses_of_one_process(curves, world_size, strategy):
    for micro_steps, optimizer, dataset in COMBINATIONS:
        alone = losses(curves / f"curve-1-ddp-1-{optimizer}-{dataset}")
        ours = losses(curves / f"curve-{world_size}-{strategy}-{micro_steps}-{optimizer}-{dataset}")
        assert ours.shape == alone.shape == (30, 2)
        assert alone[0, 0] - alone[-1, 0] > 0.05  # it has learned
        torch.testing.assert_close(ours[:, 0], alone[:, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(ours[:, 1], alone[:, 1], rtol=1e-4, atol=1e-5)
