"""Resume from an earlier checkpoint of a run: --init_from=resume:ckpt_000500.pt. What came later is kept.

Before the run goes on, everything later than that step moves to out_dir/after_000500/, with copies of
metrics.jsonl, samples.txt and config.json as they were. The run then goes on as one that was stopped there.
"""

import math
import os
import re
import shutil
from pathlib import Path

import torch

from config import ROOT
from runtime.curve import read_rows
from runtime.folder import other_checkpoints
from runtime.trust import read_json

PREFIX = "resume:"
RECORDS = ("metrics.jsonl", "samples.txt", "config.json")  # copied: the run goes on with its own
OWN = re.compile(r"(ckpt|best)(_\d+)*(\.pt)?")  # checkpoints that a run writes itself
RESULTS = ("result.json", "loss.png")  # moved


def named(init_from: str, folder: Path) -> Path:
    """The checkpoint in a run's folder that resume:NAME names. ValueError lists what there is."""
    name = init_from.removeprefix(PREFIX)
    for path in (Path(name), ROOT / name):  # out-x/ckpt_000500.pt will do for ckpt_000500.pt
        if path.exists() and path.parent.resolve() == folder.resolve():
            name = path.name
    there = sorted(path.name for path in other_checkpoints(folder / "any"))
    for found in (name, f"{name}.pt"):
        if found in there:
            return folder / found
    listed = f"there are: {', '.join(there)}" if there else "there are none; train first"
    raise ValueError(f"init_from={init_from}: {folder} has no checkpoint {name!r}; {listed}")


def set_aside(init_from: str, folder: Path, step: int) -> str:
    """Before a run goes on from resume:NAME, at `step`: move what is later. Returns a line to print, or "".

    A kill at any moment loses nothing: each file is complete, here or there, and ckpt.pt is always a complete
    checkpoint, the old one or the one that was named. The same command then does the rest.
    """
    if not init_from.startswith(PREFIX):
        return ""
    chosen, last = named(init_from, folder), folder / "ckpt.pt"
    own = [path for path in other_checkpoints(chosen) if OWN.fullmatch(path.name)]
    later = [path for path in own if step_of(path) > step]
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["step"] > step]
    aside = None
    if later or rows:
        aside = new_folder(folder, f"after_{step:06}")
        for name in RECORDS:
            if (folder / name).exists():
                shutil.copy2(folder / name, aside / name)
    if chosen.is_file() and chosen != last:
        if last in later:
            link(last, aside / last.name)
            later.remove(last)
        link(chosen, folder / "ckpt.tmp")
        os.replace(folder / "ckpt.tmp", last)  # what an ordinary resume now goes on from
        (folder / "ckpt.tmp").unlink(missing_ok=True)  # two names of one file: replace() has done nothing
    copy = folder / chosen.name.replace("best", "ckpt")
    if chosen.is_dir() and not copy.exists():  # best_000450: a resumed run looks for ckpt_*
        shutil.rmtree(folder / ".copy", ignore_errors=True)
        shutil.copytree(chosen, folder / ".copy", copy_function=link)
        os.replace(folder / ".copy", copy)
    for path in later:
        os.replace(path, aside / path.name)
    for name in RESULTS:
        if aside and (folder / name).exists():
            os.replace(folder / name, aside / name)
    return f"what was later than step {step} is now in {aside}" if aside else ""


def step_of(path: Path) -> float:
    """The step of a checkpoint, without reading its tensors; infinity if it cannot be read."""
    try:
        if path.is_dir():
            return read_json(path / "run.json")["step"]
        return torch.load(path, mmap=True, map_location="cpu", weights_only=True)["step"]
    except Exception:  # damaged: torch raises many kinds
        return math.inf


def new_folder(parent: Path, name: str) -> Path:
    """Make parent/name, or if that exists, parent/name_2, ..."""
    number = 1
    while True:
        path = parent / (f"{name}_{number}" if number > 1 else name)
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


def link(path: str | Path, copy: str | Path) -> None:
    """Give a file a second name, or copy it where the file system has no such links."""
    Path(copy).unlink(missing_ok=True)
    try:
        os.link(path, copy)
    except OSError:
        shutil.copy2(path, copy)
