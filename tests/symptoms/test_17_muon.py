"""Lesson 17: what its wrong answers look like, in numbers."""

import pytest
import torch

from lessons import course
from model import GPT, GPTConfig

checks = course.checks(17)


def answer(exercise: str, mistake: str):
    """A wrong answer by its name, or the reference for ""."""
    found = checks.exercises[exercise]
    return found["wrong"][mistake][0] if mistake else found["reference"]


def test_five_rounds_end_between_068_and_113():
    s = torch.linspace(0.01, 1, 2000).double()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert s.min().item() == pytest.approx(0.68, abs=0.005)
    assert s.max().item() == pytest.approx(1.13, abs=0.005)


def test_three_rounds_are_spread():
    s = torch.linspace(0.01, 1, 2000).double()
    for _ in range(3):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert s.max().item() == pytest.approx(1.20, abs=0.005)
    assert s.min() < 0.45


@pytest.mark.parametrize(("size", "is_nan"), [(3e3, True), (1e-3, False)])
def test_without_a_norm_large_matrices_are_nan(size, is_nan):
    matrix = size * checks.inputs_orthogonalize(1)[0][0]
    assert answer("17a", "not normalised")(matrix).isnan().any() == is_nan
    assert not answer("17a", "")(matrix).isnan().any()


def test_a_mistyped_coefficient_leaves_the_range():
    matrix = checks.inputs_orthogonalize(1)[0][0]
    found = [torch.linalg.svdvals(answer("17a", mistake)(matrix)) for mistake in ("", "mistyped c")]
    assert 0.6 < found[0].min() and found[0].max() < 1.14
    assert found[1].max() > 1.2 or found[1].min() < 0.5


@pytest.mark.parametrize(("shape", "factor"), [((8, 2), 0.5), ((2, 8), 1.0)])
def test_without_the_shape_factor_steps_of_tall_matrices_are_short(shape, factor):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    moves = []
    for mistake in ("no shape factor", ""):
        w = torch.zeros(shape)
        with torch.no_grad():
            answer("17b", mistake)(w, g, {}, 0.02, 0.95, 0.0)
        moves.append(w.norm())
    assert moves[0] / moves[1] == pytest.approx(factor, abs=1e-3)


def test_the_groups_have_each_parameter_once():
    model = GPT(GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8))
    assert checks.once_each(answer("17c", ""), model) == ""
    assert "twice" in checks.once_each(answer("17c", "matrices twice"), model)
    assert "in no list" in checks.once_each(answer("17c", "rest forgotten"), model)


def test_a_sum_with_1e7_shrinks_small_matrices_alone():
    (function, _), tall = (
        checks.exercises["17a"]["also"]["1e-7 added to the norm"],
        checks.inputs_orthogonalize(1)[1][0],
    )
    for size, apart in ((1.0, False), (1e-6, True)):
        found, right = function(size * tall), answer("17a", "")(size * tall)
        assert ((found - right).abs().max() > 0.01) == apart


def test_what_explodes_is_not_told_by_its_nan():
    text = checks.values_near_1(answer("17a", "sign of b"), checks.inputs_orthogonalize(1)[0][0])
    assert text.startswith("the numbers explode")
