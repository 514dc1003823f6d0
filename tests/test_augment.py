"""Augmentation: what a window becomes, that it is drawn by its number, and that the rest stays as it is."""

import numpy as np
import pytest
import torch

import data
from techniques import augment
from text import prepare
from tokenizer import CharTokenizer, load_any

T = 64


@pytest.fixture
def small(datasets, monkeypatch):
    """small(): the training windows of the small text, T tokens each."""
    monkeypatch.setattr(prepare, "DATASETS", datasets)
    return lambda: data.Windows("small", "train", T, 3)


def rewrite(way: str, text: str, alphabet: str) -> tuple[str, list[bool]]:
    """What one way makes of a text: (the new text, which places are scored)."""
    letters = CharTokenizer.train(sorted(set(alphabet)), [])
    rewriter = augment.Rewriter([letters.decode([i]) for i in range(letters.vocab_size)])
    scored = np.arange(len(text)) > 0
    ids, scored = rewriter(way, letters.encode(text).astype(np.int64), scored, np.random.default_rng(0))
    return letters.decode(ids.tolist()), scored.tolist()


@pytest.mark.parametrize(
    "way, text, expected, left_out",
    [
        ("upper", "Aa, c", "AA, C", 0),
        ("lower", "AB, c", "aB, c", 0),  # the alphabet has no b
        ("one line", "A\n\nc.", "A  c.", 0),
        ("no marks", "A, c. c", "A c ccc", 2),
        ("single blanks", "A \n c\n\nc", "A c\ncccc", 3),
    ],
)
def test_each_way(way, text, expected, left_out):
    """Characters that are left out make room at the end, which is not scored."""
    found, scored = rewrite(way, text, "ABCac ,.\n")
    assert found == expected and len(found) == len(text)
    assert scored == [False] + [True] * (len(text) - 1 - left_out) + [False] * left_out


def test_marks_are_exchanged_each_kind_for_another_one():
    text = "a, b. c, d!"
    found, scored = rewrite("other marks", text, "abcd ,.!")
    kinds = dict(zip(text, found, strict=True))
    assert all(kinds[mark] != mark and kinds[mark] in ",.!" for mark in ",.!")
    assert [kinds[c] for c in text] == list(found) and len(set(kinds.values())) == len(kinds)
    assert all(scored[1:])


def test_windows_are_drawn_by_their_number_and_others_stay(small):
    plain, changed = small(), augment.change_data(small(), {"augment": 0.3})
    x, y = changed.batch(0, 200)
    before, _ = plain.batch(0, 200)
    share = (x != before).any(1).float().mean().item()
    assert 0.2 < share < 0.4
    assert x.shape == y.shape == (200, T)
    follows = (y[:, :-1] == x[:, 1:]) | (y[:, :-1] < 0)
    assert follows.all()  # y is x one token later
    parts = [changed.batch(0, 50, micro, 2, rank, 2)[0] for micro in range(2) for rank in range(2)]
    assert torch.equal(torch.cat(parts), x)
    assert torch.equal(changed.window_batch([3])[0], plain.window_batch([3])[0])
    text = load_any(prepare.DATASETS / "small").decode(x[(x != before).any(1)][0].tolist())
    assert len(text) == T


def test_a_share_of_0_changes_nothing(small):
    plain, same = small(), augment.change_data(small(), {"augment": 0.0})
    assert all(map(torch.equal, plain.batch(0, 100), same.batch(0, 100)))
    assert "at" not in vars(same)


def test_what_cannot_be_is_one_line(small, tmp_path, monkeypatch):
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"augment={share} makes no sense; expected a share from 0 to 1"):
            augment.change_data(small(), {"augment": share})
    (tmp_path / "a.txt").write_text("some words and more words " * 90, encoding="utf-8")
    monkeypatch.setattr(prepare, "DATASETS", tmp_path / "datasets")
    prepare.prepare("pairs", str(tmp_path / "a.txt"), "bpe", 260)
    with pytest.raises(ValueError, match="augment changes characters, and this text is bpe tokens"):
        augment.change_data(data.Windows("pairs", "train", 8), {"augment": 0.1})
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 30, encoding="utf-8")
    prepare.prepare("rows", str(tmp_path / "rows.jsonl"))
    with pytest.raises(ValueError, match="augment is for running text"):
        augment.change_data(data.Windows("rows", "train", 8), {"augment": 0.1})


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_and_0_is_the_plain_run(train, tmp_path):
    flags = "--dtype=float32", "--eval_interval=2"
    runs = {
        name: train(*flags, "--max_iters=4", *own, f"--out_dir={tmp_path / name}")["raw_model"].state_dict()
        for name, own in {"plain": [], "zero": ["--augment=0"], "all": ["--augment=1"]}.items()
    }
    assert all(torch.equal(runs["plain"][name], runs["zero"][name]) for name in runs["plain"])
    assert not torch.equal(runs["plain"]["wte.weight"], runs["all"]["wte.weight"])
    train(*flags, "--augment=1", "--max_iters=2", "--lr_decay_iters=4")
    again = train("--init_from=resume", "--max_iters=4")["raw_model"].state_dict()
    assert all(torch.equal(runs["all"][name], again[name]) for name in again)
