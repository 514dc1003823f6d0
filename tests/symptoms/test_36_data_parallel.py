"""Lesson 36: what its wrong answers look like, in numbers; and ranks as threads and as processes."""

import pytest
import torch

from lessons import course
from lessons.gloo import processes
from lessons.ranks import Deadlock, together

checks = course.checks(36)


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


def trained(mistake: str, size=2, n=3, seed=5):
    train = wrong("36a", mistake) if mistake else checks.reference_train
    return checks.seen_of_train(train, size, n, seed)["ranks"]


def length(gradients) -> float:
    return sum(g.square().sum().item() for g in gradients) ** 0.5


@pytest.mark.parametrize(("mistake", "factor"), [("summed, not averaged", 3), ("averaged twice", 1 / 3)])
def test_a_sum_is_too_long_by_the_number_of_ranks(mistake, factor):
    found, right = (length(trained(name, 3)[0]["gradients"][0]) for name in (mistake, ""))
    assert found / right == pytest.approx(factor, rel=1e-4)


@pytest.mark.parametrize(("kind", "hidden"), [(torch.optim.Adam, True), (torch.optim.SGD, False)])
def test_adam_hides_the_factor_and_sgd_does_not(kind, hidden):
    ends = []
    for train in (checks.reference_train, wrong("36a", "summed, not averaged")):

        def one_rank(dist, train=train):
            model = checks.fill(checks.Small(), checks.generator(3))
            train(model, kind(model.parameters(), lr=0.01), checks.data_of(2, 4, 3), dist)
            return torch.cat([p.detach().flatten() for p in model.parameters()])

        ends.append(together(2, one_rank)[0])
    assert torch.allclose(*ends, atol=1e-4) == hidden


def test_the_same_rows_on_all_are_one_worker_on_a_part():
    def alone(dist):
        model = checks.fill(checks.Small(), checks.generator(5))
        part = [(x[:2], y[:2]) for x, y in checks.data_of(2, 3, 5)]
        checks.reference_train(model, torch.optim.SGD(model.parameters(), lr=0.4), part, dist)
        return [p.detach() for p in model.parameters()]

    for a, b in zip(trained("same rows on all")[0]["weights"], together(1, alone)[0], strict=True):
        torch.testing.assert_close(a, b)


def test_rows_read_twice_or_by_nobody_are_told():
    told, args = checks.each_row_is_read_once, checks.inputs_train(1)[1]
    assert told(checks.reference_train, *args) == ""
    assert "the 3 ranks together read one row 3 times" in told(wrong("36a", "all rows on all"), *args)
    few = checks.mistakes(checks.reference_train, {"few": ("rank * n + n)", "rank * n + 1)")})["few"]
    assert told(few, *args) == "12 of 24 rows are read by no rank"


@pytest.mark.parametrize("mistake", ["no broadcast", "losses averaged, not gradients", "only rank 0 steps"])
def test_ranks_drift_apart(mistake):
    args = checks.inputs_train(1)[0]
    assert "ranks' weights differ" in checks.ranks_agree(wrong("36a", mistake), *args)
    assert checks.ranks_agree(checks.reference_train, *args) == ""


def test_one_worker_with_the_whole_batch_is_the_measure():
    for args in checks.inputs_train(7):
        assert checks.as_one_worker(checks.reference_train, *args) == ""
    assert "one worker" in checks.as_one_worker(wrong("36a", "summed, not averaged"), *args)


def test_a_rank_that_does_not_call_is_named():
    with pytest.raises(Deadlock, match=r"rank 0 waits in all_reduce of \(6,\), rank 1 waits in all_reduce"):
        trained("unused parameter skipped")
    with pytest.raises(Deadlock, match="^rank 0 waits in barrier, rank 1 has ended$"):
        together(2, lambda dist: dist.get_rank() or dist.barrier())
    with pytest.raises(Deadlock, match="rank 0 waits in send to 1, rank 1 waits in send to 0"):
        together(2, lambda dist: dist.send(torch.zeros(2), 1 - dist.get_rank()))
    with pytest.raises(ZeroDivisionError):  # a rank's own error comes before that of those who wait for it
        together(2, lambda dist: 1 / 0 if dist.get_rank() else dist.barrier())


def all_calls(dist):
    rank, size = dist.get_rank(), dist.get_world_size()
    t = torch.tensor([1.0, 5.0]) + rank
    summed, largest, first, parts = t.clone(), t.clone(), t.clone(), [torch.zeros(2) for _ in range(size)]
    dist.all_reduce(summed)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    dist.broadcast(first, src=1)
    dist.all_gather(parts, t)
    dist.barrier()
    came = torch.zeros(2)
    if rank == 0:
        dist.send(t, 1)
    else:
        dist.recv(came, 0)
    return [summed, largest, first, *parts, came]


def test_threads_and_processes_say_the_same():
    found = together(2, all_calls)
    assert [t.tolist() for t in found[1]] == [[3, 11], [2, 6], [2, 6], [1, 5], [2, 6], [1, 5]]
    for mine, theirs in zip(found, processes(2, all_calls), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_a_process_that_fails_is_told(capfd):
    with pytest.raises(RuntimeError, match="a rank has failed"):
        processes(2, lambda dist: 1 // (1 - dist.get_rank()))
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_the_prediction_is_what_a_ring_sends():
    ring = course.load(course.lessons()[36], "lesson_36").ring

    def sent(dist):
        ring(torch.ones(40), dist)
        return sum(size for _, size in dist.messages) / 40

    assert together(4, sent) == [checks.predictions["36.1"]["answer"]] * 4
    assert together(2, sent) == [4.0] * 2


def test_however_the_work_is_divided_a_step_reads_the_same():
    assert checks.the_split_is_no_matter(checks.reference_windows) == ""
    for mistake in ("rank left out", "an order for each rank", "a region for each rank"):
        assert "read [" in checks.the_split_is_no_matter(wrong("36b", mistake))


def test_without_the_epoch_each_epoch_has_the_same_order():
    order = checks.shuffled(6, 3)
    for windows, same in ((checks.reference_windows, False), (wrong("36b", "same order each epoch"), True)):
        first, second = (windows(order, 6, step, 6, 0, 1, 0, 1) for step in (0, 1))
        assert sorted(first) == sorted(second) == [*range(6)]
        assert (first == second) == same
