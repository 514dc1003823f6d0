"""Lesson 31: what its wrong answers look like, in numbers."""

import pytest
import torch
from torch import nn

from lessons import course
from techniques.lora import LoRALinear

checks = course.checks(31)


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


def layers(mistake: str) -> dict:
    build = wrong("31a", mistake) if mistake else checks.reference_lora
    return checks.seen_of_layer(build, *checks.inputs_lora(1)[0])


def test_how_much_is_trained():
    layer = nn.Linear(128, 256, bias=False)
    lora = checks.reference_lora(layer, 4, 16.0)
    trained = sum(p.numel() for p in lora.parameters() if p.requires_grad)
    asked = checks.predictions["31.1"]
    assert trained == asked["answer"] == 1536
    assert {lora.A.numel(), lora.B.numel(), 4 * 4, layer.weight.numel()} == {*asked["wrong"]}
    assert lora.scale == 4 == next(iter(checks.predictions["31.2"]["wrong"]))


def test_a_and_b_both_random_change_the_output_at_once():
    assert layers("A and B both random")["output at first"] == "another"
    assert layers("")["output at first"] == "the layer's"


def test_both_zero_never_learn():
    for mistake, moves in (("both zero", False), ("", True), ("A zero, B random", True)):
        torch.manual_seed(3)
        lora = (wrong("31a", mistake) if mistake else checks.reference_lora)(nn.Linear(6, 5), 2, 3.0)
        optimizer, before = torch.optim.AdamW([lora.A, lora.B], lr=0.1, weight_decay=0.0), lora.A.clone()
        for _ in range(3):
            optimizer.zero_grad()
            lora(torch.ones(4, 6)).square().sum().backward()
            optimizer.step()
        assert torch.equal(lora.A, before) != moves
        assert bool(lora.B.any()) == moves


def test_a_layer_that_is_not_frozen_is_all_trained():
    assert layers("layer not frozen")["trained of the layer"] == "weight and bias"
    assert layers("bias not frozen")["trained of the layer"] == "bias"
    assert layers("")["trained of the layer"] == "nothing"
    assert layers("")["trained"] == layers("layer not frozen")["trained"] == "A [6, 24] B [10, 6]"


@pytest.mark.parametrize(("mistake", "factor"), [("alpha without rank", 6), ("no scale", 6 / 8)])
def test_a_scale_that_is_wrong_is_a_factor_of_the_change(mistake, factor):
    base = layers("layer left out")["output"]
    apart = layers(mistake)["output"] - layers("")["output"]
    torch.testing.assert_close(apart, (factor - 1) * base)


def merged(mistake: str, rank: int, alpha: float, turns: tuple, dtype=torch.float32):
    """The change of a weight after some turns of the switch, and the right one."""
    torch.manual_seed(3)
    layer = nn.Linear(7, 5).to(dtype)
    A, B, before = torch.randn(rank, 7), torch.randn(5, rank), layer.weight.detach().float().clone()
    switch = (wrong("31b", mistake) if mistake else checks.reference_switch)(layer, A, B, alpha)
    for turn in turns:
        getattr(switch, turn)()
    return layer.weight.detach().float() - before, alpha / rank * B @ A


@pytest.mark.parametrize(
    ("mistake", "turns", "factor"),
    [("no scale", ("on",), 0.25), ("merged twice", ("on", "on"), 2.0), ("", ("on", "on"), 1.0),
     ("taken out twice", ("off",), -1.0), ("", ("on", "off"), 0.0)],
)  # fmt: skip
def test_how_large_the_merged_change_is(mistake, turns, factor):
    found, right = merged(mistake, 4, 16.0, turns)
    torch.testing.assert_close(found, factor * right)
    if mistake == "no scale":
        assert factor == checks.predictions["31.2"]["answer"]


def test_what_is_added_and_subtracted_in_bfloat16_leaves_a_rest():
    for mistake in ("subtracted from the merged one", ""):
        found, right = merged(mistake, 4, 16.0, ("on", "off"), torch.bfloat16)
        assert bool(found.any()) == bool(mistake)
        assert found.abs().max() < 0.01 * right.abs().max(), "which no plot shows"


def test_counts():
    model, targets, rank = checks.inputs_trained(1)[0]
    right = checks.reference_trained(model, targets, rank)
    named = [layer for name, layer in model.named_modules() if name.split(".")[-1] in targets]
    layers = [layer for layer in named if isinstance(layer, nn.Linear)]
    assert len(named) > len(layers), "one has such a name and is no linear layer"
    assert right == sum(
        LoRALinear(layer, rank, 1.0).A.numel() + rank * layer.out_features for layer in layers
    )
    longer = sum(name.endswith("freq") for name, _ in model.named_modules())
    assert longer and wrong("31c", "end of a name")(model, targets, rank) > right
    assert wrong("31c", "rank squared")(model, targets, rank) == rank**2 * len(layers)
    assert wrong("31c", "A alone")(model, targets, rank) == sum(rank * layer.in_features for layer in layers)
