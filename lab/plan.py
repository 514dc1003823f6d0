"""Will it fit, and how long will it take? Computes what a run on many GPUs needs, before you rent them.

    python bench.py --only=plan --n_layer=32 --n_head=32 --n_embd=4096 --block_size=2048 --gpus=32

runtime/memory.py computes the memory. This file computes the communication, and the time of an update.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import optim
from config import require
from machine.distributed import STRATEGIES
from machine.speed import flops_per_token
from model import GPT
from runtime import memory

# Ring algorithms (Patarasuk & Yuan, 2009) cut the tensor into W chunks. One round takes W - 1 steps. In each
# step every rank sends one chunk to its neighbour, so in a round it sends (W - 1) / W of the tensor. An
# all-reduce takes two rounds: a reduce-scatter, then an all-gather. In a broadcast every rank but the last
# forwards the whole tensor: (W - 1) / W of it, as the mean over the ranks.
ROUNDS = {"all-reduce": 2, "reduce-scatter": 1, "all-gather": 1, "broadcast": 1}


@dataclass
class Cluster:
    """What the GPUs can do: from data sheets, or measured on the cluster (python -m techniques.allreduce)."""

    gpus: int = 8
    gpus_per_node: int = 8
    memory_gb: float = 80.0  # of one GPU
    peak_tflops: float = 989.0  # of one GPU
    mfu: float = 0.4  # share of peak_tflops that an update reaches
    bandwidth: float = 300.0  # GB/s from one GPU to another in the same machine
    bandwidth_between: float = 40.0  # GB/s to one in another machine

    def link(self) -> float:
        """Bytes/s of the slowest link of a ring over all GPUs."""
        return 1e9 * (self.bandwidth if self.gpus <= self.gpus_per_node else self.bandwidth_between)


@dataclass
class Message:
    """One kind of communication in an update."""

    what: str
    operation: str  # a key of ROUNDS
    n_bytes: int  # of the full tensors, summed over all calls in an update
    hidden: bool  # can overlap with computing

    def sent(self, W: int) -> float:
        """Bytes that each rank sends (the mean over the ranks, for a broadcast)."""
        return ROUNDS[self.operation] * (W - 1) / W * self.n_bytes


# ---- communication and time
def exchanged(model: GPT, settings: dict, W: int) -> list[Message]:
    """What the ranks communicate in one update.

    Gradients are summed once per update, in float32. fsdp gathers the weights of the blocks for each forward
    and each backward pass (2 bytes a weight if dtype has 16 bits), all other weights once per micro-step. It
    pads shards to equal size. Muon with fsdp gathers full gradient matrices; nothing overlaps with that.
    Scalars (the number of targets, the norms for clipping) are not counted.
    """
    strategy, n = settings["strategy"], 4 if settings["dtype"] == "float32" else 2
    everything = 4 * sum(p.numel() for p in model.parameters())
    if strategy != "fsdp":
        gradients = Message("gradients", "all-reduce", everything, hidden=True)
        weights = Message("weights", "broadcast", everything, hidden=False)
        return [gradients, weights] if strategy == "zero1" else [gradients]
    padded = {name: W * memory.shard_numel(p, W) for name, p in model.named_parameters()}
    blocks = sum(size for name, size in padded.items() if name.startswith("blocks."))
    outside = sum(padded.values()) - blocks
    gathered = settings["gradient_accumulation_steps"] * (4 * outside + 2 * n * blocks)
    found = [
        Message("weights", "all-gather", gathered, hidden=True),
        Message("gradients", "reduce-scatter", 4 * (outside + blocks), hidden=True),
    ]
    if settings["optimizer"] == "muon":
        matrices = [W * memory.shard_numel(p, W) for p in model.blocks.parameters() if p.ndim == 2]
        found.append(Message("matrices", "all-gather", 4 * sum(matrices), hidden=False))
    return found


def step_seconds(model: GPT, settings: dict, cluster: Cluster) -> dict[str, float]:
    """Seconds of an update: {compute, network, best, worst}.

    compute: 6 N flop per token plus attention (machine/speed.py); gradient checkpointing adds a third.
    best: all communication that can overlap with computing does. worst: none does.
    """
    tokens = settings["batch_size"] * settings["gradient_accumulation_steps"] * model.config.block_size
    recompute = 4 / 3 if model.config.gradient_checkpointing else 1
    compute = recompute * flops_per_token(model) * tokens / (1e12 * cluster.peak_tflops * cluster.mfu)
    hidden = shown = 0.0
    for message in exchanged(model, settings, cluster.gpus):
        seconds = message.sent(cluster.gpus) / cluster.link()
        if message.hidden:
            hidden += seconds
        else:
            shown += seconds
    best = max(compute, hidden) + shown
    return dict(compute=compute, network=hidden + shown, best=best, worst=compute + hidden + shown)


# ---- the table
def table(settings: dict, vocab_size: int, cluster: Cluster) -> Iterator[str]:
    """Lines of text: the assumptions, then memory, communication and time of each strategy.

    settings: train.py's; each strategy is computed, whichever is set. ValueError for an impossible shape.
    """
    dtypes = "float32", "bfloat16", "float16"
    for name, legal in (("optimizer", optim.STATE_NAMES), ("dtype", dtypes)):
        value = settings[name]
        require(value in legal, f"{name}={value} is unknown; expected one of {', '.join(legal)}")
    model, W = memory.on_meta(settings, vocab_size), cluster.gpus
    tokens = settings["batch_size"] * settings["gradient_accumulation_steps"] * W * model.config.block_size
    yield (
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {W} GPUs ({cluster.gpus_per_node} in a "
        f"machine), {settings['optimizer']}, {settings['dtype']}, {tokens:,} tokens per update"
    )
    yield (
        f"assumed: {cluster.memory_gb:g} GB, {cluster.peak_tflops:g} TFLOP/s at {cluster.mfu:.0%}; "
        f"{cluster.link() / 1e9:g} GB/s from each GPU to the next"
    )
    yield "          GB per GPU                                            GB sent   ms per update"
    yield "          weights gradients optimizer working    total          per GPU   compute network  total"
    for strategy in STRATEGIES:
        run = {**settings, "strategy": strategy}
        held, seconds = memory.needed(model, run, W), step_seconds(model, run, cluster)
        columns = "{weights:7.2f} {gradients:9.2f} {optimizer:9.2f} {working:7.2f} {total:8.2f}"
        gigabytes = columns.format(**{name: n_bytes / 1e9 for name, n_bytes in held.items()})
        fits = "fits" if held["total"] <= 1e9 * cluster.memory_gb else "TOO BIG"
        sent = sum(message.sent(W) for message in exchanged(model, run, W)) / 1e9
        compute, network, best, worst = (f"{1e3 * s:,.0f}" for s in seconds.values())
        times = f"{compute:>7} {network:>7}  {best} to {worst}"
        yield f"{strategy:9} {gigabytes}  {fits:7} {sent:10.2f}   {times}"
    yield "(working: activations, logits, gathered weights. total: with all possible overlap, to none)"
