"""Lesson 39: what its wrong answers look like, in numbers."""

import re

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
        assert "off the gradient of one device are" in checks.as_one_device(
            wrong("39b", "not divided"), *args
        )


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


@pytest.mark.parametrize("mistake", ["more than there are", "too far ahead, rest left"])
def test_the_picture_shows_fewer_micro_batches_than_stages(mistake):
    mine, right = (checks.timetables(f, 2, 4, 8) for f in (wrong("39c", mistake), checks.reference_order))
    assert mine[:6] == right[:6]
    assert right[5:7] == ["5 stages, 2 micro-batches", "01.......a.b"]
    assert mine[6].startswith("01234")
    assert "comes 1 times, not 0" in checks.each_once(wrong("39c", mistake))


def test_an_order_that_stands_still_or_takes_longer_is_told():
    def backward_first(rank, stages, micro_batches):
        return [f"{kind}{i}" for i in range(micro_batches) for kind in "BF"]

    slow, told = wrong("39c", "one at a time"), checks.no_longer_than_it_has_to_be
    assert told(backward_first) == "4 stages, 8 micro-batches: all wait for each other"
    assert told(slow) == "4 stages, 8 micro-batches: 64 steps, 22 are enough"
    assert [told(checks.reference_order), checks.each_once(checks.reference_order)] == ["", ""]


def test_two_mistakes_are_told_at_once():
    both = checks.mistakes(
        checks.reference_stage,
        {
            "both": (
                " / len(batches)\n",
                "\n",
                "if rank == 0:",
                "if last < 0:",
                "elif rank == last:",
                "elif last < 0:",
            )
        },
    )["both"]
    found = checks.as_one_device(both, *checks.inputs_stage(1)[0])
    assert re.search(r"rank 0: .*tied \d+%, layer.weight 300%, layer.bias 300%$", found)


@pytest.mark.parametrize(
    ("mistake", "waits"),
    [("all_reduce by two ranks", r"all_reduce of \(11, 6\)"), ("both send first", "send to 2"),
     ("both receive first", "recv from 2"), ("rank 0 receives", "recv from -1")],
)  # fmt: skip
def test_who_waits_for_ever_is_named(mistake, waits):
    with pytest.raises(Deadlock, match=f"^rank 0 waits in {waits}, rank 1 "):
        seen(mistake)
