"""The run on disk: what is saved and when, what is deleted, what a broken file says."""

import functools
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import data
import evaluate
from conftest import ROOT
from machine import distributed
from model import GPT, GPTConfig
from runtime import checkpoint, folder
from test_data import write
from text import prepare
from tokenizer import CharTokenizer, load

TINY_CONFIG = dict(vocab_size=5, block_size=8, n_layer=1, n_head=1, n_embd=8)


def step_of(path) -> int:
    return torch.load(path, weights_only=True)["step"]


def listing(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def small_checkpoint(**more) -> dict:
    """The least that a file must hold: a tiny untrained model with a tokenizer of five letters."""
    model = GPT(GPTConfig(**TINY_CONFIG))
    state = {"model": model.state_dict(), "model_config": TINY_CONFIG, "config": {}, "dataset": {}}
    state |= {"tokenizer": CharTokenizer("abcde").to_json(), "step": 3, "tokens": 0, "seconds": 0.0}
    return state | more


# ---- what is saved, and when


def test_numbered_and_last_checkpoints_and_what_else_is_in_the_folder(train, tmp_path):
    train("--save_interval=10", "--max_iters=25", "--eval_interval=1000")
    out = tmp_path / "out"
    assert [step_of(out / name) for name in ("ckpt_000010.pt", "ckpt_000020.pt", "ckpt.pt")] == [10, 20, 25]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.search(r"^out-shakespeare-char/ (.*?)```", readme, re.DOTALL | re.MULTILINE)[1]
    expected = re.findall(r"\w+\.\w+", listed)
    assert listing(out) == {*expected, "ckpt_000010.pt", "ckpt_000020.pt"}


def test_a_run_shorter_than_every_interval_still_saves(train, tmp_path):
    train("--max_iters=3", "--eval_interval=1000", "--log_interval=1000")
    assert step_of(tmp_path / "out/ckpt.pt") == 3
    assert (tmp_path / "out/best.pt").is_file()


def test_the_newest_five_numbered_checkpoints_are_kept(train, tmp_path):
    train("--save_interval=2", "--max_iters=20", "--keep_checkpoints=5")
    numbered = [f"ckpt_{step:06}.pt" for step in (12, 14, 16, 18, 20)]
    assert {path.name for path in (tmp_path / "out").glob("*.pt")} == {"best.pt", "ckpt.pt", *numbered}


def test_rotation_goes_by_time_and_touches_nothing_else(tmp_path):
    order = ["ckpt_000500.pt", "ckpt_999999.pt", "ckpt_1000000.pt", "ckpt_000010.pt"]  # an old run, a new one
    others = ["ckpt.pt", "best.pt", "ckpt_mine.pt", "ckpt_000010.tmp"]
    now = time.time()
    for i, name in enumerate(others + order):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now + i, now + i))
    checkpoint.rotate(tmp_path, 2)
    assert listing(tmp_path) == {*others, "ckpt_1000000.pt", "ckpt_000010.pt"}
    checkpoint.rotate(tmp_path, 5)
    assert len(listing(tmp_path)) == 6


def test_best_survives_a_resume_whose_evaluations_are_worse(train, tmp_path, monkeypatch):
    found = iter([3.0, 1.0, 2.0, 1.5, 1.2])

    def scripted(model, windows, *args, **kwargs):
        loss = next(found) if windows.path.name == "val.bin" else 1.0
        return {"loss": loss, "standard_error": 0.1, "by_corpus": {}}

    monkeypatch.setattr(evaluate, "evaluate", scripted)
    flags = ("--eval_interval=5", "--save_interval=1", "--keep_checkpoints=2", "--log_interval=1")
    train(*flags, "--max_iters=10")
    best = (tmp_path / "out/best.pt").read_bytes()
    resumed = train(*flags, "--init_from=resume", "--max_iters=20")
    assert (tmp_path / "out/best.pt").read_bytes() == best
    assert step_of(tmp_path / "out/best.pt") == 5
    progress = resumed["progress"]
    assert (progress.best_val_loss, progress.best_step, progress.bad_evals) == (1.0, 5, 3)
    lines = (tmp_path / "out/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    val_losses = [row["val_loss"] for row in map(json.loads, lines) if "val_loss" in row]
    assert min(val_losses) == 1.0 and len(val_losses) == 5


def test_a_resumed_run_reads_the_batches_that_would_have_come(train, monkeypatch):
    seen = []
    batch = data.Windows.batch

    def spy(self, step, *args, **kwargs):
        x, y = batch(self, step, *args, **kwargs)
        seen.append((step, x.numpy().tobytes()))
        return x, y

    monkeypatch.setattr(data.Windows, "batch", spy)
    train("--max_iters=10")
    straight = seen.copy()
    seen.clear()
    train("--max_iters=5")
    train("--init_from=resume", "--max_iters=10")
    assert seen == straight
    assert [step for step, _ in seen] == list(range(10))


def test_one_file_holds_all_that_a_run_is(train, tmp_path):
    names = train("--max_iters=4", "--eval_interval=4", "--learning_rate=2e-3")
    saved = torch.load(tmp_path / "out/ckpt.pt", weights_only=True)
    expected = (
        "model model_config tokenizer dataset config optimizer scaler step tokens seconds evaluated_at "
        "bad_evals train_loss val_loss best_val_loss best_step clipped "
        "val_loss_to_beat world_size"
    )
    assert saved.keys() == set(expected.split())
    assert checkpoint.KEYS <= saved.keys()
    assert saved["config"]["learning_rate"] == 2e-3
    assert saved["dataset"]["sha256"] == names["meta"]["sha256"]
    model, tokenizer, _ = checkpoint.load_model(tmp_path / "out/ckpt.pt", torch.device("cpu"))
    assert tokenizer.hash == names["text_tokenizer"].hash
    assert not model.training
    for name, tensor in names["raw_model"].state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


class Wrapper(torch.nn.Module):
    """What DistributedDataParallel does to a model's names."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args):
        return self.module(*args)


def test_wrapped_and_plain_runs_save_the_same_keys(train, tmp_path, monkeypatch):
    train("--max_iters=1")
    plain = torch.load(tmp_path / "out/ckpt.pt", weights_only=True)["model"]
    monkeypatch.setattr(distributed, "wrap", lambda model, *args: Wrapper(model))
    train("--max_iters=1")
    wrapped = torch.load(tmp_path / "out/ckpt.pt", weights_only=True)["model"]
    assert list(plain) == list(wrapped)
    assert all(torch.equal(plain[name], wrapped[name]) for name in plain)


@pytest.mark.slow
def test_compiled_and_plain_runs_save_the_same_keys(train, tmp_path, monkeypatch):
    train("--max_iters=2", "--log_interval=1")
    plain = torch.load(tmp_path / "out/ckpt.pt", weights_only=True)["model"]
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    names = train("--compile", "--max_iters=2", "--log_interval=1")
    compiled = torch.load(tmp_path / "out/ckpt.pt", weights_only=True)["model"]
    assert hasattr(names["summed_loss"], "_torchdynamo_orig_callable")  # it was compiled
    assert list(plain) == list(compiled)
    assert all(torch.allclose(plain[name], compiled[name], atol=1e-5) for name in plain)
    names["raw_model"].load_state_dict(compiled, strict=True)


# ---- safe files


@pytest.mark.slow
def test_killed_in_the_middle_of_a_save_the_old_file_loads(tmp_path):
    """SIGKILL when the new bytes are on the disk but not yet under the old name."""
    path = tmp_path / "ckpt.pt"
    checkpoint.save(path, small_checkpoint(step=1))
    code = (
        "import os, pathlib, signal, sys\n"
        "from runtime import checkpoint\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "state = checkpoint.load(path)\n"
        "synced = []\n"
        "os.fsync = synced.append\n"
        "os.replace = lambda *names: synced and os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoint.save(path, state | {'step': 2})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, timeout=100)
    assert done.returncode == -signal.SIGKILL
    assert checkpoint.load(path)["step"] == 1
    checkpoint.save(path, small_checkpoint(step=3))  # what the killed one left behind is in nobody's way
    assert checkpoint.load(path)["step"] == 3
    assert listing(tmp_path) == {"ckpt.pt"}


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "ckpt.pt"
    checkpoint.save(path, small_checkpoint(step=1))

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="ckpt.pt could not be saved: No space left on device. The previous"):
        checkpoint.save(path, small_checkpoint(step=2))
    assert listing(tmp_path) == {"ckpt.pt"}
    assert checkpoint.load(path)["step"] == 1


@pytest.mark.parametrize(
    "value, where",
    [
        ({"val_loss": np.float64(1.5)}, r"checkpoint\['val_loss'\] is a float64"),
        ({"step": np.int64(3)}, r"checkpoint\['step'\] is a int64"),
        ({"optimizer": {"state": [{"step": np.float32(1)}]}}, r"\['state'\]\[0\]\['step'\] is a float32"),
        ({"model": {np.str_("wte"): 1}}, r"a key of checkpoint\['model'\] is a str_"),
        ({"folder": ROOT}, r"checkpoint\['folder'\] is a PosixPath"),
        ({"config": GPTConfig()}, r"checkpoint\['config'\] is a GPTConfig"),
    ],
)
def test_what_weights_only_cannot_load_is_not_saved(tmp_path, value, where):
    path = tmp_path / "ckpt.pt"
    with pytest.raises(TypeError, match=where):
        checkpoint.save(path, value)
    assert not listing(tmp_path)


@pytest.mark.slow
def test_a_truncated_file_names_the_newest_that_loads(tmp_path, shell):
    now = time.time()
    for i, name in enumerate(("best.pt", "ckpt_000010.pt", "ckpt_000020.pt", "ckpt.pt")):
        checkpoint.save(tmp_path / name, small_checkpoint())
        os.utime(tmp_path / name, (now + i, now + i))
    for name in ("ckpt.pt", "ckpt_000020.pt"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        os.utime(tmp_path / name, (now + 9, now + 9))
    done = shell("sample.py", f"--out_dir={tmp_path}", "--file=ckpt.pt")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'ckpt.pt'} cannot be read")
    assert line.endswith(f"the newest file that loads is {tmp_path / 'ckpt_000010.pt'}: copy it to ckpt.pt")


def test_a_missing_file_names_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*ckpt.pt; train first, .* config/tiny.py"):
        checkpoint.load(tmp_path / "ckpt.pt")
    checkpoint.save(tmp_path / "best.pt", small_checkpoint())
    with pytest.raises(ValueError, match=r"there is no .*ckpt.pt; the newest file that loads is .*best.pt"):
        checkpoint.load(tmp_path / "ckpt.pt")
    (tmp_path / "best.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"best.pt cannot be read .*; no other checkpoint there loads"):
        checkpoint.load(tmp_path / "best.pt")


class Evil:
    """Would run when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL_FOLDER"],)


def test_a_file_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL_FOLDER", str(tmp_path / "ran"))
    torch.save(small_checkpoint(extra=Evil()), tmp_path / "new.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("new.pt", "old.pt"):
        with pytest.raises(ValueError, match="cannot be read"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_tied_weights_stay_tied(tmp_path):
    """Checking a file must leave nothing in it: torch's load_state_dict(assign=True) leaves itself a note."""
    shape = TINY_CONFIG | {"arch": "gpt2"}
    state = small_checkpoint(model_config=shape, model=GPT(GPTConfig(**shape)).state_dict())
    checkpoint.save(tmp_path / "ckpt.pt", state)
    model, _, _ = checkpoint.load_model(tmp_path / "ckpt.pt", torch.device("cpu"))
    assert model.head.weight is model.wte.weight


def test_a_foreign_file_says_what_it_lacks(tmp_path):
    torch.save({"model": {}, "step": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt is not a checkpoint of tinylm: it has no config, data"):
        checkpoint.load(tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "other.pt")
    with pytest.raises(ValueError, match="is not a checkpoint of tinylm"):
        checkpoint.load(tmp_path / "other.pt")


def test_weights_that_do_not_fit_are_named(tmp_path):
    state = small_checkpoint()
    del state["model"]["wte.weight"]
    checkpoint.save(tmp_path / "ckpt.pt", state)
    with pytest.raises(ValueError, match=r"ckpt.pt do not fit the model: Missing key.*wte.weight"):
        checkpoint.load_model(tmp_path / "ckpt.pt", torch.device("cpu"))
    state = small_checkpoint(model_config=TINY_CONFIG | {"n_embd": 16})
    checkpoint.save(tmp_path / "ckpt.pt", state)
    with pytest.raises(ValueError, match=r"ckpt.pt do not fit the model: size mismatch for wte.weight"):
        checkpoint.load_model(tmp_path / "ckpt.pt", torch.device("cpu"))


# ---- where a run starts from


def test_init_from_finds_files_and_folders(tmp_path, monkeypatch):
    for name in ("run/best.pt", "run/ckpt.pt", "last/ckpt.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    out = tmp_path / "out"
    assert folder.find("resume", out) == out / "ckpt.pt"
    assert folder.find(str(tmp_path / "run"), out).name == "best.pt"
    assert folder.find(str(tmp_path / "last"), out).name == "ckpt.pt"
    assert folder.find(str(tmp_path / "run/ckpt.pt"), out) == tmp_path / "run/ckpt.pt"
    monkeypatch.setattr(folder, "ROOT", tmp_path)
    assert folder.find("run", out) == tmp_path / "run/best.pt"  # from the project, wherever one stands
    assert folder.run_folder("run") == tmp_path / "run"
    with pytest.raises(ValueError, match="init_from=nowhere does not exist; expected scratch, resume, a run"):
        folder.find("nowhere", out)


def test_another_tokenizer_is_refused_with_both_hashes(train, tmp_path, datasets):
    (datasets / "other.txt").write_text("other letters: äöü\n" * 400, encoding="utf-8")
    if not (datasets / "other").is_dir():
        prepare.prepare("other", str(datasets / "other.txt"))
    ours, theirs = (load(datasets / name / "tokenizer.json").hash[:12] for name in ("small", "other"))
    train("--max_iters=2")
    for source, out in (("resume", "out"), (str(tmp_path / "out"), "tuned")):
        with pytest.raises(ValueError, match=f"has the tokenizer {ours} .* the dataset has {theirs}"):
            train("--dataset=other", f"--init_from={source}", f"--out_dir={tmp_path / out}")


def test_the_command_for_a_base_with_another_tokenizer_works_as_printed(train, tmp_path, datasets):
    """`python data.py --tokenizer=out-x` was printed: it has no --input and no --name."""
    prepare.prepare("more", write(tmp_path / "more.txt", "other letters: äöü\n" * 400))
    train("--max_iters=1")
    for base in (tmp_path / "out", tmp_path / "out" / "best.pt"):
        with pytest.raises(ValueError, match="knows only the characters of its own text") as error:
            train("--dataset=more", f"--init_from={base}", f"--out_dir={tmp_path / 'tuned'}")
        command = str(error.value).partition(": python data.py ")[2].split()
        assert command == ["--input=FILE", "--name=NAME", f"--tokenizer={tmp_path / 'out'}"]
    prepare.prepare("fits", str(datasets / "small.txt"), tokenizer=str(tmp_path / "out"))
    train("--dataset=fits", f"--init_from={base}", f"--out_dir={tmp_path / 'tuned'}", "--max_iters=1")
