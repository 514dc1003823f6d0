"""What can go wrong in a run, and what is done about it: signals, numbers gone bad, memory that runs out."""

import contextlib
import math
import os
import signal
from collections.abc import Iterator

import torch


class StopRequest:
    """SIGINT (Ctrl-C) and SIGTERM: the first asks the loop to stop after an update, a second ends at once."""

    def __init__(self):
        self.number = 0  # of the signal, once one has come
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)

    def handle(self, number: int, frame) -> None:
        self.number = number
        os.write(2, b"\nstopping after this update\n")  # print is not safe in a signal handler
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)


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
