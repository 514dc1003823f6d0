"""loss.png: what the axis shows, that each line is named, odd runs, and that it is drawn quickly."""

import math
import statistics
import time

import matplotlib.axes
import numpy as np
import pytest

from runtime import plot

V = 65
UNIFORM = math.log(V)


def run(n: int, log_interval: int = 10, eval_interval: int = 50, end: float = 1.5) -> list[dict]:
    """The rows of a run of n updates that falls from ln V, at first fast, towards `end`."""
    rows, noise = [], np.random.default_rng(0).standard_normal(n + 1)
    for step in range(n + 1):
        loss = end + (math.log(V) - end) * (0.15 * (1 - step / n) + 0.85 * math.exp(-20 * step / n))
        if step and step % log_interval == 0:
            rates = dict(lr=3e-3 * (1 - step / n), muon_lr=0.02 * (1 - step / n))
            rows.append(dict(step=step, loss=loss + 0.05 * noise[step], grad_norm=0.5, **rates))
        if step % eval_interval == 0 or step == n:
            rows.append(dict(step=step, train_loss=loss, val_loss=loss + 0.1))
    return rows


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """drawn(rows, floor, expected, ...) draws; returns (axes of the loss, all texts, labels with x and y)."""

    def draw(rows, floor=0.0, expected=None, guessing=UNIFORM, grad_clip=1.0):
        seen, close = [], plot.open_pyplot().close
        labels = {}
        with monkeypatch.context() as patch:
            patch.setattr(plot.open_pyplot(), "close", seen.append)
            for name in ("plot", "vlines"):
                original = getattr(matplotlib.axes.Axes, name)

                def spy(self, x, y, *look, original=original, **options):
                    labels[options.get("label")] = list(x), list(y)
                    return original(self, x, y, *look, **options)

                patch.setattr(matplotlib.axes.Axes, name, spy)
            plot.plot_loss(rows, floor, expected or {}, tmp_path / "loss.png", guessing, grad_clip)
        (figure,) = seen
        axes = figure.axes
        texts = [text.get_text() for each in axes for text in (*each.texts, each._left_title)]
        close(figure)
        assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        return axes[0], texts, labels

    return draw


def test_the_first_evaluation_squeezed_the_rest_into_a_tenth(drawn):
    """Of the axis, the second half of a run had 9 %. It has most of it now, and the start is noted."""
    rows = run(850)
    axes, texts, _ = drawn(rows)
    low, high = axes.get_ylim()
    late = [row[key] for row in rows if row["step"] >= 425 for key in ("loss", "val_loss") if key in row]
    assert (max(late) - min(late)) / (high - low) > 0.75
    assert high < math.log(V) / 2
    assert f"\u2191 starts at {rows[0]['val_loss']:.3f}    \u2191 guessing: ln V = 4.174" in texts


def test_lines_carry_their_names_and_differ_in_more_than_colour(drawn):
    axes, texts, _ = drawn(run(850), floor=1.4, expected={800: (1.55, 1.7), 850: (1.5, 1.6)})
    named = "train val single expected source lr, muon clipped".split()
    assert {word for word in named if any(text.startswith(word) for text in texts)} == set(named)
    looks = {(line.get_linestyle(), line.get_marker(), line.get_linewidth()) for line in axes.lines}
    assert len(looks) == len(axes.lines)
    heights = sorted(text.xy[1] for text in axes.texts)
    apart = [(after - before) * axes.bbox.height for before, after in zip(heights, heights[1:], strict=False)]
    assert min(apart) > 0.99 * plot.LINE and 0 <= heights[0] and heights[-1] <= 1


def test_loss_png_shows_the_bands_and_what_left_them(drawn):
    rows = [{"step": step, "train_loss": 3.0, "val_loss": 3.0 - step / 10} for step in (0, 10, 20)]
    _, _, labels = drawn(rows, expected={0: (2.9, 3.1), 20: (1.5, 1.8)})
    assert labels["expected val"] == ([0, 20], [2.9, 1.5])
    assert labels["not as expected"] == ([20], [1.0])


def test_an_overfitted_run_shows_its_lowest_val_loss(drawn):
    rows = [dict(step=i, train_loss=2 - i / 10, val_loss=2 + (i - 2) ** 2 / 10) for i in range(11)]
    axes, _, _ = drawn(rows)
    assert axes.get_ylim()[0] < 1 and axes.get_ylim()[1] > 8.4


ODD = {
    "one evaluation": [dict(step=0, train_loss=4.17, val_loss=4.18)],
    "two updates": [dict(step=i, train_loss=4.0, val_loss=4.0) for i in (0, 2)],
    "no evaluation": [dict(step=5, loss=2.0, lr=1e-3, grad_norm=1.0)],
    "rising": [dict(step=i, train_loss=4.0 + i, val_loss=5.0 + i) for i in range(9)],
    "overflowed": [dict(step=i, loss=3.0, lr=1e-3, grad_norm=math.inf) for i in range(9)],
    "huge": [dict(step=i, train_loss=1e30, val_loss=1e30 * (9 - i)) for i in range(9)],
    "below zero": [dict(step=i, loss=-1.0, lr=0.0, grad_norm=0.0) for i in range(9)],
    "infinite": [dict(step=i, train_loss=math.inf, val_loss=math.inf) for i in range(3)],
    "an older version's": [dict(step=i, loss=3.0 - i, lr=1e-3) for i in range(3)],
}


@pytest.mark.slow
@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("known", [True, False])
def test_an_odd_run_is_drawn(drawn, what, known):
    axes, _, _ = drawn(ODD[what], *((0.5, {0: (3.0, 4.0)}, 4.2, 1.0) if known else (0.0, {}, 0.0, 0.0)))
    assert all(map(math.isfinite, axes.get_ylim()))


@pytest.mark.slow
@pytest.mark.alone
def test_a_picture_of_100_000_rows_is_drawn_in_a_second(tmp_path, figure):
    rows = run(100_000, log_interval=1, eval_interval=250)
    seconds = {}
    for name, part in (("850 updates", run(850)), ("100,000 updates", rows)):
        plot.plot_loss(part, 0.0, {}, tmp_path / "loss.png", 4.0, 1.0)  # the first one reads fonts
        times = []
        for _ in range(3):
            began = time.process_time()
            plot.plot_loss(part, 0.0, {}, tmp_path / "loss.png", 4.0, 1.0)
            times.append(time.process_time() - began)
        seconds[name] = statistics.median(times)
    figure("loss.png: " + ", ".join(f"{1000 * each:.0f} ms for {name}" for name, each in seconds.items()))
    assert max(seconds.values()) < 1.5
    _, means, n = plot.thinned(*plot.column(rows, "loss"))
    assert n == math.ceil(100_000 / plot.POINTS)
    assert means[0] == pytest.approx(statistics.fmean([r["loss"] for r in rows if "loss" in r][:n]))
