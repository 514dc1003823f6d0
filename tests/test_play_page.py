"""The page of python -m play in a real browser: each view and control, and its numbers beside model.py's.

Headless Chromium through selenium. axe-core is used where NODE_PATH has it. PICTURES=out-x writes
the pictures of docs/play.md, of a run that is worth looking at.
"""

import base64
import contextlib
import io
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import config
from conftest import ROOT, TINY, needs
from generate import token_probs
from machine import distributed
from model import GPT
from play import look
from runtime import checkpoint, report, samples
from test_chat import chatml
from text import prepare

needs("selenium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default::ResourceWarning"),
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="there is no chromedriver"),
]
VIEWS = ["runs", "train", "read", "tokens", "look", "break", "compare", "chat"]
TEXT = "Alas, poor Greta,\nyou sing."
PICTURES = os.environ.get("PICTURES", "")
AXE = [Path(folder, "axe-core", "axe.min.js") for folder in os.environ.get("NODE_PATH", "").split(os.pathsep)]


@pytest.fixture(scope="module")
def home(datasets, tmp_path_factory):
    """A folder of runs, and their folder: char, bpe, and talk, which has learned conversations."""
    folder = tmp_path_factory.mktemp("home")
    rows = [{"prompt": f"Say {w}.", "response": w} for w in ("rose", "moon", "star", "rain", "bird")] * 40
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "DATASETS", datasets)
        patch.setattr(report, "plot_loss", lambda rows, floor, expected, path, *more: path.touch())
        chatml().save(folder / "chatml.json")
        how = {"format": "jsonl", "dedup": False, "tokenizer": str(folder / "chatml.json")}
        prepare.prepare("talk", str(folder / "rows.jsonl"), **how)
        prepare.prepare("pairs", str(datasets / "small.txt"), tokenizer="bpe", vocab_size=300)
        tiny = [flag for flag in TINY if "block_size" not in flag]
        for name, *flags in (
            ("talk", "--dataset=talk", "--block_size=96"),
            ("bpe", "--dataset=pairs", "--block_size=32", "--arch=llama"),
            ("char", "--dataset=small", "--block_size=32"),
        ):  # fmt: skip
            distributed.leave()
            out = f"--out_dir={folder / ('out-' + name)}"
            patch.setattr(sys, "argv", ["train.py", *tiny, out, "--sample_interval=10", *flags])
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
            config.end_script()
            config.given.clear()
    distributed.leave()
    return folder


@pytest.fixture(scope="module")
def address(home):
    """The address of python -m play, which has been started beside the tests."""
    with served(home / "out-char") as found:
        yield found


@contextlib.contextmanager
def served(folder: Path):
    command = [sys.executable, "-m", "play", f"--out_dir={folder}", "--port=0", "--browser=False"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, encoding="utf-8") as process:
        try:
            yield next(m[0] for line in process.stdout if (m := re.search(r"http://\S+", line)))
        finally:
            process.terminate()


class Page:
    """The page in the browser, with what tests ask of it."""

    def __init__(self, browser, address: str):
        self.browser, self.address = browser, address

    def js(self, code: str, *values):
        return self.browser.execute_script(code, *values)

    def wait(self, code: str, *values, seconds=20):
        """Wait until an expression is true; its value."""
        end = time.monotonic() + seconds
        while not (found := self.js(f"return {code}", *values)):
            alert = self.js("return document.getElementById('alert').textContent")
            assert time.monotonic() < end, f"{code} stays false; the page says {alert!r}"
            time.sleep(0.02)
        return found

    def settled(self):
        """Wait until nothing is asked of the server any more."""
        laid = "document.querySelector('#main[aria-busy=false] h1')"
        self.wait(laid + " && !document.querySelector('[aria-busy=true]')")

    def visit(self, page: str, run="out-char", **state):
        query = {"page": page, "run": run, **({"text": TEXT} if "text" not in state else {}), **state}
        self.browser.get("about:blank")
        self.browser.get(f"{self.address}#{urllib.parse.urlencode(query)}")
        self.wait(f"document.title.startsWith({page!r})")
        self.settled()
        return self

    def value(self, selector: str) -> float:
        """The data-value in an element, with all its digits."""
        inner = "(e => e && (e.querySelector('[data-value]') ?? e).dataset.value)"
        return float(self.wait(inner + "(document.querySelector(arguments[0]))", selector))

    def values(self, selector: str) -> list[float]:
        """The data-values of all elements that a selector finds; an empty one is left out."""
        code = "return [...document.querySelectorAll(arguments[0])].map(e => e.dataset.value).filter(x => x)"
        return [float(x) for x in self.js(code, selector)]

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def count(self, selector: str) -> int:
        return self.js("return document.querySelectorAll(arguments[0]).length", selector)

    def set(self, name: str, value):
        """Move a slider or choose an option, as a person does."""
        self.js(
            "const control = document.getElementById(arguments[0]); control.value = arguments[1];"
            "for (const kind of ['input', 'change']) control.dispatchEvent(new Event(kind, {bubbles: true}))",
            name, value,
        )  # fmt: skip
        self.settled()

    def click(self, selector: str):
        self.js("document.querySelector(arguments[0]).click()", selector)

    def state(self) -> dict:
        return dict(urllib.parse.parse_qsl(self.js("return location.hash.slice(1)")))

    def shape(self, width: int, scheme="light"):
        how = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", how)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


@pytest.fixture
def page(browser, address):
    found = Page(browser, address)
    found.shape(1280)
    return found


def loaded(home, name="char") -> tuple:
    model, tokenizer, _ = checkpoint.load_model(home / f"out-{name}" / "best.pt", "cpu")
    return model.eval().float(), tokenizer


def ids_of(tokenizer, text=TEXT) -> list[int]:
    return tokenizer.encode(text).tolist()


def losses_of(model, ids: list[int]) -> torch.Tensor:
    """The surprise of each token but the first, in nats (T-1)."""
    x = torch.tensor([ids])
    with torch.no_grad():
        return F.cross_entropy(model(x)[0, :-1], x[0, 1:], reduction="none").double()


# ---- every view
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_loads_with_no_error_and_no_request_elsewhere(page, name):
    for log in ("browser", "performance"):
        page.browser.get_log(log)
    page.visit(name, run="out-talk" if name == "chat" else "out-char")
    assert page.text("#alert") == ""
    assert page.js("return document.querySelector('nav [aria-current=page]').textContent").lower() == name
    assert page.browser.get_log("browser") == []
    messages = [json.loads(row["message"])["message"] for row in page.browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith(page.address) for url in asked)
    assert all(url.startswith((page.address, "about:", "data:")) for url in asked)


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_fits_a_phone_and_everybody_can_use_it(page, name):
    """No scrolling sideways at 390 pixels; axe-core finds no serious fault, in light and in dark."""
    run = "out-talk" if name == "chat" else "out-bpe"
    axe = next((path.read_text(encoding="utf-8") for path in AXE if path.is_file()), "")
    for width, scheme in ((1280, "light"), (390, "dark")):
        page.shape(width, scheme)
        page.visit(name, run=run)
        assert page.js("return document.documentElement.scrollWidth <= innerWidth")
        if axe:
            page.js(axe)
            found = page.browser.execute_async_script("axe.run(document).then(arguments[0])")["violations"]
            bad = [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]
            assert bad == []


def test_views_are_links_and_back_leads_back(page):
    page.visit("read")
    page.click("nav li:nth-child(4) a")
    page.wait("document.title.startsWith('tokens') && document.querySelectorAll('#tokens small').length")
    assert page.state() == {"page": "tokens", "run": "out-char", "text": TEXT}
    page.browser.back()
    page.wait("document.title.startsWith('read') && document.querySelectorAll('#tokens button').length")
    assert page.js("return document.querySelector('#text').value") == TEXT
    page.set("run", "out-bpe")
    page.wait("document.title === 'read: out-bpe'")


@pytest.mark.parametrize(
    "hash", ["", "page=nowhere", "run=../..", "page=read&temperature=x&at=-7&file=no", "%E0%A4%", "page=chat"]
)
def test_a_broken_address_falls_back(page, hash):
    page.browser.get("about:blank")
    page.browser.get(page.address + "#" + hash)
    page.wait("document.querySelector('main h1')")
    page.settled()
    said = "out-char has learned from no conversations: there is no chat." if hash == "page=chat" else ""
    assert page.text("#alert") == said and page.state().get("run", "out-char") in ("out-char", "../..")
    assert page.js("return document.getElementById('run').value") == "out-char"


def test_text_is_never_html(page):
    text = "<img src=x onerror=document.title='no'>"
    for name in ("read", "tokens", "compare"):
        page.visit(name, run="out-bpe", text=text, a="out-bpe/best.pt", b="out-bpe/ckpt.pt")
        assert page.text("#alert") == "" and page.js("return document.title") == f"{name}: out-bpe"
        assert page.count("main img") == 0
    assert page.text("#text_a").startswith(text)


# ---- numbers
def test_runs_are_listed_with_their_loss(page, home):
    page.visit("runs")
    names = page.js("return [...document.querySelectorAll('.runs tbody a')].map(a => a.textContent)")
    assert sorted(names) == ["out-bpe", "out-char", "out-talk"]
    for name, shown in zip(names, page.values(".runs [data-value]"), strict=True):
        rows = (home / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert shown == min(row["val_loss"] for row in map(json.loads, rows) if "val_loss" in row)
    page.click(".runs tbody a")
    page.wait("document.title.startsWith('train')")


def test_train_shows_the_rows_and_follows_a_run(page, home, tmp_path):
    """First what is there, then a line that is written while the page is open: within two seconds."""
    shutil.copytree(home / "out-char", home / "out-live")
    (home / "out-live" / "result.json").unlink()
    (home / "out-live" / "config.json").touch()
    try:
        page.visit("runs")
        assert page.text("#live a") == "Follow out-live, which is training now"
        page.visit("train", run="out-live", **{"with": "out-bpe"})
        path = home / "out-live" / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        keys = ("loss", "val_loss", "lr", "grad_norm")
        last = {key: [row[key] for row in rows if key in row][-1] for key in keys}
        page.wait("document.querySelector('#train [data-value]')?.dataset.value > 0")
        assert (page.value("#train"), page.value("#val")) == (last["loss"], last["val_loss"])
        assert page.value("#perplexity") == pytest.approx(math.exp(last["val_loss"]), rel=1e-9)
        guess = math.log(loaded(home)[0].config.vocab_size)
        assert page.values("#ladder [data-value]")[0] == pytest.approx(guess)
        assert page.count("#losses path.line.dashed") == 4  # two lines of the second run, and their names
        small = [page.values(f"#small > div:nth-child({i}) .keys [data-value]")[0] for i in (1, 2)]
        assert small == [last["lr"], last["grad_norm"]]
        began = time.monotonic()
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({**rows[-2], "step": 25, "loss": 1.25}) + "\n")
        page.wait("document.querySelector('#train [data-value]').dataset.value == 1.25")
        assert time.monotonic() - began < 2
        press(page, "#losses .chart", "ArrowRight")
        assert page.text("#losses .readout").startswith("step 25: train, out-live 1.25")
        page.set("sample", 0)
        assert page.text("label:has(#sample) output") == "step 10" and page.text("#written")
    finally:
        shutil.rmtree(home / "out-live")


def test_a_run_that_is_deleted_while_it_is_followed(page, home):
    shutil.copytree(home / "out-char", home / "out-short")
    page.visit("train", run="out-short")
    page.wait("document.querySelector('#train [data-value]')?.dataset.value > 0")
    shutil.rmtree(home / "out-short")
    page.wait("document.getElementById('alert').textContent === 'this run has been deleted, or moved'")


def test_a_damaged_run_says_so(page, home):
    shutil.copytree(home / "out-char", home / "out-damaged")
    try:
        (home / "out-damaged" / "result.json").write_text("[1]", encoding="utf-8")
        page.visit("train", run="out-damaged")
        page.wait("document.getElementById('alert').textContent.startsWith('a file of out-damaged')")
    finally:
        shutil.rmtree(home / "out-damaged")


def press(page, selector: str, key: str):
    event = "new KeyboardEvent('keydown', {key: arguments[1], bubbles: true})"
    page.js(f"document.querySelector(arguments[0]).dispatchEvent({event})", selector, key)


def test_two_runs_of_different_data_are_not_compared_by_loss(page):
    page.visit("train", **{"with": "out-bpe"})
    page.wait("document.getElementById('apart').textContent")
    assert page.text("#apart").startswith("The two runs read different data, small and pairs: ")
    page.set("with", "")
    page.wait("!document.getElementById('apart').textContent")


def test_a_slider_with_one_sample_says_how_to_get_more(page, home):
    shutil.copytree(home / "out-char", home / "out-one")
    try:
        samples.cut(home / "out-one" / "samples.txt", 10)
        page.visit("train", run="out-one")
        page.wait("document.getElementById('more').textContent")
        assert "--sample_interval=50" in page.text("#more")
        assert page.js("return document.getElementById('sample').disabled")
        page.visit("train")
        page.wait("document.getElementById('more').textContent.startsWith('Move the slider')")
        assert not page.js("return document.getElementById('sample').disabled")
        assert page.text("#normal") == "", "no band is drawn, and none is spoken of"
        page.wait("document.getElementById('ladder_entropy').hidden")
    finally:
        shutil.rmtree(home / "out-one")


@pytest.mark.parametrize("run", ["out-char", "out-bpe", "out-talk"])
def test_each_run_has_a_text_to_begin_with(page, run):
    page.visit("read", run=run, text="")
    assert page.text("#alert") == "" and page.count("#tokens button") > 0


def test_what_is_left_out_is_said(page):
    page.visit("look", text=TEXT * 2)
    note = f"Only the first 32 tokens count here; {2 * len(TEXT) - 32} characters are left out."  # a window
    for place in ("#cut", "#cut_lens", "#cut_depends"):
        assert page.text(place) == note
    page.visit("look", text=TEXT)
    assert page.text("#cut") == page.text("#cut_lens") == page.text("#cut_depends") == ""
    page.visit("break", text=TEXT * 2)
    assert page.text("#cut").startswith("Only the first 32 tokens")


def test_after_an_error_old_numbers_are_dimmed(page):
    page.visit("read")
    page.js("document.getElementById('text').value = '語'")
    page.click(".ask .go")
    page.wait("document.getElementById('alert').textContent")
    assert page.js("return getComputedStyle(document.getElementById('facts')).opacity") < "1"
    page.js("document.getElementById('text').value = 'you'")
    page.click(".ask .go")
    page.wait("document.querySelectorAll('#tokens button').length === 3")
    assert page.text("#alert") == ""
    assert page.js("return getComputedStyle(document.getElementById('facts')).opacity") == "1"


def test_read_shows_the_bits_of_each_token(page, home):
    page.visit("read")
    model, tokenizer = loaded(home)
    ids = ids_of(tokenizer)
    bits = losses_of(model, ids) / math.log(2)
    assert page.values("#tokens button") == pytest.approx(bits.tolist(), abs=1e-6)
    first = page.js("const b = document.querySelector('#tokens button'); return [b.title, b.style.cssText]")
    assert first == ["A: the first token, not counted", ""]
    assert page.value("#bits_per_byte") == pytest.approx(bits.sum().item() / (len(TEXT) - 1), abs=1e-6)
    assert page.value("#loss") == pytest.approx(losses_of(model, ids).mean().item(), abs=1e-6)
    assert page.value("#total_bits") == pytest.approx(bits.sum().item(), abs=1e-5)
    assert (
        len(page.js("return document.querySelectorAll('#tokens [tabindex=\"0\"]')")) == 1
    )  # one stop of Tab


@pytest.mark.parametrize("temperature, top_p", [(1, 1), (0.5, 1), (1.5, 0.6)])
def test_sliders_change_what_could_follow(page, home, temperature, top_p):
    page.visit("read")
    page.click("#tokens button:nth-child(5)")
    press(page, "#tokens", "ArrowRight")
    page.set("temperature", temperature)
    page.set("top_p", top_p)
    page.settled()
    model, tokenizer = loaded(home)
    with torch.no_grad():
        logits = model(torch.tensor([ids_of(tokenizer)[:6]]))[:, -1]
    order = logits[0].topk(10).indices
    probs = token_probs(logits, temperature, 0, top_p)[0].double()
    probs = probs / probs.sum()
    assert page.values("#next [data-value]") == pytest.approx(probs[order].tolist(), abs=1e-6)
    assert f"keeps {int((probs > 0).sum())} of" in page.text("#kept")
    assert (page.state()["at"], page.state()["temperature"]) == ("5", str(temperature))


def test_writing_on_is_what_generate_draws_and_stops(page, home):
    page.visit("read", at=4, seed=3, temperature=0.8)
    page.click("#go")
    written = "document.querySelector('#written mark').textContent"
    page.wait("document.getElementById('stop').disabled && " + written)
    model, tokenizer = loaded(home)
    ids = ids_of(tokenizer)[:5]
    right = tokenizer.decode(model.generate([ids], 300, 0.8, seed=3)[0][5:])
    assert page.text("#written mark") == right
    page.click("#go")
    page.wait(written)
    page.click("#stop")
    page.wait("document.getElementById('stop').disabled")
    assert page.text("#alert") == "" and len(page.text("#written mark")) < len(right)
    page.click(".ask .go")
    page.wait("!document.getElementById('written').textContent")


def test_tokens_and_their_merges(page, home):
    page.visit("tokens")
    _, tokenizer = loaded(home)
    assert page.values("#tokens [data-value]") == ids_of(tokenizer)
    assert page.js("return document.getElementById('merges').hidden")
    page.visit("tokens", run="out-bpe")
    _, tokenizer = loaded(home, "bpe")
    assert page.values("#tokens [data-value]") == ids_of(tokenizer)
    assert page.value("#ratio") == len(TEXT) / len(ids_of(tokenizer))
    page.set("merge", 0)
    parts = "return [...document.querySelectorAll('#parts span')].map(e => e.textContent)"
    assert page.js(parts) == list("Alas")
    page.set("merge", page.js("return document.getElementById('merge').max"))
    assert page.js(parts) == [tokenizer.decode([i]) for i in ids_of(tokenizer, "Alas")]


def test_look_shows_weights_that_sum_to_1_and_what_each_layer_says(page, home):
    page.visit("look", layer=1, head=1)
    model, tokenizer = loaded(home)
    ids = ids_of(tokenizer)
    T = len(ids)
    cell = "#big .readout [data-value]"
    row = []
    for _ in range(T):  # the last row, from right to left
        row.insert(0, page.values(cell)[0])
        press(page, "#big canvas", "ArrowLeft")
    assert sum(row) == pytest.approx(1, abs=1e-6)
    assert row == pytest.approx(weights_of(model, ids, layer=1)[1, -1].tolist(), abs=1e-6)
    page.click("#weighted")
    page.set("layer", 0)
    assert page.state()["layer"] == "0" and page.state()["weighted"] == "true"
    page.js("document.querySelectorAll('#heads button')[0].click()")
    assert page.values(cell)[0] == pytest.approx(weights_of(model, ids, layer=0)[0, -1, 0].item(), abs=1e-6)
    lens = page.values("#lens td")
    with torch.no_grad():
        last = torch.softmax(model(torch.tensor([ids]))[0], dim=-1).max(dim=-1).values
    assert len(lens) == 3 * T and lens[2 * T :] == pytest.approx(last.tolist(), abs=1e-6)
    sizes = page.values("#sizes [data-value]")
    x = model.wte.weight[ids]
    assert sizes[0] == pytest.approx(x.square().mean(-1).sqrt().mean().item(), abs=1e-6) and len(sizes) == 7
    assert page.value("#depends .readout") == pytest.approx(look.depends(model, ids)[-1][-1], abs=1e-6)


def weights_of(model: GPT, ids: list[int], layer: int) -> torch.Tensor:
    """Attention weights (H,T,T): what comes out when the values are one-hot, a token at a time."""
    attn, found = model.blocks[layer].attn, []
    T, hs = len(ids), attn.config.head_size
    real = F.scaled_dot_product_attention
    H = attn.config.n_head
    calls = []

    def spy(q, k, v, *more, **how):
        calls.append((q, k))
        return real(q, k, v, *more, **how)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", spy)
        model(torch.tensor([ids]))
    q, k = calls[layer]
    for s in range(0, T, hs):  # hs columns at a time
        v = torch.zeros(1, H, T, hs)
        for i in range(s, min(s + hs, T)):
            v[0, :, i, i - s] = 1
        found.append(real(q, k, v, is_causal=True)[0])
    return torch.cat(found, dim=-1)[..., :T]


def test_break_shows_the_loss_without_a_part(page, home):
    page.visit("break")
    model, tokenizer = loaded(home)
    ids = ids_of(tokenizer)
    whole = losses_of(model, ids).mean().item()
    assert page.value("#loss_before") == page.value("#loss_after") == pytest.approx(whole, abs=1e-6)
    assert page.text("#before") == page.text("#after") != ""
    worth = page.values("#worth [data-value]")
    page.click("[data-key='mlp.1']")
    page.wait("document.querySelector('#change [data-value]').dataset.value != 0")
    page.settled()
    with torch.no_grad():
        model.blocks[1].mlp.down.weight.zero_()
    broken = losses_of(model, ids).mean().item()
    assert page.value("#loss_after") == pytest.approx(broken, abs=1e-6)
    assert page.value("#change") == pytest.approx(broken - whole, abs=1e-6)
    assert worth[8] == pytest.approx(broken - whole, abs=1e-6)  # the second row's fourth
    assert page.state()["off"] == "mlp.1"


def test_compare_marks_where_two_models_part(page, home):
    page.visit("compare", a="out-char/best.pt", b="out-talk/best.pt", seed=5)
    page.visit("compare", a="out-char/best.pt", b="out-bpe/best.pt", seed=5)
    for side, name in (("a", "char"), ("b", "bpe")):
        model, tokenizer = loaded(home, name)
        ids = ids_of(tokenizer)
        size = len(TEXT) - len(tokenizer.decode(ids[:1]))
        bits = losses_of(model, ids).sum().item() / math.log(2)
        assert page.value(f"#bits_{side}") == pytest.approx(bits / size, abs=1e-6)
        key = f"#curve .keys > span:nth-child({1 if side == 'a' else 2}) [data-value]"
        assert page.value(key) == page.value(f"#bits_{side}")
        prompt = page.text(f"#text_{side}")
        assert (
            prompt.startswith(TEXT)
            and page.js(f"return document.querySelectorAll('#text_{side} mark').length") == 1
        )
    starts = [
        page.js(f"return document.querySelector('#text_{s} mark').previousSibling.textContent") for s in "ab"
    ]
    assert starts[0][: len(starts[1])] == starts[1][: len(starts[0])]
    page.set("b", "out-char/best.pt")
    page.wait("document.getElementById('part').textContent === 'They write the same.'")


def test_chat_streams_an_answer(page):
    page.visit("chat", run="out-talk", temperature=2, seed=7)
    page.js("document.getElementById('message').value = 'Say moon.'")
    page.click("#go")
    page.wait("document.querySelectorAll('#talk p').length === 2 && document.getElementById('stop').disabled")
    assert page.text("#talk p.user span") == "Say moon." and page.text("#alert") == ""
    choice = {"temperature": 2, "top_p": 1, "seed": 7, "max_tokens": 400}
    body = {"model": "out-talk", "messages": [{"role": "user", "content": "Say moon."}], **choice}
    how = {"data": json.dumps(body).encode(), "headers": {"Content-Type": "application/json"}}
    with urllib.request.urlopen(
        urllib.request.Request(page.address + "v1/chat/completions", **how)
    ) as answer:
        right = json.load(answer)["choices"][0]["message"]["content"]
    assert page.text("#talk p.assistant span") == right != ""


def test_a_message_that_fails_is_taken_back(page):
    """It stays in its box, and the conversation goes on without it."""
    page.visit("chat", run="out-talk", temperature=2, seed=7)
    message = "document.getElementById('message').value"
    page.js(f"{message} = 'Say '.repeat(99)")
    page.click("#go")
    page.wait("document.getElementById('alert').textContent.includes('write a shorter one')")
    assert page.count("#talk p") == 0 and page.js(f"return {message}") == "Say " * 99
    page.js(f"{message} = 'Say moon.'")
    page.click("#go")
    page.wait("document.querySelectorAll('#talk p').length === 2 && document.getElementById('stop').disabled")
    assert page.text("#alert") == "" and page.text("#talk p.assistant span") != ""
    page.click("#fresh")
    assert page.count("#talk p") == 0


# ---- pictures
@pytest.mark.skipif(not PICTURES, reason="PICTURES=out-x names no run to take pictures of")
def test_pictures_of_the_documentation(browser):
    PngImageFile = needs("PIL.PngImagePlugin").PngImageFile
    with served(Path(PICTURES).resolve()) as address:
        page, folder = Page(browser, address), ROOT / "docs" / "assets"
        folder.mkdir(exist_ok=True)
        for name, width, scheme, more in (
            ("train", 1280, "light", {}),
            ("read", 1280, "light", {}),
            ("look", 1280, "dark", {"layer": 1}),
            ("break", 1280, "light", {"off": "mask,block.0"}),
            ("train", 390, "dark", {}),
            ("read", 390, "light", {}),
        ):
            page.shape(width, scheme)
            page.visit(name, run=Path(PICTURES).name, text="", **more)
            time.sleep(1)
            clip = {"x": 0, "y": 0, "width": width, "height": 1000 if width > 600 else 844, "scale": 1}
            how = {"clip": clip, "captureBeyondViewport": True}
            shot = browser.execute_cdp_cmd("Page.captureScreenshot", how)["data"]
            path = folder / f"play_{name}_{width}.png"
            picture = PngImageFile(io.BytesIO(base64.b64decode(shot))).convert("RGB")
            picture.quantize(128, dither=0).save(path, optimize=True)
            assert path.stat().st_size < 80_000
