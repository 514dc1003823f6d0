"""Find a learning rate: raise it from update to update until the loss explodes (Smith, 2015).

    python -m techniques.lr_finder config/tiny.py              takes train.py's settings; draws lr-finder.png
    python -m techniques.lr_finder config/classic.py --highest=10 --updates=300

Each update multiplies the learning rate by the same factor. Too low a rate changes nothing, a good one lets
the loss fall, too high a one throws it up. With optimizer=muon, muon_lr rises in proportion.

The loss of a single batch is noisy, so its exponential moving average is read. That begins at 0, not at the
loss: divided by 1 - smoothing^n it is right from the first update on (Kingma & Ba, 2015).

The suggestion is the rate at which 90 % of the fall of this average is done. This share was chosen by
comparing it with runs of three configs (docs/compare.md): with 200 updates it was
within a factor of 3 of the best learning rate of each. With 100 it was up to 6 times too high.

sweep() does the same to a model in use, and puts it back: what follows is as if it had not been called.
"""

import copy
import itertools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from config import end_script, override, require
from runtime import plot
from techniques.trial import Trial

# -----------------------------------------------------------------------------
lowest = 1e-6  # learning rate of the first update
highest = 1.0  # learning rate of the last update
updates = 200  # how many, unless the loss explodes before
smoothing = 0.9  # the moving average keeps this share of itself at each update
too_high = 2.0  # the loss has exploded if it is so many times the lowest average
# -----------------------------------------------------------------------------

DONE = 0.9  # share of the fall at the suggested rate


class Sweep(NamedTuple):
    """What a sweep saw, from the first update to the one at which the loss exploded, if it did."""

    rates: list[float]  # learning rate of each update
    losses: list[float]  # before each update, in nats per token
    averages: list[float]  # of the losses up to there
    exploded: bool


def rates_between(lowest: float, highest: float, updates: int) -> list[float]:
    """Learning rates with equal ratios, from the lowest to the highest."""
    span = f"lowest={lowest} and highest={highest}"
    require(0 < lowest < highest, f"{span} make no sense; expected the first above 0 and below the second")
    require(updates >= 10, f"updates={updates} is too few for a sweep; expected 10 or more, 100 is usual")
    ratio = (highest / lowest) ** (1 / (updates - 1))
    return [lowest * ratio**i for i in range(updates)]


def averages_of(losses: list[float], smoothing: float) -> list[float]:
    """The exponential moving average after each loss, corrected for its start at 0."""
    averages = itertools.accumulate(
        losses, lambda mean, loss: mean + (1 - smoothing) * (loss - mean), initial=0
    )
    return [mean / (1 - smoothing**n) for n, mean in enumerate(averages) if n]


def sweep(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    update: Callable[[int, float], float],
    rates: list[float],
    smoothing: float = smoothing,
    too_high: float = too_high,
) -> Sweep:
    """Make an update at each rate until the loss explodes, then put all back, bit for bit.

    update(i, rate) makes update i at that learning rate and returns the loss before it. Afterwards, and after
    an error, too, weights, buffers, the optimizer's state and settings and torch's random numbers are what
    they were; gradients are None. What else update() changes, such as a loss scaler, it has to put back.
    """
    require(0 <= smoothing < 1, f"smoothing={smoothing} makes no sense; expected 0 or more, below 1")
    require(too_high > 1, f"too_high={too_high} makes no sense; expected above 1")
    gpus = {p.device for p in model.parameters() if p.is_cuda}
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    losses, exploded = [], False
    try:
        with torch.random.fork_rng(gpus):
            for i, rate in enumerate(rates):
                losses.append(float(update(i, rate)))
                require(math.isfinite(losses[0]), f"the loss is {losses[0]} before the first update")
                limit = too_high * min(averages_of(losses, smoothing))
                exploded = not losses[-1] <= limit  # or it is nan
                if exploded:
                    break
    finally:
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
        optimizer.zero_grad(set_to_none=True)
    return Sweep(rates[: len(losses)], losses, averages_of(losses, smoothing), exploded)


def suggested(found: Sweep) -> float:
    """The rate at which DONE of the fall of the averages is done. ValueError if they have not fallen."""
    begin, end = found.averages[0], min(found.averages)
    noise = statistics.stdev(found.losses[: max(2, len(found.losses) // 10)])
    tried = f"from {found.rates[0]:.1e} to {found.rates[-1]:.1e} the loss fell by {begin - end:.3f}"
    advice = "nothing was learned there; try another --lowest and --highest"
    require(begin - end > 2 * noise, f"{tried}, and batches differ by {noise:.3f}: {advice}")
    pairs = zip(found.rates, found.averages, strict=True)
    return next(rate for rate, average in pairs if average <= begin - DONE * (begin - end))


def find(config: dict) -> tuple[Sweep, Trial]:
    """Sweep over the run that train.py's settings describe. ValueError for settings that make no sense."""
    rates = rates_between(config["lowest"], config["highest"], config["updates"])
    trial = Trial(config)
    run = trial.run

    def update(i: int, rate: float) -> float:
        run.schedule |= {"lr_schedule": "constant", "warmup_iters": 0, "learning_rate": rate}
        return run.update(0, *trial.batch(i), config["batch_size"]).item()

    settings = config["smoothing"], config["too_high"]
    return sweep(run.model, run.optimizer, update, rates, *settings), trial


def draw(found: Sweep, rate: float, path: Path) -> None:
    """Draw losses and averages against the learning rate, and the suggestion, to a PNG file."""
    pyplot = plot.open_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=plot.DPI)
    axes.set_xscale("log")
    axes.plot(found.rates, found.losses, ".", color="0.7", ms=4, label="updates")
    axes.plot(found.rates, found.averages, color=plot.TRAIN, label="their moving average")
    axes.axvline(rate, color=plot.VAL, ls="--", label=f"suggestion: {rate:.1e}")
    low, high = min(found.averages), found.averages[0]
    axes.set_ylim(low - 0.2 * (high - low), high + 0.4 * (high - low))
    axes.set(xlabel="learning rate", ylabel="loss (nats per token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    plot.save_figure(figure, path)


def report(found: Sweep, rate: float, config: dict) -> list[str]:
    """The lines that say what was found, and what to type."""
    at = found.rates[found.averages.index(min(found.averages))]
    end = (
        "where the loss exploded"
        if found.exploded
        else "where the loss had not exploded: try a --highest above"
    )
    flags = f"--learning_rate={rate:.2g}"
    if config["optimizer"] == "muon":
        flags += f" --muon_lr={config['muon_lr'] * rate / config['learning_rate']:.2g}"
    return [
        f"{len(found.rates)} updates, learning_rate {found.rates[0]:.1e} to {found.rates[-1]:.1e}, {end}",
        f"average loss {found.averages[0]:.3f}, lowest {min(found.averages):.3f} at {at:.1e}",
        f"suggestion: {flags} ({DONE:.0%} of the fall; the settings have {config['learning_rate']:.2g})",
    ]


if __name__ == "__main__":
    config = override(globals(), "train.py")
    found, trial = find(config)
    rate = suggested(found)
    print("\n".join(report(found, rate, config)))
    draw(found, rate, trial.folder / "lr-finder.png")
    print(f"saved {trial.folder / 'lr-finder.png'}")
    end_script()
