"""What the grader says in lesson 24: hints, mistakes, remarks, questions."""

exercises = {
    "24a": dict(
        hints=[
            "The mean over a large batch: how does it follow from the means of k equal parts?",
            "Clear before the first micro-batch, step after the last; the last group may be short.",
            "per group: clear; for each: (loss / size of the group).backward(), tell the loss; step",
        ],
        wrong={
            "not divided":
                "Your gradient is k times too long. Adam would hide it. Of how many means is it the sum?",
            "cleared in between":
                "Only the last micro-batch of each update counts. When are gradients cleared?",
            "stepped in between": "A step is made after each micro-batch. How many belong to an update?",
            "an update each":
                "That is the loop without accumulation: each micro-batch has an update of its own.",
            "never cleared": "The gradient of the update before is still there. Who clears it?",
            "last group dropped": "The last batches are read by nobody: they are fewer than k. What of them?",
            "last group not stepped":
                "The last group is fewer than k, its gradient is computed, and no step is made with it.",
            "last group divided by k":
                "The last update is too short: fewer than k batches, and each is divided by k.",
            "mean of a joined batch":
                "The gradient is right, and all batches are in memory at once: that was to be avoided.",
            "losses summed first":
                "Right, with all graphs in memory until the end. When can a micro-batch's be let go?",
            "shares told as losses":
                "Your gradients are right, your losses k times too small: told is the share, not the loss.",
            "tensors told": "Each loss in your list keeps its graph alive. Which number is in it?",
            "no step": "The gradients are summed, and nobody steps.",
            "divided twice": "Your gradient is too short by k. How often is it divided?",
        },
    ),
    "24b": dict(
        hints=[
            "What should each scored target weigh, whichever micro-batch it lies in?",
            "Two loops: one counts, one adds up. cross_entropy can sum, and can leave out -1.",
            "n = all y != -1; for each batch: sum of nats / max(n, 1), backward; add up the numbers",
        ],
        wrong={
            "mean of means":
                "A batch of few targets counts as much as one of many. How often should you divide?",
            "all positions counted":
                "Your divisor counts the y that are -1, too: gradient and loss are too small.",
            "weighted by rows": "Each batch's mean is weighted by its rows. Have all rows as many targets?",
            "weighted by positions":
                "Each batch's mean is weighted by its positions, scored or not. What are means over?",
            "each by its own count":
                "Divided by the targets of each batch alone: a sum of means. When is the count known?",
            "targets so far":
                "You divide by the targets seen so far. They have to be counted before the first backward.",
            "not divided": "Loss right, gradient not: it grows with the batch.",
            "sum told": "The gradient is right; the loss you tell is a sum.",
            "last batch told": "You tell the share of one batch.",
            "no targets at all": "If nothing is scored, you divide by 0. What should the gradient be then?",
            "-1 taken for a letter": "y = -1 is no letter: it is not scored. How does a loss leave it out?",
            "in one batch":
                "The gradient is right, and all is in memory at once, padded. What are micro-batches for?",
            "no backward": "The mean is right, and no gradient is left behind.",
            "gradients cleared first": "What was in .grad before is gone. What does adding leave there?",
            "losses summed first":
                "Right, with all graphs in memory until the end. When can a micro-batch's be let go?",
            "a tensor told": "What you return keeps the graphs of all batches alive. A number is enough.",
        },
    ),
    "24c": dict(
        hints=[
            "What is in memory while the third of four micro-batches is computed?",
            "Weights and their copies do not depend on k; rows at once do. Each row is read once.",
            "rows at once: rows / k, rounded up; copies of the weights beside; all rows, and k starts",
        ],
        wrong={
            "all memory divided":
                "You divide all of the memory. Do weights, gradients and optimizer state shrink, too?",
            "memory as without it": "All rows are held at once. What is let go after each backward?",
            "weights once":
                "The weights are there, but not their gradients and the optimizer's state. How many copies?",
            "weights for each k": "A gradient for each micro-batch is kept. Where do they all add up?",
            "weights left out": "Activations alone. What is always there?",
            "rounded down": "Some micro-batch has a row more: the largest one sets the peak.",
            "time divided by k": "Do four quarters take a quarter of the time? Each row is still read.",
            "time times k": "You read all rows k times. How many has a micro-batch?",
            "one start": "Each forward pass has its start. How many are there?",
            "no start": "Many small passes take longer. What does each cost?",
            "a start for each row": "Rows of a micro-batch start together: how often does something start?",
        },
    ),
}  # fmt: skip

predictions = {
    "24.1": dict(
        ask="activation memory at k = 4, same rows per update, as a share of that at k = 1",
        wrong={
            1.0: "Each micro-batch's activations are let go after its backward: a quarter is held at once.",
            4.0: "Four passes, but one after the other: a quarter of the rows is held at once, 0.25.",
            0.0625: "1/16 would be if both rows and width shrank; only the rows do: 0.25.",
        },
    ),
    "24.2": dict(
        ask="computing time of an update at k = 4, same rows, as a multiple of that at k = 1",
        wrong={
            4.0: "Four passes over a quarter of the rows each: as much work as before, about 1.",
            0.25: "A micro-batch takes a quarter, and there are four of them: about 1.",
            1.333: "4/3 is the price of recomputing (lesson 25); here nothing is computed twice.",
        },
    ),
}  # fmt: skip
