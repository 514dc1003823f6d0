"""How an idea joins a run: a technique is a file here with settings on top and some of six functions.

    change_model(model, config) -> model     before the optimizer is built: adds, packs or masks parameters
    change_data(windows, config) -> windows  of the training split; val stays as it is
    loss(model, x, y, config) -> nats        in place of cross-entropy: summed over the targets, y != -1
    after_step(model, step, config)          after each update; step: how many there were
    as_base(saved, config) -> saved          a checkpoint as a new run starts from it; else as it is
    after_save(path, checkpoint, config)     after best.pt, ckpt.pt, ... was written, on rank 0

    python train.py config/finetune_lora.py --technique=lora        or --lora_rank=16, which switches it on

config: all settings of the run, the technique's own (lora_rank) among them. They are saved with the run, so a
hook may note there what a resumed run must find again, in a setting of its own (distill_hash).
Whatever reads a checkpoint builds its model through change_model again: on resume, in sample.py, evaluate.py.
So it makes the same model each time, on the meta device, too, where tensors have shapes and no values.
AFTER = ("quantize",) in a file: those techniques change the model first.
FROM_SCRATCH = "why" in a file: it cannot start from the weights of a model without it.

Files without these functions are commands, such as python -m techniques.pretrained, or what commands share.
"""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from config import require, technique_settings

BLOCKS = ("latent", "experts", "sliding", "multi_token")  # they replace or add layers: first of all


def load(names: str) -> list[ModuleType]:
    """Import files of this folder by name, "lora,quantize", in the order in which they change a model.

    Also for a room that a plain import would lead in a circle: these files import the rooms.
    ValueError for a name that has no file, and for two that both replace the loss.
    """
    wanted = [name for name in names.split(",") if name]
    known = ", ".join(technique_settings())
    for name in wanted:
        there = name.isidentifier() and (Path(__path__[0]) / f"{name}.py").is_file()
        require(there, f"technique={name!r:.40} is unknown; expected some of these: {known}")
    modules = [importlib.import_module(f"techniques.{name}") for name in wanted]
    modules.sort(key=lambda module: len(set(getattr(module, "AFTER", ())) & set(wanted)))
    losses = [module.__name__ for module in modules if hasattr(module, "loss")]
    require(len(losses) <= 1, f"{' and '.join(losses)} both replace the loss; choose one of them")
    return modules


def hooks(function: str, config: dict, names: str | None = None) -> list[Callable]:
    """The functions of that name of a run's techniques (config["technique"], or names), in their order.

    Each gets config by itself; a copy with defaults, if an older checkpoint does not have all settings.
    ValueError for a setting of another type than its default.
    """
    found = []
    for module in load(config.get("technique", "") if names is None else names):
        defaults = technique_settings().get(module.__name__.removeprefix("techniques."), {})
        for name, default in defaults.items():
            kind, expected = type(config.get(name, default)), type(default)
            require(kind is expected, f"{name} is a {kind.__name__}; expected {expected.__name__}")
        if hasattr(module, function):
            settings = config if defaults.keys() <= config.keys() else {**defaults, **config}
            found.append(functools.partial(getattr(module, function), config=settings))
    return found


def change(function: str, value, config: dict, names: str | None = None):
    """Return a model or windows after the change_model, or change_data, of each technique in its order."""
    for hook in hooks(function, config, names):
        value = hook(value)
    return value
