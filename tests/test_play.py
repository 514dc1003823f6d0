"""What python -m play computes, against the same computed in another way; its server against bad requests."""

import contextlib
import functools
import http.client
import itertools
import json
import math
import os
import random
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import config
from conftest import ROOT, needs
from generate import token_probs
from lab import ladder
from model import GPT, GPTConfig
from play import look, runs, server, views
from runtime import checkpoint, samples
from sample import prompt_ids
from text import prepare
from tokenizer import END, BPETokenizer, CharTokenizer, load_any


def random_model(arch: str = "modern", **settings) -> GPT:
    """A small model in which every part matters: no weight is zero."""
    torch.manual_seed(1)
    shape = dict(vocab_size=11, block_size=16, n_layer=2, n_head=4, n_embd=32, arch=arch)
    model = GPT(GPTConfig(**{**shape, **settings}))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
ARCHS = ["modern", "gpt2", "llama"]


# ---- look.py
@pytest.mark.parametrize("n", [2, 15, 16, 17, 24, 25, 60])
def test_surprise_is_that_of_each_token_alone(n):
    """Each token's own forward pass over the window that its docstring promises: at least half of it."""
    model = random_model()
    ids = torch.randint(11, (n,)).tolist()
    found = look.surprise(model, ids)
    assert found[0] is None and len(found) == n
    for t in range(1, n):
        begin = 0 if t < 16 else 8 * ((t - 16) // 8 + 1)  # windows begin at 0, 8, 16, ...
        logits = model(torch.tensor([ids[begin:t]]))[0, -1].double()
        right = -torch.log_softmax(logits, dim=0)[ids[t]].item() / math.log(2)
        assert found[t] == pytest.approx(right, abs=1e-5)


def test_totals_count_the_bytes_of_what_has_bits():
    tokenizer = CharTokenizer.train(["aé語"])
    ids = tokenizer.encode("aé語a").tolist()
    found = look.totals(tokenizer, ids, [None, 2.0, 4.0, 1.0])
    assert found["total_bits"] == 7 and found["bytes"] == 2 + 3 + 1
    assert found["bits_per_byte"] == 7 / 6
    assert found["loss"] == pytest.approx(7 * math.log(2) / 3)


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7), (0.0, 1.0)])
def test_next_tokens_are_those_that_generation_draws(temperature, top_p):
    """By how often 4,000 draws of generate.py bring each token."""
    model, tokenizer = random_model(), CharTokenizer("abcdefghijk")
    found = look.next_tokens(model, tokenizer, IDS, temperature, top_p)
    drawn = [row[-1] for row in model.generate([IDS] * 4000, 1, temperature, top_p=top_p)]
    for token in found["tokens"]:
        share = drawn.count(token["id"]) / 4000
        assert token["probability"] == pytest.approx(share, abs=0.04)
        assert token["kept"] == (token["probability"] > 0)
    assert sum(token["kept"] for token in found["tokens"]) == min(10, found["kept"])
    logits = model(torch.tensor([IDS]))[:, -1]
    raw, probs = torch.softmax(logits, -1)[0].tolist(), token_probs(logits, temperature, 0, top_p)[0].tolist()
    shares = [p / sum(probs) for p in probs if p]
    assert found["entropy_bits"] == pytest.approx(-sum(p * math.log2(p) for p in shares), abs=1e-5)
    assert [token["raw"] for token in found["tokens"]] == pytest.approx(
        sorted(raw, reverse=True)[:10], abs=1e-6
    )


@pytest.mark.parametrize("settings", [{}, {"n_kv_head": 2, "window": 3}, {"qk_norm": 2, "qkv_bias": 1}])
@pytest.mark.parametrize("arch", ARCHS)
def test_attention_shown_is_the_models(arch, settings):
    """With the weights that are shown, the model's own attention gives the same output."""
    model = random_model(arch, **settings)
    with torch.no_grad():
        x = model(torch.tensor([IDS]))
        for layer, block in enumerate(model.blocks):
            got = []
            hook = block.attn.register_forward_hook(lambda module, args, y, got=got: got.extend([args, y]))
            model(torch.tensor([IDS]))
            hook.remove()
            (h, rope, past), y = got
            torch.testing.assert_close(look.written_out(block.attn, h, rope), y, atol=1e-5, rtol=1e-5)
            found = look.attention(model, IDS, layer)
            weights = torch.tensor(found["attention"])  # (H,T,T)
            assert weights.shape == (4, len(IDS), len(IDS))
            torch.testing.assert_close(weights.sum(-1), torch.ones(4, len(IDS)))
            assert not weights.triu(1).any()
            v = block.attn.v(h).view(len(IDS), -1, 8)  # (T,K,hs)
            lengths = v.norm(dim=-1).T.repeat_interleave(4 // v.size(1), 0)  # (H,T)
            torch.testing.assert_close(torch.tensor(found["value_length"]), lengths)
        assert torch.equal(model(torch.tensor([IDS])), x), "looking has changed the model"
    with pytest.raises(ValueError, match="layer=2 is none; expected 0 to 1"):
        look.attention(model, IDS, 2)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_lens_ends_at_the_models_own_answer(arch):
    model, tokenizer = random_model(arch), CharTokenizer("abcdefghijk")
    found = look.lens(model, tokenizer, IDS)
    probs = torch.softmax(model(torch.tensor([IDS]))[0], dim=-1)
    assert found["probability"][-1] == pytest.approx(probs.amax(-1).tolist(), abs=1e-6)
    assert "".join(found["top"][-1]) == tokenizer.decode(probs.argmax(-1).tolist())
    truth = [probs[t, IDS[t + 1]].item() for t in range(len(IDS) - 1)]
    assert found["truth"][-1][:-1] == pytest.approx(truth, abs=1e-6) and found["truth"][-1][-1] is None
    # a model of one block says after it what the lens of the whole one says there
    first = random_model(arch)
    first.blocks = first.blocks[:1]
    assert found["probability"][1] == pytest.approx(
        torch.softmax(first(torch.tensor([IDS]))[0], dim=-1).amax(-1).tolist(), abs=1e-6
    )
    assert len(found["layers"]) == len(found["residual"]) == 3 and len(found["attention_out"]) == 2
    x = model.wte(torch.tensor(IDS))
    x = x + model.wpe(torch.arange(len(IDS))) if arch == "gpt2" else x
    assert found["residual"][0] == pytest.approx(x.square().mean(-1).sqrt().tolist(), rel=1e-5)


def test_dependence_is_causal_and_reaches_as_far_as_the_window():
    model = random_model(n_layer=1, window=2, token_shift=0)
    change = np.array(look.depends(model, IDS))
    seen = np.tril(np.ones((10, 10))) - np.tril(np.ones((10, 10)), -2)  # a token and the one before it
    assert (change[seen == 1] > 1e-3).all()
    assert (change[seen == 0] == 0).all()
    assert change.max() <= 1


# ---- look.py: switching parts off
def test_a_block_that_is_off_is_not_there():
    model, smaller = random_model(), random_model()
    smaller.blocks = smaller.blocks[1:]
    with look.without(model, ["block.0"]):
        assert torch.equal(model(torch.tensor([IDS])), smaller(torch.tensor([IDS])))
        assert model.generate([IDS], 20, seed=3) == smaller.generate([IDS], 20, seed=3)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("key", ["head.1.2", "attention.0", "mlp.1"])
def test_a_part_that_is_off_is_as_with_zero_weights(arch, key):
    model, zero = random_model(arch, bias=False), random_model(arch, bias=False)
    with torch.no_grad():
        if key.startswith("head"):
            zero.blocks[1].attn.o.weight[:, 16:24] = 0
        elif key.startswith("attention"):
            zero.blocks[0].attn.o.weight.zero_()
        else:
            zero.blocks[1].mlp.down.weight.zero_()
    before = model(torch.tensor([IDS]))
    with look.without(model, [key]):
        assert torch.allclose(model(torch.tensor([IDS])), zero(torch.tensor([IDS])), atol=1e-5)
        assert model.generate([IDS], 20, seed=3) == zero.generate([IDS], 20, seed=3)
    assert torch.equal(model(torch.tensor([IDS])), before), "not switched on again"


def test_without_norm_shift_and_positions_it_is_the_model_built_without_them():
    model, plain = random_model(), random_model(qk_norm=0, token_shift=0)
    plain.load_state_dict(model.state_dict())
    with look.without(model, ["qk_norm", "token_shift"]):
        assert torch.allclose(model(torch.tensor([IDS])), plain(torch.tensor([IDS])), atol=1e-5)
        assert model.generate([IDS], 6, seed=3) == plain.generate([IDS], 6, seed=3)
    model = random_model(n_layer=1)
    with look.without(model, ["position", "token_shift"]):  # the order of what came before does not matter
        one, two = (model(torch.tensor([ids]))[0, -1] for ids in (IDS, [*reversed(IDS[:-1]), IDS[-1]]))
        assert torch.allclose(one, two, atol=1e-4)


def test_without_the_mask_a_token_sees_the_next_one():
    model = random_model()
    changed = [*IDS[:-1], 7]
    with look.without(model, ["mask"]):
        assert not torch.allclose(model(torch.tensor([IDS]))[0, 0], model(torch.tensor([changed]))[0, 0])
        q = model.generate([IDS], 3, seed=3)
    assert torch.allclose(model(torch.tensor([IDS]))[0, :-1], model(torch.tensor([changed]))[0, :-1])
    assert len(q[0]) == 13


def test_an_error_while_a_part_is_off_switches_it_on_again():
    model = random_model()
    before = model(torch.tensor([IDS]))
    with contextlib.suppress(KeyError), look.without(model, list(look.switches(model))):
        raise KeyError
    assert torch.equal(model(torch.tensor([IDS])), before)
    with (
        pytest.raises(ValueError, match="'head.9.9' cannot be switched off here"),
        look.without(model, ["head.9.9"]),
    ):
        pass
    assert torch.equal(model(torch.tensor([IDS])), before)


def test_importance_is_the_change_of_the_loss():
    model = random_model()
    found, zero = look.importance(model, IDS), random_model()
    with torch.no_grad():
        zero.blocks[0].attn.o.weight[:, 8:16] = 0
        logits = [m(torch.tensor([IDS]))[0, :-1] for m in (model, zero)]
    right = [F.cross_entropy(each, torch.tensor(IDS[1:])).item() for each in logits]
    assert found["heads"][0][1] == pytest.approx(right[1] - right[0], abs=1e-5)
    assert np.shape(found["heads"]) == (2, 4) and len(found["mlp"]) == 2


# ---- lab/ladder.py
def test_the_ladder_by_hand(tmp_path, monkeypatch):
    """Losses of letters and bigrams, counted in plain loops."""
    train, val = [0, 1, 0, 1, 2, 0, 1], [0, 1, 2, 2]
    monkeypatch.setattr(ladder, "ids_of", lambda name, split: np.array(train if split == "train" else val))
    letters, bigram = ladder.counted_losses("any", 3)
    p = [(train.count(i) + 1) / (7 + 3) for i in range(3)]
    assert letters == pytest.approx(-sum(math.log(p[i]) for i in val) / 4)
    total = 0.0
    for a, b in itertools.pairwise(val):
        n_ab = list(itertools.pairwise(train)).count((a, b))
        total -= math.log((n_ab + 50 * p[b]) / (train[:-1].count(a) + 50))
    assert bigram == pytest.approx(total / 3)


# ---- runs.py
def test_rows_come_once_and_whole(tmp_path):
    rows, path = runs.Rows(tmp_path / "metrics.jsonl"), tmp_path / "metrics.jsonl"
    assert rows.read() == [] and rows.best is None  # no file yet
    path.write_text('{"step": 1, "val_loss": 2.0}\n{"step": 2, "val_loss": 2.5}\n{"st', encoding="utf-8")
    assert rows.read() == [{"step": 1, "val_loss": 2.0}, {"step": 2, "val_loss": 2.5}]
    assert (rows.step, rows.best) == (2, 2.0)
    with open(path, "a", encoding="utf-8") as file:
        file.write('ep": 3}\nnonsense\n[1]\n{"step": 4}\n')
    assert rows.read() == [{"step": 3}, {"step": 4}] and not rows.was_cut
    assert (rows.step, rows.best) == (4, 2.0)
    path.write_text('{"step": 1}\n', encoding="utf-8")  # a resumed run has cut it
    assert rows.read() == [{"step": 1}] and rows.was_cut and rows.best is None
    (tmp_path / "new").write_text('{"step": 7}\n' * 9, encoding="utf-8")  # or replaced it by a longer one
    (tmp_path / "new").replace(path)
    assert len(rows.read()) == 9 and rows.was_cut
    assert rows.read() == [] and not rows.was_cut


def test_rows_of_a_run_made_anew_are_not_taken_for_those_of_the_old_one(tmp_path):
    """Whatever its size and its inode."""
    path = tmp_path / "metrics.jsonl"
    rows = runs.Rows(path)
    path.write_text('{"step": 100, "val_loss": 1.0}\n', encoding="utf-8")
    rows.read()
    text = '{"step": 1, "val_loss": NaN}\n{"step": 20, "val_loss": 2.5, "deep": [[1]]}\n'
    path.write_text(text, encoding="utf-8")
    assert rows.read()[1:] == [{"step": 20, "val_loss": 2.5}] and rows.was_cut
    assert (rows.step, rows.best) == (20, 2.5)
    path.write_text("", encoding="utf-8")
    assert rows.read() == [] and rows.was_cut and (rows.step, rows.best) == (0, None)
    path.write_text('{"step": 3, "val_loss": 3.5}\n', encoding="utf-8")
    rows.read()
    path.unlink()
    assert rows.read() == [] and rows.was_cut and (rows.step, rows.best) == (0, None)


# ---- the server
@pytest.fixture(scope="module")
def home(tmp_path_factory, datasets):
    """A folder with two runs, of characters and of byte pairs, and things that are none."""
    home = tmp_path_factory.mktemp("home")
    text = "ab c\n"
    save_run(home / "out-a", random_model(vocab_size=5), CharTokenizer.train([text]))
    pairs = BPETokenizer.train([text * 9], 262, (END,))
    save_run(home / "out-b", random_model(vocab_size=pairs.vocab_size, block_size=64), pairs, "jsonl")
    (home / "other").mkdir()
    (home / "out-broken").mkdir()
    (home / "out-broken" / "config.json").write_text("{", encoding="utf-8")
    (home / "secret.txt").write_text("secret", encoding="utf-8")
    return home


def save_run(folder, model, tokenizer, format="text"):
    """A run as if train.py had made it, with rows, samples and a result."""
    folder.mkdir()
    shape = vars(model.config)
    settings = {**config.training_settings(), **{k: v for k, v in shape.items() if k != "vocab_size"}}
    settings |= {"dataset": "not-here", "start": "ab", "out_dir": str(folder)}
    dataset = {"name": "not-here", "source": "?", "sha256": "0", "format": format}
    run = dict(model=model.state_dict(), model_config=shape, tokenizer=tokenizer.to_json())
    run |= dict(dataset=dataset, config=settings, step=20, tokens=0, seconds=0.0, val_loss=1.5)
    checkpoint.save_run(folder, run)
    rows = [{"step": 0, "train_loss": 1.6, "val_loss": 1.7}, {"step": 20, "train_loss": 1.4, "val_loss": 1.5}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    samples.append(folder / "samples.txt", 20, "not-here", "ab c")


@contextlib.contextmanager
def serving(home, token=""):
    """ask(method, path, body, headers) -> (status, text) of a server in this process; ask.port."""
    serving = server.Server(("127.0.0.1", 0), server.Desk(home, "out-a", token))
    threading.Thread(target=serving.serve_forever, args=(0.05,), daemon=True).start()

    def ask(method, path, body=None, **headers):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", ask.port, timeout=20)) as connection:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            if isinstance(body, dict):
                body, headers = json.dumps(body), {"Content-Type": "application/json", **headers}
            body = body.encode() if isinstance(body, str) else body
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    ask.port = serving.server_port
    try:
        yield ask
    finally:
        serving.shutdown()
        serving.server_close()


@pytest.fixture(scope="module")
def ask(home):
    with serving(home) as ask:
        yield ask


def answer(ask, path, **body):
    status, text = ask("POST", path, body)
    assert status == 200, text
    return json.loads(text)


def test_the_list_knows_runs_and_nothing_else(ask):
    status, text = ask("GET", "/api/runs")
    found = {run["name"]: run for run in json.loads(text)["runs"]}
    assert status == 200 and json.loads(text)["chosen"] == "out-a"
    assert set(found) == {"out-a", "out-b"}
    assert found["out-a"]["val_loss"] == 1.5 and found["out-a"]["step"] == 20
    assert found["out-a"]["files"] == ["best.pt"] and found["out-a"]["state"] == "training"
    assert json.loads(ask("GET", "/v1/models")[1])["data"][0]["id"] in found


def test_every_figure_names_a_line_that_is_there(ask):
    found = json.loads(ask("GET", "/api/formulas")[1])
    assert set(found) == set(views.FORMULAS)
    for key, formula in found.items():
        lines = (ROOT / formula["file"]).read_text(encoding="utf-8").split("\n")
        assert views.FORMULAS[key][3] in lines[formula["line"] - 1]
        status, page = ask("GET", f"/source/{formula['file']}")
        assert status == 200 and f'id="L{formula["line"]}"' in page


def test_views_say_what_the_model_says(ask):
    model, run = random_model(vocab_size=5), {"run": "out-a", "text": "ab c"}
    ids = CharTokenizer.train(["ab c\n"]).encode("ab c").tolist()
    logits = model(torch.tensor([ids]))[0]
    about = json.loads(ask("GET", "/api/model?run=out-a")[1])
    assert about["text"] == "ab" and about["parameters"] == sum(p.numel() for p in model.parameters())
    assert {switch["key"] for switch in about["switches"]} >= {"mask", "head.1.3", "block.0", "position"}
    read = answer(ask, "/api/read", **run)
    right = (
        -torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0] / math.log(2)
    ).tolist()
    assert read["bits"] == pytest.approx([None, *right], abs=1e-6) and read["pieces"] == [*"ab c"]
    assert read["bits_per_byte"] == pytest.approx(sum(right) / 3, abs=1e-6)
    after = answer(ask, "/api/next", run="out-a", ids=ids, temperature=0.5, top_p=0.9)
    probs = token_probs(logits[-1:].detach(), 0.5, 0, 0.9)[0]
    for token in after["tokens"]:
        assert token["probability"] == pytest.approx((probs / probs.sum())[token["id"]].item(), abs=1e-6)
    status, text = ask("POST", "/api/write", {**run, "max_new_tokens": 9, "seed": 5, "temperature": 1})
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert [json.loads(e)["id"] for e in events[:-1]] == model.generate([ids], 9, 1.0, seed=5)[0][4:]
    broken = answer(ask, "/api/break", **run, off=["block.0"], max_new_tokens=5)
    assert broken["loss_before"] == pytest.approx(read["loss"], abs=1e-6) != broken["loss_after"]
    assert len(broken["before"]) == len(broken["after"]) == 5
    both = answer(ask, "/api/compare", a={"run": "out-a"}, b={"run": "out-a"}, text="ab c", max_new_tokens=5)
    assert both["part"] is None and both["a"] == both["b"]
    assert both["a"]["curve"] == [[i, bits] for i, bits in enumerate(read["bits"])][1:]
    other = answer(ask, "/api/compare", a={"run": "out-a"}, b={"run": "out-b"}, text="ab c", max_new_tokens=5)
    a, b = ("".join(other[side]["pieces"][: other["part"][side]]) for side in "ab")
    assert a.startswith(b) or b.startswith(a)
    steps = answer(ask, "/api/tokens", run="out-b", text="ab c")["words"]
    assert [word["word"] for word in steps] == ["ab", " c"] and steps[0]["steps"][0] == ["a", "b"]
    for path in ("look", "lens", "depends", "importance"):
        assert answer(ask, f"/api/{path}", **run)["pieces"] == [*"ab c"]


def test_a_run_that_goes_on_is_followed(home, ask):
    """First what is there; then a row that is written, within a second."""
    folder = home / "out-live"
    save_run(folder, random_model(vocab_size=5), CharTokenizer.train(["ab c\n"]))
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", ask.port, timeout=5)) as connection:
        connection.request("GET", "/api/follow?run=out-live")
        stream = connection.getresponse()

        def event():
            lines = [stream.readline().decode() for _ in range(3)]
            return lines[0].strip(), json.loads(lines[1].removeprefix("data: "))

        name, run = event()
        assert name == "event: run" and run["ladder"][0]["nats"] == pytest.approx(math.log(5))
        assert event() == ("event: samples", [{"step": 20, "text": "ab c"}])
        name, rows = event()
        assert name == "event: rows" and [row["step"] for row in rows] == [0, 20]
        with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write('{"step": 30, "loss": 1.0}\n')
        began = time.monotonic()
        assert event() == ("event: rows", [{"step": 30, "loss": 1.0}])
        assert time.monotonic() - began < 1.0
    shutil.rmtree(folder)


# ---- the server and strangers
RUN_AND_TEXT = {"run": "out-a", "text": "ab"}
MESSAGE = {"role": "user", "content": "a"}


def all_of(method: str, paths: list[str], bodies: list, headers: list[dict]) -> list[tuple]:
    return list(itertools.product([method], paths, bodies, headers))


def posts(folder: str, usual: dict, requests: list[tuple]) -> list[tuple]:
    """One POST for each (path, what is not as usual in its body)."""
    return [("POST", f"/{folder}/{path}", {**usual, **values}, {}) for path, values in requests]


PATHS = """/../secret.txt /%2e%2e/secret.txt //secret.txt /source/../secret.txt /source/config/base.py
    /secret.txt /api/ /api/model /api/model?run=../home/out-a /api/model?run=out-a/../out-a
    /%C3%A4 /api/model?run=%00
    /api/model?run=other /api/model?run=out-broken /api/model?run=out-a&file=../out-b/best.pt
    /api/follow?run=/ /api/follow""".split()
HOSTS = "evil.example 127.0.0.1.evil.example localhost.evil 192.168.0.9:8000 8.8.8.8 [ [::1".split()
BODIES = r"""
    {
    []
    1
    "a"
    null
    {"run": "out-a"}
    {"run": "out-a", "text": ""}
    {"run": "out-a", "text": 5}
    {"run": ["out-a"], "text": "a"}
    {"run": "out-a", "text": "\ud800"}
    {"run": "out-a", "text": "\u8a9e"}
    {"run": "out-a", "ids": [9]}
    {"run": "out-a", "ids": [-1]}
    {"run": "out-a", "ids": ["a"]}
    {"run": "out-a", "ids": []}
    {"run": "out-a", "ids": [1e3]}
    {"run": "out-a", "ids": [true]}
    {"run": "out-a", "text": "a", "file": "/etc/passwd"}
""".split("\n")
JSON = {"Content-Type": "application/json"}
FORMS = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
NUMBERS = [
    *(("next", {"temperature": value}) for value in (-1, "1", math.inf, math.nan, 10**400, None, [])),
    *(("next", {"top_p": value}) for value in (0, 2, -0.1, "a")),
    *(("write", {"max_new_tokens": value}) for value in (10**9, -1, 1.5, True, "9")),
    *(("write", {"seed": value}) for value in (-1, 2**64, 0.5)),
    ("write", {"temperature": 1e-320}),
    *(("look", {"layer": value}) for value in (2, -1, "1", 10**30)),
    ("next", {"temperature": 1e-40}),
    *(("break", {"off": value}) for value in (["head.9.9"], "mask", [["mask"]], ["head.0.1.1"], ["head"])),
    *(("compare", {"a": value}) for value in ("out-a", {"run": "no"}, {"run": {}}, [])),
]
OPENAI = [
    ("completions", {"model": "gpt-4"}),
    *(("completions", {"prompt": value}) for value in (5, [], ["a"] * 9, [["a"]], {})),
    *(("completions", {"n": value}) for value in (99, 0, "1")),
    *(("completions", {"stop": value}) for value in (5, ["a"] * 5, [5], {"a": "b"})),
    *(("completions", {"max_tokens": value}) for value in (10**6, -1, "9")),
    ("completions", {"stream": "yes"}),
    *(("chat/completions", {"messages": value}) for value in ([], ["a"], [{"role": "user"}], "hello", {})),
    ("chat/completions", {"messages": [{**MESSAGE, "role": 5}]}),
    ("chat/completions", {"messages": [{**MESSAGE, "role": "nobody"}]}),
    ("chat/completions", {"messages": [{**MESSAGE, "content": "a" * 500}]}),
    ("chat/completions", {"messages": [{**MESSAGE, "content": [[5]]}], "max_tokens": -5}),
]
BAD = {
    "path": all_of("GET", [*PATHS, "/api/model?run=" + "a" * 5000, "/?" + "a=b&" * 50], [None], [{}]),
    "host": all_of("GET", ["/api/runs"], [None], [{"Host": host} for host in [*HOSTS, "", "a" * 3000]]),
    "origin": all_of("POST", ["/api/read"], [RUN_AND_TEXT],
                     [{"Origin": f"http{end}"} for end in ("://evil.example", "s://127.0.0.1", "://localhost")]),
    "body": all_of("POST", ["/api/read"], [*BODIES, "[" * 100_000, b"\xff\xfe", b"\xed\xa0\x80"], [JSON]),
    "long": posts("api", RUN_AND_TEXT, [("read", {"text": "a" * 30_000}), ("read", {"ids": [1] * 30_000})]),
    "form": all_of("POST", ["/api/read"], ["run=out-a"], [{"Content-Type": kind} for kind in FORMS]),
    "number": posts("api", RUN_AND_TEXT, NUMBERS),
    "openai": posts("v1", {"model": "out-b", "prompt": "a", "messages": [MESSAGE]}, OPENAI),
    "method": [(name, "/api/runs", None, {}) for name in "PUT DELETE HEAD OPTIONS PATCH BREW POST".split()],
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_request_is_a_line_of_json_and_changes_nothing(home, ask, kind, capfd):
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    for method, path, body, headers in BAD[kind]:
        status, text = ask(method, path, body, **headers)
        where = f"{method} {path[:60]} {str(body)[:60]} {headers}"
        assert 400 <= status < 502 and status != 500, f"{where}: {status} {text[:200]}"
        if method != "HEAD":
            message = json.loads(text)["error"]["message"]
            assert message and "\n" not in message and len(message) < 400, where
            assert "Traceback" not in text and "secret" not in text.replace("secret.txt", ""), where
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    assert ask("GET", "/api/runs")[0] == 200
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_thousand_bad_requests(home, ask, figure, capfd):
    """Those above, each in several forms: some of its characters are cut out, doubled or replaced."""
    rng, before = random.Random(1337), {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    known = [request for requests in BAD.values() for request in requests]
    refused = 0
    for i in range(1000):
        method, path, body, headers = known[i % len(known)]
        body = json.dumps(body) if isinstance(body, dict) else body
        if i >= len(known) and isinstance(body, str) and body:
            at = rng.randrange(len(body))
            body = (
                body[:at]
                + rng.choice(["", body[at] * 2, '"', "{", "\\", "\u20ac", "-", "\x00"])
                + body[at + 1 :]
            )
            headers = {**JSON, **headers}
        elif i >= len(known):
            at = rng.randrange(1, len(path))
            path = (
                path[:at]
                + rng.choice(["", path[at] * 2, "%00", "../", "%FF", "?", "&&", "//"])
                + path[at + 1 :]
            )
        status, text = ask(method, path, body, **headers)
        refused += status >= 400
        assert status < 500 or status == 501, (status, text, method, path[:80], str(body)[:200])
        if status >= 400 and method != "HEAD":
            assert "\n" not in json.loads(text)["error"]["message"]
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    assert ask("GET", "/api/runs")[0] == 200 and capfd.readouterr().err == ""
    assert refused > 900
    figure(f"1,000 bad requests: {refused} errors of one line, {1000 - refused} were none, nothing changed")


POST = b"POST /api/read HTTP/1.1\r\nHost: localhost\r\n"
RAW = {
    "no request": b"nonsense\r\n\r\n",
    "no path": b"GET\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    "another version": b"GET / HTTP/9.9\r\n\r\n",
    "a long path": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    "no length": POST + b"Content-Length: -1\r\n\r\n",
    "too long": POST + b"Content-Length: 99999999\r\n\r\n",
    "in chunks": POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW)
def test_what_is_no_request_gets_a_line_of_json(ask, raw, capfd):
    with socket.create_connection(("127.0.0.1", ask.port), timeout=10) as connection:
        connection.sendall(raw)
        with contextlib.suppress(ConnectionResetError):  # it closes without reading 70,000 bytes
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
            assert json.loads(text.partition("\r\n\r\n")[2])["error"]["message"]
    assert ask("GET", "/api/runs")[0] == 200 and capfd.readouterr().err == ""


def test_with_a_host_the_token_is_asked_for(home):
    with serving(home, token="open sesame") as ask:
        assert ask("GET", "/api/runs")[0] == ask("GET", "/api/runs?token=open")[0] == 403
        assert ask("GET", "/")[0] == ask("GET", "/source/model.py")[0] == 403
        assert ask("GET", "/api/runs?token=open%20sesame", Host="192.168.0.9:8000")[0] == 200
        assert ask("GET", "/v1/models", Authorization="Bearer open sesame")[0] == 200
        assert ask("GET", "/api/runs?token=open%20sesame", Host="evil.example")[0] == 403
        assert ask("GET", "/api/runs?token=%E4", Authorization="Bearer \u00e4")[0] == 403


@pytest.mark.parametrize("path, request_", [
    ("/api/write", {"run": "out-a", "text": "ab", "max_new_tokens": 2000}),
    ("/v1/completions", {"model": "out-a", "prompt": "ab", "max_tokens": 2000, "n": 8, "stream": True}),
    ("/v1/completions", {"model": "out-a", "prompt": "ab", "max_tokens": 2000, "n": 8}),
    ("/api/break", {"run": "out-a", "text": "ab", "max_new_tokens": 2000, "off": ["head.0.0"] * 1000}),
    ("/api/compare", {"a": {"run": "out-a"}, "b": {"run": "out-b"}, "text": "ab", "max_new_tokens": 2000}),
])  # fmt: skip
def test_a_client_that_goes_away_ends_the_generation(home, ask, monkeypatch, path, request_):
    drawn = []
    slow = GPT.next_logits

    def next_logits(*arguments):
        drawn.append(time.monotonic())
        time.sleep(0.01)
        return slow(*arguments)

    monkeypatch.setattr(GPT, "next_logits", next_logits)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", ask.port, timeout=20)) as connection:
        connection.request("POST", path, json.dumps(request_), {"Content-Type": "application/json"})
        while len(drawn) < 5:
            time.sleep(0.01)
    time.sleep(0.5)
    n = len(drawn)
    time.sleep(0.3)
    assert len(drawn) == n < 200


def test_headers_let_nothing_in_from_elsewhere(ask):
    page = server.pages()["/"]
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", ask.port, timeout=20)) as connection:
        connection.request("GET", "/")
        headers = dict(connection.getresponse().getheaders())
    policy = headers["Content-Security-Policy"]
    assert (
        "default-src 'none'" in policy and "unsafe" not in policy and headers["Cache-Control"] == "no-store"
    )
    assert "innerHTML" not in page and "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page and "eval(" not in page


# ---- OpenAI's API
def test_a_completion_is_what_the_model_generates(ask):
    model, ids = random_model(vocab_size=5), CharTokenizer.train(["ab c\n"]).encode("ab").tolist()
    request = {"model": "out-a", "prompt": "ab", "max_tokens": 12, "seed": 7, "n": 2}
    found = answer(ask, "/v1/completions", **request)
    tokenizer = CharTokenizer.train(["ab c\n"])
    right = [tokenizer.decode(model.generate([ids], 12, 1.0, seed=7 + i)[0][2:]) for i in range(2)]
    assert [choice["text"] for choice in found["choices"]] == right
    assert {choice["finish_reason"] for choice in found["choices"]} == {"length"}
    assert found["usage"] == {"prompt_tokens": 2, "completion_tokens": 24, "total_tokens": 26}
    stop = [right[0][3:5], right[0][5:7]]
    found = answer(ask, "/v1/completions", **request | {"n": 1, "stop": stop})
    cut = min(right[0].index(text) for text in stop)
    assert found["choices"][0]["text"] == right[0][:cut] and found["choices"][0]["finish_reason"] == "stop"


def test_the_curves_of_two_tokenizers_are_per_byte(ask):
    """Weighted by bytes, each curve's mean is the bits per byte that stand above it."""
    sides = {"a": {"run": "out-a"}, "b": {"run": "out-b"}}
    found = answer(ask, "/api/compare", **sides, text="ab c\nab c\nab", max_new_tokens=3)
    counts = []
    for side in "ab":
        places, bits = zip(*found[side]["curve"], strict=True)
        pieces = answer(ask, "/api/tokens", **sides[side], text="ab c\nab c\nab")["pieces"]
        sizes = [len(piece) for piece in pieces]
        assert list(places) == list(itertools.accumulate(sizes))[:-1]
        total = sum(b * size for b, size in zip(bits, sizes[1:], strict=True))
        assert total / sum(sizes[1:]) == pytest.approx(found[side]["bits_per_byte"])
        counts.append(len(sizes))
    assert counts[0] > counts[1]


@pytest.mark.parametrize("format", ["text", "jsonl"])
def test_the_first_text_is_whole_lines_that_can_be_encoded(datasets, tmp_path, monkeypatch, format):
    monkeypatch.setattr(prepare, "DATASETS", tmp_path)
    talks = [{"prompt": f"{i} + {i}?\n", "response": f"{2 * i}"} for i in range(60)]
    lines = [json.dumps(talk) for talk in talks] if format == "jsonl" else [f"line {i}" for i in range(200)]
    (tmp_path / "in.txt").write_text("\n".join(lines), encoding="utf-8")
    prepare.prepare("any", str(tmp_path / "in.txt"), format=format, dedup=False)
    tokenizer, model = load_any(tmp_path / "any"), random_model(vocab_size=40, block_size=64)
    text = views.first_text(model, tokenizer, {"dataset": "any"})
    assert len(prompt_ids(tokenizer, text)) > 10
    if format == "text":
        assert set(text.split("\n")) <= set(lines)
    few = CharTokenizer("xyz")  # of another text, which does not know "The"
    assert views.first_text(model, few, {"dataset": "any", "start": "The"}) == "xyz"
    assert views.first_text(model, few, {"dataset": "nowhere", "start": "\nyx\n"}) == "yx"


@pytest.mark.slow
def test_the_openai_package_can_use_it(ask):
    needs("openai")
    import openai

    client = openai.OpenAI(base_url=f"http://127.0.0.1:{ask.port}/v1", api_key="none", max_retries=0)
    whole = client.completions.create(model="out-a", prompt="ab", max_tokens=12, seed=7)
    parts = client.completions.create(model="out-a", prompt="ab", max_tokens=12, seed=7, stream=True)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text != ""
    ask_for = dict(model="out-b", messages=[{"role": "user", "content": "ab"}], max_tokens=4, seed=7)
    whole = client.chat.completions.create(**ask_for)
    parts = list(client.chat.completions.create(**ask_for, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert {model.id for model in client.models.list()} == {"out-a", "out-b"}
    with pytest.raises(openai.NotFoundError, match="there is no run 'gpt-4' here"):
        client.completions.create(model="gpt-4", prompt="ab")
    with pytest.raises(openai.BadRequestError, match="max_new_tokens=100000 makes no sense"):
        client.completions.create(model="out-a", prompt="ab", max_tokens=100_000)


def test_what_is_not_finite_is_null(home, ask):
    """A page's JSON.parse knows no NaN; a run in float16 writes one now and then."""
    rows = home / "out-a" / "metrics.jsonl"
    before = rows.read_text(encoding="utf-8")
    rows.write_text(before + '{"step": 21, "grad_norm": Infinity, "loss": NaN}\n', encoding="utf-8")
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", ask.port, timeout=5)) as connection:
        connection.request("GET", "/api/follow?run=out-a")
        lines = iter(connection.getresponse().readline, b"")
        line = next(line for line in lines if b'"grad_norm"' in line)
    rows.write_text(before, encoding="utf-8")
    assert json.loads(line[6:])[-1] == {"step": 21, "grad_norm": None, "loss": None}


@pytest.mark.parametrize("file, text", [
    ("config.json", "[1]"), ("config.json", "null"), ("config.json", "{}"), ("config.json", "5"),
    ("config.json", '{"dataset": 5, "max_iters": 9, "expected": []}'), ("config.json", "[" * 100_000),
    ("config.json", '{"dataset": "a", "max_iters": ' + "[" * 600 + "NaN" + "]" * 600 + "}"),
    ("tokenizer.json", "{}"), ("tokenizer.json", "null"), ("tokenizer.json", ""),
    ("result.json", "[1]"), ("result.json", None), ("samples.txt", None), ("metrics.jsonl", None),
])  # fmt: skip
def test_a_damaged_run_is_an_error_of_one_line(home, ask, capfd, file, text):
    """text: None for a folder in the file's place. Other runs are listed as before."""
    folder = home / "out-damaged"
    save_run(folder, random_model(vocab_size=5), CharTokenizer.train(["ab c\n"]))
    try:
        (folder / file).unlink(missing_ok=True)
        (folder / file).mkdir() if text is None else (folder / file).write_text(text, encoding="utf-8")
        listed = {run["name"] for run in json.loads(ask("GET", "/api/runs")[1])["runs"]}
        assert listed >= {"out-a", "out-b"}
        status, said = ask("GET", "/api/model?run=out-damaged")
        assert status == 200 or (400 <= status < 500 and "\n" not in json.loads(said)["error"]["message"])
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", ask.port, timeout=5)) as connection:
            connection.request("GET", "/api/follow?run=out-damaged")
            answer = connection.getresponse()
            assert answer.status in (200, 400)
            if answer.status == 400:
                assert json.load(answer)["error"]["message"].startswith("a file of out-damaged is damaged: ")
            assert answer.status == 400 or file in ("metrics.jsonl",)
    finally:
        shutil.rmtree(folder)
    assert capfd.readouterr().err == ""


def test_long_words_and_long_conversations_take_no_time(ask):
    """Neither grows with the square of its length: 20 seconds and minutes, before."""
    began = time.monotonic()
    found = answer(ask, "/api/tokens", run="out-b", text="ab" * 10_000)
    assert len(json.dumps(found)) < 2**20 and found["words"] == []
    messages = [{**MESSAGE, "content": "a"}] * 4000
    answer(ask, "/v1/chat/completions", model="out-b", messages=messages, max_tokens=1)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("flag, words", [
    ("--out_dir=out-nothing", "out-nothing holds no run; train one, or leave out_dir out"),
    ("--port=70000", "port=70000 makes no sense; expected 0 to 65535"),
    ("--port=TAKEN", "Address already in use; try --port=0"),
    ("--host=nowhere.invalid", "nowhere.invalid: "),
])  # fmt: skip
def test_a_page_that_cannot_be_served_is_one_line(home, monkeypatch, flag, words):
    with serving(home) as ask, pytest.raises(ValueError) as raised:
        monkeypatch.setattr(sys, "argv", ["play", flag.replace("TAKEN", str(ask.port)), "--browser=False"])
        runpy.run_path(str(ROOT / "play" / "__main__.py"), run_name="__main__")
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [{}, {"run": "out-a", "text": "ab", "max_new_tokens": 2000}])
def test_ctrl_c_is_an_ordinary_end(home, asked):
    """Also while a thread computes: inside torch at the interpreter's end, it would abort the process."""
    command = [sys.executable, "-m", "play", f"--out_dir={home / 'out-a'}", "--port=0", "--browser=False"]
    pipe, default = subprocess.PIPE, functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, preexec_fn=default) as page:
        address = [page.stdout.readline() for _ in range(2)][-1].split()[0]
        with contextlib.ExitStack() as stack:
            if asked:
                body = urllib.request.Request(f"{address}api/write", json.dumps(asked).encode(), JSON)
                stack.enter_context(urllib.request.urlopen(body, timeout=20)).readline()
            page.send_signal(signal.SIGINT)
            assert page.wait(20) in (130, -signal.SIGINT), page.stderr.read()
        assert "Traceback" not in (said := page.stderr.read()) and "terminate" not in said


# ---- beside a run that is being trained
def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_to_watch_a_run_costs_it_nothing(datasets, tmp_path, figure):
    """The first point within a second, less than 2 % of the run's time, and below 300 MB."""
    folder = tmp_path / "out-live"
    save_run(folder, random_model(vocab_size=5), CharTokenizer.train(["ab c\n"]))
    (folder / "metrics.jsonl").unlink()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = functools.partial(subprocess.Popen, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with start([sys.executable, "-m", "play", f"--out_dir={folder}", "--port=0", "--browser=False"]) as page:
        address = [page.stdout.readline() for _ in range(2)][-1].split()[0]
        flags = [f"--dataset={datasets / 'small'}", f"--out_dir={folder}", "--max_iters=120", "--threads=1"]
        with (
            start([sys.executable, "train.py", "config/tiny.py", *flags, "--log_interval=5"]) as training,
            urllib.request.urlopen(f"{address}api/follow?run=out-live", timeout=60) as stream,
        ):
            before, late = cpu_seconds(page.pid), []
            for line in stream:
                rows = json.loads(line[6:]) if line.startswith(b"data: [{") else []
                if rows and "step" in rows[-1] and "text" not in rows[-1]:
                    late.append(time.time() - (folder / "metrics.jsonl").stat().st_mtime)
                if training.poll() is not None:
                    break
        used = cpu_seconds(page.pid) - before
        status = Path(f"/proc/{page.pid}/status").read_text(encoding="utf-8")
        page.terminate()
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    share = used / result["training_time"]
    memory = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1000
    assert late[0] < 1.0 and share < 0.02 and memory < 300
    figure(f"watching a run: first point after {late[0]:.2f} s, {share:.2%} of its time, {memory:.0f} MB")
