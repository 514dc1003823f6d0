"""compare.py: its numbers are those of metrics.jsonl and result.json, and what cannot be compared is said."""

import json
import math
import runpy
from pathlib import Path

import pytest

from conftest import ROOT
from runtime import plot
from techniques import compare


def write_run(folder, evaluations: list[tuple], **settings) -> str:
    """A folder with a run; evaluations: (step, tokens, seconds, val loss). finished=0: no result.json."""
    folder.mkdir()
    finished = settings.pop("finished", True)
    rows = [dict(zip(("step", "tokens", "seconds", "val_loss"), row, strict=True)) for row in evaluations]
    lines = [json.dumps({**row, "train_loss": row["val_loss"]}) + "\n" for row in rows]
    lines.insert(1, json.dumps({"step": 5, "tokens": 5, "seconds": 0.1, "loss": 3.0}) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    config = {"out_dir": str(folder), "seed": 1, "n_layer": 2, **settings}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    result = {"parameters": 1234, "training_time": rows[-1]["seconds"]}
    if finished:
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return str(folder)


@pytest.fixture
def two(tmp_path):
    """a: evaluated every 10 updates of 100 tokens in 1 s; b: every 20 of 50 tokens in 2 s, longer."""
    a = write_run(tmp_path / "a", [(10 * i, 1000 * i, 1.0 * i, 4.0 - 0.5 * i) for i in range(5)])
    b = write_run(
        tmp_path / "b", [(20 * i, 1000 * i, 2.0 * i, 3.9 - 0.2 * i) for i in range(4)], n_layer=4, finished=0
    )
    return f"{a},{b}"


def test_losses_at_equal_places_by_hand(two):
    found = compare.read_all(two)
    assert compare.points(found, "step") == [20, 40]  # b was evaluated at 20, a ends at 40
    assert compare.points(found, "tokens") == [1000, 2000, 3000]  # b ends at 3000
    a, b = found
    assert compare.loss_at(a, "step", 20) == (3.0, True)
    assert compare.loss_at(b, "step", 40) == (pytest.approx(3.5), True)
    assert compare.loss_at(b, "step", 30) == (pytest.approx((3.7 + 3.5) / 2), False)
    assert compare.loss_at(b, "seconds", 3.0) == (pytest.approx(3.6), False)
    assert compare.best_of(a) == (2.0, 40)
    lines = [line.split() for line in compare.tables(found)]
    assert ["n_layer", "2", "4"] in lines and ["parameters", "1,234", "not", "finished"] in lines
    assert not any(line[0] in ("seed", "out_dir") for line in lines)
    assert ["4.0", "2.0000", "3.5000"] in lines  # seconds: both were evaluated there, a at its end
    assert ["perplexity", f"{math.exp(2):.2f}", f"{math.exp(3.3):.2f}"] in lines


@pytest.mark.slow
def test_the_numbers_of_real_runs(train, tmp_path, capsys, monkeypatch):
    """Two runs of different lengths: what is printed is what metrics.jsonl and result.json say."""
    train("--max_new_tokens=0", f"--out_dir={tmp_path / 'long'}")
    train("--max_new_tokens=0", f"--out_dir={tmp_path / 'short'}", "--max_iters=10", "--muon_lr=0.01")
    capsys.readouterr()
    picture = tmp_path / "c.png"
    both = f"--runs={tmp_path / 'long'},{tmp_path / 'short'}"
    monkeypatch.setattr("sys.argv", ["compare.py", both, f"--picture={picture}"])
    runpy.run_path(str(ROOT / "techniques/compare.py"), run_name="__main__")
    out = capsys.readouterr().out
    val, results = {}, []
    for name in ("long", "short"):
        rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        val[name] = {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}
        results.append(json.loads((tmp_path / name / "result.json").read_text(encoding="utf-8")))
    lines = [line.split() for line in out.splitlines()]
    assert ["10", f"{val['long'][10]:.4f}", f"{val['short'][10]:.4f}"] in lines
    assert [
        "1,280",
        f"{val['long'][10]:.4f}",
        f"{val['short'][10]:.4f}",
    ] in lines  # 10 x 4 windows of 32 tokens
    assert ["best", "val", "loss", *(f"{result['best_val_loss']:.4f}" for result in results)] in lines
    assert ["at", "step", *(str(result["best_step"]) for result in results)] in lines
    assert ["muon_lr", "0.02", "0.01"] in lines and ["max_iters", "20", "10"] in lines
    assert "WARNING" not in out
    assert picture.read_bytes().startswith(b"\x89PNG")


DATA = {
    "sha256": "text", "val_input": "", "tokenizer_hash": "char",
    "splits": {"val": {"sha256": "v1", "tokens": 100, "learned": 100, "bytes": 200}},
}  # fmt: skip


def changed(**changes) -> dict:
    """DATA with other values; val is the sha256 of the val tokens."""
    val = dict(DATA["splits"]["val"], sha256=changes.pop("val", "v1"))
    val |= {key: changes.pop(key) for key in ("tokens", "learned", "bytes") if key in changes}
    return {**DATA, **changes, "splits": {"val": val}}


@pytest.mark.parametrize(
    ("data", "line", "bits"),
    [
        (changed(), "", 2.0),
        (changed(val="v2", sha256="other"), "different val splits: these losses cannot be compared", 2.0),
        (changed(val="v2", tokenizer_hash="bpe", tokens=50, learned=50), "bits per byte can", 1.0),
        (changed(val="v2", tokenizer_hash="bpe", bytes=190), "these losses cannot be compared", 400 / 190),
        (changed(learned=80), "", math.nan),
        ({}, "b: no checkpoint says", math.nan),
    ],
)
def test_what_cannot_be_compared_is_said(two, data, line, bits):
    """Of 100 tokens in 200 bytes, 4 ln 2 nats a token are 2 bits a byte."""
    found = compare.read_all(two)
    found[0]["data"], found[1]["data"] = DATA, data
    said = compare.warnings(found)
    assert [line in each for each in said] == ([True] if line else [])
    assert compare.bits_per_byte(found[1], 4 * math.log(2)) == pytest.approx(bits, nan_ok=True)
    assert compare.tables(found)[: len(said)] == said


def test_bad_input_is_one_line(two, tmp_path):
    a, b = two.split(",")
    for runs, message in (
        ("", "runs= is not enough; expected two runs or more"),
        (a, "is not enough; expected two runs or more"),
        (f"{a},{a}/", "is there twice"),
        (f"{a},{tmp_path / 'none'}", "none holds no run that was evaluated"),
        (f"{a},{b}/config.json", "cannot be a run's folder"),
    ):
        with pytest.raises(ValueError, match=message):
            compare.read_all(runs)


def test_a_damaged_result_is_one_line(two):
    path = Path(two.split(",")[0]) / "result.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="result.json is damaged"):
        compare.read_all(two)


def test_folders_of_one_name_keep_their_paths(two, tmp_path):
    (tmp_path / "other").mkdir()
    b = write_run(tmp_path / "other/a", [(0, 0, 0.0, 4.0), (10, 10, 1.0, 3.0)])
    names = [run["name"] for run in compare.read_all(f"{two.split(',')[0]},{b}")]
    assert names == [two.split(",")[0], b]


def test_the_plot_shows_the_end_of_each_run(two, tmp_path, monkeypatch):
    kept = []
    pyplot = plot.open_pyplot()
    monkeypatch.setattr(pyplot, "close", kept.append)
    compare.draw(compare.read_all(two), tmp_path / "c.png")
    (figure,) = kept
    low, high = figure.axes[0].get_ylim()
    assert low < 2.0 and high > 3.3  # where a ends, and b
    texts = [text.get_text() for text in figure.axes[2].texts]
    assert sorted(texts) == ["a 2", "b 3.3"] or sorted(texts) == ["a 2.000", "b 3.300"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["updates", "tokens", "seconds of training"]
    monkeypatch.undo()
    pyplot.close(figure)
