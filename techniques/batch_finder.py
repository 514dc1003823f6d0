"""Find two batch sizes: the largest that fits into memory, and the one from which more windows hardly help.

    python -m techniques.batch_finder config/tiny.py                     takes train.py's settings
    python -m techniques.batch_finder config/tiny.py --memory_mb=1500    a limit: a CPU has none of its own

What fits is tried, with one update each: 1, 2, 4, 8, ... windows until memory runs out, then numbers between
the last two. A GPU says when it is full. Linux does not: it promises more memory than there is, and ends a
process that uses it. So on a CPU there is a limit to give, and each try is a process whose peak is compared.

What helps is the gradient noise scale (McCandlish et al., 2018). Gradients g of batches of b windows scatter
around the gradient G of all windows. Their variance, summed over all parameters, is V; it falls as 1 / b. So

    noise scale  B = b V / |G|^2      and    |G|^2 = |mean of n g|^2 - V / n

V / n because a mean of n gradients has noise, too, which makes it longer: without that term B would be too
small. For the same loss, batches of b windows need 1 + B / b times as many updates as endless ones, and 1 +
b / B times as many tokens as the smallest. At b = B both are twice the best; above, more windows save few
updates. This holds for plain SGD; for other optimizers it is right in size, no more. It is measured with new
weights and, if out_dir has a run, with those of its ckpt.pt: B grows in training.
"""

import gc
import math
import subprocess
from collections.abc import Callable, Iterator

import torch

from config import at_least, end_script, is_out_of_memory, override
from lab.measure import update_peak
from machine import hardware
from runtime import checkpoint
from runtime.folder import newest
from techniques.trial import Trial

# -----------------------------------------------------------------------------
memory_mb = 0  # what a process may take; 0 on a CPU: do not try what fits, on a GPU: all of its memory
most = 1024  # try no more windows in a micro-batch
windows = 1024  # to measure the noise with; more for a model that has trained for long
small = 8  # windows of a gradient whose noise is measured
# -----------------------------------------------------------------------------

PARTS = 4  # the noise scale is measured in each quarter of the windows, too, to see how sure it is


# ---- what fits
def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest n up to most that fits, to a sixteenth: by doubling, then by halving; 0 if 1 does not."""
    good, bad = 0, 1
    while bad <= most and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, most + 1)
    while bad - good > max(1, good // 16):
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def fits_cpu(config: dict, vocab_size: int, size: int) -> bool:
    """Whether a process that makes one update with a micro-batch of so many windows stays below memory_mb.

    A process of its own gives back all that it took. If Linux ends it, or it cannot start, it does not fit.
    """
    try:
        return update_peak({**config, "batch_size": size}, vocab_size)(0) <= config["memory_mb"]
    except subprocess.CalledProcessError:
        return False


def fits_gpu(trial: Trial, size: int) -> bool:
    """Whether a GPU has room for an update with a micro-batch of so many windows. Gives the room back."""
    try:
        trial.run.update(0, *trial.batch(0, size))
        return True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        trial.run.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()


def what_fits(trial: Trial, config: dict) -> str:
    """Try micro-batches; returns the line of the report."""
    limit, most = config["memory_mb"], config["most"]
    if trial.device.type == "cuda":
        share = limit * 1e6 / hardware.total_bytes(trial.device) if limit else 1.0
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), trial.device)
        found = largest(lambda size: fits_gpu(trial, size), most)
    elif limit:
        found = largest(lambda size: fits_cpu(config, trial.tokenizer.vocab_size, size), most)
    else:
        return "what fits: not tried, because a CPU has no limit of its own; give one, say --memory_mb=4000"
    bound = " or more: no more were tried (--most)" if found == most else ""
    return f"what fits: batch_size={found}{bound}" if found else f"what fits: nothing, in {limit} MB"


# ---- what helps
class Scatter:
    """Sums over gradients of equal batches: their variance, and the length of the gradient without noise."""

    def __init__(self):
        self.n, self.total, self.squares = 0, 0.0, 0.0

    def add(self, gradient: torch.Tensor) -> None:
        """Count in a gradient, all of its numbers in one vector."""
        self.n += 1
        self.total = self.total + gradient
        self.squares += gradient.double().square().sum().item()

    def __add__(self, other: "Scatter") -> "Scatter":
        both = Scatter()
        both.n, both.squares = self.n + other.n, self.squares + other.squares
        both.total = self.total + other.total
        return both

    def variance(self) -> float:
        """Of one gradient, summed over its numbers: the trace of the covariance, without bias."""
        return (self.squares - self.total.double().square().sum().item() / self.n) / (self.n - 1)

    def signal(self) -> float:
        """|G|^2 without bias. It can come out negative where noise hides it."""
        return (self.total.double() / self.n).square().sum().item() - self.variance() / self.n

    def noise_scale(self) -> float:
        """In batches: times the windows of one batch it is in windows. Infinite where noise hides all."""
        signal = self.signal()
        return self.variance() / signal if signal > 0 else math.inf


def scatters(gradient: Callable[[int], torch.Tensor], count: int) -> tuple[Scatter, Scatter, list[Scatter]]:
    """Of gradients 0 to count - 1; of their means in fours, which are those of 4 times as large batches; of
    their PARTS, one after the other.
    """
    fours, parts, total = Scatter(), [Scatter() for _ in range(PARTS)], 0.0
    for i in range(count):
        one = gradient(i)
        parts[i * PARTS // count].add(one)
        total = total + one
        if i % 4 == 3:
            fours.add(total / 4)
            total = 0.0
    return sum(parts[1:], parts[0]), fours, parts


def noise(trial: Trial, config: dict) -> list[str]:
    """Measure the noise of the trial's model as it is now; returns the lines of the report."""
    run, size, losses = trial.run, config["small"], []

    def gradient(i: int) -> torch.Tensor:
        run.optimizer.zero_grad(set_to_none=True)
        losses.append(run.gradients(*trial.batch(i, size), config["batch_size"]).item())
        grads = [p.grad.flatten() for p in run.model.parameters() if p.grad is not None]
        return torch.cat(grads) / run.scaler.get_scale()  # 1, unless in float16

    whole, fours, parts = scatters(gradient, config["windows"] // (4 * PARTS * size) * 4 * PARTS)
    scale, b, T = size * whole.noise_scale(), trial.per_update, trial.windows.block_size
    quarters = [size * part.noise_scale() for part in parts]
    ratio = whole.variance() / fours.variance()
    lines = [
        f"  loss {sum(losses) / len(losses):.3f}, |gradient|^2 {whole.signal():.3g}",
        f"  variance of a gradient: {size} windows {whole.variance():.3g}, {4 * size} windows "
        f"{fours.variance():.3g}, {ratio:.2f} times less",
        f"  noise scale: {scale:,.0f} windows (quarters: {min(quarters):,.0f} to {max(quarters):,.0f}), "
        f"{scale * T:,.0f} tokens",
    ]
    if math.isinf(scale):
        return [*lines, "  noise hides the gradient: measure with more --windows"]
    return [
        *lines,
        f"  updates of {b} windows, as set: {1 + scale / b:.1f} times as many updates as with endless ones, "
        f"{1 + b / scale:.1f} times as many tokens as with the smallest",
    ]


def report(config: dict) -> Iterator[str]:
    """The lines of the command."""
    at_least(0, config, "memory_mb")
    at_least(1, config, "most small")
    fewest = 4 * PARTS * 2 * config["small"]
    at_least(fewest, config, "windows")
    trial = Trial(config)
    yield f"noise at the start, {config['windows']:,} windows of {trial.windows.block_size} tokens:"
    yield from noise(trial, config)
    path = newest(trial.folder / "ckpt.pt")
    if path.exists():
        saved = checkpoint.load(path)
        checkpoint.check_same(saved, trial.run.model.config, trial.tokenizer, str(path))
        checkpoint.load_weights(trial.run.model, saved["model"], path)
        yield f"noise in {path}, after {saved['step']:,} updates:"
        yield from noise(trial, config)
    yield what_fits(trial, config)


if __name__ == "__main__":
    config = override(globals(), "train.py")
    for line in report(config):
        print(line, flush=True)
    end_script()
