"""Warnings about a run's loss: none for healthy runs, noisy as they may be; the planted faults are found."""

import math
import random

import numpy as np
import pytest

from runtime.health import BEFORE, Losses, deviations, usual_of, verdict


def healthy(rng: random.Random, n: int, noise: float = 0.0) -> np.ndarray:
    """The losses of n updates: a fall from ln V, exponential or as a power, with noise of several kinds."""
    lowest, start, t = rng.uniform(0.02, 2.0), math.log(rng.choice([27, 65, 1024, 50257])), np.arange(n)
    fall = rng.uniform(0.5, 0.95) * np.exp(-t / rng.uniform(5, n / 3))
    if rng.random() < 0.5:
        fall = (1 + t / rng.uniform(2, n / 9)) ** -rng.uniform(0.4, 1.2)
    draws = np.random.default_rng(rng.randrange(10**9)).standard_normal(n)
    if rng.random() < 0.3:  # batches that resemble those before
        for i in range(1, n):
            draws[i] = 0.6 * draws[i - 1] + 0.8 * draws[i]
    share = noise or rng.choice([0.005, 0.02, 0.05, 0.1, 0.2])
    losses = (lowest + (start - lowest) * fall) * np.exp(share * draws)
    losses[:3] = start * (1 + 0.01 * draws[:3])  # a new model's guesses are even: its losses hardly differ
    return losses


def warnings(losses, new: bool = True, warmup: int = 0) -> list[str]:
    judge = Losses(new, "--learning_rate", grad_clip=1.0)
    found = [judge.add(i, float(loss), warmup, len(losses)) for i, loss in enumerate(losses, 1)]
    return [line for line in found if line]


def test_200_healthy_runs_raise_no_alarm(figure):
    rng, updates = random.Random(0), 0
    for i in range(200):
        losses = healthy(rng, rng.choice([60, 200, 850]))
        updates += len(losses)
        assert warnings(losses) == [], i
    figure(f"health: no alarm in 200 simulated runs, {updates:,} updates")


def planted(what: str, rng: random.Random) -> np.ndarray:
    losses = healthy(rng, 850, noise=0.03)
    at = rng.randrange(400, 750)
    if what == "one loss is three times as high":
        losses[at] = 3 * losses[at] + 0.5
    elif what == "all are a nat higher":
        losses[at:] += 1
    elif what == "diverges slowly":
        losses[at:] *= 1 + 2 * np.minimum(1, np.arange(850 - at) / 100)
        losses[at:] += 0.2 * np.minimum(1, np.arange(850 - at) / 100)
    elif what == "has not moved":
        losses = math.log(65) + 0.02 * np.random.default_rng(at).standard_normal(850)
    return losses


@pytest.mark.parametrize(
    "what, word, least",
    [
        ("one loss is three times as high", "jumps", 50),
        ("all are a nat higher", "jumps", 50),
        ("diverges slowly", "s: ", 50),
        ("has not moved", "has not moved", 50),
    ],
)
def test_what_is_planted_is_found(what, word, least, figure):
    rng = random.Random(1)
    found = sum(any(word in line for line in warnings(planted(what, rng))) for _ in range(50))
    figure(f"health: {what}: found in {found} of 50 runs")
    assert found >= least


def test_a_jump_says_the_value_the_usual_range_and_what_to_look_at():
    losses = [2.0 + 0.01 * (i % 5) for i in range(60)] + [5.25]
    (line,) = warnings(losses, new=False)
    assert line.startswith(
        "WARNING: the loss jumps: 5.2500 at update 61, where the 50 before it lay between 2.0"
    )
    assert "2.0400" in line and "grad norm" in line and line.endswith("--learning_rate, or --grad_clip=0.5")


def test_a_jump_is_told_once_and_the_next_one_again():
    assert len(warnings([2.0] * 60 + [4.0] * 100, new=False)) == 1
    assert len(warnings([2.0] * 60 + [4.0] * 100 + [8.0] * 60, new=False)) == 2


def test_no_alarm_where_there_is_nothing_to_look_at():
    rng = random.Random(0)
    assert warnings([2.0] * 30 + [2.05] * 100, new=False) == []  # far out, but small
    assert warnings([rng.gauss(0, 1) for _ in range(300)], new=False) == []  # a reward, no cross-entropy
    assert warnings([0.0] * 300, new=False) == []
    assert warnings([1.5 + rng.gauss(0, 0.05) for _ in range(300)], new=False) == []  # fine-tuning
    assert warnings([rng.lognormvariate(0.5, 0.6) for _ in range(3000)], new=False) == []  # tiny batches


def test_during_a_warm_up_a_loss_need_not_fall():
    losses = [4.17] * 150 + [4.17 * 0.99**i for i in range(300)]
    assert warnings(losses, warmup=150) == []
    assert "has not moved" in warnings(losses)[0]


def test_the_score_is_the_robust_one_by_hand():
    before = [1.0, 1.2, 1.1, 1.3, 1.2, 1.0, 1.1, 1.3]  # both halves have the median 1.15: no slope
    middle, spread = usual_of(before)
    assert middle == pytest.approx(1.15)
    assert spread == pytest.approx(1.4826 * 0.1)  # distances 0.15 x 4 and 0.05 x 4: their median is 0.1
    logs = usual_of([math.log(x) for x in before])
    by_hand = min((2 - middle) / spread, (math.log(2) - logs[0]) / logs[1])
    assert deviations(before, 2.0) == pytest.approx(by_hand)
    falling = [3 - 0.05 * i for i in range(BEFORE)]
    assert usual_of(falling)[1] == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_a_real_run_raises_no_alarm_and_one_that_does_not_learn_does(train, capsys):
    train("--max_iters=130", "--eval_interval=130", "--log_interval=130", "--batch_size=8")
    assert "WARNING" not in capsys.readouterr().out.replace("WARNING: fewer training tokens", "")
    flags = "--optimizer=adamw", "--learning_rate=1e-7", "--max_iters=130", "--eval_interval=130"
    train(*flags)
    assert capsys.readouterr().out.count("WARNING: the loss has not moved: 4.0") == 1


def test_verdict_of_an_evaluation():
    before = [dict(train_loss=2.0, val_loss=2.0)]
    assert verdict([], dict(train_loss=2.0, val_loss=2.0), 0.0, 0.1) == ""
    assert "overfitting" in verdict(before, dict(train_loss=1.9, val_loss=2.1), 0.0, 0.1)
    assert "BELOW THE FLOOR" in verdict(before, dict(train_loss=1.9, val_loss=1.0), 1.5, 0.1)
