"""Lesson 24: what its wrong answers look like, in numbers."""

import pytest
import torch

from lessons import course

checks = course.checks(24)


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


def length(gradients) -> float:
    return sum(g.square().sum().item() for g in gradients) ** 0.5


def updates(mistake: str, k=4, n=4):
    accumulate = wrong("24a", mistake) if mistake else checks.reference_updates
    return checks.seen_of_updates(accumulate, k, n, 5)


@pytest.mark.parametrize(("mistake", "factor"), [("not divided", 4), ("divided twice", 0.25)])
def test_a_gradient_that_is_not_divided_is_k_times_too_long(mistake, factor):
    ratio = length(updates(mistake)["gradients"][0]) / length(updates("")["gradients"][0])
    assert ratio == pytest.approx(factor, rel=1e-4)


def test_adam_hides_it_and_sgd_does_not():
    g = torch.Generator().manual_seed(3)
    batches = [tuple(torch.randint(checks.V, (2, 3, 5), generator=g)) for _ in range(8)]
    for kind, hidden in ((torch.optim.Adam, True), (torch.optim.SGD, False)):
        ends = []
        for accumulate in (checks.reference_updates, wrong("24a", "not divided")):
            torch.manual_seed(3)
            model = checks.Small()
            accumulate(model, kind(model.parameters(), lr=0.01), batches, 4)
            ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert torch.allclose(*ends, atol=1e-4) == hidden


def test_k_small_are_one_large():
    torch.manual_seed(5)
    model = checks.Small()
    ids = torch.randint(checks.V, (4, 4, 6), generator=torch.Generator().manual_seed(5)).flatten(0, 1)
    logits = model(ids[:, :-1]).flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).backward()
    for found, p in zip(updates("")["gradients"][0], model.parameters(), strict=True):
        torch.testing.assert_close(found, p.grad)


def test_cleared_in_between_only_the_last_counts():
    found = updates("cleared in between", 2, 2)["gradients"][0]
    right = updates("", 2, 2)["gradients"][0]
    assert not all(torch.allclose(a, b) for a, b in zip(found, right, strict=True))
    first = updates("", 1, 1)["gradients"][0]  # half of it and half of what is found make the right one
    for a, b, c in zip(first, found, right, strict=True):
        torch.testing.assert_close(a / 2 + b, c)


@pytest.mark.parametrize(
    ("mistake", "made"), [("last group dropped", 2), ("last group not stepped", 2), ("stepped in between", 8)]
)
def test_how_many_updates_are_made(mistake, made):
    assert updates(mistake, 3, 8)["updates"] == made
    assert updates("", 3, 8)["updates"] == 3


def test_losses_summed_first_hold_all_graphs():
    assert updates("losses summed first")["most graphs at once"] == 4
    assert updates("")["most graphs at once"] == 1


def test_in_a_mean_of_means_short_batches_weigh_more():
    args = checks.inputs_gradients(1)[0]
    assert "another gradient" in checks.the_split_is_no_matter(wrong("24b", "mean of means"), *args)
    assert checks.the_split_is_no_matter(checks.reference_gradients, *args) == ""


def test_divided_by_all_positions_the_loss_is_too_small():
    args = checks.inputs_gradients(1)[0]
    right, found = (
        checks.seen_of_gradients(f, *args)["mean"]
        for f in (checks.reference_gradients, wrong("24b", "all positions counted"))
    )
    share = sum(int((y != -1).sum()) for _, y in checks.ragged(*args)) / sum(
        y.numel() for _, y in checks.ragged(*args)
    )
    assert found == pytest.approx(right * share)


def test_the_predictions_are_those_of_the_cost():
    at_1, at_4 = (checks.reference_cost(64, k, 1000, 0, 0, 0.5, 0.0) for k in (1, 4))
    assert at_4["bytes"] / at_1["bytes"] == checks.predictions["24.1"]["answer"]
    assert at_4["seconds"] / at_1["seconds"] == checks.predictions["24.2"]["answer"]
    whole = checks.reference_cost(64, 4, 1000, 9000, 4, 0.5, 0.0)
    assert whole["bytes"] > wrong("24c", "all memory divided")(64, 4, 1000, 9000, 4, 0.5, 0.0)["bytes"]
