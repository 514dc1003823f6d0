"""What the grader knows about lesson 12: LayerNorm, RMSNorm, the pre-norm block."""

from functools import partial
from types import SimpleNamespace

import torch
from torch.func import functional_call

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
    g = torch.Generator().manual_seed(seed)
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
    g = torch.Generator().manual_seed(seed)
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


@torch.no_grad()
def inputs_block(seed):
    g = torch.Generator().manual_seed(seed)
    block = Block(GPTConfig(n_embd=12, n_head=3, arch="gpt2", bias=True))
    for parameter in block.parameters():
        parameter.copy_(0.5 * torch.randn(parameter.shape, generator=g))
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


same = lambda h: h  # noqa: E731
nothing_kept = lambda x, h: 0  # noqa: E731
normed_kept = lambda x, h: h  # noqa: E731

wrong_layer_norm = {
    "unbiased variance": (partial(layer_norm, unbiased=True),
        "Your variance is divided by one number less than there are. What does .var do unasked?"),
    "over the time axis": (partial(layer_norm, axis=1),
        "Another token of the text changes this one. Over which axis is the mean taken?"),
    "over the batch": (partial(layer_norm, axis=0),
        "Another text of the batch changes this one. What would a batch of one do?"),
    "over the whole text": (partial(layer_norm, axis=(1, 2)),
        "One mean for all tokens of a text: token 0 would know of those to come."),
    "no eps": (lambda x, weight, bias, eps: layer_norm(x, weight, bias, 0.0),
        "A row of equal numbers has the variance 0. What keeps you from dividing by it?"),
    "eps after the root": (eps_after_the_root,
        "Right unless a row is tiny. Is eps added to the variance, or to its root?"),
    "std as it comes": (std_as_it_comes,
        "Two things are off: by how many numbers .std (or .var) divides unasked, and where eps is added."),
    "std alone": (lambda x, weight, bias, eps: std_as_it_comes(x, weight, bias, 0.0),
        "Two things are off: by how many numbers .std divides unasked, and what becomes of equal numbers."),
    "no keepdim": (lambda x, weight, bias, eps: (x - x.mean(-1)) / (x.var(-1) + eps).sqrt() * weight + bias,
        "A mean over the last axis takes that axis away. How does it stay, with size 1?"),
    "eps not the argument": (lambda x, weight, bias, eps: layer_norm(x, weight, bias, 1e-5),
        "Right for one eps and for no other. Where is the argument?"),
    "no root": (partial(layer_norm, root=False),
        "Rows twice as large come out half as large: by the variance, or by its root?"),
    "mean not subtracted": (partial(layer_norm, centre=False),
        "The mean of a row with weight 1 and bias 0 should be 0. Where did it go?"),
    "no weight and bias": (lambda x, weight, bias, eps: layer_norm(x, 1.0, 0.0, eps),
        "Each channel may have its own size and place: where are weight and bias?"),
    "bias scaled, too": (lambda x, weight, bias, eps: (layer_norm(x, 1.0, 0.0, eps) + bias) * weight,
        "Weight and bias are both there. Which comes first?"),
    "mean and variance detached": (partial(layer_norm, detach=True),
        "The values are right, the gradient of x is not: mean and variance depend on x, too."),
    "difference of squares": (difference_of_squares,
        "Right on paper. Two numbers near 100,000,000 are subtracted: how many digits has a float32?"),
}  # fmt: skip

wrong_rms_norm = {
    "mean subtracted": (partial(rms_norm, part=lambda f: f - f.mean(-1, keepdim=True)),
        "That is LayerNorm without its bias. What does RMSNorm leave out?"),
    "sum, not mean": (partial(rms_norm, sum_=True),
        "Your rows get smaller the wider they are: the root of the sum, or of the mean?"),
    "no root": (partial(rms_norm, power=1), "Rows twice as large come out half as large. Where is the root?"),
    "no eps": (lambda x, weight, eps: rms_norm(x, weight, 0.0), "A row of zeros: what do you divide it by?"),
    "eps after the root": (rms_eps_after,
        "Right unless a row is tiny. Is eps added to the mean square, or to its root?"),
    "over the time axis": (partial(rms_norm, axis=1),
        "Another token of the text changes this one. Over which axis is the mean taken?"),
    "over the batch": (partial(rms_norm, axis=0), "Another text of the batch changes this one."),
    "not in float32": (lambda x, weight, eps: in_its_type(x, eps) * weight.to(x.dtype),
        "Right in float32. In float16 the square of 300 is inf: in which precision is it taken?"),
    "float16 squares, float32 out": (lambda x, weight, eps: in_its_type(x, eps) * weight,
        "Squares are taken in float16, and float32 comes out: it should be the other way round."),
    "float32 comes back": (lambda x, weight, eps: rms_norm(x.float(), weight, eps),
        "What comes in as float16 goes out as float16; in between it may be wider."),
    "no weight": (lambda x, weight, eps: rms_norm(x, 1.0, eps),
        "Each channel has its own size: where is weight?"),
    "mean of sizes": (mean_of_sizes,
        "A mean of absolute values. The root mean square counts large ones more."),
    "mean square detached": (partial(rms_norm, detach=True),
        "The values are right, the gradient of x is not: what it is divided by depends on x, too."),
}  # fmt: skip

wrong_block = {
    "no residual": (partial(block, keep1=nothing_kept, keep2=nothing_kept),
        "If both parts put out 0, so does your block: where is x itself?"),
    "none around attention": (partial(block, keep1=nothing_kept),
        "What attention puts out replaces the stream. It should be added to it."),
    "none around the MLP": (partial(block, keep2=nothing_kept),
        "What the MLP puts out replaces the stream. It should be added to it."),
    "normalised x kept": (partial(block, keep1=normed_kept, keep2=normed_kept),
        "The norm is for the parts to read. What stays in the stream is x as it was."),
    "post-norm": (post_norm,
        "Here each sum is normalised, as in 2017. Where does the norm stand in pre-norm?"),
    "norm after the part": (norm_after,
        "The norms are applied to what the parts put out. They are for what the parts read."),
    "one shared norm": (lambda x, n1, attn, n2, mlp: block(x, n1, attn, n1, mlp),
        "Both parts read through the same norm. What is the other one for?"),
    "norms swapped": (lambda x, n1, attn, n2, mlp: block(x, n2, attn, n1, mlp),
        "Each part has its own norm. Which belongs to which?"),
    "no norms": (lambda x, n1, attn, n2, mlp: block(x, same, attn, same, mlp),
        "The parts read the stream as it is, however large it has grown."),
    "no norm before attention": (lambda x, n1, attn, n2, mlp: block(x, same, attn, n2, mlp),
        "Attention reads the stream as it is. Which norm is meant for it?"),
    "no norm before the MLP": (lambda x, n1, attn, n2, mlp: block(x, n1, attn, same, mlp),
        "The MLP reads the stream as it is. Which norm is meant for it?"),
    "MLP first": (lambda x, n1, attn, n2, mlp: block(x, n2, mlp, n1, attn),
        "Who comes first: looking at others, or thinking about it?"),
    "side by side": (partial(block, second=lambda x, y: x),
        "The MLP does not see what attention has found. What should it read?"),
    "attention dropped": (lambda x, n1, attn, n2, mlp: x + mlp(n2(x + attn(n1(x)))),
        "The MLP reads what attention found, but the sum forgets it. To what is the MLP's output added?"),
    "changed in place": (in_place, "+= changes the very tensor that the norm needs again for its gradient."),
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
        hints=[
            "Which numbers share a mean: those of a token, of a text, or of a batch?",
            "Mean and variance over the last axis, kept as an axis of size 1; eps goes under the root.",
            "(x - mean) / sqrt(mean of (x - mean)^2 + eps) * weight + bias, all means over the last axis",
        ],
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
        hints=[
            "What is left of LayerNorm if neither a mean is subtracted nor a bias added?",
            "Widen to float32 first, narrow to the type of x last.",
            "f = x as float32; f / sqrt(mean of f^2 + eps) * weight, then back to the type of x",
        ],
    ),
    "12c": dict(
        name="block",
        reference=reference_block,
        project=Block,
        slow=twin_block,
        inputs=inputs_block,
        wrong=wrong_block,
        properties=[zero_is_identity],
        hints=[
            "If attention and MLP put out nothing but 0, what should come out of the block?",
            "Two lines of one form: the stream, plus a part that has read it through its norm.",
            "y = x + attn(norm of x), then y + mlp(other norm of y)",
        ],
    ),
}

predictions = {
    "12.1": dict(
        ask="factor on LayerNorm's output at D = 4, if the variance is divided by 3 and not by 4",
        answer=0.866,
        tol=0.01,
        wrong={
            1.155: "1.155 is the factor on the deviation; what is divided by it gets smaller: 0.866.",
            0.75: "0.75 is the ratio of the variances; the root of it is 0.866.",
            1.0: "It would be nearly 1 for long rows; for four numbers it is 0.866.",
            1.333: "4/3 is the factor on the variance; the output gets one over its root, 0.866.",
        },
    ),
}
