"""What several check files need: seeded inputs, what is as good as an answer, counts, planted mistakes."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor


# ---- inputs
def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(g: torch.Generator, *shapes: tuple) -> list[Tensor]:
    """A tensor of normal numbers of each shape."""
    return [torch.randn(*shape, generator=g) for shape in shapes]


@torch.no_grad()
def fill(module: torch.nn.Module, g: torch.Generator) -> torch.nn.Module:
    """Make all parameters so large that none can be left out unnoticed."""
    for parameter in module.parameters():
        parameter.copy_(0.5 * torch.randn(parameter.shape, generator=g))
    return module


# ---- what is as good as what is asked for
def same(x, *_):
    return x


def as_tuple(function: Callable, *args):
    """A list, or one tensor of two, is as good as a tuple."""
    found = function(*args)
    pair = isinstance(found, Tensor) and len(found) == 2
    return tuple(found) if pair or isinstance(found, list) else found


def rows_as_tuples(function: Callable, *args):
    """In a list that is returned, a row may be a list, too."""
    rows = function(*args)
    return [tuple(row) if isinstance(row, list) else row for row in rows] if isinstance(rows, list) else rows


def whole(count: Callable, *args):
    """What a count says; 12.0 is as good as 12."""
    found = count(*args)
    return int(found) if isinstance(found, float) and found.is_integer() else found


def floats(values) -> list[float]:
    """Numbers, also of tensors with a graph, of which float() would warn."""
    return [float(torch.as_tensor(value).detach()) for value in values]


# ---- counts and chances
def pair_counts(first: Tensor, second: Tensor, V: int) -> Tensor:
    """How often each id (n,) is met with each other one: (V, V) int64."""
    return torch.bincount(first * V + second, minlength=V * V).view(V, V)


def entropy(p: Tensor) -> Tensor:
    """In nats, of each row; what never comes adds nothing."""
    return -torch.xlogy(p, p).sum(-1)


def p_value(counts: Tensor, chances: Tensor, rows: int = 1) -> float:
    """Chance of counts so far from the expected ones, or farther (Pearson's chi-square, 1900). The sums of so
    many rows are given."""
    expected = counts.sum() * chances
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = torch.tensor((len(counts) - rows) / 2).double()
    return torch.special.gammaincc(degrees, chi_square.double() / 2).item()


# ---- wrong answers
def changed(function: Callable, *swaps: str) -> Callable:
    """A function with a mistake: a place of its source as it is, as it is then, the next place ..."""
    source, names = inspect.getsource(function), dict(function.__globals__)
    for before, after in zip(swaps[::2], swaps[1::2], strict=True):
        assert before in source, before
        source = source.replace(before, after)
    exec(source, names)
    return names[function.__name__]


def mistakes(function: Callable, table: dict[str, tuple]) -> dict[str, Callable]:
    """Name -> the function with these swaps."""
    return {name: changed(function, *swaps) for name, swaps in table.items()}
