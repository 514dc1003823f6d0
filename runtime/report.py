"""What a run writes: lines on the screen, metrics.jsonl, loss.png, result.json; TensorBoard and W&B by flag.

metrics.jsonl has one JSON object a line. Every log_interval updates: step, tokens, seconds (of training),
loss, lr, grad_norm, tokens_per_second, memory_mb, cpu_percent, data_ms. Every evaluation: step, tokens,
seconds, train_loss, val_loss.
"""

import atexit
import contextlib
import gc
import json
import math
import os
import sys
import time
from pathlib import Path

import torch

from config import given, typed
from optim import state_names
from runtime import guard
from runtime.curve import HARMLESS, bands_for, check_bands, evaluations, judge, plot_loss, read_rows

try:
    import resource  # not on Windows
except ImportError:
    resource = None

SHARDED = {"ddp": "", "zero1": " (sharded over the processes)", "fsdp": " (all sharded over the processes)"}
# Peak of dense bf16 matrix products in TFLOP/s, from NVIDIA's data sheets, by CUDA's device name. MFU is
# printed only for these names: an L40 is not an L4, and an H100 on PCIe does not reach 989.
BF16_PEAK = {
    "NVIDIA A100-SXM4-40GB": 312, "NVIDIA A100-SXM4-80GB": 312, "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H200": 989,
    "NVIDIA L4": 121, "NVIDIA L40S": 362, "NVIDIA GeForce RTX 3090": 71, "NVIDIA GeForce RTX 4090": 165,
}  # fmt: skip


class Report:
    """Prints the lines and writes the files of one run, on rank 0. With eval_only it writes no files.

    step: where a resumed run goes on; -1 for a new run. main: true on rank 0. floor: entropy of the text in
    nats per token, which no model can beat; 0 if unknown.
    """

    def __init__(self, folder: Path, config: dict, step: int, main: bool, model, device, floor: float):
        self.folder, self.main, self.model, self.device, self.floor = folder, main, model, device, floor
        self.config, self.sharded = config, SHARDED[config["strategy"]]
        check_bands(config["expected"])
        from_scratch = config["init_from"] in ("scratch", "resume", "auto")
        other_length = step < 0 and (typed("max_iters") or typed("epochs"))
        if not from_scratch or other_length:
            config["expected"] = {}  # in config, so that it stays empty when this run is resumed
        self.expected = config["expected"]
        elsewhere = {name for name in given if given[name] != given.get("expected")}
        self.changed = [f"{name}={config[name]}" for name in sorted(elsewhere - HARMLESS) if name in config]
        self.rows, self.plot_error = [], ""
        self.overwrite = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"  # lines replace each other
        self.updates, self.update_seconds, self.data_seconds = 0, 0.0, 0.0  # since the last progress line
        self.skipped = 0  # updates that overflowed in float16
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
        if step >= 0:  # later rows belong to updates that this run repeats
            self.rows = [row for row in read_rows(self.path) if row["step"] <= step]
        self.lock = contextlib.ExitStack()
        advice = "wait for its end, stop it, or choose another --out_dir"
        self.lock.enter_context(guard.alone(folder / ".lock", advice))
        atexit.register(self.lock.close)
        guard.remove_leftovers(folder)
        (folder / "result.json").unlink(missing_ok=True)  # a run without result.json has not finished
        self.write_rows()

    def say(self, line: str) -> None:
        """Print a line on rank 0, unless it is empty."""
        if self.main and line:
            print(("\033[K" if self.overwrite else "") + line, flush=True)

    def start(self, meta: dict, optimizer, train, val, dtype: str) -> None:
        """Print device, data, model and memory. meta: the dataset's meta.json. train, val: data.Windows."""
        if self.write:  # now all settings are resolved
            guard.write_atomic(self.folder / "config.json", json.dumps(self.config, indent=2) + "\n")
        self.expected, not_compared = bands_for(meta, self.expected)
        self.say(not_compared)
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
            f"optimizer state{self.sharded}, and activations"
        )

    def length(self, max_iters: int, batch_size: int, micro_steps: int, world_size: int, train) -> None:
        """Print how much is trained: tokens per update with their factors, and passes over the data."""
        self.max_iters, self.world_size = max_iters, world_size
        windows = batch_size * micro_steps * world_size
        self.tokens_per_iter = windows * train.block_size
        self.say(
            f"tokens/iter: {self.tokens_per_iter:,} = {batch_size} windows x {train.block_size} tokens "
            f"x {micro_steps} micro-steps x {world_size} processes"
        )
        tokens, epochs = max_iters * self.tokens_per_iter, max_iters * windows / train.n_windows
        self.say(f"{max_iters:,} updates: {tokens:,} tokens, {epochs:.2f} epochs")

    def count_update(self, seconds: float, data_seconds: float, grad_norm: float) -> None:
        """Note the time of one update, and how much of it went into reading its batches."""
        self.updates += 1
        self.skipped += not math.isfinite(grad_norm)  # float16 overflowed: the scaler made no step
        self.update_seconds += seconds
        self.data_seconds += data_seconds

    def iteration(self, progress, loss: float, lr: float, grad_norm: float) -> None:
        """Print `iter 10: loss 2.5528, time 44.79ms, ...` and record the row. Times are means."""
        each, step = self.update_seconds / self.updates, progress.step
        row = dict(step=step, tokens=progress.tokens, seconds=round(progress.seconds, 4))
        row |= dict(loss=loss, lr=lr, grad_norm=grad_norm)
        row["tokens_per_second"] = round(self.tokens_per_iter / each, 1)
        row["memory_mb"] = memory_mb(self.device)
        row["cpu_percent"] = self.cpu_percent()
        row["data_ms"] = round(1000 * self.data_seconds / self.updates, 3)
        self.updates, self.update_seconds, self.data_seconds = 0, 0.0, 0.0
        self.record(row)
        mfu = flops_utilisation(self.model, row["tokens_per_second"] / self.world_size, self.device)
        mfu_text = f", mfu {mfu:.1%}" if mfu else ""
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        line = (
            f"iter {step}: loss {loss:.4f}, time {1000 * each:.2f}ms, {row['tokens_per_second']:,.0f} tok/s, "
            f"lr {lr:.2e}, grad norm {grad_norm:.2f}{mfu_text}{skipped}, "
            f"{clock((self.max_iters - step) * each)} left"
        )
        if self.main and self.overwrite:
            print("\033[K" + line, end="\r", flush=True)
        else:
            self.say(line)

    def evaluation(self, progress, standard_error: float) -> None:
        """Print `step 250: train loss 1.9612, val loss 2.0647` with warnings, and record the row."""
        step, train_loss, val_loss = progress.step, progress.train_loss, progress.val_loss
        row = dict(step=step, tokens=progress.tokens, seconds=progress.seconds)
        row |= dict(train_loss=train_loss, val_loss=val_loss)
        if self.rows and self.rows[-1]["step"] == step and "val_loss" in self.rows[-1]:
            self.rows.pop()  # resumed from a checkpoint saved just before this evaluation
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
        """Whether val loss has risen and train loss has fallen since the evaluation before."""
        before = next((old for old in reversed(self.rows) if "val_loss" in old), row)
        return row["val_loss"] > before["val_loss"] and row["train_loss"] < before["train_loss"]

    def write_rows(self) -> None:
        """Write metrics.jsonl from self.rows; record() appends single rows."""
        guard.write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def record(self, row: dict) -> None:
        """Append a row to metrics.jsonl, and send it to TensorBoard and W&B if they are on."""
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
        """CPU time over wall time since the last call, in percent: 200 means that two cores were busy."""
        wall, cpu = time.perf_counter(), time.process_time()
        before, self.clocks = self.clocks, (wall, cpu)
        return round(100 * (cpu - before[1]) / max(wall - before[0], 1e-9), 1)

    def finish(self, progress) -> None:
        """Write result.json, draw loss.png, and say which file holds what."""
        self.plot()
        result = dict(
            final_train_loss=progress.train_loss,
            final_val_loss=progress.val_loss,
            best_val_loss=progress.best_val_loss,
            best_step=progress.best_step,
            training_time=progress.seconds,
            parameters=sum(p.numel() for p in self.model.parameters()),
        )
        if self.write:
            guard.write_atomic(self.folder / "result.json", json.dumps(result, indent=2) + "\n")
            self.lock.close()
        if self.wandb:
            self.wandb.finish()
        self.say(f"trained for {clock(progress.seconds)}, not counting evaluation; in {self.folder}:")
        self.say(f"  best.pt  val loss {progress.best_val_loss:.4f} (step {progress.best_step})")
        self.say(f"  ckpt.pt  val loss {progress.val_loss:.4f}, train loss {progress.train_loss:.4f}")
        self.say(f"  {'' if self.plot_error else 'loss.png '}metrics.jsonl result.json config.json")
        self.say(judge(evaluations(self.rows), self.expected, self.changed))

    def plot(self) -> None:
        """Draw loss.png: train and val loss with the source's floor if known; below, the learning rate."""
        if not self.write or not self.rows or self.plot_error:
            return
        gc.freeze()  # a figure is a reference cycle of 2.5 MB; collect() then only looks at what is new
        try:
            plot_loss(self.rows, self.floor, self.expected, self.folder / "loss.png")
        except Exception as error:  # a run does not fail because of a picture
            self.plot_error = " ".join(str(error).split())
            self.say(f"WARNING: no loss.png: {self.plot_error}")
        gc.collect()
        gc.unfreeze()


def memory_mb(device: torch.device) -> float:
    """Peak memory in MB: allocated by torch on a GPU, else resident (RSS) of this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    status = Path("/proc/self/status")  # Linux, where getrusage includes the peak of the parent process
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1.024e-3 for line in lines if line.startswith("VmHWM"))
    if resource is None:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def flops_utilisation(model, tokens_per_second: float, device: torch.device) -> float:
    """MFU: operations that the model needs over the device's peak; 0 if unknown. Both of one device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if name not in BF16_PEAK:
        return 0.0
    return flops_per_token(model) * tokens_per_second / (1e12 * BF16_PEAK[name])


def flops_per_token(model) -> int:
    """Operations per token of training: 6 for each weight of a matrix (2 forward, 4 backward), and
    12 n_layer n_embd T for attention (Chowdhery et al. 2022, PaLM, appendix B).
    """
    config = model.config
    weights = sum(p.numel() for p in model.parameters())
    if not config.tie_weights:
        weights -= model.wte.weight.numel()  # the embedding only looks up its rows
    return 6 * weights + 12 * config.n_layer * config.n_embd * config.block_size


def clock(seconds: float) -> str:
    """95 -> '1:35', 4000 -> '1:06:40'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def open_tensorboard(folder: Path):
    """A TensorBoard SummaryWriter for the run's folder. ValueError if the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--tensorboard=True needs what is not installed: pip install tensorboard") from None
    writer = SummaryWriter(str(folder))
    atexit.register(writer.close)  # it writes in the background: lose nothing after Ctrl-C
    return writer


def open_wandb(config: dict):
    """Start a W&B run with all settings and return the wandb module. ValueError if it is missing."""
    try:
        import wandb
    except ImportError:
        raise ValueError("--wandb_log=True needs what is not installed: pip install wandb") from None
    name = config["wandb_run_name"] or Path(config["out_dir"]).name
    wandb.init(project=config["wandb_project"], name=name, config=config)
    return wandb
