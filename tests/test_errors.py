"""Bad input of any kind ends in one line that starts with "error: " and exit code 2, and changes no file."""

import atexit
import contextlib
import errno
import io
import math
import os
import runpy
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import pyplot

import config
import data
from conftest import ROOT, TINY
from machine import hardware
from runtime import checkpoint, folder, guard
from text import corpora, prepare

# What is wrong, the command, words of the message, files that are changed before. A file's new content is
# bytes or text; None deletes it, a number keeps so much of it, and a function changes the checkpoint in it.
# The commands run in a folder with two prepared datasets, small (text) and pairs (masked rows), and with a
# run in out/ that was trained on small: all of that, and what the row itself makes, has to stay as it was.
LINE = "To be, or not to be, that is the question. "
ROWS = '{"prompt": "a", "response": "b"}\n' * 6
IN = "data.py --input=in.txt --name=small"
JSONL = "data.py --input=in.jsonl --name=pairs --format=jsonl"
OUTSIDE = (
    '{"model.w": {"dtype": "float32", "size": [1], "chunks": [{"offsets": [0], "sizes": [1], "file": "../x", '
    '"position": 0, "length": 4}]}}'
)
CASES = [
    # ---- settings, whatever they mean
    ("a misspelt setting", "train.py --max_itres=5", "did you mean max_iters?"),
    ("another script's setting", "sample.py --max_iters=5", "max_iters is not a setting"),
    ("a word for a whole number", "train.py --max_iters=ten", "expected a whole number"),
    ("a fraction for a whole number", "train.py --batch_size=1.5", "expected a whole number"),
    ("a word for a number", "train.py --learning_rate=fast", "expected a number such as 1e-3"),
    ("not a number", "train.py --learning_rate=nan", "is not finite"),
    ("a number of 30 digits", "sample.py --seed=100000000000000000000000000000", "too large"),
    ("a number of 400 digits", f"train.py --max_iters=1{'0' * 400}", "too large"),
    ("a word for True or False", "train.py --eval_only=maybe", "expected True or False"),
    ("a setting without a value", "train.py --max_iters", "needs a value: --max_iters=1000"),
    ("one dash", "train.py -max_iters=5", "settings are written --name=value"),
    ("bytes that are not UTF-8", "sample.py --start=\udcff", "is not UTF-8"),
    # ---- config files
    ("a config file that is not there", "train.py config/tiney.py", "did you mean config/tiny.py?"),
    ("a folder for a config file", "train.py datasets", "config file datasets does not exist"),
    ("a script for a config file", "sample.py train.py", "train.py is a script"),
    ("a misspelt name in a file", "train.py my.py", "my.py: n_layers is not a setting; did you mean n_layer?",
     {"my.py": "n_head = 4\nn_layers = 4"}),
    ("another type in a file", "train.py my.py", "is a str; expected int", {"my.py": "n_layer = '4'"}),
    ("not a number in a file", "train.py my.py", "is not finite", {"my.py": "grad_clip = float('nan')"}),
    ("a file that is no Python", "train.py my.py", "my.py line 2: ",
     {"my.py": "n_head = 4\nn_layer: 4 = 4 4"}),
    ("a file that is not UTF-8", "train.py my.py", "my.py", {"my.py": b"start = '\xe9'"}),
    ("bands on the command line", "train.py --expected=1", "set expected in a config file"),
    ("bands of words", "train.py my.py", "expected has 'a': 5; write the step and",
     {"my.py": "expected = {'a': 5}"}),
    ("a band upside down", "train.py my.py", "lowest and highest val loss",
     {"my.py": "expected = {5: (2, 1)}"}),
    ("a file that raises", "train.py my.py", "does not run: ZeroDivision", {"my.py": "n_layer = 4 // 0"}),
    ("a name too long for a file", f"train.py {'x' * 300}", "does not exist; there are: config/base.py"),
    ("a file that exits", "train.py my.py", "does not run: SystemExit", {"my.py": "raise SystemExit(3)"}),
    ("a function for a setting", "train.py my.py", "n_layer is a type; expected int",
     {"my.py": "n_layer = int"}),
    ("5,000 digits in a file", "train.py my.py", "n_layer is not finite", {"my.py": "n_layer = 10**5000"}),
    ("400 digits for a float", "train.py my.py", "beta1 is not finite", {"my.py": "beta1 = 10**400"}),
    ("a value that cannot be printed", "train.py my.py", "n_layer is a list; expected int",
     {"my.py": "n_layer = [10**5000]"}),
    ("NUL in a file's text", "train.py my.py", "start holds NUL", {"my.py": r"start = '\0'"}),
    ("half a character in a file's text", "train.py my.py", "start holds NUL or half",
     {"my.py": r"start = '\ud83d'"}),
    # ---- shapes
    ("a width that heads do not divide", "train.py --n_embd=30 --n_head=4",
     "n_embd=30 is not divisible by n_head=4"),
    ("groups that heads do not divide", "train.py --n_kv_head=3 --n_head=4",
     "n_head=4 is not divisible by n_kv_head=3"),
    ("no heads", "train.py --n_head=0", "n_head=0 must be at least 1"),
    ("no layers", "train.py --n_layer=0", "n_layer=0 must be at least 1"),
    ("no width", "train.py --n_embd=-8", "n_embd=-8"),
    ("an odd width under rope", "train.py --n_embd=33 --n_head=1", "n_embd=33"),
    ("no window", "train.py --block_size=0", "block_size=0"),
    ("a window longer than the text", "train.py --block_size=100000", "use --block_size="),
    ("an unknown architecture", "train.py --arch=bert", "choose one of modern, gpt2, llama"),
    ("an unknown norm", "train.py --norm=batchnorm", "'layernorm', 'rmsnorm'"),
    ("an unknown activation", "train.py --activation=tanh", "'gelu', 'relu2', 'swiglu'"),
    ("a switch that is neither on nor off", "train.py --qk_norm=3", "choose one of 0, 1, 2"),
    ("all activations dropped", "train.py --dropout=1", "dropout=1.0"),
    ("more memory than there is", "train.py --n_ff=10_000_000_000_000", "out of memory"),
    ("fewer threads than none", f"{IN} --threads=-1", "threads=-1 makes no sense; expected 0 or more"),
    # ---- training
    ("an empty batch", "train.py --batch_size=0", "batch_size=0 makes no sense; expected 1 or more"),
    ("no micro-step", "train.py --gradient_accumulation_steps=0", "expected 1 or more"),
    ("no update", "train.py --max_iters=0", "max_iters=0 makes no sense"),
    ("fewer logits than none", "train.py --logits_mb=-2", "logits_mb=-2 makes no sense; expected -1 or more"),
    ("a token shift of two", "train.py --token_shift=2", "choose one of 0, 1"),
    ("evaluation never", "train.py --eval_interval=0", "eval_interval=0 makes no sense"),
    ("patience below zero", "train.py --patience=-1", "patience=-1 makes no sense; expected 0 or more"),
    ("a seed below zero", "train.py --seed=-1", "seed=-1"),
    ("an unknown optimizer", "train.py --optimizer=lion", "one of muon, adamw, adam, sgd"),
    ("an unknown schedule", "train.py --lr_schedule=triangle", "one of constant, linear, cosine"),
    ("a learning rate of zero", "train.py --learning_rate=0", "learning_rate=0.0"),
    ("an end above the peak", "train.py --min_lr=1", "min_lr=1.0"),
    ("two warm-ups", "train.py --warmup_iters=5 --warmup_ratio=0.1", "set one of them to 0"),
    ("a momentum of one", "train.py --beta1=1", "beta1=1.0"),
    ("nothing of that name to freeze", "train.py --freeze=block.0", "freeze=block.0 matches no parameter"),
    ("a device that does not exist", "train.py --device=tpu", "expected auto, cpu, cuda, cuda:N or mps"),
    ("a device without its number", "train.py --device=cuda:", "expected auto, cpu, cuda, cuda:N or mps"),
    ("a precision that does not exist", "train.py --dtype=fp8",
     "expected auto, float32, bfloat16 or float16"),
    ("a backend that does not exist", "train.py --backend=mpi", "expected auto, nccl or gloo"),
    ("a strategy that does not exist", "train.py --strategy=zero3", "expected ddp, zero1, fsdp"),
    ("no patience with the others", "train.py --timeout=0", "timeout=0.0 makes no sense"),
    ("averages in the cloud", "train.py --offload=s3", "expected cpu, disk, or nothing"),
    ("a global batch below zero", "train.py --global_batch_size=-1", "expected 0 or more"),
    ("a checkpoint of another kind", "train.py --checkpoint_format=zip", "expected file or sharded"),
    ("no folder to consolidate", "runtime/checkpoint.py", "python -m runtime.checkpoint consolidate FOLDER"),
    ("nothing to consolidate", "runtime/checkpoint.py consolidate out-none", "nothing to do"),
    ("a table that points out of its folder", "evaluate.py", "best_000001 cannot be read (ValueError)",
     {"out/best_000001/run.json": '{"param_groups": []}', "out/best_000001/tensors.json": OUTSIDE}),
    ("a package that is not installed", "train.py --wandb_log", "pip install wandb"),
    ("a text, example by example", "train.py --pack=False", "pack=False is for samples"),
    ("a sample with unknown characters", "train.py --start=€", "unknown characters: '€' at position 0"),
    ("a sample below zero degrees", "train.py --temperature=-1", "temperature=-1.0"),
    ("a sample of no probability", "train.py --top_p=0", "top_p=0.0"),
    ("a file for a folder", "train.py --out_dir=in.txt", "in.txt", {"in.txt": LINE}),
    ("no folder", "train.py --out_dir=", "out_dir="),
    # ---- datasets
    ("a dataset that is not prepared", "train.py --dataset=mine", "python data.py --input=FILE --name=mine"),
    ("a damaged meta.json", "train.py", "prepare the dataset again", {"datasets/small/meta.json": "{"}),
    ("half a token file", "train.py", "prepare the dataset again", {"datasets/small/train.bin": 0.5}),
    ("no token file", "train.py", "prepare the dataset again", {"datasets/small/val.bin": None}),
    ("a damaged tokenizer", "train.py", "no tokenizer", {"datasets/small/tokenizer.json": "{}"}),
    ("no tokenizer", "train.py", "no tokenizer", {"datasets/small/tokenizer.json": None}),
    ("no example that fits", "train.py --dataset=pairs --block_size=1", "no sample fits into a window"),
    ("a dataset that was deleted", "evaluate.py", "python data.py", {"datasets/small/meta.json": None}),
    ("a split that was not made", "evaluate.py --split=test", "prepare it with --test_ratio=0.1"),
    ("a split that does not exist", "evaluate.py --split=valid", "expected train, val or test"),
    # ---- texts
    ("no input", "data.py --name=small", "--input is empty"),
    ("an input that is not there", IN, "in.txt: no such"),
    ("an input whose name is too long", f"{IN} --input={'x' * 300}", "xxx: File name too long"),
    ("a dataset whose name is too long", f"{IN} --name={'x' * 300}", "File name too long", {"in.txt": LINE}),
    ("a tokenizer whose name is too long", f"{IN} --tokenizer={'x' * 300}", "xxx: File name too long",
     {"in.txt": LINE}),
    ("an empty input", IN, "expected UTF-8 text", {"in.txt": ""}),
    ("a text that is not UTF-8", IN, "save the file as UTF-8", {"in.txt": b"caf\xe9"}),
    ("a folder without text", "data.py --input=in --name=small", "expected UTF-8 text",
     {"in/a.png": b"\x89PNG"}),
    ("a text too short to be split", IN, "too short to be split", {"in.txt": "a"}),
    ("bad JSON in line 7", JSONL, "in.jsonl line 7: no JSON", {"in.jsonl": ROWS + "{oops}"}),
    ("a row of another kind", JSONL, "in.jsonl line 7: expected text, ", {"in.jsonl": ROWS + '{"q": 1}'}),
    ("brackets in brackets in line 7", JSONL, "in.jsonl line 7: maximum recursion depth",
     {"in.jsonl": ROWS + '{"text": ' + "[" * 100_000}),
    ("brackets in brackets in a list", JSONL, "in.jsonl: maximum recursion", {"in.jsonl": "[" * 100_000}),
    ("a list with 5,000 digits", JSONL, "in.jsonl: Exceeds the limit", {"in.jsonl": f"[{'9' * 5000}]"}),
    ("a list that is broken in line 4", JSONL, "in.jsonl line 4: no JSON", {"in.jsonl": "\n\n\n[oops]"}),
    ("nothing to learn", JSONL, "there is nothing to learn", {"in.jsonl": '{"text": ""}'}),
    ("an unknown format", f"{IN} --format=csv", "expected text, lines or jsonl", {"in.txt": LINE}),
    ("nothing left to train on", f"{IN} --val_ratio=1.5", "leave nothing to train on", {"in.txt": LINE}),
    ("a name that is a path", f"{IN} --name=../small", "is no name for a dataset", {"in.txt": LINE}),
    ("a name that a file has", f"{IN} --name=new", "datasets/new", {"in.txt": LINE, "datasets/new": ""}),
    ("an unknown tokenizer", f"{IN} --tokenizer=words", "expected char, bpe, gpt2, or", {"in.txt": LINE}),
    ("a vocabulary of one word", f"{IN} --tokenizer=char --vocab_size=1", "leave it out", {"in.txt": LINE}),
    ("a vocabulary below the bytes", f"{IN} --tokenizer=bpe --vocab_size=99", "vocab_size=99 is too small",
     {"in.txt": LINE}),
    ("characters that a tokenizer lacks", f"{IN} --tokenizer=out", "unknown characters: '€'",
     {"in.txt": LINE + "€"}),
    ("no validation text", f"{IN} --val_input=val.txt", "val.txt: no such", {"in.txt": LINE}),
    ("another text than Tiny Shakespeare", "data.py --name=shakespeare_char", "its sha256 is",
     {"downloads/tinyshakespeare.txt": LINE}),
    ("no text to evaluate", "evaluate.py --input=in.txt", "in.txt: no such"),
    ("a text of one token", "evaluate.py --input=in.txt", "has 1 tokens: none follows", {"in.txt": "T"}),
    ("a text with unknown characters", "evaluate.py --input=in.txt", "unknown characters: '€'",
     {"in.txt": LINE + "€"}),
    ("windows per batch below zero", "evaluate.py --batch_size=-1", "batch_size=-1"),
    # ---- checkpoints
    ("no run to go on with", "train.py --init_from=resume --out_dir={here}/new", "python train.py"),
    ("no run to start from", "train.py --init_from=out-nowhere", "init_from=out-nowhere does not exist"),
    ("another shape than the run's", "train.py --init_from=resume --n_layer=3",
     "was trained with n_layer=2, not 3"),
    ("another tokenizer than the run's", "train.py --init_from=resume --dataset=pairs", "has the tokenizer"),
    ("another optimizer than the run's", "train.py --init_from=resume --optimizer=sgd", "another optimizer"),
    ("a run that is not there", "sample.py --out_dir={here}/new",
     "train first, for example: python train.py"),
    ("a checkpoint that is not there", "evaluate.py --file=ckpt_000007.pt", "ckpt_000007.pt"),
    ("half a checkpoint", "sample.py", "the newest file that loads is", {"out/best.pt": 0.5}),
    ("half a checkpoint, and no other", "train.py --init_from=resume", "no other checkpoint there loads",
     {"out/ckpt.pt": 0.5, "out/best.pt": None}),
    ("a picture for a checkpoint", "evaluate.py --file=loss.png", "loss.png cannot be read"),
    ("a checkpoint of another program", "sample.py", "is not a checkpoint of tinylm",
     {"out/best.pt": dict.clear}),
    ("a checkpoint that is a list", "sample.py", "is not a checkpoint of tinylm", {"out/best.pt": [1, 2]}),
    ("a checkpoint without its optimizer", "train.py --init_from=resume", "optimizer",
     {"out/ckpt.pt": lambda saved: saved.pop("optimizer")}),
    ("weights of another model", "sample.py", "do not fit the model",
     {"out/best.pt": lambda saved: saved["model_config"].update(n_layer=1)}),
    ("a shape that no model has", "sample.py", "best.pt",
     {"out/best.pt": lambda saved: saved["model_config"].update(depth=1)}),
    ("a damaged tokenizer in a checkpoint", "sample.py", "best.pt: this is no tokenizer of tinylm",
     {"out/best.pt": lambda saved: saved.update(tokenizer="{}")}),
    ("a window of no token in a checkpoint", "sample.py", "best.pt holds an impossible model: block_size=0",
     {"out/best.pt": lambda saved: saved["model_config"].update(block_size=0)}),
    ("weights that are not numbers", "sample.py", "NaN",
     {"out/best.pt": lambda saved: saved["model"]["norm.weight"].fill_(math.nan)}),
    ("damaged metrics", "train.py --init_from=resume --max_iters=9", "metrics.jsonl",
     {"out/metrics.jsonl": "{\n{}\n"}),
    # ---- prompts
    ("a prompt with unknown characters", "sample.py --start=a€b€", "unknown characters: '€' at position 1"),
    ("a prompt file that is not there", "sample.py --start=FILE:in.txt", "in.txt cannot be read"),
    ("a NUL in the name of a run's prompt file", "sample.py", "cannot be read as UTF-8 text: embedded null",
     {"out/best.pt": lambda saved: saved["config"].update(start="FILE:\0")}),
    ("a prompt file that is not UTF-8", "sample.py --start=FILE:in.txt", "in.txt cannot be read",
     {"in.txt": b"\xff"}),
    ("a folder for a prompt file", "sample.py --start=FILE:out", "out cannot be read"),
    ("neither error nor skip", "sample.py --start=a --unknown=drop", "expected error or skip"),
    ("a temperature below zero", "sample.py --temperature=-0.5", "temperature=-0.5"),
    ("no token to choose from", "sample.py --top_k=-1", "top_k=-1"),
    ("more than all probability", "sample.py --top_p=1.5", "top_p=1.5"),
    ("no text asked for", "sample.py --num_samples=0", "num_samples=0"),
    ("a text of negative length", "sample.py --max_new_tokens=-1", "max_new_tokens=-1"),
]  # fmt: skip
BASE = {
    "train.py": ["--dataset=small", *TINY, "--out_dir={here}/out"],
    "sample.py": ["--device=cpu", "--dtype=float32", "--max_new_tokens=5", "--out_dir={here}/out"],
    "evaluate.py": ["--device=cpu", "--dtype=float32", "--out_dir={here}/out"],
    "data.py": [],
    "runtime/checkpoint.py": [],
}
# These also run in processes of their own. (None of them needs a prepared dataset: those lie in the project.)
AS_A_PROCESS = [
    "a misspelt name in a file",
    "no run to go on with",
    "a text that is not UTF-8",
    "a picture for a checkpoint",
    "a prompt with unknown characters",
]


def command_of(case: tuple, here: Path) -> tuple[str, list[str]]:
    """The script of a row and all of its arguments."""
    script, *arguments = case[1].split()
    return script, [argument.format(here=here) for argument in BASE[script] + arguments]


def run(monkeypatch, here: Path, script: str, arguments: list[str]) -> None:
    """Run a script in this process, as if the project's datasets and runs were those of `here`."""
    monkeypatch.chdir(here)
    monkeypatch.setattr(prepare, "DATASETS", here / "datasets")
    monkeypatch.setattr(corpora, "DOWNLOADS", here / "downloads")
    monkeypatch.setattr(folder, "ROOT", here)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.fixture(scope="module")
def made(datasets, tmp_path_factory) -> Path:
    """What every case finds: two datasets and a run. Made once, copied for each."""
    here = tmp_path_factory.mktemp("errors")
    rows = '{"prompt": "2 + 2 = ", "response": "4"}\n' * 40
    (here / "pairs.jsonl").write_text(rows, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "DATASETS", here / "datasets")
        prepare.prepare("small", str(datasets / "small.txt"))
        prepare.prepare("pairs", str(here / "pairs.jsonl"), format="jsonl")
        script, arguments = command_of(("", "train.py --max_iters=2"), here)
        run(patch, here, script, arguments)
    return here


@pytest.fixture
def here(made, tmp_path, run_script) -> Path:
    """A copy of what was made, for one case. (run_script restores signal handlers.)"""
    for path in made.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(made)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path


def change_files(here: Path, files: dict) -> None:
    """Give files other contents, as the table says."""
    for name, content in files.items():
        path = here / name
        path.parent.mkdir(exist_ok=True)
        if content is None:
            path.unlink()
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, float):
            path.write_bytes(path.read_bytes()[: int(content * path.stat().st_size)])
        elif callable(content):
            saved = torch.load(path, weights_only=True)
            content(saved)
            torch.save(saved, path)
        else:
            torch.save(content, path)


def snapshot(folder: Path) -> dict:
    """All files below a folder, with their contents and times."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def report(error: BaseException) -> int:
    """Hand an exception to sys.excepthook, as the interpreter does; return the exit code."""
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except SystemExit as end:
        return end.code
    return 1


def check(case: tuple, here: Path, before: dict, code: int, out: str, err: str) -> None:
    """Exit code 2, one line with the words on stderr and nothing else there, no file touched."""
    after = snapshot(here)
    assert code == 2, err or "it went on"
    assert [err[:7], err[-1:], err.count("\n")] == ["error: ", "\n", 1], err
    assert case[2] in err
    assert "Traceback" not in out
    assert sorted(after.keys() ^ before.keys()) == []
    assert [name for name in before if before[name] != after[name]] == []


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_bad_input(here, monkeypatch, capsys, case, figure):
    change_files(here, *case[3:] or [{}])
    before = snapshot(here)
    capsys.readouterr()
    code = 0
    try:
        run(monkeypatch, here, *command_of(case, here))
    except Exception as error:
        code = report(error)
    check(case, here, before, code, *capsys.readouterr())
    figure("bad input by hand: one line, exit code 2, no file touched")


@pytest.mark.slow
@pytest.mark.parametrize("name", AS_A_PROCESS)
def test_bad_input_in_a_process_of_its_own(made, tmp_path, forks, name):
    (case,) = (case for case in CASES if case[0] == name)
    here = tmp_path / "copy"
    shutil.copytree(made, here)
    change_files(here, *case[3:] or [{}])
    before = snapshot(here)
    script, arguments = command_of(case, here)
    done = forks.run([ROOT / script, *arguments], here)
    check(case, here, before, done.returncode, done.stdout, done.stderr)


def test_forty_kinds_are_listed_each_with_a_name_of_its_own():
    assert len({case[0] for case in CASES}) == len(CASES) >= 40


# ---- what is no mistake of the user keeps its traceback
def a_type_error():
    return len(5)


def a_value_error_inside_torch():
    torch.optim.SGD([], lr=0.1)


def a_value_error_inside_compiled_code():
    np.random.default_rng([-1])  # the last frame's file is numpy/random/bit_generator.pyx, which is not there


def a_value_error_that_nobody_raised():
    return np.zeros(2) + np.zeros(3)


def an_assertion():
    raise AssertionError("this is an invariant")


BUGS = [
    a_type_error,
    a_value_error_inside_torch,
    a_value_error_inside_compiled_code,
    a_value_error_that_nobody_raised,
    an_assertion,
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_bug_keeps_its_traceback(monkeypatch, capsys, bug):
    monkeypatch.chdir(ROOT)  # where a relative name of a file looks like one of ours
    monkeypatch.setattr(sys, "excepthook", config.one_line_errors)
    with pytest.raises(Exception) as caught:  # noqa: B017 (each has its own)
        bug()
    assert report(caught.value) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert bug.__name__ in err
    assert err.endswith(traceback.format_exception_only(caught.value)[-1])


def test_a_message_of_several_lines_becomes_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", config.one_line_errors)
    with pytest.raises(ValueError) as caught:
        raise ValueError("first\n  second")
    assert report(caught.value) == 2
    assert capsys.readouterr().err == "error: first second\n"


def test_a_bug_in_the_loop_keeps_its_traceback_and_saves_the_run(here, monkeypatch, capsys):
    def broken(*args):
        raise TypeError("injected")

    monkeypatch.setattr(data.Windows, "batch", broken)
    case = ("", "train.py --init_from=resume --max_iters=9")
    with pytest.raises(TypeError) as caught:
        run(monkeypatch, here, *command_of(case, here))
    assert report(caught.value) == 1
    err = capsys.readouterr().err
    assert "saved step 2" in err
    assert "Traceback" in err
    assert err.endswith("TypeError: injected\n")


def test_running_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert config.is_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) @ torch.zeros(3)
    assert not config.is_out_of_memory(caught.value)


# ---- advice names settings that the script has, and nothing is left behind in the process
@pytest.mark.parametrize(
    ("script", "advice"),
    [
        ("train.py", "try a smaller batch_size or block_size or n_layer or n_embd"),
        ("evaluate.py", "try a smaller batch_size"),
        ("sample.py", "close other programs"),
        ("data.py", "close other programs"),
        ("bench.py", "close other programs"),
    ],
)
def test_out_of_memory_advises_what_the_script_can_change(script, advice, monkeypatch, capsys):
    monkeypatch.setattr(config._errors, "names_here", set(config.defaults_of(script)))
    with pytest.raises(SystemExit):
        config.one_line_errors(MemoryError, MemoryError(), None)
    assert capsys.readouterr().err == f"error: out of memory; {advice}\n"


@pytest.mark.parametrize("script", ["train.py", "data.py"])
def test_a_folder_that_cannot_be_written_advises_an_out_dir_only_where_there_is_one(
    script, monkeypatch, capsys
):
    monkeypatch.setattr(config._errors, "names_here", set(config.defaults_of(script)))
    with pytest.raises(SystemExit):
        error = PermissionError(errno.EACCES, "Permission denied", "x")
        config.one_line_errors(PermissionError, error, None)
    assert ("--out_dir" in capsys.readouterr().err) == (script == "train.py")


def of_the_process() -> dict:
    """What a script may change in its process and has to put back."""
    return {
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "excepthook": sys.excepthook,
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "precision": torch.get_float32_matmul_precision(),
        "gradients": torch.is_grad_enabled(),
        "anomalies": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "random": torch.random.get_rng_state().tolist(),
        "streams": [(stream.encoding, stream.errors) for stream in (sys.stdout, sys.stderr)],
        "group": torch.distributed.is_initialized(),
        "backend": pyplot.get_backend(),
        "atexit": atexit._ncallbacks(),
        "temporary": sorted(path.name for path in Path(tempfile.gettempdir()).glob("*")),
        "locks": set(guard.held),
    }


WAYS = {  # flags of train.py that end it at once, in the middle, in an error, and in the middle of its loop
    "the end": ["--threads=2"],
    "sys.exit": ["--eval_only"],
    "already made": ["--init_from=auto", "--max_iters=2"],
    "another strategy": ["--strategy=zero1", "--threads=2"],
}


@pytest.fixture
def alone_in(train, tmp_path, monkeypatch):
    """A process that has its own temporary folder and a plotting backend that is not ours."""
    train("--max_iters=1")  # torch postpones some imports to the first update
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("RANK", raising=False)
    before = pyplot.get_backend()
    pyplot.switch_backend("svg")
    yield
    pyplot.switch_backend(before)


@pytest.mark.draws
@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=() if way == "sys.exit" else pytest.mark.slow) for way in WAYS],
)
def test_nothing_is_left_in_the_process(alone_in, train, run_script, way):
    config.end_script()
    before = of_the_process()
    if way == "already made":
        train("--max_iters=2", "--threads=2")
        assert of_the_process() == before
    with contextlib.suppress(SystemExit):
        train("--max_iters=2", *WAYS[way])
    assert of_the_process() == before
    if way == "the end":
        train("--max_iters=3", "--init_from=resume")  # a second run
        run_script("sample.py", "--max_new_tokens=2")
        run_script("evaluate.py")
        assert of_the_process() == before


@pytest.mark.parametrize("ending", ["the next script", "the cell", "the process"])
def test_nothing_is_left_after_an_error(alone_in, train, monkeypatch, ending):
    """An error runs no last line. In a notebook the end of the cell cleans up, elsewhere the next script."""
    callbacks = []
    events = SimpleNamespace(
        register=lambda name, call: callbacks.append(call),
        unregister=lambda name, call: callbacks.remove(call),
    )
    shell = SimpleNamespace(events=events)
    if ending == "the cell":
        monkeypatch.setattr(config._errors, "in_notebook", lambda: shell)
    config.end_script()
    before = of_the_process()
    monkeypatch.setattr(data.Windows, "batch", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train("--threads=2")
    assert of_the_process() != before
    if ending == "the next script":
        config.start_script()
        config.end_script()
    elif ending == "the cell":
        (after_cell,) = callbacks
        after_cell("result")
        assert callbacks == []
    else:
        config.end_script()  # atexit calls it
    assert of_the_process() == before


def test_a_second_interrupt_stops_a_cell_and_ends_a_program(monkeypatch):
    handlers = {}
    monkeypatch.setattr(signal, "signal", lambda number, handler: handlers.update({number: handler}) or "old")
    monkeypatch.setattr(guard.os, "write", lambda *arguments: None)
    for notebook, second in ((None, signal.SIG_DFL), ("a notebook", "old")):
        monkeypatch.setattr(guard, "in_notebook", lambda: notebook)  # noqa: B023 (called in this turn)
        guard.StopRequest().handle(signal.SIGINT, None)
        assert handlers[signal.SIGINT] == second
    config.end_script()


def test_training_in_another_thread_works_without_signals(train):
    worker = threading.Thread(target=train, args=("--max_iters=1",))
    worker.start()
    worker.join()
    assert threading.current_thread() is threading.main_thread()
    assert checkpoint.load(Path(sys.argv[1].removeprefix("--out_dir=")) / "ckpt.pt")["step"] == 1


@pytest.mark.parametrize(
    "script",
    [
        "train.py",
        *(
            pytest.param(f"{name}.py", marks=pytest.mark.slow)
            for name in ("sample", "evaluate", "data", "bench")
        ),
    ],
)
def test_ctrl_c_while_torch_is_imported_is_one_line(script, tmp_path, shell):
    text = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
    (tmp_path / "torch.py").write_text(text, encoding="utf-8")
    done = shell(str(ROOT / script), env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped by Ctrl-C\n")


def test_ctrl_c_before_the_loop_is_one_line(train, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(hardware, "try_compile", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        train("--compile")
    capsys.readouterr()
    assert report(caught.value) == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_standard_input_is_utf8_as_standard_output_is(monkeypatch):
    lines = "caf\u00e9 \U0001f600\n".encode() + b"\xff\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="cp1252"))
    config.start_script()
    assert sys.stdin.readline() == "caf\u00e9 \U0001f600\n"
    assert sys.stdin.readline() == "\ufffd\n"  # a bad byte ends no conversation
    config.end_script()
