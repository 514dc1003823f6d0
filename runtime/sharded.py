"""Checkpoints of large models: every process writes its shard, in the background, into one folder.

    out-mine/ckpt_000500/run.json       everything but tensors: settings, tokenizer, step, ...
                         __0_0.distcp   the shard of rank 0; __1_0.distcp that of rank 1, ...
                         tensors.json   the table of contents: which piece of which tensor is where

tensors.json is written last, so a folder that has one is complete. torch.distributed.checkpoint (DCP) does
the work: it copies the tensors, writes them while training goes on, writes replicated tensors once, and loads
them into any other sharding. Its own table of contents is a pickle, which could run code when it is read;
this one is JSON. Only a run that needs this file imports it, because importing DCP takes a second.
"""

import contextlib
import functools
import io
import math
import shutil
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from machine.distributed import all_gather, barrier, join
from optim import init_state, named_state
from runtime.trust import check_zip, explain_disk_errors, read_json, write_json


class Shards:
    """Writes a run's checkpoints, one at a time. If a save is killed, the folders before it remain."""

    def __init__(self, folder: Path, keep: int, main: bool):
        """keep: steps whose ckpt_* are kept (best_*: one). main: true on rank 0. All ranks create one."""
        self.folder, self.keep, self.main, self.pending = folder, keep, main, None
        if not dist.is_initialized():
            join("gloo", timeout=600)
        # A process group of its own: the background thread's messages must not mix with those of training.
        self.group = dist.new_group(backend="gloo")

    def save(self, stem: str, plain: dict, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
        """Start to write the folder stem_STEP/; returns a line that says how long training was stopped.

        stem: ckpt | best. plain: everything but tensors. All ranks call this together.
        """
        started = time.perf_counter()
        self.wait()
        name = f"{stem}_{plain['step']:06}"
        taken = len(list(self.folder.glob(f"{name}*")))  # by an older run or a killed save
        self.path = path = self.folder / all_gather(f"{name}_{taken}" if taken else name)[0]
        if self.main:
            groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
            with self.or_remove_folder():
                path.mkdir(parents=True)
                write_json(path / "run.json", {**plain, "param_groups": groups})
        barrier()
        self.pending = dcp.async_save(  # copies the tensors, then returns
            tensors_of(model, optimizer),
            storage_writer=Writer(path),
            process_group=self.group,
        )
        stalled = time.perf_counter() - started
        return f"saving {path.name} in the background; training stood still for {stalled:.3f} s"

    def wait(self) -> None:
        """Wait until the last save is on the disk; then delete the oldest folders."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        with self.or_remove_folder():
            try:
                pending.result()
            except CheckpointException as error:  # holds the errors of all ranks
                raise next(iter(error.failures.values()))[0] from None
        for stem, keep in (("ckpt", self.keep), ("best", 1)):
            folders = complete_folders(self.folder, stem)
            steps = list(dict.fromkeys(step_of(path) for path in reversed(folders)))  # the newest first
            for path in folders if self.main else ():
                if step_of(path) not in steps[:keep]:  # a step that was saved twice counts once
                    (path / "tensors.json").unlink()  # first: without it the folder counts as incomplete
                    shutil.rmtree(path)

    @contextlib.contextmanager
    def or_remove_folder(self):
        """If the disk is full or read-only: remove the incomplete folder, then a ValueError of one line."""
        try:
            with explain_disk_errors(self.path):
                yield
        except ValueError:
            shutil.rmtree(self.path, ignore_errors=True)
            raise


def step_of(path: Path) -> str:
    """The step in the name of a folder: ckpt_000020 and ckpt_000020_1, a second save, are of 000020."""
    return path.name.split("_")[1]


def complete_folders(folder: Path, stem: str) -> list[Path]:
    """The complete folders stem_*/, the oldest first."""
    tables = folder.glob(f"{stem}_*/tensors.json")
    return [path.parent for path in sorted(tables, key=lambda path: path.stat().st_mtime_ns)]


def tensors_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of this rank, by name. A shard is a DTensor, which knows its place."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    for name, state in named_state(optimizer).items():
        tensors |= {f"optimizer.{name}/{quantity}": t for quantity, t in state.items()}
    return tensors


def load_shards(saved: dict, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load model and optimizer state in place from saved["shards"], the folder that checkpoint.load() found.

    Each rank reads its own shard; the number of processes and the strategy may differ from when it was saved.
    If a file is damaged, all ranks raise torch's error.
    """
    for state in named_state(optimizer).values():
        state.clear()  # may hold what was read from a folder before it turned out to be damaged
    init_state(optimizer)
    reader = Reader(saved["shards"])
    in_folder = reader.read_metadata().state_dict_metadata  # earlier versions: no optimizer state at step 0
    tensors = tensors_of(model, optimizer)
    read_all({key: t for key, t in tensors.items() if key in in_folder}, reader)


def read_all(tensors: dict[str, torch.Tensor], reader: "Reader", **how) -> None:
    """Read tensors in place with dcp.load. OSError on all ranks if any of them finds damage.

    (dcp.load raises a CheckpointException, which is a BaseException: `except Exception` would not catch it.)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dcp.load warns when only one process reads
        try:
            dcp.load(tensors, storage_reader=reader, **how)
        except CheckpointException:
            raise OSError(f"{reader.path} is damaged") from None


def shapes_of(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a folder as tensors on the meta device: names, shapes and dtypes only."""
    entries = Reader(path).read_metadata().state_dict_metadata
    return {
        name.removeprefix("model."): torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in entries.items()
        if name.startswith("model.")
    }


def read_shards(path: Path, groups: list[dict]) -> dict:
    """Read all tensors of a folder, in the form of a file: {"model": ..., "optimizer": ...}.

    groups: param_groups of run.json.
    """
    reader = Reader(path)
    entries = reader.read_metadata().state_dict_metadata
    tensors = {key: torch.empty(entry.size, dtype=entry.properties.dtype) for key, entry in entries.items()}
    read_all(tensors, reader, no_dist=True)
    names = [name for group in groups for name in group["param_names"]]
    state: dict[int, dict] = {i: {} for i in range(len(names))}
    weights = {}
    for key, t in tensors.items():
        kind, _, name = key.partition(".")
        if kind == "model":
            weights[name] = t
        else:
            name, _, quantity = name.partition("/")
            state[names.index(name)][quantity] = t
    numbers = iter(state)
    groups = [{**group, "params": [next(numbers) for _ in group["param_names"]]} for group in groups]
    return {"model": weights, "optimizer": {"state": state, "param_groups": groups}}


class Writer(dcp.FileSystemWriter):
    """torch's FileSystemWriter, but the table of contents is JSON instead of a pickle."""

    def finish(self, metadata: Metadata, results: list) -> None:
        """Write the table. DCP calls this on one rank, when all have written and synced their files."""
        table: dict[str, dict] = {}
        for index, place in ((each.index, each.storage_data) for result in results for each in result):
            entry = metadata.state_dict_metadata[index.fqn]
            sizes = next(chunk.sizes for chunk in entry.chunks if chunk.offsets == index.offset)
            about = dict(dtype=str(entry.properties.dtype).removeprefix("torch."), size=list(entry.size))
            table.setdefault(index.fqn, {**about, "chunks": []})["chunks"].append(
                dict(
                    offsets=list(index.offset),  # where this piece begins in the full tensor
                    sizes=list(sizes),
                    file=place.relative_path,
                    position=place.offset,  # in bytes
                    length=place.length,
                )
            )
        write_json(Path(self.path) / "tensors.json", table)


class Reader(dcp.FileSystemReader):
    """torch's FileSystemReader, but the table of contents is JSON, and everything is checked."""

    @functools.cache  # noqa: B019 (a reader lives as long as one load)
    def read_metadata(self, *args, **kwargs) -> Metadata:
        """Read tensors.json. ValueError for a table that contradicts itself or the files."""
        folder = Path(self.path)
        table = read_json(folder / "tensors.json")
        sizes_of = {path.name: path.stat().st_size for path in folder.glob("*.distcp")}
        entries, places, claimed = {}, {}, 0
        for name, entry in table.items():
            dtype = getattr(torch, entry["dtype"], None)
            if not isinstance(dtype, torch.dtype):
                raise ValueError(f"{self.path}: {name} has an unknown dtype")
            chunks = []
            for chunk in entry["chunks"]:
                if Path(chunk["file"]).name != chunk["file"]:
                    raise ValueError(f"{self.path}: {name} lies outside the folder")
                offsets, sizes = torch.Size(chunk["offsets"]), torch.Size(chunk["sizes"])
                first, length = chunk["position"], chunk["length"]
                claimed += length
                fits = 0 <= first <= first + length <= sizes_of[chunk["file"]]
                if not fits or min(sizes, default=0) < 0 or math.prod(sizes) * dtype.itemsize > length:
                    raise ValueError(f"{self.path}: {name} is larger than its file")
                chunks.append(ChunkStorageMetadata(offsets, sizes))
                places[MetadataIndex(name, offsets)] = SimpleNamespace(
                    relative_path=chunk["file"],
                    offset=chunk["position"],
                    length=chunk["length"],
                    transform_descriptors=None,
                )
            size = torch.Size(entry["size"])
            if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(size):
                raise ValueError(f"{self.path}: pieces of {name} are missing")
            entries[name] = TensorStorageMetadata(TensorProperties(dtype), size, chunks)
        if claimed > sum(sizes_of.values()):
            raise ValueError(f"{self.path}: the tensors are larger than the files")
        return Metadata(entries, storage_data=places, storage_meta=StorageMeta())

    def read_data(self, plan, planner):
        """Check the CRC-32 of each piece that this rank needs (torch.save wrote it), then read them."""
        for item in plan.items:
            place = self.storage_data[item.storage_index]
            with open(Path(self.path) / place.relative_path, "rb") as file:
                file.seek(place.offset)
                check_zip(io.BytesIO(file.read(place.length)))
        return super().read_data(plan, planner)
