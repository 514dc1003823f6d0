"""What the grader says in lesson 37: hints, mistakes, remarks, questions."""

exercises = {
    "37a": dict(
        hints=[
            "Which weights is this rank alone responsible for? And how do the others learn of them?",
            "Average the gradient; Adam on your stretch, with state of that length; then each owner sends.",
            "n = P / ranks, rounded up; mean; Adam on [r n : r n + n]; for each owner: broadcast its stretch",
        ],
        wrong={
            "no gather": "Each rank has updated its own share, and nobody has told the others.",
            "all state on each rank": "Weights right, but each rank keeps the state of all weights.",
            "last weights left out": "The last weights belong to nobody: P is not divisible by the ranks.",
            "shards overlap": "Two ranks update the same weights; some are sent by one that did not.",
            "own gradient": "Each rank steps by the gradient of its own rows.",
            "summed, not averaged": "Adam hides a factor, but not where gradients are near eps. Sum or mean?",
            "own stretch sent each time":
                "Each rank hands in its own stretch. When src sends, everybody needs the place of src's.",
            "stretches gathered":
                "all_gather wants equal lengths, and the last stretch may be shorter. What takes any length?",
            "usual beta for v": "Your v forgets more slowly: asked for is 0.95, not the usual 0.999.",
            "all from rank 0": "Rank 0 sends everything. Who has updated the second stretch?",
            "weights summed": "All ranks' weights are added up, but most were not changed by each.",
            "updates the next rank's shard":
                "The weights stay as they were: you update a copy, or a stretch whose owner sends old ones.",
            "state thrown away": "The running means begin anew in each update.",
            "updates not counted": "The bias correction is that of the first update, always.",
            "no bias correction": "The running means begin at 0. What corrects them in the first updates?",
            "eps inside the root": "eps is added to the root, not under it.",
            "plain descent": "That is a step along the gradient. Where are the running means?",
        },
    ),
    "37b": dict(
        hints=[
            "A vector is cut in pieces. How does its length follow from those of the pieces?",
            "Sum squares over ranks, then add those of what all have alike, once; then the root.",
            "squares of shards, all_reduce, + squares of copies, root; above the limit: scale in place",
        ],
        wrong={
            "own norm": "Each rank scales by the norm of its own shards. Whose gradient is it?",
            "copies counted on each rank": "What all ranks have alike is counted once for each.",
            "copies left out": "The copies belong to the gradient, too.",
            "norms summed": "Lengths of pieces do not add up; their squares do.",
            "a number is sent": "A collective changes a tensor in place; a Python number it cannot.",
            "squares averaged": "The pieces are parts of one vector: their squares are summed.",
            "largest rank's norm": "The longest piece is not the whole.",
            "squared norm": "That is the square of the norm.",
            "told, not scaled": "The norm is right, the gradients are as they were. In place?",
            "always scaled": "A gradient below the limit is stretched up to it. When is it clipped?",
            "shards alone scaled": "The copies keep their length, so the direction of the gradient changes.",
            "scaled by the own norm": "Norm right, but each rank scales by that of its own pieces.",
            "norm after clipping told": "You tell the norm after clipping. What was it before?",
            "each tensor by itself": "Each tensor is clipped by itself: the direction changes.",
            "not a number at zero": "A gradient of 0 becomes nan: it is divided by its norm.",
        },
    ),
    "37c": dict(
        hints=[
            "Which kinds of numbers does each stage divide? Which does every rank hold whole?",
            "Stage 1: optimizer, with the master weights. 2: gradients as well. 3: weights as well.",
            "sum of three: weights, gradients, master + moments; each / ranks from stage 3, 2, 1 on",
        ],
        wrong={
            "master weights forgotten": "The float32 copy of the weights is missing. Who steps in bfloat16?",
            "one moment forgotten": "Adam has two running means.",
            "everything divided": "Stage 1 divides the optimizer's part alone. What else is there?",
            "gradients a stage early": "Gradients are divided from stage 2 on.",
            "weights a stage early": "Weights are divided in stage 3 only.",
            "weights never divided": "In stage 3 weights are divided, too.",
            "weights before gradients": "Gradients come before weights: which is less trouble to divide?",
            "master counted as weights": "Master weights are the optimizer's: no forward pass reads them.",
            "one stage behind": "Each stage of yours divides what the one before should.",
            "nothing divided": "Nothing is divided. Which part does a rank hold?",
            "of all ranks": "That is all ranks together; asked for is one.",
        },
    ),
}  # fmt: skip

RULE = "bytes per parameter, 8 ranks, bfloat16 + float32 master weights and Adam, ZeRO stage"
predictions = {
    "37.1": dict(
        ask=f"{RULE} 1",
        wrong={
            5.0: "12 bytes are divided, not 8: master weights belong to the optimizer. 4 + 12 / 8.",
            2.0: "16 / 8 is stage 3. Stage 1 divides the optimizer's 12 bytes: 4 + 12 / 8.",
            16.0: "16 is without sharding. Stage 1 divides 12 of these: 4 + 12 / 8.",
        },
    ),
    "37.2": dict(
        ask=f"{RULE} 2",
        wrong={
            3.25: "14 bytes are divided, not 10: master weights, too. 2 + 14 / 8.",
            2.0: "16 / 8 is stage 3. Stage 2 keeps the 2 bytes of the weights: 2 + 14 / 8.",
            5.5: "That is stage 1. Stage 2 divides gradients, too: 2 + 14 / 8.",
        },
    ),
    "37.3": dict(
        ask=f"{RULE} 3",
        wrong={
            1.5: "16 bytes, not 12, are divided: master weights, too. 16 / 8.",
            3.75: "That is stage 2. Stage 3 divides the weights, too: 16 / 8.",
            0.25: "Weights alone are 2 / 8; with all that belongs to them 16 / 8.",
        },
    ),
}
