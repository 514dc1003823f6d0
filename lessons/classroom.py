"""Grades a class: the same checks with other seeds, for one folder or zip per student.

    python lessons/run.py grade FOLDER --csv out.csv --lessons 3,9 --seed 7

Of what was handed in, only the lesson files are run, and progress.json is read for hints and attempts.
Checks, tests and graders that lie beside them are never run. This guards against accidents, not against
malice: grade the code of strangers in a container.
"""

import csv
import json
import os
import random
import tempfile
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from lessons import course
from lessons.worker import BROKEN, EMPTY, Worker

MOST = 50 * 2**20  # bytes of a zip, unpacked


def arguments(command) -> None:
    command.add_argument("folder", help="a folder with one folder or zip per student")
    command.add_argument("--csv", default="", help="one row per student: points, and a column per exercise")
    command.add_argument("--details", default="", help="one row per student and exercise, as CSV")
    command.add_argument("--junit", default="", help="the same as JUnit XML")
    command.add_argument("--gradescope", default="", help="results.json of Gradescope, for one student")
    command.add_argument("--lessons", default="", help="3,9 or 9b; all if not given")
    command.add_argument("--limit", type=float, default=0.0, help="seconds an exercise may take; 0: its own")
    command.add_argument("--checks", default="", help="a folder with check files that come before ours")
    command.add_argument("--seed", type=int, default=0, help="of the inputs; 0 draws a fresh one")


def exercises(wanted: str) -> list[tuple[int, str]]:
    """List (lesson, exercise) of what is to be graded, from --lessons as it was typed."""
    there = [(number, name) for number in course.lessons() for name in course.checks(number).exercises]
    if not wanted:
        return there
    asked = [part.strip() for part in wanted.split(",")]
    if unknown := [a for a in asked if not any(a in (str(number), name) for number, name in there)]:
        raise ValueError(f"there is no lesson or exercise {unknown[0]!r}")
    return [(number, name) for number, name in there if {str(number), name} & {*asked}]


def use_checks(folder: Path) -> None:
    """Replace our check files by an instructor's of the same name. ValueError if there is none, or if inputs
    differ between two calls with one seed."""
    from lessons.observe import difference  # here: it imports torch, and `list` should not wait for that

    topics = {path.stem[3:]: number for number, path in course.lessons().items()}
    there = [path.stem for path in folder.glob("*.py") if path.stem in topics]
    if not there:
        raise ValueError(f"{folder} holds no check file; expected one with the name of ours, as attention.py")
    os.environ["TINYLM_CHECKS"] = str(folder)  # the workers see it, too
    for topic in there:
        for name, exercise in course.checks(topics[topic]).exercises.items():
            first, second = exercise["inputs"](3), exercise["inputs"](3)
            if difference(first, second, 0.0)[0]:
                where = f"{folder / topic}.py: the inputs of {name} differ between two calls with one seed"
                raise ValueError(f"{where}; make a torch.Generator of this seed, and draw from it")


def unpack(path: Path, target: Path) -> str:
    """A student's zip into a new folder; returns why it was refused, or ""."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > MOST:
                return f"more than {MOST >> 20} MiB unpacked"
            for info in archive.infolist():
                inside = PurePosixPath(info.filename.replace("\\", "/"))
                if inside.is_absolute() or ".." in inside.parts or ":" in info.filename:
                    return f"the path {info.filename!r} leaves its folder"
            archive.extractall(target)
        return ""
    except (zipfile.BadZipFile, OSError, RuntimeError) as error:
        return f"no zip that can be read: {error}"


def find(folder: Path, name: str) -> Path:
    """Find a file by its name, wherever it lies in what a student handed in; the least deep one."""
    found = sorted(folder.rglob(name), key=lambda path: (len(path.parts), str(path)))
    return found[0] if found else folder / name


def not_handed_in(folder: Path, name: str) -> str:
    """Say that a lesson's file is missing, and which one may be it under another name."""
    alike = sorted(path.name for path in folder.rglob(f"*{name[:2]}*.py"))
    return f"{name} was not handed in" + (f"; is it {alike[0]}?" if alike else "")


def one_student(worker: Worker, name: str, folder: Path, wanted: list, terms: dict) -> list[dict]:
    """Grade one student: a row per exercise. terms: the seeds and the limit, the same for all students.
    ValueError if a check file has no inputs for these seeds."""
    try:
        state = json.loads(course.read(find(folder, "progress.json")))["exercises"]
    except (OSError, ValueError, KeyError, TypeError):
        state = {}
    rows = []
    for number, exercise in wanted:
        file = find(folder, course.lessons()[number].name)
        if file.is_file():
            found = worker.check(dict(lesson=number, exercise=exercise, file=str(file), **terms))
        else:
            found = dict(EMPTY, status="not written", line=not_handed_in(folder, file.name))
        if found["status"] == BROKEN:
            raise ValueError(f"{exercise}: {found['line']}; mend the check file, or choose another --seed")
        right = found["status"] == "right"
        mine = state.get(exercise, {}) if isinstance(state, dict) else {}
        mine = mine if isinstance(mine, dict) else {}
        rows.append(
            dict(
                student=name,
                exercise=exercise,
                verdict=found["status"],
                mistake="" if right else found["mistake"],
                attempts=mine.get("attempts", 0),
                hints=mine.get("hints", 0),
                seconds=found["seconds"],
                line=found["remark"] if right else found["line"],
            )
        )
    return rows


def grade(args) -> int:
    """Grade everyone in args.folder, write the tables that were asked for, and print a report."""
    folder = Path(args.folder).resolve()  # the workers are in another folder
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected one with a folder or zip per student")
    handed_in = sorted(path for path in folder.iterdir() if path.is_dir() or path.suffix == ".zip")
    if not handed_in:
        raise ValueError(f"{folder} holds no folder and no zip of a student")
    if args.gradescope and len(handed_in) > 1:
        raise ValueError("--gradescope is for one student at a time")
    seed = args.seed or random.SystemRandom().randrange(3, 2**31)
    if args.checks:
        use_checks(Path(args.checks).resolve())
    terms = dict(seeds=[seed, seed + 1], limit=args.limit)
    wanted, begun = exercises(args.lessons), time.monotonic()
    print("This guards against accidents, not against malice: grade the code of strangers in a container.")
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as room:
        workers = [Worker() for _ in range(min(os.cpu_count() or 1, 8, len(handed_in)))]
        free = list(workers)

        def rows_of(path: Path) -> list[dict]:
            at, refused = path, ""
            name = path.stem if path.is_file() else path.name  # a folder may be called "anna.b"
            if path.is_file():
                at = Path(room) / name
                at.mkdir()
                refused = unpack(path, at)
            if refused:
                row = dict(student=name, verdict="failed", mistake="", attempts=0, hints=0, seconds=0.0)
                return [{**row, "exercise": exercise, "line": refused} for _, exercise in wanted]
            worker = free.pop()
            try:
                return one_student(worker, name, at, wanted, terms)
            finally:
                free.append(worker)

        with ThreadPoolExecutor(len(workers)) as pool:
            rows = [row for rows in pool.map(rows_of, handed_in) for row in rows]
        for worker in workers:
            worker.close()
    write_all(args, rows, [name for _, name in wanted])
    print(report(rows))
    students = "student" if len(handed_in) == 1 else "students"
    print(f"{len(handed_in)} {students}, {len(rows)} exercises, {time.monotonic() - begun:.0f} s")
    return 0


def report(rows: list[dict]) -> str:
    """Count right answers and mistakes by exercise. List the answers that failed, and those that nothing
    recognised: these are next year's entries in a check file."""
    lines, listed = [], {"failed": [], "unrecognised": []}
    for exercise in dict.fromkeys(row["exercise"] for row in rows):
        mine = [row for row in rows if row["exercise"] == exercise and row["verdict"] != "not written"]
        right = sum(row["verdict"] == "right" for row in mine)
        mistakes = Counter(row["mistake"] for row in mine if row["mistake"])
        parts = [f"{len(mine)} handed in", f"{right} right"]
        parts += [f"{n} {name}" for name, n in mistakes.most_common()]
        for what, verdict in (("failed", "failed"), ("unrecognised", "wrong")):
            nameless = [row for row in mine if row["verdict"] == verdict and not row["mistake"]]
            parts += [f"{len(nameless)} {what}"] if nameless else []
            listed[what] += [f"  {exercise} {row['student']}: {row['line']}" for row in nameless]
        lines.append(f"{exercise}: " + ", ".join(parts))
    for what, found in listed.items():
        lines += [f"{what}:", *found] if found else []
    return "\n".join(lines)


def write_all(args, rows: list[dict], names: list[str]) -> None:
    """Write the files that --csv, --details, --junit and --gradescope name."""
    by_student: dict[str, list[dict]] = {}
    for row in rows:
        by_student.setdefault(row["student"], []).append(row)
    if args.csv:
        table = []
        for student, mine in by_student.items():
            points = {row["exercise"]: int(row["verdict"] == "right") for row in mine}
            mistakes = [f"{row['exercise']}: {row['mistake']}" for row in mine if row["mistake"]]
            table.append(
                {"student": student, "points": sum(points.values()), **points,
                 "hints": sum(row["hints"] for row in mine), "mistakes": "; ".join(mistakes),
                 "seconds": round(sum(row["seconds"] for row in mine), 1)}
            )  # fmt: skip
        write_csv(Path(args.csv), table)
    if args.details:
        write_csv(Path(args.details), rows)
    if args.junit:
        suites = ElementTree.Element("testsuites")
        for student, mine in by_student.items():
            bad = [row for row in mine if row["verdict"] in ("wrong", "failed")]
            stubs = [row for row in mine if row["verdict"] == "not written"]
            suite = ElementTree.SubElement(suites, "testsuite", name=student, tests=f"{len(mine)}",
                                           failures=f"{len(bad)}", skipped=f"{len(stubs)}")  # fmt: skip
            for row in mine:
                attributes = dict(classname=student, name=row["exercise"], time=f"{row['seconds']}")
                case = ElementTree.SubElement(suite, "testcase", attributes)
                if row in bad:
                    ElementTree.SubElement(case, "failure", message=row["line"], type=row["verdict"])
                if row in stubs:
                    ElementTree.SubElement(case, "skipped", message=row["line"])
        ElementTree.ElementTree(suites).write(args.junit, encoding="utf-8", xml_declaration=True)
    if args.gradescope:
        tests = [{"name": row["exercise"], "score": int(row["verdict"] == "right"), "max_score": 1,
                  "output": row["line"] or "right"} for row in rows]  # fmt: skip
        text = json.dumps({"tests": tests, "score": sum(test["score"] for test in tests)}, indent=1)
        Path(args.gradescope).write_text(text + "\n", encoding="utf-8")


def write_csv(path: Path, rows: list[dict]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
