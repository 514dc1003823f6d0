"""Remedies: verdicts by hand, the texts, and a short form of the command."""

import numpy as np
import pytest

from conftest import ROOT
from data import Windows
from techniques import remedies
from text import prepare


def test_the_largest_jump_by_hand():
    """3.5 is 1.5 above the lowest loss before it, 2; the fall from 4 is no jump. Evaluations do not count."""
    losses = [4.0, 2.0, 3.0, 3.5, 1.0, 2.25]
    rows = [{"step": 0, "val_loss": 0.1}, *({"loss": loss} for loss in losses)]
    assert remedies.jump(rows) == 1.5
    assert remedies.jump([{"loss": 3.0}, {"loss": 2.0}]) == 0.0


def test_the_table_by_hand():
    """Gains of 0.9, 1, 1.1 nats: 1 -+ 4.3027 x 0.1 / sqrt(3); paired by seed, the losses overlap."""
    without = [2.0, 3.0, 4.0]
    numbers = {
        "": without,
        "helps": np.subtract(without, [0.9, 1.0, 1.1]),
        "hurts": np.add(without, [0.9, 1.0, 1.1]),
        "neither": np.add(without, [-0.1, 0.0, 0.1]),
        "the same": without,
    }
    found = {remedy: {remedies.LAST: losses} for remedy, losses in numbers.items()}
    lines = remedies.table("slow_convergence", found)
    assert lines[:3] == [
        "| a learning rate of 1e-4 | last val loss | gain, 95 % |  |",
        "|---|---|---|---|",
        "| no remedy | 3.000 (1) |  |  |",
    ]
    assert lines[3:] == [
        "| helps | 2.000 (0.9) | 0.752 to 1.25 | helps |",
        "| hurts | 4.000 (1.1) | -1.25 to -0.752 | hurts |",
        "| neither | 3.000 (1.1) | -0.248 to 0.248 | does nothing that is seen |",
        "| the same | 3.000 (1) | 0 to 0 | does nothing that is seen |",
    ]


def test_the_first_number_judges():
    """The last val loss rises, the best one falls: that hurts."""
    found = {
        "": {remedies.LAST: [2.0, 2.0], remedies.BEST: [2.0, 2.0]},
        "x": {remedies.LAST: [3.0, 3.0], remedies.BEST: [1.0, 1.0]},
    }
    assert remedies.table("overfitting", found)[-1] == "| x | 3.000 (0) | 1.000 (0) | -1 to -1 | hurts |"


def test_the_texts_share_their_val_split(tmp_path, monkeypatch):
    """Both begin as Tiny Shakespeare does, and are validated on all of its val split."""
    for module in (prepare, remedies):
        monkeypatch.setattr(module, "DATASETS", tmp_path)
    text = "".join(f"line {i} of a text\n" for i in range(3000))
    (tmp_path / "source.txt").write_text(text, encoding="utf-8")
    prepare.prepare("shakespeare_char", str(tmp_path / "source.txt"))
    monkeypatch.setattr(remedies, "TEXTS", {"remedies_more": 2500, "remedies_small": 250})
    remedies.prepare_texts()
    whole = {split: Windows(tmp_path / "shakespeare_char", split, 8) for split in ("train", "val")}
    for name, size in remedies.TEXTS.items():
        train, val = (Windows(tmp_path / name, split, 8) for split in ("train", "val"))
        n = whole["val"].n_tokens
        assert (train.n_tokens, val.n_tokens) == (size, n)
        assert np.array_equal(train.tokens[np.arange(size)], whole["train"].tokens[np.arange(size)])
        assert np.array_equal(*(each.tokens[np.arange(n)] for each in (val, whole["val"])))


@pytest.mark.slow
def test_a_short_form_of_the_command(shell, tmp_path):
    """8 updates at ten times the rate jump; a lower rate and a warm-up do not."""
    command = "-m techniques.remedies --only=instability --seeds=2 --share=0.04".split()
    done = shell(*command, f"--out_dir={tmp_path / 'out'}", timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = {line.split(" | ")[0]: line.split(" | ") for line in done.stdout.splitlines() if line[:2] == "| "}
    jumps = {name.removeprefix("| "): float(row[2].split()[0]) for name, row in list(rows.items())[1:]}
    assert len(jumps) == 4
    assert jumps["no remedy"] > 1
    assert max(jumps["a lower learning rate, 3e-3"], jumps["a warm-up of 100 updates"]) < 0.2
    assert (tmp_path / "out/remedies.png").read_bytes().startswith(b"\x89PNG")
