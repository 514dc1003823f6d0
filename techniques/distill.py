"""Distillation: a small model learns what a large one says of each next token, not the text alone.

    python train.py config/tiny.py --distill_teacher=out-big --distill_alpha=0.5 --distill_temperature=2
    python -m techniques.teacher_cache --out_dir=out-tiny            what is lost with its top k tokens?

Hinton, Vinyals and Dean, 2015. p and q are the next-token probabilities of teacher and student, both at
temperature T: softmax(logits / T). The loss, summed over the targets, y != -1:

    alpha x T^2 x KL(p || q)  +  (1 - alpha) x cross-entropy

T^2, because the gradient of the KL shrinks by that. The teacher is any run with the same tokenizer, or a
model that `python -m techniques.pretrained import` has made one. It is in evaluation mode, on the student's
device, in the student's precision, whole on each rank. A checkpoint of the student holds the teacher's hash,
none of its weights: sample.py and evaluate.py do not need the teacher, a resumed run does.

What train.py prints as `loss` is the mix; train loss and val loss stay cross-entropy.

With distill_top_k only the teacher's k likeliest tokens count one by one, and all others as one outcome. So
the student is free to share out what is left, and the KL is that of all tokens at most (data processing
inequality). Scaled up to 1 instead, the top k would teach the student that nothing else ever comes (the bias
in Anshumann et al., 2025). With distill_cache they are read from disk, where an earlier run has written them:
one with the same windows, so the same dataset, block_size and seed.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from config import ROOT, require
from model import summed_nats
from runtime import checkpoint
from runtime.folder import find, is_foreign, run_folder
from techniques.adapters import hash_of
from techniques.teacher_cache import TopKCache, buckets
from text.prepare import folder_of
from tokenizer import load_any

# -----------------------------------------------------------------------------
distill_teacher = ""  # PATH of the run to learn from
distill_alpha = 0.5  # weight of the teacher; the text has 1 - distill_alpha. 0: as without it
distill_temperature = 2.0  # above 1: unlikely tokens count more
distill_top_k = 0  # how many of the teacher's likeliest tokens count one by one; 0 = all
distill_cache = ""  # PATH of a folder that keeps them for other runs; '' = none
distill_hash = ""  # of the teacher; a run notes it by itself, and resumes with that teacher only
# -----------------------------------------------------------------------------
AFTER = ("average",)  # as_base() takes the name distill out of what average's has made


class Teacher:
    """What the student learns from. It is no part of the student: not of its parameters, nor state_dict()."""

    def __init__(self, path: Path, config: dict):
        """path: of a checkpoint. config: the run's settings. ValueError if it is not a sound checkpoint."""
        self.model, self.tokenizer, saved = checkpoint.load_model(path, torch.device("cpu"))  # in eval mode
        self.model.requires_grad_(False)
        shape = json.dumps(saved["model_config"], sort_keys=True)  # rope_theta, say, is in no weight
        self.hash = hashlib.sha256((hash_of(saved["model"]) + shape).encode()).hexdigest()
        self.step, self.temperature = saved["step"], config["distill_temperature"]
        self.k, self.cache = config["distill_top_k"], None
        if config.get("compile"):  # a cache is not compiled; nor is then the teacher
            self.targets = torch.compiler.disable(self.targets)

    @torch.no_grad()
    def targets(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Ids x (B,T) -> (None, log-probabilities (B,T,V)), or those of the top k as from buckets().

        The first is then their ids (B,T,k). From the cache, if it holds all of these windows.
        """
        cached = self.cache.read(x) if self.cache else None
        if cached:
            return cached
        log_p = (self.model.to(x.device)(x) / self.temperature).log_softmax(-1)  # (B,T,V)
        if not self.k:
            return None, log_p
        ids = log_p.topk(self.k).indices  # (B,T,k)
        log_p = buckets(log_p, ids)
        if self.cache:
            self.cache.write(x, ids, log_p)
        return ids, log_p


def divergence(logits: Tensor, y: Tensor, ids: Tensor | None, log_p: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at a temperature, in nats, summed over the targets y (B,T), -1: not scored.

    logits (B,T,V): the student's. ids and log_p: from Teacher.targets().
    """
    log_q = (logits / temperature).log_softmax(-1)
    if ids is not None:
        log_q = buckets(log_q, ids)
    kl = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)  # (B,T)
    return torch.where(y == -1, 0.0, kl).sum()


# ---- the hooks
def change_model(model, config: dict):
    """Give the model that trains its teacher. The model stays as it is, and who only reads it gets none.

    ValueError for settings that make no sense, and for a teacher that cannot be this student's.
    """
    if not model.norm.weight.is_meta:
        model.teacher = teacher_of(model, config)
        config["distill_hash"] = model.teacher.hash  # train.py saves it with the run
        if os.environ.get("RANK", "0") == "0":
            print(*described(model.teacher, config), sep="\n")
    return model


def loss(model, x: Tensor, y: Tensor, config: dict) -> Tensor:
    """The mix of both losses for ids x and targets y (B,T), in nats, summed."""
    alpha, temperature = config["distill_alpha"], config["distill_temperature"]
    if alpha == 0:
        return summed_nats(model(x), y)
    teacher = getattr(model, "module", model).teacher  # DDP has the model as its module
    soft = teacher.targets(x)  # first: nothing of the student's is in memory yet
    logits = model(x)
    kl = divergence(logits, y, *soft, temperature)
    return alpha * temperature**2 * kl + (1 - alpha) * summed_nats(logits, y)


def as_base(saved: dict, config: dict) -> dict:
    """The checkpoint as one without a teacher: a new run from it is a plain one, or names its own."""
    on = [name for name in saved["config"]["technique"].split(",") if name != "distill"]
    return {**saved, "config": {**saved["config"], "technique": ",".join(on)}}


# ---- the teacher
def teacher_of(model, config: dict) -> Teacher:
    """Load a student's teacher. ValueError for what makes no sense, or if it is gone or has changed."""
    where, k = config["distill_teacher"], config["distill_top_k"]
    alpha, temperature, V = config["distill_alpha"], config["distill_temperature"], model.config.vocab_size
    require(where != "", "distillation needs a teacher; expected a run: --distill_teacher=out-big")
    require(0 <= alpha <= 1, f"distill_alpha={alpha} makes no sense; expected 0 to 1; 0.5 is usual")
    require(temperature > 0, f"distill_temperature={temperature} makes no sense; expected above 0, such as 2")
    require(
        0 <= k < V, f"distill_top_k={k} makes no sense; expected 0 (all) to {V - 1}: there are {V} tokens"
    )
    require(
        k or not config["distill_cache"], "distill_cache keeps the top k; expected --distill_top_k=16, say"
    )
    path = next((path for path in (Path(where), ROOT / where) if path.exists()), None)
    needs = "a run that learns from it, or resumes, needs its folder (sample.py and evaluate.py do not)"
    require(path is not None, f"distill_teacher={where} does not exist; {needs}")
    how = f"python -m techniques.pretrained import --from={where} --out_dir=out-teacher"
    require(not is_foreign(path), f"distill_teacher={where} is no run of tinylm; make it one: {how}")
    path, ours = find(str(path), path), run_folder(config["out_dir"]).resolve()
    own = ours in path.resolve().parents
    require(
        not own,
        f"distill_teacher={where} is in out_dir, where the student would overwrite it; choose another",
    )
    teacher = Teacher(path, config)
    size, tokenizer = teacher.model.config.block_size, load_any(folder_of(config["dataset"]))
    require(
        teacher.tokenizer.hash == tokenizer.hash,
        f"distill_teacher={where} has the tokenizer {teacher.tokenizer.hash:.12}, the dataset "
        f"{tokenizer.hash:.12}; prepare the text with the teacher's: "
        f"python data.py --input=FILE --name=NAME --tokenizer={where}",
    )
    require(
        size >= model.config.block_size,
        f"distill_teacher={where} reads {size} tokens; expected --block_size={size} or less, "
        f"not {model.config.block_size}",
    )
    known = config["distill_hash"]
    require(
        known in ("", teacher.hash),
        f"distill_teacher={where} is not the teacher that this run began with: its hash is "
        f"{teacher.hash:.12}, not {known:.12}; put that one back, or start a new run",
    )
    if config["distill_cache"]:
        about = f"{teacher.hash} {temperature}"
        teacher.cache = TopKCache(ROOT / config["distill_cache"], about, model.config.block_size, k, V)
    return teacher


def described(teacher: Teacher, config: dict) -> list[str]:
    """Lines that say who teaches, and what the losses in a run's lines are."""
    alpha, T = config["distill_alpha"], config["distill_temperature"]
    size = sum(p.numel() for p in teacher.model.parameters())
    lines = [
        f"teacher: {config['distill_teacher']}, {size:,} parameters, step {teacher.step}, "
        f"hash {teacher.hash:.12}",
        f"loss = {alpha:g} x {T:g}^2 x KL(teacher || student, temperature {T:g}) + {1 - alpha:g} x "
        "cross-entropy; train loss and val loss = cross-entropy",
    ]
    if teacher.cache:
        lines.append(f"distill_cache={config['distill_cache']} holds {len(teacher.cache.places):,} windows")
    return lines
