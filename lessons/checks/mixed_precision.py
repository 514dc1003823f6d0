"""What the grader knows about lesson 23: numbers of 16 bits, a scaled loss, what stays in float32."""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lessons.common import floats, generator, mistakes
from lessons.observe import Steps
from machine.hardware import choose_precision, loss_scaler
from machine.layers import LayerNorm
from model import GPT

CPU = torch.device("cpu")


# ---- 23a: which numbers there are
def reference_rounded(x, digits, smallest, largest):
    return x.to({11: torch.float16, 8: torch.bfloat16}[digits]).double()


def twin_rounded(x, digits, smallest, largest):
    found = []
    for number in x.tolist():
        spacing = smallest
        if number != 0:
            power = math.floor(math.log2(abs(number)))
            spacing = max(2.0 ** (power - digits + 1), smallest)
        number = round(number / spacing) * spacing
        found.append(math.copysign(math.inf, number) if abs(number) > largest else number)
    return torch.tensor(found, dtype=x.dtype)


def inputs_rounded(seed):
    g = generator(seed)
    sizes = 10.0 ** (20 * torch.rand(40, generator=g, dtype=torch.float64) - 11)
    edges = [1e-8, 3e-8, -3.1e-8, 7e-8, 1.001, -1.004, 257, 259, -2049, 2051, 65504, 65510, 7e4, -7e4, 0]
    x = torch.cat((sizes * torch.randn(40, generator=g).double(), torch.tensor(edges).double()))
    x = x.float().double()  # (torch goes to bfloat16 through float32)
    tiny, huge = x[:7] * 1e-32, x.sign() * (x.abs().clamp(min=1) ** 4.2).clamp(max=3.4e38)  # bfloat16's ends
    bfloat16 = (8, 2.0**-133, torch.finfo(torch.bfloat16).max)
    return [(x, 11, 2.0**-24, 65504.0), (x, *bfloat16), (tiny.float().double(), *bfloat16),
            (huge.float().double(), *bfloat16)]  # fmt: skip


def over_x(rounded, x, digits, smallest, largest):
    """What is found over what was given: a tiny number counts as much as a huge one."""
    found = rounded(x, digits, smallest, largest)
    if not isinstance(found, torch.Tensor) or found.shape != x.shape or found.dtype != x.dtype:
        return found
    shares = torch.where(x == 0, found, found / x).masked_fill(found.isinf(), 0.0)
    return {"infinite": torch.where(found.isinf(), found.sign(), 0.0), "found, over x": shares}


def nearest_there_is(rounded, x, digits, smallest, largest):
    """What is stored already stays as it is."""
    once = rounded(x, digits, smallest, largest)
    again = rounded(once.clamp(-largest, largest), digits, smallest, largest)
    wrong = again != once.clamp(-largest, largest)
    return f"{once[wrong][0]:.8g} becomes {again[wrong][0]:.8g} when it is rounded again" * bool(wrong.any())


ROUND, OVER = "round(number / spacing)", "abs(number) > largest"
POWER, SMALL = "math.floor(math.log2(abs(number)))", "max(2.0 ** (power - digits + 1), smallest)"
SIGNED = "math.copysign(math.inf, number)"
NOT_ROUNDED = mistakes(twin_rounded, {
    "cut off": (ROUND, "math.trunc(number / spacing)"),
    "halves upwards": (ROUND, "math.floor(number / spacing + 0.5)"),
    "never inf": (OVER, "False"),
    "largest, not inf": (SIGNED, "math.copysign(largest, number)"),
    "inf before rounding": (f"        number = {ROUND}", f"        over = {OVER}\n        number = {ROUND}",
        f"if {OVER}", "if over"),
    "sign of inf": (SIGNED, "math.inf"),
    "no smallest number": (SMALL, "2.0 ** (power - digits + 1)"),
    "float16's smallest for both": (", smallest)", ", 2.0**-24)", "spacing = smallest", "spacing = 2.0**-24"),
    "tiny ones are 0": (f"        number = {ROUND}",
        f"        number *= abs(number) >= smallest * 2.0 ** (digits - 1)\n        number = {ROUND}"),
    "a digit too many": ("power - digits + 1", "power - digits"),
    "a digit too few": ("power - digits + 1", "power - digits + 2"),
    "one spacing for all": (SMALL, "smallest"),
    "nearest power": ("math.floor(math.log2", "round(math.log2"),
    "sign lost": ("number = round(number /", "number = round(abs(number) /"),
})  # fmt: skip


# ---- 23b: a scaled loss
def reference_step(loss, parameters, optimizer, limit, scale, good, every):
    factors = dict(growth_factor=2.0, backoff_factor=0.5, growth_interval=every)
    scaler = loss_scaler("float16", CPU, dict(scale=scale, _growth_tracker=good, **factors))
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, limit)
    scaler.step(optimizer)
    scaler.update()
    return scaler.state_dict()["scale"], scaler.state_dict()["_growth_tracker"]


def twin_step(loss, parameters, optimizer, limit, scale, good, every):
    optimizer.zero_grad()
    (loss * scale).backward()
    for p in parameters:
        p.grad /= scale
    norm = math.sqrt(sum((p.grad**2).sum().item() for p in parameters))
    if not math.isfinite(norm):
        return scale / 2, 0
    for p in parameters:
        p.grad *= min(1.0, limit / norm)
    optimizer.step()
    good += 1
    if good == every:
        return scale * 2, 0
    return scale, good


def inputs_step(seed):
    one = [1.3, 2e-6, 900.0, 40.0, 1.1, 0.9, 1.2, 3e5, 1.1, 0.8, 1.2, 0.9]
    other = [0.8, 7.0, 1e-6, 1e6, 0.9, 1.4]
    return [(one, 0.7, 2048.0, 3, seed + 10), (other, 2.5, 8192.0, 4, seed + 20)]


def an_update_each(step, sizes, limit, scale, every, seed):
    """Updates of a small float16 network on losses of these sizes: what the optimizer gets, what it makes."""
    g = generator(seed)
    parameters = [torch.randn(shape, generator=g).requires_grad_() for shape in ((4, 6), (6, 3))]
    optimizer, good = torch.optim.SGD(parameters, lr=0.2, momentum=0.6), 0
    told, used, got = [], [], []
    optimizer.register_step_pre_hook(lambda *_: got.append([p.grad.clone() for p in parameters]))
    for size in sizes:
        x, y = torch.randn(5, 4, generator=g), torch.randn(5, 3, generator=g)
        first, second = (p.half() for p in parameters)
        loss = size * ((torch.tanh(x.half() @ first) @ second).float() - y).square().mean()
        got.clear()
        scale, good = step(loss, parameters, optimizer, limit, scale, good, every)
        told.append(f"scale {float(scale):g}, {int(good)} good")
        used.append([[gradient / min(size, 1.0) for gradient in gradients] for gradients in got])
    return {"after each update": "; ".join(told), "steps": [*map(len, used)], "gradients": used,
            "weights": [p.detach() for p in parameters]}  # fmt: skip


def first_gradient(step, sizes, limit, scale, every, seed):
    mine, ours = (an_update_each(f, sizes[:1], limit, scale, every, seed)["gradients"][0]
                  for f in (step, reference_step))  # fmt: skip
    if not mine:
        return "the first update is not made, and its gradients are finite"
    lengths = [math.sqrt(sum(g.square().sum().item() for g in part[0])) for part in (mine, ours)]
    return "the optimizer gets a gradient of length {:.4g}, where {:.4g} is right".format(*lengths) * (
        abs(lengths[0] - lengths[1]) > 1e-3 * lengths[1])  # fmt: skip


UNSCALE, CLIP = "p.grad /= scale", "p.grad *= min(1.0, limit / norm)"
FINITE = "    if not math.isfinite(norm):\n        return scale / 2, 0\n"
NORM = "norm = math.sqrt(sum((p.grad**2).sum().item() for p in parameters))"
GROW = "    if good == every:\n        return scale * 2, 0\n"
NOT_STEPS = mistakes(twin_step, {
    "clipped before unscaling": (UNSCALE, "pass", CLIP, CLIP + " / scale"),
    "never unscaled": (UNSCALE, "pass"),
    "unscaled twice": (UNSCALE, "p.grad /= scale**2"),
    "inf not skipped": (FINITE, "    if not math.isfinite(norm):\n        optimizer.step()\n"
        "        return scale / 2, 0\n"),
    "nothing ever checked": (FINITE, ""),
    "inf taken for 0": (NORM, "for p in parameters:\n"
        "        p.grad = p.grad.nan_to_num(0.0, 0.0, 0.0)\n    " + NORM,
        "limit / norm", "limit / (norm + 1e-9)"),
    "scale stays after inf": ("return scale / 2, 0", "return scale, 0"),
    "scale never grows": (GROW, ""),
    "grows each time": ("good == every", "True"),
    "grows an update late": ("good == every", "good > every"),
    "count not reset by inf": ("return scale / 2, 0", "return scale / 2, good"),
    "count not reset by growth": ("return scale * 2, 0", "return scale * 2, good"),
    "loss not scaled": ("(loss * scale)", "loss"),
    "no scaling at all": ("(loss * scale)", "loss", UNSCALE, "pass"),
    "not clipped": (CLIP, "pass"),
    "always rescales": (CLIP, "p.grad *= limit / norm"),
    "gradients pile up": ("optimizer.zero_grad()", "pass"),
    "no step": ("    optimizer.step()\n", ""),
    "halved by good ones": ("return scale * 2, 0", "return scale / 2, 0"),
})  # fmt: skip


# ---- 23c: what stays in float32
def reference_mixed(x, y, weight, lr, steps):
    losses, norm = [], LayerNorm(x.size(-1), elementwise_affine=False)
    for _ in range(steps):
        weight = weight.detach().requires_grad_()
        part = SimpleNamespace(head=lambda h: F.linear(h, weight), config=SimpleNamespace(logit_cap=0))  # noqa: B023
        with choose_precision("bfloat16", CPU)[0]:
            loss = F.cross_entropy(GPT.to_logits(part, norm(x)), y)
        (gradient,) = torch.autograd.grad(loss, weight)
        losses.append(loss.item())
        weight = weight - lr * gradient
    return losses, weight.detach()


def twin_mixed(x, y, weight, lr, steps):
    losses = []
    for _ in range(steps):
        weight = weight.detach().requires_grad_()
        h = F.layer_norm(x, x.shape[-1:])
        logits = (h.bfloat16() @ weight.bfloat16().T).float()
        loss = F.cross_entropy(logits, y)
        (gradient,) = torch.autograd.grad(loss, weight)
        losses.append(loss.item())
        weight = weight - lr * gradient
    return losses, weight.detach()


def inputs_mixed(seed):
    g = generator(seed)
    x = 100 + torch.randn(40, 12, generator=g)  # bfloat16 has steps of 1/2 there
    weight = torch.randn(65, 12, generator=g)
    y, other = (torch.randint(65, (40,), generator=g) for _ in range(2))
    return [(x, y, weight, 0.02, 6), (x, other, weight, 0.7, 3)]


class Products(TorchDispatchMode):
    """Notes the type of what is multiplied as matrices."""

    _should_skip_dynamo = Steps._should_skip_dynamo

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "mv", "linear"):
            self.types.add(str(args[-1].dtype).removeprefix("torch."))
        return func(*args, **(kwargs or {}))


def what_is_used(mixed, x, y, weight, lr, steps):
    with Products() as products:
        losses, found = mixed(x, y, weight.detach(), lr, steps)
    if found.dtype != torch.float32 or found.shape != weight.shape:
        raise TypeError(f"weights of {tuple(found.shape)}, {found.dtype}: they should stay as they came")
    types = ", ".join(sorted(products.types))
    return {"losses": floats(losses), "moved, over lr": (found - weight).detach() / lr, "in": types}


def small_steps_count(mixed, x, y, weight, lr, steps):
    moved = what_is_used(mixed, x, y, weight, lr, steps)["moved, over lr"]
    lost = (moved == 0).float().mean().item()
    return f"{lost:.0%} of the weights have not moved at all" * (lost > 0.5)


BOTH, WIDE = "(h.bfloat16() @ weight.bfloat16().T)", ".T).float()"
UPDATE, NORMED = "weight = weight - lr * gradient", "F.layer_norm(x, x.shape[-1:])"
NOT_MIXED = mistakes(twin_mixed, {
    "loss in bfloat16": (WIDE, ".T)"),
    "loss widened too late": (WIDE, ".T)", "F.cross_entropy(logits, y)", "F.log_softmax(logits, -1).float()"
        ".gather(1, y[:, None]).neg().mean()"),
    "weights in bfloat16": (UPDATE, "weight = (weight.bfloat16() - lr * gradient.bfloat16()).float()"),
    "first updates lost": ("    losses = []", "    losses, weight = [], weight.bfloat16().float()"),
    "norm in bfloat16": (NORMED, "F.layer_norm(x.bfloat16(), x.shape[-1:])"),
    "all in float32": (BOTH, "(h @ weight.T)"),
    "float16 for bfloat16": (".bfloat16()", ".half()"),
    "rounded, multiplied in float32": (BOTH, "(h.bfloat16().float() @ weight.bfloat16().float().T)"),
    "old weights read": ("    losses = []", "    losses, old = [], weight.bfloat16()", "weight.bfloat16().T",
        "(old + (weight - weight.detach()).bfloat16()).T"),
    "nothing updated": (UPDATE, "pass"),
    "up the slope": ("weight - lr", "weight + lr"),
    "no norm": (NORMED, "x"),
    "in place": ("weight.detach().requires_grad_()", "weight.requires_grad_()", UPDATE,
        "weight.data.sub_(lr * gradient)"),
    "rate left out": ("lr * gradient", "gradient"),
    "one step": ("range(steps)", "range(1)"),
})  # fmt: skip

exercises = {
    "23a": dict(name="rounded", reference=reference_rounded, slow=twin_rounded, inputs=inputs_rounded,
        twin="torch's own conversion is the reference", gradients=False, wrong=NOT_ROUNDED, tol=1e-9,
        survivors={"spacing = smallest => pass": "0 is a multiple of any spacing",
            f"spacing = {SMALL} => spacing = max(smallest, {SMALL[4:-11]})": "the larger of two"},
        call=over_x, properties=[nearest_there_is], lint={"x": "one axis"},
        forbidden=("half", "bfloat16", "float16", "to", "type"),
        ),
    "23b": dict(name="scaled_step", reference=reference_step, project=loss_scaler, slow=twin_step,
        inputs=inputs_step, call=an_update_each, gradients=False, wrong=NOT_STEPS,
        tol=5e-3,  # a float16 weight may differ in its last digit
        survivors={f"{CLIP} => p.grad *= min(limit / norm, 1.0)": "the smaller of two",
            "norm = math.sqrt(sum(((p.grad ** 2).sum().item() for p in parameters))) => "
            "norm = math.sqrt(sum(((p.grad ** 2).sum() for p in parameters)))": "math.sqrt reads a tensor"},
        properties=[first_gradient], forbidden=("GradScaler",),
        ),
    "23c": dict(name="mixed_steps", reference=reference_mixed, project=choose_precision, slow=twin_mixed,
        inputs=inputs_mixed, call=what_is_used, gradients=False, wrong=NOT_MIXED, tol=2e-4,
        survivors={"return (losses, weight.detach()) => return (losses, weight)": "the same numbers",
            "losses.append(loss.item()) => losses.append(loss)": "read as a number",
            "weight = weight.detach().requires_grad_() => weight = weight.requires_grad_()": "a graph",
            f"h = {NORMED} => h = F.layer_norm(x, x.shape[1:])": "x has two axes"},
        properties=[small_steps_count],
        ),
}  # fmt: skip

predictions = {
    "23.1": dict(answer=70144.0, tol=20.0),
    "23.2": dict(answer=1.0, tol=0.0001),
}
