"""Fine-tuning compared: what a base answers before and after LoRA, QLoRA and full fine-tuning, and the cost.

    python -m techniques.pretrained import --from=SmolLM2-135M-Instruct.gguf --out_dir=out-smollm2
    python -m lab.tuning --base=out-smollm2                     about 20 minutes on two CPU cores

The new task: a sentence about a person becomes JSON with two fields, {"name": ..., "city": ...}. Rows are
made up, seeded; those of the val split are held out. An answer counts if it is that JSON, character by
character, and ends by itself (evaluate.py --task=exact_match). Each command runs as a reader would type it,
in a process of its own; its time and its peak memory are measured.
"""

import json
import os
import random
import re
import subprocess
import sys
import time

from config import ROOT, end_script, override, require  # isort: skip

# -----------------------------------------------------------------------------
base = "out-smollm2"  # folder of the run to start from
out_dir = "out-tuning"  # its runs are out-tuning-lora, out-tuning-qlora, out-tuning-full
methods = "lora,qlora,full"  # which
name = "people"  # the dataset that is made, in datasets/
rows = 250  # how many, held out ones among them
held_out = 50  # how many of them
epochs = 3.0  # passes over the others
block_size = 256  # tokens per window
seed = 1337  # of rows and runs
# -----------------------------------------------------------------------------

FIRST = "Ada Boris Clara David Elena Felix Greta Hamid Iris Jonas Kaya Liam Mona Noor Oscar Petra Rosa Sven"
LAST = "Adler Brandt Costa Dahl Eriksen Fischer Garcia Haddad Ivanov Jensen Kowalski Lindholm Moreau Novak"
CITIES = "Oslo Lisbon Vienna Kyoto Nairobi Toronto Lima Dublin Athens Cairo Seoul Prague Quito Tunis Hanoi"
JOBS = "baker nurse pilot teacher lawyer welder painter farmer chemist driver tailor editor".split()
STORIES = (
    "{name} is {age} years old, lives in {city} and works as a {job}.",
    "In {city} there is a {job} named {name}, who is {age}.",
    "Our {job} is {name}, {age}, and has moved to {city}.",
)
RECIPES = {
    "lora": "config/finetune_lora.py --lora_rank=16 --learning_rate=2e-4",
    "qlora": "config/finetune_lora.py --lora_rank=16 --learning_rate=2e-4 --quantize=nf4",
    "full": "config/finetune_lora.py --technique= --learning_rate=2e-5",
}


def questions(count: int, seed: int) -> list[dict]:
    """Rows {"prompt", "response"} about different people; the same for the same seed."""
    rng, names = random.Random(seed), [f"{first} {last}" for first in FIRST.split() for last in LAST.split()]
    require(0 < count <= len(names), f"rows={count} makes no sense; expected 1 to {len(names)}")
    made = []
    for person in rng.sample(names, count):
        city, job, age = rng.choice(CITIES.split()), rng.choice(JOBS), rng.randint(19, 79)
        story = rng.choice(STORIES).format(name=person, age=age, city=city, job=job)
        answer = json.dumps({"name": person, "city": city})
        question = f"Answer in JSON with the fields name and city. {story}"
        made.append({"prompt": question, "response": answer})
    return made


def run(*command: str) -> tuple[str, float, float, float]:
    """Run a script of the project; returns (what it printed, seconds, seconds of the CPU, peak MB)."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    printed = process.stdout.read().decode("utf-8", "replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    require(status == 0, f"python {' '.join(command)} failed: {(printed.splitlines() or [''])[-1]}")
    seconds, cpu = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
    return printed, seconds, cpu, usage.ru_maxrss / 1024


def share_exact(folder: str, dataset: str) -> float:
    """The share of held-out prompts that a run answers exactly."""
    printed = run("evaluate.py", f"--out_dir={folder}", f"--dataset={dataset}", "--task=exact_match")[0]
    return float(re.search(r"exact match ([\d.]+)%", printed)[1]) / 100


def compare(settings: dict) -> list[str]:
    """Make the dataset, tune by each method; returns the lines of a table."""
    base, dataset = settings["base"], settings["name"]
    file = ROOT / "datasets" / f"{dataset}.jsonl"
    file.parent.mkdir(exist_ok=True)
    made = questions(settings["rows"], settings["seed"])
    lines = [json.dumps(row) + "\n" for row in made]
    held = settings["held_out"]
    require(0 < held < len(lines), f"held_out={held} makes no sense; expected 1 to {len(lines) - 1}")
    file.write_text("".join(lines[held:]), encoding="utf-8")
    file.with_suffix(".val.jsonl").write_text("".join(lines[:held]), encoding="utf-8")
    run("data.py", f"--input={file}", f"--val_input={file.with_suffix('.val.jsonl')}", "--format=jsonl",
        f"--name={dataset}", f"--tokenizer={base}")  # fmt: skip
    before = share_exact(base, dataset)
    table = [f"{'':8}{'before':>8}{'after':>8}{'minutes':>9}{'of CPU':>8}{'peak MB':>9}{'trained':>14}"]
    for method in filter(None, settings["methods"].split(",")):
        require(method in RECIPES, f"methods={method} is unknown; expected some of {', '.join(RECIPES)}")
        folder = f"{settings['out_dir']}-{method}"
        printed, seconds, cpu, peak = run(
            "train.py", *RECIPES[method].split(), f"--init_from={base}", f"--dataset={dataset}",
            f"--epochs={settings['epochs']}", f"--block_size={settings['block_size']}",
            f"--seed={settings['seed']}", f"--out_dir={folder}", "--max_new_tokens=0", "--eval_interval=1000",
        )  # fmt: skip
        trained = re.search(r"([\d,]+) of them trained", printed)
        after = share_exact(folder, dataset)
        table.append(
            f"{method:8}{before:>8.0%}{after:>8.0%}{seconds / 60:>9.1f}{cpu / 60:>8.1f}{peak:>9,.0f}"
            f"{trained[1] if trained else 'all':>14}"
        )
    return table


if __name__ == "__main__":
    config = override(globals())
    print(*compare(config), sep="\n")
    end_script()
