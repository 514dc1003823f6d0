"""How good is a model: against a loss written out by hand, and the same whatever the batch size."""

import contextlib
import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import evaluate
import tokenizer
from machine import distributed
from model import GPT, GPTConfig
from runtime import checkpoint
from runtime.trust import read_meta
from test_data import dataset_of, samples_of
from text import prepare

CPU = torch.device("cpu")
T = 32


def random_model(V: int) -> GPT:
    """Untrained, but far from uniform: its output layer begins at zero otherwise."""
    torch.manual_seed(3)
    model = GPT(GPTConfig(vocab_size=V, block_size=T, n_layer=1, n_head=2, n_embd=16, zero_init=0))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


class Uniform(torch.nn.Module):
    """All tokens are equally likely."""

    def __init__(self, V: int):
        super().__init__()
        self.config = GPTConfig(vocab_size=V, block_size=T)

    def forward(self, idx):
        return torch.zeros(*idx.shape, self.config.vocab_size)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A datasets folder with `letters`: 50,000 random characters, 10,000 of them in val."""
    folder = tmp_path_factory.mktemp("evaluated")
    text = "".join(random.Random(0).choices("abcdefgh (+,):\n", k=50_000))
    (folder / "letters.txt").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "DATASETS", folder)
        prepare.prepare("letters", str(folder / "letters.txt"), val_ratio=0.2)
    return folder


@pytest.fixture
def letters(prepared, run_script, monkeypatch) -> Path:
    """The folder of the dataset `letters`, which scripts find by its name."""
    monkeypatch.setattr(prepare, "DATASETS", prepared)
    return prepared / "letters"


def run_on(folder: Path, dataset: Path | str, **more) -> GPT:
    """Save an untrained model as a run on a dataset; return it."""
    meta = json.loads((prepare.folder_of(dataset) / "meta.json").read_text(encoding="utf-8"))
    model = random_model(meta["vocab_size"])
    folder.mkdir()
    state = {
        "model": model.state_dict(),
        "model_config": vars(model.config),
        "tokenizer": (prepare.folder_of(dataset) / "tokenizer.json").read_text(encoding="utf-8"),
        "dataset": meta,
        "config": {"dataset": str(dataset), "pack": True},
        **dict(step=5, tokens=0, seconds=0.0),
    }
    checkpoint.save(folder / "best.pt", state | more)
    return model


def losses_by_hand(model, ids: np.ndarray) -> list[float]:
    """-log p of ids[1], ids[2], ...: each given what stands before it in its window of T tokens; the last
    window begins earlier, so that it is as long as the others. In float64, one window at a time."""
    found = []
    ids = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        for first in range(1, len(ids), T):
            start = min(first - 1, len(ids) - 1 - T)
            log_probs = model(ids[None, start : start + T])[0].double().log_softmax(-1)
            for target in range(first, min(first + T, len(ids))):
                found.append(-log_probs[target - start - 1, ids[target]].item())
    return found


def everything(model, windows, **more) -> dict:
    indices = np.arange(windows.n_windows)
    return evaluate.evaluate(model, windows, indices, CPU, contextlib.nullcontext(), **more)


def printed(text: str) -> dict:
    pattern = r"loss (\d\.\d{4}) \+- (\d\.\d{4}) nats per token, perplexity (\d+\.\d{3}), "
    pattern += r"(\d+\.\d{4}) bits per byte, ([\d,]+) targets"
    names = "loss standard_error perplexity bits_per_byte targets".split()
    found = re.search(pattern, text)
    return {name: float(value.replace(",", "")) for name, value in zip(names, found.groups(), strict=True)}


def test_equals_a_hand_written_loss_for_every_batch_size(letters):
    windows = data.Windows("letters", "val", T)
    model = random_model(read_meta(letters)["vocab_size"]).eval()
    by_hand = losses_by_hand(model, np.fromfile(letters / "val.bin", windows.dtype))
    assert len(by_hand) == windows.n_tokens - 1 == 9_999  # each token but the first, once
    assert len(by_hand) % T and windows.n_windows % 7  # the last window and the last batch are uneven
    for batch_size in (1, 7, 0):
        found = everything(model, windows, batch_size=batch_size)
        assert found["loss"] == pytest.approx(np.mean(by_hand), abs=1e-6)
        assert found["perplexity"] == pytest.approx(math.exp(np.mean(by_hand)), rel=1e-6)
        assert found["targets"] == len(by_hand)
    assert found == everything(model, windows) | {"by_position": pytest.approx(found["by_position"])}


@pytest.mark.parametrize("pack", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_masked_samples_by_hand(tmp_path, pack):
    """10,000 tokens of them: the sum over the scored targets, each given what stands before it in its row."""
    ids, mask, lengths = samples_of(1230, 15)
    ids = np.where(ids > 0, 1 + ids % 16, 0)  # 0 is the end token
    assert len(ids) >= 10_000
    windows = data.Windows(
        dataset_of(tmp_path / "a", ids, mask, end_id=0, format="jsonl"), "train", T, pack=pack
    )
    model, nats, targets = random_model(17).eval(), 0.0, 0
    starts = np.cumsum(lengths) - lengths
    first_ids = set(starts.tolist())
    rows = [windows.order[a:b] for a, b in zip(windows.bounds[:-1], windows.bounds[1:], strict=True)]
    for row in rows:
        places = np.concatenate([np.arange(starts[i], starts[i] + lengths[i]) for i in row])
        text = torch.from_numpy(ids[places])
        with torch.no_grad():
            log_probs = model(text[None, :-1])[0].double().log_softmax(-1)
        for at in range(1, len(text)):
            if mask[places[at]] and int(places[at]) not in first_ids:
                nats, targets = nats - log_probs[at - 1, text[at]].item(), targets + 1
    assert sorted(np.concatenate(rows)) == list(range(len(lengths))) and targets > 5000
    for batch_size in (1, 7, 0):
        found = everything(model, windows, batch_size=batch_size)
        assert (found["targets"], found["loss"]) == (targets, pytest.approx(nats / targets, abs=1e-6))


def test_by_position_and_standard_error_by_hand(letters):
    windows = data.Windows("letters", "val", T)
    model = random_model(read_meta(letters)["vocab_size"]).eval()
    by_hand = np.array(losses_by_hand(model, np.fromfile(letters / "val.bin", windows.dtype)))
    found = everything(model, windows)
    of_windows = [by_hand[i : i + T] for i in range(0, len(by_hand), T)]
    loss = by_hand.mean()  # a ratio, nats by targets: its error, windows as independent draws
    error = math.sqrt(sum((w.sum() - loss * len(w)) ** 2 for w in of_windows)) / len(by_hand)
    assert found["standard_error"] == pytest.approx(error, rel=1e-5)
    whole = np.stack(of_windows[:-1])
    last = of_windows[-1]  # its targets stand at the end of a window that begins earlier
    expected = whole.sum(0)
    expected[-len(last) :] += last
    counts = np.full(T, len(whole)) + (np.arange(T) >= T - len(last))
    assert found["by_position"] == pytest.approx(expected / counts, abs=1e-5)


def test_a_uniform_model_scores_the_logarithm_of_the_vocabulary(letters):
    meta = read_meta(letters)
    windows, V = data.Windows("letters", "val", T), meta["vocab_size"]
    token_bytes = tokenizer.load(letters / "tokenizer.json").token_bytes()
    found = everything(Uniform(V), windows, token_bytes=token_bytes)
    assert found["loss"] == pytest.approx(math.log(V), abs=1e-6)
    assert found["perplexity"] == pytest.approx(V, rel=1e-6)
    assert found["standard_error"] == pytest.approx(0, abs=1e-6)
    ids = np.fromfile(letters / "val.bin", windows.dtype)
    assert found["bits_per_byte"] == pytest.approx(
        math.log2(V) * (len(ids) - 1) / token_bytes[ids[1:]].sum(), rel=1e-6
    )


def test_bits_per_byte_of_byte_pairs_and_characters_beyond_ascii(tmp_path, datasets, monkeypatch):
    monkeypatch.setattr(prepare, "DATASETS", tmp_path)
    text = "안녕하세요 äöü 👩‍👩‍👧 hello hello\n" * 60
    (tmp_path / "many.txt").write_text(text, encoding="utf-8")
    meta = prepare.prepare("many", str(tmp_path / "many.txt"), tokenizer="bpe", vocab_size=300)
    windows = data.Windows("many", "train", T)
    bpe = tokenizer.load(tmp_path / "many/tokenizer.json")
    found = everything(Uniform(meta["vocab_size"]), windows, token_bytes=bpe.token_bytes())
    ids = np.fromfile(tmp_path / "many/train.bin", windows.dtype)
    n_bytes = len(bpe.decode_bytes(ids)) - len(bpe.decode_bytes(ids[:1]))  # the first token is no target
    expected = math.log2(meta["vocab_size"]) * (len(ids) - 1) / n_bytes
    assert found["bits_per_byte"] == pytest.approx(expected, rel=1e-6)


def test_special_tokens_are_scored_but_have_no_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "DATASETS", tmp_path)
    lines = [f"line {i} of many\n" for i in range(60)]
    (tmp_path / "lines.txt").write_text("".join(lines), encoding="utf-8")
    meta = prepare.prepare("lines", str(tmp_path / "lines.txt"), format="lines")
    windows = data.Windows("lines", "train", T)
    text_tokenizer = tokenizer.load(tmp_path / "lines/tokenizer.json")
    found = everything(Uniform(meta["vocab_size"]), windows, token_bytes=text_tokenizer.token_bytes())
    ids = np.fromfile(tmp_path / "lines/train.bin", windows.dtype)[1:]
    assert found["targets"] == len(ids)
    n_bytes = int((ids != text_tokenizer.end_id).sum())
    assert 0 < n_bytes < len(ids)
    assert found["bits_per_byte"] == pytest.approx(
        math.log2(meta["vocab_size"]) * len(ids) / n_bytes, rel=1e-6
    )


def test_ranks_share_the_windows_and_agree(letters, monkeypatch):
    """Each rank's sums, added: the same as one process, with batches that do not divide by the ranks."""
    windows = data.Windows("letters", "val", T)
    model = random_model(read_meta(letters)["vocab_size"])
    alone = everything(model, windows, batch_size=1)
    for world_size, batch_size in ((1, 0), (1, 64), (2, 1), (2, 7), (2, 0), (3, 7)):
        sums = []

        def note(numbers, device, sums=sums):
            sums.append(numbers)
            return numbers

        monkeypatch.setattr(distributed, "sum_over_ranks", note)
        for rank in range(world_size):
            everything(model, windows, batch_size=batch_size, rank=rank, world_size=world_size)
        total = np.sum(sums, axis=0).tolist()
        monkeypatch.setattr(distributed, "sum_over_ranks", lambda numbers, device, total=total: total)
        together = everything(
            model, windows, batch_size=batch_size, rank=world_size - 1, world_size=world_size
        )
        assert together["loss"] == pytest.approx(alone["loss"], abs=1e-6)
        assert together["targets"] == alone["targets"]
        assert together["by_position"] == pytest.approx(alone["by_position"], abs=1e-6)


def test_the_model_is_left_as_it_was_and_dropout_is_off(letters):
    windows = data.Windows("letters", "val", T)
    V = read_meta(letters)["vocab_size"]
    model = GPT(
        GPTConfig(vocab_size=V, block_size=T, n_layer=1, n_head=1, n_embd=16, dropout=0.5, zero_init=0)
    )
    state = torch.get_rng_state()
    first, second = everything(model.train(), windows), everything(model.eval(), windows)
    assert first["loss"] == second["loss"]
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    everything(model.train(), windows)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_spread_covers_a_split_evenly(letters):
    windows = data.Windows("letters", "val", T)
    n = windows.n_windows
    assert evaluate.spread(windows, n).tolist() == evaluate.spread(windows, 10 * n).tolist() == list(range(n))
    few = evaluate.spread(windows, 5)
    assert few[0] == 0 and few[-1] == n - 1
    assert set(np.diff(few)) <= {(n - 1) // 4, (n - 1) // 4 + 1}


def test_text_without_any_target_is_an_error(letters):
    windows = data.Windows("letters", "val", T)
    windows.window_batch = lambda batch: (torch.zeros(len(batch), T).long(), torch.full((len(batch), T), -1))
    with pytest.raises(ValueError, match="val.bin has no target to score"):
        everything(Uniform(5), windows)


def test_a_loss_that_is_no_number_is_an_error_that_names_the_first_bad_weight(letters):
    windows = data.Windows("letters", "val", T)
    model = random_model(read_meta(letters)["vocab_size"])
    model.blocks[0].mlp.up.weight.data[3, 5] = math.nan
    with pytest.raises(
        ValueError, match=r"loss on .*val.bin is nan: not finite: blocks.0.mlp.up.weight \(1 of"
    ):
        everything(model, windows)
    model = random_model(read_meta(letters)["vocab_size"])
    model.head.weight.data.fill_(3e38)
    model.config.logit_cap = 0.0
    with pytest.raises(ValueError, match="the weights are finite, the logits are not; .*learning_rate"):
        everything(model, windows)


# ---- the script


def test_a_split_and_the_plot(letters, run_script, tmp_path, capsys):
    model = run_on(tmp_path / "out", "letters")
    run_script("evaluate.py", "--device=cpu", "--dtype=float32", "--plot", "--batch_size=7")
    text = capsys.readouterr().out
    for name, value in printed(text).items():
        windows = data.Windows("letters", "val", T)
        token_bytes = tokenizer.load(letters / "tokenizer.json").token_bytes()
        expected = everything(model, windows, token_bytes=token_bytes)[name]
        assert value == pytest.approx(expected, abs=1e-3 if name == "perplexity" else 1e-4), name
    assert "val split of letters: loss" in text
    assert "best.pt, step 5)" in text
    assert (tmp_path / "out/loss_by_position.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    run_script("evaluate.py", "--device=cpu", "--dtype=float32", "--split=train")
    targets = data.Windows("letters", "train", T).n_tokens - 1
    assert f"{targets:,} targets" in capsys.readouterr().out
    with pytest.raises(ValueError, match="the test split of letters does not exist"):
        run_script("evaluate.py", "--device=cpu", "--split=test")


def test_any_text_file(letters, run_script, tmp_path, capsys):
    model = run_on(tmp_path / "out", "letters")
    text = "add(a, b): a + b\n" * 9
    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    run_script("evaluate.py", "--device=cpu", "--dtype=float32", f"--input={tmp_path / 'my.txt'}")
    found = printed(capsys.readouterr().out)
    ids = tokenizer.load(letters / "tokenizer.json").encode(text)
    by_hand = np.mean(losses_by_hand(model.eval(), ids))
    assert found["loss"] == pytest.approx(by_hand, abs=1e-4)
    assert found["targets"] == len(ids) - 1
    assert found["bits_per_byte"] == pytest.approx(by_hand / math.log(2), abs=2e-4)  # ASCII: a byte a token
    (tmp_path / "my.txt").write_text(text + "안녕", encoding="utf-8")
    with pytest.raises(ValueError, match="unknown characters: '안'"):
        run_script("evaluate.py", "--device=cpu", f"--input={tmp_path / 'my.txt'}")


def test_a_text_shorter_than_a_window_is_one_short_window(letters, run_script, tmp_path, capsys):
    """Once, "use --block_size=9 or less", a setting that evaluate.py does not have."""
    model = run_on(tmp_path / "out", "letters").eval()
    for text in ("ab", "abcdefgh", "abcdefgh" * 4 + "a"):
        (tmp_path / "short.txt").write_text(text, encoding="utf-8")
        run_script("evaluate.py", "--device=cpu", "--dtype=float32", f"--input={tmp_path / 'short.txt'}")
        found = printed(capsys.readouterr().out)
        ids = torch.from_numpy(tokenizer.load(letters / "tokenizer.json").encode(text).astype(np.int64))
        log_probs = model(ids[None, :-1])[0].double().log_softmax(-1)
        by_hand = -log_probs.gather(1, ids[1:, None]).mean().item()
        assert (found["targets"], found["loss"]) == (len(text) - 1, pytest.approx(by_hand, abs=1e-4))
    (tmp_path / "short.txt").write_text("a", encoding="utf-8")
    with pytest.raises(ValueError, match="has 1 tokens: none follows another; give a longer text"):
        run_script("evaluate.py", "--device=cpu", f"--input={tmp_path / 'short.txt'}")


def test_a_split_shorter_than_a_window_is_one_short_window(tmp_path):
    folder = dataset_of(tmp_path / "a", np.arange(10))
    windows = data.Windows(folder, "train", T, may_be_short=True)
    x, y = windows.window_batch([0])
    assert (x[0].tolist(), y[0].tolist()) == (list(range(9)), list(range(1, 10)))
    with pytest.raises(ValueError, match="use --block_size=9 or less, or prepare more text"):  # train.py's
        data.Windows(folder, "train", T)


@pytest.fixture
def rows_run(tmp_path, monkeypatch) -> Path:
    """A run on JSON rows, and another one on lines."""
    rows = [{"prompt": f"{i} and 2? ", "response": str(i + 2)} for i in range(40)]
    lines = [f"{i} and 2? {i + 2}" for i in range(40)]
    monkeypatch.setattr(prepare, "DATASETS", tmp_path / "datasets")
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    prepare.prepare("rows", str(tmp_path / "rows.json"))
    prepare.prepare("lines", str(tmp_path / "lines.txt"), format="lines")
    for name in ("rows", "lines"):
        run_on(tmp_path / f"out-{name}", name)
    return tmp_path


def test_rows_and_lines_are_scored_as_the_run_learned_them(rows_run, run_script, capsys):
    """Rows: once, 959 targets with the braces instead of 80. Lines: once, without their end tokens."""
    flags = ("--device=cpu", "--dtype=float32")
    rows, lines = (f"--input={rows_run / name}" for name in ("rows.json", "lines.txt"))
    run_script("evaluate.py", *flags, f"--out_dir={rows_run / 'out-rows'}", rows)
    out = capsys.readouterr().out
    n_digits = sum(len(str(i + 2)) for i in range(40))
    assert printed(out)["targets"] == n_digits + 40
    assert "rows.json holds JSON rows, and is read as rows" in out
    run_script("evaluate.py", *flags, f"--out_dir={rows_run / 'out-lines'}", lines)
    out = capsys.readouterr().out
    text = (rows_run / "lines.txt").read_text(encoding="utf-8")
    assert printed(out)["targets"] == len(text.replace("\n", "")) + 40 - 1
    assert "lines.txt is read as lines, as the run's dataset was" in out
    with pytest.raises(ValueError, match="unknown characters"):  # the lines hold no line break
        run_script("evaluate.py", *flags, f"--out_dir={rows_run / 'out-lines'}", lines, "--format=text")
    with pytest.raises(ValueError, match="--format=csv is unknown"):
        run_script("evaluate.py", *flags, f"--out_dir={rows_run / 'out-lines'}", lines, "--format=csv")
    with pytest.raises(ValueError, match="--format=text is for --input=FILE"):
        run_script("evaluate.py", *flags, f"--out_dir={rows_run / 'out-lines'}", "--format=text")


def test_a_file_of_a_dataset_has_the_loss_of_the_dataset(rows_run, run_script, capsys):
    """--input of the very text that was prepared: the same targets and loss as of its split."""
    for name, file in (("rows", "rows.json"), ("lines", "lines.txt")):
        source = str(rows_run / file)
        prepare.prepare(
            name, source, format="lines" if name == "lines" else "", val_ratio=0, val_input=source
        )
        run_on_it = rows_run / f"all-{name}"
        run_on(run_on_it, name)
        found = []
        for more in ("--split=val", f"--input={source}"):
            run_script("evaluate.py", "--device=cpu", "--dtype=float32", f"--out_dir={run_on_it}", more)
            found.append(printed(capsys.readouterr().out))
        assert found[0] == found[1]


def test_samples_that_are_too_long_are_counted(rows_run, run_script, capsys):
    rows = [{"prompt": "2 and 2? " * 9, "response": "4"}, {"prompt": "2 and 2? ", "response": "4"}]
    (rows_run / "long.json").write_text(json.dumps(rows), encoding="utf-8")
    flags = ("--device=cpu", f"--out_dir={rows_run / 'out-rows'}", f"--input={rows_run / 'long.json'}")
    run_script("evaluate.py", *flags)
    assert "1 samples are longer than a window of 32, and are left out" in capsys.readouterr().out
    (rows_run / "long.json").write_text(json.dumps(rows[:1]), encoding="utf-8")
    with pytest.raises(ValueError, match="no sample fits into a window of 33 tokens, which is the model's"):
        run_script("evaluate.py", *flags)


def test_a_dataset_that_holds_another_text_by_now_is_refused(letters, run_script, tmp_path, monkeypatch):
    """The same letters, so the same tokenizer: only the content tells. The same text elsewhere is fine."""
    run_on(tmp_path / "out", "letters")
    monkeypatch.setattr(prepare, "DATASETS", tmp_path)
    text = (letters.parent / "letters.txt").read_text(encoding="utf-8")
    (tmp_path / "letters.txt").write_text(text, encoding="utf-8")
    prepare.prepare("letters", str(tmp_path / "letters.txt"), val_ratio=0.2, shard_mb=0.01)
    run_script("evaluate.py", "--device=cpu")
    (tmp_path / "letters.txt").write_text(text[::-1], encoding="utf-8")
    prepare.prepare("letters", str(tmp_path / "letters.txt"), val_ratio=0.2)
    with pytest.raises(ValueError, match="was trained on another text than .*--input=FILE"):
        run_script("evaluate.py", "--device=cpu")


def test_a_dataset_by_its_path(letters, run_script, tmp_path, monkeypatch, capsys):
    run_on(tmp_path / "out", letters)  # as train.py --dataset=/a/folder/somewhere saves it
    monkeypatch.setattr(prepare, "DATASETS", tmp_path)
    run_script("evaluate.py", "--device=cpu")
    assert "val split of letters: loss" in capsys.readouterr().out


def test_a_dataset_that_has_another_tokenizer_by_now_is_refused(letters, run_script, tmp_path, monkeypatch):
    run_on(tmp_path / "out", "letters")
    monkeypatch.setattr(prepare, "DATASETS", tmp_path)
    (tmp_path / "other.txt").write_text("a text of other letters\n" * 100, encoding="utf-8")
    other = prepare.prepare("letters", str(tmp_path / "other.txt"))["tokenizer_hash"][:12]
    ours = tokenizer.load(letters / "tokenizer.json").hash[:12]
    with pytest.raises(ValueError, match=f"has the tokenizer {ours} .* the dataset has {other}"):
        run_script("evaluate.py", "--device=cpu")


def test_eval_only_agrees_and_leaves_the_checkpoints_alone(train, run_script, tmp_path, capsys):
    train("--max_iters=6", "--eval_interval=3", "--eval_iters=0", "--log_interval=2")
    out = tmp_path / "out"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        train("--init_from=resume", "--eval_only", "--eval_iters=0")
    assert not end.value.code
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 6:")]
    run_script("evaluate.py", "--device=cpu", "--dtype=float32", "--file=ckpt.pt", "--batch_size=5")
    found = printed(capsys.readouterr().out)
    assert line.startswith("step 6: train loss ") and f", val loss {found['loss']:.4f}" in line
    last = json.loads((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert found["loss"] == pytest.approx(last["val_loss"], abs=6e-5)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
