"""What the grader says in lesson 3: hints, mistakes, remarks, questions."""

exercises = {
    "3a": dict(
        hints=[
            "How large may x be in e^x, and does the answer change if all logits grow alike?",
            "Subtract each row's maximum first; then the logarithm of a sum of exponentials is harmless.",
            "loss of a target = log(sum(exp(row - max))) - (row[target] - max); then the mean over targets.",
        ],
        wrong={
            "softmax then log":
                "Logits of 1000 are fine, a probability of 0 has no logarithm. Where can e^x be avoided?",
            "exp overflows":
                "e to the 1000 is inf. What may be subtracted from all logits without changing the answer?",
            "softmax twice":
                "Even a sure and right guess costs something: are these logits, or probabilities?",
            "sum, not mean": "Yours grows with the number of targets. A loss is told per target.",
            "log base 2": "Yours is 1.4427 times ours everywhere: which logarithm is the loss told in here?",
            "detached": "The value is right, but no gradient reaches the logits. What cut it off?",
            "sign": "Your loss is negative: what is the logarithm of a probability, above or below 0?",
            "mean over all logits":
                "Yours is too small by the number of letters. How many targets does each row have?",
            "softmax over rows":
                "Which numbers compete: the letters of one target, or one letter over all targets?",
            "probability, not its log":
                "This is the chance to be wrong. How surprised was the model, in nats?",
            "one loss per target": "These are the losses of each target; one number is asked for.",
            "always the largest":
                "This is the loss of the letter the model likes best. Which letter really came?",
        },
        also={
            "in float64":
                "Yours is in float64. That is more exact; the project stays with float32, which is faster.",
        },
    ),
    "3b": dict(
        hints=[
            "Two batches, one of 64 targets, one of 5: how much should each count?",
            "Sum, count, divide once. The exponential comes last, and once.",
            "exp(all nats added / all targets added)",
        ],
        wrong={
            "mean of exp per batch":
                "One exp per batch and then a mean: the bad batch weighs too much. When is the exp due?",
            "mean of batch means": "The last batch has 5 targets and weighs as much as one of 64.",
            "exp weighted by targets": "Well weighted, but exp of a mean is not the mean of exps.",
            "exp of bits": "e to a number of bits: base and unit have to match.",
            "two to the nats": "2 to a number of nats: base and unit have to match.",
            "no exp": "This is the loss. Perplexity: among how many equally likely letters is that a guess?",
            "per batch": "The nats of a whole batch went into the exponential. Per what is a loss told?",
            "one over": "This is a probability, below 1. Perplexity is one over it.",
        },
        also={
            "a tensor": "Yours is a tensor. Its .item() is the Python float that was asked for.",
        },
    ),
    "3c": dict(
        hints=[
            "If a tokenizer makes half as many tokens of a text, should the number change?",
            "All nats of the text, as bits, over what the text weighs on disk.",
            "sum of nll / ln 2 / number of UTF-8 bytes of the text without the prompt",
        ],
        wrong={
            "nats": "Yours is 0.693 times ours: the loss comes in nats, and bits are asked for.",
            "times ln 2": "Yours is about half of ours. A nat is more than a bit: multiply or divide?",
            "characters": "Right for plain ASCII and for nothing else. How many bytes has 'ł'?",
            "tokens": "This is per token: a tokenizer with longer tokens would look worse for the same text.",
            "prompt's bytes counted": "The prompt was not scored, so its bytes do not count either.",
            "UTF-16": "Which encoding is that? A plain letter has one byte in UTF-8.",
            "different characters": "Each byte counts each time it comes.",
            "bits per byte upside down": "Bytes per bit. Which of the two stands below the line?",
        },
        also={
            "a tensor": "Yours is a tensor. Its .item() is the Python float that was asked for.",
        },
    ),
    "3d": dict(
        hints=[
            "After which letter is the next one hard to guess, and how often does that letter come?",
            "The frequencies of the letters stay the same when multiplied by P: multiply until they do.",
            "floor = sum over a of share[a] * entropy(P[a]), where share = share @ P; gap = loss - floor",
        ],
        wrong={
            "entropy of letter frequencies":
                "The model seems to beat the floor. What does the letter before tell about the next?",
            "rows weigh the same": "Some letters come more often than others, and so do their rows.",
            "uniform": "ln V is the floor of a text of equally likely letters. These are not.",
            "bits": "The loss is in nats. In which unit is your floor?",
            "sign": "No model is better than the floor: which is taken from which?",
            "floor alone": "This is the floor itself. How far is the loss above it?",
            "sum over rows":
                "Your floor grows with the number of letters. It is a mean over where the text stands.",
            "columns": "P[a, b] is the chance of b after a: what sums to 1, a row or a column?",
            "ratio": "Nats are compared by a difference.",
            "one step only":
                "These are the frequencies after one step from anywhere. The text is longer than that.",
            "0 times log 0":
                "Some letter never follows another, and 0 times log 0 is NaN. What does it add to an "
                "entropy?",
        },
        also={
            "a tensor": "Yours is a tensor. Its .item() is the Python float that was asked for.",
        },
    ),
}  # fmt: skip

predictions = {
    "3.1": dict(
        ask="perplexity of a uniform guess among 65 letters",
        wrong={
            4.17: "4.17 is the loss in nats; perplexity is e to that, 65.",
            18.05: "18.05 is 2 to a loss in nats; with e it is 65.",
            0.0154: "0.0154 is the probability of each; perplexity is one over it, 65.",
        },
    ),
}  # fmt: skip
