"""What the grader says in lesson 17: hints, mistakes, remarks, questions."""

exercises = {
    "17a": dict(
        hints=[
            "What does x times its transpose times x do to the singular values of x?",
            "Divide by the norm; turn a tall matrix; five rounds of two lines; turn back.",
            "A = x x^T; x = a x + (b A + c A A) x, five times, from x = matrix / max(its norm, 1e-7)",
        ],
        wrong={
            "not normalised": "Large matrices give NaN: s^5 with s above 1. What comes first?",
            "nothing against zero": "A matrix of zeros: 0 / 0. What is its norm at least?",
            "largest entry":
                "Numbers explode. Which norm of a matrix bounds its singular values, and are all three terms "
                "there?",
            "three rounds":
                "Largest and smallest are {largest:.2f} and {smallest:.2f}. How many rounds should there be?",
            "one round": "Small singular values are still small. How many rounds?",
            "six rounds": "One round more than asked. Is the count from 0 or from 1?",
            "cubic only":
                "That is the old iteration, x (3 - x^2) / 2: right, but slow for small singular values.",
            "mistyped c": "A coefficient is mistyped: singular values leave 0.68 to 1.13.",
            "sign of b": "Numbers explode: which of the three coefficients is negative?",
            "A squared by element":
                "A times A by element changes the directions. Which product multiplies singular values?",
            "not turned back": "A tall matrix comes back lying on its side. What was done to it?",
            "values of x squared": "Your polynomial ends at s^3: A is x x^T, so what is the factor for s^5?",
            "norm inside the loop":
                "You divide by the norm in each round, so no value gets to 1. How often is it needed?",
        },
        also={
            "1e-7 added to the norm":
                "You add 1e-7 to the norm: a tiny matrix shrinks a little. Here 1e-7 is only the "
                "least divisor.",
        },
    ),
    "17b": dict(
        hints=[
            "What is made orthogonal: a gradient, or the average of many?",
            "Average, average once more with the gradient, orthogonalize, shrink w, move w in place.",
            "m = mix of m and g; look = mix of m and g; shrink w; w -= lr root(max(1, rows/cols)) O(look)",
        ],
        wrong={
            "orthogonalised before momentum":
                "Each gradient is orthogonalised, then averaged: the sum is not. Which comes first?",
            "no shape factor": "Right for wide matrices. What makes the step of a tall one larger?",
            "factor without the root":
                "The step of a tall matrix is too large: the ratio itself, or its root?",
            "factor upside down":
                "Wide matrices get larger steps than tall ones. Which size is the number of rows?",
            "factor below 1": "Wide matrices get shorter steps. The factor is at least what?",
            "no Nesterov": "The average m itself is orthogonalised. What looks one step further ahead?",
            "look ahead kept":
                "Step 1 is right. What do you keep for step 2: the average, or the look ahead?",
            "first gradient whole":
                "m is 0 before the first step: that gradient, too, counts 1 - momentum. In yours it "
                "counts whole.",
            "no momentum": "Each step knows only its own gradient. Where is m kept?",
            "not orthogonalised":
                "The step is as long as the gradient is large. Through what should the look ahead go?",
            "decay through the update":
                "decay x weight is orthogonalised, too, and so as strong as the gradient. Keep them apart.",
            "decay not times lr":
                "Each step takes a third of the weights, however small lr is. What is decay multiplied by?",
            "no decay": "No weight shrinks. Is decay there, and in place?",
            "uphill": "Weights move with the gradient: the loss grows. Which sign?",
            "a new tensor": "No weight has moved: w is a new tensor. What changes it in place?",
            "gradient overwritten": "The step is right, but the caller's gradient is no longer what it was.",
        },
        also={
            "decay after the step":
                "Yours shrinks what Muon has just added, too: a difference of lr squared, which nobody will "
                "notice.",
        },
    ),
    "17c": dict(
        hints=[
            "Which parameters are maps from vectors to vectors, and which are lists of vectors?",
            "One loop over named_parameters: skip the frozen, then ask for the axes and for the name.",
            "to Muon if it has two axes and its name begins with blocks. ; else to AdamW",
        ],
        wrong={
            "all matrices":
                "Embeddings are matrices, but a row of one is a letter. Who updates embeddings and head?",
            "only the head left out":
                "The head is left out, and the embeddings are not. Where do Muon's matrices stand?",
            "only embeddings left out":
                "The embeddings are left out, and the head is not. Where do Muon's matrices stand?",
            "all of the blocks": "Gains and biases have no singular values to make equal.",
            "rest forgotten": "Embeddings, head, gains and biases are in no list: nobody would train them.",
            "matrices twice":
                "Matrices are in both lists: two optimizers would move them, one after the other.",
            "frozen included": "A frozen parameter has no gradient. How do you know it?",
            "tied head counted twice":
                "Tied, head and embedding are one parameter: it would be updated twice.",
            "attention only": "The MLP has matrices, too.",
            "MLP only": "Attention has matrices, too.",
            "the other way round": "Which list comes first?",
            "parameters, not their names": "These are the parameters themselves. Their names are asked for.",
            "vectors for Muon": "Muon makes singular values equal. What has some?",
        },
    ),
}  # fmt: skip

predictions = {
    "17.1": dict(
        ask="smallest that the five rounds of 17a make of any singular value from 0.01 to 1",
        wrong={
            1.0: "Exactly 1 would take an SVD. Five rounds of this polynomial end between 0.68 and 1.13.",
            0.01: "0.01 is where it was. A round multiplies small values by 3.4: after five it is 0.7.",
            1.13: "1.13 is about the largest. The smallest is 0.68.",
            0.12: "0.12 is where 0.01 stands after two rounds; after five nothing is below 0.68.",
        },
    ),
}  # fmt: skip
