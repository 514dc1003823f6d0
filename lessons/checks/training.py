"""What the grader knows about lesson 15: evaluation, clipping, and a run that goes on after its end."""

import copy
import io
import math
from contextlib import nullcontext
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_

from evaluate import evaluate
from lessons.common import changed, generator, mistakes, normal
from lessons.observe import leaves
from runtime.checkpoint import check_plain

V, T = 11, 7  # letters and length of the toy texts
MODE, COUNT, SEED = "model.train(was_training)", "(y != -1).sum()", "seed_all(step)"  # places of a source
LONG, ANY, CLIP = "if 0 < limit < norm:", "if 0 < limit:", "grad.mul_(limit / norm)"


def small(dropout: float) -> nn.Module:
    """A tenth of a millisecond, and its dropout shows in which mode it is."""
    model = nn.Sequential(nn.Embedding(V, 6), nn.Dropout(dropout), nn.Linear(6, V))
    model.config = SimpleNamespace(vocab_size=V)  # evaluate() asks for it
    return model


# ---- 15a: a loss of each split
def reference_estimate(model, splits):
    losses = {}
    for name, batches in splits.items():
        n, read = len(batches), lambda i, batches=batches: batches[i[0]]
        windows = SimpleNamespace(block_size=batches[0][0].size(1), path=name, window_batch=read)
        losses[name] = evaluate(model, windows, range(n), "cpu", nullcontext(), batch_size=1)["loss"]
    return losses


def twin_estimate(model, splits):
    was_training, losses = model.training, {}
    model.eval()
    with torch.no_grad():
        for name, batches in splits.items():
            nats, targets = 0.0, 0
            for x, y in batches:
                nats += F.cross_entropy(model(x).mT, y, ignore_index=-1, reduction="sum")
                targets += (y != -1).sum()
            losses[name] = (nats / targets).item()
    model.train(was_training)
    return losses


def inputs_estimate(seed):
    torch.manual_seed(seed)
    models = small(0.2).train(), small(0.2).eval()

    def batch(rows):
        x, y = torch.randint(V, (2, rows, T))
        return x, y.masked_fill(torch.rand(rows, T) < rows / 20, -1)  # not equally many

    return [(model, {"train": [batch(5), batch(3)], "val": [batch(6), batch(2)]}) for model in models]


def as_floats(found):  # a loss may come as a tensor, too
    return {k: x.item() if leaves(x) else x for k, x in found.items()} if isinstance(found, dict) else found


def two_estimates(estimate, model, splits):
    """What two calls in a row return, and what they do to the model on the way."""
    passes = []
    model.register_forward_hook(lambda m, args, out: passes.append((m.training, out.requires_grad)))
    with torch.enable_grad():  # and as it was, once this ends
        first, second = estimate(model, splits), estimate(model, splits)
        on = torch.is_grad_enabled()
    return {
        "first call": as_floats(first), "second call": as_floats(second),
        "a graph is held": any(loss.requires_grad for loss in leaves(first)),
        "dropout was on": any(mode for mode, _ in passes), "a graph was built": any(g for _, g in passes),
        "in train mode afterwards": model.training, "gradients are on afterwards": on,
    }  # fmt: skip


def calls_agree(estimate, model, splits):
    model = copy.deepcopy(model).train()
    one, two = estimate(model, splits), estimate(model, splits)
    return "" if one == two else f"two calls in a row differ: {one} and {two}"


# ---- 15b: one clipped step
def reference_step(parameters, optimizer, limit):
    norm = clip_grad_norm_(parameters, limit or math.inf)
    optimizer.step()
    return norm.item()


def twin_step(parameters, optimizer, limit):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(g * g for grad in grads for g in grad.flatten().tolist()))
    if 0 < limit < norm:
        for grad in grads:
            grad.mul_(limit / norm)
    optimizer.step()
    return norm


def inputs_step(seed):
    big, little, row = normal(generator(seed), (3, 5), (4, 2), (6,))
    gradients = [big, None, 0.3 * little, 2 * row, torch.zeros(2, 7)]  # None: frozen
    limits = 0.7, 29.0, 0.0  # too long, short enough, no limit; and gradients of zeros
    return [*((gradients, limit) for limit in limits), ([torch.zeros(3, 5), None], 0.7)]


def one_update(step, gradients, limit):
    """The length it tells and the weights it makes, with plain SGD: Adam would divide a factor away."""
    shapes = [(2, 3) if gradient is None else gradient.shape for gradient in gradients]
    parameters = [nn.Parameter(weights) for weights in normal(generator(0), *shapes)]
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = None if gradient is None else gradient.clone()
    length = step(parameters, torch.optim.SGD(parameters, lr=0.3), limit)
    return {"length": length, "weights": [p.detach() for p in parameters]}


def only_shorter(step, gradients, limit):
    """The step points where the gradient points, and is no longer than the limit."""
    before, after = (one_update(f, gradients, limit)["weights"] for f in (lambda *args: 0.0, step))
    made = [(g, (b - a) / 0.3) for g, b, a in zip(gradients, before, after, strict=True) if g is not None]
    was, now = (torch.cat([tensor.flatten() for tensor in side]) for side in zip(*made, strict=True))
    if (cosine := F.cosine_similarity(was, now, dim=0).item()) < 0.999:
        return f"the step points elsewhere: its cosine with the gradient is {cosine:.3f}"
    return f"what is stepped with has the length {now.norm():.2f}, not {limit}" * (now.norm() > 1.001 * limit)


# ---- 15c: a run in two parts
seed_all = torch.default_generator.manual_seed  # torch.manual_seed also asks for devices: ten times slower


def reference_go_on(model, optimizer, batch, lr_at, last, saved=None):
    start = 0
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    for step in range(start, last):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step)
        seed_all(step)  # so the masks of dropout are a function of the step, too
        x, y = batch(step)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": last})


class Run:
    """A model and its optimizer, and what is seen of a run: weights after each update, batches, masks."""

    def __init__(self, dropout: float, seed: int):
        seed_all(seed)
        self.model, self.seed = small(dropout), seed % 1000
        groups = [{"params": part.parameters()} for part in self.model[::2]]
        optimizer = self.optimizer = torch.optim.AdamW(groups, lr=0.5, fused=True)
        self.loaded, self.weights, self.rates, self.steps, self.masks = [], [], [], {}, set()
        optimizer.register_step_pre_hook(lambda *_: self.loaded.extend([] if self.loaded else self.parts()))
        after = optimizer.register_step_post_hook
        after(lambda *_: self.weights.append(self.parts()[0]))
        after(lambda *_: self.rates.append([group["lr"] for group in optimizer.param_groups]))
        self.model[1].register_forward_hook(lambda _, __, out: self.masks.add((out == 0).numpy().tobytes()))

    def parts(self):  # weights, and the optimizer's averages: a long vector of each
        states = self.model.state_dict(), self.optimizer.state_dict()
        return [torch.cat([torch.zeros(1), *(x.flatten() for x in leaves(state))]) for state in states]

    def batch(self, step: int):
        self.steps[step] = True
        return tuple(torch.randint(V, (2, 3, T), generator=generator(1000 * self.seed + step)))

    def train(self, go_on, last, saved=None):
        return go_on(self.model, self.optimizer, self.batch, lambda step: 0.05 / (1 + step), last, saved)


def from_file(saved):
    """As it comes back from torch.save; an error in a line for what only pickle could keep."""
    if not isinstance(saved, dict):
        raise TypeError(f"{type(saved).__name__} returned, where the next call needs a dict")
    check_plain(saved, "saved")
    file = io.BytesIO()
    torch.save(saved, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def two_runs(go_on, dropout, cut, last, seed):
    """An unbroken run, and one that is saved, trained on, and then resumed from the file by a new model."""
    whole, first, second = Run(dropout, seed), Run(dropout, seed), Run(dropout, seed + 1000)
    seed_all(seed)
    whole.train(go_on, last)
    seed_all(seed)
    saved, made, masks, kept = first.train(go_on, cut), len(first.weights), {*first.masks}, first.parts()
    first.train(reference_go_on, 1)  # what was saved must not notice
    seed_all(seed + 3)
    second.train(go_on, last, from_file(saved))
    pairs = list(zip(second.weights, whole.weights[cut:], strict=False))
    parts = zip(second.loaded or second.parts(), kept, first.parts(), strict=True)
    found = ["as saved" if x.equal(was) else "trained on since" if x.equal(later) else "not loaded"
             for x, was, later in parts]  # fmt: skip
    return {
        "updates before and after the save": [made, len(second.weights)],
        "batches after the save": " ".join(map(str, second.steps)),
        "rates after the save": ", ".join(" ".join(map("{:.4f}".format, rates)) for rates in second.rates),
        "weights after loading": found[0], "averages after loading": found[1],
        "as in the unbroken run": "".join("=" if torch.equal(a, b) else "x" for a, b in pairs),
        "dropout masks": sum(map(any, whole.masks)),
        "masks drawn again": len(masks & second.masks) if min(second.steps, default=0) == cut else 0,
        "unbroken minus resumed": None if dropout else sum((a - b).abs().max().item() for a, b in pairs),
        "weights at the end": None if dropout else whole.parts()[0],  # masks may be drawn in another way
    }  # fmt: skip


def seen_of(value, dropout, cut, last, seed):
    first = cut + 1 + value["as in the unbroken run"].find("x")
    (_, made), batches = (value[f"{what} the save"] for what in ("updates before and after", "batches after"))
    return dict(first=first, made=made, left=last - cut, asked=batches.split(" ")[0])


def what_is_lost(go_on, dropout, *args):
    """The first cause, of a run without dropout; masks only if there is none."""
    value, right = (two_runs(f, 0.0, *args) for f in (go_on, reference_go_on))
    for key in [*right][:5]:
        if value[key] != right[key]:
            return f"{key}: {value[key]} (right: {right[key]})"
    told = "without dropout, too, {}: what else lies in an update?"
    if "x" not in value["as in the unbroken run"]:
        value, told = two_runs(go_on, dropout, *args), "with dropout alone {}: what draws its masks?"
    first = seen_of(value, dropout, *args)["first"]
    return told.format(f"the resumed run leaves the unbroken one at update {first}") * (first > args[0])


exercises = {
    "15a": dict(name="estimate_loss", reference=reference_estimate, project=evaluate, slow=twin_estimate,
        survivors={"losses[name] = (nats / targets).item() => losses[name] = nats / targets": "as_floats"},
        inputs=inputs_estimate, call=two_estimates, properties=[calls_agree], wrong=mistakes(twin_estimate, {
            "no eval": ("model.eval()", "pass"), "left in eval": (MODE, "pass"),
            "always back to train": (MODE, "model.train()"),
            "train data for both": ("in batches", 'in splits["train"]'),
            "graph built": ("no_grad", "enable_grad"),
            "graph handed out": ("no_grad", "enable_grad", ".item()", ""),
            "gradients off for good": ("eval()", "eval(), torch.set_grad_enabled(False)"),
            "one batch": ("in batches", "in batches[:1]"),
            "as nanoGPT has it": ('"sum"', '"mean"', COUNT, "1", MODE, "model.train()"),
            "weighted by all positions": ('"sum")', '"mean") * y.numel()', COUNT, "y.numel()"),
            "mean of batch means": ('"sum"', '"mean"', COUNT, "1"),
            "all positions counted": (COUNT, "y.numel()"), "-1 taken for a letter": ("ignore_index=-1, ", ""),
        })),
    "15b": dict(name="clipped_step", reference=reference_step, project=clip_grad_norm_, slow=twin_step,
        inputs=inputs_step, call=one_update, gradients=False, properties=[only_shorter],
        numbers=lambda value, *args: dict(value, right=one_update(reference_step, *args)["length"]),
        also={"tensor": changed(twin_step, "return norm", "return torch.tensor(norm)")},
        forbidden=("get_total_norm", "clip_grads_with_norm_", "clip_grad_value_"), wrong=mistakes(twin_step, {
            "always rescales": (LONG, ANY),
            "each tensor by itself": (LONG, ANY, CLIP, "grad.mul_((limit / grad.norm()).clamp(max=1))"),
            "by value": (LONG, ANY, CLIP, "grad.clamp_(-limit, limit)"),
            "squared length": ("math.sqrt(sum", "(sum"),
            "lengths added up": ("math.sqrt(sum(g * g for", "(sum(grad.norm().item() for",
                                 " for g in grad.flatten().tolist()", ""),
            "after the step": ("    optimizer.step()\n", "", LONG, "optimizer.step()\n    " + LONG),
            "divided by zero": (LONG, ANY, CLIP, "grad.mul_(min(1, limit / norm))"),
            "always rescales, NaN": (LONG, ANY, CLIP, "grad.mul_(limit / torch.tensor(norm))"),
            "no step": ("    optimizer.step()\n", ""), "factor upside down": ("limit / norm", "norm / limit"),
            "length after clipping": ("return norm", "return min(norm, limit or norm)"),
            "0 stops everything": (LONG, "if limit < norm:"),
            "frozen parameters": ("if p.grad is not None", "if True"),
        })),
    "15c": dict(name="go_on", reference=reference_go_on, call=two_runs, gradients=False,
        inputs=lambda seed: [(0.2, 2, 4, 10 + seed), (0.0, 2, 5, 10 + seed)],  # dropout, save, end
        twin="the loop of train.py is no function; the lesson kills and resumes train.py itself",
        numbers=seen_of, properties=[what_is_lost], wrong=mistakes(reference_go_on, {
            "optimizer not saved": ('optimizer.load_state_dict(saved["optimizer"])', "pass"),
            "weights not saved": ('model.load_state_dict(saved["model"])', "pass"),
            "step not saved": ('start = saved["step"]', "pass"),
            "first batches again": ("batch(step)", "batch(step - start)"),
            "that many more": ("range(start, last)", "range(start, start + last)"),
            "last update again": ('"step": last', '"step": last - 1'),
            "one update left out": ('"step": last', '"step": last + 1'),
            "random state lost": (SEED, "pass"), "seeded once per call": (SEED, "seed_all(step - start)"),
            "same mask each update": (SEED, "seed_all(1)"), "rate never set": ("lr_at(step)", 'group["lr"]'),
            "eval mode": ("start = 0", "start = 0; model.eval()"),
            "references, not copies": ("copy.deepcopy", "dict"),
            "rate set once": ("lr_at(step)", "lr_at(start)"),
            "first group only": ("param_groups", "param_groups[:1]"),
            "gradients pile up": ("optimizer.zero_grad()", "pass"),
        })),
}  # fmt: skip

predictions = {
    "15.1": dict(answer=1307.0, tol=1.0),
    "15.2": dict(answer=0.4, tol=0.01),
    "15.3": dict(answer=6.0, tol=0.4),
}
