"""One process or many: train.py runs alone, or once per GPU, on one machine or several.

    python train.py                                       one process
    torchrun --standalone --nproc_per_node=4 train.py     four, on one machine

torchrun sets environment variables for each process: RANK (0 ... WORLD_SIZE-1, over all machines),
LOCAL_RANK (on this machine), WORLD_SIZE. A process that runs alone communicates nothing.

What each of W processes (ranks) holds of P parameters, and what they tell each other in an update:

    strategy  weights  gradients  optimizer   exchanged
    ddp       P        P          all         gradients are summed            (Li et al., 2020)
    zero1     P        P          1/W         and each rank sends its weights (Rajbhandari et al., 2020)
    fsdp      P/W      P/W        1/W         weights are gathered block by block, gradients are summed where
                                              they belong (Zhao et al., 2023)

torch does the work: DistributedDataParallel, ZeroRedundancyOptimizer, fully_shard. The modules that take a
second to import are imported where they are used.
"""

import atexit
import os
import re
import sys
import time
import uuid
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from config import at_end
from machine.hardware import choose_device

STRATEGIES = ("ddp", "zero1", "fsdp")


def start(
    device: str = "auto", backend: str = "auto", strategy: str = "ddp", timeout: float = 600
) -> tuple[int, int, torch.device]:
    """Choose the device; join the process group if torchrun started this process.

    device: auto | cpu | cuda | cuda:N | mps; auto is CUDA if available, else CPU. backend: auto | nccl |
    gloo. strategy: see above; without torchrun, zero1 and fsdp make a group of one process. timeout: seconds
    that a process waits for the others. Returns (rank, world_size, device). Raises ValueError for an unknown
    value, and for a device that this machine lacks.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = choose_device(device)
    if device.type == "cuda" and world_size > 1:
        device = choose_device("cuda:" + os.environ["LOCAL_RANK"])
        torch.cuda.set_device(device)
    if backend not in ("auto", "nccl", "gloo"):
        raise ValueError(f"backend={backend} is unknown; expected auto, nccl or gloo")
    if backend == "nccl" and device.type != "cuda":
        raise ValueError(f"backend=nccl needs CUDA, and device is {device.type}; use --backend=gloo or auto")
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy} is unknown; expected {', '.join(STRATEGIES)}")
    if not timeout > 0:
        raise ValueError(f"timeout={timeout} makes no sense; expected seconds, such as 600")
    if world_size > 1 or strategy != "ddp":
        # gloo as well as nccl: for tensors in CPU memory (offload, sharded checkpoints)
        join("cpu:gloo,cuda:nccl" if device.type == "cuda" and backend != "gloo" else "gloo", timeout)
    return rank, world_size, device


def join(backend: str, timeout: float) -> None:
    """Join the process group; without torchrun, make a group of this process alone."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    limit, hook = timedelta(seconds=timeout), sys.excepthook
    store = meet(rank, world_size, limit) if "RANK" in os.environ else dist.HashStore()
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
    sys.excepthook = hook  # init_process_group replaces it, and our one-line errors would be lost
    if "RANK" in os.environ:
        atexit.register(leave)  # a process of torchrun ends with its script
    else:
        at_end(leave)  # a notebook goes on


def leave() -> None:
    """End the process group, if there is one, and give gloo's threads time to free their Python objects.

    DDP keeps the group alive, so gloo's threads still run when Python shuts down. A thread that frees a
    Python object then aborts the process ("terminate called without an active exception", torch 2.13).
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(0.1)


def meet(rank: int, world_size: int, limit: timedelta) -> dist.Store:
    """Return the store in which the ranks exchange their addresses. No earlier start has used it.

    When torchrun restarts the processes (--max-restarts), the store still holds the addresses of the
    processes that ended; connecting to them fails (torch 2.5 to 2.13, pytorch issue 135712).
    TORCHELASTIC_RESTART_COUNT does not help: each machine counts for itself. So rank 0 invents a unique name
    for this start. Each other rank invents a unique name for its question, asks for the name of the start,
    and confirms. Raises ValueError if a rank has not joined within the limit.
    """
    began, own, seconds = time.monotonic(), uuid.uuid4().hex, limit.total_seconds()
    advice = (
        "look for the first error of the other processes, or let train.py wait longer with --timeout=SECONDS"
    )
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=limit))
        if rank:
            store.set(f"rank {rank} asks", own)
            name = store.get(own).decode()  # waits for the answer
            store.set(f"{name} {rank}", "is here")
            return dist.PrefixStore(name, store)
    except dist.DistError as error:
        other = "rank 0" if rank else "another rank"
        raise ValueError(f"{other} has not joined within {seconds:.0f} s ({error}); {advice}") from None
    missing = set(range(1, world_size))
    while missing:
        for other in sorted(missing):
            if store.check([f"rank {other} asks"]):  # an earlier process may have asked: repeat the answer
                store.set(store.get(f"rank {other} asks").decode(), own)
            if store.check([f"{own} {other}"]):
                missing.remove(other)
        if time.monotonic() - began > seconds:
            ranks = ", ".join(map(str, sorted(missing)))
            raise ValueError(f"rank {ranks} of {world_size} has not joined within {seconds:.0f} s; {advice}")
        time.sleep(0.01)
    return dist.PrefixStore(own, store)


def share_batch(
    global_batch_size: int, batch_size: int, micro_steps: int, world_size: int
) -> tuple[int, int]:
    """Return (batch_size, micro_steps) of each process, so that all together read global_batch_size windows.

    Micro-batches become as large as batch_size allows. global_batch_size=0 changes nothing. Raises ValueError
    if the processes cannot share the windows equally.
    """
    if not global_batch_size:
        return batch_size, micro_steps
    if global_batch_size % world_size:
        divisors = [n for n in range(1, global_batch_size + 1) if global_batch_size % n == 0]
        fewer, more = [n for n in divisors if n < world_size], [n for n in divisors if n > world_size]
        nearest = " or ".join(map(str, fewer[-1:] + more[:1]))
        raise ValueError(
            f"{world_size} processes cannot share global_batch_size={global_batch_size} windows equally; "
            f"start {nearest}, or choose another global_batch_size"
        )
    each = global_batch_size // world_size
    batch_size = max(n for n in range(1, min(batch_size, each) + 1) if each % n == 0)
    return batch_size, each // batch_size


def place(
    model: torch.nn.Module, device: torch.device, strategy: str, dtype: str, offload: str
) -> torch.nn.Module:
    """Move the GPT to the device; with strategy fsdp, shard it over the ranks. In place; returns the model.

    fsdp (fully_shard): a rank holds n_rows / world_size rows of each matrix, as a DTensor. The weights of a
    block are gathered right before it computes and freed right after, forward and backward. Weights outside
    the blocks stay gathered from forward to backward. If dtype has 16 bits, the blocks' weights are gathered
    in it; gradients are always summed in float32. offload (CUDA only): shards and optimizer state stay in CPU
    memory.
    """
    if offload not in ("", "cpu", "disk"):
        raise ValueError(f"offload={offload} is unknown; expected cpu, disk, or nothing")
    if strategy != "fsdp":
        if offload and device.type == "cuda":
            raise ValueError(f"offload={offload} on a GPU needs --strategy=fsdp (one process will do)")
        return model.to(device)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    policy = CPUOffloadPolicy() if offload and device.type == "cuda" else OffloadPolicy()
    options = {"mesh": init_device_mesh(device.type, (dist.get_world_size(),)), "offload_policy": policy}
    low = None if dtype == "float32" else getattr(torch, dtype)
    precision = MixedPrecisionPolicy(low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mp_policy=precision, **options)
    fully_shard(model, **options)
    register_fsdp_forward_method(model, "next_logits")  # generation calls it instead of forward() ...
    if low:  # ... and without autocast, which 16-bit weights with 32-bit activations need
        model.next_logits = torch.autocast(device.type, low)(model.next_logits)
    return model


def wrap(model: torch.nn.Module, world_size: int, strategy: str) -> torch.nn.Module:
    """Wrap in DistributedDataParallel: after backward, every rank holds the gradients' mean over all ranks.

    Gradients live in the buckets that are sent. A separate copy would take 4 bytes more per parameter. fsdp
    needs no wrapper: it averages gradients itself, each rank those of its shard. Buffers are packed weights,
    which never change, or averages, which all ranks compute alike: to send them in each forward pass, as is
    torch's default, would cost 3.6 GB for 7B.
    """
    if world_size == 1 or strategy == "fsdp":
        return model
    return DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)


def sync_gradients(model: torch.nn.Module, last: bool) -> None:
    """Communicate gradients in the last micro-step only, so once per update. No effect on one process."""
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(last)  # fsdp
    else:
        model.require_backward_grad_sync = last  # ddp, zero1


def gathered(t: torch.Tensor) -> torch.Tensor:
    """Gather a sharded tensor; all ranks must call this together. Returns any other tensor unchanged."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def local_shard(t: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a tensor, or the tensor itself if it is not sharded. No communication."""
    return t.to_local() if hasattr(t, "to_local") else t


def shard_like(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Slice a replicated tensor the way `like` is sharded. No communication."""
    if not hasattr(like, "full_tensor") or not t.ndim:
        return t
    from torch.distributed.tensor import DTensor, Replicate

    replicated = DTensor.from_local(t, like.device_mesh, [Replicate()], run_check=False)
    return replicated.redistribute(placements=like.placements)


def full_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
    """Return the state_dict() of model and optimizer as one process would have them.

    All ranks must call this together. With zero1, only rank 0 gets the optimizer's.
    """
    if hasattr(optimizer, "consolidate_state_dict"):  # zero1
        optimizer.consolidate_state_dict(to=0)
        return model.state_dict(), optimizer.state_dict() if dist.get_rank() == 0 else {}
    weights, optimizer_state = model.state_dict(), optimizer.state_dict()
    if any(hasattr(t, "full_tensor") for t in weights.values()):  # fsdp
        weights = {name: gathered(t).cpu() for name, t in weights.items()}
        optimizer_state["state"] = {
            i: {name: gathered(t).cpu() for name, t in state.items()}
            for i, state in optimizer_state["state"].items()
        }
    return weights, optimizer_state


def world_size() -> int:
    """Number of processes in the group; 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(numbers: list[float], device: torch.device) -> list[float]:
    """Sum each number over all ranks, in float64."""
    if not dist.is_initialized():
        return numbers
    total = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def barrier() -> None:
    """Wait until every rank has called this. Raises ValueError if contact to a rank is lost."""
    try:
        if dist.is_initialized():
            dist.barrier()
    except RuntimeError as error:
        reason = lost_contact(error)
        if not reason:
            raise
        raise ValueError(reason) from None


def all_gather(value) -> list:
    """Return every rank's value (any small object), in order of rank. Waits for all ranks."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def lost_contact(error: BaseException) -> str:
    """Explain in one line an error that says another rank no longer answers; "" for any other error."""
    words = "timed out|Connection (closed|reset|refused)|Broken pipe|unreachable|No route"
    text = str(error)
    if not (dist.is_initialized() and isinstance(error, RuntimeError) and re.search(words, text, re.I)):
        return ""
    cause = re.sub(r"\[\S+/\S+\] ", "", text.splitlines()[-1])  # drops the location in torch's C++ source
    return (
        f"another process no longer answers: it ended, or the network failed ({cause[:90]}); "
        "train.py goes on from the last checkpoint with --init_from=auto"
    )
