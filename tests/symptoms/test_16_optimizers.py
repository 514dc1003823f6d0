"""Lesson 16: what its wrong answers look like, in numbers."""

import pytest
import torch

from lessons import course

checks = course.checks(16)
BETAS = (0.9, 0.999)


def answer(exercise: str, mistake: str):
    """A wrong answer by its name, or the reference for ""."""
    found = checks.exercises[exercise]
    return found["wrong"][mistake][0] if mistake else found["reference"]


def moved(step, gradient: float, *args, weight: float = 0.0, times: int = 1) -> float:
    """Where a matrix of equal weights is after some steps with one gradient."""
    w, state = torch.full((2, 3), weight), {}
    with torch.no_grad():
        for _ in range(times):
            step([w], [torch.full((2, 3), gradient)], state, *args)
    return w[0, 0].item()


@pytest.mark.parametrize(("mistake", "factor"), [("", 1.0), ("gradient times 1 - momentum", 0.1)])
def test_the_first_step_with_momentum(mistake, factor):
    assert moved(answer("16a", mistake), 2.0, 0.01, 0.9) == pytest.approx(-0.02 * factor)


def test_a_rate_inside_the_buffer_shows_only_after_it_has_changed():
    step = {mistake: answer("16a", mistake) for mistake in ("", "rate inside the buffer")}
    same, other = {}, {}
    for mistake, rule in step.items():
        same[mistake] = moved(rule, 2.0, 0.01, 0.9, times=3)
        w, state = torch.zeros(2), {}
        for lr in (0.01, 0.001):
            rule([w], [torch.ones(2)], state, lr, 0.9)
        other[mistake] = w[0].item()
    assert same[""] == pytest.approx(same["rate inside the buffer"])
    assert other[""] == pytest.approx(-0.0119)
    assert other["rate inside the buffer"] == pytest.approx(-0.020)


@pytest.mark.parametrize(
    ("mistake", "factor"),
    [("", 1.0), ("no bias correction", 3.162), ("only m corrected", 31.6), ("only v corrected", 0.1)],
)
@pytest.mark.parametrize("gradient", [1000.0, 0.01])
def test_the_first_step_of_adam(mistake, factor, gradient):
    found = moved(answer("16b", mistake), gradient, 0.001, BETAS, 1e-8)
    assert found == pytest.approx(-0.001 * factor, rel=2e-3)


def test_t_from_0_divides_by_zero():
    assert moved(answer("16b", "t from 0"), 2.0, 0.001, BETAS, 1e-8) != 0
    with pytest.raises(ZeroDivisionError):
        moved(answer("16b", "t from 0, one factor"), 2.0, 0.001, BETAS, 1e-8)


@pytest.mark.parametrize(("gradient", "ratio"), [(1.0, 1.0), (1e-4, 0.707)])
def test_eps_inside_the_root_shows_at_gradients_near_its_own_root(gradient, ratio):
    found = moved(answer("16b", "eps inside the root"), gradient, 0.001, BETAS, 1e-8)
    assert found / moved(answer("16b", ""), gradient, 0.001, BETAS, 1e-8) == pytest.approx(ratio, abs=1e-3)


@pytest.mark.parametrize(
    ("mistake", "weight"),
    [("", 1.998), ("L2 in the gradient", 1.990), ("decay not times lr", 1.8), ("weights grow", 2.002)],
)
def test_decay_of_a_weight_without_a_gradient(mistake, weight):
    args = (0.01, BETAS, 1e-8, 0.1)
    assert moved(answer("16c", mistake), 0.0, *args, weight=2.0) == pytest.approx(weight, abs=1e-5)


@pytest.mark.parametrize(("mistake", "shrinks"), [("", False), ("vectors decayed", True)])
def test_who_decays_vectors(mistake, shrinks):
    gain = torch.ones(4)
    answer("16c", mistake)([gain], [torch.zeros(4)], {}, 0.01, BETAS, 1e-8, 0.1)
    assert (gain < 1).all() == shrinks
