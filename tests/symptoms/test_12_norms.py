"""Lesson 12: what its wrong answers look like, in numbers."""

import pytest
import torch

from lessons import course
from lessons.grader import judge
from model import Block, GPTConfig

checks = course.checks(12)


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


def row(D: int, seed: int = 1):
    """(x (1,1,D), weight 1, bias 0) of one token."""
    x = torch.randn(1, 1, D, generator=torch.Generator().manual_seed(seed))
    return x, torch.ones(D), torch.zeros(D)


@pytest.mark.parametrize(("D", "factor"), [(4, 0.866), (768, 0.9993)])
def test_the_unbiased_variance_shows_in_short_rows_only(D, factor):
    ratio = wrong("12a", "unbiased variance")(*row(D), 1e-9) / checks.reference_layer_norm(*row(D), 1e-9)
    assert ratio.mean() == pytest.approx(factor, abs=1e-4)


def test_without_eps_a_constant_row_is_nan():
    x, weight, bias = torch.full((1, 1, 4), 2.0), *row(4)[1:]
    assert wrong("12a", "no eps")(x, weight, bias, 1e-5).isnan().all()
    assert (checks.reference_layer_norm(x, weight, bias, 1e-5) == 0).all()


@pytest.mark.parametrize("mistake", ["over the batch", "over the time axis"])
def test_over_another_axis_others_change_a_token(mistake):
    args = checks.inputs_layer_norm(1)[0]
    assert "moves when" in checks.tokens_apart(wrong("12a", mistake), *args)
    assert checks.tokens_apart(checks.reference_layer_norm, *args) == ""


def test_eps_after_the_root_shows_in_tiny_rows_only():
    x, weight, bias = row(4)
    for size, apart in ((1.0, 1e-4), (1e-3, 0.5)):
        right = checks.reference_layer_norm(size * x, weight, bias, 1e-5)
        found = wrong("12a", "eps after the root")(size * x, weight, bias, 1e-5)
        assert ((found - right).abs().max() > apart) == (size < 1)


@pytest.mark.parametrize(("unbiased", "mistake"), [(False, "eps after the root"), (True, "std as it comes")])
@pytest.mark.parametrize("deviation", [torch.std, lambda x, *given, **how: x.var(*given, **how).sqrt()])
def test_eps_after_the_root_is_named_in_any_words(deviation, unbiased, mistake):
    """The gradient of a row of equal numbers is finite with .std, and nan with the root of .var."""

    def answer(x, weight, bias, eps):
        size = deviation(x, -1, keepdim=True, unbiased=unbiased)
        return (x - x.mean(-1, keepdim=True)) / (size + eps) * weight + bias

    assert judge(checks.exercises["12a"], answer)["mistake"] == mistake


def test_what_is_not_computed_in_float32_is_off_by_a_hundredth():
    x, weight, _ = row(128 * 200)
    x = x.view(1, 200, 128).bfloat16()
    exact = checks.reference_rms_norm(x.float(), weight[:128], 1e-5)
    for answer, error in ((wrong("12b", "not in float32"), 0.0086), (checks.reference_rms_norm, 0.0039)):
        found = answer(x, weight[:128], 1e-5).float()
        assert ((found - exact) / exact).abs().max() == pytest.approx(error, abs=6e-4)
    large = torch.full((1, 1, 4), 300.0).half()
    assert (wrong("12b", "not in float32")(large, torch.ones(4), 1e-5) == 0).all()


def test_with_zeroed_outputs_only_the_right_block_is_the_identity():
    x, n1, _, n2, _ = checks.inputs_block(1)[0]
    parts = (x, n1, checks.nothing, n2, checks.nothing)
    assert torch.equal(checks.reference_block(*parts), x)
    expected = {"no residual": 0 * x, "post-norm": n2(n1(x)), "normalised x kept": n2(n1(x))}
    for mistake, value in expected.items():
        torch.testing.assert_close(wrong("12c", mistake)(*parts), value)


def test_a_shared_norm_saves_two_numbers_a_channel():
    block = Block(GPTConfig(n_embd=24, n_head=4, arch="gpt2", bias=True))
    own = sum(p.numel() for p in block.parameters())
    block.mlp_norm = block.attn_norm
    assert own - sum(p.numel() for p in block.parameters()) == 2 * 24
