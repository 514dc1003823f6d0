"""Modern blocks against the plain model: loss after equal updates, and after equal time of the processor.

    python -m lab.blocks --dataset=shakespeare_char --seeds=2         minutes on one core: docs/blocks.md

All models of a seed take turns, update by update, on the same windows, so that a busy neighbour slows them
alike; each model's own seconds are those of the processor (CPU time), not of the clock. Then the plain model
makes as many more updates as the other's time allows, with its learning rate falling to 0 at that end, too.
Shape and learning rates are config/fast.py's, which were found with the plain model.
"""

import time
from collections.abc import Iterator

from config import end_script, override, require  # isort: skip
import numpy as np
import torch

import data
import techniques
from evaluate import evaluate, fixed_windows
from lab.measure import CPU, Run, settings_of
from machine.speed import flops_per_token, parameters_of
from text.prepare import folder_of
from text.settle import settle

# -----------------------------------------------------------------------------
dataset = "shakespeare_char"  # a dataset, prepared or known
seed = 1337  # the first one
seeds = 2  # how many
updates = 140  # of each model
eval_iters = 12  # val tokens / 4,096
names = "latent,experts,sliding,multi_token"  # which, in this order
# -----------------------------------------------------------------------------

SETTINGS = {
    "latent": dict(latent_rank=64, latent_rope=16),
    "experts": dict(experts=8, experts_active=2, experts_width=0, experts_balance=0.01),
    "sliding": dict(sliding_window=16, sliding_global_every=2),
    "multi_token": dict(multi_token=1, multi_token_weight=0.3),
}


class Trained:
    """A model in training, and how long that took."""

    def __init__(self, settings: dict, vocab_size: int):
        self.run, self.seconds = Run(settings, vocab_size), 0.0
        self.own_loss = techniques.hooks("loss", settings)
        self.after_steps = techniques.hooks("after_step", settings)
        if self.own_loss:
            self.run.loss_of = lambda x, y: self.own_loss[0](self.run.model, x, y)

    def update(self, step: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """One update; adds the processor's time for it."""
        began = time.process_time()
        self.run.update(step, x, y)
        for after_step in self.after_steps:
            after_step(self.run.model, step + 1)
        self.seconds += time.process_time() - began


def settings_for(name: str, dataset: str, seed: int, max_iters: int) -> dict:
    """train.py's settings of one model; name "": the plain one."""
    changes = dict(dataset=dataset, seed=seed, max_iters=max_iters, technique=name)
    return settings_of("config/fast.py", **changes, **SETTINGS.get(name, {}))


def train(
    models: dict[str, Trained], updates: int, windows: data.Windows, val_set: tuple
) -> dict[str, float]:
    """Make the updates of all models, in turns; returns the val loss of each."""
    batch_size = settings_of("config/fast.py")["batch_size"]
    for step in range(updates):
        x, y = windows.batch(step, batch_size)
        for model in models.values():
            model.update(step, x, y)
    runs = {name: model.run for name, model in models.items()}
    return {name: evaluate(run.model, *val_set, CPU, run.autocast)["loss"] for name, run in runs.items()}


def race(
    seed: int, names: list[str], config: dict
) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """One seed: ({name: val loss}, "" is the plain model; that of the plain one in as much time; remarks)."""
    dataset, meta = settle(config["dataset"], 0, False)
    block_size = settings_of("config/fast.py")["block_size"]
    splits = [data.Windows(folder_of(dataset), split, block_size, seed) for split in ("train", "val")]
    _, val_set = fixed_windows(*splits, config["eval_iters"])
    updates, vocab_size = config["updates"], meta["vocab_size"]
    models = {name: Trained(settings_for(name, dataset, seed, updates), vocab_size) for name in ("", *names)}
    losses = train(models, updates, splits[0], val_set)
    as_long, remarks, plain = {}, {}, models[""]
    for name in names:
        model = models[name]
        ratio = model.seconds / plain.seconds
        longer = max(1, round(updates * ratio))
        longer_run = Trained(settings_for("", dataset, seed, longer), vocab_size)
        (as_long[name],) = train({"": longer_run}, longer, splits[0], val_set).values()
        work = flops_per_token(model.run.model) / flops_per_token(plain.run.model)
        remarks[name] = (
            f"{parameters_of(model.run.model):,} parameters (plain: {parameters_of(plain.run.model):,}), "
            f"operations x {work:.2f}, time x {ratio:.2f}"
        )
    return losses, as_long, remarks


def compare(config: dict) -> Iterator[str]:
    """Race with each seed; yields a line for each model of each seed, then those of all seeds."""
    names = [name for name in config["names"].split(",") if name]
    for name in names:
        require(name in SETTINGS, f"names={name} is unknown; expected some of {', '.join(SETTINGS)}")
    seeds = range(config["seed"], config["seed"] + config["seeds"])
    found = []
    for seed in seeds:
        losses, as_long, remarks = race(seed, names, config)
        found.append((losses, as_long))
        yield f"seed {seed}: plain {losses['']:.4f}"
        for name in names:
            both = f"{losses[name]:.4f}, plain as long {as_long[name]:.4f}"
            yield f"seed {seed}: {name} {both}; {remarks[name]}"
    yield f"{config['dataset']}, {config['updates']} updates: mean (lowest to highest) of {len(seeds)} seeds"
    yield f"plain: {spread([losses[''] for losses, _ in found])}"
    for name in names:
        ours, plain = ([each[i][name] for each in found] for i in (0, 1))
        yield f"{name}: {spread(ours)}; plain as long: {spread(plain)}"


def spread(values: list[float]) -> str:
    """1.234 (1.230 to 1.238)."""
    return f"{np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


if __name__ == "__main__":
    config = override(globals())
    torch.set_num_threads(1)
    for line in compare(config):
        print(line, flush=True)
    end_script()
