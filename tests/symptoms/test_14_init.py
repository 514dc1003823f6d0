"""What the wrong answers of lesson 14 look like: the symptoms that the course tells of."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from lessons import course
from model import GPT, GPTConfig

checks = course.checks(14)


def wrong(exercise, mistake):
    return checks.exercises[exercise]["wrong"][mistake][0]


def trained(init, steps=25, bias=False):
    """Losses of a small model on one batch of the text, the model, ln V, and what letters alone cost."""
    vocabulary, ids, _, _ = course.encoded()
    V = len(vocabulary)
    model = GPT(GPTConfig(**{**checks.SHAPE, "vocab_size": V}, tie_weights=0))
    init(model)
    if bias:
        model.head.bias = torch.nn.Parameter(torch.zeros(V))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    x, y = (part[:1408].view(128, 11) for part in (ids, ids[1:]))
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    counts = torch.bincount(y.flatten(), minlength=V).double()
    alone = torch.distributions.Categorical(counts).entropy().item()
    return losses, model, math.log(V), alone


def test_with_a_standard_deviation_of_1_the_first_loss_is_in_the_tens():
    torch.manual_seed(1)
    assert trained(wrong("14a", "standard deviation 1"), steps=1)[0][0] > 8
    assert trained(checks.reference_init, steps=1)[0][0] == pytest.approx(4.17, abs=0.2)


def test_zeros_are_stuck_at_ln_v():
    losses, _, uniform, _ = trained(wrong("14a", "all zeros"))
    assert losses == pytest.approx([uniform] * 25)


@pytest.mark.slow
def test_zeros_with_an_output_bias_are_stuck_at_the_letters_alone():
    losses, model, _, alone = trained(wrong("14a", "all zeros"), steps=120, bias=True)
    assert losses[-1] == pytest.approx(alone, abs=0.02)
    assert not model.head.weight.any()


def test_equal_weights_stay_equal():
    losses, model, _, _ = trained(wrong("14a", "all equal"))
    units = model.blocks[0].mlp.up.weight
    assert losses[-1] < losses[0]
    assert not torch.allclose(units, torch.tensor(0.02), atol=1e-3)
    assert torch.allclose(units, units[:1].expand_as(units), atol=1e-4)


@pytest.mark.parametrize(
    ("factor", "spreads"),
    [
        (lambda L: 1, (2.24, 4.12, 8.06)),  # the root of 1 + 2L
        (checks.right, (1.41, 1.41, 1.41)),
        (lambda L: L**-0.5, (1.73, 1.73, 1.73)),
    ],
    ids=["not applied", "root of 2L", "root of L"],
)
def test_how_the_stream_grows(factor, spreads):
    tower = course.load(course.lessons()[14], "lesson_14").tower
    for n_layer, spread in zip((2, 8, 32), spreads, strict=True):
        assert tower(n_layer, factor(n_layer)) == pytest.approx(spread, rel=0.03)


def test_hooks_that_are_left_write_once_more_on_each_call():
    model, idx = copy.deepcopy(checks.inputs_probe(1)[0])
    first = wrong("14c", "hooks left")(model, idx)
    lengths = [len(first)]
    for _ in range(2):
        checks.reference_probe(model, idx)
        lengths.append(len(first))
    assert lengths == [2, 4, 6]


def test_with_dropout_two_calls_differ():
    model, idx = copy.deepcopy(checks.inputs_probe(1)[0])
    for probe, differ in ((wrong("14c", "dropout on"), True), (checks.reference_probe, False)):
        assert (probe(model, idx) != probe(model, idx)) == differ
