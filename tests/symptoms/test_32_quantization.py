"""Lesson 32: what its wrong answers look like, in numbers."""

import pytest
import torch

from lessons import course
from techniques.packing import encode

checks = course.checks(32)


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


def to_int8(mistake: str, w):
    codes, scales = (wrong("32a", mistake) if mistake else checks.reference_int8)(w)
    return codes.float(), scales


def rows() -> torch.Tensor:
    return torch.logspace(-2, 0, 64)[:, None] * torch.randn(
        64, 128, generator=torch.Generator().manual_seed(0)
    )


def error(w, restored) -> float:
    return ((w - restored).norm(dim=1) / w.norm(dim=1)).mean().item()


def test_bits_of_a_weight():
    found = {name: 8 * t.nbytes / (64 * 128) for name, t in encode("int4", rows()).items()}
    assert found["codes"] + found["scales"] == 4.5 == checks.predictions["32.1"]["answer"]
    assert {found["codes"], 4 + 32 / 32, 4 + 16 / 64} == {*checks.predictions["32.1"]["wrong"]}
    assert sum(found.values()) == 5, "with a zero for each group"


@pytest.mark.parametrize(
    ("mistake", "found"), [("", 0.0066), ("a scale for each column", 0.076), ("one scale for all", 0.121)]
)
def test_rows_of_different_size_want_a_scale_each(mistake, found):
    codes, scales = to_int8(mistake, rows())
    by_column = mistake == "a scale for each column"
    assert error(rows(), codes * (scales if by_column else scales[:, None])) == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize(("mistake", "most"), [("", 0.5), ("cut, not rounded", 1.0), ("rounded down", 1.0)])
def test_the_largest_error_in_steps(mistake, most):
    codes, scales = to_int8(mistake, rows())
    apart = (codes * scales[:, None] - rows()) / scales[:, None]
    assert apart.abs().max() == pytest.approx(most, abs=0.01)
    if mistake == "cut, not rounded":
        assert ((codes * scales[:, None]).abs() <= rows().abs() + 1e-6).all(), "towards 0"
        assert 1.0 in checks.predictions["32.2"]["wrong"]


def test_128_wraps_around():
    w = torch.tensor([[1.0, 0.5, -0.25]])
    assert to_int8("divided by 128", w)[0].tolist() == [[-128, 64, -32]]
    assert to_int8("", w)[0].tolist() == [[127, 64, -32]]


def test_a_row_of_zeros_has_scale_0():
    codes, scales = to_int8("", torch.zeros(2, 5))
    assert not codes.any() and not scales.any()
    assert (torch.zeros(2) / scales).isnan().all(), "and a conversion to int8 hides it here"


@pytest.mark.parametrize(
    ("mistake", "byte", "back"),
    [("", 127, [-1, 7]), ("sign lost", 247, [15, 7]), ("8 not taken off", 127, [7, 15]),
     ("two's complement", 247, [-1, 7]), ("halves swapped", 247, [-1, 7]),
     ("halves swapped in reading", 127, [7, -1])],
)  # fmt: skip
def test_what_minus_1_becomes(mistake, byte, back):
    codes = torch.tensor([[-1, 7]], dtype=torch.int8)
    held = (wrong("32b", mistake) if mistake else checks.reference_packed)(codes)
    assert (held.bytes.item(), held.codes()[0].tolist()) == (byte, back)


def test_of_an_odd_number_one_is_lost_or_one_comes_back():
    codes = torch.tensor([[-1, 7, -8]], dtype=torch.int8)
    assert wrong("32b", "last one lost")(codes).codes().shape == (1, 2)
    assert wrong("32b", "filler comes back")(codes).codes().shape == (1, 4)
    assert checks.reference_packed(codes).codes().tolist() == codes.tolist()


def test_a_model_that_was_not_changed_has_the_right_size():
    for tied, seed in checks.inputs_quantize(1):
        right = checks.seen_of_model(checks.reference_quantize, tied, seed)
        found = checks.seen_of_model(wrong("32c", "the copy is never used"), tied, seed)
        assert found["bytes"] == right["bytes"]
        assert not torch.equal(found["logits"], right["logits"])
        assert "is no matrix" in checks.vectors_stay(wrong("32c", "norms, too"), tied, seed)
        assert checks.vectors_stay(checks.reference_quantize, tied, seed) == ""
