"""How good is a model? Loss, perplexity, bits per byte, or exact answers, on a split or on any text file.

    python evaluate.py --out_dir=out-shakespeare-char
    python evaluate.py --out_dir=out-shakespeare-char --split=train
    python evaluate.py --out_dir=out-shakespeare-char --input=my.txt --plot      read as data.py reads it
    python evaluate.py --out_dir=out-sft --task=exact_match        how many replies are right, word for word

The loss is a mean over targets: the nats are summed, the targets are counted, and the sum is divided once.
So it depends neither on the batch size, nor on the number of processes, nor on the length of the last window.
"""

import itertools
import math
from dataclasses import astuple, dataclass
from pathlib import Path

from config import at_least, end_script, is_out_of_memory, override, require  # isort: skip
import numpy as np
import torch
import torch.nn.functional as F

import techniques
from data import Windows, open_windows, windows_of_text
from machine import distributed, hardware
from machine.stages import Stages
from machine.threads import use_saved
from runtime import checkpoint
from runtime.guard import first_not_finite
from runtime.plot import open_pyplot
from runtime.trust import check_types
from text.settle import meta_of, require_same_text, tokenizer_of

# -----------------------------------------------------------------------------
out_dir = "out-shakespeare-char"  # folder of the run
file = "best.pt"  # which checkpoint in it: best.pt | ckpt.pt | ckpt_000500.pt
adapter = ""  # of LoRA, on top of this run: a lora.pt, or the folder of a run that has one
task = "loss"  # loss | exact_match: generate the likeliest reply to each prompt, and compare
split = "val"  # train | val | test of the dataset that the run was trained on
dataset = ""  # another dataset with the run's tokenizer; '' = the one that the run was trained on
input = ""  # a text to evaluate instead of a split: a file (also .gz or .zip), a folder, or a built-in text
format = ""  # of input: '' jsonl for JSON rows, else as the run's dataset | text | lines | jsonl
batch_size = 0  # windows per batch; 0 = up to 8,192 tokens, and up to 256 MB of logits
device = "auto"  # auto | cpu | cuda | cuda:N | mps
dtype = "auto"  # auto | float32 | bfloat16 | float16
plot = False  # save loss_by_position.png: how much does longer context help?
# -----------------------------------------------------------------------------

EVAL_TOKENS = 4096  # tokens that count as one of train.py's eval_iters, whatever the batch size


def spread(windows: Windows, count: int) -> np.ndarray:
    """Numbers of `count` windows, spread evenly over a split; of all windows if there are fewer. int64."""
    count = min(count, windows.n_windows)
    return np.linspace(0, windows.n_windows - 1, count).round().astype(np.int64)


def fixed_windows(train: Windows, val: Windows, eval_iters: int) -> tuple[tuple, tuple]:
    """The windows that train.py evaluates, always the same: ((train, their numbers), (val, their numbers)).

    From each split, eval_iters * EVAL_TOKENS tokens, but at most as many windows as val has. With
    eval_iters=0, as many windows as val has.
    """
    count = math.ceil(eval_iters * EVAL_TOKENS / val.block_size) if eval_iters else val.n_windows
    count = min(count, val.n_windows)
    return (train, spread(train, count)), (val, spread(val, count))


@dataclass
class Sums:
    """Sums over windows. A window has n nats and t targets; these products give the standard error."""

    nats: float = 0.0  # n
    targets: float = 0.0  # t
    nats_nats: float = 0.0  # n * n
    nats_targets: float = 0.0  # n * t
    targets_targets: float = 0.0  # t * t
    bytes: float = 0.0  # UTF-8 bytes of the targets


def standard_error(sums: Sums) -> float:
    """Standard error of the loss, a ratio of two sums, if windows are independent (Cochran 1977, chapter 6).

    For n_i nats and t_i targets in window i, with loss = sum(n_i) / sum(t_i):

        standard error = sqrt(sum((n_i - loss * t_i)**2)) / sum(t_i)

    The square is multiplied out, so that one pass over the windows is enough, before the loss is known.
    """
    loss = sums.nats / sums.targets
    squares = sums.nats_nats - 2 * loss * sums.nats_targets + loss * loss * sums.targets_targets
    return math.sqrt(max(0.0, squares)) / sums.targets  # rounding can leave a sum just below zero


@torch.no_grad()
def evaluate(
    model, windows, indices, device, autocast, rank=0, world_size=1, batch_size=0, token_bytes=None
) -> dict:
    """Loss of a model on the given windows. All ranks share the work and return the same numbers.

    model: a GPT, (B, T) ids -> (B, T, V) logits. indices: window numbers. batch_size: windows; 0: up to
    8,192 tokens and 256 MB of logits. token_bytes: (V,), the UTF-8 bytes of each token.

    Returns a dict: loss (nats per target), standard_error of the loss, targets (their number), perplexity,
    bits_per_byte (0 without token_bytes), by_position, (T,): the mean loss at each position of a window, and
    by_corpus: {name: loss} of the datasets of a mixture.
    ValueError if the windows have no target, or if the loss is not finite.
    """
    was_training = model.training
    model.eval()
    T = windows.block_size
    tokens = min(8192, 2**26 // model.config.vocab_size)  # per batch; 2**26 float32 logits are 256 MB
    batch_size = batch_size or max(1, tokens // T)
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    sums = Sums()
    nats_at, targets_at = np.zeros(T), np.zeros(T)  # sums at each position of a window
    names = getattr(windows, "names", [])  # of the datasets of a mixture
    in_corpus = np.zeros((2, len(names)))  # nats and targets in each of them
    rounds = math.ceil(len(batches) / world_size)
    for i in range(rank, rounds * world_size, world_size):
        x, y = windows.window_batch(batches[min(i, len(batches) - 1)])  # (B, T)
        if i >= len(batches):  # no batch is left for this rank; fsdp still needs its forward pass
            y = torch.full_like(y, -1)  # nothing is scored
        nats = nats_of_targets(model, x, y, device, autocast).numpy()
        scored = (y != -1).numpy()  # (B, T)
        n, t = nats.sum(1), scored.sum(1)  # (B,), (B,): one number per window
        sums.nats += n.sum()
        sums.targets += t.sum()
        sums.nats_nats += n @ n
        sums.nats_targets += n @ t
        sums.targets_targets += t @ t
        if names:
            np.add.at(in_corpus, (slice(None), windows.corpus_at(batches[min(i, len(batches) - 1)])), (n, t))
        if token_bytes is not None:
            sums.bytes += token_bytes[y.numpy()[scored]].sum()
        width = nats.shape[1]  # unpacked batches are as wide as their longest sample
        nats_at[:width] += nats.sum(0)
        targets_at[:width] += scored.sum(0)
    totals = distributed.sum_over_ranks([*nats_at, *targets_at, *astuple(sums), *in_corpus.flat], device)
    nats_at, targets_at = np.array(totals[: 2 * T]).reshape(2, T)
    end = len(totals) - in_corpus.size
    sums = Sums(*map(float, totals[2 * T : end]))
    nats_in, targets_in = np.array(totals[end:]).reshape(2, len(names)).tolist()
    model.train(was_training)
    if not sums.targets:
        raise ValueError(f"{windows.path} has no target to score: all of its text is context")
    loss = sums.nats / sums.targets
    if not math.isfinite(loss):  # this also ends a training run before it saves such weights
        bad = first_not_finite(model.named_parameters())
        cause = f"not finite: {bad}" if bad else "the weights are finite, the logits are not"
        advice = "take an older checkpoint, or --dtype=float32; in training a smaller learning_rate"
        raise ValueError(f"the loss on {windows.path} is {loss}: {cause}; {advice}")
    return dict(
        loss=loss,
        standard_error=standard_error(sums),
        targets=int(sums.targets),
        perplexity=math.exp(min(loss, 700)),
        bits_per_byte=sums.nats / math.log(2) / sums.bytes if sums.bytes else 0.0,
        by_position=nats_at / np.maximum(targets_at, 1),
        by_corpus={name: n / max(t, 1) for name, n, t in zip(names, nats_in, targets_in, strict=True)},
    )


def nats_of_targets(model, x: torch.Tensor, y: torch.Tensor, device, autocast) -> torch.Tensor:
    """The loss of each target in nats, (B, T) float64 on the CPU; 0 where y is -1. x, y: (B, T) int64.

    If memory runs out, the batch is halved and each half is tried again.
    """
    try:
        with autocast:
            logits = model(x.to(device)).float()  # (B, T, V)
        nats = F.cross_entropy(logits.transpose(1, 2), y.to(device), ignore_index=-1, reduction="none")
        return nats.cpu().double()
    except (RuntimeError, MemoryError) as error:
        # Not with several processes: all of them have to call the model equally often.
        if not is_out_of_memory(error) or len(x) == 1 or torch.distributed.is_initialized():
            raise
    halves = zip(x.tensor_split(2), y.tensor_split(2), strict=True)
    return torch.cat([nats_of_targets(model, *half, device, autocast) for half in halves])


@torch.no_grad()
def exact_match(model, tokenizer, replies, device, rank=0, world_size=1, batch_size=0) -> tuple[dict, list]:
    """Generate the likeliest reply to each prompt until the model stops, and compare it with the wanted one.

    replies: [(prompt ids, wanted ids), ...], see Windows.replies(). A reply has room for twice the tokens of
    the longest wanted one, and no more than the window has. batch_size: prompts; 0: up to 64, and up to 8,192
    columns in the key/value cache. All ranks share the work.

    Returns ({"replies", "exact", "stopped"}: how many, the same on all ranks; [(prompt, wanted, generated),
    ...], the texts of those that differ, of this rank). stopped: that ended by themselves.
    """
    T, longest = model.config.block_size, max(len(wanted) for _, wanted in replies)
    widest = min(T, max(len(prompt) for prompt, _ in replies) + 2 * longest)
    batch_size = batch_size or max(1, min(64, 8192 // widest))
    order = sorted(range(len(replies)), key=lambda i: len(replies[i][0]))  # so that little is padding
    stops, counts, wrong = tokenizer.stop_ids, dict(replies=0, exact=0, stopped=0), {}
    for first in range(rank * batch_size, len(order), world_size * batch_size):
        numbers = order[first : first + batch_size]
        prompts = [replies[i][0] for i in numbers]
        rooms = [min(2 * longest, T + 1 - len(prompt)) for prompt in prompts]  # the last token is not read
        columns = list(model.stream(prompts, max(rooms), temperature=0, stop_tokens=stops))
        for row, (i, room) in enumerate(zip(numbers, rooms, strict=True)):
            new = [column[row] for column in columns if column[row] >= 0]
            stopped = len(new) < room  # else it was cut
            wanted = itertools.takewhile(lambda token: token not in stops, replies[i][1])
            texts = [tokenizer.decode(ids) for ids in (prompts[row], [*wanted], new[:room])]
            counts["replies"] += 1
            counts["stopped"] += stopped
            counts["exact"] += stopped and texts[1] == texts[2]
            if not stopped or texts[1] != texts[2]:
                wrong[i] = texts
    totals = distributed.sum_over_ranks(list(counts.values()), device)
    return dict(zip(counts, map(int, totals), strict=True)), [wrong[i] for i in sorted(wrong)]


def plot_by_position(losses: np.ndarray, path: Path) -> None:
    """Draw the mean loss at each position of a window, losses (T,), to a PNG file."""
    pyplot = open_pyplot()
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
    require(task in ("loss", "exact_match"), f"--task={task} is unknown; expected loss or exact_match")
    require(not plot or task == "loss", f"--plot draws losses, and --task={task} has none")
    rank, world_size, device = distributed.start(device)
    folder = checkpoint.run_folder(out_dir)
    stages = Stages(f"reading {folder / file}")
    model, text_tokenizer, saved = checkpoint.load_model(folder / file, device)
    on_top = techniques.load("lora")[0].attach(model, adapter) if adapter else ""
    use_saved(saved["config"])
    check_types(saved["config"], {"dataset": str, "pack": bool}, f"{file}: config")
    check_types(saved["dataset"], {"name": str}, f"{file}: dataset")
    autocast, precision = hardware.choose_precision(dtype, device)
    block_size = model.config.block_size
    if input:
        require(not dataset, f"--input={input} and --dataset={dataset} are two texts; give one")
        like = "lines" if saved["dataset"].get("format") == "lines" else "text"
        windows = windows_of_text(input, text_tokenizer, block_size, format, like, say=rank == 0)
        what = input
    else:
        require(not format, f"--format={format} is for --input=FILE; a split is read as it was prepared")
        name = dataset or saved["config"]["dataset"]
        meta = meta_of(name)
        advice = "evaluate on a file: --input=FILE, or on any dataset: --dataset=NAME"
        if not dataset:
            require_same_text(saved["dataset"], meta, name, out_dir, advice)
        checkpoint.check_same(saved, model.config, tokenizer_of(name), out_dir)
        pack = saved["config"]["pack"] or meta["format"] == "text"
        windows = open_windows(name, split, block_size, pack=pack, may_be_short=True)
        what = f"{split} split of {meta['name']}"
    where = f"({out_dir}/{file}, step {saved['step']})"
    notes = [on_top, *windows.notes] if on_top else list(windows.notes)
    if windows.n_dropped:
        notes.append(
            f"{windows.n_dropped:,} samples are longer than a window of {block_size}, and are left out"
        )
    share = (rank, world_size, batch_size)
    if task == "loss":
        indices = spread(windows, windows.n_windows)
        stages.begin(f"evaluating {len(indices):,} windows")
        found = evaluate(model, windows, indices, device, autocast, *share, text_tokenizer.token_bytes())
        notes.append(
            f"{what}: loss {found['loss']:.4f} +- {found['standard_error']:.4f} nats per token, "
            f"perplexity {found['perplexity']:.3f}, {found['bits_per_byte']:.4f} bits per byte, "
            f"{found['targets']:,} targets {where}"
        )
        notes += [f"  {name}: loss {loss:.4f}" for name, loss in found["by_corpus"].items()]
    else:
        replies = windows.replies()
        stages.begin(f"generating {len(replies):,} replies")
        model.to(getattr(torch, precision))  # the weights are cast once, as in sample.py
        counts, wrong = exact_match(model, text_tokenizer, replies, device, *share)
        notes += [
            "wrong: {!r:.300}\n  expected {!r:.300}\n  got {!r:.300}".format(*each) for each in wrong[:3]
        ]
        n, exact, stopped = counts.values()
        notes.append(
            f"{what}: exact match {exact / n:.1%} ({exact:,} of {n:,} replies), "
            f"{stopped / n:.1%} stopped by themselves {where}"
        )
    stages.end()
    if rank == 0:
        print(*notes, sep="\n")
        if plot:
            plot_by_position(found["by_position"], folder / "loss_by_position.png")
            print(f"saved {folder / 'loss_by_position.png'}")
    end_script()
