"""Long and flat: in 5,000 updates (--long; else 800 of a smaller model) memory, open files, threads and the
time of an update stay what they were, while the run evaluates, saves, draws and samples as real ones do."""

import json
import os
import statistics
import sys

import pytest

from runtime import checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc as on Linux"),
]
# train.py on the test's data. After each update: processor seconds, RSS in MB, open files, threads.
MEASURED = """
import json, os, pathlib, runpy, sys, time
from runtime import report
from text import prepare

prepare.DATASETS, notes = pathlib.Path(sys.argv.pop(1)), pathlib.Path(sys.argv.pop(1))
count_update, rows = report.Report.count_update, []

def measured(self, *seconds):
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8").split()
    memory = int(status[status.index("VmRSS:") + 1]) * 1.024e-3
    handles, threads = (len(os.listdir(f"/proc/self/{what}")) for what in ("fd", "task"))
    rows.append((time.process_time(), memory, handles, threads))
    count_update(self, *seconds)

report.Report.count_update = measured
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
notes.write_text(json.dumps(rows), encoding="utf-8")
"""
# glibc keeps what is freed in pieces below a size that it raises up to 32 MB: RSS then moves by 16 MB with
# their order. At a fixed size, the large ones of evaluation go back, and RSS is what the run holds.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "3000000"}


def test_a_long_run_is_flat(shell, datasets, tmp_path, request, figure):
    n, smaller = (5000, "") if request.config.getoption("--long") else (800, "--n_embd=64 --batch_size=4")
    out, notes = tmp_path / "out", tmp_path / "notes.json"
    flags = (
        f"config/tiny.py --dataset=small --out_dir={out} --max_iters={n} {smaller} --device=cpu --threads=1 "
        "--eval_iters=1 --save_interval=50 --keep_checkpoints=3 --sample_interval=250 --max_new_tokens=100"
    )
    command = ("-c", MEASURED, str(datasets), str(notes), *flags.split())
    done = shell(*command, env=ENVIRONMENT, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--- a sample at step") == n // 250 + 1
    assert done.stdout.count("\nstep ") == n // 50 + 1  # evaluations, each with a plot
    steps = [checkpoint.load(path)["step"] for path in sorted(out.glob("ckpt_*.pt"))]
    assert steps == [n - 100, n - 50, n]

    rows = json.loads(notes.read_text(encoding="utf-8"))
    assert len(rows) == n
    clock, memory, handles, threads = zip(*rows, strict=True)
    growth = max(memory[500:]) - memory[499]
    milliseconds = [1000 * (after - before) for before, after in zip(clock, clock[1:], strict=False)]
    fifth = n // 5  # processor time: on a shared machine it says more than wall time
    early, late = (statistics.median(milliseconds[i * fifth : (i + 1) * fifth]) for i in (1, 4))
    figure(
        f"{n:,} iterations: RSS {growth:+.1f} MB after the first 500 ({memory[499]:.0f} MB), "
        f"{handles[-1]} open files and {threads[-1]} threads as before, {early:.1f} ms an update, "
        f"in the end {late:.1f} ms"
    )
    assert growth < 20
    assert set(handles[499:]) == {handles[499]}
    assert set(threads[499:]) == {threads[499]}
    assert late <= 1.25 * early
