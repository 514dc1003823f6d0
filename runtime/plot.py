"""loss.png, the picture of a run: train and val loss, the learning rates, the gradient norm.

A run begins at about ln V nats per token, V being the vocabulary, and most of what follows happens far below.
So the second half of the run decides what the axis shows, and a note says where the curve comes from. Lines
carry their names at their ends and differ in more than colour: the picture can be read in grey.
"""

import logging
import math
import sys
from pathlib import Path

import numpy as np

from config import at_end, in_notebook
from runtime.curve import evaluations, outside
from runtime.guard import atomic_file

POINTS = 1500  # of more updates, means are drawn: a longer line is slower and looks the same
MARKS = 25  # at most so many evaluations of a line are marked
ABOVE, BELOW = 0.15, 0.06  # of the axis: space above and below what it has to show
LINE = 16  # pixels from one name at the end of a line to the next, at DPI
DPI = 110
TITLE = dict(loc="left", fontsize=9, pad=3)
TRAIN, VAL, BAND, GREY = "#1f5f9f", "#c2410c", "#3f7f3f", "0.45"


def open_pyplot():
    """Import matplotlib.pyplot for drawing to files. ValueError if the package is missing."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it reports where its cache is
    in_use = "matplotlib.pyplot" in sys.modules or in_notebook()  # by others than this script
    try:
        import matplotlib
        from matplotlib import pyplot  # here, because it takes half a second
    except ImportError:
        raise ValueError("a plot needs what is not installed: pip install matplotlib") from None
    before = dict.get(matplotlib.rcParams, "backend")  # no text if none is chosen; rcParams[] chooses one
    if in_use and isinstance(before, str) and before.lower() != "agg":
        at_end(pyplot.switch_backend, before)
    pyplot.switch_backend("Agg")  # needs no display
    return pyplot


def save_figure(figure, path: Path, **options) -> None:
    """Write a figure to a PNG file, whole or not at all, and close it. options: of matplotlib's savefig."""
    from matplotlib import pyplot  # here: see open_pyplot()

    with atomic_file(path) as file:
        figure.savefig(file, format="png", **options)
    pyplot.close(figure)


def column(rows: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the rows that have this key and a finite value of it."""
    pairs = [(row["step"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]
    steps, values = np.array(pairs, dtype=float).reshape(-1, 2).T
    return steps, values


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(steps, values, n): means over n rows each, so few that all can be drawn. n is 1 for a short run."""
    n = math.ceil(len(steps) / POINTS)
    if n < 2:
        return steps, values, 1
    starts = np.arange(0, len(steps), n)
    sizes = np.diff(starts, append=len(steps))
    return np.add.reduceat(steps, starts) / sizes, np.add.reduceat(values, starts) / sizes, n


def view_of(rows: list[dict], expected: dict, floor: float) -> tuple[float, float]:
    """The lowest and the highest loss that the picture shows: those of the second half of the run.

    Of the first half, only a lower loss counts: it tells of overfitting. Single updates are noisy, so 1 % of
    them may be outside on either side. The floor is shown if that makes the rest at most a third smaller.
    """
    end = max(row["step"] for row in rows)
    late = [row for row in rows if 2 * row["step"] >= end]
    values = [*column(late, "train_loss")[1], *column(late, "val_loss")[1]]
    values += [loss for step, band in expected.items() if 2 * step >= end for loss in band]
    _, updates = column(late, "loss")
    values += [*np.quantile(updates, (0.01, 0.99))] if len(updates) else []
    low, high = min(values, default=0.0), max(values, default=1.0)
    low = min([low, *column(rows, "train_loss")[1], *column(rows, "val_loss")[1]])
    if 0 < floor < low and low - floor <= (high - low) / 2:
        low = floor
    span = max(high - low, 0.02 * abs(high), 0.01)
    return low - BELOW * span, high + ABOVE * span


def name_lines(axes, names: list[tuple[float, str, str]]) -> None:
    """Write names to the right of the axes, at the heights of their lines, but apart from each other.

    names: (height as a share of the axes, text, colour).
    """
    apart, places, names = LINE / axes.bbox.height, [], sorted(names)
    for place, _, _ in names:  # from the lowest up: each is above the one before
        places.append(max([place, *(below + apart for below in places[-1:])]))
    most = 1.0
    for i in reversed(range(len(places))):  # from the highest down: none is above the axes
        places[i] = min(places[i], most)
        most = places[i] - apart
    for place, (_, text, colour) in zip(places, names, strict=True):
        options = dict(textcoords="offset points", va="center", fontsize=9, annotation_clip=False)
        axes.annotate(text, (1, place), (6, 0), "axes fraction", color=colour, **options)


def draw_loss(axes, rows: list[dict], floor: float, expected: dict, guessing: float) -> None:
    """Train and val loss, the updates, the bands, the floor, and a note on where the curve comes from."""
    low, high = view_of(rows, expected, floor)
    axes.set_ylim(low, high)
    axes.set_ylabel("loss (nats per token)")
    axes.ticklabel_format(axis="y", useOffset=False)
    steps, losses, n = thinned(*column(rows, "loss"))
    axes.plot(steps, losses, color="0.75", lw=0.8, label="updates")
    grey = "single updates" if n == 1 else f"means of {n} updates"
    names = [(losses[-1], grey, GREY)] if len(losses) else []
    if expected:
        axes.vlines(
            expected.keys(), *zip(*expected.values(), strict=True), color=BAND, lw=9, alpha=0.35,
            label="expected val",
        )  # fmt: skip
        names.append((sum(expected[max(expected)]) / 2, "expected val", BAND))
    left = outside(evaluations(rows), expected)
    if left:
        axes.plot(left.keys(), left.values(), "o", color="red", mfc="none", ms=11, label="not as expected")
    for key, label, colour, look in (("train_loss", "train", TRAIN, "o--"), ("val_loss", "val", VAL, "s-")):
        at, values = column(rows, key)
        every = max(1, math.ceil(len(at) / MARKS))
        axes.plot(at, values, look, color=colour, lw=1.8, ms=4, markevery=every, label=label)
        if len(at):
            names.append((values[-1], f"{label} {values[-1]:#.4g}", colour))
    for height, text, look in ((floor, "source entropy", ":"), (guessing, "guessing: ln V =", "-.")):
        if height and low <= height <= high:
            axes.axhline(height, color="black", linestyle=look, lw=1)
            names.append((height, f"{text} {height:#.4g}", "black"))
    name_lines(axes, [((height - low) / (high - low), text, colour) for height, text, colour in names])
    axes.set_title(out_of_view(rows, floor, guessing, low, high), **TITLE)


def out_of_view(rows: list[dict], floor: float, guessing: float, low: float, high: float) -> str:
    """What the axis from low to high leaves out: where the run begins, ln V, a floor far below."""
    notes = []
    starts = [values[0] for key in ("val_loss", "loss") for values in column(rows, key)[1:] if len(values)]
    if starts and starts[0] > high:
        notes.append(f"\u2191 starts at {starts[0]:#.4g}")
    if guessing > high:
        notes.append(f"\u2191 guessing: ln V = {guessing:#.4g}")
    if 0 < floor < low:
        notes.append(f"\u2193 source entropy {floor:#.4g}")
    return "    ".join(notes)


def draw_rates(axes, rows: list[dict]) -> None:
    """The learning rates as shares of their peaks; those of Muon and AdamW often lie on each other."""
    axes.set_ylim(-0.1, 1.1)
    axes.set_title("learning rate, as a share of its peak", **TITLE)
    names = []
    for key, label, look in (("lr", "lr", dict(color="0.7", lw=4)), ("muon_lr", "muon lr", dict(ls="--"))):
        steps, values, _ = thinned(*column(rows, key))
        peak = values.max(initial=0)
        if peak:
            axes.plot(steps, values / peak, **{"color": "black", "lw": 1.5, **look})
            names.append(((values[-1] / peak + 0.1) / 1.2, f"{label}, peak {peak:.2e}", "black"))
    name_lines(axes, names)


def draw_norms(axes, rows: list[dict], grad_clip: float) -> None:
    """The gradient norm before clipping, on a logarithmic axis, and the norm above which it is clipped."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    steps, norms, _ = thinned(*column([row for row in rows if row.get("grad_norm", 0) > 0], "grad_norm"))
    shown = [*norms, *([grad_clip] if grad_clip else [])]
    low, high = min(shown, default=0.1) / 1.3, max(shown, default=1.0) * 1.3
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,), numticks=5))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title("gradient norm", **TITLE)
    axes.plot(steps, norms, color="0.35", lw=0.8)
    if grad_clip:
        axes.axhline(grad_clip, color="black", linestyle=":", lw=1)
        height = math.log(grad_clip / low) / math.log(high / low)
        name_lines(axes, [(height, f"clipped above {grad_clip:g}", "black")])


def plot_loss(
    rows: list[dict], floor: float, expected: dict, path: Path, guessing: float = 0.0, grad_clip: float = 0.0
) -> None:
    """Draw the rows of a metrics.jsonl to a PNG file.

    floor: entropy of the source, guessing: ln V, grad_clip: the largest norm; 0 for what is unknown or off.
    expected: the bands of val loss by step, {step: (lowest, highest)}.
    """
    pyplot = open_pyplot()
    shape = dict(sharex=True, height_ratios=(4, 1, 1), figsize=(8, 6.4), dpi=DPI)
    figure, (loss, rates, norms) = pyplot.subplots(3, **shape)
    figure.subplots_adjust(left=0.1, right=0.79, top=0.955, bottom=0.08, hspace=0.24)
    end = max(1, *(row["step"] for row in rows))
    norms.set_xlim(-0.02 * end, 1.02 * end)
    norms.xaxis.get_major_locator().set_params(integer=True)
    norms.xaxis.set_major_formatter("{x:,.0f}")
    norms.set_xlabel("updates")
    draw_loss(loss, rows, floor, expected, guessing)
    draw_rates(rates, rows)
    draw_norms(norms, rows, grad_clip)
    for axes in (loss, rates, norms):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    save_figure(figure, path)
