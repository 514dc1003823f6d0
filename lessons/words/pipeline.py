"""What the grader says in lesson 39: hints, mistakes, remarks, questions."""

exercises = {
    "39a": dict(
        hints=[
            "How many steps has the whole timetable, and in how many of them does one stage work?",
            "A stage works m steps. The last one begins p - 1 steps later than the first.",
            "m + p - 1 steps, of which p - 1 are idle; the share is their ratio",
        ],
        wrong={
            "idle over busy": "That is idle over busy time. A share is of all time.",
            "one stage too many": "One stage alone never waits, yours does. How late does the last begin?",
            "busy share": "That is the share of time in which a stage works.",
            "one step too long": "Your timetable is one step too long. Count one of 2 stages by hand.",
            "number of idle steps": "That is how many steps are idle. Of how many?",
            "in percent": "In percent; asked for is a share.",
            "filled, never emptied": "Half of that is missing: the pipe is filled, and it is emptied, too.",
            "both passes, counted twice":
                "Forward and backward have a bubble each, but each has its m steps, too. What share remains?",
            "share of one micro-batch": "Your share is of m times p steps. Does one stage work at a time?",
            "no micro-batches": "That is the share without micro-batches: one batch, handed on.",
        },
    ),
    "39b": dict(
        hints=[
            "What does a stage need from the one before, what from the one behind, and when?",
            "What came is a leaf: ask for its gradient. Keep pairs of what came and what went out.",
            "each: recv, stage, send or loss / m, keep; each kept: recv, backward, send; sum the tied",
        ],
        wrong={
            "not divided": "Loss right, gradient m times too long: a sum over micro-batches of means.",
            "divided twice": "Your gradient is m times too short. How often is the loss divided?",
            "divided on each stage":
                "The further from the end, the smaller your gradients. Where is the mean over m taken, once?",
            "sum of losses told": "Gradients right. The loss you tell is a sum over micro-batches.",
            "last loss told": "Gradients right. You tell the loss of one micro-batch.",
            "taken in another order":
                "Gradients meet another micro-batch's activations. Do all stages go back in one order?",
            "tied gradients not summed": "The embedding is used on two stages. What is its whole gradient?",
            "tied sum on one stage":
                "One of two copies gets the whole gradient: after a step they are not equal any more.",
            "tied gradients averaged": "A weight that is used twice has the sum of both gradients.",
            "ones for a gradient": "A gradient is received, and backward starts from ones.",
            "last micro-batch alone": "One micro-batch goes back. Where are the others?",
            "what came has no gradient":
                "What came is a leaf without a gradient to send. Who has to ask for one?",
            "all_reduce by two ranks":
                "A collective needs all ranks, those in the middle, too. How do two alone exchange?",
            "both send first": "Both wait for a receiver. One of the two has to receive first.",
            "both receive first": "Both wait for a message. One of the two has to send first.",
            "rank 0 receives": "Rank 0 waits for a stage that is not there. What does it read?",
            "last stage waits": "The last stage waits for a gradient that nobody sends. Where does it begin?",
            "one large batch": "Gradients right, but all stages wait for one batch. What are parts for?",
            "one micro-batch at a time":
                "Right gradients, but the next one starts when this one is back: one stage works at a time.",
        },
    ),
    "39c": dict(
        hints=[
            "When can the first stage have its first gradient back? What should it do until then?",
            "A rank runs p - rank forwards ahead. Then backwards and forwards in turn, then the rest.",
            "ahead = min(p - rank, m); F0 ... ; for each i: B i, and F of i + ahead if there is one",
        ],
        wrong={
            "all forwards first": "That holds all m micro-batches at once. When can the first backward run?",
            "last backward first":
                "All forwards first, and then from the last: m are held. Which gradient comes first?",
            "one at a time": "Each stage waits until its micro-batch is back: nothing overlaps.",
            "same start on all ranks":
                "All ranks run equally far ahead. The last has its gradient at once: why wait?",
            "one too few ahead": "One forward too few: the last rank goes back before forth.",
            "one too many ahead": "One forward more than needed: one more micro-batch is held.",
            "last rank the furthest ahead": "Whose gradient comes back later, the first's or the last's?",
            "more than there are": "Fewer micro-batches than stages: how far ahead can a rank run?",
            "too far ahead, rest left":
                "Fewer micro-batches than stages: you begin some that do not exist, and few come back.",
            "last backwards forgotten": "The last micro-batches never go back. Who empties the pipe?",
            "counted from 1": "Micro-batches are counted from 0.",
            "forwards at the end": "Some forwards come after all backwards. What do those wait for?",
        },
    ),
}  # fmt: skip

predictions = {
    "39.1": dict(
        ask="share of time that a stage idles, with 4 stages and 8 micro-batches",
        wrong={
            0.375: "3 / 8 is idle over busy time. Of all time, 8 + 3 steps, it is 3 / 11.",
            0.333: "The last stage begins 3 steps late, not 4: 3 / 11.",
            0.727: "8 / 11 is the share in which it works; idle is 3 / 11.",
            0.75: "3 / 4 would be for one batch that is handed on whole. With 8 parts it is 3 / 11.",
        },
    ),
}
