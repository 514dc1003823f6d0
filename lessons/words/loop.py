"""What the grader says in lesson 4: hints, mistakes, remarks, questions."""

exercises = {
    "4a": dict(
        hints=[
            "What lies in .grad when your function is called the second time?",
            "One line for the loss; backward, step and zero_grad in their order; .item() at the end.",
            "loss = mean nats of all targets; old gradients away; fill in new ones; move; return the number",
        ],
        wrong={
            "no zero_grad": "Step 1 is right, step 2 also has the gradient of step 1. Who clears it?",
            "cleared before the step": "Nothing moves, no gradient is left. Who took it away?",
            "no step": "The gradients are there and no weight moved. Who was to use them?",
            "step before backward": "Step 1 moves nothing, later ones are a batch late. Why?",
            "the tensor returned": "A list of these keeps every graph alive. Which number is in it?",
            "x for y": "Your model learns to say what it has just read. What is it to guess?",
            "x and y swapped": "Your model learns which letter came before. Which of the two does it read?",
            "loss after the step": "The weights are right; the loss told is that of weights already moved.",
            "sum, not mean": "Loss and step grow with the size of the batch. Per what is a loss told?",
            "softmax first": "cross_entropy takes logits and does softmax itself. What did it get from you?",
            "not flattened": "cross_entropy wants (N, V) and (N,). What is N here?",
            "bits, not nats":
                "Loss and gradient are 1 / ln 2 times the right ones: these are bits, asked for are nats.",
            "told in bits": "The weights are right; the loss is told in bits, asked for are nats.",
            "last letter only": "Each of the T places has a target of its own, not only the last one.",
            "viewed, not transposed": "(B, T, V) was reshaped, not turned: whose logits are these?",
            "a rate of its own": "The loss is right, the update is not that of opt. Whose is it?",
            "without a graph": "Backward needs what forward recorded. What stops the recording?",
        },
        also={
            "a tensor without graph": "Yours is a tensor; .item() makes it a Python float.",
        },
    ),
    "4b": dict(
        hints=[
            "At which of the three dotted heights of the plot does your loop end?",
            "blank, batch and train_step are there. What is left: an optimizer, its rate, a number of steps.",
            "Adam, rate near 0.1; some hundred times: a few thousand random pairs, one step; then the table",
        ],
        wrong={
            "rate too small":
                "Ends at {loss:.2f}, letters alone at {alone:.2f}. What would ten times the rate do?",
            "rate too large": "Ends at {loss:.2f}, a uniform guess at {uniform:.2f}. How far is each jump?",
            "random start":
                "Ends at {loss:.2f}, above a uniform guess: did it begin with random logits, and hardly "
                "move?",
            "stopped early":
                "Ends at {loss:.3f}, counting at {counted:.3f}. Does it still fall, or does it see a part "
                "only?",
            "bias only": "Ends at {loss:.2f}, as letters alone, and all rows are alike. Who picks the row?",
            "trained on y=x": "Row a says a again, and its loss fell to 0. What were its targets?",
            "pairs turned round":
                "Row a says what comes before a. Which of a pair is looked up, and which is guessed?",
            "probabilities returned":
                "Your rows sum to 1: these are probabilities. What stands before the softmax?",
            "counted, not learned":
                "As good as it can be, but no backward pass ran: this was counted. Let a gradient find it.",
            "an optimizer each step":
                "{optimizers} optimizers took the steps; each begins without what the last one knew. Who "
                "makes it?",
            "the same batch always":
                "Ends at {loss:.2f}: {missed:.0%} of the pairs have never come up. Is every batch another "
                "one?",
            "jumps at the end":
                "Ends at {loss:.2f}; the mean of its last tables is at {mean:.2f}: it jumps. Why so far each "
                "time?",
            "the table it began with":
                "All entries are equal, as they were at first. Is this the table that the optimizer moves?",
            "a step for show":
                "Your table is as good where backward makes no gradient: it was counted. Let the "
                "gradient find it.",
        },
    ),
}  # fmt: skip

predictions = {
    "4.1": dict(
        ask="loss at step 0, in nats, of a table of zeros for 65 letters",
        wrong={
            0.0: "0 is a sure and right guess. Zeros make all 65 letters equally likely: ln 65 = 4.174.",
            3.31: "3.31 needs the frequencies of the letters. Zeros know nothing: ln 65 = 4.174.",
            6.02: "6.02 is right, in bits; in nats it is 4.174.",
            0.0154: "0.0154 is the probability 1/65; the loss is its -ln, 4.174.",
        },
    ),
    "4.2": dict(
        ask="training loss where it must end; counted pairs cost 2.45 in training, 2.48 held out",
        wrong={
            0.0: "0 would need pairs that leave no choice. No table does better than the counted one, 2.452.",
            3.31: "3.31 is what letters alone cost. This table knows the letter before: 2.452.",
            2.48: "2.48 is the loss on text held out. On the text it is trained on, it is 2.452.",
            4.17: "4.17 is where it begins. It ends at the counted table's 2.452.",
        },
    ),
}  # fmt: skip
