"""How many CPU threads a run computes with: measured, where the setting `threads` is 0.

torch cuts a matrix product into one piece a thread, and a thread that has done its piece spins until the
others have done theirs. With a core for each of them that is fastest. With another process on one of the
cores, every product waits until that core's thread gets its turn: config/fast.py took 58 to 133 s on two
shared cores with two threads, where one thread took 13 to 17 (torch 2.13). No default is right for both.
"""

import math
import os
import statistics
from collections import deque
from collections.abc import Callable
from time import perf_counter

import torch

from config import is_out_of_memory

TRY_UPDATES = 10  # an update is timed so often with each number of threads,
TRY_SECONDS = 0.5  # but no further time after this many seconds: a slow number is broken off
TRY_TOKENS = 4096  # of a larger batch only the first windows are used
RECENT = 5  # updates whose median is compared with the fastest one before;
SLOWER = 3  # if it is this many times longer, a new choice is made,
PAUSE = 10  # but not until this many times what a choice takes has passed: it costs a tenth at most


def gradients_of(model: torch.nn.Module, loss: Callable, windows, batch_size: int, autocast) -> Callable:
    """Return a function that does what is most of an update, forward and backward, and leaves no trace.

    loss: a function of x (B,T) and y (B,T) that returns a scalar. windows: data.Windows. The weights stay as
    they are, gradients are None afterwards, and torch's random numbers do not advance.
    """
    batch_size = min(batch_size, max(1, TRY_TOKENS // windows.block_size))

    def update() -> None:
        x, y = windows.batch(0, batch_size)
        try:
            with torch.random.fork_rng(devices=[]):
                with autocast:
                    value = loss(x, y)
                value.backward()  # blocks that are recomputed draw their dropout again here
        finally:
            model.zero_grad(set_to_none=True)

    return update


def use_saved(settings: dict) -> None:
    """Compute with the number of threads that a run has chosen or was given, if this machine has so many.

    settings: of a checkpoint. Sampling a model of 16,000 parameters beside two busy processes: 9 to 17
    tokens/s with two threads, 52 with one. OMP_NUM_THREADS has precedence.
    """
    wanted = settings.get("threads", 0)
    if type(wanted) is int and wanted > 0 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(wanted, torch.get_num_threads()))


class Threads:
    """The number of CPU threads of a run: what `threads` or OMP_NUM_THREADS says, else the fastest of three.

    config: train.py's settings; config["threads"] becomes the chosen number, so that a resumed run keeps it.
    Where it is a number already, train.py has set it before it compiled.
    may_choose: False for a resumed run (other threads sum in another order), for several processes (they
    share the cores already), for compiled code (the number is a constant in it) and on a GPU. update: made by
    gradients_of(). say: prints a line.
    """

    def __init__(self, config: dict, may_choose: bool, update: Callable, say: Callable):
        self.config, self.update, self.say, self.counts = config, update, say, []
        if may_choose and not config["threads"] and "OMP_NUM_THREADS" not in os.environ:
            cores = torch.get_num_threads()  # torch's choice: all cores that this process may use
            self.counts = sorted({1, max(1, cores // 2), cores})
        if len(self.counts) > 1:
            self.choose()

    def choose(self) -> None:
        """Time updates with 1 thread, half and all cores; keep the fastest and print all times."""
        before, started, found = torch.get_num_threads(), perf_counter(), {}
        try:
            for count in self.counts:  # one thread first: busy neighbours slow it down least
                torch.set_num_threads(count)
                found[count] = seconds_per_call(self.update)
        except (RuntimeError, MemoryError) as error:
            torch.set_num_threads(before)
            if not is_out_of_memory(error):
                raise
            self.counts = []  # train.py's loop will meet the same error, and knows what to do about it
            return
        best = min(found, key=found.get)
        torch.set_num_threads(best)
        self.config["threads"] = best
        times = ", ".join(f"{count}: {1000 * seconds:.0f} ms" for count, seconds in found.items())
        self.say(f"threads: {best} ({times} an update)")
        self.look_seconds = perf_counter() - started
        self.recent, self.fastest, self.seconds = deque(maxlen=RECENT), math.inf, 0.0  # since this choice

    def after_update(self, seconds: float) -> None:
        """Note what an update of the loop took; choose again if updates have become much slower."""
        if len(self.counts) < 2:
            return
        self.seconds += seconds
        self.recent.append(seconds)
        if len(self.recent) < RECENT:
            return
        now = statistics.median(self.recent)
        self.fastest = min(self.fastest, now)
        if now > SLOWER * self.fastest and self.seconds > PAUSE * self.look_seconds:
            self.say(f"updates took {1000 * self.fastest:.0f} ms and now take {1000 * now:.0f}: a new choice")
            self.choose()


def seconds_per_call(function: Callable[[], None]) -> float:
    """The median of up to 10 calls, none of which begins after half a second; of two times the lower one."""
    times = []
    while len(times) < TRY_UPDATES and sum(times) < TRY_SECONDS:
        started = perf_counter()
        function()
        times.append(perf_counter() - started)
    return statistics.median_low(times)
