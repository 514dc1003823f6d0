"""What the grader says in lesson 33: hints, mistakes, remarks, questions."""

exercises = {
    "33a": dict(
        hints=[
            "If all weights of all matrices stood in one row, sorted, which ones would go?",
            "Join the sizes of all matrices, sort them, take the first share, and cut the long row apart "
            "again.",
            "argsort(stable=True) of abs; True at the first round(share * n); split by numel, view as each",
        ],
        wrong={
            "value, not size": "Of yours the negative ones go, large or small. What is the size of -3?",
            "the large ones go": "The largest weights go. Which ones are missed least?",
            "stays and goes swapped": "True is where a weight becomes zero. Yours are the other way round.",
            "share of each matrix":
                "Every matrix loses the same share. All weights together are compared, so that some lose "
                "more.",
            "share of each row": "Every row loses the same share. What is compared with what?",
            "vectors pruned, too": "Biases and gains have one axis. They stay, and have no mask.",
            "vectors counted": "A share of what? The vectors are in your count.",
            "share that stays": "share is what goes. Yours is what stays.",
            "count cut off": "int() cuts off. How many weights are nearest to that share?",
            "equal ones all go": "More go than were asked for: equal ones all go with the limit.",
            "equal ones all stay": "Fewer go than were asked for: what is equal to the limit stays.",
            "last of equal ones": "Among equal ones the first go. Yours are the last.",
            "below share of the largest":
                "You cut at a share of the largest weight. How many are below that, nobody knows.",
            "weights set to zero": "The masks are right, and the weights are changed already.",
            "weights for masks": "These are weights. A mask says of each whether it goes.",
            "ones and zeros": "A mask is bool: True where a weight goes.",
            "the first ones go": "The first weights go, whatever their size.",
        },
    ),
    "33b": dict(
        hints=[
            "Who can move a weight whose gradient is zero? And who whose optimizer has a memory?",
            "A loop as in lesson 4. After each step, the weights under the mask are zero again.",
            "loss, clear, backward, step; then, without gradients: each weight[mask] = 0; note the loss",
        ],
        wrong={
            "zeros never put back":
                "{kept:.0f} % of the pruned weights are zero in the end: a step moves whatever has a "
                "gradient.",
            "gradients alone masked":
                "Without gradients {kept:.0f} % of the zeros stay: what else does this optimizer add to a "
                "weight?",
            "zeros before the step": "The zeros are put in before the step, and the step has the last word.",
            "zeros in the end alone":
                "The zeros are there in the end, but the others have learned beside weights that were not "
                "zero.",
            "mask made anew from zeros":
                "A weight that was zero by chance never learns with you. Which zeros are the pruned ones?",
            "mask made anew by size":
                "With each step other weights go: the smallest of now. The choice was made before.",
            "mask upside down": "What was to stay is zero. What does True mean in the mask?",
            "one matrix alone": "Only the first matrix keeps its zeros.",
            "new parameters":
                "The optimizer holds the parameters that it was given. Yours are new ones, which nobody "
                "trains.",
            "gradients never cleared": "The gradients of all batches add up. Where are they cleared?",
            "tensors told": "Each loss in your list keeps its graph alive. Which number is in it?",
            "no step": "Nothing learns.",
            "losses after the update": "The loss of a batch is the one before its update.",
            "others frozen": "Biases have no mask, and still learn.",
            "first batch alone": "There are more batches.",
        },
    ),
}  # fmt: skip

predictions = {
    "33.1": dict(
        ask="size of a file of float32 weights, once 90 % of them are zero, in % of that before",
        wrong={
            10.0: "A zero takes as many bytes as any number: the file stays as it is, 100 %.",
            20.0: "With an index for each weight left it would be 20 %. These files have none: 100 %.",
            90.0: "A zero takes as many bytes as any number, and nothing else is left out: 100 %.",
        },
    ),
    "33.2": dict(
        ask="half of the weights are pruned, then one AdamW update without masks: % of these still zero",
        wrong={
            100.0: "A weight that is zero has a gradient like any other, and AdamW moves it: 0 % are left.",
            50.0: "Nearly every weight has a gradient that is not zero, and moves: 0 % are left.",
            90.0: "One update of AdamW moves whatever has a gradient, by about the rate: 0 % are left.",
        },
    ),
}  # fmt: skip
