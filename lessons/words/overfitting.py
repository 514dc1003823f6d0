"""What the grader says in lesson 20: hints, mistakes, remarks, questions."""

exercises = {
    "20a": dict(
        hints=[
            "If it learns this batch and no other, how often is batch() called, and what may not be hidden?",
            "Remember the mode, switch dropout off, fetch once; then the loop of lesson 4; the mode at the "
            "end.",
            "eval; x, y once; up to `most` times: loss, append, break below 0.1, zero_grad, backward, step; "
            "mode",
        ],
        wrong={
            "new batch each update":
                "You asked for {asked} batches, and the loss ends at {last:.2f}. How many are to be learned "
                "by heart?",
            "dropout left on":
                "The loss ends at {last:.2f} after {made} updates. Who hides other numbers at each of them?",
            "train mode": "You switch to train mode, where dropout is on. In which mode is it off?",
            "y is x": "The targets are the inputs: the model only has to copy. What is it to predict?",
            "left in eval":
                "The losses are right, but dropout stays off for all that follows. How was the mode before?",
            "always back to train": "It came in eval mode and leaves in train mode. How was it before?",
            "gradients pile up": "Each update is made with all gradients so far. Who empties them?",
            "no step":
                "The loss stays at {last:.2f}. Is a gradient computed, still there at the step, and is there "
                "a step?",
            "never stops": "{made} updates are made, the loss is below the line long before. Who looks?",
            "one update too many":
                "The loss is below 0.1, and still one more update is made. When do you look?",
            "last loss left out": "The loss below 0.1 is not in your list: it is what one wants to see.",
            "most ignored": "You made more than `most` updates. What if a bug keeps the loss up?",
            "one more than most":
                "You went through the loop {made} times. How many updates may it be at most?",
            "sum of the losses":
                "The first loss is {first:.1f}, and ln 11 is 2.4. Is it a mean over targets?",
            "last letter only": "Each window has many targets, one for each letter. You use the last.",
            "logits not transposed":
                "Logits and targets are in different orders. Which axis is V, and which are joined?",
            "tensors kept":
                "Your list holds tensors, and with each of them its graph. What makes a number of one?",
        },
    ),
    "20b": dict(
        hints=[
            "How many of 1,000 ones are left with p = 0.3, and what must each become for the sum to be "
            "1,000?",
            "A draw from 0 to 1 for each number of x, compared with p; what is kept is made larger.",
            "in training: x * (uniform draws of the shape of x >= p) / (1 - p); else x",
        ],
        wrong={
            "not divided":
                "What is kept stays as it is, so the mean shrinks to 1 - p of it. What restores it?",
            "multiplied, not divided":
                "What is kept gets smaller still: {factor:.2f}. Which way does the mean go back up?",
            "divided by p": "The factor is {factor:.2f} for p = {p}. Which share is kept: p, or 1 - p?",
            "p means keep":
                "A share of {share} is zero where p is {p}. Is p what is dropped, or what is kept?",
            "mask upside down":
                "A share of {share} is zero where p is {p}. Which numbers does the comparison keep?",
            "normal, not uniform":
                "A share of {share} is zero where p is {p}. Which draws are spread evenly from 0 to 1?",
            "the same mask each call":
                "Two calls drop the same numbers: then the model learns to do without just these.",
            "active in evaluation":
                "In evaluation numbers are dropped, too: two calls differ. Who says which mode it is?",
            "never active": "Nothing is ever dropped. When is it to happen?",
            "mode upside down": "It drops in evaluation and not in training. Which of the two should it be?",
            "scaled in evaluation":
                "Scaled in evaluation, not in training: that was the first way. Here evaluation returns x as "
                "it is.",
            "scaled in both": "In evaluation nothing is dropped. What is there to make up for?",
            "whole tokens":
                "All features of a token vanish together: whole tokens are gone. How many draws are needed?",
            "whole channels":
                "A feature vanishes from all tokens of a text at once. How many draws are needed?",
            "one mask for all texts":
                "All texts of the batch lose the same numbers. How many draws are needed?",
            "one draw for all": "All numbers vanish or none: that is one draw. How many are needed?",
            "gradient lost": "The values are right, but no gradient passes. What cuts it off?",
            "gradient of all": "The values are right, but dropped numbers get a gradient, too.",
            "changed in place": "x itself is changed: the stream still needs it. Write into a new tensor.",
        },
    ),
    "20c": dict(
        hints=[
            "Which of the two curves knows about text that was not trained on?",
            "First the lowest val loss that is a number, then its first place, then both losses at that "
            "place.",
            "lowest = least of val without nan; place = first index of it; step there, lowest - train there",
        ],
        wrong={
            "minimum of train": "There the training loss is lowest. Which curve tells of other texts?",
            "last step": "That is the last step. Where was val lowest?",
            "where the curves cross": "There val crosses train. It may fall long after that.",
            "first rise": "After that step val rises, and then it falls below it again: a bump.",
            "widest gap": "There the gap is widest: that is long after val has turned.",
            "narrowest gap": "There the curves are nearest. Which of them is to be lowest?",
            "the last of equal ones": "Val is as low at an earlier step. Which of the two took less?",
            "nan is the lowest": "A nan is neither low nor high, and here it is taken for the lowest.",
            "highest": "There val is highest.",
            "an index": "That is the place in the list. Which step stands there?",
            "gap at the end":
                "The step is right, the gap is that of the end. Take both losses at the same step.",
            "gap to the lowest train": "The step is right. The gap is to the training loss of the same step.",
            "gap upside down": "The step is right. Which of the losses is the larger, as a rule?",
            "ratio, not gap": "The step is right. A gap is a difference.",
            "val in place of gap":
                "The step is right. The gap is the distance of the curves, not the height of one.",
        },
    ),
}  # fmt: skip

predictions = {
    "20.1": dict(
        ask="loss in nats of one batch of 4 windows of 32 letters, after 60 updates on it alone",
        wrong={
            2.45:
                "2.45 is what pairs of letters cost on all of the text; one batch is learned by heart: 0.01.",
            1.5: "1.5 is what a good model costs on new text; this text it has seen 60 times: 0.01.",
            4.17: "4.17 is where it begins; one batch is learned by heart: 0.01.",
        },
    ),
    "20.2": dict(
        ask="dropout with p = 0.2: in training each number that is kept is multiplied by",
        wrong={
            0.8: "0.8 is the share that is kept; what is kept is divided by it: 1.25.",
            5.0: "5 is 1 / p; it is 1 / (1 - p) = 1.25.",
            1.2: "1.2 is 1 + p: then 0.96 of the mean arrives. 1 / 0.8 is 1.25.",
            1.0: "Then the mean would shrink to 0.8 of it; divided by 0.8 it stays: 1.25.",
        },
    ),
}  # fmt: skip
