"""Paths that people type: in settings, and of config files."""

import difflib
import os
from pathlib import Path

from config import _nanogpt
from config._errors import ROOT

PATHS = ("out_dir", "init_from", "dataset", "file", "input", "val_input", "tokenizer", "adapter", "merge_to")
PATHS += ("to", "source", "vocab", "base", "distill_teacher", "distill_cache", "dpo_pairs")


def find_config_file(file: str) -> Path:
    """The path of a config file. ValueError suggests the file that was meant, or lists them all."""
    expanded = without_tilde("the config file ", file)
    path = next((p for p in (Path(expanded), ROOT / expanded) if os.path.isfile(p)), None)
    if path is None:
        known = sorted(f"config/{p.name}" for p in (ROOT / "config").glob("[a-z]*.py"))
        near = difflib.get_close_matches(file, known, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are: {' '.join(known)}"
        advice = _nanogpt.CONFIGS.get(Path(file).name, advice)
        raise ValueError(f"config file {file} does not exist; {advice}")
    return path


def path_of(name: str, value: str, where: str) -> str:
    """A setting's text as it is; if it is a path, without ~ and / at its ends. where: printed before it."""
    prefix = "FILE:" if name == "start" and value.startswith("FILE:") else ""
    if name not in PATHS and not prefix:
        return value
    path = without_tilde(where, value.removeprefix(prefix))
    return prefix + (path.rstrip("/" + os.sep) or path)


def without_tilde(where: str, path: str) -> str:
    """A path with ~ and ~user replaced. A shell does that for whole words, but not in --out_dir=~/a."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") and not os.path.exists(path):
        raise ValueError(f"{where}{path}: there is no home folder {path.split('/')[0]}; write the whole path")
    return expanded
