"""A slow start says what it is doing: a stage that still runs after two seconds is named on the screen."""

import contextlib
import os
import threading

from config import at_end

SECONDS = 2.0  # a stage that is shorter is not worth a line
RANK = "RANK"  # torchrun's variable: only rank 0 speaks


class Stages:
    """The stages of a script's start; `first` has begun. begin("building the model") comes before each other
    one, end() after the last."""

    def __init__(self, first: str):
        self.timer = None
        self.over = os.environ.get(RANK, "0") != "0"
        at_end(self.end)  # also after an error, in a notebook that goes on
        self.begin(first)

    def begin(self, what: str) -> None:
        """End the stage before and begin this one. After end(), nothing."""
        if self.over:
            return
        if self.timer:
            self.timer.cancel()
        self.timer = threading.Timer(SECONDS, self.say, (f"{what} ...",))
        self.timer.daemon = True  # it does not keep a process alive that has nothing else to do
        self.timer.start()

    def say(self, line: str) -> None:
        """Print a line on rank 0, unless it is empty."""
        if line and not self.over:
            with contextlib.suppress(BrokenPipeError):  # in a thread: the script's own next line ends it
                print(line, flush=True)

    def end(self) -> None:
        """End the last stage: from now on the script speaks for itself."""
        if self.timer:
            self.timer.cancel()
        self.timer, self.over = None, True
