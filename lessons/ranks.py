"""Several ranks in one process: threads, with the names of torch.distributed for what they tell each other.

One runs at a time, in a fixed order, until it has to wait. So a call that can never end is found at once and
told in one line, without a time limit.
"""

import threading

import torch
from torch import Tensor
from torch.distributed import ReduceOp


class Deadlock(RuntimeError):
    """Every rank has ended or waits for another one."""


class Group:
    """What each rank waits for, and what is on its way."""

    def __init__(self, size: int):
        self.size, self.stuck, self.gates = size, "", [threading.Semaphore(0) for _ in range(size)]
        self.waits = {rank: (lambda: True, "") for rank in range(size)}  # may it go on? the call's name
        self.calls, self.meetings, self.mail, self.results, self.errors = {}, [], {}, {}, []

    def pass_on(self) -> None:
        """Let the first rank run that may go on; if none may, each has to say so."""
        if self.waits and not any(ready() for ready, _ in self.waits.values()):
            told = {rank: f"waits in {call}" for rank, (_, call) in self.waits.items()}
            self.stuck = ", ".join(f"rank {r} {told.get(r, 'has ended')}" for r in range(self.size))
            self.waits = dict.fromkeys(self.waits, (lambda: True, ""))
        for rank in sorted(rank for rank, (ready, _) in self.waits.items() if ready())[:1]:
            self.gates[rank].release()

    def run(self, rank: int, work) -> None:
        self.gates[rank].acquire()
        try:
            self.results[rank] = work(Rank(rank, self))
        except BaseException as error:
            self.errors.append((isinstance(error, Deadlock), rank, error))
        del self.waits[rank]
        self.pass_on()


class Rank:
    """What a function gets in place of torch.distributed. `messages`: (call, bytes) of all that it told."""

    ReduceOp = ReduceOp

    def __init__(self, rank: int, group: Group):
        self.rank, self.group, self.messages = rank, group, []
        self.get_rank, self.get_world_size = lambda: rank, lambda: group.size

    def barrier(self) -> None:
        self._meet("barrier", torch.zeros(0))

    def all_reduce(self, tensor: Tensor, op=ReduceOp.SUM) -> None:
        values = torch.stack(self._meet("all_reduce", tensor))
        self._put(tensor, values.amax(0) if op == ReduceOp.MAX else values.sum(0))

    def broadcast(self, tensor: Tensor, src: int) -> None:
        self._put(tensor, self._meet(f"broadcast from rank {src}", tensor)[src])

    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor) -> None:
        for target, value in zip(tensor_list, self._meet("all_gather", tensor), strict=True):
            self._put(target, value)

    def send(self, tensor: Tensor, dst: int) -> None:
        box = self.group.mail.setdefault((self.rank, dst), [])
        box.append(self._told("send", tensor))
        self._wait(f"send to {dst}", lambda: not box)  # until it is received, as gloo

    def recv(self, tensor: Tensor, src: int) -> None:
        box = self.group.mail.setdefault((src, self.rank), [])
        self._wait(f"recv from {src}", lambda: box)
        self._put(tensor, box.pop())

    def _meet(self, call: str, tensor: Tensor) -> list[Tensor]:
        """Wait until all ranks have made this call; returns what each has told."""
        group, turn = self.group, len(self.group.meetings)
        call += f" of {tuple(tensor.shape)}" * (call != "barrier")  # other shapes never meet
        group.calls[self.rank] = call, self._told(call, tensor)
        if len(group.calls) == group.size and len({call for call, _ in group.calls.values()}) == 1:
            group.meetings.append([group.calls.pop(rank)[1] for rank in range(group.size)])
        self._wait(call, lambda: len(group.meetings) > turn)
        return group.meetings[turn]

    def _wait(self, call: str, ready) -> None:
        if not ready():
            self.group.waits[self.rank] = ready, call
            self.group.pass_on()
            self.group.gates[self.rank].acquire()
            self.group.waits[self.rank] = lambda: True, ""
        if not ready():
            raise Deadlock(self.group.stuck)

    def _told(self, call: str, tensor: Tensor) -> Tensor:
        if not tensor.is_contiguous():
            raise ValueError(f"{call}: the tensor has to be contiguous")
        self.messages.append((call.split()[0], tensor.nbytes))
        return tensor.detach().clone()

    @torch.no_grad()
    def _put(self, tensor: Tensor, value: Tensor) -> None:
        if tensor.shape != value.shape:
            raise ValueError(f"shape {tuple(value.shape)} came, for a tensor of {tuple(tensor.shape)}")
        tensor.copy_(value)


def together(size: int, work) -> list:
    """work(group) on so many ranks; what each returns, in order. Raises the first rank's own error, or the
    Deadlock that says who waits for whom."""
    group = Group(size)
    threads = [threading.Thread(target=group.run, args=(r, work), daemon=True) for r in range(size)]
    for thread in threads:
        thread.start()
    group.pass_on()
    for thread in threads:
        thread.join()
    if group.errors:
        raise min(group.errors, key=lambda error: error[:2])[2]
    return [group.results[rank] for rank in range(size)]
