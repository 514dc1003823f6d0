"""How bench.py measures: two sides take turns; a ratio has a spread; a run trains as train.py does.

    ours, theirs = alternate(side_a, side_b, turns=5)        A B A B A B A B A B
    row = compared("tokens/s, ours / theirs", ours, theirs, "tokens/s", ">= 2")

A side is a function of the turn's number; it returns what it measured. What slows the machine slows both
sides of a turn: each turn gives a ratio ours / theirs; their median is shown, and smallest..largest.
"""

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
from config import ROOT, defaults_of, read_config_file, training_settings
from machine import hardware
from machine.speed import flops_per_token
from model import GPT, summed_nats
from runtime import memory, report
from techniques import change

SMALLER = {}  # settings of train.py that override config files in every run; bench.py --quick fills it
CPU = torch.device("cpu")


class NotMeasured(Exception):
    """A measurement needs something that this machine lacks; the message names it."""


def sized(full, tiny):
    """full, or tiny for a quick check that everything runs (SMALLER is filled)."""
    return tiny if SMALLER else full


# ---- rows, turns, ratios
class Row(NamedTuple):
    """A line of the table. The target is for the ratio if there is one, else for the absolute number."""

    what: str
    ratio: str
    absolute: str
    target: str
    spread: str


def show(number: float) -> str:
    """Four significant digits; from 1,000 on, all digits before the point."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:#.4g}"


def measured(what: str, values, unit: str, target: str = "reported") -> Row:
    """The row of a quantity without a baseline; values: one per turn."""
    spread = f"{show(min(values))}..{show(max(values))}"
    return Row(what, "", f"{show(np.median(values))} {unit}", target, spread)


def compared(what: str, ours, theirs, unit: str, target: str = "reported") -> Row:
    """The row of the ratio ours / theirs; each holds one value per turn."""
    ratios = np.asarray(ours) / np.asarray(theirs)
    absolute = f"{show(np.median(ours))} / {show(np.median(theirs))} {unit}"
    return measured(what, ratios, "", target)._replace(ratio=show(np.median(ratios)), absolute=absolute)


def alternate(*sides: Callable, turns: int) -> np.ndarray:
    """Call A(0), B(0), A(1), B(1), ...; returns the results, (sides, turns, ...)."""
    return np.array([[side(turn) for side in sides] for turn in range(turns)]).swapaxes(0, 1)


def seconds_of(function: Callable, *arguments) -> float:
    """Wall time of one call, including the work that it queues on a GPU."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    began = time.perf_counter()
    function(*arguments)
    wait()
    return time.perf_counter() - began


# ---- train.py as a whole, in its own process
@functools.cache
def trained(file: str, turn: int, *flags: str) -> tuple[dict, list[dict]]:
    """Run train.py to the end: (result.json and what was "printed", metrics.jsonl). Items share a run."""
    if not (ROOT / file).is_file():
        raise NotMeasured(f"{file} does not exist")
    print(f"running train.py {file}, turn {turn + 1}", file=sys.stderr, flush=True)
    smaller = [f"--{name}={value}" for name, value in SMALLER.items()]
    with tempfile.TemporaryDirectory() as folder:
        command = ["train.py", file, f"--out_dir={folder}", f"--seed={1337 + turn}", *smaller, *flags]
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, encoding="utf-8")
        if done.returncode:
            raise NotMeasured(f"{file} failed: {' '.join(done.stderr.splitlines()[-1:])}")
        result = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
        result["printed"] = done.stdout
        return result, report.read_rows(Path(folder) / "metrics.jsonl")


def time_and_loss(file: str, *flags: str) -> Callable:
    """A side: trains with another seed in each turn; gives (training seconds, final val loss)."""

    def side(turn: int) -> tuple[float, float]:
        result, _ = trained(file, turn, *flags)
        return result["training_time"], result["final_val_loss"]

    return side


# ---- the loop of train.py, in this process
def settings_of(*files: str, **changes) -> dict:
    """train.py's settings for a CPU: its defaults, then config files, SMALLER and changes."""
    defaults = defaults_of("train.py")
    known = training_settings()
    settings = {**defaults, "device": "cpu"}
    for file in files:
        settings |= read_config_file(file, settings, known)
    return {**settings, **SMALLER, **changes}


class Run:
    """What train.py makes of its settings; update() is one turn of its loop, without the report."""

    def __init__(self, settings: dict, vocab_size: int, device: torch.device = CPU):
        torch.manual_seed(settings["seed"])
        self.autocast, dtype = hardware.choose_precision(settings["dtype"], device)
        self.config = memory.shape_of(settings, vocab_size)
        self.model = change("change_model", GPT(self.config), settings).to(device)
        self.optimizer = optim.build_optimizer(self.model, {**settings, "dtype": dtype}, device.type)
        self.scaler = hardware.loss_scaler(dtype, device, {})
        self.schedule, _ = optim.resolve_schedule(settings)
        self.longest = settings["grad_clip"] or math.inf
        tokens = settings["batch_size"] * settings["block_size"]
        limit = memory.logits_limit(settings["logits_mb"], hardware.total_bytes(device))
        self.in_chunks = memory.too_many_logits(tokens, vocab_size, limit)
        self.loss_of = self.summed_loss  # may be replaced by a compiled one

    def summed_loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Nats summed over the targets of a batch (B, T)."""
        return self.model(x, y) if self.in_chunks else summed_nats(self.model(x), y)

    def gradients(self, x: torch.Tensor, y: torch.Tensor, size: int = 0) -> torch.Tensor:
        """Forward, loss, backward of a batch (B, T), size windows at a time (0: all); returns the loss."""
        loss = torch.zeros((), device=x.device)
        for ids, targets in zip(x.split(size or len(x)), y.split(size or len(y)), strict=True):
            with self.autocast:
                nats = self.loss_of(ids, targets)
            share = nats / (y != -1).sum()
            self.scaler.scale(share).backward()
            loss += share.detach()
        return loss

    def update(self, step: int, x: torch.Tensor, y: torch.Tensor, size: int = 0) -> torch.Tensor:
        """Gradients, clip, step. Returns the loss before the step."""
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr_at(step, **self.schedule) * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.gradients(x, y, size)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.longest)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss


# ---- the baseline, and sides for alternate()
def plain_loop(settings: dict, windows: data.Windows, model: GPT) -> Callable:
    """The baseline, as everyone writes it first: fp32, eager, AdamW one parameter at a time.

    Returns update(step), which makes one update.
    """
    T, B = settings["block_size"], settings["batch_size"]
    betas, options = (settings["beta1"], settings["beta2"]), dict(foreach=False, fused=False)
    options["weight_decay"] = settings["weight_decay"]
    optimizer = torch.optim.AdamW(model.parameters(), settings["learning_rate"], betas, **options)
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


def training_rate(settings: dict, vocab_size: int, device: torch.device) -> Callable:
    """A side: flop/s that training needs, as machine/speed.py counts them."""
    run = Run(settings, vocab_size, device)
    x = torch.randint(vocab_size, (settings["batch_size"], settings["block_size"]), device=device)
    if settings["compile"]:
        run.loss_of = hardware.try_compile(run.summed_loss, run.model, (x, x), run.autocast)
    for step in range(3):  # not counted: they allocate
        run.update(step, x, x)
    work = 10 * x.numel() * flops_per_token(run.model)
    return lambda turn: work / seconds_of(lambda: [run.update(step, x, x) for step in range(10)])


def matmul_rate(device: torch.device, n: int) -> Callable:
    """A side: flop/s of bfloat16 products of two n x n matrices."""
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    return lambda turn: 20 * 2 * n**3 / seconds_of(lambda: [a @ a for _ in range(20)])


def decoding_rate(model: GPT, batch_size: int, n: int, **options) -> Callable:
    """A side: tokens/s of generation with the cache, n tokens in each of batch_size rows.

    options: of GPT.generate. A compiled step is compiled here, for texts of this length.
    """
    prompts = [[0]] * batch_size
    model.generate(prompts, n if options.get("compile") else 8, **options)  # not counted: it allocates
    return lambda turn: batch_size * n / seconds_of(lambda: model.generate(prompts, n, **options))


def uncached_rate(model: GPT, lengths: np.ndarray) -> Callable:
    """A side: tokens/s of generation without a cache, for one row of lengths[-1] tokens.

    Token number t costs a forward pass over t tokens. All would take minutes: some are made, and the times
    of the others are interpolated.
    """
    n = int(lengths[-1])

    @torch.inference_mode()
    def one_pass(length: int) -> None:
        model.to_logits(model.trunk(torch.zeros(1, length, dtype=torch.long))[:, -1])

    def side(turn: int) -> float:
        costs = [seconds_of(one_pass, int(length)) for length in lengths]
        return n / np.interp(np.arange(1, n + 1), lengths, costs).sum()

    side(0)  # not counted: it allocates
    return side


def copying_rate(model: GPT, n: int) -> Callable:
    """A side: how often per second the weights that a token reads (blocks, head) could be copied.

    Measured by copying n float32 numbers, more than the processor's caches hold.
    """
    weights = sum(p.nbytes for p in [*model.blocks.parameters(), model.head.weight])
    source = torch.ones(n)
    target = torch.empty_like(source)
    return lambda turn: source.nbytes / seconds_of(target.copy_, source) / weights


def update_peak(settings: dict, vocab_size: int) -> Callable:
    """A side: peak memory in MB of one update, each in a new process."""
    code = f"from lab.measure import memory_of_update as peak; print(peak({settings}, {vocab_size}))"
    command = [sys.executable, "-c", code]
    return lambda turn: float(subprocess.check_output(command, cwd=ROOT, encoding="utf-8"))


def memory_of_update(settings: dict, vocab_size: int) -> float:
    """Make one update on a random batch; returns this process's peak memory in MB."""
    run = Run(settings, vocab_size)
    x = torch.randint(vocab_size, (settings["batch_size"], settings["block_size"]))
    run.update(0, x, x)
    return report.memory_mb(CPU)


# ---- the machine
def describe_machine() -> list[str]:
    """Processor, memory, GPU, versions and commit, in two lines."""
    info = Path("/proc/cpuinfo")  # Linux
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    bf16 = dict(avx512_bf16=torch.cpu._is_avx512_bf16_supported(), amx=torch.cpu._is_amx_tile_supported())
    bf16 = " ".join(name for name, there in bf16.items() if there) or "none"
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0  # bytes
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "tiktoken")]
    commit = "unknown"
    if shutil.which("git"):
        git = ["git", "describe", "--always", "--dirty"]
        done = subprocess.run(git, cwd=ROOT, capture_output=True, encoding="utf-8")
        commit = done.stdout.strip() or "unknown"
    cpu = f"{(names or [platform.processor()])[0]}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return [
        f"cpu: {cpu}, bf16 instructions: {bf16}, {ram / 1e9:.0f} GB of memory; gpu: {gpu}",
        f"python {platform.python_version()}, {', '.join(versions)}; commit {commit}",
    ]
