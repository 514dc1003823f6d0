"""Will it fit, and how long will it take? What a run needs on many GPUs, by formula, before any is rented.

    python bench.py --only=plan --n_layer=32 --n_head=32 --n_embd=4096 --block_size=2048 --gpus=32

P parameters on W ranks, each of which is a GPU with a process of its own. What a rank holds, in bytes:

    strategy  weights         gradients             optimizer   source
    ddp       4 P             4 P                   all         Li et al., 2020
    zero1     4 P             4 P                   1/W         Rajbhandari et al., 2020 (ZeRO)
    fsdp      4 P/W + 2       4 P/W; all 4 P while  1/W         Zhao et al., 2023
              whole blocks    micro-steps add up

where the optimizer is 8 P (AdamW's two averages), or with Muon 4 for each matrix in a block and 8 for all
else. bench.py --only=sharding compares this with real runs: plan_check.py.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

import optim
import report
from distributed import STRATEGIES
from model import GPT, GPTConfig

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


def shape_of(settings: dict, vocab_size: int) -> GPTConfig:
    """The model's shape among train.py's settings."""
    names = {field.name for field in dataclasses.fields(GPTConfig)} & settings.keys()
    return GPTConfig(vocab_size, **{name: settings[name] for name in names})


def on_meta(settings: dict, vocab_size: int) -> GPT:
    """The model that train.py's settings describe, without memory for its weights: all is counted on it."""
    with torch.device("meta"):
        return GPT(shape_of(settings, vocab_size))


def part(p: torch.Tensor, W: int) -> int:
    """The numbers of a tensor on rank 0 if it is cut by rows: 10 rows on 4 ranks are 3 + 3 + 3 + 1."""
    return math.ceil(p.size(0) / W) * (p.numel() // p.size(0))


# ---- memory
def optimizer_bytes(model: GPT, settings: dict, W: int) -> int:
    """The averages of the rank that has most of them.

    ZeroRedundancyOptimizer hands out whole tensors, the largest first, each to the rank with the fewest
    numbers so far. A large embedding goes to one rank: it may have much more than 1/W.
    """
    numbers, held = [0] * W, [0] * W
    for group in optim.parameter_groups(model, settings):
        each = 4 * len(optim.AVERAGES[group["kind"]])
        for p in sorted((p for _, p in group["params"]), key=torch.numel, reverse=True):
            if settings["strategy"] == "zero1":
                rank = numbers.index(min(numbers))
                numbers[rank] += p.numel()
                held[rank] += each * p.numel()
            else:
                held[0] += each * (part(p, W) if settings["strategy"] == "fsdp" else p.numel())
    return max(held)


def kept(model: GPT, settings: dict, W: int) -> dict[str, int]:
    """Bytes per rank that stay: weights, gradients (at the end of the backward pass) and optimizer."""
    P = sum(p.numel() for p in model.parameters())
    if settings["strategy"] == "fsdp":
        P = sum(part(p, W) for p in model.parameters())
    return {"weights": 4 * P, "gradients": 4 * P, "optimizer": optimizer_bytes(model, settings, W)}


def accumulated(model: GPT, settings: dict, W: int) -> int:
    """Bytes of gradients before the last of several micro-steps, on a rank: all, also with fsdp.

    It sums and cuts them in the last one only; else it would have to send them in each.
    """
    return 4 * sum(p.numel() for p in model.parameters()) * (settings["gradient_accumulation_steps"] > 1)


def activations(config: GPTConfig, settings: dict) -> int:
    """Bytes that the forward pass of a micro-step keeps for the backward pass, logits included.

    Per token and block, with n bytes a number: the residual stream before both norms (float32; RMSNorm may
    keep what it has normalised, too); the norms' outputs, of which autocast makes a copy for each matrix that
    reads them; q, k, v and attention's output (but no T x T scores: Dao et al., 2022); what qk_norm reads
    (float32); the MLP before and after its activation. That is 40 C for GPT-2 in 16 bits; Korthikanti et al.,
    2022, count 34 C where the stream has 16 bits, too. Recomputed blocks keep their input alone.
    """
    n = 4 if settings["dtype"] == "float32" else 2
    C, kv = config.n_embd, config.n_kv_head * (config.n_embd // config.n_head)
    swiglu = config.activation == "swiglu"
    stream = 4 * C * (4 if config.norm == "rmsnorm" else 2)
    read = C * (2 if n == 4 else 4 + swiglu)
    block = stream + n * (read + 2 * C + 2 * kv + config.n_ff * (4 if swiglu else 2))
    block += 4 * (C + kv) * config.qk_norm
    blocks = 4 * C * config.n_layer + block if config.gradient_checkpointing else block * config.n_layer
    tokens = settings["batch_size"] * config.block_size
    logits = 4 * tokens * config.vocab_size
    if 0 < settings["logits_mb"] * 2**20 < logits:  # as in train.py: in chunks of 64 MB
        logits = 2**26
    return tokens * (blocks + (4 + n) * C) + 3 * logits  # with their log-softmax and their gradient


def working(model: GPT, settings: dict, W: int) -> tuple[int, int]:
    """Bytes beside activations: (while it computes, while the optimizer steps). Estimates.

    Computing: weights in 16 bits; with fsdp whole what is outside the blocks, and of the blocks this one and
    the next, with gradients. A step of Muon: all matrices of one shape at once, twice in float32 (gathered,
    stacked), twice in the precision of Newton-Schulz, and its two small products; only zero1 divides it.
    """
    n, alone = 4 if settings["dtype"] == "float32" else 2, settings["gradient_accumulation_steps"] == 1
    P, block = (sum(p.numel() for p in m.parameters()) for m in (model, model.blocks[0]))
    outside = P - len(model.blocks) * block
    compute = 2 * P * (n == 2)
    if settings["strategy"] == "fsdp":  # where micro-steps add up, accumulated() has the gradients
        compute = 2 * (n + 4) * block + (4 + 4 * alone + 2 * (n == 2)) * outside
    shapes = {(): 0}
    for p in model.blocks.parameters():
        if settings["optimizer"] == "muon" and p.ndim == 2:
            shapes[p.shape] = shapes.get(p.shape, 0) + (8 + 2 * n) * p.numel() + 2 * n * min(p.shape) ** 2
    return compute, max(shapes.values()) // (W if settings["strategy"] == "zero1" else 1)


def memory(model: GPT, settings: dict, W: int) -> dict[str, float]:
    """Bytes per GPU at the worst moment, by what takes them; "total" is their sum."""
    found = kept(model, settings, W)
    compute, step = working(model, settings, W)
    computing = (
        max(found["gradients"], accumulated(model, settings, W)),
        compute + activations(model.config, settings),
    )
    stepping = found["gradients"], step
    found["gradients"], found["working"] = max(computing, stepping, key=sum)
    return {**found, "total": sum(found.values())}


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
    filled = {name: W * part(p, W) for name, p in model.named_parameters()}
    blocks = sum(size for name, size in filled.items() if name.startswith("blocks."))
    outside = sum(filled.values()) - blocks
    gathered = settings["gradient_accumulation_steps"] * (4 * outside + 2 * n * blocks)
    found = [
        Message("weights", "all-gather", gathered, hidden=True),
        Message("gradients", "reduce-scatter", 4 * (outside + blocks), hidden=True),
    ]
    if settings["optimizer"] == "muon":
        matrices = [W * part(p, W) for p in model.blocks.parameters() if p.ndim == 2]
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
    for name, legal in (("optimizer", optim.AVERAGES), ("dtype", dtypes)):
        optim.expect(settings[name] in legal, settings, name, "one of " + ", ".join(legal))
    model, W = on_meta(settings, vocab_size), cluster.gpus
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
        held, seconds = memory(model, run, W), step_seconds(model, run, cluster)
        columns = "{weights:7.2f} {gradients:9.2f} {optimizer:9.2f} {working:7.2f} {total:8.2f}"
        gigabytes = columns.format(**{name: n_bytes / 1e9 for name, n_bytes in held.items()})
        fits = "fits" if held["total"] <= 1e9 * cluster.memory_gb else "TOO BIG"
        sent = sum(message.sent(W) for message in exchanged(model, run, W)) / 1e9
        compute, network, best, worst = (f"{1e3 * s:,.0f}" for s in seconds.values())
        times = f"{compute:>7} {network:>7}  {best} to {worst}"
        yield f"{strategy:9} {gigabytes}  {fits:7} {sent:10.2f}   {times}"
    yield "(working: activations, logits, weights in use. total: all that can be hidden is, or nothing is)"
