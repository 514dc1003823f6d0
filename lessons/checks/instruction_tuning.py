"""What the grader knows about lesson 30: labels of questions and answers, a masked mean, prompts."""

from types import SimpleNamespace

import numpy as np
import torch

from data import Windows
from lessons.common import generator, mistakes
from model import summed_nats
from text.chat import Conversation
from tokenizer import END, CharTokenizer


# ---- 30a: what is learned of a sample
class Samples(Windows):
    """Samples of (prompt, answer), as Windows(pack=False) reads them from files."""

    def __init__(self, samples, end, size):
        stretches = [[(p, 0), ([*a, end], 1)] for sample in samples for p, a in sample]
        pairs = [(i, what) for pair in stretches for ids, what in pair for i in ids]
        self.tokens, self.masks = np.array(pairs).T  # (n,), (n,)
        lengths = np.array([sum(len(p) + len(a) + 1 for p, a in sample) for sample in samples])
        fits = lengths <= size + 1
        self.starts, self.lengths = (lengths.cumsum() - lengths)[fits], lengths[fits]
        self.n_windows = len(self.lengths)
        self.order, self.bounds = np.arange(self.n_windows), np.arange(self.n_windows + 1)
        self.block_size, self.end_id, self.pack = size, end, False
        self.masked = self.in_rows = True


def reference_labelled(samples, end, size):
    rows = Samples(samples, end, size)
    return rows.window_batch(range(rows.n_windows))


def twin_labelled(samples, end, size):
    rows = []
    for sample in samples:
        ids, labels = [], []
        for prompt, answer in sample:
            ids += [*prompt, *answer, end]
            labels += [-1] * len(prompt) + [*answer, end]
        if len(ids) <= size + 1:
            rows.append((ids, labels))
    T = max(len(ids) for ids, _ in rows) - 1
    x = torch.full((len(rows), T), end)
    y = torch.full((len(rows), T), -1)
    for row, (ids, labels) in enumerate(rows):
        x[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        y[row, : len(ids) - 1] = torch.tensor(labels[1:])
    return x, y


def inputs_labelled(seed):
    g = generator(seed)

    def sample(*lengths):
        ids = torch.randint(26, (sum(lengths),), generator=g).split(lengths)
        return [*zip([i.tolist() for i in ids[::2]], [i.tolist() for i in ids[1::2]], strict=True)]

    first = [sample(6, 3), sample(4, 2, 3, 4), sample(5, 7), sample(9, 6), sample(0, 4, 2, 3)]
    second = [sample(3, 2, 2, 3, 4, 1), sample(8, 9), sample(2, 5)]
    return [(first, 26, 14), (second, 26, 17), ([sample(4, 3), sample(6, 2), sample(3, 9)], 26, 40)]


def strip(labelled, samples, end, size):
    """The targets of each row as letters, $: end token, a dot where nothing is learned."""
    return ["".join("." if i < 0 else "$" if i == end else chr(97 + i) for i in row)
            for row in labelled(samples, end, size)[1].tolist()]  # fmt: skip


def only_answers(labelled, samples, end, size):
    _, y = labelled(samples, end, size)
    kept = [sample for sample in samples if sum(len(p) + len(a) + 1 for p, a in sample) <= size + 1]
    right = sum(len(a) + 1 for sample in kept for _, a in sample) - sum(not sample[0][0] for sample in kept)
    found = int((y != -1).sum())
    return f"{found} places are learned, where {right} are answers and their ends" * (found != right)


IDS, LABELS = "ids += [*prompt, *answer, end]", "[-1] * len(prompt) + [*answer, end]"
FIT, X, Y = "if len(ids) <= size + 1:\n            ", "torch.tensor(ids[:-1])", "torch.tensor(labels[1:])"
PAIRS, PLACE = "for prompt, answer in sample:", "[row, : len(ids) - 1]"
LAST = "labels += [-1] * (len(prompt) + len(answer)) + [-1] if (prompt, answer) != sample[-1] else "
NOT_LABELLED = mistakes(twin_labelled, {
    "nothing masked": (LABELS, "[*prompt, *answer, end]"),
    "first answer token left out": (LABELS, "[-1] * (len(prompt) + 1) + [*answer[1:], end]"),
    "last prompt token learned": (LABELS, "[-1] * (len(prompt) - 1) + [*prompt[-1:], *answer, end]"),
    "end token masked": (LABELS, "[-1] * len(prompt) + [*answer, -1]"),
    "prompt learned, answer masked": (LABELS, "[*prompt] + [-1] * len(answer) + [-1]"),
    "only the last answer": ("labels += ", LAST),
    "filled places learned": ("torch.full((len(rows), T), -1)", "torch.full((len(rows), T), end)"),
    "not shifted": (Y, "torch.tensor(labels[:-1])"),
    "shifted twice": (Y, "torch.tensor([*labels[2:], -1])"),
    "-100 for -1": ("T), -1)", "T), -100)", "[-1] *", "[-100] *"),
    "x masked, too": (X, "torch.tensor(labels[:-1])"),
    "no end token": (IDS, "ids += [*prompt, *answer]", LABELS, "[-1] * len(prompt) + [*answer]"),
    "one end for a sample": (IDS, "ids += [*prompt, *answer]", LABELS, "[-1] * len(prompt) + [*answer]",
        "        if len", "        ids.append(end)\n        labels.append(end)\n        if len"),
    "filled on the left": ("x" + PLACE, "x[row, T + 1 - len(ids) :]", "y" + PLACE,
        "y[row, T + 1 - len(ids) :]"),
    "cut off at the right": (FIT, "ids, labels = ids[: size + 1], labels[: size + 1]\n        if ids:\n"
        "            "),
    "cut off at the left": (FIT, "ids, labels = ids[-size - 1 :], labels[-size - 1 :]\n        if ids:\n"
        "            "),
    "longest left out": ("<= size + 1", "<= size"),
    "too long by one": ("<= size + 1", "<= size + 2"),
    "as wide as the window": ("T = max(len(ids) for ids, _ in rows) - 1", "T = size"),
})  # fmt: skip


# ---- 30b: the mean over what is learned
def reference_mean(logits, y):
    return summed_nats(logits, y) / (y != -1).sum().clamp(min=1)


def twin_mean(logits, y):
    learned = y != -1
    log_p = logits.log_softmax(-1)[learned]
    nats = -log_p.gather(1, y[learned][:, None])
    return nats.sum() / max(1, learned.sum())


def inputs_mean(seed):
    g = generator(seed)

    def case(B, T, V, scale, share):
        y = torch.randint(V, (B, T), generator=g)
        y[0, 1], y[1, 2] = 0, V - 1
        masked = torch.rand(B, T, generator=g) < torch.linspace(share, 1.2 * share, B)[:, None]
        masked[0, 1:3], masked[1, 2] = False, False
        return scale * torch.randn(B, T, V, generator=g), y.masked_fill(masked, -1)

    infinite, y = case(2, 5, 7, 2.0, 0.6)
    infinite[..., 0] = torch.where(y == 0, infinite[..., 0], -torch.inf)  # the id 0 is forbidden elsewhere
    y[0, 3] = -1
    nothing, alone = torch.randn(2, 3, 5, generator=g), torch.full((3, 4), -1)
    alone[2, 1] = 6
    return [case(3, 7, 11, 1.0, 0.6), case(4, 6, 9, 1000.0, 0.3), case(3, 8, 5, 1e-3, 0.5), (infinite, y),
            (nothing, torch.full((2, 3), -1)), (torch.randn(3, 4, 8, generator=g), alone)]  # fmt: skip


def masked_places_do_not_matter(mean, logits, y):
    other = logits + 3 * (y == -1)[..., None] * torch.arange(logits.size(-1))
    apart = (mean(other, y) - mean(logits, y)).abs().item()
    return f"other logits where y is -1 move your loss by {apart:.3f}" * (apart > 1e-4)


SUM, LEARNED, OF = "nats.sum() / max(1, learned.sum())", "learned = y != -1", ".log_softmax(-1)[learned]"
ALL = "nats = -logits.log_softmax(-1).gather(-1, y.clamp(min=0)[..., None])[..., 0] * (y != -1)\n    return "
NOT_MEANS = mistakes(twin_mean, {
    "divided by all places": (SUM, "nats.sum() / y.numel()"),
    "mean of row means": ("return " + SUM, ALL.replace("* (y != -1)", "") + "(torch.where(learned, nats, "
        "0).sum(1) / learned.sum(1).clamp(min=1)).mean()"),
    "nothing learned is nan": (SUM, "nats.mean()"),
    "sum, not mean": (SUM, "nats.sum()"),
    "divided by the rows": (SUM, "nats.sum() / len(y)"),
    "divided by rows with targets": (SUM, "nats.sum() / max(1, learned.any(1).sum())"),
    "-1 taken for id 0": (LEARNED, "y = y.clamp(min=0); " + LEARNED),
    "-1 taken for the last": (LEARNED, "y = y % logits.size(-1); " + LEARNED),
    "id 0 left out": (LEARNED, "learned = y > 0"),
    "logits set to 0": ("return " + SUM, "nats = -(logits * learned[..., None]).log_softmax(-1)\n    return "
        "nats.gather(-1, y.clamp(min=0)[..., None]).sum() / max(1, learned.sum())"),
    "times the mask": ("return " + SUM, ALL + SUM),
    "in bits": (SUM, "nats.sum() / max(1, learned.sum()) / 0.6931472"),
    "sign": ("-log_p.gather", "log_p.gather"),
    "no softmax": (OF, "[learned]"),
    "softmax, then log": (OF, ".softmax(-1).log()[learned]"),
    "a float": (SUM, "nats.sum().item() / max(1, learned.sum().item())"),
})  # fmt: skip


# ---- 30c: the prompt at use
LETTERS = CharTokenizer("\n !.:;?,<>|" + "".join(map(chr, [*range(65, 91), *range(97, 123)])), (END,))


def encode(text):
    return LETTERS.encode(text).tolist()


def reference_prompt(messages, encode, end, size, room):
    ids = SimpleNamespace(
        encode=lambda text, **_: np.array(encode(text)), end_id=end, stop_ids=[end], begin_id=-1
    )
    ids.chat = None  # no template of its own
    talk = Conversation(ids, size, room)
    talk.messages = [dict(role=role, content=text) for role, text in messages[:-1]]
    return talk.ask(messages[-1][1])


def twin_prompt(messages, encode, end, size, room):
    system = [message for message in messages if message[0] == "system"]
    talk = messages[len(system) :]
    for first in range(0, len(talk), 2):
        ids, before = [], ""
        for role, text in [*system, *talk[first:]]:
            if role == "assistant":
                ids += encode(before + "assistant: ") + encode(text) + [end]
                before = "\n"
            else:
                before += f"{role}: {text}\n"
        ids += encode(before + "assistant: ")
        if len(ids) + room <= size:
            return ids


def inputs_prompt(seed):
    g = generator(seed)

    def words(n):
        drawn = torch.randint(26, (n, 4), generator=g) + 97
        return " ".join("".join(map(chr, word)) for word in drawn.tolist())

    def talk(turns, system):
        said = [("user" if i % 2 == 0 else "assistant", words(i % 3 + 2)) for i in range(2 * turns + 1)]
        return [("system", words(3))] * system + said

    def case(turns, system, forgotten, over, room):
        """So many turns have to be forgotten: with one turn more the prompt is too long by `over`, or, where
        that is 0, the rest fits exactly."""
        messages = talk(turns, system)
        kept = messages[:system] + messages[system + 2 * (forgotten - (over > 0)) :]
        size = len(reference_prompt(kept, encode, LETTERS.end_id, 9999, room)) + room - over
        return messages, encode, LETTERS.end_id, size, room

    return [case(3, True, 2, 5, 9), case(4, False, 1, 0, 7), case(3, True, 1, 1, 12), case(2, True, 0, 0, 8),
            case(2, False, 1, 1, 5), case(3, True, 3, 0, 6), case(0, True, 0, 0, 4)]  # fmt: skip


def as_in_training(prompt_of, messages, encode, end, size, room):
    """The prompt is the beginning of a sample, as lesson 30a has them."""
    ids = prompt_of(messages, encode, end, 9999, room)
    right = twin_prompt(messages, encode, end, 9999, room)
    place = next((i for i, (a, b) in enumerate(zip(ids, right, strict=False)) if a != b), len(right))
    shown = LETTERS.decode(ids[:place][-20:])
    return f"it goes on otherwise than in training behind {shown!r}" * (ids != right)


SAID, TURN = 'encode(before + "assistant: ") + encode(text) + [end]', "range(0, len(talk), 2)"
OPEN, ROOM = 'ids += encode(before + "assistant: ")\n', "len(ids) + room <= size"
OTHERS, IDS_NOW = 'before += f"{role}: {text}\\n"', "if len(ids) + room <= size:\n            return ids"
NOT_PROMPTS = mistakes(twin_prompt, {
    "assistant not opened": ("\n        " + OPEN, "\n        ids += encode(before)\n"),
    "blank left out": ("\n        " + OPEN, '\n        ids += encode(before + "assistant:")\n'),
    "ends left out": (SAID, 'encode(before + "assistant: ") + encode(text)'),
    "end token spelled": (SAID, 'encode(before + "assistant: ") + encode(text + "<|endoftext|>")'),
    "no new line behind ends": ('before = "\\n"', 'before = ""'),
    "questions closed, too": (OTHERS, 'ids += encode(before + f"{role}: {text}") + [end]; before = "\\n"'),
    "other names": ("assistant: ", "Answer: ", "{role}: {text}", "Question: {text}"),
    "names left out": (OTHERS, 'before += f"{text}\\n"'),
    "system forgotten": ("in [*system, *talk[first:]]", "in talk[first:]"),
    "system first to go": ("in [*system, *talk[first:]]", "in [*system[first:], *talk[first:]]"),
    "newest forgotten": ("*talk[first:]]", "*talk[: len(talk) - first]]"),
    "message by message": (TURN, "range(len(talk))"),
    "earlier answers left out": (SAID, "[]", 'before = "\\n"', "pass"),
    "always the last turn": (TURN, "[len(talk) - 1]"),
    "nothing forgotten": (IDS_NOW, "return ids"),
    "cut off at the left": (IDS_NOW, "return ids[-(size - room) :]"),
    "cut off at the right": (IDS_NOW, "return ids[: size - room]"),
    "no room for a reply": (ROOM, "len(ids) <= size"),
    "one turn too many forgotten": (ROOM, "len(ids) + room < size or first == len(talk) - 1"),
    "end tokens not counted": (ROOM, "len(ids) - ids.count(end) + room <= size"),
})  # fmt: skip

exercises = {
    "30a": dict(name="labelled", reference=reference_labelled, project=Windows, slow=twin_labelled,
        inputs=inputs_labelled, gradients=False, properties=[only_answers], picture=strip,
        wrong=NOT_LABELLED,
        also=mistakes(twin_labelled, {"filled with 0": ("T), end)", "T), 0)")}),
        ),
    "30b": dict(name="masked_mean", reference=reference_mean, project=summed_nats, slow=twin_mean,
        inputs=inputs_mean, properties=[masked_places_do_not_matter], wrong=NOT_MEANS,
        survivors={f"return {SUM} => return {SUM.replace('1, learned.sum()', 'learned.sum(), 1')}":
            "the larger of two"},
        forbidden=["cross_entropy", "nll_loss", "CrossEntropyLoss", "NLLLoss"],
        ),
    "30c": dict(name="prompt_of", reference=reference_prompt, project=Conversation, slow=twin_prompt,
        inputs=inputs_prompt, gradients=False, properties=[as_in_training], wrong=NOT_PROMPTS,
        ),
}  # fmt: skip

predictions = {
    "30.1": dict(answer=0.25, tol=0.005),
    "30.2": dict(answer=0.0, tol=0.5),
}
