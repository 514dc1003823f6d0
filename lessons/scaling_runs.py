"""The runs of lesson 29: models of two blocks and several widths, trained on two amounts of text.

    python -m lessons.scaling_runs        half an hour on one core; writes lessons/scaling_runs.csv

The text is a generated play (text/verse.py), whose entropy is known, and so long that no letter is read
twice. The val text is another play by the same grammar. It is scored as in lesson 28a: each letter with half
a window before it, or more.
"""

import torch
import torch.nn.functional as F

from config import ROOT, start_script
from lab.measure import Run, settings_of
from lab.scaling import weights_of
from text.corpora import open_corpus

FILE = ROOT / "lessons" / "scaling_runs.csv"
COMMAND = "python -m lessons.scaling_runs"
RUNS = [  # (width, updates, seed); those of width 128 are kept from the fits
    (width, updates, seed)
    for updates in (200, 800)
    for seed in (1, 2)
    for width in (16, 24, 32, 48, 64, 96, 128)
    if width < 128 or seed == 1
]
B, T = 8, 128


def ids_of(size: int, seed: int, vocabulary: str) -> torch.Tensor:
    """A generated play of so many letters, as ids."""
    text = "".join(part for part, _ in open_corpus("builtin:verse", seed, size).chunks())
    code = {letter: i for i, letter in enumerate(vocabulary)}
    return torch.tensor([code[letter] for letter in text])


@torch.no_grad()
def val_loss(model, ids: torch.Tensor) -> float:
    """Nats per letter, each with T / 2 letters before it at least."""
    model.eval()
    windows = ids.unfold(0, T + 1, T // 2)  # (n, T + 1)
    nats = [F.cross_entropy(model(w[:, :-1])[:, T // 2 :].flatten(0, 1), w[:, T // 2 + 1 :].flatten(),
                            reduction="none") for w in windows.split(32)]  # fmt: skip
    return torch.cat(nats).double().mean().item()


def one_run(width: int, updates: int, seed: int, text: torch.Tensor, val: torch.Tensor, V: int) -> tuple:
    """Train one model; returns (width, seed, weights without the embedding, letters read, val loss)."""
    shape = dict(n_layer=2, n_embd=width, n_head=max(1, width // 32), block_size=T, batch_size=B)
    run = Run(settings_of("config/verse.py", **shape, max_iters=updates, dtype="float32", seed=seed), V)
    rows = text[: updates * B * T + 1]
    for step in range(updates):
        at = rows[step * B * T : (step + 1) * B * T + 1]
        run.update(step, at[:-1].view(B, T), at[1:].view(B, T))
    return width, seed, weights_of(run.model), updates * B * T, round(val_loss(run.model, val), 5)


def texts(seed: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """A play to train on, one to validate on, and how many letters the plays are written with."""
    play = "".join(part for part, _ in open_corpus("builtin:verse", 1, 300_000).chunks())
    vocabulary = "".join(sorted({*play}))
    return ids_of(800 * B * T + 1, seed, vocabulary), ids_of(65_536, 3, vocabulary), len(vocabulary)


def main() -> None:
    rows = [f"# {COMMAND}", "width,seed,weights,letters,loss"]
    for width, updates, seed in RUNS:
        rows.append(",".join(map(str, one_run(width, updates, seed, *texts(seed)))))
        print(rows[-1], flush=True)
    FILE.write_text("\n".join([*rows, ""]), encoding="utf-8")  # at the end: the old ones stay until then


if __name__ == "__main__":
    start_script(__doc__)
    main()
