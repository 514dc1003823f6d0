"""Lesson 22: what its wrong answers look like, in numbers."""

import math

import numpy as np
import pytest
import torch

from lessons import course
from lessons.grader import judge

checks = course.checks(22)


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


def test_with_replacement_a_share_of_1_over_e_is_never_seen():
    n = 3000
    windows = wrong("22a", "drawn with replacement")(n * 4 + 1, 4, 1, 0)
    assert 1 - len({*windows}) / n == pytest.approx(1 / math.e, abs=0.02)
    question = checks.predictions["22.1"]
    assert question["answer"] == pytest.approx((1 - 1 / 300) ** 300, abs=5e-4)
    assert 1 - question["answer"] == pytest.approx(0.632, abs=2e-3)


def test_with_the_epoch_left_out_all_epochs_are_alike():
    first, second = (wrong("22a", "epoch left out")(150, 32, 5, epoch) for epoch in (0, 1))
    assert first == second
    assert checks.reference_epoch(150, 32, 5, 0) != checks.reference_epoch(150, 32, 5, 1)


@pytest.mark.parametrize("mistake", ["offset up to T", "a start anywhere", "last window left out"])
def test_targets_that_are_missed_are_counted(mistake):
    told = [checks.every_token_once(wrong("22a", mistake), 150, 32, 3, epoch) for epoch in range(9)]
    assert any("never asked for" in line for line in told)
    assert checks.every_token_once(checks.reference_epoch, 150, 32, 3, 1) == ""


def test_drawn_targets_raise_the_floor():
    true, other = 0.95 + 0.05 / 65, 0.05 / 65
    floor = -true * math.log(true) - 64 * other * math.log(other)
    assert floor == pytest.approx(checks.predictions["22.2"]["answer"], abs=5e-4)
    x, y, *rest = checks.inputs_noisy(1)[0]
    for mistake in ("targets replaced, too", "targets follow the noise"):
        _, targets = wrong("22b", mistake)(x, y, *rest)
        assert (targets != y).float().mean() == pytest.approx(0.05, abs=0.01)


def test_augmented_val_changes_with_the_seed():
    x, y, V, rate, seed, step, _ = checks.inputs_noisy(1)[0]
    for noisy, same in ((wrong("22b", "val replaced, too"), False), (checks.reference_noisy, True)):
        one, two = (noisy(x, y, V, rate, s, step, False)[0] for s in (seed, seed + 1))
        assert torch.equal(one, two) == same


def by_torch(x, y, V, rate, seed, step, training):
    g = torch.Generator().manual_seed(10_000 * seed + step)
    places = torch.rand(x.shape, generator=g) < rate * training
    return torch.where(places, torch.randint(0, V, x.shape, generator=g), x), y


def another_id_at_so_many_places(x, y, V, rate, seed, step, training):
    rng = np.random.default_rng([step, seed])
    places = rng.permutation(x.numel())[: int(rate * x.numel() * training)]
    out = x.flatten().clone()
    out[places] = (out[places] + torch.from_numpy(rng.integers(1, V, len(places)))) % V
    return out.view(x.shape), y


@pytest.mark.parametrize("answer", [by_torch, another_id_at_so_many_places])
def test_noise_drawn_in_another_way_is_right(answer):
    for seeds in ((1, 2), (100, 101)):
        assert judge(checks.exercises["22b"], answer, seeds)["line"] == "right"


def test_the_best_of_three_is_luck():
    """Two settings that do not differ: the best of each always names a winner, the interval in 1 of 20."""
    rng, found = np.random.default_rng(0), {"other": 0, "plain": 0, "undecided": 0}
    for _ in range(400):
        found[checks.reference_decide(*rng.normal(size=(2, 3)).tolist(), 4.303)["better"]] += 1
    assert found["undecided"] == pytest.approx(0.95 * 400, abs=15)
