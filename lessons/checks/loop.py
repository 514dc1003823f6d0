"""What the grader knows about lesson 4: one training step, and a loop that ends where counting does."""

import contextlib
import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.autograd import Variable
from torch.optim.optimizer import register_optimizer_step_post_hook

from lessons.common import entropy, generator, pair_counts
from lessons.course import encoded


def loss_on(model, x, y, **options):
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten(), **options)


# ---- 4a: three steps of SGD with momentum, against the same by hand
def reference_train_step(model, opt, x, y):
    loss = loss_on(model, x, y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    return loss.item()


def twin_train_step(model, opt, x, y):
    table, (group,) = model.weight.data, opt.param_groups
    loss, gradient = 0.0, torch.zeros_like(table)
    for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True):
        p = table[a].exp() / table[a].exp().sum()
        loss -= math.log(p[b]) / x.numel()
        gradient[a] += p / x.numel()
        gradient[a, b] -= 1 / x.numel()
    memory = opt.state["by hand"]
    memory["v"] = group["momentum"] * memory.get("v", 0) + gradient
    table -= group["lr"] * memory["v"]
    return loss


def inputs_train_step(seed):
    g = generator(seed)
    letters = torch.randint(7, (3, 4, 6), generator=g)  # three batches of 4 x 5 letters and their followers
    return [(torch.randn(7, 7, generator=g), letters[..., :-1], letters[..., 1:], 1.7, 0.6)]


def three_steps(train_step, table, x, y, lr, momentum):
    """Losses and tables after each step. If a weight moved, it is no matter when .grad is cleared."""
    model = torch.nn.Embedding.from_pretrained(table.clone(), freeze=False)
    opt = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    losses, tables = [], []
    for batch in zip(x, y, strict=True):
        losses.append(train_step(model, opt, *batch))
        tables.append(model.weight.detach().clone())
    left = model.weight.grad is not None and bool(model.weight.grad.any())
    moved = not all(torch.equal(table, found) for found in tables)
    after = "weights moved" if moved else f"no weight moved, {'a' if left else 'no'} gradient is left"
    graphs = sum(getattr(loss, "requires_grad", False) for loss in losses)
    return dict(losses=losses, tables=tables, after=after, graphs=graphs)


def first_loss(train_step, table, x, y, lr, momentum):
    """The first loss is told before any weight has moved."""
    found = three_steps(train_step, table, x, y, lr, momentum)["losses"][0]
    right = F.cross_entropy(table[x[0]].flatten(0, 1), y[0].flatten()).item()
    return "" if abs(found - right) < 1e-3 else f"the first loss is {found:.3f}, where {right:.3f} is right"


def loss_falls(train_step, table, x, y, lr, momentum):
    """Twenty steps on one batch: its loss falls."""
    x, y = (batches[:1].expand(20, -1, -1) for batches in (x, y))
    first, *_, last = three_steps(train_step, table, x, y, 0.5, 0.0)["losses"]
    return "" if last < first else f"20 steps on one batch take its loss from {first:.3f} to {last:.3f}"


def stepping(loss=loss_on, order=("clear", "backward", "step"), told=lambda loss: loss.item()):
    """A train_step with another loss, another order of its three calls, or something else returned."""

    def train_step(model, opt, x, y):
        found = loss(model, x, y)
        calls = dict(clear=opt.zero_grad, backward=found.backward, step=opt.step)
        for name in order:
            calls[name]()
        return told(found)

    return train_step


def told_after(model, opt, x, y):
    reference_train_step(model, opt, x, y)
    return loss_on(model, x, y).item()


def viewed(model, x, y):
    logits = model(x)
    return F.cross_entropy(logits.view(logits.size(0), logits.size(2), logits.size(1)), y)


wrong_steps = {
    "no zero_grad": stepping(order=("backward", "step")),
    "cleared before the step": stepping(order=("backward", "clear", "step")),
    "no step": stepping(order=("clear", "backward")),
    "step before backward": stepping(order=("step", "clear", "backward")),
    "the tensor returned": stepping(told=lambda loss: loss),
    "x for y": stepping(lambda model, x, y: loss_on(model, x, x)),
    "x and y swapped": stepping(lambda model, x, y: loss_on(model, y, x)),
    "loss after the step": told_after,
    "sum, not mean": stepping(lambda model, x, y: loss_on(model, x, y, reduction="sum")),
    "softmax first": stepping(lambda model, x, y: loss_on(lambda x: torch.softmax(model(x), -1), x, y)),
    "not flattened": stepping(lambda model, x, y: F.cross_entropy(model(x), y)),
    "bits, not nats": stepping(lambda model, x, y: loss_on(model, x, y) / math.log(2)),
    "told in bits": stepping(told=lambda loss: loss.item() / math.log(2)),
    "last letter only": stepping(lambda model, x, y: loss_on(model, x[:, -1:], y[:, -1:])),
    "viewed, not transposed": stepping(viewed),
    "a rate of its own": lambda model, opt, x, y: reference_train_step(
        model, torch.optim.SGD(model.parameters(), lr=0.1), x, y),
    "without a graph": torch.no_grad()(reference_train_step),
}  # fmt: skip


# ---- 4b: any loop that ends at the counting answer is right, however it got there
def reference_learn(ids, V):
    model = torch.nn.Embedding(V, V)
    torch.nn.init.zeros_(model.weight)
    opt = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(200):
        i = torch.randint(len(ids) - 1, (3000,))
        reference_train_step(model, opt, ids[i], ids[i + 1])
    return model.weight.detach()


def twin_learn(ids, V):
    """From a table of zeros one gradient tells the counts: of the sum, it is n(a) / V - n(a, b)."""
    x, y = ids[:-1], ids[1:]
    table = torch.zeros(V, V, requires_grad=True)
    F.cross_entropy(table[x], y, reduction="sum").backward()
    counts = (x == torch.arange(V)[:, None]).sum(1, keepdim=True) / V - table.grad
    return counts.clamp(min=1e-3).log()


def counted(ids, V):
    """A pair that never came gets -V: e to the -V is as good as never."""
    return pair_counts(ids[:-1], ids[1:], V).log().clamp(min=-V)


def inputs_learn(seed):
    """40,000 letters of the text, from another place for each seed."""
    vocabulary, ids, _, _ = encoded()
    return [(ids[1000 * seed % (len(ids) - 40_000) :][:40_000].clone(), len(vocabulary))]


def watched(learn, ids, V, gradients=True):
    """What learn returns, how many backward passes ran, and for each step of an optimizer which one it was
    and the table after it. gradients=False: backward passes run, and make none."""
    engine, passes, steps = Variable._execution_engine, [], []  # backward and grad both go through it

    def run_backward(*args, **options):
        passes.append(1)
        return engine.run_backward(*args, **options) if gradients else ()

    def note(opt, *_):
        steps.append((opt, opt.param_groups[0]["params"][0].detach().clone()))

    hook = register_optimizer_step_post_hook(note)
    Variable._execution_engine = SimpleNamespace(run_backward=run_backward)
    try:
        return learn(ids, V), len(passes), steps
    finally:
        hook.remove()
        Variable._execution_engine = engine


def where_it_ends(learn, ids, V):
    """The kind of the table and, in words, where it has ended: endings are compared, not weights."""
    table, passes, steps = watched(learn, ids, V)
    if not isinstance(table, torch.Tensor) or table.shape != (V, V):
        return dict(table=table, ends="", found=dict)
    found = heights(table.detach(), ids, V) | dict(passes=passes)
    if passes < 10:  # is it as good without any gradient?
        with contextlib.suppress(Exception):
            found["counts"] = heights(watched(learn, ids, V, gradients=False)[0].detach(), ids, V)["loss"]
    later = [table for _, table in steps[len(steps) // 2 :] if table.shape == (V, V)]
    found["mean"] = heights(torch.stack(later).mean(0), ids, V)["loss"] if later else math.inf
    found["optimizers"] = len({id(opt) for opt, _ in steps if opt.state})  # plain SGD has nothing to keep
    # (functions are not compared: the numbers are for the hints)
    return dict(table=0 * table, ends=ending(table, found), found=lambda: found)


def heights(table, ids, V):
    """Nats per letter of a table, of it read backwards, of counted pairs, letters alone, a uniform guess."""
    shares = pair_counts(ids[:-1], ids[1:], V) / (len(ids) - 1.0)
    logs, alone = torch.log_softmax(table.float(), 1), entropy(shares.sum(0)).item()
    counted = (entropy(shares.flatten()) - entropy(shares.sum(1))).item()
    loss, backwards = (-(s * logs).sum().item() for s in (shares, shares.T))
    repeats = (shares.sum(1) * logs.diagonal().exp()).sum().item()  # the same letter is guessed again
    lowest = table <= table.min(1, keepdim=True).values  # what never came is so, and all of it alike
    missed = shares[lowest & (lowest.sum(1, keepdim=True) > 1)].sum().item()
    return dict(loss=loss, backwards=backwards, repeats=repeats, counted=counted, alone=alone,
                uniform=math.log(V), missed=missed)  # fmt: skip


def ending(table, found):
    """Where a loop has ended, in words."""
    if found["loss"] <= found["counted"] + 0.02:
        learned = found.get("counts", math.inf) > found["counted"] + 0.02
        return "at the counting answer" if learned else f"counted, backward ran: {found['passes'] > 0}"
    if table.max() == table.min():
        return "where it began"
    if found["repeats"] > 0.9:
        return "each letter is followed by itself"
    if found["backwards"] < found["alone"] < found["loss"]:
        return "the letter before is guessed"
    if table.min() >= 0 and (table.sum(1) - 1).abs().max() < 1e-3:
        return "probabilities, where logits are expected"
    if table.std(0).max() < 1e-3 and found["loss"] < found["alone"] + 0.1:
        return "at the letters alone"
    if found["optimizers"] > 10:
        return "on its way, with many optimizers"
    if found["passes"] >= 50 and found["missed"] > 0.02:
        return "a part of the pairs is learned"
    if found["passes"] >= 50 and found["mean"] < found["loss"] - 0.005:
        return "it jumps about"
    if found["loss"] > found["uniform"]:
        return "far " * (found["loss"] > found["uniform"] + 1.5) + "above a uniform guess"
    return "above the letters alone" if found["loss"] > found["alone"] else "on its way"


def learning(lr, steps, optimizer=torch.optim.Adam, rows=lambda table, x: table[x], target=lambda x, y: y,
             place=lambda ids: torch.randint(len(ids) - 1, (500,))):  # fmt: skip
    """A `learn` with other settings, other logits, or another target."""

    def learn(ids, V):
        table = torch.zeros(V, V, requires_grad=True)
        opt = optimizer([table], lr=lr)
        for _ in range(steps):
            i = place(ids)
            opt.zero_grad()
            F.cross_entropy(rows(table, ids[i]), target(ids[i], ids[i + 1])).backward()
            opt.step()
        return table.detach()

    return learn


def new_optimizers(ids, V):
    model = torch.nn.Embedding.from_pretrained(torch.zeros(V, V), freeze=False)
    for _ in range(25):
        i = torch.randint(len(ids) - 1, (500,))
        reference_train_step(model, torch.optim.Adam(model.parameters(), lr=0.1), ids[i], ids[i + 1])
    return model.weight.detach()


def bias_only(ids, V):
    bias = learning(0.3, 30, rows=lambda table, x: table[:1].expand(len(x), -1))(ids, V)
    return bias[:1].expand(V, -1)


def step_for_show(ids, V):
    table = counted(ids, V).requires_grad_()
    F.cross_entropy(table[ids[:50]], ids[1:51]).backward()
    torch.optim.SGD([table], lr=1e-3).step()
    return table.detach()


wrong_loops = {
    "rate too small": learning(0.1, 12, torch.optim.SGD),
    "rate too large": learning(1000, 12, torch.optim.SGD),
    "random start": lambda ids, V: torch.randn(V, V) + learning(0.1, 12, torch.optim.SGD)(ids, V),
    "stopped early": learning(0.1, 25),
    "bias only": bias_only,
    "trained on y=x": learning(1.0, 25, target=lambda x, y: x),
    "pairs turned round": lambda ids, V: learning(0.3, 30)(ids.flip(0), V),
    "probabilities returned": lambda ids, V: torch.softmax(counted(ids, V), 1),
    "counted, not learned": counted,
    "a step for show": step_for_show,
    "an optimizer each step": new_optimizers,
    "the same batch always": learning(0.1, 60, place=lambda ids: torch.arange(500)),
    "jumps at the end": learning(5.0, 60),
    "the table it began with": lambda ids, V: torch.zeros(V, V),
}  # fmt: skip

exercises = {
    "4a": dict(name="train_step", reference=reference_train_step,
        twin="the loop of train.py stands at the top level of the file, where it can be read and changed",
        slow=twin_train_step, inputs=inputs_train_step, call=three_steps, gradients=False,
        lint={"model": "a table of pairs is square"}, properties=[first_loss, loss_falls],
        also={"a tensor without graph": stepping(told=lambda loss: loss.detach())}, wrong=wrong_steps),
    "4b": dict(name="learn", reference=reference_learn,
        twin="train.py has the loop, but no table; what one gradient tells of the counts has to be as good",
        slow=twin_learn, inputs=inputs_learn, call=where_it_ends, gradients=False, needs=["4a"],
        numbers=lambda value, ids, V: value["found"](), wrong=wrong_loops),
}  # fmt: skip

predictions = {
    "4.1": dict(answer=4.174, tol=0.006),
    "4.2": dict(answer=2.452, tol=0.01),
}
