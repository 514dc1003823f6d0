"""The device, the precision, and whether the model is compiled."""

import contextlib
import re
from collections.abc import Callable

import torch


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


def try_compile(loss: Callable, model: torch.nn.Module, batch: tuple, autocast) -> Callable:
    """Compile a function of x and y (B,T) that calls the model, and try it on a batch (x, y).

    If that fails, print why and return the function as it was. With fsdp each block is compiled by itself, in
    place: torch cannot compile the gathering between blocks.
    """
    blocks = model.blocks if hasattr(model, "set_requires_gradient_sync") else []
    device = next(model.parameters()).device
    model.require_backward_grad_sync = False  # DDP: another rank may have failed already, so wait for none
    try:
        for block in blocks:
            block.compile()
        compiled = loss if blocks else torch.compile(loss)
        with autocast:
            nats = compiled(*(to_device(t, device) for t in batch))
        nats.backward()
        model.zero_grad(set_to_none=True)
        return compiled
    except Exception as error:
        for block in blocks:
            block._compiled_call_impl = None
        model.zero_grad(set_to_none=True)
        reason = str(error).strip().split("\n")[0]
        print(f"torch.compile does not work here, going on without it: {type(error).__name__}: {reason}")
        return loss


def to_device(t: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to the device. For CUDA from pinned memory, so that the copy overlaps with computing."""
    return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t.to(device)


def loss_scaler(dtype: str, device: torch.device, state: dict) -> torch.amp.GradScaler:
    """A scaler that keeps gradients in float16's range (Micikevicius et al., 2018); off for other dtypes.

    state: the saved state_dict() of a scaler, or {}.
    """
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
    if state:  # the saved state is {} if the scaler was off
        scaler.load_state_dict(state)
    return scaler
