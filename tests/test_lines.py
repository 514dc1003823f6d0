"""What users of SimpleFoundation and LlamaHome type, as it is typed here: pretrained models, LoRA, chats.

The commands run in a copy of the project, with models/base a folder of Hugging Face's form: random weights of
each family, and SmolLM2.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT
from forks import free_port
from model import GPTConfig
from techniques.exchange import vocabulary
from test_pretrained import random_model, write_folder
from test_smollm2 import file  # noqa: F401 (a fixture)
from tokenizer import END, BPETokenizer

SIMPLE_FOUNDATION = """
python data.py --input=combined_formatted.json --val_input=validation.json --format=jsonl --name=reasoning --tokenizer=models/base
python train.py config/finetune_lora.py --init_from=models/base --dataset=reasoning --lora_rank=16 --quantize=nf4 --epochs=3 --learning_rate=2e-5 --batch_size=1 --gradient_accumulation_steps=4 --out_dir=out-lora
torchrun --standalone --nproc_per_node=4 train.py config/finetune_lora.py --init_from=models/base --dataset=reasoning --strategy=fsdp --out_dir=out-lora
python -m techniques.lora --out_dir=out-lora --merge_to=out-merged
"""  # noqa: E501 (as they are typed)
LLAMA_HOME = """
python data.py --input=dataset.jsonl --format=jsonl --name=chat --tokenizer=out-base
python train.py config/finetune.py --dataset=chat --init_from=out-base --out_dir=out-chat
python train.py config/finetune.py --dataset=chat --init_from=resume --out_dir=out-chat
python evaluate.py --out_dir=out-chat --input=test.jsonl
torchrun --nnodes=2 --node_rank=0 --nproc_per_node=4 --master_addr=192.168.1.100 --master_port=29500 train.py config/finetune.py --dataset=chat --init_from=out-base --epochs=10 --out_dir=out-chat
"""  # noqa: E501
SIZES = dict(block_size=64, n_layer=2, n_head=4, n_embd=32)
FAMILIES = {
    "gpt2": dict(arch="gpt2", bias=True),
    "llama 2": dict(arch="llama"),
    "llama 3": dict(arch="llama", n_kv_head=2, rope_scaling="llama3 8 1 4 16"),
    "qwen3": dict(arch="llama", qk_norm=2, head_size=12),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory, forks):
    """run(line, *more) runs a line, with more flags, in a copy of the project with the files it names."""
    folder = tmp_path_factory.mktemp("typed") / "tinylm"
    left_out = shutil.ignore_patterns("datasets", "out*", ".git", "__pycache__", ".*_cache", "venv", "tests")
    shutil.copytree(ROOT, folder, ignore=left_out)
    pairs = [{"prompt": f"How much is {i} and {i}? ", "response": f"{2 * i}, of course."} for i in range(60)]
    said = [[("user", f"{i} + {i}?"), ("assistant", f"{2 * i}")] for i in range(60)]
    talks = [{"messages": [{"role": role, "content": text} for role, text in each]} for each in said]
    (folder / "combined_formatted.json").write_text(json.dumps(pairs[10:]), encoding="utf-8")
    (folder / "validation.json").write_text(json.dumps(pairs[:10]), encoding="utf-8")
    for name, rows in (("dataset", talks[10:]), ("test", talks[:10])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def words_of(line: str) -> list[str]:
        program, *words = shlex.split(line)
        return words if program == "python" else ["-m", "torch.distributed.run", *words]

    def start(line: str) -> subprocess.Popen:
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", env=environment)
        return subprocess.Popen([sys.executable, *words_of(line)], cwd=folder, **pipes)

    def run(line: str, *more: str) -> str:
        done = forks.run([*words_of(line), *more], folder, environment, timeout=280, both=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        return done.stdout

    run.start, run.folder = start, folder
    return run


def make_base(folder, family: str) -> None:
    """models/base: random weights and byte pairs with the end token, as Hugging Face's files."""
    text = "How much is 12 and 345? 6789, of course. user: assistant: "
    tokenizer = BPETokenizer.train([text], vocab_size=280, special_tokens=(END,))
    shape = GPTConfig(vocab_size=tokenizer.vocab_size, **SIZES, **FAMILIES[family])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = random_model(shape)
    write_folder(folder, shape, model.state_dict())
    vocabulary.write_folder(tokenizer, folder)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama 3", "qwen3"])
def test_simple_foundation(copy, family):
    """Rows, QLoRA on one process, LoRA with fsdp on four (for one family), and merging."""
    make_base(copy.folder / "models/base", family)
    prepare, qlora, sharded, merge = SIMPLE_FOUNDATION.strip().splitlines()
    assert "reasoning" in copy(prepare)
    assert "technique=lora,quantize" in copy(qlora)
    lines = [merge, sharded, merge] if family == "llama 3" else [merge]
    for line in lines:
        shutil.rmtree(copy.folder / "out-merged", ignore_errors=True)
        printed = copy(line)
    assert "merged 8 layers" in printed
    sampled = copy("python sample.py --out_dir=out-merged --start='How much is 4 and 4? ' --max_new_tokens=5")
    assert "How much is 4 and 4?" in sampled


@pytest.mark.slow
def test_simple_foundation_with_a_real_model(copy, file):  # noqa: F811
    """Rows, QLoRA and merging of SmolLM2; its context is cut to 128 tokens: few rows fill a window."""
    for made in ("models", "out-lora", "out-merged"):
        shutil.rmtree(copy.folder / made, ignore_errors=True)
    copy(f"python -m techniques.pretrained import --from={file} --block_size=128 --out_dir=out-smollm2")
    copy("python -m techniques.pretrained export --out_dir=out-smollm2 --to=models/base")
    prepare, qlora, _, merge = SIMPLE_FOUNDATION.strip().splitlines()
    copy(prepare)
    printed = copy(qlora, "--max_new_tokens=5", "--max_iters=1", "--epochs=0")  # minutes without these
    assert "1,843,200 of them trained" in printed
    assert "merged 120 layers" in copy(merge)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama 2"])
def test_llama_home(copy, family):
    """A chat that is interrupted and resumed, its loss on other rows; on two machines (for one family)."""
    make_base(copy.folder / "models/base", family)
    shutil.rmtree(copy.folder / "out-base", ignore_errors=True)
    copy("python -m techniques.pretrained import --from=models/base --out_dir=out-base")
    prepare, tune, resume, judge, machines = LLAMA_HOME.strip().splitlines()
    copy(prepare)
    copy(tune, "--max_iters=20")  # as if it had been interrupted
    assert "going on at step 20" in copy(resume)
    assert re.search(r"test.jsonl: loss \d", copy(judge))
    if family != "llama 2":
        return
    line = machines.replace("192.168.1.100", "127.0.0.1").replace("29500", str(free_port()))
    line = line.replace("--nproc_per_node=4", "--nproc_per_node=2").replace("--epochs=10", "--epochs=2")
    both = [copy.start(line.replace("node_rank=0", f"node_rank={rank}")) for rank in (0, 1)]
    printed = [process.communicate(timeout=280)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(printed)
    assert "4 processes" in printed[0]
