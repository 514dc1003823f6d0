"""The head of a GGUF file: metadata, and the table that says where each tensor lies.

    "GGUF", version, number of tensors, number of values
    the metadata: key, type, value; values are numbers, texts, and lists of either
    the table:    name, dimensions (fastest first), type, offset of the first byte
    the tensors, each at a multiple of general.alignment

All little endian; versions 2 and 3 are laid out the same (github.com/ggml-org/ggml: docs/gguf.md).

A stranger may have made the file. Nothing is allocated because a header says so: each count and length is
compared with the bytes that are there, each tensor with the end of the file and with its neighbours.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import require
from techniques.exchange.gguf_blocks import REFUSED, TYPES

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9  # the other two types of metadata
LONGEST = 2**26  # bytes of a header; a vocabulary of 262,144 with its merges takes 10 MB
ALIGNMENT = 32


@dataclass
class Entry:
    """Where a tensor lies: its type (see TYPES), its shape as torch has it, first byte, number of bytes."""

    kind: int
    shape: tuple[int, ...]
    start: int
    size: int


class Header:
    """The head of a file, taken from front to back. ValueError where it promises more than the file has."""

    def __init__(self, data: np.ndarray, path: Path):
        self.data, self.at, self.bad = memoryview(data[:LONGEST]), 0, f"{path} is damaged"

    def take(self, count: int, size: int = 1) -> memoryview:
        """The next count * size bytes."""
        enough = count * size <= len(self.data) - self.at
        require(enough, f"{self.bad}: its header promises more than the file has; get it again")
        self.at += count * size
        return self.data[self.at - count * size : self.at]

    def number(self, code: str) -> int:
        """The next number; code: struct's letter for its type."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        """The next text: its length, then UTF-8."""
        content = bytes(self.take(self.number("Q")))
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{self.bad}: {content[:20]} is no UTF-8; get it again") from None

    def name(self, before: dict) -> str:
        """The next text, as a name: printable, short enough to be shown, and not one of those before."""
        name = self.text()
        require(
            name.isprintable() and 0 < len(name) < 256, f"{self.bad}: {name[:20]!r} is no name; get it again"
        )
        require(name not in before, f"{self.bad}: it has {name} twice; get it again")
        return name

    def value(self, kind: int):
        """The next value of the metadata: a number, a bool, a text, or a list of those."""
        if kind == TEXT:
            return self.text()
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        require(kind == LIST, f"{self.bad}: its metadata has a value of type {kind}; get it again")
        inner, count = self.number("I"), self.number("Q")
        if inner == TEXT:
            enough = 8 * count <= len(self.data)  # each has a length
            require(enough, f"{self.bad}: {count:,} texts do not fit into it; get it again")
            return [self.text() for _ in range(count)]
        require(inner in SCALARS, f"{self.bad}: its metadata has a list of type {inner}; get it again")
        values = self.take(count, struct.calcsize("<" + SCALARS[inner]))
        return list(struct.unpack(f"<{count}{SCALARS[inner]}", values))


def open_file(path: Path) -> tuple[dict, dict[str, Entry], np.ndarray]:
    """Read a file's metadata and table of tensors, and map its bytes: (metadata, {name: entry}, bytes).

    ValueError for what is no GGUF, for a table that cannot be true, and for types that are not in TYPES.
    Nothing is allocated that the file does not hold.
    """
    with open(path, "rb") as file:
        start = file.read(24)
    require(start[:4] == b"GGUF" and len(start) == 24, f"{path} is no GGUF file; it begins with {start[:4]}")
    data = np.memmap(path, np.uint8, mode="r")
    header = Header(data, path)
    header.take(4)
    version = header.number("I")
    require(version in (2, 3), f"{path} is GGUF version {version}, or big endian; expected version 2 or 3")
    n_tensors, n_values = header.number("Q"), header.number("Q")
    metadata, entries = {}, {}
    for _ in range(n_values):
        key = header.name(metadata)
        metadata[key] = header.value(header.number("I"))
    for _ in range(n_tensors):
        name = header.name(entries)
        n_dims = header.number("I")
        require(1 <= n_dims <= 4, f"{header.bad}: {name} has {n_dims} dimensions; expected 1 to 4")
        shape = tuple(header.number("Q") for _ in range(n_dims))[::-1]  # the file has the fastest first
        entries[name] = Entry(header.number("I"), shape, header.number("Q"), 0)
    alignment = metadata.get("general.alignment", ALIGNMENT)
    power = type(alignment) is int and 0 < alignment < 2**20 and alignment & (alignment - 1) == 0
    require(
        power, f"{header.bad}: general.alignment={str(alignment)[:40]}; expected a power of 2, such as 32"
    )
    place(entries, path, -(-header.at // alignment) * alignment, alignment, len(data))
    return metadata, entries, data


def place(entries: dict[str, Entry], path: Path, first: int, alignment: int, length: int) -> None:
    """Turn a table's offsets into places in the file. ValueError unless the tensors lie there, one by one."""
    bad = f"{path} is damaged"
    for name, entry in entries.items():
        if entry.kind not in TYPES:
            raise ValueError(
                f"{path}: {name} is stored as {REFUSED.get(entry.kind, f'type {entry.kind}')}; read are "
                f"{', '.join(kind for kind, _, _ in TYPES.values())}. Get such a file of this model, or "
                "convert this one: llama-quantize --allow-requantize OLD.gguf NEW.gguf Q8_0"
            )
        kind, block, size = TYPES[entry.kind]
        whole = math.prod(entry.shape) > 0 and entry.shape[-1] % block == 0
        require(whole, f"{bad}: {name} has the shape {entry.shape}, which {kind} cannot have")
        require(entry.start % alignment == 0, f"{bad}: {name} is at no multiple of {alignment} bytes")
        entry.start += first
        entry.size = math.prod(entry.shape) // block * size
        inside = entry.start + entry.size <= length
        require(inside, f"{bad} or cut off: {name} ends after its {length:,} bytes; get it again")
    end, before = 0, ""
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        require(entry.start >= end, f"{bad}: {before} and {name} overlap; get it again")
        end, before = entry.start + entry.size, name


def header_bytes(metadata: dict, entries: dict[str, Entry]) -> bytes:
    """The head of a file of version 3, up to where the tensors begin. Entry.start: counted from there."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(entries), len(metadata))]
    for key, value in metadata.items():
        kind, content = typed_bytes(value)
        parts += [text_bytes(key), struct.pack("<I", kind), content]
    for name, entry in entries.items():
        n = len(entry.shape)
        row = struct.pack(f"<I{n}QIQ", n, *reversed(entry.shape), entry.kind, entry.start)
        parts += [text_bytes(name), row]
    content = b"".join(parts)
    return content + bytes(-len(content) % ALIGNMENT)


def text_bytes(text: str) -> bytes:
    """A text as the file has it: its length in bytes, then UTF-8."""
    content = text.encode("utf-8")
    return struct.pack("<Q", len(content)) + content


def typed_bytes(value) -> tuple[int, bytes]:
    """(type, bytes) of a value: a bool, an int of 32 bits, a float (float32), a text, or a list of those."""
    if isinstance(value, list):
        like = (
            max(value, key=lambda item: isinstance(item, float)) if value else ""
        )  # a float, if one is there
        kind = 5 if type(like) is int else typed_bytes(like)[0]  # llama.cpp reads lists of int32
        if kind == TEXT:
            content = b"".join(map(text_bytes, value))
        else:
            content = struct.pack(f"<{len(value)}{SCALARS[kind]}", *value)
        return LIST, struct.pack("<IQ", kind, len(value)) + content
    if isinstance(value, str):
        return TEXT, text_bytes(value)
    kind = 7 if isinstance(value, bool) else 6 if isinstance(value, float) else 4 if value >= 0 else 5
    return kind, struct.pack("<" + SCALARS[kind], value)
