"""Broken disks: no damaged checkpoint loads in silence, and no good one is lost.

Full, read-only and deleted folders, files that end too early, and bits that have flipped.
"""

import contextlib
import os
import random
import resource
import shutil
import subprocess
import sys

import pytest
import torch

import data
from conftest import ROOT, TINY
from runtime import checkpoint
from test_errors import report

pytestmark = pytest.mark.slow
FILE, SHARDED = "--checkpoint_format=file", "--checkpoint_format=sharded"
FLAGS = ("--eval_interval=2", "--max_iters=4", "--lr_decay_iters=20")


def flat(value, name="") -> dict:
    """Everything in a checkpoint by its place, tensors as bytes."""
    if isinstance(value, torch.Tensor):
        return {name: (value.shape, value.dtype, value.numpy().tobytes())}
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{name}/{key}").items()}
    return {name: repr(value)}


def damaged(content: bytes, rng: random.Random, count: int):
    """The content cut off at `count` random places, and with one bit flipped at as many, a half of those in
    the tables that zip files have at their ends."""
    for _ in range(count):
        yield content[: rng.randrange(len(content))]
    for i in range(count):
        place = (
            rng.randrange(len(content)) if i % 2 else len(content) - 1 - rng.randrange(4096) % len(content)
        )
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        yield bytes(flipped)


@contextlib.contextmanager
def small_disk(folder, megabytes: int):
    """A disk of so many MB at folder, where mounting is allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def run(datasets, out, *flags, limit=0) -> subprocess.CompletedProcess:
    """train.py in a process of its own, whose files may not be larger than `limit` bytes."""
    command = ["train.py", f"--dataset={datasets / 'small'}", *TINY, *FLAGS, f"--out_dir={out}", *flags]
    smaller = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=100,
        preexec_fn=smaller,
    )


def one_line(done) -> str:
    """The error of a run that ended with exit code 2 and one line."""
    lines = [line for line in done.stderr.splitlines() if "Warning" not in line]
    assert (done.returncode, len(lines)) == (2, 1), done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_a_damaged_file_is_refused_or_the_same(train, tmp_path, request, figure):
    train(*FLAGS)
    path, rng = tmp_path / "out/ckpt.pt", random.Random(5)
    whole, content = flat(checkpoint.load(path)), path.read_bytes()
    count = 500 if request.config.getoption("--long", default=False) else 50
    n = refused = 0
    for bad in damaged(content, rng, count):
        path.write_bytes(bad)
        n += 1
        try:
            assert flat(checkpoint.load(path)) == whole  # where it does not matter: in the padding, say
        except ValueError as error:
            assert str(path) in str(error)
            assert f"the newest file that loads is {tmp_path / 'out/best.pt'}: copy it" in str(error)
            refused += 1
            if n % 10 == 0:
                assert checkpoint.load(path, shards=True)["step"] == 4  # best.pt comes in its place
    assert refused > n / 2
    figure(f"{n} damaged checkpoints: {refused} refused, the others load with every bit as it was")


def test_damaged_shards_are_refused_or_the_same(train, tmp_path, figure):
    train(*FLAGS, SHARDED)
    (folder,) = (tmp_path / "out").glob("ckpt_000004")
    whole, rng, n, refused = flat(checkpoint.load(folder)), random.Random(6), 0, 0
    for path in folder.iterdir():
        content = path.read_bytes()
        for bad in damaged(content, rng, 9):
            path.write_bytes(bad)
            n += 1
            try:
                assert flat(checkpoint.load(folder)) == whole, path
            except ValueError as error:
                assert str(folder) in str(error)
                refused += 1
        path.write_bytes(content)
    assert refused > n / 2
    assert flat(checkpoint.load(folder)) == whole
    figure(f"{n} damaged shards: {refused} refused, the others load with every bit as it was")


@pytest.mark.parametrize("format", [FILE, SHARDED])
def test_a_run_goes_on_from_the_newest_good_one(train, tmp_path, capsys, format):
    train(*FLAGS, format, "--save_interval=2", "--eval_interval=100")
    out = tmp_path / "out"
    newest = checkpoint.newest(out / "ckpt.pt")
    files = [out / "ckpt.pt", out / "ckpt_000004.pt", *out.glob("ckpt_000004*/__0_0.distcp")]
    for path in filter(lambda path: path.exists(), files):
        content = bytearray(path.read_bytes())
        for place in range(0, len(content), 1000):
            content[place] ^= 4
        path.write_bytes(content)
    for path in out.glob("best*"):  # as if there were none
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    names = train("--init_from=resume", "--max_iters=6")
    printed = capsys.readouterr().out
    assert names["progress"].step == 6
    lines = [line for line in printed.splitlines() if "going on from" in line]
    assert lines[0].startswith(f"WARNING: {newest} cannot be read")
    assert "going on from step 2 in" in lines[-1]


@pytest.mark.parametrize("format", [FILE, SHARDED])
def test_files_that_may_not_grow(datasets, tmp_path, train, format):
    """RLIMIT_FSIZE is what a full disk is to one file."""
    out = tmp_path / "out"
    train(*FLAGS, format)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.suffix in (".pt", ".distcp")}
    resumed = ("--init_from=resume", "--eval_interval=1")
    line = one_line(run(datasets, out, *resumed, "--max_iters=20", limit=50_000))
    assert "could not be saved: File too large. The previous checkpoint is unchanged" in line
    assert {path: path.read_bytes() for path in before} == before
    assert not list(out.rglob("*.tmp"))
    assert checkpoint.load(out / "ckpt.pt")["step"] == 4
    train(*resumed, "--max_iters=6")  # there is room again
    assert checkpoint.load(out / "ckpt.pt")["step"] == 6


def test_a_disk_that_fills_up_and_one_that_is_read_only(datasets, tmp_path):
    with small_disk(tmp_path / "disk", 3):
        out = tmp_path / "disk/out"
        flags = ("--save_interval=1", "--keep_checkpoints=100", "--max_iters=50", "--eval_interval=100")
        line = one_line(run(datasets, out, *flags))
        assert "could not be saved: No space left on device" in line
        assert not list(out.rglob("*.tmp"))
        steps = [checkpoint.load(path)["step"] for path in sorted(out.glob("ckpt_*.pt"))]
        assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 2
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        assert "Read-only file system" in one_line(run(datasets, out, "--init_from=resume"))


@pytest.mark.parametrize("format", [FILE, SHARDED])
def test_a_folder_that_is_deleted_during_the_run(train, tmp_path, monkeypatch, capsys, format):
    """The run goes on and saves again, or ends with one line; a file's state is then saved before."""
    batch, out = data.Windows.batch, tmp_path / "out"

    def remove(self, step, *args):
        while step == 3 and out.exists():  # shards that are being written may come back once
            shutil.rmtree(out, ignore_errors=True)
        return batch(self, step, *args)

    monkeypatch.setattr(data.Windows, "batch", remove)
    try:
        train("--eval_interval=2", "--max_iters=8", "--log_interval=1", format)
    except Exception as error:
        assert report(error) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.count("error: ") <= 1
    if format == FILE:
        assert checkpoint.load(out / "ckpt.pt")["step"] >= 4


def test_every_bit_of_an_entry_in_the_zip_file_s_table(train, tmp_path):
    """Bit 4 of the attributes marks a folder: torch loaded it with what happened to lie in memory."""
    train(*FLAGS)
    path = tmp_path / "out/ckpt.pt"
    whole, content = flat(checkpoint.load(path)), path.read_bytes()
    first = content.rindex(b"PK\x01\x02", 0, content.rindex(b"data/1"))  # the table is at the end
    results = set()
    for bit in range(8 * 46):  # the fixed part of an entry
        flipped = bytearray(content)
        flipped[first + bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert flat(checkpoint.load(path)) == whole, bit
            results.add("same")
        except ValueError:
            results.add("refused")
    assert results == {"same", "refused"}
