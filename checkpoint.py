"""The run on disk: out_dir/ckpt.pt (latest), best.pt (lowest val loss), ckpt_000500.pt (when asked for).

A checkpoint is one dict of tensors, numbers, strings, lists and dicts, so torch.load(weights_only=True) reads
it and nothing in it can run code. It is enough by itself to resume, evaluate and sample: it holds the
tokenizer too.
"""

import dataclasses
import os
import re
from pathlib import Path

import torch

from config import ROOT
from model import GPT, GPTConfig
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

    Raises TypeError if something in it is not a tensor, number, string, list or dict (a numpy scalar, say).
    """
    check_plain(checkpoint, "checkpoint")
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())  # without it the new name may survive a power cut, and its content not
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # is there only if something went wrong: no space left, say


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


def load(path: Path) -> dict:
    """Read a checkpoint to CPU memory. ValueError if it is missing, broken or no checkpoint of ours."""
    if not path.is_file():
        advice = newest_that_loads(path) or "train first, for example: python train.py config/tiny.py"
        raise ValueError(f"there is no {path}; {advice}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a truncated or foreign file
        advice = newest_that_loads(path) or "no other checkpoint there loads"
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); {advice}") from None
    missing = KEYS - checkpoint.keys() if isinstance(checkpoint, dict) else KEYS
    if missing:
        raise ValueError(f"{path} is no checkpoint of tinylm: it has no {', '.join(sorted(missing))}")
    return checkpoint


def newest_that_loads(instead_of: Path) -> str:
    """Advice that names the newest other checkpoint in the same folder that can be read; "" if none can."""
    others = [path for path in instead_of.parent.glob("*.pt") if path != instead_of]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            torch.load(path, map_location="meta", weights_only=True)
        except Exception:
            continue
        return f"the newest file that loads is {path}: copy it to {instead_of.name}"
    return ""


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
    if path.is_dir():
        return path / "best.pt" if (path / "best.pt").is_file() else path / "ckpt.pt"
    return path


def check_same(saved: dict, model_config, tokenizer, where: str) -> None:
    """Refuse another tokenizer or another shape than the checkpoint's: its weights would be noise."""
    then = from_json(saved["tokenizer"])
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
    try:
        model = GPT(GPTConfig(**saved["model_config"]))
    except TypeError as error:  # a field that GPTConfig does not have, or no longer
        raise ValueError(f"{path} holds a model of another version of tinylm: {error}") from None
    load_weights(model, saved["model"], path)
    return model.to(device).eval(), from_json(saved["tokenizer"]), saved


def load_weights(model: torch.nn.Module, weights: dict, path: Path) -> None:
    """Copy a checkpoint's weights into a model, strictly; ValueError names the first that does not fit."""
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {path} do not fit the model: {str(error).splitlines()[1].strip()}"
        ) from None
