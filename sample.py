r"""Sample text from a trained model. The run's folder is enough: its checkpoint holds the tokenizer, too.

    python sample.py --out_dir=out-shakespeare-char --start="ROMEO:" --num_samples=3
    python sample.py --out_dir=out-shakespeare-char --interactive
    python sample.py --start=FILE:prompt.txt --temperature=0
    python sample.py --out_dir=out-chat --chat --system="Answer in one word."

start, temperature, top_k, top_p and max_new_tokens come from the run unless they are given here. In what is
typed (start, stop, system, and lines for --interactive and --chat), \n is a line break, \t a tab and \\ a
backslash. A file is read as it is. <|endoftext|> is the end token where it is one in training
(text/segments.py); in a conversation all that is typed is plain text.
"""

import codecs
import math
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from config import adopt, at_least, end_script, given, override, require  # isort: skip
import torch

import techniques
from machine import hardware
from machine.stages import Stages
from machine.threads import use_saved
from runtime import checkpoint
from runtime.trust import check_types
from text.chat import Conversation
from text.readers import documents_in
from text.segments import begin, ids_of, prompt_segments
from tokenizer import END

# -----------------------------------------------------------------------------
out_dir = "out-shakespeare-char"  # folder of the run
file = "best.pt"  # which checkpoint in it: best.pt | ckpt.pt | ckpt_000500.pt
adapter = ""  # of LoRA, on top of this run: a lora.pt, or the folder of a run that has one
start = "\n"  # the prompt, in which \n is a line break, or FILE:prompt.txt; not given: the run's
num_samples = 1  # how many texts; each has its own random numbers, seed + 0, 1, ...
max_new_tokens = 500  # length of each text in tokens; not given: the run's
temperature = 0.8  # below 1 safer, above 1 wilder; 0 = always the likeliest token; not given: the run's
top_k = 0  # choose among the k likeliest tokens; 0 = all; not given: the run's
top_p = 1.0  # choose among the likeliest tokens with this total probability; 1 = all; not given: the run's
stop = ""  # end a text before this string, in which \n is a line break
seed = 1337  # the same seed gives the same text
unknown = "error"  # characters that the tokenizer does not know: error | skip
stream = True  # show the text while it is generated; False: when it is complete
interactive = False  # ask for one prompt after another until Ctrl-D
chat = False  # keep a conversation until Ctrl-D: each line that is typed is what the user says
system = ""  # chat: the system prompt; '' = the default of the tokenizer's chat template
device = "auto"  # auto | cpu | cuda | cuda:N | mps
dtype = "auto"  # auto | float32 | bfloat16 | float16
# -----------------------------------------------------------------------------


def prompt_ids(tokenizer, text: str, unknown: str = "error", turns: bool = False) -> list[int]:
    """Encode a prompt as training text is encoded. The list is empty if nothing is left of it.

    unknown: what happens to characters that the tokenizer does not know. "error": ValueError that names them
    and their positions; "skip": they are left out. (Byte pairs know every character.)
    turns: the run has learned to close replies; see prompt_segments.
    """
    if unknown not in ("error", "skip"):
        raise ValueError(f"unknown={unknown} is not understood; expected error or skip")
    segments = prompt_segments(text, turns) if tokenizer.end_id >= 0 else [(text, 0)]
    return ids_of(begin(segments, tokenizer), tokenizer, unknown)


def stream_text(
    model, tokenizer, prompt, max_new_tokens, temperature, top_k, top_p, seed, stop: str | list[str] = ""
) -> Iterator[str]:
    """Yield the text that follows a prompt (a list of ids), piece by piece, in whole characters.

    Ends after max_new_tokens, at an end token, or before the text `stop`, or the first of several. An empty
    prompt is replaced by the end token (so a new document begins), or by a newline, or by id 0: the first
    that the tokenizer has.
    """
    ends = [tokenizer.end_id] if tokenizer.end_id >= 0 else []
    prompt = prompt or ends or prompt_ids(tokenizer, "\n", unknown="skip") or [0]
    stops = [text for text in ([stop] if isinstance(stop, str) else stop) if text]
    keep = max([0, *(len(text) - 1 for text in stops)])
    held = ""  # text that is not shown yet: it may be the beginning of a stop
    sampling = (max_new_tokens, temperature, top_k, top_p, seed)
    for _, piece in stream_pieces(model, tokenizer, prompt, *sampling):
        held += piece
        places = [held.index(text) for text in stops if text in held]
        if places:
            yield held[: min(places)]
            return
        safe = max(0, len(held) - keep)
        yield held[:safe]
        held = held[safe:]
    if held:
        yield held


def stream_pieces(
    model, tokenizer, prompt, max_new_tokens, temperature, top_k, top_p, seed
) -> Iterator[tuple[int, str]]:
    """Yield (id, its text) for each token that follows a prompt (a list of ids), until an end token.

    The texts are whole characters: one that spans several tokens comes with the last of them. If that is
    missing at the end, (-1, U+FFFD) follows.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    stops = tokenizer.stop_ids  # the end token, and the one that ends a turn in a chat template
    for (token,) in model.stream([prompt], max_new_tokens, temperature, top_k, top_p, stops, seed):
        yield token, decoder.decode(tokenizer.decode_bytes([token]))
    rest = decoder.decode(b"", final=True)
    if rest:
        yield -1, rest


def read_start(start: str) -> str:
    r"""Return the prompt: `start`, in which \n is a line break, or with FILE:path the text of that file."""
    if not start.startswith("FILE:"):
        return unescaped(start)
    path = Path(start.removeprefix("FILE:")).expanduser()
    try:
        document = documents_in(path)[0][0]  # told by its content, as the texts for training
        return "".join(document.pieces(2**18)).replace("\r\n", "\n")
    except (OSError, ValueError) as error:  # ValueError: no text, or a NUL in the name
        raise ValueError(f"the prompt file {path} cannot be read as UTF-8 text: {error}") from None


def unescaped(typed: str) -> str:
    r"""Replace \n by a line break, \t by a tab and \\ by a backslash: a shell hands on what was typed."""
    return re.sub(r"\\([nt\\])", lambda match: {"n": "\n", "t": "\t", "\\": "\\"}[match[1]], typed)


def read_stop(stop: str, tokenizer) -> str:
    r"""Return the text that ends a sample: `stop`, in which \n is a line break.

    ValueError if the tokenizer cannot write it, since then no text would ever end there. The end token ends
    every text anyway.
    """
    text = unescaped(stop)
    if text == END and tokenizer.end_id >= 0:
        return ""
    try:
        tokenizer.encode(text)
    except ValueError as error:
        raise ValueError(f"--stop={stop!r} can never be written: {error}") from None
    return text


def prompts() -> Iterator[str]:
    """Yield the prompts to answer: the setting `start`, or with --interactive each line of the input."""
    if not interactive:
        yield read_start(start)
        return
    yield from typed_lines("prompt> ")


def typed_lines(question: str) -> Iterator[str]:
    """Yield each line that is typed, or that comes through a pipe, until the end of the input."""
    while True:
        try:
            yield unescaped(input(question if sys.stdin.isatty() else ""))
        except EOFError:
            return


def talk(model, tokenizer, trained_on: str) -> None:
    """Keep a conversation (--chat) with the settings of this script. trained_on: the dataset's format."""
    block_size = model.config.block_size
    room, stop_text = min(max_new_tokens, block_size // 4), read_stop(stop, tokenizer)
    conversation = Conversation(tokenizer, block_size, room, unescaped(system), unknown)
    if not tokenizer.chat and trained_on != "jsonl":
        print("--- NOTE: this run was trained on text, not on conversations, and may go on without an answer")
    for number, text in enumerate(filter(str.strip, typed_lines("user> "))):
        try:
            prompt = conversation.ask(text)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)  # a bad line does not end the conversation
            continue
        n = conversation.forgotten
        if n:
            print(f"--- the window of {block_size} tokens is full: oldest turns that are forgotten: {n}")
        most = min(max_new_tokens, block_size + 1 - len(prompt))  # the last token is not read
        sampling = (most, temperature, top_k, top_p, seed + number, stop_text)
        reply = ""
        for piece in stream_text(model, tokenizer, prompt, *sampling):
            piece = piece if reply else piece.lstrip(" ")  # a template may begin a reply with a blank
            print(piece, end="", flush=stream)
            reply += piece
        print(flush=True)
        conversation.answer(reply)


if __name__ == "__main__":
    config = override(globals())
    at_least(1, config, "num_samples")
    at_least(int(chat), config, "max_new_tokens")
    for name in ("start", "num_samples", "interactive"):
        require(not chat or name not in given, f"--{name} is not for --chat, which reads what is typed")
    require(chat or not system, f"--system={system} is for --chat, which is not given")
    place = hardware.choose_device(device)
    folder = checkpoint.run_folder(out_dir)
    stages = Stages(f"reading {folder / file}")
    model, tokenizer, saved = checkpoint.load_model(folder / file, place)
    on_top = techniques.load("lora")[0].attach(model, adapter) if adapter else ""
    stages.end()
    use_saved(saved["config"])
    check_types(saved, {"val_loss": float}, file)
    check_types(saved["dataset"], {"name": str, "source": str, "sha256": str}, f"{file}: dataset")
    check_types(saved["dataset"], {"turns": bool}, f"{file}: dataset", required=False)
    stored = {"start": str, "max_new_tokens": int, "top_k": int, "temperature": float, "top_p": float}
    check_types(saved["config"], stored, f"{file}: config")
    # The weights are cast once. Autocast would cast all of them again for each token: with GPT-2's size on
    # 2 CPU cores that takes 70 ms a token; weights in bfloat16 take 29 ms, in float32 42 ms.
    model.to(getattr(torch, hardware.choose_precision(dtype, place)[1]))
    adopt(globals(), config, {name: saved["config"][name] for name in stored})
    stop_text = read_stop(stop, tokenizer)
    meta = saved["dataset"]
    loss = f"{saved['val_loss']:.4f}" if math.isfinite(saved["val_loss"]) else "not measured"
    print(f"--- {folder / file}: step {saved['step']}, val loss {loss}")
    if on_top:
        print(f"--- {on_top}")
    print(f"--- data: {meta['name']} ({meta['source']}), sha256 {meta['sha256'][:12]}")
    if chat:
        talk(model, tokenizer, meta.get("format", ""))
    for text in () if chat else prompts():
        try:
            may_skip = unknown if interactive or "start" in given else "skip"
            prompt = prompt_ids(tokenizer, text, may_skip, meta.get("turns", False))
        except ValueError as error:
            if tokenizer.kind == "char" and unknown == "error":
                error = ValueError(f"{error}, or use --unknown=skip")
            if not interactive:
                raise error from None
            print(f"error: {error}", file=sys.stderr)  # a bad line does not end the conversation
            continue
        began, tokens = time.perf_counter(), 0
        for i in range(num_samples):
            pieces = stream_text(
                model, tokenizer, prompt, max_new_tokens, temperature, top_k, top_p, seed + i, stop_text
            )
            if not stream:
                pieces = list(pieces)
            print(tokenizer.decode(prompt), end="", flush=stream)
            for piece in pieces:  # one for each token
                print(piece, end="", flush=stream)
                tokens += 1
            print("\n---", flush=True)
        print(f"{tokens / (time.perf_counter() - began):,.0f} tokens/s", file=sys.stderr)
    end_script()
