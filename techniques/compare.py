"""Compare runs: the settings that differ, their losses at equal steps, tokens and seconds, and one plot.

    python -m techniques.compare --runs=out-a,out-b,out-c

Reads config.json, metrics.jsonl and result.json of each. Losses are val losses, in nats per token. The last
row of each table is the last point that all runs have reached. A run that was not evaluated there has a value
between its evaluations before and after, on a straight line, marked ~; as losses fall steeply at first, it
is a little too high. Seconds are those of training, and mean something for runs of one machine only.

Runs on different val splits, or with different tokenizers, cannot be compared by these losses: a line says
so. On the same text with different tokenizers, they can by bits per byte.
"""

import contextlib
import math
from pathlib import Path

import numpy as np

from config import ROOT, end_script, override, require
from runtime import checkpoint, plot
from runtime.curve import read_rows
from runtime.folder import newest, run_folder
from techniques.runs import read_json

# -----------------------------------------------------------------------------
runs = ""  # folders of two runs or more, joined by commas: out-a,out-b
picture = "out-compare/compare.png"  # file for the plot, a PNG
# -----------------------------------------------------------------------------
AXES = {"step": "updates", "tokens": "tokens", "seconds": "seconds of training"}
POINTS = 4  # rows of each table
UNLIKE = {"out_dir", "expected", "wandb_run_name"}  # settings that always differ, or are not the run's
COLOURS = ["#1f5f9f", "#c2410c", "#3f7f3f", "#7a3f9f", "#8a6d1f", "#444444"]
LOOKS = ["o-", "s--", "^-.", "D:"]  # lines differ in more than colour: the picture can be read in grey


def read_run(name: str) -> dict:
    """A run: name, config, evaluations (rows of metrics.jsonl), result ({} if unfinished), data (meta.json).

    data is what its checkpoint says about its dataset, {} without one. ValueError for a folder without a run.
    """
    folder = run_folder(str(Path(name).expanduser()))
    evaluations = [row for row in read_rows(folder / "metrics.jsonl") if "val_loss" in row]
    require(evaluations != [], f"{name} holds no run that was evaluated; train it first, or check its name")
    found = dict(name=folder.name, evaluations=evaluations, result={}, data={})
    for part in ("config", "result"):
        path = folder / f"{part}.json"
        if path.is_file():
            found[part] = read_json(path)
    require("config" in found, f"{name} has no config.json; expected the folder of a run")
    for file in ("ckpt.pt", "best.pt"):
        if newest(folder / file).exists():
            with contextlib.suppress(ValueError):  # damaged: as if there were none
                found["data"] = checkpoint.load(folder / file)["dataset"]
                break
    return found


def read_all(names: str) -> list[dict]:
    """The runs of "out-a,out-b". ValueError if they are fewer than two, or one of them is there twice."""
    listed = [name.strip() for name in names.split(",") if name.strip()]
    require(
        len(listed) > 1, f"runs={names} is not enough; expected two runs or more, such as --runs=out-a,out-b"
    )
    folders = [run_folder(str(Path(name).expanduser())).resolve() for name in listed]
    for name, folder in zip(listed, folders, strict=True):
        require(folders.count(folder) == 1, f"{name} is there twice; expected different runs")
    found = [read_run(name) for name in listed]
    if len({run["name"] for run in found}) < len(found):  # folders of one name at different places
        for run, name in zip(found, listed, strict=True):
            run["name"] = name
    return found


def settings_that_differ(found: list[dict]) -> list[list[str]]:
    """Rows [setting, its value in each run], in the order of the first run's config.json; "-": not there."""
    names = dict.fromkeys(name for run in found for name in run["config"] if name not in UNLIKE)
    rows = [[name, *(str(run["config"].get(name, "-")) for run in found)] for name in names]
    return [row for row in rows if len({*row[1:]}) > 1]


def points(found: list[dict], axis: str) -> list[float]:
    """Where losses are compared: at four places up to the end of the shortest run, evenly spread.

    Those before the end are evaluations of the run that has fewest.
    """
    end = min(run["evaluations"][-1][axis] for run in found)
    fewest = min(found, key=lambda run: sum(0 < row[axis] <= end for row in run["evaluations"]))
    places = [row[axis] for row in fewest["evaluations"] if 0 < row[axis] < end] + [end]
    wanted = [end * (i + 1) / POINTS for i in range(POINTS)]
    return sorted({min(places, key=lambda place: abs(place - each)) for each in wanted})


def loss_at(run: dict, axis: str, place: float) -> tuple[float, bool]:
    """(val loss of a run at a number of steps, tokens or seconds; whether it was evaluated just there)."""
    at = [row[axis] for row in run["evaluations"]]
    losses = [row["val_loss"] for row in run["evaluations"]]
    if place in at:
        return losses[len(at) - 1 - at[::-1].index(place)], True  # the last one, if it was evaluated twice
    return float(np.interp(place, at, losses)), False


def best_of(run: dict) -> tuple[float, int]:
    """(the lowest val loss, its step)."""
    best = min(run["evaluations"], key=lambda row: row["val_loss"])
    return best["val_loss"], best["step"]


def val_split(run: dict) -> dict:
    """What a run's checkpoint says about its val split: tokens, bytes, sha256 of the tokens, ..."""
    return run["data"].get("splits", {}).get("val", {})


def bits_per_byte(run: dict, loss: float) -> float:
    """Nats per token as bits per byte of the val text; nan if its bytes are not known, or masked in part."""
    val = val_split(run)
    if not val.get("bytes") or val.get("learned") != val["tokens"]:
        return math.nan
    return loss / math.log(2) * val["tokens"] / val["bytes"]


def warnings(found: list[dict]) -> list[str]:
    """Lines on why these losses cannot be compared; none if they can."""
    unknown = [run["name"] for run in found if not val_split(run)]
    if unknown:
        return [
            f"WARNING: {', '.join(unknown)}: no checkpoint says whether its val split is the others', too"
        ]
    if len({val_split(run)["sha256"] for run in found}) == 1:
        return []
    texts = {(run["data"]["sha256"], run["data"]["val_input"], val_split(run)["bytes"]) for run in found}
    tokenizers = {run["data"]["tokenizer_hash"] for run in found}
    if len(texts) == 1 < len(tokenizers):
        return ["WARNING: different tokenizers: losses per token cannot be compared; bits per byte can"]
    return ["WARNING: different val splits: these losses cannot be compared"]


def tables(found: list[dict]) -> list[str]:
    """All lines to print."""
    lines = warnings(found)
    rows = [["", *(run["name"] for run in found)], *settings_that_differ(found)]
    for label, key, form in (("parameters", "parameters", ","), ("training time, s", "training_time", ".1f")):
        cells = [run["result"].get(key, "not finished") for run in found]
        rows.append([label, *(cell if isinstance(cell, str) else f"{cell:{form}}" for cell in cells)])
    for axis, label in AXES.items():
        rows.append([f"val loss at equal {label}", *[""] * len(found)])
        for place in points(found, axis):
            losses = [loss_at(run, axis, place) for run in found]
            shown = f"{place:,.1f}" if axis == "seconds" else f"{place:,}"
            rows.append([f"  {shown}", *(f"{'' if exact else '~'}{loss:.4f}" for loss, exact in losses)])
    best = [best_of(run) for run in found]
    rows.append(["best val loss", *(f"{loss:.4f}" for loss, _ in best)])
    rows.append(["  at step", *(f"{step:,}" for _, step in best)])
    rows.append(["  perplexity", *(f"{math.exp(min(loss, 700)):.2f}" for loss, _ in best)])
    bits = [bits_per_byte(run, loss) for run, (loss, _) in zip(found, best, strict=True)]
    if not all(map(math.isnan, bits)):
        rows.append(["  bits per byte", *("-" if math.isnan(each) else f"{each:.4f}" for each in bits)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines


def draw(found: list[dict], path: Path) -> None:
    """Draw val loss against steps, tokens and seconds, a panel each, into a PNG file."""
    pyplot = plot.open_pyplot()
    figure, panels = pyplot.subplots(1, 3, figsize=(8.6, 3.1), dpi=plot.DPI, sharey=True)
    figure.subplots_adjust(left=0.075, right=0.78, top=0.97, bottom=0.15, wspace=0.08)
    val_only = [[{**row, "train_loss": math.nan} for row in run["evaluations"]] for run in found]
    views = [plot.view_of(rows, {}, 0.0) for rows in val_only]
    low, high = min(low for low, _ in views), max(high for _, high in views)
    panels[0].set_ylim(low, high)
    panels[0].set_ylabel("val loss (nats per token)")
    names = []
    for i, run in enumerate(found):
        colour, look = COLOURS[i % len(COLOURS)], LOOKS[i % len(LOOKS)]
        losses = [row["val_loss"] for row in run["evaluations"]]
        for panel, axis in zip(panels, AXES, strict=True):
            at = [row[axis] for row in run["evaluations"]]
            every = max(1, math.ceil(len(at) / plot.MARKS))
            panel.plot(at, losses, look, color=colour, lw=1.6, ms=4, markevery=every)
        names.append(((losses[-1] - low) / (high - low), f"{run['name']} {losses[-1]:#.4g}", colour))
    for panel, label in zip(panels, AXES.values(), strict=True):
        panel.set_xlabel(label)
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.locator_params(axis="x", nbins=4)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
    plot.name_lines(panels[-1], names)
    plot.save_figure(figure, path)


if __name__ == "__main__":
    config = override(globals())
    path = ROOT / config["picture"]
    require(path.suffix == ".png", f"picture={path} is no name for a plot; expected one such as compare.png")
    compared = read_all(config["runs"])
    print(*tables(compared), sep="\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(compared, path)
    print(f"saved {path}")
    end_script()
