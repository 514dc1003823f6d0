"""Fits a base's weights to a new run that has more tokens than the base, or another context length.

    more tokens        The dataset's tokenizer has the base's tokens as its first ids. Old rows of embedding
                       and head stay, bit for bit. New rows are the mean of the old ones (Hewitt, 2021): a new
                       token then gets at most the mean of the old ones' probabilities, and the base's answers
                       stay. With random rows a logit near 0 may be far above those of a trained head.
    longer, rope       rope_theta grows by (new / old)^(hs / (hs - 2)): the longest wave then turns as far at
                       the new end as it did at the old one, and the shortest stays (NTK-aware scaling:
                       bloc97, 2023). With --rope_theta= that one is used.
    longer, learned    linear interpolation between the old positions. Measured below.
    shorter            Learned positions are cut. Nothing else changes.

Nothing here is for a resumed run, which stays as it is. A tokenizer with more tokens: data.py --add_tokens.

Measured (lab/longer.py), from 64 to 128 tokens: val loss on the first 64 tokens of a window and on those
beyond, at update 0 | after 100 updates.

    learned: interpolated                  2.155  2.211 | 2.133  2.178
             kept, the last one repeated   2.138  2.922 | 2.135  2.325
             kept, all of them repeated    2.138  2.982 | 2.151  2.410
             kept, new ones at random      2.138  2.972 | 2.154  2.415
    rope:    NTK-aware                     1.722  1.767 | 1.705  1.680
             the same base                 1.716  2.022 | 1.706  1.685
             positions divided by 2        2.077  2.116 | 1.746  1.722
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from config import given
from model import GPTConfig
from runtime.checkpoint import tokenizer_of
from runtime.more_tokens import contains


def fit(saved: dict, config: dict, tokenizer, where: str) -> list[str]:
    """Fit a base's checkpoint to a run's tokenizer and block_size; returns lines that say what was done.

    saved ({} for none) and config, the run's settings, are changed in place. What does not fit otherwise is
    left to checkpoint.check_same. where: the base, for messages. ValueError for a packed embedding.
    """
    if not saved:
        return []
    shape = GPTConfig(**saved["model_config"])  # an earlier version saved fewer fields
    lines = []
    if saved["tokenizer"] != tokenizer.to_json() and contains(tokenizer, tokenizer_of(saved, where)):
        lines += add_tokens(saved, shape.vocab_size, tokenizer, config, where)
    if config["block_size"] > shape.block_size:
        lines.append(lengthen(saved, shape, config))
    elif config["block_size"] < shape.block_size:
        lines.append(f"block_size={config['block_size']} is shorter than the base's {shape.block_size}")
        if shape.position == "learned":
            saved["model"]["wpe.weight"] = saved["model"]["wpe.weight"][: config["block_size"]].clone()
    saved["model_config"] = {**saved["model_config"], "block_size": config["block_size"]}
    return lines


# ---- more tokens
def add_tokens(saved: dict, before: int, tokenizer, config: dict, where: str) -> list[str]:
    """Add rows to the embedding and the head for the tokens that the base, with `before` rows, has not."""
    saved["tokenizer"], n = tokenizer.to_json(), tokenizer.vocab_size
    if n == before:
        return []
    weights = saved["model"]
    rows = [name for name in weights if name.startswith(("wte.", "head.")) and not name.endswith(".A")]
    if any(name.endswith(".codes") for name in rows):
        raise ValueError(
            f"{where} has a packed embedding: the dataset's {n - before} new tokens cannot be added; start "
            "from the run that was packed"
        )
    weights.update({name: with_rows(weights[name], n) for name in rows})
    saved["model_config"] = {**saved["model_config"], "vocab_size": n}
    line = (
        f"{n - before} tokens more than the base's {before:,}: their rows begin as the mean of the old ones"
    )
    if "lora" in config["technique"].split(","):
        line = f"WARNING: {line}, and LoRA does not train them; first a run with --freeze=blocks,norm does"
    return [line]


def with_rows(old: Tensor, n: int) -> Tensor:
    """(V,...) -> (n,...): the old rows, then their mean, summed in float64."""
    mean = old.mean(0, keepdim=True, dtype=torch.float64).to(old.dtype)
    return torch.cat((old, mean.expand(n - len(old), *old.shape[1:])))


# ---- a longer context
def lengthen(saved: dict, shape: GPTConfig, config: dict) -> str:
    """Make the positions of a base reach to the run's block_size; returns the line that says how."""
    new, old, hs = config["block_size"], shape.block_size, shape.head_size
    line = f"block_size={new} is longer than the base's {old}: "
    if shape.position == "learned":
        rows = saved["model"]["wpe.weight"].T[None]  # (1,C,old)
        drawn_out = F.interpolate(rows, size=new, mode="linear", align_corners=True)  # (1,C,new)
        saved["model"]["wpe.weight"] = drawn_out[0].T.contiguous()
        return line + "its learned positions are interpolated to that length"
    theta = config["rope_theta"]
    if "rope_theta" not in given:
        power = hs / (hs - 2) if hs > 2 else 0  # one pair of channels turns by 1 a token with any base
        theta = config["rope_theta"] = shape.rope_theta * (new / old) ** power
        line += "NTK-aware, "
    saved["model_config"] = {**saved["model_config"], "rope_theta": theta}
    return line + f"rope_theta {shape.rope_theta:.6g} -> {theta:.6g}"
