"""What the wrong answers of lesson 4 look like: the symptoms that the course tells of."""

import math

import pytest
import torch
import torch.nn.functional as F

from lessons import course, grader

checks = course.checks(4)


def wrong(exercise, mistake):
    return checks.exercises[exercise]["wrong"][mistake][0]


def losses_of(train_step, steps=20):
    """From a table of zeros, on one batch of the text."""
    ids, V = checks.inputs_learn(1)[0]
    x, y = (part[:512].view(1, 16, 32).expand(steps, -1, -1) for part in (ids, ids[1:]))
    return checks.three_steps(train_step, torch.zeros(V, V), x, y, 30.0, 0.0)["losses"], math.log(V)


def end_of(learn):
    """Where a loop ends, and the heights to compare it with."""
    ids, V = checks.inputs_learn(1)[0]
    torch.manual_seed(1)
    return checks.heights(learn(ids, V), ids, V)


def test_without_zero_grad_the_second_step_has_both_gradients():
    table, x, y, lr, _ = checks.inputs_train_step(1)[0]
    right, found = (
        [table, *checks.three_steps(step, table, x, y, lr, 0.0)["tables"]]
        for step in (checks.reference_train_step, wrong("4a", "no zero_grad"))
    )
    assert torch.equal(found[1], right[1])
    both = (right[1] - right[0]) + (right[2] - right[1])
    assert torch.allclose(found[2] - found[1], both, atol=1e-6)


@pytest.mark.parametrize("mistake", ["cleared before the step", "no step"])
def test_the_loss_stays_at_ln_v(mistake):
    losses, uniform = losses_of(wrong("4a", mistake))
    assert losses == pytest.approx([uniform] * 20)
    assert losses_of(checks.reference_train_step)[0][-1] < uniform - 1


def test_a_tensor_keeps_its_graph():
    losses, _ = losses_of(wrong("4a", "the tensor returned"))
    assert all(loss.grad_fn is not None for loss in losses)


def test_with_y_equal_x_the_loss_it_sees_falls_to_0():
    losses, _ = losses_of(wrong("4a", "x for y"), steps=300)
    assert losses[-1] < 0.1
    assert end_of(wrong("4b", "trained on y=x"))["repeats"] > 0.99


@pytest.mark.parametrize(
    ("mistake", "low", "high"),
    [
        ("rate too small", "alone", "uniform"),
        ("random start", "uniform", "inf"),
        ("rate too large", "uniform", "inf"),
        ("stopped early", "counted", "alone"),
        ("bias only", "alone", "uniform"),
    ],
)
def test_where_a_loop_ends(mistake, low, high):
    found = {**end_of(wrong("4b", mistake)), "inf": math.inf}
    assert found[low] < found["loss"] < found[high]
    assert (found["loss"] > 3.5) == (mistake not in ("stopped early", "bias only"))


def by_hand(ids, V):
    """Right, without an optimizer of torch: each number moves by its gradient over its usual size."""
    table, squares = torch.zeros(V, V, requires_grad=True), torch.zeros(V, V)
    for step in range(200):
        i = torch.randint(len(ids) - 1, (3000,))
        (gradient,) = torch.autograd.grad(F.cross_entropy(table[ids[i]], ids[i + 1]), table)
        squares = 0.95 * squares + 0.05 * gradient**2
        with torch.no_grad():
            table -= 0.1 * (1 - step / 200) * gradient / (squares.sqrt() + 1e-8)
    return table


@pytest.mark.slow
def test_updates_by_hand_are_learning_and_counting_is_not():
    exercise = checks.exercises["4b"]
    found = [
        grader.judge(exercise, learn, seeds=(1,)) for learn in (by_hand, wrong("4b", "counted, not learned"))
    ]
    assert [one["status"] for one in found] == [grader.RIGHT, grader.WRONG]
    assert "no backward pass" in found[1]["line"]


def test_the_heights_of_the_real_text():
    """2.452 nats for counted pairs, 3.309 for letters alone, and a model with a bias alone ends there."""
    vocabulary, train, _, is_real = course.encoded()
    if not is_real:
        pytest.skip("the real text is not prepared here")
    V = len(vocabulary)
    found = checks.heights(checks.bias_only(train, V), train, V)
    assert found["counted"] == pytest.approx(2.452, abs=0.001)
    assert found["alone"] == pytest.approx(3.309, abs=0.001)
    assert found["loss"] == pytest.approx(3.31, abs=0.05)
