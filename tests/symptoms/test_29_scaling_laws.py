"""Lesson 29: what its wrong answers look like, in numbers."""

import csv
import io
import types

import pytest
import torch

from conftest import ROOT
from lessons import course, scaling_runs
from techniques.significance import t_quantile
from text.verse import verse_entropy

checks = course.checks(29)
FLOORS = torch.linspace(0, 0.75, 151, dtype=torch.float64)


def wrong(exercise: str, mistake: str):
    return checks.exercises[exercise]["wrong"][mistake][0]


def runs(letters: int, widest: bool = False):
    """N, D, L of the shipped runs."""
    lines = course.read(ROOT / "lessons/scaling_runs.csv").splitlines()[1:]
    rows = [
        r for r in csv.DictReader(lines) if int(r["letters"]) == letters and (r["width"] == "128") == widest
    ]
    return torch.tensor(
        [[float(r[k]) for r in rows] for k in ("weights", "letters", "loss")], dtype=torch.float64
    )


def test_the_price_of_a_million_weights():
    model = torch.nn.Module()
    model.wte = torch.nn.Embedding(7, 3)
    model.layer = torch.nn.Linear(1000, 1000, bias=False)
    args = types.SimpleNamespace(updates=1000, rows=200, T=100)  # 2e7 letters
    price = {name: f(model, *vars(args).values())[1] for name, f in [("", checks.twin_count)]}
    assert price[""] == 1e12 * checks.predictions["29.1"]["answer"] == 1.2e14
    for name, found in (("forward alone", 4e13), ("backward alone", 8e13), ("weights times letters", 2e13)):
        assert wrong("29a", name)(model, *vars(args).values())[1] == found
        assert found / 1e12 in checks.predictions["29.1"]["wrong"]


def test_a_tied_head_counted_twice_is_the_table():
    model = checks.Small(31, 7, tied=True)
    right, tied, embedded = (
        f(model, 2, 3, 4)[0]
        for f in (checks.twin_count, wrong("29a", "tied head twice"), wrong("29a", "embedding counted"))
    )
    assert tied - right == embedded - right == 31 * 7


def test_with_embeddings_the_exponent_is_another():
    N, D, L = runs(scaling_runs.B * scaling_runs.T * 800)
    widths = torch.tensor([16.0, 24, 32, 48, 64, 96] * 2, dtype=torch.float64)
    plain, embedded = (checks.twin_fit(n, D, L, torch.zeros(1))[2] for n in (N, N + 56 * widths))
    assert embedded > 1.02 * plain  # the vocabulary is small: 56 letters


def test_without_a_floor_the_forecast_is_below_the_entropy():
    for letters in (204_800, 819_200):
        N, D, L = runs(letters)
        E, A, a, _ = wrong("29b", "no floor")(N, D, L, FLOORS)
        assert E == 0
        assert A * 2e7**-a < verse_entropy() < checks.twin_fit(N, D, L, FLOORS)[0]


def test_the_worst_point_rules_a_fit_in_nats():
    N = torch.tensor([1e2, 1e3, 1e4, 1e5, 1e6], dtype=torch.float64)
    L = 1.0 + 900 * N**-0.9
    L[0] *= 1.3
    floors = torch.linspace(0, 1.01, 102, dtype=torch.float64)
    E, A, a, _ = checks.twin_fit(N, N * 0, L, floors)
    nats = wrong("29b", "errors in nats")(N, N * 0, L, floors)
    apart = [abs(L[0] - (fit[0] + fit[1] * N[0] ** -fit[2])).item() for fit in ((E, A, a), nats)]
    assert apart[1] <= apart[0]


def test_unequal_training_mixed_in_moves_the_floor():
    joined = torch.cat((runs(204_800), runs(819_200)), 1)
    right, mixed = (f(*joined, FLOORS) for f in (checks.twin_fit, wrong("29b", "unequal training mixed in")))
    assert right[0] == pytest.approx(0.546, abs=0.004)
    assert mixed[3] > 10 * right[3]


def test_each_short_cut_makes_the_interval_narrower():
    N, _, L = runs(819_200)
    widths = {}
    for mistake in ("", "residuals alone", "the curve, no run", "as if in the middle", "divided by n"):
        forecast = wrong("29c", mistake) if mistake else checks.reference_forecast
        low, middle, high = forecast(N, L, 0.546, 401_024, 2.228)
        assert low < middle < high
        widths[mistake] = high - low
    assert all(width < 0.97 * widths[""] for mistake, width in widths.items() if mistake)


def test_which_runs_are_fitted_decides_whether_a_forecast_holds():
    floors, held = torch.linspace(0, 0.75, 751, dtype=torch.float64), {}
    for letters in (204_800, 819_200):
        (N, D, L), (size, _, loss) = runs(letters), runs(letters, widest=True)
        for least in (0, 10_000):  # all, or without width 16
            n, d, losses = N[N > least], D[N > least], L[N > least]
            t = t_quantile(0.95, len(n) - 2)
            low, _, high = checks.reference_forecast(
                n, losses, checks.twin_fit(n, d, losses, floors)[0], size.item(), t
            )
            held[letters, least] = low < loss.item() < high
    assert not held[204_800, 0] and not held[819_200, 0] and held[819_200, 10_000]


def test_unigram_entropy_is_no_floor_and_a_floor_is_below_the_losses():
    play = "".join(part for part, _ in checks_corpus().chunks())
    counts = torch.bincount(torch.tensor([ord(c) for c in play]))
    assert (
        checks.unigram(dict(counts=counts, tokens=len(play))) > 2.5
    )  # all but untrained models are below it
    N, D, L = runs(819_200)
    found = wrong("29d", "above the lowest loss")(
        dict(N=N, D=D, val=L), torch.linspace(0, 0.75, 76).double(), 2.26, dict(nats=1.0, tokens=1)
    )
    assert found[2] > L.min()


def checks_corpus():
    from text.corpora import open_corpus

    return open_corpus("builtin:verse", 3, 65_536)


def test_a_training_loss_gives_too_low_a_floor():
    for runs_, *rest in checks.inputs_floor(1):
        right, train = (
            f(runs_, *rest)[1] for f in (checks.reference_floor, wrong("29d", "training loss fitted"))
        )
        assert train < right


def test_the_shipped_runs_are_those_of_the_script():
    text = course.read(scaling_runs.FILE)
    first, rows = text.split("\n", 1)
    assert first == f"# {scaling_runs.COMMAND}"
    assert len(text) <= 3000
    rows = list(csv.DictReader(io.StringIO(rows)))
    per_update = scaling_runs.B * scaling_runs.T
    found = [(int(r["width"]), int(r["letters"]) // per_update, int(r["seed"])) for r in rows]
    assert found == scaling_runs.RUNS
    assert all(float(r["loss"]) > verse_entropy() for r in rows)


@pytest.mark.slow
def test_a_run_is_repeated():
    """The smallest run, from the first letter to the loss."""
    text, val, V = scaling_runs.texts(1)
    row = scaling_runs.one_run(16, 200, 1, text, val, V)
    assert row[:4] == (16, 1, 7120, 204_800)
    assert row[4] == pytest.approx(1.70674, abs=0.02)
