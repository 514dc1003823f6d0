"""Protect a run from signals, kills, a second process in the same folder, and NaN or infinity.

(memory.py handles memory that runs out.)
"""

import contextlib
import math
import os
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from config import at_end, in_notebook, set_excepthook
from machine.distributed import gathered, local_shard, lost_contact, world_size

try:
    import fcntl
except ImportError:
    fcntl = None  # Windows has no flock: alone() then locks nothing

recent: deque[tuple[int, float, float]] = deque(maxlen=30)  # (update, loss, gradient norm) of the latest
READ_LATE = ("cuda",)  # kinds of device whose numbers are read one update late, see Watch
LEFTOVER = re.compile(r"(ckpt(_\d+)?|best|metrics|config|result|loss|samples)\.tmp")
held: set[Path] = set()  # the lock files that this process holds: see alone()


class StopRequest:
    """Catches SIGINT (Ctrl-C) and SIGTERM: the loop stops after its update. A second one ends it at once.

    In a notebook, the second one interrupts the cell and leaves the notebook alive. When the script has
    ended, signals do again what they did before. Only the main thread can catch them.
    """

    def __init__(self):
        self.number = 0  # 0 until a signal arrives, then the signal's number
        self.before = {}  # what each signal did
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, self.handle) or signal.SIG_DFL  # None: not a handler of Python's
            self.before[number] = before
            at_end(signal.signal, number, before)

    def handle(self, number: int, frame) -> None:
        self.number = number
        signal.signal(number, self.before[number] if in_notebook() else signal.SIG_DFL)
        os.write(2, b"\nstopping after this update\n")  # print() is not safe in a signal handler


def call_after_error(may_save: Callable[[], bool], save: Callable[[str], None], progress) -> None:
    """From now on, save("ckpt.pt") when an error, but no ValueError, ends the program.

    So the updates before it are not lost, if may_save() says that this process has a complete state. The
    error is then reported as before. If another process no longer answers, one line says so.
    """
    previous = sys.excepthook  # set_excepthook() puts it back when the script has ended

    def hook(kind, error, traceback) -> None:
        if not isinstance(error, ValueError) and may_save():
            try:
                save("ckpt.pt")
                print(f"saved step {progress.step} in ckpt.pt before stopping", file=sys.stderr)
            except ValueError as bad:  # a GPU's last update, whose numbers are only read here
                print(f"error: {bad}", file=sys.stderr)
        if reason := lost_contact(error):
            where = f"rank {os.environ.get('RANK', 0)} of {world_size()}, update {progress.step + 1}"
            print(f"error: {where}: {reason}", file=sys.stderr)
            sys.exit(2)
        previous(kind, error, traceback)

    set_excepthook(hook)


@contextlib.contextmanager
def alone(path: Path, advice: str = "") -> Iterator[None]:
    """Hold a lock, so that only one process at a time runs the `with` block.

    path: the lock file (flock); its folder is made. If another process holds the lock, wait for it, or, if
    advice is given, raise a ValueError that ends in it. The lock is released when its process ends, even by
    SIGKILL, so a leftover file blocks nobody. A process that holds the lock may enter again.
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
            pass  # this file system has no locks: go on without
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()  # the previous owner has deleted this file: lock a new one
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
    """A file to write to. At every moment `path` is the complete old file or the complete new one."""
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a power cut may keep the new name and lose the content
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # still there only after an error, such as a full disk


def write_atomic(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


def remove_leftovers(folder: Path) -> None:
    """Delete the unfinished files of a killed run, such as ckpt.tmp. Touches no other file."""
    for path in folder.glob("*.tmp"):
        if LEFTOVER.fullmatch(path.name):
            path.unlink()


class Watch:
    """The loss and the gradient norm of each update: an error before a step that would ruin the weights.

    On a GPU they are read one update late, so that the CPU can start the next update while the GPU computes.
    Until then a flag on the device, found_inf, tells the optimizer whether to change anything: torch's fused
    AdamW and Adam, and Muon, know it. A loss scaler and sharded gradients have flags or devices of their own,
    and SGD is not fused: with them every number is read at once.
    """

    def __init__(self, model, optimizer, settings: dict, device: torch.device):
        """settings: train.py's, with dtype resolved."""
        self.model, self.optimizer, self.settings = model, optimizer, settings
        knows_flag = settings["strategy"] == "ddp" and settings["optimizer"] != "sgd"
        self.late = device.type in READ_LATE and knows_flag and settings["dtype"] != "float16"
        self.waiting, self.arrived = (), []
        self.first = True

    def before_step(self, update: int, loss: Tensor, grad_norm: Tensor, lr: float) -> None:
        """Look at an update whose gradients are complete. ValueError if it, or the one before, has gone bad.

        loss: this rank's share of the mean loss. grad_norm: before clipping (clipping by a NaN norm makes all
        gradients NaN); with fsdp, each rank has the norm of its shard. lr: this update's.
        """
        self.read()  # the update before
        grad_norm, copied = gathered(grad_norm), None
        if self.late:
            flag = ~(loss.isfinite() & grad_norm.isfinite())
            self.optimizer.found_inf = flag.float()  # 1: the step changes nothing
            # The copies begin now: read() would otherwise also wait for what the GPU is given until then.
            loss, grad_norm = (t.to("cpu", non_blocking=True) for t in (loss, grad_norm))
            if flag.is_cuda:
                copied = torch.cuda.Event(blocking=True)
                copied.record(torch.cuda.current_stream(flag.device))  # not that of the current device
        self.waiting = update, loss, grad_norm, lr, copied
        if not self.late or self.first:  # before the first there is none to read
            self.read()
        self.first = False

    def numbers(self, now: bool) -> list[tuple[int, float, float]]:
        """(update, loss, gradient norm) of those that have arrived since the last call; now: of all."""
        if now:
            self.read()
        arrived, self.arrived = self.arrived, []
        return arrived

    def read(self) -> None:
        """Read the numbers that are waiting, if any. ValueError with the likely cause if they are bad."""
        if not self.waiting:
            return
        update, loss, grad_norm, lr, copied = self.waiting
        self.waiting = ()
        if copied:
            copied.synchronize()
        self.arrived.append((update, loss.item(), grad_norm.item()))
        stop_if_not_finite(self.model, *self.arrived[-1], self.settings, lr, self.late)


def stop_if_not_finite(
    model, update: int, loss: float, grad_norm: float, settings: dict, lr: float, late: bool
) -> None:
    """Raise a ValueError with the likely cause if an update's numbers are not finite, or absurd.

    late: the model no longer has this update's gradients, and a step with finite numbers was made.
    """
    if recent and recent[-1][0] != update - 1:
        recent.clear()  # they belong to an earlier run in this process
    loss *= world_size()
    recent.append((update, loss, grad_norm))
    uniform = math.log(model.config.vocab_size)  # the loss of a uniform guess
    cause = likely_cause(model, uniform, settings["dtype"], late)
    if not cause:
        return
    before = [old for n, old, _ in recent if n < update and math.isfinite(old)]
    shards = [local_shard(p) for p in model.parameters()]
    largest = max(shard.abs().max().item() for shard in shards if shard.numel())
    details = [cause]
    if before:
        details.append(f"losses before: {', '.join(f'{old:.4g}' for old in before[-5:])}")
    muon = settings["optimizer"] == "muon"
    rate = "learning_rate or muon_lr" if muon else "learning_rate"
    if before and before[-1] > min(1.2 * min(before) + 0.2, uniform + 5):
        details.append(f"so {rate} is too high")
    elif math.inf > largest > 1000:
        details.append(f"the largest weight is {largest:.3g}, from about 1 at the start: {rate} is too high")
    muon_lr = f" or muon_lr ({settings['muon_lr']:.2e} at its peak)" if muon else ""
    stepped = late and math.isfinite(loss) and math.isfinite(grad_norm)
    done = "nothing was saved after it" if stepped else "no step was made"
    raise ValueError(
        f"update {update}: loss {loss:.4g}, gradient norm {grad_norm:.4g}; {done}, the last good "
        f"checkpoint is in {settings['out_dir']}. {'; '.join(details)}. Try a smaller "
        f"learning_rate (now {lr:.2e}){muon_lr}, --grad_clip=1.0 (now {settings['grad_clip']}), a longer "
        f"warm-up, or --dtype=float32 (now {settings['dtype']})"
    )


def likely_cause(model, uniform: float, dtype: str, late: bool) -> str:
    """What went wrong in the latest update, as a sentence; "" if nothing did. uniform: ln(vocab_size).

    Looks in the order of the computation (weights, loss, gradient), so that it names the cause rather than a
    consequence.
    """
    _, loss, grad_norm = recent[-1]
    if math.isfinite(loss) and math.isfinite(grad_norm):
        # Norms and a logit cap keep all numbers finite at any learning rate; but then the loss is absurd.
        lowest = min(loss for _, loss, _ in list(recent)[-10:])
        if len(recent) < 10 or lowest < uniform + 5 or lowest < recent[0][1]:
            return ""
        return f"The last 10 losses were above {lowest:.4g}; a uniform guess costs {uniform:.4g}"
    bad = first_not_finite(model.named_parameters())
    if bad:
        return f"The weights were not finite before this update, first {bad}: an earlier step, or the file"
    if not math.isfinite(loss):
        return "The weights are finite, but the loss computed from them is not"
    overflowed = sum(not math.isfinite(norm) for _, _, norm in recent)
    if dtype == "float16" and overflowed < recent.maxlen:
        return ""  # the loss scaler skips the step and halves its factor, from 2**16 down to 2**-14 after 30
    if late:
        return "Weights and loss are finite, the gradient is not"
    bad = first_not_finite((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    return f"Weights and loss are finite, the gradient is not, first {bad or 'its norm, which overflows'}"


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The first tensor with NaN or infinity in it, as "NAME (3 of 1,024 numbers)"; "" if there is none."""
    for name, t in tensors:
        t = local_shard(t)
        bad = t.numel() - int(t.isfinite().sum())
        if bad:
            return f"{name} ({bad:,} of {t.numel():,} numbers)"
    return ""
