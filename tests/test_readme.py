"""README.md and docs/: commands and snippets run in a fresh copy of the project, offline; links are right.

PYTHONPATH=. python tests/test_readme.py      bring the line numbers of "A batch's way" up to date
"""

import ast
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess

import pytest

import test_errors
from config._nanogpt import CONFIGS
from conftest import ROOT
from text import corpora

# in the order in which a reader meets them: later commands use what earlier ones made
NAMES = ("README", "docs/your_text", "docs/configs", "docs/techniques", "docs/many_gpus", "docs/speed")
NAMES += (
    "docs/promises",
    "docs/compare",
    "docs/blocks",
    "docs/feeding",
    "docs/trouble",
    "docs/claims",
    "docs/features",
    "docs/play",
)
PAGES = {name: (ROOT / f"{name}.md").read_text(encoding="utf-8") for name in NAMES}
README = PAGES["README"]
# appended to every training and measuring command: the same work in seconds
SMALL = (
    "--device=cpu --max_iters=3 --n_layer=1 --n_head=2 --n_embd=32 --block_size=64 --batch_size=4 "
    "--eval_iters=1 --gradient_accumulation_steps=1 --global_batch_size=0 --max_new_tokens=10 --threads=1 "
    "--dropout=0 --compile=False"
).split()

# .ci/run does the first two; the page serves until it is ended (test_play_page.py); the others: test_plan.py
ELSEWHERE = "pip install|-m pytest|-m play|--only=sharding|-m techniques.allreduce".split("|")
OUTSIDE = ("tests", "work", "venv", "build", "datasets")  # of code, or a reader's, that are not packaged
SMALL_BENCH = "--quick --rounds=1 --blocks=1 --seeds=1 --ablation_seconds=0.1".split()


def commands() -> list[str]:
    """The commands of all pages in their order; a command that stands on several pages comes once."""
    blocks = [block for page in PAGES.values() for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)]
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    return list(dict.fromkeys(part.strip() for line in lines for part in line.split("&&")))


# a row of the table "A batch's way": | [train.py:12](train.py#L12) | `what stands in that line` | ...
STEP = re.compile(r"^\| \[(\w+\.py):(\d+)\]\(\1#L\2\) \| `([^`]+)` \|", re.MULTILINE)


def line_of(file: str, code: str) -> int:
    """The number of the one line of a file that contains this code."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = [number for number, line in enumerate(lines, 1) if code in line]
    assert len(found) == 1, f"{code!r} stands in lines {found} of {file}; README.md needs exactly one"
    return found[0]


def relinked(page: str) -> str:
    """The page with the line numbers of its table "A batch's way" as they are now."""

    def row(match: re.Match) -> str:
        file, _, code = match.groups()
        number = line_of(file, code)
        return f"| [{file}:{number}]({file}#L{number}) | `{code}` |"

    return STEP.sub(row, page)


@pytest.fixture(scope="module")
def copy(tmp_path_factory, forks):
    """A fresh copy of what git tracks, with the files that the commands name; run(command) runs one there."""
    folder = tmp_path_factory.mktemp("fresh") / "tinylm"
    left_out = shutil.ignore_patterns("datasets", "out*", ".git", "__pycache__", ".*_cache", "venv", ".venv")
    shutil.copytree(ROOT, folder, ignore=left_out)
    text = "".join(text for text, _ in corpora.open_corpus("verse", size=30_000).chunks())
    rows = [{"prompt": f"How much is {i} and {i}? ", "response": f"{2 * i}"} for i in range(99)]
    (folder / "tinyshakespeare.txt").write_text(text, encoding="utf-8")
    (folder / "mine.txt").write_text(text[:10_000] + "0123456789?", encoding="utf-8")
    said = [[("user", f"{i}+{i}?"), ("assistant", f"{2 * i}")] for i in range(99)]
    talks = [{"messages": [{"role": r, "content": text} for r, text in each]} for each in said]
    for name, kind in (("chat.jsonl", rows), ("talks.jsonl", talks)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in kind), encoding="utf-8")
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
        return forks.run([*words, *small], folder, environment)

    run.folder = folder
    return run


@pytest.mark.slow
def test_every_command_runs_in_the_order_of_the_page(copy):
    ran = 0
    for command in commands():
        if any(words in command for words in ELSEWHERE):
            continue
        done = copy(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 24
    tree = re.search(r"```\n(datasets/.*?)```", README, re.DOTALL).group(1)
    for line in re.sub(r"\n +", " ", tree).splitlines():
        folder, *names = re.sub(r"\(.*?\)", "", line).split()
        found = {path.name for path in (copy.folder / folder).iterdir()}
        assert found >= set(names), line
        assert found - set(names) <= {"loss_by_position.png", "model.html"}, line  # of commands further down


LANGUAGES = {
    "chinese": "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少？白日依山尽，黄河入海流。\n",
    "bengali": "আমার সোনার বাংলা, আমি তোমায় ভালোবাসি। চিরদিন তোমার আকাশ, তোমার বাতাস\n",
    "emoji": "🌧️☂️🙂 👩‍🚀🚀🌕 🐝🌻🍯 🎻🎶💃🏽 🏔️⛷️❄️\n",
    "python": "def area(width: float, height: float) -> float:\n    return width * height  # in m²\n\n\n",
}


@pytest.mark.slow
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


def test_the_readme_is_short():
    assert README.count("\n") <= 200


def test_every_page_is_tested():
    assert {f"docs/{path.stem}" for path in (ROOT / "docs").glob("*.md")} == {*NAMES} - {"README"}


def test_the_python_snippets_run():
    snippets = [
        (name, text)
        for name, page in PAGES.items()
        for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    ]
    assert snippets
    for name, snippet in snippets:
        exec(compile(snippet, f"{name}.md", "exec"), {})


def anchors(page: str) -> set[str]:
    """What links to the headings of a page end in, as GitHub makes it: "## Is it normal?" -> is-it-normal."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name):
    links = re.findall(r"\]\(([^)]+)\)", PAGES[name])
    assert links
    for link in links:
        if link.startswith("http"):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / f"{name}.md").parent / target
        assert path.exists(), link
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("name", NAMES)
def test_every_file_named_on_a_page_is_there(name):
    """Names in the prose, such as config/tiny.py or test_kill.py, and modules that are started with -m."""
    tracked = [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/**/*.py")]
    paths = {path.relative_to(ROOT).as_posix() for path in tracked}
    theirs = {
        *CONFIGS,
        *(f"config/{file}" for file in CONFIGS),
        "data/shakespeare_char/prepare.py",
    }  # nanoGPT's
    for file in {*re.findall(r"(?<![\w./])[\w/]+\.py\b", PAGES[name])} - theirs:
        assert any(path == file or path.endswith(f"/{file}") for path in paths), file
    for module in re.findall(r"-m (\w+\.\w+)", PAGES[name]):
        assert module.replace(".", "/") + ".py" in paths, module


def test_a_batchs_way_names_the_right_lines():
    assert relinked(README) == README, "run: PYTHONPATH=. python tests/test_readme.py"


def test_a_batchs_way_never_goes_back_up():
    steps = [(file, int(number)) for file, number, _ in STEP.findall(README)]
    rooms = [file for file, _ in itertools.groupby(steps, key=lambda step: step[0])]
    assert rooms == ["data.py", "train.py", "model.py", "train.py", "optim.py"]
    for file in rooms:
        lines = [number for each, number in steps if each == file]
        assert lines == sorted(set(lines)), file


def test_every_config_has_a_row_in_the_table_of_configs():
    rows = set(re.findall(r"^\| \[config/(\w+)\.py\]", PAGES["docs/configs"], re.MULTILINE))
    assert rows == {path.stem for path in (ROOT / "config").glob("[a-z]*.py")}


def test_the_number_of_bad_inputs_is_that_of_the_table():
    assert f"| {len(test_errors.CASES)} cases, exit code 2" in PAGES["docs/promises"]


def listed(name: str) -> list[str]:
    """A list of pyproject.toml (tomllib came with Python 3.11)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return ast.literal_eval(re.search(rf"^{name} = (\[.*?\])", text, re.MULTILINE | re.DOTALL).group(1))


def test_the_package_requires_what_requirements_txt_does():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert listed("dependencies") == [line for line in lines if line and not line.startswith("#")]


def test_the_package_holds_every_script_and_folder_of_code():
    assert listed("py-modules") == sorted(path.stem for path in ROOT.glob("*.py"))
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("[a-z]*/**/*.py")}
    code = [folder for folder in folders if folder.parts[0] not in OUTSIDE]
    assert listed("packages") == sorted(".".join(folder.parts) for folder in code)


def test_nothing_is_left_to_fill_in():
    texts = [*PAGES.values(), *(path.read_text(encoding="utf-8") for path in (ROOT / "config").glob("*.py"))]
    for text in texts:
        assert not re.search(r"@[A-Z]+@|\b(MINUTES|SECONDS|HOURS|PARAMS|VALLOSS|BPB|FLOOR)\b", text)


if __name__ == "__main__":
    (ROOT / "README.md").write_text(relinked(README), encoding="utf-8")
