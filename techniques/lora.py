r"""LoRA: train two thin matrices beside each frozen weight matrix (Hu et al., 2021).

    python train.py config/finetune_lora.py --init_from=out-base --dataset=mine     or any --technique=lora
    python sample.py --out_dir=out-shakespeare-char --adapter=out-lora     the base with the adapter of a run
    python -m techniques.lora merge --out_dir=out-lora --merge_to=out-merged

A layer y = W x, W (out, in), becomes y = W x + s B (A x) with A (rank, in) and B (out, rank). Only A and B
are trained: rank (in + out) numbers in place of in x out. B starts at zero, so that update 0 is the base, bit
for bit. s = alpha / rank, so that the learning rate depends less on the rank. Two variants:

    rslora   s = alpha / sqrt(rank): with alpha / rank high ranks learn ever less (Kalajdzievski, 2023)
    dora     W + s B A gives only the direction of each row; its magnitude is |W| + M (Liu et al., 2024). The
             paper trains the magnitude; here its change M is trained, 0 at first, so update 0 is exact. As in
             section 4.3 of the paper, no gradient goes through the norm of W + s B A.

A run's checkpoints hold everything, as always. lora.pt (see adapters.py) holds A and B (and M) alone; it is
written with best.pt, but not with shards. Merging writes W + s B A into a plain run without techniques.
"""

import math
import re
import sys
from fnmatch import fnmatchcase
from pathlib import Path

from config import end_script, given, override, require  # isort: skip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime import checkpoint
from runtime.folder import new_run_folder
from techniques import BLOCKS, adapters

# -----------------------------------------------------------------------------
lora_rank = 8  # rows of A and columns of B
lora_alpha = 16.0  # the update B A is multiplied by alpha / rank
lora_dropout = 0.0  # share of A's inputs set to zero in training
lora_targets = "q,k,v,o"  # layers, by name or pattern: 'q,v'  'mlp.up'  'blocks.1'  'blocks.*.attn.q'  '*'
lora_variant = ""  # '' | rslora | dora
# the command
out_dir = "out-lora"  # the run to merge
file = "best.pt"  # which checkpoint in it
adapter = ""  # merge this lora.pt, or that of this run's folder, into out_dir
merge_to = ""  # folder of the merged run
# -----------------------------------------------------------------------------

AFTER = ("quantize", *BLOCKS)  # LoRA on a quantized base: QLoRA (Dettmers et al., 2023)


class LoRALinear(nn.Module):
    """A frozen linear layer, quantized or not, and what is trained beside it: (..., in) -> (..., out)."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout=0.0, variant="", generator=None):
        """base: nn.Linear, or a layer with dequantize() -> (out, in). generator: of A's random numbers."""
        super().__init__()
        self.base, self.drop = base, nn.Dropout(dropout) if dropout else nn.Identity()
        self.scale = alpha / (math.sqrt(rank) if variant == "rslora" else rank)
        device = next(iter(base.state_dict().values())).device
        A = torch.empty(rank, base.in_features, device="meta" if device.type == "meta" else "cpu")
        bound = 1 / math.sqrt(base.in_features)  # as nn.Linear's own weights
        self.A = nn.Parameter(A.uniform_(-bound, bound, generator=generator).to(device))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        self.M = nn.Parameter(torch.zeros(base.out_features, device=device)) if variant == "dora" else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)  # (..., in) -> (..., out)
        change = F.linear(self.scale * F.linear(self.drop(x), self.A), self.B)  # (..., rank) -> (..., out)
        if self.M is None:
            return y + change
        bias = self.base.bias
        stretch = self.stretch(torch.promote_types(y.dtype, torch.float32))  # (out,)
        plain = y if bias is None else y - bias.to(y.dtype)
        return y + (stretch - 1).to(y.dtype) * plain + stretch.to(y.dtype) * change

    def stretch(self, dtype: torch.dtype) -> Tensor:
        """DoRA: (|W| + M) / |W + s B A| for each row, (out,); exactly 1 at first. A row of zeros stays so."""
        with torch.no_grad():
            W = weight_of(self.base).to(dtype)
            moved = W + self.scale * (self.B.to(dtype) @ self.A.to(dtype))
            before, after = W.norm(dim=1), moved.norm(dim=1).clamp(min=1e-12)
        return (before + self.M) / after

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weights (out, in) of the linear layer that computes the same. Summed in float64."""
        W = weight_of(self.base)
        total = W.double() + self.scale * (self.B.double() @ self.A.double())
        if self.M is not None:
            total *= self.stretch(torch.float64)[:, None]
        return total.to(W.dtype)


def weight_of(layer: nn.Module) -> Tensor:
    """The weights (out, in) of a linear layer; made anew where they are quantized."""
    return layer.dequantize() if hasattr(layer, "dequantize") else layer.weight


def layers(model) -> dict[str, nn.Module]:
    """{name: linear layer} of a model without adapters, but for a head that is tied to the embedding."""
    others = ("wte", "head") if model.config.tie_weights else ("wte",)  # merging would untie such a head
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) or hasattr(m, "dequantize")}
    return {name: layer for name, layer in linear.items() if name not in others}


def targeted(model, targets: str) -> dict[str, nn.Module]:
    """The layers that lora_targets names: 'q' means every name with that part, 'mlp' all layers inside.

    ValueError lists the layers if one of the names or patterns matches none.
    """
    there, found = layers(model), set()
    for target in targets.replace(" ", "").split(","):
        matches = [name for name in there if target and fnmatchcase(f".{name}.", f"*.{target}.*")]
        if not matches:
            kinds = ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in there))
            tied = "; a head that is tied to the embedding has no adapter" if model.config.tie_weights else ""
            raise ValueError(
                f"lora_targets={target!r:.60} matches no linear layer; expected names or patterns of "
                f"{kinds}, with N from 0 to {len(model.blocks) - 1}{tied}"
            )
        found.update(matches)
    return {name: layer for name, layer in there.items() if name in found}


def change_model(model, config: dict):
    """Freeze the model and put A and B beside the layers that lora_targets names; in place.

    A depends on seed alone: all ranks draw the same. ValueError for settings that make no sense.
    """
    rank, alpha, dropout, variant = (config[f"lora_{name}"] for name in "rank alpha dropout variant".split())
    require(rank >= 1, f"lora_rank={rank} makes no sense; expected 1 or more, 8 is usual")
    require(0 < alpha < math.inf, f"lora_alpha={alpha} makes no sense; expected above 0, 2 x rank is usual")
    require(0 <= dropout < 1, f"lora_dropout={dropout} makes no sense; expected 0 or more, below 1")
    require(variant in ("", "rslora", "dora"), f"lora_variant={variant!r:.60}; expected '', rslora or dora")
    found = targeted(model, config["lora_targets"])
    for name, layer in found.items():
        most = min(layer.in_features, layer.out_features)
        size = f"{name} is {layer.out_features} x {layer.in_features}"
        require(rank <= most, f"lora_rank={rank} is too high: {size}, so that its full rank is {most}")
    generator = torch.Generator().manual_seed(config.get("seed", 0))
    model.requires_grad_(False)
    for name, layer in found.items():
        adapted = LoRALinear(layer, rank, alpha, dropout, variant, generator)
        model.set_submodule(name, adapted.train(layer.training))
    adapters.hashes.clear()  # another run begins
    return model


def after_save(path: Path, saved: dict, config: dict) -> None:
    """Write lora.pt with each best.pt, and with the first checkpoint if there is none yet."""
    if path.name.startswith("best") or not (path.parent / adapters.FILE).exists():
        adapters.write(path.parent, saved["model"], saved["step"], config)


def attach(model, where: str) -> str:
    """Put a saved adapter on the base that it was trained on, in place of any other. Returns a line about it.

    where: a lora.pt, or a run's folder. ValueError if it is not for these weights, or does not fit.
    """
    saved, path = adapters.read(where)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoRALinear):
            model.set_submodule(name, layer.base)
    ours = adapters.hash_of(model.state_dict())
    require(
        ours == saved["base"],
        f"{path} was trained on the weights {saved['base']:.12}, and these are {ours:.12}; expected the run "
        "that its training started from",
    )
    settings = {f"lora_{name}": saved[name] for name in adapters.SETTINGS}
    change_model(model, {"lora_dropout": 0.0, **settings})
    adapters.put(saved, path, adapters.split(model.state_dict())[0])
    return f"adapter {path}: step {saved['step']}, rank {saved['rank']}, alpha {saved['alpha']:g}"


def merge(model) -> int:
    """Make a plain GPT of a model with adapters or packed layers, in place. Returns how many were packed."""
    quantized = sum(hasattr(layer, "dequantize") for layer in model.modules())
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoRALinear):
            plain = layer.base.plain() if hasattr(layer.base, "dequantize") else layer.base
            plain.weight = nn.Parameter(layer.merged())
            model.set_submodule(name, plain)
        elif hasattr(layer, "dequantize") and not name.endswith(".base"):
            model.set_submodule(name, layer.plain())
    if model.config.tie_weights and not isinstance(model.head, nn.Linear):
        model.head = nn.Linear(model.config.n_embd, model.config.vocab_size, bias=False, device="meta")
        model.head.weight = model.wte.weight
    return quantized


def merged_run(config: dict) -> list[str]:
    """Write the run out_dir/file, or that with an adapter, into merge_to as a plain one. Returns lines."""
    source = checkpoint.run_folder(config["out_dir"])
    folder = new_run_folder(config["merge_to"], "merge_to")
    model, _, saved = checkpoint.load_model(source / config["file"], torch.device("cpu"))
    lines = [attach(model, config["adapter"])] if config["adapter"] else []
    adapted = sum(isinstance(layer, LoRALinear) for layer in model.modules())
    require(adapted > 0, f"{source / config['file']} has no LoRA to merge; name one with --adapter=PATH")
    quantized = merge(model)
    if config["adapter"]:
        saved["val_loss"] = math.inf  # that of the merged model is not known
    if quantized:
        lines.append(f"{quantized} quantized layers are dequantized: float32 again, as large as before")
    adapters.write_plain(folder, model, saved, config["merge_to"])
    return [*lines, f"merged {adapted} layers; saved {folder / 'best.pt'}"]


if __name__ == "__main__":
    if sys.argv[1:2] == ["merge"]:
        del sys.argv[1]
    config = override(globals())
    for name in given:
        require(not name.startswith("lora_"), f"--{name} is for training; merging takes it from the run")
    require(config["merge_to"] != "", "merge_to is missing; name a folder, such as --merge_to=out-merged")
    from techniques import lora  # not this file, which is __main__: its LoRALinear is another class

    print(*lora.merged_run(config), sep="\n")
    end_script()
