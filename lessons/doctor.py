"""Is this machine ready for the course? One line each: OK, or what to do."""

import importlib.util
import os
import sys
import time

from lessons import course

PRODUCTS = 20  # of 512 x 512 matrices a second, at least. A slow laptop core makes 200


def python() -> str:
    return "" if sys.version_info >= (3, 10) else "install Python 3.10 or newer"


def packages() -> str:
    missing = [
        name for name in ("torch", "numpy", "tiktoken", "matplotlib") if not importlib.util.find_spec(name)
    ]
    return f"pip install {' '.join(missing)}" if missing else ""


def threads() -> str:
    return "" if (os.cpu_count() or 1) > 1 else "one core only: lessons take twice their time"


def speed() -> str:
    """Multiply matrices for three seconds: that is most of what training does."""
    import torch

    torch.set_num_threads(1)
    x, end, n = torch.randn(512, 512), time.monotonic() + 3, 0
    while time.monotonic() < end:
        x = (x @ x) / 512
        n += 1
    return (
        "" if n / 3 > PRODUCTS else f"{n / 3:.0f} products a second: close other programs, expect long runs"
    )


def write_access() -> str:
    try:
        course.work().mkdir(parents=True, exist_ok=True)
        probe = course.work() / "probe.tmp"
        probe.write_text("ł 안녕", encoding="utf-8")
        probe.unlink()
        return ""
    except OSError as error:
        return f"{course.work()} cannot be written ({error.strerror}): set TINYLM_WORK to a folder of yours"


def encoding() -> str:
    return "" if "안녕".encode(sys.getfilesystemencoding(), "ignore") else "set PYTHONUTF8=1"


def examine() -> int:
    """Run all tests and print a line each; return 0 if the course can be taken here, else 1."""
    code = 0
    for test in (python, packages, threads, write_access, encoding, speed):
        try:
            remedy = test()
        except ImportError as error:
            remedy = f"{error}"
        code = 1 if remedy else code
        print(f"{test.__name__.replace('_', ' '):13} {remedy or 'OK'}", flush=True)
    print(f"{'text':13} {course.name_of_text()}")  # either will do
    return code
