"""Every command and snippet of the README runs, in a fresh copy of the project, offline; its tree is true."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import test_errors
from conftest import ROOT
from text import corpora

README = (ROOT / "README.md").read_text(encoding="utf-8")
# appended to every training and measuring command: the same work in seconds
SMALL = (
    "--device=cpu --max_iters=3 --n_layer=1 --n_head=2 --n_embd=32 --block_size=32 --batch_size=4 "
    "--eval_iters=1 --gradient_accumulation_steps=1 --global_batch_size=0 --max_new_tokens=10 --threads=1 "
    "--dropout=0 --compile=False"
).split()

SMALL_BENCH = "--quick --rounds=1 --blocks=1 --seeds=1 --ablation_seconds=0.1".split()


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    return [part.strip() for line in lines for part in line.split("&&")]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A fresh copy of what git tracks, with the files that the commands name; run(command) runs one there."""
    folder = tmp_path_factory.mktemp("fresh") / "tinylm"
    left_out = shutil.ignore_patterns("datasets", "out*", ".git", "__pycache__", ".*_cache", "venv", ".venv")
    shutil.copytree(ROOT, folder, ignore=left_out)
    text = "".join(text for text, _ in corpora.open_corpus("verse", size=30_000).chunks())
    rows = [{"prompt": f"How much is {i} and {i}? ", "response": f"{2 * i}"} for i in range(99)]
    (folder / "tinyshakespeare.txt").write_text(text, encoding="utf-8")
    (folder / "mine.txt").write_text(text[:10_000] + "0123456789?", encoding="utf-8")
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "https_proxy": "http://127.0.0.1:9"}

    def run(command: str, small=SMALL) -> subprocess.CompletedProcess:
        words = shlex.split(command, comments=True)
        if words[0] == "torchrun":  # two processes here, whatever the README says
            words = [re.sub(r"(--nproc_per_node)=\d+", r"\1=2", word) for word in words[1:]]
            words = [re.sub(r"(--nnodes)=\d+", r"\1=1", word) for word in words]
            words = [re.sub(r"(--rdzv_endpoint)=.*", r"\1=127.0.0.1:0", word) for word in words]
            words = ["-m", "torch.distributed.run", *words]
        else:
            assert words.pop(0) == "python", command
        if "--init_from=resume" in words:
            small = [*small, "--max_iters=6"]  # there are 3 already
        small = small if "train.py" in words else SMALL_BENCH if "bench.py" in words else []
        return subprocess.run(
            [sys.executable, *words, *small],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )

    run.folder = folder
    return run


@pytest.mark.slow
def test_every_command_runs_in_the_order_of_the_page(copy):
    ran = 0
    for command in commands():
        if command.startswith("pip install") or command == "python -m pytest":
            continue  # .ci/run does these
        done = copy(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 12
    tree = re.search(r"```\n(datasets/.*?)```", README, re.DOTALL).group(1)
    for line in re.sub(r"\n +", " ", tree).splitlines():
        folder, *names = re.sub(r"\(.*?\)", "", line).split()
        found = {path.name for path in (copy.folder / folder).iterdir()}
        assert found >= set(names), line
        assert found - set(names) <= {"loss_by_position.png"}, line


LANGUAGES = {
    "chinese": "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少？白日依山尽，黄河入海流。\n",
    "bengali": "আমার সোনার বাংলা, আমি তোমায় ভালোবাসি। চিরদিন তোমার আকাশ, তোমার বাতাস\n",
    "emoji": "🌧️☂️🙂 👩‍🚀🚀🌕 🐝🌻🍯 🎻🎶💃🏽 🏔️⛷️❄️\n",
    "python": "def area(width: float, height: float) -> float:\n    return width * height  # in m²\n\n\n",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_three_kilobytes_in_any_language_become_a_sample_in_two_commands(copy, language):
    line = LANGUAGES[language]
    text = line * (3000 // len(line.encode("utf-8")) + 1)
    (copy.folder / "mine.txt").write_text(text, encoding="utf-8")
    section = README[README.index("## Your own text") :]
    prepare, train = re.search(r"```sh\n(.*?)```", section, re.DOTALL).group(1).splitlines()
    assert copy(prepare).returncode == 0
    done = copy(train, ["--device=cpu", "--max_iters=20", "--threads=1"])
    assert done.returncode == 0, done.stderr
    sample = done.stdout.split("--- a sample")[1].split("\n", 1)[1].split("---")[0]
    assert len(sample) >= 10
    assert set(sample) <= set(text) | {"\n"}


def test_the_first_two_commands_are_the_promised_ones():
    first = re.search(r"```sh\n(.*?)```", README, re.DOTALL).group(1).splitlines()
    assert first[0] == "pip install -r requirements.txt && python train.py config/shakespeare_char.py"
    assert first[1] == "pip install -r requirements.txt && python -m pytest"


def test_the_python_snippet_runs():
    for snippet in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(snippet, "README.md", "exec"), {})


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_every_config_is_in_the_table_or_on_the_page():
    for path in (ROOT / "config").glob("[a-z]*.py"):
        assert f"config/{path.name}" in README, path.name


def test_the_number_of_bad_inputs_is_that_of_the_table():
    assert f"| {len(test_errors.CASES)} cases, exit code 2" in README


def test_nothing_is_left_to_fill_in():
    texts = [README, *(path.read_text(encoding="utf-8") for path in (ROOT / "config").glob("*.py"))]
    for text in texts:
        assert not re.search(r"@[A-Z]+@|\b(MINUTES|SECONDS|HOURS|PARAMS|VALLOSS|BPB|FLOOR)\b", text)
