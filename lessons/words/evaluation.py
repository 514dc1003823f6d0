"""What the grader says in lesson 28: hints, mistakes, remarks, questions."""

exercises = {
    "28a": dict(
        hints=[
            "Which targets of the third window were scored by the second already?",
            "Windows begin size - size // 2 ids apart. Add up nats, divide once.",
            "for each begin: losses of size ids; from the second window on, those of new ids; sum / (n - 1)",
        ],
        wrong={
            "disjoint windows":
                "Each window begins where the last one ended: its first target has one letter before it.",
            "first letters never scored":
                "The first id of each window is predicted by nobody: some targets are missing in your mean.",
            "overlap counted twice":
                "What two windows share is scored twice, the first time with too little before it.",
            "a target lost each window":
                "One target is lost at each seam. `size` ids have size - 1 targets: how many were scored?",
            "overlap in the sum alone":
                "The nats of the overlap are added twice, and the targets counted once: too large.",
            "mean of window means":
                "The last window is short, and counts as much as a full one. How often should you divide?",
            "short last one dropped": "The end of the text is not scored: its window is shorter than size.",
            "one letter at a time":
                "Each target has a full window, for a pass over size ids each. The overlap here is half.",
            "whole text at once": "Your model reads more than size ids at once. What was it trained to read?",
            "windows half as long":
                "Your windows do not overlap: they are half as long. What stands before the first target?",
            "its own letter": "You score each id at its own place. Which logits predict it?",
            "a sum": "That is a sum: it grows with the text. Nats per target are asked for.",
            "divided by all ids": "The first id has no prediction. How many targets are there?",
            "bits": "Those are bits. This project counts in nats.",
            "perplexity": "That is the perplexity. The loss is its logarithm.",
            "a graph held": "What you return holds the graphs of all windows. Who needs a gradient here?",
        },
        also={
            "one target more":
                "Your windows read size ids and predict as many, as in evaluate.py; ours predict one less.",
        },
    ),
    "28b": dict(
        hints=[
            "Two runners, each timed on other days: how much of the difference is weather?",
            "Draw once, let both models read it, subtract window by window. Then mean and spread of that.",
            "d = mean loss of each window, second minus first, over k batches; mean of d; spread of d / root "
            "of their number",
        ],
        wrong={
            "unpaired":
                "Your error adds those of both models. But the windows are the same: what is hard for both?",
            "spread, not standard error":
                "That is the spread of one window. Does your error shrink if there are more windows?",
            "divided by n": "Your error shrinks too fast: with four times the windows it is to be halved.",
            "root of n forgotten twice":
                "That is the square of the standard error, a variance. In which unit is it?",
            "other batches per model":
                "Each model gets windows of its own: luck is in your difference. Who draws, how often?",
            "train text": "You compare on the training text. Which split has neither of them seen?",
            "first minus second": "The sign: negative is to say that the second is better.",
            "sums of windows": "That is nats per window, and grows with its length. Per letter is asked for.",
            "batches as units": "You take the spread of batch means. There are more windows than batches.",
            "letters as units":
                "You count letters as independent. Those of one window share what is hard about it.",
            "how far, not which way": "Without signs luck adds up, too: a model would differ from itself.",
            "one batch": "One batch is drawn. How many are asked for?",
            "error of the second alone":
                "That is the error of the second model's loss. Asked is how sure the difference is.",
            "two standard errors": "That is two standard errors. One is asked for.",
            "bits": "Those are bits. This project counts in nats.",
            "a ratio": "That is a ratio of losses. A difference is asked for.",
            "a graph held": "What you return holds the graphs of all batches. Who needs a gradient here?",
        },
        also={
            "n - 1": "Your spread divides by n - 1, better for few windows; evaluate.py divides by n.",
        },
    ),
    "28c": dict(
        hints=[
            "Which places of the test text can an n-gram of words begin at?",
            "Lower case, cut into words, all n in a row. Those of train belong into a set.",
            "grams = tuples of n words in a row; share of the test's in the set of train's; none: 0",
        ],
        wrong={
            "letters for words": "Your n-grams are letters. Any two texts share nearly all of these.",
            "set of test n-grams": "You count once what the test says twice. Which share of it was seen?",
            "case kept": "'The king' and 'the king' differ for you. How do copies begin sentences?",
            "the wrong way round": "That is the share of the training text that is in the test.",
            "jaccard":
                "You divide by the n-grams of both: with a long training text that is near 0, copied or not.",
            "split at blanks alone": "Line breaks are parts of words for you, or empty words.",
            "single words": "You compare words, one by one. Who writes a text without 'the'?",
            "n-grams side by side": "Your n-grams do not overlap. A copy may begin at any word.",
            "last n-gram lost": "The last n words of each text are left out.",
            "nothing to divide by": "A test of less than n words has no n-grams. What is its share?",
            "parts of words": "You search in the text, not among words: 'he art' is in 'the art', too.",
            "order ignored": "The same words in another order count as a copy for you.",
            "glued words": "Glued together, 'he art' and 'hea rt' are the same. How do words stay apart?",
            "counted, not divided": "That is a count. Asked is a share.",
            "percent": "That is in percent. Asked is a share from 0 to 1.",
            "punctuation cut off": "You drop commas. Words are what stands between blanks, as they are.",
            "each copy once":
                "An n-gram that the test says more often than train is counted only as often as in train.",
        },
    ),
}  # fmt: skip

predictions = {
    "28.1": dict(
        ask="standard error of a mean over 100 windows whose losses have a standard deviation of 0.1",
        wrong={
            0.1: "0.1 is the spread of one window. A mean of 100 is less noisy: divide by the root of 100.",
            0.001: "0.1/100: you divided by n. The noise of a mean falls with the root of n: 0.01.",
            1.0: "You multiplied by the root of 100; a mean of many is less noisy, not more: 0.01.",
        },
    ),
}
