"""Mixtures: train on several datasets at once, each with a fixed share of the windows.

    python data.py --input=verse --name=verse-as --tokenizer=shakespeare_char      the same tokenizer for both
    python train.py config/tiny.py --dataset=shakespeare_char:0.7,verse-as:0.3
    python -m techniques.mixture --runs=out-1,out-2,out-3        a picture: val losses against the shares

Of any 1,000 windows that follow each other in the run's series, exactly 700 come from the first and 300 from
the second dataset. Their order is drawn by the seed, once, and repeats. Each dataset goes on through epochs
of its own: so each of its targets is scored once in each of its epochs, however small its share is.

The val loss of the run, by which best.pt is chosen, is over fixed windows of all datasets, in proportion to
the shares: nats and targets are summed, and divided once. Each dataset's own is printed and recorded, too.
An epoch of the mixture is as many windows as there are at these shares with none of them twice.
"""

import json
from pathlib import Path

from config import end_script, override, require  # isort: skip
import numpy as np
import torch

from data import Windows
from runtime.curve import read_rows
from runtime.folder import run_folder
from runtime.plot import DPI, open_pyplot, save_figure
from runtime.trust import check_types
from text.mixture import UNIT, is_mixture, parts_of

# -----------------------------------------------------------------------------
runs = ""  # of the command: folders of runs with mixtures of the same datasets, out-1,out-2,out-3
picture = "mixtures.png"  # of the command: where it is drawn
# -----------------------------------------------------------------------------


class Mixture(Windows):
    """Windows of several datasets: what data.Windows does, for a setting such as "a:0.7,b:0.3".

    corpora: the Windows of each. may_be_short: not for a mixture, all windows have block_size tokens.
    """

    def __init__(self, name: str, split: str, block_size: int, seed=1337, pack=True, may_be_short=False):
        require(pack, "pack=False groups samples by their length, which a mixture cannot; leave it out")
        shares = parts_of(name)
        self.names = [Path(each).name for each in shares]
        self.corpora = [Windows(each, split, block_size, seed) for each in shares]
        self.shares = np.array(list(shares.values()))
        self.block_size, self.seed, self.path = block_size, seed, self.corpora[0].path
        self.n_tokens = sum(each.n_tokens for each in self.corpora)
        self.n_dropped = sum(each.n_dropped for each in self.corpora)
        self.sizes = np.array([each.n_windows for each in self.corpora])
        most = (self.sizes * UNIT // self.shares).min()  # windows at these shares, none twice
        self.kept = np.maximum(1, most * self.shares // UNIT)  # of each dataset
        self.n_windows = int(self.kept.sum())
        self.notes = [
            f"  {share / UNIT:.1%} {each}: {its.n_tokens:,} tokens, {its.n_windows:,} windows"
            for each, share, its in zip(self.names, self.shares, self.corpora, strict=True)
        ]
        self.plan([(0, self.shares)])

    def plan(self, stages: list[tuple[int, np.ndarray]]) -> None:
        """Set the shares (thousandths of each dataset) from the window with this number on, for each stage.

        In a later stage, each dataset goes on where it is.
        """
        rng = np.random.default_rng([self.seed, UNIT])
        self.stages = []
        for first, shares in stages:
            before = self.counts(first) if self.stages else np.zeros(len(shares), dtype=np.int64)
            order = rng.permutation(np.repeat(np.arange(len(shares)), shares))  # (UNIT,): dataset numbers
            self.stages.append((first, before, order))

    def counts(self, number: int) -> np.ndarray:
        """How many of the first `number` windows of the series come from each dataset."""
        first, before, order = [stage for stage in self.stages if stage[0] <= number][-1]
        rounds, rest = divmod(number - first, UNIT)
        n = len(self.corpora)
        return before + rounds * np.bincount(order, minlength=n) + np.bincount(order[:rest], minlength=n)

    def place_of(self, number: int) -> tuple[int, int]:
        """Window `number` of the series: (number of its dataset, number in that dataset's own series)."""
        first, _, order = [stage for stage in self.stages if stage[0] <= number][-1]
        corpus = order[(number - first) % UNIT]
        return corpus, self.counts(number)[corpus]

    def at(self, numbers) -> tuple[torch.Tensor, torch.Tensor]:
        """See Windows."""
        corpora, own = np.array([self.place_of(number) for number in numbers]).T
        return self.collect(corpora, own, lambda windows, numbers: windows.at(numbers))

    def window_batch(self, indices) -> tuple[torch.Tensor, torch.Tensor]:
        """See Windows. The windows of the first dataset come first, spread evenly over its split."""
        corpora = self.corpus_at(indices)
        own = np.asarray(indices) - (np.cumsum(self.kept) - self.kept)[corpora]
        own = own * self.sizes[corpora] // self.kept[corpora]
        return self.collect(corpora, own, lambda windows, numbers: windows.window_batch(numbers))

    def corpus_at(self, indices) -> np.ndarray:
        """The number of the dataset that each window of window_batch() is from, (B,)."""
        return np.searchsorted(np.cumsum(self.kept), np.asarray(indices), side="right")

    def collect(self, corpora: np.ndarray, own: np.ndarray, read) -> tuple[torch.Tensor, torch.Tensor]:
        """x, y (B, T) of windows (B,) of datasets (B,), in this order. read: x, y of some of one dataset."""
        order = np.argsort(corpora, kind="stable")
        found = [read(self.corpora[c], own[corpora == c].tolist()) for c in np.unique(corpora)]
        back = torch.from_numpy(np.argsort(order)).to(found[0][0].device)
        x, y = (torch.cat(parts)[back] for parts in zip(*found, strict=True))
        if all(hasattr(part, "n_targets") for _, part in found):  # gathered on a device: see count_targets
            y.n_targets = sum(part.n_targets for _, part in found)
        return x, y

    def keep_on(self, device: torch.device, n_bytes: float) -> None:
        """See Windows: the ids of all datasets, or of none."""
        if 4 * self.n_tokens <= n_bytes and not any(each.in_rows for each in self.corpora):
            for each in self.corpora:
                each.keep_on(device, n_bytes)

    def replies(self) -> list[tuple[list[int], list[int]]]:
        """See Windows: those of the datasets that have some."""
        with_some = [each for each in self.corpora if each.masked] or self.corpora[:1]
        return [reply for each in with_some for reply in each.replies()]

    def standing(self, losses: dict[str, float], n: int) -> str:
        """A line about each dataset after n windows of the series. losses: {name: val loss}."""
        epochs = self.counts(n) / self.sizes
        parts = [
            f"{name} {losses[name]:.4f} after {e:.2f} epochs" for name, e in zip(losses, epochs, strict=True)
        ]
        return f"  val loss of {', '.join(parts)}"


# ---- the command
def read_run(folder: str) -> tuple[list[str], np.ndarray, dict]:
    """(names of the datasets, their shares (n,), the last evaluation of metrics.jsonl) of a run's folder.

    ValueError for a run that is not there, has no mixture, or was not evaluated.
    """
    path = run_folder(folder)
    require((path / "config.json").is_file(), f"{folder} is no run; expected folders of runs with mixtures")
    settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
    check_types(settings, {"dataset": str}, f"{folder}: config.json")
    dataset = settings["dataset"]
    require(is_mixture(dataset), f"{folder} was trained on {dataset}; expected a mixture such as a:0.7,b:0.3")
    shares = parts_of(dataset)
    names = [Path(name).name for name in shares]
    needed = {"val_loss", *(f"val_loss_{name}" for name in names)}
    rows = [row for row in read_rows(path / "metrics.jsonl") if needed <= row.keys()]
    require(rows != [], f"{folder} was not evaluated; train it first")
    return names, np.array(list(shares.values())) / UNIT, rows[-1]


def draw(folders: list[str], picture: Path) -> list[str]:
    """Draw each dataset's last val loss against the share of the first one; returns a line for each run."""
    found = [read_run(folder) for folder in folders]
    names = found[0][0]
    require(
        all(each == names for each, _, _ in found), "the runs have other datasets; name runs with the same"
    )
    found.sort(key=lambda run: run[1][0])
    pyplot = open_pyplot()
    figure, axes = pyplot.subplots(figsize=(6, 3.6), dpi=DPI)
    first = [100 * shares[0] for _, shares, _ in found]
    for key, label, look in [
        *((f"val_loss_{name}", name, "o-") for name in names),
        ("val_loss", "together", "s--"),
    ]:
        axes.plot(first, [row[key] for _, _, row in found], look, label=label)
    axes.set_xlabel(f"share of {names[0]} (%)")
    axes.set_ylabel("val loss (nats per token)")
    axes.grid(color="0.92")
    axes.legend()
    figure.tight_layout()
    save_figure(figure, picture)
    table = [f"{'share of ' + names[0]:>28}" + "".join(f"{name:>18}" for name in [*names, "together"])]
    for _, shares, row in found:
        losses = [row[f"val_loss_{name}"] for name in names] + [row["val_loss"]]
        table.append(f"{shares[0]:>28.1%}" + "".join(f"{loss:>18.4f}" for loss in losses))
    return [*table, f"saved {picture}"]


if __name__ == "__main__":
    config = override(globals())
    folders = [folder for folder in runs.split(",") if folder]
    require(folders != [], "runs is empty; expected folders of runs with mixtures: --runs=out-1,out-2")
    print(*draw(folders, Path(picture)), sep="\n")
    end_script()
