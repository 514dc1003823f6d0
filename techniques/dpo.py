"""DPO: learn from pairs which of two replies is better, without a reward model (Rafailov et al., 2023).

    python train.py config/dpo.py                       pairs made of the rows of sums: right against wrong
    python train.py config/dpo.py --init_from=out-chat --dataset=chat --dpo_pairs=pairs.jsonl --out_dir=out-x

A row of such a file is {"prompt", "chosen", "rejected"}. The dataset gives the tokenizer and the val split.
With p(c) and p(r), the probabilities of the chosen and the rejected reply to a prompt, and those of the run's
start, p0, a pair costs

    margin = beta x (log p(c) - log p0(c) - log p(r) + log p0(r))      loss = -log sigmoid(margin)

It is ln 2 at first. The loss of a run is its mean over pairs, however they are split into micro-steps and
processes. A large beta keeps the model near its start. The second and fourth terms are computed once for all
pairs, by the starting weights, and kept in out_dir/dpo.json: a resumed run reads them and needs no base.

A margin grows, too, while both replies become less likely: the pair of a right and a wrong step shares most
of its text. dpo_sft > 0 adds the chosen reply's nats per token, so that it stays likely (Pang et al., 2024).

dpo.jsonl gets a row for each update: margin, and right, the share of pairs whose margin is above 0. Val loss
is still that of replies, and says little here: the run's last weights are in ckpt.pt.
"""

import hashlib
import json
import os
import random
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from config import require
from data import Windows, windows_of_text
from machine.distributed import all_gather
from runtime.folder import run_folder
from runtime.trust import read_json, write_json
from techniques import replies
from text.sums import spoiled
from tokenizer import load_any

# -----------------------------------------------------------------------------
dpo_beta = 0.1  # how near the model stays to its start; 0.01 to 0.5 are usual
dpo_sft = 0.0  # weight of the chosen reply's own loss, in nats per token: keeps it likely; 0 = off
dpo_pairs = ""  # a JSONL file with rows of prompt, chosen, rejected; '' = made from the dataset's (sums)
dpo_count = 2000  # how many pairs at most, the first ones; 0 = all
# -----------------------------------------------------------------------------

TOKENS = 8192  # in a batch of the start's log-probabilities


def change_model(model, config: dict):
    """Nothing changes; ValueError for settings that make no sense."""
    beta = config["dpo_beta"]
    require(beta > 0, f"dpo_beta={beta} makes no sense; expected above 0, 0.1 is usual")
    require(config["dpo_sft"] >= 0, f"dpo_sft={config['dpo_sft']} is below 0; 0 leaves it out")
    require(config["dpo_count"] >= 0, f"dpo_count={config['dpo_count']} is below 0; 0 takes all pairs")
    return model


def change_data(windows: Windows, config: dict) -> replies.Replies:
    """The pairs in place of the windows. Each counts 1: the loss of an update is the mean over its pairs."""
    return replies.Replies(windows, pairs_of(windows, config), counted=1)


def pairs_of(windows: Windows, config: dict) -> list[replies.Item]:
    """[(prompt, [chosen, rejected])] as ids, always the same. Pairs longer than a window are left out."""
    tokenizer, most = load_any(windows.path.parent), config["dpo_count"] or None
    if config["dpo_pairs"]:
        found = from_file(Path(config["dpo_pairs"]), tokenizer)
    else:
        found = from_sums(windows.replies()[:most], tokenizer, config["seed"])
    room = windows.block_size + 1
    fits = [(p, both) for p, both in found if len(p) + max(map(len, both)) <= room]
    require(fits, f"no pair fits into a window of {room} tokens; use a larger --block_size")
    return fits[:most]


def from_sums(rows: list[tuple], tokenizer, seed: int) -> list[replies.Item]:
    """Pairs of the replies (prompt ids, reply ids) to sums: each as it is, and with a wrong working."""
    rng, found = random.Random(seed), []
    for prompt, reply in rows:
        wrong = spoiled(rng, tokenizer.decode(reply[:-1]))
        require(wrong, "the dataset has no sums to make wrong ones of; name pairs: --dpo_pairs=FILE.jsonl")
        found.append((prompt, [reply, [*tokenizer.encode(wrong).tolist(), reply[-1]]]))
    return found


def from_file(path: Path, tokenizer) -> list[replies.Item]:
    """Pairs of a JSONL file, encoded as data.py encodes prompt and response. ValueError for another row."""
    require(path.is_file(), f"dpo_pairs={path} is no file; expected rows of prompt, chosen, rejected")
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            for reply in (row["chosen"], row["rejected"]):
                lines.append(json.dumps({"prompt": row["prompt"], "response": reply}) + "\n")
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path} line {number} is no row of prompt, chosen and rejected") from None
    with tempfile.TemporaryDirectory() as folder:
        both = Path(folder) / "both.jsonl"
        both.write_text("".join(lines), encoding="utf-8")
        found = windows_of_text(str(both), tokenizer, 2**20, "jsonl").replies()
    require(len(found) == len(lines), f"{path}: some replies are several; expected one reply each")
    better, worse = found[::2], found[1::2]
    return [(prompt, [a, b]) for (prompt, a), (_, b) in zip(better, worse, strict=True)]


def loss(model, x, y, config: dict) -> torch.Tensor:
    """Sum of -log sigmoid(margin) over the pairs of x and y, see replies.Replies."""
    place = int(x[0, 0])
    start = start_of(replies.unwrapped(model), place, config).to(x.device)  # (pairs,)
    chosen, rejected = replies.log_probs(model, x[:, 2:], y).sum(1).view(-1, 2).unbind(1)  # (B,), (B,)
    nats = -chosen / (y[::2] != -1).sum(1)  # (B,), per token
    margins = config["dpo_beta"] * (chosen - rejected - start[x[::2, 1]])
    replies.count(model, place, pairs=len(margins), margin=margins.detach().sum(), right=(margins > 0).sum())
    return -F.logsigmoid(margins).sum() + config["dpo_sft"] * nats.sum()


def start_of(model, place: int, config: dict) -> torch.Tensor:
    """log p0(c) - log p0(r) of each pair, (pairs,) float32: computed before the first update, then read.

    place: of the batch, which tells the update. ValueError if the run goes on and its file is not there, or
    is of other pairs.
    """
    if "start_margins" in vars(model):
        return model.start_margins
    windows = Windows(config["dataset"], "train", config["block_size"], config["seed"], config["pack"])
    pairs = pairs_of(windows, config)
    path = run_folder(config["out_dir"]) / "dpo.json"
    what = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
    found = None
    if place < config["global_batch_size"]:
        found = {"pairs": what, "start": computed(model, pairs, windows.end_id).tolist()}
        if os.environ.get("RANK", "0") == "0":
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
    elif path.is_file():
        found = read_json(path)
    found = all_gather(found)[0]  # the same numbers on all ranks
    require(found, f"{path} is missing, with what the start said of each pair; copy it from the run's folder")
    require(found["pairs"] == what, f"{path} is of other pairs; resume with the data that the run began with")
    model.start_margins = torch.tensor(found["start"])
    return model.start_margins


@torch.no_grad()
def computed(model, pairs: list[replies.Item], end_id: int) -> torch.Tensor:
    """log p(c) - log p(r) of each pair, (pairs,), without dropout; pairs of similar length in a batch."""
    device, was_training = next(model.parameters()).device, model.training
    lengths = torch.tensor([len(prompt) + max(map(len, both)) for prompt, both in pairs])
    found = torch.zeros(len(pairs))
    model.eval()
    for numbers in lengths.argsort(stable=True).split(max(1, TOKENS // (2 * int(lengths.max())))):
        x, y = replies.padded([(pairs[i][0], reply) for i in numbers for reply in pairs[i][1]], end_id)
        chosen, rejected = replies.log_probs(model, x.to(device), y.to(device)).sum(1).view(-1, 2).unbind(1)
        found[numbers] = (chosen - rejected).cpu().float()
    model.train(was_training)
    torch.clear_autocast_cache()  # it has kept weights in 16 bits that have no gradient
    return found


def after_step(model, step: int, config: dict) -> None:
    """Write the update's row of dpo.jsonl."""
    shown = "margin {margin:.3f}, {right:.1%} of the pairs the right way round"
    replies.record(model, step, "dpo", config, over="pairs", shown=shown)


def as_base(saved: dict, config: dict) -> dict:
    """The checkpoint as a plain one: its weights are those of any model."""
    return replies.plain_base(saved, "dpo")
