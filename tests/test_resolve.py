"""What is typed is used, or a line says that it is not: learning rates, the batch, the length, the rest."""

import json

import pytest
import torch

import config
from conftest import TINY
from runtime import resolve

FEW = [flag for flag in TINY if not flag.startswith(("--max_iters", "--batch_size"))]


@pytest.fixture
def short(run_script):
    """short("--max_iters=2", ...) trains on the small text; max_iters and batch_size are not typed."""
    return lambda *flags: run_script("train.py", "--dataset=small", *FEW, *flags)


@pytest.fixture
def base(train, tmp_path) -> str:
    """A run of 20 updates under Muon, with the default learning rates."""
    train(f"--out_dir={tmp_path / 'base'}", "--eval_interval=1000")
    return str(tmp_path / "base")


def saved(tmp_path, name="out") -> dict:
    return torch.load(tmp_path / name / "ckpt.pt", weights_only=True)


def rates(names: dict) -> tuple[float, float]:
    """(learning_rate, muon_lr) of a run, as it saves them and as its optimizer has them."""
    found = names["config"]["learning_rate"], names["config"]["muon_lr"]
    assert (names["learning_rate"], names["muon_lr"]) == found
    scale = {group["kind"]: group["lr_scale"] for group in names["opt"].param_groups}
    assert found[0] * scale["muon"] == pytest.approx(found[1])
    return found


# ---- Muon's two learning rates
@pytest.mark.parametrize(("lr", "most"), [("1e-5", 0.05), ("", 0.3)])
def test_a_small_learning_rate_keeps_a_base_under_muon(base, train, tmp_path, figure, lr, most):
    """It changed the matrices by 170 % in 20 updates, with `lr 3.00e-05` on the screen."""
    train(f"--init_from={base}", *([f"--learning_rate={lr}"] if lr else []), "--lr_schedule=constant")
    before, after = (saved(tmp_path, name)["model"] for name in ("base", "out"))
    matrices = [name for name in before if before[name].ndim == 2]
    change = sum((after[name] - before[name]).square().sum() for name in matrices).sqrt()
    change = (change / sum(before[name].square().sum() for name in matrices).sqrt()).item()
    assert 0 < change < most
    rate = f"learning_rate={lr}" if lr else "a tenth of its rates"
    figure(f"under Muon, 20 updates at {rate} change a base by {change:.2%}")


def test_val_loss_of_a_base_does_not_jump_when_it_is_fine_tuned(base, train, tmp_path, capsys):
    names = train(f"--init_from={base}", "--eval_interval=2", "--max_iters=10", "--log_interval=1")
    assert rates(names) == pytest.approx((3e-4, 2e-3))
    assert (
        "a tenth of the base's learning rates: learning_rate=0.0003, muon_lr=0.002" in capsys.readouterr().out
    )
    rows = map(json.loads, (tmp_path / "out/metrics.jsonl").read_text(encoding="utf-8").splitlines())
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert max(losses) == losses[0]


def test_muon_lr_moves_with_a_typed_learning_rate(short, tmp_path, capsys):
    names = short("--max_iters=1", "--learning_rate=3e-5")
    assert rates(names) == pytest.approx((3e-5, 2e-4))
    assert saved(tmp_path)["config"]["muon_lr"] == pytest.approx(2e-4)  # what a resumed run goes on with
    assert (
        "muon_lr moves in proportion, from 0.02 to 0.0002 (--muon_lr sets it by itself)"
        in capsys.readouterr().out
    )
    assert rates(short("--max_iters=2", "--init_from=resume")) == pytest.approx((3e-5, 2e-4))
    names = short("--max_iters=3", "--init_from=resume", "--learning_rate=6e-5")
    assert rates(names) == pytest.approx((6e-5, 4e-4))
    assert rates(short("--max_iters=1", "--learning_rate=3e-5", "--muon_lr=0.01")) == (3e-5, 0.01)
    assert rates(short("--max_iters=1", "--muon_lr=0.01")) == (3e-3, 0.01)
    assert rates(short("--max_iters=1")) == (3e-3, 0.02)


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        ("learning_rate = 1e-3", [], (1e-3, 0.02 / 3)),
        ("muon_lr = 0.03", ["--learning_rate=3e-4"], (3e-4, 3e-3)),
        ("muon_lr, learning_rate = 0.03, 1e-3", ["--learning_rate=1e-4"], (1e-4, 3e-3)),
        ("muon_lr, learning_rate = 0.03, 1e-3", [], (1e-3, 0.03)),
        ("learning_rate = 1e-3", ["--learning_rate=3e-4"], (3e-4, 2e-3)),
        ("muon_lr = 0.03", ["--muon_lr=0.01"], (3e-3, 0.01)),
    ],
)
def test_muon_lr_moves_from_the_pair_that_a_file_sets(short, tmp_path, text, flags, expected):
    (tmp_path / "my.py").write_text(text, encoding="utf-8")
    assert rates(short(str(tmp_path / "my.py"), "--max_iters=1", *flags)) == pytest.approx(expected)


def test_a_rate_for_training_from_scratch_is_warned_about(base, short, capsys):
    names = short(f"--init_from={base}", "--muon_lr=0.02", "--max_iters=1")
    assert rates(names) == pytest.approx((3e-4, 0.02))
    assert "WARNING: muon_lr=0.02 is for training from scratch" in capsys.readouterr().out


def test_a_typed_min_lr_says_where_muon_lr_ends(short, capsys):
    short("--max_iters=1", "--min_lr=3e-4")
    assert "min_lr=0.0003 is where learning_rate ends; muon_lr ends at 0.002" in capsys.readouterr().out


def test_adamw_is_left_alone(base, short):
    names = short(f"--init_from={base}", "--optimizer=adamw", "--max_iters=1")
    assert (names["config"]["learning_rate"], names["config"]["muon_lr"]) == (3e-3, 0.02)


# ---- the batch
@pytest.mark.parametrize(
    ("flags", "batch"),
    [
        (["--batch_size=3"], (3, 1)),
        (["--gradient_accumulation_steps=4"], (16, 4)),
        (["--batch_size=8", "--gradient_accumulation_steps=3"], (8, 3)),
        (["--global_batch_size=48"], (16, 3)),
        (["--global_batch_size=24", "--batch_size=8"], (8, 3)),
        (["--batch_size=16"], (16, 1)),
        ([], (16, 1)),
    ],
)
def test_a_resumed_run_uses_the_batch_that_is_typed(short, tmp_path, capsys, flags, batch):
    """The saved global batch won, and "changed since the checkpoint: 16 -> 3" was printed all the same."""
    short("--max_iters=1", "--batch_size=16")
    capsys.readouterr()
    names = short("--max_iters=2", "--init_from=resume", *flags)
    assert (names["batch_size"], names["micro_steps"]) == batch
    assert saved(tmp_path)["config"]["global_batch_size"] == batch[0] * batch[1]
    text = capsys.readouterr().out
    assert ("no longer reads global_batch_size=16" in text) == (
        bool(flags) and batch[0] * batch[1] != 16 and "global" not in flags[0]
    )


def test_a_global_batch_that_was_asked_for_stays(short, capsys):
    short("--max_iters=1", "--batch_size=8", "--global_batch_size=24")
    names = short("--max_iters=2", "--init_from=resume", "--batch_size=4")
    assert (names["batch_size"], names["micro_steps"]) == (4, 6)
    assert "an update still reads global_batch_size=24 windows" in capsys.readouterr().out
    names = short("--max_iters=3", "--init_from=resume", "--gradient_accumulation_steps=2")
    assert (names["batch_size"], names["micro_steps"]) == (4, 2)


def test_a_batch_and_a_global_batch_that_do_not_fit_are_refused(short, capsys):
    with pytest.raises(
        ValueError, match="batch_size=3 and global_batch_size=16 do not fit; choose --batch_size=2"
    ):
        short("--batch_size=3", "--global_batch_size=16")
    short("--max_iters=1", "--batch_size=8", "--global_batch_size=16", "--gradient_accumulation_steps=4")
    line = "not used here: gradient_accumulation_steps=4 (global_batch_size=16 is 8 windows x 2 micro-steps"
    assert line in capsys.readouterr().out


# ---- how long
def test_epochs_and_max_iters_contradict_each_other(short, capsys, tmp_path):
    with pytest.raises(
        ValueError, match=r"epochs=5 is \d+ updates and max_iters=3: they contradict each other"
    ):
        short("--epochs=5", "--max_iters=3")
    (tmp_path / "my.py").write_text("epochs = 3", encoding="utf-8")
    names = short(str(tmp_path / "my.py"), "--max_iters=3")
    assert names["progress"].step == 3
    assert "not used here: epochs=3 of" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has made 3 updates"):  # and not: three epochs
        short("--init_from=resume")


def test_a_run_of_epochs_repeats_from_its_config_json(short, tmp_path):
    names = short("--epochs=0.05")
    settings = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    again = short(*(f"--{name}={value}" for name, value in settings.items() if name != "expected"))
    assert again["progress"].step == names["progress"].step == names["config"]["max_iters"]


# ---- what is not used
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--lr_gamma=0.5", "--lr_gamma (lr_schedule=trapezoid)"),
        ("--lr_step_iters=10 --lr_schedule=cosine", "--lr_step_iters (lr_schedule=cosine)"),
        ("--decay_lr=False --lr_schedule=cosine", "--lr_schedule (decay_lr=False)"),
        ("--lr_schedule=constant --min_lr=1e-4", "--min_lr (lr_schedule=constant)"),
        (
            "--optimizer=adamw --muon_lr=0.01 --muon_momentum=0.9",
            "--muon_lr, --muon_momentum (optimizer=adamw)",
        ),
        ("--optimizer=sgd --beta1=0.8 --beta2=0.9", "--beta1, --beta2 (optimizer=sgd)"),
        ("--arch=gpt2 --rope_theta=500", "--rope_theta (position=learned)"),
        (
            "--min_delta=0.1 --keep_checkpoints=2",
            "--min_delta (patience=0); --keep_checkpoints (save_interval=0)",
        ),
        ("--wandb_project=x", "--wandb_project (wandb_log=False)"),
        ("--top_k=3 --temperature=0", "--top_k (temperature=0.0)"),
        ("--backend=gloo", "--backend (processes=1)"),
    ],
)
def test_a_setting_that_is_not_used_is_named(short, capsys, flags, line):
    short("--max_iters=1", *flags.split())
    assert f"not used here: {line}\n" in capsys.readouterr().out


def test_nothing_is_said_where_all_is_used(short, capsys):
    short(
        "--max_iters=2", "--lr_cooldown=0.3", "--beta1=0.8", "--muon_lr=0.01", "--rope_theta=500", "--top_k=3"
    )
    assert "not used" not in capsys.readouterr().out


def test_each_condition_is_of_settings_that_exist():
    known = config.defaults_of("train.py")
    for names, other, _ in resolve.USED_IF:
        assert {*names.split(), other} <= known.keys() | {"processes"}


def test_a_cluster_of_another_size_keeps_the_global_batch(monkeypatch):
    """config/base.py: 480 windows an update, 12 at a time; it began on 8 processes and goes on with 16."""
    old = {"batch_size": 12, "gradient_accumulation_steps": 1, "global_batch_size": 480}
    monkeypatch.setattr(
        resolve, "given", {"batch_size": "config/base.py", "global_batch_size": "config/base.py"}
    )
    assert resolve.keep_global_batch(settings := dict(old), {"config": old, "world_size": 8}) == []
    (line,) = resolve.check_batch(settings, 10, 3, 16)
    assert line.startswith(
        "not used here: batch_size=12 (global_batch_size=480 is 10 windows x 3 micro-steps x 16"
    )
    monkeypatch.setattr(resolve, "given", {"batch_size": "typed"})
    (line,) = resolve.keep_global_batch(
        settings := {**old, "batch_size": 6}, {"config": old, "world_size": 8}
    )
    assert "still reads global_batch_size=480" in line and settings["global_batch_size"] == 480
    earlier = {**old, "global_batch_size": 96}  # 12 on each of 8 processes, and no global batch was asked for
    resolve.keep_global_batch(settings := {**earlier, "batch_size": 6}, {"config": earlier, "world_size": 8})
    assert settings["global_batch_size"] == 0
