"""Makes a Jupyter notebook of a lesson. Nothing is copied back: the percent file remains the source."""

import json
import re

from lessons.course import ROOT


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


def of(source: str) -> str:
    """Make a notebook (nbformat 4, no outputs) of a percent file. Its first code cell goes to the project's
    folder, where the lesson's imports are found."""
    found, begun = [], False
    for number, (kind, text) in enumerate(cells(source)):
        if kind == "code" and not begun:
            text, begun = f"import os\nos.chdir({str(ROOT)!r})\n{text}", True
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(True)}
        found.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return (
        json.dumps({"cells": found, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"
    )
