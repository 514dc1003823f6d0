"""What the grader knows about lesson 32: codes and their scales, two codes in a byte, a whole model."""

import copy
from types import SimpleNamespace

import torch
from torch import nn

from lessons.common import as_tuple, fill, generator, mistakes
from model import GPT, GPTConfig
from techniques.packed_layers import QuantLinear
from techniques.packing import decode, encode, pack, unpack
from techniques.quantize import bytes_of, packed


# ---- 32a: a scale for each row
def reference_int8(w):
    found = encode("int8", w)
    return found["codes"], found["scales"]


def twin_int8(w):
    codes, scales = [], []
    for row in w:
        scale = (row.abs().max() / 127).bfloat16().float()
        codes.append((row / scale.clamp(min=1e-30)).round().to(torch.int8))
        scales.append(scale)
    return torch.stack(codes), torch.stack(scales)


def inputs_int8(seed):
    g, found = generator(seed), []
    for sizes, n in (([20.0, 0.003, 1.0, 400.0, 0.7], 12), ([0.02, 0.0, 0.05, 2e-7], 70)):
        w = torch.tensor(sizes)[:, None] * torch.randn(len(sizes), n, generator=g)
        largest = w.abs().amax(1)
        w[:, 3] = largest * torch.tensor([1.5, -1.75, 1.25, -1.75, 1.5])[: len(sizes)]  # of both signs
        scale = (w.abs().amax(1) / 127).bfloat16().float()[:, None]
        to_tie = (w / scale.clamp(min=1e-30)).abs() % 1 - 0.5
        found.append((torch.where(to_tie.abs() < 0.02, w + w.sign() * 0.05 * scale, w),))  # both ways round
    return found


def half_a_step(to_int8, w):
    codes, scales = to_int8(w)
    apart = ((w - codes.float() * scales[:, None]).abs() / scales.clamp(min=1e-30)[:, None]).amax(1)
    worst = int(apart.argmax())
    return f"row {worst}: a weight is {apart[worst]:.3g} of the row's scale off, where 0.5 is enough" * bool(
        apart[worst] > 0.51
    )


SCALE, ROUND = "(row.abs().max() / 127).bfloat16().float()", "(row / scale.clamp(min=1e-30)).round()"
CODES = f"codes.append({ROUND}.to(torch.int8))"
NOT_INT8 = mistakes(twin_int8, {
    "one scale for all": ("row.abs()", "w.abs()"),
    "a scale for each column": ("for row in w:", "for row in w.T:", "torch.stack(codes), torch",
        "torch.stack(codes, 1), torch"),
    "cut, not rounded": (".round()", ""),
    "rounded down": (".round()", ".floor()"),
    "divided by 128": ("/ 127", "/ 128"),
    "divided by 128, clamped": ("/ 127", "/ 128", ".round()", ".round().clamp(-128, 127)"),
    "127.5 steps": ("/ 127", "/ 127.5"),
    "largest, not largest size": ("row.abs().max()", "row.max()"),
    "from lowest to highest": (SCALE, "((row.max() - row.min()) / 255).bfloat16().float()",
        ROUND, "(((row - row.min()) / scale.clamp(min=1e-30)).round() - 128)"),
    "mean size": ("row.abs().max()", "row.abs().mean()", ".round()", ".round().clamp(-127, 127)"),
    "scale not rounded": (".bfloat16().float()", ""),
    "codes by another scale": ("row / scale", "row / (row.abs().max() / 127)"),
    "multiplied by the scale": ("row / scale", "row * scale"),
    "scale told upside down": ("scales.append(scale)", "scales.append(1 / scale.clamp(min=1e-30))"),
    "codes are floats": (".to(torch.int8)", ""),
    "codes from 0 to 255": (".to(torch.int8)", ".add(128).to(torch.uint8)"),
    "scales are bfloat16": (".bfloat16().float()", ".bfloat16()"),
})  # fmt: skip


# ---- 32b: two codes in a byte
def reference_packed(codes):
    n, self = codes.size(1), SimpleNamespace(bytes=pack(codes + 8))
    self.codes = lambda: unpack("int4", self.bytes, n).to(torch.int8)
    return self


def twin_packed(codes):
    n, rows = codes.size(1), []
    for row in codes.tolist():
        levels = [code + 8 for code in row] + [0] * (n % 2)
        rows.append([16 * levels[i] + levels[i + 1] for i in range(0, len(levels), 2)])
    self = SimpleNamespace(bytes=torch.tensor(rows, dtype=torch.uint8))

    def read():
        both = torch.stack((self.bytes // 16, self.bytes % 16), -1)
        return both.flatten(1)[:, :n].to(torch.int8) - 8

    self.codes = read
    return self


def inputs_packed(seed):
    g = generator(seed)
    codes = [torch.randint(-8, 8, shape, generator=g).to(torch.int8) for shape in ((3, 8), (2, 7), (4, 5))]
    codes[0][0, :4] = torch.tensor([-1, 7, -8, 0])
    return [(c,) for c in codes]


def there_and_back(build, codes):
    """The bytes, the codes that come back, and those of other bytes: reading is judged apart from writing."""
    held = build(codes)
    found = {"bytes": held.bytes, "codes back": held.codes()}
    held.bytes = held.bytes.flip(0)  # of other rows, all full but for the filler
    return found | {"codes of other bytes": held.codes()}


def two_a_byte(build, codes):
    """(rows) "-1 7 -> 7 15": the codes of the first bytes, and their halves."""
    found = build(codes).bytes[0].tolist()
    pairs = codes[0].tolist()
    return [f"{pairs[2 * i]:3} {pairs[2 * i + 1]:3}  ->  {found[i] // 16:2} {found[i] % 16:2}  = {found[i]}"
            for i in range(len(pairs) // 2)]  # fmt: skip


LEVELS, PAIR = "[code + 8 for code in row]", "16 * levels[i] + levels[i + 1]"
READ, BACK = "(self.bytes // 16, self.bytes % 16)", "both.flatten(1)[:, :n].to(torch.int8) - 8"
SIGNED = "(lambda t: t - 16 * (t > 7))(both.flatten(1)[:, :n].to(torch.int8))"
NOT_PACKED = mistakes(twin_packed, {
    "halves swapped": (PAIR, "levels[i] + 16 * levels[i + 1]", READ, "(self.bytes % 16, self.bytes // 16)"),
    "halves swapped in reading": (READ, "(self.bytes % 16, self.bytes // 16)"),
    "halves swapped in writing": (PAIR, "levels[i] + 16 * levels[i + 1]"),
    "two's complement": (LEVELS, "[code & 15 for code in row]", BACK, SIGNED),
    "sign lost": (LEVELS, "[code & 15 for code in row]", BACK, BACK.removesuffix(" - 8")),
    "8 not taken off": (BACK, BACK.removesuffix(" - 8")),
    "unsigned codes back": (BACK, "both.flatten(1)[:, :n] - 8"),
    "first half beside second half": (PAIR, "16 * levels[i // 2] + levels[i // 2 + len(levels) // 2]",
        "-1)\n", "1)\n"),
    "last one lost":
        (" + [0] * (n % 2)", "", "range(0, len(levels), 2)", "range(0, n - 1, 2)", "[:, :n]", ""),
    "filler comes back": ("[:, :n]", ""),
    "filler is a code 0": ("[0] * (n % 2)", "[8] * (n % 2)"),
    "one code in a byte":
        (PAIR, "levels[i]", "range(0, len(levels), 2)", "range(0, n)", READ, "(self.bytes,)"),
    "shifted by 3": ("16 *", "8 *", "// 16", "// 8", "% 16", "% 8"),
    "decimal digits": ("16 *", "10 *", "// 16", "// 10", "% 16", "% 10"),
    "signed bytes": ("torch.tensor(rows, dtype=torch.uint8)", "torch.tensor(rows).to(torch.int8)",
        READ, "(self.bytes.view(torch.uint8) // 16, self.bytes.view(torch.uint8) % 16)"),
})  # fmt: skip


# ---- 32c: a model in 8 bits
def round_trip(w):
    """What is left of a matrix after 8 bits."""
    return decode("int8", w.shape, *encode("int8", w).values())


def reference_quantize(model, restored):
    small = packed(copy.deepcopy(model), "int8")
    for name, layer in small.named_modules():
        if isinstance(layer, QuantLinear):
            model.get_submodule(name).weight.data.copy_(layer.dequantize())
    return bytes_of(small)


def twin_quantize(model, restored):
    size, done = 0, set()
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Embedding)) and layer.weight not in done:
            layer.weight.data = restored(layer.weight.data)
            size += layer.weight.numel() + 4 * len(layer.weight)
            done.add(layer.weight)
    for p in model.parameters():
        if p not in done:
            size += 4 * p.numel()
    return size


def inputs_quantize(seed):
    return [(True, seed + 10), (False, seed + 20)]  # tied, and with biases


def seen_of_model(quantize, tied, seed):
    """Bytes, and the weights and logits afterwards."""
    other = {} if tied else dict(bias=True, arch="gpt2", position="rope")
    shape = dict(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=12, tie_weights=int(tied))
    model = fill(GPT(GPTConfig(**shape, **other)), generator(seed))
    ids = torch.randint(11, (2, 6), generator=generator(seed))
    size = quantize(model, round_trip)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {"bytes": size, **weights, "logits": model(ids)}


def vectors_stay(quantize, tied, seed):
    seen = seen_of_model(quantize, tied, seed)
    right = seen_of_model(reference_quantize, tied, seed)
    moved = [name for name, w in right.items() if name[-4:] not in ("ytes", "gits") and w.dim() == 1
             and not torch.equal(w, seen[name])]  # fmt: skip
    return f"{moved[0]} is no matrix, and was rounded" if moved else ""


KINDS, EACH = "isinstance(layer, (nn.Linear, nn.Embedding))", "for layer in model.modules():"
TEST, SIZE = KINDS + " and layer.weight not in done", "layer.weight.numel() + 4 * len(layer.weight)"
REST, ROW = "size += 4 * p.numel()", "restored(p.data[None])[0]"
NOT_QUANTIZED = mistakes(twin_quantize, {
    "norms, too": (REST, f"p.data = {ROW} if 'norm' in names[p] else p.data\n            {REST}",
        "size, done =", "names = {p: n for n, p in model.named_parameters()}\n    size, done ="),
    "biases, too": (REST, f"p.data = {ROW} if 'bias' in names[p] else p.data\n            {REST}",
        "size, done =", "names = {p: n for n, p in model.named_parameters()}\n    size, done ="),
    "all vectors, too": (REST, f"p.data = {ROW}; size += p.numel() + 4"),
    "the copy is never used": ("size, done =", "model = copy.deepcopy(model)\n    size, done ="),
    "tied head counted twice": (" and layer.weight not in done", ""),
    "scales forgotten": (SIZE, "layer.weight.numel()"),
    "scales of 2 bytes": ("4 * len", "2 * len"),
    "one scale a matrix": ("4 * len(layer.weight)", "4"),
    "a scale for each column": ("4 * len(layer.weight)", "4 * layer.weight.size(1)"),
    "the rest not counted": (REST, "pass"),
    "the rest in 1 byte": (REST, "size += p.numel()"),
    "size as before": (SIZE, "4 * layer.weight.numel()"),
    "embedding left alone": (TEST, "isinstance(layer, nn.Linear) and layer.weight not in done"),
    "blocks alone": (EACH, "for layer in model.blocks.modules():"),
    "bits for bytes": ("return size", "return 8 * size"),
    "numbers for bytes": (SIZE, "layer.weight.numel()", REST, "size += p.numel()"),
})  # fmt: skip

exercises = {
    "32a": dict(name="to_int8", reference=reference_int8, project=encode, slow=twin_int8,
        inputs=inputs_int8, call=as_tuple, gradients=False,
        properties=[half_a_step], wrong=NOT_INT8,
        survivors={f"{CODES} => {CODES.replace(*change)}": "0 / 0 is nan, of which this processor makes 0"
            for change in ((".clamp(min=1e-30)", ""), ("min=1e-30", "min=-1.0"))},
        ),
    "32b": dict(name="Packed", reference=reference_packed, project=pack, slow=twin_packed,
        inputs=inputs_packed, call=there_and_back, gradients=False,
        picture=two_a_byte, wrong=NOT_PACKED,
        ),
    "32c": dict(name="quantize", reference=reference_quantize, project=packed, slow=twin_quantize,
        inputs=inputs_quantize, call=seen_of_model, gradients=False, properties=[vectors_stay],
        wrong=NOT_QUANTIZED,
        ),
}  # fmt: skip

predictions = {
    "32.1": dict(answer=4.5, tol=0.05),
    "32.2": dict(answer=0.5, tol=0.02),
}
