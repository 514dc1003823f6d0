"""What is seen of each mistake of lesson 21, as the course says it."""

import pytest

from lessons import course

CHECKS = course.checks(21)


def watched(mistake: str, case: int) -> dict:
    wrong = CHECKS.exercises["21b"]["wrong"][mistake][0]
    return CHECKS.watched(wrong, *CHECKS.inputs_stopper(1)[case])


def test_what_is_left_of_a_weight():
    question = CHECKS.predictions["21.1"]
    assert (1 - 0.001 * 0.1) ** 1000 == pytest.approx(question["answer"], abs=question["tol"])


def test_compared_with_the_last_it_never_stops_on_a_slow_rise_with_dips():
    assert "stop" not in watched("compared with the last", 0)["said"]


def test_by_reference_the_best_weights_are_the_last():
    assert watched("references, not copies", 0)["kept in the end"][-1] == 99.0
