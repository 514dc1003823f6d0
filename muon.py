"""Muon: momentum, orthogonalised (Jordan et al. 2024). The optimizer for the matrices inside the blocks."""

import torch
from torch.optim.adamw import adamw

from machine.distributed import gathered, shard_like


def newton_schulz(matrices: torch.Tensor, precision: torch.dtype) -> torch.Tensor:
    """(N, rows, cols) -> the same shape: each matrix U S V^T becomes about U V^T (Jordan et al. 2024).

    An odd polynomial of a matrix changes its singular values alone. Five rounds of s -> a s + b s^3 + c s^5
    carry every s from 0.01 to 1 into 0.68 to 1.14 (not to 1: the coefficients were chosen for a steep start).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(precision)
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x  # so that x x^T is the smaller product
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # Frobenius norm 1: no singular value above 1
    for _ in range(5):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b gram + c gram gram
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a x + polynomial x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum (Jordan et al. 2024) for groups of kind "muon", AdamW for the others.

    A gradient matrix has a few large singular values and many small ones. Muon makes them about equal, so
    that rare directions are learnt, too. Unlike torch.optim.Muon, it treats all matrices of one shape in one
    call.
    """

    def __init__(self, groups: list, momentum: float, betas: tuple, fused: bool, precision: torch.dtype):
        super().__init__(groups, {"momentum": momentum, "betas": betas, "eps": 1e-8, "fused": fused})
        self.precision = precision
        self.found_inf = None  # or a tensor, 1 where the step must change nothing, as in torch's AdamW

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            update = self.step_muon if group["kind"] == "muon" else self.step_adamw
            update([p for p in group["params"] if p.grad is not None], group)

    def step_muon(self, params: list[torch.Tensor], group: dict) -> None:
        """Gradients are overwritten. On a GPU, a _foreach_ operation is one kernel for all of its tensors."""
        lr, momentum = group["lr"], group["momentum"]
        decay = 1 - lr * group["weight_decay"]
        stacks: dict[tuple, list] = {}
        for p in params:
            stacks.setdefault(p.shape, []).append(p)
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        for (rows, cols), stack in stacks.items():
            grads, buffers = [p.grad for p in stack], [self.state[p]["momentum_buffer"] for p in stack]
            if self.found_inf is not None:  # to skip the step: gradients that leave the averages as they are
                skip = self.found_inf > 0
                grads = list(torch.where(skip, torch.stack(buffers), torch.stack(grads)))
            torch._foreach_lerp_(buffers, grads, 1 - momentum)
            torch._foreach_lerp_(grads, buffers, momentum)  # Nesterov momentum: average once more
            # With fsdp all ranks gather the matrix, because a shard cannot be orthogonalised by itself.
            updates = newton_schulz(torch.stack([gathered(g) for g in grads]), self.precision)
            updates = updates.to(stack[0].dtype)  # (N, rows, cols)
            if self.found_inf is not None:
                updates, decay = updates * ~skip, torch.where(skip, 1.0, 1 - lr * group["weight_decay"])
            updates = [shard_like(update, p) for update, p in zip(updates, stack, strict=True)]
            torch._foreach_mul_(stack, decay)
            torch._foreach_add_(stack, updates, alpha=-lr * max(1.0, rows / cols) ** 0.5)

    def step_adamw(self, params: list[torch.Tensor], group: dict) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.state[p]["step"] = torch.zeros((), device=p.device)
        grads = [p.grad for p in params]
        exp_avgs = [self.state[p]["exp_avg"] for p in params]
        exp_avg_sqs = [self.state[p]["exp_avg_sq"] for p in params]
        steps = [self.state[p]["step"] for p in params]
        options = {name: group[name] for name in ("lr", "weight_decay", "eps", "fused")}
        options["beta1"], options["beta2"] = group["betas"]
        options["found_inf"] = self.found_inf
        adamw(params, grads, exp_avgs, exp_avg_sqs, [], steps, amsgrad=False, maximize=False, **options)
