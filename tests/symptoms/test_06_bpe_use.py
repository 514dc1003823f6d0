"""What the course says about lesson 6's wrong answers, as they are seen."""

from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
import tiktoken

import evaluate
import model
from data import Windows
from lessons import course
from text.prepare import folder_of
from tokenizer import BPETokenizer, load_any

bpe_use = course.checks(6)
WRONG = {
    name: {mistake: f for mistake, (f, _) in e["wrong"].items()} for name, e in bpe_use.exercises.items()
}
BYTES = [bytes([byte]) for byte in range(256)]


@pytest.fixture(scope="module")
def shakespeare():
    text, real = course.text()
    if not real:
        pytest.skip("the real text is not prepared here")
    return text, BPETokenizer.train([text[: int(0.9 * len(text))]], 1024).tokens


@pytest.mark.parametrize(("code", "size"), [("utf-8", 6), ("utf-16-le", 4), ("utf-32-le", 8)])
def test_two_letters_before_any_merge(code, size):
    assert len("안녕".encode(code)) == size
    assert len(bpe_use.reference_encode("안녕", BYTES, {})) == 6


@pytest.mark.parametrize("seed", [1, 2])
def test_the_reference_is_tiktoken_with_our_tokens(seed):
    texts, tokens, special = bpe_use.inputs_encode(seed)[0]
    ranks = {token: i for i, token in enumerate(tokens)}
    pattern = BPETokenizer(BYTES).pattern
    oracle = tiktoken.Encoding("", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    assert len(texts) > 20
    for text in texts:
        ids = oracle.encode(text, allowed_special="all")
        assert ids == bpe_use.reference_encode(text, tokens, special)
        assert oracle.decode(ids) == bpe_use.reference_decode(ids, tokens, special) == text


@pytest.mark.parametrize(
    ("mistake", "different", "running"),
    [
        ("longest match first", 0.278, 0.074),
        pytest.param("leftmost pair again", 0.281, 0.079, marks=pytest.mark.slow),
        pytest.param("from the left", 0.473, 0.327, marks=pytest.mark.slow),
    ],
)
def test_how_many_words_get_other_ids(shakespeare, mistake, different, running):
    """Shares of the different words, and of the words in a row, of the first 100,000 letters."""
    text, tokens = shakespeare
    words = Counter(bpe_use.split(text[:100_000]))
    right = BPETokenizer(tokens)
    other = {w for w in words if WRONG["6a"][mistake](w, tokens, {}) != right.encode(w).tolist()}
    assert len(other) / len(words) == pytest.approx(different, abs=0.001)
    assert sum(words[w] for w in other) / words.total() == pytest.approx(running, abs=0.001)
    assert all(right.decode(WRONG["6a"][mistake](w, tokens, {})) == w for w in other), "the text is right"


@pytest.mark.parametrize("size", [512, 1024])
def test_a_special_token_cut_up_is_five_ids(shakespeare, size):
    tokens = shakespeare[1][:size]
    assert len(WRONG["6a"]["special token cut up"]("<|end|>", tokens, {"<|end|>": size})) == 5


def test_letters_for_bytes_fail_outside_of_ascii():
    with pytest.raises(KeyError):
        WRONG["6a"]["letters, not bytes"]("안녕", BYTES, {})


@pytest.mark.parametrize(
    ("mistake", "found"),
    [("token by token, replaced", "\ufffd" * 4), ("errors ignored", "안"), ("latin-1", "ì\x95\x88ë")],
)
def test_a_wrong_decode_of_a_letter_and_a_piece(mistake, found):
    ids = list("안녕".encode())[:4]
    assert WRONG["6b"][mistake](ids, BYTES, {}) == found
    assert bpe_use.reference_decode(ids, BYTES, {}) == "안\ufffd"


@pytest.mark.parametrize("mistake", ["token by token", "strict"])
def test_not_every_id_decodes(mistake):
    with pytest.raises(UnicodeDecodeError):
        WRONG["6b"][mistake](list("안녕".encode())[:4], BYTES, {})


@pytest.mark.parametrize("mistake", ["loss per token", "perplexity per token", "bits per token"])
def test_a_measure_per_token_picks_letters(mistake):
    runs = {
        "letters": dict(loss=2.48, tokens=111_540, vocab_size=65, n_embd=128),
        "512 tokens": dict(loss=3.75, tokens=59_401, vocab_size=512, n_embd=128),
    }
    text = "x" * 111_540
    assert WRONG["6c"][mistake](runs, text, 1000)[0][0] == "letters"
    assert bpe_use.reference_compare(runs, text, 1000)[0][0] == "512 tokens"


def test_bits_and_parameters_are_those_of_the_project(datasets, monkeypatch):
    monkeypatch.setattr("text.prepare.DATASETS", datasets)
    windows, sizes = Windows("small", "val", 16), load_any(folder_of("small")).token_bytes()
    shape = dict(arch="gpt2", vocab_size=len(sizes), block_size=16, n_layer=1, n_head=2, n_embd=16)
    network = model.GPT(model.GPTConfig(**shape))
    indices = np.arange(windows.n_windows)
    found = evaluate.evaluate(network, windows, indices, "cpu", nullcontext(), token_bytes=sizes)
    y = windows.window_batch(indices)[1].numpy()
    run = dict(loss=found["loss"], tokens=(y != -1).sum(), vocab_size=len(sizes), n_embd=16)
    text = "x" * int(sizes[y[y != -1]].sum())
    count = sum(p.numel() for p in network.parameters())
    ((_, bits, parameters),) = bpe_use.reference_compare({"a": run}, text, count - len(sizes) * 16)
    assert bits == pytest.approx(found["bits_per_byte"])
    larger = model.GPT(model.GPTConfig(**{**shape, "vocab_size": len(sizes) + 9}))
    assert sum(p.numel() for p in larger.parameters()) - parameters == 9 * 16
