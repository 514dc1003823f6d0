"""How should a base read a longer text? Measures the ways that runtime/transfer.py could take.

    python -m lab.longer                    10 minutes on two CPU cores
    python -m lab.longer 20                 20 updates in place of 600: does everything run?

A small model learns Python's own source by characters, with windows of 64. Each way then makes it read 128,
and it makes 100 updates more. Val loss is shown for the first 64 tokens of a window and for the rest.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

import data
from config import start_script
from lab.measure import Run, settings_of
from runtime import transfer
from text import prepare
from text.corpora import open_corpus

OLD, NEW = 64, 128
SHAPE = dict(n_layer=4, n_head=4, n_embd=128, optimizer="adamw", dtype="float32", lr_schedule="linear")


def ways(arch: str, model) -> dict[str, dict]:
    """{way: changed fields of the model's shape, or its new "wpe.weight"}; the first is transfer.py's."""
    shape, weights = model.config, model.state_dict()
    saved = dict(model=weights, model_config={})
    config = dict(block_size=NEW, rope_theta=shape.rope_theta)
    transfer.lengthen(saved, shape, config)
    if arch == "llama":
        ours = {"rope_theta": config["rope_theta"]}
        return {"NTK-aware": ours, "the same base": {}, "divided": {"rope_scaling": f"linear {NEW / OLD}"}}
    old = model.wpe.weight.detach()
    new = 0.02 * torch.randn(NEW - OLD, old.size(1))
    found = {"interpolated": saved["model"]["wpe.weight"]}
    found["kept, the last one repeated"] = torch.cat((old, old[-1:].expand(NEW - OLD, -1)))
    found["kept, all of them repeated"] = torch.cat((old, old))
    found["kept, new ones at random"] = torch.cat((old, new))
    return {way: {"wpe.weight": rows} for way, rows in found.items()}


@torch.no_grad()
def val_losses(model, folder: Path) -> tuple[float, float]:
    """(mean loss on the first OLD tokens of 128 windows of NEW, mean loss on the others)."""
    x, y = data.Windows(folder, "val", NEW).window_batch(range(128))
    nats = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none", ignore_index=-1)
    by_position = nats.view(y.shape).sum(0) / (y != -1).sum(0)  # (NEW)
    return by_position[:OLD].mean().item(), by_position[OLD:].mean().item()


def lines(arch: str, folder: Path, vocab_size: int, updates: int) -> Iterator[str]:
    """A line for each way: val losses at update 0, after 20 and after 100."""
    settings = settings_of(arch=arch, block_size=OLD, batch_size=16, learning_rate=2e-3, **SHAPE)
    base = Run({**settings, "max_iters": updates}, vocab_size)
    windows = data.Windows(folder, "train", OLD)
    for step in range(updates):
        base.update(step, *windows.batch(step, 16))
    windows = data.Windows(folder, "train", NEW)
    for way, changes in ways(arch, base.model).items():
        settings = settings_of(arch=arch, block_size=NEW, batch_size=8, learning_rate=3e-4, **SHAPE)
        run = Run({**settings, "max_iters": 100}, vocab_size)
        rows = {name: changes[name] for name in changes if name == "wpe.weight"}
        run.model.load_state_dict({**base.model.state_dict(), **rows})
        vars(run.model.config).update({name: value for name, value in changes.items() if name not in rows})
        found = [val_losses(run.model, folder)]
        for step in range(min(updates, 100)):
            run.update(step, *windows.batch(step, 8))
            if step + 1 in (20, 100):  # and at update 0
                found.append(val_losses(run.model, folder))
        yield f"{arch}: {way:28} " + "   ".join(f"{first:.3f} {rest:.3f}" for first, rest in found)


if __name__ == "__main__":
    start_script(__doc__)
    updates = int(sys.argv[1]) if sys.argv[1:] else 600
    with tempfile.TemporaryDirectory() as folder:
        text = "".join(text for text, _ in open_corpus("python").chunks())
        Path(folder, "python.txt").write_text(text, encoding="utf-8")
        prepare.DATASETS = Path(folder)
        meta = prepare.prepare("source", str(Path(folder, "python.txt")))
        for arch in ("llama", "gpt2"):
            for line in lines(arch, Path(folder, "source"), meta["vocab_size"], updates):
                print(line, flush=True)
