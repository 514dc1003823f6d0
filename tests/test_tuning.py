"""lab/tuning.py: its rows, and its table from a base that knows nothing."""

import json

import pytest

from conftest import ROOT
from lab import tuning


def test_rows_are_about_different_people():
    rows = tuning.questions(200, 1)
    answers = [json.loads(row["response"]) for row in rows]
    assert len({answer["name"] for answer in answers}) == 200
    assert all(answer["name"] in row["prompt"] for row, answer in zip(rows, answers, strict=True))
    assert all(answer["city"] in row["prompt"] for row, answer in zip(rows, answers, strict=True))
    assert rows == tuning.questions(200, 1) != tuning.questions(200, 2)
    with pytest.raises(ValueError, match="rows=9999 makes no sense; expected 1 to"):
        tuning.questions(9999, 1)


@pytest.mark.slow
def test_a_table_of_three_methods(shell, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Answer in JSON with name and city. {} lives in Oslo. " * 400, encoding="utf-8")
    name = f"tuning-{tmp_path.name}"
    tiny = "--arch=llama --n_layer=1 --n_head=2 --n_embd=32 --block_size=192 --max_iters=2".split()
    try:
        done = shell("data.py", f"--input={text}", f"--name={name}", "--tokenizer=bpe", "--vocab_size=300")
        assert done.returncode == 0, done.stderr
        done = shell("train.py", f"--dataset={name}", f"--out_dir={tmp_path / 'base'}", *tiny)
        assert done.returncode == 0, done.stderr
        flags = f"--base={tmp_path / 'base'} --out_dir={tmp_path / 'out'} --rows=24 --held_out=4 --epochs=0.1"
        flags += f" --block_size=192 --name={name}-people"
        done = shell("-m", "lab.tuning", *flags.split())
    finally:
        for path in (ROOT / "datasets").glob(f"{name}*"):
            for file in [*path.iterdir()] if path.is_dir() else []:
                file.unlink()
            path.rmdir() if path.is_dir() else path.unlink()
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    methods = {row[0]: row for row in rows if row and row[0] in tuning.RECIPES}
    assert methods.keys() == tuning.RECIPES.keys()
    assert methods["lora"][1] == "0%" and methods["lora"][-1] != "all" == methods["full"][-1]
