"""A slow start speaks: a stage of over two seconds is named, and so is what an update will take."""

import contextlib
import re
import time

import pytest
import torch

from config import end_script, start_script
from machine import speed, stages
from model import GPT, GPTConfig

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(stages, "SECONDS", 0.05)


def test_a_stage_is_named_only_while_it_lasts(quick, capsys):
    now = stages.Stages("building the model")
    now.begin("compiling")
    time.sleep(0.3)
    now.begin("the first update")
    now.end()
    now.begin("a later evaluation")  # after the end, nothing is said
    time.sleep(0.2)
    assert capsys.readouterr().out == "compiling ...\n"


def test_other_ranks_are_silent(quick, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    now = stages.Stages("building the model")
    now.say("an update will take long")
    time.sleep(0.2)
    assert capsys.readouterr().out == ""


def test_a_script_that_has_failed_says_nothing_more(quick, capsys):
    """In a notebook, the process goes on after an error: its stage must not be named then."""
    start_script()
    stages.Stages("building the model")
    end_script()  # what a notebook calls after the cell
    time.sleep(0.2)
    assert capsys.readouterr().out == ""


def test_train_names_what_is_slow_in_it(quick, train, monkeypatch, capsys):
    slow = GPT.__init__

    def build(self, *args):
        slow(self, *args)
        time.sleep(0.4)

    monkeypatch.setattr(GPT, "__init__", build)
    train("--max_iters=1")
    out = capsys.readouterr().out
    assert out.count("building the model and its optimizer ...\n") == 1
    assert out.index("building the model") < out.index("device cpu")


def big(n_layer: int = 2) -> GPT:
    with torch.device("meta"):
        return GPT(GPTConfig(n_layer=n_layer, n_head=12, n_embd=768, block_size=1024, vocab_size=50257))


def test_an_update_of_a_minute_printed_nothing_for_a_minute(monkeypatch):
    """The estimate is operations over a rate: 6 N + 12 L C T for each token (PaLM)."""
    monkeypatch.setattr(speed, "product_rate", lambda *args: 100e9)
    model = big()
    flops = speed.flops_per_token(model) * 12 * 5 * 1024
    line = speed.slow_update(model, 1000, 12, 5, contextlib.nullcontext(), CPU)
    shown = speed.duration(flops / (speed.SHARE * 100e9))
    assert shown.endswith(" minutes")
    assert line.startswith(f"an update will take about {shown} on this machine ({flops / 1e12:.1f} TFLOP")
    assert f"all 1,000 about {speed.duration(flops / (speed.SHARE * 100e6))}; " in line
    assert "--n_layer" in line and "GPU" in line
    monkeypatch.setattr(speed, "product_rate", lambda *args: 1e15)
    assert speed.slow_update(model, 1000, 12, 5, contextlib.nullcontext(), CPU) == ""


def test_durations_are_readable():
    spans = [(11.6, "12 s"), (119, "119 s"), (120, "2 minutes"), (4662, "78 minutes"), (9e4, "25 hours")]
    assert [speed.duration(seconds) for seconds, _ in spans] == [shown for _, shown in spans]
    assert speed.duration(1e8) == "1,157 days"


def test_a_small_model_is_not_timed(monkeypatch):
    monkeypatch.setattr(speed, "product_rate", lambda *args: pytest.fail("timed"))
    assert speed.slow_update(GPT(GPTConfig(n_embd=64)), 1000, 16, 1, contextlib.nullcontext(), CPU) == ""


def test_timing_draws_no_random_numbers_and_measures_a_rate():
    before = torch.get_rng_state()
    rate = speed.product_rate(64, 128, contextlib.nullcontext(), CPU)
    assert 1e6 < rate < 1e15
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
@pytest.mark.alone
def test_the_estimate_is_right_within_a_factor_of_four(figure):
    model = GPT(GPTConfig(n_layer=2, n_head=12, n_embd=768, block_size=512, vocab_size=1000))
    x = torch.zeros(1, 512, dtype=torch.int64)
    model(x, x).sum().backward()
    rate = speed.SHARE * speed.product_rate(768, 512, contextlib.nullcontext(), CPU)
    began = time.perf_counter()
    model(x, x).sum().backward()
    took, expected = time.perf_counter() - began, speed.flops_per_token(model) * 512 / rate
    figure(f"an update's seconds, estimated / measured: {expected / took:.2f}")
    assert 1 / 4 < expected / took < 4


def test_every_setting_that_the_estimate_names_is_one_of_train(monkeypatch):
    from config import defaults_of

    monkeypatch.setattr(speed, "product_rate", lambda *args: 1e9)
    line = speed.slow_update(big(), 1000, 12, 5, contextlib.nullcontext(), CPU)
    assert set(re.findall(r"--(\w+)", line)) <= defaults_of("train.py").keys()


def test_a_reader_that_has_left_raises_nothing_in_the_thread(monkeypatch):
    def left(*arguments, **options):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", left)
    named = stages.Stages("reading")
    named.say("reading ...")
    named.end()
