"""techniques/share.py: one HTML file that computes what model.py computes, in Node and in Chromium.

Weights are random, and none of them zero: every path of the JavaScript changes the logits. The codes of int8
are decoded into a float32 GPT, so the same model is compared. Without Node these tests skip themselves.
"""

import json
import random
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from config import technique_settings
from conftest import ROOT
from generate import token_probs
from model import GPT, GPTConfig
from runtime import checkpoint
from techniques import change, packing, share
from tokenizer import END, GPT2_PATTERN, BPETokenizer, CharTokenizer

NODE = shutil.which("node")
TECHNIQUES = ROOT / "techniques"
PRELUDE = f"""
require({json.dumps(str(TECHNIQUES / "share_model.js"))});
require({json.dumps(str(TECHNIQUES / "share_tokenizer.js"))});
const input = JSON.parse(require("fs").readFileSync(0, "utf8"));
"""
SHORT = """
const round = (numbers) => Array.from(numbers, (x) => Number(x.toPrecision(10)));
const made = (file) => new GPT(unpack(file));
"""
LOGITS = """
const model = made(file);
return prompts.map((prompt) => round(model.forward(prompt)));
"""
EACH = f"const one = ({{ file, prompts }}) => {{ {LOGITS} }}; return jobs.map(one);"
SHAPE = dict(vocab_size=23, block_size=16, n_layer=2, n_head=4, n_embd=24)
SWITCHES = [  # between them every switch of GPTConfig that changes what a model computes
    dict(arch="modern"),
    dict(arch="modern", norm="layernorm"),
    dict(arch="gpt2"),
    dict(arch="gpt2", bias=True, n_kv_head=2, norm_eps=1e-3),
    dict(arch="llama"),
    dict(arch="llama", qk_norm=2, qkv_bias=1, n_kv_head=1, tie_weights=1, rope_theta=500.0),
    dict(arch="modern", window=5, n_kv_head=2, head_size=8, logit_cap=0.0),
    dict(arch="modern", norm="layernorm", qk_norm=2, bias=True, activation="gelu_erf"),
    dict(arch="gpt2", token_shift=1, n_embd=25, n_head=5, window=3, activation="swiglu", n_ff=31),
    dict(arch="llama", rope_scaling="linear 4.0", activation="gelu", qk_norm=1, block_size=20),
    dict(arch="llama", rope_scaling="llama3 8.0 1.0 4.0 64", head_size=2, activation="relu2", logit_cap=3.0),
]


def javascript(body: str, arguments: dict):
    """The value that the body of a function returns in Node; the arguments are its variables."""
    if not NODE:
        pytest.skip("needs Node, which runs the page's JavaScript: nodejs.org")
    names = ", ".join(arguments)
    program = f"{PRELUDE}{SHORT}const run = ({{ {names} }}) => {{ {body} }};\n"
    program += "process.stdout.write(JSON.stringify(run(input)));"
    done = subprocess.run(
        [NODE, "-e", program], input=json.dumps(arguments), capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def random_model(seed: int = 0, **settings) -> GPT:
    """A model in which no weight is zero, so that attention is far from even."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**SHAPE, **settings})).eval()
    for name, p in model.named_parameters():
        p.data = torch.randn_like(p) * (0.5 if p.dim() == 2 else 0.3) + ("norm.weight" in name)
    return model


def written(model: GPT) -> dict:
    """What the page holds of a model, which becomes that of the int8 weights."""
    return {"config": vars(model.config), **share.packed(model)}


def prompts_of(model: GPT, n: int) -> list[list[int]]:
    draw = random.Random(n)
    sizes = [1, model.config.block_size, *(draw.randint(1, model.config.block_size) for _ in range(n - 2))]
    return [[draw.randrange(model.config.vocab_size) for _ in range(size)] for size in sizes]


def difference(found: list, model: GPT, prompts: list) -> float:
    """The largest difference of logits, all positions of all prompts."""
    with torch.no_grad():
        wanted = [model(torch.tensor([prompt]))[0] for prompt in prompts]
    sides = zip(found, wanted, strict=True)
    return max(float(np.abs(np.array(a, dtype=np.float64) - b.flatten().numpy()).max()) for a, b in sides)


def all_switches() -> tuple[list[GPT], list[dict]]:
    """A model for each of SWITCHES, and what EACH needs of it: 10 prompts."""
    models = [random_model(i, **switches) for i, switches in enumerate(SWITCHES)]
    return models, [{"file": written(model), "prompts": prompts_of(model, 10)} for model in models]


# ---- logits
def test_logits_equal_those_of_torch_with_the_same_codes(figure):
    """110 prompts: all archs, all switches."""
    models, jobs = all_switches()
    found = javascript(EACH, {"jobs": jobs})
    worst = [difference(f, m, job["prompts"]) for f, m, job in zip(found, models, jobs, strict=True)]
    assert max(worst) < 1e-4, worst
    figure(f"110 prompts: logits of the shared page within {max(worst):.0e} of torch's")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_logits_of_random_switches(seed):
    draw = random.Random(seed)
    models = []
    while len(models) < 12:
        switches = dict(
            arch=draw.choice(["modern", "gpt2", "llama"]),
            norm=draw.choice(["", "rmsnorm", "layernorm"]),
            position=draw.choice(["", "rope", "learned"]),
            activation=draw.choice(["", "relu2", "gelu", "gelu_erf", "swiglu"]),
            bias=draw.random() < 0.5,
            qk_norm=draw.choice([-1, 0, 1, 2]),
            token_shift=draw.choice([-1, 0, 1]),
            tie_weights=draw.choice([-1, 0, 1]),
            window=draw.choice([0, 0, 1, 4]),
            n_kv_head=draw.choice([0, 1, 2, 4]),
            head_size=draw.choice([0, 2, 10]),
            logit_cap=draw.choice([-1.0, 0.0, 5.0]),
        )
        models.append(random_model(seed * 100 + len(models), **switches))
    jobs = [{"file": written(model), "prompts": prompts_of(model, 6)} for model in models]
    found = javascript(EACH, {"jobs": jobs})
    for logits, model, job in zip(found, models, jobs, strict=True):
        # float64, in which the page computes: torch's float32 is off by up to 2e-4 in models as wild as these
        # (what is left comes from rope's tables, which model.py makes in float32)
        assert difference(logits, model.double(), job["prompts"]) < 1e-5, model.config


def test_steps_with_a_cache_equal_whole_passes():
    """One by one, and in pieces of 3 and 5, which take different products; and attention adds up to 1."""
    body = """
    return files.map((file) => {
      const model = made(file), whole = model.forward(prompt);
      const sizes = [1, 3, 5].map((size) => {
        const caches = model.caches(), look = { from: 0, attention: [], residual: [] }, logits = [];
        for (let at = 0; at < prompt.length; at += size) {
          logits.push(...model.to_logits(model.trunk(prompt.slice(at, at + size), caches, look)));
        }
        const sums = look.attention.flat(2).map((weights) => weights.reduce((a, b) => a + b, 0));
        const off = Math.max(...sums.map((sum) => Math.abs(sum - 1)));
        const rows = look.residual.map((states) => states.length);
        return [Math.max(...logits.map((x, i) => Math.abs(x - whole[i]))), off, rows];
      });
      return sizes;
    });
    """
    files = [written(random_model(i, **SWITCHES[i])) for i in (0, 3, 6, 8)]
    prompt = [i * 7 % 23 for i in range(16)]
    for file in javascript(body, {"files": files, "prompt": prompt}):
        for apart, off, rows in file:
            assert apart < 1e-9
            assert off < 1e-9
            assert rows == [16, 16, 16]  # the embedding, and two layers


@pytest.mark.slow
def test_attention_weights_are_those_of_the_formula():
    """Layer 0, head by head, of the values torch computes with."""
    model = random_model(arch="llama", n_kv_head=2)
    file, prompt, seen = written(model), [3, 1, 4, 1, 5, 9, 2, 6], {}
    attend = torch.nn.functional.scaled_dot_product_attention

    def keep(q, k, v, *more, **settings):
        seen.setdefault("q", q), seen.setdefault("k", k)
        return attend(q, k, v, *more, **settings)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", keep)
        model(torch.tensor([prompt]))
    k = seen["k"].repeat_interleave(2, dim=1)
    scores = (seen["q"] @ k.mT)[0] / model.config.head_size**0.5  # (H,T,T)
    hidden = torch.ones(8, 8, dtype=torch.bool).triu(1)
    wanted = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
    body = """
    const model = made(file), look = { from: 5, attention: [], residual: [] };
    model.trunk(prompt, model.caches(), look);
    return look.attention[0].map((heads) => heads.map((weights) => Array.from(weights)));
    """
    found = javascript(body, {"file": file, "prompt": prompt})
    assert len(found) == 3  # queries from position 5 on
    for query, heads in enumerate(found, 5):
        for head, weights in enumerate(heads):
            torch.testing.assert_close(
                torch.tensor(weights), wanted[head, query, : query + 1], rtol=1e-4, atol=1e-6
            )


@pytest.mark.slow
def test_erf_is_exact():
    points = [x / 16 for x in range(-112, 113)]
    wanted = torch.erf(torch.tensor(points, dtype=torch.float64)).tolist()
    found = javascript("return points.map(erf);", {"points": points})
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < 1e-14


# ---- drawing
def test_probabilities_equal_those_of_generate():
    torch.manual_seed(0)
    logits = torch.randn(40) * 3
    options = [(0, 0, 1.0), (1.0, 0, 1.0), (0.7, 0, 0.9), (1.3, 5, 1.0), (0.8, 12, 0.5), (1.0, 1, 1.0)]
    options += [(1.0, 0, 0.01), (2.0, 99, 0.999)]
    body = "return options.map((o) => round(token_probs(Float64Array.from(logits), ...o)));"
    found = javascript(body, {"logits": logits.tolist(), "options": options})
    for probs, option in zip(found, options, strict=True):
        wanted = token_probs(logits[None].clone(), *option)[0]
        wanted, probs = wanted / wanted.sum(), torch.tensor(probs, dtype=torch.float64)
        torch.testing.assert_close((probs / probs.sum()).float(), wanted, rtol=1e-4, atol=1e-7)


def mulberry32(seed: int, n: int) -> list[float]:
    """The twin of share_model.js's generator(), in whole numbers."""
    state, found = seed, []
    for _ in range(n):
        state = (state + 0x6D2B79F5) % 2**32
        mixed = (state ^ state >> 15) * (state | 1) % 2**32
        mixed ^= (mixed + (mixed ^ mixed >> 7) * (mixed | 61)) % 2**32
        found.append((mixed ^ mixed >> 14) / 2**32)
    return found


@pytest.mark.slow
def test_draws_have_the_frequencies_of_the_probabilities():
    body = """
    const random = generator(seed), counts = probs.map(() => 0), first = [];
    for (let i = 0; i < n; i++) {
      const drawn = random();
      if (i < 5) first.push(drawn);
      counts[draw(probs, drawn)]++;
    }
    return { counts, first };
    """
    probs, n = [0.2, 0.0, 0.5, 0.05, 0.25, 0.0], 50_000
    found = javascript(body, {"probs": probs, "n": n, "seed": 7})
    assert found["first"] == mulberry32(7, 5)
    for count, p in zip(found["counts"], probs, strict=True):
        assert abs(count - n * p) <= 4.5 * (n * p * (1 - p)) ** 0.5


STREAM = """
const model = made(file);
return jobs.map((options) => Array.from(stream(model, prompt, n, options)).filter((id) => id !== null));
"""


@pytest.mark.slow
def test_greedy_text_is_that_of_generate_also_when_the_context_is_full():
    """16 tokens fit, and 40 are written: the last 16 are read again for each. A stop token ends it."""
    for switches in (SWITCHES[0], SWITCHES[3]):
        model = random_model(5, **switches)
        file, prompt = written(model), [1, 2, 3]
        wanted = model.generate([prompt], 40, temperature=0)[0][3:]
        stop = wanted[20]
        jobs = [{"temperature": 0}, {"temperature": 0, "stop_tokens": [stop]}]
        found = javascript(STREAM, {"file": file, "prompt": prompt, "n": 40, "jobs": jobs})
        assert found == [wanted, wanted[: wanted.index(stop)]]


@pytest.mark.slow
def test_a_seed_gives_the_same_text_and_draws_by_the_twin():
    """With temperature and top-p; keep=8 forgets the older half. The twin calls torch for the logits."""
    model = random_model(6)
    file, prompt = written(model), [4, 5]
    settings = {"temperature": 0.9, "top_p": 0.8, "seed": 3}
    jobs = [settings, settings, settings | {"keep": 8}, settings | {"seed": 4}]
    found = javascript(STREAM, {"file": file, "prompt": prompt, "n": 40, "jobs": jobs})
    for keep, texts in ((16, found[0]), (8, found[2])):
        ids, drawn = list(prompt), mulberry32(3, 40)
        context = list(prompt)
        for i in range(40):
            if len(context) > 16:
                context = context[-keep:]
            with torch.no_grad():
                probs = token_probs(model(torch.tensor([context]))[:, -1], 0.9, 0, 0.8)[0]
            sums = probs.double().cumsum(0)
            ids.append(int(torch.searchsorted(sums, drawn[i] * sums[-1], right=True)))
            context.append(ids[-1])
        assert texts == ids[2:]
    assert found[0] == found[1] != found[3]


# ---- tokenizers
HARD = [
    "",
    "it's  12 caf\u00e9 \u4e2d\u6587\U0001f600 x\u0301\u0323",
    "a\r\nb\r\n\r\n  c \t\n",
    " " * 50 + "x" + " " * 7 + "\n" * 9,
    "a\x85b \x85\u2028c\u2029 d\ufeffe\ufeff \x1cf\x1d\x1e\x1f g\u00a0 \u3000h",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u0915\u094d\u0937 \u0e01\u0e33 \u00bd\u2167 \u0661\u0662",
    "don't DON'T we'll ''s '\u017f",
    f"{END} </script><!-- <b> & \\x41 \\ \\\\ {END}",
    "\x00\x01\x7f\ufffd \U0010ffff",
    "abcab" * 200,
    "   \u2003\u2003word\u2003 \u200b word",
]
TRAINING = [
    "low lower lowest don't we'll \r\n\r\n  \\x41 caf\u00e9 \u4e2d\u6587 \U0001f600 </script> " * 3,
    *HARD,
]
TOKENS = """
const tokenizer = tokenizer_of(json);
return texts.map((text) => {
  const ids = tokenizer.encode(text);
  return [ids, tokenizer.decode(ids), ids.map((id) => tokenizer.token_bytes(id))];
});
"""


def tokenizers() -> dict:
    """A tokenizer of each kind; one whose special tokens stand first, as in other people's."""
    words = BPETokenizer.train(TRAINING, 256 + 90, (END,))
    return {
        "char": CharTokenizer.train(TRAINING, (END,)),
        "bpe": words,
        "special first": BPETokenizer(words.tokens, {END: 0, "<s>": 300}),
    }


def test_ids_and_texts_equal_those_of_python():
    for tokenizer in tokenizers().values():
        found = javascript(TOKENS, {"json": share.tokenizer_json(tokenizer), "texts": HARD})
        sizes = tokenizer.token_bytes()
        for text, (ids, back, lengths) in zip(HARD, found, strict=True):
            assert ids == tokenizer.encode(text).tolist(), ascii(text)
            assert back == tokenizer.decode(ids) == text
            assert lengths == sizes[ids].tolist()


@pytest.mark.slow
def test_ids_of_random_texts_equal_those_of_python():
    draw = random.Random(0)
    alphabet = "ab '\u00e9\n\r\t \x85\u2028\ufeff\x1c\u4e2d\U0001f600\u0301sdm12\u00bd!\\<"
    texts = ["".join(draw.choices(alphabet, k=draw.randint(1, 60))) for _ in range(2000)]
    tokenizer = BPETokenizer.train([*TRAINING, *texts[:200]], 600, (END,))
    found = javascript(TOKENS, {"json": share.tokenizer_json(tokenizer), "texts": texts})
    for text, (ids, back, _) in zip(texts, found, strict=True):
        assert (ids, back) == (tokenizer.encode(text).tolist(), text), ascii(text)


@pytest.mark.slow
def test_any_ids_become_the_same_text():
    """Also those that cut a character in two."""
    tokenizer = tokenizers()["bpe"]
    draw = random.Random(1)
    rows = [[draw.randrange(tokenizer.vocab_size) for _ in range(20)] for _ in range(50)]
    body = "const tokenizer = tokenizer_of(json); return rows.map((ids) => tokenizer.decode(ids));"
    found = javascript(body, {"json": share.tokenizer_json(tokenizer), "rows": rows})
    assert found == [tokenizer.decode(ids) for ids in rows]


def test_text_that_has_no_ids_is_an_error():
    body = """
    return [["char", "a\\u{1f600}b"], ["bpe", "a\\ud800"]].map(([kind, text]) => {
      try { return tokenizer_of(all[kind]).encode(text); } catch (error) { return error.message; }
    }).concat([tokenizer_of(all.char).encode("b\\u{1f600}a", "skip")]);
    """
    all = {"char": share.tokenizer_json(CharTokenizer("ab")), "bpe": share.tokenizer_json(BYTES)}
    unknown, half, skipped = javascript(body, {"all": all})
    assert (unknown, half) == ('unknown characters: "\U0001f600"', "the text holds half of a surrogate pair")
    assert skipped == [1, 0]


BYTES = BPETokenizer([bytes([i]) for i in range(256)])
SPLIT = "return rows.map(([pattern, text]) => text.match(new RegExp(pattern, 'gu')) || []);"
PATTERNS = [
    GPT2_PATTERN,
    r"a++|b[cd]*+|[^\s\p{L}]?+\p{L}++|\p{N}{1,3}+|\s*[\r\n]|\s+(?!\S)|\s|[\s\S]",
    r"\p{Lu}?\p{Ll}+|\d+?|\.\.|[\-\]x]|\S|\s",
]


@pytest.mark.slow
def test_a_pattern_finds_the_same_words():
    """By the package regex, whose \\s has U+001C, which tiktoken's has not: left out here."""
    regex = __import__("regex")
    texts = [text.replace("\x1c", "").replace("\x1d\x1e\x1f", "") for text in HARD] + ["aaab 12345 Ab..]-x"]
    rows = [[pattern, text] for pattern in PATTERNS for text in texts]
    found = javascript(SPLIT, {"rows": [[share.javascript_pattern(p), text] for p, text in rows]})
    for (pattern, text), words in zip(rows, found, strict=True):
        empty = [word for word in words if word]
        assert empty == [w for w in regex.findall(pattern, text) if w], (pattern, ascii(text))


@pytest.mark.parametrize(
    "pattern",
    [r"(?i:s)|.", r"\w+", r".", r"(a)b", r"(?<=a)b", r"[[a]--b]", r"[a&&b]", r"[\s-z]", r"\p{Han}", r"\bx",
     r"(?:ab)++", r"[^]a]", r"\x41", r"a{,3}", r"(?>a)", r"*"],
)  # fmt: skip
def test_a_pattern_that_differs_in_javascript_is_refused(pattern):
    with pytest.raises(ValueError, match="which the page cannot run; expected parts such as those of GPT-2"):
        share.javascript_pattern(pattern)


# ---- the file
def run_of(tmp_path, model=None, tokenizer=None, **settings):
    """A run's folder, with a checkpoint as train.py writes it."""
    tokenizer = tokenizer or CharTokenizer("".join(map(chr, range(97, 120))))
    model = model or random_model(vocab_size=tokenizer.vocab_size)
    saved = {
        "model": model.state_dict(), "model_config": vars(model.config), "tokenizer": tokenizer.to_json(),
        "config": {"technique": "", **settings}, "seconds": 0.0, "tokens": 0, "step": 1,
    }  # fmt: skip
    saved["dataset"] = {}
    (tmp_path / "out-x").mkdir(exist_ok=True)
    checkpoint.save(tmp_path / "out-x/best.pt", saved)
    return tmp_path / "out-x"


def share_it(folder, **settings) -> list[str]:
    return share.share({"out_dir": str(folder), "file": "best.pt", "to": "", **settings})


def contents_of(html: str) -> dict:
    """What the browser's JSON.parse gets."""
    return json.loads(re.search(r'id="contents">(.*?)</script>', html, re.DOTALL)[1])


def test_the_file_is_one_page_of_ascii_that_asks_for_nothing(tmp_path):
    """Tokens that look like HTML, and U+2028, are data; the policy names the scripts by their hashes."""
    tokenizer = BPETokenizer.train(["</script><!--<script>\u2028" * 9] * 3, 280, ("</script>",))
    assert any(b"<" in token for token in tokenizer.tokens[256:])
    lines = share_it(run_of(tmp_path, tokenizer=tokenizer, model=random_model(vocab_size=280)))
    html = (tmp_path / "out-x/model.html").read_text(encoding="utf-8")
    assert lines[-1] == f"saved {tmp_path / 'out-x/model.html'}; open it in a browser"
    assert len(lines) == 2  # no dataset, no loss
    scripts = re.findall(r"<script[^>]*>", html)
    assert scripts == ['<script type="application/json" id="contents">', *["<script>"] * 3]
    assert html.count("</script>") == 4
    assert html.count("'sha256-") == 3
    assert "http:" not in html
    assert "https:" not in html
    contents = contents_of(html)
    assert contents["tokenizer"]["special_tokens"] == ["</script>"]
    assert contents["config"]["n_embd"] == 24
    text = re.search(r'id="contents">(.*?)</script>', html, re.DOTALL)[1]
    assert text.isascii()
    assert "<" not in text


def test_the_weights_are_those_of_packing(tmp_path):
    model = random_model(arch="gpt2", bias=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    contents = written(model)
    matrices = [name for name, *_ in contents["matrices"]]
    assert matrices == [n for n, p in before.items() if p.dim() == 2 and n != "wpe.weight"]
    assert "head.weight" not in matrices
    for name, p in model.named_parameters():
        if name in matrices:
            wanted = packing.decode("int8", p.shape, **packing.encode("int8", before[name]))
            assert torch.equal(p, wanted)
            assert not torch.equal(p, before[name])
        else:
            assert torch.equal(p, before[name])


def test_a_damaged_or_foreign_run_is_refused(tmp_path):
    model = random_model()
    model.head.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="head.weight holds NaN or infinity: such a run cannot be shared"):
        share.packed(model)
    with pytest.raises(ValueError, match="to=page.pt is no page; expected a name that ends in .html"):
        share_it(run_of(tmp_path), to="page.pt")
    with pytest.raises(ValueError, match="to=none/page.html: there is no folder .*none; make it first"):
        share_it(run_of(tmp_path), to="none/page.html")
    with pytest.raises(ValueError, match="merge first: python -m techniques.lora merge --out_dir=out-x"):
        share.plain(None, {"config": {"technique": "lora"}}, "out-x")
    tokenizer = CharTokenizer("ab")
    tokenizer.kind = "sentencepiece"
    with pytest.raises(ValueError, match="tokenizers of kind char and bpe; this one is sentencepiece"):
        share.tokenizer_json(tokenizer)
    assert not list(tmp_path.glob("out-x/*.html"))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"technique": "latent", "latent_rank": 4, "latent_rope": 2}, marks=pytest.mark.slow),
        pytest.param({"technique": "experts", "experts": 2}, marks=pytest.mark.slow),
        pytest.param({"technique": "multi_token", "multi_token": 1}, marks=pytest.mark.slow),
        {"technique": "sliding", "sliding_window": 4},
        {"technique": "quantize", "quantize": "int8", "eval_only": True},
    ],
)
def test_a_model_that_is_not_model_py_is_refused(settings):
    config = {name: value for own in technique_settings().values() for name, value in own.items()} | settings
    model = change("change_model", random_model(), config)
    with pytest.raises(ValueError, match=f"technique={settings['technique']} changes the layers; expected"):
        share.plain(model, {"config": config}, "out-x")


@pytest.mark.slow
def test_too_large_a_model_is_told_the_size_that_fits():
    for switches in (dict(arch="modern"), dict(arch="llama", n_head=6, n_embd=768), dict(arch="gpt2")):
        shape = dict(vocab_size=8192, block_size=256, n_layer=12, n_head=8, n_embd=768)
        with torch.device("meta"):
            model = GPT(GPTConfig(**{**shape, **switches}))
        with pytest.raises(ValueError) as caught:
            share.plain(model, {"config": {}}, "out-x")
        wanted = r"the run has [\d,]+ parameters, .*; 20,000,000 fit: train one with --n_embd=(\d+)$"
        n_embd = int(re.match(wanted, str(caught.value))[1])
        sizes = []
        for width in (n_embd, n_embd + 2 * model.config.n_head):
            with torch.device("meta"):
                sizes.append(share.parameters_of(GPT(GPTConfig(**{**shape, **switches, "n_embd": width}))))
        assert sizes[0] <= share.LIMIT
        assert sizes[1] > share.LIMIT * 0.99  # the hidden width is rounded in another way


def test_averages_and_masks_of_training_are_left_out():
    config = {"technique": "average,prune", "average_decay": 0.9, "prune_sparsity": 0.0, "prune_iters": 5}
    averaged = change("change_model", random_model(1), {**config, "technique": "average"}).train()
    for average in averaged.average.buffers():
        average.add_(1.0)
    wanted = averaged.eval().head.weight.clone()
    found = share.plain(averaged, {"config": config}, "out-x")
    assert torch.equal(found.head.weight, wanted)
    assert "average" not in dict(found.named_modules())


@pytest.mark.slow
def test_the_command_shares_a_run(train, run_script, tmp_path, capsys, monkeypatch):
    train("--max_iters=4", "--eval_interval=4")
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["share", f"--out_dir={tmp_path / 'out'}"])
    run_script("techniques/share.py")
    size, loss, saved = capsys.readouterr().out.splitlines()[-3:]
    assert re.match(r"[\d,]+ parameters in int8; the page has 0\.\d+ MB$", size)
    before, after = map(float, re.match(r"val loss: (\S+) -> (\S+)$", loss).groups())
    assert abs(before - after) < 0.005
    assert (tmp_path / "out/model.html").is_file()
    assert saved.startswith("saved ")


# ---- Chromium
def requests_of(browser) -> list[str]:
    """The addresses that the page has asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    sent = [
        e for e in sent if not e["documentURL"].startswith(("chrome:", "chrome-untrusted:"))
    ]  # the browser's first, empty tab
    return [e["request"]["url"] for e in sent if not e["request"]["url"].startswith("data:")]


def wait_for(browser, condition: str):
    """Wait until a condition in JavaScript holds on the page."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 30, 0.05).until(lambda b: b.execute_script(f"return {condition};"))


def clear_and_type(browser, text: str) -> None:
    from selenium.webdriver.common.by import By

    box = browser.find_element(By.ID, "text")
    box.clear()
    box.send_keys(text)


@pytest.mark.slow
@pytest.mark.alone
def test_the_page_in_chromium(browser, tmp_path):
    """From the disk: no error, no request; each control does what it says; logits are torch's."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    tokenizer = BPETokenizer.train(TRAINING, 300, (END,))
    model = random_model(3, vocab_size=tokenizer.vocab_size, block_size=64)
    share_it(run_of(tmp_path, model, tokenizer))
    share.packed(model)
    url = (tmp_path / "out-x/model.html").as_uri()
    browser.get(url)
    wait_for(browser, "document.getElementById('status').textContent.startsWith('ready')")
    models, jobs = all_switches()
    found = browser.execute_script(f"{SHORT}const [jobs] = arguments; {EACH}", jobs)
    for logits, each, job in zip(found, models, jobs, strict=True):
        assert difference(logits, each, job["prompts"]) < 1e-4, each.config
    for each in tokenizers().values():
        body = f"const [json, texts] = arguments; {TOKENS}"
        cut = browser.execute_script(body, share.tokenizer_json(each), HARD)
        assert [row[0] for row in cut] == [each.encode(text).tolist() for text in HARD]

    element = {e.get_attribute("id"): e for e in browser.find_elements(By.CSS_SELECTOR, "[id]")}
    state = "return { ids: ids.slice(), written, bits: bits.slice(1), chosen };"
    element["typing"].click()  # off
    clear_and_type(browser, "low don't <b>\u4e2d")
    wait_for(browser, "ids.length > 1 && written === 0 && !job")
    read = browser.execute_script(state)
    assert read["ids"] == tokenizer.encode("low don't <b>\u4e2d").tolist()
    with torch.no_grad():
        logits = model(torch.tensor([read["ids"]]))[0].double()
    wanted = -torch.log_softmax(logits, -1)[range(len(read["ids"]) - 1), read["ids"][1:]] / np.log(2)
    torch.testing.assert_close(torch.tensor(read["bits"]).double(), wanted, rtol=1e-5, atol=1e-5)
    bytes_read = int(tokenizer.token_bytes()[read["ids"][1:]].sum())
    assert f"{float(wanted.sum()) / bytes_read:.3f} bits per byte" in element["total"].text
    assert not browser.find_elements(By.CSS_SELECTOR, "#tokens b")  # text is no HTML

    last = torch.softmax(logits[-1], -1)
    cell = browser.execute_script("return $('lens').rows[n_layer].cells[1].textContent;")
    assert cell.endswith(f" {100 * float(last.max()):.1f}%")
    assert "looks most at" in element["sentence"].text

    def write(count: int = 30) -> list[int]:
        browser.execute_script(f"$('count').value = {count};")
        element["write"].click()
        wait_for(browser, "written > 0 && !job")
        return browser.execute_script("return ids.slice(ids.length - written);")

    first = write()
    assert write() == first
    browser.execute_script("$('seed').value = 5; $('seed').dispatchEvent(new Event('input'));")
    assert write() != first
    for name, value in (("temperature", "0"), ("top_p", "0.5")):
        browser.execute_script(f"$('{name}').value = {value}; $('{name}').dispatchEvent(new Event('input'));")
        assert browser.execute_script(f"return $('{name}_is').textContent;") == f"{float(value):.2f}"
    stops = tokenizer.stop_ids
    greedy = model.generate([read["ids"]], 30, temperature=0, stop_tokens=stops)[0][len(read["ids"]) :]
    assert write() == greedy
    assert browser.execute_script("return [...document.querySelectorAll('#tokens .new')].length;") == len(
        greedy
    )

    element["tokens"].send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    wait_for(browser, "!job")
    after = browser.execute_script(state)
    assert after["chosen"] == len(after["ids"]) - 3
    browser.execute_script(
        "$('layer').value = 1; $('head').value = 2; $('head').dispatchEvent(new Event('change'));"
    )
    assert browser.execute_script("return $('picture').width;") == min(48, after["chosen"] + 1)

    browser.execute_script("$('count').value = 5000; $('temperature').value = 1; $('top_p').value = 1;")
    element["write"].click()
    wait_for(browser, "written > 5")
    element["stop"].click()
    wait_for(browser, "!job")
    stopped = browser.execute_script("return written;")
    assert 5 < stopped < 5000
    before = browser.execute_script("return $('text').value;")
    element["take"].click()
    assert len(browser.execute_script("return $('text').value;")) > len(before)

    element["typing"].click()  # on: a line is written after a pause in typing
    clear_and_type(browser, "low")
    wait_for(browser, "written > 0")
    assert browser.get_log("browser") == []
    assert requests_of(browser) == [url]


@pytest.mark.slow
@pytest.mark.alone
def test_size_and_speed(browser, tmp_path, figure):
    """config/shakespeare_char.py's 804,224 parameters: at most 1.5 MB, at least 50 characters a second."""
    shape = dict(vocab_size=65, block_size=128, n_layer=4, n_head=2, n_embd=128, norm="layernorm")
    tokenizer = CharTokenizer("".join(map(chr, range(48, 113))))
    lines = share_it(run_of(tmp_path, random_model(**shape), tokenizer))
    assert lines[0].startswith("804,224 parameters")
    size = (tmp_path / "out-x/model.html").stat().st_size
    assert size <= 1_500_000
    browser.get((tmp_path / "out-x/model.html").as_uri())
    wait_for(browser, "document.getElementById('status').textContent.startsWith('ready')")
    body = """
    const began = performance.now(), options = { seed: 1, keep: arguments[0] };
    const n = [...stream(model, [0], arguments[1], options)].filter((id) => id !== null).length;
    return (1000 * n) / (performance.now() - began);
    """
    rates = [browser.execute_script(body, keep, n) for keep, n in ((64, 400), (128, 140))]
    assert rates[0] >= 50
    figure(
        f"shared page of 804,224 parameters: {size / 1e6:.2f} MB; {rates[0]:.0f} characters/s in Chromium, "
        f"{rates[1]:.0f} if all 128 tokens are read again for the last 12 of 140"
    )


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_narrow_and_can_be_read(browser, tmp_path, dark):
    """At 390 pixels nothing is wider than the screen; controls have names; text stands out in both modes."""
    tokenizer = CharTokenizer.train(["to be or not\n"], (END,))
    share_it(run_of(tmp_path, random_model(vocab_size=tokenizer.vocab_size), tokenizer))
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((tmp_path / "out-x/model.html").as_uri())
    wait_for(browser, "document.getElementById('status').textContent.startsWith('ready')")
    heights = []
    for text in ("to", "to be or not to be\n" * 20):
        clear_and_type(browser, text)
        wait_for(browser, f"ids.length >= {len(text)} && !job && written > 0")
        heights.append(browser.execute_script("return $('attention_title').offsetTop;"))
    assert heights[0] == heights[1]  # nothing below has moved
    assert browser.execute_script("return document.documentElement.scrollWidth;") <= 390
    nameless = """
    return [...document.querySelectorAll("input, select, textarea, button")].filter((e) =>
      !(e.labels && e.labels.length) && !e.textContent.trim()).map((e) => e.id);
    """
    assert browser.execute_script(nameless) == []
    contrast = """
    const light = (text) => {
      const rgb = text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255);
      const linear = rgb.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
      return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const back = getComputedStyle(document.body).backgroundColor;
    return [...document.querySelectorAll("#tokens span, p, label, h2, button:enabled")].map((e) => {
      const style = getComputedStyle(e), own = style.backgroundColor;
      const [a, b] = [light(style.color), light(own === "rgba(0, 0, 0, 0)" ? back : own)].sort();
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    });
    """
    assert min(browser.execute_script(contrast)) >= 4.5  # WCAG 2.1, AA
    assert browser.get_log("browser") == []
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
