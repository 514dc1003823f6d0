"""What the grader says in lesson 13: hints, mistakes, remarks, questions."""

exercises = {
    "13a": dict(
        hints=[
            "What could two layers do that one cannot, if nothing stood between them?",
            "Two nn.Linear without bias, called up and down, are made in __init__ and used in forward.",
            "forward: down(gelu(up(x))), where up makes 4C numbers of C and down makes C of 4C",
        ],
        wrong={
            "no activation": "Two matrices with nothing between them are one matrix. What stands between?",
            "hidden as wide as C": "How much wider than the stream is the middle?",
            "with biases": "nn.Linear has a bias unless it is told otherwise.",
            "activation at the end":
                "Nothing below -0.17 comes out of yours. Between the layers, or after them?",
            "activation twice":
                "Nothing below -0.17 comes out of yours: what is added to a stream should go both ways.",
            "activation first": "The activation comes before both layers, and these are one matrix again.",
            "residual inside": "x is in your output. The block of lesson 12 adds it; then it is there twice.",
            "ReLU": "That has a corner at 0 where GELU is smooth. Which is asked for?",
            "SiLU": "Smooth, but another one: x times sigmoid(x). GELU is asked for.",
            "tanh": "Your hidden numbers stay below 1. GELU lets large ones pass.",
            "tanh by exponentials":
                "Right for small numbers; for large ones both exponentials overflow. Which function of "
                "torch knows better?",
        },
        also={
            "exact GELU": "The exact GELU; the project's is by tanh.",
        },
    ),
    "13b": dict(
        hints=[
            "Who reads the ids, who says where they stand, and who turns the stream into V numbers?",
            "Embeddings and positions are added; the blocks follow each other; norm and head come last.",
            "x = wte(idx) + wpe(0 ... T-1); x = block(x) for each; head(norm(x)); loss of flattened B, T",
        ],
        wrong={
            "target shifted twice":
                "The targets are one later already. Whom does your model guess: the next letter, or the one "
                "after?",
            "input as target":
                "Your model learns to repeat the letter it has just read. What comes next stands in targets.",
            "reshaped, not transposed":
                "(B, T, V) reshaped to (B, V, T) keeps the order of the numbers: whose logits does a target "
                "meet?",
            "only the last position": "All T positions have made a guess, and one of them is scored.",
            "softmax before the loss":
                "cross_entropy has a softmax inside. With yours before it, sure and right still costs "
                "something.",
            "sum, not mean": "Your loss grows with the number of targets, and so would each step.",
            "one loss per token": "A loss for each token; one number is asked for.",
            "detached loss": "The loss is right, and no weight gets a gradient from it. What cut it off?",
            "no positions": "Nothing says where a token stands: which part has not been used?",
            "positions from 1":
                "Row 0 of the table of positions is never used, and a full window would leave the table.",
            "final norm missing":
                "The head reads the stream as it has grown through all blocks. Which part stands before it?",
            "final norm first": "The norm without a block of its own belongs to the other end.",
            "blocks side by side":
                "Each of your blocks reads the embeddings. Which stream should the second one read?",
            "probabilities for logits":
                "The loss is right; the rest sums to 1 for each token. Logits are what goes into the "
                "softmax.",
            "exp overflows":
                "Right for small logits; at large ones e to them is too much, or a softmax 0. What is "
                "subtracted first?",
            "one maximum for all":
                "Subtracting one maximum of all leaves some rows nothing, and log 0. Whose maximum is it?",
        },
    ),
    "13c": dict(
        hints=[
            "Is it enough if two tables hold equal numbers, or should there be one table?",
            "A module's weight is an attribute: two modules may hold the very same parameter.",
            "head.weight = wte.weight; then add up numel() of what parameters() lists, each only once",
        ],
        wrong={
            "copied": "Equal at the start and different after a step: a copy. Who should own the numbers?",
            "numbers shared, parameter not":
                "Both point to the same numbers, yet an optimizer sees two parameters and keeps two states.",
            "a head of its own": "The head has numbers of its own. Was it made anew after it was tied?",
            "tied, then drawn anew":
                "Head and embedding are one, but the embedding's numbers are gone: what has drawn new ones?",
            "transposed":
                "nn.Linear(C, V) keeps its weight as (V, C), which is the shape of the table as it is.",
            "module instead of weight":
                "The head is the embedding now, which looks up ids. Only its weight should be shared.",
            "counted twice":
                "A saved model names the table twice, under both names. How many numbers are trained?",
            "not tied, only subtracted": "The count is right for a tied model, and this one is not tied.",
            "table not counted": "The table is trained, too: once, not never.",
            "positions not counted": "The table of positions is trained, too.",
            "matrices only": "The norms have weights, too.",
            "tensors counted": "This is how many tensors there are. How many numbers do they hold?",
        },
        also={
            "the head's numbers":
                "Tied the other way round: the embedding now begins with the head's numbers.",
        },
    ),
}  # fmt: skip

predictions = {
    "13.1": dict(
        ask="numbers in the matrices of 4 blocks at C = 128, if the MLP is 4C wide",
        wrong={
            524288.0: "524,288 is the MLPs alone, 8C² a block; attention adds 4C²: 786,432 in all.",
            262144.0: "262,144 is attention alone, 4C² a block; the MLP adds 8C²: 786,432 in all.",
            196608.0: "196,608 is one block, 12C²; there are four: 786,432.",
            393216.0: "393,216 is 6C² a block; it is 12C²: attention 4C², the MLP 8C². 786,432.",
        },
    ),
}  # fmt: skip
