"""Checkpoints of large models: every process writes its part, in the background, into one folder.

    out-mine/ckpt_000500/run.json       what is no tensor: settings, tokenizer, step, ...
                         __0_0.distcp   what rank 0 holds, __1_0.distcp what rank 1 holds, ...
                         tensors.json   which part of which tensor is where; written last

A folder with tensors.json is whole. torch.distributed.checkpoint does the work: it copies the tensors, writes
while training goes on, leaves out what other ranks write, too, and reads the parts of one division into the
parts of another. Its own table of contents is a pickle, which could run code when it is read; ours is JSON.
Imported only where a run asks for it: torch.distributed.checkpoint takes a second.
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
from runtime.trust import check_zip, or_one_line, read_json, write_json


class Shards:
    """Writes a run's checkpoints, one after the other. Whatever kills a save, the folders before it stay."""

    def __init__(self, folder: Path, keep: int, main: bool):
        """keep: how many ckpt_* to keep (best_*: one). main: true on rank 0. All ranks make one together."""
        self.folder, self.keep, self.main, self.pending = folder, keep, main, None
        if not dist.is_initialized():
            join("gloo", timeout=600)
        # The background has a group of its own: its messages must not meet those of the training.
        self.group = dist.new_group(backend="gloo")

    def save(self, stem: str, plain: dict, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
        """Begin to write stem_STEP/; returns a line that says how long training stood still for it.

        stem: ckpt | best. plain: what is no tensor. All ranks call this together.
        """
        started = time.perf_counter()
        self.wait()
        name = f"{stem}_{plain['step']:06}"
        taken = len(list(self.folder.glob(f"{name}*")))  # by an older run, or by a save that was killed
        self.path = path = self.folder / all_gather(f"{name}_{taken}" if taken else name)[0]
        if self.main:
            groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
            with self.or_no_folder():
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
        """Until the last save is on the disk; then the oldest folders go."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        with self.or_no_folder():
            try:
                pending.result()
            except CheckpointException as error:  # of all ranks
                raise next(iter(error.failures.values()))[0] from None
        for stem, keep in (("ckpt", self.keep), ("best", 1)):
            for path in complete_folders(self.folder, stem)[:-keep] if self.main else ():
                (path / "tensors.json").unlink()  # first: from here on the folder is no checkpoint
                shutil.rmtree(path)

    @contextlib.contextmanager
    def or_no_folder(self):
        """ValueError in place of what a full disk raises; what there is of the folder then goes."""
        try:
            with or_one_line(self.path):
                yield
        except ValueError:
            shutil.rmtree(self.path, ignore_errors=True)
            raise


def complete_folders(folder: Path, stem: str) -> list[Path]:
    """The folders stem_*/ that are whole, the oldest first."""
    tables = folder.glob(f"{stem}_*/tensors.json")
    return [path.parent for path in sorted(tables, key=lambda path: path.stat().st_mtime_ns)]


def tensors_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """All tensors of a run that this rank holds, by name. A part is a DTensor, which knows its place."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    for name, state in named_state(optimizer).items():
        tensors |= {f"optimizer.{name}/{average}": t for average, t in state.items()}
    return tensors


def load_shards(saved: dict, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill a model and its optimizer from the folder that checkpoint.load(..., shards=True) has named.

    Each rank reads what it holds, whatever strategy and number of processes wrote it. Errors of torch for
    damaged files, on all ranks.
    """
    for state in named_state(optimizer).values():
        state.clear()  # half of it may have come from a folder that turned out to be damaged
    init_state(optimizer)
    reader = Reader(saved["shards"])
    there = reader.read_metadata().state_dict_metadata  # (none of averages before the first update, once)
    tensors = tensors_of(model, optimizer)
    read_all({key: t for key, t in tensors.items() if key in there}, reader)


def read_all(tensors: dict[str, torch.Tensor], reader: "Reader", **how) -> None:
    """dcp.load, whose own exception is no Exception: OSError instead, on all ranks if one meets damage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says so if one process reads
        try:
            dcp.load(tensors, storage_reader=reader, **how)
        except CheckpointException:
            raise OSError(f"{reader.path} is damaged") from None


def shapes_of(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a folder by name, on the meta device: their shapes alone."""
    entries = Reader(path).read_metadata().state_dict_metadata
    return {
        name.removeprefix("model."): torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in entries.items()
        if name.startswith("model.")
    }


def read_shards(path: Path, groups: list[dict]) -> dict:
    """The tensors of a folder as an ordinary checkpoint has them: {"model": ..., "optimizer": ...}.

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
            name, _, average = name.partition("/")
            state[names.index(name)][average] = t
    numbers = iter(state)
    groups = [{**group, "params": [next(numbers) for _ in group["param_names"]]} for group in groups]
    return {"model": weights, "optimizer": {"state": state, "param_groups": groups}}


class Writer(dcp.FileSystemWriter):
    """As torch's, but for the table of contents."""

    def finish(self, metadata: Metadata, results: list) -> None:
        """Called on one rank, when all have written and synced their files."""
        table: dict[str, dict] = {}
        for index, place in ((each.index, each.storage_data) for result in results for each in result):
            entry = metadata.state_dict_metadata[index.fqn]
            sizes = next(chunk.sizes for chunk in entry.chunks if chunk.offsets == index.offset)
            about = dict(dtype=str(entry.properties.dtype).removeprefix("torch."), size=list(entry.size))
            table.setdefault(index.fqn, {**about, "chunks": []})["chunks"].append(
                dict(
                    offsets=list(index.offset),  # where in the whole tensor this part begins
                    sizes=list(sizes),
                    file=place.relative_path,
                    position=place.offset,  # in bytes
                    length=place.length,
                )
            )
        write_json(Path(self.path) / "tensors.json", table)


class Reader(dcp.FileSystemReader):
    """As torch's, but for the table of contents."""

    @functools.cache  # noqa: B019 (one reader reads one folder once)
    def read_metadata(self, *args, **kwargs) -> Metadata:
        """ValueError for a table that cannot be true."""
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
                    raise ValueError(f"{self.path}: {name} lies outside of the folder")
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
                raise ValueError(f"{self.path}: parts of {name} are missing")
            entries[name] = TensorStorageMetadata(TensorProperties(dtype), size, chunks)
        if claimed > sum(sizes_of.values()):
            raise ValueError(f"{self.path}: the tensors are larger than the files")
        return Metadata(entries, storage_data=places, storage_meta=StorageMeta())

    def read_data(self, plan, planner):
        """First the CRC-32 of each part that this rank reads: it was written by torch.save (trust.py)."""
        for item in plan.items:
            place = self.storage_data[item.storage_index]
            with open(Path(self.path) / place.relative_path, "rb") as file:
                file.seek(place.offset)
                check_zip(io.BytesIO(file.read(place.length)))
        return super().read_data(plan, planner)
