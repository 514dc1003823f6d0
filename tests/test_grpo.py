"""GRPO: advantages by hand, its gradient written out, what it draws, resuming, several processes."""

import json
import re
from types import SimpleNamespace

import pytest
import torch

from techniques import grpo, preferences, replies
from test_dpo import log_p, random_model, rows_of
from test_strategies import MODEL, losses, run_all
from text import prepare

RUN = (
    "--dataset=bandit --block_size=16 --eval_interval=3 --log_interval=1 --max_iters=6 --technique=grpo "
    "--grpo_group=4 --batch_size=4"
).split()


def make_bandit(folder) -> None:
    """The dataset `bandit`: one letter asks for another one of four; a random model is right now and then."""
    file = folder / "bandit.jsonl"
    rows = [{"prompt": a * n + "?", "response": b} for n in (1, 2, 3) for a, b in ("ab", "bc", "cd", "da")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    prepare.prepare("bandit", str(file), format="jsonl", val_input=str(file))


@pytest.fixture(scope="module", autouse=True)
def bandit(datasets):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "DATASETS", datasets)
        make_bandit(datasets)


def batch_of(rows: list[tuple], place: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = replies.padded(rows, filler=0)
    about = torch.tensor([[place + i, i] for i in range(len(rows))])
    return torch.cat((about, x), 1), y


ROWS = [([1, 2, 3], [4, 5, 0]), ([7], [2, 0])]
SETTINGS = {"grpo_group": 3, "grpo_kl": 0.0, "seed": 1, "global_batch_size": 2, "out_dir": "out-none"}
DRAWN = [[4, 5, 0], [6, 0], [4, 6, 1], [2, 0], [3, 3], [2, 0]]  # right are the first, the fourth, the last


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    third = 3**0.5  # mean 1/4, deviation sqrt(3)/4: 3/4 over that, and -1/4 over that
    expected = [[third, -1 / third, -1 / third, -1 / third], [1, 1, -1, -1], [0] * 4, [0] * 4]
    torch.testing.assert_close(grpo.advantages(rewards), torch.tensor(expected))


@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_the_gradient_is_that_of_the_formula(monkeypatch, kl):
    """Token by token in float64, without padding; the value is the number of wrong replies."""
    monkeypatch.setattr(grpo, "drawn", lambda *arguments: DRAWN)
    model, start = random_model(), random_model(seed=4)
    root2 = 2**0.5  # rewards 1, 0, 0: mean 1/3, deviation sqrt(2)/3
    weights = [root2, -1 / root2, -1 / root2, 1 / root2, -root2, 1 / root2]
    expected = 0.0
    for weight, reply, i in zip(weights, DRAWN, (0, 0, 0, 1, 1, 1), strict=True):
        prompt = ROWS[i][0]
        expected = expected - weight * log_p(model, prompt, reply)
        for n, token in enumerate(reply):
            seen = prompt + reply[:n]
            ratio = torch.exp(log_p(start, seen, [token]).detach() - log_p(model, seen, [token]))
            expected = expected + kl * (ratio - torch.log(ratio) - 1)
    expected.backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.start = [start]
    found = grpo.loss(model, *batch_of(ROWS), {**SETTINGS, "grpo_kl": kl})
    assert found.item() == 3
    found.backward()
    for p, grad in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-6)
    assert model.counted[0] | {"kl": 0} == dict(replies=6, reward=3, equal=0, tokens=14, kl=0)


@pytest.mark.parametrize("right", [0, 1])
def test_groups_of_equal_rewards_have_no_gradient(monkeypatch, right):
    drawn = [ROWS[0][1]] * 3 + [ROWS[1][1]] * 3 if right else [[9, 9]] * 6
    monkeypatch.setattr(grpo, "drawn", lambda *arguments: drawn)
    model = random_model()
    found = grpo.loss(model, *batch_of(ROWS), SETTINGS)
    found.backward()
    assert found.item() == 6 * (1 - right)
    assert all(not p.grad.any() for p in model.parameters())  # and there are gradients: ddp waits for them
    assert model.counted[0]["equal"] == 6


def test_a_batch_is_drawn_as_each_reply_alone():
    """Token for token, by a pass over all tokens for each; cut at the length of the right reply."""
    model = random_model().float()
    rows = [([1, 2, 3], [4, 5, 6, 7, 0]), ([7], [2, 0]), ([3, 3, 3, 3, 3], [1, 1, 0])]
    found = grpo.drawn(model, rows, 4, seed=50)
    for i, reply in enumerate(found):
        prompt, right = rows[i // 4]
        uniform, alone = torch.rand(5, generator=torch.Generator().manual_seed(50 + i)), []
        while len(alone) < len(right) and 0 not in alone:
            sums = torch.softmax(model(torch.tensor([prompt + alone]))[0, -1], -1).cumsum(0)
            alone.append(int((sums <= uniform[len(alone)] * sums[-1]).sum()))
        assert reply == alone
        assert grpo.drawn(model, rows[i // 4 : i // 4 + 1], 1, seed=50 + i) == [reply]
    assert len(set(map(tuple, found))) > 6 and any(reply[-1] != 0 for reply in found)


def test_sixteen_bits_have_a_gradient(monkeypatch):
    """Autocast keeps weights that were cast while replies were drawn: these have no gradient."""
    model = random_model().float()
    grads = []
    for bf16 in (False, True):
        drawn = grpo.drawn

        def same(*arguments, drawn=drawn):
            drawn(*arguments)
            return DRAWN

        with monkeypatch.context() as patch, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            patch.setattr(grpo, "drawn", same)
            grpo.loss(model, *batch_of(ROWS), SETTINGS).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        model.zero_grad()
    assert torch.cosine_similarity(*grads, dim=0) > 0.99


@pytest.mark.slow
def test_the_reward_of_a_bandit_rises(train, tmp_path):
    """From a quarter of a letter and its end to most; what is printed is the share of wrong replies."""
    train(
        *RUN,
        "--max_iters=60",
        "--batch_size=8",
        "--grpo_group=8",
        "--learning_rate=1e-2",
        "--log_interval=60",
    )
    rows = rows_of(tmp_path / "out/grpo.jsonl")
    first, last = (sum(row["reward"] for row in part) / 5 for part in (rows[:5], rows[-5:]))
    assert len(rows) == 60 and first < 0.2 and last > 0.6
    (printed,) = [row["loss"] for row in rows_of(tmp_path / "out/metrics.jsonl") if "loss" in row]
    assert printed == pytest.approx(1 - rows[-1]["reward"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kl", ["0.0", "0.1"])
def test_a_resumed_run_ends_with_the_same_bits(train, tmp_path, kl):
    """And split into micro-steps, it draws the same replies."""
    flags = [*RUN, f"--grpo_kl={kl}"]
    train(*flags)
    train(*flags, "--max_iters=3", "--lr_decay_iters=6", f"--out_dir={tmp_path / 'two'}")
    train(*flags, "--init_from=resume", "--max_iters=6", f"--out_dir={tmp_path / 'two'}")
    ours, theirs = (torch.load(tmp_path / out / "ckpt.pt", weights_only=True) for out in ("out", "two"))
    assert ours["model"].keys() == theirs["model"].keys()
    assert all(torch.equal(t, theirs["model"][name]) for name, t in ours["model"].items())
    rows = rows_of(tmp_path / "out/grpo.jsonl")
    assert rows == rows_of(tmp_path / "two/grpo.jsonl")
    assert (rows[-1]["kl"] > 0) == (kl != "0.0") and rows[0]["kl"] == 0
    if kl == "0.0":
        train(*flags, "--batch_size=1", "--gradient_accumulation_steps=4", f"--out_dir={tmp_path / 'four'}")
        found = rows_of(tmp_path / "four/grpo.jsonl")
        assert [row["reward"] for row in found] == [row["reward"] for row in rows]
        assert any(0 < row["equal"] < 1 for row in rows)
        return
    (tmp_path / "two/grpo_start.pt").unlink()
    with pytest.raises(ValueError, match=re.escape("grpo_start.pt")):
        train(*flags, "--init_from=resume", "--max_iters=7", f"--out_dir={tmp_path / 'two'}")


@pytest.mark.slow
def test_two_processes_draw_the_replies_of_one(forks, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "DATASETS", tmp_path / "datasets")
        make_bandit(tmp_path)
    same = f"{MODEL} --dataset=bandit --global_batch_size=8 --max_iters=8 --technique=grpo --grpo_kl=0.1"
    run_all(forks, tmp_path, 1, [f"one {same}"])
    run_all(forks, tmp_path, 2, [f"two {same}"])
    torch.testing.assert_close(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-3, atol=1e-4)
    one, two = (rows_of(tmp_path / name / "grpo.jsonl") for name in ("one", "two"))
    assert [(r["reward"], r["tokens"]) for r in one] == [(r["reward"], r["tokens"]) for r in two]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--grpo_group=1", "grpo_group=1 has nothing to compare; expected 2 or more, 8 is usual"),
        ("--grpo_kl=-1", "grpo_kl=-1.0 is below 0; expected 0 or more"),
        ("--technique=grpo,average", "technique=grpo learns from its own replies, not those of an average"),
        ("--technique=grpo,dpo", "both replace the loss; choose one of them"),
        ("--strategy=fsdp", "technique=grpo writes replies on each process by itself; use --strategy=ddp"),
        ("--dataset=small", "holds no replies: all of its text is learned"),
    ],
)
def test_what_makes_no_sense_is_one_line(train, flags, message):
    with pytest.raises(ValueError, match=message):
        train(*RUN, *flags.split())


def test_a_mixture_is_refused():
    with pytest.raises(ValueError, match="dataset is a mixture; expected one dataset"):
        replies.Replies(SimpleNamespace(standing=None), [], counted=1)


@pytest.mark.slow
def test_the_picture(train, tmp_path, monkeypatch):
    """Of both kinds of runs; a checkpoint is measured once."""
    flags = "--dataset=bandit", "--block_size=16", "--max_iters=4", "--save_interval=2"
    for kind in ("dpo", "grpo"):
        source = ("--dpo_pairs=" + str(tmp_path / "pairs.jsonl"),) if kind == "dpo" else ()
        pairs = [{"prompt": "a?", "chosen": "b", "rejected": "c"}] * 8
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
        train(*flags, f"--technique={kind}", *source, f"--out_dir={tmp_path / kind}")
    config = {kind: str(tmp_path / kind) for kind in ("dpo", "grpo")}
    config |= {"prompts": 5, "to": str(tmp_path / "both.png")}
    assert preferences.picture(config) == f"saved {tmp_path / 'both.png'}"
    for kind in ("dpo", "grpo"):
        rows = rows_of(tmp_path / kind / "exact_match.jsonl")
        assert [(row["step"], row["prompts"]) for row in rows] == [(2, 5), (4, 5)]
    monkeypatch.setattr(preferences, "share_exact", None)
    preferences.picture(config)
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
