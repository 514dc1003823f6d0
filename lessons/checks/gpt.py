"""What the grader knows about lesson 13: a GPT, assembled."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lessons.common import fill, generator, normal, same
from model import GPT, MLP, GPTConfig, summed_nats

CONFIG = GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=3, n_embd=12, arch="gpt2", tie_weights=0)


# ---- 13a: the MLP. A module is compared by the shapes of its weights, and by what it does with given ones.
def reference_mlp(C):
    return MLP(GPTConfig(n_embd=C, n_head=1, arch="gpt2"))


def twin_mlp(C):
    module = nn.Module()
    module.up, module.down = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)

    def run(x):
        h = module.up(x)
        inner = math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)
        return module.down(0.5 * h * (1 + torch.tanh(inner)))

    module.forward = run
    return module


def inputs_mlp(seed):
    x, up, down = normal(generator(seed), (2, 5, 6), (24, 6), (6, 24))
    return [(x, up, down), (20 * x, up, down)]


def filled(build, x, up, down):
    """The shapes of the weights, and the output with these in `up` and `down`, and zeros in all others."""
    mlp = build(x.size(-1))
    weights = {name: torch.zeros_like(p) for name, p in mlp.named_parameters()}
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    for name, given in (("up.weight", up), ("down.weight", down)):
        if name in weights:
            weights[name] = given
    return dict(weights=shapes, output=functional_call(mlp, weights, (x,)))


gelu = partial(F.gelu, approximate="tanh")


def by_exponentials(h):
    h3 = math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)
    return 0.5 * h * (1 + (h3.exp() - (-h3).exp()) / (h3.exp() + (-h3).exp()))


def mlp(C, wide=4, bias=False, first=same, middle=gelu, last=same, residual=False):
    """The right answer, or wrong in one place."""
    module = nn.Module()
    module.up, module.down = nn.Linear(C, wide * C, bias=bias), nn.Linear(wide * C, C, bias=bias)
    module.forward = lambda x: last(module.down(middle(module.up(first(x))))) + (x if residual else 0)
    return module


def not_additive(build, x, up, down):
    """Without an activation two layers are one: then f(a + b) = f(a) + f(b)."""
    f = lambda x: filled(build, x, up, down)["output"]  # noqa: E731
    a, b = x[:1], x[1:]
    additive = torch.allclose(f(a + b), f(a) + f(b), atol=1e-3)
    return "f(a + b) is f(a) + f(b): two layers without anything between them are one" if additive else ""


# ---- 13b: forward and loss
def reference_forward(gpt, idx, targets):
    config = replace(CONFIG, block_size=gpt.wpe.num_embeddings)
    whole = SimpleNamespace(**vars(parts_of(gpt)), config=config, drop=same, to_logits=gpt.head)
    x = GPT.trunk(whole, idx)
    logits = whole.to_logits(x)
    return logits, summed_nats(logits, targets) / targets.numel()


def twin_forward(gpt, idx, targets):
    B, T = idx.shape
    x = gpt.wte(idx) + gpt.wpe(torch.arange(T))
    for block in gpt.blocks:
        x = block(x)
    logits = gpt.head(gpt.norm(x))
    nats = 0.0
    for b in range(B):
        for t in range(T):
            above = logits[b, t] - logits[b, t].max()  # else exp overflows
            nats = nats + above.exp().sum().log() - above[targets[b, t]]
    return logits, nats / (B * T)


def small_gpt(g):
    return fill(GPT(replace(CONFIG)), g)  # of its own config: tie() may change it


def parts_of(gpt):
    return SimpleNamespace(**{name: getattr(gpt, name) for name in ("wte", "wpe", "blocks", "norm", "head")})


def inputs_forward(seed):
    g = generator(seed)
    idx, targets = torch.randint(11, (3, 5), generator=g), torch.randint(11, (3, 5), generator=g)
    sure = small_gpt(g)
    sure.head.weight.data *= 300  # its logits are far beyond what exp can bear
    return [(parts_of(gpt), idx, targets) for gpt in (small_gpt(g), sure)]


def with_gradients(forward, gpt, idx, targets):
    """Logits, loss, and how large the loss's gradient is in each part."""
    found = forward(gpt, idx, targets)
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(x, torch.Tensor) for x in found)):
        raise TypeError("two tensors are to be returned: logits, loss")
    logits, loss = found
    if loss.requires_grad:
        loss.sum().backward()
    size = lambda part: sum(p.grad.norm().item() for p in part.parameters() if p.grad is not None)  # noqa: E731
    sizes = {name: size(part) for name, part in vars(gpt).items()}
    return dict(logits=logits, loss=loss, gradients=sizes)


def nats(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def forward(gpt, idx, targets, loss=nats, first=0, positions=True, chained=True, start=same, end=True):
    """The right answer, or wrong in one place."""
    x = gpt.wte(idx)
    x = start(x + gpt.wpe(torch.arange(first, first + idx.size(1))) if positions else x)
    embedded = x
    for block in gpt.blocks:
        x = block(x if chained else embedded)
    logits = gpt.head(gpt.norm(x) if end else x)
    return logits, loss(logits, targets)


def by_hand(top):
    return lambda x, y: F.nll_loss((x - top(x) - (x - top(x)).exp().sum(-1, keepdim=True).log()).mT, y)


@torch.no_grad()
def descend(gpt, lr=0.3):
    """A step of plain gradient descent."""
    for parameter in gpt.parameters():
        if parameter.grad is not None:
            parameter -= lr * parameter.grad
            parameter.grad = None


def trained_on_abc(forward, V=5, steps=100):
    """A small GPT after so many steps on "abcabc...": (it, its losses)."""
    torch.manual_seed(1)
    shape = dict(vocab_size=V, block_size=8, n_layer=1, n_head=2, n_embd=16)
    gpt = GPT(GPTConfig(**shape, arch="gpt2", tie_weights=0))
    losses = []
    for step in range(steps):
        ids = (torch.arange(9) + step) % 3  # a window that begins with a, b or c
        loss = forward(parts_of(gpt), ids[None, :-1], ids[None, 1:])[1]
        loss.backward()
        descend(gpt)
        losses.append(loss.item())
    return gpt, losses


@torch.no_grad()
def follows(forward, gpt, letter):
    """What a model trained on "abcabc..." says after a text that ends in this letter."""
    ids = ((torch.arange(-4, 1) + "abc".index(letter)) % 3)[None]
    return "abcde"[int(forward(parts_of(gpt), ids, ids)[0][0, -1, :5].argmax())]


def knows_abc(forward, gpt, idx, targets):
    said = follows(forward, trained_on_abc(forward)[0], "a")
    return "" if said == "b" else f"trained for 100 steps on abcabc..., your model says that {said} follows a"


# ---- 13c: the tied head
def reference_tie(gpt):
    kept = {name: w.clone() for name, w in gpt.state_dict().items() if name != "head.weight"}
    gpt.config.tie_weights = 1
    gpt.init_weights()
    gpt.load_state_dict(kept, strict=False)
    return sum(p.numel() for p in gpt.parameters())


def twin_tie(gpt):
    gpt.head.weight = gpt.wte.weight
    V, C = gpt.wte.weight.shape
    T, L = gpt.wpe.weight.size(0), len(gpt.blocks)
    return V * C + T * C + 12 * L * C * C + (2 * L + 1) * C


def inputs_tie(seed):
    g = generator(seed)
    return [(small_gpt(g), torch.randint(11, (3, 5), generator=g))]


def after_a_step(tie, gpt, idx):
    """The count, whether head and embedding are one parameter and equal after a step, and how it began."""
    table, old = gpt.wte.weight.detach().clone(), gpt.head.weight.detach().clone()
    count = tie(gpt)
    one, start = gpt.head.weight is gpt.wte.weight, gpt.head.weight.detach().clone()
    begins_as = "the embedding" if start.equal(table) else "the old head" if start.equal(old) else "neither"
    nats(gpt(idx), idx).backward()
    descend(gpt)
    equal = torch.equal(gpt.head.weight, gpt.wte.weight)
    return {"count": count, "one parameter": one, "equal after a step": equal, "head begins as": begins_as}


def counted(gpt):
    return sum(p.numel() for p in gpt.parameters())


def changed(part, name, value, count=counted):
    """A tie() that sets an attribute of a part ("" is the whole) and counts."""

    def tie(gpt):
        setattr(gpt.get_submodule(part), name, value(gpt))
        return count(gpt)

    return tie


def share_data(gpt):
    gpt.head.weight.data = gpt.wte.weight.data
    return counted(gpt)


def tied_and(count):
    return changed("head", "weight", lambda gpt: gpt.wte.weight, count)


exercises = {
    "13a": dict(name="FeedForward", reference=reference_mlp, project=MLP, slow=twin_mlp, inputs=inputs_mlp,
        call=filled, tol=1e-5,  # tells the two forms of GELU apart
        also={"exact GELU": partial(mlp, middle=F.gelu)}, properties=[not_additive], wrong={
            "no activation": partial(mlp, middle=same),
            "hidden as wide as C": partial(mlp, wide=1),
            "with biases": partial(mlp, bias=True),
            "activation at the end": partial(mlp, middle=same, last=gelu),
            "activation twice": partial(mlp, last=gelu),
            "activation first": partial(mlp, first=gelu, middle=same),
            "residual inside": partial(mlp, residual=True),
            "ReLU": partial(mlp, middle=F.relu),
            "SiLU": partial(mlp, middle=F.silu),
            "tanh by exponentials": partial(mlp, middle=by_exponentials),
            "tanh": partial(mlp, middle=torch.tanh),
        }),
    "13b": dict(name="forward", reference=reference_forward, project=GPT, slow=twin_forward,
        inputs=inputs_forward, call=with_gradients, properties=[knows_abc], wrong={
            "target shifted twice": partial(forward, loss=lambda x, y: nats(x[:, :-1], y[:, 1:])),
            "input as target": lambda gpt, idx, targets: forward(gpt, idx, idx),
            "reshaped, not transposed": partial(
                forward, loss=lambda x, y: F.cross_entropy(x.reshape(len(x), -1, x.size(1)), y)),
            "only the last position": partial(forward, loss=lambda x, y: F.cross_entropy(x[:, -1], y[:, -1])),
            "softmax before the loss": partial(forward, loss=lambda x, y: nats(torch.softmax(x, -1), y)),
            "sum, not mean": partial(forward, loss=lambda x, y: nats(x, y) * y.numel()),
            "one loss per token": partial(
                forward, loss=lambda x, y: F.cross_entropy(x.mT, y, reduction="none")),
            "exp overflows": partial(forward, loss=by_hand(lambda x: 0.0)),
            "one maximum for all": partial(forward, loss=by_hand(torch.max)),
            "detached loss": partial(forward, loss=lambda x, y: nats(x, y).detach()),
            "no positions": partial(forward, positions=False),
            "positions from 1": partial(forward, first=1),
            "final norm missing": partial(forward, end=False),
            "final norm first": lambda gpt, *rest: forward(gpt, *rest, start=gpt.norm, end=False),
            "blocks side by side": partial(forward, chained=False),
            "probabilities for logits": lambda gpt, idx, targets: (
                forward(gpt, idx, targets)[0].softmax(-1), forward(gpt, idx, targets)[1]),
        }),
    "13c": dict(name="tie", reference=reference_tie, project=GPT, slow=twin_tie, inputs=inputs_tie,
        call=after_a_step, also={"the head's numbers": changed("wte", "weight", lambda gpt: gpt.head.weight)},
        wrong={
            "copied": changed("head", "weight", lambda gpt: nn.Parameter(gpt.wte.weight.detach().clone())),
            "numbers shared, parameter not": share_data,
            "a head of its own": changed("", "head", lambda gpt: nn.Linear(12, 11, bias=False)),
            "tied, then drawn anew": changed("head", "weight", lambda gpt: nn.init.normal_(gpt.wte.weight)),
            "transposed": changed("head", "weight", lambda gpt: nn.Parameter(gpt.wte.weight.T)),
            "module instead of weight": changed("", "head", lambda gpt: gpt.wte),
            "counted twice": tied_and(lambda gpt: sum(w.numel() for w in gpt.state_dict().values())),
            "not tied, only subtracted": lambda gpt: counted(gpt) - gpt.head.weight.numel(),
            "table not counted": tied_and(lambda gpt: counted(gpt) - gpt.wte.weight.numel()),
            "positions not counted": tied_and(lambda gpt: counted(gpt) - gpt.wpe.weight.numel()),
            "matrices only": tied_and(lambda gpt: sum(p.numel() for p in gpt.parameters() if p.dim() == 2)),
            "tensors counted": tied_and(lambda gpt: len([*gpt.parameters()])),
        }),
}  # fmt: skip

predictions = {
    "13.1": dict(answer=786_432.0, tol=0.5),
}
