"""What the grader knows about lesson 38: a linear layer split over ranks, by its outputs or inputs."""

import torch
import torch.nn.functional as F

from lessons.common import generator, mistakes, normal
from lessons.ranks import together


# ---- 38a: each rank has some of the outputs
def reference_column(x, weight, bias, parts, dist):
    rank, size = dist.get_rank(), dist.get_world_size()

    def sum_over_ranks(gradient):
        total = gradient.clone()
        dist.all_reduce(total)
        return total

    x = x.view_as(x)  # the sum is for what comes through this layer alone
    x.register_hook(sum_over_ranks)
    mine = weight.unflatten(0, (parts, size, -1))[:, rank].flatten(0, 1)
    return x @ mine.T + bias.unflatten(0, (parts, size, -1))[:, rank].flatten()


def inputs_column(seed):
    return [(2, 3, 8, 10, seed + 10), (3, 2, 5, 6, seed + 20), (4, 3, 7, 12, seed + 30)]


def layer(size, parts, width, out, seed):
    """x (2, 3, width), weight (parts * out, width), bias, the weights of a loss on outputs and on x."""
    return normal(generator(seed), (2, 3, width), (parts * out, width), (parts * out,),
                  (2, 3, size, parts * out // size), (2, 3, width))  # fmt: skip


def seen_of_column(column, size, parts, width, out, seed):
    """Of each rank: output, the gradients of x (which is also used beside the layer), of weight and bias."""

    def one_rank(dist):
        x, weight, bias, of_out, of_x = layer(size, parts, width, out, seed)
        leaves = [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
        found = column(x, weight, bias, parts, dist)
        loss = (x * of_x).sum()
        if isinstance(found, torch.Tensor) and found.shape[-1] == parts * out // size:
            loss = loss + (found * of_out[:, :, dist.get_rank()]).sum()
        loss.backward()
        calls = [call for call, _ in dist.messages]
        return {"output": found, "gradient of x": x.grad, "collectives": len(calls),
                **{f"gradient of {name}": torch.zeros_like(p) if p.grad is None else p.grad
                   for name, p in zip(("weight", "bias"), leaves[1:], strict=True)}}  # fmt: skip

    return together(size, one_rank)


def together_they_are_the_layer(column, size, parts, width, out, seed):
    x, weight, bias, *_ = layer(size, parts, width, out, seed)
    found = [one["output"] for one in seen_of_column(column, size, parts, width, out, seed)]
    joined = torch.cat([one.unflatten(-1, (parts, -1)) for one in found], -1).flatten(-2)
    apart = (joined - F.linear(x, weight, bias)).abs().max().item()
    return f"side by side, part by part, the ranks' outputs are not the layer's: {apart:.2g} off" * (
        apart > 1e-4
    )


def gradient_is_the_whole(column, size, parts, width, out, seed):
    """What x gets is the same on all ranks."""
    found = [one["gradient of x"] for one in seen_of_column(column, size, parts, width, out, seed)]
    apart = max((g - found[0]).abs().max().item() for g in found)
    return f"the ranks' gradients of x differ, by {apart:.2g}: each is that of some outputs" * (apart > 1e-4)


MINE, SHARE = "weight.unflatten(0, (parts, size, -1))[:, rank].flatten(0, 1)", "[:, rank].flatten()"
BIAS, VIEW = "bias.unflatten(0, (parts, size, -1))[:, rank].flatten()", "x.view_as(x)"
HOOK, OUT = "    x.register_hook(sum_over_ranks)\n", "return x @ mine.T + "
NOT_COLUMNS = mistakes(reference_column, {
    "cut across the parts": (MINE, "weight.chunk(size)[rank]", BIAS, "bias.chunk(size)[rank]"),
    "inputs cut, not outputs": (OUT + BIAS,
        "return x.tensor_split(size, -1)[rank] @ weight.tensor_split(size, 1)[rank].T + bias"),
    "wrong axis": (MINE, "weight.chunk(size, 1)[rank].T"),
    "whole layer on all": (OUT + BIAS, "return x @ weight.T + bias"),
    "rank 0's share on all": ("[:, rank]", "[:, 0]"),
    "rows dealt in turn": (MINE, "weight.unflatten(0, (parts, -1, size))[:, :, rank].flatten(0, 1)",
        BIAS, "bias.unflatten(0, (parts, -1, size))[:, :, rank].flatten()"),
    "bias cut otherwise": (BIAS, "bias.chunk(size)[rank]"),
    "whole bias": (BIAS, "bias"),
    "no bias": (" + " + BIAS, ""),
    "gradient not summed": (HOOK, ""),
    "all gradients of x summed": (VIEW, "x"),
    "gradient averaged": ("return total", "return total / size"),
    "sum not handed on": ("return total", "return gradient"),
    "output summed": (OUT, "total = x @ mine.T; dist.all_reduce(total); return total + "),
    "output gathered": (OUT + BIAS, "y = x @ mine.T + " + BIAS + "\n"
        "    all_of_them = [torch.empty_like(y) for _ in range(size)]\n"
        "    dist.all_gather(all_of_them, y)\n    return torch.cat(all_of_them, -1)"),
})  # fmt: skip


# ---- 38b: each rank has some of the inputs
def reference_row(x, weight, bias, activation, dist):
    rank, size = dist.get_rank(), dist.get_world_size()
    part = x @ weight.unflatten(1, (size, -1))[:, rank].T
    total = part.detach().clone()
    dist.all_reduce(total)
    whole = part + (total - part).detach()  # the number is total, the gradient goes to part
    return activation(whole + bias)


def inputs_row(seed):
    return [(2, 10, 7, seed + 10), (3, 6, 5, seed + 20), (4, 12, 5, seed + 30)]


def seen_of_row(row, size, width, out, seed):
    def one_rank(dist):
        x, weight, bias, of_out = normal(generator(seed), (2, 3, width), (out, width), (out,), (2, 3, out))
        x = x.chunk(size, -1)[dist.get_rank()].contiguous()
        leaves = [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
        found = row(x, weight, bias, torch.tanh, dist)
        if isinstance(found, torch.Tensor) and found.requires_grad:
            (found * of_out).sum().backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in leaves]
        names = ("gradient of x", "gradient of weight", "gradient of bias")
        return {
            "output": found,
            **dict(zip(names, gradients, strict=True)),
            "collectives": len(dist.messages),
        }

    return together(size, one_rank)


def ranks_have_the_layers_output(row, size, width, out, seed):
    x, weight, bias = normal(generator(seed), (2, 3, width), (out, width), (out,))
    right = torch.tanh(F.linear(x, weight, bias))
    for rank, one in enumerate(seen_of_row(row, size, width, out, seed)):
        if (one["output"] - right).abs().max() > 1e-4:
            one, other = one["output"][0, 0, 0], right[0, 0, 0]
            return f"rank {rank}: {one:.4f} at (0, 0, 0), the whole layer says {other:.4f}"
    return ""


def bias_learns_alike(row, size, width, out, seed):
    found = [one["gradient of bias"] for one in seen_of_row(row, size, width, out, seed)]
    apart = max((g - found[0]).abs().max().item() for g in found)
    return f"the ranks' gradients of bias differ, by {apart:.2g}" * (apart > 1e-4)


COLUMNS, REDUCE = "weight.unflatten(1, (size, -1))[:, rank]", "    dist.all_reduce(total)\n"
WHOLE, END = "part + (total - part).detach()", "activation(whole + bias)"
NOT_ROWS = mistakes(reference_row, {
    "bias on every rank": (COLUMNS + ".T", COLUMNS + ".T + bias", END, "activation(whole)"),
    "bias divided by the ranks": (COLUMNS + ".T", COLUMNS + ".T + bias / size", END, "activation(whole)"),
    "bias on rank 0 alone": (COLUMNS + ".T", COLUMNS + ".T + (bias if rank == 0 else 0)",
        END, "activation(whole)"),
    "no bias": ("whole + bias", "whole"),
    "all_reduce returned": (END, "dist.all_reduce(part)"),
    "not summed": (REDUCE, ""),
    "averaged": (WHOLE, "(part + (total - part).detach()) / size"),
    "activation before the sum": (COLUMNS + ".T", COLUMNS + ".T\n    part = activation(part)",
        END, "whole + bias"),
    "sum without a gradient": (WHOLE, "total"),
    "gradient times the ranks": (WHOLE, "size * part + (total - size * part).detach()"),
    "outputs cut, not inputs": (COLUMNS, "weight.tensor_split(size)[rank]"),
    "columns dealt in turn": (COLUMNS, "weight.unflatten(1, (-1, size))[:, :, rank]"),
    "rank 0's columns on all": (COLUMNS, "weight.unflatten(1, (size, -1))[:, 0]"),
    "gathered first": (COLUMNS, "weight", "    part = x",
        "    xs = [torch.empty_like(x) for _ in range(size)]\n    dist.all_gather(xs, x)\n"
        "    part = torch.cat(xs, -1)", REDUCE, ""),
})  # fmt: skip

exercises = {
    "38a": dict(name="column", reference=reference_column, inputs=inputs_column, call=seen_of_column,
        twin="the project splits no matrix; the unsplit layer is the measure, torch's is in a test",
        gradients=False, properties=[together_they_are_the_layer, gradient_is_the_whole], wrong=NOT_COLUMNS,
        survivors={
            "total = gradient.clone() => total = gradient": "nobody else reads this gradient",
            "return x @ mine.T + bias.unflatten(0, (parts, size, -1))[:, rank].flatten() => "
            "return x @ mine.T + bias.unflatten(-1, (parts, size, -1))[:, rank].flatten()":
                "the first dimension is the last",
        },
        ),
    "38b": dict(name="row", reference=reference_row, inputs=inputs_row, call=seen_of_row,
        twin="the project splits no matrix; the unsplit layer is the measure, torch's is in a test",
        gradients=False, properties=[ranks_have_the_layers_output, bias_learns_alike], wrong=NOT_ROWS,
        survivors={
            "total = part.detach().clone() => total = part.detach()": "part itself becomes the sum",
            "total = part.detach().clone() => total = part.clone()": "it is detached two lines later",
        },
        ),
}  # fmt: skip

predictions = {
    "38.1": dict(answer=2.0, tol=0.1),
    "38.2": dict(answer=3.0, tol=0.1),
}
