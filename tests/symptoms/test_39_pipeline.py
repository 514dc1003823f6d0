"""Lesson 39: what its wrong answers look like, in numbers."""

import pytest
import torch

from lessons import course
from lessons.ranks import Deadlock

checks = course.checks(39)


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


def seen(mistake: str, stages=3, m=4, seed=7):
    run = wrong("39b", mistake) if mistake else checks.reference_stage
    return checks.seen_of_stage(run, stages, m, seed)


def test_the_numbers_of_the_prediction():
    question = checks.predictions["39.1"]
    assert checks.reference_bubble(4, 8) == pytest.approx(question["answer"], abs=5e-4)
    names = ("idle over busy", "one stage too many", "busy share", "no micro-batches")
    found = [wrong("39a", name)(4, 8) for name in names]
    assert found == pytest.approx([*question["wrong"]], abs=5e-4)


@pytest.mark.parametrize("stages", [2, 3, 5])
@pytest.mark.parametrize("m", [1, 4, 9])
def test_the_formula_is_what_a_timetable_shows(stages, m):
    rows = checks.timetable(wrong("39c", "all forwards first"), 0, stages, m)
    shares = [row.count(".") / len(row) for row in rows]
    assert shares == pytest.approx([checks.reference_bubble(stages, m)] * stages)


@pytest.mark.parametrize(("mistake", "factor"), [("not divided", 4), ("divided twice", 0.25)])
def test_a_gradient_that_is_not_divided_is_m_times_too_long(mistake, factor):
    for one, other in zip(seen(mistake), seen(""), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        for name, g in one["gradients"].items():
            torch.testing.assert_close(g, factor * other["gradients"][name], rtol=1e-3, atol=1e-5)


def test_one_device_is_the_measure():
    for args in checks.inputs_stage(3):
        assert checks.as_one_device(checks.reference_stage, *args) == ""
        assert "off that of one device" in checks.as_one_device(wrong("39b", "not divided"), *args)


def test_another_order_shows_only_if_micro_batches_differ(monkeypatch):
    def apart():
        pairs = zip(seen("taken in another order"), seen(""), strict=True)
        return max(
            (one["gradients"][n] - g).abs().max()
            for one, other in pairs
            for n, g in other["gradients"].items()
        )

    assert apart() > 0.01
    alike = [checks.data_of(4, 7)[0]] * 4
    monkeypatch.setattr(checks, "data_of", lambda m, seed: alike)
    assert apart() < 1e-5


def test_the_tied_matrix_needs_both_gradients():
    right, found = seen(""), seen("tied gradients not summed")
    first, last = (found[rank]["gradients"]["tied"] for rank in (0, -1))
    for rank in (0, -1):
        torch.testing.assert_close(right[rank]["gradients"]["tied"], first + last, rtol=1e-3, atol=1e-5)
    half = seen("tied sum on one stage")
    assert not torch.allclose(half[0]["gradients"]["tied"], half[-1]["gradients"]["tied"])


def test_a_stage_that_waits_for_nobody_is_named():
    with pytest.raises(Deadlock, match="rank 2 waits in recv from 3"):
        seen("last stage waits")


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("m", [2, 5, 8])
def test_all_forwards_first_hold_m_and_one_by_one_at_most_p(stages, m):
    all_first = wrong("39c", "all forwards first")
    for rank in range(stages):
        assert checks.live(all_first(rank, stages, m)) == m
        assert checks.live(checks.reference_order(rank, stages, m)) == min(stages - rank, m) <= stages
    lengths = {len(checks.timetable(order, 0, stages, m)[0]) for order in (all_first, checks.reference_order)}
    assert lengths == {2 * (m + stages - 1)}, "the bubble is the same"


@pytest.mark.parametrize("mistake", ["one too few ahead", "last rank the furthest ahead"])
def test_a_timetable_that_cannot_go_on_says_so(mistake):
    rows = checks.timetable(wrong("39c", mistake), 0, 4, 8)
    right = checks.timetable(checks.reference_order, 0, 4, 8)
    assert rows[0].endswith("stuck") or len(rows[0]) > len(right[0])
