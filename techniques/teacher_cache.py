"""distill.py's cache: what a teacher says of each window, on disk, so that no run computes it a second time.

    python train.py config/tiny.py --distill_teacher=out-big --distill_top_k=16 --distill_cache=out-big/cache
    python -m techniques.teacher_cache --out_dir=out-tiny         what is lost with 16, 4, 1 in place of all?

A file holds records of one size, one for each window (row of x) that training has read:

    key    16 bytes: BLAKE2b of the window's ids, the teacher, its temperature, and the precision
    ids    block_size x k: the k likeliest next tokens
    log_p  block_size x (k + 1): their log-probabilities, and that of all other tokens together
    crc    CRC-32 of these three

Each process appends to a file of its own, and reads those that were there when it began. So ranks and runs
share a folder without locks. A record that a kill has cut off is the last one of its file: it is not read,
but computed again. A window shorter than block_size (pack=False) fills its record up with zeros.
"""

import hashlib
import math
import uuid
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import end_script, override, require
from runtime import checkpoint
from runtime.folder import run_folder

# -----------------------------------------------------------------------------
out_dir = "out-tiny"  # the run of a student
file = "best.pt"  # which checkpoint in it
windows = 64  # how many windows of val are read
tops = "1,4,16"  # values of distill_top_k to compare
# -----------------------------------------------------------------------------


class TopKCache:
    """The records of one teacher, temperature and k in a folder, found by their windows."""

    def __init__(self, folder: Path, about: str, block_size: int, k: int, vocab_size: int):
        """about: what the records depend on, but for window and precision. ValueError if folder is a file."""
        require(not folder.is_file(), f"distill_cache={folder} is a file; expected a folder, or a new name")
        self.about, self.vocab_size = about.encode(), vocab_size
        ids = "<u2" if vocab_size <= 2**16 else "<u4"
        fields = [("key", "V16"), ("ids", ids, (block_size, k)), ("log_p", "<f4", (block_size, k + 1))]
        self.record = np.dtype([*fields, ("crc", "<u4")])
        name = hashlib.blake2b(f"{about} {self.record}".encode(), digest_size=8).hexdigest()
        self.own, self.written = folder / f"{name}-{uuid.uuid4().hex}.bin", 0  # made with its first record
        self.places: dict[bytes, tuple[Path, int]] = {}  # key: (file, how many records come before)
        for path in sorted(folder.glob(f"{name}-*.bin")):
            n = path.stat().st_size // self.record.itemsize
            keys = np.memmap(path, self.record, "r", shape=(n,))["key"] if n else ()
            self.places |= {key.tobytes(): (path, i) for i, key in enumerate(keys)}

    def keys_of(self, x: Tensor) -> list[bytes]:
        """The keys of windows x (B,T), in the precision of the autocast that is on."""
        kind = x.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        start = hashlib.blake2b(self.about + str(precision).encode(), digest_size=16)
        keys = []
        for row in x.cpu().numpy().astype("<i8"):
            digest = start.copy()
            digest.update(row.tobytes())
            keys.append(digest.digest())
        return keys

    def read(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Windows x (B,T) -> (ids (B,T,k) int64, log_p (B,T,k+1)) on their device; None if one is not there.

        The whole batch or nothing: a teacher's last bits depend on the batch that it reads, and a resumed run
        must find those of a run that never stopped. ValueError for a damaged record.
        """
        keys = self.keys_of(x)
        if any(key not in self.places for key in keys):
            return None
        records = np.stack([self.record_of(key) for key in keys])  # (B,)
        ids, log_p = (np.ascontiguousarray(records[name][:, : x.size(1)]) for name in ("ids", "log_p"))
        return torch.from_numpy(ids.astype(np.int64)).to(x.device), torch.from_numpy(log_p).to(x.device)

    def record_of(self, key: bytes) -> np.void:
        """Read one record from its file. ValueError if it is damaged."""
        path, i = self.places[key]
        with open(path, "rb") as file:  # 20 us; a cache may have more files than a process may hold open
            file.seek(i * self.record.itemsize)
            content = file.read(self.record.itemsize)
        checksum = int.from_bytes(content[-4:], "little")
        whole = len(content) == self.record.itemsize and zlib.crc32(content[:-4]) == checksum
        record = np.frombuffer(content, self.record)[0] if whole else None
        sound = whole and record["ids"].max() < self.vocab_size and np.isfinite(record["log_p"]).all()
        require(sound, f"{path} is damaged at record {i}; delete it: what it held is computed again")
        return record

    def write(self, x: Tensor, ids: Tensor, log_p: Tensor) -> None:
        """Append the records of those windows x (B,T) that are not there. ids (B,T,k), log_p (B,T,k+1)."""
        T = x.size(1)
        content = b""
        for key, *row in zip(self.keys_of(x), ids.cpu().numpy(), log_p.float().cpu().numpy(), strict=True):
            if key in self.places:
                continue
            record = np.zeros((), self.record)
            record["key"] = np.void(key)
            record["ids"][:T], record["log_p"][:T] = row
            record["crc"] = zlib.crc32(record.tobytes()[:-4])
            self.places[key] = self.own, self.written
            self.written += 1
            content += record.tobytes()
        try:
            self.own.parent.mkdir(parents=True, exist_ok=True)
            with open(self.own, "ab") as file:
                file.write(content)
        except OSError as error:
            raise ValueError(
                f"{self.own} could not be written: {error.strerror}; free some space, then go on: "
                "--init_from=resume"
            ) from None


def buckets(log_p: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities (...,V) -> (...,k+1): those of ids (...,k), and that of all other tokens together."""
    others = log_p.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat((log_p.gather(-1, ids), others), dim=-1)


def errors_of_top_k(config: dict) -> list[str]:
    """What top k leaves out of a student's KL, on val: lines of a table. ValueError for no student."""
    from data import Windows
    from evaluate import spread
    from techniques import distill

    path = run_folder(config["out_dir"]) / config["file"]
    student, _, saved = checkpoint.load_model(path, torch.device("cpu"))
    on = saved["config"].get("technique", "").split(",")
    require("distill" in on, f"{path} had no teacher; expected a run with --distill_teacher=out-big")
    settings = {**saved["config"], "distill_top_k": 0, "distill_cache": ""}
    teacher, temperature = distill.teacher_of(student, settings), settings["distill_temperature"]
    val = Windows(settings["dataset"], "val", student.config.block_size)
    x, y = val.window_batch(spread(val, config["windows"]))  # (B,T)
    logits = student(x).detach().requires_grad_()  # (B,T,V)
    scored, (_, log_p) = y != -1, teacher.targets(x)
    V = log_p.size(-1)

    def kl_and_gradient(*targets) -> tuple[float, Tensor]:
        kl = distill.divergence(logits, y, *targets, temperature)
        return kl.item() / scored.sum().item(), torch.autograd.grad(kl, logits)[0]

    kl_of_all, true = kl_and_gradient(None, log_p)
    lines = [f"{'top k':>6}{'mass':>8}{'KL':>9}{'of all':>8}{'gradient off by':>17}{'bytes a token':>15}"]
    for text in config["tops"].split(","):
        k = int(text) if text.isdecimal() else 0
        require(0 < k < V, f"tops={config['tops']} makes no sense; expected some of 1 to {V - 1}: 1,4,16")
        ids = log_p.topk(k).indices
        some = buckets(log_p, ids)
        kl, gradient = kl_and_gradient(ids, some)
        mass = 1 - some[..., -1].exp()[scored].mean()
        off = (gradient - true).norm() / true.norm()
        size = k * (2 if V <= 2**16 else 4) + 4 * (k + 1)
        lines.append(f"{k:>6}{mass:>8.2%}{kl:>9.4f}{kl / kl_of_all:>8.1%}{off:>17.1%}{size:>15}")
    return [*lines, f"{'all':>6}{1:>8.2%}{kl_of_all:>9.4f}{1:>8.1%}{0:>17.1%}{4 * V:>15}"]


if __name__ == "__main__":
    print(*errors_of_top_k(override(globals())), sep="\n")
    end_script()
