"""The loop: exactly so many updates, exact resume, accumulation, masks, precision, trouble."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

import data
import evaluate
import model
import optim
from conftest import ROOT, TINY
from machine import hardware
from runtime import guard, report
from text import prepare


def rows(out, key="loss") -> list[dict]:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if key in row]


def losses(out) -> list[float]:
    return [row["loss"] for row in rows(out)]


def weights(path) -> dict:
    return torch.load(path, weights_only=True)["model"]


def test_the_loss_falls_below_the_unigram_entropy(train, tmp_path, datasets):
    train("--max_iters=200", "--eval_interval=100", "--log_interval=50", "--n_layer=1")
    text = (datasets / "small.txt").read_text(encoding="utf-8")
    unigram = -sum(n / len(text) * math.log(n / len(text)) for n in Counter(text).values())
    first, last = rows(tmp_path / "out", "val_loss")[0], rows(tmp_path / "out", "val_loss")[-1]
    assert abs(first["val_loss"] - math.log(len(set(text)))) < 0.1
    assert last["val_loss"] < unigram - 0.3


def test_exactly_max_iters_updates_happen_and_are_saved(train, tmp_path, monkeypatch):
    steps = []
    step = optim.Muon.step
    monkeypatch.setattr(optim.Muon, "step", lambda self: (steps.append(1), step(self))[1])
    train("--max_iters=8", "--eval_interval=1000", "--always_save_checkpoint=False")
    assert len(steps) == 8
    assert torch.load(tmp_path / "out/ckpt.pt", weights_only=True)["step"] == 8
    assert (tmp_path / "out/best.pt").is_file()


def test_large_logits_are_computed_in_chunks_with_the_same_result(train, tmp_path, monkeypatch):
    """1 MB is 262,144 numbers: fewer than 160 windows of 64 tokens have logits, with 30 characters or so."""
    forward, with_targets, ends = model.GPT.forward, [], []

    def spy(self, idx, targets=None):
        with_targets.append(targets is not None)
        return forward(self, idx, targets)

    monkeypatch.setattr(model.GPT, "forward", spy)
    flags = "--block_size=64", "--batch_size=160", "--max_iters=2", "--dtype=float32", "--eval_interval=2"
    for limit in (1, 0, 100):
        with_targets.clear()
        train(f"--logits_mb={limit}", *flags)
        assert any(with_targets) == (limit == 1)
        ends.append((with_targets.count(True), weights(tmp_path / "out/ckpt.pt")))
    assert ends[0][0] == 2
    for name, weight in ends[1][1].items():
        torch.testing.assert_close(ends[0][1][name], weight, atol=1e-4, rtol=1e-4)
        assert torch.equal(weight, ends[2][1][name])


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(train, tmp_path):
    runs = []
    for seed in (1, 1, 2):
        train(f"--seed={seed}", "--max_iters=6", "--log_interval=1", "--dropout=0.1")
        runs.append(losses(tmp_path / "out"))
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("optimizer", ["muon", pytest.param("adamw", marks=pytest.mark.slow)])
def test_resume_is_exact(train, tmp_path, optimizer):
    """40 updates == 20 + resume + 20, bit for bit, with dropout, accumulation and Muon on."""
    flags = (
        f"--optimizer={optimizer}",
        "--dropout=0.1",
        "--gradient_accumulation_steps=2",
        "--log_interval=1",
    )
    flags += ("--lr_decay_iters=40", "--patience=3", "--eval_interval=10", "--warmup_iters=3")
    straight = train(*flags, "--max_iters=40")
    reference, out = weights(tmp_path / "out/ckpt.pt"), tmp_path / "out"
    expected = losses(out), rows(out, "val_loss")
    train(*flags, "--max_iters=20")
    resumed = train(*flags, "--max_iters=40", "--init_from=resume")
    for name, tensor in weights(out / "ckpt.pt").items():
        assert torch.equal(tensor, reference[name]), name
    assert losses(out) == expected[0]
    for ours, theirs in zip(rows(out, "val_loss"), expected[1], strict=True):
        assert ours | {"seconds": 0} == theirs | {"seconds": 0}
    for name in ("best_val_loss", "best_step", "bad_evals", "step", "tokens"):
        assert getattr(resumed["progress"], name) == getattr(straight["progress"], name)


def test_resume_continues_float16_with_its_scaler(train, tmp_path):
    flags = ("--dtype=float16", "--optimizer=adamw", "--log_interval=1", "--lr_decay_iters=12")
    train(*flags, "--max_iters=12")
    expected = losses(tmp_path / "out")
    train(*flags, "--max_iters=6")
    resumed = train(*flags, "--init_from=resume", "--max_iters=12")
    assert losses(tmp_path / "out") == expected
    assert resumed["scaler"].is_enabled()


def test_resume_says_what_has_changed_and_refuses_another_shape(train, capsys):
    train("--max_iters=4")
    train("--init_from=resume", "--max_iters=6", "--learning_rate=1e-4")
    assert "changed since the checkpoint: learning_rate: 0.003 -> 0.0001" in capsys.readouterr().out
    with pytest.raises(ValueError, match="was trained with n_layer=2, not 3"):
        train("--init_from=resume", "--n_layer=3")


def test_one_large_batch_equals_four_small_ones(train, tmp_path):
    seen = []
    for batch, steps in ((8, 1), (2, 4)):
        train(
            f"--batch_size={batch}",
            f"--gradient_accumulation_steps={steps}",
            "--max_iters=3",
            "--log_interval=1",
        )
        seen.append((losses(tmp_path / "out"), rows(tmp_path / "out")[-1]["grad_norm"]))
    assert seen[0][0] == pytest.approx(seen[1][0], abs=1e-6)
    assert seen[0][1] == pytest.approx(seen[1][1], abs=1e-5)


@pytest.fixture
def pairs(datasets, tmp_path, monkeypatch):
    """A prompt/response dataset with answers of very different length, some longer than a window."""
    monkeypatch.setattr(prepare, "DATASETS", datasets)
    if not (datasets / "pairs").is_dir():
        many = [{"prompt": "a" * (1 + i % 20), "response": "b" * (1 + i * i % 11)} for i in range(120)]
        many[5]["response"] = "b" * 400
        file = tmp_path / "pairs.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in many), encoding="utf-8")
        prepare.prepare("pairs", str(file), format="jsonl")
    return data.Windows("pairs", "train", 32)


def test_mean_of_means_never_happens(pairs):
    """Unequal numbers of targets in the micro-batches: the gradient is that of the mean over all targets."""
    torch.manual_seed(0)
    table = torch.randn(300, 300, dtype=torch.float64, requires_grad=True)
    batches = [pairs.batch(0, 2, micro, 4) for micro in range(4)]
    counts = [int((y != -1).sum()) for _, y in batches]
    assert len(set(counts)) > 1
    for x, y in batches:
        nats = F.cross_entropy(table[x].flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum")
        (nats / sum(counts)).backward()
    ours, table.grad = table.grad, None
    x, y = pairs.batch(0, 8)
    F.cross_entropy(table[x].flatten(0, 1), y.flatten(), ignore_index=-1).backward()
    assert torch.allclose(ours, table.grad, atol=1e-9, rtol=0)


def test_masked_data_trains_and_dropped_rows_are_counted(pairs, train, tmp_path, capsys):
    train("--dataset=pairs", "--max_iters=10", "--batch_size=1", "--log_interval=1")
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "out"))
    assert re.search(r"\d+ (train|val) examples? longer than a window: left out", capsys.readouterr().out)


def test_accumulation_with_masks_equals_one_batch(pairs, train, tmp_path):
    seen = []
    for batch, steps in ((8, 1), (2, 4)):
        train(
            "--dataset=pairs",
            f"--batch_size={batch}",
            f"--gradient_accumulation_steps={steps}",
            "--max_iters=3",
            "--log_interval=1",
        )
        seen.append(losses(tmp_path / "out"))
    assert seen[0] == pytest.approx(seen[1], abs=1e-6)


def test_tokens_per_iteration_are_printed_with_their_factors(train, tmp_path, capsys):
    train("--batch_size=6", "--gradient_accumulation_steps=2", "--max_iters=5")
    text = capsys.readouterr().out
    numbers = re.search(r"tokens/iter: (\d+) = (\d+) w.* x (\d+) t.* x (\d+) m.* x (\d+) p", text).groups()
    total, *factors = map(int, numbers)
    assert total == math.prod(factors) == 6 * 32 * 2
    assert rows(tmp_path / "out")[-1]["tokens"] == 5 * total


def test_epochs_are_turned_into_updates(run_script, capsys):
    flags = [flag for flag in TINY if not flag.startswith("--max_iters")]
    names = run_script("train.py", "--dataset=small", *flags, "--epochs=0.02", "--batch_size=4")
    windows = names["train_windows"].n_windows
    assert names["progress"].step == math.ceil(0.02 * windows / 4)
    assert f"{names['progress'].step} updates" in capsys.readouterr().out


def test_max_iters_on_the_command_line_beats_epochs_in_a_file(train, tmp_path):
    file = tmp_path / "epochs.py"
    file.write_text("epochs = 3\n", encoding="utf-8")
    assert train(str(file), "--epochs=0", "--max_iters=3")["progress"].step == 3


def scripted(monkeypatch, values):
    """Let evaluation find these val losses, one after the other; train losses fall."""
    found = iter(values)
    train_loss = iter(range(100, 0, -1))

    def fake(model, windows, *args, **kwargs):
        loss = next(train_loss) if windows.path.name == "train.bin" else next(found)
        return {"loss": float(loss), "standard_error": 0.1, "by_corpus": {}}

    monkeypatch.setattr(evaluate, "evaluate", fake)


def test_early_stopping_counts_evaluations_without_progress(train, tmp_path, monkeypatch):
    scripted(monkeypatch, [3, 2, 2, 2, 1])
    names = train("--patience=2", "--eval_interval=5", "--max_iters=100")
    assert names["progress"].step == 15  # the fourth evaluation
    best = torch.load(tmp_path / "out/best.pt", weights_only=True)
    assert best["step"] == 5
    assert best["best_val_loss"] == 2.0


def test_overfitting_is_marked_and_falling_val_is_not(train, monkeypatch, capsys):
    scripted(monkeypatch, [3, 2, 2.5, 2.4])
    train("--eval_interval=5", "--max_iters=15")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert ["overfitting" in line for line in lines] == [False, False, True, False]


def test_best_holds_the_weights_of_the_lowest_val_loss(train, tmp_path, monkeypatch):
    scripted(monkeypatch, [3, 1, 2])
    train("--eval_interval=10", "--max_iters=20", "--save_interval=2", "--keep_checkpoints=3")
    best = torch.load(tmp_path / "out/best.pt", weights_only=True)
    assert best["step"] == 10
    assert best["val_loss"] == min(row["val_loss"] for row in rows(tmp_path / "out", "val_loss"))
    names = sorted(path.name for path in (tmp_path / "out").glob("*.pt"))
    assert names == ["best.pt", "ckpt.pt", "ckpt_000016.pt", "ckpt_000018.pt", "ckpt_000020.pt"]


def test_a_nan_makes_no_step_and_keeps_the_last_good_file(train, tmp_path, monkeypatch):
    total_norm = torch.nn.utils.get_total_norm
    calls = []

    def poisoned(grads):
        calls.append(1)
        if len(calls) == 7:
            grads[0].fill_(math.nan)
        return total_norm(grads)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", poisoned)
    with pytest.raises(ValueError, match="update 7: loss .* no step was made") as error:
        train("--eval_interval=5", "--save_interval=1")
    for word in ("learning_rate", "grad_clip", "dtype"):
        assert word in str(error.value)
    saved = torch.load(tmp_path / "out/ckpt_000006.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())
    assert not (tmp_path / "out/ckpt_000007.pt").exists()


def test_batches_that_are_gathered_on_the_device_give_the_same_run(train, monkeypatch):
    """As on a GPU."""
    plain = train("--max_iters=8")["raw_model"].state_dict()
    monkeypatch.setattr(hardware, "free_bytes", lambda device: 2**30)
    names = train("--max_iters=8")
    assert names["train_windows"].on_device is not None
    torch.testing.assert_close(names["raw_model"].state_dict(), plain, rtol=0, atol=0)


def test_numbers_that_are_read_late_are_counted_once(train, monkeypatch):
    """Update 9 was never seen with log_interval=10, and update 10 twice."""
    seen, count = [], report.Report.count_update
    monkeypatch.setattr(guard, "READ_LATE", ("cpu",))

    def spied(self, progress, seconds, reading, numbers):
        seen.extend(update for update, _, _ in numbers)
        count(self, progress, seconds, reading, numbers)

    monkeypatch.setattr(report.Report, "count_update", spied)
    train("--max_iters=10", "--log_interval=5")
    assert seen == list(range(1, 11))


@pytest.mark.parametrize(
    "name", ["muon", *(pytest.param(n, marks=pytest.mark.slow) for n in ("adamw", "adam"))]
)
def test_numbers_read_one_update_late_change_nothing_and_a_nan_makes_no_step(
    train, tmp_path, monkeypatch, name
):
    """As on a GPU: a flag of the optimizer makes a bad update change nothing; the error comes in the next."""
    flags = f"--optimizer={name}", "--weight_decay=0.1", "--max_iters=8", "--log_interval=1"
    plain = train(*flags)["raw_model"].state_dict()
    numbers = rows(tmp_path / "out")
    monkeypatch.setattr(guard, "READ_LATE", ("cpu",))
    late = train(*flags)
    torch.testing.assert_close(late["raw_model"].state_dict(), plain, rtol=0, atol=0)
    for row, twin in zip(rows(tmp_path / "out"), numbers, strict=True):
        assert all(row[key] == twin[key] for key in ("step", "loss", "grad_norm") if key in twin)

    total_norm, before = torch.nn.utils.get_total_norm, []
    build = optim.build_optimizer
    monkeypatch.setattr(optim, "build_optimizer", lambda *given: before.append(build(*given)) or before[0])

    def everything() -> list[torch.Tensor]:
        params = [p for group in before[0].param_groups for p in group["params"]]
        return [t.detach().clone() for p in params for t in (p, *before[0].state[p].values())]

    def poisoned(grads):
        before.append(everything())
        if len(before) == 8:  # the optimizer, and seven updates
            grads[0].fill_(math.nan)
        return total_norm(grads)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", poisoned)
    with pytest.raises(ValueError, match="update 7: loss .* no step was made, .* the gradient is not"):
        train(*flags, "--max_iters=20", "--log_interval=50")
    assert len(before) == 9  # update 8 had its gradients, and made no step either
    assert all(map(torch.equal, everything(), before[7]))
    with pytest.raises(ValueError, match="update 7: .* no step was made"):
        before.clear()
        train(*flags, "--max_iters=20", "--log_interval=50", "--save_interval=7")
    assert len(before) == 8 and not (tmp_path / "out/ckpt_000007.pt").exists()


def test_clipping_happens_after_backward_and_before_the_step(train, monkeypatch):
    norms = []
    step = optim.Muon.step

    def spy(self):
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.cat([g.flatten() for g in grads]).norm().item())
        return step(self)

    monkeypatch.setattr(optim.Muon, "step", spy)
    train("--grad_clip=1e-3", "--max_iters=5")
    assert norms == pytest.approx([1e-3] * 5, rel=1e-3)
    norms.clear()
    train("--grad_clip=1e-3", "--max_iters=5", "--dtype=float16")
    assert norms == pytest.approx([1e-3] * 5, rel=1e-3)  # unscaled before it was clipped


def test_a_float16_overflow_skips_one_step_and_halves_the_scale(train, monkeypatch, capsys):
    unscale = torch.amp.GradScaler.unscale_
    calls = []

    def overflow(self, optimizer):
        calls.append(self.get_scale())
        if len(calls) == 3:
            optimizer.param_groups[0]["params"][0].grad.fill_(math.inf)
        return unscale(self, optimizer)

    monkeypatch.setattr(torch.amp.GradScaler, "unscale_", overflow)
    names = train("--dtype=float16", "--optimizer=adamw", "--max_iters=6", "--log_interval=1")
    assert calls[3] == calls[2] / 2
    assert names["reporter"].skipped == 1
    assert "1 skipped" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_ends_within_two_percent_of_float32(train, tmp_path, dtype):
    ends = []
    for name in ("float32", dtype):
        train(f"--dtype={name}", "--max_iters=50", "--eval_interval=50")
        ends.append(rows(tmp_path / "out", "val_loss")[-1]["val_loss"])
    assert ends[1] == pytest.approx(ends[0], rel=0.02)


def test_running_out_of_memory_is_retried_with_half_the_batch(train, tmp_path, monkeypatch, capsys):
    train("--batch_size=8", "--max_iters=3", "--log_interval=1")
    expected = losses(tmp_path / "out")
    capsys.readouterr()
    move = hardware.to_device

    def small_memory(t, device):
        if len(t) > 4:
            raise torch.OutOfMemoryError("injected")
        return move(t, device)

    monkeypatch.setattr(hardware, "to_device", small_memory)
    names = train("--batch_size=8", "--max_iters=3", "--log_interval=1")
    assert losses(tmp_path / "out") == pytest.approx(expected, abs=1e-6)
    assert (names["batch_size"], names["micro_steps"]) == (4, 2)
    written = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    assert (written["batch_size"], written["global_batch_size"]) == (4, 8)
    assert capsys.readouterr().out.count("out of memory: going on with batch_size=4") == 1
    with pytest.raises(ValueError, match="out of memory with batch_size=8; .* first: --batch_size=4"):
        train("--batch_size=8", "--oom_retry=False")


def test_evaluation_and_sampling_do_not_disturb_training(train, tmp_path):
    runs = []
    for flags in (("--eval_interval=5",), ("--eval_interval=10",), ("--sample_interval=3",)):
        train(*flags, "--dropout=0.1", "--log_interval=1")
        runs.append(losses(tmp_path / "out"))
    assert runs[0] == runs[1] == runs[2]


def test_coprime_intervals_work_together(train, tmp_path):
    train(
        "--eval_interval=7", "--save_interval=5", "--log_interval=3", "--max_iters=16", "--keep_checkpoints=9"
    )
    assert [row["step"] for row in rows(tmp_path / "out")] == [3, 6, 9, 12, 15]
    assert [row["step"] for row in rows(tmp_path / "out", "val_loss")] == [0, 7, 14, 16]
    assert len(list((tmp_path / "out").glob("ckpt_*.pt"))) == 3


def test_eval_only_writes_nothing(train, tmp_path, capsys):
    train("--max_iters=4", "--eval_interval=4")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    trained = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 4:")]
    with pytest.raises(SystemExit) as end:
        train("--init_from=resume", "--eval_only")
    assert not end.value.code
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 4:")] == trained
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_fine_tuning_starts_from_the_weights_alone(train, tmp_path):
    train("--max_iters=10", "--eval_interval=10", "--arch=gpt2")
    base = rows(tmp_path / "out", "val_loss")[-1]["val_loss"]
    names = train(f"--init_from={tmp_path / 'out'}", "--max_iters=5", f"--out_dir={tmp_path / 'tuned'}")
    first = rows(tmp_path / "tuned", "val_loss")[0]
    assert first["step"] == 0
    assert first["val_loss"] == pytest.approx(base, abs=1e-6)
    assert names["raw_model"].config.arch == "gpt2"  # the base's shape, though train.py's default is another


def test_frozen_parameters_stay(train, tmp_path):
    names = train("--freeze=wte,blocks.0", "--max_iters=5", "--eval_interval=5", "--save_interval=1")
    first, last = (weights(tmp_path / "out" / name) for name in ("ckpt_000001.pt", "ckpt.pt"))
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert all(not name.startswith(("wte", "blocks.0")) for name in changed)
    assert any(name.startswith("blocks.1") for name in changed)
    trained = {id(p) for group in names["opt"].param_groups for p in group["params"]}
    assert id(names["raw_model"].wte.weight) not in trained


def test_a_run_that_is_longer_already_says_how_long(train):
    train("--max_iters=3")
    with pytest.raises(ValueError, match="has made 3 updates; set --max_iters higher"):
        train("--init_from=resume", "--max_iters=2")


def test_compile_that_fails_goes_on_in_eager_mode(train, monkeypatch, capsys):
    def broken(model):
        raise RuntimeError("no compiler here\nand a long explanation")

    monkeypatch.setattr(torch, "compile", broken)
    train("--compile", "--max_iters=2")
    text = capsys.readouterr().out
    assert (
        text.count("torch.compile does not work here, going on without it: RuntimeError: no compiler here\n")
        == 1
    )


@pytest.mark.slow
def test_the_threads_are_set_before_compiling(train, monkeypatch):
    """torch.compile guards the number: set afterwards, the first update compiled all again (a minute)."""
    seen = []

    def compile_nothing(function):
        seen.append(torch.get_num_threads())
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    before = torch.get_num_threads()
    try:
        train("--compile", "--max_iters=1", f"--threads={before + 1}")
    finally:
        torch.set_num_threads(before)
    assert seen == [before + 1]


def test_every_script_runs_where_there_is_no_cuda_at_all(train, run_script, monkeypatch):
    def absent(*args, **kwargs):
        raise AssertionError("torch.cuda was touched")

    for name in (
        "get_device_name",
        "max_memory_allocated",
        "set_device",
        "get_device_capability",
        "synchronize",
    ):
        monkeypatch.setattr(torch.cuda, name, absent)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    train("--max_iters=3", "--device=auto")
    run_script("sample.py", "--max_new_tokens=5")
    run_script("evaluate.py")


def test_devices_and_dtypes_that_are_not_there(train):
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device=cuda is not available"):
            train("--device=cuda")
        with pytest.raises(ValueError, match="backend=nccl needs CUDA"):
            train("--backend=nccl")
    assert hardware.choose_device("auto").type in ("cpu", "cuda")  # never mps
    with pytest.raises(ValueError, match="dtype=fp8 is unknown"):
        train("--dtype=fp8")


def test_the_run_repeats_from_its_config_json(train, tmp_path):
    train("--max_iters=6", "--log_interval=1", "--dropout=0.1", "--learning_rate=2e-3")
    expected = losses(tmp_path / "out")
    saved = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    train(*(f"--{name}={value}" for name, value in saved.items() if name != "expected"))
    assert losses(tmp_path / "out") == expected


def test_a_signal_in_an_update_ends_the_run_after_the_next(train, tmp_path, monkeypatch, capsys):
    """In this process, at a known update; from outside, at any moment: the next test."""
    step, calls = optim.Muon.step, []

    def interrupted(self):
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    monkeypatch.setattr(optim.Muon, "step", interrupted)
    flags = "--log_interval=1", "--lr_decay_iters=20", "--dropout=0.1", "--eval_interval=20"
    with pytest.raises(SystemExit) as end:
        train(*flags)
    assert not end.value.code
    assert "stopped at step 8, saved; go on: python train.py --init_from=resume" in capsys.readouterr().out
    assert torch.load(tmp_path / "out/ckpt.pt", weights_only=True)["step"] == len(calls) == 8
    train(*flags, "--init_from=resume", "--max_iters=10")
    resumed = losses(tmp_path / "out")
    train(*flags, "--max_iters=10")
    assert resumed == losses(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_at_a_step_boundary_and_the_run_goes_on_exactly(train, tmp_path, datasets, number):
    flags = ("--log_interval=1", "--lr_decay_iters=3000", "--eval_interval=5000", "--dropout=0.1")
    out = tmp_path / "stopped"
    code = "import pathlib, runpy, sys; from text import prepare; "
    code += f"prepare.DATASETS = pathlib.Path({str(datasets)!r}); "
    code += "sys.argv[0] = 'train.py'; runpy.run_path('train.py', run_name='__main__')"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            "--dataset=small",
            *TINY,
            *flags,
            "--max_iters=3000",
            f"--out_dir={out}",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not (out / "metrics.jsonl").is_file() or len(losses(out)) < 10:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    step = torch.load(out / "ckpt.pt", weights_only=True)["step"]
    assert f"stopped at step {step}, saved; go on: python train.py --init_from=resume --out_dir={out}" in text
    train(*flags, "--init_from=resume", f"--out_dir={out}", f"--max_iters={step + 5}")
    resumed = losses(out)
    train(*flags, f"--max_iters={step + 5}")
    assert resumed == losses(tmp_path / "out")


@pytest.mark.slow
def test_an_error_in_the_middle_saves_what_was_learned(datasets, tmp_path):
    code = f"""
import pathlib, runpy, sys, torch
from text import prepare
prepare.DATASETS = pathlib.Path({str(datasets)!r})
clip, calls = torch.nn.utils.clip_grads_with_norm_, []
def broken(*args):
    calls.append(1)
    if len(calls) == 4:
        raise KeyError("injected")
    return clip(*args)
torch.nn.utils.clip_grads_with_norm_ = broken
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""
    command = [sys.executable, "-c", code, "--dataset=small", *TINY, f"--out_dir={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "saved step 3" in done.stderr
    assert "KeyError: 'injected'" in done.stderr
    assert torch.load(tmp_path / "out/ckpt.pt", weights_only=True)["step"] == 3
