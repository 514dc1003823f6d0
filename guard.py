"""What can go wrong in a run, and what is done about it: signals, kills, a second process at the same work,
numbers gone bad, memory that runs out.
"""

import contextlib
import math
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import torch

try:
    import fcntl
except ImportError:
    fcntl = None  # Windows has no flock: there nobody waits and nobody is refused

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


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that at every moment either the old one or the whole new one is there."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def remove_leftovers(folder: Path) -> None:
    """What a killed run was writing when it was killed: ckpt.tmp and the like; no other file is touched."""
    for path in folder.glob("*.tmp"):
        if LEFTOVER.fullmatch(path.name):
            path.unlink()


def stop_if_not_finite(update: int, loss: float, grad_norm: float, settings: dict, lr: float, folder) -> None:
    """ValueError before a step that NaN or inf would spoil; a float16 overflow is left to the loss scaler."""
    if math.isfinite(loss) and (math.isfinite(grad_norm) or settings["dtype"] == "float16"):
        return
    raise ValueError(
        f"update {update}: loss {loss}, gradient norm {grad_norm}; no step was made, the last good "
        f"checkpoint is in {folder}. Try a smaller learning_rate (now {lr:.2e}), --grad_clip=1.0 (now "
        f"{settings['grad_clip']}), a longer warm-up, or --dtype=float32 (now {settings['dtype']})"
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has an exception of its own, the CPU's allocator has only these words."""
    return isinstance(error, torch.OutOfMemoryError) or "you tried to allocate" in str(error)


@contextlib.contextmanager
def weights_fit() -> Iterator[None]:
    """Where a model is made: ValueError in place of torch's error if memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        advice = "try fewer n_layer, n_embd, n_ff"
        raise ValueError(f"out of memory: the weights do not fit; {advice}") from None


def divide_batch(error: RuntimeError, batch_size: int, retry: bool) -> int:
    """By what to divide a micro-batch that did not fit into memory: the smallest prime factor of batch_size.

    Raises the error itself if it is another one, and ValueError with the remedies where dividing is not
    possible.
    """
    if not is_out_of_memory(error):
        raise error
    factor = next((n for n in range(2, batch_size + 1) if batch_size % n == 0), 0)
    if not retry or not factor:
        fewer = (
            f"--batch_size={batch_size // factor} with {factor} times the gradient_accumulation_steps, "
            if factor
            else ""
        )
        raise ValueError(
            f"out of memory with batch_size={batch_size}; try, in this order: {fewer}"
            "--gradient_checkpointing=True, half the block_size, a smaller n_layer or n_embd"
        ) from None
    return factor
