"""What a run writes: lines on the screen, metrics.jsonl, samples.txt, loss.png, result.json.

metrics.jsonl has one JSON object a line. Every log_interval updates: step, tokens, seconds (of training),
loss, lr, muon_lr (with Muon), grad_norm, clipped (share of the updates since the row before),
tokens_per_second, memory_mb, cpu_percent, data_ms. Every evaluation: step, tokens, seconds, train_loss,
val_loss, val_perplexity; with a mixture a and b (techniques/mixture.py) val_loss_a, val_loss_b.
"""

import contextlib
import gc
import json
import math
import os
import sys
import time
from pathlib import Path

import torch

from config import at_end, given, typed
from machine.hardware import memory_mb
from machine.speed import flops_utilisation, parameters_of
from optim import state_names
from runtime import branch, guard, samples
from runtime.curve import HARMLESS, bands_for, check_bands, evaluations, judge, read_rows
from runtime.folder import newest
from runtime.health import Losses, verdict
from runtime.plot import plot_loss
from runtime.trackers import Trackers

SHARDED = {"ddp": "", "zero1": " (sharded over the processes)", "fsdp": " (all sharded over the processes)"}


class Report:
    """Prints the lines and writes the files of one run, on rank 0. With eval_only it writes no files.

    step: where a resumed run goes on; -1 for a new run. main: true on rank 0. floor: entropy of the text in
    nats per token, which no model can beat; 0 if unknown.
    """

    def __init__(self, folder: Path, config: dict, step: int, main: bool, model, device, floor: float):
        self.folder, self.main, self.model, self.device, self.floor = folder, main, model, device, floor
        self.config, self.sharded = config, SHARDED[config["strategy"]]
        check_bands(config["expected"])
        from_scratch = step >= 0 or config["init_from"] in ("scratch", "auto")
        other_length = step < 0 and (typed("max_iters") or typed("epochs"))
        if not from_scratch or other_length:
            config["expected"] = {}  # in config, so that it stays empty when this run is resumed
        self.expected = config["expected"]
        elsewhere = {name for name in given if given[name] != given.get("expected")}
        self.changed = [f"{name}={config[name]}" for name in sorted(elsewhere - HARMLESS) if name in config]
        muon = "--learning_rate or --muon_lr" if config["optimizer"] == "muon" else "--learning_rate"
        self.losses = Losses(step < 0 and from_scratch, muon, config["grad_clip"])
        self.rows, self.plot_error, self.guessing = [], "", 0.0
        self.overwrite = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"  # lines replace each other
        self.updates, self.update_seconds, self.data_seconds = 0, 0.0, 0.0  # since the last progress line
        self.skipped = 0  # updates that overflowed in float16
        self.clocks = (time.perf_counter(), time.process_time())
        self.muon_groups = []  # the optimizer's groups under Muon
        self.write = main and not config["eval_only"]
        if not self.write:
            return
        name = config["wandb_run_name"] or Path(config["out_dir"]).name
        run = dict(project=config["wandb_project"], name=name, config=config)
        board = folder if config["tensorboard"] else None
        self.trackers = Trackers(board, run if config["wandb_log"] else None)
        self.path = folder / "metrics.jsonl"
        if step >= 0:  # later rows belong to updates that this run repeats
            self.rows = [row for row in read_rows(self.path) if row["step"] <= step]
        self.lock = contextlib.ExitStack()
        advice = "wait for its end, stop it, or choose another --out_dir"
        self.lock.enter_context(guard.alone(folder / ".lock", advice))
        at_end(self.lock.close)
        guard.remove_leftovers(folder)
        self.say(branch.set_aside(config["init_from"], folder, step))
        (folder / "result.json").unlink(missing_ok=True)  # a run without result.json has not finished
        self.write_rows()
        samples.cut(folder / "samples.txt", step)

    def say(self, *lines: str) -> None:
        """Print lines on rank 0, but no empty ones."""
        for line in filter(None, lines if self.main else ()):
            print(("\033[K" if self.overwrite else "") + line, flush=True)

    def start(self, meta: dict, tokenizer, optimizer, train, val, dtype: str) -> None:
        """Print device, data, model and memory. meta: the dataset's meta.json. train, val: data.Windows."""
        if self.write:
            tokenizer.save(self.folder / "tokenizer.json")
        self.stand_in = {key: meta[key] for key in ("stand_in_for", "stand_in_reason") if key in meta}
        self.write_settings()  # now all are resolved
        self.muon_groups = [group for group in optimizer.param_groups if group["kind"] == "muon"]
        self.guessing = math.log(meta["vocab_size"])
        self.expected, not_compared = bands_for(meta, self.expected)
        self.say(not_compared)
        threads = counted(torch.get_num_threads(), "thread")
        self.say(f"device {self.device}, dtype {dtype}, {threads}, torch {torch.__version__}")
        self.say(
            f"data: {meta['name']} (source {meta['source']}, sha256 {meta['sha256'][:12]}), "
            f"{train.n_tokens:,} train and {val.n_tokens:,} val tokens, vocabulary {meta['vocab_size']:,}"
        )
        self.say(*train.notes)
        for split, windows in (("train", train), ("val", val)):
            if windows.n_dropped:
                longer = counted(windows.n_dropped, f"{split} example")
                self.say(f"{longer} longer than a window: left out")
        parameters = parameters_of(self.model)
        weights = sum(t.nbytes for t in [*self.model.parameters(), *self.model.buffers()])
        trained = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        learned = sum(p.numel() for p, _ in trained)
        moments = 4 * sum(len(state_names(group)) * p.numel() for p, group in trained)
        ratio = train.n_tokens / parameters
        share = f", {learned:,} of them trained ({learned / parameters:.1%})" if learned < parameters else ""
        self.say(f"model: {parameters:,} parameters{share}, {ratio:.2f} training tokens per parameter")
        if train.n_tokens < learned:
            self.say("WARNING: fewer training tokens than parameters: the model can learn the text by heart")
        self.say(
            f"memory: {weights:,} bytes of weights, {4 * learned:,} of gradients, {moments:,} of "
            f"optimizer state{self.sharded}, and activations"
        )

    def length(self, max_iters: int, batch_size: int, micro_steps: int, world_size: int, train) -> None:
        """Print how much is trained: tokens per update with their factors, and passes over the data."""
        self.max_iters, self.world_size, self.train = max_iters, world_size, train
        windows = batch_size * micro_steps * world_size
        self.tokens_per_iter = windows * train.block_size
        self.say(
            f"tokens/iter: {self.tokens_per_iter:,} = {counted(batch_size, 'window')} x {train.block_size} "
            f"tokens x {counted(micro_steps, 'micro-step')} x {counted(world_size, 'process', 'processes')}"
        )
        tokens, epochs = max_iters * self.tokens_per_iter, max_iters * windows / train.n_windows
        self.say(f"{counted(max_iters, 'update')}: {tokens:,} tokens, {epochs:.2f} epochs")

    def count_update(self, progress, seconds: float, reading: float, numbers: list[tuple]) -> None:
        """Note an update: its seconds, those of reading its batches, and the numbers that are known by now:
        (update, this process's share of the mean loss, gradient norm before clipping)."""
        self.updates += 1
        self.update_seconds += seconds
        self.data_seconds += reading
        warmup = self.config["warmup_iters"] + round(self.config["warmup_ratio"] * self.max_iters)
        for update, loss, grad_norm in numbers:
            progress.clipped += bool(0 < self.config["grad_clip"] < grad_norm < math.inf)
            self.say(self.losses.add(update, loss * self.world_size, warmup, self.max_iters))
            self.skipped += not math.isfinite(grad_norm)  # float16 overflowed: the scaler made no step

    def iteration(self, progress, loss: float, lr: float, grad_norm: float) -> None:
        """Print `iter 10: loss 2.5528, time 44.79ms, ...` and record the row. Times are means."""
        each, step = self.update_seconds / self.updates, progress.step
        row = dict(step=step, tokens=progress.tokens, seconds=round(progress.seconds, 4))
        row |= dict(loss=loss, lr=lr)
        if self.muon_groups:
            row["muon_lr"] = max(group["lr"] for group in self.muon_groups)
        row["grad_norm"] = grad_norm
        before = next((old["step"] for old in reversed(self.rows) if "loss" in old), 0)
        row["clipped"] = round(progress.clipped / (step - before), 4)
        progress.clipped = 0
        row["tokens_per_second"] = round(self.tokens_per_iter / each, 1)
        row["memory_mb"] = memory_mb(self.device)
        row["cpu_percent"] = self.cpu_percent()
        row["data_ms"] = round(1000 * self.data_seconds / self.updates, 3)
        self.updates, self.update_seconds, self.data_seconds = 0, 0.0, 0.0
        self.record(row)
        mfu = flops_utilisation(self.model, row["tokens_per_second"] / self.world_size, self.device)
        mfu_text = f", mfu {mfu:.1%}" if mfu else ""
        muon = f", muon lr {row['muon_lr']:.2e}" if self.muon_groups else ""
        clipped = f", {row['clipped']:.0%} clipped" if row["clipped"] else ""
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        line = (
            f"iter {step}: loss {loss:.4f}, time {1000 * each:.2f}ms, {row['tokens_per_second']:,.0f} tok/s, "
            f"lr {lr:.2e}{muon}, grad norm {grad_norm:.2f}{clipped}{mfu_text}{skipped}, "
            f"{clock((self.max_iters - step) * each)} left"
        )
        if self.main and self.overwrite:
            print("\033[K" + line, end="\r", flush=True)
        else:
            self.say(line)

    def evaluation(self, progress, standard_error: float, by_corpus: dict[str, float] | None = None) -> None:
        """Print `step 250: train loss 1.9612, val loss 2.0647, perplexity 7.88` and record the row.

        by_corpus: the val loss of each dataset of a mixture.
        """
        step, train_loss, val_loss = progress.step, progress.train_loss, progress.val_loss
        perplexity = math.exp(min(val_loss, 700))  # e**710 is no float
        row = dict(step=step, tokens=progress.tokens, seconds=progress.seconds)
        row |= dict(train_loss=train_loss, val_loss=val_loss, val_perplexity=perplexity)
        row |= {f"val_loss_{name}": loss for name, loss in (by_corpus or {}).items()}
        if self.rows and self.rows[-1]["step"] == step and "val_loss" in self.rows[-1]:
            self.rows.pop()  # resumed from a checkpoint saved just before this evaluation
            self.write_rows()
        shown = f"{perplexity:.2f}" if perplexity < 1e6 else f"{perplexity:.2e}"
        line = f"step {step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}, perplexity {shown}"
        if self.floor:
            line += f", entropy of the source {self.floor:.4f}, gap {val_loss - self.floor:.4f}"
        line += verdict(self.rows, row, self.floor, standard_error)
        self.record(row)
        if by_corpus:
            line += "\n" + self.train.standing(
                by_corpus, step * self.tokens_per_iter // self.train.block_size
            )
        self.say(line)

    def sample(self, step: int, meta: dict, text: str) -> None:
        """Print what the model has written, append it to samples.txt, and send it to the trackers.

        meta: the meta.json of the data that it has learned from.
        """
        source = f"data: {meta['name']}, sha256 {meta['sha256'][:12]}"
        self.say(samples.block(step, source, text).removesuffix("\n"))
        if self.write:
            samples.append(self.folder / "samples.txt", step, source, text)
            self.trackers.text(step, text)

    def stopped(self, progress) -> None:
        """Print how to go on with a run that a signal has stopped."""
        many = f"torchrun --nproc_per_node={self.world_size}" if self.world_size > 1 else "python"
        how = f"{many} train.py --init_from=resume --out_dir={self.config['out_dir']}"
        self.say(f"stopped at step {progress.step}, saved; go on: {how}")

    def write_settings(self) -> None:
        """Write config.json: the settings, and whether the text is a stand-in."""
        if self.write:
            settings = json.dumps({**self.config, **self.stand_in}, indent=2)
            guard.write_atomic(self.folder / "config.json", settings + "\n")

    def write_rows(self) -> None:
        """Write metrics.jsonl from self.rows; record() appends single rows."""
        guard.write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def record(self, row: dict) -> None:
        """Append a row to metrics.jsonl, and send it to the trackers."""
        if not self.write:
            return
        self.rows.append(row)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.trackers.numbers(row)

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
            parameters=parameters_of(self.model),
        )
        if self.write:
            guard.write_atomic(self.folder / "result.json", json.dumps(result, indent=2) + "\n")
            self.lock.close()
            self.trackers.close()
        self.say(f"trained for {clock(progress.seconds)}, not counting evaluation; in {self.folder}:")
        if newest(self.folder / "best.pt").exists():  # else a later one was set aside (branch.py)
            self.say(f"  best.pt  val loss {progress.best_val_loss:.4f} (step {progress.best_step})")
        self.say(f"  ckpt.pt  val loss {progress.val_loss:.4f}, train loss {progress.train_loss:.4f}")
        plot = "" if self.plot_error else "loss.png "
        self.say(f"  {plot}metrics.jsonl samples.txt result.json config.json")
        self.say(judge(evaluations(self.rows), self.expected, self.changed))

    def plot(self) -> None:
        """Draw loss.png (runtime/plot.py)."""
        if not self.write or not self.rows or self.plot_error:
            return
        gc.freeze()  # a figure is a reference cycle of 2.5 MB; collect() then only looks at what is new
        try:
            path, grad_clip = self.folder / "loss.png", self.config["grad_clip"]
            plot_loss(self.rows, self.floor, self.expected, path, self.guessing, grad_clip)
        except Exception as error:  # a run does not fail because of a picture
            self.plot_error = " ".join(str(error).split())
            self.say(f"WARNING: no loss.png: {self.plot_error}")
        gc.collect()
        gc.unfreeze()


def clock(seconds: float) -> str:
    """95 -> '1:35', 4000 -> '1:06:40'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def counted(n: int, one: str, many: str = "") -> str:
    """1 -> "1 thread", 2 -> "2 threads"."""
    return f"{n:,} {one}" if n == 1 else f"{n:,} {many or one + 's'}"
