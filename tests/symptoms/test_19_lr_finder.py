"""What is seen of each mistake of lesson 19, as the course says it."""

import math

import pytest
import torch
import torch.nn.functional as F

from lessons import course
from model import GPT, GPTConfig

CHECKS = course.checks(19)


def wrong(name: str, mistake: str):
    return CHECKS.exercises[name]["wrong"][mistake][0]


def swept(mistake: str) -> dict:
    return CHECKS.swept(wrong("19a", mistake), *CHECKS.inputs_sweep(1)[0])


def test_the_factor_between_neighbours():
    question = CHECKS.predictions["19.1"]
    equal_steps = torch.linspace(1e-6, 1, 100, dtype=torch.float64)[1].item()
    assert 1e6 ** (1 / 99) == pytest.approx(question["answer"], abs=question["tol"])
    assert [1e6 ** (1 / 100), equal_steps, 1e6] == pytest.approx([*question["wrong"]], rel=0.001)


# ---- 19a
def test_with_equal_steps_nearly_all_rates_are_large():
    powers = swept("linear spacing")["rates asked for, in powers of ten"]
    assert [power > -1.1 for power in powers] == [False] + [True] * (len(powers) - 1)


def test_without_correction_the_curve_starts_near_0():
    found = swept("no correction")
    assert found["averages"][0] == pytest.approx(0.2 * found["losses"][0])
    assert len(found["losses"]) == 1, "and the first loss already looks like an explosion"


def test_weights_not_put_back_the_real_run_does_not_begin_at_ln_v():
    """pytorch-lr-finder#11."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(vocab_size=65, block_size=8, n_layer=1, n_head=2, n_embd=16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    ids = torch.randint(65, (4, 9))

    def loss_now():
        return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    def update(i, rate):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = loss_now()
        loss.backward()
        optimizer.step()
        return loss.item()

    for sweep, as_new in ((CHECKS.reference_sweep, True), (wrong("19a", "weights not put back"), False)):
        sweep(model, optimizer, update, 1e-5, 10.0, 60, 0.9, 2.0)
        assert (abs(loss_now().item() - math.log(65)) < 0.05) == as_new


def test_what_a_sweep_leaves_behind():
    kept = {
        "optimizer not put back": {"the optimizer's averages are back", "the optimizer's rate is back"},
        "only parameters put back": {"buffers are back"},
        "random numbers used up": {"random numbers are back"},
    }
    for mistake, lost in kept.items():
        assert {key for key, value in swept(mistake).items() if value is False} == lost


def test_without_a_stop_there_is_nan_in_the_curve():
    broken = CHECKS.inputs_sweep(1)[1]
    found = CHECKS.swept(wrong("19a", "no stop"), *broken)["averages"]
    assert [math.isnan(average) for average in found] == [False] * 12 + [True] * 4
    assert len(CHECKS.swept(CHECKS.reference_sweep, *broken)["averages"]) == 13


# ---- 19b
def test_where_each_rule_ends():
    """The rates of six rules on one curve, in the order of the curve."""
    curve = CHECKS.inputs_choose(1)[0]
    right = CHECKS.reference_choose(*curve)
    jump, steepest, lowest, rise, end = (
        wrong("19b", rule)(*curve)
        for rule in (
            "the first jump",
            "steepest fall",
            "lowest average",
            "steepest rise",
            "where it explodes",
        )
    )
    assert jump < steepest < right < lowest < rise <= end
    assert rise > 3 * lowest > 4 * right
