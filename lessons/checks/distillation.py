"""What the grader knows about lesson 34: learning from a teacher's probabilities, and from text."""

from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from data import count_targets
from lessons.common import fill, floats, generator, mistakes
from techniques import distill
from techniques.distill import Teacher, divergence

V = 11


# ---- 34a: the soft loss
def reference_soft(logits, teacher_logits, y, T):
    log_p = (teacher_logits.detach() / T).log_softmax(-1)
    return T**2 * divergence(logits, y, None, log_p, T) / max(1, count_targets(y))


def soft_loss(logits, teacher_logits, y, T):
    log_q = (logits / T).log_softmax(-1)
    log_p = (teacher_logits.detach() / T).log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    scored = y != -1
    return T**2 * kl[scored].sum() / max(1, scored.sum())


def inputs_soft(seed):
    g = generator(seed)

    def case(B, T, V, scale, temperature, share):
        y = torch.randint(V, (B, T), generator=g)
        y = y.masked_fill(torch.rand(B, T, generator=g) < share, -1)
        y[0, :3] = -1
        student, teacher = scale * torch.randn(2, B, T, V, generator=g)
        return student, teacher, y, temperature

    alone = case(2, 4, 5, 1.0, 2.0, 0.0)
    alone[2][:] = -1
    alone[2][1, 2] = 3
    return [case(3, 7, 5, 1.0, 2.5, 0.3), case(2, 6, 9, 1000.0, 4.0, 0.2), case(4, 5, 8, 0.1, 0.7, 0.5),
            alone, case(3, 4, 6, 2.0, 3.0, 1.1)]  # fmt: skip


def never_negative(soft, logits, teacher_logits, y, T):
    found = soft(logits, teacher_logits, y, T).item()
    return f"your divergence is {found:.3f}, and none is negative" * (found < -1e-6)


def nothing_to_learn_of_oneself(soft, logits, teacher_logits, y, T):
    found = soft(teacher_logits, teacher_logits, y, T).item()
    return f"a student that says what its teacher says still has a loss of {found:.3f}" * (abs(found) > 1e-4)


LOG_Q, LOG_P = "(logits / T).log_softmax(-1)", "(teacher_logits.detach() / T).log_softmax(-1)"
KL, MEAN = "(log_p.exp() * (log_p - log_q)).sum(-1)", "kl[scored].sum() / max(1, scored.sum())"
NOT_SOFT = mistakes(soft_loss, {
    "softmax for log_softmax": (LOG_Q, "(logits / T).softmax(-1)"),
    "softmax, then log": (LOG_Q, "(logits / T).softmax(-1).log()"),
    "mean over the vocabulary": (MEAN, "kl[scored].sum() / max(1, scored.sum()) / logits.size(-1)"),
    "mean over rows": (MEAN, "kl[scored].sum() / len(y)"),
    "sum, not mean": (MEAN, "kl[scored].sum()"),
    "no T squared": ("T**2 * kl", "kl"),
    "times T": ("T**2 * kl", "T * kl"),
    "divided by T squared": ("T**2 * kl", "1 / T**2 * kl"),
    "arguments swapped": (KL, "(log_q.exp() * (log_q - log_p)).sum(-1)"),
    "teacher learns, too": (".detach()", ""),
    "student not learning": (LOG_Q, "(logits.detach() / T).log_softmax(-1)"),
    "temperature of one alone": (LOG_P, "teacher_logits.detach().log_softmax(-1)"),
    "temperature of the teacher alone": (LOG_Q, "logits.log_softmax(-1)"),
    "multiplied by T": (LOG_Q, "(logits * T).log_softmax(-1)", LOG_P,
        "(teacher_logits.detach() * T).log_softmax(-1)"),
    "entropy left in": (KL, "-(log_p.exp() * log_q).sum(-1)"),
    "only the likeliest": (KL, "-log_q.gather(-1, log_p.argmax(-1)[..., None])[..., 0]"),
    "squares of logits": (KL, "((logits - teacher_logits.detach()) / T).square().sum(-1)"),
    "all places": ("scored = y != -1", "scored = y >= -1"),
    "divided by all places": (MEAN, "kl[scored].sum() / y.numel()"),
    "nothing scored is nan": (MEAN, "kl[scored].mean()"),
    "sign": ("(log_p - log_q)", "(log_q - log_p)"),
})  # fmt: skip


# ---- 34b: with the text beside it
class Model(nn.Module):
    """ids (B, T) -> logits (B, T, V), with dropout while it is in training mode."""

    def __init__(self, width):
        super().__init__()
        self.wte, self.drop, self.head = nn.Embedding(V, width), nn.Dropout(0.4), nn.Linear(width, V)

    def forward(self, x):
        return self.head(self.drop(torch.tanh(self.wte(x))))


def reference_mix(student, teacher, x, y, alpha, T):
    shown = SimpleNamespace(model=teacher.eval(), temperature=T, k=0, cache=None)
    student.teacher = SimpleNamespace(targets=partial(Teacher.targets, shown))
    summed = distill.loss(student, x, y, dict(distill_alpha=alpha, distill_temperature=T))
    return summed / max(1, count_targets(y))


def twin_mix(student, teacher, x, y, alpha, T):
    teacher.eval()
    with torch.no_grad():
        teacher_logits = teacher(x)
    logits = student(x)
    scored = y != -1
    hard = F.cross_entropy(logits[scored], y[scored], reduction="sum") / max(1, scored.sum())
    return alpha * soft_loss(logits, teacher_logits, y, T) + (1 - alpha) * hard


def inputs_mix(seed):
    cases = [(0.3, 2.5, 0.3), (0.8, 4.0, 0.5), (0.6, 0.8, 0.0), (0.7, 2.0, 1.1), (0.4, 3.0, 2.0)]
    return [(alpha, T, share, seed + 10 * i) for i, (alpha, T, share) in enumerate(cases, 1)]


def seen_of_mix(mix, alpha, T, share, seed):
    """The loss, the student's gradients, and whether the teacher has any."""
    g = generator(seed)
    teacher, student = fill(Model(7), g), fill(Model(4), g)
    ids = torch.randint(V, (3, 6), generator=g)
    x, y = ids[:, :-1], ids[:, 1:].masked_fill(torch.rand(3, 5, generator=g) < share, -1)
    y[1, 2] = 4 if share == 2 else y[1, 2]  # one target in all
    loss = mix(student, teacher, x, y, alpha, T)
    if isinstance(loss, torch.Tensor) and loss.requires_grad:
        loss.backward()
    (told,) = floats([loss])
    return {"loss": told, "shape": tuple(getattr(loss, "shape", "none")),
            "gradients": [torch.zeros_like(p) if p.grad is None else p.grad for p in student.parameters()],
            "the teacher has gradients": any(p.grad is not None for p in teacher.parameters()),
            "the student is still training": student.training}  # fmt: skip


EVAL, NO = "    teacher.eval()\n", "with torch.no_grad():"
HARD, SOFT = "(logits[scored], y[scored], reduction", "soft_loss(logits, teacher_logits, y, T)"
BOTH, READ = f"alpha * {SOFT} + (1 - alpha) * hard", "logits = student(x)\n"
COUNTED = "hard = F.cross_entropy(logits[scored], y[scored], reduction='sum') /"
NOT_MIXES = mistakes(twin_mix, {
    "alpha on the wrong term": (BOTH, f"(1 - alpha) * {SOFT} + alpha * hard"),
    "no weights": (BOTH, f"{SOFT} + hard"),
    "text at full weight": (BOTH, f"alpha * {SOFT} + hard"),
    "teacher alone": (BOTH, f"{SOFT} + 0 * hard"),
    "text alone": (BOTH, f"0 * {SOFT} + hard"),
    "T on the hard loss": (HARD, "(logits[scored] / T, y[scored], reduction"),
    "T squared on both": (" + (1 - alpha)", " + T**2 * (1 - alpha)"),
    "T squared twice": ("return alpha", "return T**2 * alpha"),
    "teacher in training mode": (EVAL, "    teacher.train()\n"),
    "student in eval, too": (EVAL, EVAL + "    student.eval()\n"),
    "teacher learns, too": (NO, "if True:", "alpha * " + SOFT,
        "alpha * (soft_loss(logits, teacher_logits, y, T) + soft_loss(teacher_logits, logits, y, T)"
        " - soft_loss(teacher_logits, logits, y, T).detach())"),
    "student not learning": (SOFT, SOFT.replace("logits,", "logits.detach(),", 1)),
    "arguments swapped": (SOFT, "soft_loss(teacher_logits, logits, y, T)"),
    "no gradient for either": (READ, "teacher(x)\n    with torch.no_grad():\n        " + READ),
    "teacher's guess for y": ("y[scored], reduction", "teacher_logits[scored].argmax(-1), reduction"),
    "sum of the text's loss": (" / max(1, scored.sum())", ""),
    "mean over all places": (" / max(1, scored.sum())", " / y.numel()"),
    "nothing scored is nan": (" / max(1, scored.sum())", " / scored.sum()"),
    "a float": ("return " + BOTH, f"return ({BOTH}).item()"),
})  # fmt: skip

exercises = {
    "34a": dict(name="soft_loss", reference=reference_soft, project=divergence, slow=soft_loss,
        inputs=inputs_soft, properties=[never_negative, nothing_to_learn_of_oneself], wrong=NOT_SOFT,
        survivors={f"kl = {KL} => kl = {KL.removesuffix('.sum(-1)')[1:-1]}": "the sum over all comes anyway",
            f"return T ** 2 * {MEAN} => return T ** 2 * {MEAN.replace('1, scored.sum()', 'scored.sum(), 1')}":
            "the larger of two"},
        ),
    "34b": dict(name="mixed_loss", reference=reference_mix, project=Teacher, slow=twin_mix,
        inputs=inputs_mix, call=seen_of_mix, gradients=False, needs=["34a"], wrong=NOT_MIXES,
        survivors={f"{COUNTED} max(1, scored.sum()) => {COUNTED} max(scored.sum(), 1)": "the larger of two"},
        ),
}  # fmt: skip

predictions = {
    "34.1": dict(answer=0.0625, tol=0.015),
    "34.2": dict(answer=0.0, tol=0.001),
}
