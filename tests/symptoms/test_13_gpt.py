"""Lesson 13: what its wrong answers look like, in numbers."""

import math

import pytest
import torch

from lessons import course
from model import GPT, GPTConfig

checks = course.checks(13)


def answer(exercise: str, mistake: str):
    """A wrong answer by its name, or the right one for ""."""
    entry = checks.exercises[exercise]
    return entry["wrong"][mistake][0] if mistake else entry["reference"]


def test_most_of_a_block_is_its_mlp():
    blocks = GPT(GPTConfig(n_layer=4, n_embd=128, arch="gpt2")).blocks
    sizes = {name: p.numel() for name, p in blocks.named_parameters() if p.dim() == 2}
    assert sum(sizes.values()) == 12 * 4 * 128**2 == 786_432
    assert sum(n for name, n in sizes.items() if "mlp" in name) == 524_288


@pytest.mark.parametrize("mistake", ["", "no activation", "activation first", "ReLU", "tanh"])
def test_two_layers_with_nothing_between_are_additive(mistake):
    args = checks.inputs_mlp(1)[0]
    additive = checks.not_additive(answer("13a", mistake), *args) != ""
    assert additive == (mistake == "no activation")


@pytest.mark.parametrize("mistake", ["activation at the end", "activation twice"])
def test_after_a_gelu_nothing_is_far_below_zero(mistake):
    output = checks.filled(answer("13a", mistake), *checks.inputs_mlp(1)[0])["output"]
    assert -0.1701 < output.min() < 0


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("", "bca"),
        ("target shifted twice", "cab"),
        ("input as target", "abc"),
        ("softmax before the loss", "bca"),
    ],
)
def test_what_a_model_says_after_a_and_b_and_c(mistake, said):
    gpt, losses = checks.trained_on_abc(answer("13b", mistake), V=65)
    assert "".join(checks.follows(checks.reference_forward, gpt, letter) for letter in "abc") == said
    floor = (
        math.log(math.e + 64) - 1 if "softmax" in mistake else 0.0
    )  # 3.20: sure and right, softmaxed again
    assert floor < losses[-1] < floor + 0.01


def test_a_loss_on_the_last_position_alone_learns_slower():
    steps = {}
    for mistake in ("", "only the last position"):
        losses = checks.trained_on_abc(answer("13b", mistake), V=65)[1]
        steps[mistake] = next(i for i, loss in enumerate(losses) if loss < 0.1)
    assert steps["only the last position"] > 1.5 * steps[""]


def test_a_reshape_for_a_transpose_reports_a_falling_loss_and_guesses_worse():
    letters = course.text()[0][:100_000]
    code = {letter: i for i, letter in enumerate(sorted(set(letters)))}
    ids, V = torch.tensor([code[letter] for letter in letters]), len(code)
    torch.manual_seed(1)
    gpt = GPT(
        GPTConfig(vocab_size=V, block_size=16, n_layer=1, n_head=2, n_embd=32, arch="gpt2", tie_weights=0)
    )
    reported, true = [], []
    for _ in range(150):
        window = ids[torch.randint(len(ids) - 16, (16, 1)) + torch.arange(17)]
        idx, targets = window[:, :-1], window[:, 1:]
        logits, loss = answer("13b", "reshaped, not transposed")(checks.parts_of(gpt), idx, targets)
        loss.backward()
        checks.descend(gpt, lr=1.0)
        reported.append(loss.item())
        true.append(checks.nats(logits, targets).item())
    assert reported[-1] < reported[0] - 0.5
    assert true[-1] > math.log(V)


@pytest.mark.parametrize(
    ("mistake", "one", "equal"),
    [("", True, True), ("copied", False, False), ("numbers shared, parameter not", False, True),
     ("tied, then drawn anew", True, True), ("a head of its own", False, False)],
)  # fmt: skip
def test_a_copy_is_equal_at_the_start_only(mistake, one, equal):
    gpt, idx = checks.inputs_tie(1)[0]
    found = checks.after_a_step(answer("13c", mistake), gpt, idx)
    assert (found["one parameter"], found["equal after a step"]) == (one, equal)
    assert (found["head begins as"] == "the embedding") == (
        mistake in ("", "copied", "numbers shared, parameter not")
    )
