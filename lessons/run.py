"""The course from the command line.

    python lessons/run.py list            the lessons; > marks the next exercise
    python lessons/run.py start 9         copy lesson 9 to work/, to be filled in there (--again: start over)
    python lessons/run.py check 9         judge lesson 9, or one exercise of it: check 9b
    python lessons/run.py watch 9         the same after each save; Ctrl-C ends it
    python lessons/run.py hint 9b         the next of three hints; all of them once yours is right
    python lessons/run.py show 9          run the lesson from top to bottom, and draw its plot
    python lessons/run.py solution 9b     how we do it, once yours is right (or with --give-up)
    python lessons/run.py progress        what is done, and what was predicted
    python lessons/run.py notebook 9      the lesson as a Jupyter notebook in work/ (--again: start over;
                                          --all: all lessons; --hosted: one for a machine of a cloud)
    python lessons/run.py grade FOLDER --csv out.csv      for instructors: see lessons/README.md
    python lessons/run.py doctor          is this machine ready?

Exit codes: 0 all is right, 1 not yet, 2 wrong usage. Your files and progress.json lie in work/, or in the
folder that the variable TINYLM_WORK names.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve()
if __name__ == "__main__" and str(HERE.parents[1]) not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    # Python has put lessons/ on its path, but imports need the project's root there: start again with it.
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    started = subprocess.Popen([sys.executable, str(HERE), *sys.argv[1:]], env=environment)
    while True:
        try:
            sys.exit(started.wait())
        except KeyboardInterrupt:
            pass  # the child got Ctrl-C, too, and handles it

from config import start_script  # noqa: E402
from lessons import classroom, course, doctor, notebook  # noqa: E402
from lessons.predict import asked_first, tell_predictions  # noqa: E402
from lessons.progress import free_name, load_state, record, save_state, table  # noqa: E402
from lessons.worker import ENVIRONMENT, Worker  # noqa: E402

# Runs a lesson. Not `python path`, which would put its folder on the path, where a random.py may lie.
SHOW = (
    "import pathlib, sys; from lessons import course; print('text:', course.name_of_text()); "
    "course.load(pathlib.Path(sys.argv[1]), '__main__')"
)


# ---- lessons and exercises
def parse(number: str) -> tuple[int, str]:
    """Read a number as it was typed: 9 -> (9, ""), 9b -> (9, "9b"). ValueError if there is no such lesson."""
    found = re.fullmatch(r"(\d+)([a-z]?)", number)
    if not found or int(found[1]) not in course.lessons():
        there = ", ".join(map(str, course.lessons()))
        raise ValueError(f"there is no lesson {number!r}; expected one of {there}, or an exercise as 9b")
    return int(found[1]), f"{int(found[1])}{found[2]}" if found[2] else ""


def exercises_of(number: int) -> list[str]:
    """List a lesson's exercises in order. They are read from its stubs, and nothing is imported."""
    source = course.read(course.lessons()[number])
    return re.findall(r'raise NotImplementedError\("lesson (\w+)"\)', source)


def chosen(number: str) -> tuple[int, list[str]]:
    """The lesson, and the exercises that are meant: all of its exercises, or the one that was typed."""
    lesson, one = parse(number)
    there = exercises_of(lesson)
    if one and one not in there:
        raise ValueError(f"there is no exercise {one}; lesson {lesson} has {', '.join(there)}")
    return lesson, [one] if one else there


def yours(lesson: int) -> Path:
    return course.work() / course.lessons()[lesson].name


def write(path: Path, text: str, again: bool) -> bool:
    """Write a file of the student's. An old one stays, or with `again` is kept under another name."""
    if path.exists():
        if not again:
            print(f"{path} is there already and stays as it is; --again begins anew and keeps the old one")
            return False
        kept = path.rename(free_name(path))
        print(f"the old one is kept as {kept.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return True


# ---- the commands
def list_(args) -> int:
    state, unit, marked = load_state(), "", False
    for number, path in course.lessons().items():
        head, names = course.header(path), exercises_of(number)
        done = sum(state["exercises"].get(name, {}).get("right", False) for name in names)
        if head["unit"] != unit:
            unit = head["unit"]
            print(f"Unit {unit}")
        mark = ">" if done < len(names) and not marked else " "
        marked = marked or mark == ">"
        print(f"{mark} {number:2}  {done}/{len(names)}  {head['seconds']:3} s  {head['title']}")
    return 0


def start(args) -> int:
    lesson, _ = parse(args.number)
    path = yours(lesson)
    if write(path, course.read(course.lessons()[lesson]), args.again):
        print(f"{path} is yours to fill in; then: python lessons/run.py check {lesson}")
    return 0


def show(args) -> int:
    lesson, _ = parse(args.number)
    path = yours(lesson) if yours(lesson).exists() else course.lessons()[lesson]
    print(f"{path} (about {course.header(course.lessons()[lesson])['seconds']} s)", flush=True)
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", SHOW, str(path)], cwd=course.ROOT, env=environment)
    return 1 if done.returncode else 0


def judge(worker: Worker, lesson: int, names: list[str], state: dict, seeds=course.SEEDS) -> bool:
    """Check exercises, print a line for each, record the attempts; return whether all are right."""
    now: dict[str, bool] = {}
    for name in names:
        job = dict(lesson=lesson, exercise=name, file=str(yours(lesson)), seeds=seeds)
        found, mine = worker.check(job), record(state, name)
        right = now[name] = found["status"] == "right"
        mine["attempts"] += found["status"] != "not written"
        mine["mistake"] = "" if right else found["mistake"]
        for line in found["output"]:
            print(f"    | {line}")
        needs = course.checks(lesson).exercises[name].get("needs", ())
        missing = [other for other in needs if not now.get(other, record(state, other)["right"])]
        with_ours = f", with our {' and '.join(missing)}" if right and missing else ""
        place = where(lesson, name) if right else ""
        print(f"{name}  {found['line']}{with_ours}{place}", flush=True)
        if found["remark"]:
            print(f"    {found['remark']}")
        if found["picture"] and not (right and mine["right"]):  # after a success, once is enough
            print("\n".join(f"    {row}" for row in found["picture"].splitlines()))
        mine["right"] = mine["right"] or right
    return all(now.values())


def where(lesson: int, name: str) -> str:
    """Name the place, file and line, where the project does the same."""
    exercise = course.checks(lesson).exercises[name]
    function = exercise.get("project", exercise["reference"])
    return f"; ours: {course.source_of(function) or f'{function.__module__}.{function.__name__}'}"


def check(args, worker: Worker | None = None) -> int:
    lesson, names = chosen(args.number)
    if not yours(lesson).exists():
        print(f"not started yet: python lessons/run.py start {lesson}")
        return 1
    worker = worker or Worker()
    worker.warm()
    state = load_state()
    known = {*state["predictions"]}
    if not asked_first(lesson, yours(lesson), state):
        save_state(state)
        return 1
    try:
        all_right = judge(worker, lesson, names, state)
    finally:
        save_state(state)
    tell_predictions(lesson, state, known)  # once; later `progress` tells
    if all_right:
        print("all public checks passed; an instructor grades with other seeds")
    return 0 if all_right else 1


def watch(args) -> int:
    """Check again after each save. The worker is warm, so this takes a fraction of a second."""
    lesson, _ = chosen(args.number)
    path, seen, worker = yours(lesson), None, Worker()
    if not path.exists():
        raise ValueError(f"{path} is not there; run: python lessons/run.py start {lesson}")
    worker.warm()
    try:
        while True:
            now = path.stat().st_mtime_ns if path.exists() else seen  # an editor may be replacing it
            if now != seen:
                seen = now
                print(f"--- {time.strftime('%H:%M:%S')}", flush=True)
                check(args, worker)
            time.sleep(0.1)
    except KeyboardInterrupt:
        worker.close()
        print("\nended")
        return 0


# ---- help on the way
def hint(args) -> int:
    """Print the next hint; once the answer is right, all three, to compare with how the author thought."""
    lesson, names = chosen(args.number)
    state = load_state()
    open_ones = [name for name in names if not record(state, name)["right"]]
    name = (open_ones or names)[0]
    hints, mine = course.checks(lesson).exercises[name]["hints"], record(state, name)
    mine["hints"] = mine["hints"] if mine["right"] else min(mine["hints"] + 1, len(hints))
    for i, text in enumerate(hints if mine["right"] else hints[: mine["hints"]], 1):
        print(f"{name}, hint {i} of {len(hints)}: {text}")
    save_state(state)
    return 0


def solution(args) -> int:
    from lessons import solutions  # here: torch comes with it, and no other command waits for torch

    lesson, names = chosen(args.number)
    state, code = load_state(), 0
    for name in names:
        mine = record(state, name)
        if not mine["right"] and not args.give_up:
            print(f"{name} is not right yet; --give-up shows the solution all the same, and is recorded")
            code = 1
            continue
        mine["gave_up"] |= not mine["right"]
        exercise = course.checks(lesson).exercises[name]
        ours = course.source_of(exercise.get("project"))
        print(f"# {name}" + f"; ours: {ours}" * bool(ours))
        print(solutions.solution(course.checks(lesson), name))
        for text in exercise["hints"]:
            print(f"# {text}")
    save_state(state)
    return code


def progress(args) -> int:
    print(table(load_state()))
    return 0


def notebook_(args) -> int:
    if not (args.number or args.all or args.hosted):
        raise ValueError("which lesson? expected its number, --all or --hosted")
    texts = {}
    for lesson in [*course.lessons()] if args.all else [parse(args.number)[0]] if args.number else []:
        path = yours(lesson) if yours(lesson).exists() else course.lessons()[lesson]
        texts[yours(lesson).with_suffix(".ipynb")] = notebook.of(course.up_to_date(course.read(path)))
    if args.hosted:
        texts[course.work() / "hosted.ipynb"] = notebook.hosted(course.read(course.lessons()[1]))
    for target, text in texts.items():
        if write(target, text, args.again):
            print(target)
    return 0


def grade(args) -> int:
    return classroom.grade(args)


def doctor_(args) -> int:
    return doctor.examine()


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"{message}; python lessons/run.py -h shows all")


def main(arguments: list[str]) -> int:
    parser = Parser(prog="python lessons/run.py", description=__doc__, add_help=True,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for function in (list_, progress, doctor_):
        commands.add_parser(function.__name__.rstrip("_")).set_defaults(run=function)
    for function in (start, show, check, watch, hint, solution, notebook_):
        command = commands.add_parser(function.__name__.rstrip("_"))
        several = dict(nargs="?", default="") if function is notebook_ else {}
        command.add_argument("number", help="a lesson (9) or an exercise (9b)", **several)
        command.set_defaults(run=function)
        if function in (start, notebook_):
            command.add_argument("--again", action="store_true")
        if function is notebook_:
            command.add_argument("--all", action="store_true", help="of all lessons")
            command.add_argument("--hosted", action="store_true", help="installs and trains, then lesson 1")
        if function is solution:
            command.add_argument("--give-up", action="store_true")
    command = commands.add_parser("grade")
    classroom.arguments(command)
    command.set_defaults(run=grade)
    args = parser.parse_args(arguments)
    return args.run(args)


if __name__ == "__main__":
    start_script()
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
