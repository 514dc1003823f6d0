"""Weight averaging: evaluate and save the average of the weights of many updates, not the last weights.

    python train.py config/small.py --average_decay=0.99           or --technique=average
    python -m techniques.average --out_dir=out-small               writes out-small-average, a plain run

An exponential moving average (Polyak and Juditsky, 1992; Tarvainen and Valpola, 2017): after each update

    average = decay x average + (1 - decay) x weights

so that about the last 1 / (1 - decay) updates count. Single updates are noisy, and the noise averages out.
It costs a copy of the weights, in memory and in each checkpoint, and no measurable time.

In training mode the model has the weights that learn, in evaluation mode their average: so losses and
samples are those of the average, and sample.py reads it. A resumed run goes on bit for bit. A new run from
such a run (--init_from) starts from the average, as a plain model.
"""

import torch
from torch import nn

from config import end_script, given, override, require
from runtime import checkpoint
from runtime.folder import new_run_folder
from techniques import BLOCKS, adapters

# -----------------------------------------------------------------------------
average_decay = 0.99  # about the last 1 / (1 - average_decay) updates are averaged
# the command
out_dir = "out-shakespeare-long"  # the run
file = "best.pt"  # which checkpoint in it
to = ""  # folder of the plain run; '' = out_dir with -average behind its name
# -----------------------------------------------------------------------------

AFTER = BLOCKS  # their parameters are averaged, too


class Average(nn.Module):
    """The averages of a model's parameters, as buffers; a child of that model.

    model.eval() and model.train() reach all children: here they exchange the averages and the weights. So
    state_dict() has the two exchanged in evaluation mode.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.owner = [model]  # in a list, or the model would become a child of its child
        for name, p in model.named_parameters():
            self.register_buffer(name.replace(".", "_"), p.detach().clone())

    def pairs(self) -> tuple[list, list]:
        """(weights, averages), in the same order. Tied weights count once."""
        weights = [p.detach() for p in self.owner[0].parameters()]
        return weights, list(self.buffers())

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move the averages towards the weights."""
        weights, averages = self.pairs()
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @torch.no_grad()
    def train(self, mode: bool = True) -> "Average":
        """Exchange weights and averages if the mode changes, in place: optimizers keep the addresses."""
        if mode != self.training:
            weights, averages = self.pairs()
            # One buffer for all, made first: if memory runs out, nothing has been exchanged.
            spare = torch.empty_like(max(weights, key=torch.numel)).flatten()
            for weight, average in zip(weights, averages, strict=True):
                before = spare[: weight.numel()].view(weight.shape).copy_(weight)
                weight.copy_(average)
                average.copy_(before)
        return super().train(mode)


def change_model(model, config: dict):
    """Put the averages beside the weights. ValueError for settings that make no sense."""
    decay, others = config["average_decay"], config.get("technique", "").split(",")
    require(0 < decay < 1, f"average_decay={decay} makes no sense; expected above 0, below 1; 0.99 is usual")
    sharded = config.get("strategy") == "fsdp"
    require(not sharded, "technique=average is not for strategy=fsdp; expected ddp or zero1")
    for name in ("lora", "quantize"):
        require(name not in others, f"technique=average is for training all weights; leave {name} out")
    model.average = Average(model)
    return model


def after_step(model, step: int, config: dict) -> None:
    """Update the averages. Early decays are lower, 2/11, 3/12, ...: the first weights are soon forgotten."""
    model.average.update(min(config["average_decay"], (1 + step) / (10 + step)))


def as_base(saved: dict, config: dict) -> dict:
    """The checkpoint as a plain one, with the averages as weights. config: the settings in it."""
    weights, on = saved["model"], config["technique"].split(",")
    own = [name for name in weights if not name.startswith("average.")]
    averages = {name: weights.get("average." + name.replace(".", "_"), weights[name]) for name in own}
    if "average.head_weight" not in weights:  # tied: one parameter, by the name of wte
        averages["head.weight"] = averages["wte.weight"]
    technique = ",".join(name for name in on if name != "average")
    return {**saved, "model": averages, "config": {**config, "technique": technique}}


def plain_run(config: dict) -> str:
    """Write the run out_dir/file with its averages as weights, a plain one. Returns a line about it."""
    source = checkpoint.run_folder(config["out_dir"])
    to = config["to"] or f"{config['out_dir'].rstrip('/')}-average"
    folder = new_run_folder(to, "to")
    model, _, saved = checkpoint.load_model(source / config["file"], torch.device("cpu"))  # in eval mode
    averaged = hasattr(model, "average")
    require(averaged, f"{source / config['file']} was not averaged; expected a run with technique=average")
    del model.average
    adapters.write_plain(folder, model, saved, to)
    return f"saved {folder / 'best.pt'}"


if __name__ == "__main__":
    config = override(globals())
    require("average_decay" not in given, "--average_decay is for training; leave it out")
    from techniques import average  # not this file, which is __main__

    print(average.plain_run(config))
    end_script()
