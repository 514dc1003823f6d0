"""What lessons/ranks.py does with threads, done with processes, which gloo connects on this machine alone."""

import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

ALONE = {"linux": "lo", "darwin": "lo0"}  # the network device that leads nowhere


def processes(size: int, work: Callable) -> list:
    """work(torch.distributed) in so many processes; what each returns, in order. [] without fork (Windows).
    RuntimeError if one fails, whose message it has printed."""
    if not hasattr(os, "fork"):
        print("(no fork on this system: the part with real processes is left out)")
        return []
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside the threads of a notebook
        children = []
        for rank in range(size):
            children.append(os.fork())
            if children[-1] == 0:
                child(rank, size, work, folder)
        if any([os.waitpid(pid, 0)[1] for pid in children]):
            raise RuntimeError("a rank has failed; its message stands above")
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(size)]


def child(rank: int, size: int, work: Callable, folder: str) -> None:
    """One of the processes: it leaves its result in the folder, and ends."""
    code = 1
    try:
        warnings.simplefilter("ignore", FutureWarning)  # of torch's wrappers
        torch.set_num_threads(1)
        if sys.platform in ALONE:
            os.environ["GLOO_SOCKET_IFNAME"] = ALONE[sys.platform]
        store = dist.FileStore(f"{folder}/store", size)
        limit = timedelta(seconds=20)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
        torch.save(work(dist), f"{folder}/{rank}.pt")
        dist.barrier()  # nobody leaves while another still reads
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)  # not through the parent's clean-up
