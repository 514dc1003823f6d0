"""Generated arithmetic problems: as questions with worked answers, and as plain text to pre-train on.

    rows       {"prompt": "Anna has 12 lamps. Anna finds 5 more. How many lamps does Anna have now?",
                "response": "12 + 5 = 17\nanswer: 17"}
    stories    How many lamps?
               Anna has 12 lamps. Anna finds 5 more: 12 + 5 = 17.
               Anna has 17 lamps now.

Difficulty, 1 to 5, is the number of steps. From difficulty 3 on problems multiply, from 4 on they divide. A
model of the stories knows the words and the sums, and has the tokens of the rows. It has met no question that
waits for an answer, no answer, and, of sums_easy, no problem: stories tell of other people's things.
"""

import json
import operator
import random
import re
from collections.abc import Iterator

from text.verse import NAMES, RULES

STORIES = {"+": "finds {} more", "-": "gives {} away", "*": "swaps each for {}", "/": "keeps one in {}"}
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")  # now, sign, number, result
SIZE = 4_000_000  # characters, unless a size is given: 20,000 rows of any difficulty


def problems(
    rng: random.Random, hardest: int, parity: int | None = None
) -> Iterator[tuple[str, str, list[str], list[str], int]]:
    """Yield (name, thing, story, steps, answer) without end: story has a sentence more than steps.

    parity: 0 or 1 for one half of all pairs of name and thing; None for all.
    """
    while True:
        name, thing = rng.choice(NAMES), rng.choice(RULES["Thing.p"])[1][0]
        if parity not in (None, len(name + thing) % 2):
            continue
        difficulty = rng.randint(1, hardest)
        now = rng.randint(2, 20 * difficulty)
        story, steps = [f"{name} has {now} {thing}."], []
        while len(steps) < difficulty:
            sign = rng.choice("+-*/"[: max(2, difficulty)])
            n = rng.randint(2, 20 * difficulty if sign in "+-" else 9)
            result = {"+": now + n, "-": now - n, "*": now * n, "/": now / n}[sign]
            if 2 <= result < 1000 and result == int(result):
                story.append(f"{name} {STORIES[sign].format(n)}.")
                steps.append(f"{now} {sign} {n} = {int(result)}")
                now = int(result)
        yield name, thing, story, steps, now


def rows(seed: int, size: int, hardest: int = 5) -> Iterator[str]:
    """JSONL rows {"prompt", "response"} until they have `size` characters; 0: SIZE."""
    characters, parity = 0, None if hardest == 5 else 0
    for name, thing, story, steps, answer in problems(random.Random(seed), hardest, parity):
        prompt = " ".join([*story, f"How many {thing} does {name} have now?"])
        line = json.dumps({"prompt": prompt, "response": "\n".join([*steps, f"answer: {answer}"])}) + "\n"
        yield line
        characters += len(line)
        if characters >= (size or SIZE):
            return


def stories(seed: int, size: int, hardest: int = 2) -> Iterator[str]:
    """Documents until they have `size` characters; 0: SIZE. No problem is one of rows(hardest=2)."""
    characters = 0
    for name, thing, story, steps, answer in problems(random.Random(f"stories {seed}"), hardest, 1):
        told = [f"{sentence[:-1]}: {step}." for sentence, step in zip(story[1:], steps, strict=True)]
        document = f"How many {thing}?\n{' '.join([story[0], *told])}\n{name} has {answer} {thing} now.\n"
        yield document
        characters += len(document)
        if characters >= (size or SIZE):
            return


def spoiled(rng: random.Random, response: str) -> str:
    """A wrong response to the same problem; "" for a text that is no response of rows().

    One result is off by 1, 2 or 10: that of a step, and the steps after it go on from there, or the answer.
    """
    *lines, last = response.split("\n")
    steps = [STEP.fullmatch(line) for line in lines]
    if not steps or None in steps or not re.fullmatch(r"answer: \d+", last):
        return ""
    wrong = rng.randint(0, len(steps))  # this step; the last number stands for the answer
    while True:
        off, now, written = rng.choice((-10, -2, -1, 1, 2, 10)), int(steps[0][1]), []
        for i, step in enumerate(steps):
            result = SIGNS[step[2]](now, int(step[3])) + off * (i == wrong)
            written.append((now, f"{now} {step[2]} {step[3]} = {result}"))
            now = result
        answer = now + off * (wrong == len(steps))
        if min(answer, now, *(before for before, _ in written)) >= 0:
            return "\n".join([*(line for _, line in written), f"answer: {answer}"])
