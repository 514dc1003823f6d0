"""One process or many: the same train.py runs alone, or once per GPU, on one machine or on several.

    python train.py                                       one process
    torchrun --standalone --nproc_per_node=4 train.py     four, on one machine

torchrun tells each process its place through environment variables: RANK (0 ... WORLD_SIZE-1, over all
machines), LOCAL_RANK (on this machine), WORLD_SIZE. Alone, a process neither joins, sums nor waits.

What each of W processes (ranks) holds of P parameters, and what they tell each other in an update:

    strategy  weights  gradients  optimizer   exchanged
    ddp       P        P          all         gradients are summed            (Li et al., 2020)
    zero1     P        P          1/W         and each rank sends its weights (Rajbhandari et al., 2020)
    fsdp      P/W      P/W        1/W         weights are gathered block by block, gradients are summed where
                                              they belong (Zhao et al., 2023)

The engine is torch's: DistributedDataParallel, ZeroRedundancyOptimizer, fully_shard. Its heavier modules take
a second to import and are imported where they are used.
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

from machine.hardware import choose_device

STRATEGIES = ("ddp", "zero1", "fsdp")


def start(
    device: str = "auto", backend: str = "auto", strategy: str = "ddp", timeout: float = 600
) -> tuple[int, int, torch.device]:
    """Join the process group, if torchrun started us, and choose the device.

    device: auto | cpu | cuda | cuda:N | mps; auto is CUDA if it is there, else CPU. backend: auto | nccl |
    gloo. strategy: see above; zero1 and fsdp make a group of one process where there is no torchrun. timeout:
    seconds that a process waits for the others. Returns (rank, world_size, device). Raises ValueError for
    what this machine lacks.
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
        # gloo beside nccl: for what lies in CPU memory (offload, sharded checkpoints)
        join("cpu:gloo,cuda:nccl" if device.type == "cuda" and backend != "gloo" else "gloo", timeout)
    return rank, world_size, device


def join(backend: str, timeout: float) -> None:
    """Join the process group; without torchrun make one of this process alone."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    limit, hook = timedelta(seconds=timeout), sys.excepthook
    store = meet(rank, world_size, limit) if "RANK" in os.environ else dist.HashStore()
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
    sys.excepthook = hook  # torch has put its own around it, which loses our one-line errors
    atexit.register(leave)


def leave() -> None:
    """End the process group, if there is one, and let gloo's threads put down what they hold.

    DDP keeps the group alive, so these threads run on into the end of Python, and one that has a Python
    object left to free then aborts the process ("terminate called without an active exception", torch 2.13).
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(0.1)


def meet(rank: int, world_size: int, limit: timedelta) -> dist.Store:
    """The store in which the ranks of this start, and of no other, leave each other their addresses.

    After --max-restarts of torchrun the same store still has the addresses of the processes that are gone,
    and to use them fails (torch 2.5 to 2.13, pytorch issue 135712; TORCHELASTIC_RESTART_COUNT does not help,
    each machine counts for itself). So rank 0 thinks of a name for this start, and each other rank asks for
    it under a name that no process before had. ValueError if some do not come.
    """
    began, own, seconds = time.monotonic(), uuid.uuid4().hex, limit.total_seconds()
    advice = "look for the first error of the other processes, or allow more with --timeout=SECONDS"
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=limit))
        if rank:
            store.set(f"rank {rank} asks", own)
            name = store.get(own).decode()  # waits for the answer
            store.set(f"{name} {rank}", "is here")
            return dist.PrefixStore(name, store)
    except dist.DistError as error:
        other = "rank 0" if rank else "another rank"
        raise ValueError(f"{other} has not come in {seconds:.0f} s ({error}); {advice}") from None
    away = set(range(1, world_size))
    while away:
        for other in sorted(away):
            if store.check([f"rank {other} asks"]):  # perhaps one that is gone: answer until it is here
                store.set(store.get(f"rank {other} asks").decode(), own)
            if store.check([f"{own} {other}"]):
                away.remove(other)
        if time.monotonic() - began > seconds:
            missing = ", ".join(map(str, sorted(away)))
            raise ValueError(f"rank {missing} of {world_size} has not come in {seconds:.0f} s; {advice}")
        time.sleep(0.01)
    return dist.PrefixStore(own, store)


def share_batch(
    global_batch_size: int, batch_size: int, micro_steps: int, world_size: int
) -> tuple[int, int]:
    """(batch_size, micro-steps) of each process, so that all together read global_batch_size windows.

    Micro-batches are as large as batch_size allows. 0 leaves both as they are. ValueError where the windows
    cannot be shared equally.
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
    """The GPT on the device; with strategy fsdp cut into parts, of which this rank keeps one. In place.

    fsdp (fully_shard): of each matrix a rank holds n_rows / world_size rows, as a DTensor. The weights of a
    block are gathered right before it computes and dropped right after, forward and backward; those outside
    the blocks stay from forward to backward. With a dtype of 16 bits the blocks' weights travel in it, the
    gradients are summed in float32. offload (CUDA only): parts and optimizer rest in CPU memory.
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
    register_fsdp_forward_method(model, "next_logits")  # generation calls this one, not forward() ...
    if low:  # ... and without autocast, which weights of 16 bits beside activations of 32 need
        model.next_logits = torch.autocast(device.type, low)(model.next_logits)
    return model


def wrap(model: torch.nn.Module, world_size: int, strategy: str) -> torch.nn.Module:
    """DistributedDataParallel: after backward, every rank holds the gradient averaged over all ranks.

    Gradients lie in the buckets that are sent, not in a copy beside them: 4 bytes less a parameter. (fsdp
    does the same by itself, for its part.)
    """
    if world_size == 1 or strategy == "fsdp":
        return model
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def sync_gradients(model: torch.nn.Module, last: bool) -> None:
    """Exchange gradients in the last micro-step only: once per update. Without effect on one process."""
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(last)  # fsdp
    else:
        model.require_backward_grad_sync = last  # ddp, zero1


def gathered(t: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that is cut into parts (all ranks must ask for it together), or itself."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def local_shard(t: torch.Tensor) -> torch.Tensor:
    """What this rank has of a tensor: its part, or the whole of one that is not cut."""
    return t.to_local() if hasattr(t, "to_local") else t


def shard_like(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Of a whole tensor, which every rank has, the part that this rank holds of `like`; nothing is sent."""
    if not hasattr(like, "full_tensor") or not t.ndim:
        return t
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = DTensor.from_local(t, like.device_mesh, [Replicate()], run_check=False)
    return everywhere.redistribute(placements=like.placements)


def full_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
    """state_dict() of both as one process would have them, on rank 0; all ranks must call this together."""
    if hasattr(optimizer, "consolidate_state_dict"):  # zero1
        optimizer.consolidate_state_dict(to=0)
        return model.state_dict(), optimizer.state_dict() if dist.get_rank() == 0 else {}
    weights, averages = model.state_dict(), optimizer.state_dict()
    if any(hasattr(t, "full_tensor") for t in weights.values()):  # fsdp
        weights = {name: gathered(t).cpu() for name, t in weights.items()}
        averages["state"] = {
            i: {name: gathered(t).cpu() for name, t in state.items()}
            for i, state in averages["state"].items()
        }
    return weights, averages


def sum_over_ranks(numbers: list[float], device: torch.device) -> list[float]:
    """Each number summed over all ranks, in float64."""
    if not dist.is_initialized():
        return numbers
    total = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def barrier() -> None:
    """Wait until every rank is here. ValueError if one does not come."""
    try:
        if dist.is_initialized():
            dist.barrier()
    except RuntimeError as error:
        if not (reason := lost_contact(error)):
            raise
        raise ValueError(reason) from None


def all_gather(value) -> list:
    """The value of each rank (any small object), in order of rank, on every rank. Waits for all."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def lost_contact(error: BaseException) -> str:
    """Why the others do not answer, in one line; "" if the error is of another kind."""
    words = "timed out|Connection (closed|reset|refused)|Broken pipe|unreachable|No route"
    text = str(error)
    if not (dist.is_initialized() and isinstance(error, RuntimeError) and re.search(words, text, re.I)):
        return ""
    cause = re.sub(r"\[\S+/\S+\] ", "", text.splitlines()[-1])  # without the place in torch's C++
    return (
        f"another process does not answer any more: it ended, or the network broke ({cause[:90]}); "
        "go on from the last checkpoint with --init_from=auto"
    )
