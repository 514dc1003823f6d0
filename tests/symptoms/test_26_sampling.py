"""Lesson 26: what its wrong answers look like, in numbers."""

import math

import pytest
import torch

from generate import token_probs
from lessons import course
from lessons.common import entropy

checks = course.checks(26)
FOUR = torch.tensor([[0.15, 0.5, 0.05, 0.3], [0.05, 0.15, 0.3, 0.5]])


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


def kept(function, p=0.6) -> list[int]:
    return (function(FOUR, p) > 0).sum(1).tolist()


@pytest.mark.parametrize(
    ("mistake", "count"),
    [("", 2), ("crossing token dropped", 1), ("one past the crossing token", 3), ("nothing left", 1)],
)
def test_how_many_of_four_letters_are_kept(mistake, count):
    function = wrong("26c", mistake) if mistake else checks.reference_keep_p
    assert kept(function) == [count] * 2
    assert checks.predictions["26.1"]["answer"] == kept(checks.reference_keep_p)[0]


@pytest.mark.parametrize(("mistake", "count"), [("", 1), ("nothing left, so all alike", 4)])
def test_with_a_tiny_p_one_letter_stays_or_it_is_noise(mistake, count):
    function = wrong("26c", mistake) if mistake else checks.reference_keep_p
    assert kept(function, 0.01) == [count] * 2
    assert torch.isnan(wrong("26c", "nothing left")(FOUR, 0.01)).all()


def test_what_is_not_put_back_stands_at_other_letters():
    found = wrong("26c", "sorted, not put back")(FOUR, 0.6)
    torch.testing.assert_close(found, torch.tensor([[0.625, 0.375, 0, 0]]).expand(2, 4))
    assert set(found[0].tolist()) == set(checks.reference_keep_p(FOUR, 0.6)[0].tolist())


def test_the_other_threshold_keeps_another_set():
    assert kept(wrong("26c", "threshold 1 - p"), 0.9) == [1, 1]
    assert kept(checks.reference_keep_p, 0.9) == [3, 3]


def test_multiplied_the_entropy_moves_the_wrong_way():
    logits = checks.inputs_tempered(1)[0][0]
    for function, sign in ((checks.reference_tempered, 1), (wrong("26a", "multiplied"), -1)):
        cold, warm = (entropy(function(logits, T)) for T in (0.5, 2.0))
        assert (sign * (warm - cold) > 0).all()


def test_after_softmax_there_is_no_effect():
    logits = checks.inputs_tempered(1)[0][0]
    torch.testing.assert_close(wrong("26a", "after softmax")(logits, 0.7), torch.softmax(logits, -1))


def test_zero_divides_by_zero():
    logits = checks.inputs_tempered(1)[0][0]
    assert wrong("26a", "divides by zero")(logits, 0.0).isnan().all()


def test_the_second_prediction_is_the_rule():
    two = torch.tensor([[0.8, 0.2]]).log()
    question = checks.predictions["26.2"]
    assert checks.reference_tempered(two, 0.5)[0, 0] == pytest.approx(question["answer"], abs=0.0005)
    assert checks.reference_tempered(two, 2.0)[0, 0] == pytest.approx(0.667, abs=0.0005)
    assert 0.667 in question["wrong"]


def test_a_logit_of_0_keeps_its_share():
    logits = torch.tensor([[3.0, 1, 0.5, -2, -4]])
    found = torch.softmax(wrong("26b", "the others set to 0")(logits, 2), -1)
    torch.testing.assert_close(found[0, 2:], torch.full((3,), 1 / (math.e**3 + math.e + 3)))
    assert (torch.softmax(checks.reference_keep_k(logits, 2), -1)[0, 2:] == 0).all()


def test_ties_keep_more_than_k_and_a_large_k_fails():
    tied = torch.tensor([[3.0, 1, 1, 2, 1, 0, -1, 1, -2]])
    assert int((checks.keep_tied(tied, 4) > -math.inf).sum()) == 6
    assert int((checks.reference_keep_k(tied, 4) > -math.inf).sum()) == 4
    with pytest.raises(RuntimeError):
        wrong("26b", "more than there are")(tied, 20)


def test_the_three_together_are_those_of_the_project():
    logits = 3 * torch.randn(6, 9, generator=torch.Generator().manual_seed(3))
    chances = checks.reference_tempered(checks.reference_keep_k(logits, 5), 1.4)
    found = checks.reference_keep_p(chances, 0.7)
    right = token_probs(logits, 1.4, 5, 0.7)
    torch.testing.assert_close(found, right / right.sum(-1, keepdim=True))


def test_a_chance_that_is_0_has_no_power():
    (function, _), two = checks.exercises["26a"]["also"]["chances to a power"], torch.tensor([[90.0, -90.0]])
    assert checks.reference_tempered(two, 90.0)[0, 1] == pytest.approx(0.119, abs=0.001)
    assert function(two, 90.0)[0, 1] == 0


@pytest.mark.parametrize(("mistake", "count"), [("", 1), ("one more than reaches p", 2)])
def test_a_chance_of_p_reaches_p(mistake, count):
    function = wrong("26c", mistake) if mistake else checks.reference_keep_p
    assert (function(torch.tensor([[0.25, 0.125, 0.5, 0.125]]), 0.5) > 0).sum() == count


def test_of_equal_letters_one_is_sure():
    found = checks.reference_tempered(torch.tensor([[2.0, 1.0, 2.0]]), 0.0)
    assert sorted(found[0].tolist()) == [0, 0, 1]
    assert wrong("26a", "equal ones all sure")(torch.tensor([[2.0, 1.0, 2.0]]), 0.0).sum() == 2
