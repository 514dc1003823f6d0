"""Resuming from an earlier checkpoint, and what a run must not overwrite, or not stop at."""

import json
import os
import shutil

import pytest
import torch

import evaluate
from conftest import TINY
from runtime import branch, checkpoint
from runtime.origin import Progress, progress_of

FLAGS = (
    "--dropout=0.1",
    "--save_interval=5",
    "--eval_interval=5",
    "--log_interval=1",
    "--keep_checkpoints=9",
)


def listing(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def rows(folder) -> list[dict]:
    """metrics.jsonl, without what differs between two runs of the same: times and memory."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    keys = ("step", "tokens", "loss", "lr", "grad_norm", "clipped", "train_loss", "val_loss")
    return [{key: row[key] for key in keys if key in row} for row in map(json.loads, lines)]


def state(path) -> dict:
    return torch.load(path, weights_only=True)


def same_state(one, other) -> None:
    one, other = state(one), state(other)
    assert one.keys() == other.keys()
    for name, weight in one["model"].items():
        assert torch.equal(weight, other["model"][name]), name
    for number, entry in one["optimizer"]["state"].items():
        assert all(torch.equal(t, other["optimizer"]["state"][number][name]) for name, t in entry.items())
    for name in ("step", "tokens", "best_val_loss", "best_step", "bad_evals", "evaluated_at"):
        assert one[name] == other[name], name


made: dict[str, object] = {}  # the run below, made once


@pytest.fixture
def run(train, tmp_path, tmp_path_factory):
    """A run of 20 updates with a checkpoint at every fifth; its folder."""
    out = tmp_path / "out"
    if not made:
        train(*FLAGS, "--max_iters=20")
        made["run"] = shutil.copytree(out, tmp_path_factory.mktemp("made") / "out")
    else:
        shutil.copytree(made["run"], out)
    return out


# ---- resume:NAME
@pytest.mark.parametrize("name", ["ckpt_000010.pt", "ckpt_000010"])
def test_a_run_goes_on_exactly_from_any_checkpoint(run, train, tmp_path, capsys, name):
    shutil.copytree(run, tmp_path / "straight")
    train(*FLAGS, f"--init_from=resume:{name}")
    same_state(run / "ckpt.pt", tmp_path / "straight/ckpt.pt")
    same_state(run / "best.pt", tmp_path / "straight/best.pt")
    assert rows(run) == rows(tmp_path / "straight")
    aside = run / "after_000010"
    assert f"what was later than step 10 is now in {aside}" in capsys.readouterr().out
    kept = {"ckpt.pt", "best.pt", "ckpt_000015.pt", "ckpt_000020.pt", "result.json", "loss.png"}
    assert listing(aside) == {*kept, "metrics.jsonl", "samples.txt", "config.json"}
    for name in listing(aside):
        assert (aside / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_second_branch_has_a_folder_of_its_own_and_resume_goes_on_with_it(run, train):
    train(*FLAGS, "--init_from=resume:ckpt_000010.pt", "--max_iters=12", "--learning_rate=1e-3")
    again = train(*FLAGS, "--init_from=resume", "--max_iters=14")
    assert again["progress"].step == 14
    assert again["config"]["learning_rate"] == 1e-3
    train(*FLAGS, "--init_from=resume:ckpt_000010.pt", "--max_iters=11")
    assert {"after_000010", "after_000010_2"} <= listing(run)
    assert state(run / "after_000010/ckpt.pt")["step"] == 20
    assert state(run / "after_000010_2/ckpt.pt")["step"] == 14
    assert state(run / "ckpt.pt")["step"] == 11


def test_rotation_leaves_what_was_set_aside(run, train):
    train(*FLAGS, "--init_from=resume:ckpt_000010.pt", "--keep_checkpoints=1", "--save_interval=2")
    assert {"ckpt_000015.pt", "ckpt_000020.pt"} <= listing(run / "after_000010")
    assert [path.name for path in run.glob("ckpt_*.pt")] == ["ckpt_000020.pt"]


def test_the_best_checkpoint_is_one_to_go_on_from(train, tmp_path, monkeypatch):
    found = {"train.bin": 3.0, "val.bin": iter([3.0, 1.0, 2.0, 2.0, 0.5])}

    def scripted(model, windows, *args, **kwargs):
        value = found[windows.path.name]
        return {
            "loss": value if isinstance(value, float) else next(value),
            "standard_error": 0.1,
            "by_corpus": {},
        }

    monkeypatch.setattr(evaluate, "evaluate", scripted)
    train(*FLAGS, "--max_iters=15")
    out = tmp_path / "out"
    names = train(*FLAGS, "--init_from=resume:best.pt", "--max_iters=10")
    assert listing(out / "after_000005") >= {"ckpt.pt", "ckpt_000010.pt", "ckpt_000015.pt"}
    assert "best.pt" not in listing(out / "after_000005")
    assert (names["progress"].best_step, state(out / "best.pt")["step"]) == (10, 10)


@pytest.mark.parametrize("name", ["ckpt_000007.pt", "", "../out/ckpt.pt", "metrics.jsonl"])
def test_a_wrong_name_lists_what_there_is(run, train, name):
    before = listing(run)
    with pytest.raises(
        ValueError, match=r"there are: best.pt, ckpt.pt, ckpt_000005.pt, ckpt_000010.pt, ckpt_"
    ):
        train(f"--init_from=resume:{name}")
    assert listing(run) == before


def test_nothing_moves_before_the_run_can_start(run, train):
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    for flag in ("--start=€", "--n_layer=3", "--max_iters=10", "--wandb_log=True --wandb_project=x"):
        with pytest.raises(ValueError):
            train("--init_from=resume:ckpt_000010.pt", *flag.split())
    with pytest.raises(SystemExit):
        train("--init_from=resume:ckpt_000010.pt", "--eval_only")
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_a_damaged_checkpoint_that_was_named_is_not_replaced_by_another(run, train):
    content = (run / "ckpt_000010.pt").read_bytes()
    (run / "ckpt_000010.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="ckpt_000010.pt cannot be read"):
        train("--init_from=resume:ckpt_000010.pt")
    assert "after_000010" not in listing(run)


def test_a_kill_while_files_are_moved_loses_nothing(run, tmp_path, monkeypatch):
    """Killed at the first, second, ... call that changes the folder: each checkpoint is there, complete."""

    class Killed(BaseException):
        pass

    def contents(folder) -> set[bytes]:
        return {path.read_bytes() for path in folder.rglob("*.pt")}

    for calls in range(30):
        folder = tmp_path / f"copy{calls}"
        shutil.copytree(run, folder)
        before, left = contents(folder), [calls]
        with monkeypatch.context() as patch:
            for name in ("link", "replace", "mkdir"):
                real = getattr(os, name)

                def dying(*args, real=real, left=left, **kwargs):
                    left[0] -= 1
                    if left[0] < 0:
                        raise Killed
                    return real(*args, **kwargs)

                patch.setattr(os, name, dying)
            try:
                branch.set_aside("resume:ckpt_000010.pt", folder, 10)
            except Killed:
                pass
            else:
                break
        assert contents(folder) == before
        assert checkpoint.load(folder / "ckpt.pt", shards=True)["step"] in (10, 20)
        branch.set_aside("resume:ckpt_000010.pt", folder, 10)  # the same command again
        assert contents(folder) == before
        assert checkpoint.load(folder / "ckpt.pt", shards=True)["step"] == 10
        assert {path.name for path in folder.glob("*.pt")} == {"ckpt.pt", "ckpt_000005.pt", "ckpt_000010.pt"}
    assert calls > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ckpt_000010", "best_000010"])
def test_a_run_in_shards_goes_on_exactly(train, tmp_path, name):
    flags = (*FLAGS, "--checkpoint_format=sharded")
    train(*flags, "--max_iters=20")
    out = tmp_path / "out"
    shutil.copytree(out, tmp_path / "straight")
    if name.startswith("best") and not (out / name).exists():
        shutil.copytree(out / "ckpt_000010", out / name)
        shutil.rmtree(out / "ckpt_000010")
    train(*flags, f"--init_from=resume:{name}")
    one, other = (checkpoint.load(checkpoint.newest(p / "ckpt.pt")) for p in (out, tmp_path / "straight"))
    assert all(torch.equal(weight, other["model"][key]) for key, weight in one["model"].items())
    assert rows(out) == rows(tmp_path / "straight")
    assert "ckpt_000020" in {path.name[:11] for path in (out / "after_000010").iterdir()}


# ---- a run does not overwrite its base
@pytest.mark.parametrize(
    "spelling", ["{out}", "{out}/", "{out}/ckpt.pt", "{out}/../out/best.pt", "{link}", "{file}"]
)
def test_a_run_does_not_overwrite_its_own_base(run, train, tmp_path, spelling):
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "file.pt").symlink_to(run / "ckpt.pt")
    before = {path: path.read_bytes() for path in run.iterdir()}
    path = spelling.format(out=run, link=tmp_path / "link", file=tmp_path / "file.pt")
    with pytest.raises(ValueError, match="where a new run would overwrite it; choose another --out_dir"):
        train(f"--init_from={path}")
    with pytest.raises(ValueError, match="would overwrite it"):
        train(f"--init_from={run}", f"--out_dir={tmp_path / 'link'}")
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    with pytest.raises(SystemExit):
        train(f"--init_from={path}", "--eval_only")


# ---- stopping early
def losses_of(monkeypatch, values):
    """Let evaluations find these val losses."""
    found = iter(values)

    def scripted(model, windows, *args, **kwargs):
        return {
            "loss": next(found) if windows.path.name == "val.bin" else 1.0,
            "standard_error": 0.1,
            "by_corpus": {},
        }

    monkeypatch.setattr(evaluate, "evaluate", scripted)


def test_slow_but_steady_progress_is_not_stopped(train, monkeypatch):
    """best.pt was saved at each evaluation, and the run was stopped for lack of progress."""
    losses_of(monkeypatch, [3.0, 2.94, 2.88, 2.82, 2.76, 2.70])
    names = train("--patience=2", "--min_delta=0.1", "--eval_interval=2", "--max_iters=10")
    assert names["progress"].step == 10
    assert (names["progress"].best_step, names["progress"].bad_evals) == (10, 1)


def test_progress_below_min_delta_in_all_is_stopped(train, monkeypatch):
    losses_of(monkeypatch, [3.0, 2.99, 2.98, 2.97, 2.96, 2.95])
    names = train("--patience=3", "--min_delta=0.1", "--eval_interval=2", "--max_iters=10")
    assert (names["progress"].step, names["progress"].best_step) == (6, 6)


@pytest.mark.parametrize(
    ("more", "end"),
    [
        ("--max_iters=40", 25),
        ("--patience=0", 30),
        ("", 15),
        *(
            pytest.param(more, end, marks=pytest.mark.slow)
            for more, end in (
                ("--epochs=1", 25),
                ("--patience=4", 25),
                ("--max_iters=30", 15),
                ("--max_iters=20", 15),
            )
        ),
    ],
)
def test_a_run_that_stopped_early_goes_on_when_it_is_told_to(run_script, monkeypatch, more, end):
    flags = ["--dataset=small", *(f for f in TINY if "max_iters" not in f), "--eval_interval=5"]
    losses_of(monkeypatch, [3, 2.0, 2.5, 2.5])
    assert run_script("train.py", *flags, "--max_iters=30", "--patience=2")["progress"].step == 15
    losses_of(monkeypatch, [2.5] * 9)
    names = run_script("train.py", *flags, "--init_from=resume", *more.split())
    assert names["progress"].step == end


def test_an_older_checkpoint_compares_with_its_best():
    saved = {"best_val_loss": 2.0, "bad_evals": 1}
    assert progress_of(saved).val_loss_to_beat == 2.0
    assert progress_of({}) == Progress()


# ---- a checkpoint of nanoGPT
def nanogpt(path, **more) -> None:
    shape = dict(n_layer=1, n_head=1, n_embd=8, block_size=8, bias=False, vocab_size=65, dropout=0.0)
    state = {"model": {"_orig_mod.transformer.wte.weight": torch.ones(65, 8)}, "optimizer": {}, "iter_num": 5}
    torch.save({**state, "model_args": shape, "best_val_loss": torch.tensor(1.5), "config": {}, **more}, path)


class Strange:
    """What weights_only=True refuses to load."""


@pytest.mark.parametrize("more", [{}, {"config": Strange()}])
@pytest.mark.parametrize("script", ["sample.py", "evaluate.py", "train.py"])
def test_a_checkpoint_of_nanogpt_is_called_that(train, run_script, tmp_path, script, more):
    folder = tmp_path / "theirs"
    folder.mkdir()
    nanogpt(folder / "ckpt.pt", **more)
    message = "theirs/ckpt.pt is a checkpoint of nanoGPT; to make a run of it: python -m techniques.pre"
    with pytest.raises(ValueError, match=message):
        if script == "train.py":
            train(f"--init_from={folder}")
        else:
            run_script(script, f"--out_dir={folder}")
    if script == "train.py":
        with pytest.raises(ValueError, match=message):
            train("--init_from=resume", f"--out_dir={folder}")


def test_a_name_without_its_ending_is_named_with_it(run, run_script):
    """The advice was to copy ckpt.pt to ckpt."""
    with pytest.raises(
        ValueError, match=r"there is no .*nothing; the newest file that loads is .*: use --file=ckpt"
    ):
        run_script("sample.py", "--file=nothing")


def test_a_checkpoint_may_be_named_with_its_folder(train, tmp_path):
    train("--save_interval=10", "--max_iters=20")
    out = tmp_path / "out"
    assert branch.named(f"resume:{out / 'ckpt_000010.pt'}", out) == out / "ckpt_000010.pt"
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ValueError, match="has no checkpoint"):
        branch.named(f"resume:{out / 'ckpt_000010.pt'}", tmp_path / "elsewhere")
