"""What a run tells: each number against one that was computed by hand, files, and optional packages."""

import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import types

import matplotlib.axes
import pytest
import torch
import torch.nn.functional as F

import data
import evaluate
import optim
from conftest import ROOT, TINY
from machine.speed import BF16_PEAK
from model import GPT, GPTConfig
from runtime import checkpoint, report, samples, trackers
from runtime.origin import Progress
from text import corpora

ITERATION = re.compile(
    r"iter (\d+): loss (\d+\.\d{4}), time (\d+\.\d\d)ms, ([\d,]+) tok/s, lr (\S+), muon lr (\S+), grad norm "
)


def all_rows(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def rows(out, key="loss") -> list[dict]:
    return [row for row in all_rows(out) if key in row]


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


# ---- the numbers of a row


def test_loss_lr_and_gradient_norm_equal_a_hand_computation(train, tmp_path):
    """Each update again, from the checkpoint before it, with cross_entropy's own mean."""
    names = train(
        "--max_iters=4", "--log_interval=1", "--save_interval=1", "--warmup_iters=3", "--grad_clip=0.1"
    )
    out = tmp_path / "out"
    logged = rows(out)
    for step in (1, 2, 3):
        model, _, _ = checkpoint.load_model(out / f"ckpt_{step:06}.pt", torch.device("cpu"))
        x, y = names["train_windows"].batch(step, 4)
        loss = F.cross_entropy(model.train()(x).flatten(0, 1), y.flatten(), ignore_index=-1)
        loss.backward()
        norm = math.sqrt(sum(p.grad.double().pow(2).sum().item() for p in model.parameters()))
        assert logged[step]["loss"] == pytest.approx(loss.item(), abs=1e-5)
        assert logged[step]["grad_norm"] == pytest.approx(norm, abs=1e-5)  # before it was clipped
    for row in logged:
        assert row["lr"] == optim.lr_at(row["step"] - 1, **names["schedule"])
        assert row["tokens"] == row["step"] * 4 * 32
    assert logged[0]["lr"] == 3e-3 / 4


def test_a_line_every_log_interval(train, tmp_path, capsys):
    train("--log_interval=7", "--max_iters=25")
    found = [ITERATION.match(line) for line in lines_of(capsys.readouterr().out, "iter ")]
    assert all(found)
    assert [int(match[1]) for match in found] == [7, 14, 21]
    for match, row in zip(found, rows(tmp_path / "out"), strict=True):
        assert match[2] == f"{row['loss']:.4f}"
        assert float(match[5]) == pytest.approx(row["lr"], rel=1e-2)
        assert float(match[6]) == pytest.approx(row["muon_lr"], rel=1e-2)
        per_update = 4 * 32 / row["tokens_per_second"]
        assert float(match[3]) == pytest.approx(1000 * per_update, rel=0.01, abs=0.01)


def test_a_slow_evaluation_leaves_the_speed_of_training_alone(train, tmp_path, monkeypatch):
    plain = evaluate.evaluate

    def slow(*args, **kwargs):
        time.sleep(0.25)
        return plain(*args, **kwargs)

    monkeypatch.setattr(evaluate, "evaluate", slow)
    began = time.perf_counter()
    names = train("--eval_interval=5", "--max_iters=10", "--log_interval=1", "--sample_interval=5")
    wall = time.perf_counter() - began
    slept = 0.25 * 2 * 3  # train and val, at steps 0, 5 and 10
    assert names["progress"].seconds < wall - slept
    logged = rows(tmp_path / "out")
    for before, row in itertools.pairwise(logged):
        seconds = row["seconds"] - before["seconds"]
        assert 4 * 32 / row["tokens_per_second"] == pytest.approx(seconds, rel=0.02, abs=2e-4)


def test_every_key_is_there_and_none_is_negative(train, tmp_path):
    train("--max_iters=20", "--eval_interval=10", "--log_interval=5")
    updates = "step tokens seconds loss lr muon_lr grad_norm clipped "
    updates += "tokens_per_second memory_mb cpu_percent data_ms"
    evaluations = "step tokens seconds train_loss val_loss val_perplexity"
    for row in all_rows(tmp_path / "out"):
        assert list(row) == (updates if "loss" in row else evaluations).split()
        assert all(math.isfinite(value) and value >= 0 for value in row.values())
    assert rows(tmp_path / "out")[-1]["memory_mb"] > 50
    assert rows(tmp_path / "out")[-1]["cpu_percent"] > 0


def test_result_json_says_what_metrics_say(train, tmp_path, capsys):
    names = train("--max_iters=20", "--eval_interval=5", "--eval_iters=0")
    result = json.loads((tmp_path / "out/result.json").read_text(encoding="utf-8"))
    evaluations = rows(tmp_path / "out", "val_loss")
    best = min(evaluations, key=lambda row: row["val_loss"])
    assert result == {
        "final_train_loss": evaluations[-1]["train_loss"],
        "final_val_loss": evaluations[-1]["val_loss"],
        "best_val_loss": best["val_loss"],
        "best_step": best["step"],
        "training_time": evaluations[-1]["seconds"],
        "parameters": sum(p.numel() for p in names["raw_model"].parameters()),
    }
    text = capsys.readouterr().out
    assert f"best.pt  val loss {result['best_val_loss']:.4f} (step {result['best_step']})" in text
    assert f"ckpt.pt  val loss {result['final_val_loss']:.4f}, train loss" in text


# ---- memory and speed


@pytest.mark.slow
def test_memory_grows_with_the_batch(datasets, tmp_path):
    """In a process of its own, in which nothing else has needed memory before."""
    flags = ["train.py", "--dataset=small", *TINY, "--n_embd=128", "--max_iters=1", "--log_interval=1"]
    code = f"""
import pathlib, runpy, sys
from text import prepare
prepare.DATASETS = pathlib.Path({str(datasets)!r})
for batch_size in (4, 256):
    sys.argv = {flags} + [f"--batch_size={{batch_size}}", f"--out_dir={tmp_path}/{{batch_size}}"]
    runpy.run_path("train.py", run_name="__main__")
"""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=ROOT, env=one_thread, check=True, capture_output=True, timeout=100)
    (small,), (large,) = rows(tmp_path / "4"), rows(tmp_path / "256")
    activation = 256 * 32 * 128 * 4 / 1e6  # MB; backward needs more than ten of them from each of two layers
    assert large["memory_mb"] > small["memory_mb"] + 10 * activation


@pytest.mark.parametrize(
    "flags",
    [
        ("--optimizer=muon", "--muon_momentum=0.0"),
        ("--optimizer=adamw", "--freeze=wte,blocks.0"),
        ("--optimizer=adam", "--arch=gpt2"),
        ("--optimizer=sgd", "--learning_rate=1e-2"),
        ("--optimizer=sgd", "--muon_momentum=0.0"),
    ],
)
def test_the_printed_bytes_are_those_of_the_tensors(train, capsys, flags):
    names = train(*flags, "--max_iters=1")
    (line,) = lines_of(capsys.readouterr().out, "memory: ")
    weights, gradients, moments = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", line))
    model, optimizer = names["raw_model"], names["opt"]
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [
        value
        for state in optimizer.state.values()
        for key, value in state.items()
        if torch.is_tensor(value) and key != "step"
    ]
    assert weights == sum(p.nbytes for p in model.parameters())
    assert gradients == sum(p.nbytes for p in trained)
    assert moments == sum(tensor.nbytes for tensor in kept)


SETTINGS = dict(
    eval_only=False, strategy="ddp", tensorboard=False, wandb_log=False, expected={}, init_from="scratch",
    optimizer="adamw", grad_clip=0.0, warmup_iters=0, warmup_ratio=0.0, out_dir="out", wandb_run_name="",
    wandb_project="",
)  # fmt: skip


def report_on(device: str, folder, capsys, **more) -> str:
    """What a Report says about one update of half a second on a device, with 2 processes."""
    model = GPT(GPTConfig(n_layer=2, n_embd=64, block_size=32))
    out = report.Report(folder, dict(SETTINGS), 0, True, model, torch.device(device), 0.0)
    out.length(10, 8, 1, 2, types.SimpleNamespace(block_size=32, n_windows=100))
    capsys.readouterr()
    progress = Progress(1, 512, 0.5)
    out.count_update(progress, 0.5, 0.1, [(1, 2.0, 1.0)])
    out.iteration(progress, 2.0, 1e-3, 1.0)
    return capsys.readouterr().out


def test_utilisation_is_that_of_one_device_and_only_where_the_peak_is_known(tmp_path, monkeypatch, capsys):
    assert "mfu" not in report_on("cpu", tmp_path, capsys)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1e6)
    for name in (
        "NVIDIA RTX A1000",
        "NVIDIA L40",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "AMD Instinct MI300X",
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert "mfu" not in report_on("cuda", tmp_path, capsys)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "toy")
    monkeypatch.setitem(BF16_PEAK, "toy", 1e-3)  # 1e9 operations a second
    model = GPT(GPTConfig(n_layer=2, n_embd=64, block_size=32))
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "wte" not in name)
    matrices += sum(p.numel() for p in model.parameters() if p.ndim == 1)
    per_token = 6 * matrices + 12 * 2 * 64 * 32
    tokens_per_second = 8 * 32 / 0.5  # of each process
    expected = per_token * tokens_per_second / 1e9
    assert f", mfu {expected:.1%}, " in report_on("cuda", tmp_path, capsys)


# ---- the curve


def drawn_curves(monkeypatch) -> list[tuple[str, list]]:
    """Every curve that is drawn from now on: (label, steps)."""
    curves = []
    plot = matplotlib.axes.Axes.plot

    def spy(self, x, y, *look, **kwargs):
        assert len(x) == len(y)
        curves.append((kwargs.get("label"), list(x)))
        return plot(self, x, y, *look, **kwargs)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", spy)
    return curves


@pytest.mark.slow
@pytest.mark.draws
def test_loss_png_has_both_curves_also_after_a_resume(train, tmp_path, monkeypatch):
    train("--max_iters=10", "--eval_interval=5")
    curves = drawn_curves(monkeypatch)
    train("--max_iters=20", "--eval_interval=5", "--init_from=resume")
    last = dict(curves[-6:])  # updates, train, val; the learning rates and the gradient norm have no label
    assert last["train"] == last["val"] == [0, 5, 10, 15, 20]
    assert last["updates"] == last[None] == [5, 10, 15, 20]
    assert (tmp_path / "out/loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (tmp_path / "out/loss.png").stat().st_size > 5000


def test_no_step_is_drawn_twice_after_going_back(train, tmp_path, monkeypatch):
    """Resume from a numbered file, saved before the evaluation of its step, when the run had gone further."""
    out = tmp_path / "out"
    train("--max_iters=15", "--eval_interval=5", "--save_interval=5")
    before = [row | {"seconds": 0} for row in rows(out, "val_loss")]
    (out / "ckpt_000010.pt").replace(out / "ckpt.pt")
    with open(out / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 16, "lo')  # the machine went down while it wrote
    train("--max_iters=15", "--eval_interval=5", "--init_from=resume")
    assert [row["step"] for row in rows(out)] == [5, 10, 15]
    assert [row | {"seconds": 0} for row in rows(out, "val_loss")] == before


# ---- what is suspicious


def bare_report(folder, main=True, floor=0.0, **flags) -> report.Report:
    return report.Report(folder, {**SETTINGS, **flags}, -1, main, None, torch.device("cpu"), floor)


def test_overfitting_is_marked_when_val_rises_while_train_falls(tmp_path, capsys):
    out = bare_report(tmp_path)
    losses = [(3.0, 3.0), (2.5, 2.8), (2.2, 2.9), (2.3, 3.0), (2.1, 3.0), (2.0, 3.1), (1.9, 2.9), (1.9, 3.0)]
    for i, (train_loss, val_loss) in enumerate(losses):
        out.evaluation(Progress(i, train_loss=train_loss, val_loss=val_loss), 0.1)
    marked = ["overfitting" in line for line in lines_of(capsys.readouterr().out, "step ")]
    assert marked == [False, False, True, False, False, True, False, False]


def test_the_floor_and_its_alarm(tmp_path, capsys):
    out = bare_report(tmp_path, floor=0.5)
    out.evaluation(Progress(1, train_loss=0.61, val_loss=0.62), 0.01)
    out.evaluation(Progress(2, train_loss=0.61, val_loss=0.48), 0.01)  # 2 standard errors below: noise
    out.evaluation(Progress(3, train_loss=0.61, val_loss=0.46), 0.01)  # 4
    first, second, third = lines_of(capsys.readouterr().out, "step ")
    said = "perplexity 1.86, entropy of the source 0.5000, gap 0.1200"
    assert first == f"step 1: train loss 0.6100, val loss 0.6200, {said}"
    assert ["BELOW THE FLOOR" in line for line in (first, second, third)] == [False, False, True]
    assert "leaked" in third


# ---- who writes, and where to


def test_other_ranks_and_eval_only_write_nothing(tmp_path, capsys):
    silent = bare_report(tmp_path / "rank", main=False, tensorboard=True, wandb_log=True)
    silent.evaluation(Progress(1, train_loss=1.0, val_loss=1.0), 0.1)
    silent.say("nobody hears this")
    silent.plot()
    assert capsys.readouterr().out == ""
    bare_report(tmp_path / "only", eval_only=True).evaluation(Progress(1, train_loss=1.0, val_loss=1.0), 0.1)
    assert "val loss" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_on_a_terminal_progress_lines_replace_each_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    text = report_on("cpu", tmp_path, capsys)
    assert text.startswith("\033[Kiter 1: ")
    assert text.endswith("left\r") and "\n" not in text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    text = report_on("cpu", tmp_path, capsys)
    assert text.startswith("iter 1: ") and text.endswith("left\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")  # such a terminal shows the codes as they are
    assert report_on("cpu", tmp_path, capsys) == text


@pytest.mark.draws
def test_without_matplotlib_a_run_goes_on_and_says_so_once(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it raises ImportError
    assert train()["progress"].step == 20
    printed = capsys.readouterr().out
    assert (
        printed.count("WARNING: no loss.png: a plot needs what is not installed: pip install matplotlib") == 1
    )
    assert printed.count("loss.png") == 1
    assert not (tmp_path / "out/loss.png").exists()


def test_clock():
    assert [report.clock(seconds) for seconds in (0, 95, 59.6, 4000)] == ["0:00", "1:35", "1:00", "1:06:40"]


def test_a_sample_each_interval(train, capsys):
    train("--sample_interval=4", "--max_iters=10")
    samples = lines_of(capsys.readouterr().out, "--- a sample at step ")
    assert [int(line.split()[5]) for line in samples] == [4, 8, 10]


class StandIn:
    """Stands in for TensorBoard's writer and for the module wandb; notes what it is given."""

    def __init__(self):
        self.rows, self.texts, self.begun, self.closed = {}, {}, None, False

    def SummaryWriter(self, folder):
        self.begun = folder
        return self

    def add_scalar(self, key, value, step):
        self.rows.setdefault(step, {})[key] = value

    def add_text(self, tag, text, step):
        self.texts[step] = text

    def init(self, **kwargs):
        self.begun = kwargs

    def log(self, numbers, step):
        if "sample" in numbers:
            self.texts[step] = numbers["sample"]
        else:
            self.rows[step, "val_loss" in numbers] = numbers

    def finish(self):
        self.closed = True


def test_tensorboard_gets_every_row(train, tmp_path, monkeypatch):
    stand_in, at_exit = StandIn(), []
    stand_in.close = lambda: None
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    monkeypatch.setattr(trackers, "at_end", at_exit.append)
    train("--tensorboard=True", "--max_iters=10", "--eval_interval=5")
    assert stand_in.begun == str(tmp_path / "out")
    assert stand_in.close in at_exit
    expected = {}
    for row in all_rows(tmp_path / "out"):
        expected.setdefault(row["step"], {}).update({k: v for k, v in row.items() if k != "step"})
    assert stand_in.rows == expected
    assert len(expected) == 3  # steps 0, 5 and 10


def test_wandb_gets_every_row_and_the_whole_config(train, tmp_path, monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    names = train("--wandb_log=True", "--wandb_project=plays", "--max_iters=10", "--eval_interval=5")
    assert stand_in.begun == {"project": "plays", "name": "out", "config": names["config"]}
    expected = {
        (row["step"], "val_loss" in row): {k: v for k, v in row.items() if k != "step"}
        for row in all_rows(tmp_path / "out")
    }
    assert stand_in.rows == expected
    assert stand_in.closed


@pytest.mark.parametrize(
    "flag, module, package",
    [("tensorboard", "torch.utils.tensorboard", "tensorboard"), ("wandb_log", "wandb", "wandb")],
)
def test_a_missing_package_is_noticed_before_the_first_update(
    train, tmp_path, monkeypatch, flag, module, package
):
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    monkeypatch.setattr(data.Windows, "batch", lambda *args: pytest.fail("training began"))
    with pytest.raises(ValueError, match=f"--{flag}=True needs .* not installed: pip install {package}$"):
        train(f"--{flag}=True")
    assert not (tmp_path / "out").exists()


# ---- samples


def sample_on_screen(text: str) -> str:
    return text[text.rindex(samples.HEADING) :].split(samples.END)[0] + samples.END


def test_samples_were_lost_with_the_screen(train, tmp_path, monkeypatch, capsys):
    """They are kept in samples.txt, and TensorBoard and W&B have them, too."""
    boards = StandIn(), StandIn()
    boards[0].close = lambda: None
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", boards[0])
    monkeypatch.setitem(sys.modules, "wandb", boards[1])
    train("--sample_interval=4", "--max_iters=10", "--tensorboard=True", "--wandb_log=True")
    text = (tmp_path / "out/samples.txt").read_text(encoding="utf-8")
    heads = [int(samples.step_of(line)) for line in lines_of(text, samples.HEADING)]
    assert heads == sorted(boards[0].texts) == sorted(boards[1].texts) == [4, 8, 10]
    last = sample_on_screen(capsys.readouterr().out)
    assert text.endswith(last)
    written = last.partition("\n")[2].removesuffix(samples.END)
    assert boards[1].texts[10] == written
    assert boards[0].texts[10] == "".join(f"    {line}\n" for line in written.split("\n"))


def test_a_resumed_run_has_no_sample_twice(train, tmp_path):
    flags = "--sample_interval=4", "--save_interval=4", "--max_iters=12"
    train(*flags)
    path = tmp_path / "out/samples.txt"
    straight = path.read_text(encoding="utf-8")
    with open(path, "a", encoding="utf-8") as file:
        file.write("--- a sample at step 99 (half of")  # the machine went down while it wrote
    (tmp_path / "out/ckpt_000004.pt").replace(tmp_path / "out/ckpt.pt")
    train(*flags, "--init_from=resume")
    assert path.read_text(encoding="utf-8") == straight
    train("--max_iters=1")  # another run in the same folder
    assert [line.split()[5] for line in lines_of(path.read_text(encoding="utf-8"), "--- a")] == ["1"]


def test_a_text_that_looks_like_a_heading_is_not_one(tmp_path):
    path = tmp_path / "samples.txt"
    lines = f"{samples.HEADING}3 (mine)\nx\r\n\u2028{samples.HEADING}1"
    for step in (5, 9):
        samples.append(path, step, "data: a", lines)
    before = path.read_bytes()
    samples.cut(path, 7)
    assert before.startswith(path.read_bytes()) and path.read_bytes().count(b"\n---\n") == 1
    assert b"x\r\n" in path.read_bytes()
    samples.cut(path, 4)
    assert not path.exists()


# ---- what a run did not say


def test_perplexity_was_missing_from_the_evaluation_line(tmp_path, capsys):
    out = bare_report(tmp_path)
    for val_loss, shown in ((2.0647, "7.88"), (14.0, "1.20e+06"), (800.0, "1.01e+304")):
        out.evaluation(Progress(250, train_loss=1.9612, val_loss=val_loss), 0.1)
        line = capsys.readouterr().out
        assert line == f"step 250: train loss 1.9612, val loss {val_loss:.4f}, perplexity {shown}\n"
    assert rows(tmp_path, "val_loss")[0]["val_perplexity"] == pytest.approx(math.exp(min(val_loss, 700)))


def test_clipped_updates_are_counted_also_across_a_resume(train, tmp_path, capsys):
    flags = "--log_interval=10", "--grad_clip=0.8", "--eval_interval=10"
    train(*flags, "--log_interval=1")
    norms = [row["grad_norm"] for row in rows(tmp_path / "out")]
    shares = [sum(norm > 0.8 for norm in part) / 10 for part in (norms[:10], norms[10:])]
    assert 0 < max(shares) and min(shares) < 1
    straight = train(*flags)
    assert [row["clipped"] for row in rows(tmp_path / "out")] == shares
    assert straight["progress"].clipped == 0
    shown = [f"{share:.0%} clipped" for share in shares if share]
    assert re.findall(r"\d+% clipped", capsys.readouterr().out)[-len(shown) :] == shown
    train(*flags, "--max_iters=13", "--save_interval=13")
    train(*flags, "--max_iters=20", "--init_from=resume")
    assert [row["clipped"] for row in rows(tmp_path / "out")] == shares
    train(*flags, "--grad_clip=0.0")
    assert [row["clipped"] for row in rows(tmp_path / "out")] == [0, 0]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_muons_learning_rate_was_not_shown(train, tmp_path, capsys, optimizer):
    names = train(f"--optimizer={optimizer}", "--learning_rate=1e-3", "--muon_lr=5e-3")
    last = rows(tmp_path / "out")[-1]
    groups = names["opt"].param_groups
    muon = [last["lr"] * group["lr_scale"] for group in groups if group["kind"] == "muon"]
    assert [last[key] for key in last if key == "muon_lr"] == muon
    (line,) = lines_of(capsys.readouterr().out, "iter 20: ")
    assert (f", muon lr {last.get('muon_lr', 0):.2e}, " in line) == bool(muon) == (optimizer == "muon")


def test_no_line_says_one_threads(train, capsys):
    train("--max_iters=1", "--batch_size=1")
    assert not re.search(r"\b1 [a-z-]+[^s\W]s\b", capsys.readouterr().out.split("--- a sample")[0])


def test_config_json_did_not_say_that_another_text_was_used(train, datasets, tmp_path, capsys):
    """The box is printed once a run; config.json has its reason, and the run resumes."""
    meta = {"stand_in_for": "shakespeare", "stand_in_reason": "no route to host"}
    shutil.copytree(datasets / "small", datasets / "stand_in_2")
    path = datasets / "stand_in_2/meta.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | meta), encoding="utf-8")
    for flags in (["--max_iters=1"], ["--max_iters=2", "--init_from=resume"]):
        train("--dataset=stand_in_2", *flags)
        assert capsys.readouterr().out.count("no route to host") == 1
        saved = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
        assert meta.items() <= saved.items()
    train("--max_iters=1")
    assert "stand_in_for" not in json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))


def test_a_stand_in_for_the_real_text_is_announced(train, datasets, capsys):
    meta = {"stand_in_for": "shakespeare", "stand_in_reason": "no network"}
    assert "no network" in corpora.stand_in_notice(meta)
    shutil.copytree(datasets / "small", datasets / "stand_in")
    path = datasets / "stand_in/meta.json"
    meta |= json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(meta), encoding="utf-8")
    train("--dataset=stand_in", "--max_iters=1")
    assert "no network" in capsys.readouterr().out
