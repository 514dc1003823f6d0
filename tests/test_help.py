"""-h works for everything that can be started: it prints what the thing does and how, and does nothing else.

The five scripts with settings are in test_house.py (test_help_from_another_folder).
"""

import ast
import os
import runpy
import sys

import pytest

from conftest import ROOT
from lessons import run
from test_house import NOT_TESTS, SCRIPTS, files

COMMANDS = "list progress doctor start show check watch hint solution notebook grade".split()
STARTED = [  # what does something when it is started, but for the scripts with settings and the lessons
    name
    for name, source in files(ROOT, NOT_TESTS)
    if '\nif __name__ == "__main__":\n' in source
    and name not in SCRIPTS
    and not name.removeprefix("lessons/")[0].isdigit()
]


def docstring_of(name: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / name).read_text(encoding="utf-8")))


def test_all_that_can_be_started_is_found():
    known = {"lessons/run.py", "runtime/checkpoint.py", "runtime/curve.py", "techniques/allreduce.py"}
    assert known <= {*STARTED}


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", STARTED)
def test_help_is_the_docstring(name, flag, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", [name, flag])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / name), run_name="__main__")
    assert ended.value.code == 0
    assert docstring_of(name) in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_help_in_processes_of_their_own(forks, tmp_path):
    """As people start them: lessons/run.py by its path, the others as modules."""
    commands = {name: ["-m", name.removesuffix(".py").replace("/", ".")] for name in STARTED}
    commands["lessons/run.py"] = [ROOT / "lessons/run.py"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name, command in commands.items():
        done = forks.run([*command, "-h"], tmp_path, env)
        assert (done.returncode, done.stderr) == (0, ""), name
        assert docstring_of(name) in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_of_the_course_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        run.main([name, "-h"])
    assert ended.value.code == 0
    assert f"usage: python lessons/run.py {name}" in capsys.readouterr().out


def test_no_command_of_the_course_is_forgotten(capsys):
    with pytest.raises(SystemExit):
        run.main(["-h"])
    out = capsys.readouterr().out
    assert {line.split()[2] for line in out.splitlines() if line.startswith("    python lessons/run.py")} == {
        *COMMANDS
    }
