"""DPO: its pairs, its loss written out, what the start said of each pair, resuming, several processes."""

import json
import math
import random
import re

import pytest
import torch

from model import GPT, GPTConfig
from runtime import checkpoint
from techniques import dpo, replies
from test_strategies import MODEL, losses, run_all
from text import prepare, sums
from tokenizer import load_any

RUN = (
    "--dataset=few --block_size=160 --eval_interval=3 --log_interval=1 --max_iters=6 --technique=dpo".split()
)
WHOLE = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def make_few(folder) -> None:
    """The dataset `few`: 40 rows of sums of one or two steps."""
    file = folder / "few.jsonl"
    file.write_text("".join(list(sums.rows(1, 8_000, hardest=2))[:40]), encoding="utf-8")
    prepare.prepare("few", str(file), format="jsonl")


@pytest.fixture(scope="module", autouse=True)
def few(datasets):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "DATASETS", datasets)
        make_few(datasets)


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def random_model(V: int = 11, block_size: int = 16, seed: int = 3) -> GPT:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=V, block_size=block_size, n_layer=1, n_head=2, n_embd=16)).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def log_p(model, prompt: list[int], reply: list[int]) -> torch.Tensor:
    """The slow obvious twin: one forward pass for each token of the reply, without padding."""
    total = 0.0
    for i, token in enumerate(reply):
        logits = model(torch.tensor([prompt + reply[:i]]))[0, -1]
        total = total + logits[token] - logits.exp().sum().log()
    return total


# ---- pairs
def test_a_spoiled_working_is_wrong_in_one_place():
    """Either one step is and the others go on from it, or only the answer is. Checked by other arithmetic."""
    rng, kinds = random.Random(0), set()
    for line in list(sums.rows(5, 60_000))[:300]:
        right = json.loads(line)["response"]
        wrong = sums.spoiled(rng, right)
        *steps, answer = wrong.split("\n")
        found = [WHOLE.fullmatch(step).groups() for step in steps]
        false = [
            i
            for i, (a, sign, b, c) in enumerate(found)
            if eval(f"{a}{sign * (1 + (sign == '/'))}{b}") != int(c)
        ]
        assert [step[3] for step in found[:-1]] == [step[0] for step in found[1:]]
        last_is_said = answer == f"answer: {found[-1][3]}"
        assert len(false) + (not last_is_said) == 1
        assert len(steps) == right.count("\n") and wrong != right
        kinds.add((bool(false), len(steps)))
    assert kinds == {(kind, n) for kind in (True, False) for n in range(1, 6)}
    assert sums.spoiled(rng, "Hello") == sums.spoiled(rng, "1 + 1 = 2\nso 2") == ""


def test_pairs_are_batches_like_windows(train, datasets):
    """In any division of an update, each pair once an epoch; a batch says how many pairs it has."""
    windows = train(*RUN, "--max_iters=1")["train_windows"]
    tokenizer = load_any(datasets / "few")
    assert windows.n_windows == len(windows.items) == 36
    x, y = windows.batch(2, 4)
    assert y.n_targets == 4 and len(x) == 8
    parts = [windows.batch(2, 1, i, 2, rank, 2) for i in range(2) for rank in range(2)]
    assert [row for x, y in parts for row in replies.unpadded(x[:, 2:], y)] == replies.unpadded(x[:, 2:], y)
    seen = torch.cat([windows.batch(step, 4)[0][::2, :2] for step in range(9)])
    assert seen[:, 0].tolist() == list(range(36)) and sorted(seen[:, 1].tolist()) == list(range(36))
    (prompt, right), (again, wrong) = replies.unpadded(x[:2, 2:], y[:2])
    assert prompt == again and tokenizer.decode(prompt).endswith("have now?")
    assert right[-1] == wrong[-1] == tokenizer.end_id and right != wrong
    assert (prompt, [right, wrong]) == windows.items[int(x[0, 1])]


def test_pairs_of_a_file(train, tmp_path, datasets):
    rows = [{"prompt": f"{n} + 1 = ", "chosen": str(n + 1), "rejected": f"no {n}"} for n in range(2, 12)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    items = train(*RUN, f"--dpo_pairs={file}", "--max_iters=1", "--dpo_count=8")["train_windows"].items
    tokenizer = load_any(datasets / "few")
    texts = [[tokenizer.decode(ids) for ids in (prompt, *both)] for prompt, both in items]
    end = tokenizer.decode([tokenizer.end_id])
    assert texts == [[r["prompt"], r["chosen"] + end, r["rejected"] + end] for r in rows[:8]]


# ---- the loss
@pytest.mark.parametrize("sft", [0.0, 0.7])
def test_loss_and_gradient_are_those_of_the_formula(sft):
    model, start = random_model(), random_model(seed=4)
    pairs = [([1, 2, 3], [[4, 5, 0], [6, 0]]), ([7, 1], [[2, 0], [3, 8, 9, 0]]), ([5], [[5, 0], [6, 0]])]
    expected = 0.0
    for prompt, both in pairs:
        a, b = (log_p(model, prompt, reply) - log_p(start, prompt, reply).detach() for reply in both)
        expected = expected - torch.log(1 / (1 + torch.exp(-0.3 * (a - b))))
        expected = expected - sft * log_p(model, prompt, both[0]) / len(both[0])
    expected.backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    x, y = replies.padded([(prompt, reply) for prompt, both in pairs for reply in both], filler=0)
    about = torch.tensor([[i // 2, i // 2] for i in range(6)])
    model.start_margins = dpo.computed(start, pairs, 0).double()
    found = dpo.loss(model, torch.cat((about, x), 1), y, {"dpo_beta": 0.3, "dpo_sft": sft})
    found.backward()
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)  # the start's are float32
    for p, grad in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-6)
    assert model.counted[0]["pairs"] == 3


def test_the_start_is_computed_once_and_kept(train, tmp_path):
    """dpo.json holds what the weights of update 0 say, pair for pair; the first loss is ln 2."""
    train("--dataset=few", "--block_size=160", "--max_iters=5", "--out_dir=" + str(tmp_path / "base"))
    ran = train(*RUN, f"--init_from={tmp_path / 'base'}", "--learning_rate=2e-3", "--dpo_count=4")
    kept = json.loads((tmp_path / "out/dpo.json").read_text(encoding="utf-8"))["start"]
    base = checkpoint.load_model(tmp_path / "base/best.pt", torch.device("cpu"))[0]
    items = ran["train_windows"].items
    assert len(kept) == len(items) == 4
    with torch.no_grad():
        for i in range(4):
            prompt, (chosen, rejected) = items[i]
            again = log_p(base, prompt, chosen) - log_p(base, prompt, rejected)
            assert kept[i] == pytest.approx(again.item(), abs=1e-3)
    found = rows_of(tmp_path / "out/dpo.jsonl")
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert abs(found[0]["margin"]) < 1e-5 and found[-1]["margin"] > 1e-3
    printed = [row["loss"] for row in rows_of(tmp_path / "out/metrics.jsonl") if "loss" in row]
    assert printed[0] == pytest.approx(math.log(2), abs=1e-5) and printed[-1] < printed[0]


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(train, tmp_path):
    """Without its base, and with a row for each update. Split into micro-steps, it has the same losses."""
    whole, two, four = (str(tmp_path / name) for name in ("out", "two", "four"))
    train(*RUN)
    train(*RUN, "--max_iters=3", "--lr_decay_iters=6", f"--out_dir={two}")
    train(*RUN, "--init_from=resume", "--max_iters=6", f"--out_dir={two}")
    ours, theirs = (torch.load(f"{out}/ckpt.pt", weights_only=True) for out in (whole, two))
    assert all(torch.equal(t, theirs["model"][name]) for name, t in ours["model"].items())
    assert rows_of(tmp_path / "two/dpo.jsonl") == rows_of(tmp_path / "out/dpo.jsonl")
    train(*RUN, "--batch_size=1", "--gradient_accumulation_steps=4", f"--out_dir={four}")
    torch.testing.assert_close(losses(tmp_path / "four"), losses(tmp_path / "out"), rtol=1e-4, atol=1e-5)
    (tmp_path / "two/dpo.json").unlink()
    with pytest.raises(ValueError, match="dpo.json is missing, with what the start said of each pair"):
        train(*RUN, "--init_from=resume", "--max_iters=7", f"--out_dir={two}")
    plain = "--dataset=few", "--block_size=160", "--max_iters=1", f"--out_dir={tmp_path / 'new'}"
    new = train(f"--init_from={two}", *plain)
    assert new["config"]["technique"] == ""


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(forks, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "DATASETS", tmp_path / "datasets")
        make_few(tmp_path)
    same = f"{MODEL} --dataset=few --global_batch_size=8 --block_size=160 --max_iters=4 --technique=dpo"
    run_all(forks, tmp_path, 1, [f"one {same}"])
    run_all(forks, tmp_path, 2, [f"ddp {same}", f"fsdp {same} --strategy=fsdp"])
    for name in ("ddp", "fsdp"):
        torch.testing.assert_close(losses(tmp_path / name), losses(tmp_path / "one"), rtol=1e-4, atol=1e-5)
        one, other = ([row["margin"] for row in rows_of(tmp_path / n / "dpo.jsonl")] for n in ("one", name))
        assert other == pytest.approx(one, abs=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dpo_beta=0", "dpo_beta=0.0 makes no sense; expected above 0, 0.1 is usual"),
        ("--dpo_sft=-1", "dpo_sft=-1.0 is below 0; 0 leaves it out"),
        ("--dpo_count=-1", "dpo_count=-1 is below 0; 0 takes all pairs"),
        ("--dpo_pairs=nowhere.jsonl", "dpo_pairs=nowhere.jsonl is no file; expected rows of prompt, chosen"),
        ("--dpo_pairs={bad}", "bad.jsonl line 1 is no row of prompt, chosen and rejected"),
        ("--dataset=small", "holds no replies: all of its text is learned"),
        ("--block_size=40", "no sample fits into a window of 41 tokens"),
    ],
)
def test_what_makes_no_sense_is_one_line(train, tmp_path, flags, message):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        train(*RUN, *flags.format(bad=tmp_path / "bad.jsonl").split())
