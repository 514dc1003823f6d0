"""Is my curve normal? The band in which a config expects its val losses, and loss.png, which shows both.

    expected = {250: (1.9, 2.3), 500: (1.7, 1.9)}    in a config file: val loss after so many updates
    python curve.py out-1 out-2 out-3 out-4 out-5    prints that line, from runs with several seeds

A band reaches from the lowest to the highest val loss of the runs, and beyond both by as much again, at least
by 0.02. It holds for the config as it is: a changed setting or another text has a curve of its own.
"""

import json
import logging
import sys
from pathlib import Path

from config import ROOT, start_script
from guard import whole_file

ABOVE = "it learns less than it should: is the learning rate right, do x and y belong together?"
BELOW = "too good: is val text in the training text, can a position see what follows? If not, well done"


def check_bands(expected: dict) -> None:
    """ValueError unless it is {step: (lowest, highest)}."""
    for step, band in expected.items():
        pair = isinstance(band, (tuple, list)) and len(band) == 2
        if not (pair and all(type(n) in (int, float) for n in (step, *band)) and band[0] <= band[1]):
            raise ValueError(
                f"expected has {step!r}: {band!r}; write the step and the lowest and highest val loss, "
                "250: (1.9, 2.3)"
            )


def read_rows(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; none if there is no such file. A half-written last line is left out."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            raise ValueError(f"{path} line {number} is damaged; delete that line, or the file") from None
    return rows


def evaluations(rows: list[dict]) -> dict[int, float]:
    """{step: val loss}, of the rows of a metrics.jsonl."""
    return {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}


def bands(runs: list[dict[int, float]]) -> dict[int, tuple[float, float]]:
    """What to expect after several runs that differ in their seed: {step: (lowest, highest)}, widened."""
    expected = {}
    for step in sorted(set.intersection(*map(set, runs))):
        losses = [run[step] for run in runs]
        margin = max(0.02, max(losses) - min(losses))
        expected[step] = (round(min(losses) - margin, 3), round(max(losses) + margin, 3))
    return expected


def outside(found: dict[int, float], expected: dict) -> dict[int, float]:
    """Those of the evaluations that are not in their band."""
    return {s: loss for s, loss in found.items() if s in expected and not within(loss, expected[s])}


def within(loss: float, band: tuple[float, float]) -> bool:
    return band[0] <= loss <= band[1]


def judge(found: dict[int, float], expected: dict, changed: list[str]) -> str:
    """Whether a run stayed inside, and where it left: one line or two; "" if nothing is known of its steps.

    changed: what the command line has set, as "name=value".
    """
    known = found.keys() & expected.keys()
    if not known:
        return ""
    left = outside(found, expected)
    if not left:
        return f"is the curve normal? yes: val loss was in the expected band in all {len(known)} evaluations"
    step, loss = min(left.items())
    (low, high), cause = expected[step], ABOVE if loss > expected[step][1] else BELOW
    line = f"is the curve normal? NO: val loss {loss:.4f} at step {step}, expected {low} to {high}"
    if len(left) > 1:
        line += f"; outside at {len(left)} of {len(known)} steps: {', '.join(map(str, left))}"
    without = f" (the bands were measured without {' '.join(changed)})" if changed else ""
    return f"{line}\n  {cause}{without}"


def open_pyplot():
    """matplotlib.pyplot, for files alone; ValueError if the package is missing."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # not a word on where it keeps its cache
    try:
        from matplotlib import pyplot  # here, because it takes half a second that not all should wait for
    except ImportError:
        raise ValueError("a plot needs what is not installed: pip install matplotlib") from None
    pyplot.switch_backend("Agg")  # needs no display
    return pyplot


def plot_loss(rows: list[dict], floor: float, expected: dict, path: Path) -> None:
    """Draw the rows of a metrics.jsonl to a PNG file; floor: a line across, 0 for none; expected: bands."""
    pyplot = open_pyplot()
    updates = [row for row in rows if "loss" in row]
    evaluated = [row for row in rows if "val_loss" in row]
    figure, (upper, lower) = pyplot.subplots(2, sharex=True, height_ratios=(3, 1), figsize=(8, 6))
    steps = [r["step"] for r in updates]
    upper.plot(steps, [r["loss"] for r in updates], color="0.75", lw=1, label="each update")
    for key, label in (("train_loss", "train"), ("val_loss", "val")):
        upper.plot([r["step"] for r in evaluated], [r[key] for r in evaluated], marker=".", label=label)
    if expected:
        low, high = zip(*expected.values(), strict=True)
        upper.vlines(expected.keys(), low, high, color="tab:green", lw=8, alpha=0.4, label="expected val")
    if left := outside(evaluations(rows), expected):
        upper.plot(left.keys(), left.values(), "o", color="red", mfc="none", ms=10, label="not as expected")
    if floor:
        upper.axhline(floor, color="black", linestyle=":", label="entropy of the source")
    upper.set_ylabel("loss (nats per token)")
    upper.legend()
    lower.plot(steps, [r["lr"] for r in updates], color="tab:green")
    lower.set_ylabel("learning rate")
    lower.set_xlabel("updates")
    figure.tight_layout()
    with whole_file(path) as file:
        figure.savefig(file, dpi=100, format="png")
    pyplot.close(figure)


def main() -> None:
    """The line for a config file, from the folders of its runs."""
    start_script()
    if len(sys.argv) < 3:
        raise ValueError("expected the folders of two runs or more: python curve.py out-1 out-2")
    runs = [evaluations(read_rows(ROOT / folder / "metrics.jsonl")) for folder in sys.argv[1:]]
    for folder, run in zip(sys.argv[1:], runs, strict=True):
        if not run:
            raise ValueError(f"{folder} holds no run that was evaluated; train it first")
    print("expected =", bands(runs))


if __name__ == "__main__":
    main()
