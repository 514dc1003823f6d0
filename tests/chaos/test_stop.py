"""A second Ctrl-C: the process ends at once, whatever it is doing."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from conftest import ROOT, TINY

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # a stop may take five seconds
# train.py on the test's data; the update after the third takes a minute
SLOW = """
import pathlib, runpy, sys, time, torch
from text import prepare
prepare.DATASETS = pathlib.Path(sys.argv.pop(1))
norm, calls = torch.nn.utils.get_total_norm, []
def slow(*arguments):
    calls.append(1)
    if len(calls) == 4:
        print("slow", flush=True)
        for _ in range(600):
            time.sleep(0.1)
    return norm(*arguments)
torch.nn.utils.get_total_norm = slow
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def test_a_second_sigint_quits_at_once(datasets, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", SLOW, datasets, "--dataset=small", *TINY, f"--out_dir={out}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert any(line == "slow\n" for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "\n"
        assert process.stderr.readline() == "stopping after this update\n"
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert process.returncode == -signal.SIGINT
    assert err == ""
    assert torch.load(out / "ckpt.pt", weights_only=True)["step"] == 0  # that of the first evaluation
