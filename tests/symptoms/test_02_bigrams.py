"""Lesson 2: what counting reaches on the real text, and what each wrong answer does to it."""

import math

import pytest
import torch

from lessons import course
from lessons.checks import bigrams, characters

course.checks(2)  # its words are put to it


def wrong(name: str, mistake: str):
    return bigrams.exercises[name]["wrong"][mistake][0]


@pytest.fixture(scope="module")
def parts() -> tuple:
    """train and val ids of Tiny Shakespeare."""
    text, real = course.text()
    if not real:
        pytest.skip("the real text is not prepared here")
    code = characters.reference_vocab(text)[1]
    return characters.reference_split(torch.tensor([code[letter] for letter in text]), 0.9)


def loss(P, ids) -> float:
    return -P[ids[:-1], ids[1:]].double().log().mean().item()


def table(train, normalise=bigrams.reference_normalise, count=bigrams.reference_count_pairs, k=1.0):
    return normalise(count(train, 65), k)


# ---- the constants of the text
@pytest.mark.parametrize(
    ("k", "on_val", "expected"), [(1e-9, False, 2.452), (1.0, False, 2.455), (1.0, True, 2.482)]
)
def test_the_loss_of_pairs(parts, k, on_val, expected):
    assert loss(table(parts[0], k=k).double(), parts[on_val]) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(
    ("k", "on_val", "expected"), [(1e-9, False, 1.903), (0.1, True, 2.046), (1.0, True, 2.068)]
)
def test_the_loss_of_triples(parts, k, on_val, expected):
    """As pairs of (two letters, letter)."""
    train, ids = parts[0], parts[on_val]
    before = train[:-2] * 65 + train[1:-1]
    C = torch.bincount(before * 65 + train[2:], minlength=65**3).view(-1, 65).double() + k
    P = C / C.sum(1, keepdim=True)
    found = -P[ids[:-2] * 65 + ids[1:-1], ids[2:]].log().mean().item()
    assert found == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(("on_val", "expected"), [(False, 3.309), (True, 3.347)])
def test_the_loss_of_letters_alone(parts, on_val, expected):
    chances = torch.bincount(parts[0]) / len(parts[0])
    assert -chances[parts[on_val]].double().log().mean().item() == pytest.approx(expected, abs=5e-4)


# ---- what mistakes do
@pytest.mark.parametrize(("mistake", "expected"), [("", 2.482), ("shuffled first", 3.312)])
def test_shuffled_before_the_split_there_are_no_pairs_to_learn(parts, mistake, expected):
    torch.manual_seed(0)
    split = characters.exercises["1b"]["wrong"][mistake][0] if mistake else characters.reference_split
    train, val = split(torch.cat(parts), 0.9)
    assert loss(table(train), val) == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize(
    ("mistake", "total"), [("index arrays", 1380), ("wraps around", 1_003_854), ("transposed", 1_003_853)]
)
def test_what_a_wrong_table_sums_to(parts, mistake, total):
    assert int(wrong("2a", mistake)(parts[0], 65).sum()) == total


def test_transposed_counts_cost_more_than_letters_alone(parts):
    assert loss(table(parts[0], count=wrong("2a", "transposed")), parts[1]) == pytest.approx(4.72, abs=0.005)


def test_a_loop_counts_the_same(parts):
    part = parts[0][:50]
    assert torch.equal(wrong("2a", "one by one")(part, 65), bigrams.reference_count_pairs(part, 65))


@pytest.mark.parametrize("mistake", ["no keepdim", "columns"])
def test_the_loss_does_not_see_a_wrong_axis(parts, mistake):
    P = table(parts[0], wrong("2b", mistake))
    assert loss(P, parts[1]) == pytest.approx(2.4819, abs=5e-5)
    assert loss(P, parts[1]) == pytest.approx(loss(table(parts[0]), parts[1]), abs=1e-4)
    assert (P.sum(1).min().item(), P.sum(1).max().item()) == (
        pytest.approx(0.08, abs=0.005),
        pytest.approx(10.8, abs=0.05),
    )


def test_unseen_pairs_cost_infinitely_much(parts):
    train, val = parts
    P = table(train, wrong("2b", "no smoothing"))
    assert int((P[val[:-1], val[1:]] == 0).sum()) == 187
    assert math.isinf(loss(P, val))


def test_rows_sum_to_more_where_chances_are_smoothed(parts):
    sums = table(parts[0], wrong("2b", "smoothed after dividing"), k=0.3).sum(1)
    assert torch.allclose(sums, torch.full((65,), 1 + 65 * 0.3))


def test_smoothing_chances_forgets_nearly_all(parts):
    found = loss(table(parts[0], wrong("2b", "smoothed after, divided again")), parts[1])
    assert found == pytest.approx(4.06, abs=0.005)
    assert loss(table(parts[0], k=1e7), parts[1]) == pytest.approx(math.log(65), abs=0.001)


def test_the_likeliest_letters_run_in_a_loop(parts):
    letters = wrong("2c", "always the likeliest")(table(parts[0]).double(), 200, torch.Generator()).tolist()
    assert len({*letters[-50:]}) <= 3


def test_float32_stops_counting():
    assert torch.tensor(16_777_216.0) + 1 == 16_777_216
    assert torch.iinfo(torch.int32).max == 2_147_483_647
