"""plan.py by hand and against real runs; the table; how fast the processes talk."""

import ast
import json
import re

import pytest
import torch

import bench
import techniques
from lab import plan, plan_check
from lab.measure import CPU, settings_of
from machine import distributed, hardware, speed
from model import GPT, rope_tables
from runtime import memory
from techniques import allreduce

# 476 parameters: wte 10 x 4, wpe 8 x 4, final norm 4, and two blocks of 200 (norms 4 + 4, q k v o 4 x 16,
# up 16 x 4, down 4 x 16), of which 192 are in matrices.
TINY = dict(arch="gpt2", n_layer=2, n_head=2, n_embd=4, block_size=8, dtype="bfloat16", batch_size=2)


def tiny(strategy: str, optimizer: str = "adamw", micro_steps: int = 3, **changes) -> tuple:
    """(model, settings)."""
    settings = settings_of(
        **{**TINY, **changes},
        strategy=strategy,
        optimizer=optimizer,
        gradient_accumulation_steps=micro_steps,
    )
    return memory.on_meta(settings, 10), settings


# ---- by hand
@pytest.mark.parametrize(
    "strategy, optimizer, W, weights, averages",
    [
        ("ddp", "adamw", 4, 4 * 476, 8 * 476),
        ("ddp", "muon", 4, 4 * 476, 4 * 384 + 8 * 92),
        ("ddp", "sgd", 4, 4 * 476, 4 * 476),
        # the ranks in turn: 64 64 | 40, 32 | 16 x 4 each | the norms, where there is least
        ("zero1", "adamw", 2, 4 * 476, 8 * 240),
        ("zero1", "adamw", 1, 4 * 476, 8 * 476),
        # rank 0 of 4 has 3 rows of wte, 2 of wpe, 1 number of the norm, and 50 of each block
        ("fsdp", "adamw", 4, 4 * 121, 8 * 121),
        ("fsdp", "muon", 4, 4 * 121, 4 * 96 + 8 * 25),
        ("fsdp", "adamw", 1, 4 * 476, 8 * 476),
    ],
)
def test_what_a_rank_keeps(strategy, optimizer, W, weights, averages):
    found = memory.kept(*tiny(strategy, optimizer), W)
    assert found == {"weights": weights, "gradients": weights, "optimizer": averages}


def test_an_untied_head_counts():
    assert memory.kept(*tiny("ddp", tie_weights=0), 2)["weights"] == 4 * 516
    assert memory.kept(*tiny("fsdp", tie_weights=0), 4)["weights"] == 4 * (121 + 12)
    gathered, _ = plan.exchanged(*tiny("fsdp", micro_steps=1, tie_weights=0), 4)
    assert gathered.n_bytes == 4 * (84 + 48) + 2 * 2 * 400


def test_what_is_exchanged():
    def messages(*what):
        found = plan.exchanged(*tiny(*what), 4)
        return [(message.operation, message.n_bytes, message.sent(4)) for message in found]

    gradients = ("all-reduce", 4 * 476, 2 * 3 / 4 * 4 * 476)
    assert messages("ddp") == messages("ddp", "muon") == messages("ddp", "adamw", 1) == [gradients]
    assert messages("zero1") == [gradients, ("broadcast", 4 * 476, 3 / 4 * 4 * 476)]
    # filled up to 484: wte has 12 rows; the blocks (400) travel in 2 bytes, forward and backward
    gathered, summed, matrices = 3 * (4 * 84 + 2 * 2 * 400), 4 * 484, 4 * 384
    expected = [("all-gather", gathered, 3 / 4 * gathered), ("reduce-scatter", summed, 3 / 4 * summed)]
    assert messages("fsdp") == expected
    assert messages("fsdp", "muon") == [*expected, ("all-gather", matrices, 3 / 4 * matrices)]


def test_one_rank_sends_nothing():
    for strategy in distributed.STRATEGIES:
        assert sum(message.sent(1) for message in plan.exchanged(*tiny(strategy), 1)) == 0


def test_gradients_are_whole_between_micro_steps_and_twice_in_ddp():
    assert memory.needed(*tiny("ddp"), 1)["gradients"] == 4 * 476
    assert memory.needed(*tiny("zero1"), 4)["gradients"] == 4 * 476
    assert memory.needed(*tiny("fsdp"), 4)["gradients"] == 4 * 476
    assert memory.needed(*tiny("fsdp", micro_steps=1), 4)["gradients"] == 4 * 121


def test_muon_steps_on_whole_matrices():
    """Eight matrices of 4 x 4 take most: gathered and stacked in 4 bytes, x twice and products in 2."""
    step = 8 * ((8 + 4) * 16 + 4 * 16)
    assert [memory.working(*tiny(s, "muon"), 4)[1] for s in distributed.STRATEGIES] == [step, step // 4, step]
    assert memory.working(*tiny("ddp"), 4)[1] == 0
    held = memory.needed(*tiny("fsdp", "muon", n_layer=24, n_embd=256, batch_size=1), 64)
    assert held["gradients"] == held["weights"]  # the worst moment is the step: gradients are cut by then


def test_time_is_the_larger_or_the_sum():
    model, settings = tiny("zero1")
    compute = (6 * 476 + 12 * 2 * 4 * 8) * 2 * 3 * 8 / 0.5e12  # 6 N and attention, 48 tokens
    hidden, shown = 2 * 3 / 4 * 4 * 476, 3 / 4 * 4 * 476  # bytes: gradients, then weights
    for per_node, rate in ((4, 1e7), (2, 1e10)):  # the slower: network, computing
        cluster = plan.Cluster(
            4, per_node, 80.0, peak_tflops=1.0, mfu=0.5, bandwidth=0.01, bandwidth_between=10
        )
        found = plan.step_seconds(model, settings, cluster)
        assert found["compute"] == pytest.approx(compute)
        assert found["network"] == pytest.approx((hidden + shown) / rate)
        assert found["best"] == pytest.approx(max(compute, hidden / rate) + shown / rate)
        assert found["worst"] == pytest.approx(compute + (hidden + shown) / rate)


def saved_by_block(model: GPT, dtype: str) -> int:
    """Bytes that autograd keeps of one block. 1,024 tokens: then bfloat16 has no T x T scores on a CPU."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    saved = {}  # storage: bytes. The tensors stay alive, else a storage could come twice

    def note(t):
        if (
            t.untyped_storage().data_ptr() not in own and t.ndim and t.size(0) in (2, 2048)
        ):  # no weight's copy
            saved.setdefault(t.untyped_storage().data_ptr(), t)
        return t

    x = torch.randn(2, 1024, model.config.n_embd, requires_grad=True)
    head_size = model.config.head_size
    rope = rope_tables(torch.arange(1024)[None], head_size, 1e4) if model.config.position == "rope" else None
    autocast, _ = hardware.choose_precision(dtype, CPU)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), autocast:
        model.blocks[0](x, rope)
    return sum(t.untyped_storage().nbytes() for t in saved.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", ["gpt2", "modern", "llama"])
def test_activations_are_what_autograd_saves(arch, dtype):
    settings = settings_of(
        arch=arch, dtype=dtype, n_layer=1, n_head=2, n_embd=128, block_size=1024, batch_size=2, logits_mb=0
    )
    model = GPT(memory.shape_of(settings, 10))
    found = saved_by_block(model, dtype)
    norm = 4 if arch == "gpt2" else 8  # the last one: RMSNorm also keeps what it multiplies by its weights
    rest = 2048 * (norm + (4 if dtype == "float32" else 2)) * 128 + 3 * 4 * 2048 * 10  # head, logits
    assert memory.activations(model, settings) - rest == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
@pytest.mark.parametrize("targets", ["q,v", "mlp.down,o", "*"])
def test_frozen_layers_keep_less(arch, dtype, targets):
    """A frozen layer keeps no input. With A beside it, it does; A's output (8 numbers) is not counted."""
    settings = settings_of(
        arch=arch, dtype=dtype, n_layer=1, n_head=2, n_embd=256, block_size=1024, batch_size=2,
        technique="lora", lora_targets=targets,
    )  # fmt: skip
    model = techniques.change("change_model", GPT(memory.shape_of(settings, 10)), settings)
    found = saved_by_block(model, dtype)
    rank = 2 * 1024 * 8 * sum(hasattr(m, "A") for m in model.modules()) * (4 if dtype == "float32" else 2)
    of_block = memory.block_activations(model.blocks[0], dtype)
    assert 2048 * of_block == pytest.approx(found - rank, rel=0.05)


# ---- techniques
@pytest.mark.parametrize(
    ("changes", "weights", "trained"),
    [
        # q, k, v and o of two blocks, each 2 x (4 + 4) numbers
        (dict(technique="lora", lora_rank=2), 4 * (476 + 128), 128),
        (dict(technique="lora", lora_rank=2, freeze="blocks.0"), 4 * (476 + 128), 64),
        # int8: a byte a weight and 4 a row of 20 + 16 + 4 rows a block and 10; norms and positions stay
        (dict(technique="quantize,lora", quantize="int8", lora_rank=2),
         2 * (192 + 4 * 36) + 40 + 40 + 4 * (32 + 4 + 2 * 8 + 128), 128),
        (dict(freeze="*.attn,wte"), 4 * 476, 476 - 40 - 128),
        (dict(freeze="blocks.[01].mlp"), 4 * 476, 476 - 256),
    ],
)  # fmt: skip
def test_what_is_frozen_has_no_gradient_and_no_state(changes, weights, trained):
    model, settings = tiny("ddp", **changes)
    expected = {"weights": weights, "gradients": 4 * trained, "optimizer": 8 * trained}
    assert memory.kept(model, settings, 4) == expected
    assert memory.needed(model, settings, 4)["gradients"] == 4 * trained
    gradients, broadcast = plan.exchanged(model, {**settings, "strategy": "zero1"}, 4)
    assert gradients.n_bytes == broadcast.n_bytes == 4 * trained


def test_packed_weights_are_not_sharded():
    model, settings = tiny("fsdp", technique="quantize,lora", quantize="nf4", lora_rank=2)
    packed = sum(buffer.nbytes for buffer in model.buffers())
    sharded = memory.kept(model, settings, 4)["weights"] - packed
    assert packed > 0 and sharded < 4 * sum(p.numel() for p in model.parameters()) / 2


@pytest.mark.parametrize(
    ("shape", "n"),
    [
        ("7b", 6_738_415_616),
        pytest.param("13b", 13_015_864_320, marks=pytest.mark.slow),
        pytest.param("70b", 68_976_648_192, marks=pytest.mark.slow),
    ],
)
def test_the_shapes_are_llama_2s(shape, n):
    settings, vocab_size = plan.shaped(settings_of(), 65, shape)
    assert speed.parameters_of(memory.on_meta(settings, vocab_size)) == n
    with pytest.raises(ValueError, match="^shape=8b is unknown; expected one of 7b, 13b, 70b$"):
        plan.shaped(settings_of(), 65, "8b")


def test_a_frozen_weight_takes_two_thirds_of_the_work():
    model, _ = tiny("ddp", technique="lora", lora_rank=2)
    attention = 12 * 2 * 4 * 8
    assert speed.flops_per_token(model) == 4 * 476 + 6 * 128 + attention
    untied, _ = tiny("ddp", technique="lora", lora_rank=2, tie_weights=0)
    assert speed.flops_per_token(untied) == 4 * 476 + 6 * 128 + attention
    packed, _ = tiny("ddp", technique="quantize,lora", quantize="nf4", lora_rank=2)
    assert speed.parameters_of(packed) == speed.parameters_of(model)
    assert speed.flops_per_token(packed) == speed.flops_per_token(model)


@pytest.mark.slow
def test_bytes_of_an_update_are_those_of_the_formula():
    """The shape of SmolLM2, two layers of it: LoRA, int8 and nf4 byte by byte, activations to 3 %."""
    shape = {**plan_check.SMALL_SMOLLM2, "vocab_size": 128}
    rows = list(plan_check.footprints(shape))
    assert len(rows) == 5 * len(plan.WAYS)
    for row in rows:
        if plan_check.KEPT in row.what:
            assert float(row.ratio) == pytest.approx(1, abs=0.03), row
        elif "but for" not in row.what:
            assert row.ratio == "1.000", row


@pytest.mark.slow
def test_where_the_shares_of_the_guides_come_from():
    """Weights, gradients and AdamW's state of 7B: LoRA leaves 4 of 16 bytes a parameter, nf4 half a byte."""
    kept = {}
    for way, changes in plan.WAYS.items():
        settings, vocab_size = plan.shaped(settings_of(optimizer="adamw", **changes), 65, "7b")
        kept[way] = sum(memory.kept(memory.on_meta(settings, vocab_size), settings, 1).values())
    saved = {way: round(100 * (1 - n_bytes / kept["whole"]), 1) for way, n_bytes in kept.items()}
    assert saved == {"whole": 0.0, "LoRA": 74.9, "LoRA on int8": 93.6, "QLoRA (nf4)": 96.5}


# ---- against real runs
CASES = [
    dict(strategy=strategy, optimizer=optimizer, gradient_accumulation_steps=micro_steps)
    for strategy in distributed.STRATEGIES
    for optimizer in ("adamw", "muon")
    for micro_steps in (1, 2)
]
CASES += [dict(strategy="fsdp", optimizer="adamw", dtype="bfloat16", gradient_accumulation_steps=2)]
ADAPTED = [
    dict(strategy=strategy, optimizer="adamw", gradient_accumulation_steps=2, **changes)
    for strategy in distributed.STRATEGIES
    for changes in list(plan.WAYS.values())[1:]
]


@pytest.mark.slow
@pytest.mark.parametrize("W", [1, 4])
def test_processes_hold_and_send_what_the_formulas_say(W):
    for case, ranks in zip(CASES, plan_check.start(CASES, W), strict=True):
        settings = settings_of(**{**plan_check.SMALL, **case})
        expected = plan_check.by_formula(settings, W)
        assert len(ranks) == W
        largest = {what: max(rank.get(what, 0) for rank in ranks) for what in {**expected, **ranks[0]}}
        if W == 1:
            largest.pop("broadcast", 0)  # zero1 calls it also alone
        assert largest == expected, case
        # and the formula of the textbook is at most 5 % off
        P = sum(p.numel() for p in memory.on_meta(settings, plan_check.V).parameters())
        cut = W if case["strategy"] == "fsdp" else 1
        assert largest["weights"] == largest["gradients"] == pytest.approx(4 * P / cut, rel=0.05)
        cut = 1 if case["strategy"] == "ddp" else W
        once = 4 * 12 * 64 * 64 if case["optimizer"] == "muon" else 0  # numbers with one average, not two
        assert largest["optimizer"] == pytest.approx((8 * P - 4 * once) / cut, rel=0.05), case


@pytest.mark.slow
def test_lora_and_qlora_hold_and_send_what_the_formulas_say():
    """Packed weights are not sent: torch's DDP would send them before each forward pass."""
    for case, ranks in zip(ADAPTED, plan_check.start(ADAPTED, 2), strict=True):
        expected = plan_check.by_formula(settings_of(**{**plan_check.SMALL, **case}), 2)
        largest = {what: max(rank.get(what, 0) for rank in ranks) for what in {**expected, **ranks[0]}}
        assert largest == expected, case


def test_the_sharding_item_shows_measured_beside_formula(monkeypatch):
    found = {"weights": 10, "gradients": 20, "optimizer": 30, "all-reduce": 40}
    ranks = [found, {**found, "weights": 5}]
    monkeypatch.setattr(plan_check, "start", lambda cases, W: [ranks for _ in cases])
    monkeypatch.setattr(plan_check, "by_formula", lambda settings, W: {**found, "weights": 8})
    first, second, *_ = bench.sharding()
    assert first == ("1 x ddp: weights", "1.250", "10 / 8 bytes", "= 1", "5..10")
    assert second == ("1 x ddp: gradients", "1.000", "20 / 20 bytes", "= 1", "20..20")


# ---- the commands
def test_the_plan_is_a_table_of_three_strategies(run_script, capsys):
    shape = "--n_layer=32 --n_head=32 --n_embd=4096 --block_size=2048 --gpus=32 --gradient_checkpointing"
    run_script("bench.py", "--only=plan", *shape.split())
    shown = capsys.readouterr().out
    assert "6,657,150,976 parameters, 32 GPUs (8 in a machine)" in shown
    lines = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines()]
    rows = {line[0]: line for line in lines if line[0] in distributed.STRATEGIES}
    assert list(rows) == list(distributed.STRATEGIES)
    assert ["TOO BIG" in rows[name] for name in rows] == [True, True, False]


def test_a_shape_with_qlora_is_planned(run_script, capsys):
    flags = "--shape=7b --n_layer=2 --technique=lora --quantize=nf4 --lora_rank=16 --gpus=1 --memory_gb=24"
    run_script("bench.py", "--only=plan", *flags.split(), "--block_size=2048", "--batch_size=1")
    shown = capsys.readouterr().out
    assert "667,963,392 parameters, 1,048,576 of them trained, 1 GPUs" in shown
    (row,) = [line.split() for line in shown.splitlines() if line.strip().startswith("ddp")]
    assert row[1:4] == ["0.48", "0.00", "0.01"] and row[6] == "fits"


def test_the_table_of_models(monkeypatch):
    monkeypatch.setattr(plan, "SHAPES", {"small": dict(n_layer=2, n_head=8, n_embd=4096, n_ff=11008)})
    lines = list(plan.models(settings_of(optimizer="adamw", dtype="bfloat16", block_size=8, lora_rank=16)))
    table = {line[5:18].strip(): line[18:].split() for line in lines[3:-1]}
    assert list(table) == list(plan.WAYS)
    assert all(len(numbers) == 8 and float(numbers[7]) <= float(numbers[6]) for numbers in table.values())
    totals = [float(numbers[0]) for numbers in table.values()]
    assert totals[1] >= totals[0] > totals[2] > totals[3] > 0


def test_what_cannot_be_planned_is_one_line(run_script):
    with pytest.raises(
        ValueError, match="^optimizer=lion is unknown; expected one of muon, adamw, adam, sgd$"
    ):
        run_script("bench.py", "--only=plan", "--optimizer=lion")
    with pytest.raises(ValueError, match="^mfu=0.0 makes no sense"):
        run_script("bench.py", "--only=plan", "--mfu=0")


def test_too_big_is_marked():
    model, settings = tiny("ddp")
    held = memory.needed(model, settings, 2)["total"]
    for room, mark in ((held + 1, "fits"), (held - 1, "TOO BIG")):
        (row,) = [r for r in plan.table(settings, 10, plan.Cluster(2, 2, room / 1e9)) if r.startswith("ddp")]
        assert mark in row


@pytest.mark.slow
@pytest.mark.alone
def test_two_processes_measure_their_network(shell):
    launcher = "-m torch.distributed.run --standalone --nproc_per_node=2".split()
    done = shell(*launcher, "-m", "techniques.allreduce")
    assert done.returncode == 0, done.stderr
    found = re.findall(r"(\d+) MB: +([\d.]+) ms, algorithm (\S+) GB/s, bus (\S+) GB/s", done.stdout)
    assert [int(size) for size, *_ in found] == [1, 16, 64]
    for size, milliseconds, algorithm, bus in found:
        assert float(algorithm) == float(bus) > 0  # 2 (W - 1) / W is 1
        assert float(algorithm) == pytest.approx(int(size) * 2**20 / float(milliseconds) / 1e6, rel=0.02)


def test_one_process_has_nobody_to_talk_to():
    with pytest.raises(ValueError, match="torchrun --standalone --nproc_per_node=2 -m techniques.allreduce"):
        allreduce.main()


# ---- what helps most where memory runs out
STEPS = """
import json, sys
import torch
from lab import measure
from runtime import report
torch.set_num_threads(1)
settings, vocab_size = json.loads(sys.argv[1]), int(sys.argv[2])
small = {**settings, "n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 8}
measure.Run(small, 8).update(0, *torch.zeros(2, 1, 8, dtype=torch.int64))  # loads what every run loads
before = report.memory_mb(measure.CPU)
run, x = measure.Run(settings, vocab_size), torch.randint(vocab_size, (1, settings["block_size"]))
for step in range(2):
    run.update(step, x, x)
print(report.memory_mb(measure.CPU) - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, vocab_size",
    [
        (dict(n_layer=4, n_head=4, n_embd=128, block_size=1024, dtype="float32"), 65),
        (dict(n_layer=2, n_head=4, n_embd=128, block_size=512, dtype="float32"), 50304),
    ],
    ids=["long", "many words"],
)
def test_remedies_come_in_the_order_that_is_measured(shape, vocab_size, shell, figure, pytestconfig):
    """Peak memory of two updates of one window: where two differ by over 0.15, the formula knows it."""
    if vocab_size > 65 and not pytestconfig.getoption("--long"):
        pytest.skip("many words with --long")
    settings = settings_of(**shape, batch_size=1)

    def peak(settings: dict) -> float:
        return float(shell("-c", STEPS, json.dumps(settings), str(vocab_size)).stdout)

    now, found = peak(settings), []
    for flag, share in memory.remedies(settings, vocab_size, 1):
        name, _, text = flag.removeprefix("--").partition("=")
        found.append((flag, share, peak({**settings, name: ast.literal_eval(text)}) / now))
    assert len(found) >= 3
    for i, (_, _, measured) in enumerate(found):
        assert all(measured < later + 0.15 for _, _, later in found[i:]), found
    figure(
        "memory left by each remedy, formula / measured: "
        + ", ".join(f"{f} {a:.2f} / {b:.2f}" for f, a, b in found)
    )


def test_logits_may_take_a_sixteenth_of_a_gpu():
    """GPT-2's of 24 windows of 1,024 tokens are in one piece on a GPU of 80 GB, those of 25 in chunks."""
    assert [memory.logits_limit(given, hardware.total_bytes(CPU)) for given in (-1, 0, 7)] == [256, 0, 7]
    limit = memory.logits_limit(-1, 80e9)
    assert memory.logits_limit(7, 80e9) == 7
    assert [memory.too_many_logits(n * 1024, 50304, limit) for n in (24, 25)] == [False, True]
