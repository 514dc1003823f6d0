"""Will it fit, and how long will it take? Computes what a run on many GPUs needs, before you rent them.

    python bench.py --only=plan --n_layer=32 --n_head=32 --n_embd=4096 --block_size=2048 --gpus=32
    python bench.py --only=plan --shape=7b --technique=lora --quantize=nf4 --gpus=1 --memory_gb=24
    python -m lab.plan          Llama 2's three shapes: whole, with LoRA, with QLoRA; on one GPU and on four

runtime/memory.py computes the memory. This file computes the communication, and the time of an update.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import optim
from config import given, require, start_script
from machine.distributed import STRATEGIES
from machine.speed import flops_forward, flops_per_token, parameters_of
from model import GPT
from runtime import memory
from techniques import BLOCKS

# Ring algorithms (Patarasuk & Yuan, 2009) cut the tensor into W chunks. One round takes W - 1 steps. In each
# step every rank sends one chunk to its neighbour, so in a round it sends (W - 1) / W of the tensor. An
# all-reduce takes two rounds: a reduce-scatter, then an all-gather. In a broadcast every rank but the last
# forwards the whole tensor: (W - 1) / W of it, as the mean over the ranks.
ROUNDS = {"all-reduce": 2, "reduce-scatter": 1, "all-gather": 1, "broadcast": 1}


# Llama 2's shapes: Touvron et al., 2023, and the config.json of each model
SHAPES = {
    "7b": dict(n_layer=32, n_head=32, n_kv_head=32, n_embd=4096, n_ff=11008),
    "13b": dict(n_layer=40, n_head=40, n_kv_head=40, n_embd=5120, n_ff=13824),
    "70b": dict(n_layer=80, n_head=64, n_kv_head=8, n_embd=8192, n_ff=28672),
}
LLAMA2 = dict(arch="llama", vocab_size=32000)  # and all three have these
WAYS = {
    "whole": {},
    "LoRA": dict(technique="lora"),
    "LoRA on int8": dict(technique="quantize,lora", quantize="int8"),
    "QLoRA (nf4)": dict(technique="quantize,lora", quantize="nf4"),
}


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
    everything = 4 * memory.trained(model)
    if strategy != "fsdp":
        gradients = Message("gradients", "all-reduce", everything, hidden=True)
        weights = Message("weights", "broadcast", everything, hidden=False)
        return [gradients, weights] if strategy == "zero1" else [gradients]
    padded = {p: W * memory.shard_numel(p, W) for p in model.parameters()}
    blocks = sum(padded[p] for p in model.blocks.parameters())
    outside = sum(padded.values()) - blocks
    gathered = settings["gradient_accumulation_steps"] * (4 * outside + 2 * n * blocks)
    summed = sum(size for p, size in padded.items() if p.requires_grad)
    found = [
        Message("weights", "all-gather", gathered, hidden=True),
        Message("gradients", "reduce-scatter", 4 * summed, hidden=True),
    ]
    if settings["optimizer"] == "muon":
        matrices = sum(padded[p] for p in memory.under_muon(model, settings))
        found.append(Message("matrices", "all-gather", 4 * matrices, hidden=False))
    return found


def step_seconds(model: GPT, settings: dict, cluster: Cluster) -> dict[str, float]:
    """Seconds of an update: {compute, network, best, worst}.

    compute: machine/speed.py; gradient checkpointing adds a forward pass.
    best: all communication that can overlap with computing does. worst: none does.
    """
    tokens = settings["batch_size"] * settings["gradient_accumulation_steps"] * model.config.block_size
    flops = flops_per_token(model) + flops_forward(model) * model.config.gradient_checkpointing
    compute = flops * tokens / (1e12 * cluster.peak_tflops * cluster.mfu)
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
    for name in set(settings.get("technique", "").split(",")) & set(BLOCKS):
        raise ValueError(f"technique={name}: its activations have no formula here; leave it out, or run it")
    model, W = memory.on_meta(settings, vocab_size), cluster.gpus
    tokens = settings["batch_size"] * settings["gradient_accumulation_steps"] * W * model.config.block_size
    learned = memory.trained(model)
    frozen = f", {learned:,} of them trained" if learned < parameters_of(model) else ""
    yield (
        f"{parameters_of(model):,} parameters{frozen}, {W} GPUs ({cluster.gpus_per_node} in a machine), "
        f"{settings['optimizer']}, {settings['dtype']}, {tokens:,} tokens per update"
    )
    yield (
        f"assumed: {cluster.memory_gb:g} GB, {cluster.peak_tflops:g} TFLOP/s at {cluster.mfu:.0%}; "
        f"{cluster.link() / 1e9:g} GB/s from each GPU to the next"
    )
    yield "          GB per GPU                                            GB sent   ms per update"
    yield "          weights gradients optimizer working    total          per GPU   compute network  total"
    limit = memory.logits_limit(settings["logits_mb"], 1e9 * cluster.memory_gb)
    for strategy in STRATEGIES:
        run = {**settings, "strategy": strategy, "logits_mb": limit}
        held, seconds = memory.needed(model, run, W), step_seconds(model, run, cluster)
        columns = "{weights:7.2f} {gradients:9.2f} {optimizer:9.2f} {working:7.2f} {total:8.2f}"
        gigabytes = columns.format(**{name: n_bytes / 1e9 for name, n_bytes in held.items()})
        fits = "fits" if held["total"] <= 1e9 * cluster.memory_gb else "TOO BIG"
        sent = sum(message.sent(W) for message in exchanged(model, run, W)) / 1e9
        compute, network, best, worst = (f"{1e3 * s:,.0f}" for s in seconds.values())
        times = f"{compute:>7} {network:>7}  {best} to {worst}"
        yield f"{strategy:9} {gigabytes}  {fits:7} {sent:10.2f}   {times}"
    yield "(working: activations, logits, gathered weights. total: with all possible overlap, to none)"


def shaped(settings: dict, vocab_size: int, shape: str) -> tuple[dict, int]:
    """Settings and vocabulary; what is not given comes from one of SHAPES. ValueError for an unknown one."""
    require(shape in ("", *SHAPES), f"shape={shape} is unknown; expected one of {', '.join(SHAPES)}")
    found = {**LLAMA2, **SHAPES[shape]} if shape else {}
    settings = {**settings, "vocab_size": vocab_size}
    settings.update({name: value for name, value in found.items() if name not in given})
    return settings, settings.pop("vocab_size")


def models(settings: dict) -> Iterator[str]:
    """Lines of text: GB per GPU of each of SHAPES in each of WAYS. settings: train.py's, for all of them."""
    run = "{optimizer}, {dtype}, {batch_size} x {block_size:,} tokens, LoRA of rank {lora_rank}"
    yield f"GB per GPU by formula: {run.format(**settings)}"
    yield "                    on one GPU                                       on four, --strategy=fsdp"
    yield "                    weights gradients optimizer  total recomputed    weights  total recomputed"
    for shape in SHAPES:
        for way, changes in WAYS.items():
            run, vocab_size = shaped({**settings, **changes}, 0, shape)
            model, numbers = memory.on_meta(run, vocab_size), []
            for strategy, W in (("ddp", 1), ("fsdp", 4)):
                run["strategy"] = strategy
                model.config.gradient_checkpointing = False
                held = memory.needed(model, run, W)
                model.config.gradient_checkpointing = True
                recomputed = memory.needed(model, run, W)
                names = ("weights", "gradients", "optimizer", "total") if W == 1 else ("weights", "total")
                numbers += [held[name] / 1e9 for name in names] + [recomputed["total"] / 1e9]
            columns = "{:9.1f} {:9.2f} {:9.2f} {:6.0f} {:10.0f} {:10.1f} {:6.0f} {:10.0f}"
            yield f"{shape:4} {way:13}" + columns.format(*numbers)
    yield "(total: activations too; recomputed: the total with --gradient_checkpointing)"


if __name__ == "__main__":
    from lab.measure import settings_of

    start_script(__doc__)
    sizes = dict(block_size=2048, batch_size=1, gradient_accumulation_steps=4, logits_mb=256)
    for line in models(settings_of(**sizes, optimizer="adamw", dtype="bfloat16", lora_rank=16)):
        print(line, flush=True)
