"""The batch-size finder: what fits, by counting; the noise scale, by closed form and window by window."""

import math
import subprocess

import pytest
import torch

from conftest import TINY
from lab.measure import settings_of
from techniques import batch_finder
from techniques.batch_finder import Scatter, fits_cpu, fits_gpu, largest, scatters
from techniques.trial import Trial
from text import prepare

SHAPE = dict(n_layer=1, n_head=2, n_embd=32, block_size=16, batch_size=4, dtype="float32", dataset="small")


@pytest.fixture
def trial(datasets, monkeypatch):
    """trial(batch_size=8) is a small model on the small text."""
    monkeypatch.setattr(prepare, "DATASETS", datasets)
    return lambda **changes: Trial(settings_of(**{**SHAPE, **changes}))


# ---- what fits
@pytest.mark.parametrize("most", [1, 5, 64, 300])
def test_the_largest_that_fits_is_found_by_few_tries(most):
    """For each limit: exact up to 31, to a sixteenth above; never a number above `most`."""
    for limit in range(400):
        tried = []
        found = largest(lambda n, limit=limit, tried=tried: tried.append(n) or n <= limit, most)
        assert found <= min(limit, most) < found + max(1, found // 16)
        assert len(tried) == len(set(tried)) <= 16 and max(tried) <= most


@pytest.mark.slow
def test_memory_that_runs_out_is_given_back(trial, monkeypatch):
    """As on a GPU: torch raises, inside the forward pass of more than 5 windows, and later tries go on."""
    run = trial()
    forward, alive = run.run.summed_loss, []

    def small_memory(x, y):
        loss = forward(x, y)
        alive.append(x.shape[0])
        if len(x) > 5:
            raise torch.OutOfMemoryError("injected")
        return loss

    run.run.loss_of = small_memory
    assert largest(lambda size: fits_gpu(run, size), 64) == 5
    assert alive == [1, 2, 4, 8, 6, 5]
    assert all(p.grad is None for p in run.run.model.parameters())


def test_another_error_is_not_taken_for_memory(trial):
    run = trial()

    def broken(x, y):
        raise RuntimeError("shapes do not match")

    run.run.loss_of = broken
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fits_gpu(run, 1)


def test_on_a_cpu_the_peak_of_a_process_decides(monkeypatch):
    """100 MB, and 10 for each window; from 30 windows on Linux ends the process."""

    def peak(settings: dict, vocab_size: int):
        size = settings["batch_size"]
        if size >= 30:
            raise subprocess.CalledProcessError(-9, "python")
        return lambda turn: 100.0 + 10 * size

    monkeypatch.setattr(batch_finder, "update_peak", peak)
    for limit, expected in ((99, 0), (110, 1), (255, 15), (10_000, 29)):
        assert largest(lambda size, limit=limit: fits_cpu({"memory_mb": limit}, 65, size), 1024) == expected


@pytest.mark.slow
def test_what_fits_into_a_real_limit(shell, figure):
    """A model with large activations: the process that trains with the found size is below the limit."""
    settings = settings_of(n_layer=2, n_head=2, n_embd=64, block_size=256, batch_size=1, dtype="float32")
    one, eight = (batch_finder.update_peak({**settings, "batch_size": n}, 65)(0) for n in (1, 8))
    limit = {**settings, "memory_mb": (one + eight) / 2}
    found = largest(lambda size: fits_cpu(limit, 65, size), 16)
    assert 2 <= found <= 6, (one, eight)
    figure(
        f"batch finder: {found} windows fit into {limit['memory_mb']:.0f} MB (1: {one:.0f}, 8: {eight:.0f})"
    )


# ---- what helps
def test_a_linear_model_has_the_noise_scale_of_its_formula():
    """x ~ N(0, I) in d dimensions, y = x w* + e: a sample's gradient is x (x D - e), D = w - w*.

    Its mean is D. E |x|^2 (x D)^2 = (d + 2) |D|^2 and E |x|^2 e^2 = d s^2, so the trace of its covariance is
    (d + 1) |D|^2 + d s^2, and B = d + 1 + d s^2 / |D|^2.
    """
    d, s, b = 20, 2.0, 8
    torch.manual_seed(0)
    D = torch.randn(d) / d**0.5

    def gradient(i: int) -> torch.Tensor:
        x, e = torch.randn(b, d), s * torch.randn(b)
        return (x * (x @ D - e)[:, None]).mean(0)

    whole, fours, parts = scatters(gradient, 4096)
    length = D.square().sum().item()
    expected = d + 1 + d * s**2 / length
    assert b * whole.noise_scale() == pytest.approx(expected, rel=0.1)
    assert whole.signal() == pytest.approx(length, rel=0.1)
    assert whole.variance() == pytest.approx(((d + 1) * length + d * s**2) / b, rel=0.05)
    assert whole.variance() / fours.variance() == pytest.approx(4, rel=0.1)
    assert [part.n for part in parts] == [1024] * 4
    assert all(b * part.noise_scale() == pytest.approx(expected, rel=0.3) for part in parts)


def test_the_noise_scale_is_that_of_the_paper():
    """McCandlish et al., appendix A.1: from the squared lengths at a small and a big batch, without bias."""
    torch.manual_seed(0)
    small, n = 8, 12
    gradients = torch.randn(n, 30, dtype=torch.float64) + 0.5
    scatter = Scatter()
    for gradient in gradients:
        scatter.add(gradient)
    big, at_small = n * small, gradients.square().sum(1).mean().item()
    at_big = gradients.mean(0).square().sum().item()
    signal = (big * at_big - small * at_small) / (big - small)
    trace = (at_small - at_big) / (1 / small - 1 / big)
    assert scatter.signal() == pytest.approx(signal, rel=1e-9)
    assert small * scatter.noise_scale() == pytest.approx(trace / signal, rel=1e-9)
    assert scatter.variance() == pytest.approx(gradients.var(0).sum().item(), rel=1e-9)


def test_noise_without_a_gradient_is_said_to_hide_it():
    scatter = Scatter()
    for sign in (1, -1, 1, -1):
        scatter.add(sign * torch.ones(3))
    assert scatter.noise_scale() == math.inf


@pytest.mark.slow
def test_variance_falls_by_4_from_batch_8_to_32(trial, figure):
    """Row Q7, with the twin: the gradient of each window by itself, in a loop, then means of 8 and of 32."""
    run, count = trial(), 64
    trained = list(run.run.model.parameters())
    windows = []
    for i in range(8 * count):
        x, y = run.batch(i, 1)
        loss = torch.nn.functional.cross_entropy(run.run.model(x)[0], y[0])
        windows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)]))
    windows = torch.stack(windows)
    at_8, at_32 = (windows.view(-1, b, windows.size(1)).mean(1) for b in (8, 32))

    def gradient(i: int) -> torch.Tensor:
        run.run.optimizer.zero_grad(set_to_none=True)
        run.run.gradients(*run.batch(i, 8), 4)
        return torch.cat([p.grad.flatten() for p in trained])

    whole, fours, _ = scatters(gradient, count)
    assert whole.variance() == pytest.approx(at_8.var(0).sum().item(), rel=1e-3)
    assert fours.variance() == pytest.approx(at_32.var(0).sum().item(), rel=1e-3)
    ratio = whole.variance() / fours.variance()
    assert 3.2 <= ratio <= 4.8
    figure(f"gradient variance, batch 8 over batch 32: {ratio:.2f}")


@pytest.mark.slow
def test_the_command_measures_new_weights_and_those_of_the_run(train, run_script, capsys):
    flags = "--dataset=small", "--windows=128", "--small=2", *TINY
    train("--max_iters=5")
    capsys.readouterr()
    run_script("techniques/batch_finder.py", *flags)
    out = capsys.readouterr().out
    assert "noise at the start, 128 windows of 32 tokens" in out and "ckpt.pt, after 5 updates" in out
    assert out.count("noise scale: ") == 2 == out.count("updates of 4 windows, as set: ")
    assert "what fits: not tried, because a CPU has no limit" in out


@pytest.mark.parametrize("flag", ["--windows=63", "--small=0", "--memory_mb=-1", "--technique=average"])
def test_settings_that_make_no_sense_are_refused(run_script, flag):
    with pytest.raises(ValueError, match="makes no sense|is for train.py"):
        run_script("techniques/batch_finder.py", "--dataset=small", "--small=2", *TINY, flag)
