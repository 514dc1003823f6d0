"""What the grader knows about lesson 20: one batch by heart, dropout, and where the val loss turns."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import dropout

from lessons.common import generator, mistakes
from runtime.origin import Progress

V, T = 11, 7  # letters and length of the toy texts


# ---- 20a: one batch
class Small(nn.Module):
    """Tokens and places, dropout, two layers: large enough to know 21 letters by heart."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe, self.drop = nn.Embedding(V, 16), nn.Embedding(T, 16), nn.Dropout(0.3)
        self.up, self.head = nn.Linear(16, 32), nn.Linear(32, V)

    def forward(self, x):
        h = self.drop(self.wte(x) + self.wpe(torch.arange(x.size(1))))
        return self.head(F.relu(self.up(h)))


def twin_overfit(model, optimizer, batch, most):
    was_training, losses = model.training, []
    model.eval()
    x, y = batch()
    while len(losses) < most:
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        losses.append(loss.item())
        if loss < 0.1:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.train(was_training)
    return losses


def inputs_overfit(seed):
    return [(10 + seed, 40, True), (20 + seed, 4, True), (30 + seed, 12, False)]  # seed, most, mode


def by_heart(overfit, seed, most, training):
    """The losses it returns, and what it leaves behind."""
    torch.default_generator.manual_seed(seed)
    model, g, given, modes = Small().train(training), generator(seed), [], []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.04, fused=True)

    def batch():
        x = torch.stack([torch.randperm(V, generator=g)[:3] for _ in range(T)], 1)  # no place twice the same
        given.append((x, torch.randint(V, (3, T), generator=g)))
        return given[-1]

    model.register_forward_hook(lambda m, args, out: modes.append(m.training))
    losses = overfit(model, optimizer, batch, most)
    trained, dropped, x, y = model.training, any(modes), *(given or [batch()])[0]
    with torch.no_grad():
        after = F.cross_entropy(model.eval()(x).flatten(0, 1), y.flatten()).item()
    return {
        "losses": losses,
        "batches asked for": len(given),
        "loss of the first batch afterwards": after,
        "dropout was on": dropped,
        "in train mode afterwards": trained,
    }


def heart_facts(value, seed, most, training):
    last = value["losses"][-1]
    return dict(
        first=value["losses"][0], last=last, made=len(value["losses"]), asked=value["batches asked for"]
    )


LOSS, STOP = "F.cross_entropy(model(x).flatten(0, 1), y.flatten())", "if loss < 0.1:"
BATCH, LOOP, MODE = "    x, y = batch()\n", "while len(losses) < most:", "model.train(was_training)"
NOT_BY_HEART = mistakes(twin_overfit, {
    "new batch each update": (BATCH, "", LOOP + "\n", LOOP + "\n        x, y = batch()\n"),
    "dropout left on": ("model.eval()", "pass"),
    "train mode": ("model.eval()", "model.train()"),
    "y is x": ("y.flatten())", "x.flatten())"),
    "left in eval": (MODE, "pass"),
    "always back to train": (MODE, "model.train()"),
    "gradients pile up": ("        optimizer.zero_grad()\n", ""),
    "no step": ("        optimizer.step()\n", ""),
    "never stops": (STOP, "if False:"),
    "one update too many": (STOP,
        "optimizer.zero_grad(), loss.backward(), optimizer.step()\n        if loss < 0.1:",
        "    break\n        optimizer.zero_grad()\n        loss.backward()\n        optimizer.step()\n",
        "    break\n"),
    "last loss left out": (STOP, "if loss < 0.1:\n            losses.pop()"),
    "most ignored": (LOOP, "while len(losses) < 1000:"),
    "one more than most": ("< most", "<= most"),
    "sum of the losses": (LOSS, 'F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")'),
    "last letter only": (LOSS, "F.cross_entropy(model(x)[:, -1], y[:, -1])"),
    "logits not transposed": (LOSS, "F.cross_entropy(model(x).mT.flatten(0, 1).view(-1, V), y.flatten())"),
    "tensors kept": ("loss.item()", "loss"),
})  # fmt: skip


# ---- 20b: judged by frequencies, however the random numbers are drawn
def reference_dropout(x, p, training):
    return dropout(x, p, training)


def twin_dropout(x, p, training):
    if not training:
        return x
    kept = torch.rand(x.shape) >= p
    return x * kept / (1 - p)


def inputs_dropout(seed):
    x = torch.randn(40, 25, 30, generator=generator(seed))
    return [(x, 0.3, True), (x, 0.3, False), (x, 0.8, True), (x, 0.0, True)]


def what_is_dropped(dropout, x, p, training):
    """Shares and factors, not the numbers themselves."""
    source = x.clone().requires_grad_()
    given = source * 1
    out, again = dropout(given, p, training), dropout(given, p, training)
    zero = out == 0
    shape, dtype = tuple(out.shape), str(out.dtype)
    share, shared = zero.float().mean().item(), "no"
    for axis, name in enumerate(("all texts", "all tokens of a text", "all features of a token")):
        if zero.any() and not zero.all() and (zero == zero.narrow(axis, 0, 1)).all():
            shared = name
    likely = abs(share - p) <= 5.5 * math.sqrt(p * (1 - p) / x.numel())  # once in 25 million
    factors = (out / x)[~zero].detach() if not zero.all() else torch.zeros(1)
    (grad,) = torch.autograd.grad(out.sum(), source, allow_unused=True) if out.requires_grad else (None,)
    return {
        "shape and type": f"{shape} {dtype}",
        "share of zeros": "p" if (likely or shared != "no") and training else f"{share:.1f}",
        "one draw for": shared,
        "smallest factor": factors.min().item(),
        "largest factor": factors.max().item(),
        "the same mask twice": torch.equal(zero, again == 0),
        "gradient as the mask": grad is not None and torch.allclose(grad * x, out.detach(), atol=1e-4),
        "x as it was": torch.equal(given, x),
    }


def drop_facts(value, x, p, training):
    return dict(share=value["share of zeros"], factor=value["largest factor"], p=p)


KEPT, RETURN = "torch.rand(x.shape) >= p", "x * kept / (1 - p)"
NOT_DROPOUTS = mistakes(twin_dropout, {
    "not divided": (RETURN, "x * kept"),
    "multiplied, not divided": (RETURN, "x * kept * (1 - p)"),
    "divided by p": (RETURN, "x * kept / max(p, 1e-3)"),
    "p means keep": (KEPT, "torch.rand(x.shape) < p", RETURN, "x * kept / max(p, 1e-3)"),
    "mask upside down": (KEPT, "torch.rand(x.shape) < p"),
    "normal, not uniform": (KEPT, "torch.randn(x.shape) >= p"),
    "the same mask each call": (KEPT, "torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) >= p"),
    "active in evaluation": ("if not training:", "if False:"),
    "never active": ("if not training:", "if True:"),
    "mode upside down": ("if not training:", "if training:"),
    "scaled in evaluation": ("return x\n", "return x * (1 - p)\n", RETURN, "x * kept"),
    "scaled in both": ("return x\n", "return x / (1 - p)\n"),
    "whole tokens": (KEPT, "torch.rand(x.shape[:2] + (1,)) >= p"),
    "whole channels": (KEPT, "torch.rand(x.size(0), 1, x.size(2)) >= p"),
    "one mask for all texts": (KEPT, "torch.rand(x.shape[1:]) >= p"),
    "one draw for all": (KEPT, "torch.rand(()) >= p"),
    "gradient lost": (RETURN, "x.detach() * kept / (1 - p)"),
    "gradient of all": (RETURN, "x + (x * kept / (1 - p) - x).detach()"),
    "changed in place": (RETURN, "x.mul_(kept).div_(1 - p)"),
})  # fmt: skip


# ---- 20c: where val turns
def reference_turn(steps, train, val):
    progress, gaps = Progress(), {}
    for progress.step, on_train, on_val in zip(steps, train, val, strict=True):  # noqa: B020
        gaps[progress.step] = on_val - on_train
        progress.note_losses(on_train, on_val, 0.0)
    return progress.best_step, gaps[progress.best_step]


def twin_turn(steps, train, val):
    best = min(loss for loss in val if loss == loss)
    place = val.index(best)
    return steps[place], best - train[place]


def inputs_turn(seed):
    g = generator(seed)
    n = 24
    place = torch.arange(n)
    train = 4 - 3.2 * (1 - torch.exp(-place / 8)) + 0.02 * torch.rand(n, generator=g)
    train[21] -= 0.4  # its lowest is not its last
    val = 2.2 + 1.7 * torch.exp(-place / 3) + 0.004 * (place - 9).clamp(min=0) ** 2
    val[4] += 0.5  # a bump
    val[11] = val[13] = val.min() - 0.1  # twice the lowest
    steps = (40 * place + 3 * place**2).tolist()  # not evenly
    nan = [math.nan]
    return [
        (steps, train.tolist(), val.tolist()),
        ([*steps, 4000], [*train.tolist(), 0.7], [*val.tolist(), *nan]),
        (steps[:9], train[:9].tolist(), (4.5 - 0.3 * place[:9]).tolist()),  # it never turns
    ]


PLACE, GIVEN = "place = val.index(best)", "return steps[place], best - train[place]"
NOT_TURNS = mistakes(twin_turn, {
    "minimum of train": (PLACE, "place = train.index(min(train))", "best - train", "val[place] - train"),
    "last step": (PLACE, "place = len(val) - 1", "best - train", "val[place] - train"),
    "where the curves cross": (PLACE, "place = next((i for i in range(len(val)) if val[i] > train[i]), 0)",
        "best - train", "val[place] - train"),
    "first rise": (PLACE,
        "place = next((i for i in range(len(val) - 1) if val[i + 1] > val[i]), len(val) - 1)", "best - train",
        "val[place] - train"),
    "widest gap": (PLACE, "place = max(range(len(val)), key=lambda i: val[i] - train[i])", "best - train",
        "val[place] - train"),
    "narrowest gap": (PLACE, "place = min(range(len(val)), key=lambda i: abs(val[i] - train[i]))",
        "best - train", "val[place] - train"),
    "the last of equal ones": (PLACE, "place = len(val) - 1 - val[::-1].index(best)"),
    "nan is the lowest": ("min(loss for loss in val if loss == loss)", "torch.tensor(val).min().item()",
        PLACE, "place = torch.tensor(val).argmin().item()"),
    "highest": ("min(loss", "max(loss"),
    "an index": ("steps[place]", "place"),
    "gap at the end": ("best - train[place]", "val[-1] - train[-1]"),
    "gap to the lowest train": ("train[place]", "min(train)"),
    "gap upside down": ("best - train[place]", "train[place] - best"),
    "ratio, not gap": ("best - train", "best / train"),
    "val in place of gap": ("best - train[place]", "best"),
})  # fmt: skip

exercises = {
    "20a": dict(
        name="overfit", reference=twin_overfit, inputs=inputs_overfit, call=by_heart, gradients=False,
        survivors={"if loss < 0.1: => if loss <= 0.1:": "no loss is 0.1 exactly"},
        twin="the loop of train.py is no function, and never trains on one batch", tol=1e-3,
        wrong=NOT_BY_HEART, numbers=heart_facts,
    ),
    "20b": dict(
        name="dropout", reference=reference_dropout, project=dropout, slow=twin_dropout,
        inputs=inputs_dropout,
        call=what_is_dropped, gradients=False, wrong=NOT_DROPOUTS, numbers=drop_facts,
        forbidden=("Dropout", "alpha_dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d"),
        survivors={"kept = torch.rand(x.shape) >= p => kept = torch.rand(x.shape) > p": "equal once in 16 "
        "million"},
    ),
    "20c": dict(
        name="turning_point", reference=reference_turn, project=Progress, slow=twin_turn, inputs=inputs_turn,
        gradients=False, wrong=NOT_TURNS,
    ),
}  # fmt: skip

predictions = {
    "20.1": dict(answer=0.01, tol=0.06),
    "20.2": dict(answer=1.25, tol=0.01),
}
