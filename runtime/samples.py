"""samples.txt: what the model has written, each text below a line with its step and its data."""

import re
from pathlib import Path

from runtime import guard

HEADING = "--- a sample at step "
START = re.compile(f"^(?={HEADING})", re.MULTILINE)
END = "\n---\n"


def block(step: int, source: str, text: str) -> str:
    """A sample as it stands in the file and on the screen: heading, text, and a line of three dashes.

    source: the data that the model learned from.
    """
    return f"{HEADING}{step} ({source})\n{text}{END}"


def cut(path: Path, step: int) -> None:
    """Remove from the file what is later than a step, and a sample that a killed run has not finished."""
    if not path.exists():
        return
    text = path.read_bytes().decode("utf-8", "ignore")  # a killed run may have left half of a character
    found = [each for each in START.split(text) if each]
    kept = [each for each in found if each.endswith(END) and step_of(each) <= step]
    if not kept:
        path.unlink()
    elif kept != found:
        guard.write_atomic(path, "".join(kept))


def step_of(found: str) -> int:
    """The step of a sample; 0 for lines that someone has written above the first one."""
    number = re.match(f"{HEADING}([0-9]+)", found)
    return int(number[1]) if number else 0


def append(path: Path, step: int, source: str, text: str) -> None:
    """Add a sample. One of the same step, which a resumed run has written again, gives way to it."""
    cut(path, step - 1)
    with open(path, "a", encoding="utf-8", newline="") as file:
        file.write(block(step, source, START.sub(" ", text)))  # no line of a text may look like a heading


def read(path: Path) -> list[dict]:
    """[{"step", "text"}, ...] of a samples.txt; [] if there is none."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    blocks = [block for block in START.split(text) if block.startswith(HEADING)]
    return [{"step": step_of(block), "text": block.partition("\n")[2].removesuffix(END)} for block in blocks]
