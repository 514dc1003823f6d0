"""What the grader knows about lesson 13: a GPT, assembled."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from model import GPT, MLP, GPTConfig, summed_nats

CONFIG = GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=3, n_embd=12, arch="gpt2", tie_weights=0)


# ---- 13a: the MLP. A module is compared by the shapes of its weights, and by what it does with given ones.
def reference_mlp(C):
    return MLP(GPTConfig(n_embd=C, n_head=1, arch="gpt2"))


def twin_mlp(C):
    mlp = nn.Module()
    mlp.up = nn.Linear(C, 4 * C, bias=False)
    mlp.down = nn.Linear(4 * C, C, bias=False)

    def forward(x):
        h = mlp.up(x)
        inner = math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)
        return mlp.down(0.5 * h * (1 + torch.tanh(inner)))

    mlp.forward = forward
    return mlp


def inputs_mlp(seed):
    g = torch.Generator().manual_seed(seed)
    return [tuple(torch.randn(*shape, generator=g) for shape in ((2, 5, 6), (24, 6), (6, 24)))]


def filled(build, x, up, down):
    """The shapes of the weights, and the output with these in `up` and `down`, and zeros in all others."""
    mlp = build(x.size(-1))
    weights = {name: torch.zeros_like(p) for name, p in mlp.named_parameters()}
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    for name, given in (("up.weight", up), ("down.weight", down)):
        if name in weights:
            weights[name] = given
    return dict(weights=shapes, output=functional_call(mlp, weights, (x,)))


def gelu(h):
    return F.gelu(h, approximate="tanh")


def same(h):
    return h


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


wrong_mlp = {
    "no activation": (partial(mlp, middle=same),
        "Two matrices with nothing between them are one matrix. What stands between?"),
    "hidden as wide as C": (partial(mlp, wide=1), "How much wider than the stream is the middle?"),
    "with biases": (partial(mlp, bias=True), "nn.Linear has a bias unless it is told otherwise."),
    "activation at the end": (partial(mlp, middle=same, last=gelu),
        "Nothing below -0.17 comes out of yours. Between the layers, or after them?"),
    "activation twice": (partial(mlp, last=gelu),
        "Nothing below -0.17 comes out of yours: what is added to a stream should go both ways."),
    "activation first": (partial(mlp, first=gelu, middle=same),
        "The activation comes before both layers, and these are one matrix again."),
    "residual inside": (partial(mlp, residual=True),
        "x is in your output. The block of lesson 12 adds it; then it is there twice."),
    "ReLU": (partial(mlp, middle=F.relu), "That has a corner at 0 where GELU is smooth. Which is asked for?"),
    "SiLU": (partial(mlp, middle=F.silu), "Smooth, but another one: x times sigmoid(x). GELU is asked for."),
    "tanh": (partial(mlp, middle=torch.tanh), "Your hidden numbers stay below 1. GELU lets large ones pass."),
}  # fmt: skip


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
            nats = nats + logits[b, t].exp().sum().log() - logits[b, t, targets[b, t]]
    return logits, nats / (B * T)


@torch.no_grad()
def small_gpt(g):
    """A GPT whose every weight is far from 0, so that none can be left out unnoticed."""
    gpt = GPT(replace(CONFIG))  # its own copy: tie() may change it
    for parameter in gpt.parameters():
        parameter.copy_(0.5 * torch.randn(parameter.shape, generator=g))
    return gpt


def parts_of(gpt):
    return SimpleNamespace(**{name: getattr(gpt, name) for name in ("wte", "wpe", "blocks", "norm", "head")})


def inputs_forward(seed):
    g = torch.Generator().manual_seed(seed)
    idx, targets = torch.randint(11, (3, 5), generator=g), torch.randint(11, (3, 5), generator=g)
    return [(parts_of(small_gpt(g)), idx, targets)]


def with_gradients(forward, gpt, idx, targets):
    """Logits, loss, and how large the loss's gradient is in each part."""
    found = forward(gpt, idx, targets)
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(x, torch.Tensor) for x in found)):
        raise TypeError("two tensors are to be returned: logits, loss")
    logits, loss = found
    if loss.requires_grad:
        loss.sum().backward()
    sizes = {
        name: sum(0.0 if p.grad is None else p.grad.norm().item() for p in part.parameters())
        for name, part in vars(gpt).items()
    }
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


def shifted_again(logits, targets):
    return nats(logits[:, :-1], targets[:, 1:])


def reshaped(logits, targets):
    B, T, V = logits.shape
    return F.cross_entropy(logits.reshape(B, V, T), targets)


def last_only(logits, targets):
    return F.cross_entropy(logits[:, -1], targets[:, -1])


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


wrong_forward = {
    "target shifted twice": (partial(forward, loss=shifted_again),
        "The targets are one later already. Whom does your model guess: the next letter, or the one after?"),
    "input as target": (lambda gpt, idx, targets: forward(gpt, idx, idx),
        "Your model learns to repeat the letter it has just read. What comes next stands in targets."),
    "reshaped, not transposed": (partial(forward, loss=reshaped),
        "(B, T, V) reshaped to (B, V, T) keeps the order of the numbers: whose logits does a target meet?"),
    "only the last position": (partial(forward, loss=last_only),
        "All T positions have made a guess, and one of them is scored."),
    "softmax before the loss": (partial(forward, loss=lambda x, y: nats(torch.softmax(x, -1), y)),
        "cross_entropy has a softmax inside. With yours before it, sure and right still costs something."),
    "sum, not mean": (partial(forward, loss=lambda x, y: nats(x, y) * y.numel()),
        "Your loss grows with the number of targets, and so would each step."),
    "one loss per token": (partial(forward, loss=lambda x, y: F.cross_entropy(x.mT, y, reduction="none")),
        "A loss for each token; one number is asked for."),
    "detached loss": (partial(forward, loss=lambda x, y: nats(x, y).detach()),
        "The loss is right, and no weight gets a gradient from it. What cut it off?"),
    "no positions": (partial(forward, positions=False),
        "Nothing says where a token stands: which part has not been used?"),
    "positions from 1": (partial(forward, first=1),
        "Row 0 of the table of positions is never used, and a full window would leave the table."),
    "final norm missing": (partial(forward, end=False),
        "The head reads the stream as it has grown through all blocks. Which part stands before it?"),
    "final norm first": (lambda gpt, idx, targets: forward(gpt, idx, targets, start=gpt.norm, end=False),
        "The norm without a block of its own belongs to the other end."),
    "blocks side by side": (partial(forward, chained=False),
        "Each of your blocks reads the embeddings. Which stream should the second one read?"),
    "probabilities for logits": (lambda gpt, idx, targets: (
        forward(gpt, idx, targets)[0].softmax(-1), forward(gpt, idx, targets)[1]),
        "The loss is right; the rest sums to 1 for each token. Logits are what goes into the softmax."),
}  # fmt: skip


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
    g = torch.Generator().manual_seed(seed)
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


wrong_tie = {
    "copied": (changed("head", "weight", lambda gpt: nn.Parameter(gpt.wte.weight.detach().clone())),
        "Equal at the start and different after a step: a copy. Who should own the numbers?"),
    "numbers shared, parameter not": (share_data,
        "Both point to the same numbers, yet an optimizer sees two parameters and keeps two states."),
    "a head of its own": (changed("", "head", lambda gpt: nn.Linear(12, 11, bias=False)),
        "The head has numbers of its own. Was it made anew after it was tied?"),
    "tied, then drawn anew": (changed("head", "weight", lambda gpt: nn.init.normal_(gpt.wte.weight)),
        "Head and embedding are one, but the embedding's numbers are gone: what has drawn new ones?"),
    "transposed": (changed("head", "weight", lambda gpt: nn.Parameter(gpt.wte.weight.T)),
        "nn.Linear(C, V) keeps its weight as (V, C), which is the shape of the table as it is."),
    "module instead of weight": (changed("", "head", lambda gpt: gpt.wte),
        "The head is the embedding now, which looks up ids. Only its weight should be shared."),
    "counted twice": (tied_and(lambda gpt: sum(w.numel() for w in gpt.state_dict().values())),
        "A saved model names the table twice, under both names. How many numbers are trained?"),
    "not tied, only subtracted": (lambda gpt: counted(gpt) - gpt.head.weight.numel(),
        "The count is right for a tied model, and this one is not tied."),
    "table not counted": (tied_and(lambda gpt: counted(gpt) - gpt.wte.weight.numel()),
        "The table is trained, too: once, not never."),
    "positions not counted": (tied_and(lambda gpt: counted(gpt) - gpt.wpe.weight.numel()),
        "The table of positions is trained, too."),
    "matrices only": (tied_and(lambda gpt: sum(p.numel() for p in gpt.parameters() if p.dim() == 2)),
        "The norms have weights, too."),
    "tensors counted": (tied_and(lambda gpt: len([*gpt.parameters()])),
        "This is how many tensors there are. How many numbers do they hold?"),
}  # fmt: skip

exercises = {
    "13a": dict(
        name="FeedForward",
        reference=reference_mlp,
        project=MLP,
        slow=twin_mlp,
        inputs=inputs_mlp,
        call=filled,
        tol=1e-5,  # tells the two forms of GELU apart
        wrong=wrong_mlp,
        also={"exact GELU": (partial(mlp, middle=F.gelu), "The exact GELU; the project's is by tanh.")},
        properties=[not_additive],
        hints=[
            "What could two layers do that one cannot, if nothing stood between them?",
            "Two nn.Linear without bias, called up and down, are made in __init__ and used in forward.",
            "forward: down(gelu(up(x))), where up makes 4C numbers of C and down makes C of 4C",
        ],
    ),
    "13b": dict(
        name="forward",
        reference=reference_forward,
        project=GPT,
        slow=twin_forward,
        inputs=inputs_forward,
        call=with_gradients,
        wrong=wrong_forward,
        properties=[knows_abc],
        hints=[
            "Who reads the ids, who says where they stand, and who turns the stream into V numbers?",
            "Embeddings and positions are added; the blocks follow each other; norm and head come last.",
            "x = wte(idx) + wpe(0 ... T-1); x = block(x) for each; head(norm(x)); loss of flattened B, T",
        ],
    ),
    "13c": dict(
        name="tie",
        reference=reference_tie,
        project=GPT,
        slow=twin_tie,
        inputs=inputs_tie,
        call=after_a_step,
        wrong=wrong_tie,
        also={"the head's numbers": (changed("wte", "weight", lambda gpt: gpt.head.weight),
            "Tied the other way round: the embedding now begins with the head's numbers.")},
        hints=[
            "Is it enough if two tables hold equal numbers, or should there be one table?",
            "A module's weight is an attribute: two modules may hold the very same parameter.",
            "head.weight = wte.weight; then add up numel() of what parameters() lists, each only once",
        ],
    ),
}  # fmt: skip

predictions = {
    "13.1": dict(
        ask="numbers in the matrices of 4 blocks at C = 128, if the MLP is 4C wide",
        answer=786_432.0,
        tol=0.5,
        wrong={
            524_288.0: "524,288 is the MLPs alone, 8C² a block; attention adds 4C²: 786,432 in all.",
            262_144.0: "262,144 is attention alone, 4C² a block; the MLP adds 8C²: 786,432 in all.",
            196_608.0: "196,608 is one block, 12C²; there are four: 786,432.",
            393_216.0: "393,216 is 6C² a block; it is 12C²: attention 4C², the MLP 8C². 786,432.",
        },
    ),
}  # fmt: skip
