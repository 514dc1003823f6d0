"""What nanoGPT's commands and config files find here: the same names, or one line that says what differs.

nanoGPT's settings keep their names (docs/configs.md has a table of those that mean something else under Muon
and the trapezoid schedule). What has no counterpart is refused with the way to get it.
"""

from pathlib import Path

from config._errors import ROOT

# nanoGPT's own defaults of the settings that matter most where a config file leaves them out.
DEFAULTS = {
    "dataset": "openwebtext", "n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024,
    "batch_size": 12, "gradient_accumulation_steps": 40, "max_iters": 600000,
    "warmup_iters": 2000, "learning_rate": 6e-4,
}  # fmt: skip
RECIPE = {"arch": "gpt2", "optimizer": "adamw", "lr_schedule": "cosine"}
SIGNS = ("lr_decay_iters", "decay_lr")  # our configs need neither: the schedule ends with the run
LOGGING = ("wandb_log", "wandb_project")  # a config file that sets both has come from nanoGPT, too
WEIGHTS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
IMPORT = (  # {0}: one of WEIGHTS
    "OpenAI's weights are imported first: python -m techniques.pretrained download openai-community/{0} "
    "--to={0}, then python -m techniques.pretrained import --from={0} --out_dir=out-{0}; "
    "to train that shape on your own text: python train.py config/base.py"
)
CONFIGS = {  # nanoGPT's file: what to start instead
    "train_shakespeare_char.py": "did you mean config/shakespeare_char.py? nanoGPT's recipe is "
    "config/classic.py, and on a GPU config/classic_gpu.py",
    "train_gpt2.py": "did you mean config/base.py? It has GPT-2's shape and nanoGPT's recipe",
    "finetune_shakespeare.py": "did you mean config/finetune.py? It starts from a run. "
    + IMPORT.format("gpt2-xl"),
} | {f"eval_{name.replace('-', '_')}.py": IMPORT.format(name) for name in WEIGHTS}
DATASETS = {  # nanoGPT's dataset: what there is here
    "openwebtext": "nanoGPT's openwebtext is not made here; with a text of your own: "
    "python data.py --input=FOLDER --name=openwebtext --tokenizer=gpt2",
    "shakespeare": "nanoGPT's shakespeare (in GPT-2's tokens) is made by: python data.py --input=shakespeare "
    "--name=shakespeare --tokenizer=gpt2; by characters it is --dataset=shakespeare_char",
}
ONLY_THERE = {  # settings of nanoGPT's sample.py that ours does without
    "init_from": "sample.py reads the run in --out_dir, so leave --init_from out. " + IMPORT.format("gpt2"),
    "compile": "sample.py does not compile; leave --compile out",
}


def refuse_weights(settings: dict) -> None:
    """ValueError for init_from=gpt2 and its larger sizes, unless a run or a folder is called that."""
    where = settings.get("init_from")
    if where in WEIGHTS and not (Path(where).exists() or (ROOT / where).exists()):
        raise ValueError(f"init_from={where}: {IMPORT.format(where)}")


def advice_for(name: str, settings: dict) -> str:
    """What to do about a setting of nanoGPT's sample.py that ours does not have; "" for any other name."""
    return ONLY_THERE.get(name, "") if {"num_samples", "start"} <= settings.keys() else ""


def differences(settings: dict, given: dict, defaults: dict) -> str:
    """A line for a config or command of nanoGPT: what is ours here, and how to get nanoGPT's; else "".

    given: setting -> the file, or the command line, that set it. A run that names arch, optimizer,
    lr_schedule or muon_lr has chosen; one that is resumed keeps its own.
    """
    files = {given.get(name, "") for name in LOGGING}
    from_there = any(name in given for name in SIGNS) or (len(files) == 1 and files.pop().endswith(".py"))
    chosen = any(name in given for name in (*RECIPE, "muon_lr"))
    if not from_there or chosen or not RECIPE.keys() <= defaults.keys():
        return ""
    start = settings["init_from"]
    if start.startswith("resume") or start == "auto":
        return ""
    flags = {name: value for name, value in RECIPE.items() if name != "arch" or start == "scratch"}
    ours = ", ".join(f"{name}={defaults[name]}" for name in flags)
    theirs = " ".join(f"--{name}={value}" for name, value in flags.items())
    line = f"NOTE: a config of nanoGPT trains with {ours} here; as nanoGPT does: {theirs}"
    left = [f"{name}={defaults[name]} ({DEFAULTS[name]})" for name in DEFAULTS.keys() - given.keys()]
    if left and start == "scratch":  # from another run its shape comes, too
        line += f"; not given, so ours (nanoGPT's): {', '.join(sorted(left))}"
    return f"{line}; see docs/configs.md"
