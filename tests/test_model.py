"""model.py against slow, obvious twins: written-out attention, uncached generation, known models.

Sizes differ from one another wherever a mix-up could hide: B=3 rows, T=7 tokens, H=4 heads, K=2 key/value
heads, hs=6, C=24, V=11.
"""

import cmath
import math
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import generate as generate_module
import model as model_module
from generate import Cache, token_probs
from machine.layers import Linear, joined_linear, squared_relu
from model import ARCHS, GPT, Attention, GPTConfig, rope_tables, rotate, stretched, written_out_attention

B, T, H, C, V = 3, 7, 4, 24, 11
archs = pytest.mark.parametrize("arch", ARCHS)
others_slow = pytest.mark.parametrize(  # one is fast
    "arch", ["gpt2", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ARCHS if arch != "gpt2")]
)


def tiny(arch: str, **changes) -> GPT:
    """A small model with large random weights everywhere, also where training would start from zero."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=V, block_size=8, n_layer=2, n_head=H, n_embd=C)
    model = GPT(GPTConfig(arch=arch, **(sizes | changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    return model


def ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def saved_bytes(run) -> int:
    """Bytes that autograd keeps for the backward pass of run(); views of one storage count once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total


# ------------------------------------------------------------------------------------------ the config


def test_parameter_counts():
    config = GPTConfig(arch="gpt2", n_layer=4, n_head=4, n_embd=128, block_size=64, vocab_size=65)
    assert count(GPT(config)) == 804_096
    gpt2 = dict(arch="gpt2", n_head=12, n_embd=768, block_size=1024, vocab_size=50257, bias=True)
    with torch.device("meta"):
        sizes = [count(GPT(GPTConfig(n_layer=n_layer, **gpt2))) for n_layer in (10, 11, 12)]
    assert sizes[2] == 124_439_808
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] == 12 * 768**2 + 13 * 768


def test_widths():
    assert GPTConfig(n_embd=128).n_ff == 512
    assert GPTConfig(n_embd=128, n_ff=100).n_ff == 100
    for n_embd in (128, 192, 256, 384, 768):
        with torch.device("meta"):
            plain = count(GPT(GPTConfig(n_embd=n_embd)).blocks[0].mlp)
            gated = count(GPT(GPTConfig(n_embd=n_embd, activation="swiglu")).blocks[0].mlp)
        assert abs(gated / plain - 1) < 0.01, n_embd
    assert GPTConfig(arch="llama", n_head=6, n_embd=192).n_kv_head == 3
    assert GPTConfig(arch="llama", n_head=3, n_embd=192).n_kv_head == 3
    assert GPTConfig(arch="modern", n_head=6, n_embd=192).n_kv_head == 6


@archs
def test_a_resolved_config_is_a_fixed_point(arch):
    config = GPTConfig(arch=arch)
    open_fields = [name for name, value in asdict(config).items() if value in ("", -1)]
    assert open_fields == ["rope_scaling"]  # "" is what it means: none
    assert GPTConfig(**asdict(config)) == config


def test_switches_can_be_set_alone():
    config = GPTConfig(arch="gpt2", position="rope", activation="swiglu", tie_weights=0, logit_cap=30.0)
    assert (config.norm, config.position, config.activation) == ("layernorm", "rope", "swiglu")
    assert (config.tie_weights, config.qk_norm, config.logit_cap) == (0, 0, 30.0)
    config = GPTConfig(arch="modern", qk_norm=0, zero_init=0, logit_cap=0.0, norm="layernorm")
    assert (config.qk_norm, config.zero_init, config.logit_cap, config.norm) == (0, 0, 0.0, "layernorm")


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(n_embd=256, n_head=7), "n_embd=256 is not divisible by n_head=7; 8 works"),
        (dict(n_embd=20), "n_embd=20 is not divisible by n_head=4 into even sizes for rope; 5 works"),
        (dict(n_embd=129), "n_embd=129 is odd, rope needs pairs; 128 works"),
        (dict(n_embd=96, n_head=6, n_kv_head=4), "n_head=6 is not divisible by n_kv_head=4; 3 works"),
        (dict(arch="gpt3"), "unknown arch='gpt3'; choose one of modern, gpt2, llama"),
        (dict(norm="batchnorm"), "unknown norm='batchnorm'; choose one of 'layernorm', 'rmsnorm'"),
        (dict(position="alibi"), "unknown position='alibi'; choose one of 'learned', 'rope'"),
        (
            dict(activation="elu"),
            "unknown activation='elu'; choose one of 'gelu_erf', 'gelu', 'relu2', 'swiglu'",
        ),
        (dict(qk_norm=3), "unknown qk_norm=3; choose one of 0, 1, 2"),
        (dict(n_layer=0), "n_layer=0 must be at least 1"),
        (dict(n_head=0), "n_head=0 must be at least 1"),
        (dict(n_kv_head=-2), "n_kv_head=-2 must be at least 1"),
        (dict(vocab_size=0), "vocab_size=0 must be at least 1"),
        (dict(dropout=1.0), "dropout=1.0 must be at least 0 and below 1"),
        (dict(dropout=math.nan), "dropout=nan must be at least 0 and below 1"),
        (dict(head_size=7), "head_size=7 is odd, rope needs pairs; 8 works"),
        (dict(head_size=-1), "head_size=-1 must be at least 1, or 0 for n_embd / n_head"),
        (dict(norm_eps=0.0), "norm_eps=0.0 must be above 0 and below 1; 1e-5 is usual"),
        (dict(qkv_bias=2), "unknown qkv_bias=2; choose one of -1, 0, 1"),
        (dict(window=-1), "window=-1 must be at least 1, or 0 for all earlier tokens"),
        (
            dict(rope_scaling="llama3 8 4 1 8"),
            "rope_scaling='llama3 8 4 1 8': LOW must be below HIGH; 1 and 4 are usual",
        ),
        (dict(rope_theta=0.0), "rope_theta=0.0 must be above 0; 10000.0 is usual"),
        (dict(logit_cap=-3.0), "logit_cap=-3.0 must be above 0, or 0 to switch it off"),
    ],
)
def test_impossible_shapes_name_the_nearest_possible_one(wrong, message):
    with pytest.raises(ValueError) as error:
        GPTConfig(**wrong)
    assert str(error.value) == message
    works = re.search(r"(n_\w+)=\d+(?: into even sizes for rope)?; (\d+) works", message)
    if works:
        GPTConfig(**(wrong | {works[1]: int(works[2])}))


# ------------------------------------------------------------------------------------------ the model


@archs
def test_names(arch):
    names = {re.sub(r"blocks\.\d+\.", "", name) for name in tiny(arch).state_dict()}
    common = "wte attn_norm attn.q attn.k attn.v attn.o mlp_norm mlp.up mlp.down norm head".split()
    extra = {"gpt2": ["wpe"], "llama": ["mlp.gate"], "modern": []}[arch]
    assert names == {f"{name}.weight" for name in common + extra}


@archs
def test_causal(arch):
    model, idx = tiny(arch), ids(B, T)
    logits = model(idx)
    assert logits.shape == (B, T, V) and logits.dtype == torch.float32
    for t in range(T):
        changed = idx.clone()
        changed[:, t] = (idx[:, t] + 1) % V
        difference = (model(changed) - logits).abs().amax(dim=(0, 2))  # (T)
        assert (difference[:t] < 1e-5).all() and (difference[t:] > 1e-4).all()


def test_too_long():
    with pytest.raises(ValueError, match="^9 tokens do not fit into block_size=8$"):
        tiny("gpt2")(ids(1, 9))


@others_slow
def test_one_batch_is_learnt_by_heart(arch):
    torch.manual_seed(0)
    model = GPT(GPTConfig(arch=arch, block_size=32, n_layer=2, n_embd=64))
    text = torch.randint(65, (4, 33))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@archs
@pytest.mark.parametrize("n_embd", [32, 128, 192, 384, pytest.param(1024, marks=pytest.mark.slow)])
@pytest.mark.parametrize("vocab_size", [65, pytest.param(4096, marks=pytest.mark.slow)])
def test_first_loss_is_that_of_a_uniform_guess(arch, n_embd, vocab_size):
    """Within 0.05; with a tied head each token guesses itself a little, and the wider, the more."""
    torch.manual_seed(0)
    config = GPTConfig(vocab_size, arch=arch, block_size=64, n_layer=1, n_embd=n_embd)
    model, idx = GPT(config), torch.randint(vocab_size, (16, 64))
    with torch.no_grad():
        loss = -model(idx).log_softmax(-1).mean()  # over all targets: what random ones cost on average
    bound = 0.05 if not config.tie_weights else 0.05 + 0.0003 * n_embd
    assert abs(loss.item() - math.log(vocab_size)) < bound


@archs
def test_initial_weights(arch):
    """Every parameter is set, wherever the model was built; a tied head stays the embedding."""
    config = GPTConfig(arch=arch, n_layer=2, bias=True)
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    model.init_weights()
    assert (model.head.weight is model.wte.weight) == (arch == "gpt2")
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif name.endswith(("attn.o.weight", "mlp.down.weight")):
            std = 0.0 if arch == "modern" else 0.02 / math.sqrt(4)
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
        else:
            std = 0.2 if (arch, name) == ("modern", "wte.weight") else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name


def test_logit_cap():
    capped, free = tiny("modern"), tiny("modern", logit_cap=0.0)
    logits = free(ids(B, T))
    assert logits.abs().max() > 3
    torch.testing.assert_close(capped(ids(B, T)), 15 * torch.tanh(logits / 15))


# ------------------------------------------------------------------------------------------ attention


FOREIGN = [  # what only other people's models have
    dict(window=3), dict(head_size=10), dict(norm_eps=0.1, qk_norm=1), dict(qkv_bias=1),
    dict(bias=True, qkv_bias=0), dict(qk_norm=2, bias=True),
]  # fmt: skip


def attention_twin(attn: Attention, x: torch.Tensor) -> torch.Tensor:
    """The definition, one query at a time: lists and loops; rope as a multiplication of complex numbers."""
    config = attn.config
    rows, length, width = x.shape
    hs = config.head_size
    shared = config.n_head // config.n_kv_head  # query heads per key/value head

    def prepare(vector: torch.Tensor, position: int, norm: torch.nn.Module | None) -> torch.Tensor:
        if config.qk_norm:
            vector = vector - vector.mean() if config.norm == "layernorm" else vector
            vector = vector / (vector.pow(2).sum() / hs + config.norm_eps).sqrt()
        if config.qk_norm == 2:
            vector = vector * norm.weight
            vector = vector + norm.bias if config.bias and config.norm == "layernorm" else vector
        if config.position == "rope":
            turns = [cmath.exp(1j * position * config.rope_theta ** (-2 * i / hs)) for i in range(hs // 2)]
            turned = torch.complex(vector[: hs // 2], vector[hs // 2 :]) * torch.tensor(turns)
            vector = torch.cat([turned.real, turned.imag]).float()
        return vector

    out = []
    for b in range(rows):
        for t in range(length):
            heads = []
            for h in range(config.n_head):
                mine = slice(h * hs, (h + 1) * hs)
                theirs = slice(h // shared * hs, (h // shared + 1) * hs)
                seen = range(max(0, t + 1 - config.window) if config.window else 0, t + 1)
                query = prepare(attn.q(x[b, t])[mine], t, getattr(attn, "q_norm", None))
                keys = [prepare(attn.k(x[b, s])[theirs], s, getattr(attn, "k_norm", None)) for s in seen]
                scores = torch.stack([torch.dot(query, key) / math.sqrt(hs) for key in keys])
                weights = scores.exp() / scores.exp().sum()
                values = [attn.v(x[b, s])[theirs] for s in seen]
                heads.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
            out.append(attn.o(torch.cat(heads)))
    return torch.stack(out).view(rows, length, width)


@pytest.mark.parametrize("n_kv_head", [pytest.param(4, marks=pytest.mark.slow), 2, 1])
@pytest.mark.parametrize(
    "position, qk_norm, norm",
    [("learned", 0, ""), ("rope", 0, ""), ("rope", 1, "rmsnorm"), ("rope", 1, "layernorm")],
)
def test_attention_equals_the_written_out_form(position, qk_norm, norm, n_kv_head):
    sizes = dict(position=position, qk_norm=qk_norm, norm=norm, n_kv_head=n_kv_head, bias=True)
    check_attention(tiny("gpt2", **sizes).blocks[0].attn)


@pytest.mark.parametrize(
    "switch", [*FOREIGN, dict(window=1), dict(window=T), dict(window=3, qk_norm=2)], ids=str
)
@pytest.mark.parametrize("arch", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_attention_of_other_peoples_shapes_equals_the_written_out_form(arch, switch):
    check_attention(tiny(arch, n_kv_head=2, position="rope", **switch).blocks[0].attn)


def check_attention(attn: Attention) -> None:
    """Output and gradients equal attention_twin's."""
    config = attn.config
    rope = None
    if config.position == "rope":
        rope = rope_tables(torch.arange(T)[None], config.head_size, config.rope_theta)
    x = torch.randn(B, T, C, requires_grad=True)
    upstream = torch.randn(B, T, C)
    inputs = (x, *attn.parameters())
    fast, slow = attn(x, rope), attention_twin(attn, x)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    fast_gradients = torch.autograd.grad(fast, inputs, upstream)
    slow_gradients = torch.autograd.grad(slow, inputs, upstream)
    for ours, theirs in zip(fast_gradients, slow_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_grouped_heads_are_shared_heads():
    """K = 2 equals plain attention (K = H) with each key/value head written twice in a row."""
    grouped, plain = tiny("llama", n_kv_head=2), tiny("llama", n_kv_head=H)
    state = grouped.state_dict()
    for name in state:
        if ".attn.k." in name or ".attn.v." in name:
            heads = state[name].view(2, C // H, C)  # (K*hs,C) -> (K,hs,C)
            state[name] = heads.repeat_interleave(2, dim=0).view(C, C)  # (K,hs,C) -> (H,hs,C) -> (C,C)
    plain.load_state_dict(state)
    torch.testing.assert_close(grouped(ids(B, T)), plain(ids(B, T)))


@pytest.mark.parametrize(
    "wrong", ["yarn 4", "linear", "linear x", "linear 0", "linear nan", "linear 2 3", "llama3 8 1 4", "2"]
)
def test_a_rope_scaling_that_is_none_says_the_forms(wrong):
    with pytest.raises(ValueError, match="in one of 'linear FACTOR', 'llama3 FACTOR LOW HIGH ORIGINAL'$"):
        GPTConfig(rope_scaling=wrong)


def test_llama3_divides_the_slow_frequencies_only():
    """A frequency f, in radians per token, turns 64 f / 2 pi times in 64 tokens; if 4 times, it stays."""
    theta, size, expected = 100.0, 12, []
    for i in range(size // 2):
        frequency = theta ** (-2 * i / size)
        turns = 64 * frequency / (2 * math.pi)
        share = min(1, max(0, (turns - 1) / (4 - 1)))
        expected.append(frequency * share + frequency / 8 * (1 - share))
    frequencies = torch.tensor([theta ** (-2 * i / size) for i in range(size // 2)])
    found = stretched(frequencies, "llama3 8 1 4 64")
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found[0] == frequencies[0] and found[-1] == frequencies[-1] / 8
    assert torch.equal(stretched(frequencies, "linear 4"), frequencies / 4)
    cos, sin = rope_tables(torch.tensor([[8]]), size, theta, "linear 4")
    assert torch.equal(cos, rope_tables(torch.tensor([[2]]), size, theta)[0])


def test_rope_is_relative():
    q, k = torch.randn(2, 1, 1, 1, 6)

    def score(i: int, j: int) -> float:
        cos, sin = rope_tables(torch.tensor([[i, j]]), 6, 10000.0)  # (1,2) -> (1,2,1,6)
        return (rotate(q, cos[:, :1], sin[:, :1]) * rotate(k, cos[:, 1:], sin[:, 1:])).sum().item()

    assert score(5, 3) == pytest.approx(score(105, 103), abs=1e-4)
    assert abs(score(5, 3) - score(5, 4)) > 1e-2
    cos, sin = rope_tables(torch.tensor([[1001]]), 6, 10000.0)
    assert rotate(q, cos, sin).norm().item() == pytest.approx(q.norm().item(), rel=1e-5)
    assert cos[0, 0, 0, 0].item() == pytest.approx(math.cos(1001), abs=1e-5)


def test_memory_grows_like_the_length_not_like_its_square():
    torch.manual_seed(0)
    attn = Attention(GPTConfig(n_head=2, n_embd=32, block_size=2048, arch="gpt2"))

    def stored_scores(x):
        q, k, v = (w(x).view(1, -1, 2, 16).transpose(1, 2) for w in (attn.q, attn.k, attn.v))  # (1,2,T,16)
        future = torch.ones(x.size(1), x.size(1), dtype=torch.bool).triu(1)
        weights = (q @ k.transpose(2, 3) / 4).masked_fill(future, -math.inf).softmax(-1)  # (1,2,T,T)
        return attn.o((weights @ v).transpose(1, 2).flatten(2))  # (1,2,T,16) -> (1,T,C)

    inputs = {length: torch.randn(1, length, 32, requires_grad=True) for length in (1024, 2048)}
    torch.testing.assert_close(attn(inputs[1024]), stored_scores(inputs[1024]), atol=1e-5, rtol=1e-5)
    ours = saved_bytes(lambda: attn(inputs[2048])) / saved_bytes(lambda: attn(inputs[1024]))
    theirs = saved_bytes(lambda: stored_scores(inputs[2048]))
    theirs /= saved_bytes(lambda: stored_scores(inputs[1024]))
    assert 1.8 < ours < 2.1 and 3.6 < theirs < 4.0, (ours, theirs)


# ------------------------------------------------------------------------------------------ references


@pytest.mark.needs("transformers")
@pytest.mark.filterwarnings("ignore")
def test_gpt2_equals_the_reference():
    import transformers

    ours = tiny("gpt2", bias=True)
    sizes = dict(vocab_size=V, n_positions=8, n_layer=2, n_head=H, n_embd=C)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    pairs = {"transformer.wte": ours.wte, "transformer.wpe": ours.wpe, "transformer.ln_f": ours.norm}
    state = {f"{name}.{k}": v for name, module in pairs.items() for k, v in module.state_dict().items()}
    for i, block in enumerate(ours.blocks):
        attn, mlp = block.attn, block.mlp
        for kind in ("weight", "bias"):
            parts = {
                "attn.c_attn": torch.cat([getattr(linear, kind) for linear in (attn.q, attn.k, attn.v)]),
                "attn.c_proj": getattr(attn.o, kind),
                "mlp.c_fc": getattr(mlp.up, kind),
                "mlp.c_proj": getattr(mlp.down, kind),
                "ln_1": getattr(block.attn_norm, kind),
                "ln_2": getattr(block.mlp_norm, kind),
            }
            for name, value in parts.items():  # GPT-2 stores its matrices as (in, out)
                state[f"transformer.h.{i}.{name}.{kind}"] = value.T if value.dim() == 2 else value
    state["lm_head.weight"] = ours.wte.weight
    theirs.load_state_dict(state)
    torch.testing.assert_close(ours(ids(B, T)), theirs(ids(B, T)).logits, atol=1e-4, rtol=0)


@pytest.mark.needs("transformers")
@pytest.mark.filterwarnings("ignore")
def test_llama_equals_the_reference():
    import transformers

    ours = tiny("llama", n_ff=40)
    sizes = dict(vocab_size=V, max_position_embeddings=8, num_hidden_layers=2, hidden_size=C)
    sizes |= dict(intermediate_size=40, num_attention_heads=H, num_key_value_heads=2, rms_norm_eps=1e-5)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    names = {
        "wte": "model.embed_tokens",
        "norm": "model.norm",
        "head": "lm_head",
        "attn_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
        **{f"attn.{p}": f"self_attn.{p}_proj" for p in "qkvo"},
    }
    state = {}
    for name, weight in ours.state_dict().items():
        layer, rest = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.weight", name).groups()
        state[f"model.layers.{layer}.{names[rest]}.weight" if layer else f"{names[rest]}.weight"] = weight
    theirs.load_state_dict(state)
    torch.testing.assert_close(ours(ids(B, T)), theirs(ids(B, T)).logits, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------------ generation


def uncached(model, prompt: list[int], new: int, temperature=1.0, top_k=0, top_p=1.0, seed=1337) -> list[int]:
    """generate() for one row, as slow and plain as can be."""
    generator = torch.Generator().manual_seed(seed)
    row = list(prompt)
    for _ in range(new):
        with torch.no_grad():
            logits = model(torch.tensor([row[-model.config.block_size :]]))[0, -1].tolist()
        drawn = torch.rand(1, generator=generator).item()
        order = sorted(range(len(logits)), key=lambda token: -logits[token])
        if temperature == 0:
            row.append(order[0])
            continue
        order = order[: top_k or len(order)]
        probs = {token: math.exp((logits[token] - logits[order[0]]) / temperature) for token in order}
        total = sum(probs.values())
        nucleus = {}
        for token in order:
            if sum(nucleus.values()) < top_p:
                nucleus[token] = probs[token] / total
        passed = 0.0
        for token in sorted(nucleus):
            passed += nucleus[token]
            if passed > drawn * sum(nucleus.values()):
                break
        row.append(token)
    return row


SAMPLERS = [
    dict(temperature=0.0),
    dict(temperature=0.8),
    dict(temperature=1.0, top_k=4),
    dict(temperature=1.5, top_k=9, top_p=0.7),
]


@archs
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_cached_equals_uncached(arch, sampler):
    """Token for token, from prompts of 1 token, of a full block and beyond it, to more than three blocks."""
    model = tiny(arch)
    for length in (1, 5, 8, 13):
        prompt = ids(length, seed=length).tolist()
        expected = uncached(model, prompt, new=26, **sampler)
        assert model.generate([prompt], 26, **sampler) == [expected]
        assert len(set(expected)) > 4 or sampler["temperature"] == 0, "a text this dull would hide a mistake"


@archs
def test_cached_logits_equal_uncached_logits(arch, monkeypatch):
    model, seen = tiny(arch), []
    spy = lambda *args: seen.append(args[0]) or token_probs(*args)  # noqa: E731
    monkeypatch.setattr(generate_module, "token_probs", spy)
    rows = model.generate([[1], [2, 3, 4], [5] * 9], 20)
    for step, logits in enumerate(seen):
        for i, (row, length) in enumerate(zip(rows, (1, 3, 9), strict=True)):
            context = row[: length + step][-8:]
            torch.testing.assert_close(logits[i], model(torch.tensor([context]))[0, -1], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("switch", [dict(n_kv_head=1), dict(n_kv_head=2), dict(position="learned")], ids=str)
def test_cached_equals_uncached_for_single_switches(switch):
    model = tiny("modern", **switch)
    assert model.generate([[3, 1]], 26) == [uncached(model, [3, 1], 26)]


@pytest.mark.parametrize("window", [1, 3, 7, 8])
@pytest.mark.parametrize("static", [False, True])
def test_a_sliding_window_slides_in_the_cache(window, static, monkeypatch):
    """Token for token, with padding, before and after the context is full; in a static cache, too."""
    model = tiny("llama", window=window, n_kv_head=2)
    if static:
        monkeypatch.setattr(generate_module, "Cache", lambda size, static: Cache(size, static=True))
    prompts = [ids(length, seed=length).tolist() for length in (1, 6, 3, 11)]
    expected = [uncached(model, prompt, 20, seed=7 + i) for i, prompt in enumerate(prompts)]
    assert model.generate(prompts, 20, seed=7) == expected
    assert model.generate(prompts[1:2], 20, seed=8) == expected[1:2]


def test_a_token_sees_its_window_and_no_more():
    """In one layer; with two, what a token has seen is seen through it."""
    model, idx = tiny("llama", window=3, n_layer=1), ids(1, T)
    for dtype in (torch.float32, torch.bfloat16):  # both kernels
        with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
            logits = model(idx)
            for t in range(T):
                changed = idx.clone()
                changed[:, t] = (idx[:, t] + 1) % V
                moved = (model(changed) - logits).abs().amax(dim=-1)[0] > 1e-4  # (T)
                assert moved.tolist() == [t <= query < t + 3 for query in range(T)]


@others_slow
def test_prompts_of_unequal_length_equal_single_runs(arch):
    model = tiny(arch)
    prompts = [ids(length, seed=length).tolist() for length in (1, 6, 3, 11, 8)]
    for sampler in SAMPLERS:
        expected = [uncached(model, prompt, 26, seed=7 + i, **sampler) for i, prompt in enumerate(prompts)]
        assert model.generate(prompts, 26, seed=7, **sampler) == expected
        assert model.generate(prompts[:3], 26, seed=7, **sampler) == expected[:3]


@archs
def test_three_rows_equal_three_single_runs(arch):
    model = tiny(arch)
    rows = model.generate([[5, 2]] * 3, 26, temperature=0.9, top_k=8, seed=3)
    singles = [model.generate([[5, 2]], 26, temperature=0.9, top_k=8, seed=3 + i)[0] for i in range(3)]
    assert rows == singles and len(set(map(tuple, rows))) == 3


def test_a_second_prompt_knows_nothing_of_the_first():
    model = tiny("modern")
    first = model.generate([[1, 2, 3]], 20)
    assert model.generate([[4, 5]], 20) != first
    assert model.generate([[1, 2, 3]], 20) == first


def test_prompts_may_come_from_a_tokenizer():
    model = tiny("gpt2")
    prompts = [np.array([1, 2, 3], dtype=np.uint32), torch.tensor([4])]
    rows = model.generate(prompts, 5)
    assert rows == model.generate([[1, 2, 3], [4]], 5) and {type(i) for row in rows for i in row} == {int}


def test_greedy_is_argmax():
    model = tiny("llama")
    row = model.generate([[1]], 6, temperature=0)[0]
    assert row[1:] == model(torch.tensor([row[:-1]])).argmax(-1)[0].tolist()
    assert model.generate([[1]], 6, top_k=1, temperature=3.0, seed=5) == [row]


@pytest.mark.parametrize(
    "settings, kept",
    [
        (dict(), [0, 1, 2, 3]),
        (dict(top_p=0.6), [0, 1]),  # the token that crosses 0.6 stays
        (dict(top_p=0.79), [0, 1]),
        (dict(top_p=0.81), [0, 1, 2]),
        (dict(top_p=1e-9), [0]),
        (dict(top_k=3), [0, 1, 2]),
        (dict(top_k=99), [0, 1, 2, 3]),
        (dict(top_k=2, top_p=0.6), [0]),  # of the two left, the first has 0.625
    ],
)
def test_kept_tokens(settings, kept):
    place = torch.tensor([2, 0, 3, 1])  # the likeliest token stands at place 2, ...
    logits = torch.empty(1, 4)
    logits[0, place] = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    probs = token_probs(logits, 1.0, **settings)[0, place]
    assert probs.nonzero().flatten().tolist() == kept
    expected = logits.exp()[0, place][kept]
    torch.testing.assert_close(probs[kept] / probs.sum(), expected / expected.sum())


def test_equal_logits_keep_exactly_k():
    assert token_probs(torch.zeros(1, 9), 1.0, top_k=4).count_nonzero() == 4


def test_temperature():
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    torch.testing.assert_close(token_probs(logits, 0.5), torch.softmax(2 * logits, -1))
    assert token_probs(logits, 0.0).tolist() == [[0, 0, 1]]


def test_drawn_frequencies():
    """4,000 rows draw one token each: every count is within 4 standard deviations of its expectation."""
    model = tiny("gpt2")
    probs = torch.softmax(model(torch.tensor([[3, 1]]))[0, -1], -1)
    drawn = torch.tensor(next(model.stream([[3, 1]] * 4000, 1)))
    counts = drawn.bincount(minlength=V)
    assert ((counts - 4000 * probs).abs() < 4 * (4000 * probs * (1 - probs)).sqrt() + 1).all()


@pytest.mark.parametrize("drawn", [0.0, 1 - 2**-24])
def test_extreme_draws_hit_tokens_that_were_kept(drawn, monkeypatch):
    model = tiny("modern")
    greedy = model.generate([[1, 2]], 20, temperature=0)
    monkeypatch.setattr(torch, "rand", lambda *size, generator: torch.full(size, drawn))
    assert model.generate([[1, 2]], 20, temperature=0) == greedy
    assert model.generate([[1, 2]], 20, top_p=1e-6) == greedy


def test_stop_tokens():
    model = tiny("modern")
    prompts = [[5, 2], [1], [7, 7, 7]]
    free = model.generate(prompts, 20)
    stop = {free[0][6], free[1][3]}
    expected = []
    for prompt, row in zip(prompts, free, strict=True):
        end = next((i for i in range(len(prompt), len(row)) if row[i] in stop), len(row))
        expected.append(row[:end])
    assert model.generate(prompts, 20, stop_tokens=sorted(stop)) == expected
    steps = list(model.stream(prompts, 20, stop_tokens=sorted(stop)))
    longest = max(len(row) - len(prompt) for row, prompt in zip(expected, prompts, strict=True))
    assert len(steps) == longest, "the stream ends with its last row"
    for i, (prompt, row) in enumerate(zip(prompts, expected, strict=True)):
        new = row[len(prompt) :]
        assert [step[i] for step in steps] == new + [-1] * (longest - len(new))


@pytest.mark.parametrize(
    "prompts, settings, message",
    [
        ([[1, 11]], {}, r"token ids \[11\] are outside the vocabulary of 11"),
        ([[1], [-1]], {}, r"token ids \[-1\] are outside the vocabulary of 11"),
        ([[1], []], {}, "a prompt is empty"),
        ([], {}, "there is no prompt"),
        ([[1]], dict(temperature=-0.1), "temperature=-0.1"),
        ([[1]], dict(top_k=-1), "top_k=-1"),
        ([[1]], dict(top_p=0.0), "top_p=0.0"),
        ([[1]], dict(top_p=1.1), "top_p=1.1"),
        ([[1]], dict(max_new_tokens=-1), "max_new_tokens=-1"),
    ],
)
def test_wrong_prompts_and_settings(prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny("gpt2").generate(prompts, **{"max_new_tokens": 3, **settings})


def test_broken_weights_are_noticed():
    model = tiny("gpt2")
    with torch.no_grad():
        model.norm.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        model.generate([[1]], 3)


def test_generation_leaves_the_model_as_it_was():
    model = tiny("modern", dropout=0.5).train()
    text = model.generate([[1, 2]], 9)
    assert all(module.training for module in model.modules())
    for given_up in (model.stream([[1, 2]], 9), model.stream([[1, 2]], 9)):
        next(given_up)
        given_up.close()
        assert model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert model.eval().generate([[1, 2]], 9) == text and not model.training
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert model.generate([[1, 2]], 9) == text
    model(ids(B, T)).sum().backward()


# ------------------------------------------------------------------------------------------ training modes


@archs
def test_dropout(arch):
    model, idx = tiny(arch, dropout=0.2), ids(B, T)
    assert not torch.equal(model.train()(idx), model(idx))
    assert torch.equal(model.eval()(idx), model(idx))
    torch.testing.assert_close(model(idx), tiny(arch, dropout=0.0)(idx))


@archs
@pytest.mark.parametrize("rate, calls", [(0.0, 0), (0.2, 5)])
def test_dropout_calls(arch, rate, calls, monkeypatch):
    """On the embeddings, each layer's attention weights and its two outputs; nowhere at all if it is 0."""
    attention, dropout = F.scaled_dot_product_attention, F.dropout
    seen, called = [], []

    def spy(q, k, v, mask, p, causal, **rest):
        seen.append(p)
        return attention(q, k, v, mask, p, causal, **rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    monkeypatch.setattr(F, "dropout", lambda x, p, *rest: called.append(p) or dropout(x, p, *rest))
    tiny(arch, dropout=rate).train()(ids(B, T))
    assert seen == [rate, rate] and called == [rate] * calls


@archs
def test_checkpointing(arch):
    """Same gradients, bit for bit, dropout included; less than half the memory."""
    sizes = dict(arch=arch, dropout=0.1, block_size=64)
    plain, checkpointed = tiny(**sizes), tiny(**sizes, gradient_checkpointing=True)
    idx = ids(2, 64)
    for model in (plain, checkpointed):
        torch.manual_seed(5)
        model(idx).pow(2).sum().backward()
    for ours, theirs in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert saved_bytes(lambda: checkpointed(idx)) < 0.5 * saved_bytes(lambda: plain(idx))


@archs
def test_cpu_autocast_keeps_norms_and_logits_in_float32(arch):
    seen = []
    model, idx = tiny(arch, dropout=0.0), ids(B, T)
    places = ("attn_norm", "mlp_norm", "norm")  # of the residual stream; those of q and k are in 16 bits
    norms = [module for name, module in model.named_modules() if name.split(".")[-1] in places]
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    for module in norms:
        module.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    for module in linears:
        module.register_forward_hook(lambda module, args, output: seen.append(output.dtype == torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(idx)
        sampled = model.generate([[1, 2], [3]], 12)
    assert logits.dtype == torch.float32 and set(seen) == {torch.float32, True}
    assert [len(row) for row in sampled] == [14, 13]
    (logits**2).mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("window", [1, 3, T])
def test_written_out_attention_has_the_same_window(window):
    q, k, v = torch.randn(3, B, H, T, 6)
    mask = torch.tensor([[0 <= i - j < window for j in range(T)] for i in range(T)])
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(written_out_attention(q, k, v, 0.0, window), expected)


@pytest.mark.parametrize("dropout, n_kv_head", [(0.0, H), (0.0, 2), (0.3, H)])
def test_written_out_attention_equals_the_fused_kernel(dropout, n_kv_head):
    """With dropout the mean of many draws: the two draw differently."""
    torch.manual_seed(3)
    hs, many = C // H, 400 if dropout else 1
    qkv = [torch.randn(1, n, T, hs).expand(many, -1, -1, -1) for n in (H, n_kv_head, n_kv_head)]
    found = []
    for function in (written_out_attention, F.scaled_dot_product_attention):
        q, k, v = (t.clone().requires_grad_() for t in qkv)
        if function is written_out_attention:
            y = function(q, k, v, dropout)
        else:
            y = function(q, k, v, None, dropout, True, enable_gqa=n_kv_head < H)
        (y * torch.linspace(0, 1, hs)).sum().backward()
        found.append([t.mean(dim=0) for t in (y, q.grad, k.grad, v.grad)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.25 if dropout else 1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_one_product_gives_what_three_give(bias, monkeypatch):
    """In bfloat16 they round differently: within 1 % of the largest. Layers with a hook are called."""
    torch.manual_seed(3)
    layers = [torch.nn.Linear(C, size, bias=bias) for size in (C, 6, 6)]
    weights = [p for layer in layers for p in layer.parameters()]
    x, dy = torch.randn(B, T, C, requires_grad=True), torch.randn(B, T, C + 12)
    linear, products, found = F.linear, [], []
    monkeypatch.setattr(F, "linear", lambda *given: products.append(1) or linear(*given))

    def with_gradients() -> list[torch.Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = torch.cat(joined_linear(x, *layers), dim=-1)
        return [y, *torch.autograd.grad(y, [x, *weights], dy.to(y.dtype))]

    joined = with_gradients()
    assert len(products) == 1
    layers[1].register_forward_hook(lambda *seen: found.append(seen))
    for ours, theirs in zip(joined, with_gradients(), strict=True):
        assert (ours - theirs).abs().max() <= 0.01 * theirs.abs().max()
    assert len(products) == 4 and len(found) == 1


def test_squared_relu_and_its_gradient():
    x = torch.randn(B, T, C, dtype=torch.float64, requires_grad=True)
    assert torch.equal(squared_relu(x), F.relu(x) ** 2)
    assert torch.autograd.gradcheck(squared_relu, x)


@pytest.mark.parametrize("bias", [False, True])
def test_one_row_in_bfloat16(bias):
    torch.manual_seed(3)
    layer = Linear(C, 6, bias=bias).bfloat16()
    x = torch.randn(1, 1, C).bfloat16()
    with torch.no_grad():
        assert layer(x).shape == (1, 1, 6)
        expected = F.linear(x.double(), *(p.double() for p in layer.parameters()))
    torch.testing.assert_close(layer(x).double(), expected, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("T, dtype, expected", [(8, "bfloat16", 0), (513, "bfloat16", 1), (8, "float32", 1)])
def test_a_cpu_writes_short_bfloat16_attention_out(T, dtype, expected, monkeypatch):
    attention, seen = F.scaled_dot_product_attention, []
    spy = lambda *args, **kwargs: seen.append(1) or attention(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model = tiny("modern", n_layer=1, block_size=600)
    with torch.no_grad():
        model.blocks[0].attn.o.weight.normal_(std=0.1)  # zero at first: attention would not count
        exact = model(ids(2, T))
        seen.clear()
        with torch.autocast("cpu", dtype=getattr(torch, dtype), enabled=dtype != "float32"):
            logits = model(ids(2, T))
    assert len(seen) == expected
    torch.testing.assert_close(logits, exact, atol=0.1, rtol=0.1)


@others_slow
def test_logits_in_chunks_give_the_same_loss_and_gradients(arch, monkeypatch):
    """Chunks of 2**24 // V tokens: with this vocabulary 128, so that the last chunk is a shorter one."""
    model = GPT(GPTConfig(vocab_size=2**17, block_size=100, n_layer=1, n_head=2, n_embd=4, arch=arch))
    torch.manual_seed(1)
    idx, targets = torch.randint(1000, (2, 100)), torch.randint(1000, (2, 100))
    targets[0, :3] = -1
    whole = F.cross_entropy(model(idx).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
    expected = torch.autograd.grad(whole, list(model.parameters()))
    held = []
    to_logits = model.to_logits
    monkeypatch.setattr(model, "to_logits", lambda x: held.append(len(x)) or to_logits(x))
    nats = model(idx, targets)
    assert held == [128, 72]
    torch.testing.assert_close(nats, whole)
    for ours, theirs in zip(torch.autograd.grad(nats, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@archs
def test_bfloat16_weights(arch):
    model = tiny(arch).to(torch.bfloat16)
    assert model(ids(B, T)).dtype == torch.float32
    assert len(model.generate([[1], [2, 3]], 12)[0]) == 13


@archs
@pytest.mark.parametrize("prompts", [[[1, 2, 3]], [[1], [4, 2, 3], [5, 1]]])
def test_a_static_cache_gives_the_same_text(arch, prompts, monkeypatch):
    """What a CUDA graph records, run eagerly: all columns of the cache are read, the empty ones masked."""
    model = tiny(arch, block_size=12)
    expected = model.generate(prompts, 15)  # beyond the context, too
    with monkeypatch.context() as patch:
        cache = generate_module.Cache
        patch.setattr(generate_module, "Cache", lambda columns, static: cache(columns, static=True))
        assert model.generate(prompts, 15) == expected


@archs
def test_a_step_with_static_caches_has_the_same_shapes_everywhere(arch):
    """So that its kernels can be recorded once: no shape, and no number taken from Python, may change."""
    model, caches = tiny(arch, block_size=12).eval(), [Cache(12, static=True) for _ in range(2)]
    seen = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            plain = torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: x.shape, args)
            seen[-1].append((str(function), str(plain)))
            return function(*args, **(kwargs or {}))

    with torch.inference_mode():
        model.next_logits(ids(1, 3), caches, None)
        for _ in range(3):
            seen.append([])
            new = ids(1, 1)
            with Spy():
                model.next_logits(new, caches, None)
    assert len(seen[0]) > 20 and seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 1}])
def test_nan_logits_were_taken_for_token_0_at_temperature_0(settings):
    model = tiny("modern")
    model.norm.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="the logits are NaN or infinite"):
        model.generate([[1, 2]], 3, **settings)


def test_compiling_needs_a_step_to_record():
    with pytest.raises(ValueError, match="compile=True is for the step that graph=True records"):
        tiny("modern").generate([[1]], 3, compile=True)


class PlainGraph(torch.utils._python_dispatch.TorchDispatchMode):
    """What torch.cuda.CUDAGraph and torch.cuda.graph do, on a CPU: nothing runs while it is recorded, and a
    replay runs the same kernels on the same memory, without Python's part of the step. What CUDA refuses
    there is refused here: to make a tensor from Python's numbers, and to wait for the device."""

    def __init__(self, *graph):
        super().__init__()
        self.kernels, self.changed, self.replays = graph[0].kernels if graph else [], {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert not re.search("lift_fresh|scalar_tensor|_local_scalar_dense|nonzero|item", str(function))
        for argument, value in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info and argument.alias_info.is_write:
                self.changed.setdefault(value.data_ptr(), (value, value.clone()))
        out = function(*args, **kwargs)
        self.kernels.append((function, args, kwargs, out))
        return out

    def __exit__(self, *error):
        super().__exit__(*error)
        for value, before in self.changed.values():
            value.copy_(before)

    def replay(self):
        self.replays += 1
        for function, args, kwargs, out in self.kernels:
            made = torch.utils._pytree.tree_leaves(function(*args, **kwargs))
            for old, new in zip(torch.utils._pytree.tree_leaves(out), made, strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@archs
@pytest.mark.parametrize("prompts", [[[1, 2, 3]], [[1], [4, 2, 3], [5, 1]]])
def test_a_recorded_step_gives_the_same_text(arch, prompts, monkeypatch):
    """Draw included, on a CPU; beyond the context, and beyond the numbers that are drawn at once."""
    model, graphs = tiny(arch, block_size=12), []

    class Recorded(generate_module.Recorded):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.records = True

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graphs.append(PlainGraph()) or graphs[-1])
    monkeypatch.setattr(torch.cuda, "graph", PlainGraph)
    for sampler in SAMPLERS[::3]:
        expected = [uncached(model, prompt, 15, seed=7 + i, **sampler) for i, prompt in enumerate(prompts)]
        with monkeypatch.context() as patch:
            patch.setattr(generate_module, "AHEAD", 4)
            assert model.generate(prompts, 15, seed=7, graph=True, **sampler) == expected  # each step called
            patch.setattr(generate_module, "Recorded", Recorded)
            assert model.generate(prompts, 15, seed=7, graph=True, **sampler) == expected
        assert graphs.pop().replays == 8 and not graphs  # of 15 tokens: 2 to warm up, 5 with a full context


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of what inductor calls
def test_a_compiled_step_gives_the_same_text():
    """As one graph, which a second text uses again. Without a C++ compiler there is nothing to test."""
    if not shutil.which("g++"):
        pytest.skip("needs a C++ compiler")
    torch._dynamo.reset()
    model = tiny("modern", block_size=12)
    for prompts in ([[4, 2, 3]], [[1], [4, 2, 3]]):
        expected = model.generate(prompts, 15)
        for _ in range(2):
            torch._dynamo.utils.counters.clear()
            assert model.generate(prompts, 15, graph=True, compile=True) == expected
            counters = torch._dynamo.utils.counters
            assert not counters["graph_break"]
        assert counters["stats"]["unique_graphs"] == 0


@pytest.mark.parametrize("temperature", [0.8, 1.0])
def test_drawing_makes_no_copy_of_the_logits(temperature):
    """But for the probabilities. With top_p it sorts them."""
    made = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            known = {t.data_ptr() for t in args if isinstance(t, torch.Tensor)}
            if out.numel() >= 2 * 5000 and out.data_ptr() not in known:
                made.append(str(function))
            return out

    logits = torch.randn(2, 5000)
    expected = torch.searchsorted(torch.softmax(logits / temperature, -1).cumsum(-1), torch.full((2, 1), 0.3))
    with Spy():
        new = generate_module.draw(logits, torch.full((2, 1), 0.3), temperature, 0, 1.0)
    assert made == ["aten._softmax.default"]
    assert new.tolist() == expected.tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("settings", [(1.0, 0, 1.0), (0.0, 0, 1.0), (2.0, 1, 1.0), (0.5, 3, 0.9)], ids=str)
def test_one_bad_logit_spoils_its_row_only(bad, settings):
    logits = torch.randn(3, 11)
    logits[1, 4] = bad
    new = generate_module.draw(logits, torch.full((3, 1), 0.5), *settings)
    assert [i == 11 for i in new[:, 0].tolist()] == [False, True, False]


def test_a_tiny_temperature_does_not_matter_where_one_token_is_kept():
    model = tiny("gpt2")
    assert model.generate([[1]], 5, temperature=1e-45, top_k=1) == model.generate([[1]], 5, temperature=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@archs
def test_a_cuda_graph_gives_the_same_text(arch):
    model = tiny(arch, block_size=12).cuda()
    prompts = [[1], [4, 2, 3], [5, 1]]
    assert model.generate(prompts, 15, graph=True) == model.generate(prompts, 15)


# ------------------------------------------------------------------------------------------ comments


COMMENTED = (model_module.__file__, generate_module.__file__)


def commented_shapes() -> dict[tuple[str, int], tuple[list[str], list[str]]]:
    """{(file, line): (names assigned there, the shapes that the comment gives them)}."""
    found = {}
    for path in COMMENTED:
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
            match = re.match(r"\s+([\w, ]+) = .*  # (.*)$", line)
            shapes = re.findall(r"\(([\w*,]+)\)", match[2].split("->")[-1]) if match else []
            if shapes:
                found[path, number] = (match[1].split(", "), shapes)
    return found


@pytest.mark.parametrize("lengths", [(7, 7, 7), (7, 2, 5)])
def test_shape_comments_are_true(lengths):
    """Each "x = ...  # ... (B,T,C)" of model.py and generate.py, compared with x after that line has run."""
    expected, checked = commented_shapes(), set()
    sizes = dict(B=[B], C=[C], V=[V], H=[H], K=[2], heads=[H, 2], hs=[C // H], k=[5])
    sizes |= {"T": [T, 1], "keys": [T, T + 1, T + 2], "H*B": [H * B], "H*hs": [C]}
    previous = {}

    def check(frame):
        line = frame.f_code.co_filename, previous[frame]
        names, shapes = expected.get(line, ((), ()))
        for name, shape in zip(names, shapes * len(names) if len(shapes) == 1 else shapes, strict=True):
            actual, wanted = tuple(frame.f_locals[name].shape), shape.split(",")
            wrong = f"{line}: {name} is {actual}, but the comment says ({shape})"
            assert len(actual) == len(wanted), wrong
            for size, symbol in zip(actual, wanted, strict=True):
                assert size in (sizes[symbol] if symbol in sizes else [int(symbol)]), wrong
            checked.add(line)

    def trace(frame, event, argument):
        if frame.f_code.co_filename not in COMMENTED or frame.f_code.co_name.startswith("<"):
            return None
        if event in ("line", "return") and frame in previous:
            check(frame)
        previous[frame] = frame.f_lineno
        return trace

    model = tiny("llama", n_kv_head=2, block_size=12, token_shift=1)
    prompts = [ids(length).tolist() for length in lengths]
    old = sys.gettrace()
    sys.settrace(trace)
    try:
        model.generate(prompts, 3, top_k=5, top_p=0.9)
        with torch.autocast("cpu", dtype=torch.bfloat16):  # what only training in bfloat16 runs
            model(ids(B, T), targets=ids(B, T))
    finally:
        sys.settrace(old)
    missing = set(expected) - checked
    assert len(expected) >= 25 and (not missing or len(set(lengths)) == 1), missing
