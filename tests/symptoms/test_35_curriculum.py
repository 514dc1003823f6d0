"""Lesson 35: what its wrong answers look like, in numbers."""

import numpy as np
import pytest
import torch

from lessons import course

checks = course.checks(35)


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


def mean_of(order_of, part: slice) -> float:
    """Mean nats of the windows that are read in a part of the order."""
    args = checks.inputs_order(1)[0]
    right, _ = checks.twin_order(*args)
    return float(np.mean([right[i] for i in order_of(*args)[1][part]]))


def test_easy_windows_come_first():
    first, last = slice(0, 4), slice(-12, None)
    assert mean_of(checks.reference_order, first) < mean_of(checks.reference_order, last)
    assert mean_of(wrong("35a", "hardest first"), first) > mean_of(wrong("35a", "hardest first"), last)


def test_three_stages_are_twice_the_windows():
    ids = torch.randint(4, (3001,), generator=torch.Generator().manual_seed(1))
    nats, order = checks.reference_order(ids, 3001, 10, 4, 3, 1)
    assert len(order) / len(nats) == checks.predictions["35.2"]["answer"]


def test_the_full_data_is_reached_or_not():
    args = checks.inputs_order(1)[0]
    never = wrong("35a", "all windows never reached")
    assert "are missing" in checks.all_windows_at_the_end(never, *args)
    assert checks.all_windows_at_the_end(checks.reference_order, *args) == ""


def test_a_score_that_knows_val_is_another_score():
    args = checks.inputs_order(1)[0]
    right, found = (f(*args)[0] for f in (checks.twin_order, wrong("35a", "val counted, too")))
    assert len(right) == len(found) and not np.allclose(right, found, atol=0.01)


def test_not_shuffled_each_seed_reads_the_same():
    ids, cut, T, V, stages, _ = checks.inputs_order(1)[0]
    for order_of, same in ((wrong("35a", "not shuffled"), True), (checks.twin_order, False)):
        one, two = (order_of(ids, cut, T, V, stages, seed)[1] for seed in (1, 2))
        assert (one == two) == same


def equals(seed: int, length: int = 8):
    """Two arms that do not differ, whose losses are noise, over looks at equal tokens."""
    rng = np.random.default_rng(seed)
    arms = rng.normal(2.4, 0.02, (2, 3, length))
    return [{s: [*enumerate(arm[s].tolist(), 1)] for s in range(3)} for arm in arms]


def test_the_best_look_of_one_arm_makes_a_gain_of_nothing():
    right, found = (
        np.mean([f(*equals(seed), 8, 4.303)["gain"] for seed in range(60)])
        for f in (checks.twin_fair, wrong("35b", "best of one arm"))
    )
    assert abs(right) < 0.006
    assert found == pytest.approx(0.02 * 1.42, abs=0.006)  # the lowest of 8 normal numbers: -1.42


def test_who_reads_more_wins():
    """Arms of one curve, and one of them is trained twice as long."""
    falls = {s: [(n, 3 - 0.1 * n + 0.01 * s) for n in range(1, 9)] for s in range(3)}
    longer = {s: [(n, 3 - 0.1 * n + 0.011 * s) for n in range(1, 17)] for s in range(3)}
    assert checks.twin_fair(falls, longer, 8, 4.303)["better"] == "undecided"
    assert wrong("35b", "last of each run")(falls, longer, 8, 4.303)["better"] == "other"


def test_two_errors_are_too_few_for_three_seeds():
    """Arms that do not differ are told apart in 18 of 100 tests, where 5 are meant (t with 2 degrees)."""
    found = {name: 0 for name in ("right", "2 for t")}
    for seed in range(400):
        for name in found:
            fair = checks.twin_fair if name == "right" else wrong("35b", name)
            found[name] += fair(*equals(seed, 1), 1, 4.303)["better"] != "undecided"
    assert found["right"] == pytest.approx(0.05 * 400, abs=14)
    assert found["2 for t"] == pytest.approx(0.184 * 400, abs=25)
