"""Packed weights: half a step of error at most, the bits that are promised, kernels equal to their twins."""

import re
import runpy
import sys

import pytest
import torch
import torch.nn.functional as F

from conftest import ROOT
from generate import Cache
from model import GPT, GPTConfig
from runtime import checkpoint
from techniques import change, gptq, quantize
from techniques.one_token import OneToken
from techniques.packed_layers import QuantLinear
from techniques.packing import (
    BLOCK,
    GROUP,
    LEVELS,
    SUPER,
    decode,
    encode,
    in_groups,
    nf4_scales,
    pack,
    unpack,
)

KINDS = quantize.KINDS
# QLoRA (Dettmers et al., 2023), appendix E
PAPER = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
]  # fmt: skip
SHAPES = [(1, 1), (3, 5), (2, 31), (7, 33), (5, 64), (65, 48), (13, 129), (300, 70)]


def matrices(shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Weights of many kinds: what half a step means differs from one to the next."""
    torch.manual_seed(sum(shape))
    normal = torch.randn(shape)
    rows = torch.logspace(-6, 3, shape[0])[:, None]
    outlier = normal.clone()
    outlier.view(-1)[0] = 300.0
    cases = dict(normal=normal, small=normal * 1e-6, rows=normal * rows, far=100 + 0.01 * normal)
    return cases | dict(outlier=outlier, zeros=normal * 0, equal=normal * 0 + 0.3, half=normal.relu())


def model_of(kind: str = "", tied: int = 1, seed: int = 0, **shape) -> GPT:
    """A small model with weights that matter; packed unless kind is ''."""
    torch.manual_seed(seed)
    sizes = dict(vocab_size=80, n_layer=2, n_head=3, n_kv_head=1, n_embd=96, n_ff=128, block_size=32)
    model = GPT(GPTConfig(**{**sizes, "arch": "llama", "tie_weights": tied, **shape})).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15) if p.dim() > 1 else torch.nn.init.uniform_(p, 0.5, 1.5)
    return quantize.packed(model, kind) if kind else model


# ---- formats
@pytest.mark.parametrize("n", [*range(1, 20), 64, 129])
def test_two_codes_to_a_byte_is_exact(n):
    torch.manual_seed(n)
    for shape in ((n,), (3, n)):
        codes = torch.randint(0, 16, shape)
        packed = pack(codes)
        assert packed.dtype == torch.uint8 and packed.shape == (*shape[:-1], (n + 1) // 2)
        assert torch.equal(unpack("int4", packed, n), (codes - 8).float())
        assert torch.equal(unpack("nf4", packed, n), torch.tensor(LEVELS["nf4"])[codes])


def test_the_levels_of_nf4_are_the_papers():
    assert LEVELS["nf4"] == pytest.approx(PAPER, abs=5e-7)
    assert LEVELS["nf4"][7] == 0 and len(LEVELS["nf4"]) == 16


@pytest.mark.parametrize("shape", SHAPES)
def test_an_int8_weight_is_wrong_by_half_a_step_at_most(shape):
    for name, w in matrices(shape).items():
        tensors = encode("int8", w)
        error = (decode("int8", shape, **tensors) - w).abs()
        assert (error <= tensors["scales"][:, None] / 2 * (1 + 1e-6)).all(), name
        assert (tensors["scales"] <= w.abs().amax(1) / 127 * (1 + 2**-8)).all(), name


@pytest.mark.parametrize("shape", SHAPES)
def test_an_int4_weight_is_wrong_by_half_a_step_at_most(shape):
    """A step is a fifteenth of the group's range, and more where bfloat16 cannot hold its zero."""
    for name, w in matrices(shape).items():
        tensors = encode("int4", w)
        error = (decode("int4", shape, *tensors.values()) - w).abs()
        groups, scales = in_groups(w), tensors["scales"].float()
        assert (in_groups(error).amax(-1) <= scales / 2 * (1 + 1e-3) + 1e-7 * groups.abs().amax(-1)).all(), (
            name
        )
        spread = groups.amax(-1) - groups.amin(-1)
        moved = 2**-8 * groups.abs().amax(-1)  # what bfloat16 may move the zero by
        assert (scales <= (spread / 15 + moved / 7) * (1 + 2**-7) + 1e-30).all(), name


@pytest.mark.parametrize("shape", SHAPES)
def test_an_nf4_weight_is_wrong_by_half_the_widest_gap_and_the_scales_error(shape):
    gaps = torch.tensor(PAPER).diff()
    for name, w in matrices(shape).items():
        tensors = encode("nf4", w)
        scales = nf4_scales(tensors["scales"], tensors["steps"], tensors["mean"])[:, 0]
        blocks = F.pad(w.flatten(), (0, -w.numel() % BLOCK)).view(-1, BLOCK)
        largest = blocks.abs().amax(1)
        half_a_step = tensors["steps"].repeat_interleave(SUPER)[: len(scales)] / 2
        assert ((scales - largest).abs() <= half_a_step * (1 + 1e-5) + 1e-6 * largest).all(), name
        error = decode("nf4", shape, *tensors.values()) - w
        error = F.pad(error.flatten(), (0, -w.numel() % BLOCK)).view(-1, BLOCK).abs().amax(1)
        bound = gaps.max() / 2 * scales.abs() + half_a_step + 1e-6 * largest
        assert (error <= bound * (1 + 1e-5)).all(), name


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8 + 32 / 512), ("int4", 4 + 32 / GROUP)])
def test_bits_a_weight_are_exact(kind, bits):
    tensors = encode(kind, torch.randn(256, 512))
    assert 8 * sum(t.nbytes for t in tensors.values()) == bits * 256 * 512


def test_nf4_takes_4_13_bits():
    """4 + 8 / 64 + 32 / (64 x 256) = 4.127 bits, and 32 for the mean of all scales."""
    tensors = encode("nf4", torch.randn(256, 512))
    n = 256 * 512
    assert 8 * sum(t.nbytes for t in tensors.values()) == (4 + 8 / BLOCK + 32 / (BLOCK * SUPER)) * n + 32
    assert round(4 + 8 / BLOCK + 32 / (BLOCK * SUPER), 3) == 4.127


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_holds_all_scales(kind):
    """model.bfloat16() does not change a weight; nor does float16 lose one."""
    layer = QuantLinear(kind, torch.randn(33, 70))
    before = layer.dequantize()
    assert torch.equal(layer.bfloat16().dequantize(), before)
    assert torch.equal(layer.float().dequantize(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_packed_again_stays(kind):
    """Numbers that the format has are moved by no more than the scales are rounded by."""
    w = decode(kind, (16, 128), *encode(kind, torch.randn(16, 128)).values())
    again = decode(kind, (16, 128), *encode(kind, w).values())
    assert (again - w).abs().max() < 0.02 * w.abs().max()


# ---- layers
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(33, 70), (48, 64)])
def test_a_layer_is_its_dequantized_matrix(kind, shape):
    """Outputs and the gradient of x, in float32 and under autocast; the bias stays."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(shape[1], shape[0])
    layer = QuantLinear(kind, linear.weight, linear.bias)
    assert not list(layer.parameters())
    linear.weight = torch.nn.Parameter(layer.dequantize())
    for autocast in (False, True):
        x = torch.randn(2, 12, shape[1], requires_grad=True)
        x2 = x.detach().clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, y2 = layer(x), linear(x2)
        assert y.dtype == y2.dtype and torch.equal(y, y2)
        y.square().sum().backward()
        y2.square().sum().backward()
        torch.testing.assert_close(x.grad, x2.grad, rtol=1e-2 if autocast else 1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_unpacked_weight_waits_for_the_backward_pass(kind):
    layer, kept = QuantLinear(kind, torch.randn(40, 64)), []
    x = torch.randn(3, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer(x).sum()
    assert (40, 64) not in kept and (64, 40) not in kept


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_torchs_kernels_equal_their_twin(kind, rows, dtype, bias):
    """To what bfloat16 inputs and outputs can hold."""
    torch.manual_seed(rows)
    layer = QuantLinear(kind, torch.randn(48, 96), torch.randn(48) if bias else None).to(dtype)
    x = torch.randn(1, rows, 96, dtype=dtype)
    assert layer.has_kernel
    with torch.no_grad():
        y = layer(x)
        twin = F.linear(x.float(), layer.dequantize(), layer.bias_like(x.float()))
    assert y.dtype == dtype and y.shape == (1, rows, 48)
    torch.testing.assert_close(y.float(), twin, rtol=0, atol=2e-2 * twin.abs().max().item())
    assert not torch.equal(y.float(), twin)  # else the kernel was not used


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(7, 33), (17, 64), (48, 40), (16, 24), (5, 8)])
def test_a_shape_that_no_kernel_can_read(kind, shape):
    """torch's int8 kernel reads beyond the end of rows that are no multiple of 16 long, and may crash."""
    layer = QuantLinear(kind, torch.randn(shape))
    x = torch.randn(1, shape[1])
    assert not layer.has_kernel or kind == "int8" and shape[1] % 16 == 0
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ layer.dequantize().T, rtol=2e-2, atol=0.1)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_new_weights_reach_the_kernel(kind):
    """What a kernel reads is made once; loading makes it anew, alone and for several layers together."""
    model, other = model_of(kind), model_of(kind, seed=1)
    prompt = [[1, 2, 3]]
    expected = other.generate(prompt, 8, temperature=0)
    assert model.generate(prompt, 8, temperature=0) != expected
    model.load_state_dict(other.state_dict())
    assert model.generate(prompt, 8, temperature=0) == expected


# ---- models
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape",
    [dict(tied=1), dict(tied=0), dict(arch="gpt2", bias=True, n_ff=0), dict(arch="modern", tied=0, n_ff=0)],
)
def test_logits_are_those_of_the_dequantized_model(kind, shape):
    """Also with biases (gpt-fast left them out), tied or not."""
    model, plain = model_of(kind, **shape), model_of(**shape)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, QuantLinear):
                unpacked = layer.plain()
                assert type(unpacked) is type(plain.get_submodule(name))
                plain.get_submodule(name).weight.copy_(unpacked.weight)
    idx = torch.randint(0, 80, (2, 20))
    torch.testing.assert_close(model(idx), plain(idx), rtol=1e-4, atol=1e-4)
    assert (model.head is model.wte) == bool(model.config.tie_weights)
    assert not [p for name, p in model.named_parameters() if "norm" not in name and name != "wpe.weight"]


def test_cuda_is_not_asked_for_on_a_cpu(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("CUDA was called")

    for name in ("synchronize", "current_device", "get_device_capability", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    for kind in KINDS:
        model_of(kind).generate([[1, 2]], 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_the_meta_device_takes_the_weights(kind):
    model = model_of(kind)
    config = {"technique": "quantize", "quantize": kind}
    with torch.device("meta"):
        empty = change("change_model", GPT(model.config), config)
    ours = {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}
    assert {name: (t.shape, t.dtype) for name, t in empty.state_dict().items()} == ours
    empty.load_state_dict(model.state_dict(), assign=True)
    idx = torch.randint(0, 80, (1, 9))
    assert torch.equal(empty.eval()(idx), model(idx))
    assert empty.head is empty.wte


SHAPES = [  # llama with and without a logit cap; then others
    dict(logit_cap=0.0),
    dict(logit_cap=15.0),
    dict(arch="gpt2", bias=True, n_ff=0),
    dict(arch="gpt2", activation="gelu_erf", bias=False, n_kv_head=3),
    dict(arch="modern", n_ff=0, tied=0),
    dict(arch="modern", norm="layernorm", rope_scaling="linear 2"),
    dict(window=4),
]


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_token_in_few_steps_equals_next_logits(kind, dtype, shape):
    """Both differ from float32 by what bfloat16 activations cost, and this one by no more."""
    model = model_of(kind, **shape).to(dtype)
    assert isinstance(model.next_logits, OneToken)

    def logits(next_logits) -> torch.Tensor:
        caches = [Cache(32) for _ in model.blocks]
        seen = [next_logits(torch.tensor([[1, 2, 3]]), caches, None)]
        seen += [next_logits(torch.tensor([[i]]), caches, None) for i in range(20)]
        return torch.cat(seen)

    with torch.no_grad():
        ours, twin = logits(model.next_logits), logits(lambda *read: GPT.next_logits(model, *read))
        assert len(model.next_logits.layers) == 2
        exact = model.float()(torch.tensor([[1, 2, 3, *range(20)]]))[0, 2:]
    twins, own = (twin - exact).abs().mean(), (ours - exact).abs().mean()
    assert own < max(1.3 * twins, 1e-3) and own < 0.02 * exact.abs().max()


def test_what_one_token_does_not_know_goes_the_usual_way():
    for shape in (dict(qk_norm=2), dict(n_ff=120)):
        assert model_of("int4", **shape).next_logits.prepared() == []
    assert model_of("nf4").next_logits.prepared() == []
    model = model_of("int4")
    rows = model.generate([[1, 2, 3], [4]], 40, temperature=0)  # two rows; then a full context
    assert [len(row) for row in rows] == [43, 41]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_codes_times_x_then_scales_is_the_dequantized_product(dtype, bias):
    """What a GPU computes for one token. In 16 bits it rounds less often than the unpacked product."""
    weight, x = torch.randn(48, 64), torch.randn(2, 3, 64)
    layer = QuantLinear("int8", weight, torch.randn(48) if bias else None)
    with torch.no_grad():
        exact = F.linear(x, layer.dequantize(), layer.bias)
        found = layer.scaled(x.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=2e-2, atol=1e-4 if dtype == torch.float32 else 0.15)


# ---- what is refused
def test_what_cannot_be_packed_is_one_line():
    settings = {"quantize": "int3", "technique": "quantize"}
    with pytest.raises(ValueError, match="quantize='int3' is unknown; expected one of int8, int4, nf4"):
        quantize.change_model(model_of(), settings)
    model = model_of()
    model.blocks[1].mlp.up.weight.data[3, 4] = float("nan")
    with pytest.raises(ValueError, match="blocks.1.mlp.up.weight holds NaN or infinity"):
        quantize.packed(model, "int4")


def test_training_without_lora_is_refused(train):
    with pytest.raises(ValueError, match="quantize=int8 leaves nothing to train: add --technique=lora"):
        train("--quantize=int8")
    with pytest.raises(ValueError, match="technique=quantize needs --quantize=int8, int4 or nf4"):
        train("--technique=quantize")


def test_a_strangers_checkpoint_is_one_line(packed_run):
    path = packed_run("int4") / "best.pt"
    whole = torch.load(path, weights_only=True)
    for name, damage, message in (
        ("wte.codes", torch.Tensor.float, "wte.codes is float32; expected int8"),
        ("blocks.0.attn.q.codes", lambda t: t[:-1], "size mismatch for blocks.0.attn.q.codes"),
        ("blocks.0.attn.q.scales", lambda t: t * float("inf"), "holds NaN or infinity"),
    ):
        weights = {**whole["model"], name: damage(whole["model"][name])}
        checkpoint.save(path, {**whole, "model": weights})
        with pytest.raises(ValueError, match=message) as error:
            checkpoint.load(path)
        assert "\n" not in str(error.value)


# ---- the command
def command(monkeypatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["techniques/quantize.py", *flags])
    runpy.run_path(str(ROOT / "techniques/quantize.py"), run_name="__main__")


SHAPE = "--arch=llama --n_embd=64 --n_head=2 --n_kv_head=1 --dropout=0".split()


@pytest.fixture
def packed_run(train, monkeypatch, tmp_path):
    """packed_run("int4", "--flag=1"): a trained run's folder packed; tmp_path/out is the run."""
    train(*SHAPE, "--eval_iters=0")  # all of val, as evaluate.py reads it

    def pack(kind: str, *flags: str):
        target = tmp_path / f"out-{kind}"
        command(monkeypatch, f"--out_dir={tmp_path / 'out'}", f"--quantize={kind}", *flags)
        return target

    return pack


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("nf4", 5.0), *(pytest.param(*row, marks=pytest.mark.slow) for row in (("int8", 8.5), ("int4", 5.6)))],
)
def test_a_packed_run_is_a_run(packed_run, run_script, tmp_path, capsys, kind, bits):
    folder = packed_run(kind)
    text = capsys.readouterr().out
    found = re.search(r"weights: (\S+) MB -> (\S+) MB; (\S+) bits each", text)
    assert float(found[2]) < 0.4 * float(found[1]) and float(found[3]) <= bits
    before, after = map(float, re.search(r"val loss: (\S+) -> (\S+)", text).groups())
    assert abs(after - before) < (0.002 if kind == "int8" else 0.02)
    assert folder.joinpath("best.pt").stat().st_size < 0.5 * (tmp_path / "out/best.pt").stat().st_size
    run_script("evaluate.py", "--device=cpu", "--dtype=float32", f"--out_dir={folder}")
    assert f"loss {after:.4f} +-" in capsys.readouterr().out
    run_script("sample.py", "--device=cpu", f"--out_dir={folder}", "--max_new_tokens=5")
    assert "step 20" in capsys.readouterr().out


def test_a_run_that_cannot_be_packed_is_one_line(packed_run, monkeypatch, tmp_path):
    folder, out = packed_run("int4"), tmp_path / "out"
    for flags, message in (
        ((f"--out_dir={folder}",), "best.pt is packed already"),
        ((f"--out_dir={out}", "--bits=5"), "bits=5 makes no sense; expected 8 or 4, or --quantize=nf4"),
        ((f"--out_dir={out}", "--quantize=int2"), "quantize='int2' is unknown"),
        (
            (f"--out_dir={out}", f"--to={out}"),
            "which would be overwritten; delete it, or choose another --to",
        ),
        ((f"--out_dir={out}", "--method=gptq"), "method=gptq is for int4: add --bits=4"),
        ((f"--out_dir={out}", "--method=best", "--bits=4"), "method=best is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            command(monkeypatch, *flags)


@pytest.mark.slow
def test_a_process_of_its_own_samples_from_a_packed_run(packed_run, shell):
    """There techniques are imported while a model is built on the meta device."""
    for kind in KINDS:
        done = shell("sample.py", f"--out_dir={packed_run(kind)}", "--max_new_tokens=5", "--device=cpu")
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_it_is_the_same():
    model, idx = model_of("nf4"), torch.randint(0, 80, (2, 32))
    losses = []
    for loss in (
        lambda x: model(x).logsumexp(-1).sum(),
        torch.compile(lambda x: model(x).logsumexp(-1).sum()),
    ):
        losses.append(loss(idx))
        losses[-1].backward()
    torch.testing.assert_close(*losses)


# ---- GPTQ
def test_gptq_keeps_outputs_where_inputs_go_together():
    """Inputs of rank 8 in 96 channels: the error of the outputs is a small part of plain rounding's."""
    torch.manual_seed(0)
    w = torch.randn(40, 96)
    x = torch.randn(500, 8) @ torch.randn(8, 96) + 0.1 * torch.randn(500, 96)
    ours = gptq.round_matrix(w, x.T @ x)
    plain = encode("int4", w)
    assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {
        name: (t.shape, t.dtype) for name, t in plain.items()
    }
    errors = [(x @ (decode("int4", (40, 96), *t.values()) - w).T).square().mean() for t in (ours, plain)]
    assert errors[0] < 0.3 * errors[1]


def test_gptq_with_inputs_that_do_not_go_together_is_plain_rounding():
    torch.manual_seed(0)
    w = torch.randn(20, 70)
    ours, plain = gptq.round_matrix(w, torch.eye(70)), encode("int4", w)
    assert all(torch.equal(t, plain[name]) for name, t in ours.items())


def test_gptq_by_hand():
    """Two columns: the second one makes up for the first one's error, as least squares says."""
    w, H = torch.tensor([[0.37, 1.0] + [0.0] * 30]), torch.eye(32)
    H[0, 1] = H[1, 0] = 0.9
    got = decode("int4", (1, 32), *gptq.round_matrix(w, H).values())[0]
    H.diagonal().add_(gptq.DAMPING)
    scale = (encode("int4", w)["scales"][0, 0]).float()
    error = w[0, 0] - got[0]
    wanted = w[0, 1] + error * H[0, 1] / H[1, 1]
    assert (got[1] - wanted).abs() <= scale / 2 + 1e-6 and error.abs() > scale / 10


def test_gptq_survives_inputs_that_are_always_zero():
    w, H = torch.randn(8, 40), torch.zeros(40, 40)
    H[:20, :20] = torch.eye(20)
    for hessian in (H, H * 0):
        assert decode("int4", (8, 40), *gptq.round_matrix(w, hessian).values()).isfinite().all()


@pytest.mark.slow
def test_val_loss_of_a_trained_model(train, monkeypatch, tmp_path, capsys, figure):
    """Three seeds: int8 costs least; at 4 bits GPTQ is better than plain rounding on each of them."""
    ways = {kind: f"--quantize={kind}" for kind in KINDS} | {"int4 with GPTQ": "--bits=4 --method=gptq"}
    rises = {way: [] for way in ways}
    for seed in range(3):
        train(
            *SHAPE,
            *f"--seed={seed} --max_iters=400 --eval_interval=400 --eval_iters=0 --batch_size=16".split(),
        )
        before = torch.load(tmp_path / "out/best.pt", weights_only=True)["val_loss"]
        for way, flags in ways.items():
            capsys.readouterr()
            to = tmp_path / f"{way.replace(' ', '-')}-{seed}"
            command(monkeypatch, f"--out_dir={tmp_path / 'out'}", f"--to={to}", *flags.split())
            after = re.search(r"val loss: \S+ -> (\S+)", capsys.readouterr().out)[1]
            rises[way].append(float(after) - before)
    for int8, int4, nf4, by_gptq in zip(*rises.values(), strict=True):
        assert abs(int8) < 0.002 < nf4 < 0.03 and int4 < 0.03
        assert by_gptq < 0.8 * int4
    means = (f"{way} {sum(found) / len(found):.4f}" for way, found in rises.items())
    figure(f"packed weights: val loss rises by {', '.join(means)}")
