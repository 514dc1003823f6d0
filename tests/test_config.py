"""Settings: defaults < config file < command line, typed, and every mistake is one line."""

import dataclasses
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

import config
from config import ROOT, override, read_comments
from config._paths import PATHS
from model import GPT, GPTConfig

CONFIGS = sorted(path.name for path in (ROOT / "config").glob("[a-z]*.py"))
SCRIPT = '''"""A script for these tests."""
out_dir = "out"  # where to
max_iters = 100  # how many
learning_rate = 1e-3  # how fast
eval_only = False  # look, do not touch
start = "x"  # first text
_hidden = 1
UPPER = 2
other = override(globals())
not_a_setting = 3
'''


def run(tmp_path, monkeypatch, *arguments):
    """The settings of SCRIPT under these arguments."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    names = runpy.run_path(str(script), {"override": override})
    return {name: names[name] for name in ("out_dir", "max_iters", "learning_rate", "eval_only", "start")}


GOOD = [
    ("--learning_rate=5e-4", "learning_rate", 0.0005),
    ("--learning_rate=1", "learning_rate", 1.0),
    ("--learning_rate=-1", "learning_rate", -1.0),
    ("--max_iters=1_000", "max_iters", 1000),
    ("--max_iters=-3", "max_iters", -3),
    ("--eval_only", "eval_only", True),
    ("--eval_only=True", "eval_only", True),
    ("--eval_only=false", "eval_only", False),
    ("--eval_only=0", "eval_only", False),
    ("--start=a=b", "start", "a=b"),
    ("--start=", "start", ""),
    ("--start=None", "start", "None"),
    ("--out_dir=123", "out_dir", "123"),
    ("--out_dir=__import__('os')", "out_dir", "__import__('os')"),
]
BAD = [
    ("--max_iters=ten", "--max_iters=ten is not understood; expected a whole number"),
    ("--max_iters=1.5", "expected a whole number"),
    ("--max_iters=True", "expected a whole number"),
    ("--max_iters", "--max_iters needs a value: --max_iters=100"),
    ("--learning_rate=fast", "expected a number such as 1e-3"),
    ("--learning_rate=nan", "is not finite"),
    ("--learning_rate=inf", "is not finite"),
    ("--eval_only=maybe", "expected True or False"),
    ("--max_itres=5", "did you mean max_iters?"),
    ("--_hidden=5", "_hidden is not a setting"),
    ("--UPPER=5", "UPPER is not a setting"),
    ("--not_a_setting=5", "not_a_setting is not a setting"),
    ("-max_iters=5", "settings are written --name=value"),
    ("--", "settings are written --name=value"),
    ("nowhere.py", "config file nowhere.py does not exist; there are: config/base.py"),
    ("config/tine.py", "config file config/tine.py does not exist; did you mean config/tiny.py?"),
    ("--out_dir=~nobody-of-that-name/a", "there is no home folder ~nobody-of-that-name; write"),
]


@pytest.mark.parametrize(("argument", "name", "value"), GOOD)
def test_an_override_keeps_the_type_of_the_default(tmp_path, monkeypatch, argument, name, value):
    settings = run(tmp_path, monkeypatch, argument)
    assert settings[name] == value
    assert type(settings[name]) is type(value)


@pytest.mark.parametrize(("argument", "message"), BAD)
def test_a_bad_override_names_value_and_remedy(tmp_path, monkeypatch, argument, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        run(tmp_path, monkeypatch, argument)
    assert "\n" not in str(error.value)


def test_defaults_then_files_in_order_then_flags(tmp_path, monkeypatch):
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text("max_iters = 1\nlearning_rate = 2\nstart = 'file'\n", encoding="utf-8")
    second.write_text("import math\n_half = 0.5\nmax_iters = max_iters + int(4 * _half)\n", encoding="utf-8")
    settings = run(tmp_path, monkeypatch, "--start=flag", str(first), str(second))
    assert settings["max_iters"] == 3  # 1 from the first file, + 2 in the second
    assert settings["learning_rate"] == 2.0
    assert isinstance(settings["learning_rate"], float)
    assert settings["start"] == "flag"
    assert config.given.keys() == {"max_iters", "learning_rate", "start"}


def test_a_file_that_sets_a_default_value_has_still_given_it(tmp_path, monkeypatch):
    file = tmp_path / "file.py"
    file.write_text("max_iters = 100\n", encoding="utf-8")
    run(tmp_path, monkeypatch, str(file))
    assert config.given.keys() == {"max_iters"}


def test_a_config_file_sees_the_command_line(tmp_path, monkeypatch):
    file = tmp_path / "file.py"
    file.write_text("max_iters = 7 if start == 'gpu' else 8\n", encoding="utf-8")
    assert run(tmp_path, monkeypatch, str(file), "--start=gpu")["max_iters"] == 7
    assert run(tmp_path, monkeypatch, str(file))["max_iters"] == 8


def test_who_has_given_a_setting(tmp_path, monkeypatch):
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text("max_iters, start = 1, 'file'\n", encoding="utf-8")
    second.write_text("max_iters = 2\n", encoding="utf-8")
    run(tmp_path, monkeypatch, str(first), str(second), "--start=x")
    assert config.given == {"max_iters": str(second), "start": config.COMMAND_LINE}
    assert config.typed("start") and not config.typed("max_iters") and not config.typed("out_dir")


def test_defaults_are_read_without_running_the_script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT + "raise SystemExit\n", encoding="utf-8")
    defaults = config.defaults_of(str(tmp_path / "script.py"))
    assert defaults == dict(out_dir="out", max_iters=100, learning_rate=1e-3, eval_only=False, start="x")
    assert config.defaults_of("train.py").keys() == read_comments(str(ROOT / "train.py")).keys()


@pytest.mark.parametrize("start", [b"\xef\xbb\xbf", b"# -*- coding: latin-1 -*-\n"])
def test_a_config_file_may_begin_with_a_byte_order_mark_or_its_encoding(tmp_path, monkeypatch, start):
    text = "start = '\xe9'\n".encode("latin-1" if b"latin" in start else "utf-8")
    (tmp_path / "file.py").write_bytes(start + text)
    assert run(tmp_path, monkeypatch, str(tmp_path / "file.py"))["start"] == "\xe9"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_itres = 5\n", "max_itres is not a setting; did you mean max_iters?"),
        ("max_iters = True\n", "max_iters = True is a bool; expected int"),
        ("max_iters = 1e3\n", "max_iters = 1000.0 is a float; expected int"),
        ("eval_only = 1\n", "eval_only = 1 is a int; expected bool"),
        ("learning_rate = '5e-4'\n", "learning_rate = '5e-4' is a str; expected float"),
        ("start = None\n", "start = None is a NoneType; expected str"),
        ("max_iters = = 3\n", "line 1: invalid syntax"),
        ("max_iters = 1 // 0\n", "does not run: ZeroDivisionError"),
        ("from nowhere import x\n", "does not run: ModuleNotFoundError"),
        ("exec('max_itres = 5')\n", "max_itres is not a setting; did you mean max_iters?"),
        ("globals().update(max_itres=5)\n", "max_itres is not a setting; did you mean max_iters?"),
        ("exec('max_iters = 1.5')\n", "max_iters = 1.5 is a float; expected int"),
        ("globals().update(eval_only=1)\n", "eval_only = 1 is a int; expected bool"),
        ("from math import *\n", "is not a setting; -h lists them all; a config file's own names"),
        ("exec('del max_iters')\n", "bad.py deletes max_iters; expected a value, as 100"),
        ("from blind import *\n", "an imported config file sees no settings: name both files in the command"),
        ("out_dir = '~nobody-of-that-name'\n", "out_dir=~nobody-of-that-name: there is no home folder"),
    ],
)
def test_a_bad_config_file_is_one_line(tmp_path, monkeypatch, text, message):
    file = tmp_path / "bad.py"
    file.write_text(text, encoding="utf-8")
    (tmp_path / "blind.py").write_text("max_iters = 1 if start == 'x' else 2\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        run(tmp_path, monkeypatch, str(file))
    assert "bad.py" in str(error.value)


BASE = "import math\n_own = 3\nmax_iters = int(math.sqrt(49))\nstart = 'base'\n\n\ndef helper():\n    pass\n"
INHERITED = {
    "import *": "from base_of_test import *\n",
    "import of a name": "from math import pi\nfrom base_of_test import max_iters, start\n",
    "exec": "import pathlib\nexec(pathlib.Path({base!r}).read_text(encoding='utf-8'))\n",
    "update": "import runpy\nglobals().update(runpy.run_path({base!r}))\n",
    "a function": "def _set():\n    global max_iters, start\n    max_iters, start = 7, 'base'\n\n\n_set()\n",
    "setattr": "import sys\nvars()['max_iters'] = 7\nvars()['start'] = 'base'\n",
}


@pytest.mark.parametrize("how", INHERITED)
def test_settings_that_come_into_a_config_file_in_any_way_are_taken(tmp_path, monkeypatch, how):
    base, file = tmp_path / "base_of_test.py", tmp_path / "file.py"
    base.write_text(BASE, encoding="utf-8")
    file.write_text(INHERITED[how].format(base=str(base)) + "learning_rate = 2e-3\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "base_of_test", raising=False)
    settings = run(tmp_path, monkeypatch, str(file))
    assert (settings["max_iters"], settings["start"], settings["learning_rate"]) == (7, "base", 2e-3)
    assert config.given == dict.fromkeys(("max_iters", "start", "learning_rate"), str(file))


def test_a_name_inside_a_function_is_no_setting_of_the_file(tmp_path, monkeypatch):
    file = tmp_path / "file.py"
    file.write_text("def _f():\n    max_iters = 5\n    return max_iters\n\n\n_f()\n", encoding="utf-8")
    assert run(tmp_path, monkeypatch, str(file))["max_iters"] == 100
    assert config.given == {}


def test_a_star_import_of_the_default_has_still_given_it(tmp_path, monkeypatch):
    (tmp_path / "same_of_test.py").write_text("max_iters = 100\n", encoding="utf-8")
    (tmp_path / "file.py").write_text("from same_of_test import *\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    run(tmp_path, monkeypatch, str(tmp_path / "file.py"))
    assert config.given.keys() == {"max_iters"}


def test_a_dict_that_is_changed_in_place_is_taken_and_the_default_stays(tmp_path):
    file, defaults = tmp_path / "file.py", {"expected": {}, "n": 1}
    file.write_text("expected[5] = (1, 2)\n", encoding="utf-8")
    assert config.read_config_file(str(file), defaults, defaults) == {"expected": {5: (1, 2)}}
    assert defaults["expected"] == {}


def test_an_imported_config_file_keeps_its_own_dict(tmp_path, monkeypatch):
    """A run changes `expected`; the module that it was imported from stays loaded for the next run."""
    (tmp_path / "bands_of_test.py").write_text("expected = {5: (1, 2)}\n", encoding="utf-8")
    (tmp_path / "file.py").write_text("from bands_of_test import *\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        changes = config.read_config_file(str(tmp_path / "file.py"), {"expected": {}}, {"expected": {}})
        assert changes.pop("expected").pop(5) == (1, 2)


def test_a_shipped_config_can_be_inherited(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text("from config.tiny import *\nmax_iters = 2\n", encoding="utf-8")
    defaults = config.defaults_of("train.py")
    changes = config.read_config_file(str(tmp_path / "mine.py"), defaults, defaults)
    tiny = config.read_config_file("config/tiny.py", defaults, defaults)
    assert changes == {**tiny, "max_iters": 2}


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    home = str(tmp_path / "home")
    file = tmp_path / "file.py"
    file.write_text("out_dir = '~/runs/b/'\nstart = '~ is a tilde'\n", encoding="utf-8")
    settings = run(tmp_path, monkeypatch, "--out_dir=~/runs/a")
    assert settings["out_dir"] == f"{home}/runs/a"
    assert f"out_dir={home}/runs/a" in capsys.readouterr().out
    settings = run(tmp_path, monkeypatch, str(file))
    assert (settings["out_dir"], settings["start"]) == (f"{home}/runs/b", "~ is a tilde")
    assert run(tmp_path, monkeypatch, "--start=FILE:~/p.txt")["start"] == f"FILE:{home}/p.txt"
    assert run(tmp_path, monkeypatch, "--start=~/p.txt")["start"] == "~/p.txt"
    assert run(tmp_path, monkeypatch, "--out_dir=$HOME/a/")["out_dir"] == "$HOME/a"
    assert run(tmp_path, monkeypatch, "--out_dir=/")["out_dir"] == "/"


def test_every_setting_that_is_a_path_is_known():
    """Whatever a comment calls a file, a folder or a path. (A dataset's name only mentions its folder.)"""
    for script in ("train.py", "data.py", "sample.py", "evaluate.py", "bench.py"):
        for name, comment in read_comments(str(ROOT / script)).items():
            says_so = re.search(r"\b(folder|PATH|a file|which checkpoint|text file)\b", comment)
            assert not says_so or name in (*PATHS, "name") or "FILE:" in comment, f"{script}: {name}"


def test_help_lists_every_setting_with_default_and_comment(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(tmp_path, monkeypatch, "-h")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "A script for these tests." in text
    assert re.search(r"--learning_rate=0\.001 +how fast", text)
    assert "_hidden" not in text


def test_changed_settings_are_printed_by_rank_0_only(tmp_path, monkeypatch, capsys):
    run(tmp_path, monkeypatch, "--max_iters=5", "--start=x")
    assert capsys.readouterr().out == "settings: max_iters=5\n"
    monkeypatch.setenv("RANK", "1")
    run(tmp_path, monkeypatch, "--max_iters=5")
    assert capsys.readouterr().out == ""


def test_every_setting_has_a_comment_and_a_default_that_is_not_none():
    for script in ("train.py", "data.py", "sample.py", "evaluate.py", "bench.py"):
        for name, comment in read_comments(str(ROOT / script)).items():
            assert comment, f"{script}: {name}"


# ---- the shipped configs
def settings_of(monkeypatch, script, *arguments) -> dict:
    """The settings of a script under some arguments, without running it."""
    source = (ROOT / script).read_text(encoding="utf-8")
    names = {"__file__": str(ROOT / script), "__doc__": ""}
    lines = source.splitlines()
    for node in config.setting_lines(source):
        exec("\n".join(lines[node.lineno - 1 : node.end_lineno]), names)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    settings = override(names)
    config.end_script()
    return settings


@pytest.mark.parametrize("name", CONFIGS)
def test_bands_are_for_steps_that_are_evaluated_and_for_the_last_one(monkeypatch, name):
    settings = settings_of(monkeypatch, "train.py", f"config/{name}", "--device=cpu")
    bands, last = settings["expected"], settings["max_iters"]
    assert not bands or len(bands.pop("val")) == 12
    assert all(step % settings["eval_interval"] == 0 or step == last for step in bands)
    assert not bands or max(bands) == last
    figure = re.search(r"val loss (\d\.\d+)", (ROOT / "config" / name).read_text(encoding="utf-8"))
    if bands and figure:  # what the header says is normal, too
        assert bands[last][0] <= float(figure[1]) <= bands[last][1]


def test_the_configs_that_were_promised_are_there():
    promised = (
        "tiny shakespeare_char shakespeare_bpe python_code verse cpu_small small medium large base classic"
    )
    assert {f"{name}.py" for name in [*promised.split(), "finetune"]} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_loads_and_builds_with_the_parameters_in_its_header(monkeypatch, name):
    settings = settings_of(monkeypatch, "train.py", f"config/{name}", "--device=cpu")
    text = (ROOT / "config" / name).read_text(encoding="utf-8")
    header = text[: re.search(r"^[^#]", text, re.MULTILINE).start()]
    assert f"config/{name}" in header
    vocab_size = {"base.py": 50257, "shakespeare_bpe.py": 1024, "python_code.py": 4096}.get(name, 65)
    if name == "verse.py":
        from text import corpora

        vocab_size = len(set("".join(text for text, _ in corpora.open_corpus("verse", size=20_000).chunks())))
    if name in ("sums.py", "sft.py", "dpo.py", "grpo.py"):
        vocab_size = 54
    if name in ("sft.py", "dpo.py", "grpo.py"):  # the shape is the base's
        settings |= settings_of(monkeypatch, "train.py", "config/sums.py", "--device=cpu")
    if name in ("finetune.py", "finetune_lora.py"):  # likewise
        settings |= settings_of(monkeypatch, "train.py", "config/shakespeare_char.py", "--device=cpu")
    shape = {f.name: settings[f.name] for f in dataclasses.fields(GPTConfig) if f.name in settings}
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size, **shape))
    count = sum(p.numel() for p in model.parameters())
    assert f"{count:,} parameters" in header


def test_the_gpu_branch_of_the_first_config_loads_too(monkeypatch, capsys):
    settings = settings_of(monkeypatch, "train.py", "config/shakespeare_char.py", "--device=cuda")
    assert settings["n_embd"] == 384
    assert "10M-parameter recipe" in capsys.readouterr().out


def test_sizes_differ_in_the_config_name_only():
    for name in ("tiny", "small", "medium", "large"):
        assert f"python train.py config/{name}.py" in Path(ROOT / f"config/{name}.py").read_text(
            encoding="utf-8"
        )


def test_python_ends_a_script_without_a_search_for_garbage(shell):
    """In all that torch has made, that takes a second."""
    program = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 1000)); import config"
    assert shell("-c", program).stdout == "True\n"
