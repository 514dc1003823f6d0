"""How a technique joins a run: its settings, its hooks, and what a checkpoint remembers of it.

The techniques here are files written by the tests; LoRA and quantization have tests of their own.
"""

import importlib
import sys

import pytest
import torch

import config
import techniques
from runtime import checkpoint, origin

GAIN = '''"""A gain for each logit."""
import torch
from torch import nn

gain_start = 1.0  # what each gain starts from
gain_log = ""  # a file to write to
other = 3  # of its command


class Gained(nn.Linear):
    """A head with a gain for each logit."""

    def __init__(self, head, start):
        super().__init__(head.in_features, head.out_features, bias=False)
        self.weight = head.weight
        self.gain = nn.Parameter(torch.full_like(head.weight[:, 0], start))

    def forward(self, x):
        return super().forward(x) * self.gain


def change_model(model, config):
    model.head = Gained(model.head, config["gain_start"])
    return model


def after_step(model, step, config):
    with open(config["gain_log"], "a", encoding="utf-8") as file:
        file.write(f"{step} ")


def after_save(path, checkpoint, config):
    with open(config["gain_log"], "a", encoding="utf-8") as file:
        file.write(f"{path.name}:{checkpoint['step']} ")
'''
DOUBLED = '''"""Twice the nats, and windows that are counted."""
AFTER = ("gain",)
doubled = 2.0  # times


def change_data(windows, config):
    windows.seen = config["doubled"]
    return windows


def loss(model, x, y, config):
    from model import summed_nats

    return config["doubled"] * summed_nats(model(x), y)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """own(gain=SOURCE) adds files to techniques/ for one test: a copy of the folder's contract, elsewhere."""

    def add(**sources: str):
        folder = tmp_path / "techniques"
        folder.mkdir()
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source, encoding="utf-8")
            monkeypatch.delitem(sys.modules, f"techniques.{name}", raising=False)
        monkeypatch.setattr(techniques, "__path__", [str(folder)])
        monkeypatch.setattr(config._sources, "TECHNIQUES", folder)
        importlib.invalidate_caches()
        config.technique_settings.cache_clear()

    yield add
    config.technique_settings.cache_clear()
    for name in [name for name in sys.modules if name.startswith(("techniques.gain", "techniques.doubled"))]:
        del sys.modules[name]


def test_settings_are_those_named_like_the_file(own):
    own(gain=GAIN, doubled=DOUBLED, tool='"""A command."""\ntool_x = 1  # of it\n')
    assert config.technique_settings() == {
        "doubled": {"doubled": 2.0},
        "gain": {"gain_start": 1.0, "gain_log": ""},
    }


def test_a_setting_switches_its_technique_on(own, train, tmp_path, capsys):
    """Its hooks are called, its settings are saved, and a resumed run keeps both."""
    own(gain=GAIN)
    log = tmp_path / "log.txt"
    ran = train(f"--gain_log={log}", "--max_iters=2", "--eval_interval=2")
    assert ran["config"]["technique"] == "gain"
    assert log.read_text(encoding="utf-8").split() == [
        "best.pt:0",
        "ckpt.pt:0",
        "1",
        "2",
        "best.pt:2",
        "ckpt.pt:2",
    ]
    model, _, saved = checkpoint.load_model(tmp_path / "out/best.pt", torch.device("cpu"))
    assert saved["config"]["gain_start"] == 1.0
    assert not torch.equal(model.head.gain, torch.ones(len(model.head.gain)))  # it was trained, and saved
    assert torch.equal(model.head.gain, ran["raw_model"].head.gain)
    log.write_text("", encoding="utf-8")
    again = train("--init_from=resume", "--max_iters=3")
    assert again["config"]["gain_log"] == str(log) and log.read_text(encoding="utf-8").startswith("3 ")
    assert again["raw_model"].head.gain.requires_grad
    assert "gain_start" not in train("--out_dir=" + str(tmp_path / "plain"), "--max_iters=1")["config"]


def test_a_resumed_run_equals_one_that_never_stopped(own, train, tmp_path):
    own(gain=GAIN, doubled=DOUBLED)
    flags = [f"--gain_log={tmp_path / 'log.txt'}", "--technique=doubled", "--gain_start=0.5", "--dropout=0.1"]
    straight = train(*flags, "--max_iters=4", f"--out_dir={tmp_path / 'straight'}")
    train(*flags, "--max_iters=2", "--lr_decay_iters=4")
    resumed = train("--init_from=resume", "--max_iters=4")
    assert straight["technique"] == "doubled,gain" == resumed["technique"]
    ours, theirs = straight["raw_model"].state_dict(), resumed["raw_model"].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_loss_and_data_are_replaced(own, train, tmp_path):
    own(doubled=DOUBLED)
    flags = ["--max_iters=1", "--grad_clip=0", "--optimizer=sgd"]
    plain = train(*flags, f"--out_dir={tmp_path / 'plain'}")
    twice = train(*flags, "--technique=doubled")
    assert twice["train_windows"].seen == 2.0
    assert twice["norm"].item() == pytest.approx(2 * plain["norm"].item(), rel=1e-5)


def test_order_and_conflicts(own):
    own(gain=GAIN, doubled=DOUBLED, again=DOUBLED)
    names = [module.__name__ for module in techniques.load("doubled,gain")]
    assert names == ["techniques.gain", "techniques.doubled"]
    with pytest.raises(ValueError, match="techniques.again and techniques.doubled both replace the loss"):
        techniques.load("again,doubled")
    with pytest.raises(
        ValueError, match="technique='nothing' is unknown; expected some of these: again, dou"
    ):
        techniques.load("nothing")
    with pytest.raises(ValueError, match="technique='../train' is unknown"):
        techniques.load("../train")
    with pytest.raises(ValueError, match="gain_start is a str; expected float"):
        techniques.hooks("change_model", {"technique": "gain", "gain_start": "1"})


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--technique=nothing"], "technique=nothing is unknown; expected some of these: doubled, gain"),
        (["--init_from=resume", "--technique=doubled"], "trained with technique=gain; leave --technique out"),
        (["--init_from=resume", "--doubled=3"], "keeps its techniques, and doubled is a new one"),
        (["--init_from={out}", "--out_dir={new}", "--gain_start=2"], "trained with gain_start=1.0, not 2.0"),
    ],
)
def test_what_cannot_be(flags, message, own, train, tmp_path):
    own(gain=GAIN, doubled=DOUBLED)
    train(f"--gain_log={tmp_path / 'log.txt'}", "--max_iters=1")
    flags = [flag.format(out=tmp_path / "out", new=tmp_path / "new") for flag in flags]
    with pytest.raises(ValueError, match=message):
        train(*flags, "--max_iters=2")


def test_a_new_run_adds_a_technique_to_those_of_its_base(own, train, tmp_path):
    own(gain=GAIN, doubled=DOUBLED)
    base = train(f"--gain_log={tmp_path / 'log.txt'}", "--max_iters=1")
    flags = [f"--init_from={tmp_path / 'out'}", f"--out_dir={tmp_path / 'new'}", "--doubled=3"]
    tuned = train(*flags, "--max_iters=1", "--learning_rate=1e-30", "--weight_decay=0")
    assert tuned["technique"] == "gain,doubled"
    assert torch.equal(base["raw_model"].head.gain, tuned["raw_model"].head.gain)


def test_a_new_run_may_do_without_what_changed_its_bases_data_or_loss_alone(own):
    """Augmentation of a base refuses prompts: fine-tuning on them has to be able to leave it out."""
    own(gain=GAIN, doubled=DOUBLED)
    saved = {"config": {"technique": "doubled,gain", "gain_log": ""}, "model": {}}
    assert origin.as_base(saved)["config"] == {"technique": "gain", "gain_log": ""}
    assert saved["config"]["technique"] == "doubled,gain"
    assert origin.as_base({"config": {"technique": "doubled"}})["config"]["technique"] == ""


def test_help_lists_them_without_importing(own, run_script, capsys):
    own(gain=GAIN.replace("import torch\n", "raise SystemExit('imported')\n"))
    with pytest.raises(SystemExit):
        run_script("train.py", "-h")
    shown = capsys.readouterr().out
    assert "of techniques/gain.py; to give one switches it on\n  --gain_start=1.0 " in shown
    assert "what each gain starts from" in shown and "--other" not in shown


def test_a_config_file_switches_on_and_the_command_line_off(own, train, tmp_path):
    own(gain=GAIN)
    (tmp_path / "mine.py").write_text(f"gain_log = {str(tmp_path / 'log.txt')!r}\n", encoding="utf-8")
    assert train(str(tmp_path / "mine.py"), "--max_iters=1")["technique"] == "gain"
    off = train(str(tmp_path / "mine.py"), "--technique=", "--max_iters=1", f"--out_dir={tmp_path / 'off'}")
    assert off["technique"] == "" and "gain_log" not in off["config"]


def test_a_config_file_gives_way_to_the_checkpoint(own, train, tmp_path):
    """A run from a base that has the technique already: only what is typed is compared."""
    own(gain=GAIN)
    train(f"--gain_log={tmp_path / 'log.txt'}", "--gain_start=2", "--max_iters=1")
    (tmp_path / "mine.py").write_text("gain_start = 3.0\n", encoding="utf-8")
    flags = [f"--init_from={tmp_path / 'out'}", f"--out_dir={tmp_path / 'new'}", "--max_iters=1"]
    assert train(str(tmp_path / "mine.py"), *flags)["config"]["gain_start"] == 2.0
