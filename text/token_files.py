"""Ids on disk: token files, in one piece or in shards, written by one or several processes and read lazily.

    train.bin                            one file: the ids of a split, one after the other
    train_000.bin train_001.bin ...      shards: a new file after a given number of characters of the split
    train_mask.bin, train_mask_000.bin   one byte per token, if some are not learned: 1 learned, 0 context;
                                         3 or 2 for the end token of a turn, behind which the sample goes on

The shard of a stretch of text or of a sample is known before it is encoded. So each process can tell which
shards it has to write, and the files are the same with any number of processes and threads.
"""

import contextlib
import hashlib
import itertools
import os
import re
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from machine.distributed import all_gather
from text.formats import CHUNK
from text.segments import GOES_ON, LEARNED, SPECIAL, Segments, begin
from tokenizer import from_json

SPLITS = ("train", "val", "test")
COUNTS = ("tokens", "learned", "bytes", "characters", "documents")
OURS = re.compile(rf"({'|'.join(SPLITS)})(_mask)?(_\d{{3,}})?\.bin|tokenizer\.json")


def file_name(stem: str, number: int, in_shards: bool) -> str:
    """The name of one token file, such as train.bin or train_003.bin."""
    return f"{stem}_{number:03}.bin" if in_shards else f"{stem}.bin"


def file_names(stem: str, counts: dict) -> list[str]:
    """The token files of a split (stem: train) or its masks (train_mask). counts: its part of meta.json."""
    in_shards = "shards" in counts
    n = len(counts["shards"]) if in_shards else 1
    return [file_name(stem, number, in_shards) for number in range(n)]


class TokenFiles:
    """The ids (or masks) of a split as one long array, whatever files they lie in: token_files[places].

    Nothing is opened at first; ValueError if a file is missing or does not have the size that meta.json gives
    (counts: the split's part of it). Each access maps the files that it needs anew. It raises ValueError for
    an id that is not below `limit`.
    """

    def __init__(self, folder: Path, stem: str, counts: dict, dtype, limit: int = 2**32):
        self.paths = [folder / name for name in file_names(stem, counts)]
        self.dtype, self.limit = np.dtype(dtype), limit
        sizes = np.array(counts.get("shards", [counts["tokens"]]), dtype=np.int64)
        self.ends = np.cumsum(sizes)
        self.starts = self.ends - sizes  # of each file: the place of its first id
        self.inodes = []  # of each file, so that another one of its name is noticed
        for path, n in zip(self.paths, sizes.tolist(), strict=True):
            if not path.is_file() or path.stat().st_size != n * self.dtype.itemsize:
                raise ValueError(f"{path} is not what meta.json says; prepare the dataset again")
            self.inodes.append(path.stat().st_ino)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """The ids at these places, in an array of the same shape."""
        if len(self.paths) == 1:  # 32 windows of 128 take 93 microseconds; the code below would take 112
            return self.checked(self.mapped(0)[places])
        flat = places.ravel()
        file_of = np.searchsorted(self.ends, flat, side="right")
        # Between two borders all places lie in the same file.
        borders = [0, *np.flatnonzero(np.diff(file_of)) + 1, len(flat)]
        ids, maps = np.empty(len(flat), self.dtype), {}
        for first, end in itertools.pairwise(borders):
            i = file_of[first]
            if i not in maps:
                maps[i] = self.mapped(i)
            ids[first:end] = maps[i][flat[first:end] - self.starts[i]]
        return self.checked(ids.reshape(places.shape))

    def mapped(self, i: int) -> np.ndarray:
        """Map a file anew. ValueError if the dataset has been prepared again: it may be another text."""
        path = self.paths[i]
        if not path.exists() or path.stat().st_ino != self.inodes[i]:
            raise ValueError(f"{path} was replaced while in use; prepare the old text again, and resume")
        return np.asarray(np.memmap(str(path), self.dtype, mode="r"))

    def checked(self, ids: np.ndarray) -> np.ndarray:
        """Return the ids. ValueError if one of them is not in the vocabulary."""
        if ids.size and ids.max() >= self.limit:
            where, most = self.paths[0].parent, self.limit - 1
            raise ValueError(f"{where} has the id {ids.max()}, {most} at most; prepare the dataset again")
        return ids

    def samples(self, end_id: int, masks: "TokenFiles | None") -> tuple[np.ndarray, np.ndarray]:
        """(starts, lengths) of the samples; an end token closes each, unless its mask says that the sample
        goes on. Reads all files, 2**20 ids a time."""
        closed = [np.zeros(1, dtype=np.int64)]  # where a sample begins: at 0, and behind each end token
        for i, path in enumerate(self.paths):
            start = int(self.starts[i])
            for at in range(start, int(self.ends[i]), 2**20):
                ids = np.fromfile(path, self.dtype, 2**20, offset=(at - start) * self.dtype.itemsize)
                closes = ids == end_id
                if masks:
                    closes &= np.fromfile(masks.paths[i], np.uint8, 2**20, offset=at - start) & GOES_ON == 0
                closed.append(at + 1 + np.flatnonzero(closes))
        borders = np.concatenate(closed)
        if len(borders) == 1:
            raise ValueError(f"{self.paths[0].parent} has no end token; prepare the dataset again")
        return borders[:-1], np.diff(borders)


def packed(lengths: np.ndarray, room: int) -> np.ndarray:
    """Pack samples first-fit into rows of `room` ids: the row (n,) of each sample, from the lengths (n,)."""
    rows = np.zeros(len(lengths), dtype=np.int64)
    free = np.zeros(256, np.int64)  # the room left in each open row; at most 256 are open at a time
    number = np.zeros(256, np.int64)  # the number of each open row
    n_rows = 0
    for i, length in enumerate(lengths.tolist()):
        place = int((free >= length).argmax())
        if free[place] < length:  # no open row has room: a new row replaces the fullest
            place = int(free.argmin())
            free[place], number[place] = room, n_rows
            n_rows += 1
        rows[i] = number[place]
        free[place] -= length
    return rows


def encode(
    parts, tokenizer, folder: Path, end: bool, masks: bool, threads=0, shard_mb=0.0, rank=0, world_size=1
) -> dict:
    """Write folder/*.bin and return what meta.json says of them. parts: (split, segments, ends_document), ...

    end: close every document with the end token. masks: some text may be context only, so write masks.
    threads: 0 = one per core, at most 16, for all processes of a machine together. shard_mb: million
    characters per shard, 0 = one file per split. With several processes, each writes every world_size-th
    shard; all return the same. ValueError if an end token is needed and the tokenizer has none.

    The sha256 of a split is that of its file. With shards, it is the sha256 of their hex sha256s, joined.
    """
    if end and tokenizer.end_id < 0:
        raise ValueError(
            "this tokenizer has no end token to close samples and documents; expected one that was made with "
            "data.py --tokenizer=bpe, or with --tokenizer=char from samples or a folder"
        )
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    threads = threads or max(1, min(os.cpu_count() or 1, 16) // world_size)
    parts = begun(parts, tokenizer)
    own = (part for part in numbered(parts, shard_mb * 1e6) if part[0][1] % world_size == rank)
    shards = write(encoded(own, tokenizer, threads), tokenizer, folder, end, masks, dtype, bool(shard_mb))
    if world_size > 1:
        shards = {place: counts for some in all_gather(shards) for place, counts in some.items()}
    splits = {}
    for split in SPLITS:
        its = [shards[place] for place in sorted(shards) if place[0] == split]
        if its:
            splits[split] = {what: sum(counts[what] for counts in its) for what in COUNTS}
            splits[split]["documents"] += its[-1]["open"]  # one that goes on in the next split counts in both
            splits[split]["sha256"] = its[0]["sha256"]
        if its and shard_mb:
            joined = "".join(counts["sha256"] for counts in its)
            splits[split]["sha256"] = hashlib.sha256(joined.encode("utf-8")).hexdigest()
            splits[split]["shards"] = [counts["tokens"] for counts in its]
    masked = any(counts["learned"] < counts["tokens"] for counts in splits.values())
    turns = {"turns": any(counts["turns"] for counts in shards.values())} if masks else {}
    return {"dtype": dtype.name, "masked": masked, **turns, "end_id": tokenizer.end_id, "splits": splits}


def begun(parts, tokenizer) -> Iterator[tuple[str, Segments, bool]]:
    """Put the token that begins a document, if the tokenizer has one, before each."""
    first = True
    for split, segments, ends in parts:
        yield split, begin(segments, tokenizer) if first else segments, ends
        first = ends


def numbered(parts, size: float) -> Iterator[tuple[tuple[str, int], Segments, bool]]:
    """Replace the split of each part by (split, shard). A shard is full after `size` characters; 0 = never.

    Parts stay whole. A part may be longer than a shard; even so, no shard number is left out.
    """
    number, full, before = Counter(), Counter(), Counter()
    for split, segments, ends in parts:
        characters = sum(len(text) for text, _ in segments)
        if characters and size and before[split] // size > full[split]:
            number[split] += 1
            full[split] = before[split] // size
        before[split] += characters
        yield (split, number[split]), segments, ends


def write(parts, tokenizer, folder: Path, end: bool, masks: bool, dtype, in_shards: bool) -> dict:
    """Write encoded parts to their files. Returns {(split, shard): counts, sha256, open, turns}.

    open: the last document of the shard continues in the next one. turns: samples go on behind an end token.
    """
    shards, hashes, files = {}, {}, {}
    with contextlib.ExitStack() as stack:
        for place, segments, ends, new in parts:
            split, number = place
            if place not in shards:
                for file in files.get(split, ()):
                    file.close()  # a process may not have 2,000 open files
                shards[place], hashes[place] = {**dict.fromkeys(COUNTS, 0), "turns": False}, hashlib.sha256()
                stems = [split, f"{split}_mask"] if masks else [split]
                names = [file_name(stem, number, in_shards) for stem in stems]
                files[split] = [stack.enter_context(open(folder / name, "wb")) for name in names]
            counts = shards[place]
            end_token = np.array([tokenizer.end_id])
            stretches = []  # [(ids, mask of each), ...]
            for ids, (_, what) in zip(new, segments, strict=True):
                closes_turn = what & SPECIAL and ids[0] == tokenizer.end_id  # a template's own end token
                stretches.append((ids, what & LEARNED | (GOES_ON if closes_turn else 0)))
                if what & GOES_ON:
                    stretches.append((end_token, what))
                    counts["turns"] = True
            if ends and end:
                stretches.append((end_token, segments[-1][1] & LEARNED))
            for ids, mask in stretches:
                data = ids.astype(dtype).tobytes()
                files[split][0].write(data)
                hashes[place].update(data)
                if masks:
                    files[split][1].write(bytes([mask]) * len(ids))
                counts["tokens"] += len(ids)
                counts["learned"] += len(ids) * (mask & LEARNED)
            plain = "".join(text for text, what in segments if not what & SPECIAL)
            counts["bytes"] += len(plain.encode("utf-8"))
            counts["characters"] += len(plain)
            counts["documents"] += ends
            counts["open"] = not ends
    return {place: {**counts, "sha256": hashes[place].hexdigest()} for place, counts in shards.items()}


def encoded(parts, tokenizer, threads: int) -> Iterator[tuple]:
    """Encode parts (place, segments, ends_document) in order; yields each with its ids, a list per segment.

    tiktoken lets other threads run while it encodes. (CharTokenizer encodes in Python, which runs one thread
    at a time.) Threads that share a tokenizer wait for its regular expressions, so those of a long text have
    one each. At most two batches per thread are in flight, however long the text is.
    """

    def ids(its, text: str, what: int) -> np.ndarray:
        return its.encode(text, allow_special=True) if what & SPECIAL else its.encode(text)

    def encode_batch(batch: list, its=tokenizer) -> list:
        return [(*part, [ids(its, *segment) for segment in part[1]]) for part in batch]

    if threads == 1 or tokenizer.kind == "char":
        yield from itertools.chain.from_iterable(map(encode_batch, batches(parts)))
        return
    own = threading.local()  # what each thread has: its tokenizer, and the number of batches that it encoded

    def encode_in_thread(batch: list) -> list:
        its, n = getattr(own, "state", (tokenizer, 0))
        # A copy takes 2.5 microseconds per token, one thread after the other, and saves 5 ms per batch.
        if its is tokenizer and n > threads * tokenizer.vocab_size / 2000:
            its = from_json(tokenizer.to_json())
        own.state = its, n + 1
        return encode_batch(batch, its)

    with ThreadPoolExecutor(threads) as pool:  # this thread reads and writes, 1/12 of the work
        waiting = deque()
        for batch in batches(parts):
            waiting.append(pool.submit(encode_in_thread, batch))
            if len(waiting) >= 2 * threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def batches(parts) -> Iterator[list]:
    """Group short parts: handing over a single line to a thread takes longer than encoding it."""
    batch, length = [], 0
    for part in parts:
        batch.append(part)
        length += sum(len(text) for text, _ in part[1])
        if length > CHUNK // 8:
            yield batch
            batch, length = [], 0
    yield batch


def summary(meta: dict) -> str:
    """Describe a dataset in a few lines for people."""
    dropped = "".join(f", {n:,} {what} dropped" for what, n in meta["dropped"].items())
    lines = [f"datasets/{meta['name']}: {meta['source']}, vocabulary {meta['vocab_size']:,}{dropped}"]
    kind = "document" if meta["format"] == "text" else "sample"
    for split, n in meta["splits"].items():
        per_token, learned = n["characters"] / n["tokens"], n["learned"] / n["tokens"]
        documents = f"1 {kind}" if n["documents"] == 1 else f"{n['documents']:,} {kind}s"
        files = f" in {len(n['shards']):,} files" if len(n.get("shards", ())) > 1 else ""
        lines.append(
            f"  {split}: {n['tokens']:,} tokens{files}, {documents}, "
            f"{per_token:.2f} characters per token, {learned:.1%} of the tokens count in the loss"
        )
    return "\n".join(lines)
