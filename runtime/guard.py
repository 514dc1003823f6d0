"""What can go wrong in a run, and what is done about it: signals, kills, a second process at the same work,
numbers gone bad, memory that runs out.
"""

import contextlib
import math
import os
import re
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from machine.distributed import local_shard

try:
    import fcntl
except ImportError:
    fcntl = None  # Windows has no flock: there nobody waits and nobody is refused

recent: deque[tuple[int, float, float]] = deque(maxlen=30)  # latest updates: number, loss, gradient norm
LEFTOVER = re.compile(r"(ckpt(_\d+)?|best|metrics|config|result|loss)\.tmp")
held: set[Path] = set()  # the files by which this process is alone()


class StopRequest:
    """SIGINT (Ctrl-C) and SIGTERM: the first asks the loop to stop after an update, a second ends at once."""

    def __init__(self):
        self.number = 0  # of the signal, once one has come
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)

    def handle(self, number: int, frame) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)
        os.write(2, b"\nstopping after this update\n")  # print is not safe in a signal handler


@contextlib.contextmanager
def alone(path: Path, advice: str = "") -> Iterator[None]:
    """One process at a time: a second one waits here, or with advice gets a ValueError that ends in it.

    path: a file for the lock (flock); its folder is made. The lock dies with its owner, whatever kills that
    one, so a file left over stops nobody. A process that has the lock may come again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None or path in held:
        yield
        return
    while True:
        file = open(path, "a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = f"process {file.read() or '?'}"
            if advice:
                file.close()
                raise ValueError(f"{path.parent} is in use by {owner}; {advice}") from None
            print(f"waiting for {owner}, which holds {path}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()  # the one before has removed it: lock a new one
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    held.add(path)
    try:
        yield
    finally:
        held.remove(path)
        path.unlink(missing_ok=True)
        file.close()


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to; at every moment either the old one or the whole new one has its name."""
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # without it the new name may survive a power cut, and its content not
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # is there only if something went wrong: no space left, say


def write_atomic(path: Path, text: str) -> None:
    """A text as a atomic_file."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


def remove_leftovers(folder: Path) -> None:
    """What a killed run was writing when it was killed: ckpt.tmp and the like; no other file is touched."""
    for path in folder.glob("*.tmp"):
        if LEFTOVER.fullmatch(path.name):
            path.unlink()


def stop_if_not_finite(model, update: int, loss: float, grad_norm: float, settings: dict, lr: float) -> None:
    """ValueError, with the likely cause, before a step that would spoil the weights.

    model: with the gradients of this update, not clipped yet (a norm that is NaN makes all of them NaN).
    loss: this rank's part of it. settings: those of train.py, dtype resolved. lr: of this update.
    """
    if recent and recent[-1][0] != update - 1:
        recent.clear()  # it was another run in this process
    loss *= torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    recent.append((update, loss, grad_norm))
    guess = math.log(model.config.vocab_size)
    cause = likely_cause(model, guess, settings["dtype"])
    if not cause:
        return
    before = [old for n, old, _ in recent if n < update and math.isfinite(old)]
    sizes = [local_shard(p).abs().max().item() for p in model.parameters() if local_shard(p).numel()]
    numbers = [f"losses before: {', '.join(f'{old:.4g}' for old in before[-5:])}"] if before else []
    rates = "learning_rate" + " or muon_lr" * (settings["optimizer"] == "muon")
    if before and before[-1] > min(1.2 * min(before) + 0.2, guess + 5):
        numbers.append(f"so {rates} is too high")
    elif math.inf > max(sizes) > 1000:
        numbers.append(f"the largest weight is {max(sizes):.3g}, at first it is about 1: {rates} is too high")
    peak = f" or muon_lr ({settings['muon_lr']:.2e} at its peak)" if settings["optimizer"] == "muon" else ""
    raise ValueError(
        f"update {update}: loss {loss:.4g}, gradient norm {grad_norm:.4g}; no step was made, the last good "
        f"checkpoint is in {settings['out_dir']}. {'; '.join([cause, *numbers])}. Try a smaller "
        f"learning_rate (now {lr:.2e}){peak}, --grad_clip=1.0 (now {settings['grad_clip']}), a longer "
        f"warm-up, or --dtype=float32 (now {settings['dtype']})"
    )


def likely_cause(model, guess: float, dtype: str) -> str:
    """What is wrong with the latest update; "" if nothing is. guess: ln(V), what a blind guess costs.

    Searched in the order of the computation, so that what is named is not the consequence of another.
    """
    _, loss, grad_norm = recent[-1]
    if math.isfinite(loss) and math.isfinite(grad_norm):
        # Norms and capped logits keep all numbers finite at any learning rate; then the loss is absurd.
        lowest = min(loss for _, loss, _ in list(recent)[-10:])
        if len(recent) < 10 or lowest < guess + 5 or lowest < recent[0][1]:
            return ""
        return f"The loss of 10 updates was above {lowest:.4g}, and a blind guess costs {guess:.4g}"
    if bad := first_not_finite(model.named_parameters()):
        return f"The weights were not finite before this update, first {bad}: an earlier step, or the file"
    if not math.isfinite(loss):
        return "The weights are finite, what they compute is not"
    overflowed = sum(not math.isfinite(norm) for _, _, norm in recent)
    if dtype == "float16" and overflowed < recent.maxlen:
        return ""  # the scaler skips the step and halves its factor, at first 2**16; after 30 it is 2**-14
    bad = first_not_finite((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    return f"Weights and loss are finite, the gradient is not, first {bad or 'its length: it overflows'}"


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The first tensor that holds NaN or infinity, as "NAME (3 of 1,024 numbers)"; "" if none does."""
    for name, t in tensors:
        bad = local_shard(t).numel() - int(local_shard(t).isfinite().sum())
        if bad:
            return f"{name} ({bad:,} of {local_shard(t).numel():,} numbers)"
    return ""
