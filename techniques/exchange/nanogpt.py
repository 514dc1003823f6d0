"""Reads nanoGPT's ckpt.pt (Karpathy, 2022): plain tensors under GPT-2's names, and the model's arguments.

Its characters are in meta.pkl, a pickle, which may run code when it is read. So the text gives them, as it
gave them to nanoGPT: they are its different characters, sorted.
"""

from pathlib import Path

import torch

from config import ROOT, require
from model import GPTConfig
from runtime.trust import check_tensors, check_zip
from techniques.exchange import families
from tokenizer import CharTokenizer, Tokenizer

GPT2_ROWS = (50257, 50304)  # GPT-2's vocabulary; nanoGPT rounds it up to a multiple of 64


class Loaded(dict):
    """Tensors in memory, as weights.weights_of() takes them."""

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self[name].shape)


def read(path: Path, vocab: str) -> tuple[GPTConfig, Loaded, Tokenizer]:
    """(shape, tensors, tokenizer) of a checkpoint. vocab: the text, or its characters; see tokenizer_of().

    ValueError for a file that is damaged or whose numbers make no model.
    """
    try:
        check_zip(path)
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        model, arguments = saved["model"], saved["model_args"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); copy it again") from None
    require(isinstance(model, dict) and isinstance(arguments, dict), f"{path} is no checkpoint of nanoGPT")
    tensors = Loaded({str(name).removeprefix("_orig_mod."): t for name, t in model.items()})
    check_tensors(tensors, str(path))
    n = {
        name: families.number(arguments, name, where=f"{path}, model_args")
        for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    }
    shape = GPTConfig(**n, bias=arguments.get("bias") is True, arch="gpt2", activation="gelu_erf")
    return shape, tensors, tokenizer_of(n["vocab_size"], vocab)


def tokenizer_of(rows: int, vocab: str) -> Tokenizer:
    """nanoGPT's tokenizer: the sorted characters of a text, or GPT-2's. Its pickled meta.pkl is not read."""
    if not vocab and rows in GPT2_ROWS:
        from text.new_tokenizer import gpt2

        return gpt2()
    ask = "give the text that it was trained on: --vocab=input.txt (meta.pkl may run code and is not read)"
    require(
        vocab != "", f"the model has {rows:,} tokens, and its characters are not in the checkpoint; {ask}"
    )
    path = next((place for place in (Path(vocab).expanduser(), ROOT / vocab) if place.is_file()), None)
    require(path is not None and path.suffix != ".pkl", f"vocab={vocab} is no text file; {ask}")
    try:
        characters = sorted(set(path.read_text(encoding="utf-8")))
    except ValueError:
        raise ValueError(f"vocab={vocab} is no UTF-8 text; {ask}") from None
    n = len(characters)
    require(n == rows, f"vocab={vocab} has {n:,} different characters, the model {rows:,}; {ask}")
    return CharTokenizer("".join(characters))
