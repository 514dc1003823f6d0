"""How good is a model: loss, perplexity and bits per byte, on fixed windows of a split or of any text file.

    python evaluate.py --out_dir=out-shakespeare-char
    python evaluate.py --out_dir=out-shakespeare-char --split=train
    python evaluate.py --out_dir=out-shakespeare-char --input=my.txt --plot

The loss is a mean over targets: nats are summed, targets are counted, and the division happens once. So it
does not depend on the batch size, on the number of processes or on how long the last window is.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from config import at_least, is_out_of_memory, override
from data import Windows, windows_of_text
from machine import distributed, hardware
from runtime import checkpoint, curve
from runtime.guard import first_not_finite
from runtime.trust import check_types
from text.prepare import folder_of
from tokenizer import load_any

# -----------------------------------------------------------------------------
out_dir = "out-shakespeare-char"  # folder of the run
file = "best.pt"  # which checkpoint in it: best.pt | ckpt.pt | ckpt_000500.pt
split = "val"  # train | val | test of the dataset that the run was trained on
input = ""  # a text file to evaluate instead of a split
batch_size = 0  # windows per batch; 0 = as many as fit in 256 MB of logits
device = "auto"  # auto | cpu | cuda | cuda:N | mps
dtype = "auto"  # auto | float32 | bfloat16 | float16
plot = False  # save loss_by_position.png: how much does longer context help?
# -----------------------------------------------------------------------------


def spread(windows: Windows, count: int) -> np.ndarray:
    """The numbers of `count` windows spread evenly over a split, or of all of them if there are fewer."""
    count = min(count, windows.n_windows)
    return np.linspace(0, windows.n_windows - 1, count).round().astype(np.int64)


@torch.no_grad()
def evaluate(
    model, windows, indices, device, autocast, rank=0, world_size=1, batch_size=0, token_bytes=None
) -> dict:
    """Loss of a model on the given fixed windows; all ranks share the work and get the same answer.

    model: a GPT, (B, T) ids -> (B, T, V) logits. indices: window numbers. token_bytes: (V,) UTF-8 bytes of
    each token. Returns loss (nats per target), standard_error (of that mean, windows taken as independent),
    targets, perplexity, bits_per_byte (0 without token_bytes) and by_position, a (T,) array: the mean loss at
    each position of a window. ValueError if the windows have no target at all, or the loss is not finite.
    """
    was_training = model.training
    model.eval()
    T = windows.block_size
    tokens = min(8192, 2**26 // model.config.vocab_size)  # of a batch: at most 256 MB of float32 logits
    batch_size = batch_size or max(1, tokens // T)
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    sums = np.zeros(6)  # over windows: nats, targets, bytes; nats^2, nats x targets, targets^2
    nats_at, targets_at = np.zeros(T), np.zeros(T)
    for i in range(rank, -(-len(batches) // world_size) * world_size, world_size):  # all ranks equally often
        x, y = windows.window_batch(batches[min(i, len(batches) - 1)])
        if i >= len(batches):
            y = torch.full_like(y, -1)  # a rank without a batch of its own computes along (fsdp needs it)
        nats = nats_of_targets(model, x, y, device, autocast).numpy()
        scored = (y != -1).numpy()  # (B, T)
        bytes_ = token_bytes[y.numpy()[scored]].sum() if token_bytes is not None else 0
        n, t = nats.sum(1), scored.sum(1)  # (B,): one number per window
        sums += [n.sum(), t.sum(), bytes_, n @ n, n @ t, t @ t]
        nats_at[: nats.shape[1]] += nats.sum(0)
        targets_at[: nats.shape[1]] += scored.sum(0)
    totals = np.array(distributed.sum_over_ranks([*sums, *nats_at, *targets_at], device))
    n, t, bytes_, nn, nt, tt = totals[:6].tolist()
    nats_at, targets_at = totals[6:].reshape(2, T)
    model.train(was_training)
    if not t:
        raise ValueError(f"{windows.path} has no target to score: all of its text is context")
    loss = n / t
    if not math.isfinite(loss):  # training stops here, too, before it saves such weights
        bad = first_not_finite(model.named_parameters())
        cause = f"not finite: {bad}" if bad else "the weights are finite, the logits are not"
        advice = "take an older checkpoint, or --dtype=float32; in training a smaller learning_rate"
        raise ValueError(f"the loss on {windows.path} is {loss}: {cause}; {advice}")
    return dict(
        loss=loss,
        standard_error=math.sqrt(max(0.0, nn - 2 * loss * nt + loss * loss * tt)) / t,
        targets=int(t),
        perplexity=math.exp(min(loss, 700)),
        bits_per_byte=n / math.log(2) / bytes_ if bytes_ else 0.0,
        by_position=nats_at / np.maximum(targets_at, 1),
    )


def nats_of_targets(model, x: torch.Tensor, y: torch.Tensor, device, autocast) -> torch.Tensor:
    """Nats of each target, (B, T) float64 on the CPU, 0 where y is -1; by halves where memory runs out."""
    try:
        with autocast:
            logits = model(x.to(device)).float()  # (B, T, V)
        nats = F.cross_entropy(logits.transpose(1, 2), y.to(device), ignore_index=-1, reduction="none")
        return nats.cpu().double()
    except (RuntimeError, MemoryError) as error:
        # (of several processes all have to call the model equally often)
        if not is_out_of_memory(error) or len(x) == 1 or torch.distributed.is_initialized():
            raise
    halves = zip(x.tensor_split(2), y.tensor_split(2), strict=True)
    return torch.cat([nats_of_targets(model, *half, device, autocast) for half in halves])


def plot_by_position(losses: np.ndarray, path: Path) -> None:
    """Draw losses (T,), the mean loss at each position of a window, to a PNG file."""
    pyplot = curve.open_pyplot()
    pyplot.figure(figsize=(8, 4))
    pyplot.plot(np.arange(1, len(losses) + 1), losses)
    pyplot.xlabel("tokens of context")
    pyplot.ylabel("loss (nats per token)")
    pyplot.tight_layout()
    pyplot.savefig(path, dpi=100)
    pyplot.close()


if __name__ == "__main__":
    config = override(globals())
    at_least(0, config, "batch_size")
    rank, world_size, device = distributed.start(device)
    folder = checkpoint.run_folder(out_dir)
    model, text_tokenizer, saved = checkpoint.load_model(folder / file, device)
    check_types(saved["config"], {str: "dataset", bool: "pack"}, f"{file}: config")
    check_types(saved["dataset"], {str: "name"}, f"{file}: dataset")
    autocast, _ = hardware.choose_precision(dtype, device)
    block_size, dataset = model.config.block_size, saved["config"]["dataset"]
    if input:
        windows, what = windows_of_text(input, text_tokenizer, block_size), input
    else:
        checkpoint.check_same(saved, model.config, load_any(folder_of(dataset)), out_dir)
        windows = Windows(dataset, split, block_size, pack=saved["config"]["pack"])
        what = f"{split} split of {saved['dataset']['name']}"
    indices = spread(windows, windows.n_windows)
    found = evaluate(
        model, windows, indices, device, autocast, rank, world_size, batch_size, text_tokenizer.token_bytes()
    )
    if rank == 0:
        print(
            f"{what}: loss {found['loss']:.4f} +- {found['standard_error']:.4f} nats per token, "
            f"perplexity {found['perplexity']:.3f}, {found['bits_per_byte']:.4f} bits per byte, "
            f"{found['targets']:,} targets ({out_dir}/{file}, step {saved['step']})"
        )
        if plot:
            plot_by_position(found["by_position"], folder / "loss_by_position.png")
            print(f"saved {folder / 'loss_by_position.png'}")
