"""Token files to batches (Windows), and the command that makes a text into token files.

    python data.py --input=my.txt --name=mine --tokenizer=bpe --vocab_size=2048
    python data.py --input=rows.jsonl --name=chat --format=jsonl --tokenizer=out-base
    python data.py --name=verse                        a known dataset; train.py prepares it by itself
    python data.py --name=chat --show=5                look at what is learned of the first prepared rows
    torchrun --standalone --nproc_per_node=4 data.py --input=web --name=web --shard_mb=100      in parallel

The command makes datasets/NAME/ with {train,val,test}.bin (ids, one after the other), tokenizer.json and
meta.json; if the loss leaves out some tokens (prompts), also *_mask.bin (0: out). With shard_mb, train.bin
becomes train_000.bin, train_001.bin, ...
"""

import contextlib
import functools
import math
import shutil
import tempfile
from pathlib import Path

from config import at_end, at_least, end_script, given, override, require  # isort: skip
import numpy as np
import torch

import techniques
from machine.distributed import start
from machine.hardware import to_device
from runtime.trust import read_meta
from text.corpora import stand_in_notice, two_meanings
from text.for_evaluation import encode_text
from text.mixture import is_mixture
from text.prepare import KNOWN, folder_of, is_prepared, prepare
from text.replies import learned_in
from text.segments import LEARNED
from text.show import show as print_rows
from text.token_files import SPLITS, TokenFiles, packed

# -----------------------------------------------------------------------------
input = ""  # a file (also .gz .zip), a folder, or built-in: shakespeare verse python sums sums_easy sums_text
name = ""  # the dataset's name; its folder is datasets/NAME
tokenizer = "char"  # char | bpe | gpt2 | PATH of a tokenizer.json, a dataset or a run
vocab_size = 0  # bpe: how many tokens; 0 = 1024
add_tokens = ""  # byte pairs: more tokens, for a model that learns them: '<|user|>,<|tool|>'
format = ""  # '' jsonl for JSON rows, else text | text | lines: each a sample | jsonl: text, prompt, messages
val_ratio = 0.1  # share for validation: the text after the training text, or samples drawn by seed
test_ratio = 0.0  # share for testing: the text after that, or samples drawn by seed
val_input = ""  # a file or source for validation, in place of val_ratio
first = 0  # take only so many characters of the input: of rows and lines, those that are complete; 0 = all
seed = 1337  # for drawing samples and for generated text
dedup = False  # drop repeated samples, or repeated lines of a text
clean = False  # drop control characters, repeated blanks, and lines or samples shorter than 3 characters
near_dedup = 0.0  # drop samples, or paragraphs of a text, that are so similar to an earlier one: 0.8; 0 = off
quality = ""  # drop samples or paragraphs that break rules: gopher,c4, or some of those in text/quality.py
skip_bad = False  # jsonl: leave out bad rows and count them
threads = 0  # threads that encode byte pairs; 0 = one per core, 16 at most
shard_mb = 0.0  # million characters per token file (train_000.bin, ...); 0 = one file for each split
show = 0  # print so many rows (documents, samples) as they were prepared, with what is learned of them marked
# -----------------------------------------------------------------------------


class Windows:
    """One split as windows of block_size tokens. A batch is a pure function of (seed, split, step).

    Text is cut into ceil(targets / block_size) windows, at another random offset in each epoch. A window that
    would stick out at either end is moved inward and scores only its own targets (y = -1 elsewhere). So an
    epoch scores each target once.

    Masked samples are packed whole into rows of block_size + 1 ids. The rest of a row is filled with end
    tokens, which are not scored. A sample attends to those before it in its row, as in running text. Its
    first id is never a target. Samples longer than block_size + 1 are left out and counted in n_dropped.

    pack=False is for samples, masked or not: one sample per row. Batches hold samples of similar length and
    are as wide as their longest.

    Memory: each batch opens new memory maps of the files it needs (30 microseconds). While a map is open, all
    pages read through it count as memory of the process: one map would grow to the size of the file (nanoGPT
    #287). The order of the windows takes 8 bytes per window and epoch (10 billion tokens: 80 MB), twice.
    """

    def __init__(
        self, name: str | Path, split: str, block_size: int, seed=1337, pack=True, may_be_short=False
    ):
        """may_be_short: a text shorter than a window is one short window (evaluate.py), else a ValueError."""
        folder = folder_of(name)
        meta = read_meta(folder, complete=False)
        what = meta.get("shown", f"the {split} split of {meta['name']}")
        if split not in SPLITS:
            raise ValueError(f"split={split} is unknown; expected train, val or test")
        if split not in meta["splits"]:
            raise ValueError(f"{what} does not exist; prepare it with --{split}_ratio=0.1 (python data.py)")
        if not pack and meta["format"] == "text":
            raise ValueError(f"pack=False is for samples (data.py --format=lines, jsonl), but {what} is text")
        self.path = folder / f"{split}.bin"  # for messages; with shards, it stands for all of them
        self.dtype, self.masked, self.end_id = np.dtype(meta["dtype"]), meta["masked"], meta["end_id"]
        counts = meta["splits"][split]
        self.n_tokens, self.n_dropped = counts["tokens"], 0
        self.in_rows = self.masked or not pack  # windows are rows of whole samples, not stretches of text
        if may_be_short and not self.in_rows:
            block_size = max(1, min(block_size, self.n_tokens - 1))
        self.block_size, self.seed, self.pack = block_size, seed, pack
        self.notes: list[str] = []  # what windows_of_text has to say of the text
        self.on_device = None  # the ids, after keep_on()
        self.tokens = TokenFiles(folder, split, counts, self.dtype, meta.get("vocab_size", 2**32))
        self.masks = TokenFiles(folder, f"{split}_mask", counts, np.uint8) if self.masked else None
        self.epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)  # a batch may need two
        if self.in_rows:
            self._make_rows(what, may_be_short)
        elif may_be_short and self.n_tokens < 2:
            raise ValueError(f"{what} has {self.n_tokens} tokens: none follows another; give a longer text")
        elif self.n_tokens < block_size + 1:
            raise ValueError(
                f"{what} has {self.n_tokens} tokens, but block_size={block_size} needs {block_size + 1}; "
                f"use --block_size={max(1, self.n_tokens - 1)} or less, or prepare more text"
            )
        else:
            self.n_windows = -(-(self.n_tokens - 1) // block_size)  # rounded up

    def _make_rows(self, what: str, fixed: bool) -> None:
        """Find the samples, and pack them into rows of block_size + 1 ids (pack=False: one into each)."""
        starts, lengths = self.tokens.samples(self.end_id, self.masks)  # (n,), (n,)
        room = self.block_size + 1
        fits = lengths <= room
        if not fits.any():
            n = lengths.min() - 1
            remedy = (
                ", which is the model's; give shorter ones" if fixed else f"; use --block_size={n} or more"
            )
            raise ValueError(f"{what}: no sample fits into a window of {room} tokens{remedy}")
        self.n_dropped = int((~fits).sum())
        self.starts, self.lengths = starts[fits], lengths[fits]
        rows = packed(self.lengths, room) if self.pack else np.arange(len(self.starts))
        # The samples of row i are order[bounds[i] : bounds[i + 1]].
        self.order = np.argsort(rows, kind="stable")
        self.bounds = np.searchsorted(rows[self.order], np.arange(rows.max() + 2))
        self.n_windows = len(self.bounds) - 1
        self.filled = self.lengths.sum() / (self.n_windows * room)  # the share of the rows that holds samples

    def batch(self, step: int, batch_size: int, micro_step=0, n_micro_steps=1, rank=0, world_size=1):
        """The batch of a step: x, y (B, T) int64. y is x one token later, and -1 where nothing is scored.

        The windows of all epochs form one endless series. A step reads the next n_micro_steps x world_size x
        batch_size of them; (micro_step, rank) reads a slice. So a step sees the same windows however the work
        is divided.
        """
        first = ((step * n_micro_steps + micro_step) * world_size + rank) * batch_size
        return self.at(range(first, first + batch_size))

    def at(self, numbers) -> tuple[torch.Tensor, torch.Tensor]:
        """x, y as of batch(), of the windows with these numbers in the series. A technique may replace it."""
        windows, offsets = [], []
        for i in numbers:
            order, offset = self.epoch(i // self.n_windows)
            windows.append(order[i % self.n_windows])
            offsets.append(offset)
        read = self._read if self.on_device is None else self._gather
        return read(np.array(windows), np.array(offsets))

    def keep_on(self, device: torch.device, n_bytes: float) -> None:
        """Gather batches of text on a device from now on, if its ids fit into n_bytes there."""
        if self.in_rows or 4 * self.n_tokens > n_bytes:
            return
        self.on_device = torch.empty(self.n_tokens, dtype=torch.int32, device=device)
        for places in torch.arange(self.n_tokens).split(2**24):  # 64 MB of ids
            self.on_device[places] = torch.from_numpy(self.tokens[places.numpy()].astype(np.int32)).to(device)

    def _gather(self, windows: np.ndarray, offsets: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """As _read(), on the device that has the ids."""
        T, device = self.block_size, self.on_device.device
        first, start = self._begin(windows, offsets)
        n_targets = np.minimum(first, start + 1) + T - np.maximum(first, start + 1)  # of each window, (B, 1)
        first, start = to_device(torch.from_numpy(np.stack((first, start))), device)
        places = start + torch.arange(T + 1, device=device)  # (B, T + 1)
        ids = self.on_device[places].long()
        y = torch.where((first <= places) & (places < first + T), ids, -1)[:, 1:].contiguous()
        y.n_targets = int(n_targets.sum())
        return ids[:, :-1].contiguous(), y

    def window_batch(self, indices, offset=0) -> tuple[torch.Tensor, torch.Tensor]:
        """x, y (B, T) of the windows with these numbers, at one offset. For evaluation: always the same."""
        return self._read(np.asarray(indices), np.full(len(indices), offset, dtype=np.int64))

    def replies(self) -> list[tuple[list[int], list[int]]]:
        """(ids of a prompt, ids of what is learned next) for each learned stretch of each sample, in order.

        The second ends with the token that closes it. ValueError if nothing follows a context.
        """
        found = learned_in(self.tokens, self.masks, self.starts, self.lengths) if self.masked else []
        if not found:
            rows = "expected rows of prompt and response, or of messages"
            raise ValueError(f"{self.path} holds no replies: all of its text is learned; {rows}")
        return found

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, int]:
        """The order of an epoch's windows, (n_windows,), and the offset of its cuts."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.n_windows)
        if not self.pack:  # groups of 32 rows of similar length, in random order
            order = order[np.argsort(self.lengths[order], kind="stable")]
            groups = np.array_split(order, math.ceil(len(order) / 32))
            order = np.concatenate([groups[i] for i in rng.permutation(len(groups))])
        spare = 0  # how far the cuts can move
        if not self.in_rows:
            spare = self.n_windows * self.block_size - (self.n_tokens - 1)
        return order, int(rng.integers(spare + 1))

    def _read(self, windows: np.ndarray, offsets: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """x, y (B, T) int64 of windows (B,), each with the offset of its epoch (B,)."""
        ids, scored = self._read_rows(windows) if self.in_rows else self._read_text(windows, offsets)
        y = np.where(scored[:, 1:], ids[:, 1:], -1)  # (B, T)
        return torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(y)

    def _read_text(self, windows: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stretches of text: ids (B, T + 1) int64, and whether each is a target of its window (B, T + 1)."""
        first, start = self._begin(windows, offsets)
        places = start + np.arange(self.block_size + 1)  # (B, T + 1)
        scored = (first <= places) & (places < first + self.block_size)
        return self.tokens[places].astype(np.int64), scored

    def _begin(self, windows: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The place of each window's first target (B, 1), and of its first id, moved inward at the ends."""
        first = (windows * self.block_size - offsets + 1)[:, None]
        return first, np.clip(first - 1, 0, self.n_tokens - 1 - self.block_size)

    def _read_rows(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of samples: ids and scored as in _read_text. pack=False: the longest sample has T + 1 ids."""
        rows = [self.order[self.bounds[i] : self.bounds[i + 1]] for i in windows]  # the samples of each row
        width = self.block_size + 1 if self.pack else max(self.lengths[row[0]] for row in rows)
        places = np.full((len(rows), width), -1)  # (B, T + 1); -1: filled up, no token
        scored = np.zeros(places.shape, dtype=bool)
        for b, row in enumerate(rows):
            at = 0
            for place, n in zip(self.starts[row].tolist(), self.lengths[row].tolist(), strict=True):
                places[b, at : at + n] = np.arange(place, place + n)
                scored[b, at + 1 : at + n] = True  # a sample's first id is never a target
                at += n
        filled = places >= 0
        ids = np.full(places.shape, self.end_id, dtype=np.int64)
        ids[filled] = self.tokens[places[filled]]
        if self.masked:
            scored[filled] &= (self.masks[places[filled]] & LEARNED).astype(bool)
        return ids, scored


def open_windows(dataset: str | Path, split: str, *shape, **options) -> Windows:
    """The windows of a dataset, or of a mixture such as "a:0.7,b:0.3". The arguments are those of Windows."""
    if is_mixture(dataset):
        return techniques.load("mixture")[0].Mixture(dataset, split, *shape, **options)
    return Windows(dataset, split, *shape, **options)


def count_targets(y: torch.Tensor) -> int:
    """How many places of y (B, T) are scored. Of a y gathered on a device it is known: no waiting for it."""
    return y.n_targets if hasattr(y, "n_targets") else int((y != -1).sum())


def windows_of_text(
    source: str, tokenizer, block_size: int, format: str = "", like: str = "text", say: bool = False
) -> Windows:
    """Encode a whole file or source, read as data.py reads it, and return its windows, for evaluation.

    format, like, say: see open_text. A text shorter than a window is one short window. The token files lie in
    a temporary folder, which is removed when the process ends.
    """
    folder = Path(tempfile.mkdtemp())
    at_end(shutil.rmtree, folder, ignore_errors=True)
    notes = encode_text(source, tokenizer, folder, format, like, say)
    windows = Windows(folder, "test", block_size, may_be_short=True)
    windows.notes = notes
    return windows


if __name__ == "__main__":
    config = override(globals())
    at_least(0, config, "show")
    rows_to_show = config.pop("show")
    if "tokenizer" in given and tokenizer in ("char", "bpe", "gpt2"):
        is_here = Path(tokenizer).is_file() or Path(tokenizer, "tokenizer.json").is_file()
        require(not is_here, two_meanings("tokenizer", tokenizer))
    source = config.pop("input")
    only_show = rows_to_show and given.keys() <= {"name", "show"} and is_prepared(name)
    if not source and not only_show:
        if name not in KNOWN:
            raise ValueError(f"--input is empty; expected a file, a folder, or --name={' | '.join(KNOWN)}")
        config.update({key: value for key, value in KNOWN[name].items() if key not in given})
        source = config.pop("source")
    rank, world_size, *_ = start("cpu", timeout=7 * 86400)  # training byte pairs can take more than 600 s
    meta = {} if only_show else prepare(source=source, rank=rank, world_size=world_size, **config)
    if rank == 0:
        print(stand_in_notice(meta), end="\n" * ("stand_in_for" in meta))
    if meta.get("masked") and rank == 0:
        for block_size in (64, 128, 256, 512, 1024):
            with contextlib.suppress(ValueError):  # no sample is as short as that
                windows = Windows(name, "train", block_size)
                full = f"rows {windows.filled:.1%} full, {windows.n_dropped} samples too long"
                print(f"  with block_size={block_size}: {full}")
    if rows_to_show and rank == 0:
        print_rows(name, rows_to_show)
    end_script()
