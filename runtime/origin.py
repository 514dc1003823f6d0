"""Where a run starts: from scratch, from another run's weights (fine-tuning), or where it stopped."""

import dataclasses
import math
from pathlib import Path

from model import GPT, GPTConfig
from runtime.checkpoint import check_same, find, load, load_weights, newest


@dataclasses.dataclass
class Progress:
    """The numbers that a resumed run needs. They are saved in each checkpoint and restored as a whole."""

    step: int = 0  # updates made
    tokens: int = 0  # read in them
    seconds: float = 0.0  # of training, without evaluation, saving and sampling
    evaluated_at: int = -1  # step of the last evaluation
    bad_evals: int = 0  # evaluations since the last one that was better
    train_loss: float = math.inf  # of the last evaluation, in nats per token
    val_loss: float = math.inf
    best_val_loss: float = math.inf
    best_step: int = 0
    clipped: int = 0  # updates since the last progress line whose gradient was clipped

    def note_losses(self, train_loss: float, val_loss: float, min_delta: float) -> bool:
        """Note an evaluation at this step. Returns whether its val loss is the lowest so far.

        min_delta: by how much it has to be lower, to count as better for early stopping.
        """
        better = val_loss < self.best_val_loss - min_delta
        lowest = val_loss < self.best_val_loss
        self.train_loss, self.val_loss, self.evaluated_at = train_loss, val_loss, self.step
        self.bad_evals = 0 if better else self.bad_evals + 1
        if lowest:
            self.best_val_loss, self.best_step = val_loss, self.step
        return lowest


def base_of(init_from: str, folder: Path) -> tuple[dict, bool]:
    """(the checkpoint to start from, {} for none; whether the run in `folder` is resumed).

    init_from: scratch | resume | auto, which resumes if there is a run | the path of a run, for its weights.
    ValueError if there is no such checkpoint, or none that a run can resume from.
    """
    resume = init_from == "resume" or (init_from == "auto" and newest(folder / "ckpt.pt").exists())
    if not resume and init_from in ("auto", "scratch"):
        return {}, False
    saved = load(find("resume" if resume else init_from, folder), shards=resume)
    if resume and not {"optimizer", "shards"} & saved.keys():
        path = folder / "ckpt.pt"
        raise ValueError(f"{path} has no optimizer; start from its weights: --init_from={folder.name}")
    return saved, resume


def settings_to_keep(saved: dict, resume: bool) -> dict:
    """The settings of a checkpoint that a run takes over: all if it resumes, else the model's shape."""
    settings = saved.get("config", {})
    names = {field.name for field in dataclasses.fields(GPTConfig)} - {"dropout", "gradient_checkpointing"}
    if resume:
        names = settings.keys() - {"init_from", "out_dir", "eval_only"}
    return {name: value for name, value in settings.items() if name in names}


def progress_of(saved: dict) -> Progress:
    """Where the run that made a checkpoint stood; {}: a run that has not begun."""
    names = {field.name for field in dataclasses.fields(Progress)} & saved.keys()
    return Progress(**{name: saved[name] for name in names})


def put_weights(saved: dict, model: GPT, tokenizer, where: str) -> None:
    """Copy the weights of a checkpoint, if there are any, into a model of the same shape and tokenizer.

    Shards are left to checkpoint.restore(). where: the run, for messages. ValueError if something differs.
    """
    if saved:
        check_same(saved, model.config, tokenizer, where)
    if "model" in saved:
        load_weights(model, saved["model"], where)
