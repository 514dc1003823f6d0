"""What the wrong answers of lesson 10 look like, as the course says."""

import pytest
import torch

from lessons import course
from lessons.checks.heads import beside, exercises, predictions, seen_with, twin_merge, twin_split
from model import GPTConfig

course.checks(10)  # its words are put to it

LOWER = ["x.....", "xx....", "xxx...", "xxxx..", "xxxxx.", "xxxxxx"]
PICTURES = {
    ("10a", ""): LOWER,
    ("10a", "view without transpose"): ["x..x..", "x..x..", "xx.xx.", "xx.xx.", "xxxxxx", "xxxxxx"],
    ("10b", ""): LOWER,
    ("10b", "reshape without transpose"): ["xx....", "xxxx..", "xxxxxx"] * 2,
}


def answer(name: str, mistake: str):
    return exercises[name]["wrong"][mistake][0] if mistake else exercises[name]["reference"]


@pytest.mark.parametrize(("name", "mistake"), PICTURES)
def test_who_sees_whom_in_two_heads_of_six_tokens(name, mistake):
    exercise = exercises[name]
    found = exercise["picture"](answer(name, mistake), *exercise["inputs"](1)[0])
    assert found == PICTURES[name, mistake]


def test_what_the_view_leaks_and_the_merge_leaks_differ():
    """Both mistakes at once give no triangle either: they do not undo each other."""
    by_view = answer("10a", "view without transpose")
    back = answer("10b", "reshape without transpose")
    assert seen_with(by_view, lambda y, wo: back(y, wo)) not in [LOWER, *PICTURES.values()]


def test_heads_summed_have_no_axis_and_a_view_after_transpose_is_an_error():
    x, H = exercises["10a"]["inputs"](1)[0]
    assert answer("10a", "heads summed")(x, H).shape == (3, 7, 6)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        answer("10b", "view after transpose")(*exercises["10b"]["inputs"](1)[0])


@pytest.mark.parametrize(
    ("mistake", "stated"), [("", 65_536), ("attn.o forgotten", 49_152), ("heads multiply", 262_144)]
)
def test_numbers_of_attention_at_128(mistake, stated):
    V, C, F = 65, 128, 512
    rest = 2 * V * C + 2 * C * F + 3 * C  # embedding and head, MLP, norms
    assert answer("10c", mistake)(V, C, 1, 4, 4, F) - rest == stated
    assert stated in [predictions["10.1"]["answer"], *predictions["10.1"]["wrong"]]


def test_numbers_of_a_block_at_128():
    assert GPTConfig(n_embd=128).n_ff == 512
    two = [answer("10c", mistake)(65, 128, 2, 4, 4, 512) for mistake in ("", "12 C squared")]
    one = answer("10c", "")(65, 128, 1, 4, 4, 512)
    assert two[0] == two[1], "there the rule of thumb is right"
    assert two[0] - one - 2 * 128 == 196_608, "without its two norms"


def test_without_the_output_matrix_the_heads_are_only_joined():
    y, wo = exercises["10b"]["inputs"](1)[0]
    assert torch.equal(answer("10b", "output matrix missing")(y, wo), beside(y))
    assert torch.allclose(twin_merge(y, torch.eye(len(wo))), beside(y))
    assert torch.equal(twin_split(beside(y), y.size(1)), y)
