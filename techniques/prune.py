"""Pruning: set the least important weights of a trained model to zero, or take out heads and neurons.

    python -m techniques.prune --out_dir=out-x --sparsity=0.5       writes out-x-pruned, a plain run
    python train.py --init_from=out-x-pruned --technique=prune      trains on; the zeros stay
    python -m techniques.prune --out_dir=out --sparsity=0           makes of that a plain run again
    python train.py config/small.py --prune_sparsity=0.5            prunes while it trains

Only the matrices in the blocks are pruned. These methods set a share of their weights to zero:

    magnitude  the smallest |weight| of all matrices together: some lose more than others (Han et al., 2015)
    layer      the smallest |weight| of each matrix
    wanda      in each row, the smallest |weight| x norm of its inputs in a text (Sun et al., 2023)
    2:4        of each four neighbours in a row, two, by wanda's score: what kernels of GPUs can use

A zero is stored and multiplied like any other number: in these files, and on a CPU, they save nothing. Two
methods make the matrices smaller, so that the run is a smaller and faster model (prune_parts.py):

    heads      the same number of attention heads in each layer; heads that share a key/value head go together
    neurons    neurons of each MLP

In training, each matrix has a mask of its zeros, and they are put back after each update: whatever optimizer
and weight decay do, the zeros stay the same. The mask is a byte a weight, saved in the checkpoint.
"""

from config import at_least, end_script, override, require, typed  # isort: skip
import dataclasses
import math

import torch
from torch import Tensor, nn

from machine.distributed import gathered, local_shard, shard_like
from runtime import checkpoint
from runtime.folder import new_run_folder
from techniques import adapters, gptq, prune_parts
from techniques.quantize import val_loss

# -----------------------------------------------------------------------------
prune_sparsity = 0.0  # training ends with this share of zeros in each matrix; 0 = with the base's zeros
prune_iters = 500  # so many updates from the start reach it
# the command
out_dir = "out-shakespeare-char"  # folder of the run
file = "best.pt"  # which checkpoint in it
to = ""  # folder of the pruned run; '' = out_dir with -pruned behind its name
sparsity = 0.5  # the share of the weights that becomes zero, or of the heads or neurons that are taken out
method = "layer"  # layer | magnitude | wanda | 2:4 | heads | neurons
input = ""  # all but the first two: a text to measure inputs on; '' = the training split of the run's dataset
tokens = 65536  # of it, how many tokens to read
# -----------------------------------------------------------------------------

METHODS = ("magnitude", "layer", "wanda", "2:4", *prune_parts.METHODS)
EVERY = 10  # updates from one step of prune_sparsity to the next
ALONE = ("lora", "quantize", "average")  # they have, or need, other weights than those that learn


def matrices(model) -> dict[str, nn.Linear]:
    """{name: linear layer} of the blocks: what is pruned."""
    return {name: m for name, m in model.blocks.named_modules() if isinstance(m, nn.Linear)}


def lowest(scores: Tensor, share: float) -> Tensor:
    """Scores (rows,n) -> bool (rows,n): True for the lowest share of each row, of equal ones for the first.

    If share x n is not whole, rows take turns to round up and down: the total is right within 1.
    """
    rows, n = scores.shape
    counts = (share * n * torch.arange(rows + 1, dtype=torch.float64)).round().diff()  # (rows,)
    order = scores.argsort(dim=1, stable=True)
    first = (torch.arange(n) < counts[:, None]).to(scores.device)  # (rows,n)
    return torch.zeros_like(first).scatter_(1, order, first)


def smallest(weight: Tensor, share: float) -> Tensor:
    """Weights (out,in) -> bool (out,in): True for the share of them that is closest to zero."""
    return lowest(weight.abs().view(1, -1), share).view_as(weight)


@torch.no_grad()
def set_zeros(model, share: float, method: str, batches: list[Tensor]) -> None:
    """Prune a model in place by one of the first four methods. batches: token ids (B,T), for wanda and 2:4.

    ValueError for 2:4 if the inputs of a layer are not fours.
    """
    layers = matrices(model)
    if method == "magnitude":
        weights = torch.cat([layer.weight.flatten() for layer in layers.values()])
        sizes = [layer.weight.numel() for layer in layers.values()]
        for layer, zeros in zip(layers.values(), smallest(weights, share).split(sizes), strict=True):
            layer.weight.masked_fill_(zeros.view_as(layer.weight), 0)
    elif method == "layer":
        for layer in layers.values():
            layer.weight.masked_fill_(smallest(layer.weight, share), 0)
    else:
        for name, layer, hessian in gptq.with_inputs(model, batches):
            scores = layer.weight.abs() * hessian.diagonal().sqrt()  # (out,in) x (in): of inputs x, sqrt(x.x)
            if method == "2:4":
                n = layer.in_features
                require(n % 4 == 0, f"method=2:4 needs fours of inputs, and {name} has {n}; choose wanda")
                scores = scores.view(-1, 4)
            layer.weight.masked_fill_(lowest(scores, share).view_as(layer.weight), 0)


def prune_model(model, share: float, method: str, batches: list[Tensor]):
    """Prune a model, in place; returns it, or for heads and neurons the smaller one.

    batches: token ids (B,T) to measure inputs on; magnitude and layer need none.
    """
    if method in prune_parts.METHODS:
        return prune_parts.smaller(model, share, method, batches)
    set_zeros(model, share, method, batches)
    return model


# ---- in training
def change_model(model, config: dict):
    """Give each matrix a mask of its zeros, `pruned`. ValueError for settings that make no sense.

    A new model has no pruned weights, though its output projections start at zero (zero_init).
    """
    share, others = config["prune_sparsity"], config.get("technique", "").split(",")
    require(0 <= share < 1, f"prune_sparsity={share} makes no sense; expected 0 or more, below 1")
    at_least(1, config, "prune_iters")
    for name in ALONE:
        require(name not in others, f"technique=prune is for training all weights; leave {name} out")
    has_base = config.get("init_from", "scratch") not in ("scratch", "auto")
    for layer in matrices(model).values():
        layer.register_buffer("pruned", (layer.weight.detach() == 0) & has_base)
    return model


def share_at(step: int, share: float, end: int) -> float:
    """The share of zeros that is due after update `step`: fast at first, slower towards `end`.

    share x (1 - (1 - step / end)^3): Zhu and Gupta, 2017. Between its steps, and after the end, 0.
    """
    due = step == end or (step < end and step % EVERY == 0)
    return share * (1 - (1 - step / end) ** 3) if due else 0.0


@torch.no_grad()
def after_step(model, step: int, config: dict) -> None:
    """Put the zeros back; with prune_sparsity, set more. ValueError after update 1 if there are none."""
    layers = list(matrices(model).values())
    due = share_at(step, config["prune_sparsity"], config["prune_iters"])
    for layer in layers:
        put_back(layer)
        if due:
            layer.pruned |= smallest(gathered(layer.weight), due)  # those that are zero already come first
            put_back(layer)
    if step == 1 and not config["prune_sparsity"]:
        advice = "start from a pruned run (python -m techniques.prune -h), or give --prune_sparsity=0.5"
        kept = any(layer.pruned.any() for layer in layers)
        require(kept, f"technique=prune keeps zeros, and the weights that it began with have none; {advice}")


@torch.no_grad()
def put_back(layer: nn.Linear) -> None:
    """Set the weights of a layer that are pruned to zero; with fsdp, those of this rank's shard."""
    weight = local_shard(layer.weight)
    weight.masked_fill_(local_shard(shard_like(layer.pruned, layer.weight)).to(weight.device), 0)


def as_base(saved: dict, config: dict) -> dict:
    """The checkpoint without its masks: the weights have the zeros anyway."""
    weights = {name: t for name, t in saved["model"].items() if not name.endswith(".pruned")}
    on = [name for name in saved["config"]["technique"].split(",") if name != "prune"]
    return {**saved, "model": weights, "config": {**saved["config"], "technique": ",".join(on)}}


# ---- the command
def zeros_in(model) -> str:
    """A line about the zeros in the blocks' matrices."""
    counts = [(int((m.weight == 0).sum()), m.weight.numel()) for m in matrices(model).values()]
    shares = [zeros / n for zeros, n in counts]
    zeros, n = (sum(column) for column in zip(*counts, strict=True))
    spread = f"{min(shares):.1%} to {max(shares):.1%} of a matrix"
    return f"zeros: {zeros:,} of {n:,} weights in the blocks, {zeros / n:.1%} ({spread}); stored like others"


def pruned_run(config: dict) -> list[str]:
    """Write the pruned run; returns lines about it. ValueError for one that cannot be pruned so."""
    method, share = config["method"], config["sparsity"]
    require(method in METHODS, f"method={method!r:.60} is unknown; expected one of {', '.join(METHODS)}")
    require(0 <= share < 1, f"sparsity={share} makes no sense; expected 0 or more, below 1")
    require(method != "2:4" or share == 0.5, "method=2:4 is a sparsity of 0.5; leave --sparsity out")
    at_least(1, config, "tokens")
    source = checkpoint.run_folder(config["out_dir"])
    to = config["to"] or f"{config['out_dir'].rstrip('/')}-pruned"
    folder = new_run_folder(to, "to")
    model, tokenizer, saved = checkpoint.load_model(source / config["file"], torch.device("cpu"))
    if "prune" in saved["config"].get("technique", "").split(","):
        saved = as_base(saved, saved["config"])
        for layer in matrices(model).values():
            del layer.pruned
    on = saved["config"].get("technique", "")
    require("quantize" not in on, f"{config['out_dir']} is quantized; prune the run that it was made of")
    adapters.require_merged(saved, config["out_dir"])
    batches = [] if method in ("magnitude", "layer") else gptq.calibration(config, saved, tokenizer)
    before = val_loss(model, saved)
    parts = method in prune_parts.METHODS
    require(not (parts and on), f"method={method} is for plain models, and the run has technique={on}")
    pruned = prune_model(model, share, method, batches)
    lines = prune_parts.gains(model, pruned) if parts else [zeros_in(pruned)]
    shape = dataclasses.asdict(pruned.config)
    counts = {name: shape[name] for name in ("n_head", "n_kv_head", "n_ff")}  # a run has them twice
    saved |= {"model_config": shape, "config": saved["config"] | counts}
    after = None if before is None else val_loss(pruned, saved)
    if before is not None:
        lines.append(f"val loss: {before:.4f} -> {after:.4f}")
    saved["val_loss"] = math.inf if after is None else after
    adapters.write_plain(folder, pruned, saved, to)
    return [*lines, f"saved {folder / 'best.pt'}"]


if __name__ == "__main__":
    config = override(globals())
    for name in ("prune_sparsity", "prune_iters"):
        require(not typed(name), f"--{name} is for training; here it is --sparsity")
    print(*pruned_run(config), sep="\n")
    end_script()
