"""Sweeps: the statistics against tables and written-out twins, and real runs that are stopped and go on."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from conftest import ROOT, TINY
from techniques import race, runs, significance, sweep

# Student's t, two-sided: (level, degrees of freedom) -> t, from the table in Fisher and Yates (1963)
TABLE = {
    (0.90, 1): 6.314, (0.95, 1): 12.706, (0.99, 1): 63.657, (0.95, 2): 4.303, (0.99, 2): 9.925,
    (0.95, 4): 2.776, (0.99, 4): 4.604, (0.90, 9): 1.833, (0.95, 9): 2.262, (0.99, 9): 3.250,
    (0.95, 15): 2.131, (0.95, 30): 2.042, (0.99, 60): 2.660,
}  # fmt: skip
ALPHA = 0.005  # the default


# ---- the statistics
@pytest.mark.parametrize(("level", "freedom"), TABLE)
def test_quantiles_are_those_of_the_table(level, freedom):
    assert significance.t_quantile(level, freedom) == pytest.approx(TABLE[level, freedom], abs=5e-4)


def test_the_interval_by_hand():
    """Differences 1, 2, 3: mean 2, standard deviation 1, so 2 -+ 4.303 / sqrt(3)."""
    assert significance.interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4843, 2 + 2.4843), abs=1e-3)
    assert significance.interval([1.0]) == significance.anytime([1.0], ALPHA) == (-math.inf, math.inf)


def evidence(differences: np.ndarray) -> float:
    """The ratio of likelihoods by summing: over gains N(0, EFFECT^2) and standard deviations, density 1/s."""
    s = np.exp(np.linspace(-8, 8, 801))[:, None] * np.std(differences)
    g = np.linspace(-6, 6, 801)[None] * significance.EFFECT
    n = len(differences)

    def likelihood(mean):
        squares = np.sum(differences**2) - 2 * mean * np.sum(differences) + n * mean**2
        return np.exp(-squares / 2 / s**2) / s**n  # on a grid of log s: ds / s is constant

    weight = np.exp(-(g**2) / 2 / significance.EFFECT**2)
    return (likelihood(g * s) * weight / weight.sum()).sum() / likelihood(0.0).sum()


@pytest.mark.parametrize("n", [5, 8, 13])
def test_at_its_ends_the_interval_has_the_evidence_of_one_false_alarm(n):
    differences = np.random.default_rng(n).normal(0.3, 1.0, n)
    for end in significance.anytime(differences, ALPHA):
        assert evidence(differences - end) == pytest.approx(1 / ALPHA, rel=1e-3)


def races(gain: float, number: int, seed: int, most: int = 16) -> list[tuple[float, float, int]]:
    """(lowest, highest, seeds) of simulated races: differences of mean -gain, standard deviation 0.01."""
    noise, ended = np.random.default_rng(seed), []
    for _ in range(number):
        found = significance.until_decided(lambda n: [noise.normal(-gain, 0.01)], most, ALPHA)
        ended.append((*significance.anytime(found, ALPHA), len(found)))
    return ended


def test_200_races_of_equals_and_200_with_a_gain(figure):
    alarms = sum(low > 0 or high < 0 for low, high, _ in races(0.0, 200, seed=1))
    with_gain = races(0.02, 200, seed=2)
    found = sum(high < 0 for _, high, _ in with_gain)
    assert alarms <= 2
    assert found >= 180
    mean = np.mean([n for *_, n in with_gain])
    figure(f"races: {alarms} false alarms in 200 of equals; a gain of 0.02 found in {found} of 200, "
           f"after {mean:.1f} seeds")  # fmt: skip


@pytest.mark.slow
def test_10000_races_of_equals(figure):
    """Not luck: below alpha with room, and gains of either sign are found."""
    alarms = sum(low > 0 or high < 0 for low, high, _ in races(0.0, 10_000, seed=3))
    assert alarms <= 10_000 * ALPHA
    assert sum(low > 0 for low, _, _ in races(-0.02, 500, seed=4)) >= 475
    figure(f"races: {alarms} false alarms in 10,000 of equals, at most 16 looks each")


def test_a_plain_interval_at_every_look_gives_a_false_alarm_in_a_quarter_of_races():
    """Why the plain interval is not enough: 16 looks at 95 %."""
    noise = np.random.default_rng(5).normal(0.0, 1.0, (4000, 16))
    alarm = np.zeros(4000, bool)
    for n in range(2, 17):
        t = np.abs(noise[:, :n].mean(1)) / noise[:, :n].std(1, ddof=1) * math.sqrt(n)
        alarm |= t > significance.t_quantile(0.95, n - 1)
    assert 0.22 < alarm.mean() < 0.27


def test_runs_that_do_not_differ_by_a_bit_end_the_race():
    assert significance.until_decided(lambda n: [0.0], 16, ALPHA) == [0.0, 0.0]
    assert "not by a bit" in race.verdict([0.0, 0.0], ALPHA)


# ---- what is asked for
def test_the_grid():
    grid = sweep.combinations(["learning_rate=1e-3,3e-3", "n_layer=2,4"])
    assert grid == [
        {"learning_rate": 0.001, "n_layer": 2}, {"learning_rate": 0.001, "n_layer": 4},
        {"learning_rate": 0.003, "n_layer": 2}, {"learning_rate": 0.003, "n_layer": 4},
    ]  # fmt: skip
    assert sweep.combinations([]) == [{}]
    assert (
        sweep.name_of({"learning_rate": 1e-3, "dataset": "a/b"}, 7)
        == "learning_rate=0.001,dataset=a-b,seed=7"
    )


BAD = [
    ("learnign_rate=1,2", "did you mean learning_rate"),
    ("n_layer=2,x", "--n_layer=x is not understood"),
    ("n_layer=2,2", "n_layer=2,2 has a value twice"),
    ("n_layer=2 n_layer=4", "n_layer is given twice"),
    ("seed=1,2", "seed cannot be swept: it is --seeds"),
    ("out_dir=a,b", "out_dir cannot be swept"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_a_bad_grid_is_one_line(words, message):
    with pytest.raises(ValueError, match=message):
        sweep.combinations(words.split())


def test_bad_settings_are_one_line_before_any_run(tmp_path):
    own = {"seeds": 0, "seed": 1, "jobs": 1, "out_dir": str(tmp_path / "out"), "against": "", "alpha": ALPHA}
    for words, changes, message in (
        (["--n_layer=2", "n_layer=2,4"], {}, "n_layer is in the grid and given as --n_layer"),
        (["config/tinny.py"], {}, "did you mean config/tiny.py"),
        (["--sees=3"], {}, "sees is not a setting"),
        ([], {"seeds": -1}, "seeds=-1 makes no sense"),
        ([], {"jobs": 0}, "jobs=0 makes no sense"),
        (["n_layer=2,4"], {"against": "out-x"}, "a race has one candidate, not 2"),
        (["n_layer=2"], {"against": str(tmp_path / "none")}, "holds no run; train the base first"),
        (["n_layer=2"], {"against": "out-x", "seeds": 4}, "seeds=4 can decide nothing; expected more: 5"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep.main({**own, **changes}, words)
    assert list(tmp_path.iterdir()) == []


def test_the_table_by_hand():
    """Two seeds each: mean and spread as on paper; t for one degree of freedom at 97.5 % is 25.452."""
    grid = [{"beta2": 0.9}, {"beta2": 0.95}, {"beta2": 0.99}]
    losses = {0.9: (2.0, 2.2), 0.95: (1.0, 1.2), 0.99: (1.1, 1.2001)}
    rows = [
        {"settings": {"beta2": beta2}, "seed": seed, "final_val_loss": loss, "training_time": 3.0}
        for beta2, both in losses.items()
        for seed, loss in enumerate(both)
    ]
    rows.append({"settings": {"beta2": 0.9}, "seed": 2, "error": "error: NaN"})
    found = sweep.summary(rows, grid)
    assert [one["settings"]["beta2"] for one in found] == [0.95, 0.99, 0.9]
    assert [one["mean"] for one in found] == pytest.approx([1.1, 1.15005, 2.1])
    assert found[0]["spread"] == pytest.approx(0.2 / math.sqrt(2))
    assert found[1]["behind"][1] == pytest.approx(0.05005 + 25.452 * 0.0999 / 2, abs=1e-3)  # 0.1 and 0.0001
    assert found[2]["behind"] == pytest.approx((1.0, 1.0))  # the same at both seeds
    assert [sweep.within_noise(one) for one in found] == [False, True, False]
    lines = sweep.table(found)
    assert lines[0].split()[:5] == ["beta2", "val", "loss", "spread", "seeds"]
    assert lines[1].split() == ["0.95", "1.1000", "0.1414", "2", "3.0"]
    assert lines[2].endswith("within noise") and not lines[3].endswith("within noise")


# ---- runs
@pytest.fixture
def fake_train(tmp_path, monkeypatch):
    """A train.py in 50 ms, so that what runs it can be tried: its loss is a function of its settings."""
    source = """
import json, pathlib, sys, time
given = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--"))
folder = pathlib.Path(given["out_dir"])
with open(folder / "calls.txt", "a", encoding="utf-8") as file:
    file.write(given.get("init_from", "scratch") + " ")
if given.get("n_layer") == "9":
    (folder / "ckpt.pt").touch()
    print("error: NaN in update 3")
    sys.exit(2)
if given.get("n_layer") == "8":
    (folder / "ckpt.pt").touch()
    time.sleep(60)
loss = 2 - float(given.get("beta2", 0.95)) + 0.001 * int(given["seed"]) ** 2
result = dict(final_val_loss=loss, best_val_loss=loss, best_step=1, training_time=0.1)
(folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
"""
    (tmp_path / "train.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    return tmp_path / "out"


def calls_in(folder) -> dict:
    return {path.parent.name: path.read_text(encoding="utf-8").split() for path in folder.glob("*/calls.txt")}


def test_a_failed_run_is_reported_and_the_others_go_on(fake_train, capsys):
    own = {"seeds": 1, "seed": 1, "jobs": 3, "out_dir": str(fake_train), "against": "", "alpha": ALPHA}
    assert not sweep.main(own, ["n_layer=9,2,3"])
    out = capsys.readouterr().out
    assert "n_layer=9,seed=1: FAILED: error: NaN in update 3\n" in out
    assert out.splitlines()[-2].split() == ["9", "failed", "0"]
    kept = json.loads((fake_train / "sweep.json").read_text(encoding="utf-8"))["runs"]
    assert [row.get("final_val_loss", row.get("error")) for row in kept] == [
        "error: NaN in update 3", pytest.approx(1.051), pytest.approx(1.051)
    ]  # fmt: skip
    assert (fake_train / "sweep.png").read_bytes().startswith(b"\x89PNG")
    sweep.main(own, ["n_layer=9,2,3"])
    again = {
        "n_layer=9,seed=1": ["scratch", "auto"],
        "n_layer=2,seed=1": ["scratch"],
        "n_layer=3,seed=1": ["scratch"],
    }
    assert calls_in(fake_train) == again  # finished ones are not made again, the other goes on
    with pytest.raises(
        ValueError, match="was made with beta1=its default, not 0.5; choose another --out_dir"
    ):
        sweep.main(own, ["n_layer=2,3", "--beta1=0.5"])
    assert calls_in(fake_train) == again


@pytest.mark.slow
def test_a_race_ends_when_it_is_decided(fake_train, tmp_path, capsys):
    """The candidate is better by 0.04 at every seed: decided at the fifth, the first that can."""
    (tmp_path / "base").mkdir()
    saved = {"beta2": 0.95, "n_layer": 3, "init_from": "scratch", "out_dir": "x", "seed": 5, "expected": {}}
    (tmp_path / "base/config.json").write_text(json.dumps(saved), encoding="utf-8")
    own = {"seeds": 0, "seed": 1, "jobs": 4, "out_dir": str(fake_train), "alpha": ALPHA}
    own["against"] = str(tmp_path / "base")
    with pytest.raises(ValueError, match="the candidate's settings are those of"):
        sweep.main(own, ["n_layer=3"])
    assert sweep.main(own, ["beta2=0.99"])
    out = capsys.readouterr().out
    assert "the candidate is better, by 0.0400 nats, after 6 seeds (99.5% interval" in out  # two at a time
    found = json.loads((fake_train / "race.json").read_text(encoding="utf-8"))
    assert [row["seed"] for row in found["seeds"]] == [1, 2, 3, 4, 5, 6]
    assert found["seeds"][2]["base"] == pytest.approx(1.059)
    assert (fake_train / "base.config").read_text(encoding="utf-8").endswith("n_layer = 3\n")


def test_torchrun_is_refused_before_any_run(fake_train, monkeypatch):
    """Each of its processes would start every run."""
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match="start it without torchrun"):
        runs.run_all([[f"--out_dir={fake_train}"]])
    assert not fake_train.exists()


@pytest.mark.parametrize("name", ["asked.json", "result.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_a_damaged_file_of_a_run_is_one_line(fake_train, name, content):
    fake_train.mkdir()
    (fake_train / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{name} is damaged; delete the folder, and make that run again"):
        runs.run_all([[f"--out_dir={fake_train}"]])


def test_threads_are_shared_by_as_many_runs_as_there_are(fake_train, monkeypatch):
    """Two runs with --jobs=4 have half of the threads each, not a quarter."""
    shares = []
    start = runs.start
    monkeypatch.setattr(runs, "start", lambda *given: shares.append(given[-1]) or start(*given))
    monkeypatch.setattr(runs.torch, "get_num_threads", lambda: 8)
    runs.run_all([[f"--seed={seed}", f"--out_dir={fake_train}/{seed}"] for seed in (1, 2)], jobs=4)
    assert shares == [{"OMP_NUM_THREADS": "4"}] * 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_runs_too(fake_train, tmp_path, number):
    """SIGHUP: the terminal was closed. The runs would go on, and the next command start them once more."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("this signal is ignored here, as under nohup")
    code = (
        "import pathlib, sys\nfrom techniques import runs\nruns.ROOT = pathlib.Path(sys.argv[1])\n"
        "runs.run_all([['--n_layer=8', f'--out_dir={sys.argv[1]}/out/a']])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    while not (fake_train / "a/ckpt.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    out = process.communicate(timeout=300)[0].decode()
    assert out == "stopping; the same command goes on from here\n"
    assert process.returncode != 0
    found = subprocess.run(["pgrep", "-f", f"{tmp_path}/train.py"], capture_output=True)
    assert found.stdout == b""


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on_bit_for_bit(train, shell, datasets, tmp_path):
    """Real runs, two at a time: stopped by SIGTERM and started again, they end as whole ones do."""
    flags = ["--max_iters=300", "--eval_interval=100", "--max_new_tokens=0"]
    command = ["-m", "techniques.sweep", f"--dataset={datasets / 'small'}", "--seeds=1", "--jobs=2"]
    command += [flag for flag in TINY if flag.split("=")[0] not in " ".join(flags)] + flags
    command += ["learning_rate=1e-3,1e-2", f"--out_dir={tmp_path / 'sweep'}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    while not list((tmp_path / "sweep").glob("*/ckpt.pt")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait(300)
    assert not (tmp_path / "sweep/sweep.json").exists()
    done = shell(*command, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "sweep/sweep.json").read_text(encoding="utf-8"))["runs"]
    logs = [(tmp_path / "sweep" / row["folder"] / "log.txt").read_text(encoding="utf-8") for row in rows]
    assert any("going on at step" in log for log in logs)
    for row in rows:
        whole = train(*flags, f"--learning_rate={row['settings']['learning_rate']}", "--seed=1337")
        assert row["final_val_loss"] == whole["progress"].val_loss
