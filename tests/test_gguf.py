"""GGUF: every type and architecture, read and written, against twins and the package gguf."""

import struct
import tracemalloc

import numpy as np
import pytest
import torch

from conftest import needs
from techniques.exchange import gguf, gguf_blocks, gguf_config, gguf_header, gguf_names

TYPES = {name: number for number, (name, _, _) in gguf_blocks.TYPES.items()}
TOKENS = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": [f"t{i}" for i in range(40)]}
TOKENS |= {"tokenizer.ggml.token_type": [1] * 40, "tokenizer.ggml.merges": ["a b", "ä é"]}
TOKENS |= {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.add_bos_token": False}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
SHAPE = {"vocab_size": 40, "max_position_embeddings": 64, "hidden_size": 64, "num_hidden_layers": 2}
SHAPE |= {"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6}
SHAPE |= {
    "head_dim": 16,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
}
MODELS = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True, **SHAPE},
    "llama3": {"model_type": "llama", "tie_word_embeddings": False, **SHAPE, "rope_scaling": LLAMA3},
    "linear": {"model_type": "llama", "tie_word_embeddings": False, **SHAPE},
    "mistral": {"model_type": "mistral", "tie_word_embeddings": False, **SHAPE, "sliding_window": 16},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, **SHAPE, "attention_bias": True},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True, **SHAPE, "head_dim": 32},
    "gpt2": {"model_type": "gpt2", "tie_word_embeddings": True, "vocab_size": 40, "n_positions": 64,
             "n_embd": 64, "n_layer": 2, "n_inner": 256, "n_head": 4, "layer_norm_epsilon": 1e-5,
             "activation_function": "gelu_new"},
}  # fmt: skip
MODELS["linear"]["rope_scaling"] = {"rope_type": "linear", "factor": 4.0}


def shapes_of(config: dict) -> dict[str, tuple]:
    """Hugging Face's names and shapes of a tiny model."""
    if config["model_type"] == "gpt2":
        C = config["n_embd"]
        shapes = {"transformer.wte.weight": (40, C), "transformer.wpe.weight": (64, C)}
        shapes |= {"transformer.ln_f.weight": (C,), "transformer.ln_f.bias": (C,)}
        for i in range(config["n_layer"]):
            at = f"transformer.h.{i}."
            sizes = {"attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C)}
            sizes |= {"mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
            for name, (n_in, n_out) in sizes.items():
                shapes |= {f"{at}{name}.weight": (n_in, n_out), f"{at}{name}.bias": (n_out,)}
            for name in ("ln_1", "ln_2"):
                shapes |= {f"{at}{name}.weight": (C,), f"{at}{name}.bias": (C,)}
        return shapes
    C, F, hs = config["hidden_size"], config["intermediate_size"], gguf_config.head_size(config)
    wide, narrow = config["num_attention_heads"] * hs, config["num_key_value_heads"] * hs
    shapes = {"model.embed_tokens.weight": (40, C), "model.norm.weight": (C,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (40, C)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for name, rows, columns in (("q", wide, C), ("k", narrow, C), ("v", narrow, C), ("o", C, wide)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (rows, columns)
            if config["attention_bias"] and name != "o":
                shapes[f"{at}self_attn.{name}_proj.bias"] = (rows,)
            if config["model_type"] == "qwen3" and name in "qk":
                shapes[f"{at}self_attn.{name}_norm.weight"] = (hs,)
        shapes |= {f"{at}mlp.{name}_proj.weight": (F, C) for name in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (C, F)
        shapes |= {f"{at}{name}.weight": (C,) for name in ("input_layernorm", "post_attention_layernorm")}
    return shapes


def weights_of(config: dict) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(shape) * 0.1 for name, shape in shapes_of(config).items()}


def write(path, config: dict, weights: dict, dtype: str = "float32", tokenizer: dict = TOKENS) -> None:
    gguf.write(path, config, [(name, t.shape, t) for name, t in weights.items()], tokenizer, dtype)


# ---- numbers
def slow_blocks(data: bytes, kind: str) -> list[float]:
    """One number after the other, as ggml-common.h lays them out."""
    numbers, at = [], 0
    while at < len(data):
        d = struct.unpack_from("<e", data, at)[0]
        m = struct.unpack_from("<e", data, at + 2)[0] if kind == "Q4_1" else 0.0
        at += 4 if kind == "Q4_1" else 2
        if kind == "Q8_0":
            numbers += [d * code for code in struct.unpack_from("<32b", data, at)]
            at += 32
            continue
        codes = [byte & 15 for byte in data[at : at + 16]] + [byte >> 4 for byte in data[at : at + 16]]
        numbers += [d * (code - 8) if kind == "Q4_0" else d * code + m for code in codes]
        at += 16
    return numbers


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_blocks_become_the_numbers_that_their_layout_says(kind):
    _, block, size = gguf_blocks.TYPES[TYPES[kind]]
    rng = np.random.default_rng(2)
    data = rng.integers(0, 256, (6, size), dtype=np.uint8)
    data[:, :2] = rng.standard_normal((6, 1)).astype("<f2").view(np.uint8)
    if kind == "Q4_1":
        data[:, 2:4] = rng.standard_normal((6, 1)).astype("<f2").view(np.uint8)
    t = gguf_blocks.dequantize(data.ravel(), kind, (3, 2 * block), "t")
    expected = torch.tensor(slow_blocks(data.tobytes(), kind), dtype=torch.float64).view(3, 2 * block)
    assert t.dtype == torch.float32 and torch.allclose(t.double(), expected, rtol=1e-6, atol=1e-7)


def test_q8_0_codes_are_the_nearest_of_255_steps():
    t = torch.randn(50, 64) * torch.logspace(-6, 3, 50)[:, None]
    t[7] = 0
    back = gguf_blocks.dequantize(gguf_blocks.quantize(t, "Q8_0", "t"), "Q8_0", t.shape, "t")
    steps = t.view(-1, 32).abs().amax(1, keepdim=True) / 127  # float16 has 11 bits of it, fewer below 6e-5
    limit = 0.5 * steps + 127 * (steps * 2**-11).clamp(min=2**-25)
    assert ((back - t).view(-1, 32).abs() <= limit * 1.001).all()


def test_what_a_type_cannot_hold_is_refused():
    for kind, value in (
        ("F16", 7e4),
        ("F32", torch.inf),
        ("BF16", torch.nan),
        ("Q8_0", 1e9),
        ("Q8_0", torch.nan),
        ("Q4_1", 2e6),
        ("Q4_1", -1e5),
        ("Q4_1", torch.nan),
        ("Q4_1", torch.inf),
    ):
        t = torch.zeros(2, 32)
        t[1, 3] = value
        with pytest.raises(ValueError, match="^w holds .*--dtype=float32$"):
            gguf_blocks.quantize(t, kind, "w")
    for kind, data in (("F32", b"\0\0\xc0\x7f"), ("BF16", b"\x80\x7f"), ("F16", b"\0\xfc")):
        with pytest.raises(ValueError, match="^w holds NaN or infinity"):
            gguf_blocks.dequantize(np.frombuffer(data, np.uint8), kind, (1,), "w")
    for kind, size, at in (("Q8_0", 34, 0), ("Q4_0", 18, 0), ("Q4_1", 20, 0), ("Q4_1", 20, 2)):
        data = np.zeros(2 * size, np.uint8)
        data[size + at + 1] = 0x7E  # the second block's scale: NaN
        with pytest.raises(ValueError, match="^w holds NaN or infinity"):
            gguf_blocks.dequantize(data, kind, (2, 32), "w")


@pytest.mark.needs("gguf")
def test_numbers_are_those_of_the_package_gguf_bit_for_bit(tmp_path):
    package = needs("gguf")
    torch.manual_seed(3)
    t = torch.randn(96, 64) * torch.logspace(-5, 2, 96)[:, None]
    writer = package.GGUFWriter(tmp_path / "all.gguf", "llama")
    for name, number in TYPES.items():
        kind = package.GGMLQuantizationType(number)
        writer.add_tensor(name, package.quants.quantize(t.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata, entries, data = gguf_header.open_file(tmp_path / "all.gguf")
    assert metadata == {"general.architecture": "llama"} and entries.keys() == TYPES.keys()
    for stored in package.GGUFReader(tmp_path / "all.gguf").tensors:
        entry, kind = entries[stored.name], stored.tensor_type
        content = data[entry.start : entry.start + entry.size]
        ours = gguf_blocks.dequantize(content, stored.name, entry.shape, stored.name)
        theirs = torch.from_numpy(package.quants.dequantize(stored.data, kind).copy()).view(96, 64)
        assert torch.equal(ours.float(), theirs.float()), stored.name
        if stored.name != "Q4_0":
            assert np.array_equal(gguf_blocks.quantize(t, stored.name, "t"), content), stored.name


# ---- whole models
@pytest.mark.parametrize("family", MODELS)
def test_a_model_comes_back_as_it_was_written(family, tmp_path):
    config, weights = MODELS[family], weights_of(MODELS[family])
    write(tmp_path / "m.gguf", config, weights)
    read, tensors = gguf.read(tmp_path / "m.gguf")
    assert read == {**config, "tokenizer": TOKENS}
    assert tensors.keys() == weights.keys() and [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    for name, t in weights.items():
        assert tensors.shape(name) == t.shape and torch.equal(tensors[name], t), name


def test_16_and_8_bits_for_matrices_float32_for_the_rest(tmp_path):
    config = {**MODELS["llama"], "intermediate_size": 72}  # no multiple of 32
    weights = weights_of(config)
    near = {
        "float32": 0,
        "float16": 2**-11,
        "bfloat16": 2**-8,
        "q8_0": 2**-7,
        "q4_1": 2**-3,
    }  # of the largest number
    for dtype, error in near.items():
        write(tmp_path / "m.gguf", config, weights, dtype)
        tensors = gguf.read(tmp_path / "m.gguf")[1]
        for name, t in weights.items():
            assert (tensors[name].float() - t).abs().max() <= (
                error if t.dim() == 2 else 0
            ) * t.abs().max(), name
        down = tensors.entries["model.layers.0.mlp.down_proj.weight"]
        assert down.kind == {"q8_0": TYPES["F16"], "q4_1": TYPES["F16"]}.get(dtype, gguf.WRITTEN[dtype])
        assert (tensors.entries["model.embed_tokens.weight"].kind == TYPES["Q8_0"]) == dtype.startswith("q")
        assert tensors["model.embed_tokens.weight"].dtype == getattr(torch, dtype, torch.float32)


def test_rows_of_q_and_k_are_where_a_rotation_of_neighbours_wants_them():
    """Hugging Face rotates rows i and i + hs/2 of a head by one angle, GGUF's llama rows 2 i and 2 i + 1."""
    config = {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1}
    rows = torch.arange(16.0)  # two heads of 8
    stored = gguf_names.to_gguf_order(rows, "model.layers.0.self_attn.q_proj.bias", config)
    assert stored.tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    key = "model.layers.0.self_attn.k_proj.weight"
    stored = gguf_names.to_gguf_order(rows.view(8, 2), key, config)  # one head of 8
    assert stored[:, 0].tolist() == [0, 8, 2, 10, 4, 12, 6, 14]
    assert torch.equal(gguf_names.from_gguf(stored, key, config), rows.view(8, 2))
    for other in ("qwen2", "qwen3"):
        assert gguf_names.rotated_heads(key, {**config, "model_type": other}) == 0


def test_tensors_are_made_one_by_one(tmp_path):
    """A source of 64 tensors of 1 MB is written and read while two of them are in memory."""
    config = {**MODELS["llama"], "num_hidden_layers": 21, "vocab_size": 4096}
    shapes = {**shapes_of(config), "model.embed_tokens.weight": (4096, 64)}
    shapes |= {name: (4096, 64) for name in shapes if name.endswith("up_proj.weight")}
    tracemalloc.start()
    plan = [
        (name, shape, lambda shape=shape: torch.from_numpy(np.ones(shape, "f4")))
        for name, shape in shapes.items()
    ]
    gguf.write(tmp_path / "m.gguf", config, plan, {}, "float32")
    tensors = gguf.read(tmp_path / "m.gguf")[1]
    assert sum(float(tensors[name].sum()) for name in tensors) == sum(np.prod(s) for s in shapes.values())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "m.gguf").stat().st_size > 22e6 and peak < 8e6


@pytest.mark.needs("gguf")
@pytest.mark.parametrize("family", MODELS)
def test_the_package_gguf_reads_what_is_written(family, tmp_path):
    package = needs("gguf")
    config, weights = MODELS[family], weights_of(MODELS[family])
    write(tmp_path / "m.gguf", config, weights, "q8_0")
    reader, tensors = package.GGUFReader(tmp_path / "m.gguf"), gguf.read(tmp_path / "m.gguf")[1]
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert {key: fields[key] for key in TOKENS} == TOKENS
    arch = fields["general.architecture"]
    assert fields[f"{arch}.block_count"] == 2 and fields[f"{arch}.vocab_size"] == 40
    theirs = {stored.name: stored for stored in reader.tensors if stored.name != "rope_freqs.weight"}
    assert len(theirs) == len(tensors)
    for name in weights:
        stored = theirs[gguf_names.to_gguf(name, config)]
        raw = torch.from_numpy(package.quants.dequantize(stored.data, stored.tensor_type).copy())
        assert torch.equal(gguf_names.from_gguf(raw, name, config), tensors[name].float()), name


# ---- other programs
def other_model(config: dict) -> torch.nn.Module:
    """transformers' random model of this shape."""
    transformers = needs("transformers")
    torch.manual_seed(5)
    settings = {**config, "use_sliding_window": False, "attn_implementation": "eager"}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**settings))
    for p in model.parameters():  # large enough for every part to matter
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


@pytest.mark.slow
@pytest.mark.needs("transformers")
@pytest.mark.parametrize("family", MODELS)
def test_other_programs_compute_the_same_logits_from_the_file(family, tmp_path, figure):
    """transformers' random model -> our file -> llama.cpp, and the weights back into transformers."""
    config, model = MODELS[family], other_model(MODELS[family])
    state = {name: t for name, t in model.state_dict().items() if name in shapes_of(config)}
    assert state.keys() == shapes_of(config).keys()
    vocabulary = {**TOKENS, "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.eos_token_id": 2}
    write(tmp_path / "m.gguf", config, state, "float32", vocabulary)
    tensors = gguf.read(tmp_path / "m.gguf")[1]
    for name, t in state.items():
        assert torch.equal(tensors[name], t), name
    idx = torch.randint(40, (1, 16 if family == "mistral" else 60))  # llama.cpp does not heed the window
    with torch.no_grad():
        expected = model(idx).logits[0]
    llama_cpp = pytest.importorskip(
        "llama_cpp", reason="pip install llama-cpp-python builds it, in 10 minutes"
    )
    other = llama_cpp.Llama(
        str(tmp_path / "m.gguf"), n_ctx=64, n_threads=1, logits_all=True, type_k=0, type_v=0, verbose=False
    )
    other.eval(idx[0].tolist())
    logits = torch.from_numpy(other.scores[: idx.size(1)].copy())
    other.close()
    error = (logits - expected).abs().max().item()
    figure(
        f"llama.cpp's logits from our {family} file: {error:.0e} from transformers' of {expected.std():.1f}"
    )
    assert error < 2e-3 * expected.std()


# ---- what a stranger may send
def head(
    values: bytes = b"", table: bytes = b"", n_values: int = 0, n_tensors: int = 0, version: int = 3
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_values) + values + table


def row(name: str, shape: tuple, kind: int = 0, offset: int = 0, n_dims: int = 0) -> bytes:
    dims = struct.pack(f"<{len(shape)}Q", *shape)
    return (
        gguf_header.text_bytes(name)
        + struct.pack("<I", n_dims or len(shape))
        + dims
        + struct.pack("<IQ", kind, offset)
    )


def value(key: str, content, kind: int = -1) -> bytes:
    own, packed = gguf_header.typed_bytes(content) if not isinstance(content, bytes) else (kind, content)
    return gguf_header.text_bytes(key) + struct.pack("<I", own) + packed


PAD = bytes(4096)
W, HUGE = "w.weight", 2**64 - 1


def values(*rows: bytes) -> bytes:
    return head(b"".join(rows), n_values=len(rows)) + PAD


def table(*rows: bytes) -> bytes:
    return head(b"", b"".join(rows), n_tensors=len(rows)) + PAD


def arch(content) -> bytes:
    return values(value("general.architecture", content))


def alignment(content) -> bytes:
    return values(value("general.alignment", content))


HOSTILE = {
    "no GGUF": (b"PK\3\4" + PAD, "is no GGUF file"),
    "empty": (b"", "is no GGUF file"),
    "four bytes": (b"GGUF", "is no GGUF file"),
    "version 1": (head(version=1) + PAD, "version 1"),
    "big endian": (head(version=3 << 24) + PAD, "big endian"),
    "more values than bytes": (head(n_values=HUGE), "promises more"),
    "more tensors than bytes": (head(n_tensors=HUGE), "promises more"),
    "a key of 16 exabytes": (head(struct.pack("<Q", HUGE), n_values=1) + PAD, "promises more"),
    "a text of a terabyte": (values(value("a", struct.pack("<Q", 2**40), 8)), "promises more"),
    "a list of 2^63 numbers": (values(value("a", struct.pack("<IQ", 4, 2**63), 9)), "promises"),
    "a list of 2^63 texts": (values(value("a", struct.pack("<IQ", 8, 2**63), 9)), "do not fit"),
    "a list of lists": (values(value("a", struct.pack("<IQ", 9, 1), 9)), "list of type 9"),
    "a value of type 77": (values(value("a", b"", 77)), "value of type 77"),
    "no UTF-8": (values(value("a", struct.pack("<Q", 1) + b"\xff", 8)), "no UTF-8"),
    "a key twice": (values(value("a", 1), value("a", 2)), "has a twice"),
    "a key of two lines": (values(value("a\nb", 1)), "is no name"),
    "a tensor twice": (table(row(W, (8,)), row(W, (8,), 0, 32)), "has w.weight twice"),
    "alignment 0": (alignment(0), "expected a power of 2"),
    "alignment 48": (alignment(48), "expected a power of 2"),
    "alignment as text": (alignment("32"), "expected a power of 2"),
    "no dimensions": (table(row(W, (), n_dims=0)), "has 0 dimensions"),
    "a billion dimensions": (table(row(W, (8,), n_dims=10**9)), "dimensions; expected"),
    "a dimension of 0": (table(row(W, (8, 0))), "which F32 cannot have"),
    "a terabyte": (table(row(W, (2**19, 2**19))), "ends after its"),
    "a shape that overflows": (table(row(W, (2**33, 2**33))), "ends after its"),
    "an offset beyond the file": (table(row(W, (8,), 0, 2**20)), "ends after its"),
    "a negative offset": (table(row(W, (8,), 0, 2**64 - 32)), "ends after its"),
    "an offset between": (table(row(W, (8,), 0, 4)), "no multiple of 32"),
    "overlapping tensors": (table(row(W, (16,)), row("v", (8,), 0, 32)), "overlap"),
    "the same place": (table(row(W, (8,)), row("v", (8,))), "overlap"),
    "33 numbers in blocks": (table(row(W, (33,), 8)), "which Q8_0 cannot have"),
    "Q4_K": (table(row(W, (256,), 12)), "stored as Q4_K.*llama-quantize"),
    "Q6_K": (table(row(W, (256,), 14)), "stored as Q6_K"),
    "type 77": (table(row(W, (256,), 77)), "stored as type 77"),
    "no architecture": (head() + PAD, "architecture None"),
    "another architecture": (arch("mamba"), "architecture 'mamba'"),
    "a list for it": (arch(["llama"]), r"architecture \['llama'\]"),
    "a vocabulary alone": (arch("llama"), "has no embedding"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_line_and_nothing_is_allocated(case, tmp_path):
    content, words = HOSTILE[case]
    (tmp_path / "m.gguf").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=words) as caught:
        gguf.read(tmp_path / "m.gguf")
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert "\n" not in str(caught.value) and str(tmp_path / "m.gguf") in str(caught.value)


ODD = {  # what the metadata of a complete model may say instead
    "one of three files": ({"split.count": 3}, "is one of 3 files of a model; join them: llama-gguf-split"),
    "a mixture of experts": ({"llama.expert_count": 8}, "mixture of experts"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, "rope scaling of type yarn"),
    "half of a head": ({"llama.rope.dimension_count": 8}, "of which 8 are rotated"),
    "values of another size": ({"llama.attention.value_length": 24}, "values of 24 channels and keys of 16"),
    "both directions": ({"llama.attention.causal": False}, "looks ahead"),
    "no layers": ({"llama.block_count": 0}, "block_count=0; expected a number above 0"),
    "heads by layer": ({"llama.attention.head_count": [4, 4]}, r"head_count=\[4, 4\]; expected"),
    "a yes for a size": ({"llama.embedding_length": True}, "embedding_length=True; expected"),
    "epsilon is NaN": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon=nan; expected"),
    "theta is infinite": ({"llama.rope.freq_base": float("inf")}, "freq_base=inf; expected"),
    "too many heads": ({"llama.attention.head_count": 24}, "for 24 heads"),
    "no epsilon": ({"llama.attention.layer_norm_rms_epsilon": None}, "epsilon is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_a_model_that_cannot_be_ours_is_one_line(case, tmp_path, monkeypatch):
    changes, words = ODD[case]
    metadata_of = gguf_config.metadata_of

    def changed(*arguments) -> dict:
        merged = metadata_of(*arguments) | changes
        return {key: item for key, item in merged.items() if item is not None}

    monkeypatch.setattr(gguf_config, "metadata_of", changed)
    write(tmp_path / "m.gguf", MODELS["llama"], weights_of(MODELS["llama"]))
    with pytest.raises(ValueError, match=words) as caught:
        tensors = gguf.read(tmp_path / "m.gguf")[1]
        assert all(tensors[name] is not None for name in tensors)
    assert "\n" not in str(caught.value)


def test_what_gguf_cannot_say_is_refused_and_nothing_is_left(tmp_path):
    config, weights = MODELS["llama"], weights_of(MODELS["llama"])
    for changes, dtype, tokens, extra, words in (
        ({"model_type": "gemma"}, "float16", {}, {}, "model_type=gemma"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "float16", {}, {}, "yarn"),
        ({}, "int4", {}, {}, "dtype=int4"),
        ({}, "float16", {**TOKENS, "tokenizer.ggml.tokens": ["a"]}, {}, "1 tokens, the model 40"),
        ({}, "float16", {}, {"model.vision.weight": torch.ones(2)}, "no name for the tensor model.vision"),
        (
            {},
            "float16",
            {},
            {"model.norm.weight": torch.full((64,), torch.nan)},
            "model.norm.weight holds NaN",
        ),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            write(tmp_path / "m.gguf", {**config, **changes}, {**weights, **extra}, dtype, tokens)
        assert "\n" not in str(caught.value) and not any(tmp_path.iterdir())


def test_every_flipped_bit_of_a_header_is_one_line_or_the_same_model(tmp_path):
    config, weights = MODELS["qwen3"], weights_of(MODELS["qwen3"])
    write(tmp_path / "m.gguf", config, weights, "q8_0")
    content = (tmp_path / "m.gguf").read_bytes()
    rng, refused = np.random.default_rng(4), 0
    for at in rng.integers(4, 3500, 60):
        changed = bytearray(content)
        changed[at] ^= 1 << rng.integers(8)
        (tmp_path / "m.gguf").write_bytes(changed)
        try:
            tensors = gguf.read(tmp_path / "m.gguf")[1]
            assert all(tensors[name].isfinite().all() for name in tensors)
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 12
