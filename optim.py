"""Gradients -> new weights: learning-rate schedules, parameter groups, four optimizers.

    schedule, warning = resolve_schedule(config)          once: checks the settings, fills in defaults
    optimizer = build_optimizer(model, config, "cpu")     once
    lr = lr_at(step, **schedule)                          before every update
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]

All groups follow one schedule. A group with another learning rate has its own factor, lr_scale.
"""

import functools
import inspect
import math
import re
import warnings
from fnmatch import fnmatchcase

import torch

from config import require
from machine.distributed import shard_like
from muon import Muon

# The state tensors that each optimizer keeps per parameter, of the parameter's shape.
STATE_NAMES = {
    "muon": ("momentum_buffer",),
    "adamw": ("exp_avg", "exp_avg_sq"),
    "adam": ("exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
}
SCHEDULES = ("constant", "linear", "cosine", "step", "polynomial", "trapezoid")


# ---- the learning rate


def lr_at(
    step: int,
    *,
    lr_schedule: str,
    learning_rate: float,
    min_lr: float,
    warmup_iters: int,
    lr_decay_iters: int,
    lr_cooldown: float,
    lr_power: float,
    lr_step_iters: int,
    lr_gamma: float,
) -> float:
    """Learning rate of update number `step`, counted from 0. It depends on no state, so resuming is exact.

    Warm-up: learning_rate * (step + 1) / (warmup_iters + 1). So the first update is not wasted on a rate of
    0, and step == warmup_iters has exactly learning_rate. From there
      constant    stays
      step        is multiplied by lr_gamma every lr_step_iters updates, down to min_lr
      linear, cosine (Loshchilov & Hutter 2017), polynomial
                  fall to min_lr, reached exactly at lr_decay_iters
      trapezoid   stays, then falls linearly over the last lr_cooldown x lr_decay_iters (Haegele et al. 2024)
    """
    if step < warmup_iters:
        return learning_rate * (step + 1) / (warmup_iters + 1)
    if lr_schedule == "constant":
        return learning_rate
    if lr_schedule == "step":
        return max(min_lr, learning_rate * lr_gamma ** ((step - warmup_iters) // lr_step_iters))

    start = warmup_iters  # of the fall
    if lr_schedule == "trapezoid":
        start = max(start, lr_decay_iters - round(lr_cooldown * lr_decay_iters))
    if step >= lr_decay_iters:
        return min_lr
    if step <= start:
        return learning_rate
    share = (lr_decay_iters - step) / (lr_decay_iters - start)  # what is left of the fall: from 1 to 0
    if lr_schedule == "cosine":
        share = 0.5 * (1.0 - math.cos(math.pi * share))
    if lr_schedule == "polynomial":
        share = share**lr_power
    return min_lr + share * (learning_rate - min_lr)


def resolve_schedule(config: dict) -> tuple[dict, str]:
    """Check train.py's schedule settings; return (keyword arguments for lr_at, a warning or "").

    Fills in defaults: decay_lr=False (nanoGPT's spelling) becomes lr_schedule=constant, min_lr=-1 a tenth of
    learning_rate, lr_decay_iters=-1 max_iters. warmup_ratio is a share of lr_decay_iters. Raises ValueError
    for invalid values and for values that contradict each other.
    """
    kind, lr, min_lr = config["lr_schedule"], config["learning_rate"], config["min_lr"]
    end, warmup, ratio = config["lr_decay_iters"], config["warmup_iters"], config["warmup_ratio"]
    require(kind in SCHEDULES, f"lr_schedule={kind} is unknown; expected one of {', '.join(SCHEDULES)}")
    require(0 < lr < math.inf, f"learning_rate={lr} is invalid; expected a number above 0")
    require(end == -1 or end >= 1, f"lr_decay_iters={end} is invalid; expected updates, or -1 for max_iters")
    require(warmup >= 0, f"warmup_iters={warmup} is invalid; expected 0 or more updates")
    require(0 <= ratio <= 1, f"warmup_ratio={ratio} is invalid; expected 0 to 1; warmup_iters takes updates")
    if warmup and ratio:
        raise ValueError(f"warmup_iters={warmup} and warmup_ratio={ratio} are both set; set one of them to 0")
    for name in ("lr_cooldown", "lr_gamma"):
        share = config[name]
        require(0 < share <= 1, f"{name}={share} is invalid; expected above 0, at most 1")
    power, interval = config["lr_power"], config["lr_step_iters"]
    require(power > 0, f"lr_power={power} is invalid; expected an exponent above 0")
    require(interval >= 1, f"lr_step_iters={interval} is invalid; expected 1 or more updates")

    schedule = {name: config[name] for name in inspect.signature(lr_at).parameters if name != "step"}
    if not config["decay_lr"]:
        schedule["lr_schedule"] = "constant"
    if schedule["lr_schedule"] != "constant":
        legal = min_lr == -1 or 0 <= min_lr <= lr
        require(legal, f"min_lr={min_lr} is invalid; expected 0 to learning_rate={lr}, or -1 for a tenth")
    if min_lr == -1:
        schedule["min_lr"] = lr / 10
    if end == -1:
        end = config["max_iters"]
        schedule["lr_decay_iters"] = end
    if ratio:
        warmup = round(ratio * end)
        schedule["warmup_iters"] = warmup
    run = min(end, config["max_iters"])
    if not warmup or warmup < run:
        return schedule, ""
    warning = f"WARNING: the warm-up of {warmup} updates is not shorter than the run of {run}, so that no"
    return schedule, warning + f" update has the full learning rate. Try --warmup_iters={run // 20}"


# ---- parameter groups and optimizers


def freeze_parameters(model: torch.nn.Module, freeze: str) -> None:
    """Freeze all parameters under the names or shell patterns in freeze: 'wte,blocks.[0-5]', '*.mlp'.

    Either name of a tied head and embedding freezes both. Raises ValueError for what matches nothing.
    """
    tensors = model.state_dict(keep_vars=True)  # with packed layers, which are frozen anyway
    for wanted in filter(None, freeze.replace(" ", "").split(",")):
        found = [t for name, t in tensors.items() if fnmatchcase(f"{name}.", f"{wanted}.*")]
        kinds = ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in tensors))
        require(
            len(found) > 0, f"freeze={wanted} matches no parameter; expected names or patterns of {kinds}"
        )
        for t in found:
            t.requires_grad_(False)


def layer_scale(name: str, n_layer: int, layer_lr_decay: float) -> float:
    """Layer-wise learning-rate decay (Howard & Ruder 2018): a factor, smaller further from the output.

    Block i of L, counted from 0, has the factor layer_lr_decay ** (L - i). Embeddings, and a head tied to
    them, have ** L like block 0. The final norm and an untied head have 1.
    """
    if name.startswith("blocks."):
        return layer_lr_decay ** (n_layer - int(name.split(".")[1]))
    return layer_lr_decay**n_layer if name.startswith(("wte.", "wpe.")) else 1.0


def parameter_groups(model: torch.nn.Module, config: dict) -> list[dict]:
    """Group the trainable parameters by optimizer, lr_scale and weight decay. A tied parameter counts once.

    Only matrices (of Linear and Embedding) have weight decay, not norms and biases. With optimizer=muon, Muon
    updates the matrices in the blocks, with muon_lr and weight_decay; AdamW updates the rest without decay,
    and what techniques add: only Linear and Embedding have a parameter that is called weight.
    """
    groups: dict[tuple, dict] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        kind, decays = config["optimizer"], p.ndim >= 2
        scale = layer_scale(name, len(model.blocks), config["layer_lr_decay"])
        if kind == "muon" and p.ndim == 2 and ".blocks." in f".{name}" and name.endswith(".weight"):
            scale *= config["muon_lr"] / config["learning_rate"]
        elif kind == "muon":
            kind, decays = "adamw", False
        decay = config["weight_decay"] if decays else 0.0
        group = {"kind": kind, "lr_scale": scale, "weight_decay": decay, "params": []}
        groups.setdefault((kind, scale, decay), group)["params"].append((name, p))
    return list(groups.values())


def build_optimizer(model: torch.nn.Module, config: dict, device_type: str) -> torch.optim.Optimizer:
    """Build the optimizer of a GPT (not of a wrapper around it). Frozen parameters are excluded.

    muon    Muon (muon.py) for the matrices in the blocks, AdamW for the rest
    adamw   Adam; weights also shrink by lr x weight_decay (Loshchilov & Hutter 2019)
    adam    weight_decay x weight is added to the gradient: L2, as in the first paper (Kingma & Ba 2015)
    sgd     momentum is muon_momentum, weight_decay as in adam

    config: train.py's settings, with dtype resolved (not "auto"): if it is bfloat16, so is Newton-Schulz.
    Raises ValueError for an invalid value.
    """
    name, decay, layer_decay = config["optimizer"], config["weight_decay"], config["layer_lr_decay"]
    require(name in STATE_NAMES, f"optimizer={name} is unknown; expected one of {', '.join(STATE_NAMES)}")
    require(decay >= 0, f"weight_decay={decay} is invalid; expected 0 or more")
    require(0 < layer_decay <= 1, f"layer_lr_decay={layer_decay} is invalid; expected above 0, at most 1")
    for key in ("learning_rate", "muon_lr"):
        require(0 < config[key] < math.inf, f"{key}={config[key]} is invalid; expected a number above 0")
    for key in ("beta1", "beta2", "muon_momentum"):
        require(0 <= config[key] < 1, f"{key}={config[key]} is invalid; expected 0 or more, below 1")

    freeze_parameters(model, config["freeze"])
    groups = parameter_groups(model, config)
    require(len(groups) > 0, f"freeze={config['freeze']} leaves nothing to train; freeze less")
    for group in groups:
        group["lr"] = config["learning_rate"] * group["lr_scale"]
    betas, momentum = (config["beta1"], config["beta2"]), config["muon_momentum"]
    # fused: one kernel for all parameters. 0.8M of them on 2 CPU cores: 0.5 ms; 1.3 with foreach, 1.6 with
    # neither.
    fused = device_type in ("cpu", "cuda")
    make, options = torch.optim.AdamW, {"betas": betas, "fused": fused}
    if name == "adam":
        make = torch.optim.Adam
    elif name == "sgd":
        make, options = torch.optim.SGD, {"momentum": momentum}
    elif name == "muon":
        # With AVX512-BF16, Newton-Schulz in bfloat16 takes 13 ms for 4 layers, not 20 (192 wide: 32, not 59).
        # The val loss is as good. After 300 updates, two seeds: 1.670, 1.685; in float32 1.666, 1.692.
        assert config["dtype"] != "auto", "pass the resolved dtype"
        precision = torch.bfloat16 if config["dtype"] == "bfloat16" else torch.float32
        make = functools.partial(Muon, precision=precision)
        options = {"momentum": momentum, "betas": betas, "fused": fused}
    if config["strategy"] != "zero1":
        optimizer = make(groups, **options)
        init_state(optimizer)
        return optimizer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, about torch.jit
        from torch.distributed.optim import ZeroRedundancyOptimizer

    # ZeroRedundancyOptimizer takes no (name, parameter) pairs: the names are added afterwards
    names = [[name for name, _ in group["params"]] for group in groups]
    groups = [{**group, "params": [p for _, p in group["params"]]} for group in groups]
    optimizer = ZeroRedundancyOptimizer(groups, make, **options)  # each rank updates some of the parameters
    for group, group_names in zip(optimizer.param_groups, names, strict=True):
        group["param_names"] = group_names
    init_state(optimizer)
    return optimizer


# ---- optimizer state
def state_names(group: dict) -> tuple[str, ...]:
    """Names of the state tensors that a group keeps per parameter. SGD without momentum keeps none."""
    return () if (group["kind"], group.get("momentum")) == ("sgd", 0) else STATE_NAMES[group["kind"]]


def named_state(optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    """Return {parameter name: its state}, for the parameters that this rank updates; with zero1, not all.

    The states are the optimizer's own dicts: to change them changes the optimizer.
    """
    local = getattr(optimizer, "optim", optimizer)  # zero1: the optimizer of this rank's parameters
    own = {p for group in local.param_groups for p in group["params"]}
    pairs = [zip(group["param_names"], group["params"], strict=True) for group in optimizer.param_groups]
    return {name: local.state[p] for each in pairs for name, p in each if p in own}


def versions(optimizer: torch.optim.Optimizer) -> list[int]:
    """Version numbers of all parameters and state tensors. torch counts changes in place with them."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state_tensors = [t for state in named_state(optimizer).values() for t in state.values()]
    return [t._version for t in params + state_tensors]


def init_state(optimizer: torch.optim.Optimizer) -> None:
    """Create the optimizer state now, as zeros; otherwise the first step would, with equal results.

    If memory runs out in that step, a smaller batch does not help. Here, it runs out before training begins.
    """
    state_of = named_state(optimizer)
    for group in optimizer.param_groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            if name in state_of and not state_of[name]:
                state_of[name].update({key: torch.zeros_like(p) for key in state_names(group)})
                if group["kind"].startswith("adam"):
                    state_of[name]["step"] = torch.zeros((), device=p.device if group["fused"] else "cpu")


def load_state(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Load the state of a saved optimizer.state_dict(), but not its settings, into a new optimizer.

    torch's load_state_dict would silently restore the saved weight_decay, betas and lr_scale, too. The saved
    run may have had another strategy: each rank takes its shard. Raises ValueError if the groups differ.
    """
    check_groups(optimizer, saved["param_groups"])
    names = [name for group in saved["param_groups"] for name in group["param_names"]]
    state_of, params = named_state(optimizer), {}
    for group in optimizer.param_groups:
        params.update(zip(group["param_names"], group["params"], strict=True))
    for number, state in saved["state"].items():
        name = names[number]
        if name in state_of:
            on_device = {key: t.to(params[name].device, copy=True) for key, t in state.items()}
            state_of[name].update({key: shard_like(t, params[name]) for key, t in on_device.items()})


def check_groups(optimizer: torch.optim.Optimizer, saved_groups: list[dict]) -> None:
    """Raise ValueError if a saved optimizer was of another kind or had other parameters."""
    expected = [(group["kind"], group["param_names"]) for group in optimizer.param_groups]
    found = [(group["kind"], group["param_names"]) for group in saved_groups]
    if found != expected:
        raise ValueError("the saved run had another optimizer, freeze or layer_lr_decay; set the same again")
