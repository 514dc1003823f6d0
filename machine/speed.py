"""How many floating-point operations an update takes, and how many seconds that is on this machine."""

from time import perf_counter

import torch

SLOW = 10.0  # seconds; an update that takes longer is announced before the first one
SMALL = 1e11  # an update of fewer operations is not slow anywhere, so nothing is timed
TIMED = 0.05  # seconds for which products are timed
SHARE = 0.8  # of the rate of these products, training reaches about so much: 0.6 to 1.1 on two CPU cores
# Peak of dense bf16 matrix products in TFLOP/s, from NVIDIA's data sheets, by CUDA's device name. MFU is
# printed only for these names: an L40 is not an L4, and an H100 on PCIe does not reach 989.
BF16_PEAK = {
    "NVIDIA A100-SXM4-40GB": 312, "NVIDIA A100-SXM4-80GB": 312, "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H200": 989,
    "NVIDIA L4": 121, "NVIDIA L40S": 362, "NVIDIA GeForce RTX 3090": 71, "NVIDIA GeForce RTX 4090": 165,
}  # fmt: skip


def parameters_of(model) -> int:
    """How many numbers a model consists of; a packed weight is one, although it is no parameter of torch."""
    packed = [layer for layer in model.modules() if hasattr(layer, "dequantize")]
    weights = sum(layer.in_features * layer.out_features for layer in packed)
    biases = sum(layer.bias.numel() for layer in packed if layer.bias is not None)
    return sum(p.numel() for p in model.parameters()) + weights + biases


def flops_forward(model) -> int:
    """Operations per token of the forward pass: 2 for each weight of a matrix, and 4 n_layer n_embd T for
    attention (Chowdhery et al. 2022, PaLM, appendix B).
    """
    config, weights = model.config, parameters_of(model)
    weights -= sum(layer.idle() for layer in model.modules() if hasattr(layer, "idle"))  # of experts
    if not config.tie_weights:
        weights -= config.vocab_size * config.n_embd  # the embedding only looks up its rows
    return 2 * weights + 4 * config.n_layer * config.n_embd * config.block_size


def flops_per_token(model) -> int:
    """Operations per token of training: the forward pass three times, as each product has two gradients. A
    frozen weight has none: 2 less.
    """
    frozen = parameters_of(model) - sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not model.config.tie_weights and not any(p.requires_grad for p in model.wte.parameters()):
        frozen -= model.config.vocab_size * model.config.n_embd
    return 3 * flops_forward(model) - 2 * frozen


def flops_utilisation(model, tokens_per_second: float, device: torch.device) -> float:
    """MFU: operations that the model needs over the device's peak; 0 if unknown. Both of one device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if name not in BF16_PEAK:
        return 0.0
    return flops_per_token(model) * tokens_per_second / (1e12 * BF16_PEAK[name])


def product_rate(width: int, tokens: int, autocast, device: torch.device) -> float:
    """FLOP/s of a linear layer from `width` to 4 x `width` channels, forward and backward.

    tokens: how many it reads. autocast: the context in which the model computes. Draws no random numbers.
    """
    x = torch.full((tokens, width), 0.5, device=device, requires_grad=True)
    weight = torch.full((4 * width, width), 0.5, device=device, requires_grad=True)

    def product() -> None:
        with autocast:
            y = torch.nn.functional.linear(x, weight)
        x_grad, _ = torch.autograd.grad(y.sum(), (x, weight))
        x_grad[0, 0].item()  # waits for a GPU

    product()  # not timed: it allocates
    started, n = perf_counter(), 0
    while perf_counter() - started < TIMED:
        product()
        n += 1
    return n * 6 * tokens * width * 4 * width / (perf_counter() - started)


def slow_update(
    model, max_iters: int, batch_size: int, micro_steps: int, autocast, device: torch.device
) -> str:
    """A line for a model that is too large for this machine: how long an update will take; else "".

    max_iters: updates. batch_size, windows per micro-step, and micro_steps are those of one process.
    """
    config = model.config
    flops = flops_per_token(model) * batch_size * micro_steps * config.block_size
    if flops < SMALL:
        return ""
    most = 512 if device.type == "cpu" else 8192
    rate = SHARE * product_rate(config.n_embd, min(most, batch_size * config.block_size), autocast, device)
    seconds = flops / rate
    if seconds < SLOW:
        return ""
    elsewhere = ", or a GPU" if device.type == "cpu" else ""
    return (
        f"an update will take about {duration(seconds)} on this machine ({flops / 1e12:.1f} TFLOP per update "
        f"at {rate / 1e9:,.0f} GFLOP/s), and all {max_iters:,} about {duration(max_iters * seconds)}; what "
        "makes it shorter: a smaller --n_embd, --n_layer or --block_size, fewer windows (--batch_size, "
        f"--gradient_accumulation_steps, --global_batch_size){elsewhere}"
    )


def duration(seconds: float) -> str:
    """58.2 -> '58 s', 4662 -> '78 minutes', 1e6 -> '12 days'."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"
