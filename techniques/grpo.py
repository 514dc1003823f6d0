"""GRPO: learn from one's own replies, of which a program says whether they are right (Shao et al., 2024).

    python train.py config/grpo.py                                 or --technique=grpo on rows with replies
    python -m techniques.preferences --grpo=out-grpo               draws its curves

Each update draws `grpo_group` replies to each of its prompts, all in one batch through the key/value cache,
at temperature 1. A reply is worth 1 if it is the row's, word for word, as in evaluate.py --task=exact_match,
and else 0. Its advantage is how much better than its group it is, in standard deviations:

    A = (reward - mean of the group) / standard deviation of the group        loss = -sum A log p(reply)

A group whose replies are all right or all wrong has nothing to compare, and no gradient; grpo.jsonl counts
them. A batch of rows is drawn for one update. So the ratio of new to old probabilities is 1, and PPO's
clipping of it, which GRPO has, would never act: it is left out.

The log-probability of a reply is summed over its tokens and not divided by their number: GRPO's mean over
tokens makes a long wrong reply cost less per token than a short one, and replies grow (Liu et al., 2025). A
reply is cut where it has as many tokens as the right one: it is wrong already.

grpo_kl > 0 adds grpo_kl x KL(p, start), estimated at each token as q - log q - 1, q = p0 / p (Schulman's k3).
The start's weights are then kept in memory and in out_dir/grpo_start.pt. The printed loss is the share of
wrong replies: its expected gradient is the one that is followed, but for the standard deviation and the KL.
"""

import copy
from pathlib import Path

import torch

from config import require
from data import Windows
from runtime import checkpoint
from runtime.folder import run_folder
from techniques import replies

# -----------------------------------------------------------------------------
grpo_group = 8  # replies that are drawn to each prompt
grpo_kl = 0.0  # weight of the divergence from the start; 0 = off, 0.04 in the paper
# -----------------------------------------------------------------------------


def change_model(model, config: dict):
    """Nothing changes; ValueError for settings that make no sense."""
    group, kl, others = config["grpo_group"], config["grpo_kl"], config.get("technique", "").split(",")
    require(group >= 2, f"grpo_group={group} has nothing to compare; expected 2 or more, 8 is usual")
    require(kl >= 0, f"grpo_kl={kl} is below 0; expected 0 or more")
    sharded = config.get("strategy") == "fsdp"
    require(not sharded, "technique=grpo writes replies on each process by itself; use --strategy=ddp")
    require("average" not in others, "technique=grpo learns from its own replies, not those of an average")
    return model


def change_data(windows: Windows, config: dict) -> replies.Replies:
    """The rows one by one. A row counts as many as its group: the loss is a mean over the drawn replies."""
    items = [(prompt, [reply]) for prompt, reply in windows.replies()]
    ends = {reply[-1] for _, (reply,) in items}
    require(len(ends) == 1, f"replies end with different tokens, {sorted(ends)}; expected the same for all")
    return replies.Replies(windows, items, counted=config["grpo_group"])


@torch.no_grad()
def drawn(model, rows: list[tuple], group: int, seed: int) -> list[list[int]]:
    """Draw `group` replies to each of (prompt, right reply): ids, with the end token if it was met.

    Reply i has random numbers of its own, seeded with seed + i: it does not depend on the others.
    """
    prompts = [prompt for prompt, _ in rows for _ in range(group)]
    rooms = [len(right) for _, right in rows for _ in range(group)]
    end, found = rows[0][1][-1], [[] for _ in prompts]
    for column in model.stream(prompts, max(rooms), stop_tokens=[end], seed=seed):
        for reply, new, room in zip(found, column, rooms, strict=True):
            if new >= 0 and len(reply) < room:
                reply.append(new)
    torch.clear_autocast_cache()  # it has kept weights in 16 bits that have no gradient
    return [reply + [end] * (len(reply) < room) for reply, room in zip(found, rooms, strict=True)]


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards (B, group) -> (reward - mean) / standard deviation of each group; 0 where all are equal."""
    away = rewards - rewards.mean(1, keepdim=True)
    spread = away.square().mean(1, keepdim=True).sqrt()
    return torch.where(spread > 0, away / spread.clamp(min=1e-6), 0.0)


def loss(model, x, y, config: dict) -> torch.Tensor:
    """Draw replies to the prompts of x and y (see replies.Replies), and return how many of them are wrong.

    The gradient is that of -sum A log p(reply), plus grpo_kl times the divergence from the start.
    """
    raw, place, group = replies.unwrapped(model), int(x[0, 0]), config["grpo_group"]
    rows = replies.unpadded(x[:, 2:], y)
    found = drawn(raw, rows, group, (config["seed"] * 1_000_003 + place * group) % 2**63)
    asked = [row for row in rows for _ in range(group)]
    right = [reply == wanted for reply, (_, wanted) in zip(found, asked, strict=True)]
    weights = advantages(torch.tensor(right).float().view(-1, group))  # (B, group)
    equal = group * int((weights == 0).all(1).sum())
    learned = range(len(found)) if config["grpo_kl"] else weights.flatten().nonzero().flatten().tolist()
    learned = learned or [0]  # with ddp, all ranks have to call the model, be it for a gradient of 0
    texts = [(asked[i][0], found[i]) for i in learned]
    x, y = (t.to(x.device) for t in replies.padded(texts, 0))
    log_p = replies.log_probs(model, x, y)  # (N, T)
    value = -(weights.flatten()[learned].to(x.device) * log_p.sum(1)).sum()
    divergence = torch.zeros(())
    if config["grpo_kl"]:
        divergence = divergence_from(start_of(raw, place, config), log_p, x, y)
        value = value + config["grpo_kl"] * divergence
    tokens = sum(map(len, found))
    counts = dict(replies=len(found), reward=sum(right), equal=equal, tokens=tokens)
    replies.count(model, place, **counts, kl=divergence.detach())
    return value - value.detach() + len(found) - sum(right)


def divergence_from(start, log_p: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The sum over targets of q - log q - 1, q = p0 / p: nats, 0 if the model is its start."""
    with torch.no_grad():
        log_p0 = replies.log_probs(start, x, y)  # (N, T)
    log_q = log_p0 - log_p  # 0 where nothing is scored
    return (log_q.exp() - log_q - 1).sum()


def start_of(model, place: int, config: dict):
    """The model as the run began with it. place: of the batch, which tells the update.

    ValueError if the run goes on, and its grpo_start.pt is not there or damaged.
    """
    if "start" not in vars(model):
        start = copy.deepcopy(model).requires_grad_(False).eval()
        if place >= config["global_batch_size"]:
            path = run_folder(config["out_dir"]) / "grpo_start.pt"
            checkpoint.load_weights(start, checkpoint.load(path)["model"], path)
        model.start = [start]  # in a list, or it would become a part of the model
    return model.start[0]


def after_save(path: Path, saved: dict, config: dict) -> None:
    """Keep the weights of update 0, if the divergence from them counts."""
    if config["grpo_kl"] and saved["step"] == 0:
        rest = {name: value for name, value in saved.items() if name != "optimizer"}
        checkpoint.save(path.parent / "grpo_start.pt", rest)


def after_step(model, step: int, config: dict) -> None:
    """Write the update's row of grpo.jsonl."""
    shown = "{reward:.1%} of the replies right, {equal:.0%} in groups of equal rewards, {tokens:.1f} tokens"
    shown += ", {kl:.4f} nats from the start" if config["grpo_kl"] else ""
    replies.record(model, step, "grpo", config, over="replies", shown=shown)


def as_base(saved: dict, config: dict) -> dict:
    """The checkpoint as a plain one: its weights are those of any model."""
    return replies.plain_base(saved, "grpo")
