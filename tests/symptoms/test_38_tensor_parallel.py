"""Lesson 38: what its wrong answers look like, in numbers."""

import pytest
import torch
import torch.nn.functional as F

from lessons import course
from lessons.gloo import processes
from lessons.ranks import together

checks = course.checks(38)
ROW, COLUMN = (4, 12, 5, 7), (4, 3, 7, 12, 7)


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


def linear(row, size: int, width=12, out=5):
    """What a rank returns without an activation, the layer's output, and the bias."""
    x, weight, bias = checks.normal(checks.generator(3), (2, 3, width), (out, width), (out,))

    def one_rank(dist):
        mine = x.chunk(size, -1)[dist.get_rank()].contiguous()
        return row(mine, weight, bias, lambda y: y, dist)

    return together(size, one_rank)[0], F.linear(x, weight, bias), bias


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_bias_on_every_rank_is_there_too_often(size):
    found, right, bias = linear(wrong("38b", "bias on every rank"), size)
    torch.testing.assert_close(found - right, ((size - 1) * bias).expand_as(right), rtol=1e-4, atol=1e-4)
    if size == 4:
        assert checks.predictions["38.2"]["answer"] == size - 1


def test_a_divided_bias_has_a_divided_gradient():
    found, right = (
        checks.seen_of_row(f, *ROW) for f in (wrong("38b", "bias divided by the ranks"), checks.reference_row)
    )
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one["output"], other["output"])
        torch.testing.assert_close(one["gradient of bias"] * 4, other["gradient of bias"])


def test_all_reduce_returns_none():
    assert [one["output"] for one in checks.seen_of_row(wrong("38b", "all_reduce returned"), *ROW)] == [
        None
    ] * 4


def test_without_the_sum_each_rank_has_a_part_of_the_gradient():
    right = checks.seen_of_column(checks.reference_column, *COLUMN)
    found = checks.seen_of_column(wrong("38a", "gradient not summed"), *COLUMN)
    of_x = checks.layer(*COLUMN)[4]  # the gradient that comes past the layer
    torch.testing.assert_close(
        sum(one["gradient of x"] - of_x for one in found),
        right[0]["gradient of x"] - of_x,
        rtol=1e-4,
        atol=1e-4,
    )
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one["output"], other["output"])


@pytest.mark.parametrize(("out", "silent"), [(8, True), (12, False)])
def test_where_the_matrix_is_square_the_wrong_axis_is_silent(out, silent):
    x, weight, bias = checks.normal(checks.generator(3), (2, 3, 8), (out, 8), (out,))
    columns = wrong("38a", "wrong axis")
    try:
        found = together(2, lambda dist: columns(x.clone().requires_grad_(), weight, bias, 1, dist))
        assert torch.cat(found, -1).shape == (2, 3, out)
        assert not torch.allclose(torch.cat(found, -1), F.linear(x, weight, bias))
        assert silent
    except RuntimeError as error:
        assert "shapes cannot be multiplied" in str(error) and not silent


def test_a_cut_across_the_parts_gives_rank_0_queries_alone():
    x, weight, bias, *_ = checks.layer(*COLUMN)
    found = checks.seen_of_column(wrong("38a", "cut across the parts"), *COLUMN)[0]["output"]
    queries = F.linear(x, weight, bias)[..., :12]
    torch.testing.assert_close(found, F.linear(x, weight, bias)[..., :9])
    assert found.size(-1) < queries.size(-1)


def test_a_block_has_the_predicted_all_reduces():
    lesson = course.load(course.lessons()[38], "lesson_38")
    assert {calls for _, _, calls in together(2, lesson.run)} == {checks.predictions["38.1"]["answer"]}


@pytest.mark.slow
def test_torch_splits_as_we_do():
    """Columns, GELU, rows by DTensor, in processes: its output, its pieces and its gradients."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    x, up, up_bias, down, down_bias = checks.normal(
        checks.generator(5), (2, 3, 8), (12, 8), (12,), (8, 12), (8,)
    )

    def both(dist):
        mine = x.clone().requires_grad_()
        h = checks.reference_column(mine, up, up_bias, 1, dist)
        y = checks.reference_row(F.gelu(h), down, down_bias, lambda t: t, dist)
        y.square().sum().backward()
        mlp = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.GELU(), torch.nn.Linear(12, 8))
        with torch.no_grad():
            for p, value in zip(mlp.parameters(), (up, up_bias, down, down_bias), strict=True):
                p.copy_(value)
        parallelize_module(
            mlp, init_device_mesh("cpu", (2,)), {"0": ColwiseParallel(), "2": RowwiseParallel()}
        )
        theirs = x.clone().requires_grad_()
        z = mlp(theirs)
        z.square().sum().backward()
        return [torch.tensor(t.tolist()) for t in (y, z, mine.grad, theirs.grad)]  # z is not there yet

    for y, z, mine, theirs in processes(2, both):
        torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
