"""Distillation: the loss by hand, a teacher that stays as it is, the top k on disk, what is refused."""

import dataclasses
import hashlib
import math
import re
import shutil
import zlib
from pathlib import Path

import pytest
import torch

from config import technique_settings
from model import GPT, GPTConfig
from runtime import checkpoint
from techniques import change, distill, teacher_cache
from test_strategies import MODEL, losses, run_all
from text import corpora, prepare
from tokenizer import load_any

SHAPE = dict(block_size=32, n_layer=1, n_head=2, n_embd=16)
V, T = 9, 2.5


# ---- the loss
class Says(torch.nn.Module):
    """A model that says what it was told, whatever it reads."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.logits


def pupil(student: torch.Tensor, teacher: torch.Tensor, k: int = 0) -> Says:
    """A student and its teacher, which say these logits (B,T,V)."""
    model = Says(student)
    model.teacher = distill.Teacher.__new__(distill.Teacher)
    vars(model.teacher).update(model=Says(teacher), temperature=T, k=k, cache=None)
    return model


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """student and teacher (2,3,V), ids x and targets y (2,3), two of them not scored."""
    torch.manual_seed(0)
    student, teacher = (2 * torch.randn(2, 3, V, dtype=torch.float64) for _ in range(2))
    y = torch.tensor([[3, -1, 0], [8, 2, -1]])
    return student.requires_grad_(), teacher, torch.zeros(2, 3, dtype=torch.int64), y


def softmax(logits: list[float]) -> list[float]:
    return [math.exp(z) / sum(map(math.exp, logits)) for z in logits]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_and_its_gradient_are_those_written_out(logits, alpha):
    """alpha x T^2 x KL + (1 - alpha) x cross-entropy, in plain Python; the gradient by hand from the same."""
    student, teacher, x, y = logits
    nats = distill.loss(pupil(student, teacher), x, y, {"distill_alpha": alpha, "distill_temperature": T})
    nats.backward()
    expected, gradient = 0.0, torch.zeros_like(student)
    for b, t in [(0, 0), (0, 2), (1, 0), (1, 1)]:
        z, target = student[b, t].tolist(), y[b, t].item()
        p, q = (softmax([z / T for z in each[b, t].tolist()]) for each in (teacher, student))
        hard = softmax(z)
        kl = sum(p[v] * math.log(p[v] / q[v]) for v in range(V))
        expected += alpha * T * T * kl - (1 - alpha) * math.log(hard[target])
        for v in range(V):
            gradient[b, t, v] = alpha * T * (q[v] - p[v]) + (1 - alpha) * (hard[v] - (v == target))
    assert nats.item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(student.grad, gradient, rtol=1e-10, atol=1e-12)
    single = pupil(student.float(), teacher.float())
    nats = distill.loss(single, x, y, {"distill_alpha": alpha, "distill_temperature": T})
    assert nats.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("k", [1, 3, V - 1])
def test_top_k_counts_all_others_as_one(logits, k):
    """Written out; at most the KL of all tokens, and equal where the others are one token."""
    student, teacher, x, y = logits
    whole, some = (
        distill.loss(pupil(student, teacher, n), x, y, {"distill_alpha": 1.0, "distill_temperature": T})
        for n in (0, k)
    )
    expected = 0.0
    for b, t in [(0, 0), (0, 2), (1, 0), (1, 1)]:
        p, q = (softmax([z / T for z in each[b, t].tolist()]) for each in (teacher, student))
        top = sorted(range(V), key=lambda v: -p[v])[:k]
        pairs = [(p[v], q[v]) for v in top] + [(1 - sum(p[v] for v in top), 1 - sum(q[v] for v in top))]
        expected += T * T * sum(a * math.log(a / b) for a, b in pairs)
    assert some.item() == pytest.approx(expected, rel=1e-9)
    assert some <= whole + 1e-12
    assert k < V - 1 or some.item() == pytest.approx(whole.item(), rel=1e-9)
    (gradient,) = torch.autograd.grad(some, student)
    assert gradient.isfinite().all()


# ---- runs
@pytest.fixture
def teacher(datasets, tmp_path) -> Path:
    """The folder of a run to learn from: random weights, with dropout, wider and deeper than the student."""
    return run_of(tmp_path / "big", load_any(datasets / "small"), n_layer=3, n_embd=48, dropout=0.5)


def run_of(folder: Path, tokenizer, seed: int = 0, **shape) -> Path:
    torch.manual_seed(seed)
    model = GPT(
        GPTConfig(**{**SHAPE, "vocab_size": tokenizer.vocab_size, "n_head": 2, "zero_init": 0, **shape})
    )
    state = dict(
        model=model.state_dict(), model_config=dataclasses.asdict(model.config),
        tokenizer=tokenizer.to_json(), dataset={}, config={"technique": ""}, step=7, tokens=0, seconds=0.0,
    )  # fmt: skip
    folder.mkdir()
    checkpoint.save(folder / "best.pt", state)
    return folder


@pytest.fixture
def learn(train, teacher):
    """learn("--flag=1") trains a student of the teacher; returns train.py's globals."""
    return lambda *flags: train(f"--distill_teacher={teacher}", "--max_iters=4", *flags)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "ckpt.pt", weights_only=True)["model"]


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_alpha_0_is_plain_training_bit_for_bit(learn, train, tmp_path):
    learn("--distill_alpha=0", "--dropout=0.1")
    train("--max_iters=4", "--dropout=0.1", f"--out_dir={tmp_path / 'plain'}")
    assert same(weights(tmp_path / "out"), weights(tmp_path / "plain"))
    learn(f"--out_dir={tmp_path / 'taught'}", "--dropout=0.1")
    assert not same(weights(tmp_path / "taught"), weights(tmp_path / "plain"))


def test_the_teacher_stays_as_it_is_and_out_of_the_student(learn, train, teacher, tmp_path, capsys):
    before = hash_of(teacher / "best.pt")
    ran = learn("--eval_interval=2")
    model, master = ran["raw_model"], ran["raw_model"].teacher
    plain = GPT(model.config)
    assert weights(tmp_path / "out").keys() == plain.state_dict().keys()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
    assert same(master.model.state_dict(), torch.load(teacher / "best.pt", weights_only=True)["model"])
    assert not master.model.training and not any(m.training for m in master.model.modules())
    assert all(p.grad is None and not p.requires_grad for p in master.model.parameters())
    assert hash_of(teacher / "best.pt") == before
    printed = capsys.readouterr().out
    assert re.search(rf"teacher: {teacher}, [\d,]+ parameters, step 7, hash {master.hash:.12}\n", printed)
    mix = "loss = 0.5 x 2^2 x KL(teacher || student, temperature 2) + 0.5 x cross-entropy; train loss and val"
    assert mix in printed
    saved = torch.load(tmp_path / "out/ckpt.pt", weights_only=True)
    assert saved["config"]["distill_hash"] == master.hash
    found = ran["evaluate"](model, *ran["val_set"], ran["torch_device"], ran["autocast"])
    assert found["loss"] == saved["val_loss"]  # cross-entropy: evaluate() knows no teacher


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(learn, train, teacher, tmp_path):
    """Half of it reads what it needs from the cache, and half writes it."""
    cache = f"--distill_cache={tmp_path / 'cache'}", "--distill_top_k=3", "--dropout=0.1"
    learn(*cache, f"--out_dir={tmp_path / 'whole'}")
    whole = weights(tmp_path / "whole")
    shutil.rmtree(tmp_path / "cache")
    learn(*cache, "--max_iters=2", "--lr_decay_iters=4")
    resumed = train("--init_from=resume", "--max_iters=4")
    assert same(weights(tmp_path / "out"), whole)
    assert resumed["config"]["distill_hash"] == resumed["raw_model"].teacher.hash
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.slow
def test_a_resumed_run_needs_its_own_teacher_and_others_do_not(learn, train, teacher, tmp_path, datasets):
    learn()
    shutil.move(teacher, tmp_path / "elsewhere")
    model, _, _ = checkpoint.load_model(tmp_path / "out/ckpt.pt", torch.device("cpu"))
    assert not hasattr(model, "teacher")
    with pytest.raises(ValueError, match="big does not exist; a run that learns from it, or resumes, needs"):
        train("--init_from=resume", "--max_iters=5")
    run_of(teacher, load_any(datasets / "small"), seed=1, n_layer=3, n_embd=48)
    with pytest.raises(ValueError, match="is not the teacher that this run began with: its hash is .*put"):
        train("--init_from=resume", "--max_iters=5")
    new = train(f"--init_from={tmp_path / 'out'}", f"--out_dir={tmp_path / 'new'}", "--max_iters=1")
    assert new["technique"] == "" and not hasattr(new["raw_model"], "teacher")


@pytest.mark.parametrize("on", ["distill,average", "average,distill"])
def test_a_new_run_from_a_student_is_plain_also_after_averaging(on):
    saved = {"model": {"head.weight": torch.ones(1), "average.head_weight": torch.zeros(1)}}
    saved["config"] = {"technique": on, "average_decay": 0.9}
    base = change("as_base", saved, saved["config"])
    assert base["config"]["technique"] == "" and base["model"] == {"head.weight": torch.zeros(1)}


# ---- the top k on disk
def test_the_cache_gives_what_the_teacher_says(learn, tmp_path, monkeypatch):
    """Without it, on writing and on reading it the weights are the same; on reading, the teacher rests."""
    top, cache = "--distill_top_k=3", f"--distill_cache={tmp_path / 'cache'}"
    learn(top, f"--out_dir={tmp_path / 'direct'}")
    learn(top, cache, f"--out_dir={tmp_path / 'writes'}")
    (file,) = (tmp_path / "cache").iterdir()
    assert file.stat().st_size == 4 * 4 * (16 + 32 * (3 * 2 + 4 * 4) + 4)  # 4 updates of 4 windows
    monkeypatch.setattr(teacher_cache.TopKCache, "write", None)
    learn(top, cache, f"--out_dir={tmp_path / 'reads'}")
    direct = weights(tmp_path / "direct")
    assert same(weights(tmp_path / "writes"), direct) and same(weights(tmp_path / "reads"), direct)


@pytest.fixture
def cache(tmp_path):
    """cache() opens the cache of windows of 8 tokens, k = 2, V = 10, in tmp_path/cache."""
    return lambda about="a": teacher_cache.TopKCache(tmp_path / "cache", about, 8, 2, 10)


def rows(n: int, width: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Windows x (n,width), ids (n,width,2), log-probabilities (n,width,3)."""
    torch.manual_seed(n)
    ids = torch.rand(n, width, 10).topk(2).indices
    return torch.randint(0, 10, (n, width)), ids, torch.randn(n, width, 3).log_softmax(-1)


def test_a_window_is_found_by_its_ids_teacher_temperature_and_precision(cache):
    x, ids, log_p = rows(3)
    cache().write(x, ids, log_p)
    cache().write(*rows(2, width=5))
    again = cache()
    for found, wanted in zip(again.read(x[[2, 0]]), (ids[[2, 0]], log_p[[2, 0]]), strict=True):
        assert torch.equal(found, wanted) and found.dtype == wanted.dtype
    short = rows(2, width=5)
    assert all(map(torch.equal, again.read(short[0]), short[1:]))
    assert cache("another temperature").read(x) is None
    assert again.read(x + 1) is None
    assert again.read(torch.cat((x, x + 1))) is None  # all of a batch, or nothing
    with torch.autocast("cpu", torch.bfloat16):
        assert again.read(x) is None


def test_what_a_kill_cuts_off_is_computed_again(cache):
    x, ids, log_p = rows(3)
    first = cache()
    first.write(x, ids, log_p)
    content = first.own.read_bytes()
    first.own.write_bytes(content[:-1])
    second = cache()
    assert second.read(x[:2]) and second.read(x) is None
    second.write(x, ids, log_p)
    assert all(map(torch.equal, cache().read(x), (ids, log_p)))
    first.own.write_bytes(b"")
    assert cache().read(x[:2]) is None


def test_a_damaged_record_is_one_line(cache, tmp_path):
    x, ids, log_p = rows(2)
    first = cache()
    first.write(x, ids, log_p)
    content = bytearray(first.own.read_bytes())
    size = len(content) // 2
    content[size + 40] ^= 1
    first.own.write_bytes(content)
    assert cache().read(x[:1])
    with pytest.raises(
        ValueError, match=r"\.bin is damaged at record 1; delete it: what it held is computed"
    ):
        cache().read(x)
    content[size + 40] ^= 1
    content[16:18] = b"\xff\xff"  # an id that no token has, with the right checksum
    content[size - 4 : size] = zlib.crc32(content[: size - 4]).to_bytes(4, "little")
    first.own.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged at record 0"):
        cache().read(x)
    half_gone = cache()
    first.own.write_bytes(content[: size + 3])
    with pytest.raises(ValueError, match="is damaged at record 1"):
        half_gone.read(x[1:])
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="distill_cache=.*file is a file; expected a folder"):
        teacher_cache.TopKCache(tmp_path / "file", "a", 8, 2, 10)


def test_a_full_disk_is_one_line(cache, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(ValueError, match="could not be written: No space left on device; free some space"):
        cache().write(*rows(1))


@pytest.mark.slow
def test_the_table_of_what_top_k_leaves_out(learn, tmp_path):
    learn("--distill_temperature=1")
    settings = {"out_dir": str(tmp_path / "out"), "file": "best.pt", "windows": 4, "tops": "1,3"}
    lines = [line.split() for line in teacher_cache.errors_of_top_k(settings)]
    kl = [float(line[2]) for line in lines[1:]]
    assert [line[0] for line in lines[1:]] == ["1", "3", "all"] and kl == sorted(kl)
    assert lines[-1][1:5] == ["100.00%", lines[-1][2], "100.0%", "0.0%"]
    with pytest.raises(ValueError, match="tops=0 makes no sense; expected some of 1 to"):
        teacher_cache.errors_of_top_k({**settings, "tops": "0"})
    with pytest.raises(ValueError, match="tops=a makes no sense"):
        teacher_cache.errors_of_top_k({**settings, "tops": "a"})


# ---- what is refused
DEFAULTS = {name: value for name, value in technique_settings()["distill"].items()}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"teacher": ""}, "distillation needs a teacher; expected a run: --distill_teacher=out-big"),
        ({"alpha": 1.5}, "distill_alpha=1.5 makes no sense; expected 0 to 1"),
        ({"temperature": 0.0}, "distill_temperature=0.0 makes no sense; expected above 0"),
        ({"top_k": -1}, r"distill_top_k=-1 makes no sense; expected 0 \(all\) to"),
        ({"top_k": 999}, r"distill_top_k=999 makes no sense; expected 0 \(all\) to"),
        ({"cache": "somewhere"}, "distill_cache keeps the top k; expected --distill_top_k=16"),
        ({"teacher": "out-nowhere"}, "distill_teacher=out-nowhere does not exist; a run that learns from it"),
        ({"block_size": 33}, "big reads 32 tokens; expected --block_size=32 or less, not 33"),
        (
            {"dataset": "other"},
            "big has the tokenizer .*, the dataset .*; prepare the text with the teacher's",
        ),
        ({"out_dir": "big"}, "big is in out_dir, where the student would overwrite it"),
        ({"hash": "a" * 64}, "its hash is .*, not aaaaaaaaaaaa; put that one back"),
    ],
)
def test_what_cannot_be_is_one_line(teacher, datasets, tmp_path, monkeypatch, settings, message):
    monkeypatch.setattr(prepare, "DATASETS", datasets)
    if "dataset" in settings:
        (tmp_path / "text.txt").write_text("another text\n" * 100, encoding="utf-8")
        monkeypatch.setattr(prepare, "DATASETS", tmp_path)
        prepare.prepare("other", str(tmp_path / "text.txt"))
    whole = {
        "out_dir": str(tmp_path / settings.get("out_dir", "out")),
        "dataset": settings.get("dataset", "small"),
    }
    whole |= DEFAULTS | {"distill_teacher": str(teacher)}
    whole |= {f"distill_{name}": value for name, value in settings.items() if f"distill_{name}" in DEFAULTS}
    student = GPT(GPTConfig(**SHAPE | {"block_size": settings.get("block_size", 32)}))
    with pytest.raises(ValueError, match=message) as error:
        change("change_model", student, {"technique": "distill", **whole})
    assert "\n" not in str(error.value)


def test_a_model_of_others_is_imported_first(teacher, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    settings = {**DEFAULTS, "technique": "distill", "distill_teacher": str(tmp_path / "hf")}
    with pytest.raises(ValueError, match="is no run of tinylm; make it one: python -m techniques.pretrained"):
        change("change_model", GPT(GPTConfig(**SHAPE)), settings)


def test_on_meta_nothing_is_read():
    with torch.device("meta"):
        model = GPT(GPTConfig(**SHAPE))
    settings = {"technique": "distill", "distill_teacher": "out-nowhere"}
    assert not hasattr(change("change_model", model, settings), "teacher")


# ---- divided work
@pytest.mark.slow
def test_micro_steps_and_precision(learn, tmp_path):
    """4 windows at once and 2 x 2 give the same losses; bfloat16 nearly."""
    runs = {"whole": "", "steps": "--batch_size=2 --gradient_accumulation_steps=2", "low": "--dtype=bfloat16"}
    for name, flags in runs.items():
        learn("--log_interval=1", "--distill_alpha=0.7", f"--out_dir={tmp_path / name}", *flags.split())
    whole, steps, low = (losses(tmp_path / name) for name in runs)
    assert len(whole) == 4
    torch.testing.assert_close(steps, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(low, whole, rtol=0.05, atol=0.02)
    assert not torch.equal(low, whole)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(forks, tmp_path):
    """With each strategy, and with a cache that one process writes and two read, or the other way round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "DATASETS", tmp_path / "datasets")
        text = "".join(text for text, _ in corpora.open_corpus("verse", size=30_000).chunks())
        (tmp_path / "plain.txt").write_text(text, encoding="utf-8")
        prepare.prepare("plain", str(tmp_path / "plain.txt"))
    run_of(tmp_path / "big", load_any(tmp_path / "datasets/plain"), n_embd=32)
    cached = f"--distill_top_k=4 --distill_cache={tmp_path}/cache"
    kinds = ["", "--strategy=zero1", "--strategy=fsdp", cached, f"{cached}-2"]
    same = f"{MODEL} --dataset=plain --batch_size=4 --eval_interval=20 --max_iters=20"
    same += f" --optimizer=adamw --distill_teacher={tmp_path / 'big'}"
    for n, order in ((1, (0, 1, 2, 3)), (2, (0, 1, 2, 3, 4)), (1, (4,))):
        run_all(forks, tmp_path, n, [f"{n}-{i} {same} {kinds[i]}" for i in order])
    for i, kind in enumerate(kinds):
        one, two = (losses(tmp_path / f"{n}-{i}") for n in (1, 2))
        assert one[0, 0] - one[-1, 0] > 0.01, kind
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4, msg=kind)
    assert len(list((tmp_path / "cache").iterdir())) == 1  # the second and third process wrote nothing
    assert len(list((tmp_path / "cache-2").iterdir())) == 2  # each wrote its own windows
