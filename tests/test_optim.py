"""optim.py: schedules against literal values; groups; each optimizer against torch's or a written twin."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import muon
import optim
from model import GPT, GPTConfig
from runtime.checkpoint import check_plain

SETTINGS = dict(
    optimizer="muon",
    learning_rate=1e-3,
    muon_lr=0.02,
    muon_momentum=0.95,
    strategy="ddp",
    weight_decay=0.1,
    beta1=0.9,
    beta2=0.95,
    freeze="",
    layer_lr_decay=1.0,
    dtype="float32",
    max_iters=110,
    lr_schedule="cosine",
    decay_lr=True,
    warmup_iters=10,
    warmup_ratio=0.0,
    lr_decay_iters=-1,
    min_lr=-1.0,
    lr_cooldown=0.2,
    lr_power=1.0,
    lr_step_iters=30,
    lr_gamma=0.1,
)


def rates(steps, **changes):
    """The learning rates at these steps, with SETTINGS but for the changes."""
    schedule, _ = optim.resolve_schedule({**SETTINGS, **changes})
    return [optim.lr_at(step, **schedule) for step in steps]


def tiny_gpt(seed=0, **changes):
    torch.manual_seed(seed)
    return GPT(GPTConfig(**{**dict(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16), **changes}))


def build(model, **changes):
    return optim.build_optimizer(model, {**SETTINGS, **changes}, "cpu")


def random_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def names_of(optimizer):
    return [name for group in optimizer.param_groups for name in group["param_names"]]


# ---- schedules


@pytest.mark.parametrize(
    "changes, table",
    [
        (
            dict(lr_schedule="cosine"),
            {0: 1e-3 / 11, 5: 6e-3 / 11, 10: 1e-3, 60: 5.5e-4, 110: 1e-4, 111: 1e-4},
        ),
        (dict(lr_schedule="cosine"), {35: 1e-4 + 9e-4 * (1 + math.sqrt(0.5)) / 2}),  # a quarter of the way
        (dict(lr_schedule="constant"), {0: 1e-3 / 11, 9: 1e-2 / 11, 10: 1e-3, 60: 1e-3, 1000: 1e-3}),
        (dict(lr_schedule="constant", warmup_iters=0), {0: 1e-3, 50: 1e-3}),
        (dict(lr_schedule="linear", min_lr=0.0), {10: 1e-3, 60: 5e-4, 109: 1e-5, 110: 0.0, 200: 0.0}),
        (
            dict(lr_schedule="step", warmup_iters=0, min_lr=0.0),
            {0: 1e-3, 29: 1e-3, 30: 1e-4, 59: 1e-4, 60: 1e-5},
        ),
        (
            dict(lr_schedule="step"),
            {9: 1e-2 / 11, 39: 1e-3, 40: 1e-4, 70: 1e-4, 100: 1e-4},
        ),  # after the warm-up
        (dict(lr_schedule="polynomial", lr_power=2.0, min_lr=0.0), {10: 1e-3, 60: 2.5e-4, 110: 0.0}),
        (
            dict(lr_schedule="trapezoid", max_iters=100),
            {0: 1e-3 / 11, 10: 1e-3, 80: 1e-3, 90: 5.5e-4, 100: 1e-4},
        ),
        (dict(lr_schedule="trapezoid", max_iters=100, lr_cooldown=1.0), {10: 1e-3, 55: 5.5e-4, 100: 1e-4}),
    ],
)
def test_literal_values(changes, table):
    assert rates(table, **changes) == pytest.approx(list(table.values()), rel=1e-12, abs=0)


def test_both_ends_are_exact():
    for kind in ("linear", "cosine", "polynomial", "trapezoid"):
        for lr, min_lr in ((3e-4, 7e-6), (0.02, 0.0019), (1e-3, 1e-3), (0.1, 0.0)):
            changes = dict(lr_schedule=kind, learning_rate=lr, min_lr=min_lr, warmup_iters=7)
            assert rates([7, 110, 111], **changes) == [lr, min_lr, min_lr]


def test_polynomial_of_power_1_is_linear():
    assert rates(range(120), lr_schedule="polynomial") == rates(range(120), lr_schedule="linear")


def test_never_0_before_the_end_and_never_above_learning_rate():
    """Also where the warm-up outlasts the decay or the run, and in runs of one update (nanoGPT#443, #691)."""
    warmups, ends, lengths = (0, 1, 2, 5, 20, 100), (-1, 1, 3, 50, 200), (1, 2, 100)
    for kind, warmup, end, max_iters in itertools.product(optim.SCHEDULES, warmups, ends, lengths):
        for min_lr in (0.0, 1e-4, 1e-3):
            changes = dict(lr_schedule=kind, warmup_iters=warmup, lr_decay_iters=end, max_iters=max_iters)
            values = rates(range(max_iters), min_lr=min_lr, **changes)
            last = max(warmup, max_iters if end == -1 else end)
            assert all(value > 0 for value in values[:last])
            assert max(values) <= 1e-3
            assert all(value >= min_lr for value in values[warmup:])


def test_rates_count_updates_and_not_micro_steps():
    def run(micro_steps):
        schedule, _ = optim.resolve_schedule(SETTINGS)
        weight = torch.nn.Parameter(torch.ones(()))
        optimizer = torch.optim.SGD([weight])
        seen = []
        for step in range(112):
            optimizer.param_groups[0]["lr"] = optim.lr_at(step, **schedule)
            for _ in range(micro_steps):
                (weight / micro_steps).backward()
            before = weight.item()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(before - weight.item())
        return seen

    assert run(1) == run(4) == pytest.approx(rates(range(112)), abs=1e-7)


def test_settings_are_filled_in():
    schedule, warning = optim.resolve_schedule(
        {**SETTINGS, "max_iters": 1000, "warmup_iters": 0, "warmup_ratio": 0.03}
    )
    assert (schedule["warmup_iters"], schedule["lr_decay_iters"], schedule["min_lr"]) == (30, 1000, 1e-4)
    assert warning == ""
    # nanoGPT's fine-tuning: decay_lr=False with a min_lr that is above learning_rate and not used
    assert rates([10, 109], decay_lr=False, learning_rate=3e-5, min_lr=6e-5) == [3e-5, 3e-5]


@pytest.mark.parametrize("changes", [dict(warmup_iters=200), dict(warmup_iters=110), dict(warmup_ratio=1.0)])
def test_a_warmup_as_long_as_the_run_is_warned_about(changes):
    _, warning = optim.resolve_schedule({**SETTINGS, "warmup_iters": 0, **changes})
    assert warning.startswith("WARNING")
    assert str(changes.get("warmup_iters", 110)) in warning and "run of 110" in warning
    assert optim.resolve_schedule({**SETTINGS, "warmup_iters": 109})[1] == ""


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(lr_schedule="cosin"), ["cosin", *optim.SCHEDULES]),
        (dict(warmup_ratio=0.1), ["warmup_iters=10", "warmup_ratio=0.1"]),
        (dict(warmup_ratio=3.0, warmup_iters=0), ["warmup_ratio=3.0", "0 to 1"]),
        (dict(warmup_iters=-1), ["warmup_iters=-1"]),
        (dict(min_lr=2e-3), ["min_lr=0.002", "0.001", "-1"]),
        (dict(min_lr=-0.5), ["min_lr=-0.5"]),
        (dict(learning_rate=0.0), ["learning_rate=0.0"]),
        (dict(learning_rate=math.nan), ["learning_rate=nan"]),
        (dict(lr_decay_iters=0), ["lr_decay_iters=0", "-1"]),
        (dict(lr_cooldown=0.0), ["lr_cooldown=0.0"]),
        (dict(lr_power=-1.0), ["lr_power=-1.0"]),
        (dict(lr_step_iters=0), ["lr_step_iters=0"]),
        (dict(lr_gamma=1.5), ["lr_gamma=1.5"]),
    ],
)
def test_impossible_schedules_are_refused_in_one_line(changes, words):
    with pytest.raises(ValueError) as error:
        optim.resolve_schedule({**SETTINGS, **changes})
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words)


# ---- groups


@pytest.mark.parametrize("kind", optim.STATE_NAMES)
@pytest.mark.parametrize("arch", ["modern", "gpt2"])  # gpt2: a tied head, biases
def test_every_parameter_is_in_one_group_and_only_matrices_decay(kind, arch):
    model = tiny_gpt(arch=arch, bias=arch == "gpt2")
    optimizer = build(model, optimizer=kind)
    assert sorted(names_of(optimizer)) == sorted(name for name, _ in model.named_parameters())
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == sum(
        p.numel() for p in model.parameters()
    )
    for group in optimizer.param_groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            if kind == "muon":
                matrix_in_block = p.ndim == 2 and name.startswith("blocks.")
                assert group["kind"] == ("muon" if matrix_in_block else "adamw")
                assert group["weight_decay"] == (0.1 if matrix_in_block else 0.0)
            else:
                assert group["weight_decay"] == (0.1 if p.ndim == 2 else 0.0)


def test_learning_rate_reaches_every_group():
    (rate,) = rates([50], lr_schedule="constant", learning_rate=5e-4)
    for kind in ("adamw", "adam", "sgd"):
        for group in build(tiny_gpt(), optimizer=kind, learning_rate=5e-4).param_groups:
            assert group["lr"] == rate * group["lr_scale"] == 0.0005
    matrices = [g for g in build(tiny_gpt(), learning_rate=5e-4).param_groups if g["kind"] == "muon"]
    assert [g["lr"] for g in matrices] == pytest.approx([0.02])


@pytest.mark.parametrize("kind", optim.STATE_NAMES)
def test_frozen_parameters_stay_bit_equal(kind):
    model = tiny_gpt()
    before = copy.deepcopy(model.state_dict())
    optimizer = build(model, optimizer=kind, freeze="wte, blocks.0")
    assert not any(name.startswith(("wte.", "blocks.0.")) for name in names_of(optimizer))
    for step in range(20):
        random_gradients(model, step)  # gradients even for what is frozen
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(("wte.", "blocks.0."))


def test_freeze_takes_whole_names():
    model = tiny_gpt(n_layer=11)
    optim.freeze_parameters(model, "blocks.1")
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"1"}  # and not 10
    tied = tiny_gpt(arch="gpt2")
    optim.freeze_parameters(tied, "head")
    assert not tied.wte.weight.requires_grad
    with pytest.raises(ValueError, match=r"freeze=blok matches no parameter.*wte.*blocks.*head"):
        optim.freeze_parameters(model, "wte,blok")
    with pytest.raises(ValueError, match="leaves nothing to train"):
        build(model, freeze="wte,blocks,norm,head")


def test_layer_lr_decay_holds_at_every_step_of_the_schedule():
    model = tiny_gpt(n_layer=3, arch="gpt2", tie_weights=0)
    expected = {"wte": 0.9**3, "wpe": 0.9**3, "blocks.0": 0.9**3, "blocks.1": 0.9**2, "blocks.2": 0.9}
    expected |= {"norm": 1.0, "head": 1.0}
    schedule, _ = optim.resolve_schedule(SETTINGS)
    for kind in ("adamw", "muon"):
        optimizer = build(model, optimizer=kind, layer_lr_decay=0.9)
        for step in range(111):
            lr = optim.lr_at(step, **schedule)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
                muon = 0.02 / 1e-3 if group["kind"] == "muon" else 1.0
                for name in group["param_names"]:
                    (factor,) = [f for prefix, f in expected.items() if name.startswith(prefix + ".")]
                    assert group["lr"] == pytest.approx(lr * muon * factor, rel=1e-12)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(optimizer="lion"), ["optimizer=lion", "muon, adamw, adam, sgd"]),
        (dict(learning_rate=-1.0), ["learning_rate=-1.0"]),
        (dict(muon_lr=0.0), ["muon_lr=0.0"]),
        (dict(beta2=1.0), ["beta2=1.0"]),
        (dict(muon_momentum=1.5), ["muon_momentum=1.5"]),
        (dict(weight_decay=-0.1), ["weight_decay=-0.1"]),
        (dict(layer_lr_decay=0.0), ["layer_lr_decay=0.0"]),
    ],
)
def test_impossible_optimizers_are_refused_in_one_line(changes, words):
    with pytest.raises(ValueError) as error:
        build(tiny_gpt(), **changes)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words)


# ---- AdamW, Adam, SGD


def run_beside(kind, twin_step, steps=20, **changes):
    """Train a model with ours and a copy with twin_step(name, p, step); return the largest difference."""
    model = tiny_gpt(bias=True, arch="gpt2")
    twin = copy.deepcopy(model)
    optimizer = build(model, optimizer=kind, **changes)
    for step in range(steps):
        random_gradients(model, step)
        random_gradients(twin, step)
        optimizer.step()
        with torch.no_grad():
            for name, p in twin.named_parameters():
                twin_step(name, p, step)
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    return max((p - q).abs().max().item() for p, q in pairs)


@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_adam_equals_a_twin_written_out(kind):
    m, v = {}, {}

    def twin(name, p, step, lr=1e-3, beta1=0.9, beta2=0.95):
        decay = 0.1 if p.ndim == 2 else 0.0
        g = p.grad
        if kind == "adamw":
            p -= lr * decay * p  # decoupled: the gradient's averages do not see it
        else:
            g = g + decay * p  # coupled: L2
        m[name] = beta1 * m.get(name, 0) + (1 - beta1) * g
        v[name] = beta2 * v.get(name, 0) + (1 - beta2) * g * g
        m_hat = m[name] / (1 - beta1 ** (step + 1))
        v_hat = v[name] / (1 - beta2 ** (step + 1))
        p -= lr * m_hat / (v_hat.sqrt() + 1e-8)

    assert run_beside(kind, twin) < 1e-6


def test_sgd_equals_a_twin_written_out():
    average = {}

    def twin(name, p, step):
        g = p.grad + (0.1 if p.ndim == 2 else 0.0) * p
        average[name] = 0.95 * average[name] + g if step else g
        p -= 1e-3 * average[name]

    assert run_beside("sgd", twin) < 1e-6


@pytest.mark.parametrize(
    "kind", ["adamw", "muon"]
)  # under Muon, AdamW has norms, embeddings and head: no decay
def test_adamw_equals_torch_unfused(kind):
    model = tiny_gpt(bias=True, arch="gpt2")
    twin = copy.deepcopy(model)
    optimizer = build(model, optimizer=kind)
    inside = {name for name, p in twin.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
    matrices = [p for name, p in twin.named_parameters() if p.ndim == 2 and name not in inside]
    vectors = [p for p in twin.parameters() if p.ndim < 2]
    if kind == "adamw":
        matrices += [p for name, p in twin.named_parameters() if name in inside]
    groups = [
        dict(params=matrices, weight_decay=0.1 if kind == "adamw" else 0.0),
        dict(params=vectors, weight_decay=0),
    ]
    reference = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), foreach=False, fused=False)
    for step in range(20):
        random_gradients(model, step)
        random_gradients(twin, step)
        optimizer.step()
        reference.step()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if kind == "adamw" or name not in inside:
            torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


def test_adam_is_adamw_without_decay_and_differs_with_it():
    def train(kind, weight_decay):
        model = tiny_gpt()
        optimizer = build(model, optimizer=kind, weight_decay=weight_decay)
        for step in range(5):
            random_gradients(model, step)
            optimizer.step()
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(train("adam", 0.0), train("adamw", 0.0))
    assert (train("adam", 0.1) - train("adamw", 0.1)).abs().max() > 1e-5


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_without_a_gradient_matrices_shrink_and_vectors_stay(kind):
    model = tiny_gpt(bias=True, arch="gpt2")
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = build(model, optimizer=kind, learning_rate=0.01, weight_decay=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for group in optimizer.param_groups:
        factor = 1 - group["lr"] * group["weight_decay"]
        assert factor == 1 or any(p.ndim == 2 for p in group["params"])
        for name, p in zip(group["param_names"], group["params"], strict=True):
            torch.testing.assert_close(p, before[name] * factor, rtol=0, atol=1e-7)
            assert p.ndim == 2 or torch.equal(p, before[name])


# ---- Muon


def stack_with_singular_values(n, rows, cols, smallest, seed=0):
    """n matrices (rows, cols) in float64 whose singular values fall evenly from 1 to `smallest`."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(n, rows, cols, generator=generator, dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(random, full_matrices=False)
    return U * torch.linspace(1, smallest, min(rows, cols), dtype=torch.float64) @ Vh


@pytest.mark.parametrize("rows, cols", [(16, 16), (64, 16), (16, 64)])
def test_newton_schulz_keeps_singular_vectors_and_evens_out_singular_values(rows, cols):
    x = stack_with_singular_values(3, rows, cols, smallest=0.1)  # 0.03 or more once the Frobenius norm is 1
    U, _, Vh = torch.linalg.svd(x, full_matrices=False)
    y = muon.newton_schulz(x, torch.float64)
    inside = U.mT @ y @ Vh.mT  # (N, r, r): diagonal if and only if the singular vectors are the same
    values = inside.diagonal(dim1=-2, dim2=-1)
    assert (inside - torch.diag_embed(values)).abs().max() < 1e-6
    assert values.min() > 0.6 and values.max() < 1.2
    for precision, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        close = muon.newton_schulz(x.float(), precision)
        assert close.dtype == precision and close.shape == x.shape
        torch.testing.assert_close(close.double(), y, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rows, cols", [(16, 16), (64, 16), (16, 64)])
def test_batched_newton_schulz_equals_one_by_one(rows, cols):
    x = torch.randn(5, rows, cols)
    one_by_one = torch.cat([muon.newton_schulz(matrix[None], torch.float32) for matrix in x])
    torch.testing.assert_close(muon.newton_schulz(x, torch.float32), one_by_one, rtol=0, atol=1e-5)
    assert muon.newton_schulz(torch.zeros(2, rows, cols), torch.float32).abs().max() == 0


def muon_slowly(params: list, buffers: list, lr: float, momentum: float, decay: float, precision) -> None:
    """One step of Muon, a parameter at a time, as in the paper."""
    for p, buffer in zip(params, buffers, strict=True):
        buffer.lerp_(p.grad, 1 - momentum)
        ahead = p.grad.lerp(buffer, momentum)
        p.mul_(1 - lr * decay)
        (update,) = muon.newton_schulz(ahead[None], precision)
        p.add_(update, alpha=-lr * max(1.0, p.size(0) / p.size(1)) ** 0.5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_muon_on_stacks_equals_one_parameter_at_a_time(precision):
    shapes = [(8, 8), (16, 8), (8, 8), (8, 16), (8, 8)]
    params, twins = ([torch.nn.Parameter(torch.ones(s)) for s in shapes] for _ in range(2))
    buffers = [torch.zeros(s) for s in shapes]
    group = {"params": params, "kind": "muon", "lr": 0.02, "weight_decay": 0.1}
    optimizer = muon.Muon([group], 0.9, (0.9, 0.95), True, precision)
    for step in range(5):
        optimizer.found_inf = [None, torch.zeros(())][step % 2]  # 0: the flag is there and not raised
        for p, twin in zip(params, twins, strict=True):
            twin.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            p.grad = twin.grad.clone()
        optimizer.step()
        muon_slowly(twins, buffers, 0.02, 0.9, 0.1, precision)
    tolerance = 1e-6 if precision == torch.float32 else 1e-3  # batched products sum in another order
    for p, twin, buffer in zip(params, twins, buffers, strict=True):
        assert torch.equal(optimizer.state[p]["momentum_buffer"], buffer)
        torch.testing.assert_close(p, twin, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "precision, tolerance",  # of weights of size 1, moved by about 10 updates x lr 0.02 x 1/8
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-3)],
)
def test_muon_equals_torch(precision, tolerance, monkeypatch):
    wide = torch.float64 if precision == torch.float64 else torch.float32
    if (
        precision != torch.bfloat16
    ):  # torch.optim.Muon always computes Newton-Schulz in bfloat16, by this call
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 16), (64, 16), (16, 64), (16, 16), (64, 16), (16, 64), (16, 16)]
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(wide)) for shape in shapes]
    theirs = copy.deepcopy(ours)
    group = dict(params=ours, kind="muon", lr=0.02, weight_decay=0.1)
    optimizer = muon.Muon([group], 0.95, (0.9, 0.95), False, precision)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True)
    start = ours[0].detach().clone()
    for _ in range(10):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator).to(wide)
            q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
    assert (ours[0] - start).abs().max() > 0.02
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=tolerance)


def test_muon_updates_have_the_length_of_their_shape():
    """Orthogonal rows or columns: root-mean-square 1/sqrt(cols), whatever the size of the gradient."""
    model = tiny_gpt()
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = build(model, muon_lr=1.0, weight_decay=0.0)
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    optimizer.step()
    for group in optimizer.param_groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            if group["kind"] == "muon":
                size = (p - before[name]).square().mean().sqrt().item()
                assert 0.5 < size * math.sqrt(p.size(1)) / math.sqrt(min(1.0, p.size(1) / p.size(0))) < 2.0


# ---- all four


def training_batch():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(11, (4, 9), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def train(model, optimizer, steps):
    x, y = training_batch()
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(x).flatten(0, 1).float(), y.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind, lr", [("muon", 3e-3), ("adamw", 3e-3), ("adam", 3e-3), ("sgd", 0.05)])
def test_each_optimizer_lowers_the_loss_in_20_updates(kind, lr):
    model = tiny_gpt()
    losses = train(model, build(model, optimizer=kind, learning_rate=lr, weight_decay=0.01), 21)
    assert losses[20] < losses[0] - 0.1


@pytest.mark.parametrize("kind", optim.STATE_NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_resumed_is_bit_equal(kind, dtype, tmp_path):
    model = tiny_gpt()
    optimizer = build(model, optimizer=kind, dtype=dtype)
    train(model, optimizer, 4)
    check_plain(optimizer.state_dict(), "optimizer")
    torch.save(dict(model=model.state_dict(), optimizer=optimizer.state_dict()), tmp_path / "ckpt.pt")
    straight = train(model, optimizer, 4)

    saved = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    resumed = tiny_gpt(seed=1)
    resumed.load_state_dict(saved["model"])
    optimizer = build(resumed, optimizer=kind, dtype=dtype)
    optim.load_state(optimizer, saved["optimizer"])
    assert train(resumed, optimizer, 4) == straight
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


def test_load_state_keeps_the_new_settings_and_refuses_another_optimizer():
    model = tiny_gpt()
    old = build(model)
    train(model, old, 2)
    new = build(model, weight_decay=0.3, muon_lr=0.1)
    optim.load_state(new, old.state_dict())
    (group,) = [group for group in new.param_groups if group["kind"] == "muon"]
    assert group["weight_decay"] == 0.3 and group["lr_scale"] == pytest.approx(100)
    p = group["params"][0]
    assert torch.equal(new.state[p]["momentum_buffer"], old.state[p]["momentum_buffer"])
    for changes in (dict(optimizer="adamw"), dict(layer_lr_decay=0.5), dict(freeze="wte")):
        with pytest.raises(ValueError, match="the saved run had another optimizer"):
            optim.load_state(build(tiny_gpt(), **changes), old.state_dict())


@pytest.mark.parametrize("kind", optim.STATE_NAMES)
def test_gradients_are_clipped_after_unscaling_and_an_overflow_skips_the_update(kind):
    model = tiny_gpt()
    optimizer = build(model, optimizer=kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))  # starts the scaler

    def update(factor):
        random_gradients(model, 0)
        for p in model.parameters():
            p.grad *= factor * scaler.get_scale()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        clipped = torch.cat([p.grad.flatten() for p in model.parameters()])
        before = copy.deepcopy(list(model.parameters()))
        scaler.step(optimizer)
        scaler.update()
        moved = any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        return norm.item(), clipped, moved

    norm, clipped, moved = update(1000.0)
    assert norm > 1000 and clipped.norm().item() == pytest.approx(1.0, abs=1e-5) and moved
    norm, clipped, moved = update(1e-4)
    assert clipped.norm().item() == pytest.approx(norm, rel=1e-6) and norm < 1 and moved
    assert scaler.get_scale() == 1024.0
    assert not update(math.inf)[2]
    assert scaler.get_scale() == 512.0
