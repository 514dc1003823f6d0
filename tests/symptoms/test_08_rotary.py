"""Lesson 8: what its wrong answers do to lengths and to q·k."""

import math

import pytest
import torch

from lessons import course
from lessons.checks.rotary import exercises, reference_tables
from lessons.grader import judge

course.checks(8)  # its words are put to it

COS, SIN = reference_tables(64, 64, 10000.0)
X = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(8))


def answer(exercise: str, name: str):
    known = exercises[exercise]["wrong"] | exercises[exercise].get("also", {})
    return known[name][0] if name else exercises[exercise]["reference"]


def spread_of_products(turn) -> float:
    """How much q·k varies for one query and one key that stay 3 positions apart."""
    q, k = X[:, :1].expand(X.shape), X[:, 1:2].expand(X.shape)
    products = (turn(q.clone(), COS, SIN)[0, 3:] * turn(k.clone(), COS, SIN)[0, :-3]).sum(1)
    return (products.max() - products.min()).item()


@pytest.mark.parametrize(
    ("mistake", "low", "high"),
    [
        ("", 1.0, 1.0),
        ("neighbours", 1.0, 1.0),
        ("not put back", 1.0, 1.0),
        ("no minus", 0.828, 1.068),
        ("angles for neighbours", 0.847, 1.107),
    ],
)
def test_lengths_and_products(mistake, low, high):
    turn = answer("8b", mistake)
    factors = turn(X, COS, SIN).norm(dim=-1) / X.norm(dim=-1)
    assert factors.min().item() == pytest.approx(low, abs=0.002)
    assert factors.max().item() == pytest.approx(high, abs=0.002)
    assert (spread_of_products(turn) < 1e-3) == (low == high)


def test_the_other_convention_needs_reordered_weights():
    halves, neighbours = answer("8b", ""), answer("8b", "neighbours")
    order = torch.arange(64).view(-1, 2).T.flatten()
    assert torch.allclose(neighbours(X, COS, SIN)[..., order], halves(X[..., order], COS, SIN), atol=1e-5)
    apart = (neighbours(X, COS, SIN) - halves(X, COS, SIN)).abs().amax((0, 2))
    assert apart[0] == 0  # the first token is right, the rest drifts
    assert apart[1:].min() > 0.5


def test_bfloat16_has_no_position_1001():
    cos, sin = answer("8a", "positions in bfloat16")(1002, 64, 10000.0)
    right_cos, right_sin = reference_tables(1002, 64, 10000.0)
    assert torch.allclose(cos[1001], right_cos[1000], atol=1e-4)
    off = torch.atan2(sin[1001, 0], cos[1001, 0]) - torch.atan2(right_sin[1001, 0], right_cos[1001, 0])
    assert math.cos(off) == pytest.approx(math.cos(1), abs=1e-3)  # a whole radian


def test_fast_later_pairs_are_told_as_fast_in_float32_too():
    def positive_exponent(T, d, base):
        angles = torch.arange(T)[:, None] * base ** (torch.arange(0, d, 2) / d)
        return angles.cos(), angles.sin()

    d, base = exercises["8a"]["inputs"](1)[0][1:]
    line = judge(exercises["8a"], positive_exponent)["line"]
    assert f"last pair turns by {base ** ((d - 2) / d):.3g} a position" in line


def test_counting_the_positions_is_seen_only_where_they_have_gaps():
    q, k, v, positions, base = exercises["8c"]["inputs"](1)[0]
    counted, given = answer("8c", "arange"), answer("8c", "")
    without_gaps = torch.arange(q.size(1)).expand(positions.shape)
    same = [
        all(torch.equal(a, b) for a, b in zip(counted(*args), given(*args), strict=True))
        for args in ((q, k, v, without_gaps, base), (q, k, v, positions, base))
    ]
    assert same == [True, False]
    token = torch.tensor([[5]] * 3)  # with a cache each new token comes alone: it is not turned at all
    assert torch.equal(counted(q[:, :1], k[:, :1], v[:, :1], token, base)[0], q[:, :1])


def test_a_turned_v_makes_the_output_depend_on_the_place():
    q, k, v, positions, base = exercises["8c"]["inputs"](1)[0]

    def output(place, shift):
        turned_q, turned_k, turned_v = place(q, k, v, positions + shift, base)
        return torch.softmax(turned_q @ turned_k.mT, -1) @ turned_v

    for mistake, moves in (("", False), ("v too", True)):
        place = answer("8c", mistake)
        assert ((output(place, 10) - output(place, 0)).abs().max() > 0.1) == moves
