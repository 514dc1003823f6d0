"""Lesson 28: what its wrong answers look like, in numbers."""

import math

import pytest
import torch

from lessons import course
from lessons.common import generator, normal

checks = course.checks(28)


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


def test_the_standard_error_of_a_mean():
    losses = 2 + 0.1 * torch.tensor([-1.0, 1.0] * 50)  # a spread of 0.1
    logits = torch.stack((torch.zeros(100), (losses.exp() - 1).log()), 1)  # target 0 costs these nats
    flat = torch.zeros(100, 2)

    def model_of(table):
        return lambda x: table[x]

    def draw(split):
        return torch.arange(100)[:, None], torch.zeros(100, 1, dtype=torch.int64)

    _, error = checks.twin_compare(model_of(flat), model_of(logits), draw, 1)
    assert error == pytest.approx(checks.predictions["28.1"]["answer"], rel=1e-4)
    for mistake, found in (("spread, not standard error", 0.1), ("divided by n", 0.001)):
        assert wrong("28b", mistake)(model_of(flat), model_of(logits), draw, 1)[1] == pytest.approx(
            found, rel=1e-3
        )


class First:
    """Knows the next letter if it sees two letters, or more: what a window begins with is expensive."""

    def __init__(self, size):
        self.config = checks.types.SimpleNamespace(block_size=size)

    def __call__(self, x):
        logits = torch.zeros(*x.shape, checks.V)
        following = (2 * x[:, 1:] - x[:, :-1]) % checks.V  # an arithmetic sequence
        return logits.scatter(2, torch.cat((x[:, :1], following), 1)[..., None], 50.0)


def test_disjoint_windows_are_too_high():
    ids = torch.arange(0, 3 * 40, 3) % checks.V
    right, disjoint = (
        f(First(8), ids, 8) for f in (checks.reference_sliding, wrong("28a", "disjoint windows"))
    )
    assert right == pytest.approx(50 / 39, rel=1e-3)  # the first target alone
    assert disjoint == pytest.approx(6 * 50 / 39, rel=1e-3)  # one in each window of 7


def test_a_mean_of_window_means_follows_the_short_one():
    ids = torch.cat((torch.arange(0, 3 * 20, 3) % checks.V, torch.tensor([0, 5, 1])))  # the end is hard
    right, means = (
        f(First(8), ids, 8) for f in (checks.reference_sliding, wrong("28a", "mean of window means"))
    )
    assert means > 1.2 * right


def test_pairs_are_surer():
    g = generator(3)
    for k, B, T, seed in checks.inputs_compare(1):
        paired = checks.seen_of_compare(checks.twin_compare, k, B, T, seed)["standard error"]
        unpaired = checks.seen_of_compare(wrong("28b", "unpaired"), k, B, T, seed)["standard error"]
        assert paired < unpaired / 1.5
    (a,) = normal(g, (1000,))
    assert (a + 0.1 - a).std() < 1e-5 < a.std() / math.sqrt(1000)


def test_on_the_training_text_the_one_that_knows_it_by_heart_wins():
    half = torch.arange(checks.V) < checks.V // 2  # train has these letters alone

    def draw(split):
        ids = torch.randint({"train": checks.V // 2, "val": checks.V}[split], (9, 6), generator=generator(5))
        return ids[:, :-1], ids[:, 1:]

    def knows_nothing(x):
        return torch.zeros(*x.shape, checks.V)

    def by_heart(x):
        return 3.0 * half + knows_nothing(x)

    val, train = (
        f(knows_nothing, by_heart, draw, 2)[0] for f in (checks.twin_compare, wrong("28b", "train text"))
    )
    assert train < 0 < val


def test_letters_overlap_in_any_two_texts():
    train, test = (
        "the quick brown fox jumps over the lazy dog",
        "a dog that has a box of the quickest jumpers",
    )
    assert checks.reference_overlap(train, test, 3) == 0
    assert wrong("28c", "letters for words")(train, test, 3) > 0.3


def test_case_hides_a_copy_and_a_set_hides_that_it_is_said_twice():
    train, test = "and then The King is dead", "the king is dead the king is dead x y"
    assert checks.reference_overlap(train, test, 4) == pytest.approx(2 / 7)
    assert wrong("28c", "case kept")(train, test, 4) == 0
    assert wrong("28c", "set of test n-grams")(train, test, 4) == pytest.approx(1 / 6)
