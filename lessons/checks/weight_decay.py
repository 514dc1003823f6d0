"""What the grader knows about lesson 21: who decays, when to stop, and which decay to take."""

import copy
import math
from types import SimpleNamespace

import torch
from torch import nn

from lessons.common import generator, mistakes
from model import GPT, GPTConfig
from optim import parameter_groups
from runtime.origin import Progress


# ---- 21a: each parameter by its name, with the decays it has
def reference_groups(model, decay):
    settings = dict(optimizer="adamw", layer_lr_decay=1.0, weight_decay=decay)
    found = parameter_groups(model, settings)
    return [dict(params=[p for _, p in g["params"]], weight_decay=g["weight_decay"]) for g in found]


def twin_groups(model, decay):
    matrices, others = [], []
    for p in model.parameters():
        if p.requires_grad:
            (matrices if p.dim() >= 2 else others).append(p)
    return [dict(params=matrices, weight_decay=decay), dict(params=others, weight_decay=0.0)]


def inputs_groups(seed):
    g = generator(seed)
    decay = 0.05 + 0.9 * torch.rand((), generator=g).item()
    return [(True, False, decay), (False, False, decay), (True, True, decay)]  # tied, some of it frozen


def who_decays(groups, tied, frozen, decay):
    """Name of each parameter -> its decays, one for each time that it is in a group."""
    shape = dict(vocab_size=11, block_size=7, n_layer=2, n_head=2, n_embd=8, arch="gpt2", bias=True)
    model = GPT(GPTConfig(**shape, tie_weights=int(tied)))
    if frozen:
        for p in (model.blocks[0].attn.o.weight, model.blocks[1].mlp.up.bias):
            p.requires_grad_(False)
    found = {name: [] for name, _ in model.named_parameters()}
    name_of = {id(p): name for name, p in model.named_parameters()}
    for group in groups(model, decay):
        for p in group["params"]:
            found.setdefault(name_of.get(id(p), "unknown"), []).append(float(group["weight_decay"]))
    return found


def group_facts(value, tied, frozen, decay):
    return dict(bias=sum(map(len, value.values())), all=len(value))


TEST, SEEN = "p.dim() >= 2", "for p in model.parameters():"
ALL = "(matrices if p.dim() >= 2 else others)"
NAMED = "for name, p in model.named_parameters():"
NOT_GROUPS = mistakes(twin_groups, {
    "all decay": (ALL, "matrices"),
    "nothing decays": (ALL, "others"),
    "upside down": (TEST, "p.dim() < 2"),
    "gains decay": (SEEN, NAMED, TEST, '"bias" not in name'),
    "biases decay": (SEEN, NAMED, TEST, '"norm" not in name or "bias" in name'),
    "biases of layers decay": (SEEN, NAMED, TEST, '"norm" not in name'),
    "embeddings left alone": (SEEN, NAMED, TEST, 'p.dim() >= 2 and name[:2] != "wt" and name[:2] != "wp"'),
    "tied one twice": (SEEN, "for p in model.state_dict(keep_vars=True).values():"),
    "frozen ones, too": ("if p.requires_grad:", "if True:"),
    "only frozen ones": ("if p.requires_grad:", "if not p.requires_grad:"),
    "matrices alone": (ALL + ".append(p)", "matrices.append(p) if p.dim() >= 2 else None"),
    "decay of its own": ("weight_decay=decay", "weight_decay=0.1"),
    "blocks alone": (SEEN, "for p in model.blocks.parameters():"),
})  # fmt: skip


# ---- 21b: a scripted list of losses
class ReferenceStopper:
    def __init__(self, patience, min_delta):
        self.patience, self.min_delta, self.progress, self.best = patience, min_delta, Progress(), None

    def see(self, loss, model):
        if self.progress.note_losses(0.0, loss, self.min_delta):
            self.best = copy.deepcopy(model.state_dict())
        return 0 < self.patience <= self.progress.bad_evals


def reference_stopper(patience, min_delta):
    return ReferenceStopper(patience, min_delta)


def twin_stopper(patience, min_delta):
    self = SimpleNamespace(to_beat=math.inf, lowest=math.inf, bad=0, best=None)

    def see(loss, model):
        if loss < self.lowest:
            self.lowest = loss
            self.best = copy.deepcopy(model.state_dict())
        if loss < self.to_beat - min_delta:
            self.to_beat, self.bad = loss, 0
        else:
            self.bad = self.bad + 1
        return patience > 0 and self.bad >= patience

    self.see = see
    return self


def inputs_stopper(seed):
    dips = [3.0 + seed / 100, 2.5, 2.6, 2.4, 2.9, 2.7, 2.8, 2.75, 2.85]  # dips on a rise
    rising = [2.0, 2.05, 2.1, 2.15, 2.2]
    steadily = [3.0, 2.96, 2.92, 2.88, 2.84, 2.80, 2.76, 2.9, 2.95, 2.97, 2.99]
    flat = [2.0, 2.0, 2.0, 1.5, 1.25, 1.5, 1.25, 1.25]  # 1.25 is not better than 1.25
    broken = [2.5, 2.3, math.nan, math.nan, 2.2, math.nan, 2.4, 2.3]
    exactly = [4.0, 3.5, 3.0, 2.75, 2.5, 2.5]  # by 0.5 exactly: not by more than that
    return [
        (dips, 3, 0.02), (steadily, 4, 0.1), (rising, 2, 0.1),
        ([math.nan, math.nan, math.nan, 2.0], 3, 0.01), ([3.0, 2.5, 2.6], 1, 0.01),
        (flat, 2, 0.0), (broken, 3, 0.01),
        (dips, 0, 0.02), (exactly, 2, 0.5)
    ]  # fmt: skip


def watched(stopper_of, losses, patience, min_delta):
    """What it says to each loss, also after it has said stop, and which weights it has kept."""
    model = nn.Linear(2, 3)
    stopper, said, kept = stopper_of(patience, min_delta), [], []
    for step, loss in enumerate(losses):
        with torch.no_grad():
            model.weight.fill_(step), model.bias.fill_(step)
        said.append("stop" if stopper.see(loss, model) else "go on")
        kept.append(-1.0 if stopper.best is None else float(stopper.best["weight"].mean()))
    with torch.no_grad():
        model.weight.fill_(99.0)
    return {
        "said": " ".join(said),
        "kept after each evaluation": kept,
        "kept in the end": sorted({float(x) for p in stopper.best.values() for x in p.flatten()}),
    }


def stopper_facts(value, losses, patience, min_delta):
    said = value["said"].replace("go on", "go").split()
    return dict(stop=said.index("stop") + 1 if "stop" in said else 0, kept=value["kept in the end"][-1])


BETTER, RETURN = "loss < self.to_beat - min_delta", "patience > 0 and self.bad >= patience"
NOTED = "self.to_beat, self.bad = loss, 0"
NOT_STOPPERS = mistakes(twin_stopper, {
    "compared with the last": (NOTED, "self.bad = 0", "        return",
        "        self.to_beat = loss\n        return"),
    "stops one late": (">= patience", "> patience"),
    "stops one early": (">= patience", ">= patience - 1"),
    "references, not copies": ("copy.deepcopy(model.state_dict())", "model.state_dict()"),
    "sign of min_delta": ("- min_delta", "+ min_delta"),
    "min_delta ignored": (BETTER, "loss < self.to_beat"),
    "below the lowest": (BETTER, "loss < lowest - min_delta", "        if loss < self.lowest:",
        "        lowest = self.lowest\n        if loss < self.lowest:"),
    "best only by min_delta": ("if loss < self.lowest:", "if " + BETTER + ":"),
    "bad ones never forgotten": (NOTED, "self.to_beat = loss"),
    "equal is better": (BETTER, "loss <= self.to_beat - min_delta"),
    "patience 0 stops": (RETURN, "self.bad >= patience"),
    "nan is better": (BETTER, "not loss >= self.to_beat - min_delta"),
    "stops at the first rise": (RETURN, "patience > 0 and self.bad > 0"),
    "the last is kept": ("if loss < self.lowest:", "if True:"),
    "best at the stop alone": ("if loss < self.lowest:", "if self.best is None:"),
    "upside down": ("return patience > 0 and", "return not"),
    "never stops": (RETURN, "False"),
})  # fmt: skip


# ---- 21c: the best of each run, the mean over seeds
def twin_pick(run, decays, seeds):
    means = {}
    for decay in decays:
        lows = [min(run(decay, seed)) for seed in seeds]
        means[decay] = sum(lows) / len(lows)
    return min(means, key=means.get), means


def inputs_pick(seed):
    decays = [0.3, 0.01, 0.1, 3.0]
    return [(seed + 10, decays, [5, 7, 8]), (seed + 20, decays[1:], [3, 4]), (0, decays, [6, 9])]


def picked(pick, world, decays, seeds):
    """What is picked where the runs are made up, and which runs were asked for."""
    asked = []

    def run(decay, seed):
        asked.append((decay, seed))
        if world == 0:  # all alike
            return [3.0, 2.0, 2.5]
        g = torch.Generator().manual_seed(1000 * world + 10 * decays.index(decay) + seed)
        low = 2 + 0.1 * abs(decays.index(decay) - 1) + 0.5 * torch.rand((), generator=g).item()
        rest = (0.2 + torch.rand(9, generator=g)).tolist()
        at = int(9 * torch.rand((), generator=g))
        return [low + extra for extra in rest[:at]] + [low] + [low + extra for extra in rest[at:]]

    best, means = pick(run, decays, seeds)
    once = len(asked) == len({*asked})
    return {"best": best, "means": means, "each pair once": once, "pairs": len({*asked})}


LOWS, MEAN = "min(run(decay, seed))", "sum(lows) / len(lows)"
NOT_PICKS = mistakes(twin_pick, {
    "last loss": (LOWS, "run(decay, seed)[-1]"),
    "first loss": (LOWS, "run(decay, seed)[0]"),
    "mean of the whole run": (LOWS, "(lambda x: sum(x) / len(x))(run(decay, seed))"),
    "highest loss": (LOWS, "max(run(decay, seed))"),
    "first seed alone": ("for seed in seeds", "for seed in seeds[:1]"),
    "luckiest seed": (MEAN, "min(lows)"),
    "unluckiest seed": (MEAN, "max(lows)"),
    "sum, not mean": (MEAN, "sum(lows)"),
    "lowest of the mean curve": ("lows = [min(run(decay, seed)) for seed in seeds]",
        "lows = [min(sum(x) / len(seeds) for x in zip(*[run(decay, seed) for seed in seeds]))]"),
    "the highest mean": ("return min(", "return max("),
    "the loss in its place": ("min(means, key=means.get)", "min(means.values())"),
    "smallest decay": ("min(means, key=means.get)", "min(means)"),
    "last of equal ones": ("min(means, key=means.get)", "min([*means][::-1], key=means.get)"),
    "trained twice": ("        means[decay] =",
        "        [run(decay, seed) for seed in seeds]\n        means[decay] ="),
})  # fmt: skip

exercises = {
    "21a": dict(
        name="groups", reference=reference_groups, project=parameter_groups, slow=twin_groups,
        inputs=inputs_groups,
        call=who_decays, gradients=False, wrong=NOT_GROUPS,
        lint=dict(model="here: whether the head is tied", decay="here: whether some is frozen"),
    ),
    "21b": dict(
        name="EarlyStopper", reference=reference_stopper, project=Progress, slow=twin_stopper,
        inputs=inputs_stopper,
        call=watched, gradients=False, wrong=NOT_STOPPERS, numbers=stopper_facts,
    ),
    "21c": dict(
        name="pick", reference=twin_pick, inputs=inputs_pick, call=picked,
        gradients=False, wrong=NOT_PICKS,
        twin="the project compares runs by races with intervals, which takes more seeds than a laptop has",
        lint=dict(run="here: which made-up runs"),
    ),
}  # fmt: skip

predictions = {
    "21.1": dict(answer=0.905, tol=0.002),
}
