"""Pruning: each method against loops, zeros that stay, parts that are cut out against parts silenced."""

import copy
import json
import math
import sys

import pytest
import torch

from lab import pruning
from model import GPT, GPTConfig
from runtime import checkpoint
from techniques import change, prune, prune_parts, quantize
from test_strategies import MODEL, losses, run_all
from text import corpora, prepare

SHAPES = [
    {},
    {"arch": "gpt2", "bias": True},
    {"arch": "llama", "n_head": 4, "n_kv_head": 2, "qk_norm": 2, "qkv_bias": 1},
]


def made(**shape) -> GPT:
    """A model whose weights are all random, biases and norms too."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**dict(vocab_size=20, block_size=8, n_layer=2, n_head=2, n_embd=16), **shape}))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def batches(count: int = 2) -> list[torch.Tensor]:
    return list(torch.randint(20, (count, 3, 8), generator=torch.Generator().manual_seed(1)))


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: layer.weight.detach().clone() for name, layer in prune.matrices(model).items()}


def file_of(path) -> dict:
    return torch.load(path, weights_only=True)


# ---- what becomes zero
def test_magnitude_is_a_threshold_over_all_matrices():
    model = made()
    before = weights_of(model)
    sizes = sorted(abs(value) for weight in before.values() for value in weight.flatten().tolist())
    threshold = sizes[round(0.3 * len(sizes))]
    prune.set_zeros(model, 0.3, "magnitude", [])
    for name, weight in weights_of(model).items():
        assert torch.equal(weight, torch.where(before[name].abs() < threshold, 0.0, before[name]))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.77])
def test_layer_takes_the_same_share_of_each_matrix(share):
    model = made(n_head=1, n_embd=18, n_ff=7)
    before = weights_of(model)
    prune.set_zeros(model, share, "layer", [])
    for name, weight in weights_of(model).items():
        zeros = weight == 0
        assert abs(int(zeros.sum()) - share * weight.numel()) <= 1
        kept = before[name][~zeros].abs().min().item()
        assert max(before[name][zeros].abs().tolist(), default=0.0) <= kept
        assert torch.equal(weight[~zeros], before[name][~zeros])


def test_equal_scores_give_the_share_all_the_same():
    zeros = prune.lowest(torch.ones(5, 7), 0.5)
    assert zeros.sum(1).tolist() == [4, 3, 3, 4, 4] and zeros[0].tolist() == [True] * 4 + [False] * 3


def inputs_of(model, name: str) -> list[list[float]]:
    """What a layer of the blocks reads in batches(): a list of vectors."""
    found, layer = [], prune.matrices(model)[name]
    hook = layer.register_forward_pre_hook(lambda m, a: found.extend(a[0].flatten(0, -2).tolist()))
    for idx in batches():
        model(idx)
    hook.remove()
    return found


@pytest.mark.parametrize("method", ["wanda", "2:4"])
def test_wanda_and_two_of_four_by_loops(method):
    """A block's scores come from a model whose earlier blocks have been pruned."""
    model = made(arch="llama", n_ff=12)
    before, twin = weights_of(model), copy.deepcopy(model)
    prune.set_zeros(model, 0.5, method, batches())
    after = weights_of(model)
    with torch.no_grad():
        for name, layer in prune.matrices(twin).items():
            if name.startswith("1.") and name.endswith("attn.q"):  # block 0 is pruned by now
                for other, m in prune.matrices(twin).items():
                    if other.startswith("0."):
                        m.weight.copy_(after[other])
            x = inputs_of(twin, name)
            norms = [math.sqrt(sum(row[j] ** 2 for row in x)) for j in range(layer.in_features)]
            for i, row in enumerate(before[name].tolist()):
                scores = [abs(w) * norm for w, norm in zip(row, norms, strict=True)]
                size = 4 if method == "2:4" else len(row)
                kept = []
                for start in range(0, len(row), size):
                    group = scores[start : start + size]
                    limit = sorted(group)[size // 2]
                    kept += [score >= limit for score in group]
                assert [value != 0 for value in after[name][i].tolist()] == kept


# ---- parts
@pytest.mark.parametrize("method", ["heads", "neurons"])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_cut_out_equal_parts_silenced(shape, method):
    model = made(**{"n_head": 4, **shape})
    silenced = copy.deepcopy(model)
    smaller = prune_parts.smaller(silenced, 0.5, method, batches())
    idx = torch.randint(20, (2, 8))
    torch.testing.assert_close(smaller(idx), silenced(idx), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(silenced(idx), model(idx), atol=1e-2)
    old, new = model.config, smaller.config
    if method == "heads":
        assert (new.n_head, new.n_kv_head) == (old.n_head // 2, old.n_kv_head // 2)
        assert (new.head_size, new.n_ff) == (old.head_size, old.n_ff)
    else:
        assert (new.n_ff, new.n_head) == (old.n_ff // 2, old.n_head)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    assert len(smaller.generate([[1, 2]], 4, temperature=0)[0]) == 6


def test_the_energy_of_a_part_is_what_it_adds():
    torch.manual_seed(0)
    x, weight = torch.randn(50, 6), torch.randn(5, 6)
    found = prune_parts.energies(weight, x.T @ x, 2)
    wanted = [sum((weight[:, i : i + 2] @ row[i : i + 2]).square().sum() for row in x) for i in (0, 2, 4)]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_the_last_part_stays():
    assert prune_parts.smaller(made(), 0.99, "heads", batches()).config.n_head == 1


# ---- runs
PRUNED = "--prune_sparsity=0.5", "--prune_iters=15", "--eval_interval=10", "--learning_rate=1e-2"


@pytest.fixture
def command(monkeypatch):
    """command(out_dir=..., to=..., method=...) prunes a run in this process; returns the lines."""
    monkeypatch.setattr(sys, "argv", ["prune"])
    defaults = dict(file="best.pt", to="", sparsity=0.5, method="magnitude", input="", tokens=256)

    def run(**settings) -> list[str]:
        return prune.pruned_run({**defaults, **{name: str(value) for name, value in settings.items()}})

    return run


@pytest.mark.slow
def test_the_zeros_stay_through_20_updates(train, command, tmp_path):
    """Muon moves all weights of a matrix, AdamW's decay and momentum those without a gradient."""
    train("--max_iters=3", "--eval_interval=3", "--weight_decay=0.5")
    lines = command(out_dir=tmp_path / "out", to=tmp_path / "pruned", method="layer")
    pruned = file_of(tmp_path / "pruned/best.pt")
    zeros = {name: t == 0 for name, t in pruned["model"].items() if ".attn." in name or ".mlp." in name}
    assert len(zeros) == 12 and all(2 * int(t.sum()) == t.numel() for t in zeros.values())
    n = sum(t.numel() for t in zeros.values())
    assert lines[0].startswith(f"zeros: {n // 2:,} of {n:,} weights in the blocks, 50.0% (50.0% to 50.0%")
    assert "technique" in pruned["config"] and pruned["config"]["technique"] == ""
    for optimizer in ("muon", "adamw"):
        train(
            f"--init_from={tmp_path / 'pruned'}", "--technique=prune", f"--out_dir={tmp_path / optimizer}",
            f"--optimizer={optimizer}", "--weight_decay=0.5", "--gradient_accumulation_steps=2",
            "--dtype=bfloat16", "--batch_size=2", "--eval_interval=20",
        )  # fmt: skip
        saved = file_of(tmp_path / optimizer / "ckpt.pt")
        assert saved["step"] == 20
        for name, wanted in zeros.items():
            assert torch.equal(saved["model"][name] == 0, wanted)
            assert not torch.equal(saved["model"][name], pruned["model"][name])
    checkpoint.load_model(tmp_path / "muon/ckpt.pt", torch.device("cpu"))  # as sample.py does


@pytest.mark.slow
def test_pruning_while_training_resumes_bit_for_bit(train, tmp_path):
    """The share grows to update 15: by Zhu and Gupta's formula after 10, and 0.5 from then on."""
    train(*PRUNED)
    whole = file_of(tmp_path / "out/ckpt.pt")["model"]
    train(*PRUNED, "--max_iters=10", "--lr_decay_iters=20", f"--out_dir={tmp_path / 'two'}")
    half = file_of(tmp_path / "two/ckpt.pt")["model"]
    train("--init_from=resume", "--max_iters=20", f"--out_dir={tmp_path / 'two'}")
    again = file_of(tmp_path / "two/ckpt.pt")["model"]
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    masks = [name for name in whole if name.endswith(".pruned")]
    assert len(masks) == 12
    for name in masks:
        weight, n = name.replace("pruned", "weight"), whole[name].numel()
        assert abs(int(half[name].sum()) - n * 0.5 * (1 - (1 / 3) ** 3)) <= 1
        assert abs(int(whole[name].sum()) - n / 2) <= 1
        assert torch.equal(whole[weight] == 0, whole[name])


@pytest.mark.slow
def test_a_run_that_has_trained_becomes_a_plain_one(train, command, tmp_path):
    """By the command, and as the base of a new run; other commands say which command it is."""
    train(*PRUNED, "--eval_interval=20")
    trained = file_of(tmp_path / "out/ckpt.pt")
    file = {"file": "ckpt.pt", "out_dir": tmp_path / "out"}
    settings = dict(quantize="", bits=8, method="plain", tokens=1, to=str(tmp_path / "int8"), file="ckpt.pt")
    with pytest.raises(ValueError, match="masks out: python -m techniques.prune --sparsity=0 --out_dir="):
        quantize.pack_run({**settings, "out_dir": str(tmp_path / "out")})
    prune.pruned_run({"sparsity": 0.0, "method": "magnitude", "tokens": 1, "to": str(tmp_path / "plain"),
                      **{name: str(value) for name, value in file.items()}})  # fmt: skip
    plain = file_of(tmp_path / "plain/best.pt")
    own = {name for name in trained["model"] if not name.endswith(".pruned")}
    assert plain["model"].keys() == own
    assert all(torch.equal(plain["model"][name], trained["model"][name]) for name in own)
    assert plain["config"]["technique"] == "" and "prune_sparsity" not in plain["config"]
    base = change("as_base", trained, trained["config"])
    assert base["model"].keys() == own and base["config"]["technique"] == ""
    ran = train(f"--init_from={tmp_path / 'out'}", f"--out_dir={tmp_path / 'new'}", "--max_iters=1")
    assert ran["config"]["technique"] == ""


def test_a_smaller_run_is_an_ordinary_run(train, command, tmp_path, monkeypatch):
    monkeypatch.setattr(prune_parts, "TURNS", 1)
    train("--max_iters=1", "--n_head=4")
    lines = command(out_dir=tmp_path / "out", to=tmp_path / "heads", method="heads")
    assert lines[0] == "n_head 4 -> 2, n_kv_head 4 -> 2 in each layer" and " x as fast (" in lines[2]
    command(out_dir=tmp_path / "heads", to=tmp_path / "both", method="neurons")
    ran = train(f"--init_from={tmp_path / 'both'}", f"--out_dir={tmp_path / 'new'}", "--max_iters=1")
    shape = ran["raw_model"].config
    assert (shape.n_head, shape.head_size, shape.n_embd, shape.n_ff) == (2, 8, 32, 64)
    assert json.loads((tmp_path / "new/config.json").read_text(encoding="utf-8"))["n_ff"] == 64


@pytest.mark.slow
def test_a_table_and_a_picture_of_all_methods(train, tmp_path):
    """Half of the neurons is a third of the blocks' weights: 2 x 4 of 4 + 2 x 4 squares of n_embd."""
    train("--max_iters=1")
    settings = dict(
        bases=str(tmp_path / "out"), sparsities="0.5", methods="layer,2:4,heads,neurons", threads=1
    )
    picture = tmp_path / "prune.png"
    lines = pruning.compare(dict(**settings, updates=2, eval_iters=1, tokens=256, picture=str(picture)))
    rows = {line[:12].strip(): line[12:].split()[:2] for line in lines[1:-1]}
    halves = {
        "layer": ["50%", "50%"],
        "2:4": ["50%", "50%"],
        "heads": ["50%", "17%"],
        "neurons": ["50%", "33%"],
    }
    assert rows == {"not pruned": ["0%", "0%"], **halves}
    assert picture.read_bytes().startswith(b"\x89PNG") and lines[-1] == f"saved {picture}"


def test_a_matrix_that_starts_at_zero_is_not_pruned():
    model = change("change_model", GPT(GPTConfig(n_layer=1)), {"technique": "prune"})
    assert not any(layer.pruned.any() for layer in prune.matrices(model).values())


def test_a_matrix_that_was_pruned_wholly_stays_so():
    """One threshold for all matrices can leave nothing of one of them."""
    model = made()
    first = next(iter(prune.matrices(model).values()))
    torch.nn.init.zeros_(first.weight)
    config = {"technique": "prune", "init_from": "out-x-pruned"}
    assert change("change_model", model, config).blocks[0].attn.q.pruned.all()


def test_parts_of_which_none_goes():
    model = made(n_head=1)
    lines = prune_parts.gains(model, prune_parts.smaller(copy.deepcopy(model), 0.5, "heads", batches()))
    assert len(lines) == 1 and lines[0].startswith("nothing was taken out")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"method": "l1"}, "method='l1' is unknown; expected one of magnitude, layer, wanda, 2:4, heads, ne"),
        ({"sparsity": 1.0}, "sparsity=1.0 makes no sense; expected 0 or more, below 1"),
        ({"method": "2:4", "sparsity": 0.4}, "method=2:4 is a sparsity of 0.5; leave --sparsity out"),
    ],
)
def test_what_the_command_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        prune.pruned_run({"out_dir": "out-x", "method": "layer", "sparsity": 0.5, "tokens": 1, **settings})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"prune_sparsity": 1.0}, "prune_sparsity=1.0 makes no sense; expected 0 or more, below 1"),
        ({"technique": "prune,lora"}, "technique=prune is for training all weights; leave lora out"),
    ],
)
def test_what_training_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        prune.change_model(None, {"prune_sparsity": 0.0, "prune_iters": 1, **settings})


def test_a_base_without_zeros_is_refused():
    config = {"technique": "prune", "prune_sparsity": 0.0, "prune_iters": 500}
    model = change("change_model", made(), config)
    with pytest.raises(ValueError, match="technique=prune keeps zeros, and the weights that it began with"):
        prune.after_step(model, 1, config)
    with pytest.raises(ValueError, match="method=2:4 needs fours of inputs, and blocks.0.attn.q has 18"):
        prune.set_zeros(made(n_head=1, n_embd=18, arch="llama"), 0.5, "2:4", batches())


# ---- several processes
@pytest.mark.slow
def test_two_processes_keep_the_zeros_of_one(forks, tmp_path):
    """With each strategy; with fsdp, a run that prunes, is saved in shards and resumed has the same bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "DATASETS", tmp_path / "datasets")
        text = "".join(text for text, _ in corpora.open_corpus("verse", size=30_000).chunks())
        (tmp_path / "plain.txt").write_text(text, encoding="utf-8")
        prepare.prepare("plain", str(tmp_path / "plain.txt"))
    same = f"{MODEL} --dataset=plain --batch_size=4 --eval_interval=20"
    prunes = f"{same} --prune_sparsity=0.6 --prune_iters=15"
    keeps = f"{same} --init_from={tmp_path / 'base'} --technique=prune --max_iters=20"
    shards = f"shards {prunes} --strategy=fsdp --checkpoint_format=sharded"
    run_all(forks, tmp_path, 1, [f"base {prunes} --max_iters=20", f"one {keeps}"])
    runs = [f"{strategy} {keeps} --strategy={strategy}" for strategy in ("ddp", "zero1", "fsdp")]
    runs += [f"whole {prunes} --max_iters=20 --strategy=fsdp", f"{shards} --max_iters=10 --lr_decay_iters=20"]
    run_all(forks, tmp_path, 2, [*runs, f"{shards} --max_iters=20 --lr_decay_iters=20 --init_from=resume"])
    found = {
        what: checkpoint.load(tmp_path / what / "ckpt.pt")["model"]
        for what in ("base", "one", "ddp", "zero1", "fsdp", "whole", "shards")
    }
    masks = [name for name in found["base"] if name.endswith(".pruned")]
    for name in masks:
        zeros, weight = found["base"][name], name.replace("pruned", "weight")
        assert abs(int(zeros.sum()) - 0.6 * zeros.numel()) <= 1
        for what in ("one", "ddp", "zero1", "fsdp"):
            assert torch.equal(found[what][name], zeros) and torch.equal(found[what][weight] == 0, zeros), (
                what
            )
    assert len(masks) == 6
    for what in ("ddp", "zero1", "fsdp"):
        torch.testing.assert_close(losses(tmp_path / what), losses(tmp_path / "one"), atol=1e-3, rtol=1e-3)
    whole, shards = found["whole"], found["shards"]
    assert all(torch.equal(whole[name], shards[name]) for name in whole)
    assert all(abs(int(whole[name].sum()) - 0.6 * whole[name].numel()) <= 1 for name in masks)
