"""How fast is all this, and against what? One table of what this machine can measure.

    python bench.py                     every item but laptop: an hour on 2 CPU cores
    python bench.py --only=throughput   one of them
    python bench.py --plot              growth, with its two plots
    python bench.py --quick             tiny sizes: does everything run? (the numbers mean nothing)

time_to_loss, equal_time, laptop and precision train whole configs to their end; gpu needs CUDA; throughput,
generation, bytepairs, preparing, memory, growth and ablation take some 3 minutes each on a CPU, sharding half
of one; plan only computes what a run on many GPUs needs. The table begins each with what is asked for. A
ratio is ours / theirs, taken in turns (see measure.py).
"""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch

import data
from config import ROOT, at_least, override
from lab import measure_text, plan_check, scaling
from lab.measure import (
    CPU,
    SMALLER,
    NotMeasured,
    Row,
    Run,
    alternate,
    compared,
    decoding_rate,
    machine,
    matmul_rate,
    measured,
    plain_loop,
    seconds_of,
    settings_of,
    sized,
    time_and_loss,
    trained,
    training_rate,
)  # fmt: skip
from lab.plan import Cluster, table
from machine import hardware
from runtime import report
from runtime.checkpoint import run_folder
from text import prepare

# -----------------------------------------------------------------------------
only = ""  # one item, or several: throughput,memory; '' = all but laptop
plot = False  # growth with its two plots, growth_cost.png and growth_loss.png
out_dir = "out-bench"  # folder of the plots
rounds = 3  # turns of each side where a turn takes long; a training run has another seed in each
blocks = 5  # turns of each side where a turn takes seconds
seeds = 3  # runs of each variant in the ablation
ablation_seconds = 3.0  # training time of each of them
growth_seconds = 8.0  # training time of growth's longest runs; others take a half and a quarter of it
quick = False  # tiny sizes, to see that everything runs
# of the run that --only=plan plans: GPT-2 (124M), as in config/base.py
gpus = 8  # one process each
gpus_per_node = 8  # of them in one machine
arch = "gpt2"  # modern | gpt2 | llama
n_layer = 12  # blocks
n_head = 12  # attention heads
n_embd = 768  # width
block_size = 1024  # tokens in a window
vocab_size = 50304  # different tokens
optimizer = "adamw"  # muon | adamw | adam | sgd
dtype = "bfloat16"  # float32 | bfloat16 | float16
batch_size = 12  # windows at once on each GPU
gradient_accumulation_steps = 5  # such batches per update
gradient_checkpointing = False  # blocks are computed again in the backward pass
memory_gb = 80.0  # of one GPU
peak_tflops = 989.0  # TFLOP/s of one GPU, by its data sheet; 989 is an H100 in bfloat16
mfu = 0.4  # share of them that training reaches
bandwidth = 300.0  # GB/s that a GPU sends to the next in its machine: python -m techniques.allreduce
bandwidth_between = 40.0  # GB/s to one in another machine
# -----------------------------------------------------------------------------
QUICK = dict(
    dataset="verse", n_layer=1, n_head=2, n_embd=32, block_size=32, batch_size=4, max_iters=10, eval_iters=1,
    eval_interval=5, log_interval=5, max_new_tokens=5, compile=False,
)  # fmt: skip
GPT2 = dict(arch="gpt2", optimizer="adamw", n_layer=12, n_head=12, n_embd=768, block_size=1024)  # 124M
VOCABULARY = 50304  # GPT-2's 50,257 tokens, filled up to a multiple of 128
COLUMNS = Row("", "ratio", "absolute", "target", "smallest..largest")


def of_shakespeare(target: str) -> str:
    """A target that was set on the real text says nothing about what stands in for it without a network."""
    return "none: a stand-in" if "stand_in_for" in prepare.ensure("shakespeare_char") else target


# ---- the items: the first line of each says what is asked for
def time_to_loss() -> Iterator[Row]:
    """config/fast.py ends at config/classic.py's final val loss or lower, in at most 1/10 of its time."""
    files = "config/fast.py", "config/classic.py"
    fast, classic = alternate(*(time_and_loss(file, "--device=cpu") for file in files), turns=rounds)
    yield compared("training time, fast / classic", fast[:, 0], classic[:, 0], "s", "<= 0.1")
    yield compared("final val loss, fast / classic", fast[:, 1], classic[:, 1], "nats", "<= 1")


def equal_time() -> Iterator[Row]:
    """config/shakespeare_char.py ends at val loss 1.54 or lower in the time of config/classic.py."""
    files = "config/shakespeare_char.py", "config/classic.py"
    ours, classic = alternate(*(time_and_loss(file, "--device=cpu") for file in files), turns=rounds)
    yield compared("training time, shakespeare_char / classic", ours[:, 0], classic[:, 0], "s", "<= 1")
    yield measured("final val loss of shakespeare_char", ours[:, 1], "nats", of_shakespeare("<= 1.54"))


def laptop() -> Iterator[Row]:
    """config/shakespeare_long.py: val loss 1.4697 in at most 6 minutes, 1.42 in at most 10; one run."""
    result, rows = trained("config/shakespeare_long.py", 0, "--device=cpu")
    there = [row["seconds"] for row in rows if row.get("val_loss", np.inf) <= 1.4697]
    there = there[:1] or [np.inf]  # never
    yield measured("training time to val loss 1.4697", there, "s", of_shakespeare("<= 360"))
    yield measured("training time to the end", [result["training_time"]], "s", "<= 600")
    yield measured("final val loss", [result["final_val_loss"]], "nats", of_shakespeare("<= 1.42"))


def throughput() -> Iterator[Row]:
    """arch=gpt2 at the classic's shape: at least 2.0 times the tokens/s of the plain fp32 loop."""
    settings = settings_of("config/classic.py")
    T, B = settings["block_size"], settings["batch_size"]
    V = prepare.ensure(settings["dataset"])["vocab_size"]
    windows = data.Windows(settings["dataset"], "train", T)

    def ours(dtype: str) -> Callable:
        run = Run({**settings, "dtype": dtype}, V)
        return lambda step: run.update(step, *windows.batch(step, B))

    def tokens_per_second(update: Callable) -> Callable:
        update(0)  # not counted: it allocates the optimizer's state
        steps = range(sized(40, 4))
        return lambda turn: len(steps) * B * T / seconds_of(lambda: [update(step) for step in steps])

    plain = plain_loop(settings, windows, Run(settings, V).model)
    updates = ours("auto"), plain, ours("bfloat16"), ours("float32")
    auto, plain, bf16, fp32 = alternate(*map(tokens_per_second, updates), turns=blocks)
    chosen = hardware.choose_precision("auto", CPU)[1]
    yield compared("tokens/s, ours / a plain fp32 loop", auto, plain, "tokens/s", ">= 2")
    yield compared("tokens/s, ours, bfloat16 / float32", bf16, fp32, "tokens/s")
    yield compared(f"tokens/s, ours, auto ({chosen}) / float32", auto, fp32, "tokens/s", ">= 1")


def precision() -> Iterator[Row]:
    """config/tiny.py with dtype=auto and with float32: final val losses at most 0.01 apart."""
    dtypes = "--dtype=auto", "--dtype=float32"
    sides = [time_and_loss("config/tiny.py", "--device=cpu", dtype) for dtype in dtypes]
    auto, fp32 = alternate(*sides, turns=rounds)[:, :, 1]
    yield measured("final val loss, auto minus float32", auto - fp32, "nats", "<= 0.01")


def generation() -> Iterator[Row]:
    """124M parameters, 512 tokens: >= 10 times uncached, <= 1.5 times what copying the weights takes.

    Without a cache, token number t costs a pass over t tokens: measured at nine lengths and interpolated, as
    all 512 would take minutes. The yardstick is the time to copy as many bytes as the weights of blocks and
    head have, each of which is read once a token. As in sample.py, the weights are in the precision in use.
    """
    model = Run(settings_of(**sized(GPT2, dict(arch="gpt2"))), VOCABULARY).model.eval()
    _, dtype = hardware.choose_precision("auto", CPU)
    model.to(getattr(torch, dtype))
    weights = sum(p.nbytes for p in [*model.blocks.parameters(), model.head.weight])
    n, source = sized(512, 16), torch.ones(sized(2**27, 2**20))
    target = torch.empty_like(source)
    lengths = np.linspace(1, n, sized(9, 3)).round()  # 1, 65, 129, ... 512

    @torch.inference_mode()
    def one_pass(length: int) -> None:
        model.to_logits(model.trunk(torch.zeros(1, length, dtype=torch.long))[:, -1])

    def uncached(turn: int) -> float:
        costs = [seconds_of(one_pass, int(length)) for length in lengths]
        return n / np.interp(np.arange(1, n + 1), lengths, costs).sum()

    def floor(turn: int) -> float:
        return source.nbytes / seconds_of(target.copy_, source) / weights  # tokens/s

    uncached(0)  # not counted: it allocates
    cached, without, most = alternate(decoding_rate(model, 1, n), uncached, floor, turns=rounds)
    yield compared(f"tokens/s, {n} tokens, cached / uncached", cached, without, "tokens/s", ">= 10")
    yield compared("time per token / copying the weights", 1e3 / cached, 1e3 / most, "ms", "<= 1.5")
    for batch_size in (8, 32):  # a quarter of the tokens, to stay within 3 minutes
        (rates,) = alternate(decoding_rate(model, batch_size, n // 4), turns=rounds)
        yield measured(f"tokens/s, batch {batch_size}, {n // 4} tokens each", rates, "tokens/s")


def bytepairs() -> Iterator[Row]:
    """To 4,096 tokens: 1.1 MB in at most 2 times the time of Rust's `tokenizers`, 100 MB in at most 4 times.

    The package is in requirements-dev.txt. It uses all cores, we use one.
    """
    yield from measure_text.bytepairs(rounds)


def preparing() -> Iterator[Row]:
    """100 MB to a dataset: >= 0.8 of the speed of bare tiktoken on one thread, >= 1.6 of it on two.

    data.py reads, encodes, writes and hashes; tiktoken only encodes, with the same tokens, on one thread.
    """
    yield from measure_text.preparing(rounds)


def one_step(chunked: bool) -> float:
    """For memory(): one update of GPT-2 with 4 x 512 tokens; returns this process's peak memory in MB."""
    run = Run(settings_of(**sized({**GPT2, "block_size": 512}, {})), VOCABULARY)
    run.chunked = chunked
    x = torch.randint(VOCABULARY, (4, run.config.block_size))
    run.update(0, x, x)
    return report.memory_mb(CPU)


def memory() -> Iterator[Row]:
    """Peak of config/shakespeare_char.py below 900 MB; that of a step with 50,304 tokens, reported."""

    def run_peak(turn: int) -> float:
        _, rows = trained("config/shakespeare_char.py", turn, "--device=cpu", "--max_iters=40")
        return max(row.get("memory_mb", 0) for row in rows)

    def step_peak(chunked: bool) -> Callable:
        code = f"import bench; bench.SMALLER.update({SMALLER}); print(bench.one_step({chunked}))"
        command = [sys.executable, "-c", code]
        return lambda turn: float(subprocess.check_output(command, cwd=ROOT, encoding="utf-8"))

    yield measured("40 updates of shakespeare_char", *alternate(run_peak, turns=rounds), "MB", "< 900")
    chunks, whole = alternate(step_peak(True), step_peak(False), turns=rounds)
    yield compared("124M step, loss in chunks / whole", chunks, whole, "MB", "<= 1")


def growth() -> Iterator[Row]:
    """How cost per token grows with each size, and how loss falls with compute; with --plot, two plots."""
    folder = run_folder(out_dir) if plot else None
    yield from scaling.growth_of_cost(blocks, folder)
    yield from scaling.growth_of_loss(growth_seconds, folder)


def ablation() -> Iterator[Row]:
    """config/shakespeare_char.py with one setting changed at a time: val loss after equal training time."""
    yield from scaling.ablation(ablation_seconds, seeds)


def sharding() -> Iterator[Row]:
    """Bytes held and sent on 1, 2 and 4 processes with each strategy: measured equals the formula."""
    yield from plan_check.rows(sized((1, 2, 4), (2,)), "muon", micro_steps=2)


def plan() -> Iterator[str]:
    """Memory of each GPU, communication and time of an update with each strategy, by formula (plan.py)."""
    shape = dict(arch=arch, n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size)
    batch = dict(batch_size=batch_size, gradient_accumulation_steps=gradient_accumulation_steps)
    way = dict(optimizer=optimizer, dtype=dtype, gradient_checkpointing=gradient_checkpointing)
    cluster = Cluster(gpus, gpus_per_node, memory_gb, peak_tflops, mfu, bandwidth, bandwidth_between)
    yield from table(settings_of(**shape, **batch, **way), vocab_size, cluster)


def gpu() -> Iterator[Row]:
    """124M at 55 % of the measured matrix peak; shakespeare_char in 1/3 of classic_gpu's time to its best."""
    if not torch.cuda.is_available():
        raise NotMeasured("no CUDA GPU")
    device = torch.device("cuda")
    torch.set_float32_matmul_precision("high")  # as in train.py
    settings = settings_of("config/base.py", device="cuda", compile=True)
    sides = training_rate(settings, VOCABULARY, device), matmul_rate(device, 8192)
    training, peak = alternate(*sides, turns=blocks)
    what = "flop/s, 124M training / 8192^3 matmul"
    yield compared(what, training / 1e12, peak / 1e12, "TFLOP/s", ">= 0.55")

    model = Run(settings, VOCABULARY, device).model.bfloat16()
    sides = [decoding_rate(model, batch_size, 256) for batch_size in (1, 8, 32)]
    for batch_size, rates in zip((1, 8, 32), alternate(*sides, turns=blocks), strict=True):
        yield measured(f"tokens/s, batch {batch_size}, cached", rates, "tokens/s")
    sides = [decoding_rate(model, 1, 256, graph=graph) for graph in (True, False)]
    yield compared("tokens/s, CUDA graph / without", *alternate(*sides, turns=blocks), "tokens/s")

    def time_to_best(turn: int) -> tuple[float, float]:
        result, rows = trained("config/classic_gpu.py", turn, "--device=cuda")
        at = [row["seconds"] for row in rows if "val_loss" in row and row["step"] == result["best_step"]]
        return at[0], result["best_val_loss"]

    ours = time_and_loss("config/shakespeare_char.py", "--device=cuda")
    ours, classic = alternate(ours, time_to_best, turns=rounds)
    what = "training time, shakespeare_char / classic to its best"
    yield compared(what, ours[:, 0], classic[:, 0], "s", "<= 0.333")
    yield measured("final val loss of shakespeare_char", ours[:, 1], "nats", of_shakespeare("<= 1.42"))


ITEMS = {
    item.__name__: item
    for item in (
        time_to_loss, equal_time, laptop, throughput, precision, generation, bytepairs, preparing, memory,
        growth, gpu, ablation, sharding, plan,
    )
}  # fmt: skip


def rows_of(item: Callable) -> Iterator[Row]:
    """The rows of an item; where something is missing, the last one says what."""
    try:
        yield from item()
    except NotMeasured as missing:
        yield Row(f"not measured: {missing}", "", "", "", "")


if __name__ == "__main__":
    config = override(globals())
    at_least(1, config, "rounds blocks seeds gpus gpus_per_node batch_size gradient_accumulation_steps")
    at_least(1e-6, config, "memory_gb peak_tflops mfu bandwidth bandwidth_between")
    names = (only or ("growth" if plot else "")).replace(" ", "").split(",")
    names = names if names != [""] else [name for name in ITEMS if name != "laptop"]
    unknown = [name for name in names if name not in ITEMS]
    if unknown:
        raise ValueError(f"only={only} names no item {unknown[0]!r}; expected one of {', '.join(ITEMS)}")
    SMALLER.update(QUICK if quick else {})
    print("\n".join(machine()))
    for name in names:
        print(f"\n{name}: {ITEMS[name].__doc__.splitlines()[0]}")
        for row in itertools.chain([COLUMNS] * (name != "plan"), rows_of(ITEMS[name])):  # as it is there
            line = row if name == "plan" else "{:54} {:>7}  {:29} {:>8}  {}".format(*row).rstrip()
            print(f"  {line}", flush=True)
