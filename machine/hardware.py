"""The device, the precision, and whether the model is compiled."""

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

try:
    import resource  # not on Windows
except ImportError:
    resource = None

# Below so many parameters x tokens in a micro-batch, a GPU is faster than the CPU that launches its kernels:
# 6 operations for each are 3e12, about 8 ms on an H100. 10M parameters x 16,384 tokens: 1.8e11.
SMALL = 5e11


def choose_device(name: str) -> torch.device:
    """The torch.device of that name, or the best one for auto. ValueError if this machine lacks it."""
    if name == "auto":  # never mps: it has given wrong results without an error
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
    """Return (autocast context for the forward pass, name of the dtype). Weights stay float32.

    auto is bfloat16 where the processor has instructions for it (CUDA from Ampere on; x86 with AVX512-BF16 or
    AMX), else float32. It is never float16, which needs a loss scaler in training. ValueError for other
    names.
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


def try_compile(
    loss: Callable, model: torch.nn.Module, batch: tuple, autocast, one_step: bool = False
) -> Callable:
    """Compile a function of x and y (B,T) that calls the model, and try it on a batch (x, y).

    If that fails, print why and return the function as it was. With fsdp each block is compiled by itself, in
    place: torch cannot compile the gathering between blocks. one_step: an update has one micro-step, so that
    small models may be recorded().
    """
    blocks = model.blocks if hasattr(model, "set_requires_gradient_sync") else []
    device = next(model.parameters()).device
    model.require_backward_grad_sync = False  # DDP: another rank may have failed already, so wait for none
    record = one_step and is_small(model, batch[0].numel())
    try:
        x, y = (to_device(t, device) for t in batch)
        compiled = loss
        for block in blocks:
            block.compile()
        if record:
            compiled = recorded(loss, x.shape)
        elif not blocks:
            compiled = torch.compile(loss)
        compiled = fastest_attention(compiled, model, x.shape, autocast, device)
        for _ in range(3 if record else 1):  # CUDA graphs: the first call compiles, the second records
            with autocast:
                nats = compiled(x, y)
            nats.backward()
            model.zero_grad(set_to_none=True)
        return compiled
    except Exception as error:
        for block in blocks:
            block._compiled_call_impl = None
        model.zero_grad(set_to_none=True)
        if record:
            return try_compile(loss, model, batch, autocast)  # without CUDA graphs
        reason = str(error).strip().split("\n")[0]
        print(f"torch.compile does not work here, going on without it: {type(error).__name__}: {reason}")
        return loss


def is_small(model: torch.nn.Module, n_tokens: int) -> bool:
    """Is the model on a GPU that computes a micro-batch of so many tokens faster than its kernels start?"""
    parameters = list(model.parameters())
    return parameters[0].is_cuda and sum(p.numel() for p in parameters) * n_tokens <= SMALL


def recorded(loss: Callable, shape: torch.Size) -> Callable:
    """Compile a function of x and y (B,T) so that a GPU replays all kernels of its forward pass in one go,
    and those of the backward pass in another (CUDA graphs). For other shapes it is compiled without.

    A replay overwrites the gradients of the one before, and parameters hold these very tensors: right for one
    micro-step an update, wrong for sums over several (pytorch issue 96693). When memory runs out, micro-steps
    become more and smaller: another shape, so no graph.
    """
    graph, plain = torch.compile(loss, mode="reduce-overhead"), torch.compile(loss)

    def call(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if x.shape != shape:
            return plain(x, y)
        torch.compiler.cudagraph_mark_step_begin()  # the update before is done with its loss and gradients
        return graph(x, y)

    return call


def fastest_attention(
    loss: Callable, model: torch.nn.Module, shape: torch.Size, autocast, device: torch.device
) -> Callable:
    """On a GPU in 16 bits, time cuDNN's attention and flash at the shape (B,T) of a batch; print both times,
    and return the loss function with the faster one.

    torch 2.11 takes flash, 2.13 cuDNN where it finds an H100. Only the loss: in generation, cuDNN prepares
    each new length for 30 ms. With gradient_checkpointing and windows torch chooses.
    """
    config, dtype = getattr(model, "module", model).config, getattr(autocast, "fast_dtype", torch.float32)
    if device.type != "cuda" or dtype == torch.float32 or config.gradient_checkpointing or config.window:
        return loss
    kernels = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    found = {}
    for name, kernel in kernels.items():
        with contextlib.suppress(RuntimeError), sdpa_kernel(kernel):  # this GPU may lack it
            found[name] = attention_seconds(config, shape, dtype, device)
    if len(found) < 2:
        return loss
    faster = "cuDNN" if found["cuDNN"] < 0.95 * found["flash"] else "flash"  # a near tie ends the same way
    order = [kernels[name] for name in sorted(kernels, key=lambda name: name != faster)]
    times = ", ".join(f"{name} {1000 * seconds:.2f} ms" for name, seconds in found.items())
    if os.environ.get("RANK", "0") == "0":  # torchrun's variable
        print(f"attention: {faster} ({times} a layer)")
    order += [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)(loss)  # as a decorator: for each call


def attention_seconds(config, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of one layer's causal attention, forward and backward, for a batch of this shape (B,T)."""
    (B, T), heads = shape, (config.n_head, config.n_kv_head, config.n_kv_head)
    q, k, v = (
        torch.zeros(B, T, n, config.head_size, dtype=dtype, device=device, requires_grad=True) for n in heads
    )
    gqa = config.n_kv_head < config.n_head
    times = []
    for _ in range(8):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(4):
            y = F.scaled_dot_product_attention(
                *(t.transpose(1, 2) for t in (q, k, v)), None, config.dropout, True, enable_gqa=gqa
            )
            y.backward(torch.ones_like(y))
        synchronize(device)
        times.append((time.perf_counter() - started) / 4)
    return min(times)


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU; 0 for other devices, which share theirs with everyone."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def total_bytes(device: torch.device) -> int:
    """All memory of a GPU; 0 for other devices."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def synchronize(device: torch.device) -> None:
    """Wait until the device has computed all that it was given. A CPU has already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def to_device(t: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to the device. For CUDA from pinned memory, so that the copy overlaps with computing."""
    if device.type != "cuda" or t.is_cuda:
        return t.to(device)
    return t.pin_memory().to(device, non_blocking=True)


def loss_scaler(dtype: str, device: torch.device, state: dict) -> torch.amp.GradScaler:
    """A scaler that keeps gradients in float16's range (Micikevicius et al., 2018); off for other dtypes.

    state: the saved state_dict() of a scaler, or {}.
    """
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
    if state:  # the saved state is {} if the scaler was off
        scaler.load_state_dict(state)
    return scaler


def memory_mb(device: torch.device) -> float:
    """Peak memory in MB: allocated by torch on a GPU, else resident (RSS) of this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    status = Path("/proc/self/status")  # Linux, where getrusage includes the peak of the parent process
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1.024e-3 for line in lines if line.startswith("VmHWM"))
    if resource is None:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS
