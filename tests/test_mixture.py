"""Mixtures: the setting, exact shares, each dataset's own epochs and losses, resuming, the picture."""

import json
import sys

import numpy as np
import pytest
import torch

import data
from conftest import TINY
from evaluate import fixed_windows
from techniques import mixture
from text import corpora, prepare, settle
from text.mixture import is_mixture, parts_of

T = 16


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with `verse_a` and `story_b`, two texts with one tokenizer, and `rows_c`, masked rows."""
    folder = tmp_path_factory.mktemp("datasets")
    verse = "".join(text for text, _ in corpora.open_corpus("verse", size=9000).chunks())
    (folder / "a.txt").write_text(verse + "\n", encoding="utf-8")
    (folder / "b.txt").write_text(verse[::-1][:4000], encoding="utf-8")
    rows = [json.dumps({"prompt": f"the {i % 7}", "response": "is it"}) for i in range(40)]
    (folder / "c.jsonl").write_text(
        "\n".join(rows).translate({48 + i: 97 + i for i in range(10)}), encoding="utf-8"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "DATASETS", folder)
        (folder / "all").mkdir()
        for name in "ab":
            text = (folder / f"{name}.txt").read_text(encoding="utf-8")
            (folder / f"all/{name}.txt").write_text(text, encoding="utf-8")
        prepare.prepare("letters", str(folder / "all"))  # a folder: its tokenizer has an end token
        letters = str(folder / "letters")
        prepare.prepare("verse_a", str(folder / "a.txt"), letters)
        prepare.prepare("story_b", str(folder / "b.txt"), letters)
        prepare.prepare("rows_c", str(folder / "c.jsonl"), letters, format="jsonl")
        prepare.prepare("other", str(folder / "b.txt"))
    return folder


@pytest.fixture
def here(two, run_script, monkeypatch):
    monkeypatch.setattr(prepare, "DATASETS", two)
    return run_script


@pytest.fixture
def mixed(here):
    """mixed(dataset, "--flag=1") trains a tiny model on a mixture; returns train.py's globals."""
    return lambda dataset, *flags: here("train.py", *TINY, f"--dataset={dataset}", "--dtype=float32", *flags)


def label_of(x: torch.Tensor, corpora) -> list[int]:
    """Which of two datasets each row of x (B, T) is from: the one whose ids contain it."""
    texts = [each.tokens[np.arange(each.n_tokens)].astype(np.uint16).tobytes() for each in corpora]
    return [[row.numpy().astype(np.uint16).tobytes() in text for text in texts].index(True) for row in x]


@pytest.mark.parametrize(
    "dataset, message",
    [
        ("a:0.7,b", "'b' in dataset=a:0.7,b has no share; expected NAME:SHARE, as in a:0.7,b:0.3"),
        ("a:0.7,:0.3", "':0.3' in dataset"),
        ("a:0.7,b:0.2", "add up to 0.9; expected 1"),
        ("a:0.7,a:0.3", "names a twice"),
        ("a:0.3333,b:0.6667", "a has the share 0.3333; expected 0.001 to 1, in thousandths"),
        ("a:0,b:1", "a has the share 0; expected"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_line(dataset, message):
    assert is_mixture(dataset)
    with pytest.raises(ValueError, match=message):
        parts_of(dataset)


def test_paths_are_no_mixtures(two, tmp_path, monkeypatch):
    disk = "C" + ":"
    for path in (
        "mine.txt",
        "../texts/mine",
        f"{disk}\\texts\\mine.txt",
        f"{disk}/texts",
        "a:b",
        "datasets/x.0.3",
    ):
        assert not is_mixture(path)
    (tmp_path / "one,two:0.5").write_text("text", encoding="utf-8")
    assert not is_mixture(str(tmp_path / "one,two:0.5"))
    assert parts_of(f"{disk}\\texts\\a.txt:0.7,b:0.3") == {f"{disk}\\texts\\a.txt": 700, "b": 300}


def test_a_mixture_may_be_longer_than_a_file_name(here):
    """A name in a folder has at most 255 characters; 20 datasets have more."""
    long = ",".join(f"dataset_number_{i}:0.05" for i in range(20))
    assert is_mixture(long) and len(parts_of(long)) == 20
    with pytest.raises(ValueError, match="dataset 'dataset_number_0' is not prepared"):
        settle.settle(long)


def test_blanks_around_a_name_and_a_share_do_not_count():
    assert parts_of("a: 0.7, my verse :0.3") == {"a": 700, "my verse": 300}


def test_a_checkpoint_with_an_empty_mixture_is_compared_as_any_other(here):
    """Hostile: it would pass for every dataset."""
    trained = {**settle.meta_of("verse_a"), "mixture": {}}
    settle.require_same_text(trained, settle.meta_of("verse_a"), "verse_a", "out", "go on")
    with pytest.raises(ValueError, match="out was trained on another text than"):
        settle.require_same_text(trained, settle.meta_of("story_b"), "story_b", "out", "go on")
    with pytest.raises(ValueError, match="out: dataset: mixture is a list; expected dict"):
        settle.require_same_text({"mixture": []}, settle.meta_of("verse_a"), "verse_a", "out", "go on")


def test_another_tokenizer_names_the_command_that_prepares_with_this_one(here):
    with pytest.raises(
        ValueError, match="other has another tokenizer than verse_a; prepare it with"
    ) as caught:
        settle.settle("verse_a:0.5,other:0.5")
    assert "--name=other-as-verse_a --tokenizer=verse_a" in str(caught.value)
    with pytest.raises(ValueError, match="names .*verse_a twice"):
        settle.settle(f"verse_a:0.5,{prepare.DATASETS / 'verse_a'}:0.5")


def test_shares_are_exact_in_any_1000_windows_and_each_dataset_has_its_own_series(here):
    """Against a plain reading of each: the k-th window of a dataset in the mixture is its own k-th."""
    windows = data.open_windows("verse_a:0.7,story_b:0.3", "train", T, 5)
    alone = [data.Windows(name, "train", T, 5) for name in ("verse_a", "story_b")]
    n = 1400
    xs, ys = windows.at(range(n))
    labels, seen = [], [0, 0]
    for x, y in zip(xs, ys, strict=True):
        twins = [each.at([k]) for each, k in zip(alone, seen, strict=True)]
        label = [torch.equal(x, a[0]) and torch.equal(y, b[0]) for a, b in twins].index(True)
        seen[label] += 1
        labels.append(label)
    ones = np.cumsum([0, *labels])
    assert set((ones[1000:] - ones[:-1000]).tolist()) == {300}
    assert windows.counts(n).tolist() == seen and len(set(labels[:20])) == 2
    assert labels[:1000] != sorted(labels[:1000])


def test_the_same_windows_however_divided(here):
    windows = data.open_windows("verse_a:0.7,story_b:0.3", "train", T, 5)
    whole, _ = windows.batch(3, 8)
    parts = [windows.batch(3, 2, micro, 2, rank, 2)[0] for micro in range(2) for rank in range(2)]
    assert torch.equal(whole, torch.cat(parts))


def test_fixed_windows_are_in_proportion_to_the_shares_and_none_is_twice(here):
    shape = "verse_a:0.7,story_b:0.3", T
    train, val = (data.open_windows(shape[0], split, T) for split in ("train", "val"))
    most = min(each.n_windows / share for each, share in zip(val.corpora, (0.7, 0.3), strict=True))
    assert abs(val.n_windows - most) < 3
    for windows, numbers in fixed_windows(train, val, 0):
        share = (windows.corpus_at(numbers) == 0).mean()
        assert abs(share - 0.7) <= 1 / len(numbers)
        x, _ = windows.window_batch(numbers)
        assert len({tuple(row.tolist()) for row in x}) == len(x)
        assert label_of(x, windows.corpora) == windows.corpus_at(numbers).tolist()


def test_text_and_masked_rows_mix(here):
    windows = data.open_windows("verse_a:0.5,rows_c:0.5", "train", T)
    x, y = windows.at(range(40))
    rows = data.Windows("rows_c", "train", T).at(range(windows.counts(40)[1]))
    learned = [row for row in y.tolist() if row in rows[1].tolist()]
    assert len(learned) == windows.counts(40)[1] and (rows[1] < 0).any()
    assert windows.replies() == data.Windows("rows_c", "train", T).replies()
    with pytest.raises(ValueError, match="pack=False groups samples"):
        data.open_windows("verse_a:0.5,rows_c:0.5", "train", T, pack=False)


@pytest.mark.slow
def test_a_run_says_and_records_each_dataset(mixed, here, tmp_path, capsys):
    """The losses by an evaluation of each dataset alone; together, nats over targets of its fixed windows."""
    ran = mixed("verse_a:0.7,story_b:0.3", "--eval_iters=0", "--max_iters=4", "--eval_interval=2")
    printed = capsys.readouterr().out
    n = ran["train_windows"].corpora[0].n_tokens
    assert f"  70.0% verse_a: {n:,} tokens" in printed and "  30.0% story_b: 3,600 tokens" in printed
    rows = [
        json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    row = [row for row in rows if "val_loss" in row][-1]
    model, val = ran["raw_model"].eval(), ran["val_windows"]
    nats, targets = np.zeros(2), np.zeros(2)
    for number in ran["val_set"][1]:
        x, y = val.window_batch([number])
        logp = torch.log_softmax(model(x), -1)[0]
        for t, target in enumerate(y[0].tolist()):
            if target >= 0:
                label = int(number >= val.kept[0])
                nats[label] -= logp[t, target].item()
                targets[label] += 1
    assert row["val_loss_verse_a"] == pytest.approx(nats[0] / targets[0], abs=1e-5)
    assert row["val_loss_story_b"] == pytest.approx(nats[1] / targets[1], abs=1e-5)
    assert row["val_loss"] == pytest.approx(nats.sum() / targets.sum(), abs=1e-5)
    epochs = ran["train_windows"].counts(16) / [each.n_windows for each in ran["train_windows"].corpora]
    assert f"verse_a {row['val_loss_verse_a']:.4f} after {epochs[0]:.2f} epochs" in printed
    here("evaluate.py", f"--out_dir={tmp_path / 'out'}", "--dtype=float32")
    assert f"  story_b: loss {row['val_loss_story_b']:.3f}"[:-1] in capsys.readouterr().out
    here("sample.py", f"--out_dir={tmp_path / 'out'}", "--max_new_tokens=3")


@pytest.mark.slow
def test_a_resumed_run_is_bit_equal_and_keeps_its_mixture(mixed, here, tmp_path):
    ab = "verse_a:0.7,story_b:0.3"
    whole = mixed(ab, "--max_iters=4", f"--out_dir={tmp_path / 'whole'}")["raw_model"].state_dict()
    mixed(ab, "--max_iters=2", "--lr_decay_iters=4")
    resume = "train.py", "--init_from=resume", f"--out_dir={tmp_path / 'out'}", "--max_iters=4"
    for other in ("verse_a:0.6,story_b:0.4", "verse_a", "story_b:0.7,verse_a:0.3"):
        with pytest.raises(ValueError, match="was trained on"):
            here(*resume, f"--dataset={other}")
    again = here(*resume)["raw_model"].state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_a_resumed_run_names_the_other_dataset_before_a_technique_looks_at_it(mixed, here, tmp_path):
    mixed("verse_a:0.7,story_b:0.3", "--max_iters=1", "--curriculum=domain")
    with pytest.raises(ValueError, match="was trained on verse_a:0.7,story_b:0.3, not on verse_a"):
        here("train.py", "--init_from=resume", f"--out_dir={tmp_path / 'out'}", "--dataset=verse_a")


@pytest.mark.slow
def test_the_picture_shows_each_dataset(mixed, tmp_path, monkeypatch):
    for share in (0.9, 0.1):
        mixed(
            f"verse_a:{share},story_b:{1 - share:.1f}", "--max_iters=1", f"--out_dir={tmp_path / str(share)}"
        )
    lines = mixture.draw([str(tmp_path / "0.9"), str(tmp_path / "0.1")], tmp_path / "m.png")
    assert [line.split()[0] for line in lines[1:3]] == ["10.0%", "90.0%"]
    assert (tmp_path / "m.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="is no run"):
        mixture.draw([str(tmp_path / "nowhere")], tmp_path / "m.png")


@pytest.mark.slow
def test_ordinary_runs_do_not_import_it(train, monkeypatch):
    for name in ("techniques.mixture", "techniques.curriculum", "techniques.augment"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    train("--max_iters=1")
    assert "techniques.mixture" not in sys.modules and "techniques.augment" not in sys.modules
