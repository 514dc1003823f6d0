"""Reads and writes what a student has done, work/progress.json, and prints it as a table."""

import copy
import json
from pathlib import Path

from lessons import course

EMPTY = {"exercises": {}, "predictions": {}}


def state_path() -> Path:
    return course.work() / "progress.json"


def load_state() -> dict:
    """Read progress.json; without one, an empty state. A damaged file is kept under another name."""
    path = state_path()
    try:
        state = json.loads(course.read(path))
        if not all(isinstance(state[key], dict) for key in EMPTY):
            raise ValueError("not the right keys")
        return state
    except FileNotFoundError:
        return copy.deepcopy(EMPTY)
    except (ValueError, KeyError, TypeError):
        kept = free_name(path)
        path.rename(kept)
        print(f"{path.name} could not be read: it is kept as {kept.name}, and a new one begins")
        return copy.deepcopy(EMPTY)


def save_state(state: dict) -> None:
    from runtime.guard import write_atomic  # here: it imports torch, and `list` should not wait for that

    state_path().parent.mkdir(parents=True, exist_ok=True)
    write_atomic(state_path(), json.dumps(state, indent=1, ensure_ascii=False) + "\n")


def record(state: dict, exercise: str) -> dict:
    fresh = dict(attempts=0, hints=0, right=False, mistake="", gave_up=False)
    return state["exercises"].setdefault(exercise, fresh)


def free_name(path: Path) -> Path:
    """The first name of path.bak, path.bak2, ... that is not taken."""
    names = (path.with_name(f"{path.name}.bak{n if n > 1 else ''}") for n in range(1, 10_000))
    return next(name for name in names if not name.exists())


def in_order(of: dict) -> list[tuple]:
    """The items of a dict by exercise or prediction, in the order of lessons."""
    return sorted(of.items(), key=lambda item: (course.lesson_of(item[0]), item[0]))


def table(state: dict) -> str:
    """List the exercises with attempts and hints, then each prediction beside the right number."""
    lines = [f"{'':5} {'':12} attempts  hints"]
    for name, mine in in_order(state["exercises"]):
        done = "right" if mine["right"] else "not yet"
        gave_up = "  gave up" if mine["gave_up"] else ""
        lines.append(f"{name:5} {done:12} {mine['attempts']:8} {mine['hints']:6}{gave_up}")
    for key, guess in in_order(state["predictions"]):
        question = course.checks(course.lesson_of(key)).predictions.get(key)
        right = f", it is {question['answer']:,.10g}" if question else ""
        lines.append(f"{key:5} predicted {guess:,.10g}{right}")
    return "\n".join(lines) if len(lines) > 1 else "nothing yet: python lessons/run.py start 1"
