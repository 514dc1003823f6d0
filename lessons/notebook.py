"""Makes a Jupyter notebook of a lesson. Nothing is copied back: the percent file remains the source."""

import json
import re

from lessons.course import ROOT

HOSTED = """\
# %% [markdown]
# # tinylm on a hosted machine
#
# Choose a machine with a GPU (a T4 is enough), write the address of your copy of the project into the first
# cell, and run the cells from top to bottom: the project is fetched and installed, the first command of its
# README trains a model in two minutes, in float16, and then lesson 1 begins.
# %%
import os
import subprocess
import sys

ADDRESS = ""  # as `git clone` takes it; "" if the folder tinylm is here already


def run(*words):
    print("$", *words, flush=True)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    for line in process.stdout:
        print(line, end="")
    assert process.wait() == 0, "this command failed"


if not os.path.isdir("tinylm"):
    run("git", "clone", "--depth=1", ADDRESS, "tinylm")
os.chdir("tinylm")
run(sys.executable, "-m", "pip", "install", "-r", "requirements.txt")
# %%
import torch

gpu = ["--device=cuda", "--dtype=float16"] if torch.cuda.is_available() else []
run(sys.executable, "train.py", "config/shakespeare_char.py", *gpu)
"""


def hosted(source: str) -> str:
    """Make the notebook for a machine that has nothing yet: install, train, and then a lesson."""
    return of(HOSTED + source, begin="")


def cells(source: str) -> list[tuple[str, str]]:
    """("code" or "markdown", text) of each cell of a percent file, and of what stands before them."""
    parts = re.split(r"^# %%(.*)\n", source, flags=re.MULTILINE)
    found = [("markdown", uncomment(parts[0]))] if parts[0].strip() else []
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        kind = "markdown" if "[markdown]" in title else "code"
        found.append((kind, uncomment(body) if kind == "markdown" else body.strip("\n")))
    return found


def uncomment(text: str) -> str:
    return "\n".join(re.sub(r"^# ?", "", line) for line in text.strip("\n").splitlines())


def of(source: str, begin: str = f"import os\nos.chdir({str(ROOT)!r})\n") -> str:
    """Make a notebook (nbformat 4, no outputs) of a percent file. begin: what goes to the project's folder,
    where the lesson's imports are found; it stands in the first code cell."""
    found = []
    for number, (kind, text) in enumerate(cells(source)):
        if kind == "code":
            text, begin = begin + text, ""
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(True)}
        found.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return (
        json.dumps({"cells": found, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"
    )
