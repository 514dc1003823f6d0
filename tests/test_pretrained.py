"""Other people's models, in and out: logits against transformers', there and back again, files that lie."""

import dataclasses
import functools
import json
import math
import re
import struct

import pytest
import torch
import torch.nn.functional as F

from model import GPT, GPTConfig
from techniques import pretrained
from techniques.exchange import families, nanogpt, safetensors_files, vocabulary, weights
from tokenizer import END, BPETokenizer, from_json

SIZES = dict(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
SIZES |= dict(num_key_value_heads=2, max_position_embeddings=64)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3 |= dict(original_max_position_embeddings=16, rope_theta=500.0)
SLIDING = dict(use_sliding_window=True, sliding_window=4, max_window_layers=0)
SMALL = dict(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64)
ERF = dict(activation_function="gelu", layer_norm_epsilon=1e-3)
LINEAR = dict(rope_type="linear", factor=2.5, rope_theta=1e4)
LOW = dict(rope_type="default", rope_theta=77.0)
MODELS = {  # name: (class in transformers, its arguments)
    "gpt2": ("GPT2", SMALL),
    "gpt2 untied, erf, wide": ("GPT2", SMALL | dict(tie_word_embeddings=False, n_inner=50) | ERF),
    "llama 2": ("Llama", SIZES),
    "llama tied": ("Llama", SIZES | dict(tie_word_embeddings=True, rms_norm_eps=1e-3)),
    "llama 3.1": ("Llama", SIZES | dict(rope_parameters=LLAMA3)),
    "llama linear": ("Llama", SIZES | dict(rope_parameters=LINEAR)),
    "llama with biases": ("Llama", SIZES | dict(attention_bias=True, mlp_bias=True, head_dim=6)),
    "llama with some biases": ("Llama", SIZES | dict(attention_bias=True)),
    "mistral": ("Mistral", SIZES | dict(sliding_window=5, head_dim=10)),
    "mistral without window": ("Mistral", SIZES | dict(sliding_window=None)),
    "qwen2": ("Qwen2", SIZES | dict(tie_word_embeddings=True, rope_parameters=LOW)),
    "qwen2 sliding": ("Qwen2", SIZES | SLIDING),
    "qwen3": ("Qwen3", SIZES | dict(head_dim=12, tie_word_embeddings=True)),
    "qwen3 sliding": ("Qwen3", SIZES | SLIDING | dict(head_dim=8)),
}  # fmt: skip
SHAPES = {  # of ours: each must come back from the files that it is written as
    "gpt2": GPTConfig(60, 16, 2, 4, 32, arch="gpt2", bias=True, norm_eps=1e-6),
    "gpt2 with erf": GPTConfig(
        60, 16, 2, 4, 32, arch="gpt2", bias=True, activation="gelu_erf", tie_weights=0
    ),
    "llama": GPTConfig(60, 16, 2, 4, 32, arch="llama", n_kv_head=1, rope_theta=5e5),
    "llama 3.1": GPTConfig(60, 16, 2, 4, 32, arch="llama", rope_scaling="llama3 8 1 4 8", head_size=10),
    "llama linear": GPTConfig(60, 16, 2, 4, 32, arch="llama", rope_scaling="linear 2.5", bias=True),
    "mistral": GPTConfig(60, 16, 2, 4, 32, arch="llama", window=5, tie_weights=1),
    "qwen2": GPTConfig(60, 16, 2, 4, 32, arch="llama", qkv_bias=1, window=5),
    "qwen3": GPTConfig(60, 16, 2, 4, 32, arch="llama", qk_norm=2, head_size=12, window=5),
}
shapes = pytest.mark.parametrize("name", SHAPES)


def random_model(shape: GPTConfig) -> GPT:
    torch.manual_seed(0)
    model = GPT(shape).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    return model


def ids(rows: int = 2, length: int = 14) -> torch.Tensor:
    return torch.randint(60, (rows, length), generator=torch.Generator().manual_seed(1))


def write_folder(folder, shape: GPTConfig, state: dict, dtype: str = "float32") -> None:
    """A Hugging Face folder, without a tokenizer."""
    family = families.family_of(shape)
    safetensors_files.write(folder / "model.safetensors", weights.tensors_of(state, shape, family), dtype)
    (folder / "config.json").write_text(json.dumps(families.config_of(shape, family)), encoding="utf-8")


def read_folder(folder) -> tuple[GPT, list[str]]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = families.shape_of(config)
    tensors = safetensors_files.read_folder(folder)
    state, notes = weights.weights_of(shape, tensors, config["model_type"])
    model = GPT(shape).eval()
    model.load_state_dict(state)
    return model, notes


def same_weights(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------------ families


@shapes
def test_what_is_written_comes_back(name, tmp_path):
    model = random_model(SHAPES[name])
    write_folder(tmp_path, model.config, model.state_dict())
    again, notes = read_folder(tmp_path)
    assert again.config == model.config and not notes
    assert same_weights(again.state_dict(), model.state_dict())
    assert torch.equal(again(ids()), model(ids()))


@pytest.mark.slow  # importing transformers alone takes 10 s
@pytest.mark.needs("transformers")
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers_and_the_way_back_is_the_identity(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    kind, arguments = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**arguments)
    theirs = getattr(transformers, kind + ("LMHeadModel" if kind == "GPT2" else "ForCausalLM"))(config).eval()
    with torch.no_grad():
        for parameter, p in theirs.named_parameters():
            p.normal_(mean=1.0 if re.search("norm|ln_", parameter) else 0.0, std=0.3)
    theirs.save_pretrained(tmp_path / "in")
    ours, notes = read_folder(tmp_path / "in")
    assert [note.split(":")[0] for note in notes] == (
        ["not in the source, so zero"] if name == "llama with some biases" else []
    )
    torch.testing.assert_close(ours(ids(2, 40)), theirs(ids(2, 40)).logits, atol=1e-4, rtol=0)
    write_folder(tmp_path / "out", ours.config, ours.state_dict())
    back, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    torch.testing.assert_close(back.eval()(ids(2, 40)).logits, ours(ids(2, 40)), atol=1e-4, rtol=0)
    back.save_pretrained(tmp_path / "again")
    again, _ = read_folder(tmp_path / "again")
    assert again.config == ours.config
    assert same_weights(again.state_dict(), ours.state_dict())


def test_older_and_newer_keys_of_rope_mean_the_same():
    shape = SHAPES["llama 3.1"]
    old = families.config_of(shape, "llama")
    assert old["rope_scaling"]["type"] == "llama3" and old["rope_theta"] == 10000.0
    new = {key: value for key, value in old.items() if not key.startswith("rope")}
    new["rope_parameters"] = {**old["rope_scaling"], "rope_theta": old["rope_theta"]}
    oldest = old | {"rope_scaling": {k: v for k, v in old["rope_scaling"].items() if k != "rope_type"}}
    assert families.shape_of(new) == families.shape_of(old) == families.shape_of(oldest) == shape


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(model_type="mixtral"), "model_type='mixtral' is not read; these are: gpt2, llama"),
        (dict(model_type=["llama"]), "is not read; these are: gpt2, llama"),
        (dict(hidden_act="gelu"), "activation 'gelu' is not silu"),
        (
            dict(rope_scaling=dict(rope_type="yarn", factor=4.0)),
            "RoPE scaling 'yarn' is not read; these are: lin",
        ),
        (dict(rope_scaling=dict(type="dynamic", factor=4.0)), "RoPE scaling 'dynamic' is not read"),
        (dict(rope_scaling=dict(type="linear", factor=-4.0)), "factor=-4.0; expected a number above 0"),
        (dict(rope_scaling=dict(type="linear")), "factor=None; expected a number above 0"),
        (dict(rope_scaling="linear"), "rope_scaling is no table"),
        (dict(quantization_config={}), "quantization_config={} is not read"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5 is not read"),
        (dict(hidden_size=None), "hidden_size=None; expected a number above 0"),
        (dict(hidden_size="32"), "hidden_size=32; expected a number above 0"),
        (dict(vocab_size=2**40), "vocab_size=1099511627776; expected"),
        (dict(vocab_size=2**30), "no tensor is as large as the config's vocab_size=1073741824"),
        (dict(num_hidden_layers=2**30), "the model has 21 tensors for 1073741824 layers"),
        (dict(num_hidden_layers=3), "model.layers.2.input_layernorm.weight is missing"),
        (dict(num_attention_heads=True), "num_attention_heads=True"),
        (dict(rms_norm_eps=float("nan")), "rms_norm_eps=nan"),
        (dict(head_dim=7), "head_size=7 is odd"),
        (
            dict(tie_word_embeddings="yes", intermediate_size=47),
            "has the shape (88, 32); the config makes that",
        ),
        (
            dict(model_type="qwen2", use_sliding_window=True, max_window_layers=1),
            "some layers have a sliding",
        ),
        (
            dict(model_type="qwen3", layer_types=["full_attention", "sliding_attention"]),
            "some layers have a sl",
        ),
    ],
)
def test_a_config_that_is_not_read_is_one_line(change, message, tmp_path):
    shape = GPTConfig(60, 16, 2, 4, 32, arch="llama")
    write_folder(tmp_path, shape, random_model(shape).state_dict())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_folder(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, wrong",
    [
        (dict(arch="modern"), "token_shift=1, logit_cap=15.0, activation=relu2, qk_norm=1"),
        (dict(arch="llama", qk_norm=1), "qk_norm=1"),
        (dict(arch="llama", window=4, bias=True), "bias=True"),
        (dict(arch="gpt2", position="rope"), "position=rope"),
        (dict(arch="gpt2", n_kv_head=2), "n_kv_head=2"),
        (dict(arch="gpt2", norm="rmsnorm"), "position=learned, activation=gelu"),
    ],
)
def test_what_no_other_program_has_is_not_written(changes, wrong):
    expected = f"{wrong} is no architecture of other programs; train with --arch=llama"
    with pytest.raises(ValueError, match=re.escape(expected)):
        families.family_of(GPTConfig(**changes))


def test_a_gpt2_without_biases_gets_zeros(tmp_path):
    model = random_model(GPTConfig(60, 16, 2, 4, 32, arch="gpt2"))
    write_folder(tmp_path, model.config, model.state_dict())
    again, _ = read_folder(tmp_path)
    assert again.config.bias
    torch.testing.assert_close(again(ids()), model(ids()))


# ------------------------------------------------------------------------------------------ weights


class Loaded(dict):
    def shape(self, name):
        return tuple(self[name].shape)


def parts_of(name: str) -> tuple[GPT, Loaded, str]:
    model = random_model(SHAPES[name])
    family = families.family_of(model.config)
    tensors = weights.tensors_of(model.state_dict(), model.config, family)
    return model, Loaded({each: make() for each, _, make in tensors}), family


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_each_tensor_is_used_or_named(name):
    model, tensors, family = parts_of(name)
    extra = {"h.0.attn.bias": torch.ones(1), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    _, notes = weights.weights_of(model.config, Loaded(tensors | extra), family)
    assert notes == []  # masks and frequencies are computed here
    _, notes = weights.weights_of(model.config, Loaded(tensors | {"score.weight": torch.ones(2)}), family)
    assert notes == ["not used, because this model has no place for it: score.weight"]
    for missing in [each for each in tensors if ".1." not in each]:
        rest = Loaded({each: t for each, t in tensors.items() if each != missing})
        if missing.endswith(".bias"):
            _, (note,) = weights.weights_of(model.config, rest, family)
            assert note.startswith("not in the source, so zero: ")
        else:
            with pytest.raises(ValueError, match=f"^{missing} is missing; it is "):
                weights.weights_of(model.config, rest, family)


def test_a_tied_head_is_stored_once_or_twice_and_must_be_equal():
    model, tensors, _ = parts_of("mistral")
    assert "lm_head.weight" not in tensors
    twice = Loaded(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    assert weights.weights_of(model.config, twice, "mistral")[1] == []
    twice["lm_head.weight"][0, 0] += 1
    (note,) = weights.weights_of(model.config, twice, "mistral")[1]
    assert note == "not used: lm_head.weight, which differs from the embedding that it is tied to"


def test_names_without_their_prefix_are_found():
    for name in ("gpt2", "qwen2"):
        model, tensors, family = parts_of(name)
        bare = Loaded({weights.without_prefix(each): t for each, t in tensors.items()})
        state, notes = weights.weights_of(model.config, bare, family)
        assert same_weights(state, dict(model.state_dict())) and not notes


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_refused(value):
    model, tensors, family = parts_of("gpt2")
    tensors["transformer.h.1.mlp.c_fc.bias"][3] = value
    with pytest.raises(ValueError, match="transformer.h.1.mlp.c_fc.bias holds NaN or infinity"):
        weights.weights_of(model.config, tensors, family)


# ------------------------------------------------------------------------------------------ safetensors


def write_raw(path, header, data: bytes = b"", length: int | None = None) -> None:
    """A safetensors file with any header, as text or as a value."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8")
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(shape, offsets, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


TWICE = json.dumps({"a": entry([4], [0, 16]), "b": entry([4], [0, 16])}).replace('"b"', '"a"')
HOSTILE = [
    ("a header longer than the file", {}, b"", 2**40, "a header of 1,099,511,627,776 bytes in a file of"),
    ("more bytes than there are", {"a": entry([4], [0, 16])}, bytes(15), None, "ends at byte 16 of 15"),
    ("1 TB", {"a": entry([2**38], [0, 2**40])}, bytes(16), None, "ends at byte 1,099,511,627,776 of 16"),
    ("a shape that says 1 TB", {"a": entry([2**38], [0, 16])}, bytes(16), None, "takes 1,099,511,627,776"),
    ("a product beyond 64 bits", {"a": entry([2**40, 2**40], [0, 16])}, bytes(16), None, "not 16"),
    ("a negative size", {"a": entry([-4], [0, 16])}, bytes(16), None, "no whole numbers from 0 on"),
    ("two negative sizes", {"a": entry([-2, -2], [0, 16])}, bytes(16), None, "no whole numbers from 0 on"),
    ("a negative offset", {"a": entry([4], [-16, 0])}, bytes(16), None, "no whole numbers from 0 on"),
    ("an end before its beginning", {"a": entry([4], [16, 0])}, bytes(16), None, "ends at byte 0 of 16"),
    ("an overlap", {"a": entry([4], [0, 16]), "b": entry([4], [8, 24])}, bytes(24), None, "an overlap"),
    ("the same bytes again", {"a": entry([4], [0, 16]), "b": entry([4], [0, 16])}, bytes(16), None, "a gap"),
    ("a gap", {"a": entry([4], [0, 16]), "b": entry([4], [20, 36])}, bytes(36), None, "there is a gap"),
    ("bytes at the end", {"a": entry([4], [0, 16])}, bytes(20), None, "4 bytes belong to no tensor"),
    ("a name twice", TWICE, bytes(16), None, "key occurs tw"),
    ("an unknown type", {"a": entry([4], [0, 16], "Q4")}, bytes(16), None, "of an unknown type 'Q4'"),
    ("a type that is a list", {"a": entry([4], [0, 16], ["F32"])}, bytes(16), None, "of an unknown type"),
    ("a float size", {"a": entry([4.0], [0, 16])}, bytes(16), None, "no whole numbers"),
    ("a bool size", {"a": entry([True], [0, 4])}, bytes(4), None, "no whole numbers"),
    ("ten thousand sizes", {"a": entry([2**52] * 10_000, [0, 16])}, bytes(16), None, "more than 8"),
    ("no offsets", {"a": {"dtype": "F32", "shape": [4]}}, bytes(16), None, "has no dtype, shape"),
    ("no table", [1, 2], b"", None, "no table of names"),
    ("no JSON", "{{{{", b"", None, "header is damaged"),
    ("JSON without end", "[" * 100_000, b"", None, "nested too deeply"),
]  # fmt: skip


@pytest.mark.parametrize(
    "header, data, length, message", [row[1:] for row in HOSTILE], ids=[r[0] for r in HOSTILE]
)
def test_a_file_that_lies_is_one_line(header, data, length, message, tmp_path):
    write_raw(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        safetensors_files.read_folder(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8, b"\xff" * 64])
def test_a_file_without_header_is_one_line(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: a header of"):
        safetensors_files.read_folder(tmp_path)


def test_a_type_without_weights_is_refused_when_it_is_used(tmp_path):
    write_raw(tmp_path / "model.safetensors", {"a": entry([4], [0, 4], "F8_E4M3")}, bytes(4))
    tensors = safetensors_files.read_folder(tmp_path)
    with pytest.raises(ValueError, match="a is F8_E4M3; read are F32, F16, BF16 and F64"):
        tensors["a"]


@pytest.mark.needs("safetensors")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_files_are_those_of_the_package_safetensors(dtype, tmp_path):
    import safetensors.torch

    torch.manual_seed(0)
    tensors = {
        "b": torch.randn(3, 4),
        "a": torch.randn(5),
        "none": torch.zeros(0, 3),
        "one": torch.tensor(2.5),
    }
    tensors = {name: t.to(getattr(torch, dtype)) for name, t in tensors.items()}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    assert same_weights(dict(safetensors_files.read_folder(tmp_path)), tensors)
    if dtype in safetensors_files.WRITTEN:
        parts = [(name, tuple(t.shape), functools.partial(t.clone)) for name, t in tensors.items()]
        safetensors_files.write(tmp_path / "ours.safetensors", parts, dtype)
        assert same_weights(safetensors.torch.load_file(tmp_path / "ours.safetensors"), tensors)


def in_two_files(folder, **changes) -> dict:
    """A folder whose tensors lie in two files; returns its weights. changes: of the index, by tensor."""
    model = random_model(SHAPES["llama"])
    parts = list(weights.tensors_of(model.state_dict(), model.config, "llama"))
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, share in zip(names, (parts[:9], parts[9:]), strict=True):
        safetensors_files.write(folder / name, share)
    places = {name: names[i >= 9] for i, (name, _, _) in enumerate(parts)} | changes
    index = {"metadata": {}, "weight_map": {name: file for name, file in places.items() if file}}
    (folder / safetensors_files.INDEX).write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(
        json.dumps(families.config_of(model.config, "llama")), encoding="utf-8"
    )
    return model.state_dict()


def test_a_model_in_several_files(tmp_path):
    state = in_two_files(tmp_path)
    assert same_weights(read_folder(tmp_path)[0].state_dict(), state)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(x="../secret.safetensors"),
            "names '../secret.safetensors'; expected a .safetensors file of that",
        ),
        (dict(x="/etc/passwd"), "names '/etc/passwd'; expected"),
        (dict(x="..\\secret.safetensors"), "expected a .safetensors file of that folder"),
        (dict(x="pytorch_model.bin"), "names 'pytorch_model.bin'; expected"),
        (dict(x=["a"]), "expected a .safetensors file"),
        (
            dict(x="model-00003-of-00003.safetensors"),
            "model-00003-of-00003.safetensors is missing; download it",
        ),
        (dict(x="model-00001-of-00002.safetensors"), "differ: ['x'] is in one only"),
        ({"model.norm.weight": ""}, "differ: ['model.norm.weight'] is in one only"),
    ],
)
def test_an_index_that_lies_is_one_line(changes, message, tmp_path):
    in_two_files(tmp_path, **changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        safetensors_files.read_folder(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    in_two_files(tmp_path)
    first, second = sorted(tmp_path.glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="is in two files; download the model again"):
        safetensors_files.read_folder(tmp_path)


def test_pickles_are_refused_by_name(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin is a pickle, which may run code; get the model in"
    ):
        safetensors_files.read_folder(tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_folder_in_16_bits_becomes_float32(dtype, tmp_path):
    model = random_model(SHAPES["qwen3"])
    write_folder(tmp_path, model.config, model.state_dict(), dtype)
    again = read_folder(tmp_path)[0].state_dict()
    rounded = {name: t.to(getattr(torch, dtype)).float() for name, t in model.state_dict().items()}
    assert same_weights(again, rounded)


@pytest.mark.slow
def test_a_folder_in_bf16_is_not_twice_in_memory(tmp_path, shell, figure):
    """Weights of 96 MB in bf16 become 192 MB in float32; the largest tensor has 32 MB, and 64 in float32."""
    shape = GPTConfig(16384, 64, 4, 8, 1024, arch="llama", n_ff=1024, tie_weights=0)
    with torch.device("meta"):
        state = GPT(shape).state_dict()
    state = {name: torch.full(t.shape, 0.5) for name, t in state.items()}
    write_folder(tmp_path, shape, state, "bfloat16")
    total = sum(t.numel() for t in state.values())
    program = (
        "import json, re, sys; from pathlib import Path\n"
        "from techniques.exchange import families, safetensors_files, weights\n"
        "status = Path('/proc/self/status').read_text\n"
        "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', status())[1])\n"
        "folder = Path(sys.argv[1]); config = json.loads((folder / 'config.json').read_text())\n"
        "shape = families.shape_of(config); tensors = safetensors_files.read_folder(folder)\n"
        "import torch; torch.empty(1, device='meta').normal_()  # loads modules of torch\n"
        "before = peak(); state, _ = weights.weights_of(shape, tensors, 'llama')\n"
        "assert all(t[-1].flatten()[-1] == 0.5 for t in state.values())\n"
        "print(peak() - before)\n"
    )
    result = shell("-c", program, str(tmp_path))
    assert result.returncode == 0, result.stderr
    used, largest = int(result.stdout), 2 * max(t.numel() for t in state.values())
    assert used < 4 * total + 2 * largest + 2**24
    sizes = [f"{n / 1e6:.0f} MB" for n in (2 * total, 4 * total, used)]
    figure("a bf16 folder of {} is read into {}: peak {}".format(*sizes))


# ------------------------------------------------------------------------------------------ nanoGPT

CHARACTERS = "\n !abcdefghij"


def write_nanogpt(path, bias: bool = True, prefix: str = "", vocab_size: int = len(CHARACTERS)) -> dict:
    """A ckpt.pt as nanoGPT's train.py saves it, by its published key names; returns its tensors."""
    torch.manual_seed(0)
    L, C, T = 2, 12, 8
    shapes = {"transformer.wte.weight": (vocab_size, C), "transformer.wpe.weight": (T, C)}
    for i in range(L):
        h = f"transformer.h.{i}."
        shapes |= {
            h + "ln_1.weight": (C,),
            h + "attn.c_attn.weight": (3 * C, C),
            h + "attn.c_proj.weight": (C, C),
        }
        shapes |= {
            h + "ln_2.weight": (C,),
            h + "mlp.c_fc.weight": (4 * C, C),
            h + "mlp.c_proj.weight": (C, 4 * C),
        }
    shapes["transformer.ln_f.weight"] = (C,)
    if bias:
        layers = {name for name in shapes if ".h." in name or "ln_f" in name}
        shapes |= {name.replace("weight", "bias"): shapes[name][:1] for name in layers}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    model_args = dict(
        n_layer=L, n_head=3, n_embd=C, block_size=T, bias=bias, vocab_size=vocab_size, dropout=0.0
    )
    model = {prefix + name: t for name, t in tensors.items()}
    rest = dict(optimizer={"state": {}, "param_groups": []}, iter_num=500, best_val_loss=torch.tensor(1.5))
    torch.save(dict(model=model, model_args=model_args, config={"dataset": "mine"}, **rest), path)
    return tensors


def nanogpt_twin(w: dict, idx: torch.Tensor) -> torch.Tensor:
    """nanoGPT's forward pass, written out for one row of ids (T) -> (T,V)."""
    C, T, heads = 12, len(idx), 3

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, (C,), w[f"{name}.weight"], w.get(f"{name}.bias"), 1e-5)

    x = w["transformer.wte.weight"][idx] + w["transformer.wpe.weight"][:T]
    for i in range(2):
        h = f"transformer.h.{i}."
        q, k, v = linear(norm(x, h + "ln_1"), h + "attn.c_attn").split(C, dim=1)
        out = []
        for part in (slice(j * C // heads, (j + 1) * C // heads) for j in range(heads)):
            scores = q[:, part] @ k[:, part].T / math.sqrt(C // heads)
            scores = scores.masked_fill(torch.ones(T, T).triu(1) == 1, -math.inf)
            out.append(scores.softmax(-1) @ v[:, part])
        x = x + linear(torch.cat(out, dim=1), h + "attn.c_proj")
        x = x + linear(F.gelu(linear(norm(x, h + "ln_2"), h + "mlp.c_fc")), h + "mlp.c_proj")
    return linear(norm(x, "transformer.ln_f"), "lm_head")


@pytest.mark.parametrize("bias, prefix", [(True, ""), (False, "_orig_mod.")])
def test_nanogpts_checkpoint_gives_its_logits(bias, prefix, tmp_path):
    tensors = write_nanogpt(tmp_path / "ckpt.pt", bias, prefix)
    (tmp_path / "input.txt").write_text(
        "a bad cafe\nhij! dig jab" + CHARACTERS, encoding="utf-8", newline="\n"
    )
    shape, found, tokenizer = nanogpt.read(tmp_path / "ckpt.pt", str(tmp_path / "input.txt"))
    state, notes = weights.weights_of(shape, found, "nanogpt")
    model = GPT(shape).eval()
    model.load_state_dict(state)
    idx = torch.tensor(tokenizer.encode("bad cab!").astype(int))
    torch.testing.assert_close(model(idx[None])[0], nanogpt_twin(tensors, idx), atol=1e-4, rtol=1e-5)
    assert not notes and tokenizer.decode(idx.tolist()) == "bad cab!"
    assert [*map(ord, CHARACTERS)] == sorted(map(ord, CHARACTERS))  # nanoGPT's ids: the places in this order
    assert tokenizer.encode(CHARACTERS).tolist() == [*range(len(CHARACTERS))]


@pytest.mark.parametrize(
    "vocab, message",
    [
        ("", "the model has 13 tokens, and its characters are not in the checkpoint; give the text"),
        ("input.txt", "has 12 different characters, the model 13; give the text that it was trained on"),
        (
            "meta.pkl",
            "meta.pkl is no text file; give the text that it was trained on: --vocab=input.txt (meta",
        ),
        ("nowhere", "nowhere is no text file"),
        ("bytes", "is no UTF-8 text"),
    ],
)
def test_the_characters_of_nanogpt_come_from_a_text_only(vocab, message, tmp_path):
    write_nanogpt(tmp_path / "ckpt.pt")
    (tmp_path / "input.txt").write_text(CHARACTERS[1:], encoding="utf-8")
    (tmp_path / "meta.pkl").write_bytes(b"\x80\x04N.")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=re.escape(message)):
        nanogpt.read(tmp_path / "ckpt.pt", str(tmp_path / vocab) if vocab else "")


# ------------------------------------------------------------------------------------------ the command

PRETRAINED = "techniques/pretrained.py"
TEXT = "the cat sat on the mat, and the rat ate the hat: 12 mats! "


@functools.cache
def byte_pairs() -> BPETokenizer:
    return BPETokenizer.train([TEXT], 270, (END,))


def foreign_folder(folder, name: str):
    """A Hugging Face folder with a tokenizer of 263 tokens (no pair is left) for a model of 272 rows."""
    model = random_model(dataclasses.replace(SHAPES[name], vocab_size=272))
    write_folder(folder, model.config, model.state_dict())
    vocabulary.write_folder(byte_pairs(), folder)
    return model


def round_trip(name: str, run_script, tmp_path) -> None:
    """Folder -> run -> folder and .gguf -> run: the same weights, shape and tokens everywhere."""
    model = foreign_folder(tmp_path / "in", name)
    run_script(PRETRAINED, "import", f"--from={tmp_path / 'in'}")
    for format, target in (("hf", tmp_path / "hf"), ("gguf", tmp_path / "model.gguf")):
        run_script(PRETRAINED, "export", f"--to={target}", f"--format={format}", "--dtype=float32")
        again = pretrained.read_run(target)
        shape = GPTConfig(**again["model_config"])
        if format == "gguf":  # llama.cpp has no GELU but GPT-2's, and a window in Mistral only
            shape = dataclasses.replace(shape, activation=model.config.activation, window=model.config.window)
        assert shape == model.config
        assert same_weights(again["model"], dict(model.state_dict()))
        tokenizer = from_json(again["tokenizer"])
        assert tokenizer.encode(TEXT).tolist() == byte_pairs().encode(TEXT).tolist()
        assert vocabulary.read(target).hash == tokenizer.hash  # so data.py --tokenizer=FOLDER fits
        assert tokenizer.vocab_size == 272 and tokenizer.end_id == byte_pairs().end_id


def test_in_and_out_again(run_script, tmp_path):
    round_trip("qwen3", run_script, tmp_path)


@pytest.mark.slow
@shapes
def test_all_families_in_and_out_again(name, run_script, tmp_path, capsys):
    round_trip(name, run_script, tmp_path)
    run_script("sample.py", "--max_new_tokens=5", "--start=the cat")
    assert "the cat" in capsys.readouterr().out


def test_an_imported_run_is_an_ordinary_one(run_script, tmp_path, capsys):
    model = foreign_folder(tmp_path / "in", "mistral")
    run_script(PRETRAINED, "import", f"--from={tmp_path / 'in'}", "--block_size=8")
    out = capsys.readouterr().out
    n = sum(p.numel() for p in model.parameters())
    assert f"{n:,} parameters, 2 layers, 32 wide, 272 tokens, context 8\n" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "best.pt",
        "config.json",
        "tokenizer.json",
    ]
    run_script("sample.py", "--max_new_tokens=3", "--temperature=0", "--start=the cat")
    (tmp_path / "mine.txt").write_text(TEXT * 9, encoding="utf-8")
    run_script("evaluate.py", f"--input={tmp_path / 'mine.txt'}")
    out = capsys.readouterr().out
    assert "step 0, val loss not measured" in out and "the cat" in out and "bits per byte" in out
    with pytest.raises(
        ValueError, match=r"which would be overwritten; delete it, or choose another --out_dir"
    ):
        run_script(PRETRAINED, "import", f"--from={tmp_path / 'in'}")


def test_nanogpts_folder_is_imported(run_script, tmp_path, capsys):
    folder = tmp_path / "nanogpt"
    folder.mkdir()
    write_nanogpt(folder / "ckpt.pt", prefix="_orig_mod.")
    (tmp_path / "input.txt").write_text(CHARACTERS, encoding="utf-8")
    run_script(PRETRAINED, "import", f"--from={folder}", f"--vocab={tmp_path / 'input.txt'}")
    run_script("sample.py", "--max_new_tokens=3", "--start=bad")
    assert "bad" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command, message",
    [
        ("", "expected import --from=PATH, export --to=FOLDER, or download NAME --to=FOLDER"),
        ("imprt --from=x", "expected import --from=PATH"),
        ("import x --from=x", "expected import --from=PATH"),
        ("download --to=x", "expected import --from=PATH"),
        ("import", "what to import is missing; name it: --from=PATH"),
        (
            "import --from={tmp}/nowhere",
            "nowhere does not exist; expected a Hugging Face folder, a .gguf file or",
        ),
        ("import --from={tmp}", "has no config.json; expected a model as on huggingface.co"),
        (
            "import --from={tmp}/text.txt",
            "is none of what can be imported: a Hugging Face folder, a .gguf file and",
        ),
        ("import --from={tmp}/cut.pt", "is none of what can be imported"),
        ("import --from={tmp}/in --block_size=17", "block_size=17 is not in 1 to 16, the model's"),
        ("download NAME", "where to put NAME is missing; name a folder: --to=FOLDER"),
        ("export", "where to export to is missing; name a folder: --to=FOLDER"),
        ("export --to=x --format=onnx", "format=onnx is unknown; expected hf or gguf"),
        (
            "export --to=x --dtype=q8_0",
            "dtype=q8_0 is not written as hf; choose one of float32, float16, bfloat16",
        ),
    ],
)
def test_a_wrong_command_is_one_line(command, message, run_script, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    write_nanogpt(tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:1000])
    (tmp_path / "whole.pt").unlink()
    if "/in" in command:
        foreign_folder(tmp_path / "in", "llama")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        run_script(PRETRAINED, *command.format(tmp=tmp_path).split())
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_what_no_other_program_has_is_not_exported(train, run_script, tmp_path):
    train("--max_iters=1")
    with pytest.raises(ValueError, match="arch=modern with token_shift=1, .*; train with --arch=llama"):
        run_script(PRETRAINED, "export", f"--to={tmp_path / 'hf'}", "--file=ckpt.pt")
    assert not (tmp_path / "hf").exists()


def test_a_tokenizer_larger_than_the_model_is_refused(run_script, tmp_path):
    model = random_model(SHAPES["llama"])
    write_folder(tmp_path / "in", model.config, model.state_dict())
    vocabulary.write_folder(byte_pairs(), tmp_path / "in")
    with pytest.raises(ValueError, match="in: the tokenizer has 263 tokens, the model only 60 rows for them"):
        run_script(PRETRAINED, "import", f"--from={tmp_path / 'in'}")


def test_no_command_overwrites_a_model(run_script, tmp_path):
    """A base's own folder as out_dir, a run's folder for an export."""
    foreign_folder(tmp_path / "in", "mistral")
    with pytest.raises(ValueError, match="in holds a model .*which would be overwritten"):
        run_script(PRETRAINED, "import", f"--from={tmp_path / 'in'}", f"--out_dir={tmp_path / 'in'}")
    run_script(PRETRAINED, "import", f"--from={tmp_path / 'in'}")
    with pytest.raises(ValueError, match="is the folder of a run; choose another --to"):
        run_script(PRETRAINED, "export", f"--to={tmp_path / 'out'}")
    with pytest.raises(ValueError, match="where a new run would overwrite it"):
        run_script(
            "train.py", "--dataset=small", f"--init_from={tmp_path / 'in'}", f"--out_dir={tmp_path / 'in'}"
        )
