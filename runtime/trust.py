"""What comes from the disk is not believed: a bit may have flipped, and a stranger may have made the file.

    check_zip     the CRC-32 of every tensor, which torch.save writes and torch.load does not look at
    read_json     JSON with a sha256 of its own, write_json writes it
    check_*       types, sizes and numbers, before anything of that size is made
    or_one_line   a disk that is full, read-only or gone

Nothing here runs code out of a file, and all that is wrong ends in a ValueError of one line.
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

# The types of what is in every checkpoint, and of what only resuming needs.
TYPES = {dict: "model_config dataset config", str: "tokenizer", int: "step tokens", float: "seconds"}
LOSSES = "train_loss val_loss best_val_loss"
TO_RESUME = {dict: "scaler", int: "evaluated_at bad_evals best_step", float: LOSSES}
LONGEST = 2**20  # block_size of a checkpoint: sampling makes a cache of so many columns


def check_zip(file) -> None:
    """Compare the CRC-32 of all that torch.save has written. file: a path, or an open file.

    torch.load alone takes a tensor with a flipped bit for good: its zip reader is built without this check.
    500 MB in memory, one core: 0.15 s; torch.load takes 0.37, and to look for NaN (check_tensors) 0.64.
    What is packed is no checkpoint: torch.save packs nothing, and a few packed bytes can be a terabyte.
    """
    with zipfile.ZipFile(file) as content:
        if any(entry.compress_type for entry in content.infolist()):
            raise ValueError("it is a packed zip file")
        if damaged := content.testzip():
            raise ValueError(f"{damaged} is damaged")


def write_json(path: Path, value: dict) -> None:
    """Write a dict and its sha256, and rename: the file is there as a whole, or not at all."""
    write_atomic(path, json.dumps({**value, "sha256": sha256_of(value)}))


def read_json(path: Path) -> dict:
    """What write_json wrote; files of earlier versions have no sha256. ValueError if it is another."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if value.pop("sha256", found := sha256_of(value)) != found:
        raise ValueError(f"{path} is damaged")
    return value


def sha256_of(value: dict) -> str:
    """Of its JSON, which is the same again after it was written and read."""
    content = {key: item for key, item in value.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content).encode("utf-8")).hexdigest()


def check_types(values: dict, types: dict, where: str, all_there: bool = True) -> None:
    """ValueError for the first value that is not there or of another type; types: {type: "name name ..."}.

    An int has to lie between -1 and 2**53; for a float an int will do. all_there: none may be missing.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} is a {type(values).__name__}; expected a dict")
    for kind, names in types.items():
        for name in names.split():
            if name not in values:
                if all_there:
                    raise ValueError(f"{where}: {name} is missing")
                continue
            value = values[name]
            fits = type(value) is kind or (kind is float and type(value) is int)
            if not fits and not (kind is dict and isinstance(value, dict)):  # state_dict(): an OrderedDict
                raise ValueError(f"{where}: {name} is a {type(value).__name__}; expected {kind.__name__}")
            if kind is int and not -1 <= value < 2**53:
                raise ValueError(f"{where}: {name} is below zero, or too large")


def check_tensors(tensors: dict, where: str) -> None:
    """ValueError unless all are named, ordinary, finite tensors that are as large as what the file holds.

    (A view can repeat one number a billion times.)
    """
    for name, t in tensors.items():
        if type(name) is not str or not isinstance(t, torch.Tensor):
            raise ValueError(f"{where}: expected names and tensors, found a {type(t).__name__}")
        plain = t.layout == torch.strided and t.device.type == "cpu" and not t.is_quantized
        if not plain or t.numel() * t.element_size() > t.untyped_storage().nbytes():
            raise ValueError(f"{where}: {name} is larger than what the file holds, or no plain tensor")
        if not t.isfinite().all():
            raise ValueError(f"{where}: {name} holds NaN or infinity")


def check_fit(shape: dict, weights: dict, where: str) -> None:
    """ValueError unless weights are those of a GPT of this shape. Makes nothing that is larger than they are.

    shape: model_config of a checkpoint. weights: {name: tensor}, which may be on the meta device.
    """
    from model import GPT, GPTConfig  # here: a dataset is read without them

    fields = {field.name: type(field.default) for field in dataclasses.fields(GPTConfig)}
    if unknown := shape.keys() - fields:
        raise ValueError(f"{where} holds a model of another version of tinylm: {sorted(map(str, unknown))}")
    for name in shape:
        check_types(shape, {fields[name]: name}, where)
    largest = max((n for t in weights.values() for n in t.shape), default=0)
    most = dict.fromkeys(("vocab_size", "n_head", "n_embd", "n_kv_head", "n_ff"), largest)
    for name, limit in {**most, "n_layer": len(weights), "block_size": LONGEST}.items():
        if shape.get(name, 0) > limit:
            raise ValueError(f"the weights in {where} do not fit the model: {name}={shape[name]}")
    try:
        config = GPTConfig(**shape)
    except ValueError as error:
        raise ValueError(f"{where} holds no model: {error}") from None
    with torch.device("meta"):  # shapes only
        model = GPT(config)
    try:
        # dict: a state_dict() would remember `assign`, and untie the weights of the next who loads it
        model.load_state_dict(dict(weights), strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f"the weights in {where} do not fit the model: {reason}") from None


def check_run(saved: dict, path: Path, weights: dict | None, resume: bool) -> None:
    """ValueError for a checkpoint that no run has saved: other types, a model that its weights do not make.

    weights: shapes of those in shards, None: they are in the file. resume: all that only resuming needs, too.
    """
    where = f"{path} is no checkpoint of tinylm"
    check_types(saved, TYPES, where)
    if not 0 <= saved["seconds"] < 1e12 or min(saved["step"], saved["tokens"]) < 0:
        raise ValueError(f"{where}: it has made step {saved['step']} in {saved['seconds']} seconds")
    if "model" in saved:
        check_types(saved, {dict: "model"}, where)
        check_tensors(saved["model"], str(path))
        weights = saved["model"]
    check_fit(saved["model_config"], weights, str(path))
    for name in saved["model_config"].keys() & saved["config"].keys():  # the shape is there twice
        ours, theirs = saved["model_config"][name], saved["config"][name]
        # those three: as arch says; a tensor cannot be compared with them
        if isinstance(theirs, torch.Tensor) or theirs not in (ours, "", 0, -1):
            raise ValueError(f"{where}: {name} is {ours} in its model, and another in its settings")
    if not resume:
        return
    check_types(saved, TO_RESUME, where)
    if saved["scaler"]:
        numbers = {float: "scale growth_factor backoff_factor", int: "growth_interval _growth_tracker"}
        check_types(saved["scaler"], numbers, f"{where}: its loss scaler")
    if "shards" in saved or "optimizer" in saved:
        optimizer = saved if "shards" in saved else saved["optimizer"]
        check_optimizer(optimizer, weights, f"{where}: its optimizer")


def check_optimizer(optimizer: dict, weights: dict, where: str) -> None:
    """ValueError unless it has groups of these weights, and averages of their shapes."""
    check_types(optimizer, {list: "param_groups"}, where)
    names = []
    for group in optimizer["param_groups"]:
        check_types(group, {str: "kind", list: "param_names"}, where)
        names += group["param_names"]
    if any(type(name) is not str or name not in weights for name in names):
        raise ValueError(f"{where} is of another model")
    if "shards" in optimizer:
        return  # its averages are still on the disk
    check_types(optimizer, {dict: "state"}, where)
    for number, state in optimizer["state"].items():
        if type(number) is not int or not 0 <= number < len(names) or type(state) is not dict:
            raise ValueError(f"{where} is damaged")
        check_tensors(state, f"{where}, {names[number]}")
        for name, t in state.items():
            if t.shape not in ((), weights[names[number]].shape):
                raise ValueError(f"{where} has {name} of another shape than {names[number]}")


def read_meta(folder: Path, whole: bool = True) -> dict:
    """meta.json of a dataset, or ValueError: it says how large files are, and how to read them.

    whole: with all that data.py writes; else with what Windows needs.
    """
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        check_types(meta, {str: "name dtype format", bool: "masked", int: "end_id", dict: "splits"}, "it")
        texts = "stand_in_for stand_in_reason"
        check_types(meta, {int: "vocab_size", float: "nats_per_char", str: texts}, "it", all_there=False)
        if whole:
            check_types(meta, {str: "source sha256", dict: "dropped", int: "vocab_size"}, "it")
        for split, counts in meta["splits"].items():
            check_types(counts, {int: "tokens"}, split)
            check_types(counts, {int: "learned bytes characters documents"}, split, all_there=whole)
            shards = counts.get("shards", [counts["tokens"]])
            if type(shards) is not list or not all(type(n) is int and n >= 0 for n in shards):
                raise ValueError(f"{split}: shards is no list of numbers")
            if sum(shards) != counts["tokens"]:
                raise ValueError(f"{split}: the shards do not make up the whole")
        if meta["dtype"] not in ("uint16", "uint32") or meta["format"] not in ("text", "lines", "jsonl"):
            raise ValueError("dtype or format is unknown")
        if meta["end_id"] >= meta.get("vocab_size", 2**32) or not math.isfinite(meta.get("nats_per_char", 0)):
            raise ValueError("a number is too large")
    except (ValueError, RecursionError) as error:
        reason = "" if isinstance(error, (json.JSONDecodeError, RecursionError)) else f": {error}"
        raise ValueError(f"{path} is damaged{reason}; prepare the dataset again") from None
    return meta


@contextlib.contextmanager
def or_one_line(path: Path) -> Iterator[None]:
    """Around the writing of a checkpoint: ValueError in place of whatever a disk or torch's writer raises."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        first = error
        while first.__context__ and not isinstance(first, OSError):
            first = first.__context__  # torch's writer raises an error of its own after the disk's
        reason = first.strerror if isinstance(first, OSError) else str(error).splitlines()[0]
        raise ValueError(
            f"{path} could not be saved: {reason}. The file before it is as it was; make room or choose "
            "another --out_dir, and go on with --init_from=resume"
        ) from None
