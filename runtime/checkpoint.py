"""The run on disk: out_dir/ckpt.pt (latest), best.pt (lowest val loss), ckpt_000500.pt (when asked for).

A checkpoint is one dict of tensors, numbers, strings, lists and dicts, so torch.load(weights_only=True) reads
it and nothing in it can run code. It is enough by itself to resume, evaluate and sample: it holds the
tokenizer too. A damaged one is told from a whole one (trust.py), and a run goes on from the newest whole one.

With checkpoint_format="sharded" (large models) there are folders in place of the first two files, made by
sharded.py: ckpt_000500/, best_000500/. All that reads a file reads a folder, too; ordinary files are made by

    python -m runtime.checkpoint consolidate out-mine
"""

import contextlib
import dataclasses
import os
import re
import sys
from pathlib import Path

import torch

import optim
from config import ROOT, start_script
from machine.distributed import full_state
from model import GPT, GPTConfig
from runtime.guard import atomic_file
from runtime.trust import check_run, check_zip, or_one_line, read_json
from tokenizer import from_json

PLAIN = (torch.Tensor, bool, int, float, str, type(None))
# What every file has. Those of train.py also have what only resuming needs: the state of the optimizer, say.
KEYS = set("model model_config tokenizer dataset config step tokens seconds".split())


def run_folder(out_dir: str) -> Path:
    """The folder of a run: a relative out_dir lies in the project, whatever the working directory.

    ValueError for the project's own folder (an empty out_dir), and for a file.
    """
    folder = ROOT / out_dir
    if folder.resolve() == ROOT or folder.is_file():
        raise ValueError(f"out_dir={out_dir} is no folder for a run; expected a name such as out-mine")
    return folder


def save(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint so that at every moment either the old file or the whole new one is there.

    Raises TypeError if something in it is not a tensor, number, string, list or dict (a numpy scalar, say),
    ValueError if it cannot be written. A folder that was deleted is made again: the run is not lost.
    """
    check_plain(checkpoint, "checkpoint")
    with or_one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            torch.save(checkpoint, file)


class Saver:
    """Writes the checkpoints of a run, in either format. All ranks make one, and call it, together."""

    def __init__(self, folder: Path, checkpoint_format: str, keep: int, rank: int):
        """keep: how many numbered files stay; of folders of shards: how many ckpt_*."""
        if checkpoint_format not in ("file", "sharded"):
            raise ValueError(f"checkpoint_format={checkpoint_format} is unknown; expected file or sharded")
        self.folder, self.keep, self.rank, self.shards = folder, keep, rank, None
        if checkpoint_format == "sharded":
            from runtime.sharded import Shards

            self.shards = Shards(folder, keep, rank == 0)

    def save(self, name: str, plain: dict, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
        """Write name (ckpt.pt, best.pt, ckpt_000500.pt), or begin to; returns a line on it, or "".

        plain: all that is not in model.state_dict() and optimizer.state_dict().
        """
        if self.shards:
            return self.shards.save(name[:4], plain, model, optimizer)
        weights, averages = full_state(model, optimizer)
        if self.rank == 0:
            save(self.folder / name, {"model": weights, "optimizer": averages, **plain})
            if name[4] == "_":
                rotate(self.folder, self.keep)
        return ""

    def wait(self) -> None:
        """Until all is on the disk."""
        if self.shards:
            self.shards.wait()


def restore(saved: dict, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """To resume: the optimizer's averages, and the weights that load() has left in shards on the disk.

    Shards that turn out to be damaged: `saved` becomes that of the newest other folder that loads.
    """
    if "shards" not in saved:
        optim.load_state(optimizer, saved["optimizer"])
        return
    from runtime.sharded import load_shards

    optim.check_groups(optimizer, saved["param_groups"])
    tried = set()
    while path := Path(saved["shards"]):
        tried.add(path)
        try:  # all ranks read together: where one fails, all do
            load_shards(saved, model, optimizer)
            return
        except Exception as error:
            problem = f"{path} cannot be read ({type(error).__name__})"
        folders = [other for other in others(path) if other.is_dir() and other not in tried]
        found = instead(problem, folders)
        saved.clear()
        saved.update(found)


def check_plain(value, where: str) -> None:
    """Raise TypeError for the first thing in a nested value that weights_only=True would not load again."""
    if isinstance(value, dict):
        for key, item in value.items():
            check_plain(key, f"a key of {where}")
            check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            check_plain(item, f"{where}[{i}]")
    elif not isinstance(value, PLAIN) or type(value).__module__ == "numpy":  # numpy.float64 is a float, too
        raise TypeError(
            f"{where} is a {type(value).__name__}; a checkpoint holds tensors and plain Python values only"
        )


def load(path: Path, shards: bool = False) -> dict:
    """Read a checkpoint to CPU memory. ValueError if it is missing, damaged or no checkpoint of ours.

    path: a file, or a folder of shards. shards: it is to be resumed. Then the tensors of a folder are left
    out, for restore(), and in place of a file or folder that does not load comes the newest that does.
    """
    path = newest(path)
    try:
        return read(path, shards)
    except ValueError as error:
        problem = str(error)
    found = others(path)
    if not path.exists() and not found:
        raise ValueError(f"{problem}; train first, for example: python train.py config/tiny.py")
    if shards:
        return instead(problem, found)
    raise ValueError(f"{problem}; {newest_that_loads(path)}")


def read(path: Path, shards: bool) -> dict:
    """One checkpoint, if nothing is wrong with it; else ValueError."""
    if not path.exists():
        raise ValueError(f"there is no {path}")
    weights = None
    try:
        if path.is_dir():
            from runtime.sharded import read_shards, shapes_of

            checkpoint = read_json(path / "run.json")
            weights = shapes_of(path)
            checkpoint |= {"shards": str(path)} if shards else read_shards(path, checkpoint["param_groups"])
        else:
            with open(path, "rb") as file:  # opened once: a run may put a new file there at any time
                check_zip(file)
                file.seek(0)
                checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a truncated or foreign file
        raise ValueError(f"{path} cannot be read ({type(error).__name__})") from None
    needed = KEYS - {"model"} if weights and shards else KEYS
    missing = needed - checkpoint.keys() if isinstance(checkpoint, dict) else KEYS
    if missing:
        raise ValueError(f"{path} is no checkpoint of tinylm: it has no {', '.join(sorted(missing))}")
    check_run(checkpoint, path, weights, resume=shards)
    return checkpoint


def others(path: Path) -> list[Path]:
    """All other checkpoints in the folder, files and whole folders of shards, the newest first."""
    tables = path.parent.glob("*/tensors.json")
    found = {each: each.stat().st_mtime_ns for each in path.parent.glob("*.pt") if each.is_file()}
    found |= {table.parent: table.stat().st_mtime_ns for table in tables}
    return [each for each in sorted(found, key=found.get, reverse=True) if each != path]


def instead(problem: str, candidates: list[Path]) -> dict:
    """To resume where the newest is damaged: the first of these that loads. ValueError if none does."""
    for path in candidates:
        with contextlib.suppress(ValueError):
            saved = read(path, shards=True)
            if {"optimizer", "shards"} & saved.keys():
                if os.environ.get("RANK", "0") == "0":
                    print(f"WARNING: {problem}; going on from step {saved['step']} in {path}")
                return saved
    raise ValueError(f"{problem}; no other checkpoint there loads")


def newest(path: Path) -> Path:
    """ckpt.pt, or the newest whole folder ckpt_*/ beside it if that is newer; likewise for best.pt."""
    tables = list(path.parent.glob(f"{path.stem}_*/tensors.json"))
    found = max((p for p in (path, *tables) if p.exists()), key=lambda p: p.stat().st_mtime_ns, default=path)
    return found.parent if found in tables else found


def newest_that_loads(instead_of: Path) -> str:
    """Advice that names the newest other checkpoint in the same folder that can be read."""
    for path in others(instead_of):
        with contextlib.suppress(ValueError):
            read(path, shards=False)
            files = path.is_file() and not instead_of.is_dir()
            how = f"copy it to {instead_of.name}" if files else f"delete {instead_of.name} to use it"
            return f"the newest file that loads is {path}: {how}"
    return "no other checkpoint there loads"


def rotate(folder: Path, keep: int) -> None:
    """Delete all ckpt_NNNNNN.pt but the `keep` that were written last; no other file is touched.

    By time, not by number: a new run in an old folder starts again at 1.
    """
    numbered = [path for path in folder.glob("ckpt_*.pt") if re.fullmatch(r"ckpt_\d{6,}", path.stem)]
    numbered.sort(key=lambda path: (path.stat().st_mtime_ns, int(path.stem[5:])))
    for path in numbered[: max(0, len(numbered) - keep)]:
        path.unlink()


def find(where: str, folder: Path) -> Path:
    """The file to start from: "resume" is folder/ckpt.pt; else a .pt file or a run's folder (best.pt)."""
    if where == "resume":
        return folder / "ckpt.pt"
    path = next((path for path in (Path(where), ROOT / where) if path.exists()), None)
    if path is None:
        raise ValueError(
            f"init_from={where} does not exist; expected scratch, resume, a run's folder or a .pt file. "
            f"To make a run: python train.py config/tiny.py --out_dir={where}"
        )
    if path.is_dir() and not (path / "tensors.json").exists():
        return path / "best.pt" if newest(path / "best.pt").exists() else path / "ckpt.pt"
    return path


def check_same(saved: dict, model_config, tokenizer, where: str) -> None:
    """Refuse another tokenizer or another shape than the checkpoint's: its weights would be noise."""
    then = tokenizer_of(saved, where)
    if then.hash != tokenizer.hash:
        raise ValueError(
            f"{where} has the tokenizer {then.hash[:12]} ({then.vocab_size} tokens), the dataset has "
            f"{tokenizer.hash[:12]} ({tokenizer.vocab_size} tokens); "
            f"prepare it with: python data.py --tokenizer={where}"
        )
    free = {"dropout", "gradient_checkpointing"}  # these change no weight's shape or meaning
    for name, value in dataclasses.asdict(model_config).items():
        if name not in free and value != saved["model_config"][name]:
            raise ValueError(
                f"{where} was trained with {name}={saved['model_config'][name]}, not {value}; leave it out"
            )


def load_model(path: Path, device: torch.device) -> tuple[GPT, object, dict]:
    """(model in eval mode, tokenizer, checkpoint) from one file; nothing else is needed."""
    saved = load(path)
    model = GPT(GPTConfig(**saved["model_config"]))
    load_weights(model, saved["model"], path)
    return model.to(device).eval(), tokenizer_of(saved, path), saved


def tokenizer_of(saved: dict, where: str | Path):
    try:
        return from_json(saved["tokenizer"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def load_weights(model: torch.nn.Module, weights: dict, path: Path) -> None:
    """Copy a checkpoint's weights into a model, strictly; ValueError names the first that does not fit."""
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {path} do not fit the model: {str(error).splitlines()[1].strip()}"
        ) from None


def consolidate(where: Path) -> list[Path]:
    """Make files of folders of shards: ckpt.pt and best.pt in a run's folder, or NAME.pt beside NAME/."""
    if (where / "tensors.json").exists():
        jobs = {where: where.with_suffix(".pt")}
    else:
        files = [where / name for name in ("ckpt.pt", "best.pt")]
        jobs = {newest(file): file for file in files if newest(file).is_dir()}
    if not jobs:
        raise ValueError(f"{where} holds no checkpoint in shards that is newer than its files; nothing to do")
    for path, file in jobs.items():
        checkpoint = load(path)
        del checkpoint["param_groups"]  # the optimizer has them
        save(file, checkpoint)
    return list(jobs.values())


if __name__ == "__main__":
    start_script()
    if len(sys.argv) != 3 or sys.argv[1] != "consolidate":
        raise ValueError(
            "expected: python -m runtime.checkpoint consolidate FOLDER (of a run, or of one checkpoint)"
        )
    for file in consolidate(run_folder(sys.argv[2])):
        print(f"saved {file}")
