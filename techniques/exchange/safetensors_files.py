"""Reads and writes safetensors, Hugging Face's format of weights: a header in JSON, then the plain numbers.

    8 bytes   length of the header, little-endian
    header    {"model.norm.weight": {"dtype": "BF16", "shape": [576], "data_offsets": [0, 1152]}, ...}
    data      each tensor in row-major order, without gaps; offsets count from the first byte here

A header can lie, so all of it is checked against the file's size before a tensor is read. A tensor is read
when it is asked for: no copy of the file comes into memory. (github.com/huggingface/safetensors.)
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from config import require
from runtime.guard import atomic_file

# dtype in the header: bytes of a number, and torch's type where weights can have it
DTYPES = {
    "F64": (8, torch.float64), "F32": (4, torch.float32), "F16": (2, torch.float16),
    "BF16": (2, torch.bfloat16), "F8_E4M3": (1, None), "F8_E5M2": (1, None), "BOOL": (1, None),
    "I8": (1, None), "U8": (1, None), "I16": (2, None), "U16": (2, None), "I32": (4, None),
    "U32": (4, None), "I64": (8, None), "U64": (8, None),
}  # fmt: skip
WRITTEN = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
INDEX = "model.safetensors.index.json"


class Entry(NamedTuple):
    """A tensor in a file. start: its first byte, counted from the beginning of the file; size in bytes."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class Tensors(Mapping):
    """The tensors of one or several files, each read when it is asked for. shape(name) reads nothing."""

    def __init__(self, entries: dict[str, Entry]):
        self.entries = entries

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        dtype = DTYPES[entry.dtype][1]
        known = "F32, F16, BF16 and F64"
        require(dtype is not None, f"{entry.path}: {name} is {entry.dtype}; read are {known}")
        content = torch.empty(entry.shape, dtype=dtype)
        if entry.size:
            with open(entry.path, "rb") as file:
                file.seek(entry.start)
                read = file.readinto(content.view(-1).view(torch.uint8).numpy())
            require(read == entry.size, f"{entry.path} has become shorter while it was read")
        return content

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.entries[name].shape


def parse_json(text: bytes, where: str) -> dict:
    """A JSON object in which no key occurs twice. ValueError of one line for anything else."""

    def unique(pairs: list[tuple]) -> dict:
        found = dict(pairs)
        require(len(found) == len(pairs), "a key occurs twice")
        return found

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise ValueError(f"{where} is damaged: {reason[:80]}; download it again") from None
    require(isinstance(value, dict), f"{where} is damaged: no table of names; download it again")
    return value


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors that a file holds. ValueError unless their bytes fill the file without gap or overlap."""
    file_size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        fits = length <= min(file_size - 8, LONGEST_HEADER)
        require(fits, f"{path} is damaged: a header of {length:,} bytes in a file of {file_size:,}")
        header = parse_json(file.read(length), f"{path}, header")
    header.pop("__metadata__", None)
    found = {}
    for name, value in header.items():
        where = f"{path} is damaged: {name[:80]!r}"
        table = isinstance(value, dict) and value.keys() == {"dtype", "shape", "data_offsets"}
        require(table, f"{where} has no dtype, shape and data_offsets")
        dtype, shape, offsets = (value[key] for key in ("dtype", "shape", "data_offsets"))
        require(isinstance(dtype, str) and dtype in DTYPES, f"{where} is of an unknown type {dtype!r:.40}")
        whole = all(
            isinstance(n, list) and all(type(i) is int and i >= 0 for i in n) for n in (shape, offsets)
        )
        require(whole and len(offsets) == 2, f"{where}: its shape and offsets are no whole numbers from 0 on")
        require(len(shape) <= 8, f"{where} has more than 8 dimensions")
        start, end = offsets
        size = math.prod(shape) * DTYPES[dtype][0]
        fits = start <= end <= file_size - 8 - length
        require(fits, f"{where} ends at byte {end:,} of {file_size - 8 - length:,}; the file is cut off")
        require(size == end - start, f"{where} of shape {shape} takes {size:,} bytes, not {end - start:,}")
        found[name] = Entry(path, dtype, tuple(shape), 8 + length + start, size)
    at = 8 + length
    for name, entry in sorted(found.items(), key=lambda item: (item[1].start, item[1].size)):
        require(entry.start == at, f"{path} is damaged: before {name[:80]!r} there is a gap, or an overlap")
        at += entry.size
    require(at == file_size, f"{path} is damaged: {file_size - at:,} bytes belong to no tensor")
    return found


def read_folder(folder: Path) -> Tensors:
    """The tensors of model.safetensors, or of the files that model.safetensors.index.json names.

    ValueError if there is neither, or if the index names files of other folders, or tensors that no file has.
    """
    if not (folder / INDEX).is_file():
        single = folder / "model.safetensors"
        if not single.is_file():
            pickles = [path.name for path in folder.glob("*.bin")]
            why = f"{pickles[0]} is a pickle, which may run code" if pickles else "it is not there"
            raise ValueError(
                f"{folder}: model.safetensors is what is read, and {why}; get the model in that format"
            )
        return Tensors(read_header(single))
    places = parse_json((folder / INDEX).read_bytes(), str(folder / INDEX)).get("weight_map")
    require(isinstance(places, dict), f"{folder / INDEX} has no weight_map; download it again")
    entries = {}
    for file in sorted({str(file) for file in places.values()}):
        plain = Path(file).name == file and "\\" not in file and file.endswith(".safetensors")
        require(plain, f"{folder / INDEX} names {file[:80]!r}; expected a .safetensors file of that folder")
        require((folder / file).is_file(), f"{folder / file} is missing; download it")
        header = read_header(folder / file)
        twice = sorted(header.keys() & entries.keys())
        require(not twice, f"{folder}: {twice[:1]} is in two files; download the model again")
        entries |= header
    differ = sorted(entries.keys() ^ places.keys())
    require(
        not differ, f"{folder / INDEX} and the files differ: {differ[:1]} is in one only; download it again"
    )
    return Tensors(entries)


def write(
    path: Path, tensors: Iterable[tuple[str, tuple[int, ...], Callable[[], Tensor]]], dtype: str = "float32"
) -> None:
    """Write tensors (name, shape, function that makes it); the file is complete, or not there.

    Each is made, written and dropped. dtype: of all, one of WRITTEN.
    """
    require(
        dtype in WRITTEN, f"safetensors is not written with dtype={dtype}; choose one of {', '.join(WRITTEN)}"
    )
    tensors, header, end = list(tensors), {"__metadata__": {"format": "pt"}}, 0
    width, kind = DTYPES[WRITTEN[dtype]]
    for name, shape, _ in tensors:
        start, end = end, end + math.prod(shape) * width
        header[name] = {"dtype": WRITTEN[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, make in tensors:
            file.write(make().detach().to(kind).contiguous().view(-1).view(torch.uint8).numpy().data)
