"""bench.py and its helpers: turns and ratios, runs that train as train.py does, fits, and all items, tiny."""

import itertools
import math
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bench
import config
import data
from conftest import ROOT, TINY
from lab import decode, measure, scaling
from lab import gpu as one_gpu
from lab.measure import CPU, NotMeasured, Row, Run, settings_of
from machine.speed import flops_per_token
from runtime.trust import read_meta
from test_errors import report as exit_code
from text import prepare, settle


@pytest.fixture
def tiny(datasets, monkeypatch):
    """As with --quick, but on the small text of the tests and one turn."""
    monkeypatch.setattr(prepare, "DATASETS", datasets)
    monkeypatch.setattr(measure, "SMALLER", {**bench.QUICK, "dataset": str(datasets / "small")})
    for name in ("rounds", "blocks", "seeds"):
        monkeypatch.setattr(bench, name, 1)
    monkeypatch.setattr(bench, "ablation_seconds", 0.05)
    monkeypatch.setattr(bench, "growth_seconds", 0.2)
    measure.trained.cache_clear()


# ---- rows, turns, ratios
def test_sides_take_turns():
    calls = []
    sides = [lambda turn, name=name: calls.append((name, turn)) or 10 * turn + name for name in (1, 2)]
    assert measure.alternate(*sides, turns=3).tolist() == [[1, 11, 21], [2, 12, 22]]
    assert calls == [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (2, 2)]


def test_a_side_may_give_several_numbers():
    found = measure.alternate(lambda turn: (turn, -turn), lambda turn: (5, 6), turns=2)
    assert found.tolist() == [[[0, 0], [1, -1]], [[5, 6], [5, 6]]]


def test_a_ratio_is_ours_over_theirs_turn_by_turn():
    row = measure.compared("speed", [1, 4, 9], [1, 1, 9], "tokens/s", ">= 2")  # of the medians it would be 4
    assert row == Row("speed", "1.000", "4.000 / 1.000 tokens/s", ">= 2", "1.000..4.000")


def test_a_quantity_alone_is_the_median_of_its_turns():
    row = measure.measured("memory", [700, 1234.5, 650], "MB", "< 900")
    assert row == Row("memory", "", "700.0 MB", "< 900", "650.0..1,234")


def test_a_clock_measures_one_call():
    assert 0.05 <= measure.seconds_of(time.sleep, 0.05) < 0.5


def test_the_machine_is_named():
    text = "\n".join(measure.describe_machine())
    for part in (
        "cpu: ",
        " cores",
        "GB of memory",
        f"torch {torch.__version__}",
        "numpy ",
        "tiktoken ",
        "commit ",
    ):
        assert part in text


# ---- training
def test_settings_are_those_of_train_py(run_script, capsys):
    with pytest.raises(SystemExit):
        run_script("train.py", "-h")
    shown = capsys.readouterr().out
    for name, value in {**settings_of(), "device": "auto"}.items():
        assert f"--{name}={value} ".replace("\n", "\\n") in shown
    assert settings_of().keys() == config.read_comments(str(ROOT / "train.py")).keys()


def test_changes_beat_smaller_beats_files_beats_defaults(monkeypatch):
    assert settings_of("config/classic.py")["n_layer"] == 4
    monkeypatch.setattr(measure, "SMALLER", dict(n_layer=1, n_embd=32))
    found = settings_of("config/classic.py", n_embd=64)
    assert (found["arch"], found["n_layer"], found["n_embd"], found["weight_decay"]) == ("gpt2", 1, 64, 0.1)


@pytest.mark.parametrize("optimizer", ["muon", pytest.param("adamw", marks=pytest.mark.slow)])
def test_a_run_ends_with_the_weights_of_train_py(train, datasets, optimizer):
    theirs = train(f"--optimizer={optimizer}", "--warmup_iters=3", "--weight_decay=0.2")
    flags = dict(config.parse_flag(flag, settings_of()) for flag in TINY)
    changes = dict(optimizer=optimizer, warmup_iters=3, weight_decay=0.2)
    run = Run(settings_of(**flags | changes), theirs["text_tokenizer"].vocab_size)
    for step in range(20):
        run.update(step, *theirs["train_windows"].batch(step, 4))
    for name, weights in theirs["raw_model"].state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], weights, rtol=0, atol=1e-6)


def test_a_loss_from_the_model_gives_the_same_gradient():
    x = torch.randint(65, (2, 16))
    y = torch.where(torch.rand(2, 16) < 0.3, -1, x)
    whole, chunked = (Run(settings_of(n_embd=32, block_size=16, dtype="float32"), 65) for _ in range(2))
    whole.in_chunks, chunked.in_chunks = False, True

    def summed(x, y):  # what GPT.forward(idx, targets) may give: nats of the scored targets, added up
        logits = chunked.model.to_logits(chunked.model.trunk(x))
        rows = zip(logits, y, strict=True)
        return sum(F.cross_entropy(row, target, ignore_index=-1, reduction="sum") for row, target in rows)

    chunked.loss_of = summed
    for run in (whole, chunked):
        run.gradients(x, y)
    assert whole.model.head.weight.grad.abs().max() > 1e-4
    for ours, theirs in zip(chunked.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_training_by_the_clock_ends_the_schedule_in_time(tiny, monkeypatch):
    steps, update = [], Run.update
    monkeypatch.setattr(Run, "update", lambda run, step, x, y: steps.append(step) or update(run, step, x, y))
    settings = settings_of(max_iters=100_000)
    began = time.perf_counter()
    loss, flops = scaling.train_for(settings, 0.6)
    assert 0.6 <= time.perf_counter() - began < 6
    assert steps == sorted(steps) and steps[0] == 0 and 70_000 <= steps[-1] < 100_000
    assert 1 < loss < 3.5  # from ln(V), which is about 4
    model = Run(settings, read_meta(prepare.folder_of(settings["dataset"]))["vocab_size"]).model
    weights = sum(p.numel() for p in model.parameters()) - model.wte.weight.numel()
    assert flops == 6 * weights * len(steps) * 4 * 32


def test_training_with_a_budget_makes_as_many_updates_as_it_pays_for(tiny, monkeypatch):
    steps, update = [], Run.update
    monkeypatch.setattr(Run, "update", lambda run, step, x, y: steps.append(step) or update(run, step, x, y))
    settings = settings_of()
    vocab_size = read_meta(prepare.folder_of(settings["dataset"]))["vocab_size"]
    model = Run(settings, vocab_size).model
    names = {name for name, _ in model.named_parameters()}
    weights = sum(p.numel() for name, p in model.named_parameters() if "wte" not in name)
    assert "wte.weight" in names
    loss, counted, tokens = scaling.train_with(settings, 7.2 * 6 * weights * 4 * 32)
    assert (steps, counted, tokens) == ([*range(7)], weights, 7 * 4 * 32)
    assert 1 < loss < 5


def test_the_baseline_trains_too(tiny):
    settings = settings_of("config/classic.py", learning_rate=1e-2)
    windows = data.Windows(settings["dataset"], "train", 32)
    model = Run(settings, read_meta(windows.path.parent)["vocab_size"]).model
    x, y = windows.batch(0, 16)
    losses = []
    update = measure.plain_loop(settings, windows, model)
    for step in range(61):
        if step % 60 == 0:
            losses.append(F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-1))
        update(step)
    assert losses[1] < losses[0] - 0.8


@pytest.mark.slow
def test_a_whole_run_is_made_once_and_shared(tiny, capsys):
    result, rows = measure.trained("config/tiny.py", 1, "--device=cpu", "--max_iters=6")
    assert measure.trained("config/tiny.py", 1, "--device=cpu", "--max_iters=6") == (result, rows)
    assert capsys.readouterr().err == "running train.py config/tiny.py, turn 2\n"
    assert rows[-1]["step"] == 6 and rows[-1]["val_loss"] == result["final_val_loss"]
    assert max(row.get("memory_mb", 0) for row in rows) > 100
    side = measure.time_and_loss("config/tiny.py", "--device=cpu", "--max_iters=6")
    assert side(1) == (result["training_time"], result["final_val_loss"])


@pytest.mark.slow
def test_a_run_that_fails_says_why(tiny):
    with pytest.raises(NotMeasured, match=r"config/tiny\.py failed: error: .*n_embd=32 .* n_head=5"):
        measure.trained("config/tiny.py", 0, "--n_head=5")


def test_operations_per_token_are_counted():
    model = Run(
        settings_of(arch="gpt2", n_layer=2, n_embd=32, n_head=2, block_size=16, optimizer="adamw"), 50
    ).model
    weights = (50 + 16) * 32 + 2 * 12 * 32 * 32 + 5 * 32  # embeddings, matrices, norms
    assert flops_per_token(model) == 6 * weights + 12 * 2 * 32 * 16


def test_rates_of_a_gpu_are_right_on_a_cpu(tiny, monkeypatch):
    seconds = []

    def clocked(function, *arguments):
        function(*arguments)
        return seconds.pop()

    monkeypatch.setattr(measure, "seconds_of", clocked)
    settings = settings_of("config/base.py", block_size=16)
    model = Run(settings, 99).model
    seconds[:] = [2.0, 4.0, 8.0]
    assert measure.matmul_rate(CPU, 16)(0) == 20 * 2 * 16**3 / 8
    assert measure.training_rate(settings, 99, CPU)(0) == 10 * 4 * 16 * flops_per_token(model) / 4
    assert measure.decoding_rate(model, 3, 5)(0) == 3 * 5 / 2


# ---- fits
def test_an_exponent_is_recovered():
    x = np.array([64, 128, 256, 512, 1024, 2048])
    noise = np.exp(np.random.default_rng(1).normal(0, 0.02, len(x)))
    assert scaling.exponent(x, 7 * x**-0.3) == pytest.approx(-0.3)
    assert scaling.exponent(x, 0.02 * x**1.5 * noise) == pytest.approx(1.5, abs=0.05)


def test_the_envelope_holds_what_no_cheaper_point_beats():
    compute, loss = [4, 1, 2, 3, 4, 2], [1.0, 3.0, 2.5, 2.05, 0.9, 2.0]
    assert scaling.envelope(compute, loss) == [1, 5, 4]
    rng = np.random.default_rng(2)
    compute, loss = rng.random(50), rng.random(50)
    pairs = list(zip(compute, loss, strict=True))
    beaten = [any(c <= a and n < b for c, n in pairs) for a, b in pairs]
    assert sorted(scaling.envelope(compute, loss)) == [i for i in range(50) if not beaten[i]]


# ---- the items
@pytest.mark.parametrize(
    "name",
    [
        "throughput",
        "generation",
        pytest.param("bytepairs", marks=pytest.mark.needs("tokenizers")),
        pytest.param("preparing", marks=pytest.mark.slow),
        pytest.param("growth", marks=pytest.mark.slow),
        pytest.param("ablation", marks=pytest.mark.slow),
        pytest.param("sizes", marks=pytest.mark.slow),
        pytest.param("claims", marks=pytest.mark.slow),
    ],
)
def test_an_item_gives_rows_with_numbers_and_targets(tiny, monkeypatch, tmp_path, name):
    monkeypatch.setattr(bench, "plot", True)
    monkeypatch.setattr(bench, "out_dir", str(tmp_path))
    monkeypatch.setattr(scaling, "AXES", dict(block_size=(16, 32, 64), n_layer=(1, 2, 3)))
    rows = list(bench.rows_of(bench.ITEMS[name]))
    expected = dict(
        bytepairs=2, preparing=2, throughput=4, generation=7, growth=5, sizes=6, claims=23
    )  # fmt: skip
    assert len(rows) == expected.get(name, 1 + len(scaling.SWITCHES))
    for row in rows[: -1 if name == "growth" else None]:  # so short a training may have no law
        assert row.target == "reported" or row.target.startswith((">= ", "<= "))
        numbers = [row.ratio or "1", *row.absolute.split(" ")[:1]]
        assert all(math.isfinite(float(number.replace(",", ""))) for number in numbers), row
    assert len({row.what for row in rows}) == len(rows)
    plots = sorted(path.name for path in tmp_path.iterdir())
    assert plots == (["growth_cost.png", "growth_loss.png"] if name == "growth" else [])


def test_decoding_compares_each_precision_with_llama_cpp(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    alone = list(bench.rows_of(bench.decoding))
    assert alone[-1].what == "not measured: pip install llama-cpp-python"
    kinds = [row.what.removeprefix("tokens/s, ") for row in alone[:-1]]
    assert [kind for kind in kinds if kind != "bfloat16"] == ["float32", "int8", "int4"]
    assert all(float(row.absolute.split(" ")[0].replace(",", "")) > 0 for row in alone[:-1])
    monkeypatch.setattr(decode, "llama_cpp_rate", lambda file, n: lambda turn: 1e-3)
    rows = list(bench.rows_of(bench.decoding))
    assert [row.what for row in rows] == [f"tokens/s, {kind} / llama.cpp" for kind in kinds]
    assert [row.target for row in rows] == ["reported"] * (len(kinds) - 1) + [">= 0.6"]


# ---- one GPU
def runs_of_train_py(monkeypatch, batch_sizes=()) -> None:
    """What measure.trained would give, at once: two progress lines, two evaluations, what was printed."""

    def trained(file, turn, *flags):
        cpu, classic = "--offload=cpu" in flags, "classic" in file
        rate, memory = (4e6, 900) if cpu else (8e6, 1000)
        rows = [
            dict(step=i, tokens=16384 * i, loss=1.0, tokens_per_second=rate, memory_mb=memory)
            for i in (10, 20)
        ]
        rows += [dict(step=i, seconds=float(i), val_loss=2.0) for i in (10, 20)]
        printed = "".join(f"out of memory: going on with batch_size={n}, grad\n" for n in batch_sizes)
        result = dict(training_time=2.0, final_val_loss=1.39, best_val_loss=1.46, printed=printed)
        return {**result, "best_step": 20 if classic else 10}, rows

    monkeypatch.setattr(measure, "trained", trained)


def test_each_part_of_the_gpu_item_runs_on_a_cpu_at_a_tiny_size(tiny, monkeypatch):
    """In this process; the runs of train.py are given."""
    runs_of_train_py(monkeypatch, batch_sizes=(2,))
    monkeypatch.setattr(settle, "ensure", lambda name: {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(one_gpu, "TURNS", 1)
    found = {row.what: row for row in bench.rows_of(bench.gpu)}
    assert not [what for what in found if "not measured" in what]
    for words in (
        "124M, batch 32", "decoding, int8", "fused / all scores: peak memory", "TF32 / float32: time",
        "float16 / float32: peak", "gradient_checkpointing / without", "offload=cpu",
    ):  # fmt: skip
        assert any(words in what for what in found), words
    assert found["shakespeare_char: an update"].absolute == "2.048 ms"
    assert found["training time, shakespeare_char / classic to its best"].ratio == "0.1000"
    assert found["out of memory with batch_size=4: went on with 2"].absolute == "1.000 times halved"
    offload = (
        found["update, offload=cpu / on the GPU: time"],
        found["update, offload=cpu / on the GPU: peak memory"],
    )
    assert [row.ratio for row in offload] == ["2.000", "0.9000"]


def test_a_part_that_fails_says_why_and_the_others_go_on(tiny, monkeypatch):
    def broken():
        yield Row("first", "", "", "", "")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    def whole():
        yield Row("second", "", "", "", "")

    monkeypatch.setattr(one_gpu, "PARTS", (broken, whole))
    expected = ["first", "broken: not measured: CUDA out of memory. Tried to allocate 2 GiB", "second"]
    assert [row.what for row in bench.rows_of(bench.gpu)] == expected
    monkeypatch.setattr(one_gpu, "BUDGET", -1.0)
    assert [row.what for row in bench.rows_of(bench.gpu)][
        -1
    ] == "whole: not measured: the -1 seconds are over"


@pytest.mark.slow
@pytest.mark.alone
def test_caches_are_warmed_side_by_side_and_in_time(tmp_path):
    """A process that fails does not matter; one that takes too long is ended."""
    touch = "import pathlib, time; time.sleep(0.3); pathlib.Path(r'{}').touch()"
    quick = tuple(["-c", touch.format(tmp_path / str(i))] for i in range(2))
    began = time.monotonic()
    one_gpu.warm((*quick, ["-c", "1 / 0"], ["-c", "import time; time.sleep(60)"]), 3.0)
    assert time.monotonic() - began < 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_what_is_compiled_first_is_what_is_measured(tiny, monkeypatch):
    """The commands call functions that exist, with sizes that parts use."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    calls = [command[1] for command in one_gpu.COMPILED if command[0] == "-c"]
    seen = []
    monkeypatch.setattr(measure, "training_rate", lambda *arguments: seen.append("training") or len)
    monkeypatch.setattr(measure, "decoding_rate", lambda *arguments, **options: seen.append(options) or len)
    before = torch.get_float32_matmul_precision()
    for call in calls:
        exec(call, {})
    torch.set_float32_matmul_precision(before)
    assert seen[:2] == ["training", "training"] and [options["graph"] for options in seen[2:]] == [True, True]


@pytest.mark.slow
def test_the_gpu_item_at_a_tiny_size_with_real_runs(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(one_gpu, "TURNS", 1)
    rows = [row.what for row in bench.rows_of(bench.gpu)]
    assert not [what for what in rows if "not measured" in what]
    assert any(what.startswith("out of memory with batch_size=4: went on with 4") for what in rows)


def test_an_update_reports_its_process_memory(tiny, monkeypatch):
    chunked = []
    monkeypatch.setattr(Run, "gradients", lambda run, x, y, size: chunked.append((run.in_chunks, *x.shape)))
    assert 50 < measure.memory_of_update(settings_of(logits_mb=0), bench.VOCABULARY) < 50_000
    measure.memory_of_update(settings_of(logits_mb=1), bench.VOCABULARY)
    assert chunked == [(False, 4, 32), (True, 4, 32)]


@pytest.mark.slow
def test_memory_compares_an_update_in_chunks_with_a_whole_one(tiny, monkeypatch):
    assert 50 < measure.update_peak(settings_of(logits_mb=0), 99)(0) < 50_000  # in a process of its own
    monkeypatch.setattr(measure, "trained", lambda *arguments: ({}, [dict(memory_mb=700.0), dict(loss=1.0)]))
    monkeypatch.setattr(measure, "update_peak", lambda found, V: lambda turn: 8 - 2 * found["logits_mb"])
    peak, ratio = bench.memory()
    assert peak.absolute == "700.0 MB"
    assert (ratio.ratio, ratio.absolute) == ("0.7500", "6.000 / 8.000 MB")


def test_quality_items_compare_the_runs_they_name(monkeypatch):
    runs = {  # seconds, val loss
        "config/fast.py": (9, 1.8), "config/classic.py": (100, 1.9), "config/shakespeare_char.py": (95, 1.53),
    }  # fmt: skip
    monkeypatch.setattr(measure, "time_and_loss", lambda file, *flags: lambda turn: runs[file])
    monkeypatch.setattr(settle, "ensure", lambda name: {})
    first, second = bench.time_to_loss()
    assert (first.ratio, first.absolute) == ("0.09000", "9.000 / 100.0 s")
    assert (second.ratio, second.target) == ("0.9474", "<= 1")
    first, second = bench.equal_time()
    assert (first.ratio, second.absolute, second.target) == ("0.9500", "1.530 nats", "<= 1.54")
    monkeypatch.setattr(settle, "ensure", lambda name: {"stand_in_for": "shakespeare"})
    assert [row.target for row in bench.equal_time()] == ["<= 1", "none: a stand-in"]


def test_laptop_trains_to_two_losses(monkeypatch):
    """One run of 520 updates, one of as many as the config makes; each has a limit of time and of loss."""
    results = {"--max_iters=520": (110.0, 1.468), "--max_iters=1450": (321.0, 1.406)}

    def trained(file, turn, device, updates):
        seconds, loss = results[updates]
        return dict(training_time=seconds, final_val_loss=loss), []

    monkeypatch.setattr(measure, "trained", trained)
    monkeypatch.setattr(settle, "ensure", lambda name: {})
    rows = [(row.absolute, row.target) for row in bench.laptop()]
    short = [("110.0 s", "<= 180"), ("1.468 nats", "<= 1.4697")]
    assert rows == [*short, ("321.0 s", "<= 600"), ("1.406 nats", "<= 1.38")]
    assert settings_of("config/shakespeare_long.py")["average_decay"] == 0.99  # read, not joined
    assert settings_of("config/shakespeare_long.py")["max_iters"] == 1450


def test_what_is_not_there_is_not_measured(monkeypatch):
    def rows(name):
        return [row.what for row in bench.rows_of(bench.ITEMS[name])]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert rows("gpu") == [f"not measured: no CUDA GPU; last measured at commit {one_gpu.LAST}"]
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert rows("bytepairs") == ["not measured: pip install tokenizers"]
    monkeypatch.setattr(measure, "ROOT", ROOT / "tests")
    measure.trained.cache_clear()
    assert rows("laptop") == ["not measured: config/shakespeare_long.py does not exist"]


def test_rows_before_what_is_missing_stay():
    def item():
        yield Row("there", "1", "", "", "")
        raise NotMeasured("the rest")

    assert [row.what for row in bench.rows_of(item)] == ["there", "not measured: the rest"]


def test_every_item_says_what_is_asked_for_in_one_line():
    for name, item in bench.ITEMS.items():
        assert name in bench.__doc__
        assert len(item.__doc__.splitlines()[0]) > 40


# ---- the script
def test_an_unknown_item_is_an_error_with_the_list(run_script, capsys):
    with pytest.raises(ValueError) as caught:
        run_script("bench.py", "--only=speed")
    assert exit_code(caught.value) == 2
    expected = f"error: only=speed names no item 'speed'; expected one of {', '.join(bench.ITEMS)}\n"
    assert capsys.readouterr().err == expected


@pytest.mark.slow
def test_the_table_begins_with_the_machine(shell, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = shell("bench.py", "--only=gpu")
    lines = [line.split("  ")[0] for line in done.stdout.splitlines()]
    expected = ["settings: ", "cpu: ", "python ", "", "gpu: 124M", "", ""]
    assert done.returncode == 0 and done.stderr == ""
    assert all(line.startswith(start) for line, start in itertools.zip_longest(lines, expected)), lines
    assert "not measured: no CUDA GPU; last measured at commit" in done.stdout
