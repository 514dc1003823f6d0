# Lesson 34 (unit F): Distillation: learning from a teacher
# Before: a large model made smaller by rounding and by zeros. A small model learned from the text alone.
# Seconds: 15
#
# A cell begins with "# %%". Editors that know this (VS Code, Spyder, PyCharm) run it cell by cell; in VS Code
# set "jupyter.notebookFileRoot" to "${workspaceFolder}". Or:
#     python lessons/run.py start 34     your copy, in work/
#     python lessons/run.py check 34     what is right, what is not yet
#     python lessons/run.py show 34      the whole lesson from top to bottom, with its plot

# %%
import torch
import torch.nn.functional as F

from lessons.course import claim, encoded, save_plot, windows, yours_or_ours

predict_1 = None  # length of the soft loss's gradient at T = 4, without T^2, as a share of that at T = 1
predict_2 = None  # the soft loss in nats of a student that says exactly what its teacher says

# %% [markdown]
# ## What a text does not say
#
# A text says which letter came. It does not say which ones might have come as well. A trained model does: it
# has a probability for each letter. So let a small model, the **student**, learn from what a large one, the
# **teacher**, says of each place. That is **distillation** (Hinton, Vinyals and Dean, 2015). After "of th":
#
#     what the text says         e 1
#     what the teacher says      e 0.55   a 0.19   i 0.12   o 0.07   y 0.04   u 0.01   ...
#
# Such probabilities are **soft** targets, the letters of the text **hard** ones. From one place a student
# learns about all letters at once: which are likely, and also which never come.


# %%
class Guess(torch.nn.Module):
    """Guesses each next letter from the six letters up to it: ids (B, T) -> logits (B, T, V)."""

    def __init__(self, V, channels, width):
        super().__init__()
        self.wte, self.down = torch.nn.Embedding(V, channels), torch.nn.Linear(width, V)
        self.up = torch.nn.Linear(6 * channels, width)

    def forward(self, x):
        six = F.pad(self.wte(x), (0, 0, 5, 0)).unfold(1, 6, 1).flatten(2)
        return self.down(self.up(six).relu())


def test_loss(model):
    with torch.no_grad():
        return F.cross_entropy(model(val_x).flatten(0, 1), val_y.flatten()).item()


if __name__ == "__main__":
    vocabulary, ids, val_ids, is_shakespeare = encoded()
    V = len(vocabulary)
    val_x, val_y = val_ids[:8192].view(-1, 32), val_ids[1:8193].view(-1, 32)
    torch.manual_seed(34)
    teacher, g = Guess(V, 16, 192), torch.Generator().manual_seed(34)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=0.004, fused=True)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.004 * (1 - step / 200)
        x, y = windows(ids, 64, g)
        loss = F.cross_entropy(teacher(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"teacher: val loss {test_loss(teacher):.2f}")
    claim(2.16, test_loss(teacher), tol=0.04, when=is_shakespeare)
    context = torch.tensor([[vocabulary.index(letter) for letter in "of the"]])
    p = teacher(context)[0, -2].softmax(-1)
    print("after 'of th':", *(f"{vocabulary[i]!r} {p[i]:.3f}" for i in p.topk(6).indices))
    e, a, i, o, y, u = (p[vocabulary.index(letter)].item() for letter in "eaioyu")
    claim(0.55, e, tol=0.06, when=is_shakespeare)
    claim(0.19, a, tol=0.05, when=is_shakespeare)
    claim(0.12, i, tol=0.04, when=is_shakespeare)
    claim(0.07, o, tol=0.03, when=is_shakespeare)
    claim(0.04, y, tol=0.02, when=is_shakespeare)
    claim(0.01, u, tol=0.01, when=is_shakespeare)

# %% [markdown]
# ## 34a. The soft loss
#
# How far are the student's probabilities q from the teacher's p? The **Kullback-Leibler divergence** (1951)
# says how many nats are lost when q is believed and p is true. At each place it is a sum over the vocabulary:
#
#     KL(p || q) = sum of p (log p - log q)
#
# The teacher says 0.75 and 0.25 of two letters, the student 0.5 and 0.5: 0.75 ln 1.5 + 0.25 ln 0.5 = 0.131.
# If both say the same it is 0, and it is never negative. The other way round, with q as the weights, it is
# 0.144: the order matters. p is the teacher's, because it is the teacher who should be covered everywhere.
#
# A sure teacher says little about unlikely letters. So the logits of both are divided by a **temperature** T,
# as when sampling (lesson 26): 0.75 and 0.25 are 0.634 and 0.366 at T = 2. Their order stays, the small ones
# count more. But the gradient gets shorter. T divides the logits, and so the gradient; and the softer p and q
# are closer to each other, about T times. Together that is T^2, and so the loss is multiplied by T^2:
#
#     soft loss = T^2 x KL(p || q), both at temperature T, mean over the scored places
#
# Then the learning rate need not be found anew for each T. For a student that knows nothing and our teacher
# the gradient at T = 4 without that factor is 18 times shorter than at T = 1, about T^2. The teacher
# does not learn: no gradient reaches its logits.


# %%
def soft_loss(logits, teacher_logits, y, T):
    """T^2 times the divergence of teacher and student at temperature T, nats per scored place.

    logits, teacher_logits: (B, n, V) float32, also large ones; y: (B, n) int64, -1 where nothing is scored;
    T: float, the temperature, of both -> () float32, 0 if nothing is scored; a gradient reaches logits alone.
    """
    raise NotImplementedError("lesson 34a")


# %%
if __name__ == "__main__":
    soft = yours_or_ours(soft_loss, "34a")
    one, p, q = torch.tensor([[0]]), torch.tensor([[[0.75, 0.25]]]), torch.tensor([[[0.5, 0.5]]])
    claim(0.131, soft(q.log(), p.log(), one, 1.0).item(), tol=0.001)
    claim(0.144, soft(p.log(), q.log(), one, 1.0).item(), tol=0.001)
    claim(0.634, (p.log() / 2).softmax(-1)[0, 0, 0].item(), tol=0.001)
    claim(0.366, (p.log() / 2).softmax(-1)[0, 0, 1].item(), tol=0.001)
    claim(1.5, (p / q).max().item(), tol=0)
    claim(2, 1 / q.min().item(), tol=0)
    claim(0.25, p.min().item(), tol=0)
    claim(0.75, p.max().item(), tol=0)
    claim(0.5, q.min().item(), tol=0)
    lengths = {}
    for T in (1.0, 2.0, 4.0):
        logits = torch.zeros(1, 32, V, requires_grad=True)
        soft(logits, teacher(val_x[:1]), val_y[:1], T).backward()
        lengths[T] = logits.grad.norm().item()
        print(f"T = {T:g}: gradient {lengths[T]:.4f} long, without T^2 {lengths[T] / T**2:.4f}")
    claim(4, T, tol=0)
    claim(18, lengths[1.0] / (lengths[4.0] / 4**2), tol=2, when=is_shakespeare)

# %% [markdown]
# ## 34b. Teacher and text
#
# A teacher can be wrong, and the text is always what it is. So both are heard:
#
#     loss = alpha x soft loss + (1 - alpha) x cross-entropy
#
# The cross-entropy is that of lesson 3, at T = 1, since that is how the student will be used. The teacher is
# in evaluation mode, without dropout, else it would say something else each time; and it has no graph: that
# would cost memory for nothing. The student is asked once, in the mode in which it is.


# %%
def mixed_loss(student, teacher, x, y, alpha, T):
    """The loss of a student that learns from its teacher and from the text; soft_loss from above may be used.

    student, teacher: (B, n) int64 -> (B, n, V) float32 logits; the teacher may be in training mode, and may
    be left in evaluation mode; x, y: (B, n) int64, y is -1 where nothing is scored; alpha: float, the weight
    of the teacher; T: float, the temperature
    -> () float32, nats per scored place, 0 if there is none; only the student gets a gradient.
    """
    raise NotImplementedError("lesson 34b")


# %% [markdown]
# ## A short text, with and without a teacher
#
# The teacher has read the whole play: its val loss is 2.16. The student is smaller, 4,233 parameters to the
# teacher's 32,209, and reads 6,000 letters of the play, over and over. From the text alone it soon knows them
# by heart: its val loss falls to 3.06, and climbs to 3.17. With the teacher it reads the same letters, and
# ends at 2.58 (alpha = 0.5, T = 2). If it listens to the teacher alone, at T = 1, it ends at 2.51.
#
# A part of what the student gains is what the teacher has read elsewhere. Where both read the same large text
# the gain is smaller, and the teacher's reading takes time. Which alpha and T are best has to be tried.


# %%
def parameters(model):
    return sum(p.numel() for p in model.parameters())


def trained(alpha, T):
    """A student's val loss after every 50 updates."""
    torch.manual_seed(1)
    student, g, losses = Guess(V, 8, 32), torch.Generator().manual_seed(1), []
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.005, weight_decay=0.0, fused=True)
    for step in range(301):
        if step % 50 == 0:
            losses.append(test_loss(student))
        x, y = windows(short, 16, g)
        loss = mix(student, teacher, x, y, alpha, T)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


if __name__ == "__main__":
    mix, short = yours_or_ours(mixed_loss, "34b"), ids[:6000]
    arms = {"text alone": (0.0, 1.0), "alpha 0.5, T = 2": (0.5, 2.0), "teacher alone, T = 1": (1.0, 1.0)}
    curves = {name: trained(*arm) for name, arm in arms.items()}
    for name, losses in curves.items():
        print(f"{name:22}", *(f"{loss:.2f}" for loss in losses))
    alone, both, taught = curves.values()
    if is_shakespeare:
        assert alone[-1] > min(alone) + 0.05 and max(both[-1], taught[-1]) < min(alone)
    claim(3.06, min(alone), tol=0.05, when=is_shakespeare)
    claim(3.17, alone[-1], tol=0.08, when=is_shakespeare)
    claim(2.58, both[-1], tol=0.05, when=is_shakespeare)
    claim(2.51, taught[-1], tol=0.05, when=is_shakespeare)

    claim(6000, len(short), tol=0)
    claim(4233, parameters(Guess(V, 8, 32)), tol=0, when=is_shakespeare)
    claim(32209, parameters(teacher), tol=0, when=is_shakespeare)

    def draw(axes):
        for name, losses in curves.items():
            axes.plot(range(0, 301, 50), losses, marker=".", label=name)
        axes.set(xlabel="update", ylabel="val loss (nats)", title="6,000 letters, with and without a teacher")
        axes.legend()

    save_plot("34_distillation", draw)

# %% [markdown]
# ## Where it stands in the project
#
# `divergence` in techniques/distill.py is 34a without T^2 and mean, and `loss` in techniques/distill.py is
# 34b: sums, which the loop of train.py divides by the count of all targets (lesson 24). `Teacher` in
# techniques/distill.py loads the run that `--distill_teacher` names, and refuses one with another tokenizer,
# since its ids would mean other letters. With `--distill_top_k` only the likeliest tokens of the teacher are
# kept, and all others as one outcome; they can lie on disk for other runs (techniques/teacher_cache.py).
# docs/techniques.md has what was gained, over three seeds, and what it cost.
