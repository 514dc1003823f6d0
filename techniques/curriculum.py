"""Curricula: easy windows first (Bengio et al., 2009), in place of a random order.

    python train.py config/tiny.py --curriculum=length                              block_size / 4, / 2, all
    python train.py config/tiny.py --curriculum=length --curriculum_stages=16:0.3,32:0.3
    python train.py config/tiny.py --curriculum=difficulty
    python train.py config/tiny.py --dataset=a:0.7,b:0.3 --curriculum=domain --curriculum_stages=a:0.5

    length      windows are cut into shorter ones at first: as many tokens an update, fewer to look back at
    difficulty  the windows of the first epoch by their nats per token under a bigram model of the training
                text (counts + 1), the fewest first; each of them once, later epochs at random
    domain      a mixture's datasets one after the other, then all with their shares

A stage is NAME:SHARE, of the updates until the end of the schedule (lr_decay_iters, else max_iters); what is
left is trained as without a curriculum. Every order is a function of the window's number in the run's series,
so a run resumes inside a stage, and ranks, micro-steps and smaller batches see the same windows. To resume
with another max_iters moves the stages, as it moves the learning rates: some windows come again, or never.
"""

import functools

import numpy as np

from config import require
from data import count_targets
from runtime import resolve
from text.mixture import UNIT

# -----------------------------------------------------------------------------
curriculum = ""  # '' off | length | difficulty | domain
curriculum_stages = ""  # length: 16:0.25,32:0.25, tokens:share; domain: a:0.25; '' = a quarter each
# -----------------------------------------------------------------------------

AFTER = ("augment",)  # whole windows are rewritten, then cut
BIGRAMS = 4096  # with more tokens than this, unigrams: a table of all pairs would take over 128 MB
CHUNK = 256  # windows that are read at a time for their difficulty


def change_data(windows, config: dict):
    """Order the training windows. ValueError for settings that make no sense."""
    kinds = {"length": by_length, "difficulty": by_difficulty, "domain": by_domain}
    kind, stages = config["curriculum"], config["curriculum_stages"]
    if not kind and not stages:
        return windows
    require(kind in kinds, f"curriculum={kind} is unknown; expected one of {', '.join(kinds)}")
    require(not stages or kind != "difficulty", "curriculum=difficulty has no stages; leave them out")
    kinds[kind](windows, stages, config)
    return windows


def stages_of(text: str, total: int, what: str) -> list[tuple[str, int]]:
    """'16:0.25,32:0.5' -> [(name, the update at which its stage ends), ...]. total: updates of all stages."""
    found, end = [], 0.0
    for part in text.split(","):
        name, _, share = part.rpartition(":")
        try:
            end += float(share)
            good = name and 0 < float(share) <= 1 and end <= 1 + 1e-9
        except ValueError:
            good = False
        require(good, f"curriculum_stages={text} is not understood; expected {what}, at most 1 together")
        found.append((name, round(end * total)))
    return found


def updates_of(windows, config: dict) -> int:
    """The updates of the run's schedule."""
    if config["lr_decay_iters"] > 0:
        return config["lr_decay_iters"]
    return resolve.updates(dict(config), windows.n_windows, config["global_batch_size"])[0]


def by_length(windows, stages: str, config: dict) -> None:
    """Cut the windows of the first updates into shorter ones."""
    T = windows.block_size
    rows = any(each.in_rows for each in getattr(windows, "corpora", [windows]))
    require(not rows, "curriculum=length cuts windows, and samples stay whole; leave it out for samples")
    default = f"{max(1, T // 4)}:0.25,{max(1, T // 2)}:0.25"
    found = stages_of(stages or default, updates_of(windows, config), "TOKENS:SHARE, as in 16:0.25,32:0.25")
    lengths = []
    for name, end in found:
        fits = name.isdecimal() and 0 < int(name) <= T and T % int(name) == 0
        require(fits, f"curriculum_stages: {name} tokens do not divide block_size={T}")
        lengths.append((int(name), end * config["global_batch_size"]))
    windows.at = functools.partial(cut, windows.at, lengths)


def cut(read, lengths: list[tuple[int, int]], numbers) -> tuple:
    """x, y (B, T) of the windows with these numbers as (B * T / n, n), n: the length of their stage.

    lengths: [(n, the number of the window at which its stage ends), ...]. An update is never in two stages.
    """
    x, y = read(numbers)
    n = next((n for n, end in lengths if numbers[0] < end), x.size(1))
    short = y.reshape(-1, n)
    if hasattr(y, "n_targets"):
        short.n_targets = count_targets(y)
    return x.reshape(-1, n), short


def by_difficulty(windows, stages: str, config: dict) -> None:
    """Sort the first epoch of each dataset."""
    for each in getattr(windows, "corpora", [windows]):
        first_epoch_sorted = functools.partial(sorted_first, each.epoch, nats_per_token(each))
        each.epoch = functools.lru_cache(maxsize=2)(first_epoch_sorted)


def sorted_first(draw, nats: np.ndarray, epoch: int) -> tuple[np.ndarray, int]:
    """As draw(epoch) -> (order of the windows, offset), in epoch 0 by their nats; equal ones at random."""
    order, offset = draw(epoch)
    if epoch == 0:
        order = order[np.argsort(nats[order], kind="stable")]
    return order, offset


def nats_per_token(windows) -> np.ndarray:
    """(n_windows,): how hard each window of epoch 0 is, as a bigram model of the whole split finds it.

    -log of (how often the pair of tokens occurs + 1) / (how often the first occurs + V), mean over targets.
    """
    V = windows.tokens.limit
    _, offset = windows.epoch(0)

    def pairs_of(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(numbers of the pairs of tokens, of the first tokens, whether scored), (B, T), in windows (B,)."""
        x, y = (t.numpy() for t in windows.window_batch(numbers, offset))
        before = x if V <= BIGRAMS else np.zeros_like(x)
        return before * V + y.clip(min=0), before, y >= 0

    chunks = np.array_split(np.arange(windows.n_windows), -(-windows.n_windows // CHUNK))
    pairs, firsts = np.zeros(V * V if V <= BIGRAMS else V, np.int64), np.zeros(V, np.int64)
    for numbers in chunks:
        pair, before, scored = pairs_of(numbers)
        np.add.at(pairs, pair[scored], 1)
        np.add.at(firsts, before[scored], 1)
    nats = np.zeros(windows.n_windows)
    for numbers in chunks:
        pair, before, scored = pairs_of(numbers)
        each = np.log(firsts[before] + V) - np.log(pairs[pair] + 1)  # (B, T)
        nats[numbers] = (each * scored).sum(1) / scored.sum(1).clip(min=1)
    return nats


def by_domain(windows, stages: str, config: dict) -> None:
    """One dataset of a mixture after the other, then all of them."""
    names = getattr(windows, "names", [])
    require(len(names) > 0, "curriculum=domain is for mixtures, such as --dataset=a:0.7,b:0.3")
    found = stages_of(
        stages or f"{names[0]}:0.25", updates_of(windows, config), "DATASET:SHARE, as in a:0.25"
    )
    plan, first = [], 0
    for name, end in found:
        require(
            name in names, f"curriculum_stages: {name} is not in the mixture; expected {', '.join(names)}"
        )
        plan.append((first, np.array([UNIT * (name == each) for each in names])))
        first = end * config["global_batch_size"]
    windows.plan([*plan, (first, windows.shares)])
