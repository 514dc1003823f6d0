"""What the grader knows about lesson 21: who decays, when to stop, and which decay to take."""

import copy
import inspect
import math
from types import SimpleNamespace

import torch
from torch import nn

from model import GPT, GPTConfig
from optim import parameter_groups
from runtime.origin import Progress


def changed(function, *swaps):
    """A function or class with a mistake: a place of its source as it is, as it is then, the next place "
    "..."""
    source, names = inspect.getsource(function), dict(globals())
    for before, after in zip(swaps[::2], swaps[1::2], strict=True):
        assert before in source, before
        source = source.replace(before, after)
    exec(source, names)
    return names[function.__name__]


def mistakes(function, table):
    return {name: (changed(function, *swaps), hint) for name, (*swaps, hint) in table.items()}


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
    g = torch.Generator().manual_seed(seed)
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
    "all decay": (ALL, "matrices", "Biases and gains decay, too. Near which number does a gain belong?"),
    "nothing decays": (ALL, "others", "No parameter has a decay. Who is to be pulled?"),
    "upside down": (TEST, "p.dim() < 2", "Biases and gains decay, matrices do not. Which way round is it?"),
    "gains decay": (SEEN, NAMED, TEST, '"bias" not in name',
        "Gains of norms decay: they are no bias, and no matrix either."),
    "biases decay": (SEEN, NAMED, TEST, '"norm" not in name or "bias" in name',
        "Biases decay. How many axes has a bias?"),
    "biases of layers decay": (SEEN, NAMED, TEST, '"norm" not in name',
        "Biases of linear layers decay. How many axes has a bias?"),
    "embeddings left alone": (SEEN, NAMED, TEST, 'p.dim() >= 2 and name[:2] != "wt" and name[:2] != "wp"',
        "The tables do not decay. A table of embeddings has rows and columns: what is it?"),
    "tied one twice": (SEEN, "for p in model.state_dict(keep_vars=True).values():",
        "The tied embedding is in a group twice, under both of its names. Which list names it once?"),
    "frozen ones, too": ("if p.requires_grad:", "if True:",
        "What is frozen is in a group, too, and decay would move it."),
    "only frozen ones": ("if p.requires_grad:", "if not p.requires_grad:",
        "Only what is frozen is in your groups."),
    "matrices alone": (ALL + ".append(p)", "matrices.append(p) if p.dim() >= 2 else None",
        "Biases and gains are in no group: nobody trains them."),
    "decay of its own": ("weight_decay=decay", "weight_decay=0.1",
        "Which argument says how strong the decay is?"),
    "same decay for both": ("weight_decay=0.0", "weight_decay=decay",
        "There are two groups with one and the same decay."),
    "blocks alone": (SEEN, "for p in model.blocks.parameters():",
        "Embeddings and the last norm are in no group."),
})  # fmt: skip
del NOT_GROUPS["same decay for both"]  # seen as "all decay"


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
        "        self.to_beat = loss\n        return",
        "On a slow rise each dip counts as better, and you never stop. Better than which loss?"),
    "stops one late": (">= patience", "> patience",
        "You stop one evaluation late. How many bad ones are enough?"),
    "stops one early": (">= patience", ">= patience - 1",
        "You stop one evaluation early. How many bad ones are enough?"),
    "references, not copies": ("copy.deepcopy(model.state_dict())", "model.state_dict()",
        "What you kept moved on with the model: the best are the last. Are the tensors copied?"),
    "sign of min_delta": ("- min_delta", "+ min_delta",
        "A loss that is a little worse counts as better. Which sign has min_delta?"),
    "min_delta ignored": (BETTER, "loss < self.to_beat",
        "The least fall counts as better. What is min_delta for?"),
    "below the lowest": (BETTER, "loss < lowest - min_delta", "        if loss < self.lowest:",
        "        lowest = self.lowest\n        if loss < self.lowest:",
        "A run that falls slowly but steadily is stopped. Below which loss has it to fall by min_delta?"),
    "best only by min_delta": ("if loss < self.lowest:", "if " + BETTER + ":",
        "The weights of the lowest loss are not kept: by how much it is lower does not matter for them."),
    "bad ones never forgotten": (NOTED, "self.to_beat = loss",
        "Bad evaluations are added up over the whole run. What does a better one do to the count?"),
    "equal is better": (BETTER, "loss <= self.to_beat - min_delta",
        "A loss that has fallen by just min_delta counts as better. By more than it, or not?"),
    "patience 0 stops": (RETURN, "self.bad >= patience",
        "With patience 0 you stop at once. What does 0 say?"),
    "nan is better": (BETTER, "not loss >= self.to_beat - min_delta",
        "A nan counts as better. Which comparisons hold for it?"),
    "stops at the first rise": (RETURN, "patience > 0 and self.bad > 0",
        "You stop at the first bad evaluation. What is patience for?"),
    "the last is kept": ("if loss < self.lowest:", "if True:",
        "The weights of the last evaluation are kept. Which were better?"),
    "best at the stop alone": ("if loss < self.lowest:", "if self.best is None:",
        "The first weights are kept for ever. Which were better?"),
    "upside down": ("return patience > 0 and", "return not",
        "True is said while it goes well. When is it to be said?"),
    "never stops": (RETURN, "False", "You never say stop. Who counts the bad evaluations?"),
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
    "last loss": (LOWS, "run(decay, seed)[-1]",
        "You judge by the last loss. Which weights of a run are kept?"),
    "first loss": (LOWS, "run(decay, seed)[0]", "You judge by the first loss, before anything is learned."),
    "mean of the whole run": (LOWS, "(lambda x: sum(x) / len(x))(run(decay, seed))",
        "You take the mean over a run. Which of its weights are kept?"),
    "highest loss": (LOWS, "max(run(decay, seed))", "You judge by the highest loss of each run."),
    "first seed alone": ("for seed in seeds", "for seed in seeds[:1]",
        "One seed for each decay: then chance decides. What are the others for?"),
    "luckiest seed": (MEAN, "min(lows)",
        "You take the luckiest seed of each decay. Who is lucky more often?"),
    "unluckiest seed": (MEAN, "max(lows)",
        "You take the unluckiest seed of each decay. What do all of them say together?"),
    "sum, not mean": (MEAN, "sum(lows)", "The choice is right, the numbers are sums over seeds."),
    "lowest of the mean curve": ("lows = [min(run(decay, seed)) for seed in seeds]",
        "lows = [min(sum(x) / len(seeds) for x in zip(*[run(decay, seed) for seed in seeds]))]",
        "You take the mean curve and its lowest place. Each run has its own best step."),
    "the highest mean": ("return min(", "return max(", "That is the decay with the highest loss."),
    "the loss in its place": ("min(means, key=means.get)", "min(means.values())",
        "That is the lowest mean. Which decay has it?"),
    "smallest decay": ("min(means, key=means.get)", "min(means)",
        "That is the smallest decay, whatever the losses."),
    "last of equal ones": ("min(means, key=means.get)", "min([*means][::-1], key=means.get)",
        "Of equal ones you take the last."),
    "trained twice": ("        means[decay] =",
        "        [run(decay, seed) for seed in seeds]\n        means[decay] =",
        "Each run is made more than once, and runs take long."),
})  # fmt: skip

exercises = {
    "21a": dict(
        name="groups", reference=reference_groups, project=parameter_groups, slow=twin_groups,
        inputs=inputs_groups,
        call=who_decays, gradients=False, wrong=NOT_GROUPS,
        lint=dict(model="here: whether the head is tied", decay="here: whether some is frozen"),
        hints=[
            "Is a pull to 0 right for a number that belongs near 1? And for each row of a table?",
            "One walk over model.parameters(), which names a tied one once; the number of axes decides.",
            "for each p with requires_grad: two or more axes -> first list, else second; two dicts",
        ],
    ),
    "21b": dict(
        name="EarlyStopper", reference=reference_stopper, project=Progress, slow=twin_stopper,
        inputs=inputs_stopper,
        call=watched, gradients=False, wrong=NOT_STOPPERS, numbers=stopper_facts,
        hints=[
            "After 3.0, 2.5, 2.6, 2.4, 2.6, 2.5: which of these were better, and than what?",
            "Two numbers are remembered: the lowest loss, for the weights, and the one to beat, for the "
            "count.",
            "lower than lowest: copy; lower than to_beat - min_delta: to_beat = loss, bad = 0; else bad + 1",
        ],
    ),
    "21c": dict(
        name="pick", reference=twin_pick, inputs=inputs_pick, call=picked,
        gradients=False, wrong=NOT_PICKS,
        twin="the project compares runs by races with intervals, which takes more seeds than a laptop has",
        lint=dict(run="here: which made-up runs"),
        hints=[
            "Which weights of a run would you keep, and how much of its loss is luck?",
            "For each decay a list with one number per seed; then a mean, and the decay with the lowest one.",
            "means[decay] = mean over seeds of the lowest of run(decay, seed); the key of the least; means",
        ],
    ),
}  # fmt: skip

predictions = {
    "21.1": dict(
        ask="a weight of 1 after 1,000 steps, lr 0.001, weight decay 0.1, no gradient",
        answer=0.905,
        tol=0.002,
        wrong={
            0.9: "0.9 would be without compounding; 0.9999 to the power of 1,000 is 0.905.",
            0.0: "0 would be without lr: each step takes lr x decay, a ten-thousandth. It is 0.905.",
            0.368: "0.368 would be for a decay of 1; with 0.1 it is 0.905.",
        },
    ),
}
