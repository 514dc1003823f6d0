"""Reads and writes GGUF, the one-file format of llama.cpp and ollama: metadata, vocabulary and weights.

    config, tensors = gguf.read("model.gguf")   # with Hugging Face's keys and names

The file is mapped into memory and a tensor is made when it is asked for: the 98 MB of SmolLM2-135M never
become 540 MB of float32 here. Beside this file: gguf_header.py has the layout, gguf_blocks.py quantized
numbers, gguf_config.py the meaning of the metadata, and gguf_names.py the names of the tensors.
(github.com/ggml-org/ggml/blob/master/docs/gguf.md.)
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from config import require
from runtime.guard import atomic_file
from techniques.exchange import gguf_config, gguf_names
from techniques.exchange.gguf_blocks import TYPES, dequantize, quantize
from techniques.exchange.gguf_header import ALIGNMENT, Entry, header_bytes, open_file

WRITTEN = {
    "float32": 0,
    "float16": 1,
    "bfloat16": 30,
    "q8_0": 8,
    "q4_1": 3,
}  # --dtype: of matrices, see TYPES
FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32, "q8_0": 7, "q4_1": 3}  # llama.h's, for whole files


class Tensors(Mapping):
    """The tensors of a file under Hugging Face's names, each made when it is asked for: tensors[name].

    shape(name) makes nothing. A tensor is float16 or bfloat16 where the file's is, else float32.
    """

    def __init__(self, path: Path, data: np.ndarray, entries: dict[str, Entry], config: dict):
        self.path, self.data, self.entries, self.config = path, data, entries, config

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        content = self.data[entry.start : entry.start + entry.size]
        t = dequantize(content, TYPES[entry.kind][0], entry.shape, f"{self.path}: {name}")
        return gguf_names.from_gguf(t, name, self.config)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, in Hugging Face's order."""
        shape = self.entries[name].shape
        return shape[::-1] if gguf_names.is_transposed(name) else shape


def read(path: Path | str) -> tuple[dict, Tensors]:
    """Open a model: (config, tensors), both with Hugging Face's names; config["tokenizer"]: the vocabulary's.

    ValueError for a damaged file, an architecture or a type that is not read, or a tensor that has no place.
    """
    path = Path(path)
    metadata, entries, data = open_file(path)
    config = gguf_config.config_of(metadata, entries, path)
    if "rope_freqs.weight" in entries:  # no parameter, but the scaling of Llama 3.1
        entry = entries.pop("rope_freqs.weight")
        content = data[entry.start : entry.start + entry.size]
        factors = dequantize(content, TYPES[entry.kind][0], entry.shape, f"{path}: rope_freqs.weight")
        original = metadata.get("llama.rope.scaling.original_context_length", 8192)
        config["rope_scaling"] = gguf_config.scaling_of(factors, config, original, path)
    renamed = {gguf_names.to_hugging_face(name, config, path): entry for name, entry in entries.items()}
    config["tokenizer"] = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    return config, Tensors(path, data, renamed, config)


def write(
    path: Path | str,
    config: dict,
    tensors: Iterable[tuple[str, tuple[int, ...], Tensor | Callable[[], Tensor]]],
    tokenizer: dict,
    dtype: str = "float16",
) -> None:
    """Write a model that llama.cpp and ollama open; the file is complete, or not there.

    config: Hugging Face's keys. tensors: (Hugging Face's name, shape, tensor or a function that makes it);
    each is made, written and dropped. tokenizer: metadata, as read() gives it. dtype: a name in WRITTEN.
    As with llama.cpp's own tools, norms, biases and learned positions stay float32, embedding and head get 8
    bits where others get 4, and a matrix whose rows are no whole blocks becomes float16. ValueError for what
    a GGUF file cannot express.
    """
    require(dtype in WRITTEN, f"GGUF is not written with dtype={dtype}; choose one of {', '.join(WRITTEN)}")
    sources, entries, start = {}, {}, 0
    for name, shape, source in (*tensors, *gguf_config.extra_tensors(config)):
        stored = tuple(shape[::-1] if gguf_names.is_transposed(name) else shape)
        new = gguf_names.to_gguf(name, config)
        kind = WRITTEN[dtype] if len(shape) == 2 and new != "position_embd.weight" else 0
        if dtype == "q4_1" and new in ("token_embd.weight", "output.weight"):
            kind = WRITTEN["q8_0"]
        if stored[-1] % TYPES[kind][1] != 0:
            kind = WRITTEN["float16"]
        _, block, size = TYPES[kind]
        sources[new] = name, source
        entries[new] = Entry(kind, stored, start, math.prod(stored) // block * size)
        start += -(-entries[new].size // ALIGNMENT) * ALIGNMENT
    metadata = gguf_config.metadata_of(config, entries, tokenizer)
    metadata |= {"general.file_type": FILE_TYPES[dtype], "general.quantization_version": 2, **tokenizer}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(header_bytes(metadata, entries))
        for new, entry in entries.items():
            name, source = sources[new]
            t = source() if callable(source) else source
            t = gguf_names.to_gguf_order(t.detach(), name, config)
            require(t.shape == entry.shape, f"{name} has the shape {tuple(t.shape)}; expected {entry.shape}")
            file.write(quantize(t, TYPES[entry.kind][0], name).data)
            file.write(bytes(-entry.size % ALIGNMENT))
