"""How bench.py measures: two sides in turns, ratios with their spread, training runs.

    ours, theirs = alternate(side_a, side_b, turns=5)        A B A B A B A B A B
    row = compared("tokens/s, ours / theirs", ours, theirs, "tokens/s", ">= 2")

What slows a machine for a while slows both sides of a turn. So ratios are taken turn by turn, ours / theirs;
their median is the result, their smallest..largest the spread.
"""

import ast
import dataclasses
import functools
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import data
import optim
from config import ROOT, read_config_file
from machine import hardware
from model import GPT, GPTConfig
from runtime import report

SMALLER = {}  # settings of train.py that beat config files in all runs; bench.py --quick fills it
CPU = torch.device("cpu")


class NotMeasured(Exception):
    """Something that a measurement needs is not here; the message says what."""


def sized(full, tiny):
    """A size as it is measured, or for a quick look at whether all runs."""
    return tiny if SMALLER else full


# ---- rows, turns, ratios
class Row(NamedTuple):
    """A line of the table; the target is about the ratio if there is one, else about the absolute number."""

    what: str
    ratio: str
    absolute: str
    target: str
    spread: str


def show(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:#.4g}"


def measured(what: str, values, unit: str, target: str = "reported") -> Row:
    """The row of a quantity that stands alone; values: one a turn."""
    return Row(
        what, "", f"{show(np.median(values))} {unit}", target, f"{show(min(values))}..{show(max(values))}"
    )


def compared(what: str, ours, theirs, unit: str, target: str = "reported") -> Row:
    """The row of ours / theirs; each has one value a turn."""
    ratios = np.asarray(ours) / np.asarray(theirs)
    absolute = f"{show(np.median(ours))} / {show(np.median(theirs))} {unit}"
    return measured(what, ratios, "", target)._replace(ratio=show(np.median(ratios)), absolute=absolute)


def alternate(*sides: Callable, turns: int) -> np.ndarray:
    """Call A(0), B(0), A(1), B(1), ...; returns what they give, (sides, turns, ...)."""
    return np.array([[side(turn) for side in sides] for turn in range(turns)]).swapaxes(0, 1)


def seconds_of(function: Callable, *arguments) -> float:
    """Wall time of one call, with all that it leaves to a GPU."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    begun = time.perf_counter()
    function(*arguments)
    wait()
    return time.perf_counter() - begun


# ---- train.py, in a process of its own
@functools.cache
def trained(file: str, turn: int, *flags: str) -> tuple[dict, list[dict]]:
    """Run train.py to its end: (result.json, rows of metrics.jsonl). Kept, so that items share a run."""
    if not (ROOT / file).is_file():
        raise NotMeasured(f"{file} is not there")
    print(f"running train.py {file}, turn {turn + 1}", file=sys.stderr, flush=True)
    smaller = [f"--{name}={value}" for name, value in SMALLER.items()]
    with tempfile.TemporaryDirectory() as folder:
        command = ["train.py", file, f"--out_dir={folder}", f"--seed={1337 + turn}", *smaller, *flags]
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, encoding="utf-8")
        if done.returncode:
            raise NotMeasured(f"{file} stopped: {' '.join(done.stderr.splitlines()[-1:])}")
        result = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
        return result, report.read_rows(Path(folder) / "metrics.jsonl")


def time_and_loss(file: str, *flags: str) -> Callable:
    """A side for alternate(): each turn has a seed of its own, and gives (training seconds, val loss)."""

    def side(turn: int) -> tuple[float, float]:
        result, _ = trained(file, turn, *flags)
        return result["training_time"], result["final_val_loss"]

    return side


# ---- its parts, in this process
def settings_of(*files: str, **changes) -> dict:
    """train.py's settings for a CPU: its defaults, then config files, SMALLER and changes."""
    source = (ROOT / "train.py").read_text(encoding="utf-8")
    head = ast.parse(source[: source.index("config = override(")]).body
    lines = [node for node in head if isinstance(node, ast.Assign)]
    defaults = {node.targets[0].id: ast.literal_eval(node.value) for node in lines}
    settings = {**defaults, "device": "cpu"}
    for file in files:
        settings |= read_config_file(file, settings, defaults)
    return {**settings, **SMALLER, **changes}


class Run:
    """What train.py makes of its settings; update() is one turn of its loop, without the report."""

    def __init__(self, settings: dict, vocab_size: int, device: torch.device = CPU):
        torch.manual_seed(settings["seed"])
        self.autocast, dtype = hardware.choose_precision(settings["dtype"], device)
        shape = {field.name for field in dataclasses.fields(GPTConfig)} & settings.keys()
        self.config = GPTConfig(vocab_size, **{name: settings[name] for name in shape})
        self.model = self.raw_model = GPT(self.config).to(device)  # model may be replaced by a compiled one
        self.optimizer = optim.build_optimizer(self.model, {**settings, "dtype": dtype}, device.type)
        self.schedule, _ = optim.resolve_schedule(settings)
        self.longest = settings["grad_clip"] or math.inf
        logits = settings["batch_size"] * settings["block_size"] * vocab_size
        self.chunked = 0 < settings["logits_mb"] * 2**18 < logits  # as in train.py

    def gradients(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Forward, loss, backward of a batch (B, T)."""
        with self.autocast:
            nats = self.model(x, y) if self.chunked else self.model(x)
        if not self.chunked:
            nats = F.cross_entropy(nats.flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum")
        (nats / (y != -1).sum()).backward()

    def update(self, step: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Gradients, clip, step."""
        lr = optim.lr_at(step, **self.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        self.gradients(x, y)
        torch.nn.utils.clip_grad_norm_(self.raw_model.parameters(), self.longest)
        self.optimizer.step()


# ---- what ours is compared with
def plain_loop(settings: dict, windows: data.Windows, model: GPT) -> Callable:
    """The baseline, as everyone writes it first: fp32, eager, AdamW parameter by parameter."""
    T, B = settings["block_size"], settings["batch_size"]
    betas = settings["beta1"], settings["beta2"]
    optimizer = torch.optim.AdamW(
        model.parameters(),
        settings["learning_rate"],
        betas,
        weight_decay=settings["weight_decay"],
        foreach=False,
        fused=False,
    )
    tokens = np.memmap(str(windows.path), windows.dtype, mode="r")

    def update(step: int) -> None:
        starts = torch.randint(len(tokens) - T, (B,))
        x = torch.stack([torch.from_numpy(tokens[i : i + T].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(tokens[i + 1 : i + 1 + T].astype(np.int64)) for i in starts])
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["grad_clip"])
        optimizer.step()
        if step % settings["log_interval"] == 0:
            loss.item()

    return update


# ---- more sides for alternate()
def decoding_rate(model: GPT, batch_size: int, n: int, **options) -> Callable:
    """A side for alternate(): tokens/s of cached generation, n tokens in each row."""
    prompts = [[0]] * batch_size
    model.generate(prompts, 8, **options)  # not counted: it allocates
    return lambda turn: batch_size * n / seconds_of(lambda: model.generate(prompts, n, **options))


def matmul_rate(device: torch.device, n: int) -> Callable:
    """A side for alternate(): flop/s of bfloat16 products of two n x n matrices."""
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    return lambda turn: 20 * 2 * n**3 / seconds_of(lambda: [a @ a for _ in range(20)])


def training_rate(settings: dict, vocab_size: int, device: torch.device) -> Callable:
    """A side for alternate(): flop/s that training needs, by the count in report.flops_per_token()."""
    run = Run(settings, vocab_size, device)
    x = torch.randint(vocab_size, (settings["batch_size"], settings["block_size"]), device=device)
    if settings["compile"]:
        run.model = hardware.try_compile(run.model, (x, x) if run.chunked else (x,), run.autocast)
    for step in range(3):  # not counted: they allocate
        run.update(step, x, x)
    work = 10 * x.numel() * report.flops_per_token(run.raw_model)
    return lambda turn: work / seconds_of(lambda: [run.update(step, x, x) for step in range(10)])


# ---- where all this was measured
def machine() -> list[str]:
    """Processor, memory, GPU, versions and commit, in two lines."""
    info = Path("/proc/cpuinfo")  # Linux
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    bf16 = dict(avx512_bf16=torch.cpu._is_avx512_bf16_supported(), amx=torch.cpu._is_amx_tile_supported())
    bf16 = " ".join(name for name, there in bf16.items() if there) or "none"
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "tiktoken")]
    commit = "unknown"
    if shutil.which("git"):
        git = ["git", "describe", "--always", "--dirty"]
        done = subprocess.run(git, cwd=ROOT, capture_output=True, encoding="utf-8")
        commit = done.stdout.strip() or "unknown"
    cpu = f"{(names or [platform.processor()])[0]}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return [
        f"cpu: {cpu}, bf16 instructions: {bf16}, {pages / 1e9:.0f} GB of memory; gpu: {gpu}",
        f"python {platform.python_version()}, {', '.join(versions)}; commit {commit}",
    ]
