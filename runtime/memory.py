"""Does a run fit into memory? Its bytes by formula, and a smaller batch when memory runs out (Attempt).

P parameters on W ranks, each a GPU with its own process. What a rank holds, in bytes:

    strategy  weights         gradients             optimizer   source
    ddp       4 P             4 P                   all         Li et al., 2020
    zero1     4 P             4 P                   1/W         Rajbhandari et al., 2020 (ZeRO)
    fsdp      4 P/W + 2       4 P/W; all 4 P while  1/W         Zhao et al., 2023
              whole blocks    micro-steps add up

The optimizer state is 8 P with AdamW; with Muon 4 bytes a parameter of the matrices in the blocks, and 8 for
all others. Frozen parameters have neither gradients nor optimizer state. Packed weights have their packed
bytes (techniques/packing.py), on each rank: fsdp shards parameters only. Activations come on top and grow
with the batch; those of techniques.BLOCKS have no formula. `bench.py --only=sharding` compares the first
three with real runs, --only=footprint all four, with LoRA and QLoRA (lab/plan_check.py).
"""

import contextlib
import ctypes
import dataclasses
import math

import torch
from torch import nn

import optim
import techniques
from config import is_out_of_memory
from machine import distributed
from machine.layers import Linear
from model import GPT, Block, GPTConfig


def shape_of(settings: dict, vocab_size: int, base: dict | None = None) -> GPTConfig:
    """The model's shape: train.py's settings, and what only the base's shape has, such as Mistral's window.

    base: the model_config of the checkpoint that the run starts from.
    """
    names = {field.name for field in dataclasses.fields(GPTConfig)} & settings.keys()
    shape = {**(base or {}), **{name: settings[name] for name in names}, "vocab_size": vocab_size}
    return GPTConfig(**shape)


def on_meta(settings: dict, vocab_size: int) -> GPT:
    """The model of train.py's settings, techniques included, on the meta device: with shapes, no memory."""
    with torch.device("meta"):
        model = techniques.change("change_model", GPT(shape_of(settings, vocab_size)), settings)
    optim.freeze_parameters(model, settings["freeze"])
    return model


def shard_numel(p: torch.Tensor, W: int) -> int:
    """Elements of rank 0's shard of a tensor, sharded by rows: 10 rows on 4 ranks are 3 + 3 + 3 + 1."""
    return math.ceil(p.size(0) / W) * (p.numel() // p.size(0))


# ---- how much, by formula
def logits_limit(logits_mb: int, gpu_bytes: float) -> float:
    """train.py's setting in MB; where it is -1, 256, or a sixteenth of the GPU's memory if that is more.

    An H100 takes a quarter longer in chunks, and 5 GB hold the logits of 24 windows of GPT-2. All of the
    memory counts, not what is free just now: a resumed run computes as before.
    """
    return logits_mb if logits_mb >= 0 else max(256, gpu_bytes / 2**20 / 16)


def too_many_logits(n_tokens: int, vocab_size: int, logits_mb: float) -> bool:
    """Do the float32 logits of so many tokens take more than logits_mb? Then the loss is computed in chunks.

    logits_mb: from logits_limit(); 0 means no limit.
    """
    return 0 < logits_mb * 2**20 < 4 * n_tokens * vocab_size


def optimizer_bytes(model: GPT, settings: dict, W: int) -> int:
    """Bytes of optimizer state on the rank that holds the most.

    ZeroRedundancyOptimizer assigns complete tensors, the largest first, each to the rank with the fewest
    elements so far. One rank gets all of a large embedding, so it may hold much more than 1/W.
    """
    numbers, held = [0] * W, [0] * W
    for group in optim.parameter_groups(model, settings):
        each = 4 * len(optim.STATE_NAMES[group["kind"]])
        for p in sorted((p for _, p in group["params"]), key=torch.numel, reverse=True):
            if settings["strategy"] == "zero1":
                rank = numbers.index(min(numbers))
                numbers[rank] += p.numel()
                held[rank] += each * p.numel()
            else:
                held[0] += each * (shard_numel(p, W) if settings["strategy"] == "fsdp" else p.numel())
    return max(held)


def kept(model: GPT, settings: dict, W: int) -> dict[str, int]:
    """Bytes per rank of weights, gradients (at the end of the backward pass) and optimizer state."""
    sharded = settings["strategy"] == "fsdp"
    held = {p: p.element_size() * (shard_numel(p, W) if sharded else p.numel()) for p in model.parameters()}
    buffers = sum(buffer.nbytes for buffer in model.buffers())  # packed weights, averages
    return {
        "weights": sum(held.values()) + buffers,
        "gradients": sum(n_bytes for p, n_bytes in held.items() if p.requires_grad),
        "optimizer": optimizer_bytes(model, settings, W),
    }


def trained(module: nn.Module) -> int:
    """How many of a module's numbers are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def under_muon(model: GPT, settings: dict) -> list[nn.Parameter]:
    """The matrices that Muon updates; none with another optimizer."""
    groups = [group for group in optim.parameter_groups(model, settings) if group["kind"] == "muon"]
    return [p for group in groups for _, p in group["params"]]


def accumulated(model: GPT, settings: dict, W: int) -> int:
    """Bytes of gradients on a rank before the last of several micro-steps: of all parameters, even with fsdp.

    fsdp sums and shards them in the last micro-step only, because each time costs a reduce-scatter.
    """
    return 4 * trained(model) * (settings["gradient_accumulation_steps"] > 1)


def block_activations(block: Block, dtype: str) -> int:
    """Bytes that a block keeps per token for the backward pass.

    It keeps the residual stream before both norms (float32; RMSNorm also keeps its output, if its weights are
    trained); q, k, v and attention's output, but no T x T scores (Dao et al., 2022); the inputs of qk_norm
    (float32); and the MLP before and after its activation. A linear layer keeps its input only if something
    in it is trained: W, or LoRA's A, whose output of rank numbers is not counted. For those that read a
    norm's output, autocast makes a copy for each. That is 36 C for GPT-2 in 16 bits, and with LoRA on q, k, v
    and o 30 C. Korthikanti et al., 2022, count 34 C, with a residual stream of 16 bits.
    """
    n, config = 4 if dtype == "float32" else 2, block.attn.config
    C, q, kv = config.n_embd, config.n_head * config.head_size, config.n_kv_head * config.head_size
    swiglu = config.activation == "swiglu"
    inside = [block.mlp.up, block.mlp.gate] if swiglu else [block.mlp.up]
    readers = [block.attn.q, block.attn.k, block.attn.v], inside
    copies = [sum(trained(layer) > 0 for layer in layers) for layers in readers]
    if n == 4:
        copies = [min(1, number) for number in copies]  # all of them keep the norm's output itself
    one_product = n == 2 and all(type(layer) is Linear for layer in readers[0])  # q, k and v
    if one_product:
        copies[0] = min(1, copies[0])
    outputs = config.norm == "rmsnorm" and trained(block.attn_norm) > 0
    stream = 4 * C * (4 if outputs else 2)
    hidden = config.n_ff * ((3 if swiglu else 1) + (trained(block.mlp.down) > 0))
    before = q + kv  # what rope or a norm turns into q and k: v is a view of the same memory
    if not one_product or (config.position != "rope" and not config.qk_norm):
        before = 0
    numbers = sum(copies) * C + before + 2 * q + 2 * kv + hidden
    return stream + n * numbers + 4 * (q + kv) * (config.qk_norm > 0)


def hidden_activations(model: GPT, settings: dict) -> int:
    """Bytes that the forward pass of a micro-step keeps for the backward pass, without logits.

    With gradient_checkpointing every block keeps only its input, and the one that is recomputed all it needs.
    """
    n, config = 4 if settings["dtype"] == "float32" else 2, model.config
    C, block = config.n_embd, block_activations(model.blocks[0], settings["dtype"])
    blocks = 4 * C * config.n_layer + block if config.gradient_checkpointing else block * config.n_layer
    norm = 4 * C * (2 if config.norm == "rmsnorm" and trained(model.norm) else 1)  # the last one
    outside = norm + n * C * (trained(model.head) > 0)  # and the head's input
    return settings["batch_size"] * config.block_size * (blocks + outside)


def activations(model: GPT, settings: dict) -> int:
    """The same with the logits, their log-softmax and their gradient. logits_mb: from logits_limit()."""
    tokens, vocab_size = settings["batch_size"] * model.config.block_size, model.config.vocab_size
    logits = 4 * tokens * vocab_size
    if too_many_logits(tokens, vocab_size, settings["logits_mb"]):
        logits = 2**26  # bytes of a chunk
    return hidden_activations(model, settings) + 3 * logits


def working(model: GPT, settings: dict, W: int) -> tuple[int, int]:
    """Temporary bytes beside activations: (in forward and backward, in the optimizer's step). Estimates.

    Forward and backward: the weights in 16 bits; with fsdp the gathered weights and gradients of what is
    outside the blocks, of this block and of the next; the gradients of one block's activations; the largest
    packed matrix, unpacked, and its levels before they are scaled. A step of Muon: all matrices of one shape
    at once, twice in float32 (gathered, stacked), twice in the precision of Newton-Schulz, and its two small
    products; only zero1 divides it among the ranks.
    """
    n, alone = 4 if settings["dtype"] == "float32" else 2, settings["gradient_accumulation_steps"] == 1
    block = model.blocks[0]
    P, size = (sum(p.numel() for p in m.parameters()) for m in (model, block))
    compute = 2 * P * (n == 2)
    if settings["strategy"] == "fsdp":  # where micro-steps add up, accumulated() has the gradients
        outside = P - len(model.blocks) * size
        learning = trained(model) - len(model.blocks) * trained(block)
        compute = 2 * (n * size + 4 * trained(block)) + (4 + 2 * (n == 2)) * outside + 4 * alone * learning
    tokens = settings["batch_size"] * model.config.block_size
    compute += tokens * block_activations(block, settings["dtype"])
    packed = [layer for layer in model.modules() if hasattr(layer, "dequantize")]
    compute += 8 * max((layer.in_features * layer.out_features for layer in packed), default=0)
    shapes = {(): 0}
    for p in under_muon(model, settings):
        shapes[p.shape] = shapes.get(p.shape, 0) + (8 + 2 * n) * p.numel() + 2 * n * min(p.shape) ** 2
    return compute, max(shapes.values()) // (W if settings["strategy"] == "zero1" else 1)


def needed(model: GPT, settings: dict, W: int) -> dict[str, float]:
    """Bytes per GPU at the moment of most memory, by what takes them; "total" is their sum."""
    found = kept(model, settings, W)
    compute, step = working(model, settings, W)
    computing = (
        max(found["gradients"], accumulated(model, settings, W)),
        compute + activations(model, settings),
    )
    stepping = found["gradients"], step
    found["gradients"], found["working"] = max(computing, stepping, key=sum)
    return {**found, "total": sum(found.values())}


# ---- when it runs out
class Attempt:
    """One try at an update: `with attempt:` around everything from its batches to the optimizer's step.

    If memory runs out inside before any weight has changed, the block ends without an error: `failed` is
    True, and batch_size and micro_steps are those of smaller micro-batches with the same gradient. If these
    cannot help, it ends in a ValueError with remedies. Any other error passes through.
    """

    def __init__(self, optimizer, settings: dict, batch_size: int, micro_steps: int, vocab_size: int):
        """settings: train.py's, dtype resolved. batch_size and micro_steps: of an update, on this process."""
        self.optimizer, self.settings, self.vocab_size = optimizer, settings, vocab_size
        self.batch_size, self.micro_steps = batch_size, micro_steps
        self.failed, self.running = False, False

    def __enter__(self) -> None:
        self.failed, self.running = False, True
        self.before = optim.versions(self.optimizer)

    def __exit__(self, kind, error, traceback) -> bool:
        if error is None:
            self.running = False
            return False
        if not isinstance(error, Exception) or not is_out_of_memory(error):
            return False
        factor = next((n for n in range(2, self.batch_size + 1) if self.batch_size % n == 0), 0)
        alone = distributed.world_size() == 1
        if not (factor and alone and self.settings["oom_retry"]) or self.in_the_middle():
            raise ValueError(self.advice(factor)) from None
        self.batch_size, self.micro_steps = self.batch_size // factor, self.micro_steps * factor
        self.failed, self.running = True, False
        return True

    def in_the_middle(self) -> bool:
        """Whether an update has begun to change the weights and has not ended: then they are of no step."""
        return self.running and optim.versions(self.optimizer) != self.before

    def give_back(self) -> str:
        """Return freed memory to the system; returns a line that says how the run goes on.

        glibc keeps freed memory, and then the next batch may find no room.
        """
        with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
        sizes = f"batch_size={self.batch_size}, gradient_accumulation_steps={self.micro_steps}"
        return f"out of memory: going on with {sizes}"

    def advice(self, factor: int) -> str:
        """The message for memory that ran out: what helps this model, with the share of memory it needs."""
        settings = {**self.settings, "batch_size": self.batch_size}
        found = remedies(settings, self.vocab_size, distributed.world_size())
        advice = [f"{flag} (needs {share:.0%} as much)" for flag, share in found]
        if factor:
            flags = f"--batch_size={self.batch_size // factor}"
            advice.insert(0, f"{flags} --gradient_accumulation_steps={self.micro_steps * factor}")
        middle = " in the middle of the optimizer's step (go on from the last checkpoint)"
        where = middle if self.in_the_middle() else ""
        return (
            f"out of memory with batch_size={self.batch_size}{where}; what helps this model, by formula, "
            f"most comes first: {', '.join(advice)}"
        )


def remedies(settings: dict, vocab_size: int, W: int) -> list[tuple[str, float]]:
    """(flag, memory needed with it as a share of the memory needed now), the smallest share first."""
    if set(settings.get("technique", "").split(",")) & set(techniques.BLOCKS):
        return []
    layers, width, heads = settings["n_layer"], settings["n_embd"], settings["n_head"]
    changes = {
        "gradient_checkpointing": True,
        "block_size": settings["block_size"] // 2,
        "logits_mb": 16,
        "n_layer": layers // 2,
        "n_embd": width // 2 // (2 * heads) * 2 * heads,
    }
    now = needed(on_meta(settings, vocab_size), settings, W)["total"]
    found = []
    for name, value in changes.items():
        if value:
            smaller = {**settings, name: value}
            share = needed(on_meta(smaller, vocab_size), smaller, W)["total"] / now
            found.append((f"--{name}={value}", share))
    return sorted([each for each in found if each[1] < 0.99], key=lambda each: each[1])
