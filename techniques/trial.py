"""What the finders share: the run that train.py's settings describe, made to be tried and thrown away.

config = override(globals(), "train.py")
trial = Trial(config)
x, y = trial.batch(step)                      the windows of that update
trial.run.update(step, x, y)                  lab/measure.py
"""

import torch

from config import require
from data import Windows
from lab.measure import Run
from machine import hardware
from runtime.folder import run_folder
from runtime.resolve import check_numbers
from text import prepare, settle
from tokenizer import load_any


class Trial:
    """A run of train.py's before its first update: model, optimizer and training windows on one device.

    config: train.py's settings. ValueError for those that make it another model or loss.
    """

    def __init__(self, config: dict):
        check_numbers(config)
        for name, plain in dict(init_from="scratch", technique="", strategy="ddp", offload="").items():
            other = f"{name}={config[name]} is for train.py; a finder tries the plain model: leave it out"
            require(config[name] == plain, other)
        self.folder = run_folder(config["out_dir"])
        self.device = hardware.choose_device(config["device"])
        torch.set_num_threads(config["threads"] or torch.get_num_threads())
        torch.set_float32_matmul_precision("high")
        dataset, _ = settle.settle(config["dataset"])
        self.tokenizer = load_any(prepare.folder_of(dataset))
        self.windows = Windows(dataset, "train", config["block_size"], config["seed"], config["pack"])
        self.run = Run(config, self.tokenizer.vocab_size, self.device)
        per_update = config["gradient_accumulation_steps"] * config["batch_size"]
        self.per_update = config["global_batch_size"] or per_update  # windows

    def batch(self, step: int, size: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """x, y (B, T) of a step with so many windows, 0: those of an update; on the device."""
        x, y = self.windows.batch(step, size or self.per_update)
        return hardware.to_device(x, self.device), hardware.to_device(y, self.device)
