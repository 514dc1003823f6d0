"""One process or many, on which device and in which precision: the same train.py runs alone, or once per GPU.

    python train.py                                       one process
    torchrun --standalone --nproc_per_node=4 train.py     four, on one machine

torchrun tells each process its place through environment variables: RANK (0 ... WORLD_SIZE-1, over all
machines), LOCAL_RANK (on this machine), WORLD_SIZE. Alone, a process neither joins, sums nor waits.
"""

import atexit
import contextlib
import os
import re
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def start(device: str = "auto", backend: str = "auto") -> tuple[int, int, torch.device]:
    """Join the process group, if torchrun started us, and choose the device.

    device: auto | cpu | cuda | cuda:N | mps; auto is CUDA if it is there, else CPU. backend: auto | nccl |
    gloo. Returns (rank, world_size, device). Raises ValueError for a device or backend that this machine
    lacks.
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
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" and backend != "gloo" else "gloo")
        atexit.register(dist.destroy_process_group)
    return rank, world_size, device


def choose_device(name: str) -> torch.device:
    """The torch.device for a setting; ValueError (one line) when this machine does not have it."""
    if name == "auto":  # never mps: it has given wrong results without an error; it must be asked for
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if not re.fullmatch("cpu|mps|cuda(:[0-9]+)?", name):
        raise ValueError(f"device={name} is unknown; expected auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={name} is not available: this torch finds no CUDA GPU; use --device=cpu or auto"
        )
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={name} is not available: there are {torch.cuda.device_count()} GPUs, counted from 0"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device=mps is not available on this machine; use --device=cpu or auto")
    return torch.device(name)


def choose_precision(dtype: str, device: torch.device) -> tuple[contextlib.AbstractContextManager, str]:
    """(context for the forward pass, name of the dtype). Weights stay float32, matrix products are cast.

    auto is bfloat16 where the processor multiplies it natively (CUDA from Ampere on; x86 with AVX512-BF16 or
    AMX), else float32. float16 needs a loss scaler in training; it is never chosen by auto.
    """
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype={dtype} is unknown; expected auto, float32, bfloat16 or float16")
    if dtype == "auto":
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        if device.type == "cpu":
            native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        dtype = "bfloat16" if native else "float32"
    if dtype == "float32":
        return contextlib.nullcontext(), dtype
    return torch.autocast(device.type, getattr(torch, dtype)), dtype


def wrap(model: torch.nn.Module, world_size: int) -> torch.nn.Module:
    """DistributedDataParallel: after backward, every rank holds the gradient averaged over all ranks."""
    return DistributedDataParallel(model) if world_size > 1 else model


def try_compile(model: torch.nn.Module, inputs: tuple, autocast) -> torch.nn.Module:
    """torch.compile(model), tried on the inputs; if that fails, the model itself and a line on why."""
    try:
        compiled = torch.compile(model)
        with autocast:
            compiled(*inputs).sum().backward()
        model.zero_grad(set_to_none=True)
        return compiled
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        print(f"torch.compile does not work here, going on without it: {type(error).__name__}: {reason}")
        return model


def to_device(t: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; for CUDA from pinned memory, so that the copy overlaps with computing."""
    return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t.to(device)


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has an exception of its own, the CPU's allocator has only these words."""
    return isinstance(error, torch.OutOfMemoryError) or "you tried to allocate" in str(error)


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


def sum_over_ranks(numbers: list[float], device: torch.device) -> list[float]:
    """Each number summed over all ranks, in float64."""
    if not dist.is_initialized():
        return numbers
    total = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def all_gather(value) -> list:
    """The value of each rank (any small object), in order of rank, on every rank. Waits for all, on CPUs."""
    if not dist.is_initialized():
        return [value]
    patient = dist.new_group(timeout=timedelta(days=7))  # the default group waits half an hour
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=patient)
    return values
