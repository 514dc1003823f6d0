"""Numbers gone bad: NaN and infinity wherever they can enter a run, and learning rates of a million."""

import functools
import json
import math

import pytest
import torch
import torch.nn.functional as F

import data
import optim
from conftest import ROOT, TINY
from machine import distributed

pytestmark = pytest.mark.slow
DTYPES = ("float32", "bfloat16", "float16")
MILLIONS = ("--learning_rate=1e6", "--optimizer=adamw --learning_rate=1e6", "--muon_lr=1e6")


@pytest.fixture
def poisoned(train, tmp_path, monkeypatch):
    """poisoned(where, value, dtype, *flags) trains 20 updates; in update 7 `value` gets into `where`.

    Returns (the error's text or "", names of train.py if it has ended). Whatever was on the disk before
    update 7 must be there afterwards, bit for bit, if the run has not gone on.
    """
    place, lr_at, window_batch = distributed.place, optim.lr_at, data.Windows.batch
    cross_entropy = F.cross_entropy

    def run(where: str, value: float, dtype: str, *flags: str):
        state, files = {"step": -1, "hit": 0}, {}

        def place_spy(*args):
            state["model"] = place(*args)
            if where == "gradient":
                state["model"].blocks[1].mlp.up.weight.register_hook(poison_gradient)
            return state["model"]

        @functools.wraps(lr_at)
        def lr_spy(step, **schedule):
            state["step"] = step
            if step == 6 and not state["hit"]:
                files.update({p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.pt")})
                if where == "weight":
                    state["hit"] += 1
                    state["model"].blocks[1].attn.v.weight.data[2, 3] = value
            return lr_at(step, **schedule)

        def poison_gradient(gradient):
            if state["step"] != 6:
                return None
            state["hit"] += 1
            gradient = gradient.clone()
            gradient[1, 1] = value
            return gradient

        def batch_spy(self, step, *args):
            x, y = window_batch(self, step, *args)
            if step == 6 and where == "embedding":  # bad for long, but the token comes first in update 7
                state["hit"] += 1
                state["model"].wte.weight.data[x[0, 0]] = value
            if step == 6 and where == "no targets":
                state["hit"] += 1
                y = torch.full_like(y, -1)
            return x, y

        def loss_spy(*args, reduction, **kwargs):
            nats = cross_entropy(*args, reduction=reduction, **kwargs)
            if where == "loss" and reduction == "sum" and state["step"] == 6:
                state["hit"] += 1
                nats = nats * value
            return nats

        with monkeypatch.context() as patch:
            patch.setattr(distributed, "place", place_spy)
            patch.setattr(optim, "lr_at", lr_spy)
            patch.setattr(data.Windows, "batch", batch_spy)
            patch.setattr(F, "cross_entropy", loss_spy)
            text, names = "", {}
            try:
                names = train(f"--dtype={dtype}", "--eval_interval=5", "--save_interval=3", *flags)
            except ValueError as error:
                text = str(error)
        assert state["hit"] == 1
        if text:
            now = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.pt")}
            assert now == files and {"ckpt.pt", "best.pt", "ckpt_000006.pt"} <= now.keys()
            for name in now:
                weights = torch.load(tmp_path / "out" / name, weights_only=True)["model"]
                assert all(t.isfinite().all() for t in weights.values()), name
            assert "\n" not in text
        return text, names

    return run


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["weight", "embedding", "gradient", "loss"])
def test_training_stops_before_the_step_and_names_the_cause(poisoned, where, value, dtype, tmp_path, figure):
    if (where, dtype) == ("gradient", "float16"):
        pytest.skip("an overflow, below")
    text, _ = poisoned(where, value, dtype)
    assert text.startswith("update 7: loss "), text
    assert f"no step was made, the last good checkpoint is in {tmp_path / 'out'}" in text
    cause = {
        "weight": "The weights were not finite before this update, first blocks.1.attn.v.weight (1 of",
        "embedding": "The weights were not finite before this update, first wte.weight (32 of ",
        "gradient": "loss are finite, the gradient is not, first blocks.1.mlp.up.weight (1 of 4,096 numbers)",
        "loss": "The weights are finite, but the loss computed from them is not; losses before",
    }
    assert cause[where] in text
    assert "; losses before: 4." in text or "; losses before: 3." in text
    assert "too high" not in text
    for advice in ("smaller learning_rate (now 3.00e-03)", "muon_lr", "grad_clip", f"(now {dtype})"):
        assert advice in text
    figure("NaN or infinity in a run: stopped before the step, the cause named, every checkpoint as it was")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_overflow_in_float16_skips_one_step_and_counts_it(poisoned, value, tmp_path):
    text, names = poisoned("gradient", value, "float16")
    assert not text and names["reporter"].skipped == 1 and names["progress"].step == 20
    assert all(p.isfinite().all() for p in names["raw_model"].parameters())


def test_an_overflow_in_float16_that_no_scale_cures_ends_the_run(train, monkeypatch):
    """Otherwise a run would skip all of its steps and end without a word."""
    backward = torch.Tensor.backward

    def poison(self):
        backward(self)
        model["raw"].head.weight.grad[0, 0] = math.nan

    place, model = distributed.place, {}
    monkeypatch.setattr(distributed, "place", lambda *args: model.setdefault("raw", place(*args)))
    monkeypatch.setattr(torch.Tensor, "backward", poison)
    with pytest.raises(ValueError, match="update 30: .*the gradient is not, first head.weight") as error:
        train("--dtype=float16", "--max_iters=40", "--eval_interval=100")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_without_any_target_changes_nothing_much(poisoned, dtype):
    text, names = poisoned("no targets", 0.0, dtype)  # 0 / 0 would be NaN
    assert not text and names["progress"].step == 20 and not names["reporter"].skipped
    assert all(p.isfinite().all() for p in names["raw_model"].parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_spoiled_by_a_step_are_not_saved_by_the_evaluation_that_follows(
    train, tmp_path, monkeypatch, value
):
    place, lr_at, files, model = distributed.place, optim.lr_at, {}, {}

    @functools.wraps(lr_at)
    def lr_spy(step, **schedule):
        if step == 10:
            files.update({p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.pt")})
            model["raw"].wte.weight.data.fill_(value)
        return lr_at(step, **schedule)

    monkeypatch.setattr(distributed, "place", lambda *args: model.setdefault("raw", place(*args)))
    monkeypatch.setattr(optim, "lr_at", lr_spy)
    with pytest.raises(ValueError, match=r"train.bin is nan: not finite: wte.weight \(.*learning_rate"):
        train("--eval_interval=5")
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.pt")}
    assert {"ckpt.pt", "best.pt"} == files.keys()


# ---- a learning rate of a million
def check_line(text: str, out, rates: str, now: str) -> None:
    """One line that names the rate; only the first evaluation was saved, and updates ended soon."""
    assert "\n" not in text and f"{rates} is too high" in text and now in text, text
    best = torch.load(out / "best.pt", weights_only=True)
    assert best["step"] == 0 and math.isfinite(best["val_loss"])
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert max(row["step"] for row in rows) <= 12


@pytest.mark.parametrize("arch", ["modern", "gpt2", "llama"])
@pytest.mark.parametrize("flags", MILLIONS)
def test_a_learning_rate_of_a_million_is_named(train, tmp_path, arch, flags, figure):
    """It need not become NaN: norms and capped logits keep every number finite, and the loss absurd."""
    with pytest.raises(ValueError, match="^update ") as error:
        train(f"--arch={arch}", *flags.split(), "--max_iters=200", "--eval_interval=100")
    rates = "learning_rate" if "adamw" in flags else "learning_rate or muon_lr"
    now = "muon_lr (1.00e+06" if flags.startswith("--muon_lr") else "learning_rate (now 1.00e+06)"
    check_line(str(error.value), tmp_path / "out", rates, now)
    figure("a learning rate of a million: stopped, and named as the cause")


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_process_ends_in_one_line_and_code_2(forks, datasets, tmp_path, optimizer):
    out = tmp_path / "out"
    command = [*TINY, f"--dataset={datasets / 'small'}", f"--out_dir={out}", f"--optimizer={optimizer}"]
    command += ["--learning_rate=1e6", "--max_iters=200", "--eval_interval=100"]
    done = forks.run(["train.py", *command], ROOT)
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: update ")
    rates = "learning_rate" if optimizer == "adamw" else "learning_rate or muon_lr"
    check_line(line, out, rates, "learning_rate (now 1.00e+06)")
