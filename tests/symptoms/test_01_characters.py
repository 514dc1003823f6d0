"""Lesson 1: each wrong answer does to training what the lesson says it does."""

import os

import numpy as np
import pytest
import torch

from lessons.checks import characters
from runtime.trust import read_meta
from tokenizer import load_any

exercises = characters.exercises
PROGRAM = """
from lessons import course
from lessons.checks.characters import exercises

course.checks(1)  # its words are put to it
for vocab in (exercises["1a"]["wrong"]["set not sorted"][0], exercises["1a"]["reference"]):
    print(vocab("To be, or not to be: that is the question")[0])
"""


def wrong(name: str, mistake: str):
    return exercises[name]["wrong"][mistake][0]


# ---- 1a
@pytest.mark.slow
def test_a_set_gives_other_ids_in_another_process(shell):
    lines = []
    for seed in "12":
        done = shell("-c", PROGRAM, env={**os.environ, "PYTHONHASHSEED": seed})
        assert done.returncode == 0, done.stderr
        lines.append(done.stdout.splitlines())
    assert lines[0][0] != lines[1][0], "a set"
    assert lines[0][1] == lines[1][1], "a sorted set"


@pytest.mark.parametrize("mistake", ["set not sorted", "order of appearance", "ids from 1, both ways"])
def test_a_round_trip_does_not_find_this(mistake):
    assert characters.comes_back(wrong("1a", mistake), characters.PLAY) == ""


def test_ids_from_1_do_not_fit_into_an_embedding():
    vocabulary, code = wrong("1a", "ids from 1")(characters.PLAY)
    table = torch.nn.Embedding(len(vocabulary), 4)
    with pytest.raises(IndexError):
        table(torch.tensor([code[character] for character in characters.PLAY]))


# ---- 1b
def test_a_split_is_that_of_the_project(datasets):
    meta = read_meta(datasets / "small")
    ids = torch.arange(sum(part["tokens"] for part in meta["splits"].values()))
    train, val = characters.reference_split(ids, 0.9)
    assert (len(train), len(val)) == tuple(meta["splits"][part]["tokens"] for part in ("train", "val"))
    text = (datasets / "small.txt").read_text(encoding="utf-8")
    begun = np.fromfile(datasets / "small/val.bin", dtype=np.uint16)[:50]
    assert load_any(datasets / "small").decode(begun) == text[val[0] : val[0] + 50]


def test_overlapping_windows_share_nearly_all_of_val():
    train, val = wrong("1b", "overlapping windows shuffled")(torch.arange(5000), 0.9)
    assert torch.isin(val, train).double().mean() > 0.99


# ---- 1c
@pytest.mark.parametrize(("mistake", "share"), [("y = x", 1), ("roll inside the window", 1 / 50)])
def test_how_many_targets_are_wrong(mistake, share):
    ids, starts = torch.arange(1000), torch.arange(0, 900, 100)
    _, right = characters.twin_windows(ids, starts, 50)
    _, y = wrong("1c", mistake)(ids, starts, 50)
    assert (y != right).double().mean() == pytest.approx(share)


def test_float_ids_fail_only_in_the_embedding():
    x, _ = wrong("1c", "float ids")(torch.arange(100), torch.tensor([3, 5]), 7)
    with pytest.raises(RuntimeError, match="Float"):
        torch.nn.Embedding(100, 4)(x)


# ---- 1d
def test_how_many_starts_there_are():
    question, n, T = characters.predictions["1.1"], 1_003_854, 64
    assert question["answer"] == n - T == len(torch.arange(n).unfold(0, T + 1, 1))
    assert 15_685 in question["wrong"]
    assert len(torch.arange(n)[:-1].unfold(0, T, T)) == 15_685


@pytest.mark.parametrize(
    ("mistake", "fact", "found"),
    [("last window never drawn", "starts never drawn", "199"), ("one start per batch", "rows", False),
     ("global generator", "the same in a second call", False), ("step ignored", "different batches", 8)],
)  # fmt: skip
def test_what_is_wrong_with_these_starts(mistake, fact, found):
    assert (
        characters.facts_of_starts(wrong("1d", mistake), *characters.exercises["1d"]["inputs"](1)[0])[fact]
        == found
    )


@pytest.mark.parametrize(
    ("mistake", "one", "other"), [("seed plus step", (1, 2), (2, 1)), ("seed times 1000", (1, 1000), (2, 0))]
)
def test_two_runs_share_a_batch(mistake, one, other):
    starts = wrong("1d", mistake)
    assert torch.equal(starts(1_003_854, 9, 64, *one), starts(1_003_854, 9, 64, *other))
