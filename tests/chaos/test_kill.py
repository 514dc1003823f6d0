"""A run that is killed at any moment, and resumed, ends as one that nobody touched: bit for bit, on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT, TINY
from runtime import checkpoint, report
from sample import stream_text

pytestmark = pytest.mark.slow
FLAGS = (
    *TINY,
    "--dataset=small",
    "--init_from=auto",
    "--optimizer=muon",
    "--dropout=0.1",
    "--gradient_accumulation_steps=2",
    "--max_iters=24",
    "--eval_interval=4",
    "--log_interval=1",
    "--patience=9",  # more than there are evaluations
    "--sample_interval=5",
    "--save_interval=3",
    "--keep_checkpoints=3",
    "--max_new_tokens=10",
    "--threads=1",
)
TIMES = {"seconds", "tokens_per_second", "memory_mb", "cpu_percent", "data_ms"}


@pytest.fixture(scope="module")
def lives(tmp_path_factory, datasets, request) -> Path:
    """The folder that lives.py has filled."""
    folder = tmp_path_factory.mktemp("lives")
    n_kills = 200 if request.config.getoption("--long", default=False) else 20
    seed = int(os.environ.get("CHAOS_SEED", "1"))
    command = [sys.executable, Path(__file__).with_name("lives.py"), folder, datasets, n_kills, seed, *FLAGS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(map(str, command), env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return folder


def same(ours, theirs, where="") -> None:
    """Two nested values are equal to the last bit, but for times."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours.keys() - TIMES - {"training_time", "out_dir"}:
            same(ours[key], theirs[key], f"{where} {key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            same(*pair, f"{where} {i}")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


def sample_of(path: Path) -> str:
    model, tokenizer, saved = checkpoint.load_model(path, torch.device("cpu"))
    return "".join(stream_text(model, tokenizer, [0], 50, 0.8, 0, 1.0, seed=saved["step"]))


def last_sample(text: str) -> str:
    """What the last life that came so far has printed."""
    return text.rpartition("--- a sample at step ")[2].split("\n---\n")[0]


def test_every_killed_run_ends_as_an_undisturbed_one(lives, figure):
    told = json.loads((lives / "lives.json").read_text(encoding="utf-8"))
    for i in range(told["runs"]):
        alone, killed = lives / f"alone-{i % 2}", lives / f"killed-{i}"
        names = [{path.name for path in folder.iterdir()} for folder in (alone, killed)]
        assert names[0] == names[1], killed
        for path in alone.glob("*.pt"):
            ours, theirs = (torch.load(f / path.name, weights_only=True) for f in (killed, alone))
            same(ours, theirs, f"{killed.name}/{path.name}")
        same(*(report.read_rows(folder / "metrics.jsonl") for folder in (killed, alone)), killed.name)
        for name in ("config.json", "result.json"):
            same(*(json.loads((f / name).read_text(encoding="utf-8")) for f in (killed, alone)), name)
        assert (killed / "tokenizer.json").read_bytes() == (alone / "tokenizer.json").read_bytes()
        for name in ("loss.png", "samples.txt"):
            assert (killed / name).read_bytes() == (alone / name).read_bytes()
        for name in ("ckpt.pt", "best.pt"):
            assert sample_of(killed / name) == sample_of(alone / name)
        outputs = [f.with_suffix(".txt").read_text(encoding="utf-8") for f in (killed, alone)]
        assert last_sample(outputs[0]) == last_sample(outputs[1])
        assert "error:" not in outputs[0] and "Traceback" not in outputs[0]
    assert sum(told["kills"].values()) >= 20
    assert told["resumed"] >= 10
    where = ", ".join(f"{n} at {kind}" for kind, n in sorted(told["kills"].items()))
    figure(
        f"{sum(told['kills'].values())} kills in {told['runs']} runs, all bit-identical at the end: {where}"
    )


def test_the_second_kind_of_run_stops_early(lives):
    """Or nothing would be known of a kill between the last evaluation and the end."""
    steps = [torch.load(lives / f"alone-{i}/ckpt.pt", weights_only=True)["step"] for i in (0, 1)]
    assert steps == [24, 12]
