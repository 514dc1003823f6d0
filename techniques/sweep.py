"""Train with every combination of some settings, over several seeds, and say which differences are real.

    python -m techniques.sweep config/tiny.py "learning_rate=1e-3,3e-3 n_layer=2,4" --seeds=3 --jobs=2
    python -m techniques.sweep config/tiny.py --seeds=5           one combination: how much do seeds differ?
    python -m techniques.sweep "beta2=0.99" --against=out-tiny    a race: is this better than that run?

Config files and --name=value, but for the settings below, are train.py's and hold for all runs. Each run is a
process with a folder of its own in out_dir. The same command, made again, goes on where it stopped. At the
end: a table, sweep.json with the result of every seed, and sweep.png.

A combination is "within noise" of the best if Student's t interval of their difference, paired by seed,
holds 0. With k combinations there are k - 1 such questions; each is asked at 5 % / (k - 1) (Bonferroni).

With --against, the settings of that run are the base, and a candidate (without a config file: the base with
what is given here) is trained with the same seeds, one after the other, until the interval for the mean
difference of final val loss leaves out 0, or --seeds is reached. One may look so often: see significance.py.
Nothing is taken from the base but its settings: so code, threads and machine are the same for both.
"""

import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np

from config import defaults_of, end_script, leave, override, parse_flag, require, training_settings
from runtime import plot
from runtime.folder import run_folder
from runtime.guard import write_atomic
from techniques import race, runs, significance

# -----------------------------------------------------------------------------
seeds = 0  # how many of each combination; 0: 3, and 16 at most with --against
seed = 1337  # the first of them; the others follow
jobs = 1  # how many runs at a time; they share the cores
out_dir = "out-sweep"  # folder for the runs, the table and the plot
against = ""  # a run whose settings are the base: race against it; '' = sweep
alpha = 0.005  # with --against: probability of calling equals different
# -----------------------------------------------------------------------------
GRID = re.compile(r"\w+=.*", re.DOTALL)  # a word that is no config file: learning_rate=1e-3,3e-3
NOT_SWEPT = {"out_dir": "each run gets its own", "seed": "it is --seeds"}
LEVEL = 0.95  # of the intervals in a table, all together


def combinations(words: list[str]) -> list[dict]:
    """["learning_rate=1e-3,3e-3", "n_layer=2,4"] -> four dicts, {"learning_rate": 0.001, "n_layer": 2}, ...

    [] -> [{}]. ValueError for a name or value that train.py does not know, and for one that is there twice.
    """
    known = training_settings()
    values: dict[str, list] = {}
    for word in words:
        name, _, texts = word.partition("=")
        require(name not in NOT_SWEPT, f"{name} cannot be swept: {NOT_SWEPT.get(name)}")
        require(name not in values, f"{name} is given twice; write {name}=VALUE,VALUE once")
        values[name] = [parse_flag(f"--{name}={text}", known)[1] for text in texts.split(",")]
        twice = len({*values[name]}) < len(values[name])
        require(not twice, f"{word} has a value twice; expected each once")
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def name_of(settings: dict, seed: int) -> str:
    """The name of a run's folder: learning_rate=0.001,n_layer=2,seed=1337."""
    parts = [f"{name}={value}" for name, value in {**settings, "seed": seed}.items()]
    return re.sub(r"[^\w.=,+-]", "-", ",".join(parts))


def flags_of(settings: dict) -> list[str]:
    """{"n_layer": 2} -> ["--n_layer=2"]."""
    return [f"--{name}={value}" for name, value in settings.items()]


def sweep(common: list[str], grid: list[dict], config: dict) -> list[dict]:
    """Run all; returns a dict for each run: settings, seed, folder, and its result, or error.

    common: the arguments that are the same for all. config: this command's settings.
    """
    first, count = config["seed"], config["seeds"]
    todo = [(number, chosen) for number in range(first, first + count) for chosen in grid]
    commands = [
        [*common, *flags_of(chosen), f"--seed={number}",
         f"--out_dir={config['out_dir']}/{name_of(chosen, number)}"]
        for number, chosen in todo
    ]  # fmt: skip
    found = runs.run_all(commands, config["jobs"])
    return [
        {"settings": chosen, "seed": number, **result, "folder": result["folder"].name}
        for (number, chosen), result in zip(todo, found, strict=True)
    ]


def summary(rows: list[dict], grid: list[dict]) -> list[dict]:
    """What each combination reached, the best first. rows: of sweep().

    Each has settings, losses {seed: final val loss}, mean, spread (standard deviation, nan for one seed),
    seconds (mean), and for all but the best behind: the interval of its mean difference from the best.
    """
    found = []
    for chosen in grid:
        done = [row for row in rows if row["settings"] == chosen and "error" not in row]
        losses = {row["seed"]: row["final_val_loss"] for row in done}
        values = list(losses.values())
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        mean = float(np.mean(values)) if values else float("inf")
        seconds = float(np.mean([row["training_time"] for row in done])) if done else float("nan")
        found.append(dict(settings=chosen, losses=losses, mean=mean, spread=spread, seconds=seconds))
    found.sort(key=lambda one: one["mean"])
    level = 1 - (1 - LEVEL) / max(1, len(found) - 1)
    best = found[0]["losses"]
    for one in found[1:]:
        pairs = [loss - best[number] for number, loss in one["losses"].items() if number in best]
        one["behind"] = significance.interval(pairs, level)
    return found


def within_noise(one: dict) -> bool:
    """Whether a combination's difference from the best may be luck. False for the best itself."""
    low, high = one.get("behind", (1.0, 1.0))
    return low <= 0 <= high


def table(found: list[dict]) -> list[str]:
    """The lines of the table: settings, mean, spread, seeds, seconds, and how far behind the best."""
    names = list(found[0]["settings"])
    rows = [[*names, "val loss", "spread", "seeds", "seconds", "behind the best"]]
    for one in found:
        row = [str(value) for value in one["settings"].values()]
        if not one["losses"]:
            rows.append([*row, "failed", "", "0", "", ""])
            continue
        spread = f"{one['spread']:.4f}" if len(one["losses"]) > 1 else "-"
        row += [f"{one['mean']:.4f}", spread, str(len(one["losses"])), f"{one['seconds']:.1f}"]
        low, high = one.get("behind", (0.0, 0.0))
        note = "  within noise" if within_noise(one) else ""
        shown = f"{low:+.4f} to {high:+.4f}{note}" if "behind" in one else ""
        rows.append([*row, "one seed: no telling" if low == -np.inf else shown])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def draw(found: list[dict], path: Path) -> None:
    """Draw the val loss of each seed, a line for each combination, into a PNG file; the best on top."""
    pyplot = plot.open_pyplot()
    found = [one for one in found if one["losses"]]
    figure, axes = pyplot.subplots(figsize=(8, 1.5 + 0.3 * len(found)), dpi=plot.DPI, layout="constrained")
    for place, one in enumerate(found):
        colour = plot.GREY if place and not within_noise(one) else plot.VAL
        losses = list(one["losses"].values())
        axes.plot(losses, [place] * len(losses), "o", color=colour, mfc="none", ms=6)
        axes.plot([one["mean"]], [place], "|", color=colour, ms=16, mew=2)
    labels = [" ".join(f"{n}={v}" for n, v in one["settings"].items()) or "as given" for one in found]
    axes.set_yticks(range(len(found)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("final val loss (nats per token): each seed, and the mean")
    axes.set_title("the best and what is within noise of it; in grey what is worse", **plot.TITLE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    plot.save_figure(figure, path)


def main(config: dict, words: list[str]) -> bool:
    """Sweep or race; returns whether all runs have succeeded. words: the others of the command line."""
    grid_words = [part for word in words if GRID.match(word) for part in word.split()]
    common = [word for word in words if not GRID.match(word)]
    grid = combinations(grid_words)
    flags = {word.removeprefix("--").partition("=")[0] for word in common if word.startswith("-")}
    for name in sorted(flags & grid[0].keys()):
        require(False, f"{name} is in the grid and given as --{name}; expected one of the two")
    limit = config["seeds"] or (16 if config["against"] else 3)
    require(limit >= 1, f"seeds={limit} makes no sense; expected 1 or more")
    if config["against"]:
        require(
            len(grid) == 1, f"a race has one candidate, not {len(grid)}; write one value for each setting"
        )
        return race.run(config["against"], [*common, *flags_of(grid[0])], {**config, "seeds": limit})
    folder = run_folder(config["out_dir"])
    rows = sweep(common, grid, {**config, "seeds": limit})
    found = summary(rows, grid)
    write_atomic(folder / "sweep.json", json.dumps({"common": common, "runs": rows}, indent=2) + "\n")
    draw(found, folder / "sweep.png")
    print(*table(found), sep="\n")
    print(f"saved {folder / 'sweep.json'} and sweep.png")
    return not any("error" in row for row in rows)


if __name__ == "__main__":
    own = defaults_of(__file__)
    words = sys.argv[1:]
    mine = [word for word in words if word in ("-h", "--help") or word[2:].partition("=")[0] in own]
    sys.argv[1:] = mine
    config = override(globals())
    if not main(config, [word for word in words if word not in mine]):
        leave(2)
    end_script()
