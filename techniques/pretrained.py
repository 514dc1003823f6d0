"""Other people's models, in and out: a run of ours from their files, and their files from a run of ours.

    python -m techniques.pretrained import --from=SmolLM2-135M --out_dir=out-smollm2   a Hugging Face folder
    python -m techniques.pretrained import --from=model.gguf --out_dir=out-smollm2     llama.cpp, ollama
    python -m techniques.pretrained import --from=ckpt.pt --vocab=input.txt --out_dir=out-mine      nanoGPT
    python -m techniques.pretrained export --out_dir=out-mine --to=FOLDER              transformers opens it
    python -m techniques.pretrained export --out_dir=out-mine --to=FOLDER --format=gguf
    python -m techniques.pretrained download NAME --to=FOLDER

Import writes an ordinary run (best.pt, tokenizer.json, config.json), which sample.py, evaluate.py and
train.py --init_from=out-smollm2 open; weights become float32. Which models: families.py. Beside this file:
weights.py (names of tensors), safetensors_files.py, gguf.py (formats), vocabulary.py (tokenizers).
Nothing here runs code from a file: no pickle, no template language.
"""

import dataclasses
import hashlib
import json
import math
import sys
from pathlib import Path

from config import ROOT, defaults_of, end_script, override, require  # isort: skip
import torch

from model import GPTConfig
from runtime import checkpoint
from runtime.folder import new_run_folder, other_checkpoints
from runtime.guard import write_atomic
from runtime.trust import explain_disk_errors, made_by_nanogpt
from techniques import BLOCKS, adapters
from techniques.exchange import download, families, gguf, nanogpt, safetensors_files, vocabulary, weights
from tokenizer import Tokenizer

# -----------------------------------------------------------------------------
source = ""  # import: a folder, a .gguf file or nanoGPT's ckpt.pt; typed as --from=PATH
out_dir = "out-pretrained"  # import: the run to write; export: the run to read
block_size = 0  # import: the longest context, if shorter than the model's; 0 = the model's
vocab = ""  # import of nanoGPT by characters: the text that it was trained on, or a file with its characters
file = "best.pt"  # export: which checkpoint of the run
to = ""  # export and download: the folder to write
format = "hf"  # export: hf | gguf
dtype = ""  # export: float32 | float16 | bfloat16, for gguf also q8_0 | q4_1; "" = float32, gguf: float16
# -----------------------------------------------------------------------------

FORMATS = {"hf": "float32", "gguf": "float16"}  # with the dtype that is usual there


# ---- in
def read_run(path: str | Path, vocab: str = "", block_size: int = 0) -> dict:
    """A checkpoint of ours, in memory, from files of others; "notes": lines about what was left over.

    path: a Hugging Face folder, a .gguf file, or nanoGPT's ckpt.pt (or its folder). vocab: for nanoGPT, see
    the setting. block_size: a shorter context than the model's; 0: the model's. ValueError, before anything
    large is allocated, for files that are damaged, unknown, or of a model that ours cannot be.
    """
    given = Path(path).expanduser()
    path = next((place for place in (given, ROOT / given) if place.exists()), given)
    require(
        path.exists(), f"{given} does not exist; expected a Hugging Face folder, a .gguf file or a ckpt.pt"
    )
    if path.is_dir() and not (path / "config.json").exists():
        files = [each for each in (path / "ckpt.pt", *sorted(path.glob("*.gguf"))) if each.exists()]
        require(len(files) <= 1, f"{path} has several models: {', '.join(f.name for f in files)}; name one")
        path = files[0] if files else path
    if path.is_dir():
        shape, tensors, family, tokenizer = open_folder(path)
    elif path.suffix == ".gguf":
        config, tensors = gguf.read(path)
        shape, family = families.shape_of(config), config["model_type"]
        tokenizer = vocabulary.read_gguf(config["tokenizer"])
    else:
        known = "a Hugging Face folder, a .gguf file and nanoGPT's ckpt.pt"
        require(made_by_nanogpt(path), f"{path} is none of what can be imported: {known}")
        shape, tensors, tokenizer = nanogpt.read(path, vocab)
        family = "nanogpt"
    rows, words = shape.vocab_size, tokenizer.vocab_size
    require(
        words <= rows, f"{path}: the tokenizer has {words:,} tokens, the model only {rows:,} rows for them"
    )
    if block_size:
        longest = shape.block_size
        require(0 < block_size <= longest, f"block_size={block_size} is not in 1 to {longest}, the model's")
    try:
        state, notes = weights.weights_of(shape, tensors, family)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if block_size:
        shape = dataclasses.replace(shape, block_size=block_size)
        if "wpe.weight" in state:
            state["wpe.weight"] = state["wpe.weight"][:block_size].clone()
    tokenizer = vocabulary.padded(tokenizer, rows)
    model_config, settings = dataclasses.asdict(shape), defaults_of("train.py")
    settings |= {name: value for name, value in model_config.items() if name in settings}
    settings |= {"dataset": path.name, "start": ""}
    dataset = {"name": path.name, "source": str(path), "sha256": sha256_of(path), "turns": False}
    dataset |= {"tokenizer_hash": tokenizer.hash, "vocab_size": rows, "format": "text"}
    return dict(
        model=state, model_config=model_config, tokenizer=tokenizer.to_json(), dataset=dataset,
        config=settings, step=0, tokens=0, seconds=0.0, val_loss=math.inf, notes=notes,
    )  # fmt: skip


def open_folder(folder: Path) -> tuple[GPTConfig, safetensors_files.Tensors, str, Tokenizer]:
    """(shape, tensors, family, tokenizer) of a Hugging Face folder."""
    path = folder / "config.json"
    require(path.is_file(), f"{folder} has no config.json; expected a model as on huggingface.co")
    config = safetensors_files.parse_json(path.read_bytes(), str(path))
    ours = "model_type" not in config and (folder / "best.pt").exists()
    require(not ours, f"{folder} is a run of tinylm already; train.py takes it with --init_from={folder}")
    shape = families.shape_of(config)
    tensors = safetensors_files.read_folder(folder)
    return shape, tensors, config["model_type"], vocabulary.read_folder(folder)


def sha256_of(path: Path) -> str:
    """The sha256 of a file, or of a folder's config.json and weights in the order of their names."""
    files = sorted(path.glob("*.safetensors")) + [path / "config.json"] if path.is_dir() else [path]
    found = [download.sha256_of(each) for each in files]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode("utf-8")).hexdigest()


def import_run(config: dict) -> list[str]:
    """Write the run out_dir from config["source"]; returns lines about it."""
    require(config["source"] != "", "what to import is missing; name it: --from=PATH")
    folder = new_run_folder(config["out_dir"])
    saved = read_run(config["source"], config["vocab"], config["block_size"])
    notes = saved.pop("notes")
    saved["config"]["out_dir"] = config["out_dir"]
    checkpoint.save_run(folder, saved)
    shape = saved["model_config"]
    n = sum({id(t): t.numel() for t in saved["model"].values()}.values())  # a tied head counts once
    sizes = f"{shape['n_layer']} layers, {shape['n_embd']} wide, {shape['vocab_size']:,} tokens"
    lines = [f"read {config['source']}: {n:,} parameters, {sizes}, context {shape['block_size']:,}", *notes]
    return [*lines, f"saved {folder / 'best.pt'}; try it: python sample.py --out_dir={config['out_dir']}"]


# ---- out
def export_run(config: dict) -> list[str]:
    """Write the run out_dir/file as files of others; returns lines about them."""
    require(config["to"] != "", "where to export to is missing; name a folder: --to=FOLDER")
    kind = config["format"]
    require(kind in FORMATS, f"format={kind} is unknown; expected {' or '.join(FORMATS)}")
    known = safetensors_files.WRITTEN if kind == "hf" else gguf.WRITTEN
    width = config["dtype"] or FORMATS[kind]
    require(width in known, f"dtype={width} is not written as {kind}; choose one of {', '.join(known)}")
    path = checkpoint.run_folder(config["out_dir"]) / config["file"]
    model, tokenizer, saved = checkpoint.load_model(path, torch.device("cpu"))
    on = saved["config"].get("technique", "")
    adapters.require_merged(saved, config["out_dir"])
    require("quantize" not in on, f"{path} is quantized; export the run that it was made of")
    own = [name for name in on.split(",") if name in BLOCKS]
    require(not own, f"{path} has technique={''.join(own[:1])}: other programs do not know such layers")
    family = families.family_of(model.config)
    described = families.config_of(model.config, family)
    described |= {"bos_token_id": max(tokenizer.begin_id, -1), "eos_token_id": tokenizer.end_id}
    described = {name: value for name, value in described.items() if name[3:] != "_token_id" or value >= 0}
    tensors = weights.tensors_of(model.state_dict(), model.config, family)
    folder = Path(config["to"])
    require(not folder.is_file(), f"to={folder} is a file; name a folder")
    runs = other_checkpoints(folder / "any")
    require(not runs, f"{folder} is the folder of a run; choose another --to")
    with explain_disk_errors(folder):
        if kind == "gguf":
            target = folder if folder.suffix == ".gguf" else folder / "model.gguf"
            gguf.write(target, described, tensors, vocabulary.gguf_metadata(tokenizer), width)
        else:
            target = folder / "model.safetensors"
            folder.mkdir(parents=True, exist_ok=True)
            vocabulary.write_folder(tokenizer, folder)
            write_atomic(
                folder / "config.json", json.dumps({**described, "torch_dtype": width}, indent=2) + "\n"
            )
            safetensors_files.write(target, tensors, width)
    lines = [f"saved {target}, a {family} model in {width}"]
    if kind == "gguf" and model.config.window:
        lines.append(f"NOTE: llama.cpp does not heed the window of {model.config.window} tokens")
    if kind == "gguf" and model.config.activation == "gelu_erf":
        lines.append("NOTE: llama.cpp computes GELU by tanh, not erf: the logits differ by about 0.001")
    return lines


def fetch(name: str, config: dict) -> list[str]:
    """Download a model into the folder `to`; returns lines about it."""
    require(config["to"] != "", f"where to put {name} is missing; name a folder: --to=FOLDER")
    place = download.download(name, config["to"])
    return [f"saved {place}; then: python -m techniques.pretrained import --from={place} --out_dir=out-x"]


if __name__ == "__main__":
    commands = {"import": import_run, "export": export_run, "download": None}
    words = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    flags = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    sys.argv[1:] = [
        flag.replace("--from=", "--source=", 1) if "--from=" in flag[:7] else flag for flag in flags
    ]
    config = override(globals())  # with -h it ends here
    require(
        len(words) == (2 if words[:1] == ["download"] else 1) and words[0] in commands,
        "expected import --from=PATH, export --to=FOLDER, or download NAME --to=FOLDER; -h shows them",
    )
    print(*(fetch(words[1], config) if len(words) == 2 else commands[words[0]](config)), sep="\n")
    end_script()
