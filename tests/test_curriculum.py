"""Curricula: which windows an update sees, in which order, and what stays the same."""

import math
from collections import Counter

import pytest
import torch

import data
from techniques import curriculum
from text import prepare

T = 16
WHOLE = {"lr_decay_iters": -1, "max_iters": 8, "epochs": 0.0, "global_batch_size": 4, "curriculum_stages": ""}


@pytest.fixture
def small(datasets, monkeypatch):
    """small(): the training windows of the small text, T tokens each."""
    monkeypatch.setattr(prepare, "DATASETS", datasets)
    return lambda: data.Windows("small", "train", T, 3)


def ordered(windows, **settings):
    return curriculum.change_data(windows, {**WHOLE, **settings})


def test_length_cuts_the_same_windows_at_equal_tokens(small):
    """By default into quarters for a quarter of the 8 updates, then into halves, then not at all."""
    plain, cut = small(), ordered(small(), curriculum="length")
    for step, n in enumerate([4, 4, 8, 8, 16, 16, 16, 16]):
        x, y = plain.batch(step, 4)
        short, targets = cut.batch(step, 4)
        assert short.shape == (4 * T // n, n)
        assert [
            piece for row in x.tolist() for piece in [row[i : i + n] for i in range(0, T, n)]
        ] == short.tolist()
        assert targets.flatten().tolist() == y.flatten().tolist()
        halves = [cut.batch(step, 2, micro, 2)[0] for micro in range(2)]  # also as memory runs out
        assert torch.equal(torch.cat(halves), short)
        ranks = [cut.batch(step, 2, 0, 1, rank, 2)[0] for rank in range(2)]
        assert torch.equal(torch.cat(ranks), short)
    x, _ = cut.window_batch([0, 1])
    assert x.shape == (2, T)  # evaluation is as ever


def test_difficulty_sorts_the_first_epoch_by_the_bigrams_of_the_text(small):
    """Nats by the definition, pair by pair; each window once; the second epoch as without it."""
    plain, easy = small(), ordered(small(), curriculum="difficulty")
    order, offset = plain.epoch(0)
    batches = [plain.window_batch([number], offset) for number in range(plain.n_windows)]
    windows = [
        [(a, b) for a, b in zip(x[0].tolist(), y[0].tolist(), strict=True) if b >= 0] for x, y in batches
    ]
    pairs = Counter(pair for window in windows for pair in window)
    firsts = Counter(a for window in windows for a, _ in window)
    V = plain.tokens.limit
    nats = [
        sum(-math.log((pairs[a, b] + 1) / (firsts[a] + V)) for a, b in window) / len(window)
        for window in windows
    ]
    found = [nats[number] for number in easy.epoch(0)[0]]
    assert (
        all(low <= high + 1e-9 for low, high in zip(found, found[1:], strict=False)) and found[0] < found[-1]
    )
    assert sorted(easy.epoch(0)[0]) == sorted(order) and easy.epoch(0)[1] == offset
    assert easy.epoch(1)[0].tolist() == plain.epoch(1)[0].tolist()
    x, _ = easy.batch(0, 4)
    assert torch.equal(x, torch.cat([batches[number][0] for number in easy.epoch(0)[0][:4]]))


def test_no_curriculum_changes_nothing(small):
    assert "at" not in vars(ordered(small(), curriculum=""))


def test_without_a_table_of_pairs_single_tokens_are_counted(small, monkeypatch):
    monkeypatch.setattr(curriculum, "BIGRAMS", 1)
    windows = small()
    x, y = windows.window_batch(range(windows.n_windows), windows.epoch(0)[1])
    counts = Counter(y[y >= 0].tolist())
    row = [-math.log((counts[i] + 1) / (sum(counts.values()) + windows.tokens.limit)) for i in y[5].tolist()]
    assert curriculum.nats_per_token(windows)[5] == pytest.approx(sum(row) / T, rel=1e-9)


def test_domain_reads_one_dataset_first_and_then_goes_on_with_it(small, datasets, tmp_path, monkeypatch):
    for name in ("small", "twin"):
        (tmp_path / name).symlink_to(datasets / "small")
    monkeypatch.setattr(prepare, "DATASETS", tmp_path)
    windows = data.open_windows("small:0.5,twin:0.5", "train", T, 3)
    ordered(windows, curriculum="domain", curriculum_stages="twin:0.25,small:0.25")
    assert windows.counts(8).tolist() == [0, 8]  # 2 of 8 updates of 4 windows
    assert windows.counts(16).tolist() == [8, 8]
    assert windows.counts(1016).tolist() == [508, 508]
    alone = data.Windows("twin", "train", T, 3)
    assert torch.equal(windows.batch(1, 4)[0], alone.at(range(4, 8))[0])
    places = [windows.place_of(i) for i in range(16, 600)]
    assert [own for corpus, own in places if corpus == 1] == list(range(8, windows.counts(600)[1]))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"curriculum": "", "curriculum_stages": "4:0.5"}, "curriculum= is unknown"),
        ({"curriculum": "hard"}, "curriculum=hard is unknown; expected one of length, difficulty, domain"),
        ({"curriculum": "difficulty", "curriculum_stages": "4:0.1"}, "has no stages"),
        ({"curriculum": "domain"}, "is for mixtures, such as --dataset=a:0.7,b:0.3"),
        ({"curriculum": "length", "curriculum_stages": "5:0.5"}, "5 tokens do not divide block_size=16"),
        ({"curriculum": "length", "curriculum_stages": "4"}, "4 is not understood; expected TOKENS:SHARE"),
        ({"curriculum": "length", "curriculum_stages": "4:0.7,8:0.7"}, "at most 1 together"),
        ({"curriculum": "length", "curriculum_stages": "4:nan"}, "4:nan is not understood"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(small, settings, message):
    with pytest.raises(ValueError, match=message):
        ordered(small(), **settings)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["length", "difficulty"])
def test_a_run_resumes_inside_a_stage(train, tmp_path, kind):
    flags = f"--curriculum={kind}", "--dtype=float32", "--eval_interval=3"
    whole = train(*flags, "--max_iters=6", f"--out_dir={tmp_path / 'whole'}")["raw_model"].state_dict()
    train(*flags, "--max_iters=1", "--lr_decay_iters=6")
    ran = train("--init_from=resume", "--max_iters=6")
    again = ran["raw_model"].state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert ran["progress"].tokens == 6 * 4 * 32
