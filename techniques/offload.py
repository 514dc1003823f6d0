"""The optimizer's averages in files instead of memory: for AdamW 8 of the 16 bytes that each parameter takes.

    python train.py config/tiny.py --offload=disk

Each average becomes a memory-mapped file: the operating system reads and writes its pages when the optimizer
touches them, and may drop them from memory whenever it needs the room. The arithmetic is the same, bit for
bit. An update touches all of them once, so the disk should read and write 16 bytes a parameter in much less
than the time of an update (Rajbhandari et al., 2021: ZeRO-Infinity).

--offload=cpu has no code here: it is fully_shard's CPUOffloadPolicy (distributed.py), for GPUs.
"""

import os
import tempfile
from pathlib import Path

import torch

from machine.distributed import local_shard
from optim import init_state, named_state


def to_disk(optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """Move what this rank's optimizer remembers into files in `folder`; returns their size in bytes.

    The files have no names: the disk space is free again when the process ends, however it ends. On a GPU
    the optimizer has to be in CPU memory already (strategy fsdp); ValueError if it is not.
    """
    init_state(optimizer)
    n_bytes = 0
    for state in named_state(optimizer).values():
        for average in state.values():
            if average.ndim == 0:
                continue  # the number of steps
            own = local_shard(average)
            if own.device.type != "cpu":
                raise ValueError("offload=disk on a GPU needs --strategy=fsdp, whose optimizer is on the CPU")
            own.set_(mapped(own, folder))
            n_bytes += own.nbytes
    return n_bytes


def mapped(t: torch.Tensor, folder: Path) -> torch.Tensor:
    """A copy of t in a file without a name; zeros are not written, the file has holes there."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(dir=folder)
    os.close(handle)
    copy = torch.from_file(path, shared=True, size=t.numel(), dtype=t.dtype).view_as(t)
    os.unlink(path)
    if t.any():
        copy.copy_(t)
    return copy
