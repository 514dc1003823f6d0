"""Text to token files on disk, token files to batches: a batch is a pure function of (seed, split, step).

    python data.py --input=my.txt --name=mine --tokenizer=bpe --vocab_size=2048
    python data.py --input=rows.jsonl --name=chat --format=jsonl --tokenizer=out-base
    python data.py --name=verse                        a known dataset; train.py prepares these by itself
    torchrun --standalone --nproc_per_node=4 data.py --input=web --name=web --shard_mb=100      in parallel

Makes datasets/NAME/: {train,val,test}.bin (ids, one after the other), *_mask.bin (1: learned, 0: context;
only if some text is not learned), tokenizer.json and meta.json. With shard_mb: train_000.bin, ... instead.
"""

import atexit
import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from config import given, override
from machine.distributed import start
from runtime.trust import read_meta
from text.corpora import open_corpus
from text.formats import Source
from text.prepare import KNOWN, folder_of, prepare
from text.token_files import SPLITS, TokenFiles, encode, packed

# -----------------------------------------------------------------------------
input = ""  # a file, a folder (.txt .md .py .jsonl) or a source: shakespeare | verse | python | sums
name = ""  # the dataset's name: it is written to datasets/NAME
tokenizer = "char"  # char | bpe | gpt2 | PATH of a tokenizer.json, a dataset or a run
vocab_size = 0  # bpe: how many tokens; 0 = 1024
format = "text"  # text | lines (each is a sample) | jsonl (rows: text, prompt and response, or messages)
val_ratio = 0.1  # share for validation: text behind the training text, or samples drawn by seed
test_ratio = 0.0  # share for testing, behind validation
val_input = ""  # a file or source for validation, instead of val_ratio
seed = 1337  # draws samples and generates text
dedup = False  # drop samples, or lines of a text, that were there before
clean = False  # drop control characters, runs of blanks, and lines or samples shorter than 3 characters
skip_bad = False  # jsonl: count bad rows and go on
threads = 0  # that encode byte pairs; 0 = one per core, 16 at most
shard_mb = 0.0  # a new token file after so many million characters of a split: train_000.bin; 0 = one file
# -----------------------------------------------------------------------------


class Windows:
    """One split as windows of block_size tokens; a batch is a pure function of (seed, split, step).

    Text: ceil(targets / block_size) windows, cut at a random offset in each epoch. A window that would stick
    out at either end is moved inward and scores only its own targets (y = -1 elsewhere): an epoch scores each
    target once. Masked samples: packed whole into rows of block_size + 1 ids, filled up with end tokens that
    are not scored; a sample sees those before it in its row, as text does. pack=False: one sample a row (if
    masked or not), like lengths together, batches as wide as their longest. A sample's first id is context;
    samples longer than block_size + 1 are left out and counted in n_dropped.

    Memory: the files that a batch needs are mapped anew for each batch (30 microseconds). Pages once read
    count as memory of the process while the mapping lives: in a long run, one mapping grows to the file's
    size (nanoGPT #287). The order of the windows takes 8 bytes a window and epoch, of which two are kept (10
    billion tokens at block_size 1024: 80 MB each).
    """

    def __init__(self, name: str | Path, split: str, block_size: int, seed: int = 1337, pack: bool = True):
        folder = folder_of(name)
        meta = read_meta(folder, whole=False)
        what = f"the {split} split of {meta['name']}"
        if split not in SPLITS:
            raise ValueError(f"split={split} is unknown; expected train, val or test")
        if split not in meta["splits"]:
            raise ValueError(f"there is no such thing as {what}; prepare it with --{split}_ratio=0.1")
        if not pack and meta["format"] == "text":
            raise ValueError(f"pack=False is for --format=lines or jsonl, and {what} is text; use pack=True")
        self.path = folder / f"{split}.bin"  # in shards, it stands for all of them
        self.dtype, self.masked, self.end_id = np.dtype(meta["dtype"]), meta["masked"], meta["end_id"]
        self.block_size, self.seed, self.pack = block_size, seed, pack
        counts = meta["splits"][split]
        self.tokens = TokenFiles(folder, split, counts, self.dtype, meta.get("vocab_size", 2**32))
        self.n_tokens, self.n_dropped = counts["tokens"], 0
        self.masks = TokenFiles(folder, f"{split}_mask", counts, np.uint8) if self.masked else None
        self.in_rows = self.masked or not pack
        self._epochs: dict[int, tuple[np.ndarray, int]] = {}  # epoch -> (order of the windows, offset)
        if self.in_rows:
            self._make_rows(what)
        elif self.n_tokens < block_size + 1:
            raise ValueError(
                f"{what} has {self.n_tokens} tokens, block_size={block_size} needs {block_size + 1}; "
                f"use --block_size={max(1, self.n_tokens - 1)} or less, or prepare more text"
            )
        else:
            self.n_windows = -(-(self.n_tokens - 1) // block_size)

    def _make_rows(self, what: str) -> None:
        """Find the samples by the end tokens that close them; pack them into rows of block_size + 1 ids."""
        starts, lengths = self.tokens.samples(self.end_id)
        room = self.block_size + 1
        fits = lengths <= room
        if not fits.any():
            n = lengths.min() - 1
            raise ValueError(f"{what}: no sample fits into a window; use --block_size={n} or more")
        self.n_dropped = int((~fits).sum())
        self.starts, self.lengths = starts[fits], lengths[fits]
        rows = packed(self.lengths, room) if self.pack else np.arange(len(self.starts))
        self.order = np.argsort(rows, kind="stable")  # samples row by row; those of row i begin at bounds[i]
        self.bounds = np.searchsorted(rows[self.order], np.arange(rows.max() + 2))
        self.n_windows = len(self.bounds) - 1
        self.filled = self.lengths.sum() / (self.n_windows * room)

    def batch(self, step: int, batch_size: int, micro_step=0, n_micro_steps=1, rank=0, world_size=1):
        """x, y: (B, T) int64; y is x one token later, -1 where nothing is scored.

        A step reads the next n_micro_steps x world_size x batch_size windows of an endless series of epochs,
        and (micro_step, rank) its slice of them: the same windows however the work is divided.
        """
        first = ((step * n_micro_steps + micro_step) * world_size + rank) * batch_size
        windows, offsets = [], []
        for i in range(first, first + batch_size):
            order, offset = self._epoch(i // self.n_windows)
            windows.append(order[i % self.n_windows])
            offsets.append(offset)
        return self._read(np.array(windows), np.array(offsets))

    def window_batch(self, indices) -> tuple[torch.Tensor, torch.Tensor]:
        """x, y of the windows with these numbers, at offset 0: always the same, for evaluation."""
        return self._read(np.asarray(indices), np.zeros(len(indices), dtype=np.int64))

    def _epoch(self, epoch: int) -> tuple[np.ndarray, int]:
        if epoch not in self._epochs:
            rng = np.random.default_rng([self.seed, epoch])
            order = rng.permutation(self.n_windows)
            spare = 0 if self.in_rows else self.n_windows * self.block_size - (self.n_tokens - 1)
            if not self.pack:  # runs of 32 rows of like length, in random order
                order = order[np.argsort(self.lengths[order], kind="stable")]
                runs = np.array_split(order, -(-len(order) // 32))
                order = np.concatenate([runs[i] for i in rng.permutation(len(runs))])
            self._epochs = {k: self._epochs[k] for k in self._epochs if k == epoch - 1}
            self._epochs[epoch] = order, int(rng.integers(spare + 1))
        return self._epochs[epoch]

    def _read(self, windows: np.ndarray, offsets: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """x, y of windows (B,), each with the offset of its epoch (B,)."""
        if not self.in_rows:
            first = windows * self.block_size - offsets + 1  # (B,) place of a window's first target
            first = first[:, None]  # (B, 1)
            start = np.clip(first - 1, 0, self.n_tokens - 1 - self.block_size)
            places = start + np.arange(self.block_size + 1)  # (B, T + 1)
            ids = self.tokens[places].astype(np.int64)
            scored = (first <= places) & (places < first + self.block_size)
        else:
            rows = [self.order[self.bounds[i] : self.bounds[i + 1]] for i in windows]
            width = self.block_size + 1 if self.pack else max(self.lengths[row[0]] for row in rows)
            places = np.full((len(rows), width), -1)  # (B, T + 1), -1: no token
            scored = np.zeros(places.shape, dtype=bool)
            for b, row in enumerate(rows):
                at = 0
                for start, n in zip(self.starts[row].tolist(), self.lengths[row].tolist(), strict=True):
                    places[b, at : at + n] = np.arange(start, start + n)
                    scored[b, at + 1 : at + n] = True
                    at += n
            filled = places >= 0
            ids = np.full(places.shape, self.end_id, dtype=np.int64)
            ids[filled] = self.tokens[places[filled]]
            if self.masked:
                scored[filled] &= self.masks[places[filled]].astype(bool)
        y = np.where(scored, ids, -1)[:, 1:]  # (B, T)
        return torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(y.copy())


def windows_of_text(source: str, tokenizer, block_size: int) -> Windows:
    """A whole file (.jsonl: rows with masks) or source as windows, in a temporary folder removed at exit."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    corpus = open_corpus(source)
    format = "jsonl" if str(source).endswith(".jsonl") else "text"
    parts = (("test", segments, ends) for segments, ends in Source(corpus, format))
    end = format == "jsonl" or (corpus.many and tokenizer.end_id >= 0)
    meta = encode(parts, tokenizer, folder, end, masks=format == "jsonl")
    meta.update(name=corpus.name, format=format)
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return Windows(folder, "test", block_size)


if __name__ == "__main__":
    config = override(globals())
    source = config.pop("input")
    if not source:
        if name not in KNOWN:
            raise ValueError(f"--input is empty; expected a file, a folder, or --name={' | '.join(KNOWN)}")
        config.update({key: value for key, value in KNOWN[name].items() if key not in given})
        source = config.pop("source")
    rank, world_size, *_ = start("cpu", timeout=7 * 86400)  # to train byte pairs can take longer than 600 s
    if prepare(source=source, rank=rank, world_size=world_size, **config)["masked"] and rank == 0:
        for block_size in (64, 128, 256, 512, 1024):
            with contextlib.suppress(ValueError):  # every sample is longer
                w = Windows(name, "train", block_size)
                print(f"  rows of {block_size}: {w.filled:.1%} full, {w.n_dropped} samples too long")
