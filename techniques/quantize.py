"""Keeps a model's matrices in 4 or 8 bits a weight: for decoding, and under LoRA.

    python -m techniques.quantize --out_dir=out-x --bits=4              writes out-x-int4, a run like others
    python train.py --init_from=out-x --technique=lora --quantize=nf4   QLoRA (Dettmers et al., 2023)

The formats int8, int4 and nf4 are in packing.py. int8 and int4 are for decoding: torch has CPU kernels that
read them. nf4 is smaller, and needs its weights unpacked each time: it is for QLoRA. In all three the
embedding and the head are int8 rows, one copy of them if they are tied. Norms, biases and learned positions
are not packed. Packed weights do not learn: without LoRA there would be nothing left to train.
"""

import contextlib

from config import at_least, end_script, override, require, typed  # isort: skip
import torch
from torch import nn

from data import open_windows
from evaluate import evaluate, fixed_windows
from runtime import checkpoint
from runtime.folder import new_run_folder, run_folder
from techniques import BLOCKS, adapters, gptq
from techniques.one_token import OneToken
from techniques.packed_layers import QuantEmbedding, QuantLinear
from text.settle import meta_of, require_same_text

# -----------------------------------------------------------------------------
quantize = ""  # linear layers of the blocks: '' | int8 | int4 | nf4; embedding and head become int8
# the command
out_dir = "out-shakespeare-char"  # folder of the run
file = "best.pt"  # which checkpoint in it
to = ""  # folder of the packed run; '' = out_dir with -int8, -int4 or -nf4 behind its name
bits = 8  # 8: int8 | 4: int4; or give --quantize
method = "plain"  # plain: each weight to the nearest | gptq: int4 that keeps the layers' outputs (gptq.py)
input = ""  # gptq: a text to calibrate on; '' = the training split of the run's dataset
tokens = 65536  # gptq: of it, how many tokens to read
# -----------------------------------------------------------------------------

AFTER = BLOCKS  # their layers are packed, too
KINDS = ("int8", "int4", "nf4")


def change_model(model, config: dict):
    """Pack the linear layers, embedding and head of a model, in place; also on the meta device.

    ValueError for an unknown kind, for weights that are not finite, and for training without LoRA.
    """
    kind, meta = config["quantize"], model.norm.weight.is_meta
    require(kind != "", "technique=quantize needs --quantize=int8, int4 or nf4")
    require(kind in KINDS, f"quantize={kind!r:.60} is unknown; expected one of {', '.join(KINDS)}")
    # On the meta device a finished run is read. Whatever is packed here is to be trained, or to be evaluated.
    alone = config.get("technique", "") == "quantize" and not (meta or config.get("eval_only"))
    require(
        not alone,
        f"quantize={kind} leaves nothing to train: add --technique=lora, or pack a finished run: "
        "python -m techniques.quantize --out_dir=RUN",
    )
    return packed(model, kind)


@torch.no_grad()
def packed(model, kind: str, tensors: dict | None = None):
    """The model with its linear layers, embedding and head packed, in place.

    tensors: {layer: what packing.encode would return} for layers that were rounded in another way.
    """
    tied = model.config.tie_weights
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear | nn.Embedding) and name != "wpe":
            finite = layer.weight.is_meta or layer.weight.isfinite().all()
            require(finite, f"{name}.weight holds NaN or infinity: it cannot be packed")
            ready = (tensors or {}).get(name)
            if name == "wte":
                model.wte = QuantEmbedding("int8", layer.weight)
            elif name == "head":
                model.head = model.wte if tied else QuantLinear("int8", layer.weight)
            else:
                model.set_submodule(name, QuantLinear(kind, layer.weight, layer.bias, ready))
    model.next_logits = OneToken(model)
    return model.train(model.training)


def bits_per_weight(model) -> float:
    """Of all packed matrices, scales included, biases not."""
    layers = {layer for layer in model.modules() if isinstance(layer, QuantLinear)}
    weights = sum(layer.out_features * layer.in_features for layer in layers)
    return 8 * sum(getattr(layer, name).nbytes for layer in layers for name in layer.names) / weights


def bytes_of(model) -> int:
    """Of all weights and buffers; those that two layers share count once."""
    return sum(t.nbytes for t in [*model.parameters(), *model.buffers()])


# ---- the command
def val_loss(model, saved: dict) -> float | None:
    """The loss on the windows that train.py evaluates; None if the run's dataset is not here."""
    try:
        settings = {name: saved["config"][name] for name in ("dataset", "seed", "pack", "eval_iters")}
        name = settings["dataset"]
        require_same_text(saved["dataset"], meta_of(name), name, "", "")
    except (KeyError, OSError, ValueError):
        return None
    shape = model.config.block_size, settings["seed"], settings["pack"]
    train, val = (open_windows(name, split, *shape) for split in ("train", "val"))
    _, val_set = fixed_windows(train, val, settings["eval_iters"])
    return evaluate(model, *val_set, torch.device("cpu"), contextlib.nullcontext())["loss"]


def pack_run(config: dict) -> list[str]:
    """Write the packed run; returns lines about size and loss. ValueError for one that cannot be packed."""
    kind = config["quantize"] or {8: "int8", 4: "int4"}.get(config["bits"], "")
    require(kind != "", f"bits={config['bits']} makes no sense; expected 8 or 4, or --quantize=nf4")
    require(kind in KINDS, f"quantize={kind!r:.60} is unknown; expected one of {', '.join(KINDS)}")
    require(config["method"] in ("plain", "gptq"), f"method={config['method']} is unknown; plain or gptq")
    require(not (typed("bits") and config["quantize"]), "--bits and --quantize say the same; leave one out")
    at_least(1, config, "tokens")
    require(config["method"] == "plain" or kind == "int4", "method=gptq is for int4: add --bits=4")
    source = run_folder(config["out_dir"])
    to = config["to"] or f"{config['out_dir'].rstrip('/')}-{kind}"
    target = new_run_folder(to, "to")
    model, tokenizer, saved = checkpoint.load_model(source / config["file"], torch.device("cpu"))
    on = saved["config"].get("technique", "")
    require("quantize" not in on, f"{source / config['file']} is packed already; name a run that is not")
    adapters.require_merged(saved, config["out_dir"])
    before, size = val_loss(model, saved), bytes_of(model)
    tensors = {}
    if config["method"] == "gptq":
        tensors = gptq.round_model(model, gptq.calibration(config, saved, tokenizer))
    packed(model, kind, tensors)
    techniques = ",".join(filter(None, ["quantize", on]))
    settings = saved["config"] | {"quantize": kind, "technique": techniques, "out_dir": to}
    rest = {name: value for name, value in saved.items() if name != "optimizer"}
    checkpoint.save_run(target, {**rest, "model": model.state_dict(), "config": settings})
    lines = [f"weights: {size / 1e6:.1f} MB -> {bytes_of(model) / 1e6:.1f} MB"]
    lines[0] += f"; {bits_per_weight(model):.3f} bits each, scales included"
    if before is not None:
        lines.append(f"val loss: {before:.4f} -> {val_loss(model, saved):.4f}")
    return [*lines, f"saved {target / 'best.pt'}"]


if __name__ == "__main__":
    config = override(globals())
    from techniques import quantize as this  # not this file, which is __main__: its classes are other ones

    print(*this.pack_run(config), sep="\n")
    end_script()
