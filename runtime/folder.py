"""Which checkpoints a run's folder holds: files (ckpt.pt, best.pt, ckpt_000500.pt) and folders of shards."""

import json
from pathlib import Path

from config import ROOT, require


def run_folder(out_dir: str) -> Path:
    """A run's folder: a relative out_dir is in the project's. ValueError for a file, or an empty out_dir."""
    folder = ROOT / out_dir
    if folder.resolve() == ROOT or folder.is_file():
        raise ValueError(f"out_dir={out_dir} cannot be a run's folder; choose a name such as out-mine")
    return folder


def new_run_folder(out_dir: str, flag: str = "out_dir") -> Path:
    """The folder of a run that a command makes at once. ValueError if it holds checkpoints already."""
    folder = run_folder(out_dir)
    there = [path.name for path in other_checkpoints(folder / "any")]
    there += ["config.json"] if is_foreign(folder) else []
    advice = f"which would be overwritten; delete it, or choose another --{flag}"
    require(not there, f"{folder} holds a model ({there[:1]}), {advice}")
    return folder


def newest(path: Path) -> Path:
    """ckpt.pt, or the newest complete folder ckpt_*/ beside it if that is newer; likewise for best.pt."""
    tables = list(path.parent.glob(f"{path.stem}_*/tensors.json"))
    found = max((p for p in (path, *tables) if p.exists()), key=lambda p: p.stat().st_mtime_ns, default=path)
    return found.parent if found in tables else found


def other_checkpoints(path: Path) -> list[Path]:
    """All other checkpoints in the same folder, files and complete folders of shards, the newest first."""
    tables = path.parent.glob("*/tensors.json")  # written last, so a folder that has it is complete
    times = {file: file.stat().st_mtime_ns for file in path.parent.glob("*.pt") if file.is_file()}
    times |= {table.parent: table.stat().st_mtime_ns for table in tables}
    return [each for each in sorted(times, key=times.get, reverse=True) if each != path]


def is_foreign(path: Path) -> bool:
    """Whether techniques/pretrained.py reads it: a GGUF file, or a folder with Hugging Face's config.json."""
    if path.suffix == ".gguf":
        return path.is_file()
    try:
        return "model_type" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False


def find(where: str, folder: Path) -> Path:
    """The checkpoint that init_from names: "resume" is folder/ckpt.pt; else a .pt file or a run's folder.

    In a run's folder: best.pt, or ckpt.pt if there is no best.pt. What is_foreign is returned as it is.
    ValueError if `where` does not exist.
    """
    if where == "resume":
        return folder / "ckpt.pt"
    path = next((path for path in (Path(where), ROOT / where) if path.exists()), None)
    if path is None:
        raise ValueError(
            f"init_from={where} does not exist; expected scratch, resume, a run's folder, a .pt or .gguf "
            "file, or a folder of Hugging Face's. To make a run: "
            "python train.py config/tiny.py --out_dir=out-mine"
        )
    if path.is_dir() and not (path / "tensors.json").exists() and not is_foreign(path):
        return path / "best.pt" if newest(path / "best.pt").exists() else path / "ckpt.pt"
    return path
