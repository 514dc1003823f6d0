"""Lesson 33: what its wrong answers look like, in numbers."""

import io

import pytest
import torch
from torch import nn

from lessons import course

checks = course.checks(33)


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


def kept(mistake: str, kind: str) -> float:
    finetune = wrong("33b", mistake) if mistake else checks.reference_finetune
    return checks.kept(checks.seen_of_finetune(finetune, kind, 5), kind, 5)["kept"]


def test_a_dense_file_is_as_large_with_zeros():
    sizes = []
    for share in (0.0, 0.9):
        w, file = torch.randn(50, 40, generator=torch.Generator().manual_seed(1)), io.BytesIO()
        w[checks.smallest(w, share)] = 0
        torch.save(w, file)
        sizes.append(len(file.getvalue()))
    assert 100 * sizes[1] / sizes[0] == checks.predictions["33.1"]["answer"]


def test_compared_all_together_some_matrices_lose_more():
    weights, share = checks.inputs_masks(1)[0]
    shares = {}
    for mistake in ("", "share of each matrix"):
        masks = (wrong("33a", mistake) if mistake else checks.reference_masks)(weights, share)
        shares[mistake] = [mask.float().mean().item() for mask in masks.values()]
    assert max(shares[""]) - min(shares[""]) > 0.5
    assert max(shares["share of each matrix"]) - min(shares["share of each matrix"]) < 0.05


def test_by_value_the_negative_ones_go():
    weights, share = checks.inputs_masks(1)[0]
    masks = wrong("33a", "value, not size")(weights, share)
    gone = torch.cat([weights[name][mask] for name, mask in masks.items()])
    assert (gone < 0).float().mean() > 0.95
    assert "goes, and one of" in checks.smaller_than_what_stays(
        wrong("33a", "the large ones go"), weights, share
    )
    assert not checks.smaller_than_what_stays(checks.reference_masks, weights, share)


def test_with_equal_sizes_a_limit_takes_too_many_or_too_few():
    weights, share = checks.inputs_masks(1)[1]
    counts = []
    for mistake in ("equal ones all stay", "", "equal ones all go"):
        masks = (wrong("33a", mistake) if mistake else checks.reference_masks)(weights, share)
        counts.append(sum(int(mask.sum()) for mask in masks.values()))
    n = sum(w.numel() for w in weights.values() if w.dim() == 2)
    assert counts[0] < counts[1] == round(share * n) < counts[2]


@pytest.mark.parametrize("kind", ["sgd", "adamw", "plain"])
def test_without_the_mask_the_zeros_are_gone_after_a_step(kind):
    model, masks, optimizer, batches = checks.pruned_model(kind, 5)
    wrong("33b", "zeros never put back")(model, masks, optimizer, batches[:1])
    del masks["wte.weight"]  # a letter that is not in the batch gets no gradient
    weights = dict(model.named_parameters())
    assert not any((weights[name][mask] == 0).any() for name, mask in masks.items())
    assert kept("", kind) == 100
    assert checks.predictions["33.2"]["answer"] == 0


def test_masked_gradients_are_not_enough_for_an_optimizer_with_a_memory():
    for kind, revived in (("sgd", True), ("adamw", True), ("plain", False)):
        assert (kept("gradients alone masked", kind) < 10) == revived
        assert "are zero after training" in checks.zeros_stay(wrong("33b", "zeros never put back"), kind, 5)


def test_decay_alone_revives_nothing():
    """What is zero is pulled to zero: it is the momentum of before that moves it."""
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        w = nn.Parameter(torch.tensor([0.0, 2.0]))
        w.grad = torch.zeros(2)
        kind([w], lr=0.1, weight_decay=0.5).step()
        assert w[0] == 0 and 0 < w[1] < 2
