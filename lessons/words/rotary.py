"""What the grader says in lesson 8: hints, mistakes, remarks, questions."""

exercises = {
    "8a": dict(
        hints=[
            "A clock with d/2 hands: how far does each go from one position to the next?",
            "Speeds first, one per pair: (d/2,). Positions times speeds are the angles: (T, d/2).",
            "angle[t, i] = t / base^(2i / d); the answer is the cosines and the sines of that.",
        ],
        wrong={
            "i over d":
                "Your slowest pair turns by {slow:.3g} a position: too fast. Where does the exponent end?",
            "one frequency": "All your pairs turn alike. Which of them should be the slow ones?",
            "base squared":
                "Your slowest pair turns by {slow:.3g} a position: is 2i divided by d, or by d/2?",
            "base written in": "Right for a base of 10,000 only. Where is the one that was given?",
            "exponent's sign":
                "Your later pairs turn faster and faster. The fastest is the first, 1 radian a position.",
            "ends at the base": "Your exponents end at 1. Divided by d, where does the last one end?",
            "positions from 1": "Your first row is turned already. Which position does a text begin with?",
            "positions in bfloat16":
                "Right up to position 256, then two positions share a row. How many digits has bfloat16?",
            "degrees": "Your first pair turns by one degree a position. Which unit does torch.cos read?",
            "whole turns": "Your first pair is back after each position. Where does the 2 pi come from?",
            "sines first": "Position 0 is not turned at all. Which of the two tables is 1 there?",
            "angles": "These are the angles. What of them does a rotation use?",
            "twice as wide": "Both numbers of a pair turn by one angle. How many pairs are there?",
        },
    ),
    "8b": dict(
        hints=[
            "Where does the point (a, b) land if it is turned about the origin by an angle?",
            "The pairs are x[..., i] and x[..., i + d/2]: cut x into halves, and all pairs turn at once.",
            "first half: a cos - b sin, second half: b cos + a sin; then one behind the other.",
        ],
        wrong={
            "no minus":
                "Your vectors change their length. A turn adds in one of the two lines, and in the other?",
            "two minuses": "Your vectors change their length: there is one minus too many.",
            "backwards":
                "Lengths and distances are right, but you turn the other way. Which line has the minus?",
            "angles for neighbours":
                "a and b are half a vector apart. Do the two of a pair turn by the same angle in yours?",
            "not put back":
                "The pairs turn rightly, but do not return to their places: take a look at position 0.",
            "interleaved":
                "You read halves and write neighbours: position 0 should leave a vector as it is. Does it?",
            "halves swapped":
                "What was the first half stands behind. Position 0 should leave a vector as it is.",
            "sine and cosine swapped":
                "Where the angle is 0, nothing should move. Which of sine and cosine is 1 there?",
            "turned already": "The second line used an a that had been turned already.",
            "overwritten":
                "When the second half is computed, the first is gone. Where could the result be put?",
            "only the first": "The second half came back as it was. Both numbers of a pair turn.",
            "scaled by the cosine":
                "Each number was scaled by itself. In a turn each of a pair gets a share of the other.",
            "added": "That is the table of lesson 7, added. Here nothing is added, pairs are turned.",
            "changed in place": "The numbers are right, but the caller's x was changed.",
        },
        also={
            "neighbours":
                "You pair neighbours, as the paper does; the project pairs halves. Weights do not transfer.",
        },
    ),
    "8c": dict(
        hints=[
            "If a text is read from its hundredth token on, which row of the table is its first?",
            "A table as long as the largest position needs; positions are its row numbers, (B, T).",
            "cos, sin = rows `positions` of tables(largest + 1, d, base); turn q and k by them, hand v on.",
        ],
        wrong={
            "arange": "You counted 0, 1, 2 yourself. A token that comes alone may stand at position 5, say.",
            "first row's positions":
                "All texts got the positions of the first one. Each row of the batch has its own.",
            "counted from the first":
                "Distances are right, but a token that comes alone is always at 0 here.",
            "counted from the smallest":
                "Distances are right, but the smallest position of the batch became 0. Why move any?",
            "v too": "v was turned, too: then the output depends on where it stands. Is it compared?",
            "q only":
                "Only the query turns: q·k then depends on where the query stands, not on the distance.",
            "k only": "Only the key turns: q·k then depends on where the key stands, not on the distance.",
            "k backwards": "q and k turn against each other: q·k depends on the sum of the positions.",
            "backwards": "Both turn the wrong way: is an angle of yours negative?",
            "base written in": "Right for a base of 10,000 only. Where is the one that was given?",
            "table too short":
                "A table of T rows ends at position T - 1. Which is the largest position here?",
            "table one row short":
                "The last position has no row. How many rows has a table that counts from 0 to it?",
            "not turned": "Nothing was turned: where did the positions go?",
            "v first": "The order is q, k, v, as they were given.",
            "64 rows": "Your table ends at 64 rows, and positions go on. What tells how many are needed?",
        },
        also={
            "neighbours":
                "You pair neighbours, as the paper does; the project pairs halves. Weights do not transfer.",
        },
    ),
}  # fmt: skip

predictions = {
    "8.1": dict(
        ask="change of q·k when both tokens move on by 10 positions",
        wrong={
            10.0: "10 is how far they moved; q·k sees only how far they are apart, so it changes by 0.",
            -0.84: "-0.84 is cos 10, by which each turned; both turned alike, so q·k changes by 0.",
            1.0: "1 is no change as a factor; as a difference it is 0.",
        },
    ),
}  # fmt: skip
