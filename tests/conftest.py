"""What every test shares: one thread, no network, and ways to run the scripts on a small text."""

import gc
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import config
from forks import Forks
from machine import distributed
from runtime import report
from text import corpora, prepare

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    "--device=cpu --dtype=float32 --n_layer=2 --n_head=2 --n_embd=32 --block_size=32 --batch_size=4 "
    "--max_iters=20 --eval_interval=10 --eval_iters=1 --log_interval=5 --max_new_tokens=20"
).split()

FIGURES = pytest.StashKey[list[str]]()

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # so train.py does not choose, here and in processes of tests
gc.disable()  # until all tests are collected: 5 s of 18 went into the search for garbage in a million objects

# torch.manual_seed keeps its caller's stack as text for three kinds of device until they are started: 1.3 ms
# under pytest, at each token that is sampled. That text is shown where starting a device fails.
for devices in (torch.cuda, torch.xpu, torch.mtia):
    devices.traceback = SimpleNamespace(format_stack=list)


def needs(package: str):
    """Import a package of requirements-dev.txt, or skip the test; at the top of a file, all its tests."""
    return pytest.importorskip(package, reason=f"needs {package}: pip install -r requirements-dev.txt")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What wrong answers do to training is slow, but for lessons 1 to 13: the README's command has those."""
    for item in items:
        symptom = re.fullmatch(r"test_(\d\d)_\w+\.py", item.path.name)
        if symptom and int(symptom[1]) > 13:
            item.add_marker("slow")


def pytest_runtest_setup(item):
    for mark in item.iter_markers("needs"):
        needs(*mark.args)


def pytest_collection_finish():
    gc.set_threshold(20_000)  # a search after that many new objects, not after 700
    gc.enable()


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="what takes hours: 200 kills, all seeds, old code")


@pytest.fixture
def figure(pytestconfig):
    """figure("20 kills, no run lost") says what a test has shown; printed at the end, equal lines once."""
    return pytestconfig.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter, config):
    if lines := config.stash.get(FIGURES, []):
        terminalreporter.section("what you can rely on")
        for line, n in Counter(lines).items():
            terminalreporter.write_line(f"{n} x {line}" if n > 1 else line)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any socket beyond the loopback interface raises: the whole suite is proved to work offline."""
    connect = socket.socket.connect

    def loopback_only(self, address):
        inet = self.family in (socket.AF_INET, socket.AF_INET6)
        if inet and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"network is blocked in tests: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", loopback_only)
    monkeypatch.setenv("no_proxy", "*")  # a proxy of the machine's would answer in another way


@pytest.fixture(scope="session")
def datasets(tmp_path_factory) -> Path:
    """A datasets folder with `small`: 60,000 characters of verse, prepared once."""
    folder = tmp_path_factory.mktemp("datasets")
    text = "".join(text for text, _ in corpora.open_corpus("verse", size=60_000).chunks())
    (folder / "small.txt").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "DATASETS", folder)
        prepare.prepare("small", str(folder / "small.txt"))
    return folder


@pytest.fixture
def run_script(request, datasets, tmp_path, monkeypatch):
    """run("train.py", "--flag=1") runs a script in this process, in tmp_path/out; returns its globals.

    loss.png is drawn for tests marked `draws`; a figure takes longer than all updates of such a run. An
    evaluation reads 16 windows of 32 tokens in place of 128: those took a third of the run. Not where a test
    starts processes, too, which read all: their losses are compared.
    """
    if not {"shell", "forks", "nodes"} & set(request.fixturenames):
        monkeypatch.setattr("evaluate.EVAL_TOKENS", 512)
    if not request.node.get_closest_marker("draws"):
        monkeypatch.setattr(report, "plot_loss", lambda rows, floor, expected, path, *more: path.touch())
    monkeypatch.setattr(prepare, "DATASETS", datasets)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(script: str, *flags: str) -> dict:
        distributed.leave()
        monkeypatch.setattr(sys, "argv", [script, f"--out_dir={tmp_path / 'out'}", *flags])
        return runpy.run_path(str(ROOT / script), run_name="__main__")

    yield run
    config.end_script()  # a script that ends in an error does not get there
    config.given.clear()  # the next test has typed nothing
    distributed.leave()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def train(run_script):
    """train("--flag=1") runs train.py on the small text with a tiny model; returns its globals."""
    return lambda *flags: run_script("train.py", "--dataset=small", *TINY, *flags)


@pytest.fixture
def shell(datasets):
    """shell("train.py", ...) runs a script in a process of its own; returns the CompletedProcess."""

    def run(*command: str, cwd=ROOT, timeout=120, **kwargs) -> subprocess.CompletedProcess:
        kwargs = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True, "encoding": "utf-8", **kwargs}
        return subprocess.run(
            [sys.executable, *command], cwd=cwd, capture_output=True, timeout=timeout, **kwargs
        )

    return run


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium, driven by selenium; its console and its requests are logged."""
    webdriver = needs("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not shutil.which("chromedriver") or not chromium:
        pytest.skip("needs Chromium and chromedriver: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    flags = (
        "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        "disable-component-update disable-sync disable-dev-shm-usage window-size=1280,900"
    )
    for flag in [*flags.split(), f"user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.binary_location = chromium
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """forks.run(words, cwd, env): `python words` in a process that has torch already; see forks.py."""
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()
