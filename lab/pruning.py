"""Pruning compared: val loss by method and share, before and after some updates of recovery; a picture.

    python train.py config/shakespeare_char.py --n_head=4 --out_dir=out-base
    python -m lab.pruning --bases=out-base                      5 minutes on one CPU core
    python -m lab.pruning --bases=out-1,out-2,out-3 --sparsities=0.5 --picture=     mean and spread of three

Recovery trains the pruned model on, as --technique=prune does: with a tenth of the base's learning rates,
which fall to zero. Not pruned, the base makes the same updates: what they gain by themselves.
"""

import dataclasses
from pathlib import Path

from config import ROOT, end_script, override  # isort: skip
import numpy as np
import torch

from data import open_windows
from evaluate import evaluate, fixed_windows
from lab.measure import CPU, Run
from runtime import checkpoint
from runtime.plot import open_pyplot, save_figure
from runtime.resolve import FINE_TUNING
from techniques import load

# -----------------------------------------------------------------------------
bases = "out-shakespeare-char"  # runs to prune, joined by commas; each from a seed of its own
sparsities = "0.25,0.5,0.75,0.9"  # shares to prune
methods = "magnitude,layer,wanda,2:4,heads,neurons"  # which; 2:4 is always half
updates = 50  # of recovery
eval_iters = 10  # an evaluation reads this x 4,096 tokens of val; 0 = all
tokens = 16384  # of the training text, to measure inputs on
picture = "prune.png"  # a file; '' = none
threads = 1  # of the CPU
# -----------------------------------------------------------------------------

LOOKS = {"magnitude": "o-", "layer": "s-", "wanda": "^-", "2:4": "*", "heads": "D--", "neurons": "v--"}


class Base:
    """A trained run: makes pruned copies of its model, evaluates them and trains them on."""

    def __init__(self, out_dir: str, settings: dict):
        path = checkpoint.run_folder(out_dir) / "best.pt"
        self.model, tokenizer, saved = checkpoint.load_model(path, CPU)
        self.prune, self.settings, self.steps = load("prune")[0], saved["config"], settings["updates"]
        name, T = saved["config"]["dataset"], self.model.config.block_size
        self.train = open_windows(name, "train", T, saved["config"]["seed"] + 1)  # not in the base's order
        self.val = fixed_windows(self.train, open_windows(name, "val", T), settings["eval_iters"])[1]
        calibration = {"input": "", "tokens": settings["tokens"], "out_dir": out_dir}
        self.batches = load("gptq")[0].calibration(calibration, saved, tokenizer)
        self.size = self.weights(self.model)

    def weights(self, model) -> int:
        """How many weights of the blocks' matrices are not zero."""
        return sum(int(layer.weight.count_nonzero()) for layer in self.prune.matrices(model).values())

    def run_of(self, model) -> Run:
        """A run that trains a copy of a model on."""
        settings = {**self.settings, **dataclasses.asdict(model.config), "max_iters": self.steps}
        settings |= {"min_lr": 0.0, "lr_decay_iters": -1, "warmup_iters": 0, "lr_schedule": "linear"}
        for name in ("learning_rate", "muon_lr"):
            settings[name] *= FINE_TUNING
        run = Run(settings, model.config.vocab_size)
        run.model.load_state_dict(model.state_dict())
        return run

    def losses(self, share: float, method: str) -> tuple[float, float, float]:
        """(share of the blocks' weights that is gone, val loss, val loss after recovery)."""
        copied = self.run_of(self.model).model.eval()
        pruned = self.prune.prune_model(copied, share, method, self.batches)
        gone, run = 1 - self.weights(pruned) / self.size, self.run_of(pruned)
        before = evaluate(run.model, *self.val, CPU, run.autocast)["loss"]
        recovery = {"prune_sparsity": 0.0, "prune_iters": 1, "init_from": "the pruned model"}
        self.prune.change_model(run.model, recovery)
        for step in range(self.steps):
            run.update(step, *self.train.batch(step, self.settings["batch_size"]))
            for layer in self.prune.matrices(run.model).values():
                self.prune.put_back(layer)
        return gone, before, evaluate(run.model, *self.val, CPU, run.autocast)["loss"]


def compare(settings: dict) -> list[str]:
    """Prune all bases in all ways; draws the picture; returns the lines of a table."""
    torch.set_num_threads(settings["threads"])
    found = [Base(name, settings) for name in settings["bases"].split(",")]
    shares = [float(share) for share in settings["sparsities"].split(",")]
    cells = {("not pruned", 0.0): [base.losses(0.0, "layer") for base in found]}
    for method in settings["methods"].split(","):
        for share in [0.5] if method == "2:4" else shares:
            cells[method, share] = [base.losses(share, method) for base in found]
    later = f"after {settings['updates']}"
    lines = [f"{'':12}{'share':>6}{'gone':>7}{'val loss':>18}{later:>18}"]
    for (method, share), rows in cells.items():
        gone, *losses = np.array(rows).T  # (seeds) each
        shown = [f"{each.mean():.3f}" for each in losses]
        if len(rows) > 1:  # the standard deviation of one seed
            shown = [f"{mean} +- {each.std(ddof=1):.3f}" for mean, each in zip(shown, losses, strict=True)]
        lines.append(f"{method:12}{share:>6.0%}{gone.mean():>7.0%}{shown[0]:>18}{shown[1]:>18}")
    if settings["picture"]:
        draw({key: np.mean(rows, axis=0) for key, rows in cells.items()}, ROOT / settings["picture"])
        lines.append(f"saved {settings['picture']}")
    return lines


def draw(cells: dict[tuple, np.ndarray], path: Path) -> None:
    """Draw val loss by the share of weights that is gone, before and after recovery. cells: as compare()."""
    pyplot = open_pyplot()
    figure, panels = pyplot.subplots(1, 2, figsize=(8, 3.6), dpi=95, sharey=True)
    start = cells["not pruned", 0.0]
    for i, (axes, title) in enumerate(zip(panels, ("pruned", "and trained on"), strict=True), 1):
        for method in dict.fromkeys(method for method, _ in cells):
            points = [cell for key, cell in cells.items() if key[0] == method]
            if method in LOOKS:
                points = points if method == "2:4" else [start, *points]
                x, y = np.array(points)[:, 0], np.array(points)[:, i]
                axes.plot(x, y, LOOKS[method], ms=8 if method == "2:4" else 5, lw=1.4, label=method)
        axes.axhline(start[i], color="0.6", lw=1, ls=":")
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("share of the blocks' weights that is gone")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92")
    panels[0].set_ylabel("val loss (nats per token)")
    panels[0].legend(frameon=False, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


if __name__ == "__main__":
    config = override(globals())
    print(*compare(config), sep="\n")
    end_script()
