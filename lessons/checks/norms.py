"""What the grader knows about lesson 12: LayerNorm, RMSNorm, the pre-norm block."""

from functools import partial
from types import SimpleNamespace

import torch
from torch.func import functional_call

from lessons.common import fill, generator, same
from model import Block, GPTConfig, LayerNorm, RMSNorm


# ---- 12a: LayerNorm
def reference_layer_norm(x, weight, bias, eps):
    norm = LayerNorm(x.size(-1), eps=eps)
    return functional_call(norm, dict(weight=weight, bias=bias), (x,))


def twin_layer_norm(x, weight, bias, eps):
    rows = []
    for row in x.flatten(0, 1):
        mean = row.sum() / len(row)
        variance = ((row - mean) ** 2).sum() / len(row)
        rows.append((row - mean) / (variance + eps) ** 0.5 * weight + bias)
    return torch.stack(rows).view(x.shape)


def inputs_layer_norm(seed):
    g = generator(seed)
    weight, bias = torch.rand(4, generator=g) + 0.5, torch.randn(4, generator=g)
    ordinary = 1.5 + 2 * torch.randn(3, 5, 4, generator=g)
    ordinary[1, 2] = 2.0  # a constant row
    tiny = 0.01 * torch.randn(2, 3, 4, generator=g)  # its variance is below eps
    far = 10_000.0 + torch.randint(-16, 17, (2, 3, 4), generator=g)  # whole numbers: their mean is exact
    far[..., 0] = 10_016  # (no constant row)
    far[..., 1] = 9_984
    return [(ordinary, weight, bias, 1e-5), (tiny, weight, bias, 1e-3), (far, weight, bias, 1e-5)]


def but_for_equal_rows(norm, x, *rest):
    """The gradient of a row of equal numbers is left out: with eps in the wrong place it is nan or finite,
    depending on the words (.std, or the root of .var)."""
    equal = (x == x[..., :1]).all(-1, keepdim=True)
    x.register_hook(lambda gradient: gradient.masked_fill(equal, 0.0))
    return norm(x, *rest)


def layer_norm(x, weight, bias, eps, axis=-1, unbiased=False, root=True, centre=True, detach=False):
    """The right answer, or wrong in one place."""
    mean, variance = x.mean(axis, keepdim=True), x.var(axis, keepdim=True, unbiased=unbiased)
    if detach:
        mean, variance = mean.detach(), variance.detach()
    scale = (variance + eps) ** (0.5 if root else 1)
    return (x - mean if centre else x) / scale * weight + bias


def eps_after_the_root(x, weight, bias, eps):
    deviation = (x - x.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True).sqrt()
    return (x - x.mean(-1, keepdim=True)) / (deviation + eps) * weight + bias


def std_as_it_comes(x, weight, bias, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + eps) * weight + bias


def difference_of_squares(x, weight, bias, eps):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / (x.pow(2).mean(-1, keepdim=True) - mean**2 + eps).sqrt() * weight + bias


def mean_0_deviation_1(layer_norm, x, weight, bias, eps):
    row = layer_norm(x, torch.ones_like(weight), torch.zeros_like(bias), eps)[0, 0]
    mean, deviation = row.mean(), row.std(unbiased=False)
    if abs(mean) > 0.01 or abs(deviation - 1) > 0.01:
        return (
            f"with weight 1 and bias 0 a row has mean {mean:.2f} and deviation {deviation:.2f}, not 0 and 1"
        )


def tokens_apart(norm, x, *rest):
    """The output of a token depends on that token alone."""
    moved = x.clone()
    moved[0, 0, 0] += 3
    others = (norm(moved, *rest) - norm(x, *rest)).abs().amax(-1)  # (B, T)
    others[0, 0] = 0
    b, t = divmod(int(others.argmax()), others.size(1))
    return f"token {t} of text {b} moves when token 0 of text 0 is changed" if others.max() > 1e-5 else ""


# ---- 12b: RMSNorm
def reference_rms_norm(x, weight, eps):
    norm = RMSNorm(x.size(-1), eps=eps)
    return functional_call(norm, dict(weight=weight), (x,))


def twin_rms_norm(x, weight, eps):
    rows = []
    for row in x.float().flatten(0, 1):
        rows.append(row / ((row**2).sum() / len(row) + eps) ** 0.5 * weight)
    return torch.stack(rows).view(x.shape).to(x.dtype)


def inputs_rms_norm(seed):
    g = generator(seed)
    weight = torch.rand(6, generator=g) + 0.5
    ordinary = 1.5 + 2 * torch.randn(2, 4, 6, generator=g)
    ordinary[1, 2] = 0.0  # nothing to divide by
    tiny = 0.01 * torch.randn(2, 3, 6, generator=g)
    half = (300 * torch.randn(2, 3, 6, generator=g)).half()  # their squares are no float16
    half[..., 0] = 400
    return [(ordinary, weight, 1e-5), (tiny, weight, 1e-3), (half, weight, 1e-5)]


def rms_norm(x, weight, eps, axis=-1, part=lambda f: f, sum_=False, power=0.5, detach=False):
    """The right answer, or wrong in one place."""
    f = part(x.float())
    size = f.pow(2).sum(axis, keepdim=True) if sum_ else f.pow(2).mean(axis, keepdim=True)
    size = size.detach() if detach else size
    return (f / (size + eps) ** power * weight).to(x.dtype)


def rms_eps_after(x, weight, eps):
    f = x.float()
    return (f / (f.pow(2).mean(-1, keepdim=True).sqrt() + eps) * weight).to(x.dtype)


def mean_of_sizes(x, weight, eps):
    f = x.float()
    return (f / (f.abs().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def in_its_type(x, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def root_mean_square_1(rms_norm, x, weight, eps):
    found = rms_norm(x, torch.ones_like(weight), eps)[0, 0].pow(2).mean().sqrt()
    return (
        "" if abs(found - 1) < 0.02 else f"with weight 1 the root mean square of a row is {found:.2f}, not 1"
    )


# ---- 12c: the block
def reference_block(x, attn_norm, attn, mlp_norm, mlp):
    parts = dict(attn_norm=attn_norm, attn=attn, mlp_norm=mlp_norm, mlp=mlp, token_shift=0)
    return Block.forward(SimpleNamespace(**parts), x)


def twin_block(x, attn_norm, attn, mlp_norm, mlp):
    looked = x + attn(attn_norm(x))
    return looked + mlp(mlp_norm(looked))


def inputs_block(seed):
    g = generator(seed)
    block = fill(Block(GPTConfig(n_embd=12, n_head=3, arch="gpt2", bias=True)), g)
    x = 1.5 * torch.randn(2, 5, 12, generator=g)
    return [(x, block.attn_norm, block.attn, block.mlp_norm, block.mlp)]


def nothing(h, *rest):
    """A part whose last matrix is zero."""
    return torch.zeros_like(h)


def block(x, n1, attn, n2, mlp, keep1=lambda x, h: x, keep2=lambda x, h: x, second=lambda x, y: y):
    """The right answer, or wrong in one place: what is kept beside each part, what the second part reads."""
    h = n1(x)
    y = keep1(x, h) + attn(h)
    read = second(x, y)
    h = n2(read)
    return keep2(y, h) + mlp(h)


def in_place(x, n1, attn, n2, mlp):
    x += attn(n1(x))
    x += mlp(n2(x))
    return x


def post_norm(x, n1, attn, n2, mlp):
    y = n1(x + attn(x))
    return n2(y + mlp(y))


def norm_after(x, n1, attn, n2, mlp):
    y = x + n1(attn(x))
    return y + n2(mlp(y))


def zero_is_identity(block, x, n1, attn, n2, mlp):
    """Parts that put out 0 leave the stream as it is."""
    apart = (block(x, n1, nothing, n2, nothing) - x).abs().max()
    return (
        "" if apart < 1e-5 else f"attn and mlp put out 0 here, and the result differs from x by {apart:.2f}"
    )


nothing_kept = lambda x, h: 0  # noqa: E731
normed_kept = lambda x, h: h  # noqa: E731

wrong_layer_norm = {
    "unbiased variance": partial(layer_norm, unbiased=True),
    "over the time axis": partial(layer_norm, axis=1),
    "over the batch": partial(layer_norm, axis=0),
    "over the whole text": partial(layer_norm, axis=(1, 2)),
    "no eps": lambda x, weight, bias, eps: layer_norm(x, weight, bias, 0.0),
    "eps after the root": eps_after_the_root,
    "std as it comes": std_as_it_comes,
    "std alone": lambda x, weight, bias, eps: std_as_it_comes(x, weight, bias, 0.0),
    "no keepdim": lambda x, weight, bias, eps: (x - x.mean(-1)) / (x.var(-1) + eps).sqrt() * weight + bias,
    "eps not the argument": lambda x, weight, bias, eps: layer_norm(x, weight, bias, 1e-5),
    "no root": partial(layer_norm, root=False),
    "mean not subtracted": partial(layer_norm, centre=False),
    "no weight and bias": lambda x, weight, bias, eps: layer_norm(x, 1.0, 0.0, eps),
    "bias scaled, too": lambda x, weight, bias, eps: (layer_norm(x, 1.0, 0.0, eps) + bias) * weight,
    "mean and variance detached": partial(layer_norm, detach=True),
    "difference of squares": difference_of_squares,
}  # fmt: skip

wrong_rms_norm = {
    "mean subtracted": partial(rms_norm, part=lambda f: f - f.mean(-1, keepdim=True)),
    "sum, not mean": partial(rms_norm, sum_=True),
    "no root": partial(rms_norm, power=1),
    "no eps": lambda x, weight, eps: rms_norm(x, weight, 0.0),
    "eps after the root": rms_eps_after,
    "over the time axis": partial(rms_norm, axis=1),
    "over the batch": partial(rms_norm, axis=0),
    "not in float32": lambda x, weight, eps: in_its_type(x, eps) * weight.to(x.dtype),
    "float16 squares, float32 out": lambda x, weight, eps: in_its_type(x, eps) * weight,
    "float32 comes back": lambda x, weight, eps: rms_norm(x.float(), weight, eps),
    "no weight": lambda x, weight, eps: rms_norm(x, 1.0, eps),
    "mean of sizes": mean_of_sizes,
    "mean square detached": partial(rms_norm, detach=True),
}  # fmt: skip

wrong_block = {
    "no residual": partial(block, keep1=nothing_kept, keep2=nothing_kept),
    "none around attention": partial(block, keep1=nothing_kept),
    "none around the MLP": partial(block, keep2=nothing_kept),
    "normalised x kept": partial(block, keep1=normed_kept, keep2=normed_kept),
    "post-norm": post_norm,
    "norm after the part": norm_after,
    "one shared norm": lambda x, n1, attn, n2, mlp: block(x, n1, attn, n1, mlp),
    "norms swapped": lambda x, n1, attn, n2, mlp: block(x, n2, attn, n1, mlp),
    "no norms": lambda x, n1, attn, n2, mlp: block(x, same, attn, same, mlp),
    "no norm before attention": lambda x, n1, attn, n2, mlp: block(x, same, attn, n2, mlp),
    "no norm before the MLP": lambda x, n1, attn, n2, mlp: block(x, n1, attn, same, mlp),
    "MLP first": lambda x, n1, attn, n2, mlp: block(x, n2, mlp, n1, attn),
    "side by side": partial(block, second=lambda x, y: x),
    "attention dropped": lambda x, n1, attn, n2, mlp: x + mlp(n2(x + attn(n1(x)))),
    "changed in place": in_place,
}  # fmt: skip

exercises = {
    "12a": dict(
        name="layer_norm",
        reference=reference_layer_norm,
        project=LayerNorm,
        slow=twin_layer_norm,
        forbidden=("layer_norm", "native_layer_norm", "batch_norm", "group_norm", "instance_norm"),
        inputs=inputs_layer_norm,
        call=but_for_equal_rows,
        tol=5e-4,  # far from 0, torch's kernel is off by a ten-thousandth itself
        wrong=wrong_layer_norm,
        properties=[tokens_apart, mean_0_deviation_1],
    ),
    "12b": dict(
        name="rms_norm",
        reference=reference_rms_norm,
        project=RMSNorm,
        slow=twin_rms_norm,
        forbidden=("rms_norm",),
        inputs=inputs_rms_norm,
        call=but_for_equal_rows,
        tol=5e-3,  # float16 has three digits, and may be rounded once or twice
        wrong=wrong_rms_norm,
        properties=[tokens_apart, root_mean_square_1],
    ),
    "12c": dict(
        name="block",
        reference=reference_block,
        project=Block,
        slow=twin_block,
        inputs=inputs_block,
        wrong=wrong_block,
        properties=[zero_is_identity],
    ),
}

predictions = {
    "12.1": dict(answer=0.866, tol=0.01),
}
