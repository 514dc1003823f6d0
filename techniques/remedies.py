"""What helps when training goes wrong? Each symptom is provoked, and each remedy of the guides tried alone.

    python -m techniques.remedies                         20 minutes on two CPU cores; or --only=overfitting

A remedy helps if its gain over the symptom, seed by seed, is above 0 by Student's t (95 %); it hurts if that
is below 0. The tables that this prints are those of docs/trouble.md. Asked again, it goes on where it was.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from config import at_least, end_script, override, require
from data import Windows
from lab.claims import update_time
from lab.measure import alternate, settings_of, update_peak
from runtime import plot
from runtime.curve import evaluations, read_rows
from runtime.folder import run_folder
from techniques.runs import run_all
from techniques.runs import settings_of as settings_of_command
from techniques.significance import interval
from text.prepare import DATASETS, folder_of, prepare
from text.settle import ensure
from tokenizer import load_any

# -----------------------------------------------------------------------------
only = ""  # some, joined by commas: instability slow_convergence overfitting memory slow_updates; '' = all
seeds = 3  # runs of each
jobs = 2  # runs at a time
out_dir = "out-remedies"  # for the runs' folders and remedies.png
share = 1.0  # of the updates: below 1 only to see that everything runs
# -----------------------------------------------------------------------------

GUIDES = (  # GPT-2's architecture under AdamW with torch's betas and cosine: what the guides train
    "--arch=gpt2 --optimizer=adamw --beta2=0.999 --lr_schedule=cosine --learning_rate=3e-3 --n_layer=2 "
    "--n_head=2 --n_embd=64 --block_size=64 --batch_size=16 --dtype=float32 --threads=1 --log_interval=1 "
    "--eval_interval=50 --eval_iters=10 --max_new_tokens=0"
)
LARGE = "--arch=gpt2 --optimizer=adamw --n_embd=256 --block_size=256 --batch_size=16 --dtype=float32"
SMALL_TEXT = "--dataset=remedies_small --arch=modern --optimizer=muon --n_head=4 --n_embd=128"
TEXTS = {"remedies_more": 250_000, "remedies_small": 25_000}  # the first characters of shakespeare_char


class Symptom(NamedTuple):
    """What provokes a symptom, by which numbers it is measured, and what each remedy changes."""

    what: str
    provoked: str  # flags of train.py, behind GUIDES or LARGE
    updates: int  # 0: a single update shows it
    numbers: tuple[str, ...]  # the first one judges; less is better
    remedies: dict[str, str]  # flags, behind those


LAST, BEST, JUMP = "last val loss", "best val loss", "largest jump of the loss"
PEAK, TIME, CURVES = "peak memory, MB", "ms for 1,000 tokens", "val losses by step"
SYMPTOMS = {
    "instability": Symptom(
        "ten times the learning rate, without warm-up", "--learning_rate=3e-2", 200, (LAST, JUMP),
        {
            "a lower learning rate, 3e-3": "--learning_rate=3e-3",
            "clipping at 0.5 instead of 1": "--grad_clip=0.5",
            "a warm-up of 100 updates": "--warmup_iters=100",
        },
    ),
    "slow_convergence": Symptom(
        "a learning rate of 1e-4", "--learning_rate=1e-4 --warmup_iters=20", 200, (LAST,),
        {
            "ten times the learning rate": "--learning_rate=1e-3",
            "thirty times the learning rate": "--learning_rate=3e-3",
            "a warm-up of 2,000 updates": "--warmup_iters=2000",
            "Adam in place of AdamW": "--optimizer=adam",
            "Muon in place of AdamW, at its usual rates": "--optimizer=muon --learning_rate=3e-3",
        },
    ),
    "overfitting": Symptom(
        "25,000 characters, 16 passes over them", SMALL_TEXT, 400, (LAST, BEST),
        {
            "dropout 0.2": "--dropout=0.2",
            "weight decay 1.0 instead of 0.1": "--weight_decay=1.0",
            "stopping early, patience 2": "--patience=2",
            "ten times as much text": "--dataset=remedies_more",
        },
    ),
    "memory": Symptom(
        "64 windows of 256 tokens, 256 wide", f"{LARGE} --batch_size=64", 0, (PEAK,),
        {
            "half of the batch": "--batch_size=32",
            "gradient checkpointing": "--gradient_checkpointing",
            "half of the window": "--block_size=128",
            "bfloat16": "--dtype=bfloat16",
        },
    ),
    "slow_updates": Symptom(
        "16 windows of 256 tokens, 256 wide", LARGE, 0, (TIME,),
        {
            "twice the batch": "--batch_size=32",
            "a quarter of the batch": "--batch_size=4",
            "gradient checkpointing": "--gradient_checkpointing",
            "half of the window, twice the batch": "--block_size=128 --batch_size=32",
            "bfloat16": "--dtype=bfloat16",
        },
    ),
}  # fmt: skip


def prepare_texts() -> None:
    """Make the datasets of TEXTS, with the tokens and the val split of Tiny Shakespeare."""
    ensure("shakespeare_char")
    source = folder_of("shakespeare_char")
    files = {name: str(DATASETS / f"{name}.txt") for name in ("remedies_val", *TEXTS)}
    for name, file in files.items():
        windows = Windows(source, "train" if name in TEXTS else "val", 64)
        ids = windows.tokens[np.arange(TEXTS.get(name, windows.n_tokens))]
        Path(file).write_text(load_any(source).decode(ids.tolist()), encoding="utf-8")
    for name in TEXTS:
        prepare(name, files[name], tokenizer=str(source), val_input=files["remedies_val"])


def trained(name: str, settings: dict) -> dict[str, dict[str, list]]:
    """{remedy: {number: one value for each seed}} of what runs of train.py show. "" is no remedy."""
    symptom, commands = SYMPTOMS[name], []
    updates, seeds = max(1, round(symptom.updates * settings["share"])), range(1, settings["seeds"] + 1)
    for i, flags in enumerate(["", *symptom.remedies.values()]):
        words = f"{GUIDES} {symptom.provoked} {flags} --max_iters={updates}".split()  # the last one holds
        for seed in seeds:
            folder = f"{settings['out_dir']}/{name}-{i}-{seed}"
            commands.append([*words, f"--seed={seed}", f"--out_dir={folder}"])
    results = run_all(commands, settings["jobs"])
    for result in results:
        require("error" not in result, f"{result['folder']} failed: {result.get('error')}")
    found = {}
    for i, remedy in enumerate(["", *symptom.remedies]):
        some = results[i * len(seeds) : (i + 1) * len(seeds)]
        rows = [read_rows(result["folder"] / "metrics.jsonl") for result in some]
        found[remedy] = {
            LAST: [result["final_val_loss"] for result in some],
            BEST: [result["best_val_loss"] for result in some],
            JUMP: [jump(each) for each in rows],
            CURVES: [evaluations(each) for each in rows],
        }
    return found


def jump(rows: list[dict]) -> float:
    """By how many nats an update's loss is above the lowest one before it, at most."""
    losses = np.array([row["loss"] for row in rows if "loss" in row])
    return float((losses - np.minimum.accumulate(losses)).max())


def measured(name: str, settings: dict) -> dict[str, dict[str, list]]:
    """The same of what single updates show; a value for each turn, and the sides take turns."""
    symptom = SYMPTOMS[name]
    smaller = "" if settings["share"] == 1 else "--n_embd=64"
    every = {"": "", **symptom.remedies}
    commands = [f"{symptom.provoked} {smaller} {flags}".split() for flags in every.values()]
    shapes = [settings_of(**settings_of_command(command)) for command in commands]
    if name == "memory":
        values = alternate(*(update_peak(shape, 65) for shape in shapes), turns=settings["seeds"])
    else:
        tokens = np.array([shape["batch_size"] * shape["block_size"] for shape in shapes])
        values = alternate(*map(update_time, shapes), turns=settings["seeds"]) / tokens[:, None] * 1000
    return {remedy: {symptom.numbers[0]: side} for remedy, side in zip(every, values, strict=True)}


def table(name: str, found: dict[str, dict[str, list]]) -> list[str]:
    """Markdown: each remedy's numbers, mean and standard deviation, its gain, and what that says."""
    symptom = SYMPTOMS[name]
    head = [symptom.what, *symptom.numbers, "gain, 95 %", ""]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for remedy, numbers in found.items():
        cells = [f"{np.mean(numbers[n]):#.4g} ({np.std(numbers[n], ddof=1):.2g})" for n in symptom.numbers]
        gains = np.subtract(found[""][symptom.numbers[0]], numbers[symptom.numbers[0]])
        low, high = interval(gains)
        verdict = "helps" if low > 0 else "hurts" if high < 0 else "does nothing that is seen"
        ending = [f"{low:.3g} to {high:.3g}", verdict] if remedy else ["", ""]
        lines.append(f"| {' | '.join([remedy or 'no remedy', *cells, *ending])} |")
    return lines


def draw(every: dict[str, dict], path: Path) -> None:
    """Val loss by update, mean over the seeds, one panel for each symptom: a PNG file."""
    pyplot = plot.open_pyplot()
    figure, panels = pyplot.subplots(1, len(every), figsize=(5 * len(every), 4), squeeze=False, dpi=90)
    for axes, (name, found) in zip(panels[0], every.items(), strict=True):
        for i, (remedy, numbers) in enumerate(found.items()):
            curves = numbers[CURVES]
            steps = [step for step in curves[0] if step and all(step in curve for curve in curves)]
            means = [np.mean([curve[step] for curve in curves]) for step in steps]
            look = dict(color="black", lw=2.5) if not remedy else dict(lw=1.5, marker="osv^D"[i - 1], ms=4)
            axes.plot(steps, means, label=remedy or "no remedy", **look)
        axes.set(title=SYMPTOMS[name].what, xlabel="updates")
        axes.legend(fontsize=7, framealpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("val loss (nats per character)")
    figure.tight_layout()
    plot.save_figure(figure, path)


if __name__ == "__main__":
    config = override(globals())
    at_least(2, config, "seeds")  # a spread needs two
    require(0 < share <= 1, f"share={share} makes no sense; expected above 0, at most 1")
    names = only.replace(" ", "").split(",") if only else list(SYMPTOMS)
    for name in names:
        require(name in SYMPTOMS, f"only={only} names no symptom {name!r}; expected {', '.join(SYMPTOMS)}")
    drawn = {}
    for name in names:
        if name == "overfitting":
            prepare_texts()
        found = trained(name, config) if SYMPTOMS[name].updates else measured(name, config)
        print("", *table(name, found), sep="\n", flush=True)
        if SYMPTOMS[name].updates:
            drawn[name] = found
            draw(drawn, run_folder(out_dir) / "remedies.png")
    end_script()
