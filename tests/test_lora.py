"""LoRA: update 0 is the base, only A and B learn, an adapter fits one base, and merging changes nothing."""

import hashlib

import pytest
import torch
import torch.nn.functional as F

import config
import optim
from model import GPT, GPTConfig
from runtime import checkpoint
from techniques import adapters, lora

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
def test_gradient_checkpointing_keeps_the_gradients_of_adapters(idx, variant):
    """The input of each block needs no gradient, since all before it is frozen (peft issue 1142)."""
    found = []
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
