"""dataset.py and settle.settle: the old stays until the new is there, and what counts is the content."""

import errno
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import data
from conftest import ROOT, TINY
from test_data import decode, error_of, own_datasets, write, write_rows
from text import corpora, dataset, prepare, settle
from text.token_files import SPLITS

__all__ = ["own_datasets"]  # a fixture: each test has its own datasets folder
OLD_TEXT, NEW_TEXT = "old text " * 50, "something new " * 60


def whole(name: str) -> str:
    """The text of a dataset, whose files must be those that its meta.json says, with the right content."""
    folder = prepare.folder_of(name)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    for split, counts in meta["splits"].items():
        found = dataset.sha256_in_shards(folder, split, counts, meta["dtype"], counts.get("shards"))
        assert found == counts["sha256"]
    assert sorted(os.listdir(folder)) == sorted([*dataset.names_in(meta), "meta.json"])
    return "".join(decode(name, split) for split in SPLITS if split in meta["splits"])


@pytest.fixture(params=["folder", "link to another place", "link to another disk"])
def home(request, tmp_path):
    """Where `mine` lies: in datasets/, or behind a link."""
    prepare.DATASETS.mkdir()
    if request.param == "folder":
        yield prepare.DATASETS
        return
    place = tmp_path / "elsewhere"
    if "disk" in request.param:
        place = Path("/dev", "shm", f"tinylm-{os.getpid()}")
        if not place.parent.is_dir() or place.parent.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no other disk")
    place.mkdir()
    (prepare.DATASETS / "mine").symlink_to(place)
    yield place
    shutil.rmtree(place, ignore_errors=True)


def one_fails(n: int, patch, error: BaseException) -> list:
    """From now on, the n-th call of os.replace fails. Returns a list of all calls."""
    calls, replace = [], os.replace

    def failing(source, target):
        calls.append(target)
        if len(calls) == n:
            raise error
        replace(source, target)

    patch.setattr(os, "replace", failing)
    return calls


def test_a_dataset_is_replaced_also_behind_a_link(home, tmp_path):
    """The files lie where the link leads; nothing temporary is left on either disk."""
    for text in (OLD_TEXT, NEW_TEXT):
        prepare.prepare("mine", write(tmp_path / "a.txt", text))
        assert whole("mine") == text
    assert os.listdir(prepare.DATASETS) == ["mine"]
    assert (prepare.DATASETS / "mine").is_symlink() == (home != prepare.DATASETS)


@pytest.mark.parametrize("failure", [OSError(errno.EBUSY, "busy"), KeyboardInterrupt()])
def test_each_rename_fails_once_and_the_old_dataset_is_whole(home, tmp_path, monkeypatch, failure):
    """The n-th rename fails, for each n: a line says so, and old or new is complete; here, always the old."""
    prepare.prepare("mine", write(tmp_path / "a.txt", OLD_TEXT), test_ratio=0.1)
    path, n = write(tmp_path / "a.txt", NEW_TEXT), 0
    while True:
        n += 1
        with monkeypatch.context() as patch:
            calls = one_fails(n, patch, failure)
            try:
                prepare.prepare("mine", path, format="lines", val_ratio=0)
            except (ValueError, KeyboardInterrupt) as error:
                assert isinstance(error, KeyboardInterrupt) or "it is as it was" in str(error)
        if len(calls) < n:
            break
        assert whole("mine") == OLD_TEXT
        assert os.listdir(prepare.DATASETS) == ["mine"]
    assert n > 8
    assert NEW_TEXT in whole("mine")


def test_a_first_dataset_that_fails_leaves_nothing(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", OLD_TEXT)
    for n in range(1, 6):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match="could not be replaced"):
            one_fails(n, patch, OSError(errno.EBUSY, "busy"))
            prepare.prepare("mine", path)
        assert os.listdir(prepare.DATASETS) == []


def test_renames_that_cannot_cross_disks_become_copies(tmp_path, monkeypatch):
    """As where datasets/mine is the mount point of a disk: EXDEV for every rename into it from outside."""
    prepare.prepare("mine", write(tmp_path / "a.txt", OLD_TEXT))
    replace, folder = os.replace, str(prepare.DATASETS / "mine")

    def on_one_disk(source, target):
        if str(source).startswith(folder) != str(target).startswith(folder):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", on_one_disk)
    prepare.prepare("mine", write(tmp_path / "a.txt", NEW_TEXT))
    assert whole("mine") == NEW_TEXT
    assert os.listdir(prepare.DATASETS) == ["mine"]


KILLED = """
import os, pathlib, signal, sys
from text import prepare
prepare.DATASETS, n, path = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
calls, replace = [], os.replace
def killed(source, target):
    calls.append(target)
    if len(calls) == n:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
for i in range(1, 10):  # a process for each n would load torch ten times
    pid = os.fork()
    if not pid:
        prepare.DATASETS, n = pathlib.Path(sys.argv[1]) / str(i), i
        os.replace = killed
        prepare.prepare("mine", path)
        os._exit(0)
    print(i, os.waitpid(pid, 0)[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_each_rename_old_or_new_is_whole(tmp_path, monkeypatch):
    """kill -9 before the n-th rename, for each n: whoever reads it next finds one complete dataset."""
    prepare.prepare("mine", write(tmp_path / "a.txt", OLD_TEXT), test_ratio=0.1)
    for i in range(1, 10):
        shutil.copytree(prepare.DATASETS, tmp_path / "many" / str(i))
    path = write(tmp_path / "b.txt", NEW_TEXT)
    command = [sys.executable, "-c", KILLED, tmp_path / "many", "0", path]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    codes = [line.split()[1] for line in run.stdout.splitlines() if len(line.split()) == 2]
    assert codes == [str(int(signal.SIGKILL))] * 9, run.stderr
    for i in range(1, 10):
        monkeypatch.setattr(prepare, "DATASETS", tmp_path / "many" / str(i))
        found = settle.ensure("mine")
        assert data.Windows("mine", "train", 8).n_tokens == found["splits"]["train"]["tokens"]
        assert decode("mine") + decode("mine", "val") + decode("mine", "test") == OLD_TEXT
        prepare.prepare("mine", path)
        assert whole("mine") == NEW_TEXT


def test_a_link_to_a_disk_that_is_not_there(tmp_path):
    prepare.DATASETS.mkdir()
    (prepare.DATASETS / "mine").symlink_to(tmp_path / "unmounted")
    message = error_of(prepare.prepare, "mine", write(tmp_path / "a.txt", OLD_TEXT))
    assert "is a link to" in message and "mount that disk" in message


# ---- identity is content
def checked(meta: dict, name: str) -> None:
    folder = prepare.folder_of(name)
    dataset.require_same_content(meta, settle.read_meta(folder), folder, "out-x", "or so")


def test_the_same_content_under_another_name_in_shards_is_the_same(tmp_path):
    text = "".join(f"line {i}\n" for i in range(900))
    path = write(tmp_path / "a.txt", text)
    settings = [{}, {"shard_mb": 0.002}, {"shard_mb": 0.0031}]
    metas = [prepare.prepare(f"n{i}", path, **more) for i, more in enumerate(settings)]
    for meta in metas:
        for i in range(3):
            checked(json.loads(json.dumps(meta)), f"n{i}")
    prepare.prepare("n1", write(tmp_path / "a.txt", text.replace("line 7\n", "line 8\n")), shard_mb=0.002)
    for meta in metas:
        assert "trained on another text" in error_of(checked, meta, "n1")


def test_other_masks_over_the_same_ids_are_another_content(tmp_path):
    rows = [[{"prompt": "ab", "response": "cd"}], [{"prompt": "abc", "response": "d"}]]
    metas = []
    for i, some in enumerate(rows):
        path = write_rows(tmp_path / f"{i}.jsonl", some * 9)
        metas.append(prepare.prepare(f"n{i}", path, val_ratio=0))
    assert metas[0]["splits"]["train"]["sha256"] == metas[1]["splits"]["train"]["sha256"]
    assert "another text" in error_of(checked, metas[0], "n1")


def test_checkpoints_of_earlier_versions_have_less_to_compare(tmp_path):
    meta = prepare.prepare("mine", write(tmp_path / "a.txt", OLD_TEXT))
    checked({"splits": {"train": {"tokens": meta["splits"]["train"]["tokens"]}}}, "mine")
    checked({}, "mine")
    assert "splits" in error_of(checked, {"splits": 5}, "mine")
    assert "sha256" in error_of(checked, {"splits": {"train": {"sha256": 5}}}, "mine")
    assert "another text" in error_of(checked, {"splits": {"gone": {"sha256": "1"}}}, "mine")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with mine.txt."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(Path("mine.txt"), OLD_TEXT)
    return tmp_path / "here"


# ---- straight from a file
def test_a_file_is_prepared_by_its_name_and_again_when_it_changes(here, capsys):
    assert settle.settle("mine.txt")[0] == "mine.txt"
    assert whole("mine.txt") == OLD_TEXT
    assert "preparing mine.txt by characters as dataset mine.txt (" in capsys.readouterr().out
    before = (prepare.DATASETS / "mine.txt" / "meta.json").stat().st_mtime_ns
    for spelling in ("mine.txt", "./mine.txt", str(here / "mine.txt")):
        name, meta = settle.settle(spelling)
        assert (name, capsys.readouterr().out) == ("mine.txt", "")
    assert (prepare.DATASETS / "mine.txt" / "meta.json").stat().st_mtime_ns == before
    write(here / "mine.txt", NEW_TEXT)
    settle.settle("mine.txt")
    said = "preparing mine.txt, which has changed, by characters as dataset mine.txt ("
    assert said in capsys.readouterr().out
    assert whole("mine.txt") == NEW_TEXT


def test_a_resumed_run_keeps_its_text(here):
    """The file has changed: one line, and the dataset of the run is still there; its path goes on."""
    trained = settle.settle("mine.txt")[1]
    settle.settle("mine.txt", resume=True)
    write(here / "mine.txt", NEW_TEXT)
    for name in ("mine.txt", "./mine.txt"):
        message = error_of(settle.settle, name, resume=True)
        assert f"mine.txt is not the text in {prepare.DATASETS / 'mine.txt'}" in message
        assert "--init_from=scratch --out_dir=NEW" in message
    assert whole("mine.txt") == OLD_TEXT
    assert settle.settle(str(prepare.DATASETS / "mine.txt"), resume=True)[0] == "mine.txt"

    settle.settle("mine.txt")  # another run has prepared the new text meanwhile
    write(here / "mine.txt", OLD_TEXT)  # and the old one is back
    words = re.search(r"add --dataset=NAME, .*\(python data.py (.*?)\)$", message)[1].split()
    assert words == ["--input=FILE", "--name=NAME"]
    assert "mine.txt is not the text in" in error_of(settle.settle, "mine.txt", resume=True)
    prepare.prepare("kept", str(here / "mine.txt"))  # what that command does
    settle.require_same({"dataset": trained}, settle.settle("kept", resume=True)[1], "kept", "out")


def test_a_resumed_run_knows_its_file_from_any_folder(here, tmp_path, monkeypatch):
    settle.settle("mine.txt")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    assert settle.settle("mine.txt", resume=True)[0] == "mine.txt"
    write(Path("mine.txt"), NEW_TEXT)  # another file of that name, which the run has never seen
    assert settle.settle("mine.txt", resume=True)[0] == "mine.txt"
    assert whole("mine.txt") == OLD_TEXT
    assert settle.settle("mine.txt")[0] == "mine.txt-2"  # a new run: this file; the other dataset stays
    assert (whole("mine.txt"), whole("mine.txt-2")) == (OLD_TEXT, NEW_TEXT)


def test_what_is_no_text_is_not_called_one(here, capsys):
    """`bad.bin is a text, and is prepared by characters` stood before the error that it is binary."""
    (here / "bad.bin").write_bytes(bytes(range(256)))
    assert "bad.bin" in error_of(settle.settle, "bad.bin")
    assert capsys.readouterr().out == ""
    (here / "texts").mkdir()
    write(here / "texts" / "a.txt", OLD_TEXT)
    settle.settle("texts")
    assert "preparing the folder texts by characters as dataset texts.folder (" in capsys.readouterr().out


def test_folders_rows_and_odd_names(here):
    (here / "my texts (1)").mkdir()
    write(here / "my texts (1)" / "a.txt", OLD_TEXT)
    write(here / "my texts (1)" / "b.txt", "more of it " * 9)
    name, meta = settle.settle("my texts (1)")
    assert name == "my-texts-1-.folder" and meta["splits"]["train"]["documents"] > 1
    write(here / "my texts (1)" / "a.txt", OLD_TEXT + "more of it " * 9)  # the same text, cut elsewhere
    write(here / "my texts (1)" / "b.txt", "")
    assert settle.settle("my texts (1)")[1]["sha256"] != meta["sha256"]
    write_rows(here / "rows.jsonl", [{"prompt": "a", "response": "b"}] * 30)
    assert settle.settle("rows.jsonl")[1]["format"] == "jsonl"


def test_what_was_prepared_by_hand_is_never_replaced(here):
    prepare.prepare("mine.txt", write(here / "other", NEW_TEXT))
    assert settle.settle("mine.txt")[0] == "mine.txt"
    assert settle.settle("./mine.txt")[0] == "mine.txt-2"
    assert (whole("mine.txt"), whole("mine.txt-2")) == (NEW_TEXT, OLD_TEXT)


def test_local_files_never_disturb_known_datasets(here, monkeypatch):
    monkeypatch.setitem(prepare.KNOWN, "tiny", {"source": write(here / "t", NEW_TEXT)})
    write(here / "tiny", OLD_TEXT)
    assert settle.settle("tiny")[0] == "tiny" and whole("tiny") == NEW_TEXT
    assert settle.settle("./tiny")[0] == "tiny-2" and whole("tiny-2") == OLD_TEXT
    for name in prepare.KNOWN.keys() - {"tiny"}:
        assert prepare.KNOWN[name]["source"].startswith("builtin:")


def test_neither_a_dataset_nor_a_text(here):
    assert "dataset 'gone.txt' is not prepared" in error_of(settle.settle, "gone.txt")


# ---- through the scripts
@pytest.fixture
def scripts(run_script, here, monkeypatch):
    monkeypatch.setattr(prepare, "DATASETS", here / "datasets")
    write(here / "mine.txt", OLD_TEXT * 4)
    return run_script


def test_train_evaluate_and_resume_from_a_file(scripts, here, tmp_path, monkeypatch, capsys):
    """A run straight from a file; then the dataset is prepared anew with another text of the same letters."""
    flags = ("--dataset=mine.txt", *TINY, "--max_iters=2")
    assert scripts("train.py", *flags)["config"]["dataset"] == "mine.txt"
    assert "by characters as dataset mine.txt (" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    scripts("evaluate.py", "--device=cpu")
    scripts("train.py", "--init_from=resume", "--max_iters=3")
    shutil.copytree(here / "datasets" / "mine.txt", here / "datasets" / "copy")
    scripts("train.py", "--init_from=resume", "--dataset=copy", "--max_iters=4")

    other = write(here / "other.txt", "text old " * 200)
    prepare.prepare("copy", other)
    for script, more in (("train.py", "--init_from=resume"), ("evaluate.py", "--device=cpu")):
        with pytest.raises(ValueError, match="was trained on another text than .*copy holds now") as caught:
            scripts(script, more, *(["--max_iters=9"] if script == "train.py" else []))
        assert "prepare the old text again" in str(caught.value)
    with pytest.raises(ValueError, match="another text"):
        scripts("evaluate.py", "--device=cpu", "--split=train")
    scripts("evaluate.py", "--device=cpu", f"--input={other}")
    base = f"--init_from={tmp_path / 'out'}"
    scripts("train.py", base, "--dataset=copy", *TINY, "--max_iters=1", f"--out_dir={tmp_path / 'new'}")


def test_a_dataset_that_is_replaced_under_a_run_is_noticed(tmp_path):
    """It would go on with the other text, without a word: each batch opens the files anew."""
    for shard_mb in (0, 0.0001):
        prepare.prepare("mine", write(tmp_path / "a.txt", OLD_TEXT), shard_mb=shard_mb)
        windows = data.Windows("mine", "train", 8)
        windows.batch(0, 4)
        prepare.prepare("mine", write(tmp_path / "a.txt", "txet dlo " * 50), shard_mb=shard_mb)
        assert "was replaced while in use" in error_of(windows.batch, 1, 4)
        (prepare.DATASETS / "mine").rename(tmp_path / f"away {shard_mb}")
        assert "was replaced while in use" in error_of(windows.batch, 1, 4)


def test_the_stand_in_box_appears_once(scripts, tmp_path, monkeypatch, capsys):
    """When train.py prepares the text, when it finds it prepared, and when data.py prepares it."""
    monkeypatch.setattr(corpora, "DOWNLOADS", tmp_path / "downloads")
    monkeypatch.setattr(corpora, "SHAKESPEARE_SIZE", 5000)
    for _ in range(2):
        scripts("train.py", "--dataset=shakespeare_char", *TINY, "--max_iters=1")
        assert capsys.readouterr().out.count("TINY SHAKESPEARE COULD NOT BE DOWNLOADED") == 1
    monkeypatch.setattr(sys, "argv", ["data.py", "--name=shakespeare_char"])
    runpy.run_path(data.__file__, run_name="__main__")
    assert capsys.readouterr().out.count("TINY SHAKESPEARE COULD NOT BE DOWNLOADED") == 1
