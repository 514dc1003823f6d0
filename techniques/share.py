"""Writes a run as one HTML file: any browser opens it from the disk, offline, and the model writes there.

    python -m techniques.share --out_dir=out-x              writes out-x/model.html

In the file are the weights (int8 rows with one scale each, as in packing.py; norms, biases and learned
positions in float32), the tokenizer, GPTConfig, and the forward pass in JavaScript: share_model.js, to be
read beside model.py, share_tokenizer.js, and the page around them, share_page.html. Its content security
policy forbids every request, and texts reach the page as text, never as HTML.

All archs and switches of GPTConfig work, with characters and with byte pairs, up to 20M parameters.
"""

import base64
import bisect
import dataclasses
import hashlib
import json
import re
from pathlib import Path

from config import ROOT, end_script, override, require  # isort: skip
import numpy as np
import torch

from machine.speed import parameters_of
from model import GPT
from runtime import checkpoint
from runtime.folder import run_folder
from runtime.guard import write_atomic
from techniques import adapters, packing
from techniques.quantize import val_loss

# -----------------------------------------------------------------------------
out_dir = "out-shakespeare-char"  # folder of the run
file = "best.pt"  # which checkpoint in it
to = ""  # the file to write, which ends in .html; '' = model.html in out_dir
# -----------------------------------------------------------------------------

LIMIT = 20_000_000  # parameters: a token takes a tenth of a second then, and the file has 27 MB
HERE = Path(__file__).parent
CLASS = r"\[\^?(?:\\.|[^\[\]\\^])(?:\\.|[^\[\]\\])*\]"  # [^\s\p{L}]
ATOM = CLASS + r"|\\p\{\w+\}|\\.|[^\\()\[\]{}|?*+.^$]"  # or an escape, or a character
SETS = r"^\[.*(&&|--|~~|\|\||(\\[sd]|\})-[^]])"  # differences of classes, and ranges from a class
TIMES = r"[?*+]|\{\d+(?:,\d*)?\}"
PIECE = re.compile(
    rf"(?P<atom>{ATOM})(?:(?P<times>{TIMES})(?P<how>[+?]?))?|\(\?[:!=]|\)(?:{TIMES})?(?!\+)|[|$]", re.I
)
ESCAPE = re.compile(r"\\p\{\w+\}|\\.", re.I | re.DOTALL)
SAME = {r"\s": r"\p{White_Space}", r"\S": r"\P{White_Space}", r"\d": r"\p{Nd}", r"\D": r"\P{Nd}"}


def javascript_pattern(pattern: str) -> str:
    r"""A pattern of byte pairs as JavaScript's, for its flag u. ValueError for what differs there.

    "x++" takes all and gives nothing back; in JavaScript only (?=(?<all1>x+))\k<all1> does so. \s is
    \p{White_Space}, as tiktoken has it; JavaScript's \s has U+FEFF, too, and lacks U+0085.
    """
    done, at, groups = [], 0, 0
    while at < len(pattern):
        found = PIECE.match(pattern, at)
        atom = (found and found["atom"]) or ""
        known = found and all(map(knows, ESCAPE.findall(atom))) and not re.search(SETS, atom)
        wrong = f"the tokenizer's pattern has {pattern[at : at + 20]!r}, which the page cannot run"
        require(bool(known), f"{wrong}; expected parts such as those of GPT-2's pattern")
        piece = ESCAPE.sub(lambda escape: SAME.get(escape[0], escape[0]), found[0])
        if atom == r"\-":
            piece = piece[1:]  # JavaScript has it in a class only
        if found["how"] == "+":
            groups += 1
            piece = rf"(?=(?<all{groups}>{piece[:-1]}))\k<all{groups}>"
        done.append(piece)
        at = found.end()
    return "".join(done)


def knows(escape: str) -> bool:
    r"""Whether JavaScript has this escape, too: \p{L} and other categories, \n, signs of patterns."""
    category = re.fullmatch(r"\\[pP]\{([LMNPSZ][a-z]?|C[cf])\}", escape)
    return bool(category) or escape in SAME or escape[1:] in tuple(r"rnt^$\.*+?()[]{}|/-")


def plain(model, saved: dict, out_dir: str) -> GPT:
    """The model without what only training needs. ValueError unless it is model.py's GPT then."""
    on = [name for name in saved["config"].get("technique", "").split(",") if name]
    if "lora" in on:
        adapters.require_merged(saved, out_dir)
    if hasattr(model, "average"):
        del model.average  # in eval mode its averages are the weights
    with torch.device("meta"):
        twin = GPT(model.config)
    kinds = [{name: type(module) for name, module in each.named_modules()} for each in (model, twin)]
    names = ", ".join(on)
    require(kinds[0] == kinds[1], f"technique={names} changes the layers; expected a run of plain GPTConfig")
    n = parameters_of(twin)
    if n > LIMIT:  # only now is it worth looking for what fits
        advice = f"{LIMIT:,} fit: train one with --n_embd={fitting(model.config)}"
        raise ValueError(f"the run has {n:,} parameters, too many for a page; {advice}")
    return model.float()


def fitting(config) -> int:
    """The largest n_embd, n_head heads of even size, with which a model like this one stays below LIMIT."""

    def size(n_embd: int) -> int:
        wide = round(config.n_ff * n_embd / config.n_embd)
        shape = dataclasses.replace(config, n_embd=n_embd, n_ff=wide, head_size=n_embd // config.n_head)
        with torch.device("meta"):
            return parameters_of(GPT(shape))

    step = 2 * config.n_head
    widths = range(step, config.n_embd + step, step)
    return widths[max(1, bisect.bisect_right(widths, LIMIT, key=size)) - 1]


@torch.no_grad()
def packed(model) -> dict:
    """The weights as share_tokenizer.js's unpack() reads them; the model's become those that they stand for.

    matrices: each [name, out, in]; vectors: each [name, size]; both in the order of codes and floats.
    Those are base64 of int8 and of little-endian float32; floats begins with the scales, `out` a matrix.
    ValueError for weights that are not finite.
    """
    matrices, vectors, codes, scales, floats = [], [], [], [], []
    for name, weight in model.named_parameters():  # tied ones once, by the name of wte
        require(bool(weight.isfinite().all()), f"{name} holds NaN or infinity: such a run cannot be shared")
        if weight.dim() == 2 and name != "wpe.weight":
            tensors = packing.encode("int8", weight)
            weight.copy_(packing.decode("int8", weight.shape, **tensors))
            matrices.append([name, *weight.shape])
            codes.append(tensors["codes"].flatten())
            scales.append(tensors["scales"])
        else:
            vectors.append([name, weight.numel()])
            floats.append(weight.flatten())
    numbers = torch.cat(scales + floats).numpy().astype("<f4")
    arrays = {"codes": torch.cat(codes).numpy(), "floats": numbers}
    return {"matrices": matrices, "vectors": vectors} | {name: in_base64(a) for name, a in arrays.items()}


def in_base64(array: np.ndarray) -> str:
    """The array's bytes as text."""
    return base64.b64encode(array.tobytes()).decode("ascii")


def tokenizer_json(tokenizer) -> dict:
    """Tokenizer.to_json() with the ids that begin and end a text. ValueError for other kinds than two."""
    kind = tokenizer.kind
    require(kind in ("char", "bpe"), f"the page knows tokenizers of kind char and bpe; this one is {kind}")
    state = json.loads(tokenizer.to_json())
    if kind == "bpe":
        state["pattern"] = javascript_pattern(state["pattern"])
    ends = {"end_id": tokenizer.end_id, "stop_ids": tokenizer.stop_ids}
    return state | ends | {"begin_id": tokenizer.begin_id}


def page(contents: dict) -> str:
    """The HTML: the page, its scripts, whose hashes the CSP names, and the contents as JSON.

    Only ASCII without "<" stands in the JSON: no token can end the script, and nothing needs an encoding.
    """
    html = inlined(HERE / "share_page.html")
    text = json.dumps(contents, separators=(",", ":")).replace("<", "\\u003c")
    return html.replace("script-src 'none'", f"script-src {hashes(html, 'script')}").replace(
        "/* contents */", text
    )


def inlined(path: Path) -> str:
    """An HTML file with the styles and scripts of its folder where it names them: /* name.js */."""
    html = path.read_text(encoding="utf-8")
    for name in re.findall(r"/\* (\w+\.(?:css|js)) \*/", html):
        html = html.replace(f"/* {name} */", path.with_name(name).read_text(encoding="utf-8"))
    return html


def hashes(html: str, tag: str) -> str:
    """What a content security policy names the inline <script> or <style> elements of a page by."""
    parts = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(part.encode("utf-8")).digest()).decode() for part in parts]
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def share(config: dict) -> list[str]:
    """Write the file; returns lines about its size and loss. ValueError for a run that cannot be shared."""
    source = run_folder(config["out_dir"])
    target = ROOT / config["to"] if config["to"] else source / "model.html"
    require(target.suffix == ".html", f"to={config['to']} is no page; expected a name that ends in .html")
    if config["to"]:
        wrong = f"to={config['to']}: there is no folder {target.parent}; make it first"
        require(target.parent.is_dir(), wrong)
    model, tokenizer, saved = checkpoint.load_model(source / config["file"], torch.device("cpu"))
    model = plain(model, saved, config["out_dir"])
    words = tokenizer_json(tokenizer)
    before = val_loss(model, saved)
    weights = packed(model)
    about = {"name": source.name, "parameters": parameters_of(model)}
    text = page({"about": about, "config": dataclasses.asdict(model.config), "tokenizer": words, **weights})
    write_atomic(target, text)
    lines = [
        f"{parameters_of(model):,} parameters in int8; the page has {len(text.encode('utf-8')) / 1e6:.2f} MB"
    ]
    if before is not None:
        lines.append(f"val loss: {before:.4f} -> {val_loss(model, saved):.4f}")
    return [*lines, f"saved {target}; open it in a browser"]


if __name__ == "__main__":
    config = override(globals())
    print(*share(config), sep="\n")
    end_script()
