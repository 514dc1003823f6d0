"""What is seen of each mistake of lesson 20, as the course says it."""

import pytest
import torch

from lessons import course

CHECKS = course.checks(20)


def wrong(name: str, mistake: str):
    return CHECKS.exercises[name]["wrong"][mistake][0]


def by_heart(mistake: str) -> dict:
    return CHECKS.by_heart(wrong("20a", mistake), *CHECKS.inputs_overfit(1)[0])


def test_one_batch_is_learned_and_many_are_not():
    one = CHECKS.by_heart(CHECKS.twin_overfit, *CHECKS.inputs_overfit(1)[0])
    assert one["losses"][-1] < 0.1 and one["batches asked for"] == 1
    assert by_heart("new batch each update")["losses"][-1] > 1.5
    assert len(by_heart("dropout left on")["losses"]) > 1.5 * len(one["losses"])


def test_without_division_the_mean_shrinks_to_1_minus_p():
    torch.manual_seed(1)
    ones = torch.ones(40, 25, 30)
    for mistake, mean in {"not divided": 0.7, "p means keep": 1.0}.items():
        out = wrong("20b", mistake)(ones, 0.3, True)
        assert out.mean() == pytest.approx(mean, abs=0.02)
    assert (out == 0).float().mean() == pytest.approx(0.7, abs=0.01), "1 - p of them are zero"
    rows = wrong("20b", "whole tokens")(ones, 0.3, True).sum(-1)
    assert (rows == 0).float().mean() == pytest.approx(0.3, abs=0.1)


def test_what_kept_numbers_are_multiplied_by():
    question = CHECKS.predictions["20.2"]
    out = CHECKS.reference_dropout(torch.ones(100), 0.2, True)
    assert out.max().item() == pytest.approx(question["answer"])


def test_where_wrong_readings_end():
    curve = CHECKS.inputs_turn(1)[0]
    right = CHECKS.reference_turn(*curve)[0]
    crossing, bump, train, last = (
        wrong("20c", name)(*curve)[0]
        for name in ("where the curves cross", "first rise", "minimum of train", "last step")
    )
    assert max(crossing, bump) < right < train < last
