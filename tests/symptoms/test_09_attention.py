"""Lesson 9: row sums, where the softmax or the mask is in the wrong place."""

import pytest
import torch

from lessons import course
from lessons.checks import attention

course.checks(9)  # its words are put to it


def sums_of_rows(mistake: str, scores: torch.Tensor) -> torch.Tensor:
    return attention.exercises["9b"]["wrong"][mistake][0](scores).sum(-1)


@pytest.mark.parametrize("seed", [1, 2])
def test_rows_of_a_softmax_over_queries_sum_to_several(seed):
    scores = attention.inputs_causal(seed)[0][0]
    sums = sums_of_rows("softmax over queries", scores)
    assert 2 < sums.max() < 6
    assert sums.min() < 0.5
    columns = attention.exercises["9b"]["wrong"]["softmax over queries"][0](scores).sum(-2)
    assert torch.allclose(columns, torch.ones_like(columns)), "each key is shared out instead"


def test_rows_of_a_mask_after_the_softmax_sum_to_less_and_less_with_more_to_hide():
    sums = sums_of_rows("mask after softmax", torch.zeros(1, 7, 7))[0]
    assert torch.allclose(sums, torch.arange(1, 8) / 7)


@pytest.mark.parametrize("mistake", ["mask after softmax", "masked with 0"])
def test_the_future_still_moves_the_past(mistake):
    answer = attention.exercises["9b"]["wrong"][mistake][0]
    scores = attention.inputs_causal(1)[0][0]
    moved = scores.clone()
    moved[:, 0, 5] += 1
    seen = (answer(moved) - answer(scores))[:, 0, 0].abs().max()
    assert (seen > 1e-3) == (mistake == "mask after softmax")


def test_the_first_row_without_its_diagonal_has_nobody():
    assert sums_of_rows("diagonal cut", torch.zeros(1, 7, 7))[0, 0].isnan()


def test_the_root_of_the_length_is_right_only_where_it_equals_the_size():
    root_of_T, right = attention.exercises["9a"]["wrong"]["root of T"][0], attention.reference_scores
    q, k = torch.randn(2, 5, 5), torch.randn(2, 5, 5)
    assert torch.allclose(root_of_T(q, k), right(q, k), atol=1e-6)
    shorter = q[:, :4], k[:, :4]
    assert not torch.allclose(root_of_T(*shorter), right(*shorter))
