"""A race of one candidate against a base, seed by seed until it is decided: techniques/sweep.py --against.

The statistics are in significance.py. In out_dir are base.config, the base's settings as a config file, the
runs' folders, race.json with the losses of each seed, and race.png, how the interval closed.
"""

import json
from pathlib import Path

import numpy as np

from config import require, training_settings
from runtime import plot
from runtime.folder import run_folder
from runtime.guard import write_atomic
from techniques import runs
from techniques.significance import anytime, until_decided

NOT_TAKEN = {"out_dir", "seed", "threads", "wandb_run_name"}  # from the base: they say nothing about it


def base_settings(folder: Path) -> dict:
    """A run's settings from its config.json, those that differ from train.py's defaults."""
    path = folder / "config.json"
    require(path.is_file(), f"against={folder} holds no run; train the base first, or name another folder")
    saved = runs.read_json(path)
    defaults = training_settings()
    taken = {
        name: value
        for name, value in saved.items()
        if name in defaults.keys() - NOT_TAKEN and value != defaults[name] and not isinstance(value, dict)
    }
    if taken.get("init_from", "auto").startswith(("auto", "resume")):
        taken.pop("init_from", None)
    windows = saved.get("batch_size", 0) * saved.get("gradient_accumulation_steps", 0)
    if taken.get("global_batch_size") == windows:  # else a candidate's batch_size would not be used
        del taken["global_batch_size"]
    return taken


def run(against: str, candidate: list[str], config: dict) -> bool:
    """Race, and print who has won; returns whether all runs have succeeded.

    against: the base's folder. candidate: arguments of train.py; without a config file, they change the base.
    config: the sweep's settings seeds (at most), seed (the first), jobs, out_dir and alpha.
    """
    folder, alpha = run_folder(config["out_dir"]), config["alpha"]
    require(0 < alpha < 1, f"alpha={alpha} makes no sense; expected above 0, below 1; 0.005 is usual")
    enough = np.isfinite(anytime(range(config["seeds"]), alpha)).all()
    require(enough, f"seeds={config['seeds']} can decide nothing; expected more: 5 with alpha=0.005, or 16")
    settings = base_settings(run_folder(against))
    file = folder / "base.config"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{name} = {value!r}\n" for name, value in settings.items()]
    write_atomic(file, f"# The settings of {against}, for a race.\n" + "".join(lines))
    if all(word.startswith("-") for word in candidate):
        candidate = [str(file), *candidate]
    sides = {"base": [str(file)], "candidate": candidate}
    asked = [runs.settings_of(command) for command in sides.values()]
    differ = [name for name in asked[0].keys() | asked[1].keys() if asked[0].get(name) != asked[1].get(name)]
    require(set(differ) - NOT_TAKEN != set(), f"the candidate's settings are those of {against}; change one")
    rows, failed = [], []

    def differences_of(n: int) -> list[float]:
        together = min(max(1, config["jobs"] // 2), config["seeds"] - n)
        numbers = range(config["seed"] + n, config["seed"] + n + together)
        commands = [
            [*command, f"--seed={number}", f"--out_dir={config['out_dir']}/{side},seed={number}"]
            for number in numbers
            for side, command in sides.items()
        ]
        results = runs.run_all(commands, config["jobs"])
        failed.extend(result["folder"].name for result in results if "error" in result)
        if failed:
            return []
        losses = [result["final_val_loss"] for result in results]
        for number, base, mine in zip(numbers, losses[::2], losses[1::2], strict=True):
            rows.append({"seed": number, "base": base, "candidate": mine, "difference": mine - base})
        found = [row["difference"] for row in rows]
        low, high = anytime(found, alpha)
        print(f"seed {numbers[-1]}: difference {np.mean(found):+.4f} ({low:+.4f} to {high:+.4f})", flush=True)
        return found[n:]

    differences = until_decided(differences_of, config["seeds"], alpha)
    if rows:
        ends = anytime(differences, alpha)
        ends = ends if np.isfinite(ends).all() else None  # too few seeds; JSON has no infinity
        record = dict(base=against, candidate=candidate, alpha=alpha, seeds=rows, interval=ends)
        write_atomic(folder / "race.json", json.dumps(record, indent=2) + "\n")
        draw(differences, alpha, folder / "race.png")
        print(verdict(differences, alpha))
        print(f"saved {folder / 'race.json'} and race.png")
    if failed:
        print(f"the race ends here: {', '.join(failed)} failed")
    return not failed


def verdict(differences: list[float], alpha: float) -> str:
    """The line that says how a race has ended. differences: the candidate's val loss less the base's."""
    mean, (low, high) = np.mean(differences), anytime(differences, alpha)
    after = f"after {len(differences)} seeds ({1 - alpha:.1%} interval {low:+.4f} to {high:+.4f})"
    if high < 0:
        return f"the candidate is better, by {-mean:.4f} nats, {after}"
    if low > 0:
        return f"the candidate is worse, by {mean:.4f} nats, {after}"
    if not any(differences):
        return (
            f"no difference, not by a bit, after {len(differences)} seeds: this setting changes no loss here"
        )
    return f"undecided: the difference is {mean:+.4f} nats {after}"


def draw(differences: list[float], alpha: float, path: Path) -> None:
    """Draw the difference of each seed, and the interval of the mean as it closed, into a PNG file."""
    pyplot = plot.open_pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 4), dpi=plot.DPI, layout="constrained")
    counts = np.arange(1, len(differences) + 1)
    bounds = np.array([anytime(differences[:n], alpha) for n in counts])
    closed = np.isfinite(bounds[:, 0])
    axes.fill_between(counts[closed], *bounds[closed].T, color=plot.TRAIN, alpha=0.2)
    axes.plot(counts, np.cumsum(differences) / counts, color=plot.TRAIN, lw=1.8)
    axes.plot(counts, differences, "o", color=plot.VAL, mfc="none")
    axes.axhline(0, color="black", lw=1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("seeds")
    axes.set_ylabel("val loss, candidate less base")
    axes.set_title(f"each seed, their mean, and its {1 - alpha:.1%} interval at every look", **plot.TITLE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92")
    plot.save_figure(figure, path)
