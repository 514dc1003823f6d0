"""Lesson 23: what its wrong answers look like, in numbers."""

import math

import pytest
import torch
import torch.nn.functional as F

from lessons import course

checks = course.checks(23)
FLOAT16, BFLOAT16 = (11, 2.0**-24, 65504.0), (8, 2.0**-133, torch.finfo(torch.bfloat16).max)


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


def test_what_survives():
    x = torch.tensor([1e-8, 70_000.0, 1.001], dtype=torch.float64)
    assert checks.reference_rounded(x, *FLOAT16)[:2].tolist() == [0, math.inf]
    small, large, near_1 = checks.reference_rounded(x, *BFLOAT16).tolist()
    assert small == pytest.approx(1.0e-8, abs=2e-11)
    assert large == 70_144 == checks.predictions["23.1"]["answer"]
    assert near_1 == 1 == checks.predictions["23.2"]["answer"]


def test_bfloat16_does_not_underflow_as_float16_does():
    x = torch.tensor([1e-8], dtype=torch.float64)
    assert wrong("23a", "float16's smallest for both")(x, *BFLOAT16) == 0
    assert wrong("23a", "no smallest number")(x, *FLOAT16) > 0
    assert wrong("23a", "never inf")(torch.tensor([7e4]).double(), *FLOAT16).isfinite()


def updates(mistake: str, sizes: list[float], limit=0.7, scale=2048.0):
    step = wrong("23b", mistake) if mistake else checks.reference_step
    return checks.an_update_each(step, sizes, limit, scale, 3, 1)


def length(gradients) -> float:
    return math.sqrt(sum(g.square().sum().item() for g in gradients))


def test_clipped_before_unscaling_steps_are_tiny():
    right, found = (
        length(updates(m, [9.0], scale=256.0)["gradients"][0][0]) for m in ("", "clipped before unscaling")
    )
    assert right == pytest.approx(0.7, rel=1e-4)
    assert found == pytest.approx(0.7 / 256, rel=1e-4)


@pytest.mark.parametrize(("mistake", "factor"), [("never unscaled", 65536.0), ("unscaled twice", 1 / 65536)])
def test_a_scale_that_stays_is_a_factor_of_the_gradient(mistake, factor):
    right, found = (length(updates(m, [0.1], 1e9, 65536.0)["gradients"][0][0]) for m in ("", mistake))
    assert found / right == pytest.approx(factor, rel=1e-4)


def test_adam_hides_it_and_sgd_does_not():
    for kind, hidden in ((torch.optim.Adam, True), (torch.optim.SGD, False)):
        ends = []
        for step in (checks.reference_step, wrong("23b", "never unscaled")):
            weight = torch.ones(3, 2, requires_grad=True)
            loss = (weight.half() * torch.tensor([[0.3, 0.4]]).half()).float().sum()
            step(loss, [weight], kind([weight], lr=0.01), 1e9, 4096.0, 0, 3)
            ends.append(weight.detach())
        assert torch.allclose(*ends, atol=1e-5) == hidden


def test_an_inf_that_is_not_skipped_makes_the_weights_nan():
    for mistake, finite in (("inf not skipped", False), ("", True)):
        weights = updates(mistake, [1.0, 3e5, 1.0])["weights"]
        assert all(w.isfinite().all() for w in weights) == finite


def test_a_scale_that_never_grows():
    assert "scale 4096" in updates("", [1.0] * 3)["after each update"]
    assert "4096" not in updates("scale never grows", [1.0] * 3)["after each update"]


def test_a_loss_in_bfloat16_comes_in_steps_of_1_32():
    assert torch.tensor(4.1744).bfloat16().item() == 4.1875
    for args in checks.inputs_mixed(1):
        losses, _ = wrong("23c", "loss in bfloat16")(*args)
        assert all(loss * (32 if loss >= 4 else 64 if loss >= 2 else 128) % 1 == 0 for loss in losses)


def test_small_updates_are_lost_in_bfloat16_weights():
    x, y, weight, *_ = checks.inputs_mixed(1)[0]
    for mistake, least, most in (("weights in bfloat16", 0.5, 1.0), ("", 0.0, 0.1)):
        mixed = wrong("23c", mistake) if mistake else checks.reference_mixed
        rounded = weight.bfloat16().float()
        stayed = (mixed(x, y, rounded, 0.002, 2)[1] == rounded).float().mean()
        assert least <= stayed <= most


def test_a_norm_in_bfloat16_reads_noise():
    x, *_ = checks.inputs_mixed(1)[0]
    right, found = F.layer_norm(x, (12,)), F.layer_norm(x.bfloat16(), (12,)).float()
    assert (right - found).abs().max() > 0.2
