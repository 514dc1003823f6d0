"""What one GPU reaches, for `python bench.py --only=gpu`: training, decoding, attention, precisions, memory.

Each part yields rows; one that fails says why, and the others go on. All together have BUDGET seconds. What
is compiled later is compiled first, by processes side by side, whose results wait in torch's cache on disk.
Without CUDA, --quick runs the same functions on the CPU at tiny sizes; the rows mean nothing then.
"""

import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from config import ROOT
from lab import measure
from lab.measure import NotMeasured, Row, Run, alternate, compared, measured, seconds_of, settings_of, sized
from lab.measure_text import of_shakespeare
from machine.speed import flops_per_token
from runtime import report
from techniques import load
from text import settle

LAST = "8ec7af7"  # the commit at which the figures in docs/speed.md were measured
BUDGET = 480.0  # seconds
WARMING = 120.0  # of them, at most for compiling side by side
TURNS = 3  # of each side
VOCABULARY = 50304  # GPT-2's 50,257 tokens, padded to a multiple of 128
GPT2 = dict(arch="gpt2", optimizer="adamw", n_layer=12, n_head=12, n_embd=768, block_size=1024)  # 124M
TRAINED = {"in chunks": (12, 256), "in one piece": (32, 0)}  # how the loss is made: batch_size, logits_mb
DECODED = (
    "eager", "recorded", "compiled", "int8, recorded", "int8, compiled", "recorded, batch 8",
    "recorded, batch 32",
)  # fmt: skip
LARGER = dict(n_layer=24, n_head=16, n_embd=1024, block_size=1024, optimizer="adamw")  # 302M and the tokens


def place() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def flag() -> str:
    return f"--device={place()}"


def gpt2(**changes) -> dict:
    """train.py's settings for GPT-2's 124M parameters; tiny with --quick."""
    return settings_of(**{**sized(GPT2, {"arch": "gpt2"}), "device": str(place()), **changes})


def gpt2_run(**changes) -> Run:
    return Run(gpt2(**changes), sized(VOCABULARY, 256), place())


def not_measured(what: str, error: Exception) -> Row:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return Row(f"{what}: not measured: {reason:.200}", "", "", "", "")


def rows() -> Iterator[Row]:
    """All rows. Raises NotMeasured without CUDA, unless the sizes are tiny."""
    if not torch.cuda.is_available() and not measure.SMALLER:
        raise NotMeasured(f"no CUDA GPU; last measured at commit {LAST}")
    end = time.monotonic() + BUDGET
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # as in train.py
    if not measure.SMALLER:
        settle.ensure("shakespeare_char")  # once, not by two processes at the same time
        warm(COMPILED, WARMING)
    for part in PARTS:
        yield from rows_of(part, end)
    torch.set_float32_matmul_precision(before)


def rows_of(part: Callable, end: float) -> Iterator[Row]:
    """The rows of a part; the reason where it fails, whatever it is, or where the time is over."""
    try:
        if time.monotonic() > end:
            raise NotMeasured(f"the {BUDGET:.0f} seconds are over")
        yield from part()
    except Exception as error:
        yield not_measured(part.__name__.replace("_", " "), error)
    finally:
        if torch.cuda.is_available():
            gc.collect()  # a model that an error still names
            torch.cuda.empty_cache()


# ---- compile first, side by side
def in_python(call: str) -> list[str]:
    start = "import torch; torch.set_float32_matmul_precision('high'); from lab import gpu"
    return ["-c", f"{start}; gpu.{call}"]


COMPILED = (
    ["train.py", "config/shakespeare_char.py", "--max_iters=4", "--eval_iters=1", "--max_new_tokens=1"],
    ["train.py", "config/classic_gpu.py", "--max_iters=4", "--eval_iters=1", "--max_new_tokens=1"],
    *(in_python(f"training_side({batch_size}, {logits_mb})") for batch_size, logits_mb in TRAINED.values()),
    *(in_python(f"decoding_side({name!r})") for name in DECODED if "compiled" in name),
)


def warm(commands: tuple, limit: float) -> None:
    """Run python with each of these arguments, all at once; end those that take over `limit` seconds.

    What they print and whether they fail does not matter: the part that needs the result will say so.
    """
    quiet, end = subprocess.DEVNULL, time.monotonic() + limit
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for i, command in enumerate(commands):
            out = [f"--out_dir={folder}/{i}"] if command[0] == "train.py" else []
            running.append(
                subprocess.Popen([sys.executable, *command, *out], cwd=ROOT, stdout=quiet, stderr=quiet)
            )
        for process in running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# ---- the parts
def small_models() -> Iterator[Row]:
    """The 10M-parameter recipe of config/shakespeare_char.py, whole runs of train.py."""
    result, found = measure.trained("config/shakespeare_char.py", 0, flag())
    tokens = [row["tokens"] / row["step"] for row in found if "loss" in row]
    rates = [row["tokens_per_second"] for row in found if "loss" in row]
    milliseconds = 1e3 * np.array(tokens) / np.array(rates)
    yield measured("shakespeare_char: an update", milliseconds, "ms", "<= 4")
    yield measured("shakespeare_char: training time", [result["training_time"]], "s", "<= 10")
    target = of_shakespeare("<= 1.4")
    yield measured("shakespeare_char: final val loss", [result["final_val_loss"]], "nats", target)
    early = "--patience=4"  # after its best it only overfits
    classic, found = measure.trained("config/classic_gpu.py", 0, flag(), early)
    best = [row["seconds"] for row in found if "val_loss" in row and row["step"] == classic["best_step"]]
    what = "training time, shakespeare_char / classic to its best"
    yield compared(what, [result["training_time"]], best[:1], "s", "<= 0.2")
    yield measured("classic_gpu: best val loss", [classic["best_val_loss"]], "nats")


def training_side(batch_size: int, logits_mb: int) -> Callable:
    settings = gpt2(compile=not measure.SMALLER, batch_size=sized(batch_size, 2), logits_mb=logits_mb)
    return measure.training_rate(settings, sized(VOCABULARY, 256), place())


def training() -> Iterator[Row]:
    """Updates of GPT-2's 124M parameters on windows of 1,024 tokens, against products of matrices."""
    per_token = flops_per_token(gpt2_run().model)
    peak = measure.matmul_rate(place(), sized(8192, 64))
    for loss, (batch_size, logits_mb) in TRAINED.items():
        flops, most = alternate(training_side(batch_size, logits_mb), peak, turns=TURNS)
        target = ">= 530000" if loss == "in one piece" else "reported"
        yield measured(f"124M, batch {batch_size}, loss {loss}", flops / per_token, "tokens/s", target)
        what = f"flop/s / 8192^3 product, loss {loss}"
        yield compared(what, flops / 1e12, most / 1e12, "TFLOP/s", ">= 0.55")


def decoding_side(name: str) -> Callable:
    """A side of GPT-2's 124M parameters in bfloat16. name: one of DECODED."""
    model = gpt2_run().model.eval()
    if "int8" in name:
        model = load("quantize")[0].packed(model, "int8")
    options = {"graph": "eager" not in name, "compile": "compiled" in name and not measure.SMALLER}
    batch_size = int(name.partition("batch ")[2] or 1)
    return measure.decoding_rate(model.bfloat16(), batch_size, sized(256, 8), **options)


def decoding() -> Iterator[Row]:
    """Tokens/s of GPT-2's 124M parameters, 256 tokens in each row, sampler included."""
    for name in DECODED:
        target = ">= 3000" if name == "compiled" else "reported"
        try:
            (rates,) = alternate(decoding_side(name), turns=TURNS)
        except Exception as error:  # compiling may fail where the rest works
            yield not_measured(f"decoding, {name}", error)
        else:
            yield measured(f"decoding, {name}", rates, "tokens/s", target)


def cost_of(work: Callable) -> tuple[np.ndarray, float]:
    """(milliseconds of each turn, peak memory in MB) of a function."""
    work()  # not counted: it allocates
    if place().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    milliseconds = [1e3 * seconds_of(work) for _ in range(TURNS)]
    return np.array(milliseconds), report.memory_mb(place())


def both(what: str, ours: tuple, theirs: tuple) -> Iterator[Row]:
    """Two rows from the costs of two functions: time and memory."""
    yield compared(f"{what}: time", ours[0], theirs[0], "ms")
    yield compared(f"{what}: peak memory", [ours[1]], [theirs[1]], "MB")


def attention() -> Iterator[Row]:
    """torch's fused attention against all T x T scores; forward and backward, 4 x 12 heads of 64, 16 bits."""
    for T in sized((512, 1024, 2048, 4096), (16,)):
        q = torch.randn(4, 12, T, 64, device=place(), dtype=torch.bfloat16, requires_grad=True)

        def work(q=q) -> None:
            F.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()

        fused = cost_of(work)
        with sdpa_kernel(SDPBackend.MATH):
            written_out = cost_of(work)
        yield from both(f"attention, T={T}, fused / all scores", fused, written_out)


def step_cost(**settings) -> tuple[np.ndarray, float]:
    """cost_of an update of GPT-2's 124M parameters, eager."""
    run = gpt2_run(**settings)
    x = torch.randint(run.config.vocab_size, (sized(8, 2), run.config.block_size), device=place())
    return cost_of(lambda: run.update(0, x, x))


def precisions() -> Iterator[Row]:
    """An update in each precision against float32 without TF32."""
    torch.set_float32_matmul_precision("highest")
    try:
        exact = step_cost(dtype="float32")
    finally:
        torch.set_float32_matmul_precision("high")
    for name, dtype in (("TF32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")):
        yield from both(f"update, {name} / float32", step_cost(dtype=dtype), exact)


def checkpointing() -> Iterator[Row]:
    """An update with and without gradient_checkpointing."""
    on, off = (step_cost(gradient_checkpointing=each) for each in (True, False))
    yield from both("update, gradient_checkpointing / without", on, off)


def short_run(*flags: str) -> tuple[dict, list[dict]]:
    """4 updates of train.py with 302M parameters and few tokens in the vocabulary; tiny with --quick."""
    shape = [
        f"--{name}={value}" for name, value in sized({**LARGER, "max_iters": 4, "eval_iters": 1}, {}).items()
    ]
    more = ["--log_interval=1", "--max_new_tokens=1", flag()]
    return measure.trained("config/shakespeare_char.py", 0, "--compile=False", *shape, *more, *flags)


def out_of_memory() -> Iterator[Row]:
    """A run whose first batch needs over 400 GB: it must halve it and make all of its updates."""
    first = sized(512, 4)
    result, _ = short_run(f"--batch_size={first}")
    sizes = [first]
    for line in result["printed"].splitlines():
        if line.startswith("out of memory: going on with batch_size="):
            sizes.append(int(line.split("=")[1].split(",")[0]))
    what = f"out of memory with batch_size={first}: went on with {sizes[-1]}"
    yield measured(what, [len(sizes) - 1], "times halved", ">= 1")


def offload() -> Iterator[Row]:
    """Weights and optimizer state in CPU memory (--offload=cpu) against all on the GPU, one process."""

    def cost(*flags: str) -> tuple[np.ndarray, float]:
        _, found = short_run("--strategy=fsdp", "--batch_size=4", *flags)
        found = [row for row in found if "loss" in row]
        times = [1e3 * row["tokens"] / row["step"] / row["tokens_per_second"] for row in found]
        return np.array(times), max(row["memory_mb"] for row in found)

    yield from both("update, offload=cpu / on the GPU", cost("--offload=cpu"), cost())


PARTS = training, decoding, small_models, attention, precisions, checkpointing, out_of_memory, offload
