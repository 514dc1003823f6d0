"""The course as students and instructors meet it: the real command, real files, and all that can go wrong."""

import ast
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import ROOT
from lessons import classroom, course, grader, notebook, progress, run, worker
from solved import solved

RUN = str(ROOT / "lessons/run.py")
ANSWERS = {  # of lesson 9, as a student would write them
    "9a": "return q @ k.mT / math.sqrt(q.size(-1))",
    "9b": "return torch.softmax(scores + torch.full_like(scores, -math.inf).triu(1), -1)",
    "9c": "return causal(scores(x @ wq, x @ wk)) @ (x @ wv)",
    "9d": "wq, eye = torch.zeros(T + V, T), torch.eye(T + V)\n"
          "wq[1:T, : T - 1] = 1e4 * torch.eye(T - 1)\nreturn wq, eye[:, :T], eye[:, T:]",
}  # fmt: skip
UNSTEADY = """
import torch
from lessons.checks.attention import exercises, predictions
exercises["9a"]["inputs"] = lambda seed: [(torch.randn(2, 5, 10), torch.randn(2, 5, 10))]
"""
ONLY_SMALL_SEEDS = """
import torch
from lessons.checks.attention import exercises, predictions
exercises["9a"]["inputs"] = lambda seed: [(torch.eye(9)[[seed]], torch.eye(9)[:2])]
"""
MASK_AFTER = "return torch.softmax(scores, -1).tril()"


def lesson_9(answers: dict, top: str = "") -> str:
    """The text of lesson 9 with some of its stubs filled in; top: put before all else."""
    source = course.read(course.lessons()[9]).replace("predict_1 = None", "predict_1 = 8")
    for name, body in answers.items():
        source = source.replace(f'raise NotImplementedError("lesson {name}")', body.replace("\n", "\n    "))
    return top + source


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A fresh folder for a student; work(text) writes the file of lesson 9."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.setenv("TINYLM_WORK", str(folder))

    def write(text: str):
        path = folder / "09_attention.py"
        path.write_text(text, encoding="utf-8")
        return path

    write.folder = folder
    return write


@pytest.fixture
def command(shell, tmp_path):
    """command("check", "9") in another folder than the project's; returns the CompletedProcess."""

    def run(*words, answers="", timeout=120, **environment):
        env = {**os.environ, **environment}
        return shell(RUN, *words, cwd=tmp_path, env=env, input=answers, timeout=timeout)

    return run


@pytest.fixture
def quick(forks, work):
    """quick("check", "9"): the same in the project's folder, by a process that has torch already."""

    def run(*words):
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return forks.run(["-m", "lessons.run", *words], ROOT, env)

    return run


@pytest.fixture(scope="module")
def warm():
    judge = worker.Worker()
    yield judge
    judge.close()


# ---- isolation: what is planted (before the file, at the start of a function), and what is said about it
RIGHT = ANSWERS["9a"]
FAILED, WRONG, OK = grader.FAILED, grader.WRONG, grader.RIGHT
ROWS = [  # in any function; SELF is a call of itself, LIMIT the seconds that it has
    ("syntax error", "", "return (", r"line \d+: SyntaxError: '\(' was never closed", FAILED),
    ("mixed tabs", "", "if True:\n        a = 1\n\tb = 2", "line .*(tabs|indent)", FAILED),
    ("import error", "import no_such_thing\n", "", "line 1: ModuleNotFoundError", FAILED),
    ("endless loop", "", "while True:\n    pass", r"stopped after LIMIT s, in line \d+ of your", FAILED),
    ("deadlock", "", "import threading\nl = threading.Lock()\nl.acquire()\nl.acquire()",
     "stopped after LIMIT s, in", FAILED),
    ("exit", "", "exit()", "ended the program itself before returning an answer", FAILED),
    ("os._exit", "", "import os\nos._exit(0)", "ended the program itself", FAILED),
    ("exit on import", "import sys\nsys.exit(0)\n", "", "line 2: ended the program itself", FAILED),
    ("huge output", "", "print('x\\n' * 10**6)", "^(right)?$", OK),
    ("a tensor of 40 GB", "", "import torch\nreturn torch.zeros(10**10)",
     "asked for 37.3 GiB, the limit is 2", FAILED),
    ("bytes of 40 GB", "", "return bytearray(40 * 2**30)", "out of memory, the limit is 2", FAILED),
    ("recursion", "", "return SELF", "calls itself without an end", FAILED),
    ("input", "", "return input()", "asked for keyboard input, there is none", FAILED),
    ("None", "", "return None", r"is a `return` missing\?", WRONG),
    ("the solution", "from lessons.checks import attention\n", "return 1",
     "line 1 imports the checks", FAILED),
    ("what the checks use", "from lessons import common\n", "return 1", "line 1 imports the checks", FAILED),
    ("the project changed", "import model\nmodel.math = None\n", "", "^(right)?$", OK),
    ("output closed", "", "import sys\nsys.stdout.close()", "^(right)?$", OK),
]  # fmt: skip
WHOLE_FILE = ("syntax error", "mixed tabs", "import error", "exit on import", "the solution",
              "what the checks use")  # fmt: skip
BODIES = [  # in place of 9a
    ("wrong type", "", RIGHT.replace("return", "return [") + "]", "list found, Tensor", WRONG),
    ("wrong dtype", "", RIGHT.replace("return ", "return 1.0 * (") + ").double()", "dtype float64 found",
     WRONG),
    ("changed in place", "", "q /= math.sqrt(q.size(-1))\nreturn q @ k.mT", "the caller's `q` was changed",
     WRONG),
    ("NaN", "", f"{RIGHT} * float('nan')", r"nan at \(0, 0, 0\), the whole row; 147 of 147", WRONG),
    ("a function of the project", "import model\n", "return model.written_out_attention(q, q, q, 0.0)", "",
     FAILED),
    ("torch is shadowed", "torch = None\n", RIGHT, "^right$", OK),
]  # fmt: skip


def planted(lesson: int, name: str, top: str, body: str) -> str:
    """The text of a lesson, all solved, with something at the start of one of its functions."""
    text, function = solved(lesson), course.checks(lesson).exercises[name]["name"]
    node = grader.node_of(ast.parse(text), function)
    body = body.replace("SELF", f"{function}({', '.join(arg.arg for arg in node.args.args)})")
    lines, at = text.splitlines(), node.body[0].lineno - 1
    lines[at:at] = ["    " + line for line in body.splitlines()]
    return top + "\n".join(lines) + "\n"


def everything_in(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("what", "top", "body", "line", "status"), [*ROWS, *BODIES], ids=[row[0] for row in [*ROWS, *BODIES]]
)
def test_whatever_a_file_does_it_costs_one_line(what, top, body, line, status, warm, work):
    whole = what in [row[0] for row in BODIES]
    path = work(lesson_9({"9a": body}, top) if whole else planted(9, "9a", top, body))
    before = everything_in(work.folder)
    found = warm.check(dict(lesson=9, exercise="9a", file=str(path), seeds=[1, 2], limit=1))
    assert found["status"] == status, found["line"]
    assert re.search(line.replace("LIMIT", "1"), found["line"]), found["line"]
    assert "\n" not in found["line"]
    assert len(found["line"]) <= grader.WIDTH
    if what == "huge output":
        assert len(found["output"]) == worker.LINES + 1
        assert re.search(r"printed \d+,\d+,\d+ lines", found["output"][-1])
    assert everything_in(work.folder) == before


def test_a_loss_made_a_float_is_right_without_a_warning(warm, work):
    loss = "loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())"
    body = f"{loss}\nopt.zero_grad()\nloss.backward()\nopt.step()\nreturn float(loss)"
    path = work(planted(4, "4a", "", body))
    found = warm.check(dict(lesson=4, exercise="4a", file=str(path), seeds=[1, 2], limit=9))
    assert (found["line"], found["output"]) == ("right", [])


@pytest.mark.slow
def test_whatever_a_file_does_in_two_lessons(command, work, tmp_path):
    """A class in which each student has one accident, in the first exercise of a lesson, all else right."""
    lessons = (1, 9)
    for what, top, body, *_ in ROWS:
        folder = tmp_path / "class" / what
        folder.mkdir(parents=True)
        for lesson in lessons:
            path = folder / course.lessons()[lesson].name
            path.write_text(planted(lesson, f"{lesson}a", top, body), encoding="utf-8")
    before = everything_in(tmp_path / "class")
    wanted = f"--lessons={','.join(map(str, lessons))}"
    done = command("grade", "class", "--details=rows.csv", "--limit=6", wanted, timeout=500)
    assert (done.returncode, done.stderr) == (0, "")
    assert everything_in(tmp_path / "class") == before
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        rows = {(row["student"], row["exercise"]): row for row in csv.DictReader(file)}
    for what, _, _, line, status in ROWS:
        for lesson in lessons:
            for name in course.checks(lesson).exercises:
                row = rows[what, name]
                hit = name.endswith("a") or what in WHOLE_FILE
                assert row["verdict"] == (status if hit else OK), row
                assert re.search(line.replace("LIMIT", "6") if hit else "^$", row["line"]), row
                assert len(row["line"]) <= grader.WIDTH


def test_no_process_is_left_over(warm, work, tmp_path):
    note = tmp_path / "pid"
    body = f"import subprocess, pathlib\np = subprocess.Popen(['sleep', '60'])\n" \
           f"pathlib.Path({str(note)!r}).write_text(str(p.pid), encoding='utf-8')\n" + RIGHT  # fmt: skip
    path = work(lesson_9({"9a": body}))
    found = warm.check(dict(lesson=9, exercise="9a", file=str(path), seeds=[1, 2]))
    assert found["status"] == grader.RIGHT
    state = f"/proc/{note.read_text(encoding='utf-8')}/stat"
    end = time.monotonic() + 3  # a killed process needs a moment to go
    while os.path.exists(state) and course.read(Path(state)).split()[2] != "Z":
        assert time.monotonic() < end


@pytest.mark.slow
def test_without_fork_each_exercise_has_a_fresh_process(work, monkeypatch):
    """As on Windows."""
    program = "import os; del os.fork; from lessons import worker; worker.main()"
    started = subprocess.Popen

    def start(words, **kwargs):
        return started([words[0], "-c", program], **kwargs)

    monkeypatch.setattr(worker.subprocess, "Popen", start)
    monkeypatch.delattr(os, "fork")
    path = work(lesson_9({"9a": "print('x')\nreturn q", "9b": "import os\nos._exit(0)"}))
    judge, found = worker.Worker(), []
    for name in ("9a", "9b", "9c"):
        found.append(judge.check(dict(lesson=9, exercise=name, file=str(path), seeds=[1, 2])))
    judge.close()
    assert [one["status"] for one in found] == [grader.WRONG, grader.FAILED, grader.MISSING]


@pytest.mark.slow
def test_what_an_optimizer_imports_is_imported_before_the_fork(shell):
    """Else each check of lesson 15 takes a second longer."""
    program = """
import sys
from lessons import course, observe, worker
for lesson, name in ((9, "9a"), (15, "15b")):
    exercise = course.checks(lesson).exercises[name]
    worker.warm_up(course.checks(lesson))
    before = {*sys.modules}
    observe.observations(exercise, exercise["reference"])
    print("torch._dynamo" in before, len({*sys.modules} - before) < 50)"""
    assert shell("-c", program).stdout == "False True\nTrue True\n"


# ---- the command
@pytest.mark.slow
def test_from_start_to_all_right(command, work):
    done = command("check", "9")
    assert (done.returncode, "not started yet: python lessons/run.py start 9" in done.stdout) == (1, True)
    done = command("start", "9")
    assert done.returncode == 0, done.stderr
    path = work.folder / "09_attention.py"
    assert path.read_text(encoding="utf-8") == course.read(course.lessons()[9])
    assert "as it is" in command("start", "9").stdout

    # no verdict before a guess
    done = command("check", "9", answers="eight\n\n")
    assert done.returncode == 1
    assert "Predict first" in done.stdout
    assert "'eight' is not a number" in done.stdout
    assert "written yet" not in done.stdout

    done = command("check", "9", answers="64\n")
    assert done.returncode == 1
    assert "9a  `scores` is not written yet" in done.stdout
    assert "you predicted 64. 64 is the variance" in done.stdout

    work(lesson_9({**ANSWERS, "9b": MASK_AFTER}))
    done = command("check", "9")
    assert done.returncode == 1
    (shown,) = re.findall(r"```\n(9b  .*?\n)```", course.read(ROOT / "README.md"), re.DOTALL)
    assert shown in re.sub(" +\n", "\n", done.stdout)
    assert "9c  right, with our 9b; ours: model.py:" in done.stdout
    assert "hint 1 of 3" in command("hint", "9b").stdout
    assert "--give-up" in command("solution", "9b").stdout

    work(lesson_9(ANSWERS))
    done = command("check", "9")
    assert done.returncode == 0, done.stdout
    assert "all public checks passed" in done.stdout
    assert "you predicted" not in done.stdout, "once is enough"
    assert "def causal(scores):\n    T = scores.size(-1)" in command("solution", "9b").stdout
    assert command("hint", "9b").stdout.count("hint") == 3
    state = json.loads(course.read(work.folder / "progress.json"))
    assert state["exercises"]["9b"] == dict(attempts=2, hints=1, right=True, mistake="", gave_up=False)
    assert state["predictions"] == {"9.1": 64.0}
    assert "4/4" in command("list").stdout
    table = command("progress").stdout
    assert "9b    right               2      1" in table
    assert "9.1   predicted 64, it is 8" in table

    # a new beginning loses nothing
    command("start", "9", "--again")
    command("start", "9", "--again")
    assert (work.folder / "09_attention.py.bak").read_text(encoding="utf-8") == lesson_9(ANSWERS)
    assert (work.folder / "09_attention.py.bak2").exists()
    command("notebook", "9")
    (work.folder / "09_attention.ipynb").write_text("edited", encoding="utf-8")
    assert "stays as it is" in command("notebook", "9").stdout
    assert (work.folder / "09_attention.ipynb").read_text(encoding="utf-8") == "edited"


@pytest.mark.slow
def test_a_lesson_needs_only_those_before_it(work, capsys):
    """One lesson after another is solved; those behind it are as `start` leaves them. One grader for all."""
    judge = worker.Worker()
    for path in course.lessons().values():
        (work.folder / path.name).write_text(course.read(path), encoding="utf-8")
    for lesson, path in course.lessons().items():
        (work.folder / path.name).write_text(solved(lesson), encoding="utf-8")
        code, said = run.check(SimpleNamespace(number=f"{lesson}"), judge), capsys.readouterr().out
        assert code == 0, said
        assert "all public checks passed" in said
        assert " with our " not in said
    judge.close()


@pytest.mark.parametrize(
    ("words", "text"),
    [(["check", "99"], "there is no lesson '99'; expected"), (["check", "9z"], "there is no exercise 9z"),
     (["chekc"], "chekc"), (["hint"], "number"), (["grade", "nowhere"], "nowhere is not a folder"),
     (["watch", "9"], "python lessons/run.py start 9")],
)  # fmt: skip
def test_wrong_usage_is_one_line(command, work, words, text):
    done = command(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert text in done.stderr


def test_a_command_that_judges_nothing_waits_for_no_torch(shell):
    done = shell("-c", "import sys, lessons.run; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_a_list_whose_reader_has_gone_ends_quietly(work, tmp_path):
    """`list | head -1` once said: error: [Errno 32] Broken pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, RUN, "list"], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.stderr == b""


@pytest.mark.slow
def test_a_check_is_the_same_everywhere(shell, work, tmp_path):
    """Whatever the hash seed, the folder, the line ends, and the letters in the path."""
    text, lines = lesson_9({**ANSWERS, "9b": MASK_AFTER}), []
    for seed, folder, ends in (("0", "plain", "\n"), ("7", "łódź 안녕", "\r\n")):
        room = tmp_path / folder
        room.mkdir()
        (room / "09_attention.py").write_bytes(text.replace("\n", ends).encode("utf-8"))
        (room / "random.py").write_text("raise SystemExit('shadowed')", encoding="utf-8")
        env = {**os.environ, "PYTHONHASHSEED": seed, "TINYLM_WORK": str(room)}
        done = shell(RUN, "check", "9", cwd=room, env=env)
        assert done.returncode == 1, done.stderr
        lines.append(done.stdout)
    assert lines[0] == lines[1]


# ---- what is remembered
def test_a_write_that_is_cut_off_keeps_the_old_state(work, monkeypatch):
    progress.save_state({"exercises": {}, "predictions": {"9.1": 8.0}})

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        progress.save_state({"exercises": {}, "predictions": {"9.1": 64.0}})
    assert progress.load_state()["predictions"] == {"9.1": 8.0}


@pytest.mark.parametrize("broken", ["{", "[]", '{"exercises": 3}', "\x00", "null"])
def test_a_broken_state_is_kept_and_a_new_one_begins(work, capsys, broken):
    (work.folder / "progress.json").write_text(broken, encoding="utf-8")
    assert progress.load_state() == progress.EMPTY
    assert capsys.readouterr().out.count("\n") == 1
    assert (work.folder / "progress.json.bak").read_text(encoding="utf-8") == broken


def test_progress_follows_the_lessons():
    fresh = dict(attempts=1, hints=0, right=True, mistake="", gave_up=False)
    state = {"exercises": {"10a": fresh, "9b": fresh, "9a": fresh}, "predictions": {"9.1": 8.0, "1.1": 1e6}}
    names = [line.split()[0] for line in progress.table(state).splitlines()[1:]]
    assert names == ["9a", "9b", "10a", "1.1", "9.1"]
    assert "predicted 1,000,000, it is 1,003,790" in progress.table(state)


# ---- notebook and watch
@pytest.mark.parametrize("lesson", list(course.lessons()))
def test_a_notebook_is_valid_and_each_cell_compiles(lesson):
    source = course.read(course.lessons()[lesson])
    found = json.loads(notebook.of(source))
    assert (found["nbformat"], len(found["cells"])) == (4, source.count("\n# %%") + 1)
    for cell in found["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        assert {"metadata", "source", "id"} <= cell.keys()
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            compile("".join(cell["source"]), "cell", "exec")


@pytest.mark.slow
@pytest.mark.needs("nbclient")
@pytest.mark.parametrize("lesson", [9, 36, 39])
def test_a_notebook_runs_in_its_own_folder(lesson, quick, work):
    """In Jupyter's kernel, started in work/, as the student would; 36 and 39 start processes. The code of the
    others runs in `show` (test_lessons.py)."""
    import nbclient
    import nbformat

    path = Path(quick("notebook", str(lesson)).stdout.strip())
    cells = nbformat.read(path, as_version=4)
    nbformat.validate(cells)
    kernel = {"metadata": {"path": str(work.folder)}}
    nbclient.NotebookClient(cells, timeout=120, resources=kernel).execute()
    assert path.with_suffix(".png").is_file()
    shown = [output for cell in cells.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in shown), "the plot is seen in its cell"


@pytest.mark.slow
@pytest.mark.needs("nbclient")
def test_the_notebook_of_a_hosted_machine_installs_and_trains(quick, work, tmp_path):
    """From a folder with nothing in it; the address is this repository's, and the run a short one."""
    import nbclient
    import nbformat

    cells = nbformat.read(Path(quick("notebook", "--hosted").stdout.strip()), as_version=4)
    nbformat.validate(cells)
    short = {'ADDRESS = ""': f'ADDRESS = "{ROOT}"', "shakespeare_char.py": 'tiny.py", "--max_iters=2'}
    for cell, (was, now) in zip([cells.cells[1], cells.cells[2]], short.items(), strict=True):
        assert was in cell.source
        cell.source = cell.source.replace(was, now)
    nbclient.NotebookClient(cells, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "tinylm" / "out-tiny" / "best.pt").is_file()
    assert (work.folder / "01_characters.png").is_file()


@pytest.mark.slow
@pytest.mark.alone
def test_watch_checks_again_after_a_save(work, tmp_path, figure):
    path = work(lesson_9({**ANSWERS, "9b": MASK_AFTER}))
    watching = subprocess.Popen(
        [sys.executable, RUN, "watch", "9b"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # (background jobs ignore it)
    )  # fmt: skip

    def until(text: str) -> None:
        for line in watching.stdout:
            if text in line:
                return
        pytest.fail(f"watch ended before it said {text!r}")

    with watching:
        until("9b  Row 0 sums to")
        until("you predicted")
        begun = time.monotonic()
        path.write_text(lesson_9(ANSWERS), encoding="utf-8")
        until("9b  right")
        seconds = time.monotonic() - begun
        until("all public checks passed")
        os.killpg(watching.pid, signal.SIGINT)
        until("ended")
        assert watching.wait() == 0
    assert seconds < 2
    figure(f"watch: {'less than a second' if seconds < 1 else f'{seconds:.1f} s'} from a save to the verdict")


# ---- a class
@pytest.mark.slow
def test_a_class_is_graded(command, work, tmp_path):
    folder = tmp_path / "class"
    anna, boris, clara, edith = (folder / name / "work" for name in ("anna", "boris", "clara", "edith"))
    for handed_in in (anna, boris, clara, edith):
        handed_in.mkdir(parents=True)
    good, mask = lesson_9(ANSWERS), lesson_9({**ANSWERS, "9b": MASK_AFTER})
    (anna / "09_attention.py").write_text(good, encoding="utf-8")
    (anna / "random.py").write_text("raise SystemExit", encoding="utf-8")
    (boris / "09_attention.py").write_text("import nothing\n" + good, encoding="utf-8")
    (clara / "09_attention.py").write_text(mask, encoding="utf-8")
    (clara / "checks").mkdir()
    (clara / "checks/attention.py").write_text("exercises = {}", encoding="utf-8")
    (clara / "progress.json").write_text('{"exercises": {"9b": {"hints": 2}}}', encoding="utf-8")
    (edith / "09_attention.py").write_text(course.read(course.lessons()[9]), encoding="utf-8")
    with zipfile.ZipFile(folder / "dora.zip", "w") as archive:
        archive.writestr("work/09_attention.py", good)
    with zipfile.ZipFile(folder / "hugo.zip", "w") as archive:
        archive.writestr("../out.py", "")
    points = {"anna": "111", "boris": "000", "clara": "101", "dora": "111", "edith": "000", "hugo": "000"}
    tables = []
    for seed in ("5", "6"):
        done = command("grade", "class", "--lessons=9", "--csv=out.csv", "--details=rows.csv",
                       "--junit=out.xml", f"--seed={seed}")  # fmt: skip
        assert done.returncode == 0, done.stderr
        with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["student"]: row["9a"] + row["9b"] + row["9c"] for row in rows} == points
        tables.append([{key: row[key] for key in row if key != "seconds"} for row in rows])
        hers = next(row for row in rows if row["student"] == "clara")
        assert [hers[key] for key in ("points", "hints", "mistakes")] == ["3", "2", "9b: mask after softmax"]
    assert tables[0] == tables[1]
    assert "9b: 5 handed in, 2 right, 1 mask after softmax, 2 failed" in done.stdout
    assert "failed:\n  9a boris: line 1: ModuleNotFoundError" in done.stdout
    assert not (tmp_path / "out.py").exists()
    suites = (tmp_path / "out.xml").read_text(encoding="utf-8")
    assert 'name="boris" tests="4" failures="4" skipped="0"' in suites
    assert 'name="edith" tests="4" failures="0" skipped="4"' in suites
    (folder / "hugo.zip").unlink()
    for name in ("boris", "clara", "edith"):
        (folder / name).rename(tmp_path / name)
    (folder / "dora.zip").unlink()
    done = command("grade", "class", "--lessons=9", "--gradescope=results.json")
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["score"] == 4


@pytest.mark.parametrize("other", ["", "work/09_attention (1).py", "lesson_09.py"])
def test_a_file_of_another_name_is_named(tmp_path, other):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/10_heads.py").touch()
    if other:
        (tmp_path / other).touch()
    said = classroom.not_handed_in(tmp_path, "09_attention.py")
    name = other.removeprefix("work/")
    assert said == "09_attention.py was not handed in" + (f"; is it {name}?" if other else "")


@pytest.mark.slow
def test_an_exam_has_shapes_of_its_own(command, work, tmp_path):
    """The one in lessons/README.md: an answer that knows the shapes by heart is right without it alone."""
    page = course.read(course.LESSONS / "README.md")
    exam = re.search(r"```python\n(# exam/attention.py\n.*?)```", page, re.DOTALL)[1]
    (tmp_path / "exam").mkdir()
    (tmp_path / "exam/attention.py").write_text(exam, encoding="utf-8")
    answers = {"anna": ANSWERS["9a"], "boris": "return q @ k.mT / {6: 2.4494897, 9: 3.0}[q.size(-1)]"}
    for student, answer in answers.items():
        path = tmp_path / "class" / student / "09_attention.py"
        path.parent.mkdir(parents=True)
        path.write_text(lesson_9({"9a": answer}), encoding="utf-8")
    for flags, right in (((), 2), (("--checks=exam",), 1)):
        done = command("grade", "class", "--lessons=9a", *flags)
        assert f"9a: 2 handed in, {right} right" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("other.py", "", "holds no check file"),
        ("attention.py", UNSTEADY, "the inputs of 9a differ between two calls"),
        ("attention.py", ONLY_SMALL_SEEDS, "9a: no inputs for the seeds (2147483646, 2147483647): index 2"),
    ],
)
def test_an_exam_that_would_be_unfair_is_refused(command, work, tmp_path, name, text, error):
    """Without any check file ours were used. Inputs that forget the seed, or fail with it, refused what was
    right."""
    (tmp_path / "exam").mkdir()
    (tmp_path / "exam" / name).write_text(text, encoding="utf-8")
    (tmp_path / "class/anna").mkdir(parents=True)
    (tmp_path / "class/anna/09_attention.py").write_text(lesson_9({}), encoding="utf-8")
    done = command("grade", "class", "--lessons=9a", "--checks=exam", f"--seed={2**31 - 2}")
    assert (done.returncode, error in done.stderr) == (2, True), done.stderr
