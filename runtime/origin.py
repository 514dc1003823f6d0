"""Where a run starts: from scratch, from another run's weights (fine-tuning), or where it stopped."""

import dataclasses
import math
import os
from pathlib import Path

import techniques
from config import require, typed
from model import GPT
from runtime import branch
from runtime.checkpoint import check_same, load, load_weights, read
from runtime.folder import find, is_foreign, newest
from runtime.trust import check_types


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
    val_loss_to_beat: float = math.inf  # by min_delta: that of the last evaluation that was better
    clipped: int = 0  # updates since the last progress line whose gradient was clipped

    def note_losses(self, train_loss: float, val_loss: float, min_delta: float) -> bool:
        """Note an evaluation at this step. Returns whether its val loss is the lowest so far.

        For early stopping it is better only if it is min_delta below the last one that was better. Not below
        the lowest: then a run that improves by less at each evaluation, but steadily, would be stopped.
        """
        better = val_loss < self.val_loss_to_beat - min_delta
        lowest = val_loss < self.best_val_loss
        self.train_loss, self.val_loss, self.evaluated_at = train_loss, val_loss, self.step
        self.bad_evals = 0 if better else self.bad_evals + 1
        if better:
            self.val_loss_to_beat = val_loss
        if lowest:
            self.best_val_loss, self.best_step = val_loss, self.step
        return lowest


def base_of(init_from: str, folder: Path, eval_only: bool = False) -> tuple[dict, bool]:
    """(the checkpoint to start from, {} for none; whether the run in `folder` is resumed).

    init_from: scratch | resume | resume:NAME, from that checkpoint (branch.py) | auto, which resumes if there
    is a run | the path of a run, for its weights. ValueError if there is no such checkpoint, or none that a
    run can resume from, or if a new run in `folder` would overwrite its own base.
    """
    is_named = init_from.startswith(branch.PREFIX)
    resume = is_named or init_from == "resume"
    if init_from == "auto":
        resume = newest(folder / "ckpt.pt").exists()
    if not resume and init_from in ("auto", "scratch"):
        return {}, False
    path = branch.named(init_from, folder) if is_named else find("resume" if resume else init_from, folder)
    if not resume and not eval_only:
        refuse_own_base(path, init_from, folder)
    if not resume and is_foreign(path):
        saved = techniques.load("pretrained")[0].read_run(path)
        for note in saved["notes"] if os.environ.get("RANK", "0") == "0" else ():
            print(note)
        return saved, False
    saved = read(path, shards=True) if is_named else load(path, shards=resume)
    if resume and not {"optimizer", "shards"} & saved.keys():
        raise ValueError(f"{path} has no optimizer; start from its weights: --init_from={folder.name}")
    return saved if resume else as_base(saved), resume


def as_base(saved: dict) -> dict:
    """A checkpoint as a new run starts from it, with those of its techniques that its weights need.

    One that changes the data or the loss alone leaves the model as it is: the new run may do without it.
    """
    saved = techniques.change("as_base", saved, saved["config"])
    names = list(filter(None, techniques_of(saved)))
    needed = [name for name in names if hasattr(techniques.load(name)[0], "change_model")]
    return {**saved, "config": {**saved["config"], "technique": ",".join(needed)}}


def refuse_own_base(path: Path, init_from: str, folder: Path) -> None:
    """ValueError if a new run in `folder` would overwrite the checkpoint that it starts from."""
    places = [place if place.is_dir() else place.parent for place in (path, path.resolve())]
    places += [place.parent for place in places]  # of a folder of shards: the run's
    if folder.exists() and any(place.exists() and place.samefile(folder) for place in places):
        raise ValueError(
            f"init_from={init_from} is in out_dir={folder}, where a new run would overwrite it; choose "
            f"another --out_dir, or go on with that run: --init_from=resume, or resume:{path.name}"
        )


def progress_of(saved: dict) -> Progress:
    """Where the run that made a checkpoint stood; {}: a run that has not begun."""
    names = {field.name for field in dataclasses.fields(Progress)} & saved.keys()
    progress = Progress(**{name: saved[name] for name in names})
    if "val_loss_to_beat" not in saved:  # an earlier version compared with the best
        progress.val_loss_to_beat = progress.best_val_loss
    return progress


def nothing_left(progress: Progress, init_from: str, folder: Path) -> bool:
    """Whether a run that has made all of its updates is finished; with init_from=auto that is no mistake.

    Killed at its very end, it has no result.json, and writes it now. ValueError with another init_from.
    """
    if init_from != "auto":
        raise ValueError(f"{folder} has made {progress.step} updates; set --max_iters higher")
    finished = (folder / "result.json").exists()
    if finished:
        print(f"{folder} has already made its {progress.step} updates")
    return finished


def starting_point(progress: Progress, saved: dict, max_iters: int, init_from: str) -> list[str]:
    """The lines that say where a run starts, if that is not from scratch. saved: {} if it is not resumed.

    A run that has stopped early and is told to make more updates counts its evaluations from 0 again. Without
    more updates it stops at the same place, unless it is given more patience.
    """
    if not saved:
        return [] if init_from in ("scratch", "auto") else [f"starting from the weights of {init_from}"]
    lines = [f"going on at step {progress.step}"]
    old = saved["config"]
    check_types(old, {"patience": int, "max_iters": int}, "the checkpoint's settings", required=False)
    more = (typed("max_iters") or typed("epochs")) and max_iters > old.get("max_iters", max_iters)
    if more and 0 < old.get("patience", 0) <= progress.bad_evals:
        progress.bad_evals = 0
        lines.append(f"it had stopped early; told to make {max_iters} updates, it goes on")
    return lines


def techniques_of(saved: dict) -> list[str]:
    """The names of the techniques that have changed the model whose weights a checkpoint holds."""
    return saved.get("config", {}).get("technique", "").split(",")


def new_techniques(saved: dict, technique: str) -> str:
    """Those of a run's techniques that its checkpoint's weights do not have yet.

    ValueError for one that can only begin with random weights, if there is a checkpoint.
    """
    new = [name for name in technique.split(",") if name not in techniques_of(saved)]
    for module in techniques.load(",".join(new)) if saved else ():
        why = getattr(module, "FROM_SCRATCH", "")
        name = module.__name__.removeprefix("techniques.")
        require(
            not why, f"technique={name} cannot start from a base: {why}; leave out --init_from, or {name}"
        )
    return ",".join(new)


def put_weights(saved: dict, model: GPT, config: dict, tokenizer, where: str) -> GPT:
    """Copy the weights of a checkpoint, if there are any, into a model of the same shape and tokenizer.

    Returns the model as the checkpoint's techniques have changed it: the weights are those of such a model.
    Shards are left to checkpoint.restore(). where: the run, for messages. ValueError if something differs.
    """
    model = techniques.change("change_model", model, config, ",".join(techniques_of(saved)))
    if saved:
        check_same(saved, model.config, tokenizer, where)
    if "model" in saved:
        load_weights(model, saved["model"], where)
    return model
