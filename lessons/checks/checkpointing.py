"""What the grader knows about lesson 25: activations that are forgotten, and computed again when needed."""

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from lessons.common import fill, generator, mistakes, normal


class Part(nn.Module):
    """A block that counts its passes and has dropout: (B, T, C) -> (B, T, C)."""

    def __init__(self, p, C=6):
        super().__init__()
        self.up, self.drop, self.down = nn.Linear(C, 10), nn.Dropout(p), nn.Linear(10, C)
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return x + self.down(self.drop(torch.tanh(self.up(x))))


class Held:
    """Bytes that graphs hold for backward passes, now and at most, beside what is named."""

    def __init__(self, *others):
        self.known, self.boxes = {place_of(x) for x in others}, {}
        self.now = self.most = 0

    def pack(self, x):
        box = Box()
        box.x, box.held, box.place = x, self, place_of(x)
        self.boxes[box.place] = self.boxes.get(box.place, 0) + 1
        if self.boxes[box.place] == 1 and box.place not in self.known:
            self.now += x.untyped_storage().nbytes()
            self.most = max(self.most, self.now)
        return box

    def watching(self):
        return saved_tensors_hooks(self.pack, lambda box: box.x)


class Box:
    """What a graph holds; it is gone when the graph lets go of it."""

    def __del__(self):
        self.held.boxes[self.place] -= 1
        if not self.held.boxes[self.place] and self.place not in self.held.known:
            self.held.now -= self.x.untyped_storage().nbytes()


def place_of(x):
    return x.untyped_storage().data_ptr()


# ---- 25a: one function
def reference_recomputed(fn, x):
    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, marker):
            ctx.state = torch.get_rng_state()
            ctx.save_for_backward(x)
            return fn(x)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            x = x.detach().requires_grad_()
            now = torch.get_rng_state()
            torch.set_rng_state(ctx.state)
            with torch.enable_grad():
                y = fn(x)
            torch.set_rng_state(now)
            y.backward(gradient)
            return x.grad, None

    return Again.apply(x, torch.ones(1, requires_grad=True))


def inputs_recomputed(seed):
    """Seed, dropout, whether the input needs a gradient."""
    return [(10 + seed, 0.2, True), (20 + seed, 0.0, True), (30 + seed, 0.3, False)]


def seen_of_recomputed(recomputed, seed, p, needs):
    """Two parts, one after the other: what comes out, what is held in between, all gradients, and what the
    random numbers are afterwards."""
    g = generator(seed)
    parts = [fill(Part(p), g) for _ in range(2)]
    x, weights = normal(g, (3, 5, 6), (3, 5, 6))
    x.requires_grad_(needs)
    before = x * 1.5  # the input is not the first of the graph
    held = Held(before, x, *[w for part in parts for w in part.parameters()])
    torch.default_generator.manual_seed(seed)
    with held.watching():
        middle = recomputed(parts[0], before)
        between = torch.rand(2)
        out = recomputed(parts[1], middle)
        middle_is_held = held.boxes.get(place_of(middle), 0) > 0  # an input, which may be held
        kept = held.now - middle_is_held * middle.untyped_storage().nbytes()
        once = [part.passes for part in parts]
        needs_gradient = out.requires_grad
        if needs_gradient:
            (out * weights).sum().backward()
    nothing = torch.zeros(())
    gradients = [nothing if w.grad is None else w.grad for part in parts for w in part.parameters()]
    return {
        "output": out.detach(), "needs a gradient": needs_gradient, "passes before backward": once,
        "bytes held": kept, "passes": [part.passes for part in parts], "gradients of weights": gradients,
        "gradient of x": nothing if x.grad is None else x.grad, "random numbers between": between,
        "random numbers after": torch.rand(3),
    }  # fmt: skip


def same_as_plain(recomputed, seed, p, needs):
    """The gradients of the same function without any of this."""
    found, plain = (seen_of_recomputed(f, seed, p, needs) for f in (recomputed, lambda fn, x: fn(x)))
    for what in ("output", "gradient of x"):
        off = (found[what] - plain[what]).abs().max() / plain[what].abs().max().clamp(min=1e-6)
        if off > 1e-4:
            return f"the {what} is {off:.1%} off from that of fn(x)"


MARKED = "return Again.apply(x, torch.ones(1, requires_grad=True))"
FORGET, STATE = "return fn(x)", "            ctx.state = torch.get_rng_state()\n"
REWIND, BACK = "torch.set_rng_state(ctx.state)", "torch.set_rng_state(now)"
AGAIN, RESULT = "y = fn(x)", "return x.grad, None"
NOT_RECOMPUTED = mistakes(reference_recomputed, {
    "random numbers not restored": (REWIND, "pass"),
    "generator left rewound": (BACK, "pass"),
    "state read too late": (STATE, "", FORGET, "y = fn(x)\n" + STATE + "            return y"),
    "same seed each time": (STATE, "            torch.default_generator.manual_seed(1)\n", REWIND,
        "torch.default_generator.manual_seed(1)"),
    "no graph in backward": ("with torch.enable_grad():", "with torch.no_grad():"),
    "not detached": (".detach().requires_grad_()", "", RESULT, "return x.grad if x.is_leaf else None, None"),
    "graph kept": (MARKED, "return fn(x)"),
    "input without gradient": (", requires_grad=True", ""),
    "weights get nothing": ("y.backward(gradient)", "x.grad = torch.autograd.grad(y, x, gradient)[0]"),
    "gradient not handed on": ("y.backward(gradient)", "y.backward(torch.ones_like(y))"),
    "multiplied once more": (RESULT, "return x.grad * gradient, None"),
    "input gets nothing": (RESULT, "return None, None"),
    "nothing goes back": ("y.backward(gradient)", "x.grad = gradient"),
    "computed once too often": (AGAIN, "fn(x.detach())\n                y = fn(x)"),
})  # fmt: skip


# ---- 25b: a stack of blocks
def reference_in_segments(blocks, x, size, recomputed):
    for i in range(0, len(blocks), size):

        def run(x, part=blocks[i : i + size]):
            for block in part:
                x = block(x)
            return x

        x = recomputed(run, x)
    return x


def inputs_in_segments(seed):
    """Blocks, blocks in a segment, seed, dropout."""
    return [(7, 2, 10 + seed, 0.2), (8, 3, 20 + seed, 0.1), (6, 3, 40 + seed, 0.2), (3, 5, 30 + seed, 0.2)]


def stack(n, seed, p):
    g = generator(seed)
    blocks = [fill(Part(p), g) for _ in range(n)]
    (x,) = normal(g, (3, 5, 6))
    return blocks, x, Held(x, *[w for block in blocks for w in block.parameters()])


def seen_of_segments(in_segments, n, size, seed, p):
    blocks, x, held = stack(n, seed, p)
    calls = []

    def recomputed(fn, x):
        calls.append(fn)
        return reference_recomputed(fn, x)

    torch.default_generator.manual_seed(seed)
    with held.watching():
        out = in_segments(blocks, x.requires_grad_(), size, recomputed)
        kept = held.now
        out.square().sum().backward()
    nothing = torch.zeros(())
    return {
        "output": out.detach(), "segments": len(calls), "passes": [block.passes for block in blocks],
        "bytes held in between": kept, "bytes at most": held.most,
        "gradients": [nothing if w.grad is None else w.grad for b in blocks for w in b.parameters()],
        "gradient of x": nothing if x.grad is None else x.grad,
    }  # fmt: skip


def bytes_at_most(value, n, size, seed, p):
    plain = seen_of_segments(lambda blocks, x, size, r: nn.Sequential(*blocks)(x), n, size, seed, p)
    return dict(most=value["bytes at most"], plain=plain["bytes at most"])


def held_block_by_block(in_segments, n, size, seed, p):
    """A row for each pass through a block, first to last: what graphs hold after it."""
    blocks, x, held = stack(n, seed, p)
    rows = []
    for block in blocks:
        block.register_forward_hook(lambda m, args, out: rows.append(held.now))
    with held.watching():
        in_segments(blocks, x.requires_grad_(), size, reference_recomputed).sum().backward()
    return [f"{'forward ' if i < n else 'again   '}{'#' * round(row / 360)}" for i, row in enumerate(rows)]


EACH, CUT = "range(0, len(blocks), size)", "blocks[i : i + size]"
CALL, LOOP = "x = recomputed(run, x)", "                x = block(x)\n"
ALSO_SEGMENTS = mistakes(
    reference_in_segments,
    {
        "last segment kept": (CALL, CALL + " if i + size < len(blocks) else run(x)"),
    },
)
NOT_SEGMENTS = mistakes(reference_in_segments, {
    "one segment for all": (EACH, "[0]", CUT, "blocks"),
    "each block by itself": (EACH, "range(len(blocks))", CUT, "blocks[i : i + 1]"),
    "blocks recomputed inside": (LOOP, "                x = recomputed(block, x)\n"),
    "loop variable in backward": ("run(x, part=" + CUT + ")", "run(x)", "in part:", "in " + CUT + ":"),
    "last blocks left out": (EACH, "range(0, len(blocks) - size + 1, size)"),
    "last blocks kept": (CALL, CALL + " if i + size <= len(blocks) else run(x)"),
    "first segment kept": (CALL, CALL + " if i else run(x)"),
    "nothing recomputed": (CALL, "x = run(x)"),
    "number of segments": ("    for i in", "    size = -(-len(blocks) // size)\n    for i in"),
    "one block too many": (CUT, "blocks[i : i + size + 1]"),
    "cut from the graph": (CALL, CALL + ".detach().requires_grad_()"),
    "from the last block on": ("    for i in", "    blocks = blocks[::-1]\n    for i in"),
    "run twice": (CALL, "run(x)\n        " + CALL),
})  # fmt: skip

exercises = {
    "25a": dict(name="recomputed", reference=reference_recomputed, inputs=inputs_recomputed,
        twin="torch's checkpoint imports its compiler first, which takes seconds; a test holds ours to it",
        call=seen_of_recomputed, gradients=False, properties=[same_as_plain],
        survivors={f"{MARKED} => {MARKED.replace('(1,', other)}": "what marks may have any size"
            for other in ("(0,", "(2,")},
        forbidden=["checkpoint", "checkpoint_sequential", "saved_tensors_hooks"], wrong=NOT_RECOMPUTED,
        ),
    "25b": dict(name="in_segments", reference=reference_in_segments, inputs=inputs_in_segments,
        twin="the loop of GPT.trunk in model.py has segments of one block", call=seen_of_segments,
        gradients=False, numbers=bytes_at_most, picture=held_block_by_block, also=ALSO_SEGMENTS,
        forbidden=["checkpoint", "checkpoint_sequential"], wrong=NOT_SEGMENTS,
        ),
}  # fmt: skip

predictions = {
    "25.1": dict(answer=1.333, tol=0.02),
    "25.2": dict(answer=80.0, tol=0.1),
}
