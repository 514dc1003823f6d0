"""Run train.py many times, several at once, and go on after a stop. sweep.py is made of it.

    results = run_all([["config/tiny.py", "--seed=1", "--out_dir=out-1"], ["config/tiny.py", ...]], jobs=2)

A command is what one would type behind "python train.py", with an --out_dir of its own. In each folder there
are two files more than train.py writes: asked.json, the settings that were asked for, and log.txt, what was
printed. So the same call, made again, knows which runs have finished, and lets the others go on.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from config import ROOT, parse_flag, read_config_file, require, training_settings
from runtime.folder import newest, run_folder
from runtime.guard import write_atomic

PATIENCE = 60.0  # seconds that a stopped run has for its update and for saving
# Signals that stop the runs, besides Ctrl-C. Windows has no SIGHUP, which a closed terminal sends.
STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def settings_of(command: list[str]) -> dict:
    """train.py's settings by a command, those that differ from their defaults; no dicts (expected).

    ValueError for what train.py would refuse at once: a name or a value that it does not know.
    """
    defaults = training_settings()
    flags = dict(parse_flag(word, defaults) for word in command if word.startswith("-"))
    settings = {**defaults, **flags}  # a config file sees what was typed, which has the last word, too
    for file in (word for word in command if not word.startswith("-")):
        settings |= read_config_file(file, settings, defaults)
    settings |= flags
    changed = {name: value for name, value in settings.items() if value != defaults[name]}
    return {name: value for name, value in changed.items() if not isinstance(value, dict)}


def run_all(commands: list[list[str]], jobs: int = 1, say: Callable = print) -> list[dict]:
    """Run train.py with each command, at most `jobs` at a time; returns a dict for each, in their order.

    It is the run's result.json with "folder" (a Path). A run that failed has "error" instead, its last line:
    the others go on. Finished runs are not made again, unfinished ones are resumed. Runs at the same time
    share the CPU threads. Ctrl-C, SIGTERM, or a terminal that closes, stops and saves them all. say: prints
    a line for each run. ValueError, before any run starts, for a command that train.py would refuse, two with
    one folder, a folder that holds something else, and under torchrun, whose processes would all start them.
    """
    require(jobs >= 1, f"jobs={jobs} makes no sense; expected 1 or more")
    alone = "RANK" not in os.environ
    require(alone, "this command starts processes itself; start it without torchrun, with --jobs=2 or more")
    asked = [settings_of(command) for command in commands]
    folders = [run_folder(settings.pop("out_dir", "out")) for settings in asked]
    for i, folder in enumerate(folders):
        require(folder not in folders[:i], f"two runs have the same folder {folder}")
        check_same(folder, asked[i])
    results = [result_in(folder) for folder in folders]
    waiting = [i for i, result in enumerate(results) if not result]
    if len(waiting) < len(commands):
        say(f"{len(commands) - len(waiting)} of {len(commands)} runs have finished before")
    jobs = max(1, min(jobs, len(waiting)))
    share = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs))} if jobs > 1 else {}
    running: dict[int, subprocess.Popen] = {}
    before = {each: signal.getsignal(each) for each in STOPS}
    for each in [each for each in STOPS if before[each] is not signal.SIG_IGN]:  # nohup ignores SIGHUP
        signal.signal(each, signal.default_int_handler)  # raises KeyboardInterrupt, as Ctrl-C
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                i = waiting.pop(0)
                running[i] = start(commands[i], folders[i], asked[i], share)
            time.sleep(0.05)
            for i in [i for i, process in running.items() if process.poll() is not None]:
                results[i] = result_in(folders[i]) or failure_in(folders[i], running[i].returncode)
                del running[i]
                say(line_about(results[i], len(commands) - len(waiting) - len(running), len(commands)))
    except KeyboardInterrupt:
        say("stopping; the same command goes on from here")
        raise
    finally:
        stop(list(running.values()))
        for each, handler in before.items():
            signal.signal(each, handler)
    return results


def check_same(folder: Path, asked: dict) -> None:
    """ValueError if a folder holds a run that was asked for with other settings, or by hand."""
    advice = "choose another --out_dir, or delete that folder"
    if not (folder / "asked.json").exists():
        require(not (folder / "config.json").exists(), f"{folder} holds a run of its own; {advice}")
        return
    old = read_json(folder / "asked.json")
    for name in sorted(old.keys() | asked.keys()):
        before, now = (settings.get(name, "its default") for settings in (old, asked))
        require(before == now, f"{folder} was made with {name}={before}, not {now}; {advice}")


def start(command: list[str], folder: Path, asked: dict, environment: dict) -> subprocess.Popen:
    """Start train.py, or go on with its run. What it prints goes to log.txt.

    Its session is its own: Ctrl-C reaches only us, and we stop it once. A second signal would kill it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "asked.json", json.dumps(asked, indent=2) + "\n")
    again = ["--init_from=auto"] if newest(folder / "ckpt.pt").exists() else []
    with open(folder / "log.txt", "ab") as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *command, *again],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def stop(processes: list[subprocess.Popen]) -> None:
    """End runs: SIGTERM lets them save. Those that do not end in time, or at a second Ctrl-C, are killed."""
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.wait(PATIENCE)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        for process in processes:
            process.kill()
    for process in processes:
        process.wait()


def result_in(folder: Path) -> dict:
    """A finished run's result.json and its folder; {} if it has not finished."""
    path = folder / "result.json"
    return {**read_json(path), "folder": folder} if path.exists() else {}


def read_json(path: Path) -> dict:
    """A JSON file of a run, such as config.json. ValueError if it does not hold a dict."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        value = None
    require(isinstance(value, dict), f"{path} is damaged; delete the folder, and make that run again")
    return value


def failure_in(folder: Path, code: int) -> dict:
    """What is known of a run that ended without a result. code: its exit code, negative for a signal."""
    lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
    return {"error": f"killed by signal {-code}" if code < 0 else last, "folder": folder}


def line_about(result: dict, number: int, total: int) -> str:
    """The line of progress about a run that has ended."""
    place = f"{number} of {total}  {result['folder'].name}: "
    if "error" in result:
        return f"{place}FAILED: {result['error']}"
    return f"{place}val loss {result['final_val_loss']:.4f}, {result['training_time']:.1f} s"
