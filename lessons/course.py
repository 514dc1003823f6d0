"""What every lesson imports: a text, claims, plots, and "your function, or ours until yours is written".

Also where things are: run.py, the grader and the tests ask here which lessons and check files exist.
"""

import functools
import hashlib
import importlib.machinery
import importlib.util
import inspect
import math
import os
import re
import sys
import warnings
from pathlib import Path

import numpy as np

from config import ROOT

LESSONS = ROOT / "lessons"
SEEDS = (1, 2)  # of the inputs that a student sees; `grade` draws others
MOVED = {  # folder: modules that stood at the root when students' files and exams were written
    "machine": "distributed|hardware",
    "runtime": "checkpoint|curve|guard|memory|report|sharded|trust",
    "text": "corpora|formats|token_files",
    "lab": "measure|measure_text|plan|plan_check|scaling",
}
told: set[str] = set()  # exercises that were reported as not written yet
# float(loss) is as right as loss.item(), but torch warns about it and names a file of its own
warnings.filterwarnings("ignore", "Converting a tensor with requires_grad=True to a scalar", UserWarning)


def work() -> Path:
    """The student's folder: work/ in the project, or the one that the variable TINYLM_WORK names."""
    return Path(os.environ.get("TINYLM_WORK") or ROOT / "work").resolve()


def lessons() -> dict[int, Path]:
    """Number -> file of each lesson, in order."""
    return {int(path.name[:2]): path for path in sorted(LESSONS.glob("[0-9][0-9]_*.py"))}


def header(path: Path) -> dict:
    """Title, unit and seconds of a lesson, from the comment it begins with; ValueError if it has none."""
    found = re.match(r"# Lesson (\d+) \(unit (\w)\): (.+)\n(?:#.*\n)*?# Seconds: (\d+)\n", read(path))
    if not found:
        raise ValueError(f"{path.name} does not begin with '# Lesson N (unit U): title' and '# Seconds: S'")
    number, unit, title, seconds = found.groups()
    return dict(number=int(number), unit=unit, title=title, seconds=int(seconds))


def read(path: Path) -> str:
    """Read a text file with any line ends."""
    return path.read_text(encoding="utf-8")


@functools.cache
def checks(number: int):
    """Import the check file of a lesson: a module with `exercises` and `predictions`, and their words.

    The variable TINYLM_CHECKS may name a folder, an exam, say. A check file in it replaces ours of that name.
    """
    topic, folder = lessons()[number].stem[3:], os.environ.get("TINYLM_CHECKS")
    if folder and Path(folder, f"{topic}.py").is_file():
        module = load(Path(folder, f"{topic}.py"), f"variant_{topic}")
    else:
        module = importlib.import_module(f"lessons.checks.{topic}")
    return worded(module, importlib.import_module(f"lessons.words.{topic}"))


def worded(module, words):
    """Put the words of a lesson (lessons/words/) to the functions and numbers of its check file: a mistake
    becomes (function, hint). What has words of its own, in an exam, keeps them."""
    for number, said in words.exercises.items():
        exercise = module.exercises.get(number, {})
        exercise.setdefault("hints", said["hints"])
        for part in ("wrong", "also"):
            for name, function in exercise.get(part, {}).items():
                if not callable(function):
                    continue
                if name not in said.get(part, {}):
                    raise ValueError(
                        f"{words.__name__} has no words for {name!r} of {number}: write its hint there"
                    )
                exercise[part][name] = function, said[part][name]
    for number, said in words.predictions.items():
        question = module.predictions.get(number, {})
        question.update({key: text for key, text in said.items() if key not in question})
    return module


def up_to_date(source: str) -> str:
    """Rewrite the imports of a file that was started before a module moved. Lines keep their numbers."""
    for folder, names in MOVED.items():
        source = re.sub(rf"(?m)^(\s*)from ({names}) import\b", rf"\1from {folder}.\2 import", source)
        source = re.sub(rf"(?m)^(\s*)import ({names})\b", rf"\1from {folder} import \2", source)
    source, moved = re.subn(r"\bdata\.(DATASETS|prepare)\b", r"prepare.\1", source)
    if moved:
        source = re.sub(r"(?m)^import data\b", "from text import prepare; import data", source)
    return source


class Loader(importlib.machinery.SourceFileLoader):
    """Loads a Python file as up_to_date() rewrites it; the file itself stays as it is."""

    def source_to_code(self, data, path, **options):
        return super().source_to_code(up_to_date(importlib.util.decode_source(data)), path, **options)


def load(path: Path, name: str):
    """Load a file as a module, without its folder on the path. The name "__main__" runs it as a script."""
    sys.dont_write_bytecode = True
    spec = importlib.util.spec_from_file_location(name, path, loader=Loader(name, str(path)))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def lesson_of(name: str) -> int:
    """The lesson of an exercise or a prediction: 10 of "10a" and of "10.1"."""
    return int(re.match(r"\d+", name)[0])


def claim(stated: float, found: float, tol: float = 0.01, when: bool = True) -> None:
    """Raise AssertionError unless a number in the lesson's text is the one that was just computed.

    when: False skips this, where the number holds for another text (the real Shakespeare) than the one used.
    """
    if when and not abs(stated - found) <= tol:
        raise AssertionError(f"the lesson says {stated}, this run found {found:.6g} (tolerance {tol})")


def play() -> str:
    """300,000 characters of the generated play, made in a tenth of a second: no lesson needs a network."""
    from text import corpora  # here: tests and run.py read the list of lessons without it

    return "".join(part for part, _ in corpora.open_corpus("builtin:verse", size=300_000).chunks())


@functools.cache
def text() -> tuple[str, bool]:
    """A text to learn from, and whether it is the real Tiny Shakespeare.

    The real text is used if `python data.py --input=... --name=shakespeare_char` has prepared it. If not,
    the generated play is.
    """
    import tokenizer
    from text import corpora

    folder = ROOT / "datasets" / "shakespeare_char"
    if (folder / "meta.json").is_file():
        letters = tokenizer.load_any(folder)
        splits = [np.fromfile(folder / f"{split}.bin", dtype=np.uint16) for split in ("train", "val")]
        ids = np.concatenate(splits)
        if ids.max() < letters.vocab_size:
            real = letters.decode(ids)
            if hashlib.sha256(real.encode("utf-8")).hexdigest() == corpora.SHA256:
                return real, True
    return play(), False


def name_of_text() -> str:
    """Which text the lessons learn from here, in a line."""
    if text()[1]:
        return "the real Tiny Shakespeare"
    return "a generated play: numbers differ from those in the lessons. The real text: see lessons/README.md"


@functools.cache
def encoded() -> tuple:
    """Prepare that text as lesson 1 does: (its letters, sorted, as a list; the ids to train on and those to
    validate, both (n,) int64; whether it is the real text)."""
    import torch

    letters, real = text()
    vocabulary = sorted({*letters})
    code = {letter: i for i, letter in enumerate(vocabulary)}
    ids = torch.tensor([code[letter] for letter in letters])
    cut = int(0.9 * len(ids))
    return vocabulary, ids[:cut], ids[cut:], real


def windows(ids, size: int, g) -> tuple:
    """A random batch of a text, (n,) int64, drawn with a generator: x and y, (size, 32) each."""
    import torch

    rows = torch.stack([ids[at : at + 33] for at in torch.randint(len(ids) - 33, (size,), generator=g)])
    return rows[:, :-1], rows[:, 1:]


def update(model, optimizer, x, y) -> float:
    """Train on a batch, once, as in lesson 4; returns the loss before."""
    from torch.nn import functional

    loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def source_of(function) -> str:
    """File and line of a function of the project, as model.py:120; "" for others."""
    try:
        path = Path(inspect.getsourcefile(inspect.unwrap(function)))
        return f"{path.relative_to(ROOT).as_posix()}:{inspect.getsourcelines(function)[1]}"
    except (TypeError, OSError, ValueError):
        return ""  # it belongs to torch, say


def yours_or_ours(yours, exercise: str):
    """Return a function that calls the student's, or ours as long as theirs is a stub; it says so once. A
    class's stub has to raise in __init__."""
    ours = checks(lesson_of(exercise)).exercises[exercise]["reference"]

    @functools.wraps(yours, updated=())
    def either(*args, **kwargs):
        if exercise not in told:
            try:
                return yours(*args, **kwargs)
            except NotImplementedError as error:
                if str(error) != f"lesson {exercise}":
                    raise
                told.add(exercise)
                print(f"({exercise} `{yours.__name__}` is not written yet: ours is used)")
        return ours(*args, **kwargs)

    return either


def save_plot(name: str, draw) -> None:
    """Save what draw(axes) draws as work/NAME.png; in a notebook, show it, too."""
    from runtime import plot  # here: matplotlib takes half a second

    pyplot = plot.open_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    draw(axes)
    path = work() / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    print(f"plot: {path}")
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display

        display(Image(str(path)))


def nearest(value: float, known: dict[str, float], tol: float = 1e-3) -> str:
    """The name of the known number that equals value to a relative tol; "" if none does."""
    near = [name for name, number in known.items() if math.isclose(value, number, rel_tol=tol)]
    return near[0] if near else ""
