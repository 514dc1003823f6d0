"""A run's checkpoints: out_dir/ckpt.pt (latest), best.pt (lowest val loss), ckpt_000500.pt (save_interval).

A checkpoint is one dict of tensors, numbers, strings, lists and dicts, loaded with weights_only=True: no code
in it can run. It includes the tokenizer, and nothing else is needed. A resumed run skips damaged files.

With checkpoint_format="sharded" (for large models) folders take the place of the first two files, written by
sharded.py: ckpt_000500/, best_000500/. Whatever reads a file reads a folder, too. To turn folders into files:
    python -m runtime.checkpoint consolidate out-mine
"""

import contextlib
import dataclasses
import json
import os
import re
import sys
from pathlib import Path

import torch

import optim
from config import names_here, start_script
from machine.distributed import full_state
from model import GPT
from runtime.folder import newest, other_checkpoints, run_folder
from runtime.guard import atomic_file, write_atomic
from runtime.trust import (
    check_plain,
    check_run,
    check_zip,
    explain_disk_errors,
    made_by_nanogpt,
    on_meta,
    read_json,
)
from techniques import hooks
from tokenizer import from_json

# Every checkpoint has these keys. train.py adds what only resuming needs, such as the optimizer state.
KEYS = set("model model_config tokenizer dataset config step tokens seconds".split())
OF_NANOGPT = (
    "is a checkpoint of nanoGPT; to make a run of it: "
    "python -m techniques.pretrained import --from=ckpt.pt --vocab=input.txt --out_dir=out-mine"
)


def save(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint atomically: at every moment `path` is the complete old file or the complete new one.

    TypeError if it holds anything but tensors, numbers, strings, lists and dicts (a numpy scalar, say).
    ValueError if it cannot be written. A folder that was deleted is made again, so the run is not lost.
    """
    check_plain(checkpoint, "checkpoint")
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            torch.save(checkpoint, file)


def save_run(folder: Path, checkpoint: dict) -> None:
    """Write a run that a command has made: all that sample.py, evaluate.py and train.py --init_from need."""
    save(folder / "best.pt", checkpoint)
    write_atomic(folder / "config.json", json.dumps(checkpoint["config"], indent=2) + "\n")
    write_atomic(folder / "tokenizer.json", checkpoint["tokenizer"])


class Saver:
    """Writes a run's checkpoints in either format. All ranks create one, and call its methods, together."""

    def __init__(self, folder: Path, checkpoint_format: str, keep: int, rank: int):
        """keep: how many numbered files to keep; with sharded, how many ckpt_* folders."""
        if checkpoint_format not in ("file", "sharded"):
            raise ValueError(f"checkpoint_format={checkpoint_format} is unknown; expected file or sharded")
        self.folder, self.keep, self.rank, self.shards = folder, keep, rank, None
        if checkpoint_format == "sharded":
            from runtime.sharded import Shards

            self.shards = Shards(folder, keep, rank == 0)

    def save(self, name: str, plain: dict, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
        """Write the checkpoint `name` (ckpt.pt, say), or start to (sharded). Returns a line to print, or "".

        plain: everything but model.state_dict() and optimizer.state_dict().
        """
        model.train()  # the weights that learn are saved, even after an error in an evaluation
        kind, _, number = Path(name).stem.partition("_")  # ckpt_000500.pt -> ckpt, 000500
        if self.shards:
            return self.shards.save(kind, plain, model, optimizer)
        weights, optimizer_state = full_state(model, optimizer)
        if self.rank == 0:
            checkpoint = {"model": weights, "optimizer": optimizer_state, **plain}
            save(self.folder / name, checkpoint)
            for after_save in hooks("after_save", plain["config"]):
                after_save(self.folder / name, checkpoint)
            if number:
                rotate(self.folder, self.keep)
        return ""

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk."""
        if self.shards:
            self.shards.wait()


def restore(saved: dict, model: torch.nn.Module, optimizer: torch.optim.Optimizer, others: bool) -> dict:
    """Finish load(..., shards=True) for a resumed run; returns the checkpoint that was used.

    Loads the optimizer state, and from a folder of shards the weights, too. If the shards are damaged, loads
    and returns the newest other folder that is not. ValueError if there is none, or others is False.
    """
    if "shards" not in saved:
        optim.load_state(optimizer, saved["optimizer"])
        return saved
    from runtime.sharded import load_shards

    optim.check_groups(optimizer, saved["param_groups"])
    tried = set()
    while True:
        path = Path(saved["shards"])
        tried.add(path)
        try:
            load_shards(saved, model, optimizer)
            return saved
        except Exception as error:  # on all ranks: they read together
            problem = f"{path} cannot be read ({type(error).__name__})"
        untried = [other for other in other_checkpoints(path) if other.is_dir() and other not in tried]
        if not others:
            raise ValueError(f"{problem}; name another one")
        saved = first_that_resumes(untried, problem)


def load(path: Path, shards: bool = False) -> dict:
    """Read a checkpoint to CPU memory. ValueError if it is missing, damaged or not one of ours.

    path: a file, or a folder of shards. shards=True is for resuming: the tensors of a folder are then left to
    restore(), and if this checkpoint does not load, the newest one that does is returned.
    """
    path = newest(path)
    try:
        return read(path, shards)
    except ValueError as error:
        problem = str(error)
    others = other_checkpoints(path)
    if not path.exists() and not others:
        raise ValueError(f"{problem}; train first, for example: python train.py config/tiny.py")
    if shards:
        return first_that_resumes(others, problem)
    raise ValueError(f"{problem}; {advice_instead_of(path)}")


def read(path: Path, shards: bool) -> dict:
    """Read and check one checkpoint; arguments as for load(). ValueError if anything is wrong with it."""
    if not path.exists():
        raise ValueError(f"there is no {path}")
    shapes = None
    try:
        if path.is_dir():
            from runtime.sharded import read_shards, shapes_of

            checkpoint = read_json(path / "run.json")
            shapes = shapes_of(path)
            checkpoint |= {"shards": str(path)} if shards else read_shards(path, checkpoint["param_groups"])
        else:
            with open(path, "rb") as file:  # opened once: a run may replace the file at any time
                check_zip(file)
                file.seek(0)
                checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a truncated or foreign file
        if made_by_nanogpt(path):
            raise ValueError(f"{path} {OF_NANOGPT}") from None
        raise ValueError(f"{path} cannot be read ({type(error).__name__})") from None
    needed = KEYS - {"model"} if shapes and shards else KEYS
    missing = needed - checkpoint.keys() if isinstance(checkpoint, dict) else KEYS
    if missing and made_by_nanogpt(path):
        raise ValueError(f"{path} {OF_NANOGPT}")
    if missing:
        raise ValueError(f"{path} is not a checkpoint of tinylm: it has no {', '.join(sorted(missing))}")
    check_run(checkpoint, path, shapes, resume=shards)
    return checkpoint


def first_that_resumes(candidates: list[Path], problem: str) -> dict:
    """Read the first candidate that a run can resume from, and warn. ValueError if there is none."""
    for path in candidates:
        with contextlib.suppress(ValueError):
            saved = read(path, shards=True)
            if "optimizer" in saved or "shards" in saved:
                if os.environ.get("RANK", "0") == "0":
                    print(f"WARNING: {problem}; going on from step {saved['step']} in {path}")
                return saved
    raise ValueError(f"{problem}; no other checkpoint there loads")


def advice_instead_of(path: Path) -> str:
    """Advice for a checkpoint that does not load: names the newest other one in its folder that does."""
    foreign = ""
    for other in other_checkpoints(path):
        try:
            read(other, shards=False)
        except ValueError as error:
            foreign = str(error) if OF_NANOGPT in str(error) else foreign
            continue
        how = f"delete {path.name} to use it" if path.exists() else f"name it: {other}"
        if not path.exists() and "file" in names_here:
            how = f"use --file={other.name}"
        elif path.is_file() and other.is_file():
            how = f"copy it to {path.name}"
        return f"the newest file that loads is {other}: {how}"
    return foreign or "no other checkpoint there loads"


def rotate(folder: Path, keep: int) -> None:
    """Delete all ckpt_NNNNNN.pt but the `keep` newest; by time, because a new run starts again at 1."""
    numbered = [path for path in folder.glob("ckpt_*.pt") if re.fullmatch(r"ckpt_\d{6,}", path.stem)]
    numbered.sort(key=lambda path: (path.stat().st_mtime_ns, int(path.stem.removeprefix("ckpt_"))))
    for path in numbered[: max(0, len(numbered) - keep)]:
        path.unlink()


def check_same(saved: dict, model_config, tokenizer, where: str) -> None:
    """ValueError if a checkpoint has another tokenizer or model shape: its weights would mean nothing."""
    ours = tokenizer_of(saved, where)
    if ours.hash != tokenizer.hash:
        limit = " (it knows only the characters of its own text)" if ours.kind == "char" else ""
        run = Path(where).parent if where.endswith(".pt") else where
        raise ValueError(
            f"{where} has the tokenizer {ours.hash:.12} ({ours.vocab_size} tokens), the dataset has "
            f"{tokenizer.hash:.12} ({tokenizer.vocab_size} tokens); prepare the text with the run's{limit}: "
            f"python data.py --input=FILE --name=NAME --tokenizer={run}"
        )
    free = {"dropout", "gradient_checkpointing"}  # these change no weight's shape or meaning
    theirs = type(model_config)(**saved["model_config"])  # an earlier version saved fewer fields
    for name, value in dataclasses.asdict(model_config).items():
        if name not in free and value != getattr(theirs, name):
            trained = f"trained with {name}={getattr(theirs, name)}"
            raise ValueError(f"{where} was {trained}, not {value}; leave {name} out")


def load_model(path: Path, device: torch.device) -> tuple[GPT, object, dict]:
    """(model in eval mode, tokenizer, checkpoint) from one file; nothing else is needed."""
    saved = load(path)
    model = on_meta(saved["model_config"], saved["config"])  # no weights are made: they are in the file
    load_weights(model, saved["model"], path, assign=True)
    if model.config.tie_weights and isinstance(model.head, torch.nn.Linear):
        model.head.weight = model.wte.weight  # assigning untied them
    return model.to(device).eval(), tokenizer_of(saved, path), saved


def tokenizer_of(saved: dict, where: str | Path):
    """The tokenizer in a checkpoint. ValueError, with `where` in it, if it is damaged."""
    try:
        return from_json(saved["tokenizer"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def load_weights(model: torch.nn.Module, weights: dict, path: str | Path, assign: bool = False) -> None:
    """Copy a checkpoint's weights into a model. ValueError names the first that does not fit.

    assign: they become the model's own, in place of those on the meta device, without a copy.
    """
    try:
        # dict() makes a copy: load_state_dict notes `assign` in the state_dict that it loads, and the next
        # model to load it would get untied weights.
        model.load_state_dict(dict(weights), strict=True, assign=assign)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f"the weights in {path} do not fit the model: {reason}") from None


def consolidate(where: Path) -> list[Path]:
    """Turn folders of shards into files: ckpt.pt and best.pt in a run's folder, or NAME.pt beside NAME/."""
    if (where / "tensors.json").exists():
        jobs = {where: where.with_suffix(".pt")}
    else:
        files = [where / name for name in ("ckpt.pt", "best.pt")]
        jobs = {newest(file): file for file in files if newest(file).is_dir()}
    if not jobs:
        raise ValueError(f"{where} holds no checkpoint in shards that is newer than its files; nothing to do")
    for path, file in jobs.items():
        checkpoint = load(path)
        del checkpoint["param_groups"]  # also in checkpoint["optimizer"]
        save(file, checkpoint)
    return list(jobs.values())


if __name__ == "__main__":
    start_script(__doc__)
    if len(sys.argv) != 3 or sys.argv[1] != "consolidate":
        raise ValueError("expected: python -m runtime.checkpoint consolidate FOLDER")
    for file in consolidate(run_folder(sys.argv[2])):
        print(f"saved {file}")
