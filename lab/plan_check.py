"""Are plan.py's formulas right? Trains a small model on 1, 2 and 4 processes and counts the bytes.

    python bench.py --only=footprint    one process: full fine-tuning, LoRA, QLoRA
    python bench.py --only=sharding

The second starts this module under torchrun, on CPUs with gloo. The model makes three updates. In the third,
each rank counts the bytes of its weights, gradients and optimizer state, and of the tensors that it passes to
torch.distributed. On GPUs, NCCL gets the same tensors, so the counts hold there, too.
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import optim
import techniques
from config import ROOT, start_script
from lab import plan
from lab.measure import NotMeasured, Row, settings_of, show
from machine import distributed, hardware
from model import GPT
from runtime import memory

V = 97  # tokens; not divisible by 2 or 4, so that the shards are of unequal size
SMALL = dict(n_layer=4, n_head=4, n_embd=64, block_size=32, batch_size=2, device="cpu", dtype="float32")
BETWEEN, HOOK = "gradients between micro-steps", "gradients in DDP's comm hook"
OPERATIONS = {  # torch's internal names
    "allreduce_": "all-reduce",
    "broadcast_": "broadcast",
    "_allgather_base_": "all-gather",  # fully_shard
    "all_gather_into_tensor": "all-gather",  # DTensor.full_tensor(): Muon
    "_reduce_scatter_base_": "reduce-scatter",
}


class Exchanged(TorchDispatchMode):
    """Counts, for each collective of this rank, the bytes of the full tensor (not of a shard)."""

    def __init__(self):
        super().__init__()
        self.n_bytes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(kind.__name__ == "DTensor" for kind in types):
            return NotImplemented  # DTensor then calls its collectives on plain tensors, which are counted
        name = func.__name__.split(".")[0]
        if func.namespace in ("c10d", "_c10d_functional") and name in OPERATIONS:
            tensors = [t for arg in args for t in (arg if isinstance(arg, list) else [arg])]
            largest = max(t.nbytes for t in tensors if isinstance(t, torch.Tensor))  # the full one
            times = dist.get_world_size() if name == "all_gather_into_tensor" else 1  # it takes only a shard
            self.n_bytes[OPERATIONS[name]] += largest * times
        return func(*args, **(kwargs or {}))


def three_updates(settings: dict, device: torch.device) -> dict:
    """Make three updates as train.py does; returns the bytes this rank holds and exchanges in the third."""
    torch.manual_seed(0)
    W, micro_steps = dist.get_world_size(), settings["gradient_accumulation_steps"]
    model = techniques.change("change_model", GPT(memory.shape_of(settings, V)), settings)
    model = distributed.place(model, device, settings["strategy"], settings["dtype"], "")
    optimizer = optim.build_optimizer(model, settings, device.type)
    wrapped = distributed.wrap(model, W, settings["strategy"])
    autocast, _ = hardware.choose_precision(settings["dtype"], device)
    found = Counter()

    def hook(state, bucket):
        found[HOOK] += bucket.buffer().nbytes
        mean = dist.all_reduce(bucket.buffer().div_(W), async_op=True).get_future()
        return mean.then(lambda done: done.value()[0])

    if wrapped is not model:  # DistributedDataParallel
        wrapped.register_comm_hook(None, hook)
    for _ in range(3):
        found.clear()
        optimizer.zero_grad(set_to_none=True)
        with Exchanged() as exchanged:
            for micro_step in range(micro_steps):
                distributed.sync_gradients(wrapped, micro_step == micro_steps - 1)
                x = torch.randint(V, (settings["batch_size"], settings["block_size"]))
                with autocast:
                    logits = wrapped(x)
                F.cross_entropy(logits.flatten(0, 1), x.flatten()).backward()
                if micro_step < micro_steps - 1:
                    found[BETWEEN] = accumulated(model)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    states = optim.named_state(optimizer).values()  # the 0-d step counts are left out below
    found["weights"] = local_bytes([*model.parameters(), *model.buffers()])
    found["gradients"] = local_bytes(p.grad for p in model.parameters() if p.requires_grad)
    found["optimizer"] = local_bytes(t for state in states for t in state.values() if t.ndim)
    return found | exchanged.n_bytes


def local_bytes(tensors) -> int:
    """Bytes of this rank's shards of the tensors."""
    return sum(distributed.local_shard(t).nbytes for t in tensors)


def accumulated(model: torch.nn.Module) -> int:
    """Bytes of gradients that this rank holds between two micro-steps; fully_shard keeps them in fields."""
    if not hasattr(model, "set_requires_gradient_sync"):
        return local_bytes(p.grad for p in model.parameters() if p.requires_grad)
    groups = [m._get_fsdp_state()._fsdp_param_group for m in (model, *model.blocks)]
    params = [p for group in groups for p in group.fsdp_params if p.sharded_param.requires_grad]
    kept = [p.unsharded_accumulated_grad for p in params]
    return local_bytes(p._unsharded_param.grad if t is None else t for p, t in zip(params, kept, strict=True))


def by_formula(settings: dict, W: int) -> dict[str, int]:
    """What three_updates() should find on the rank that holds most."""
    model = memory.on_meta(settings, V)
    messages = Counter()
    for message in plan.exchanged(model, settings, W):
        messages[message.operation] += message.n_bytes
    if W == 1:
        messages.clear()
    if settings["strategy"] != "fsdp" and W > 1:
        messages[HOOK] = messages["all-reduce"]
    if settings["gradient_accumulation_steps"] > 1:
        messages[BETWEEN] = memory.accumulated(model, settings, W)
    return {**memory.kept(model, settings, W), **messages}


def start(cases: list[dict], W: int) -> list[list[dict]]:
    """Run the cases (each a dict of changed settings) on W processes; returns [case][rank] -> bytes found."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "found.json")
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={W}"]
        module = [*(launcher if W > 1 else []), "-m", "lab.plan_check"]
        command = [sys.executable, *module, json.dumps(cases), str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
        if done.returncode:
            why = [line for line in done.stderr.splitlines() if "Error" in line]
            raise NotMeasured(f"{W} processes failed: {' '.join(why[:1])}")
        return json.loads(out.read_text(encoding="utf-8"))


def rows(worlds: tuple, optimizer: str, micro_steps: int) -> Iterator[Row]:
    """Measured / formula for each strategy: of the rank that holds most, and the spread over the ranks.

    The formulas are exact for that rank. It holds more than 1/W, here by up to 3 %: 97 is not divisible by 2
    or 4, and zero1 assigns complete tensors to ranks.
    """
    options = dict(optimizer=optimizer, gradient_accumulation_steps=micro_steps)
    cases = [dict(strategy=strategy, **options) for strategy in distributed.STRATEGIES]
    for W in worlds:
        for case, ranks in zip(cases, start(cases, W), strict=True):
            for what, expected in by_formula(settings_of(**{**SMALL, **case}), W).items():
                ours = [rank.get(what, 0) for rank in ranks]
                ratio, spread = show(max(ours) / expected), f"{min(ours):,}..{max(ours):,}"
                absolute = f"{max(ours):,} / {expected:,} bytes"
                yield Row(f"{W} x {case['strategy']}: {what}", ratio, absolute, "= 1", spread)


# ---- fine-tuning, on one process
SMOLLM2 = dict(  # 134,515,008 parameters; its shape: config.json of HuggingFaceTB/SmolLM2-135M
    arch="llama", n_layer=30, n_head=9, n_kv_head=3, n_embd=576, n_ff=1536, tie_weights=1, vocab_size=49152,
    block_size=256, batch_size=1,
)  # fmt: skip
SMALL_SMOLLM2 = {**SMOLLM2, "n_layer": 2, "vocab_size": 512, "block_size": 64}
KEPT = "activations, without logits"


def one_update(settings: dict, vocab_size: int) -> dict[str, int]:
    """Bytes of weights, gradients, optimizer state, and of what a forward pass keeps for the backward pass.

    In float32, so that autocast makes no copies of weights. Counted are tensors, each storage once.
    """
    torch.manual_seed(0)
    model = techniques.change("change_model", GPT(memory.shape_of(settings, vocab_size)), settings)
    optimizer = optim.build_optimizer(model, settings, "cpu")
    x = torch.randint(vocab_size, (settings["batch_size"], settings["block_size"]))
    logits, kept = kept_for_backward(lambda: model(x), [*model.parameters(), *model.buffers()], vocab_size)
    F.cross_entropy(logits.flatten(0, 1), x.flatten()).backward()
    optimizer.step()
    states = optim.named_state(optimizer).values()
    return {
        "weights": local_bytes([*model.parameters(), *model.buffers()]),
        "gradients": local_bytes(p.grad for p in model.parameters() if p.grad is not None),
        "optimizer": local_bytes(t for state in states for t in state.values() if t.ndim),
        KEPT: kept,
    }


def kept_for_backward(forward: Callable, own, vocab_size: int = 0) -> tuple[torch.Tensor, int]:
    """(the result of forward(), bytes of the tensors that autograd keeps, each storage once).

    Left out are the tensors in own, and logits: those with a last dimension of vocab_size.
    """
    own = {t.untyped_storage().data_ptr() for t in own}
    kept = {}  # address: storage. They stay alive, else an address could come twice

    def note(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own and t.shape[-1:] != (vocab_size,):
            kept[storage.data_ptr()] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        result = forward()
    return result, sum(storage.nbytes() for storage in kept.values())


def footprints(shape: dict) -> Iterator[Row]:
    """Measured / formula of each way to fine-tune, and how many bytes each saves but for activations."""
    whole = 0
    for way, changes in plan.WAYS.items():
        settings = settings_of(optimizer="adamw", dtype="float32", logits_mb=0, **{**shape, **changes})
        settings["lora_rank"], vocab_size = 16, settings.pop("vocab_size")
        model = memory.on_meta(settings, vocab_size)
        expected = {**memory.kept(model, settings, 1), KEPT: memory.hidden_activations(model, settings)}
        found = one_update(settings, vocab_size)
        for what, n_bytes in found.items():
            absolute = f"{n_bytes:,} / {expected[what]:,} bytes"
            yield Row(f"{way}: {what}", show(n_bytes / expected[what]), absolute, "= 1", "")
        total = sum(n_bytes for what, n_bytes in found.items() if what != KEPT)
        whole = whole or total
        saved = f"{total:,} bytes, {1 - total / whole:.1%} saved"
        yield Row(f"{way}: but for activations", show(total / whole), saved, "reported", "")


if __name__ == "__main__":
    start_script(__doc__)
    torch.set_num_threads(1)
    rank, W, device = distributed.start("cpu", "gloo", strategy="fsdp")  # fsdp: makes a group of one, too
    cases, out = sys.argv[1:]
    every = []
    for case in json.loads(cases):
        ranks = [None] * W
        dist.all_gather_object(ranks, three_updates(settings_of(**{**SMALL, **case}), device))
        every.append(ranks)
    if rank == 0:
        Path(out).write_text(json.dumps(every), encoding="utf-8")
    distributed.barrier()
