"""How cost per token grows with a model's sizes, how loss falls with compute, what each switch is worth.

Every run trains in this process for some seconds, with the recipe of config/shakespeare_char.py. bench.py
prints the rows.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import data
from evaluate import evaluate, spread
from lab.measure import CPU, Row, Run, alternate, measured, seconds_of, settings_of, show, sized
from runtime import memory, plot
from text import settle
from text.dataset import floor_per_token

RECIPE = "config/shakespeare_char.py"
AXES = dict(block_size=(64, 128, 256, 512, 1024, 2048), n_layer=(1, 2, 4, 8, 16), n_embd=(64, 128, 256, 512))
BUDGET = 1e11  # flop of each run in `sizes`: 80 updates of MODELS' third, 8 of config/shakespeare_char.py
MODELS = [(1, 32), (2, 32), (2, 64), (3, 96), (4, 128), (4, 192)]  # n_layer, n_embd
SWITCHES = [  # what the ablation changes, one row at a time
    dict(norm="rmsnorm"), dict(position="learned"), dict(activation="gelu"), dict(qk_norm=0),
    dict(token_shift=0), dict(zero_init=0), dict(logit_cap=0.0), dict(n_head=4), dict(muon_momentum=0.95),
    dict(optimizer="adamw", learning_rate=3e-3, beta1=0.9, beta2=0.99), dict(lr_schedule="cosine"),
    dict(dtype="float32"),
]  # fmt: skip


def train_for(settings: dict, seconds: float) -> tuple[float, float]:
    """Train for a fixed time; returns (val loss, flop = 6 x weights without the embedding x tokens).

    The learning rate follows the clock: after a third of the time it is what lr_at gives after a third of
    max_iters. So every run completes its schedule, however fast its updates are.
    """
    meta, T, B = settle.ensure(settings["dataset"]), settings["block_size"], settings["batch_size"]
    train, val = (data.Windows(settings["dataset"], split, T, settings["seed"]) for split in ("train", "val"))
    run = Run(settings, meta["vocab_size"])
    run.gradients(*train.batch(0, B))  # not counted: the first call allocates, and chooses kernels
    updates, elapsed, began = 0, 0.0, time.perf_counter()
    while elapsed < seconds:
        run.update(int(settings["max_iters"] * elapsed / seconds), *train.batch(updates, B))
        updates += 1
        elapsed = time.perf_counter() - began
    return val_loss(run, val), 6.0 * weights_of(run.model) * updates * B * T


def val_loss(run: Run, val: data.Windows) -> float:
    """The loss on 65,536 tokens spread over the val split."""
    return evaluate(run.model, val, spread(val, 65536 // val.block_size), CPU, run.autocast)["loss"]


def weights_of(model) -> int:
    """The number of weights that a token is multiplied by: all but the embedding."""
    return sum(p.numel() for p in model.parameters()) - model.wte.weight.numel()


def train_with(settings: dict, flop: float) -> tuple[float, int, int]:
    """Train until 6 x weights x tokens is that many flop; returns (val loss, weights, tokens).

    The schedule ends with the last update. So the result depends on no clock.
    """
    meta, T, B = settle.ensure(settings["dataset"]), settings["block_size"], settings["batch_size"]
    train, val = (data.Windows(settings["dataset"], split, T, settings["seed"]) for split in ("train", "val"))
    weights = weights_of(memory.on_meta(settings, meta["vocab_size"]))
    updates = max(1, round(flop / (6 * weights * B * T)))
    run = Run({**settings, "max_iters": updates}, meta["vocab_size"])
    for step in range(updates):
        run.update(step, *train.batch(step, B))
    return val_loss(run, val), weights, updates * B * T


def ablation(seconds: float, seeds: int) -> Iterator[Row]:
    """Val loss of the recipe, and with one setting changed, after equal training time; mean over seeds."""

    def side(changes: dict) -> Callable:
        return lambda turn: train_for(settings_of(RECIPE, **changes, seed=1337 + turn), seconds)[0]

    losses = alternate(*(side(changes) for changes in [{}, *SWITCHES]), turns=seeds)  # (variants, seeds)
    for changes, loss in zip([{}, *SWITCHES], losses, strict=True):
        name = " ".join(f"{key}={value}" for key, value in changes.items()) or "the recipe"
        worse = f", {np.mean(loss - losses[0]):+.4f}" if changes else ""
        yield measured(name, loss, "")._replace(absolute=f"{loss.mean():.4f} nats{worse}")


def sizes(seeds: int) -> Iterator[Row]:
    """Val loss of six model sizes with one budget of compute each; mean and standard deviation over seeds."""

    def side(shape: tuple[int, int]) -> Callable:
        layers, width = shape
        changes = dict(n_layer=layers, n_embd=width, n_head=width // 32)
        flop = sized(BUDGET, 1e8)
        return lambda turn: train_with(settings_of(RECIPE, **changes, seed=1337 + turn), flop)

    found = alternate(*map(side, MODELS), turns=seeds)  # (sizes, seeds, 3)
    for (layers, width), runs in zip(MODELS, found, strict=True):
        loss, (weights, tokens) = runs[:, 0], runs[0, 1:]
        spread = f" +-{np.std(loss, ddof=1):.4f}" if seeds > 1 else ""
        what = f"n_layer {layers}, n_embd {width}: {weights:,.0f} weights, {tokens / weights:.2g} tokens each"
        yield measured(what, loss, "")._replace(absolute=f"{loss.mean():.4f} nats{spread}")


# ---- power laws
def exponent(x, y) -> float:
    """Fit y = a x^b by least squares on the logarithms; returns b, or nan for a single point."""
    if len(x) < 2:
        return math.nan
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def envelope(compute, loss) -> list[int]:
    """Indices of the points whose loss is below that of every cheaper point, in order of compute."""
    order = sorted(range(len(loss)), key=lambda i: (compute[i], loss[i]))
    lowest_before = itertools.accumulate((loss[i] for i in order[:-1]), min, initial=math.inf)
    return [i for i, lowest in zip(order, lowest_before, strict=True) if loss[i] < lowest]


def plot_power_laws(panels: list[dict], path: Path) -> None:
    """Draw panels side by side on logarithmic axes into a PNG file.

    A panel has a title, xlabel, ylabel, points {label: (x, y)}, and fitted: the (x, y) for the straight line.
    """
    pyplot = plot.open_pyplot()
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for label, (x, y) in panel["points"].items():
            axis.loglog(x, y, "o", label=label)
        x, y = (np.asarray(values) for values in panel["fitted"])
        b = exponent(x, y)
        line = np.exp(np.mean(np.log(y)) + b * (np.log(x) - np.mean(np.log(x))))
        axis.loglog(x, line, "k--", label=f"exponent {b:.2f}")
        axis.set(title=panel["title"], xlabel=panel["xlabel"], ylabel=panel["ylabel"])
        axis.legend(fontsize=7, framealpha=0.5)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


# ---- growth
def cost_per_token(name: str, sizes: tuple, turns: int) -> np.ndarray:
    """Milliseconds of forward and backward per token, (sizes, turns), in batches of 2,048 tokens."""

    def side(size: int) -> Callable:
        run = Run(settings_of(RECIPE, **{name: size}), 65)
        x = torch.randint(65, (2048 // run.config.block_size, run.config.block_size))
        run.gradients(x, x)  # not counted: it allocates
        return lambda turn: 1e3 / x.numel() * seconds_of(run.gradients, x, x)

    return alternate(*map(side, sizes), turns=turns)


def growth_of_cost(turns: int, folder: Path | None) -> Iterator[Row]:
    """For each size (AXES), the exponent of the cost per token; a plot if there is a folder."""
    panels = []
    for name, sizes in AXES.items():
        sizes = sizes[: sized(None, 3)]
        costs = cost_per_token(name, sizes, turns)
        cost = np.median(costs, axis=1)
        for first in (0, len(sizes) // 2):  # all sizes; the larger half, where fixed overhead hides less
            every = [exponent(sizes[first:], turn[first:]) for turn in costs.T]
            row = measured(f"cost per token ~ {name}^b, {sizes[first]} to {sizes[-1]}", every, "")
            absolute = f"{show(cost[first])} to {show(cost[-1])} ms"
            yield row._replace(ratio=f"{np.median(every):.3f}", absolute=absolute)
        panel = dict(title=f"cost against {name}", xlabel=name, ylabel="ms per token")
        panels.append({**panel, "points": {"measured": (sizes, cost)}, "fitted": (sizes, cost)})
    if folder:
        plot_power_laws(panels, folder / "growth_cost.png")


def growth_of_loss(seconds: float, folder: Path | None) -> Iterator[Row]:
    """The exponent with which loss falls with compute; a plot if there is a folder.

    Six models train for a quarter, a half and all of the seconds, each run with a complete schedule. The text
    is generated, so its entropy is known; the law is fitted to the loss above that entropy. Only runs that no
    cheaper run beats are fitted (the lower envelope).
    """
    dataset = sized("verse", settings_of()["dataset"])
    floor = floor_per_token(settle.ensure(dataset), "val")
    points = {}
    for n_layer, n_embd in MODELS[: sized(None, 2)]:
        shape = dict(n_layer=n_layer, n_embd=n_embd, n_head=n_embd // 32)
        settings = settings_of(RECIPE, **shape, dataset=dataset)
        found = [train_for(settings, share * seconds) for share in (0.25, 0.5, 1)]
        loss, flops = np.array(found).T
        points[f"n_layer {n_layer}, n_embd {n_embd}"] = flops, loss - floor
    compute, excess = (np.concatenate(values) for values in zip(*points.values(), strict=True))
    best = envelope(compute, excess)
    x, y = compute[best], excess[best]
    what = f"loss above the floor ~ flop^b, {x[0]:.1e} to {x[-1]:.1e}"
    losses = f"{y[0] + floor:.3f} to {y[-1] + floor:.3f} nats, floor {floor:.3f}"
    yield Row(what, f"{exponent(x, y):.3f}", losses, "reported", f"{len(best)} of {len(compute)} points")
    if folder:
        title = dict(title="loss against compute", xlabel="flop, 6 N D", ylabel="nats above the floor")
        plot_power_laws([{**title, "points": points, "fitted": (x, y)}], folder / "growth_loss.png")
