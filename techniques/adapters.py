"""What LoRA reads and writes: lora.pt, which fits one base only, and plain runs (average.py's, too).

tensors                            A and B (and M) of each layer, by name
rank, alpha, targets, variant      what builds the layers that they belong to
base                               sha256 of the base's weights: on other weights the tensors mean nothing
step                               the update after which it was saved
"""

import hashlib
from pathlib import Path

import torch

from config import ROOT, require, technique_settings
from runtime import checkpoint
from runtime.trust import check_tensors, check_types, check_zip

FILE = "lora.pt"
SETTINGS = {"rank": int, "alpha": float, "targets": str, "variant": str}
OWN = ("A", "B", "M")  # what LoRA trains, by the last part of its name
hashes: dict[Path, str] = {}  # folder of a run: that of its base; computed once (540 MB take 0.4 to 1.5 s)


def split(weights: dict) -> tuple[dict, dict]:
    """A model's state_dict() -> (what LoRA trains, all others by their names in the base)."""
    own = {name: t for name, t in weights.items() if name.rpartition(".")[2] in OWN}
    return own, {name.replace(".base.", "."): t for name, t in weights.items() if name not in own}


def hash_of(weights: dict) -> str:
    """The sha256 of named tensors: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, t in sorted(weights.items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write(folder: Path, weights: dict, step: int, config: dict) -> None:
    """Write lora.pt atomically. weights: a model's state_dict(); config: the run's settings."""
    own, base = split(weights)
    if folder not in hashes:
        hashes[folder] = hash_of(base)
    settings = {name: config[f"lora_{name}"] for name in SETTINGS}
    checkpoint.save(folder / FILE, {"tensors": own, "base": hashes[folder], "step": step, **settings})


def read(where: str) -> tuple[dict, Path]:
    """Read and check a lora.pt, or that of a run's folder. ValueError if it is none, or is damaged."""
    path = next((path for path in (Path(where), ROOT / where) if path.exists()), None)
    expected = f"expected a {FILE}, or the folder of a run that has one"
    require(path is not None, f"adapter={where} does not exist; {expected}")
    path = path / FILE if path.is_dir() else path
    require(path.is_file(), f"adapter={where} has no {FILE}; {expected}")
    try:
        check_zip(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a truncated or foreign file
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); {expected}") from None
    types = {"tensors": dict, "base": str, "step": int, **SETTINGS}
    check_types(saved, types, f"{path} is no adapter of LoRA")
    check_tensors(saved["tensors"], str(path))
    return saved, path


def put(saved: dict, path: Path, own: dict) -> None:
    """Copy an adapter's tensors into those of a model, by name. ValueError names the first that does not fit.

    own: what LoRA trains in the model, as split() gives it.
    """
    tensors = saved["tensors"]
    for name in sorted(own.keys() ^ tensors.keys()):
        verb = "lacks" if name in own else "holds"
        raise ValueError(f"{path} does not fit the model: it {verb} {name!r:.80}")
    for name, t in tensors.items():
        ours, theirs = (f"{tuple(each.shape)} {each.dtype}" for each in (own[name], t))
        require(ours == theirs, f"{path} does not fit the model: {name} is {theirs}, expected {ours}")
        own[name].copy_(t)


def require_merged(saved: dict, out_dir: str) -> None:
    """ValueError, with the command that makes it plain, for a run with LoRA, averages or masks in it."""
    on = saved["config"].get("technique", "").split(",")
    require("lora" not in on, f"merge first: python -m techniques.lora merge --out_dir={out_dir}")
    require("average" not in on, f"first make it plain: python -m techniques.average --out_dir={out_dir}")
    command = f"python -m techniques.prune --sparsity=0 --out_dir={out_dir}"
    require("prune" not in on, f"first leave the masks out: {command}")


def write_plain(folder: Path, model, saved: dict, out_dir: str) -> None:
    """Write the run `saved` with a model that has become a plain GPT."""
    gone = "lora", "quantize", "average", "prune"
    own = [name for technique in gone for name in technique_settings().get(technique, ())]
    settings = {name: value for name, value in saved["config"].items() if name not in own}
    others = [name for name in settings.get("technique", "").split(",") if name not in gone]
    settings |= {"technique": ",".join(others), "out_dir": out_dir}
    rest = {name: value for name, value in saved.items() if name not in ("optimizer", "param_groups")}
    checkpoint.save_run(folder, {**rest, "model": model.state_dict(), "config": settings})
