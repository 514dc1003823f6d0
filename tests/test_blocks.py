"""Latent attention, experts, sliding windows, several tokens ahead: twins in loops, caches, counted bytes."""

import dataclasses
import json
import math
import re

import pytest
import torch
import torch.nn.functional as F

import optim
from generate import Cache
from lab import plan
from lab.measure import settings_of
from machine.speed import flops_forward, parameters_of
from model import GPT, GPTConfig, rope_tables, rotate, summed_nats
from runtime import memory, trust
from techniques import BLOCKS, average, change, experts, multi_token, pretrained, quantize
from test_strategies import MODEL, losses, run_all

OPTIONS = {
    "latent": dict(latent_rank=6, latent_rope=4),
    "experts": dict(experts=4, experts_active=2, experts_width=0, experts_balance=0.01),
    "sliding": dict(sliding_window=5, sliding_global_every=2),
    "multi_token": dict(multi_token=2, multi_token_weight=0.3),
    "lora": dict(lora_rank=2),
}
FLAGS = {name: [f"--{key}={value}" for key, value in options.items()] for name, options in OPTIONS.items()}


def made(name: str, seed: int = 0, shape: dict | None = None, **options) -> GPT:
    """A small model with the technique; all of its matrices differ from zero, so that each counts."""
    torch.manual_seed(seed)
    small = dict(vocab_size=23, block_size=16, n_layer=2, n_head=2, n_embd=16)
    model = GPT(GPTConfig(**{**small, **(shape or {})}))
    own = {key: value for part in name.split(",") for key, value in OPTIONS[part].items()}
    model = change("change_model", model, {"technique": name, **own, **options})
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.1)
    return model


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 23, shape, generator=torch.Generator().manual_seed(7))


# ---- twins
@pytest.mark.parametrize("arch", ["llama", "modern"])
def test_latent_attention_is_that_of_loops(arch):
    """Token by token and head by head, in float64; the absorbed form, which generation uses, too."""
    model = made("latent", shape=dict(arch=arch, n_kv_head=2)).double()
    attention, T, hs, rope = model.blocks[0].attn, 7, 8, 4
    torch.manual_seed(1)
    x = torch.randn(1, T, 16, dtype=torch.float64)
    cos, sin = rope_tables(torch.arange(T)[None], rope, 10000.0)  # of 4 channels, not of every second of 8
    weights = {name: getattr(attention, name).weight for name in ("q", "kv", "k", "v", "o")}

    def turned(vector: torch.Tensor, t: int) -> torch.Tensor:
        return rotate(vector.view(1, 1, 1, -1), cos[:, t : t + 1], sin[:, t : t + 1]).flatten()

    def unit(vector: torch.Tensor) -> torch.Tensor:
        return vector / (vector.square().mean() + 1e-5).sqrt()

    latents, rotary = [], []
    for t in range(T):
        joined = weights["kv"] @ x[0, t]
        latents.append(unit(joined[:6]) * attention.latent_norm.weight)
        rotary.append(turned(unit(joined[6:]) if arch == "modern" else joined[6:], t))
    expected = torch.zeros(T, 16, dtype=torch.float64)
    for t in range(T):
        heads = []
        for h in range(2):
            q = (weights["q"] @ x[0, t])[12 * h : 12 * (h + 1)]
            q = unit(q) if arch == "modern" else q
            q = torch.cat((q[:hs], turned(q[hs:], t)))
            rows = slice(hs * h, hs * (h + 1))
            keys = [torch.cat((weights["k"][rows] @ latents[s], rotary[s])) for s in range(t + 1)]
            shares = torch.softmax(torch.stack([q @ k for k in keys]) / math.sqrt(hs + rope), dim=0)
            heads.append(sum(shares[s] * (weights["v"][rows] @ latents[s]) for s in range(t + 1)))
        expected[t] = weights["o"] @ torch.cat(heads)
    tables = rope_tables(torch.arange(T)[None], hs, 10000.0)
    torch.testing.assert_close(attention(x, tables)[0], expected, rtol=1e-5, atol=1e-6)
    model.eval()
    caches = [Cache(16) for _ in model.blocks]
    step = [model.next_logits(ids(1, 9)[:, :n], caches, None) for n in (5,)]
    step += [model.next_logits(ids(1, 9)[:, n : n + 1], caches, None) for n in range(5, 9)]
    torch.testing.assert_close(torch.cat(step), model(ids(1, 9))[0, 4:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("active", [1, 2])
def test_experts_are_those_of_a_loop_over_tokens(active):
    model = made("experts", experts_active=active)
    layer = model.blocks[0].mlp
    layer.bias.copy_(torch.tensor([0.0, 0.02, -0.03, 0.01]))
    torch.manual_seed(2)
    x = torch.randn(3, 5, 16)
    rows, counts = [], torch.zeros(4)
    for token in x.view(15, 16):
        scores = torch.sigmoid(layer.router @ token)
        order = sorted(range(4), key=lambda e: -(scores[e] + layer.bias[e]).item())[:active]
        total = sum(scores[e] for e in order) if active > 1 else 1.0
        rows.append(sum(scores[e] / total * layer.experts[e](token[None])[0] for e in order))
        for e in order:
            counts[e] += 1
    expected = torch.stack(rows).view(3, 5, 16)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    assert torch.equal(layer.counts, counts) and counts.sum() == 15 * active  # no token is left out
    wanted = torch.autograd.grad(expected.square().sum(), list(layer.parameters()), allow_unused=True)
    for ours, theirs in zip(
        torch.autograd.grad(found.square().sum(), list(layer.parameters())), wanted, strict=True
    ):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs)


def test_biases_move_towards_equal_work():
    """By `balance` for each update, up where an expert had less than the mean; then counting begins anew."""
    model = made("experts")
    for block, counts in zip(model.blocks, ([9.0, 3.0, 6.0, 6.0], [0.0, 0.0, 24.0, 0.0]), strict=True):
        block.mlp.counts.copy_(torch.tensor(counts))
    experts.after_step(model, 1, {"experts_balance": 0.01})
    assert model.blocks[0].mlp.bias.tolist() == pytest.approx([-0.01, 0.01, 0.0, 0.0])
    assert model.blocks[1].mlp.bias.tolist() == pytest.approx([0.01, 0.01, -0.01, 0.01])
    assert not any(block.mlp.counts.any() for block in model.blocks)
    model(ids(2, 8))
    assert model.blocks[0].mlp.counts.sum() == 32
    model.eval()
    model(ids(2, 8))
    model.train()  # what an evaluation has read does not count
    assert not model.blocks[0].mlp.counts.any()
    layer, before = model.blocks[0].mlp, model.blocks[0].mlp.bias.clone()
    for expected in (32, 64, 96):  # micro-steps of one update
        model(ids(2, 8)).sum().backward()
        assert layer.counts.sum() == expected
    model.zero_grad()  # memory had run out, or the number of threads was tried
    model(ids(2, 8))
    assert layer.counts.sum() == 32
    model.requires_grad_(False)
    experts.after_step(model, 2, {"experts_balance": 0.01})
    assert torch.equal(layer.bias, before) and not layer.counts.any()


def test_several_tokens_ahead_are_those_of_a_loop():
    """Targets that are masked or beyond the window are not scored; evaluation sees one token ahead."""
    model = made("multi_token")
    x, y = ids(2, 8), ids(3, 8)[1:].clone()
    y[0, 2] = y[1, 7] = -1
    hidden = model.trunk(x)
    rope = rope_tables(torch.arange(8)[None], 8, 10000.0)
    expected = torch.zeros(())
    for ahead in range(3):
        states = hidden if ahead == 0 else model.ahead.blocks[ahead - 1](hidden, rope)
        logits = model.to_logits(states)
        for row in range(2):
            for t in range(8 - ahead):
                target = y[row, t + ahead]
                if target >= 0:
                    expected = (
                        expected - (0.3 if ahead else 1.0) * F.log_softmax(logits[row, t], dim=0)[target]
                    )
    found = multi_token.loss(model, x, y, {})
    torch.testing.assert_close(found, expected)
    found.backward()
    assert all(p.grad.any() for p in model.ahead.parameters())
    plain = GPT(model.config)
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if "ahead" not in name})
    assert torch.equal(plain(x), model(x))
    model.ahead.weight = 0.0
    torch.testing.assert_close(model(x, y), summed_nats(plain(x), y))


def test_a_window_hides_what_is_further_back():
    """The second layer is global, so with two layers all is seen; one that slides sees 5 tokens, in training
    (both ways to compute it) and through the cache."""
    for every, layers, seen in ((0, 1, 5), (0, 2, 9), (2, 1, 5), (2, 2, 16)):
        model = made("sliding", shape=dict(n_layer=layers, token_shift=0), sliding_global_every=every)
        for dtype in (torch.float32, torch.bfloat16):
            model = model.to(dtype)
            x = model.wte(ids(1, 16)).detach().requires_grad_()
            model.wte.forward = lambda idx, x=x: x
            model(ids(1, 16))[0, 15].float().square().sum().backward()
            del model.wte.forward
            touched = x.grad[0].abs().sum(-1) > 0
            assert touched.tolist() == [False] * (16 - seen) + [True] * seen, (every, layers, dtype)


# ---- generation
def greedy(model: GPT, prompt: list[int], n: int) -> list[int]:
    """Without a cache: each token reads all tokens before it, at most block_size."""
    row = list(prompt)
    for _ in range(n):
        window = torch.tensor([row[-model.config.block_size :]])
        row.append(int(model(window)[0, -1].argmax()))
    return row


@pytest.mark.parametrize(
    "shape", [{}, pytest.param(dict(arch="llama"), marks=pytest.mark.slow)], ids=["modern", "llama"]
)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in BLOCKS),
        ("sliding", dict(sliding_global_every=0)),
        ("latent,experts,multi_token", {}),
        ("latent,lora", dict(lora_targets="k,v")),
    ],
)
def test_the_cache_gives_the_tokens_of_none(name, options, shape):
    """Prompts of different lengths, shorter and longer than the window; beyond block_size; static shapes."""
    shape = {**shape, "n_kv_head": 2} if "latent" in name else shape
    model = made(name, shape=shape, **options).eval()
    with torch.no_grad():
        model.head.weight.mul_(20)  # no ties
        prompts = [ids(1, 3)[0].tolist(), ids(1, 9)[0].tolist(), [5]]
        expected = [greedy(model, prompt, 5) for prompt in prompts]
        assert model.generate(prompts, 5, temperature=0) == expected
        assert model.generate(prompts, 5, temperature=0, graph=True) == expected
        assert model.generate(prompts[:1], 20, temperature=0) == [greedy(model, prompts[0], 20)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_of_a_cache_are_those_of_the_formula(dtype):
    """1 row of 16 tokens, 2 layers, K hs = 16; experts and further blocks leave the cache as it is."""
    numbers = {
        "experts": 2 * 2 * 16 * 16,
        "multi_token": 2 * 2 * 16 * 16,
        "latent": 2 * (6 + 4) * 16,  # rank + rope numbers a token and layer
        "sliding": 2 * 16 * 16 + 2 * 16 * 5,  # a layer with all tokens, and one with 5
    }
    for name, expected in numbers.items():
        model = made(name).to(dtype).eval()
        caches = [Cache(16) for _ in model.blocks]
        with torch.no_grad():
            model.next_logits(ids(1, 7), caches, None)
            for n in range(7, 16):
                model.next_logits(ids(1, 16)[:, n : n + 1], caches, None)
        assert sum(cache.kv.nbytes for cache in caches) == expected * dtype.itemsize, name


# ---- numbers
def test_parameters_are_those_of_the_formulas():
    C, F_, V, rank, rope = 16, 64, 23, 6, 4
    plain = GPT(GPTConfig(vocab_size=V, block_size=16, n_layer=2, n_head=2, n_embd=C))
    base, norm = parameters_of(plain), C
    attention = C * (C + 2 * rope) + C * (rank + rope) + 2 * rank * C + C * C + rank
    assert parameters_of(made("latent")) == base + 2 * (attention - 4 * C * C)
    total, active = 4 * 2 * C * F_ // 2 + 4 * C, 2 * 2 * C * F_ // 2 + 4 * C
    mixed = made("experts")
    assert parameters_of(mixed) == base + 2 * (total - 2 * C * F_)
    idle = sum(block.mlp.idle() for block in mixed.blocks)
    assert parameters_of(mixed) - idle == base + 2 * (active - 2 * C * F_)
    assert flops_forward(mixed) == flops_forward(plain) + 2 * 2 * 4 * C  # the router's
    assert parameters_of(made("sliding")) == base
    assert parameters_of(made("multi_token")) == base + 2 * (12 * C * C + 3 * norm)


@pytest.mark.parametrize("name", ["latent", "experts", "multi_token"])
def test_new_layers_begin_like_the_models_own(name):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=23, block_size=16, n_layer=2, n_head=2, n_embd=64))
    before = {key: p.clone() for key, p in model.named_parameters()}
    model = change("change_model", model, {"technique": name, **OPTIONS[name]})
    for key, p in model.named_parameters():
        if key in before and p.shape == before[key].shape and not key.endswith((".o.weight", ".v.weight")):
            same = torch.equal(p, before[key])
            assert same or name == "latent", key
        elif key.endswith((".o.weight", ".down.weight")):
            assert not p.any(), key
        elif p.dim() == 2:
            assert p.std().item() == pytest.approx(0.02, rel=0.15), key
        else:
            assert (p == 1).all(), key
    groups = optim.parameter_groups(model, settings_of())
    muon = {key for group in groups if group["kind"] == "muon" for key, _ in group["params"]}
    matrices = {key for key, p in model.named_parameters() if p.dim() == 2}
    others = {"wte.weight", "head.weight", "blocks.0.mlp.router", "blocks.1.mlp.router"}
    assert muon == matrices - others


# ---- with others
@pytest.mark.parametrize("name", ["latent", "experts", "sliding", "multi_token"])
def test_packed_models_write_what_their_layers_compute(name):
    """One token at a time, where plain models have a faster way that knows plain layers only."""
    model = made(name, shape=dict(arch="llama", n_kv_head=2, n_embd=64, n_ff=64)).eval()
    packed = quantize.packed(model, "int8").bfloat16()
    found, expected = [], []
    for results, step in ((found, packed.next_logits), (expected, lambda *a: GPT.next_logits(packed, *a))):
        caches = [Cache(16) for _ in packed.blocks]
        with torch.no_grad():
            results.append(step(ids(1, 7), caches, None))
            for n in range(7, 12):
                results.append(step(ids(1, 12)[:, n : n + 1], caches, None))
    if name == "multi_token":  # its blocks are plain: the faster way is right
        torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=0.05, atol=0.05)
    else:
        assert torch.equal(torch.cat(found), torch.cat(expected))


@pytest.mark.parametrize("name", BLOCKS)
def test_lora_averages_and_packing_come_after_the_new_layers(name):
    """In whatever order they are named: they change, copy and pack what is there."""
    technique = f"lora,average,quantize,{name}"
    settings = {"technique": technique, "lora_targets": "q,o", "average_decay": 0.9, "quantize": "int8"}
    torch.manual_seed(0)
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=23, block_size=16, n_layer=2, n_head=2, n_embd=16))
        model = change("change_model", model, {**settings, **OPTIONS[name]}, f"lora,quantize,{name}")
    own = [key for key in model.state_dict() if key.startswith(("blocks", "ahead"))]
    assert any(key.endswith(".attn.q.A") for key in own) and any(key.endswith(".codes") for key in own)
    assert all("codes" in key or "scales" in key or "norm" in key or key[-2:] in (".A", ".B")
               or key.endswith(("router", "mlp.bias", "counts")) for key in own), own  # fmt: skip
    model = made(name)
    model = change("change_model", model, {"technique": f"average,{name}", "average_decay": 0.9}, "average")
    average.after_step(model, 1, {"average_decay": 0.9})
    saved = {"model": model.state_dict(), "config": {"technique": f"average,{name}"}}
    plain = made(name, seed=1)
    plain.load_state_dict(average.as_base(saved, saved["config"])["model"])
    assert torch.equal(plain.eval()(ids(1, 8)), model.eval()(ids(1, 8)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("latent", {"latent_rank": 0}, "latent_rank=0 makes no sense; expected 1 or more, such as 8"),
        ("latent", {"latent_rope": 3}, "latent_rope=3 does not fit heads of 8; expected an even divisor"),
        ("experts", {"experts_active": 9}, "experts_active=9 makes no sense; expected 1 to experts=8"),
        ("experts", {"experts_balance": -1.0}, "experts_balance=-1.0 makes no sense; expected 0 or more"),
        ("experts", {"experts_width": -1}, "experts_width=-1 makes no sense"),
        ("sliding", {"sliding_window": 0}, "sliding_window=0 makes no sense; expected 1 or more tokens"),
        ("sliding", {"sliding_global_every": 1}, "sliding_global_every=1 makes no sense; expected 2 or more"),
        ("sliding,latent", {}, "latent and sliding both replace attention; choose one"),
        ("multi_token", {"multi_token": 16}, "multi_token=16 makes no sense; expected 1 or more, below"),
        ("multi_token", {"multi_token_weight": 0.0}, "multi_token_weight=0.0 makes no sense"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_line(name, options, message):
    model = GPT(GPTConfig(vocab_size=23, block_size=16, n_layer=2, n_head=2, n_embd=16))
    with pytest.raises(ValueError, match=re.escape(message)):
        change("change_model", model, {"technique": name, **options})


def test_learned_positions_have_no_rotary_key():
    model = GPT(GPTConfig(arch="gpt2", n_embd=16, n_head=2))
    with pytest.raises(ValueError, match="technique=latent has a rotary key; expected --position=rope"):
        change("change_model", model, {"technique": "latent"})


def test_the_plan_has_no_formula_for_them():
    for name in BLOCKS:
        settings = settings_of(technique=name, dtype="float32")
        with pytest.raises(ValueError, match=f"technique={name}: its activations have no formula here"):
            list(plan.table(settings, 65, plan.Cluster()))
        assert memory.remedies(settings, 65, 1) == []


def test_a_run_says_what_it_is_made_of_and_others_refuse_it(train, tmp_path, capsys):
    """Parameters and bytes at its start are those of the model; it is no base of latent attention."""
    ran = train(*FLAGS["experts"], "--max_iters=1", "--eval_interval=1", "--max_new_tokens=1")
    out = capsys.readouterr().out
    tensors = [*ran["raw_model"].parameters(), *ran["raw_model"].buffers()]
    assert f"model: {parameters_of(ran['raw_model']):,} parameters," in out
    assert f"memory: {sum(t.nbytes for t in tensors):,} bytes of weights" in out
    run = tmp_path / "out"
    lines = experts.report({"out_dir": str(run), "file": "best.pt"})
    idle = sum(block.mlp.idle() for block in ran["raw_model"].blocks)
    total = parameters_of(ran["raw_model"])
    assert lines[0].startswith(
        f"{total:,} parameters, {total - idle:,} of them active for a token; val loss "
    )
    assert lines[1].endswith("equal shares are 25.0")
    for line in lines[2:]:
        assert sum(map(float, line.split(":")[1].split())) == pytest.approx(100, abs=0.3)
    with pytest.raises(ValueError, match="technique=latent cannot start from a base: its keys and values"):
        train(f"--init_from={run}", "--latent_rank=4", f"--out_dir={tmp_path / 'new'}")
    assert not (tmp_path / "new/config.json").exists()
    export = dict(to=str(tmp_path / "hf"), format="hf", dtype="", out_dir=str(run), file="best.pt")
    with pytest.raises(ValueError, match="has technique=experts: other programs do not know such layers"):
        pretrained.export_run(export)


def test_no_model_is_made_that_is_larger_than_its_weights():
    """A checkpoint may come from anywhere: a count in it must not take hours or all of the memory."""
    for name, setting in (("experts", "experts"), ("multi_token", "multi_token"), ("latent", "latent_rank")):
        model, settings = made(name), {"technique": name, **OPTIONS[name], "seed": 1}
        shape = dataclasses.asdict(model.config)
        trust.check_fit(shape, settings, model.state_dict(), "best.pt")
        with pytest.raises(ValueError, match=f"best.pt do not fit the model: {setting}=1000000000"):
            trust.check_fit(shape, {**settings, setting: 10**9}, model.state_dict(), "best.pt")


# ---- runs
@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_a_resumed_run_ends_with_the_same_bits(name, train, run_script, tmp_path, capsys):
    """20 updates in bfloat16, or 10 and 10; sample.py and evaluate.py open the run."""
    flags = [*FLAGS[name], "--dtype=bfloat16", "--dropout=0.1", "--gradient_accumulation_steps=2"]
    whole = train(*flags)["raw_model"].state_dict()
    two = f"--out_dir={tmp_path / 'two'}"
    train(*flags, two, "--max_iters=10", "--lr_decay_iters=20")
    again = train("--init_from=resume", two, "--max_iters=20", "--dtype=bfloat16")["raw_model"].state_dict()
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)
    val_loss = json.loads((tmp_path / "out/result.json").read_text(encoding="utf-8"))["best_val_loss"]
    capsys.readouterr()
    run_script("evaluate.py", "--dtype=bfloat16", "--device=cpu")
    found = float(re.search(r"loss ([\d.]+)", capsys.readouterr().out)[1])
    assert found == pytest.approx(val_loss, abs=0.2)  # of the whole split, not of one window
    run_script("sample.py", "--max_new_tokens=40", "--device=cpu", "--start=a")
    assert len(capsys.readouterr().out) > 30


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_micro_steps_and_recomputation_make_the_same_update(name, train):
    flags = [*FLAGS[name], "--max_iters=4", "--eval_interval=4", "--optimizer=sgd", "--learning_rate=0.1"]
    runs = [
        train(*flags, "--batch_size=8"),
        train(*flags, "--batch_size=2", "--gradient_accumulation_steps=4"),
        train(*flags, "--batch_size=8", "--gradient_checkpointing"),
    ]
    first, *others = (run["raw_model"].state_dict() for run in runs)
    for other in others:
        for key in first:
            torch.testing.assert_close(first[key], other[key], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(forks, datasets, tmp_path):
    (tmp_path / "datasets").symlink_to(datasets, target_is_directory=True)
    common = (
        f"--dataset=small {MODEL} --max_iters=4 --eval_interval=4 --latent_rope=8 --latent_rank=6".split()
    )
    common = [flag for flag in common if not flag.startswith("--latent")]

    def lines(*strategies: str) -> list[str]:
        return [
            " ".join([f"{name}-{strategy}", *common, *FLAGS[name], f"--strategy={strategy}"])
            for name in BLOCKS
            for strategy in strategies
        ]

    run_all(forks, tmp_path, 1, [line.replace("-ddp", "-one") for line in lines("ddp")])
    run_all(forks, tmp_path, 2, lines("ddp", "fsdp"))
    for name in BLOCKS:
        for strategy in ("ddp", "fsdp"):
            found, expected = (losses(tmp_path / f"{name}-{how}") for how in (strategy, "one"))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
