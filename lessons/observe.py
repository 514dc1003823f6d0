"""Observes what a function does, and measures how far two observations are apart.

An observation holds values, shapes, dtypes, gradients of float inputs, whether the inputs were left alone,
the exception, and the number of steps where that matters. So it also shows a loss that was detached or an
input that was changed in place, where the returned number is right.
"""

import contextlib
import copy
import inspect
import math
import numbers
import random
import sys
import traceback
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lessons.course import SEEDS, nearest

TOL = 1e-4  # relative to the largest number of a tensor
RATIOS = {
    "1/ln 2 (log base 2?)": 1 / math.log(2),
    "ln 2 (nats for bits?)": math.log(2),
    "the other sign": -1.0,
}


# ---- what a function does
class Steps(TorchDispatchMode):
    """Counts torch operations, and the lines that run in the file of the function."""

    def __init__(self, function: Callable):
        super().__init__()
        self.count, self.file = 0, file_of(function)

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # True makes torch import its compiler, which takes 3 seconds, only to disable it

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))

    def line(self, frame, event, arg):
        if frame.f_code.co_filename != self.file:
            return None
        self.count += event == "line"
        return self.line

    def __enter__(self):
        sys.settrace(self.line)
        return super().__enter__()

    def __exit__(self, *error):
        sys.settrace(None)
        return super().__exit__(*error)


def is_float(x) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def leaves(value) -> list[Tensor]:
    """The float tensors in nested lists, tuples and dicts."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in leaves(part)]
    return [value] if is_float(value) else []


def observe(exercise: dict, function: Callable, args: tuple, seed: int) -> dict:
    """What the function does with these arguments, as plain values.

    {"raises", "message", "line"} or {"value", "gradients", "changed", "steps", "count"}. Gradients are those
    of the outputs' sum, weighted with fixed random numbers, by each float argument. The function gets clones
    of these: autograd lets it change a clone in place, and the change is seen.
    """
    call = exercise.get("call", lambda function, *args: function(*args))
    roots = [copy.deepcopy(x) for x in args]
    differentiate = exercise.get("gradients", True)
    sources = [x.requires_grad_() if differentiate and is_float(x) else None for x in roots]
    given = [x if root is None else x.clone() for x, root in zip(roots, sources, strict=True)]
    random.seed(seed), np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds GPUs, too: a hundred times slower
    counted = Steps(function) if "cost" in exercise else None
    names = [*inspect.signature(exercise["reference"]).parameters, *(f"argument {i}" for i in range(9))]
    gradients = {}
    try:
        with counted or contextlib.nullcontext():
            value = call(function, *given)
        outputs = [leaf for leaf in leaves(value) if leaf.requires_grad]
        used = [root for root in sources if root is not None]
        if outputs and used:
            total = sum((out.double() * weights_like(out)).sum() for out in outputs)
            found = iter(torch.autograd.grad(total, used, allow_unused=True))
            gradients = {names[i]: next(found) for i, root in enumerate(sources) if root is not None}
    except Exception as error:
        line = last_line(error, file_of(function))
        return dict(raises=type(error).__name__, message=str(error), line=line)
    changed = [names[i] for i, x in enumerate(given) if not same(x, args[i])]
    count = counted.count if counted else 0
    steps = "too many" if counted and count > exercise["cost"] else "few"
    return dict(value=copy_of(value), gradients=gradients, changed=changed, steps=steps, count=count)


def last_line(error: BaseException, file: str) -> int:
    """The last line of a file that an exception came through, or 0."""
    lines = [n for frame, n in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    return lines[-1] if lines else 0


def file_of(function: Callable) -> str:
    """The file that a function or class was written in, or ""."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    return code.co_filename if code else getattr(module, "__file__", None) or ""


def weights_like(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(out.dim()), dtype=torch.float64)


def copy_of(value):
    """Copy a value without its graph; later changes do not reach the copy."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copy_of(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copy_of(part) for part in value)
    return value.copy() if isinstance(value, np.ndarray) else value


def same(x, was) -> bool:
    """Is an argument unchanged? What cannot be compared by value (a model, say) counts as unchanged."""
    if isinstance(x, (Tensor, np.ndarray, numbers.Number, str, bytes, list, tuple, dict)):
        return difference(copy_of(x), was, 0.0)[0] == 0
    return True


def observations(exercise: dict, function: Callable, seeds=SEEDS) -> list[dict]:
    """What the function does with every tuple of arguments under every seed."""
    return [observe(exercise, function, args, seed) for seed in seeds for args in exercise["inputs"](seed)]


# ---- how far two values are apart
def difference(mine, ours, tol: float, where: str = "") -> tuple[float, bool, str]:
    """(distance in tolerances, whether the kind differs, one line that says where). Up to 1 is equal."""
    kind = lambda text: (math.inf, True, f"{where}{text}")  # noqa: E731 (three words, used six times)
    if mine is None and ours is not None:
        return kind("None is returned: is a `return` missing?")
    if isinstance(ours, (list, tuple)) and type(mine) is type(ours) and len(mine) == len(ours) > 0:
        if all(type(x) is int for x in (*mine, *ours)) and max(map(abs, (*mine, *ours))) < 2**53:
            # ids: the list is long, so name the index
            return numbers_apart(np.array(mine), np.array(ours), 0.0, where)
    if isinstance(ours, (dict, list, tuple)):
        if not isinstance(mine, type(ours)):
            return kind(f"{type(mine).__name__} found, {type(ours).__name__} expected")
        if len(mine) != len(ours):
            return kind(f"{len(mine)} {'entry' if len(mine) == 1 else 'entries'} found, {len(ours)} expected")
        if isinstance(ours, dict) and mine.keys() != ours.keys():
            return kind(f"keys {[*mine]} found, {[*ours]} expected")
        parts = ours if isinstance(ours, dict) else range(len(ours))
        found = [difference(mine[k], ours[k], tol, f"{where}[{k!r}] ") for k in parts]
        return worst(found)
    if isinstance(ours, (Tensor, np.ndarray)):
        if type(mine) is not type(ours) and not (isinstance(mine, Tensor) and isinstance(ours, Tensor)):
            return kind(f"{type(mine).__name__} found, {type(ours).__name__} expected")
        for what in ("shape", "dtype", "device"):
            a, b = (str(getattr(x, what, "")).removeprefix("torch.") for x in (mine, ours))
            if a != b:
                a, b = (
                    s.removeprefix("Size(").rstrip(")").replace("[", "(").replace("]", ")") for s in (a, b)
                )
                return kind(f"{what} {a} found, {b} expected")
        if str(getattr(ours, "device", "")) == "meta":  # has no numbers
            return 0.0, False, ""
        if not is_number_like(ours):  # an array of texts
            return difference(mine.tolist(), ours.tolist(), tol, where)
        return numbers_apart(mine, ours, tol if is_inexact(ours) else 0.0, where)
    if isinstance(ours, numbers.Number) and not isinstance(ours, bool):
        wanted = numbers.Integral if isinstance(ours, numbers.Integral) else numbers.Real
        if not isinstance(mine, wanted) or isinstance(mine, bool):
            return kind(f"{type(mine).__name__} found, {type(ours).__name__} expected")
        tol = 0.0 if isinstance(ours, numbers.Integral) else tol
        return numbers_apart(np.asarray(float(mine)), np.asarray(float(ours)), tol, where)
    if type(mine) is not type(ours):
        return kind(f"{type(mine).__name__} found, {type(ours).__name__} expected")
    if mine == ours or type(ours).__eq__ is object.__eq__:  # a model, say: known by its address alone
        return 0.0, False, ""
    return math.inf, False, f"{where}{mine!r:.60} found, {ours!r:.60} expected"


def is_inexact(x) -> bool:
    """Whether a tensor or array holds fractions; ids and counts have to be the same exactly."""
    return x.is_floating_point() if isinstance(x, Tensor) else x.dtype.kind == "f"


def is_number_like(x) -> bool:
    return isinstance(x, Tensor) or x.dtype.kind in "biuf"


def worst(found: list[tuple]) -> tuple[float, bool, str]:
    """The largest distance, and the text of the first that differs in kind, or of the first to differ."""
    first = max(found, key=lambda one: (one[1], one[0] > 1), default=(0.0, False, ""))
    return max((one[0] for one in found), default=0.0), first[1], first[2]


def numbers_apart(mine, ours, tol: float, where: str) -> tuple[float, bool, str]:
    a, b = (
        np.atleast_1d(x.double().numpy() if isinstance(x, Tensor) else np.asarray(x, float))
        for x in (mine, ours)
    )
    bad = ~np.isfinite(a) & np.isfinite(b)
    if bad.any():
        first = tuple(map(int, np.argwhere(bad)[0]))
        row = ", the whole row" if a.ndim > 1 and bad[first[:-1]].all() else ""
        count = f"{bad.sum()} of {bad.size} numbers are not finite"
        return math.inf, False, f"{where}{a[first]} at {index(first)}{row}; {count}"
    with np.errstate(all="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    apart[np.isnan(apart)] = math.inf
    if not apart.any():
        return 0.0, False, ""
    size = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
    limit = tol * max(size, 1e-3) or 1e-300  # with tol 0 any difference counts
    distance = float(apart.max()) / limit
    first = tuple(map(int, np.argwhere(apart > limit)[0])) if distance > 1 else (0,) * a.ndim
    one, other = a[first], b[first]
    place = f" at {index(first)}" if a.size > 1 else ""
    text = f"{where}{one:.5g}{place}, where {other:.5g} is right" + pattern(a, b)
    return distance, False, text


def index(place: tuple) -> str:
    return f"({', '.join(map(str, place))})" if len(place) > 1 else f"[{place[0]}]"


def pattern(a: np.ndarray, b: np.ndarray) -> str:
    """Is it a constant factor or a constant difference? Where ours is 0, a factor leaves 0."""
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    used = np.abs(b) > 1e-6
    if used.any() and not a[~used].any():
        ratios = a[used] / b[used]
        ratio, name = f"{ratios.mean():.5g}", nearest(ratios.mean(), RATIOS)
        same = np.ptp(ratios) <= 1e-3 * abs(ratios.mean()) and ratio not in ("0", "1")
        if same and (used.sum() > 1 or name):
            return f": yours is {ratio} times ours everywhere" + (f", that is {name}" if name else "")
    offsets = a - b
    if len(offsets) > 1 and np.ptp(offsets) <= 1e-3 * abs(offsets.mean()):
        return f": yours is ours plus {offsets.mean():.5g} everywhere"
    return ""


def apart(mine: list[dict], ours: list[dict], tol: float) -> tuple[float, bool, str]:
    """The largest distance between two lists of observations; a difference in kind is reported first."""
    found = []
    for one, other in zip(mine, ours, strict=True):
        if "raises" in one or "raises" in other:
            alike = (one.get("raises"), one.get("message")) == (other.get("raises"), other.get("message"))
            text = (
                f"{one['raises']}: {one['message']}"
                if "raises" in one
                else "no exception, where ours raises one"
            )
            found.append((0.0, False, "") if alike else (math.inf, True, text))
            continue
        found.append(difference(one["value"], other["value"], tol))
        if one["changed"] != other["changed"]:
            if one["changed"]:
                text = f"the caller's `{', '.join(one['changed'])}` was changed: work on a copy"
            else:
                text = f"`{', '.join(other['changed'])}` was to be changed in place"
            found.append((math.inf, False, text))
        if one["steps"] != other["steps"]:
            found.append((math.inf, False, f"{one['count']:,} steps, where ours takes {other['count']:,}"))
        for name in {**other["gradients"], **one["gradients"]}:
            g, right = one["gradients"].get(name), other["gradients"].get(name)
            if g is None and right is not None and right.any():
                text = f"no gradient reaches `{name}`: is there a .detach(), .item(), .data or no_grad()?"
                found.append((math.inf, False, text))
            elif right is not None:
                g = torch.zeros_like(right) if g is None else g
                found.append(difference(g, right, tol, f"the gradient of `{name}`: "))
            elif g is not None and g.any():
                found.append((math.inf, False, f"a gradient reaches `{name}`, and none should"))
    return worst(found)


def alike(mine: list[dict], ours: list[dict], tol: float) -> bool:
    """Whether two lists of observations are equal. The first pair that is not decides."""
    return all(apart([one], [other], tol)[0] <= 1 for one, other in zip(mine, ours, strict=True))
