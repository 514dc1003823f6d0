"""segments.py and what follows from it: every reply ends in a learned token, and END divides documents."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
import sample
import tokenizer
from model import GPT, GPTConfig
from test_data import decode, read_ids, read_mask, samples, write, write_rows
from text import formats, prepare, segments
from text.corpora import open_corpus
from tokenizer import END

THINGS = ["stone", "lamp", "river", "bread", "cloud"]
COLOURS = ["red", "blue", "grey", "green", "pink"]


@pytest.fixture(autouse=True)
def own_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "DATASETS", tmp_path / "datasets")
    return tmp_path / "datasets"


def said(role: str, content: str, **more) -> dict:
    return {"role": role, "content": content, **more}


def turns(*contents: str) -> dict:
    """A row of messages: the user and the assistant in turn."""
    roles = ("user", "assistant") * len(contents)
    return {"messages": [said(role, content) for role, content in zip(roles, contents, strict=False)]}


def prepared(tmp_path, rows, **how) -> dict:
    how = {"format": "jsonl", "val_ratio": 0, **how}
    return prepare.prepare("mine", write_rows(tmp_path / "a.jsonl", rows), **how)


# ---- what generation stops on is learned after every reply
def test_every_reply_is_closed_by_a_learned_end_token(tmp_path):
    """Only the last reply was. Of three, each has one, and the sample is still one sample."""
    prepared(tmp_path, [turns("a", "bc", "d", "e", "f", "gh")] * 4)
    end = tokenizer.load_any(prepare.DATASETS / "mine").end_id
    ids, mask = read_ids("mine"), read_mask("mine")
    assert (ids == end).sum() == 3 * 4 and (mask[ids == end] & segments.LEARNED).all()
    text = f"user: a\nassistant: bc{END}\nuser: d\nassistant: e{END}\nuser: f\nassistant: gh{END}"
    assert decode("mine") == text * 4
    for pack in (True, False):
        windows = data.Windows("mine", "train", 128, pack=pack)
        assert len(windows.lengths) == 4 and len(set(windows.lengths.tolist())) == 1
        _, y = windows.window_batch(range(windows.n_windows))
        assert (y == end).sum() == 12 and (y != -1).sum() == 4 * (2 + 1 + 2 + 3)


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_prompts_have_the_ids_of_training_reply_after_reply(tmp_path, kind):
    meta = prepared(
        tmp_path,
        [turns("grey lamp?", "the lamp", "thanks", "welcome the lamp", "bye", "the end")],
        tokenizer=kind,
    )
    made = tokenizer.load_any(prepare.DATASETS / "mine")
    ids = read_ids("mine").tolist()
    first = "user: grey lamp?\nassistant: "
    second = f"{first}the lamp{END}\nuser: thanks\nassistant: "
    third = f"{second}welcome the lamp{END}\nuser: bye\nassistant: "
    for prompt, reply in ((first, "the lamp"), (second, "welcome the lamp"), (third, "the end")):
        new = [*sample.prompt_ids(made, prompt), *made.encode(reply).tolist(), made.end_id]
        assert ids[: len(new)] == new
        # As most people would write it; its ids were others, and 7 of 25 second replies were right.
        assert new[: -len(made.encode(reply)) - 1] == sample.prompt_ids(
            made, prompt.replace(END, ""), turns=True
        )
    assert ids == new
    one_reply = prepare.prepare(
        "one", write_rows(tmp_path / "b.jsonl", [turns("a", "b")] * 2), format="jsonl"
    )
    assert meta["turns"] and not one_reply["turns"]
    plain = first + "b\nuser: c\nassistant: "  # to a run of before, or of one reply each, it is what it was
    assert sample.prompt_ids(made, plain) == made.encode(plain).tolist()


def test_a_run_says_whether_it_closes_turns(tmp_path, train, run_script, own_datasets, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "DATASETS", own_datasets)  # run_script has set its own
    rows = [turns("a", "bc", "d", "e")] * 12
    prepared(tmp_path, rows, val_ratio=0.5)
    folder = str(own_datasets / "mine")
    train(
        f"--dataset={folder}", "--max_iters=2", "--block_size=64", r"--start=user: a\nassistant: bc\nuser: d"
    )
    shown = f"user: a\nassistant: bc{END}\nuser: d"
    assert shown in capsys.readouterr().out
    run_script("sample.py", "--device=cpu", "--max_new_tokens=2")
    assert shown in capsys.readouterr().out


def trained(width: int, steps: int) -> GPT:
    """A small model that has learned the rows of the dataset `mine`."""
    windows = data.Windows("mine", "train", width)
    torch.manual_seed(1)
    made = tokenizer.load_any(prepare.DATASETS / "mine")
    model = GPT(GPTConfig(vocab_size=made.vocab_size, block_size=width, n_layer=2, n_head=2, n_embd=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        x, y = windows.batch(step, 16)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("base", ["char", "a base with an end token alone"])
def test_first_second_and_third_replies_are_right_and_end(tmp_path, base):
    """Of 25 first replies 2 ended: the end of a reply that was not the last was no target."""
    kind, thanks, bye = base, "welcome", "see you"
    pairs = [(colour, thing) for colour in COLOURS for thing in THINGS]
    talks = {
        (colour, thing): (f"{colour} {thing}?", f"the {thing} is {colour}", "thanks", thanks, "bye", bye)
        for colour, thing in pairs
    }
    if base != "char":
        text = " ".join("\nuser: assistant: " + " ".join(talk) for talk in talks.values())
        prepare.prepare("base", write(tmp_path / "base.txt", text * 3), tokenizer="bpe", vocab_size=320)
        kind = str(prepare.DATASETS / "base")
        assert list(tokenizer.load_any(kind).special_tokens) == [END]
    prepared(tmp_path, [turns(*talk) for talk in talks.values()] * 8, tokenizer=kind)
    made = tokenizer.load_any(prepare.DATASETS / "mine")
    model = trained(160, 250)
    right = {1: 0, 2: 0, 3: 0}
    for talk in talks.values():
        prompt = ""
        for turn in (1, 2, 3):
            question, reply = talk[2 * turn - 2 : 2 * turn]
            prompt += f"user: {question}\nassistant: "
            how = dict(max_new_tokens=40, temperature=0.0, top_k=0, top_p=1.0, seed=1)
            ids = sample.prompt_ids(made, prompt, turns=True)
            right[turn] += "".join(sample.stream_text(model, made, ids, **how)) == reply
            prompt += f"{reply}\n"
    assert right == {1: 25, 2: 25, 3: 25}


def test_the_end_of_lines_texts_and_responses_is_learned(tmp_path):
    write(tmp_path / "a.txt", "one\ntwo\n")
    prepare.prepare("lines", str(tmp_path / "a.txt"), format="lines", val_ratio=0)
    rows = [{"text": "abc"}, {"prompt": "x", "response": "y"}, {"prompt": "", "response": "z"}]
    prepared(tmp_path, rows)
    for name, n, masked in (("lines", 2, False), ("mine", 3, True)):
        for pack in (True, False):
            windows = data.Windows(name, "train", 4, pack=pack)
            assert windows.masked == masked
            _, y = windows.window_batch(range(windows.n_windows))
            assert (y == windows.end_id).sum() == n


# ---- weights, and keys that nothing uses
def test_a_reply_of_weight_0_is_context(tmp_path):
    """It was learned like any other. Its end is no target either; it stays in sight of later replies."""
    chat = [
        said("user", "a"),
        said("assistant", "bad", weight=0),
        said("user", "b"),
        said("assistant", "ok", weight=1),
    ]
    prepared(tmp_path, [{"messages": chat}])
    assert decode("mine") == f"user: a\nassistant: bad{END}\nuser: b\nassistant: ok{END}"
    made = tokenizer.load_any(prepare.DATASETS / "mine")
    learned = (read_mask("mine") & segments.LEARNED).astype(bool)
    assert made.decode(read_ids("mine")[learned]) == f"ok{END}"
    assert len(data.Windows("mine", "train", 64).lengths) == 1
    chat = [said("user", "a"), said("assistant", "good"), said("assistant", "z", train=False)]
    prepared(tmp_path, [{"messages": chat}])
    learned = (read_mask("mine") & segments.LEARNED).astype(bool)
    assert decode("mine").endswith(f"good{END}\nassistant: z{END}")
    assert learned.sum() == 5 and not learned[-1]  # the last end token closes what is not learned


@pytest.mark.parametrize(("key", "value", "learned"), [
    ("weight", 1, 1), ("weight", 1.0, 1), ("weight", True, 1), ("weight", None, 1), ("train", True, 1),
    ("weight", 0, 0), ("weight", 0.0, 0), ("weight", False, 0), ("train", False, 0), ("train", 0, 0),
])  # fmt: skip
def test_what_a_weight_may_be(key, value, learned):
    row = {"messages": [said("user", "a"), said("assistant", "b", **{key: value}), said("assistant", "c")]}
    assert segments.segments_of(row)[1] == ("b", learned + segments.GOES_ON)


@pytest.mark.parametrize(("messages", "message"), [
    ([said("assistant", "b", weight=0.5)], "'weight' is 0.5; expected 1 (learned) or 0 (not): {'role':"),
    ([said("assistant", "b", weight="0")], "'weight' is '0'; expected 1 (learned) or 0 (not)"),
    ([said("assistant", "b", weight=1, train=[])], "'train' is []; expected 1 (learned) or 0 (not)"),
    ([said("assistant", END)], "there is nothing to learn"),
    ([said("assistant", "b", weight=0)], "there is nothing to learn"),
    ([said("user", "a", weight=1), said("assistant", "b")], "only what the assistant says can have a weight"),
    ([said("function", "a"), said("assistant", "b")], "expected system, user, assistant or tool"),
])  # fmt: skip
def test_bad_messages_are_refused_by_name(tmp_path, messages, message):
    with pytest.raises(ValueError) as error:
        prepared(tmp_path, [turns("a", "b"), {"messages": messages}])
    assert f"a.jsonl line 2: {message}" in str(error.value)


def test_a_row_of_end_alone_has_nothing_to_learn(tmp_path):
    with pytest.raises(ValueError, match="line 2: there is nothing to learn"):
        prepared(tmp_path, [{"text": "a"}, {"text": f"{END}\n{END}"}])


def test_keys_that_nothing_uses_are_named(tmp_path, capsys):
    """tool_calls, names and scores were ignored without a word. null is as good as no key."""
    rows = [
        {"messages": [said("user", "a", name="Ann"), said("assistant", "b", tool_calls=[1])], "id": 1},
        {"messages": [said("user", "a", name="Bob"), said("assistant", "b", tool_calls=None)], "id": 2},
        {"prompt": "a", "response": "b", "score": 3, "text": "c"},
        {"text": "a", "prompt": "unused"},
    ]
    prepared(tmp_path, rows)
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("NOTE")]
    assert len(found) == 1 and found[0].startswith("NOTE: a: keys that are not used: ")
    for key, n in dict(name=2, id=2, tool_calls=1, score=1, text=1, prompt=1).items():
        assert f"'{key}' of {n} rows" in found[0]
    prepared(tmp_path, [turns("a", "b"), {"text": "a"}, {"prompt": "a", "response": "b"}])
    assert "NOTE" not in capsys.readouterr().out


def test_null_is_no_key_of_a_row_or_a_message(tmp_path, capsys):
    """Mixed datasets fill the columns that a row has not with null; such rows were refused."""
    empty = dict.fromkeys(("text", "prompt", "response", "messages", "id"))
    rows = [{"text": "a"}, {"prompt": "b", "response": "c"}, turns("d", "e")]
    prepared(tmp_path, [{**empty, **row} for row in rows])
    mixed = decode("mine"), read_mask("mine").tolist()
    assert "NOTE" not in capsys.readouterr().out
    prepared(tmp_path, rows)
    assert mixed == (decode("mine"), read_mask("mine").tolist())
    with pytest.raises(ValueError, match="a.jsonl line 1: expected text, prompt and response, or messages"):
        prepared(tmp_path, [empty])


def test_the_keys_that_are_read_are_those_of_the_rows_kind():
    """`text` was called unused in a row whose prompt is no string, though the text was what is learned."""
    row = {"text": "a", "prompt": 5, "response": "b"}
    assert segments.segments_of(row) == [("a", segments.LEARNED)]
    assert segments.unused_keys(row) == {"prompt", "response"}


# ---- END in a text
def borders(text: str) -> list[str]:
    return segments.BORDER.split(text)


@pytest.mark.parametrize(("text", "documents"), [
    (f"a\n{END}\nb\n", ["a\n", "\nb\n"]),
    (f"a\r\n{END}\r\nb\r\n", ["a\r\n", "\r\nb\r\n"]),
    (f"a\n{END} \nb", ["a\n", " \nb"]),
    (f"{END}a\n{END}b", ["", "a\n", "b"]),
    (f"a{END}\nb{END}\n", ["a", "\nb", "\n"]),
    (f"a{END}", ["a", ""]),
    (f"One.{END}Two!{END}Three", ["One.", "Two!", "Three"]),
    (f'"One."{END}Two', ['"One."', "Two"]),
    (f"a\n{END}{END}\nb", ["a\n", "", "\nb"]),
])  # fmt: skip
def test_where_end_divides_documents(text, documents):
    assert borders(text) == documents


@pytest.mark.parametrize("text", [
    f"the token {END} ends a document", f"ends in {END}\n", f"{END} is the token", f"so,\n{END}, which ends",
    f'END = "{END}"\n', f"`{END}`", f"print('a{END}b')", f"a{END}b", f"({END})", END[:-1], END.upper(),
    f'eos_token: "{END}",\n', f"<p>{END}</p>",
])  # fmt: skip
def test_where_end_is_a_quotation(text):
    assert borders(text) == [text]


STORIES = "Small lamp.\n<|endoftext|>\nBird tree.\n<|endoftext|>\nGreen cloud.\n"


def test_documents_of_a_text_file_are_divided_by_one_token(tmp_path, capsys):
    """stories.txt: 13 characters stood between two stories, and no token ended one."""
    path = write(tmp_path / "stories.txt", STORIES)
    meta = prepare.prepare("mine", path, val_ratio=0)
    assert samples("mine") == ["Small lamp.\n", "\nBird tree.\n", "\nGreen cloud.\n"]
    made = tokenizer.load_any(prepare.DATASETS / "mine")
    assert made.end_id >= 0 and b"<" not in made.tokens and (read_ids("mine") == made.end_id).sum() == 3
    assert meta["splits"]["train"]["documents"] == 3
    assert f"stories: 3 documents, {END} read as the end token 2 times\n" in capsys.readouterr().out
    prepare.prepare("pairs", path, val_ratio=0, tokenizer="bpe", vocab_size=260)
    assert samples("pairs") == samples("mine")
    ids = sample.prompt_ids(made, f"Small lamp.\n{END}\nBird")
    assert ids == read_ids("mine")[: len(ids)].tolist()  # the same in a prompt


@pytest.mark.parametrize(
    "text", [f"a\n{END}\nb", f"a\n{END}\nb\n{END}", f"a\n{END}\nb\n{END}\n\n", f"{END}\na\n{END}\nb"]
)
def test_no_document_is_empty(tmp_path, text):
    prepare.prepare("mine", write(tmp_path / "a.txt", text), val_ratio=0)
    assert [document.strip() for document in samples("mine")] == ["a", "b"]


def test_a_file_of_a_folder_that_ends_in_end_is_closed_once(tmp_path):
    (tmp_path / "texts").mkdir()
    for name, text in (("a", f"one\n{END}\ntwo\n{END}\n"), ("b", "three\n")):
        write(tmp_path / "texts" / f"{name}.txt", text)
    prepare.prepare("mine", str(tmp_path / "texts"), val_ratio=0)
    assert samples("mine") == ["one\n", "\ntwo\n", "three\n"]


def test_lines_and_rows_are_divided_too(tmp_path, capsys):
    lines = write(tmp_path / "a.txt", f"one\n{END}\ntwo{END}\n\nthree\n")
    prepare.prepare("lines", lines, format="lines", val_ratio=0)
    assert samples("lines") == ["one", "two", "three"]
    capsys.readouterr()
    rows = [
        {"text": f"a{END}"},
        {"text": f"b\n{END}\nc"},
        {"prompt": f"x\n{END}\n", "response": f"y{END}\n"},
        turns("q", f"r{END}", "s", f"t{END}"),
    ]
    prepared(tmp_path, rows)
    texts = ["a", "b\n", "\nc", "x\n", "\ny", "user: q\nassistant: r", "\nuser: s\nassistant: t"]
    assert samples("mine") == texts
    assert f"a: {END} read as the end token 6 times" in capsys.readouterr().out
    windows = data.Windows("mine", "train", 64, pack=False)
    assert len(windows.lengths) == 5  # a; b; c; x with y; the conversation


def test_a_quotation_of_end_stays_and_is_counted(tmp_path, capsys):
    text = f"The token {END} ends a document.\nEND = '{END}'\n"
    prepare.prepare("mine", write(tmp_path / "a.txt", text), val_ratio=0)
    assert decode("mine") == text and tokenizer.load_any(prepare.DATASETS / "mine").end_id == -1
    expected = f"NOTE: a: {END} read as characters 2 times, inside a line; alone on a line it ends a document"
    assert expected in capsys.readouterr().out.splitlines()


def test_a_tokenizer_without_an_end_token_reads_end_as_characters(tmp_path, capsys):
    """A run on characters that was made before goes on as it began."""
    prepare.prepare("old", write(tmp_path / "old.txt", "".join(sorted(set(STORIES)))), val_ratio=0)
    path = write(tmp_path / "a.txt", STORIES)
    prepare.prepare("mine", path, tokenizer=str(prepare.DATASETS / "old"), val_ratio=0)
    assert decode("mine") == STORIES
    assert f"{END} read as characters 2 times, for the tokenizer has no token that" in capsys.readouterr().out
    windows = data.windows_of_text(path, tokenizer.load_any(prepare.DATASETS / "old"), 8)
    assert windows.n_tokens == len(STORIES) and "read as characters" in windows.notes[0]


def test_a_text_to_evaluate_is_divided_like_a_text_to_train_on(tmp_path):
    path = write(tmp_path / "a.txt", STORIES)
    prepare.prepare("mine", path, val_ratio=0)
    windows = data.windows_of_text(path, tokenizer.load_any(prepare.DATASETS / "mine"), 8)
    ids = windows.tokens[np.arange(windows.n_tokens)]
    assert ids.tolist() == read_ids("mine").tolist()
    assert windows.notes == [f"a: 3 documents, {END} read as the end token 2 times"]


@pytest.mark.parametrize("size", [1, 7, 64])
def test_documents_do_not_depend_on_chunks(tmp_path, monkeypatch, size):
    path = write(tmp_path / "a.txt", STORIES * 5 + f"{END}\n" + STORIES)
    whole = "".join(text + "|" * ends for text, ends in formats.Source(open_corpus(path)).chunks())
    monkeypatch.setattr("text.corpora.BLOCK", size)
    monkeypatch.setattr("text.readers.BLOCK", size, raising=False)
    source = formats.Source(open_corpus(path))
    assert "".join(text + "|" * ends for text, ends in source.chunks()) == whole
    assert source.documents == whole.count("|") == 14


def test_shards_keep_turns_together(tmp_path):
    """The masks of shards lie beside the ids: a turn's end token ends no sample in any of them."""
    rows = [turns("a" * 9, "b" * i, "c", "d") for i in range(1, 30)]
    one = prepared(tmp_path, rows)
    whole = data.Windows("mine", "train", 96).lengths.tolist()
    many = prepared(tmp_path, rows, shard_mb=0.0002)
    assert len(many["splits"]["train"]["shards"]) > 5
    assert data.Windows("mine", "train", 96).lengths.tolist() == whole and len(whole) == 29
    assert one["splits"]["train"]["learned"] == many["splits"]["train"]["learned"]
    assert json.loads(json.dumps(many)) == many


def test_a_dataset_of_an_older_version_says_that_earlier_replies_are_not_closed(train, own_rows, capsys):
    folder = prepare.DATASETS / "chat"
    train("--dataset=chat", "--max_iters=1")
    assert "older version" not in capsys.readouterr().out
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    del meta["turns"]
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    train("--dataset=chat", "--max_iters=1")
    assert "NOTE: chat was prepared by an older version" in capsys.readouterr().out


@pytest.fixture
def own_rows(tmp_path, monkeypatch):
    """datasets/chat in a folder of its own: rows of one prompt and response."""
    monkeypatch.setattr(prepare, "DATASETS", tmp_path / "datasets")
    rows = [{"prompt": f"{i} and 1? ", "response": str(i + 1)} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    prepare.prepare("chat", str(tmp_path / "rows.jsonl"), format="jsonl")


@pytest.mark.parametrize("sentence", ["从前有一只狐狸。", "一度あった？", "Есть кот…"])
def test_end_divides_sentences_of_any_script(tmp_path, sentence):
    """Behind 。 it was read as characters, but for the last one."""
    prepare.prepare("mine", write(tmp_path / "a.txt", f"{sentence}{END}" * 30), val_ratio=0)
    ids = read_ids("mine").tolist()
    assert ids.count(tokenizer.load_any(prepare.DATASETS / "mine").end_id) == 30
    assert len(ids) == 30 * (len(sentence) + 1)
