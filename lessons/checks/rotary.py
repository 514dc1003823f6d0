"""What the grader knows about lesson 8: rotary positions."""

import math
from functools import partial

import torch

from lessons.common import as_tuple, generator, normal
from model import rope_tables, rotate


# ---- 8a: the project's tables hold each number twice, once for each of a pair
def reference_tables(T, d, base):
    cos, sin = rope_tables(torch.arange(T)[None], d, base)
    return cos[0, :, 0, : d // 2], sin[0, :, 0, d // 2 :]


def twin_tables(T, d, base):
    cosines, sines = [], []
    for t in range(T):
        angles = [t / base ** (2 * i / d) for i in range(d // 2)]
        cosines.append([math.cos(angle) for angle in angles])
        sines.append([math.sin(angle) for angle in angles])
    return torch.tensor(cosines), torch.tensor(sines)


def inputs_tables(seed):
    return [(9 + 2 * (seed % 4), 6, 500.0 + seed % 50), (261 + seed % 9, 8 + 2 * (seed % 2), 10000.0)]


def tables(T, d, base, exponent=lambda i, d: 2 * i / d, unit=1.0, positions=None):
    """The two tables with one thing changed: (T, d/2) each."""
    i, t = torch.arange(d // 2, dtype=torch.float64), torch.arange(T) if positions is None else positions
    angles = unit * t[:, None] / base ** exponent(i, d)
    return angles.cos().float(), angles.sin().float()


def starts_unturned(tables, T, d, base):
    cos, sin = tables(T, d, base)
    at_0 = (cos[0] - 1).abs().max() + sin[0].abs().max()
    return "" if at_0 < 1e-3 else "position 0 is turned: its cosines should be 1, its sines 0"


def angles_add_up(tables, T, d, base):
    """The angle of position 2 is twice that of position 1."""
    cos, sin = tables(T, d, base)
    twice = 2 * torch.atan2(sin[1], cos[1])
    pair = int((cos[2] - twice.cos()).abs().argmax())
    text = f"pair {pair} does not turn twice as far by position 2 as by position 1"
    return "" if (cos[2] - twice.cos()).abs().max() < 1e-3 else text


def later_is_slower(tables, T, d, base):
    """At position 1, where float32 still knows the angle of a pair that is too fast."""
    cos, sin = tables(T, d, base)
    fast = torch.tensor([base ** (2 * i / d) for i in range(d // 2)])
    same = (cos[1] - fast.cos()).abs().max() + (sin[1] - fast.sin()).abs().max() < 0.01
    text = f"your last pair turns by {fast[-1]:.3g} a position and should be slow: which sign has the"
    return f"{text} exponent?" if same else ""


def slowest_pair(tables, T, d, base):
    right = base ** (2 / d - 1)
    cos, sin = tables(T, d, base)
    found = math.atan2(sin[1, -1], cos[1, -1])
    text = f"at position 1 the last pair stands at an angle of {found:.3g}; {right:.3g} is right"
    return "" if abs(found / right - 1) < 0.01 else text


# ---- 8b: the project's rotate has a head axis, and the minus sign in its table
def reference_rotate(x, cos, sin):
    wide = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return rotate(x[:, :, None], *(table.unsqueeze(-2) for table in wide))[:, :, 0]


def twin_rotate(x, cos, sin):
    B, T, d = x.shape
    cos, sin = cos.expand(B, T, d // 2), sin.expand(B, T, d // 2)
    first, second = x.chunk(2, 2)
    firsts, seconds = [], []
    for i in range(d // 2):
        a, b = first[:, :, i], second[:, :, i]
        firsts.append(a * cos[:, :, i] - b * sin[:, :, i])
        seconds.append(b * cos[:, :, i] + a * sin[:, :, i])
    return torch.stack(firsts + seconds, dim=2)


def inputs_rotate(seed):
    g = generator(seed)
    cos, sin = reference_tables(25, 6, 500.0)
    places = torch.randint(1, 25, (2, 5), generator=g)
    x = normal(g, (3, 7, 6), (2, 5, 6))
    return [(x[0], cos[2:9].clone(), sin[2:9].clone()), (x[1], cos[places], sin[places])]


def halves(x, cos, sin, first, second):
    """The numbers a of the first half and b of the second become first(a, b, c, s) and second(a, b, c, s)."""
    a, b = x.chunk(2, -1)
    return torch.cat((first(a, b, cos, sin), second(a, b, cos, sin)), -1)


def turned(x, cos, sin, split, put_back):
    """Pairs of neighbours (split) or of halves are turned, and put back as neighbours or as halves."""
    a, b = (x[..., ::2], x[..., 1::2]) if split else x.chunk(2, -1)
    a, b = a * cos - b * sin, b * cos + a * sin
    return torch.stack((a, b), -1).flatten(-2) if put_back else torch.cat((a, b), -1)


neighbours = partial(turned, split=True, put_back=True)


def wrong_angles(x, cos, sin):
    """Halves are paired, but the angles are laid out for neighbours."""
    a, b = x.chunk(2, -1)
    return x * cos.repeat_interleave(2, -1) + torch.cat((-b, a), -1) * sin.repeat_interleave(2, -1)


def in_place(x, cos, sin):
    half = x.size(-1) // 2
    a, b = x[..., :half].clone(), x[..., half:].clone()
    x[..., :half], x[..., half:] = a * cos - b * sin, b * cos + a * sin
    return x


def overwritten(x, cos, sin):
    x, half = x.clone(), x.size(-1) // 2
    x[..., :half] = x[..., :half] * cos - x[..., half:] * sin
    x[..., half:] = x[..., half:] * cos + x[..., :half] * sin
    return x


def first_turn(a, b, c, s):
    return a * c - b * s


def second_turn(a, b, c, s):
    return b * c + a * s


def length_kept(rotate, x, cos, sin):
    ratio = rotate(x, cos, sin).norm(dim=-1) / x.norm(dim=-1)
    low, high = ratio.min().item(), ratio.max().item()
    text = f"a turn keeps the length of a vector; yours are {low:.3f} to {high:.3f} times as long"
    return "" if 0.999 < low and high < 1.001 else text


def products_at(rotate, starts, offsets):
    """q·k for one query, at each of the starts, and one key, each of the offsets later."""
    g = generator(3)
    q, k = torch.randn(2, 1, 1, 6, generator=g).expand(2, 1, 25, 6)
    cos, sin = reference_tables(25, 6, 500.0)
    q, k = rotate(q.clone(), cos, sin)[0], rotate(k.clone(), cos, sin)[0]
    return [[(q[start] @ k[start + offset]).item() for offset in offsets] for start in starts]


def only_distance_counts(rotate, *_):
    (one,), (other,) = products_at(rotate, (2, 12), (3,))
    text = f"q·k of two tokens 3 apart is {one:.2f} at position 2 and {other:.2f} at position 12"
    return "" if abs(one - other) < 1e-3 else text


def products_by_offset(rotate, *_):
    """q·k where the key is 0, 1, ... positions after the query; a row for each position of the query."""
    starts, offsets = (0, 7, 19), range(6)
    rows = zip(starts, products_at(rotate, starts, offsets), strict=True)
    shown = [f"q at {start:2}: " + " ".join(f"{product:5.1f}" for product in row) for start, row in rows]
    return ["k after: " + " ".join(f"{offset:5}" for offset in offsets), *shown]


# ---- 8c
def reference_place(q, k, v, positions, base):
    turns = rope_tables(positions, q.size(-1), base)
    q, k = (rotate(x[:, :, None], *turns)[:, :, 0] for x in (q, k))
    return q, k, v


def twin_place(q, k, v, positions, base):
    turned = []
    for x in (q, k):
        rows = []
        for b in range(len(x)):
            for t, position in enumerate(positions[b].tolist()):
                cos, sin = twin_tables(position + 1, x.size(2), base)
                rows.append(twin_rotate(x[b, t][None, None], cos[-1], sin[-1]))
        turned.append(torch.cat(rows).view(x.shape))
    return turned[0], turned[1], v


def inputs_place(seed):
    g = generator(seed)
    ordinary = normal(g, (3, 5, 4), (3, 5, 4), (3, 5, 4))
    gaps = torch.randint(1, 5, (3, 5), generator=g).cumsum(1) + torch.tensor([[1], [4], [90]])
    one_token = normal(g, (2, 1, 6), (2, 1, 6), (2, 1, 6))
    return [(*ordinary, gaps, 500.0), (*one_token, torch.tensor([[5], [23]]), 300.0)]


def placed(turn=reference_rotate, where=lambda p: p, base=lambda b: b, which=(1, 1, 0)):
    """An answer to 8c with one thing changed; which: whether q, k and v are turned, -1 for backwards."""

    def place(q, k, v, positions, given_base):
        cos, sin = reference_tables(200, q.size(-1), base(given_base))
        cos, sin = cos[where(positions)], sin[where(positions)]
        return tuple(turn(x, cos, way * sin) if way else x for x, way in zip((q, k, v), which, strict=True))

    return place


def too_short(q, k, v, positions, base, rows=lambda q, positions: q.size(1)):
    cos, sin = reference_tables(rows(q, positions), q.size(-1), base)
    return *(reference_rotate(x, cos[positions], sin[positions]) for x in (q, k)), v


def v_left_alone(place, q, k, v, positions, base):
    found = place(q, k, v, positions, base)[2]
    text = "v is what is handed over: it is not compared, so it is not turned"
    return "" if torch.equal(found, v) else text


def same_when_all_move(place, q, k, v, positions, base):
    def products(shift):
        turned_q, turned_k, _ = place(q, k, v, positions + shift, base)
        return turned_q @ turned_k.mT

    moved = (products(10) - products(0)).abs().max().item()
    return "" if moved < 1e-3 else f"q·k changes by up to {moved:.2f} when all positions move by 10"


exercises = {
    "8a": dict(name="tables", reference=reference_tables, project=rope_tables, slow=twin_tables,
        inputs=inputs_tables, call=as_tuple, numbers=lambda value, T, d,
        base: dict(slow=math.atan2(value[1][1, -1], value[0][1, -1])),
        properties=[starts_unturned, angles_add_up, later_is_slower, slowest_pair],
        wrong={
            "i over d": lambda T, d, base: tables(T, d, base, lambda i, d: i / d),
            "one frequency": lambda T, d, base: tables(T, d, base, lambda i, d: 0 * i),
            "base squared": lambda T, d, base: tables(T, d, base, lambda i, d: 4 * i / d),
            "base written in": lambda T, d, base: tables(T, d, 10000.0),
            "exponent's sign": lambda T, d, base: tables(T, d, base, lambda i, d: -2 * i / d),
            "ends at the base": lambda T, d, base: tables(T, d, base, lambda i, d: 2 * i / (d - 2)),
            "positions from 1": lambda T, d, base: tables(T, d, base, positions=torch.arange(1, T + 1)),
            "positions in bfloat16":
                lambda T, d, base: tables(T, d, base, positions=torch.arange(T).bfloat16().double()),
            "degrees": lambda T, d, base: tables(T, d, base, unit=math.pi / 180),
            "whole turns": lambda T, d, base: tables(T, d, base, unit=math.tau),
            "sines first": lambda T, d, base: tables(T, d, base)[::-1],
            "angles":
                lambda T, d, base: (torch.arange(T)[:, None] / base ** (torch.arange(0, d, 2) / d),) * 2,
            "twice as wide": lambda T, d, base: tuple(torch.cat((t, t), -1) for t in tables(T, d, base)),
        }),
    "8b": dict(name="rotate", reference=reference_rotate, project=rotate, slow=twin_rotate,
        inputs=inputs_rotate,
        also={"neighbours": neighbours},
        properties=[length_kept, only_distance_counts], picture=products_by_offset,
        wrong={
            "no minus": lambda x, c, s: halves(x, c, s, lambda a, b, c, s: a * c + b * s, second_turn),
            "two minuses": lambda x, c, s: halves(x, c, s, first_turn, lambda a, b, c, s: b * c - a * s),
            "backwards": lambda x, c, s: halves(x, c, -s, first_turn, second_turn),
            "angles for neighbours": wrong_angles,
            "not put back": partial(turned, split=True, put_back=False),
            "interleaved": partial(turned, split=False, put_back=True),
            "halves swapped": lambda x, c, s: halves(x, c, s, second_turn, first_turn),
            "sine and cosine swapped": lambda x, c, s: halves(x, s, c, first_turn, second_turn),
            "turned already":
                lambda x, c, s: halves(x, c, s, first_turn, lambda a, b, c, s: b * c + (a * c - b * s) * s),
            "overwritten": overwritten,
            "only the first": lambda x, c, s: halves(x, c, s, first_turn, lambda a, b, c, s: b),
            "scaled by the cosine": lambda x, c, s: torch.cat((c, c), -1) * x,
            "added": lambda x, c, s: x + torch.cat((c, s), -1),
            "changed in place": in_place,
        }),
    "8c": dict(name="place", reference=reference_place, project=rope_tables, slow=twin_place,
        forbidden=("rope_tables",), needs=["8a", "8b"], inputs=inputs_place, call=as_tuple,
        also={"neighbours": placed(turn=neighbours)},
        properties=[v_left_alone, same_when_all_move],
        wrong={
            "arange": placed(where=lambda p: torch.arange(p.size(1)).expand(p.shape)),
            "first row's positions": placed(where=lambda p: p[:1].expand(p.shape)),
            "counted from the first": placed(where=lambda p: p - p[:, :1]),
            "counted from the smallest": placed(where=lambda p: p - p.min()),
            "v too": placed(which=(1, 1, 1)),
            "q only": placed(which=(1, 0, 0)),
            "k only": placed(which=(0, 1, 0)),
            "k backwards": placed(which=(1, -1, 0)),
            "backwards": placed(which=(-1, -1, 0)),
            "base written in": placed(base=lambda b: 10000.0),
            "table too short": too_short,
            "table one row short": partial(too_short, rows=lambda q, positions: int(positions.max())),
            "64 rows": partial(too_short, rows=lambda q, positions: 64),
            "not turned": lambda q, k, v, positions, base: (q, k, v),
            "v first": lambda *args: placed()(*args)[::-1],
        }),
}  # fmt: skip

predictions = {
    "8.1": dict(answer=0.0, tol=0.05),
}
