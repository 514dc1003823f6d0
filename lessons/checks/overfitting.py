"""What the grader knows about lesson 20: one batch by heart, dropout, and where the val loss turns."""

import inspect
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import dropout

from runtime.origin import Progress

V, T = 11, 7  # letters and length of the toy texts


def changed(function, *swaps):
    """A function with a mistake: a place of its source as it is, as it is then, the next place ..."""
    source, names = inspect.getsource(function), dict(globals())
    for before, after in zip(swaps[::2], swaps[1::2], strict=True):
        assert before in source, before
        source = source.replace(before, after)
    exec(source, names)
    return names[function.__name__]


def mistakes(function, table):
    return {name: (changed(function, *swaps), hint) for name, (*swaps, hint) in table.items()}


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
    model, g, given, modes = Small().train(training), torch.Generator().manual_seed(seed), [], []
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
    "new batch each update": (BATCH, "", LOOP + "\n", LOOP + "\n        x, y = batch()\n",
        "You asked for {asked} batches, and the loss ends at {last:.2f}. How many are to be learned by "
        "heart?"),
    "dropout left on": ("model.eval()", "pass",
        "The loss ends at {last:.2f} after {made} updates. Who hides other numbers at each of them?"),
    "train mode": ("model.eval()", "model.train()",
        "You switch to train mode, where dropout is on. In which mode is it off?"),
    "y is x": ("y.flatten())", "x.flatten())",
        "The targets are the inputs: the model only has to copy. What is it to predict?"),
    "left in eval": (MODE, "pass",
        "The losses are right, but dropout stays off for all that follows. How was the mode before?"),
    "always back to train": (MODE, "model.train()",
        "It came in eval mode and leaves in train mode. How was it before?"),
    "gradients pile up": ("        optimizer.zero_grad()\n", "",
        "Each update is made with all gradients so far. Who empties them?"),
    "no step": ("        optimizer.step()\n", "",
        "The loss stays at {last:.2f}. Is a gradient computed, still there at the step, and is there a "
        "step?"),
    "never stops": (STOP, "if False:",
        "{made} updates are made, the loss is below the line long before. Who looks?"),
    "one update too many": (STOP,
        "optimizer.zero_grad(), loss.backward(), optimizer.step()\n        if loss < 0.1:",
        "    break\n        optimizer.zero_grad()\n        loss.backward()\n        optimizer.step()\n",
        "    break\n",
        "The loss is below 0.1, and still one more update is made. When do you look?"),
    "last loss left out": (STOP, "if loss < 0.1:\n            losses.pop()",
        "The loss below 0.1 is not in your list: it is what one wants to see."),
    "most ignored": (LOOP, "while len(losses) < 1000:",
        "You made more than `most` updates. What if a bug keeps the loss up?"),
    "one more than most": ("< most", "<= most",
        "You went through the loop {made} times. How many updates may it be at most?"),
    "sum of the losses": (LOSS, 'F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")',
        "The first loss is {first:.1f}, and ln 11 is 2.4. Is it a mean over targets?"),
    "last letter only": (LOSS, "F.cross_entropy(model(x)[:, -1], y[:, -1])",
        "Each window has many targets, one for each letter. You use the last."),
    "logits not transposed": (LOSS, "F.cross_entropy(model(x).mT.flatten(0, 1).view(-1, V), y.flatten())",
        "Logits and targets are in different orders. Which axis is V, and which are joined?"),
    "tensors kept": ("loss.item()", "loss",
        "Your list holds tensors, and with each of them its graph. What makes a number of one?"),
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
    x = torch.randn(40, 25, 30, generator=torch.Generator().manual_seed(seed))
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
    "not divided": (RETURN, "x * kept",
        "What is kept stays as it is, so the mean shrinks to 1 - p of it. What restores it?"),
    "multiplied, not divided": (RETURN, "x * kept * (1 - p)",
        "What is kept gets smaller still: {factor:.2f}. Which way does the mean go back up?"),
    "divided by p": (RETURN, "x * kept / max(p, 1e-3)",
        "The factor is {factor:.2f} for p = {p}. Which share is kept: p, or 1 - p?"),
    "p means keep": (KEPT, "torch.rand(x.shape) < p", RETURN, "x * kept / max(p, 1e-3)",
        "A share of {share} is zero where p is {p}. Is p what is dropped, or what is kept?"),
    "mask upside down": (KEPT, "torch.rand(x.shape) < p",
        "A share of {share} is zero where p is {p}. Which numbers does the comparison keep?"),
    "normal, not uniform": (KEPT, "torch.randn(x.shape) >= p",
        "A share of {share} is zero where p is {p}. Which draws are spread evenly from 0 to 1?"),
    "the same mask each call": (KEPT, "torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) >= p",
        "Two calls drop the same numbers: then the model learns to do without just these."),
    "active in evaluation": ("if not training:", "if False:",
        "In evaluation numbers are dropped, too: two calls differ. Who says which mode it is?"),
    "never active": ("if not training:", "if True:", "Nothing is ever dropped. When is it to happen?"),
    "mode upside down": ("if not training:", "if training:",
        "It drops in evaluation and not in training. Which of the two should it be?"),
    "scaled in evaluation": ("return x\n", "return x * (1 - p)\n", RETURN, "x * kept",
        "Scaled in evaluation, not in training: that was the first way. Here evaluation returns x as it is."),
    "scaled in both": ("return x\n", "return x / (1 - p)\n",
        "In evaluation nothing is dropped. What is there to make up for?"),
    "whole tokens": (KEPT, "torch.rand(x.shape[:2] + (1,)) >= p",
        "All features of a token vanish together: whole tokens are gone. How many draws are needed?"),
    "whole channels": (KEPT, "torch.rand(x.size(0), 1, x.size(2)) >= p",
        "A feature vanishes from all tokens of a text at once. How many draws are needed?"),
    "one mask for all texts": (KEPT, "torch.rand(x.shape[1:]) >= p",
        "All texts of the batch lose the same numbers. How many draws are needed?"),
    "one draw for all": (KEPT, "torch.rand(()) >= p",
        "All numbers vanish or none: that is one draw. How many are needed?"),
    "gradient lost": (RETURN, "x.detach() * kept / (1 - p)",
        "The values are right, but no gradient passes. What cuts it off?"),
    "gradient of all": (RETURN, "x + (x * kept / (1 - p) - x).detach()",
        "The values are right, but dropped numbers get a gradient, too."),
    "changed in place": (RETURN, "x.mul_(kept).div_(1 - p)",
        "x itself is changed: the stream still needs it. Write into a new tensor."),
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
    g = torch.Generator().manual_seed(seed)
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
    "minimum of train": (PLACE, "place = train.index(min(train))", "best - train", "val[place] - train",
        "There the training loss is lowest. Which curve tells of other texts?"),
    "last step": (PLACE, "place = len(val) - 1", "best - train", "val[place] - train",
        "That is the last step. Where was val lowest?"),
    "where the curves cross": (PLACE, "place = next((i for i in range(len(val)) if val[i] > train[i]), 0)",
        "best - train", "val[place] - train",
        "There val crosses train. It may fall long after that."),
    "first rise": (PLACE,
        "place = next((i for i in range(len(val) - 1) if val[i + 1] > val[i]), len(val) - 1)", "best - train",
        "val[place] - train",
        "After that step val rises, and then it falls below it again: a bump."),
    "widest gap": (PLACE, "place = max(range(len(val)), key=lambda i: val[i] - train[i])", "best - train",
        "val[place] - train",
        "There the gap is widest: that is long after val has turned."),
    "narrowest gap": (PLACE, "place = min(range(len(val)), key=lambda i: abs(val[i] - train[i]))",
        "best - train", "val[place] - train",
        "There the curves are nearest. Which of them is to be lowest?"),
    "the last of equal ones": (PLACE, "place = len(val) - 1 - val[::-1].index(best)",
        "Val is as low at an earlier step. Which of the two took less?"),
    "nan is the lowest": ("min(loss for loss in val if loss == loss)", "torch.tensor(val).min().item()",
        PLACE, "place = torch.tensor(val).argmin().item()",
        "A nan is neither low nor high, and here it is taken for the lowest."),
    "highest": ("min(loss", "max(loss", "There val is highest."),
    "an index": ("steps[place]", "place", "That is the place in the list. Which step stands there?"),
    "gap at the end": ("best - train[place]", "val[-1] - train[-1]",
        "The step is right, the gap is that of the end. Take both losses at the same step."),
    "gap to the lowest train": ("train[place]", "min(train)",
        "The step is right. The gap is to the training loss of the same step."),
    "gap upside down": ("best - train[place]", "train[place] - best",
        "The step is right. Which of the losses is the larger, as a rule?"),
    "ratio, not gap": ("best - train", "best / train", "The step is right. A gap is a difference."),
    "val in place of gap": ("best - train[place]", "best",
        "The step is right. The gap is the distance of the curves, not the height of one."),
})  # fmt: skip

exercises = {
    "20a": dict(
        name="overfit", reference=twin_overfit, inputs=inputs_overfit, call=by_heart, gradients=False,
        survivors={"if loss < 0.1: => if loss <= 0.1:": "no loss is 0.1 exactly"},
        twin="the loop of train.py is no function, and never trains on one batch", tol=1e-3,
        wrong=NOT_BY_HEART, numbers=heart_facts,
        hints=[
            "If it learns this batch and no other, how often is batch() called, and what may not be hidden?",
            "Remember the mode, switch dropout off, fetch once; then the loop of lesson 4; the mode at the "
            "end.",
            "eval; x, y once; up to `most` times: loss, append, break below 0.1, zero_grad, backward, step; "
            "mode",
        ],
    ),
    "20b": dict(
        name="dropout", reference=reference_dropout, project=dropout, slow=twin_dropout,
        inputs=inputs_dropout,
        call=what_is_dropped, gradients=False, wrong=NOT_DROPOUTS, numbers=drop_facts,
        forbidden=("Dropout", "alpha_dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d"),
        survivors={"kept = torch.rand(x.shape) >= p => kept = torch.rand(x.shape) > p": "equal once in 16 "
        "million"},
        hints=[
            "How many of 1,000 ones are left with p = 0.3, and what must each become for the sum to be "
            "1,000?",
            "A draw from 0 to 1 for each number of x, compared with p; what is kept is made larger.",
            "in training: x * (uniform draws of the shape of x >= p) / (1 - p); else x",
        ],
    ),
    "20c": dict(
        name="turning_point", reference=reference_turn, project=Progress, slow=twin_turn, inputs=inputs_turn,
        gradients=False, wrong=NOT_TURNS,
        hints=[
            "Which of the two curves knows about text that was not trained on?",
            "First the lowest val loss that is a number, then its first place, then both losses at that "
            "place.",
            "lowest = least of val without nan; place = first index of it; step there, lowest - train there",
        ],
    ),
}  # fmt: skip

predictions = {
    "20.1": dict(
        ask="loss in nats of one batch of 4 windows of 32 letters, after 60 updates on it alone",
        answer=0.01,
        tol=0.06,
        wrong={
            2.45: "2.45 is what pairs of letters cost on all of the text; one batch is learned by heart: "
            "0.05.",
            1.5: "1.5 is what a good model costs on new text; this text it has seen 60 times: 0.01.",
            4.17: "4.17 is where it begins; one batch is learned by heart: 0.01.",
        },
    ),
    "20.2": dict(
        ask="dropout with p = 0.2: in training each number that is kept is multiplied by",
        answer=1.25,
        tol=0.01,
        wrong={
            0.8: "0.8 is the share that is kept; what is kept is divided by it: 1.25.",
            5.0: "5 is 1 / p; it is 1 / (1 - p) = 1.25.",
            1.2: "1.2 is 1 + p: then 0.96 of the mean arrives. 1 / 0.8 is 1.25.",
            1.0: "Then the mean would shrink to 0.8 of it; divided by 0.8 it stays: 1.25.",
        },
    ),
}
