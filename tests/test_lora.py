"""LoRA: update 0 is the base, only A and B learn, an adapter fits one base, and merging changes nothing."""

import hashlib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import config
import optim
from conftest import ROOT
from model import GPT, GPTConfig
from runtime import checkpoint
from techniques import adapters, lora
from test_strategies import MODEL, run_all
from text import corpora, prepare

DEFAULTS = {
    name: value for name, value in config.defaults_of("techniques/lora.py").items() if "lora_" in name
}
VARIANTS = ("", "rslora", "dora")


def base_of(bias: bool = False, **shape) -> GPT:
    """M2 of the list of features: GPT-2, 4 layers, 128 wide, block 64, 65 characters."""
    torch.manual_seed(0)
    return GPT(GPTConfig(**{"arch": "gpt2", "bias": bias, "block_size": 64, **shape}))


def adapted(model: GPT, **settings) -> GPT:
    return lora.change_model(model, {**DEFAULTS, **{f"lora_{name}": v for name, v in settings.items()}})


def trained(model: GPT) -> dict:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def taught(model: GPT, std: float = 0.05) -> GPT:
    """The model with other numbers in all that LoRA trains, as training would leave it."""
    torch.manual_seed(1)
    for p in trained(model).values():
        torch.nn.init.normal_(p, std=std)
    return model


@pytest.fixture(scope="module")
def idx() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randint(0, 65, (2, 16))


# ---- what is trained
@pytest.mark.parametrize(("rank", "numbers"), [(1, 4096), (4, 16384), (16, 65536)])
def test_a_rank_trains_so_many_numbers(rank, numbers):
    model = adapted(base_of(), rank=rank)
    assert sum(p.numel() for p in trained(model).values()) == numbers
    assert {name.rpartition(".")[2] for name in trained(model)} == {"A", "B"}


def test_dora_trains_one_number_more_for_each_row():
    assert (
        sum(p.numel() for p in trained(adapted(base_of(), rank=4, variant="dora")).values()) == 16384 + 2048
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_update_0_is_the_base_bit_for_bit(idx, variant, bias):
    plain, model = base_of(bias), adapted(base_of(bias), variant=variant)
    if bias:
        for p, q in zip(plain.parameters(), base_parameters(model), strict=True):
            q.data = p.data = p.data + 0.01  # biases start at 0
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            assert torch.equal(model(idx), plain(idx))
    assert torch.equal(model.bfloat16()(idx), plain.bfloat16()(idx))


def base_parameters(model: GPT):
    return (p for name, p in model.named_parameters() if name.rpartition(".")[2] not in adapters.OWN)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_layer_computes_what_the_papers_write(variant, bias):
    """y = W x + s B A x, written out number by number in float64; rank and alpha differ."""
    torch.manual_seed(3)
    base = torch.nn.Linear(6, 5, bias=bias)
    layer = lora.LoRALinear(base, 2, 3.0, variant=variant).double()
    for p in (layer.A, layer.B) if layer.M is None else (layer.A, layer.B, layer.M):
        torch.nn.init.normal_(p)
    x = torch.randn(7, 6, dtype=torch.float64)
    s = 3.0 / 2**0.5 if variant == "rslora" else 3.0 / 2
    A, B = layer.A.tolist(), layer.B.tolist()
    for row in range(5):
        w = base.weight[row].tolist()
        moved = [w[i] + s * sum(B[row][r] * A[r][i] for r in range(2)) for i in range(6)]
        if variant == "dora":
            length = sum(v * v for v in w) ** 0.5 + layer.M[row].item()
            moved = [v * length / sum(u * u for u in moved) ** 0.5 for v in moved]
        moved = torch.tensor(moved, dtype=torch.float64)
        torch.testing.assert_close(layer(x)[:, row], x @ moved + (base.bias[row] if bias else 0))
        torch.testing.assert_close(layer.merged()[row], moved)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_layer_computes_what_peft_does(variant, bias):
    """Its values and its gradients, where it is installed; no other test needs it."""
    peft = pytest.importorskip("peft", reason="needs peft: pip install peft")
    torch.manual_seed(3)
    base = torch.nn.Linear(6, 5, bias=bias)
    layer = lora.LoRALinear(base, 2, 3.0, variant=variant)
    for p in (layer.A, layer.B) if layer.M is None else (layer.A, layer.B, layer.M):
        torch.nn.init.normal_(p)
    same = torch.nn.Linear(6, 5, bias=bias)
    same.load_state_dict(base.state_dict())
    options = {"use_rslora": variant == "rslora", "use_dora": variant == "dora"}
    settings = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0"], **options)
    theirs = peft.get_peft_model(torch.nn.Sequential(same), settings)
    values = {"lora_A": layer.A, "lora_B": layer.B}
    if layer.M is not None:
        values["lora_magnitude_vector"] = base.weight.norm(dim=1) + layer.M
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            for key, value in values.items():
                if key in name:
                    p.copy_(value)
    x = torch.randn(7, 6)
    torch.testing.assert_close(layer(x), theirs(x))
    layer(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for name, p in theirs.named_parameters():
        for key, own in (("lora_A", layer.A), ("lora_B", layer.B), ("magnitude", layer.M)):
            if key in name:
                torch.testing.assert_close(own.grad, p.grad)


def test_a_row_of_zeros_is_no_nan(idx):
    """A model that has just begun has zeros in attn.o (arch=modern): DoRA divides by the length of rows."""
    model = taught(adapted(base_of(arch="modern"), variant="dora"))
    loss = model(idx).logsumexp(-1).sum()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in trained(model).values())


def test_a_depends_on_the_seed_alone():
    """So that all ranks have the same, whatever a run has drawn before, and the run's own numbers stay."""
    torch.manual_seed(0)
    one, state = adapted(base_of()), torch.get_rng_state()
    base = base_of()
    torch.rand(5)
    two, other = adapted(base), lora.change_model(base_of(), {**DEFAULTS, "seed": 5})
    assert torch.equal(one.blocks[0].attn.q.A, two.blocks[0].attn.q.A)
    assert not torch.equal(one.blocks[0].attn.q.A, one.blocks[0].attn.k.A)
    assert not torch.equal(one.blocks[0].attn.q.A, other.blocks[0].attn.q.A)
    base_of()
    assert torch.equal(torch.get_rng_state(), state)


def test_on_the_meta_device_too():
    with torch.device("meta"):
        model = GPT(GPTConfig(arch="llama"))
    adapted(model, targets="*", variant="dora")
    assert all(p.is_meta for p in model.parameters())
    assert (
        model.state_dict().keys()
        == adapted(base_of(arch="llama"), targets="*", variant="dora").state_dict().keys()
    )


# ---- targets and other settings
@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ("q,v", "0.attn.q 0.attn.v 1.attn.q 1.attn.v"),
        ("v, q", "0.attn.q 0.attn.v 1.attn.q 1.attn.v"),
        ("mlp.up", "0.mlp.up 1.mlp.up"),
        ("blocks.1.attn.q", "1.attn.q"),
        ("blocks.*.attn.q", "0.attn.q 1.attn.q"),
        ("blocks.1", "1.attn.q 1.attn.k 1.attn.v 1.attn.o 1.mlp.up 1.mlp.down"),
        ("mlp,q", "0.attn.q 0.mlp.up 0.mlp.down 1.attn.q 1.mlp.up 1.mlp.down"),
        ("[qk]", "0.attn.q 0.attn.k 1.attn.q 1.attn.k"),
        (
            "*",
            " ".join(
                f"{i}.{n}" for i in (0, 1) for n in "attn.q attn.k attn.v attn.o mlp.up mlp.down".split()
            ),
        ),
    ],
)
def test_targets_by_name_and_pattern(targets, names):
    found = lora.targeted(base_of(n_layer=2), targets)
    assert list(found) == [f"blocks.{name}" for name in names.split()]


def test_blocks_1_is_not_blocks_10():
    assert len(lora.targeted(base_of(n_layer=11, n_embd=8), "blocks.1")) == 6


@pytest.mark.parametrize("targets", ["q_proj", "q,vv", "", "q,,v", "wte", "norm", "attn_norm", "head"])
def test_an_unknown_target_lists_the_layers(targets):
    """Among them the embedding, and a head that is tied to it."""
    with pytest.raises(ValueError) as caught:
        adapted(base_of(), targets=targets)
    message = str(caught.value)
    assert "blocks.N.attn.q, blocks.N.attn.k, blocks.N.attn.v, blocks.N.attn.o, blocks.N.mlp.up" in message
    assert "N from 0 to 3" in message and "\n" not in message
    assert "tied" in message


def test_a_head_of_its_own_can_be_adapted(idx):
    model = taught(adapted(base_of(arch="llama"), targets="head"))
    assert set(trained(model)) == {"head.A", "head.B"}
    logits = model(idx)
    lora.merge(model)
    torch.testing.assert_close(model(idx), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora_rank=0 makes no sense; expected 1 or more"),
        ({"rank": -1}, "lora_rank=-1"),
        (
            {"rank": 129},
            "lora_rank=129 is too high: blocks.0.attn.q is 128 x 128, so that its full rank is 128",
        ),
        ({"alpha": 0.0}, "lora_alpha=0.0 makes no sense; expected above 0"),
        ({"alpha": -1.0}, "lora_alpha=-1.0"),
        ({"alpha": float("nan")}, "lora_alpha=nan"),
        ({"dropout": 1.0}, "lora_dropout=1.0 makes no sense; expected 0 or more, below 1"),
        ({"dropout": -0.1}, "lora_dropout=-0.1"),
        ({"variant": "lora+"}, "lora_variant='lora+'; expected '', rslora or dora"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    model = base_of()
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        adapted(model, **settings)
    assert len(trained(model)) == len(list(model.parameters()))  # nothing has happened


# ---- gradients
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_checkpointing_keeps_the_gradients_of_adapters(variant):
    """The input of each block needs no gradient, since all before it is frozen (peft issue 1142)."""
    found, idx = [], torch.arange(32).view(2, 16)
    for recompute in (False, True):
        model = taught(adapted(base_of(gradient_checkpointing=recompute), dropout=0.2, variant=variant))
        torch.manual_seed(4)
        F.cross_entropy(model.train()(idx).flatten(0, 1), idx.flatten()).backward()
        assert all(p.grad is not None and p.grad.any() for p in trained(model).values())
        assert all(p.grad is None for p in base_parameters(model))
        found.append([p.grad for p in trained(model).values()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_at_first_only_b_has_a_gradient(idx):
    model = adapted(base_of(), variant="dora")
    model(idx).logsumexp(-1).sum().backward()
    assert {n.rpartition(".")[2] for n, p in trained(model).items() if p.grad.any()} == {"B", "M"}


def test_dropout_in_training_only(idx):
    model = taught(adapted(base_of(), dropout=0.5))
    assert not torch.equal(model.train()(idx), model.eval()(idx))
    assert torch.equal(model(idx), taught(adapted(base_of()))(idx))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_adamw_trains_a_and_b_at_learning_rate(optimizer):
    """Muon would give each the same singular values: A and B are no matrices of the network by themselves."""
    settings = config.defaults_of("train.py") | {"optimizer": optimizer, "dtype": "float32"}
    opt = optim.build_optimizer(adapted(base_of()), settings, "cpu")
    assert {group["kind"] for group in opt.param_groups} == {"adamw"}
    assert {group["lr_scale"] for group in opt.param_groups} == {1.0}


# ---- merging
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_equals_adapted(idx, variant, bias):
    model = taught(adapted(base_of(bias), rank=4, targets="*", variant=variant))
    logits = model(idx)
    assert (logits - base_of(bias)(idx)).abs().max() > 0.1
    assert lora.merge(model) == 0
    plain = base_of(bias)
    plain.load_state_dict(model.state_dict())
    assert plain.head.weight is plain.wte.weight
    torch.testing.assert_close(plain(idx), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_on_a_quantized_base(idx, arch, kind):
    from techniques import quantize

    packed = quantize.packed(base_of(arch=arch), kind)
    logits = packed(idx)
    model = adapted(packed, rank=4)
    assert torch.equal(model(idx), logits)
    assert {name.rpartition(".")[2] for name in trained(model)} == {"A", "B"}
    taught(model)
    logits = model(idx)
    assert lora.merge(model) > 24
    plain = base_of(arch=arch)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(idx), logits, rtol=0, atol=1e-5)


# ---- the adapter's file
@pytest.fixture
def file(tmp_path):
    """The folder of a run with lora.pt in it: rank 4, alpha 6, taught."""
    model = taught(adapted(base_of(), rank=4, alpha=6.0))  # alpha is not rank
    saved = {"model": model.state_dict(), "step": 7}
    lora.after_save(tmp_path / "best.pt", saved, {**DEFAULTS, "lora_rank": 4, "lora_alpha": 6.0})
    return tmp_path / "lora.pt"


def test_an_adapter_comes_back(idx, file):
    model = base_of().eval()
    expected = taught(adapted(base_of(), rank=4, alpha=6.0)).eval()
    line = lora.attach(model, str(file))
    assert line == f"adapter {file}: step 7, rank 4, alpha 6"
    assert model.blocks[0].attn.q.B.any()
    assert torch.equal(model(idx), expected(idx))
    assert not any(module.training for module in model.modules())


def test_one_adapter_after_the_other_on_one_base(idx, file):
    model = base_of()
    plain = model(idx)
    other = file.parent / "other"
    taught_otherwise = taught(adapted(base_of(), targets="mlp", variant="dora"), std=0.1)
    saved = {"model": taught_otherwise.state_dict(), "step": 1}
    lora.after_save(other / "best.pt", saved, {**DEFAULTS, "lora_targets": "mlp", "lora_variant": "dora"})
    lora.attach(model, str(other))
    assert torch.equal(model(idx), taught_otherwise(idx))
    lora.attach(model, str(file))
    assert torch.equal(model(idx), taught(adapted(base_of(), rank=4, alpha=6.0))(idx))
    assert not torch.equal(model(idx), plain)


def test_the_file_is_small(file, tmp_path):
    """Below 5% of the base's: rank 4 has 2% of M2's numbers."""
    checkpoint.save(tmp_path / "base.pt", {"model": base_of().state_dict()})
    assert file.stat().st_size < 0.05 * (tmp_path / "base.pt").stat().st_size


def test_another_base_is_refused_with_both_hashes(file):
    model = base_of()
    with torch.no_grad():
        model.blocks[3].mlp_norm.weight[5] += 1e-6
    hashes = [adapters.hash_of(each.state_dict())[:12] for each in (base_of(), model)]
    with pytest.raises(
        ValueError, match=f"was trained on the weights {hashes[0]}, and these are {hashes[1]}"
    ):
        lora.attach(model, str(file))


def test_the_hash_by_hand():
    t = torch.tensor([1.0, 2.0])
    expected = hashlib.sha256(
        b"a torch.float32 (2,)\n" + t.numpy().tobytes() + b"b torch.int64 ()\n" + bytes(8)
    )
    assert adapters.hash_of({"b": torch.tensor(0), "a": t}) == expected.hexdigest()


def spoil(file, change) -> None:
    saved = torch.load(file, weights_only=True)
    change(saved)
    torch.save(saved, file)


def put(name: str, t):
    """What puts t under this name among the tensors of a lora.pt."""
    return lambda saved: saved["tensors"].update({name: t})


Q_A, V_B = "blocks.0.attn.q.A", "blocks.1.attn.v.B"
BAD = {
    "no base": (lambda s: s.pop("base"), "base is missing"),
    "a rank of text": (lambda s: s.update(rank="4"), "rank is a str; expected int"),
    "no tensors": (lambda s: s.update(tensors=[1]), "tensors is a list"),
    "rank 0": (lambda s: s.update(rank=0), "lora_rank=0"),
    "a huge rank": (lambda s: s.update(rank=2**40), "lora_rank=1099511627776 is too high"),
    "alpha is infinite": (lambda s: s.update(alpha=float("inf")), "lora_alpha=inf"),
    "alpha is 0": (lambda s: s.update(alpha=0), "lora_alpha=0"),
    "an unknown target": (lambda s: s.update(targets="q_proj"), "lora_targets='q_proj' matches no linear"),
    "an unknown variant": (lambda s: s.update(variant="x"), "lora_variant='x'"),
    "other targets": (lambda s: s.update(targets="q"), "it holds 'blocks.0.attn.k.A'"),
    "another rank": (lambda s: s.update(rank=5), rf"{Q_A} is \(4, 128\) torch.float32, expected \(5, 128\)"),
    "a tensor less": (lambda s: s["tensors"].pop(V_B), f"it lacks '{V_B}'"),
    "a tensor of the base": (put("wte.weight", torch.zeros(65, 128)), "it holds 'wte.weight'"),
    "NaN": (put(V_B, torch.full((128, 4), float("nan"))), f"{V_B} holds NaN"),
    "another dtype": (put(Q_A, torch.zeros(4, 128, dtype=torch.int64)), "torch.int64, expected"),
    "a name that is none": (put(5, torch.zeros(1)), "expected names and tensors"),
    "no tensor": (put(V_B, "x"), "expected names and tensors"),
    "a view": (put(Q_A, torch.zeros(1).expand(4, 128)), "larger than what the file"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_strangers_file_is_one_line(file, what):
    change, message = BAD[what]
    spoil(file, change)
    with pytest.raises(ValueError, match=message) as caught:
        lora.attach(base_of(), str(file))
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_one_line(file):
    whole = file.read_bytes()
    t = torch.load(file, weights_only=True)["tensors"][V_B].numpy().tobytes()
    flipped = whole.replace(t, bytes([t[0] ^ 1]) + t[1:])
    assert flipped != whole
    for content in (b"", whole[:1000], whole[:-1], flipped, b"{}"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="lora.pt cannot be read"):
            lora.attach(base_of(), str(file))


def test_what_is_no_adapter_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="adapter=nowhere does not exist; expected a lora.pt, or the folder"):
        lora.attach(base_of(), "nowhere")
    with pytest.raises(ValueError, match="has no lora.pt; expected"):
        lora.attach(base_of(), str(tmp_path))
    checkpoint.save(tmp_path / "best.pt", {"model": {}, "config": {}})
    with pytest.raises(ValueError, match="best.pt is no adapter of LoRA: tensors is missing"):
        lora.attach(base_of(), str(tmp_path / "best.pt"))


# ---- runs
LORA = ("--technique=lora", "--lora_rank=4", "--log_interval=1", "--init_from={}")


def losses(out: Path) -> list[float]:
    rows = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def val_losses(out: Path) -> list[float]:
    rows = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row["val_loss"] for row in rows if "val_loss" in row]


def weights(path: Path) -> dict:
    return checkpoint.load(path)["model"]


@pytest.fixture
def base(train, tmp_path) -> Path:
    """A trained model's folder; train() then writes to tmp_path/out again."""
    train("--max_iters=40", "--eval_interval=40", "--dropout=0")
    (tmp_path / "out").rename(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def tune(train, base):
    """tune("--flag=1") trains LoRA on the base, into tmp_path/out."""
    return lambda *flags: train(*(flag.format(base) for flag in LORA), *flags)


def test_from_a_base_to_an_adapter_to_a_plain_run(tune, base, run_script, tmp_path, capsys, monkeypatch):
    tune("--learning_rate=1e-2")
    out, merged = tmp_path / "out", tmp_path / "merged"
    assert val_losses(out)[0] == val_losses(base)[-1]
    assert val_losses(out)[-1] < val_losses(out)[0]
    before, after = weights(base / "best.pt"), weights(out / "best.pt")
    own, frozen = adapters.split(after)
    assert frozen.keys() == before.keys()
    assert all(torch.equal(t, before[name]) for name, t in frozen.items())
    assert len(own) == 16 and all(t.any() for t in own.values())

    flags = ("--device=cpu", "--dtype=float32")
    assert " parameters, 2,048 of them trained (6." in capsys.readouterr().out
    run_script("evaluate.py", *flags)
    run_script("evaluate.py", *flags, f"--out_dir={base}", f"--adapter={out}")
    command(monkeypatch, "merge", f"--out_dir={out}", f"--merge_to={merged}")
    for taken in (merged, base):  # another run's weights are not overwritten
        with pytest.raises(ValueError, match="would be overwritten; delete it, or choose another --merge"):
            command(monkeypatch, "merge", f"--out_dir={out}", f"--merge_to={taken}")
    run_script("evaluate.py", *flags, f"--out_dir={merged}")
    found = re.findall(r"loss (\S+) \+-", capsys.readouterr().out)
    assert len(found) == 3 and len(set(found)) == 1
    run_script("sample.py", *flags, "--max_new_tokens=20", "--temperature=0")
    run_script(
        "sample.py", *flags, "--max_new_tokens=20", f"--out_dir={base}", f"--adapter={out}", "--temperature=0"
    )
    run_script("sample.py", *flags, "--max_new_tokens=20", f"--out_dir={merged}", "--temperature=0")
    texts = [text.partition("\n")[2] for text in capsys.readouterr().out.split("--- data:")[1:]]
    assert texts[0].split("---")[0] == texts[1].split("---")[0] == texts[2].split("---")[0]
    assert "lora_rank" not in checkpoint.load(merged / "best.pt")["config"]
    assert weights(merged / "best.pt").keys() == before.keys()


def command(monkeypatch, *arguments: str) -> None:
    """python -m techniques.lora ARGUMENTS, in this process."""
    monkeypatch.setattr(sys, "argv", ["lora.py", *arguments])
    runpy.run_path(str(ROOT / "techniques/lora.py"), run_name="__main__")


@pytest.mark.slow
def test_merge_may_be_left_out_and_an_adapter_given(tune, base, monkeypatch, tmp_path, capsys):
    tune("--max_iters=4")
    out = tmp_path / "out"
    for target, flags in {
        "one": [f"--out_dir={out}"],
        "two": [f"--out_dir={base}", f"--adapter={out}"],
    }.items():
        command(monkeypatch, *flags, f"--merge_to={tmp_path / target}")
    one, two = (weights(tmp_path / name / "best.pt") for name in ("one", "two"))
    assert all(torch.equal(t, two[name]) for name, t in one.items())
    assert f"merged 8 layers; saved {tmp_path / 'two/best.pt'}" in capsys.readouterr().out
    x = tmp_path / "x"
    for flags, message in {
        f"--out_dir={out}": "merge_to is missing; name a folder",
        f"--out_dir={out} --merge_to={out}": "holds a model .* choose another --merge_to",
        f"--out_dir={base} --merge_to={x}": "best.pt has no LoRA to merge; name one",
        f"--out_dir={out} --merge_to={x} --lora_rank=2": "--lora_rank is for training",
        f"--out_dir={tmp_path / 'one'} --adapter={out} --merge_to={x}": "was trained on the weights",
    }.items():
        with pytest.raises(ValueError, match=message):
            command(monkeypatch, "merge", *flags.split())
    assert not x.exists()


@pytest.mark.slow
def test_merging_a_qlora_run_says_that_it_is_dequantized(tune, monkeypatch, tmp_path, capsys, run_script):
    tune("--quantize=nf4")
    out, merged = tmp_path / "out", tmp_path / "merged"
    command(monkeypatch, f"--out_dir={out}", f"--merge_to={merged}")
    assert "quantized layers are dequantized: float32 again" in capsys.readouterr().out
    for folder in (out, merged):
        run_script("evaluate.py", "--device=cpu", "--dtype=float32", f"--out_dir={folder}")
    found = re.findall(r"loss (\S+) \+-", capsys.readouterr().out)
    assert len(found) == 2 and len(set(found)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--optimizer=muon",
        "--optimizer=adamw --lora_variant=dora",
        "--dtype=bfloat16",
        "--quantize=nf4",
        "--strategy=zero1",
    ],
)
def test_resume_is_exact(tune, train, tmp_path, flags):
    """20 updates == 10 + resume + 10, bit for bit, with dropout and accumulation."""
    flags = (*flags.split(), "--lora_dropout=0.1", "--gradient_accumulation_steps=2", "--lr_decay_iters=20")
    tune(*flags, "--max_iters=20")
    expected, reference = losses(tmp_path / "out"), weights(tmp_path / "out/ckpt.pt")
    file = torch.load(tmp_path / "out/lora.pt", weights_only=True)
    tune(*flags, "--max_iters=10")
    train(*flags, "--init_from=resume", "--max_iters=20", "--log_interval=1")
    assert losses(tmp_path / "out") == expected
    found = weights(tmp_path / "out/ckpt.pt")
    assert found.keys() == reference.keys()
    assert all(torch.equal(t, reference[name]) for name, t in found.items())
    again = torch.load(tmp_path / "out/lora.pt", weights_only=True)
    assert again["base"] == file["base"]
    assert all(torch.equal(t, file["tensors"][name]) for name, t in again["tensors"].items())


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["", "--quantize=nf4", "--lora_variant=dora"])
def test_one_large_batch_equals_four_small_ones(tune, tmp_path, flag):
    seen = []
    for batch, steps in ((8, 1), (2, 4)):
        sizes = f"--batch_size={batch} --gradient_accumulation_steps={steps} --max_iters=3 {flag}"
        tune(*sizes.split())
        seen.append(losses(tmp_path / "out"))
    assert seen[0] == pytest.approx(seen[1], abs=1e-6)


@pytest.mark.slow
def test_in_bfloat16_it_learns_as_much(tune, tmp_path):
    ends = []
    for dtype in ("float32", "bfloat16"):
        tune(f"--dtype={dtype}", "--learning_rate=1e-2", "--lora_targets=*", "--max_iters=40")
        ends.append(val_losses(tmp_path / "out"))
    assert ends[0][-1] < ends[0][0] - 0.03
    assert ends[0] == pytest.approx(ends[1], abs=5e-3)


@pytest.mark.slow
def test_a_higher_rank_learns_no_less(tune, tmp_path):
    """The train loss after 100 updates of ranks 1, 4 and 16 falls with the rank."""
    ends = []
    for rank in (1, 4, 16):
        tune(
            f"--lora_rank={rank}",
            "--lora_alpha=16",
            "--max_iters=100",
            "--eval_interval=100",
            "--learning_rate=3e-3",
        )
        rows = map(json.loads, (tmp_path / "out/metrics.jsonl").read_text(encoding="utf-8").splitlines())
        ends.append([row["train_loss"] for row in rows if "train_loss" in row][-1])
    assert ends[0] > ends[1] - 0.003 and ends[1] > ends[2] - 0.003


STRATEGIES = {
    "ddp": "--strategy=ddp",
    "zero1": "--strategy=zero1",
    "fsdp": "--strategy=fsdp",
    "fsdp, rank 1": "--strategy=fsdp --lora_rank=1",
    "fsdp, dora": "--strategy=fsdp --lora_variant=dora --lora_targets=*",
    "fsdp, recomputed": "--strategy=fsdp --gradient_checkpointing",
    "ddp, nf4": "--strategy=ddp --quantize=nf4",
    "fsdp, nf4": "--strategy=fsdp --quantize=nf4",
}


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(forks, tmp_path):
    """With each strategy; and what they save is what one process saves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "DATASETS", tmp_path / "datasets")
        text = "".join(text for text, _ in corpora.open_corpus("verse", size=30_000).chunks())
        (tmp_path / "plain.txt").write_text(text, encoding="utf-8")  # not a file of the project: those change
        prepare.prepare("plain", str(tmp_path / "plain.txt"))
    same = f"{MODEL} --dataset=plain --batch_size=4 --eval_interval=20 --max_iters=20"
    runs = {
        n: [
            f"{n}-{i} {same} --init_from={tmp_path / 'base'} --technique=lora --optimizer=adamw "
            f"--learning_rate=1e-2 {flags if n == 2 else re.sub('--strategy=[a-z0-9]+', '', flags)}"
            for i, flags in enumerate(STRATEGIES.values())
        ]
        for n in (1, 2)
    }
    run_all(forks, tmp_path, 1, [f"base {same}", *runs[1]])
    run_all(forks, tmp_path, 2, runs[2])
    for i, what in enumerate(STRATEGIES):
        one, two = (tmp_path / f"{n}-{i}" for n in (1, 2))
        assert losses(two) == pytest.approx(losses(one), abs=1e-5), what
        assert losses(one)[0] - losses(one)[-1] > 0.01, what
        ours, theirs = (torch.load(out / "lora.pt", weights_only=True) for out in (two, one))
        assert ours["base"] == theirs["base"], what
        for name, t in theirs["tensors"].items():
            torch.testing.assert_close(ours["tensors"][name], t, atol=1e-3, rtol=1e-3, msg=f"{what}: {name}")
