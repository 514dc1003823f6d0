"""What the grader says in lesson 36: hints, mistakes, remarks, questions."""

exercises = {
    "36a": dict(
        hints=[
            "What has to be equal on all ranks before the first update, and what before each step?",
            "Broadcast weights once. After backward every parameter takes part, with or without a gradient.",
            "broadcast all; per batch: own rows, backward, for each p: None -> 0, all_reduce, / ranks; step",
        ],
        wrong={
            "summed, not averaged":
                "Your gradient grows with the ranks. Adam would hide it. What is the mean of means?",
            "same rows on all": "All ranks read the same rows, so the others are read by nobody.",
            "all rows on all": "Every rank reads the whole batch: right, and as slow as one alone.",
            "no broadcast": "Each rank has begun with other weights. Who tells them rank 0's?",
            "each broadcasts its own": "Each rank says that it is the source. Whose weights are right?",
            "broadcast from the last": "All agree, but on the last rank's weights. Rank 0's were asked for.",
            "losses averaged, not gradients":
                "Each rank steps by its own gradient: only losses are shared, or gradients too late.",
            "unused parameter skipped":
                "On one rank a parameter has no gradient, and the others wait. What does it hand in?",
            "weights averaged, not gradients":
                "SGD ends the same; Adam's running means would differ. What should an optimizer get?",
            "averaged twice": "Your gradient is too short by the number of ranks. How often is it divided?",
            "only rank 0 steps": "The other ranks keep the old weights. Who else has the mean gradient?",
            "never cleared": "The gradient of the batch before is still in the sum.",
            "own loss told": "Weights right. Each rank tells the loss of its own rows, not of the batch.",
            "sum of losses told": "Weights right. The loss you tell is a sum over ranks.",
            "matrices alone exchanged": "Vectors have gradients, too. Which parameters are left out?",
        },
    ),
    "36b": dict(
        hints=[
            "Number all windows of all epochs in one endless series. Where does a step begin in it?",
            "Parts before yours: of earlier steps, earlier micro-steps, lower ranks; batch_size in each.",
            "part = (step * micro-steps + micro-step) * ranks + rank; number -> epoch, place: // and %",
        ],
        wrong={
            "rank left out": "All ranks read the same windows.",
            "micro-step left out": "All micro-steps of a step read the same windows.",
            "step left out": "Each step reads what the first one read.",
            "ranks overlap": "Rank 1 reads what rank 0 reads a micro-step later. How many read side by side?",
            "steps overlap": "A step begins before the last one has ended. How many parts has a step?",
            "same order each epoch": "Every epoch comes in the same order. What decides an order?",
            "an order for each step": "Each step shuffles anew: within an epoch some windows come twice.",
            "an order for each rank":
                "Each rank has an order of its own: two may read the same window, and some are left out.",
            "epoch of the first window":
                "A batch that reaches into the next epoch keeps the old order. Which epoch has a number?",
            "starts again in mid-batch":
                "Where an epoch ends, your batch jumps elsewhere. Is the series endless?",
            "end of an epoch dropped": "The last windows of each epoch are dropped. To whom do they belong?",
            "batch divided by the ranks":
                "Your lists are shorter than batch_size, which counts per rank already.",
            "a region for each rank":
                "Each rank has a region of its own: with other numbers of ranks a step sees other windows.",
            "ends with the epoch":
                "Where an epoch ends, your list is too short. Who reads the first windows of the next?",
            "numbers, not windows": "These are places in the series. Which windows stand there?",
            "not shuffled": "The windows come in the order of the text. Where is the epoch's order?",
        },
        also={
            "rank before micro-step": "right: a step reads the same; the project numbers micro-steps first",
            "ranks take turns": "right: a step reads the same; the project gives each rank a stretch",
        },
    ),
}  # fmt: skip

predictions = {
    "36.1": dict(
        ask="4 workers average N float32 gradients in a ring: bytes that each sends, as a multiple of N",
        wrong={
            3.0: "The sums are collected, 3 / 4 of 4N; then they have to be handed round, as much again: 6N.",
            8.0: "Twice 4N, but nobody sends the part that ends at itself: 2 * 3 / 4 of 4N, 6N.",
            12.0: "All 4N to three others would be 12N. In a ring each sends parts to one neighbour: 6N.",
            4.0: "4N is the gradient itself, once. Each part goes round twice, but for the last hop: 6N.",
        },
    ),
}
