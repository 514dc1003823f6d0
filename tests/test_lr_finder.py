"""The learning-rate finder: its averages and its suggestion by hand, and that it leaves no trace."""

import math
import statistics

import pytest
import torch

from conftest import TINY
from lab.measure import Run, settings_of
from runtime import report
from techniques import lr_finder
from techniques.lr_finder import Sweep, averages_of, rates_between, suggested, sweep

SMALL = dict(n_layer=1, n_head=2, n_embd=16, block_size=8, batch_size=4, dtype="float32", dropout=0.1)


def test_averages_are_corrected_for_their_start_at_0():
    """By hand: 0.5 x 2 = 1, / 0.5 = 2; 0.5 x 1 + 0.5 x 4 = 2.5, / 0.75; equal losses stay as they are."""
    assert averages_of([2.0, 4.0], 0.5) == pytest.approx([2, 2.5 / 0.75])
    assert averages_of([3.0] * 5, 0.9) == pytest.approx([3] * 5)
    assert averages_of([1.0, 5.0], 0.0) == [1, 5]


def test_rates_have_equal_ratios():
    rates = rates_between(1e-6, 1.0, 13)
    assert rates == pytest.approx([10 ** (-6 + i / 2) for i in range(13)])
    for wrong in ((0.0, 1.0, 20), (1.0, 1.0, 20), (1e-6, 1.0, 9)):
        with pytest.raises(ValueError, match="expected"):
            rates_between(*wrong)


def test_the_suggestion_is_where_90_percent_of_the_fall_is_done():
    averages = [4.0, 4.0, 3.5, 2.1, 2.05, 2.0, 3.0]  # 90 % of the fall from 4 to 2: 2.2
    rates = [10.0**-i for i in range(7, 0, -1)]
    assert suggested(Sweep(rates, averages, averages, True)) == rates[3]
    noisy = [4.0, 4.5, 3.8, 4.2, 3.9, 4.1, 4.0]
    with pytest.raises(ValueError, match="nothing was learned there; try another --lowest"):
        suggested(Sweep(rates, noisy, averages_of(noisy, 0.9), False))


def quadratic(noise=None):
    """w with the loss w^2 / 2 under SGD: an update multiplies w by 1 - rate, so above 2 it grows."""
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def update(i: int, rate: float) -> float:
        optimizer.param_groups[0]["lr"] = rate
        loss = model.weight.square().sum() / 2
        model.weight.grad = model.weight.detach().clone()
        optimizer.step()
        return loss.item() if noise is None else noise(i, loss.item())

    return model, optimizer, update


def test_the_sweep_stops_where_the_loss_explodes():
    """The twin: the same products of 1 - rate, by hand."""
    model, optimizer, update = quadratic()
    rates = rates_between(1e-3, 1e3, 60)
    found = sweep(model, optimizer, update, rates)
    w, expected = 1.0, []
    for rate in rates:
        expected.append(w * w / 2)
        w *= 1 - rate
    assert found.exploded and 2 < found.rates[-1] < 100
    assert found.losses == pytest.approx(expected[: len(found.losses)], rel=1e-4)
    assert found.rates == rates[: len(found.losses)]
    assert model.weight.item() == 1 and optimizer.param_groups[0]["lr"] == 1
    assert not sweep(model, optimizer, update, rates_between(1e-3, 1e-1, 20)).exploded


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_sweep(bad):
    model, optimizer, update = quadratic(lambda i, loss: bad if i == 7 else loss)
    found = sweep(model, optimizer, update, rates_between(1e-3, 1.0, 20))
    assert found.exploded and len(found.losses) == 8
    model, optimizer, update = quadratic(lambda i, loss: bad)
    with pytest.raises(ValueError, match="before the first update"):
        sweep(model, optimizer, update, rates_between(1e-3, 1.0, 20))
    assert model.weight.item() == 1


def everything(run: Run) -> list:
    """All tensors and numbers of a run's weights, optimizer and random numbers, copied."""
    state = run.optimizer.state_dict()
    tensors = [t.clone() for t in run.model.state_dict().values()]
    tensors += [t.clone() for each in state["state"].values() for t in each.values()]
    return [tensors, [torch.get_rng_state()], [group["lr"] for group in state["param_groups"]]]


def same(a: list, b: list) -> bool:
    pairs = [(x, y) for i in (0, 1) for x, y in zip(a[i], b[i], strict=True)]
    return all(torch.equal(x, y) for x, y in pairs) and a[2] == b[2]


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "adam", "sgd"])
def test_a_run_goes_on_as_if_there_had_been_no_sweep(optimizer):
    """5 updates, a sweep that explodes or fails, 5 updates: the bits of 10 updates. With dropout."""
    settings = settings_of(**SMALL, optimizer=optimizer, max_iters=10)
    batches = torch.randint(11, (10, 2, 4, 8), generator=torch.Generator().manual_seed(0))

    def trained(between) -> Run:
        run = Run(settings, 11)
        for step, batch in enumerate(batches):
            if step == 5:
                between(run)
            run.update(step, *batch)
        return run

    def tried(run: Run, wrong: int) -> None:
        def update(i: int, rate: float) -> float:
            if i == wrong:
                raise KeyboardInterrupt
            for group in run.optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            run.optimizer.zero_grad(set_to_none=True)
            loss = run.gradients(*batches[i % 10])
            run.optimizer.step()
            return loss.item()

        before, weight = everything(run), run.model.wte.weight.detach().clone()
        if wrong >= 0:
            with pytest.raises(KeyboardInterrupt):
                sweep(run.model, run.optimizer, update, rates_between(1e-4, 10.0, 30))
        else:
            found = sweep(run.model, run.optimizer, update, rates_between(1e-4, 10.0, 30))
            assert len(set(found.losses)) > 5
        assert same(everything(run), before) and torch.equal(run.model.wte.weight, weight)
        assert all(p.grad is None for p in run.model.parameters())

    plain = everything(trained(lambda run: None))
    assert same(everything(trained(lambda run: tried(run, -1))), plain)
    assert same(everything(trained(lambda run: tried(run, 4))), plain)


def test_the_command_says_what_to_type_and_draws(run_script, capsys, tmp_path):
    flags = [flag for flag in TINY if "max_iters" not in flag]
    script = run_script("techniques/lr_finder.py", "--dataset=small", "--updates=60", "--seed=3", *flags)
    out = capsys.readouterr().out
    rate = suggested(script["found"])
    assert (
        f"suggestion: --learning_rate={rate:.2g} --muon_lr={rate * 0.02 / 3e-3:.2g} (90% of the fall" in out
    )
    assert (tmp_path / "out/lr-finder.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["lr-finder.png"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--init_from=out-x", "init_from=out-x is for train.py"),
        ("--technique=average", "technique=average is for train.py"),
        ("--smoothing=1", "smoothing=1.0 makes no sense"),
        ("--too_high=1", "too_high=1.0 makes no sense"),
        ("--batch_size=0", "batch_size=0 makes no sense"),
    ],
)
def test_settings_that_make_no_sense_are_refused(run_script, flag, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_script("techniques/lr_finder.py", "--dataset=small", *TINY, flag)
    assert not (tmp_path / "out").exists()


def test_an_update_in_micro_batches_is_that_of_the_whole_batch():
    """The finder's updates are train.py's, with gradient accumulation, too."""
    settings = settings_of(**{**SMALL, "dropout": 0.0})
    x, y = torch.randint(11, (2, 6, 8), generator=torch.Generator().manual_seed(0))
    y[0, :5] = -1  # micro-batches have different numbers of targets
    gradients = []
    for size in (0, 6, 4, 1):
        run = Run(settings, 11)
        loss = run.gradients(x, y, size)
        gradients.append([loss.reshape(1), *(p.grad.flatten() for p in run.model.parameters())])
    for other in gradients[1:]:
        torch.testing.assert_close(torch.cat(other), torch.cat(gradients[0]), rtol=1e-4, atol=1e-6)


# ---- against real runs
def trained_loss(settings: dict, batches: list, rate: float) -> float:
    """Mean loss of the last 10 updates at a constant learning rate."""
    run = Run({**settings, "learning_rate": rate, "lr_schedule": "constant"}, 65)
    losses = [run.update(step, *batch).item() for step, batch in enumerate(batches)]
    return statistics.mean(losses[-10:])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_suggestion_is_near_the_best_of_a_grid(datasets, monkeypatch, optimizer, figure):
    """Row S7: a sweep from 1e-6 to 1 lands within a factor of 10 of the best of 1e-4, 1e-3, 1e-2, 1e-1."""
    monkeypatch.setattr("text.prepare.DATASETS", datasets)
    shape = dict(
        n_layer=2, n_head=2, n_embd=32, block_size=32, batch_size=8, dtype="float32", dataset="small"
    )
    settings = settings_of(**shape, optimizer=optimizer)
    if optimizer == "muon":
        monkeypatch.setattr(lr_finder, "Trial", lr_finder.Trial)  # muon_lr follows by lr_scale in both
    own = dict(lowest=1e-6, highest=1.0, updates=150, smoothing=0.9, too_high=2.0)
    found, trial = lr_finder.find({**settings, **own})
    rate = suggested(found)
    batches = [trial.batch(step) for step in range(150)]
    grid = {}
    for each in (1e-4, 1e-3, 1e-2, 1e-1):
        muon_lr = settings["muon_lr"] * each / settings["learning_rate"]
        grid[each] = trained_loss({**settings, "muon_lr": muon_lr}, batches, each)
    best = min(grid, key=grid.get)
    assert best / 10 <= rate <= best * 10, (rate, grid)
    figure(f"lr finder, {optimizer}: {rate:.1e}, the best of 1e-4 to 1e-1 is {best:.0e}")


@pytest.mark.slow
def test_learning_rates_far_too_low_and_far_too_high(train, tmp_path):
    """Row Q8: 1e-6 hardly changes the loss in 50 updates; with 10 the run is stopped, and the cause named."""
    flags = "--optimizer=adamw", "--max_iters=50", "--eval_interval=50"
    train(*flags, "--learning_rate=1e-6")
    rows = report.read_rows(tmp_path / "out/metrics.jsonl")
    before, after = [row["val_loss"] for row in rows if "val_loss" in row]
    assert 0 < abs(after - before) < 0.1
    with pytest.raises(ValueError, match="losses were above .* so learning_rate is too high"):
        train(*flags, "--learning_rate=10", f"--out_dir={tmp_path / 'high'}")
