"""Lesson 37: what its wrong answers look like, in numbers."""

import pytest
import torch

from lessons import course
from lessons.ranks import together

checks = course.checks(37)


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


@pytest.mark.parametrize(("number", "stage"), [("37.1", 1), ("37.2", 2), ("37.3", 3)])
def test_the_numbers_of_the_predictions(number, stage):
    args = (stage, 8, 2, 2, 4, 8)
    question = checks.predictions[number]
    assert checks.reference_bytes(*args) == question["answer"]
    assert checks.reference_bytes(0, *args[1:]) == 16
    assert wrong("37c", "master weights forgotten")(*args) in question["wrong"]
    if stage == 1:
        assert wrong("37c", "everything divided")(*args) == 2


def test_without_a_gather_the_ranks_differ_after_the_first_update():
    args = checks.inputs_step(1)[0]
    assert "after update 1 the ranks' weights differ" in checks.ranks_agree(wrong("37a", "no gather"), *args)
    assert checks.ranks_agree(checks.reference_step, *args) == ""


def test_adam_on_one_device_is_the_measure():
    for args in checks.inputs_step(4):
        assert checks.as_one_adam(checks.reference_step, *args) == ""


@pytest.mark.parametrize(("size", "P", "left"), [(2, 7, [6]), (3, 11, [9, 10]), (3, 12, [])])
def test_rounded_down_the_last_weights_never_change(size, P, left):
    start, _ = checks.data_of(size, P, 5)
    after = checks.seen_of_step(wrong("37a", "last weights left out"), size, P, 5)[0]["weights"][-1]
    assert (after == start).nonzero().flatten().tolist() == left


def test_a_share_of_the_state_is_kept():
    def kept(step):
        def one_rank(dist):
            state = {}
            step(torch.zeros(12), torch.ones(12), state, 0.1, dist)
            return state["m"].numel() + state["v"].numel()

        return together(3, one_rank)

    assert kept(checks.reference_step) == [8, 8, 8]
    assert kept(wrong("37a", "all state on each rank")) == [24, 24, 24]


@pytest.mark.parametrize("size", [2, 4])
def test_a_local_norm_is_too_small_by_the_root_of_the_ranks(size):
    def one_rank(function):
        def run(dist):
            g = torch.Generator().manual_seed(dist.get_rank())
            return function([torch.randn(4000, generator=g)], [], 1e9, dist)

        return run

    found, right = (together(size, one_rank(f)) for f in (wrong("37b", "own norm"), checks.reference_clip))
    assert len({*right}) == 1
    assert [norm / right[0] for norm in found] == pytest.approx([size**-0.5] * size, rel=0.05)


def test_copies_count_once():
    def run(dist, clip=checks.reference_clip):
        return clip([torch.tensor([3.0 + dist.get_rank()])], [torch.tensor([12.0])], 1e9, dist)

    assert together(2, run) == [13.0] * 2
    twice = together(2, lambda dist: run(dist, wrong("37b", "copies counted on each rank")))
    assert twice == pytest.approx([(25 + 2 * 144) ** 0.5] * 2)


def test_after_clipping_the_whole_has_the_length_of_the_limit():
    found = checks.seen_of_clip(checks.reference_clip, 3, 2.5, 1.0, 8)
    pieces = [*found[0]["copies"], *(g for one in found for g in one["shards"])]
    assert found[0]["norm"] > 2.5
    assert torch.cat([g.flatten() for g in pieces]).norm().item() == pytest.approx(2.5, rel=1e-5)


def test_a_gradient_of_zero_stays_zero():
    found = checks.seen_of_clip(wrong("37b", "not a number at zero"), 2, 5.0, 0.0, 3)
    assert found[0]["shards"][0].isnan().all()
    right = checks.seen_of_clip(checks.reference_clip, 2, 5.0, 0.0, 3)
    assert right[0]["norm"] == 0 and not right[0]["shards"][0].any()


def test_a_copy_that_is_updated_is_no_update():
    """The same symptom as that of a neighbour's stretch: the weights are as they were."""
    swaps = ("    mean = gradient.clone()\n", "    mean, weights = gradient.clone(), weights.clone()\n")
    of_a_copy = checks.mistakes(checks.reference_step, {"copy": swaps})["copy"]
    neighbours = checks.exercises["37a"]["wrong"]["updates the next rank's shard"][0]
    for args in checks.inputs_step(3):
        for step in (of_a_copy, neighbours):
            for one in checks.seen_of_step(step, *args):
                assert all(torch.equal(w, one["weights"][0]) for w in one["weights"])
