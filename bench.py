"""How fast is all this, and against what? Measures this machine and prints one table.

    python bench.py                     every item but laptop: an hour and a quarter on 2 CPU cores
    python bench.py --only=throughput   one item
    python bench.py --plot              growth, with its two plots
    python bench.py --quick             tiny sizes: does everything run? (the numbers mean nothing)

time_to_loss, equal_time, laptop and precision train whole configs to the end. gpu needs CUDA. throughput,
generation, decoding, bytepairs, preparing, memory, growth, ablation and sizes take about 3 minutes each on a
CPU, claims 15, sharding and footprint half a minute. plan measures nothing: it computes what a run on many
GPUs needs. Each item prints its target first. A ratio is ours / theirs, measured in turns (lab/measure.py).
"""

import copy
from collections.abc import Callable, Iterator

from config import at_least, end_script, override, require, technique_settings  # isort: skip
import numpy as np
import torch

import data
import techniques
from lab import claims as guides
from lab import decode, measure, measure_text, plan_check, scaling
from lab import gpu as one_gpu
from lab.gpu import GPT2, VOCABULARY
from lab.measure import CPU, NotMeasured, Row, Run, alternate, compared, measured, settings_of, sized
from lab.measure_text import of_shakespeare
from lab.plan import Cluster, shaped, table
from machine import hardware
from runtime.folder import run_folder
from text import settle

# -----------------------------------------------------------------------------
only = ""  # one item, or several: throughput,memory; '' = all but laptop
plot = False  # draw growth's two plots, growth_cost.png and growth_loss.png
out_dir = "out-bench"  # folder for the plots
rounds = 3  # turns of each side where a turn takes long; each turn trains with another seed
blocks = 5  # turns of each side where a turn takes seconds
seeds = 3  # runs of each variant in the ablation
ablation_seconds = 3.0  # training time of each run in the ablation
growth_seconds = 8.0  # training time of growth's longest runs; the others take half and a quarter of it
claim = 0  # --only=claims: one of the 22 in docs/claims.md; 0 = all that can be measured here
quick = False  # tiny sizes, to see that everything runs
# The run that --only=plan computes. The defaults are config/base.py: GPT-2 (124M).
gpus = 8  # in all; one process each
gpus_per_node = 8  # in one machine
shape = ""  # '' the next five | 7b | 13b | 70b: Llama 2's, with 32,000 tokens
arch = "gpt2"  # modern | gpt2 | llama
n_layer = 12  # blocks
n_head = 12  # attention heads
n_embd = 768  # width
block_size = 1024  # tokens in a window
vocab_size = 50304  # different tokens
optimizer = "adamw"  # muon | adamw | adam | sgd
dtype = "bfloat16"  # float32 | bfloat16 | float16
batch_size = 12  # windows per micro-step on each GPU
gradient_accumulation_steps = 5  # micro-steps per update
gradient_checkpointing = False  # recompute the blocks in the backward pass
technique = ""  # lora | quantize,lora; each has settings of its own, as in train.py
memory_gb = 80.0  # memory of one GPU
peak_tflops = 989.0  # TFLOP/s of one GPU by its data sheet; 989 is an H100 in bfloat16
mfu = 0.4  # share of peak_tflops that training reaches
bandwidth = 300.0  # GB/s from one GPU to another in its machine; python -m techniques.allreduce measures it
bandwidth_between = 40.0  # GB/s from one GPU to another in another machine
# -----------------------------------------------------------------------------
QUICK = dict(
    dataset="verse", n_layer=1, n_head=2, n_embd=32, block_size=32, batch_size=4, max_iters=10, eval_iters=1,
    eval_interval=5, log_interval=5, max_new_tokens=5, compile=False,
)  # fmt: skip
COLUMNS = Row("", "ratio", "absolute", "target", "smallest..largest")


# ---- the items: the first line of each docstring is its target, and is printed
def time_to_loss() -> Iterator[Row]:
    """config/fast.py must reach config/classic.py's final val loss in at most 1/10 of its time."""
    files = "config/fast.py", "config/classic.py"
    fast, classic = alternate(*(measure.time_and_loss(file, "--device=cpu") for file in files), turns=rounds)
    yield compared("training time, fast / classic", fast[:, 0], classic[:, 0], "s", "<= 0.1")
    yield compared("final val loss, fast / classic", fast[:, 1], classic[:, 1], "nats", "<= 1")


def equal_time() -> Iterator[Row]:
    """config/shakespeare_char.py must reach val loss 1.54 in at most the time of config/classic.py."""
    files = "config/shakespeare_char.py", "config/classic.py"
    ours, classic = alternate(*(measure.time_and_loss(file, "--device=cpu") for file in files), turns=rounds)
    yield compared("training time, shakespeare_char / classic", ours[:, 0], classic[:, 0], "s", "<= 1")
    yield measured("final val loss of shakespeare_char", ours[:, 1], "nats", of_shakespeare("<= 1.54"))


def laptop() -> Iterator[Row]:
    """config/shakespeare_long.py: val loss 1.4697 by 520 updates in 3 minutes, 1.38 by all in 10; one run.

    1.4697 is what nanoGPT's 10.7M-parameter recipe for Tiny Shakespeare reaches on a GPU.
    """
    for updates, loss, seconds in ((520, 1.4697, 180), (1450, 1.38, 600)):
        flags = "--device=cpu", f"--max_iters={updates}"
        result, _ = measure.trained("config/shakespeare_long.py", 0, *flags)
        yield measured(f"training time, {updates} updates", [result["training_time"]], "s", f"<= {seconds}")
        target = of_shakespeare(f"<= {loss}")
        yield measured(f"final val loss, {updates} updates", [result["final_val_loss"]], "nats", target)


def throughput() -> Iterator[Row]:
    """arch=gpt2 in config/classic.py's shape must train 2.0 times as many tokens/s as a plain fp32 loop."""
    settings = settings_of("config/classic.py")
    T, B = settings["block_size"], settings["batch_size"]
    V = settle.ensure(settings["dataset"])["vocab_size"]
    windows = data.Windows(settings["dataset"], "train", T)

    def ours(dtype: str, compile: bool = False) -> Callable:
        run = Run({**settings, "dtype": dtype}, V)
        if compile and not measure.SMALLER:  # without a C++ compiler it says so and goes on uncompiled
            run.loss_of = hardware.try_compile(run.summed_loss, run.model, windows.batch(0, B), run.autocast)
        return lambda step: run.update(step, *windows.batch(step, B))

    def tokens_per_second(update: Callable) -> Callable:
        update(0)  # not counted: it allocates the optimizer state
        steps = range(sized(40, 4))
        return lambda turn: len(steps) * B * T / measure.seconds_of(lambda: [update(step) for step in steps])

    plain = measure.plain_loop(settings, windows, Run(settings, V).model)
    updates = ours("auto"), ours("auto", compile=True), plain, ours("bfloat16"), ours("float32")
    auto, compiled, plain, bf16, fp32 = alternate(*map(tokens_per_second, updates), turns=blocks)
    resolved = hardware.choose_precision("auto", CPU)[1]
    yield compared("tokens/s, ours / a plain fp32 loop", auto, plain, "tokens/s", ">= 2")
    yield compared("tokens/s, ours with --compile / the same", compiled, plain, "tokens/s")
    yield compared("tokens/s, ours, bfloat16 / float32", bf16, fp32, "tokens/s")
    yield compared(f"tokens/s, ours, auto ({resolved}) / float32", auto, fp32, "tokens/s", ">= 1")


def precision() -> Iterator[Row]:
    """config/tiny.py with dtype=auto must end at most 0.01 above its final val loss with float32."""
    dtypes = "--dtype=auto", "--dtype=float32"
    sides = [measure.time_and_loss("config/tiny.py", "--device=cpu", dtype) for dtype in dtypes]
    auto, fp32 = alternate(*sides, turns=rounds)[:, :, 1]
    yield measured("final val loss, auto minus float32", auto - fp32, "nats", "<= 0.01")


def generation() -> Iterator[Row]:
    """124M, 512 tokens: packed >= 10 times as fast as uncached, and <= 1.5 times as long as a weight copy.

    Each token reads the weights of the blocks and the head once, so the time to copy them is the yardstick.
    Unpacked weights are in the precision in use, as in sample.py; packed: techniques/quantize.py.
    """
    n, precision = sized(512, 16), getattr(torch, hardware.choose_precision("auto", CPU)[1])
    lengths = np.linspace(1, n, sized(9, 3)).round()  # 1, 65, 129, ... 512
    base = Run(settings_of(**sized(GPT2, dict(arch="gpt2"))), VOCABULARY).model.eval()
    model = copy.deepcopy(base).to(precision)
    kinds, quantize = ("int8", "int4"), techniques.load("quantize")[0]
    packed = [quantize.packed(copy.deepcopy(base), kind).to(precision) for kind in kinds]
    decoders = [measure.decoding_rate(m, 1, n) for m in (model, *packed)]
    copying = measure.copying_rate(model, sized(2**27, 2**20))
    *decoded, uncached, copied = alternate(
        *decoders, measure.uncached_rate(model, lengths), copying, turns=rounds
    )
    for kind, rate in zip(("cached", *kinds), decoded, strict=True):
        target = "reported" if kind == "cached" else ">= 10"
        yield compared(f"tokens/s, {n} tokens, {kind} / uncached", rate, uncached, "tokens/s", target)
    yield compared("time per token / copying the weights", 1e3 / decoded[0], 1e3 / copied, "ms", "<= 1.5")
    for batch_size in (8, 32):  # a quarter of the tokens, to stay within 3 minutes
        (rates,) = alternate(measure.decoding_rate(model, batch_size, n // 4), turns=rounds)
        yield measured(f"tokens/s, batch {batch_size}, {n // 4} tokens each", rates, "tokens/s")
    small = Run(settings_of("config/shakespeare_char.py"), 65).model.eval().to(precision)
    n = small.config.block_size
    sides = measure.decoding_rate(small, 1, n), measure.uncached_rate(small, np.linspace(1, n, 9).round())
    cached, uncached = alternate(*sides, turns=rounds)
    yield compared(f"tokens/s, shakespeare_char, {n} tokens, cached / uncached", cached, uncached, "tokens/s")


def decoding() -> Iterator[Row]:
    """SmolLM2-135M in int4 must write at least 0.6 times as many tokens/s as llama.cpp with the same file."""
    yield from decode.rows(blocks)


def bytepairs() -> Iterator[Row]:
    """Learning 4,096 tokens: at most 2 times the time of Rust's `tokenizers` on 1.1 MB, 4 times on 100 MB.

    The package is in requirements-dev.txt. It uses all cores, we use one.
    """
    yield from measure_text.bytepairs(rounds)


def preparing() -> Iterator[Row]:
    """100 MB to a dataset: >= 0.8 of the speed of bare tiktoken on one thread, >= 1.6 of it on two.

    data.py reads, encodes, writes and hashes. Bare tiktoken only encodes: the same tokens, on one thread.
    """
    yield from measure_text.preparing(rounds)


def memory() -> Iterator[Row]:
    """config/shakespeare_char.py must peak below 900 MB; an update with 50,304 tokens is reported."""

    def run_peak(turn: int) -> float:
        _, rows = measure.trained("config/shakespeare_char.py", turn, "--device=cpu", "--max_iters=40")
        return max(row.get("memory_mb", 0) for row in rows)

    yield measured("40 updates of shakespeare_char", *alternate(run_peak, turns=rounds), "MB", "< 900")
    shape = sized({**GPT2, "block_size": 512}, {})
    limits = 1, 0  # logits_mb: the loss in chunks; the loss from all logits at once
    settings = [settings_of(**shape, batch_size=4, logits_mb=limit) for limit in limits]
    chunks, whole = alternate(*(measure.update_peak(each, VOCABULARY) for each in settings), turns=rounds)
    yield compared("124M step, loss in chunks / whole", chunks, whole, "MB", "<= 1")


def growth() -> Iterator[Row]:
    """How cost per token grows with each size, and how loss falls with compute; with --plot, two plots."""
    folder = run_folder(out_dir) if plot else None
    yield from scaling.growth_of_cost(blocks, folder)
    yield from scaling.growth_of_loss(growth_seconds, folder)


def ablation() -> Iterator[Row]:
    """config/shakespeare_char.py with one setting changed at a time: val loss after equal training time."""
    yield from scaling.ablation(ablation_seconds, seeds)


def sizes() -> Iterator[Row]:
    """Six model sizes, one budget of compute, seeds from 1337 on: which size makes the most of it?"""
    yield from scaling.sizes(seeds)


def sharding() -> Iterator[Row]:
    """Bytes held and sent on 1, 2 and 4 processes with each strategy must equal the formulas."""
    yield from plan_check.rows(sized((1, 2, 4), (2,)), "muon", micro_steps=2)


def footprint() -> Iterator[Row]:
    """Bytes of full fine-tuning, LoRA and QLoRA on SmolLM2's shape (135M) must equal the formulas."""
    yield from plan_check.footprints(sized(plan_check.SMOLLM2, plan_check.SMALL_SMOLLM2))


def plan() -> Iterator[str]:
    """Memory of each GPU, bytes sent and time of an update with each strategy, computed (lab/plan.py)."""
    sizes = dict(arch=arch, n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size)
    batch = dict(batch_size=batch_size, gradient_accumulation_steps=gradient_accumulation_steps)
    way = dict(optimizer=optimizer, dtype=dtype, gradient_checkpointing=gradient_checkpointing)
    own = [name for each in filter(None, technique.split(",")) for name in technique_settings()[each]]
    way |= {name: globals()[name] for name in ("technique", *own)}
    cluster = Cluster(gpus, gpus_per_node, memory_gb, peak_tflops, mfu, bandwidth, bandwidth_between)
    yield from table(*shaped(settings_of(**sizes, **batch, **way), vocab_size, shape), cluster)


def claims() -> Iterator[Row]:
    """What five guides claim, measured: docs/claims.md has the verdicts."""
    yield from guides.rows(claim, rounds)


def gpu() -> Iterator[Row]:
    """124M must train on 530,000 tokens/s and write 3,000; shakespeare_char must take 4 ms an update.

    These are for one H100. Within 8 minutes, compiling included, also: attention's time and memory, each
    precision, gradient checkpointing, memory that runs out, and --offload=cpu.
    """
    yield from one_gpu.rows()


ITEMS = {
    item.__name__: item
    for item in (
        time_to_loss, equal_time, laptop, throughput, precision, generation, decoding, bytepairs, preparing,
        memory, growth, gpu, ablation, sizes, sharding, footprint, claims, plan,
    )
}  # fmt: skip


def rows_of(item: Callable) -> Iterator[Row]:
    """The rows of an item. If something that it needs is missing, its last row names it."""
    try:
        yield from item()
    except NotMeasured as missing:
        yield Row(f"not measured: {missing}", "", "", "", "")


def show_row(row: Row | str) -> None:
    """Print a row in columns. plan gives finished lines."""
    line = row if isinstance(row, str) else "{:54} {:>7}  {:29} {:>8}  {}".format(*row)
    print(f"  {line.rstrip()}", flush=True)


if __name__ == "__main__":
    config = override(globals())
    at_least(1, config, "rounds blocks seeds gpus gpus_per_node batch_size gradient_accumulation_steps")
    at_least(1e-6, config, "memory_gb peak_tflops mfu bandwidth bandwidth_between")
    names = [name for name in ITEMS if name != "laptop"]
    if only or plot:
        names = (only or "growth").replace(" ", "").split(",")
    for name in names:
        require(name in ITEMS, f"only={only} names no item {name!r}; expected one of {', '.join(ITEMS)}")
    measure.SMALLER.update(QUICK if quick else {})
    print("\n".join(measure.describe_machine()))
    for name in names:
        print(f"\n{name}: {ITEMS[name].__doc__.splitlines()[0]}")
        if name != "plan":  # it has columns of its own
            show_row(COLUMNS)
        for row in rows_of(ITEMS[name]):
            show_row(row)
    end_script()
