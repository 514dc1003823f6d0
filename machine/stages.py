"""A slow start says what it is doing: a stage that still runs after two seconds is named on the screen."""

import os
import sys
import threading

SECONDS = 2.0  # a stage that is shorter is not worth a line
RANK = "RANK"  # torchrun's variable: only rank 0 speaks


class Stages:
    """The stages of a start. A script calls begin("building the model") before each, end() after the last."""

    def __init__(self):
        self.timer = None
        self.over = os.environ.get(RANK, "0") != "0"

    def begin(self, what: str) -> None:
        """End the stage before and begin this one. After end(), nothing."""
        if self.over:
            return
        if self.timer:
            self.timer.cancel()
        script = sys._getframe(1).f_code  # what called begin()
        self.timer = threading.Timer(SECONDS, self.tell, (what, script, threading.get_ident()))
        self.timer.daemon = True  # it does not keep a process alive that has nothing else to do
        self.timer.start()

    def say(self, line: str) -> None:
        """Print a line on rank 0, unless it is empty."""
        if line and not self.over:
            print(line, flush=True)

    def tell(self, what: str, script, thread: int) -> None:
        """Print the stage, unless its script has been left by an error, as in a notebook that goes on."""
        frame = sys._current_frames().get(thread)
        while frame and frame.f_code is not script:
            frame = frame.f_back
        if frame and not self.over:
            print(f"{what} ...", flush=True)

    def end(self) -> None:
        """End the last stage: from now on the script speaks for itself."""
        if self.timer:
            self.timer.cancel()
        self.timer, self.over = None, True
