"""What the grader says in lesson 34: hints, mistakes, remarks, questions."""

exercises = {
    "34a": dict(
        hints=[
            "At one place: what does the student lose where the teacher is sure, and what where it is not?",
            "Both kinds of logits are divided by T; logarithms from log_softmax; at each place a sum over V.",
            "p times (log p - log q), summed over V; sum of the scored places, by their count; times T * T",
        ],
        wrong={
            "softmax for log_softmax":
                "A negative divergence. Which of the two is a probability, and not its logarithm?",
            "softmax, then log": "With large logits a probability becomes 0, and its logarithm -inf.",
            "mean over the vocabulary": "You also divide by V. kl_div with 'mean' does. What is a loss per?",
            "mean over rows": "You divide by the rows. kl_div with 'batchmean' does. What is a loss per?",
            "sum, not mean": "That is the sum over all places. What is a loss per?",
            "no T squared":
                "With a large T your gradient gets small: by the square of T. Who makes up for it?",
            "times T": "You multiply by T once. How often does T divide the gradient?",
            "divided by T squared": "T squared makes the gradient smaller still. Which way should it go?",
            "arguments swapped":
                "KL(student || teacher): the other way round. Whose probabilities are the weights?",
            "teacher learns, too": "A gradient reaches the teacher. Who is learning?",
            "student not learning": "No gradient reaches the student. Which of the two is detached?",
            "temperature of one alone":
                "The teacher has no temperature, the student has. Equal logits should cost 0.",
            "temperature of the teacher alone":
                "The student has no temperature, the teacher has. Equal logits cost 0.",
            "multiplied by T": "Your T makes the likely likelier. Lesson 26 divides.",
            "entropy left in":
                "The gradient is right. But at best your loss is the teacher's entropy, not 0.",
            "only the likeliest":
                "Only the teacher's likeliest token counts. What it says of all others is lost.",
            "squares of logits":
                "That compares logits. Add 1 to all of a teacher's: does it say anything else?",
            "all places": "Places with y = -1 count, too.",
            "divided by all places": "Your divisor counts places with y = -1, too.",
            "nothing scored is nan": "If nothing is scored, you divide 0 by 0.",
            "sign": "Your loss is best where the student is farthest from its teacher.",
        },
    ),
    "34b": dict(
        hints=[
            "Which of the two models learns, and in which mode does each have to be?",
            "Dropout off and no graph for the teacher; the text's loss has neither T nor its square.",
            "eval, no_grad: teacher(x); student(x) once; alpha * soft_loss + (1 - alpha) * mean over y != -1",
        ],
        wrong={
            "alpha on the wrong term": "Your alpha weighs the text. It should weigh the teacher.",
            "no weights": "Both terms count in full. What do the weights sum to?",
            "text at full weight": "The text counts in full. What is left for it beside alpha?",
            "teacher alone": "Only the teacher is listened to.",
            "text alone": "Only the text is listened to.",
            "T on the hard loss":
                "Logits of the text's loss are divided by T, too. How will the student be used?",
            "T squared on both": "T squared makes up for the T in the soft loss. Is there one in the other?",
            "T squared twice": "T squared is in 34a already.",
            "teacher in training mode":
                "The teacher's dropout is on: it says something else each time it is asked.",
            "student in eval, too": "The student is in evaluation mode: it trains without its dropout.",
            "teacher learns, too":
                "Gradients reach the teacher's weights. It costs memory, and it would move.",
            "student not learning": "The teacher's term has no gradient. Which logits are detached?",
            "arguments swapped": "Student and teacher have changed places.",
            "no gradient for either": "The student's forward pass has no graph. Who is in no_grad?",
            "teacher's guess for y":
                "In place of the text you take the teacher's likeliest token. It may be wrong.",
            "sum of the text's loss": "The text's loss is a sum, the teacher's a mean.",
            "mean over all places": "The text's loss is divided by all places, scored or not.",
            "nothing scored is nan": "If nothing is scored, the text's loss is 0 by 0.",
            "a float": "A float has no graph: nothing can be learned from it.",
        },
    ),
}  # fmt: skip

predictions = {
    "34.1": dict(
        ask="length of the soft loss's gradient at T = 4, without T^2, as a share of that at T = 1",
        wrong={
            0.25: "1/4 comes of dividing the logits. The probabilities come closer, too, by as much: 1/16.",
            1.0: "Both sides are softer, so they differ less: about 1/16.",
            0.0039: "1/256 would be four times over; T divides twice: about 1/16.",
        },
    ),
    "34.2": dict(
        ask="the soft loss in nats of a student that says exactly what its teacher says",
        wrong={
            1.0: "0: a divergence measures how far two are apart.",
            4.174: "That is ln 65, the loss of knowing nothing. Two that agree have a divergence of 0.",
        },
    ),
}  # fmt: skip
