"""Bad input of any kind ends in one line that starts with "error: " and exit code 2, and changes no file."""

import math
import runpy
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

import config
import corpora
import data
from conftest import ROOT, TINY

# What is wrong, the script, its arguments, files that are changed before (below), the words of the message.
# The scripts run in a folder with the prepared datasets small (text) and pairs (masked rows), a run in out/ that
# was trained on small, and whatever a row makes there. A file's new content is bytes or text, None deletes it, a
# number keeps that share of it, and a function changes the checkpoint that is in it.
SHORT = "To be, or not to be, that is the question. " * 20
ROWS = '{"prompt": "a", "response": "b"}\n' * 6
CASES = [
    # ---- settings, whatever they mean
    ("a misspelt setting", "train.py", "--max_itres=5", {}, "did you mean max_iters?"),
    ("another script's setting", "sample.py", "--max_iters=5", {}, "max_iters is no setting"),
    ("a word for a whole number", "train.py", "--max_iters=ten", {}, "expected a whole number"),
    ("a fraction for a whole number", "train.py", "--batch_size=1.5", {}, "expected a whole number"),
    ("a word for a number", "train.py", "--learning_rate=fast", {}, "expected a number such as 1e-3"),
    ("not a number", "train.py", "--learning_rate=nan", {}, "is not finite"),
    ("a word for True or False", "train.py", "--eval_only=maybe", {}, "expected True or False"),
    ("a setting without a value", "train.py", "--max_iters", {}, "needs a value: --max_iters=1000"),
    ("one dash", "train.py", "-max_iters=5", {}, "settings are written --name=value"),
    ("bytes that are not UTF-8", "sample.py", "--start=\udcff", {}, "is not UTF-8"),
    # ---- config files
    ("a config file that is not there", "train.py", "config/tiney.py", {}, "there are: config/base.py"),
    ("a folder for a config file", "train.py", "datasets", {}, "config file datasets does not exist"),
    ("a misspelt name in a file", "train.py", "my.py", {"my.py": "n_head = 4\nn_layers = 4"}, "did you mean n_layer?"),
    ("another type in a file", "train.py", "my.py", {"my.py": "n_layer = '4'"}, "is a str; expected int"),
    ("not a number in a file", "train.py", "my.py", {"my.py": "grad_clip = float('nan')"}, "is not finite"),
    ("a file that is no Python", "train.py", "my.py", {"my.py": "a = 1\nn_layer: 4 = 4 4"}, "my.py line 2: "),
    ("a file that is not UTF-8", "train.py", "my.py", {"my.py": b"start = '\xe9'"}, "my.py"),
    ("a file that raises", "train.py", "my.py", {"my.py": "n_layer = 4 // 0"}, "does not run: ZeroDivisionError"),
    # ---- shapes
    ("a width that heads do not divide", "train.py", "--n_embd=30 --n_head=4", {}, "n_embd=30 is not divisible by n_head=4"),
    ("heads in groups that do not fit", "train.py", "--n_kv_head=3 --n_head=4", {}, "n_head=4 is not divisible by n_kv_head=3; 2 works"),
    ("no heads", "train.py", "--n_head=0", {}, "n_head=0 must be at least 1"),
    ("no layers", "train.py", "--n_layer=0", {}, "n_layer=0 must be at least 1"),
    ("no width", "train.py", "--n_embd=-8", {}, "n_embd=-8"),
    ("an odd width under rope", "train.py", "--n_embd=33 --n_head=1", {}, "rope needs pairs"),
    ("no window", "train.py", "--block_size=0", {}, "block_size=0"),
    ("a window longer than the text", "train.py", "--block_size=100000", {}, "use --block_size="),
    ("an unknown architecture", "train.py", "--arch=bert", {}, "choose one of modern, gpt2, llama"),
    ("an unknown norm", "train.py", "--norm=batchnorm", {}, "choose one of 'layernorm', 'rmsnorm'"),
    ("an unknown activation", "train.py", "--activation=tanh", {}, "choose one of 'gelu', 'relu2', 'swiglu'"),
    ("a switch that is neither on nor off", "train.py", "--qk_norm=2", {}, "choose one of 0, 1"),
    ("all activations dropped", "train.py", "--dropout=1", {}, "dropout=1.0 must be"),
    ("more memory than there is", "train.py", "--n_embd=4000000", {}, "out of memory"),
    # ---- training
    ("an empty batch", "train.py", "--batch_size=0", {}, "batch_size=0 makes no sense; expected 1 or more"),
    ("no micro-step", "train.py", "--gradient_accumulation_steps=0", {}, "expected 1 or more"),
    ("no update", "train.py", "--max_iters=0", {}, "max_iters=0 makes no sense"),
    ("evaluation never", "train.py", "--eval_interval=0", {}, "eval_interval=0 makes no sense"),
    ("patience below zero", "train.py", "--patience=-1", {}, "patience=-1 makes no sense; expected 0 or more"),
    ("a seed below zero", "train.py", "--seed=-1", {}, "seed=-1"),
    ("a seed of many digits", "train.py", "--seed=100000000000000000000", {}, "seed=100000000000000000000"),
    ("an unknown optimizer", "train.py", "--optimizer=lion", {}, "one of muon, adamw, adam, sgd"),
    ("an unknown schedule", "train.py", "--lr_schedule=triangle", {}, "one of constant, linear, cosine"),
    ("a learning rate of zero", "train.py", "--learning_rate=0", {}, "learning_rate=0.0 cannot be"),
    ("an end above the peak", "train.py", "--min_lr=1", {}, "min_lr=1.0 cannot be"),
    ("two warm-ups", "train.py", "--warmup_iters=5 --warmup_ratio=0.1", {}, "set one of them to 0"),
    ("a momentum of one", "train.py", "--beta1=1", {}, "beta1=1.0 cannot be"),
    ("nothing of that name to freeze", "train.py", "--freeze=block.0", {}, "freeze=block.0 matches no parameter"),
    ("a device that does not exist", "train.py", "--device=tpu", {}, "expected auto, cpu, cuda, cuda:N or mps"),
    ("a device without its number", "train.py", "--device=cuda:", {}, "expected auto, cpu, cuda, cuda:N or mps"),
    ("a precision that does not exist", "train.py", "--dtype=fp8", {}, "expected auto, float32, bfloat16 or float16"),
    ("a backend that does not exist", "train.py", "--backend=mpi", {}, "expected auto, nccl or gloo"),
    ("examples one by one, of a text", "train.py", "--pack=False", {}, "pack=False is for --format=lines or jsonl"),
    ("a sample with unknown characters", "train.py", "--start=€", {}, "unknown characters: '€' at position 0"),
    ("a temperature below zero for the sample", "train.py", "--temperature=-1", {}, "temperature=-1.0"),
    ("a top_p of zero for the sample", "train.py", "--top_p=0", {}, "top_p=0.0"),
    ("a file for a folder", "train.py", "--out_dir={here}/in.txt", {"in.txt": SHORT}, "in.txt"),
    ("no folder at all", "train.py", "--out_dir=", {}, "out_dir"),
    # ---- datasets
    ("a dataset that is not prepared", "train.py", "--dataset=mine", {}, "run: python data.py --input=FILE --name=mine"),
    ("a damaged meta.json", "train.py", "", {"datasets/small/meta.json": "{"}, "prepare the dataset again"),
    ("half a token file", "train.py", "", {"datasets/small/train.bin": 0.5}, "prepare the dataset again"),
    ("no token file", "train.py", "", {"datasets/small/val.bin": None}, "prepare the dataset again"),
    ("a damaged tokenizer", "train.py", "", {"datasets/small/tokenizer.json": "{}"}, "no tokenizer can be read from"),
    ("no tokenizer", "train.py", "", {"datasets/small/tokenizer.json": None}, "no tokenizer"),
    ("no example fits into a window", "train.py", "--dataset=pairs --block_size=1", {}, "no sample fits into a window"),
    ("a split that was not made", "evaluate.py", "--split=test", {}, "prepare it with --test_ratio=0.1"),
    ("a split that does not exist", "evaluate.py", "--split=valid", {}, "valid"),
    # ---- texts
    ("no input", "data.py", "--name=mine", {}, "--input is empty"),
    ("an input that is not there", "data.py", "--input=in.txt --name=mine", {}, "in.txt: no such corpus, file or folder"),
    ("an empty input", "data.py", "--input=in.txt --name=mine", {"in.txt": ""}, "in.txt: the file is empty"),
    ("a text that is not UTF-8", "data.py", "--input=in.txt --name=mine", {"in.txt": b"caf\xe9"}, "in.txt: byte 0xE9 at position 3"),
    ("a folder without text", "data.py", "--input=in --name=mine", {"in/a.png": b"\x89PNG"}, "no .txt .md .py .jsonl file"),
    ("a text too short to be split", "data.py", "--input=in.txt --name=mine", {"in.txt": "a"}, "too short to be split"),
    ("bad JSON in line 7", "data.py", "--input=in.jsonl --name=mine --format=jsonl", {"in.jsonl": ROWS + "{oops}"}, "in.jsonl line 7: no JSON"),
    ("a row of another kind", "data.py", "--input=in.jsonl --name=mine --format=jsonl", {"in.jsonl": ROWS + '{"q": 1}'}, "in.jsonl line 7: expected text, prompt and response, or messages"),
    ("nothing to learn", "data.py", "--input=in.jsonl --name=mine --format=jsonl", {"in.jsonl": '{"text": ""}'}, "there is nothing to learn"),
    ("an unknown format", "data.py", "--input=in.txt --name=mine --format=csv", {"in.txt": SHORT}, "expected text, lines or jsonl"),
    ("nothing left to train on", "data.py", "--input=in.txt --name=mine --val_ratio=1.5", {"in.txt": SHORT}, "leave nothing to train on"),
    ("a name that is a path", "data.py", "--input=in.txt --name=../mine", {"in.txt": SHORT}, "is no name for a dataset"),
    ("a name that a file has", "data.py", "--input=in.txt --name=mine", {"in.txt": SHORT, "datasets/mine": ""}, "mine"),
    ("an unknown tokenizer", "data.py", "--input=in.txt --name=mine --tokenizer=words", {"in.txt": SHORT}, "expected char, bpe, gpt2, or"),
    ("a vocabulary below the bytes", "data.py", "--input=in.txt --name=mine --tokenizer=bpe --vocab_size=99", {"in.txt": SHORT}, "expected 256 or more"),
    ("characters that the tokenizer lacks", "data.py", "--input=in.txt --name=mine --tokenizer=out", {"in.txt": SHORT + "€"}, "unknown characters: '€'"),
    ("a validation text that is not there", "data.py", "--input=in.txt --name=mine --val_input=val.txt", {"in.txt": SHORT}, "val.txt: no such corpus"),
    ("another text than Tiny Shakespeare", "data.py", "--name=shakespeare_char", {"downloads/tinyshakespeare.txt": SHORT}, "its sha256 is"),
    ("a text to evaluate that is not there", "evaluate.py", "--input=in.txt", {}, "in.txt: no such corpus, file or folder"),
    ("a text shorter than a window", "evaluate.py", "--input=in.txt", {"in.txt": "To be."}, "has 6 tokens"),
    ("a text with unknown characters", "evaluate.py", "--input=in.txt", {"in.txt": SHORT + "€"}, "unknown characters: '€'"),
    ("windows per batch below zero", "evaluate.py", "--batch_size=-1", {}, "batch_size=-1"),
    # ---- checkpoints
    ("no run to go on with", "train.py", "--init_from=resume --out_dir={here}/new", {}, "python train.py"),
    ("no run to start from", "train.py", "--init_from=out-nowhere", {}, "init_from=out-nowhere does not exist"),
    ("another shape than the run's", "train.py", "--init_from=resume --n_layer=3", {}, "was trained with n_layer=2, not 3"),
    ("another tokenizer than the run's", "train.py", "--init_from=resume --dataset=pairs", {}, "prepare it with data.py --tokenizer="),
    ("another optimizer than the run's", "train.py", "--init_from=resume --optimizer=sgd", {}, "resume with the same"),
    ("a run that is not there", "sample.py", "--out_dir={here}/new", {}, "train first, for example: python train.py"),
    ("a checkpoint that is not there", "evaluate.py", "--file=ckpt_000007.pt", {}, "ckpt_000007.pt"),
    ("half a checkpoint", "sample.py", "", {"out/best.pt": 0.5}, "the newest file that loads is"),
    ("half a checkpoint, and no other", "train.py", "--init_from=resume", {"out/ckpt.pt": 0.5, "out/best.pt": None}, "no other checkpoint there loads"),
    ("a picture for a checkpoint", "evaluate.py", "--file=loss.png", {}, "loss.png cannot be read"),
    ("a checkpoint of another program", "sample.py", "", {"out/best.pt": dict.clear}, "is no checkpoint of tinylm"),
    ("a checkpoint that is not a dict", "sample.py", "--file=list.pt", {"out/list.pt": [1, 2]}, "is no checkpoint of tinylm"),
    ("weights of another model", "sample.py", "", {"out/best.pt": lambda saved: saved["model_config"].update(n_layer=1)}, "do not fit the model"),
    ("a shape that no model has", "sample.py", "", {"out/best.pt": lambda saved: saved["model_config"].update(depth=1)}, "best.pt"),
    ("a damaged tokenizer in a checkpoint", "sample.py", "", {"out/best.pt": lambda saved: saved.update(tokenizer="{}")}, "this is no tokenizer of tinylm"),
    ("weights that are not numbers", "sample.py", "", {"out/best.pt": lambda saved: saved["model"]["norm.weight"].fill_(math.nan)}, "NaN"),
    ("damaged metrics", "train.py", "--init_from=resume --max_iters=9", {"out/metrics.jsonl": "{\n{}\n"}, "metrics.jsonl"),
    # ---- prompts
    ("a prompt with unknown characters", "sample.py", "--start=a€b€", {}, "unknown characters: '€' at position 1"),
    ("a prompt file that is not there", "sample.py", "--start=FILE:in.txt", {}, "in.txt cannot be read"),
    ("a prompt file that is not UTF-8", "sample.py", "--start=FILE:in.txt", {"in.txt": b"\xff"}, "in.txt cannot be read"),
    ("a folder for a prompt file", "sample.py", "--start=FILE:out", {}, "out cannot be read"),
    ("neither error nor skip", "sample.py", "--start=a --unknown=drop", {}, "expected error or skip"),
    ("a temperature below zero", "sample.py", "--temperature=-0.5", {}, "temperature=-0.5 is below 0"),
    ("no token to choose from", "sample.py", "--top_k=-1", {}, "top_k=-1 is below 0"),
    ("more than all probability", "sample.py", "--top_p=1.5", {}, "top_p=1.5 must be"),
    ("no text asked for", "sample.py", "--num_samples=0", {}, "num_samples=0"),
    ("a text of negative length", "sample.py", "--max_new_tokens=-1", {}, "max_new_tokens=-1"),
]  # fmt: skip
BASE = {
    "train.py": ["--dataset=small", *TINY, "--out_dir={here}/out"],
    "sample.py": ["--device=cpu", "--dtype=float32", "--max_new_tokens=5", "--out_dir={here}/out"],
    "evaluate.py": ["--device=cpu", "--dtype=float32", "--out_dir={here}/out"],
    "data.py": [],
}
# One of each script and kind also runs as a process of its own (none of them needs a prepared dataset).
AS_A_PROCESS = [
    "a misspelt name in a file",
    "a text that is not UTF-8",
    "no run to go on with",
    "a prompt with unknown characters",
    "a picture for a checkpoint",
]


def run(monkeypatch, here: Path, script: str, arguments: list[str]) -> None:
    """Run a script in this process, in a folder whose datasets/ is the only one there is."""
    monkeypatch.chdir(here)
    monkeypatch.setattr(data, "DATASETS", here / "datasets")
    monkeypatch.setattr(corpora, "DOWNLOADS", here / "downloads")
    monkeypatch.setattr(sys, "argv", [script, *(argument.format(here=here) for argument in arguments)])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    if script == "data.py":  # as a script it has a DATASETS of its own
        source = (ROOT / script).read_text(encoding="utf-8")
        source = source.replace('Path(__file__).resolve().parent / "datasets"', f"Path({str(here)!r}) / 'datasets'")
        assert str(here) in source
        exec(compile(source, str(ROOT / script), "exec"), {"__name__": "__main__", "__file__": str(ROOT / script)})
    else:
        runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.fixture(scope="module")
def made(datasets, tmp_path_factory) -> Path:
    """What every case finds: two datasets and a run. Made once, copied for each."""
    here = tmp_path_factory.mktemp("errors")
    rows = '{"prompt": "2 + 2 = ", "response": "4"}\n' * 40
    (here / "pairs.jsonl").write_text(rows, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "DATASETS", here / "datasets")
        data.prepare("small", str(datasets / "small.txt"))
        data.prepare("pairs", str(here / "pairs.jsonl"), format="jsonl")
        run(patch, here, "train.py", [*BASE["train.py"], "--max_iters=2"])
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


def change(path: Path, content) -> None:
    """Give a file other content, as the table says."""
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


def the_line(stderr: str) -> str:
    """The one line on stderr, which is all that may stand there."""
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(("script", "arguments", "files", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_input(here, monkeypatch, capsys, script, arguments, files, words):
    for name, content in files.items():
        change(here / name, content)
    before = snapshot(here)
    capsys.readouterr()
    with pytest.raises(Exception) as caught:  # noqa: B017 (whatever it is: the hook must know it)
        run(monkeypatch, here, script, BASE[script] + arguments.split())
    code = report(caught.value)
    out, err = capsys.readouterr()
    assert code == 2, err
    assert words in the_line(err)
    assert "Traceback" not in out
    after = snapshot(here)
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] != after[name]] == []


@pytest.mark.parametrize("case", AS_A_PROCESS)
def test_bad_input_of_a_process(here, shell, case):
    (script, arguments, files, words), = (row[1:] for row in CASES if row[0] == case)
    for name, content in files.items():
        change(here / name, content)
    before = snapshot(here)
    flags = [argument.format(here=here) for argument in BASE[script] + arguments.split()]
    done = shell(str(ROOT / script), *flags, cwd=here)
    assert done.returncode == 2
    assert words in the_line(done.stderr)
    assert "Traceback" not in done.stdout
    assert snapshot(here) == before


def test_there_are_forty_kinds_each_with_a_name_of_its_own():
    assert len({case[0] for case in CASES}) == len(CASES) >= 40


# ---- what is no mistake of the user keeps its traceback
def a_type_error():
    return len(5)


def a_value_error_inside_torch():
    torch.optim.SGD([], lr=0.1)


def a_value_error_inside_compiled_code():
    np.random.default_rng([-1])  # its frame names a file that is not there: numpy/random/bit_generator.pyx


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
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "excepthook", config.one_line_errors)
    with pytest.raises(Exception) as caught:  # noqa: B017
        bug()
    assert report(caught.value) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert bug.__name__ in err
    assert err.rstrip().endswith(traceback.format_exception_only(caught.value)[-1].strip())


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
    with pytest.raises(TypeError) as caught:
        run(monkeypatch, here, "train.py", [*BASE["train.py"], "--init_from=resume", "--max_iters=9"])
    assert report(caught.value) == 1
    err = capsys.readouterr().err
    assert "saved step 2" in err
    assert "Traceback" in err and "TypeError: injected" in err
