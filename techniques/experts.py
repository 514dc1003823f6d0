"""Mixture of experts: each token is computed by k of E MLPs, which a router chooses (Shazeer et al., 2017).

    python train.py config/small.py --experts=8 --experts_active=2        or --technique=experts
    python -m techniques.experts --out_dir=out-small      who computes what: shares of each expert, parameters

In each block E experts take the place of the MLP. The router scores them for each token x:

    s = sigmoid(R x)  (E)      the k experts with the highest s + b compute      y = sum of g_e expert_e(x)
    g_e = s_e / (sum of the k chosen s);  with k = 1 it is s_e, or the router would have no gradient

Dropless (MegaBlocks: Gale et al., 2022): tokens are sorted by expert, and each expert computes all of its own
in one product, however many there are. Nothing is padded, and no token is left out.

Balance: a router that is left alone soon sends most tokens to few experts. As in DeepSeek-V3 (Wang et al.,
2024), each expert has a bias b that counts in the choice only, not in g. After each update it grows by
`balance` where the expert had fewer tokens than the mean, and falls where it had more. So the loss needs no
further term. Tokens are counted over all micro-steps and ranks of an update. (Where gradient checkpointing
computes them again, those of all micro-steps but the first count twice.) A frozen router keeps its biases.

With F = experts_width (0: n_ff / k, so that k experts cost what the MLP did), a layer's matrices have

    total: E (2 C F + C)        active, per token: k 2 C F + E C        (swiglu: 3 C F for 2 C F)

The key/value cache stays as it is. Each expert is called by itself, also if it has no token: then its
gradient is 0, and all ranks have the same gradients to sum. Small experts lose speed by that: see docs.
"""

import contextlib
import dataclasses

from config import end_script, override, require  # isort: skip
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from data import Windows
from evaluate import evaluate, fixed_windows
from machine.speed import parameters_of
from model import MLP
from runtime import checkpoint
from runtime.folder import run_folder
from text.prepare import folder_of

# -----------------------------------------------------------------------------
experts = 8  # how many in each block
experts_active = 2  # of them compute a token
experts_width = 0  # width inside an expert; 0 = n_ff / experts_active: as much arithmetic as without experts
experts_balance = 0.01  # how fast the biases move, per update; 0 = not at all
# the command
out_dir = "out-shakespeare-char"  # folder of the run
file = "best.pt"  # which checkpoint in it
# -----------------------------------------------------------------------------

FROM_SCRATCH = "its MLP becomes several, and no base has their weights"


class Experts(nn.Module):
    """E MLPs and their router, in place of model.MLP: (B,T,C) -> (B,T,C)."""

    def __init__(self, config, count: int, active: int, width: int):
        """config: the model's. count, active, width: E, k and F."""
        super().__init__()
        self.active, self.sharded = active, False
        shape = dataclasses.replace(config, n_ff=width)
        self.experts = nn.ModuleList(MLP(shape) for _ in range(count))
        self.router = nn.Parameter(torch.empty(count, config.n_embd))  # no Linear: AdamW's, not Muon's
        self.register_buffer("bias", torch.zeros(count))
        self.register_buffer("counts", torch.zeros(count))  # tokens since the last update

    def forward(self, x: Tensor) -> Tensor:
        flat, E, k = x.flatten(0, -2), len(self.experts), self.active  # (N,C)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 has 256 scores from 0.5 to 1: many ties
            scores = torch.sigmoid(F.linear(flat.float(), self.router.float()))  # (N,E)
        chosen = (scores.detach() + self.bias).topk(k).indices  # (N,k)
        gates = scores.gather(1, chosen)  # (N,k)
        if k > 1:
            gates = gates / gates.sum(dim=1, keepdim=True)
        counts = torch.bincount(chosen.flatten(), minlength=E)  # (E)
        if self.training and self.router.grad is None and not self.sharded:
            self.counts.zero_()  # an update begins; what was tried before it, or has failed, does not count
        self.counts += counts
        order = chosen.flatten().argsort(stable=True)  # (N*k): first all tokens of expert 0, then of 1, ...
        parts = flat[order // k].split(counts.tolist())  # E times (tokens,C)
        computed = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        computed = computed[order.argsort()].view(-1, k, x.size(-1))  # (N,k,C)
        y = (computed * gates[..., None].to(computed.dtype)).sum(dim=1)  # (N,C)
        return y.view(x.shape)

    def train(self, mode: bool = True) -> "Experts":
        """Counting begins anew between training and evaluation: only an update's own tokens count."""
        if mode != self.training:
            self.counts.zero_()
        return super().train(mode)

    def idle(self) -> int:
        """How many of its numbers have no part in the computation of a token."""
        one = sum(p.numel() for p in self.experts[0].parameters())
        return one * (len(self.experts) - self.active)

    def shares(self) -> Tensor:
        """Share (E) of what was computed since the mode was changed, in percent."""
        return 100 * self.counts / self.counts.sum()


def layers_of(model) -> list[Experts]:
    """The experts of each block."""
    return [block.mlp for block in model.blocks if isinstance(block.mlp, Experts)]


def change_model(model, config: dict):
    """Put experts in place of each block's MLP. ValueError for settings that make no sense."""
    count, active, width = (config[name] for name in ("experts", "experts_active", "experts_width"))
    require(count >= 1, f"experts={count} makes no sense; expected 1 or more, such as 8")
    require(1 <= active <= count, f"experts_active={active} makes no sense; expected 1 to experts={count}")
    require(width >= 0, f"experts_width={width} makes no sense; expected 1 or more, or 0 for n_ff / active")
    rate = config["experts_balance"]
    require(rate >= 0, f"experts_balance={rate} makes no sense; expected 0 or more, such as 0.01")
    width = width or max(1, model.config.n_ff // active)
    for block in model.blocks:
        with torch.device(model.norm.weight.device):
            block.mlp = Experts(model.config, count, active, width).train(block.training)
        block.mlp.sharded = config.get("strategy") == "fsdp"  # which holds gradients back, and tries nothing
        model.init_weights(block.mlp)
    return model


@torch.no_grad()
def after_step(model, step: int, config: dict) -> None:
    """Move the biases towards equal numbers of tokens, and begin to count anew."""
    layers = layers_of(model)
    counts = torch.stack([layer.counts for layer in layers])  # (layers,E)
    if dist.is_initialized():
        dist.all_reduce(counts)
    moves = config["experts_balance"] * torch.sign(counts.mean(dim=1, keepdim=True) - counts)
    for layer, move in zip(layers, moves, strict=True):
        layer.bias += move * layer.router.requires_grad
        layer.counts.zero_()


# ---- the command
def report(config: dict) -> list[str]:
    """Lines about the run out_dir/file: parameters, and the share of val tokens that each expert computes."""
    path = run_folder(config["out_dir"]) / config["file"]
    model, _, saved = checkpoint.load_model(path, torch.device("cpu"))
    layers = layers_of(model)
    require(len(layers) > 0, f"{path} has no experts; expected a run with technique=experts")
    settings = saved["config"]
    folder = folder_of(settings["dataset"])
    shape = model.config.block_size, settings["seed"], settings["pack"]
    train, val = (Windows(folder, split, *shape) for split in ("train", "val"))
    _, val_set = fixed_windows(train, val, settings["eval_iters"])
    loss = evaluate(model, *val_set, torch.device("cpu"), contextlib.nullcontext())["loss"]
    total, idle = parameters_of(model), sum(layer.idle() for layer in layers)
    lines = [f"{total:,} parameters, {total - idle:,} of them active for a token; val loss {loss:.4f}"]
    lines.append(
        f"share of the work of each expert, in percent; equal shares are {100 / len(layers[0].bias):.1f}"
    )
    for i, layer in enumerate(layers):
        shares = " ".join(f"{share:5.1f}" for share in layer.shares().tolist())
        lines.append(f"block {i}: {shares}")
    return lines


if __name__ == "__main__":
    config = override(globals())
    from techniques import experts as this  # not this file, which is __main__: its classes are other ones

    print(*this.report(config), sep="\n")
    end_script()
