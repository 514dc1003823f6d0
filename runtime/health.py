"""What the numbers of a run say about it: a loss that jumps, rises or does not move, overfitting, a leak.

The lines are for people. Nothing else depends on them: a run goes on as before.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable

BEFORE = 50  # earlier losses that a loss is compared with
FEWEST = 20  # with fewer than this there is no warning: they say little about what is usual
LAST = 5  # a jump lasts if this many losses in a row
LASTING = 5.0  # are all this many standard deviations above the usual
SINGLE = 10.0  # standard deviations above the usual, for a jump of a single loss
RISE = 3.0  # standard deviations from the lowest median of BEFORE losses to the latest: a slow rise
LEAST = 0.1  # nats: what is less is nothing to look at
STARTS = 3  # losses at the beginning whose mean is where a new model starts
PATIENCE = 100  # updates in which its loss has to fall,
FALL = 0.01  # by this share


class Losses:
    """The losses of a run's updates, one after another.

    new: whether the model is new and its loss has to fall; that of a trained one may be as low as it gets.
    rates: the settings that a warning names, such as "--learning_rate or --muon_lr". grad_clip: train.py's.
    """

    def __init__(self, new: bool, rates: str, grad_clip: float):
        self.new, self.rates = new, rates
        self.smaller_clip = grad_clip / 2 if 0 < grad_clip <= 1 else 1.0
        self.recent: deque[float] = deque(maxlen=BEFORE + LAST)
        self.first: list[float] = []
        self.lowest, self.n = math.inf, 0

    def add(self, update: int, loss: float, warmup: int, max_iters: int) -> str:
        """Note the loss of an update, in nats per target; returns a warning, or "".

        warmup: updates of warm-up, in which a loss need not fall. max_iters: the length of the run.
        """
        self.recent.append(loss)
        self.n += 1
        if len(self.first) < STARTS:
            self.first.append(loss)
        if self.new and update == warmup + min(PATIENCE, max(FEWEST, (max_iters - warmup) // 2)):
            return self.not_moved()
        if min(self.recent) <= 0:  # a cross-entropy is above 0; other losses are not judged
            return ""
        return self.jump(update) or self.rise(update)

    def jump(self, update: int) -> str:
        """A warning if the last loss, or all of the last few, are far above those before."""
        losses = list(self.recent)
        before, last = losses[:-LAST], losses[-LAST:]
        if len(before) < FEWEST:
            return ""
        if deviations(before, min(last)) < LASTING and deviations(before, last[-1]) < SINGLE:
            return ""
        self.recent.clear()  # what is usual now has to be learned anew
        self.lowest, self.n = math.inf, 0
        usual = f"the {len(before)} before it lay between {min(before):.4f} and {max(before):.4f}"
        return (
            f"WARNING: the loss jumps: {last[-1]:.4f} at update {update}, where {usual}; if it stays there, "
            f"look at grad norm in the lines around it, and try a smaller {self.rates}, or "
            f"--grad_clip={self.smaller_clip:g}"
        )

    def rise(self, update: int) -> str:
        """A warning, every so many updates, if the loss has risen, be it slowly."""
        if self.n % BEFORE or len(self.recent) < BEFORE:
            return ""
        now, spread = usual_of(list(self.recent)[-BEFORE:])
        lowest, self.lowest = self.lowest, min(now, self.lowest)
        if now - lowest < max(2 * LEAST, RISE * spread):
            return ""
        self.lowest = now  # a warning for each further rise, not for this one again
        return (
            f"WARNING: the loss rises: its median over the last {BEFORE} updates is {now:.4f} at update "
            f"{update}, and was {lowest:.4f} before; try a smaller {self.rates}, or a longer warm-up"
        )

    def not_moved(self) -> str:
        """A warning if the loss is about what it was in the first updates."""
        first, now = statistics.fmean(self.first), statistics.fmean(list(self.recent)[-FEWEST:])
        if now <= (1 - FALL) * first:
            return ""
        return (
            f"WARNING: the loss has not moved: {first:.4f} at the start, {now:.4f} now; look at "
            f"{self.rates} (too small, or far too large), at --freeze, and whether config/tiny.py learns"
        )


def usual_of(values: list[float]) -> tuple[float, float]:
    """(median of the later half, standard deviation) of losses in their order, neither moved by outliers.

    The standard deviation is 1.4826 x the median absolute deviation (MAD; Iglewicz & Hoaglin 1993), from a
    straight line through the medians of both halves: that a loss falls does not make it noisy.
    """
    half = len(values) // 2
    early, late = statistics.median(values[:half]), statistics.median(values[-half:])
    slope = (late - early) / (len(values) - half)
    distances = [abs(value - early - slope * (i - (half - 1) / 2)) for i, value in enumerate(values)]
    return late, 1.4826 * statistics.median(distances)


def deviations(before: list[float], loss: float) -> float:
    """By how many standard deviations a loss is above what was usual before: the robust z-score.

    It is asked of the losses and of their logarithms, and the smaller answer counts: the losses of small
    batches are spread to one side.
    """
    if loss - statistics.median(before) < LEAST:
        return 0.0

    def score(values: Iterable[float], value: float) -> float:
        middle, spread = usual_of([*values])
        return (value - middle) / max(spread, 1e-3)

    return min(score(before, loss), score(map(math.log, before), math.log(loss)))


def verdict(rows: list[dict], row: dict, floor: float, standard_error: float) -> str:
    """What an evaluation says beyond its losses, to be put at the end of its line; "" for nothing.

    rows: those of metrics.jsonl before `row`. floor: entropy of the text in nats per token, 0 if unknown.
    """
    before = next((old for old in reversed(rows) if "val_loss" in old), row)
    said = ""
    if floor and row["val_loss"] < floor - 3 * standard_error:
        said += "  BELOW THE FLOOR by over 3 standard errors: val text has leaked into training"
    if row["val_loss"] > before["val_loss"] and row["train_loss"] < before["train_loss"]:
        said += "  (overfitting: val rises while train falls)"
    return said
