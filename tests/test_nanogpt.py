"""nanoGPT's configs and command lines: each works, or differs and says so, or is refused and says why.

Written as facts: the settings that nanoGPT's files of these names assign (Karpathy, 2022). docs/configs.md
has the same table for people.
"""

import re

import pytest

import config
from conftest import ROOT
from test_config import CONFIGS, settings_of

# The names that each file assigns; eval_gpt2_medium, _large and _xl are eval_gpt2 with another init_from.
EVAL = dict(batch_size=8, eval_iters=500, eval_only=True, wandb_log=False)
FILES = {
    "train_shakespeare_char.py": dict(
        out_dir="out-shakespeare-char", eval_interval=250, eval_iters=200, log_interval=10,
        always_save_checkpoint=False, wandb_log=False, wandb_project="shakespeare-char",
        wandb_run_name="mini-gpt", dataset="shakespeare_char", gradient_accumulation_steps=1, batch_size=64,
        block_size=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2, learning_rate=1e-3, max_iters=5000,
        lr_decay_iters=5000, min_lr=1e-4, beta2=0.99, warmup_iters=100,
    ),
    "train_gpt2.py": dict(
        wandb_log=True, wandb_project="owt", wandb_run_name="gpt2-124M", batch_size=12, block_size=1024,
        gradient_accumulation_steps=40, max_iters=600000, lr_decay_iters=600000, eval_interval=1000,
        eval_iters=200, log_interval=10, weight_decay=1e-1,
    ),
    "finetune_shakespeare.py": dict(
        out_dir="out-shakespeare", eval_interval=5, eval_iters=40, wandb_log=False,
        wandb_project="shakespeare", wandb_run_name="ft-1", dataset="shakespeare", init_from="gpt2-xl",
        always_save_checkpoint=False, batch_size=1, gradient_accumulation_steps=32, max_iters=20,
        learning_rate=3e-5, decay_lr=False,
    ),
    "eval_gpt2.py": {**EVAL, "init_from": "gpt2"},
    "eval_gpt2_medium.py": {**EVAL, "init_from": "gpt2-medium"},
    "eval_gpt2_large.py": {**EVAL, "init_from": "gpt2-large"},
    "eval_gpt2_xl.py": {**EVAL, "init_from": "gpt2-xl"},
}  # fmt: skip
NOTE = "NOTE: a config of nanoGPT trains with arch=modern, optimizer=muon, lr_schedule=trapezoid here; "
RECIPE = "as nanoGPT does: --arch=gpt2 --optimizer=adamw --lr_schedule=cosine"
IMPORT = "then python -m techniques.pretrained import --from=gpt2 --out_dir=out-gpt2; to train that shape on"
SMALL = (  # what nanoGPT's README gives for a laptop
    "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 "
    "--n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
# The command, with the config file lying where it says or not; what happens; words of the line that says so.
COMMANDS = [
    ("train.py {train_shakespeare_char.py}", "differs", RECIPE),
    (f"train.py {{train_shakespeare_char.py}} {SMALL}", "differs", RECIPE),
    ("train.py {train_gpt2.py}", "differs", "n_layer=4 (12)"),
    ("train.py {finetune_shakespeare.py}", "refused", IMPORT.replace("gpt2", "gpt2-xl")),
    ("train.py {eval_gpt2.py}", "refused", IMPORT),
    ("train.py {eval_gpt2_medium.py}", "refused", IMPORT.replace("gpt2", "gpt2-medium")),
    ("train.py {eval_gpt2_large.py}", "refused", IMPORT.replace("gpt2", "gpt2-large")),
    ("train.py {eval_gpt2_xl.py}", "refused", IMPORT.replace("gpt2", "gpt2-xl")),
    ("train.py config/train_shakespeare_char.py", "refused", "did you mean config/shakespeare_char.py?"),
    (f"train.py config/train_shakespeare_char.py {SMALL}", "refused", "recipe is config/classic.py"),
    ("train.py config/train_gpt2.py", "refused", "did you mean config/base.py?"),
    ("train.py config/finetune_shakespeare.py", "refused", "did you mean config/finetune.py?"),
    ("train.py config/eval_gpt2.py", "refused", IMPORT),
    ("train.py", "works", ""),
    ("train.py --init_from=resume", "works", ""),
    ("sample.py --out_dir=out-shakespeare-char", "works", ""),
    ("sample.py --out_dir=out-shakespeare-char --device=cpu", "works", ""),
    ("sample.py --start=FILE:prompt.txt", "works", ""),
    ("sample.py --init_from=gpt2-xl --start=What --num_samples=5 --max_new_tokens=100", "refused",
     "sample.py reads the run in --out_dir"),
    ("sample.py --init_from=gpt2-xl --start=What --num_samples=5 --max_new_tokens=100", "refused", IMPORT),
    ("sample.py --init_from=resume", "refused", "leave --init_from out"),
    ("sample.py --compile=False", "refused", "leave --compile out"),
    ("bench.py", "works", ""),
]  # fmt: skip


def settings_under(monkeypatch, tmp_path, command: str) -> dict:
    """The settings of a script under a command. {NAME} in it is nanoGPT's file of that name, made here."""
    script, *arguments = command.split()
    for i, argument in enumerate(arguments):
        if argument.startswith("{"):
            name = argument.strip("{}")
            text = "".join(f"{key} = {value!r}\n" for key, value in FILES[name].items())
            (tmp_path / name).write_text("import time\n" + text, encoding="utf-8")
            arguments[i] = str(tmp_path / name)
    return settings_of(monkeypatch, script, *arguments)


@pytest.mark.parametrize(("command", "what", "words"), COMMANDS)
def test_a_command_of_nanogpt_works_or_says_what_differs(monkeypatch, tmp_path, capsys, command, what, words):
    if what == "refused":
        with pytest.raises(ValueError) as error:
            settings_under(monkeypatch, tmp_path, command)
        assert words in str(error.value)
        assert "\n" not in str(error.value)
        return
    settings_under(monkeypatch, tmp_path, command)
    notes = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("settings: ")]
    assert len(notes) == (what == "differs")
    assert all(line.startswith(NOTE) and words in line for line in notes)


def test_what_nanogpt_does_is_what_the_line_says(monkeypatch, tmp_path, capsys):
    """With the flags of the line there is nothing left to say, and a choice of any of them is one."""
    flags = "--arch=gpt2 --optimizer=adamw --lr_schedule=cosine"
    for chosen in (flags, "--optimizer=adamw", "--muon_lr=0.02"):
        settings_under(monkeypatch, tmp_path, f"train.py {{train_shakespeare_char.py}} {chosen}")
        assert "NOTE" not in capsys.readouterr().out


def test_a_run_from_another_is_not_told_to_change_its_shape(monkeypatch, tmp_path, capsys):
    settings_under(monkeypatch, tmp_path, "train.py --init_from=out-base --decay_lr=False")
    out = capsys.readouterr().out
    assert "as nanoGPT does: --optimizer=adamw --lr_schedule=cosine; see" in out
    assert "arch" not in out
    settings_under(monkeypatch, tmp_path, "train.py --init_from=resume --lr_decay_iters=9")
    assert "NOTE" not in capsys.readouterr().out


@pytest.mark.parametrize("name", CONFIGS)
def test_no_shipped_config_is_taken_for_nanogpts(monkeypatch, capsys, name):
    for extra in ("--device=cpu", "--wandb_log", "--max_iters=9"):
        settings_of(monkeypatch, "train.py", f"config/{name}", extra)
        assert "NOTE" not in capsys.readouterr().out


def test_a_run_of_that_name_is_no_weight_of_gpt2(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert settings_of(monkeypatch, "train.py", "--init_from=gpt2")["init_from"] == "gpt2"


@pytest.mark.parametrize("name", ["openwebtext", "shakespeare"])
def test_a_dataset_of_nanogpt_says_what_there_is_here(name):
    from text import prepare

    with pytest.raises(ValueError, match=re.escape(f"nanoGPT's {name} ")) as error:
        prepare.folder_of(name)
    assert f"--name={name} --tokenizer=gpt2" in str(error.value)


def test_every_setting_of_nanogpt_is_one_here():
    names = set().union(*FILES.values())
    assert names - config.defaults_of("train.py").keys() == set()


def test_the_page_for_people_has_the_same_table():
    page = (ROOT / "docs/configs.md").read_text(encoding="utf-8").splitlines()
    for command, what, _ in COMMANDS:
        shown = command.replace(SMALL, "--device=cpu ...").replace("--start=What", '--start="What"')
        shown = re.sub(r"\{(\w+\.py)\}", r"\1", shown)
        shown = re.sub("eval_gpt2_(medium|large|xl)", "eval_gpt2", shown)  # they share a row
        rows = [row for row in page if row.startswith(f"| `python {shown}`")]
        assert any(f" | {what} | " in row for row in rows), f"python {shown}: {what}"
