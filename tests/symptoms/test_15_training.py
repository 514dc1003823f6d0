"""What is seen of each mistake of lesson 15, as the course says it."""

import math

import pytest
import torch

from lessons import course, grader

CHECKS = course.checks(15)
TEN = (0.2, 5, 10, 1)  # dropout, updates before the save, updates in all, seed


def wrong(name: str, mistake: str):
    return CHECKS.exercises[name]["wrong"][mistake][0]


def estimates(mistake: str) -> dict:
    return CHECKS.two_estimates(wrong("15a", mistake), *CHECKS.inputs_estimate(1)[0])


def test_updates_in_an_epoch():
    question = CHECKS.predictions["15.1"]
    ids, batch, T = 1_003_854, 12, 64
    assert int(ids / (batch * T)) == question["answer"]
    assert {ids // T, ids // batch, ids} == {*question["wrong"]}


# ---- 15a
def test_with_dropout_on_two_calls_differ():
    seen = estimates("no eval")
    assert seen["first call"] != seen["second call"]


def test_left_in_eval_mode_dropout_is_off_from_then_on():
    seen = estimates("left in eval")
    assert seen["first call"] == seen["second call"]
    assert not seen["in train mode afterwards"]


def test_train_data_for_both_leaves_a_gap_of_exactly_0():
    found = estimates("train data for both")["first call"]
    assert found["train"] == found["val"]


def test_graphs_are_kept_where_nobody_says_otherwise():
    model, splits = CHECKS.inputs_estimate(1)[0]
    assert all(loss.grad_fn is not None for loss in wrong("15a", "graph handed out")(model, splits).values())


def test_single_batches_spread():
    model, splits = CHECKS.inputs_estimate(1)[0]
    single = [CHECKS.reference_estimate(model, {"val": [batch]})["val"] for batch in splits["val"]]
    assert max(single) - min(single) > 0.01


# ---- 15b
def test_a_test_with_long_gradients_alone_accepts_what_always_rescales():
    """So does the test of CS336's first assignment (version 1.0.2)."""
    exercise, always = CHECKS.exercises["15b"], wrong("15b", "always rescales")
    long, short = exercise["inputs"](1)[:2]
    assert grader.judge({**exercise, "inputs": lambda seed: [long]}, always)["status"] == grader.RIGHT
    assert grader.judge({**exercise, "inputs": lambda seed: [short]}, always)["status"] == grader.WRONG


@pytest.mark.parametrize(
    ("mistake", "turned"), [("each tensor by itself", True), ("by value", True), ("squared length", False)]
)
def test_the_direction_changes_where_there_is_more_than_one_factor(mistake, turned):
    args = CHECKS.inputs_step(1)[0]
    assert ("points elsewhere" in CHECKS.only_shorter(wrong("15b", mistake), *args)) == turned


def test_clipped_after_the_step_has_no_effect():
    gradients, limit = CHECKS.inputs_step(1)[0]
    late = CHECKS.one_update(wrong("15b", "after the step"), gradients, limit)["weights"]
    without = CHECKS.one_update(CHECKS.reference_step, gradients, math.inf)["weights"]
    assert all(torch.equal(a, b) for a, b in zip(late, without, strict=True))


# ---- 15c
@pytest.mark.parametrize(
    ("mistake", "first", "batches"),
    [
        ("optimizer not saved", 6, [5, 6, 7, 8, 9]),
        ("random state lost", 6, [5, 6, 7, 8, 9]),  # the batches stay the same: they depend on the step only
        ("step not saved", 6, [*range(10)]),
        ("first batches again", 6, [0, 1, 2, 3, 4]),
        ("weights not saved", 6, [5, 6, 7, 8, 9]),
    ],
)
def test_the_first_update_that_differs(mistake, first, batches):
    value = CHECKS.two_runs(wrong("15c", mistake), *TEN)
    assert CHECKS.seen_of(value, *TEN)["first"] == first
    assert value["batches after the save"] == " ".join(map(str, batches))
    assert first == CHECKS.predictions["15.3"]["answer"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "cause", "swap"),
    [
        ("optimizer not saved", "averages after loading", ('load_state_dict(saved["optimizer"])', "state")),
        ("references, not copies", "weights after loading", ("copy.deepcopy", "dict")),
        ("first group only", "rates after the save", ("param_groups", "param_groups[:1]")),
    ],
)
def test_a_mistake_is_named_however_the_masks_are_drawn(mistake, cause, swap):
    """By its name where only the seeds are others; by its cause where the masks are wrong, too."""
    exercise, ours = CHECKS.exercises["15c"], CHECKS.reference_go_on
    seeded = CHECKS.changed(ours, "seed_all(step)", "seed_all(1337 + step)", *swap)
    assert grader.judge(exercise, seeded)["mistake"] == mistake
    twice = CHECKS.changed(ours, "seed_all(step)", "seed_all(step - start)", *swap)
    assert grader.judge(exercise, twice)["line"].startswith(cause)


def test_resumed_and_unbroken_are_equal_bit_for_bit():
    value = CHECKS.two_runs(CHECKS.reference_go_on, *TEN)
    assert value["as in the unbroken run"] == "=" * 5


def test_references_make_the_best_equal_to_the_last():
    run = CHECKS.Run(0.2, 1)
    best = run.train(wrong("15c", "references, not copies"), 3)
    last = run.train(CHECKS.reference_go_on, 5)
    assert all(torch.equal(best["model"][name], weight) for name, weight in last["model"].items())
    kept = run.train(CHECKS.reference_go_on, 3)
    run.train(CHECKS.reference_go_on, 5)
    assert not torch.equal(kept["model"]["2.bias"], run.model.state_dict()["2.bias"])
