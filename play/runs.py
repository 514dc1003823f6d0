"""Which runs there are, and what one of them has written so far. Reads no checkpoint: a run can be watched
while it trains."""

import contextlib
import functools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

from config import require
from lab.ladder import ladder
from runtime import samples
from runtime.curve import bands_for
from runtime.folder import newest
from runtime.trust import read_json
from text.settle import meta_of

QUIET = 120  # seconds: a run without result.json that wrote something since then is being trained
PAUSE = 0.25  # seconds between two looks at a file that grows


def list_runs(home: Path) -> list[dict]:
    """What is known of each run in a folder without its checkpoint, the newest first."""
    found = []
    for folder in home.iterdir():
        with contextlib.suppress(OSError, ValueError), intact(folder):  # no run, or a damaged one
            found.append(about(folder))
    return sorted(found, key=lambda run: run["age"])


@contextlib.contextmanager
def intact(folder: Path) -> Iterator[None]:
    """ValueError with the name of a run if what stands in its files is not what they should hold."""
    try:
        yield
    except (AttributeError, IsADirectoryError, KeyError, RecursionError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"a file of {folder.name:.60} is damaged: {what:.200}") from None


def about(folder: Path) -> dict:
    """What is known of one run. Raises for a folder that holds none."""
    settings, tokenizer = settings_of(folder)
    rows, files = rows_of(folder / "metrics.jsonl"), checkpoints(folder)
    rows.read()
    written = [newest(folder / name) for name in (*files, "metrics.jsonl", "config.json")]
    finished = (folder / "result.json").exists()
    age = time.time() - max(path.stat().st_mtime for path in written if path.exists())
    return {
        "name": folder.name,
        "files": files,
        "step": rows.step,
        "max_iters": settings["max_iters"],
        "val_loss": rows.best,
        "age": age,
        "state": "finished" if finished else "training" if age < QUIET and rows.place > 0 else "stopped",
        "chat": bool(tokenizer.get("chat")) or dataset_of(settings).get("format") == "jsonl",
    }


def settings_of(folder: Path) -> tuple[dict, dict]:
    """(config.json, tokenizer.json) of a run."""
    settings, tokenizer = (read_json(folder / f"{name}.json") for name in ("config", "tokenizer"))
    require(type(settings["max_iters"]) is int, f"max_iters={settings['max_iters']!r:.40}; expected a number")
    return settings, tokenizer


def checkpoints(folder: Path) -> list[str]:
    """Names of a run's checkpoints, the one that other scripts would read first."""
    first = [name for name in ("best.pt", "ckpt.pt") if newest(folder / name).exists()]
    return first + sorted(path.name for path in folder.glob("ckpt_*.pt"))


def dataset_of(settings: dict) -> dict:
    """The meta.json of a run's dataset; {} if that is not here any more."""
    try:
        return meta_of(settings["dataset"])
    except (OSError, KeyError, ValueError):
        return {}


class Rows:
    """The rows of a metrics.jsonl that grows."""

    def __init__(self, path: Path):
        self.path, self.place, self.tail = path, 0, b""  # tail: what stood before that place
        self.was_cut = False  # by another run, or a resumed one, at the last read(): the rows before are void
        self.step, self.best = 0, None  # of the last row; the lowest val loss

    def read(self) -> list[dict]:
        """The rows since the last call. A row that is half written waits; a damaged one is left out."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.place - len(self.tail))
                self.was_cut = file.read(len(self.tail)) != self.tail
                file.seek(0 if self.was_cut else self.place)
                new = file.read()
        except OSError:  # it is not here yet, or not any more
            self.was_cut, new = self.place > 0, b""
        if self.was_cut:
            self.place, self.tail, self.step, self.best = 0, b"", 0, None
        new = new[: new.rfind(b"\n") + 1]
        self.place, self.tail = self.place + len(new), (self.tail + new)[-200:]
        rows = []
        for line in new.splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and type(row.get("step")) is int:
                rows.append({key: value for key, value in row.items() if isinstance(value, int | float)})
        losses = [self.best, *(row.get("val_loss") for row in rows)]
        self.best = min((x for x in losses if isinstance(x, float) and math.isfinite(x)), default=None)
        self.step = rows[-1]["step"] if rows else self.step
        return rows


rows_of = functools.cache(Rows)  # for the list: what was read once is not read again


def follow(folder: Path) -> Iterator[list[tuple[str, object]]]:
    """Yield what is new in a run, [(event, what it brings), ...], every PAUSE seconds; [] if nothing is."""
    rows, before = Rows(folder / "metrics.jsonl"), {}
    heads = {
        "run": (head, "config.json", "result.json"),
        "samples": (lambda folder: samples.read(folder / "samples.txt"), "samples.txt"),
    }
    while True:
        events = []
        for event, (read, *names) in heads.items():
            paths = [folder / name for name in names]
            stamp = [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]
            if stamp != before.get(event):
                before[event] = stamp
                with intact(folder):
                    events.append((event, read(folder)))
        new = rows.read()
        if rows.was_cut:
            events.append(("reset", {}))
        if new:
            events.append(("rows", new))
        yield events
        time.sleep(PAUSE)


def head(folder: Path) -> dict:
    """What a curve is drawn against: data, the ladder of meanings, the expected losses, how the run ended."""
    settings, tokenizer = settings_of(folder)
    meta, expected = dataset_of(settings), settings.get("expected", {})
    vocab_size = len(tokenizer["tokens"]) + len(tokenizer["special_tokens"])
    result = read_json(folder / "result.json") if (folder / "result.json").exists() else {}
    return {
        "run": folder.name,
        "vocab_size": vocab_size,
        "dataset": settings["dataset"],
        "max_iters": settings["max_iters"],
        "ladder": ladder(vocab_size, settings["dataset"], meta),
        "expected": bands_for(meta, expected)[0] if meta and expected else {},
        "finished": bool(result),
        "final_val_loss": result.get("final_val_loss"),
    }
