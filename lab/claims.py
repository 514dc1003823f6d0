"""Claims of five training guides that two CPU cores can check. docs/claims.md lists all 22, with verdicts.

    python bench.py --only=claims               about a quarter of an hour
    python bench.py --only=claims --claim=5     one of them

Each function is for the claims that its docstring quotes. Small sizes: what is measured are ratios, exponents
and differences.
"""

import copy
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

import data
import techniques
from config import require
from evaluate import evaluate, spread
from lab import measure
from lab.measure import CPU, Row, Run, alternate, compared, measured, seconds_of, settings_of, show, sized
from lab.plan_check import KEPT, kept_for_backward, one_update
from lab.scaling import exponent
from machine import hardware
from model import written_out_attention
from text import settle

MODEL = dict(n_layer=4, n_head=4, n_embd=128, block_size=256, batch_size=8, optimizer="adamw")


def text() -> str:
    """The dataset of config/fast.py: Tiny Shakespeare by characters."""
    return settings_of("config/fast.py")["dataset"]


def learned(seed: int, *stops: int) -> Iterator[Run]:
    """Train config/fast.py on Tiny Shakespeare; yields the run at each of these numbers of updates."""
    settings = settings_of("config/fast.py", seed=seed)
    run = Run(settings, settle.ensure(settings["dataset"])["vocab_size"])
    train = data.Windows(settings["dataset"], "train", settings["block_size"], seed)
    for step in range(max(stops) + 1):
        if step in stops:
            yield run
        run.update(step, *train.batch(step, settings["batch_size"]))


def loss_on(run: Run, split: str, tokens: int = 2**16) -> float:
    """Nats per character on windows spread over a split."""
    windows = data.Windows(text(), split, run.config.block_size)
    some = spread(windows, tokens // windows.block_size)
    return evaluate(run.model, windows, some, CPU, run.autocast)["loss"]


def update_time(settings: dict, compile: bool = False) -> Callable:
    """A side: milliseconds of an update on a random batch, mean of 10."""
    run = Run(settings, 65)
    x = torch.randint(65, (settings["batch_size"], settings["block_size"]))
    if compile:
        run.loss_of = hardware.try_compile(run.summed_loss, run.model, (x, x), run.autocast)
    run.update(0, x, x)  # not counted: it allocates
    return lambda turn: 100 * seconds_of(lambda: [run.update(0, x, x) for _ in range(10)])


def precision(turns: int) -> Iterator[Row]:
    """1: "mixed precision is 2 to 3 times faster"."""
    for width in sized((128, 384, 768), (32,)):
        shape = {**MODEL, "n_embd": width, "n_head": width // 32}
        sides = [update_time(settings_of(**shape, dtype=dtype)) for dtype in ("float32", "bfloat16")]
        fp32, bf16 = alternate(*sides, turns=turns)
        yield compared(f"time of an update, {width} wide, float32 / bfloat16", fp32, bf16, "ms")


def packed(turns: int) -> Iterator[Row]:
    """4: "8 bits are slightly better than 4"."""
    losses = {"": [], "int8": [], "nf4": []}
    for seed in range(turns):
        (run,) = learned(seed, sized(140, 5))
        whole = run.model
        for kind in losses:
            if kind:
                run.model = techniques.load("quantize")[0].packed(copy.deepcopy(whole).eval(), kind)
            losses[kind].append(loss_on(run, "val"))
    yield measured("val loss of config/fast.py's model", losses[""], "nats")
    for kind in ("int8", "nf4"):
        yield measured(f"rise in {kind}", np.subtract(losses[kind], losses[""]), "nats")


def checkpointing(turns: int) -> Iterator[Row]:
    """5, 6: "checkpointing takes 30 to 50 % less memory, is 10 to 20 % slower"; "makes slow runs faster"."""
    for batch_size in sized((2, 8, 32), (1,)):
        shape = {**MODEL, "batch_size": batch_size}
        ways = [settings_of(**shape, gradient_checkpointing=on) for on in (True, False)]
        ours, theirs = (one_update(way, 65) for way in ways)
        less = 1 - sum(ours.values()) / sum(theirs.values())
        absolute = f"{ours[KEPT]:,} / {theirs[KEPT]:,} bytes"
        what = f"batch {batch_size}: kept for the backward pass, on / off"
        yield Row(what, show(ours[KEPT] / theirs[KEPT]), absolute, "reported", f"{less:.0%} less of all")
        on, off = alternate(*map(update_time, ways), turns=turns)
        yield compared(f"batch {batch_size}: time of an update, on / off", on, off, "ms")


def attention(turns: int) -> Iterator[Row]:
    """7, 9: "twice the sequence is 4 times the memory"; "flash attention takes less memory, is faster"."""
    lengths = sized((256, 512, 1024, 2048), (16, 32))
    ways = {
        "written out": lambda q, k, v: written_out_attention(q, k, v, 0.0),
        "flash": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    }
    kept = {name: [] for name in ways}
    for T in lengths:
        heads = [torch.randn(1, 4, T, 32, requires_grad=True) for _ in range(3)]  # q, k, v (B,H,T,hs)
        sides = []
        for name, way in ways.items():
            kept[name].append(kept_for_backward(lambda way=way, heads=heads: way(*heads), heads)[1])
            passes = lambda way=way, heads=heads: way(*heads).sum().backward()  # noqa: E731
            sides.append(lambda turn, passes=passes: 1000 * seconds_of(passes))
        written, flash = alternate(*sides, turns=turns)
        yield compared(f"{T} tokens: time, flash / written out", flash, written, "ms")
    for name, n_bytes in kept.items():
        what = f"{name}: kept for the backward pass ~ T^b, {lengths[0]} to {lengths[-1]}"
        absolute = f"{n_bytes[0]:,} to {n_bytes[-1]:,} bytes"
        yield Row(what, f"{exponent(lengths, n_bytes):.2f}", absolute, "reported", "")


def batch_times_sequence(turns: int) -> Iterator[Row]:
    """8: "memory is proportional to batch x sequence"."""
    sizes = sized([(B, T) for B in (1, 4, 16) for T in (64, 128, 256)], [(1, 16), (2, 16)])
    every = [one_update(settings_of(**{**MODEL, "batch_size": B, "block_size": T}), 65) for B, T in sizes]
    tokens = np.array([B * T for B, T in sizes])
    slope, intercept = np.polyfit(tokens, [each[KEPT] for each in every], 1)
    constant = sum(n_bytes for what, n_bytes in every[0].items() if what != KEPT)
    yield Row("activations for each token of the batch", "", f"{slope:,.0f} bytes", "reported", "")
    yield Row("a constant: weights, gradients, optimizer", "", f"{constant:,} bytes", "reported", "")
    what = "the line through them at 0 tokens / the smallest batch's"
    yield Row(what, "", show(intercept / every[0][KEPT]), "reported", "")


def perplexity(turns: int) -> Iterator[Row]:
    """10: "a perplexity of 1.5 to 3.0 is the goal for characters"."""
    runs = [run for seed in range(turns) for run in learned(seed, sized(140, 5))]
    for split in ("train", "val"):
        losses = np.array([loss_on(run, split) for run in runs])
        yield measured(f"perplexity of config/fast.py on {split}", np.exp(losses), "a character")
        yield measured(f"bits a character on {split}", losses / np.log(2), "bits")


def utilisation(turns: int) -> Iterator[Row]:
    """15: "utilisation should be above 80 %"."""
    settings = settings_of("config/shakespeare_char.py")
    training, products = measure.training_rate(settings, 65, CPU), measure.matmul_rate(CPU, sized(2048, 64))

    def busy(turn: int) -> float:
        wall, cpu = time.perf_counter(), time.process_time()
        training(turn)
        return (time.process_time() - cpu) / (time.perf_counter() - wall) / torch.get_num_threads()

    rates, peak, shares = alternate(training, products, busy, turns=turns)
    yield measured("config/shakespeare_char.py: share of the time that threads are busy", shares, "")
    yield compared("its useful flop/s / those of large products", rates, peak, "flop/s")


def noise(turns: int) -> Iterator[Row]:
    """16: "patience 5 and a threshold of 0.01"."""
    losses = []  # of 20 sets of windows, twice
    for run in learned(0, *sized((130, 140), (4, 5))):
        windows = data.Windows(text(), "val", run.config.block_size)
        sets = np.array_split(np.arange(windows.n_windows), 20)
        losses.append([evaluate(run.model, windows, some, CPU, run.autocast)["loss"] for some in sets])
    before, after = np.array(losses)
    what = f"standard deviation over 20 sets of {windows.n_tokens // 20:,} tokens"
    yield Row(f"val loss: {what}", "", f"{after.std(ddof=1):.4f} nats", "reported", "")
    change = (after - before).std(ddof=1)
    yield Row("the same of its change within 10 updates", "", f"{change:.4f} nats", "reported", "")


def compiling(turns: int) -> Iterator[Row]:
    """22: "torch.compile is faster"."""
    settings = settings_of("config/shakespeare_char.py")
    began = time.perf_counter()
    compiled = update_time(settings, compile=sized(True, False))
    seconds = time.perf_counter() - began
    compiled, eager = alternate(compiled, update_time(settings), turns=turns)
    yield compared("time of an update, compiled / eager", compiled, eager, "ms")
    gain = np.median(eager - compiled) / 1000
    what = f"compiling takes {seconds:.0f} s, which it gains back in (below 0: never)"
    yield Row(what, "", f"{seconds / gain:,.0f} updates", "reported", "")


CLAIMS = {
    1: precision, 4: packed, 5: checkpointing, 6: checkpointing, 7: attention, 8: batch_times_sequence,
    9: attention, 10: perplexity, 15: utilisation, 16: noise, 22: compiling,
}  # fmt: skip


def rows(claim: int, turns: int) -> Iterator[Row]:
    """The rows of a claim by its number; of all that are here if it is 0. ValueError for another number."""
    known = ", ".join(map(str, CLAIMS))
    require(claim in (0, *CLAIMS), f"claim={claim} is not measured here; expected one of {known}")
    for item in dict.fromkeys(CLAIMS.values() if claim == 0 else [CLAIMS[claim]]):
        yield from item(turns)
