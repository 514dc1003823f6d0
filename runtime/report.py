"""What a run tells: lines on the screen, metrics.jsonl, loss.png, result.json; TensorBoard and W&B by flag.

metrics.jsonl holds one JSON object a line. Every log_interval: step, tokens, seconds (of training), loss, lr,
grad_norm, tokens_per_second, memory_mb, cpu_percent, data_ms. Every evaluation: step, tokens, seconds,
train_loss, val_loss.
"""

import atexit
import contextlib
import gc
import json
import os
import sys
import time
from pathlib import Path

import torch

from config import after_bands, typed
from optim import state_names
from runtime import guard
from runtime.curve import HARMLESS, bands_for, check_bands, evaluations, judge, plot_loss, read_rows

try:
    import resource  # not on Windows
except ImportError:
    resource = None

SHARED = {
    "ddp": "",
    "zero1": " (divided among the processes)",
    "fsdp": " (all of it divided among the processes)",
}
# Dense bf16 matrix peak in TFLOP/s, from NVIDIA's data sheets, by the name that CUDA gives the device. MFU is
# printed for these and no other: an L40 is no L4, and an H100 on PCIe does not reach 989.
BF16_PEAK = {
    "NVIDIA A100-SXM4-40GB": 312, "NVIDIA A100-SXM4-80GB": 312, "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H200": 989,
    "NVIDIA L4": 121, "NVIDIA L40S": 362, "NVIDIA GeForce RTX 3090": 71, "NVIDIA GeForce RTX 4090": 165,
}  # fmt: skip


class Report:
    """The lines and files of one run. Ranks above 0 say and write nothing; with eval_only rank 0 only says.

    step: where a resumed run goes on, -1 for a new one. floor: nats per token that no model can beat (0 where
    the entropy of the text is not known).
    """

    def __init__(self, folder: Path, config: dict, step: int, main: bool, model, device, floor: float):
        self.folder, self.main, self.model, self.device, self.floor = folder, main, model, device, floor
        self.shared = SHARED[config["strategy"]]
        check_bands(config["expected"])
        scratch = config["init_from"] in ("scratch", "resume", "auto")
        if not scratch or (step < 0 and typed & {"max_iters", "epochs"}):
            config["expected"] = {}  # val losses of the whole run, from scratch; nor if this one is resumed
        self.expected = config["expected"]
        told = sorted(after_bands - HARMLESS)
        self.changed = [f"{name}={config[name]}" for name in told if name in config]
        self.rows, self.plot_error = [], ""
        self.overwrite = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"  # each line the one before
        self.updates, self.update_seconds, self.data_seconds = 0, 0.0, 0.0  # since the last progress line
        self.clocks = (time.perf_counter(), time.process_time())
        self.tensorboard = self.wandb = None
        self.write = main and not config["eval_only"]
        if not self.write:
            return
        if config["tensorboard"]:
            self.tensorboard = open_tensorboard(folder)
        if config["wandb_log"]:
            self.wandb = open_wandb(config)
        self.path = folder / "metrics.jsonl"
        if step >= 0:  # rows after the checkpoint belong to updates that are done again
            self.rows = [row for row in read_rows(self.path) if row["step"] <= step]
        self.lock = contextlib.ExitStack()
        advice = "wait for its end, stop it, or choose another --out_dir"
        self.lock.enter_context(guard.alone(folder / ".lock", advice))
        atexit.register(self.lock.close)
        guard.remove_leftovers(folder)
        (folder / "result.json").unlink(missing_ok=True)  # who has none is not done: see train.py
        guard.write_atomic(folder / "config.json", json.dumps(config, indent=2) + "\n")
        self.write_rows()

    def say(self, line: str = "") -> None:
        """Print a line on rank 0."""
        if self.main:
            print(("\033[K" if self.overwrite else "") + line, flush=True)

    def start(self, meta: dict, optimizer, train, val, dtype: str) -> None:
        """What is trained on what, and the memory it takes."""
        self.expected = bands_for(meta, self.expected)
        threads = torch.get_num_threads()
        self.say(f"device {self.device}, dtype {dtype}, {threads} threads, torch {torch.__version__}")
        self.say(
            f"data: {meta['name']} (source {meta['source']}, sha256 {meta['sha256'][:12]}), "
            f"{train.n_tokens:,} train and {val.n_tokens:,} val tokens, vocabulary {meta['vocab_size']:,}"
        )
        for split, windows in (("train", train), ("val", val)):
            if windows.n_dropped:
                self.say(f"{windows.n_dropped} {split} examples are longer than a window and are left out")
        parameters = sum(p.numel() for p in self.model.parameters())
        trained = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        gradients = 4 * sum(p.numel() for p, _ in trained)
        moments = 4 * sum(len(state_names(group)) * p.numel() for p, group in trained)
        self.say(
            f"model: {parameters:,} parameters, {train.n_tokens / parameters:.2f} training tokens for each"
        )
        if train.n_tokens < parameters:
            self.say("WARNING: fewer training tokens than parameters: the model can learn the text by heart")
        self.say(
            f"memory: {4 * parameters:,} bytes of weights, {gradients:,} of gradients, {moments:,} of "
            f"optimizer state{self.shared}, and activations"
        )

    def length(self, max_iters: int, batch_size: int, micro_steps: int, world_size: int, train) -> None:
        """How much is trained: tokens per update with their factors, and how many passes over the data."""
        self.max_iters, self.world_size = max_iters, world_size
        windows = batch_size * micro_steps * world_size
        self.tokens_per_iter = windows * train.block_size
        self.say(
            f"tokens/iter: {self.tokens_per_iter:,} = {batch_size} windows x {train.block_size} tokens "
            f"x {micro_steps} micro-steps x {world_size} processes"
        )
        tokens, epochs = max_iters * self.tokens_per_iter, max_iters * windows / train.n_windows
        self.say(f"{max_iters:,} updates: {tokens:,} tokens, {epochs:.2f} epochs")

    def count_update(self, seconds: float, data_seconds: float) -> None:
        """Note the time of one update, and how much of it went into its batches."""
        self.updates += 1
        self.update_seconds += seconds
        self.data_seconds += data_seconds

    def iteration(self, step, tokens, seconds, loss, lr, grad_norm, skipped) -> None:
        """`iter 10: loss 2.5528, time 44.79ms, ...` and a row of metrics.jsonl; times are means."""
        each = self.update_seconds / self.updates
        row = dict(step=step, tokens=tokens, seconds=round(seconds, 4), loss=loss, lr=lr, grad_norm=grad_norm)
        row["tokens_per_second"] = round(self.tokens_per_iter / each, 1)
        row["memory_mb"] = memory_mb(self.device)
        row["cpu_percent"] = self.cpu_percent()
        row["data_ms"] = round(1000 * self.data_seconds / self.updates, 3)
        self.updates, self.update_seconds, self.data_seconds = 0, 0.0, 0.0
        self.record(row)
        mfu = flops_utilisation(self.model, row["tokens_per_second"] / self.world_size, self.device)
        line = (
            f"iter {step}: loss {loss:.4f}, time {1000 * each:.2f}ms, {row['tokens_per_second']:,.0f} tok/s, "
            f"lr {lr:.2e}, grad norm {grad_norm:.2f}{f', mfu {mfu:.1%}' if mfu else ''}"
            f"{f', {skipped} skipped' if skipped else ''}, {clock((self.max_iters - step) * each)} left"
        )
        if self.main and self.overwrite:
            print("\033[K" + line, end="\r", flush=True)
        else:
            self.say(line)

    def evaluation(self, step, tokens, seconds, train_loss, val_loss, standard_error) -> None:
        """`step 250: train loss 1.9612, val loss 2.0647`, what is suspicious, a row of metrics.jsonl."""
        row = dict(step=step, tokens=tokens, seconds=seconds, train_loss=train_loss, val_loss=val_loss)
        if self.rows and self.rows[-1]["step"] == step and "val_loss" in self.rows[-1]:
            self.rows.pop()  # resumed from a file that was saved just before this evaluation
            self.write_rows()
        line = f"step {step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}"
        if self.floor:
            line += f", source floor {self.floor:.4f}, gap {val_loss - self.floor:.4f}"
        if self.floor and val_loss < self.floor - 3 * standard_error:
            line += "  BELOW THE FLOOR by over 3 standard errors: val text has leaked into training"
        if self.overfitting(row):
            line += "  (overfitting: val rises while train falls)"
        self.record(row)
        self.say(line)

    def overfitting(self, row: dict) -> bool:
        """True where val loss is above the evaluation before it and train loss is below it."""
        before = next((old for old in reversed(self.rows) if "val_loss" in old), row)
        return row["val_loss"] > before["val_loss"] and row["train_loss"] < before["train_loss"]

    def write_rows(self) -> None:
        """Write metrics.jsonl anew; while a run goes on, record() only appends to it."""
        guard.write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def record(self, row: dict) -> None:
        """Append a row to metrics.jsonl, and send it to TensorBoard and W&B where they are on."""
        if not self.write:
            return
        self.rows.append(row)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        numbers = {key: value for key, value in row.items() if key != "step"}
        if self.tensorboard:
            for key, value in numbers.items():
                self.tensorboard.add_scalar(key, value, row["step"])
        if self.wandb:
            self.wandb.log(numbers, step=row["step"])

    def cpu_percent(self) -> float:
        """Processor time of this process over wall time since the last call; 200 means two cores busy."""
        wall, cpu = time.perf_counter(), time.process_time()
        before, self.clocks = self.clocks, (wall, cpu)
        return round(100 * (cpu - before[1]) / max(wall - before[0], 1e-9), 1)

    def finish(self, **result) -> None:
        """Write result.json, draw loss.png, and say which file holds what."""
        self.plot()
        if self.write:
            guard.write_atomic(self.folder / "result.json", json.dumps(result, indent=2) + "\n")
            self.lock.close()
        if self.wandb:
            self.wandb.finish()
        self.say(f"trained for {clock(result['training_time'])}, not counting evaluation; in {self.folder}:")
        self.say(f"  best.pt  val loss {result['best_val_loss']:.4f} (step {result['best_step']})")
        self.say(
            f"  ckpt.pt  val loss {result['final_val_loss']:.4f}, train loss {result['final_train_loss']:.4f}"
        )
        self.say(f"  {'' if self.plot_error else 'loss.png '}metrics.jsonl result.json config.json")
        if line := judge(evaluations(self.rows), self.expected, self.changed):
            self.say(line)

    def plot(self) -> None:
        """loss.png: train and val loss on one axis, the source's floor if known, the learning rate below."""
        if not self.write or not self.rows or self.plot_error:
            return
        gc.freeze()  # figures are cycles of 2.5 MB: collect() finds them, and need not look at older things
        try:
            plot_loss(self.rows, self.floor, self.expected, self.folder / "loss.png")
        except Exception as error:  # a run does not end for want of a picture
            self.plot_error = " ".join(str(error).split())
            self.say(f"WARNING: no loss.png: {self.plot_error}")
        gc.collect()
        gc.unfreeze()


def memory_mb(device: torch.device) -> float:
    """Peak memory in MB: allocated on the GPU if the run is there, else resident (RSS) of this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    status = Path("/proc/self/status")  # Linux; its getrusage begins with the peak of whoever started us
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1.024e-3 for line in lines if line.startswith("VmHWM"))
    if resource is None:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def flops_utilisation(model, tokens_per_second: float, device: torch.device) -> float:
    """MFU: arithmetic that the model needs over what the device can do, 0 where that is not known.

    tokens_per_second: of one device.
    """
    if device.type != "cuda" or torch.cuda.get_device_name(device) not in BF16_PEAK:
        return 0.0
    return flops_per_token(model) * tokens_per_second / (1e12 * BF16_PEAK[torch.cuda.get_device_name(device)])


def flops_per_token(model) -> int:
    """Operations that training needs: 6 per weight of a matrix and token (2 forward, 4 backward), and
    12 n_layer n_embd T for attention (Chowdhery et al. 2022, PaLM, appendix B).
    """
    config = model.config
    weights = sum(p.numel() for p in model.parameters()) - model.wte.weight.numel() * (not config.tie_weights)
    return 6 * weights + 12 * config.n_layer * config.n_embd * config.block_size


def clock(seconds: float) -> str:
    """95 -> '1:35', 4000 -> '1:06:40'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def open_tensorboard(folder: Path):
    """A SummaryWriter that writes to the run's folder; ValueError if the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--tensorboard=True needs what is not installed: pip install tensorboard") from None
    writer = SummaryWriter(str(folder))
    atexit.register(writer.close)  # it writes in the background: also after Ctrl-C nothing is to be lost
    return writer


def open_wandb(config: dict):
    """The wandb module, with a run begun that knows all settings; ValueError if the package is missing."""
    try:
        import wandb
    except ImportError:
        raise ValueError("--wandb_log=True needs what is not installed: pip install wandb") from None
    name = config["wandb_run_name"] or Path(config["out_dir"]).name
    wandb.init(project=config["wandb_project"], name=name, config=config)
    return wandb
