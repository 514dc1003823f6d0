"""Lesson 3: its wrong answers give the numbers that the lesson's text warns of, and the floor is a floor."""

import functools
import math
import statistics

import pytest
import torch

from lessons import course
from lessons.checks import loss

course.checks(3)  # its words are put to it

lesson = course.load(course.lessons()[3], "lesson_3")
CHAIN = torch.tensor(loss.CHAIN, dtype=torch.float64)
POLISH = (
    "Litwo! Ojczyzno moja! ty jesteś jak zdrowie; ile cię trzeba cenić, ten tylko się dowie"  # A. Mickiewicz
)


def wrong(name: str, mistake: str):
    return loss.exercises[name]["wrong"][mistake][0]


def test_logits_times_a_thousand_break_a_softmax_that_comes_first():
    logits, y = loss.inputs_cross_entropy(1)[1]
    assert not wrong("3a", "softmax then log")(logits, y).isfinite()
    assert loss.reference_cross_entropy(logits, y).isfinite()


def test_a_softmax_before_the_loss_cannot_reach_zero():
    found = wrong("3a", "softmax twice")(1000 * torch.eye(65), torch.arange(65)).item()
    assert found == pytest.approx(math.log(64 + math.e) - 1, abs=1e-6)
    assert found == pytest.approx(3.20, abs=0.005)


@pytest.mark.parametrize(("mistake", "ratio"), [("log base 2", 1.4427), ("sum, not mean", 13)])
def test_a_constant_factor(mistake, ratio):
    logits, y = loss.inputs_cross_entropy(1)[0]
    right = loss.reference_cross_entropy(logits, y)
    assert (wrong("3a", mistake)(logits, y) / right).item() == pytest.approx(ratio, rel=1e-4)


def test_bits_and_nats_of_the_same_loss():
    assert 3.581 * math.log(2) == pytest.approx(2.482, abs=5e-4)
    assert math.exp(2.482) == pytest.approx(11.96, abs=0.01)
    assert math.exp(3.581) == pytest.approx(35.9, abs=0.05)


def test_characters_for_bytes_are_equal_in_english_and_not_in_polish():
    nll = torch.full((20,), 2.0)
    for text, ratio in (("to be or not to be", 1.0), (POLISH, 1.05)):
        found = wrong("3c", "characters")(nll, "", text) / loss.reference_bits_per_byte(nll, "", text)
        assert found == pytest.approx(ratio, abs=0.015)


# ---- 3d: a table counted on n letters, five chains
@functools.cache
def excess(n: int) -> list[float]:
    return [lesson.excess(CHAIN, n, seed) for seed in range(5)]


@pytest.mark.parametrize(
    ("n", "stated"),
    [(300, 0.0112), (3_000, 0.00073), pytest.param(30_000, 0.00007, marks=pytest.mark.slow)],
)
def test_the_excess_of_a_counted_table_falls_as_six_numbers_over_2n(n, stated):
    """Few chains: the mean is within a factor of two of the stated one, and of theory."""
    found = statistics.mean(excess(n))
    assert 0.5 < found / stated < 2
    assert 0.3 < found / (6 / (2 * n)) < 3


@pytest.mark.parametrize(
    ("mistake", "floor"),
    [("entropy of letter frequencies", 1.0195), ("rows weigh the same", 0.8345), ("uniform", 1.0986)],
)
def test_a_wrong_floor_is_beaten(mistake, floor):
    rate = -loss.reference_gap(CHAIN, 0.0)
    assert rate == pytest.approx(0.7838, abs=5e-5)
    assert -wrong("3d", mistake)(CHAIN, 0.0) == pytest.approx(floor, abs=5e-5)
    assert wrong("3d", mistake)(CHAIN, rate + max(excess(3_000))) < 0, "a good table is below it"


def letters(n: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    limits, drawn = CHAIN.cumsum(1).tolist(), [0]
    for u in torch.rand(n, generator=g, dtype=torch.float64).tolist():
        drawn.append(sum(u > limit for limit in limits[drawn[-1]][:-1]))
    return torch.tensor(drawn)


def nats(P: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    return -P[drawn[:-1], drawn[1:]].log()


def test_the_loss_on_the_training_text_is_often_below_the_floor():
    below, found, rate = 0, [], -loss.reference_gap(CHAIN, 0.0)
    for seed in range(20):
        drawn = letters(300, seed)
        counts = torch.bincount(drawn[:-1] * 3 + drawn[1:], minlength=9).view(3, 3).double() + 1
        found.append(nats(counts / counts.sum(1, keepdim=True), drawn).mean().item())
        below += found[-1] < rate
    assert 5 <= below <= 15
    assert statistics.stdev(found) == pytest.approx(0.05, abs=0.015)


def test_the_floor_itself_is_measured_with_an_error():
    """On 200,000 letters a perfect model is off by chance, by about 0.0018: that is no bug."""
    found, rate = nats(CHAIN, letters(200_000, 1)), -loss.reference_gap(CHAIN, 0.0)
    blocks = torch.stack([block.mean() for block in found.split(1_000)])  # neighbours are not independent
    error = blocks.std().item() / math.sqrt(len(blocks))
    assert error == pytest.approx(0.0018, abs=0.0004)
    assert abs(found.mean().item() - rate) < 4 * error
