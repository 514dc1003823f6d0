"""Keeps optimizer state in files instead of memory: for AdamW, 8 of the 16 bytes of each parameter.

    python train.py config/tiny.py --offload=disk

Each tensor of the state becomes a memory-mapped file. The operating system reads and writes its pages when
the optimizer touches them, and may drop them from memory when it needs the room. The results are the same,
bit for bit. An update touches the whole state once: 16 bytes read and written for each parameter. The disk
should need much less time for that than an update takes (Rajbhandari et al., 2021: ZeRO-Infinity).

--offload=cpu has no code here: for GPUs, machine/distributed.py uses fully_shard's CPUOffloadPolicy.
"""

import os
import tempfile
from pathlib import Path

import torch

from machine.distributed import local_shard
from optim import init_state, named_state


def to_disk(optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """Move this rank's optimizer state into files in `folder`; return their size in bytes.

    The files have no names, so their disk space is free again when the process ends, even if it is killed.
    ValueError on a GPU, unless strategy fsdp has already put the optimizer state into CPU memory.
    """
    init_state(optimizer)
    n_bytes = 0
    for state in named_state(optimizer).values():
        for tensor in state.values():
            if tensor.ndim == 0:
                continue  # the number of steps
            own = local_shard(tensor)
            if own.device.type != "cpu":
                raise ValueError("offload=disk on a GPU needs --strategy=fsdp, whose optimizer is on the CPU")
            own.set_(mapped(own, folder))
            n_bytes += own.nbytes
    return n_bytes


def mapped(t: torch.Tensor, folder: Path) -> torch.Tensor:
    """Copy t into a file without a name. Zeros are not written: the file then takes no space on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(dir=folder)
    os.close(handle)
    copy = torch.from_file(path, shared=True, size=t.numel(), dtype=t.dtype).view_as(t)
    os.unlink(path)
    if t.any():
        copy.copy_(t)
    return copy
