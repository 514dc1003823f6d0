"""On which device, in which precision, compiled or not."""

import contextlib
import re

import torch


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


def try_compile(model: torch.nn.Module, inputs: tuple, autocast) -> torch.nn.Module:
    """torch.compile(model), tried on the inputs; if that fails, the model itself and a line on why.

    fsdp: each block by itself, in place; what gathers the weights between them cannot be compiled.
    """
    blocks = model.blocks if hasattr(model, "set_requires_gradient_sync") else []
    try:
        for block in blocks:
            block.compile()
        compiled = model if blocks else torch.compile(model)
        with autocast:
            compiled(*inputs).sum().backward()
        model.zero_grad(set_to_none=True)
        return compiled
    except Exception as error:
        for block in blocks:
            block._compiled_call_impl = None
        reason = str(error).strip().split("\n")[0]
        print(f"torch.compile does not work here, going on without it: {type(error).__name__}: {reason}")
        return model


def to_device(t: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; for CUDA from pinned memory, so that the copy overlaps with computing."""
    return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t.to(device)


def loss_scaler(dtype: str, device: torch.device, state: dict) -> torch.amp.GradScaler:
    """Keeps gradients in float16's range (Micikevicius et al., 2018); off in other precisions.

    state: of a scaler before, as saved; {} for none.
    """
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
    if state:  # empty if it was off
        scaler.load_state_dict(state)
    return scaler
