"""Each setting of each script, changed: the run has to change, or to refuse. A flag that is accepted and
ignored is the worst kind of mistake: nobody sees it.

SETTINGS says for each setting what is changed and what that changes: weights (of ckpt.pt), metrics (rows of
metrics.jsonl without times), files, lines (printed, without times), calls (of a function, with what it was
given), error (the message that refuses it). The list is complete: a new setting without a row fails.
And each message that names a setting (--name) comes from scripts that have it.
"""

import ast
import contextlib
import hashlib
import io
import json
import re
import runpy
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

import config
import data
import model
from conftest import ROOT, TINY
from lab import claims, measure, measure_text, scaling
from machine import distributed, hardware
from runtime import checkpoint, folder
from techniques import offload
from test_house import CORE, SCRIPTS, defined_in, files, parse, text_of
from text import prepare

# setting: (flags that change it, what is observed, flags of both runs, a flag that neither has)
RUN = "--log_interval=1 --eval_interval=2 --max_iters=4 --max_new_tokens=5 --threads=1"
SAMPLED = "--max_new_tokens=30"
BAD_ROWS = "--input={bad_rows} --format=jsonl"
SETTINGS = {
    "train.py": {
        "out_dir": ("--out_dir={tmp}/other", "files"),
        "init_from": ("--init_from={run}", "weights"),
        "eval_only": ("--eval_only", "files"),
        "seed": ("--seed=1", "weights"),
        "dataset": ("--dataset=rows_of_settings", "weights"),
        "batch_size": ("--batch_size=2", "weights"),
        "block_size": ("--block_size=16", "weights"),
        "gradient_accumulation_steps": ("--gradient_accumulation_steps=2", "weights"),
        "global_batch_size": ("--global_batch_size=8", "weights"),
        "pack": ("--pack=False", "weights", "--dataset=rows_of_settings"),
        "arch": ("--arch=gpt2", "weights"),
        "norm": ("--norm=layernorm", "weights"),
        "position": ("--position=learned", "weights"),
        "activation": ("--activation=gelu", "weights"),
        "token_shift": ("--token_shift=0", "weights"),
        "qk_norm": ("--qk_norm=0", "weights"),
        "tie_weights": ("--tie_weights=1", "weights"),
        "zero_init": ("--zero_init=0", "weights"),
        "logit_cap": ("--logit_cap=1.5", "weights"),
        "n_kv_head": ("--n_kv_head=1", "weights"),
        "n_layer": ("--n_layer=1", "weights"),
        "n_head": ("--n_head=1", "weights"),
        "n_embd": ("--n_embd=16", "weights"),
        "n_ff": ("--n_ff=16", "weights"),
        "rope_theta": ("--rope_theta=100", "weights"),
        "bias": ("--bias", "weights"),
        "dropout": ("--dropout=0.1", "weights"),
        "technique": ("--technique=lora", "weights"),
        "logits_mb": ("--logits_mb=1", "calls", "--batch_size=256 --max_iters=1"),
        "gradient_checkpointing": ("--gradient_checkpointing", "calls"),
        "optimizer": ("--optimizer=adamw", "weights"),
        "learning_rate": ("--learning_rate=1e-3", "weights"),
        "muon_lr": ("--muon_lr=0.01", "weights"),
        "muon_momentum": ("--muon_momentum=0.5", "weights"),
        "weight_decay": ("--weight_decay=0.5", "weights"),
        "beta1": ("--beta1=0.5", "weights"),
        "beta2": ("--beta2=0.5", "weights"),
        "grad_clip": ("--grad_clip=0.01", "weights"),
        "freeze": ("--freeze=wte", "weights"),
        "layer_lr_decay": ("--layer_lr_decay=0.5", "weights"),
        "max_iters": ("--max_iters=5", "weights"),
        "epochs": ("--epochs=0.01", "metrics", "--epochs=0.02", "--max_iters"),
        "lr_schedule": ("--lr_schedule=cosine", "weights"),
        "decay_lr": ("--decay_lr=False", "weights"),
        "warmup_iters": ("--warmup_iters=2", "weights"),
        "warmup_ratio": ("--warmup_ratio=0.5", "weights"),
        "lr_decay_iters": ("--lr_decay_iters=2", "weights"),
        "min_lr": ("--min_lr=1e-3", "weights"),
        "lr_cooldown": ("--lr_cooldown=0.8", "weights"),
        "lr_power": ("--lr_power=2", "weights", "--lr_schedule=polynomial"),
        "lr_step_iters": ("--lr_step_iters=1", "weights", "--lr_schedule=step"),
        "lr_gamma": ("--lr_gamma=0.5", "weights", "--lr_schedule=step --lr_step_iters=1"),
        "eval_interval": ("--eval_interval=1", "metrics"),
        "eval_iters": ("--eval_iters=0", "metrics"),
        "log_interval": ("--log_interval=2", "metrics"),
        "patience": ("--patience=1", "metrics", "--min_delta=100 --eval_interval=1"),
        "min_delta": ("--min_delta=100", "metrics", "--patience=1 --eval_interval=1"),
        "expected": ("{bands}", "lines", "{no_bands}", "--max_iters"),
        "always_save_checkpoint": ("--always_save_checkpoint=False", "calls"),
        "save_interval": ("--save_interval=1", "files"),
        "keep_checkpoints": ("--keep_checkpoints=2", "files", "--save_interval=1"),
        "checkpoint_format": ("--checkpoint_format=sharded", "files"),
        "sample_interval": ("--sample_interval=2", "lines"),
        "tensorboard": ("--tensorboard", "error"),
        "wandb_log": ("--wandb_log", "error"),
        "wandb_project": ("--wandb_project=other", "calls", "--wandb_log"),
        "wandb_run_name": ("--wandb_run_name=other", "calls", "--wandb_log"),
        "start": ("--start=To", "lines"),
        "max_new_tokens": ("--max_new_tokens=9", "lines"),
        "temperature": ("--temperature=0", "lines", SAMPLED),
        "top_k": ("--top_k=1", "lines", SAMPLED),
        "top_p": ("--top_p=0.01", "lines", SAMPLED),
        "device": ("--device=cuda:99", "error"),
        "dtype": ("--dtype=bfloat16", "weights"),
        "compile": ("--compile", "calls"),
        "backend": ("--backend=nccl", "error"),
        "strategy": ("--strategy=zero1", "lines"),
        "offload": ("--offload=disk", "calls"),
        "timeout": ("--timeout=60", "calls"),
        "threads": ("--threads=2", "lines"),
        "oom_retry": ("--oom_retry=False", "error", "{out_of_memory}"),
    },
    "data.py": {
        "input": ("--input={other}", "files"),
        "name": ("--name=other", "files"),
        "tokenizer": ("--tokenizer=bpe --vocab_size=270", "files"),
        "vocab_size": ("--vocab_size=270", "files", "--tokenizer=bpe --vocab_size=260"),
        "add_tokens": ("--add_tokens=e", "files", "--tokenizer=bpe --vocab_size=260"),
        "format": ("--format=lines", "files"),
        "val_ratio": ("--val_ratio=0.3", "files"),
        "test_ratio": ("--test_ratio=0.2", "files"),
        "val_input": ("--val_input={other}", "files"),
        "seed": ("--seed=1", "files", "--format=lines"),
        "dedup": ("--dedup", "files"),
        "clean": ("--clean", "files"),
        "first": ("--first=1000", "files"),
        "near_dedup": ("--near_dedup=0.8", "files"),
        "quality": ("--quality=word_length", "files"),
        "skip_bad": ("--skip_bad", "error", BAD_ROWS),
        "threads": ("--threads=2", "calls"),
        "shard_mb": ("--shard_mb=0.0005", "files"),
        "show": ("--show=2", "lines"),
    },
    "sample.py": {
        "out_dir": ("--out_dir={tmp}/nowhere", "error"),
        "file": ("--file=ckpt.pt", "lines"),
        "adapter": ("--adapter={run}", "error"),
        "start": ("--start=To", "lines"),
        "num_samples": ("--num_samples=2", "lines"),
        "max_new_tokens": ("--max_new_tokens=7", "lines"),
        "temperature": ("--temperature=0", "lines", SAMPLED),
        "top_k": ("--top_k=1", "lines", SAMPLED),
        "top_p": ("--top_p=0.01", "lines", SAMPLED),
        "stop": ("--stop=e", "lines", "--max_new_tokens=500"),
        "seed": ("--seed=1", "lines", SAMPLED),
        "unknown": ("--unknown=skip", "error", "--start=\u20aca"),
        "stream": ("--stream=False", "calls"),
        "interactive": ("--interactive", "lines"),
        "chat": ("--chat", "error"),  # the run's tokenizer has no end token; conversations: test_chat.py
        "system": ("--system=To", "error"),
        "device": ("--device=cuda:99", "error"),
        "dtype": ("--dtype=bfloat16", "calls"),
    },
    "evaluate.py": {
        "out_dir": ("--out_dir={tmp}/nowhere", "error"),
        "file": ("--file=ckpt.pt", "lines"),
        "adapter": ("--adapter={run}", "error"),
        "task": ("--task=exact_match", "error"),  # a text holds no replies; rows: test_chat.py
        "split": ("--split=train", "lines"),
        "dataset": ("--dataset=rows_of_settings", "error"),  # it has another tokenizer
        "input": ("--input={other}", "lines"),
        "format": ("--format=jsonl", "error", "--input={other}"),
        "batch_size": ("--batch_size=1", "calls"),
        "device": ("--device=cuda:99", "error"),
        "dtype": ("--dtype=bfloat16", "calls"),
        "plot": ("--plot", "files"),
    },
    "bench.py": {
        "only": ("--only=bytepairs", "calls"),
        "plot": ("--plot", "calls", "--only=growth"),
        "out_dir": ("--out_dir={tmp}/other", "calls", "--only=growth --plot"),
        "rounds": ("--rounds=2", "calls", "--only=bytepairs"),
        "blocks": ("--blocks=2", "calls", "--only=growth"),
        "seeds": ("--seeds=2", "calls", "--only=ablation"),
        "ablation_seconds": ("--ablation_seconds=1", "calls", "--only=ablation"),
        "growth_seconds": ("--growth_seconds=1", "calls", "--only=growth"),
        "claim": ("--claim=5", "calls", "--only=claims"),
        "quick": ("--quick", "calls"),
        "gpus": ("--gpus=16", "lines"),
        "gpus_per_node": ("--gpus_per_node=4", "lines"),
        "shape": ("--shape=7b", "lines"),
        "arch": ("--arch=llama", "lines"),
        "n_layer": ("--n_layer=6", "lines"),
        "n_head": ("--n_head=7", "error"),  # the plan's sums do not depend on it, the shape does
        "n_embd": ("--n_embd=384", "lines"),
        "block_size": ("--block_size=512", "lines"),
        "vocab_size": ("--vocab_size=1000", "lines"),
        "optimizer": ("--optimizer=muon", "lines"),
        "dtype": ("--dtype=float32", "lines"),
        "batch_size": ("--batch_size=6", "lines"),
        "gradient_accumulation_steps": ("--gradient_accumulation_steps=2", "lines"),
        "gradient_checkpointing": ("--gradient_checkpointing", "lines"),
        "technique": ("--technique=lora", "lines"),
        "memory_gb": ("--memory_gb=1", "lines"),
        "peak_tflops": ("--peak_tflops=100", "lines"),
        "mfu": ("--mfu=0.1", "lines"),
        "bandwidth": ("--bandwidth=1", "lines"),
        "bandwidth_between": ("--bandwidth_between=1", "lines", "--gpus=16"),
    },
}
EVERYWHERE = {
    "train.py": " ".join(["--dataset=small --out_dir={tmp}/out", *TINY, RUN]),
    "data.py": "--input={text} --name=mine",
    "sample.py": "--out_dir={run} --device=cpu --dtype=float32 --max_new_tokens=9",
    "evaluate.py": "--out_dir={run} --device=cpu --dtype=float32",
    "bench.py": "--only=plan --out_dir={tmp}/plots",
}
TIMES = ("seconds", "tokens_per_second", "memory_mb", "cpu_percent", "data_ms")
FAST = {("train.py", "seed"), ("train.py", "device"), ("data.py", "dedup")}
FAST |= {("evaluate.py", "split"), ("bench.py", "mfu")}
ROWS = [(script, setting) for script, rows in SETTINGS.items() for setting in rows]


@pytest.fixture(scope="module")
def here(datasets, tmp_path_factory) -> dict:
    """What the flags name: texts, config files, and a run."""
    tmp = tmp_path_factory.mktemp("settings")
    lines = [f"line {i % 30} of  the text\n" for i in range(60)]  # each is there twice
    rows = '{"prompt": "2 + 2 = ", "response": "4"}\n{"prompt": "a", "response": "bcd"}\n' * 40
    texts = {
        "text": "".join(lines),
        "other": (datasets / "small.txt").read_text(encoding="utf-8")[:3000],
        "bad_rows": '{"prompt": "a", "response": "b"}\n' * 20 + "{oops\n",
        "rows": rows,
        "bands": "max_iters = 4\nexpected = {4: (0.0, 0.1)}\n",
        "no_bands": "max_iters = 4\n",
    }
    found = {}
    for name, text in texts.items():
        found[name] = tmp / f"{name}.{'py' if 'bands' in name else 'jsonl' if 'rows' in name else 'txt'}"
        found[name].write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "DATASETS", datasets)
        prepare.prepare("rows_of_settings", str(found["rows"]), format="jsonl")
        patch.setattr(sys, "argv", ["train.py", *fill(EVERYWHERE["train.py"], {**found, "tmp": tmp}).split()])
        patch.setattr(sys, "excepthook", sys.excepthook)
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return {**found, "run": tmp / "out"}


def fill(flags: str, names: dict) -> str:
    for name, value in names.items():
        flags = flags.replace(f"{{{name}}}", str(value))
    return flags


class Screen(io.StringIO):
    """Standard output that counts how often it is flushed."""

    flushed = 0

    def flush(self):
        self.flushed += 1


def plain(value):
    """An argument of a call in a form that two runs share."""
    if isinstance(value, Path):
        return re.sub(r"(/\.mine)-\w+", r"\1", str(value))  # a temporary folder
    return value if isinstance(value, (int, float, str, tuple, list, type(None))) else type(value).__name__


def watch(patch, calls: list, module, name: str, instead=None) -> None:
    """Note the calls of a function, with its arguments. instead: what is called in its place."""
    function = getattr(module, name)

    def call(*arguments, **keywords):
        given = {**dict(enumerate(arguments)), **keywords}
        calls.append((name, {key: plain(value) for key, value in given.items()}))
        return (instead or function)(*arguments, **keywords)

    patch.setattr(module, name, call)


def run(script: str, flags: str, here: dict, tmp: Path) -> dict:
    """Run a script in this process; everything that can be seen of it."""
    calls, screen, error = [], Screen(), ""
    with pytest.MonkeyPatch.context() as patch:
        if script == "data.py":
            patch.setattr(prepare, "DATASETS", tmp / "datasets")
            watch(patch, calls, prepare, "encode")
        else:
            patch.setattr(folder, "ROOT", tmp)
        for module in ("wandb", "torch.utils.tensorboard"):
            patch.setitem(sys.modules, module, None)
        if "--wandb_log " in f"{flags} " and "--wandb_" in flags.replace("--wandb_log", ""):
            patch.setitem(sys.modules, "wandb", mock.MagicMock())
            watch(patch, calls, sys.modules["wandb"], "init")
        if "{out_of_memory}" in flags:
            flags = flags.replace("{out_of_memory}", "")
            batch, failures = data.Windows.batch, [MemoryError()]

            def fails_once(*arguments):
                if failures and len(arguments) > 3:  # in the loop
                    raise failures.pop()
                return batch(*arguments)

            patch.setattr(data.Windows, "batch", fails_once)
        if script == "train.py":
            watch(patch, calls, model, "checkpoint")
            watch(patch, calls, hardware, "try_compile", lambda loss, *rest: loss)
            watch(patch, calls, offload, "to_disk")
            watch(patch, calls, distributed, "start")
            save = checkpoint.Saver.save

            def saved(self, name, *rest):
                calls.append(("save", name))
                return save(self, name, *rest)

            patch.setattr(checkpoint.Saver, "save", saved)
        watch(patch, calls, hardware, "choose_precision")
        watch(patch, calls, data.Windows, "window_batch")
        if script == "bench.py":
            patch.setattr(measure, "describe_machine", list)
            watch(patch, calls, measure_text, "bytepairs", lambda *arguments: [])
            watch(patch, calls, claims, "rows", lambda *arguments: [])
            for name in ("growth_of_cost", "growth_of_loss", "ablation"):
                watch(patch, calls, scaling, name, lambda *arguments: [])
            patch.setattr(measure, "SMALLER", {})
        patch.setattr(sys, "stdin", io.StringIO("To be\n"))
        patch.setattr(sys, "argv", [script, *fill(flags, {**here, "tmp": tmp}).split()])
        distributed.leave()
        try:
            with contextlib.redirect_stdout(screen):
                runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit:
            pass
        except (ValueError, MemoryError) as caught:
            error = f"{type(caught).__name__} {caught}"
        config.end_script()
        calls.append(("smaller", dict(measure.SMALLER)))
    place = {"data.py": tmp / "datasets", "evaluate.py": here["run"]}.get(script, tmp / "out")
    return seen(place, screen, calls, error, tmp)


def seen(place: Path, screen: Screen, calls: list, error: str, tmp: Path) -> dict:
    """What a run has left: see the first lines of this file."""
    found = [path for path in sorted(place.rglob("*")) if path.is_file() and path.name != "events"]
    names = [(path.relative_to(place).as_posix(), path.suffix == ".bin" and digest(path)) for path in found]
    last, metrics = place / "ckpt.pt", place / "metrics.jsonl"
    weights = torch.load(last, weights_only=True)["model"].items() if last.is_file() else ()
    rows = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    lines = screen.getvalue().replace(str(tmp), "").splitlines()
    return {
        "weights": [(name, hashlib.sha256(t.numpy().tobytes()).hexdigest()) for name, t in weights],
        "metrics": [{k: v for k, v in json.loads(row).items() if k not in TIMES} for row in rows],
        "files": names,
        "lines": [line for line in lines if not line.startswith(("settings: ", "iter ", "trained for"))],
        "calls": f"{calls}, flushed {screen.flushed} times".replace(str(tmp), ""),
        "error": error,
    }


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


baselines: dict[tuple, dict] = {}  # of (script, flags): runs to compare with


@pytest.mark.parametrize(
    ("script", "setting"),
    [pytest.param(*row, marks=() if row in FAST else pytest.mark.slow) for row in ROWS],
)
def test_a_setting_that_is_changed_changes_the_run_or_is_refused(
    run_script, here, tmp_path, script, setting, figure
):
    change, what, both, dropped = (*SETTINGS[script][setting], "", "")[:4]
    flags = [flag for flag in EVERYWHERE[script].split() if not dropped or not flag.startswith(dropped)]
    flags = " ".join([*flags, both])
    if (script, flags) not in baselines:
        (tmp_path / "before").mkdir()
        baselines[script, flags] = run(script, flags, here, tmp_path / "before")
    (tmp_path / "after").mkdir()
    before, after = baselines[script, flags], run(script, f"{flags} {change}", here, tmp_path / "after")
    assert before[what] != after[what]
    if what != "error":
        assert after["error"] == ""
    figure("settings whose change was seen")


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_setting_is_missing(script):
    assert SETTINGS[script].keys() == config.defaults_of(script).keys()


@pytest.mark.slow
def test_the_same_run_twice_looks_the_same(run_script, here, tmp_path):
    """Or the comparison above would mean nothing."""
    for script, flags in EVERYWHERE.items():
        both = []
        for name in ("one", "two"):
            (tmp_path / script / name).mkdir(parents=True)
            both.append(run(script, flags, here, tmp_path / script / name))
        assert both[0] == both[1], script
        assert both[0]["error"] == ""


# ---- advice: a message names a setting only where it can be set
FLAG = re.compile(r"--([a-z][a-z_]+)")
NO_SETTING = {"name", "help"}  # --name=value stands for any; -h is there in all
ADVISED = ("train.py", "data.py", "evaluate.py", "sample.py")  # bench.py's runs are its own
EXCEPTIONS = {  # (function, flag): why a script that cannot have the flag does not print it
    ("as_text", "start"): "it looks for the flag in what was typed",
    ("as_text", "stop"): "likewise",
    ("as_text", "system"): "likewise",
    ("one_line_errors", "out_dir"): "only if the script has it",
    ("advice_instead_of", "file"): "only if the script has it",
    ("open_text", "format"): "only if the script has it",
    ("Windows.__init__", "block_size"): "evaluate.py lets windows be short; data.py drops the error",
    ("start", "backend"): "only train.py chooses one",
    ("choose_device", "device"): "data.py asks for the CPU, which is there",
    ("saved_tokenizer", "tokenizer"): "train.py prepares with characters or new byte pairs",
    ("folder_of", "input"): "the command begins with python data.py",
    ("prepare", "vocab_size"): "train.py prepares with settings that fit",
    ("prepare", "tokenizer"): "likewise",
    ("prepare", "shard_mb"): "likewise; one process prepares",
    ("prepare", "input"): "train.py gives no val_input",
    ("prepare", "val_input"): "likewise",
    ("prepare", "format"): "likewise",
    ("", "init_from"): "sample.py has no such setting, and says so",
    ("", "compile"): "likewise",
    ("", "dataset"): "of train.py, which trains on it",
}


def functions(source: str) -> dict[str, list]:
    """{name: nodes} of a file's functions (Class.method); "" is what runs when it is imported or started."""
    found = {"": []}
    for node in parse(source).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = [node]
        elif isinstance(node, ast.ClassDef):
            found[node.name] = []  # the class itself; its methods are called by their names
            found |= {f"{node.name}.{n.name}": [n] for n in node.body if isinstance(n, ast.FunctionDef)}
        elif not isinstance(node, ast.Expr):
            found[""].append(node)
        elif not isinstance(node.value, ast.Constant):  # no docstring
            found[""].append(node)
    return found


def reached(script: str, sources: dict) -> set[tuple[str, str]]:
    """(file, function) of all that a script may call, found by names: rather too much than too little."""
    code = {file: functions(source) for file, source in sources.items()}
    todo, found, attributes = [(script, "")], set(), set()
    while todo:
        file, function = todo.pop()
        if (file, function) in found or function not in code[file]:
            continue
        found.add((file, function))
        for node in (node for top in code[file][function] for node in ast.walk(top)):
            home, name = "", ""
            if isinstance(node, ast.Name):
                home, name = defined_in(node.id, file, sources), node.id
            elif isinstance(node, ast.Attribute):
                attributes.add(node.attr)
                home, name = defined_in(text_of(node.value), file, sources), node.attr
            if home:
                todo += [(home, f) for f in code[home] if f == name or f.startswith(f"{name}.__")]
        if not todo:  # a method of a class that is used, by its name
            methods = [(file, f) for file in code for f in code[file] if f.count(".")]
            todo = [m for m in methods if (m[0], m[1].split(".")[0]) in found]
            todo = [m for m in todo if m[1].split(".")[1] in attributes and m not in found]
    return found


def messages(node: ast.AST) -> list[str]:
    """The texts in a function, but for its docstring; {} stands for each value in an f-string."""
    whole = [n for n in ast.walk(node) if isinstance(n, ast.JoinedStr)]
    parts = {id(part) for n in whole for part in n.values}
    found = []
    for n in whole:
        values = [part.value if isinstance(part, ast.Constant) else "{}" for part in n.values]
        found.append("".join(values))
    doc = ast.get_docstring(node, clean=False) if isinstance(node, ast.FunctionDef) else None
    for n in ast.walk(node):
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in parts and n.value != doc:
            found.append(n.value)
    return found


def unfit_advice(sources: dict, settings: dict) -> tuple[list[str], set]:
    """(messages that name a setting which a script that may print them lacks, the exceptions that are used).

    A flag belongs to the script that the message names before it, else to all that reach its function.
    """
    unfit, used = [], set()
    can = {script: reached(script, sources) for script in settings}
    for file, source in sources.items():
        for function, tops in functions(source).items():
            for text in (text for top in tops for text in messages(top)):
                for match in FLAG.finditer(text):
                    named = [f"{name}.py" for name in re.findall(r"(\w+)\.py", text[: match.start()])]
                    named = [name for name in named if name in SCRIPTS][-1:]
                    where = named or [script for script in settings if (file, function) in can[script]]
                    lacking = [s for s in where if s in settings and match[1] not in settings[s]]
                    if not lacking or match[1] in NO_SETTING:
                        continue
                    if (function, match[1]) in EXCEPTIONS:
                        used.add((function, match[1]))
                    else:
                        unfit.append(f"{file} {function}: {match[0]} is none of {', '.join(lacking)}: {text}")
    return unfit, used


def test_advice_names_settings_that_the_script_has():
    sources = dict(files(ROOT, (*CORE, "techniques/**/*.py")))
    unfit, used = unfit_advice(sources, {script: config.defaults_of(script).keys() for script in ADVISED})
    assert unfit == []
    assert used == EXCEPTIONS.keys()  # no exception that is not needed any more


def test_advice_that_does_not_fit_is_found():
    helper = "class Tool:\n    def go(self):\n        raise ValueError(f'{self}: use --block_size=9')\n"
    named = "def f():\n    raise ValueError('use data.py --format=text or train.py --seed=1')\n"
    sources = {
        "sample.py": "from text.a import Tool\n\nTool().go()\n",
        "train.py": "from text.a import Tool\nfrom text.b import f\nTool().go()\nf()\n",
        "text/a.py": helper,
        "text/b.py": named,
    }
    settings = {"sample.py": {"seed"}, "train.py": {"block_size", "seed"}, "data.py": {"format"}}
    sources["data.py"] = "pass\n"
    unfit, _ = unfit_advice(sources, settings)
    (line,) = unfit
    assert line.startswith("text/a.py Tool.go: --block_size is none of sample.py: ")
