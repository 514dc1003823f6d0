# Lesson 15 (unit B): The training loop, grown up: evaluation, clipping, checkpoint, resume
# Before: a loop trains a model that starts well; one bad batch can ruin it, and a power cut loses it.
# Seconds: 22
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 15      your copy, in work/
#     python lessons/run.py check 15      what is right, what is not yet
#     python lessons/run.py show 15       the whole lesson from top to bottom, with its plot

# %%
import copy
import math  # noqa: F401 (for your answers)
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F

import data
from config import ROOT
from lessons.course import claim, save_plot, text, yours_or_ours
from model import GPT, GPTConfig
from runtime.curve import evaluations, read_rows
from text import prepare

predict_1 = None  # updates in one epoch of 1,003,854 ids, with 12 windows of 64 in each
predict_2 = None  # a gradient of length 5 is clipped at 2: each entry is multiplied by
predict_3 = None  # saved after 5 updates, resumed without the optimizer: first to differ, counted from 1

# %% [markdown]
# ## A text, prepared
#
# `prepare` is what `python data.py` runs; here into a temporary folder. `data.Windows` cuts the tokens
# into windows. A batch is a function of seed and step: the same today and after a crash.

# %%
if __name__ == "__main__":
    temporary = tempfile.TemporaryDirectory()
    folder, prepare.DATASETS = Path(temporary.name), Path(temporary.name)
    (folder / "play.txt").write_text(text()[0][:60_000], encoding="utf-8")
    V = prepare.prepare("play", str(folder / "play.txt"))["vocab_size"]
    train_windows, val_windows = (data.Windows("play", split, 32) for split in ("train", "val"))

    def gpt():
        return GPT(GPTConfig(V, block_size=32, n_layer=2, n_head=2, n_embd=64, dropout=0.2))


# %% [markdown]
# ## 15a. How good is it?
#
# The loss of the last training batch says little: another batch, another loss, and dropout makes the model
# worse than it is. An estimate to rely on takes many batches, the same each time, of text that was trained on
# and of text that was not; the gap between the two shows what was learned by heart. It must leave no trace:
# `model.training` as before, no graph in memory. Batches are unequal: the last may be short, and targets
# with y = -1 are not scored. So add nats, count targets, divide once.


# %%
def estimate_loss(model, splits):
    """Mean loss in nats per scored target of each split, without dropout; the model stays in its mode.

    model: (B, T) int64 -> (B, T, V) float32 logits; splits: {"train": [(x, y), ...], "val": [...]}, x and y
    (B, T) int64, B differs from batch to batch, y is -1 where nothing is scored
    -> {"train": float, "val": float}
    """
    raise NotImplementedError("lesson 15a")


# %%
if __name__ == "__main__":
    torch.manual_seed(15)
    model = gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for step in range(60):  # the loop of lesson 4
        x, y = train_windows.batch(step, 8)
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-1).backward()
        optimizer.step()

    estimate = yours_or_ours(estimate_loss, "15a")
    windows = {"train": train_windows, "val": val_windows}
    splits = {name: [w.window_batch(range(i, i + 8)) for i in range(0, 80, 8)] for name, w in windows.items()}
    losses = estimate(model, splits)
    assert losses == estimate(model, splits) and model.training
    single = [estimate(model, {"val": [batch]})["val"] for batch in splits["val"]]
    print(f"train {losses['train']:.3f}, val {losses['val']:.3f}; twice the same")
    print(f"batches of val one by one: {min(single):.3f} ... {max(single):.3f}")
    assert max(single) - min(single) > 0.02, "one batch is a guess"

# %% [markdown]
# ## 15b. A bad batch
#
# A line of garbage in the text, and the gradient is many times longer than usual; one step with it can undo
# the work of hours. **Clipping** sets a longest length (Pascanu et al., 2013): all gradients of the model
# together are one long vector, and if that is longer than the limit, it is shortened to it. The direction
# stays, for every entry gets the same factor. A vector that is short enough stays as it is.


# %%
def clipped_step(parameters, optimizer, limit):
    """Shorten the gradient to the limit if it is longer, step, and return the length it had before.

    parameters: list of parameters, whose .grad is float32, or None where nothing is trained; optimizer: of
    these parameters; limit: float, 0 for no limit -> a Python float; the parameters are changed in place.
    """
    raise NotImplementedError("lesson 15b")


# %%
if __name__ == "__main__":
    after, garbage = {}, torch.zeros_like(x)  # one and the same letter, again and again
    for limit in (0.0, 1.0):
        hit = copy.deepcopy(model).eval()
        F.cross_entropy(hit(garbage).flatten(0, 1), y.flatten().clamp(min=0)).backward()
        sgd = torch.optim.SGD(hit.parameters(), lr=1.0)
        length = yours_or_ours(clipped_step, "15b")(list(hit.parameters()), sgd, limit)
        after[limit] = estimate(hit, splits)["val"]
        print(f"limit {limit}: gradient {length:.2f} long, val {losses['val']:.3f} -> {after[limit]:.3f}")
    assert losses["val"] < after[1.0] < after[0.0], "clipped, it does less harm"

# %% [markdown]
# ## 15c. To go on where it stopped
#
# A run that was saved after 5 of 10 updates and resumed should end with the weights of an unbroken one, not
# nearly but bit for bit. Any difference means that something was forgotten, and what is forgotten here will
# be missed in some long run. What does an update depend on?
#
# - the weights, of course;
# - what the optimizer remembers: averages of past gradients, and how many there were;
# - the number of the step: learning rate and batch are functions of it;
# - random numbers: which units dropout drops. Save the state of the generator, or let nothing depend on it:
#   set the seed before each update, as a function of the step.
#
# One trap: `state_dict()` hands out the living tensors, not copies. Written to a file at once they are safe.
# Kept in memory as "the best so far", they go on learning.


# %%
def go_on(model, optimizer, batch, lr_at, last, saved=None):
    """Train until `last` updates have been made in all, and return what it takes to go on from there.

    model: (B, T) int64 -> (B, T, V) float32 logits, with dropout; optimizer: of its parameters, in one group
    or several; batch(step) -> x, y, each (B, T) int64; lr_at(step) -> float, the learning rate; steps are
    counted from 0; last: int; saved: None, or what an earlier call returned, read from a file
    -> dict of tensors, numbers, lists and dicts, which stays as it is while training goes on.
    """
    raise NotImplementedError("lesson 15c")


# %%
class Forgetful(torch.optim.AdamW):
    load_state_dict = lambda self, state: None  # noqa: E731 (it takes back nothing of what it handed out)


if __name__ == "__main__":

    def run_of(last, saved=None, kind=torch.optim.AdamW):
        model, seen = gpt(), []

        def batch(step):
            seen.append(copy.deepcopy(model.state_dict()))
            return train_windows.batch(step, 8)

        optimizer = kind(model.parameters(), lr=1.0)
        saved = yours_or_ours(go_on, "15c")(model, optimizer, batch, lambda step: 0.003, last, saved)
        return saved, [*seen, model.state_dict()]  # weights before each update, and after the last

    def same(some, other):
        return all(torch.equal(some[name], other[name]) for name in other)

    torch.manual_seed(15)
    _, whole = run_of(10)
    torch.manual_seed(15)
    torch.save(run_of(5)[0], folder / "half.pt")
    for kind in (torch.optim.AdamW, Forgetful):
        _, resumed = run_of(10, torch.load(folder / "half.pt", weights_only=True), kind)
        marks = ["=" if same(*pair) else "x" for pair in zip(resumed, whole[5:], strict=True)]
        print(f"{kind.__name__:10}", *marks)
        assert kind is Forgetful or marks == ["="] * 6, "bit for bit"
    claim(10, len(whole) - 1, tol=0), claim(5, len(resumed) - 1, tol=0)

# %% [markdown]
# ## The same, asked of train.py
#
# The loop of lesson 4 has grown into `train.py`: settings on top, then forward, loss, backward, clip, step.
# Here it runs as a command, for 40 updates with a checkpoint after 20. One run goes from start to end, the
# other is killed on its way, as by a power cut. `--init_from=auto` then finds what lies in its folder, goes
# on from the checkpoint, and makes the lost updates again.

# %%
SETTINGS = """--device=cpu --dtype=float32 --threads=1 --n_layer=2 --n_head=2 --n_embd=64 --block_size=32
    --batch_size=8 --dropout=0.1 --max_iters=40 --eval_interval=20 --eval_iters=1 --log_interval=1
    --max_new_tokens=1""".split()


def train(out: Path, *flags: str, until: str = "the end") -> list[dict]:
    """Run train.py as a command, kill it at a line that begins with `until`; the rows of metrics.jsonl."""
    command = [sys.executable, "train.py", f"--dataset={out.parent / 'play'}", f"--out_dir={out}", *SETTINGS]
    with subprocess.Popen([*command, *flags], cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8") as process:
        for line in process.stdout:
            if line.startswith(until):
                process.kill()
    assert process.returncode == 0 or until != "the end", f"{out.name} failed"
    return read_rows(out / "metrics.jsonl")


if __name__ == "__main__":
    with ThreadPoolExecutor() as both:  # two at a time
        unbroken = both.submit(train, folder / "unbroken")
        lost = train(folder / "killed", until="iter 28:")
        resumed = train(folder / "killed", "--init_from=auto")
        unbroken = unbroken.result()
    ends = [torch.load(folder / run / "ckpt.pt", weights_only=True) for run in ("unbroken", "killed")]
    assert same(ends[0]["model"], ends[1]["model"]), "bit for bit"
    for key in ("step", "loss", "lr", "grad_norm", "train_loss", "val_loss"):  # not times and memory
        assert [row.get(key) for row in unbroken] == [row.get(key) for row in resumed], key
    print("killed, resumed, the same weights and losses. A checkpoint holds:", ", ".join(ends[0]))
    claim(40, ends[0]["step"], tol=0)
    claim(20, [*evaluations(unbroken)][1], tol=0)

    def draw(axes):
        again = [row for row in resumed if row["step"] > 20]
        styles = {"unbroken": (unbroken, "-"), "killed": (lost, "x"), "resumed": (again, "o")}
        for name, (rows, style) in styles.items():
            losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
            axes.plot(losses.keys(), losses.values(), style, label=name)
        axes.axvline(20, color="0.8", label="checkpoint")
        axes.set(xlabel="update", ylabel="loss (nats)", title="Killed, resumed, and the same run")
        axes.legend()

    save_plot("15_training", draw)
    temporary.cleanup()

# %% [markdown]
# ## Where it stands in the project
#
# `evaluate` in evaluate.py is 15a, for any number of processes and with a standard error. train.py clips as
# in 15b, writes the length of each gradient to metrics.jsonl, and stops where it is not finite. What a run
# needs is listed by `save` in train.py and written by runtime/checkpoint.py:
#
# - weights, the optimizer state, the step. No random state: the seed is set before each update;
# - the settings, so `--init_from=resume` needs no other flag; the tokenizer, since any other is refused;
# - the best val loss and how long ago that was, for `best.pt` and for stopping early.
#
# The file gets another name first, is forced to the disk, and then renamed: a crash while saving leaves the
# old one whole. `test_resume_is_exact` in tests/test_train.py asks the same with accumulation and Muon.
