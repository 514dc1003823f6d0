"""Modern blocks against the plain model: loss after equal updates, and after equal time of the processor.

    python -m lab.blocks --dataset=shakespeare_char --seeds=2         minutes on one core: docs/techniques.md

All models of a seed take turns, update by update, on the same windows, so that a busy neighbour slows them
alike; each model's own seconds are those of the processor (CPU time), not of the clock. Then the plain model
makes as many more updates as the other's time allows, with its learning rate falling to 0 at that end, too.
Shape and learning rates are config/fast.py's, which were found with the plain model.
"""

import sys
import time

from config import end_script, override, require  # isort: skip
import numpy as np
import torch

import data
import techniques
from evaluate import evaluate, fixed_windows
from lab.measure import CPU, Run, settings_of
from machine.speed import flops_per_token, parameters_of
from text.prepare import folder_of, settle

# -----------------------------------------------------------------------------
dataset = "shakespeare_char"  # a dataset, prepared or known
seeds = 2  # 1337, 1338, ...
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


def settings_for(name: str, seed: int, config: dict, max_iters: int) -> dict:
    """train.py's settings of one model; name "": the plain one."""
    changes = dict(seed=seed, max_iters=max_iters, technique=name, **SETTINGS.get(name, {}))
    return settings_of("config/fast.py", dataset=config["dataset"], **changes)


def compare(config: dict) -> list[str]:
    """Train all models; returns the lines of a table."""
    found, meta = settle(config["dataset"], 0, False)
    chosen = [name for name in config["names"].split(",") if name]
    for name in chosen:
        require(name in SETTINGS, f"names={name} is unknown; expected some of {', '.join(SETTINGS)}")
    losses: dict[str, list] = {}
    numbers: dict[str, tuple] = {}
    for seed in range(1337, 1337 + config["seeds"]):
        settings = settings_for("", seed, config, config["updates"])
        splits = [
            data.Windows(folder_of(found), split, settings["block_size"], seed) for split in ("train", "val")
        ]
        _, val_set = fixed_windows(*splits, config["eval_iters"])

        def train(
            models: dict[str, Trained], updates: int, windows=splits[0], val_set=val_set
        ) -> dict[str, float]:
            """Make the updates of all models in turns; returns their val losses."""
            for step in range(updates):
                x, y = windows.batch(step, 24)
                for model in models.values():
                    model.update(step, x, y)
            return {
                name: evaluate(model.run.model, *val_set, CPU, model.run.autocast)["loss"]
                for name, model in models.items()
            }

        models = {
            name: Trained(settings_for(name, seed, config, config["updates"]), meta["vocab_size"])
            for name in ("", *chosen)
        }
        for name, loss in train(models, config["updates"]).items():
            losses.setdefault(name, []).append(loss)
        for name in chosen:
            ratio = models[name].seconds / models[""].seconds
            longer = max(1, round(config["updates"] * ratio))
            plain = Trained(settings_for("", seed, config, longer), meta["vocab_size"])
            (loss,) = train({"": plain}, longer).values()
            losses.setdefault(f"plain as long as {name}", []).append(loss)
            work = flops_per_token(models[name].run.model) / flops_per_token(models[""].run.model)
            numbers[name] = parameters_of(models[name].run.model), work, ratio, longer
            print(
                f"seed {seed} {name}: {losses[name][-1]:.4f}, plain after {longer} updates {loss:.4f}",
                file=sys.stderr,
            )
    table = [
        f"{config['dataset']}, {config['updates']} updates, {config['seeds']} seeds: mean (lowest to highest)"
    ]
    table.append(f"plain: {spread(losses[''])}, {parameters_of(models[''].run.model):,} parameters")
    for name in chosen:
        parameters, work, ratio, longer = numbers[name]
        table.append(
            f"{name}: {spread(losses[name])}; plain in as much time ({longer} updates) "
            f"{spread(losses[f'plain as long as {name}'])}; {parameters:,} parameters, "
            f"operations x {work:.2f}, time x {ratio:.2f}"
        )
    return table


def spread(values: list[float]) -> str:
    """1.234 (1.230 to 1.238)."""
    return f"{np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


if __name__ == "__main__":
    config = override(globals())
    torch.set_num_threads(1)
    print(*compare(config), sep="\n")
    end_script()
