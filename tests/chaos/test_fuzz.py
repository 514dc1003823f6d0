"""Random input of every kind ends well: in what was asked for, or in one line that says what is wrong.

hypothesis draws the cases, most of them nearly right. Each check_* is a property. fuzz.py gives those that
take bytes to atheris, which watches what lines of code its inputs reach.
"""

import ast
import contextlib
import functools
import io
import json
import math
import os
import pickle
import re
import sys
import unicodedata
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

import config
import sample
import tokenizer
from conftest import ROOT, needs
from model import ARCHS
from runtime import checkpoint
from test_disk import flat
from test_errors import report
from test_hostile import Canary
from test_model import tiny, uncached
from text import corpora, formats
from text.segments import LEARNED

hypothesis = needs("hypothesis")
st = hypothesis.strategies
pytestmark = pytest.mark.slow
SCRIPTS = ("train.py", "data.py", "sample.py", "evaluate.py", "bench.py")


@pytest.fixture
def fuzz(pytestconfig, figure, tmp_path, monkeypatch):
    """fuzz(n, "argument lists", check, cases) calls check(*case) for n of the cases; with --long, for 10 n.

    check returns a word for how it ended. "fine" and "refused" have to come in one case of 50 at least: if
    nearly all were refused, little would be shown. Without --long the cases change with the code only.
    """
    long = pytestconfig.getoption("--long", default=False)
    monkeypatch.chdir(tmp_path)
    # its tables of characters go here, not into the project
    hypothesis.configuration.set_hypothesis_home_dir(tmp_path)

    def run(n: int, name: str, check, cases: st.SearchStrategy) -> None:
        ended = Counter()

        @hypothesis.settings(
            max_examples=n * (10 if long else 1),
            derandomize=not long,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(cases)
        def one(case: tuple) -> None:
            sys.set_int_max_str_digits(sys.int_info.default_max_str_digits)  # hypothesis lifts it
            ended[check(*case)] += 1

        one()
        total = sum(ended.values())
        figure(f"fuzz: {total:,} {name}: " + ", ".join(f"{n:,} {end}" for end, n in ended.most_common()))
        assert min(ended["fine"], ended["refused"]) >= total / 50

    return run


@contextlib.contextmanager
def as_a_script(*argv: str):
    """What a script finds at its start; yields its stdout and stderr, to be read."""
    said = io.TextIOWrapper(io.BytesIO(), encoding="ascii")  # as in the C locale
    with (
        patch.object(sys, "argv", list(argv)),
        patch.object(sys, "excepthook", config.one_line_errors),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        yield said


def one_line(error: Exception) -> str:
    """The one line that people would see. What is no mistake of theirs is raised again."""
    with as_a_script() as said:
        said.reconfigure(encoding="utf-8", errors="replace")  # as override() does
        code = report(error)
    said.seek(0)
    line = said.read()
    if code != 2 or not line.startswith("error: ") or line.count("\n") != 1:
        raise error
    return line


def fresh(path: str | Path) -> Path:
    """The path without its file. On ext4 it takes 3 ms to write over a file, 0.06 to write a new one."""
    Path(path).unlink(missing_ok=True)
    return Path(path)


# ---- the command line and config files
read_comments = functools.cache(config.read_comments)  # 5 ms for train.py


@functools.cache
def start_of(script: str) -> dict:
    """The globals of a script when it calls override()."""
    path = ROOT / script
    names = read_comments(str(path))
    found = {"__file__": str(path), "__doc__": ""}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        name = ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else ""
        if name in names and name not in found:
            found[name] = ast.literal_eval(node.value)
    return found


def check_arguments(script: str, arguments: list[str | bytes]) -> str:
    """Settings of the right types, or one line. Bytes stand for a config file and are what is in it."""
    argv = list(arguments)
    for i, content in enumerate(arguments):
        if isinstance(content, bytes):
            argv[i] = f"file_{i}.py"
            fresh(argv[i]).write_bytes(content)
    before = start_of(script)
    found = dict(before)
    try:
        with as_a_script(script, *argv), patch.object(config, "read_comments", read_comments):
            changed = config.override(found)
    except SystemExit as end:
        assert end.code == 0 and {"-h", "--help"} & {*argv}
        return "helped"
    except Exception as error:
        one_line(error)
        return "refused"
    assert found.keys() == before.keys() == {"__file__", "__doc__", *changed}
    for name, value in changed.items():
        assert type(value) is type(before[name]) and found[name] is value, name
        if isinstance(value, str):
            assert "\0" not in value.encode().decode(), name  # it can be printed, saved, or name a file
        elif not isinstance(value, dict):
            assert -(2**63) <= value < 2**63, name
    return "fine"


WORDS = ["", " ", "0", "1", "-1", "true", "False", "yes", "None", "nan", "-inf", "1e400", "1e-400", "0x10"]
WORDS += ["١٢", "1_000", "1__0", "9" * 30, "9" * 5000, "1.5", "1e3", "=", "a=b", "\n", "\x1b[0m", "\u2028"]
WORDS += ["é", "🐍", "\udcff", "\ud800", "x" * 300, "a/" * 3000, "'1'", "config/tiny.py", "train.py", ".."]
WORDS += ["-h", "--", "-"]
CODE = ["True", "None", "1.5", "-1", "'é\\n'", "'\\ud800'", "'\\0'", "b'x'", "1j", "[1]", "{}", "(1,)", "n"]
CODE += ["nan", "float('nan')", "float('inf')", "10**30", "10**400", "10**5000", "[10**5000]", "1 / 0"]
CODE += ["int", "print", "dataset + seed", "lambda: 0", "type('T', (int,), {})(1)"]
CODE += ["type('T', (), {'__repr__': None})()", "open('none')", "(lambda f: f(f))(lambda f: f(f))"]
CODE += ["[0] * 10**5", "-" * 5000 + "1", "(" * 300, "'"]
LINES = ["{}: object = {}", "{} += {}", "({} := {})", "for {} in [{}]: pass", "del {}  # {}"]
LINES += ["import sys as {}", "def {}(): {}", "class {}: x = {}", "_{} = {}"]
LINES += ["raise SystemExit({1})  # {0}", "# {}: {}", "if {} == {}: pass", "{} {}", "\t{} = {}"]
LINES += ["global {}; {}", "from config.tiny import {}  # {}"]
STARTS = [b""] * 20 + [b"\xef\xbb\xbf", b"# coding: latin-1\n", b"# coding: x\n", b"\xff\xfe", b"\0", b"PK"]
ODD = ["-h", "--help", "--", "-", "--{}", "-{}=1", "{}=1", "---{}=1", "--{} =1", "-h=1", "--=1"]
ODD += ["config/tiny.py"]
ARGUMENT = st.text(st.characters(exclude_characters="\0"), max_size=8)  # no argument can hold it
WORD = st.sampled_from(WORDS) | ARGUMENT | st.integers().map(str) | st.floats().map(str)
RIGHT = {
    bool: st.booleans(),
    int: st.integers(-5, 10**4),
    float: st.floats(-1e9, 1e9) | st.integers(-5, 5),
    str: st.text("abc /.=\n-é🐍", max_size=8),
    dict: st.dictionaries(st.integers(1, 99), st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=2),
}


@st.composite
def argument_lists(draw) -> tuple[str, list[str | bytes]]:
    script = draw(st.sampled_from(SCRIPTS))
    defaults = {name: value for name, value in start_of(script).items() if not name.startswith("_")}
    names = st.sampled_from(list(defaults))

    def line() -> str:
        name = draw(names)
        if draw(st.integers(0, 3)):
            return f"{name} = {draw(RIGHT[type(defaults[name])])!r}"
        if draw(st.booleans()):
            return f"{name} = {draw(st.sampled_from(CODE))}"
        return draw(st.sampled_from(LINES)).format(name, draw(st.sampled_from(CODE) | WORD))

    def config_file() -> bytes:
        start = draw(st.sampled_from(STARTS))
        encoding = "latin-1" if b"latin" in start else "utf-8"
        lines = "\n".join(line() for _ in range(draw(st.integers(0, 3))))
        return start + lines.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")

    def argument() -> str | bytes:
        name, kind = draw(names), draw(st.integers(0, 15))
        if kind < 9:
            return f"--{name}={draw(RIGHT[type(defaults[name])])}"
        if kind == 9:
            return f"--{name}={draw(WORD)}"
        if kind == 10:  # a letter of the name is missing, or another
            place = draw(st.integers(0, len(name) - 1))
            return f"--{name[:place]}{draw(ARGUMENT)[:1]}{name[place + 1 :]}=1"
        if kind == 11:
            return draw(st.sampled_from(ODD)).format(name) if draw(st.booleans()) else draw(WORD)
        return config_file()

    return script, [argument() for _ in range(draw(st.integers(0, 4)))]


def test_arguments_and_config_files(fuzz):
    fuzz(5_000, "argument lists", check_arguments, argument_lists())


# ---- tokenizers
PIECES = ["a", "ab", " the", "e\u0301", "你好", "🐍", "👩‍👩‍👧", "'s", "123", "  ", "\n\n", "\r\n", "\0"]
PIECES += ["\x85", "\\x41", "\u2028", "\ufeff", '"', tokenizer.END, "<|end|>", "<|end|>x"]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join)
NAMES = st.lists(
    st.sampled_from([tokenizer.END, "<|end|>", "<|end|>x", "a", "(.*)", "§"]), max_size=3, unique=True
)
WRONG = ["\ud800", "a\udcff", ""]
known_in_2002 = unicodedata.ucd_3_2_0.category  # both splitters know these characters (see GPT2_PATTERN)


def check_tokenizer(kind: str, chunks: list[str], text: str, names: list[str], size: int) -> str:
    """What is encoded is decoded to the same, in three ways; the fast way gives the ids of the slow one."""
    try:
        with as_a_script():
            if kind == "char":
                ours = tokenizer.CharTokenizer.train(chunks, tuple(names))
            else:
                ours = tokenizer.BPETokenizer.train(chunks, size, tuple(names))
        plain = ours.encode(text)
    except ValueError as error:
        surrogate = re.search("[\ud800-\udfff]", "".join([*chunks, *names, text]))
        unknown = kind == "char" and set(text) - set("".join(chunks))
        too_few = kind == "bpe" and size < 256 + len(names)
        assert surrogate or unknown or too_few or "" in names or len({*names}) < len(names), error
        assert "\n" not in str(error)
        return "refused"
    special = ours.encode(text, allow_special=True)
    assert ours.decode(plain) == ours.decode(special) == text
    assert all(i < ours.vocab_size for i in special)
    assert not {*plain.tolist()} & {*ours.special_tokens.values()}
    if kind == "bpe" and not any(known_in_2002(c) == "Cn" for c in text):
        assert ours.encode_slowly(text) == plain.tolist()
    ours.save(fresh("tokenizer.json"))
    again = tokenizer.load("tokenizer.json")
    assert again.hash == ours.hash and again.encode(text).tolist() == plain.tolist()
    return "fine"


@st.composite
def texts(draw) -> tuple:
    """A kind, chunks to train on, a text (often of the same characters), special tokens, a vocabulary."""
    kind = draw(st.sampled_from(["char", "bpe"]))
    chunks, names = draw(st.lists(TEXT, max_size=3)), draw(NAMES)
    known = "".join(chunks) or "a"
    text = draw(TEXT) if draw(st.integers(0, 3)) == 0 else draw(st.text(st.sampled_from(known)))
    match draw(st.integers(0, 19)):
        case 0:
            names.append(draw(st.sampled_from(WRONG)))
        case 1:
            text += draw(st.sampled_from(WRONG))
        case 2:
            chunks.append(draw(st.sampled_from(WRONG)))
    return kind, chunks, text, names, draw(st.integers(255, 300))


def test_tokenizers(fuzz):
    fuzz(800, "texts through tokenizers trained on others", check_tokenizer, texts())


def check_tokenizer_file(content: bytes) -> str:
    """A tokenizer that loses nothing, or one line that names the file."""
    path = fresh("mutated.json")
    path.write_bytes(content)
    try:
        ours = tokenizer.load(path)
    except Exception as error:
        assert str(path) in one_line(error)
        return "refused"
    assert tokenizer.from_json(ours.to_json()).hash == ours.hash
    text = "".join(ours.tokens[i].decode("utf-8", "ignore") for i in range(len(ours.tokens)))
    assert ours.decode(ours.encode(text)) == text
    return "fine"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(PIECES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
DEEP = [b"[" * 5000, b'{"a":' * 5000, b"[" * 300 + b"]" * 300, b"9" * 5000, b"1e999", b"NaN", b"\xff"]
DEEP += [b"\xef\xbb\xbf"]


@st.composite
def mutated(draw, original: bytes) -> bytes:
    """A file with up to three bytes or stretches of it changed, left out, doubled, or the rest cut off."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3]))):
        place = draw(st.integers(0, len(original)))
        length = draw(st.integers(0, 4))
        new = draw(st.binary(max_size=4) | st.sampled_from(DEEP) | st.just(original[place : place + 40]))
        after = original[place + length :] if draw(st.integers(0, 9)) else b""
        original = original[:place] + new + after
    return original


@st.composite
def tokenizer_files(draw) -> tuple[bytes]:
    state = json.loads(draw(st.sampled_from([CHARACTERS, PAIRS])).to_json())
    change = draw(st.integers(0, 9))
    if change < 3:
        state[draw(st.sampled_from(list(state)))] = draw(JSON)
    elif change < 7:
        tokens = state["tokens"]
        tokens[draw(st.integers(0, len(tokens) - 1))] = draw(JSON | st.text(max_size=2))
    return (draw(mutated(json.dumps(state, ensure_ascii=draw(st.booleans())).encode("utf-8"))),)


CHARACTERS = tokenizer.CharTokenizer("\n\\ abcé", (tokenizer.END,))
PAIRS = tokenizer.BPETokenizer.train(["low lower lowest"], 262, (tokenizer.END,))


def test_tokenizer_files(fuzz):
    fuzz(500, "mutated tokenizer.json", check_tokenizer_file, tokenizer_files())


# ---- rows of JSONL
def check_rows(content: bytes) -> str:
    """Rows, or one line that names the file and the first line (row of a list, byte) that is wrong."""
    path = fresh("rows.jsonl")
    path.write_bytes(content)
    plain = BOM not in content and b"\0" not in content and content[:2] not in WIDE_BOMS  # can only be UTF-8
    try:
        rows = list(formats.Source(corpora.open_corpus(str(path)), "jsonl"))
    except Exception as error:
        line = one_line(error)
        wrong = re.search(
            r"rows\.jsonl(?: (line|row) (\d+): |: not UTF-(?:8|16|32)\S* at byte |: no text in this file|"
            r": .* list| holds NUL | is a | cannot be unpacked)",
            line,
        )
        assert wrong, line
        if wrong[1] == "line" and plain:
            assert int(wrong[2]) == first_bad_line(content)
        return "refused"
    for segments, ends_document in rows:
        learned = [text for text, what in segments if what & LEARNED]
        assert learned and "" not in learned
        assert "".join(text for text, _ in segments).encode("utf-8") and ends_document
    assert first_bad_line(content) == 0 or not plain
    return "fine"


BOM = "\ufeff".encode()
WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-16; UTF-32's have NUL


def first_bad_line(content: bytes) -> int:
    """As slow and plain as can be; 0 if there is none."""
    if content.strip().startswith(b"["):
        try:
            json.loads(content.decode("utf-8"))
        except json.JSONDecodeError as error:
            return error.lineno
        return 0
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            if line.strip(b" \t\r"):
                formats.segments_of(json.loads(line.decode("utf-8")))
        except (ValueError, RecursionError):
            return number
    return 0


SHORT = st.text(max_size=5) | st.sampled_from(PIECES)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "x"]), "content": SHORT}
)
ROW = st.one_of(
    st.fixed_dictionaries({"text": SHORT}),
    st.fixed_dictionaries({"prompt": SHORT, "response": SHORT}),
    st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=3)}),
)


@st.composite
def row_files(draw) -> tuple[bytes]:
    rows = [{"text": "a"}] * draw(st.integers(0, 2)) + draw(st.lists(ROW, max_size=3))
    if draw(st.integers(0, 5)) == 0:
        rows.insert(draw(st.integers(0, len(rows))), draw(JSON))
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\n\n", "\n \t\n"]))
    begin = draw(st.sampled_from(["", end]))
    if draw(st.integers(0, 5)) == 0:
        content = begin + json.dumps(rows, indent=draw(st.sampled_from([None, 1])))
    else:
        as_ascii = draw(st.booleans())
        content = begin + end.join(json.dumps(row, ensure_ascii=as_ascii) for row in rows)
    return (draw(mutated(content.encode("utf-8", "surrogatepass"))),)


def test_rows_of_jsonl(fuzz):
    fuzz(1_000, "files of JSON rows", check_rows, row_files())


# ---- checkpoints: OUT is what a run has saved, the mutated copy lies in its place
OUT = Path("out/ckpt.pt")
PLACE = st.integers(0, 10**7)  # modulo the length of what is edited
FLIPPED = st.tuples(PLACE, st.just(1), st.binary(min_size=1, max_size=1))
EDITS = st.lists(FLIPPED | st.tuples(PLACE, st.integers(0, 2), st.binary(max_size=2)), min_size=1, max_size=3)


def changed(content: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Stretches of 0 to 2 bytes replaced."""
    for place, length, new in edits:
        place %= len(content) + 1
        content = content[:place] + new + content[place + length :]
    return content


def check_torn(edits: list, last: float) -> str:
    """One line, or the same content bit for bit. last: how much of the file is there."""
    content, whole = saved_run()
    content = changed(content, edits)
    fresh(OUT).write_bytes(content[: math.ceil(last * len(content))])
    try:
        assert flat(checkpoint.load(OUT)) == whole
    except Exception as error:
        assert str(OUT) in one_line(error)
        return "refused"
    return "fine"


@functools.cache
def saved_run() -> tuple[bytes, dict]:
    """The bytes of the file, and what they say."""
    return OUT.read_bytes(), flat(checkpoint.load(OUT))


def check_rewritten(what: str, member: int, other: int, packed: bool, edits: list) -> str:
    """A zip file made anew, with one member changed and all sums right: one line, or a model."""
    with zipfile.ZipFile(io.BytesIO(saved_run()[0])) as old:
        members = [[name, old.read(name)] for name in old.namelist()]
    if what == "left out":
        del members[member % len(members)]
    else:
        one, another = members[member % len(members)], members[other % len(members)]
        one[0] += "x" * (what == "renamed")
        new = {"another": another[1], "code": pickle.dumps(Canary()), "edited": changed(one[1], edits)}
        one[1] = new.get(what, one[1])
        if what == "twice":
            members.append([one[0], another[1]])
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(fresh(OUT), "w", method) as file:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, content in members:
            file.writestr(name, content)
    return a_model_or_one_line()


def check_edited(turns: list[int], value) -> str:
    """A checkpoint with another value somewhere in it: one line, or a model. turns: the way to the place."""
    saved = torch.load(io.BytesIO(saved_run()[0]), weights_only=True)
    inside = saved
    for turn in turns:
        keys = list(inside) if isinstance(inside, dict) else range(len(inside))
        key = keys[turn % len(keys)]
        if not isinstance(inside[key], (dict, list)) or not inside[key]:
            break
        inside, outer = inside[key], inside
    else:
        inside = outer
    inside[key] = value
    torch.save(saved, fresh(OUT))
    return a_model_or_one_line()


def a_model_or_one_line() -> str:
    """For what a stranger may write. Weights may be huge: then the logits are what is wrong."""
    try:
        checkpoint.load(OUT, shards=True)
        model, letters, _ = checkpoint.load_model(OUT, torch.device("cpu"))
        assert letters.decode(model.generate([[0]], 2)[0])
    except Exception as error:
        assert re.search(f"{OUT}|the logits are NaN or infinite", one_line(error))
        return "refused"
    finally:
        assert not Path("canary").exists()  # else code that was pickled has run
    return "fine"


OTHERS = [-1, 0, 1, 2, 3, 32, 10**6, 2**53, 2**63, 10**30, 0.5, 1e30, -1.0, math.nan, math.inf, True, None]
OTHERS += ["", "x", [], {}, [1], {"a": 1}, Canary(), torch.zeros(2), torch.zeros(1).expand(10**9)]
OTHERS += [torch.ones(32, 32)]


def test_checkpoints(fuzz, train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train("--max_iters=2")
    Path("out/best.pt").unlink()  # no other that loads
    saved_run.cache_clear()
    edits = st.lists(FLIPPED, min_size=1, max_size=2) | EDITS
    fuzz(150, "torn checkpoints", check_torn, st.tuples(edits, st.just(1.0) | st.floats(0, 1)))

    whats = st.sampled_from(["left out", "renamed", "another", "twice", "code", "edited", "edited", "edited"])
    member = st.just(0) | st.integers(0, 99)  # the first is the pickle
    cases = st.tuples(whats, member, st.integers(0, 99), st.sampled_from([False] * 9 + [True]), EDITS)
    fuzz(150, "checkpoints with other members", check_rewritten, cases)

    turns = st.lists(st.integers(0, 99), min_size=1, max_size=5)
    cases = st.tuples(turns, st.sampled_from(OTHERS) | JSON)
    fuzz(150, "checkpoints with other values", check_edited, cases)


# ---- generation
SHAPE = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(1, 26) | st.just(257),
        "block_size": st.integers(1, 9),
        "n_layer": st.integers(1, 2),
        "norm": st.sampled_from(["", "layernorm", "rmsnorm"]),
        "position": st.sampled_from(["", "learned", "rope"]),
        "activation": st.sampled_from(["", "gelu", "relu2", "swiglu"]),
        "bias": st.booleans(),
        "logit_cap": st.sampled_from([-1.0, 0.0, 15.0]),
        "n_ff": st.sampled_from([0, 1, 8]),
        **{name: st.integers(-1, 1) for name in ("token_shift", "tie_weights", "zero_init")},
        "qk_norm": st.integers(-1, 2),
    }
)
SAMPLING = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.1, 0.8, 1.0, 3.0, 1e9]),
        "top_k": st.sampled_from([0, 0, 1, 2, 5, 2**62]),
        "top_p": st.sampled_from([1.0, 1.0, 0.9, 0.3, 1e-9]),
        "seed": st.integers(0, 9) | st.sampled_from([-(2**63), -1, 2**63 - 1]),
        "max_new_tokens": st.integers(0, 12),
    }
)
SIZES = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_kv_head")
ILLEGAL_SHAPES = [*((name, -1) for name in SIZES), ("n_kv_head", 3), ("n_embd", 0)]
ILLEGAL_SHAPES += [("norm", "batchnorm"), ("qk_norm", 3), ("logit_cap", math.nan)]
ILLEGAL_SAMPLING = [("temperature", -0.1), ("temperature", math.nan), ("top_k", -1), ("top_p", 0.0)]
ILLEGAL_SAMPLING += [("top_p", 1.1), ("top_p", math.nan), ("max_new_tokens", -1)]
BYTES = tokenizer.BPETokenizer([bytes([i]) for i in range(256)], (tokenizer.END,))


@st.composite
def generations(draw) -> tuple:
    shape, sampling, illegal = draw(SHAPE), draw(SAMPLING), draw(st.sampled_from([3] * 9 + [0, 1, 2]))
    shape["n_kv_head"] = draw(st.integers(1, 2))
    shape["n_head"] = shape["n_kv_head"] * draw(st.integers(1, 2))
    shape["n_embd"] = shape["n_head"] * draw(st.sampled_from([2, 4, 8]))
    prompt = draw(st.lists(st.integers(0, shape["vocab_size"] - 1), min_size=1, max_size=14))
    if illegal == 0:
        shape |= [draw(st.sampled_from(ILLEGAL_SHAPES))]
    elif illegal == 1:
        sampling |= [draw(st.sampled_from(ILLEGAL_SAMPLING))]
    elif illegal == 2:
        prompt = draw(st.sampled_from([[], [*prompt, 257], [-1, *prompt], [10**30]]))
    return draw(st.sampled_from(list(ARCHS))), shape, prompt, sampling, illegal < 3


def check_generation(arch: str, shape: dict, prompt: list[int], sampling: dict, illegal: bool) -> str:
    """New ids of the vocabulary, twice the same, with a cache as without, and their text; or one line."""
    try:
        model = tiny(arch, **shape).double()  # rounded to float32, both ways may draw different tokens
        (row,) = model.generate([prompt], **sampling)
    except Exception as error:
        assert one_line(error) and illegal
        return "refused"
    assert not illegal
    n, V = sampling["max_new_tokens"], shape["vocab_size"]
    new = row[len(prompt) :]
    assert row[: len(prompt)] == prompt and len(new) == n and all(0 <= i < V for i in new)
    assert model.generate([prompt], **sampling) == [row]
    plain = {name: value for name, value in sampling.items() if name != "max_new_tokens"}
    assert uncached(model, prompt, n, **plain) == row

    letters = BYTES if V == 257 else tokenizer.CharTokenizer("abcdefghijklmnopqrstuvwxyz"[:V])
    if letters.end_id in new:
        new = new[: new.index(letters.end_id)]
    text = letters.decode(new)
    for stop in ("", "e", "\ufffd", text[-3:-1]):
        pieces = list(sample.stream_text(model, letters, prompt, **sampling, stop=stop))
        assert "".join(pieces) == (text.split(stop)[0] if stop else text)
    return "fine"


def test_generation(fuzz):
    fuzz(200, "models and prompts", check_generation, generations())


# ---- the same, led by what was reached
@pytest.mark.needs("atheris")  # has no wheel for some machines and versions of Python
def test_coverage_guided(pytestconfig, figure, shell, tmp_path):
    """fuzz.py in a process of its own, which ends with exit code 77 and a traceback at a broken property."""
    runs = 100_000 if pytestconfig.getoption("--long", default=False) else 10_000
    (tmp_path / "seeds").mkdir()
    folders = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/chaos")))
    done = shell(
        str(ROOT / "tests/chaos/fuzz.py"),
        *("seeds", f"-runs={runs}", "-seed=1", "-max_len=300", "-timeout=20"),
        cwd=tmp_path,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": folders},
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[said.find("=== Uncaught") :][:3000]
    (reached,) = re.findall(r"DONE +cov: (\d+)", done.stderr)
    figure(f"fuzz: {runs:,} inputs of a coverage-guided fuzzer, {reached} branches reached")
