"""Lesson 25: what its wrong answers look like, in numbers."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lessons import course
from lessons.observe import difference
from model import GPT, GPTConfig

checks = course.checks(25)


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


def seen(mistake: str, p=0.2, needs=True, seed=3) -> dict:
    recomputed = wrong("25a", mistake) if mistake else checks.reference_recomputed
    return checks.seen_of_recomputed(recomputed, seed, p, needs)


def segments(mistake: str, n=7, size=2, p=0.2) -> dict:
    in_segments = wrong("25b", mistake) if mistake else checks.reference_in_segments
    return checks.seen_of_segments(in_segments, n, size, 3, p)


def test_ours_does_what_torchs_checkpoint_does():
    def torchs(fn, x):
        return checkpoint(fn, x, use_reentrant=False)

    torchs(torch.tanh, torch.ones(2, requires_grad=True))  # the first call imports
    for args in [args for seed in (1, 2) for args in checks.inputs_recomputed(seed)]:
        found, right = (checks.seen_of_recomputed(f, *args) for f in (checks.reference_recomputed, torchs))
        assert difference(found, right, 1e-5)[0] <= 1


@pytest.mark.parametrize("p", [0.0, 0.2])
def test_gradients_are_those_of_the_function_itself(p):
    found, plain = seen("", p), seen("graph kept", p)
    assert difference(found["gradients of weights"], plain["gradients of weights"], 1e-5)[0] <= 1
    assert checks.same_as_plain(checks.reference_recomputed, 3, p, True) is None
    assert found["bytes held"] == 0 < plain["bytes held"]


def test_random_numbers_that_are_not_restored_are_seen_with_dropout_alone():
    gradients = "gradients of weights"
    for p, equal in ((0.0, True), (0.2, False)):
        found, right = seen("random numbers not restored", p), seen("", p)
        assert (difference(found[gradients], right[gradients], 1e-4)[0] <= 1) == equal


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("no graph in backward", "does not require grad"),
        ("not detached", "backward through the graph a second"),
    ],
)
def test_a_backward_without_a_graph_of_its_own_fails(mistake, message):
    with pytest.raises(RuntimeError, match=message):
        seen(mistake)


def test_an_input_without_gradient_leaves_the_weights_without():
    found, right = (seen(mistake, needs=False) for mistake in ("input without gradient", ""))
    assert (found["needs a gradient"], right["needs a gradient"]) == (False, True)
    assert not any(g.any() for g in found["gradients of weights"])
    assert all(g.any() for g in right["gradients of weights"])


def test_one_segment_for_all_leaves_the_peak_where_it_was():
    plain, one, right = (
        segments(m)["bytes at most"] for m in ("nothing recomputed", "one segment for all", "")
    )
    assert 0.9 * plain < one <= plain
    assert right < 0.5 * plain


@pytest.mark.parametrize(
    ("mistake", "passes"), [("", 2), ("blocks recomputed inside", 3), ("nothing recomputed", 1)]
)
def test_how_often_each_block_runs(mistake, passes):
    assert segments(mistake)["passes"] == [passes] * 7


def test_a_loop_variable_runs_the_last_blocks_again():
    found, right = segments("loop variable in backward"), segments("")
    torch.testing.assert_close(found["output"], right["output"])
    assert found["passes"] == [1, 1, 1, 1, 1, 1, 5]


def test_the_last_segment_need_not_be_forgotten():
    in_segments = checks.exercises["25b"]["also"]["last segment kept"][0]
    found = checks.seen_of_segments(in_segments, 6, 3, 3, 0.2)
    assert found["bytes at most"] <= 1.1 * segments("", 6, 3)["bytes at most"]
    assert sum(found["passes"]) == 9


def test_a_backward_is_two_forwards_of_products():
    """4/3 by counting multiplications: of a GPT's blocks, with and without recomputing each."""
    from torch.utils.flop_counter import FlopCounterMode

    blocks = GPT(GPTConfig(n_layer=3, n_head=2, n_embd=32, block_size=16, arch="gpt2")).blocks
    x, count = torch.randn(2, 16, 32, requires_grad=True), []
    for run in (lambda f, x: f(x), checks.reference_recomputed):
        with FlopCounterMode(display=False) as counter:
            y = x
            for block in blocks:
                y = run(block.mlp, y)
            y.sum().backward()
        count.append(counter.get_total_flops())
    assert count[1] / count[0] == pytest.approx(checks.predictions["25.1"]["answer"], abs=0.001)


def test_the_inputs_and_one_block_are_held():
    n, inside = 64, 16
    assert n / 1 + 1 * inside == checks.predictions["25.2"]["answer"]
    found = segments("", 12, 1)["bytes at most"]
    plain = segments("nothing recomputed", 12, 1)["bytes at most"]
    assert found == pytest.approx(12 * 360 + plain / 12, rel=0.3)
