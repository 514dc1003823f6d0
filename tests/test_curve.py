"""Is my curve normal? Bands from five seeds; a sixth run stays inside, and six spoiled ones do not."""

import ast
import runpy

import pytest
import torch
import torch.nn.functional as F

import data
from conftest import ROOT, TINY
from runtime import curve
from runtime.report import read_rows
from runtime.trust import read_meta
from text import corpora, prepare

TEXT = 20_000  # characters, of which a run of 200 updates reads each six times: enough to learn val by heart
SETTINGS = """
n_embd, batch_size, max_iters, eval_interval, eval_iters = 64, 16, 200, 50, 0
"""


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Datasets with the same val text: plain, and leak, which trains on it."""
    folder = tmp_path_factory.mktemp("texts")
    text = "".join(text for text, _ in corpora.open_corpus("verse", size=TEXT).chunks())
    cut = len(text) * 4 // 5
    for name, part in (("plain", text[:cut]), ("leak", text), ("val", text[cut:])):
        (folder / f"{name}.txt").write_text(part, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "DATASETS", folder)
        for name in ("plain", "leak"):
            prepare.prepare(name, str(folder / f"{name}.txt"), val_input=str(folder / "val.txt"))
    return folder


@pytest.fixture
def run(run_script, texts, tmp_path, capsys):
    """run(seed, *flags, bands=...) trains with a config file; returns what is printed after the sample."""
    flags = [flag for flag in TINY if flag.split("=")[0][2:] not in SETTINGS]

    def run(seed: int, *more: str, bands="{}", dataset="plain") -> str:
        path, name = tmp_path / "config.py", str(texts / dataset)
        path.write_text(f"{SETTINGS}dataset = {name!r}\nexpected = {bands}\n", encoding="utf-8")
        run_script("train.py", str(path), *flags, f"--seed={seed}", *more)
        return capsys.readouterr().out.rpartition("\n---\n")[2]

    return run


@pytest.fixture(scope="module")
def measured():
    """The bands of five seeds: the first test that asks fills it."""
    return {}


@pytest.fixture
def expected(run, measured, tmp_path, monkeypatch, capsys):
    """Measured as the README says: five runs, then curve.py's line."""
    if not measured:
        folders = []
        for seed in range(1, 6):
            run(seed)
            folders.append(str((tmp_path / "out").rename(tmp_path / f"out-{seed}")))
        monkeypatch.setattr("sys.argv", ["runtime/curve.py", *folders])
        runpy.run_path(str(ROOT / "runtime/curve.py"), run_name="__main__")
        line = capsys.readouterr().out
        assert line.startswith("expected = {'val': '")
        measured.update(ast.literal_eval(line.removeprefix("expected = ")))
    return measured


# ---- a run that is normal, and six that are not
@pytest.mark.slow
def test_a_normal_run_is_called_normal(run, expected):
    yes = "is the curve normal? yes: val loss was as expected at steps 0, 50, 100, 150, 200\n"
    assert run(6, bands=expected).endswith(yes)


def see_everything(q, k, v, mask, dropout, causal, attention=F.scaled_dot_product_attention, **options):
    return attention(q, k, v, mask, dropout, False, **options)


def one_more(x, y):
    return x, torch.cat((y[:, 1:], torch.full_like(y[:, :1], -1)), dim=1)


def shuffled(x, y):
    return x, y.flatten()[torch.randperm(y.numel())].view_as(y)


def spoil(patch, change_batch):
    """In training and in evaluation, as a mistake in data.py would."""
    for name in ("batch", "window_batch"):
        read = getattr(data.Windows, name)
        patch.setattr(data.Windows, name, lambda *args, read=read: change_batch(*read(*args)))


SABOTAGE = {  # what it is: (how it is done, flags, dataset, what it is told)
    "learning rate x 30": (None, ["--learning_rate=0.09", "--muon_lr=0.6"], "plain", curve.ABOVE),
    "no causal mask": (see_everything, [], "plain", curve.BELOW),
    "targets shifted twice": (one_more, [], "plain", curve.ABOVE),
    "val in train": (None, [], "leak", curve.BELOW),
    "dropout 0.9": (None, ["--dropout=0.9"], "plain", curve.ABOVE),
    "labels shuffled": (shuffled, [], "plain", curve.ABOVE),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", SABOTAGE)
def test_a_spoiled_run_is_flagged(run, expected, what, monkeypatch, tmp_path, figure):
    change, flags, dataset, told = SABOTAGE[what]
    with monkeypatch.context() as patch:
        if change is see_everything:
            patch.setattr(F, "scaled_dot_product_attention", change)
        elif change:
            spoil(patch, change)
        *_, line, cause = run(6, *flags, bands=expected, dataset=dataset).splitlines()
    assert line.startswith("is the curve normal? NO: val loss ")
    assert cause.startswith(f"  {told}")
    assert all(flag.removeprefix("--") in cause for flag in flags) and "seed" not in cause
    left = curve.outside(curve.evaluations(read_rows(tmp_path / "out/metrics.jsonl")), expected)
    assert 200 in left
    figure(f"curve spoiled by {what}: flagged at {len(left)} of 5 evaluations, the first at step {min(left)}")


@pytest.mark.slow
def test_the_shipped_bands_hold_for_another_seed(shell, tmp_path):
    """config/tiny.py on the real text, where it is prepared."""
    if not (ROOT / "datasets/shakespeare_char").exists():
        pytest.skip("Tiny Shakespeare is not prepared")
    meta = read_meta(ROOT / "datasets/shakespeare_char")
    if "stand_in_for" in meta:
        pytest.skip("a stand-in for Tiny Shakespeare is prepared")
    done = shell("train.py", "config/tiny.py", "--seed=11", "--device=cpu", f"--out_dir={tmp_path}")
    assert done.stdout.endswith("as expected at steps 0, 50, 100, 150, 200\n"), done.stdout[-1000:]


# ---- the arithmetic
def test_bands_are_widened_by_their_width_and_at_least_by_two_hundredths():
    runs = [{0: 4.0, 10: 3.0, 20: 2.5}, {0: 4.001, 10: 3.2}, {0: 4.002, 10: 3.1}]
    assert curve.bands(runs) == {0: (3.98, 4.022), 10: (2.8, 3.4)}


@pytest.mark.parametrize("folders, words", [([], "two runs or more"), (["a", "b"], "a holds no run")])
def test_bands_of_nothing_are_refused(monkeypatch, folders, words):
    monkeypatch.setattr("sys.excepthook", None)  # main() puts its own there
    monkeypatch.setattr("sys.argv", ["runtime/curve.py", *folders])
    with pytest.raises(ValueError, match=words):
        curve.main()


def test_the_first_place_is_named_and_the_others_are_counted():
    expected = {0: (4.0, 4.2), 50: (2.0, 2.2), 100: (1.8, 1.9), 150: (1.7, 1.8)}
    found = {0: 4.1, 50: 2.3, 75: 9.9, 100: 1.85, 150: 1.9}
    assert curve.judge(found, expected, ["muon_lr=0.1"]).splitlines() == [
        "is the curve normal? NO: val loss 2.3000 at step 50, expected 2.0 to 2.2; outside at 2 of 4 steps: "
        "50, 150",
        f"  {curve.ABOVE} (not as in the config: muon_lr=0.1)",
    ]
    assert curve.judge({50: 1.9}, expected, []).splitlines()[1] == f"  {curve.BELOW}"
    assert curve.judge({75: 9.9}, expected, []) == curve.judge({0: 4.1}, expected, []) == ""


@pytest.fixture
def short(run_script, tmp_path, capsys):
    """short(expected, *flags) trains 20 updates on the small text; returns what it prints at the end."""
    shape = [flag for flag in TINY if not flag.startswith("--max_iters")]

    def run(expected: dict, *flags: str) -> str:
        config = tmp_path / "config.py"
        config.write_text(f"max_iters, expected = 20, {expected}", encoding="utf-8")
        run_script("train.py", str(config), *shape, "--dataset=small", *flags)
        return capsys.readouterr().out.rpartition("\n---\n")[2]

    return run


def test_another_text_and_a_shorter_run_are_not_judged(short, run_script, datasets, capsys):
    val = read_meta(datasets / "small")["splits"]["val"]["sha256"]
    for text, judged in ((val[:12], True), ("0123", False)):
        assert ("normal" in short({"val": text, 20: (0, 1)})) == judged
        run_script("train.py", "--init_from=resume", "--max_iters=30")
        assert ("normal" in capsys.readouterr().out) == judged
    assert "normal" not in short({10: (0, 1)}, "--max_iters=10")


@pytest.mark.parametrize("own", [True, False])
def test_bands_of_another_val_split_say_so_at_the_start(run_script, datasets, tmp_path, capsys, own):
    val = read_meta(datasets / "small")["splits"]["val"]["sha256"][:12] if own else "0123456789ab"
    config = tmp_path / "config.py"
    config.write_text(f"max_iters, expected = 4, {{'val': {val!r}, 4: (0, 9)}}", encoding="utf-8")
    shape = [flag for flag in TINY if not flag.startswith("--max_iters")]
    run_script("train.py", str(config), *shape, "--dataset=small")
    printed = capsys.readouterr().out
    line = "the expected losses are for another val split (sha256 0123456789ab...): not compared\n"
    assert (line in printed) == (not own)
    assert "no loss.png" not in printed  # it is drawn, also with "val" among the bands


def test_a_change_by_a_second_config_file_is_named(short, tmp_path):
    second = tmp_path / "second.py"
    second.write_text("learning_rate, seed = 0.1, 5", encoding="utf-8")
    said = short({20: (0, 1)}, str(second))
    assert "learning_rate=0.1" in said and "seed" not in said
