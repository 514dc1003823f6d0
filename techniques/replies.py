"""Prompts and replies in place of windows of text: what dpo.py and grpo.py share.

A batch of B prompts has all replies of a prompt in rows that follow each other, filled up at the right. Two
columns of numbers stand in front of x, which the loss takes off again: the place of the prompt in the endless
series of all draws, and its number in the data. From the place follow the update and the random numbers.
"""

import json
import os
import statistics
import sys

import numpy as np
import torch
import torch.nn.functional as F

from config import require
from data import Windows
from machine.distributed import sum_over_ranks
from runtime import guard
from runtime.curve import read_rows
from runtime.folder import run_folder

Item = tuple[list[int], list[list[int]]]  # ids of a prompt, ids of each of its replies


class Replies:
    """The rows of a training split as prompts with replies; batch() and window_batch() as data.Windows has.

    items: as many replies for each prompt. counted: what a prompt counts in the mean that train.py makes, in
    place of its targets: a batch says so in y.n_targets. ValueError for a mixture.
    """

    def __init__(self, windows: Windows, items: list[Item], counted: int):
        one = not hasattr(windows, "standing")  # which a Mixture has
        require(one, "dataset is a mixture; expected one dataset: dpo and grpo learn from its rows")
        self.items, self.counted, self.seed, self.end_id = items, counted, windows.seed, windows.end_id
        self.path, self.block_size, self.n_tokens = windows.path, windows.block_size, windows.n_tokens
        self.n_windows, self.n_dropped, self.notes = len(items), windows.n_dropped, windows.notes

    def batch(self, step: int, batch_size: int, micro_step=0, n_micro_steps=1, rank=0, world_size=1):
        """x (B x replies, 2 + T), y (B x replies, T) int64 of a step: a pure function, as Windows.batch()."""
        first = ((step * n_micro_steps + micro_step) * world_size + rank) * batch_size
        places = range(first, first + batch_size)
        about = [(i, int(self.order(i // self.n_windows)[i % self.n_windows])) for i in places]
        x, y = padded([row for _, number in about for row in self.rows(number)], self.end_id)
        about = torch.tensor(about).repeat_interleave(len(x) // batch_size, dim=0)  # (B x replies, 2)
        y.n_targets = batch_size * self.counted
        return torch.cat((about, x), dim=1), y

    def window_batch(self, indices) -> tuple[torch.Tensor, torch.Tensor]:
        """x, y (B, T) of the first reply to each of these prompts, for evaluation: no numbers in front."""
        return padded([self.rows(i)[0] for i in indices], self.end_id)

    def rows(self, number: int) -> list[Item]:
        """(prompt, reply) for each reply to a prompt."""
        prompt, replies = self.items[number]
        return [(prompt, reply) for reply in replies]

    def order(self, epoch: int) -> np.ndarray:
        """The order of the prompts in an epoch, (n,)."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.n_windows)


def padded(rows: list[tuple[list[int], list[int]]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(prompt, reply) pairs -> x, y (B, T): y is x one token later, -1 in the prompt and behind the reply."""
    longest = max(len(prompt) + len(reply) for prompt, reply in rows)
    ids = torch.full((len(rows), longest), filler)
    scored = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (prompt, reply) in enumerate(rows):
        end = len(prompt) + len(reply)
        ids[row, :end] = torch.tensor(prompt + reply)
        scored[row, len(prompt) : end] = True
    return ids[:, :-1].contiguous(), ids.where(scored, -1)[:, 1:].contiguous()


def unpadded(x: torch.Tensor, y: torch.Tensor) -> list[tuple[list[int], list[int]]]:
    """The (prompt, reply) pairs that padded() made x, y (B, T) of."""
    learned = [row.nonzero().flatten().tolist() for row in y != -1]
    pairs = zip(x, y, learned, strict=True)
    return [(ids[: at[0] + 1].tolist(), targets[at].tolist()) for ids, targets, at in pairs]


def unwrapped(model):
    """The GPT inside DistributedDataParallel, or the GPT itself."""
    return getattr(model, "module", model)


def log_probs(model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Ids x and targets y (B, T) -> the log-probability of each target (B, T) in nats; 0 where y is -1."""
    logits = model(x)  # (B, T, V)
    return -F.cross_entropy(logits.transpose(1, 2), y, ignore_index=-1, reduction="none")


def count(model, place: int, **sums: float) -> None:
    """Note the sums of a micro-step beside the model, for record().

    place: the batch's first one; a micro-step that is made twice, to time it, counts once.
    """
    vars(unwrapped(model)).setdefault("counted", {})[place] = sums


def record(model, step: int, name: str, config: dict, over: str, shown: str) -> None:
    """Write an update's sums, divided by that called `over`, as a row of out_dir/NAME.jsonl; print some.

    All ranks call this together. shown: a format for the means since the last progress line.
    """
    counted = vars(model).pop("counted")
    names = list(next(iter(counted.values())))
    device = next(model.parameters()).device
    sums = sum_over_ranks([float(sum(each[n] for each in counted.values())) for n in names], device)
    if os.environ.get("RANK", "0") != "0":
        return
    total = dict(zip(names, sums, strict=True))
    row = {"step": step} | {n: total[n] / total[over] for n in names if n != over}
    path = run_folder(config["out_dir"]) / f"{name}.jsonl"
    if "noted" not in vars(model):  # later rows are of updates that this run repeats
        model.noted = [old for old in read_rows(path) if old["step"] < step]
        guard.write_atomic(path, "".join(json.dumps(old) + "\n" for old in model.noted))
    model.noted.append(row)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    if step % config["log_interval"] == 0:
        late = [old for old in model.noted if old["step"] > step - config["log_interval"]]
        means = {n: statistics.fmean(old[n] for old in late) for n in row}
        print("\033[K" * sys.stdout.isatty() + f"{name}: " + shown.format(**means), flush=True)
    if step == config["max_iters"]:
        print(f"{name}: best.pt has the lowest val loss, which says little here; sample.py --file=ckpt.pt")


def plain_base(saved: dict, name: str) -> dict:
    """A checkpoint as the base of a new run: its weights are those of a plain model."""
    others = [each for each in saved["config"]["technique"].split(",") if each != name]
    return {**saved, "config": {**saved["config"], "technique": ",".join(others)}}
