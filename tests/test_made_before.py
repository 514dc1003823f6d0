"""What earlier versions wrote still loads: datasets, tokenizers, checkpoints and students' files.

tests/fixtures/made_by_8ec7af7.zip holds what `make` below wrote into a checkout of commit 8ec7af7, the last
before modules moved into folders (torch 2.13, CPU, one thread):

    git worktree add ../old 8ec7af7
    PYTHONPATH=.:tests python -c "import test_made_before as t; t.make(t.OLD); t.pack(t.OLD)"

The fast tests read this file. Other processors round differently, so they compare losses to 1e-4. The slow
tests make everything anew, and then today's code has to end with the same bits as the old code.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import ROOT
from data import Windows
from lessons import course, notebook, progress, worker
from runtime import checkpoint
from runtime.curve import read_rows
from text import prepare
from tokenizer import load_any

COMMIT = "8ec7af7"
OLD = ROOT.parent / "old"  # where a person makes the fixture; the slow tests take a temporary folder
FIXTURE = ROOT / f"tests/fixtures/made_by_{COMMIT}.zip"
RUNS = {"adamw": "chars", "muon": "rows"}  # run: its dataset. The second is in shards, made by two processes
OLD = range(1, 16)  # lessons that there were
FOUND_SINCE = {  # answers of then with a mistake: 0 * log 0, a shorter name first, exponentials that overflow
    "3d": "math domain error",
    "6a": "One name begins another here",
    "9b": "numbers are not finite",
    "13b": "What is subtracted first?",
    "9d": "`look_back` is not in your file",  # there was none
}
SOLVED = (9, 15)  # lessons whose files are in the fixture
SMALL = (
    "--device=cpu --dtype=float32 --threads=1 --n_layer=1 --n_head=2 --n_embd=8 --batch_size=4 --dropout=0.1 "
    "--max_iters=4 --eval_interval=2 --eval_iters=1 --log_interval=1 --max_new_tokens=8 --warmup_iters=2 "
    "--lr_decay_iters=8"
)
GO_ON = ("--init_from=resume", "--max_iters=8")
SHARDED = "-m torch.distributed.run --standalone --nproc_per_node=2"
TEXTS = """
import json, corpora
text = "".join(part for part, _ in corpora.open_corpus("verse", size=1500).chunks())
open("play.txt", "w", encoding="utf-8").write(text)
words = text.split()
threes = [" ".join(words[i : i + 3]) for i in range(0, 120, 3)]
rows = [{"prompt": a, "response": b} for a, b in zip(threes[::2], threes[1::2])]
told = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "Caf\\u00e9 \\U0001f600"}]
rows.append({"messages": told})
open("rows.jsonl", "w", encoding="utf-8").writelines(json.dumps(row) + "\\n" for row in rows)
"""
SOLVE = """
import sys
from lessons import course
from solved import solved
course.work().mkdir()
for number in map(int, sys.argv[1:]):
    (course.work() / course.lessons()[number].name).write_text(solved(number), encoding="utf-8")
"""


def make(old: Path, lessons=SOLVED) -> None:
    """Let a checkout of the old commit prepare, train, resume, sample, evaluate, and solve lessons."""

    def python(*arguments: str) -> str:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TINYLM_WORK": "work"}
        env |= {"PYTHONPATH": f".{os.pathsep}tests", "PYTHONIOENCODING": "utf-8"}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=old, env=env, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python("-c", TEXTS)
    python(*"data.py --input=play.txt --name=chars".split())
    python(*"data.py --input=rows.jsonl --name=rows --format=jsonl --tokenizer=bpe --vocab_size=280".split())
    adamw = "--optimizer=adamw --arch=gpt2 --block_size=16 --gradient_accumulation_steps=2"
    python(*f"train.py --dataset=chars --out_dir=out-adamw {adamw} {SMALL}".split())
    muon = "--strategy=fsdp --checkpoint_format=sharded --block_size=48"
    python(*f"{SHARDED} train.py --dataset=rows --out_dir=out-muon {muon} {SMALL}".split())
    for run in RUNS:
        shutil.copytree(old / f"out-{run}", old / f"out-{run}-resumed")
        python("train.py", f"--out_dir=out-{run}-resumed", *GO_ON)
    text = python("sample.py", "--out_dir=out-adamw", "--start=I", "--max_new_tokens=30", "--device=cpu")
    (old / "sample.txt").write_text(text.partition("\nI")[2], encoding="utf-8")
    python("-c", SOLVE, *map(str, lessons))
    for number in SOLVED:
        python("lessons/run.py", "check", f"{number}")  # makes work/progress.json


def pack(old: Path) -> None:
    """Write the fixture: of the resumed runs the numbers alone, of shards the last checkpoint alone."""
    wanted = "play.txt rows.jsonl sample.txt datasets/*/* out-adamw/*.pt out-*/*.json* out-muon/ckpt_000004/*"
    paths = [path for pattern in f"{wanted} work/*.py work/*.json".split() for path in old.glob(pattern)]
    with zipfile.ZipFile(FIXTURE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(paths):
            archive.write(path, path.relative_to(old))


@pytest.fixture
def before(tmp_path, monkeypatch) -> Path:
    """The fixture, unpacked; its datasets are found by name."""
    folder = tmp_path / "before"
    with zipfile.ZipFile(FIXTURE) as archive:
        archive.extractall(folder)
    monkeypatch.setattr(prepare, "DATASETS", folder / "datasets")
    return folder


@pytest.fixture
def start(before, run_script, monkeypatch):
    """start("train.py", "--flag=1") runs today's script in this process on the old datasets."""
    monkeypatch.setattr(prepare, "DATASETS", before / "datasets")  # run_script has set its own
    return run_script


@pytest.fixture
def warm():
    judge = worker.Worker()
    yield judge
    judge.close()


@pytest.fixture(scope="module")
def old(tmp_path_factory, pytestconfig) -> Path:
    """A checkout of the old commit in which everything was made just now, with all lessons solved."""
    if not pytestconfig.getoption("--long"):
        pytest.skip("takes two minutes: --long")
    folder = tmp_path_factory.mktemp("old")
    archive = folder / "old.zip"
    command = ["git", "archive", "--format=zip", f"--output={archive}", COMMIT]
    try:
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"needs git and the commit {COMMIT}")
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    make(folder, lessons=OLD)
    return folder


# ---- datasets and tokenizers
def meta_of(folder: Path) -> dict:
    return json.loads((folder / "meta.json").read_text(encoding="utf-8"))


def test_a_text_is_read_token_by_token(before):
    folder = before / "datasets/chars"
    letters = load_any(folder)
    splits = [np.fromfile(folder / f"{split}.bin", dtype=np.uint16) for split in ("train", "val")]
    play = (before / "play.txt").read_text(encoding="utf-8")
    assert letters.decode(np.concatenate(splits)) == play
    assert letters.encode(play).tolist() == [*splits[0], *splits[1]]
    windows = Windows("chars", "train", 16)
    _, y = windows.window_batch(range(windows.n_windows))
    assert int((y != -1).sum()) == len(splits[0]) - 1


def test_rows_keep_their_masks(before):
    windows = Windows("rows", "train", 48)
    _, y = windows.window_batch(range(windows.n_windows))
    assert int((y != -1).sum()) == meta_of(before / "datasets/rows")["splits"]["train"]["learned"]


@pytest.mark.parametrize("where", ["datasets/rows", "out-muon", "out-muon/tokenizer.json"])
def test_byte_pairs_make_the_same_ids(before, where):
    """A new dataset that takes the old tokenizer has the bytes of the old one."""
    rows = str(before / "rows.jsonl")
    meta = prepare.prepare("again", rows, format="jsonl", tokenizer=str(before / where))
    assert meta["tokenizer_hash"] == meta_of(before / "datasets/rows")["tokenizer_hash"]
    for name in ("train.bin", "train_mask.bin", "val.bin", "val_mask.bin"):
        again, was = (before / "datasets" / folder / name for folder in ("again", "rows"))
        assert again.read_bytes() == was.read_bytes()


# ---- runs
def same_numbers(rows: list[dict], expected: list[dict], tol: float) -> None:
    """Losses, learning rates and gradient norms of two metrics.jsonl; times differ, of course."""
    keys = ("step", "tokens", "loss", "lr", "grad_norm", "train_loss", "val_loss")
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        found = {key: row[key] for key in keys if key in row}
        assert found == pytest.approx({key: other[key] for key in keys if key in other}, rel=tol, abs=0)


@pytest.mark.parametrize("run", RUNS)
def test_a_run_goes_on_as_the_old_code_went_on(before, start, run):
    out = before / f"out-{run}"
    start("train.py", f"--out_dir={out}", *GO_ON)
    rows = read_rows(out / "metrics.jsonl")
    assert rows[-1]["step"] == 8
    same_numbers(rows, read_rows(before / f"out-{run}-resumed/metrics.jsonl"), 1e-4)


def test_a_run_is_sampled_and_evaluated(before, start, capsys):
    flags = (f"--out_dir={before / 'out-adamw'}", "--device=cpu")
    start("sample.py", *flags, "--start=I", "--max_new_tokens=30")
    text = (before / "sample.txt").read_text(encoding="utf-8")
    assert len(text) > 30
    assert f"\nI{text}" in capsys.readouterr().out
    start("evaluate.py", *flags)
    val_loss = read_rows(before / "out-adamw/metrics.jsonl")[-1]["val_loss"]
    assert f"val split of chars: loss {val_loss:.4f} +- " in capsys.readouterr().out


def test_shards_become_a_file(before, start, capsys):
    out = before / "out-muon"
    assert checkpoint.consolidate(out) == [out / "ckpt.pt"]
    shutil.rmtree(out / "ckpt_000004")
    start("evaluate.py", f"--out_dir={out}", "--file=ckpt.pt", "--device=cpu")
    val_loss = read_rows(out / "metrics.jsonl")[-1]["val_loss"]
    assert f"val split of rows: loss {val_loss:.4f} +- " in capsys.readouterr().out


@pytest.mark.parametrize("run", RUNS)
def test_old_weights_start_a_new_run(before, start, tmp_path, run):
    flags = [f"--init_from={before / f'out-{run}'}", f"--dataset={RUNS[run]}", "--max_iters=1"]
    start("train.py", *SMALL.split(), *flags)
    assert checkpoint.load(tmp_path / "out/ckpt.pt")["step"] == 1


# ---- students' files
OLD_LINES = [
    ("from curve import evaluations, read_rows", "from runtime.curve import evaluations, read_rows"),
    ("import guard", "from runtime import guard"),
    ("    import corpora  # here", "    from text import corpora  # here"),
    ("import hardware as h", "from machine import hardware as h"),
    ("import data\nfolder, data.DATASETS = 1, 2\nV = data.prepare('play')\nw = data.Windows",
     "from text import prepare; import data\nfolder, prepare.DATASETS = 1, 2\nV = prepare.prepare('play')\n"
     "w = data.Windows"),
]  # fmt: skip
TODAYS_LINES = ["import data", "from text import corpora", "from memory_profiler import x", "import plans"]


@pytest.mark.parametrize(("was", "now"), OLD_LINES)
def test_moved_modules_are_found(was, now):
    assert course.up_to_date(was) == now


@pytest.mark.parametrize("line", TODAYS_LINES)
def test_other_lines_stay(line):
    assert course.up_to_date(line) == line


def test_what_has_moved_is_where_the_table_says():
    for folder, names in course.MOVED.items():
        assert [name for name in names.split("|") if not (ROOT / folder / f"{name}.py").is_file()] == []


def test_todays_lessons_need_no_rewriting():
    for path in course.lessons().values():
        assert course.up_to_date(course.read(path)) == course.read(path)


def judge(folder: Path, number: int, warm: worker.Worker) -> dict[str, str]:
    file = str(folder / "work" / course.lessons()[number].name)
    exercises = course.checks(number).exercises
    jobs = {name: dict(lesson=number, exercise=name, file=file, seeds=[1, 2]) for name in exercises}
    return {name: warm.check(job)["line"] for name, job in jobs.items()}


def expected(number: int, lines: dict[str, str]) -> dict[str, str]:
    """What the grader has to say of the answers of then: right, but for mistakes that no input showed."""
    for name, said in FOUND_SINCE.items():
        assert name not in lines or said in lines[name]
    return {name: lines[name] if name in FOUND_SINCE else "right" for name in course.checks(number).exercises}


@pytest.mark.slow
def test_solved_lessons_are_right(before, warm):
    for number in SOLVED:
        lines = judge(before, number, warm)
        assert lines == expected(number, lines)


def test_progress_is_read(before, monkeypatch):
    monkeypatch.setenv("TINYLM_WORK", str(before / "work"))
    table = progress.table(progress.load_state())
    assert len(re.findall(r"^(9|15)[a-z] +right ", table, re.MULTILINE)) == 6
    assert "15.1  predicted 1,307, it is 1,307" in table


def test_a_notebook_imports_what_has_moved(before):
    source = course.read(before / "work/15_training.py")
    cells = json.loads(notebook.of(course.up_to_date(source)))["cells"]
    code = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert "from runtime.curve import" in code
    assert "data.DATASETS" not in code


def test_an_exam_imports_what_has_moved(before, tmp_path, monkeypatch):
    exam = "from checkpoint import check_plain\nfrom lessons.checks.training import exercises, predictions\n"
    (tmp_path / "training.py").write_text(exam, encoding="utf-8")
    monkeypatch.setenv("TINYLM_CHECKS", str(tmp_path))
    course.checks.cache_clear()
    try:
        assert course.checks(15).check_plain is checkpoint.check_plain
    finally:
        course.checks.cache_clear()


# ---- the same with all of it made just now
@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_run_goes_on_bit_for_bit(old, shell, tmp_path, run):
    out = tmp_path / "out"
    shutil.copytree(old / f"out-{run}", out)
    done = shell("train.py", f"--out_dir={out}", f"--dataset={old / 'datasets' / RUNS[run]}", *GO_ON)
    assert done.returncode == 0, done.stderr
    folders = (out, old / f"out-{run}-resumed")
    same_numbers(*(read_rows(folder / "metrics.jsonl") for folder in folders), 0)
    ends = [checkpoint.load(checkpoint.newest(folder / "ckpt.pt")) for folder in folders]
    for part in ("model", "optimizer"):
        now, was = (leaves(end[part]) for end in ends)
        assert len(now) == len(was) > 0
        assert all(torch.equal(a, b) for a, b in zip(now, was, strict=True))


def leaves(value) -> list[torch.Tensor]:
    """The tensors in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [leaf for part in values for leaf in leaves(part)]


@pytest.mark.slow
def test_all_solved_lessons_are_right(old, warm):
    for number in OLD:
        lines = judge(old, number, warm)
        assert lines == expected(number, lines)


@pytest.mark.slow
@pytest.mark.parametrize("number", SOLVED)
def test_a_solved_lesson_runs(before, shell, number):
    env = {**os.environ, "TINYLM_WORK": str(before / "work")}
    done = shell("lessons/run.py", "show", f"{number}", env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "is not written yet" not in done.stdout
