"""ddp, zero1 and fsdp on 1 to 4 processes: the numbers of one process, and checkpoints that all can read."""

import itertools
import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch

from conftest import ROOT, TINY
from machine import distributed
from runtime import checkpoint, sharded
from techniques.offload import to_disk
from text import prepare

STRATEGIES = ("ddp", "zero1", "fsdp")
# Started in place of train.py: makes one run after the other in the same processes.
DRIVER = """
import collections, json, os, runpy, sys
from pathlib import Path
import torch
import torch.distributed as dist
from machine import distributed
from runtime import report
from text import prepare

folder = Path(sys.argv[1])
prepare.DATASETS = folder / "datasets"
report.plot_loss = lambda *args: None
join = dist.init_process_group
dist.init_process_group = lambda *args, **kwargs: dist.is_initialized() or join(*args, **kwargs)
distributed.atexit.register = lambda function: None
calls = collections.Counter()

def count(name):
    function = getattr(dist, name)
    def counting(*args, **kwargs):
        calls[name] += 1
        return function(*args, **kwargs)
    setattr(dist, name, counting)

# what fully_shard calls for the gradients of each group of weights; it has this name since torch 2.13
count("reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor")
for line in Path(sys.argv[2]).read_text(encoding="utf-8").splitlines():
    out_dir, *flags = line.split()
    sys.argv = ["train.py", f"--out_dir={folder / out_dir}", *flags]
    calls.clear()
    runpy.run_path("train.py", run_name="__main__")
    if os.environ.get("RANK", "0") == "0":
        (folder / out_dir / "calls.json").write_text(json.dumps(calls))
if dist.is_initialized():
    dist.barrier()
    dist.destroy_process_group()
"""
WINDOWS = 48  # per update; 1, 2, 3 and 4 processes share them, in 1 and in 4 micro-steps
MODEL = (
    f"--device=cpu --dtype=float32 --threads=1 --n_layer=1 --n_head=2 --n_embd=16 --block_size=16 "
    f"--global_batch_size={WINDOWS} --log_interval=1 --eval_iters=1 --max_new_tokens=1"
)


def run_all(forks, folder: Path, world_size: int, runs: list[str]) -> str:
    """Make the runs ("out_dir --flag --flag", ...) on so many processes; returns what was printed."""
    (folder / "driver.py").write_text(DRIVER, encoding="utf-8")
    todo = folder / f"runs-{world_size}.txt"
    todo.write_text("\n".join(runs), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [folder / "driver.py", folder, todo]
    if world_size > 1:
        done = forks.ranks(words, world_size, ROOT, env)
    else:
        done = [forks.run(words, ROOT, env, timeout=400)]
    for one in done:
        assert one.returncode == 0, one.stdout[-2000:] + one.stderr[-4000:]
    return "".join(one.stdout for one in done)


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
        patch.setattr(prepare, "DATASETS", folder / "datasets")
        prepare.prepare("plain", str(ROOT / "train.py"))
        prepare.prepare("masked", str(folder / "sums.jsonl"), format="jsonl")
    return folder


# ---- the same numbers
# (micro-steps, optimizer, dataset): any two of their values meet
HALF = ((4, "adamw", "plain"), (1, "muon", "plain"), (1, "adamw", "masked"), (4, "muon", "masked"))
SOME = HALF[-1:]  # what is hardest to keep equal


@pytest.fixture(scope="module")
def curves(folder, forks):
    """curves(n, combinations) makes thirty updates on n processes with each strategy, once."""

    def make(world_size: int, combinations: tuple, strategies=STRATEGIES) -> Path:
        runs, divided = [], 0
        for micro_steps, optimizer, dataset in combinations:
            for strategy in strategies:
                out = f"curve-{world_size}-{strategy}-{micro_steps}-{optimizer}-{dataset}"
                if (folder / out).exists():
                    continue
                batch_size = WINDOWS // world_size // micro_steps
                runs.append(
                    f"{out} {MODEL} --max_iters=30 --eval_interval=30 --always_save_checkpoint=False "
                    f"--dataset={dataset} --optimizer={optimizer} --strategy={strategy} "
                    f"--batch_size={batch_size}"
                )
                divided += micro_steps == 4
        if runs:
            text = run_all(forks, folder, world_size, runs)
            assert text.count(f"x 4 micro-steps x {world_size} process") == divided
        return folder

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "combinations"),
    [(1, SOME), (2, HALF), (3, SOME), (4, SOME)],
    ids=["1-some", "2-half", "3-some", "4-some"],
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_gives_the_losses_of_one_process(curves, world_size, combinations, strategy):
    curves(1, tuple((1, optimizer, dataset) for _, optimizer, dataset in HALF), ("ddp",))
    folder = curves(world_size, combinations)
    for micro_steps, optimizer, dataset in combinations:
        alone = losses(folder / f"curve-1-ddp-1-{optimizer}-{dataset}")
        ours = losses(folder / f"curve-{world_size}-{strategy}-{micro_steps}-{optimizer}-{dataset}")
        assert ours.shape == alone.shape == (30, 2)
        assert alone[0, 0] - alone[-1, 0] > 0.05  # it has learned
        torch.testing.assert_close(ours[:, 0], alone[:, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(ours[:, 1], alone[:, 1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_one_reduction_per_update_with_fsdp(curves):
    """Two groups of weights, the block and the rest: two calls an update. (ddp: test_distributed.)"""
    for micro_steps, optimizer, dataset in HALF:
        out = f"curve-2-fsdp-{micro_steps}-{optimizer}-{dataset}"
        calls = curves(2, HALF) / out / "calls.json"
        assert list(json.loads(calls.read_text(encoding="utf-8")).values()) == [30 * 2]


SWITCHES = {
    "tied, learned positions": "--arch=gpt2 --optimizer=adamw",
    "llama": "--arch=llama",
    "recomputed": "--gradient_checkpointing=True",
    "loss in chunks": "--logits_mb=1 --dataset=wide --batch_size=24",
    "frozen, sgd": "--optimizer=sgd --freeze=wte",
    "bfloat16": "--dtype=bfloat16",
    "bfloat16 and LayerNorm": "--dtype=bfloat16 --norm=layernorm --bias=True",
    "float16": "--dtype=float16",
    "on disk": "--offload=disk",
}


@pytest.mark.slow
def test_fsdp_with_every_switch_is_near_ddp(folder, forks):
    """In 16 bits the weights of norms are rounded, too, so the losses are only near."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "DATASETS", folder / "datasets")
        prepare.prepare("wide", str(ROOT / "train.py"), tokenizer="bpe", vocab_size=1500)
    runs = [
        f"switch-{strategy}-{i} {MODEL} --n_layer=2 --dataset=plain --batch_size=8 --max_iters=6 "
        f"--eval_interval=6 --strategy={strategy} {flags}"
        for strategy in ("ddp", "fsdp")
        for i, flags in enumerate(SWITCHES.values())
    ]
    run_all(forks, folder, 2, runs)
    for i, what in enumerate(SWITCHES):
        ddp, fsdp = (losses(folder / f"switch-{strategy}-{i}") for strategy in ("ddp", "fsdp"))
        rtol = 1e-2 if "float16" in what else 1e-5
        torch.testing.assert_close(
            fsdp, ddp, rtol=rtol, atol=rtol, msg=lambda text, what=what: f"{what}: {text}"
        )
        out = folder / f"switch-fsdp-{i}"
        assert not list(out.glob("tmp*")), "the files of offload=disk have no names"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_averages_on_disk_give_equal_bits(train, tmp_path, strategy, optimizer):
    flags = f"--strategy={strategy} --optimizer={optimizer}"
    train(*flags.split())
    shutil.move(tmp_path / "out", tmp_path / "memory")
    train(*flags.split(), "--offload=disk", "--max_iters=10", "--lr_decay_iters=20")
    train("--init_from=resume", "--max_iters=20")
    assert largest_difference(tmp_path / "memory", tmp_path / "out") == 0.0


def test_averages_on_disk_are_in_mapped_files(tmp_path):
    weight = torch.nn.Parameter(torch.randn(64, 64))
    optimizer = torch.optim.AdamW([dict(params=[("w", weight)], kind="adamw", lr=0.1)], fused=True)
    assert to_disk(optimizer, tmp_path) == 2 * 4 * 64 * 64
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    ranges = [line.split()[0].split("-") for line in maps if str(tmp_path) in line]
    for average in ("exp_avg", "exp_avg_sq"):
        place = optimizer.state[weight][average].data_ptr()
        assert any(int(low, 16) <= place < int(high, 16) for low, high in ranges), average
        assert optimizer.state[weight][average].any()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "shared"),
    [((0, 8, 3, 4), (8, 3)), ((48, 8, 1, 2), (8, 3)), ((48, 48, 9, 4), (12, 1)), ((42, 8, 1, 3), (7, 2))],
)
def test_the_global_batch_is_shared(given, shared):
    assert distributed.share_batch(*given) == shared


def test_processes_that_cannot_share_the_batch_are_told_which_can():
    with pytest.raises(ValueError, match="5 processes cannot share global_batch_size=48 .* start 4 or 6, or"):
        distributed.share_batch(48, 8, 1, 5)
    with pytest.raises(ValueError, match="start 3, or choose"):
        distributed.share_batch(3, 8, 1, 4)


def test_auto_starts_goes_on_and_is_content_with_a_finished_run(train, tmp_path, capsys):
    """torchrun starts a command again: what has ended must not fail."""
    train("--init_from=auto", "--max_iters=10", "--lr_decay_iters=20")
    train("--init_from=auto", "--max_iters=20")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        train("--init_from=auto", "--max_iters=20")
    assert not ended.value.code and "has already made its 20 updates" in capsys.readouterr().out
    assert len(losses(tmp_path / "out")) == 4  # at 5, 10, 15 and 20, none of them twice


# ---- one checkpoint for all
FORMATS = ("file", "sharded")
SHORT = f"{MODEL} --dataset=plain --dropout=0.1 --batch_size=8 --lr_decay_iters=8 --eval_interval=4"


@pytest.fixture(scope="module")
def halves(folder, forks) -> Path:
    """The folder, with eight updates of two processes by each strategy; in both formats, the first four."""
    runs = []
    for strategy in STRATEGIES:
        flags = f"{SHORT} --strategy={strategy}"
        runs.append(f"whole-{strategy} {flags} --max_iters=8")
        runs += [
            f"half-{strategy}-{kind} {flags} --max_iters=4 --checkpoint_format={kind}" for kind in FORMATS
        ]
    text = run_all(forks, folder, 2, runs)
    stood_still = text.count("in the background; training stood still for 0.")
    assert stood_still == len(STRATEGIES) * 4  # best, ckpt; at 0 and at 4
    return folder


def resumed(forks, folder: Path, world_size: int, pairs: list[tuple[str, str]], *flags: str) -> None:
    """Go on to update 8 with copies of halves, with these strategies: 3-half-fsdp-file-ddp."""
    runs = []
    for half, strategy in pairs:
        copy = f"{world_size}-{half}-{strategy}"
        shutil.copytree(folder / half, folder / copy, copy_function=shutil.copy2)
        more = " ".join(("--init_from=resume", "--max_iters=8", f"--strategy={strategy}", *flags))
        runs.append(f"{copy} {more}")
    run_all(forks, folder, world_size, runs)


@pytest.mark.slow
def test_resumed_on_as_many_processes_is_bit_equal(halves, forks):
    both = list(itertools.product(STRATEGIES, FORMATS))
    resumed(forks, halves, 2, [(f"half-{strategy}-{kind}", strategy) for strategy, kind in both])
    for strategy, kind in both:
        whole, again = halves / f"whole-{strategy}", halves / f"2-half-{strategy}-{kind}-{strategy}"
        assert largest_difference(whole, again) == 0.0, (strategy, kind)
        assert torch.equal(losses(again), losses(whole)), (strategy, kind)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 3])
def test_any_strategy_and_number_of_processes_resumes_any_other(halves, forks, world_size):
    """Dropout is drawn by rank, so it is off from update 4 on; the twin is ddp from an ordinary file."""
    halfs = [f"half-{strategy}-{kind}" for strategy in STRATEGIES for kind in FORMATS]
    after = STRATEGIES if world_size > 1 else ("ddp",)
    pairs = [(half, strategy) for half in halfs for strategy in after]
    resumed(forks, halves, world_size, pairs, "--dropout=0")
    twin = halves / f"{world_size}-half-ddp-file-ddp"
    assert tensors(twin)["wte.weight"].isfinite().all()
    for half, strategy in pairs:
        assert largest_difference(twin, halves / f"{world_size}-{half}-{strategy}") < 1e-5, (half, strategy)
    names = [json.loads((halves / half / "config.json").read_text(encoding="utf-8")) for half in halfs]
    assert {settings["global_batch_size"] for settings in names} == {WINDOWS}


@pytest.mark.slow
def test_shards_are_opened_by_one_process_and_made_an_ordinary_file(halves, run_script, shell):
    folder = halves / "half-fsdp-sharded"
    assert sorted(path.name for path in folder.glob("*_0*")) == ["best_000004", "ckpt_000000", "ckpt_000004"]
    held = {path.name for path in (folder / "ckpt_000004").iterdir()}
    assert held == {"run.json", "tensors.json", "__0_0.distcp", "__1_0.distcp"}
    saved = checkpoint.load(folder / "best.pt")
    for script in ("sample.py", "evaluate.py"):
        flags = ("--max_new_tokens=5",) if script == "sample.py" else (f"--input={ROOT / 'train.py'}",)
        run_script(script, f"--out_dir={folder}", "--device=cpu", *flags)
    done = shell("-m", "runtime.checkpoint", "consolidate", str(folder))
    assert done.returncode == 0 and done.stdout.count("saved ") == 2, done.stderr
    ordinary = torch.load(folder / "best.pt", weights_only=True)
    for name, tensor in saved["model"].items():
        assert torch.equal(tensor, ordinary["model"][name]), name
    twin = torch.load(folder.parent / "half-fsdp-file/ckpt.pt", weights_only=True)
    ordinary = torch.load(folder / "ckpt.pt", weights_only=True)
    assert ordinary.keys() == twin.keys() and ordinary["model"].keys() == twin["model"].keys()
    assert largest_difference(folder, folder.parent / "half-fsdp-file") == 0.0
    with pytest.raises(ValueError, match="nothing to do"):
        checkpoint.consolidate(folder)


def test_of_shards_the_newest_are_kept(train, tmp_path):
    train("--checkpoint_format=sharded", "--save_interval=2", "--keep_checkpoints=3", "--max_iters=10")
    names = sorted(path.name for path in (tmp_path / "out").glob("*_0*"))
    ten = ["ckpt_000010", "ckpt_000010_1"]  # saved twice, which counts once
    assert names == ["best_000010", "ckpt_000006", "ckpt_000008", *ten]


KILLED = """
import os, runpy, signal, sys
from pathlib import Path
from runtime import sharded
from text import prepare

prepare.DATASETS = Path(sys.argv[1])
write_json = sharded.write_json

def killed(path, value):
    if path.name == "tensors.json" and path.parent.name == "ckpt_000006":
        os.kill(os.getpid(), signal.SIGKILL)
    write_json(path, value)

sharded.write_json = killed
sys.argv = ["train.py", *sys.argv[2:]]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_kill_while_shards_are_written_leaves_those_before(datasets, tmp_path, shell, train):
    flags = ("--checkpoint_format=sharded", "--eval_interval=3", "--max_iters=9")
    (tmp_path / "killed.py").write_text(KILLED, encoding="utf-8")
    folder = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    everything = (*TINY, "--dataset=small", *flags, f"--out_dir={folder}")
    done = shell(str(tmp_path / "killed.py"), str(datasets), *everything, env=environment)
    assert done.returncode == -9
    assert (folder / "ckpt_000006/run.json").is_file() and not (folder / "ckpt_000006/tensors.json").exists()
    assert checkpoint.newest(folder / "ckpt.pt") == folder / "ckpt_000003"
    train(*flags, f"--out_dir={folder}", "--init_from=auto")
    train(*flags)
    assert largest_difference(folder, tmp_path / "out") == 0.0
    assert checkpoint.newest(folder / "ckpt.pt").name == "ckpt_000009"


@pytest.mark.slow
def test_training_goes_on_while_shards_are_written(train, tmp_path, monkeypatch, capsys):
    """Writing takes half a second here: the run stands still for less, and what is saved is of one step."""
    finish = sharded.Writer.finish
    monkeypatch.setattr(sharded.Writer, "finish", lambda *args, **kw: (time.sleep(0.5), finish(*args, **kw)))
    train("--checkpoint_format=sharded", "--eval_interval=4", "--max_iters=4", "--lr_decay_iters=12")
    shutil.move(tmp_path / "out", tmp_path / "early")
    train("--checkpoint_format=sharded", "--save_interval=4", "--eval_interval=100", "--max_iters=12")
    stalls = re.findall(r"saving (ckpt|best)_0000(\d\d).* for ([0-9.]+) s", capsys.readouterr().out)
    assert float(stalls[-1][2]) > 0.25  # the last of the saves had to wait for the one before it ...
    assert float(stalls[0][2]) < 0.5  # ... the first for none
    folders = tmp_path / "early/ckpt_000004", tmp_path / "out/ckpt_000004"
    early, late = (checkpoint.load(folder)["model"] for folder in folders)
    for name, tensor in early.items():
        assert torch.equal(tensor, late[name]), name


# ---- what takes longer, and what needs a GPU
@pytest.mark.slow
def test_compiled_with_every_strategy(folder, forks):
    """zero1 computes losses as ddp does."""
    short = f"{MODEL} --dataset=plain --batch_size=24 --max_iters=5 --eval_interval=5"
    strategies = ("ddp", "fsdp")
    runs = [f"compiled-{strategy} {short} --strategy={strategy} --compile" for strategy in strategies]
    text = run_all(forks, folder, 2, [f"eager {short}", *runs])
    assert "going on without it" not in text
    for strategy in strategies:
        compiled = losses(folder / f"compiled-{strategy}")
        torch.testing.assert_close(compiled, losses(folder / "eager"), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nccl_with_one_rank(folder, forks, strategy):
    """Under torchrun, in three precisions, compiled, and with fsdp with everything offloaded."""
    ways = ["--dtype=float32", "--dtype=bfloat16", "--dtype=float16", "--dtype=bfloat16 --compile"]
    ways += ["--dtype=float32 --offload=cpu", "--dtype=float32 --offload=disk"] if strategy == "fsdp" else []
    flags = f"{MODEL} --dataset=plain --max_iters=10 --eval_interval=10 --strategy={strategy}"
    runs = [f"cuda-{strategy}-{i} {flags} --device=cuda --backend=nccl {how}" for i, how in enumerate(ways)]
    run_all(forks, folder, 1, [f"cpu-{strategy} {flags}", *runs])
    for i, how in enumerate(ways):
        rtol = 1e-3 if "float32" in how else 2e-2
        on_gpu = losses(folder / f"cuda-{strategy}-{i}")
        torch.testing.assert_close(on_gpu, losses(folder / f"cpu-{strategy}"), rtol=rtol, atol=rtol)
