"""Lesson 30: what its wrong answers look like, in numbers."""

import math

import pytest
import torch
import torch.nn.functional as F

from lessons import course

checks = course.checks(30)
SAMPLE = [[(list(range(20)) + list(range(10)), list(range(9)))]]  # prompt 30, answer 9, end token 1


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


@pytest.mark.parametrize(
    ("mistake", "share"),
    [
        ("", 0.25),
        ("end token masked", 0.225),
        ("last prompt token learned", 0.275),
        ("nothing masked", 0.975),
    ],
)
def test_the_share_of_40_tokens_that_counts(mistake, share):
    """Without a mask it is 39 of 40: nothing stands before the first token."""
    labelled = wrong("30a", mistake) if mistake else checks.reference_labelled
    _, y = labelled(SAMPLE, 26, 64)
    assert (y != -1).sum().item() / 40 == pytest.approx(share)
    known = checks.predictions["30.1"]
    assert share in (known["answer"], *known["wrong"], 0.975)


def test_minus_100_is_an_error_in_the_loss():
    x, y = wrong("30a", "-100 for -1")(SAMPLE, 26, 64)
    logits = torch.zeros(*x.shape, 27)
    with pytest.raises(IndexError, match="-100 is out of bounds"):
        F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)


def test_minus_1_in_x_is_an_error_in_the_embedding():
    x, _ = wrong("30a", "x masked, too")(SAMPLE, 26, 64)
    with pytest.raises(IndexError, match="out of range"):
        torch.nn.Embedding(27, 4)(x)


def test_cut_off_a_row_may_have_no_target():
    samples = [[(list(range(20)), [1, 2, 3])], [([1, 2], [3, 4])]]
    _, y = wrong("30a", "cut off at the right")(samples, 26, 15)
    assert (y != -1).sum(1).tolist() == [0, 3]
    assert len(checks.reference_labelled(samples, 26, 15)[1]) == 1


def test_filled_places_learned_are_most_of_a_ragged_batch():
    samples = [[([1] * 30, [2] * 9)], [([1, 2], [3, 4])], [([1, 2], [3, 4])]]
    right, found = (
        (f(samples, 26, 64)[1] != -1).sum().item()
        for f in (checks.reference_labelled, wrong("30a", "filled places learned"))
    )
    assert (right, found) == (16, 16 + 2 * 35)


def test_divided_by_all_places_the_loss_is_too_small_by_the_masked_share():
    logits, y = checks.inputs_mean(1)[0]
    right, found = (f(logits, y).item() for f in (checks.twin_mean, wrong("30b", "divided by all places")))
    assert found / right == pytest.approx((y != -1).float().mean().item())


def test_nothing_learned_is_nan_in_the_gradient_too():
    logits, y = torch.randn(2, 3, 5, requires_grad=True), torch.full((2, 3), -1)
    loss = wrong("30b", "nothing learned is nan")(logits, y)
    assert math.isnan(loss.item())
    checks.twin_mean(logits, y).backward()
    assert not logits.grad.any()


def test_a_prompt_is_the_beginning_of_the_sample():
    """What 30c writes at use is what 30a has learned from."""
    talk = [("user", "a b"), ("assistant", "c"), ("user", "d"), ("assistant", "ef")]
    pairs = [("user: a b\nassistant: ", "c"), ("\nuser: d\nassistant: ", "ef")]
    sample = [(checks.encode(prompt), checks.encode(answer)) for prompt, answer in pairs]
    end = checks.LETTERS.end_id
    x, _ = checks.reference_labelled([sample], end, 99)
    prompt = checks.reference_prompt(talk[:-1], checks.encode, end, 99, 5)
    assert x[0, : len(prompt)].tolist() == prompt
    assert x[0, len(prompt) :].tolist() == checks.encode("ef")
