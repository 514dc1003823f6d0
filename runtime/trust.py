"""Validate everything read from disk before using it: a bit may have flipped, or a stranger made the file.

    check_zip            compares the CRC-32 of every tensor: torch.save writes it, torch.load ignores it
    write_json           writes JSON with a sha256 of its content; read_json compares it
    check_*              check types, sizes and numbers before anything of that size is allocated
    explain_disk_errors  turns the error of a full or read-only disk into one line

Nothing here runs code from a file. Whatever is wrong ends in a ValueError with a message of one line.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from runtime.guard import write_atomic

# What a checkpoint must hold, with its type; TO_RESUME: what resuming needs in addition.
TYPES = {"model_config": dict, "dataset": dict, "config": dict, "tokenizer": str}
TYPES |= {"step": int, "tokens": int, "seconds": float}
TO_RESUME = {"scaler": dict, "evaluated_at": int, "bad_evals": int, "best_step": int, "clipped": int}
TO_RESUME |= {"train_loss": float, "val_loss": float, "best_val_loss": float}
SCALER = {"scale": float, "growth_factor": float, "backoff_factor": float}
SCALER |= {"growth_interval": int, "_growth_tracker": int}
PLAIN = (torch.Tensor, bool, int, float, str, type(None))
LONGEST = 2**20  # limit for a checkpoint's block_size: sampling allocates a cache of that many columns


def check_zip(file) -> None:
    """Compare the CRC-32 of everything that torch.save wrote. file: a path or an open file.

    torch.load accepts a tensor with a flipped bit, because its zip reader is built without this check. For
    500 MB in memory on one core this takes 0.15 s, torch.load 0.37 s and the search for NaN (check_tensors)
    0.64 s. ValueError also for a compressed zip: torch.save never compresses, and a few compressed bytes can
    expand to a terabyte. And for an entry that is marked as a folder, which one flipped bit can do: torch
    would take what happens to lie in memory for its content.
    """
    with zipfile.ZipFile(file) as content:
        for entry in content.infolist():
            if entry.compress_type or entry.external_attr & 0x10:  # 0x10: a folder (MS-DOS)
                raise ValueError(f"{entry.filename} is compressed, or marked as a folder")
        damaged = content.testzip()
        if damaged:
            raise ValueError(f"{damaged} is damaged")


def made_by_nanogpt(path: Path) -> bool:
    """Whether a file is a checkpoint of nanoGPT: whether its pickle, which is not run, has those keys."""
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as content:  # many kinds for a damaged file
        for entry in content.infolist():
            if entry.filename.endswith("data.pkl") and entry.file_size < 2**26:  # a million names of tensors
                pickled = content.read(entry)
                return all(key in pickled for key in (b"model_args", b"iter_num", b"best_val_loss"))
    return False


def write_json(path: Path, value: dict) -> None:
    """Write a dict and its sha256 atomically: the file is complete, or not there."""
    write_atomic(path, json.dumps({**value, "sha256": sha256_of(value)}))


def read_json(path: Path) -> dict:
    """Read what write_json wrote. ValueError if its sha256 differs; earlier versions wrote none."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if "sha256" in value and value.pop("sha256") != sha256_of(value):
        raise ValueError(f"{path} is damaged")
    return value


def sha256_of(value: dict) -> str:
    """The sha256 of a dict's JSON, without its key "sha256". Writing and reading it does not change it."""
    content = {key: item for key, item in value.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content).encode("utf-8")).hexdigest()


def check_plain(value, where: str) -> None:
    """TypeError for the first thing in a nested value that torch.load(weights_only=True) would refuse."""
    if isinstance(value, dict):
        for key, item in value.items():
            check_plain(key, f"a key of {where}")
            check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            check_plain(item, f"{where}[{i}]")
    elif not isinstance(value, PLAIN) or type(value).__module__ == "numpy":  # numpy.float64 is a float, too
        kind = type(value).__name__
        raise TypeError(f"{where} is a {kind}; a checkpoint holds only tensors and plain Python values")


def check_types(values: dict, types: dict[str, type], where: str, required: bool = True) -> None:
    """ValueError for the first of these names that is missing or has another type; types: {name: type}.

    An int must be at least -1 and below 2**53, and will do for a float. required=False: names may be missing.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} is a {type(values).__name__}; expected a dict")
    for name, kind in types.items():
        if name not in values and required:
            raise ValueError(f"{where}: {name} is missing")
        if name not in values:
            continue
        value = values[name]
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits and not (kind is dict and isinstance(value, dict)):  # a state_dict() is an OrderedDict
            raise ValueError(f"{where}: {name} is a {type(value).__name__}; expected {kind.__name__}")
        if kind is int and not -1 <= value < 2**53:
            raise ValueError(f"{where}: {name} is negative or too large")


def check_tensors(tensors: dict, where: str) -> None:
    """ValueError unless these are named, dense, finite CPU tensors that are no larger than their storage.

    (A view can repeat one stored number a billion times.)
    """
    for name, t in tensors.items():
        if type(name) is not str or not isinstance(t, torch.Tensor):
            raise ValueError(f"{where}: expected names and tensors, found a {type(t).__name__}")
        plain = t.layout == torch.strided and t.device.type == "cpu" and not t.is_quantized
        if not plain or t.numel() * t.element_size() > t.untyped_storage().nbytes():
            raise ValueError(f"{where}: {name} is larger than what the file holds, or is no plain tensor")
        if not t.isfinite().all():
            raise ValueError(f"{where}: {name} holds NaN or infinity")


def on_meta(shape: dict, settings: dict):
    """The GPT of a checkpoint's model_config and config, on the meta device: it has shapes and no memory.

    ValueError for an impossible shape, and for settings of techniques that nothing can be made of.
    """
    from model import GPT, GPTConfig  # here, because reading a dataset does not need them
    from techniques import change

    with torch.device("meta"):
        return change("change_model", GPT(GPTConfig(**shape)), settings)


def check_fit(shape: dict, settings: dict, weights: dict, where: str) -> None:
    """ValueError unless the weights are those of a GPT of this shape. Allocates nothing larger than they are.

    shape: a checkpoint's model_config. settings: its config, which names the techniques that changed the
    model. weights: {name: tensor}; the tensors may be on the meta device.
    """
    from model import GPTConfig

    fields = {field.name: type(field.default) for field in dataclasses.fields(GPTConfig)}
    unknown = shape.keys() - fields
    if unknown:
        raise ValueError(f"{where} holds a model of another version of tinylm: {sorted(map(str, unknown))}")
    check_types(shape, {name: fields[name] for name in shape}, where)
    largest = max((n for t in weights.values() for n in t.shape), default=0)
    widths = "vocab_size n_head n_embd n_kv_head head_size latent_rank experts_width".split()
    limits = dict.fromkeys(widths, largest)
    limits |= dict.fromkeys(("n_layer", "experts", "multi_token"), len(weights))  # each has some
    limits |= {"block_size": LONGEST, "n_ff": largest * len(weights)}  # experts may share it
    sizes = {name: n for name, n in {**settings, **shape}.items() if name in limits and type(n) is int}
    for name, n in sizes.items():
        if n > limits[name]:
            raise ValueError(f"the weights in {where} do not fit the model: {name}={n}")
    try:
        check_types(settings, {"technique": str}, where, required=False)
        model = on_meta(shape, settings)
    except ValueError as error:
        raise ValueError(f"{where} holds an impossible model: {error}") from None
    try:
        # dict(): see checkpoint.load_weights
        model.load_state_dict(dict(weights), strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f"the weights in {where} do not fit the model: {reason}") from None


def check_run(saved: dict, path: Path, shapes: dict | None, resume: bool) -> None:
    """ValueError for a checkpoint that no run can have saved: wrong types, or weights of another model.

    shapes: of a folder of shards, its weights on the meta device; None if `saved` has the weights.
    resume: also check what only resuming needs.
    """
    where = f"{path} is not a checkpoint of tinylm"
    check_types(saved, TYPES, where)
    if not 0 <= saved["seconds"] < 1e12 or min(saved["step"], saved["tokens"]) < 0:
        raise ValueError(f"{where}: its step is {saved['step']}, after {saved['seconds']} seconds")
    weights = shapes
    if "model" in saved:
        check_types(saved, {"model": dict}, where)
        check_tensors(saved["model"], str(path))
        weights = saved["model"]
    check_fit(saved["model_config"], saved["config"], weights, str(path))
    for name in saved["model_config"].keys() & saved["config"].keys():  # the model's shape is stored twice
        ours, theirs = saved["model_config"][name], saved["config"][name]
        # "", 0 and -1 leave a setting to arch. A tensor is tested first, because `in` cannot compare it.
        if isinstance(theirs, torch.Tensor) or theirs not in (ours, "", 0, -1):
            raise ValueError(f"{where}: {name} is {ours} in its model, but not in its settings")
    if not resume:
        return
    check_types({"clipped": 0, **saved}, TO_RESUME, where)  # an older version did not count these
    check_types(saved, {"world_size": int, "val_loss_to_beat": float}, where, required=False)  # nor these
    if saved["scaler"]:
        check_types(saved["scaler"], SCALER, f"{where}: its loss scaler")
    if "shards" in saved:
        check_groups(saved, weights, f"{where}: its optimizer")
    elif "optimizer" in saved:
        check_groups(saved["optimizer"], weights, f"{where}: its optimizer")
        check_state(saved["optimizer"], weights, f"{where}: its optimizer")


def check_groups(optimizer: dict, weights: dict, where: str) -> None:
    """ValueError unless the optimizer's parameter groups hold parameters of this model only."""
    check_types(optimizer, {"param_groups": list}, where)
    for group in optimizer["param_groups"]:
        check_types(group, {"kind": str, "param_names": list}, where)
        if any(type(name) is not str or name not in weights for name in group["param_names"]):
            raise ValueError(f"{where} is of another model")


def check_state(optimizer: dict, weights: dict, where: str) -> None:
    """ValueError unless the optimizer state is finite and has its parameters' shapes, or is a scalar."""
    check_types(optimizer, {"state": dict}, where)
    names = [name for group in optimizer["param_groups"] for name in group["param_names"]]
    for number, state in optimizer["state"].items():
        if type(number) is not int or not 0 <= number < len(names) or type(state) is not dict:
            raise ValueError(f"{where} is damaged")
        check_tensors(state, f"{where}, {names[number]}")
        for name, t in state.items():
            if t.shape not in ((), weights[names[number]].shape):
                raise ValueError(f"{where} has {name} of another shape than {names[number]}")


def read_meta(folder: Path, complete: bool = True) -> dict:
    """Read and check a dataset's meta.json, which says how large its files are and how to read them.

    complete: require all that data.py writes, else only what data.Windows needs. ValueError if damaged.
    """
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        types = {"name": str, "dtype": str, "format": str, "masked": bool, "end_id": int, "splits": dict}
        optional = {"vocab_size": int, "nats_per_char": float, "stand_in_for": str, "stand_in_reason": str}
        check_types(meta, types, "it")
        check_types(meta, {**optional, "turns": bool}, "it", required=False)
        if complete:
            check_types(meta, {"source": str, "sha256": str, "dropped": dict, "vocab_size": int}, "it")
        for split, counts in meta["splits"].items():
            check_types(counts, {"tokens": int}, split)
            names = ("learned", "bytes", "characters", "documents")
            check_types(counts, dict.fromkeys(names, int), split, required=complete)
            shards = counts.get("shards", [counts["tokens"]])
            if type(shards) is not list or not all(type(n) is int and n >= 0 for n in shards):
                raise ValueError(f"{split}: shards is not a list of numbers")
            if sum(shards) != counts["tokens"]:
                raise ValueError(f"{split}: the tokens of its shards do not add up to {counts['tokens']}")
        if meta["dtype"] not in ("uint16", "uint32") or meta["format"] not in ("text", "lines", "jsonl"):
            raise ValueError("dtype or format is unknown")
        if meta["end_id"] >= meta.get("vocab_size", 2**32) or not math.isfinite(meta.get("nats_per_char", 0)):
            raise ValueError("a number is too large")
    except (ValueError, RecursionError) as error:
        reason = "" if isinstance(error, (json.JSONDecodeError, RecursionError)) else f": {error}"
        raise ValueError(f"{path} is damaged{reason}; prepare the dataset again") from None
    return meta


@contextlib.contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Around the writing of a checkpoint: a ValueError of one line for whatever the disk or torch raises."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error
        while cause.__context__ and not isinstance(cause, OSError):
            cause = cause.__context__  # torch's writer raises an error of its own after the disk's
        reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        raise ValueError(
            f"{path} could not be saved: {reason}. The previous checkpoint is unchanged; free some space or "
            "choose another --out_dir, then go on with --init_from=resume"
        ) from None
