"""Weight averaging: the average by hand, what is evaluated and saved, resuming, the plain run."""

import copy
import json
import sys

import pytest
import torch

from model import GPT, GPTConfig
from runtime import checkpoint
from techniques import average, change

AVERAGED = "--average_decay=0.8", "--dtype=float32", "--eval_interval=3", "--max_iters=6"


def weights_of(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def averaged_model(decay: float = 0.9, **shape) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**dict(vocab_size=20, block_size=8, n_layer=1, n_head=2, n_embd=16), **shape}))
    return change("change_model", model, {"technique": "average", "average_decay": decay})


@pytest.mark.parametrize("shape", [{}, {"arch": "gpt2"}])
def test_the_average_is_that_of_the_formula(shape):
    """In float64; the first decays are lower: 2/11, 3/12, ... until average_decay."""
    model, config = averaged_model(0.3, **shape), {"average_decay": 0.3}
    expected = [w.double() for w in weights_of(model)]
    for step in range(1, 6):
        for p in model.parameters():
            p.data.normal_()
        average.after_step(model, step, config)
        decay = min(0.3, (1 + step) / (10 + step))
        pairs = zip(expected, weights_of(model), strict=True)
        expected = [decay * e + (1 - decay) * w.double() for e, w in pairs]
    trained = weights_of(model)
    model.eval()
    for found, wanted in zip(weights_of(model), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    model.eval()  # a second time changes nothing
    model.train()
    assert all(map(torch.equal, weights_of(model), trained))


def test_a_copy_exchanges_its_own_weights():
    model = averaged_model()
    average.after_step(model, 1, {"average_decay": 0.9})
    for p in model.parameters():
        p.data += 1
    before, twin = weights_of(model), copy.deepcopy(model).eval()
    assert all(map(torch.equal, weights_of(model), before))
    assert not any(map(torch.equal, weights_of(twin), before))


def test_a_run_evaluates_and_saves_the_average(train, tmp_path):
    """best.pt in sample.py and evaluate.py is the average; training itself is as without it."""
    train("--dtype=float32", "--eval_interval=3", "--max_iters=6", "--out_dir=" + str(tmp_path / "plain"))
    train(*AVERAGED)
    raw = torch.load(tmp_path / "plain/ckpt.pt", weights_only=True)["model"]
    saved = torch.load(tmp_path / "out/ckpt.pt", weights_only=True)["model"]
    assert all(torch.equal(saved[name], t) for name, t in raw.items())
    model, _, _ = checkpoint.load_model(tmp_path / "out/ckpt.pt", torch.device("cpu"))
    for name, p in model.named_parameters():
        assert torch.equal(p, saved["average." + name.replace(".", "_")])
        assert not torch.equal(p, raw[name])
    files = [tmp_path / run / "result.json" for run in ("plain", "out")]
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    assert results[0]["best_val_loss"] != results[1]["best_val_loss"]


def test_a_resumed_run_ends_with_the_same_bits(train, tmp_path):
    train(*AVERAGED)
    whole = torch.load(tmp_path / "out/ckpt.pt", weights_only=True)["model"]
    train(*AVERAGED[:-1], "--max_iters=3", "--lr_decay_iters=6", "--out_dir=" + str(tmp_path / "two"))
    train("--init_from=resume", "--max_iters=6", "--out_dir=" + str(tmp_path / "two"))
    again = torch.load(tmp_path / "two/ckpt.pt", weights_only=True)["model"]
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_an_error_in_an_evaluation_saves_what_learns(train, tmp_path):
    """The model is in evaluation mode then, with the average in the weights' place."""
    model = averaged_model()
    average.after_step(model, 1, {"average_decay": 0.9})
    for p in model.parameters():
        p.data += 1
    learns = {name: t.clone() for name, t in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters())
    model.eval()
    checkpoint.Saver(tmp_path, "file", 1, 0).save("ckpt.pt", {"config": {}}, model, optimizer)
    saved = torch.load(tmp_path / "ckpt.pt", weights_only=True)["model"]
    assert all(torch.equal(saved[name], t) for name, t in learns.items())


def test_the_plain_run_is_the_average(train, tmp_path, monkeypatch):
    train(*AVERAGED)
    monkeypatch.setattr(sys, "argv", ["average"])
    config = {"out_dir": str(tmp_path / "out"), "file": "best.pt", "to": str(tmp_path / "plain")}
    assert average.plain_run(config) == f"saved {tmp_path / 'plain/best.pt'}"
    idx = torch.arange(8)[None]
    models = [
        checkpoint.load_model(tmp_path / run / "best.pt", torch.device("cpu"))[0] for run in ("out", "plain")
    ]
    assert not hasattr(models[1], "average")
    assert torch.equal(models[0](idx), models[1](idx))
    with pytest.raises(ValueError, match="was not averaged; expected a run with technique=average"):
        average.plain_run({**config, "out_dir": config["to"], "to": str(tmp_path / "other")})


def test_a_new_run_starts_from_the_average(train, tmp_path):
    """As a plain model: at a rate of almost 0 its loss stays, also where LoRA or another decay is added."""
    train(*AVERAGED)
    base = json.loads((tmp_path / "out/metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    for i, flags in enumerate(("", "--lora_rank=2", "--average_decay=0.5")):
        out = tmp_path / f"new-{i}"
        slow = "--learning_rate=1e-9", "--muon_lr=1e-9", "--max_iters=2", "--eval_interval=1"
        train(f"--init_from={tmp_path / 'out'}", *flags.split(), *slow, f"--out_dir={out}", "--dtype=float32")
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        found = [row["val_loss"] for row in rows if "val_loss" in row]
        assert found == pytest.approx([base["val_loss"]] * 3, abs=1e-4)
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        assert config["technique"] == ["", "lora", "average"][i]


@pytest.mark.parametrize("arch", ["modern", "gpt2"])
def test_the_base_of_a_new_run_is_plain(arch):
    model = averaged_model(arch=arch)
    average.after_step(model, 1, {"average_decay": 0.9})
    saved = {"model": model.state_dict(), "config": {"technique": "average", "average_decay": 0.9}}
    base = change("as_base", saved, saved["config"])
    assert base["config"]["technique"] == ""
    plain = GPT(model.config)
    plain.load_state_dict(base["model"])
    idx = torch.arange(8)[None]
    assert torch.equal(plain.eval()(idx), model.eval()(idx))


def test_memory_that_runs_out_leaves_nothing_exchanged(monkeypatch):
    """All of it is taken before the first weight is overwritten."""
    model = averaged_model()
    average.after_step(model, 1, {"average_decay": 0.9})
    before = weights_of(model)

    def refuse(*arguments, **keywords):
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", refuse)
        patch.setattr(torch.Tensor, "clone", refuse)
        with pytest.raises(torch.OutOfMemoryError):
            model.eval()
    model.train()
    assert all(map(torch.equal, weights_of(model), before))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"average_decay": 1.0}, "average_decay=1.0 makes no sense; expected above 0, below 1"),
        ({"strategy": "fsdp"}, "technique=average is not for strategy=fsdp; expected ddp or zero1"),
        ({"technique": "average,lora"}, "technique=average is for training all weights; leave lora out"),
    ],
)
def test_what_makes_no_sense_is_one_line(settings, message):
    with pytest.raises(ValueError, match=message):
        average.change_model(None, {"technique": "average", "average_decay": 0.9, **settings})
