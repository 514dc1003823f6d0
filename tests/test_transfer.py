"""A base's weights in a run with more tokens, another context length or frozen parts: runtime/transfer.py."""

import copy
import dataclasses
import re

import pytest
import torch

import optim
from config import defaults_of
from model import GPT, GPTConfig
from runtime import checkpoint, memory, more_tokens, origin, transfer
from techniques import change, lora
from text import prepare
from tokenizer import BPETokenizer, CharTokenizer

ARCHS = ("modern", "gpt2", "llama")
CPU = torch.device("cpu")
OLD = CharTokenizer("abcdefgh", ["<|endoftext|>"])
NEW = CharTokenizer("abcdefghi", {"<|endoftext|>": 8, "<|user|>": 9, "<|tool|>": 11})  # i is 10
SHAPE = dict(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=9)


def base_of(arch: str, **shape) -> tuple[GPT, dict]:
    """(a model that writes nothing sensible, its checkpoint), with other numbers than init's zeros."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(arch=arch, **{**SHAPE, **shape})).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    saved = dict(model=model.state_dict(), model_config=dataclasses.asdict(model.config), config={})
    return model, copy.deepcopy({**saved, "tokenizer": OLD.to_json()})


def fitted(saved: dict, tokenizer=OLD, **changes) -> tuple[GPT, str]:
    """(the model of a new run at update 0, the lines about it), made as train.py makes it."""
    config = {**defaults_of("train.py"), **saved["model_config"], **changes}
    lines = transfer.fit(saved, config, tokenizer, "out-base")
    model = GPT(memory.shape_of(config, tokenizer.vocab_size, saved["model_config"])).eval()
    model = origin.put_weights(saved, model, config, tokenizer, "out-base")
    return model, " ".join(lines)


# ---- more tokens
@pytest.mark.parametrize("arch", ARCHS)
def test_new_tokens_are_added_and_old_rows_stay(arch):
    base, saved = base_of(arch)
    model, said = fitted(saved, NEW)
    assert said == "3 tokens more than the base's 9: their rows begin as the mean of the old ones"
    for name in ("wte.weight", "head.weight"):
        old, new = base.state_dict()[name], model.state_dict()[name]
        assert torch.equal(new[:9], old) and len(new) == 12
        torch.testing.assert_close(new[9:], old.mean(0).expand(3, -1))
    assert (model.head.weight is model.wte.weight) == (arch == "gpt2")
    x = torch.randint(9, (4, 32))
    before, after = base(x), model(x)
    torch.testing.assert_close(after[..., :9], before, atol=1e-5, rtol=1e-5)
    # Jensen's inequality: exp of a mean is at most the mean of exps. (A cap bends the logits before that.)
    if arch != "modern":
        assert (after[..., 9:].exp() <= before.exp().mean(-1, keepdim=True) * 1.0001).all()


def test_the_same_tokenizer_changes_nothing():
    base, saved = base_of("modern")
    before = copy.deepcopy(saved)
    model, said = fitted(saved)
    assert said == "" and saved["model_config"] == before["model_config"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True))
    assert transfer.fit({}, {}, OLD, "scratch") == []


def test_which_tokenizers_contain_the_base():
    a = CharTokenizer("abc", ["<e>"])
    for other, fits in [
        (CharTokenizer("abcd", {"<e>": 3}), True),
        (CharTokenizer("abc", ["<e>", "<f>"]), True),
        (CharTokenizer("abc", ["<e>"], begin="<e>"), True),
        (CharTokenizer("abcd", ["<e>"]), False),  # d has the id of <e>
        (CharTokenizer("abc", ["<f>", "<e>"]), False),
        (CharTokenizer("acb", ["<e>", "<f>"]), False),
        (CharTokenizer("ab", ["<e>"]), False),
        (CharTokenizer("abc<"), False),
        (BPETokenizer([bytes([i]) for i in range(256)]), False),
    ]:
        assert more_tokens.contains(other, a) is fits, other.to_json()
    single = [bytes([i]) for i in range(256)]
    b = BPETokenizer(single, ["<e>"])
    assert more_tokens.contains(BPETokenizer([*single, b"th"], {"<e>": 256}), b)
    assert not more_tokens.contains(BPETokenizer([*single, b"th"], ["<e>"]), b)
    assert not more_tokens.contains(BPETokenizer(single, ["<e>", "<f>"], pattern=r"\S+|\s+"), b)


def test_a_tokenizer_gets_tokens_that_it_finds_in_every_text():
    old = BPETokenizer.train(["low lower lowest, the user said"] * 9, 270, ["<|endoftext|>"])
    new = more_tokens.extended(old, "<|user|>,<tool>")
    assert more_tokens.contains(new, old) and not more_tokens.contains(old, new)
    assert new.vocab_size == old.vocab_size + 2 and new.end_id == old.end_id
    text = "a <|user|>lower <tool> <|endoftext|>é"
    parts = [new.encode("a "), [270], new.encode("lower "), [271], new.encode(" <|endoftext|>é")]
    assert (
        new.encode(text).tolist() == [int(i) for part in parts for i in part]
        and new.decode(new.encode(text)) == text
    )
    plain = "the lowest user <|endoftext|> said"
    assert new.encode(plain).tolist() == old.encode(plain).tolist()
    again = more_tokens.extended(new, "<x>")
    assert again.encode("<|user|><x>").tolist() == [270, 272] and more_tokens.contains(again, new)
    assert more_tokens.extended(old, "") is old
    for names in ("<|endoftext|>", "<a>,<a>", "a b", " <a>"):
        with pytest.raises(ValueError, match="is a token already, or has a blank"):
            more_tokens.extended(old, names)
    with pytest.raises(ValueError, match="is for byte pairs"):
        more_tokens.extended(OLD, "<a>")


def test_a_smaller_or_another_vocabulary_is_refused_as_before():
    for other in (CharTokenizer("abcdefg", ["<|endoftext|>"]), CharTokenizer("abcdefghi", ["<|endoftext|>"])):
        with pytest.raises(ValueError, match="out-base has the tokenizer .* the dataset has .* prepare the"):
            fitted(base_of("modern")[1], other)


def test_lora_says_that_new_rows_stay_and_a_packed_base_is_refused():
    saved = base_of("modern")[1]
    lines = transfer.fit(saved, {"block_size": 32, "technique": "quantize,lora"}, NEW, "out-base")
    assert lines[0].startswith("WARNING: 3 tokens more") and "--freeze=blocks,norm does" in lines[0]
    packed = change(
        "change_model", base_of("modern")[0], {"technique": "quantize", "quantize": "int8", "eval_only": True}
    )
    saved = {**base_of("modern")[1], "model": packed.state_dict()}
    with pytest.raises(ValueError, match="out-base has a packed embedding: the dataset's 3 new tokens"):
        fitted(saved, NEW)


def test_an_adapted_head_gets_rows_too():
    """The row of the sum W + s B A is the mean of the old ones' as well."""
    model = base_of("modern")[0]
    settings = {**defaults_of("techniques/lora.py"), "lora_targets": "head", "lora_rank": 2}
    model = lora.change_model(model, settings)
    torch.nn.init.normal_(model.head.B)
    saved = dict(model=model.state_dict(), model_config=dict(vocab_size=9))
    transfer.add_tokens(saved, 9, NEW, {"technique": ""}, "base")
    weights = saved["model"]
    assert weights["head.A"].shape == model.head.A.shape
    old = model.head.merged()
    new = weights["head.base.weight"] + model.head.scale * weights["head.B"] @ weights["head.A"]
    torch.testing.assert_close(new, torch.cat((old, old.mean(0).expand(3, -1))))


# ---- another context length
@pytest.mark.parametrize("arch", ARCHS)
def test_a_shorter_context_is_the_base(arch):
    base, saved = base_of(arch)
    model, said = fitted(saved, block_size=16)
    assert said == "block_size=16 is shorter than the base's 32"
    x = torch.randint(9, (4, 16))
    assert torch.equal(model(x), base(x)) and model.config.block_size == 16


def test_learned_positions_are_drawn_out():
    base, saved = base_of("gpt2")
    model, said = fitted(saved, block_size=94)
    assert (
        said
        == "block_size=94 is longer than the base's 32: its learned positions are interpolated to that length"
    )
    old, new = base.wpe.weight, model.wpe.weight
    torch.testing.assert_close(new[::3], old)  # 93 steps of a third: every third row is an old one
    torch.testing.assert_close(new[1::3], (2 * old[:-1] + old[1:]) / 3)
    assert model(torch.randint(9, (1, 94))).isfinite().all()


@pytest.mark.parametrize(("heads", "power"), [(2, 16 / 14), (4, 8 / 6), (16, 0)])
def test_the_base_of_rope_grows(heads, power):
    model, said = fitted(base_of("llama", n_head=heads)[1], block_size=96)
    theta = 10000 * 3**power
    assert said == f"block_size=96 is longer than the base's 32: NTK-aware, rope_theta 10000 -> {theta:.6g}"
    assert model.config.rope_theta == pytest.approx(theta) and model.config.block_size == 96


def test_the_longest_wave_turns_as_far_at_the_new_end():
    """What the formula is for: theta'^(-(hs - 2) / hs) x new = theta^(-(hs - 2) / hs) x old."""
    shape = GPTConfig(arch="llama", n_embd=64, n_head=4, block_size=128)
    config = {"block_size": 512, "rope_theta": 1e4}
    transfer.lengthen({"model_config": {}}, shape, config)
    slowest = -(16 - 2) / 16
    assert config["rope_theta"] ** slowest * 512 == pytest.approx(1e4**slowest * 128)


def test_with_the_old_rope_theta_given_old_contexts_are_the_base(monkeypatch):
    monkeypatch.setitem(transfer.given, "rope_theta", "the command line")
    base, saved = base_of("llama")
    model, said = fitted(saved, block_size=64)
    assert "rope_theta 10000 -> 10000" in said and "NTK" not in said
    x = torch.randint(9, (4, 32))
    assert torch.equal(model(x), base(x))
    with pytest.raises(
        ValueError, match="was trained with rope_theta=10000.0, not 500.0; leave rope_theta out"
    ):
        fitted(base_of("llama")[1], rope_theta=500.0)


# ---- as runs
@pytest.fixture
def larger(datasets, tmp_path) -> str:
    """The flag for a dataset with the tokens of `small` and three more."""
    old = CharTokenizer.train([(datasets / "small.txt").read_text(encoding="utf-8")])
    n = old.vocab_size
    characters = "".join(token.decode("utf-8") for token in old.tokens) + "ß"
    CharTokenizer(characters, {"<|user|>": n, "<|tool|>": n + 2}).save(tmp_path / "larger.json")
    prepare.prepare("larger", str(datasets / "small.txt"), tokenizer=str(tmp_path / "larger.json"))
    return "--dataset=larger"


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--technique=lora",), ("--technique=lora", "--quantize=nf4")])
def test_more_tokens_and_a_longer_context_in_runs(train, larger, tmp_path, capsys, flags):
    train("--max_iters=2", "--arch=llama", f"--out_dir={tmp_path / 'base'}")
    out = f"--out_dir={tmp_path / 'new'}"
    flags = (larger, out, "--block_size=64", *flags)
    train(f"--init_from={tmp_path / 'base'}", "--max_iters=2", *flags)
    assert "3 tokens more" in (said := capsys.readouterr().out) and "NTK-aware" in said
    config = train("--init_from=resume", "--max_iters=3", *flags)["raw_model"].config
    assert config.rope_theta == pytest.approx(10000 * 2 ** (16 / 14)) and config.block_size == 64
    assert "going on at step 2" in capsys.readouterr().out
    model, tokenizer, _ = checkpoint.load_model(tmp_path / "new" / "best.pt", CPU)
    assert tokenizer.special_tokens.keys() == {"<|user|>", "<|tool|>"} and model.config == config
    with pytest.raises(ValueError, match="was trained with block_size=64, not 128"):
        train(larger, "--init_from=resume", out, "--max_iters=4", "--block_size=128")


@pytest.mark.slow
def test_a_run_learns_tokens_that_were_added(train, datasets, tmp_path):
    """From a base with byte pairs to a run that writes a new token."""
    (tmp_path / "plain.txt").write_text("the cat sat. the dog ran. " * 400, encoding="utf-8")
    (tmp_path / "talk.txt").write_text("<|user|>cat<|tool|>sat. " * 400, encoding="utf-8")
    prepare.prepare("plain", str(tmp_path / "plain.txt"), "bpe", vocab_size=280)
    train("--dataset=plain", f"--out_dir={tmp_path / 'base'}")
    more = dict(tokenizer=str(tmp_path / "base"), add_tokens="<|user|>,<|tool|>")
    prepare.prepare("talk", str(tmp_path / "talk.txt"), **more)
    flags = "--max_iters=100", "--learning_rate=1e-2", "--optimizer=adamw"
    train("--dataset=talk", f"--init_from={tmp_path / 'base'}", f"--out_dir={tmp_path / 'talk'}", *flags)
    model, tokenizer, saved = checkpoint.load_model(tmp_path / "talk" / "best.pt", CPU)
    assert saved["val_loss"] < 0.5
    written = model.generate(torch.tensor([tokenizer.encode("<|user|>").tolist()]), 20, temperature=0.0)
    assert tokenizer.special_tokens["<|tool|>"] in written[0]


@pytest.mark.slow
def test_fine_tuning_moves_low_layers_less(train, tmp_path):
    """One update of SGD from the same base: each matrix moves as far as without decay, times its factor."""
    train("--max_iters=2", "--n_layer=3", f"--out_dir={tmp_path / 'base'}")
    old, moved = checkpoint.load(tmp_path / "base" / "best.pt")["model"], {}
    sgd = "--optimizer=sgd", "--decay_lr=False", "--learning_rate=0.1", "--grad_clip=0", "--weight_decay=0"
    for decay in ("1.0", "0.5"):
        out = f"--out_dir={tmp_path / decay}"
        flags = "--n_layer=3", "--max_iters=1", f"--layer_lr_decay={decay}", *sgd
        train(f"--init_from={tmp_path / 'base'}", out, *flags)
        new = checkpoint.load(tmp_path / decay / "ckpt.pt")["model"]
        moved[decay] = {name: (new[name] - old[name]).norm().item() for name in old if new[name].ndim == 2}
    factors = {"wte": 0.125, "blocks.0": 0.125, "blocks.1": 0.25, "blocks.2": 0.5, "head": 1.0}
    for name, distance in moved["0.5"].items():
        (factor,) = [f for prefix, f in factors.items() if name.startswith(prefix + ".")]
        assert distance == pytest.approx(factor * moved["1.0"][name], rel=1e-2), name


# ---- frozen parts, and rates that fall layer by layer
def adapted(n_layer: int = 12, quantize: str = "", **shape) -> GPT:
    config = {
        "technique": "quantize,lora" if quantize else "lora",
        "quantize": quantize,
        "seed": 0,
        "lora_rank": 2,
    }
    return change("change_model", GPT(GPTConfig(n_layer=n_layer, n_embd=32, n_head=2, **shape)), config)


def frozen(model, wanted: str) -> set[str]:
    before = {name for name, p in model.named_parameters() if p.requires_grad}
    optim.freeze_parameters(model, wanted)
    return before - {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("blocks.[01].*", r"blocks\.[01]\..*"),
        ("blocks.[01]", r"blocks\.[01]\..*"),
        ("blocks.1?", r"blocks\.1[01]\..*"),
        ("*.mlp.*", r"blocks\.\d+\.mlp\..*"),
        ("*.mlp", r"blocks\.\d+\.mlp\..*"),
        ("blocks.[!0]*, wte", r"blocks\.([1-9]|1\d)\..*|wte\..*"),
        ("blocks.0.attn.q.weight", r"blocks\.0\.attn\.q\.weight"),
        ("*norm*", r".*norm.*"),
    ],
)
def test_freeze_takes_patterns(wanted, names):
    model = GPT(GPTConfig(n_layer=12, n_embd=32, n_head=2))
    expected = {name for name, _ in model.named_parameters() if re.fullmatch(names, name)}
    assert frozen(model, wanted) == expected and expected


def test_freeze_knows_the_names_that_techniques_make():
    assert frozen(adapted(), "blocks.0") == {f"blocks.0.attn.{m}.{x}" for m in "qkvo" for x in "AB"}
    assert frozen(adapted(), "*.q.A") == {f"blocks.{i}.attn.q.A" for i in range(12)}
    assert frozen(adapted(), "blocks.0.attn.q.base.weight,wte") == set()  # LoRA has frozen them already
    assert frozen(adapted(quantize="nf4"), "wte,blocks.0.attn.q.base,blocks.1.attn.q.A") == {
        "blocks.1.attn.q.A"
    }


def test_a_pattern_that_matches_nothing_lists_the_names():
    for model, names in (
        (
            GPT(GPTConfig(n_layer=2)),
            "wte.weight, .*blocks.N.attn.q.weight, .*blocks.N.mlp.up.weight, .*head.weight",
        ),
        (adapted(2), "blocks.N.attn.q.A, blocks.N.attn.q.B, blocks.N.attn.q.base.weight"),
    ):
        with pytest.raises(ValueError, match=rf"freeze=\*.ffn matches no parameter; expected .*{names}"):
            optim.freeze_parameters(model, "wte,*.ffn")


def test_layer_lr_decay_reaches_a_and_b():
    settings = {**defaults_of("train.py"), "optimizer": "adamw", "layer_lr_decay": 0.5}
    groups = optim.parameter_groups(adapted(2), settings)
    scales = {name: group["lr_scale"] for group in groups for name, _ in group["params"]}
    assert {name[:8]: scale for name, scale in scales.items()} == {"blocks.0": 0.25, "blocks.1": 0.5}
    assert len(scales) == 2 * 4 * 2


# ---- what a run says of it
@pytest.mark.parametrize(
    ("flags", "learned", "weights"),
    [
        (("--technique=lora", "--lora_rank=2"), 2 * 4 * 2 * 64, 4),
        (("--freeze=blocks,wte",), None, 4),
        pytest.param(
            ("--technique=lora", "--quantize=nf4", "--lora_rank=2"), 2 * 4 * 2 * 64, 1, marks=pytest.mark.slow
        ),
    ],
)
def test_a_run_says_how_much_it_trains_and_holds(train, tmp_path, capsys, flags, learned, weights):
    """Bytes of weights are those of the file: packed ones count as they are."""
    base = "--arch=llama", "--n_kv_head=2"
    model = train("--eval_interval=1", "--max_iters=1", *base, *flags)["raw_model"]
    said = capsys.readouterr().out
    V, C = 56, 32
    N = 2 * V * C + 2 * (4 * C * C + 3 * C * 88) + 5 * C
    assert len(model.wte.weight if weights == 4 else model.wte.codes) == V
    learned = learned or V * C + C
    N += learned * ("--technique=lora" in flags)
    assert f"model: {N:,} parameters, {learned:,} of them trained ({learned / N:.1%})" in said
    held = re.search(r"memory: ([\d,]+) bytes of weights, ([\d,]+) of gradients, ([\d,]+) of opt", said)
    n_bytes = [int(text.replace(",", "")) for text in held.groups()]
    tensors = {t.data_ptr(): t.nbytes for t in model.state_dict().values()}
    assert n_bytes == [sum(tensors.values()), 4 * learned, 8 * learned]
    if weights == 1:
        assert n_bytes[0] < 4 * N / 3
