"""CPU threads: the fastest number is kept, slow ones are broken off; a choice changes nothing in the run."""

import re

import pytest
import torch
import torch.nn.functional as F

from machine import threads
from machine.threads import Threads, gradients_of
from model import GPT, GPTConfig


@pytest.fixture(autouse=True)
def four_cores(monkeypatch):
    """As if nobody had asked for one thread: OMP_NUM_THREADS is not set and torch would use four."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


class Machine:
    """An update that takes seconds_with[number of threads] on a clock of its own; nothing is computed."""

    def __init__(self, monkeypatch, seconds_with: dict):
        self.now, self.seconds_with, self.calls, self.lines = 0.0, seconds_with, [], []
        monkeypatch.setattr(threads, "perf_counter", lambda: self.now)

    def update(self) -> None:
        self.calls.append(torch.get_num_threads())
        self.now += self.seconds_with[torch.get_num_threads()]

    def choice(self, may_choose=True, **config) -> Threads:
        self.config = {"threads": 0, **config}
        return Threads(self.config, may_choose, self.update, self.lines.append)


@pytest.mark.parametrize("fastest", [1, 2, 4])
def test_the_fastest_of_one_half_and_all_is_kept(monkeypatch, fastest):
    machine = Machine(monkeypatch, {1: 0.04, 2: 0.04, 4: 0.04, fastest: 0.02})
    machine.choice()
    assert machine.config["threads"] == torch.get_num_threads() == fastest
    assert machine.calls == 10 * [1] + 10 * [2] + 10 * [4]
    (line,) = machine.lines
    times = ", ".join(f"{n}: {20 if n == fastest else 40} ms" for n in (1, 2, 4))
    assert line == f"threads: {fastest} ({times} an update)"


def test_a_slow_number_is_broken_off(monkeypatch):
    """Spinning threads beside a busy process took 3.7 s for an update of 0.09 s."""
    machine = Machine(monkeypatch, {1: 0.09, 2: 0.3, 4: 3.7})
    machine.choice()
    assert machine.calls == 6 * [1] + 2 * [2] + [4]
    assert machine.config["threads"] == 1


def test_one_update_that_is_disturbed_decides_nothing(monkeypatch):
    machine = Machine(monkeypatch, {1: 0.04, 2: 0.03, 4: 0.02})
    update = machine.update

    def disturbed() -> None:
        update()
        machine.now += 0.1 * (
            len(machine.calls) in (1, 21, 25)
        )  # the first with 1, the first and fifth with 4

    monkeypatch.setattr(machine, "update", disturbed)
    machine.choice()
    assert machine.config["threads"] == 4


def run(choice: Threads, machine: Machine, n: int) -> int:
    """n updates of the loop; returns how many were made in looks."""
    before = len(machine.calls)
    for _ in range(n):
        machine.update()
        choice.after_update(machine.seconds_with[torch.get_num_threads()])
    return len(machine.calls) - before - n


def test_updates_that_have_become_three_times_slower_are_a_reason_to_choose_again(monkeypatch):
    machine = Machine(monkeypatch, {1: 0.04, 2: 0.03, 4: 0.02})
    choice = machine.choice()
    assert run(choice, machine, 1000) == 0
    machine.seconds_with = {1: 0.05, 2: 0.055, 4: 0.059}  # a neighbour has come, but this is not three times
    assert run(choice, machine, 1000) == 0
    machine.seconds_with = {1: 0.05, 2: 0.3, 4: 0.9}
    assert run(choice, machine, 2) == 0  # two may be chance; the median of five counts
    assert run(choice, machine, 8) == 13
    assert machine.config["threads"] == torch.get_num_threads() == 1
    assert machine.lines[1:] == [
        "updates took 20 ms and now take 900: a new choice",
        "threads: 1 (1: 50 ms, 2: 300 ms, 4: 900 ms an update)",
    ]
    assert run(choice, machine, 1000) == 0  # what an update takes now is the new measure


def test_choices_cost_a_tenth_of_the_time_at_most(monkeypatch):
    """However often updates become slow: at worst their times go up and down all the time."""
    machine = Machine(monkeypatch, {1: 0.05, 2: 0.3, 4: 0.9})
    choice = machine.choice()
    started, in_updates = machine.now, 0.0
    for step in range(10_000):
        seconds = 1.0 if step // 10 % 2 else 0.01
        machine.now += seconds
        in_updates += seconds
        choice.after_update(seconds)
    assert len(machine.lines) > 20
    assert machine.now - started < 1.1 * in_updates


@pytest.mark.parametrize(
    "why", ["a fixed number", "OMP_NUM_THREADS", "resumed or several processes", "one core"]
)
def test_without_a_choice_nothing_is_measured(monkeypatch, why):
    machine, config = Machine(monkeypatch, {}), {"threads": 3 if why == "a fixed number" else 0}
    if why == "OMP_NUM_THREADS":
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
    if why == "one core":
        torch.set_num_threads(1)
    before = torch.get_num_threads()
    choice = machine.choice(why != "resumed or several processes", **config)
    for seconds in 20 * [0.01] + 20 * [1.0]:
        choice.after_update(seconds)
    assert (machine.calls, machine.lines, machine.config) == ([], [], config)
    assert torch.get_num_threads() == before  # train.py has set a fixed number already


def test_memory_that_runs_out_leaves_torchs_choice_and_other_errors_are_raised(monkeypatch):
    machine = Machine(monkeypatch, {})

    def fails() -> None:
        raise error

    monkeypatch.setattr(machine, "update", fails)
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 bytes")
    choice = machine.choice()
    for seconds in 20 * [0.01] + 20 * [1.0]:
        choice.after_update(seconds)
    assert (machine.lines, machine.config) == ([], {"threads": 0})
    assert torch.get_num_threads() == 4
    error = RuntimeError("another one")
    with pytest.raises(RuntimeError, match="another one"):
        machine.choice()
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_weights_gradients_and_random_numbers_stay_as_they_were(gradient_checkpointing):
    settings = dict(n_layer=1, n_head=2, n_embd=16, block_size=8, dropout=0.5)
    model = GPT(GPTConfig(11, **settings, gradient_checkpointing=gradient_checkpointing))
    rows = []

    class Windows:
        block_size = 8

        def batch(self, step, batch_size):
            return torch.randint(11, (2, batch_size, 8), generator=torch.Generator().manual_seed(step))

    def loss(x, y):
        rows.append(len(x))
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")

    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    random, gradient = torch.get_rng_state(), []
    model.wte.weight.register_hook(lambda grad: gradient.append(grad.abs().sum()))
    gradients_of(model, loss, Windows(), 600, torch.autocast("cpu", torch.bfloat16))()
    assert gradient and gradient[0] > 0  # the work has been done
    gradients_of(model, loss, Windows(), 5, torch.autocast("cpu", torch.bfloat16))()
    assert rows == [512, 5]  # the first 4,096 tokens of a larger batch
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training and all(p.grad is None for p in model.parameters())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


# ---- train.py
def test_train_prints_what_it_has_measured_and_saves_the_choice(train, tmp_path, capsys):
    torch.set_num_threads(2)
    config = train("--max_iters=2", "--eval_interval=2")["config"]
    out = capsys.readouterr().out
    line = re.search(r"^threads: ([12]) \(1: \d+ ms, 2: \d+ ms an update\)$", out, re.M)
    chosen = int(line[1])
    assert config["threads"] == chosen and f"dtype float32, {chosen} thread" in out
    assert torch.get_num_threads() == 2  # as before the run
    assert torch.load(tmp_path / "out/ckpt.pt", weights_only=True)["config"]["threads"] == chosen


def one_thread_is_fastest(function) -> float:
    function()
    return 0.001 * torch.get_num_threads()


def test_a_resumed_run_keeps_the_number(train, capsys, monkeypatch):
    monkeypatch.setattr(threads, "seconds_per_call", one_thread_is_fastest)
    for flags in (["--max_iters=4"], ["--max_iters=8", "--init_from=resume"]):
        torch.set_num_threads(2)
        assert train("--eval_interval=4", *flags)["config"]["threads"] == 1
    out = capsys.readouterr().out
    assert out.count("an update)") == 1 and out.count("dtype float32, 1 thread,") == 2


@pytest.mark.slow
def test_choosing_changes_no_result(train, tmp_path, capsys, monkeypatch):
    """A run that chooses one thread, again after each update, has the weights of one with --threads=1."""
    ends = []
    monkeypatch.setattr(threads, "seconds_per_call", one_thread_is_fastest)
    for name in ("SLOWER", "PAUSE"):
        monkeypatch.setattr(threads, name, 0)
    monkeypatch.setattr(threads, "RECENT", 1)
    for flags in (["--threads=1"], []):
        torch.set_num_threads(2)
        train(
            "--dropout=0.1", "--gradient_accumulation_steps=2", "--max_iters=4", "--eval_interval=4", *flags
        )
        ends.append(torch.load(tmp_path / "out/ckpt.pt", weights_only=True)["model"])
    assert capsys.readouterr().out.count("an update)") == 5
    for name, weight in ends[0].items():
        assert torch.equal(weight, ends[1][name]), name
