"""Lesson 18: what its wrong answers look like, in numbers."""

import pytest
import torch

from lessons import course

checks = course.checks(18)


def answer(exercise: str, mistake: str):
    """A wrong answer by its name, or the reference for ""."""
    found = checks.exercises[exercise]
    return found["wrong"][mistake][0] if mistake else found["reference"]


@pytest.mark.parametrize(
    ("mistake", "rate"),
    [("", 5.5e-4), ("floor forgotten", 5e-4), ("floor not added", 4.5e-4), ("a quarter wave", 7.36e-4)],
)
def test_half_way(mistake, rate):
    """With a floor of 0, a quarter of a wave is at 7.1e-4 half way."""
    assert answer("18a", mistake)(50, 1e-3, 1e-4, 0, 100) == pytest.approx(rate, rel=1e-3)
    assert answer("18a", "a quarter wave")(50, 1e-3, 0, 0, 100) == pytest.approx(7.07e-4, rel=1e-3)


@pytest.mark.parametrize(("mistake", "rate"), [("", 0.1), ("0 at step 0", 0.0)])
def test_the_first_update(mistake, rate):
    assert answer("18a", mistake)(0, 1.0, 0.1, 9, 100) == pytest.approx(rate)


def test_where_the_fall_begins_and_ends():
    args = (1.0, 0.1, 20, 100)
    first = {mistake: answer("18a", mistake)(20, *args) for mistake in ("", "warm-up not subtracted")}
    last = {mistake: answer("18a", mistake)(99, *args) for mistake in ("", "twice pi")}
    after = {mistake: answer("18a", mistake)(180, *args) for mistake in ("", "climbs again")}
    assert first[""] == 1.0
    assert first["warm-up not subtracted"] < 0.95, "a jump"
    assert last[""] == pytest.approx(0.1, abs=0.001)
    assert last["twice pi"] > 0.99, "back at the top"
    assert after[""] == 0.1
    assert after["climbs again"] == pytest.approx(1.0)


def test_linear_is_a_step_late():
    args = (1.0, 0.1, 10, 1.0, 3, 0.5)
    assert answer("18b", "")("linear", 10, *args) == 0.1
    assert answer("18b", "a step late")("linear", 10, *args) > 0.15


def test_step_decay_is_smooth_without_whole_exponents():
    args = (1.0, 0.1, 100, 1.0, 5, 0.5)
    for mistake, different in (("", 2), ("exponent not whole", 10), ("cut at every step", 5)):
        rates = {round(answer("18b", mistake)("step", step, *args), 6) for step in range(10)}
        assert len(rates) == different


@pytest.mark.parametrize(
    ("mistake", "rates"),
    [
        ("", [0.0, 0.1, 0.2]),
        ("set after the step", [0.05, 0.0, 0.1]),
        ("micro-batches counted", [0.0, 0.2, 0.4]),
        ("never set", [0.05, 0.05, 0.05]),
    ],
)
def test_rates_in_the_loop(mistake, rates):
    gradients, _, *rest = checks.inputs_run(1)[1]
    found = checks.rates_of(answer("18c", mistake), gradients, torch.arange(9) / 10, *rest)["rates"]
    assert [first for first, _ in found] == pytest.approx(rates)
    assert (mistake == "never set") or found[2][1] == pytest.approx(0.2 * found[2][0])
