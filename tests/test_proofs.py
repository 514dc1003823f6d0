"""Proofs by numbers: gradients by differences, causality by perturbation, what packing lets a sample see."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
from generate import Cache, reading
from model import ARCHS, GPT, GPTConfig
from test_data import dataset_of, samples_of

V, T = 11, 7


def made(block_size: int = T, **settings) -> GPT:
    """A small model in float64; with zero_init=1 as training starts, else with large random weights."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=V, block_size=block_size, n_layer=2, n_head=4, n_embd=16)
    model = GPT(GPTConfig(**(sizes | settings))).double()
    for name, parameter in model.named_parameters():
        if not model.config.zero_init:
            parameter.data.normal_(mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    return model


# ---- gradients against central differences in float64
def nats(model: GPT, idx: torch.Tensor, targets: torch.Tensor, in_chunks: bool) -> torch.Tensor:
    """The loss as train.py computes it: over the logits of all tokens, or in chunks (here of 3 tokens)."""
    torch.manual_seed(5)  # for dropout
    if in_chunks:
        model.config.vocab_size = 2**24 // 3  # it only says how long a chunk is
        return model(idx, targets)
    return F.cross_entropy(model(idx).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")


def errors(loss, parameters: list, together: bool) -> list[float]:
    """How far the slope of loss() in a random direction is from (loss(x + h) - loss(x - h)) / 2h.

    As a share of the gradient's length, which is the slope's standard deviation over such directions; of one
    parameter after the other (or of a hundredth of the whole, if its gradient is short), or of all together.
    """
    gradients = torch.autograd.grad(loss(), parameters)
    whole = math.sqrt(sum(g.pow(2).sum().item() for g in gradients))
    pairs = list(zip(parameters, gradients, strict=True))
    found, h = [], 1e-6
    for group in [pairs] if together else [[pair] for pair in pairs]:
        directions = [torch.randn_like(p) for p, _ in group]
        slope = sum((g * d).sum().item() for (_, g), d in zip(group, directions, strict=True))
        length = math.sqrt(sum(g.pow(2).sum().item() for _, g in group))
        values = []
        with torch.no_grad():
            for step in (h, -2 * h, h):
                for (p, _), d in zip(group, directions, strict=True):
                    p.add_(d, alpha=step)
                values.append(loss().item())
        found.append(abs(slope - (values[0] - values[1]) / (2 * h)) / max(length, whole / 100))
    return found


WAYS = {  # what a gradient passes through, beside the switches; float64 takes the fused kernel beyond T=512
    "attention written out": {},
    "attention fused": dict(block_size=513, n_layer=1),
    "blocks computed again": dict(gradient_checkpointing=True),
    "dropout": dict(dropout=0.2),
    "dropout, blocks computed again": dict(dropout=0.2, gradient_checkpointing=True),
    "loss in chunks": {},
}


@pytest.mark.parametrize(
    ("arch", "way"),
    [  # one arch of each way is fast
        pytest.param(
            arch, way, marks=() if way == "attention written out" or i % 3 == j else pytest.mark.slow
        )
        for i, way in enumerate(WAYS)
        for j, arch in enumerate(ARCHS)
    ],
)
def test_the_gradient_of_every_parameter(arch, way):
    model = made(arch=arch, zero_init=0, bias=True, **WAYS[way])
    idx, targets = torch.randint(V, (2, 1, model.config.block_size))
    targets[0, :2] = -1
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = errors(lambda: nats(model, idx, targets, "chunks" in way), parameters, together=False)
    wrong = {name: error for name, error in zip(names, found, strict=True) if not error < 1e-6}
    assert not wrong


SWITCHES = dict(
    norm=["layernorm", "rmsnorm"], position=["learned", "rope"], activation=["relu2", "gelu", "swiglu"],
    qk_norm=[0, 1], token_shift=[0, 1], tie_weights=[0, 1], zero_init=[0, 1], logit_cap=[0.0, 3.0],
    n_kv_head=[4, 2, 1], bias=[False, True], gradient_checkpointing=[False, True], in_chunks=[False, True],
)  # fmt: skip


@pytest.mark.slow
def test_the_gradient_with_every_switch(request, figure):
    """200 of 9,216 combinations, in which any three switches meet in each of their values; --long: all."""
    rows = list(itertools.product(*SWITCHES.values()))
    if not request.config.getoption("--long", default=False):
        rows = random.Random(0).sample(rows, 200)
    three = itertools.combinations(range(len(SWITCHES)), 3)
    possible = sum(math.prod(len(list(SWITCHES.values())[i]) for i in places) for places in three)
    met = {(p, *(row[i] for i in p)) for row in rows for p in itertools.combinations(range(len(SWITCHES)), 3)}
    assert len(met) == possible
    wrong = {}
    for row in rows:
        settings = dict(zip(SWITCHES, row, strict=True))
        model = made(n_layer=1, **{name: settings[name] for name in settings if name != "in_chunks"})
        idx, targets = torch.randint(V, (2, 1, T))
        targets[0, 0] = -1
        loss = lambda model=model, x=idx, y=targets, c=settings["in_chunks"]: nats(model, x, y, c)  # noqa: E731
        (error,) = errors(loss, list(model.parameters()), together=True)
        if not error < 1e-6:
            wrong[str(settings)] = error
    assert not wrong
    figure(f"{len(rows)} combinations of switches: the gradient is that of finite differences to 1e-6")


# ---- causality: another token at t changes the logits from t on, and not one bit before
PADS = torch.tensor([[0], [2], [3]])  # columns at the left of each row that are no tokens


def read(model: GPT, idx: torch.Tensor, caches=None, pad=None) -> torch.Tensor:
    """The logits (B,T,V) of a pass as generation makes it."""
    return model.to_logits(model.trunk(idx, *reading(model.config, idx, caches, pad)))


def one_by_one(model: GPT, idx: torch.Tensor, prompt: int, static: bool = False, pad=None) -> torch.Tensor:
    """The logits of a prompt and then of one token after the other, as generation computes them."""
    caches = [Cache(model.config.block_size, static=static) for _ in model.blocks]
    parts = [idx[:, :prompt], *idx[:, prompt:].split(1, dim=1)]
    return torch.cat([read(model, part, caches, pad) for part in parts], dim=1)


def scored_alone(model: GPT, idx: torch.Tensor) -> torch.Tensor:
    """The loss in chunks of one target at a time, for each position: (1,T,1)."""
    model.config.vocab_size = 2**24 // 3
    targets = [torch.where(torch.arange(T) == t, 3, -1).expand(len(idx), T) for t in range(T)]
    return torch.stack([model(idx, y) for y in targets])[None, :, None]


# name: the logits (B,T,V) of ids (B,T)
PATHS = {
    "fused": lambda model, idx: model(idx),
    "written out in float64": lambda model, idx: model(idx),
    "written out in bfloat16": lambda model, idx: model(idx),
    "blocks computed again": lambda model, idx: model(idx),
    "in chunks": scored_alone,
    "masked": lambda model, idx: read(model, idx, pad=PADS),
    "one token and a cache": lambda model, idx: one_by_one(model, idx, 1),
    "a prompt and a cache": lambda model, idx: one_by_one(model, idx, 4),
    "a masked prompt and a cache": lambda model, idx: one_by_one(model, idx, 4, pad=PADS),
    "a static cache": lambda model, idx: one_by_one(model, idx, 1, static=True),
    "a masked prompt and a static cache": lambda model, idx: one_by_one(model, idx, 4, static=True, pad=PADS),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("arch", ARCHS)
def test_no_token_sees_a_later_one(arch, path, figure):
    model = made(arch=arch, zero_init=0, gradient_checkpointing=path == "blocks computed again")
    model = model if "float64" in path else model.float()
    idx = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(1))
    pads = PADS if "masked" in path else torch.zeros(3, 1)
    column = torch.arange(T)[None]
    with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in path):
        before = PATHS[path](model, idx)  # (3,T,V), or (1,T,1) of all rows together
        for t in range(T):
            changed = idx.clone()
            changed[:, t] = (idx[:, t] + 1) % V
            difference = (PATHS[path](model, changed) - before).abs().amax(dim=-1)  # (3,T)
            rows = len(difference)
            tokens, touched = (column >= pads)[:rows], ((column >= t) & (t >= pads))[:rows]
            assert (difference[tokens & ~touched] == 0).all(), t  # padding changes no token's logits at all
            assert (difference[touched] > (0 if "bfloat16" in path else 1e-6)).all(), t
    figure("attention path: another token changes no logit before it, not by one bit")


# ---- packing: what one sample of a row may change in another
def windows_of(folder, ids, mask, pack: bool) -> data.Windows:
    """0 is the end token."""
    return data.Windows(dataset_of(folder, ids, mask, end_id=0, format="jsonl"), "train", 24, pack=pack)


def losses_of(windows: data.Windows) -> list[tuple]:
    """x, y and the loss of each target, for each row; all (T): with pack=False rows differ in length."""
    model, found = made(zero_init=0, block_size=24), []
    for i in range(windows.n_windows):
        (x,), (y,) = windows.window_batch([i])
        with torch.no_grad():
            found.append((x, y, F.cross_entropy(model(x[None])[0], y, ignore_index=-1, reduction="none")))
    return found


@pytest.mark.parametrize("pack", [True, False])
def test_a_sample_changes_no_loss_of_an_earlier_one_nor_of_another_row(tmp_path, pack):
    fresh, mask, lengths = samples_of(20, 12)
    starts = np.cumsum(lengths) - lengths
    windows = windows_of(tmp_path / "fresh", fresh, mask, pack)
    places = {}  # first id of a sample, which stands nowhere else: its row and column
    for row in range(windows.n_windows):
        (x,), _ = windows.window_batch([row])
        places.update({token: (row, column) for column, token in enumerate(x.tolist())})
    ids = np.where(fresh > 0, 1 + fresh % (V - 1), 0)
    windows = windows_of(tmp_path / "a", ids, mask, pack)
    before, seen = losses_of(windows), 0
    for start, length in zip(starts, lengths, strict=True):
        other = ids.copy()
        other[start : start + length - 1] = 1 + other[start : start + length - 1] % (V - 1)
        other.astype("uint32").tofile(tmp_path / "a/train.bin")
        own_row, column = places[fresh[start]]
        assert column == 0 or before[own_row][1][column - 1] == -1  # the first id of a sample is no target
        for row, ((_, y, old), (_, new_y, new)) in enumerate(zip(before, losses_of(windows), strict=True)):
            same = max(0, column - 1) if row == own_row else len(y)
            assert torch.equal(new_y[:same], y[:same]) and torch.equal(new[:same], old[:same])
            seen += int((new[same:] != old[same:])[length:].sum())
    assert (seen > 50) == pack  # packed, a sample does see those before it in its row


@pytest.mark.parametrize("pack", [True, False])
def test_a_mask_changes_only_which_targets_are_scored(tmp_path, pack):
    fresh, mask, _ = samples_of(40, 12)
    ids = np.where(fresh > 0, 1 + fresh % (V - 1), 0)
    some = losses_of(windows_of(tmp_path / "some", ids, mask, pack))
    everything = losses_of(windows_of(tmp_path / "all", ids, np.ones_like(mask), pack))
    for (x, y, loss), (all_x, all_y, all_loss) in zip(some, everything, strict=True):
        scored = y != -1
        assert torch.equal(x, all_x) and torch.equal(y[scored], all_y[scored])
        assert torch.equal(loss[scored], all_loss[scored]) and not loss[~scored].any()
    counts = [sum(int((y != -1).sum()) for _, y, _ in rows) for rows in (some, everything)]
    assert 100 < counts[0] < counts[1]
