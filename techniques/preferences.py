"""Draw what DPO and GRPO have done: margin or reward of each update, and exact match on held-out rows.

    python -m techniques.preferences --dpo=out-dpo --grpo=out-grpo

Margin and reward come from dpo.jsonl and grpo.jsonl. Exact match is measured at the run's start and at its
numbered checkpoints (--save_interval), on the first `prompts` prompts of val, with the likeliest replies. It
is kept in the run's exact_match.jsonl, so that a checkpoint is measured once.
"""

import json
from pathlib import Path

from config import end_script, override, require  # isort: skip
import numpy as np
import torch

from data import Windows
from evaluate import exact_match
from machine.threads import use_saved
from runtime import checkpoint
from runtime.curve import read_rows
from runtime.folder import find, run_folder
from runtime.plot import GREY, TRAIN, VAL, open_pyplot, save_figure

# -----------------------------------------------------------------------------
dpo = ""  # a run with technique=dpo; '' = none
grpo = ""  # a run with technique=grpo; '' = none
prompts = 300  # how many held-out prompts are answered by each checkpoint
to = "preferences.png"  # the picture
# -----------------------------------------------------------------------------

SMOOTH = 10  # updates in a mean


def measured(folder: Path, count: int) -> list[tuple[int, float]]:
    """[(step, share of held-out prompts that are answered exactly)] of a run's start and checkpoints."""
    path = folder / "exact_match.jsonl"
    known = {row["step"]: row["exact"] for row in read_rows(path) if row["prompts"] == count}
    files = {int(file.stem.removeprefix("ckpt_")): file for file in folder.glob("ckpt_*.pt")}
    require(files, f"{folder} has no numbered checkpoints; train it with --save_interval=20")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if Path(config["init_from"]).name not in ("resume", "auto", "scratch"):
        files[0] = find(config["init_from"], folder)
    for step, file in sorted(files.items()):
        if step not in known:
            known[step] = share_exact(file, config["dataset"], count)
            with open(path, "a", encoding="utf-8") as rows:
                rows.write(json.dumps(dict(step=step, prompts=count, exact=known[step])) + "\n")
            print(f"{file}: exact match {known[step]:.1%}", flush=True)
    return sorted(known.items())


def share_exact(file: Path, dataset: str, count: int) -> float:
    """The share of the first `count` prompts of val that a checkpoint answers exactly."""
    model, tokenizer, saved = checkpoint.load_model(file, torch.device("cpu"))
    use_saved(saved["config"])  # the number of threads
    held_out = Windows(dataset, "val", model.config.block_size).replies()[:count]
    found, _ = exact_match(model, tokenizer, held_out, torch.device("cpu"))
    return found["exact"] / found["replies"]


def draw(axes, folder: Path, kind: str, key: str, name: str, count: int) -> None:
    """One run: a quantity of each update, its mean over SMOOTH updates, exact match on held-out prompts."""
    rows = read_rows(folder / f"{kind}.jsonl")
    require(rows, f"{folder} has no {kind}.jsonl; expected a run with --technique={kind}")
    steps, values = (np.array([row[k] for row in rows]) for k in ("step", key))
    axes.plot(steps, values, color=TRAIN, alpha=0.3, linewidth=0.8)
    width = min(SMOOTH, len(values))
    mean = np.convolve(values, np.ones(width) / width, mode="valid")
    axes.plot(steps[width - 1 :], mean, color=TRAIN, label=f"{name}, mean of {width} updates")
    right = axes.twinx() if key == "margin" else axes
    found = measured(folder, count)
    right.plot(
        *zip(*found, strict=True), color=VAL, marker="o", label=f"exact match, {count} held-out prompts"
    )
    right.set_ylim(0, 1.02)
    axes.set_xlabel("updates")
    axes.set_title(kind.upper(), loc="left", fontsize=10)
    handles, labels = axes.get_legend_handles_labels()
    more = right.get_legend_handles_labels() if right is not axes else ([], [])
    axes.legend(handles + more[0], labels + more[1], loc="lower right", fontsize=8, frameon=False)
    axes.spines["top"].set_visible(False)
    axes.grid(color=GREY, alpha=0.2)


def picture(config: dict) -> str:
    """Draw the runs side by side. Returns a line about the file."""
    panels = [("dpo", "margin", "margin (nats x beta)"), ("grpo", "reward", "reward of the drawn replies")]
    panels = [panel for panel in panels if config[panel[0]]]
    require(panels, "there is nothing to draw; name a run: --dpo=out-dpo or --grpo=out-grpo")
    pyplot = open_pyplot()
    figure, all_axes = pyplot.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.4), squeeze=False)
    for axes, (kind, key, name) in zip(all_axes[0], panels, strict=True):
        draw(axes, run_folder(config[kind]), kind, key, name, config["prompts"])
    figure.tight_layout()
    save_figure(figure, Path(config["to"]), dpi=100)
    return f"saved {config['to']}"


if __name__ == "__main__":
    print(picture(override(globals())))
    end_script()
