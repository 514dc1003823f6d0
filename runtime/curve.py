"""Is my curve normal? The bands in which a config expects its val losses, and whether a run kept to them.

    expected = {"val": "d37d30cc0c83", 250: (1.9, 2.3)}     in a config file: the val loss after 250 updates
    python -m runtime.curve out-1 out-2 out-3 out-4 out-5    prints such a line, from runs with five seeds

A band reaches from the lowest to the highest val loss of the runs, widened on both sides by that distance,
but at least by 0.02. "val" is the beginning of the sha256 of the val tokens: with another val split nothing
is compared. Neither is a run with another --max_iters, whose learning rate falls at other steps.
"""

import json
import sys
from pathlib import Path

from config import ROOT, start_script

ABOVE = "it learns less than it should: look at learning_rate, dropout, and whether y is x one token later"
BELOW = "too good: is val text in the training text, can a position see what follows? If not, well done"
# Settings that do not change a curve, or by less than the bands are wide.
HARMLESS = set(
    "out_dir init_from dataset seed threads device compile dtype eval_interval log_interval save_interval "
    "sample_interval max_new_tokens".split()
)


def check_bands(expected: dict) -> None:
    """ValueError unless expected is {step: (lowest, highest)}, with or without "val": text."""
    for step, band in expected.items():
        if step == "val" and isinstance(band, str):
            continue
        pair = type(step) is int and isinstance(band, (tuple, list)) and len(band) == 2
        if not pair or not all(type(loss) in (int, float) for loss in band) or band[0] > band[1]:
            raise ValueError(
                f"expected has {step!r}: {band!r}; write the step and the lowest and highest val loss, "
                "for example 250: (1.9, 2.3)"
            )


def read_rows(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; [] if there is no such file. An unfinished last line is left out."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            raise ValueError(f"{path} line {number} is damaged; delete that line, or the file") from None
    return rows


def evaluations(rows: list[dict]) -> dict[int, float]:
    """{step: val loss} of the evaluations among the rows of a metrics.jsonl."""
    return {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}


def bands_for(meta: dict, expected: dict) -> tuple[dict[int, tuple[float, float]], str]:
    """(the bands by step, a line to print): no bands but a line if they are for another val split.

    meta: the dataset's meta.json.
    """
    split = expected.get("val", "")
    if not meta["splits"]["val"]["sha256"].startswith(split):
        return {}, f"the expected losses are for another val split (sha256 {split}...): not compared"
    return {step: band for step, band in expected.items() if step != "val"}, ""


def bands(runs: list[dict[int, float]]) -> dict[int, tuple[float, float]]:
    """The bands {step: (lowest, highest)} from the {step: val loss} of several runs with different seeds."""
    expected = {}
    for step in runs[0]:
        if not all(step in run for run in runs):
            continue
        losses = [run[step] for run in runs]
        margin = max(0.02, max(losses) - min(losses))
        expected[step] = (round(min(losses) - margin, 3), round(max(losses) + margin, 3))
    return expected


def outside(found: dict[int, float], expected: dict) -> dict[int, float]:
    """The evaluations {step: val loss} that are outside their band. Steps without a band do not count."""
    judged = {step: loss for step, loss in found.items() if step in expected}
    return {step: loss for step, loss in judged.items() if not expected[step][0] <= loss <= expected[step][1]}


def judge(found: dict[int, float], expected: dict, changed: list[str]) -> str:
    """One or two lines: did a run stay within its bands, and if not, where did it leave them?

    found: {step: val loss}. changed: settings that differ from the config's, as "name=value". Returns "" if
    no step but 0 has a band.
    """
    known = [step for step in found if step in expected]
    if not any(known):  # at step 0 nothing is trained yet
        return ""
    left = outside(found, expected)
    if not left:
        return f"is the curve normal? yes: val loss was as expected at steps {', '.join(map(str, known))}"
    step, loss = min(left.items())
    low, high = expected[step]
    cause = ABOVE if loss > high else BELOW
    line = f"is the curve normal? NO: val loss {loss:.4f} at step {step}, expected {low} to {high}"
    if len(left) > 1:
        line += f"; outside at {len(left)} of {len(known)} steps: {', '.join(map(str, left))}"
    but = f" (not as in the config: {' '.join(changed)})" if changed else ""
    return f"{line}\n  {cause}{but}"


def main() -> None:
    """Print the line `expected = ...` for a config file, from the folders of its runs."""
    start_script(__doc__)
    if len(sys.argv) < 3:
        raise ValueError("expected the folders of two runs or more: python -m runtime.curve out-1 out-2")
    runs = [evaluations(read_rows(ROOT / folder / "metrics.jsonl")) for folder in sys.argv[1:]]
    for folder, run in zip(sys.argv[1:], runs, strict=True):
        if not run:
            raise ValueError(f"{folder} holds no run that was evaluated; train it first")
    name = json.loads((ROOT / sys.argv[1] / "config.json").read_text(encoding="utf-8"))["dataset"]
    path = ROOT / "datasets" / name / "meta.json"
    if not path.is_file():
        raise ValueError(f"{sys.argv[1]} was trained on {name}, which is no folder in datasets/: no bands")
    meta = json.loads(path.read_text(encoding="utf-8"))
    print("expected =", {"val": meta["splits"]["val"]["sha256"][:12], **bands(runs)})


if __name__ == "__main__":
    main()
