"""What a run's settings come to: what was not given, what contradicts, what nothing uses.

A setting that is typed is used, or a line says that it is not. train.py calls in this order:

    take_over      what was not given comes from the checkpoint; Muon's two learning rates go together
    for_device     dtype=auto and logits_mb=-1
    check_batch    batch_size, gradient_accumulation_steps and global_batch_size together
    updates        max_iters, or epochs
    unused         a line about typed settings that this run does not use
"""

import dataclasses
import math

import torch

from config import adopt, at_least, defaults_of, given, require, technique_settings, typed, untyped
from machine import hardware
from model import GPTConfig
from runtime import memory
from runtime.trust import check_types

# Fine-tuning under Muon starts from this share of the base's learning rates. Measured with config/tiny.py
# after 400 updates on verse: how far val loss is above the text's entropy, at first 0.1857, and after 5, 10,
# 15 and 20 more updates on the same text at a constant rate. Last, by how much all matrices have changed.
#     the base's rates (3e-3, muon_lr 0.02)     0.2168 0.2446 0.2506 0.2543     17 %
#     a tenth (3e-4, 0.002)                     0.1824 0.1801 0.1791 0.1787    2.1 %
#     a tenth, 10 updates of warm-up            0.1842 0.1810 0.1788 0.1782    1.7 %
#     AdamW, 3e-4                               0.1838 0.1834 0.1826 0.1802    1.8 %
FINE_TUNING = 0.1

ENDLESS = ("constant", "step")  # schedules that do not end at lr_decay_iters
# Which settings are used only if another is set so: names, the other setting, when they are used. The first
# row that says no gives the reason. "processes" is their number, not a setting.
USED_IF = (
    ("lr_schedule min_lr lr_cooldown lr_power lr_step_iters lr_gamma", "decay_lr", lambda s: s["decay_lr"]),
    ("lr_decay_iters", "decay_lr", lambda s: s["decay_lr"] or s["warmup_ratio"]),
    ("lr_decay_iters", "lr_schedule", lambda s: s["warmup_ratio"] or s["lr_schedule"] not in ENDLESS),
    ("min_lr", "lr_schedule", lambda s: s["lr_schedule"] != "constant"),
    ("lr_cooldown", "lr_schedule", lambda s: s["lr_schedule"] == "trapezoid"),
    ("lr_power", "lr_schedule", lambda s: s["lr_schedule"] == "polynomial"),
    ("lr_step_iters lr_gamma", "lr_schedule", lambda s: s["lr_schedule"] == "step"),
    ("muon_lr", "optimizer", lambda s: s["optimizer"] == "muon"),
    ("muon_momentum", "optimizer", lambda s: s["optimizer"] in ("muon", "sgd")),
    ("beta1 beta2", "optimizer", lambda s: s["optimizer"] != "sgd"),
    ("rope_theta", "position", lambda s: s["position"] == "rope"),
    ("min_delta", "patience", lambda s: s["patience"]),
    ("keep_checkpoints", "save_interval", lambda s: s["save_interval"] or s["checkpoint_format"] != "file"),
    ("wandb_project wandb_run_name", "wandb_log", lambda s: s["wandb_log"]),
    ("top_k top_p", "temperature", lambda s: s["temperature"]),
    ("temperature top_k top_p", "max_new_tokens", lambda s: s["max_new_tokens"]),
    ("backend timeout", "processes", lambda s: s["processes"] > 1 or s["strategy"] != "ddp"),
    ("oom_retry", "processes", lambda s: s["processes"] == 1),
)


def take_over(script: dict, config: dict, saved: dict, resume: bool) -> list[str]:
    """Take a checkpoint's settings, except those that were given. Returns lines that say what changed.

    script: train.py's globals(); it and config are changed in place. saved: the checkpoint, {} for none.
    resume: whether its run goes on; else a new run starts from its weights and takes only the model's shape.
    """
    old = saved.get("config", {})
    names = {field.name for field in dataclasses.fields(GPTConfig)} - {"dropout", "gradient_checkpointing"}
    names |= inherit_techniques(config, old, resume)
    if resume:
        names = old.keys() - {"init_from", "out_dir", "eval_only"}
    lines = adopt(script, config, {name: value for name, value in old.items() if name in names})
    if config["optimizer"] == "muon":
        lines += learning_rates(config, old, fine_tuning=bool(saved) and not resume)
    if resume:
        lines += keep_global_batch(config, saved)
    if not saved and "lora" in config["technique"].split(","):
        lines.append("WARNING: LoRA leaves random weights as they are; name a base with --init_from=out-base")
    check_numbers(config)
    script.update(config)
    return lines


def check_numbers(config: dict) -> None:
    """ValueError for a setting of train.py that is below the lowest number which makes sense."""
    at_least(1, config, "batch_size block_size gradient_accumulation_steps max_iters")
    at_least(1, config, "eval_interval log_interval")
    at_least(0, config, "epochs eval_iters patience min_delta grad_clip save_interval sample_interval")
    at_least(0, config, "seed max_new_tokens threads global_batch_size")
    at_least(-1, config, "logits_mb")


def for_device(config: dict, dtype: str, device: torch.device) -> dict:
    """The settings with what "auto" and -1 stand for on this device."""
    limit = memory.logits_limit(config["logits_mb"], hardware.total_bytes(device))
    return {**config, "dtype": dtype, "logits_mb": limit}


# ---- techniques
def inherit_techniques(config: dict, old: dict, resume: bool) -> set[str]:
    """Add the techniques of a checkpoint to config, with their settings; return the names of these settings.

    The checkpoint's weights are those of a model that its techniques have changed. So a resumed run keeps
    them as they are, and a new run from its weights may add others. ValueError for anything else. old: the
    checkpoint's settings.
    """
    theirs = [name for name in old.get("technique", "").split(",") if name in technique_settings()]
    ours = config["technique"].split(",") if config["technique"] else []
    missing = [name for name in theirs if name not in ours]
    if typed("technique") and missing:
        raise ValueError(f"the checkpoint was trained with technique={missing[0]}; leave --technique out")
    added = [name for name in ours if name not in theirs]
    if resume and added:
        raise ValueError(
            f"a resumed run keeps its techniques, and {added[0]} is a new one; for a new run from its "
            "weights, name its folder and another one: --init_from=out-mine --out_dir=out-new"
        )
    settings = {name: value for each in theirs for name, value in technique_settings()[each].items()}
    for name, default in settings.items():
        theirs_is = old.get(name, default)
        if typed(name) and config[name] != theirs_is:
            advice = ", or merge the checkpoint first: python -m techniques.lora merge -h"
            raise ValueError(
                f"the checkpoint was trained with {name}={theirs_is}, not {config[name]}; leave --{name} out"
                + (advice if "lora" in theirs else "")
            )
        given.pop(name, None)  # a config file's: the checkpoint's holds
    config.update({name: default for name, default in settings.items() if name not in config})
    config["technique"] = ",".join(theirs + added)
    given.pop("technique", None)
    return set(settings)


# ---- learning rates
def learning_rates(config: dict, old: dict, fine_tuning: bool) -> list[str]:
    """Muon's two rates go together: muon_lr moves in proportion where learning_rate is given without it.

    In proportion to the pair of rates that it replaces: a config file's, else the checkpoint's, else the
    defaults. Fine-tuning starts lower: FINE_TUNING. old: the checkpoint's settings, {} for none.
    """
    defaults = defaults_of("train.py")
    base = old if old.get("optimizer") == "muon" else {}
    base_lr, base_muon_lr = (rate_of(base, defaults, name) for name in ("learning_rate", "muon_lr"))
    lines = []
    if fine_tuning:
        lower = {"learning_rate": FINE_TUNING * base_lr, "muon_lr": FINE_TUNING * base_muon_lr}
        lower = {name: rate for name, rate in lower.items() if name not in given}
        config.update(lower)
        if "learning_rate" not in given:
            shown = ", ".join(f"{name}={rate:.3g}" for name, rate in lower.items())
            whose = "base's" if base else "default"
            lines.append(f"fine-tuning starts from a tenth of the {whose} learning rates: {shown}")
    old_lr, old_muon_lr = base_lr, base_muon_lr
    if "muon_lr" in given and not typed("muon_lr"):  # a config file's
        old_muon_lr = untyped["muon_lr"]
        if untyped["learning_rate"] != defaults["learning_rate"]:
            old_lr = untyped["learning_rate"]
    follows = typed("learning_rate") if "muon_lr" in given else "learning_rate" in given
    lr = config["learning_rate"]
    if follows and not typed("muon_lr") and (lr != old_lr or fine_tuning):
        config["muon_lr"] = old_muon_lr * lr / old_lr
        lines.append(
            f"learning_rate={lr:g} was given, so muon_lr moves in proportion, from {old_muon_lr:.3g} to "
            f"{config['muon_lr']:.3g} (--muon_lr sets it by itself)"
        )
    if fine_tuning and config["muon_lr"] > base_muon_lr / 2:
        lines.append(
            f"WARNING: muon_lr={config['muon_lr']:.3g} is for training from scratch and overwrites what the "
            f"base knows; for fine-tuning try --muon_lr={FINE_TUNING * base_muon_lr:.3g}"
        )
    falls = config["decay_lr"] and config["lr_schedule"] != "constant"
    if typed("min_lr") and falls and 0 <= config["min_lr"] <= lr:
        lowest = config["muon_lr"] * config["min_lr"] / lr
        lines.append(f"min_lr={config['min_lr']:g} is where learning_rate ends; muon_lr ends at {lowest:.3g}")
    return lines


def rate_of(old: dict, defaults: dict, name: str) -> float:
    """A learning rate among a checkpoint's settings, else its default. ValueError if it is none."""
    rate = old.get(name, defaults[name])
    if not (type(rate) is float and 0 < rate < math.inf):
        raise ValueError(f"the checkpoint's {name} is {rate!r}; expected a number above 0")
    return rate


# ---- the batch
def keep_global_batch(config: dict, saved: dict) -> list[str]:
    """A resumed run keeps the windows of an update, with any number of processes, unless told otherwise.

    A batch_size or gradient_accumulation_steps that is given and not the saved one is used: the saved
    global_batch_size then holds no longer. It still does if the run was started with a global batch larger
    than these two make, and only batch_size, which divides it, is new.
    """
    old, pair = saved["config"], ("batch_size", "gradient_accumulation_steps")
    check_types(old, dict.fromkeys(pair, int), "the checkpoint's settings", required=False)
    changed = [name for name in pair if name in given and old.get(name, config[name]) != config[name]]
    n = config["global_batch_size"]
    if not changed or "global_batch_size" in given or not n:
        return []
    made = saved.get("world_size", 1) * math.prod(old.get(name, config[name]) for name in pair)
    if made != n and changed == ["batch_size"]:
        return [f"an update still reads global_batch_size={n} windows, at most batch_size at a time"]
    config["global_batch_size"] = 0
    return [f"an update no longer reads global_batch_size={n} windows; given: {', '.join(changed)}"]


def check_batch(config: dict, batch_size: int, micro_steps: int, world_size: int) -> list[str]:
    """Compare what was given with what global_batch_size makes of it: batch and micro-steps of a process.

    Returns a line if they differ. ValueError if batch_size and global_batch_size, both typed, do not fit.
    """
    n, wanted = config["global_batch_size"], config["batch_size"]
    if n and n % wanted and typed("batch_size") and typed("global_batch_size"):
        below = max(d for d in range(1, min(wanted, n) + 1) if n % d == 0)
        raise ValueError(
            f"batch_size={wanted} and global_batch_size={n} do not fit; choose --batch_size={below}, or a "
            f"multiple of {wanted} for --global_batch_size, or leave one of them out"
        )
    used = {"batch_size": batch_size, "gradient_accumulation_steps": micro_steps}
    others = [f"{name}={config[name]}" for name in used if name in given and config[name] != used[name]]
    if not n or not others:
        return []
    each = f"{batch_size} windows x {micro_steps} micro-steps x {world_size} processes"
    return [f"not used here: {', '.join(others)} (global_batch_size={n} is {each})"]


# ---- how long
def updates(config: dict, n_windows: int, windows_per_iter: int) -> tuple[int, list[str]]:
    """(number of updates of this run, lines to print): max_iters, or epochs passes over n_windows.

    A typed max_iters beats the epochs of a file or checkpoint. Config is changed to what holds. ValueError if
    both are typed and differ.
    """
    max_iters, epochs = config["max_iters"], config["epochs"]
    if not epochs:
        return max_iters, []
    n = math.ceil(epochs * n_windows / windows_per_iter)
    if typed("max_iters") and typed("epochs"):
        same = "they contradict each other; leave one of them out"
        require(n == max_iters, f"epochs={epochs:g} is {n} updates and max_iters={max_iters}: {same}")
    elif typed("max_iters"):
        config["epochs"] = 0.0  # for a resumed run, too
        where = given.get("epochs", "the checkpoint")
        return max_iters, [f"not used here: epochs={epochs:g} of {where} (--max_iters={max_iters})"]
    config["max_iters"] = n
    return n, []


# ---- what is not used
def unused(settings: dict, world_size: int) -> list[str]:
    """The line about settings on the command line that this run does not use; none if all are used.

    settings: train.py's, and those of the model with `arch` resolved.
    """
    settings = {**settings, "processes": world_size}
    reasons: dict[str, str] = {}
    for names, other, is_used in USED_IF:
        for name in names.split():
            if typed(name) and not is_used(settings):
                reasons.setdefault(name, f"{other}={settings[other]}")
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(f"--{name}")
    parts = [f"{', '.join(names)} ({reason})" for reason, names in by_reason.items()]
    return [f"not used here: {'; '.join(parts)}"] if parts else []
