"""What the grader knows about lesson 33: which weights go, and how they stay away while the others learn."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from lessons.common import fill, floats, generator, mistakes
from lessons.course import update
from techniques.prune import put_back, smallest

V = 9


# ---- 33a: which weights go
def reference_masks(weights, share):
    matrices = {name: w for name, w in weights.items() if w.dim() == 2}
    zeros = smallest(torch.cat([w.flatten() for w in matrices.values()]), share)
    parts = zeros.split([w.numel() for w in matrices.values()])
    return {name: part.view_as(w) for part, (name, w) in zip(parts, matrices.items(), strict=True)}


def twin_masks(weights, share):
    places, masks = [], {}
    for name, w in weights.items():
        if w.dim() == 2:
            masks[name] = torch.zeros_like(w, dtype=torch.bool)
            for i, row in enumerate(w.tolist()):
                places += [(abs(x), name, i, j) for j, x in enumerate(row)]
    places.sort(key=lambda place: place[0])
    for _, name, i, j in places[: round(share * len(places))]:
        masks[name][i, j] = True
    return masks


def inputs_masks(seed):
    g = generator(seed)

    def weights(*sizes):
        shapes = {"up": (5, 4), "norm": (4,), "down": (4, 7), "bias": (7,), "head": (3, 5)}
        found = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
        for name, size in zip(("up", "down", "head"), sizes, strict=True):
            found[name] *= size
        return found

    ties = weights(1.0, 1.0, 1.0)
    ties["up"], ties["down"] = ties["up"].round(), (ties["down"] * 2).round() / 2
    ties["down"][1] = 0.0  # as after an earlier pruning
    return [
        (weights(1.0, 0.05, 3.0), 0.4),
        (ties, 0.63),
        (weights(0.5, 1.0, 0.01), 0.9),
        (weights(1.0, 2.0, 1.5), 0.77),
    ]


def smaller_than_what_stays(masks_of, weights, share):
    masks = masks_of(weights, share)
    gone = torch.cat([weights[name][mask].abs() for name, mask in masks.items()])
    stay = torch.cat([weights[name][~mask].abs() for name, mask in masks.items()])
    if len(gone) and len(stay) and gone.max() > stay.min():
        return f"a weight of size {gone.max():.3f} goes, and one of {stay.min():.3f} stays"


def mask_rows(masks_of, weights, share):
    return ["".join(".x"[not gone] for gone in row) for row in masks_of(weights, share)["up"].tolist()]


GOES, ORDER = "places[: round(share * len(places))]", "    places.sort(key=lambda place: place[0])\n"
COUNT, SIZES, IS = "round(share * len(places))", "abs(x)", "if w.dim() == 2:"
FROM, RETURN = "for _, name, i, j in places[", "    return masks\n"
LIMIT = "    limit = sorted(p[0] for p in places)[round(share * len(places)) - 1]\n"
NOT_MASKS = mistakes(twin_masks, {
    "value, not size": (SIZES, "x"),
    "the large ones go": (ORDER, ORDER.replace("place[0]", "-place[0]")),
    "stays and goes swapped": (RETURN, "    return {name: ~mask for name, mask in masks.items()}\n"),
    "share of each matrix": (GOES, "[p for name in masks for own in [[p for p in places if p[1] == name]]"
        " for p in own[: round(share * len(own))]]"),
    "share of each row": (GOES, "[p for name in masks for i in range(len(masks[name])) for own in "
        "[[p for p in places if p[1:3] == (name, i)]] for p in own[: round(share * len(own))]]"),
    "vectors pruned, too": (IS, "if True:", "enumerate(w.tolist())", "enumerate(w.view(len(w), -1).tolist())",
        "masks[name][i, j]", "masks[name].view(len(masks[name]), -1)[i, j]"),
    "vectors counted": (COUNT, "round(share * sum(w.numel() for w in weights.values()))"),
    "share that stays": (COUNT, "round((1 - share) * len(places))"),
    "count cut off": ("round(", "int("),
    "equal ones all go": (GOES, "[p for p in places if p[0] <= places[round(share * len(places)) - 1][0]]"),
    "equal ones all stay": (GOES, "[p for p in places if p[0] < places[round(share * len(places)) - 1][0]]"),
    "last of equal ones": (ORDER, "    places.reverse()\n" + ORDER),
    "below share of the largest": (GOES, "[p for p in places if p[0] < share * places[-1][0]]"),
    "weights set to zero": (RETURN, "    for name in masks:\n"
        "        weights[name].masked_fill_(masks[name], 0)\n" + RETURN),
    "weights for masks": (RETURN, "    return {n: weights[n].masked_fill(m, 0) for n, m in masks.items()}\n"),
    "ones and zeros": (RETURN, "    return {name: mask.float() for name, mask in masks.items()}\n"),
    "the first ones go": (ORDER, ""),
})  # fmt: skip


# ---- 33b: training on, with zeros that stay
def reference_finetune(model, masks, optimizer, batches):
    weights = dict(model.named_parameters())
    losses = []
    for x, y in batches:
        losses.append(update(model, optimizer, x, y))
        for name, mask in masks.items():
            put_back(SimpleNamespace(weight=weights[name], pruned=mask))
    return losses


def twin_finetune(model, masks, optimizer, batches):
    weights, losses = dict(model.named_parameters()), []
    for x, y in batches:
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for name, mask in masks.items():
                weights[name][mask] = 0
        losses.append(loss.item())
    return losses


class Small(nn.Module):
    """ids (B, T) -> logits (B, T, V) of each next one."""

    def __init__(self):
        super().__init__()
        self.wte, self.up, self.head = nn.Embedding(V, 6), nn.Linear(6, 8), nn.Linear(8, V)

    def forward(self, x):
        return self.head(torch.tanh(self.up(self.wte(x))))


def pruned_model(kind, seed):
    """(a model with zeros, their masks, an optimizer that has trained it when it was dense, batches)."""
    g, model = generator(seed), Small()
    fill(model, g)
    ids = torch.randint(V, (8, 4, 6), generator=g)
    batches = [(part[:, :-1], part[:, 1:]) for part in ids]
    optimizer = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.8, weight_decay=0.1),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.3),
        "plain": lambda: torch.optim.SGD(model.parameters(), lr=0.4),
    }[kind]()
    for x, y in batches[:3]:
        update(model, optimizer, x, y)
    masks = {
        name: torch.rand(p.shape, generator=g) < 0.6 for name, p in model.named_parameters() if p.dim() == 2
    }
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in masks:
                p[masks[name]] = 0
        model.up.weight[2] = 0.0  # zeros by chance: they are to learn
        masks["up.weight"][2] = False
    return model, masks, optimizer, batches[3:]


def inputs_finetune(seed):
    return [("sgd", seed + 10), ("adamw", seed + 20), ("plain", seed + 30)]


def seen_of_finetune(finetune, kind, seed):
    model, masks, optimizer, batches = pruned_model(kind, seed)
    given = {name: mask.clone() for name, mask in masks.items()}
    losses = finetune(model, masks, optimizer, batches)
    own, graphs = dict(model.named_parameters()), any(getattr(x, "requires_grad", False) for x in losses)
    zeros = {name: (own[name][mask] == 0).float().mean().item() for name, mask in given.items()}
    alike = all(torch.equal(masks[name], mask) for name, mask in given.items())
    return {"share of zeros kept": zeros, "losses": floats(losses), "graphs held": graphs,
            "weights": {name: p.detach() for name, p in own.items()}, "masks left alone": alike}  # fmt: skip


def kept(value, kind, seed):
    """For hints: which part of the pruned weights is zero still."""
    shares = value["share of zeros kept"].values()
    return dict(kept=100 * sum(shares) / len(shares))


def zeros_stay(finetune, kind, seed):
    for name, share in seen_of_finetune(finetune, kind, seed)["share of zeros kept"].items():
        if share < 1:
            return f"of the weights in {name} that were pruned, {share:.0%} are zero after training"


STEP, ENDS = "        optimizer.step()\n", "        losses.append(loss.item())\n"
SET = "weights[name][mask] = 0"
BACK = f"        with torch.no_grad():\n            for name, mask in masks.items():\n                {SET}\n"
LOOP = "    for x, y in batches:\n"
GRADIENTS = "        for name, mask in masks.items():\n            weights[name].grad[mask] = 0\n"
NOT_FINETUNES = mistakes(twin_finetune, {
    "zeros never put back": (BACK, ""),
    "gradients alone masked": (BACK, "", STEP, GRADIENTS + STEP),
    "zeros before the step": (BACK, "", STEP, BACK + STEP),
    "zeros in the end alone": (BACK, "", "    return losses",
        BACK.replace("\n    ", "\n")[4:] + "    return losses"),
    "mask made anew from zeros": (BACK, BACK.replace("[mask]", "[now[name]]"), STEP,
        "        now = {name: weights[name] == 0 for name in masks}\n" + STEP),
    "mask made anew by size": (BACK,
        BACK.replace("[mask]", "[smallest(weights[name], mask.float().mean().item())]")),
    "mask upside down": (BACK, BACK.replace("[mask]", "[~mask]")),
    "one matrix alone": (BACK, BACK.replace("masks.items()", "list(masks.items())[:1]")),
    "new parameters": (BACK, BACK.replace(SET, "layer = model.get_submodule(name[:-7])\n"
        "                layer.weight = nn.Parameter(weights[name].masked_fill(mask, 0))\n"
        "                weights[name] = layer.weight")),
    "gradients never cleared": ("        optimizer.zero_grad()\n", ""),
    "tensors told": (ENDS, "        losses.append(loss)\n"),
    "no step": (STEP, ""),
    "losses after the update": (ENDS, ENDS.replace("loss.item()",
        "F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item()")),
    "others frozen": (STEP, "        for p in model.parameters():\n            if p.dim() < 2:\n"
        "                p.grad = None\n" + STEP),
    "first batch alone": (LOOP, "    for x, y in batches[:1]:\n"),
})  # fmt: skip

exercises = {
    "33a": dict(name="masks", reference=reference_masks, project=smallest, slow=twin_masks,
        inputs=inputs_masks, gradients=False, picture=mask_rows,
        properties=[smaller_than_what_stays], wrong=NOT_MASKS,
        ),
    "33b": dict(name="finetune", reference=reference_finetune, project=put_back, slow=twin_finetune,
        inputs=inputs_finetune, call=seen_of_finetune, gradients=False, numbers=kept,
        properties=[zeros_stay], wrong=NOT_FINETUNES,
        ),
}  # fmt: skip

predictions = {
    "33.1": dict(answer=100, tol=0.5),
    "33.2": dict(answer=0, tol=0.5),
}
