"""Measures how fast processes exchange data: the time of an all-reduce, for tensors of three sizes.

    torchrun --standalone --nproc_per_node=2 -m techniques.allreduce

Every process sums the same tensors as training sums gradients. Two speeds are printed, in GB/s:

    algorithm  size of the tensor / time: what an update waits for
    bus        algorithm x 2 (W - 1) / W: what each of W processes sends in a ring. It does not depend on W:
               compare it with a data sheet, and give it to bench.py --only=plan --bandwidth=...

(The convention of NVIDIA's nccl-tests.) A small tensor shows the latency, a large one the bandwidth.
"""

import time

import torch
import torch.distributed as dist

from config import start_script
from machine import distributed

SIZES = (2**20, 2**24, 2**26)  # bytes
TURNS = 5


def seconds(t: torch.Tensor) -> float:
    """Median time of TURNS all-reduces of t. One more before them opens the connections, uncounted."""
    times = []
    for _ in range(TURNS + 1):
        distributed.barrier()
        started = time.perf_counter()
        dist.all_reduce(t)
        t[0].item()  # waits until a GPU has finished
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[TURNS // 2]


def main() -> None:
    """Print a line for each size. ValueError if there is only one process."""
    rank, world_size, device = distributed.start()
    if world_size == 1:
        raise ValueError(
            "one process has nobody to talk to; start several: "
            "torchrun --standalone --nproc_per_node=2 -m techniques.allreduce"
        )
    if rank == 0:
        print(f"{world_size} processes, {dist.get_backend()}, {device}")
    for size in SIZES:
        each = seconds(torch.zeros(size // 4, device=device))  # float32
        speed = size / each / 1e9
        bus = speed * 2 * (world_size - 1) / world_size
        if rank == 0:
            speeds = f"algorithm {speed:.3g} GB/s, bus {bus:.3g} GB/s"
            print(f"{size / 2**20:4.0f} MB: {1e3 * each:8.2f} ms, {speeds}", flush=True)
    distributed.barrier()


if __name__ == "__main__":
    start_script(__doc__)
    main()
