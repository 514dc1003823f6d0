"""What the grader says in lesson 25: hints, mistakes, remarks, questions."""

exercises = {
    "25a": dict(
        hints=[
            "What has to be the same in the second run, for its gradients to be those of the first?",
            "Keep x and the state of random numbers; in backward, a graph from x on, and back through it.",
            "backward: rewind; with enable_grad: y = fn(detached x); put back; y.backward(gradient); x.grad",
        ],
        wrong={
            "random numbers not restored":
                "Right without dropout only: the second run drops other numbers than the first.",
            "generator left rewound":
                "After your backward, random numbers come that have come before. Who puts the state back?",
            "state read too late":
                "Your state is that after the first run. Where did its random numbers begin?",
            "same seed each time":
                "You seed with a fixed number: each call drops the same numbers, and the caller's are gone.",
            "no graph in backward": "In a backward no graph is made, unless you ask for one.",
            "not detached":
                "Your second run hangs on the graph before x, and goes back through it. Where to stop?",
            "graph kept": "The gradients are right, and all is held in memory as before.",
            "input without gradient":
                "If x needs no gradient, yours makes no graph at all, and the weights get nothing.",
            "weights get nothing": "x gets its gradient, the weights of fn do not. Who fills their .grad?",
            "gradient not handed on":
                "You go back as from a sum. What did backward get about what comes after fn?",
            "multiplied once more": "The gradient from behind is in x.grad already. How often do you use it?",
            "input gets nothing": "The weights get their gradients, what lies before x gets none.",
            "nothing goes back": "What comes in goes out: nothing passes through fn on its way back.",
            "computed once too often": "Yours runs fn three times, and the third has other random numbers.",
        },
    ),
    "25b": dict(
        hints=[
            "Which blocks may forget what they made, and what must stay to make it again?",
            "A function that runs some blocks in a row is one segment. Which blocks does it know, and when?",
            "for each start, step size: run(x, part=these blocks); x = recomputed(run, x); the last is short",
        ],
        wrong={
            "one segment for all":
                "In backward all blocks hold all again: {most:,} bytes, and {plain:,} without recomputing.",
            "each block by itself": "Each block is a segment in yours. How many blocks should one have?",
            "blocks recomputed inside":
                "Each block runs three times: segments are recomputed, and their blocks once more.",
            "loop variable in backward":
                "Forward right; in backward all segments run the last blocks. When is a variable read?",
            "last blocks left out": "The last segment is shorter, and yours is missing.",
            "last blocks kept": "The last, shorter segment is not recomputed.",
            "first segment kept": "The first segment is not recomputed. What does it hold all the time?",
            "nothing recomputed": "Segments are cut, and nothing is recomputed: all is held.",
            "number of segments": "You take size for the number of segments; it is how many blocks one has.",
            "one block too many": "Some blocks run in two segments. Where does a segment end?",
            "cut from the graph": "Between segments your graph is cut: earlier ones get no gradient.",
            "from the last block on": "Your blocks run from the last to the first.",
            "run twice": "Each segment runs three times, once of it with its graph held.",
        },
        also={
            "last segment kept":
                "The last segment is needed at once, so need not be forgotten: nearly as small, and faster.",
        },
    ),
}  # fmt: skip

predictions = {
    "25.1": dict(
        ask="time of an update with every block recomputed, as a multiple of that without",
        wrong={
            2.0: "Only the forward comes twice. A backward takes as long as two of them: 4 for 3, 4/3.",
            1.5: "A backward takes as long as two forwards, not one: 4 for 3, 4/3.",
            1.0: "Each block's forward runs a second time: 4 for 3, 4/3.",
        },
    ),
    "25.2": dict(
        ask="most that is held, in inputs: 64 blocks, each recomputed alone, 16 inputs' worth inside",
        wrong={
            64.0: "The inputs of 64 blocks, and beside them one block that is computed again: 80.",
            16.0: "That is the block that is computed again. The inputs of all 64 are held, too: 80.",
            1024.0: "That is without recomputing: 64 times 16. With it 64 inputs and one block, 80.",
            1088.0: "Not all blocks are computed again at once, but one at a time: 64 + 16 = 80.",
        },
    ),
}  # fmt: skip
