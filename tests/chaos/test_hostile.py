"""Hostile files: checkpoints, datasets and tokenizers made by a stranger run no code, ask for no terabyte and
end in one line."""

import json
import math
import os
import pickle
import shutil
import time

import numpy as np
import pytest
import torch

import tokenizer
from conftest import ROOT
from runtime import checkpoint
from test_errors import change_files, check, command_of, here, made, report, run, snapshot

__all__ = ["here", "made"]  # fixtures: two datasets and a run, copied for each case
pytestmark = pytest.mark.slow


class Canary:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("canary",)


def model_config(**changes):
    return lambda saved: saved["model_config"].update(changes)


def settings(**changes):
    return lambda saved: saved["config"].update(changes)


def changed(**changes):
    return lambda saved: saved.update(changes)


def weight(make):
    """The first matrix of the model becomes make(matrix)."""
    return lambda saved: saved["model"].update({"wte.weight": make(saved["model"]["wte.weight"])})


def average(make):
    """The first average of the optimizer becomes make(average)."""

    def change(saved):
        state = saved["optimizer"]["state"][0]
        name = next(name for name, t in state.items() if t.ndim)
        state[name] = make(state[name])

    return change


def meta(**changes):
    """A change of a dataset's meta.json; a value may be a function of the old one."""

    def change(content):
        for name, value in changes.items():
            content[name] = value(content[name]) if callable(value) else value

    return change


def counts(**changes):
    return meta(splits=lambda splits: {**splits, "train": {**splits["train"], **changes}})


RESUME = "train.py --init_from=resume --max_iters=4"
META, IDS, TOKENS = (f"datasets/small/{name}" for name in ("meta.json", "train.bin", "tokenizer.json"))
PAIRS = "train.py --dataset=pairs --out_dir={here}/new"
NEW = "train.py --out_dir={here}/new"
BPE = {
    "type": "bpe",
    "pattern": r"\s+|\S+",
    "special_tokens": [],
    "tokens": [bytes([i]).replace(b"\\", rb"\\").decode("utf-8", "backslashreplace") for i in range(256)],
}
USE = "data.py --input=in.txt --name=new --tokenizer=t.json"
TEXT = "To be, or not to be. " * 9
NO = "is not a checkpoint of tinylm"
# ---- checkpoints: what is wrong, words of the message, the change; for sample.py, and to resume from it
CHECKPOINTS = [
    ("code", "cannot be read", changed(extra=Canary())),
    ("code in the place of a number", "cannot be read", changed(step=Canary())),
    ("a width of a trillion", "do not fit the model", model_config(n_embd=10**12)),
    ("a billion layers", "do not fit the model", model_config(n_layer=10**9)),
    ("a billion heads", "do not fit the model", model_config(n_head=10**9)),
    ("a vocabulary of a trillion", "do not fit the model", model_config(vocab_size=10**12)),
    ("a window of a trillion", "do not fit the model", model_config(block_size=10**12)),
    ("a number of 400 digits", "too large", model_config(n_ff=10**400)),
    ("no layers", "n_layer", model_config(n_layer=0)),
    ("a width below zero", "n_embd", model_config(n_embd=-4)),
    ("a word for a width", "n_embd is a str", model_config(n_embd="32")),
    ("a list for an architecture", "arch is a list", model_config(arch=[])),
    ("nothing for a width", "n_embd is a NoneType", model_config(n_embd=None)),
    ("a rope of NaN", "rope_theta", model_config(rope_theta=math.nan)),
    ("two shapes", "not in its settings", settings(n_embd=10**12)),
    ("a tensor for a width", "not in its settings", settings(n_embd=torch.zeros(2))),
    ("a list for a shape", NO, changed(model_config=[])),
    ("a list for settings", NO, changed(config=[1])),
    ("nothing for settings", NO, changed(config=None)),
    ("a word for a step", NO, changed(step="3")),
    ("a step below zero", NO, changed(step=-1)),
    ("a step of 400 digits", NO, changed(step=10**400)),
    ("NaN seconds", NO, changed(seconds=math.nan)),
    ("a number for a tokenizer", NO, changed(tokenizer=5)),
    ("a list for a dataset", NO, changed(dataset=[])),
    ("a list for a model", NO, changed(model=[])),
    ("a number for a weight", "expected names and tensors", weight(lambda t: 5)),
    ("a NaN", "NaN", weight(lambda t: t * math.nan)),
    ("one infinity", "infinity", weight(lambda t: t.index_fill(0, torch.tensor([0]), math.inf))),
    ("one number, a billion times", "larger than what the file holds",
     weight(lambda t: torch.zeros(1).expand(10**6, 10**6))),
    ("a sparse matrix", "no plain tensor", weight(lambda t: t.to_sparse())),
    ("a weight on no device", "no plain tensor", weight(lambda t: torch.empty(10**6, 10**6, device="meta"))),
    ("a weight of another shape", "do not fit the model", weight(lambda t: t[:-1].clone())),
    ("a weight too many", "do not fit the model", lambda saved: saved["model"].update(x=torch.zeros(1))),
]  # fmt: skip
# ---- only to resume
TO_RESUME = [
    ("an optimizer of nothing", "optimizer", changed(optimizer=None)),
    ("an optimizer that is a list", "optimizer", changed(optimizer=[1])),
    ("an optimizer without groups", "param_groups", changed(optimizer={"state": {}})),
    ("a group that is a word", "optimizer", changed(optimizer={"state": {}, "param_groups": ["x"]})),
    ("an average of NaN", "NaN", average(lambda t: t * math.nan)),
    ("an average of another shape", "another shape", average(lambda t: t[:1].clone())),
    ("an average that is a word", "expected names and tensors", average(lambda t: "x")),
    ("an average of a parameter that is not", "damaged",
     lambda saved: saved["optimizer"]["state"].update({10**9: {}})),
    ("a word for a loss", "val_loss", changed(val_loss="x")),
    ("a scaler of words", "scaler", changed(scaler={"scale": "x"})),
    ("a word for a setting", "logits_mb is a str", settings(logits_mb="8")),
    ("a list for a setting", "optimizer is a list", settings(optimizer=[])),
    ("NaN for a setting", "learning_rate", settings(learning_rate=math.nan)),
]  # fmt: skip
# ---- datasets and tokenizers: what is wrong, the command, words, files; functions change the JSON of a file
FILES = [
    ("ids above the vocabulary", "evaluate.py --split=train", "has the id 65535", {IDS: b"\xff"}),
    ("a trillion tokens", NEW, "is not what meta.json says", {META: counts(tokens=10**12)}),
    ("tokens of 400 digits", NEW, "too large", {META: counts(tokens=10**400)}),
    ("fewer tokens than none", NEW, "prepare the dataset again", {META: counts(tokens=-1)}),
    ("a word for tokens", NEW, "tokens is a str", {META: counts(tokens="9")}),
    ("shards that are a number", NEW, "shards", {META: counts(shards=10**12)}),
    ("shards that do not add up", NEW, "shards", {META: counts(shards=[1, 2])}),
    ("shards of words", NEW, "shards", {META: counts(shards=["1"])}),
    ("a split that is a list", NEW, "train is a list", {META: meta(splits={"train": []})}),
    ("splits that are a list", NEW, "splits is a list", {META: meta(splits=[])}),
    ("a split outside of the folder", NEW, "does not exist; prepare it with --train_ratio",
     {META: meta(splits=lambda splits: {"../../x": splits["train"]})}),
    ("ids that are objects", NEW, "dtype", {META: meta(dtype="object")}),
    ("ids of 8 bytes", NEW, "dtype", {META: meta(dtype="float64")}),
    ("a list for a dtype", NEW, "dtype is a list", {META: meta(dtype=["uint16"])}),
    ("nothing for a name", NEW, "name is a NoneType", {META: meta(name=None)}),
    ("a list for a sha256", NEW, "sha256 is a list", {META: meta(sha256=[])}),
    ("a list for what was dropped", NEW, "dropped is a list", {META: meta(dropped=[])}),
    ("an entropy of NaN", NEW, "too large", {META: meta(nats_per_char=math.nan)}),
    ("a stand-in without a reason", NEW, "stand_in_for is a int", {META: meta(stand_in_for=1)}),
    ("an end above the vocabulary", NEW, "too large", {META: meta(end_id=10**9)}),
    ("a larger vocabulary than there is", NEW, "not that of the token files",
     {META: meta(vocab_size=10**9)}),
    ("a meta.json that is a list", NEW, "expected a dict", {META: "[]"}),
    ("a meta.json that is deep", NEW, "prepare the dataset again", {META: "[" * 100_000}),
    ("a meta.json that is not UTF-8", NEW, "prepare the dataset again", {META: b"\xff"}),
    ("samples that never end", PAIRS, "has no end token; prepare", {"datasets/pairs/train.bin": b"\x01"}),
    ("another tokenizer than the ids'", NEW, "not that of the token files", {TOKENS: json.dumps(BPE)}),
    ("a tokenizer that is a list", USE, "no tokenizer", {"t.json": "[]"}),
    ("a tokenizer that is deep", USE, "no tokenizer", {"t.json": "[" * 100_000}),
    ("tokens that are a word", USE, "a list of strings", {"t.json": json.dumps({**BPE, "tokens": "abc"})}),
    ("tokens that are numbers", USE, "a list of strings",
     {"t.json": json.dumps({**BPE, "tokens": list(range(256))})}),
    ("no tokens", USE, "256", {"t.json": json.dumps({**BPE, "tokens": []})}),
    ("a token twice", USE, "must all be different",
     {"t.json": json.dumps({**BPE, "tokens": [*BPE["tokens"], "ab", "ab"]})}),
    ("a token of nothing", USE, "not empty", {"t.json": json.dumps({**BPE, "tokens": [*BPE["tokens"], ""]})}),
    ("special tokens that are numbers", USE, "a list of strings",
     {"t.json": json.dumps({**BPE, "special_tokens": [1]})}),
    ("a pattern that is no pattern", USE, "no tokenizer", {"t.json": json.dumps({**BPE, "pattern": "("})}),
    ("a pattern that is a number", USE, "pattern a string", {"t.json": json.dumps({**BPE, "pattern": 1})}),
    ("a pattern of empty words", USE, "loses characters", {"t.json": json.dumps({**BPE, "pattern": "x*"})}),
    ("a pattern that loses text", USE, "loses characters", {"t.json": json.dumps({**BPE, "pattern": "a"})}),
    ("a pattern that never ends", USE, "no tokenizer",
     {"t.json": json.dumps({**BPE, "pattern": r"(?:a+)+b|(?:a|a)+c|[\s\S]"})}),
]  # fmt: skip
CASES = [
    *((f"{name} (sample)", "sample.py", words, {"out/best.pt": change})
      for name, words, change in CHECKPOINTS),
    *((name, RESUME, words, {"out/best.pt": None, "out/ckpt.pt": change})
      for name, words, change in CHECKPOINTS + TO_RESUME),
    *FILES,
]  # fmt: skip
AS_A_PROCESS = [
    "code (sample)",
    "a billion layers (sample)",
    "one number, a billion times",
    "a step of 400 digits",
    "a pattern of empty words",
]


def spoil(here, files: dict) -> None:
    """As change_files() of test_errors.py; a function changes JSON, bytes fill a token file."""
    rest = {"in.txt": TEXT}
    for name, content in files.items():
        path = here / name
        if path.suffix == ".json" and callable(content):
            value = json.loads(path.read_text(encoding="utf-8"))
            content(value)
            content = json.dumps(value)
        if path.suffix == ".bin":
            content *= path.stat().st_size
            content = np.frombuffer(content, np.uint16)[: len(content) // 2].tobytes()
        rest[name] = content
    change_files(here, rest)


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_a_hostile_file(here, monkeypatch, capsys, case, figure):
    spoil(here, case[3])
    before = snapshot(here)
    capsys.readouterr()
    code, started = 0, time.monotonic()
    try:
        run(monkeypatch, here, *command_of(case, here))
    except Exception as error:
        code = report(error)
    check(case, here, before, code, *capsys.readouterr())
    assert time.monotonic() - started < 20  # 2 at most on an idle machine
    figure("a hostile checkpoint, dataset or tokenizer: refused in one line, nothing run, nothing changed")


@pytest.mark.parametrize("name", AS_A_PROCESS)
def test_a_hostile_file_in_a_process_of_its_own(made, tmp_path, forks, name):
    (case,) = (case for case in CASES if case[0] == name)
    here = tmp_path / "copy"
    for path in [path for path in made.rglob("*") if path.is_file()]:
        copy = here / path.relative_to(made)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    spoil(here, case[3])
    before = snapshot(here)
    script, arguments = command_of(case, here)
    arguments += [f"--dataset={here / 'datasets/small'}"] * (script == "train.py")
    done = forks.run([ROOT / script, *arguments], here)
    check(case, here, before, done.returncode, done.stdout, done.stderr)


def test_every_type_in_every_place_of_a_checkpoint(here, figure):
    """Loading ends in a ValueError or in a checkpoint that can be used, never in another error."""
    path, n = here / "out/ckpt.pt", 0
    (here / "out/best.pt").unlink()
    content = path.read_bytes()
    for key in torch.load(path, weights_only=True):
        for wrong in ("x", None, [], {}, {"a": [1]}, -5, 10**30, math.nan, True, torch.zeros(2)):
            path.write_bytes(content)
            saved = torch.load(path, weights_only=True)
            torch.save({**saved, key: wrong}, path)
            n += 1
            for load in (
                lambda: checkpoint.load(path, shards=True),
                lambda: checkpoint.load_model(path, "cpu"),
            ):
                try:
                    load()
                except ValueError as error:
                    assert "\n" not in str(error)
    figure(f"{n} checkpoints with a wrong value in them: refused in one line, or used as they are")


def test_hostile_tables_of_shards(here, train, figure):
    """tensors.json and run.json: paths that leave the folder, absurd sizes, wrong types."""
    train("--checkpoint_format=sharded", f"--out_dir={here / 'shards'}", "--max_iters=2")
    (folder,) = (here / "shards").glob("ckpt_000002")
    for other in (here / "shards").glob("*_00000*"):
        if other != folder:
            shutil.rmtree(other)
    n = 0
    for file in ("tensors.json", "run.json"):
        original = (folder / file).read_text(encoding="utf-8")
        for keys in places(json.loads(original)):
            for wrong in ("../../x", None, [10**12, 10**12], {"a": 1}, 10**12, -1):
                value = json.loads(original)
                del value["sha256"]  # a stranger can make it anew, or leave it out
                at = value
                for key in keys[:-1]:
                    at = at[key]
                at[keys[-1]] = wrong
                (folder / file).write_text(json.dumps(value), encoding="utf-8")
                n += 1
                for shards in (False, True):
                    try:
                        checkpoint.load(folder, shards)
                    except ValueError as error:
                        assert str(folder) in str(error) and "\n" not in str(error)
                    else:
                        assert file == "run.json" or wrong == -1 or keys[-1] == "offsets", (file, keys, wrong)
        (folder / file).write_text(original, encoding="utf-8")
    figure(f"{n} hostile tables of shards: refused in one line, or used as they are")


def places(table: dict) -> list[list]:
    """Where in a table to put something else: the first tensor with all that is said of it, and all else."""
    found = [[key] for key in table if key != "sha256" and not key.startswith(("model.", "optimizer."))]
    if first := next((key for key in table if key.startswith("model.")), ""):
        found += [[first], [first, "dtype"], [first, "size"], [first, "chunks"], [first, "chunks", 0]]
        found += [[first, "chunks", 0, key] for key in ("offsets", "sizes", "file", "position", "length")]
    return found


def test_a_pickle_in_any_place_is_refused(here, monkeypatch, figure):
    """Whole files that are pickles, in the place of every file that is read."""
    monkeypatch.chdir(here)
    evil, n = pickle.dumps(Canary()), 0
    for path in [path for path in here.rglob("*") if path.is_file() and path.suffix in (".pt", ".json")]:
        content = path.read_bytes()
        path.write_bytes(evil)
        n += 1
        for load in (checkpoint.load, tokenizer.load):
            with pytest.raises(ValueError):
                load(path)
        path.write_bytes(content)
    assert not (here / "canary").exists()
    figure(f"{n} pickles in the place of a file: refused, none was run")
