"""Will it fit, and how long will it take? What a run needs on many GPUs, by formula, before any is rented.

    python bench.py --only=plan --n_layer=32 --n_head=32 --n_embd=4096 --block_size=2048 --gpus=32

Memory: memory.py. Here: what the GPUs tell each other, and how long that takes beside the computing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import optim
from config import require
from machine.distributed import STRATEGIES
from model import GPT
from runtime import memory, report

# What each rank sends for each byte of the whole tensor, on a ring: it is cut into W parts, and in each of
# W - 1 steps every rank passes one on. To sum goes around twice: once to add up, once to tell (Patarasuk &
# Yuan, 2009). In a broadcast all but the last pass everything on: this is the mean over the ranks.
ROUNDS = {"all-reduce": 2, "reduce-scatter": 1, "all-gather": 1, "broadcast": 1}


@dataclass
class Cluster:
    """What the GPUs can do. Nothing of it is measured here: it comes from data sheets, or from an all-reduce
    test (python -m techniques.allreduce) on the cluster itself."""

    gpus: int = 8
    gpus_per_node: int = 8
    memory_gb: float = 80.0  # of one GPU
    peak_tflops: float = 989.0  # of one GPU
    mfu: float = 0.4  # the share of it that a step reaches
    bandwidth: float = 300.0  # GB/s that one GPU sends to another in the same machine
    bandwidth_between: float = 40.0  # ... in another machine

    def link(self) -> float:
        """Bytes/s of the slowest link of a ring over all GPUs."""
        return 1e9 * (self.bandwidth if self.gpus <= self.gpus_per_node else self.bandwidth_between)


@dataclass
class Message:
    """Something that is exchanged in an update. n_bytes: of the whole tensors, over all calls."""

    what: str
    operation: str
    n_bytes: int
    hidden: bool  # can go on while the GPU computes

    def sent(self, W: int) -> float:
        """Bytes that each rank sends (the mean over the ranks, for a broadcast)."""
        return ROUNDS[self.operation] * (W - 1) / W * self.n_bytes


# ---- communication and time
def exchanged(model: GPT, settings: dict, W: int) -> list[Message]:
    """What the ranks tell each other in one update.

    Single numbers are left out: the count of targets, the norms for clipping. All gradients are summed once
    an update, in float32. fsdp gathers the blocks' weights for each forward and each backward pass (in 2
    bytes with a dtype of 16 bits), the others once a micro-step. Its parts are filled up to equal size.
    Muon needs whole matrices, which are not hidden behind anything.
    """
    strategy, n = settings["strategy"], 4 if settings["dtype"] == "float32" else 2
    everything = 4 * sum(p.numel() for p in model.parameters())
    if strategy != "fsdp":
        gradients = Message("gradients", "all-reduce", everything, hidden=True)
        weights = Message("weights", "broadcast", everything, hidden=False)
        return [gradients, weights] if strategy == "zero1" else [gradients]
    filled = {name: W * memory.shard_numel(p, W) for name, p in model.named_parameters()}
    blocks = sum(size for name, size in filled.items() if name.startswith("blocks."))
    outside = sum(filled.values()) - blocks
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
    """Seconds of an update: compute, network, and the whole at best and at worst.

    Compute is 6 N a token and attention (report.py), a third more where blocks are computed twice. At best
    all that can be hidden behind computing is, at worst nothing.
    """
    tokens = settings["batch_size"] * settings["gradient_accumulation_steps"] * model.config.block_size
    again = 4 / 3 if model.config.gradient_checkpointing else 1
    compute = again * report.flops_per_token(model) * tokens / (1e12 * cluster.peak_tflops * cluster.mfu)
    hidden = shown = 0.0
    for message in exchanged(model, settings, cluster.gpus):
        seconds = message.sent(cluster.gpus) / cluster.link()
        hidden, shown = hidden + seconds * message.hidden, shown + seconds * (not message.hidden)
    best = max(compute, hidden) + shown
    return dict(compute=compute, network=hidden + shown, best=best, worst=compute + hidden + shown)


# ---- the table
def table(settings: dict, vocab_size: int, cluster: Cluster) -> Iterator[str]:
    """Lines of text: the assumptions, then memory, communication and time of each strategy.

    settings: those of train.py; their strategy does not matter. ValueError for a shape that cannot be.
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
    yield "(working: activations, logits, weights in use. total: all that can be hidden is, or nothing is)"
