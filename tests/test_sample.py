"""Text out of a model: whole characters, exactly so many tokens, and nothing needed but the run's folder."""

import io
import random
import re
import sys

import pytest
import torch
import torch.nn.functional as F

import sample
import tokenizer
from model import GPT, GPTConfig
from runtime import checkpoint
from text import prepare

LETTERS = "abcdefgh ?"
KOREAN = "안녕하세요, 반갑습니다! 👩‍👩‍👧 🏳️‍🌈 e\u0301"


def random_model(V: int, block_size: int = 16, seed: int = 3) -> GPT:
    """Untrained, but far from uniform: its output layer begins at zero otherwise."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=V, block_size=block_size, n_layer=1, n_head=2, n_embd=16))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5)
    return model.eval()


@pytest.fixture
def written(run_script, tmp_path, capsys):
    """written(*flags): what sample.py writes about the run in tmp_path/out, without its two header lines."""

    def run(*flags: str) -> str:
        capsys.readouterr()
        run_script("sample.py", "--device=cpu", "--dtype=float32", *flags)
        lines = capsys.readouterr().out.splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith(("--- ", "settings:", "reading ")))

    return run


def save_run(folder, text_tokenizer, model=None, **settings) -> GPT:
    """A run whose model is random, unless one is given."""
    model = model or random_model(text_tokenizer.vocab_size)
    stored = dict(start="\n", max_new_tokens=20, temperature=1.0, top_k=0, top_p=1.0) | settings
    folder.mkdir(exist_ok=True)
    state = {
        "model": model.state_dict(),
        "model_config": vars(model.config),
        "tokenizer": text_tokenizer.to_json(),
        "dataset": {"name": "letters", "source": "verse, in place of shakespeare", "sha256": "ab" * 32},
        "config": stored,
        **dict(step=7, tokens=0, seconds=0.0, val_loss=1.5),
    }
    checkpoint.save(folder / "best.pt", state)
    return model


@pytest.fixture
def run(tmp_path) -> GPT:
    """The model of a run in tmp_path/out over ten letters."""
    return save_run(tmp_path / "out", tokenizer.CharTokenizer(LETTERS))


def bytes_and_end() -> tokenizer.BPETokenizer:
    return tokenizer.BPETokenizer([bytes([i]) for i in range(256)], (tokenizer.END,))


# ---- the script


def test_the_prompt_is_kept_and_exactly_300_tokens_follow(run, written):
    text = written("--start=bad cafe", "--max_new_tokens=300", "--seed=5")
    (ids,) = run.generate([[LETTERS.index(c) for c in "bad cafe"]], 300, seed=5)
    assert len(ids) == 308 > 3 * run.config.block_size
    assert text == "".join(LETTERS[i] for i in ids) + "\n---\n"


def test_a_prompt_longer_than_the_window_is_shown_whole(run, written):
    prompt = "abc def gh?" * 4
    assert re.fullmatch(re.escape(prompt) + ".{20}\n---\n", written(f"--start={prompt}"))


def test_the_header_names_the_run_and_its_data(run, run_script, tmp_path, capsys):
    run_script("sample.py", "--device=cpu")
    first, second = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--- ")]
    assert first == f"--- {tmp_path / 'out/best.pt'}: step 7, val loss 1.5000"
    assert second == "--- data: letters (verse, in place of shakespeare), sha256 abababababab"


def test_three_samples_are_three_single_runs(run, written):
    three = written("--num_samples=3", "--start=ab")
    singles = [written(f"--seed={seed}", "--start=ab") for seed in (1337, 1338, 1339)]
    assert three == "".join(singles)
    assert len(set(singles)) == 3


def test_text_shown_while_it_is_written_is_the_text_shown_at_once(run, written):
    assert written("--start=ab", "--stream=False") == written("--start=ab", "--stream=True")


def test_settings_of_the_run_are_used_unless_given(tmp_path, written):
    letters = tokenizer.CharTokenizer(LETTERS)
    save_run(tmp_path / "out", letters, temperature=0.5, top_k=4, max_new_tokens=50, start="had a ")
    stored = written()
    assert stored == written("--temperature=0.5", "--top_k=4", "--max_new_tokens=50", "--start=had a ")
    assert stored.startswith("had a ") and len(stored) == 6 + 50 + 5
    assert len({stored, written("--temperature=2.0"), written("--top_k=0"), written("--start=b")}) == 4
    assert len(written("--max_new_tokens=8")) == 6 + 8 + 5


def test_temperature_zero_and_top_k_one_are_the_likeliest(run, written):
    greedy = written("--start=ab", "--temperature=0")
    assert (
        greedy == written("--start=ab", "--top_k=1") == written("--start=ab", "--temperature=0", "--seed=1")
    )


def test_the_dataset_and_the_working_folder_do_not_matter(train, written, tmp_path, monkeypatch):
    train("--max_iters=2")
    monkeypatch.setattr(prepare, "DATASETS", tmp_path / "gone")
    before = written("--start=the", "--seed=2")
    monkeypatch.chdir(tmp_path)
    assert written("--start=the", "--seed=2", "--file=ckpt.pt") == before
    assert before.startswith("the") and len(before) == 3 + 20 + 5


def test_the_prompt_from_a_file(run, written, tmp_path):
    (tmp_path / "prompt.txt").write_text("feed a cab", encoding="utf-8")
    assert written(f"--start=FILE:{tmp_path / 'prompt.txt'}") == written("--start=feed a cab")
    with pytest.raises(ValueError, match="the prompt file .*none.txt cannot be read as UTF-8 text: "):
        written(f"--start=FILE:{tmp_path / 'none.txt'}")
    (tmp_path / "latin.txt").write_bytes("fäd".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.txt cannot be read as UTF-8 text"):
        written(f"--start=FILE:{tmp_path / 'latin.txt'}")


def test_unknown_characters_are_listed_or_skipped(run, written):
    with pytest.raises(ValueError, match="unknown characters: 'X' at position 1, 'é' at position 3"):
        written("--start=aXbé")
    assert written("--start=aXbé", "--unknown=skip") == written("--start=ab")
    with pytest.raises(ValueError, match="unknown=ignore is not understood; expected error or skip"):
        written("--start=a", "--unknown=ignore")


def test_an_empty_prompt_begins_a_document_or_a_line(run, written):
    bpe = [bytes([i]) for i in range(256)]
    for text_tokenizer, first in (
        (tokenizer.CharTokenizer("\nab", ("<|endoftext|>",)), [3]),
        (tokenizer.CharTokenizer("\t\nab"), [1]),
        (tokenizer.CharTokenizer(LETTERS), [0]),
        (tokenizer.BPETokenizer(bpe, ("<|endoftext|>",)), [256]),
        (tokenizer.BPETokenizer(bpe), [10]),
    ):
        assert sample.prompt_ids(text_tokenizer, "") == []
        model = Scripted([])
        assert pieces_of(text_tokenizer, model, prompt=[]) == []
        assert model.prompts == [first]
    assert re.fullmatch(".{20}\n---\n", written("--start="))  # nothing stands before the new tokens
    assert written() == written("--start=", "--unknown=skip")  # the stored start, a new line, is unknown here


def test_a_prompt_may_quote_the_end_token(tmp_path, written):
    bpe = tokenizer.BPETokenizer([bytes([i]) for i in range(256)], ("<|endoftext|>",))
    save_run(tmp_path / "out", bpe)
    assert written("--start=a <|endoftext|> b").startswith("a <|endoftext|> b")


def test_an_end_token_in_a_prompt_is_one_token_where_it_ends_a_document():
    """It was 13 characters, which the vocabulary may not even have."""
    for made in (tokenizer.CharTokenizer("abu:\n ", (tokenizer.END,)), bytes_and_end()):
        a, b, end, line = *made.encode("ab").tolist(), made.end_id, *made.encode("\n").tolist()
        for text, expected in {
            "<|endoftext|>": [end],
            "<|endoftext|>a": [end, a],
            "a\n<|endoftext|>\nb": [a, line, end, line, b],
            "a<|endoftext|>\nb\n": [a, end, line, b, line],
            "a<|endoftext|>": [a, end],
            "<|endoftext|><|endoftext|>\n": [end, end, line],
        }.items():
            assert sample.prompt_ids(made, text) == expected
    plain = tokenizer.BPETokenizer([bytes([i]) for i in range(256)])  # no end token: 13 characters, as ever
    assert len(sample.prompt_ids(plain, "<|endoftext|>")) == 13


def test_a_prompt_from_a_shell_has_line_breaks_and_tabs(run, tmp_path, written):
    r"""--start='a\nb' was read as a backslash and an n."""
    assert sample.read_start(r"a\nb\tc") == "a\nb\tc"
    assert sample.read_start(r"a\\nb\alpha\\") == r"a\nb\alpha" + "\\"  # \\ is a backslash; other names stay
    save_run(tmp_path / "out", tokenizer.CharTokenizer(LETTERS + "\n"))
    assert written(r"--start=a\nb").startswith("a\nb")
    (tmp_path / "prompt.txt").write_bytes(rb"a\nb")
    assert sample.read_start(f"FILE:{tmp_path / 'prompt.txt'}") == r"a\nb"  # a file is read as it is


def test_a_prompt_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbfab")
    assert sample.read_start(f"FILE:{tmp_path / 'prompt.txt'}") == "ab"


def test_a_typed_line_of_a_conversation_may_have_line_breaks(tmp_path, run_script, monkeypatch, capsys):
    save_run(tmp_path / "out", tokenizer.CharTokenizer(LETTERS + "\n"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\\nb\n"))
    run_script("sample.py", "--device=cpu", "--interactive", "--max_new_tokens=5")
    assert "\na\nb" in capsys.readouterr().out


def test_a_stop_text_from_a_shell_may_be_a_line_break():
    r"""--stop='\n' was two characters, so no text ended there."""
    made = tokenizer.CharTokenizer("ab\n")
    assert sample.read_stop(r"\n", made) == "\n"
    assert sample.read_stop("", made) == ""


def test_a_stop_text_that_cannot_be_written_is_refused(run, written):
    """It was taken, and no text ever ended."""
    with pytest.raises(ValueError, match=r"--stop='aX' can never be written: unknown characters: 'X' at"):
        written("--start=a", "--stop=aX")
    with pytest.raises(ValueError, match=r"unknown characters: '\\n' at position 0"):
        written("--start=a", r"--stop=\n")


def test_the_end_token_as_a_stop_text_is_where_a_text_ends_anyway():
    letters = tokenizer.CharTokenizer(LETTERS, (tokenizer.END,))
    assert sample.read_stop("<|endoftext|>", letters) == ""
    with pytest.raises(ValueError, match="unknown characters: '<' at position 0"):
        sample.read_stop("<|endoftext|>", tokenizer.CharTokenizer(LETTERS))


def test_advice_for_an_unknown_character_names_a_setting_of_this_script(run, written, train):
    """sample.py said "use --tokenizer=bpe", which it does not have."""
    with pytest.raises(ValueError, match="'X' at position 1; .*, or use --unknown=skip$"):
        written("--start=aX")
    with pytest.raises(ValueError, match="unknown characters: '€' at position 0; ") as error:
        train("--start=€")
    assert "--unknown" not in str(error.value)


def test_impossible_numbers_are_refused(run, written):
    for flag in ("--num_samples=0", "--max_new_tokens=-1", "--top_p=0", "--temperature=-1", "--top_k=-3"):
        with pytest.raises(ValueError, match=flag[2:].split("=")[0]):
            written(flag)


def test_bytes_and_emoji_are_prompts_for_byte_pairs(tmp_path, written):
    bpe = tokenizer.BPETokenizer.train([KOREAN * 20], 300)
    model = save_run(tmp_path / "out", bpe)
    text = written(f"--start={KOREAN}", "--max_new_tokens=40")
    assert text.startswith(KOREAN)
    (ids,) = model.generate([bpe.encode(KOREAN).tolist()], 40, seed=1337)
    assert text == bpe.decode(ids) + "\n---\n"


# ---- a conversation


@pytest.mark.slow
def test_two_prompts_then_the_end_of_input(run, tmp_path, shell):
    flags = ("--interactive", "--device=cpu", "--dtype=float32", f"--out_dir={tmp_path / 'out'}")
    done = shell("sample.py", *flags, input="bad\ncafe\n")
    assert done.returncode == 0
    first, second, rest = done.stdout.split("\n---\n")
    assert re.search(r"\nbad.{20}$", first)
    assert re.fullmatch("cafe.{20}", second)
    assert rest == ""
    assert re.fullmatch(r"([\d,]+ tokens/s\n){2}", done.stderr)


def test_a_bad_line_does_not_end_the_conversation(run, run_script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("bad\nWRONG\n\ncafe"))
    run_script("sample.py", "--device=cpu", "--interactive", "--max_new_tokens=5")
    text = capsys.readouterr()
    assert text.out.count("\n---\n") == 3  # an empty line is an empty prompt
    assert "error: unknown characters: 'W' at position 0" in text.err


# ---- streaming: whole characters, stop text, end token


class Scripted:
    """A model that writes the given ids."""

    def __init__(self, ids):
        self.ids = list(ids)

    def stream(self, prompts, max_new_tokens, temperature, top_k, top_p, stop_tokens, seed):
        self.prompts = prompts
        for i in self.ids[:max_new_tokens]:
            if i in stop_tokens:
                return
            yield [i]


def pieces_of(text_tokenizer, model, stop="", prompt=(0,)) -> list[str]:
    sampling = dict(max_new_tokens=1000, temperature=1.0, top_k=0, top_p=1.0, seed=1)
    return list(sample.stream_text(model, text_tokenizer, list(prompt), **sampling, stop=stop))


@pytest.mark.parametrize("vocab_size", [256, 262, 300])
def test_streamed_text_is_the_whole_text_for_emoji_and_hangul(vocab_size):
    """With 256 tokens every character is spread over 3 or 4 of them, with 300 some tokens are whole words."""
    bpe = tokenizer.BPETokenizer.train([KOREAN * 20], vocab_size)
    pieces = pieces_of(bpe, Scripted(bpe.encode(KOREAN)))
    assert "".join(pieces) == KOREAN
    assert "\ufffd" not in "".join(pieces)  # never half a character
    assert len([piece for piece in pieces if piece]) > 5


def test_streamed_text_is_the_whole_text_for_any_bytes():
    bpe = tokenizer.BPETokenizer([bytes([i]) for i in range(256)])
    rng = random.Random(0)
    for _ in range(200):
        ids = rng.choices(range(256), k=30) + [0xF0, 0x9F]  # ends in the middle of a character
        assert "".join(pieces_of(bpe, Scripted(ids))) == bpe.decode(ids)


@pytest.mark.parametrize("stop", ["", "?", "b?", "ab?", "?a", "h", "zz"])
def test_stop_text_ends_before_itself_however_it_is_cut_into_pieces(stop):
    text = "a cab?ab? abab?ah"
    expected = text.split(stop)[0] if stop else text
    for vocab_size in (256, 258, 265):
        bpe = tokenizer.BPETokenizer.train([text * 5], vocab_size)
        pieces = pieces_of(bpe, Scripted(bpe.encode(text)), stop)
        assert "".join(pieces) == expected
        for n in range(len(pieces)):
            assert expected.startswith("".join(pieces[:n]))  # nothing of the stop text was shown before


def test_a_stop_text_in_the_last_piece_was_shown():
    """Half a character at the end is U+FFFD, and comes when all tokens have been written."""
    bpe = tokenizer.BPETokenizer([bytes([i]) for i in range(256)])
    assert "".join(pieces_of(bpe, Scripted([65, 0xC3]), stop="\ufffd")) == "A"


def test_stop_text_in_the_prompt_does_not_count(run, written):
    text = written("--start=a?", "--stop=?", "--max_new_tokens=200")
    assert text.startswith("a?") and text.count("?") == 1 and text.endswith("\n---\n")
    assert len(text) < 200
    whole = written("--start=a?", "--max_new_tokens=200")
    assert whole.startswith(text.removesuffix("\n---\n"))


def test_a_model_that_learnt_three_rows_ends_at_its_end_token():
    rows = ["fed", "a bad cab", "head ache"]
    letters = tokenizer.CharTokenizer(LETTERS, ("<|endoftext|>",))
    ids = [[letters.end_id, *letters.encode(row).tolist(), letters.end_id] for row in rows]
    y = torch.tensor([row[1:] + [-1] * (11 - len(row)) for row in ids])
    x = torch.tensor([row[:-1] + [0] * (11 - len(row)) for row in ids])
    torch.manual_seed(1)
    model = GPT(GPTConfig(vocab_size=letters.vocab_size, block_size=16, n_layer=1, n_head=2, n_embd=32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    sampling = dict(max_new_tokens=100, temperature=0.0, top_k=0, top_p=1.0, seed=1)
    for prompt, end in (("f", "ed"), ("a ", "bad cab"), ("head", " ache")):
        prompt = sample.prompt_ids(letters, prompt)
        assert "".join(sample.stream_text(model, letters, [letters.end_id, *prompt], **sampling)) == end
    text = "".join(sample.stream_text(model, letters, [], **sampling))
    assert text in rows


def test_the_sample_of_train_py_is_that_of_sample_py(train, written, capsys):
    train("--max_iters=3", "--start=the ", "--max_new_tokens=40", "--temperature=0.9", "--top_k=5")
    text = capsys.readouterr().out
    shown = re.search(r"--- a sample at step 3 .*?\n(.*)\n---\n", text, re.DOTALL)[1]
    assert written("--file=ckpt.pt") == shown + "\n---\n"


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"token ids \[10\] are outside the vocabulary of 10"):
        list(random_model(10).stream([[10]], 1))
